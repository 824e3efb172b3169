//! The probe against peers that do everything wrong which a peer can do, and some that do right.

#[path = "common/peers.rs"]
mod peers;
#[path = "common/runs.rs"]
mod runs;

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use peers::{Peer, Step, answers, asked, asked_without_name, granted, ok, payload, response, script, send};
use perfd::measurement::{Kind, Measurement, PARTIALS, Phase, Request};
use perfd::probe::{Prober, measure, measured};
use proptest::prelude::*;
use runs::{SEED, SIZE, body, case, case_with, check, expect, request, run, summary, then};

const LENGTH: &str = "Content-Length: 3000";
const CHUNKED: &str = "Transfer-Encoding: chunked";

#[tokio::test]
async fn a_port_that_refuses_is_a_failure_to_connect() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert_eq!(summary(&run(&request(address)).await), "failed connect refused");
    }
}

#[tokio::test]
async fn a_port_that_does_not_answer_is_a_timeout_of_connect() {
    // A queue of one that is full: the kernel lets further connections wait.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let _filling = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = Request { timeout: Duration::from_millis(200), ..request(address) };
    assert_eq!(summary(&run(&request).await), "timeout connect");
}

#[tokio::test]
async fn whoever_stalls_runs_into_the_timeout_of_its_step() {
    use Step::*;
    let login = || vec![ReadGreeting, send([5, 2]), ReadLogin];
    let open = |bytes: Vec<u8>| script([granted(), vec![send(bytes), Stall]]);
    let cases = vec![
        case(vec![Stall], "timeout negotiate"),
        case(vec![ReadGreeting, send([5]), Stall], "timeout negotiate"),
        case(then(login(), [Stall]), "timeout request"),
        case(then(login(), [send([1]), Stall]), "timeout request"),
        case(then(asked(), [Stall]), "timeout response isolated"),
        case(then(asked(), [send([5, 0, 0, 1, 0]), Stall]), "timeout response isolated"),
        case(then(asked(), [send([5, 4]), Stall]), "timeout response isolated"),
        case(then(asked_without_name(), [Stall]), "timeout response shared"),
        case(then(granted(), [Stall]), "timeout data_response isolated"),
        case(open(b"HTTP/1.1 2".to_vec()), "timeout data_complete isolated"),
        case(open(ok(&[LENGTH], &[])), "timeout data_complete isolated"),
        case(open(ok(&[LENGTH], &body()[..SIZE - 1])), "timeout data_complete isolated"),
        // Nothing but the close can end these.
        case(open(ok(&[], &body())), "timeout data_complete isolated"),
        case(open(ok(&[CHUNKED], &peers::open_chunks(&body(), 1000))), "timeout data_complete isolated"),
        case(
            script([granted(), vec![Forever(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec())]]),
            "timeout data_complete isolated",
        ),
        case_with(
            script([granted(), vec![send(ok(&[], &[])), Forever(vec![b'x'; 65536])]]),
            |r| (r.size, r.payload_seed) = (None, None),
            "timeout data_complete isolated",
        ),
    ];
    let hurried = cases.into_iter().map(|case| async move {
        let peer = Peer::start(case.script).await;
        let mut request = request(peer.address);
        (case.change)(&mut request);
        request.timeout = Duration::from_millis(1500);
        let measurement = run(&request).await;
        assert!(measurement.ended >= 1_500_000, "too soon");
        assert_eq!(summary(&measurement), case.expected);
        // The connection ends with the run, else the peer would not.
        peer.end().await;
    });
    join_all(hurried).await;
}

