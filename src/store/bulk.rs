//! Many results at once, far faster than one at a time: to fill a store for benchmarks, never in service.
//!
//! Rows, their columns and what is derived of them come from the same functions as in service. What is left out is
//! what makes a store safe: while it is being filled a crash spoils the file, and nobody else can open it.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;

use super::operation::{Fault, configuration_id, counted, insert_slot, put_result};
use super::query::latest_revision;
use super::rollup::{self, OWN};
use super::total::Counts;
use super::{NewResult, OpenError, StoreError, connection, samples};
use crate::slot::SlotRow;
use crate::stats::Sample;

/// How many slots are put into one transaction.
const BATCH: usize = 20_000;

/// A store that is being filled.
pub struct Bulk {
    conn: Connection,
    /// The number of each configuration that was stored.
    configurations: HashMap<String, i64>,
    revision: i64,
    /// What the results since the last commit add to the counters.
    counts: Counts,
    /// And to the roll-ups.
    samples: Vec<(i64, Sample)>,
    /// Slots since the last commit.
    waiting: usize,
}

impl Bulk {
    /// Opens the store at `path`, creating the file (not its folder) and its tables as needed, for itself alone.
    /// `cache` is how many bytes of it are kept in memory: with less than the index of the runs' names takes
    /// (about 60 bytes a run), it becomes slow.
    pub fn open(path: &Path, cache: u64) -> Result<Self, OpenError> {
        let conn = connection::open_store(path, Duration::from_secs(1))?;
        let other = |error: rusqlite::Error| OpenError::Other { path: path.to_owned(), detail: error.to_string() };
        let prepare = || -> rusqlite::Result<i64> {
            conn.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
            conn.pragma_update(None, "journal_mode", "OFF")?;
            conn.pragma_update(None, "synchronous", "OFF")?;
            conn.pragma_update(None, "cache_size", -i64::try_from(cache / 1024).unwrap_or(i64::MAX).max(2000))?;
            latest_revision(&conn)
        };
        let revision = prepare().map_err(other)?;
        Ok(Bulk {
            conn,
            configurations: HashMap::new(),
            revision,
            counts: Counts::default(),
            samples: Vec::new(),
            waiting: 0,
        })
    }

    /// Enters a slot that has ended, or a gap, into the ledger, with its results, which get the next revisions.
    ///
    /// [`StoreError::Refused`] if a slot of that time, or a run of that name, is there already; the store is then
    /// of no use any more.
    pub fn put(&mut self, slot: &SlotRow, results: &[NewResult]) -> Result<(), StoreError> {
        self.try_put(slot, results).map_err(|fault| match fault {
            Fault::Request(error) => error,
            Fault::Store(error) => StoreError::Failing(error.to_string()),
        })
    }

    /// Commits what was put, and makes the file one that perfd can open; waits until the disk has it.
    pub fn finish(mut self) -> Result<(), StoreError> {
        let mut finish = || -> rusqlite::Result<()> {
            self.commit()?;
            self.conn.pragma_update(None, "synchronous", "FULL")?;
            self.conn.pragma_update(None, "locking_mode", "NORMAL")?;
            self.conn.pragma_update(None, "journal_mode", "WAL")
        };
        let failing = |error: String| StoreError::Failing(error);
        finish().map_err(|error| failing(error.to_string()))?;
        let path = self.conn.path().map(str::to_owned).unwrap_or_default();
        self.conn.close().map_err(|(_, error)| failing(error.to_string()))?;
        std::fs::File::open(&path).and_then(|file| file.sync_all()).map_err(|error| failing(error.to_string()))
    }

    fn try_put(&mut self, slot: &SlotRow, results: &[NewResult]) -> Result<(), Fault> {
        if self.conn.is_autocommit() {
            self.conn.execute_batch("BEGIN IMMEDIATE")?;
        }
        insert_slot(&self.conn, slot)?;
        for new in results {
            let configuration = match self.configurations.get(&new.configuration) {
                Some(id) => *id,
                None => {
                    let id = configuration_id(&self.conn, &new.configuration)?;
                    *self.configurations.entry(new.configuration.clone()).or_insert(id)
                }
            };
            self.revision += 1;
            put_result(&self.conn, self.revision, configuration, new)?;
            self.counts.add(&counted(new));
            self.samples.push((self.revision, samples::of_new(new)));
        }
        self.waiting += 1;
        if self.waiting >= BATCH {
            self.commit()?;
            self.waiting = 0;
        }
        Ok(())
    }

    fn commit(&mut self) -> rusqlite::Result<()> {
        if self.conn.is_autocommit() {
            return Ok(());
        }
        std::mem::take(&mut self.counts).store(&self.conn)?;
        rollup::add(&self.conn, OWN, &std::mem::take(&mut self.samples))?;
        self.conn.execute("UPDATE counter SET value = ?1 WHERE name = 'revision'", [self.revision])?;
        self.conn.execute_batch("COMMIT")
    }
}
