//! The HTTP of a run: the request, and what the server answers to a download.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Method, header};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::stream::{self, SharedTape};
use super::trouble::Trouble;
use super::{Run, http};
use crate::measurement::{Cause, Kind, Request};
use crate::payload::body::PayloadBody;
use crate::payload::{RUN_HEADER, Stream, Verifier};

/// After a complete payload the server has so long to close the connection. What it sends instead is
/// padding; a server that keeps the connection open is let go.
const LINGER: Duration = Duration::from_millis(500);

/// The HTTP request; made before anything else, so that what can't be asked for builds no circuit.
pub fn http_request(request: &Request) -> Result<hyper::Request<PayloadBody>, Trouble> {
    let Request { host, port, path, id, .. } = request;
    if !(1..=255).contains(&host.len()) {
        return Err(Trouble::new(Cause::Io, "SOCKS 5 takes host names of 1 to 255 bytes"));
    }
    if !path.starts_with('/') || path.contains('#') {
        return Err(Trouble::new(Cause::Io, "the path does not begin with a slash, or has a fragment"));
    }
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let authority = if *port == 80 { host } else { format!("{host}:{port}") };
    let builder = hyper::Request::builder()
        .uri(path)
        .header(header::HOST, authority)
        .header(header::USER_AGENT, concat!("perfd/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::CONNECTION, "close");
    let (builder, body) = match request.kind {
        Kind::Download => (builder.method(Method::GET).header(RUN_HEADER, id.as_str()), PayloadBody::empty()),
        Kind::Upload => {
            let size = request.size.unwrap_or(0);
            let builder = builder
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, size);
            match request.payload_seed {
                Some(seed) => (builder.header(RUN_HEADER, id.as_str()), PayloadBody::new(Stream::new(seed), size, ())),
                // The server has nothing to compare these bytes with, so it is not told the run.
                None => (builder, PayloadBody::new(Stream::fresh(), size, ())),
            }
        }
    };
    builder.body(body).map_err(|e| Trouble::new(Cause::Io, format!("the URL makes no HTTP request: {e}")))
}

impl Run<'_> {
    /// Sends the request and receives all that the server answers.
    pub(super) async fn exchange<S>(&mut self, stream: S, request: hyper::Request<PayloadBody>) -> Result<(), Trouble>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut builder = http1::Builder::new();
        builder.max_buf_size(http::HEAD_LIMIT);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        let mut connection = std::pin::pin!(connection.without_shutdown());

        // The connection does the reading and writing, in this task; the exchange waits for it.
        let mut parts = None;
        let exchanged = {
            let exchange = async {
                let response = sender.send_request(request).await?;
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
        if self.request.kind == Kind::Upload {
            // There is nothing to come, and of a body that is not sent hyper would never tire.
            return Ok(());
        }

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

    async fn receive(&mut self, response: hyper::Response<Incoming>) -> Result<(), Trouble> {
        if stream::open(&self.tape).response.head_too_long() {
            return Err(Trouble::new(Cause::HttpMalformed, "the head of the response is too long"));
        }
        let status = response.status();
        if status != hyper::StatusCode::OK {
            return Err(Trouble::http_status(status.as_u16()));
        }
        let announced = hyper::body::Body::size_hint(response.body()).exact();
        if announced.is_some_and(|announced| announced > http::SIZE_LIMIT) {
            return Err(Trouble::new(Cause::HttpMalformed, "the announced size is beyond all bounds"));
        }
        let received = match self.request.kind {
            Kind::Download => self.receive_payload(response.into_body(), announced).await?,
            Kind::Upload => self.receive_receipt(response.into_body()).await?,
        };
        // Where hyper and the watch read a response differently, its times mean nothing.
        if stream::open(&self.tape).response.payload().passed() != received {
            return Err(Trouble::new(Cause::HttpMalformed, "the response can be read in two ways"));
        }
        self.whole = true;
        Ok(())
    }

    /// Receives and checks a payload; how many bytes it has.
    async fn receive_payload(&mut self, mut body: Incoming, announced: Option<u64>) -> Result<u64, Trouble> {
        if let (Some(asked), Some(announced)) = (self.request.size, announced)
            && asked != announced
        {
            let detail = format!("the server announced {announced} bytes, {asked} were asked for");
            return Err(Trouble::new(Cause::PayloadSize, detail));
        }

        let mut verifier = self.request.payload_seed.map(Verifier::new);
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
        self.verified = verifier.is_some();
        Ok(received)
    }

    fn body_trouble(&self, error: hyper::Error, received: u64) -> Trouble {
        let size = stream::open(&self.tape).response.payload().size();
        let trouble = Trouble::from(error);
        if trouble.cause != Cause::Closed {
            return trouble;
        }
        let of = size.map_or(String::new(), |size| format!(" of {size}"));
        Trouble::new(Cause::PayloadTruncated, format!("the connection was closed after {received}{of} bytes"))
    }
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
