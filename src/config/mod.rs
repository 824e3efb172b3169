//! The configuration, typed and checked: what the file says, with nothing left to look up.
//!
//! [`Config::load`] reads the file, [`Config::to_toml`] prints it as understood, and
//! [`Config::in_force`] gives what is kept with each measurement.

mod error;
mod experiments;
mod file;
mod host;
mod in_force;
mod onion;
mod print;
mod quote;
mod sections;
mod torrc_line;
mod tors;
pub mod units;
mod walk;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::measurement::Kind;
pub use error::{ConfigError, Problem};
pub use onion::ServerOf;
pub use sections::{KEYS, OWN_PAGES};
pub use torrc_line::{against_chosen_guards, fault_of_torrc_line, fits_a_torrc};

/// Everything that the configuration file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The instance's name, Torperf's SOURCE: `[A-Za-z0-9-]+`, at most 64 long.
    pub source: String,
    /// Who runs it, for the start page; empty where the operator says nothing.
    pub contact: String,
    /// The server: where it listens and what it grants strangers.
    pub server: Server,
    /// The address at which the server is reached from the Internet; without one perfd can't measure.
    pub public: Option<PublicAddress>,
    /// Whom to become when started as root; absent where perfd is to stay who it is.
    pub run_as: Option<RunAs>,
    /// The SQLite file. Its folder is perfd's state directory, which holds the payload key too.
    pub store: PathBuf,
    /// Where the files of finished days are given out.
    pub collector: Collector,
    /// The log.
    pub log: Log,
    /// The tors to measure through, at least one.
    pub tors: Vec<Tor>,
    /// What to measure, and when.
    pub experiments: Vec<Experiment>,
}

/// The `[server]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// The addresses to listen on, at least one; port 0 lets the system choose.
    pub listen: Vec<SocketAddr>,
    /// The largest payload given out, in bytes, 1 to 2^40; at least the largest experiment's size.
    pub max_payload: u64,
    /// The most connections open at a time, 1 to 10,000.
    pub max_connections: usize,
    /// The most payloads sent to strangers at a time, 1 to 10,000; perfd's own runs don't count.
    pub max_payloads: usize,
    /// A client that takes nothing for so long is cut off, 1 s to 1 h.
    pub stall_timeout: Duration,
}

/// The `[public]` section: how the Internet reaches the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PublicAddress {
    /// A host name or an IP address (IPv6 without brackets).
    pub host: String,
    /// 1 to 65535.
    pub port: u16,
}

/// The `[privileges]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunAs {
    /// A user's name or number, not root's.
    pub user: String,
    /// A group's name or number; the user's own group where absent.
    pub group: Option<String>,
}

/// The `[collector]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    /// The path below which finished days are listed, `/` at both ends, of no other page; `None` publishes nothing.
    pub path: Option<String>,
}

/// The `[log]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The log file, for `tail -F`; absent logs to the terminal alone.
    pub file: Option<PathBuf>,
    /// How a line looks.
    pub format: LogFormat,
    /// The least severe level shown.
    pub level: LogLevel,
    /// How many days of log files are kept, 1 to 3650.
    pub keep_days: usize,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The least severe level shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// A `[[tor]]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tor {
    /// What experiments call it, unique: `[A-Za-z0-9._-]+`, at most 64 long.
    pub name: String,
    /// Whether it is there already, or perfd starts it.
    pub run: TorRun,
    /// DROPGUARDS is sent to it so often, 45 s after the multiples since the Unix epoch, 1 min to 365 d; needs control of it.
    pub drop_guards_every: Option<Duration>,
    /// DROPTIMEOUTS likewise.
    pub drop_timeouts_every: Option<Duration>,
}

/// Where a tor comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TorRun {
    /// Somebody else runs it.
    Address {
        /// Its SOCKS 5 address.
        socks: SocketAddr,
        /// Its control port; without one perfd measures, and knows no circuits.
        control: Option<Control>,
    },
    /// perfd runs it.
    Started(StartedTor),
}

/// How a tor that somebody else runs is controlled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Where it listens.
    pub address: ControlAddress,
    /// A file that holds its password, in its first line; without one, what PROTOCOLINFO offers is used.
    pub password_file: Option<PathBuf>,
}

/// The address of a control port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// Of a ControlPort.
    Tcp(SocketAddr),
    /// Of a ControlSocket: `unix:PATH`.
    Unix(PathBuf),
}

/// A tor that perfd starts, watches and ends. It chooses its ports itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartedTor {
    /// The program.
    pub binary: PathBuf,
    /// Its data directory; made if it is missing (mode 0700), of no other tor.
    pub data: PathBuf,
    /// Lines for its torrc.
    pub torrc: Vec<String>,
    /// A file of further lines, read anew at each start and reload.
    pub torrc_file: Option<PathBuf>,
    /// The `DirAuthority` values of a private network, on loopback alone. Empty: the public network.
    pub authorities: Vec<String>,
    /// Whether it serves single-hop onion services (non-anonymous mode); it then has no SocksPort, and
    /// nothing can be measured through it.
    pub single_hop: bool,
    /// It is started again if its bootstrap makes no progress for so long, 1 s to 1 d.
    pub bootstrap_timeout: Duration,
    /// Guards chosen by their bandwidth in the consensus.
    pub guards: Option<GuardSet>,
}

