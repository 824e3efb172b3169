//! Every rule of the format has its line; and what perfd writes is read back.

use proptest::prelude::*;

use super::*;
use crate::export::torperf::{HEADER, line};
use crate::measurement::{Cause, Failure, Outcome, Phase};
use crate::test_support::circuit::example_circuit;
use crate::test_support::{example_row, plausible_row};

const GOOD: &str = "SOURCE=s FILESIZE=1 START=1.5 SOCKET=1.5 CONNECT=0.0 NEGOTIATE=0.0 REQUEST=0.0 RESPONSE=0.0 \
    DATAREQUEST=0.0 DATARESPONSE=0.0 DATACOMPLETE=0.0 WRITEBYTES=0 READBYTES=0 DIDTIMEOUT=1";

fn read(file: impl AsRef<[u8]>) -> Vec<Result<ImportedRun, (Site, Rule)>> {
    Reader::new(file.as_ref()).map(|run| run.map_err(|violation| (violation.site, violation.rule))).collect()
}

/// The line without REVISION, as what is imported is written again.
fn again(run: &ImportedRun) -> String {
    let moment = |at: Option<u64>| match at {
        Some(at) => {
            let micros = run.start.0 + i64::try_from(at).unwrap();
            format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
        }
        None => "0.0".to_owned(),
    };
    let escaped = |text: &str| {
        text.bytes().fold(String::new(), |line, byte| match byte {
            b'=' | b'%' | 0..=b' ' | 0x7f.. => format!("{line}%{byte:02X}"),
            _ => line + &char::from(byte).to_string(),
        })
    };
    let mut words = vec![
        format!("SOURCE={}", escaped(&run.source)),
        format!("FILESIZE={}", run.size),
        format!("START={}", moment(Some(0))),
    ];
    for (name, (_, at)) in REQUIRED[3..].iter().zip(run.steps.in_order()) {
        words.push(format!("{name}={}", moment(at)));
    }
    words.push(format!("WRITEBYTES={} READBYTES={}", run.written, run.read));
    words.push(format!("DIDTIMEOUT={}", u8::from(run.did_time_out)));
    for prefix in ["DATAPERC", "PARTIAL"] {
        let mut marks: Vec<(u64, String)> = match prefix {
            "DATAPERC" => (0..).step_by(10).zip(run.steps.deciles).collect::<Vec<_>>(),
            _ => PARTIALS.into_iter().zip(run.steps.partials).collect(),
        }
        .into_iter()
        .filter(|(_, at)| at.is_some())
        .map(|(number, at)| (number, format!("{prefix}{number}={}", moment(at))))
        .collect();
        let extra = run
            .extra
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.parse().ok()?, format!("{key}={value}"))));
        marks.extend(extra);
        marks.sort();
        words.extend(marks.into_iter().map(|(_, word)| word));
    }
    let is_mark = |key: &str| key.starts_with("DATAPERC") || key.starts_with("PARTIAL");
    words.extend(run.extra.iter().filter(|(key, _)| !is_mark(key)).map(|(key, value)| format!("{key}={value}")));
    words.extend(run.experiment.iter().map(|experiment| format!("EXPERIMENT={}", escaped(experiment))));
    words.extend(run.id.iter().map(|id| format!("RUN_ID={id}")));
    words.join(" ")
}

#[test]
fn good_files_are_read() {
    let whole = |lines: usize| vec![true; lines];
    for (file, runs) in [
        ("@type torperf 1.1\n".to_owned(), 0),
        (format!("@type torperf 1.1\n{GOOD}\n{GOOD}\n"), 2),
        (format!("@type torperf 1.0\r\n{GOOD}\r\n@type torperf 1.1\r\n{GOOD}\r\n"), 2),
        (format!("@type torperf 1.1\n{GOOD} UNKNOWN=x ENDPOINTLOCAL=h:127.0.0.1:1 DATAPERC100=2.25\n"), 1),
        (format!("@type torperf 1.1\n{GOOD} LAUNCH=1.5 BUILDTIMES=0.5,1.25 QUANTILE=0.8 TIMEOUT=1 CIRC_ID=0\n"), 1),
        (format!("@type torperf 1.1\n{GOOD} PATH=${0},${0}\n", "0123456789abcdefABCD".repeat(2)), 1),
        (format!("@type torperf 1.0\n{}\n", GOOD.replace(" DIDTIMEOUT=1", "")), 1),
    ] {
        let read: Vec<bool> = read(&file).iter().map(Result::is_ok).collect();
        assert_eq!(read, whole(runs), "{file}");
    }
}

