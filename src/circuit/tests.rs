//! A conversation recorded with tor 0.4.9.11 on a private network, replayed: what each of its runs must say.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::book::Book;
use super::evidence::{RunKey, gather, loose, nothing};
use super::*;

const RECORDED: &str = include_str!("../../tests/recorded/control-port-tor-0.4.9.11.txt");

/// When the recording begins, in µs since the Unix epoch.
const BEGIN: i64 = 1_795_338_480_923_468;

struct Replay {
    book: Book,
    begin: Instant,
}

/// Replays all lines up to this moment.
fn replay_until(until: i64) -> Replay {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(BEGIN));
    book.version = Some("0.4.9.11".to_owned());
    book.set_exclusive();
    let mut replay = Replay { book, begin };
    for line in RECORDED.lines() {
        let (at, line) = line.split_once(' ').unwrap();
        let at = UnixMicros::parse(at).unwrap().0;
        if at > until {
            break;
        }
        if let Some(event) = line.strip_prefix("650 ") {
            replay.book.note(replay.begin + Duration::from_micros((at - BEGIN) as u64), event);
        }
    }
    replay
}

impl Replay {
    fn run(&self, user: &str, port: u16, start: i64, ended: i64) -> RunKey {
        RunKey {
            user: Some(user.to_owned()),
            local: Some(SocketAddr::from(([127, 0, 0, 1], port))),
            start: self.begin + Duration::from_micros((start - BEGIN) as u64),
            start_wall: UnixMicros(start),
            ended: self.begin + Duration::from_micros((ended - BEGIN) as u64),
            onion: None,
            upload: false,
        }
    }
}

fn names(circuit: &Circuit) -> String {
    let names: Vec<_> = circuit.path.iter().map(|hop| hop.relay.nickname.clone().unwrap()).collect();
    names.join(">")
}

fn statuses(data: &CircuitData) -> String {
    let events = data.stream.iter().map(|event| match (event.circuit_id, &event.remote_reason) {
        (Some(id), Some(reason)) => format!("{} {id} {reason}", event.status),
        (Some(id), None) => format!("{} {id}", event.status),
        (None, _) => event.status.clone(),
    });
    events.collect::<Vec<_>>().join(", ")
}

#[test]
fn a_refused_port_has_three_attachments_with_their_reasons() {
    let replay = replay_until(1_795_338_483_560_000);
    let run = replay.run("refused", 49_000, 1_795_338_483_501_000, 1_795_338_483_557_000);
    let data = derive(&gather(&replay.book, None, &run));
    assert_eq!((data.state, data.connection, data.stream_id), (CircuitState::Known, 1, Some(27)));
    assert_eq!(data.tor_version.as_deref(), Some("0.4.9.11"));
    assert_eq!(
        statuses(&data),
        "NEW, SENTCONNECT 9, DETACHED 9 MISC, SENTCONNECT 12, DETACHED 12 MISC, SENTCONNECT 13, FAILED 13 MISC, \
         CLOSED 13 MISC"
    );
    assert_eq!(data.stream[0].at_us, 290);
    let circuit = data.circuit.unwrap();
    assert_eq!((circuit.id, names(&circuit).as_str()), (13, "relay3>relay5>relay4"));
    assert_eq!(circuit.built_before_run, Some(false));
    assert_eq!(circuit.purpose.as_deref(), Some("GENERAL"));
    assert_eq!(circuit.build_flags, ["NEED_CAPACITY"]);
    assert_eq!(data.guard.unwrap().fingerprint, "27C0018F4BDFC2AC371EA2505C2D7E1D315715B9");
    assert_eq!((data.conflux, data.onion, data.congestion, data.build_timeout), (None, None, None, None));
}

#[test]
fn hops_have_the_times_at_which_they_were_reached() {
    let replay = replay_until(1_795_338_483_560_000);
    let run = replay.run("refused", 49_000, 1_795_338_483_501_000, 1_795_338_483_557_000);
    let circuit = derive(&gather(&replay.book, None, &run)).circuit.unwrap();
    let at = |seconds: &str| UnixMicros::parse(seconds).unwrap().0 - run.start_wall.0;
    let lines: Vec<&str> = RECORDED.lines().filter(|line| line.contains(" CIRC 13 ")).collect();
    let times: Vec<i64> = lines.iter().map(|line| at(line.split_once(' ').unwrap().0)).collect();
    assert_eq!(lines.len(), 5, "launched, three hops, built");
    assert_eq!(circuit.launched_us, Some(times[0]));
    assert_eq!(circuit.built_us, Some(times[4]));
    let hops: Vec<_> = circuit.path.iter().map(|hop| hop.built_after_us.unwrap() as i64).collect();
    assert_eq!(hops, [times[1] - times[0], times[2] - times[0], times[3] - times[0]]);
}

