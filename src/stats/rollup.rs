//! What is kept of the results of one series and day (or of any other lot): counts, sums, and a histogram of each
//! quantity. It can be added up, and what was added can be taken out again.

use std::collections::BTreeMap;

use super::tor_metrics::{Verdict, verdict};
use super::varint::{Reader, Trouble, put};
use super::{End, Floor, Histogram, Quantity, Sample, Summary};
use crate::measurement::{Cause, Kind, Phase};

/// What the bytes begin with: the form that follows.
const FORM: u64 = 1;

/// The quantities whose histograms are kept, in the order of their numbers in the bytes: new ones come last, and
/// none ever goes.
const KEPT: [Quantity; 20] = [
    Quantity::TimeToFirstByte,
    Quantity::TimeToLastByte,
    Quantity::Download51200,
    Quantity::Download1048576,
    Quantity::Download5242880,
    Quantity::Latency,
    Quantity::ThroughputTorMetrics,
    Quantity::ThroughputOnionperf,
    Quantity::MeanThroughput,
    Quantity::Socket,
    Quantity::Connect,
    Quantity::Negotiate,
    Quantity::Request,
    Quantity::Response,
    Quantity::DataRequest,
    Quantity::DataResponse,
    Quantity::Transfer,
    Quantity::BuildTime1,
    Quantity::BuildTime2,
    Quantity::BuildTime3,
];

/// Counts, sums and histograms of many samples.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rollup {
    /// By how they ended, as (outcome, phase, cause) in numbers; no count is 0.
    ends: BTreeMap<EndKey, u64>,
    /// As Tor Metrics counts them: [`Verdict`] in its order. Of downloads alone.
    verdicts: [u64; 4],
    /// Runs over two linked circuits, and runs over one; of the others it is not known.
    conflux: [u64; 2],
    /// Bytes of payload asked for, of complete runs; HTTP bytes read; written.
    bytes: [u128; 3],
    /// By the quantity's number in [`KEPT`]; none is empty.
    histograms: BTreeMap<u16, Histogram>,
}

/// An [`End`] in numbers, by their places in `Phase::ALL` and `Cause::ALL`: (0, 0, 0) is complete, (1, phase, 0) a
/// timeout, (2, phase, cause) a failure.
pub(super) type EndKey = (u8, u8, u8);

impl Rollup {
    /// Puts a sample in.
    pub fn add(&mut self, sample: &Sample) {
        let count = self.ends.entry(key_of(sample.end)).or_default();
        *count = count.saturating_add(1);
        for count in self.small_counts(sample) {
            *count = count.saturating_add(1);
        }
        for (sum, bytes) in self.bytes.iter_mut().zip(bytes_of(sample)) {
            *sum = sum.saturating_add(bytes);
        }
        for (number, quantity) in (0..).zip(KEPT) {
            if let Some(value) = quantity.whole(sample) {
                self.histograms.entry(number).or_default().add(value);
            }
        }
    }

    /// Takes a sample out that was put in before, the exact inverse of [`Rollup::add`]. Returns false where something
    /// of it was not there; what was there is taken out none the less, and no count falls below zero.
    pub fn remove(&mut self, sample: &Sample) -> bool {
        let mut all_there = take_one(&mut self.ends, key_of(sample.end));
        for count in self.small_counts(sample) {
            all_there &= *count > 0;
            *count = count.saturating_sub(1);
        }
        for (sum, bytes) in self.bytes.iter_mut().zip(bytes_of(sample)) {
            all_there &= *sum >= bytes;
            *sum = sum.saturating_sub(bytes);
        }
        for (number, quantity) in (0..).zip(KEPT) {
            let Some(value) = quantity.whole(sample) else { continue };
            let histogram = self.histograms.entry(number).or_default();
            all_there &= histogram.remove(value);
            if histogram.is_empty() {
                self.histograms.remove(&number);
            }
        }
        all_there
    }

