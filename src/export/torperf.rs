//! Torperf's key=value format, `@type torperf 1.1`, as Tor Metrics' tools read it
//! (<https://metrics.torproject.org/collector.html#type-torperf>).
//!
//! Its readers are strict: one bad line spoils a whole file. So a value never holds a space, `=` or a
//! control character and is never empty: such characters are percent-escaped, and nothing is `-`.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::circuit::{Circuit, CircuitData, CircuitState};
use crate::measurement::{Imported, Kind, Measurement, Outcome, PARTIALS, Phase, Place, ResultRow, ServerKind};

/// What stands once before any number of lines. A file that holds nothing else is valid.
pub const HEADER: &str = "@type torperf 1.1\n";

/// One result as a line, its line end included.
///
/// Times are seconds since the epoch with six decimals, `0.0` where a step was not reached; a moment
/// at or before the epoch (a clock that was never set) is written as one millisecond after it, since
/// negative times are rejected and zero means "not reached". Sizes are bytes; what exceeds an int32 is
/// written as the largest one. DIDTIMEOUT is 1 for a timeout, and for any failure that has no
/// DATACOMPLETE: Tor Metrics would otherwise count it neither as timeout nor as failure.
///
/// What tor told of the circuit is there where it is known and fits the format: PATH only if every hop has
/// a fingerprint, BUILDTIMES only if the time of every hop is known, numbers only within an int32.
/// Keys of our own say in what a run differs from a plain download by exit, and are absent otherwise.
///
/// An imported result is written with what its own line said, and no more.
pub fn line(row: &ResultRow) -> String {
    let mut text = String::with_capacity(1200);
    let mut line = Line::of(&mut text);
    line.put_row(row);
    line.put_number("REVISION", row.revision);
    text.push('\n');
    text
}

/// The same without the revision: a line of a file that never changes again.
pub fn line_for_ever(row: &ResultRow) -> String {
    let mut text = String::with_capacity(1200);
    put_line_for_ever(&mut text, row);
    text
}

/// Appends that to `text`, in which many may be written one after the other.
pub fn put_line_for_ever(text: &mut String, row: &ResultRow) {
    Line::of(text).put_row(row);
    text.push('\n');
}

/// The keys of the tenths of the payload.
const DATAPERC: [&str; 11] = [
    "DATAPERC0",
    "DATAPERC10",
    "DATAPERC20",
    "DATAPERC30",
    "DATAPERC40",
    "DATAPERC50",
    "DATAPERC60",
    "DATAPERC70",
    "DATAPERC80",
    "DATAPERC90",
    "DATAPERC100",
];

/// The keys of [`PARTIALS`].
const PARTIAL: [&str; PARTIALS.len()] = [
    "PARTIAL10240",
    "PARTIAL20480",
    "PARTIAL51200",
    "PARTIAL102400",
    "PARTIAL204800",
    "PARTIAL512000",
    "PARTIAL1048576",
    "PARTIAL2097152",
    "PARTIAL5242880",
];

/// A result of perfd's own, but for its revision.
fn put_measured(line: &mut Line<'_>, row: &ResultRow) {
    let run = &row.measurement;
    put_core(line, row, run.did_time_out());
    for (key, at) in DATAPERC.into_iter().zip(run.steps.deciles) {
        line.put_step(key, run, at);
    }
    let within = PARTIALS.iter().filter(|bytes| **bytes <= run.size).count();
    for (key, at) in PARTIAL.into_iter().zip(run.steps.partials).take(within) {
        line.put_step(key, run, at);
    }
    if let Some(local) = run.local {
        line.put_near("ENDPOINTLOCAL", local);
    }
    if let Some(proxy) = run.proxy {
        line.put_near("ENDPOINTPROXY", proxy);
    }
    let remote = run.remote_host.as_ref().zip(run.remote_port);
    line.put_some("ENDPOINTREMOTE", remote.map(|(host, port)| remote_endpoint(host, port)));
    if let Some(code) = error_code(&run.outcome) {
        line.put("ERRORCODE", &code);
    }
    if let Some(data) = &row.circuit {
        put_circuit(line, run, data);
    }
    // Keys of our own, which readers of the format keep as they are.
    put_differences(line, row);
    line.put_text("EXPERIMENT", &row.experiment);
    line.put("RUN_ID", run.id.as_str());
}

