//! Percentiles, box statistics and distributions of values that are all at hand.
//!
//! Values are finite. What is sorted is sorted upwards, which the caller sees to ([`sorted`]).

use serde::Serialize;

use super::Histogram;

/// The values, sorted upwards.
pub fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// The value below which the share `q` (0 to 1) of the sorted values lies, as SQL's PERCENTILE_CONT has it: at the
/// place `q · (n − 1)` counted from 0, interpolated linearly between its two neighbours. `None` of no values.
pub fn percentile(sorted: &[f64], q: f64) -> Option<f64> {
    let (lower, upper, part) = place(sorted.len() as u64, q)?;
    Some(between(*sorted.get(lower as usize)?, *sorted.get(upper as usize)?, part))
}

/// The two ranks (from 0) among `n` values between which the percentile lies, and how far from the first.
pub(super) fn place(n: u64, q: f64) -> Option<(u64, u64, f64)> {
    let last = n.checked_sub(1)?;
    let place = q.clamp(0.0, 1.0) * last as f64;
    let lower = (place.floor() as u64).min(last);
    let upper = (place.ceil() as u64).min(last);
    Some((lower, upper, place - lower as f64))
}

/// The value that lies `part` (0 to 1) of the way from `lower` to `upper`.
pub(super) fn between(lower: f64, upper: f64, part: f64) -> f64 {
    lower + part * (upper - lower)
}

/// The sum of the values by their number; `None` of no values.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// From how many samples on a figure is shown. Fewer would be shown as if it were known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// So many samples every figure needs.
    pub samples: u64,
    /// So many samples must be expected beyond a percentile, on the side where fewer are: with 1, a median needs 2,
    /// a quartile 4, p10 and p90 need 10, and p99 needs 100.
    pub beyond: u64,
}

impl Floor {
    /// What perfd shows where it is not told otherwise.
    pub const USUAL: Floor = Floor { samples: 5, beyond: 1 };

    /// Every figure is shown that can be computed, as Tor Metrics and OnionPerf do.
    pub const NONE: Floor = Floor { samples: 1, beyond: 0 };

    /// Whether the percentile `q` (0 to 1) of so many samples is shown.
    pub fn shows(self, q: f64, samples: u64) -> bool {
        // 100 · (1 − 0.99) is a hair more than 1, and 10 · (1 − 0.9) a hair less.
        let expected = samples as f64 * q.min(1.0 - q) + 1e-6;
        self.shows_any(samples) && expected >= self.beyond as f64
    }

    /// Whether anything of so many samples is shown: their mean and extremes.
    pub fn shows_any(self, samples: u64) -> bool {
        samples >= self.samples.max(1)
    }
}

impl Default for Floor {
    fn default() -> Self {
        Floor::USUAL
    }
}

/// What can be said of many values of one quantity. What there are too few samples for is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the percentiles' names say it")]
pub struct Summary {
    /// How many values there are.
    pub samples: u64,
    /// Whether the percentiles and extremes come from histograms, and are right to 1 % only; the mean is exact.
    pub approximate: bool,
    pub mean: Option<f64>,
    pub min: Option<f64>,
    pub max: Option<f64>,
    pub p10: Option<f64>,
    pub p25: Option<f64>,
    pub p50: Option<f64>,
    pub p75: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
}

impl Summary {
    /// Of these sorted values.
    pub fn of(sorted: &[f64], floor: Floor) -> Self {
        let whole = || mean(sorted).map(|mean| (mean, sorted.first().copied(), sorted.last().copied()));
        Self::made(sorted.len() as u64, false, floor, whole, |q| percentile(sorted, q))
    }

    /// Of a histogram's values, each times `scale` (1/1000 makes milliseconds of microseconds).
    pub fn of_histogram(histogram: &Histogram, scale: f64, floor: Floor) -> Self {
        let scaled = |value: Option<f64>| value.map(|value| value * scale);
        let whole = || histogram.mean().map(|mean| (mean * scale, scaled(histogram.min()), scaled(histogram.max())));
        Self::made(histogram.count(), true, floor, whole, |q| scaled(histogram.percentile(q).map(|p| p.0)))
    }

