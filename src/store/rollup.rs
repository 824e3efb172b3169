//! Roll-ups: what the results of one UTC day, series and import come to, kept in the transaction that stores each of
//! them, so that statistics of long ago neither need the rows nor read millions of them.
//!
//! A series is what its results have in common: source, experiment, tor, kind, server and size. Rows may be deleted;
//! their roll-ups stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Result, params};

use super::rows::integer;
use crate::measurement::{Kind, ServerKind};
use crate::stats::period::day_of;
use crate::stats::{Rollup, Sample};

/// The `import_id` of perfd's own results.
pub(super) const OWN: i64 = 0;

/// What the results of a series have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Series {
    /// The name of the instance that measured.
    pub source: Arc<str>,
    /// The experiment's name.
    pub experiment: Arc<str>,
    /// The name of the tor.
    pub tor: Arc<str>,
    /// What its runs do.
    pub kind: Kind,
    /// How the server was reached.
    pub server: ServerKind,
    /// Bytes of payload asked for.
    pub size: u64,
}

impl Series {
    /// The series that a result belongs to.
    pub fn of(sample: &Sample) -> Self {
        Series {
            source: Arc::clone(&sample.source),
            experiment: Arc::clone(&sample.experiment),
            tor: Arc::clone(&sample.tor),
            kind: sample.kind,
            server: sample.server,
            size: sample.size,
        }
    }
}

/// Adds results of one import ([`OWN`]: perfd's own), each with its revision (0 of an imported one), to the roll-ups
/// of their days and series. Many at once cost little more than one: each roll-up is read and written once.
pub(super) fn add(conn: &Connection, import: i64, samples: &[(i64, Sample)]) -> Result<()> {
    let mut parts: BTreeMap<(i64, Series), Vec<&(i64, Sample)>> = BTreeMap::new();
    for sample in samples {
        parts.entry((day_of(sample.1.start), Series::of(&sample.1))).or_default().push(sample);
    }
    for ((day, series), samples) in parts {
        let series = series_id(conn, &series)?;
        let revision = samples.iter().map(|(revision, _)| *revision).max().unwrap_or(0);
        change(conn, (day, series, import), revision, |rollup| {
            samples.iter().for_each(|(_, sample)| rollup.add(sample));
        })?;
    }
    Ok(())
}

/// Puts what a result of perfd's own is now into its roll-up, in place of what it was.
pub(super) fn replace(conn: &Connection, revision: i64, old: &Sample, new: &Sample) -> Result<()> {
    let series = series_id(conn, &Series::of(new))?;
    change(conn, (day_of(new.start), series, OWN), revision, |rollup| {
        rollup.remove(old);
        rollup.add(new);
    })
}

/// Forgets the roll-ups of an import that came to nothing.
pub(super) fn forget(conn: &Connection, import: i64) -> Result<()> {
    conn.prepare_cached("DELETE FROM daily WHERE import_id = ?1 AND import_id <> 0")?.execute([import])?;
    Ok(())
}

fn change(conn: &Connection, key: (i64, i64, i64), revision: i64, change: impl FnOnce(&mut Rollup)) -> Result<()> {
    let (day, series, import) = key;
    let body: Option<Vec<u8>> = conn
        .prepare_cached("SELECT body FROM daily WHERE day = ?1 AND series_id = ?2 AND import_id = ?3")?
        .query_row([day, series, import], |row| row.get(0))
        .optional()?;
    let mut rollup = Rollup::default();
    if let Some(body) = body {
        match decoded(&body) {
            Some(found) => rollup = found,
            None => tracing::warn!(day, series, import, "a stored roll-up can't be read; it begins anew"),
        }
    }
    change(&mut rollup);
    conn.prepare_cached(
        "INSERT INTO daily (day, series_id, import_id, revision, runs, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6) \
         ON CONFLICT DO UPDATE SET revision = max(revision, excluded.revision), runs = excluded.runs, \
         body = excluded.body",
    )?
    .execute(params![day, series, import, revision, integer(rollup.runs())?, rollup.encode()])?;
    Ok(())
}

/// The roll-up that these bytes are; `None` if another program wrote them.
pub(super) fn decoded(body: &[u8]) -> Option<Rollup> {
    Rollup::decode(body).ok()
}

/// The number of this series, which is entered if it is new.
fn series_id(conn: &Connection, series: &Series) -> Result<i64> {
    let Series { source, experiment, tor, kind, server, size } = series;
    let values = params![source, experiment, tor, kind.as_str(), server.as_str(), integer(*size)?];
    let found = conn
        .prepare_cached(
            "SELECT id FROM series WHERE source = ?1 AND experiment = ?2 AND tor = ?3 AND kind = ?4 AND server = ?5 \
             AND size = ?6",
        )?
        .query_row(values, |row| row.get(0))
        .optional()?;
    if let Some(id) = found {
        return Ok(id);
    }
    conn.prepare_cached(
        "INSERT INTO series (source, experiment, tor, kind, server, size) VALUES (?1, ?2, ?3, ?4, ?5, ?6) RETURNING id",
    )?
    .query_row(values, |row| row.get(0))
}
