//! What the tests of the server and of the commands need: a server on a port of its own, clients that
//! speak HTTP by hand, made-up results, and the real perfd as a child.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use perfd::circuit::{Circuit, CircuitData, CircuitState, Evidence, Hop, Relay};
use perfd::clock::UnixMicros;
use perfd::config::Config;
use perfd::measurement::{Cause, Curve, Failure, Kind, Measurement, Outcome, Phase, Place, RunId, ServerKind, Steps};
use perfd::payload::Secret;
use perfd::payload::in_flight::InFlight;
use perfd::scheduler::Board;
use perfd::slot::{Grid, SlotId, SlotState};
use perfd::store::{NewResult, Store};
use perfd::tor::Tors;
use perfd::web::serve::{Limits, serve};
use perfd::web::{Parts, Shared, router};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Whatever is waited for must come within this time.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for what must come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {DEADLINE:?}"),
    }
}

/// A configuration with these lines in its section `[server]`.
pub fn config(server: &str) -> Config {
    let text = format!(
        "source = \"test\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n{server}\n[store]\npath = \"/nowhere/perfd.sqlite\"\n\
         [[tor]]\nname = \"tor\"\nsocks = \"127.0.0.1:9\"\n\
         [[experiment]]\nname = \"50kib\"\ntor = \"tor\"\nsize = \"50 KiB\"\nevery = \"5 min\"\ntimeout = \"295 s\"\n"
    );
    Config::parse(&text, "test").unwrap()
}

/// A server inside the test, ended with it.
pub struct Server {
    pub address: SocketAddr,
    pub store: Store,
    pub secret: Secret,
    pub in_flight: InFlight,
    pub limits: Limits,
    _shutdown: DropGuard,
    folder: TempDir,
}

impl Server {
    pub async fn start(config: Config) -> Server {
        Self::start_with(config, |_| {}).await
    }

    /// With other limits than the configuration's.
    pub async fn start_with(config: Config, adjust: impl FnOnce(&mut Limits)) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("perfd.sqlite")).unwrap();
        let (secret, in_flight) = (Secret::from_bytes([7; 32]), InFlight::default());
        let mut limits = Limits::new(&config.server, in_flight.clone());
        adjust(&mut limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Shared::new(Parts {
            tors: Tors::new(&config, None),
            config: Arc::new(config),
            store: store.clone(),
            board: Board::default(),
            secret: secret.clone(),
            in_flight: in_flight.clone(),
        });
        let shutdown = CancellationToken::new();
        tokio::spawn(serve(listener, router(shared), limits.clone(), shutdown.clone()));
        Server { address, store, secret, in_flight, limits, _shutdown: shutdown.drop_guard(), folder }
    }

    /// Another program's connection to the store.
    pub fn database(&self) -> rusqlite::Connection {
        rusqlite::Connection::open(self.folder.path().join("perfd.sqlite")).unwrap()
    }

    pub async fn get(&self, target: &str) -> Reply {
        self.get_with(target, "").await
    }

    /// With further header lines, each ended by CRLF.
    pub async fn get_with(&self, target: &str, headers: &str) -> Reply {
        let mut client = Client::connect(self.address).await;
        client.send(format!("GET {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n")).await;
        client.reply().await
    }
}

/// One connection.
pub struct Client {
    pub stream: TcpStream,
    unread: Vec<u8>,
}

