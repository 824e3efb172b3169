//! Which relays were seen most among the slowest runs, and in circuits that failed, and how often they were seen at
//! all: a relay that carries much is seen much.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::percentile::{Floor, percentile, sorted};
use super::{End, Quantity, Sample};
use crate::measurement::{Kind, ServerKind};

/// How many relays OnionPerf shows.
pub const MOST: usize = 15;

/// What was seen of one relay. A run in whose path it stands twice counts once.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RelayRow {
    /// 40 hexadecimal digits.
    pub fingerprint: String,
    /// Runs whose path it was in.
    pub runs: u64,
    /// Of these, complete ones.
    pub complete: u64,
    /// Complete ones in the slowest quarter of those of the same kind, server and size: longer to the last byte
    /// than the upper quartile.
    pub slow: u64,
    /// Runs that were not complete.
    pub failed: u64,
    /// `slow` by `complete`; about a quarter of an unremarkable relay. Absent of too few.
    pub slow_share: Option<f64>,
    /// `failed` by `runs`. Absent of too few.
    pub failed_share: Option<f64>,
}

/// The relays that were seen most.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RelayReport {
    /// Runs whose path is known; no others are counted here.
    pub runs: u64,
    /// Of these, complete ones in the slowest quarter.
    pub slow: u64,
    /// Of these, runs that were not complete.
    pub failed: u64,
    /// Seen most among the slowest quarter, most often first, then by fingerprint.
    pub slowest: Vec<RelayRow>,
    /// Seen most in failed circuits, likewise.
    pub failing: Vec<RelayRow>,
}

/// Counts relays. It keeps, of every complete run, its time and its path: some 40 bytes.
#[derive(Clone, Debug, Default)]
pub struct Relays {
    numbers: HashMap<String, u32>,
    /// By the relay's number.
    counts: Vec<Counts>,
    /// The time to the last byte and the relays' numbers of complete runs.
    complete: BTreeMap<(u8, u8, u64), Vec<TimeAndPath>>,
    runs: u64,
    failed: u64,
}

type TimeAndPath = (f64, Box<[u32]>);

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    complete: u64,
    slow: u64,
    failed: u64,
}

impl Relays {
    /// Takes a sample in, which must have its circuit; one whose path is not known is passed over.
    pub fn add(&mut self, sample: &Sample) {
        let Some(path) = sample.circuit.as_ref().map(|circuit| &circuit.path).filter(|path| !path.is_empty()) else {
            return;
        };
        let mut relays: Vec<u32> = path.iter().map(|relay| self.number(relay)).collect();
        relays.sort_unstable();
        relays.dedup();
        self.runs += 1;
        if sample.end != End::Complete {
            self.failed += 1;
            relays.iter().for_each(|relay| self.counts[*relay as usize].failed += 1);
            return;
        }
        relays.iter().for_each(|relay| self.counts[*relay as usize].complete += 1);
        if let Some(time) = Quantity::TimeToLastByte.value(sample) {
            self.complete
                .entry(group_of(sample.kind, sample.server, sample.size))
                .or_default()
                .push((time, relays.into()));
        }
    }

    fn number(&mut self, fingerprint: &str) -> u32 {
        if let Some(number) = self.numbers.get(fingerprint) {
            return *number;
        }
        let number = self.counts.len() as u32;
        self.counts.push(Counts::default());
        self.numbers.insert(fingerprint.to_owned(), number);
        number
    }

    /// The report, at most `most` relays a list ([`MOST`] as OnionPerf has it); shares of fewer runs than `floor`
    /// wants are absent.
    pub fn finish(mut self, most: usize, floor: Floor) -> RelayReport {
        let mut slow = 0;
        for runs in self.complete.values() {
            let times = sorted(runs.iter().map(|(time, _)| *time).collect());
            let Some(quartile) = percentile(&times, 0.75) else { continue };
            for (_, relays) in runs.iter().filter(|(time, _)| *time > quartile) {
                slow += 1;
                relays.iter().for_each(|relay| self.counts[*relay as usize].slow += 1);
            }
        }
        let rows: Vec<RelayRow> = self
            .numbers
            .into_iter()
            .map(|(fingerprint, number)| row(fingerprint, self.counts[number as usize], floor))
            .collect();
        RelayReport {
            runs: self.runs,
            slow,
            failed: self.failed,
            slowest: top(&rows, most, |row| row.slow),
            failing: top(&rows, most, |row| row.failed),
        }
    }
}

