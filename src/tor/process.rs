//! One run of a tor that perfd starts: its folder, its process, what it said last, how it ended.
//!
//! The tor ends with perfd, however that ends: it is told to, it is killed when its [`Process`] is dropped, and it
//! looks for its owner every 15 s.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{AccessFlags, Pid, access, geteuid};
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Level;

use super::output::{Tail, drain, severity};
use super::torrc::{CONTROL_PORT_FILE, COOKIE_FILE, TorrcError, network_of, torrc, transport_of};
use crate::config::StartedTor;
use crate::gate;

/// A tor that was started.
#[derive(Debug)]
pub struct Process {
    data: PathBuf,
    pid: u32,
    child: Child,
    /// The task that reads what it says.
    output: JoinSet<()>,
    tail: Tail,
    transport: Option<String>,
    /// Held as long as it runs: another perfd would write another torrc into its folder.
    _lock: Flock<File>,
}

/// Why a tor was not started. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its folder is not fit for it.
    #[error("data {}: {why}", dir.display())]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// What is wrong, a semicolon, and what would be right.
        why: String,
    },
    /// Its `torrc_file` can't be read.
    #[error("torrc_file {}: {error}; it must be a file of at most 1 MiB of UTF-8 that perfd's user can read", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// Its torrc holds what it must not.
    #[error(transparent)]
    Torrc(#[from] TorrcError),
    /// tor does not take it.
    #[error("tor does not take this torrc: {0}")]
    Rejected(String),
    /// Another perfd starts a tor with the same data.
    #[error("data {}: another perfd uses it; give each tor a folder of its own", .0.display())]
    InUse(PathBuf),
    /// The gate refused it, or the system.
    #[error("can't start {}: {error}", binary.display())]
    Start {
        /// The program.
        binary: PathBuf,
        /// The refusal, or what the system says.
        error: io::Error,
    },
}

/// How a tor ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// As the system says it: `exit status: 1`, `signal: 9 (SIGKILL)`.
    pub status: String,
    /// The last that it said, at most a dozen lines, each of at most 1 KiB and without control characters.
    pub last_lines: Vec<String>,
}

/// Why the address of a control port is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoControl {
    /// tor ended.
    #[error("{0}")]
    Ended(Ended),
    /// It took too long.
    #[error("tor has opened no control port after {} s", .0.as_secs())]
    Late(Duration),
}

/// How long a tor may take to end when it is told to.
const TERM_WAIT: Duration = Duration::from_secs(5);
/// And when it is killed.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How long what an ended tor said last is waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long tor may take to say whether it takes a torrc.
const VERIFY_WAIT: Duration = Duration::from_secs(10);
/// As many of its last lines tell why not.
const TAIL: usize = 12;
/// Between two looks for the control port.
const POLL: Duration = Duration::from_millis(20);
/// In bytes.
const LARGEST_FILE: u64 = 1 << 20;