/// One response, its chunks put together.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// The reason of an error, which must be JSON on one line.
    pub fn reason(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert_eq!(self.text().find('\n'), Some(self.body.len() - 1), "{self:?}");
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Client {
        Client { stream: within("connect", TcpStream::connect(address)).await.unwrap(), unread: Vec::new() }
    }

    /// A client whose system takes little before it reads.
    pub async fn connect_narrow(address: SocketAddr) -> Client {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(64 * 1024).unwrap();
        Client { stream: within("connect", socket.connect(address)).await.unwrap(), unread: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("send", self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Reads a response to GET.
    pub async fn reply(&mut self) -> Reply {
        let (status, headers) = within("head", self.head()).await;
        let mut reply = Reply { status, headers, body: Vec::new() };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = self.chunks().await;
        } else {
            let length = reply.header("content-length").map(|n| n.parse().unwrap());
            reply.body = self.take(length.unwrap_or(0)).await;
        }
        reply
    }

    /// Reads a head alone: of a response to HEAD, or of one that is not read on.
    pub async fn head(&mut self) -> (u16, Vec<(String, String)>) {
        let end = loop {
            match self.unread.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(at) => break at,
                None => assert!(self.more().await > 0, "closed within a head: {:?}", self.unread),
            }
        };
        let head: Vec<u8> = self.unread.drain(..end + 4).take(end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.map(|line| line.split_once(": ").unwrap());
        (status, headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
    }

    /// What comes until the server closes (or resets) the connection.
    pub async fn rest(&mut self) -> Vec<u8> {
        while within("end", self.more()).await > 0 {}
        std::mem::take(&mut self.unread)
    }

    /// Reads a body that comes in chunks, after its head.
    pub async fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        while let size @ 1.. = self.chunk_size().await {
            let chunk = self.take(size + 2).await;
            body.extend_from_slice(&chunk[..size]);
        }
        self.take(2).await;
        body
    }

    async fn chunk_size(&mut self) -> usize {
        let end = loop {
            match self.unread.windows(2).position(|two| two == b"\r\n") {
                Some(at) => break at,
                None => assert!(within("chunk", self.more()).await > 0, "closed within a chunk's size"),
            }
        };
        let line = self.take(end + 2).await;
        usize::from_str_radix(std::str::from_utf8(&line[..end]).unwrap(), 16).unwrap()
    }

    async fn take(&mut self, size: usize) -> Vec<u8> {
        while self.unread.len() < size {
            assert!(within("body", self.more()).await > 0, "closed after {} of {size} bytes", self.unread.len());
        }
        let rest = self.unread.split_off(size);
        std::mem::replace(&mut self.unread, rest)
    }

    /// Reads once; 0 at the end, however it came.
    async fn more(&mut self) -> usize {
        self.unread.reserve(64 * 1024);
        self.stream.read_buf(&mut self.unread).await.unwrap_or(0)
    }
}

/// Somebody who listens to `/events`.
pub struct Listener {
    client: Client,
    text: String,
}

/// One server-sent event; a comment has no name.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub name: String,
    pub id: i64,
    pub data: serde_json::Value,
}

impl Listener {
    /// Listens with this query and these header lines, each ended by CRLF.
    pub async fn start(address: SocketAddr, query: &str, headers: &str) -> Listener {
        let mut client = Client::connect(address).await;
        client.send(format!("GET /events?{query} HTTP/1.1\r\nHost: test\r\n{headers}\r\n")).await;
        let (status, headers) = within("head", client.head()).await;
        assert_eq!(status, 200);
        assert!(headers.contains(&("content-type".to_owned(), "text/event-stream".to_owned())), "{headers:?}");
        Listener { client, text: String::new() }
    }

    /// The next event; `None` at the end of the answer. Comments and `retry` are passed over.
    pub async fn next(&mut self) -> Option<Told> {
        loop {
            while let Some((block, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let value = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    value.map(str::to_owned)
                };
                let told = field("event").map(|name| Told {
                    name,
                    id: field("id").unwrap().parse().unwrap(),
                    data: serde_json::from_str(&field("data").unwrap()).unwrap(),
                });
                self.text = rest.to_owned();
                if told.is_some() {
                    return told;
                }
            }
            match self.client.chunk_size().await {
                0 => return None,
                size => {
                    let chunk = self.client.take(size + 2).await;
                    self.text.push_str(std::str::from_utf8(&chunk[..size]).unwrap());
                }
            }
        }
    }

    /// The next event, which must come.
    pub async fn told(&mut self) -> Told {
        self.next().await.expect("the answer ended")
    }
}

/// A made-up run that began `second` seconds after 2026-11-22T10:00:00Z, complete.
pub fn new_result(id: u128, second: i64) -> NewResult {
    let start = UnixMicros(1_795_341_600_000_000 + second * 1_000_000);
    let steps = Steps {
        socket: Some(10),
        connect: Some(200),
        negotiate: Some(400),
        request: Some(500),
        response: Some(400_000),
        data_request: Some(400_100),
        data_response: Some(700_000),
        data_complete: Some(1_500_000),
        deciles: std::array::from_fn(|tenth| Some(700_100 + tenth as u64 * 79_990)),
        ..Steps::default()
    };
    let measurement = Measurement {
        id: RunId::from_bits(id),
        kind: Kind::Download,
        user: Some("perfd-test".to_owned()),
        optimistic: false,
        start,
        ended: 1_500_200,
        size: 51_200,
        steps,
        outcome: Outcome::Complete,
        written: 84,
        read: 51_466,
        local: Some(SocketAddr::from(([127, 0, 0, 1], 40_000))),
        proxy: Some(SocketAddr::from(([127, 0, 0, 1], 9050))),
        remote_host: Some("example.org".to_owned()),
        remote_port: Some(8080),
        isolated: Some(true),
        verified: true,
        curve: Curve::new(),
        server: None,
    };
    NewResult {
        source: "test".to_owned(),
        experiment: "50kib".to_owned(),
        tor: "tor".to_owned(),
        planned: start,
        configuration: "{\"source\":\"test\"}".to_owned(),
        version: "0.1.0".to_owned(),
        server: ServerKind::Exit,
        place: Place::ALONE,
        measurement,
        circuit: None,
    }
}

/// The runs of one slot of several, one through each of these tors, with names from `id` on. Each took this many
/// ms (one that took `None` was cut off), and tor told of a circuit over three relays.
pub fn with_circuit(id: u128, second: i64, tors: &[&str], last_byte_ms: Option<u64>) -> Vec<NewResult> {
    let of = tors.len() as u32;
    let run = |(index, tor): (usize, &&str)| {
        let mut new = new_result(id + index as u128, second);
        (new.tor, new.place) = ((*tor).to_owned(), Place { index: index as u32, of });
        new.measurement.steps.data_complete = last_byte_ms.map(|ms| ms * 1000);
        new.measurement.curve = vec![(700_100, 498), (1_500_000, 51_200)];
        if last_byte_ms.is_none() {
            new = incomplete(new, true);
        }
        new.circuit = Some((circuit_data(), Evidence("650 CIRC 17 BUILT\n".to_owned())));
        new
    };
    tors.iter().enumerate().map(run).collect()
}

/// What tor told of a run whose circuit goes over three relays.
pub fn circuit_data() -> CircuitData {
    let hop = |number: u64| Hop {
        relay: Relay { fingerprint: number.to_string().repeat(40), nickname: Some(format!("relay{number}")) },
        built_after_us: Some(number * 100_000),
    };
    let circuit = Circuit {
        id: 17,
        launched_us: Some(-1_000_000),
        built_us: Some(-700_000),
        path: (1..=3).map(hop).collect(),
        purpose: Some("GENERAL".to_owned()),
        hs_state: None,
        build_flags: vec!["NEED_CAPACITY".to_owned()],
        built_before_run: Some(true),
        last_used_us: None,
        end: None,
        bytes_read: None,
        bytes_written: None,
    };
    CircuitData {
        state: CircuitState::Known,
        connection: 1,
        tor_version: Some("0.4.9.11".to_owned()),
        stream_id: Some(24),
        stream: Vec::new(),
        guard: circuit.path.first().map(|hop| hop.relay.clone()),
        circuit: Some(circuit),
        conflux: None,
        onion: None,
        build_timeout: None,
        guard_events: Vec::new(),
        congestion: None,
    }
}

/// This run, cut off by its timeout or failed.
pub fn incomplete(mut new: NewResult, timeout: bool) -> NewResult {
    new.measurement.outcome = if timeout {
        Outcome::Timeout(Phase::DataComplete)
    } else {
        let detail = "the exit said \"no\", and\nmeant it".to_owned();
        let (phase, cause) = (Phase::Response, Cause::SocksReply);
        Outcome::Failed(Failure { phase, cause, socks_code: Some(0xf2), http_status: None, detail })
    };
    new.measurement.steps.data_complete = None;
    new
}

/// Stores results in one slot, which is planned when the first of them began.
pub async fn add(store: &Store, results: Vec<NewResult>) -> Vec<i64> {
    let first = results.first().unwrap();
    let slot = SlotId { experiment: first.experiment.clone(), planned: UnixMicros(first.measurement.id_as_time()) };
    store.begin_slot(slot.clone(), Grid::new(Duration::from_secs(1), Duration::ZERO), slot.planned).await.unwrap();
    let ended = UnixMicros(slot.planned.0 + 1);
    within("store", store.finish_slot(slot, SlotState::Done, None, ended, results)).await.unwrap()
}

/// A planned time for a run's slot that no other run has.
trait IdAsTime {
    fn id_as_time(&self) -> i64;
}

impl IdAsTime for Measurement {
    fn id_as_time(&self) -> i64 {
        i64::from_str_radix(&self.id.as_str()[17..], 16).unwrap()
    }
}

/// Fills a store with this many rows.
pub async fn fill(store: &Store, rows: u32) {
    let ids: Vec<u32> = (1..=rows).collect();
    for some in ids.chunks(1000) {
        add(store, some.iter().map(|id| new_result(u128::from(*id), i64::from(*id))).collect()).await;
    }
}

/// The real perfd.
pub fn perfd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perfd"));
    command.env_remove("PERFD_CONFIG").stdin(Stdio::null());
    command
}

