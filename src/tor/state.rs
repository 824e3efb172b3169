//! What is known of a tor at the moment, shared between who looks after it and who asks.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::redact::redacted;
use crate::circuit::book::{Book, OpenCircuit};
use crate::circuit::records::CircuitRecord;
use crate::circuit::{BuildTimeout, TorEvent};
use crate::clock::UnixMicros;
use crate::config::{self, TorRun};

/// The books of so many connections are kept: a run may have begun under the last but one.
const BOOKS: usize = 3;

/// And so many circuits of connections that ended long ago.
const MOST_LOOSE: usize = 1024;

/// So many events wait for the store at most; the oldest are forgotten.
const MOST_EVENTS: usize = 1024;

/// How a tor is doing, as `GET /tors` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TorStatus {
    /// What the configuration calls it.
    pub name: String,
    /// Whether perfd starts it.
    pub started_by_perfd: bool,
    /// In a word.
    pub condition: Condition,
    /// What is wrong, if anything is.
    pub problem: Option<String>,
    /// tor's version.
    pub version: Option<String>,
    /// The process, where it is ours.
    pub pid: Option<u32>,
    /// How often it was started, where it is ours.
    pub starts: u64,
    /// Where it is measured through.
    pub socks: Option<SocketAddr>,
    /// The number of the control connection.
    pub connection: u64,
    /// Since when perfd has been connected.
    pub connected_since: Option<UnixMicros>,
    /// How many control lines came over this connection.
    pub control_lines: u64,
    /// How far its bootstrap is.
    pub bootstrap: Option<Bootstrap>,
    /// How it reaches its first hop: `bridge`, or the name of a pluggable transport; absent: by guards.
    pub transport: Option<String>,
    /// Its entry guards and what it says of each, the first ones first; of bridges no fingerprints.
    pub guards: Vec<String>,
    /// The circuit build timeout in force, where tor has announced one.
    pub build_timeout: Option<BuildTimeout>,
    /// The onion service that it publishes for perfd.
    pub onion: Option<OnionStatus>,
    /// Open circuits that nobody uses, or perfd's runs alone.
    pub circuits: Vec<OpenCircuit>,
    /// How many others there are: those that carry somebody else's streams are nobody's business.
    pub other_circuits: usize,
}

/// A tor's condition in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// perfd has no control of it, and measures through it all the same.
    Uncontrolled,
    /// perfd starts it, and it is not there, or perfd is not connected to it.
    Down,
    /// Somebody else runs it, and perfd is not connected to its control port; it is measured through all the same.
    NoControl,
    /// It is there, and not ready to build circuits.
    Bootstrapping,
    /// It is ready.
    Ready,
}

/// How far a bootstrap is, in tor's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// 0 to 100.
    pub percent: u8,
    /// TAG, such as `conn_or`.
    pub tag: String,
    /// SUMMARY.
    pub summary: String,
    /// When this was reached.
    pub since: UnixMicros,
}

/// The onion service that a tor publishes for perfd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnionStatus {
    /// Without `.onion`.
    pub address: String,
    /// Whether its descriptor was uploaded since the connection began.
    pub published: bool,
    /// When it was asked for.
    pub created: UnixMicros,
    /// When the first directory had taken its descriptor.
    pub uploaded: Option<UnixMicros>,
}

pub(super) struct State {
    pub socks: Option<SocketAddr>,
    /// The last ones; the last one may still be open.
    pub books: VecDeque<Book>,
    pub bootstrap: Option<Bootstrap>,
    /// When the bootstrap last moved on.
    pub progress: Instant,
    pub guards: Vec<String>,
    pub onion: Option<OnionStatus>,
    pub problem: Option<String>,
    pub pid: Option<u32>,
    pub starts: u64,
    pub transport: Option<String>,
    pub connected_since: Option<UnixMicros>,
    connections: u64,
    events: VecDeque<TorEvent>,
    /// Circuits of books that were dropped, on their way to the store.
    loose: VecDeque<(u64, CircuitRecord)>,
    /// How many of them were forgotten, as there were too many.
    forgotten: u64,
    /// How many requests to read the torrc anew have been carried out; or were there when it was written.
    pub reloads_done: u64,
}

