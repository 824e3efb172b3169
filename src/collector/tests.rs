//! Days are closed when they have settled, with what belongs to them, once and for all.

use std::io::Read;
use std::path::Path;

use liblzma::read::XzDecoder;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::circuit::Evidence;
use crate::clock::SteeredClock;
use crate::measurement::{Measurement, Outcome, Phase, Place, RunId};
use crate::slot::{SlotId, SlotReason, SlotRow, SlotState};
use crate::store::{Listed, NewResult};
use crate::test_support::circuit::example_circuit;
use crate::test_support::example_result;

const MINUTE: i64 = 60_000_000;
const DAY: i64 = 24 * 60 * MINUTE;

/// Noon of the first day.
const NOON: i64 = 1_795_348_800_000_000;

const CONFIG: &str = r#"source = "op-test"
[public]
host = "192.0.2.7"
[[tor]]
name = "main"
socks = "127.0.0.1:9050"
[[experiment]]
name = "small"
tor = "main"
size = "50 KiB"
every = "12 h"
timeout = "295 s"
[[experiment]]
name = "secret"
tor = "main"
size = "50 KiB"
every = "12 h"
timeout = "295 s"
publish = false
"#;

struct Bench {
    store: Store,
    clock: SteeredClock,
    publisher: Publisher,
    runs: u128,
    _folder: TempDir,
}

impl Bench {
    async fn at(now: i64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("perfd.sqlite")).unwrap();
        let clock = SteeredClock::starting_at(UnixMicros(now));
        let publisher = publisher(&store, &clock);
        Bench { store, clock, publisher, runs: 0, _folder: folder }
    }

    /// A slot planned at this moment with these results.
    async fn slot(&mut self, experiment: &str, planned: i64, results: Vec<NewResult>) {
        let slot = SlotId { experiment: experiment.to_owned(), planned: UnixMicros(planned) };
        self.store.begin_slot(slot.clone(), grid(), UnixMicros(planned)).await.unwrap();
        self.store.finish_slot(slot, SlotState::Done, None, UnixMicros(planned + 1), results).await.unwrap();
    }

    /// A run of its own, which started at this moment.
    fn result(&mut self, start: i64) -> NewResult {
        self.runs += 1;
        let mut result = example_result(self.runs);
        (result.planned, result.measurement.start) = (UnixMicros(start), UnixMicros(start));
        result
    }

    /// A slot with one plain run.
    async fn run(&mut self, start: i64) {
        let result = self.result(start);
        self.slot("small", start, vec![result]).await;
    }

    async fn close_days(&mut self) -> u32 {
        self.publisher.close_days(&CancellationToken::new()).await.unwrap()
    }

    async fn listed(&self) -> Vec<Listed> {
        self.store.reader().published_after("").await.unwrap()
    }

    async fn names(&self) -> Vec<String> {
        self.listed().await.into_iter().map(|file| file.name).collect()
    }

    async fn bytes(&self, name: &str) -> Vec<u8> {
        let file = self.store.reader().published_file(name).await.unwrap().unwrap();
        let mut bytes = Vec::new();
        bytes_of(file).read_to_end(&mut bytes).unwrap();
        bytes
    }
}

fn publisher(store: &Store, clock: &SteeredClock) -> Publisher {
    let config = Config::parse(CONFIG, "config.toml").unwrap();
    Publisher::new(&config, store.clone(), Clock::Steered(clock.clone())).unwrap()
}

fn grid() -> Grid {
    Grid::new(Duration::from_secs(12 * 60 * 60), Duration::ZERO)
}

fn midnight() -> i64 {
    NOON + DAY / 2
}

#[tokio::test(start_paused = true)]
async fn a_day_is_closed_some_time_after_its_end() {
    let mut bench = Bench::at(NOON).await;
    bench.run(NOON).await;
    assert_eq!(bench.close_days().await, 0, "the day goes on");
    bench.clock.step(DAY / 2 + 2 * MINUTE - 1);
    assert_eq!(bench.close_days().await, 0, "it is over, but not for long enough");
    bench.clock.step(1);
    assert_eq!(bench.close_days().await, 1);
    assert_eq!(bench.names().await, ["2026-11-22.onionperf.analysis.json.xz", "op-test-51200-2026-11-22.tpf"]);
    assert_eq!(bench.close_days().await, 0, "once is enough");
}

