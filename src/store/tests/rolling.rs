//! Roll-ups: whatever is stored, completed and derived again, they are those of the rows.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::circuit::CircuitState;
use crate::measurement::ResultRow;
use crate::stats::period::day_of;
use crate::stats::{End, Rollup, Sample, SampleCircuit};
use crate::test_support::circuit::{circuit_data, example_circuit, whole_circuit};
use crate::test_support::result_row;

/// What is stored of each day, series and import.
type Daily = BTreeMap<(i64, String, i64), (u64, Rollup)>;

#[derive(Clone, Debug)]
enum Step {
    Insert(Box<ResultRow>),
    Complete(usize, Box<CircuitData>, String),
    Rederive(usize, Box<CircuitData>),
}

fn step() -> impl Strategy<Value = Step> {
    let insert = (result_row(), 0i64..3, 0usize..2).prop_map(|(mut row, day, name)| {
        // Few days and names, so that roll-ups have more than one result.
        row.measurement.start = UnixMicros(day * 86_400_000_000 + row.measurement.start.0.rem_euclid(86_400_000_000));
        (row.source, row.experiment, row.tor) = ("s".to_owned(), ["a", "b"][name].to_owned(), "t".to_owned());
        row.measurement.size = [51_200, 5_242_880][name];
        Step::Insert(Box::new(row))
    });
    let complete = (any::<usize>(), circuit_data(), "[a-z]{0,3}")
        .prop_map(|(at, data, text)| Step::Complete(at, Box::new(data), format!("{text}\n")));
    let rederive = (any::<usize>(), circuit_data()).prop_map(|(at, data)| Step::Rederive(at, Box::new(data)));
    prop_oneof![3 => insert, 2 => complete, 1 => rederive]
}

/// As a result's row says: the same as the store makes of it, by another way.
fn sample_of(row: &ResultRow) -> Sample {
    let run = &row.measurement;
    let circuit = row.circuit.as_ref().map(|data| {
        let path = data.circuit.as_ref().map(|circuit| circuit.path.clone()).unwrap_or_default();
        let known = |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
        let named = path.iter().all(|hop| known(&hop.relay.fingerprint));
        let timed = path.iter().all(|hop| hop.built_after_us.is_some());
        SampleCircuit {
            conflux: match (&data.conflux, data.state, &data.circuit) {
                (Some(_), ..) => Some(true),
                (None, CircuitState::Known, Some(circuit)) if circuit.id <= i64::MAX as u64 => Some(false),
                _ => None,
            },
            path: path.iter().filter(|_| named).map(|hop| hop.relay.fingerprint.to_ascii_uppercase()).collect(),
            build_times: path.iter().filter(|_| timed).filter_map(|hop| hop.built_after_us).collect(),
        }
    });
    Sample {
        start: run.start,
        source: row.source.as_str().into(),
        experiment: row.experiment.as_str().into(),
        tor: row.tor.as_str().into(),
        kind: run.kind,
        server: row.server,
        size: run.size,
        imported: false,
        end: match &run.outcome {
            Outcome::Complete => End::Complete,
            Outcome::Timeout(phase) => End::Timeout(*phase),
            Outcome::Failed(failure) => End::Failed(failure.phase, failure.cause),
        },
        did_time_out: run.did_time_out(),
        steps: run.steps.clone(),
        read: run.read,
        written: run.written,
        circuit,
    }
}

fn stored(conn: &Connection) -> Daily {
    let mut statement = conn
        .prepare(
            "SELECT day, experiment || kind || server, import_id, runs, body FROM daily JOIN series ON id = series_id",
        )
        .unwrap();
    let rows = statement.query_map([], |row| {
        let body: Vec<u8> = row.get(4)?;
        Ok(((row.get(0)?, row.get(1)?, row.get(2)?), (row.get::<_, i64>(3)? as u64, Rollup::decode(&body).unwrap())))
    });
    rows.unwrap().collect::<Result<_, _>>().unwrap()
}

async fn recomputed(store: &Store) -> Daily {
    let mut days = Daily::new();
    let mut after = None;
    loop {
        let page = store.reader().results_page(&Filter::default(), after, Order::Oldest, 50).await.unwrap();
        for row in &page.rows {
            let name = format!("{}{}{}", row.experiment, row.measurement.kind.as_str(), row.server.as_str());
            let (runs, rollup) = days.entry((day_of(row.measurement.start), name, 0)).or_default();
            *runs += 1;
            rollup.add(&sample_of(row));
        }
        after = page.next;
        if after.is_none() {
            return days;
        }
    }
}