/// The keys that every line has, and DIDTIMEOUT.
fn put_core(line: &mut Line<'_>, row: &ResultRow, did_time_out: bool) {
    let run = &row.measurement;
    line.put_text("SOURCE", &row.source);
    line.put_number("FILESIZE", cut(run.size));
    line.put_moment("START", run.start.0);
    for (phase, at) in run.steps.in_order() {
        line.put_step(step_name(phase), run, at);
    }
    line.put_number("WRITEBYTES", cut(run.written));
    line.put_number("READBYTES", cut(run.read));
    line.put("DIDTIMEOUT", if did_time_out { "1" } else { "0" });
}

/// What the line of an imported result said: a line that perfd wrote comes out as it was.
fn put_imported(line: &mut Line<'_>, row: &ResultRow, imported: &Imported) {
    let run = &row.measurement;
    put_core(line, row, imported.did_time_out);
    let tenths = || DATAPERC.into_iter().zip(run.steps.deciles);
    let marks = || PARTIAL.into_iter().zip(run.steps.partials);
    // Steps that were not reached, or have other numbers than ours, are rare.
    let others = |key: &str| imported.extra.iter().any(|(name, _)| name.starts_with(key));
    if others("DATAPERC") {
        let deciles = run.steps.deciles.iter().enumerate().map(|(tenth, at)| (tenth as u64 * 10, *at));
        put_numbered(line, run, imported, "DATAPERC", deciles);
    } else {
        tenths().filter(|(_, at)| at.is_some()).for_each(|(key, at)| line.put_step(key, run, at));
    }
    if others("PARTIAL") {
        put_numbered(line, run, imported, "PARTIAL", PARTIALS.into_iter().zip(run.steps.partials));
    } else {
        marks().filter(|(_, at)| at.is_some()).for_each(|(key, at)| line.put_step(key, run, at));
    }
    for (key, value) in &imported.extra {
        if numbered(key, "DATAPERC").or_else(|| numbered(key, "PARTIAL")).is_none() {
            line.put(key, value);
        }
    }
    if imported.names_experiment {
        line.put_text("EXPERIMENT", &row.experiment);
    }
    if imported.names_run {
        line.put("RUN_ID", run.id.as_str());
    }
}

/// Steps that have a number, by it: those that were reached, and what the line said of others.
fn put_numbered(
    line: &mut Line<'_>,
    run: &Measurement,
    imported: &Imported,
    key: &str,
    reached: impl Iterator<Item = (u64, Option<u64>)>,
) {
    let reached = reached.filter_map(|(number, at)| Some((number, step(run, Some(at?)))));
    let said = imported.extra.iter().filter_map(|(name, value)| Some((numbered(name, key)?, value.clone())));
    let mut steps: Vec<(u64, String)> = reached.chain(said).collect();
    steps.sort_by_key(|(number, _)| *number);
    steps.dedup_by_key(|(number, _)| *number);
    for (number, value) in steps {
        line.put(&format!("{key}{number}"), &value);
    }
}

