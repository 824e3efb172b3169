//! What tor told of a run: arbitrary, and exemplary.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{micros, moment, name};
use crate::circuit::*;

/// The run's stream was attached once, to a circuit of three hops that was built before the run.
pub fn example_circuit() -> CircuitData {
    let circuit = Circuit {
        id: 17,
        launched_us: Some(-12_400_000),
        built_us: Some(-12_060_000),
        path: vec![hop(1, 120_000), hop(2, 230_000), hop(3, 340_000)],
        purpose: Some("GENERAL".to_owned()),
        hs_state: None,
        build_flags: vec!["NEED_CAPACITY".to_owned(), "NEED_UPTIME".to_owned()],
        built_before_run: Some(true),
        last_used_us: None,
        end: None,
        bytes_read: Some(55_487),
        bytes_written: Some(1_018),
    };
    CircuitData {
        state: CircuitState::Known,
        connection: 1,
        tor_version: Some("0.4.9.11".to_owned()),
        stream_id: Some(24),
        stream: vec![
            event(600, "NEW", None, None),
            event(650, "SENTCONNECT", Some(17), None),
            event(399_000, "SUCCEEDED", Some(17), None),
            event(1_500_300, "CLOSED", Some(17), Some("DONE")),
        ],
        circuit: Some(circuit),
        conflux: None,
        onion: None,
        build_timeout: Some(BuildTimeout { timeout_ms: 1_500, quantile: Some(0.8), learning: Some(false) }),
        guard: Some(relay(1)),
        guard_events: Vec::new(),
        congestion: None,
    }
}

/// The same with every part that there can be.
pub fn whole_circuit() -> CircuitData {
    let mut data = example_circuit();
    let circuit = data.circuit.as_mut().unwrap();
    circuit.hs_state = Some("HSCR_JOINED".to_owned());
    circuit.last_used_us = Some(-5_000_000);
    let end = CircuitEnd {
        at_us: 9_000_000,
        failed: false,
        reason: Some("FINISHED".to_owned()),
        remote_reason: Some("DESTROYED".to_owned()),
    };
    circuit.end = Some(end);
    let other = |id| Circuit { id, ..circuit.clone() };
    data.conflux = Some(Conflux { id: "A1B2".to_owned(), legs: vec![other(17), other(18)] });
    data.onion = Some(OnionSteps {
        descriptor_requested_us: Some(1_000),
        descriptor_received_us: Some(90_000),
        descriptor_requests: 1,
        intro_built_us: Some(150_000),
        introduced_us: Some(160_000),
        intro_acknowledged_us: Some(200_000),
        rend_built_us: Some(140_000),
        rend_established_us: Some(155_000),
        joined_us: Some(380_000),
        intro: Some(other(19)),
        service: Some(other(20)),
    });
    data.guard_events = vec![GuardEvent { at_us: 5, relay: relay(1), status: "UP".to_owned() }];
    let sample = |at_us, cwnd| CongestionSample {
        at_us,
        cwnd_cells: Some(cwnd),
        rtt_us: Some(80_000),
        min_rtt_us: Some(60_000),
        slow_start: Some(cwnd < 200),
    };
    let samples = vec![sample(500_000, 124), sample(900_000, 248), sample(1_400_000, 300)];
    data.congestion = Some(Congestion { circuit_id: 20, of_service: true, samples });
    data
}

/// The relay `relayN`, its fingerprint of digits N.
pub fn relay(number: u8) -> Relay {
    Relay { fingerprint: number.to_string().repeat(40)[..40].to_owned(), nickname: Some(format!("relay{number}")) }
}

/// A hop over [`relay`].
pub fn hop(number: u8, built_after_us: u64) -> Hop {
    Hop { relay: relay(number), built_after_us: Some(built_after_us) }
}

/// Something that happened to a stream, without a remote reason.
pub fn event(at_us: i64, status: &str, circuit_id: Option<u64>, reason: Option<&str>) -> StreamEvent {
    StreamEvent { at_us, status: status.to_owned(), circuit_id, reason: reason.map(str::to_owned), remote_reason: None }
}

/// Whatever tor might tell, its words and nicknames hostile now and then.
pub fn circuit_data() -> BoxedStrategy<CircuitData> {
    let state = select(CircuitState::ALL.to_vec()).prop_map(|(state, _)| state);
    let conflux = (name(), vec(circuit(), 0..3)).prop_map(|(id, legs)| Conflux { id, legs });
    // Decimals that every reader of JSON gives back as they are.
    let quantile = option::of((0u32..=1000).prop_map(|thousandth| f64::from(thousandth) / 1000.0));
    let timeout = (any::<u64>(), quantile, any::<Option<bool>>())
        .prop_map(|(timeout_ms, quantile, learning)| BuildTimeout { timeout_ms, quantile, learning });
    let guard_event =
        (offset(), any_relay(), name()).prop_map(|(at_us, relay, status)| GuardEvent { at_us, relay, status });
    let about = (state, any::<u64>(), option::of(name()), any::<Option<u64>>());
    let parts = (option::of(circuit()), option::of(conflux), option::of(onion()), option::of(timeout));
    let rest = (option::of(any_relay()), vec(guard_event, 0..3), option::of(congestion()));
    (about, vec(stream_event(), 0..5), parts, rest)
        .prop_map(|(about, stream, parts, rest)| {
            let (state, connection, tor_version, stream_id) = about;
            let (circuit, conflux, onion, build_timeout) = parts;
            let (guard, guard_events, congestion) = rest;
            CircuitData {
                state,
                connection,
                tor_version,
                stream_id,
                stream,
                circuit,
                conflux,
                onion,
                build_timeout,
                guard,
                guard_events,
                congestion,
            }
        })
        .boxed()
}

