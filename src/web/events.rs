//! `GET /events`: server-sent events, one for each result that is stored or completed, to follow without asking again.
//!
//! A listener is served from the store, page by page at its own pace, and beyond what is there by a wake-up at each
//! commit. So nothing is queued for anybody, and whoever comes back with the last id that it saw misses nothing.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use bytes::Bytes;
use futures_util::stream;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::error::ApiError;
use super::places::Place;
use super::query::{EventForm, EventsQuery};
use super::results::{Answer, Caller};
use super::serve::Ending;
use crate::export::annotations::AnnotationJson;
use crate::export::json::ResultJson;
use crate::export::{csv, torperf};
use crate::measurement::ResultRow;
use crate::store::{Event, Filter, StoreError, StoreReader, WINDOW};

/// How many may listen at a time.
pub const LISTENERS: usize = 64;

/// And so many of them from one client.
pub const LISTENERS_SHARE: usize = 16;

/// Results in one read of the store, and in one piece of the answer.
const PAGE_ROWS: usize = 100;

/// Another process may write into the store too (`perfd import`, `perfd rederive`, `perfd annotate`), and nothing
/// wakes this one then: so often it is looked for.
const POLL: Duration = Duration::from_secs(3);

/// A listener that nothing is told hears so often that somebody is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client that was cut off is asked to come again after so long, in ms.
const RETRY_MS: u32 = 3000;

/// The last id that a client saw, as browsers send it.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Answers `GET /events`.
pub async fn events(
    State(shared): State<Shared>,
    peer: Caller,
    ending: Option<Extension<Ending>>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Answer {
    let query = EventsQuery::parse(query.as_deref().unwrap_or_default())?;
    let place = shared.listeners.take(peer.map(|Extension(peer)| peer));
    let place = place.ok_or_else(|| ApiError::busy("too many listeners"))?;
    let revisions = shared.store.revisions();
    let reader = shared.store.reader().clone();
    let latest = reader.latest_revision().await?;
    let (after, had) = match (last_event_id(&headers)?.or(query.cursor), query.last) {
        (Some(cursor), _) if cursor > latest => return Err(ahead(cursor, latest)),
        (Some(cursor), _) => (cursor, cursor),
        (None, Some(count)) => (reader.before_last(&query.filter, count).await?, 0),
        (None, None) => (latest, latest),
    };
    let listener = Listener {
        reader,
        revisions,
        filter: query.filter,
        form: query.form,
        position: after,
        told: after,
        had,
        until: None,
        said: Instant::now(),
        _place: place,
    };
    let ending = ending.map(|Extension(Ending(token))| token).unwrap_or_default();
    let hello = hello(after, latest, query.form);
    let body = stream::unfold((Some(hello), listener, ending), next);
    let mut response = Response::new(Body::from_stream(body));
    let set = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // A reverse proxy of this kind would keep the events until it has many.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    response.headers_mut().extend(set.map(|(name, value)| (name, HeaderValue::from_static(value))));
    Ok(response)
}

/// What is told first, by whom the rest is, and word of its end.
type Telling = (Option<String>, Listener, CancellationToken);

/// The next piece of the answer; the end, when the connection's time is over.
async fn next((hello, mut listener, ending): Telling) -> Option<(Result<Bytes, Infallible>, Telling)> {
    let piece = match hello {
        Some(hello) => hello,
        None => tokio::select! {
            biased;
            () = ending.cancelled() => return None,
            piece = listener.piece() => piece?,
        },
    };
    Some((Ok(piece.into()), (None, listener, ending)))
}

/// What the browser's `EventSource` sends when it comes again; an empty one is none.
fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return Ok(None) };
    let id = value.to_str().ok().and_then(|text| text.parse().ok()).filter(|id| *id >= 0);
    id.map(Some).ok_or_else(|| ApiError::bad_request("Last-Event-ID must be the id of an event of this page"))
}

fn ahead(cursor: i64, latest: i64) -> ApiError {
    let reason = format!(
        "cursor {cursor} is not of this store, which has only come to {latest}: another one was put in its place; \
         begin without a cursor, or from 0"
    );
    ApiError::bad_request(reason)
}

/// The first event: where this begins, and what stands above the lines of the form.
fn hello(after: i64, latest: i64, form: EventForm) -> String {
    let head = match form {
        EventForm::Json => None,
        EventForm::Torperf => Some(torperf::HEADER.to_owned()),
        EventForm::Csv => Some(csv::header()),
    };
    let mut data = json!({ "revision": after, "latest_revision": latest });
    if let Some(head) = head {
        data["head"] = head.into();
    }
    format!("retry: {RETRY_MS}\n\n{}", event("hello", after, &data.to_string()))
}

/// `data` must be on one line, as JSON is.
fn event(name: &str, id: i64, data: &str) -> String {
    format!("event: {name}\nid: {id}\ndata: {data}\n\n")
}

/// One listener.
struct Listener {
    reader: StoreReader,
    revisions: watch::Receiver<i64>,
    filter: Filter,
    form: EventForm,
    /// Everything up to this revision was looked at.
    position: i64,
    /// The last id that the client was told.
    told: i64,
    /// The client has had everything up to this revision: 0 where it begins with the last of what there was before.
    had: i64,
    /// The revision up to which is being read, while that takes more than one page.
    until: Option<i64>,
    /// When something was said last.
    said: Instant,
    _place: Place,
}

