//! What is measured of a run, each as one number: by name, unit and formula.

use serde::Serialize;

use super::{End, Sample};
use crate::measurement::{Kind, PARTIALS};

/// A quantity. docs/statistics.md lists them for users.
///
/// A run has no value where a step that the formula needs was not reached. Those whose names Tor Metrics or OnionPerf
/// coined exist for downloads alone, and for whichever run reached the steps, as they have it; `time_to_last_byte`
/// and `mean_throughput` exist for complete runs alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// From START until the first byte of payload had come (of an upload, had gone).
    TimeToFirstByte,
    /// From START until DATACOMPLETE, of complete runs.
    TimeToLastByte,
    /// Tor Metrics' time to download 50 KiB: DATACOMPLETE − START where that is the size, PARTIAL51200 − START where
    /// it is larger.
    #[serde(rename = "download_51200")]
    Download51200,
    /// Likewise 1 MiB, with PARTIAL1048576.
    #[serde(rename = "download_1048576")]
    Download1048576,
    /// Tor Metrics' time to download 5 MiB: DATACOMPLETE − START where that is the size.
    #[serde(rename = "download_5242880")]
    Download5242880,
    /// Tor Metrics' circuit round-trip latency: DATARESPONSE − DATAREQUEST, both after START's millisecond.
    Latency,
    /// Tor Metrics' throughput, over the second half MiB: 4194304 / (DATAPERC100 − DATAPERC50) of 1 MiB, 4194304 /
    /// (DATAPERC20 − DATAPERC10) of 5 MiB, in whole milliseconds, cut to whole kbit/s.
    ThroughputTorMetrics,
    /// OnionPerf's throughput, over the last MiB of 5: 8.388608 Mbit / (DATAPERC100 − DATAPERC80).
    ThroughputOnionperf,
    /// All of the payload by the time to the last byte, of complete runs.
    MeanThroughput,
    /// Creating the socket: SOCKET − START.
    Socket,
    /// Connecting to the proxy: CONNECT − SOCKET.
    Connect,
    /// The choice of a SOCKS method: NEGOTIATE − CONNECT.
    Negotiate,
    /// Sending the SOCKS request: REQUEST − NEGOTIATE.
    Request,
    /// Waiting for the SOCKS reply: RESPONSE − REQUEST.
    Response,
    /// Writing the HTTP request: DATAREQUEST − RESPONSE.
    DataRequest,
    /// Waiting for the HTTP response: DATARESPONSE − DATAREQUEST.
    DataResponse,
    /// The rest of the transfer: DATACOMPLETE − DATARESPONSE.
    Transfer,
    /// Tor Metrics' circuit build time of the first hop: the first of BUILDTIMES.
    #[serde(rename = "build_time_1")]
    BuildTime1,
    /// Of the second hop: the second of BUILDTIMES less the first.
    #[serde(rename = "build_time_2")]
    BuildTime2,
    /// Of the third hop.
    #[serde(rename = "build_time_3")]
    BuildTime3,
}

/// What a quantity is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Milliseconds.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Kilobits (1000) a second.
    #[serde(rename = "kbit/s")]
    KilobitsPerSecond,
    /// Megabits (1,000,000) a second.
    #[serde(rename = "Mbit/s")]
    MegabitsPerSecond,
}

impl Unit {
    /// The unit as it is written: `ms`, `kbit/s`, `Mbit/s`.
    pub fn as_str(self) -> &'static str {
        match self {
            Unit::Milliseconds => "ms",
            Unit::KilobitsPerSecond => "kbit/s",
            Unit::MegabitsPerSecond => "Mbit/s",
        }
    }
}

impl Quantity {
    /// Every quantity, with the word that the API uses for it.
    pub const ALL: [(Quantity, &'static str); 20] = [
        (Quantity::TimeToFirstByte, "time_to_first_byte"),
        (Quantity::TimeToLastByte, "time_to_last_byte"),
        (Quantity::Download51200, "download_51200"),
        (Quantity::Download1048576, "download_1048576"),
        (Quantity::Download5242880, "download_5242880"),
        (Quantity::Latency, "latency"),
        (Quantity::ThroughputTorMetrics, "throughput_tor_metrics"),
        (Quantity::ThroughputOnionperf, "throughput_onionperf"),
        (Quantity::MeanThroughput, "mean_throughput"),
        (Quantity::Socket, "socket"),
        (Quantity::Connect, "connect"),
        (Quantity::Negotiate, "negotiate"),
        (Quantity::Request, "request"),
        (Quantity::Response, "response"),
        (Quantity::DataRequest, "data_request"),
        (Quantity::DataResponse, "data_response"),
        (Quantity::Transfer, "transfer"),
        (Quantity::BuildTime1, "build_time_1"),
        (Quantity::BuildTime2, "build_time_2"),
        (Quantity::BuildTime3, "build_time_3"),
    ];

    /// The quantity's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The quantity of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(q, _)| *q)
    }

