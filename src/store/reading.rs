//! What a question of statistics reads, each as one short read.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Result, named_params, params};

use super::connection::open_for_reading;
use super::query::Filter;
use super::rollup::{OWN, Series, decoded};
use super::rows::{Columns, select_slots, slot_row};
use super::runs::{self, PairRows};
use super::samples::{self, Wanted};
use super::{StoreError, schema};
use crate::clock::UnixMicros;
use crate::measurement::{Kind, ServerKind};
use crate::slot::SlotState;
use crate::stats::{Rollup, Sample};

/// Reads what statistics need.
pub struct Reading<'c> {
    conn: &'c Connection,
}

/// A series with its number, as far as the roll-ups know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its number in this store.
    pub id: i64,
    /// What its results have in common.
    pub series: Series,
    /// Whether perfd has measured any of them itself; the others were imported.
    pub own: bool,
}

/// What is stored of a day of a series: as long as it stays the same, so do the day's results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mark {
    /// Days since 1970.
    pub day: i64,
    /// The series' number.
    pub series: i64,
    /// The import's number; 0 for perfd's own.
    pub import: i64,
    /// The highest revision that touched it.
    pub revision: i64,
    /// How many results there were, whether or not their rows are still there.
    pub runs: u64,
}

/// How many slots came due, and how many of them were tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slots {
    /// Whatever the outcome.
    pub done: u64,
    /// In any state.
    pub planned: u64,
}

impl Slots {
    /// Adds others.
    pub fn add(&mut self, other: Slots) {
        self.done = self.done.saturating_add(other.done);
        self.planned = self.planned.saturating_add(other.planned);
    }

    /// The share of the planned ones that were done; `None` where none was planned.
    pub fn coverage(self) -> Option<f64> {
        (self.planned > 0).then(|| self.done as f64 / self.planned as f64)
    }
}

impl<'c> Reading<'c> {
    /// On this connection.
    pub(super) fn of(conn: &'c Connection) -> Self {
        Reading { conn }
    }

    /// The connection, for questions that only a test asks.
    #[cfg(test)]
    pub(super) fn conn(&self) -> &Connection {
        self.conn
    }

    /// The series that the filter lets through (whatever it says of times and outcome), by number.
    pub fn series(&self, filter: &Filter) -> Result<Vec<Known>> {
        let size = filter.size.map(|size| i64::try_from(size).unwrap_or(-1));
        self.conn
            .prepare_cached(
                "SELECT id, source, experiment, tor, kind, server, size, \
                 EXISTS (SELECT 1 FROM daily INDEXED BY daily_series WHERE series_id = id AND import_id = 0) \
                 FROM series \
                 WHERE (:source IS NULL OR source = :source) AND (:experiment IS NULL OR experiment = :experiment) \
                 AND (:tor IS NULL OR tor = :tor) AND (:kind IS NULL OR kind = :kind) \
                 AND (:server IS NULL OR server = :server) AND (:size IS NULL OR size = :size) ORDER BY id",
            )?
            .query_map(
                named_params! {
                    ":source": filter.source, ":experiment": filter.experiment, ":tor": filter.tor,
                    ":kind": filter.kind.map(Kind::as_str), ":server": filter.server.map(ServerKind::as_str),
                    ":size": size,
                },
                |row| {
                    let mut columns = Columns::of(row);
                    let id = columns.next()?;
                    let (source, experiment, tor) = (columns.next()?, columns.next()?, columns.next()?);
                    let (kind, server) = (columns.word(Kind::parse)?, columns.word(ServerKind::parse)?);
                    let size = columns.natural()?;
                    let series = Series { source, experiment, tor, kind, server, size };
                    Ok(Known { id, series, own: columns.next()? })
                },
            )?
            .collect()
    }

    /// What is stored of these days of a series, imports that are being read left out; by day.
    pub fn marks(&self, series: i64, days: RangeInclusive<i64>) -> Result<Vec<Mark>> {
        self.conn
            .prepare_cached(
                "SELECT day, import_id, revision, runs FROM daily INDEXED BY daily_series \
                 WHERE series_id = ?1 AND day BETWEEN ?2 AND ?3 \
                 AND (import_id = 0 OR import_id IN (SELECT id FROM import WHERE base IS NOT NULL)) \
                 ORDER BY day, import_id",
            )?
            .query_map([series, *days.start(), *days.end()], |row| {
                let mut columns = Columns::of(row);
                let (day, import, revision) = (columns.next()?, columns.next()?, columns.next()?);
                Ok(Mark { day, series, import, revision, runs: columns.natural()? })
            })?
            .collect()
    }