#[test]
fn rollups_are_those_of_the_rows_whatever_happens_to_them() {
    let mut runner = TestRunner::new(ProptestConfig { cases: 40, ..ProptestConfig::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runner
        .run(&prop::collection::vec(step(), 1..40), |steps| {
            runtime.block_on(async {
                let folder = Folder::new();
                let store = folder.open();
                let (mut ids, mut planned) = (Vec::new(), 0);
                for step in steps {
                    match step {
                        Step::Insert(row) => {
                            let row = *row;
                            let circuit = row.circuit.map(|data| (data, Evidence("first\n".to_owned())));
                            let id = RunId::from_bits(ids.len() as u128);
                            let new = NewResult {
                                source: row.source,
                                experiment: row.experiment,
                                tor: row.tor,
                                planned: row.planned.unwrap(),
                                configuration: "c".to_owned(),
                                version: row.version.unwrap(),
                                server: row.server,
                                place: row.place,
                                measurement: Measurement { id: id.clone(), ..row.measurement },
                                circuit,
                            };
                            planned += 1;
                            if measure(&store, planned, new).await.is_ok() {
                                ids.push(id);
                            }
                        }
                        Step::Complete(at, data, text) if !ids.is_empty() => {
                            store.complete_run(&ids[at % ids.len()], *data, Evidence(text)).await.unwrap();
                        }
                        Step::Rederive(at, data) if !ids.is_empty() => {
                            let id = &ids[at % ids.len()];
                            let text = store.reader().result(id).await.unwrap().unwrap().evidence.unwrap_or_default();
                            store.rederive_run(id, *data, Evidence(text)).await.unwrap();
                        }
                        _ => {}
                    }
                }
                prop_assert_eq!(stored(&folder.other()), recomputed(&store).await);
                Ok(())
            })
        })
        .unwrap();
}

#[tokio::test]
async fn rows_may_go_and_what_was_completed_is_counted_once() {
    let folder = Folder::new();
    let store = folder.open();
    let mut new = new_result(1);
    new.circuit = Some((example_circuit(), Evidence("one\n".to_owned())));
    measure(&store, 1, new).await.unwrap();
    measure(&store, 2, new_result(2)).await.unwrap();
    let revision = |conn: &Connection| conn.query_row("SELECT revision FROM daily", [], |row| row.get::<_, i64>(0));
    assert_eq!(revision(&folder.other()), Ok(2));
    let completed = store.complete_run(&RunId::from_bits(1), whole_circuit(), Evidence("two\n".to_owned())).await;
    assert_eq!((completed, revision(&folder.other())), (Ok(Some(3)), Ok(3)));
    let before = stored(&folder.other());
    assert_eq!(before.values().next().map(|(runs, rollup)| (*runs, rollup.over_conflux())), Some((2, 1)));
    folder.other().execute_batch("PRAGMA foreign_keys = 1; DELETE FROM result").unwrap();
    assert_eq!(stored(&folder.other()), before);
}

/// A store of an earlier version gets the roll-ups of its rows; one whose bytes make no sense holds up no result.
#[tokio::test]
async fn rollups_are_made_of_the_rows_of_before() {
    let folder = Folder::new();
    let store = folder.open();
    for run in 1..=5 {
        let mut new = new_result(run);
        new.measurement.start = UnixMicros(run as i64 * 50_000_000_000);
        new.circuit = Some((whole_circuit(), Evidence(String::new())));
        measure(&store, run as i64, new).await.unwrap();
    }
    let conn = folder.other();
    let (all, totals) = (stored(&conn), store.reader().totals().await.unwrap());
    conn.execute_batch(
        "DELETE FROM daily; DELETE FROM series; DELETE FROM total; UPDATE circuit_data SET build_times = NULL",
    )
    .unwrap();
    backfill::fill(&conn).unwrap();
    assert_eq!((stored(&conn), store.reader().totals().await.unwrap()), (all, totals));
    let times: i64 = conn
        .query_row("SELECT count(*) FROM circuit_data WHERE build_times IS NOT NULL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(times, 5);
    conn.execute_batch("UPDATE daily SET body = x'ff'").unwrap();
    let mut new = new_result(6);
    new.measurement.start = UnixMicros(50_000_000_000);
    assert!(measure(&store, 9, new).await.is_ok());
}
