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

/// What passed over a stream, and when (µs after the tape's origin, which is START).
#[derive(Debug)]
pub struct Tape {
    origin: Instant,
    speaking: Speaking,
    /// The SOCKS handshake.
    pub socks: Transcript,
    /// The HTTP response.
    pub response: Watch,
    /// Bytes of HTTP written.
    pub written: u64,
    /// Bytes of HTTP read.
    pub read: u64,
    /// When the last byte of the HTTP request had been written.
    pub data_request: Option<u64>,
    /// Whoever wants to read before that.
    reader: Option<Waker>,
    last_write: Option<u64>,
}

#[derive(Debug)]
enum Speaking {
    Socks,
    Http,
}

impl Tape {
    /// A tape whose times count from `origin`, for a payload of `size` bytes if that is known.
    pub fn new(origin: Instant, size: Option<u64>) -> Self {
        Tape {
            origin,
            speaking: Speaking::Socks,
            socks: Transcript::default(),
            response: Watch::new(size),
            written: 0,
            read: 0,
            data_request: None,
            reader: None,
            last_write: None,
        }
    }

    /// From now on the bytes are HTTP.
    pub fn speak_http(&mut self) {
        self.speaking = Speaking::Http;
    }

    fn note_read(&mut self, at: Instant, bytes: &[u8]) {
        let at = micros_between(self.origin, at);
        match self.speaking {
            Speaking::Socks => self.socks.received.push(at, bytes),
            Speaking::Http => {
                self.read += bytes.len() as u64;
                self.response.read(at, bytes);
            }
        }
    }

    /// hyper flushes once it has handed over all that it has to send.
    fn note_flushed(&mut self) {
        if let Speaking::Http = self.speaking {
            self.data_request = self.last_write;
            if self.data_request.is_some()
                && let Some(reader) = self.reader.take()
            {
                reader.wake();
            }
        }
    }

    /// Whether to read now. What comes before the request is written is read after it: hyper would take
    /// it for a fault or for the answer, depending on which came first by a hair.
    fn lets_read(&mut self, cx: &Context<'_>) -> bool {
        let lets = matches!(self.speaking, Speaking::Socks) || self.data_request.is_some();
        if !lets {
            self.reader = Some(cx.waker().clone());
        }
        lets
    }

    fn note_written<'a>(&mut self, at: Instant, count: usize, buffers: impl Iterator<Item = &'a [u8]>) {
        let at = micros_between(self.origin, at);
        match self.speaking {
            Speaking::Socks => {
                let mut left = count;
                for buffer in buffers {
                    let n = left.min(buffer.len());
                    self.socks.sent.push(at, &buffer[..n]);
                    left -= n;
                }
            }
            Speaking::Http => {
                self.written += count as u64;
                self.last_write = Some(at);
            }
        }
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
#[derive(Debug)]
pub struct TimedStream<S> {
    inner: S,
    tape: SharedTape,
}

impl<S> TimedStream<S> {
    /// Records what passes over `inner` on `tape`.
    pub fn new(inner: S, tape: SharedTape) -> Self {
        TimedStream { inner, tape }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !open(&self.tape).lets_read(cx) {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let now = Instant::now();
        if buf.filled().len() > before {
            open(&self.tape).note_read(now, &buf.filled()[before..]);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write(cx, buf))?;
        let now = Instant::now();
        open(&self.tape).note_written(now, count, std::iter::once(buf));
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, bufs))?;
        let now = Instant::now();
        open(&self.tape).note_written(now, count, bufs.iter().map(|buf| &**buf));
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        open(&self.tape).note_flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
