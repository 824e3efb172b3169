//! What is kept beside a run's row: what tor told of it, the lines that say so, and its curve.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::DeflateDecoder;
use flate2::write::DeflateEncoder;
use rusqlite::types::Type;
use rusqlite::{Connection, Error, OptionalExtension, Result, Row, params};

use super::rows::Columns;
use crate::circuit::{BuildTimeout, Circuit, CircuitData, CircuitState, Evidence, Hop, Relay, StreamEvent};
use crate::measurement::{Curve, RunId};

/// The longest evidence that is kept of one run, in bytes: 1 MiB. What is longer is cut at the end of a line.
pub const LONGEST_EVIDENCE: usize = 1 << 20;

/// Stores what tor told of a run, in place of what was stored before. Empty evidence is none.
pub(super) fn put_circuit(conn: &Connection, id: &RunId, data: &CircuitData, evidence: &Evidence) -> Result<()> {
    let circuit = data.circuit.as_ref();
    let timeout = data.build_timeout.as_ref();
    conn.prepare_cached(
        "INSERT OR REPLACE INTO circuit_data (run_id, state, connection, tor_version, stream_id, circuit_id, \
         launched_us, built_us, used_at_us, path, guard, conflux, timeout_ms, quantile, learning, body, \
         build_times) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?
    .execute(params![
        id.as_str(),
        data.state.as_str(),
        fitting(data.connection),
        data.tor_version,
        data.stream_id.and_then(fitting),
        circuit.and_then(|circuit| fitting(circuit.id)),
        circuit.and_then(|circuit| circuit.launched_us),
        circuit.and_then(|circuit| circuit.built_us),
        data.used_at_us(),
        circuit.and_then(|circuit| circuit.path_text()),
        data.guard.as_ref().map(|guard| &guard.fingerprint),
        data.conflux.is_some(),
        timeout.and_then(|timeout| fitting(timeout.timeout_ms)),
        timeout.and_then(|timeout| timeout.quantile),
        timeout.and_then(|timeout| timeout.learning),
        body_text(data)?,
        circuit.and_then(|circuit| circuit.build_times_text()),
    ])?;
    let text = bounded(&evidence.0);
    if text.is_empty() {
        conn.prepare_cached("DELETE FROM evidence WHERE run_id = ?1")?.execute([id.as_str()])?;
        return Ok(());
    }
    conn.prepare_cached("INSERT OR REPLACE INTO evidence (run_id, length, lines) VALUES (?1, ?2, ?3)")?
        .execute(params![id.as_str(), text.len() as i64, compressed(text)?])?;
    Ok(())
}

/// Whether exactly this is stored of the run already.
pub(super) fn has_circuit(conn: &Connection, id: &RunId, data: &CircuitData, evidence: &Evidence) -> Result<bool> {
    let body: Option<String> = conn
        .prepare_cached("SELECT body FROM circuit_data WHERE run_id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    Ok(body.is_some_and(|body| body_text(data).is_ok_and(|text| text == body)) && has_evidence(conn, id, evidence)?)
}

/// Whether exactly these lines are stored of the run.
pub(super) fn has_evidence(conn: &Connection, id: &RunId, evidence: &Evidence) -> Result<bool> {
    let stored = match self::evidence(conn, id) {
        Ok(stored) => stored.unwrap_or_default(),
        // What is stored and can't be read is not this.
        Err(error) if error.sqlite_error_code().is_none() => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(stored == bounded(&evidence.0))
}

/// What tor told of the run; `None` where nothing was stored.
pub(super) fn circuit(conn: &Connection, id: &RunId) -> Result<Option<CircuitData>> {
    let mut statement = conn.prepare_cached("SELECT body FROM circuit_data WHERE run_id = ?1")?;
    statement.query_row([id.as_str()], |row| from_json(row, 0)).optional()
}

/// As much of that as key=value tells, from the columns: reading all of it takes longer than all else of a row. What is
/// made of it is a circuit whose parts give the same keys, and tell nothing beyond them.
///
/// Of the runs of these revisions, in their order; a question for each run would take as long as its row.
pub(super) fn circuit_keys(conn: &Connection, (low, high): (i64, i64)) -> Result<Vec<(i64, CircuitData)>> {
    conn.prepare_cached(
        "SELECT revision, state, stream_id, circuit_id, launched_us, used_at_us, path, build_times, timeout_ms, quantile \
         FROM result NOT INDEXED CROSS JOIN circuit_data ON run_id = id WHERE revision BETWEEN ?1 AND ?2 \
         ORDER BY revision",
    )?
    .query_map([low, high], keys_row)?
    .collect()
}

fn keys_row(row: &Row<'_>) -> Result<(i64, CircuitData)> {
    let mut columns = Columns::of(row);
    let revision = columns.next()?;
    let known = |word: &str| CircuitState::ALL.iter().find(|(_, w)| *w == word).map(|(state, _)| *state);
    let state = columns.word(known)?;
    let (stream_id, circuit_id) = (columns.maybe_natural()?, columns.maybe_natural()?);
    let (launched_us, used_at) = (columns.next::<Option<i64>>()?, columns.next::<Option<i64>>()?);
    let path = columns.next_ref()?.as_str_or_null()?;
    let times = columns.next_ref()?.as_str_or_null()?;
    let (timeout_ms, quantile) = (columns.maybe_natural()?, columns.next::<Option<f64>>()?);
    let ended =
        |at_us| StreamEvent { at_us, status: "CLOSED".to_owned(), circuit_id: None, reason: None, remote_reason: None };
    let circuit = Circuit {
        // What is in no column was too large for one, and is for key=value.
        id: circuit_id.unwrap_or(u64::MAX),
        launched_us,
        built_us: None,
        path: hops(path, times),
        purpose: None,
        hs_state: None,
        build_flags: Vec::new(),
        built_before_run: None,
        last_used_us: None,
        end: None,
        bytes_read: None,
        bytes_written: None,
    };
    let timeout = (timeout_ms.is_some() || quantile.is_some()).then(|| BuildTimeout {
        timeout_ms: timeout_ms.unwrap_or(u64::MAX),
        quantile,
        learning: None,
    });
    let data = CircuitData {
        state,
        connection: 0,
        tor_version: None,
        stream_id,
        stream: used_at.map(ended).into_iter().collect(),
        circuit: Some(circuit),
        conflux: None,
        onion: None,
        build_timeout: timeout,
        guard: None,
        guard_events: Vec::new(),
        congestion: None,
    };
    Ok((revision, data))
}

/// The hops of a path and of its build times, of which either may not be known.
fn hops(path: Option<&str>, times: Option<&str>) -> Vec<Hop> {
    let hop = |fingerprint: &str, time: Option<&str>| Hop {
        relay: Relay { fingerprint: fingerprint.trim_start_matches('$').to_owned(), nickname: None },
        built_after_us: time.and_then(|time| time.parse().ok()),
    };
    match (path, times) {
        (Some(path), Some(times)) => path.split(',').zip(times.split(',').map(Some)).map(|(f, t)| hop(f, t)).collect(),
        (Some(path), None) => path.split(',').map(|fingerprint| hop(fingerprint, None)).collect(),
        (None, Some(times)) => times.split(',').map(|time| hop("", Some(time))).collect(),
        (None, None) => Vec::new(),
    }
}

/// The lines that say so, as one text.
pub(super) fn evidence(conn: &Connection, id: &RunId) -> Result<Option<String>> {
    let mut statement = conn.prepare_cached("SELECT length, lines FROM evidence WHERE run_id = ?1")?;
    statement.query_row([id.as_str()], |row| evidence_text(row, 0)).optional()
}

/// The evidence in two columns of a row, of which `at` is the first: its length and its compressed text.
///
/// However much the compressed text would give, no more is made of it than its length, and that is bounded.
pub(super) fn evidence_text(row: &Row<'_>, at: usize) -> Result<String> {
    let damaged = |why: &str| Error::FromSqlConversionFailure(at + 1, Type::Blob, why.into());
    let length = row.get::<_, u32>(at)? as usize;
    if length > LONGEST_EVIDENCE {
        return Err(damaged("evidence of an impossible length"));
    }
    let lines = row.get_ref(at + 1)?.as_blob()?;
    let mut text = String::with_capacity(length);
    DeflateDecoder::new(lines)
        .take(length as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| damaged(&format!("evidence that can't be unpacked: {error}")))?;
    if text.len() == length { Ok(text) } else { Err(damaged("evidence that is not as long as it was")) }
}

/// Stores a curve; an empty one is none.
pub(super) fn put_curve(conn: &Connection, id: &RunId, curve: &Curve) -> Result<()> {
    if curve.is_empty() {
        return Ok(());
    }
    let points: Vec<String> = curve.iter().map(|(us, bytes)| format!("{us}:{bytes}")).collect();
    conn.prepare_cached("INSERT INTO curve (run_id, points) VALUES (?1, ?2)")?
        .execute(params![id.as_str(), points.join(" ")])?;
    Ok(())
}

/// The curve of the run; empty where none was stored.
pub(super) fn curve(conn: &Connection, id: &RunId) -> Result<Curve> {
    let points: Option<String> = conn
        .prepare_cached("SELECT points FROM curve WHERE run_id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    let point = |text: &str| {
        let (us, bytes) = text.split_once(':')?;
        Some((us.parse().ok()?, bytes.parse().ok()?))
    };
    let curve: Option<Curve> = points.unwrap_or_default().split_ascii_whitespace().map(point).collect();
    curve.ok_or_else(|| Error::FromSqlConversionFailure(0, Type::Text, "no curve".into()))
}

/// What is kept whole in a column as JSON.
pub(super) fn body_text(data: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(data).map_err(|error| Error::ToSqlConversionFailure(error.into()))
}

/// Reads what [`body_text`] wrote from this column.
pub(super) fn from_json<T: serde::de::DeserializeOwned>(row: &Row<'_>, at: usize) -> Result<T> {
    serde_json::from_str(row.get_ref(at)?.as_str()?)
        .map_err(|error| Error::FromSqlConversionFailure(at, Type::Text, error.into()))
}

/// A number of tor's for a column, where it fits: it stands in the body too.
fn fitting(number: u64) -> Option<i64> {
    i64::try_from(number).ok()
}

fn bounded(text: &str) -> &str {
    if text.len() <= LONGEST_EVIDENCE {
        return text;
    }
    let head = &text[..text.floor_char_boundary(LONGEST_EVIDENCE)];
    &head[..head.rfind('\n').map_or(0, |end| end + 1)]
}

fn compressed(text: &str) -> Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    let written = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish());
    written.map_err(|error| Error::ToSqlConversionFailure(error.into()))
}