#[tokio::test(start_paused = true)]
async fn a_day_waits_for_the_slots_that_were_planned_within_it() {
    let mut bench = Bench::at(midnight() + 10 * MINUTE).await;
    bench.run(NOON - DAY / 2).await;
    assert_eq!(bench.close_days().await, 0, "the slot of noon is not in the ledger yet");
    let slot = SlotId { experiment: "small".to_owned(), planned: UnixMicros(NOON) };
    bench.store.begin_slot(slot.clone(), grid(), UnixMicros(NOON)).await.unwrap();
    assert_eq!(bench.close_days().await, 0, "it is running");
    let result = bench.result(midnight() - 1);
    let ended = UnixMicros(midnight() + 9 * MINUTE);
    let late = Measurement { ended: 9 * MINUTE as u64, ..result.measurement.clone() };
    let results = vec![NewResult { measurement: late, ..result }];
    bench.store.finish_slot(slot, SlotState::Done, None, ended, results).await.unwrap();
    assert_eq!(bench.close_days().await, 0, "tor may tell more of a run that has just ended");
    bench.clock.step(MINUTE);
    assert_eq!(bench.close_days().await, 1);
}

#[tokio::test(start_paused = true)]
async fn slots_that_came_to_nothing_have_settled_too() {
    let mut bench = Bench::at(midnight() + 3 * MINUTE).await;
    bench.run(NOON - DAY / 2).await;
    let missed = SlotRow {
        experiment: "small".to_owned(),
        planned: UnixMicros(NOON),
        planned_last: UnixMicros(midnight()),
        count: 2,
        state: SlotState::Skipped,
        reason: Some(SlotReason::TorDown),
        started: None,
        ended: None,
    };
    bench.store.record_slots(missed, grid()).await.unwrap();
    assert_eq!(bench.close_days().await, 1);
}

#[tokio::test(start_paused = true)]
async fn only_plain_downloads_of_ones_own_are_published() {
    let mut bench = Bench::at(NOON + DAY).await;
    let start = NOON - 10 * MINUTE;
    bench.run(NOON).await;
    let plain = bench.result(start);
    let mut kept_out = Vec::new();
    for n in 0..6 {
        let mut result = bench.result(start + n);
        match n {
            0 => result.measurement.kind = Kind::Upload,
            1 => result.place = Place { index: 0, of: 2 },
            2 => result.source = "another".to_owned(),
            3 => result.experiment = "secret".to_owned(),
            4 => result.configuration = r#"{"experiment":{"publish":false}}"#.to_owned(),
            _ => result.configuration = r#"{"experiment":{"publish":true}}"#.to_owned(),
        }
        kept_out.push(result);
    }
    let published = kept_out.pop().unwrap();
    let expected = [&plain, &published].map(|result| result.measurement.id.to_string());
    let mut all = vec![plain, published];
    all.extend(kept_out);
    bench.slot("small", start, all).await;
    assert_eq!(bench.close_days().await, 1);
    let file = String::from_utf8(bench.bytes("op-test-51200-2026-11-22.tpf").await).unwrap();
    let ids: Vec<_> = file.lines().filter_map(|line| line.split_once("RUN_ID=")).map(|(_, id)| id.to_owned()).collect();
    assert_eq!(ids[..2], expected);
    assert_eq!(ids.len(), 3, "and the one of noon");
}