#[test]
fn every_rule_is_told_with_its_line() {
    for (from, to, rule) in [
        ("FILESIZE=1", "FILESIZE=", Rule::EmptyValue),
        ("FILESIZE=1", "FILESIZE=1=2", Rule::SecondEquals),
        ("FILESIZE=1", "FILESIZE=1 FILESIZE=1", Rule::RepeatedKey),
        ("FILESIZE=1", "X=1 FILESIZE=1 X=2", Rule::RepeatedKey),
        ("FILESIZE=1", "FILESIZE=1 EXPERIMENT=a EXPERIMENT=a", Rule::RepeatedKey),
        ("FILESIZE=1", "FILESIZE=1 DATAPERC10=1.5 DATAPERC10=0.0", Rule::RepeatedKey),
        ("FILESIZE=1", "FILESIZE=1 DATAPERC10=1.5 DATAPERC10=1.5", Rule::RepeatedKey),
        ("FILESIZE=1", "FILESIZE=1 PARTIAL10240=0.0 PARTIAL10240=1.5", Rule::RepeatedKey),
        ("FILESIZE=1", "FILESIZE=1 DIDTIMEOUT=1", Rule::RepeatedKey),
        ("FILESIZE=1", " FILESIZE=1", Rule::Space),
        ("SOURCE=s", " SOURCE=s", Rule::Space),
        ("DIDTIMEOUT=1", "DIDTIMEOUT=1 ", Rule::Space),
        ("FILESIZE=1", "FILESIZE=2147483648", Rule::Number),
        ("FILESIZE=1", "FILESIZE=-1", Rule::Number),
        ("FILESIZE=1", "FILESIZE=+1", Rule::Number),
        ("FILESIZE=1", "FILESIZE=1.0", Rule::Number),
        ("READBYTES=0", "READBYTES=x", Rule::Number),
        ("WRITEBYTES=0", "WRITEBYTES=x", Rule::Number),
        ("DIDTIMEOUT=1", "CIRC_ID=2147483648", Rule::Number),
        ("DIDTIMEOUT=1", "USED_BY=x", Rule::Number),
        ("DIDTIMEOUT=1", "TIMEOUT=1.5", Rule::Number),
        ("FILESIZE=1", "FILESIZE=1 \tX=1", Rule::ControlCharacter),
        ("SOURCE=s", "SOURCE=\u{7f}", Rule::ControlCharacter),
        ("SOURCE=s", "SOURCE=\u{85}", Rule::ControlCharacter),
        ("DATARESPONSE=0.0 ", "DATARESPONSE=0.0\r\r ", Rule::ControlCharacter),
        ("FILESIZE=1 ", "", Rule::MissingKey),
        ("SOCKET=1.5 ", "", Rule::MissingKey),
        (" READBYTES=0", "", Rule::MissingKey),
        ("FILESIZE=1", "FILESIZE", Rule::NoPair),
        ("FILESIZE=1", "=1 FILESIZE=1", Rule::EmptyKey),
        ("START=1.5", "START=0", Rule::Timestamp),
        ("START=1.5", "START=1493397365", Rule::Timestamp),
        ("START=1.5", "START=1.4e9", Rule::Timestamp),
        ("START=1.5", "START=-1.5", Rule::Timestamp),
        ("START=1.5", "START=1.5.0", Rule::Timestamp),
        ("START=1.5", "START=1.", Rule::Timestamp),
        ("START=1.5", "START=.5", Rule::Timestamp),
        ("DIDTIMEOUT=1", "PARTIAL10240=1", Rule::Timestamp),
        ("DIDTIMEOUT=1", "DATAPERC50=1", Rule::Timestamp),
        ("DIDTIMEOUT=1", "LAUNCH=1", Rule::Timestamp),
        ("DIDTIMEOUT=1", "USED_AT=-1.5", Rule::Timestamp),
        ("START=1.5", "START=0.0", Rule::NoStart),
        ("START=1.5", "START=253402300800.0", Rule::StartOutOfRange),
        ("START=1.5", "START=9223372036854.775807", Rule::StartOutOfRange),
        ("SOCKET=1.5", "SOCKET=1.499999", Rule::StepBeforeStart),
        ("DIDTIMEOUT=1", "DATAPERC0=1.4", Rule::StepBeforeStart),
        ("CONNECT=0.0", "CONNECT=86401.500001", Rule::StepTooLate),
        ("DIDTIMEOUT=1", "PARTIAL51200=999999.0", Rule::StepTooLate),
        ("DIDTIMEOUT=1", "DIDTIMEOUT=2", Rule::Flag),
        ("DIDTIMEOUT=1", "DIDTIMEOUT=true", Rule::Flag),
        ("DIDTIMEOUT=1", "DATAPERC101=1.0", Rule::Percent),
        ("DIDTIMEOUT=1", "DATAPERC=1.0", Rule::Percent),
        ("DIDTIMEOUT=1", "PARTIALx=1.0", Rule::Partial),
        ("DIDTIMEOUT=1", "ENDPOINTLOCAL=localhost:9050", Rule::Endpoint),
        ("DIDTIMEOUT=1", "ENDPOINTPROXY=:127.0.0.1:9050", Rule::Endpoint),
        ("DIDTIMEOUT=1", "ENDPOINTREMOTE=h:127.0.0.1", Rule::Endpoint),
        ("DIDTIMEOUT=1", "BUILDTIMES=1", Rule::BuildTimes),
        ("DIDTIMEOUT=1", "BUILDTIMES=1.0,", Rule::BuildTimes),
        ("DIDTIMEOUT=1", "QUANTILE=x", Rule::Quantile),
        ("DIDTIMEOUT=1", "QUANTILE=NaN", Rule::Quantile),
        ("DIDTIMEOUT=1", "PATH=$ABCD", Rule::Path),
        ("DIDTIMEOUT=1", "PATH=$0123456789abcdefABCD0123456789abcdefABCD~nickname", Rule::Path),
        ("DIDTIMEOUT=1", "PATH=0123456789abcdefABCD0123456789abcdefABCDE", Rule::Path),
    ] {
        let line = GOOD.replacen(from, to, 1);
        assert_ne!(line, GOOD);
        let read = read(format!("@type torperf 1.1\n{GOOD}\n{line}\n{GOOD}\n"));
        assert_eq!(read.len(), 3, "{line}");
        assert_eq!(read[1], Err((Site::Line(3), rule)), "{line}");
        assert!(read[0].is_ok() && read[2].is_ok(), "{line}");
    }
}

