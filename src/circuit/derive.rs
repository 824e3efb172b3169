//! From a run's evidence to what it says (no I/O): the one place that interprets the lines of a run.
//!
//! The same at once and years later: a newer perfd derives old evidence again.

use std::collections::BTreeMap;

use super::event::{self, CircuitLine, Event, StreamLine};
use super::evidence::HEADER;
use super::{
    BuildTimeout, Circuit, CircuitData, CircuitEnd, CircuitState, Conflux, Congestion, CongestionSample, Evidence,
    GuardEvent, Hop, OnionSteps, StreamEvent,
};

/// What the evidence says. Never fails: what can't be read is absent.
pub fn derive(evidence: &Evidence) -> CircuitData {
    let Read { head, circuits, service, streams, guards, timeouts, descriptors } = read(&evidence.0);
    let service = service.into_values().next();
    let stream = streams.into_iter().next_back();
    let (stream_id, stream) = stream.map_or((None, Vec::new()), |(id, events)| (Some(id), events));
    // The last attachment counts: an earlier one was given up.
    let attached = stream.iter().rev().find_map(|event| event.circuit_id);
    let circuit = attached.and_then(|id| circuits.get(&id));
    let conflux = circuit.and_then(|circuit| set_of(circuit, &circuits));
    let guard = circuit.and_then(|circuit| Some(circuit.path.first()?.relay.clone()));
    CircuitData {
        state: state(&head, &stream),
        connection: head.connection,
        tor_version: head.tor,
        stream_id,
        stream,
        onion: head.onion.map(|_| onion_steps(&circuits, service.as_ref(), &descriptors)),
        congestion: congestion(head.sender, attached, &circuits, service.as_ref()),
        circuit: circuit.map(|circuit| circuit.plain()),
        conflux,
        build_timeout: in_force_at_start(&timeouts),
        guard,
        guard_events: guards,
    }
}

/// The timeout that was announced last before START. Whether it was still being learned may have been told with
/// an earlier one.
fn in_force_at_start(timeouts: &[(i64, BuildTimeout)]) -> Option<BuildTimeout> {
    let before = || timeouts.iter().rev().filter(|(at, _)| *at < 0).map(|(_, timeout)| timeout);
    let last = before().next()?.clone();
    Some(BuildTimeout { learning: before().find_map(|timeout| timeout.learning), ..last })
}

/// The one circuit that evidence of a loose circuit tells of.
pub fn derive_loose(evidence: &Evidence) -> Option<Circuit> {
    read(&evidence.0).circuits.into_values().next().map(|circuit| circuit.plain())
}

#[derive(Default)]
struct Head {
    connection: u64,
    since: Option<i64>,
    lost: Option<i64>,
    tor: Option<String>,
    onion: Option<String>,
    start: i64,
    sender: Sender,
}

#[derive(Clone, Copy, Default, PartialEq)]
enum Sender {
    #[default]
    None,
    Client,
    Service,
}

#[derive(Default)]
struct Read {
    head: Head,
    circuits: BTreeMap<u64, Known>,
    /// That of the onion service, by which it came to the rendezvous.
    service: BTreeMap<u64, Known>,
    streams: BTreeMap<u64, Vec<StreamEvent>>,
    guards: Vec<GuardEvent>,
    timeouts: Vec<(i64, BuildTimeout)>,
    /// When, tor's word for the step.
    descriptors: Vec<(i64, String)>,
}

/// A circuit, and what is known of it beside that.
struct Known {
    circuit: Circuit,
    set: Option<String>,
    /// Whether it was linked with the others of its set.
    linked: bool,
    /// When it was built: again and again, if tor extended one that it had ready.
    builds: Vec<i64>,
    /// When each HS_STATE was first told.
    hs_states: Vec<(String, i64)>,
    samples: Vec<CongestionSample>,
}

impl std::ops::Deref for Known {
    type Target = Circuit;

