//! Measuring one run: connect to the proxy, speak SOCKS and HTTP, note when each step happened.
//!
//! [`measure`] always returns a [`Measurement`]; a failure is one of its outcomes. It reads the wall
//! clock once, at START, and the monotonic clock for every step.

mod http;
mod prober;
mod socks;
mod stream;

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio_socks::tcp::Socks5Stream;

pub use prober::Prober;

use crate::clock::UnixMicros;
use crate::measurement::{Cause, Curve, Failure, Measurement, Outcome, Request, Steps, socks_reply_meaning};
use crate::payload::{RUN_HEADER, Verifier};
use stream::{SharedTape, Tape, TimedStream, micros_between};

/// After a complete payload the server has so long to close the connection. What it sends instead is
/// padding; a server that keeps the connection open is let go.
const LINGER: Duration = Duration::from_millis(500);

/// Measures one run. Returns within the request's timeout and a moment, whatever the peers do.
pub async fn measure(request: &Request) -> Measurement {
    let start = UnixMicros::now();
    let origin = Instant::now();
    let mut run = Run {
        request,
        origin,
        tape: SharedTape::new(Tape::new(origin, request.size).into()),
        socket: None,
        connect: None,
        local: None,
        whole: false,
        verified: false,
    };
    let attempt = tokio::time::timeout(request.timeout, run.attempt()).await;
    run.into_measurement(start, attempt)
}

/// A run in progress.
struct Run<'a> {
    request: &'a Request,
    origin: Instant,
    tape: SharedTape,
    socket: Option<u64>,
    connect: Option<u64>,
    local: Option<SocketAddr>,
    /// The payload was there, and right where that was checked.
    whole: bool,
    verified: bool,
}

/// What went wrong, before the phase is known: that is the first step which the run has not reached.
struct Trouble {
    cause: Cause,
    socks_code: Option<u8>,
    http_status: Option<u16>,
    detail: String,
}

impl Trouble {
    fn new(cause: Cause, detail: impl Into<String>) -> Self {
        Trouble { cause, socks_code: None, http_status: None, detail: detail.into() }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as K;
        let cause = match error.kind() {
            K::ConnectionRefused => Cause::Refused,
            K::HostUnreachable | K::NetworkUnreachable | K::NetworkDown => Cause::Unreachable,
            K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => Cause::Reset,
            K::UnexpectedEof => Cause::Closed,
            _ => Cause::Io,
        };
        Trouble::new(cause, error.to_string())
    }
}

