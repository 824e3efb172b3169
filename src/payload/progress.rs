//! How far a payload has come, or gone, and when: its deciles, its partials and its curve (no I/O).

use crate::measurement::{CURVE_POINTS, Curve, PARTIALS};

/// The marks of one payload. Times are microseconds after whatever the caller counts from.
#[derive(Clone, Debug)]
pub struct Progress {
    size: Option<u64>,
    passed: u64,
    complete: Option<u64>,
    deciles: [Option<u64>; 11],
    partials: [Option<u64>; PARTIALS.len()],
    curve: Thinned,
}

impl Progress {
    /// Nothing has passed yet of a payload of `size` bytes, or of one whose size is not known.
    pub fn new(size: Option<u64>) -> Self {
        Progress {
            size,
            passed: 0,
            complete: None,
            deciles: [None; 11],
            partials: [None; PARTIALS.len()],
            curve: Thinned::default(),
        }
    }

    /// Notes that `more` bytes had passed at `at`.
    pub fn advance(&mut self, at: u64, more: u64) {
        if more == 0 {
            return;
        }
        let before = self.passed;
        self.passed += more;
        self.curve.push(at, self.passed);
        let reached = |position: u64| before < position && position <= before + more;
        for (mark, position) in self.partials.iter_mut().zip(PARTIALS) {
            if reached(position) && self.size.is_none_or(|size| position <= size) {
                *mark = Some(at);
            }
        }
        match self.size {
            Some(size) => {
                for (tenths, mark) in self.deciles.iter_mut().enumerate() {
                    if reached(decile_position(size, tenths as u64)) {
                        *mark = Some(at);
                    }
                }
                if reached(size) {
                    self.complete = Some(at);
                }
            }
            None => {
                self.deciles[0].get_or_insert(at);
                self.complete = Some(at);
            }
        }
    }

    /// Takes `size` for the payload's size, unless one is known.
    pub fn announce(&mut self, size: u64) {
        self.size.get_or_insert(size);
    }

    /// The payload's size, if it is known.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// How many bytes have passed.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    /// When the last byte of the payload had passed; of a payload of unknown size, the last one so far.
    pub fn complete(&self) -> Option<u64> {
        self.complete
    }

    /// When 0, 10, … 100 % had passed; 0 is the first byte, and all there is without a size.
    pub fn deciles(&self) -> [Option<u64>; 11] {
        self.deciles
    }

    /// When as many bytes had passed as [`PARTIALS`] says; only those within the size.
    pub fn partials(&self) -> [Option<u64>; PARTIALS.len()] {
        self.partials
    }

    /// The curve so far.
    pub fn curve(&self) -> Curve {
        self.curve.points()
    }
}

/// How many bytes are `tenths` tenths of the payload; its first byte stands for none.
fn decile_position(size: u64, tenths: u64) -> u64 {
    (u128::from(size) * u128::from(tenths)).div_ceil(10).max(1) as u64
}

/// A curve that is thinned while it grows, as nobody knows beforehand how many points will come: once it is
/// full, the points stand farther apart.
#[derive(Clone, Debug, Default)]
struct Thinned {
    kept: Vec<(u64, u64)>,
    /// The newest point, where it is too near to the last one that is kept.
    newest: Option<(u64, u64)>,
    /// How many bytes lie between two points at least.
    least: u64,
}

impl Thinned {
    /// One of [`CURVE_POINTS`] is left for the newest point.
    const ROOM: usize = CURVE_POINTS - 1;

    /// Adds a point; `bytes` grows from one to the next. Of several at one time the last stands.
    fn push(&mut self, at: u64, bytes: u64) {
        match self.kept.last_mut() {
            Some(last) if at <= last.0 => last.1 = bytes,
            Some(last) if bytes - last.1 < self.least => self.newest = Some((at, bytes)),
            _ => {
                self.newest = None;
                self.kept.push((at, bytes));
                if self.kept.len() > Self::ROOM {
                    self.thin();
                }
            }
        }
    }

    /// Keeps about every second point: those that are at least twice as far apart as before, and as half
    /// the room would have them over all that has passed.
    fn thin(&mut self) {
        let passed = self.kept.last().map_or(0, |last| last.1);
        self.least = (2 * self.least).max(passed.div_ceil(Self::ROOM as u64 / 2));
        self.newest = self.kept.last().copied();
        let (least, mut before) = (self.least, None);
        self.kept.retain(|(_, bytes)| {
            let keep = before.is_none_or(|before| bytes - before >= least);
            if keep {
                before = Some(*bytes);
            }
            keep
        });
        self.newest = self.newest.filter(|newest| self.kept.last() != Some(newest));
    }

    fn points(&self) -> Curve {
        self.kept.iter().copied().chain(self.newest).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn deciles_of_tiny_and_huge_payloads_are_in_range() {
        assert_eq!(decile_position(1, 0), 1);
        assert_eq!(decile_position(1, 10), 1);
        assert_eq!(decile_position(u64::MAX, 10), u64::MAX);
    }

    #[test]
    fn marks_lie_where_the_bytes_passed() {
        let mut progress = Progress::new(Some(20_480));
        (1..=20_480 / 512).for_each(|i| progress.advance(i, 512));
        assert_eq!(progress.deciles(), std::array::from_fn(|tenths| Some((4 * tenths as u64).max(1))));
        assert_eq!(progress.partials()[..3], [Some(20), Some(40), None]);
        assert_eq!((progress.complete(), progress.passed()), (Some(40), 20_480));
    }

    #[test]
    fn few_points_are_all_kept() {
        let mut curve = Thinned::default();
        assert_eq!(curve.points(), []);
        curve.push(5, 10);
        curve.push(7, 11);
        curve.push(7, 12);
        curve.push(900, 13);
        assert_eq!(curve.points(), [(5, 10), (7, 12), (900, 13)]);
    }

    #[test]
    fn a_long_steady_curve_is_evenly_thinned() {
        let mut curve = Thinned::default();
        (1..=100_000u64).for_each(|i| curve.push(i * 10, i * 498));
        let points = curve.points();
        assert!((30..=CURVE_POINTS).contains(&points.len()), "{}", points.len());
        let gaps: Vec<u64> = points.windows(2).map(|two| two[1].1 - two[0].1).collect();
        let (inner, widest) = (&gaps[..gaps.len() - 1], gaps.iter().max().unwrap());
        assert!(inner.iter().all(|gap| gap * 2 >= *widest), "{gaps:?}");
    }

    proptest! {
        #[test]
        fn a_curve_grows_is_short_and_has_both_ends(
            steps in prop::collection::vec((0u64..3, prop_oneof![1u64..3, 1u64..100_000]), 1..1000),
        ) {
            let (mut curve, mut at, mut bytes, mut all) = (Thinned::default(), 0, 0, Vec::new());
            for (later, more) in steps {
                (at, bytes) = (at + later, bytes + more);
                curve.push(at, bytes);
                all.retain(|(other, _)| *other != at);
                all.push((at, bytes));
                // It may be asked for at any time.
                let points = curve.points();
                prop_assert!(points.len() <= CURVE_POINTS);
                prop_assert!(points.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1), "{points:?}");
                prop_assert_eq!((points.first(), points.last()), (all.first(), all.last()));
                prop_assert!(points.iter().all(|point| all.contains(point)), "a point that never was: {points:?}");
                prop_assert!(all.len() > CURVE_POINTS / 2 || points.len() == all.len(), "needlessly thinned");
            }
        }
    }
}
