//! The paired comparison: what was measured through two tors within the same slots, and how much they differ
//! (no I/O).
//!
//! What the network does in a slot is done to both, so the differences of the slots say more than those of two
//! separate averages. A slot counts for a pair of tors if every run through both of them was complete; where a
//! slot has several runs through one tor, their mean stands for them.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::stats::paired::Difference;
use crate::stats::percentile::mean;
use crate::store::PairRow;

/// The comparison of two tors, A and B. Differences are A − B in milliseconds: below zero, A was faster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The name of the tor A, which sorts before B.
    pub a: String,
    /// The name of the tor B.
    pub b: String,
    /// Slots in which every run through both was complete.
    pub slots: usize,
    /// Slots that were left out, and why.
    pub left_out: LeftOut,
    /// The difference of the time to the last byte; absent where no slot counts.
    pub time_to_last_byte: Option<Difference>,
    /// The difference of the time to the first byte, likewise.
    pub time_to_first_byte: Option<Difference>,
}

/// How many slots were left out of a comparison, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// A run through A was not complete, those through B were.
    pub a_incomplete: usize,
    /// A run through B was not complete, those through A were.
    pub b_incomplete: usize,
    /// Neither was complete.
    pub both_incomplete: usize,
    /// The slot has no run through one of the two.
    pub one_missing: usize,
}

/// What a slot says of one tor.
#[derive(Default)]
struct Runs {
    incomplete: bool,
    first_bytes: Vec<f64>,
    last_bytes: Vec<f64>,
}

/// Compares every two tors that have runs in these rows, which come in whole slots and any order.
pub fn compare(rows: &[PairRow]) -> Vec<Comparison> {
    let mut slots: BTreeMap<i64, BTreeMap<&str, Runs>> = BTreeMap::new();
    for row in rows {
        slots.entry(row.planned.0).or_default().entry(&row.tor).or_default().add(row);
    }
    let tors: BTreeSet<&str> = rows.iter().map(|row| row.tor.as_str()).collect();
    let pairs = tors.iter().flat_map(|a| tors.range(*a..).skip(1).map(move |b| (*a, *b)));
    pairs.map(|(a, b)| compare_two(a, b, &slots)).filter(|comparison| comparison.shared()).collect()
}

fn compare_two(a: &str, b: &str, slots: &BTreeMap<i64, BTreeMap<&str, Runs>>) -> Comparison {
    let mut left_out = LeftOut::default();
    let (mut first_bytes, mut last_bytes) = (Vec::new(), Vec::new());
    for slot in slots.values() {
        let (of_a, of_b) = match (slot.get(a), slot.get(b)) {
            (Some(of_a), Some(of_b)) => (of_a, of_b),
            (None, None) => continue,
            _ => {
                left_out.one_missing += 1;
                continue;
            }
        };
        match (of_a.times(), of_b.times()) {
            (Some(a), Some(b)) => {
                first_bytes.push((a.0, b.0));
                last_bytes.push((a.1, b.1));
            }
            (None, Some(_)) => left_out.a_incomplete += 1,
            (Some(_), None) => left_out.b_incomplete += 1,
            (None, None) => left_out.both_incomplete += 1,
        }
    }
    Comparison {
        a: a.to_owned(),
        b: b.to_owned(),
        slots: last_bytes.len(),
        left_out,
        time_to_last_byte: Difference::of(&last_bytes),
        time_to_first_byte: Difference::of(&first_bytes),
    }
}

impl Comparison {
    /// Whether any slot has runs through both.
    fn shared(&self) -> bool {
        let LeftOut { a_incomplete, b_incomplete, both_incomplete, one_missing: _ } = self.left_out;
        self.slots + a_incomplete + b_incomplete + both_incomplete > 0
    }
}

impl Runs {
    fn add(&mut self, row: &PairRow) {
        match (row.complete(), row.first_byte, row.last_byte) {
            (true, Some(first), Some(last)) => {
                self.first_bytes.push(first as f64 / 1e3);
                self.last_bytes.push(last as f64 / 1e3);
            }
            _ => self.incomplete = true,
        }
    }

