//! Documents of every version, recorded or written by hand; and each rule with its place.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::clock::UnixMicros;
use crate::measurement::{Cause, Failure, Outcome, Phase, RunId, ServerKind, Steps};
use crate::test_support::plausible_row;

const RECORDED: &str = include_str!("../../../tests/recorded/onionperf-3.1.analysis.json");
const FIRST: &str = include_str!("../../../tests/imported/onionperf-1.0.analysis.json");
const SECOND: &str = include_str!("../../../tests/imported/onionperf-2.0.analysis.json");
const THIRD: &str = include_str!("../../../tests/imported/onionperf-3.0.analysis.json");

fn runs(document: &str) -> Vec<ImportedRun> {
    super::read(document.as_bytes()).unwrap().collect::<Result<_, _>>().unwrap()
}

/// The first violation of a document.
fn fault(document: &str) -> Option<(String, Rule)> {
    let violation = match super::read(document.as_bytes()) {
        Ok(mut runs) => runs.find_map(Result::err),
        Err(violation) => Some(violation),
    };
    violation.map(|violation| (violation.site.to_string(), violation.rule))
}

fn extra(run: &ImportedRun) -> Vec<String> {
    run.extra.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

#[test]
fn the_recorded_document_is_read() {
    let runs = runs(RECORDED);
    assert_eq!(runs.len(), 2);
    let run = &runs[0];
    let mut steps = Steps {
        socket: Some(25),
        connect: Some(436),
        negotiate: Some(709),
        request: Some(1_057),
        response: Some(5_812),
        data_request: Some(5_976),
        data_response: Some(11_753),
        data_complete: Some(304_863),
        ..Steps::default()
    };
    steps.deciles =
        [53_024, 67_205, 91_502, 115_615, 119_663, 134_644, 134_917, 151_286, 163_461, 170_233, 305_046].map(Some);
    let partials = [53_024, 66_961, 66_961, 67_205, 91_502, 134_644, 305_046];
    steps.partials[..7].copy_from_slice(&partials.map(Some));
    assert_eq!(run.steps, steps);
    assert_eq!((run.start, run.ended), (UnixMicros(1_795_337_613_802_831), 305_046));
    assert_eq!((&*run.source, run.size, run.read, run.written), ("testnode", 1_048_576, 1_048_680, 2_167));
    assert_eq!((&run.outcome, run.did_time_out, run.local_port), (&Outcome::Complete, false, Some(39_386)));
    let said = [
        "ENDPOINTLOCAL=localhost:127.0.0.1:39386",
        "ENDPOINTPROXY=localhost:127.0.0.1:19206",
        "ENDPOINTREMOTE=localhost:127.0.0.1:8080",
        "HOSTNAMELOCAL=vm",
        "HOSTNAMEREMOTE=vm",
        "SOURCEADDRESS=127.0.0.1",
        "USED_AT=1795337614.110000",
        "USED_BY=14",
    ];
    assert_eq!(extra(run), said);
}

#[test]
fn version_1_is_read() {
    let runs = runs(FIRST);
    let run = &runs[0];
    let mut steps = Steps {
        socket: Some(20),
        connect: Some(400),
        negotiate: Some(1_000),
        request: Some(10_000),
        response: Some(2_980_000),
        data_request: Some(2_990_000),
        data_response: Some(3_440_000),
        data_complete: Some(6_250_000),
        ..Steps::default()
    };
    (steps.deciles[0], steps.deciles[1]) = (Some(3_440_000), Some(3_780_000));
    (steps.deciles[5], steps.deciles[10]) = (Some(4_770_000), Some(6_250_000));
    assert_eq!((runs.len(), &run.steps, &run.outcome), (1, &steps, &Outcome::Complete));
    assert_eq!(
        (run.start, run.server, run.local_port),
        (UnixMicros(1_501_234_568_000_000), ServerKind::Onion, Some(40_878))
    );
    let (one, two, three) = ("1".repeat(40), "2".repeat(40), "3".repeat(40));
    let circuit = [
        "LAUNCH=1501234569.010000".to_owned(),
        "USED_AT=1501234574.260000".to_owned(),
        format!("PATH=${one},${two},${three}"),
        "BUILDTIMES=0.150000,0.220000,0.340000".to_owned(),
        "CIRC_ID=39".to_owned(),
        "USED_BY=71".to_owned(),
        "DATAPERC55=1501234572.900000".to_owned(),
    ];
    assert_eq!(extra(run)[6..], circuit);
}

#[test]
fn version_2_is_read() {
    let runs = runs(SECOND);
    let failed = &runs[0];
    // 0.0 is what was not reached, of a transfer that failed.
    assert_eq!(failed.steps.pending(), Phase::Response);
    assert_eq!((&failed.outcome, failed.did_time_out), (&Outcome::Timeout(Phase::Response), true));
    let said = extra(failed);
    // Of the two streams from that port, the nearer; the other ended more than 150 s later.
    for expected in ["ERRORCODE=TOR/END/MISC", "USED_BY=93", "TIMEOUT=1500", "QUANTILE=0.8", "HOSTNAMEREMOTE=(null)"] {
        assert!(said.iter().any(|said| said == expected), "{expected}: {said:?}");
    }
    let complete = &runs[1];
    assert_eq!((&complete.outcome, complete.steps.socket), (&Outcome::Complete, Some(0)));
    assert_eq!((complete.steps.partials[0], complete.steps.partials[2]), (Some(800_000), Some(1_000_000)));
    assert_eq!(extra(complete).last().unwrap(), "PARTIAL30000=1588000301.900000");
}

#[test]
fn version_3_is_read_and_what_is_filtered_out_is_not() {
    let whole = runs(THIRD);
    assert_eq!(whole.len(), 2);
    assert_eq!((&whole[0].outcome, whole[0].did_time_out), (&Outcome::Timeout(Phase::Response), true));
    assert!(extra(&whole[0]).contains(&"ERRORCODE=TGEN/TIMEOUT".to_owned()));
    // Its stream ended too late to be that of the second run, whose circuit would be filtered out.
    let near = THIRD.replace("1594701100.0", "1594700867.1");
    assert_eq!(runs(&near).len(), 1);
}

#[test]
fn what_perfd_adds_is_read() {
    let mut document: Value = serde_json::from_str(THIRD).unwrap();
    let id = RunId::from_bits(5);
    let own = json!({"experiment": "a b", "run_id": id, "tor": "main", "server": "single_onion",
        "error_code": "RESPONSE/SOCKS_REPLY/F2"});
    document["data"]["op-c"]["tgen"]["streams"]["156:6:localhost:127.0.0.1:46246"]["perfd"] = own;
    let run = runs(&document.to_string()).remove(0);
    assert_eq!((run.experiment.as_deref(), run.id, run.tor.as_deref()), (Some("a b"), Some(id), Some("main")));
    let failure = Failure {
        phase: Phase::Response,
        cause: Cause::SocksReply,
        socks_code: Some(0xf2),
        http_status: None,
        detail: "RESPONSE/SOCKS_REPLY/F2".to_owned(),
    };
    assert_eq!((run.server, run.outcome), (ServerKind::SingleOnion, Outcome::Failed(failure)));
}

#[test]
fn every_rule_is_told_with_its_place() {
    let streams = "data.op-c.tgen.streams[\"156:6:localhost:127.0.0.1:46246\"]";
    let transfer = "data.op-a.tgen.transfers[\"transfer1m:1\"]";
    let circuit = "data.op-a.tor.circuits.39";
    let stream = |rest: &str| format!("{streams}{rest}");
    let of_first = |rest: &str| format!("{transfer}{rest}");
    for (document, from, to, path, rule) in [
        (THIRD, "\"onionperf\"", "\"other\"", "type".to_owned(), Rule::Version),
        (THIRD, "\"3.0\"", "\"4.0\"", "version".to_owned(), Rule::Version),
        (FIRST, "1.0,", "4.5,", "version".to_owned(), Rule::Version),
        (THIRD, "\"version\": \"3.0\",", "", "version".to_owned(), Rule::Version),
        (THIRD, "\"data\"", "\"date\"", "data".to_owned(), Rule::Missing),
        (THIRD, "\"op-c\": {", "\"op c\": {", "data[\"op c\"]".to_owned(), Rule::Nick),
        (THIRD, "\"op-c\": {", "\"op_c\": {", "data.op_c".to_owned(), Rule::Nick),
        (THIRD, "\"unknown\"", "\"\"", "data.op-c.measurement_ip".to_owned(), Rule::Name),
        (THIRD, "\"op-c\", \"peer", "\"op c\", \"peer", stream(".stream_info.name"), Rule::Name),
        (THIRD, "\"(null)\"", "\"\"", stream(".stream_info.peername"), Rule::Name),
        (
            THIRD,
            "\"localhost:127.0.0.1:46246\",",
            "\"localhost: 127.0.0.1:46246\",",
            stream(".transport_info.local"),
            Rule::Name,
        ),
        (
            THIRD,
            "\"localhost:127.0.0.1:46246\",",
            "\"localhost:46246\",",
            stream(".transport_info.local"),
            Rule::Endpoint,
        ),
        (THIRD, "\"TIMEOUT\"", "\"TIME OUT\"", streams.to_owned(), Rule::Name),
        (THIRD, "\"5242880\"", "\"5 MB\"", stream(".stream_info.recvsize"), Rule::Number),
        (THIRD, "\"5242880\"", "5242880", stream(".stream_info.recvsize"), Rule::Type),
        (THIRD, ", \"recvsize\": \"5242880\"", "", stream(".stream_info.recvsize"), Rule::Missing),
        (THIRD, "\"300\"", "\"-2\"", stream(".time_info.usecs-to-proxy-choice"), Rule::Number),
        (THIRD, "\"300\"", "\"86400000001\"", stream(".time_info.usecs-to-proxy-choice"), Rule::StepTooLate),
        (THIRD, "\"300\"", "300", stream(".time_info.usecs-to-proxy-choice"), Rule::Type),
        (THIRD, ", \"unix_ts_start\": 1594700539.8", "", stream(".unix_ts_start"), Rule::Missing),
        (THIRD, "1594700539.8\n", "-1.0\n", stream(".unix_ts_start"), Rule::Timestamp),
        (THIRD, "1594700539.8\n", "\"1594700539.8\"\n", stream(".unix_ts_start"), Rule::Type),
        (THIRD, "\"circuits\"", "\"circuit\"", "data.op-c.tor".to_owned(), Rule::NoCircuits),
        (FIRST, "0.15]", "1]", format!("{circuit}.path[0][1]"), Rule::PathSeconds),
        (FIRST, "0.15]", "-1.0]", format!("{circuit}.path[0][1]"), Rule::BuildTimes),
        (FIRST, "0.15]", "\"0.15\"]", format!("{circuit}.path[0][1]"), Rule::Type),
        (FIRST, "$2222222222", "$222", format!("{circuit}.path[1][0]"), Rule::Path),
        (FIRST, "\"0.1\": 3.78", "\"1.1\": 3.78", of_first(".elapsed_seconds.payload_progress"), Rule::Percent),
        (
            FIRST,
            "\"0.1\": 3.78",
            "\"0.1\": -3.78",
            of_first(".elapsed_seconds.payload_progress[\"0.1\"]"),
            Rule::StepBeforeStart,
        ),
        (FIRST, "6.25,\n", "86400.1,\n", of_first(".elapsed_seconds.last_byte"), Rule::StepTooLate),
        (FIRST, "1048576", "2147483648", of_first(".filesize_bytes"), Rule::Number),
        (FIRST, "1048576", "1048576.5", of_first(".filesize_bytes"), Rule::Type),
        (
            FIRST,
            "\"unix_ts_end\": 1501234574.26, ",
            "",
            "data.op-a.tor.streams.71.unix_ts_end".to_owned(),
            Rule::Missing,
        ),
        (
            SECOND,
            "\"10240\"",
            "\"10 KiB\"",
            "data.op-b.tgen.transfers[\"transfer50k:3\"].elapsed_seconds.payload_bytes".to_owned(),
            Rule::Partial,
        ),
    ] {
        let spoilt = document.replacen(from, to, 1);
        assert_ne!(spoilt, document, "{from}");
        assert_eq!(fault(&spoilt), Some((path, rule)), "{from} -> {to}");
    }
}

#[test]
fn broken_and_empty_documents_are_refused() {
    let twice = THIRD.replacen("\"op-c\": {", "\"op-c\": {}, \"op-c\": {", 1);
    for (document, rule) in [
        ("{", Rule::Json),
        ("{\"data\": nothing}", Rule::Json),
        ("{\"data\": 5}", Rule::Type),
        ("[]", Rule::Type),
        (&format!("{THIRD} x"), Rule::Json),
        (&twice, Rule::Type),
        (r#"{"type":"onionperf","version":"3.1","data":{}}"#, Rule::NoMeasurement),
        (
            r#"{"type":"onionperf","version":"3.1","data":{"a":{"tgen":{"streams":{}},"tor":null}}}"#,
            Rule::NoMeasurement,
        ),
    ] {
        assert_eq!(fault(document).map(|(_, rule)| rule), Some(rule), "{document}");
    }
    let mut filtered: Value = serde_json::from_str(&THIRD.replace("1594701100.0", "1594700867.1")).unwrap();
    let streams = filtered["data"]["op-c"]["tgen"]["streams"].as_object_mut().unwrap();
    streams.retain(|id, _| id.starts_with("157"));
    assert_eq!(fault(&filtered.to_string()).map(|(_, rule)| rule), Some(Rule::NoMeasurement));
}

#[test]
fn a_document_that_does_not_end_is_refused() {
    let endless = io::repeat(b' ');
    let fault = read_within(endless, 1 << 20).unwrap_err();
    assert_eq!((fault.site, fault.rule), (Site::File, Rule::TooLarge));
}

#[test]
fn what_plots_lack_is_a_warning() {
    let spoilt = THIRD.replace("\"usecs-to-first-byte-recv\": \"5230000\",", "");
    let mut document = super::read(spoilt.as_bytes()).unwrap();
    assert!(document.next().unwrap().is_ok());
    assert!(document.take_warnings().is_empty());
    assert!(document.next().unwrap().is_ok());
    let warnings = document.take_warnings();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].rule, Rule::FirstByte);
    assert!(warnings[0].site.to_string().ends_with(".time_info.usecs-to-first-byte-recv"));
    assert!(document.next().is_none());
}

