//! `/stats/…` and `perfd stats`: every statistic in both forms, what is refused, and what happens when many ask.

#[path = "common/web.rs"]
mod web;

use std::sync::mpsc::channel;
use std::time::Duration;

use perfd::measurement::ServerKind;
use perfd::slot::{Grid, SlotId, SlotState};
use perfd::store::{NewResult, Store};
use serde_json::{Value, json};
use web::{Server, config, incomplete, new_result, with_circuit, within};

const DAY: i64 = 86_400;

/// Ten runs on each of three days, the n-th taking n s; those of the last day fail but for five.
fn thirty() -> Vec<NewResult> {
    let run = |n: i64| {
        let mut new = new_result(n as u128 + 1, n / 10 * DAY + n % 10);
        new.measurement.steps.data_complete = Some((n % 10 + 1) as u64 * 1_000_000);
        new.server = if n % 2 == 0 { ServerKind::Exit } else { ServerKind::Onion };
        if n >= 25 { incomplete(new, n % 2 == 0) } else { new }
    };
    (0..30).map(run).collect()
}

async fn with_thirty() -> Server {
    let server = Server::start(config("")).await;
    for new in thirty() {
        add(&server.store, vec![new]).await;
    }
    server
}

/// Stores results in one slot, planned when the first of them began.
async fn add(store: &Store, results: Vec<NewResult>) {
    let planned = results.first().unwrap().measurement.start;
    let slot = SlotId { experiment: "50kib".to_owned(), planned };
    store.begin_slot(slot.clone(), Grid::new(Duration::from_secs(1), Duration::ZERO), planned).await.unwrap();
    within("store", store.finish_slot(slot, SlotState::Done, None, planned, results)).await.unwrap();
}

async fn rows(server: &Server, target: &str) -> Vec<Value> {
    let reply = server.get(target).await;
    assert_eq!(reply.status, 200, "{target}: {}", reply.text());
    reply.json()["rows"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_summary_is_given_by_period_and_group() {
    let server = with_thirty().await;
    let found = rows(&server, "/stats/summary.json?period=day&group=experiment").await;
    let brief: Vec<Value> =
        found.iter().map(|row| json!([row["period"], row["samples"], row["p50"], row["p90"]])).collect();
    let expected = json!([
        ["2026-11-22", 10, 5500.0, 9100.0],
        ["2026-11-23", 10, 5500.0, 9100.0],
        ["2026-11-24", 5, 3000.0, null]
    ]);
    assert_eq!(Value::from(brief), expected);
    assert_eq!((&found[2]["runs"], &found[2]["coverage"], &found[2]["exact"]), (&json!(10), &json!(1.0), &json!(true)));
    let csv = server.get("/stats/summary.csv?group=server&since=2026-11-24").await;
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    let lines: Vec<&str> = csv.text().lines().collect();
    assert_eq!(
        lines[0],
        "period,server,quantity,unit,runs,samples,coverage,mean,min,max,p10,p25,p50,p75,p90,p99,exact"
    );
    assert_eq!(lines[1..].len(), 2);
    assert!(lines[1].starts_with(",exit,time_to_last_byte,ms,5,3,"), "{}", lines[1]);
    assert!(lines[1].contains(",,,,,,,,,"), "three samples are below the floor: {}", lines[1]);
}

#[tokio::test]
async fn every_statistic_answers_in_both_forms() {
    let server = with_thirty().await;
    add(&server.store, with_circuit(100, 50, &["a", "b"], Some(900))).await;
    add(&server.store, with_circuit(110, 60, &["a", "b"], None)).await;
    let index = server.get("/stats/").await.json();
    let statistics = index["statistics"].as_array().unwrap();
    assert_eq!(statistics.len(), 17);
    for statistic in statistics {
        let query = if statistic["name"] == "paired" { "?experiment=50kib" } else { "?since=2020-01-01" };
        let json = server.get(&format!("{}{query}", statistic["json"].as_str().unwrap())).await;
        let csv = server.get(&format!("{}{query}", statistic["csv"].as_str().unwrap())).await;
        assert_eq!((json.status, csv.status), (200, 200), "{} {}", json.text(), csv.text());
        let (rows, lines) = (json.json()["rows"].as_array().unwrap().len(), csv.text().lines().count());
        assert_eq!(rows + 1, lines, "{}", statistic["name"]);
        if !statistic["name"].as_str().unwrap().contains("throughput") {
            assert!(rows > 0, "{}", statistic["name"]);
        }
    }
}

#[tokio::test]
async fn tor_metrics_columns_come_first() {
    let server = with_thirty().await;
    let first =
        async |name: &str| server.get(&format!("/stats/tor-metrics/{name}.csv?floor=1")).await.text().to_owned();
    let downloads = first("downloads").await;
    assert_eq!(downloads.lines().next(), Some("date,filesize,source,server,q1,md,q3,samples,coverage,exact"));
    assert_eq!(downloads.lines().nth(1), Some("2026-11-22,51200,test,onion,4000,6000,8000,5,1,true"));
    let failures = server.get("/stats/tor-metrics/failures.csv").await;
    assert_eq!(failures.text().lines().last(), Some("2026-11-24,test,public,2,0,5,0,1,true"));
    // Today and yesterday are those of the clock, long after these days; so nothing is left out, or all.
    let left = server.get("/stats/tor-metrics/downloads.csv?omit_last_days=2").await;
    assert!(left.status == 200, "{}", left.text());
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_with_a_reason() {
    let server = with_thirty().await;
    for (target, status, reason) in [
        ("/stats/summary.json?quantity=speed", 400, "must be one of time_to_first_byte"),
        ("/stats/summary.json?colour=red", 400, "colour is no parameter here"),
        ("/stats/summary.csv?tor=a&tor=b", 400, "tor is given twice"),
        ("/stats/paired.json", 400, "experiment=NAME"),
        ("/stats/summary.xml", 404, "no such page"),
        ("/stats/summary", 404, "no such page"),
        ("/stats/tor-metrics/relays.json", 404, "no such page"),
        ("/stats/onionperf/summary.csv", 404, "no such page"),
        ("/stats", 404, "no such page"),
    ] {
        let reply = server.get(target).await;
        assert_eq!(reply.status, status, "{target}");
        assert!(reply.reason().contains(reason), "{target}: {}", reply.reason());
    }
}

#[tokio::test]
async fn an_answer_is_not_sent_again_while_it_stays_the_same() {
    let server = with_thirty().await;
    let target = "/stats/summary.json?period=day";
    let first = server.get(target).await;
    let tag = first.header("etag").unwrap().to_owned();
    let again = server.get_with(target, &format!("If-None-Match: \"x\", W/{tag}\r\n")).await;
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(tag.as_str())));
    add(&server.store, vec![new_result(99, 40)]).await;
    let changed = server.get_with(target, &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!(changed.status, 200);
    assert_eq!(changed.json()["rows"][0]["samples"], 11);
}

/// While the one thread is busy few wait, and the others are told at once; results are given all the while.
#[tokio::test]
async fn when_too_many_ask_they_are_told_and_results_go_on() {
    let server = with_thirty().await;
    let statistics = server.store.statistics().clone();
    let (release, held) = channel::<()>();
    let (begun, began) = tokio::sync::oneshot::channel();
    let hold = {
        let statistics = statistics.clone();
        tokio::spawn(async move {
            let question = move |_: &perfd::store::Reading<'_>| {
                let _ = begun.send(());
                let _ = held.recv_timeout(web::DEADLINE);
                Ok(())
            };
            statistics.ask(Duration::from_secs(60), question).await
        })
    };
    within("begun", began).await.unwrap();
    let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(statistics.ask(Duration::from_secs(60), |_| Ok(())))).collect();
    for question in &mut waiting {
        assert!(futures_util::poll!(question.as_mut()).is_pending());
    }
    let refused = server.get("/stats/summary.json").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert!(refused.reason().contains("too many questions"), "{}", refused.reason());
    assert_eq!(server.get("/results.json?limit=1").await.status, 200);
    drop(release);
    assert_eq!(within("held", hold).await.unwrap(), Ok(()));
    for question in waiting {
        assert_eq!(within("waiting", question).await, Ok(()));
    }
    assert_eq!(server.get("/stats/summary.json").await.status, 200);
}