#[tokio::test]
async fn a_negotiation_that_fails() {
    use Step::*;
    let answer = |bytes: &[u8]| vec![ReadGreeting, send(bytes), Stall];
    let mut cases = vec![
        case(vec![ReadGreeting, Close], "failed negotiate closed"),
        case(vec![ReadGreeting, Reset], "failed negotiate reset"),
        case(vec![ReadGreeting, send([5]), Close], "failed negotiate closed"),
        case(vec![ReadGreeting, send([5]), Reset], "failed negotiate reset"),
        case(answer(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "failed negotiate socks_malformed"),
        case(answer(&[0, 0x5a, 0, 0, 0, 0, 0, 0]), "failed negotiate socks_malformed"),
    ];
    for method in [1, 3, 0x80, 0xfe, 0xff] {
        cases.push(case(answer(&[5, method]), "failed negotiate socks_method"));
    }
    expect(cases).await;
}

#[tokio::test]
async fn an_authentication_that_fails() {
    use Step::*;
    let login = |next: &[Step]| then(vec![ReadGreeting, send([5, 2]), ReadLogin], next.iter().cloned());
    expect(vec![
        case(login(&[Close]), "failed request closed"),
        case(login(&[Reset]), "failed request reset"),
        case(login(&[send([1]), Close]), "failed request closed"),
        case(login(&[send([1, 1]), Stall]), "failed request socks_auth"),
        case(login(&[send([1, 0xff]), Close]), "failed request socks_auth"),
        case(login(&[send([5, 0]), Stall]), "failed request socks_malformed"),
        case(login(&[send(b"nonsense"), Stall]), "failed request socks_malformed"),
    ])
    .await;
}

#[tokio::test]
async fn a_reply_that_refuses_keeps_its_code() {
    let mut cases = Vec::new();
    for code in (0x01..=0x08).chain(0xf0..=0xf7).chain([0x09, 0x5b, 0xff]) {
        let refused = send([5, code, 0, 1, 0, 0, 0, 0, 0, 0]);
        let expected = format!("failed response socks_reply {code:02x}");
        cases.push(case(then(asked(), [refused.clone(), Step::Stall]), format!("{expected} isolated")));
        cases.push(case(then(asked_without_name(), [refused, Step::Close]), format!("{expected} shared")));
        // Less than RFC 1928 asks for, and all that there is to know.
        cases.push(case(then(asked(), [send([5, code]), Step::Close]), format!("{expected} isolated")));
        cases.push(case(then(asked(), [send([5, code, 0, 1, 0]), Step::Close]), format!("{expected} isolated")));
    }
    expect(cases).await;
}

#[tokio::test]
async fn a_reply_that_is_none() {
    use Step::*;
    expect(vec![
        case(then(asked(), [Close]), "failed response closed isolated"),
        case(then(asked(), [Reset]), "failed response reset isolated"),
        case(then(asked_without_name(), [Close]), "failed response closed shared"),
        case(then(asked(), [send([5]), Close]), "failed response closed isolated"),
        case(then(asked(), [send([5, 0]), Close]), "failed response closed isolated"),
        case(then(asked(), [send([5, 0, 0, 1, 0, 0]), Reset]), "failed response reset isolated"),
        case(then(asked(), [send([5, 0, 0, 3, 9, 65]), Close]), "failed response closed isolated"),
        case(then(asked(), [send([5, 0, 7, 1, 0, 0, 0, 0, 0, 0]), Stall]), "failed response socks_malformed isolated"),
        case(then(asked(), [send([5, 0, 0, 2, 0, 0, 0, 0, 0, 0]), Stall]), "failed response socks_malformed isolated"),
        case(then(asked(), [send([0, 0x5b, 0, 1, 0, 0, 0, 0]), Stall]), "failed response socks_malformed isolated"),
        case(then(asked(), [send(b"garbage, more of it"), Stall]), "failed response socks_malformed isolated"),
    ])
    .await;
}

#[tokio::test]
async fn a_reply_may_name_any_address() {
    let page = ok(&[LENGTH], &body());
    let bound = [
        [&[5, 0, 0, 1][..], &[0; 6]].concat(),
        [&[5, 0, 0, 4][..], &[0; 18]].concat(),
        [&[5, 0, 0, 3, 4][..], b"host", &[0, 80]].concat(),
        [&[5, 0, 0, 3, 0][..], &[0, 80]].concat(),
        [&[5, 0, 0, 3, 255][..], &[b'x'; 255], &[0, 80]].concat(),
        [&[5, 0, 0, 3, 2][..], &[0xff, 0xfe], &[0, 80]].concat(),
    ];
    let cases = bound.iter().map(|reply| {
        let steps = vec![send(reply), Step::Http, Step::ReadHead, send(&page), Step::Close];
        case(script([asked(), steps]), "complete isolated verified")
    });
    expect(cases.collect()).await;
}

#[tokio::test]
async fn a_proxy_that_goes_after_granting() {
    use Step::*;
    let next = |steps: &[Step]| script([asked(), vec![send(peers::GRANTED), Http], steps.to_vec()]);
    expect(vec![
        // In one go: the reset is there before the request can be written.
        case(next(&[Reset]), "failed data_request reset isolated"),
        case(next(&[Close]), "failed data_response closed isolated"),
        case(next(&[ReadHead, Close]), "failed data_response closed isolated"),
        case(next(&[ReadHead, Reset]), "failed data_response reset isolated"),
    ])
    .await;
}

#[tokio::test]
async fn a_response_that_is_no_answer() {
    use Step::*;
    let status = |line: &str| answers(response(line, &["Content-Length: 3"], b"abc"));
    let endless = |bytes: &[u8]| script([granted(), vec![send("HTTP/1.1 200 OK\r\n"), Forever(bytes.to_vec())]]);
    let malformed = "failed data_complete http_malformed isolated";
    let closed = "failed data_complete closed isolated";
    let mut cases = vec![
        case(answers(b"garbage\r\n\r\n"), malformed),
        case(answers([0u8; 100]), malformed),
        case(answers(b"SSH-2.0-OpenSSH_9.2\r\n"), malformed),
        case(status("HTTP/2 200 OK"), malformed),
        case(status("HTTP/1.1 20x OK"), malformed),
        case(answers(b"HTTP/1.1 200 OK\r\nContent-"), closed),
        case(answers(b"\r\n"), closed),
        case(then(granted(), [send(b"HTTP/1.1 200 OK\r\nX"), Reset]), "failed data_complete reset isolated"),
        case(answers(ok(&[&format!("X: {}", "x".repeat(70_000))], &[])), malformed),
        case(answers(ok(&["X: y"; 101], &[])), malformed),
        case(endless(&[b'x'; 1000]), malformed),
        case(endless(b"X: y\r\n"), malformed),
        case(answers(ok(&["Transfer-Encoding: gzip"], &[])), "failed data_complete payload_truncated isolated"),
        case(answers(response("HTTP/1.0 200 OK", &[CHUNKED], &peers::chunked(&body(), 100))), malformed),
    ];
    for code in [101u16, 201, 204, 206, 301, 302, 304, 400, 404, 500, 503, 999] {
        let expected = format!("failed data_complete http_status {code} isolated");
        cases.push(case(status(&format!("HTTP/1.1 {code} Whatever")), expected));
    }
    for length in ["-1", "+3000", "3000x", "", "18446744073709551615", "18446744073709551616", "9223372036854775808"] {
        for change in [(|_| {}) as fn(&mut Request), |r| r.size = None] {
            cases.push(case_with(answers(ok(&[&format!("Content-Length: {length}")], &body())), change, malformed));
        }
    }
    cases.push(case(answers(ok(&[LENGTH, "Content-Length: 3001"], &body())), malformed));
    cases.push(case(answers(ok(&["Content-Length: 3000, 3001"], &body())), malformed));
    // What comes is an error, and it is long: nobody waits for its end.
    let long = response("HTTP/1.1 503 Busy", &["Content-Length: 1000000"], b"sorry");
    cases.push(case(script([granted(), vec![send(long), Stall]]), "failed data_complete http_status 503 isolated"));
    expect(cases).await;
}

#[tokio::test]
async fn a_payload_that_is_right() {
    use Step::*;
    let good = "complete isolated verified";
    let page = ok(&[LENGTH], &body());
    let mut trickled = vec![ReadGreeting, Trickle(vec![5, 2]), ReadLogin, Trickle(vec![1, 0]), ReadRequest];
    trickled.extend([Trickle(peers::GRANTED.to_vec()), Http, ReadHead, Trickle(page.clone()), Close]);
    let shared = vec![send(peers::GRANTED), Http, ReadHead, send(&page), Close];
    let hints = [&b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"[..], &page].concat();
    let cases = vec![
        case(answers(&page), good),
        case(trickled, good),
        case(script([asked_without_name(), shared]), "complete shared verified"),
        case(then(granted(), [send(&page), Reset]), good),
        case(then(granted(), [send(&page), Stall]), good),
        case(answers(hints), good),
        case(answers([b"\r\n\r\n", &page[..]].concat()), good),
        case(answers(ok(&[LENGTH, "Connection: keep-alive"], &body())), good),
        case(answers(response("HTTP/1.0 200 OK", &[LENGTH], &body())), good),
        case(answers(response("HTTP/1.1 200", &[LENGTH], &body())), good),
        case(answers(ok(&[LENGTH, LENGTH], &body())), good),
        case(answers(ok(&["content-length: 3000, 3000"], &body())), good),
        // It says something else and is right.
        case(answers(ok(&[LENGTH, "Content-Encoding: gzip"], &body())), good),
        case(answers(ok(&[], &body())), good),
        case(answers(response("HTTP/1.0 200 OK", &[], &body())), good),
        case(answers(ok(&["Transfer-Encoding: gzip", LENGTH], &body())), good),
        // hyper takes no value for text that is not ASCII, so this is no chunked payload.
        case(answers(ok(&["Transfer-Encoding: é, chunked"], &body())), good),
        case(answers(ok(&[CHUNKED], &peers::chunked(&body(), 1))), good),
        case(answers(ok(&[CHUNKED], &peers::chunked(&body(), 999))), good),
        case(answers(ok(&["Transfer-Encoding: gzip", CHUNKED], &peers::chunked(&body(), 3000))), good),
        case(then(granted(), [Trickle(ok(&[CHUNKED], &peers::chunked(&body(), 70))), Stall]), good),
        case(
            answers(ok(
                &[CHUNKED, "Trailer: X"],
                &[&b"0BB8 ;a=\"b\"\r\n"[..], &body(), b"\r\n00\r\nX: y\r\nZ:\r\n\r\n"].concat(),
            )),
            good,
        ),
        case_with(answers(&page), |r| r.payload_seed = None, "complete isolated"),
        case_with(answers(&page), |r| r.size = None, good),
        case_with(answers(ok(&[], &body())), |r| r.size = None, good),
        case_with(answers(ok(&[CHUNKED], &peers::chunked(&body(), 999))), |r| r.size = None, good),
        case_with(answers(ok(&["Content-Length: 0"], &[])), |r| r.size = Some(0), good),
        case_with(answers(ok(&["Content-Length: 0"], &[])), |r| r.size = None, good),
        case_with(answers(ok(&[CHUNKED], b"0\r\n\r\n")), |r| r.size = None, good),
        case_with(answers(ok(&[], &[])), |r| r.size = Some(0), good),
    ];
    expect(cases).await;
}

#[tokio::test]
async fn an_answer_before_the_question_is_read_after_it() {
    let early = [&peers::GRANTED[..], &ok(&[LENGTH], &body())].concat();
    let peer = Peer::start(then(asked(), [send(early), Step::Stall])).await;
    assert_eq!(summary(&run(&request(peer.address)).await), "complete isolated verified");
    peer.end().await;
}

#[tokio::test]
async fn a_payload_that_is_wrong() {
    use Step::*;
    let truncated = "failed data_complete payload_truncated isolated";
    let padded = "failed data_complete payload_padded isolated";
    let late = "failed data_complete payload_padded isolated";
    let tampered = "failed data_complete payload_tampered isolated";
    let malformed = "failed data_complete http_malformed isolated";
    let size = "failed data_complete payload_size isolated";
    let page = ok(&[LENGTH], &body());
    let more = [&body()[..], b"more"].concat();
    let short = ok(&[LENGTH], &body()[..1000]);
    let mut cases = vec![
        case(answers(&short), truncated),
        case(answers(ok(&[LENGTH], &[])), truncated),
        case(then(granted(), [send(&short), Reset]), "failed data_complete reset isolated"),
        // All of it came, but nothing says that it was all.
        case(then(granted(), [send(ok(&[], &body())), Reset]), "failed data_complete reset isolated"),
        case(
            then(granted(), [send(ok(&[CHUNKED], &peers::open_chunks(&body(), 500))), Reset]),
            "failed data_complete reset isolated",
        ),
        case(answers(ok(&["Content-Length: 2999"], &body()[..2999])), size),
        case(answers(ok(&["Content-Length: 3001"], &body())), size),
        case(answers(ok(&["Content-Length: 0"], &[])), size),
        // Padding: with the last byte, a moment later, without an end.
        case(answers(ok(&[LENGTH], &more)), late),
        case(then(granted(), [send(&page), Wait(Duration::from_millis(50)), send("x"), Stall]), late),
        case(then(granted(), [send(&page), Forever(vec![b'x'; 65536])]), late),
        case_with(answers(ok(&["Content-Length: 0"], b"more")), |r| r.size = Some(0), late),
        case(answers(ok(&[], &more)), padded),
        case(answers(ok(&[CHUNKED], &peers::chunked(&more, 5000))), padded),
        case(answers(ok(&[CHUNKED], &peers::chunked(&more, 7))), padded),
        case(answers(ok(&[CHUNKED], &[&peers::chunked(&body(), 999)[..], b"more"].concat())), late),
        case(answers(ok(&[], &body()[..2999])), truncated),
        case(answers(ok(&[CHUNKED], &peers::chunked(&body()[..2999], 500))), truncated),
        case(answers(ok(&[CHUNKED], &peers::open_chunks(&body()[..2999], 500))), truncated),
        case(answers(ok(&[CHUNKED], &peers::open_chunks(&body(), 500))), truncated),
        case(answers(ok(&[CHUNKED], b"10\r\nabc")), tampered),
        case(answers(ok(&[CHUNKED], b"1FFFFFFFFFFFFFFFF\r\nabc")), malformed),
        case(answers(ok(&[CHUNKED], b"xyz\r\n")), malformed),
        case(answers(ok(&[CHUNKED], b"\r\n\r\n")), malformed),
        case(answers(ok(&[CHUNKED], &[&b"BB8\r\n"[..], &body(), b"no line end"].concat())), malformed),
        case(answers(ok(&[CHUNKED], &[&b"FFFFFFFFFFFFFFFF\r\n"[..], &more].concat())), padded),
        case_with(
            answers(ok(&[CHUNKED], b"FFFFFFFFFFFFFFFF\r\nabc")),
            |r| (r.size, r.payload_seed) = (None, None),
            truncated,
        ),
        case(script([granted(), vec![send(ok(&[CHUNKED], b"1;")), Forever(vec![b'x'; 1000])]]), malformed),
        case(script([granted(), vec![send(ok(&[CHUNKED], b"0\r\n")), Forever(b"X: y\r\n".to_vec())]]), malformed),
        case_with(answers(&short), |r| r.size = None, truncated),
    ];
    for at in [0, 1, 1500, SIZE - 1] {
        let mut wrong = body();
        wrong[at] ^= 1;
        cases.push(case(answers(ok(&[LENGTH], &wrong)), tampered));
        cases.push(case(answers(ok(&[CHUNKED], &peers::chunked(&wrong, 100))), tampered));
    }
    expect(cases).await;
}

#[tokio::test]
async fn a_payload_in_time_is_complete_even_if_the_close_is_not() {
    let peer = Peer::start(then(granted(), [send(ok(&[LENGTH], &body())), Step::Stall])).await;
    // Less than the linger: it ends while perfd waits for the close.
    let request = Request { timeout: Duration::from_millis(300), ..request(peer.address) };
    let measurement = run(&request).await;
    assert_eq!(summary(&measurement), "complete isolated verified");
    assert!(measurement.ended < 500_000);
    peer.end().await;
}

#[tokio::test]
async fn the_wait_for_the_close_is_short() {
    let page = ok(&[LENGTH], &body());
    let mut waits = Vec::new();
    for end in [Step::Close, Step::Stall] {
        let peer = Peer::start(then(granted(), [send(&page), end])).await;
        let measurement = run(&request(peer.address)).await;
        waits.push(measurement.ended - measurement.steps.data_complete.unwrap());
        peer.end().await;
    }
    assert!(waits[0] < 400_000, "{waits:?}");
    assert!((450_000..1_000_000).contains(&waits[1]), "{waits:?}");
}

/// The SOCKS request and the HTTP head that come of a change to the request.
async fn asked_for(change: impl Fn(&mut Request)) -> (Vec<u8>, String, Measurement) {
    let peer = Peer::start(answers(ok(&[LENGTH], &body()))).await;
    let mut request = request(peer.address);
    change(&mut request);
    let measurement = run(&request).await;
    assert_eq!(summary(&measurement), "complete isolated verified");
    let seen = peer.end().await;
    (seen.request, String::from_utf8(seen.head).unwrap(), measurement)
}

#[tokio::test]
async fn the_greeting_and_the_name_are_the_runs_own() {
    let peer = Peer::start(answers(ok(&[LENGTH], &body()))).await;
    let request = request(peer.address);
    let measurement = run(&request).await;
    let seen = peer.end().await;
    assert_eq!(seen.greeting, [5, 2, 0, 2]);
    let user = format!("perfd-{}", request.id);
    assert_eq!(seen.login, [&[1, 38][..], user.as_bytes(), &[5], b"perfd"].concat());
    assert!(String::from_utf8(seen.head).unwrap().contains(&format!("x-perfd-run: {}\r\n", request.id)));
    assert_eq!((measurement.proxy, measurement.remote_port), (Some(request.socks), Some(8080)));
}

#[tokio::test]
async fn addresses_are_sent_as_addresses_and_names_as_names() {
    let (socks, head, _) = asked_for(|r| r.host = "192.0.2.7".into()).await;
    assert_eq!(socks, [5, 1, 0, 1, 192, 0, 2, 7, 0x1f, 0x90]);
    assert!(head.contains("host: 192.0.2.7:8080\r\n"), "{head}");

    let (socks, head, _) = asked_for(|r| (r.host, r.port) = ("2001:db8::1".into(), 80)).await;
    assert_eq!(socks, [&[5, 1, 0, 4, 0x20, 1, 0xd, 0xb8][..], &[0; 11], &[1, 0, 80]].concat());
    assert!(head.contains("host: [2001:db8::1]\r\n"), "{head}");

    let (socks, head, measurement) = asked_for(|_| {}).await;
    assert_eq!(socks, [&[5, 1, 0, 3, 14][..], b"server.example", &[0x1f, 0x90]].concat());
    assert!(head.starts_with("GET /payload?bytes=3000 HTTP/1.1\r\nhost: server.example:8080\r\n"), "{head}");
    assert_eq!(measurement.remote_host.as_deref(), Some("server.example"));

    let (socks, ..) = asked_for(|r| r.host = "x".repeat(255)).await;
    assert_eq!((socks[4], socks.len()), (255, 262));
}

#[tokio::test]
async fn odd_paths_are_sent_as_they_are() {
    for path in ["/", "//", "/?", "/a%20b?c=d&e=%00", "/~!$&'()*+,;=:@-._|[]", "/é", "/..//./x", "/{\"a\":1}"] {
        let (_, head, _) = asked_for(|r| r.path = path.into()).await;
        assert!(head.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{head}");
    }
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_not() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    unused.set_nonblocking(true).unwrap();
    let changes: [fn(&mut Request); 12] = [
        |r| r.host = "x".repeat(256),
        |r| r.host = "x".repeat(100_000),
        |r| r.host = String::new(),
        |r| r.host = "a\r\nb".into(),
        |r| r.host = "a\0b".into(),
        |r| r.path = String::new(),
        |r| r.path = "http://other.example/".into(),
        |r| r.path = "/a b".into(),
        |r| r.path = "/a\r\nX: y".into(),
        |r| r.path = "*".into(),
        |r| r.path = "/a#b".into(),
        |r| r.path = format!("/{}", "x".repeat(70_000)),
    ];
    for change in changes {
        let mut request = request(unused.local_addr().unwrap());
        change(&mut request);
        assert_eq!(summary(&run(&request).await), "failed socket io", "{request:?}");
    }
    assert_eq!(unused.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "it connected");
}

#[tokio::test]
async fn a_proxy_may_have_an_ipv6_address() {
    let Ok(peer) = Peer::start_at("[::1]:0", answers(ok(&[LENGTH], &body()))).await else { return };
    let measurement = run(&request(peer.address)).await;
    assert_eq!(summary(&measurement), "complete isolated verified");
    assert!(measurement.local.unwrap().is_ipv6() && measurement.proxy.unwrap().is_ipv6());
    peer.end().await;
}

#[tokio::test]
async fn a_timeout_may_be_nothing_or_beyond_all_time() {
    let peer = Peer::start(answers(ok(&[LENGTH], &body()))).await;
    let endless = Request { timeout: Duration::from_secs(u64::MAX / 2), ..request(peer.address) };
    let measurement = measure(&endless).await;
    assert_eq!(summary(&measurement), "complete isolated verified");
    peer.end().await;

    let peer = Peer::start(vec![Step::Stall]).await;
    let measurement = run(&Request { timeout: Duration::ZERO, ..request(peer.address) }).await;
    assert_eq!(measurement.outcome.word(), "timeout");
}

/// How late a mark may be.
const LATE: Duration = Duration::from_millis(20);
/// Two clocks are read a moment apart: the test's and START, or one on either side of a connection.
const EARLY: Duration = Duration::from_millis(2);

/// One run with known delays, its payload in one piece or in chunks; the marks that do not lie where the
/// peer says they must.
async fn misplaced_marks(chunks: bool) -> Vec<String> {
    use Step::*;
    const SIZE: usize = 1 << 20;
    let bytes = payload(SEED, SIZE);
    let delay = Wait(Duration::from_millis(30));
    let mut steps =
        vec![ReadGreeting, delay.clone(), send([5, 2]), ReadLogin, delay.clone(), send([1, 0]), ReadRequest];
    steps.extend([delay.clone(), send(peers::GRANTED), Http, ReadHead, delay.clone()]);
    let first = steps.len();
    steps.push(send(ok(&[if chunks { CHUNKED } else { "Content-Length: 1048576" }], &[])));
    let ends: Vec<usize> = (0..=10).map(|tenths| (SIZE * tenths).div_ceil(10)).collect();
    for part in ends.windows(2) {
        let part = &bytes[part[0]..part[1]];
        steps.extend([delay.clone(), send(if chunks { peers::open_chunks(part, 10_000) } else { part.to_vec() })]);
    }
    // The end of the chunks is no payload: its delay moves no mark.
    if chunks {
        steps.extend([delay.clone(), send("0\r\n\r\n")]);
    }
    steps.push(Close);

    let (tell, address) = std::sync::mpsc::channel();
    let proxy = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let peer = Peer::start(steps).await;
            tell.send(peer.address).unwrap();
            peer.end().await.times
        })
    });
    let request = Request { size: Some(SIZE as u64), ..request(address.recv().unwrap()) };
    let before = Instant::now();
    let measurement = run(&request).await;
    let times = proxy.join().unwrap();
    assert_eq!(summary(&measurement), "complete isolated verified");

    let mut misplaced = Vec::new();
    let mut within = |what: String, mark: Option<u64>, from: Instant, until: Instant| {
        let at = before + Duration::from_micros(mark.unwrap());
        if at + EARLY < from || at > until {
            let after = |t: Instant| (t - before).as_micros();
            misplaced.push(format!("{what}: {} is not in {}..{}", after(at), after(from), after(until)));
        }
    };
    let s = &measurement.steps;
    let mut sent = |what: &str, mark, step: usize| within(what.into(), mark, times[step].0, times[step].1 + LATE);
    sent("negotiate", s.negotiate, 2);
    sent("response", s.response, 8);
    sent("data_response", s.data_response, first);
    sent("data_complete", s.data_complete, first + 20);
    for (tenths, mark) in s.deciles.iter().enumerate() {
        sent(&format!("decile {tenths}"), *mark, first + 2 * tenths.max(1));
    }
    for (mark, position) in s.partials.iter().zip(PARTIALS).filter(|(_, position)| *position <= SIZE as u64) {
        let part = ends.iter().position(|end| *end as u64 >= position).unwrap();
        sent(&format!("partial {position}"), *mark, first + 2 * part);
    }
    // What perfd sends, the peer has read about when the system call returns.
    within("request".into(), s.request, times[5].0, times[6].1 + EARLY);
    within("data_request".into(), s.data_request, times[8].0, times[10].1 + EARLY);
    misplaced
}

