//! A payload as the body of an HTTP message, made while it is sent (no I/O of its own).

use std::cell::RefCell;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::{CHUNK, Stream};

/// The first so many bytes of a stream, in pieces of [`CHUNK`]; with whatever is to be held as long as it is
/// sent, such as a place among those who are sent one.
pub struct PayloadBody<H = ()> {
    stream: Stream,
    left: u64,
    _held: H,
}

impl<H> PayloadBody<H> {
    /// The first `size` bytes of `stream`.
    pub fn new(stream: Stream, size: u64, held: H) -> Self {
        PayloadBody { stream, left: size, _held: held }
    }
}

impl PayloadBody {
    /// No bytes at all.
    pub fn empty() -> Self {
        Self::new(Stream::new([0; 32]), 0, ())
    }
}

impl<H: Unpin> http_body::Body for PayloadBody<H> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let size = self.left.min(CHUNK as u64) as usize;
        let mut piece = Piece::of(size);
        self.stream.fill(piece.bytes_mut());
        self.left -= size as u64;
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// How many pieces of idle memory each thread keeps: what a connection has in flight at most, and one more.
const SPARE_PIECES: usize = 4;

thread_local! {
    static SPARE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A piece of a payload on its way out, in memory that is used again. The memory only: every byte is
/// made anew before it is sent. A fresh `Vec` for each piece took 15 % more processor time for each byte
/// of a large payload: for its zeroing, and for the page faults after the allocator, at every write,
/// had given the memory back to the system.
struct Piece {
    memory: Box<[u8]>,
    size: usize,
}

impl Piece {
    /// A piece of `size` bytes, [`CHUNK`] at most, which hold anything: to be overwritten.
    fn of(size: usize) -> Piece {
        let spare = SPARE.with_borrow_mut(Vec::pop);
        Piece { memory: spare.unwrap_or_else(|| vec![0; CHUNK].into()), size }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.size]
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.size]
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let memory = std::mem::take(&mut self.memory);
        // At the thread's end there is no store any more, and the memory is freed.
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < SPARE_PIECES {
                spare.push(memory);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    async fn sent(seed: [u8; 32], size: u64) -> Bytes {
        let body = PayloadBody::new(Stream::new(seed), size, ());
        body.collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn memory_that_is_used_again_shows_in_no_payload() {
        for (seed, size) in [(1, 200_000), (2, 200_000), (3, 5), (4, 70_000), (5, 0)] {
            let mut expected = vec![0; size];
            Stream::new([seed; 32]).fill(&mut expected);
            assert_eq!(sent([seed; 32], size as u64).await, expected);
        }
        assert!(SPARE.with_borrow(|spare| (1..=SPARE_PIECES).contains(&spare.len())));
    }
}
