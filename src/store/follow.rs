//! What followers of the store are told: results by revision, each with whether it was stored before.

use rusqlite::{Connection, OptionalExtension, Result};

use super::query::{Filter, Order, WINDOW, results_page};
use super::{StoreError, StoreReader};
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
        }
    }
}

impl StoreReader {
    /// What happened after the revision `after`, in the order of revisions, at most `max_rows` results (1 to
    /// [`WINDOW`]). A page may be empty before the end is reached, as those of
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
    let reached = page.next.unwrap_or(page.latest).max(after);
    let rows = page.rows.into_iter().map(|row| {
        let first_revision = first_revision(conn, &row)?;
        Ok(Event::Result { row: Box::new(row), first_revision })
    });
    Ok(Events { events: rows.collect::<Result<_>>()?, reached, latest: page.latest })
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
