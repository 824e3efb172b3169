//! Answers through a real store, against a slow and obvious implementation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::circuit::{CircuitData, CircuitState, Evidence};
use crate::clock::UnixMicros;
use crate::import::ImportedRun;
use crate::measurement::{Kind, Outcome, Phase, RunId, ServerKind, Steps};
use crate::slot::{Grid, SlotId, SlotRow, SlotState};
use crate::stats::Rollup;
use crate::store::{Importer, NewResult, Store};
use crate::test_support::circuit::{example_circuit, whole_circuit};
use crate::test_support::example_result;

const SECOND: i64 = 1_000_000;
const DAY: i64 = 86_400 * SECOND;
/// 2026-11-22, a Sunday.
const FIRST: i64 = 1_795_305_600 * SECOND;

struct Kept {
    store: Store,
    cache: std::sync::Arc<Cache>,
    folder: TempDir,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("perfd.sqlite")).unwrap();
        Kept { store, cache: std::sync::Arc::default(), folder }
    }

    fn database(&self) -> Connection {
        Connection::open(self.folder.path().join("perfd.sqlite")).unwrap()
    }

    async fn try_ask(&self, path: &str, query: &str) -> Result<Table, Refused> {
        let pairs = query.split('&').filter(|part| !part.is_empty()).map(|part| part.split_once('=').unwrap());
        let question = Question::parse(Statistic::parse(path).unwrap(), pairs).unwrap();
        let (cache, now) = (self.cache.clone(), UnixMicros(FIRST + 10 * DAY));
        let ask = self
            .store
            .statistics()
            .ask(Duration::from_secs(60), move |reading| answer(reading, &cache, &question, now));
        ask.await.unwrap()
    }

    /// These columns of the rows, as text.
    async fn ask(&self, path: &str, query: &str, columns: &str) -> Vec<String> {
        let table = self.try_ask(path, query).await.unwrap();
        let places: Vec<usize> = columns
            .split(' ')
            .map(|name| table.columns.iter().position(|column| *column == name).unwrap_or_else(|| panic!("{name}")))
            .collect();
        let text = |row: &Row| -> String {
            let cells = places.iter().map(|place| for_people(&[], &[vec![row[*place].clone()]]).remove(1).remove(0));
            cells.collect::<Vec<_>>().join(" ")
        };
        table.rows.iter().map(text).collect()
    }

    /// Stores a slot with one result, which began when it was planned.
    async fn measure(&self, new: NewResult) {
        let planned = new.measurement.start;
        let slot = SlotId { experiment: new.experiment.clone(), planned };
        self.store.begin_slot(slot.clone(), grid(), planned).await.unwrap();
        self.store.finish_slot(slot, SlotState::Done, None, planned, vec![new]).await.unwrap();
    }

    async fn miss(&self, experiment: &str, first: i64, last: i64) {
        let count = ((last - first) / (60 * SECOND)) as u64 + 1;
        let row = SlotRow {
            experiment: experiment.to_owned(),
            planned: UnixMicros(first),
            planned_last: UnixMicros(last),
            count,
            state: SlotState::Missed,
            reason: None,
            started: None,
            ended: None,
        };
        assert_eq!(self.store.record_slots(row, grid()).await, Ok(count));
    }
}

/// A slot a minute.
fn grid() -> Grid {
    Grid::new(Duration::from_secs(60), Duration::ZERO)
}

/// A run that began so long after the first day and took so many ms; one that took none was cut off.
fn run(id: u128, at: i64, ms: Option<u64>) -> NewResult {
    let mut new = example_result(id);
    new.measurement.start = UnixMicros(FIRST + at);
    new.measurement.steps.data_complete = ms.map(|ms| ms * 1000);
    if ms.is_none() {
        new.measurement.outcome = Outcome::Timeout(Phase::DataComplete);
    }
    new
}

