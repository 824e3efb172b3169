//! Putting a file's results into the store, beside a perfd that measures.
//!
//! Rows are staged in many short transactions, invisible to every reader, and switched on in one. Whatever can be done
//! without the write lock (reading the file, looking whether a row is known) is done without it, so that the service's
//! writer finds a gap soon.

use std::collections::HashMap;
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rusqlite::{Connection, Result, ToSql, Transaction, named_params, params};
use sha2::{Digest, Sha256};

use super::connection::{self, begin, open_store};
use super::error::{OpenError, StoreError};
use super::imported::{self, COLUMNS};
use super::rows::integer;
use super::{rollup, samples};
use crate::clock::UnixMicros;
use crate::import::ImportedRun;
use crate::measurement::RunId;
use crate::stats::Sample;
use crate::stats::period::day_of;

/// The experiment of a run whose file names none.
pub const UNNAMED_EXPERIMENT: &str = "torperf";

/// The tor of a run whose file names none.
pub const UNNAMED_TOR: &str = "-";

/// So long the write lock is held, but for the end of what was begun.
const HELD: Duration = Duration::from_micros(1_500);

/// So long it is left to others after that.
const BREATH: Duration = Duration::from_micros(500);

/// So long another process may hold the lock before the import gives up.
const PATIENCE: Duration = Duration::from_secs(15);

/// Runs that are looked up, and then written, together.
const BATCH: usize = 128;

/// Names that are sorted before they are written: with more rows than that, each page of their table is written for
/// many of them.
const NAMES: usize = 1 << 18;

/// Runs that are added to the roll-ups together: each of those is then read and written for many of them.
const SAMPLES: usize = 4_096;

/// Those of one day of which so many are added without a look at the time.
const ROLLED_UP: usize = 512;

/// Pages of the write-ahead log after which they are put into the store's file.
const CHECKPOINT: u64 = 2_000;

/// Pages of the write-ahead log beyond which nothing more is written until somebody who reads has let go of them.
const FULL: u64 = 32_000;

/// The `rows` of an import that is being removed: it can't be switched on any more.
const REMOVED: i64 = -1;

/// What became of a file's results.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImportCounts {
    /// Results that are in the store now and were not before.
    pub new: u64,
    /// Results that were there already, or came twice in the file.
    pub known: u64,
}

/// Imports into one store, one file after the other. It blocks, and needs no runtime.
#[derive(Debug)]
pub struct Importer {
    conn: Connection,
    /// When the write lock was given back last.
    released: Instant,
    /// Frames that were in the log at the last checkpoint that could not put all of them away.
    stuck: u64,
}

/// One file being imported. What was staged stays invisible unless [`finish`](Import::finish) is called.
#[derive(Debug)]
pub struct Import<'a> {
    importer: &'a mut Importer,
    id: i64,
    first_row: i64,
    counts: ImportCounts,
    /// Runs that were added and are not written yet.
    waiting: Vec<ImportedRun>,
    /// Names that were written and can't be found yet: head and row.
    names: Vec<(i64, i64)>,
    /// What was written and is in no roll-up yet.
    samples: Vec<(i64, Sample)>,
}

