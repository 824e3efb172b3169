//! `/circuits.json`: what the tors did beside the runs, and `/pairs.json`: how tors compare.

use axum::extract::{RawQuery, State};
use serde::Serialize;

use super::query::{CircuitsQuery, PairsQuery};
use super::results::{Answer, Caller, place};
use super::{Shared, json_at};
use crate::clock::UnixMicros;
use crate::export::circuits::CircuitJson;
use crate::export::pairs::{Comparison, compare};

#[derive(Serialize)]
struct CircuitsJson {
    circuits: Vec<CircuitJson>,
    /// Whether there are more within the time asked for: go on with `since` of the last one.
    more: bool,
}

#[derive(Serialize)]
struct PairsJson {
    experiment: String,
    /// Slots planned up to this moment were not looked at, since there are too many; null if all were.
    not_looked_at_until: Option<UnixMicros>,
    comparisons: Vec<Comparison>,
}

/// `GET /circuits.json`: circuits that failed, or that no run used, the earliest first.
pub async fn circuits(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    let query = CircuitsQuery::parse(query.as_deref().unwrap_or_default())?;
    let place = place(&shared, peer)?;
    let (since, until) = (query.since, query.until);
    let mut found = shared.store.reader().circuits_between(since, until, query.limit + 1).await?;
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    json_at(place, &CircuitsJson { circuits: found.into_iter().map(CircuitJson::from).collect(), more })
}

/// `GET /pairs.json`: the paired comparison of the tors of one experiment.
pub async fn pairs(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    let query = PairsQuery::parse(query.as_deref().unwrap_or_default())?;
    let place = place(&shared, peer)?;
    let found = shared.store.reader().pairs(&query.experiment, query.since, query.until).await?;
    let comparisons = compare(&found.rows);
    json_at(place, &PairsJson { experiment: query.experiment, not_looked_at_until: found.cut, comparisons })
}
