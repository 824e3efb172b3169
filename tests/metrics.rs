//! `/metrics`: what it says, and that Prometheus' own tools take it.

#[allow(dead_code, reason = "used in part")]
#[path = "common/fake_tor.rs"]
mod fake_tor;
#[path = "common/relay.rs"]
mod relay;
#[path = "common/service.rs"]
mod service;
#[path = "common/tools.rs"]
mod tools;
#[path = "common/web.rs"]
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fake_tor::{FakeTor, Script};
use perfd::clock::UnixMicros;
use perfd::slot::{Grid, SlotId, SlotReason, SlotRow, SlotState};
use serde_json::Value;
use service::{EACH_SECOND, HARDLY_EVER, PATIENCE, Setup, free_port, get};
use tempfile::TempDir;
use tools::{prometheus_dir, python_dir, succeed};
use web::{Server, add, config, incomplete, new_result};

const OPEN_METRICS: &str = "Accept: application/openmetrics-text; version=1.0.0\r\n";

/// Every line's value by its name and labels.
fn samples(text: &str) -> BTreeMap<&str, f64> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').map(|(name, value)| (name, value.parse().unwrap())).unwrap()).collect()
}

#[tokio::test]
async fn the_last_values_stand_beside_their_times() {
    let server = Server::start(config("")).await;
    add(&server.store, vec![new_result(1, 0)]).await;
    add(&server.store, vec![incomplete(new_result(2, 60), true)]).await;
    add(&server.store, vec![incomplete(new_result(3, 120), false)]).await;
    let reply = server.get("/metrics").await;
    let said = (reply.status, reply.header("content-type"), reply.header("cache-control"));
    assert_eq!(said, (200, Some("text/plain; version=0.0.4; charset=utf-8"), Some("no-store")));
    let values = samples(reply.text());
    let of = |name: &str, labels: &str| values.get(format!("{name}{{{labels}}}").as_str()).copied();
    let tor = "experiment=\"50kib\",tor=\"tor\"";
    // The failed run was the last that got a first byte, and the first one the last that got all.
    assert_eq!(of("perfd_last_result_timestamp_seconds", tor), Some(1_795_341_720.0));
    assert_eq!(of("perfd_last_time_to_first_byte_seconds", tor), Some(0.7001));
    assert_eq!(of("perfd_last_time_to_first_byte_timestamp_seconds", tor), Some(1_795_341_720.0));
    assert_eq!(of("perfd_last_time_to_last_byte_seconds", tor), Some(1.5));
    assert_eq!(of("perfd_last_time_to_last_byte_timestamp_seconds", tor), Some(1_795_341_600.0));
    assert_eq!(of("perfd_last_success_timestamp_seconds", "experiment=\"50kib\""), Some(1_795_341_600.0));
    let outcome = |word: &str| of("perfd_last_result_outcome", &format!("{tor},outcome=\"{word}\""));
    assert_eq!([outcome("complete"), outcome("timeout"), outcome("failed")], [Some(0.0), Some(0.0), Some(1.0)]);
    let ended = |how: &str| of("perfd_results_total", &format!("experiment=\"50kib\",{how}"));
    assert_eq!(ended("outcome=\"complete\",phase=\"\",cause=\"\""), Some(1.0));
    assert_eq!(ended("outcome=\"timeout\",phase=\"data_complete\",cause=\"\""), Some(1.0));
    assert_eq!(ended("outcome=\"failed\",phase=\"response\",cause=\"socks_reply\""), Some(1.0));
    let bytes = ["read", "written"].map(|what| of(&format!("perfd_{what}_bytes_total"), "experiment=\"50kib\""));
    assert_eq!(bytes, [Some(3.0 * 51_466.0), Some(3.0 * 84.0)]);
    let up_to = |le: &str| of("perfd_time_to_first_byte_seconds_bucket", &format!("experiment=\"50kib\",le=\"{le}\""));
    assert_eq!(["0.5", "0.75", "1", "300", "+Inf"].map(up_to), [0.0, 3.0, 3.0, 3.0, 3.0].map(Some));
    let last = |what: &str| of(&format!("perfd_time_to_last_byte_seconds_{what}"), "experiment=\"50kib\"");
    assert_eq!(["count", "sum"].map(last), [Some(1.0), Some(1.5)]);
    assert_eq!(of("perfd_experiment_period_seconds", "experiment=\"50kib\""), Some(300.0));
    assert_eq!(values["perfd_store_readable"], 1.0);
    assert!(values["perfd_store_size_bytes{file=\"database\"}"] > 0.0);
    assert!(values.keys().any(|name| name.starts_with("perfd_build_info{version=\"")), "{}", reply.text());
}

