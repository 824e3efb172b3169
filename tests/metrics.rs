//! `/metrics`: what it says, and that Prometheus' own tools take it.

#[path = "common/web.rs"]
mod web;

use perfd::clock::UnixMicros;
use perfd::slot::{Grid, SlotId, SlotReason, SlotRow, SlotState};
use std::collections::BTreeMap;
use std::time::Duration;
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
