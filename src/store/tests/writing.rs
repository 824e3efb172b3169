use std::sync::atomic::AtomicI64;

use futures_util::future::{join, join_all};
use futures_util::poll;

use super::*;

/// Takes the write lock, as a careless tool would.
fn lock(folder: &Folder) -> Connection {
    let other = folder.other();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    other
}

#[tokio::test]
async fn what_waits_is_written_in_one_transaction_and_acknowledged_after_it() {
    let folder = Folder::new();
    let store = folder.open();
    let locked = lock(&folder);
    let mut all = Box::pin(join_all((0..100).map(|planned| store.record_slots(skipped(planned), grid()))));
    assert!(poll!(&mut all).is_pending());
    assert!(red(&store).await.contains("locked"));
    assert!(poll!(&mut all).is_pending());
    assert_eq!((store.transactions(), count(&folder.other(), "slot")), (0, 0));
    locked.execute_batch("ROLLBACK").unwrap();
    assert!(all.await.into_iter().all(|added| added == Ok(1)));
    assert_eq!((store.transactions(), count(&folder.other(), "slot")), (1, 100));
    green(&store).await;
}

#[tokio::test]
async fn health_turns_green_by_itself_when_nobody_writes() {
    let folder = Folder::new();
    let store = folder.open();
    let locked = lock(&folder);
    // Taken back before it was written: the slot is free afterwards.
    let mut begin = Box::pin(store.begin_slot(slot(1), grid(), UnixMicros(1)));
    assert!(poll!(&mut begin).is_pending());
    red(&store).await;
    drop(begin);
    drop(locked);
    green(&store).await;
    store.begin_slot(slot(1), grid(), UnixMicros(2)).await.unwrap();
}

#[tokio::test]
async fn only_the_caller_of_a_bad_request_hears_of_it() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 1, new_result(1)).await.unwrap();
    store.begin_slot(slot(2), grid(), UnixMicros(2)).await.unwrap();
    let locked = lock(&folder);
    let again = store.finish_slot(slot(2), SlotState::Done, None, UnixMicros(3), vec![new_result(2), new_result(1)]);
    let bad_count = store.record_slots(missed(3, 3, 0), grid());
    let too_large = store.record_slots(missed(4, 5, u64::MAX), grid());
    let good = store.record_slots(skipped(5), grid());
    let all = async { tokio::join!(again, bad_count, too_large, good) };
    let release = async {
        red(&store).await;
        drop(locked);
    };
    let ((again, bad_count, too_large, good), ()) = join(all, release).await;
    assert!(matches!(again, Err(StoreError::Refused(_))), "{again:?}");
    assert!(matches!(bad_count, Err(StoreError::Refused(_))), "{bad_count:?}");
    assert!(matches!(too_large, Err(StoreError::Refused(_))), "{too_large:?}");
    assert_eq!(good, Ok(1));
    green(&store).await;
    // All or nothing: the slot is still running, and the first of its results was not kept.
    assert_eq!(count(&folder.other(), "result"), 1);
    let revisions = store.finish_slot(slot(2), SlotState::Done, None, UnixMicros(3), vec![new_result(2)]).await;
    assert!(revisions.unwrap()[0] > 1);
}

#[tokio::test]
async fn a_full_disk_holds_results_up_and_loses_none() {
    let folder = Folder::new();
    let pages = Arc::new(AtomicI64::new(i64::from(i32::MAX)));
    let limit = Arc::clone(&pages);
    let hook = move |conn: &Connection| {
        conn.pragma_update_and_check(None, "max_page_count", limit.load(Ordering::SeqCst), |_| Ok(())).unwrap();
    };
    let store = folder.open_with(StoreOptions { before_transaction: Some(Arc::new(hook)), ..quick() });
    store.begin_slot(slot(1), grid(), UnixMicros(1)).await.unwrap();
    pages.store(1, Ordering::SeqCst);
    let mut large = new_result(1);
    large.configuration = "x".repeat(100_000);
    let mut finish = Box::pin(store.finish_slot(slot(1), SlotState::Done, None, UnixMicros(2), vec![large]));
    assert!(poll!(&mut finish).is_pending());
    assert!(red(&store).await.contains("full"));
    assert!(poll!(&mut finish).is_pending());
    pages.store(i64::from(i32::MAX), Ordering::SeqCst);
    assert_eq!(finish.await, Ok(vec![1]));
    green(&store).await;
}

#[tokio::test]
async fn a_file_that_was_moved_away_or_replaced_is_not_written_to() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 1, new_result(1)).await.unwrap();
    let aside = folder.0.path().join("aside");
    std::fs::rename(folder.file(), &aside).unwrap();
    let mut waiting = Box::pin(store.record_slots(skipped(2), grid()));
    assert!(poll!(&mut waiting).is_pending());
    assert!(red(&store).await.contains("moved away"));
    assert!(!folder.file().exists());
    std::fs::write(folder.file(), "").unwrap();
    assert!(poll!(&mut waiting).is_pending());
    assert_eq!(std::fs::read(folder.file()).unwrap(), b"");
    std::fs::rename(&aside, folder.file()).unwrap();
    assert_eq!(waiting.await, Ok(1));
    green(&store).await;
}