#[test]
fn a_circuit_from_before_the_connection_has_no_build_times() {
    // Circuit 3 was there when the recording began, and no line tells of it but those of its stream.
    let mut replay = replay_until(1_795_338_482_980_000);
    let run = replay.run("run0", 48_962, 1_795_338_482_952_000, 1_795_338_482_978_000);
    let data = derive(&gather(&replay.book, None, &run));
    assert_eq!(statuses(&data), "NEW, SENTCONNECT 3, REMAP 3, SUCCEEDED 3, CLOSED 3 DONE");
    assert_eq!((data.state, data.circuit, data.guard), (CircuitState::Known, None, None));

    // As `GETINFO circuit-status` would have told of it.
    let found = "3 BUILT $27C0018F4BDFC2AC371EA2505C2D7E1D315715B9~relay3,$36E7E5FB07373290746F4A174360EAA23296183C \
                 BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL TIME_CREATED=2026-11-22T09:08:00.000000";
    replay.book.found(replay.begin, found);
    let circuit = derive(&gather(&replay.book, None, &run)).circuit.unwrap();
    let created = UnixMicros::parse("2026-11-22T09:08:00Z").unwrap().0;
    assert_eq!(circuit.launched_us, Some(created - run.start_wall.0));
    assert_eq!((circuit.built_us, circuit.built_before_run), (None, Some(true)));
    assert_eq!(circuit.path.iter().filter_map(|hop| hop.built_after_us).count(), 0);
    assert_eq!(circuit.path.len(), 2);
}

#[test]
fn conflux_shows_both_legs_and_what_each_carried() {
    let mut replay = replay_until(1_795_338_489_640_000);
    // The recording was thinned, and has none of these lines.
    for (id, read) in [(25, 1018), (26, 509), (25, 509)] {
        let at = replay.begin + Duration::from_secs(8);
        replay.book.note(at, &format!("CIRC_BW ID={id} READ={read} WRITTEN=509 SS=1 CWND=124 RTT=0 MIN_RTT=0"));
    }
    let run = replay.run("noname", 49_016, 1_795_338_483_605_000, 1_795_338_489_632_000);
    let data = derive(&gather(&replay.book, None, &run));
    assert_eq!(
        statuses(&data),
        "NEW, SENTCONNECT 19, DETACHED 19 RESOLVEFAILED, SENTCONNECT 15, DETACHED 15 RESOLVEFAILED, SENTCONNECT 25, \
         FAILED 25 RESOLVEFAILED, CLOSED 25 RESOLVEFAILED"
    );
    let conflux = data.conflux.unwrap();
    assert_eq!(conflux.id, "8A3BE1C0FB02761CEC9FDFC5EEF34166");
    let legs: Vec<_> = conflux.legs.iter().map(|leg| (leg.id, names(leg))).collect();
    assert_eq!(legs, [(25, "relay3>auth>relay2".to_owned()), (26, "relay0>relay3>relay2".to_owned())]);
    assert!(conflux.legs.iter().all(|leg| leg.purpose.as_deref() == Some("CONFLUX_LINKED")), "{conflux:?}");
    let carried: Vec<_> = conflux.legs.iter().map(|leg| (leg.bytes_read, leg.bytes_written)).collect();
    assert_eq!(carried, [(Some(1527), Some(1018)), (Some(509), Some(509))]);
}

