//! Peers that follow a script: a SOCKS 5 proxy, and behind it on the same connection a web server.
//!
//! A peer takes one connection on a port of its own, works off its steps, and tells what it saw and
//! when. It knows nothing of right and wrong; the scripts below put the bytes together.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use perfd::payload::{CHUNK, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// One thing that a peer does.
#[derive(Clone, Debug)]
pub enum Step {
    /// Reads the greeting: version and methods.
    ReadGreeting,
    /// Reads user name and password.
    ReadLogin,
    /// Reads the SOCKS request.
    ReadRequest,
    /// From here on the bytes are HTTP, and are counted.
    Http,
    /// Reads an HTTP request up to its empty line.
    ReadHead,
    /// Reads so many bytes of a body.
    ReadBody(usize),
    /// Sends these bytes at once.
    Send(Vec<u8>),
    /// Sends a SOCKS reply and, at once with it, HTTP: of these the HTTP alone is counted.
    Reply(Vec<u8>, Vec<u8>),
    /// Sends them one by one, and lets the other side run after each.
    Trickle(Vec<u8>),
    /// Sends them again and again, until the other side goes.
    Forever(Vec<u8>),
    /// Lets some time pass.
    Wait(Duration),
    /// Reads, and says nothing, until the other side goes.
    Stall,
    /// Closes, having read whatever was there.
    Close,
    /// Resets the connection.
    Reset,
}

/// What a peer saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub greeting: Vec<u8>,
    pub login: Vec<u8>,
    pub request: Vec<u8>,
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    /// Bytes of HTTP that it read.
    pub received: u64,
    /// Bytes of HTTP that it sent.
    pub sent: u64,
    /// When each step began and ended, as far as the script was worked off.
    pub times: Vec<(Instant, Instant)>,
}

/// A peer at work.
pub struct Peer {
    pub address: SocketAddr,
    /// How many steps it has begun.
    begun: watch::Receiver<usize>,
    work: JoinHandle<Seen>,
}

impl Peer {
    /// A peer on a port of 127.0.0.1.
    pub async fn start(script: Vec<Step>) -> Peer {
        Self::start_at("127.0.0.1:0", script).await.unwrap()
    }

    /// A peer on a port of this address.
    pub async fn start_at(address: &str, script: Vec<Step>) -> io::Result<Peer> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let (tell, begun) = watch::channel(0);
        let work = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut actor = Actor { stream, http: false, seen: Seen::default() };
            for step in script {
                tell.send_modify(|n| *n += 1);
                let began = Instant::now();
                // The other side may go at any time; what was seen until then is told.
                if actor.act(step).await.is_err() {
                    break;
                }
                actor.seen.times.push((began, Instant::now()));
            }
            actor.seen
        });
        Ok(Peer { address, begun, work })
    }

    /// Waits until the peer has begun this many steps.
    pub async fn begins(&mut self, steps: usize) {
        self.begun.wait_for(|begun| *begun >= steps).await.unwrap();
    }

    /// Waits until the peer has worked off its script, or the other side is gone.
    pub async fn end(self) -> Seen {
        self.work.await.unwrap()
    }
}

struct Actor {
    stream: TcpStream,
    http: bool,
    seen: Seen,
}

