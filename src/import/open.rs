//! Which format a file has, and one way to read them all.

use std::fmt;
use std::io::{BufRead, BufReader, Cursor, Read};

use liblzma::bufread::XzDecoder;
use liblzma::stream::{CONCATENATED, Stream};

use super::rule::{Rule, Site, Violation};
use super::torperf_data::{self, About};
use super::{ImportedRun, onionperf, torperf};

/// What xz may take for its dictionary, bytes: `xz -9` needs 65 MiB.
const XZ_MEMORY: u64 = 128 << 20;

/// What begins a file of xz.
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";

/// A form of file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Torperf's key=value, `@type torperf 1.x`.
    Torperf,
    /// Torperf's first form: lines of integers.
    Data,
    /// What goes with [`Format::Data`], and holds no runs.
    ExtraData,
    /// OnionPerf's analysis JSON.
    OnionPerf,
}

impl Format {
    /// The word under which the store notes what was imported.
    pub fn word(self) -> &'static str {
        match self {
            Format::Torperf => "torperf",
            Format::Data => "data",
            Format::ExtraData => "extradata",
            Format::OnionPerf => "onionperf",
        }
    }

    /// The form of a file, by what it begins with or else by its name; `.xz` at its end is passed over.
    pub fn of(name: &str, begin: &[u8]) -> Option<Format> {
        let name = name.strip_suffix(".xz").unwrap_or(name);
        let by_name = [(".data", Format::Data), (".extradata", Format::ExtraData)];
        if let Some((_, format)) = by_name.into_iter().find(|(end, _)| name.ends_with(end)) {
            return Some(format);
        }
        match begin.trim_ascii_start().first() {
            Some(b'@') => Some(Format::Torperf),
            Some(b'{') => Some(Format::OnionPerf),
            _ if name.ends_with(".tpf") => Some(Format::Torperf),
            _ if name.ends_with(".json") => Some(Format::OnionPerf),
            Some(b'0'..=b'9') => Some(Format::Data),
            _ => None,
        }
    }
}

/// Bytes of a file, from wherever they come.
pub type Bytes<'a> = Box<dyn BufRead + Send + 'a>;

/// A file that is to be read.
pub struct Input<'a> {
    /// Its name without a folder; it may say the format, the size and the source.
    pub name: &'a str,
    /// What is in it, compressed by xz or not.
    pub bytes: Bytes<'a>,
    /// Of a `.data` file, the `.extradata` beside it.
    pub extra: Option<Bytes<'a>>,
    /// Of a `.data` file, the source, in place of what the name says.
    pub source: Option<String>,
    /// Of a `.data` file, the size in bytes, in place of what the name says.
    pub size: Option<u64>,
}

/// The runs of a file, whatever its format: one after the other, in the order of the file. Lines are read as they are
/// needed; a JSON document is in memory as a whole.
pub struct Runs<'a> {
    format: Format,
    packed: bool,
    reader: Reader<'a>,
}

