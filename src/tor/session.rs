//! What is said on one control connection, from PROTOCOLINFO to its end.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use super::control::{self, Commands, ControlError, REPLY_DEADLINE};
use super::guards::{candidates, choose};
use super::state::{Bootstrap, OnionStatus};
use super::torrc::ONION_FOLDER;
use super::{Tor, onion};
use crate::circuit::event::{self, Event, StatusLine};
use crate::clock::{Clock, UnixMicros};
use crate::config::{ControlAddress, GuardSet, StartedTor, TorRun};
use crate::slot::Grid;

/// What is subscribed to, as far as this tor offers it.
const EVENTS: [&str; 10] = [
    "CIRC",
    "CIRC_MINOR",
    "STREAM",
    "STREAM_BW",
    "CIRC_BW",
    "BUILDTIMEOUT_SET",
    "GUARD",
    "STATUS_CLIENT",
    "HS_DESC",
    "CONN_BW",
];

/// A tor is asked this often whether it still answers, and for its guards.
const ROUTINE: Duration = Duration::from_secs(30);

/// After GUARD events, the guards are asked for once this much later: they come in swarms.
const GUARDS_PAUSE: Duration = Duration::from_millis(500);

/// The consensus is looked at this often for guards chosen by speed.
const CHOICE: Duration = Duration::from_secs(3600);

/// Scheduled commands come so long after the full hour or day, so as not to fall into the runs that start then.
const BESIDE_RUNS: Duration = Duration::from_secs(45);

/// A service of the connection before may still be there for a moment.
const ONION_TRIES: u32 = 20;
const ONION_PAUSE: Duration = Duration::from_millis(500);