#[tokio::test]
async fn a_connection_that_broke_is_opened_anew() {
    let folder = Folder::new();
    let broken = Arc::new(AtomicI64::new(0));
    let times = Arc::clone(&broken);
    // A read-only connection fails as a file system does that was remounted after an error.
    let hook = move |conn: &Connection| {
        if times.fetch_add(1, Ordering::SeqCst) == 1 {
            conn.pragma_update(None, "query_only", true).unwrap();
        }
    };
    let store = folder.open_with(StoreOptions { before_transaction: Some(Arc::new(hook)), ..quick() });
    store.begin_slot(slot(1), grid(), UnixMicros(1)).await.unwrap();
    let health = store.health();
    assert_eq!(store.record_slots(skipped(2), grid()).await, Ok(1));
    assert!(health.has_changed().unwrap());
    green(&store).await;
    assert_eq!(broken.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn closing_commits_what_waits() {
    let folder = Folder::new();
    let store = folder.open();
    let mut all = Box::pin(join_all((0..100).map(|planned| store.record_slots(skipped(planned), grid()))));
    assert!(poll!(&mut all).is_pending());
    store.close(Duration::from_secs(5)).await.unwrap();
    assert!(all.await.into_iter().all(|added| added == Ok(1)));
    assert_eq!(count(&folder.other(), "slot"), 100);
    assert_eq!(store.record_slots(skipped(900), grid()).await, Err(StoreError::Closed));
    store.close(Duration::ZERO).await.unwrap();
}

/// More callers than tokio polls in one go: some have their place in the queue, but are not in it yet.
#[tokio::test]
async fn closing_keeps_no_caller_waiting() {
    let folder = Folder::new();
    let store = folder.open();
    let mut all = Box::pin(join_all((0..500).map(|planned| store.record_slots(skipped(planned), grid()))));
    assert!(poll!(&mut all).is_pending());
    store.close(Duration::from_secs(5)).await.unwrap();
    let all = all.await;
    let written = all.iter().filter(|added| **added == Ok(1)).count();
    assert_eq!(count(&folder.other(), "slot"), written as i64);
    assert!(all.iter().all(|added| matches!(added, Ok(1) | Err(StoreError::Closed))));
}

#[tokio::test]
async fn closing_a_store_that_fails_gives_up_at_its_deadline() {
    let folder = Folder::new();
    let store = folder.open_with(StoreOptions { last_pause: Duration::from_secs(3600), ..quick() });
    let locked = lock(&folder);
    let waiting = store.record_slots(skipped(1), grid());
    let close = async {
        red(&store).await;
        store.close(Duration::from_millis(20)).await
    };
    let (waiting, closed) = join(waiting, close).await;
    assert!(matches!(waiting, Err(StoreError::Failing(_))), "{waiting:?}");
    assert!(matches!(closed, Err(StoreError::Failing(_))), "{closed:?}");
    drop(locked);
    assert_eq!(count(&folder.other(), "slot"), 0);
}

#[tokio::test]
async fn a_full_queue_makes_callers_wait_and_loses_nobody() {
    let folder = Folder::new();
    let store = folder.open_with(StoreOptions { queue: 2, batch: 3, ..quick() });
    let locked = lock(&folder);
    let all = join_all((0..50).map(|planned| store.record_slots(skipped(planned), grid())));
    let release = async {
        red(&store).await;
        drop(locked);
    };
    let (all, ()) = join(all, release).await;
    assert!(all.into_iter().all(|added| added == Ok(1)));
    assert_eq!(count(&folder.other(), "slot"), 50);
}

#[tokio::test]
async fn results_of_a_slot_that_goes_on_are_there_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s")).unwrap();
    let early = store.add_result(slot(0), new_result(1)).await;
    assert_eq!(early, Err(StoreError::SlotNotRunning(slot(0))), "it has not begun");
    store.begin_slot(slot(0), grid(), UnixMicros(0)).await.unwrap();
    store.add_result(slot(0), new_result(1)).await.unwrap();
    assert_eq!(store.reader().latest_revision().await, Ok(1));
    assert!(matches!(store.add_result(slot(0), new_result(1)).await, Err(StoreError::Refused(_))), "it is there");
    store.finish_slot(slot(0), SlotState::Done, None, UnixMicros(1), vec![new_result(2)]).await.unwrap();
    let late = store.add_result(slot(0), new_result(3)).await;
    assert_eq!(late, Err(StoreError::SlotNotRunning(slot(0))), "it has ended");
    let page = store.reader().results_page(&Filter::default(), None, Order::Oldest, 10).await.unwrap();
    assert_eq!(page.rows.len(), 2);
}
