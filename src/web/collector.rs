//! `/collector/` (or where the configuration puts it): the files of finished days, as Tor's CollecTor fetches them.

use std::io::{self, Read};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use futures_util::stream;
use sha2::{Digest, Sha256};

use super::error::ApiError;
use super::places::Place;
use super::results::{Answer, Caller, place};
use super::{Segment, Shared};
use crate::clock::UnixMicros;
use crate::collector::bytes_of;
use crate::export::collector::{html, xml};
use crate::store::{Listed, StoreError, StoreReader};

/// Bytes in one piece of an answer.
const PIECE: usize = 64 << 10;

/// `GET` of the folder: the listing.
pub async fn listing(State(shared): State<Shared>, peer: Caller, headers: HeaderMap) -> Answer {
    let place = place(&shared, peer)?;
    let files = listed(shared.store.reader()).await?;
    text(html(&shared.config.source, &files), "text/html; charset=utf-8", &headers, place)
}

/// `GET` of a file, or of `index.xml`.
pub async fn file(State(shared): State<Shared>, peer: Caller, Segment(name): Segment, headers: HeaderMap) -> Answer {
    let place = place(&shared, peer)?;
    let reader = shared.store.reader();
    if name == "index.xml" {
        return text(xml(&listed(reader).await?), "application/xml", &headers, place);
    }
    let Some(file) = reader.published_file(&name).await? else {
        return Err(ApiError::not_found(format!(
            "there is no file {name} here; the folder lists those that there are"
        )));
    };
    let kind = if name.ends_with(".xz") { "application/x-xz" } else { "text/plain; charset=utf-8" };
    let (size, modified, tag) = (file.listed.size, file.listed.modified, quoted(&file.listed.sha256));
    let mut response = head(kind, &tag, Some(modified));
    // It never changes.
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=31536000, immutable"));
    if is_known(&headers, &tag, Some(modified)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(size));
    let pieces = stream::try_unfold((bytes_of(file), place), |(mut bytes, place)| async move {
        let mut piece = Vec::with_capacity(PIECE);
        bytes.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
        Ok::<_, io::Error>((!piece.is_empty()).then(|| (Bytes::from(piece), (bytes, place))))
    });
    *response.body_mut() = Body::from_stream(pieces);
    Ok(response)
}

async fn listed(reader: &StoreReader) -> Result<Vec<Listed>, StoreError> {
    let mut all: Vec<Listed> = Vec::new();
    loop {
        let page = reader.published_after(all.last().map_or("", |last| &last.name)).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

/// A text that is made anew each time, and known by its digest.
fn text(text: String, kind: &'static str, headers: &HeaderMap, place: Place) -> Answer {
    let tag: String = Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect();
    let tag = quoted(&tag);
    let mut response = head(kind, &tag, None);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if is_known(headers, &tag, None) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return Ok(response);
    }
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(text.len()));
    *response.body_mut() = super::body_at(place, text);
    Ok(response)
}

fn quoted(digest: &str) -> String {
    format!("\"{digest}\"")
}

fn head(kind: &'static str, tag: &str, modified: Option<UnixMicros>) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let mut set = |name: HeaderName, value: Result<HeaderValue, _>| {
        if let Ok(value) = value {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, Ok::<_, header::InvalidHeaderValue>(HeaderValue::from_static(kind)));
    set(header::ETAG, HeaderValue::try_from(tag));
    if let Some(modified) = modified {
        set(header::LAST_MODIFIED, HeaderValue::try_from(httpdate::fmt_http_date(to_the_second(modified))));
    }
    response
}

/// Whether the client has this already. As RFC 9110 has it, the date counts only where no tag is given.
fn is_known(headers: &HeaderMap, tag: &str, modified: Option<UnixMicros>) -> bool {
    let tags: Vec<_> = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).collect();
    if headers.contains_key(header::IF_NONE_MATCH) {
        let known = |known: &str| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag;
        return tags.iter().flat_map(|line| line.split(',')).any(|one| known(one.trim()));
    }
    let since = headers.get(header::IF_MODIFIED_SINCE).and_then(|value| value.to_str().ok());
    let since = since.and_then(|date| httpdate::parse_http_date(date).ok());
    since.zip(modified).is_some_and(|(since, modified)| to_the_second(modified) <= since)
}

/// HTTP's dates are whole seconds.
fn to_the_second(moment: UnixMicros) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(moment.0 / 1_000_000).unwrap_or(0))
}