    fn made(
        samples: u64,
        approximate: bool,
        floor: Floor,
        whole: impl Fn() -> Option<(f64, Option<f64>, Option<f64>)>,
        percentile: impl Fn(f64) -> Option<f64>,
    ) -> Self {
        let whole = if floor.shows_any(samples) { whole() } else { None };
        let at = |q: f64| if floor.shows(q, samples) { percentile(q) } else { None };
        Summary {
            samples,
            approximate,
            mean: whole.map(|(mean, _, _)| mean),
            min: whole.and_then(|(_, min, _)| min),
            max: whole.and_then(|(_, _, max)| max),
            p10: at(0.1),
            p25: at(0.25),
            p50: at(0.5),
            p75: at(0.75),
            p90: at(0.9),
            p99: at(0.99),
        }
    }
}

/// Quartiles, and the whiskers of a box plot.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BoxStatistics {
    /// The smallest value that is at least `q1 − 1.5 · (q3 − q1)`.
    pub low: f64,
    /// The lower quartile.
    pub q1: f64,
    /// The median.
    pub md: f64,
    /// The upper quartile.
    pub q3: f64,
    /// The largest value that is at most `q3 + 1.5 · (q3 − q1)`.
    pub high: f64,
}

impl BoxStatistics {
    /// Of these sorted values; `None` of no values.
    pub fn of(sorted: &[f64]) -> Option<Self> {
        let (q1, md, q3) = (percentile(sorted, 0.25)?, percentile(sorted, 0.5)?, percentile(sorted, 0.75)?);
        let reach = 1.5 * (q3 - q1);
        let low = *sorted.get(sorted.partition_point(|value| *value < q1 - reach))?;
        let high = *sorted.get(sorted.partition_point(|value| *value <= q3 + reach).checked_sub(1)?)?;
        Some(BoxStatistics { low, q1, md, q3, high })
    }
}

/// A distribution: which share of the values is at most so large.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Ecdf {
    /// How many values there are.
    pub samples: u64,
    /// Whether it comes from histograms, and its values are right to 1 % only.
    pub approximate: bool,
    /// A value each, growing, and how many of the values are at most as large. The share is that by `samples`.
    pub points: Vec<(f64, u64)>,
}

impl Ecdf {
    /// Of these sorted values: a point for every value that occurs.
    pub fn of(sorted: &[f64]) -> Self {
        let mut points: Vec<(f64, u64)> = Vec::new();
        for (value, rank) in sorted.iter().zip(1..) {
            match points.last_mut() {
                Some(last) if last.0 == *value => last.1 = rank,
                _ => points.push((*value, rank)),
            }
        }
        Ecdf { samples: sorted.len() as u64, approximate: false, points }
    }

    /// At most `most` (at least 2) of its points: each that is kept is kept as it was, the first and the last
    /// among them, and between two of them the share grows by no more than 1 in `most − 1` before the second.
    pub fn thinned(self, most: usize) -> Self {
        let most = most.max(2);
        if self.points.len() <= most {
            return self;
        }
        let steps = (most - 1) as u128;
        let first = self.points.first().map_or(0, |point| point.1);
        let span = u128::from(self.samples.saturating_sub(first));
        // The ranks that one would like to keep lie evenly from the first point's to the last one's; of each, the
        // first point that reaches it is kept.
        let mut kept = Vec::with_capacity(most);
        let mut wanted = 0;
        for point in &self.points {
            let above = u128::from(point.1 - first) * steps;
            if above >= wanted * span {
                kept.push(*point);
                wanted = above / span.max(1) + 1;
            }
        }
        Ecdf { points: kept, ..self }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whole numbers, many of them equal.
    fn values() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(prop_oneof![(0u32..20).prop_map(f64::from), (0u32..1_000_000).prop_map(f64::from)], 0..50)
    }

    /// What SQL's standard says: row number 1 + q · (n − 1); the row there, or what lies between its neighbours.
    fn slow_percentile(values: &[f64], q: f64) -> f64 {
        let mut values = values.to_vec();
        values.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let row = 1.0 + q * (values.len() - 1) as f64;
        let (floor, ceiling) = (row.floor(), row.ceil());
        let value = |row: f64| values[row as usize - 1];
        if floor == ceiling { value(row) } else { (ceiling - row) * value(floor) + (row - floor) * value(ceiling) }
    }

    #[test]
    fn percentiles_by_hand() {
        let values = [10.0, 20.0, 30.0, 40.0];
        // Places 0.75, 1.5, 2.25 of 0 to 3.
        assert_eq!([0.25, 0.5, 0.75].map(|q| percentile(&values, q)), [Some(17.5), Some(25.0), Some(32.5)]);
        assert_eq!([0.0, 1.0].map(|q| percentile(&values, q)), [Some(10.0), Some(40.0)]);
        assert_eq!((percentile(&[7.0], 0.9), percentile(&[], 0.5), mean(&[])), (Some(7.0), None, None));
    }

