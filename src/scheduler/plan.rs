//! What one experiment is to do now: the rules of the schedule (no I/O, no clock of its own).
//!
//! A plan is told the time and answers with what is due. Every slot that comes due is answered once,
//! to be run or as part of a gap; a clock that steps back makes no slot come due twice, one that jumps
//! ahead makes a gap.

use std::time::Duration;

use crate::clock::UnixMicros;
use crate::slot::Grid;

/// The schedule of one experiment, and how far it has been worked off.
#[derive(Clone, Debug)]
pub struct Plan {
    grid: Grid,
    grace: Duration,
    /// Every slot planned up to here is accounted for.
    accounted: UnixMicros,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing before this time.
    Later(UnixMicros),
    /// The slot of this planned time, now.
    Run(UnixMicros),
    /// Slots that came due and can't be run any more.
    Gap(Gap),
    /// The clock was stepped back by more than an interval: [`Plan::resume`] goes on from there. Slots come
    /// due again that are in the ledger; the ledger tells those that were run from those that were missed.
    SteppedBack,
}

/// Slots in a row on the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The planned time of the first one.
    pub first: UnixMicros,
    /// The planned time of the last one.
    pub last: UnixMicros,
    /// How many, at least 1.
    pub count: u64,
}

impl Plan {
    /// A plan for slots of `grid` that may begin up to `grace` late, from `now` on: slots planned up to
    /// `now` are not this plan's.
    pub fn new(grid: Grid, grace: Duration, now: UnixMicros) -> Self {
        Plan { grid, grace, accounted: now }
    }

    /// Goes on from `now`, wherever it is.
    pub fn resume(&mut self, now: UnixMicros) {
        self.accounted = now;
    }

    /// What is due at `now`. Asked again without [`Plan::account`], it gives the same answer.
    pub fn due(&self, now: UnixMicros) -> Due {
        if now.plus(self.grid.every()) < self.accounted {
            return Due::SteppedBack;
        }
        let next = self.grid.next_after(self.accounted);
        if now < next {
            return Due::Later(next);
        }
        let latest = self.grid.latest_at(now);
        let in_time = now.since(latest) <= self.grace;
        if latest == next && in_time {
            return Due::Run(next);
        }
        let last = if in_time { self.grid.latest_at(UnixMicros(latest.0 - 1)) } else { latest };
        Due::Gap(Gap { first: next, last, count: self.grid.count_between(UnixMicros(next.0 - 1), last) })
    }

    /// The slots planned up to `planned` are accounted for.
    pub fn account(&mut self, planned: UnixMicros) {
        self.accounted = self.accounted.max(planned);
    }
}

impl Gap {
    /// The gap's part up to `time` and its part after it.
    pub fn split_at(self, time: UnixMicros, grid: &Grid) -> (Option<Gap>, Option<Gap>) {
        let part = |first: UnixMicros, last: UnixMicros| {
            (first <= last).then(|| Gap { first, last, count: grid.count_between(UnixMicros(first.0 - 1), last) })
        };
        let boundary = grid.latest_at(time);
        (part(self.first, self.last.min(boundary)), part(self.first.max(grid.next_after(boundary)), self.last))
    }
}

/// How late a run may begin: it must be over before the next slot, but a second's lateness is forgiven
/// where the timeout leaves less.
pub fn grace(every: Duration, timeout: Duration, jitter: Duration) -> Duration {
    every.saturating_sub(timeout).saturating_sub(jitter).max(Duration::from_secs(1)).min(every)
}

