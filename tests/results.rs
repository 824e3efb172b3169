//! `/results`: every format, every filter, and a cursor that neither skips nor repeats a row while rows
//! are added and none is completed.

#[path = "common/web.rs"]
mod web;

use std::collections::BTreeSet;

use boon::{Compiler, Schemas};
use perfd::clock::UnixMicros;
use perfd::measurement::{Kind, RunId, ServerKind};
use perfd::store::{NewResult, Store};
use serde_json::{Value, json};
use web::{Client, Reply, Server, Service, add, config, fill, incomplete, new_result, with_circuit, within};

/// Each format: its ending, a media type that asks for it, and what it is sent as.
const FORMATS: [(&str, &str, &str); 4] = [
    ("json", "application/json", "application/json"),
    ("ndjson", "application/x-ndjson", "application/x-ndjson"),
    ("tpf", "text/plain", "text/plain; charset=utf-8"),
    ("csv", "text/csv", "text/csv; charset=utf-8"),
];

/// 36 runs, one a second: two sources, three experiments (of which the last is larger), three outcomes.
fn thirty_six() -> Vec<NewResult> {
    let run = |n: i64| {
        let mut new = new_result(n as u128 + 1, n);
        new.source = ["here", "there"][n as usize % 2].to_owned();
        new.tor = ["tor-a", "tor-b", "tor-c"][n as usize % 3].to_owned();
        new.server = [ServerKind::Exit, ServerKind::Onion, ServerKind::SingleOnion][n as usize / 3 % 3];
        new.measurement.kind = [Kind::Download, Kind::Upload][n as usize / 4 % 2];
        new.experiment = ["a", "b", "large"][n as usize / 2 % 3].to_owned();
        new.measurement.size = if new.experiment == "large" { 5 << 20 } else { 51_200 };
        match n / 6 % 3 {
            0 => new,
            outcome => incomplete(new, outcome == 1),
        }
    };
    (0..36).map(run).collect()
}

async fn with_thirty_six() -> Server {
    let server = Server::start(config("")).await;
    add(&server.store, thirty_six()).await;
    server
}

fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn run_ids<'a>(results: impl IntoIterator<Item = &'a Value>) -> Vec<u32> {
    let number = |result: &Value| u32::from_str_radix(result["run_id"].as_str().unwrap(), 16).unwrap();
    results.into_iter().map(number).collect()
}

