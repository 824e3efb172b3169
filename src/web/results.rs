//! `/results` in four formats, `/results/{id}`, and the schema of a result.
//!
//! An answer of any size is made page by page: a short read of the store, the rows rendered, sent, and
//! only then the next read. So memory stays small and no read holds the database for a slow client.

use std::collections::VecDeque;
use std::io;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, Response, header};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;

use super::error::ApiError;
use super::format::Format;
use super::places::Place;
use super::query::ResultsQuery;
use super::serve::Peer;
use super::{Segment, Shared};
use crate::clock::UnixMicros;
use crate::export::json::ResultJson;
use crate::export::whole::WholeJson;
use crate::export::{csv, har, json, torperf, waterfall};
use crate::measurement::{ResultRow, RunId};
use crate::slot::SlotRow;
use crate::store::{Order, Page, SHORTEST_PREFIX, StoreError, StoreReader, WholeResult};

/// Rows in one read of the store, and in one piece of the answer.
const PAGE_ROWS: usize = 100;

/// Who asks, where the connection tells.
pub(super) type Caller = Option<Extension<Peer>>;

pub(super) type Answer = Result<Response<Body>, ApiError>;

/// `GET /results`: the format is that of `Accept`.
pub async fn negotiated(
    State(shared): State<Shared>,
    peer: Caller,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Answer {
    results(shared, peer, query, Format::accepted(&headers)?).await
}

/// `GET /results.json`.
pub async fn json(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    results(shared, peer, query, Format::Json).await
}

/// `GET /results.ndjson`.
pub async fn ndjson(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    results(shared, peer, query, Format::Ndjson).await
}

/// `GET /results.tpf`.
pub async fn torperf(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    results(shared, peer, query, Format::Torperf).await
}

/// `GET /results.csv`.
pub async fn csv(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    results(shared, peer, query, Format::Csv).await
}

/// `GET /results.har`.
pub async fn har(State(shared): State<Shared>, peer: Caller, RawQuery(query): RawQuery) -> Answer {
    results(shared, peer, query, Format::Har).await
}

/// `GET /results/{id}`, with a file ending or without: one result and all that is kept beside it. The id may be
/// the beginning of one, if no other begins like this.
pub async fn one(State(shared): State<Shared>, Segment(name): Segment, headers: HeaderMap) -> Answer {
    let (id, form) = match name.split_once('.') {
        Some((id, "txt")) => (id, None),
        Some((id, ending)) => {
            let unknown = || {
                let there_are = "there are .json, .ndjson, .tpf, .csv, .har and .txt";
                ApiError::not_found(format!("there is no format .{ending}; {there_are}"))
            };
            (id, Some(Format::of_ending(ending).ok_or_else(unknown)?))
        }
        None => (name.as_str(), Some(Format::accepted(&headers)?)),
    };
    let reader = shared.store.reader();
    let id = whole_id(reader, id).await?;
    let whole = reader.result(&id).await?.ok_or_else(|| no_result(id.as_str()))?;
    let Some(format) = form else {
        let text = waterfall::render(&WholeJson::from(&whole));
        return Ok(response(Format::Torperf, Body::from(text)));
    };
    let row = &whole.row;
    let text = match format {
        Format::Json | Format::Ndjson => {
            let slot = match row.planned {
                Some(planned) => {
                    let just_after = UnixMicros(planned.0.saturating_add(1));
                    reader.slots_between(&row.experiment, planned, just_after, 1).await?.into_iter().next()
                }
                None => None,
            };
            one_as_json(&whole, slot)
        }
        Format::Torperf => format!("{}{}", torperf::HEADER, torperf::line(row)),
        Format::Csv => format!("{}{}", csv::header(), csv::line(row)),
        Format::Har => [har::HEAD, "\n", &har::entry(row), har::TAIL].concat(),
    };
    Ok(response(format, Body::from(text)))
}

fn no_result(id: &str) -> ApiError {
    ApiError::not_found(format!("there is no result {id}"))
}

/// The name that this is, or the beginning of.
pub(super) async fn whole_id(reader: &StoreReader, text: &str) -> Result<RunId, ApiError> {
    if let Some(id) = RunId::parse(text) {
        return Ok(id);
    }
    let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !digits || !(SHORTEST_PREFIX..32).contains(&text.len()) {
        let reason = format!(
            "a result's name is 32 lower-case hexadecimal digits, of which the first {SHORTEST_PREFIX} or more will do"
        );
        return Err(ApiError::bad_request(reason));
    }
    let mut named = reader.runs_named(text).await?;
    match named.len() {
        0 => Err(no_result(text)),
        1 => named.pop().ok_or_else(|| no_result(text)),
        _ => {
            let names: Vec<&str> = named.iter().map(RunId::as_str).collect();
            Err(ApiError::bad_request(format!("more than one result begins with {text}: {}", names.join(", "))))
        }
    }
}

/// `GET /schema/result.json`: the JSON Schema of one result.
pub async fn schema() -> Response<Body> {
    let mut response = response(Format::Json, Body::from(json::SCHEMA));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/schema+json"));
    response
}

#[derive(Serialize)]
struct OneJson {
    #[serde(flatten)]
    whole: WholeJson,
    configuration: serde_json::Value,
    /// The slot that it belongs to: when it was planned, begun and ended.
    slot: Option<SlotRow>,
}

fn one_as_json(whole: &WholeResult, slot: Option<SlotRow>) -> String {
    // What is no JSON is shown as the text that it is.
    let shown = |text: &String| serde_json::from_str(text).unwrap_or_else(|_| text.as_str().into());
    let configuration = whole.configuration.as_ref().map_or(serde_json::Value::Null, shown);
    let one = OneJson { whole: WholeJson::from(whole), configuration, slot };
    format!("{}\n", serde_json::to_string_pretty(&one).unwrap_or_default())
}

/// One of the places for answers that may be long, if there is one left for this peer.
pub(super) fn place(shared: &Shared, peer: Caller) -> Result<Place, ApiError> {
    let place = shared.result_places.take(peer.map(|Extension(peer)| peer));
    place.ok_or_else(|| ApiError::busy("too many long answers"))
}

async fn results(shared: Shared, peer: Caller, query: Option<String>, format: Format) -> Answer {
    let query = ResultsQuery::parse(query.as_deref().unwrap_or_default())?;
    let place = place(&shared, peer)?;
    let mut pages = Pages {
        reader: shared.store.reader().clone(),
        left: query.limit.unwrap_or(usize::MAX),
        latest: None,
        query,
        _place: place,
    };
    // The first read is made before the status is sent, so that an error still has one.
    let first = pages.next().await?;
    let pieces = Pieces { format, pages, waiting: VecDeque::from([first]), rows: 0, begun: false, ended: false };
    let body = stream::try_unfold(pieces, |mut pieces| async {
        let piece = pieces.next().await?;
        Ok::<_, io::Error>(piece.map(|piece| (piece, pieces)))
    });
    Ok(response(format, Body::from_stream(body)))
}

fn response(format: Format, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("accept"));
    response
}

