//! What tor tells of a run, and of itself, when it is told later.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::circuit::{Circuit, CircuitState};
use crate::measurement::{Outcome, Phase};
use crate::test_support::circuit::{event, example_circuit, loose_circuit, whole_circuit};

fn id(bits: u128) -> RunId {
    RunId::from_bits(bits)
}

fn evidence(text: &str) -> Evidence {
    Evidence(text.to_owned())
}

#[tokio::test]
async fn a_run_is_completed_once_for_each_difference() {
    let folder = Folder::new();
    let store = folder.open();
    let mut new = new_result(1);
    let first = CircuitData { state: CircuitState::TorLost, ..example_circuit() };
    new.circuit = Some((first, evidence("one\n")));
    assert_eq!(measure(&store, 1, new).await, Ok(1));
    let complete = |data: CircuitData, lines: &str| {
        let (store, lines) = (store.clone(), evidence(lines));
        async move { store.complete_run(&id(1), data, lines).await.unwrap() }
    };
    assert_eq!(complete(example_circuit(), "one\n").await, Some(2));
    assert_eq!(complete(example_circuit(), "one\n").await, None);
    assert_eq!(complete(example_circuit(), "one\ntwo\n").await, Some(3));
    assert_eq!(complete(whole_circuit(), "one\ntwo\n").await, Some(4));
    assert_eq!(complete(whole_circuit(), "").await, Some(5));
    assert_eq!(complete(whole_circuit(), "").await, None);
    assert_eq!(store.complete_run(&id(2), example_circuit(), evidence("")).await, Ok(None));
    let whole = store.reader().result(&id(1)).await.unwrap().unwrap();
    assert_eq!((whole.row.revision, whole.row.circuit, whole.evidence), (5, Some(whole_circuit()), None));
    assert_eq!(store.reader().latest_revision().await, Ok(5));
    let other = folder.other();
    assert_eq!((count(&other, "result"), count(&other, "circuit_data"), count(&other, "evidence")), (1, 1, 0));
}

/// What was derived again from evidence that was replaced since it was read must not replace what came later.
#[tokio::test]
async fn what_is_derived_again_yields_to_what_came_meanwhile() {
    let folder = Folder::new();
    let store = folder.open();
    for run in 1..=3 {
        let mut new = new_result(run);
        new.circuit = Some((CircuitData { state: CircuitState::TorLost, ..example_circuit() }, evidence("one\n")));
        measure(&store, run as i64, new).await.unwrap();
    }
    let page = store.reader().evidence_page(None, 9).await.unwrap();
    assert_eq!(page.len(), 3);
    let completed = CircuitData { stream: vec![event(7, "CLOSED", None, None)], ..example_circuit() };
    assert_eq!(store.complete_run(&id(2), completed.clone(), evidence("one\ntwo\n")).await, Ok(Some(4)));
    folder.other().execute("UPDATE evidence SET lines = x'00' WHERE run_id = ?1", [id(3).as_str()]).unwrap();

    let rederive = async || {
        let mut all = Vec::new();
        for read in page.clone() {
            let read_evidence = Evidence(read.evidence.unwrap());
            all.push(store.rederive_run(&read.id, example_circuit(), read_evidence).await.unwrap());
        }
        all
    };
    use Rederived::{Changed, Overtaken, Same};
    assert_eq!(rederive().await, [Changed(5), Overtaken, Overtaken]);
    assert_eq!(rederive().await, [Same, Overtaken, Overtaken]);
    let stored = async |run| {
        let whole = store.reader().result(&id(run)).await.unwrap().unwrap();
        (whole.row.revision, whole.row.circuit, whole.evidence)
    };
    assert_eq!(stored(1).await, (5, Some(example_circuit()), Some("one\n".to_owned())));
    assert_eq!(stored(2).await, (4, Some(completed), Some("one\ntwo\n".to_owned())));
    let gone = store.rederive_run(&id(9), example_circuit(), evidence("one\n")).await;
    assert_eq!((gone, store.reader().latest_revision().await), (Ok(Overtaken), Ok(5)));
}