/// The consensus of the public network is a few megabytes long.
const CONSENSUS_DEADLINE: Duration = Duration::from_secs(60);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Key(#[from] onion::KeyError),
    #[error("the password for tor's control port can't be read from {file}: {error}")]
    Password { file: String, error: std::io::Error },
    #[error("tor's answer to {0} can't be understood")]
    Unclear(&'static str),
    #[error("tor answered something else to GETINFO {0}; perfd connects anew")]
    NotTheAnswer(&'static str),
}

/// Connects, and keeps the connection until it ends; the error says why it did.
pub(super) async fn run(tor: &Tor, address: &ControlAddress, password: Option<&str>) -> SessionError {
    let stream = match control::open(address).await {
        Ok(stream) => stream,
        Err(error) => return error.into(),
    };
    let (commands, driver) = control::start(stream);
    let ended = tokio::select! {
        biased;
        // First: tor says why it refuses, and then closes the connection.
        error = converse(tor, &commands, password, &Clock::System) => error,
        error = driver.run(|at, line| hear(tor, at, line)) => error.into(),
    };
    let was_connected = tor.is_connected();
    tor.close_book();
    if was_connected {
        tor.record("lost", ended.to_string());
    }
    ended
}

/// Takes in an event. This is where thousands of lines a second arrive: nothing here waits.
fn hear(tor: &Tor, at: Instant, line: &[u8]) {
    let line = String::from_utf8_lossy(line);
    let mut state = tor.state();
    let Some(book) = state.books.back_mut().filter(|book| book.lost.is_none()) else { return };
    match book.note(at, &line) {
        Event::CircuitBandwidth(_) => {}
        Event::Stream(_) => tor.0.news.notify_waiters(),
        Event::Circuit(_) => tor.0.to_store.notify_one(),
        Event::Guard(_) => tor.0.guards_changed.notify_one(),
        Event::StatusClient(status) => {
            if let Some(bootstrap) = bootstrap(&status) {
                drop(state);
                note_bootstrap(tor, bootstrap);
            }
        }
        Event::Descriptor(descriptor) if descriptor.action == "UPLOADED" => {
            let address = descriptor.address;
            if let Some(onion) = state.onion.as_mut().filter(|onion| onion.address == address)
                && !std::mem::replace(&mut onion.published, true)
            {
                onion.uploaded = Some(UnixMicros::now());
                drop(state);
                let detail = format!("{address}.onion: the first directory has its descriptor");
                info!(tor = tor.name(), "{detail}");
                tor.record("onion_uploaded", detail);
            }
        }
        Event::Descriptor(_) | Event::BuildTimeout(_) | Event::Other(_) => {}
    }
}

fn bootstrap(status: &StatusLine<'_>) -> Option<Bootstrap> {
    let percent = status.words.get("PROGRESS")?.parse().ok()?;
    let text = |key| super::shortened(status.words.text(key).unwrap_or_default());
    (status.action == "BOOTSTRAP").then(|| Bootstrap {
        percent,
        tag: text("TAG"),
        summary: text("SUMMARY"),
        since: UnixMicros::now(),
    })
}

fn note_bootstrap(tor: &Tor, bootstrap: Bootstrap) {
    let mut state = tor.state();
    let before = state.bootstrap.as_ref();
    if before.is_some_and(|before| (before.percent, &before.tag) == (bootstrap.percent, &bootstrap.tag)) {
        return;
    }
    state.progress = Instant::now();
    let transport = state.transport.as_ref().map_or(String::new(), |transport| format!(", by {transport}"));
    let detail = format!("{} % ({}): {}{transport}", bootstrap.percent, bootstrap.tag, bootstrap.summary);
    let done = bootstrap.percent >= 100;
    state.bootstrap = Some(bootstrap);
    if done {
        state.problem = None;
    }
    drop(state);
    if done {
        info!(tor = tor.name(), "ready: bootstrapped {detail}");
    }
    tor.record("bootstrap", detail);
    tor.0.news.notify_waiters();
}

/// The conversation; never ends but by an error. Of the clock are the times of what is scheduled.
async fn converse(tor: &Tor, commands: &Commands, password: Option<&str>, clock: &Clock) -> SessionError {
    match introduce(tor, commands, password).await {
        Ok(()) => {}
        Err(error) => return error,
    }
    let config = &tor.0.config;
    let started = match &config.run {
        TorRun::Started(started) => Some(started),
        TorRun::Address { .. } => None,
    };
    let guard_set = started.and_then(|started| started.guards.as_ref());
    tokio::select! {
        error = routine(tor, commands) => error,
        error = forever(publish(tor, commands)) => error,
        error = forever_if(guard_set, |set| keep_guard_set(tor, commands, set)) => error,
        error = on_schedule(tor, commands, clock, "DROPGUARDS", config.drop_guards_every) => error,
        error = on_schedule(tor, commands, clock, "DROPTIMEOUTS", config.drop_timeouts_every) => error,
        error = reloads(tor, commands, started) => error,
    }
}

/// Authenticates, subscribes, and asks what there is already.
async fn introduce(tor: &Tor, commands: &Commands, password: Option<&str>) -> Result<(), SessionError> {
    let version = control::authenticate(commands, password).await?;
    let started = matches!(tor.0.config.run, TorRun::Started(_));
    if started {
        // It ends with this connection, and so with perfd, however that ends.
        commands.ask("TAKEOWNERSHIP").await?;
    }
    let offered = get_info(commands, "events/names").await?;
    // SETEVENTS fails whole on a name that this tor does not know.
    let wanted: Vec<&str> = EVENTS.into_iter().filter(|event| offered.split(' ').any(|name| name == *event)).collect();
    if let TorRun::Started(StartedTor { single_hop: true, data, .. }) = &tor.0.config.run
        && tor.0.onion.is_some()
    {
        // Its torrc has it, and tor keeps the key. Before the events: one of them says that it is published.
        note_onion(tor, onion::hostname(&data.join(ONION_FOLDER))?);
    }
    tor.open_book();
    commands.ask(&format!("SETEVENTS {}", wanted.join(" "))).await?;
    {
        let mut state = tor.state();
        if let Some(book) = state.books.back_mut() {
            book.listening(Instant::now(), UnixMicros::now());
            book.version = Some(version.to_string());
        }
    }
    let circuits = get_info(commands, "circuit-status").await?;
    {
        let (mut state, now) = (tor.state(), Instant::now());
        if let Some(book) = state.books.back_mut() {
            circuits.lines().for_each(|line| book.found(now, line));
        }
    }
    if started {
        let socks = get_info(commands, "net/listeners/socks").await?;
        let socks = socks.split(' ').find_map(|address| address.trim_matches('"').parse().ok());
        tor.state().socks = socks;
    }
    let phase = get_info(commands, "status/bootstrap-phase").await?;
    if let Event::StatusClient(status) = event::parse(&format!("STATUS_CLIENT {phase}"))
        && let Some(bootstrap) = bootstrap(&status)
        // What an event has told since is newer.
        && tor.state().bootstrap.is_none()
    {
        note_bootstrap(tor, bootstrap);
    }
    ask_for_guards(tor, commands).await?;
    let missing: Vec<&str> = EVENTS.into_iter().filter(|event| !wanted.contains(event)).collect();
    if !missing.is_empty() {
        warn!(tor = tor.name(), "tor {version} does not offer the events {}", missing.join(", "));
    }
    {
        let mut state = tor.state();
        state.connected_since = Some(UnixMicros::now());
        // A tor of perfd's own that hung before may hang again.
        if !started || state.is_bootstrapped() {
            state.problem = None;
        }
    }
    tor.0.news.notify_waiters();
    info!(tor = tor.name(), %version, connection = tor.status().connection, "connected to tor's control port");
    tor.record("connected", format!("tor {version}"));
    Ok(())
}

/// What tor answers to `GETINFO key`. An answer to something else means that no further one can be trusted.
async fn get_info(commands: &Commands, key: &'static str) -> Result<String, SessionError> {
    get_info_within(commands, key, REPLY_DEADLINE).await
}

async fn get_info_within(commands: &Commands, key: &'static str, within: Duration) -> Result<String, SessionError> {
    let reply = commands.ask_within(&format!("GETINFO {key}"), within).await?;
    reply.value(key).map(str::to_owned).ok_or(SessionError::NotTheAnswer(key))
}

/// Asks now and then, so that a tor that hangs is noticed, and keeps the list of guards fresh.
async fn routine(tor: &Tor, commands: &Commands) -> SessionError {
    let mut due = interval(ROUTINE);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    due.tick().await;
    loop {
        tokio::select! {
            _ = due.tick() => {}
            () = tor.0.guards_changed.notified() => sleep(GUARDS_PAUSE).await,
        }
        if let Err(error) = ask_for_guards(tor, commands).await {
            return error;
        }
    }
}

async fn ask_for_guards(tor: &Tor, commands: &Commands) -> Result<(), SessionError> {
    let guards = get_info(commands, "entry-guards").await?;
    // `$FINGERPRINT~nickname up`, `… never-connected`, `… unusable 2026-11-24 22:38:07`.
    let lines = guards.lines().take(MOST_GUARDS);
    tor.state().guards = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
    Ok(())
}

/// As many guards are shown; tor samples up to 60.
const MOST_GUARDS: usize = 60;

/// Has the onion service published, of the same key each time.
async fn publish(tor: &Tor, commands: &Commands) -> Result<(), SessionError> {
    let Some(plan) = &tor.0.onion else { return Ok(()) };
    if tor.is_single_hop() {
        // Its torrc has it.
        return Ok(());
    }
    let key = onion::load(&plan.key_file)?;
    let command = onion::command(key.as_deref(), plan.target);
    let mut tries = 0;
    let reply = loop {
        tries += 1;
        match commands.ask(&command).await {
            // "Onion address collision": the connection before has not quite gone yet.
            Err(ControlError::Refused { code: 550, .. }) if tries < ONION_TRIES => sleep(ONION_PAUSE).await,
            other => break other?,
        }
    };
    let address = reply.value("ServiceID").filter(|address| onion::is_address(address));
    let address = address.ok_or(SessionError::Unclear("ADD_ONION"))?.to_owned();
    if key.is_none() {
        let new = reply.value("PrivateKey").ok_or(SessionError::Unclear("ADD_ONION"))?;
        onion::keep(&plan.key_file, new)?;
    }
    note_onion(tor, address);
    Ok(())
}

/// Notes an onion service, which is published once a directory has its descriptor.
fn note_onion(tor: &Tor, address: String) {
    info!(tor = tor.name(), "publishes perfd's onion service {address}.onion");
    let status = OnionStatus { address: address.clone(), published: false, created: UnixMicros::now(), uploaded: None };
    {
        let mut state = tor.state();
        // Also before the book is open, of a service that the torrc has.
        if let Some(book) = state.books.back_mut() {
            book.add_own_onion(&address);
        }
        state.onion = Some(status);
    }
    tor.record("onion_created", format!("{address}.onion"));
}

/// Keeps the guards to those of a set chosen by their bandwidth.
async fn keep_guard_set(tor: &Tor, commands: &Commands, set: &GuardSet) -> Result<(), SessionError> {
    let mut present = BTreeSet::new();
    let mut reloaded = false;
    loop {
        until_ready(tor).await;
        let consensus = get_info_within(commands, "ns/all", CONSENSUS_DEADLINE).await?;
        let chosen = choose(candidates(&consensus), set, &present);
        if chosen.is_empty() {
            warn!(tor = tor.name(), "the consensus has no guard with a bandwidth; none is chosen");
        } else if chosen != present || reloaded {
            let nodes: Vec<String> = chosen.iter().map(|fingerprint| format!("${fingerprint}")).collect();
            commands.ask(&format!("SETCONF EntryNodes=\"{}\"", nodes.join(","))).await?;
            // Those sampled before would go on being used.
            commands.ask("DROPGUARDS").await?;
            let detail = format!("{} {}: {}", set.count, set.choice.as_str(), nodes.join(", "));
            info!(tor = tor.name(), guards = %detail, "guards chosen");
            tor.record("guards_chosen", detail);
            present = chosen;
            reloaded = false;
        }
        tokio::select! {
            () = sleep(CHOICE) => {}
            // tor went back to its torrc, in which they are not.
            () = tor.0.reloaded.notified() => reloaded = true,
        }
    }
}

async fn until_ready(tor: &Tor) {
    loop {
        let news = tor.0.news.notified();
        if tor.state().is_bootstrapped() {
            return;
        }
        news.await;
    }
}

/// Sends a command at the times of a grid, if there is one.
async fn on_schedule(
    tor: &Tor,
    commands: &Commands,
    clock: &Clock,
    command: &'static str,
    every: Option<Duration>,
) -> SessionError {
    let Some(every) = every else { return std::future::pending().await };
    let grid = Grid::new(every, BESIDE_RUNS);
    let mut next = grid.next_after(clock.now());
    loop {
        let now = clock.now();
        if now < next {
            // Anew, and in hops: the clock may step, and one that steps back has other times before it.
            next = grid.next_after(now);
            sleep(next.since(now).min(Duration::from_secs(10))).await;
            continue;
        }
        match commands.ask(command).await {
            Ok(_) => {
                info!(tor = tor.name(), "{command} sent, as scheduled");
                tor.record(&command.to_ascii_lowercase(), "as scheduled");
            }
            Err(error @ ControlError::Refused { .. }) => warn!(tor = tor.name(), "not done as scheduled: {error}"),
            Err(error) => return error.into(),
        }
        next = grid.next_after(clock.now());
    }
}

/// Reads the torrc anew when it is asked for, also where that was while the connection came about.
async fn reloads(tor: &Tor, commands: &Commands, started: Option<&StartedTor>) -> SessionError {
    let Some(started) = started else { return std::future::pending().await };
    let mut asked = tor.0.reloads.subscribe();
    loop {
        let done = tor.state().reloads_done;
        let Ok(count) = asked.wait_for(|count| *count != done).await.map(|count| *count) else {
            return std::future::pending().await;
        };
        tor.state().reloads_done = count;
        let target = tor.0.onion.as_ref().map(|plan| plan.target);
        match super::process::rewrite(started, target).await {
            Ok(transport) => tor.state().transport = transport,
            Err(error) => {
                warn!(tor = tor.name(), "not reloaded, the torrc stays as it was: {error}");
                continue;
            }
        }
        match commands.ask("SIGNAL RELOAD").await {
            Ok(_) => {
                info!(tor = tor.name(), "reloaded");
                tor.record("reloaded", "");
                tor.0.reloaded.notify_one();
            }
            Err(error @ ControlError::Refused { .. }) => warn!(tor = tor.name(), "not reloaded: {error}"),
            Err(error) => return error.into(),
        }
    }
}

/// The error that a task ends with; once it is done, nothing more comes of it.
async fn forever<E>(task: impl Future<Output = Result<(), E>>) -> E {
    match task.await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}

async fn forever_if<'a, T, E, F>(what: Option<&'a T>, task: impl FnOnce(&'a T) -> F) -> E
where
    F: Future<Output = Result<(), E>>,
{
    match what {
        Some(what) => forever(task(what)).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