impl Run<'_> {
    async fn attempt(&mut self) -> Result<(), Trouble> {
        let request = self.http_request()?;
        let tcp = self.connect().await?;
        let stream = TimedStream::new(tcp, self.tape.clone());
        let stream = self.ask_proxy(stream).await?;
        stream::open(&self.tape).speak_http();
        self.fetch(stream, request).await
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
    async fn ask_proxy<S>(&self, mut stream: S) -> Result<S, Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let target = (self.request.host.as_str(), self.request.port);
        let user = self.request.user.as_str();
        match Socks5Stream::connect_with_password_and_socket(&mut stream, target, user, "perfd").await {
            Ok(_) => Ok(stream),
            // The reply grants the request and is whole; that the proxy's name for its own end is no
            // UTF-8 concerns nobody.
            Err(_) if socks::read_back(&stream::open(&self.tape).socks).response.is_some() => Ok(stream),
            Err(error) => Err(self.socks_trouble(error)),
        }
    }

    fn socks_trouble(&self, error: tokio_socks::Error) -> Trouble {
        use tokio_socks::Error as E;
        let said = socks::read_back(&stream::open(&self.tape).socks);
        match (error, said.reply_code) {
            // Even where the reply was cut short after it, the code says why.
            (_, Some(code)) if code != 0 => Trouble {
                socks_code: Some(code),
                ..Trouble::new(
                    Cause::SocksReply,
                    format!("the proxy answered {code:#04x}: {}", socks_reply_meaning(code)),
                )
            },
            (E::Io(error), _) => error.into(),
            (E::NoAcceptableAuthMethods | E::UnknownAuthMethod, None) => {
                Trouble::new(Cause::SocksMethod, "the proxy takes neither no authentication nor a user name")
            }
            (E::PasswordAuthFailure(code), None) => {
                Trouble::new(Cause::SocksAuth, format!("the proxy refused the user name (status {code})"))
            }
            (error, _) => Trouble::new(Cause::SocksMalformed, format!("the proxy does not speak SOCKS 5: {error}")),
        }
    }

    async fn fetch<S>(&mut self, stream: S, request: hyper::Request<Empty<Bytes>>) -> Result<(), Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(http::HEAD_LIMIT);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(http_trouble)?;
        let mut connection = std::pin::pin!(connection.without_shutdown());

        // The connection does the reading and writing, in this task; the exchange waits for it.
        let mut parts = None;
        let exchanged = {
            let exchange = async {
                let response = sender.send_request(request).await.map_err(http_trouble)?;
                self.receive(response).await
            };
            let mut exchange = std::pin::pin!(exchange);
            loop {
                tokio::select! {
                    biased;
                    result = &mut exchange => break result,
                    ended = &mut connection, if parts.is_none() => parts = Some(ended),
                }
            }
        };
        exchanged?;

        drop(sender);
        let silence = async {
            let ended = match parts {
                Some(ended) => ended,
                None => connection.await,
            };
            // Bytes that hyper had read ahead have passed the tape already.
            if let Ok(parts) = ended {
                read_to_end(parts.io.into_inner(), &self.tape).await;
            }
        };
        let _ = tokio::time::timeout(LINGER, silence).await;
        Ok(())
    }

    /// The HTTP request; made before anything else, so that what can't be asked for builds no circuit.
    fn http_request(&self) -> Result<hyper::Request<Empty<Bytes>>, Trouble> {
        let Request { host, port, path, id, .. } = self.request;
        if !(1..=255).contains(&host.len()) {
            return Err(Trouble::new(Cause::Io, "SOCKS 5 takes host names of 1 to 255 bytes"));
        }
        if !path.starts_with('/') || path.contains('#') {
            return Err(Trouble::new(Cause::Io, "the path does not begin with a slash, or has a fragment"));
        }
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let authority = if *port == 80 { host } else { format!("{host}:{port}") };
        hyper::Request::get(path)
            .header(header::HOST, authority)
            .header(header::USER_AGENT, concat!("perfd/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::CONNECTION, "close")
            .header(RUN_HEADER, id.as_str())
            .body(Empty::new())
            .map_err(|e| Trouble::new(Cause::Io, format!("the URL makes no HTTP request: {e}")))
    }

    async fn receive(&mut self, response: hyper::Response<Incoming>) -> Result<(), Trouble> {
        if stream::open(&self.tape).response.head_too_long() {
            return Err(Trouble::new(Cause::HttpMalformed, "the head of the response is too long"));
        }
        let status = response.status();
        if status != hyper::StatusCode::OK {
            let http_status = Some(status.as_u16());
            return Err(Trouble {
                http_status,
                ..Trouble::new(Cause::HttpStatus, format!("the server answered {}", status.as_u16()))
            });
        }
        let announced = hyper::body::Body::size_hint(response.body()).exact();
        if announced.is_some_and(|announced| announced > http::SIZE_LIMIT) {
            return Err(Trouble::new(Cause::HttpMalformed, "the announced size is beyond all bounds"));
        }
        if let (Some(asked), Some(announced)) = (self.request.size, announced)
            && asked != announced
        {
            let detail = format!("the server announced {announced} bytes, {asked} were asked for");
            return Err(Trouble::new(Cause::PayloadSize, detail));
        }

        let mut verifier = self.request.payload_seed.map(Verifier::new);
        let mut body = response.into_body();
        let mut received = 0u64;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|e| self.body_trouble(e, received))?.into_data() else { continue };
            // What goes beyond the size asked for is padding; there is nothing to compare it with.
            let due = self.request.size.map_or(u64::MAX, |size| size - received).min(data.len() as u64) as usize;
            if let Some(verifier) = &mut verifier {
                verifier.check(&data[..due]).map_err(|at| {
                    Trouble::new(
                        Cause::PayloadTampered,
                        format!("byte {at} of the payload is not the one that was sent"),
                    )
                })?;
            }
            received += data.len() as u64;
            if let Some(size) = self.request.size
                && received > size
            {
                let detail = format!("more than the {size} bytes came that were asked for");
                return Err(Trouble::new(Cause::PayloadPadded, detail));
            }
        }
        if let Some(size) = self.request.size
            && received < size
        {
            let detail = format!("the payload ended after {received} of {size} bytes");
            return Err(Trouble::new(Cause::PayloadTruncated, detail));
        }
        // Where hyper and the watch read a response differently, its times mean nothing.
        if stream::open(&self.tape).response.payload() != received {
            return Err(Trouble::new(Cause::HttpMalformed, "the response can be read in two ways"));
        }
        self.whole = true;
        self.verified = verifier.is_some();
        Ok(())
    }

    fn body_trouble(&self, error: hyper::Error, received: u64) -> Trouble {
        let size = stream::open(&self.tape).response.size();
        let trouble = http_trouble(error);
        if trouble.cause != Cause::Closed {
            return trouble;
        }
        let of = size.map_or(String::new(), |size| format!(" of {size}"));
        Trouble::new(Cause::PayloadTruncated, format!("the connection was closed after {received}{of} bytes"))
    }

    fn elapsed(&self) -> u64 {
        micros_between(self.origin, Instant::now())
    }

    fn into_measurement(
        self,
        start: UnixMicros,
        attempt: Result<Result<(), Trouble>, tokio::time::error::Elapsed>,
    ) -> Measurement {
        let ended = self.elapsed();
        let tape = stream::open(&self.tape);
        let handshake = socks::read_back(&tape.socks);
        let mut steps = Steps {
            socket: self.socket,
            connect: self.connect,
            negotiate: handshake.negotiate,
            request: handshake.request,
            response: handshake.response,
            data_request: tape.data_request,
            ..Steps::default()
        };
        tape.response.fill(&mut steps);
        let attempt = match attempt {
            // It ran out in the wait for the server's close, which is no step of the run.
            Err(_) if self.whole => Ok(Ok(())),
            attempt => attempt,
        };
        let attempt = attempt.map(|ended| match tape.response.surplus() {
            surplus @ 1.. if ended.is_ok() => {
                Err(Trouble::new(Cause::PayloadPadded, format!("{surplus} bytes came after the payload's end")))
            }
            _ => ended,
        });
        let outcome = match attempt {
            Ok(Ok(())) => {
                // A payload of no bytes is complete as soon as the response is there.
                let at_once = steps.data_response.filter(|_| tape.response.payload() == 0);
                steps.data_complete = tape.response.complete().or(at_once);
                Outcome::Complete
            }
            Ok(Err(trouble)) => Outcome::Failed(Failure {
                phase: steps.pending(),
                cause: trouble.cause,
                socks_code: trouble.socks_code,
                http_status: trouble.http_status,
                detail: trouble.detail,
            }),
            Err(_) => Outcome::Timeout(steps.pending()),
        };
        let outcome_is_complete = outcome == Outcome::Complete;
        Measurement {
            id: self.request.id.clone(),
            kind: self.request.kind,
            user: self.request.user.clone(),
            optimistic: self.request.optimistic,
            start,
            ended,
            size: self.request.size.or(tape.response.size()).unwrap_or_else(|| tape.response.payload()),
            steps,
            outcome,
            written: tape.written,
            read: tape.read,
            local: self.local,
            proxy: self.request.socks,
            remote_host: self.request.host.clone(),
            remote_port: self.request.port,
            isolated: match handshake.method {
                Some(socks::METHOD_NONE) => Some(false),
                _ => handshake.authenticated.then_some(true),
            },
            verified: self.verified && outcome_is_complete,
            curve: Curve::new(),
            server: None,
        }
    }
}

fn http_trouble(error: hyper::Error) -> Trouble {
    if let Some(io) = error.source().and_then(|source| source.downcast_ref::<io::Error>()) {
        // What is no system's error is hyper's own verdict on chunks or trailers.
        return match (io.raw_os_error(), io.kind()) {
            (Some(code), _) => io::Error::from_raw_os_error(code).into(),
            (None, io::ErrorKind::UnexpectedEof) => Trouble::new(Cause::Closed, "the connection was closed"),
            (None, _) => malformed(&error),
        };
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return Trouble::new(Cause::Closed, "the connection was closed");
    }
    malformed(&error)
}

fn malformed(error: &hyper::Error) -> Trouble {
    let why = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
    Trouble::new(Cause::HttpMalformed, format!("the server does not speak HTTP/1.1: {why}"))
}

/// Reads until the peer closes, or has sent something where nothing was due. The tape keeps count.
async fn read_to_end<S: AsyncRead + Unpin>(mut stream: S, tape: &SharedTape) {
    let mut buffer = [0u8; 1024];
    while stream::open(tape).response.surplus() == 0 {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
}
