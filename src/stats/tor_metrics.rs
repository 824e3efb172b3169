//! The five statistics of Tor Metrics, by its names, columns and formulas: what metrics-web's SQL made of the
//! `.tpf` files (<https://metrics.torproject.org/reproducible-metrics.html#performance>).
//!
//! Days are UTC's, of START. Times are milliseconds after START, both moments cut to the millisecond. Percentiles
//! interpolate linearly (SQL's PERCENTILE_CONT) and are then cut to whole numbers. Only downloads are counted.
//!
//! Each accumulator takes samples in any order, keeps nothing of them but their values, and gives its rows sorted by
//! their columns. Where there are fewer samples than the [`Floor`] wants, a row stands with its number of samples
//! alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::percentile::{BoxStatistics, Floor, sorted};
use super::period::{date_text, day_of};
use super::quantity::millis;
use super::{Quantity, Sample};
use crate::clock::UnixMicros;
use crate::measurement::{Kind, PARTIALS, ServerKind};

/// How the server was reached, in Tor Metrics' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Server {
    /// As an onion service, single-hop or not.
    Onion,
    /// At its public address.
    Public,
}

impl Server {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Server::Onion => "onion",
            Server::Public => "public",
        }
    }
}

impl From<ServerKind> for Server {
    fn from(kind: ServerKind) -> Self {
        match kind {
            ServerKind::Exit => Server::Public,
            ServerKind::Onion | ServerKind::SingleOnion => Server::Onion,
        }
    }
}

/// From which day on samples are dropped, where `today` holds the moment at which Tor Metrics would compute:
/// yesterday. [`BuildTimes`], [`Latencies`] and [`Throughputs`] can be told so, since Tor Metrics drops today and
/// yesterday of these.
fn dropped_from(today: Option<UnixMicros>) -> i64 {
    today.map_or(i64::MAX, |today| day_of(today) - 1)
}

/// Time to download files over Tor, one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the columns are Tor Metrics'")]
pub struct DownloadRow {
    pub date: String,
    /// Bytes.
    pub filesize: u64,
    pub source: String,
    pub server: Server,
    /// Milliseconds, as the two after it.
    pub q1: Option<i64>,
    pub md: Option<i64>,
    pub q3: Option<i64>,
    /// From how many downloads; a column of our own.
    pub samples: u64,
}

/// Time to download files over Tor: DATACOMPLETE − START by file size, also PARTIAL51200 − START of larger files as
/// 50 KiB, and PARTIAL1048576 − START of larger files as 1 MiB.
#[derive(Clone, Debug, Default)]
pub struct Downloads {
    groups: Groups<(i64, u64, Arc<str>, Server)>,
}

impl Downloads {
    /// Takes a sample in.
    pub fn add(&mut self, sample: &Sample) {
        if sample.kind != Kind::Download {
            return;
        }
        let mut add = |size: u64, at: Option<u64>| {
            if let Some(millis) = millis(sample, at) {
                self.groups.add((day_of(sample.start), size, sample.source.clone(), sample.server.into()), millis);
            }
        };
        add(sample.size, sample.steps.data_complete);
        for (size, at) in PARTIALS.iter().zip(sample.steps.partials) {
            if matches!(size, 51_200 | 1_048_576) && sample.size > *size {
                add(*size, at);
            }
        }
    }

    /// The rows, by date, filesize, source and server.
    pub fn finish(self, floor: Floor) -> Vec<DownloadRow> {
        let row = |((day, filesize, source, server), values): ((i64, u64, Arc<str>, Server), Vec<f64>)| {
            let Cut { q1, md, q3, .. } = Cut::of(&values, floor);
            DownloadRow {
                date: date_text(day),
                filesize,
                source: source.to_string(),
                server,
                q1,
                md,
                q3,
                samples: values.len() as u64,
            }
        };
        self.groups.sorted().map(row).collect()
    }
}

/// Timeouts and failures of downloading files over Tor, one row. The shares are those of the requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the columns are Tor Metrics'")]
pub struct FailureRow {
    pub date: String,
    pub source: String,
    pub server: Server,
    /// DIDTIMEOUT is 1, or DATACOMPLETE lies less than a millisecond after START.
    pub timeouts: u64,
    /// Not timed out, DATACOMPLETE was reached, and READBYTES is less than FILESIZE.
    pub failures: u64,
    /// All runs.
    pub requests: u64,
    /// DIDTIMEOUT is 0, and DATACOMPLETE was not reached: neither a timeout nor a failure for Tor Metrics' code,
    /// though its text calls it a timeout. A column of our own.
    pub unfinished: u64,
}