#[tokio::test]
async fn the_marks_tell_when_it_happened() {
    for chunks in [false, true] {
        // A busy machine may be late once; a mark in the wrong place is wrong every time.
        let mut misplaced = misplaced_marks(chunks).await;
        for _ in 0..4 {
            if !misplaced.is_empty() {
                misplaced = misplaced_marks(chunks).await;
            }
        }
        assert!(misplaced.is_empty(), "chunks {chunks}:\n{}", misplaced.join("\n"));
    }
}

/// Pieces of a conversation, right ones and wrong ones, in any order.
fn pieces() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let noise = prop::collection::vec(any::<u8>(), 0..40);
    let header = prop_oneof![
        Just(LENGTH.to_owned()),
        Just(CHUNKED.to_owned()),
        "Content-Length: [0-9 ,]{0,5}",
        "Transfer-Encoding: [a-z, ]{0,9}",
        "(Connection: (close|keep-alive)|X: [ -~]{0,9})",
    ];
    let status = prop_oneof![6 => Just("HTTP/1.1 200 OK".to_owned()), 1 => "HTTP/1.[01] [1-5]0[0-9] [A-Z]{0,3}"];
    let head = (status, prop::collection::vec(header, 0..3), "(\r\n|\n)", "[\r\n]{0,4}").prop_map(
        |(status, headers, end, before)| {
            let lines = [&[status][..], &headers, &[String::new(), String::new()]].concat();
            format!("{before}{}", lines.join(&end)).into_bytes()
        },
    );
    let chunk = "[0-9a-fx]{1,3}[; ]?\r\n[a-z]{0,9}\r\n".prop_map(String::into_bytes);
    let part = (0..=SIZE, 1..=SIZE).prop_map(|(from, length)| body()[from..(from + length).min(SIZE)].to_vec());
    let web = prop_oneof![
        3 => Just(body()),
        1 => part,
        2 => chunk,
        1 => Just(b"0\r\n\r\n".to_vec()),
        1 => Just(peers::chunked(&body(), 700)),
        2 => noise.clone(),
    ];
    let socks = prop_oneof![
        20 => Just(vec![vec![5, 2], vec![1, 0], peers::GRANTED.to_vec()]),
        4 => Just(vec![vec![5, 0], peers::GRANTED.to_vec()]),
        2 => any::<[u8; 6]>().prop_map(|[a, b, c, d, e, f]| vec![vec![5, 2, 1, 0, 5, a % 3, b, c, d, e, f]]),
        2 => any::<u8>().prop_map(|code| vec![vec![5, 0], vec![5, code, 0, 1]]),
        2 => prop::collection::vec(noise.clone(), 0..4),
    ];
    (socks, prop_oneof![5 => head, 1 => noise], prop::collection::vec(web, 0..4))
        .prop_map(|(socks, head, web)| [socks, vec![head], web].concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_peers_do_a_measurement_comes_of_it(
        pieces in pieces(),
        end in prop_oneof![10 => Just(Step::Close), 5 => Just(Step::Reset), 1 => Just(Step::Stall)],
        listens in any::<bool>(),
        cut in any::<bool>(),
        size in prop_oneof![Just(Some(SIZE as u64)), Just(None), (0..4u64).prop_map(Some)],
        verify in any::<bool>(),
        (upload, optimistic) in any::<(bool, bool)>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut steps: Vec<Step> =
                pieces.into_iter().map(if cut { Step::Trickle } else { Step::Send }).collect();
            if listens {
                steps.insert(0, Step::ReadGreeting);
            }
            steps.push(end);
            let peer = Peer::start(steps).await;
            let payload_seed = verify.then_some(SEED);
            let kind = if upload { Kind::Upload } else { Kind::Download };
            let timeout = Duration::from_millis(100);
            run(&Request { kind, optimistic, timeout, size, payload_seed, ..request(peer.address) }).await;
            peer.end().await;
        });
    }
}

