//! What OnionPerf's `visualize` shows, as numbers: per server, and where it says so per size.
//!
//! Only downloads are counted. OnionPerf shows seconds; here as elsewhere times are milliseconds. It draws every
//! download into its courses over time; here they are summed up by period.

use std::collections::BTreeMap;

use serde::Serialize;

use super::percentile::{BoxStatistics, Ecdf, Floor, Summary, sorted};
use super::relays::{MOST, RelayReport, Relays};
use super::tor_metrics::Server;
use super::{End, Period, Quantity, Sample};
use crate::clock::UnixMicros;
use crate::measurement::{Kind, Phase};

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// By server.
    pub servers: Vec<ServerReport>,
    /// By server and size.
    pub sizes: Vec<SizeReport>,
    /// By server, size and period.
    pub course: Vec<CourseRow>,
    /// By server, period and error code.
    pub errors: Vec<ErrorRow>,
}

/// What is shown per server.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServerReport {
    /// How the server was reached.
    pub server: Server,
    /// Time to first byte, ms, of all downloads that came so far.
    pub first_byte: Distribution,
    /// Throughput over the last MiB of 5, Mbit/s ([`Quantity::ThroughputOnionperf`]).
    pub throughput: Distribution,
    /// Downloads by error code, of those that were not complete.
    pub errors: BTreeMap<String, u64>,
    /// The relays most seen among the slowest quarter (of each size) and in failed circuits.
    pub relays: RelayReport,
}

/// What is shown per server and size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SizeReport {
    /// How the server was reached.
    pub server: Server,
    /// Bytes of payload.
    pub filesize: u64,
    /// How many downloads, whatever their end, as OnionPerf counts them.
    pub downloads: u64,
    /// How many of these were complete.
    pub complete: u64,
    /// Time to last byte, ms, of complete downloads.
    pub last_byte: Distribution,
    /// The box plot of the same; absent of too few.
    pub last_byte_box: Option<BoxStatistics>,
}

/// A period's downloads of one server and size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CourseRow {
    /// How the server was reached.
    pub server: Server,
    /// Bytes of payload.
    pub filesize: u64,
    /// When the period began.
    pub start: UnixMicros,
    /// Time to first byte, ms.
    pub first_byte: Summary,
    /// Time to last byte, ms.
    pub last_byte: Summary,
}

/// How often an error code occurred in a period.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorRow {
    /// How the server was reached.
    pub server: Server,
    /// When the period began.
    pub start: UnixMicros,
    /// As [`error_code`] has it.
    pub error_code: String,
    /// How many downloads.
    pub downloads: u64,
}

/// A distribution and its summary (mean and median among it).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// Its percentiles and mean.
    pub summary: Summary,
    /// The distribution; without points where there are too few samples.
    pub ecdf: Ecdf,
}

/// Gathers downloads for OnionPerf's statistics.
#[derive(Clone, Debug)]
pub struct OnionPerf {
    period: Period,
    servers: BTreeMap<Server, ByServer>,
    sizes: BTreeMap<(Server, u64), BySize>,
    course: BTreeMap<(Server, u64, UnixMicros), Times>,
    errors: BTreeMap<(Server, UnixMicros, String), u64>,
}

/// Times to the first byte, and to the last.
type Times = (Vec<f64>, Vec<f64>);

#[derive(Clone, Debug, Default)]
struct ByServer {
    first_bytes: Vec<f64>,
    throughputs: Vec<f64>,
    errors: BTreeMap<String, u64>,
    relays: Relays,
}

#[derive(Clone, Debug, Default)]
struct BySize {
    downloads: u64,
    complete: u64,
    last_bytes: Vec<f64>,
}

impl OnionPerf {
    /// With nothing in it yet; courses over time go by this period.
    pub fn new(period: Period) -> Self {
        OnionPerf {
            period,
            servers: BTreeMap::new(),
            sizes: BTreeMap::new(),
            course: BTreeMap::new(),
            errors: BTreeMap::new(),
        }
    }