impl State {
    pub(super) fn new(config: &config::Tor) -> Self {
        State {
            socks: config.socks(),
            books: VecDeque::new(),
            bootstrap: None,
            progress: Instant::now(),
            guards: Vec::new(),
            onion: None,
            problem: None,
            pid: None,
            starts: 0,
            transport: None,
            connected_since: None,
            connections: 0,
            events: VecDeque::new(),
            loose: VecDeque::new(),
            forgotten: 0,
            reloads_done: 0,
        }
    }

    /// The book that was open at this moment; else the first one that was opened later.
    pub(super) fn book_at(&self, moment: Instant) -> Option<&Book> {
        let open = |book: &&Book| book.since() <= moment && book.lost.is_none_or(|lost| lost >= moment);
        self.books.iter().find(open).or_else(|| self.books.iter().find(|book| book.since() > moment))
    }

    /// Whether it is ready, as far as tor has told.
    pub(super) fn is_bootstrapped(&self) -> bool {
        self.bootstrap.as_ref().is_some_and(|bootstrap| bootstrap.percent >= 100)
    }

    pub(super) fn next_connection(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }

    pub(super) fn push_book(&mut self, book: Book) {
        if self.books.len() >= BOOKS
            && let Some(mut dropped) = self.books.pop_front()
        {
            let (circuits, forgotten) = dropped.take_loose();
            self.forgotten += forgotten;
            for circuit in circuits {
                if self.loose.len() >= MOST_LOOSE {
                    self.loose.pop_front();
                    self.forgotten += 1;
                }
                self.loose.push_back((dropped.connection, circuit));
            }
        }
        self.books.push_back(book);
    }

    pub(super) fn push_event(&mut self, event: TorEvent) {
        if self.events.len() >= MOST_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn take_events(&mut self) -> Vec<TorEvent> {
        self.events.drain(..).collect()
    }

    /// Loose circuits with the numbers of their connections, and how many were forgotten.
    pub(super) fn take_loose(&mut self) -> (Vec<(u64, CircuitRecord)>, u64) {
        let mut all: Vec<_> = self.loose.drain(..).collect();
        let mut forgotten = std::mem::take(&mut self.forgotten);
        for book in &mut self.books {
            let (circuits, more) = book.take_loose();
            all.extend(circuits.into_iter().map(|circuit| (book.connection, circuit)));
            forgotten += more;
        }
        (all, forgotten)
    }

    pub(super) fn status(&self, config: &config::Tor) -> TorStatus {
        let book = self.books.back().filter(|book| book.lost.is_none());
        let (circuits, other_circuits) = book.map_or((Vec::new(), 0), Book::open_circuits);
        let condition = match (config.has_control(), book) {
            (false, _) => Condition::Uncontrolled,
            (true, None) if matches!(config.run, TorRun::Started(_)) => Condition::Down,
            (true, None) => Condition::NoControl,
            (true, Some(_)) if self.is_bootstrapped() => Condition::Ready,
            (true, Some(_)) => Condition::Bootstrapping,
        };
        TorStatus {
            name: config.name.clone(),
            started_by_perfd: matches!(config.run, TorRun::Started(_)),
            condition,
            problem: self.problem.clone(),
            version: self.books.back().and_then(|book| book.version.clone()),
            pid: self.pid,
            starts: self.starts,
            socks: self.socks,
            connection: book.map_or(0, |book| book.connection),
            connected_since: self.connected_since.filter(|_| book.is_some()),
            control_lines: book.map_or(0, Book::lines),
            bootstrap: self.bootstrap.clone(),
            transport: self.transport.clone(),
            guards: match self.transport {
                None => self.guards.clone(),
                Some(_) => self.guards.iter().map(|bridge| redacted(bridge)).collect(),
            },
            build_timeout: book.and_then(Book::build_timeout_in_force),
            onion: self.onion.clone(),
            circuits,
            other_circuits,
        }
    }
}
