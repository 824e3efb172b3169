//! What one control connection has told, kept for as long as a run may ask for it (no I/O).
//!
//! Lines are kept by circuit and by stream; those of bandwidth, of which thousands come in a second, are
//! summed and sampled. The memory is bounded whatever comes: what has ended is dropped after a while, and
//! the oldest goes first where there is too much.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::event::{self, CircuitBandwidth, CircuitLine, Event, StreamLine};
use super::records::{Attached, CircuitRecord, Line, MOST_ATTACHED, StreamRecord, Traffic};
use super::{BuildTimeout, Relay, USER_PREFIX};
use crate::clock::UnixMicros;

/// Circuits and streams that have ended are kept so long, for runs that end after them.
pub const KEPT: Duration = Duration::from_secs(120);

/// No more circuits, and no more streams, are kept than this.
const MOST: usize = 4096;

/// No more legs of one Conflux set are told apart than this; tor makes two.
const MOST_LEGS: usize = 8;

/// No more lines of one circuit or stream are kept than this: the first ones, and the very last.
const MOST_LINES: usize = 64;

/// Nor more bytes of such lines in all.
const MOST_BYTES: usize = 16 << 20;

/// No line is kept longer than this, in bytes; the rest is cut off.
const LONGEST_LINE: usize = 4096;

/// Guards', descriptors' and timeouts' lines kept.
const MOST_OTHERS: usize = 256;

/// The most loose circuits that wait to be taken.
const MOST_LOOSE: usize = 1024;

/// What one control connection has told.
#[derive(Debug)]
pub struct Book {
    /// The number of the connection.
    pub connection: u64,
    /// From when on everything was told.
    since: Instant,
    /// The same by the wall clock.
    since_wall: UnixMicros,
    /// When the connection was lost, if it was.
    pub lost: Option<Instant>,
    /// tor's version.
    pub version: Option<String>,
    /// Whether nobody else uses this tor: then all of its circuits are perfd's.
    exclusive: bool,
    /// The onion services that perfd publishes, without `.onion`.
    own_onions: Vec<String>,
    circuits: HashMap<u64, CircuitRecord>,
    streams: HashMap<u64, StreamRecord>,
    /// The circuits of each Conflux set.
    sets: HashMap<Box<str>, Vec<u64>>,
    timeouts: VecDeque<Line>,
    guards: VecDeque<Line>,
    descriptors: VecDeque<(Box<str>, Line)>,
    loose: VecDeque<CircuitRecord>,
    /// Loose circuits that were forgotten, as nobody took them in time.
    forgotten: u64,
    lines: u64,
    /// Bytes of all lines of circuits and streams.
    bytes: usize,
    swept: Instant,
}

/// An open circuit, for people.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OpenCircuit {
    /// tor's id.
    pub id: u64,
    /// tor's word: `LAUNCHED`, `EXTENDED`, `BUILT` …
    pub status: String,
    /// tor's PURPOSE.
    pub purpose: String,
    /// Its hops.
    pub path: Vec<Relay>,
    /// tor's CONFLUX_ID.
    pub conflux: Option<String>,
}

impl Book {
    /// The book of the connection of this number, which tells everything from now on.
    pub fn new(connection: u64, now: Instant, wall: UnixMicros) -> Self {
        Book {
            connection,
            since: now,
            since_wall: wall,
            lost: None,
            version: None,
            exclusive: false,
            own_onions: Vec::new(),
            circuits: HashMap::new(),
            streams: HashMap::new(),
            sets: HashMap::new(),
            timeouts: VecDeque::new(),
            guards: VecDeque::new(),
            descriptors: VecDeque::new(),
            loose: VecDeque::new(),
            forgotten: 0,
            lines: 0,
            bytes: 0,
            swept: now,
        }
    }

    /// From now on everything is told.
    pub fn listening(&mut self, now: Instant, wall: UnixMicros) {
        (self.since, self.since_wall) = (now, wall);
    }

    /// Nobody but perfd uses this tor.
    pub fn set_exclusive(&mut self) {
        self.exclusive = true;
    }

    /// This onion service (its address without `.onion`) is one that perfd publishes.
    pub fn add_own_onion(&mut self, address: &str) {
        self.own_onions.push(address.to_owned());
    }

    fn is_foreign(&self, circuit: &CircuitRecord) -> bool {
        !self.exclusive && circuit.is_foreign(|onion| self.own_onions.iter().any(|own| own == onion))
    }

