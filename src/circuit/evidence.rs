//! The lines that touch one run, gathered from a [`Book`] into a text that keeps for ever (no I/O).
//!
//! ```text
//! perfd evidence 1
//! user perfd-9b9173246cb7f9ef16db57f56e06358e      the SOCKS user name
//! local 127.0.0.1:53118                           our end of the connection to the SOCKS port
//! onion 7kgkgaitwhlfhgss…                         the onion service that it went to
//! start 1795561900463736                          START, in µs since the Unix epoch
//! connection 3                                    the number of the control connection; 0: none
//! since -91312000                                 from when on it told everything
//! lost 1200                                       when it was lost, if it was
//! tor 0.4.9.11                                    tor's version
//! sender client                                   the sending end that is ours: client, service, none
//!
//! -2000 CIRC 5 LAUNCHED BUILD_FLAGS=…             a line as tor sent it, without its status code
//! -1000 +CIRC 5 BUILT $…                          a circuit as it was found by GETINFO circuit-status
//! 100 =used 5                                     a stream of another run was attached to circuit 5
//! 900 =sample 5 cwnd=124 rtt=25 min_rtt=12 ss=1   congestion of circuit 5 (cells, ms), one of some
//! 1000 =bytes 5 read=49489 written=106            what it carried since the run's stream was attached
//! ```
//!
//! Each line begins with its time, in µs after START. A `~` before it says that it is of the circuit by which
//! our own onion service came to the run's rendezvous; it may be one of another tor.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::Evidence;
use super::book::Book;
use super::event::{self, Event, Words};
use super::records::{Attached, CircuitRecord, Line, StreamRecord};
use crate::clock::UnixMicros;

/// The first line of every evidence.
pub(super) const HEADER: &str = "perfd evidence 1";

impl Evidence {
    /// START as the evidence says it, to which its times are relative; `None` where this is no evidence in the
    /// form that this version of perfd reads.
    pub fn start(&self) -> Option<UnixMicros> {
        let mut lines = self.0.lines();
        if lines.next() != Some(HEADER) {
            return None;
        }
        let start = lines.take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix("start "))?;
        start.parse().ok().map(UnixMicros)
    }
}

/// What tells a run's stream from all others, and what its evidence is to hold beside it.
#[derive(Clone, Debug)]
pub struct RunKey {
    /// The SOCKS user name; `None` where the proxy took none, and the port must do.
    pub user: Option<String>,
    /// Our end of the connection to the SOCKS port.
    pub local: Option<SocketAddr>,
    /// START, on both clocks.
    pub start: Instant,
    /// The same by the wall clock.
    pub start_wall: UnixMicros,
    /// When the run had ended.
    pub ended: Instant,
    /// The address of the onion service that it went to, without `.onion`.
    pub onion: Option<String>,
    /// Whether the run sent a payload: then the client is the sending end.
    pub upload: bool,
}

/// What a book holds of a run. `service` is the book of the tor that publishes the onion service, if that is
/// ours (it may be the same one).
pub fn gather(book: &Book, service: Option<&Book>, run: &RunKey) -> Evidence {
    let mut text = Text::new(run);
    text.head("connection", book.connection);
    text.head("since", text.micros(book.since()));
    if let Some(lost) = book.lost {
        text.head("lost", text.micros(lost));
    }
    if let Some(version) = &book.version {
        text.head("tor", version.lines().next().unwrap_or_default());
    }
    let stream = stream_of(book, run);
    let own = circuits_of(book, run, stream);
    let joined = service.zip(run.onion.as_deref()).and_then(|(service, onion)| joined(book, service, onion, &own));
    let sender = match (run.upload, joined) {
        (true, _) => "client",
        (false, Some(_)) => "service",
        (false, None) => "none",
    };
    text.head("sender", sender);

    for line in timeouts_of(book, run).into_iter().chain(book.guards().filter(|line| within(line, run))) {
        text.line(line);
    }
    if let Some(onion) = run.onion.as_deref() {
        book.descriptors(onion).filter(|line| within(line, run)).for_each(|line| text.line(line));
    }
    if let Some(stream) = stream {
        stream.lines.iter().for_each(|line| text.line(line));
    }
    for circuit in &own {
        text.circuit(circuit, stream, "", run.upload);
    }
    if let Some(circuit) = joined {
        text.circuit(circuit, None, "~", !run.upload);
    }
    Evidence(text.finish())
}

