//! The files of one day, made row by row: what there is of them is compressed, however long the day.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
use liblzma::write::XzEncoder;
use sha2::{Digest, Sha256};

use crate::clock::UnixMicros;
use crate::export::collector::{onionperf_name, torperf_name};
use crate::export::onionperf::{Analysis, CIRCUITS, TAIL};
use crate::export::torperf;
use crate::measurement::ResultRow;
use crate::store::{Listed, PublishedDay, PublishedFile};

/// How hard xz tries: its preset, and the bytes that it looks back over. Beyond that files get hardly smaller, but the
/// work longer and the encoder larger.
const PRESET: u32 = 3;
const DICTIONARY: u32 = 1 << 20;

/// Bytes of text that [`DayFiles::finish_some`] compresses at a time.
const STEP: u64 = 1 << 20;

/// The files of a day while its rows are added, by START: one of key=value for each size, and one of OnionPerf's
/// analysis with all.
pub struct DayFiles {
    source: String,
    day: i64,
    results: u64,
    torperf: BTreeMap<u64, Torperf>,
    analysis: Analysis,
    json: XzEncoder<Vec<u8>>,
    circuits: DeflateEncoder<Vec<u8>>,
    tor_streams: DeflateEncoder<Vec<u8>>,
    /// What follows the downloads in the analysis, once the last one is there.
    rest: Option<Box<dyn Read + Send>>,
}

/// A file of key=value.
struct Torperf {
    deflated: DeflateEncoder<Vec<u8>>,
    digest: Sha256,
    size: u64,
}

/// A day's files, whole.
pub struct FinishedDay {
    /// How many results are in them.
    pub results: u64,
    /// The files.
    pub published: PublishedDay,
}

impl DayFiles {
    /// Without a row yet.
    ///
    /// # Errors
    /// If there is no memory for the compressor.
    pub fn new(source: &str, measurement_ip: &str, day: i64) -> io::Result<Self> {
        let analysis = Analysis::new(source, measurement_ip);
        let mut options = LzmaOptions::new_preset(PRESET)?;
        options.dict_size(DICTIONARY);
        let mut filters = Filters::new();
        filters.lzma2(&options);
        let mut json = XzEncoder::new_stream(Vec::new(), Stream::new_stream_encoder(&filters, Check::Crc64)?);
        json.write_all(analysis.head().as_bytes())?;
        Ok(DayFiles {
            source: source.to_owned(),
            day,
            results: 0,
            torperf: BTreeMap::new(),
            analysis,
            json,
            circuits: deflate(),
            tor_streams: deflate(),
            rest: None,
        })
    }

    /// Adds downloads, after those that were added before.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn add(&mut self, rows: &[ResultRow]) -> io::Result<()> {
        for row in rows {
            let entries = self.analysis.add(row);
            self.json.write_all(entries.stream.as_bytes())?;
            self.circuits.write_all(entries.circuits.as_bytes())?;
            self.tor_streams.write_all(entries.tor_stream.as_bytes())?;
            let size = row.measurement.size;
            let file = self.torperf.entry(size).or_insert_with(Torperf::new);
            if file.size == 0 {
                file.write(torperf::HEADER)?;
            }
            file.write(&torperf::line_for_ever(row))?;
            self.results += 1;
        }
        Ok(())
    }

    /// Goes on with what comes after the last row; whether the files are whole. It takes some milliseconds, and is to be
    /// called until they are.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn finish_some(&mut self) -> io::Result<bool> {
        let rest = match &mut self.rest {
            Some(rest) => rest,
            none => {
                let inflated = |deflated: &mut DeflateEncoder<Vec<u8>>| {
                    std::mem::replace(deflated, deflate()).finish().map(|bytes| DeflateDecoder::new(Cursor::new(bytes)))
                };
                let (circuits, tor_streams) = (inflated(&mut self.circuits)?, inflated(&mut self.tor_streams)?);
                let guards = Cursor::new(self.analysis.guards().into_bytes());
                let tor = CIRCUITS.as_bytes().chain(circuits).chain(guards).chain(tor_streams);
                none.insert(Box::new(tor.chain(TAIL.as_bytes())))
            }
        };
        let copied = io::copy(&mut rest.take(STEP), &mut self.json)?;
        if copied == STEP {
            return Ok(false);
        }
        self.json.try_finish()?;
        Ok(true)
    }

    /// The files, made at this moment; to be called when they are whole.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn into_finished(self, now: UnixMicros) -> io::Result<FinishedDay> {
        let mut files = Vec::new();
        if self.results > 0 {
            for (size, file) in self.torperf {
                let listed = Listed {
                    name: torperf_name(&self.source, size, self.day),
                    modified: now,
                    size: file.size,
                    sha256: hex(file.digest),
                };
                files.push(PublishedFile { listed, deflated: true, body: file.deflated.finish()? });
            }
            let body = self.json.finish()?;
            let listed = Listed {
                name: onionperf_name(self.day),
                modified: now,
                size: body.len() as u64,
                sha256: hex(Sha256::new_with_prefix(&body)),
            };
            files.push(PublishedFile { listed, deflated: false, body });
        }
        Ok(FinishedDay { results: self.results, published: PublishedDay { day: self.day, settled: now, files } })
    }
}

impl Torperf {
    fn new() -> Self {
        Torperf { deflated: deflate(), digest: Sha256::new(), size: 0 }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.digest.update(text);
        self.size += text.len() as u64;
        self.deflated.write_all(text.as_bytes())
    }
}

/// The bytes of a stored file, as they are given out.
pub fn bytes_of(file: PublishedFile) -> Box<dyn Read + Send> {
    let stored = Cursor::new(file.body);
    if file.deflated { Box::new(DeflateDecoder::new(stored)) } else { Box::new(stored) }
}

fn deflate() -> DeflateEncoder<Vec<u8>> {
    DeflateEncoder::new(Vec::new(), Compression::default())
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
