//! What statistics are made by, which may take a while: one question at a time, in a thread of its own that every
//! other one of perfd goes before, on a connection of its own, with a deadline that SQLite itself is held to.
//!
//! A question reads in many short reads (a day or so each), so that none of them keeps the write-ahead log from being
//! emptied for long.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::StoreError;
use super::connection::open_for_reading;
use super::reading::Reading;

/// So many questions may wait beside the one that is being answered; further ones are refused.
const WAITING: usize = 4;

/// The weight that the kernel gives the thread: the least.
const LEAST: i32 = 19;

/// SQLite looks at the deadline after so many steps of its machine, some microseconds.
const STEPS: i32 = 10_000;

/// Answers questions that read much: a handle that can be cloned; all clones share one thread.
#[derive(Clone)]
pub struct Statistics {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    busy_timeout: Duration,
    closing: Arc<AtomicBool>,
    /// The thread and the way to it, from the first question on; none when closed.
    thread: Mutex<Option<(SyncSender<Job>, JoinHandle<()>)>>,
}

/// What answers a question, and tells who asked.
type Work = Box<dyn FnOnce(&Connection) -> rusqlite::Result<()> + Send>;

/// A question under way.
struct Job {
    deadline: Instant,
    /// Nobody waits for the answer any more.
    given_up: Arc<AtomicBool>,
    work: Work,
    refuse: oneshot::Sender<StoreError>,
}

impl Statistics {
    /// Of the file at `path`, which need not be there yet.
    pub(super) fn new(path: &Path, busy_timeout: Duration) -> Self {
        let shared = Shared { path: path.to_owned(), busy_timeout, closing: Arc::default(), thread: Mutex::default() };
        Statistics { shared: Arc::new(shared) }
    }

    /// Asks a question that may read for so long, waiting for its turn included.
    ///
    /// Gives [`StoreError::Busy`] at once if too many wait already, [`StoreError::Overdue`] if the time runs out,
    /// [`StoreError::Unreadable`] if SQLite fails. If the future is dropped, the reading ends soon.
    pub async fn ask<T: Send + 'static>(
        &self,
        limit: Duration,
        question: impl FnOnce(&Reading<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let deadline = Instant::now() + limit;
        let (answer, mut answered) = oneshot::channel();
        let (refuse, mut refused) = oneshot::channel();
        let given_up = GivenUp(Arc::default());
        let work = Box::new(move |conn: &Connection| {
            let result = question(&Reading::of(conn))?;
            // Who asked may have gone.
            let _ = answer.send(result);
            Ok(())
        });
        self.shared.send(Job { deadline, given_up: Arc::clone(&given_up.0), work, refuse })?;
        // The thread keeps to the deadline, but for a disk that hangs.
        let patience = tokio::time::sleep_until((deadline + Duration::from_secs(1)).into());
        tokio::select! {
            biased;
            Ok(answer) = &mut answered => Ok(answer),
            refusal = &mut refused => match (refusal, answered.try_recv()) {
                (Ok(refusal), _) => Err(refusal),
                // The answer was given between the two looks.
                (Err(_), Ok(answer)) => Ok(answer),
                (Err(_), Err(_)) => Err(StoreError::Closed),
            },
            () = patience => Err(StoreError::Overdue),
        }
    }

    /// Ends the reading under way and the thread. Blocks for some milliseconds, as long as the disk answers.
    pub(super) fn close(&self) {
        self.shared.close();
    }
}

impl Shared {
    fn send(&self, job: Job) -> Result<(), StoreError> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(StoreError::Closed);
        }
        let mut thread = self.lock();
        let sender = match &*thread {
            Some((sender, _)) => sender.clone(),
            None => {
                let (sender, jobs) = sync_channel(WAITING);
                let (path, busy_timeout) = (self.path.clone(), self.busy_timeout);
                let closing = Arc::clone(&self.closing);
                let handle = std::thread::Builder::new()
                    .name("statistics".to_owned())
                    .spawn(move || answer_all(&path, busy_timeout, &closing, &jobs))
                    .map_err(|error| StoreError::Unreadable(error.to_string()))?;
                thread.insert((sender, handle)).0.clone()
            }
        };
        sender.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::Busy,
            TrySendError::Disconnected(_) => StoreError::Closed,
        })
    }

    fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let thread = self.lock().take();
        if let Some((sender, handle)) = thread {
            drop(sender);
            let _ = handle.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<(SyncSender<Job>, JoinHandle<()>)>> {
        self.thread.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

/// Tells the thread that nobody waits any more.
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn answer_all(path: &Path, busy_timeout: Duration, closing: &Arc<AtomicBool>, jobs: &Receiver<Job>) {
    // Where the kernel refuses, the thread is as good as any other; it is one all the same.
    if let Err(error) = rustix::process::setpriority_process(None, LEAST) {
        tracing::debug!(%error, "the thread of the statistics keeps its priority");
    }
    let mut open = None;
    for Job { deadline, given_up, work, refuse } in jobs {
        if closing.load(Ordering::SeqCst) {
            return;
        }
        if given_up.load(Ordering::Relaxed) {
            continue;
        }
        let over = {
            let closing = Arc::clone(closing);
            move || Instant::now() >= deadline || given_up.load(Ordering::Relaxed) || closing.load(Ordering::SeqCst)
        };
        if over() {
            let _ = refuse.send(StoreError::Overdue);
            continue;
        }
        if let Err(error) = answer(&mut open, path, busy_timeout, over, work) {
            open = None;
            let _ = refuse.send(error);
        }
    }
}

/// Answers one question, on the connection that is open or on a new one.
fn answer(
    open: &mut Option<Connection>,
    path: &Path,
    busy_timeout: Duration,
    over: impl FnMut() -> bool + Send + 'static,
    work: Work,
) -> Result<(), StoreError> {
    let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => StoreError::Overdue,
        _ => StoreError::Unreadable(error.to_string()),
    };
    let conn = match open {
        Some(conn) => conn,
        None => open.insert(open_for_reading(path, busy_timeout).map_err(failed)?),
    };
    conn.progress_handler(STEPS, Some(over)).map_err(failed)?;
    let done = work(conn).map_err(failed);
    conn.progress_handler(STEPS, None::<fn() -> bool>).map_err(failed)?;
    done
}