    #[test]
    fn a_box_by_hand() {
        // Places 1.25, 2.5, 3.75 of 0 to 5: quartiles 2.25 and 4.75, reach 3.75, from -1.5 to 8.5.
        let expected = BoxStatistics { low: 1.0, q1: 2.25, md: 3.5, q3: 4.75, high: 5.0 };
        assert_eq!(BoxStatistics::of(&[1.0, 2.0, 3.0, 4.0, 5.0, 100.0]), Some(expected));
        assert_eq!(BoxStatistics::of(&[]), None);
        // Exactly 1.5 times the range away still counts: quartiles 4 and 8, reach 6.
        let found = BoxStatistics::of(&[-2.0, 4.0, 6.0, 8.0, 14.0]).unwrap();
        assert_eq!((found.low, found.q1, found.q3, found.high), (-2.0, 4.0, 8.0, 14.0));
    }

    #[test]
    fn what_there_are_too_few_for_is_absent() {
        let shown = |n: u32| {
            let found = Summary::of(&(0..n).map(f64::from).collect::<Vec<_>>(), Floor::USUAL);
            [found.mean, found.min, found.p50, found.p25, found.p75, found.p10, found.p90, found.p99]
                .map(|value| u8::from(value.is_some()))
        };
        assert_eq!(shown(4), [0; 8]);
        assert_eq!(shown(5), [1, 1, 1, 1, 1, 0, 0, 0]);
        assert_eq!((shown(9), shown(10)), (shown(5), [1, 1, 1, 1, 1, 1, 1, 0]));
        assert_eq!((shown(99), shown(100)), (shown(10), [1; 8]));
        let one = Summary::of(&[3.0], Floor::NONE);
        assert_eq!((one.samples, one.mean, one.p99), (1, Some(3.0), Some(3.0)));
        assert_eq!(Summary::of(&[], Floor::NONE), Summary::default());
    }

    #[test]
    fn a_distribution_by_hand() {
        let ecdf = Ecdf::of(&[1.0, 1.0, 2.0, 5.0]);
        assert_eq!((ecdf.samples, &ecdf.points[..]), (4, &[(1.0, 2), (2.0, 3), (5.0, 4)][..]));
        assert_eq!(ecdf.thinned(2).points, [(1.0, 2), (5.0, 4)]);
    }

    proptest! {
        #[test]
        fn percentiles_are_the_standards(values in values(), q in 0.0..=1.0f64) {
            match percentile(&sorted(values.clone()), q) {
                None => prop_assert!(values.is_empty()),
                Some(found) => prop_assert!((found - slow_percentile(&values, q)).abs() < 1e-6),
            }
        }

        #[test]
        fn boxes_are_what_filters_leave(values in values()) {
            let Some(found) = BoxStatistics::of(&sorted(values.clone())) else {
                prop_assert!(values.is_empty());
                return Ok(());
            };
            let reach = (found.q3 - found.q1) * 1.5;
            let low = values.iter().copied().filter(|value| *value >= found.q1 - reach).fold(f64::MAX, f64::min);
            let high = values.iter().copied().filter(|value| *value <= found.q3 + reach).fold(f64::MIN, f64::max);
            prop_assert_eq!((found.low, found.high), (low, high));
        }

        #[test]
        fn distributions_count(values in values(), most in 2usize..20, at in 0u32..1_000_000) {
            let whole = Ecdf::of(&sorted(values.clone()));
            let at_most = |ecdf: &Ecdf, at: f64| {
                ecdf.points.iter().take_while(|point| point.0 <= at).last().map_or(0, |point| point.1)
            };
            let counted = values.iter().filter(|value| **value <= f64::from(at)).count() as u64;
            prop_assert_eq!(at_most(&whole, f64::from(at)), counted);

            let thin = whole.clone().thinned(most);
            prop_assert!(thin.points.len() <= most);
            prop_assert_eq!((thin.points.first(), thin.points.last()), (whole.points.first(), whole.points.last()));
            prop_assert!(thin.points.iter().all(|point| whole.points.contains(point)));
            let gap = counted - at_most(&thin, f64::from(at));
            prop_assert!((gap as f64) <= values.len() as f64 / (most - 1) as f64);
        }
    }
}
