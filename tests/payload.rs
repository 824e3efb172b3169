//! The payloads: exactly the bytes that were asked for, and a server that no stranger can take away from
//! perfd's own runs.

#[path = "common/web.rs"]
mod web;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{LazyLock, Once};
use std::time::{Duration, Instant};

use perfd::measurement::RunId;
use perfd::payload::Verifier;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;
use web::{Client, Server, Service, config, within};

const MIB: usize = 1 << 20;

/// The header of the run with this number.
fn of_run(run: u128) -> String {
    format!("X-Perfd-Run: {}\r\n", RunId::from_bits(run))
}

fn request(target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: test\r\n{headers}\r\n")
}

#[tokio::test]
async fn every_size_comes_exactly() {
    let server = Server::start(config("max_payload = \"8 MiB\"")).await;
    for size in [0, 1, 51_200, 65_535, 65_536, 65_537, 5 * MIB, 8 * MIB] {
        let reply = server.get_with(&format!("/payload/{size}"), &of_run(1)).await;
        assert_eq!((reply.status, reply.body.len()), (200, size));
        assert_eq!(reply.header("content-length"), Some(size.to_string().as_str()));
        Verifier::new(server.secret.seed(&RunId::from_bits(1))).check(&reply.body).unwrap();
    }
    let by_its_old_name = server.get_with("/urandom/51200", &of_run(1)).await;
    assert_eq!(by_its_old_name.body, server.get_with("/payload/51200", &of_run(1)).await.body);
}

#[tokio::test]
async fn headers_keep_everyone_from_changing_the_payload() {
    let server = Server::start(config("")).await;
    let mut reply = server.get_with("/payload/10", "Accept-Encoding: gzip, br\r\n").await;
    reply.headers.retain(|(name, _)| name != "date");
    reply.headers.sort();
    let expected = [
        ("cache-control", "no-store, no-transform"),
        ("content-length", "10"),
        ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
        ("content-type", "application/octet-stream"),
        ("referrer-policy", "no-referrer"),
        ("server", concat!("perfd/", env!("CARGO_PKG_VERSION"))),
        ("x-content-type-options", "nosniff"),
    ];
    assert_eq!(reply.headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn what_is_not_a_payload_is_refused_with_a_reason() {
    let server = Server::start(config("max_payload = \"8 MiB\"")).await;
    for (target, status, reason) in [
        ("/payload/8388609", 413, "at most 8 MiB (8388608 bytes)"),
        ("/payload/18446744073709551616", 413, "at most"),
        ("/payload/-1", 400, "/payload/51200"),
        ("/payload/1e3", 400, "/payload/51200"),
        ("/payload/five", 400, "/payload/51200"),
        ("/payload/%ff", 400, "UTF-8"),
        ("/payload/5%00", 400, "/payload/51200"),
        ("/payload/%2e%2e%2fetc%2fpasswd", 400, "/payload/51200"),
        ("/payload", 404, "no such page"),
        ("/payload/", 404, "no such page"),
        ("/payload/5/5", 404, "no such page"),
        ("/nowhere", 404, "no such page"),
    ] {
        let reply = server.get(target).await;
        assert_eq!(reply.status, status, "{target}");
        assert!(reply.reason().contains(reason), "{target}: {}", reply.reason());
    }
    for bad in ["", "1", "0123456789abcdef0123456789abcdeF", "0123456789abcdef0123456789abcde\u{e9}"] {
        let reply = server.get_with("/payload/5", &format!("X-Perfd-Run: {bad}\r\n")).await;
        assert_eq!(reply.status, 400, "{bad}");
        assert!(reply.reason().contains("X-Perfd-Run"), "{}", reply.reason());
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"] {
        let mut client = Client::connect(server.address).await;
        client.send(format!("{method} /payload/5 HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n")).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some("GET,HEAD")), "{method}");
        assert!(reply.reason().contains("Allow"), "{method}: {}", reply.reason());
    }
}

