//! What tor told, as the server gives it out: one run whole, circuits that no run used, tors compared in pairs,
//! and `perfd results` with one run's name.

#[path = "common/web.rs"]
mod web;

use std::process::Output;

use perfd::circuit::{CircuitData, CircuitState, Evidence, LooseCircuit};
use perfd::clock::UnixMicros;
use perfd::measurement::RunId;
use perfd::store::NewResult;
use serde_json::{Value, json};
use web::{Client, Server, add, circuit_data, config, new_result, perfd, with_circuit, within};

/// A name that no other begins like.
const NAME: u128 = 0xfeed_beef << 96;

#[tokio::test]
async fn one_run_comes_whole_and_is_completed_later() {
    let server = Server::start(config("")).await;
    add(&server.store, with_circuit(NAME, 1, &["a", "b"], Some(1_500))).await;
    let (id, mate) = (RunId::from_bits(NAME), RunId::from_bits(NAME + 1));
    let one = server.get(&format!("/results/{id}")).await.json();
    assert_eq!(one["circuit"], serde_json::to_value(circuit_data()).unwrap());
    assert_eq!(one["curve"], json!([[700_100, 498], [1_500_000, 51_200]]));
    assert_eq!(one["evidence"], json!("650 CIRC 17 BUILT\n"));
    assert_eq!(one["slot_runs"], json!([{ "run_id": mate.as_str(), "tor": "b", "index": 1 }]));
    assert_eq!(one["place"], json!({ "index": 0, "of": 2 }));
    assert_eq!((&one["slot"]["state"], &one["configuration"]), (&Value::Null, &json!({ "source": "test" })));

    let list = server.get("/results.json").await.json();
    assert_eq!(list["latest_revision"], 2);
    assert_eq!(
        (&list["results"][0]["circuit"]["state"], &list["results"][0]["curve"]),
        (&json!("known"), &Value::Null)
    );

    let lost = CircuitData { state: CircuitState::TorLost, ..circuit_data() };
    let completed = server.store.complete_run(&id, lost, Evidence(String::new())).await;
    assert_eq!(completed, Ok(Some(3)));
    let again = server.get("/results.json?cursor=2").await.json();
    assert_eq!(again["results"].as_array().unwrap().len(), 1);
    assert_eq!((&again["results"][0]["run_id"], &again["results"][0]["revision"]), (&json!(id.as_str()), &json!(3)));
    assert_eq!(again["results"][0]["circuit"]["state"], "tor_lost");
    let one = server.get(&format!("/results/{id}")).await.json();
    assert_eq!((&one["evidence"], &one["revision"]), (&Value::Null, &json!(3)));
}

#[tokio::test]
async fn one_run_is_drawn() {
    let server = Server::start(config("")).await;
    add(&server.store, with_circuit(NAME, 1, &["a"], Some(1_500))).await;
    for name in [RunId::from_bits(NAME).as_str(), "feedbe"] {
        let drawn = server.get_with(&format!("/results/{name}.txt"), "Accept: application/json\r\n").await;
        assert_eq!((drawn.status, drawn.header("content-type")), (200, Some("text/plain; charset=utf-8")));
        assert!(drawn.text().starts_with("complete: download of 50 KiB by exit through a\n"), "{}", drawn.text());
        assert!(drawn.text().contains("\n  1 relay1 $11111111                  100.0  ███"), "{}", drawn.text());
        let torperf = server.get_with(&format!("/results/{name}"), "Accept: text/plain\r\n").await;
        assert!(torperf.text().starts_with("@type torperf 1.1\nSOURCE=test "));
        assert!(torperf.text().contains(" LAUNCH=1795341600.000000 PATH=$1111"), "{}", torperf.text());
    }
    assert_eq!(server.get("/results/feedbe0000000.txt").await.status, 404);
}