    /// From when on everything was told.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Notes an event line, without its status code, and gives what it says.
    pub fn note<'a>(&mut self, at: Instant, line: &'a str) -> Event<'a> {
        self.lines += 1;
        let event = event::parse(line);
        match &event {
            Event::CircuitBandwidth(bandwidth) => self.bandwidth(at, bandwidth),
            Event::Circuit(circuit) => self.circuit(at, line, circuit, false),
            Event::Stream(stream) => self.stream(at, line, stream),
            Event::BuildTimeout(_) => push(&mut self.timeouts, self::line(at, line)),
            Event::Guard(_) => push(&mut self.guards, self::line(at, line)),
            Event::Descriptor(descriptor) => {
                push(&mut self.descriptors, (shortened(descriptor.address).into(), self::line(at, line)));
            }
            Event::StatusClient(_) | Event::Other(_) => {}
        }
        if at.saturating_duration_since(self.swept) > KEPT / 8 {
            self.sweep(at);
        }
        event
    }

    /// Notes a line of `GETINFO circuit-status`: a circuit that was there before the connection was.
    pub fn found(&mut self, at: Instant, line: &str) {
        let Some(circuit) = event::circuit(line, false) else { return };
        // What an event has told since then is newer.
        if !self.circuits.contains_key(&circuit.id) {
            self.circuit(at, &format!("CIRC {line}"), &circuit, true);
        }
    }

    /// How many lines were noted.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// The circuits that are open and that nobody uses, or perfd's runs alone, by their ids; and how many others
    /// there are.
    pub fn open_circuits(&self) -> (Vec<OpenCircuit>, usize) {
        let open = self.circuits.values().filter(|circuit| circuit.ended.is_none());
        let (foreign, own): (Vec<_>, Vec<_>) = open.partition(|circuit| self.is_foreign(circuit));
        let shown = own.into_iter().map(|circuit| OpenCircuit {
            id: circuit.id,
            status: circuit.status.to_string(),
            purpose: circuit.purpose.to_string(),
            path: event::path(&circuit.path),
            conflux: circuit.set.as_deref().map(str::to_owned),
        });
        let mut shown: Vec<_> = shown.collect();
        shown.sort_by_key(|circuit| circuit.id);
        (shown, foreign.len())
    }

    /// The circuit build timeout as tor announced it last.
    pub fn build_timeout_in_force(&self) -> Option<BuildTimeout> {
        let Event::BuildTimeout(line) = event::parse(&self.timeouts.back()?.text) else { return None };
        line.announced()
    }

    /// A copy of what concerns an onion service (its address without `.onion`), for another tor's run to it.
    pub fn of_onion(&self, address: &str) -> Book {
        let mut copy = Book::new(self.connection, self.since, self.since_wall);
        let concerned = self.circuits.values().filter(|circuit| circuit.onion.as_deref() == Some(address));
        copy.circuits = concerned.map(|circuit| (circuit.id, circuit.clone())).collect();
        copy
    }

    /// The stream of a SOCKS user name and source port that was there within this time; of several, the one that
    /// began last.
    ///
    /// tor tells the port with the stream's first line alone. Where it did not, name and time must do.
    pub fn stream_of(
        &self,
        user: Option<&str>,
        local: Option<SocketAddr>,
        from: Instant,
        until: Instant,
    ) -> Option<&StreamRecord> {
        let port = local.map(|local| local.port());
        let fits = |stream: &&StreamRecord| {
            let same_user = user.is_none_or(|user| stream.user.as_deref() == Some(user));
            let same_port = match (stream.source_port, port) {
                (Some(source), Some(port)) => source == port,
                // Without a user name, the port is all there is.
                _ => user.is_some(),
            };
            same_user && same_port && stream.begun <= until && stream.ended.is_none_or(|ended| ended >= from)
        };
        self.streams.values().filter(fits).max_by_key(|stream| stream.begun)
    }

    /// A circuit that is kept.
    pub fn circuit_of(&self, id: u64) -> Option<&CircuitRecord> {
        self.circuits.get(&id)
    }

    /// The circuits that are kept, in no order.
    pub fn circuits(&self) -> impl Iterator<Item = &CircuitRecord> {
        self.circuits.values()
    }

    /// The circuits of a Conflux set.
    pub fn set(&self, id: &str) -> &[u64] {
        self.sets.get(id).map_or(&[], Vec::as_slice)
    }

    /// Lines about the circuit build timeout, in order.
    pub fn timeouts(&self) -> impl DoubleEndedIterator<Item = &Line> {
        self.timeouts.iter()
    }

    /// Lines about guards, in order.
    pub fn guards(&self) -> impl Iterator<Item = &Line> {
        self.guards.iter()
    }

    /// Lines about the descriptor of an onion service (its address without `.onion`), in order.
    pub fn descriptors<'a>(&'a self, address: &'a str) -> impl Iterator<Item = &'a Line> {
        self.descriptors.iter().filter(move |(of, _)| &**of == address).map(|(_, line)| line)
    }

    /// The circuits that have ended since this was asked last, and failed or were used by nobody; and how
    /// many more were forgotten.
    pub fn take_loose(&mut self) -> (Vec<CircuitRecord>, u64) {
        (self.loose.drain(..).collect(), std::mem::take(&mut self.forgotten))
    }

    /// How many circuits (or Conflux sets, if there are more of these), streams and lines of them are kept.
    pub fn size(&self) -> (usize, usize, usize) {
        let of_circuits: usize = self.circuits.values().map(|circuit| circuit.lines.len()).sum();
        let of_streams: usize = self.streams.values().map(|stream| stream.lines.len()).sum();
        (self.circuits.len().max(self.sets.len()), self.streams.len(), of_circuits + of_streams)
    }

    fn bandwidth(&mut self, at: Instant, line: &CircuitBandwidth) {
        if let Some(circuit) = self.circuits.get_mut(&line.id) {
            circuit.traffic.add(at, line);
        }
    }

    fn circuit(&mut self, at: Instant, text: &str, line: &CircuitLine<'_>, found: bool) {
        let known = self.circuits.get(&line.id);
        // An id is given again only after very many circuits, or by a tor that breaks its own rules.
        if line.status == "LAUNCHED" && known.is_some_and(|circuit| circuit.ended.is_some()) {
            self.forget_circuit(line.id);
        }
        if (self.circuits.len() >= MOST || self.bytes > MOST_BYTES) && !self.circuits.contains_key(&line.id) {
            self.make_room_for_circuits();
        }
        let now = self.since_wall.plus(at.saturating_duration_since(self.since));
        let from_launch = line.status == "LAUNCHED" && !found;
        let new = || CircuitRecord { from_launch, ..CircuitRecord::new(line.id, now) };
        let circuit = self.circuits.entry(line.id).or_insert_with(new);
        let more = keep(&mut circuit.lines, Line { found, ..self::line(at, text) });
        self.bytes = self.bytes.saturating_add_signed(more);
        let mut joins = None;
        let set = line.words.get("CONFLUX_ID");
        if let Some(set) = set.as_deref().map(shortened)
            && circuit.set.as_deref() != Some(set)
        {
            leave_set(&mut self.sets, circuit);
            let members = self.sets.entry(set.into()).or_default();
            joins = members.first().copied();
            if members.len() < MOST_LEGS {
                members.push(line.id);
            }
            circuit.set = Some(set.into());
        }
        let update = |field: &mut Option<Box<str>>, key: &str| {
            if let Some(value) = line.words.get(key) {
                *field = Some(shortened(&value).into());
            }
        };
        update(&mut circuit.user, "SOCKS_USERNAME");
        update(&mut circuit.onion, "REND_QUERY");
        circuit.hs_state = line.words.get("HS_STATE").map(|state| shortened(&state).into());
        if let Some(purpose) = line.words.get("PURPOSE") {
            circuit.purpose = shortened(&purpose).into();
        }
        if !line.path.is_empty() {
            circuit.path = shortened(line.path).into();
        }
        if !line.minor {
            circuit.status = shortened(line.status).into();
        }
        if joins.and_then(|id| self.circuits.get(&id)).is_some_and(|other| other.foreign)
            && let Some(circuit) = self.circuits.get_mut(&line.id)
        {
            circuit.foreign = true;
        }
        let Some(circuit) = self.circuits.get_mut(&line.id) else { return };
        if matches!(line.status, "FAILED" | "CLOSED") && circuit.ended.is_none() {
            circuit.ended = Some(at);
            let loose = circuit.is_loose().then(|| circuit.clone());
            if let Some(record) = loose.filter(|record| !self.is_foreign(record)) {
                if self.loose.len() >= MOST_LOOSE {
                    self.loose.pop_front();
                    self.forgotten += 1;
                }
                self.loose.push_back(record);
            }
        }
        self.keep_within_bounds();
    }

    fn stream(&mut self, at: Instant, text: &str, line: &StreamLine<'_>) {
        let known = self.streams.get(&line.id);
        // A new stream under the id of one that has ended is another one.
        if line.status == "NEW" && known.is_some_and(|stream| stream.ended.is_some()) {
            self.forget_stream(line.id);
        }
        if (self.streams.len() >= MOST || self.bytes > MOST_BYTES) && !self.streams.contains_key(&line.id) {
            self.make_room_for_streams();
        }
        let stream = self.streams.entry(line.id).or_insert_with(|| StreamRecord::new(line.id, at));
        let more = keep(&mut stream.lines, self::line(at, text));
        self.bytes = self.bytes.saturating_add_signed(more);
        if stream.user.is_none() {
            stream.user = line.words.get("SOCKS_USERNAME").map(|user| shortened(&user).into());
        }
        if let Some(address) = line.words.get("SOURCE_ADDR") {
            stream.source_port = address.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        }
        if let Some(purpose) = line.words.get("PURPOSE") {
            stream.internal = purpose.starts_with("DIR_");
        }
        let foreign = !stream.internal && !stream.user.as_deref().is_some_and(|user| user.starts_with(USER_PREFIX));
        if matches!(line.status, "CLOSED" | "FAILED") {
            stream.ended.get_or_insert(at);
        }
        if line.circuit != 0 && stream.circuits.last() != Some(&line.circuit) {
            if stream.circuits.len() >= MOST_LINES {
                stream.circuits.pop();
            }
            stream.circuits.push(line.circuit);
            let set = self.circuits.get(&line.circuit).and_then(|circuit| circuit.set.as_deref());
            let alone = [line.circuit];
            let concerned = set.and_then(|set| self.sets.get(set)).map_or(&alone[..], Vec::as_slice);
            for id in concerned {
                let Some(circuit) = self.circuits.get_mut(id) else { continue };
                circuit.foreign |= foreign;
                let Traffic { read, written, .. } = circuit.traffic;
                circuit.attached.push_back(Attached { at, stream: line.id, read, written });
                if circuit.attached.len() > MOST_ATTACHED {
                    circuit.attached.pop_front();
                }
            }
        }
        self.keep_within_bounds();
    }

    /// Makes room where lines of what is known already have become too many.
    fn keep_within_bounds(&mut self) {
        while self.bytes > MOST_BYTES && !(self.circuits.is_empty() && self.streams.is_empty()) {
            self.make_room_for_circuits();
            self.make_room_for_streams();
        }
    }

    /// Forgets what ended long ago.
    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        let old = |ended: Option<Instant>| ended.is_some_and(|at| now.saturating_duration_since(at) >= KEPT);
        let circuits = self.circuits.values().filter(|circuit| old(circuit.ended)).map(|circuit| circuit.id);
        circuits.collect::<Vec<_>>().into_iter().for_each(|id| self.forget_circuit(id));
        let streams = self.streams.values().filter(|stream| old(stream.ended)).map(|stream| stream.id);
        streams.collect::<Vec<_>>().into_iter().for_each(|id| self.forget_stream(id));
    }

    /// Forgets an eighth of the circuits: those that ended first, then those of the lowest ids. Many at once,
    /// as each time all have to be looked at.
    fn make_room_for_circuits(&mut self) {
        let mut ids: Vec<_> = self.circuits.values().map(|c| (c.ended.is_none(), c.ended, c.id)).collect();
        ids.sort_unstable();
        ids.iter().take(ids.len().div_ceil(8)).for_each(|(.., id)| self.forget_circuit(*id));
    }

    fn make_room_for_streams(&mut self) {
        let mut ids: Vec<_> = self.streams.values().map(|s| (s.ended.is_none(), s.ended, s.id)).collect();
        ids.sort_unstable();
        ids.iter().take(ids.len().div_ceil(8)).for_each(|(.., id)| self.forget_stream(*id));
    }

    fn forget_circuit(&mut self, id: u64) {
        let Some(circuit) = self.circuits.remove(&id) else { return };
        self.bytes -= bytes(&circuit.lines);
        leave_set(&mut self.sets, &circuit);
    }

    fn forget_stream(&mut self, id: u64) {
        if let Some(stream) = self.streams.remove(&id) {
            self.bytes -= bytes(&stream.lines);
        }
    }
}

