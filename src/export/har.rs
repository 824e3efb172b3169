//! Runs as an HTTP archive (HAR 1.2), which browsers' tools and proxies draw: an entry a run, in milliseconds, `-1`
//! for what does not apply or was not reached.
//!
//! `connect` is all until there is a connection to the server: to the proxy, and its SOCKS handshake. There is no TLS,
//! so `ssl` is `-1`, and the name is looked up beyond Tor, so `dns` is too. Where the request was sent before the SOCKS
//! reply (an optimistic run), `connect` ends with the SOCKS request, and the reply is part of `wait`.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::torperf::text;
use crate::measurement::{Cause, Kind, Measurement, Outcome, ResultRow};

/// What stands before the entries.
pub const HEAD: &str = concat!(
    "{\"log\":{\"version\":\"1.2\",\"creator\":{\"name\":\"perfd\",\"version\":\"",
    env!("CARGO_PKG_VERSION"),
    "\"},\"entries\":["
);

/// What stands after them; between two entries there is a comma.
pub const TAIL: &str = "\n]}}\n";

/// One run.
pub fn entry(row: &ResultRow) -> String {
    let run = &row.measurement;
    let timings = Timings::of(run);
    let (sent, received) = (body(run.kind == Kind::Upload, run), body(run.kind == Kind::Download, run));
    let steps = &run.steps;
    let mut own = json!({
        "experiment": row.experiment,
        "outcome": run.outcome.word(),
        "run_id": run.id,
        "server": row.server,
        "socks": {
            "connect": milliseconds(steps.connect),
            "negotiate": milliseconds(steps.negotiate),
            "request": milliseconds(steps.request),
            "response": milliseconds(steps.response),
        },
        "source": row.source,
        "time_to_first_byte": milliseconds(run.time_to_first_byte()),
        "time_to_last_byte": milliseconds(run.time_to_last_byte()),
        "tor": row.tor,
    });
    if let Some(phase) = run.outcome.phase() {
        own["phase"] = json!(phase);
    }
    if let Some(failure) = run.outcome.failure() {
        own["cause"] = json!(failure.cause);
        own["detail"] = json!(failure.detail);
    }
    json!({
        "_perfd": own,
        "cache": {},
        "connection": run.local.map_or(String::new(), |local| local.port().to_string()),
        "request": {
            "bodySize": sent,
            "cookies": [],
            "headers": [],
            "headersSize": -1,
            "httpVersion": "HTTP/1.1",
            "method": if run.kind == Kind::Upload { "POST" } else { "GET" },
            "queryString": [],
            "url": url(run),
        },
        "response": {
            "bodySize": received,
            "content": { "mimeType": "application/octet-stream", "size": received.max(0) },
            "cookies": [],
            "headers": [],
            "headersSize": -1,
            "httpVersion": "HTTP/1.1",
            "redirectURL": "",
            "status": status(run),
            "statusText": "",
        },
        "startedDateTime": run.start,
        "time": timings.sum(),
        "timings": timings.json(),
    })
    .to_string()
}

/// Milliseconds of each part; `None` where it does not apply or was not ended.
struct Timings {
    blocked: Option<f64>,
    connect: Option<f64>,
    send: Option<f64>,
    wait: Option<f64>,
    receive: Option<f64>,
}

impl Timings {
    fn of(run: &Measurement) -> Self {
        let steps = &run.steps;
        let connected = if run.optimistic { steps.request } else { steps.response };
        let between = |from: Option<u64>, to: Option<u64>| Some((to?.saturating_sub(from?)) as f64 / 1e3);
        Timings {
            blocked: steps.socket.map(|at| at as f64 / 1e3),
            connect: between(steps.socket, connected),
            send: between(connected, steps.data_request),
            wait: between(steps.data_request, steps.data_response),
            receive: between(steps.data_response, steps.data_complete),
        }
    }

    fn sum(&self) -> f64 {
        [self.blocked, self.connect, self.send, self.wait, self.receive].into_iter().flatten().sum()
    }

