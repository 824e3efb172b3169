//! `/events`: nothing is missed and nothing told twice, over broken connections, restarts and late completion.

#[path = "common/web.rs"]
mod web;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perfd::circuit::Evidence;
use perfd::measurement::RunId;
use perfd::store::Store;
use serde_json::json;
use web::{Client, Listener, Server, Service, Told, add, circuit_data, config, fill, new_result, with_circuit, within};

/// More of what tor told of a run.
async fn complete(store: &Store, id: u128, lines: &str) -> i64 {
    let evidence = Evidence(format!("650 CIRC 17 BUILT\n{lines}\n"));
    within("store", store.complete_run(&RunId::from_bits(id), circuit_data(), evidence)).await.unwrap().unwrap()
}

fn run_of(told: &Told) -> u128 {
    u128::from_str_radix(told.data["run_id"].as_str().unwrap(), 16).unwrap()
}

#[tokio::test]
async fn results_are_told_as_they_are_stored_and_again_as_they_are_completed() {
    let server = Server::start(config("")).await;
    add(&server.store, vec![new_result(1, 1)]).await;
    let mut listener = Listener::start(server.address, "", "").await;
    let hello = listener.told().await;
    let expected = Told { name: "hello".to_owned(), id: 1, data: json!({ "revision": 1, "latest_revision": 1 }) };
    assert_eq!(hello, expected);

    add(&server.store, with_circuit(2, 2, &["main"], Some(900))).await;
    let told = listener.told().await;
    assert_eq!((told.name.as_str(), told.id), ("result", 2));
    let line = server.get("/results.ndjson?cursor=1").await;
    assert_eq!(told.data, line.json(), "it is a line of /results.ndjson");

    assert_eq!(complete(&server.store, 2, "more").await, 3);
    let told = listener.told().await;
    assert_eq!((told.name.as_str(), told.id, run_of(&told)), ("completed", 3, 2));
    assert_eq!(told.data["revision"], 3);

    // Who has seen neither is told of the run as of a new one, and who saw it as of one that was completed.
    for (query, headers, name) in [
        ("cursor=0", "", "result"),
        ("cursor=0", "Last-Event-ID: 1\r\n", "result"),
        ("cursor=0", "Last-Event-ID: 2\r\n", "completed"),
        ("last=1", "", "result"),
    ] {
        let mut listener = Listener::start(server.address, query, headers).await;
        let mut told = [listener.told().await, listener.told().await];
        if headers.is_empty() && query == "cursor=0" {
            assert_eq!((run_of(&told[1]), told[1].id), (1, 1));
            told[1] = listener.told().await;
        }
        assert_eq!((told[1].name.as_str(), told[1].id), (name, 3), "{query} {headers}");
    }
}

#[tokio::test]
async fn each_form_of_results_can_be_followed() {
    let server = Server::start(config("")).await;
    add(&server.store, (1..=3).map(|id| new_result(id, id as i64)).collect()).await;
    for format in ["tpf", "csv"] {
        let mut listener = Listener::start(server.address, &format!("last=2&format={format}"), "").await;
        let mut text = listener.told().await.data["head"].as_str().unwrap().to_owned();
        for id in [2, 3] {
            let told = listener.told().await;
            assert_eq!(told.id, id);
            text += told.data.as_str().unwrap();
        }
        assert_eq!(text, server.get(&format!("/results.{format}?cursor=1")).await.text());
    }
}

#[tokio::test]
async fn what_is_mistyped_is_refused() {
    let server = Server::start(config("")).await;
    add(&server.store, vec![new_result(1, 1)]).await;
    for (query, headers, reason) in [
        ("limit=1", "", "limit is no parameter of this page; there are source, experiment"),
        ("experimnet=a", "", "experimnet is no parameter of this page; there are source, experiment"),
        ("cursor=2", "", "cursor 2 is not of this store, which has only come to 1"),
        ("", "Last-Event-ID: 2\r\n", "cursor 2 is not of this store"),
        ("", "Last-Event-ID: x\r\n", "Last-Event-ID must be the id"),
        ("", "Last-Event-ID: -1\r\n", "Last-Event-ID must be the id"),
        ("last=0", "", "last=0: must be a number from 1 to 20000"),
        ("last=1&cursor=1", "", "give a cursor or last, not both"),
        ("format=xml", "", "format=xml: must be ndjson, tpf or csv"),
        ("cursor=1&cursor=1", "", "cursor is given twice"),
    ] {
        let reply = server.get_with(&format!("/events?{query}"), headers).await;
        assert_eq!(reply.status, 400, "{query} {headers}");
        assert!(reply.reason().contains(reason), "{query} {headers}: {}", reply.reason());
    }
}