#[tokio::test(start_paused = true)]
async fn a_day_without_anything_to_publish_is_not_listed() {
    let mut bench = Bench::at(NOON + DAY).await;
    let mut upload = bench.result(NOON);
    upload.measurement.kind = Kind::Upload;
    bench.slot("small", NOON, vec![upload]).await;
    assert_eq!(bench.close_days().await, 1);
    assert_eq!(bench.names().await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn the_files_hold_the_day_by_start_and_their_digests_are_right() {
    let mut bench = Bench::at(NOON + 2 * DAY).await;
    let mut results = Vec::new();
    // More than two pages, stored last first, and every other one larger.
    for n in (0..250).rev() {
        let mut result = bench.result(NOON + n * 1_000_000);
        result.measurement.size = if n % 2 == 0 { 51_200 } else { 1_048_576 };
        if n == 7 {
            result.measurement.outcome = Outcome::Timeout(Phase::Response);
            result.measurement.steps.data_complete = None;
        }
        result.circuit = Some((example_circuit(), Evidence(String::new())));
        result.circuit.as_mut().unwrap().0.connection = n as u64;
        results.push(result);
    }
    bench.slot("small", NOON, results).await;
    let tomorrow = vec![bench.result(midnight())];
    bench.slot("small", midnight(), tomorrow).await;
    let next = vec![bench.result(NOON + DAY)];
    bench.slot("small", NOON + DAY, next).await;
    assert_eq!(bench.close_days().await, 2, "one after the other");
    assert_eq!(
        bench.names().await,
        [
            "2026-11-22.onionperf.analysis.json.xz",
            "2026-11-23.onionperf.analysis.json.xz",
            "op-test-1048576-2026-11-22.tpf",
            "op-test-51200-2026-11-22.tpf",
            "op-test-51200-2026-11-23.tpf"
        ]
    );
    for Listed { name, size, sha256, .. } in bench.listed().await {
        let bytes = bench.bytes(&name).await;
        let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((size, &sha256), (bytes.len() as u64, &digest), "{name}");
    }
    for (size, lines) in [(51_200, 125), (1_048_576, 125)] {
        let file = String::from_utf8(bench.bytes(&format!("op-test-{size}-2026-11-22.tpf")).await).unwrap();
        assert_eq!(file.matches("@type torperf 1.1\n").count(), 1);
        let starts: Vec<&str> = file.lines().skip(1).map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(starts.len(), lines);
        assert!(starts.is_sorted(), "{starts:?}");
        assert!(!file.contains(" REVISION="), "a revision is not for ever");
    }
    let packed = bench.bytes("2026-11-22.onionperf.analysis.json.xz").await;
    let mut text = String::new();
    XzDecoder::new(&packed[..]).read_to_string(&mut text).unwrap();
    let analysis: Value = serde_json::from_str(&text).unwrap();
    let data = &analysis["data"]["op-test"];
    assert_eq!(data["measurement_ip"], "192.0.2.7");
    assert_eq!(data["tgen"]["streams"].as_object().unwrap().len(), 250);
    assert_eq!(data["tor"]["circuits"].as_object().unwrap().len(), 250);
    assert_eq!(data["tor"]["streams"].as_object().unwrap().len(), 250);
}

#[tokio::test(start_paused = true)]
async fn what_is_published_stays_whatever_comes_later() {
    let mut bench = Bench::at(NOON + DAY).await;
    bench.run(NOON).await;
    assert_eq!(bench.close_days().await, 1);
    let before = (bench.listed().await, bench.bytes("op-test-51200-2026-11-22.tpf").await);
    let id = RunId::from_bits(bench.runs);
    bench.store.complete_run(&id, example_circuit(), Evidence(String::new())).await.unwrap();
    let late = bench.result(NOON + MINUTE);
    bench.slot("late", NOON + MINUTE, vec![late]).await;
    bench.publisher = publisher(&bench.store, &bench.clock);
    assert_eq!(bench.close_days().await, 0);
    assert_eq!((bench.listed().await, bench.bytes("op-test-51200-2026-11-22.tpf").await), before);
}

#[test]
fn an_empty_path_publishes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path: &Path = &folder.path().join("perfd.sqlite");
    let store = Store::open(path).unwrap();
    let config = Config::parse(&format!("{CONFIG}[collector]\npath = \"\"\n"), "config.toml").unwrap();
    assert!(Publisher::new(&config, store, Clock::System).is_none());
}