#[test]
fn of_a_circuit_that_tor_had_ready_what_it_became_for_the_run_counts() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(0));
    let at = |ms: u64| begin + Duration::from_millis(ms);
    let hop = |i: u8| format!("${}~r{i}", format!("{i:02}").repeat(20));
    let (three, four) = ([1, 2, 3].map(hop).join(","), [1, 2, 3, 4].map(hop).join(","));
    let named = "REND_QUERY=abc SOCKS_USERNAME=\"perfd-1\"";
    for (ms, line) in [
        (10, "CIRC 5 LAUNCHED PURPOSE=HS_VANGUARDS".to_owned()),
        (20, format!("CIRC 5 BUILT {three} PURPOSE=HS_VANGUARDS")),
        (1000, "STREAM 1 NEW 0 abc.onion:80 SOURCE_ADDR=127.0.0.1:4000 SOCKS_USERNAME=\"perfd-1\"".to_owned()),
        (1010, format!("CIRC_MINOR 5 CANNIBALIZED {three} PURPOSE=HS_CLIENT_INTRO HS_STATE=HSCI_CONNECTING {named}")),
        (1050, format!("CIRC 5 EXTENDED {four} PURPOSE=HS_CLIENT_INTRO HS_STATE=HSCI_CONNECTING {named}")),
        (1060, format!("CIRC 5 BUILT {four} PURPOSE=HS_CLIENT_INTRO HS_STATE=HSCI_CONNECTING {named}")),
        (1070, format!("CIRC_MINOR 5 PURPOSE_CHANGED {four} PURPOSE=HS_CLIENT_INTRO HS_STATE=HSCI_INTRO_SENT {named}")),
    ] {
        book.note(at(ms), &line);
    }
    let run = RunKey {
        user: Some("perfd-1".to_owned()),
        local: Some(SocketAddr::from(([127, 0, 0, 1], 4000))),
        start: at(990),
        start_wall: UnixMicros(990_000),
        ended: at(2000),
        onion: Some("abc".to_owned()),
        upload: false,
    };
    let steps = derive(&gather(&book, Some(&book), &run)).onion.unwrap();
    assert_eq!((steps.intro_built_us, steps.introduced_us), (Some(70_000), Some(80_000)));
    let intro = steps.intro.unwrap();
    assert_eq!((names(&intro).as_str(), intro.built_us), ("r1>r2>r3>r4", Some(-970_000)));
}

#[test]
fn legs_that_were_not_there_for_the_run_are_none_of_its_own() {
    let set = "CONFLUX_ID=A1";
    let linked = |id: u64| {
        format!("-400 CIRC_MINOR {id} PURPOSE_CHANGED PURPOSE=CONFLUX_LINKED {set} OLD_PURPOSE=CONFLUX_UNLINKED")
    };
    let launched = |id: u64| format!("-500 CIRC {id} LAUNCHED PURPOSE=CONFLUX_UNLINKED {set}");
    let lines = [
        launched(5),
        launched(6),
        // It took too long, and was never linked; the next one was, and broke.
        launched(7),
        format!("-450 CIRC_MINOR 7 PURPOSE_CHANGED PURPOSE=MEASURE_TIMEOUT {set}"),
        launched(8),
        linked(8),
        linked(5),
        linked(6),
        format!("-300 CIRC 7 CLOSED PURPOSE=MEASURE_TIMEOUT {set} REASON=FINISHED"),
        format!("-200 CIRC 8 CLOSED PURPOSE=CONFLUX_LINKED {set} REASON=DESTROYED"),
        "10 STREAM 1 SENTCONNECT 6 a:1".to_owned(),
        format!("90 CIRC 5 CLOSED PURPOSE=CONFLUX_LINKED {set} REASON=FINISHED"),
    ];
    let data = derive(&Evidence(format!("perfd evidence 1\nconnection 1\nsince -900\n\n{}\n", lines.join("\n"))));
    assert_eq!(data.conflux.unwrap().legs.iter().map(|leg| leg.id).collect::<Vec<_>>(), [5, 6]);
}

