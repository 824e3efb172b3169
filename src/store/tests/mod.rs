//! Tests of the store as a whole, on files in temporary folders.

mod bulk;
mod completing;
mod importing;
mod migrating;
mod opening;
mod reading;
mod rolling;
mod slots;
mod statistics;
mod writing;

use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::measurement::{Outcome, RunId};
use crate::test_support::{example_result as new_result, example_row};

/// A folder for one store, removed at the end.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("perfd.db")
    }

    /// A store that tries again at once, for tests that make it fail.
    fn open(&self) -> Store {
        self.open_with(quick())
    }

    fn open_with(&self, options: StoreOptions) -> Store {
        Store::open_with(&self.file(), options).unwrap()
    }

    /// Another program's connection to the same file.
    fn other(&self) -> Connection {
        Connection::open(self.file()).unwrap()
    }
}

const PATIENCE: Duration = Duration::from_secs(30);

fn quick() -> StoreOptions {
    StoreOptions {
        busy_timeout: Duration::from_millis(2),
        first_pause: Duration::from_millis(2),
        last_pause: Duration::from_millis(8),
        ..StoreOptions::default()
    }
}

async fn red(store: &Store) -> String {
    let mut health = store.health();
    let failing = health.wait_for(|health| *health != StoreHealth::Ok);
    match &*tokio::time::timeout(PATIENCE, failing).await.unwrap().unwrap() {
        StoreHealth::Failing { error, .. } => error.clone(),
        StoreHealth::Ok => unreachable!(),
    }
}

async fn green(store: &Store) {
    let mut health = store.health();
    tokio::time::timeout(PATIENCE, health.wait_for(|health| *health == StoreHealth::Ok)).await.unwrap().unwrap();
}

/// A slot every 100 µs.
fn grid() -> Grid {
    Grid::new(Duration::from_micros(100), Duration::ZERO)
}

fn slot(planned: i64) -> SlotId {
    SlotId { experiment: "small".to_owned(), planned: UnixMicros(planned) }
}

fn skipped(planned: i64) -> SlotRow {
    SlotRow {
        experiment: "small".to_owned(),
        planned: UnixMicros(planned),
        planned_last: UnixMicros(planned),
        count: 1,
        state: SlotState::Skipped,
        reason: Some(SlotReason::Busy),
        started: None,
        ended: None,
    }
}

fn missed(first: i64, last: i64, count: u64) -> SlotRow {
    SlotRow { planned_last: UnixMicros(last), count, state: SlotState::Missed, reason: None, ..skipped(first) }
}

/// Begins and finishes a slot with one result.
async fn measure(store: &Store, planned: i64, new: NewResult) -> Result<i64, StoreError> {
    store.begin_slot(slot(planned), grid(), UnixMicros(planned)).await?;
    let ended = UnixMicros(planned + 1);
    Ok(store.finish_slot(slot(planned), SlotState::Done, None, ended, vec![new]).await?[0])
}

fn count(conn: &Connection, table: &str) -> i64 {
    conn.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}