/// What a run is for Tor Metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It counts as a timeout.
    Timeout,
    /// It counts as a failure.
    Failure,
    /// It counts as neither, and yet has no end.
    Unfinished,
    /// It counts as neither.
    Success,
}

/// What a run is for Tor Metrics.
pub fn verdict(sample: &Sample) -> Verdict {
    match (sample.did_time_out, millis(sample, sample.steps.data_complete)) {
        (true, _) | (_, Some(0)) => Verdict::Timeout,
        (_, None) => Verdict::Unfinished,
        (_, Some(_)) if sample.read < sample.size => Verdict::Failure,
        (_, Some(_)) => Verdict::Success,
    }
}

/// Timeouts and failures of downloading files over Tor.
#[derive(Clone, Debug, Default)]
pub struct Failures {
    groups: BTreeMap<(i64, Arc<str>, Server), [u64; 4]>,
}

impl Failures {
    /// Takes a sample in.
    pub fn add(&mut self, sample: &Sample) {
        if sample.kind != Kind::Download {
            return;
        }
        let key = (day_of(sample.start), sample.source.clone(), sample.server.into());
        let counts = self.groups.entry(key).or_default();
        counts[verdict(sample) as usize] += 1;
    }

    /// The rows, by date, source and server.
    pub fn finish(self) -> Vec<FailureRow> {
        let row = |((day, source, server), counts): ((i64, Arc<str>, Server), [u64; 4])| {
            let [timeouts, failures, unfinished, successes] = counts;
            let requests = timeouts + failures + unfinished + successes;
            FailureRow {
                date: date_text(day),
                source: source.to_string(),
                server,
                timeouts,
                failures,
                requests,
                unfinished,
            }
        };
        self.groups.into_iter().map(row).collect()
    }
}

/// Circuit build times, one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the columns are Tor Metrics'")]
pub struct BuildTimeRow {
    pub date: String,
    /// Empty: over all sources.
    pub source: String,
    /// Of the hop, from 1 to 3.
    pub position: u8,
    /// Milliseconds, as the two after it.
    pub q1: Option<i64>,
    pub md: Option<i64>,
    pub q3: Option<i64>,
    /// From how many circuits; a column of our own.
    pub samples: u64,
}

/// Circuit build times: the first of BUILDTIMES, then the differences, by source and over all sources.
///
/// A difference below zero, which no clock that goes forward gives, is left out.
#[derive(Clone, Debug)]
pub struct BuildTimes {
    groups: Groups<(i64, Arc<str>, u8)>,
    dropped_from: i64,
    all: Arc<str>,
}

impl BuildTimes {
    /// With nothing in it yet. Given `today`, that day and the day before it are dropped.
    pub fn new(today: Option<UnixMicros>) -> Self {
        BuildTimes { groups: Groups::default(), dropped_from: dropped_from(today), all: Arc::from("") }
    }

    /// Takes a sample in, which must have its circuit.
    pub fn add(&mut self, sample: &Sample) {
        let day = day_of(sample.start);
        if sample.kind != Kind::Download || day >= self.dropped_from {
            return;
        }
        let quantities = [Quantity::BuildTime1, Quantity::BuildTime2, Quantity::BuildTime3];
        for (position, quantity) in (1..).zip(quantities) {
            if let Some(millis) = quantity.whole(sample) {
                self.groups.add((day, self.all.clone(), position), millis);
                self.groups.add((day, sample.source.clone(), position), millis);
            }
        }
    }

    /// The rows, by date, source and position.
    pub fn finish(self, floor: Floor) -> Vec<BuildTimeRow> {
        let row = |((day, source, position), values): ((i64, Arc<str>, u8), Vec<f64>)| {
            let Cut { q1, md, q3, .. } = Cut::of(&values, floor);
            BuildTimeRow {
                date: date_text(day),
                source: source.to_string(),
                position,
                q1,
                md,
                q3,
                samples: values.len() as u64,
            }
        };
        self.groups.sorted().map(row).collect()
    }
}