    fn deref(&self) -> &Circuit {
        &self.circuit
    }
}

impl Known {
    fn new(id: u64) -> Self {
        let circuit = Circuit {
            id,
            launched_us: None,
            built_us: None,
            path: Vec::new(),
            purpose: None,
            hs_state: None,
            build_flags: Vec::new(),
            built_before_run: None,
            last_used_us: None,
            end: None,
            bytes_read: None,
            bytes_written: None,
        };
        Known { circuit, set: None, linked: false, builds: Vec::new(), hs_states: Vec::new(), samples: Vec::new() }
    }

    fn plain(&self) -> Circuit {
        self.circuit.clone()
    }

    /// When it was built last before this moment.
    fn built_before(&self, moment: i64) -> Option<i64> {
        self.builds.iter().rev().find(|at| **at <= moment).copied()
    }

    fn since(&self, hs_state: &str) -> Option<i64> {
        self.hs_states.iter().find(|(state, _)| state == hs_state).map(|(_, at)| *at)
    }

    fn note(&mut self, at: i64, line: &CircuitLine<'_>, found: bool, start: i64) {
        let circuit = &mut self.circuit;
        if line.status == "LAUNCHED" && !found {
            circuit.launched_us = Some(at);
        } else if circuit.launched_us.is_none() {
            let created = line.words.get("TIME_CREATED").and_then(|created| event::time(&created));
            circuit.launched_us = created.map(|created| created.0.saturating_sub(start));
        }
        if line.status == "BUILT" {
            circuit.built_before_run.get_or_insert(found || at < 0);
            if !found {
                circuit.built_us.get_or_insert(at);
                self.builds.push(at);
            }
        }
        // A hop's time is that of the line that told of it first; of a circuit that was found, there is none.
        let extended = line.status == "EXTENDED" && !found;
        for (i, relay) in event::path(line.path).into_iter().enumerate() {
            match circuit.path.get_mut(i) {
                Some(hop) if hop.relay == relay => {}
                // Another relay in its place: the circuit was cut back and extended again.
                Some(_) => {
                    circuit.path.truncate(i);
                    circuit.path.push(Hop { relay, built_after_us: None });
                }
                None => {
                    let after = circuit.launched_us.map(|launched| at.saturating_sub(launched).max(0).unsigned_abs());
                    let built_after_us = after.filter(|_| extended && seen_from_launch(&circuit.path));
                    circuit.path.push(Hop { relay, built_after_us });
                }
            }
        }
        if let Some(purpose) = line.words.text("PURPOSE") {
            self.linked |= purpose == "CONFLUX_LINKED";
            circuit.purpose = Some(purpose);
        }
        circuit.hs_state = line.words.text("HS_STATE");
        if let Some(state) = &circuit.hs_state
            && self.hs_states.iter().all(|(known, _)| known != state)
        {
            self.hs_states.push((state.clone(), at));
        }
        if let Some(flags) = line.words.get("BUILD_FLAGS") {
            circuit.build_flags = flags.split(',').filter(|flag| !flag.is_empty()).map(str::to_owned).collect();
        }
        if let Some(set) = line.words.text("CONFLUX_ID") {
            self.set = Some(set);
        }
        if matches!(line.status, "FAILED" | "CLOSED") {
            circuit.end = Some(CircuitEnd {
                at_us: at,
                failed: line.status == "FAILED",
                reason: line.words.text("REASON"),
                remote_reason: line.words.text("REMOTE_REASON"),
            });
        }
    }
}

/// Whether the times of the hops so far were all told: tor tells one hop with each line.
fn seen_from_launch(path: &[Hop]) -> bool {
    path.iter().all(|hop| hop.built_after_us.is_some())
}

