//! One run: its times, and how it ended.

use std::net::SocketAddr;

use perfd::clock::UnixMicros;
use perfd::measurement::{
    Cause, Curve, Failure, Kind, Measurement, Outcome, PARTIALS, Phase, RunId, ServerKind, Steps,
};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use crate::schedule::{Experiment, TORS};

/// How Tor was in one hour.
pub struct Way {
    /// By how much everything is slower than usual.
    slow: f64,
    /// How many of a thousand runs don't complete.
    troubled: u32,
}

impl Way {
    /// In the hour that begins at this moment, so many years after the first.
    pub fn at(hour: UnixMicros, years: f64, rng: &mut ChaCha8Rng) -> Self {
        let time_of_day = hour.0.rem_euclid(86_400_000_000) as f64 / 86_400_000_000.0;
        // Slowest in the evening of Europe; and a little faster from year to year.
        let rhythm = 1.0 + 0.22 * ((time_of_day - 0.58) * std::f64::consts::TAU).sin();
        let day = hour.0.div_euclid(86_400_000_000);
        let bad_day = day.wrapping_mul(0x9e37_79b9).rem_euclid(97) < 4;
        let slow = rhythm * (-0.06 * years).exp() * log_normal(1.0, 0.08, rng) * if bad_day { 1.6 } else { 1.0 };
        Way { slow, troubled: if bad_day { 110 } else { 28 } }
    }
}

/// The run of a slot. Only one of which all is told has a curve.
pub fn measurement(
    experiment: &Experiment,
    planned: UnixMicros,
    way: &Way,
    told: bool,
    rng: &mut ChaCha8Rng,
) -> Measurement {
    let id = RunId::from_bits(rng.random());
    let onion = experiment.server == ServerKind::Onion;
    let tor = TORS.iter().position(|tor| *tor == experiment.tor).unwrap_or(0);
    let slow = way.slow * [1.0, 1.12, 0.95, 1.5][tor];
    let times = Times::drawn(experiment.size, onion, slow, rng);
    let mut steps = times.steps(experiment.size, rng);
    let mut outcome = Outcome::Complete;
    let mut ended = steps.data_complete.unwrap_or(0) + rng.random_range(20..200);
    if rng.random_ratio(way.troubled, 1_000) {
        (outcome, ended) = trouble(onion, experiment.size, &mut steps, rng);
    }
    let received = steps.deciles.iter().rposition(Option::is_some).map_or(0, |tenths| {
        if outcome == Outcome::Complete { experiment.size } else { experiment.size * tenths as u64 / 10 }
    });
    let host = if onion { format!("{:a<56}.onion", experiment.tor) } else { "perfd.example.org".to_owned() };
    Measurement {
        kind: Kind::Download,
        user: Some(format!("perfd-{id}")),
        optimistic: false,
        start: UnixMicros(planned.0 + rng.random_range(300..2_500)),
        ended,
        size: experiment.size,
        written: if steps.data_request.is_some() { 141 } else { 0 },
        read: if steps.data_response.is_some() { received + 187 } else { 0 },
        local: steps.connect.map(|_| SocketAddr::from(([127, 0, 0, 1], rng.random_range(32_768..61_000)))),
        proxy: Some(SocketAddr::from(([127, 0, 0, 1], 9_050 + 2 * tor as u16))),
        remote_host: Some(host),
        remote_port: Some(8_080),
        isolated: steps.negotiate.map(|_| true),
        verified: outcome == Outcome::Complete,
        curve: if told { curve(&steps, experiment.size) } else { Curve::new() },
        server: None,
        outcome,
        steps,
        id,
    }
}

/// What a run takes, in µs.
struct Times {
    connect: u64,
    circuit: u64,
    round_trip: u64,
    transfer: u64,
}

impl Times {
    fn drawn(size: u64, onion: bool, slow: f64, rng: &mut ChaCha8Rng) -> Self {
        let (circuit, round_trip, rate) = if onion { (900e3, 480e3, 1.3) } else { (310e3, 230e3, 2.4) };
        let round_trip = log_normal(round_trip * slow, 0.4, rng);
        // A window that doubles with each round trip, until the rate (bytes a µs) is reached.
        let windows = (1.0 + size as f64 / 46_000.0).log2().min(4.0) * 0.45;
        Times {
            connect: log_normal(90.0, 0.3, rng) as u64 + 30,
            circuit: log_normal(circuit * slow, 0.55, rng) as u64 + 10_000,
            round_trip: round_trip as u64 + 5_000,
            transfer: (windows * round_trip + log_normal(size as f64 / rate * slow, 0.5, rng)) as u64 + 1_000,
        }
    }