    /// The times to the first and to the last byte in ms, if every run was complete.
    fn times(&self) -> Option<(f64, f64)> {
        if self.incomplete {
            return None;
        }
        Some((mean(&self.first_bytes)?, mean(&self.last_bytes)?))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::UnixMicros;

    fn row(planned: i64, tor: &str, last_ms: Option<u64>) -> PairRow {
        PairRow {
            planned: UnixMicros(planned),
            tor: tor.to_owned(),
            outcome: if last_ms.is_some() { "complete" } else { "timeout" }.to_owned(),
            first_byte: Some(last_ms.unwrap_or(7) * 500),
            last_byte: last_ms.map(|ms| ms * 1000),
        }
    }

    #[test]
    fn slots_are_compared_and_the_others_counted() {
        let rows = [
            row(1, "a", Some(110)),
            row(1, "b", Some(100)),
            row(2, "b", Some(200)),
            row(2, "a", Some(220)),
            row(3, "a", Some(330)),
            row(3, "b", Some(300)),
            row(4, "a", None),
            row(4, "b", Some(1)),
            row(5, "a", Some(1)),
            row(5, "b", None),
            row(6, "a", None),
            row(6, "b", None),
            row(7, "b", Some(1)),
        ];
        let [comparison] = &compare(&rows)[..] else { panic!("not one pair") };
        assert_eq!((comparison.a.as_str(), comparison.b.as_str(), comparison.slots), ("a", "b", 3));
        let left_out = LeftOut { a_incomplete: 1, b_incomplete: 1, both_incomplete: 1, one_missing: 1 };
        assert_eq!(comparison.left_out, left_out);
        let last = comparison.time_to_last_byte.as_ref().unwrap();
        assert_eq!((last.mean_ms, last.median_ms, last.median_a_ms, last.median_b_ms), (20.0, 20.0, 220.0, 200.0));
        // 10, 20 and 30: the standard deviation is 10, so half of the interval is 4.302653 · 10 / √3.
        let [low, high] = last.confidence_95_ms.unwrap();
        assert!((low - -4.841_38).abs() < 1e-4 && (high - 44.841_38).abs() < 1e-4, "{low} {high}");
        assert_eq!(comparison.time_to_first_byte.as_ref().unwrap().mean_ms, 10.0);
    }

    #[test]
    fn too_few_slots_give_no_number() {
        assert_eq!(compare(&[]), []);
        assert_eq!(compare(&[row(1, "a", Some(1)), row(2, "b", Some(1))]), [], "no slot has both");
        let one = compare(&[row(1, "a", Some(3)), row(1, "b", Some(1))]);
        let last = one[0].time_to_last_byte.as_ref().unwrap();
        assert_eq!((one[0].slots, last.mean_ms, last.confidence_95_ms), (1, 2.0, None));
        let none = compare(&[row(1, "a", None), row(1, "b", Some(1))]);
        assert_eq!((none[0].slots, &none[0].time_to_last_byte, &none[0].time_to_first_byte), (0, &None, &None));
    }

    #[test]
    fn several_runs_through_a_tor_are_one_value_of_their_slot() {
        let mut rows = vec![row(1, "a", Some(10)), row(1, "a", Some(30)), row(1, "b", Some(5))];
        assert_eq!(compare(&rows)[0].time_to_last_byte.as_ref().unwrap().mean_ms, 15.0);
        rows.push(row(1, "a", None));
        assert_eq!(compare(&rows)[0].left_out.a_incomplete, 1);
    }

    #[test]
    fn every_two_of_three_are_compared() {
        let rows = [row(1, "c", Some(1)), row(1, "a", Some(2)), row(1, "b", Some(3))];
        let pairs: Vec<_> = compare(&rows).into_iter().map(|comparison| comparison.a + &comparison.b).collect();
        assert_eq!(pairs, ["ab", "ac", "bc"]);
    }

    proptest! {
        #[test]
        fn every_slot_is_counted_once_and_the_interval_holds_the_mean(
            slots in prop::collection::vec((prop::option::of(1u64..100_000), prop::option::of(1u64..100_000)), 0..40),
        ) {
            let row = |(planned, (a, b)): (usize, &(Option<u64>, Option<u64>))| {
                [row(planned as i64, "a", *a), row(planned as i64, "b", *b)]
            };
            let rows: Vec<_> = slots.iter().enumerate().flat_map(row).collect();
            let compared = compare(&rows);
            prop_assert_eq!(compared.len(), usize::from(!slots.is_empty()));
            for Comparison { slots: counted, left_out, time_to_last_byte, .. } in compared {
                let LeftOut { a_incomplete, b_incomplete, both_incomplete, one_missing } = left_out;
                let all = counted + a_incomplete + b_incomplete + both_incomplete + one_missing;
                prop_assert_eq!(all, slots.len());
                prop_assert_eq!(time_to_last_byte.is_some(), counted > 0);
                let Some(difference) = time_to_last_byte else { continue };
                prop_assert_eq!(difference.confidence_95_ms.is_some(), counted > 1);
                if let Some([low, high]) = difference.confidence_95_ms {
                    prop_assert!(low <= difference.mean_ms && difference.mean_ms <= high);
                }
            }
        }
    }
}
