//! `GET /payload/{bytes}` (and Perfd's `/urandom/{bytes}`): exactly so many random bytes.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::stall::Exemption;
use super::{Segment, Shared};
use crate::config::units::format_size;
use crate::measurement::RunId;
use crate::payload::{CHUNK, RUN_HEADER, Stream};

/// What strangers may have.
#[derive(Clone, Debug)]
pub struct Allowance {
    /// The largest payload, in bytes.
    pub largest: u64,
    /// How many payloads are sent to strangers at a time.
    pub strangers: Arc<Semaphore>,
}

/// Sends a payload: the run's own stream if the request names a run, fresh random bytes if not.
pub async fn payload(
    State(shared): State<Shared>,
    Segment(bytes): Segment,
    exemption: Option<Extension<Exemption>>,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let size = size_of(&bytes, shared.allowance.largest)?;
    let run = run_of(&headers)?;
    let own = run.as_ref().filter(|id| shared.in_flight.claim(id));
    let permit = match own {
        Some(id) => {
            exemption.inspect(|exemption| exemption.grant(shared.in_flight.clone(), id.clone()));
            None
        }
        None => {
            let strangers = Arc::clone(&shared.allowance.strangers);
            Some(strangers.try_acquire_owned().map_err(|_| ApiError::busy("too many payloads"))?)
        }
    };
    let stream = match &run {
        Some(id) => Stream::new(shared.secret.seed(id)),
        None => Stream::fresh(),
    };
    let body = PayloadBody { stream, left: size, _permit: permit };
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    Ok(response)
}

/// The run that a request names.
///
/// # Errors
/// If the header is there, and holds no run's name.
pub fn run_of(headers: &HeaderMap) -> Result<Option<RunId>, ApiError> {
    let Some(value) = headers.get(RUN_HEADER) else { return Ok(None) };
    let id = value.to_str().ok().and_then(RunId::parse);
    id.map(Some).ok_or_else(|| ApiError::bad_request("X-Perfd-Run must hold 32 lower-case hexadecimal digits"))
}

fn size_of(text: &str, largest: u64) -> Result<u64, ApiError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        return Err(ApiError::bad_request("the path ends in a number of bytes, such as /payload/51200"));
    }
    match text.parse::<u64>() {
        Ok(size) if size <= largest => Ok(size),
        _ => {
            let reason = format!("this server gives at most {} ({largest} bytes)", format_size(largest));
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, reason))
        }
    }
}

/// A payload that is made while it is sent.
struct PayloadBody {
    stream: Stream,
    left: u64,
    _permit: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for PayloadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
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
        let body = PayloadBody { stream: Stream::new(seed), left: size, _permit: None };
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

    #[test]
    fn sizes_are_plain_numbers_within_the_limit() {
        assert_eq!(size_of("0", 10).ok(), Some(0));
        assert_eq!(size_of("10", 10).ok(), Some(10));
        for text in ["", "-1", "+1", "1e3", "1 ", "0x10", "ten", "1.0"] {
            assert!(size_of(text, 10).is_err(), "{text}");
        }
        for text in ["11", "18446744073709551616", "99999999999999999999999999"] {
            assert!(size_of(text, 10).is_err(), "{text}");
        }
    }
}
