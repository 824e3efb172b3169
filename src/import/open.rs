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
    let (bytes, begin) = unpacked(input.bytes)?;
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
                return Err(of_file(Rule::NoSource, "its name does not say who measured; name the source".to_owned()));
            };
            let Some(size) = input.size.or(size) else {
                let why = "its name does not say how much was fetched (50kb.data does); give the size";
                return Err(of_file(Rule::NoSize, why.to_owned()));
            };
            let extra = match input.extra {
                Some(extra) => Some(unpacked(extra)?.0),
                None => None,
            };
            Reader::Data(torperf_data::Reader::new(About { source, size }, bytes, extra))
        }
    };
    Ok(Runs { format, reader })
}

/// A file's bytes, unpacked if they are packed by xz, and the first of them. Unpacking takes bounded memory.
///
/// # Errors
/// If it can't be read.
pub fn unpacked(bytes: Bytes<'_>) -> Result<(Bytes<'_>, Vec<u8>), Violation> {
    let (bytes, begin) = peeked(bytes)?;
    if !begin.starts_with(XZ_MAGIC) {
        return Ok((bytes, begin));
    }
    let decoder = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(unreadable)?;
    peeked(Box::new(BufReader::with_capacity(1 << 16, XzDecoder::new_stream(bytes, decoder))))
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