#[tokio::test]
async fn circuits_that_no_run_used_are_given_by_their_time() {
    let server = Server::start(config("")).await;
    let circuit = |id: u64, second: i64| LooseCircuit {
        tor: "tor".to_owned(),
        connection: 1,
        since: UnixMicros(1_795_341_600_000_000 + second * 1_000_000),
        circuit: perfd::circuit::Circuit { id, ..circuit_data().circuit.unwrap() },
    };
    server.store.record_circuits((0..5).map(|n| circuit(n as u64, n)).collect()).await.unwrap();
    let get = async |query: &str| server.get(&format!("/circuits.json{query}")).await.json();
    let ids = |answer: &Value| -> Vec<u64> {
        answer["circuits"].as_array().unwrap().iter().map(|one| one["circuit"]["id"].as_u64().unwrap()).collect()
    };
    let all = get("").await;
    assert_eq!((ids(&all), &all["more"]), (vec![0, 1, 2, 3, 4], &json!(false)));
    assert_eq!(all["circuits"][0]["since"], "2026-11-22T10:00:00.000000Z");
    assert_eq!(all["circuits"][0]["circuit"]["path"][2]["relay"]["nickname"], "relay3");
    let some = get("?since=2026-11-22T10:00:01Z&until=2026-11-22T10:00:04Z&limit=2").await;
    assert_eq!((ids(&some), &some["more"]), (vec![1, 2], &json!(true)));
    assert_eq!(ids(&get("?until=2026-11-22").await), [0u64; 0]);
    for (query, reason) in [
        ("?limit=1001", "limit=1001: must be a number from 1 to 1000"),
        ("?since=soon", "since=soon: must be a time such as"),
        ("?tor=a", "tor is no parameter of this page; there are since, until, limit"),
    ] {
        let reply = server.get(&format!("/circuits.json{query}")).await;
        assert_eq!((reply.status, reply.reason().contains(reason)), (400, true), "{}", reply.reason());
    }
}

/// Who reads slowly, or not at all, holds an answer in memory: so it counts until it is sent.
#[tokio::test]
async fn circuits_have_their_place_until_they_are_read() {
    let server = Server::start(config("")).await;
    // More than the system's buffers take of an answer that nobody reads.
    let circuit = |id: u64| LooseCircuit {
        tor: "tor".to_owned(),
        connection: 1,
        since: UnixMicros(id as i64),
        circuit: perfd::circuit::Circuit {
            id,
            build_flags: vec!["X".repeat(10_000)],
            ..circuit_data().circuit.unwrap()
        },
    };
    server.store.record_circuits((0..1000).map(circuit).collect()).await.unwrap();
    let ask = async || {
        let mut client = Client::connect_narrow(server.address).await;
        client.send("GET /circuits.json HTTP/1.1\r\nHost: test\r\n\r\n").await;
        let (status, headers) = within("head", client.head()).await;
        (client, status, headers)
    };
    let mut stalled = Vec::new();
    let refused = loop {
        let (client, status, headers) = ask().await;
        if status != 200 {
            break headers;
        }
        stalled.push(client);
        assert!(stalled.len() <= 4, "one client gets no more of them");
    };
    assert!(refused.contains(&("retry-after".to_owned(), "5".to_owned())), "{refused:?}");
    assert_eq!(stalled.len(), 4);
    assert_eq!(server.get("/pairs.json?experiment=50kib").await.status, 503, "these are the same places");
    drop(stalled);
    within("place", async { while server.get("/pairs.json?experiment=50kib").await.status != 200 {} }).await;
    for _ in 0..5 {
        assert_eq!(server.get("/circuits.json?limit=2").await.json()["circuits"].as_array().unwrap().len(), 2);
    }
}

/// Three slots of a pair that differ by 10, 20 and 30 ms, and one in which `b` was cut off.
async fn with_pairs() -> Server {
    let server = Server::start(config("")).await;
    for (slot, (a, b)) in [(1_110, 1_100), (1_220, 1_200), (1_330, 1_300)].into_iter().enumerate() {
        add(&server.store, pair(slot, Some(a), Some(b))).await;
    }
    add(&server.store, pair(3, Some(1_000), None)).await;
    add(&server.store, vec![new_result(1, 100)]).await;
    server
}