#[tokio::test]
async fn head_is_answered_like_get_without_the_payload() {
    let server = Server::start(config("max_payloads = 1")).await;
    let mut client = Client::connect(server.address).await;
    for _ in 0..3 {
        client.send("HEAD /payload/51200 HTTP/1.1\r\nHost: test\r\n\r\n").await;
        let (status, headers) = client.head().await;
        assert_eq!(status, 200);
        assert!(headers.contains(&("content-length".to_owned(), "51200".to_owned())), "{headers:?}");
    }
    // Nothing was left behind a head that would be taken for the next response.
    client.send(request("/payload/3", "Connection: close\r\n")).await;
    assert_eq!(client.reply().await.body.len(), 3);
    assert_eq!(client.rest().await, b"");
}

#[tokio::test]
async fn a_run_has_its_own_bytes_and_a_stranger_fresh_ones() {
    let server = Server::start(config("")).await;
    let get = async |headers: &str| server.get_with("/payload/1000", headers).await.body;
    assert_eq!(get(&of_run(1)).await, get(&of_run(1)).await);
    assert_ne!(get(&of_run(1)).await, get(&of_run(2)).await);
    assert_ne!(get("").await, get("").await);
    let longer = server.get_with("/payload/70000", &of_run(1)).await.body;
    assert_eq!(longer[..1000], get(&of_run(1)).await, "a shorter payload begins like a longer one");
}

#[tokio::test]
async fn a_payload_can_not_be_compressed() {
    let server = Server::start(config("")).await;
    let bytes = server.get_with(&format!("/payload/{MIB}"), &of_run(1)).await.body;
    // Chi-square of the bytes, and of each byte against the one before it: 255 degrees of freedom have a
    // mean of 255 and a deviation of 23. The run's name is fixed, so this is no matter of luck.
    let against_last = bytes.windows(2).map(|two| two[0] ^ two[1]).collect();
    for values in [bytes, against_last] {
        let mut counts = [0f64; 256];
        values.iter().for_each(|value| counts[usize::from(*value)] += 1.0);
        let mean = values.len() as f64 / 256.0;
        let chi_square: f64 = counts.iter().map(|count| (count - mean).powi(2) / mean).sum();
        assert!((160.0..360.0).contains(&chi_square), "{chi_square}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_turn() {
    let server = Server::start(config("")).await;
    let mut client = Client::connect(server.address).await;
    let requests = [("/payload/70000", 1), ("/payload/0", 2), ("/nowhere", 3), ("/urandom/9", 4)];
    client.send(requests.map(|(target, run)| request(target, &of_run(run))).concat()).await;
    for (status, size) in [(200, 70_000), (200, 0), (404, 0), (200, 9)] {
        let reply = client.reply().await;
        assert_eq!(reply.status, status);
        assert!(status == 404 || reply.body.len() == size);
    }
}

/// A stranger who asks for a payload and takes little of it.
async fn stalled(server: &Server) -> Client {
    let mut client = Client::connect_narrow(server.address).await;
    client.send(request("/payload/67108864", "")).await;
    assert_eq!(client.head().await.0, 200);
    client
}

#[tokio::test]
async fn strangers_who_take_every_payload_keep_no_run_out() {
    let server = Server::start(config("max_payloads = 3")).await;
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(stalled(&server).await);
    }
    for headers in [String::new(), of_run(8)] {
        let reply = server.get_with("/payload/5", &headers).await;
        assert_eq!((reply.status, reply.header("retry-after")), (503, Some("5")));
        assert!(reply.reason().contains("too many payloads"));
    }
    let entry = server.in_flight.enter(RunId::from_bits(9));
    let reply = server.get_with("/payload/51200", &of_run(9)).await;
    assert_eq!((reply.status, reply.body.len()), (200, 51_200));
    drop(entry);
    assert_eq!(server.get_with("/payload/51200", &of_run(9)).await.status, 503, "a run that ended is a stranger");

    // Everything else goes on, and a place that is given up is given on.
    assert_eq!(server.get("/health").await.status, 200);
    strangers.pop();
    within("place", async { while server.get("/payload/5").await.status != 200 {} }).await;
}

#[tokio::test]
async fn strangers_who_take_every_connection_keep_no_run_out() {
    let server = Server::start(config("max_connections = 2")).await;
    let mut inside = Client::connect(server.address).await;
    inside.send(request("/robots.txt", "")).await;
    assert_eq!(inside.reply().await.status, 200);
    let mut also_inside = Client::connect(server.address).await;
    also_inside.send(request("/robots.txt", "")).await;
    assert_eq!(also_inside.reply().await.status, 200);

    let mut stranger = Client::connect(server.address).await;
    stranger.send(request("/robots.txt", "")).await;
    let reply = stranger.reply().await;
    assert_eq!((reply.status, reply.header("connection")), (503, Some("close")));
    assert!(reply.reason().contains("too many connections"));
    assert_eq!(stranger.rest().await, b"");
    assert_eq!(server.get("/health").await.status, 200, "a crowd is no trouble of perfd's own");

    // Far more than are told so, none of whom says a word.
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(Client::connect(server.address).await);
    }
    let _entry = server.in_flight.enter(RunId::from_bits(9));
    let mut run = Client::connect(server.address).await;
    run.send(request("/payload/51200", &of_run(9))).await;
    assert_eq!(run.reply().await.body.len(), 51_200);
    // The run's connection stays, however many come after it.
    for _ in 0..200 {
        crowd.push(Client::connect(server.address).await);
    }
    run.send(request("/payload/51200", &of_run(9))).await;
    assert_eq!(run.reply().await.body.len(), 51_200);

    inside.send(request("/robots.txt", "")).await;
    assert_eq!(inside.reply().await.status, 200, "who was inside is not disturbed");
    drop(inside);
    drop(crowd);
    within("place", async { while server.get("/robots.txt").await.status != 200 {} }).await;
}

