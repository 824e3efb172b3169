//! Uploads: the probe against scripted servers, strangers against the real one, and the two together.

#[path = "common/peers.rs"]
mod peers;
#[path = "common/relay.rs"]
mod relay;
#[path = "common/runs.rs"]
mod runs;
#[path = "common/web.rs"]
mod web;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use peers::{GRANTED, Peer, Step, asked, chunked, granted, ok, payload, response, script, send};
use perfd::measurement::{Kind, Measurement, Outcome, Request, RunId, ServerSide};
use relay::{Pace, Relay};
use runs::{SEED, SIZE, body, run, summary, then};
use web::{Client, Reply, Server, config, within};

/// More than the kernel takes of it while nobody reads.
const HUGE: usize = 64 << 20;

fn upload(socks: std::net::SocketAddr) -> Request {
    Request { kind: Kind::Upload, path: "/upload/3000".to_owned(), ..runs::request(socks) }
}

/// The JSON of a receipt; `head` is when the server says that it had the head.
fn receipt(received: usize, verified: &str, difference: &str, head: i64) -> String {
    let deciles: Vec<String> = (0..=10).map(|tenths| format!("\"{}\":{tenths}", tenths * 10)).collect();
    format!(
        "{{\"received_bytes\":{received},\"verified\":{verified},\"first_difference\":{difference},\
         \"received_unix_us\":{head},\"deciles_us\":{{{}}}}}\n",
        deciles.join(",")
    )
}

fn good() -> Vec<u8> {
    page(receipt(SIZE, "true", "null", 5))
}

fn page(text: impl AsRef<str>) -> Vec<u8> {
    let text = text.as_ref();
    ok(&[&format!("Content-Length: {}", text.len())], text.as_bytes())
}

/// A server that has read the whole request and does this.
fn received(next: impl IntoIterator<Item = Step>) -> Vec<Step> {
    then(then(granted(), [Step::ReadBody(SIZE)]), next)
}

fn answers(response: impl AsRef<[u8]>) -> Vec<Step> {
    received([send(response), Step::Close])
}

/// A scripted peer, what to change in the request, and what is to come of it.
type Case<'a> = (Vec<Step>, fn(&mut Request), &'a str);