    /// The roll-up that a mark stands for; `None` if it is gone or can't be read.
    pub fn rollup(&self, mark: &Mark) -> Result<Option<Rollup>> {
        let body: Option<Vec<u8>> = self
            .conn
            .prepare_cached("SELECT body FROM daily WHERE day = ?1 AND series_id = ?2 AND import_id = ?3")?
            .query_row([mark.day, mark.series, mark.import], |row| row.get(0))
            .optional()?;
        Ok(body.and_then(|body| decoded(&body)))
    }

    /// Gives each result that the filter lets through, with the number of its import (0 for perfd's own): first
    /// perfd's own, then those that were imported, both by START.
    pub fn samples(&self, filter: &Filter, wanted: Wanted, mut give: impl FnMut(i64, Sample)) -> Result<()> {
        samples::each_own(self.conn, filter, wanted, |sample| give(OWN, sample))?;
        samples::each_imported(self.conn, filter, wanted, give)
    }

    /// The slots of an experiment by the day on which they were planned.
    pub fn slot_days(&self, experiment: &str, days: RangeInclusive<i64>) -> Result<BTreeMap<i64, Slots>> {
        self.conn
            .prepare_cached(
                "SELECT day, total(slots) FILTER (WHERE state = 'done'), total(slots) FROM slot_day \
                 WHERE experiment = ?1 AND day BETWEEN ?2 AND ?3 GROUP BY day",
            )?
            .query_map(params![experiment, *days.start(), *days.end()], |row| {
                let count = |at: usize| Ok::<_, rusqlite::Error>(row.get::<_, f64>(at)? as u64);
                Ok((row.get(0)?, Slots { done: count(1)?, planned: count(2)? }))
            })?
            .filter(|day| !matches!(day, Ok((_, Slots { planned: 0, .. }))))
            .collect()
    }

    /// The slots of an experiment that were planned within `from <= planned < until`, counted by the moment that
    /// `begin` gives for their planned time (its period's). Of a gap, each slot is counted where its grid has it.
    pub fn slots(
        &self,
        experiment: &str,
        from: UnixMicros,
        until: UnixMicros,
        begin: impl Fn(UnixMicros) -> (UnixMicros, UnixMicros),
    ) -> Result<BTreeMap<UnixMicros, Slots>> {
        let mut found: BTreeMap<UnixMicros, Slots> = BTreeMap::new();
        let mut statement = self.conn.prepare_cached(&select_slots(
            "WHERE experiment = ?1 AND planned_last_us >= ?2 AND planned_us < ?3 AND planned_us >= \
             coalesce((SELECT max(planned_us) FROM slot WHERE experiment = ?1 AND planned_us <= ?2), ?2) \
             ORDER BY planned_us",
        ))?;
        for row in statement.query_map(params![experiment, from.0, until.0], slot_row)? {
            let row = row?;
            let mut at = row.planned.max(from);
            while at < until && at <= row.planned_last {
                let (start, next) = begin(at);
                let planned = row.count_within(at, next.min(until));
                let done = if row.state == SlotState::Done { planned } else { 0 };
                if planned > 0 {
                    found.entry(start).or_default().add(Slots { done, planned });
                }
                if next <= at {
                    break;
                }
                at = next;
            }
        }
        Ok(found)
    }

    /// The runs of this experiment's slots of several, planned within `since <= planned < until`: the latest slots,
    /// as many as fit into `rows` rows.
    pub fn pairs(&self, experiment: &str, since: UnixMicros, until: UnixMicros, rows: usize) -> Result<PairRows> {
        runs::pairs(self.conn, experiment, since, until, rows)
    }
}

/// Asks a store's file from outside the service, for as long as it takes.
///
/// # Errors
/// [`StoreError::Unreadable`] if there is no such file, it is no store, one of an older perfd, or SQLite fails.
pub fn ask_file<T>(
    path: &Path,
    question: impl FnOnce(&Reading<'_>) -> Result<T>,
) -> std::result::Result<T, StoreError> {
    let unreadable = |error: rusqlite::Error| StoreError::Unreadable(error.to_string());
    let conn = open_for_reading(path, Duration::from_secs(5)).map_err(unreadable)?;
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(unreadable)?;
    if version != schema::VERSION as i64 {
        let reason =
            format!("it has version {version}, and this perfd knows {}; start perfd on it once", schema::VERSION);
        return Err(StoreError::Unreadable(reason));
    }
    question(&Reading::of(&conn)).map_err(unreadable)
}