#[tokio::test]
async fn a_server_without_results_says_so() {
    let server = Server::start(config("")).await;
    let reply = server.get_with("/metrics", OPEN_METRICS).await;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((reply.status, reply.header("content-type")), (200, Some(content_type)));
    assert!(reply.text().ends_with("\n# EOF\n"));
    let values = samples(reply.text());
    assert_eq!(values["perfd_slots_planned_total{experiment=\"50kib\"}"], 0.0);
    assert!(!reply.text().contains("perfd_last_"), "{}", reply.text());

    let server = Server::start(config("")).await;
    server.database().execute_batch("DROP TABLE result").unwrap();
    let reply = server.get("/metrics").await;
    let values = samples(reply.text());
    assert_eq!((values["perfd_store_readable"], values["perfd_store_writable"]), (0.0, 1.0));
    assert!(!reply.text().contains("perfd_slots"), "{}", reply.text());
}

#[tokio::test]
async fn the_slots_add_up() {
    let server = Server::start(config("")).await;
    let grid = Grid::new(Duration::from_secs(1), Duration::ZERO);
    let slot = |second: i64| SlotId { experiment: "50kib".to_owned(), planned: UnixMicros(second * 1_000_000) };
    let row = |first: i64, last: i64, state| SlotRow {
        experiment: "50kib".to_owned(),
        planned: slot(first).planned,
        planned_last: slot(last).planned,
        count: (last - first + 1).unsigned_abs(),
        state,
        reason: (state == SlotState::Skipped).then_some(SlotReason::Busy),
        started: None,
        ended: None,
    };
    for second in 1..=4 {
        server.store.begin_slot(slot(second), grid, slot(second).planned).await.unwrap();
    }
    let (done, ended) = (vec![new_result(9, 1)], UnixMicros(2_000_000));
    server.store.finish_slot(slot(1), SlotState::Done, None, ended, done).await.unwrap();
    let shutdown = Some(SlotReason::Shutdown);
    server.store.finish_slot(slot(2), SlotState::Aborted, shutdown, ended, Vec::new()).await.unwrap();
    server.store.record_slots(row(5, 7, SlotState::Skipped), grid).await.unwrap();
    server.store.record_slots(row(8, 20, SlotState::Missed), grid).await.unwrap();
    let reply = server.get("/metrics").await;
    let values = samples(reply.text());
    let state = |word: &str| values[format!("perfd_slots_total{{experiment=\"50kib\",state=\"{word}\"}}").as_str()];
    assert_eq!(["done", "skipped", "aborted", "missed"].map(state), [1.0, 3.0, 1.0, 13.0]);
    assert_eq!(values["perfd_slots_running{experiment=\"50kib\"}"], 2.0);
    assert_eq!(values["perfd_slots_planned_total{experiment=\"50kib\"}"], 20.0);
}

