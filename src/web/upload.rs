//! `POST /upload/{bytes}`: takes exactly so many bytes, verifies them as they come, and says when they came.

use std::time::{Duration, Instant};

use axum::Extension;
use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::http::{Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::BodyExt;

use super::error::ApiError;
use super::payload::{admit, run_of, size_of};
use super::stall::Exemption;
use super::{Segment, Shared};
use crate::clock::UnixMicros;
use crate::config::units::format_duration;
use crate::payload::Verifier;
use crate::payload::progress::Progress;
use crate::payload::receipt::Receipt;

/// Takes an upload and answers with its receipt. The body of one that is refused is not read, so the connection
/// ends with the refusal.
pub async fn upload(
    State(shared): State<Shared>,
    segment: Result<Segment, ApiError>,
    exemption: Option<Extension<Exemption>>,
    request: Request,
) -> Result<Response<Body>, Response<Body>> {
    let head = (UnixMicros::now(), Instant::now());
    let exemption = exemption.map(|Extension(exemption)| exemption).unwrap_or_default();
    let receipt = take(&shared, segment, exemption, request, head).await.map_err(ApiError::close)?;
    super::json(&receipt).map_err(ApiError::close)
}

async fn take(
    shared: &Shared,
    segment: Result<Segment, ApiError>,
    exemption: Exemption,
    request: Request,
    head: (UnixMicros, Instant),
) -> Result<Receipt, ApiError> {
    let size = size_of("/upload", &segment?.0, shared.allowance.largest)?;
    let run = run_of(request.headers())?;
    let announced =
        request.body().size_hint().exact().filter(|_| request.headers().contains_key(header::CONTENT_LENGTH));
    match announced {
        None => return Err(ApiError::new(StatusCode::LENGTH_REQUIRED, "an upload must have a Content-Length")),
        Some(length) if length != size => {
            let reason = format!("Content-Length is {length}, but the path says {size} bytes; they must be the same");
            return Err(ApiError::bad_request(reason));
        }
        Some(_) => {}
    }
    let _place = admit(shared, run.as_ref(), Some(exemption.clone()))?;
    let verifier = run.map(|id| Verifier::new(shared.secret.seed(&id)));
    receive(request.into_body(), size, verifier, head, shared.config.server.stall_timeout, &exemption).await
}

/// Reads a body to its end, however wrong it is: what was received is told, and by whom it was changed is not
/// the server's to say.
async fn receive<B>(
    mut body: B,
    size: u64,
    mut verifier: Option<Verifier>,
    (received, since): (UnixMicros, Instant),
    patience: Duration,
    exemption: &Exemption,
) -> Result<Receipt, ApiError>
where
    B: HttpBody<Data = Bytes> + Unpin,
{
    let mut progress = Progress::new(Some(size));
    let mut verified = verifier.as_ref().map(|_| true);
    let mut first_difference = None;
    loop {
        let frame = match tokio::time::timeout(patience, body.frame()).await {
            Ok(None) => break,
            Ok(Some(frame)) => frame.map_err(|_| ApiError::bad_request("the body ended before its Content-Length"))?,
            Err(_) if exemption.holds() => continue,
            Err(_) => {
                let reason = format!("nothing came for {}", format_duration(patience));
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, reason));
            }
        };
        let at = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let Ok(data) = frame.into_data() else { continue };
        progress.advance(at, data.len() as u64);
        if let Some(Err(position)) = verifier.as_mut().map(|verifier| verifier.check(&data)) {
            first_difference = Some(position);
            verified = Some(false);
            verifier = None;
        }
    }
    Ok(Receipt {
        received_bytes: progress.passed(),
        verified,
        first_difference,
        received_unix_us: received.0,
        deciles_us: progress.deciles(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurement::RunId;
    use crate::payload::in_flight::InFlight;
    use futures_util::StreamExt;
    use http_body::Frame;
    use http_body_util::StreamBody;
    use std::convert::Infallible;
    use tokio::time::Instant as TokioInstant;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A body of single bytes, each so long after the one before, that never ends.
    fn trickle(pauses: Vec<u64>) -> impl HttpBody<Data = Bytes, Error = Infallible> + Unpin {
        let bytes = futures_util::stream::iter(pauses).then(async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok(Frame::data(Bytes::from_static(b"x")))
        });
        StreamBody::new(Box::pin(bytes.chain(futures_util::stream::pending())))
    }

    async fn receive_until_cut(pauses: Vec<u64>, exemption: &Exemption) -> ApiError {
        let head = (UnixMicros(0), Instant::now());
        receive(trickle(pauses), 100, None, head, PATIENCE, exemption).await.unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_nothing_is_cut_off_and_who_sends_a_little_is_not() {
        let begun = TokioInstant::now();
        let error = receive_until_cut(vec![59; 10], &Exemption::default()).await;
        assert_eq!(error.close().status(), StatusCode::REQUEST_TIMEOUT);
        assert_eq!(begun.elapsed().as_secs(), 10 * 59 + 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_under_way_is_not_cut_off_however_long_it_stands_still() {
        let (exemption, runs, run) = (Exemption::default(), InFlight::default(), RunId::from_bits(1));
        let entry = runs.enter(run.clone());
        exemption.grant(runs, run);
        let (hour, mut receiving) = (Duration::from_secs(3600), std::pin::pin!(receive_until_cut(vec![1], &exemption)));
        assert!(tokio::time::timeout(hour, receiving.as_mut()).await.is_err(), "it still waits");
        drop(entry);
        assert_eq!(receiving.await.close().status(), StatusCode::REQUEST_TIMEOUT, "the run is over");
    }
}
