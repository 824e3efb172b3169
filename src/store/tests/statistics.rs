//! The thread that statistics are made in.

use super::*;

const FOREVER: &str = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n";

fn forever(reading: &Reading<'_>) -> rusqlite::Result<i64> {
    reading.conn().query_row(FOREVER, [], |row| row.get(0))
}

#[tokio::test]
async fn a_question_is_cut_off_inside_sqlite_at_its_deadline_and_the_next_is_answered() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 1, new_result(1)).await.unwrap();
    let statistics = store.statistics();
    let short = Duration::from_millis(50);
    assert_eq!(statistics.ask(short, forever).await, Err(StoreError::Overdue));
    let series = statistics.ask(PATIENCE, |reading| reading.series(&Filter::default())).await.unwrap();
    assert_eq!((series.len(), series[0].own), (1, true));
    // One that comes to its turn too late is not begun.
    let (long, late) = tokio::join!(
        statistics.ask(Duration::from_millis(200), forever),
        statistics.ask(Duration::from_millis(50), |_| Ok(0))
    );
    assert_eq!((long, late), (Err(StoreError::Overdue), Err(StoreError::Overdue)));
    let failed = statistics.ask(PATIENCE, |reading| reading.conn().execute("DELETE FROM result", []));
    assert!(matches!(failed.await, Err(StoreError::Unreadable(_))), "it can't write");
    assert_eq!(statistics.ask(PATIENCE, |_| Ok(7)).await, Ok(7));
}

#[tokio::test]
async fn who_goes_away_holds_up_nobody_and_closing_ends_what_is_under_way() {
    let folder = Folder::new();
    let store = folder.open();
    let statistics = store.statistics().clone();
    let mut gone = Box::pin(statistics.ask(PATIENCE * 10, forever));
    assert!(futures_util::poll!(gone.as_mut()).is_pending());
    drop(gone);
    assert_eq!(statistics.ask(PATIENCE, |_| Ok(1)).await, Ok(1));
    let under_way = {
        let statistics = statistics.clone();
        tokio::spawn(async move { statistics.ask(PATIENCE * 10, forever).await })
    };
    tokio::task::yield_now().await;
    tokio::time::timeout(PATIENCE, store.close(PATIENCE)).await.unwrap().unwrap();
    assert!(tokio::time::timeout(PATIENCE, under_way).await.unwrap().unwrap().is_err());
    assert_eq!(statistics.ask(PATIENCE, |_| Ok(1)).await, Err(StoreError::Closed));
    assert!(!folder.0.path().join("perfd.db-wal").exists(), "the writer's connection was the last");
}
