use super::*;

#[tokio::test]
async fn a_slot_is_begun_once_and_finished_once() {
    let folder = Folder::new();
    let store = folder.open();
    store.begin_slot(slot(10), grid(), UnixMicros(11)).await.unwrap();
    assert_eq!(store.begin_slot(slot(10), grid(), UnixMicros(12)).await, Err(StoreError::SlotTaken(slot(10))));
    assert_eq!(store.record_slots(skipped(10), grid()).await, Ok(0));
    let running = store.reader().last_slot("small").await.unwrap().unwrap();
    assert_eq!((running.state, running.started, running.ended), (SlotState::Running, Some(UnixMicros(11)), None));

    let finish = |results| store.finish_slot(slot(10), SlotState::Done, None, UnixMicros(13), results);
    assert_eq!(finish(vec![new_result(1), new_result(2)]).await, Ok(vec![1, 2]));
    assert_eq!(finish(vec![new_result(3)]).await, Err(StoreError::SlotNotRunning(slot(10))));
    let done = store.reader().last_slot("small").await.unwrap().unwrap();
    assert_eq!((done.state, done.ended), (SlotState::Done, Some(UnixMicros(13))));
    assert_eq!(store.reader().latest_revision().await, Ok(2));
    let whole = store.reader().result(&new_result(2).measurement.id).await.unwrap().unwrap();
    assert_eq!(whole.configuration.as_deref(), Some("the configuration"));
}

#[tokio::test]
async fn what_a_dead_perfd_left_running_is_aborted() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 1, new_result(1)).await.unwrap();
    store.begin_slot(slot(2), grid(), UnixMicros(2)).await.unwrap();
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
        let count = row.count;
        assert_eq!(store.record_slots(row, grid()).await, Ok(count));
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
async fn a_slot_that_was_missed_may_come_due_after_all() {
    let folder = Folder::new();
    let store = folder.open();
    for row in [missed(100, 100, 1), missed(300, 700, 5), skipped(1100)] {
        store.record_slots(row, grid()).await.unwrap();
    }
    for planned in [300, 500, 100] {
        measure(&store, planned, new_result(planned as u128)).await.unwrap();
    }
    for taken in [500, 1100] {
        let begun = store.begin_slot(slot(taken), grid(), UnixMicros(taken)).await;
        assert_eq!(begun, Err(StoreError::SlotTaken(slot(taken))));
    }
    assert_eq!(
        ledger(&store).await,
        ["done 100", "done 300", "missed 400", "done 500", "missed 600-700", "skipped 1100"]
    );
    let counts = store.reader().slot_counts("small").await.unwrap();
    assert_eq!(counts, SlotCounts { done: 3, missed: 3, skipped: 1, ..SlotCounts::default() });
}

#[tokio::test]
async fn a_gap_leaves_what_is_in_the_ledger_as_it_is() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 300, new_result(1)).await.unwrap();
    for row in [skipped(500), missed(600, 700, 2)] {
        store.record_slots(row, grid()).await.unwrap();
    }
    let other = SlotRow { experiment: "other".to_owned(), ..missed(100, 900, 9) };
    assert_eq!(store.record_slots(other, grid()).await, Ok(9));
    assert_eq!(store.record_slots(missed(100, 1000, 10), grid()).await, Ok(6));
    assert_eq!(store.record_slots(missed(100, 1000, 10), grid()).await, Ok(0));
    let expected = ["missed 100-200", "done 300", "missed 400", "skipped 500", "missed 600-700", "missed 800-1000"];
    assert_eq!(ledger(&store).await, expected);
    let counts = store.reader().slot_counts("small").await.unwrap();
    assert_eq!(counts, SlotCounts { done: 1, missed: 8, skipped: 1, ..SlotCounts::default() });
}

/// The ledger of the experiment `small`: state and slots, a line each.
async fn ledger(store: &Store) -> Vec<String> {
    let rows = store.reader().slots_between("small", UnixMicros(0), UnixMicros(99_999), 100).await.unwrap();
    let line = |row: &SlotRow| {
        let last = if row.count > 1 { format!("-{}", row.planned_last.0) } else { String::new() };
        format!("{} {}{last}", row.state.as_str(), row.planned.0)
    };
    rows.iter().map(line).collect()
}