/// Any circuit that no run used, with numbers that can be stored.
pub fn loose_circuit() -> impl Strategy<Value = LooseCircuit> {
    (name(), 0..=i64::MAX as u64, 0..=i64::MAX as u64, moment(), circuit()).prop_map(
        |(tor, connection, id, since, circuit)| LooseCircuit {
            tor,
            connection,
            since,
            circuit: Circuit { id, ..circuit },
        },
    )
}

/// Boxed, as the larger ones are: the values of so many strategies are too much for a test's stack.
fn circuit() -> BoxedStrategy<Circuit> {
    let hop = (any_relay(), option::of(micros())).prop_map(|(relay, built_after_us)| Hop { relay, built_after_us });
    let end = (offset(), any::<bool>(), option::of(name()), option::of(name()))
        .prop_map(|(at_us, failed, reason, remote_reason)| CircuitEnd { at_us, failed, reason, remote_reason });
    let times = (option::of(offset()), option::of(offset()), option::of(offset()), option::of(end));
    let words = (option::of(name()), option::of(name()), vec(name(), 0..3));
    let numbers = any::<(Option<bool>, Option<u64>, Option<u64>)>();
    let id = prop_oneof![4 => 0u64..1000, 1 => any::<u64>()];
    (id, times, vec(hop, 0..5), words, numbers)
        .prop_map(|(id, times, path, words, numbers)| {
            let (launched_us, built_us, last_used_us, end) = times;
            let (purpose, hs_state, build_flags) = words;
            let (built_before_run, bytes_read, bytes_written) = numbers;
            Circuit {
                id,
                launched_us,
                built_us,
                path,
                purpose,
                hs_state,
                build_flags,
                built_before_run,
                last_used_us,
                end,
                bytes_read,
                bytes_written,
            }
        })
        .boxed()
}

fn any_relay() -> impl Strategy<Value = Relay> {
    let fingerprint = prop_oneof![6 => "[0-9A-F]{40}", 1 => name()];
    (fingerprint, option::of(name())).prop_map(|(fingerprint, nickname)| Relay { fingerprint, nickname })
}

fn stream_event() -> impl Strategy<Value = StreamEvent> {
    let words = select(vec!["NEW", "SENTCONNECT", "DETACHED", "REMAP", "SUCCEEDED", "FAILED", "CLOSED", "XOFF_RECV"]);
    let status = prop_oneof![4 => words.prop_map(str::to_owned), 1 => name()];
    (offset(), status, any::<Option<u64>>(), option::of(name()), option::of(name())).prop_map(
        |(at_us, status, circuit_id, reason, remote_reason)| StreamEvent {
            at_us,
            status,
            circuit_id,
            reason,
            remote_reason,
        },
    )
}

fn onion() -> BoxedStrategy<OnionSteps> {
    let at = || option::of(offset());
    let descriptor = (at(), at(), any::<u32>());
    let circuits = (option::of(circuit()), option::of(circuit()));
    (descriptor, at(), at(), at(), at(), at(), at(), circuits)
        .prop_map(
            |(descriptor, intro_built, introduced, acknowledged, rend_built, established, joined, (intro, service))| {
                OnionSteps {
                    descriptor_requested_us: descriptor.0,
                    descriptor_received_us: descriptor.1,
                    descriptor_requests: descriptor.2,
                    intro_built_us: intro_built,
                    introduced_us: introduced,
                    intro_acknowledged_us: acknowledged,
                    rend_built_us: rend_built,
                    rend_established_us: established,
                    joined_us: joined,
                    intro,
                    service,
                }
            },
        )
        .boxed()
}

fn congestion() -> impl Strategy<Value = Congestion> {
    let number = any::<Option<u64>>;
    let sample = (offset(), number(), number(), number(), any::<Option<bool>>()).prop_map(
        |(at_us, cwnd_cells, rtt_us, min_rtt_us, slow_start)| CongestionSample {
            at_us,
            cwnd_cells,
            rtt_us,
            min_rtt_us,
            slow_start,
        },
    );
    (any::<u64>(), any::<bool>(), vec(sample, 0..6)).prop_map(|(circuit_id, of_service, samples)| Congestion {
        circuit_id,
        of_service,
        samples,
    })
}

/// Mostly some seconds before or after START.
fn offset() -> impl Strategy<Value = i64> {
    prop_oneof![6 => -60_000_000i64..60_000_000, 1 => any::<i64>()]
}
