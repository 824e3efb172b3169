//! Torperf's key=value format, `@type torperf 1.1`, as Tor Metrics' tools read it
//! (<https://metrics.torproject.org/collector.html#type-torperf>).
//!
//! Its readers are strict: one bad line spoils a whole file. So a value never holds a space, `=` or a
//! control character and is never empty: such characters are percent-escaped, and nothing is `-`.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::measurement::{Measurement, Outcome, PARTIALS, Phase, ResultRow};

/// What stands once before any number of lines. A file that holds nothing else is valid.
pub const HEADER: &str = "@type torperf 1.1\n";

/// One result as a line, its line end included.
///
/// Times are seconds since the epoch with six decimals, `0.0` where a step was not reached; a moment
/// at or before the epoch (a clock that was never set) is written as one millisecond after it, since
/// negative times are rejected and zero means "not reached". Sizes are bytes; what exceeds an int32 is
/// written as the largest one. DIDTIMEOUT is 1 for a timeout, and for any failure that has no
/// DATACOMPLETE: Tor Metrics would otherwise count it neither as timeout nor as failure.
pub fn line(row: &ResultRow) -> String {
    let run = &row.measurement;
    let mut line = Line(String::with_capacity(1024));
    line.put("SOURCE", &text(&row.source));
    line.put("FILESIZE", &int32(run.size));
    line.put("START", &moment(run.start.0));
    for (phase, at) in run.steps.in_order() {
        line.put(step_name(phase), &step(run, at));
    }
    line.put("WRITEBYTES", &int32(run.written));
    line.put("READBYTES", &int32(run.read));
    line.put("DIDTIMEOUT", if did_time_out(run) { "1" } else { "0" });
    for (tenth, at) in run.steps.deciles.iter().enumerate() {
        line.put(&format!("DATAPERC{}", tenth * 10), &step(run, *at));
    }
    for (bytes, at) in PARTIALS.iter().zip(run.steps.partials).filter(|(bytes, _)| **bytes <= run.size) {
        line.put(&format!("PARTIAL{bytes}"), &step(run, at));
    }
    if let Some(local) = run.local {
        line.put("ENDPOINTLOCAL", &near_endpoint(local));
    }
    line.put("ENDPOINTPROXY", &near_endpoint(run.proxy));
    line.put("ENDPOINTREMOTE", &remote_endpoint(&run.remote_host, run.remote_port));
    if let Some(code) = error_code(&run.outcome) {
        line.put("ERRORCODE", &code);
    }
    // Keys of our own, which readers of the format keep as they are.
    line.put("EXPERIMENT", &text(&row.experiment));
    line.put("RUN_ID", run.id.as_str());
    line.put("REVISION", &row.revision.to_string());
    line.0.push('\n');
    line.0
}

struct Line(String);

impl Line {
    fn put(&mut self, key: &str, value: &str) {
        let space = if self.0.is_empty() { "" } else { " " };
        // Writing to a String does not fail.
        let _ = write!(self.0, "{space}{key}={value}");
    }
}

/// Torperf's name of a step, which ERRORCODE uses for the step that was waited for.
fn step_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Socket => "SOCKET",
        Phase::Connect => "CONNECT",
        Phase::Negotiate => "NEGOTIATE",
        Phase::Request => "REQUEST",
        Phase::Response => "RESPONSE",
        Phase::DataRequest => "DATAREQUEST",
        Phase::DataResponse => "DATARESPONSE",
        Phase::DataComplete => "DATACOMPLETE",
    }
}

fn step(run: &Measurement, at: Option<u64>) -> String {
    match at {
        Some(after) => moment(run.start.0.saturating_add_unsigned(after)),
        None => "0.0".to_owned(),
    }
}