#[test]
fn an_onion_service_is_reached_in_steps() {
    const ONION: &str = "rh23xgzocusqxxssmtcssnyqpg4j6pdactt5x5skvllbt6sw65klryid";
    let mut replay = replay_until(1_795_338_502_980_000);
    let at = replay.begin + Duration::from_micros(1_795_338_502_540_000 - BEGIN as u64);
    replay.book.note(at, "CIRC_BW ID=55 READ=509 WRITTEN=509000 SS=0 CWND=632 RTT=93 MIN_RTT=54");
    let run = RunKey {
        onion: Some(ONION.to_owned()),
        ..replay.run("onion", 60_802, 1_795_338_502_060_000, 1_795_338_502_976_000)
    };
    // The recorded tor published the service too.
    let evidence = gather(&replay.book, Some(&replay.book), &run);
    let data = derive(&evidence);
    assert_eq!(statuses(&data), "NEW, SENTCONNECT 54, SUCCEEDED 54, CLOSED 54 DONE");
    let circuit = data.circuit.as_ref().unwrap();
    assert_eq!(names(circuit), "relay3>relay1>auth");
    assert_eq!(circuit.hs_state.as_deref(), Some("HSCR_JOINED"));
    let onion = data.onion.as_ref().unwrap();
    let micros = |seconds: &str| Some(UnixMicros::parse(seconds).unwrap().0 - run.start_wall.0);
    assert_eq!(onion.descriptor_requested_us, micros("1795338502.061484"));
    assert_eq!(onion.descriptor_received_us, micros("1795338502.138686"));
    assert_eq!(onion.descriptor_requests, 1);
    assert_eq!(onion.intro_built_us, micros("1795338502.201814"));
    assert_eq!(onion.introduced_us, micros("1795338502.225214"));
    assert_eq!(onion.intro_acknowledged_us, micros("1795338502.284780"));
    assert_eq!(onion.rend_built_us, micros("1795338502.217317"));
    assert_eq!(onion.rend_established_us, micros("1795338502.225128"));
    assert_eq!(onion.joined_us, micros("1795338502.352420"));
    assert_eq!(names(onion.intro.as_ref().unwrap()), "relay3>relay4>auth>relay1");
    assert_eq!(onion.service.as_ref().unwrap().id, 55);
    let congestion = data.congestion.as_ref().unwrap();
    let sample = CongestionSample {
        at_us: 480_000,
        cwnd_cells: Some(632),
        rtt_us: Some(93_000),
        min_rtt_us: Some(54_000),
        slow_start: Some(false),
    };
    assert_eq!(congestion, &Congestion { circuit_id: 55, of_service: true, samples: vec![sample] });

    // Of a service that is not ours, there is no circuit of its, and nothing is guessed.
    let data = derive(&gather(&replay.book, None, &run));
    assert_eq!((data.onion.unwrap().service, data.congestion), (None, None));
}

#[test]
fn a_circuit_that_was_launched_for_anybody_is_the_runs_that_took_it() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(BEGIN));
    let at = |ms| begin + Duration::from_millis(ms);
    book.note(at(1), "CIRC 9 LAUNCHED PURPOSE=HS_VANGUARDS");
    book.note(at(60), "CIRC_MINOR 9 CANNIBALIZED PURPOSE=HS_CLIENT_INTRO SOCKS_USERNAME=\"perfd-a\"");
    book.note(
        at(90),
        "CIRC_MINOR 9 PURPOSE_CHANGED PURPOSE=HS_CLIENT_INTRO HS_STATE=HSCI_INTRO_SENT SOCKS_USERNAME=\"perfd-a\"",
    );
    let replay = Replay { book, begin };
    let introduced = |start: i64| {
        let run = replay.run("perfd-a", 1, BEGIN + start, BEGIN + 100_000);
        derive(&gather(&replay.book, None, &RunKey { onion: Some("abc".to_owned()), ..run }))
            .onion
            .unwrap()
            .introduced_us
    };
    assert_eq!(introduced(50_000), Some(40_000));
    // It was taken for an earlier run of the same user name.
    assert_eq!(introduced(70_000), None);
}

#[test]
fn a_descriptor_that_nobody_has_is_told_of() {
    let replay = replay_until(1_795_338_503_450_000);
    let onion = "duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad";
    let run = RunKey {
        onion: Some(onion.to_owned()),
        ..replay.run("noonion", 60_814, 1_795_338_503_000_000, 1_795_338_503_447_000)
    };
    let data = derive(&gather(&replay.book, None, &run));
    assert_eq!(statuses(&data), "NEW, FAILED, CLOSED");
    assert_eq!(data.stream[1].reason.as_deref(), Some("RESOLVEFAILED"));
    let steps = data.onion.unwrap();
    assert!(steps.descriptor_requests > 1 && steps.descriptor_received_us.is_none(), "{steps:?}");
    assert_eq!(data.circuit, None);
}