    fn steps(&self, size: u64, rng: &mut ChaCha8Rng) -> Steps {
        let socket = rng.random_range(8..40);
        let connect = socket + self.connect;
        let negotiate = connect + rng.random_range(80..400);
        let request = negotiate + rng.random_range(60..300);
        let response = request + self.circuit;
        let data_request = response + rng.random_range(30..150);
        let data_response = data_request + self.round_trip;
        let first = data_response + rng.random_range(0..60);
        let mut steps = Steps {
            socket: Some(socket),
            connect: Some(connect),
            negotiate: Some(negotiate),
            request: Some(request),
            response: Some(response),
            data_request: Some(data_request),
            data_response: Some(data_response),
            data_complete: Some(first + self.transfer),
            ..Steps::default()
        };
        let at = |share: f64| Some(first + (self.transfer as f64 * (0.25 * share.sqrt() + 0.75 * share)) as u64);
        for (tenth, decile) in steps.deciles.iter_mut().enumerate() {
            *decile = at(tenth as f64 / 10.0);
        }
        for (bytes, partial) in PARTIALS.into_iter().zip(&mut steps.partials).filter(|(bytes, _)| *bytes <= size) {
            *partial = at(bytes as f64 / size as f64);
        }
        steps
    }
}

/// How a run ends that does not complete, and when; takes away the steps that it does not reach.
fn trouble(onion: bool, size: u64, steps: &mut Steps, rng: &mut ChaCha8Rng) -> (Outcome, u64) {
    let timeout = if size > 1_000_000 { 1_795_000_000 } else { 295_000_000 };
    let failed = |phase, cause, socks_code, detail: &str| {
        Outcome::Failed(Failure { phase, cause, socks_code, http_status: None, detail: detail.to_owned() })
    };
    let outcome = match rng.random_range(0..100) {
        0..22 => Outcome::Timeout(Phase::Response),
        22..30 => Outcome::Timeout(Phase::DataResponse),
        30..45 => Outcome::Timeout(Phase::DataComplete),
        45..60 => failed(Phase::Response, Cause::SocksReply, Some(1), "the proxy answered: general failure"),
        60..66 => failed(Phase::Response, Cause::SocksReply, Some(6), "the proxy answered: TTL expired"),
        66..80 if onion => failed(
            Phase::Response,
            Cause::SocksReply,
            Some(0xf2),
            "the proxy answered: onion service introduction failed",
        ),
        66..80 => failed(Phase::Response, Cause::SocksReply, Some(4), "the proxy answered: host unreachable"),
        80..86 => failed(Phase::DataResponse, Cause::Closed, None, "the connection was closed"),
        86..98 => failed(Phase::DataComplete, Cause::PayloadTruncated, None, "the payload ended early"),
        _ => failed(Phase::Connect, Cause::Refused, None, "connection refused (os error 111)"),
    };
    let phase = outcome.phase().unwrap_or(Phase::DataComplete);
    let reached = rng.random_range(0..10);
    let waited = cut(steps, phase, reached);
    let ended = match &outcome {
        Outcome::Timeout(_) => timeout,
        _ => waited + rng.random_range(100..20_000_000),
    };
    (outcome, ended)
}

/// Takes away what was not reached, of the payload all beyond so many tenths; gives when the last step was reached.
fn cut(steps: &mut Steps, phase: Phase, tenths: usize) -> u64 {
    let last = steps.deciles[tenths].filter(|_| phase == Phase::DataComplete);
    for at in steps.deciles.iter_mut().chain(&mut steps.partials) {
        *at = at.filter(|at| last.is_some_and(|last| *at <= last));
    }
    let Steps { connect, negotiate, request, response, data_request, data_response, data_complete, .. } = steps;
    let in_order = [connect, negotiate, request, response, data_request, data_response, data_complete];
    // The socket, which is the first of all phases, is always there.
    for step in in_order.into_iter().skip((phase as usize).saturating_sub(1)) {
        *step = None;
    }
    let reached = steps.in_order().into_iter().filter_map(|(_, at)| at).max();
    reached.max(last).unwrap_or(0)
}

fn curve(steps: &Steps, size: u64) -> Curve {
    let at = |(tenth, at): (usize, &Option<u64>)| at.map(|at| (at, size * tenth as u64 / 10));
    steps.deciles.iter().enumerate().filter_map(at).collect()
}

/// A log-normal number of this median; `sigma` is the standard deviation of its logarithm.
pub fn log_normal(median: f64, sigma: f64, rng: &mut ChaCha8Rng) -> f64 {
    // Box and Muller's transform.
    let (radius, angle): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    let normal = (-2.0 * radius.ln()).sqrt() * (angle * std::f64::consts::TAU).cos();
    median * (sigma * normal).exp()
}
