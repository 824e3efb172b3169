//! A few connections that only read.
//!
//! In WAL mode they neither wait for the writer nor hold it up; but a long read would keep the log
//! from being emptied, so each read is short and rows are handed out as plain data.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::sync::Semaphore;

use super::connection::{self, open_for_reading, open_still};
use super::query::{self, ExperimentSummary, Filter, Order, Page, SlotCounts, WINDOW};
use super::runs::{self, PairRows, SHORTEST_PREFIX, StoredEvidence, WholeResult};
use super::tally::{self, Tally};
use super::total::{self, Total};
use super::{OpenError, StoreError, StoreOptions, tors};
use crate::circuit::{LooseCircuit, TorEvent};
use crate::clock::UnixMicros;
use crate::measurement::{ResultRow, RunId};
use crate::slot::SlotRow;

/// Reads the store: a handle that can be cloned; all clones share the connections.
///
/// Every read gives [`StoreError::Busy`] if no connection becomes free in time and
/// [`StoreError::Unreadable`] if SQLite fails. Its methods must be called inside a tokio runtime.
#[derive(Clone)]
pub struct StoreReader {
    pool: Arc<Pool>,
}

struct Pool {
    path: PathBuf,
    /// Whether nobody writes the file.
    still: bool,
    wait: Duration,
    limit: Duration,
    busy_timeout: Duration,
    turns: Arc<Semaphore>,
    /// How many turns there are.
    readers: u32,
    /// Those not in use, opened when first needed.
    idle: Mutex<Vec<Connection>>,
}