impl Listener {
    /// What is to be said next, once there is something; `None` if the store can't be read any more.
    async fn piece(&mut self) -> Option<String> {
        loop {
            let (text, more) = match self.read().await {
                Ok(read) => read,
                // Whoever waits so long for a turn has paused long enough.
                Err(StoreError::Busy) => continue,
                Err(error) => {
                    tracing::debug!(%error, "a listener is let go");
                    return None;
                }
            };
            if !text.is_empty() {
                return Some(self.say(text));
            }
            if more {
                // A filter that lets little through: what was passed over needs not be looked at again.
                if self.position - self.told >= WINDOW {
                    return Some(self.say_position());
                }
                continue;
            }
            if !self.wait().await {
                return Some(if self.position > self.told {
                    self.say_position()
                } else {
                    self.say(":\n\n".to_owned())
                });
            }
        }
    }

    /// Waits until there may be something new; false when the client must hear something meanwhile.
    async fn wait(&mut self) -> bool {
        let keep_alive = tokio::time::sleep_until(self.said + KEEP_ALIVE);
        let mut keep_alive = std::pin::pin!(keep_alive);
        loop {
            let committed = async {
                if self.revisions.changed().await.is_err() {
                    // The writer is gone; what there is to read is still read.
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = committed => return true,
                () = &mut keep_alive => return false,
                () = tokio::time::sleep(POLL) => {}
            }
            match self.reader.latest_revision().await {
                Ok(latest) if latest <= self.position => {}
                // A fault is for the read to meet.
                Ok(_) | Err(StoreError::Closed | StoreError::Unreadable(_)) => return true,
                Err(_) => {}
            }
        }
    }

    /// The next page as text, and whether there is more of its round.
    async fn read(&mut self) -> Result<(String, bool), StoreError> {
        self.revisions.mark_unchanged();
        let page = self.reader.events(&self.filter, self.position, PAGE_ROWS).await?;
        let until = *self.until.get_or_insert(page.latest);
        let mut text = String::new();
        for told in page.events.iter().filter(|event| event.revision() <= until) {
            let (row, first_revision) = match told {
                Event::Result { row, first_revision } => (row, first_revision),
                Event::Annotation(annotation) => {
                    let data = serde_json::to_string(&AnnotationJson::from(annotation.as_ref())).unwrap_or_default();
                    text += &event("annotation", annotation.revision, &data);
                    self.told = annotation.revision;
                    continue;
                }
            };
            // A run that is younger than all that the client has had is new to it. An older one may be new too, if it
            // was completed before the client came to its first place: for who wants to know, `first` names that. It
            // is a field of our own, which others pass over.
            let name = if *first_revision > self.had { "result" } else { "completed" };
            text += &format!("first: {first_revision}\n");
            text += &event(name, row.revision, &self.data(row));
            self.told = row.revision;
        }
        self.position = page.reached.min(until).max(self.position);
        let more = self.position < until;
        if !more {
            self.had = self.position;
            self.until = None;
        }
        Ok((text, more))
    }

    fn data(&self, row: &ResultRow) -> String {
        let line = match self.form {
            EventForm::Json => return serde_json::to_string(&ResultJson::from(row)).unwrap_or_default(),
            EventForm::Torperf => torperf::line(row),
            EventForm::Csv => csv::line(row),
        };
        serde_json::Value::String(line).to_string()
    }

    fn say_position(&mut self) -> String {
        self.told = self.position;
        let data = json!({ "revision": self.position }).to_string();
        self.say(event("cursor", self.position, &data))
    }

    fn say(&mut self, text: String) -> String {
        self.said = Instant::now();
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::Places;
    use super::*;
    use crate::clock::UnixMicros;
    use crate::slot::{Grid, SlotId, SlotState};
    use crate::store::Store;
    use crate::test_support::example_result;

    fn listener(store: &Store, filter: Filter) -> Listener {
        Listener {
            reader: store.reader().clone(),
            revisions: store.revisions(),
            filter,
            form: EventForm::Json,
            position: 0,
            told: 0,
            had: 0,
            until: None,
            said: Instant::now(),
            _place: Places::new(1, 1).take(None).unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_listener_that_nothing_is_told_hears_of_it_every_fifteen_seconds() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("perfd.sqlite")).unwrap();
        let nothing = Filter { outcome: Some("timeout".to_owned()), ..Filter::default() };
        let mut listener = listener(&store, nothing);
        let begun = Instant::now();
        assert_eq!(listener.piece().await.as_deref(), Some(":\n\n"));
        assert_eq!(begun.elapsed().as_secs(), 15);

        // What the filter keeps back moves the id on all the same, but only then.
        let result = example_result(1);
        let slot = SlotId { experiment: result.experiment.clone(), planned: result.planned };
        let grid = Grid::new(Duration::from_secs(1), Duration::ZERO);
        store.begin_slot(slot.clone(), grid, slot.planned).await.unwrap();
        store.finish_slot(slot, SlotState::Done, None, UnixMicros(1), vec![result]).await.unwrap();
        let text = listener.piece().await.unwrap();
        assert_eq!(text, "event: cursor\nid: 1\ndata: {\"revision\":1}\n\n");
        assert_eq!(begun.elapsed().as_secs(), 30);
        assert_eq!(listener.piece().await.as_deref(), Some(":\n\n"));
        assert_eq!(begun.elapsed().as_secs(), 45);
    }
}
