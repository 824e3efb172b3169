//! What a store of an earlier perfd lacks, made of its rows once, when its tables are brought up to date.

use std::time::Instant;

use rusqlite::{Connection, Result, params};

use super::parts::from_json;
use super::query::{Filter, latest_revision};
use super::rollup::{self, OWN};
use super::samples::{self, Wanted};
use super::total::{Counted, Counts};
use crate::circuit::CircuitData;

/// So many results are rolled up at a time.
const CHUNK: usize = 20_000;

/// Fills `circuit_data.build_times`, `total`, `series` and `daily`.
pub(super) fn fill(conn: &Connection) -> Result<()> {
    let begun = Instant::now();
    let results: i64 = conn.query_row("SELECT count(*) FROM result", [], |row| row.get(0))?;
    if results == 0 {
        return Ok(());
    }
    tracing::info!(results, "the store gets statistics of the results that it has; this may take a while");
    build_times(conn)?;
    totals(conn)?;
    let revision = latest_revision(conn)?;
    let (mut chunk, mut rolled_up) = (Vec::with_capacity(CHUNK), Ok(()));
    samples::each_own(conn, &Filter::default(), Wanted::ALL, |sample| {
        chunk.push((revision, sample));
        if chunk.len() == CHUNK && rolled_up.is_ok() {
            rolled_up = rollup::add(conn, OWN, &chunk);
            chunk.clear();
        }
    })?;
    rolled_up?;
    rollup::add(conn, OWN, &chunk)?;
    tracing::info!(results, seconds = begun.elapsed().as_secs(), "the store has statistics of all its results");
    Ok(())
}

fn build_times(conn: &Connection) -> Result<()> {
    let mut update = conn.prepare("UPDATE circuit_data SET build_times = ?2 WHERE rowid = ?1")?;
    let mut find = conn.prepare("SELECT rowid, body FROM circuit_data WHERE rowid > ?1 ORDER BY rowid LIMIT 1000")?;
    let mut last = i64::MIN;
    loop {
        // What can't be read stays without: it is no reason not to start.
        let page = find
            .query_map([last], |row| Ok((row.get::<_, i64>(0)?, from_json::<CircuitData>(row, 1).ok())))?
            .collect::<Result<Vec<_>>>()?;
        let Some((end, _)) = page.last() else { return Ok(()) };
        last = *end;
        for (rowid, data) in &page {
            let circuit = data.as_ref().and_then(|data| data.circuit.as_ref());
            if let Some(times) = circuit.and_then(|circuit| circuit.build_times_text()) {
                update.execute(params![rowid, times])?;
            }
        }
    }
}

fn totals(conn: &Connection) -> Result<()> {
    let mut statement = conn
        .prepare("SELECT experiment, outcome, phase, cause, perc0_us, data_complete_us, read, written FROM result")?;
    let mut rows = statement.query([])?;
    let mut counts = Counts::default();
    let natural = |value: i64| u64::try_from(value).unwrap_or(0);
    while let Some(row) = rows.next()? {
        counts.add(&Counted {
            experiment: row.get_ref(0)?.as_str()?,
            outcome: row.get_ref(1)?.as_str()?,
            phase: row.get_ref(2)?.as_str_or_null()?,
            cause: row.get_ref(3)?.as_str_or_null()?,
            first_byte: row.get::<_, Option<i64>>(4)?.map(natural),
            last_byte: row.get::<_, Option<i64>>(5)?.map(natural),
            read: natural(row.get(6)?),
            written: natural(row.get(7)?),
        });
    }
    counts.store(conn)
}
