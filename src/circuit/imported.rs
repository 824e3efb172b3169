//! What an imported line says of its circuit, under Torperf's names, as [`CircuitData`].

use super::{BuildTimeout, Circuit, CircuitData, CircuitState, Hop, Relay, StreamEvent};
use crate::clock::UnixMicros;

/// What the keys of one line say of the circuit of a run that began at `start`; `None` where they say nothing of it.
///
/// Keys are LAUNCH, USED_AT, PATH, BUILDTIMES, TIMEOUT, QUANTILE, CIRC_ID, USED_BY and perfd's own CIRCUIT. A value
/// that is none of its key's form is passed over. Where a path is told and no CIRC_ID, the circuit's id is 0.
pub fn told_by(start: UnixMicros, keys: &[(String, String)]) -> Option<CircuitData> {
    let value = |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let after_start = |name: &str| micros(value(name)?)?.checked_sub(start.0);
    let (launched_us, used_at) = (after_start("LAUNCH"), after_start("USED_AT"));
    let path = value("PATH").map(|path| hops(path, value("BUILDTIMES"))).unwrap_or_default();
    let id: Option<u64> = value("CIRC_ID").and_then(|id| id.parse().ok());
    let stream_id = value("USED_BY").and_then(|id| id.parse().ok());
    let timeout_ms = value("TIMEOUT").and_then(|timeout| timeout.parse().ok());
    let quantile = value("QUANTILE").and_then(|quantile| quantile.parse().ok()).filter(|q: &f64| q.is_finite());
    let told = CircuitState::ALL.into_iter().find(|(_, word)| value("CIRCUIT") == Some(word)).map(|(state, _)| state);
    let has_circuit = launched_us.is_some() || id.is_some() || !path.is_empty();
    if !has_circuit && used_at.is_none() && stream_id.is_none() && timeout_ms.is_none() && told.is_none() {
        return None;
    }
    let last = path.last().and_then(|hop| hop.built_after_us);
    let built_us = launched_us.zip(last).and_then(|(at, after)| at.checked_add_unsigned(after));
    let guard = path.first().map(|hop| hop.relay.clone());
    let closed =
        |at_us| StreamEvent { at_us, status: "CLOSED".to_owned(), circuit_id: id, reason: None, remote_reason: None };
    let circuit = Circuit {
        id: id.unwrap_or(0),
        launched_us,
        built_us,
        path,
        purpose: None,
        hs_state: None,
        build_flags: Vec::new(),
        built_before_run: built_us.map(|at| at < 0),
        last_used_us: None,
        end: None,
        bytes_read: None,
        bytes_written: None,
    };
    Some(CircuitData {
        state: told.unwrap_or(if has_circuit { CircuitState::Known } else { CircuitState::Unseen }),
        connection: 0,
        tor_version: None,
        stream_id,
        stream: used_at.map(closed).into_iter().collect(),
        circuit: has_circuit.then_some(circuit),
        conflux: None,
        onion: None,
        build_timeout: timeout_ms.map(|timeout_ms| BuildTimeout { timeout_ms, quantile, learning: None }),
        guard,
        guard_events: Vec::new(),
        congestion: None,
    })
}

/// The hops of PATH, with the times of BUILDTIMES where it has as many.
fn hops(path: &str, times: Option<&str>) -> Vec<Hop> {
    let times: Vec<Option<u64>> = times
        .map(|times| times.split(',').map(|time| micros(time).and_then(|time| u64::try_from(time).ok())).collect())
        .unwrap_or_default();
    let relays: Vec<&str> = path.split(',').collect();
    let times = if times.len() == relays.len() { times } else { vec![None; relays.len()] };
    let hop = |(relay, built_after_us): (&str, Option<u64>)| {
        let fingerprint = relay.trim_start_matches('$').to_ascii_uppercase();
        Hop { relay: Relay { fingerprint, nickname: None }, built_after_us }
    };
    relays.into_iter().zip(times).map(hop).collect()
}

/// Decimal seconds as microseconds; what is finer is cut.
pub fn micros(seconds: &str) -> Option<i64> {
    let (whole, decimals) = seconds.split_once('.').unwrap_or((seconds, "0"));
    if whole.is_empty() || decimals.is_empty() || !whole.bytes().chain(decimals.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let places = decimals.bytes().chain(std::iter::repeat(b'0')).take(6);
    let fraction = places.fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
    whole.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Vec<(String, String)> {
        let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        text.split_whitespace().filter_map(pair).collect()
    }

    #[test]
    fn a_circuit_is_what_the_keys_say() {
        let start = UnixMicros(1_000_000_000);
        let (one, two) = ("A".repeat(40), "B".repeat(40));
        let text = format!(
            "LAUNCH=990.5 USED_AT=1002.000001 PATH=${one},${two} BUILDTIMES=0.25,0.5 TIMEOUT=1500 QUANTILE=0.8 CIRC_ID=17 USED_BY=24"
        );
        let data = told_by(start, &keys(&text)).unwrap();
        let circuit = data.circuit.as_ref().unwrap();
        assert_eq!((circuit.id, circuit.launched_us, circuit.built_us), (17, Some(-9_500_000), Some(-9_000_000)));
        assert_eq!(circuit.path_text(), Some(format!("${one},${two}")));
        assert_eq!(circuit.build_times_text().as_deref(), Some("250000,500000"));
        assert_eq!((data.state, data.used_at_us(), data.stream_id), (CircuitState::Known, Some(2_000_001), Some(24)));
        assert_eq!(data.guard.unwrap().fingerprint, one);
        let timeout = BuildTimeout { timeout_ms: 1500, quantile: Some(0.8), learning: None };
        assert_eq!(data.build_timeout, Some(timeout));
    }

    #[test]
    fn what_is_not_told_is_absent() {
        let told = |text: &str| told_by(UnixMicros(0), &keys(text));
        assert_eq!(told("ENDPOINTLOCAL=a:1.2.3.4:5 X=1"), None);
        let lost = told("CIRCUIT=tor_lost").unwrap();
        assert_eq!((lost.state, lost.circuit), (CircuitState::TorLost, None));
        let unseen = told("TIMEOUT=1500").unwrap();
        assert_eq!((unseen.state, unseen.circuit), (CircuitState::Unseen, None));
        let uneven = told("PATH=$A,$B BUILDTIMES=0.1 LAUNCH=x").unwrap().circuit.unwrap();
        assert_eq!((uneven.id, uneven.launched_us, uneven.build_times_text()), (0, None, None));
    }

    #[test]
    fn seconds_are_read_to_the_microsecond() {
        for (text, expected) in
            [("1.5", Some(1_500_000)), ("2", Some(2_000_000)), ("0.0000019", Some(1)), ("1.", None), ("-1.0", None)]
        {
            assert_eq!(micros(text), expected, "{text}");
        }
    }
}