#[tokio::test]
async fn who_sends_no_head_in_time_is_cut_off() {
    let short = Duration::from_millis(200);
    let server = Server::start_with(config(""), |limits| limits.head_timeout = short).await;
    // One says nothing, one trickles a head that has no end, one is idle after its first request.
    let mut silent = Client::connect(server.address).await;
    let mut idle = Client::connect(server.address).await;
    idle.send(request("/robots.txt", "")).await;
    assert_eq!(idle.reply().await.status, 200);
    let trickling = Client::connect(server.address).await;

    let begun = Instant::now();
    let (mut reading, mut writing) = trickling.stream.into_split();
    let trickle = async {
        let mut pace = tokio::time::interval(Duration::from_millis(10));
        writing.write_all(b"GET /robots.txt HTTP/1.1\r\nX: ").await.unwrap();
        while writing.write_all(b"a").await.is_ok() {
            pace.tick().await;
        }
    };
    let until_closed =
        async { while tokio::io::AsyncReadExt::read(&mut reading, &mut [0; 1024]).await.is_ok_and(|n| n > 0) {} };
    within("cut", async {
        tokio::select! {
            () = trickle => {}
            () = until_closed => {}
        }
    })
    .await;
    assert!(begun.elapsed() >= short / 2, "{:?}", begun.elapsed());
    assert_eq!(silent.rest().await, b"");
    assert_eq!(idle.rest().await, b"");
}

#[tokio::test]
async fn who_takes_nothing_is_cut_off() {
    let config = config("max_connections = 1\nstall_timeout = \"1 s\"");
    let server = Server::start(config).await;
    let begun = Instant::now();
    let _client = stalled(&server).await;
    // The one place comes back when the connection is cut.
    let _place = within("cut", server.limits.connections.acquire()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn oversized_heads_are_refused_and_the_server_goes_on() {
    let server = Server::start(config("")).await;
    let long = "a".repeat(200_000);
    for head in [
        format!("GET /{long} HTTP/1.1\r\nHost: test\r\n\r\n"),
        format!("GET /results.json?source={} HTTP/1.1\r\nHost: test\r\n\r\n", &long[..66_000]),
        format!("GET / HTTP/1.1\r\nHost: test\r\nX: {long}\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(1000)),
        long.clone(),
    ] {
        let mut client = Client::connect(server.address).await;
        // The server may answer and close before all of it is sent.
        let _ = within("send", client.stream.write_all(head.as_bytes())).await;
        let reply = String::from_utf8(client.rest().await).unwrap();
        let refused = ["", "HTTP/1.1 400", "HTTP/1.1 414", "HTTP/1.1 431"];
        assert!(refused.iter().any(|start| reply.get(..12).unwrap_or("") == *start), "{reply}");
    }
    let mut client = Client::connect(server.address).await;
    client.send(request(&format!("/results.json?source={}", &long[..50_000]), "")).await;
    assert_eq!(client.reply().await.status, 200, "a long URL is none that is too long");
    for head in ["GET /\0 HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nX: \0\r\n\r\n", "\0\0\0\0\r\n\r\n"] {
        let mut client = Client::connect(server.address).await;
        client.send(head).await;
        assert!(client.rest().await.starts_with(b"HTTP/1.1 400"), "{head:?}");
    }
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| tokio::runtime::Runtime::new().unwrap());

static TARGET: LazyLock<Server> = LazyLock::new(|| RUNTIME.block_on(Server::start(config("max_payload = \"1 MiB\""))));

/// Panics of any thread: those within the server end a connection, and would go unseen.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            usual(info);
        }));
    });
}