/// What a made-up slot is: its minute, experiment, tor, and what became of it.
type Made = (i64, usize, usize, Option<Option<u64>>);

/// A percentile, as its definition has it.
fn slow_percentile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap());
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] * (1.0 - (at - low as f64)) + sorted[high] * (at - low as f64)
}

#[test]
fn summaries_are_those_of_a_slow_and_obvious_implementation() {
    let minutes = 0i64..4 * 1440;
    let made =
        (minutes.clone(), 0usize..2, 0usize..2, prop::option::weighted(0.8, prop::option::weighted(0.8, 1u64..9000)));
    let window = (prop::option::of(minutes.clone()), prop::option::of(minutes));
    let asked = (prop::sample::subsequence(vec!["experiment", "tor"], 0..=2), 0usize..4, window);
    let mut runner = TestRunner::new(ProptestConfig { cases: 30, ..ProptestConfig::default() });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let all = (prop::collection::vec(made, 1..60), asked);
    runner
        .run(&all, |(made, (group, period, (since, until)))| {
            runtime.block_on(async {
                let kept = Kept::new();
                let mut slots: BTreeMap<(i64, usize), Made> = BTreeMap::new();
                slots.extend(made.into_iter().map(|made| ((made.0, made.1), made)));
                for (id, (minute, experiment, tor, result)) in (1..).zip(slots.values().copied()) {
                    let (at, name) = (minute * 60 * SECOND, ["a", "b"][experiment]);
                    match result {
                        None => kept.miss(name, FIRST + at, FIRST + at).await,
                        Some(ms) => {
                            let mut new = run(id, at, ms);
                            (new.experiment, new.tor) = (name.to_owned(), ["x", "y"][tor].to_owned());
                            kept.measure(new).await;
                        }
                    }
                }
                let period = ["hour", "day", "week", "all"][period];
                let moment = |minute: i64| (FIRST + minute * 60 * SECOND) / SECOND;
                let mut query = format!("floor=1&period={period}&group={}", group.join(","));
                since.iter().for_each(|since| query += &format!("&since={}", moment(*since)));
                until.iter().for_each(|until| query += &format!("&until={}", moment(*until)));
                let columns =
                    [&["period"], &group[..], &["runs", "samples", "coverage", "p25", "p50", "mean"]].concat();
                // Slots without any result stand beside groups that have none; they are another test's.
                let found = kept.ask("summary", &query, &columns.join(" ")).await;
                let found: BTreeSet<String> =
                    found.into_iter().filter(|row| row.split(' ').nth(1 + group.len()) != Some("0")).collect();

                let period_of = |minute: i64| match period {
                    "hour" => {
                        let (day, hour) = (minute.div_euclid(1440), minute.rem_euclid(1440) / 60);
                        format!("2026-11-{:02}T{hour:02}:00:00Z", 22 + day)
                    }
                    "day" => format!("2026-11-{:02}", 22 + minute.div_euclid(1440)),
                    // The first day ends a week.
                    "week" => if minute < 1440 { "2026-11-16" } else { "2026-11-23" }.to_owned(),
                    _ => "-".to_owned(),
                };
                let within = |made: &&Made| {
                    since.is_none_or(|since| made.0 >= since) && until.is_none_or(|until| made.0 < until)
                };
                let name = |made: &Made| {
                    let of = |dimension: &&str| match *dimension {
                        "experiment" => ["a", "b"][made.1],
                        _ => ["x", "y"][made.2],
                    };
                    group.iter().map(of).collect::<Vec<_>>()
                };
                // Which experiments a group has is told by all results there ever were.
                let mut experiments: BTreeMap<Vec<&str>, BTreeSet<usize>> = BTreeMap::new();
                for made in slots.values().filter(|made| made.3.is_some()) {
                    experiments.entry(name(made)).or_default().insert(made.1);
                }
                let mut lots: BTreeMap<(String, Vec<&str>), Vec<Option<u64>>> = BTreeMap::new();
                for made in slots.values().filter(within) {
                    if let Some(result) = made.3 {
                        lots.entry((period_of(made.0), name(made))).or_default().push(result);
                    }
                }
                let mut expected = BTreeSet::new();
                for ((start, group), results) in lots {
                    let of_group = |made: &&Made| experiments[&group].contains(&made.1) && period_of(made.0) == start;
                    let planned: Vec<&Made> = slots.values().filter(within).filter(of_group).collect();
                    let done = planned.iter().filter(|made| made.3.is_some()).count();
                    let values: Vec<f64> = results.iter().flatten().map(|ms| *ms as f64).collect();
                    let number = |value: f64| if value < 10.0 { format!("{value:.3}") } else { format!("{value:.1}") };
                    let shown = |value: f64| if values.is_empty() { "-".to_owned() } else { number(value) };
                    let quartile = |q| if values.is_empty() { 0.0 } else { slow_percentile(&values, q) };
                    let mut cells = vec![start.clone()];
                    cells.extend(group.iter().map(|name| (*name).to_owned()));
                    cells.extend([results.len().to_string(), values.len().to_string()]);
                    cells.push(number(done as f64 / planned.len() as f64));
                    cells.extend([shown(quartile(0.25)), shown(quartile(0.5))]);
                    cells.push(shown(values.iter().sum::<f64>() / values.len().max(1) as f64));
                    expected.insert(cells.join(" "));
                }
                prop_assert_eq!(found, expected, "{}", query);
                Ok(())
            })
        })
        .unwrap();
}

