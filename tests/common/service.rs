//! perfd as a process: configured, started, watched, signalled and ended.
//!
//! Nothing here waits without a deadline, and a process that a test forgets is killed. Where the tests
//! run as root, perfd becomes the user nobody, as it insists on becoming somebody.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

/// How long a test waits for what should happen at once; much longer than it takes, on a busy machine too.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How often what can't be waited for is looked at: a row in the store, a page of the service.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The exit codes that the tests ask for.
pub mod exit {
    pub const CANT_LISTEN: i32 = 71;
    pub const STORE: i32 = 74;
    pub const PRIVILEGES: i32 = 77;
    pub const CONFIG: i32 = 78;
}

/// Whether the tests run as root.
pub fn are_root() -> bool {
    geteuid().is_root()
}

/// Says that a test was left out; not by eprintln, which the harness keeps to itself while a test passes.
pub fn left_out(why: &str) {
    let _ = writeln!(io::stderr(), "left out: {why}");
}

/// A configuration in the making, in a folder of its own.
pub struct Setup {
    folder: Arc<TempDir>,
    /// The addresses to listen on.
    pub listen: Vec<String>,
    /// The port that perfd is to measure itself at.
    pub public_port: Option<u16>,
    /// Further lines of the section [server].
    pub server: String,
    /// The section [privileges].
    pub privileges: String,
    /// `text` or `json`.
    pub log_format: &'static str,
    /// The store's file.
    pub store: PathBuf,
    /// The log's file.
    pub log: PathBuf,
    tors: String,
    experiments: String,
}

/// The times of an experiment, as they stand in the configuration.
pub struct Times {
    pub every: &'static str,
    pub offset: &'static str,
    pub timeout: &'static str,
}

/// Times by which nothing comes due while a test runs.
pub const HARDLY_EVER: Times = Times { every: "365 d", offset: "200 d", timeout: "1 h" };

/// A slot each second.
pub const EACH_SECOND: Times = Times { every: "1 s", offset: "0 s", timeout: "900 ms" };

impl Setup {
    /// A service that listens on a port of the system's choice and has no tor or experiment yet.
    pub fn new() -> Setup {
        let folder = tempfile::Builder::new().prefix("perfd-test-").tempdir().unwrap();
        // The user nobody must be able to reach what is in it.
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        Setup {
            listen: vec!["127.0.0.1:0".to_owned()],
            public_port: None,
            server: String::new(),
            privileges: if are_root() { "user = \"nobody\"".to_owned() } else { String::new() },
            log_format: "text",
            store: folder.path().join("state/perfd.sqlite"),
            log: folder.path().join("log/perfd.log"),
            tors: String::new(),
            experiments: String::new(),
            folder: Arc::new(folder),
        }
    }

    /// The same with one experiment that does not come due.
    pub fn idle() -> Setup {
        Setup::new().tor("tor", (Ipv4Addr::LOCALHOST, 1).into()).experiment("idle", "tor", "1 KiB", HARDLY_EVER)
    }

    pub fn tor(mut self, name: &str, socks: SocketAddr) -> Setup {
        let _ = writeln!(self.tors, "[[tor]]\nname = \"{name}\"\nsocks = \"{socks}\"");
        self
    }

    pub fn experiment(mut self, name: &str, tor: &str, size: &str, times: Times) -> Setup {
        let Times { every, offset, timeout } = times;
        let _ = writeln!(
            self.experiments,
            "[[experiment]]\nname = \"{name}\"\ntor = \"{tor}\"\nsize = \"{size}\"\n\
             every = \"{every}\"\noffset = \"{offset}\"\ntimeout = \"{timeout}\""
        );
        self
    }

    /// A tor that perfd starts itself; `more` are further lines of its section, `authorities` among them.
    pub fn started_tor(mut self, name: &str, binary: &Path, more: &str) -> Setup {
        let _ = writeln!(self.tors, "[[tor]]\nname = \"{name}\"\nbinary = {binary:?}\n{more}");
        self
    }

    /// A tor that runs already and that perfd controls.
    pub fn controlled_tor(mut self, name: &str, socks: SocketAddr, control: SocketAddr) -> Setup {
        let _ = writeln!(self.tors, "[[tor]]\nname = \"{name}\"\nsocks = \"{socks}\"\ncontrol = \"{control}\"");
        self
    }

