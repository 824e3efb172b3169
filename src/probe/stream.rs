//! The stream that measures: every byte of a run passes here, and here alone meets a time.
//!
//! SOCKS and HTTP run over it and know nothing of it. It shows what passes to the run's [`Tape`], which
//! the probe reads when the run has ended, however it ended.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::http::Watch;
use super::socks::Transcript;
use crate::measurement::{Kind, Request};
use crate::payload::progress::Progress;

/// What passed over a stream, and when (µs after the tape's origin, which is START).
#[derive(Debug)]
pub struct Tape {
    origin: Instant,
    /// Whether what we send is HTTP, and no longer SOCKS.
    sending_http: bool,
    /// Whether what comes is HTTP, and no longer SOCKS.
    receiving_http: bool,
    /// The SOCKS handshake.
    pub socks: Transcript,
    /// Why the proxy did not grant the request, where that came to light beneath hyper.
    pub refusal: Option<tokio_socks::Error>,
    /// The HTTP response.
    pub response: Watch,
    /// The payload that is sent; none of a download.
    pub sent: Progress,
    /// Bytes of HTTP written.
    pub written: u64,
    /// Bytes of HTTP read.
    pub read: u64,
    /// When the last byte of the HTTP request's head had been written.
    pub data_request: Option<u64>,
    /// How many bytes of the empty line that ends the head were written last.
    end_of_head: usize,
    /// Whoever wants to read before the head is written.
    reader: Option<Waker>,
}

const END_OF_HEAD: &[u8] = b"\r\n\r\n";

impl Tape {
    /// A tape of this request's run, whose times count from `origin`.
    pub fn new(origin: Instant, request: &Request) -> Self {
        let (received, sent) = match request.kind {
            Kind::Download => (request.size, Some(0)),
            Kind::Upload => (None, Some(request.size.unwrap_or(0))),
        };
        Tape {
            origin,
            sending_http: false,
            receiving_http: false,
            socks: Transcript::default(),
            refusal: None,
            response: Watch::new(received),
            sent: Progress::new(sent),
            written: 0,
            read: 0,
            data_request: None,
            end_of_head: 0,
            reader: None,
        }
    }

    /// From now on the bytes that we send are HTTP.
    pub fn send_http(&mut self) {
        self.sending_http = true;
    }

    /// From now on all bytes are HTTP.
    pub fn speak_http(&mut self) {
        self.send_http();
        self.receive_http();
    }

    /// From now on the bytes that come are HTTP.
    pub fn receive_http(&mut self) {
        self.receiving_http = true;
    }

    fn note_read(&mut self, at: Instant, bytes: &[u8]) {
        let at = micros_between(self.origin, at);
        if self.receiving_http {
            self.read += bytes.len() as u64;
            self.response.read(at, bytes);
        } else {
            self.socks.received.push(at, bytes);
        }
    }

    /// Whether to read now. What comes before the request is written is read after it: hyper would take
    /// it for a fault or for the answer, depending on which came first by a hair.
    fn lets_read(&mut self, cx: &Context<'_>) -> bool {
        let lets = !self.receiving_http || self.data_request.is_some();
        if !lets {
            self.reader = Some(cx.waker().clone());
        }
        lets
    }

    fn note_written<'a>(&mut self, at: Instant, count: usize, buffers: impl Iterator<Item = &'a [u8]>) {
        let at = micros_between(self.origin, at);
        let mut left = count;
        for buffer in buffers {
            let n = left.min(buffer.len());
            left -= n;
            let bytes = &buffer[..n];
            if self.sending_http {
                self.written += n as u64;
                let head = self.note_head(at, bytes);
                self.sent.advance(at, (n - head) as u64);
            } else {
                self.socks.sent.push(at, bytes);
            }
        }
    }

    /// How many of these bytes are the head's: all of them, up to the empty line that ends it.
    fn note_head(&mut self, at: u64, bytes: &[u8]) -> usize {
        if self.data_request.is_some() {
            return 0;
        }
        for (i, byte) in bytes.iter().enumerate() {
            self.end_of_head = match byte {
                byte if *byte == END_OF_HEAD[self.end_of_head] => self.end_of_head + 1,
                b'\r' => 1,
                _ => 0,
            };
            if self.end_of_head == END_OF_HEAD.len() {
                self.data_request = Some(at);
                self.reader.take().into_iter().for_each(Waker::wake);
                return i + 1;
            }
        }
        bytes.len()
    }
}

/// The whole microseconds from `earlier` to `later`.
pub fn micros_between(earlier: Instant, later: Instant) -> u64 {
    u64::try_from(later.saturating_duration_since(earlier).as_micros()).unwrap_or(u64::MAX)
}

/// A tape that the stream writes and the probe reads. Both live in one thread: the lock is never waited for.
pub type SharedTape = Arc<Mutex<Tape>>;

/// Opens a tape, even one whose writer panicked: what it holds is plain data.
pub fn open(tape: &SharedTape) -> MutexGuard<'_, Tape> {
    tape.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream that writes its tape. The time of a byte is that at which the system call returned that
/// read it, or took it for sending.
///
/// A write of HTTP that fails is told to the reader, and after all that had come: a server may answer, and go
/// before it has heard the whole body. hyper would give its answer up for the error.
#[derive(Debug)]
pub struct TimedStream<S> {
    inner: S,
    tape: SharedTape,
    write_error: Option<io::Error>,
}

