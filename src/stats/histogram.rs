//! A histogram that is small, that can be added up, and that takes back what was put in: what is kept of a day's
//! values when the rows are gone.
//!
//! Buckets are linear within each power of two. Values below 128 have one each; above, 64 buckets lie between a power
//! of two and the next, so that a bucket's middle is off from any value in it by no more than 1/128 of the value
//! ([`RELATIVE_ERROR`]). The number of values and their sum are exact.

use super::percentile::{Ecdf, between, place};
use super::varint::{Reader, Trouble, put};

/// How far a value that is read out may be from the one that was put in, by the latter.
pub const RELATIVE_ERROR: f64 = 1.0 / 128.0;

/// Buckets for each power of two, as a power of two.
const PRECISION: u32 = 6;

/// The bucket of `u64::MAX`.
const LAST_BUCKET: u16 = ((63 - PRECISION) << PRECISION) as u16 + (2 << PRECISION) - 1;

/// What the bytes begin with: the form that follows.
const FORM: u64 = 1;

/// A figure that comes from buckets: right to [`RELATIVE_ERROR`].
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Approximate(pub f64);

/// Whole numbers, counted in buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Bucket and count, by bucket; no count is 0.
    buckets: Vec<(u16, u64)>,
    count: u64,
    sum: u128,
}

impl Histogram {
    /// Puts a value in.
    pub fn add(&mut self, value: u64) {
        self.add_to_bucket(bucket_of(value), 1);
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.saturating_add(value.into());
    }

    /// Takes a value out that was put in before, the exact inverse of [`Histogram::add`]. Returns false, and changes
    /// nothing, if no value of its bucket is there.
    pub fn remove(&mut self, value: u64) -> bool {
        let Ok(at) = self.buckets.binary_search_by_key(&bucket_of(value), |bucket| bucket.0) else { return false };
        if self.buckets[at].1 == 1 {
            self.buckets.remove(at);
        } else {
            self.buckets[at].1 -= 1;
        }
        self.count -= 1;
        // If another value was put in than is taken out, the sum is held within what the buckets allow.
        let (low, high) = self.bounds_of_sum();
        self.sum = self.sum.saturating_sub(value.into()).clamp(low, high);
        true
    }

    /// Adds what the other one holds.
    pub fn merge(&mut self, other: &Histogram) {
        for (bucket, count) in &other.buckets {
            self.add_to_bucket(*bucket, *count);
        }
        self.count = self.count.saturating_add(other.count);
        self.sum = self.sum.saturating_add(other.sum);
    }

    fn add_to_bucket(&mut self, bucket: u16, count: u64) {
        match self.buckets.binary_search_by_key(&bucket, |bucket| bucket.0) {
            Ok(at) => self.buckets[at].1 = self.buckets[at].1.saturating_add(count),
            Err(at) => self.buckets.insert(at, (bucket, count)),
        }
    }

    /// How many values it holds.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The sum of its values, exact.
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// The mean of its values, exact; `None` of none.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    /// The smallest value, right to [`RELATIVE_ERROR`].
    pub fn min(&self) -> Option<f64> {
        self.buckets.first().map(|bucket| middle(bucket.0))
    }

    /// The largest value, right to [`RELATIVE_ERROR`].
    pub fn max(&self) -> Option<f64> {
        self.buckets.last().map(|bucket| middle(bucket.0))
    }

    /// The value below which the share `q` (0 to 1) of the values lies, as [`super::percentile::percentile`] defines
    /// it; `None` of none.
    pub fn percentile(&self, q: f64) -> Option<Approximate> {
        let (lower, upper, part) = place(self.count, q)?;
        Some(Approximate(between(self.value_at(lower)?, self.value_at(upper)?, part)))
    }

    /// The value of this rank, from 0.
    fn value_at(&self, rank: u64) -> Option<f64> {
        let mut below = 0u64;
        for (bucket, count) in &self.buckets {
            below = below.saturating_add(*count);
            if rank < below {
                return Some(middle(*bucket));
            }
        }
        self.max()
    }

    /// How many of the values are at most `bound`; those in its own bucket count if its middle is.
    pub fn at_most(&self, bound: f64) -> u64 {
        let end = self.buckets.partition_point(|bucket| middle(bucket.0) <= bound);
        self.buckets[..end].iter().fold(0, |sum, bucket| sum.saturating_add(bucket.1))
    }