#[tokio::test]
async fn the_columns_say_what_the_body_says() {
    let folder = Folder::new();
    let store = folder.open();
    let mut new = new_result(1);
    new.circuit = Some((whole_circuit(), evidence("one\n")));
    new.measurement.curve = vec![(5, 1), (70, 51_200)];
    measure(&store, 1, new).await.unwrap();
    let other = folder.other();
    let text = |sql: &str| other.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    let expected = format!(
        "known 1 0.4.9.11 24 17 -12400000 -12060000 1500300 ${},${},${} {} 1 1500 0.8 0",
        "1".repeat(40),
        "2".repeat(40),
        "3".repeat(40),
        "1".repeat(40)
    );
    assert_eq!(
        text(
            "SELECT concat_ws(' ', state, connection, tor_version, stream_id, circuit_id, launched_us, built_us, \
             used_at_us, path, guard, conflux, timeout_ms, quantile, learning) FROM circuit_data"
        ),
        expected
    );
    assert_eq!(text("SELECT points FROM curve"), "5:1 70:51200");
}

/// Whatever is completed while somebody follows, the last state of every run is seen, and each revision once.
#[test]
fn who_follows_sees_the_last_state_of_every_run() {
    let steps = prop::collection::vec((0u128..40, 0i64..4), 1..60);
    let mut runner = TestRunner::new(ProptestConfig { cases: 24, ..ProptestConfig::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runner
        .run(&(steps, 1usize..5, 1usize..6), |(steps, per_page, completions)| {
            runtime.block_on(async {
                let folder = Folder::new();
                let store = folder.open();
                let mut last = BTreeMap::new();
                for run in 0..20 {
                    let revision = measure(&store, run, new_result(run as u128)).await.unwrap();
                    last.insert(id(run as u128), (revision, None));
                }
                let (mut seen, mut revisions, mut after) = (BTreeMap::new(), Vec::new(), None);
                let mut steps = steps.chunks(completions);
                loop {
                    let page =
                        store.reader().results_page(&Filter::default(), after, Order::Oldest, per_page).await.unwrap();
                    for row in &page.rows {
                        revisions.push(row.revision);
                        seen.insert(row.measurement.id.clone(), (row.revision, row.circuit.clone()));
                    }
                    let some = steps.next();
                    for (run, at) in some.into_iter().flatten() {
                        let stream = vec![event(*at, "NEW", None, None)];
                        let data = CircuitData { stream, ..example_circuit() };
                        if let Some(revision) = store.complete_run(&id(*run), data.clone(), evidence("")).await.unwrap()
                        {
                            last.insert(id(*run), (revision, Some(data)));
                        }
                    }
                    after = Some(page.next.unwrap_or(page.latest));
                    if page.next.is_none() && some.is_none() {
                        break;
                    }
                }
                prop_assert_eq!(seen, last);
                prop_assert!(revisions.is_sorted_by(|a, b| a < b), "{revisions:?}");
                Ok(())
            })
        })
        .unwrap();
}

#[tokio::test]
async fn evidence_is_bounded_and_a_bomb_is_not_unpacked() {
    let folder = Folder::new();
    let store = folder.open();
    let line = format!("{}é\n", "x".repeat(997));
    let longest = line.repeat(LONGEST_EVIDENCE / 1000);
    for (run, text) in [(1, longest.clone()), (2, line.repeat(2000)), (3, "x".repeat(2 * LONGEST_EVIDENCE))] {
        let mut new = new_result(run);
        new.circuit = Some((example_circuit(), Evidence(text)));
        measure(&store, run as i64, new).await.unwrap();
    }
    let stored = async |run| store.reader().result(&id(run)).await.map(|whole| whole.unwrap().evidence);
    assert_eq!(stored(1).await, Ok(Some(longest.clone())));
    assert_eq!(stored(2).await, Ok(Some(longest)));
    assert_eq!(stored(3).await, Ok(None), "a line that is longer than all that is kept");
    let other = folder.other();
    let packed: i64 = other.query_row("SELECT length(lines) FROM evidence", [], |row| row.get(0)).unwrap();
    assert!(packed < 10_000, "{packed}");

    for tampering in [
        "UPDATE evidence SET length = 10",
        "UPDATE evidence SET length = 2000000",
        "UPDATE evidence SET length = -1",
        "UPDATE evidence SET length = 1000000, lines = x'00'",
    ] {
        other.execute(tampering, []).unwrap();
        assert!(matches!(stored(1).await, Err(StoreError::Unreadable(_))), "{tampering}");
    }
    // What can't be read is replaced all the same.
    assert!(store.complete_run(&id(1), example_circuit(), evidence("x\n")).await.unwrap().is_some());
    assert_eq!(stored(1).await, Ok(Some("x\n".to_owned())));
}

#[tokio::test]
async fn evidence_is_given_run_by_run_for_deriving_again() {
    let folder = Folder::new();
    let store = folder.open();
    for run in 1..=7 {
        let mut new = new_result(run);
        new.circuit = (run != 4).then(|| (example_circuit(), Evidence(format!("{run}\n"))));
        measure(&store, run as i64, new).await.unwrap();
    }
    let (mut seen, mut after) = (Vec::new(), None);
    loop {
        let page = store.reader().evidence_page(after, 4).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id.clone());
        assert!(page.iter().all(|stored| stored.data == Some(example_circuit())));
        assert!(page.iter().all(|stored| stored.start == example_row().measurement.start));
        seen.extend(page.into_iter().map(|stored| (stored.id, stored.evidence)));
    }
    let expected = [1, 2, 3, 5, 6, 7].map(|run: u128| (id(run), Some(format!("{run}\n"))));
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_run_is_found_by_the_beginning_of_its_name() {
    let folder = Folder::new();
    let store = folder.open();
    let runs: Vec<u128> = (0..12).map(|n| 0xabcdef << 104 | n).chain([0xabcdea << 104, 1]).collect();
    for (planned, run) in runs.iter().enumerate() {
        measure(&store, planned as i64, new_result(*run)).await.unwrap();
    }
    let named = async |prefix: &str| store.reader().runs_named(prefix).await.unwrap();
    assert_eq!(named("abcdea").await, [id(0xabcdea << 104)]);
    assert_eq!(named(id(1).as_str()).await, [id(1)]);
    assert_eq!(named("abcdef").await, (0..10).map(|n| id(0xabcdef << 104 | n)).collect::<Vec<_>>());
    for nothing in ["abcde", "", "abcdeb", "ABCDEA", "abcde%", &format!("{}0", id(1))] {
        assert_eq!(named(nothing).await, [], "{nothing}");
    }
}

#[tokio::test]
async fn a_slot_knows_its_runs_in_their_order() {
    let folder = Folder::new();
    let store = folder.open();
    store.begin_slot(slot(10), grid(), UnixMicros(10)).await.unwrap();
    let run = |run: u128, index: u32, tor: &str| {
        let mut new = new_result(run);
        (new.place, new.tor, new.planned) = (Place { index, of: 3 }, tor.to_owned(), UnixMicros(10));
        new
    };
    let results = vec![run(5, 2, "b"), run(6, 0, "a"), run(7, 1, "a")];
    store.finish_slot(slot(10), SlotState::Done, None, UnixMicros(11), results).await.unwrap();
    let rows = store.reader().results_of_slot("small", UnixMicros(10)).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.measurement.id.clone()).collect::<Vec<_>>(), [id(6), id(7), id(5)]);
    let whole = store.reader().result(&id(7)).await.unwrap().unwrap();
    let mate = |run, tor: &str, index| SlotMate { id: id(run), tor: tor.to_owned(), index };
    assert_eq!(whole.slot_mates, [mate(6, "a", 0), mate(5, "b", 2)]);
    assert_eq!(store.reader().results_of_slot("small", UnixMicros(11)).await.unwrap(), []);
}

