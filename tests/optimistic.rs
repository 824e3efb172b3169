//! Runs that send their request before the proxy has answered: the peers here have read it when they do.

#[path = "common/peers.rs"]
mod peers;
#[path = "common/runs.rs"]
mod runs;

use std::time::Duration;

use peers::{GRANTED, Peer, Step, asked, asked_without_name, ok, script, send};
use perfd::measurement::{Phase, Request};
use runs::{Case, body, case_with, expect, request, run, summary, then};

const LENGTH: &str = "Content-Length: 3000";

fn optimistic(script: Vec<Step>, expected: impl Into<String>) -> Case {
    case_with(script, |r| r.optimistic = true, expected)
}

/// A proxy that has read the SOCKS request and the HTTP request, and answered neither.
fn eager() -> Vec<Step> {
    then(asked(), [Step::Http, Step::ReadHead])
}

fn reply(bytes: impl AsRef<[u8]>) -> Step {
    Step::Reply(bytes.as_ref().to_vec(), Vec::new())
}

#[tokio::test]
async fn a_request_that_is_granted_late_is_answered() {
    use Step::*;
    let good = "complete isolated verified";
    let page = ok(&[LENGTH], &body());
    let trickled = |bytes: &[u8]| bytes.iter().map(|byte| reply([*byte])).collect::<Vec<_>>();
    let mut cases = vec![
        optimistic(then(eager(), [reply(GRANTED), send(&page), Close]), good),
        optimistic(then(eager(), [Reply(GRANTED.to_vec(), page.clone()), Close]), good),
        optimistic(then(eager(), [Reply(GRANTED.to_vec(), page.clone()), Stall]), good),
        optimistic(script([eager(), trickled(&GRANTED), vec![Trickle(page.clone()), Close]]), good),
        optimistic(
            then(asked_without_name(), [Http, ReadHead, Reply(GRANTED.to_vec(), page.clone()), Close]),
            "complete shared verified",
        ),
        // It was quicker than we are.
        optimistic(then(asked(), [Http, reply(GRANTED), ReadHead, send(&page), Close]), good),
        optimistic(then(asked(), [Http, Reply(GRANTED.to_vec(), page.clone()), ReadHead, Close]), good),
    ];
    let bound = [
        GRANTED.to_vec(),
        [&[5, 0, 0, 4][..], &[0; 18]].concat(),
        [&[5, 0, 0, 3, 4][..], b"host", &[0, 80]].concat(),
        [&[5, 0, 0, 3, 0][..], &[0, 80]].concat(),
        [&[5, 0, 0, 3, 255][..], &[b'x'; 255], &[0, 80]].concat(),
        [&[5, 0, 0, 3, 2][..], &[0xff, 0xfe], &[0, 80]].concat(),
    ];
    for bytes in bound {
        for cut in [1, 3, 4, 5, 6, bytes.len() - 1, bytes.len()] {
            let (first, rest) = bytes.split_at(cut);
            let pause = Wait(Duration::from_millis(10));
            let steps = [reply(first), pause, Reply(rest.to_vec(), page.clone()), Close];
            cases.push(optimistic(then(eager(), steps), good));
        }
    }
    expect(cases).await;
}