    /// Takes a sample in, which should have its circuit, for the relays.
    pub fn add(&mut self, sample: &Sample) {
        if sample.kind != Kind::Download {
            return;
        }
        let (server, start) = (Server::from(sample.server), self.period.start_of(sample.start));
        let (first, last) = (Quantity::TimeToFirstByte.value(sample), Quantity::TimeToLastByte.value(sample));

        let by_server = self.servers.entry(server).or_default();
        by_server.first_bytes.extend(first);
        by_server.throughputs.extend(Quantity::ThroughputOnionperf.value(sample));
        by_server.relays.add(sample);
        if let Some(code) = error_code(sample.end) {
            *by_server.errors.entry(code.clone()).or_default() += 1;
            *self.errors.entry((server, start, code)).or_default() += 1;
        }

        let by_size = self.sizes.entry((server, sample.size)).or_default();
        by_size.downloads += 1;
        by_size.complete += u64::from(sample.end == End::Complete);
        by_size.last_bytes.extend(last);

        let (firsts, lasts) = self.course.entry((server, sample.size, start)).or_default();
        firsts.extend(first);
        lasts.extend(last);
    }

    /// The report. Of a distribution at most `points` points are given.
    pub fn finish(self, floor: Floor, points: usize) -> Report {
        let distribution = |sorted: &[f64]| Distribution {
            summary: Summary::of(sorted, floor),
            ecdf: match floor.shows_any(sorted.len() as u64) {
                true => Ecdf::of(sorted).thinned(points),
                false => Ecdf { samples: sorted.len() as u64, ..Ecdf::default() },
            },
        };
        let by_server = |(server, gathered): (Server, ByServer)| ServerReport {
            server,
            first_byte: distribution(&sorted(gathered.first_bytes)),
            throughput: distribution(&sorted(gathered.throughputs)),
            errors: gathered.errors,
            relays: gathered.relays.finish(MOST, floor),
        };
        let by_size = |((server, filesize), gathered): ((Server, u64), BySize)| {
            let last_bytes = sorted(gathered.last_bytes);
            SizeReport {
                server,
                filesize,
                downloads: gathered.downloads,
                complete: gathered.complete,
                last_byte: distribution(&last_bytes),
                last_byte_box: BoxStatistics::of(&last_bytes).filter(|_| floor.shows(0.25, last_bytes.len() as u64)),
            }
        };
        let course = |((server, filesize, start), (firsts, lasts)): ((Server, u64, UnixMicros), Times)| CourseRow {
            server,
            filesize,
            start,
            first_byte: Summary::of(&sorted(firsts), floor),
            last_byte: Summary::of(&sorted(lasts), floor),
        };
        let error = |((server, start, error_code), downloads)| ErrorRow { server, start, error_code, downloads };
        Report {
            servers: self.servers.into_iter().map(by_server).collect(),
            sizes: self.sizes.into_iter().map(by_size).collect(),
            course: self.course.into_iter().map(course).collect(),
            errors: self.errors.into_iter().map(error).collect(),
        }
    }
}