proptest! {
    #[test]
    fn anything_is_read_without_a_panic(bytes in any::<Vec<u8>>(), at in 0..THIRD.len(), with in "[-0-9.eE\"\\[\\]{}a-z:,]{0,12}") {
        let _ = super::read(&bytes[..]).map(Iterator::count);
        for document in [THIRD, FIRST, SECOND] {
            let at = at.min(document.len());
            let spoilt = format!("{}{with}{}", &document[..at], &document[(at + with.len()).min(document.len())..]);
            let _ = super::read(spoilt.as_bytes()).map(Iterator::count);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// perfd's two files of a day tell the same runs.
    #[test]
    fn what_perfd_writes_is_what_its_key_value_says(mut row in plausible_row()) {
        // Of a clock that was set, whose seconds a float tells to the microsecond.
        row.measurement.start.0 = row.measurement.start.0.abs().clamp(1_000_000_000_000_000, 4_000_000_000_000_000);
        // And of a run that ended.
        row.measurement.ended %= crate::import::LONGEST_RUN.as_micros() as u64;
        row.measurement.kind = crate::measurement::Kind::Download;
        row.source = "op".to_owned();
        let document = crate::export::onionperf::document("op", "0.0.0.0", [&row]);
        let mut runs = super::read(document.as_bytes()).map_err(|fault| TestCaseError::fail(fault.to_string()))?;
        let told = match runs.next().unwrap() {
            // tor's own times may be any here, also such as no calendar has.
            Err(fault) if fault.to_string().starts_with("data.op.tor.") && fault.rule == Rule::Timestamp => return Ok(()),
            told => told.map_err(|fault| TestCaseError::fail(format!("{fault} in {document}")))?,
        };
        let line = crate::export::torperf::line(&row);
        let mut same = crate::import::torperf::run(line.trim_end()).map_err(|(_, why)| TestCaseError::fail(why))?;
        // The marks beyond the payload's size are in JSON alone.
        same.steps.partials = told.steps.partials;
        prop_assert_eq!(&told.steps, &same.steps);
        prop_assert_eq!((told.start, told.size, told.read, told.written), (same.start, same.size, same.read, same.written));
        prop_assert_eq!((told.local_port, told.server, &told.id), (same.local_port, same.server, &same.id));
        let is_own = told.extra.iter().any(|(key, _)| key == "ERRORCODE");
        prop_assert_eq!(is_own, row.measurement.outcome != Outcome::Complete);
        if is_own {
            prop_assert_eq!(&told.outcome, &same.outcome);
        }
    }
}