/// The pages of one answer, read one after the other.
struct Pages {
    reader: StoreReader,
    query: ResultsQuery,
    left: usize,
    /// The highest revision when the first page was read.
    latest: Option<i64>,
    _place: Place,
}

impl Pages {
    /// The next page that has rows, or the last one.
    async fn next(&mut self) -> Result<Page, StoreError> {
        loop {
            let rows = self.left.min(PAGE_ROWS);
            let page = self.reader.results_page(&self.query.filter, self.query.cursor, self.query.order, rows).await;
            let mut page = match page {
                // An answer that was begun can't be refused any more: it waits for its turn.
                Err(StoreError::Busy) if self.latest.is_some() => continue,
                other => other?,
            };
            let at_first = *self.latest.get_or_insert(page.latest);
            if self.query.order == Order::Newest {
                // Who follows from here must get what was added above the first page meanwhile.
                page.latest = at_first;
            }
            self.left -= page.rows.len().min(self.left);
            if let Some(next) = page.next {
                self.query.cursor = Some(next);
            }
            if !page.rows.is_empty() || page.next.is_none() {
                return Ok(page);
            }
        }
    }
}

/// The answer's text, a piece a page.
struct Pieces {
    format: Format,
    pages: Pages,
    waiting: VecDeque<Page>,
    rows: u64,
    begun: bool,
    ended: bool,
}

impl Pieces {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.ended {
            return Ok(None);
        }
        let page = match self.waiting.pop_front() {
            Some(page) => page,
            None => self.pages.next().await.map_err(io::Error::other)?,
        };
        let mut text = String::new();
        if !self.begun {
            self.begun = true;
            text.push_str(match self.format {
                Format::Json => "{\"results\":[",
                Format::Ndjson => "",
                Format::Torperf => torperf::HEADER,
                Format::Csv => "",
                Format::Har => har::HEAD,
            });
            if self.format == Format::Csv {
                text.push_str(&csv::header());
            }
        }
        for row in &page.rows {
            match self.format {
                Format::Json => {
                    text.push_str(if self.rows == 0 { "\n" } else { ",\n" });
                    text.push_str(&row_as_json(row));
                }
                Format::Ndjson => {
                    text.push_str(&row_as_json(row));
                    text.push('\n');
                }
                Format::Torperf => text.push_str(&torperf::line(row)),
                Format::Csv => text.push_str(&csv::line(row)),
                Format::Har => {
                    text.push_str(if self.rows == 0 { "\n" } else { ",\n" });
                    text.push_str(&har::entry(row));
                }
            }
            self.rows += 1;
        }
        self.ended = page.next.is_none() || self.pages.left == 0;
        if self.ended && self.format == Format::Har {
            text.push_str(har::TAIL);
        }
        if self.ended && self.format == Format::Json {
            let next = page.next.map_or("null".to_owned(), |next| next.to_string());
            text.push_str(&format!("\n],\"next_cursor\":{next},\"latest_revision\":{}}}\n", page.latest));
        }
        Ok(Some(text.into()))
    }
}

fn row_as_json(row: &ResultRow) -> String {
    serde_json::to_string(&ResultJson::from(row)).unwrap_or_default()
}
