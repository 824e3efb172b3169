//! The measuring thread: a runtime of its own, which the server, the store and the log can't delay.

use std::io;
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::{Measured, measured};
use crate::measurement::Request;

/// Runs that may wait for the thread to take them up; it does so at once, so few ever wait.
const QUEUE: usize = 16;

/// A handle to the measuring thread. The thread ends when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Prober {
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    request: Request,
    reply: oneshot::Sender<Measured>,
}

impl Prober {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives no thread or no runtime.
    pub fn start() -> io::Result<(Prober, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("measure".into()).spawn(move || runtime.block_on(work(queue)))?;
        Ok((Prober { jobs }, thread))
    }

    /// Measures in the thread. A caller that stops waiting ends the run.
    ///
    /// Returns `None` if the thread is gone, or the run panicked.
    pub async fn measure(&self, request: Request) -> Option<Measured> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job { request, reply }).await.ok()?;
        answer.await.ok()
    }
}

async fn work(mut queue: mpsc::Receiver<Job>) {
    let mut runs = JoinSet::new();
    loop {
        tokio::select! {
            job = queue.recv() => match job {
                Some(job) => { runs.spawn(run(job)); }
                None => break,
            },
            Some(_) = runs.join_next() => {}
        }
    }
    runs.shutdown().await;
}

async fn run(Job { request, mut reply }: Job) {
    tokio::select! {
        measured = measured(&request) => {
            let _ = reply.send(measured);
        }
        () = reply.closed() => {}
    }
}
