//! What perfd knows, in one SQLite file in WAL mode.
//!
//! One thread writes ([`Store`]) and a few connections read ([`StoreReader`]), so that no reader, slow
//! as it may be, holds up a measurement. An operation has been committed to disk when its future
//! resolves. The file may be read by any SQLite tool while perfd runs.

mod annotations;
mod backfill;
mod bulk;
mod connection;
mod error;
mod follow;
mod imported;
mod importing;
mod operation;
mod parts;
mod published;
mod query;
mod reader;
mod reading;
mod rollup;
mod rows;
mod runs;
mod samples;
mod schema;
mod statistics;
mod tally;
#[cfg(test)]
mod tests;
mod tors;
mod total;
mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

pub use annotations::{AnnotationFilter, Token};
pub use bulk::Bulk;
pub use error::{OpenError, StoreError, StoreHealth};
pub use follow::{Event, Events};
pub use importing::{Import, ImportCounts, Importer, UNNAMED_EXPERIMENT, UNNAMED_TOR};
pub use operation::Rederived;
pub use parts::LONGEST_EVIDENCE;
pub use published::{AfterResult, Listed, Publishable, PublishedDay, PublishedFile};
pub use query::{ExperimentSummary, Filter, LastResult, Order, Page, SlotCounts, WINDOW};
pub use reader::StoreReader;
pub use reading::{Known, Mark, Reading, Slots, ask_file};
pub use rollup::Series;
pub use runs::{PairRow, PairRows, SHORTEST_PREFIX, SlotMate, StoredEvidence, WholeResult};
pub use samples::Wanted;
pub use statistics::Statistics;
pub use tally::{Ended, ExperimentTally, Histogram, LastRuns, Tally};
pub use total::{FIRST_BYTE_BOUNDS, LAST_BYTE_BOUNDS, Total, bound_label};

use crate::annotation::{Annotation, NewAnnotation};
use crate::circuit::{CircuitData, Evidence, LooseCircuit, TorEvent};
use crate::clock::UnixMicros;
use crate::measurement::{Measurement, Place, RunId, ServerKind};
use crate::slot::{Grid, SlotId, SlotReason, SlotRow, SlotState};
use connection::FileId;
use operation::{Done, Finish, Operation};
use writer::{Closing, Job, Message, Writer};

/// A result to be stored: a [`ResultRow`](crate::measurement::ResultRow) that has no revision yet.
#[derive(Clone, Debug, PartialEq)]
pub struct NewResult {
    /// The name of the instance that measured (Torperf's SOURCE).
    pub source: String,
    /// The experiment's name.
    pub experiment: String,
    /// The name of the tor.
    pub tor: String,
    /// When the slot was planned that this run belongs to.
    pub planned: UnixMicros,
    /// The configuration in force, as text; each distinct text is stored once.
    pub configuration: String,
    /// The version of perfd that measured.
    pub version: String,
    /// How the server was reached.
    pub server: ServerKind,
    /// Which of the runs of its slot it is.
    pub place: Place,
    /// The run.
    pub measurement: Measurement,
    /// What tor told of it so far, and the lines that say so (at most [`LONGEST_EVIDENCE`] are kept).
    pub circuit: Option<(CircuitData, Evidence)>,
}

/// A disk that has not answered for so long hangs, and is not waited for any more at the end.
const HUNG: Duration = Duration::from_secs(3);

/// How the store behaves; the defaults are meant for service.
#[derive(Clone)]
pub struct StoreOptions {
    /// How many requests may wait for the writer; further callers wait for a place.
    pub queue: usize,
    /// The most requests in one transaction.
    pub batch: usize,
    /// How long one attempt waits for a lock that another process holds.
    pub busy_timeout: Duration,
    /// The pause after a first failed attempt; it doubles with each further one.
    pub first_pause: Duration,
    /// The longest pause between two attempts.
    pub last_pause: Duration,
    /// How many reads may run at once, each on a connection of its own.
    pub readers: usize,
    /// How long a read waits for its turn before it is [`StoreError::Busy`].
    pub read_wait: Duration,
    /// How long a read may take; beyond that the disk is taken to hang.
    pub read_limit: Duration,
    /// Called with the writing connection before each transaction.
    #[cfg(test)]
    before_transaction: Option<Arc<Hook>>,
}

