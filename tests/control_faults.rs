//! perfd beside a control port that is silent, lies, floods, breaks off and comes back: it goes on measuring, and
//! says of each run's circuit what is known of it.

#[path = "common/fake_tor.rs"]
mod fake_tor;
#[path = "common/relay.rs"]
mod relay;
#[path = "common/service.rs"]
mod service;

use fake_tor::{FakeTor, Script, Streams, path};
use perfd::circuit::{CircuitData, CircuitState};
use perfd::export::json::ResultJson;
use serde_json::Value;
use service::{EACH_SECOND, PATIENCE, Service, Setup, get, wait_until};

/// A tor with these scripts, and a perfd that measures through it each second.
fn measure(scripts: Vec<Script>) -> (FakeTor, Setup, Service) {
    let tor = FakeTor::start(scripts);
    let setup = Setup::new().controlled_tor("tor", tor.socks, tor.control);
    let mut setup = setup.experiment("1kib", "tor", "1 KiB", EACH_SECOND);
    let perfd = setup.start_measuring();
    (tor, setup, perfd)
}

#[test]
fn one_that_never_answers_is_given_up_and_tried_again() {
    let silent = Script { answers: vec![("PROTOCOLINFO", String::new())], ..Script::default() };
    let (_tor, _setup, mut perfd) = measure(vec![silent, Script::default()]);
    let before = wait_for(&perfd, |_, data| data.state == CircuitState::TorLost);
    assert_eq!((before.1.connection, before.1.stream_id, &before.1.circuit), (0, None, &None));
    let said = perfd.wait_for("PROTOCOLINFO");
    assert!(said.contains("tor=\"tor\"") && said.contains("within 10 s"), "{said}");
    let known = wait_for(&perfd, |_, data| data.state == CircuitState::Known);
    assert_eq!(known.1.connection, 1);
    all_complete(&perfd);
    assert_eq!(status(&perfd)["condition"], "ready");
    perfd.end_well_within(PATIENCE);
}

#[test]
fn ids_that_begin_again_are_never_joined_across_connections() {
    let cut = |streams| Script { streams: Streams::CutAfter(streams), ..Script::default() };
    let (_tor, _setup, mut perfd) = measure(vec![cut(2), cut(1), Script::default()]);
    wait_for(&perfd, |_, data| data.state == CircuitState::Known && data.connection == 3);
    // What tor tells in the next seconds completes a result, but with nothing of another connection.
    perfd.wait_for_lines(10, "run finished");
    let all = all_complete(&perfd);
    for (connection, known) in [(1, 2), (2, 1)] {
        let of: Vec<_> = all.iter().filter(|(_, data)| data.connection == connection).collect();
        assert_eq!(of.iter().filter(|(_, data)| data.state == CircuitState::Known).count(), known, "{of:#?}");
        // The one that was attached when the connection broke is lost, but not what was told of it.
        let cut: Vec<_> = of.iter().filter(|(_, data)| data.stream.len() == 2).collect();
        assert_eq!(cut.len(), 1, "{of:#?}");
        assert_eq!(cut[0].1.state, CircuitState::TorLost);
    }
    for (result, data) in &all {
        let Some(circuit) = &data.circuit else {
            assert_eq!(data.state, CircuitState::TorLost, "{result:?}");
            continue;
        };
        let told = path(data.connection, circuit.id);
        let ours = circuit
            .path
            .iter()
            .map(|hop| format!("${}~{}", hop.relay.fingerprint, hop.relay.nickname.as_ref().unwrap()));
        assert_eq!(ours.collect::<Vec<_>>().join(","), told, "{result:?}");
    }
    perfd.end_well_within(PATIENCE);
}

