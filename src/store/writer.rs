//! The one thread that writes.
//!
//! It owns the one writing connection. Whatever waits goes into one transaction, and a caller hears
//! of its request only after the commit. While the store can't be written, the batch is kept and
//! tried again with a growing pause; callers wait, and the bounded queue makes further ones wait.
//!
//! What is committed goes on from the write-ahead log into the file after the callers have been told, since that
//! waits for the disk twice.

use std::cell::Cell;
use std::ffi::c_int;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::hooks::Wal;
use rusqlite::{Connection, ErrorCode};
use tokio::sync::{mpsc, oneshot, watch};

use super::StoreOptions;
use super::connection::{FileId, open_for_writing};
use super::error::{StoreError, StoreHealth};
use super::operation::{Done, Fault, Operation, apply};
use super::query::latest_revision;
use crate::clock::UnixMicros;

/// How many pages (of 4 KiB) are added to the write-ahead log before it goes into the file. An import that goes on beside
/// this puts it there sooner.
const LOG_PAGES: c_int = 4000;

/// How long the writer waits before it asks again for a lock that another process holds. One that imports leaves it
/// free for moments, which SQLite's own pauses, up to 100 ms, would miss.
const LOCK_PAUSE: Duration = Duration::from_micros(200);

thread_local! {
    /// How many pages there were in the write-ahead log after the last commit of this thread.
    static LOGGED: Cell<c_int> = const { Cell::new(0) };
}

/// What the writer is sent.
#[derive(Debug)]
pub(super) enum Message {
    /// Something to write.
    Job(Job),
    /// Nothing; the writer is to look whether it shall end.
    Wake,
}

/// An operation and the caller that waits for it.
#[derive(Debug)]
pub(super) struct Job {
    operation: Operation,
    done: oneshot::Sender<Result<Done, StoreError>>,
    /// Whether a transaction with it has failed before.
    tried: bool,
}

impl Job {
    /// The job, and where its caller hears of it.
    pub(super) fn new(operation: Operation) -> (Self, oneshot::Receiver<Result<Done, StoreError>>) {
        let (done, receiver) = oneshot::channel();
        (Job { operation, done, tried: false }, receiver)
    }

    /// A slot whose caller has gone has nobody to run it, so it must not begin.
    fn taken_back(&self) -> bool {
        self.done.is_closed() && matches!(self.operation, Operation::BeginSlot { .. })
    }
}