    /// An experiment through several tors, or of another kind: `more` are further lines of its section.
    pub fn experiment_of(mut self, name: &str, tors: &[&str], size: &str, times: Times, more: &str) -> Setup {
        let Times { every, offset, timeout } = times;
        let _ = writeln!(
            self.experiments,
            "[[experiment]]\nname = \"{name}\"\ntor = {tors:?}\nsize = \"{size}\"\n\
             every = \"{every}\"\noffset = \"{offset}\"\ntimeout = \"{timeout}\"\n{more}"
        );
        self
    }

    /// The folder that everything is in.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// perfd's state directory.
    pub fn state(&self) -> &Path {
        self.store.parent().unwrap()
    }

    /// Writes the configuration; its path.
    pub fn write(&self) -> PathBuf {
        let public = self.public_port.map_or(String::new(), |port| format!("host = \"127.0.0.1\"\nport = {port}"));
        let text = format!(
            "source = \"test\"\n[server]\nlisten = {:?}\n{}\n[public]\n{public}\n[privileges]\n{}\n[store]\npath = {:?}\n\
             [log]\nfile = {:?}\nformat = \"{}\"\n{}{}",
            self.listen,
            self.server,
            self.privileges,
            self.store,
            self.log,
            self.log_format,
            self.tors,
            self.experiments
        );
        let path = self.folder().join("config.toml");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// `perfd run` with this configuration.
    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_perfd"));
        command.arg("run").arg("--config").arg(self.write());
        command
    }

    /// Starts perfd.
    pub fn start(&self) -> Service {
        self.spawn(self.command())
    }

    fn spawn(&self, command: Command) -> Service {
        Service { folder: Some(Arc::clone(&self.folder)), ..Service::spawn(command) }
    }

    /// Starts perfd on a port that it knows, so that it can measure itself, and waits until it listens.
    /// The port is kept for a next start as long as nobody else takes it.
    pub fn start_measuring(&mut self) -> Service {
        self.start_measuring_by(Setup::command)
    }

    /// The same by another command, which becomes perfd.
    pub fn start_measuring_by(&mut self, command: impl Fn(&Setup) -> Command) -> Service {
        for _ in 0..20 {
            let port = *self.public_port.get_or_insert_with(free_port);
            self.listen = vec![format!("127.0.0.1:{port}")];
            let mut service = self.spawn(command(self));
            if service
                .wait_until(|line| line.contains("listening") || line.contains("can't listen"))
                .contains("address")
            {
                return service;
            }
            assert_eq!(service.end_within(PATIENCE).code(), Some(exit::CANT_LISTEN), "{}", service.log());
            self.public_port = None;
        }
        panic!("no port stayed free");
    }

    /// The store, to be read beside perfd.
    pub fn read_store(&self) -> Connection {
        read_store(&self.store)
    }
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// The store at `path`, to be read beside perfd.
pub fn read_store(path: &Path) -> Connection {
    let conn = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    conn.busy_timeout(PATIENCE).unwrap();
    conn
}

/// Looks until `find` finds something.
pub fn wait_until<T>(what: &str, find: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, find)
}

/// The same with another patience.
pub fn wait_within<T>(patience: Duration, what: &str, find: impl FnMut() -> Option<T>) -> T {
    look_within(patience, find).unwrap_or_else(|| panic!("waited in vain for {what}"))
}

fn look_within<T>(patience: Duration, mut find: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = find() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// A running perfd.
pub struct Service {
    process: Process,
    stderr: Arc<Stderr>,
    /// Its folder stays as long as it does.
    folder: Option<Arc<TempDir>>,
}

/// A process that is killed when nobody looks after it any more.
struct Process(Child);

/// What perfd says, line by line as it comes.
#[derive(Default)]
struct Stderr {
    said: Mutex<Said>,
    more: Condvar,
}

#[derive(Default)]
struct Said {
    lines: Vec<String>,
    ended: bool,
}

impl Stderr {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, stderr: impl Read) {
        let mut stderr = BufReader::new(stderr);
        let mut line = String::new();
        // A last line without its end was cut off by a kill, and says nothing.
        while stderr.read_line(&mut line).is_ok_and(|_| line.ends_with('\n')) {
            self.said().lines.push(line.trim_end().to_owned());
            self.more.notify_all();
            line.clear();
        }
        self.said().ended = true;
        self.more.notify_all();
    }
}

/// Looks at what a perfd says, from another thread than the one that holds it.
#[derive(Clone)]
pub struct Watch(Arc<Stderr>);

impl Watch {
    /// Waits for line number `index` (from 0); `None` is the end.
    pub fn line(&self, index: usize) -> Option<String> {
        let waiting = |said: &mut Said| said.lines.len() <= index && !said.ended;
        let (said, waited) = self.0.more.wait_timeout_while(self.0.said(), 4 * PATIENCE, waiting).unwrap();
        assert!(!waited.timed_out(), "perfd says nothing any more");
        said.lines.get(index).cloned()
    }
}