#[test]
fn every_rule_of_whole_files_is_told_with_its_line() {
    let long = format!("SOURCE={}", "x".repeat(70_000));
    let bytes = |text: &str| text.as_bytes().to_vec();
    for (file, line, rule) in [
        (bytes("@type torperf 2.0\n"), 1, Rule::Annotation),
        (bytes("@type torperf 1.\n"), 1, Rule::Annotation),
        (bytes("@type torperf 1.1 x\n"), 1, Rule::Annotation),
        (bytes("@type torperf 1.1 \n"), 1, Rule::Annotation),
        (bytes(" @type torperf 1.1\n"), 1, Rule::NoAnnotation),
        (format!("{GOOD}\n").into(), 1, Rule::NoAnnotation),
        (format!("@type torperf 1.1\n{GOOD}\n@downloaded-at 2026-11-22\n").into(), 3, Rule::Annotation),
        (bytes("@type torperf 1.1"), 1, Rule::LineEnd),
        (format!("@type torperf 1.1\n{GOOD}").into(), 2, Rule::LineEnd),
        (format!("@type torperf 1.1\n\n{GOOD}\n").into(), 2, Rule::BlankLine),
        (format!("@type torperf 1.1\n{GOOD}\n\r\n").into(), 3, Rule::BlankLine),
        (format!("@type torperf 1.1\n{long}\n{GOOD}\n").into(), 2, Rule::LongLine),
        (format!("@type torperf 1.1\n{long}").into(), 2, Rule::LongLine),
        ([b"@type torperf 1.1\nSOURCE=\xff\n", GOOD.as_bytes(), b"\n"].concat(), 2, Rule::Encoding),
    ] {
        let shown = String::from_utf8_lossy(&file).into_owned();
        let faults: Vec<_> = read(file).into_iter().filter_map(Result::err).collect();
        assert_eq!(faults.first(), Some(&(Site::Line(line), rule)), "{shown}");
        // What follows a bad first line is judged for itself.
        assert!(faults.len() <= 2, "{shown}: {faults:?}");
    }
    assert_eq!(read(""), [Err((Site::File, Rule::NoAnnotation))]);
}