/// A gap is split where its grid has its slots; an experiment that measured nothing at all has a row that says so.
#[tokio::test]
async fn coverage_counts_gaps_by_their_grid() {
    let kept = Kept::new();
    kept.measure(run(1, 0, Some(5))).await;
    // From 23:00 of the first day until 01:59 of the third: 60, 1440 and 120 slots.
    kept.miss("small", FIRST + 23 * 3600 * SECOND, FIRST + 2 * DAY + (2 * 3600 - 60) * SECOND).await;
    kept.measure(run(2, 2 * DAY + 7200 * SECOND, None)).await;
    let days = kept.ask("summary", "period=day&group=experiment", "period runs coverage").await;
    assert_eq!(days, ["2026-11-22 1 0.016", "2026-11-23 0 0.000", "2026-11-24 1 0.008"]);
    let hours = kept.ask("summary", "period=hour&since=2026-11-24", "period runs coverage").await;
    let gap = ["2026-11-24T00:00:00Z 0 0.000", "2026-11-24T01:00:00Z 0 0.000"];
    assert_eq!(hours, [gap[0], gap[1], "2026-11-24T02:00:00Z 1 1.000"]);
    let part = format!("since={}", (FIRST + 2 * DAY) / SECOND + 5400);
    assert_eq!(kept.ask("summary", &part, "runs coverage").await, [format!("1 {:.3}", 1.0 / 31.0)]);
    assert_eq!(kept.ask("failures", "", "outcome runs samples coverage").await[0], "complete 1 2 0.001");
}