#[cfg(test)]
type Hook = dyn Fn(&rusqlite::Connection) + Send + Sync;

impl Default for StoreOptions {
    fn default() -> Self {
        StoreOptions {
            queue: 1024,
            batch: 256,
            busy_timeout: Duration::from_secs(1),
            first_pause: Duration::from_millis(250),
            last_pause: Duration::from_secs(10),
            // One core is left to the measurements, whatever strangers ask of the store.
            readers: std::thread::available_parallelism().map_or(1, usize::from).saturating_sub(1).clamp(1, 3),
            read_wait: Duration::from_secs(2),
            read_limit: Duration::from_secs(10),
            #[cfg(test)]
            before_transaction: None,
        }
    }
}

/// The store: a handle that can be cloned; all clones share one writer.
///
/// Each operation waits while the store can't be written (see [`Store::health`]) and gives
/// [`StoreError::Failing`] only if the store is closed meanwhile. A caller that drops the future has
/// its operation carried out all the same, except [`Store::begin_slot`], which is taken back if it
/// was not written yet. When the last clone goes, the writer is joined.
#[derive(Clone)]
pub struct Store {
    /// First, so that it goes first: SQLite tidies up when the last connection that is closed can write.
    reader: StoreReader,
    statistics: Statistics,
    shared: Arc<Shared>,
}

struct Shared {
    sender: mpsc::Sender<Message>,
    closing: Arc<Closing>,
    health: watch::Receiver<StoreHealth>,
    commits: Arc<AtomicU64>,
    revision: watch::Receiver<i64>,
    thread: Mutex<Option<JoinHandle<Result<(), StoreError>>>>,
}

