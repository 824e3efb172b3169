//! `GET /payload/{bytes}` (and Perfd's `/urandom/{bytes}`): exactly so many random bytes.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use super::stall::Exemption;
use super::{Segment, Shared};
use crate::config::units::format_size;
use crate::measurement::RunId;
use crate::payload::body::PayloadBody;
use crate::payload::{RUN_HEADER, Stream};

/// What strangers may have.
#[derive(Clone, Debug)]
pub struct Allowance {
    /// The largest payload, in bytes.
    pub largest: u64,
    /// How many payloads are sent to strangers, or taken from them, at a time.
    pub strangers: Arc<Semaphore>,
}

/// Sends a payload: the run's own stream if the request names a run, fresh random bytes if not.
pub async fn payload(
    State(shared): State<Shared>,
    Segment(bytes): Segment,
    exemption: Option<Extension<Exemption>>,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let size = size_of("/payload", &bytes, shared.allowance.largest)?;
    let run = run_of(&headers)?;
    let permit = admit(&shared, run.as_ref(), exemption.map(|Extension(exemption)| exemption))?;
    let stream = match &run {
        Some(id) => Stream::new(shared.secret.seed(id)),
        None => Stream::fresh(),
    };
    let mut response = Response::new(Body::new(PayloadBody::new(stream, size, permit)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    Ok(response)
}

/// Lets in a run of perfd's own, whatever the crowd, and lets its connection off the limits for strangers;
/// a stranger gets a place, to be held as long as the payload passes.
///
/// # Errors
/// If all the places are taken.
pub fn admit(
    shared: &Shared,
    run: Option<&RunId>,
    exemption: Option<Exemption>,
) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
    if let Some(id) = run.filter(|id| shared.in_flight.claim(id)) {
        exemption.inspect(|exemption| exemption.grant(shared.in_flight.clone(), id.clone()));
        return Ok(None);
    }
    let strangers = Arc::clone(&shared.allowance.strangers);
    strangers.try_acquire_owned().map(Some).map_err(|_| ApiError::busy("too many payloads"))
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

/// The size in the last part of a path below `route`.
///
/// # Errors
/// If it is no number, or more than `largest` bytes.
pub fn size_of(route: &str, text: &str, largest: u64) -> Result<u64, ApiError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits {
        return Err(ApiError::bad_request(format!("the path ends in a number of bytes, such as {route}/51200")));
    }
    match text.parse::<u64>() {
        Ok(size) if size <= largest => Ok(size),
        _ => {
            let reason = format!("payloads have at most {} ({largest} bytes) here", format_size(largest));
            Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_plain_numbers_within_the_limit() {
        assert_eq!(size_of("/payload", "0", 10).ok(), Some(0));
        assert_eq!(size_of("/payload", "10", 10).ok(), Some(10));
        for text in ["", "-1", "+1", "1e3", "1 ", "0x10", "ten", "1.0"] {
            assert!(size_of("/payload", text, 10).is_err(), "{text}");
        }
        for text in ["11", "18446744073709551616", "99999999999999999999999999"] {
            assert!(size_of("/payload", text, 10).is_err(), "{text}");
        }
    }
}