impl<S> TimedStream<S> {
    /// Records what passes over `inner` on `tape`.
    pub fn new(inner: S, tape: SharedTape) -> Self {
        TimedStream { inner, tape, write_error: None }
    }

    /// Notes what was written, or keeps the error for the reader and lets the writer wait for ever.
    fn written<'a>(
        &mut self,
        cx: &Context<'_>,
        result: io::Result<usize>,
        buffers: impl Iterator<Item = &'a [u8]>,
    ) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        let mut tape = open(&self.tape);
        match result {
            Ok(count) => {
                tape.note_written(now, count, buffers);
                Poll::Ready(Ok(count))
            }
            Err(error) if tape.sending_http => {
                self.write_error = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !open(&self.tape).lets_read(cx) {
            return self.write_error.take().map_or(Poll::Pending, |error| Poll::Ready(Err(error)));
        }
        let before = buf.filled().len();
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, buf));
        let now = Instant::now();
        let ended = read.is_err() || (buf.filled().len() == before && buf.remaining() > 0);
        if ended && let Some(error) = self.write_error.take() {
            return Poll::Ready(Err(error));
        }
        read?;
        if buf.filled().len() > before {
            open(&self.tape).note_read(now, &buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_error.is_some() {
            return Poll::Pending;
        }
        let result = ready!(Pin::new(&mut self.inner).poll_write(cx, buf));
        self.written(cx, result, std::iter::once(buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.write_error.is_some() {
            return Poll::Pending;
        }
        let result = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs));
        self.written(cx, result, bufs.iter().map(|buf| &**buf))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurement::RunId;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A peer that has taken so many writes, said something, and gone.
    struct Gone {
        takes: usize,
        unread: &'static [u8],
    }

    impl AsyncRead for Gone {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            let (now, later) = self.unread.split_at(self.unread.len().min(buf.remaining()));
            buf.put_slice(now);
            self.unread = later;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Gone {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            match self.takes.checked_sub(1) {
                Some(left) => {
                    self.takes = left;
                    Poll::Ready(Ok(buf.len()))
                }
                None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn upload(size: u64) -> Request {
        Request {
            id: RunId::from_bits(1),
            kind: Kind::Upload,
            user: String::new(),
            optimistic: false,
            socks: ([127, 0, 0, 1], 9).into(),
            host: String::new(),
            port: 80,
            path: String::new(),
            size: Some(size),
            timeout: Duration::ZERO,
            payload_seed: None,
        }
    }

    /// Writes these pieces to a peer that takes the first of them; what it was heard to say, and the error.
    async fn talk(tape: &SharedTape, takes: usize, pieces: &[&str]) -> (Vec<u8>, Option<io::ErrorKind>) {
        let stream = TimedStream::new(Gone { takes, unread: b"no, thanks" }, tape.clone());
        let (mut reader, mut writer) = tokio::io::split(stream);
        let write = async {
            for piece in pieces {
                writer.write_all(piece.as_bytes()).await.unwrap();
            }
            std::future::pending::<()>().await
        };
        let mut heard = Vec::new();
        let error = tokio::select! {
            biased;
            () = write => None,
            read = reader.read_to_end(&mut heard) => read.err(),
        };
        (heard, error.map(|error| error.kind()))
    }

    #[tokio::test]
    async fn the_end_of_the_head_is_found_wherever_it_is_cut() {
        let head = "POST / HTTP/1.1\r\nA: \r\n\r\n";
        for cut in 1..head.len() {
            for pieces in [vec![&head[..cut], &head[cut..], "\r\n\r\nx"], vec![&head[..cut], "\r\n\r\nx"]] {
                let tape = SharedTape::new(Tape::new(Instant::now(), &upload(5)).into());
                open(&tape).speak_http();
                talk(&tape, pieces.len(), &pieces).await;
                let all = pieces.concat();
                let body = all.find("\r\n\r\n").map_or(0, |end| all.len() - end - 4) as u64;
                let tape = open(&tape);
                assert_eq!((tape.written, tape.sent.passed()), (all.len() as u64, body), "{pieces:?}");
                assert!(tape.data_request.is_some() && tape.sent.deciles()[0].is_some() == (body > 0), "{pieces:?}");
            }
        }
    }

    #[tokio::test]
    async fn what_was_said_before_it_went_is_heard_and_then_why_it_went() {
        let broken = Some(io::ErrorKind::BrokenPipe);
        for (takes, receives_http, heard) in [
            // Its answer came while the body was being written.
            (1, true, "no, thanks"),
            // It is the proxy that said something, before it took any HTTP.
            (0, false, "no, thanks"),
            // What comes before the request is no answer to it.
            (0, true, ""),
        ] {
            let tape = SharedTape::new(Tape::new(Instant::now(), &upload(5)).into());
            open(&tape).send_http();
            if receives_http {
                open(&tape).receive_http();
            }
            let (said, error) = talk(&tape, takes, &["POST / HTTP/1.1\r\n\r\n", "hello"]).await;
            assert_eq!((String::from_utf8(said).unwrap().as_str(), error), (heard, broken));
            assert_eq!(open(&tape).read, if receives_http { heard.len() as u64 } else { 0 });
        }
    }
}