#[test]
fn a_run_that_tor_was_not_seen_through_is_lost_or_unseen() {
    let mut replay = replay_until(1_795_338_483_000_000);
    let run = replay.run("run0", 48_962, 1_795_338_482_952_000, 1_795_338_482_978_000);
    let state = |replay: &Replay, run: &RunKey| derive(&gather(&replay.book, None, run)).state;
    assert_eq!(state(&replay, &run), CircuitState::Known);
    assert_eq!(state(&replay, &RunKey { user: Some("x".to_owned()), ..run.clone() }), CircuitState::Unseen);
    let other_port = Some(SocketAddr::from(([127, 0, 0, 1], 1)));
    assert_eq!(state(&replay, &RunKey { local: other_port, ..run.clone() }), CircuitState::Unseen);
    assert_eq!(derive(&nothing(&run)).state, CircuitState::TorLost);

    // Connected only after START.
    replay.book.listening(run.start + Duration::from_micros(1), run.start_wall);
    assert_eq!(state(&replay, &run), CircuitState::TorLost);
    replay.book.listening(replay.begin, UnixMicros(BEGIN));

    // Lost: what was whole by then is known.
    replay.book.lost = Some(run.ended + Duration::from_secs(1));
    assert_eq!(state(&replay, &run), CircuitState::Known);
    let mut cut = replay_until(1_795_338_482_957_000);
    cut.book.lost = Some(run.ended);
    let data = derive(&gather(&cut.book, None, &run));
    assert_eq!(
        (data.state, statuses(&data).as_str()),
        (CircuitState::TorLost, "NEW, SENTCONNECT 3, REMAP 3, SUCCEEDED 3")
    );
}

#[test]
fn without_a_user_name_the_port_alone_tells_the_stream() {
    let replay = replay_until(1_795_338_483_000_000);
    let run = RunKey { user: None, ..replay.run("", 48_962, 1_795_338_482_952_000, 1_795_338_482_978_000) };
    assert_eq!(derive(&gather(&replay.book, None, &run)).stream_id, Some(24));
    assert_eq!(derive(&gather(&replay.book, None, &RunKey { local: None, ..run })).stream_id, None);
}

#[test]
fn guards_and_timeouts_of_the_run_are_told() {
    let replay = replay_until(i64::MAX);
    let run = replay.run("later", 1, 1_795_338_504_600_000, 1_795_338_505_000_000);
    let data = derive(&gather(&replay.book, None, &run));
    let expected = BuildTimeout { timeout_ms: 60_000, quantile: Some(1.0), learning: Some(true) };
    assert_eq!(data.build_timeout, Some(expected));
    let words: Vec<_> = data.guard_events.iter().map(|guard| guard.status.as_str()).collect();
    assert_eq!(words, ["NEW", "NEW", "NEW", "NEW", "NEW", "NEW", "NEW", "UP", "UP"]);
    // It came after this one began.
    let run = replay.run("earlier", 1, 1_795_338_500_000_000, 1_795_338_505_000_000);
    assert_eq!(derive(&gather(&replay.book, None, &run)).build_timeout, None);
}

#[test]
fn circuits_that_failed_or_that_nobody_used_are_loose() {
    let mut replay = replay_until(i64::MAX);
    let (records, forgotten) = replay.book.take_loose();
    assert_eq!(forgotten, 0);
    let by_id = |id: u64| records.iter().find(|record| record.id == id);
    let failed = by_id(52).expect("a circuit to a rendezvous point, that failed");
    let circuit = derive_loose(&loose(failed).unwrap()).unwrap();
    let end = circuit.end.unwrap();
    assert_eq!((end.failed, end.reason.as_deref()), (true, Some("DESTROYED")));
    assert_eq!(circuit.launched_us, Some(0));
    for used in [3, 13, 54, 53] {
        assert!(by_id(used).is_none(), "circuit {used} was used");
    }
    assert_eq!(replay.book.take_loose().0.len(), 0, "they are taken once");
}