/// Bytes, from noise to requests that are almost right.
fn almost_requests() -> impl Strategy<Value = Vec<u8>> {
    let noise = || prop::collection::vec(any::<u8>(), 0..60);
    let method = prop_oneof![4 => Just("GET".to_owned()), 1 => Just("HEAD".to_owned()), 2 => Just("POST".to_owned()), 1 => "[A-Z]{1,9}"];
    let path = prop::sample::select(vec![
        "/",
        "/health",
        "/payload/",
        "/urandom/",
        "/upload/",
        "/results",
        "/results.json?",
        "/results/",
        "/schema/result.json",
        "*",
        "//",
        "http://x/payload/",
    ]);
    let header = prop_oneof![
        Just("X-Perfd-Run: ".to_owned()),
        Just("Accept: ".to_owned()),
        Just("Content-Length: ".to_owned()),
        Just("Transfer-Encoding: chunked, ".to_owned()),
        Just("Connection: upgrade".to_owned()),
        Just("Expect: 100-continue\r\nX: ".to_owned()),
        Just("Content-Length: 40\r\nX-Perfd-Run: 0123456789abcdef0123456789abcdef\r\nX: ".to_owned()),
        "[ -~]{0,20}",
    ];
    let tail = prop_oneof![
        "[0-9]{1,4}",
        Just("40".to_owned()),
        "[!-~]{0,30}",
        "[a-z]{1,8}=[0-9a-zA-Z%+]{0,9}(&limit=[0-9]{1,3})?"
    ];
    let request =
        (method, path, tail, header, noise(), noise()).prop_map(|(method, path, tail, header, value, body)| {
            let head = format!("{method} {path}{tail} HTTP/1.1\r\nHost: x\r\n{header}");
            [head.as_bytes(), &value, b"\r\n\r\n", &body].concat()
        });
    prop_oneof![1 => noise(), 4 => prop::collection::vec(request, 1..4).prop_map(|requests| requests.concat())]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn nothing_that_is_sent_hangs_or_breaks_the_server(bytes in almost_requests()) {
        count_panics();
        let server = &*TARGET;
        let before = PANICS.load(Ordering::SeqCst);
        RUNTIME.block_on(async {
            let mut client = Client::connect(server.address).await;
            // The server may have heard enough before the end.
            let _ = client.stream.write_all(&bytes).await;
            let _ = client.stream.shutdown().await;
            client.rest().await;
        });
        prop_assert_eq!(PANICS.load(Ordering::SeqCst), before);
        prop_assert_eq!(RUNTIME.block_on(server.get("/health")).status, 200);
    }
}

#[tokio::test]
async fn slow_downloads_need_little_memory() {
    const MOST_KIB: u64 = 60 * 1024;
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start(folder.path(), "max_payloads = 64");
    let mut clients = Vec::new();
    for _ in 0..64 {
        let mut client = Client::connect_narrow(service.address).await;
        client.send(request("/payload/67108864", "")).await;
        assert_eq!(client.head().await.0, 200);
        clients.push(client);
    }
    for _ in 0..2 {
        for client in &mut clients {
            let mut piece = vec![0; 256 * 1024];
            within("piece", tokio::io::AsyncReadExt::read_exact(&mut client.stream, &mut piece)).await.unwrap();
        }
    }
    let peak = service.peak_rss();
    assert!(peak < MOST_KIB, "{peak} KiB");
    println!("peak with 64 slow downloads: {peak} KiB");
}
