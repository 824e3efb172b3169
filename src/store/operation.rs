//! The changes that the store knows, each carried out inside a transaction that others share.

use rusqlite::{Connection, Error, ErrorCode, OptionalExtension, Row, params};

use super::NewResult;
use super::error::StoreError;
use super::rows::{INSERT_RESULT, SLOT_COLUMNS, result_values, select_slots, slot_row, slot_values};
use crate::clock::UnixMicros;
use crate::slot::{Grid, SlotId, SlotReason, SlotRow, SlotState};

/// A change, as a caller asked for it.
#[derive(Debug)]
pub(super) enum Operation {
    BeginSlot { slot: SlotId, started: UnixMicros },
    FinishSlot(Finish),
    RecordSlots(SlotRow),
    AbortUnfinished { now: UnixMicros },
    ForgetMissedAfter { experiment: String, grid: Grid, now: UnixMicros },
}

/// How a running slot ended.
#[derive(Debug)]
pub(super) struct Finish {
    pub slot: SlotId,
    pub state: SlotState,
    pub reason: Option<SlotReason>,
    pub ended: UnixMicros,
    pub results: Vec<NewResult>,
}

/// What an operation gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Done {
    Nothing,
    Revisions(Vec<i64>),
    Count(u64),
}

/// Why an operation was not carried out.
#[derive(Debug)]
pub(super) enum Fault {
    /// The request itself; only its caller is told, and the others' go on.
    Request(StoreError),
    /// The store: the whole transaction is rolled back and tried again.
    Store(Error),
}

/// Carries `operation` out.
///
/// `again` says that an earlier transaction with it failed. SQLite may have committed one whose
/// commit it called failed (when only the last sync went wrong), so what is found done is then taken
/// for done.
pub(super) fn apply(conn: &Connection, operation: &Operation, again: bool) -> Result<Done, Fault> {
    match operation {
        Operation::BeginSlot { slot, started } => begin_slot(conn, slot, *started, again),
        Operation::FinishSlot(finish) => finish_slot(conn, finish, again),
        Operation::RecordSlots(row) => record_slots(conn, row),
        Operation::AbortUnfinished { now } => abort_unfinished(conn, *now),
        Operation::ForgetMissedAfter { experiment, grid, now } => forget_missed_after(conn, experiment, grid, *now),
    }
}

impl From<Error> for Fault {
    /// What SQLite calls neither a broken rule nor a bad value is taken for the store's fault; what
    /// rusqlite alone found (a number out of range, a row that makes no sense) is the request's.
    fn from(error: Error) -> Self {
        use ErrorCode::{ConstraintViolation, TooBig, TypeMismatch};
        match error.sqlite_error_code() {
            None | Some(ConstraintViolation | TypeMismatch | TooBig) => {
                Fault::Request(StoreError::Refused(error.to_string()))
            }
            Some(_) => Fault::Store(error),
        }
    }
}

fn begin_slot(conn: &Connection, slot: &SlotId, started: UnixMicros, again: bool) -> Result<Done, Fault> {
    let row = SlotRow {
        experiment: slot.experiment.clone(),
        planned: slot.planned,
        planned_last: slot.planned,
        count: 1,
        state: SlotState::Running,
        reason: None,
        started: Some(started),
        ended: None,
    };
    if insert_slot(conn, &row)? || (again && find_slot(conn, slot)? == Some(row)) {
        return Ok(Done::Nothing);
    }
    Err(Fault::Request(StoreError::SlotTaken(slot.clone())))
}

fn finish_slot(conn: &Connection, finish: &Finish, again: bool) -> Result<Done, Fault> {
    let slot = &finish.slot;
    let changed = conn
        .prepare_cached(
            "UPDATE slot SET state = ?3, reason = ?4, ended_us = ?5 \
             WHERE experiment = ?1 AND planned_us = ?2 AND state = 'running'",
        )?
        .execute(params![
            slot.experiment,
            slot.planned.0,
            finish.state.as_str(),
            finish.reason.map(SlotReason::as_str),
            finish.ended.0
        ])?;
    if changed == 0 {
        let done =
            find_slot(conn, slot)?.is_some_and(|row| row.state == finish.state && row.ended == Some(finish.ended));
        if !(again && done) {
            return Err(Fault::Request(StoreError::SlotNotRunning(slot.clone())));
        }
        return stored_revisions(conn, &finish.results).map(Done::Revisions);
    }
    finish.results.iter().map(|result| insert_result(conn, result)).collect::<Result<_, _>>().map(Done::Revisions)
}