impl Actor {
    async fn act(&mut self, step: Step) -> io::Result<()> {
        match step {
            Step::ReadGreeting => {
                let mut bytes = self.read(2).await?;
                bytes.extend(self.read(bytes[1].into()).await?);
                self.seen.greeting = bytes;
            }
            Step::ReadLogin => {
                let mut bytes = self.read(2).await?;
                bytes.extend(self.read(usize::from(bytes[1]) + 1).await?);
                bytes.extend(self.read(bytes[bytes.len() - 1].into()).await?);
                self.seen.login = bytes;
            }
            Step::ReadRequest => {
                let mut bytes = self.read(5).await?;
                let rest = match bytes[3] {
                    1 => 5,
                    4 => 17,
                    _ => usize::from(bytes[4]) + 2,
                };
                bytes.extend(self.read(rest).await?);
                self.seen.request = bytes;
            }
            Step::Http => self.http = true,
            Step::ReadHead => {
                while !self.seen.head.ends_with(b"\r\n\r\n") {
                    let byte = self.read(1).await?;
                    self.seen.head.extend(byte);
                }
            }
            Step::ReadBody(size) => self.seen.body = self.read(size).await?,
            Step::Send(bytes) => self.send(&bytes).await?,
            Step::Reply(socks, http) => {
                self.stream.write_all(&[&socks[..], &http].concat()).await?;
                self.seen.sent += http.len() as u64;
            }
            Step::Trickle(bytes) => {
                for byte in bytes {
                    self.send(&[byte]).await?;
                    tokio::task::yield_now().await;
                }
            }
            Step::Forever(bytes) => loop {
                self.send(&bytes).await?;
                tokio::task::yield_now().await;
            },
            Step::Wait(time) => tokio::time::sleep(time).await,
            Step::Stall => {
                let mut buffer = [0; 1024];
                loop {
                    let n = self.stream.read(&mut buffer).await?;
                    self.count(n);
                    if n == 0 {
                        break;
                    }
                }
            }
            Step::Close => {
                let mut buffer = [0; 1024];
                while let Ok(n @ 1..) = self.stream.try_read(&mut buffer) {
                    self.count(n);
                }
                return Err(io::ErrorKind::NotConnected.into());
            }
            Step::Reset => {
                self.stream.set_zero_linger()?;
                return Err(io::ErrorKind::NotConnected.into());
            }
        }
        Ok(())
    }

    async fn read(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes).await?;
        self.count(count);
        Ok(bytes)
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        if self.http {
            self.seen.sent += bytes.len() as u64;
        }
        Ok(())
    }

    fn count(&mut self, read: usize) {
        if self.http {
            self.seen.received += read as u64;
        }
    }
}

/// Steps one after the other.
pub fn script(parts: impl IntoIterator<Item = Vec<Step>>) -> Vec<Step> {
    parts.into_iter().flatten().collect()
}

/// Sends these bytes.
pub fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

/// A reply that grants the request, from 127.0.0.1:0.
pub const GRANTED: [u8; 10] = [5, 0, 0, 1, 127, 0, 0, 1, 0, 0];

/// A proxy that took the user name and has read the request.
pub fn asked() -> Vec<Step> {
    use Step::*;
    vec![ReadGreeting, send([5, 2]), ReadLogin, send([1, 0]), ReadRequest]
}

/// A proxy that wants no authentication and has read the request.
pub fn asked_without_name() -> Vec<Step> {
    vec![Step::ReadGreeting, send([5, 0]), Step::ReadRequest]
}

/// A proxy that has granted the request, and the request that came to the server behind it.
pub fn granted() -> Vec<Step> {
    script([asked(), vec![send(GRANTED), Step::Http, Step::ReadHead]])
}

/// A server that answers with these bytes in one piece, and closes.
pub fn answers(response: impl AsRef<[u8]>) -> Vec<Step> {
    script([granted(), vec![send(response), Step::Close]])
}

/// The payload of a seed.
pub fn payload(seed: [u8; 32], size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    let mut stream = Stream::new(seed);
    bytes.chunks_mut(CHUNK).for_each(|piece| stream.fill(piece));
    bytes
}

/// A response of status 200 with these header lines and this body.
pub fn ok(headers: &[&str], body: &[u8]) -> Vec<u8> {
    response("HTTP/1.1 200 OK", headers, body)
}

/// A response with this status line, these header lines and this body.
pub fn response(status: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut bytes = status.as_bytes().to_vec();
    headers.iter().for_each(|line| bytes.extend(format!("\r\n{line}").bytes()));
    bytes.extend(b"\r\n\r\n");
    bytes.extend(body);
    bytes
}

/// A body in chunks of at most `size` bytes, with its end.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = open_chunks(body, size);
    bytes.extend(b"0\r\n\r\n");
    bytes
}

/// A body in chunks of at most `size` bytes, without an end.
pub fn open_chunks(body: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for chunk in body.chunks(size) {
        bytes.extend(format!("{:x}\r\n", chunk.len()).bytes());
        bytes.extend(chunk);
        bytes.extend(b"\r\n");
    }
    bytes
}
