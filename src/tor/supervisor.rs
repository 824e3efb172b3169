//! Looking after a tor: started where it is ours, connected to, and again after each end of either.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::process::{NoControl, Process};
use super::redact::redacted;
use super::session::{self, SessionError};
use super::{Tor, keeper};
use crate::config::{Control, ControlAddress, StartedTor, TorRun};
use crate::store::Store;

/// The pause before a second attempt; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest pause between two attempts.
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// What has held for so long counts as a success, after which the pauses are short again.
const HELD: Duration = Duration::from_secs(60);

/// How often it is looked whether a bootstrap moves on.
const LOOK: Duration = Duration::from_secs(1);

/// Looks after a tor until `shutdown`; a tor of perfd's own has ended by then. What is wrong is logged, stored
/// and shown, never an end of this.
pub async fn supervise(tor: Tor, store: Store, shutdown: CancellationToken) {
    let Some(followed) = tor.0.followed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() else {
        error!(tor = tor.name(), "this tor is looked after already");
        return;
    };
    let looked_after = async {
        match &tor.0.config.run {
            TorRun::Address { control: Some(control), .. } => tokio::select! {
                never = keep_connected(&tor, control) => match never {},
                () = shutdown.cancelled() => {}
            },
            TorRun::Address { control: None, .. } => shutdown.cancelled().await,
            TorRun::Started(started) => keep_running(&tor, started, &shutdown).await,
        }
    };
    tokio::join!(looked_after, keeper::keep(&tor, followed, &store, &shutdown));
}

/// Connects to a tor that somebody else runs, and again whenever the connection ends.
async fn keep_connected(tor: &Tor, control: &Control) -> Infallible {
    let mut pauses = Pauses::new();
    loop {
        let begun = Instant::now();
        let ended = match password(control) {
            Ok(password) => session::run(tor, &control.address, password.as_deref()).await,
            Err(error) => error,
        };
        report(tor, &ended.to_string());
        sleep(pauses.after(begun)).await;
    }
}

/// The password for a control port, where a file holds one.
pub(super) fn password(control: &Control) -> Result<Option<String>, SessionError> {
    let Some(file) = &control.password_file else { return Ok(None) };
    let unreadable = |error| SessionError::Password { file: file.display().to_string(), error };
    let text = super::onion::read_small(file).map_err(unreadable)?;
    Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
}

/// Starts the tor, and again whenever it has ended.
async fn keep_running(tor: &Tor, started: &StartedTor, shutdown: &CancellationToken) {
    let mut pauses = Pauses::new();
    let target = tor.0.onion.as_ref().map(|plan| plan.target);
    while !shutdown.is_cancelled() {
        let begun = Instant::now();
        tor.state().reloads_done = *tor.0.reloads.borrow();
        match Process::start(started, tor.name(), target) {
            Ok(process) => run_once(tor, started, process, shutdown).await,
            Err(error) => {
                report(tor, &error.to_string());
                tor.record("not_started", redacted(&error.to_string()));
            }
        }
        tokio::select! {
            () = sleep(pauses.after(begun)) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// From a started process to its end.
async fn run_once(tor: &Tor, started: &StartedTor, mut process: Process, shutdown: &CancellationToken) {
    let pid = process.pid();
    {
        let mut state = tor.state();
        state.pid = Some(pid);
        state.starts += 1;
        state.progress = Instant::now();
        state.bootstrap = None;
        state.transport = process.transport().map(str::to_owned);
    }
    tor.record("started", format!("pid {pid}"));
    let why = tokio::select! {
        biased;
        () = shutdown.cancelled() => None,
        why = until_over(tor, started, &mut process) => Some(why),
    };
    process.end().await;
    tor.close_book();
    {
        let mut state = tor.state();
        state.pid = None;
        state.socks = None;
        state.bootstrap = None;
    }
    if let Some((what, detail)) = why {
        report(tor, &detail);
        tor.record(what, redacted(&detail));
    }
}

/// Connects to a started tor until it has ended or hangs; what happened, in a word and a sentence.
async fn until_over(tor: &Tor, started: &StartedTor, process: &mut Process) -> (&'static str, String) {
    let control = match process.control(started.bootstrap_timeout).await {
        Ok(address) => Control { address: ControlAddress::Tcp(address), password_file: None },
        Err(error @ NoControl::Ended(_)) => return ("exited", error.to_string()),
        Err(error @ NoControl::Late(_)) => return ("stuck", format!("{error}; it is started again")),
    };
    tokio::select! {
        biased;
        ended = process.wait() => ("exited", ended.to_string()),
        () = until_stuck(tor, started.bootstrap_timeout) => {
            let seconds = started.bootstrap_timeout.as_secs_f64();
            ("stuck", format!("no progress for {seconds} s{}; it is started again", how_far(tor)))
        }
        never = keep_connected(tor, &control) => match never {},
    }
}

/// Returns once the tor has made no progress towards being ready, or can't be talked to, for so long.
async fn until_stuck(tor: &Tor, timeout: Duration) {
    loop {
        sleep(LOOK.min(timeout)).await;
        let connected = tor.is_connected();
        let mut state = tor.state();
        if connected && state.is_bootstrapped() {
            state.progress = Instant::now();
        }
        if state.progress.elapsed() >= timeout {
            return;
        }
    }
}

fn how_far(tor: &Tor) -> String {
    let state = tor.state();
    state.bootstrap.as_ref().map_or(String::new(), |b| format!(" at {} % ({}: {})", b.percent, b.tag, b.summary))
}

/// Says what is wrong, once as long as it is the same: the log whole, everybody without what gives a bridge away.
fn report(tor: &Tor, problem: &str) {
    let shown = match &tor.0.config.run {
        TorRun::Started(_) => redacted(problem),
        TorRun::Address { .. } => problem.to_owned(),
    };
    let before = tor.state().problem.replace(shown.clone());
    if before != Some(shown) {
        warn!(tor = tor.name(), "{problem}");
    }
}

/// Pauses that grow.
struct Pauses(Duration);

impl Pauses {
    fn new() -> Self {
        Pauses(FIRST_PAUSE)
    }

    /// The pause after an attempt that was begun then.
    fn after(&mut self, begun: Instant) -> Duration {
        if begun.elapsed() >= HELD {
            self.0 = FIRST_PAUSE;
        }
        let pause = self.0;
        self.0 = (self.0 * 2).min(LAST_PAUSE);
        pause
    }
}