#[test]
fn of_a_tor_that_others_use_too_only_perfds_own_circuits_are_kept() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(0));
    book.add_own_onion("mine");
    for (id, what) in [
        (1, "PURPOSE=GENERAL SOCKS_USERNAME=\"perfd-1\""),
        (2, "PURPOSE=GENERAL SOCKS_USERNAME=\"somebody\""),
        (3, "PURPOSE=HS_CLIENT_REND HS_STATE=HSCR_CONNECTING REND_QUERY=theirs"),
        (4, "PURPOSE=HS_CLIENT_REND HS_STATE=HSCR_CONNECTING REND_QUERY=theirs SOCKS_USERNAME=\"perfd-1\""),
        (5, "PURPOSE=HS_SERVICE_INTRO HS_STATE=HSSI_ESTABLISHED REND_QUERY=theirs"),
        (6, "PURPOSE=HS_SERVICE_INTRO HS_STATE=HSSI_ESTABLISHED REND_QUERY=mine"),
        (7, "PURPOSE=HS_VANGUARDS"),
        (8, "PURPOSE=MEASURE_TIMEOUT"),
        // A set's leg goes with the set, whose circuit is somebody's.
        (9, "PURPOSE=CONFLUX_UNLINKED CONFLUX_ID=A1 SOCKS_USERNAME=\"somebody\""),
    ] {
        book.note(begin, &format!("CIRC {id} LAUNCHED {what}"));
    }
    book.note(begin, "STREAM 1 NEW 0 a.test:80 SOURCE_ADDR=127.0.0.1:4000 SOCKS_USERNAME=\"somebody\"");
    book.note(begin, "STREAM 1 SENTCONNECT 9 a.test:80");
    book.note(begin, "CIRC 10 LAUNCHED PURPOSE=CONFLUX_UNLINKED CONFLUX_ID=A1");
    // What was there before perfd came, or was forgotten since, may be anybody's.
    book.found(begin, "11 BUILT PURPOSE=GENERAL");
    book.found(begin, "12 BUILT PURPOSE=CONFLUX_LINKED CONFLUX_ID=B2");
    book.note(begin, "CIRC 13 BUILT PURPOSE=GENERAL");
    let (open, foreign) = book.open_circuits();
    let mut shown: Vec<u64> = open.iter().map(|circuit| circuit.id).collect();
    shown.sort_unstable();
    assert_eq!((shown.as_slice(), foreign), ([1, 4, 6, 8].as_slice(), 9));
    for id in 1..=13 {
        book.note(begin, &format!("CIRC {id} FAILED REASON=TIMEOUT"));
    }
    let kept: Vec<u64> = book.take_loose().0.iter().map(|record| record.id).collect();
    assert_eq!(kept, [1, 4, 6, 8]);
}

#[test]
fn what_a_book_keeps_is_bounded_whatever_comes() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(0));
    for id in 0..50_000u64 {
        let at = begin + Duration::from_micros(id);
        book.note(at, &format!("CIRC {id} LAUNCHED PURPOSE=GENERAL CONFLUX_ID={id}"));
        book.note(at, &format!("CIRC {id} BUILT $27C0018F4BDFC2AC371EA2505C2D7E1D315715B9~{}", "x".repeat(2000)));
        book.note(
            at,
            &format!("STREAM {id} NEW 0 a:80 SOURCE_ADDR=127.0.0.1:{} SOCKS_USERNAME=\"u{id}\"", id % 65_536),
        );
        book.note(at, &format!("CIRC_BW ID={id} READ=1 WRITTEN=1 CWND={id} RTT=1"));
        book.note(at, &format!("HS_DESC REQUESTED {id} NO_AUTH x"));
    }
    let (circuits, streams, lines) = book.size();
    assert!(circuits <= 4096 && streams <= 4096 && lines <= 3 * 4096, "{circuits} {streams} {lines}");
    for _ in 0..100_000 {
        book.note(begin, "CIRC_BW ID=49999 READ=1 WRITTEN=1 CWND=1 RTT=1");
        book.note(begin, "CIRC_BW ID=49999 READ=1 WRITTEN=1 CWND=2 RTT=1");
    }
    let circuit = book.circuit_of(49_999).unwrap();
    assert!(circuit.traffic.samples.len() <= super::records::MOST_SAMPLES);
    assert_eq!(circuit.traffic.read, 200_001, "every line counts");
    // All that has ended is forgotten in time.
    let late = begin + 2 * super::book::KEPT;
    for id in 0..50_000u64 {
        book.note(late, &format!("CIRC {id} CLOSED REASON=FINISHED"));
        book.note(late, &format!("STREAM {id} CLOSED 0 a:80"));
    }
    book.note(late + 2 * super::book::KEPT, "GUARD ENTRY x UP");
    assert_eq!(book.size(), (0, 0, 0));
}

