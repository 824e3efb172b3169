use proptest::prelude::*;

use super::*;
use crate::circuit::{CircuitData, CircuitState, Conflux, StreamEvent};
use crate::export::whole::SlotRunJson;
use crate::measurement::{Cause, Failure, Kind, Outcome, Phase, Place, ResultRow, RunId, ServerKind, ServerSide};
use crate::test_support::circuit::{event, example_circuit, whole_circuit};
use crate::test_support::{example_row, result_row};

/// A run whose payload came in four reads, with what tor told of it.
fn run(circuit: Option<CircuitData>) -> ResultRow {
    let mut row = ResultRow { circuit, ..example_row() };
    row.measurement.curve = vec![(700_100, 498), (800_000, 10_240), (1_300_000, 40_960), (1_500_000, 51_200)];
    row
}

fn conflux() -> ResultRow {
    let mut data = example_circuit();
    let circuit = data.circuit.as_mut().unwrap();
    circuit.purpose = Some("CONFLUX_LINKED".to_owned());
    circuit.last_used_us = Some(-2_500_000);
    let mut other = circuit.clone();
    other.id = 18;
    other.bytes_read = Some(18_000);
    other.bytes_written = None;
    other.path.remove(0);
    data.conflux = Some(Conflux { id: "9A7C01".to_owned(), legs: vec![circuit.clone(), other] });
    run(Some(data))
}

fn onion() -> ResultRow {
    let mut data = whole_circuit();
    data.conflux = None;
    let mut row = run(Some(data));
    row.server = ServerKind::Onion;
    row
}

fn failed() -> ResultRow {
    let mut data = example_circuit();
    let mut detached = event(180_000, "DETACHED", Some(17), Some("END"));
    detached.remote_reason = Some("MISC".to_owned());
    let failed = StreamEvent {
        remote_reason: Some("CONNECTREFUSED".to_owned()),
        ..event(390_000, "FAILED", Some(19), Some("END"))
    };
    data.stream.truncate(2);
    data.stream.extend([detached, event(181_000, "SENTCONNECT", Some(19), None), failed]);
    data.circuit.as_mut().unwrap().path[2].built_after_us = None;
    data.build_timeout.as_mut().unwrap().learning = Some(true);
    let mut row = run(Some(data));
    let run = &mut row.measurement;
    run.curve.clear();
    run.steps.deciles = [None; 11];
    (run.steps.data_request, run.steps.data_response, run.steps.data_complete) = (None, None, None);
    run.steps.response = None;
    run.ended = 400_000;
    let detail = "the proxy answered with code 05: connection refused".to_owned();
    let (phase, cause) = (Phase::Response, Cause::SocksReply);
    run.outcome = Outcome::Failed(Failure { phase, cause, socks_code: Some(5), http_status: None, detail });
    row
}

fn upload() -> ResultRow {
    let mut row = run(Some(example_circuit()));
    (row.measurement.kind, row.measurement.optimistic) = (Kind::Upload, true);
    row.measurement.steps.data_request = Some(510);
    let deciles = std::array::from_fn(|tenth| (tenth < 10).then_some(750_000 + 85_000 * tenth as i64));
    row.measurement.server = Some(ServerSide { request: 690_000, deciles });
    row
}

fn tor_lost() -> ResultRow {
    let mut data = example_circuit();
    (data.state, data.circuit, data.stream) = (CircuitState::TorLost, None, Vec::new());
    let mut row = run(Some(data));
    row.measurement.steps.data_complete = None;
    row.measurement.outcome = Outcome::Timeout(Phase::DataComplete);
    row.measurement.ended = 2_000_000;
    row
}

#[test]
fn runs_are_drawn() {
    for (row, expected) in [
        (run(Some(example_circuit())), include_str!("expected/exit.txt")),
        (conflux(), include_str!("expected/conflux.txt")),
        (onion(), include_str!("expected/onion.txt")),
        (failed(), include_str!("expected/failed.txt")),
        (upload(), include_str!("expected/upload.txt")),
        (run(None), include_str!("expected/no_circuit.txt")),
        (tor_lost(), include_str!("expected/tor_lost.txt")),
    ] {
        let drawn = render(&WholeJson::from(&row));
        assert_eq!(drawn, expected, "\n{drawn}");
    }
}

#[test]
fn the_other_runs_of_the_slot_are_named() {
    let mut row = example_row();
    row.place = Place { index: 1, of: 24 };
    let mut whole = WholeJson::from(&row);
    let mate = |index: u32| SlotRunJson { run_id: RunId::from_bits(9).to_string(), tor: "other".to_owned(), index };
    whole.slot_runs = (0..24).filter(|index| *index != 1).map(mate).collect();
    let drawn = render(&whole);
    let lines: Vec<&str> = drawn.lines().skip_while(|line| *line != "run 2 of 24 of its slot").collect();
    assert_eq!(lines.len(), 22, "{drawn}");
    assert_eq!(lines[1], "  run 1: 00000000000000000000000000000009 through other");
    assert_eq!(lines[21], "  and 3 more");
}

#[test]
fn a_stranger_can_not_draw() {
    let mut row = run(Some(whole_circuit()));
    let data = row.circuit.as_mut().unwrap();
    let hostile = "\u{1b}[2J\n\u{202e}\u{1f600}\u{e9}".to_owned() + &"x".repeat(300);
    data.tor_version = Some(hostile.clone());
    data.guard_events[0].status = hostile.clone();
    let circuit = data.circuit.as_mut().unwrap();
    (circuit.purpose, circuit.hs_state) = (Some(hostile.clone()), Some(hostile.clone()));
    circuit.build_flags = vec![hostile.clone()];
    circuit.path[0].relay.nickname = Some(hostile.clone());
    circuit.path[1].relay.fingerprint = hostile.clone();
    row.experiment = hostile;
    let drawn = render(&WholeJson::from(&row));
    assert!(drawn.contains("  1 ?[2J????xxxxxxxxxxx $11111111     120.0  █"), "{drawn}");
    assert!(drawn.contains("  2 relay2 $?[2J????  "), "{drawn}");
    let plain = render(&WholeJson::from(&onion()));
    assert_eq!(drawn.lines().count(), plain.lines().count() + 5, "the two Conflux legs, and no line of the stranger's");
}

proptest! {
    #[test]
    fn every_run_is_drawn_within_its_width(row in result_row()) {
        let drawn = render(&WholeJson::from(&row));
        prop_assert!(drawn.ends_with('\n'));
        for line in drawn.lines() {
            prop_assert!(line.chars().count() <= sheet::WIDTH, "{line}");
            prop_assert!(line.chars().all(|c| matches!(c, ' '..='~' | '▁'..='█' | '░')), "{line}");
        }
        // The answer of a service is read back before it is drawn.
        let whole = WholeJson::from(&row);
        let text = serde_json::to_string(&whole).unwrap();
        let back: WholeJson = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(render(&back), drawn);
    }
}
