use std::sync::mpsc;

use proptest::prelude::*;

use super::operation::apply;
use super::*;
use crate::circuit::Evidence;
use crate::export::torperf;
use crate::measurement::{Cause, Curve, Failure, Kind, Outcome, Phase, ResultRow};
use crate::test_support::result_row;

fn in_memory() -> Connection {
    let mut conn = Connection::open_in_memory().unwrap();
    schema::migrations().to_latest(&mut conn).unwrap();
    conn
}

pub(super) fn insert(conn: &Connection, planned: i64, new: NewResult) -> i64 {
    let begin = Operation::BeginSlot { slot: slot(planned), grid: grid(), started: UnixMicros(planned) };
    apply(conn, &begin, false).unwrap();
    let (state, ended) = (SlotState::Done, UnixMicros(planned));
    let finish = Finish { slot: slot(planned), state, reason: None, ended, results: vec![new] };
    match apply(conn, &Operation::FinishSlot(finish), false).unwrap() {
        Done::Revisions(revisions) => revisions[0],
        other => panic!("{other:?}"),
    }
}

fn new_of(row: &ResultRow, configuration: &str, evidence: &str) -> NewResult {
    NewResult {
        source: row.source.clone(),
        experiment: row.experiment.clone(),
        tor: row.tor.clone(),
        planned: row.planned.unwrap(),
        configuration: configuration.to_owned(),
        version: row.version.clone().unwrap(),
        server: row.server,
        place: row.place,
        measurement: row.measurement.clone(),
        circuit: row.circuit.clone().map(|data| (data, Evidence(evidence.to_owned()))),
    }
}

/// One of a few rows that filters tell apart.
pub(super) fn varied(id: i64, kind: u8) -> NewResult {
    let mut new = new_result(id as u128);
    new.experiment = ["small", "large"][usize::from(kind & 1)].to_owned();
    new.source = ["op-a", "op-b"][usize::from(kind >> 1 & 1)].to_owned();
    new.tor = ["tor-a", "tor-b"][usize::from(kind >> 1 & 1)].to_owned();
    new.measurement.size = [1, 2][usize::from(kind >> 2 & 1)];
    new.measurement.kind = [Kind::Download, Kind::Upload][usize::from(kind >> 3 & 1)];
    new.server = [ServerKind::Exit, ServerKind::Onion, ServerKind::SingleOnion][usize::from(kind % 3)];
    new.measurement.start = UnixMicros(i64::from(kind >> 4));
    if kind & 8 != 0 {
        new.measurement.outcome = Outcome::Timeout(Phase::Response);
    }
    new
}

pub(super) fn filter() -> impl Strategy<Value = Filter> {
    let maybe = |words: &'static [&str]| prop::option::of(prop::sample::select(words).prop_map(str::to_owned));
    let time = || prop::option::of((0i64..17).prop_map(UnixMicros));
    let size = prop::option::of(1u64..3);
    let kind = prop::option::of(prop::sample::select(vec![Kind::Download, Kind::Upload]));
    let server = prop::option::of(prop::sample::select(vec![ServerKind::Exit, ServerKind::Onion]));
    let names = (maybe(&["op-a", "op-b"]), maybe(&["small", "large"]), maybe(&["tor-a", "tor-b"]));
    let imported = prop::option::of(any::<bool>());
    (names, kind, server, size, maybe(&["complete", "timeout"]), time(), time(), imported).prop_map(
        |((source, experiment, tor), kind, server, size, outcome, since, until, imported)| Filter {
            source,
            experiment,
            tor,
            kind,
            server,
            size,
            outcome,
            since,
            until,
            tag: None,
            imported,
        },
    )
}

pub(super) fn lets_through(filter: &Filter, new: &NewResult) -> bool {
    let run = &new.measurement;
    filter.source.as_ref().is_none_or(|source| *source == new.source)
        && filter.experiment.as_ref().is_none_or(|experiment| *experiment == new.experiment)
        && filter.tor.as_ref().is_none_or(|tor| *tor == new.tor)
        && filter.kind.is_none_or(|kind| kind == run.kind)
        && filter.server.is_none_or(|server| server == new.server)
        && filter.size.is_none_or(|size| size == run.size)
        && filter.outcome.as_ref().is_none_or(|outcome| outcome == run.outcome.word())
        && filter.since.is_none_or(|since| run.start >= since)
        && filter.until.is_none_or(|until| run.start < until)
}

