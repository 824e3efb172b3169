//! Cutting off clients that take nothing, without ever cutting off a run of perfd's own.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::measurement::RunId;
use crate::payload::in_flight::InFlight;

/// Lets a connection off its limits while the run that it serves is under way: a circuit that stands still
/// for minutes is what perfd is there to measure, and must not look like a server that hung up.
#[derive(Clone, Debug, Default)]
pub struct Exemption(Arc<OnceLock<(InFlight, RunId)>>);

impl Exemption {
    /// Lets the connection off for this run.
    pub fn grant(&self, runs: InFlight, run: RunId) {
        let _ = self.0.set((runs, run));
    }

    /// Whether the connection is let off now.
    pub fn holds(&self) -> bool {
        self.0.get().is_some_and(|(runs, run)| runs.contains(run))
    }
}

/// A stream whose writes fail once the peer has taken nothing for so long.
#[derive(Debug)]
pub struct StallGuard<S> {
    inner: S,
    patience: Duration,
    exemption: Exemption,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> StallGuard<S> {
    /// Guards `inner`.
    pub fn new(inner: S, patience: Duration, exemption: Exemption) -> Self {
        StallGuard { inner, patience, exemption, waiting: None }
    }

    fn guard<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        loop {
            ready!(waiting.as_mut().poll(cx));
            if !self.exemption.holds() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")));
            }
            waiting.as_mut().reset(Instant::now() + patience);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for StallGuard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for StallGuard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.guard(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.guard(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.guard(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.guard(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_cut_off_and_who_takes_a_little_is_not() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut guarded = StallGuard::new(near, PATIENCE, Exemption::default());
        let reader = tokio::spawn(async move {
            for _ in 0..10 {
                tokio::time::sleep(PATIENCE - Duration::from_secs(1)).await;
                far.read_u8().await.unwrap();
            }
            far
        });
        let begun = Instant::now();
        let error = guarded.write_all(&[0; 100]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed().as_secs(), 10 * 59 + 60);
        drop(reader.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_under_way_is_not_cut_off_however_long_it_stands_still() {
        let (near, _far) = tokio::io::duplex(8);
        let (exemption, runs, run) = (Exemption::default(), InFlight::default(), RunId::from_bits(1));
        let entry = runs.enter(run.clone());
        exemption.grant(runs, run);
        let mut guarded = StallGuard::new(near, PATIENCE, exemption);
        let write = guarded.write_all(&[0; 100]);
        let (hour, mut write) = (Duration::from_secs(3600), std::pin::pin!(write));
        assert!(tokio::time::timeout(hour, write.as_mut()).await.is_err(), "it still waits");
        drop(entry);
        assert_eq!(write.await.unwrap_err().kind(), io::ErrorKind::TimedOut, "the run is over");
    }
}