/// Guards chosen by speed, as Torperf's experiments had them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuardSet {
    /// Which.
    pub choice: GuardChoice,
    /// How many, 1 to 100.
    pub count: u32,
}

/// Which guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardChoice {
    /// Those of the least bandwidth.
    Slowest,
    /// Those of the most.
    Fastest,
    /// Any.
    Random,
}

/// An `[[experiment]]` section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Experiment {
    /// Its name, unique: `[A-Za-z0-9._-]+`, at most 64 long.
    pub name: String,
    /// The tors to measure through, at least one; with several, each slot measures through all of them, in
    /// an order drawn anew.
    pub tors: Vec<String>,
    /// What its runs do.
    pub kind: Kind,
    /// How the server is reached.
    pub server: ServerChoice,
    /// Which tor publishes the onion service; absent: the tor that is measured through.
    pub onion_tor: Option<String>,
    /// Whether the HTTP request is sent before the SOCKS reply.
    pub optimistic: bool,
    /// Whether its downloads are in the files of finished days.
    pub publish: bool,
    /// How many runs a slot has through each tor, one after the other, 1 to 100.
    pub requests: u32,
    /// Which of these share their SOCKS user name, and so their circuits.
    pub isolation: Isolation,
    /// Bytes of payload, 1 to 2^31 - 1 (Torperf's FILESIZE is an int32).
    pub size: u64,
    /// The time between two slots, 1 s to 365 d.
    pub every: Duration,
    /// How long after the epoch's grid the slots lie, less than `every`.
    pub offset: Duration,
    /// How long a run may take, 1 ms or more; all runs of a slot, with `jitter`, at most `every`.
    pub timeout: Duration,
    /// A slot's first run starts up to so long after it, by a number drawn from experiment and slot.
    pub jitter: Duration,
}

/// How an experiment's server is to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerChoice {
    /// At the public address if there is one, else as an onion service.
    Auto,
    /// At the public address.
    Exit,
    /// As an onion service that perfd publishes.
    Onion,
}

/// Which runs of a slot share their SOCKS user name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// None: each run gets a circuit of its own.
    Each,
    /// All that go through one tor.
    Shared,
}

impl ServerChoice {
    /// Every choice and the file's word for it.
    pub const WORDS: [(&'static str, Self); 3] = [("auto", Self::Auto), ("exit", Self::Exit), ("onion", Self::Onion)];

    /// The file's word for it.
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

impl Isolation {
    /// Every choice and the file's word for it.
    pub const WORDS: [(&'static str, Self); 2] = [("each", Self::Each), ("shared", Self::Shared)];

    /// The file's word for it.
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

impl GuardChoice {
    /// Every choice and the file's word for it.
    pub const WORDS: [(&'static str, Self); 3] =
        [("slowest", Self::Slowest), ("fastest", Self::Fastest), ("random", Self::Random)];

    /// The file's word for it.
    pub fn as_str(self) -> &'static str {
        Self::WORDS[self as usize].0
    }
}

impl Tor {
    /// Its SOCKS 5 address, where that is known from the file.
    pub fn socks(&self) -> Option<SocketAddr> {
        match &self.run {
            TorRun::Address { socks, .. } => Some(*socks),
            TorRun::Started(_) => None,
        }
    }

    /// Whether perfd can control it.
    pub fn has_control(&self) -> bool {
        !matches!(&self.run, TorRun::Address { control: None, .. })
    }
}

impl LogFormat {
    /// Every format and the file's word for it.
    pub const WORDS: [(&'static str, Self); 2] = [("text", Self::Text), ("json", Self::Json)];

    /// The file's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl LogLevel {
    /// Every level and the file's word for it, the most severe first.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];

    /// The file's word for it, which is tracing's too.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Config {
    /// perfd's state directory: the folder that holds the store.
    pub fn state_directory(&self) -> &Path {
        folder_of(&self.store)
    }

    /// The folder in which a perfd that runs on the store says so, by a lock. It is the store's own folder, also where
    /// `store` is a link to a file elsewhere: by whatever way one comes to a store, there is one lock.
    pub fn lock_directory(&self) -> PathBuf {
        real_folder_of(&self.store)
    }
}

/// The folder that holds this file, links followed; that of the path as it is, where the file is not there yet.
pub fn real_folder_of(file: &Path) -> PathBuf {
    folder_of(&std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned())).to_owned()
}

/// The folder that holds this file: the present one, for a bare name.
pub fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