    /// The counts that a sample belongs to, but for its end.
    fn small_counts(&mut self, sample: &Sample) -> impl Iterator<Item = &mut u64> {
        let verdict = match sample.kind {
            Kind::Download => self.verdicts.get_mut(verdict(sample) as usize),
            Kind::Upload => None,
        };
        let linked = sample.circuit.as_ref().and_then(|circuit| circuit.conflux);
        let conflux = linked.map(|linked| &mut self.conflux[usize::from(!linked)]);
        verdict.into_iter().chain(conflux)
    }

    /// Adds what the other one holds.
    pub fn merge(&mut self, other: &Rollup) {
        for (end, count) in &other.ends {
            let sum = self.ends.entry(*end).or_default();
            *sum = sum.saturating_add(*count);
        }
        let counts = self.verdicts.iter_mut().chain(&mut self.conflux);
        for (sum, count) in counts.zip(other.verdicts.iter().chain(&other.conflux)) {
            *sum = sum.saturating_add(*count);
        }
        for (sum, bytes) in self.bytes.iter_mut().zip(other.bytes) {
            *sum = sum.saturating_add(bytes);
        }
        for (number, histogram) in &other.histograms {
            self.histograms.entry(*number).or_default().merge(histogram);
        }
    }

    /// How many runs it holds, whatever their end.
    pub fn runs(&self) -> u64 {
        self.ends.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many runs were complete.
    pub fn complete(&self) -> u64 {
        self.ends.get(&key_of(End::Complete)).copied().unwrap_or(0)
    }

    /// How often each end occurred, complete runs first, then timeouts by phase, then failures by phase and cause.
    pub fn ends(&self) -> impl Iterator<Item = (End, u64)> {
        self.ends.iter().filter_map(|(key, count)| Some((end_of(*key)?, *count)))
    }

    /// How many downloads are this for Tor Metrics.
    pub fn verdict(&self, verdict: Verdict) -> u64 {
        self.verdicts[verdict as usize]
    }

    /// How many runs went over two linked circuits.
    pub fn over_conflux(&self) -> u64 {
        self.conflux[0]
    }

    /// How many runs went over one circuit.
    pub fn over_one_circuit(&self) -> u64 {
        self.conflux[1]
    }

    /// Of how many runs it is not known over how many circuits they went.
    pub fn over_unknown(&self) -> u64 {
        self.runs().saturating_sub(self.over_conflux()).saturating_sub(self.over_one_circuit())
    }

    /// Bytes of payload of the complete runs.
    pub fn payload(&self) -> u128 {
        self.bytes[0]
    }

    /// Bytes of HTTP read by all runs.
    pub fn read(&self) -> u128 {
        self.bytes[1]
    }

    /// Bytes of HTTP written by all runs.
    pub fn written(&self) -> u128 {
        self.bytes[2]
    }

    /// The histogram of a quantity's [whole numbers](Quantity::whole); `None` where no run has a value.
    pub fn histogram(&self, quantity: Quantity) -> Option<&Histogram> {
        let number = KEPT.iter().position(|kept| *kept == quantity)?;
        self.histograms.get(&(number as u16))
    }

    /// What can be said of a quantity, in its unit.
    pub fn summary(&self, quantity: Quantity, floor: Floor) -> Summary {
        let none = Histogram::default();
        Summary::of_histogram(self.histogram(quantity).unwrap_or(&none), quantity.scale(), floor)
    }

    /// As bytes: the form; how many ends, each with its numbers and its count; the other counts and sums; how many
    /// histograms, each with its quantity's number.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(2048);
        put(&mut bytes, FORM.into());
        put(&mut bytes, self.ends.len() as u128);
        for ((outcome, phase, cause), count) in &self.ends {
            bytes.extend([*outcome, *phase, *cause]);
            put(&mut bytes, u128::from(*count));
        }
        for count in self.verdicts.iter().chain(&self.conflux) {
            put(&mut bytes, u128::from(*count));
        }
        for sum in self.bytes {
            put(&mut bytes, sum);
        }
        put(&mut bytes, self.histograms.len() as u128);
        for (number, histogram) in &self.histograms {
            put(&mut bytes, u128::from(*number));
            histogram.encode_to(&mut bytes);
        }
        bytes
    }

