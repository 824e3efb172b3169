//! OnionPerf's analysis JSON, versions 1.0 to 3.1: one day's downloads of one or more sources, and what tor told of them
//! (<https://metrics.torproject.org/collector.html#type-onionperf>).
//!
//! Each of `tgen.transfers` (up to 2.0) and `tgen.streams` (from 3.0) is a run; what is there decides, not the version. As
//! Tor Metrics' reader does it, a run is joined to the stream of tor that came from the same port and ended within 150
//! seconds of it, and so to its circuit; a run whose circuit is `filtered_out` is passed over. Of several such streams the
//! nearest is taken.

mod document;
mod told;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{self, BufReader, ErrorKind, Read};

use self::document::{Analysis, Circuit, Entries, TgenStream, TorStream, Transfer};
use self::told::Told;
use super::ImportedRun;
use super::rule::{Rule, Site, Violation, quoted};

/// A longer document, unpacked, is refused: bytes.
pub const DOCUMENT_LIMIT: u64 = 256 << 20;

/// Reads a document into memory, and checks its form.
///
/// # Errors
/// If it can't be read, is broken or too large, has a value of a wrong type, or is of another type or version.
pub fn read(input: impl Read) -> Result<Document, Violation> {
    read_within(input, DOCUMENT_LIMIT)
}

fn read_within(input: impl Read, limit: u64) -> Result<Document, Violation> {
    let bounded = BufReader::with_capacity(1 << 16, Bounded { input, left: limit });
    let mut deserializer = serde_json::Deserializer::from_reader(bounded);
    let analysis: Analysis = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = path_of(error.path());
        broken(path, &error.into_inner())
    })?;
    deserializer.end().map_err(|error| broken(Path::default(), &error))?;
    if analysis.kind.as_deref() != Some("onionperf") {
        let kind = analysis.kind.map_or("missing".to_owned(), |kind| quoted(&kind));
        return Err(Path::default().key("type").violation(Rule::Version, format!("it is {kind}, not \"onionperf\"")));
    }
    let version = analysis.version.map(|word| word.0);
    let major = version.as_deref().and_then(|version| version.split('.').next()?.parse::<u8>().ok());
    if !major.is_some_and(|major| (1..=3).contains(&major)) {
        let version = version.map_or("missing".to_owned(), |version| quoted(&version));
        let why = format!("it is {version}; known are 1.0 to 3.1");
        return Err(Path::default().key("version").violation(Rule::Version, why));
    }
    let Some(data) = analysis.data else {
        return Err(Path::default().key("data").violation(Rule::Missing, "it must be there"));
    };
    let nodes = data.0.into_iter().map(|(nick, node)| Source::new(nick, node)).collect();
    Ok(Document { nodes, site: Site::File, found: false, ended: false, warnings: Vec::new() })
}

/// The runs of a document, one after the other.
///
/// After a violation it goes on with the next run.
#[derive(Debug)]
pub struct Document {
    nodes: VecDeque<Source>,
    site: Site,
    found: bool,
    ended: bool,
    warnings: Vec<Violation>,
}

impl Document {
    /// Where the run stands that came last.
    pub fn site(&self) -> Site {
        self.site.clone()
    }

    /// What OnionPerf's own plots lack in the run that came last, though its readers take it.
    pub fn take_warnings(&mut self) -> Vec<Violation> {
        std::mem::take(&mut self.warnings)
    }
}

impl Iterator for Document {
    type Item = Result<ImportedRun, Violation>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(node) = self.nodes.front_mut() {
            if let Some(violation) = node.violations.pop_front() {
                self.found = true;
                return Some(Err(violation));
            }
            let Some(told) = node.next_told() else {
                self.nodes.pop_front();
                continue;
            };
            self.site = told.path.site();
            match told.run(node) {
                Ok(None) => {}
                Ok(Some((run, warning))) => {
                    self.found = true;
                    self.warnings.extend(warning);
                    return Some(Ok(run));
                }
                Err(violation) => {
                    self.found = true;
                    return Some(Err(violation));
                }
            }
        }
        if std::mem::replace(&mut self.ended, true) || self.found {
            return None;
        }
        let sentence = "it holds no measurement; a day without any must not be given out".to_owned();
        Some(Err(Violation { site: Site::File, rule: Rule::NoMeasurement, sentence }))
    }
}

/// What one source measured, as far as it was not given yet.
#[derive(Debug)]
struct Source {
    nick: String,
    path: Path,
    ip: Option<String>,
    transfers: std::collections::btree_map::IntoIter<String, Transfer>,
    streams: std::collections::btree_map::IntoIter<String, TgenStream>,
    tor: TorPart,
    violations: VecDeque<Violation>,
}