/// `perfd run` as a child, ended with this value.
pub struct Service {
    pub child: Child,
    pub address: SocketAddr,
}

impl Service {
    /// Starts it on the store `perfd.sqlite` of `folder`, with these lines in its section `[server]`.
    pub fn start(folder: &Path, server: &str) -> Service {
        Self::start_after(":", folder, server)
    }

    /// Runs this in its shell before.
    pub fn start_after(before: &str, folder: &Path, server: &str) -> Service {
        // As root, perfd becomes nobody, who must be able to work here.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        for file in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            // The key of an earlier perfd is its own.
            if file.file_name() != "payload.key" {
                std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o666)).unwrap();
            }
        }
        let text = config(server).to_toml();
        let store = folder.join("perfd.sqlite").display().to_string();
        let text = text.replace("/nowhere/perfd.sqlite", &store).replace("user = \"\"", "user = \"nobody\"");
        let file = folder.join("config.toml");
        std::fs::write(&file, text).unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{before}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_perfd"), "run", "--config"]);
        let mut child = shell.arg(&file).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut seen = Vec::new();
        let address = loop {
            let line = log.next().unwrap_or_else(|| panic!("perfd ended: {seen:#?}"));
            if let Some((_, after)) = line.split_once("address=") {
                break after.split(' ').next().unwrap().parse().unwrap();
            }
            seen.push(line);
        };
        std::thread::spawn(move || log.for_each(drop));
        Service { child, address }
    }

    /// The most memory that it ever had, in KiB.
    pub fn peak_rss(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An HTTP server that answers every request with so many bytes, for as long as the test runs.
pub fn http_server(size: usize) -> SocketAddr {
    listen(move |mut stream| {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n")?;
        stream.write_all(&vec![b'x'; size])
    })
}

/// A SOCKS 5 proxy that asks for a user name, believes any, and connects to addresses and `localhost`.
pub fn socks_relay() -> SocketAddr {
    listen(|mut near| {
        let exactly = |count: u8| -> std::io::Result<Vec<u8>> {
            let mut bytes = vec![0; count.into()];
            (&near).read_exact(&mut bytes).map(|()| bytes)
        };
        let count = exactly(2)?[1];
        exactly(count)?;
        (&near).write_all(&[5, 2])?;
        for part in 0..2 {
            let length = exactly(if part == 0 { 2 } else { 1 })?;
            exactly(*length.last().unwrap())?;
        }
        (&near).write_all(&[1, 0])?;
        let address = match exactly(4)?[3] {
            1 => std::net::Ipv4Addr::from(<[u8; 4]>::try_from(exactly(4)?).unwrap()).to_string(),
            4 => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(exactly(16)?).unwrap()).to_string(),
            _ => {
                let length = exactly(1)?[0];
                String::from_utf8(exactly(length)?).unwrap()
            }
        };
        let port = exactly(2)?;
        // Not every machine can look it up.
        let address = if address == "localhost" { "127.0.0.1" } else { address.as_str() };
        let mut far = StdStream::connect((address, u16::from_be_bytes([port[0], port[1]])))?;
        near.write_all(&[5, 0, 0, 1, 127, 0, 0, 1, 0, 0])?;
        let (mut near_again, mut far_again) = (near.try_clone()?, far.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut near_again, &mut far_again));
        std::io::copy(&mut far, &mut near)?;
        near.shutdown(std::net::Shutdown::Both)
    })
}

/// Takes connections on a port of its own, each in a thread.
fn listen(handle: impl Fn(StdStream) -> std::io::Result<()> + Clone + Send + 'static) -> SocketAddr {
    let listener = StdListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let handle = handle.clone();
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}