/// Circuit round-trip latencies, or throughput, one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the columns are Tor Metrics'")]
pub struct BoxRow {
    pub date: String,
    pub source: String,
    pub server: Server,
    /// Milliseconds of latency, kbit/s of throughput, as the four after it. The smallest value within 1.5
    /// interquartile ranges of the lower quartile (before that is cut).
    pub low: Option<i64>,
    pub q1: Option<i64>,
    pub md: Option<i64>,
    pub q3: Option<i64>,
    /// The largest within as much of the upper quartile.
    pub high: Option<i64>,
    /// From how many downloads; a column of our own.
    pub samples: u64,
}

/// Circuit round-trip latencies: DATARESPONSE − DATAREQUEST ([`Quantity::Latency`]).
#[derive(Clone, Debug)]
pub struct Latencies(Boxes);

/// Throughput over the second half MiB ([`Quantity::ThroughputTorMetrics`]).
#[derive(Clone, Debug)]
pub struct Throughputs(Boxes);

impl Latencies {
    /// With nothing in it yet. Given `today`, that day and the day before it are dropped.
    pub fn new(today: Option<UnixMicros>) -> Self {
        Latencies(Boxes { groups: Groups::default(), dropped_from: dropped_from(today) })
    }

    /// Takes a sample in.
    pub fn add(&mut self, sample: &Sample) {
        self.0.add(sample, Quantity::Latency);
    }

    /// The rows, by date, source and server.
    pub fn finish(self, floor: Floor) -> Vec<BoxRow> {
        self.0.finish(floor)
    }
}

impl Throughputs {
    /// With nothing in it yet. Given `today`, that day and the day before it are dropped.
    pub fn new(today: Option<UnixMicros>) -> Self {
        Throughputs(Boxes { groups: Groups::default(), dropped_from: dropped_from(today) })
    }

    /// Takes a sample in.
    pub fn add(&mut self, sample: &Sample) {
        self.0.add(sample, Quantity::ThroughputTorMetrics);
    }

    /// The rows, by date, source and server.
    pub fn finish(self, floor: Floor) -> Vec<BoxRow> {
        self.0.finish(floor)
    }
}

/// One quantity by date, source and server.
#[derive(Clone, Debug)]
struct Boxes {
    groups: Groups<(i64, Arc<str>, Server)>,
    dropped_from: i64,
}

impl Boxes {
    fn add(&mut self, sample: &Sample, quantity: Quantity) {
        let day = day_of(sample.start);
        if day >= self.dropped_from {
            return;
        }
        if let Some(value) = quantity.whole(sample) {
            self.groups.add((day, sample.source.clone(), sample.server.into()), value);
        }
    }

    fn finish(self, floor: Floor) -> Vec<BoxRow> {
        let row = |((day, source, server), values): ((i64, Arc<str>, Server), Vec<f64>)| {
            let Cut { low, q1, md, q3, high } = Cut::of(&values, floor);
            BoxRow {
                date: date_text(day),
                source: source.to_string(),
                server,
                low,
                q1,
                md,
                q3,
                high,
                samples: values.len() as u64,
            }
        };
        self.groups.sorted().map(row).collect()
    }
}

/// Box statistics cut to whole numbers.
#[derive(Default)]
struct Cut {
    low: Option<i64>,
    q1: Option<i64>,
    md: Option<i64>,
    q3: Option<i64>,
    high: Option<i64>,
}

impl Cut {
    fn of(sorted: &[f64], floor: Floor) -> Self {
        let shown = |q: f64, value: f64| floor.shows(q, sorted.len() as u64).then_some(value.trunc() as i64);
        BoxStatistics::of(sorted).map_or_else(Cut::default, |found| Cut {
            low: shown(0.25, found.low),
            q1: shown(0.25, found.q1),
            md: shown(0.5, found.md),
            q3: shown(0.75, found.q3),
            high: shown(0.75, found.high),
        })
    }
}

/// Whole numbers by group, four bytes each: 49 days in milliseconds, or 4 Tbit/s.
#[derive(Clone, Debug)]
struct Groups<K>(BTreeMap<K, Vec<u32>>);

impl<K> Default for Groups<K> {
    fn default() -> Self {
        Groups(BTreeMap::new())
    }
}

impl<K: Ord> Groups<K> {
    fn add(&mut self, key: K, value: u64) {
        self.0.entry(key).or_default().push(u32::try_from(value).unwrap_or(u32::MAX));
    }

    fn sorted(self) -> impl Iterator<Item = (K, Vec<f64>)> {
        let values = |values: Vec<u32>| sorted(values.into_iter().map(f64::from).collect());
        self.0.into_iter().map(move |(key, numbers)| (key, values(numbers)))
    }
}

#[cfg(test)]
mod tests;
