//! The changes that the store knows, each carried out inside a transaction that others share.

use rusqlite::{Connection, Error, ErrorCode, OptionalExtension, Row, params};

use super::error::StoreError;
use super::rollup::{self, OWN};
use super::rows::{INSERT_RESULT, SLOT_COLUMNS, result_values, select_slots, slot_row, slot_values};
use super::total::{Counted, Counts};
use super::{NewResult, PublishedDay, annotations, parts, published, samples, tors};
use crate::annotation::{Annotation, NewAnnotation};
use crate::circuit::{CircuitData, Evidence, LooseCircuit, TorEvent};
use crate::clock::UnixMicros;
use crate::measurement::{Phase, RunId};
use crate::slot::{Grid, SlotId, SlotReason, SlotRow, SlotState};

/// A change, as a caller asked for it.
#[derive(Debug)]
pub(super) enum Operation {
    BeginSlot { slot: SlotId, grid: Grid, started: UnixMicros },
    AddResult { slot: SlotId, result: Box<NewResult> },
    FinishSlot(Finish),
    RecordSlots { row: SlotRow, grid: Grid },
    AbortUnfinished { now: UnixMicros },
    CompleteRun { id: RunId, data: Box<CircuitData>, evidence: Evidence },
    RederiveRun { id: RunId, data: Box<CircuitData>, evidence: Evidence },
    RecordCircuits(Vec<LooseCircuit>),
    RecordTorEvents(Vec<TorEvent>),
    Annotate(Box<NewAnnotation>),
    AddToken { name: String, hash: String, created: UnixMicros },
    RemoveToken { name: String },
    Publish(PublishedDay),
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
    Revision(Option<i64>),
    Rederived(Rederived),
    Count(u64),
    Annotated(Box<Annotation>),
}

/// What became of a run whose circuit was derived again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rederived {
    /// It was replaced, and the run has this revision now.
    Changed(i64),
    /// Exactly this was stored already.
    Same,
    /// Other evidence was stored meanwhile (or the run is gone), so what was derived from the old one is void.
    Overtaken,
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
        Operation::BeginSlot { slot, grid, started } => begin_slot(conn, slot, grid, *started, again),
        Operation::AddResult { slot, result } => add_result(conn, slot, result, again),
        Operation::FinishSlot(finish) => finish_slot(conn, finish, again),
        Operation::RecordSlots { row, grid } => record_slots(conn, row, grid),
        Operation::AbortUnfinished { now } => abort_unfinished(conn, *now),
        Operation::CompleteRun { id, data, evidence } => complete_run(conn, id, data, evidence, again),
        Operation::RederiveRun { id, data, evidence } => rederive_run(conn, id, data, evidence, again),
        Operation::RecordCircuits(circuits) => Ok(Done::Count(tors::put_circuits(conn, circuits)?)),
        // A day that an earlier attempt stored after all counts as one that was closed already.
        Operation::Publish(day) => Ok(Done::Count(published::publish(conn, day)?.into())),
        Operation::RecordTorEvents(events) => Ok(Done::Count(tors::put_events(conn, events)?)),
        Operation::Annotate(new) => annotations::put(conn, new, again).map(|it| Done::Annotated(Box::new(it))),
        Operation::AddToken { name, hash, created } => annotations::add_token(conn, name, hash, *created, again),
        Operation::RemoveToken { name } => annotations::remove_token(conn, name),
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

fn begin_slot(conn: &Connection, slot: &SlotId, grid: &Grid, started: UnixMicros, again: bool) -> Result<Done, Fault> {
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
    match rows_within(conn, &slot.experiment, slot.planned, slot.planned)?.pop() {
        None => {}
        Some(found) if again && found == row => return Ok(Done::Nothing),
        Some(gap) if gap.state == SlotState::Missed => take_out(conn, &gap, slot.planned, grid)?,
        Some(_) => return Err(Fault::Request(StoreError::SlotTaken(slot.clone()))),
    }
    insert_slot(conn, &row)?;
    Ok(Done::Nothing)
}