/// Microseconds since the epoch as seconds, at least the millisecond to which readers cut.
fn moment(micros: i64) -> String {
    let micros = micros.max(1_000);
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn int32(value: u64) -> String {
    value.min(i32::MAX as u64).to_string()
}

fn did_time_out(run: &Measurement) -> bool {
    match run.outcome {
        Outcome::Complete => false,
        Outcome::Timeout(_) => true,
        Outcome::Failed(_) => run.steps.data_complete.is_none(),
    }
}

/// `TIMEOUT/RESPONSE`, `CONNECT/REFUSED`, `RESPONSE/SOCKS_REPLY/F2`, `DATARESPONSE/HTTP_STATUS/503`.
fn error_code(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Complete => None,
        Outcome::Timeout(phase) => Some(format!("TIMEOUT/{}", step_name(*phase))),
        Outcome::Failed(failure) => {
            let mut code = format!("{}/{}", step_name(failure.phase), failure.cause.as_str().to_ascii_uppercase());
            if let Some(socks) = failure.socks_code {
                let _ = write!(code, "/{socks:02X}");
            }
            if let Some(status) = failure.http_status {
                let _ = write!(code, "/{status}");
            }
            Some(code)
        }
    }
}

/// `host:ip:port` of our end or the proxy's; names are not looked up, so a host is its address.
fn near_endpoint(address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    if ip.is_loopback() { format!("localhost:{ip}:{port}") } else { format!("{ip}:{ip}:{port}") }
}

/// `host:ip:port` of the server. Its name is resolved beyond Tor, so its address is not known here.
fn remote_endpoint(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) => format!("{ip}:{ip}:{port}"),
        Err(_) => format!("{}:0.0.0.0:{port}", text(host).replace(':', "%3A")),
    }
}