/// The error code of an end, as key=value has it but for the numbers of the SOCKS reply or HTTP status:
/// `TIMEOUT/RESPONSE`, `CONNECT/REFUSED`. `None` of a complete run.
pub fn error_code(end: End) -> Option<String> {
    // Torperf's step names are ours in capitals without the underscore.
    let step = |phase: Phase| phase.as_str().replace('_', "").to_ascii_uppercase();
    match end {
        End::Complete => None,
        End::Timeout(phase) => Some(format!("TIMEOUT/{}", step(phase))),
        End::Failed(phase, cause) => Some(format!("{}/{}", step(phase), cause.as_str().to_ascii_uppercase())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::measurement::{Cause, ServerKind};
    use crate::test_support::samples::{example_sample, sample};

    fn report(samples: &[Sample], floor: Floor) -> Report {
        let mut gathered = OnionPerf::new(Period::Day);
        samples.iter().for_each(|sample| gathered.add(sample));
        gathered.finish(floor, 100)
    }

    #[test]
    fn error_codes_are_those_of_key_value() {
        for (end, code) in [
            (End::Complete, None),
            (End::Timeout(Phase::DataResponse), Some("TIMEOUT/DATARESPONSE")),
            (End::Failed(Phase::Connect, Cause::Refused), Some("CONNECT/REFUSED")),
            (End::Failed(Phase::Response, Cause::SocksReply), Some("RESPONSE/SOCKS_REPLY")),
        ] {
            assert_eq!(error_code(end).as_deref(), code);
        }
    }

    #[test]
    fn a_report_by_hand() {
        // 5 MiB; the last of them takes 200 ms in the example: 8.388608 Mbit / 0.2 s = 41.94304 Mbit/s.
        let after = |first: u64, last: Option<u64>| {
            let mut sample = example_sample();
            sample.steps.deciles[0] = Some(first * 1000);
            sample.steps.data_complete = last.map(|last| last * 1000);
            sample
        };
        let timeout = End::Timeout(Phase::DataComplete);
        let samples = [
            after(100, Some(1000)),
            after(200, Some(2000)),
            after(300, Some(4000)),
            Sample { end: timeout, ..after(400, None) },
            Sample { server: ServerKind::SingleOnion, ..after(500, Some(5000)) },
            Sample { kind: Kind::Upload, ..after(1, Some(1)) },
        ];
        let found = report(&samples, Floor::NONE);
        let [onion, public] = &found.servers[..] else { panic!("{found:?}") };
        assert_eq!((onion.server, onion.first_byte.summary.p50), (Server::Onion, Some(500.0)));
        assert_eq!((public.server, public.first_byte.summary.p50), (Server::Public, Some(250.0)));
        assert_eq!(public.first_byte.ecdf.points, [(100.0, 1), (200.0, 2), (300.0, 3), (400.0, 4)]);
        assert!((public.throughput.summary.p50.unwrap() - 41.943_04).abs() < 1e-9);
        assert_eq!(public.errors, BTreeMap::from([("TIMEOUT/DATACOMPLETE".to_owned(), 1)]));
        assert_eq!((public.relays.runs, public.relays.slow, public.relays.failed), (4, 1, 1));
        let size = &found.sizes[1];
        assert_eq!((size.filesize, size.downloads, size.complete), (5_242_880, 4, 3));
        assert_eq!(size.last_byte.summary.mean.map(f64::round), Some(2333.0));
        // 1000, 2000, 4000: the quartiles lie half-way, at 1500 and 3000, so that all lie within 2250 of them.
        let expected = BoxStatistics { low: 1000.0, q1: 1500.0, md: 2000.0, q3: 3000.0, high: 4000.0 };
        assert_eq!(size.last_byte_box, Some(expected));
        assert_eq!((found.course.len(), found.course[1].last_byte.samples), (2, 3));
        let errors = &found.errors[..];
        assert_eq!((errors.len(), errors[0].downloads, errors[0].server), (1, 1, Server::Public));
        let usual = report(&samples, Floor::USUAL);
        assert_eq!((usual.sizes[1].last_byte_box, usual.sizes[1].last_byte.ecdf.points.len()), (None, 0));
    }

    proptest! {
        #[test]
        fn every_download_is_counted_once(samples in prop::collection::vec(sample(), 0..40)) {
            let downloads: Vec<_> = samples.iter().filter(|sample| sample.kind == Kind::Download).collect();
            let failed = downloads.iter().filter(|sample| sample.end != End::Complete).count() as u64;
            let found = report(&samples, Floor::NONE);
            prop_assert_eq!(found.sizes.iter().map(|size| size.downloads).sum::<u64>(), downloads.len() as u64);
            prop_assert_eq!(found.servers.iter().flat_map(|server| server.errors.values()).sum::<u64>(), failed);
            prop_assert_eq!(found.errors.iter().map(|row| row.downloads).sum::<u64>(), failed);
            for server in &found.servers {
                let values = downloads.iter().filter(|sample| Server::from(sample.server) == server.server);
                let values = values.filter_map(|sample| sample.steps.deciles[0]).count() as u64;
                prop_assert_eq!(server.first_byte.summary.samples, values);
            }
        }
    }
}