    /// Reads what [`Rollup::encode`] wrote, and nothing else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Trouble> {
        let mut reader = Reader::new(bytes);
        reader.form(FORM)?;
        let mut rollup = Rollup { ends: ends_from(&mut reader)?, ..Rollup::default() };
        for count in rollup.verdicts.iter_mut().chain(&mut rollup.conflux) {
            *count = reader.at_most(u64::MAX)?;
        }
        for sum in &mut rollup.bytes {
            *sum = reader.number()?;
        }
        let mut next = 0;
        for _ in 0..reader.at_most(KEPT.len() as u64)? {
            let number = reader.at_most(KEPT.len() as u64 - 1)? as u16;
            let histogram = Histogram::decode_from(&mut reader)?;
            if number < next || histogram.is_empty() {
                return Err(Trouble::Contradiction);
            }
            rollup.histograms.insert(number, histogram);
            next = number + 1;
        }
        reader.end()?;
        Ok(rollup)
    }
}

fn ends_from(reader: &mut Reader<'_>) -> Result<BTreeMap<EndKey, u64>, Trouble> {
    let mut ends = BTreeMap::new();
    for _ in 0..reader.at_most(1 + 8 + 8 * 256)? {
        let mut byte = || reader.at_most(0x7f).map(|number| number as u8);
        let key = (byte()?, byte()?, byte()?);
        let count = reader.at_most(u64::MAX)?;
        let follows = ends.last_key_value().is_none_or(|(before, _)| *before < key);
        if count == 0 || !follows || end_of(key).is_none() {
            return Err(Trouble::Contradiction);
        }
        ends.insert(key, count);
    }
    Ok(ends)
}

/// Takes one off a count, and the count away at 0; false where there is none.
fn take_one(counts: &mut BTreeMap<EndKey, u64>, key: EndKey) -> bool {
    let Some(count) = counts.get_mut(&key) else { return false };
    *count = count.saturating_sub(1);
    if *count == 0 {
        counts.remove(&key);
    }
    true
}

fn bytes_of(sample: &Sample) -> [u128; 3] {
    let payload = if sample.end == End::Complete { sample.size } else { 0 };
    [payload.into(), sample.read.into(), sample.written.into()]
}

pub(super) fn key_of(end: End) -> EndKey {
    match end {
        End::Complete => (0, 0, 0),
        End::Timeout(phase) => (1, phase as u8, 0),
        End::Failed(phase, cause) => (2, phase as u8, cause as u8),
    }
}

