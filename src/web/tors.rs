//! `GET /tors` and `GET /tors/{name}`: how the tors are doing, as of the last second.

use std::sync::Arc;

use axum::extract::State;
use serde::Serialize;

use super::error::ApiError;
use super::results::{Answer, Caller, place};
use super::{Segment, Shared, json_at};
use crate::circuit::TorEvent;
use crate::tor::{Tor, TorStatus};

/// So many of a tor's last events are shown with it.
const EVENTS: usize = 50;

#[derive(Serialize)]
struct TorsJson<'a> {
    tors: Vec<&'a TorStatus>,
}

/// One tor, and what happened to it last.
#[derive(Serialize)]
struct OneJson<'a> {
    #[serde(flatten)]
    status: &'a TorStatus,
    /// The newest first.
    events: Vec<TorEvent>,
}

/// `GET /tors`: all tors of the configuration, in the order of their names.
pub async fn tors(State(shared): State<Shared>, peer: Caller) -> Answer {
    let place = place(&shared, peer)?;
    let all: Vec<_> = shared.tors.iter().map(Tor::glance).collect();
    json_at(place, &TorsJson { tors: all.iter().map(Arc::as_ref).collect() })
}

/// `GET /tors/{name}`: one of them, with its last events.
pub async fn one(State(shared): State<Shared>, peer: Caller, Segment(name): Segment) -> Answer {
    let tor = shared.tors.get(&name).ok_or_else(|| ApiError::not_found("there is no such tor; /tors names all"))?;
    let place = place(&shared, peer)?;
    let events = shared.store.reader().tor_events(&name, EVENTS).await?;
    json_at(place, &OneJson { status: &tor.glance(), events })
}