proptest! {
    #[test]
    fn the_keys_of_a_circuit_are_those_of_all_that_is_known_of_it(rows in prop::collection::vec(result_row(), 1..5)) {
        let conn = in_memory();
        for (n, row) in rows.iter().enumerate() {
            let mut new = new_of(row, "", "");
            new.measurement.id = RunId::from_bits(n as u128);
            insert(&conn, n as i64, new);
        }
        let all = (1, rows.len() as i64);
        let whole = query::results_within(&conn, &Filter::default(), all).unwrap();
        let keys = query::results_with_keys(&conn, all).unwrap();
        let lines = |rows: &[ResultRow]| rows.iter().map(torperf::line).collect::<Vec<_>>();
        prop_assert_eq!(lines(&keys), lines(&whole));
        prop_assert_eq!(keys.len(), rows.len());
    }

    #[test]
    fn every_field_of_every_outcome_reads_back(row in result_row(), configuration in ".*", lines in "(?s).{0,200}") {
        let conn = in_memory();
        let revision = insert(&conn, 1, new_of(&row, &configuration, &lines));
        let stored = runs::whole_result(&conn, &row.measurement.id).unwrap();
        let evidence = row.circuit.as_ref().map(|_| lines).filter(|lines| !lines.is_empty());
        let row = ResultRow { revision, configuration: Some(1), ..row };
        let whole = WholeResult { row: row.clone(), configuration: Some(configuration), evidence, slot_mates: Vec::new(), annotations: Vec::new() };
        prop_assert_eq!(stored, Some(whole));
        let page = query::results_page(&conn, &Filter::default(), None, Order::Oldest, 9, WINDOW).unwrap();
        let measurement = Measurement { curve: Curve::new(), ..row.measurement.clone() };
        let in_a_list = ResultRow { measurement, ..row };
        prop_assert_eq!(&page.rows, std::slice::from_ref(&in_a_list));
        let planned = in_a_list.planned.unwrap();
        prop_assert_eq!(runs::results_of_slot(&conn, &in_a_list.experiment, planned).unwrap(), [in_a_list]);
    }

    #[test]
    fn pages_skip_and_repeat_nothing_while_rows_are_added(
        kinds in prop::collection::vec(any::<u8>(), 0..60),
        added in prop::collection::vec(0usize..8, 1..40),
        deleted in prop::collection::vec(1i64..60, 0..5),
        filter in filter(), newest in any::<bool>(), max_rows in 1usize..6, window in 1i64..12,
    ) {
        let filter = Filter { imported: None, ..filter };
        let conn = in_memory();
        let order = if newest { Order::Newest } else { Order::Oldest };
        let mut kinds = kinds.into_iter().enumerate().map(|(id, kind)| (id as i64 + 1, kind));
        let (mut stored, mut steps) = (Vec::new(), added.into_iter().chain(std::iter::repeat(usize::MAX)));
        let mut add = |stored: &mut Vec<(i64, NewResult)>| {
            for (id, kind) in kinds.by_ref().take(steps.next().unwrap()) {
                let new = varied(id, kind);
                stored.push((insert(&conn, id, new.clone()), new));
            }
        };
        add(&mut stored);
        for revision in deleted {
            conn.execute("DELETE FROM result WHERE revision = ?1", [revision]).unwrap();
            stored.retain(|(stored, _)| *stored != revision);
        }
        let begun_with = stored.last().map_or(0, |(revision, _)| *revision);
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = query::results_page(&conn, &filter, after, order, max_rows, window).unwrap();
            prop_assert!(page.rows.len() <= max_rows);
            seen.extend(page.rows.iter().map(|row| row.revision));
            let Some(next) = page.next else { break };
            let onwards = after.is_none_or(|after| (next < after) == newest && next != after);
            prop_assert!(onwards);
            after = Some(next);
            add(&mut stored);
        }
        let mut expected: Vec<i64> = stored.iter().filter(|(_, new)| lets_through(&filter, new)).map(|(r, _)| *r).collect();
        if newest {
            expected.retain(|revision| *revision <= begun_with);
            expected.reverse();
        }
        prop_assert_eq!(seen, expected);
    }
}