#[test]
fn a_line_becomes_a_run() {
    let text = "@type torperf 1.1\nBUILDTIMES=0.15,0.22,0.34 CIRC_ID=39 CONNECT=1587991280.38 DATACOMPLETE=1587991286.62 \
        DATAPERC10=1587991284.15 DATAPERC5=1587991284.1 DATAPERC20=0.0 DATAREQUEST=1587991283.36 \
        DATARESPONSE=1587991283.8123456 ENDPOINTLOCAL=localhost:127.0.0.1:40878 \
        ENDPOINTREMOTE=m3eahz7co6lzi6jn.onion:0.0.0.0:443 FILESIZE=1048576 LAUNCH=1587991281.38 \
        NEGOTIATE=1587991280.37 PARTIAL10240=1587991283.81 PARTIAL999=1587991283.81 READBYTES=1048643 \
        REQUEST=1587991280.38 RESPONSE=1587991280.37 SOCKET=1587991280.37 SOURCE=op-nl2 SOURCEADDRESS=unknown \
        START=1587991280.37 WRITEBYTES=53\n";
    let runs = read(text);
    let run = runs[0].as_ref().unwrap();
    let mut steps = Steps {
        socket: Some(0),
        connect: Some(10_000),
        negotiate: Some(0),
        request: Some(10_000),
        response: Some(0),
        data_request: Some(2_990_000),
        data_response: Some(3_442_345),
        data_complete: Some(6_250_000),
        ..Steps::default()
    };
    steps.deciles[1] = Some(3_780_000);
    steps.partials[0] = Some(3_440_000);
    let extra = [
        ("BUILDTIMES", "0.15,0.22,0.34"),
        ("CIRC_ID", "39"),
        ("DATAPERC5", "1587991284.1"),
        ("DATAPERC20", "0.0"),
        ("ENDPOINTLOCAL", "localhost:127.0.0.1:40878"),
        ("ENDPOINTREMOTE", "m3eahz7co6lzi6jn.onion:0.0.0.0:443"),
        ("LAUNCH", "1587991281.38"),
        ("PARTIAL999", "1587991283.81"),
        ("SOURCEADDRESS", "unknown"),
    ];
    let expected = ImportedRun {
        source: "op-nl2".to_owned(),
        experiment: None,
        id: None,
        tor: None,
        start: UnixMicros(1_587_991_280_370_000),
        ended: 6_250_000,
        size: 1_048_576,
        steps,
        written: 53,
        read: 1_048_643,
        local_port: Some(40_878),
        kind: Kind::Download,
        server: ServerKind::Onion,
        outcome: Outcome::Complete,
        did_time_out: false,
        extra: extra.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
    };
    assert_eq!(run, &expected);
}

#[test]
fn our_own_keys_have_their_fields() {
    let mut row = example_row();
    row.tor = "a tor".to_owned();
    row.place = crate::measurement::Place { index: 1, of: 2 };
    row.server = ServerKind::SingleOnion;
    row.measurement.kind = Kind::Upload;
    row.measurement.steps.data_complete = None;
    let (phase, cause) = (Phase::Response, Cause::SocksReply);
    let failure =
        |detail: &str| Failure { phase, cause, socks_code: Some(0xf2), http_status: None, detail: detail.into() };
    row.measurement.outcome = Outcome::Failed(failure("whatever"));
    let runs = read(HEADER.to_owned() + &line(&row));
    let run = runs[0].as_ref().unwrap();
    assert_eq!((run.kind, run.server, run.tor.as_deref()), (Kind::Upload, ServerKind::SingleOnion, Some("a tor")));
    assert_eq!((run.experiment.as_deref(), &run.id), (Some("small"), &Some(row.measurement.id)));
    assert_eq!(run.outcome, Outcome::Failed(failure("RESPONSE/SOCKS_REPLY/F2")));
    assert!(run.did_time_out);
}

/// Reading stops where the input can't be read.
#[test]
fn an_input_that_breaks_off_is_told_once() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("gone"))
        }
    }
    let begin = format!("@type torperf 1.1\n{GOOD}\n");
    let input = std::io::BufReader::new(std::io::Read::chain(begin.as_bytes(), Broken));
    let read: Vec<_> = Reader::new(input).collect();
    assert_eq!(read.len(), 2);
    let told = read[1].as_ref().unwrap_err();
    assert_eq!((&told.site, told.rule), (&Site::Line(3), Rule::Unreadable));
    assert!(told.to_string().ends_with("gone"), "{told}");
}

proptest! {
    #[test]
    fn what_perfd_writes_comes_out_as_it_was(row in plausible_row()) {
        let written = line(&row);
        let run = run(written.trim_end_matches('\n')).map_err(|(_, why)| TestCaseError::fail(why))?;
        prop_assert_eq!(again(&run) + &format!(" REVISION={}\n", row.revision), written);
    }

    #[test]
    fn anything_is_read_without_a_panic(bytes in any::<Vec<u8>>(), text in "([A-Z0-9=. \n$:,@-]|START=|DATAPERC){0,300}") {
        read(&bytes);
        read(&text);
        read([b"@type torperf 1.1\n", &bytes[..], b"\n", text.as_bytes()].concat());
        let spoilt = GOOD.replace("START=1.5", &text);
        read(format!("@type torperf 1.1\n{spoilt}\n"));
    }
}

#[test]
fn runs_of_which_nothing_is_known_come_out_as_they_were() {
    let mut row = example_row();
    row.circuit = Some(example_circuit());
    row.measurement.steps = Steps::default();
    row.measurement.local = Some("[2001:db8::1]:4".parse().unwrap());
    row.measurement.outcome = Outcome::Timeout(Phase::Socket);
    row.measurement.remote_host = Some("abc.onion".to_owned());
    let written = line(&row);
    let run = run(written.trim_end()).unwrap();
    assert_eq!(format!("{} REVISION=7\n", again(&run)), written);
    assert_eq!((run.server, run.local_port, run.ended), (ServerKind::Onion, Some(4), 0));
}