    /// What its values are measured in.
    pub fn unit(self) -> Unit {
        match self {
            Quantity::ThroughputTorMetrics => Unit::KilobitsPerSecond,
            Quantity::ThroughputOnionperf | Quantity::MeanThroughput => Unit::MegabitsPerSecond,
            _ => Unit::Milliseconds,
        }
    }

    /// Whether a sample needs its circuit for it; otherwise its times are enough.
    pub fn needs_circuit(self) -> bool {
        matches!(self, Quantity::BuildTime1 | Quantity::BuildTime2 | Quantity::BuildTime3)
    }

    /// Its value in [`Quantity::unit`], if the sample has one.
    pub fn value(self, sample: &Sample) -> Option<f64> {
        match self {
            Quantity::ThroughputOnionperf => last_mebibyte(sample).and_then(|micros| rate(1_048_576, micros)),
            Quantity::MeanThroughput => whole_time(sample).and_then(|micros| rate(sample.size, micros)),
            _ => self.whole(sample).map(|whole| whole as f64 * self.scale()),
        }
    }

    /// Its value as the whole number that a histogram counts, times [`Quantity::scale`] in [`Quantity::unit`]:
    /// Tor Metrics' in milliseconds and kbit/s as its formulas give them, other times in µs, other throughput in
    /// bit/s (rounded).
    pub fn whole(self, sample: &Sample) -> Option<u64> {
        let steps = &sample.steps;
        let after = |end: Option<u64>, start: Option<u64>| end?.checked_sub(start?);
        match self {
            Quantity::TimeToFirstByte => steps.deciles[0],
            Quantity::TimeToLastByte => whole_time(sample),
            Quantity::Download51200 => download(sample, 51_200),
            Quantity::Download1048576 => download(sample, 1_048_576),
            Quantity::Download5242880 => download(sample, 5_242_880),
            Quantity::Latency => latency(sample),
            Quantity::ThroughputTorMetrics => throughput_tor_metrics(sample),
            Quantity::ThroughputOnionperf | Quantity::MeanThroughput => {
                self.value(sample).map(|megabits| (megabits * 1e6).round() as u64)
            }
            Quantity::Socket => steps.socket,
            Quantity::Connect => after(steps.connect, steps.socket),
            Quantity::Negotiate => after(steps.negotiate, steps.connect),
            Quantity::Request => after(steps.request, steps.negotiate),
            Quantity::Response => after(steps.response, steps.request),
            Quantity::DataRequest => after(steps.data_request, steps.response),
            Quantity::DataResponse => after(steps.data_response, steps.data_request),
            Quantity::Transfer => after(steps.data_complete, steps.data_response),
            Quantity::BuildTime1 => build_time(sample, 1),
            Quantity::BuildTime2 => build_time(sample, 2),
            Quantity::BuildTime3 => build_time(sample, 3),
        }
    }

    /// What a whole number of [`Quantity::whole`] is times this, in [`Quantity::unit`].
    pub fn scale(self) -> f64 {
        match self {
            Quantity::Download51200
            | Quantity::Download1048576
            | Quantity::Download5242880
            | Quantity::Latency
            | Quantity::ThroughputTorMetrics
            | Quantity::BuildTime1
            | Quantity::BuildTime2
            | Quantity::BuildTime3 => 1.0,
            Quantity::ThroughputOnionperf | Quantity::MeanThroughput => 1e-6,
            _ => 1e-3,
        }
    }
}

/// A step's time as Tor Metrics has it: milliseconds after START, both moments cut to the millisecond first.
pub(super) fn millis(sample: &Sample, at: Option<u64>) -> Option<u64> {
    let start = sample.start.0;
    let at = start.saturating_add(i64::try_from(at?).unwrap_or(i64::MAX));
    u64::try_from(at.div_euclid(1000) - start.div_euclid(1000)).ok()
}

/// Tor Metrics' time to download so many bytes.
fn download(sample: &Sample, bytes: u64) -> Option<u64> {
    let at = match sample.kind {
        Kind::Upload => None,
        Kind::Download if sample.size == bytes => sample.steps.data_complete,
        // Only 50 KiB and 1 MiB are taken out of larger files.
        Kind::Download if sample.size > bytes && bytes <= 1_048_576 => partial(sample, bytes),
        Kind::Download => None,
    };
    millis(sample, at)
}

