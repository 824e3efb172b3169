//! The server: payloads for the runs, results and health for everyone.

mod annotations;
mod attempts;
mod circuits;
mod collector;
mod error;
mod events;
mod format;
mod health;
mod look;
mod metrics;
mod openapi;
mod payload;
mod places;
mod query;
mod results;
pub mod serve;
mod stall;
mod start_page;
mod stats;
mod tors;
mod upload;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request;
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::routing::{MethodRouter, get, post};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Semaphore;

use crate::clock::UnixMicros;
use crate::config::Config;
use crate::payload::Secret;
use crate::payload::in_flight::InFlight;
use crate::report;
use crate::scheduler::Board;
use crate::store::{Store, Tally};
use crate::tor::Tors;
use attempts::Attempts;
use error::ApiError;
use health::Summaries;
use look::Looks;
use payload::Allowance;
use places::{Place, Places};

/// How many answers that may be long (results, circuits, comparisons, tors) may be under way at a time, until they are
/// sent; those with results read the store in short pages.
const RESULT_PLACES: usize = 16;

/// And so many of them for one client.
const RESULT_SHARE: usize = 4;

/// How many statistics may be made, wait or be sent at a time, and of these so many for one client.
const STATS_PLACES: usize = 8;
const STATS_SHARE: usize = 3;

/// What the server needs of the rest of perfd.
pub struct Parts {
    /// The configuration.
    pub config: Arc<Config>,
    /// Results and slots.
    pub store: Store,
    /// The tors.
    pub tors: Tors,
    /// What the experiments do.
    pub board: Board,
    /// What payloads are keyed with.
    pub secret: Secret,
    /// The runs under way.
    pub in_flight: InFlight,
}

/// What every request may use. It is one counter, as the router clones it several times per request:
/// counting each part instead, from two threads, took 2.5 % of the time of a small payload.
#[derive(Clone)]
pub struct Shared(Arc<All>);

/// The parts, and what the server keeps for itself.
pub struct All {
    parts: Parts,
    allowance: Allowance,
    result_places: Places,
    stats_places: Places,
    stats_cache: report::Cache,
    listeners: Places,
    summaries: Looks<Summaries>,
    tally: Looks<Arc<Tally>>,
    openapi: String,
    started: UnixMicros,
    attempts: Attempts,
}

impl Shared {
    /// What the handlers share.
    pub fn new(parts: Parts) -> Self {
        let strangers = Arc::new(Semaphore::new(parts.config.server.max_payloads));
        Shared(Arc::new(All {
            allowance: Allowance { largest: parts.config.server.max_payload, strangers },
            result_places: Places::new(RESULT_PLACES, RESULT_SHARE),
            stats_places: Places::new(STATS_PLACES, STATS_SHARE),
            stats_cache: report::Cache::default(),
            listeners: Places::new(events::LISTENERS, events::LISTENERS_SHARE),
            summaries: Looks::default(),
            tally: Looks::default(),
            openapi: openapi::description(&parts.config),
            started: UnixMicros::now(),
            attempts: Attempts::default(),
            parts,
        }))
    }
}

impl Deref for Shared {
    type Target = All;

    fn deref(&self) -> &All {
        &self.0
    }
}

impl Deref for All {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}