fn line(at: Instant, text: &str) -> Line {
    Line { at, text: cut(text, LONGEST_LINE).into(), found: false }
}

/// A word that is kept for each circuit; tor's own are short.
fn shortened(word: &str) -> &str {
    cut(word, 1024)
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Takes a circuit out of its Conflux set, of which nothing is left without circuits.
fn leave_set(sets: &mut HashMap<Box<str>, Vec<u64>>, circuit: &CircuitRecord) {
    let Some(set) = circuit.set.as_deref() else { return };
    let Some(members) = sets.get_mut(set) else { return };
    members.retain(|member| *member != circuit.id);
    if members.is_empty() {
        sets.remove(set);
    }
}

/// Keeps a line. Where there are too many, it takes the place of the last one: how it all began and how it ended
/// says most. Gives how many bytes there are more.
fn keep(lines: &mut Vec<Line>, line: Line) -> isize {
    let given_up = if lines.len() < MOST_LINES { None } else { lines.pop() };
    let more = line.text.len() as isize - given_up.map_or(0, |line| line.text.len() as isize);
    lines.push(line);
    more
}

fn bytes(lines: &[Line]) -> usize {
    lines.iter().map(|line| line.text.len()).sum()
}

fn push<T>(lines: &mut VecDeque<T>, line: T) {
    if lines.len() >= MOST_OTHERS {
        lines.pop_front();
    }
    lines.push_back(line);
}