#[tokio::test]
async fn a_refusal_is_that_of_an_ordinary_run() {
    use Step::*;
    let mut cases = Vec::new();
    for code in (0x01..=0x08).chain(0xf0..=0xf7).chain([0x09, 0x5b, 0xff]) {
        let refused = [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        let expected = format!("failed response socks_reply {code:02x} isolated");
        for end in [Stall, Close, Reset] {
            // Read or not read, the request that was sent does not matter any more.
            cases.push(optimistic(then(eager(), [reply(refused), end.clone()]), &expected));
            if !matches!(end, Reset) {
                cases.push(optimistic(then(asked(), [reply(refused), end]), &expected));
            }
        }
        cases.push(optimistic(then(eager(), [reply([5, code]), Close]), &expected));
        cases.push(optimistic(then(eager(), [reply([5, code, 0, 1, 0]), Close]), &expected));
    }
    expect(cases).await;
}

#[tokio::test]
async fn a_reply_that_is_none_is_that_of_an_ordinary_run() {
    use Step::*;
    let malformed = "failed response socks_malformed isolated";
    let closed = "failed response closed isolated";
    let reset = "failed response reset isolated";
    expect(vec![
        optimistic(then(eager(), [Close]), closed),
        optimistic(then(eager(), [Reset]), reset),
        optimistic(then(eager(), [reply([5]), Close]), closed),
        optimistic(then(eager(), [reply([5, 0]), Close]), closed),
        optimistic(then(eager(), [reply([5, 0, 0, 1, 0, 0]), Reset]), reset),
        optimistic(then(eager(), [reply([5, 0, 0, 3, 9, 65]), Close]), closed),
        optimistic(then(eager(), [reply([5, 0, 7, 1, 0, 0, 0, 0, 0, 0]), Stall]), malformed),
        optimistic(then(eager(), [reply([5, 0, 0, 2, 0, 0, 0, 0, 0, 0]), Stall]), malformed),
        optimistic(then(eager(), [reply(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Stall]), malformed),
        // What is no answer of the proxy's is none that was waited for.
        optimistic(vec![ReadGreeting, send([5, 0xff]), Stall], "failed negotiate socks_method"),
        optimistic(vec![ReadGreeting, send([5, 2]), ReadLogin, send([1, 1]), Stall], "failed request socks_auth"),
        optimistic(vec![ReadGreeting, send([5, 2]), ReadLogin, Close], "failed request closed"),
        // And what comes after it is judged as ever.
        optimistic(then(eager(), [reply(GRANTED), Close]), "failed data_response closed isolated"),
        optimistic(
            then(eager(), [Reply(GRANTED.to_vec(), b"garbage\r\n\r\n".to_vec()), Close]),
            "failed data_complete http_malformed isolated",
        ),
        optimistic(
            then(eager(), [Reply(GRANTED.to_vec(), ok(&[LENGTH], &body()[..1000])), Close]),
            "failed data_complete payload_truncated isolated",
        ),
    ])
    .await;
}

#[tokio::test]
async fn whoever_stalls_runs_into_the_timeout_of_its_step() {
    use Step::*;
    let cases = [
        (vec![Stall], "timeout negotiate"),
        (vec![ReadGreeting, send([5, 2]), ReadLogin, Stall], "timeout request"),
        (then(eager(), [Stall]), "timeout response isolated"),
        (then(eager(), [reply([5, 0, 0, 1, 0]), Stall]), "timeout response isolated"),
        (then(eager(), [reply(GRANTED), Stall]), "timeout data_response isolated"),
    ];
    let hurried = cases.map(|(script, expected)| async move {
        let peer = Peer::start(script).await;
        let timeout = Duration::from_millis(500);
        let measurement = run(&Request { optimistic: true, timeout, ..request(peer.address) }).await;
        assert_eq!(summary(&measurement), expected);
        peer.end().await;
    });
    futures_util::future::join_all(hurried).await;
}

#[tokio::test]
async fn the_reply_is_timed_when_it_comes() {
    use Step::*;
    let page = ok(&[LENGTH], &body());
    let steps = then(eager(), [Wait(Duration::from_millis(100)), Reply(GRANTED.to_vec(), page), Close]);
    let peer = Peer::start(steps).await;
    let measurement = run(&Request { optimistic: true, ..request(peer.address) }).await;
    assert_eq!(summary(&measurement), "complete isolated verified");
    assert!(measurement.optimistic);
    let steps = measurement.steps;
    let (asked, sent) = (steps.request.unwrap(), steps.data_request.unwrap());
    assert!(steps.response.unwrap() >= sent + 90_000, "{steps:?}");
    assert!(sent - asked < 50_000, "nothing was waited for in between: {steps:?}");
    peer.end().await;
}

#[tokio::test]
async fn a_refused_run_waits_for_the_reply_though_its_request_was_sent() {
    let peer = Peer::start(then(eager(), [reply([5, 4, 0, 1, 0, 0, 0, 0, 0, 0]), Step::Stall])).await;
    let measurement = run(&Request { optimistic: true, ..request(peer.address) }).await;
    let reached = |phase| measurement.steps.in_order().iter().any(|(p, at)| *p == phase && at.is_some());
    assert!(reached(Phase::DataRequest) && !reached(Phase::Response));
    assert_eq!(measurement.outcome.phase(), Some(Phase::Response));
    assert_eq!(measurement.read, 0, "of HTTP, nothing came");
    peer.end().await;
}