fn group_of(kind: Kind, server: ServerKind, size: u64) -> (u8, u8, u64) {
    (kind as u8, server as u8, size)
}

fn row(fingerprint: String, counts: Counts, floor: Floor) -> RelayRow {
    let Counts { complete, slow, failed } = counts;
    let runs = complete + failed;
    let share = |part: u64, whole: u64| floor.shows_any(whole).then(|| part as f64 / whole as f64);
    RelayRow {
        fingerprint,
        runs,
        complete,
        slow,
        failed,
        slow_share: share(slow, complete),
        failed_share: share(failed, runs),
    }
}

/// Those for which `count` is largest, and not 0.
fn top(rows: &[RelayRow], most: usize, count: impl Fn(&RelayRow) -> u64) -> Vec<RelayRow> {
    let mut seen: Vec<&RelayRow> = rows.iter().filter(|row| count(row) > 0).collect();
    seen.sort_unstable_by(|a, b| count(b).cmp(&count(a)).then_with(|| a.fingerprint.cmp(&b.fingerprint)));
    seen.into_iter().take(most).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurement::Phase;
    use crate::stats::SampleCircuit;
    use crate::test_support::samples::example_sample;

    /// A run over relays of these digits, complete after so many ms, or timed out.
    fn run(relays: &[&str], millis: Option<u64>) -> Sample {
        let mut sample = example_sample();
        sample.end = if millis.is_some() { End::Complete } else { End::Timeout(Phase::DataComplete) };
        sample.steps.data_complete = millis.map(|millis| millis * 1000);
        let path = relays.iter().map(|digit| digit.repeat(40)).collect();
        sample.circuit = Some(SampleCircuit { path, ..SampleCircuit::default() });
        sample
    }

    fn report(samples: &[Sample], most: usize) -> RelayReport {
        let mut relays = Relays::default();
        samples.iter().for_each(|sample| relays.add(sample));
        relays.finish(most, Floor { samples: 3, beyond: 0 })
    }

    #[test]
    fn the_slowest_quarter_and_the_failed_are_counted_by_relay() {
        // 10 … 50 ms: the upper quartile is 40, so that only the last is slower.
        let mut samples = vec![
            run(&["a", "b"], Some(10)),
            run(&["a", "b"], Some(20)),
            run(&["a", "c"], Some(30)),
            run(&["a", "c"], Some(40)),
            run(&["a", "d"], Some(50)),
            run(&["c", "d"], None),
            run(&["c", "c"], None),
            run(&[], None),
        ];
        // Of another size, hence compared with none.
        samples.push(Sample { size: 51_200, ..run(&["b"], Some(9000)) });
        let found = report(&samples, 15);
        assert_eq!((found.runs, found.slow, found.failed), (8, 1, 2));
        let brief = |row: &RelayRow| {
            let counts = (row.runs, row.slow, row.failed);
            (row.fingerprint.chars().next(), counts, row.slow_share, row.failed_share)
        };
        let slowest: Vec<_> = found.slowest.iter().map(brief).collect();
        assert_eq!(slowest, [(Some('a'), (5, 1, 0), Some(0.2), Some(0.0)), (Some('d'), (2, 1, 1), None, None)]);
        let failing: Vec<_> = found.failing.iter().map(brief).collect();
        assert_eq!(failing, [(Some('c'), (4, 0, 2), None, Some(0.5)), (Some('d'), (2, 1, 1), None, None)]);
        assert_eq!(report(&samples, 1).failing.len(), 1);
    }

    #[test]
    fn nothing_gives_nothing() {
        assert_eq!(report(&[], 15), RelayReport::default());
        assert_eq!(report(&[Sample { circuit: None, ..example_sample() }], 15), RelayReport::default());
    }
}
