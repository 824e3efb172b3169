//! `/annotations.json`, `/annotations.csv`, `/annotations/{id}`: notes on results; and `POST /annotations`, which takes
//! one from whoever has a token.

use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::Serialize;

use super::error::ApiError;
use super::query::AnnotationsQuery;
use super::results::{Answer, Caller, place, whole_id};
use super::serve::Peer;
use super::{Placed, Segment, Shared, json, json_at};
use crate::annotation::{About, Annotation, Draft, Subject};
use crate::clock::UnixMicros;
use crate::export::annotations::{AnnotationJson, CSV_HEADER, csv_line};
use crate::store::{AnnotationFilter, StoreError};
use crate::token;

/// The longest note with all that goes with it, in bytes.
const LONGEST_BODY: usize = 16 << 10;

/// It has so long to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// And a store that can't be written has so long to get well.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct AnnotationsJson {
    annotations: Vec<AnnotationJson>,
    /// The revision to go on after; null if there is nothing more.
    next_cursor: Option<i64>,
}

/// `GET /annotations.json`.
pub async fn annotations_json(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    let query = AnnotationsQuery::parse(query.as_deref().unwrap_or_default())?;
    let place = place(&shared, peer)?;
    let (annotations, next_cursor) = page(&shared, query).await?;
    json_at(place, &AnnotationsJson { annotations, next_cursor })
}

/// `GET /annotations.csv`.
pub async fn annotations_csv(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    let query = AnnotationsQuery::parse(query.as_deref().unwrap_or_default())?;
    let place = place(&shared, peer)?;
    let mut text = CSV_HEADER.to_owned();
    for annotation in page(&shared, query).await?.0 {
        text += &csv_line(&annotation);
    }
    let mut response = Response::new(Body::from(Bytes::from_owner(Placed { text, _place: place })));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// `GET /annotations/{id}`: one of them.
pub async fn one(State(shared): State<Shared>, Segment(id): Segment) -> Answer {
    let number: Option<i64> = id.parse().ok();
    let found = match number {
        Some(number) => shared.store.reader().annotation(number).await?,
        None => None,
    };
    let found = found.ok_or_else(|| ApiError::not_found("there is no such annotation; /annotations.json has all"))?;
    json(&AnnotationJson::from(&found))
}

/// `POST /annotations`. Of a request that is refused the body is not read to its end, so the connection ends with it.
pub async fn add(
    State(shared): State<Shared>,
    peer: Caller,
    request: Request,
) -> Result<Response<Body>, Response<Body>> {
    let peer = peer.map(|Extension(peer)| peer);
    let added = take(&shared, peer, request).await.map_err(ApiError::close)?;
    let mut response = json(&AnnotationJson::from(&added)).map_err(ApiError::close)?;
    *response.status_mut() = StatusCode::CREATED;
    if let Ok(place) = HeaderValue::try_from(format!("/annotations/{}", added.id)) {
        response.headers_mut().insert(header::LOCATION, place);
    }
    Ok(response)
}

async fn take(shared: &Shared, peer: Option<Peer>, request: Request) -> Result<Annotation, ApiError> {
    let author = author(shared, peer, request.headers()).await?;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "an annotation is sent as application/json"));
    }
    let draft: Draft = serde_json::from_slice(&body(request.into_body()).await?)
        .map_err(|error| ApiError::bad_request(format!("this is no annotation: {error}")))?;
    let about = match draft.check().map_err(ApiError::bad_request)? {
        Subject::Time(about) => about,
        Subject::Run(name) => {
            let reader = shared.store.reader();
            let id = whole_id(reader, &name).await?;
            let found = reader.result(&id).await?;
            About::run(&found.ok_or_else(|| ApiError::not_found(format!("there is no result {id}")))?.row)
        }
    };
    let new = draft.written(about, author, UnixMicros::now());
    let stored = tokio::time::timeout(STORE_TIMEOUT, shared.store.annotate(new)).await;
    let late = "the store can't be written; the annotation is kept if it gets well while perfd runs";
    match stored.map_err(|_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, late))? {
        Err(StoreError::Refused(reason)) => Err(ApiError::new(StatusCode::CONFLICT, reason)),
        stored => Ok(stored?),
    }
}

/// Whose token came with the request.
async fn author(shared: &Shared, peer: Option<Peer>, headers: &HeaderMap) -> Result<String, ApiError> {
    let unknown = |reason: &str| ApiError::new(StatusCode::UNAUTHORIZED, reason);
    let value = headers.get(header::AUTHORIZATION).ok_or_else(|| {
        unknown("a token is needed, as `Authorization: Bearer TOKEN`; `perfd token add NAME` makes one")
    })?;
    if !shared.attempts.may(peer) {
        let reason = "too many wrong tokens of this client; try again in a minute";
        return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, reason));
    }
    let sent = value.to_str().ok().and_then(|text| text.split_once(' '));
    let sent = sent.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    let tokens = shared.store.reader().tokens().await?;
    // All are compared, so that the time tells nothing of which one it might be.
    let mut found = None;
    for known in tokens {
        if sent.is_some_and(|sent| token::matches(sent, &known.hash)) {
            found = Some(known.name);
        }
    }
    if found.is_none() {
        shared.attempts.failed(peer);
    }
    found.ok_or_else(|| unknown("this is no token of this perfd; `perfd token list` names those that there are"))
}

/// The body, which must be short, and come soon.
async fn body(body: Body) -> Result<Bytes, ApiError> {
    let too_long = || {
        let reason = format!("an annotation has at most {LONGEST_BODY} bytes");
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, reason)
    };
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, LONGEST_BODY).collect()).await;
    let late = || ApiError::new(StatusCode::REQUEST_TIMEOUT, "the annotation did not come within 10 s");
    match collected.map_err(|_| late())? {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_long()),
        Err(_) => Err(ApiError::bad_request("the annotation broke off")),
    }
}

/// The notes asked for, and the revision to go on after, if there are more.
async fn page(shared: &Shared, query: AnnotationsQuery) -> Result<(Vec<AnnotationJson>, Option<i64>), ApiError> {
    let reader = shared.store.reader();
    let run = match &query.run {
        Some(name) => Some(whole_id(reader, name).await?),
        None => None,
    };
    let filter = AnnotationFilter { run, ..query.filter };
    let mut found = reader.annotations(&filter, query.cursor, query.order, query.limit + 1).await?;
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    let next = found.last().filter(|_| more).map(|last| last.revision);
    Ok((found.iter().map(AnnotationJson::from).collect(), next))
}
