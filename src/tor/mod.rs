//! tors under control: the connection to each, what it tells, what perfd does through it, and the tors that
//! perfd starts itself.
//!
//! A [`Tor`] is what the rest of perfd knows of one: where it can be measured through, what it told of a run,
//! how it is doing. [`supervise_all`] does the work behind it: it starts the process where that is ours, keeps the
//! connection, and creates again what was created before.

mod briefly;
pub mod control;
mod guards;
mod keeper;
mod onion;
mod output;
pub mod process;
mod redact;
mod session;
mod state;
mod supervisor;
mod thread;
pub mod torrc;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc, watch};

pub use briefly::{greet, listen};
pub use keeper::Following;
pub use onion::OnionPlan;
pub use state::{Bootstrap, Condition, OnionStatus, TorStatus};
pub use supervisor::supervise;
pub use thread::supervise_all;

use crate::circuit::book::Book;
use crate::circuit::evidence::{self, RunKey};
use crate::circuit::{Evidence, TorEvent};
use crate::clock::UnixMicros;
use crate::config;
use crate::measurement::{Kind, Measurement};
use state::State;

/// What happened to a tor is told in no more bytes than this.
const LONGEST_DETAIL: usize = 2048;

/// No more results than this wait to be completed; what tor tells later of further ones is not looked at.
const FOLLOWED: usize = 1024;

/// A glance at how a tor is doing is good for so long.
const FRESH: Duration = Duration::from_secs(1);

/// A tor of the configuration: a handle that can be cloned.
#[derive(Clone)]
pub struct Tor(Arc<Shared>);

struct Shared {
    config: config::Tor,
    /// What it is to publish, if it is to publish an onion service.
    onion: Option<OnionPlan>,
    state: Mutex<State>,
    /// The last [`Tor::glance`], and when that was.
    glance: Mutex<Option<(Instant, Arc<TorStatus>)>>,
    /// Told when a stream has ended, or the connection is lost: whoever waits for more of a run looks again.
    news: Notify,
    /// Told when tor has told something of its guards.
    guards_changed: Notify,
    /// Told when something waits to be stored.
    to_store: Notify,
    following: mpsc::Sender<Following>,
    /// Taken by [`supervise`].
    followed: Mutex<Option<mpsc::Receiver<Following>>>,
    /// Counts requests to read the torrc anew.
    reloads: watch::Sender<u64>,
    /// Told when that was done.
    reloaded: Notify,
}

impl Tor {
    /// A tor that nobody looks after yet: see [`supervise_all`].
    pub fn new(config: config::Tor, onion: Option<OnionPlan>) -> Self {
        let (following, followed) = mpsc::channel(FOLLOWED);
        Tor(Arc::new(Shared {
            state: Mutex::new(State::new(&config)),
            glance: Mutex::default(),
            config,
            onion,
            news: Notify::new(),
            guards_changed: Notify::new(),
            to_store: Notify::new(),
            following,
            followed: Mutex::new(Some(followed)),
            reloads: watch::Sender::new(0),
            reloaded: Notify::new(),
        }))
    }

    /// What the configuration calls it.
    pub fn name(&self) -> &str {
        &self.0.config.name
    }

    /// Where to measure through it; `None` while a tor of perfd's own is not up, or still bootstraps: it then takes
    /// requests and lets them wait.
    pub fn socks(&self) -> Option<SocketAddr> {
        let state = self.state();
        let started = matches!(self.0.config.run, config::TorRun::Started(_));
        state.socks.filter(|_| !started || state.is_bootstrapped())
    }

    /// The onion service that it publishes, as a host name, once its descriptor has been uploaded.
    pub fn onion_host(&self) -> Option<String> {
        let state = self.state();
        let onion = state.onion.as_ref().filter(|onion| onion.published)?;
        Some(format!("{}.onion", onion.address))
    }

    /// Whether the onion service that it publishes is a single-hop one.
    pub fn is_single_hop(&self) -> bool {
        matches!(&self.0.config.run, config::TorRun::Started(started) if started.single_hop)
    }

    /// tor's version, as of the last connection.
    pub fn version(&self) -> Option<String> {
        self.state().books.back().and_then(|book| book.version.clone())
    }

    /// What it told of a run; `None` where perfd has no control of it. `service` is the tor that publishes the
    /// onion service that the run went to.
    pub fn gather(&self, service: Option<&Tor>, run: &RunKey) -> Option<Evidence> {
        if !self.0.config.has_control() {
            return None;
        }
        let service = service.filter(|service| !Arc::ptr_eq(&service.0, &self.0));
        // The books of two tors are never locked together: what concerns the service is copied.
        let of_service = service.zip(run.onion.as_deref()).and_then(|(service, onion)| {
            let state = service.state();
            state.book_at(run.start).map(|book| book.of_onion(onion))
        });
        let state = self.state();
        let Some(book) = state.book_at(run.start) else { return Some(evidence::nothing(run)) };
        let of_service = match service {
            Some(_) => of_service.as_ref(),
            None => Some(book),
        };
        Some(evidence::gather(book, of_service, run))
    }

    /// Waits until tor has told of the end of the run's stream, for so long at most.
    pub async fn settle(&self, run: &RunKey, at_most: Duration) {
        let settled = async {
            loop {
                let news = self.0.news.notified();
                let waits = match self.state().book_at(run.start) {
                    Some(book) => book.lost.is_none() && !evidence::stream_has_ended(book, run),
                    None => false,
                };
                if !waits {
                    return;
                }
                news.await;
            }
        };
        let _ = tokio::time::timeout(at_most, settled).await;
    }

    /// Has a stored result completed with what tor tells in the next seconds. `false` if too many wait; at the
    /// end of the service nobody waits any more, which is no loss to speak of.
    pub fn follow(&self, following: Following) -> bool {
        !matches!(self.0.following.try_send(following), Err(TrySendError::Full(_)))
    }

