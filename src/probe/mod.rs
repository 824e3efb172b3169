//! Measuring one run: connect to the proxy, speak SOCKS and HTTP, note when each step happened.
//!
//! [`measure`] always returns a [`Measurement`]; a failure is one of its outcomes. It reads the wall
//! clock once, at START, and the monotonic clock for every step.

mod exchange;
mod http;
mod optimistic;
mod prober;
mod socks;
mod stream;
mod trouble;
mod upload;

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_socks::tcp::Socks5Stream;

pub use prober::Prober;

use crate::clock::UnixMicros;
use crate::measurement::{Cause, Kind, Measurement, Outcome, Request, ServerSide, Steps};
use optimistic::OptimisticStream;
use stream::{SharedTape, Tape, TimedStream, micros_between};
use trouble::Trouble;

/// A measurement, and the moment that its times count from.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub measurement: Measurement,
    /// START by the monotonic clock: what else happened in this process can be told in microseconds after it.
    pub origin: Instant,
}

/// Measures one run. Returns within the request's timeout and a moment, whatever the peers do.
pub async fn measure(request: &Request) -> Measurement {
    measured(request).await.measurement
}

/// As [`measure`], with START by the monotonic clock.
pub async fn measured(request: &Request) -> Measured {
    let start = UnixMicros::now();
    let origin = Instant::now();
    let mut run = Run {
        request,
        start,
        origin,
        tape: SharedTape::new(Tape::new(origin, request).into()),
        socket: None,
        connect: None,
        local: None,
        whole: false,
        verified: false,
        server: None,
    };
    let attempt = tokio::time::timeout(request.timeout, run.attempt()).await;
    Measured { measurement: run.into_measurement(attempt), origin }
}

/// A run in progress.
struct Run<'a> {
    request: &'a Request,
    start: UnixMicros,
    origin: Instant,
    tape: SharedTape,
    socket: Option<u64>,
    connect: Option<u64>,
    local: Option<SocketAddr>,
    /// The payload was there, and right where that was checked.
    whole: bool,
    verified: bool,
    /// What the server said of an upload.
    server: Option<ServerSide>,
}

impl Run<'_> {
    async fn attempt(&mut self) -> Result<(), Trouble> {
        let request = exchange::http_request(self.request)?;
        let tcp = self.connect().await?;
        let mut stream = TimedStream::new(tcp, self.tape.clone());
        if !self.request.optimistic {
            self.ask_proxy(&mut stream).await?;
            stream::open(&self.tape).speak_http();
            return self.exchange(stream, request).await;
        }
        let mut stream = OptimisticStream::new(stream, self.tape.clone());
        self.ask_proxy(&mut stream).await?;
        stream.await_reply();
        let exchanged = self.exchange(stream, request).await;
        // Whatever hyper made of it.
        let refusal = stream::open(&self.tape).refusal.take();
        refusal.map_or(exchanged, |error| Err(self.socks_trouble(error)))
    }

    async fn connect(&mut self) -> Result<TcpStream, Trouble> {
        let proxy = self.request.socks;
        let socket = if proxy.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        self.socket = Some(self.elapsed());
        let tcp = socket.connect(proxy).await?;
        self.connect = Some(self.elapsed());
        // Requests are small and written once; waiting to fill a segment would be our own delay.
        tcp.set_nodelay(true)?;
        self.local = tcp.local_addr().ok();
        Ok(tcp)
    }

    /// Asks the proxy for a connection, under a user name that no other run has: Tor gives streams of
    /// different user names different circuits.
    async fn ask_proxy<S>(&self, mut stream: S) -> Result<(), Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let target = (self.request.host.as_str(), self.request.port);
        let user = self.request.user.as_str();
        match Socks5Stream::connect_with_password_and_socket(&mut stream, target, user, "perfd").await {
            Ok(_) => Ok(()),
            // The reply grants the request and is whole; that the proxy's name for its own end is no
            // UTF-8 concerns nobody.
            Err(_) if socks::read_back(&stream::open(&self.tape).socks).response.is_some() => Ok(()),
            Err(error) => Err(self.socks_trouble(error)),
        }
    }

    fn socks_trouble(&self, error: tokio_socks::Error) -> Trouble {
        Trouble::socks(error, &socks::read_back(&stream::open(&self.tape).socks))
    }

    fn elapsed(&self) -> u64 {
        micros_between(self.origin, Instant::now())
    }

    fn into_measurement(self, attempt: Result<Result<(), Trouble>, tokio::time::error::Elapsed>) -> Measurement {
        let ended = self.elapsed();
        let tape = stream::open(&self.tape);
        let (handshake, response) = (socks::read_back(&tape.socks), tape.response.payload());
        let payload = match self.request.kind {
            Kind::Download => response,
            Kind::Upload => &tape.sent,
        };
        let mut steps = Steps {
            socket: self.socket,
            connect: self.connect,
            negotiate: handshake.negotiate,
            request: handshake.request,
            response: handshake.response,
            data_request: tape.data_request,
            data_response: tape.response.first_byte(),
            data_complete: None,
            deciles: payload.deciles(),
            partials: payload.partials(),
        };
        let attempt = match attempt {
            // It ran out in the wait for the server's close, which is no step of the run.
            Err(_) if self.whole => Ok(Ok(())),
            attempt => attempt,
        };
        let attempt = attempt.map(|ended| match tape.response.surplus() {
            surplus @ 1.. if ended.is_ok() && self.request.kind == Kind::Download => {
                Err(Trouble::new(Cause::PayloadPadded, format!("{surplus} bytes came after the payload's end")))
            }
            _ => ended,
        });
        let outcome = match attempt {
            Ok(Ok(())) => {
                // A payload of no bytes is complete as soon as the response is there.
                let at_once = steps.data_response.filter(|_| response.passed() == 0);
                steps.data_complete = response.complete().or(at_once);
                Outcome::Complete
            }
            Ok(Err(trouble)) => Outcome::Failed(trouble.at(steps.pending())),
            Err(_) => Outcome::Timeout(steps.pending()),
        };
        let outcome_is_complete = outcome == Outcome::Complete;
        Measurement {
            id: self.request.id.clone(),
            kind: self.request.kind,
            user: Some(self.request.user.clone()),
            optimistic: self.request.optimistic,
            start: self.start,
            ended,
            size: payload.size().unwrap_or_else(|| payload.passed()),
            steps,
            outcome,
            written: tape.written,
            read: tape.read,
            local: self.local,
            proxy: Some(self.request.socks),
            remote_host: Some(self.request.host.clone()),
            remote_port: Some(self.request.port),
            isolated: match handshake.method {
                Some(socks::METHOD_NONE) => Some(false),
                _ => handshake.authenticated.then_some(true),
            },
            verified: self.verified && outcome_is_complete,
            curve: payload.curve(),
            server: self.server.clone(),
        }
    }
}