impl Process {
    /// Starts a tor, called `name` in the log, within a tokio runtime. One of single hops publishes an onion service
    /// that leads to `target`.
    ///
    /// Its data directory is made if it is missing (mode 0700) and holds the torrc too. What it says goes to the log.
    ///
    /// # Errors
    /// A folder that is somebody else's, a torrc that can't be made, and what the [`gate`] or the system refuses.
    pub fn start(tor: &StartedTor, name: &str, target: Option<SocketAddr>) -> Result<Process, StartError> {
        let data = folder(&tor.data)?;
        let lock = lock(&data)?;
        let text = whole_torrc(tor, &data, target)?;
        // One of an earlier run would be believed.
        match fs::remove_file(data.join(CONTROL_PORT_FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let why = format!("{CONTROL_PORT_FILE} can't be removed: {error}; give the folder to perfd's user");
                return Err(StartError::Folder { dir: data, why });
            }
            _ => {}
        }
        let failed = |error| StartError::Start { binary: tor.binary.clone(), error };
        let (child, output) = gate::start_piped(&tor.binary, &data, &text, network_of(tor)).map_err(failed)?;
        let tail = Tail::default();
        let mut task = JoinSet::new();
        task.spawn(drain(output, name.to_owned(), tail.clone()));
        let pid = child.id().unwrap_or_default();
        Ok(Process { data, pid, child, output: task, tail, transport: transport_of(&text), _lock: lock })
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The cookie for its control port.
    pub fn cookie(&self) -> PathBuf {
        self.data.join(COOKIE_FILE)
    }

    /// The transport of the bridges that it uses, `bridge` for plain ones; `None` where it uses none.
    pub fn transport(&self) -> Option<&str> {
        self.transport.as_deref()
    }

    /// The last that it said, at most a dozen lines.
    pub fn last_lines(&self) -> Vec<String> {
        self.tail.lines()
    }

    /// The address of its control port, once it listens there.
    ///
    /// # Errors
    /// It ended, or opened none `within` this time; it then still runs.
    pub async fn control(&mut self, within: Duration) -> Result<SocketAddr, NoControl> {
        let file = self.data.join(CONTROL_PORT_FILE);
        let written = async {
            loop {
                if let Some(address) = read_file(&file).ok().and_then(|text| control_address(&text)) {
                    return address;
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            // First: one that ended has left its file behind.
            biased;
            ended = self.wait() => Err(NoControl::Ended(ended)),
            written = timeout(within, written) => written.map_err(|_| NoControl::Late(within)),
        }
    }

    /// Returns when it has ended, as often as it is asked. May be dropped and called again.
    pub async fn wait(&mut self) -> Ended {
        let status = match self.child.wait().await {
            Ok(status) => status.to_string(),
            Err(error) => format!("unknown: {error}"),
        };
        // Somebody whom it has started may hold the other end of the pipe.
        if timeout(LAST_WORDS, self.output.join_next()).await.is_err() {
            self.output.abort_all();
        }
        Ended { status, last_lines: self.last_lines() }
    }

    /// Tells it to end, and kills it if it has not after 5 s.
    pub async fn end(self) -> Ended {
        self.end_or_kill(TERM_WAIT).await
    }

    async fn end_or_kill(mut self, patience: Duration) -> Ended {
        // Without an id it has ended, and its pid may be another's.
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        if let Ok(ended) = timeout(patience + LAST_WORDS, self.wait()).await {
            return ended;
        }
        // Fails for one that has ended, which is just as well.
        let _ = self.child.start_kill();
        match timeout(KILL_WAIT + LAST_WORDS, self.wait()).await {
            Ok(ended) => ended,
            Err(_) => Ended { status: "survived even SIGKILL".to_owned(), last_lines: self.last_lines() },
        }
    }
}

/// Whether a tor could be started, as far as that can be told without starting it or making anything: its program is
/// there and may be run, and its torrc can be made.
///
/// # Errors
/// As [`Process::start`].
pub fn check(tor: &StartedTor) -> Result<(), StartError> {
    let found = fs::metadata(&tor.binary);
    let runs = found.and_then(|found| match found.is_file() {
        true => access(&tor.binary, AccessFlags::X_OK).map_err(io::Error::from),
        false => Err(io::Error::other("it is no file")),
    });
    runs.map_err(|error| StartError::Start { binary: tor.binary.clone(), error })?;
    let data = std::path::absolute(&tor.data).unwrap_or_else(|_| tor.data.clone());
    whole_torrc(tor, &data, None).map(drop)
}

/// Writes the torrc of a tor anew, with what its `torrc_file` holds now, if tor takes it; tor reads it when it is told
/// to reload. Gives its transport, as [`Process::transport`].
///
/// # Errors
/// As [`Process::start`], and what tor does not take; the old torrc is then still there.
pub async fn rewrite(tor: &StartedTor, target: Option<SocketAddr>) -> Result<Option<String>, StartError> {
    let data = folder(&tor.data)?;
    let text = whole_torrc(tor, &data, target)?;
    let failed = |error| StartError::Start { binary: tor.binary.clone(), error };
    let verifying = gate::verify(&tor.binary, &data.join("verify"), &text, network_of(tor)).map_err(failed)?;
    let verdict = timeout(VERIFY_WAIT, verifying.wait_with_output()).await;
    let verdict = verdict.unwrap_or_else(|_| Err(io::Error::other("it does not end"))).map_err(failed)?;
    if !verdict.status.success() {
        let said = String::from_utf8_lossy(&verdict.stdout);
        let last_lines =
            said.lines().rev().take(TAIL).map(str::to_owned).collect::<Vec<_>>().into_iter().rev().collect();
        return Err(StartError::Rejected(Ended { status: verdict.status.to_string(), last_lines }.reason()));
    }
    gate::rewrite(&data, &text, network_of(tor)).map_err(failed)?;
    Ok(transport_of(&text))
}

/// Makes sure that no other perfd has a tor with this data.
fn lock(data: &Path) -> Result<Flock<File>, StartError> {
    let path = data.join("perfd.lock");
    let refused = |error| StartError::Folder {
        dir: data.to_owned(),
        why: format!("perfd.lock can't be opened: {error}; give the folder to perfd's user"),
    };
    let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(path).map_err(refused)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| StartError::InUse(data.to_owned()))
}

impl Ended {
    /// Why it ended, in a line: its last warnings and errors, the very last first, or else the last that it said.
    pub fn reason(&self) -> String {
        let said = self.last_lines.iter().rev().map(|line| severity(line));
        let warnings =
            said.filter(|(level, said)| *level == Level::WARN && !USUAL.iter().any(|usual| said.starts_with(usual)));
        let warnings: Vec<_> = warnings.map(|(_, said)| said).collect();
        match (warnings.as_slice(), self.last_lines.last()) {
            ([], Some(last)) => severity(last).1.to_owned(),
            (warnings, _) => warnings.join("; "),
        }
    }
}

/// What tor warns of in a private network, or when it does as it is told: no reason to end.
const USUAL: [&str; 4] =
    ["You have used DirAuthority", "TestingTorNetwork is set", "DROPGUARDS is dangerous", "DROPTIMEOUTS is dangerous"];

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tor ended ({})", self.status)?;
        match self.reason().as_str() {
            "" => Ok(()),
            reason => write!(f, ": {reason}"),
        }
    }
}

