//! A private Tor network of real tor processes on loopback: one authority, six relays, one client.
//!
//! For demos, tests and development on a machine without (or away from) the public network. Every
//! tor goes through [`start`](crate::gate::start), which refuses one that could join the public network. The
//! network's files are in one folder: `testnet.json` and, per node, its torrc, log, pid and data.

mod bootstrap;
mod client;
mod fetch;
mod keys;
mod process;
pub mod torrc;
mod tors;

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use bootstrap::{Stage, find_tor, up};
pub use client::{Client, ClientOptions, start_client};

/// What [`up`] needs to know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The network's folder: made with mode 0700, or empty, or of an earlier network.
    pub dir: PathBuf,
    /// The folder that holds `tor` and `tor-gencert`; else `$PERFD_TOR_DIR`, else `PATH` is searched.
    pub tor_dir: Option<PathBuf>,
    /// How long it may take until the network is up.
    pub deadline: Duration,
    /// The process whose end the tors follow, also if it is killed; without one they stay until [`down`].
    pub owner: Option<u32>,
}

/// A network that is up; what `testnet.json` holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestNet {
    /// The client's SOCKS port.
    pub socks: SocketAddr,
    /// The client's control port.
    pub control: SocketAddr,
    /// The cookie for the control port.
    pub cookie: PathBuf,
    /// The network's folder.
    pub dir: PathBuf,
    /// The values of the `DirAuthority` lines of every torrc in this network.
    pub authorities: Vec<String>,
    /// The tors.
    pub nodes: Vec<Node>,
}

/// One tor of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its nickname and the name of its folder.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Its process.
    pub pid: u32,
    /// Its own loopback address.
    pub address: Ipv4Addr,
}

/// What a tor does in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Makes the consensus, and is a relay too.
    Authority,
    /// Carries traffic, to loopback addresses alone.
    Relay,
    /// Has a SOCKS and a control port.
    Client,
}

/// What [`status`] finds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The network as it came up.
    pub net: TestNet,
    /// The names of its nodes whose tor has ended.
    pub ended: Vec<String>,
}

impl TestNet {
    /// The authority's address, `127.77.NET.1`.
    pub fn address(&self) -> Ipv4Addr {
        let authority = self.nodes.iter().find(|node| node.role == Role::Authority);
        authority.map_or(Ipv4Addr::LOCALHOST, |node| node.address)
    }
}

/// Why a network did not come up, or down.
#[derive(Debug, thiserror::Error)]
pub enum TestNetError {
    /// No folder holds both binaries.
    #[error(
        "tor not found: {0} does not hold both tor and tor-gencert; run scripts/get-tor, and put what it prints \
         into PATH, PERFD_TOR_DIR or --tor-dir"
    )]
    TorNotFound(String),
    /// The folder cannot be the network's.
    #[error("{}: {why}", .dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another process brings the network up, or down, at this moment.
    #[error("{}: another perfd is bringing this network up or down", .0.display())]
    Busy(PathBuf),
    /// No 127.77.NET is free.
    #[error("no addresses for the network: {address}: {error}")]
    Address {
        /// The address that was tried last.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// A program did not do what it was started for.
    #[error("{program} failed ({status}):\n{output}")]
    Program {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// What it said.
        output: String,
    },
    /// A tor ended while the network came up.
    #[error("the tor of {node} ended ({status}); the end of its log:\n{log}")]
    TorEnded {
        /// The node.
        node: String,
        /// How it ended.
        status: String,
        /// The last lines of its log.
        log: String,
    },
    /// The deadline passed.
    #[error("not up after {} s, still at: {stage}; the end of the log of {node}:\n{log}", .after.as_secs())]
    Deadline {
        /// The deadline.
        after: Duration,
        /// What was being waited for.
        stage: String,
        /// The node whose log tells most.
        node: String,
        /// The last lines of its log.
        log: String,
    },
    /// A client could not join.
    #[error("client `{name}`: {why}")]
    Client {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Tors that survived even SIGKILL.
    #[error("tors that did not end: {0}")]
    Survivors(String),
    /// A file or a process could not be handled.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        error: io::Error,
    },
}