fn pair(slot: usize, a: Option<u64>, b: Option<u64>) -> Vec<NewResult> {
    let runs = |last_byte| with_circuit(100 + 10 * slot as u128, slot as i64, &["a", "b"], last_byte);
    vec![runs(a).swap_remove(0), runs(b).swap_remove(1)]
}

#[tokio::test]
async fn tors_are_compared_in_pairs() {
    let server = with_pairs().await;
    let answer = server.get("/pairs.json?experiment=50kib").await;
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let answer = answer.json();
    let comparison = &answer["comparisons"][0];
    assert_eq!((&answer["experiment"], &answer["not_looked_at_until"]), (&json!("50kib"), &Value::Null));
    assert_eq!((&comparison["a"], &comparison["b"], &comparison["slots"]), (&json!("a"), &json!("b"), &json!(3)));
    assert_eq!(
        comparison["left_out"],
        json!({ "a_incomplete": 0, "b_incomplete": 1, "both_incomplete": 0, "one_missing": 0 })
    );
    let last = &comparison["time_to_last_byte"];
    assert_eq!((last["mean_ms"].as_f64().unwrap().round(), last["median_ms"].as_f64()), (20.0, Some(20.0)));
    let half = last["confidence_95_ms"][1].as_f64().unwrap() - last["mean_ms"].as_f64().unwrap();
    assert!((half - 24.841).abs() < 1e-3, "{half}");
    assert_eq!(comparison["time_to_first_byte"]["mean_ms"], 0.0);

    let one = server.get("/pairs.json?experiment=50kib&until=2026-11-22T10:00:01Z").await.json();
    assert_eq!(one["comparisons"][0]["slots"], 1);
    assert_eq!(one["comparisons"][0]["time_to_last_byte"]["confidence_95_ms"], Value::Null);
    assert_eq!(server.get("/pairs.json?experiment=other").await.json()["comparisons"], json!([]));
    for (query, reason) in [
        ("", "name the experiment"),
        ("?experiment=50kib&tor=a", "tor is no parameter"),
        ("?experiment=a&experiment=a", "experiment is given twice"),
    ] {
        let reply = server.get(&format!("/pairs.json{query}")).await;
        assert_eq!((reply.status, reply.reason().contains(reason)), (400, true), "{}", reply.reason());
    }
}

async fn results(server: &Server, args: &[&str]) -> Output {
    let mut command = perfd();
    command.args(["results", "--server", &format!("http://{}", server.address)]).args(args);
    within("command", tokio::task::spawn_blocking(move || command.output().unwrap())).await.unwrap()
}

#[tokio::test]
async fn the_command_draws_one_run_and_filters_many() {
    let server = Server::start(config("")).await;
    add(&server.store, with_circuit(NAME, 1, &["a", "b"], Some(1_500))).await;
    let id = RunId::from_bits(NAME);
    let drawn = results(&server, &[id.as_str()]).await;
    assert_eq!(drawn.status.code(), Some(0), "{}", String::from_utf8_lossy(&drawn.stderr));
    assert_eq!(drawn.stdout, server.get(&format!("/results/{id}.txt")).await.body);
    for format in ["json", "tpf", "csv"] {
        let printed = results(&server, &[id.as_str(), "--format", format]).await;
        assert_eq!(printed.stdout, server.get(&format!("/results/{id}.{format}")).await.body);
    }
    let table = results(&server, &["--tor", "b", "--kind", "download", "--server-kind", "exit"]).await;
    let table = String::from_utf8(table.stdout).unwrap();
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[1].ends_with("feedbeef  relay1>relay2>relay3"), "{table}");

    let ambiguous = results(&server, &["feedbeef"]).await;
    let why = String::from_utf8(ambiguous.stderr).unwrap();
    assert_eq!((ambiguous.status.code(), why.contains("more than one result begins with feedbeef")), (Some(2), true));
    let both = results(&server, &["feedbeef", "--tor", "a"]).await;
    assert_eq!(both.status.code(), Some(2));
}