fn read(text: &str) -> Read {
    let mut read = Read::default();
    let mut lines = text.lines();
    if lines.next() != Some(HEADER) {
        return read;
    }
    let head = &mut read.head;
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "connection" => head.connection = value.parse().unwrap_or(0),
            "since" => head.since = value.parse().ok(),
            "lost" => head.lost = value.parse().ok(),
            "tor" => head.tor = Some(value.to_owned()),
            "onion" => head.onion = Some(value.to_owned()),
            "start" => head.start = value.parse().unwrap_or(0),
            "sender" if value == "client" => head.sender = Sender::Client,
            "sender" if value == "service" => head.sender = Sender::Service,
            _ => {}
        }
    }
    for line in lines {
        let Some((at, line)) = line.split_once(' ') else { continue };
        let Ok(at) = at.parse::<i64>() else { continue };
        let (service, line) = line.strip_prefix('~').map_or((false, line), |line| (true, line));
        let circuits = if service { &mut read.service } else { &mut read.circuits };
        if let Some(own) = line.strip_prefix('=') {
            note_own(circuits, at, own);
        } else if service {
            // tor's ids of the service's circuits may be those of the client's tor too.
            if let Event::Circuit(line) = event::parse(line) {
                let known = circuits.entry(line.id).or_insert_with(|| Known::new(line.id));
                known.note(at, &line, false, read.head.start);
            }
        } else if let Some(found) = line.strip_prefix('+') {
            note_event(&mut read, at, found, true);
        } else {
            note_event(&mut read, at, line, false);
        }
    }
    read
}

fn note_event(read: &mut Read, at: i64, line: &str, found: bool) {
    match event::parse(line) {
        Event::Circuit(line) => {
            let known = read.circuits.entry(line.id).or_insert_with(|| Known::new(line.id));
            known.note(at, &line, found, read.head.start);
        }
        Event::Stream(line) => read.streams.entry(line.id).or_default().push(stream_event(at, &line)),
        Event::Guard(line) => {
            let guard = |relay| GuardEvent { at_us: at, relay, status: line.status.to_owned() };
            read.guards.extend(event::relay(line.relay).map(guard));
        }
        Event::BuildTimeout(line) => {
            read.timeouts.extend(line.announced().map(|timeout| (at, timeout)));
        }
        Event::Descriptor(line) => read.descriptors.push((at, line.action.to_owned())),
        Event::CircuitBandwidth(_) | Event::StatusClient(_) | Event::Other(_) => {}
    }
}

/// The lines that perfd itself wrote: `used 5`, `bytes 5 read=1 written=2`, `sample 5 cwnd=124 …`.
fn note_own(circuits: &mut BTreeMap<u64, Known>, at: i64, line: &str) {
    let mut words = line.split(' ');
    let (Some(kind), Some(Ok(id))) = (words.next(), words.next().map(str::parse::<u64>)) else { return };
    let circuit = circuits.entry(id).or_insert_with(|| Known::new(id));
    let words = event::Words(line);
    let number = |key: &str| words.get(key).and_then(|value| value.parse::<u64>().ok());
    match kind {
        "used" => circuit.circuit.last_used_us = circuit.circuit.last_used_us.max(Some(at)),
        "bytes" => {
            circuit.circuit.bytes_read = number("read");
            circuit.circuit.bytes_written = number("written");
        }
        "sample" => {
            let micros = |ms: u64| ms.saturating_mul(1000);
            circuit.samples.push(CongestionSample {
                at_us: at,
                cwnd_cells: number("cwnd"),
                rtt_us: number("rtt").map(micros),
                min_rtt_us: number("min_rtt").map(micros),
                slow_start: number("ss").map(|ss| ss != 0),
            });
        }
        _ => {}
    }
}

fn stream_event(at: i64, line: &StreamLine<'_>) -> StreamEvent {
    StreamEvent {
        at_us: at,
        status: line.status.to_owned(),
        circuit_id: (line.circuit != 0).then_some(line.circuit),
        reason: line.words.text("REASON"),
        remote_reason: line.words.text("REMOTE_REASON"),
    }
}