/// The evidence of a run of whose tor nothing is known: perfd was not connected to its control port.
pub fn nothing(run: &RunKey) -> Evidence {
    let mut text = Text::new(run);
    text.head("connection", 0);
    Evidence(text.finish())
}

/// Whether the run's stream has ended, as far as tor has told: then there is not much more to come.
pub fn stream_has_ended(book: &Book, run: &RunKey) -> bool {
    stream_of(book, run).is_some_and(|stream| stream.ended.is_some())
}

/// A circuit that belongs to no run, as evidence: its times are relative to when it was first heard of.
pub fn loose(circuit: &CircuitRecord) -> Option<Evidence> {
    let start = circuit.lines.first()?.at;
    let mut text = Text { start, head: HEADER.to_owned() + "\n", lines: Vec::new(), size: 0 };
    text.head("start", circuit.heard_of.0);
    text.circuit(circuit, None, "", false);
    Some(Evidence(text.finish()))
}

/// A run's control lines may come a little earlier or later than it: clocks of two processes meet here.
const SLACK: Duration = Duration::from_millis(500);

fn stream_of<'a>(book: &'a Book, run: &RunKey) -> Option<&'a StreamRecord> {
    let from = run.start.checked_sub(SLACK).unwrap_or(run.start);
    book.stream_of(run.user.as_deref(), run.local, from, run.ended + SLACK)
}

fn within(line: &Line, run: &RunKey) -> bool {
    line.at >= run.start && line.at <= run.ended + SLACK
}

/// The announcements during the run, and before it the last ones, back to one that says whether tor was learning:
/// SUSPENDED and RESUME don't.
fn timeouts_of<'a>(book: &'a Book, run: &RunKey) -> Vec<&'a Line> {
    let told = |line: &Line| {
        let Event::BuildTimeout(line) = event::parse(&line.text) else { return false };
        line.announced().is_some_and(|timeout| timeout.learning.is_some())
    };
    let mut lines = Vec::new();
    for line in book.timeouts().rev().filter(|line| line.at < run.start) {
        lines.push(line);
        if told(line) {
            break;
        }
    }
    lines.extend(book.timeouts().filter(|line| within(line, run)));
    lines
}

/// The circuits that the run's stream was attached to, with the other legs of their Conflux sets, and those
/// that tor took for its user name while it was under way (to introduction and rendezvous points): of some it has
/// built all but the last hop before.
fn circuits_of<'a>(book: &'a Book, run: &RunKey, stream: Option<&StreamRecord>) -> Vec<&'a CircuitRecord> {
    let mut ids: Vec<u64> = stream.map_or(Vec::new(), |stream| stream.circuits.clone());
    let named = |circuit: &&CircuitRecord| {
        let of_user = |line: &&Line| Words(&line.text).get("SOCKS_USERNAME").as_deref() == run.user.as_deref();
        run.user.is_some()
            && circuit.user.as_deref() == run.user.as_deref()
            && circuit.lines.iter().find(of_user).is_some_and(|line| line.at >= run.start && line.at <= run.ended)
            // In a series, another run's stream may be what it was built for.
            && (circuit.attached.is_empty() || circuit.attached.iter().any(|attached| stream.is_some_and(|s| s.id == attached.stream)))
    };
    ids.extend(book.circuits().filter(named).map(|circuit| circuit.id));
    let sets: Vec<u64> = ids
        .iter()
        .filter_map(|id| book.circuit_of(*id)?.set.as_deref())
        .flat_map(|set| book.set(set).iter().copied())
        .collect();
    ids.extend(sets);
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().filter_map(|id| book.circuit_of(id)).collect()
}

/// The circuit by which the onion service came to the run's rendezvous: the one that joined between the
/// introduction and the client's own word that it had. `None` if there is no such one, or more than one.
fn joined<'a>(book: &Book, service: &'a Book, onion: &str, own: &[&CircuitRecord]) -> Option<&'a CircuitRecord> {
    let state = |circuit: &CircuitRecord, state: &str| {
        let word = format!("HS_STATE={state}");
        let line = circuit.lines.iter().find(|line| line.text.split(' ').any(|w| w == word))?;
        Some(line.at)
    };
    let introduced = own.iter().filter_map(|circuit| state(circuit, "HSCI_INTRO_SENT")).min()?;
    let met = own.iter().filter_map(|circuit| state(circuit, "HSCR_JOINED")).min()?;
    // The service joins before the client can hear of it; two tors' lines may be read a moment apart.
    let until = if std::ptr::eq(book, service) { met } else { met + SLACK / 10 };
    let candidates = service.circuits().filter(|circuit| circuit.onion.as_deref() == Some(onion));
    let mut joined =
        candidates.filter(|circuit| state(circuit, "HSSR_JOINED").is_some_and(|at| at >= introduced && at <= until));
    let first = joined.next()?;
    joined.next().is_none().then_some(first)
}

