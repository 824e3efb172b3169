//! What tor told of a run: its stream, the circuit that carried it, and what became of both (no I/O).
//!
//! The control lines that touch a run are its [`Evidence`]; [`fn@derive`] makes [`CircuitData`] of them, the
//! same way at once and years later. What tor did not tell is absent, never guessed.
//!
//! Names that end in `_us` are microseconds after the run's START by the monotonic clock, negative before it:
//! a circuit is often built before its run.

pub mod book;
mod brief;
mod derive;
pub mod event;
pub mod evidence;
pub mod imported;
pub mod records;

#[cfg(test)]
mod tests;

pub use derive::{derive, derive_loose};

use serde::{Deserialize, Serialize};

use crate::clock::UnixMicros;

/// With this every SOCKS user name of perfd's runs begins, and nobody else's, it is hoped.
pub const USER_PREFIX: &str = "perfd-";

/// What tor told of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CircuitData {
    /// How much is known.
    pub state: CircuitState,
    /// The number of the control connection, from 1 for each start of perfd: tor's ids mean something only
    /// within one. 0 if there was none.
    pub connection: u64,
    /// tor's version, as it says it.
    pub tor_version: Option<String>,
    /// tor's id of the run's stream.
    pub stream_id: Option<u64>,
    /// What happened to that stream, in order: its attachments and detachments with their reasons.
    pub stream: Vec<StreamEvent>,
    /// The circuit that the stream was attached to last.
    pub circuit: Option<Circuit>,
    /// Where that circuit is a leg of a Conflux set: the set, with all its legs.
    pub conflux: Option<Conflux>,
    /// The steps of reaching an onion service.
    pub onion: Option<OnionSteps>,
    /// The circuit build timeout in force at START, where tor has announced one.
    pub build_timeout: Option<BuildTimeout>,
    /// The first hop of the circuit: the guard, or the bridge.
    pub guard: Option<Relay>,
    /// What tor said of its guards during the run.
    pub guard_events: Vec<GuardEvent>,
    /// Congestion control of the sending end, where that end is ours.
    pub congestion: Option<Congestion>,
}

/// How much is known of a run's circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CircuitState {
    /// tor told of the run's stream from its beginning on.
    Known,
    /// perfd listened, and tor told of no such stream: the run did not get so far, or was not told apart.
    Unseen,
    /// perfd was not connected to tor's control port, or not all the time.
    TorLost,
}

impl CircuitState {
    /// Every state, with the word that the store and the API use for it.
    pub const ALL: [(CircuitState, &'static str); 3] =
        [(CircuitState::Known, "known"), (CircuitState::Unseen, "unseen"), (CircuitState::TorLost, "tor_lost")];

    /// The state's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

/// A relay, as tor names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Relay {
    /// 40 upper-case hexadecimal digits.
    pub fingerprint: String,
    /// Where tor knows one.
    pub nickname: Option<String>,
}

/// Something that happened to a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamEvent {
    /// When tor's line came.
    pub at_us: i64,
    /// tor's word: `NEW`, `SENTCONNECT`, `DETACHED`, `REMAP`, `SUCCEEDED`, `FAILED`, `CLOSED`, `XOFF_SENT` …
    pub status: String,
    /// The circuit that it concerns; absent where tor says 0.
    pub circuit_id: Option<u64>,
    /// tor's REASON.
    pub reason: Option<String>,
    /// The exit's reason (REMOTE_REASON).
    pub remote_reason: Option<String>,
}

/// A circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circuit {
    /// tor's id of it.
    pub id: u64,
    /// When it was launched: when tor's line came, or else tor's TIME_CREATED.
    pub launched_us: Option<i64>,
    /// When it was built.
    pub built_us: Option<i64>,
    /// Its hops, the guard first; as far as it was extended.
    pub path: Vec<Hop>,
    /// tor's PURPOSE, as it was last.
    pub purpose: Option<String>,
    /// tor's HS_STATE, as it was last.
    pub hs_state: Option<String>,
    /// tor's BUILD_FLAGS.
    pub build_flags: Vec<String>,
    /// Whether it had been built before START; absent where it was not built, as far as tor has told.
    pub built_before_run: Option<bool>,
    /// When a stream of another run was last attached to it, if one was.
    pub last_used_us: Option<i64>,
    /// How it ended, if it has.
    pub end: Option<CircuitEnd>,
    /// Bytes of cells that it carried to us since the run's stream was first attached, as far as tor has told, and
    /// until a stream of another run was. tor counts them once a second, so that streams which follow each other
    /// faster on one circuit can't be told apart.
    pub bytes_read: Option<u64>,
    /// The same, from us.
    pub bytes_written: Option<u64>,
}