#[test]
fn what_is_unknown_or_endless_is_passed_over() {
    let mut then =
        b"650 NOSUCH 1 x\r\n650-HS_DESC_CONTENT a b c\r\n650 OK\r\n650+NEWS\r\n650 STREAM 9 NEW 0\r\n.\r\n650 OK\r\n\
        650 CIRC\r\n650 CIRC x y z\r\n650 STREAM -1 NEW\r\n650 CIRC 77 DANCING $X NO_SUCH=\"a \\\" b\" A= =B\r\n\
        650 STREAM 78 XOFF_OVER 5 a:b C=D\r\n650 CIRC_BW ID= READ=x\r\n650 GUARD\r\n650 BUILDTIMEOUT_SET\r\n\
        650 STATUS_CLIENT NOTICE BOOTSTRAP PROGRESS=999\r\n650 \xff\xfe\x00 CIRC\r\n650 CIRC "
            .to_vec();
    then.extend(std::iter::repeat_n(b'9', 10 << 20));
    then.extend(b"\r\n650 STREAM 80 NEW 0 a:1 SOCKS_USERNAME=\"perfd-nobody\"\r\n");
    let noise = Script { then, ..Script::default() };
    let (tor, _setup, mut perfd) = measure(vec![noise]);
    wait_for(&perfd, |_, data| data.state == CircuitState::Known);
    tor.send(b"650 CIRC 99 LAUNCHED NEW_WORD=1 PURPOSE=NEW_PURPOSE\r\n");
    perfd.wait_for_lines(4, "run finished");
    let all = all_complete(&perfd);
    assert!(all.iter().skip(1).all(|(_, data)| (data.state, data.connection) == (CircuitState::Known, 1)), "{all:#?}");
    assert_eq!(status(&perfd)["connection"], 1);
    perfd.end_well_within(PATIENCE);
}

#[test]
fn answers_that_nobody_asked_for_end_the_connection_alone() {
    let answers = |command, answer: &str| Script { answers: vec![(command, answer.to_owned())], ..Script::default() };
    let (_tor, _setup, mut perfd) = measure(vec![
        answers("GETINFO events/names", "250-circuit-status=\r\n250 OK\r\n"),
        answers("SETEVENTS", "552 Unrecognized event \"CIRC\"\r\n"),
        answers("AUTHENTICATE", "HTTP/1.1 400 Bad Request\r\n"),
        answers("SETEVENTS", "250 OK\r\n250 OK\r\n"),
        answers("GETINFO circuit-status", "250 OK\r\n"),
        Script::default(),
    ]);
    let known = wait_for(&perfd, |_, data| data.state == CircuitState::Known);
    for said in [
        "something else to GETINFO events/names",
        "552 Unrecognized event",
        "HTTP/1.1 400",
        "\"250 OK\" came over the control connection as a reply to nothing",
        "something else to GETINFO circuit-status",
    ] {
        let line = perfd.wait_for(said);
        assert!(line.contains("WARN") && line.contains("tor=\"tor\""), "{line}");
    }
    let lost = all_complete(&perfd).into_iter().filter(|(result, _)| result.revision < known.0.revision);
    for (result, data) in lost {
        assert_eq!((data.state, data.circuit), (CircuitState::TorLost, None), "{result:?}");
    }
    assert_eq!(status(&perfd)["problem"], Value::Null);
    perfd.end_well_within(PATIENCE);
}

#[test]
fn an_answer_that_an_event_has_overtaken_is_old() {
    // Both come with one read, and the event is looked at first.
    let phase = "250-status/bootstrap-phase=NOTICE BOOTSTRAP PROGRESS=95 TAG=circuit_create SUMMARY=\"x\"\r\n250 OK\r\n\
        650 STATUS_CLIENT NOTICE BOOTSTRAP PROGRESS=100 TAG=done SUMMARY=\"Done\"\r\n";
    let answers = vec![("GETINFO status/bootstrap-phase", phase.to_owned())];
    let (_tor, _setup, mut perfd) = measure(vec![Script { answers, ..Script::default() }]);
    perfd.wait_for("connected to tor's control port");
    assert_eq!(status(&perfd)["condition"], "ready", "{}", perfd.log());
    perfd.end_well_within(PATIENCE);
}

#[test]
fn a_run_whose_stream_is_not_told_is_unseen() {
    let (_tor, _setup, mut perfd) = measure(vec![Script { streams: Streams::Nothing, ..Script::default() }]);
    let (_, data) = wait_for(&perfd, |_, data| data.state == CircuitState::Unseen);
    assert_eq!((data.connection, data.stream_id, data.circuit), (1, None, None));
    all_complete(&perfd);
    perfd.end_well_within(PATIENCE);
}