/// Takes one slot out of a gap that was missed: it comes due after all, since a clock was wrong.
fn take_out(conn: &Connection, gap: &SlotRow, planned: UnixMicros, grid: &Grid) -> Result<(), Fault> {
    conn.prepare_cached("DELETE FROM slot WHERE experiment = ?1 AND planned_us = ?2")?
        .execute(params![gap.experiment, gap.planned.0])?;
    insert_part(conn, gap, gap.planned, UnixMicros(planned.0 - 1), grid)?;
    insert_part(conn, gap, UnixMicros(planned.0 + 1), gap.planned_last, grid)?;
    Ok(())
}

/// Stores one of several results of a slot that goes on running.
fn add_result(conn: &Connection, slot: &SlotId, result: &NewResult, again: bool) -> Result<Done, Fault> {
    if find_slot(conn, slot)?.is_none_or(|row| row.state != SlotState::Running) {
        return Err(Fault::Request(StoreError::SlotNotRunning(slot.clone())));
    }
    if again && let Ok(revisions) = stored_revisions(conn, std::slice::from_ref(result)) {
        return Ok(Done::Revisions(revisions));
    }
    insert_result(conn, result).map(|revision| Done::Revisions(vec![revision]))
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
    put_result(conn, revision, configuration, new)?;
    let mut counts = Counts::default();
    counts.add(&counted(new));
    counts.store(conn)?;
    rollup::add(conn, OWN, &[(revision, samples::of_new(new))])?;
    Ok(revision)
}

/// Stores a result under this revision, with all that is kept beside it.
pub(super) fn put_result(conn: &Connection, revision: i64, configuration: i64, new: &NewResult) -> Result<(), Fault> {
    let values = result_values(revision, configuration, new)?;
    conn.prepare_cached(&INSERT_RESULT)?.execute(rusqlite::params_from_iter(values))?;
    let run = &new.measurement;
    parts::put_curve(conn, &run.id, &run.curve)?;
    if let Some((data, evidence)) = &new.circuit {
        parts::put_circuit(conn, &run.id, data, evidence)?;
    }
    Ok(())
}

/// What a result adds to the counters.
pub(super) fn counted(new: &NewResult) -> Counted<'_> {
    let run = &new.measurement;
    Counted {
        experiment: &new.experiment,
        outcome: run.outcome.word(),
        phase: run.outcome.phase().map(Phase::as_str),
        cause: run.outcome.failure().map(|failure| failure.cause.as_str()),
        first_byte: run.time_to_first_byte(),
        last_byte: run.time_to_last_byte(),
        read: run.read,
        written: run.written,
    }
}

/// Replaces what tor told of a run, and moves its row to a new revision, so that those who follow get it again.
fn complete_run(
    conn: &Connection,
    id: &RunId,
    data: &CircuitData,
    evidence: &Evidence,
    again: bool,
) -> Result<Done, Fault> {
    let mut find = conn.prepare_cached("SELECT revision FROM result WHERE id = ?1")?;
    let Some(stored) = find.query_row([id.as_str()], |row| row.get::<_, i64>(0)).optional()? else {
        return Ok(Done::Revision(None));
    };
    if parts::has_circuit(conn, id, data, evidence)? {
        return Ok(Done::Revision(again.then_some(stored)));
    }
    let before = samples::of_run(conn, id)?;
    parts::put_circuit(conn, id, data, evidence)?;
    let revision = next_revision(conn)?;
    conn.prepare_cached(
        "UPDATE result SET first_revision = coalesce(first_revision, revision), revision = ?2 WHERE id = ?1",
    )?
    .execute(params![id.as_str(), revision])?;
    if let (Some(before), Some(after)) = (before, samples::of_run(conn, id)?) {
        rollup::replace(conn, revision, &before, &after)?;
    }
    Ok(Done::Revision(Some(revision)))
}

/// Replaces what was derived of a run, if what it was derived from is still the evidence that is stored.
fn rederive_run(
    conn: &Connection,
    id: &RunId,
    data: &CircuitData,
    evidence: &Evidence,
    again: bool,
) -> Result<Done, Fault> {
    if !parts::has_evidence(conn, id, evidence)? {
        return Ok(Done::Rederived(Rederived::Overtaken));
    }
    let Done::Revision(revision) = complete_run(conn, id, data, evidence, again)? else { return Ok(Done::Nothing) };
    Ok(Done::Rederived(revision.map_or(Rederived::Same, Rederived::Changed)))
}