/// The sum is read at one moment, so it never falls while slots move from one state to the next, and each slot is in
/// it once.
#[tokio::test(flavor = "multi_thread")]
async fn the_slots_add_up_while_runs_go_on() {
    const SLOTS: i64 = 300;
    let server = Server::start(config("")).await;
    let grid = Grid::new(Duration::from_secs(1), Duration::ZERO);
    let (store, reader) = (server.store.clone(), server.store.reader().clone());
    let measuring = tokio::spawn(async move {
        for second in 1..=SLOTS {
            let planned = UnixMicros(second * 1_000_000);
            let slot = SlotId { experiment: "50kib".to_owned(), planned };
            store.begin_slot(slot.clone(), grid, planned).await.unwrap();
            let state = if second % 3 == 0 { SlotState::Aborted } else { SlotState::Done };
            let reason = (state == SlotState::Aborted).then_some(SlotReason::Shutdown);
            store.finish_slot(slot, state, reason, planned, Vec::new()).await.unwrap();
        }
    });
    let (mut before, mut seen) = (0, BTreeSet::new());
    while !measuring.is_finished() {
        let asked = vec![("50kib".to_owned(), vec!["tor".to_owned()])];
        let slots = reader.tally(asked).await.unwrap().experiments[0].slots;
        let planned = slots.done + slots.skipped + slots.aborted + slots.missed + slots.running;
        assert!(planned >= before && planned <= SLOTS.unsigned_abs(), "{before} {slots:?}");
        assert!(slots.running <= 1 && slots.done >= 2 * slots.aborted, "{slots:?}");
        before = planned;
        seen.insert(planned);
    }
    measuring.await.unwrap();
    assert!(seen.len() > 3, "{seen:?}");
    let in_ledger: i64 = server.database().query_row("SELECT sum(count) FROM slot", [], |row| row.get(0)).unwrap();
    let text = server.get("/metrics").await;
    assert_eq!(samples(text.text())["perfd_slots_planned_total{experiment=\"50kib\"}"], in_ledger as f64);
}

/// A perfd that has measured through a tor that it controls, and has another one that does not come up.
fn measuring() -> (FakeTor, Setup, service::Service) {
    let tor = FakeTor::start(vec![Script::default()]);
    let setup = Setup::new().controlled_tor("tor", tor.socks, tor.control);
    let program = setup.folder().join("no-tor");
    std::fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let nowhere = "0".repeat(40);
    let authorities = format!("authorities = [\"nowhere orport=1 no-v2 v3ident={nowhere} 127.0.0.1:1 {nowhere}\"]\n");
    let mut setup = setup
        .started_tor("own", &program, &authorities)
        .experiment("1kib", "tor", "1 KiB", EACH_SECOND)
        .experiment("idle", "own", "1 KiB", HARDLY_EVER);
    let perfd = setup.start_measuring();
    perfd.wait_for_lines(2, "run finished");
    (tor, setup, perfd)
}

/// The page in OpenMetrics' format.
fn open_metrics(port: u16) -> String {
    let request = format!("GET /metrics HTTP/1.0\r\n{OPEN_METRICS}\r\n");
    let mut stream = service::ask(port, &request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Reads OpenMetrics strictly, and prints what it found.
const READ_OPEN_METRICS: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    print(family.name, family.type, family.unit, len(family.samples))
";

#[test]
fn prometheus_own_tools_take_both_formats() {
    let (Some(prometheus), Some(python)) = (prometheus_dir(), python_dir()) else { return };
    let (_tor, _setup, mut perfd) = measuring();
    let text = get(perfd.port(), "/metrics").unwrap().text();
    let said = succeed(Command::new(prometheus.join("promtool")).args(["check", "metrics"]), &text);
    assert_eq!(said, "", "{text}");
    let open = open_metrics(perfd.port());
    let read = succeed(Command::new(python.join("python")).args(["-c", READ_OPEN_METRICS]), &open);
    for family in [
        "perfd_build info  1",
        "perfd_slots counter  8",
        "perfd_time_to_first_byte_seconds histogram seconds 38",
        "perfd_read_bytes counter bytes 2",
        "perfd_tor_up gauge  2",
        "perfd_tor_restarts counter  1",
    ] {
        assert!(read.lines().any(|line| line == family), "{family}: {read}");
    }
    // Both tell the same.
    assert_eq!(names(&text), names(&open));
    perfd.end_well_within(PATIENCE);
}

/// The names on the lines of a page.
fn names(text: &str) -> BTreeSet<&str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(['{', ' ']).next().unwrap()).collect()
}

fn contrib(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib").join(file)
}

