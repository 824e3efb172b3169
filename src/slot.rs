//! The grid of planned times, and what became of each slot (no I/O).
//!
//! An experiment's slots lie on a fixed grid of wall-clock time: `offset + k · every` after the Unix
//! epoch. The grid knows nothing of when perfd was started, so a restart neither fires everything at
//! once nor shifts the schedule. A slot is identified by its experiment and its planned time.

use std::time::Duration;

use serde::Serialize;

use crate::clock::UnixMicros;

/// The planned times of one experiment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    every: i64,
    offset: i64,
}

impl Grid {
    /// The grid with a slot every `every` (at least 1 µs), the first one `offset` after the epoch.
    pub fn new(every: Duration, offset: Duration) -> Self {
        let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        let every = micros(every).max(1);
        Grid { every, offset: micros(offset).rem_euclid(every) }
    }

    /// The time between two slots.
    pub fn every(&self) -> Duration {
        Duration::from_micros(self.every.unsigned_abs())
    }

    /// The first planned time later than `t`.
    pub fn next_after(&self, t: UnixMicros) -> UnixMicros {
        UnixMicros(self.latest_at(t).0.saturating_add(self.every))
    }

    /// The latest planned time that is not later than `t`.
    pub fn latest_at(&self, t: UnixMicros) -> UnixMicros {
        let into = t.0.saturating_sub(self.offset).rem_euclid(self.every);
        UnixMicros(t.0.saturating_sub(into))
    }

    /// How many planned times lie in `after < planned <= until`.
    pub fn count_between(&self, after: UnixMicros, until: UnixMicros) -> u64 {
        let (first, last) = (self.next_after(after).0, self.latest_at(until).0);
        if last < first { 0 } else { ((last - first) / self.every) as u64 + 1 }
    }
}

/// What identifies a slot: its experiment and its planned time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct SlotId {
    /// The experiment's name.
    pub experiment: String,
    /// When it was due by the grid (jitter not included).
    pub planned: UnixMicros,
}

/// What became of a slot that came due. `Running` is the one state that does not last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    /// Begun, and not ended yet.
    Running,
    /// It was tried, whatever the outcome.
    Done,
    /// It came due while perfd was running, but was not tried; the reason says why.
    Skipped,
    /// It was begun and cut off; the reason says by what.
    Aborted,
    /// It came due while perfd was not running (or the clock jumped over it).
    Missed,
}

impl SlotState {
    /// Every state, with the word that the store and the API use for it.
    pub const ALL: [(SlotState, &'static str); 5] = [
        (SlotState::Running, "running"),
        (SlotState::Done, "done"),
        (SlotState::Skipped, "skipped"),
        (SlotState::Aborted, "aborted"),
        (SlotState::Missed, "missed"),
    ];

    /// The state's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The state of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(s, _)| *s)
    }
}

/// Why a slot was skipped or aborted, or done in part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotReason {
    /// Skipped: the experiment's previous run was still going.
    Busy,
    /// Skipped: the configuration names no public host to measure.
    NoPublicHost,
    /// Skipped: the store could not be written.
    StoreDown,
    /// Aborted: perfd was told to stop in the middle.
    Shutdown,
    /// Aborted: perfd died in the middle (found at the next start).
    Died,
    /// Aborted: it was measured, and the store refused the result, which is in the log alone.
    ResultRefused,
    /// Skipped, wholly or for one of its tors: the tor that perfd starts for it was not ready.
    TorDown,
    /// Skipped, wholly or for one of its tors: the onion service to measure was not published.
    OnionUnpublished,
}

impl SlotReason {
    /// Every reason, with the word that the store and the API use for it.
    pub const ALL: [(SlotReason, &'static str); 8] = [
        (SlotReason::Busy, "busy"),
        (SlotReason::NoPublicHost, "no_public_host"),
        (SlotReason::StoreDown, "store_down"),
        (SlotReason::Shutdown, "shutdown"),
        (SlotReason::Died, "died"),
        (SlotReason::ResultRefused, "result_refused"),
        (SlotReason::TorDown, "tor_down"),
        (SlotReason::OnionUnpublished, "onion_unpublished"),
    ];

    /// The reason's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The reason of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(r, _)| *r)
    }
}

