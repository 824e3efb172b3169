//! The server: payloads for the runs, results and health for everyone.

mod circuits;
mod error;
mod format;
mod health;
mod payload;
mod places;
mod query;
mod results;
pub mod serve;
mod stall;
mod start_page;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use axum::http::request;
use axum::http::{HeaderName, HeaderValue, Response, header};
use axum::routing::get;
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::payload::Secret;
use crate::payload::in_flight::InFlight;
use crate::scheduler::Board;
use crate::store::Store;
use error::ApiError;
use health::HealthCache;
use payload::Allowance;
use places::Places;

/// How many answers with results may be under way at a time; each reads the store in short pages.
const RESULT_PLACES: usize = 16;

/// And so many of them for one client.
const RESULT_SHARE: usize = 4;

/// What every request may use. It is one counter, as the router clones it several times per request:
/// counting each part instead, from two threads, took 2.5 % of the time of a small payload.
#[derive(Clone)]
pub struct Shared(Arc<Parts>);

/// The parts of [`Shared`].
pub struct Parts {
    config: Arc<Config>,
    store: Store,
    board: Board,
    secret: Secret,
    in_flight: InFlight,
    allowance: Allowance,
    result_places: Places,
    health: Arc<HealthCache>,
}

impl Shared {
    /// What the server needs of the rest of perfd.
    pub fn new(config: Arc<Config>, store: Store, board: Board, secret: Secret, in_flight: InFlight) -> Self {
        let strangers = Arc::new(Semaphore::new(config.server.max_payloads));
        Shared(Arc::new(Parts {
            allowance: Allowance { largest: config.server.max_payload, strangers },
            result_places: Places::new(RESULT_PLACES, RESULT_SHARE),
            health: Arc::default(),
            config,
            store,
            board,
            secret,
            in_flight,
        }))
    }
}

impl Deref for Shared {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// All routes.
pub fn router(shared: Shared) -> Router {
    Router::new()
        .route("/", get(start_page::start_page))
        .route("/health", get(health::health))
        .route("/payload/{bytes}", get(payload::payload))
        .route("/urandom/{bytes}", get(payload::payload))
        .route("/results", get(results::negotiated))
        .route("/results.json", get(results::json))
        .route("/results.ndjson", get(results::ndjson))
        .route("/results.tpf", get(results::torperf))
        .route("/results.csv", get(results::csv))
        .route("/results/{id}", get(results::one))
        .route("/schema/result.json", get(results::schema))
        .route("/circuits.json", get(circuits::circuits))
        .route("/pairs.json", get(circuits::pairs))
        .route("/robots.txt", get(start_page::robots))
        .fallback(async || ApiError::not_found("no such page; / says what there is"))
        .method_not_allowed_fallback(async || {
            ApiError::new(axum::http::StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are answered here")
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