impl StoreReader {
    /// A reader of a store that this process does not write, as of one beside a running perfd. Nothing is written or
    /// made, so that it may be another user's, as long as it may be read.
    ///
    /// Blocks; needs no runtime.
    ///
    /// # Errors
    /// If it can't be read, is no store of perfd's, or has other tables than this perfd reads.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let readers = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        // Nobody else asks, and who exports waits for the disk as long as it takes.
        let patient = Duration::from_secs(600);
        let options = StoreOptions { readers, read_wait: patient, read_limit: patient, ..StoreOptions::default() };
        let reader = Self::of(path, &options, !connection::is_written(path));
        connection::check_for_reading(path, reader.pool.connect())?;
        Ok(reader)
    }

    /// Whether somebody has begun to write a store that nobody wrote when it was [opened](Self::open): what was read of it
    /// since may be nonsense.
    pub fn overtaken(&self) -> bool {
        self.pool.still && connection::is_written(&self.pool.path)
    }

    /// A reader of the file at `path`, which need not be there yet.
    pub(super) fn new(path: &Path, options: &StoreOptions) -> Self {
        Self::of(path, options, false)
    }

    fn of(path: &Path, options: &StoreOptions, still: bool) -> Self {
        let readers = u32::try_from(options.readers).unwrap_or(u32::MAX).max(1);
        let pool = Pool {
            path: path.to_owned(),
            still,
            wait: options.read_wait,
            limit: options.read_limit,
            busy_timeout: options.busy_timeout,
            turns: Arc::new(Semaphore::new(readers as usize)),
            readers,
            idle: Mutex::new(Vec::new()),
        };
        StoreReader { pool: Arc::new(pool) }
    }

    /// Results by revision: those after `after` in this order (all, if `None`), at most `max_rows`
    /// (1 to [`WINDOW`]).
    ///
    /// A page may hold fewer rows than there are, even none: the end is reached only when its `next`
    /// is `None`. Rows that are added between two pages are neither skipped nor repeated: they come
    /// last in [`Order::Oldest`] and are not seen in [`Order::Newest`]. A row that is completed between two
    /// pages counts as added: it comes (again) at its new revision. Curves are left out.
    pub async fn results_page(
        &self,
        filter: &Filter,
        after: Option<i64>,
        order: Order,
        max_rows: usize,
    ) -> Result<Page, StoreError> {
        let filter = filter.clone();
        self.read(move |conn| query::results_page(conn, &filter, after, order, max_rows, WINDOW)).await
    }

    /// The lowest and the highest revision that a row has; `None` where there is none.
    pub async fn revisions(&self) -> Result<Option<(i64, i64)>, StoreError> {
        self.read(query::revisions).await
    }

    /// The results of these revisions, not more than [`WINDOW`] of them, that the filter lets through, by revision: for
    /// those who read a whole store, several parts of it at once.
    pub async fn results_within(&self, filter: &Filter, revisions: (i64, i64)) -> Result<Vec<ResultRow>, StoreError> {
        let filter = filter.clone();
        self.read(move |conn| query::results_within(conn, &filter, revisions)).await
    }

    /// The results of these revisions, not more than [`WINDOW`] of them, by revision, with as much of their circuits as
    /// key=value tells, which is read far faster than all of it.
    pub async fn results_with_keys(&self, revisions: (i64, i64)) -> Result<Vec<ResultRow>, StoreError> {
        self.read(move |conn| query::results_with_keys(conn, revisions)).await
    }

    /// All that is known of the run of this name.
    pub async fn result(&self, id: &RunId) -> Result<Option<WholeResult>, StoreError> {
        let id = id.clone();
        self.read(move |conn| runs::whole_result(conn, &id)).await
    }

    /// The runs whose names begin with these digits, at least [`SHORTEST_PREFIX`] of 0 to 9 and a to f (fewer, or
    /// others, match nothing); at most ten of them.
    pub async fn runs_named(&self, prefix: &str) -> Result<Vec<RunId>, StoreError> {
        let digits = prefix.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if prefix.len() < SHORTEST_PREFIX || !digits {
            return Ok(Vec::new());
        }
        let prefix = prefix.to_owned();
        self.read(move |conn| runs::runs_named(conn, &prefix)).await
    }

    /// The runs of one slot, in the order in which they were run, without their curves.
    pub async fn results_of_slot(&self, experiment: &str, planned: UnixMicros) -> Result<Vec<ResultRow>, StoreError> {
        let experiment = experiment.to_owned();
        self.read(move |conn| runs::results_of_slot(conn, &experiment, planned)).await
    }

    /// Runs that have evidence, in the order of their names, those after `after`; at most `limit`, and fewer
    /// only at the end. The evidence of one is up to [`LONGEST_EVIDENCE`](super::LONGEST_EVIDENCE) bytes.
    pub async fn evidence_page(&self, after: Option<RunId>, limit: usize) -> Result<Vec<StoredEvidence>, StoreError> {
        self.read(move |conn| runs::evidence_page(conn, after.as_ref(), limit)).await
    }

    /// The runs of this experiment's slots of several, planned within `since <= planned < until`: the latest
    /// slots, as many as fit into [`WINDOW`] rows.
    pub async fn pairs(&self, experiment: &str, since: UnixMicros, until: UnixMicros) -> Result<PairRows, StoreError> {
        let experiment = experiment.to_owned();
        self.read(move |conn| runs::pairs(conn, &experiment, since, until, WINDOW as usize)).await
    }

    /// Circuits that failed or that no run used, launched within `since <= launch < until`, the earliest first,
    /// at most `limit` (and [`WINDOW`]).
    pub async fn circuits_between(
        &self,
        since: UnixMicros,
        until: UnixMicros,
        limit: usize,
    ) -> Result<Vec<LooseCircuit>, StoreError> {
        self.read(move |conn| tors::circuits_between(conn, since, until, limit)).await
    }

    /// What happened to this tor, the latest first, at most `limit` (and [`WINDOW`]).
    pub async fn tor_events(&self, tor: &str, limit: usize) -> Result<Vec<TorEvent>, StoreError> {
        let tor = tor.to_owned();
        self.read(move |conn| tors::tor_events(conn, &tor, limit)).await
    }

    /// How each of these experiments is doing, in this order; one without results has `None`s.
    pub async fn summaries(&self, experiments: Vec<String>) -> Result<Vec<ExperimentSummary>, StoreError> {
        self.read(move |conn| query::summaries(conn, &experiments)).await
    }

    /// How each of these experiments is doing in numbers, in this order, through each of its tors: all as of one
    /// moment. And how large the store is.
    pub async fn tally(&self, experiments: Vec<(String, Vec<String>)>) -> Result<Tally, StoreError> {
        let path = self.pool.path.clone();
        self.read(move |conn| tally::tally(conn, &path, &experiments)).await
    }

    /// The experiment's slot or gap with the latest planned time.
    pub async fn last_slot(&self, experiment: &str) -> Result<Option<SlotRow>, StoreError> {
        let experiment = experiment.to_owned();
        self.read(move |conn| query::last_slot(conn, &experiment)).await
    }

    /// Slots planned within `from <= planned < until`, gaps that reach into it included, earliest
    /// first, at most `limit` (and [`WINDOW`]) rows.
    pub async fn slots_between(
        &self,
        experiment: &str,
        from: UnixMicros,
        until: UnixMicros,
        limit: usize,
    ) -> Result<Vec<SlotRow>, StoreError> {
        let experiment = experiment.to_owned();
        self.read(move |conn| query::slots_between(conn, &experiment, from, until, limit)).await
    }

    /// How many slots of the experiment are in which state.
    pub async fn slot_counts(&self, experiment: &str) -> Result<SlotCounts, StoreError> {
        let experiment = experiment.to_owned();
        self.read(move |conn| query::slot_counts(conn, &experiment)).await
    }

    /// Counters of perfd's own results since the store began, by experiment, name and label.
    pub async fn totals(&self) -> Result<Vec<Total>, StoreError> {
        self.read(total::totals).await
    }

    /// The highest revision ever given; 0 if none was.
    pub async fn latest_revision(&self) -> Result<i64, StoreError> {
        self.read(query::latest_revision).await
    }

    /// Lets the reads under way end, for so long, lets no other begin, and closes the connections.
    pub(super) async fn close(&self, patience: Duration) {
        let all = tokio::time::timeout(patience, self.pool.turns.acquire_many(self.pool.readers)).await;
        self.pool.turns.close();
        self.pool.idle().clear();
        drop(all);
    }

    pub(super) async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let turns = Arc::clone(&self.pool.turns);
        let turn = match tokio::time::timeout(self.pool.wait, turns.acquire_owned()).await {
            Ok(Ok(turn)) => turn,
            Ok(Err(_)) => return Err(StoreError::Closed),
            Err(_) => return Err(StoreError::Busy),
        };
        let pool = Arc::clone(&self.pool);
        // The turn moves along: a caller that goes away does not free it before the read has ended.
        let work = tokio::task::spawn_blocking(move || {
            let answer = pool.ask(question);
            drop(turn);
            answer
        });
        let answer = match tokio::time::timeout(self.pool.limit, work).await {
            Ok(answer) => answer.map_err(|_| StoreError::Closed)?,
            Err(_) => return Err(StoreError::Unreadable("the disk does not answer".to_owned())),
        };
        answer.map_err(|error| StoreError::Unreadable(error.to_string()))
    }
}

impl Pool {
    fn ask<T>(&self, question: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> rusqlite::Result<T> {
        let idle = self.idle().pop();
        let conn = match idle {
            Some(conn) => conn,
            None => self.connect()?,
        };
        let answer = question(&conn)?;
        // After an error the connection is closed: the next read sees what is at the path by then.
        let mut idle = self.idle();
        if !self.turns.is_closed() {
            idle.push(conn);
        }
        Ok(answer)
    }

    fn connect(&self) -> rusqlite::Result<Connection> {
        if self.still { open_still(&self.path) } else { open_for_reading(&self.path, self.busy_timeout) }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