/// A text as a value: printable ASCII without `=` and `%`, all else percent-escaped.
fn text(raw: &str) -> String {
    let mut value = String::with_capacity(raw.len());
    for byte in raw.bytes() {
        match byte {
            b'=' | b'%' => {
                let _ = write!(value, "%{byte:02X}");
            }
            b'!'..=b'~' => value.push(char::from(byte)),
            _ => {
                let _ = write!(value, "%{byte:02X}");
            }
        }
    }
    if value.is_empty() { "-".to_owned() } else { value }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::torperf_reader::read;
    use super::*;
    use crate::clock::UnixMicros;
    use crate::measurement::{Cause, Failure};
    use crate::test_support::{example_row, result_row};

    #[test]
    fn a_complete_run_is_written_in_torperfs_order() {
        let mut row = example_row();
        row.measurement.size = 10_240;
        assert_eq!(
            line(&row),
            "SOURCE=op-test FILESIZE=10240 START=1795341600.000000 SOCKET=1795341600.000010 \
             CONNECT=1795341600.000200 NEGOTIATE=1795341600.000400 REQUEST=1795341600.000500 \
             RESPONSE=1795341600.400000 DATAREQUEST=1795341600.400100 DATARESPONSE=1795341600.700000 \
             DATACOMPLETE=1795341601.500000 WRITEBYTES=84 READBYTES=51466 DIDTIMEOUT=0 \
             DATAPERC0=1795341600.700100 DATAPERC10=1795341600.800100 DATAPERC20=1795341600.900100 \
             DATAPERC30=1795341601.000100 DATAPERC40=1795341601.100100 DATAPERC50=1795341601.200100 \
             DATAPERC60=1795341601.300100 DATAPERC70=1795341601.400100 DATAPERC80=1795341601.500000 \
             DATAPERC90=1795341601.500000 DATAPERC100=1795341601.500000 PARTIAL10240=1795341600.900000 \
             ENDPOINTLOCAL=localhost:127.0.0.1:40000 ENDPOINTPROXY=localhost:127.0.0.1:9050 \
             ENDPOINTREMOTE=example.org:0.0.0.0:8080 EXPERIMENT=small \
             RUN_ID=00000000000000000000000000000001 REVISION=7\n"
        );
    }

    #[test]
    fn failures_say_where_and_why() {
        let failed = |phase, cause, socks_code, http_status| {
            Outcome::Failed(Failure { phase, cause, socks_code, http_status, detail: "a detail".to_owned() })
        };
        for (outcome, code) in [
            (Outcome::Timeout(Phase::Response), "TIMEOUT/RESPONSE"),
            (failed(Phase::Connect, Cause::Refused, None, None), "CONNECT/REFUSED"),
            (failed(Phase::Response, Cause::SocksReply, Some(0xf2), None), "RESPONSE/SOCKS_REPLY/F2"),
            (failed(Phase::Response, Cause::SocksReply, Some(1), None), "RESPONSE/SOCKS_REPLY/01"),
            (failed(Phase::DataResponse, Cause::HttpStatus, None, Some(503)), "DATARESPONSE/HTTP_STATUS/503"),
        ] {
            let mut row = example_row();
            row.measurement.outcome = outcome;
            row.measurement.steps.data_complete = None;
            let line = line(&row);
            assert!(line.contains(&format!(" ERRORCODE={code} ")), "{line}");
            assert!(line.contains(" DATACOMPLETE=0.0 ") && line.contains(" DIDTIMEOUT=1 "), "{line}");
        }
    }

    #[test]
    fn hostile_names_and_strange_numbers_stay_within_the_format() {
        let mut row = example_row();
        row.source = String::new();
        row.experiment = "a b=c%\nd".to_owned();
        row.measurement.remote_host = "x y:z".to_owned();
        row.measurement.proxy = "[2001:db8::1]:9050".parse().unwrap();
        row.measurement.start = UnixMicros(-5_000_000);
        row.measurement.size = u64::MAX;
        row.measurement.local = None;
        let line = line(&row);
        assert!(line.starts_with("SOURCE=- FILESIZE=2147483647 START=0.001000 SOCKET=0.001000 "), "{line}");
        assert!(line.contains(" EXPERIMENT=a%20b%3Dc%25%0Ad "), "{line}");
        assert!(line.contains(" ENDPOINTREMOTE=x%20y%3Az:0.0.0.0:8080 "), "{line}");
        assert!(line.contains(" ENDPOINTPROXY=2001:db8::1:2001:db8::1:9050 "), "{line}");
        assert!(!line.contains("ENDPOINTLOCAL"), "{line}");
    }

    proptest! {
        #[test]
        fn the_strict_reader_reads_what_was_written(rows in prop::collection::vec(result_row(), 0..3)) {
            let file = rows.iter().fold(HEADER.to_owned(), |file, row| file + &line(row));
            let read = read(&file).map_err(TestCaseError::fail)?;
            prop_assert_eq!(read.len(), rows.len());
            for (line, row) in read.iter().zip(&rows) {
                let run = &row.measurement;
                let millis = |at: Option<u64>| {
                    at.map_or(0, |at| (i128::from(run.start.0) + i128::from(at)).clamp(1_000, i64::MAX.into()) / 1_000)
                };
                prop_assert_eq!(line.millis["START"], millis(Some(0)));
                for (phase, at) in run.steps.in_order() {
                    prop_assert_eq!(line.millis[step_name(phase)], millis(at));
                }
                for (tenth, at) in run.steps.deciles.iter().enumerate() {
                    prop_assert_eq!(line.millis[&format!("DATAPERC{}", tenth * 10)], millis(*at));
                }
                for (bytes, at) in PARTIALS.iter().zip(run.steps.partials) {
                    let read = line.millis.get(&format!("PARTIAL{bytes}")).copied();
                    prop_assert_eq!(read, (*bytes <= run.size).then(|| millis(at)));
                }
                let cut = |value: u64| value.min(2_147_483_647);
                prop_assert_eq!(line.numbers["FILESIZE"], cut(run.size));
                prop_assert_eq!(line.numbers["WRITEBYTES"], cut(run.written));
                prop_assert_eq!(line.numbers["READBYTES"], cut(run.read));
                let timed_out = matches!(run.outcome, Outcome::Timeout(_));
                let nothing_said = run.outcome.failure().is_some() && run.steps.data_complete.is_none();
                prop_assert_eq!(line.numbers["DIDTIMEOUT"] == 1, timed_out || nothing_said);
                prop_assert_eq!(line.texts.contains_key("ERRORCODE"), run.outcome != Outcome::Complete);
                prop_assert_eq!(line.texts.contains_key("ENDPOINTLOCAL"), run.local.is_some());
                prop_assert_eq!(&line.texts["RUN_ID"], run.id.as_str());
                prop_assert_eq!(&line.texts["REVISION"], &row.revision.to_string());
            }
        }
    }
}