/// The number of a key that is `key` and a number.
fn numbered(name: &str, key: &str) -> Option<u64> {
    let digits =
        name.strip_prefix(key).filter(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

/// What tor told of the circuit and of the run's stream, under Torperf's names.
fn put_circuit(line: &mut Line<'_>, run: &Measurement, data: &CircuitData) {
    let circuit = data.circuit.as_ref();
    line.put_some("LAUNCH", circuit.and_then(|circuit| circuit.launched_us).map(|at| signed(run, at)));
    line.put_some("USED_AT", data.used_at_us().map(|at| signed(run, at)));
    line.put_some("PATH", circuit.and_then(Circuit::path_text));
    line.put_some("BUILDTIMES", circuit.and_then(build_times));
    let timeout = data.build_timeout.as_ref();
    line.put_some("TIMEOUT", timeout.and_then(|timeout| within_int32(timeout.timeout_ms)));
    line.put_some("QUANTILE", timeout.and_then(|timeout| timeout.quantile).and_then(double));
    line.put_some("CIRC_ID", circuit.and_then(|circuit| within_int32(circuit.id)));
    line.put_some("USED_BY", data.stream_id.and_then(within_int32));
}

/// In what the run differs from a plain download by exit whose circuit is known.
fn put_differences(line: &mut Line<'_>, row: &ResultRow) {
    let run = &row.measurement;
    if run.kind != Kind::Download {
        line.put("KIND", run.kind.as_str());
    }
    if row.server != ServerKind::Exit {
        line.put("SERVER", row.server.as_str());
    }
    if run.optimistic {
        line.put("OPTIMISTIC", "1");
    }
    if row.place != Place::ALONE {
        line.put("TOR", &text(&row.tor));
        line.put("PLACE", &format!("{}/{}", row.place.index, row.place.of));
    }
    if let Some(server) = &run.server {
        line.put("SERVERREQUEST", &signed(run, server.request));
        for (tenth, at) in server.deciles.iter().enumerate() {
            let at = at.map_or("0.0".to_owned(), |at| signed(run, at));
            line.put(&format!("SERVERPERC{}", tenth * 10), &at);
        }
    }
    if let Some(state) = row.circuit.as_ref().map(|data| data.state).filter(|state| *state != CircuitState::Known) {
        line.put("CIRCUIT", state.as_str());
    }
}

/// Seconds after the circuit's launch at which each of its hops was reached.
fn build_times(circuit: &Circuit) -> Option<String> {
    let seconds = |micros: u64| format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let times: Option<Vec<String>> = circuit.path.iter().map(|hop| hop.built_after_us.map(seconds)).collect();
    times.filter(|times| !times.is_empty()).map(|times| times.join(","))
}

/// A line that is being written, at the end of a text.
struct Line<'a> {
    text: &'a mut String,
    begin: usize,
}

impl<'a> Line<'a> {
    fn of(text: &'a mut String) -> Self {
        let begin = text.len();
        Line { text, begin }
    }

    /// All but the revision.
    fn put_row(&mut self, row: &ResultRow) {
        match &row.imported {
            Some(imported) => put_imported(self, row, imported),
            None => put_measured(self, row),
        }
    }

    fn key(&mut self, key: &str) {
        if self.text.len() > self.begin {
            self.text.push(' ');
        }
        self.text.push_str(key);
        self.text.push('=');
    }

    fn put(&mut self, key: &str, value: &str) {
        self.key(key);
        self.text.push_str(value);
    }

    fn put_some(&mut self, key: &str, value: Option<String>) {
        if let Some(value) = value {
            self.put(key, &value);
        }
    }

    fn put_text(&mut self, key: &str, raw: &str) {
        self.key(key);
        let plain =
            !raw.is_empty() && raw.bytes().all(|byte| matches!(byte, b'!'..=b'~') && !matches!(byte, b'=' | b'%'));
        if plain { self.text.push_str(raw) } else { self.text.push_str(&text(raw)) }
    }

    fn put_number(&mut self, key: &str, number: impl itoa::Integer) {
        self.key(key);
        self.text.push_str(itoa::Buffer::new().format(number));
    }

    fn put_step(&mut self, key: &str, run: &Measurement, at: Option<u64>) {
        match at {
            Some(after) => self.put_moment(key, run.start.0.saturating_add_unsigned(after)),
            None => self.put(key, "0.0"),
        }
    }

    /// As [`moment`] says it.
    fn put_moment(&mut self, key: &str, micros: i64) {
        self.key(key);
        push_moment(self.text, micros);
    }

    /// As [`near_endpoint`] says it.
    fn put_near(&mut self, key: &str, address: SocketAddr) {
        match address.ip() {
            IpAddr::V4(ip) if ip == Ipv4Addr::LOCALHOST => {
                self.put(key, "localhost:127.0.0.1:");
                self.text.push_str(itoa::Buffer::new().format(address.port()));
            }
            _ => self.put(key, &near_endpoint(address)),
        }
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

/// A moment that may lie before START.
fn signed(run: &Measurement, at: i64) -> String {
    moment(run.start.0.saturating_add(at))
}

/// Microseconds since the epoch as seconds, at least the millisecond to which readers cut.
fn moment(micros: i64) -> String {
    let mut text = String::new();
    push_moment(&mut text, micros);
    text
}

fn push_moment(text: &mut String, micros: i64) {
    let micros = micros.max(1_000);
    text.push_str(itoa::Buffer::new().format(micros / 1_000_000));
    text.push('.');
    // With a digit before them, which is left out, all six are written.
    text.push_str(itoa::Buffer::new().format(1_000_000 + micros % 1_000_000).get(1..).unwrap_or_default());
}

pub(super) fn int32(value: u64) -> String {
    cut(value).to_string()
}

fn cut(value: u64) -> u64 {
    value.min(i32::MAX as u64)
}

/// What is no int32 is left out: a cut number would be another circuit's.
pub(super) fn within_int32(value: u64) -> Option<String> {
    i32::try_from(value).ok().map(|value| value.to_string())
}

/// A number as a decimal fraction, never in scientific notation.
pub(super) fn double(value: f64) -> Option<String> {
    let digits = value.is_finite().then(|| value.to_string())?;
    Some(if digits.contains('.') { digits } else { digits + ".0" })
}

/// `TIMEOUT/RESPONSE`, `CONNECT/REFUSED`, `RESPONSE/SOCKS_REPLY/F2`, `DATARESPONSE/HTTP_STATUS/503`.
pub(super) fn error_code(outcome: &Outcome) -> Option<String> {
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
pub(super) fn near_endpoint(address: SocketAddr) -> String {
    let (ip, port) = (address.ip(), address.port());
    if ip.is_loopback() { format!("localhost:{ip}:{port}") } else { format!("{ip}:{ip}:{port}") }
}

/// `host:ip:port` of the server. Its name is resolved beyond Tor, so its address is not known here.
pub(super) fn remote_endpoint(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(ip) => format!("{ip}:{ip}:{port}"),
        Err(_) => format!("{}:0.0.0.0:{port}", text(host).replace(':', "%3A")),
    }
}

/// A text as a value: printable ASCII without `=` and `%`, all else percent-escaped.
pub(super) fn text(raw: &str) -> String {
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

    use super::*;
    use crate::clock::UnixMicros;
    use crate::import::torperf;
    use crate::measurement::ServerSide;
    use crate::measurement::{Cause, Failure};
    use crate::test_support::circuit::example_circuit;
    use crate::test_support::{example_row, plausible_row};

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
    fn what_tor_told_stands_before_our_own_keys() {
        let plain = line(&example_row());
        let mut row = example_row();
        row.circuit = Some(example_circuit());
        let with_circuit = line(&row);
        let (one, two, three) = ("1".repeat(40), "2".repeat(40), "3".repeat(40));
        let told = format!(
            " LAUNCH=1795341587.600000 USED_AT=1795341601.500300 PATH=${one},${two},${three} \
             BUILDTIMES=0.120000,0.230000,0.340000 TIMEOUT=1500 QUANTILE=0.8 CIRC_ID=17 USED_BY=24 EXPERIMENT="
        );
        assert_eq!(with_circuit, plain.replace(" EXPERIMENT=", &told));

        let data = row.circuit.as_mut().unwrap();
        data.state = CircuitState::TorLost;
        data.stream.pop();
        data.stream_id = Some(1 << 31);
        data.build_timeout.as_mut().unwrap().quantile = Some(1.0);
        let circuit = data.circuit.as_mut().unwrap();
        circuit.path[1].relay.fingerprint = "x".repeat(40);
        circuit.path[2].built_after_us = None;
        circuit.launched_us = None;
        let expected = " TIMEOUT=1500 QUANTILE=1.0 CIRC_ID=17 CIRCUIT=tor_lost EXPERIMENT=";
        assert_eq!(line(&row), plain.replace(" EXPERIMENT=", expected));
    }

    #[test]
    fn keys_of_our_own_say_what_is_not_plain() {
        let plain = line(&example_row());
        let mut row = example_row();
        (row.server, row.place, row.tor) = (ServerKind::SingleOnion, Place { index: 1, of: 4 }, "a b".to_owned());
        row.measurement.kind = Kind::Upload;
        row.measurement.optimistic = true;
        let deciles = std::array::from_fn(|tenth| (tenth < 2).then_some(tenth as i64 * 1_000_000 - 500_000));
        row.measurement.server = Some(ServerSide { request: -600_000, deciles });
        let zeros: Vec<_> = (2..=10).map(|tenth| format!("SERVERPERC{}=0.0", tenth * 10)).collect();
        let differences = format!(
            " KIND=upload SERVER=single_onion OPTIMISTIC=1 TOR=a%20b PLACE=1/4 SERVERREQUEST=1795341599.400000 \
             SERVERPERC0=1795341599.500000 SERVERPERC10=1795341600.500000 {} EXPERIMENT=",
            zeros.join(" ")
        );
        assert_eq!(line(&row), plain.replace(" EXPERIMENT=", &differences));
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
        row.measurement.remote_host = Some("x y:z".to_owned());
        row.measurement.proxy = Some("[2001:db8::1]:9050".parse().unwrap());
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
        fn the_strict_reader_reads_what_was_written(rows in prop::collection::vec(plausible_row(), 0..3)) {
            let file = rows.iter().fold(HEADER.to_owned(), |file, row| file + &line(row));
            let read: Result<Vec<_>, _> = torperf::Reader::new(file.as_bytes()).collect();
            let read = read.map_err(|violation| TestCaseError::fail(violation.to_string()))?;
            prop_assert_eq!(read.len(), rows.len());
            for (read, row) in read.iter().zip(&rows) {
                let run = &row.measurement;
                let micros = |at: u64| (i128::from(run.start.0) + i128::from(at)).max(1_000);
                prop_assert_eq!(i128::from(read.start.0), micros(0));
                let same = |read_at: Option<u64>, at: Option<u64>| {
                    read_at.map(|at| i128::from(read.start.0) + i128::from(at)) == at.map(micros)
                };
                for ((phase, read_at), (_, at)) in read.steps.in_order().into_iter().zip(run.steps.in_order()) {
                    prop_assert!(same(read_at, at), "{:?}", phase);
                }
                for (read_at, at) in read.steps.deciles.iter().zip(run.steps.deciles) {
                    prop_assert!(same(*read_at, at));
                }
                for ((bytes, read_at), at) in PARTIALS.iter().zip(read.steps.partials).zip(run.steps.partials) {
                    prop_assert!(same(read_at, at.filter(|_| *bytes <= run.size)));
                }
                let cut = |value: u64| value.min(2_147_483_647);
                prop_assert_eq!(read.size, cut(run.size));
                prop_assert_eq!(read.written, cut(run.written));
                prop_assert_eq!(read.read, cut(run.read));
                let timed_out = matches!(run.outcome, Outcome::Timeout(_));
                let nothing_said = run.outcome.failure().is_some() && run.steps.data_complete.is_none();
                prop_assert_eq!(read.did_time_out, timed_out || nothing_said);
                prop_assert_eq!(read.local_port, run.local.map(|local| local.port()));
                prop_assert_eq!((read.kind, &read.id), (run.kind, &Some(run.id.clone())));
                let unescaped = |name: &str| if name.is_empty() { "-".to_owned() } else { name.to_owned() };
                prop_assert_eq!(&read.source, &unescaped(&row.source));
                prop_assert_eq!(read.experiment.as_deref(), Some(&*unescaped(&row.experiment)));

                let said = |key: &str| read.extra.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
                prop_assert_eq!(said("ERRORCODE").is_some(), run.outcome != Outcome::Complete);
                let data = row.circuit.as_ref();
                let circuit = data.and_then(|data| data.circuit.as_ref());
                let signed = |at: i64| run.start.0.saturating_add(at).max(1_000);
                let moment = |key| said(key).map(|at| at.replace('.', "").parse::<i64>().unwrap());
                prop_assert_eq!(moment("LAUNCH"), circuit.and_then(|circuit| circuit.launched_us).map(signed));
                prop_assert_eq!(moment("USED_AT"), data.and_then(CircuitData::used_at_us).map(signed));
                let int32 = |value: u64| Some(value).filter(|value| *value <= 2_147_483_647);
                let number = |key| said(key).map(|number| number.parse::<u64>().unwrap());
                prop_assert_eq!(number("CIRC_ID"), circuit.and_then(|circuit| int32(circuit.id)));
                prop_assert_eq!(number("USED_BY"), data.and_then(|data| data.stream_id).and_then(int32));
                let timeout = data.and_then(|data| data.build_timeout.as_ref());
                prop_assert_eq!(number("TIMEOUT"), timeout.and_then(|timeout| int32(timeout.timeout_ms)));
                let quantile = said("QUANTILE").map(|quantile| quantile.parse::<f64>().unwrap());
                prop_assert_eq!(quantile, timeout.and_then(|timeout| timeout.quantile));
                let hops = circuit.map_or(&[][..], |circuit| &circuit.path);
                if let Some(path) = said("PATH") {
                    let named: Vec<_> = hops.iter().map(|hop| format!("${}", hop.relay.fingerprint)).collect();
                    prop_assert_eq!(path, named.join(","));
                }
                let timed = !hops.is_empty() && hops.iter().all(|hop| hop.built_after_us.is_some());
                let build_times = said("BUILDTIMES").map_or(0, |times| times.split(',').count());
                prop_assert_eq!(build_times, if timed { hops.len() } else { 0 });
            }
        }
    }
}