    fn json(&self) -> Value {
        let or_none = |part: Option<f64>| part.unwrap_or(-1.0);
        json!({
            "blocked": or_none(self.blocked),
            "connect": or_none(self.connect),
            "dns": -1.0,
            "receive": or_none(self.receive),
            "send": or_none(self.send),
            "ssl": -1.0,
            "wait": or_none(self.wait),
        })
    }
}

/// Bytes of the body that has the payload, once it was complete; of the other one, which has next to nothing, none.
fn body(has_payload: bool, run: &Measurement) -> i64 {
    match run.steps.data_complete {
        Some(_) if has_payload => i64::try_from(run.size).unwrap_or(i64::MAX),
        _ if has_payload => -1,
        _ => 0,
    }
}

/// 0 where no response came, as is usual.
fn status(run: &Measurement) -> u16 {
    let payload = [Cause::PayloadSize, Cause::PayloadTruncated, Cause::PayloadPadded, Cause::PayloadTampered];
    match &run.outcome {
        Outcome::Complete => 200,
        Outcome::Failed(failure) if payload.contains(&failure.cause) => 200,
        outcome => outcome.failure().and_then(|failure| failure.http_status).unwrap_or(0),
    }
}

fn url(run: &Measurement) -> String {
    // A name that is kept for what is not known.
    let host = run.remote_host.as_deref().unwrap_or("unknown.invalid");
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        Ok(address) => address.to_string(),
        Err(_) => text(host).replace(['/', '?', '#', ':', '@'], "_"),
    };
    let path = if run.kind == Kind::Upload { "upload" } else { "payload" };
    format!("http://{host}:{}/{path}/{}", run.remote_port.unwrap_or(80), run.size)
}

fn milliseconds(at: Option<u64>) -> f64 {
    at.map_or(-1.0, |at| at as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::measurement::Phase;
    use crate::test_support::{example_row, result_row};

    fn read(row: &ResultRow) -> Value {
        let archive: Value = serde_json::from_str(&[HEAD, &entry(row), TAIL].concat()).unwrap();
        assert_eq!(archive["log"]["version"], "1.2");
        archive["log"]["entries"][0].clone()
    }

    #[test]
    fn a_complete_run_is_drawn_like_this() {
        let entry = read(&example_row());
        let timings = json!({
            "blocked": 0.01, "connect": 399.99, "dns": -1.0, "receive": 800.0, "send": 0.1, "ssl": -1.0, "wait": 299.9,
        });
        assert_eq!(entry["timings"], timings);
        assert_eq!(entry["time"], 1_500.0);
        assert_eq!(entry["request"]["url"], "http://example.org:8080/payload/51200");
        assert_eq!((&entry["response"]["status"], &entry["response"]["bodySize"]), (&json!(200), &json!(51_200)));
        assert_eq!(entry["startedDateTime"], "2026-11-22T10:00:00.000000Z");
    }

    #[test]
    fn what_was_not_reached_is_minus_one() {
        let mut row = example_row();
        let steps = &mut row.measurement.steps;
        (steps.data_request, steps.data_response, steps.data_complete, steps.response) = (None, None, None, None);
        row.measurement.outcome = Outcome::Timeout(Phase::Response);
        let entry = read(&row);
        for part in ["connect", "send", "wait", "receive", "dns", "ssl"] {
            assert_eq!(entry["timings"][part], -1.0, "{part}");
        }
        assert_eq!((&entry["time"], &entry["response"]["status"]), (&json!(0.01), &json!(0)));
    }

    proptest! {
        #[test]
        fn the_parts_make_the_whole(row in result_row()) {
            let entry = read(&row);
            let parts = entry["timings"].as_object().unwrap();
            let part = |name: &str| parts[name].as_f64().unwrap();
            prop_assert!(parts.values().all(|part| part.as_f64().is_some_and(|part| part >= 0.0 || part == -1.0)));
            prop_assert!(part("ssl") <= part("connect").max(-1.0));
            let sum: f64 = parts.iter().filter(|(name, _)| *name != "ssl").map(|(_, part)| part.as_f64().unwrap().max(0.0)).sum();
            prop_assert!((entry["time"].as_f64().unwrap() - sum).abs() <= sum.abs() * 1e-9);
        }
    }
}