/// Adds runs one by one, and completes every third of those that came before.
async fn add_and_complete(store: Store, ids: std::ops::RangeInclusive<u32>) {
    for id in ids {
        add(&store, with_circuit(id.into(), id.into(), &["main"], Some(900))).await;
        if id % 3 == 0 {
            complete(&store, u128::from(id - 2), "more").await;
        }
    }
}

#[tokio::test]
async fn who_breaks_off_again_and_again_misses_nothing_and_hears_of_no_new_run_twice() {
    const RUNS: u32 = 300;
    let server = Server::start(config("")).await;
    let writer = tokio::spawn(add_and_complete(server.store.clone(), 1..=RUNS));
    let (mut cursor, mut names) = (0, BTreeMap::<u128, Vec<(String, i64)>>::new());
    let last = i64::from(RUNS + RUNS / 3);
    for connection in 0.. {
        let headers = format!("Last-Event-ID: {cursor}\r\n");
        let mut listener = Listener::start(server.address, "cursor=0", &headers).await;
        assert_eq!(listener.told().await.id, cursor);
        for _ in 0..connection % 7 + 1 {
            if cursor == last {
                break;
            }
            let told = listener.told().await;
            assert!(told.id > cursor, "{told:?} after {cursor}");
            cursor = told.id;
            names.entry(run_of(&told)).or_default().push((told.name, told.id));
        }
        if cursor == last {
            break;
        }
    }
    writer.await.unwrap();
    assert_eq!(names.len() as u32, RUNS);
    let final_revisions: BTreeMap<u128, i64> = names.iter().map(|(run, told)| (*run, told.last().unwrap().1)).collect();
    let rows = server.get("/results.ndjson").await;
    for row in rows.text().lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()) {
        let run = u128::from_str_radix(row["run_id"].as_str().unwrap(), 16).unwrap();
        assert_eq!(final_revisions[&run], row["revision"].as_i64().unwrap());
    }
    for (run, told) in names {
        let told: Vec<&str> = told.iter().map(|(name, _)| name.as_str()).collect();
        // Completed alone is one that was completed before its first place was come to.
        let expected = [&["result"][..], &["completed"], &["result", "completed"]];
        assert!(expected.contains(&told.as_slice()), "{run}: {told:?}");
    }
}

#[tokio::test]
async fn a_filter_that_lets_nothing_through_still_moves_on() {
    let server = Server::start(config("")).await;
    fill(&server.store, 40_000).await;
    let mut listener = Listener::start(server.address, "cursor=0&outcome=failed", "").await;
    assert_eq!(listener.told().await.name, "hello");
    let told = listener.told().await;
    assert_eq!((told.name.as_str(), told.id, told.data), ("cursor", 20_000, json!({ "revision": 20_000 })));
}

#[tokio::test]
async fn what_another_process_writes_is_told_too() {
    let server = Server::start(config("")).await;
    let mut listener = Listener::start(server.address, "", "").await;
    assert_eq!(listener.told().await.id, 0);
    let other = Store::open(std::path::Path::new(server.database().path().unwrap())).unwrap();
    add(&other, vec![new_result(1, 1)]).await;
    assert_eq!(run_of(&listener.told().await), 1);
}

#[tokio::test]
async fn listeners_are_few_and_one_client_gets_a_share() {
    let server = Server::start(config("")).await;
    let mut listeners = Vec::new();
    for _ in 0..16 {
        listeners.push(Listener::start(server.address, "", "").await);
    }
    let refused = server.get("/events").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    assert!(refused.reason().contains("too many listeners"));
    assert_eq!(server.get("/results.json").await.status, 200, "others are served");
    listeners.pop();
    within("a place", async {
        loop {
            let mut client = Client::connect(server.address).await;
            client.send("GET /events HTTP/1.1\r\nHost: test\r\n\r\n").await;
            if client.head().await.0 == 200 {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_listener_does_not_hold_up_the_end_and_goes_on_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("perfd.sqlite");
    let store = Store::open(&path).unwrap();
    fill(&store, 5).await;
    store.close(web::DEADLINE).await.unwrap();

    let mut service = Service::start(folder.path(), "");
    let mut listener = Listener::start(service.address, "last=2", "").await;
    let ids = [listener.told().await.id, listener.told().await.id, listener.told().await.id];
    assert_eq!(ids, [3, 4, 5]);
    let begun = Instant::now();
    kill(Pid::from_raw(service.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(listener.next().await, None, "the answer ends in good order");
    assert!(service.child.wait().unwrap().success());
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");

    let store = Store::open(&path).unwrap();
    add(&store, vec![new_result(6, 6)]).await;
    store.close(web::DEADLINE).await.unwrap();
    let service = Service::start(folder.path(), "");
    let mut listener = Listener::start(service.address, "", "Last-Event-ID: 5\r\n").await;
    assert_eq!((listener.told().await.id, listener.told().await.id), (5, 6));
}