fn stored_revisions(conn: &Connection, results: &[NewResult]) -> Result<Vec<i64>, Fault> {
    let mut find = conn.prepare_cached("SELECT revision FROM result WHERE id = ?1")?;
    let revision = |new: &NewResult| find.query_row([new.measurement.id.as_str()], |row| row.get(0));
    Ok(results.iter().map(revision).collect::<Result<_, _>>()?)
}

/// The number of this configuration, which is stored if it is new.
pub(super) fn configuration_id(conn: &Connection, body: &str) -> Result<i64, Fault> {
    conn.prepare_cached("INSERT INTO configuration (body) VALUES (?1) ON CONFLICT (body) DO NOTHING")?
        .execute([body])?;
    Ok(conn.prepare_cached("SELECT id FROM configuration WHERE body = ?1")?.query_row([body], |row| row.get(0))?)
}

/// A revision that no row has ever had.
pub(super) fn next_revision(conn: &Connection) -> Result<i64, Fault> {
    Ok(conn
        .prepare_cached("UPDATE counter SET value = value + 1 WHERE name = 'revision' RETURNING value")?
        .query_row([], |row| row.get(0))?)
}

/// Enters those slots of the row that have no row yet, so that no two rows ever overlap. Gives their number.
fn record_slots(conn: &Connection, row: &SlotRow, grid: &Grid) -> Result<Done, Fault> {
    let taken = rows_within(conn, &row.experiment, row.planned, row.planned_last)?;
    if taken.is_empty() {
        insert_slot(conn, row)?;
        return Ok(Done::Count(row.count));
    }
    let (mut from, mut entered) = (row.planned, 0);
    for other in taken {
        entered += insert_part(conn, row, from, UnixMicros(other.planned.0 - 1), grid)?;
        from = UnixMicros(other.planned_last.0.saturating_add(1));
    }
    entered += insert_part(conn, row, from, row.planned_last, grid)?;
    Ok(Done::Count(entered))
}

/// Enters the slots of a gap that are planned within `from..=until`, if there are any. Gives their number.
fn insert_part(
    conn: &Connection,
    gap: &SlotRow,
    from: UnixMicros,
    until: UnixMicros,
    grid: &Grid,
) -> Result<u64, Fault> {
    let before = UnixMicros(from.0.saturating_sub(1));
    let count = grid.count_between(before, until);
    if count > 0 {
        let (planned, planned_last) = (grid.next_after(before), grid.latest_at(until));
        insert_slot(conn, &SlotRow { planned, planned_last, count, ..gap.clone() })?;
    }
    Ok(count)
}

/// The rows that have slots planned within `from..=until`, the earliest first.
fn rows_within(
    conn: &Connection,
    experiment: &str,
    from: UnixMicros,
    until: UnixMicros,
) -> Result<Vec<SlotRow>, Fault> {
    let mut find = conn.prepare_cached(&select_slots(
        "INDEXED BY slot_last WHERE experiment = ?1 AND planned_last_us >= ?2 ORDER BY planned_last_us",
    ))?;
    // Rows don't overlap, so the order of their ends is that of their beginnings, and this stops early.
    let mut rows = Vec::new();
    for row in find.query_map(params![experiment, from.0], slot_row)? {
        let row = row?;
        if row.planned > until {
            break;
        }
        rows.push(row);
    }
    Ok(rows)
}

fn abort_unfinished(conn: &Connection, now: UnixMicros) -> Result<Done, Fault> {
    let aborted = conn
        .prepare_cached("UPDATE slot SET state = 'aborted', reason = ?1, ended_us = ?2 WHERE state = 'running'")?
        .execute(params![SlotReason::Died.as_str(), now.0])?;
    Ok(Done::Count(aborted as u64))
}

pub(super) fn insert_slot(conn: &Connection, row: &SlotRow) -> Result<(), Fault> {
    conn.prepare_cached(&format!("INSERT INTO slot ({SLOT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"))?
        .execute(slot_values(row)?)?;
    Ok(())
}

fn find_slot(conn: &Connection, slot: &SlotId) -> Result<Option<SlotRow>, Fault> {
    let row = |row: &Row<'_>| slot_row(row);
    Ok(conn
        .prepare_cached(&select_slots("WHERE experiment = ?1 AND planned_us = ?2"))?
        .query_row(params![slot.experiment, slot.planned.0], row)
        .optional()?)
}