#[tokio::test]
async fn each_format_comes_by_its_ending_and_by_accept() {
    let server = with_thirty_six().await;
    for (ending, media, content_type) in FORMATS {
        let by_ending = server.get_with(&format!("/results.{ending}"), "Accept: image/png\r\n").await;
        let by_accept = server.get_with("/results", &format!("Accept: {media}\r\n")).await;
        for reply in [&by_ending, &by_accept] {
            assert_eq!((reply.status, reply.header("content-type")), (200, Some(content_type)));
            assert_eq!((reply.header("vary"), reply.header("cache-control")), (Some("accept"), Some("no-cache")));
        }
        assert_eq!(by_ending.body, by_accept.body);
        assert!(by_ending.body.ends_with(b"\n"));
    }
    for headers in ["", "Accept: */*\r\n", "Accept: text/html, */*;q=0.1\r\n", "Accept: image/png, application/*\r\n"] {
        assert_eq!(server.get_with("/results", headers).await.json()["results"].as_array().unwrap().len(), 36);
    }
    let refused = server.get_with("/results", "Accept: image/png\r\n").await;
    assert_eq!(refused.status, 406);
    assert!(refused.reason().contains("text/csv"));
    assert_eq!(server.get("/results.xml").await.status, 404);

    let torperf = server.get("/results.tpf").await;
    assert_eq!(torperf.text().lines().next(), Some("@type torperf 1.1"));
    assert!(torperf.text().lines().skip(1).all(|line| line.starts_with("SOURCE=") && line.contains(" FILESIZE=")));
    assert_eq!(torperf.text().lines().count(), 37);
    let csv = server.get("/results.csv").await;
    assert!(csv.text().starts_with("run_id,revision,source,"));
    assert_eq!(lines(&server.get("/results.ndjson").await).len(), 36);

    let mut client = Client::connect(server.address).await;
    client.send("HEAD /results.csv HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").await;
    assert_eq!(client.head().await.0, 200);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn an_empty_store_is_valid_in_every_format() {
    let server = Server::start(config("")).await;
    assert_eq!(
        server.get("/results.json").await.json(),
        json!({ "results": [], "next_cursor": null, "latest_revision": 0 })
    );
    assert_eq!(server.get("/results.ndjson").await.text(), "");
    assert_eq!(server.get("/results.tpf").await.text(), "@type torperf 1.1\n");
    let csv = server.get("/results.csv").await;
    assert!(csv.text().starts_with("run_id,") && csv.text().lines().count() == 1);
}

#[tokio::test]
async fn filters_let_through_what_they_say() {
    let server = with_thirty_six().await;
    let second = |n: i64| UnixMicros(1_795_341_600_000_000 + n * 1_000_000);
    type Test = fn(&NewResult) -> bool;
    let cases: [(&str, Test); 18] = [
        ("tor=tor-b", |r| r.tor == "tor-b"),
        ("kind=upload", |r| r.measurement.kind == Kind::Upload),
        ("kind=download", |r| r.measurement.kind == Kind::Download),
        ("server=exit", |r| r.server == ServerKind::Exit),
        ("server=single_onion", |r| r.server == ServerKind::SingleOnion),
        ("source=here", |r| r.source == "here"),
        ("experiment=a", |r| r.experiment == "a"),
        ("size=51200", |r| r.measurement.size == 51_200),
        ("size=5+MiB", |r| r.measurement.size == 5 << 20),
        ("outcome=complete", |r| r.measurement.outcome.word() == "complete"),
        ("outcome=timeout", |r| r.measurement.outcome.word() == "timeout"),
        ("outcome=failed", |r| r.measurement.outcome.word() == "failed"),
        ("since=2026-11-22T10:00:07Z", |r| r.measurement.start.0 >= 1_795_341_607_000_000),
        ("since=1795341607.000001", |r| r.measurement.start.0 > 1_795_341_607_000_000),
        ("until=2026-11-22T11:00:07%2B01:00", |r| r.measurement.start.0 < 1_795_341_607_000_000),
        ("until=1795341607.000001", |r| r.measurement.start.0 <= 1_795_341_607_000_000),
        ("source=nobody", |_| false),
        ("since=2026-11-22&until=2026-11-23", |_| true),
    ];
    let rows = thirty_six();
    for (one, first) in cases {
        for (other, second) in cases.iter().filter(|(other, _)| *other == one || !share_a_name(one, other)) {
            let query = if one == *other { one.to_owned() } else { format!("{one}&{other}") };
            let expected = rows.iter().filter(|row| first(row) && second(row));
            let expected: Vec<_> =
                expected.map(|row| u32::from_str_radix(row.measurement.id.as_str(), 16).unwrap()).collect();
            let seen = lines(&server.get(&format!("/results.ndjson?{query}")).await);
            assert_eq!(run_ids(&seen), expected, "{query}");
        }
    }
    let all = "source=there&experiment=large&size=5242880&outcome=timeout&since=1795341605&until=1795341630";
    let seen = lines(&server.get(&format!("/results.ndjson?{all}")).await);
    assert_eq!(run_ids(&seen), [12, 30]);
    assert_eq!(second(0).to_string(), "2026-11-22T10:00:00.000000Z");
}

fn share_a_name(one: &str, other: &str) -> bool {
    let names =
        |query: &str| query.split('&').map(|p| p.split('=').next().unwrap().to_owned()).collect::<BTreeSet<_>>();
    !names(one).is_disjoint(&names(other))
}

#[tokio::test]
async fn a_bad_parameter_is_named() {
    let server = with_thirty_six().await;
    for (query, reason) in [
        ("limit=0", "limit=0: must be a number from 1 up"),
        ("limit=-1", "limit=-1"),
        ("limit=99999999999999999999", "limit="),
        ("cursor=-1", "cursor=-1"),
        ("cursor=x", "cursor=x: must be the revision"),
        ("since=yesterday", "since=yesterday: must be a time such as"),
        ("until=2026-13-01", "until=2026-13-01"),
        ("size=much", "size=much"),
        ("outcome=good", "outcome=good: must be complete, timeout or failed"),
        ("kind=both", "kind=both: must be one of download, upload"),
        ("server=tor", "server=tor: must be one of exit, onion, single_onion"),
        ("order=up", "order=up: must be oldest or newest"),
        ("experimnet=a", "experimnet is no parameter of this page; there are source, experiment"),
        ("limit=1&limit=1", "limit is given twice"),
        ("%00%0a%ff=%1b", "is no parameter"),
    ] {
        for (ending, ..) in FORMATS {
            let reply = server.get(&format!("/results.{ending}?{query}")).await;
            assert_eq!(reply.status, 400, "{query}");
            assert!(reply.reason().contains(reason), "{query}: {}", reply.reason());
        }
    }
}

#[tokio::test]
async fn one_result_comes_with_its_configuration() {
    let server = with_thirty_six().await;
    let id = RunId::from_bits(12);
    for (path, accept) in [(format!("/results/{id}"), ""), (format!("/results/{id}.json"), "Accept: text/csv\r\n")] {
        let one = server.get_with(&path, accept).await.json();
        assert_eq!((one["run_id"].as_str(), &one["configuration"]), (Some(id.as_str()), &json!({ "source": "test" })));
    }
    for (ending, media, content_type) in FORMATS {
        let by_ending = server.get(&format!("/results/{id}.{ending}")).await;
        let by_accept = server.get_with(&format!("/results/{id}"), &format!("Accept: {media}\r\n")).await;
        assert_eq!((by_ending.status, by_ending.header("content-type")), (200, Some(content_type)));
        assert_eq!(by_ending.body, by_accept.body);
        assert!(by_ending.text().contains(id.as_str()));
    }
    for (name, status, reason) in [
        (RunId::from_bits(99).to_string(), 404, "there is no result"),
        (format!("{}.tpf", RunId::from_bits(99)), 404, "there is no result"),
        (format!("{id}.xml"), 404, "there is no format .xml"),
        (id.as_str()[1..].to_owned(), 404, "there is no result"),
        (id.as_str()[..5].to_owned(), 400, "32 lower-case hexadecimal digits"),
        (id.as_str()[..6].to_owned(), 400, "more than one result begins with 000000: 00000000000000000000000000000001"),
        (format!("{id}0"), 400, "32 lower-case"),
        ("ABCDEF00000000000000000000000000".to_owned(), 400, "32 lower-case"),
        ("%ff".to_owned(), 400, "UTF-8"),
    ] {
        let reply = server.get(&format!("/results/{name}")).await;
        assert_eq!(reply.status, status, "{name}");
        assert!(reply.reason().contains(reason), "{name}: {}", reply.reason());
    }
    assert_eq!(server.get_with(&format!("/results/{id}"), "Accept: image/png\r\n").await.status, 406);
}

#[tokio::test]
async fn every_row_is_what_the_schema_says() {
    let server = with_thirty_six().await;
    let schema = server.get("/schema/result.json").await;
    assert_eq!(schema.header("content-type"), Some("application/schema+json"));
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.enable_format_assertions();
    compiler.add_resource("urn:result", schema.json()).unwrap();
    let index = compiler.compile("urn:result", &mut schemas).unwrap();
    let with_circuit = with_circuit(100, 36, &["main"], Some(1_500));
    add(&server.store, with_circuit).await;
    let rows = lines(&server.get("/results.ndjson").await);
    assert_eq!(server.get("/results.json").await.json()["results"], json!(rows));
    for row in &rows {
        schemas.validate(row, index).unwrap_or_else(|e| panic!("{e}: {row}"));
    }
    assert_eq!(rows.len(), 37);
    assert_eq!(rows[36]["circuit"]["circuit"]["path"][0]["relay"]["nickname"], "relay1");
}

/// Adds results one by one, in slots of their own.
async fn add_one_by_one(store: Store, ids: std::ops::RangeInclusive<u32>) {
    for id in ids {
        add(&store, vec![new_result(id.into(), id.into())]).await;
    }
}

#[tokio::test]
async fn following_gives_every_row_once_while_rows_are_added() {
    let server = Server::start(config("")).await;
    add_one_by_one(server.store.clone(), 1..=20).await;
    let writer = tokio::spawn(add_one_by_one(server.store.clone(), 21..=320));
    let (mut seen, mut cursor, mut to_the_end) = (Vec::new(), 0, 0);
    within("every row", async {
        while seen.len() < 320 {
            let answer = server.get(&format!("/results.json?limit=7&cursor={cursor}")).await.json();
            seen.extend(run_ids(answer["results"].as_array().unwrap()));
            to_the_end += usize::from(answer["next_cursor"].is_null());
            cursor = answer["next_cursor"].as_i64().unwrap_or_else(|| answer["latest_revision"].as_i64().unwrap());
        }
    })
    .await;
    writer.await.unwrap();
    assert_eq!(seen, (1..=320).collect::<Vec<_>>());
    let answer = server.get(&format!("/results.json?cursor={cursor}")).await.json();
    assert_eq!(answer, json!({ "results": [], "next_cursor": null, "latest_revision": cursor }));
    assert!(to_the_end > 0);
}

#[tokio::test]
async fn looking_back_gives_every_row_once_while_rows_are_added() {
    let server = Server::start(config("")).await;
    add_one_by_one(server.store.clone(), 1..=300).await;
    let writer = tokio::spawn(add_one_by_one(server.store.clone(), 301..=400));
    let first = server.get("/results.json?order=newest&limit=7").await.json();
    let (mut seen, mut next) = (run_ids(first["results"].as_array().unwrap()), first["next_cursor"].as_i64());
    let newest = seen[0];
    while let Some(cursor) = next {
        let answer = server.get(&format!("/results.json?order=newest&limit=7&cursor={cursor}")).await.json();
        seen.extend(run_ids(answer["results"].as_array().unwrap()));
        next = answer["next_cursor"].as_i64();
    }
    writer.await.unwrap();
    assert_eq!(seen, (1..=newest).rev().collect::<Vec<_>>());
    // What was added above meanwhile is found from the first answer.
    let later = server.get(&format!("/results.json?cursor={}", first["latest_revision"])).await.json();
    assert_eq!(run_ids(later["results"].as_array().unwrap()), (newest + 1..=400).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_long_answer_from_the_newest_says_what_it_did_not_see() {
    let server = Server::start(config("")).await;
    fill(&server.store, 3000).await;
    let mut client = Client::connect_narrow(server.address).await;
    client.send("GET /results.json?order=newest HTTP/1.1\r\nHost: test\r\n\r\n").await;
    // Its first page is read by the time that its head comes; its last one can't be, as most of it does
    // not fit in the system's buffers.
    let (_, headers) = client.head().await;
    assert!(headers.contains(&("transfer-encoding".to_owned(), "chunked".to_owned())), "{headers:?}");
    add(&server.store, vec![new_result(5000, 5000)]).await;
    let body = String::from_utf8(client.chunks().await).unwrap();
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["results"].as_array().unwrap().len(), 3000);
    assert_eq!((&answer["next_cursor"], &answer["latest_revision"]), (&Value::Null, &json!(3000)));
}

#[tokio::test]
async fn readers_who_stop_hold_up_nobody_but_those_beyond_the_limit() {
    let server = Server::start(config("")).await;
    fill(&server.store, 6000).await;
    let mut stalled = Vec::new();
    let refused = within("the limit", async {
        loop {
            let mut client = Client::connect_narrow(server.address).await;
            client.send("GET /results.ndjson HTTP/1.1\r\nHost: test\r\n\r\n").await;
            let (status, headers) = client.head().await;
            if status != 200 {
                break (status, headers);
            }
            stalled.push(client);
        }
    })
    .await;
    assert_eq!(refused.0, 503);
    assert!(refused.1.contains(&("retry-after".to_owned(), "5".to_owned())), "{refused:?}");
    assert_eq!(stalled.len(), 4, "one client gets no more of them");

    // Meanwhile results are stored, single ones given out, and the service is well.
    add(&server.store, vec![new_result(9000, 9000)]).await;
    assert_eq!(server.get(&format!("/results/{}", RunId::from_bits(9000))).await.status, 200);
    assert_eq!(server.get("/health").await.json()["experiments"][0]["last_outcome"], "complete");
    drop(stalled);
    within("place", async { while server.get("/results.csv?limit=1").await.status != 200 {} }).await;
}

#[tokio::test]
async fn twenty_thousand_rows_need_little_memory() {
    const MOST_KIB: u64 = 60 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("perfd.sqlite")).unwrap();
    fill(&store, 20_000).await;
    store.close(web::DEADLINE).await.unwrap();
    drop(store);
    let service = Service::start(folder.path(), "");
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect_narrow(service.address).await;
        client.send("GET /results.json HTTP/1.1\r\nHost: test\r\n\r\n").await;
        assert_eq!(client.head().await.0, 200);
        waiting.push(client);
    }
    for (ending, lines_beside) in [("json", 2), ("ndjson", 0), ("tpf", 1), ("csv", 1)] {
        let mut client = Client::connect(service.address).await;
        client.send(format!("GET /results.{ending} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
        let reply = client.reply().await;
        let ends = reply.body.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!(ends, 20_000 + lines_beside, "{ending}");
    }
    let peak = service.peak_rss();
    assert!(peak < MOST_KIB, "{peak} KiB");
    println!("peak with 20,000 rows: {peak} KiB");
}
