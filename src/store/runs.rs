//! What the store can be asked of single runs, of the runs of one slot, and of pairs of them.

use rusqlite::{Connection, Error, OptionalExtension, Result, params};

use super::query::WINDOW;
use super::rows::{Columns, result_row, select_results};
use super::{annotations, imported, parts};
use crate::annotation::Annotation;
use crate::circuit::CircuitData;
use crate::clock::UnixMicros;
use crate::measurement::{Outcome, ResultRow, RunId};

/// All that is known of one run.
#[derive(Clone, Debug, PartialEq)]
pub struct WholeResult {
    /// Its row, with its curve and its circuit.
    pub row: ResultRow,
    /// The text of the configuration that it was made under; not known of an imported run.
    pub configuration: Option<String>,
    /// The control lines that touch it, as they were kept.
    pub evidence: Option<String>,
    /// The other runs of its slot, in the order in which they were run.
    pub slot_mates: Vec<SlotMate>,
    /// The notes that touch it and that none replaces, the oldest first; the latest hundred, if there are more.
    pub annotations: Vec<Annotation>,
}

/// Another run of the same slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotMate {
    /// Its name.
    pub id: RunId,
    /// The name of the tor that it went through.
    pub tor: String,
    /// Its number in the slot, from 0.
    pub index: u32,
}

/// What is needed to derive a run's circuit again.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEvidence {
    /// The run.
    pub id: RunId,
    /// Its START, to which all times are relative.
    pub start: UnixMicros,
    /// The control lines that touch it; `None` where what is stored can't be unpacked.
    pub evidence: Option<String>,
    /// What was derived from them so far; `None` where that can't be read.
    pub data: Option<CircuitData>,
}

/// A run of a slot of several, as far as comparing needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairRow {
    /// When the slot was planned.
    pub planned: UnixMicros,
    /// The name of the tor.
    pub tor: String,
    /// The outcome's word.
    pub outcome: String,
    /// µs from START until the first byte of the payload had come (of an upload: was sent).
    pub first_byte: Option<u64>,
    /// µs from START until the payload was complete.
    pub last_byte: Option<u64>,
}

/// Runs to be compared, and how far back they reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairRows {
    /// The latest slot first, each slot whole, its runs by tor.
    pub rows: Vec<PairRow>,
    /// Slots planned up to this moment were not looked at, since the window was full; `None`: all were.
    pub cut: Option<UnixMicros>,
}

/// How many candidates a prefix of a run's name gives at most.
pub(super) const CANDIDATES: i64 = 10;

/// The fewest digits of a run's name by which it is looked up.
pub const SHORTEST_PREFIX: usize = 6;

/// The most runs of one slot that are shown beside another: 100 requests through each of many tors.
const MATES: i64 = 1000;

/// All that is known of the run of this name.
pub(super) fn whole_result(conn: &Connection, id: &RunId) -> Result<Option<WholeResult>> {
    let snapshot = conn.unchecked_transaction()?;
    let row = snapshot.prepare_cached(&select_results("WHERE id = ?1"))?.query_row([id.as_str()], result_row);
    let Some(mut row) = row.optional()? else { return imported_result(&snapshot, id) };
    row.circuit = parts::circuit(&snapshot, id)?;
    row.measurement.curve = parts::curve(&snapshot, id)?;
    let evidence = parts::evidence(&snapshot, id)?;
    let configuration = snapshot
        .prepare_cached("SELECT body FROM configuration WHERE id = ?1")?
        .query_row([row.configuration], |row| row.get(0))?;
    let slot_mates = slot_mates(&snapshot, &row)?;
    let annotations = annotations::touching(&snapshot, &row)?;
    Ok(Some(WholeResult { row, configuration, evidence, slot_mates, annotations }))
}

/// Of an imported run nothing more is known than its row says, and what others noted of it.
fn imported_result(conn: &Connection, id: &RunId) -> Result<Option<WholeResult>> {
    let Some(row) = imported::named(conn, id)? else { return Ok(None) };
    let annotations = annotations::touching(conn, &row)?;
    Ok(Some(WholeResult { row, configuration: None, evidence: None, slot_mates: Vec::new(), annotations }))
}

fn slot_mates(conn: &Connection, row: &ResultRow) -> Result<Vec<SlotMate>> {
    conn.prepare_cached(
        "SELECT id, tor, place_index FROM result INDEXED BY result_slot \
         WHERE experiment = ?1 AND planned_us = ?2 AND id <> ?3 ORDER BY place_index, revision LIMIT ?4",
    )?
    .query_map(
        params![row.experiment, row.planned.map(|planned| planned.0), row.measurement.id.as_str(), MATES],
        |row| {
            let mut columns = Columns::of(row);
            Ok(SlotMate { id: columns.word(RunId::parse)?, tor: columns.next()?, index: columns.next()? })
        },
    )?
    .collect()
}