/// The queries of the dashboard, with values in place of its variables.
fn dashboard_queries() -> Vec<String> {
    let text = std::fs::read_to_string(contrib("grafana/perfd.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    let values = [("$instance", ".*"), ("$experiment", ".*"), ("$window", "1h"), ("$__range", "1d")];
    let filled = |query: &str| values.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value));
    let queries: Vec<_> = expressions.map(filled).collect();
    assert!(queries.len() > 20 && queries.iter().all(|query| !query.contains('$')), "{queries:#?}");
    queries
}

#[test]
fn the_dashboard_and_the_alerts_name_what_there_is() {
    let (_tor, _setup, mut perfd) = measuring();
    let text = get(perfd.port(), "/metrics").unwrap().text();
    let there = names(&text);
    let mut asked = dashboard_queries();
    let rules = std::fs::read_to_string(contrib("prometheus/perfd.rules.yml")).unwrap();
    asked.extend(rules.lines().filter(|line| !line.trim_start().starts_with('#')).map(str::to_owned));
    let mut found = 0;
    for query in &asked {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for name in words.filter(|word| word.starts_with("perfd_")) {
            assert!(there.contains(name), "{name} of {query}");
            found += 1;
        }
    }
    assert!(found > 40, "{found}");
    perfd.end_well_within(PATIENCE);
}

#[test]
fn the_alerts_say_what_they_are_to_say() {
    let Some(prometheus) = prometheus_dir() else { return };
    let mut promtool = Command::new(prometheus.join("promtool"));
    succeed(promtool.current_dir(contrib("prometheus")).args(["check", "rules", "perfd.rules.yml"]), "");
    let mut promtool = Command::new(prometheus.join("promtool"));
    succeed(promtool.current_dir(contrib("prometheus")).args(["test", "rules", "perfd.rules.test.yml"]), "");
}

/// A Prometheus that scrapes a perfd each second, killed with this value.
struct Prometheus {
    child: Child,
    port: u16,
    _folder: TempDir,
}

impl Prometheus {
    fn start(program: &Path, perfd: u16) -> Prometheus {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{:?}]\n\
             scrape_configs: [{{job_name: perfd, static_configs: [{{targets: [\"127.0.0.1:{perfd}\"]}}]}}]\n",
            contrib("prometheus/perfd.rules.yml")
        );
        std::fs::write(folder.path().join("prometheus.yml"), config).unwrap();
        let port = free_port();
        let mut command = Command::new(program);
        command.arg("--config.file").arg(folder.path().join("prometheus.yml"));
        command.arg("--storage.tsdb.path").arg(folder.path().join("data"));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}")).stdout(Stdio::null()).stderr(Stdio::null());
        Prometheus { child: command.spawn().unwrap(), port, _folder: folder }
    }

    /// What this query gives now; `None` until it serves.
    fn query(&self, query: &str) -> Option<Value> {
        let query: String = form_urlencoded::byte_serialize(query.as_bytes()).collect();
        let answer = get(self.port, &format!("/api/v1/query?query={query}")).ok()?;
        serde_json::from_slice(&answer.body).ok()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_perfd_and_tells_of_it() {
    let Some(programs) = prometheus_dir() else { return };
    let (_tor, _setup, mut perfd) = measuring();
    let prometheus = Prometheus::start(&programs.join("prometheus"), perfd.port());
    let answer = perfd.wait_within(2 * PATIENCE, "a scrape", || {
        let answer = prometheus.query("perfd_experiment_size_bytes{experiment=\"1kib\"}")?;
        answer["data"]["result"].as_array().is_some_and(|all| !all.is_empty()).then_some(answer)
    });
    let result = &answer["data"]["result"][0];
    assert_eq!((&result["metric"]["job"], &result["metric"]["kind"]), (&"perfd".into(), &"download".into()));
    assert_eq!(result["value"][1], "1024");
    let up = prometheus.query("up").unwrap();
    assert_eq!(up["data"]["result"][0]["value"][1], "1", "{up}");
    for query in dashboard_queries() {
        let answer = prometheus.query(&query).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
    }
    drop(prometheus);
    perfd.end_well_within(PATIENCE);
}
