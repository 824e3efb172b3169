use super::*;

#[tokio::test]
async fn a_slot_is_begun_once_and_finished_once() {
    let folder = Folder::new();
    let store = folder.open();
    store.begin_slot(slot(10), UnixMicros(11)).await.unwrap();
    assert_eq!(store.begin_slot(slot(10), UnixMicros(12)).await, Err(StoreError::SlotTaken(slot(10))));
    assert_eq!(store.record_slots(skipped(10)).await, Ok(false));
    let running = store.reader().last_slot("small").await.unwrap().unwrap();
    assert_eq!((running.state, running.started, running.ended), (SlotState::Running, Some(UnixMicros(11)), None));

    let finish = |results| store.finish_slot(slot(10), SlotState::Done, None, UnixMicros(13), results);
    assert_eq!(finish(vec![new_result(1), new_result(2)]).await, Ok(vec![1, 2]));
    assert_eq!(finish(vec![new_result(3)]).await, Err(StoreError::SlotNotRunning(slot(10))));
    let done = store.reader().last_slot("small").await.unwrap().unwrap();
    assert_eq!((done.state, done.ended), (SlotState::Done, Some(UnixMicros(13))));
    assert_eq!(store.reader().latest_revision().await, Ok(2));
    let (_, configuration) = store.reader().result(&new_result(2).measurement.id).await.unwrap().unwrap();
    assert_eq!(configuration, "the configuration");
}

#[tokio::test]
async fn what_a_dead_perfd_left_running_is_aborted() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 1, new_result(1)).await.unwrap();
    store.begin_slot(slot(2), UnixMicros(2)).await.unwrap();
    drop(store);
    let store = folder.open();
    assert_eq!(store.abort_unfinished(UnixMicros(9)).await, Ok(1));
    assert_eq!(store.abort_unfinished(UnixMicros(9)).await, Ok(0));
    let last = store.reader().last_slot("small").await.unwrap().unwrap();
    assert_eq!((last.state, last.reason), (SlotState::Aborted, Some(SlotReason::Died)));
    assert_eq!(last.ended, Some(UnixMicros(9)));
}

#[tokio::test]
async fn slots_are_counted_and_listed_with_their_gaps() {
    let folder = Folder::new();
    let store = folder.open();
    let gap = missed(100, 400, 4);
    for row in [skipped(50), gap.clone(), skipped(500)] {
        assert_eq!(store.record_slots(row).await, Ok(true));
    }
    measure(&store, 600, new_result(1)).await.unwrap();
    let reader = store.reader();
    let counts = reader.slot_counts("small").await.unwrap();
    assert_eq!(counts, SlotCounts { done: 1, skipped: 2, missed: 4, ..SlotCounts::default() });
    assert_eq!(reader.slot_counts("other").await.unwrap(), SlotCounts::default());
    let planned = async |from, until, limit| -> Vec<i64> {
        let rows = reader.slots_between("small", UnixMicros(from), UnixMicros(until), limit).await.unwrap();
        rows.iter().map(|row| row.planned.0).collect()
    };
    assert_eq!(planned(0, 1000, 10).await, [50, 100, 500, 600]);
    assert_eq!(planned(0, 1000, 2).await, [50, 100]);
    assert_eq!(planned(400, 600, 10).await, [100, 500]);
    assert_eq!(planned(401, 500, 10).await, [0i64; 0]);
    assert_eq!(planned(200, 201, 10).await, [100]);
}

#[tokio::test]
async fn slots_that_a_wrong_clock_missed_are_to_come_again() {
    let folder = Folder::new();
    let store = folder.open();
    let grid = Grid::new(Duration::from_micros(100), Duration::ZERO);
    for row in [missed(100, 100, 1), missed(300, 700, 5), missed(900, 1000, 2), skipped(1100)] {
        store.record_slots(row).await.unwrap();
    }
    let other = SlotRow { experiment: "other".to_owned(), ..missed(900, 900, 1) };
    store.record_slots(other).await.unwrap();
    assert_eq!(store.forget_missed_after("small", &grid, UnixMicros(550)).await, Ok(4));
    assert_eq!(store.forget_missed_after("small", &grid, UnixMicros(550)).await, Ok(0));
    let reader = store.reader();
    let rows = reader.slots_between("small", UnixMicros(0), UnixMicros(9999), 10).await.unwrap();
    assert_eq!(rows, [missed(100, 100, 1), missed(300, 500, 3), skipped(1100)]);
    let counts = reader.slot_counts("small").await.unwrap();
    assert_eq!(counts, SlotCounts { missed: 4, skipped: 1, ..SlotCounts::default() });
    assert_eq!(reader.slot_counts("other").await.unwrap().missed, 1);
}

/// SQLite may have committed what it called failed; found done on the second try, it is done.
#[test]
fn an_operation_that_was_committed_unnoticed_is_not_refused_when_tried_again() {
    use operation::{Fault, apply};
    let mut conn = Connection::open_in_memory().unwrap();
    schema::migrations().to_latest(&mut conn).unwrap();
    let begin = Operation::BeginSlot { slot: slot(1), started: UnixMicros(2) };
    let results = vec![new_result(1), new_result(2)];
    let (state, ended) = (SlotState::Done, UnixMicros(3));
    let finish = Operation::FinishSlot(Finish { slot: slot(1), state, reason: None, ended, results });
    for (operation, done) in [(begin, Done::Nothing), (finish, Done::Revisions(vec![1, 2]))] {
        assert_eq!(apply(&conn, &operation, false).unwrap(), done);
        assert!(matches!(apply(&conn, &operation, false), Err(Fault::Request(_))));
        assert_eq!(apply(&conn, &operation, true).unwrap(), done);
    }
}