/// The runs of one slot, in the order in which they were run.
pub(super) fn results_of_slot(conn: &Connection, experiment: &str, planned: UnixMicros) -> Result<Vec<ResultRow>> {
    let snapshot = conn.unchecked_transaction()?;
    let mut rows = snapshot
        .prepare_cached(&select_results(
            "INDEXED BY result_slot WHERE experiment = ?1 AND planned_us = ?2 ORDER BY place_index, revision LIMIT ?3",
        ))?
        .query_map(params![experiment, planned.0, MATES], result_row)?
        .collect::<Result<Vec<_>>>()?;
    for row in &mut rows {
        row.circuit = parts::circuit(&snapshot, &row.measurement.id)?;
    }
    Ok(rows)
}

/// The runs whose names begin like this.
pub(super) fn runs_named(conn: &Connection, prefix: &str) -> Result<Vec<RunId>> {
    // Every digit of a name sorts before `g`.
    let snapshot = conn.unchecked_transaction()?;
    let mut runs = snapshot
        .prepare_cached("SELECT id FROM result WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id LIMIT ?2")?
        .query_map(params![prefix, CANDIDATES], |row| Columns::of(row).word(RunId::parse))?
        .collect::<Result<Vec<_>>>()?;
    runs.extend(imported::beginning_with(&snapshot, prefix, CANDIDATES)?);
    runs.sort();
    runs.dedup();
    runs.truncate(CANDIDATES as usize);
    Ok(runs)
}

/// Runs that have evidence, by name, those after `after`.
pub(super) fn evidence_page(conn: &Connection, after: Option<&RunId>, limit: usize) -> Result<Vec<StoredEvidence>> {
    let snapshot = conn.unchecked_transaction()?;
    let after = after.map_or("", RunId::as_str);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX).min(WINDOW);
    let mut page = snapshot
        .prepare_cached(
            "SELECT run_id, start_us, length, lines FROM evidence JOIN result ON result.id = run_id \
             WHERE run_id > ?1 ORDER BY run_id LIMIT ?2",
        )?
        .query_map(params![after, limit], |row| {
            let mut columns = Columns::of(row);
            let (id, start) = (columns.word(RunId::parse)?, UnixMicros(columns.next()?));
            Ok(StoredEvidence { id, start, evidence: readable(parts::evidence_text(row, 2))?, data: None })
        })?
        .collect::<Result<Vec<_>>>()?;
    for stored in &mut page {
        stored.data = readable(parts::circuit(&snapshot, &stored.id))?.flatten();
    }
    Ok(page)
}

/// A part that makes no sense is absent: the others of its page are wanted all the same.
fn readable<T>(part: Result<T>) -> Result<Option<T>> {
    match part {
        Ok(part) => Ok(Some(part)),
        Err(Error::FromSqlConversionFailure(..)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The runs of slots of several, planned within `since <= planned < until`, the latest first. At most `window`
/// rows are looked at.
pub(super) fn pairs(
    conn: &Connection,
    experiment: &str,
    since: UnixMicros,
    until: UnixMicros,
    window: usize,
) -> Result<PairRows> {
    let mut statement = conn.prepare_cached(
        "SELECT planned_us, tor, outcome, perc0_us, data_complete_us, place_of FROM result INDEXED BY result_slot \
         WHERE experiment = ?1 AND planned_us >= ?2 AND planned_us < ?3 ORDER BY planned_us DESC LIMIT ?4",
    )?;
    let limit = i64::try_from(window).unwrap_or(WINDOW).saturating_add(1);
    let mut seen = statement
        .query_map(params![experiment, since.0, until.0, limit], |row| {
            let mut columns = Columns::of(row);
            let pair = PairRow {
                planned: UnixMicros(columns.next()?),
                tor: columns.next()?,
                outcome: columns.next()?,
                first_byte: columns.maybe_natural()?,
                last_byte: columns.maybe_natural()?,
            };
            Ok((pair, columns.next::<u32>()?))
        })?
        .collect::<Result<Vec<_>>>()?;
    let mut cut = None;
    if seen.len() > window {
        // The slot that the window ends in may not be whole.
        cut = seen.last().map(|(row, _)| row.planned);
        seen.retain(|(row, _)| Some(row.planned) != cut);
    }
    let mut rows: Vec<PairRow> = seen.into_iter().filter(|(_, of)| *of > 1).map(|(row, _)| row).collect();
    rows.sort_by(|a, b| b.planned.cmp(&a.planned).then_with(|| a.tor.cmp(&b.tor)));
    Ok(PairRows { rows, cut })
}

impl PairRow {
    /// Whether the run was complete.
    pub fn complete(&self) -> bool {
        self.outcome == Outcome::Complete.word()
    }
}
