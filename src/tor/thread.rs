//! The control thread: a runtime of its own, in which the server, however busy, can't delay when tor's word is noted.

use std::io;
use std::thread::JoinHandle;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{Tor, Tors, supervise};
use crate::store::Store;

/// Tells how the work of the thread ended: an error is a panic.
pub type Ended = oneshot::Receiver<Result<(), JoinError>>;

/// Looks after these tors in a thread of its own until `shutdown`. The receiver is told when the last has ended, or
/// at once if one ends before its time; the thread goes on until all have.
///
/// # Errors
/// If the system gives no thread or no runtime.
pub fn supervise_all(tors: &Tors, store: &Store, shutdown: &CancellationToken) -> io::Result<(Ended, JoinHandle<()>)> {
    let (over, told) = oneshot::channel();
    let (tors, store, shutdown) = (tors.iter().cloned().collect(), store.clone(), shutdown.clone());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = std::thread::Builder::new().name("control".into());
    let thread = thread.spawn(move || runtime.block_on(work(tors, store, shutdown, over)))?;
    Ok((told, thread))
}

async fn work(tors: Vec<Tor>, store: Store, shutdown: CancellationToken, over: oneshot::Sender<Result<(), JoinError>>) {
    let mut all: JoinSet<()> = tors.into_iter().map(|tor| supervise(tor, store.clone(), shutdown.clone())).collect();
    let mut over = Some(over);
    while let Some(ended) = all.join_next().await {
        if ended.is_err() || !shutdown.is_cancelled() {
            over.take().map(|over| over.send(ended));
        }
    }
    over.take().map(|over| over.send(Ok(())));
}