/// SQLite may have committed what it called failed; found done on the second try, it is done.
#[test]
fn an_operation_that_was_committed_unnoticed_is_not_refused_when_tried_again() {
    use operation::{Fault, apply};
    let mut conn = Connection::open_in_memory().unwrap();
    schema::migrations().to_latest(&mut conn).unwrap();
    let begin = Operation::BeginSlot { slot: slot(1), grid: grid(), started: UnixMicros(2) };
    let results = vec![new_result(1), new_result(2)];
    let (state, ended) = (SlotState::Done, UnixMicros(3));
    let finish = Operation::FinishSlot(Finish { slot: slot(1), state, reason: None, ended, results });
    for (operation, done) in [(begin, Done::Nothing), (finish, Done::Revisions(vec![1, 2]))] {
        assert_eq!(apply(&conn, &operation, false).unwrap(), done);
        assert!(matches!(apply(&conn, &operation, false), Err(Fault::Request(_))));
        assert_eq!(apply(&conn, &operation, true).unwrap(), done);
    }
    let data = Box::new(crate::test_support::circuit::example_circuit());
    let complete = Operation::CompleteRun { id: RunId::from_bits(1), data, evidence: Evidence("a line\n".to_owned()) };
    for (again, revision) in [(false, Some(3)), (true, Some(3)), (false, None)] {
        assert_eq!(apply(&conn, &complete, again).unwrap(), Done::Revision(revision));
    }
}

/// Slots by day, as statistics count them: the ledger's rows, each split by its grid.
#[tokio::test]
async fn slots_are_counted_by_the_day_on_which_they_were_planned() {
    const DAY: i64 = 86_400_000_000;
    let folder = Folder::new();
    let store = folder.open();
    let grid = Grid::new(Duration::from_micros(DAY as u64 / 4), Duration::from_micros(10));
    let row = |planned: i64, last: i64, count, state| SlotRow {
        planned_last: UnixMicros(last),
        count,
        state,
        ..skipped(planned)
    };
    // Four a day, at 10 µs after midnight, 6, 12 and 18 o'clock; the gap is from the second of day -2 to the first of 3.
    let gap = row(-2 * DAY + DAY / 4 + 10, 3 * DAY + 10, 20, SlotState::Missed);
    assert_eq!(store.record_slots(gap, grid).await, Ok(20));
    assert_eq!(store.record_slots(row(-3 * DAY, -3 * DAY, 1, SlotState::Skipped), grid).await, Ok(1));
    assert_eq!(store.record_slots(row(-3 * DAY - 1, -3 * DAY - 1, 1, SlotState::Skipped), grid).await, Ok(1));
    let days = || {
        let conn = folder.other();
        let mut statement =
            conn.prepare("SELECT day || state || slots FROM slot_day WHERE slots <> 0 ORDER BY day, state").unwrap();
        let rows = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.collect::<Result<Vec<_>, _>>().unwrap().join(" ")
    };
    assert_eq!(days(), "-4skipped1 -3skipped1 -2missed3 -1missed4 0missed4 1missed4 2missed4 3missed1");
    // One of the gap is run after all, and another one is cut off.
    let begin = |planned| store.begin_slot(slot(planned), grid, UnixMicros(planned));
    begin(DAY + 10).await.unwrap();
    begin(2 * DAY + 10).await.unwrap();
    assert_eq!(
        days(),
        "-4skipped1 -3skipped1 -2missed3 -1missed4 0missed4 1missed3 1running1 2missed3 2running1 3missed1"
    );
    store.finish_slot(slot(DAY + 10), SlotState::Done, None, UnixMicros(5 * DAY), vec![]).await.unwrap();
    store.abort_unfinished(UnixMicros(6 * DAY)).await.unwrap();
    let split = days();
    assert_eq!(split, "-4skipped1 -3skipped1 -2missed3 -1missed4 0missed4 1done1 1missed3 2aborted1 2missed3 3missed1");
    drop(store);
    // A ledger of before is counted in the same way.
    let conn = folder.other();
    conn.execute_batch("DELETE FROM slot_day").unwrap();
    conn.execute_batch(schema::SLOTS_INTO_DAYS).unwrap();
    assert_eq!(days(), split);
}