/// An experiment that was down for a day has its row, though another one has measured.
#[tokio::test]
async fn a_gap_of_one_experiment_is_told() {
    let kept = Kept::new();
    for (id, experiment, day) in [(1, "a", 0), (2, "a", 1), (3, "b", 0)] {
        let mut new = run(id, day * DAY, Some(100));
        new.experiment = experiment.to_owned();
        kept.measure(new).await;
    }
    kept.miss("b", FIRST + DAY, FIRST + DAY + 120 * SECOND).await;
    let days = async |path: &str, columns: &str| kept.ask(path, "period=day&since=2026-11-23", columns).await;
    let summary = days("summary", "period experiment runs samples coverage exact").await;
    assert_eq!(summary, ["2026-11-23 a 1 1 1.000 true", "2026-11-23 b 0 0 0.000 true"]);
    let failures = days("failures", "experiment outcome phase cause runs share samples coverage").await;
    assert_eq!(failures, ["a complete - - 1 1.000 1 1.000", "b - - - 0 - 0 0.000"]);
    let phases = days("phases", "experiment quantity runs").await;
    assert_eq!(phases.iter().filter(|row| row.starts_with("b ") && row.ends_with(" 0")).count(), 8);
    let query = "period=day&since=2026-11-23&experiment=b";
    let downloads = kept.ask("onionperf/downloads", query, "period downloads complete coverage").await;
    assert_eq!(downloads, ["2026-11-23 0 0 0.000"]);
    let errors = kept.ask("onionperf/errors", query, "error_code").await;
    assert_eq!(errors, [] as [String; 0], "what has no code has no row");
    let hours = kept.ask("failures", "period=hour&since=2026-11-23&experiment=b", "period runs coverage").await;
    assert_eq!(hours, ["2026-11-23T00:00:00Z 0 0.000"]);
}

#[tokio::test]
async fn too_few_samples_say_nothing() {
    let kept = Kept::new();
    for id in 1..=9 {
        kept.measure(run(id, id as i64 * 60 * SECOND, Some(id as u64 * 10))).await;
    }
    let columns = "samples mean p10 p25 p50 p99";
    let few = format!("until={}", FIRST / SECOND + 300);
    assert_eq!(kept.ask("summary", &few, columns).await, ["4 - - - - -"]);
    assert_eq!(kept.ask("summary", "", columns).await, ["9 50.0 - 30.0 50.0 -"]);
    assert_eq!(kept.ask("summary", "floor=1", columns).await, ["9 50.0 18.0 30.0 50.0 89.2"]);
    assert_eq!(kept.ask("ecdf", &few, "value share samples").await, ["- - 4"]);
    assert_eq!(kept.ask("ecdf", "points=3", "value share").await, ["10.0 0.111", "50.0 0.556", "90.0 1.000"]);
}

/// What is kept of an answer is good until something is stored that belongs to it: a result, a late circuit, an import.
#[tokio::test]
async fn what_is_kept_is_good_until_something_changes() {
    let kept = Kept::new();
    for day in 0..3 {
        let mut new = run(day as u128 + 1, day * DAY, Some(100));
        new.circuit = Some((example_circuit(), Evidence("one\n".to_owned())));
        kept.measure(new).await;
    }
    let days = async || kept.ask("summary", "period=day&floor=1&group=source", "source runs p50").await;
    assert_eq!(days().await, ["op-test 1 100.0"; 3]);
    // The rows are changed behind its back, and the answer stays: nothing is read again.
    kept.database().execute_batch("UPDATE result SET data_complete_us = 7000").unwrap();
    assert_eq!(days().await, ["op-test 1 100.0"; 3]);
    let second = RunId::from_bits(2);
    let completed = kept.store.complete_run(&second, whole_circuit(), Evidence("two\n".to_owned()));
    assert!(completed.await.unwrap().is_some());
    assert_eq!(days().await, ["op-test 1 100.0", "op-test 1 7.000", "op-test 1 100.0"]);
    let conflux = kept.ask("conflux", "floor=1&period=day", "period conflux runs").await;
    assert_eq!(conflux[2..4], ["2026-11-23 true 1", "2026-11-23 false 0"]);
    kept.measure(run(9, 2 * DAY + 60 * SECOND, Some(100))).await;
    assert_eq!(days().await, ["op-test 1 100.0", "op-test 1 7.000", "op-test 2 53.5"]);

    // An import is seen when it is switched on, and not before. The rows that were changed are gone for it too, as its
    // day is read again.
    let mut importer = Importer::open(&kept.folder.path().join("perfd.sqlite")).unwrap();
    let mut import = importer.begin("old.tpf", "tpf").unwrap();
    for second in 0..300 {
        let steps = Steps { data_complete: Some(200_000), ..Steps::default() };
        let imported = ImportedRun {
            source: "other".to_owned(),
            experiment: None,
            id: None,
            tor: None,
            start: UnixMicros(FIRST + second * SECOND),
            ended: 200_000,
            size: 51_200,
            steps,
            written: 80,
            read: 51_300,
            local_port: None,
            kind: Kind::Download,
            server: ServerKind::Exit,
            outcome: Outcome::Complete,
            did_time_out: false,
            extra: vec![("PATH".to_owned(), format!("${}", "A".repeat(40)))],
        };
        import.add(imported).unwrap();
    }
    assert_eq!(days().await, ["op-test 1 100.0", "op-test 1 7.000", "op-test 2 53.5"]);
    import.finish().unwrap();
    assert_eq!(days().await, ["op-test 1 7.000", "other 300 200.0", "op-test 1 7.000", "op-test 2 53.5"]);
    let of_import = kept.ask("summary", "source=other", "samples p50 coverage exact").await;
    assert_eq!(of_import, ["300 200.0 - true"], "what was imported has no slots");
    let relays = kept.ask("relays", "source=other&top=1", "list fingerprint runs").await;
    assert_eq!(relays, [] as [String; 0], "all took as long, so none was slow");
    let conflux = kept.ask("conflux", "source=other", "conflux runs unknown").await;
    assert_eq!(conflux, ["true 0 300", "false 0 300"], "no imported line says it");
}