/// Every route: its method (`GET` answers HEAD too), its path, and who answers. `openapi.json` describes each.
/// `collector` is where the configuration puts that, which is nowhere among the other pages.
fn routes(collector: Option<&str>) -> Vec<(Method, String, MethodRouter<Shared>)> {
    let fixed = [
        (Method::GET, "/", get(start_page::start_page)),
        (Method::GET, "/health", get(health::health)),
        (Method::GET, "/metrics", get(metrics::metrics)),
        (Method::GET, "/payload/{bytes}", get(payload::payload)),
        (Method::GET, "/urandom/{bytes}", get(payload::payload)),
        (Method::POST, "/upload/{bytes}", post(upload::upload)),
        (Method::GET, "/results", get(results::negotiated)),
        (Method::GET, "/results.json", get(results::json)),
        (Method::GET, "/results.ndjson", get(results::ndjson)),
        (Method::GET, "/results.tpf", get(results::torperf)),
        (Method::GET, "/results.csv", get(results::csv)),
        (Method::GET, "/results.har", get(results::har)),
        (Method::GET, "/results/{id}", get(results::one)),
        (Method::GET, "/events", get(events::events)),
        (Method::GET, "/annotations.json", get(annotations::annotations_json)),
        (Method::GET, "/annotations.csv", get(annotations::annotations_csv)),
        (Method::GET, "/annotations/{id}", get(annotations::one)),
        (Method::POST, "/annotations", post(annotations::add)),
        (Method::GET, "/tors", get(tors::tors)),
        (Method::GET, "/tors/{name}", get(tors::one)),
        (Method::GET, "/schema/result.json", get(results::schema)),
        (Method::GET, "/circuits.json", get(circuits::circuits)),
        (Method::GET, "/pairs.json", get(circuits::pairs)),
        (Method::GET, "/openapi.json", get(openapi::openapi)),
        (Method::GET, "/stats/", get(stats::index)),
        (Method::GET, "/robots.txt", get(start_page::robots)),
    ];
    let fixed =
        fixed.into_iter().chain(stats::routes()).map(|(method, path, answers)| (method, path.to_owned(), answers));
    let collector = collector.into_iter().flat_map(|path| {
        [
            (Method::GET, path.to_owned(), get(collector::listing)),
            (Method::GET, format!("{path}{{file}}"), get(collector::file)),
        ]
    });
    fixed.chain(collector).collect()
}

/// The server's pages, and an error with a reason for all that is none.
pub fn router(shared: Shared) -> Router {
    routes(shared.config.collector.path.as_deref())
        .into_iter()
        .fold(Router::new(), |router: Router<Shared>, (_, path, answers)| router.route(&path, answers))
        .fallback(async || ApiError::not_found("no such page; / says what there is"))
        .method_not_allowed_fallback(async || {
            let reason = "not by this method; the header Allow says by which";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, reason)
        })
        .layer(axum::middleware::map_response(common_headers))
        .with_state(shared)
}

/// The last part of the path, where the route has a name for it.
struct Segment(String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut request::Parts, state: &S) -> Result<Self, ApiError> {
        let path: Result<Path<String>, PathRejection> = Path::from_request_parts(parts, state).await;
        let not_text = |_| ApiError::bad_request("the path is not UTF-8 when its %XX are decoded");
        path.map(|Path(segment)| Segment(segment)).map_err(not_text)
    }
}

/// An answer of the moment, as JSON: not to be kept.
fn json(value: &impl Serialize) -> Result<Response<Body>, ApiError> {
    Ok(of_the_moment(Body::from(json_text(value)?)))
}

/// The same for one that may be large: its place is taken until the last of it has been sent, or given up, so that
/// slow clients can't make perfd hold more of them than there are places.
fn json_at(place: Place, value: &impl Serialize) -> Result<Response<Body>, ApiError> {
    let text = json_text(value)?;
    Ok(of_the_moment(body_at(place, text)))
}

fn body_at(place: Place, text: String) -> Body {
    Body::from(Bytes::from_owner(Placed { text, _place: place }))
}

/// A text that has a place. The two go together: hyper is done with a body as soon as it has queued its bytes, and
/// drops the bytes themselves when they are written.
struct Placed {
    text: String,
    _place: Place,
}

impl AsRef<[u8]> for Placed {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

fn json_text(value: &impl Serialize) -> Result<String, ApiError> {
    let text = serde_json::to_string_pretty(value).map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the answer can't be written: {error}"))
    })?;
    Ok(text + "\n")
}

fn of_the_moment(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn common_headers<B>(mut response: Response<B>) -> Response<B> {
    let set = [
        (header::SERVER, concat!("perfd/", env!("CARGO_PKG_VERSION"))),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("content-security-policy"), "default-src 'none'; frame-ancestors 'none'"),
    ];
    for (name, value) in set {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OWN_PAGES;

    #[test]
    fn no_page_can_be_hidden_by_the_path_of_the_collector() {
        for (_, path, _) in routes(None) {
            let first = path.split('/').nth(1).unwrap();
            assert!(OWN_PAGES.contains(&first), "{first} is missing in OWN_PAGES");
        }
    }
}
