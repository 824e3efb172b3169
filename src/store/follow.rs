//! What followers of the store are told: results by revision, each with whether it was stored before, and notes.

use rusqlite::{Connection, OptionalExtension, Result};

use super::annotations::{self, AnnotationFilter};
use super::query::{Filter, Order, WINDOW, results_page};
use super::{StoreError, StoreReader};
use crate::annotation::Annotation;
use crate::measurement::{ResultRow, RunId};

/// One thing to tell.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A result.
    Result {
        /// The row.
        row: Box<ResultRow>,
        /// The revision that it was stored at first; its own, where it has had no other.
        first_revision: i64,
    },
    /// A note.
    Annotation(Box<Annotation>),
}

/// A page of what is to be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    /// In the order of their revisions; may be none, before the end is reached.
    pub events: Vec<Event>,
    /// Everything up to this revision has been looked at: who goes on after it misses nothing.
    pub reached: i64,
    /// The highest revision given to any row, at the time of the read. Where `reached` is not less, there is nothing
    /// more to tell of that time.
    pub latest: i64,
}

impl Event {
    /// The revision at which it is told.
    pub fn revision(&self) -> i64 {
        match self {
            Event::Result { row, .. } => row.revision,
            Event::Annotation(annotation) => annotation.revision,
        }
    }
}

impl StoreReader {
    /// What happened after the revision `after`, in the order of revisions, at most `max_rows` results (1 to
    /// [`WINDOW`]), and as many notes. Of the filter, what a note has no part in does not restrict notes. A page may be empty before the end is reached, as those of
    /// [`results_page`](StoreReader::results_page) may.
    pub async fn events(&self, filter: &Filter, after: i64, max_rows: usize) -> Result<Events, StoreError> {
        let filter = filter.clone();
        self.read(move |conn| events(conn, &filter, after, max_rows)).await
    }

    /// The revision after which the last `count` results begin that `filter` lets through (and [`WINDOW`] at most): 0 if
    /// there are no more than that.
    pub async fn before_last(&self, filter: &Filter, count: usize) -> Result<i64, StoreError> {
        let (mut left, mut after) = (count.clamp(1, WINDOW as usize), None);
        loop {
            let page = self.results_page(filter, after, Order::Newest, left.min(PAGE)).await?;
            left -= page.rows.len().min(left);
            match (page.rows.last(), page.next) {
                (Some(last), _) if left == 0 => return Ok(last.revision - 1),
                (_, Some(next)) => after = Some(next),
                (_, None) => return Ok(0),
            }
        }
    }
}

/// Results in one read of those that are only counted.
const PAGE: usize = 100;

fn events(conn: &Connection, filter: &Filter, after: i64, max_rows: usize) -> Result<Events> {
    let page = results_page(conn, filter, Some(after), Order::Oldest, max_rows, WINDOW)?;
    let mut reached = page.next.unwrap_or(page.latest).max(after);
    // Notes never move, so those up to where the page came are the same now as when it was read.
    let notes = annotations::list(conn, &AnnotationFilter::from(filter), Some(after), Order::Oldest, max_rows + 1)?;
    let mut notes: Vec<Annotation> = notes.into_iter().filter(|note| note.revision <= reached).collect();
    if notes.len() > max_rows {
        notes.truncate(max_rows);
        reached = notes.last().map_or(reached, |note| note.revision);
    }
    let mut events = Vec::with_capacity(page.rows.len() + notes.len());
    for row in page.rows.into_iter().filter(|row| row.revision <= reached) {
        let first_revision = first_revision(conn, &row)?;
        events.push(Event::Result { row: Box::new(row), first_revision });
    }
    events.extend(notes.into_iter().map(|note| Event::Annotation(Box::new(note))));
    events.sort_by_key(Event::revision);
    Ok(Events { events, reached, latest: page.latest })
}

/// Where the row was stored first. It never changes, so that a row which has moved on since it was read is no matter.
fn first_revision(conn: &Connection, row: &ResultRow) -> Result<i64> {
    let id: &RunId = &row.measurement.id;
    let first: Option<Option<i64>> = conn
        .prepare_cached("SELECT first_revision FROM result WHERE id = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()?;
    Ok(first.flatten().filter(|_| row.imported.is_none()).unwrap_or(row.revision))
}