    /// Has a tor of perfd's own read its torrc anew, lines from files included.
    pub fn reload(&self) {
        self.0.reloads.send_modify(|count| *count += 1);
    }

    /// How it is doing.
    pub fn status(&self) -> TorStatus {
        self.state().status(&self.0.config)
    }

    /// How it is doing, or was within the last second. However many ask, the lock that the control connection
    /// needs for every line is taken for this once a second at most.
    pub fn glance(&self) -> Arc<TorStatus> {
        self.glance_at(Instant::now())
    }

    fn glance_at(&self, now: Instant) -> Arc<TorStatus> {
        // Held meanwhile, so that of a crowd one looks and the others have it from there.
        let mut last = self.0.glance.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, status)) = &*last
            && now.saturating_duration_since(*at) < FRESH
        {
            return Arc::clone(status);
        }
        let status = Arc::new(self.status());
        *last = Some((now, Arc::clone(&status)));
        status
    }

    /// Whether perfd is connected to its control port.
    pub fn is_connected(&self) -> bool {
        self.state().books.back().is_some_and(|book| book.lost.is_none())
    }

    /// Returns once perfd is connected to its control port, and has asked what there was before.
    pub async fn connected(&self) {
        loop {
            let news = self.0.news.notified();
            if self.state().connected_since.is_some() {
                return;
            }
            news.await;
        }
    }

    /// What is wrong with it, if anything is.
    pub fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// Notes something that happened to it, for the store.
    fn record(&self, what: &str, detail: impl Into<String>) {
        let mut state = self.state();
        let connection = state.books.back().filter(|book| book.lost.is_none()).map_or(0, |book| book.connection);
        state.push_event(TorEvent {
            tor: self.name().to_owned(),
            at: UnixMicros::now(),
            connection,
            what: what.to_owned(),
            detail: shortened(detail.into()),
        });
        drop(state);
        self.0.to_store.notify_one();
    }

    /// Opens a new book: a connection that tells everything from now on.
    fn open_book(&self) {
        let mut state = self.state();
        let connection = state.next_connection();
        state.bootstrap = None;
        let mut book = Book::new(connection, Instant::now(), UnixMicros::now());
        if matches!(self.0.config.run, config::TorRun::Started(_)) {
            book.set_exclusive();
        }
        if let Some(onion) = &state.onion {
            book.add_own_onion(&onion.address);
        }
        state.push_book(book);
    }

    /// Closes the present book, if it is open.
    fn close_book(&self) {
        let mut state = self.state();
        if let Some(book) = state.books.back_mut().filter(|book| book.lost.is_none()) {
            book.lost = Some(Instant::now());
        }
        state.connected_since = None;
        if let Some(onion) = &mut state.onion {
            onion.published = false;
        }
        drop(state);
        self.0.news.notify_waiters();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is kept of what tor says is never longer than some lines.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(LONGEST_DETAIL));
    text
}

/// What tells a run's stream from others: of a run that began at `start` by the monotonic clock, and went to
/// this onion service (its address without `.onion`), if it went to one.
pub fn run_key(run: &Measurement, start: Instant, onion: Option<String>) -> RunKey {
    RunKey {
        user: run.user.clone().filter(|_| run.isolated != Some(false)),
        local: run.local,
        start,
        start_wall: run.start,
        ended: start + Duration::from_micros(run.ended),
        onion,
        upload: run.kind == Kind::Upload,
    }
}

/// The tors of a service, by their names.
#[derive(Clone, Default)]
pub struct Tors(Arc<BTreeMap<String, Tor>>);

impl Tors {
    /// All tors of the configuration. Those that are to publish perfd's onion service get a plan for it: a key
    /// in the state directory, and where perfd's server takes its connections.
    pub fn new(config: &config::Config, target: Option<SocketAddr>) -> Self {
        let publishers = config.onion_publishers();
        let tor = |tor: &config::Tor| {
            let publishes = publishers.contains(&tor.name.as_str());
            let onion = target
                .filter(|_| publishes)
                .map(|target| OnionPlan { key_file: key_file(config.state_directory(), &tor.name), target });
            (tor.name.clone(), Tor::new(tor.clone(), onion))
        };
        Tors(Arc::new(config.tors.iter().map(tor).collect()))
    }

    /// The tor of this name.
    pub fn get(&self, name: &str) -> Option<&Tor> {
        self.0.get(name)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Tor> {
        self.0.values()
    }
}

/// Where the key of the onion service of a tor is kept.
fn key_file(state_directory: &Path, tor: &str) -> std::path::PathBuf {
    state_directory.join(format!("onion-{tor}.key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_looks_once_a_second() {
        let run = config::TorRun::Address { socks: ([127, 0, 0, 1], 9050).into(), control: None };
        let tor = config::Tor { name: "tor".to_owned(), run, drop_guards_every: None, drop_timeouts_every: None };
        let (tor, begun) = (Tor::new(tor, None), Instant::now());
        let first = tor.glance_at(begun);
        assert_eq!(*first, tor.status());
        tor.state().problem = Some("lost".to_owned());
        for later in [Duration::ZERO, FRESH - Duration::from_millis(1)] {
            assert!(Arc::ptr_eq(&tor.glance_at(begun + later), &first), "{later:?}");
        }
        assert_eq!(tor.status().problem.as_deref(), Some("lost"), "who needs it at once has it at once");
        let second = tor.glance_at(begun + FRESH);
        assert_eq!(second.problem.as_deref(), Some("lost"));
        assert!(Arc::ptr_eq(&tor.glance_at(begun), &second), "a look of another thread, a moment later");
    }
}
