//! How runs ended, by phase and cause, over periods of time.

use std::collections::BTreeMap;

use serde::Serialize;

use super::rollup::{EndKey, end_of, key_of};
use super::{End, Period, Rollup, Sample};
use crate::clock::UnixMicros;
use crate::measurement::{Cause, Phase};

/// How often runs of a period ended in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndRow {
    /// When the period began.
    pub start: UnixMicros,
    /// `complete`, `timeout` or `failed`.
    pub outcome: &'static str,
    /// The step that was being waited for; absent of complete runs.
    pub phase: Option<Phase>,
    /// Why it was not reached; of failed runs alone.
    pub cause: Option<Cause>,
    /// How many runs ended so.
    pub runs: u64,
    /// How many runs the period has.
    pub requests: u64,
}

/// Counts how runs ended, over periods.
#[derive(Clone, Debug)]
pub struct Ends {
    period: Period,
    counts: BTreeMap<UnixMicros, BTreeMap<EndKey, u64>>,
}

impl Ends {
    /// With nothing in it yet.
    pub fn new(period: Period) -> Self {
        Ends { period, counts: BTreeMap::new() }
    }

    /// Takes a sample in.
    pub fn add(&mut self, sample: &Sample) {
        self.count(sample.start, sample.end, 1);
    }

    /// Takes in the runs of a roll-up that began at or after `start`, all in the period that holds it.
    pub fn add_rollup(&mut self, start: UnixMicros, rollup: &Rollup) {
        for (end, runs) in rollup.ends() {
            self.count(start, end, runs);
        }
    }

    fn count(&mut self, at: UnixMicros, end: End, runs: u64) {
        let count = self.counts.entry(self.period.start_of(at)).or_default().entry(key_of(end)).or_default();
        *count = count.saturating_add(runs);
    }

    /// The rows, by period; within one the complete runs come first, then timeouts by phase, then failures by phase
    /// and cause. What did not occur has no row.
    pub fn finish(self) -> Vec<EndRow> {
        let rows = |(start, counts): (UnixMicros, BTreeMap<EndKey, u64>)| {
            let requests = counts.values().fold(0u64, |sum, count| sum.saturating_add(*count));
            counts.into_iter().filter_map(move |(key, runs)| {
                let (outcome, phase, cause) = match end_of(key)? {
                    End::Complete => ("complete", None, None),
                    End::Timeout(phase) => ("timeout", Some(phase), None),
                    End::Failed(phase, cause) => ("failed", Some(phase), Some(cause)),
                };
                Some(EndRow { start, outcome, phase, cause, runs, requests })
            })
        };
        self.counts.into_iter().flat_map(rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::test_support::samples::{example_sample, sample};

    #[test]
    fn ends_are_counted_by_hour() {
        let refused = End::Failed(Phase::Connect, Cause::Refused);
        let mut ends = Ends::new(Period::Hour);
        let hour = example_sample().start.0 - 700;
        for (after, end) in [
            (0, End::Timeout(Phase::Response)),
            (1, End::Complete),
            (3_599_999_999, refused),
            (5, End::Complete),
            (3_600_000_000, refused),
        ] {
            ends.add(&Sample { start: UnixMicros(hour + after), end, ..example_sample() });
        }
        let row = |hours: i64, outcome, phase, cause, runs, requests| EndRow {
            start: UnixMicros(hour + hours * 3_600_000_000),
            outcome,
            phase,
            cause,
            runs,
            requests,
        };
        let expected = [
            row(0, "complete", None, None, 2, 4),
            row(0, "timeout", Some(Phase::Response), None, 1, 4),
            row(0, "failed", Some(Phase::Connect), Some(Cause::Refused), 1, 4),
            row(1, "failed", Some(Phase::Connect), Some(Cause::Refused), 1, 1),
        ];
        assert_eq!(ends.finish(), expected);
    }

    proptest! {
        #[test]
        fn roll_ups_of_days_give_the_same(samples in prop::collection::vec(sample(), 0..30)) {
            let (mut by_sample, mut by_rollup) = (Ends::new(Period::Week), Ends::new(Period::Week));
            let mut days: BTreeMap<UnixMicros, Rollup> = BTreeMap::new();
            for sample in &samples {
                by_sample.add(sample);
                days.entry(Period::Day.start_of(sample.start)).or_default().add(sample);
            }
            days.iter().for_each(|(day, rollup)| by_rollup.add_rollup(*day, rollup));
            let rows = by_sample.finish();
            prop_assert_eq!(rows.iter().map(|row| row.runs).sum::<u64>(), samples.len() as u64);
            prop_assert_eq!(rows, by_rollup.finish());
        }
    }
}