#[tokio::test]
async fn a_caller_that_goes_ends_its_run() {
    let (prober, thread) = Prober::start().unwrap();
    let mut peer = Peer::start(then(granted(), [send("HTTP"), Step::Stall])).await;
    let request = request(peer.address);
    let caller = tokio::spawn({
        let prober = prober.clone();
        async move { prober.measure(request).await }
    });
    peer.begins(granted().len() + 2).await;
    caller.abort();
    // It stalls until the connection is closed, and the timeout is far.
    let before = Instant::now();
    peer.end().await;
    assert!(before.elapsed() < Duration::from_secs(10));

    drop(prober);
    assert!(caller.await.unwrap_err().is_cancelled());
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn the_thread_ends_with_its_last_handle_and_takes_its_runs_along() {
    let (prober, thread) = Prober::start().unwrap();
    let mut peer = Peer::start(vec![Step::ReadGreeting, Step::Stall]).await;
    let request = request(peer.address);
    let caller = tokio::spawn(async move { prober.measure(request).await });
    peer.begins(2).await;
    caller.abort();
    peer.end().await;
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn many_runs_go_side_by_side() {
    let (prober, thread) = Prober::start().unwrap();
    let runs = (0..50).map(|_| async {
        let peer = Peer::start(answers(ok(&[LENGTH], &body()))).await;
        let request = request(peer.address);
        let measurement = prober.measure(request.clone()).await.unwrap().measurement;
        check(&request, &measurement);
        let user = [b"perfd-", request.id.as_str().as_bytes()].concat();
        assert_eq!(peer.end().await.login[2..40], user, "each has a name of its own");
        summary(&measurement)
    });
    assert_eq!(join_all(runs).await, vec!["complete isolated verified"; 50]);
    drop(prober);
    tokio::task::spawn_blocking(|| thread.join().unwrap()).await.unwrap();
}

#[tokio::test]
async fn times_count_from_the_moment_that_is_told() {
    let peer = Peer::start(answers(ok(&[LENGTH], &body()))).await;
    let before = Instant::now();
    let measured = measured(&request(peer.address)).await;
    let after = Instant::now();
    assert_eq!(summary(&measured.measurement), "complete isolated verified");
    assert!(before <= measured.origin && measured.origin + Duration::from_micros(measured.measurement.ended) <= after);
    peer.end().await;
}

#[tokio::test]
async fn a_curve_has_the_bytes_as_they_came_as_far_as_they_came() {
    let parts: Vec<Step> = body().chunks(500).map(send).collect();
    let mut steps = script([granted(), vec![send(ok(&[LENGTH], &[]))]]);
    for part in &parts[..5] {
        steps.extend([Step::Wait(Duration::from_millis(20)), part.clone()]);
    }
    let peer = Peer::start(then(steps, [Step::Wait(Duration::from_millis(20)), Step::Close])).await;
    let measurement = run(&request(peer.address)).await;
    assert_eq!(summary(&measurement), "failed data_complete payload_truncated isolated");
    let bytes: Vec<u64> = measurement.curve.iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(bytes, [500, 1000, 1500, 2000, 2500]);
    let gaps = measurement.curve.windows(2).map(|two| two[1].0 - two[0].0);
    assert!(gaps.min() >= Some(10_000), "{:?}", measurement.curve);
    peer.end().await;
}

#[tokio::test]
async fn steps_that_were_not_reached_are_not_there() {
    let peer = Peer::start(then(asked(), [Step::Close])).await;
    let measurement = run(&request(peer.address)).await;
    let reached: Vec<Phase> =
        measurement.steps.in_order().iter().filter(|(_, at)| at.is_some()).map(|(phase, _)| *phase).collect();
    assert_eq!(reached, [Phase::Socket, Phase::Connect, Phase::Negotiate, Phase::Request]);
    assert_eq!((measurement.written, measurement.read, measurement.size), (0, 0, SIZE as u64));
    peer.end().await;
}
