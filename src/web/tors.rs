//! `GET /tors` and `GET /tors/{name}`: how the tors are doing.

use axum::body::Body;
use axum::extract::State;
use axum::http::Response;
use serde::Serialize;

use super::error::ApiError;
use super::{Segment, Shared, json};
use crate::circuit::TorEvent;
use crate::tor::TorStatus;

/// So many of a tor's last events are shown with it.
const EVENTS: usize = 50;

#[derive(Serialize)]
struct TorsJson {
    tors: Vec<TorStatus>,
}

/// One tor, and what happened to it last.
#[derive(Serialize)]
struct OneJson {
    #[serde(flatten)]
    status: TorStatus,
    /// The newest first.
    events: Vec<TorEvent>,
}

/// `GET /tors`: all tors of the configuration, in the order of their names.
pub async fn tors(State(shared): State<Shared>) -> Result<Response<Body>, ApiError> {
    json(&TorsJson { tors: shared.tors.iter().map(|tor| tor.status()).collect() })
}

/// `GET /tors/{name}`: one of them, with its last events.
pub async fn one(State(shared): State<Shared>, Segment(name): Segment) -> Result<Response<Body>, ApiError> {
    let tor = shared.tors.get(&name).ok_or_else(|| ApiError::not_found("there is no such tor; /tors names all"))?;
    let events = shared.store.reader().tor_events(&name, EVENTS).await?;
    json(&OneJson { status: tor.status(), events })
}