#[test]
fn however_much_happens_to_a_stream_its_end_is_kept() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(BEGIN));
    book.note(begin, "STREAM 1 NEW 0 a:80 SOURCE_ADDR=127.0.0.1:7 SOCKS_USERNAME=\"perfd-a\"");
    for i in 1..500 {
        book.note(begin + Duration::from_millis(i), "STREAM 1 XOFF_RECV 2 a:80");
    }
    book.note(begin + Duration::from_millis(500), "STREAM 1 CLOSED 2 a:80 REASON=DONE");
    let run = Replay { begin, book: Book::new(1, begin, UnixMicros(0)) }.run("perfd-a", 7, BEGIN, BEGIN + 400_000);
    let data = derive(&gather(&book, None, &run));
    assert_eq!((data.stream[0].status.as_str(), data.stream.len()), ("NEW", 64));
    assert_eq!(data.used_at_us(), Some(500_000));
}

#[test]
fn whether_the_timeout_is_learned_is_what_was_told_last() {
    let cases: [(&[&str], Option<Option<bool>>); 6] = [
        (&[], None),
        (&["COMPUTED"], Some(Some(false))),
        (&["COMPUTED", "SUSPENDED", "RESUME"], Some(Some(false))),
        (&["COMPUTED", "RESET", "SUSPENDED"], Some(Some(true))),
        (&["SUSPENDED", "RESUME"], Some(None)),
        (&["RESET", "COMPUTED"], Some(Some(false))),
    ];
    for (kinds, expected) in cases {
        let begin = Instant::now();
        let mut book = Book::new(1, begin, UnixMicros(BEGIN));
        for (i, kind) in kinds.iter().enumerate() {
            let at = begin + Duration::from_millis(i as u64);
            book.note(at, &format!("BUILDTIMEOUT_SET {kind} TIMEOUT_MS={i} CUTOFF_QUANTILE=0.8"));
        }
        let run =
            Replay { begin, book: Book::new(1, begin, UnixMicros(0)) }.run("x", 1, BEGIN + 50_000, BEGIN + 60_000);
        let timeout = derive(&gather(&book, None, &run)).build_timeout;
        assert_eq!(timeout.as_ref().map(|timeout| timeout.learning), expected, "{kinds:?}");
        assert_eq!(timeout.map(|timeout| timeout.timeout_ms), kinds.len().checked_sub(1).map(|last| last as u64));
    }
}

#[test]
fn a_loose_circuit_that_was_found_has_times_relative_to_when_it_was() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(BEGIN));
    book.set_exclusive();
    // 2.5 s before the connection.
    book.found(begin + Duration::from_millis(500), "3 BUILT PURPOSE=GENERAL TIME_CREATED=2026-11-22T09:07:58.923468");
    book.note(begin + Duration::from_millis(900), "CIRC 3 CLOSED REASON=FINISHED");
    let record = book.take_loose().0.pop().unwrap();
    assert_eq!(record.heard_of, UnixMicros(BEGIN + 500_000));
    let circuit = derive_loose(&loose(&record).unwrap()).unwrap();
    assert_eq!((circuit.launched_us, circuit.end.unwrap().at_us), (Some(-2_500_000), 400_000));
}

#[test]
fn runs_that_share_a_circuit_have_their_own_bytes() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(BEGIN));
    let at = |ms| begin + Duration::from_millis(ms);
    book.note(at(0), "CIRC 5 BUILT PURPOSE=GENERAL");
    for (stream, from) in [(1, 100), (2, 1200), (3, 2300)] {
        let words = format!("a:80 SOURCE_ADDR=127.0.0.1:{stream} SOCKS_USERNAME=\"perfd-a\"");
        book.note(at(from), &format!("STREAM {stream} NEW 0 {words}"));
        book.note(at(from + 1), &format!("STREAM {stream} SENTCONNECT 5 {words}"));
        book.note(at(from + 50), &format!("STREAM {stream} CLOSED 5 {words}"));
        book.note(at(from + 900), &format!("CIRC_BW ID=5 READ={} WRITTEN={stream} CWND={stream}", 1000 * stream));
    }
    let replay = Replay { begin, book: Book::new(1, begin, UnixMicros(0)) };
    for (stream, from) in [(1u16, 100), (2, 1200), (3, 2300)] {
        let key = replay.run("perfd-a", stream, BEGIN + from * 1000, BEGIN + (from + 50) * 1000);
        let data = derive(&gather(&book, None, &RunKey { upload: true, ..key }));
        let circuit = data.circuit.unwrap();
        assert_eq!(circuit.bytes_read, Some(1000 * u64::from(stream)), "stream {stream}");
        assert_eq!(circuit.last_used_us.is_some(), stream > 1);
        let windows: Vec<_> = data.congestion.unwrap().samples.iter().map(|sample| sample.cwnd_cells).collect();
        assert_eq!(windows, [Some(u64::from(stream))]);
    }
}