#[tokio::test]
async fn pairs_come_in_whole_slots_and_say_how_far_back() {
    let folder = Folder::new();
    let store = folder.open();
    for planned in [100, 200, 300, 400] {
        store.begin_slot(slot(planned), grid(), UnixMicros(planned)).await.unwrap();
        let of = if planned == 300 { 1 } else { 2 };
        let run = |index: u32| {
            let mut new = new_result((planned * 10) as u128 + u128::from(index));
            (new.place, new.planned) = (Place { index, of }, UnixMicros(planned));
            new.tor = ["a", "b"][index as usize].to_owned();
            if planned == 200 && index == 1 {
                new.measurement.outcome = Outcome::Timeout(Phase::DataComplete);
                new.measurement.steps.data_complete = None;
            }
            new
        };
        let ended = UnixMicros(planned + 1);
        store.finish_slot(slot(planned), SlotState::Done, None, ended, (0..of).map(run).collect()).await.unwrap();
    }
    let brief = |pairs: PairRows| {
        let rows = pairs.rows.iter().map(|row| format!("{} {} {}", row.planned.0, row.tor, row.outcome));
        (rows.collect::<Vec<_>>().join(", "), pairs.cut.map(|cut| cut.0))
    };
    let all = "400 a complete, 400 b complete, 200 a complete, 200 b timeout, 100 a complete, 100 b complete";
    let (begin, end) = (UnixMicros(0), UnixMicros(1000));
    assert_eq!(brief(store.reader().pairs("small", begin, end).await.unwrap()), (all.to_owned(), None));
    let some = store.reader().pairs("small", UnixMicros(200), UnixMicros(400)).await.unwrap();
    assert_eq!(some.rows[0].last_byte, Some(1_500_000));
    assert_eq!((some.rows[0].first_byte, some.rows[1].last_byte), (Some(700_100), None));
    assert_eq!(brief(some), ("200 a complete, 200 b timeout".to_owned(), None));
    for (window, rows, cut) in [
        (7, all, None),
        (6, "400 a complete, 400 b complete, 200 a complete, 200 b timeout", Some(100)),
        (4, "400 a complete, 400 b complete", Some(200)),
        (3, "400 a complete, 400 b complete", Some(200)),
        (2, "400 a complete, 400 b complete", Some(300)),
        (1, "", Some(400)),
    ] {
        let pairs = runs::pairs(&folder.other(), "small", begin, end, window).unwrap();
        assert_eq!(brief(pairs), (rows.to_owned(), cut), "{window}");
    }
}

