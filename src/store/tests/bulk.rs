//! A store that was filled in bulk is the same as one that was written in service.

use super::*;
use crate::slot::{Grid, SlotId, SlotRow, SlotState};
use crate::store::{Bulk, NewResult};

#[tokio::test]
async fn bulk_stores_what_the_service_stores() {
    let folder = tempfile::tempdir().unwrap();
    let (filled, served) = (folder.path().join("filled.sqlite"), folder.path().join("served.sqlite"));
    let mut results: Vec<NewResult> = (1..=3).map(new_result).collect();
    for (slot, result) in (0..).zip(&mut results) {
        result.planned = UnixMicros(result.planned.0 + slot * 300_000_000);
    }
    results[2].configuration = "another configuration".to_owned();
    let ended = |result: &NewResult| UnixMicros(result.planned.0 + 1_600_000);

    let store = Store::open(&served).unwrap();
    let mut bulk = Bulk::open(&filled, 1 << 20).unwrap();
    for result in &results {
        let slot = SlotId { experiment: result.experiment.clone(), planned: result.planned };
        let grid = Grid::new(Duration::from_secs(300), Duration::ZERO);
        store.begin_slot(slot.clone(), grid, result.planned).await.unwrap();
        store.finish_slot(slot, SlotState::Done, None, ended(result), vec![result.clone()]).await.unwrap();
        let row = SlotRow {
            experiment: result.experiment.clone(),
            planned: result.planned,
            planned_last: result.planned,
            count: 1,
            state: SlotState::Done,
            reason: None,
            started: Some(result.planned),
            ended: Some(ended(result)),
        };
        bulk.put(&row, std::slice::from_ref(result)).unwrap();
    }
    bulk.finish().unwrap();
    store.close(Duration::from_secs(10)).await.unwrap();
    assert_eq!(everything(&filled), everything(&served));
    let reopened = Store::open(&filled).unwrap();
    assert_eq!(reopened.reader().latest_revision().await.unwrap(), 3);
}

/// Each row of each table, as text.
fn everything(path: &std::path::Path) -> Vec<String> {
    let conn = rusqlite::Connection::open(path).unwrap();
    let mut tables = conn.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name").unwrap();
    let tables: Vec<String> = tables.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap();
    let mut rows = Vec::new();
    for table in tables {
        let mut statement = conn.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = statement.column_count();
        let mut found = statement.query([]).unwrap();
        while let Some(row) = found.next().unwrap() {
            let values: Vec<_> = (0..columns).map(|i| row.get::<_, rusqlite::types::Value>(i).unwrap()).collect();
            // A running slot was counted, and then was no more.
            if values.last() != Some(&rusqlite::types::Value::Integer(0)) {
                rows.push(format!("{table} {values:?}"));
            }
        }
    }
    rows.sort();
    rows
}