/// A hop of a circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// The relay.
    pub relay: Relay,
    /// When the circuit reached it, µs after its launch; absent where perfd was not there.
    pub built_after_us: Option<u64>,
}

/// The end of a circuit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CircuitEnd {
    /// When tor's line came.
    pub at_us: i64,
    /// Whether it failed before it was built (tor's FAILED, not CLOSED).
    pub failed: bool,
    /// tor's REASON.
    pub reason: Option<String>,
    /// The reason of the relay that destroyed it (REMOTE_REASON).
    pub remote_reason: Option<String>,
}

/// A Conflux set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflux {
    /// tor's CONFLUX_ID.
    pub id: String,
    /// Its legs, the circuit that tor named for the stream among them.
    pub legs: Vec<Circuit>,
}

/// The steps of reaching an onion service, as the client's tor told them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnionSteps {
    /// The descriptor was asked for. Absent, as are the next two, where tor had it.
    pub descriptor_requested_us: Option<i64>,
    /// It came.
    pub descriptor_received_us: Option<i64>,
    /// How many directories were asked for it.
    pub descriptor_requests: u32,
    /// The circuit to the introduction point was built.
    pub intro_built_us: Option<i64>,
    /// The introduction was sent.
    pub introduced_us: Option<i64>,
    /// The introduction point acknowledged it.
    pub intro_acknowledged_us: Option<i64>,
    /// The circuit to the rendezvous point was built.
    pub rend_built_us: Option<i64>,
    /// The rendezvous point was established.
    pub rend_established_us: Option<i64>,
    /// The service had joined.
    pub joined_us: Option<i64>,
    /// The circuit to the introduction point.
    pub intro: Option<Circuit>,
    /// The service's own circuit to the rendezvous point, where the service is ours and it can be told
    /// which one it was.
    pub service: Option<Circuit>,
}

/// A circuit build timeout, as tor announced it (BUILDTIMEOUT_SET).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BuildTimeout {
    /// In milliseconds.
    pub timeout_ms: u64,
    /// The quantile of the build times that it stands for (CUTOFF_QUANTILE).
    pub quantile: Option<f64>,
    /// Whether tor was still learning it: it has not computed one since it (re)set the times. Absent where tor has
    /// told neither.
    pub learning: Option<bool>,
}

/// What tor said of one of its guards.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardEvent {
    /// When tor's line came.
    pub at_us: i64,
    /// The relay.
    pub relay: Relay,
    /// tor's word: `NEW`, `UP`, `DOWN`, `BAD`, `GOOD`, `DROPPED` …
    pub status: String,
}

/// Congestion control of the sending end, sampled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Congestion {
    /// Of which circuit.
    pub circuit_id: u64,
    /// Whether that is the service's circuit (a download from our own onion service), not the client's (an upload).
    pub of_service: bool,
    /// In order of time; thinned, so that there are never more than some dozens.
    pub samples: Vec<CongestionSample>,
}

/// Congestion control at one moment, as tor's CIRC_BW tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CongestionSample {
    /// When tor's line came.
    pub at_us: i64,
    /// The window, in cells (CWND).
    pub cwnd_cells: Option<u64>,
    /// The round-trip time, in microseconds (RTT; tor says milliseconds).
    pub rtt_us: Option<u64>,
    /// The least of them (MIN_RTT).
    pub min_rtt_us: Option<u64>,
    /// Whether the circuit is in slow start (SS).
    pub slow_start: Option<bool>,
}

/// The control lines that touch one run, as they are kept: see `evidence.rs` for the form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence(pub String);

/// A circuit that failed, or that no run used, whole.
#[derive(Clone, Debug, PartialEq)]
pub struct LooseCircuit {
    /// The name of the tor.
    pub tor: String,
    /// The number of the control connection.
    pub connection: u64,
    /// The wall clock when perfd first heard of it, which is its launch but for those that perfd found when it came;
    /// its times are relative to this.
    pub since: UnixMicros,
    /// The circuit.
    pub circuit: Circuit,
}

/// Something that happened to a tor, as the store keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TorEvent {
    /// The name of the tor.
    pub tor: String,
    /// When.
    pub at: UnixMicros,
    /// The number of the control connection; 0 where there is none.
    pub connection: u64,
    /// What, in a word: `started`, `not_started`, `exited`, `stuck`, `bootstrap`, `connected`, `lost`, `reloaded`,
    /// `onion_created`, `onion_uploaded`, `guards_chosen`, `dropguards`, `droptimeouts`.
    pub what: String,
    /// More of it, for people.
    pub detail: String,
}