/// One row of the slot ledger: one slot, or a gap of several that share one fate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SlotRow {
    /// The experiment's name.
    pub experiment: String,
    /// The planned time; of a gap, the first one.
    pub planned: UnixMicros,
    /// The last planned time of a gap; equal to `planned` where the row stands for one slot.
    pub planned_last: UnixMicros,
    /// How many slots the row stands for, at least 1.
    pub count: u64,
    /// What became of it.
    pub state: SlotState,
    /// Why, where it was skipped or aborted; of one that was done, why not through all of its tors.
    pub reason: Option<SlotReason>,
    /// When it was begun (jitter and lateness included); absent where it never was.
    pub started: Option<UnixMicros>,
    /// When it ended; absent while running, and where it never began.
    pub ended: Option<UnixMicros>,
}

impl SlotRow {
    /// How many of its slots were planned within `from <= planned < until`: those of a gap are equally far apart.
    pub fn count_within(&self, from: UnixMicros, until: UnixMicros) -> u64 {
        let span = i128::from(self.planned_last.0) - i128::from(self.planned.0);
        let every = (span / i128::from(self.count.saturating_sub(1).max(1))).max(1);
        // How many are planned before a moment.
        let before = |at: UnixMicros| match i128::from(at.0) - i128::from(self.planned.0) {
            _ if at > self.planned_last => self.count,
            after if after <= 0 => 0,
            after => u64::try_from((after - 1) / every + 1).unwrap_or(u64::MAX).min(self.count),
        };
        before(until).saturating_sub(before(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_and_values_match() {
        for (state, word) in SlotState::ALL {
            assert_eq!((state.as_str(), SlotState::parse(word)), (word, Some(state)));
        }
        for (reason, word) in SlotReason::ALL {
            assert_eq!((reason.as_str(), SlotReason::parse(word)), (word, Some(reason)));
        }
    }

    proptest! {
        #[test]
        fn the_slots_of_a_gap_are_counted_where_the_grid_has_them(
            every in 1u64..100, offset in 0u64..100, first in -1000i64..1000, count in 1u64..50, from in -1500i64..7000,
            length in 0i64..3000,
        ) {
            let grid = Grid::new(Duration::from_micros(every), Duration::from_micros(offset));
            let planned = grid.next_after(UnixMicros(first));
            let planned_last = UnixMicros(planned.0 + (count as i64 - 1) * every as i64);
            let gap = SlotRow {
                experiment: String::new(), planned, planned_last, count, state: SlotState::Missed, reason: None,
                started: None, ended: None,
            };
            let all = (0..count as i64).map(|k| planned.0 + k * every as i64);
            let expected = all.filter(|at| (from..from + length).contains(at)).count() as u64;
            prop_assert_eq!(gap.count_within(UnixMicros(from), UnixMicros(from + length)), expected);
        }

        #[test]
        fn the_grid_is_gapless(every in 1u64..10_000_000_000, offset in 0u64..10_000_000_000,
                               t in -1_000_000_000_000i64..4_000_000_000_000_000) {
            let grid = Grid::new(Duration::from_micros(every), Duration::from_micros(offset));
            let (at, next) = (grid.latest_at(UnixMicros(t)), grid.next_after(UnixMicros(t)));
            prop_assert!(at.0 <= t && t < next.0);
            prop_assert_eq!(next.0 - at.0, every as i64);
            prop_assert_eq!(grid.latest_at(next), next);
            prop_assert_eq!((next.0 - offset as i64).rem_euclid(every as i64), 0);
            prop_assert_eq!(grid.count_between(at, next), 1);
            prop_assert_eq!(grid.count_between(at, UnixMicros(next.0 - 1)), 0);
            prop_assert_eq!(grid.count_between(UnixMicros(at.0 - 1), next), 2);
        }
    }
}
