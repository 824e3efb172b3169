//! Results of others, and of long ago: files of Torperf and OnionPerf, read strictly (no I/O).

use crate::clock::UnixMicros;
use crate::measurement::{Kind, Outcome, RunId, ServerKind, Steps};

/// One result as a file told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedRun {
    /// Torperf's SOURCE.
    pub source: String,
    /// The experiment, where the file names one (a key of perfd's own).
    pub experiment: Option<String>,
    /// The run's name, where the file has it (a key of perfd's own).
    pub id: Option<RunId>,
    /// The name of the tor, where the file names one.
    pub tor: Option<String>,
    /// The wall clock at START.
    pub start: UnixMicros,
    /// When it had ended, microseconds after START, as far as the file tells: its last step.
    pub ended: u64,
    /// FILESIZE, bytes.
    pub size: u64,
    /// The steps that it reached.
    pub steps: Steps,
    /// WRITEBYTES.
    pub written: u64,
    /// READBYTES.
    pub read: u64,
    /// The port of ENDPOINTLOCAL, where it is known.
    pub local_port: Option<u16>,
    /// Whether it fetched or sent.
    pub kind: Kind,
    /// How the server was reached.
    pub server: ServerKind,
    /// How it ended, as far as the file tells.
    pub outcome: Outcome,
    /// Torperf's DIDTIMEOUT, as the file has it.
    pub did_time_out: bool,
    /// What the file says beyond all this, as keys and values of Torperf's form, in the order in which they came.
    pub extra: Vec<(String, String)>,
}