impl Importer {
    /// Opens the store at `path`, creating the file (not its folder) and bringing its tables up to date as needed.
    /// Only one may be open at a time: the caller sees to that.
    ///
    /// # Errors
    /// Those of [`Store::open`](super::Store::open).
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let conn = open_store(path, PATIENCE)?;
        connection::watch_log(&conn);
        let prepare = || {
            // The switch alone waits for the disk; what a power cut takes before it would be removed anyway.
            conn.pragma_update(None, "synchronous", "NORMAL")?;
            conn.pragma_update(None, "cache_size", -16_000)
        };
        prepare().map_err(|error| OpenError::Other { path: path.to_owned(), detail: error.to_string() })?;
        Ok(Importer { conn, released: Instant::now(), stuck: 0 })
    }

    /// Removes what an import left that did not end. Gives the number of its rows.
    ///
    /// # Errors
    /// If the store can't be written.
    pub fn remove_unfinished(&mut self) -> Result<u64, StoreError> {
        self.unfinished().and_then(|unfinished| unfinished.into_iter().map(|id| self.remove(id)).sum()).map_err(failing)
    }

    /// Begins to import a file, which goes by this name.
    ///
    /// # Errors
    /// If the store can't be written.
    pub fn begin(&mut self, file: &str, format: &str) -> Result<Import<'_>, StoreError> {
        let (id, first_row) = self
            .write(|change| {
                let first_row: i64 =
                    change.query_row("SELECT coalesce(max(row), 0) + 1 FROM imported", [], |row| row.get(0))?;
                change.execute(
                    "INSERT INTO import (file, format, begun_us, first_row) VALUES (?1, ?2, ?3, ?4)",
                    params![file, format, UnixMicros::now().0, first_row],
                )?;
                Ok((change.last_insert_rowid(), first_row))
            })
            .map_err(failing)?;
        let (counts, waiting) = (ImportCounts::default(), Vec::with_capacity(BATCH));
        Ok(Import { importer: self, id, first_row, counts, waiting, names: Vec::new(), samples: Vec::new() })
    }

    /// One short transaction.
    fn write<T>(&mut self, change: impl FnOnce(&Transaction<'_>) -> Result<T>) -> Result<T> {
        self.breathe();
        let transaction = begin(&self.conn, PATIENCE)?;
        let done = change(&transaction)?;
        transaction.commit()?;
        self.released = Instant::now();
        self.put_away()?;
        Ok(done)
    }

    /// One transaction after the other until `step` says that nothing is left: each does as many steps as its time
    /// allows, at least one.
    fn write_all(&mut self, mut step: impl FnMut(&Transaction<'_>) -> Result<bool>) -> Result<()> {
        loop {
            let more = self.write(|change| {
                let begun = Instant::now();
                loop {
                    match step(change)? {
                        false => return Ok(false),
                        true if begun.elapsed() >= HELD => return Ok(true),
                        true => {}
                    }
                }
            })?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Leaves the lock to others for its time.
    fn breathe(&self) {
        std::thread::sleep(BREATH.saturating_sub(self.released.elapsed()));
    }

    /// Puts the write-ahead log into the store's file now and then, so that the service's commits needn't, and waits
    /// where readers keep it from being emptied.
    fn put_away(&mut self) -> Result<()> {
        if connection::log_pages() < CHECKPOINT + self.stuck {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let (frames, done) = connection::checkpoint(&self.conn)?;
            self.stuck = if done < frames { frames } else { 0 };
            if frames < FULL || done == frames || begun.elapsed() > PATIENCE {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn unfinished(&self) -> Result<Vec<i64>> {
        let mut statement = self.conn.prepare("SELECT id FROM import WHERE base IS NULL")?;
        statement.query_map([], |row| row.get(0))?.collect()
    }

    /// Removes an import that is not on, with all of its rows.
    fn remove(&mut self, id: i64) -> Result<u64> {
        let first_row: i64 =
            self.conn.query_row("SELECT first_row FROM import WHERE id = ?1", [id], |row| row.get(0))?;
        self.write(|change| {
            change.execute("UPDATE import SET rows = ?2 WHERE id = ?1 AND base IS NULL", [id, REMOVED])
        })?;
        let mut removed = 0;
        // Rows of an import lie together, and those of one that was never on are the last.
        self.write_all(|change| {
            let last = change
                .prepare_cached("SELECT row, id FROM imported WHERE row >= ?1 ORDER BY row DESC LIMIT 16")?
                .query_map([first_row], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))?
                .collect::<Result<Vec<_>>>()?;
            for (row, name) in &last {
                change.prepare_cached("DELETE FROM imported WHERE row = ?1")?.execute([row])?;
                if let Some(name) = RunId::parse(name) {
                    change
                        .prepare_cached("DELETE FROM imported_name WHERE head = ?1 AND row = ?2")?
                        .execute(params![imported::head(&name), row])?;
                }
            }
            removed += last.len() as u64;
            Ok(!last.is_empty())
        })?;
        self.write(|change| {
            rollup::forget(change, id)?;
            change.execute("DELETE FROM import WHERE id = ?1 AND base IS NULL", [id])
        })?;
        Ok(removed)
    }
}

impl Import<'_> {
    /// What became of the runs that were added so far; those that wait to be looked up are not counted.
    pub fn counts(&self) -> ImportCounts {
        self.counts
    }

    /// Adds a run.
    ///
    /// # Errors
    /// If the store can't be written: the import can then only be [abandoned](Import::abandon).
    pub fn add(&mut self, run: ImportedRun) -> Result<(), StoreError> {
        self.waiting.push(run);
        if self.waiting.len() < BATCH {
            return Ok(());
        }
        self.write_waiting().map_err(failing)
    }

    /// Makes the whole import visible, at once and for good.
    ///
    /// # Errors
    /// If the store can't be written; then nothing of it is visible.
    pub fn finish(mut self) -> Result<ImportCounts, StoreError> {
        self.end().map_err(failing)
    }

    /// Removes what was staged.
    ///
    /// # Errors
    /// If the store can't be written; the next import removes it then.
    pub fn abandon(self) -> Result<(), StoreError> {
        self.importer.remove(self.id).map(drop).map_err(failing)
    }

    fn end(&mut self) -> Result<ImportCounts> {
        self.write_waiting()?;
        self.write_names()?;
        self.roll_up()?;
        let (id, counts) = (self.id, self.counts);
        if counts.new == 0 {
            self.importer.remove(id)?;
            return Ok(counts);
        }
        let last_row = self.first_row + integer(counts.new)? - 1;
        // What is committed outlives a power cut from here on, and all that was staged with it.
        self.importer.conn.pragma_update(None, "synchronous", "FULL")?;
        let switched = self.importer.write(|change| {
            // Whoever removed it meanwhile began by saying so, and took the last rows first.
            let last = change.query_row(
                "SELECT count(*) FROM imported WHERE row = ?1 AND import_id = ?2",
                params![last_row, id],
                |row| row.get::<_, i64>(0),
            )?;
            if last != 1 {
                return Err(rusqlite::Error::StatementChangedRows(0));
            }
            let base: i64 = change.query_row(
                "UPDATE counter SET value = value + ?1 WHERE name = 'revision' RETURNING value - ?1",
                [integer(counts.new)?],
                |row| row.get(0),
            )?;
            let switched = change.execute(
                "UPDATE import SET base = :base, rows = :rows, known = :known, ended_us = :now \
                 WHERE id = :id AND base IS NULL AND rows IS NOT :removed",
                named_params! {":base": base, ":rows": integer(counts.new)?, ":known": integer(counts.known)?,
                ":now": UnixMicros::now().0, ":id": id, ":removed": REMOVED},
            )?;
            if switched == 1 { Ok(()) } else { Err(rusqlite::Error::StatementChangedRows(switched)) }
        });
        self.importer.conn.pragma_update(None, "synchronous", "NORMAL")?;
        switched?;
        Ok(counts)
    }

    /// Writes the runs that wait, but for those that are known.
    pub(super) fn write_waiting(&mut self) -> Result<()> {
        let waiting = std::mem::replace(&mut self.waiting, Vec::with_capacity(BATCH));
        let taken = waiting.len() as u64;
        let new = unknown(&self.importer.conn, waiting)?;
        self.counts.known += taken - new.len() as u64;
        let mut rows = new.iter().map(|run| (run, name_of(run), imported::joined(&run.extra)));
        let (id, first_row) = (self.id, self.first_row);
        let (mut n, names, samples) = (self.counts.new, &mut self.names, &mut self.samples);
        let mut next = rows.next();
        self.importer.write_all(|change| {
            let Some((run, name, extra)) = &next else { return Ok(false) };
            n += 1;
            let place = Place { import: id, n: integer(n)?, row: first_row + integer(n)? - 1 };
            insert(change, &place, run, name, extra)?;
            names.push((imported::head(name), place.row));
            samples.push((0, sample_of(run)));
            next = rows.next();
            Ok(next.is_some())
        })?;
        self.counts.new = n;
        if self.names.len() >= NAMES {
            self.write_names()?;
        }
        if self.samples.len() >= SAMPLES {
            self.roll_up()?;
        }
        Ok(())
    }

    /// Adds the rows that were written to the roll-ups of their days.
    fn roll_up(&mut self) -> Result<()> {
        let mut samples = std::mem::take(&mut self.samples);
        samples.sort_by_key(|(_, sample)| day_of(sample.start));
        let mut left = &samples[..];
        let id = self.id;
        self.importer.write_all(|change| {
            let Some((_, first)) = left.first() else { return Ok(false) };
            let (day, most) = (day_of(first.start), &left[..left.len().min(ROLLED_UP)]);
            let (part, _) = most.split_at(most.partition_point(|(_, sample)| day_of(sample.start) == day));
            left = &left[part.len()..];
            rollup::add(change, id, part)?;
            Ok(!left.is_empty())
        })
    }

    /// Lets the rows that were written be found by name, once they are visible.
    pub(super) fn write_names(&mut self) -> Result<()> {
        self.names.sort_unstable();
        let mut names = self.names.drain(..);
        self.importer.write_all(|change| {
            let mut insert = change.prepare_cached("INSERT INTO imported_name (head, row) VALUES (?1, ?2)")?;
            for (head, row) in names.by_ref().take(32) {
                insert.execute([head, row])?;
            }
            Ok(names.len() > 0)
        })
    }
}

/// The local port, where it is known.
type Port = Option<u16>;

/// Where a row stands.
struct Place {
    import: i64,
    n: i64,
    row: i64,
}

/// The runs of these that are neither in the store nor twice among them.
///
/// Of imported rows all are known, also those that are staged: what another import staged was removed before this one
/// began, so these are its own.
fn unknown(conn: &Connection, runs: Vec<ImportedRun>) -> Result<Vec<ImportedRun>> {
    let starts = || runs.iter().map(millisecond);
    let (Some(first), Some(last)) = (starts().min(), starts().max()) else { return Ok(runs) };
    let mut known = Vec::new();
    for (table, index) in [("result", "result_start"), ("imported", "imported_start")] {
        let any = format!("SELECT 1 FROM {table} INDEXED BY {index} WHERE start_us BETWEEN ?1 AND ?2 LIMIT 1");
        // Nothing within the whole batch's time is what a file of new results mostly finds.
        if conn
            .prepare_cached(&any)?
            .exists([first.saturating_mul(1000), last.saturating_mul(1000).saturating_add(999)])?
        {
            known.push(format!(
                "SELECT 1 FROM {table} INDEXED BY {index} WHERE start_us BETWEEN ?1 AND ?1 + 999 AND source = ?2 \
                 AND size = ?3 AND (local_port IS NULL OR ?4 IS NULL OR local_port = ?4) LIMIT 1"
            ));
        }
    }
    let mut seen: HashMap<(i64, u64), Vec<(String, Port)>> = HashMap::new();
    let mut new = Vec::with_capacity(runs.len());
    'runs: for run in runs {
        let start = millisecond(&run);
        for sql in &known {
            let params = params![start.saturating_mul(1000), run.source, integer(run.size)?, run.local_port];
            if conn.prepare_cached(sql)?.exists(params)? {
                continue 'runs;
            }
        }
        let same_time = seen.entry((start, run.size)).or_default();
        let same_port = |port: &Port| port.zip(run.local_port).is_none_or(|(one, other)| one == other);
        if same_time.iter().any(|(source, port)| *source == run.source && same_port(port)) {
            continue;
        }
        same_time.push((run.source.clone(), run.local_port));
        new.push(run);
    }
    Ok(new)
}

/// The run as statistics see it, under the names that it is stored with.
fn sample_of(run: &ImportedRun) -> Sample {
    samples::of_import(run, experiment_of(run), tor_of(run))
}

fn experiment_of(run: &ImportedRun) -> &str {
    run.experiment.as_deref().unwrap_or(UNNAMED_EXPERIMENT)
}

fn tor_of(run: &ImportedRun) -> &str {
    run.tor.as_deref().unwrap_or(UNNAMED_TOR)
}

/// START, cut to the millisecond.
fn millisecond(run: &ImportedRun) -> i64 {
    run.start.0.div_euclid(1000)
}

/// The run's name; where the file has none, it is made of what tells the run from others, so that the same run gets
/// the same name wherever it is imported.
fn name_of(run: &ImportedRun) -> RunId {
    if let Some(id) = &run.id {
        return id.clone();
    }
    let port = run.local_port.map_or("-".to_owned(), |port| port.to_string());
    let identity = format!("{} {} {port} {}", millisecond(run), run.size, run.source);
    let digest = Sha256::digest(identity.as_bytes());
    RunId::from_bits(digest.iter().take(16).fold(0, |bits, byte| bits << 8 | u128::from(*byte)))
}

/// `INSERT` of a row, for the values that [`insert`] binds.
static INSERT: LazyLock<String> = LazyLock::new(|| {
    let columns = format!("row, import_id, n, id, {COLUMNS}");
    let marks = vec!["?"; columns.split(',').count()].join(", ");
    format!("INSERT INTO imported ({columns}) VALUES ({marks})")
});

fn insert(conn: &Connection, place: &Place, run: &ImportedRun, name: &RunId, extra: &str) -> Result<()> {
    let failure = run.outcome.failure();
    let steps = run.steps.in_order().map(|(_, at)| at);
    let mut at = 0;
    let mut statement = conn.prepare_cached(&INSERT)?;
    let mut bind = |value: &dyn ToSql| {
        at += 1;
        statement.raw_bind_parameter(at, value)
    };
    bind(&place.row)?;
    bind(&place.import)?;
    bind(&place.n)?;
    bind(&name.as_str())?;
    bind(&run.source)?;
    bind(&experiment_of(run))?;
    bind(&tor_of(run))?;
    bind(&run.start.0)?;
    bind(&integer(run.ended)?)?;
    bind(&integer(run.size)?)?;
    for at in steps.iter().chain(&run.steps.deciles).chain(&run.steps.partials) {
        bind(&at.map(integer).transpose()?)?;
    }
    bind(&integer(run.written)?)?;
    bind(&integer(run.read)?)?;
    bind(&run.local_port)?;
    bind(&run.kind.as_str())?;
    bind(&run.server.as_str())?;
    bind(&run.outcome.word())?;
    bind(&run.outcome.phase().map(|phase| phase.as_str()))?;
    bind(&failure.map(|failure| failure.cause.as_str()))?;
    bind(&failure.and_then(|failure| failure.socks_code))?;
    bind(&failure.and_then(|failure| failure.http_status))?;
    bind(&failure.map(|failure| failure.detail.as_str()))?;
    bind(&run.did_time_out)?;
    bind(&run.experiment.is_some())?;
    bind(&run.id.is_some())?;
    bind(&extra)?;
    statement.raw_execute().map(drop)
}

/// The store's error as the caller hears of it.
fn failing(error: rusqlite::Error) -> StoreError {
    StoreError::Failing(error.to_string())
}