/// A run is known if perfd listened from its START to the end of its stream.
fn state(head: &Head, stream: &[StreamEvent]) -> CircuitState {
    let ended = stream.iter().any(|event| matches!(event.status.as_str(), "CLOSED" | "FAILED"));
    let listened = head.connection != 0 && head.since.is_some_and(|since| since <= 0);
    match (listened, stream.is_empty(), head.lost.is_some() && !ended) {
        (false, _, _) | (_, _, true) => CircuitState::TorLost,
        (true, true, false) => CircuitState::Unseen,
        (true, false, false) => CircuitState::Known,
    }
}

/// The Conflux set of a circuit, with its legs at the time of the run: those that were linked, and had not ended.
/// tor also launches legs that come to nothing, and replaces those that break.
fn set_of(circuit: &Known, circuits: &BTreeMap<u64, Known>) -> Option<Conflux> {
    let id = circuit.set.as_ref()?;
    let of_run = |leg: &&Known| {
        let was_there = leg.linked && leg.end.as_ref().is_none_or(|end| end.at_us >= 0);
        leg.set.as_ref() == Some(id) && (was_there || leg.id == circuit.id)
    };
    Some(Conflux { id: id.clone(), legs: circuits.values().filter(of_run).map(Known::plain).collect() })
}

fn congestion(
    sender: Sender,
    attached: Option<u64>,
    circuits: &BTreeMap<u64, Known>,
    service: Option<&Known>,
) -> Option<Congestion> {
    let circuit = match sender {
        Sender::None => return None,
        // Of a Conflux set's legs, the one that the stream is attached to need not be the one that sends.
        Sender::Client => {
            let attached = circuits.get(&attached?)?;
            let leg = |known: &&Known| known.set.is_some() && known.set == attached.set;
            let legs = circuits.values().filter(leg);
            legs.max_by_key(|leg| leg.bytes_written).unwrap_or(attached)
        }
        Sender::Service => service?,
    };
    let of_service = sender == Sender::Service;
    let samples: Vec<_> = circuit.samples.iter().filter(|sample| sample.at_us >= 0).cloned().collect();
    (!samples.is_empty()).then_some(Congestion { circuit_id: circuit.id, of_service, samples })
}

/// Of circuits that were tried in vain before, the last ones count.
fn onion_steps(circuits: &BTreeMap<u64, Known>, service: Option<&Known>, descriptors: &[(i64, String)]) -> OnionSteps {
    let descriptor = |action: &str| descriptors.iter().find(|(_, word)| word == action).map(|(at, _)| *at);
    let latest = |state: &str| {
        let those = circuits.values().filter_map(|circuit| Some((circuit.since(state)?, circuit)));
        those.max_by_key(|(at, _)| *at)
    };
    let introduced = latest("HSCI_INTRO_SENT");
    let established = latest("HSCR_ESTABLISHED_IDLE");
    let requests = descriptors.iter().filter(|(_, action)| action == "REQUESTED").count();
    OnionSteps {
        descriptor_requested_us: descriptor("REQUESTED"),
        descriptor_received_us: descriptor("RECEIVED"),
        descriptor_requests: u32::try_from(requests).unwrap_or(u32::MAX),
        intro_built_us: introduced.and_then(|(at, circuit)| circuit.built_before(at)),
        introduced_us: introduced.map(|(at, _)| at),
        intro_acknowledged_us: introduced.and_then(|(_, circuit)| circuit.since("HSCI_DONE")),
        rend_built_us: established.and_then(|(at, circuit)| circuit.built_before(at)),
        rend_established_us: established.map(|(at, _)| at),
        joined_us: latest("HSCR_JOINED").map(|(at, _)| at),
        intro: introduced.map(|(_, circuit)| circuit.plain()),
        service: service.map(|circuit| circuit.plain()),
    }
}
