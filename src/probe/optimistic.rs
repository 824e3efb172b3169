//! Optimistic data: the HTTP request goes out before the proxy has answered the SOCKS request.
//!
//! tokio-socks waits for a reply before it lets anything be sent. So this stream gives it a stand-in that grants
//! the request, and reads the proxy's own reply later, beneath hyper, before any byte of HTTP is passed up.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::socks::{self, LONGEST_MESSAGE};
use super::stream::{self, SharedTape};

/// What tokio-socks is given for a reply: granted, from 0.0.0.0:0.
const STAND_IN: [u8; 10] = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

/// A stream over which one side does not wait for the other.
#[derive(Debug)]
pub struct OptimisticStream<S> {
    inner: S,
    tape: SharedTape,
    state: State,
}

#[derive(Debug)]
enum State {
    /// tokio-socks shakes hands. When it has sent its request it reads the stand-in, of which it was given so
    /// many bytes.
    Handshake { given: usize },
    /// The reply is waited for, and so much of it is there.
    Awaiting(Vec<u8>),
    /// The proxy granted the request: all that comes now is HTTP.
    Granted,
}

impl<S> OptimisticStream<S> {
    /// A stream for a handshake over `inner`, which writes `tape`.
    pub fn new(inner: S, tape: SharedTape) -> Self {
        OptimisticStream { inner, tape, state: State::Handshake { given: 0 } }
    }

    /// The handshake is over for our side. If the proxy does not grant the request, the tape gets to know why,
    /// and the next read fails.
    pub fn await_reply(&mut self) {
        stream::open(&self.tape).send_http();
        self.state = State::Awaiting(Vec::new());
    }
}

impl<S: AsyncRead + Unpin> OptimisticStream<S> {
    /// Reads the reply and not one byte more: its time is then noted like that of any other reply.
    fn poll_reply(inner: &mut S, reply: &mut Vec<u8>, cx: &mut Context<'_>) -> Poll<Result<(), tokio_socks::Error>> {
        loop {
            let missing = match socks::missing_of_reply(reply)? {
                0 => return Poll::Ready(Ok(())),
                missing => missing,
            };
            let mut memory = [0; LONGEST_MESSAGE];
            let room = memory.get_mut(..missing).unwrap_or_default();
            let mut piece = ReadBuf::new(room);
            ready!(Pin::new(&mut *inner).poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()));
            }
            reply.extend_from_slice(piece.filled());
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for OptimisticStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.state {
            State::Handshake { given } => {
                let asked = socks::read_back(&stream::open(&this.tape).socks).request.is_some();
                if asked {
                    let rest = STAND_IN.get(*given..).unwrap_or_default();
                    let piece = rest.get(..buf.remaining()).unwrap_or(rest);
                    buf.put_slice(piece);
                    *given += piece.len();
                    return Poll::Ready(Ok(()));
                }
            }
            State::Awaiting(reply) => match ready!(Self::poll_reply(&mut this.inner, reply, cx)) {
                Ok(()) => {
                    stream::open(&this.tape).receive_http();
                    this.state = State::Granted;
                }
                Err(error) => {
                    stream::open(&this.tape).refusal.get_or_insert(error);
                    return Poll::Ready(Err(io::Error::other("the proxy did not grant the request")));
                }
            },
            State::Granted => {}
        }
        Pin::new(&mut this.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for OptimisticStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
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
