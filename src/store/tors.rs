//! What the store keeps of the tors themselves: circuits that failed or that no run used, and events.

use rusqlite::{Connection, Result, params};

use super::parts::{body_text, from_json};
use super::query::WINDOW;
use super::rows::{Columns, integer};
use crate::circuit::{LooseCircuit, TorEvent};
use crate::clock::UnixMicros;

/// Stores these circuits; one that is stored already is replaced. Gives their number.
pub(super) fn put_circuits(conn: &Connection, circuits: &[LooseCircuit]) -> Result<u64> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO circuit (tor, connection, circuit_id, since_us, purpose, path, built_us, ended_us, failed, \
         reason, remote_reason, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12) \
         ON CONFLICT (since_us, tor, connection, circuit_id) DO UPDATE SET purpose = excluded.purpose, \
         path = excluded.path, built_us = excluded.built_us, ended_us = excluded.ended_us, \
         failed = excluded.failed, reason = excluded.reason, remote_reason = excluded.remote_reason, \
         body = excluded.body",
    )?;
    for LooseCircuit { tor, connection, since, circuit } in circuits {
        let end = circuit.end.as_ref();
        insert.execute(params![
            tor,
            integer(*connection)?,
            integer(circuit.id)?,
            since.0,
            circuit.purpose,
            circuit.path_text(),
            circuit.built_us,
            end.map(|end| end.at_us),
            end.is_some_and(|end| end.failed),
            end.and_then(|end| end.reason.as_ref()),
            end.and_then(|end| end.remote_reason.as_ref()),
            body_text(circuit)?,
        ])?;
    }
    Ok(circuits.len() as u64)
}

/// Stores those of these events that are not stored yet. Gives their number.
pub(super) fn put_events(conn: &Connection, events: &[TorEvent]) -> Result<u64> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO tor_event (tor, at_us, connection, what, detail) SELECT ?1, ?2, ?3, ?4, ?5 \
         WHERE NOT EXISTS (SELECT 1 FROM tor_event WHERE tor = ?1 AND at_us = ?2 AND connection = ?3 \
         AND what = ?4 AND detail = ?5)",
    )?;
    let mut added = 0;
    for TorEvent { tor, at, connection, what, detail } in events {
        added += insert.execute(params![tor, at.0, integer(*connection)?, what, detail])? as u64;
    }
    Ok(added)
}

/// Circuits launched within `since <= launch < until`, the earliest first.
pub(super) fn circuits_between(
    conn: &Connection,
    since: UnixMicros,
    until: UnixMicros,
    limit: usize,
) -> Result<Vec<LooseCircuit>> {
    conn.prepare_cached(
        "SELECT tor, connection, since_us, body FROM circuit WHERE since_us >= ?1 AND since_us < ?2 \
         ORDER BY since_us, tor, connection, circuit_id LIMIT ?3",
    )?
    .query_map(params![since.0, until.0, at_most(limit)], |row| {
        let mut columns = Columns::of(row);
        let (tor, connection) = (columns.next()?, columns.natural()?);
        Ok(LooseCircuit { tor, connection, since: UnixMicros(columns.next()?), circuit: from_json(row, 3)? })
    })?
    .collect()
}

/// What happened to this tor, the latest first.
pub(super) fn tor_events(conn: &Connection, tor: &str, limit: usize) -> Result<Vec<TorEvent>> {
    conn.prepare_cached(
        "SELECT tor, at_us, connection, what, detail FROM tor_event WHERE tor = ?1 \
         ORDER BY at_us DESC, rowid DESC LIMIT ?2",
    )?
    .query_map(params![tor, at_most(limit)], |row| {
        let mut columns = Columns::of(row);
        Ok(TorEvent {
            tor: columns.next()?,
            at: UnixMicros(columns.next()?),
            connection: columns.natural()?,
            what: columns.next()?,
            detail: columns.next()?,
        })
    })?
    .collect()
}

fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX).min(WINDOW)
}