/// The network in `dir` and which of its tors run; `None` where none is.
pub fn status(dir: &Path) -> Result<Option<Status>, TestNetError> {
    let file = dir.join(STATE);
    if !dir.exists() {
        return Ok(None);
    }
    // First: what somebody else put there is not even read.
    check_owner(dir)?;
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TestNetError::Io { what: file.display().to_string(), error }),
    };
    let net: TestNet = serde_json::from_str(&text)
        .map_err(|error| TestNetError::Folder { dir: dir.to_owned(), why: format!("{STATE}: {error}") })?;
    let runs = |node: &Node| process::is_tor_of(node.pid, &torrc::node_folder(&net.dir, &node.name));
    let ended = net.nodes.iter().filter(|node| !runs(node)).map(|node| node.name.clone()).collect();
    Ok(Some(Status { net, ended }))
}

/// Ends every tor of the network in `dir`, also clients that joined later and what an `up` that was
/// killed left behind, and returns how many there were.
pub async fn down(dir: &Path) -> Result<usize, TestNetError> {
    if !dir.exists() {
        return Ok(0);
    }
    check_owner(dir)?;
    let dir = canonical(dir)?;
    if !dir.join(LOCK).exists() {
        return Ok(0);
    }
    let _lock = lock(&dir)?;
    end_all(&dir).await
}

const STATE: &str = "testnet.json";
const LOCK: &str = "testnet.lock";

async fn end_all(dir: &Path) -> Result<usize, TestNetError> {
    let ended = process::end(&process::node_folders(dir)).await.map_err(|survivors| {
        let names: Vec<_> = survivors.iter().map(|folder| folder.display().to_string()).collect();
        TestNetError::Survivors(names.join(", "))
    })?;
    match fs::remove_file(dir.join(STATE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(TestNetError::Io { what: format!("removing {STATE}"), error })
        }
        _ => Ok(ended),
    }
}

/// Makes `dir` (mode 0700) or takes the one that is there, if it is ours and holds nothing foreign.
fn prepare(dir: &Path) -> Result<PathBuf, TestNetError> {
    let refused = |why: &str| TestNetError::Folder { dir: dir.to_owned(), why: why.to_owned() };
    let io_error = |error| TestNetError::Io { what: dir.display().to_string(), error };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error)?;
    check_owner(dir)?;
    let dir = canonical(dir)?;
    let plain = |c: char| !c.is_control() && !['"', '\\', '#'].contains(&c);
    if !dir.to_str().is_some_and(|text| text.chars().all(plain)) {
        return Err(refused("a torrc cannot hold such a name; take one without quotes, backslashes and `#`"));
    }
    let is_empty = fs::read_dir(&dir).map_err(io_error)?.next().is_none();
    if !is_empty && !dir.join(LOCK).exists() {
        return Err(refused("the folder holds other files; take an empty or a new one"));
    }
    Ok(dir)
}

/// Whoever may write in the folder could have us end, or start, what they like.
fn check_owner(dir: &Path) -> Result<(), TestNetError> {
    let refused = |why: String| Err(TestNetError::Folder { dir: dir.to_owned(), why });
    let meta = match fs::symlink_metadata(dir) {
        Ok(meta) => meta,
        Err(error) => return Err(TestNetError::Io { what: dir.display().to_string(), error }),
    };
    let us = nix::unistd::geteuid().as_raw();
    if !meta.is_dir() {
        return refused("not a folder".to_owned());
    }
    if meta.uid() != us {
        return refused(format!("the folder belongs to user {}, not to {us}", meta.uid()));
    }
    if meta.mode() & 0o022 != 0 {
        return refused(format!("others may write into it (mode {:o}); chmod 700 it", meta.mode() & 0o7777));
    }
    Ok(())
}

fn canonical(dir: &Path) -> Result<PathBuf, TestNetError> {
    dir.canonicalize().map_err(|error| TestNetError::Io { what: dir.display().to_string(), error })
}

/// The system frees the lock when its holder ends, however it ends.
fn lock(dir: &Path) -> Result<File, TestNetError> {
    let path = dir.join(LOCK);
    let io_error = |error| TestNetError::Io { what: path.display().to_string(), error };
    let file = File::options().create(true).append(true).open(&path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(TestNetError::Busy(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(io_error(error)),
    }
}

fn io_error(what: String) -> impl FnOnce(io::Error) -> TestNetError {
    move |error| TestNetError::Io { what, error }
}