fn partial(sample: &Sample, bytes: u64) -> Option<u64> {
    PARTIALS.iter().zip(sample.steps.partials).find(|(size, _)| **size == bytes)?.1
}

fn latency(sample: &Sample) -> Option<u64> {
    let download = sample.kind == Kind::Download;
    let later = |at| millis(sample, at).filter(|at| *at > 0 && download);
    later(sample.steps.data_response)?.checked_sub(later(sample.steps.data_request)?)
}

fn throughput_tor_metrics(sample: &Sample) -> Option<u64> {
    let (from, to) = match (sample.kind, sample.size) {
        (Kind::Download, 1_048_576) => (5, 10),
        (Kind::Download, 5_242_880) => (1, 2),
        _ => return None,
    };
    let at = |tenth: usize| millis(sample, sample.steps.deciles[tenth]);
    4_194_304u64.checked_div(at(to)?.checked_sub(at(from)?)?)
}

/// The time to the last byte of a complete run, µs.
fn whole_time(sample: &Sample) -> Option<u64> {
    sample.steps.data_complete.filter(|_| sample.end == End::Complete)
}

/// How long the last of 5 MiB took, µs.
fn last_mebibyte(sample: &Sample) -> Option<u64> {
    let deciles = &sample.steps.deciles;
    let taken = deciles[10]?.checked_sub(deciles[8]?)?;
    ((sample.kind, sample.size) == (Kind::Download, 5_242_880)).then_some(taken)
}

/// So many bytes in so many µs, as Mbit/s (a bit in a µs is one); `None` in no time.
fn rate(bytes: u64, micros: u64) -> Option<f64> {
    (micros > 0).then(|| bytes as f64 * 8.0 / micros as f64)
}