impl Store {
    /// Opens the store at `path`, creating the file (not its folder) and its tables as needed.
    /// Blocks; needs no runtime.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, StoreOptions::default())
    }

    /// Opens the store with other than the default options.
    pub fn open_with(path: &Path, options: StoreOptions) -> Result<Self, OpenError> {
        let other = |error: std::io::Error| OpenError::Other { path: path.to_owned(), detail: error.to_string() };
        let conn = connection::open_store(path, options.busy_timeout)?;
        let reader = StoreReader::new(path, &options);
        let statistics = Statistics::new(path, options.busy_timeout);
        let (sender, receiver) = mpsc::channel(options.queue.max(1));
        let (health_sender, health) = watch::channel(StoreHealth::Ok);
        let (closing, commits) = (Arc::new(Closing::default()), Arc::new(AtomicU64::new(0)));
        let latest = query::latest_revision(&conn)
            .map_err(|error| OpenError::Other { path: path.to_owned(), detail: error.to_string() })?;
        let (revision_sender, revision) = watch::channel(latest);
        let writer = Writer {
            path: path.to_owned(),
            options,
            file: FileId::of(path).map_err(other)?,
            conn: Some(conn),
            receiver,
            closing: Arc::clone(&closing),
            health: health_sender,
            commits: Arc::clone(&commits),
            revision: revision_sender,
            checkpointed: 0,
        };
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || writer.run()).map_err(other)?;
        let thread = Mutex::new(Some(thread));
        Ok(Store {
            reader,
            statistics,
            shared: Arc::new(Shared { sender, closing, health, commits, revision, thread }),
        })
    }

    /// Enters the slot into the ledger as running. If it lies in a gap of `grid` that was missed, as after a
    /// clock that was wrong, it is taken out of that.
    ///
    /// Gives [`StoreError::SlotTaken`] if it was begun or skipped before.
    pub async fn begin_slot(&self, slot: SlotId, grid: Grid, started: UnixMicros) -> Result<(), StoreError> {
        self.write(Operation::BeginSlot { slot, grid, started }).await.map(drop)
    }

    /// Stores one of several results of a running slot, which goes on.
    ///
    /// Gives [`StoreError::SlotNotRunning`] if the slot was not begun or has ended; [`StoreError::Refused`] if a
    /// run of this name is stored already.
    pub async fn add_result(&self, slot: SlotId, result: NewResult) -> Result<(), StoreError> {
        self.write(Operation::AddResult { slot, result: Box::new(result) }).await.map(drop)
    }

    /// Notes how a running slot ended, together with its results that are not stored yet: all or nothing.
    ///
    /// Gives the results' revisions, in their order. [`StoreError::SlotNotRunning`] if the slot was not
    /// begun or has ended; [`StoreError::Refused`] if a run of this name is stored already.
    pub async fn finish_slot(
        &self,
        slot: SlotId,
        state: SlotState,
        reason: Option<SlotReason>,
        ended: UnixMicros,
        results: Vec<NewResult>,
    ) -> Result<Vec<i64>, StoreError> {
        let finish = Finish { slot, state, reason, ended, results };
        match self.write(Operation::FinishSlot(finish)).await? {
            Done::Revisions(revisions) => Ok(revisions),
            _ => Ok(Vec::new()),
        }
    }

    /// Enters a slot that was not tried, or a gap of several on `grid`, into the ledger. Slots that are in
    /// it already stay as they are. Gives the number of slots entered.
    pub async fn record_slots(&self, row: SlotRow, grid: Grid) -> Result<u64, StoreError> {
        self.write_and_count(Operation::RecordSlots { row, grid }).await
    }

    /// Marks what a perfd that died left running as aborted; to be called once, at the start.
    /// Gives the number of slots.
    pub async fn abort_unfinished(&self, now: UnixMicros) -> Result<u64, StoreError> {
        self.write_and_count(Operation::AbortUnfinished { now }).await
    }

    /// Replaces what tor told of a stored run, and the lines that say so (at most [`LONGEST_EVIDENCE`] of them
    /// are kept), and gives the run's row a new revision, so that those who follow get it again.
    ///
    /// Gives that revision; `None` if there is no such run, or exactly this is stored of it already.
    pub async fn complete_run(
        &self,
        id: &RunId,
        data: CircuitData,
        evidence: Evidence,
    ) -> Result<Option<i64>, StoreError> {
        let (id, data) = (id.clone(), Box::new(data));
        match self.write(Operation::CompleteRun { id, data, evidence }).await? {
            Done::Revision(revision) => Ok(revision),
            _ => Ok(None),
        }
    }

    /// Replaces what was derived of a stored run, with a new revision like [`Store::complete_run`], if `evidence`,
    /// from which `data` was derived, is still exactly what is stored: a perfd that runs may have completed the run
    /// since it was read, and what it stored is better.
    pub async fn rederive_run(
        &self,
        id: &RunId,
        data: CircuitData,
        evidence: Evidence,
    ) -> Result<Rederived, StoreError> {
        let (id, data) = (id.clone(), Box::new(data));
        match self.write(Operation::RederiveRun { id, data, evidence }).await? {
            Done::Rederived(rederived) => Ok(rederived),
            _ => Ok(Rederived::Overtaken),
        }
    }

    /// Stores circuits that failed or that no run used; what is stored of one (the same tor, connection, id
    /// and launch) is replaced. Gives their number.
    ///
    /// [`StoreError::Refused`] if a number of one is larger than 2^63 - 1; then none is stored.
    pub async fn record_circuits(&self, circuits: Vec<LooseCircuit>) -> Result<u64, StoreError> {
        self.write_and_count(Operation::RecordCircuits(circuits)).await
    }

    /// Stores what happened to tors; an event that is stored already is not stored again. Gives the number
    /// that was added. Refused like [`Store::record_circuits`].
    pub async fn record_tor_events(&self, events: Vec<TorEvent>) -> Result<u64, StoreError> {
        self.write_and_count(Operation::RecordTorEvents(events)).await
    }

    /// Stores a note, under a revision of its own.
    ///
    /// [`StoreError::Refused`] if it replaces one that is not there, or that was replaced already.
    pub async fn annotate(&self, new: NewAnnotation) -> Result<Annotation, StoreError> {
        match self.write(Operation::Annotate(Box::new(new))).await? {
            Done::Annotated(annotation) => Ok(*annotation),
            _ => Err(StoreError::Closed),
        }
    }

    /// Lets whoever has the token with this [`hash`](crate::token::hash) write notes under this name.
    ///
    /// [`StoreError::Refused`] if there is one of that name.
    pub async fn add_token(&self, name: &str, hash: &str, created: UnixMicros) -> Result<(), StoreError> {
        let (name, hash) = (name.to_owned(), hash.to_owned());
        self.write(Operation::AddToken { name, hash, created }).await.map(drop)
    }

    /// Forgets the token of this name. Gives whether there was one.
    pub async fn remove_token(&self, name: &str) -> Result<bool, StoreError> {
        self.write_and_count(Operation::RemoveToken { name: name.to_owned() }).await.map(|count| count > 0)
    }

    /// Stores the files of a finished day, for ever. Whether it did: a day that is closed stays as it is.
    pub async fn publish(&self, day: PublishedDay) -> Result<bool, StoreError> {
        self.write_and_count(Operation::Publish(day)).await.map(|days| days > 0)
    }

    /// Whether the store can be written, and word of every change.
    pub fn health(&self) -> watch::Receiver<StoreHealth> {
        self.shared.health.clone()
    }

    /// The highest revision that this store has committed, and word of every change. What another process writes into
    /// the file becomes known here only with the next change of this one's.
    pub fn revisions(&self) -> watch::Receiver<i64> {
        self.shared.revision.clone()
    }

    /// How many transactions were committed since the store was opened.
    pub fn transactions(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// What reads the store.
    pub fn reader(&self) -> &StoreReader {
        &self.reader
    }

    /// What answers questions that read much.
    pub fn statistics(&self) -> &Statistics {
        &self.statistics
    }

    /// Commits what waits and ends the writer, within `deadline` (and one attempt) even if the store
    /// can't be written: then it gives [`StoreError::Failing`], as each waiting caller gets it.
    ///
    /// Reads are over from then on. So the writer's connection is the last one, and when it is closed
    /// SQLite puts the whole write-ahead log into the store's file and removes it.
    pub async fn close(&self, deadline: Duration) -> Result<(), StoreError> {
        let statistics = self.statistics.clone();
        let ended = tokio::task::spawn_blocking(move || statistics.close());
        // A disk that hangs is not waited for.
        let _ = tokio::time::timeout(deadline, ended).await;
        self.reader.close(deadline).await;
        let Some(thread) = self.shared.request_end(deadline) else { return Ok(()) };
        let joined = tokio::task::spawn_blocking(move || thread.join());
        match tokio::time::timeout(deadline + HUNG, joined).await {
            Ok(Ok(Ok(result))) => result,
            Ok(_) => Err(StoreError::Closed),
            Err(_) => Err(StoreError::Failing("the disk does not answer".to_owned())),
        }
    }

    async fn write(&self, operation: Operation) -> Result<Done, StoreError> {
        let (job, mut done) = Job::new(operation);
        self.shared.sender.send(Message::Job(job)).await.map_err(|_| StoreError::Closed)?;
        // A request that came while the writer ended may lie in the queue unseen. The writer has
        // answered all that it saw before its end of `health` goes.
        let mut writer = self.health();
        tokio::select! {
            biased;
            answer = &mut done => answer.unwrap_or(Err(StoreError::Closed)),
            _ = writer.wait_for(|_| false) => done.try_recv().unwrap_or(Err(StoreError::Closed)),
        }
    }

    async fn write_and_count(&self, operation: Operation) -> Result<u64, StoreError> {
        match self.write(operation).await? {
            Done::Count(count) => Ok(count),
            _ => Ok(0),
        }
    }
}

impl Shared {
    /// Tells the writer to end; gives its thread to whoever asks first.
    fn request_end(&self, deadline: Duration) -> Option<JoinHandle<Result<(), StoreError>>> {
        self.closing.request(Instant::now() + deadline);
        // If the queue is full, the writer is awake, and looks after this batch.
        let _ = self.sender.try_send(Message::Wake);
        self.thread.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(thread) = self.request_end(Duration::ZERO) {
            let _ = thread.join();
        }
    }
}