fn insert_result(conn: &Connection, new: &NewResult) -> Result<i64, Fault> {
    let configuration = configuration_id(conn, &new.configuration)?;
    let revision = next_revision(conn)?;
    let values = result_values(revision, configuration, new)?;
    conn.prepare_cached(&INSERT_RESULT)?.execute(rusqlite::params_from_iter(values))?;
    Ok(revision)
}

fn stored_revisions(conn: &Connection, results: &[NewResult]) -> Result<Vec<i64>, Fault> {
    let mut find = conn.prepare_cached("SELECT revision FROM result WHERE id = ?1")?;
    let revision = |new: &NewResult| find.query_row([new.measurement.id.as_str()], |row| row.get(0));
    Ok(results.iter().map(revision).collect::<Result<_, _>>()?)
}

/// The number of this configuration, which is stored if it is new.
fn configuration_id(conn: &Connection, body: &str) -> Result<i64, Fault> {
    conn.prepare_cached("INSERT INTO configuration (body) VALUES (?1) ON CONFLICT (body) DO NOTHING")?
        .execute([body])?;
    Ok(conn.prepare_cached("SELECT id FROM configuration WHERE body = ?1")?.query_row([body], |row| row.get(0))?)
}

/// A revision that no row has ever had.
fn next_revision(conn: &Connection) -> Result<i64, Fault> {
    Ok(conn
        .prepare_cached("UPDATE counter SET value = value + 1 WHERE name = 'revision' RETURNING value")?
        .query_row([], |row| row.get(0))?)
}

fn record_slots(conn: &Connection, row: &SlotRow) -> Result<Done, Fault> {
    insert_slot(conn, row).map(|new| Done::Count(u64::from(new)))
}

fn abort_unfinished(conn: &Connection, now: UnixMicros) -> Result<Done, Fault> {
    let aborted = conn
        .prepare_cached("UPDATE slot SET state = 'aborted', reason = ?1, ended_us = ?2 WHERE state = 'running'")?
        .execute(params![SlotReason::Died.as_str(), now.0])?;
    Ok(Done::Count(aborted as u64))
}

fn forget_missed_after(conn: &Connection, experiment: &str, grid: &Grid, now: UnixMicros) -> Result<Done, Fault> {
    let future: Vec<SlotRow> = conn
        .prepare_cached(&select_slots(
            "INDEXED BY slot_last WHERE experiment = ?1 AND planned_last_us > ?2 AND state = 'missed'",
        ))?
        .query_map(params![experiment, now.0], slot_row)?
        .collect::<Result<_, _>>()?;
    let mut forgotten = 0;
    for row in future {
        let due = if row.planned > now { 0 } else { due_until(&row, grid, now) };
        forgotten += row.count.saturating_sub(due);
        if due == 0 {
            conn.prepare_cached("DELETE FROM slot WHERE experiment = ?1 AND planned_us = ?2")?
                .execute(params![experiment, row.planned.0])?;
            continue;
        }
        let last = grid.latest_at(now).max(row.planned);
        conn.prepare_cached(
            "UPDATE slot SET planned_last_us = ?3, count = ?4 WHERE experiment = ?1 AND planned_us = ?2",
        )?
        .execute(params![experiment, row.planned.0, last.0, due as i64])?;
    }
    Ok(Done::Count(forgotten))
}

/// How many slots of a gap had come due by `now`; at least its first one, even if the grid has
/// changed since and knows no such slot.
fn due_until(gap: &SlotRow, grid: &Grid, now: UnixMicros) -> u64 {
    let before_first = UnixMicros(gap.planned.0.saturating_sub(1));
    grid.count_between(before_first, now).clamp(1, gap.count)
}

/// Adds the row, unless its planned slot is taken; says whether it did.
fn insert_slot(conn: &Connection, row: &SlotRow) -> Result<bool, Fault> {
    let added = conn
        .prepare_cached(&format!(
            "INSERT INTO slot ({SLOT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) \
             ON CONFLICT (experiment, planned_us) DO NOTHING"
        ))?
        .execute(slot_values(row)?)?;
    Ok(added == 1)
}

fn find_slot(conn: &Connection, slot: &SlotId) -> Result<Option<SlotRow>, Fault> {
    let row = |row: &Row<'_>| slot_row(row);
    Ok(conn
        .prepare_cached(&select_slots("WHERE experiment = ?1 AND planned_us = ?2"))?
        .query_row(params![slot.experiment, slot.planned.0], row)
        .optional()?)
}
