//! Results of others, and of long ago: files of Torperf and OnionPerf, read strictly (no I/O).
//!
//! A file that breaks a rule of its format says so with the place and the [`Rule`]; what is read is never guessed.

mod endpoint;
mod lines;
pub mod naming;
pub mod onionperf;
mod open;
mod outcome;
mod rule;
mod text;
pub mod torperf;
pub mod torperf_data;

pub use endpoint::Endpoint;
pub use open::{Bytes, Format, Input, Runs, open, unpacked};
pub use rule::{Rule, Site, Violation};

use std::time::Duration;

use crate::clock::UnixMicros;
use crate::measurement::{Kind, Outcome, RunId, ServerKind, Steps};

/// A longer line is refused, bytes.
pub const LINE_LIMIT: usize = 64 * 1024;

/// A step that lies further after START is refused: no program waits so long, so a clock was set meanwhile.
pub const LONGEST_RUN: Duration = Duration::from_secs(24 * 60 * 60);

/// One result as a file told it.
///
/// Written again as a line of Torperf's, it is: the keys that have fields here, SOURCE to DIDTIMEOUT, in the order of
/// the format; `DATAPERCn` and then `PARTIALn` of those steps that were reached, and those in `extra`, by their
/// numbers; the rest of `extra` as it is; and EXPERIMENT and RUN_ID where they are known. A line that perfd wrote comes
/// out as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportedRun {
    /// Torperf's SOURCE. Escapes that perfd writes (`%20`) are undone, here and in the other names.
    pub source: String,
    /// The experiment, where the file names one (a key of perfd's own).
    pub experiment: Option<String>,
    /// The run's name, where the file has it (a key of perfd's own).
    pub id: Option<RunId>,
    /// The name of the tor, where the file names one. TOR is in `extra` too.
    pub tor: Option<String>,
    /// The wall clock at START, after the Unix epoch.
    pub start: UnixMicros,
    /// When it had ended, microseconds after START, as far as the file tells: its last step.
    pub ended: u64,
    /// FILESIZE, bytes.
    pub size: u64,
    /// The steps that it reached, at most [`LONGEST_RUN`] after START.
    pub steps: Steps,
    /// WRITEBYTES.
    pub written: u64,
    /// READBYTES.
    pub read: u64,
    /// The port of ENDPOINTLOCAL, where it is known. ENDPOINTLOCAL is in `extra` too.
    pub local_port: Option<u16>,
    /// Whether it fetched or sent. KIND, where the file has it, is in `extra` too.
    pub kind: Kind,
    /// How the server was reached. SERVER, where the file has it, is in `extra` too.
    pub server: ServerKind,
    /// How it ended, as far as the file tells. ERRORCODE, where the file has it, is in `extra` too.
    pub outcome: Outcome,
    /// Torperf's DIDTIMEOUT, as the file has it.
    pub did_time_out: bool,
    /// What the file says beyond all this, as keys and values of Torperf's form, in the order in which they came: keys
    /// that perfd doesn't know, those of the circuit, and `DATAPERCn` and `PARTIALn` that were not reached (`0.0`), or
    /// that [`Steps`] has no place for.
    pub extra: Vec<(String, String)>,
}

impl ImportedRun {
    /// The last thing that the steps tell, microseconds after START.
    fn last_step(steps: &Steps) -> u64 {
        let firsts = steps.in_order().map(|(_, at)| at);
        firsts.into_iter().chain(steps.deciles).chain(steps.partials).flatten().max().unwrap_or(0)
    }
}