#[tokio::test]
async fn circuits_and_events_are_kept_once() {
    let folder = Folder::new();
    let store = folder.open();
    let circuit = |circuit_id, since| LooseCircuit {
        tor: "main".to_owned(),
        connection: 1,
        since: UnixMicros(since),
        circuit: Circuit { id: circuit_id, ..whole_circuit().circuit.unwrap() },
    };
    let (early, late) = (circuit(1, 10), circuit(2, 20));
    for _ in 0..2 {
        assert_eq!(store.record_circuits(vec![late.clone(), early.clone()]).await, Ok(2));
    }
    let between = async |since, until, limit| {
        store.reader().circuits_between(UnixMicros(since), UnixMicros(until), limit).await.unwrap()
    };
    assert_eq!(between(0, 99, 9).await, [early.clone(), late.clone()]);
    assert_eq!(between(10, 20, 9).await, std::slice::from_ref(&early));
    assert_eq!(between(11, 99, 9).await, [late]);
    assert_eq!(between(0, 99, 1).await, std::slice::from_ref(&early));
    let mut later = early;
    later.circuit.end = None;
    store.record_circuits(vec![later.clone()]).await.unwrap();
    assert_eq!(between(0, 20, 9).await, [later]);
    assert!(matches!(store.record_circuits(vec![circuit(u64::MAX, 1)]).await, Err(StoreError::Refused(_))));

    let event = |tor: &str, at, what: &str| TorEvent {
        tor: tor.to_owned(),
        at: UnixMicros(at),
        connection: 0,
        what: what.to_owned(),
        detail: "it said \"so\"".to_owned(),
    };
    let events = vec![event("a", 1, "started"), event("a", 5, "lost"), event("b", 3, "started")];
    assert_eq!(store.record_tor_events(events.clone()).await, Ok(3));
    assert_eq!(store.record_tor_events(events.clone()).await, Ok(0));
    assert_eq!(store.reader().tor_events("a", 9).await.unwrap(), [events[1].clone(), events[0].clone()]);
    assert_eq!(store.reader().tor_events("a", 1).await.unwrap(), [events[1].clone()]);
}

proptest! {
    #[test]
    fn every_circuit_reads_back(circuit in loose_circuit()) {
        let mut conn = Connection::open_in_memory().unwrap();
        schema::migrations().to_latest(&mut conn).unwrap();
        tors::put_circuits(&conn, std::slice::from_ref(&circuit)).unwrap();
        let since = circuit.since;
        prop_assert_eq!(tors::circuits_between(&conn, since, UnixMicros(since.0 + 1), 9).unwrap(), [circuit]);
    }
}