/// How long after its planned time a slot's run begins: a number between 0 and `jitter`, drawn from the
/// experiment's name and the planned time alone, so that it can be told again later.
pub fn jitter_of(experiment: &str, planned: UnixMicros, jitter: Duration) -> Duration {
    use sha2::{Digest, Sha256};
    let digest = Sha256::new().chain_update(experiment).chain_update(planned.0.to_be_bytes()).finalize();
    let drawn = digest.iter().take(8).fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    let micros = (u128::from(drawn) * (jitter.as_micros() + 1)) >> 64;
    Duration::from_micros(micros as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: i64 = 1_000_000;

    fn at(seconds: i64) -> UnixMicros {
        UnixMicros(seconds * SECOND)
    }

    fn grid() -> Grid {
        Grid::new(Duration::from_secs(10), Duration::ZERO)
    }

    fn plan(now: i64) -> Plan {
        Plan::new(grid(), Duration::from_secs(2), at(now))
    }

    fn gap(first: i64, last: i64) -> Due {
        Due::Gap(Gap { first: at(first), last: at(last), count: ((last - first) / 10 + 1) as u64 })
    }

    #[test]
    fn slots_come_due_on_the_grid_whenever_perfd_was_started() {
        let mut plan = plan(103);
        assert_eq!(plan.due(at(103)), Due::Later(at(110)));
        assert_eq!(plan.due(at(110)), Due::Run(at(110)));
        assert_eq!(plan.due(at(112)), Due::Run(at(110)), "within the grace");
        plan.account(at(110));
        assert_eq!(plan.due(at(112)), Due::Later(at(120)));
    }

    #[test]
    fn a_clock_that_jumps_ahead_leaves_a_gap_and_goes_on() {
        let mut jumped = plan(100);
        assert_eq!(jumped.due(at(155)), gap(110, 150), "150 is too late as well");
        jumped.account(at(150));
        assert_eq!(jumped.due(at(155)), Due::Later(at(160)));

        let mut jumped = plan(100);
        assert_eq!(jumped.due(at(151)), gap(110, 140));
        jumped.account(at(140));
        assert_eq!(jumped.due(at(151)), Due::Run(at(150)), "the last one is still in time");
    }

    #[test]
    fn a_clock_that_steps_back_a_little_runs_nothing_twice() {
        let mut plan = plan(100);
        plan.account(at(110));
        assert_eq!(plan.due(at(109)), Due::Later(at(120)));
        assert_eq!(plan.due(at(110)), Due::Later(at(120)));
    }

    #[test]
    fn a_clock_that_steps_back_far_goes_on_from_there() {
        let mut plan = plan(1000);
        assert_eq!(plan.due(at(100)), Due::SteppedBack);
        plan.resume(at(100));
        assert_eq!(plan.due(at(100)), Due::Later(at(110)));
        assert_eq!(plan.due(at(110)), Due::Run(at(110)));
    }

    #[test]
    fn a_gap_can_be_split_by_cause() {
        let whole = Gap { first: at(110), last: at(150), count: 5 };
        let part = |first, last| match gap(first, last) {
            Due::Gap(gap) => Some(gap),
            _ => None,
        };
        assert_eq!(whole.split_at(at(125), &grid()), (part(110, 120), part(130, 150)));
        assert_eq!(whole.split_at(at(10), &grid()), (None, part(110, 150)));
        assert_eq!(whole.split_at(at(150), &grid()), (part(110, 150), None));
    }

    #[test]
    fn jitter_is_within_its_bound_and_spread() {
        let bound = Duration::from_secs(60);
        let drawn: Vec<_> = (0..1000).map(|i| jitter_of("50kib", at(i * 300), bound)).collect();
        assert!(drawn.iter().all(|d| *d <= bound));
        let mean = drawn.iter().sum::<Duration>() / 1000;
        assert!((27..33).contains(&mean.as_secs()), "{mean:?}");
        assert_eq!(jitter_of("x", at(1), Duration::ZERO), Duration::ZERO);
    }

    proptest! {
        /// Whatever the clock does, every grid time up to its furthest is answered once.
        #[test]
        fn every_slot_that_came_due_is_accounted_for_once(
            steps in prop::collection::vec(prop_oneof![4 => 0i64..15, 1 => 15i64..500, 1 => -300i64..0], 1..100),
        ) {
            let mut plan = plan(1000);
            let mut ledger: std::collections::BTreeMap<UnixMicros, &str> = Default::default();
            let (mut now, start, mut runs) = (1000i64, 1000i64, 0usize);
            for step in steps {
                now = (now + step).max(start);
                for _ in 0..1000 {
                    match plan.due(at(now)) {
                        Due::Later(later) => { prop_assert!(later > at(now)); break }
                        Due::Run(planned) => {
                            // As the store does it: what was run is not run again, what was missed may be.
                            if ledger.get(&planned) != Some(&"done") {
                                ledger.insert(planned, "done");
                                runs += 1;
                            }
                            plan.account(planned);
                        }
                        Due::Gap(gap) => {
                            let mut planned = gap.first;
                            let mut count = 0;
                            while planned <= gap.last {
                                ledger.entry(planned).or_insert("missed");
                                planned = grid().next_after(planned);
                                count += 1;
                            }
                            prop_assert_eq!(count, gap.count);
                            plan.account(gap.last);
                        }
                        Due::SteppedBack => plan.resume(at(now)),
                    }
                }
                let due = grid().count_between(at(start), at(now));
                let accounted = ledger.range(..=at(now)).count() as u64;
                prop_assert_eq!(due, accounted);
                prop_assert_eq!(runs, ledger.values().filter(|fate| **fate == "done").count());
            }
        }
    }
}
