//! `GET /payload/{bytes}` (and Perfd's `/urandom/{bytes}`): exactly so many random bytes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::{Segment, Shared};
use crate::config::units::format_size;
use crate::measurement::RunId;
use crate::payload::{CHUNK, RUN_HEADER, Stream};

/// No payload is sent for longer, however slowly it is taken: Torperf's longest timeout, about.
const LONGEST: Duration = Duration::from_secs(3600);

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
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let size = size_of(&bytes, shared.allowance.largest)?;
    let run = run_of(&headers)?;
    let own = run.as_ref().is_some_and(|id| shared.in_flight.contains(id));
    let permit = if own {
        None
    } else {
        let strangers = Arc::clone(&shared.allowance.strangers);
        Some(strangers.try_acquire_owned().map_err(|_| ApiError::busy("too many payloads"))?)
    };
    let stream = match &run {
        Some(id) => Stream::new(shared.secret.seed(id)),
        None => Stream::fresh(),
    };
    let body = PayloadBody { stream, left: size, until: Instant::now() + LONGEST, _permit: permit };
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
    until: Instant,
    _permit: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for PayloadBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        if Instant::now() > self.until {
            return Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::TimedOut, "the client is too slow"))));
        }
        let mut piece = vec![0; self.left.min(CHUNK as u64) as usize];
        self.stream.fill(&mut piece);
        self.left -= piece.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(piece.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