#[test]
fn a_flood_of_bandwidth_takes_no_memory_and_holds_nothing_up() {
    const LINES: u64 = 300_000;
    /// In KiB.
    const FLAT: u64 = 8 * 1024;
    let (tor, _setup, mut perfd) = measure(vec![Script::default()]);
    wait_for(&perfd, |_, data| data.state == CircuitState::Known);
    let flood = |from: u64| {
        // Of circuits that are there and of such as are not.
        let line = |n: u64| {
            format!(
                "650 CIRC_BW ID={} READ={n} WRITTEN=509 TIME=2026-11-24T09:08:03.{:06} DELIVERED_READ=4 \
                 OVERHEAD_READ=494 DELIVERED_WRITTEN=0 OVERHEAD_WRITTEN=0 SS=1 CWND={} RTT={} MIN_RTT=3\r\n",
                n % 5 + 1,
                n % 1_000_000,
                100 + n % 700,
                1 + n % 90
            )
        };
        for piece in (from..from + LINES).collect::<Vec<_>>().chunks(1000) {
            tor.send(piece.iter().map(|n| line(*n)).collect::<String>().as_bytes());
        }
    };
    let taken_in = |lines: u64| {
        wait_until("the flood to be taken in", || (status(&perfd)["control_lines"].as_u64()? >= lines).then_some(()))
    };
    // The first flood fills what is bounded.
    flood(0);
    taken_in(LINES);
    let (before, runs) = (resident(&perfd), perfd.count("run finished"));
    let began = std::time::Instant::now();
    for round in 1..=3 {
        flood(round * LINES);
        taken_in((round + 1) * LINES);
    }
    let (took, after) = (began.elapsed(), resident(&perfd));
    assert!(after < before + FLAT, "{before} KiB before, {after} KiB after {} lines", 3 * LINES);
    // Runs were due each second all the while.
    perfd.wait_for_lines(runs + usize::try_from(took.as_secs()).unwrap().max(1), "run finished");
    let all = all_complete(&perfd);
    assert!(all.iter().skip(1).all(|(_, data)| (data.state, data.connection) == (CircuitState::Known, 1)), "{all:#?}");
    let said =
        format!("flood: {} lines in {:.1} s; {before} KiB before, {after} KiB after\n", 3 * LINES, took.as_secs_f64());
    let _ = std::io::Write::write_all(&mut std::io::stderr(), said.as_bytes());
    perfd.end_well_within(PATIENCE);
}

/// The first result, and what is known of its circuit, that is wanted.
fn wait_for(perfd: &Service, wanted: impl Fn(&ResultJson, &CircuitData) -> bool) -> (ResultJson, CircuitData) {
    wait_until("a result", || results(perfd).into_iter().find(|(result, data)| wanted(result, data)))
}

/// All results, each of which must be complete: nothing holds up what is measured.
fn all_complete(perfd: &Service) -> Vec<(ResultJson, CircuitData)> {
    let all = results(perfd);
    assert!(all.iter().all(|(result, _)| result.outcome == "complete"), "{all:#?}");
    let health: Value = serde_json::from_slice(&get(perfd.port(), "/health").unwrap().body).unwrap();
    let slots = &health["experiments"][0]["slots"];
    assert!(slots["skipped"] == 0 && slots["missed"] == 0, "{slots}");
    all
}

/// All results so far, by their START.
fn results(perfd: &Service) -> Vec<(ResultJson, CircuitData)> {
    let page: Value = serde_json::from_slice(&get(perfd.port(), "/results.json").unwrap().body).unwrap();
    let mut results: Vec<ResultJson> = serde_json::from_value(page["results"].clone()).unwrap();
    results.sort_by_key(|result| result.start_unix_us);
    let with_circuit = results.into_iter().map(|result| {
        let data = result.circuit.clone().expect("a tor under control");
        (result, data)
    });
    with_circuit.collect()
}

fn status(perfd: &Service) -> Value {
    let page: Value = serde_json::from_slice(&get(perfd.port(), "/tors").unwrap().body).unwrap();
    page["tors"][0].clone()
}

/// In KiB.
fn resident(perfd: &Service) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", perfd.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