/// The data directory, absolute; made if it is missing.
fn folder(data: &Path) -> Result<PathBuf, StartError> {
    let refused = |why: String| Err(StartError::Folder { dir: data.to_owned(), why });
    let made = std::path::absolute(data)
        .and_then(|dir| fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map(|()| dir));
    let found = made.and_then(|dir| fs::metadata(&dir).map(|found| (dir, found)));
    let (dir, found) = match found {
        Ok(found) => found,
        Err(error) => return refused(format!("{error}; the folder must be one that perfd's user can make and use")),
    };
    let us = geteuid().as_raw();
    if found.uid() != us {
        let remedy = "chown -R it, or write another folder as data";
        return refused(format!("the folder belongs to user {}, and perfd runs as {us}; {remedy}", found.uid()));
    }
    // Its group may read it, if the torrc says so; tor sees to that.
    if found.mode() & 0o027 != 0 {
        let remedy = "chmod 700 it, or write another folder as data";
        return refused(format!("others may use it (mode {:03o}); {remedy}", found.mode() & 0o777));
    }
    Ok(dir)
}

fn whole_torrc(tor: &StartedTor, data: &Path, target: Option<SocketAddr>) -> Result<String, StartError> {
    let file = match &tor.torrc_file {
        Some(file) => read_file(file).map_err(|error| StartError::File { file: file.clone(), error })?,
        None => String::new(),
    };
    Ok(torrc(tor, data, std::process::id(), &file, target)?)
}

fn read_file(path: &Path) -> io::Result<String> {
    // Without waiting for the other end, should it be a pipe.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.len() > LARGEST_FILE {
        return Err(io::Error::other("no file, or a large one"));
    }
    let mut text = String::new();
    file.take(LARGEST_FILE).read_to_string(&mut text)?;
    Ok(text)
}