#[test]
fn a_circuit_that_changes_its_set_leaves_the_old_one() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(0));
    for i in 0..20_000 {
        book.note(begin, &format!("CIRC 1 BUILT PURPOSE=CONFLUX_LINKED CONFLUX_ID={i}"));
    }
    assert_eq!(book.size(), (1, 0, 64));
    assert_eq!((book.set("19999"), book.set("1")), (&[1][..], &[][..]));
}

#[test]
fn samples_are_thinned_and_span_the_whole_transfer() {
    let begin = Instant::now();
    let mut book = Book::new(1, begin, UnixMicros(0));
    book.note(begin, "CIRC 1 LAUNCHED");
    for i in 0..10_000u64 {
        let at = begin + Duration::from_millis(i);
        book.note(at, &format!("CIRC_BW ID=1 READ=1 WRITTEN=509 SS=0 CWND={} RTT=25 MIN_RTT=12", 100 + i % 500));
    }
    let samples = &book.circuit_of(1).unwrap().traffic.samples;
    assert!(
        (super::records::MOST_SAMPLES / 3..=super::records::MOST_SAMPLES).contains(&samples.len()),
        "{}",
        samples.len()
    );
    assert_eq!(samples[0].0, begin);
    assert!(samples.last().unwrap().0 > begin + Duration::from_millis(8000));
    assert!(samples.is_sorted_by_key(|(at, _)| *at));
}

proptest! {
    #[test]
    fn no_conversation_is_too_strange(
        lines in prop::collection::vec((0u64..2_000_000, prop_oneof![
            2 => prop::sample::select(RECORDED.lines().filter_map(|l| l.split_once(" 650 ")).map(|(_, l)| l).collect::<Vec<_>>())
                .prop_map(str::to_owned),
            1 => "(CIRC|STREAM|CIRC_MINOR|CIRC_BW|HS_DESC|GUARD) [0-9]{1,2} [A-Z]{1,8} [0-9$~a-zA-Z=,\" ]{0,40}",
        ]), 0..60),
        user in prop::sample::select(vec!["run0", "onion", "noname", "x"]),
        upload in any::<bool>(),
    ) {
        let begin = Instant::now();
        let mut book = Book::new(1, begin, UnixMicros(BEGIN));
        for (at, line) in &lines {
            book.note(begin + Duration::from_micros(*at), line);
        }
        let run = RunKey {
            user: Some(user.to_owned()), local: None, start: begin + Duration::from_secs(1),
            start_wall: UnixMicros(BEGIN), ended: begin + Duration::from_secs(2),
            onion: Some("rh23xgzocusqxxssmtcssnyqpg4j6pdactt5x5skvllbt6sw65klryid".to_owned()), upload,
        };
        let evidence = gather(&book, Some(&book), &run);
        let data = derive(&evidence);
        let json = serde_json::to_string(&data).unwrap();
        prop_assert_eq!(serde_json::from_str::<CircuitData>(&json).unwrap(), data);
        book.take_loose().0.iter().for_each(|record| drop(loose(record).map(|evidence| derive_loose(&evidence))));
    }

    #[test]
    fn no_evidence_is_too_strange(text in "(perfd evidence 1\n)?(connection [0-9]\n)?(start -?[0-9]{1,19}\n)?\n?(-?[0-9]{1,19} [~+=]{0,2}(CIRC|STREAM|bytes|used|sample) [0-9]{1,20} [a-zA-Z$=~, 0-9]{0,40}\n){0,5}.{0,20}") {
        derive(&Evidence(text));
    }
}