#[tokio::test]
async fn an_empty_answer_says_why() {
    let kept = Kept::new();
    let note = async |path: &str, query: &str| kept.try_ask(path, query).await.unwrap().note.unwrap_or_default();
    assert_eq!(note("summary", "experiment=typo").await, "there are no results yet");
    let experiment = example_result(1).experiment;
    kept.measure(run(1, 0, Some(100))).await;
    let unknown = format!("there is no result of the experiment \"typo\"; there are {experiment}");
    assert_eq!(note("summary", "experiment=typo").await, unknown);
    assert!(note("failures", "tor=x").await.starts_with("there is no result of the tor \"x\"; there are "));
    let paired = note("paired", &format!("experiment={experiment}")).await;
    assert!(paired.starts_with("that experiment compares no tors: all its results are of "), "{paired}");
    assert!(note("summary", "until=2020-01-01").await.starts_with("there is no result of that time"));
    let some = kept.try_ask("summary", "").await.unwrap();
    assert_eq!((some.note.as_deref(), some.json().contains("note")), (None, false));
    let none = kept.try_ask("summary", "experiment=typo").await.unwrap().json();
    let none: serde_json::Value = serde_json::from_str(&none).unwrap();
    assert_eq!((&none["rows"], &none["note"]), (&serde_json::json!([]), &unknown.into()));
}

/// Of a run whose circuit is not known nobody can say that it went without Conflux.
#[tokio::test]
async fn what_tor_did_not_tell_is_not_without_conflux() {
    let kept = Kept::new();
    let known = example_circuit();
    let unseen = CircuitData { state: CircuitState::Unseen, circuit: None, ..example_circuit() };
    let lost = CircuitData { state: CircuitState::TorLost, ..unseen.clone() };
    let partly = CircuitData { state: CircuitState::TorLost, ..example_circuit() };
    let unattached = CircuitData { circuit: None, ..example_circuit() };
    let all = [Some(known), Some(whole_circuit()), Some(unseen), Some(lost), Some(partly), Some(unattached), None];
    for (id, data) in (1..).zip(all) {
        let mut new = run(id, id as i64 * 60 * SECOND, Some(100));
        new.circuit = data.map(|data| (data, Evidence(String::new())));
        kept.measure(new).await;
    }
    assert_eq!(kept.ask("conflux", "", "conflux runs unknown").await, ["true 1 5", "false 1 5"]);
    let body: Vec<u8> = kept.database().query_row("SELECT body FROM daily", [], |row| row.get(0)).unwrap();
    let rollup = Rollup::decode(&body).unwrap();
    assert_eq!((rollup.over_conflux(), rollup.over_one_circuit(), rollup.over_unknown()), (1, 1, 5));
}