    /// The distribution, each value times `scale`.
    pub fn ecdf(&self, scale: f64) -> Ecdf {
        let mut rank = 0u64;
        let mut point = |(bucket, count): &(u16, u64)| {
            rank = rank.saturating_add(*count);
            (middle(*bucket) * scale, rank)
        };
        let points = self.buckets.iter().map(&mut point).collect();
        Ecdf { samples: self.count, approximate: true, points }
    }

    /// What the sum of the values may be, by their buckets.
    fn bounds_of_sum(&self) -> (u128, u128) {
        self.buckets.iter().fold((0, 0), |(low, high), (bucket, count)| {
            let (first, last) = range_of(*bucket);
            let times = |value: u64| u128::from(value) * u128::from(*count);
            (low.saturating_add(times(first)), high.saturating_add(times(last)))
        })
    }

    /// As bytes: the form, the number of buckets, for each how far it is from the one before and its count, then the
    /// sum; all as variable-length numbers.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + self.buckets.len() * 3);
        self.encode_to(&mut bytes);
        bytes
    }

    pub(super) fn encode_to(&self, bytes: &mut Vec<u8>) {
        put(bytes, FORM.into());
        put(bytes, self.buckets.len() as u128);
        let mut next = 0;
        for (bucket, count) in &self.buckets {
            put(bytes, u128::from(bucket - next));
            put(bytes, u128::from(*count));
            next = bucket + 1;
        }
        put(bytes, self.sum);
    }

    /// Reads what [`Histogram::encode`] wrote, and nothing else: what is cut off, goes on or contradicts itself is an
    /// error.
    pub fn decode(bytes: &[u8]) -> Result<Self, Trouble> {
        let mut reader = Reader::new(bytes);
        let histogram = Self::decode_from(&mut reader)?;
        reader.end()?;
        Ok(histogram)
    }

    pub(super) fn decode_from(reader: &mut Reader<'_>) -> Result<Self, Trouble> {
        reader.form(FORM)?;
        let many = reader.at_most(u64::from(LAST_BUCKET) + 1)?;
        // Each bucket takes two bytes at least, so that a false number can't ask for more memory than it brings.
        let mut buckets = Vec::with_capacity((many as usize).min(reader.left() / 2));
        let (mut next, mut total) = (0u64, 0u64);
        for _ in 0..many {
            let bucket = next + reader.at_most(u64::from(LAST_BUCKET))?;
            let count = reader.at_most(u64::MAX)?;
            if bucket > u64::from(LAST_BUCKET) || count == 0 {
                return Err(Trouble::Contradiction);
            }
            total = total.checked_add(count).ok_or(Trouble::Contradiction)?;
            buckets.push((bucket as u16, count));
            next = bucket + 1;
        }
        let histogram = Histogram { buckets, count: total, sum: reader.number()? };
        let (low, high) = histogram.bounds_of_sum();
        if histogram.sum < low || histogram.sum > high {
            return Err(Trouble::Contradiction);
        }
        Ok(histogram)
    }
}

/// The bucket that a value belongs to.
fn bucket_of(value: u64) -> u16 {
    let shift = (63 - PRECISION).saturating_sub(value.leading_zeros());
    ((shift << PRECISION) + (value >> shift) as u32) as u16
}

/// The first and the last value of a bucket.
fn range_of(bucket: u16) -> (u64, u64) {
    let shift = (u32::from(bucket) >> PRECISION).saturating_sub(1);
    let part = u64::from(bucket) - (u64::from(shift) << PRECISION);
    let first = part << shift;
    (first, first + ((1 << shift) - 1))
}