impl Service {
    /// Starts a command that is perfd or becomes it.
    pub fn spawn(mut command: Command) -> Service {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A program that was just copied may still be open for writing in a fork of another test's.
        let mut child = wait_until("a program that may be run", || match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => None,
            spawned => Some(spawned.unwrap()),
        });
        let stderr = Arc::new(Stderr::default());
        let (pipe, collector) = (child.stderr.take().unwrap(), Arc::clone(&stderr));
        std::thread::spawn(move || collector.collect(pipe));
        Service { process: Process(child), stderr, folder: None }
    }

    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.stderr))
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.stderr.said().lines.clone()
    }

    /// All lines so far, as one text.
    pub fn log(&self) -> String {
        self.lines().join("\n")
    }

    /// How many lines so far hold `part`.
    pub fn count(&self, part: &str) -> usize {
        self.stderr.said().lines.iter().filter(|line| line.contains(part)).count()
    }

    /// Looks until `find` finds something; what perfd said is shown where it does not.
    pub fn wait_within<T>(&self, patience: Duration, what: &str, find: impl FnMut() -> Option<T>) -> T {
        look_within(patience, find).unwrap_or_else(|| panic!("waited in vain for {what}:\n{}", self.log()))
    }

    /// Waits for a line that holds `part`.
    pub fn wait_for(&self, part: &str) -> String {
        self.wait_until(|line| line.contains(part))
    }

    /// Waits for `count` lines that hold `part`.
    pub fn wait_for_lines(&self, count: usize, part: &str) {
        let mut seen = 0;
        if count > 0 {
            self.wait_until(|line| {
                seen += usize::from(line.contains(part));
                seen == count
            });
        }
    }

    /// Waits for the first line, from the beginning, that is `wanted`.
    pub fn wait_until(&self, mut wanted: impl FnMut(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut said = self.stderr.said();
        let mut looked_at = 0;
        loop {
            if let Some(found) = said.lines[looked_at..].iter().find(|line| wanted(line)) {
                return found.clone();
            }
            looked_at = said.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!said.ended, "perfd ended without the line that was waited for:\n{}", said.lines.join("\n"));
            assert!(!left.is_zero(), "waited in vain for a line:\n{}", said.lines.join("\n"));
            said = self.stderr.more.wait_timeout(said, left).unwrap().0;
        }
    }

    /// The port that it listens on at 127.0.0.1, once it does.
    pub fn port(&self) -> u16 {
        let line = self.wait_until(|line| line.contains("listening") && line.contains("127.0.0.1:"));
        let digits = line.split("127.0.0.1:").nth(1).unwrap();
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }

    /// Waits until it has ended.
    pub fn end_within(&mut self, time: Duration) -> ExitStatus {
        let said = self.stderr.said();
        let (said, waited) = self.stderr.more.wait_timeout_while(said, time, |said| !said.ended).unwrap();
        assert!(!waited.timed_out(), "perfd has not ended within {time:?}:\n{}", said.lines.join("\n"));
        drop(said);
        // It holds its end of the pipe until the very end.
        self.process.0.wait().unwrap()
    }

    /// Tells it to end, and expects that it does so in good order within `time`.
    pub fn end_well_within(&mut self, time: Duration) {
        self.signal(Signal::SIGTERM);
        let status = self.end_within(time);
        assert_eq!(status.code(), Some(0), "signal {:?}:\n{}", status.signal(), self.log());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Expects that this perfd refuses to start; what it says.
pub fn refusal(command: Command, code: i32) -> String {
    let mut service = Service::spawn(command);
    let status = service.end_within(PATIENCE);
    assert_eq!(status.code(), Some(code), "{}", service.log());
    service.log()
}

/// An answer of the service.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Fetches a page from 127.0.0.1. An answer that breaks off is given as far as it came.
pub fn get(port: u16, path: &str) -> io::Result<Answer> {
    let mut stream = ask(port, &format!("GET {path} HTTP/1.0\r\n\r\n"))?;
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes)
        && bytes.is_empty()
    {
        return Err(error);
    }
    let head = bytes.windows(4).position(|w| w == b"\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = std::str::from_utf8(&bytes[..head]).ok().and_then(|head| head.get(9..12)?.parse().ok());
    Ok(Answer { status: status.ok_or(io::ErrorKind::InvalidData)?, body: bytes.split_off(head + 4) })
}

/// Sends a request, and leaves the answer to be read.
pub fn ask(port: u16, request: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    Ok(stream)
}