/// When the writer shall end: set once, from outside.
#[derive(Debug, Default)]
pub(super) struct Closing {
    deadline: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Closing {
    /// The writer shall write what waits and end, by `deadline` even if the store can't be written.
    pub(super) fn request(&self, deadline: Instant) {
        self.lock().get_or_insert(deadline);
        self.changed.notify_all();
    }

    fn requested(&self) -> bool {
        self.lock().is_some()
    }

    /// Waits before another attempt; false says to give up instead. An end that was requested
    /// shortens the pause to `hurried`.
    fn pause(&self, long: Duration, hurried: Duration) -> bool {
        let begun = Instant::now();
        let mut deadline = self.lock();
        loop {
            let now = Instant::now();
            let until = match *deadline {
                Some(end) if now >= end => return false,
                Some(end) => end.min(begun + long.min(hurried)),
                None => begun + long,
            };
            if now >= until {
                return true;
            }
            let waited = self.changed.wait_timeout(deadline, until - now);
            deadline = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer's state; [`Writer::run`] is its thread.
pub(super) struct Writer {
    pub path: PathBuf,
    pub options: StoreOptions,
    /// The file that was opened: another one at the same path is not written to.
    pub file: FileId,
    pub conn: Option<Connection>,
    pub receiver: mpsc::Receiver<Message>,
    pub closing: Arc<Closing>,
    pub health: watch::Sender<StoreHealth>,
    /// How many transactions were committed.
    pub commits: Arc<AtomicU64>,
    /// The highest revision committed, as far as this writer knows.
    pub revision: watch::Sender<i64>,
    /// How many pages of the log had gone into the file when they did last.
    pub checkpointed: c_int,
}

impl Writer {
    /// Writes until the end is requested and nothing waits any more, or its deadline has passed.
    pub(super) fn run(mut self) -> Result<(), StoreError> {
        if let Some(conn) = &self.conn {
            conn.wal_hook(Some(note_logged));
        }
        while let Some(message) = self.next() {
            if let Err(error) = self.write(message) {
                self.receiver.close();
                while let Ok(message) = self.receiver.try_recv() {
                    answer(message, &error);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits for something to write; `None` is the end.
    ///
    /// Once the end is requested it does not wait: a caller may have a place in the queue and never
    /// fill it, and tokio's receiver would wait for that place.
    fn next(&mut self) -> Option<Message> {
        if self.closing.requested() {
            self.receiver.close();
            return self.receiver.try_recv().ok();
        }
        self.receiver.blocking_recv()
    }

    /// Adds what else is waiting, up to the cap, and drops what was taken back.
    fn fill(&mut self, batch: &mut Vec<Job>) {
        while batch.len() < self.options.batch.max(1) {
            match self.receiver.try_recv() {
                Ok(Message::Job(job)) => batch.push(job),
                Ok(Message::Wake) => {}
                Err(_) => break,
            }
        }
        batch.retain(|job| !job.taken_back());
    }

    /// Writes what waits, beginning with `first`, however long it takes; an error says that it had
    /// to give up.
    fn write(&mut self, first: Message) -> Result<(), StoreError> {
        let mut batch = match first {
            Message::Job(job) => vec![job],
            Message::Wake => Vec::new(),
        };
        let mut pause = self.options.first_pause;
        loop {
            self.fill(&mut batch);
            // While the store fails, an empty batch is tried too, so that health turns green by itself.
            if batch.is_empty() && (*self.health.borrow() == StoreHealth::Ok || self.closing.requested()) {
                return Ok(());
            }
            let error = match self.attempt(&batch) {
                Ok(results) => {
                    self.turn_green();
                    for (job, result) in batch.into_iter().zip(results) {
                        // A caller that has gone does not want to know.
                        let _ = job.done.send(result);
                    }
                    self.checkpoint();
                    return Ok(());
                }
                Err(error) => error,
            };
            self.turn_red(&error);
            batch.iter_mut().for_each(|job| job.tried = true);
            if !self.closing.pause(pause, self.options.first_pause) {
                let error = StoreError::Failing(error);
                batch.into_iter().for_each(|job| answer(Message::Job(job), &error));
                return Err(error);
            }
            pause = (pause * 2).min(self.options.last_pause);
        }
    }

    /// One transaction with the whole batch; what each request came to, or the store's error.
    fn attempt(&mut self, batch: &[Job]) -> Result<Vec<Result<Done, StoreError>>, String> {
        // A file that was moved away still takes writes, and they would be lost with it.
        if FileId::of(&self.path).ok() != Some(self.file) {
            return Err("the file was moved away or replaced while perfd had it open; \
                        put it back, or restart perfd to go on with what is there now"
                .to_owned());
        }
        let outcome = self.transact(batch);
        let result = outcome.map_err(|error| {
            let passing = matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::DiskFull)
            );
            if !passing || self.conn.as_ref().is_some_and(|conn| !conn.is_autocommit()) {
                self.conn = None;
            }
            error.to_string()
        })?;
        self.commits.fetch_add(1, Ordering::Relaxed);
        Ok(result)
    }

    fn transact(&mut self, batch: &[Job]) -> rusqlite::Result<Vec<Result<Done, StoreError>>> {
        let conn = match &mut self.conn {
            Some(conn) => conn,
            closed => {
                let conn = open_for_writing(&self.path, false, self.options.busy_timeout)?;
                conn.wal_hook(Some(note_logged));
                closed.insert(conn)
            }
        };
        #[cfg(test)]
        if let Some(hook) = &self.options.before_transaction {
            hook(conn);
        }
        begin(conn, self.options.busy_timeout)?;
        let outcome = carry_out(conn, batch).and_then(|results| {
            let revision = latest_revision(conn)?;
            conn.execute_batch("COMMIT")?;
            self.revision.send_if_modified(|known| std::mem::replace(known, revision) != revision);
            Ok(results)
        });
        if outcome.is_err() && !conn.is_autocommit() {
            // Where this fails, the connection is closed for it.
            let _ = conn.execute_batch("ROLLBACK");
        }
        outcome
    }

    /// Puts the log into the file if it has grown enough. What fails now is done the next time.
    fn checkpoint(&mut self) {
        let logged = LOGGED.get();
        // The log began anew if it is shorter.
        let done = if logged < self.checkpointed { 0 } else { self.checkpointed };
        let Some(conn) = self.conn.as_ref().filter(|_| logged - done >= LOG_PAGES) else { return };
        let _ = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        self.checkpointed = logged;
    }

    fn turn_red(&self, error: &str) {
        self.health.send_if_modified(|health| match health {
            StoreHealth::Ok => {
                tracing::error!(path = %self.path.display(), error, "the store cannot be written; what is to be written waits");
                *health = StoreHealth::Failing { since: UnixMicros::now(), error: error.to_owned() };
                true
            }
            StoreHealth::Failing { error: known, .. } if known == error => false,
            StoreHealth::Failing { error: known, .. } => {
                *known = error.to_owned();
                true
            }
        });
    }

    fn turn_green(&self) {
        self.health.send_if_modified(|health| {
            let was_red = *health != StoreHealth::Ok;
            if was_red {
                tracing::info!(path = %self.path.display(), "the store can be written again");
            }
            *health = StoreHealth::Ok;
            was_red
        });
    }
}

/// Begins a transaction that writes, within this time.
fn begin(conn: &Connection, within: Duration) -> rusqlite::Result<()> {
    let begun = Instant::now();
    conn.busy_timeout(Duration::ZERO)?;
    let outcome = loop {
        match conn.execute_batch("BEGIN IMMEDIATE") {
            Err(error) if is_locked(&error) && begun.elapsed() < within => std::thread::sleep(LOCK_PAUSE),
            outcome => break outcome,
        }
    };
    conn.busy_timeout(within)?;
    outcome
}

fn is_locked(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Each request of the batch, within a transaction; an error is the store's.
fn carry_out(conn: &mut Connection, batch: &[Job]) -> rusqlite::Result<Vec<Result<Done, StoreError>>> {
    if batch.is_empty() {
        conn.execute("UPDATE counter SET value = value", [])?;
    }
    let mut results = Vec::with_capacity(batch.len());
    for job in batch {
        // As it waited for the lock, its caller may have gone.
        if job.taken_back() {
            results.push(Ok(Done::Nothing));
            continue;
        }
        // In a savepoint of its own, a request that breaks a rule leaves the others' untouched.
        let savepoint = conn.savepoint()?;
        match apply(&savepoint, &job.operation, job.tried) {
            Ok(done) => {
                savepoint.commit()?;
                results.push(Ok(done));
            }
            Err(Fault::Request(error)) => {
                savepoint.finish()?;
                results.push(Err(error));
            }
            Err(Fault::Store(error)) => return Err(error),
        }
    }
    Ok(results)
}

/// Called by SQLite after each commit, in place of its own putting the log into the file.
fn note_logged(_: &Wal, pages: c_int) -> rusqlite::Result<()> {
    LOGGED.set(pages);
    Ok(())
}

fn answer(message: Message, error: &StoreError) {
    if let Message::Job(job) = message {
        let _ = job.done.send(Err(error.clone()));
    }
}