pub(super) fn end_of(key: EndKey) -> Option<End> {
    let phase = Phase::ALL.get(usize::from(key.1)).map(|known| known.0)?;
    let cause = Cause::ALL.get(usize::from(key.2)).map(|known| known.0)?;
    match key {
        (0, 0, 0) => Some(End::Complete),
        (1, _, 0) => Some(End::Timeout(phase)),
        (2, _, _) => Some(End::Failed(phase, cause)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::stats::SampleCircuit;
    use crate::test_support::samples::{example_sample, sample};

    fn of(samples: &[Sample]) -> Rollup {
        let mut rollup = Rollup::default();
        samples.iter().for_each(|sample| rollup.add(sample));
        rollup
    }

    #[test]
    fn every_quantity_is_kept_under_its_number() {
        assert_eq!(KEPT.map(|quantity| quantity as usize), std::array::from_fn(|number| number));
        assert_eq!(Quantity::ALL.len(), KEPT.len());
    }

    #[test]
    fn a_rollup_says_how_runs_ended_and_what_they_took() {
        let failed = End::Failed(Phase::Response, Cause::SocksReply);
        let mut broken = Sample { end: failed, did_time_out: true, circuit: None, read: 0, ..example_sample() };
        broken.steps.data_complete = None;
        let mut linked = example_sample();
        linked.circuit.as_mut().unwrap().conflux = Some(true);
        let mut lost = broken.clone();
        lost.circuit = Some(SampleCircuit::default());
        let rollup = of(&[example_sample(), broken, linked, lost]);
        assert_eq!(rollup.ends().collect::<Vec<_>>(), [(End::Complete, 2), (failed, 2)]);
        assert_eq!((rollup.runs(), rollup.complete()), (4, 2));
        assert_eq!((rollup.over_conflux(), rollup.over_one_circuit(), rollup.over_unknown()), (1, 1, 2));
        assert_eq!((rollup.verdict(Verdict::Success), rollup.verdict(Verdict::Timeout)), (2, 2));
        assert_eq!((rollup.payload(), rollup.read(), rollup.written()), (10_485_760, 10_486_000, 336));
        let first_byte = rollup.summary(Quantity::TimeToFirstByte, Floor::NONE);
        assert_eq!((first_byte.samples, first_byte.approximate, first_byte.mean), (4, true, Some(700.1)));
        assert!((first_byte.p50.unwrap() / 700.1 - 1.0).abs() < 0.01);
        assert_eq!(rollup.summary(Quantity::TimeToLastByte, Floor::NONE).samples, 2);
        assert_eq!(rollup.summary(Quantity::TimeToLastByte, Floor::USUAL).p50, None);
    }

    #[test]
    fn what_was_never_put_in_is_not_taken_out() {
        let mut rollup = of(&[example_sample()]);
        assert!(!rollup.remove(&Sample { end: End::Timeout(Phase::Response), ..example_sample() }));
        assert_eq!(rollup.complete(), 1);
        let mut rollup = Rollup::default();
        assert!(!rollup.remove(&example_sample()));
        assert_eq!(rollup, Rollup::default());
    }

    #[test]
    fn corrupt_bytes_are_refused() {
        for (bytes, why) in [
            (&[][..], Trouble::CutOff),
            (&[9], Trouble::Form),
            (&[1, 1, 0, 0, 0, 0], Trouble::Contradiction),
            (&[1, 1, 0, 1, 0, 1], Trouble::Contradiction),
            (&[1, 1, 1, 8, 0, 1], Trouble::Contradiction),
            (&[1, 1, 2, 0, 16, 1], Trouble::Contradiction),
            (&[1, 2, 1, 0, 0, 1, 0, 0, 0, 1], Trouble::Contradiction),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 20], Trouble::TooLarge),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0], Trouble::Contradiction),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], Trouble::GoesOn),
        ] {
            assert_eq!(Rollup::decode(bytes), Err(why), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_added_up_is_the_rollup_of_all(
            one in prop::collection::vec(sample(), 0..20), other in prop::collection::vec(sample(), 0..20)) {
            let mut merged = of(&one);
            merged.merge(&of(&other));
            prop_assert_eq!(&merged, &of(&[other, one].concat()));
        }

        #[test]
        fn what_is_removed_was_never_there(
            kept in prop::collection::vec(sample(), 0..20), gone in prop::collection::vec(sample(), 0..20)) {
            let mut rollup = of(&[gone.clone(), kept.clone()].concat());
            for sample in &gone {
                prop_assert!(rollup.remove(sample));
            }
            prop_assert_eq!(&rollup, &of(&kept));
        }

        #[test]
        fn bytes_hold_all_of_it(samples in prop::collection::vec(sample(), 0..8)) {
            let bytes = of(&samples).encode();
            prop_assert_eq!(Rollup::decode(&bytes), Ok(of(&samples)));
            for end in 0..bytes.len() {
                prop_assert!(Rollup::decode(&bytes[..end]).is_err());
            }
        }

        #[test]
        fn changed_bytes_are_read_or_refused(
            samples in prop::collection::vec(sample(), 0..4), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = of(&samples).encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(rollup) = Rollup::decode(&bytes) {
                prop_assert_eq!(rollup.encode(), bytes);
            }
        }
    }
}
