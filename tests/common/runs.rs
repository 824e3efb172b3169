//! What the tests of the probe need: a request, the cases, and what holds of every measurement.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use perfd::measurement::{CURVE_POINTS, Cause, Kind, Measurement, Outcome, PARTIALS, Phase, Request, RunId};
use perfd::probe::measure;

use crate::peers::{Peer, Step, payload};

pub const SEED: [u8; 32] = [9; 32];
pub const SIZE: usize = 3000;

pub fn request(socks: SocketAddr) -> Request {
    let id = RunId::random();
    Request {
        user: format!("perfd-{id}"),
        id,
        kind: Kind::Download,
        optimistic: false,
        socks,
        host: "server.example".into(),
        port: 8080,
        path: "/payload?bytes=3000".into(),
        size: Some(SIZE as u64),
        timeout: Duration::from_secs(20),
        payload_seed: Some(SEED),
    }
}

pub fn body() -> Vec<u8> {
    payload(SEED, SIZE)
}

/// Measures, and checks what holds of every measurement.
pub async fn run(request: &Request) -> Measurement {
    let before = Instant::now();
    let measurement = measure(request).await;
    let took = before.elapsed();
    assert!(took < request.timeout + Duration::from_secs(1), "took {took:?}: {measurement:?}");
    assert!(u128::from(measurement.ended) <= took.as_micros());
    check(request, &measurement);
    measurement
}

pub fn check(request: &Request, m: &Measurement) {
    let mut steps = m.steps.in_order().to_vec();
    if request.optimistic {
        // It may come at any time between the SOCKS request and what it lets through.
        steps.retain(|(phase, _)| *phase != Phase::Response);
        let (asked, came, let_through) = (m.steps.request, m.steps.response, m.steps.data_response);
        assert!(came.is_none_or(|came| asked.is_some_and(|asked| asked <= came)), "{m:#?}");
        assert!(let_through.is_none_or(|later| came.is_some_and(|came| came <= later)), "{m:#?}");
    }
    let reached: Vec<u64> = steps.iter().map_while(|(_, at)| *at).collect();
    assert_eq!(reached.len(), steps.iter().filter(|(_, at)| at.is_some()).count(), "a gap in the steps: {m:#?}");
    assert!(reached.is_sorted(), "steps out of order: {m:#?}");
    assert!(reached.iter().all(|at| *at <= m.ended), "a step after the end: {m:#?}");
    assert_eq!(m.outcome == Outcome::Complete, m.steps.data_complete.is_some(), "{m:#?}");
    if let Some(phase) = m.outcome.phase() {
        assert_eq!(phase, m.steps.pending(), "{m:#?}");
    }

    for marks in [&m.steps.deciles[..], &m.steps.partials[..]] {
        let reached: Vec<u64> = marks.iter().map_while(|at| *at).collect();
        assert_eq!(reached.len(), marks.iter().flatten().count(), "a gap in the marks: {m:#?}");
        assert!(reached.is_sorted(), "marks out of order: {m:#?}");
        for at in reached {
            let begun = if request.kind == Kind::Upload { m.steps.data_request } else { m.steps.data_response };
            assert!(begun.is_some_and(|begun| begun <= at), "{m:#?}");
            assert!(at <= m.steps.data_complete.unwrap_or(m.ended), "{m:#?}");
        }
    }
    if let (Outcome::Complete, 1..) = (&m.outcome, m.size) {
        assert!(m.steps.deciles[0].is_some(), "complete without a first byte: {m:#?}");
        if request.size.is_some() {
            let last =
                if request.kind == Kind::Upload { m.curve.last().map(|(at, _)| *at) } else { m.steps.data_complete };
            assert_eq!(m.steps.deciles[10], last, "{m:#?}");
        }
        assert_eq!(m.curve.last().map(|(_, bytes)| *bytes), Some(m.size), "{m:#?}");
        let expected = PARTIALS.iter().filter(|position| **position <= m.size).count();
        assert_eq!(m.steps.partials.iter().flatten().count(), expected, "{m:#?}");
    }

    assert!(m.curve.len() <= CURVE_POINTS, "{m:#?}");
    assert!(m.curve.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 < two[1].1), "{m:#?}");
    assert_eq!(m.curve.first().map(|(at, _)| *at), m.steps.deciles[0], "{m:#?}");

    let failure = m.outcome.failure();
    let cause = failure.map(|f| f.cause);
    assert_eq!(failure.is_some_and(|f| f.socks_code.is_some()), cause == Some(Cause::SocksReply), "{m:#?}");
    assert_eq!(failure.is_some_and(|f| f.http_status.is_some()), cause == Some(Cause::HttpStatus), "{m:#?}");
    assert!(failure.is_none_or(|f| !f.detail.is_empty()));
    assert!(m.isolated.is_none() || m.steps.negotiate.is_some(), "{m:#?}");
    let whole = m.outcome == Outcome::Complete || cause == Some(Cause::PayloadPadded);
    assert!(!m.verified || (whole && request.payload_seed.is_some()), "{m:#?}");
    if m.outcome == Outcome::Complete {
        assert_eq!(m.verified, request.payload_seed.is_some(), "{m:#?}");
    }
    assert_eq!(m.local.is_some(), m.steps.connect.is_some(), "{m:#?}");
    assert_eq!(m.read > 0, m.steps.data_response.is_some(), "{m:#?}");
    let asked = if request.optimistic { m.steps.request } else { m.steps.response };
    assert!(m.written == 0 || asked.is_some(), "{m:#?}");
    assert!(m.server.is_none() || request.kind == Kind::Upload, "{m:#?}");
    assert!(m.written > 0 || m.steps.data_request.is_none(), "{m:#?}");
    assert!(m.size <= i64::MAX as u64, "{m:#?}");
}

