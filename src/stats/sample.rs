//! One result, as far as statistics need it.

use std::sync::Arc;

use crate::clock::UnixMicros;
use crate::measurement::{Cause, Kind, Phase, ServerKind, Steps};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// Every step was reached, and the payload was right.
    Complete,
    /// The timeout ran out while this step was being waited for.
    Timeout(Phase),
    /// It failed at this step, for this cause.
    Failed(Phase, Cause),
}

/// One result. Names are shared, since many results have the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The wall clock at START.
    pub start: UnixMicros,
    /// The name of the instance that measured.
    pub source: Arc<str>,
    /// The experiment's name.
    pub experiment: Arc<str>,
    /// The name of the tor.
    pub tor: Arc<str>,
    /// Whether it fetched or sent.
    pub kind: Kind,
    /// How the server was reached.
    pub server: ServerKind,
    /// Bytes of payload asked for.
    pub size: u64,
    /// Whether it was imported, and not measured by this perfd.
    pub imported: bool,
    /// How it ended.
    pub end: End,
    /// Torperf's DIDTIMEOUT, as it stands in key=value: of an imported row what its line said.
    pub did_time_out: bool,
    /// The steps that it reached, microseconds after START.
    pub steps: Steps,
    /// Bytes of HTTP written, headers included.
    pub written: u64,
    /// Bytes of HTTP read, headers included.
    pub read: u64,
    /// What carried it, where that is known and was asked for.
    pub circuit: Option<SampleCircuit>,
}

/// The circuit of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SampleCircuit {
    /// Whether it went over two linked circuits, which is not known of every one: tor may have been lost, the run may
    /// not have come to a circuit, and no file that is imported says it.
    pub conflux: Option<bool>,
    /// The fingerprints of its relays, 40 hexadecimal digits each, the guard first; empty where not all are known.
    pub path: Vec<String>,
    /// Microseconds after the circuit's launch at which each hop was reached; empty where not all are known.
    pub build_times: Vec<u64>,
}