/// The command tells what the service tells, and the same of the file alone.
#[tokio::test]
async fn perfd_stats_asks_the_service_or_reads_the_store() {
    let server = with_thirty().await;
    let file = server.database().path().unwrap().to_owned();
    let url = format!("http://{}", server.address);
    let ask = async |args: &str, from: [&str; 2]| {
        let mut command = web::perfd();
        command.arg("stats").args(args.split_whitespace()).args(from);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = within("perfd stats", output).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let service = ["--server", url.as_str()];
    let store = ["--store", file.as_str()];
    for args in ["", "--period day --format csv", "failures --format json --group server", "onionperf/ttfb --floor 1"] {
        let (code, text, errors) = ask(args, service).await;
        assert_eq!((code, errors.as_str()), (0, ""), "{args}");
        assert!(text.lines().count() > 1, "{args}: {text}");
        assert_eq!(ask(args, store).await, (0, text, String::new()), "{args}");
    }
    let (_, table, _) = ask("--period day --group source --until 2026-11-23", service).await;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(table.lines().next(), Some("period 2026-11-22, source test, quantity time_to_last_byte, unit ms"));
    assert_eq!(lines[1][..4], ["RUNS", "SAMPLES", "COVERAGE", "MEAN"]);
    assert_eq!(lines[2][..3], ["10", "10", "1.000"]);
    assert!(table.lines().all(|line| line.len() <= 100), "{table}");
    for (args, reason) in [("--group colour", "--group colour: must be one of source"), ("paired", "--experiment NAME")]
    {
        for from in [service, store] {
            let (code, text, errors) = ask(args, from).await;
            assert_eq!((code, text.as_str()), (2, ""), "{args}: {errors}");
            assert!(errors.contains(reason), "{errors}");
        }
    }
    for (args, reason) in [
        ("--experiment typo", "there is no result of the experiment \"typo\"; there are 50kib"),
        ("paired --experiment 50kib", "compares no tors"),
        ("--since 2026-11-24 --group server", "--floor 1 shows all"),
    ] {
        for from in [service, store] {
            let (code, _, errors) = ask(args, from).await;
            assert!(code == 0 && errors.contains(reason), "{args}: {errors}");
        }
    }
    let (_, help, _) = ask("--help", store).await;
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for line in ["paired:", "(--quantity, --group, --points, --floor)", "[default: source,experiment]"] {
        assert!(help.contains(line), "{line}: {help}");
    }
    let (code, _, errors) = ask("", ["--store", "/nowhere/perfd.sqlite"]).await;
    assert!(code != 0 && errors.contains("there is no store"), "{code} {errors}");
}