/// What came out, in one line: outcome, phase, cause, code or status; isolation where it is known.
pub fn summary(m: &Measurement) -> String {
    let mut words = vec![m.outcome.word().to_owned()];
    words.extend(m.outcome.phase().map(|phase| phase.as_str().to_owned()));
    if let Some(failure) = m.outcome.failure() {
        words.push(failure.cause.as_str().to_owned());
        words.extend(failure.socks_code.map(|code| format!("{code:02x}")));
        words.extend(failure.http_status.map(|status| status.to_string()));
    }
    words.extend(m.isolated.map(|isolated| if isolated { "isolated" } else { "shared" }.to_owned()));
    if m.verified {
        words.push("verified".into());
    }
    words.join(" ")
}

/// A scripted peer, what to change in the request, and what is to come of it.
pub struct Case {
    pub script: Vec<Step>,
    pub change: fn(&mut Request),
    pub expected: String,
}

pub fn case(script: Vec<Step>, expected: impl Into<String>) -> Case {
    case_with(script, |_| {}, expected)
}

pub fn case_with(script: Vec<Step>, change: fn(&mut Request), expected: impl Into<String>) -> Case {
    Case { script, change, expected: expected.into() }
}

/// Runs the cases side by side and compares all that came out.
pub async fn expect(cases: Vec<Case>) {
    let runs = cases.into_iter().map(|Case { script, change, expected }| async move {
        let peer = Peer::start(script.clone()).await;
        let mut request = request(peer.address);
        change(&mut request);
        let measurement = run(&request).await;
        let seen = peer.end().await;
        if !seen.head.is_empty() {
            assert_eq!(measurement.written, seen.received, "{script:?}");
            assert_eq!(measurement.written, seen.head.len() as u64, "{script:?}");
        }
        if measurement.outcome == Outcome::Complete {
            assert_eq!(measurement.read, seen.sent, "{script:?}");
        }
        let came = summary(&measurement);
        (came != expected).then(|| {
            let script = format!("{script:?}");
            format!("expected: {expected}\n    came: {came}\n    {:?}\n    {script:.300}", measurement.outcome)
        })
    });
    let wrong: Vec<String> = join_all(runs).await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// `steps` with one more.
pub fn then(mut steps: Vec<Step>, next: impl IntoIterator<Item = Step>) -> Vec<Step> {
    steps.extend(next);
    steps
}