/// Tor Metrics' circuit build time: BUILDTIMES are cut to milliseconds, then subtracted.
fn build_time(sample: &Sample, position: usize) -> Option<u64> {
    let times = &sample.circuit.as_ref()?.build_times;
    let at = |index: usize| times.get(index).map(|micros| micros / 1000);
    match position.checked_sub(2) {
        None => at(0),
        Some(before) => at(before + 1)?.checked_sub(at(before)?),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::UnixMicros;
    use crate::measurement::Phase;
    use crate::test_support::samples::{example_sample, sample};

    /// Every quantity of the exemplary sample, which began 700 µs after a millisecond's beginning.
    #[test]
    fn every_formula_by_hand() {
        let sample = example_sample();
        for (quantity, expected) in [
            ("time_to_first_byte", Some(700.1)),
            ("time_to_last_byte", Some(1700.1)),
            // 51,200 of 5,242,880 bytes in 1 s: 9765 µs after the first byte, at 709,865 µs; with START's 700 that
            // makes 710,565 µs.
            ("download_51200", Some(710.0)),
            // A fifth of them: 700,100 + 200,000 + 700 = 900,800 µs.
            ("download_1048576", Some(900.0)),
            // 1,700,100 + 700 = 1,700,800 µs.
            ("download_5242880", Some(1700.0)),
            // 700,000 + 700 gives 700 ms, 400,100 + 700 gives 400.
            ("latency", Some(300.0)),
            // From 10 % at 800,100 to 20 % at 900,100: 100 ms; 4,194,304 / 100 = 41,943.04.
            ("throughput_tor_metrics", Some(41_943.0)),
            // 0.2 s for the last fifth: 8.388608 / 0.2.
            ("throughput_onionperf", Some(41.943_04)),
            // 41,943,040 bits in 1,700,100 µs.
            ("mean_throughput", Some(24.670_925)),
            ("socket", Some(0.01)),
            ("connect", Some(0.19)),
            ("negotiate", Some(0.2)),
            ("request", Some(0.1)),
            ("response", Some(399.5)),
            ("data_request", Some(0.1)),
            ("data_response", Some(299.9)),
            ("transfer", Some(1000.1)),
            ("build_time_1", Some(120.0)),
            ("build_time_2", Some(230.0)),
            ("build_time_3", Some(340.0)),
        ] {
            let found = Quantity::parse(quantity).unwrap().value(&sample);
            let close =
                found.zip(expected).is_some_and(|(found, expected): (f64, f64)| (found - expected).abs() < 1e-6);
            assert!(close, "{quantity}: {found:?}");
        }
    }

    #[test]
    fn words_and_values_match() {
        for (quantity, word) in Quantity::ALL {
            assert_eq!((quantity.as_str(), Quantity::parse(word)), (word, Some(quantity)));
            assert_eq!(serde_json::to_value(quantity).unwrap(), word);
            assert_eq!(serde_json::to_value(quantity.unit()).unwrap(), quantity.unit().as_str());
        }
    }

    #[test]
    fn moments_are_cut_to_milliseconds_before_they_are_subtracted() {
        // START at 0.9995 s and DATACOMPLETE 0.6 ms later: in the next millisecond, though less than one passed.
        let mut sample = Sample { start: UnixMicros(999_500), size: 51_200, ..example_sample() };
        sample.steps.data_complete = Some(600);
        assert_eq!(Quantity::Download51200.value(&sample), Some(1.0));
        sample.start = UnixMicros(-500);
        assert_eq!(Quantity::Download51200.value(&sample), Some(1.0));
        sample.steps.data_complete = Some(400);
        assert_eq!(Quantity::Download51200.value(&sample), Some(0.0));
    }

    #[test]
    fn throughput_of_one_mebibyte_is_its_second_half() {
        // 50 % at 1,200,100 µs, 100 % at 1,700,100: 500 ms.
        let sample = Sample { size: 1_048_576, ..example_sample() };
        assert_eq!(Quantity::ThroughputTorMetrics.value(&sample), Some(8388.0));
        assert_eq!(Quantity::ThroughputOnionperf.value(&sample), None);
        let sample = Sample { size: 51_200, ..sample };
        assert_eq!(Quantity::ThroughputTorMetrics.value(&sample), None);
        let mut at_once = example_sample();
        (at_once.steps.deciles[1], at_once.steps.deciles[8]) = (at_once.steps.deciles[2], at_once.steps.deciles[10]);
        assert_eq!(Quantity::ThroughputTorMetrics.value(&at_once), None);
        assert_eq!(Quantity::ThroughputOnionperf.value(&at_once), None);
    }

    #[test]
    fn what_a_run_does_not_have_is_absent() {
        let value = |quantity: Quantity, change: fn(&mut Sample)| {
            let mut sample = example_sample();
            change(&mut sample);
            quantity.value(&sample)
        };
        let timed_out = |sample: &mut Sample| sample.end = End::Timeout(Phase::DataComplete);
        assert_eq!(value(Quantity::TimeToLastByte, timed_out), None);
        assert_eq!(value(Quantity::MeanThroughput, timed_out), None);
        assert_eq!(value(Quantity::TimeToFirstByte, timed_out), Some(700.1));
        assert_eq!(value(Quantity::Download5242880, timed_out), Some(1700.0));
        let upload = |sample: &mut Sample| sample.kind = Kind::Upload;
        for quantity in [
            Quantity::Download51200,
            Quantity::Download5242880,
            Quantity::Latency,
            Quantity::ThroughputTorMetrics,
            Quantity::ThroughputOnionperf,
        ] {
            assert_eq!(value(quantity, upload), None);
        }
        // In an optimistic run the HTTP request goes before the SOCKS reply comes.
        let optimistic = |sample: &mut Sample| sample.steps.data_request = Some(600);
        assert_eq!(value(Quantity::DataRequest, optimistic), None);
        assert_eq!(value(Quantity::DataResponse, optimistic), Some(699.4));
        // In START's own millisecond: Tor Metrics wants both to be later.
        assert_eq!(value(Quantity::Latency, |sample| sample.steps.data_request = Some(299)), None);
        assert_eq!(value(Quantity::Latency, |sample| sample.steps.data_request = Some(300)), Some(699.0));
        assert_eq!(
            value(Quantity::BuildTime3, |sample| sample.circuit.as_mut().unwrap().build_times.truncate(2)),
            None
        );
        assert_eq!(value(Quantity::BuildTime1, |sample| sample.circuit = None), None);
        // 5 MiB is not taken out of larger files.
        assert_eq!(value(Quantity::Download5242880, |sample| sample.size = 10_485_760), None);
        assert_eq!(value(Quantity::Download1048576, |sample| sample.size = 51_200), None);
    }

    proptest! {
        #[test]
        fn whole_numbers_and_values_are_the_same(sample in sample()) {
            for (quantity, word) in Quantity::ALL {
                let (value, whole) = (quantity.value(&sample), quantity.whole(&sample));
                prop_assert_eq!(value.is_some(), whole.is_some(), "{}", word);
                if let (Some(value), Some(whole)) = (value, whole) {
                    prop_assert!((whole as f64 * quantity.scale() - value).abs() <= 1e-6, "{}", word);
                }
            }
        }
    }
}