/// Rows may be deleted: what they came to is still told, and said not to be exact.
#[tokio::test]
async fn what_is_gone_is_answered_from_the_rollups() {
    let kept = Kept::new();
    for id in 1..=400u64 {
        let at = (id as i64 - 1) * 60 * SECOND + if id > 200 { DAY } else { 0 };
        kept.measure(run(id.into(), at, (id % 7 != 0).then_some(id * 37 % 5000 + 20))).await;
    }
    let numbers = async |path: &str, query: &str| kept.try_ask(path, query).await.unwrap();
    let before = numbers("summary", "period=day").await;
    let failures = kept.ask("failures", "period=day", "period outcome runs samples").await;
    let downloads = numbers("tor-metrics/downloads", "").await;
    let timeouts = kept.ask("tor-metrics/failures", "", "date timeouts requests").await;
    let gone = format!("PRAGMA foreign_keys = 1; DELETE FROM result WHERE start_us < {}", FIRST + DAY);
    kept.database().execute_batch(&gone).unwrap();
    let fresh = Kept { cache: std::sync::Arc::default(), ..kept };
    let exact = async |path: &str| fresh.ask(path, if path == "summary" { "period=day" } else { "" }, "exact").await;
    assert_eq!(exact("summary").await, ["false", "true"]);
    let numbers = async |path: &str, query: &str| fresh.try_ask(path, query).await.unwrap();
    for (table, before) in
        [(numbers("summary", "period=day").await, before), (numbers("tor-metrics/downloads", "").await, downloads)]
    {
        assert_eq!(table.rows.len(), 2);
        for (cell, was) in table.rows.iter().zip(&before.rows).flat_map(|(row, was)| row.iter().zip(was)) {
            match (cell, was) {
                (Cell::Number(cell), Cell::Number(was)) => assert!((cell - was).abs() <= was * 0.01, "{cell} {was}"),
                (Cell::Count(cell), Cell::Count(was)) => assert!(cell.abs_diff(*was) as f64 <= *was as f64 * 0.02),
                (Cell::Flag(_), Cell::Flag(_)) => {}
                (cell, was) => assert_eq!(cell, was),
            }
        }
    }
    assert_eq!(fresh.ask("failures", "period=day", "period outcome runs samples").await, failures);
    assert_eq!(fresh.ask("tor-metrics/failures", "", "date timeouts requests").await, timeouts);
    let hours = fresh.ask("summary", "period=hour&until=2026-11-23", "period").await;
    assert_eq!(hours, [] as [String; 0], "a day's roll-up does not tell of its hours");
    let month = fresh.ask("summary", "period=month", "runs samples exact").await;
    assert_eq!(month, [format!("400 {} false", 400 - 400 / 7)]);
}

#[tokio::test]
async fn the_last_days_can_be_left_out_and_too_many_rows_are_refused() {
    let kept = Kept::new();
    // It is the tenth day after the first.
    for day in [7, 8, 9, 10] {
        kept.measure(run(day as u128, day * DAY, Some(100))).await;
    }
    let dates = async |query: &str| kept.ask("tor-metrics/downloads", query, "date").await;
    assert_eq!(dates("").await.len(), 4);
    assert_eq!(dates("omit_last_days=2").await, ["2026-11-29", "2026-11-30"]);
    assert_eq!(dates("omit_last_days=1").await.last().unwrap(), "2026-12-01");
    // A gap of seventy years has more hours than anybody reads.
    kept.miss("small", FIRST + 20 * DAY, FIRST + 20 * DAY + 25_000 * DAY).await;
    assert_eq!(kept.try_ask("summary", "period=hour").await, Err(Refused::TooManyRows(100_000)));
}