/// What stands for the values of a bucket.
fn middle(bucket: u16) -> f64 {
    let (first, last) = range_of(bucket);
    first as f64 + (last - first) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::percentile::{percentile, sorted};
    use super::*;

    fn of(values: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.add(*value));
        histogram
    }

    /// Numbers of every size.
    fn values() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec((any::<u64>(), 0u32..64).prop_map(|(value, shift)| value >> shift), 0..60)
    }

    fn close(found: f64, wanted: f64) -> bool {
        (found - wanted).abs() <= RELATIVE_ERROR * wanted.abs()
    }

    #[test]
    fn buckets_meet() {
        let mut next = Some(0);
        for bucket in 0..=LAST_BUCKET {
            let (first, last) = range_of(bucket);
            assert_eq!(Some(first), next, "{bucket}");
            assert_eq!((bucket_of(first), bucket_of(last)), (bucket, bucket));
            assert!(close(middle(bucket), first as f64) && close(middle(bucket), last as f64), "{bucket}");
            next = last.checked_add(1);
        }
        assert_eq!(next, None, "the last bucket ends with the last number");
    }

    #[test]
    fn small_numbers_are_exact_and_large_ones_nearly() {
        let histogram = of(&[1, 2, 3, 4, 1_000_000]);
        assert_eq!(histogram.percentile(0.5), Some(Approximate(3.0)));
        // The place is 0.25 · 4 = 1, which is the second value.
        assert_eq!(histogram.percentile(0.25), Some(Approximate(2.0)));
        // 0.3 · 4 = 1.2: between 2 and 3.
        assert!((histogram.percentile(0.3).unwrap().0 - 2.2).abs() < 1e-12);
        assert_eq!((histogram.count(), histogram.sum(), histogram.mean()), (5, 1_000_010, Some(200_002.0)));
        // 1,000,000 lies in 2^19 (524,288) to 2^20: buckets of 8192, its own from 999,424 to 1,007,615.
        assert_eq!((histogram.min(), histogram.max()), (Some(1.0), Some(1_003_519.5)));
        assert_eq!((histogram.at_most(3.9), histogram.at_most(4.0), histogram.at_most(2e6)), (3, 4, 5));
        assert_eq!(histogram.ecdf(0.5).points, [(0.5, 1), (1.0, 2), (1.5, 3), (2.0, 4), (501_759.75, 5)]);
        // The form, two buckets: one 1 away from 0 with a count of 1, the one right after it with 2; the sum.
        assert_eq!(of(&[1, 2, 2]).encode(), [1, 2, 1, 1, 0, 2, 5]);
        assert_eq!(of(&[]).encode(), [1, 0, 0]);
        assert_eq!((of(&[]).percentile(0.5), of(&[]).mean(), of(&[]).min()), (None, None, None));
    }

    #[test]
    fn corrupt_bytes_are_refused() {
        for (bytes, why) in [
            (&[][..], Trouble::CutOff),
            (&[2, 0, 0], Trouble::Form),
            (&[1, 1, 1, 1], Trouble::CutOff),
            (&[1, 1, 1, 0, 0], Trouble::Contradiction),
            (&[1, 1, 1, 1, 2], Trouble::Contradiction),
            (&[1, 0, 0, 0], Trouble::GoesOn),
            (&[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0], Trouble::TooLarge),
            (&[1, 1, 0xff, 0xff, 0x7f, 1, 1], Trouble::TooLarge),
            (&[1, 0x80, 0, 0], Trouble::TooLarge),
        ] {
            assert_eq!(Histogram::decode(bytes), Err(why), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn percentiles_are_within_the_error(values in values(), q in 0.0..=1.0f64) {
            let exact = percentile(&sorted(values.iter().map(|value| *value as f64).collect()), q);
            let found = of(&values).percentile(q).map(|found| found.0);
            prop_assert_eq!(exact.is_some(), found.is_some());
            if let (Some(exact), Some(found)) = (exact, found) {
                // The place between two large neighbours is computed in floating point, too.
                prop_assert!((found - exact).abs() <= RELATIVE_ERROR * exact * (1.0 + 1e-9), "{} {}", found, exact);
            }
        }

        #[test]
        fn what_is_added_up_is_the_histogram_of_all(one in values(), other in values()) {
            let mut merged = of(&one);
            merged.merge(&of(&other));
            prop_assert_eq!(&merged, &of(&[one, other].concat()));
        }

        #[test]
        fn what_is_removed_was_never_there(kept in values(), gone in values()) {
            let mut histogram = of(&[kept.clone(), gone.clone()].concat());
            for value in &gone {
                prop_assert!(histogram.remove(*value));
            }
            prop_assert_eq!(&histogram, &of(&kept));
            let strange = kept.iter().fold(0u64, |all, value| all.max(*value)).saturating_mul(4).max(9);
            if !kept.iter().any(|value| bucket_of(*value) == bucket_of(strange)) {
                prop_assert!(!histogram.remove(strange));
                prop_assert_eq!(&histogram, &of(&kept));
            }
        }

        #[test]
        fn bytes_hold_all_of_it(values in values()) {
            let bytes = of(&values).encode();
            prop_assert_eq!(Histogram::decode(&bytes), Ok(of(&values)));
            for end in 0..bytes.len() {
                prop_assert!(Histogram::decode(&bytes[..end]).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(histogram) = Histogram::decode(&bytes) {
                prop_assert_eq!(histogram.encode(), bytes);
            }
        }
    }
}