/// What tor writes to its ControlPortWriteToFile: `PORT=127.0.0.1:43211` and a line end.
fn control_address(text: &str) -> Option<SocketAddr> {
    let (whole, _) = text.rsplit_once('\n')?;
    whole.lines().find_map(|line| line.strip_prefix("PORT=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A shell stands in for tor: it takes the torrc for a script, of which it does not find what is tor's.
    fn shell(data: &Path, script: &[&str]) -> StartedTor {
        StartedTor {
            binary: "/bin/sh".into(),
            data: data.to_owned(),
            torrc: script.iter().map(|line| (*line).to_owned()).collect(),
            torrc_file: None,
            authorities: vec!["a 127.77.0.1:7000 AAAA".to_owned()],
            single_hop: false,
            bootstrap_timeout: Duration::from_secs(60),
            guards: None,
        }
    }

    #[tokio::test]
    async fn how_it_ended_and_what_it_said_last_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let script = [
            "echo 'Nov 24 23:11:17.000 [notice] Opening'",
            "echo 'Nov 24 23:11:17.000 [warn] Could not bind'",
            "echo 'Nov 24 23:11:17.000 [err] Reading config failed'",
            "exit 3",
        ];
        let mut process = Process::start(&shell(&data, &script), "a", None).unwrap();
        let ended = process.wait().await;
        assert_eq!(ended.status, "exit status: 3");
        assert_eq!(ended.to_string(), "tor ended (exit status: 3): Reading config failed; Could not bind");
        assert_eq!(ended.last_lines.len(), 12);
        assert_eq!(process.wait().await, ended);
        assert_eq!(process.control(Duration::from_secs(60)).await, Err(NoControl::Ended(ended.clone())));
        assert_eq!(process.end().await, ended);
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[tokio::test]
    async fn the_control_port_is_that_of_this_run() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::DirBuilder::new().mode(0o700).create(&data).unwrap();
        let file = data.join(CONTROL_PORT_FILE);
        fs::write(&file, "PORT=127.0.0.1:1\n").unwrap();
        // In two pieces: half an address is none.
        let write =
            format!("printf PORT=127.0.0.1:2 > {0} && sleep 0.1 && echo 345 >> {0} && exec sleep 60", file.display());
        let mut process = Process::start(&shell(&data, &[&write]), "a", None).unwrap();
        let address = process.control(Duration::from_secs(60)).await;
        assert_eq!(address, Ok("127.0.0.1:2345".parse().unwrap()));
        assert!(process.end().await.status.contains("SIGTERM"));
    }

    #[tokio::test]
    async fn one_that_opens_no_control_port_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = Process::start(&shell(&dir.path().join("data"), &["exec sleep 60"]), "a", None).unwrap();
        let late = Duration::from_millis(50);
        assert_eq!(process.control(late).await, Err(NoControl::Late(late)));
        process.end().await;
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let deaf = ["trap '' TERM", "echo deaf", "while true; do sleep 1; done"];
        let process = Process::start(&shell(&dir.path().join("data"), &deaf), "a", None).unwrap();
        let is_deaf = async {
            while process.last_lines().last().is_none_or(|line| line != "deaf") {
                tokio::time::sleep(POLL).await;
            }
        };
        timeout(Duration::from_secs(60), is_deaf).await.unwrap();
        assert!(process.end_or_kill(POLL).await.status.contains("SIGKILL"));
    }

    #[tokio::test]
    async fn what_keeps_it_from_starting_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let answer = |tor: StartedTor| {
            let error = Process::start(&tor, "a", None).unwrap_err().to_string();
            error.replace(dir.path().to_str().unwrap(), "DIR")
        };
        let tor = shell(&data, &[]);
        assert_eq!(
            answer(StartedTor { binary: "/nowhere/tor".into(), ..tor.clone() }),
            "can't start /nowhere/tor: No such file or directory (os error 2)"
        );
        let pipe = dir.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        assert_eq!(
            answer(StartedTor { torrc_file: Some(pipe), ..tor.clone() }),
            "torrc_file DIR/pipe: no file, or a large one; it must be a file of at most 1 MiB of UTF-8 that perfd's user \
             can read"
        );
        let public = answer(StartedTor { authorities: Vec::new(), ..tor.clone() });
        assert!(public.starts_with("can't start /bin/sh: torrc refused: this tor would join the public"), "{public}");
        fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(
            answer(tor.clone()),
            "data DIR/data: others may use it (mode 755); chmod 700 it, or write another folder as data"
        );
        fs::write(dir.path().join("file"), "").unwrap();
        let file = answer(StartedTor { data: dir.path().join("file"), ..tor });
        assert!(file.starts_with("data DIR/file: File exists (os error 17); "), "{file}");
        if geteuid().is_root() {
            let theirs = dir.path().join("theirs");
            fs::create_dir(&theirs).unwrap();
            std::os::unix::fs::chown(&theirs, Some(12345), None).unwrap();
            assert_eq!(
                answer(shell(&theirs, &[])),
                "data DIR/theirs: the folder belongs to user 12345, and perfd runs as 0; chown -R it, or write another \
                 folder as data"
            );
        }
    }

    #[tokio::test]
    async fn a_torrc_is_written_anew_from_what_the_file_holds_now() {
        let dir = tempfile::tempdir().unwrap();
        let (data, file) = (dir.path().join("data"), dir.path().join("extra"));
        let tor = StartedTor { torrc_file: Some(file.clone()), ..shell(&data, &[]) };
        fs::write(&file, "UseBridges 1\nBridge 127.77.0.2:5000\n").unwrap();
        let process = Process::start(&tor, "a", None).unwrap();
        assert_eq!(process.transport(), Some("bridge"));
        // The shell takes it, as its last line is a command that succeeds.
        fs::write(&file, "UseEntryGuards 0\ntrue\n").unwrap();
        assert_eq!(rewrite(&tor, None).await.unwrap(), None);
        let torrc = fs::read_to_string(data.join("torrc")).unwrap();
        assert!(torrc.ends_with("\nUseEntryGuards 0\ntrue\n") && torrc.starts_with("SocksPort "), "{torrc}");

        fs::write(&file, "SocksPort 9050\n").unwrap();
        assert!(matches!(rewrite(&tor, None).await, Err(StartError::Torrc(_))));
        fs::write(&file, "echo 'Nov 24 23:11:17.000 [warn] Unknown option'\nfalse\n").unwrap();
        let refused = rewrite(&tor, None).await.unwrap_err().to_string();
        assert_eq!(refused, "tor does not take this torrc: Unknown option");
        assert_eq!(fs::read_to_string(data.join("torrc")).unwrap(), torrc);

        let second = Process::start(&tor, "a", None).unwrap_err().to_string();
        assert!(second.ends_with("another perfd uses it; give each tor a folder of its own"), "{second}");
        process.end().await;
    }
}