/// A text in the making.
struct Text {
    start: Instant,
    head: String,
    lines: Vec<(i64, String)>,
    size: usize,
}

/// Evidence is never longer than this, in bytes; what is more is left out.
const LONGEST: usize = 1 << 20;

impl Text {
    fn new(run: &RunKey) -> Self {
        let mut text = Text { start: run.start, head: HEADER.to_owned() + "\n", lines: Vec::new(), size: 0 };
        if let Some(user) = &run.user {
            text.head("user", user);
        }
        if let Some(local) = run.local {
            text.head("local", local);
        }
        if let Some(onion) = &run.onion {
            text.head("onion", onion);
        }
        text.head("start", run.start_wall.0);
        text
    }

    fn head(&mut self, key: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.head, "{key} {value}");
    }

    fn line(&mut self, line: &Line) {
        self.put(line.at, line.text.to_string());
    }

    fn circuit(&mut self, circuit: &CircuitRecord, stream: Option<&StreamRecord>, mark: &str, sampled: bool) {
        for line in &circuit.lines {
            let found = if line.found && mark.is_empty() { "+" } else { "" };
            self.put(line.at, format!("{mark}{found}{}", line.text));
        }
        let id = circuit.id;
        let is_own = |attached: &&Attached| stream.is_some_and(|stream| stream.id == attached.stream);
        let own = circuit.attached.iter().find(is_own);
        let begun = own.map_or(self.start, |own| own.at);
        if let Some(used) = circuit.attached.iter().rev().find(|other| !is_own(other) && other.at <= begun) {
            self.put(used.at, format!("{mark}=used {id}"));
        }
        // What came after the next stream was attached is that one's.
        let next = own.and_then(|own| circuit.attached.iter().find(|other| !is_own(other) && other.at >= own.at));
        let traffic = &circuit.traffic;
        if sampled {
            let until = next.map(|next| next.at);
            for (at, sample) in traffic.samples.iter().filter(|(at, _)| until.is_none_or(|until| *at <= until)) {
                let mut words = format!("{mark}=sample {id}");
                let numbers = [
                    ("cwnd", sample.cwnd_cells),
                    ("rtt", sample.rtt_us.map(|us| us / 1000)),
                    ("min_rtt", sample.min_rtt_us.map(|us| us / 1000)),
                    ("ss", sample.slow_start.map(u64::from)),
                ];
                for (key, number) in numbers {
                    if let Some(number) = number {
                        let _ = write!(words, " {key}={number}");
                    }
                }
                self.put(*at, words);
            }
        }
        if traffic.lines > 0 {
            let before = own.map_or((0, 0), |own| (own.read, own.written));
            let after = next.map_or((traffic.read, traffic.written), |next| (next.read, next.written));
            let (read, written) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
            let at = circuit.lines.last().map_or(self.start, |line| line.at);
            self.put(at, format!("{mark}=bytes {id} read={read} written={written}"));
        }
    }

    fn put(&mut self, at: Instant, line: String) {
        self.size += line.len();
        if self.size > LONGEST {
            return;
        }
        let at = self.micros(at);
        // Nothing that tor sends holds a line end, but what it sends is not ours.
        self.lines.push((at, line.replace(['\n', '\r'], " ")));
    }

    /// µs after START, negative before it.
    fn micros(&self, at: Instant) -> i64 {
        let micros = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        match at.checked_duration_since(self.start) {
            Some(after) => micros(after),
            None => -micros(self.start.saturating_duration_since(at)),
        }
    }

    fn finish(mut self) -> String {
        // Lines of one moment stay in the order in which they came.
        self.lines.sort_by_key(|(at, _)| *at);
        self.head.push('\n');
        for (at, line) in &self.lines {
            let _ = writeln!(self.head, "{at} {line}");
        }
        self.head
    }
}