/// Runs the cases side by side and compares what came out.
async fn expect(cases: Vec<Case<'_>>) {
    let runs = cases.into_iter().map(|(script, change, expected)| async move {
        let peer = Peer::start(script.clone()).await;
        let mut request = upload(peer.address);
        change(&mut request);
        let measurement = run(&request).await;
        let seen = peer.end().await;
        if measurement.outcome == Outcome::Complete {
            assert_eq!((measurement.written, measurement.read), (seen.received, seen.sent), "{script:?}");
            assert_eq!(measurement.written, (seen.head.len() + seen.body.len()) as u64, "{script:?}");
        }
        let came = summary(&measurement);
        (came != expected).then(|| format!("expected: {expected}\n    came: {came}\n    {script:.300?}"))
    });
    let wrong: Vec<String> = join_all(runs).await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn as_it_is(_: &mut Request) {}

#[tokio::test]
async fn an_upload_that_is_right() {
    use Step::*;
    let text = receipt(SIZE, "true", "null", 5);
    let early = script([asked(), vec![Http, ReadHead, ReadBody(SIZE), Reply(GRANTED.to_vec(), good()), Close]]);
    let none = then(granted(), [send(page(receipt(0, "true", "null", 5))), Close]);
    let complete = "complete isolated verified";
    expect(vec![
        (answers(good()), as_it_is, complete),
        (received([send(good()), Stall]), as_it_is, complete),
        (received([send(good()), Reset]), as_it_is, complete),
        (received([Trickle(good()), Stall]), as_it_is, complete),
        (answers(ok(&[], text.as_bytes())), as_it_is, complete),
        (answers(ok(&["Transfer-Encoding: chunked"], &chunked(text.as_bytes(), 50))), as_it_is, complete),
        (answers([b"HTTP/1.1 100 Continue\r\n\r\n", &good()[..]].concat()), as_it_is, complete),
        (early, |r| r.optimistic = true, complete),
        (none.clone(), |r| r.size = Some(0), complete),
        (none, |r| r.size = None, complete),
        // With nothing to compare, the server need not say that it did.
        (answers(page(receipt(SIZE, "null", "null", 5))), |r| r.payload_seed = None, "complete isolated"),
        (answers(good()), |r| r.payload_seed = None, "complete isolated"),
    ])
    .await;
}

#[tokio::test]
async fn an_upload_that_is_wrong() {
    use Step::*;
    let tampered = "failed data_complete payload_tampered isolated";
    let truncated = "failed data_complete payload_truncated isolated";
    let malformed = "failed data_complete http_malformed isolated";
    let closed = "failed data_complete closed isolated";
    let long = " ".repeat(17 * 1024);
    let good_length = format!("Content-Length: {}", receipt(SIZE, "true", "null", 5).len());
    let endless = |first: Vec<u8>| received([send(first), Forever(vec![b' '; 1000])]);
    expect(vec![
        (answers(page(receipt(SIZE, "false", "1500", 5))), as_it_is, tampered),
        (answers(page(receipt(SIZE, "false", "null", 5))), as_it_is, tampered),
        (answers(page(receipt(2999, "true", "null", 5))), as_it_is, truncated),
        (answers(page(receipt(0, "null", "null", 5))), as_it_is, truncated),
        (answers(page(receipt(3001, "true", "null", 5))), as_it_is, "failed data_complete payload_padded isolated"),
        (answers(page(receipt(SIZE, "null", "null", 5))), as_it_is, malformed),
        (answers(page(receipt(SIZE, "true", "3", 5))), as_it_is, malformed),
        (answers(page("")), as_it_is, malformed),
        (answers(page("{}")), as_it_is, malformed),
        (answers(page("thank you")), as_it_is, malformed),
        (answers(page([0xc3, 0x28].map(char::from).iter().collect::<String>())), as_it_is, malformed),
        (answers(page(receipt(SIZE, "true", "null", 5).replace("\"50\"", "\"51\""))), as_it_is, malformed),
        (answers(page(receipt(SIZE, "true", "null", 5) + "{}")), as_it_is, malformed),
        (answers(page("[".repeat(5000))), as_it_is, malformed),
        (answers(page(receipt(SIZE, "true", "null", 5) + &long)), as_it_is, malformed),
        (endless(ok(&[], b"{")), as_it_is, malformed),
        (endless(ok(&["Content-Length: 9000000000"], b"{")), as_it_is, malformed),
        (answers(b"garbage\r\n\r\n"), as_it_is, malformed),
        (answers(ok(&[&good_length], &[])), as_it_is, closed),
        (answers(ok(&[&good_length], b"{\"received")), as_it_is, closed),
        (received([Close]), as_it_is, "failed data_response closed isolated"),
        (received([Reset]), as_it_is, "failed data_response reset isolated"),
        (received([send(b"HTTP/1.1 200 OK\r\nX"), Reset]), as_it_is, "failed data_complete reset isolated"),
        (
            answers(response("HTTP/1.1 503 Busy", &["Content-Length: 2"], b"{}")),
            as_it_is,
            "failed data_complete http_status 503 isolated",
        ),
        (
            then(asked(), [send([5, 4, 0, 1, 0, 0, 0, 0, 0, 0]), Stall]),
            as_it_is,
            "failed response socks_reply 04 isolated",
        ),
        (
            script([asked(), vec![Http, ReadHead, Reply(vec![5, 0xf2, 0, 1], vec![]), Stall]]),
            |r| r.optimistic = true,
            "failed response socks_reply f2 isolated",
        ),
    ])
    .await;
}

#[tokio::test]
async fn an_answer_while_the_body_is_being_sent_ends_the_run() {
    use Step::*;
    let huge: fn(&mut Request) = |r| r.size = Some(HUGE as u64);
    let refused = response("HTTP/1.1 413 No", &["Content-Length: 3"], b"no\n");
    let status = "failed data_complete http_status 413 isolated";
    let too_soon = receipt(HUGE, "true", "null", 5);
    expect(vec![
        (then(granted(), [send(&refused), Stall]), huge, status),
        // It goes with most of the body unread, which resets the connection.
        (then(granted(), [ReadBody(100_000), send(&refused), Close]), huge, status),
        (then(granted(), [send(page(&too_soon)), Stall]), huge, "failed data_complete http_malformed isolated"),
        (
            then(granted(), [send(page(receipt(5, "true", "null", 5))), Stall]),
            huge,
            "failed data_complete http_malformed isolated",
        ),
        (then(granted(), [ReadBody(100_000), Reset]), huge, "failed data_response reset isolated"),
    ])
    .await;
}

#[tokio::test]
async fn whoever_stalls_runs_into_the_timeout_of_its_step() {
    use Step::*;
    // How many deciles are reached at least, and at most.
    let cases: [(Vec<Step>, usize, &str, std::ops::RangeInclusive<usize>); 6] = [
        (then(asked(), [Stall]), SIZE, "timeout response isolated", 0..=0),
        // Reads the head and nothing more: the kernel takes a part of the body.
        (then(granted(), [Wait(Duration::from_millis(2600))]), HUGE, "timeout data_response isolated", 1..=10),
        (
            then(granted(), [ReadBody(HUGE / 10), Wait(Duration::from_millis(2600))]),
            HUGE,
            "timeout data_response isolated",
            2..=10,
        ),
        (received([Stall]), SIZE, "timeout data_response isolated", 11..=11),
        (received([send(b"HTTP/1.1 200"), Stall]), SIZE, "timeout data_complete isolated", 11..=11),
        (received([send(ok(&["Content-Length: 500"], b"{")), Stall]), SIZE, "timeout data_complete isolated", 11..=11),
    ];
    let hurried = cases.map(|(script, size, expected, deciles)| async move {
        let peer = Peer::start(script).await;
        let timeout = Duration::from_millis(2500);
        let measurement = run(&Request { size: Some(size as u64), timeout, ..upload(peer.address) }).await;
        assert_eq!(summary(&measurement), expected);
        let reached = measurement.steps.deciles.iter().flatten().count();
        assert!(deciles.contains(&reached), "{reached} deciles: {measurement:?}");
        assert_eq!((measurement.curve.is_empty(), measurement.size), (reached == 0, size as u64));
        peer.end().await;
    });
    join_all(hurried).await;
}

#[tokio::test]
async fn the_request_names_its_length_and_its_run_and_the_body_is_the_runs_own() {
    let peer = Peer::start(answers(good())).await;
    let request = upload(peer.address);
    let measurement = run(&request).await;
    let seen = peer.end().await;
    let expected = format!(
        "POST /upload/3000 HTTP/1.1\r\nhost: server.example:8080\r\nuser-agent: perfd/{}\r\n\
         accept-encoding: identity\r\nconnection: close\r\ncontent-type: application/octet-stream\r\n\
         content-length: 3000\r\nx-perfd-run: {}\r\n\r\n",
        env!("CARGO_PKG_VERSION"),
        request.id
    );
    assert_eq!(String::from_utf8(seen.head).unwrap(), expected);
    assert_eq!(seen.body, body());
    assert_eq!((measurement.kind, measurement.size), (Kind::Upload, 3000));

    // Bytes that only this run knows are of no run for the server.
    let peer = Peer::start(answers(good())).await;
    run(&Request { payload_seed: None, ..upload(peer.address) }).await;
    let seen = peer.end().await;
    assert!(!String::from_utf8(seen.head).unwrap().contains("x-perfd-run"));
    assert_ne!(seen.body, body());
}

#[tokio::test]
async fn what_the_server_saw_is_told_after_start_even_of_a_failed_run() {
    for (verified, complete) in [("true", true), ("false", false)] {
        let peer = Peer::start(answers(page(receipt(SIZE, verified, "null", 1_000)))).await;
        let measurement = run(&upload(peer.address)).await;
        let request = 1_000 - measurement.start.0;
        let deciles = std::array::from_fn(|tenths| Some(request + tenths as i64));
        assert_eq!(measurement.server, Some(ServerSide { request, deciles }));
        assert_eq!(measurement.outcome == Outcome::Complete, complete);
        peer.end().await;
    }
}

/// Sends so many bytes up to this server through a SOCKS proxy, as a run that is under way.
async fn upload_to(server: &Server, size: usize, change: impl Fn(&mut Request)) -> Measurement {
    let relay = Relay::start(Pace::AtOnce);
    let mut request = upload(relay.address);
    let entry = server.in_flight.enter(request.id.clone());
    (request.host, request.port) = (server.address.ip().to_string(), server.address.port());
    (request.path, request.size) = (format!("/upload/{size}"), Some(size as u64));
    request.payload_seed = Some(server.secret.seed(&request.id));
    change(&mut request);
    let measurement = run(&request).await;
    drop(entry);
    measurement
}

#[tokio::test]
async fn both_ends_tell_when_the_bytes_passed() {
    // One host, one clock; but each end reads it a moment after the bytes have passed.
    const APART: i64 = 20_000;
    let server = Server::start(config("max_payload = \"8 MiB\"")).await;
    for (size, optimistic) in
        [(0, false), (1, false), (51_200, true), (65_537, false), (5 << 20, false), (5 << 20, true)]
    {
        let measurement = upload_to(&server, size, |r| r.optimistic = optimistic).await;
        assert_eq!(summary(&measurement), "complete isolated verified", "{size}: {measurement:?}");
        let (ours, theirs) = (&measurement.steps, measurement.server.unwrap());
        assert!(theirs.request + APART >= ours.data_request.unwrap() as i64, "{ours:?} {theirs:?}");
        if size == 0 {
            assert_eq!((ours.deciles, theirs.deciles), ([None; 11], [None; 11]));
            continue;
        }
        let sent = ours.deciles.map(|decile| decile.unwrap() as i64);
        let came = theirs.deciles.map(Option::unwrap);
        assert!(sent.is_sorted() && came.is_sorted() && theirs.request <= came[0], "{sent:?} {came:?}");
        for (sent, came) in sent.iter().zip(came) {
            assert!(came + APART >= *sent, "{size} bytes: received before they were sent: {ours:?} {theirs:?}");
        }
        assert!(came[10] <= ours.data_response.unwrap() as i64 + APART, "{ours:?} {theirs:?}");
    }
}

#[tokio::test]
async fn the_server_finds_what_was_changed_on_the_way() {
    let server = Server::start(config("")).await;
    // Of another run, each byte is another.
    let measurement = upload_to(&server, 200_000, |r| r.payload_seed = Some(SEED)).await;
    assert_eq!(summary(&measurement), "failed data_complete payload_tampered isolated");
    let measurement = upload_to(&server, 200_000, |r| r.path = "/upload/200001".into()).await;
    assert_eq!(summary(&measurement), "failed data_complete http_status 400 isolated");
}

#[tokio::test]
async fn a_refusal_is_heard_however_much_is_being_sent() {
    let server = Server::start(config("max_payload = \"1 MiB\"")).await;
    let measurement = upload_to(&server, 8 << 20, |_| {}).await;
    assert_eq!(summary(&measurement), "failed data_complete http_status 413 isolated");
}

fn head(target: &str, headers: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n")
}

/// A request with this body, and its answer.
async fn post(server: &Server, size: usize, headers: &str, body: &[u8]) -> Reply {
    let mut client = Client::connect(server.address).await;
    client.send(head(&format!("/upload/{size}"), &format!("Content-Length: {size}\r\n{headers}"))).await;
    client.send(body).await;
    client.reply().await
}

#[tokio::test]
async fn every_byte_is_verified() {
    let server = Server::start(config("")).await;
    let run = RunId::from_bits(1);
    let headers = format!("X-Perfd-Run: {run}\r\n");
    let right = payload(server.secret.seed(&run), 100_000);
    let reply = post(&server, 100_000, &headers, &right).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    assert_eq!(reply.header("cache-control"), Some("no-store"));
    let said = reply.json();
    assert_eq!((&said["received_bytes"], &said["verified"]), (&100_000.into(), &true.into()));
    assert!(said["first_difference"].is_null());
    assert_eq!(said["deciles_us"].as_object().unwrap().len(), 11);

    for at in [0, 65_535, 65_536, 99_999] {
        let mut wrong = right.clone();
        wrong[at] ^= 1;
        let said = post(&server, 100_000, &headers, &wrong).await.json();
        assert_eq!((&said["verified"], &said["first_difference"]), (&false.into(), &at.into()));
        assert_eq!(said["received_bytes"], 100_000);
    }
    let said = post(&server, 100_000, "", &right).await.json();
    assert_eq!(said["received_bytes"], 100_000);
    assert!(said["verified"].is_null() && said["first_difference"].is_null(), "a stranger's bytes are counted");
}

#[tokio::test]
async fn what_is_not_an_upload_is_refused_before_its_body() {
    let server = Server::start(config("max_payload = \"8 MiB\"")).await;
    for (target, headers, status, reason) in [
        ("/upload/8388609", "Content-Length: 8388609\r\n", 413, "at most 8 MiB (8388608 bytes)"),
        ("/upload/8388609", "Content-Length: 8388609\r\nExpect: 100-continue\r\n", 413, "at most 8 MiB"),
        ("/upload/5", "", 411, "Content-Length"),
        ("/upload/5", "Transfer-Encoding: chunked\r\n", 411, "Content-Length"),
        ("/upload/5", "Content-Length: 6\r\n", 400, "Content-Length is 6, but the path says 5"),
        ("/upload/five", "Content-Length: 5\r\n", 400, "/upload/51200"),
        ("/upload/%ff", "Content-Length: 5\r\n", 400, "UTF-8"),
        ("/upload/5", "Content-Length: 5\r\nX-Perfd-Run: 1\r\n", 400, "X-Perfd-Run"),
        ("/upload", "Content-Length: 5\r\n", 404, "no such page"),
    ] {
        let mut client = Client::connect(server.address).await;
        client.send(head(target, headers)).await;
        let reply = client.reply().await;
        assert_eq!(reply.status, status, "{target} {headers}");
        assert!(reply.reason().contains(reason), "{target} {headers}: {}", reply.reason());
        if status != 404 {
            assert_eq!(reply.header("connection"), Some("close"), "{target} {headers}");
            assert_eq!(client.rest().await, b"");
        }
    }
    let reply = server.get("/upload/5").await;
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
    assert!(reply.reason().contains("Allow"), "{}", reply.reason());
}

#[tokio::test]
async fn a_body_has_exactly_its_length() {
    let server = Server::start(config("")).await;
    // What is beyond it is the next request, and no good one.
    let mut client = Client::connect(server.address).await;
    client.send(head("/upload/5", "Content-Length: 5\r\n") + "12345\0\0\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, &reply.json()["received_bytes"]), (200, &5.into()));
    assert!(client.rest().await.starts_with(b"HTTP/1.1 400"));

    let mut client = Client::connect(server.address).await;
    client.send(head("/upload/5", "Content-Length: 5\r\n") + "1234").await;
    within("shutdown", tokio::io::AsyncWriteExt::shutdown(&mut client.stream)).await.unwrap();
    let end = String::from_utf8(client.rest().await).unwrap();
    assert!(!end.starts_with("HTTP/1.1 200"), "{end}");
}

#[tokio::test]
async fn who_asks_first_is_told_to_go_on() {
    let server = Server::start(config("")).await;
    let mut client = Client::connect(server.address).await;
    client.send(head("/upload/5", "Content-Length: 5\r\nExpect: 100-continue\r\n")).await;
    assert_eq!(within("100", client.head()).await.0, 100);
    client.send("12345").await;
    assert_eq!(client.reply().await.json()["received_bytes"], 5);
}

#[tokio::test]
async fn strangers_share_the_places_of_the_payloads_and_keep_no_run_out() {
    let server = Server::start(config("max_payloads = 1")).await;
    let mut stranger = Client::connect(server.address).await;
    stranger.send(head("/upload/5", "Content-Length: 5\r\nExpect: 100-continue\r\n")).await;
    assert_eq!(within("100", stranger.head()).await.0, 100, "it has the place");

    assert_eq!(server.get("/payload/5").await.status, 503);
    let run = RunId::from_bits(9);
    let named = format!("X-Perfd-Run: {run}\r\n");
    for headers in ["", &named] {
        let mut client = Client::connect(server.address).await;
        client.send(head("/upload/5", &format!("Content-Length: 5\r\n{headers}"))).await;
        assert_eq!(client.reply().await.status, 503);
    }
    let entry = server.in_flight.enter(run.clone());
    let right = payload(server.secret.seed(&run), 5);
    assert_eq!(post(&server, 5, &named, &right).await.json()["verified"], true);
    let mut again = Client::connect(server.address).await;
    again.send(head("/upload/5", &format!("Content-Length: 5\r\n{named}"))).await;
    assert_eq!(again.reply().await.status, 503, "its name was seen on the way, and is good once");
    drop(entry);

    stranger.send("12345").await;
    assert_eq!(stranger.reply().await.status, 200);
    within("place", async { while server.get("/payload/5").await.status != 200 {} }).await;
}

#[tokio::test]
async fn who_sends_nothing_is_cut_off() {
    let server = Server::start(config("max_connections = 1\nstall_timeout = \"1 s\"")).await;
    let begun = Instant::now();
    let mut client = Client::connect(server.address).await;
    client.send(head("/upload/5", "Content-Length: 5\r\n") + "12").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (408, Some("close")));
    assert!(reply.reason().contains("nothing came for 1 s"), "{}", reply.reason());
    assert_eq!(client.rest().await, b"");
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
}
