//! `/stats/…`: statistics, as JSON and CSV.
//!
//! Few are made at a time, one after the other, within [`LIMIT`]; who comes when too many wait is told so at once.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::results::{Answer, Caller};
use super::{Placed, Shared};
use crate::clock::UnixMicros;
use crate::report::{Question, Refused, Statistic, answer};

/// How long a question may take, waiting for its turn included.
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct IndexJson {
    statistics: Vec<StatisticJson>,
}

#[derive(Serialize)]
struct StatisticJson {
    name: &'static str,
    what: &'static str,
    json: String,
    csv: String,
    parameters: Vec<&'static str>,
}

/// `GET /stats/`: which statistics there are, and what they may be asked with.
pub async fn index() -> Answer {
    let statistic = |(statistic, name, what): (Statistic, &'static str, &'static str)| StatisticJson {
        name,
        what,
        json: format!("/stats/{name}.json"),
        csv: format!("/stats/{name}.csv"),
        parameters: statistic.names(),
    };
    super::json(&IndexJson { statistics: Statistic::ALL.map(statistic).into() })
}

/// Each statistic with its two paths.
macro_rules! paths {
    ($($name:literal)*) => {
        [$(($name, concat!("/stats/", $name, ".json"), concat!("/stats/", $name, ".csv"))),*]
    };
}

const PATHS: [(&str, &str, &str); 17] = paths!(
    "summary" "phases" "ecdf" "failures" "relays" "conflux" "paired" "tor-metrics/downloads" "tor-metrics/failures"
    "tor-metrics/buildtimes" "tor-metrics/latencies" "tor-metrics/throughput" "onionperf/throughput" "onionperf/ttfb"
    "onionperf/ttlb" "onionperf/downloads" "onionperf/errors"
);

/// The routes of all of them.
pub fn routes() -> impl Iterator<Item = (Method, &'static str, MethodRouter<Shared>)> {
    PATHS.into_iter().filter_map(|(name, json, csv)| Some((Statistic::parse(name)?, json, csv))).flat_map(
        |(statistic, json, csv)| {
            [(Form::Json, json), (Form::Csv, csv)].map(|(form, path)| {
                let answers =
                    move |State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery, headers: HeaderMap| {
                        give(shared, peer, statistic, form, query, headers)
                    };
                (Method::GET, path, get(answers))
            })
        },
    )
}

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Json,
    Csv,
}

async fn give(
    shared: Shared,
    peer: Caller,
    statistic: Statistic,
    form: Form,
    query: Option<String>,
    headers: HeaderMap,
) -> Answer {
    let parameters: Vec<_> = form_urlencoded::parse(query.as_deref().unwrap_or_default().as_bytes()).collect();
    let parameters = parameters.iter().map(|(name, value)| (name.as_ref(), value.as_ref()));
    let question = Question::parse(statistic, parameters).map_err(ApiError::bad_request)?;
    let place = shared.stats_places.take(peer.map(|axum::Extension(peer)| peer));
    let place = place.ok_or_else(|| ApiError::busy("too many statistics"))?;
    let all = shared.clone();
    let found = shared.store.statistics();
    let found = found.ask(LIMIT, move |reading| answer(reading, &all.stats_cache, &question, UnixMicros::now()));
    let table = found.await?.map_err(|refused| match refused {
        Refused::TooManyValues(_) | Refused::TooManyRows(_) => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, refused.to_string())
        }
    })?;
    let (text, content_type) = match form {
        Form::Json => (table.json(), "application/json"),
        Form::Csv => (table.csv(), "text/csv; charset=utf-8"),
    };
    let tag = tag_of(&text);
    let mut response = match names(&headers, &tag) {
        true => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        }
        false => Response::new(Body::from(Bytes::from_owner(Placed { text, _place: place }))),
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    // What was stored meanwhile may change it: who has it asks whether it is still so.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.extend(HeaderValue::from_str(&tag).map(|tag| (header::ETAG, tag)));
    Ok(response)
}

/// What tells one answer from another.
fn tag_of(text: &str) -> String {
    let digest = Sha256::digest(text);
    let digits: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{digits}\"")
}

/// Whether the client has the answer of this tag.
fn names(headers: &HeaderMap, tag: &str) -> bool {
    let lines = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|known| known.trim().trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statistic_has_its_paths() {
        assert_eq!(PATHS.map(|(name, ..)| name), Statistic::ALL.map(|(_, path, _)| path));
    }
}