/// What tor told.
#[derive(Debug, Default)]
struct TorPart {
    circuits: BTreeMap<String, Circuit>,
    /// By the port that they came from.
    streams: HashMap<String, Vec<(String, TorStream)>>,
}

impl Source {
    fn new(nick: String, node: document::Node) -> Self {
        let path = Path::default().key("data").key(&nick);
        let mut violations = VecDeque::new();
        if nick.is_empty() || !nick.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            violations.push_back(path.violation(Rule::Nick, "a nickname is letters, digits and hyphens"));
        }
        // What breaks the rule is told, and stands in no run.
        let checked = node.measurement_ip.map(|ip| told::check_name(&path.key("measurement_ip"), &ip).map(|()| ip));
        let ip = checked.and_then(|checked| checked.map_err(|violation| violations.push_back(violation)).ok());
        let mut tor = TorPart::default();
        if let Some(told) = node.tor {
            let streams = told.streams.unwrap_or_default().0;
            if told.circuits.is_none() && !streams.is_empty() {
                let why = "tor has streams, so it must have circuits, if only {}";
                violations.push_back(path.key("tor").violation(Rule::NoCircuits, why));
            }
            for (id, stream) in streams {
                let port = stream.source.as_deref().and_then(|source| source.split(':').nth(1)).map(str::to_owned);
                if let Some(port) = port {
                    tor.streams.entry(port).or_default().push((id, stream));
                }
            }
            tor.circuits = told.circuits.unwrap_or_default().0;
            let paths = tor.circuits.iter().filter_map(|(id, circuit)| Some((id, circuit.path.as_ref()?)));
            let at = path.key("tor").key("circuits");
            violations.extend(paths.filter_map(|(id, hops)| told::check_hops(&at.key(id).key("path"), hops).err()));
        }
        let (transfers, streams) = match node.tgen {
            Some(tgen) => (tgen.transfers.unwrap_or_default(), tgen.streams.unwrap_or_default()),
            None => (Entries::default(), Entries::default()),
        };
        let (transfers, streams) = (transfers.0.into_iter(), streams.0.into_iter());
        Source { nick, path, ip, transfers, streams, tor, violations }
    }

    fn next_told(&mut self) -> Option<Told> {
        let tgen = self.path.key("tgen");
        if let Some((id, transfer)) = self.transfers.next() {
            return Some(Told::by_transfer(tgen.key("transfers").key(&id), transfer));
        }
        let (id, stream) = self.streams.next()?;
        Some(Told::by_stream(tgen.key("streams").key(&id), stream))
    }
}

/// A place in the document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Path(String);

impl Path {
    /// The place of this key in the object that stands here; what is no plain word is quoted.
    fn key(&self, key: &str) -> Path {
        let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        Path(match (plain, self.0.is_empty()) {
            (true, true) => key.to_owned(),
            (true, false) => format!("{}.{key}", self.0),
            (false, _) => format!("{}[{}]", self.0, quoted(key)),
        })
    }

    /// The place of this element in the list that stands here.
    fn index(&self, index: usize) -> Path {
        Path(format!("{}[{index}]", self.0))
    }

    fn site(&self) -> Site {
        if self.0.is_empty() { Site::File } else { Site::Json(self.0.clone()) }
    }

    fn violation(&self, rule: Rule, sentence: impl Into<String>) -> Violation {
        Violation { site: self.site(), rule, sentence: sentence.into() }
    }
}

fn path_of(path: &serde_path_to_error::Path) -> Path {
    use serde_path_to_error::Segment;
    path.iter().fold(Path::default(), |path, segment| match segment {
        Segment::Seq { index } => path.index(*index),
        Segment::Map { key } => path.key(key),
        Segment::Enum { .. } | Segment::Unknown => path,
    })
}

fn broken(path: Path, error: &serde_json::Error) -> Violation {
    use serde_json::error::Category;
    match error.classify() {
        Category::Io if error.io_error_kind() == Some(ErrorKind::FileTooLarge) => {
            let why = format!("unpacked, it is larger than {} MiB", DOCUMENT_LIMIT >> 20);
            Path::default().violation(Rule::TooLarge, why)
        }
        Category::Io => Path::default().violation(Rule::Unreadable, format!("it can't be read: {error}")),
        Category::Syntax | Category::Eof => path.violation(Rule::Json, error.to_string()),
        Category::Data => path.violation(Rule::Type, error.to_string()),
    }
}

/// An input of which only so much is read.
struct Bounded<R> {
    input: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or(ErrorKind::FileTooLarge)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