enum Reader<'a> {
    Torperf(torperf::Reader<Bytes<'a>>),
    Data(torperf_data::Reader<Bytes<'a>>),
    OnionPerf(onionperf::Document),
}

/// Begins to read a file.
///
/// # Errors
/// If it is of no known format, can't be read, is a `.data` file of which source or size are not known, is an
/// `.extradata` file, or is a JSON document that is broken or too large.
pub fn open(input: Input<'_>) -> Result<Runs<'_>, Violation> {
    let (bytes, packed, begin) = unpacked(input.bytes)?;
    let Some(format) = Format::of(input.name, &begin) else {
        let known = "known are Torperf's key=value (.tpf), .data and OnionPerf's analysis JSON, also packed by xz";
        return Err(of_file(Rule::Format, format!("it is of no known format; {known}")));
    };
    let reader = match format {
        Format::Torperf => Reader::Torperf(torperf::Reader::new(bytes)),
        Format::OnionPerf => Reader::OnionPerf(onionperf::read(bytes)?),
        Format::ExtraData => {
            let remedy = "give the .data file, and what is beside it is read with it";
            return Err(of_file(Rule::Format, format!("it holds no runs; {remedy}")));
        }
        Format::Data => {
            let (source, size) = torperf_data::named(input.name.strip_suffix(".xz").unwrap_or(input.name));
            let Some(source) = input.source.or(source) else {
                return Err(of_file(
                    Rule::NoSource,
                    "its name does not say who measured; name the source (--source NAME)".to_owned(),
                ));
            };
            let Some(size) = input.size.or(size) else {
                let why = "its name does not say how much was fetched (50kb.data does); give it (--size 51200)";
                return Err(of_file(Rule::NoSize, why.to_owned()));
            };
            let extra = match input.extra {
                Some(extra) => Some(unpacked(extra)?.0),
                None => None,
            };
            Reader::Data(torperf_data::Reader::new(About { source, size }, bytes, extra))
        }
    };
    Ok(Runs { format, packed, reader })
}

/// A file's bytes, unpacked if they are packed by xz; whether they were; and the first of them. Unpacking takes bounded
/// memory.
///
/// # Errors
/// If it can't be read.
pub fn unpacked(bytes: Bytes<'_>) -> Result<(Bytes<'_>, bool, Vec<u8>), Violation> {
    let (bytes, begin) = peeked(bytes)?;
    if !begin.starts_with(XZ_MAGIC) {
        return Ok((bytes, false, begin));
    }
    let decoder = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(unreadable)?;
    let (bytes, begin) = peeked(Box::new(BufReader::with_capacity(1 << 16, XzDecoder::new_stream(bytes, decoder))))?;
    Ok((bytes, true, begin))
}

/// The same bytes, and the first of them.
fn peeked(mut bytes: Bytes<'_>) -> Result<(Bytes<'_>, Vec<u8>), Violation> {
    let mut begin = Vec::new();
    bytes.by_ref().take(64).read_to_end(&mut begin).map_err(unreadable)?;
    Ok((Box::new(Cursor::new(begin.clone()).chain(bytes)), begin))
}

fn unreadable(error: impl fmt::Display) -> Violation {
    of_file(Rule::Unreadable, format!("it can't be read: {error}"))
}

fn of_file(rule: Rule, sentence: String) -> Violation {
    Violation { site: Site::File, rule, sentence }
}

impl Runs<'_> {
    /// The file's format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Whether it is packed by xz.
    pub fn is_packed(&self) -> bool {
        self.packed
    }

    /// What OnionPerf's own plots lack in the run that came last, though its readers take it: no violations.
    pub fn take_warnings(&mut self) -> Vec<Violation> {
        match &mut self.reader {
            Reader::OnionPerf(document) => document.take_warnings(),
            Reader::Torperf(_) | Reader::Data(_) => Vec::new(),
        }
    }

    /// Where the run stands that came last.
    pub fn site(&self) -> Site {
        match &self.reader {
            Reader::Torperf(reader) => reader.site(),
            Reader::Data(reader) => reader.site(),
            Reader::OnionPerf(document) => document.site(),
        }
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<ImportedRun, Violation>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.reader {
            Reader::Torperf(reader) => reader.next(),
            Reader::Data(reader) => reader.next(),
            Reader::OnionPerf(document) => document.next(),
        }
    }
}

impl fmt::Debug for Runs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runs").field("format", &self.format).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use liblzma::write::XzEncoder;

    use super::*;

    const RECORDED: &str = include_str!("../../tests/recorded/onionperf-3.1.analysis.json");
    const LINE: &str = "SOURCE=s FILESIZE=1 START=1.5 SOCKET=1.5 CONNECT=0.0 NEGOTIATE=0.0 REQUEST=0.0 RESPONSE=0.0 \
        DATAREQUEST=0.0 DATARESPONSE=0.0 DATACOMPLETE=0.0 WRITEBYTES=0 READBYTES=0\n";

    fn input<'a>(name: &'a str, bytes: &'a [u8]) -> Input<'a> {
        Input { name, bytes: Box::new(bytes), extra: None, source: None, size: None }
    }

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = XzEncoder::new(Vec::new(), 6);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn rule(name: &str, bytes: &[u8]) -> Option<Rule> {
        match open(input(name, bytes)) {
            Ok(mut runs) => runs.find_map(Result::err).map(|violation| violation.rule),
            Err(violation) => Some(violation.rule),
        }
    }

    #[test]
    fn every_format_is_known_by_what_is_in_it_or_by_its_name() {
        let data = "1 0".to_owned() + &" 0".repeat(19) + "\n";
        let torperf = format!("@type torperf 1.1\n{LINE}");
        for (name, bytes, format, count) in [
            ("x", torperf.as_bytes(), Format::Torperf, 1),
            ("x.tpf", torperf.as_bytes(), Format::Torperf, 1),
            ("50kb-s.data", data.as_bytes(), Format::Data, 1),
            ("50kb-s.data", b"", Format::Data, 0),
            ("x", RECORDED.as_bytes(), Format::OnionPerf, 2),
        ] {
            for (packing, bytes) in [(false, bytes.to_vec()), (true, packed(bytes))] {
                let runs = open(input(name, &bytes)).unwrap();
                assert_eq!((runs.format(), runs.is_packed()), (format, packing), "{name}");
                let read: Result<Vec<_>, _> = runs.collect();
                assert_eq!(read.map(|runs| runs.len()), Ok(count), "{name}");
            }
        }
    }

    #[test]
    fn what_can_not_be_read_is_said() {
        let line = LINE.as_bytes();
        let whole = packed(RECORDED.as_bytes());
        for (name, bytes, expected) in [
            ("x", &b"hello\n"[..], Rule::Format),
            ("x", b"", Rule::Format),
            ("50kb.extradata", b"", Rule::Format),
            ("50kb.data", b"", Rule::NoSource),
            ("siv.data", b"", Rule::NoSize),
            ("x.tpf", line, Rule::NoAnnotation),
            ("x.tpf", b"", Rule::NoAnnotation),
            ("x.json", b"", Rule::Json),
            ("x.json.xz", &whole[..whole.len() / 2], Rule::Unreadable),
            ("x.json.xz", &[&whole[..200], b"spoilt", &whole[206..]].concat(), Rule::Unreadable),
        ] {
            assert_eq!(rule(name, bytes), Some(expected), "{name}");
        }
    }

    /// What a few bytes unpack to is taken piece by piece, and a line that does not end is refused.
    #[test]
    fn a_bomb_is_refused() {
        let mut encoder = XzEncoder::new(Vec::new(), 0);
        let piece = vec![b' '; 1 << 20];
        encoder.write_all(b"@type torperf 1.1\n").unwrap();
        (0..8).for_each(|_| encoder.write_all(&piece).unwrap());
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < 20_000);
        assert_eq!(rule("x.tpf.xz", &bomb), Some(Rule::LongLine));
        assert_eq!(rule("x.tpf.xz", &[&b"\xfd7zXZ\0"[..], &[0; 40]].concat()), Some(Rule::Unreadable));
    }

    #[test]
    fn extradata_beside_data_is_read_with_it() {
        let data = "1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 2 0 7 60000 0\n";
        let extra: Bytes<'_> = Box::new(&b"CIRC_ID=4 USED_AT=2.1\n"[..]);
        let source = Some("given".to_owned());
        let runs = open(Input { extra: Some(extra), source, ..input("50kb-s.data", data.as_bytes()) }).unwrap();
        let run = runs.map(Result::unwrap).next().unwrap();
        assert_eq!((&*run.source, run.size, run.extra[0].1.as_str()), ("given", 51_200, "4"));
    }
}