#[tokio::test]
async fn a_follower_gets_each_row_once_while_another_task_adds_them() {
    const ROWS: i64 = 150;
    let folder = Folder::new();
    let store = folder.open();
    let writer = store.clone();
    let adding = tokio::spawn(async move {
        for id in 1..=ROWS {
            measure(&writer, id, new_result(id as u128)).await.unwrap();
        }
    });
    let (mut seen, mut after) = (Vec::new(), None);
    while seen.len() < ROWS as usize {
        let page = store.reader().results_page(&Filter::default(), after, Order::Oldest, 7).await.unwrap();
        seen.extend(page.rows.iter().map(|row| row.revision));
        after = Some(page.next.unwrap_or(page.latest));
    }
    adding.await.unwrap();
    assert_eq!(seen, (1..=ROWS).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_revision_is_never_given_twice() {
    let folder = Folder::new();
    let store = folder.open();
    assert_eq!(measure(&store, 1, new_result(1)).await, Ok(1));
    folder.other().execute("DELETE FROM result", []).unwrap();
    assert_eq!(measure(&store, 2, new_result(2)).await, Ok(2));
}

#[tokio::test]
async fn experiments_are_summed_up() {
    let folder = Folder::new();
    let store = folder.open();
    let failure = Failure {
        phase: Phase::Connect,
        cause: Cause::Refused,
        socks_code: None,
        http_status: None,
        detail: String::new(),
    };
    for (id, experiment, start, outcome) in [
        (1, "small", 10, Outcome::Complete),
        (2, "small", 30, Outcome::Failed(failure)),
        (3, "small", 20, Outcome::Timeout(Phase::Response)),
        (4, "large", 40, Outcome::Timeout(Phase::Response)),
    ] {
        let mut new = new_result(id);
        new.experiment = experiment.to_owned();
        new.measurement.start = UnixMicros(start);
        new.measurement.outcome = outcome;
        measure(&store, id as i64, new).await.unwrap();
    }
    let reader = store.reader();
    let summaries = reader.summaries(vec!["small".to_owned(), "large".to_owned(), "none".to_owned()]).await.unwrap();
    let brief = |summary: &ExperimentSummary| {
        let last = summary.last_result.clone().map(|last| (last.start.0, last.outcome));
        (summary.last_success.map(|at| at.0), last)
    };
    assert_eq!(
        summaries.iter().map(brief).collect::<Vec<_>>(),
        [(Some(10), Some((30, "failed".to_owned()))), (None, Some((40, "timeout".to_owned()))), (None, None)]
    );
}

#[tokio::test]
async fn a_read_that_finds_no_connection_in_time_is_told_so() {
    let folder = Folder::new();
    let store = folder.open_with(StoreOptions { readers: 1, read_wait: Duration::from_millis(5), ..quick() });
    let (begun, has_begun) = tokio::sync::oneshot::channel();
    let (release, released) = mpsc::channel::<()>();
    let reader = store.reader().clone();
    let slow = tokio::spawn(async move {
        let question = move |_: &Connection| {
            begun.send(()).unwrap();
            Ok(released.recv().is_err())
        };
        reader.read(question).await
    });
    has_begun.await.unwrap();
    assert_eq!(store.reader().latest_revision().await, Err(StoreError::Busy));
    // The writer does not wait for a reader.
    measure(&store, 1, new_result(1)).await.unwrap();
    drop(release);
    assert_eq!(slow.await.unwrap(), Ok(true));
    assert_eq!(store.reader().latest_revision().await, Ok(1));
}

#[tokio::test]
async fn a_row_that_makes_no_sense_is_an_error_and_no_panic() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 1, new_result(1)).await.unwrap();
    folder.other().execute("UPDATE result SET phase = 'nonsense', proxy_ip = 'x'", []).unwrap();
    let read = store.reader().result(&RunId::from_bits(1)).await;
    assert!(matches!(read, Err(StoreError::Unreadable(_))), "{read:?}");
    assert_eq!(store.reader().latest_revision().await, Ok(1));
}
