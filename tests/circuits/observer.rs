//! Somebody else who looks at a tor: a control connection of its own, and the raw lines that came over it.
//!
//! Nothing here knows perfd's way of reading them: lines are taken apart by splitting strings.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::service::wait_within;

/// tor is asked this often for its circuits and streams, and each time a stream is connected.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// A connection to a tor's control port that looks on.
pub struct Observer {
    control: TcpStream,
    seen: Arc<Mutex<Seen>>,
    reader: JoinHandle<()>,
    asker: JoinHandle<()>,
}

/// What tor said, each line once.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// STREAM events, in order, without `650 STREAM `.
    pub streams: Vec<String>,
    /// Lines of `GETINFO circuit-status`, in the order in which they were first given.
    pub circuits: Vec<String>,
    /// The same of `GETINFO stream-status`.
    pub stream_status: Vec<String>,
    known: HashSet<String>,
    /// How often both were answered.
    pub answers: usize,
}

impl Observer {
    /// Looks at the tor of this data directory, once it has its control port.
    pub fn of(data: &Path) -> Observer {
        let read = |name: &str| std::fs::read(data.join(name)).ok();
        let (address, cookie) = wait_within(crate::network::LONG, "the control port of a tor", || {
            let text = String::from_utf8(read("control-port")?).ok()?;
            let address = text.trim().strip_prefix("PORT=")?.to_owned();
            Some((address, read("control.authcookie").filter(|cookie| cookie.len() == 32)?))
        });
        let mut control = TcpStream::connect(address).unwrap();
        let cookie: String = cookie.iter().map(|b| format!("{b:02x}")).collect();
        write!(control, "AUTHENTICATE {cookie}\r\nSETEVENTS STREAM\r\n").unwrap();
        let mut lines = BufReader::new(control.try_clone().unwrap()).lines();
        for _ in 0..2 {
            assert_eq!(lines.next().unwrap().unwrap(), "250 OK");
        }
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (tell, told) = channel();
        let (to, from) = (Arc::clone(&seen), control.try_clone().unwrap());
        let reader = std::thread::spawn(move || take_down(lines.map_while(Result::ok), &to, &tell));
        let asker = std::thread::spawn(move || ask(from, &told));
        Observer { control, seen, reader, asker }
    }

    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    pub fn end(self) -> Seen {
        // tor may be gone.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        self.reader.join().unwrap();
        self.asker.join().unwrap();
        Arc::into_inner(self.seen).unwrap().into_inner().unwrap()
    }
}

fn ask(mut control: TcpStream, told: &Receiver<()>) {
    while !matches!(told.recv_timeout(ASK_EVERY), Err(RecvTimeoutError::Disconnected)) {
        if control.write_all(b"GETINFO circuit-status stream-status\r\n").is_err() {
            return;
        }
    }
}

fn take_down(lines: impl Iterator<Item = String>, seen: &Mutex<Seen>, connected: &Sender<()>) {
    // Which answer the lines belong to, until its end.
    let mut within = "";
    for line in lines {
        let mut seen = seen.lock().unwrap();
        if let Some(event) = line.strip_prefix("650 STREAM ") {
            seen.streams.push(event.to_owned());
            if event.split(' ').nth(1) == Some("SUCCEEDED") {
                let _ = connected.send(());
            }
            continue;
        }
        // An answer of one line stands where it begins.
        match (within, line.as_str()) {
            (_, ".") => within = "",
            ("circuits", _) => seen.circuit_status(line),
            ("streams", _) => seen.stream_status(line),
            (_, "250 OK") => seen.answers += 1,
            _ => {
                let (mark, rest) = line.split_at(4);
                let (name, value) = rest.split_once('=').unwrap_or_else(|| panic!("unexpected: {line}"));
                let value = value.to_owned();
                match (mark, name) {
                    ("250+", "circuit-status") => within = "circuits",
                    ("250+", "stream-status") => within = "streams",
                    ("250-", "circuit-status") if value.is_empty() => {}
                    ("250-", "circuit-status") => seen.circuit_status(value),
                    ("250-", "stream-status") if value.is_empty() => {}
                    ("250-", "stream-status") => seen.stream_status(value),
                    _ => panic!("unexpected: {line}"),
                }
            }
        }
    }
}

impl Seen {
    fn circuit_status(&mut self, line: String) {
        if self.known.insert(line.clone()) {
            self.circuits.push(line);
        }
    }

    fn stream_status(&mut self, line: String) {
        if self.known.insert(line.clone()) {
            self.stream_status.push(line);
        }
    }

    /// The lines of `circuit-status` that tell of this circuit.
    pub fn circuit(&self, id: u64) -> impl Iterator<Item = &str> {
        self.circuits.iter().map(String::as_str).filter(move |line| circuit_id(line) == id)
    }

    /// The STREAM lines of this SOCKS user.
    pub fn streams_of(&self, user: &str) -> impl Iterator<Item = &str> {
        self.streams.iter().map(String::as_str).filter(move |line| word(line, "SOCKS_USERNAME") == Some(user))
    }
}

/// The id at the beginning of a line of `circuit-status`.
pub fn circuit_id(line: &str) -> u64 {
    line.split(' ').next().unwrap().parse().unwrap()
}

/// The fingerprints of a line of `circuit-status`.
pub fn path(line: &str) -> Vec<&str> {
    let hops = line.split(' ').nth(2).filter(|word| word.starts_with('$'));
    hops.map_or(Vec::new(), |hops| hops.split(',').map(|hop| &hop[1..41]).collect())
}

/// The value of `KEY=value` or `KEY="value"`, without quotes.
pub fn word<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let value = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"'))
}
