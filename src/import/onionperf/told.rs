//! What a document tells of one download, whichever version tells it, and the run that this makes.

use super::document::{Circuit, TorStream};
use super::document::{Elapsed, Entries, OwnWords, Seconds, StreamInfo, TgenStream, TimeInfo, Transfer, TransportInfo};
use super::{Path, Source};
use crate::clock::UnixMicros;
use crate::import::outcome::{Signs, outcome};
use crate::import::rule::{Rule, Violation, quoted};
use crate::import::text::{endpoint_port, int32, is_onion, is_path};
use crate::import::{ImportedRun, LONGEST_RUN};
use crate::measurement::{Kind, PARTIALS, RunId, ServerKind, Steps};

/// A download and a stream of tor that ended further apart are none, seconds.
const NEAR: f64 = 150.0;

/// One download.
pub(super) struct Told {
    pub(super) path: Path,
    size: Result<u64, Violation>,
    read: Result<u64, Violation>,
    written: Result<u64, Violation>,
    /// Local, proxy, remote.
    endpoints: [(Path, Option<String>); 3],
    /// Local, remote.
    names: [(Path, Option<String>); 2],
    start: (Path, Option<f64>),
    end: (Path, Option<f64>),
    /// Microseconds after START, in the order of [`Steps::in_order`].
    steps: Result<[Option<u64>; 8], Violation>,
    marks: Marks,
    /// What TGen says of an error, where there was one.
    error: Option<String>,
    lacks_first_byte: bool,
    own: Option<OwnWords>,
}

/// Seconds after START, by bytes and by fractions of the payload.
struct Marks {
    bytes: (Path, Entries<f64>),
    progress: (Path, Entries<f64>),
}

impl Told {
    /// By versions 1.0 and 2.0. In a transfer that failed, they say `0.0` for what was not reached.
    pub(super) fn by_transfer(path: Path, transfer: Transfer) -> Self {
        let is_error = transfer.is_error == Some(true);
        let number = |key: &str, value: Option<u64>, missing: Option<u64>| {
            let path = path.key(key);
            let value = value.or(missing).ok_or_else(|| path.violation(Rule::Missing, "it must be there"))?;
            within_int32(&path, value)
        };
        let mut elapsed = transfer.elapsed_seconds.unwrap_or_default();
        let at = path.key("elapsed_seconds");
        let marks = Marks {
            bytes: (at.key("payload_bytes"), elapsed.payload_bytes.take().unwrap_or_default()),
            progress: (at.key("payload_progress"), elapsed.payload_progress.take().unwrap_or_default()),
        };
        Told {
            size: number("filesize_bytes", transfer.filesize_bytes, None),
            read: number("total_bytes_read", transfer.total_bytes_read, Some(0)),
            written: number("total_bytes_write", transfer.total_bytes_write, Some(0)),
            endpoints: [
                (path.key("endpoint_local"), transfer.endpoint_local),
                (path.key("endpoint_proxy"), transfer.endpoint_proxy),
                (path.key("endpoint_remote"), transfer.endpoint_remote),
            ],
            names: [
                (path.key("hostname_local"), transfer.hostname_local),
                (path.key("hostname_remote"), transfer.hostname_remote),
            ],
            start: (path.key("unix_ts_start"), transfer.unix_ts_start),
            end: (path.key("unix_ts_end"), transfer.unix_ts_end),
            steps: steps_of_transfer(&at, &elapsed, is_error),
            marks,
            error: is_error.then(|| transfer.error_code.unwrap_or_default()),
            lacks_first_byte: false,
            own: None,
            path,
        }
    }

    /// By version 3.
    pub(super) fn by_stream(path: Path, stream: TgenStream) -> Self {
        let (recv, send) = stream.byte_info.map_or((None, None), |info| (info.total_bytes_recv, info.total_bytes_send));
        let bytes = path.key("byte_info");
        let info = stream.stream_info.unwrap_or(StreamInfo { error: None, name: None, peername: None, recvsize: None });
        let at_info = path.key("stream_info");
        let transport = stream.transport_info.unwrap_or_default();
        let at_transport = path.key("transport_info");
        let TransportInfo { local, proxy, remote } = transport;
        let elapsed = path.key("elapsed_seconds");
        let (by_bytes, by_progress) = match stream.elapsed_seconds {
            Some(elapsed) => (elapsed.payload_bytes_recv, elapsed.payload_progress_recv),
            None => (None, None),
        };
        let time = stream.time_info.unwrap_or_default();
        let is_error = stream.is_error == Some(true);
        Told {
            size: digits(&at_info.key("recvsize"), info.recvsize, None),
            read: digits(&bytes.key("total-bytes-recv"), recv, Some(0)),
            written: digits(&bytes.key("total-bytes-send"), send, Some(0)),
            endpoints: [
                (at_transport.key("local"), local),
                (at_transport.key("proxy"), proxy),
                (at_transport.key("remote"), remote),
            ],
            names: [(at_info.key("name"), info.name), (at_info.key("peername"), info.peername)],
            start: (path.key("unix_ts_start"), stream.unix_ts_start),
            end: (path.key("unix_ts_end"), stream.unix_ts_end),
            steps: steps_of_stream(&path.key("time_info"), &time),
            marks: Marks {
                bytes: (elapsed.key("payload_bytes_recv"), by_bytes.unwrap_or_default()),
                progress: (elapsed.key("payload_progress_recv"), by_progress.unwrap_or_default()),
            },
            error: is_error.then(|| info.error.unwrap_or_default()),
            lacks_first_byte: !is_error && time.usecs_to_first_byte_recv.is_none(),
            own: stream.perfd,
            path,
        }
    }

    /// The run, and what OnionPerf's plots lack of it; `None` if it is filtered out.
    pub(super) fn run(self, node: &Source) -> Result<Option<(ImportedRun, Option<Violation>)>, Violation> {
        let (size, read, written) = (self.size?, self.read?, self.written?);
        let start = moment(&self.start.0, self.start.1)?;
        let mut extra = Extra(Vec::new());
        let [local, proxy, remote] = &self.endpoints;
        for (key, (path, endpoint)) in [("ENDPOINTLOCAL", local), ("ENDPOINTPROXY", proxy), ("ENDPOINTREMOTE", remote)]
        {
            let Some(endpoint) = endpoint else { continue };
            check_name(path, endpoint)?;
            if endpoint_port(endpoint).is_none() {
                return Err(path.violation(Rule::Endpoint, format!("{} is not host:ip:port", quoted(endpoint))));
            }
            extra.put(key, endpoint.clone());
        }
        let [name, peername] = &self.names;
        for (key, (path, name)) in [("HOSTNAMELOCAL", name), ("HOSTNAMEREMOTE", peername)] {
            let Some(name) = name else { continue };
            check_name(path, name)?;
            extra.put(key, name.clone());
        }
        if let Some(ip) = &node.ip {
            extra.put("SOURCEADDRESS", ip.clone());
        }
        let local_port = local.1.as_deref().and_then(endpoint_port);
        let joined = match local.1.as_deref().and_then(|local| local.split(':').nth(2)) {
            Some(port) => joined(node, port, &self.end)?,
            None => None,
        };
        let circuit_id = joined.and_then(|(_, stream)| stream.circuit_id.as_ref());
        let circuit = circuit_id.and_then(|id| node.tor.circuits.get_key_value(&id.0));
        if circuit.is_some_and(|(_, circuit)| is_filtered(circuit)) {
            return Ok(None);
        }
        let own_code = self.own.as_ref().and_then(|own| own.error_code.clone());
        let error_code = own_code.or_else(|| error_code(self.error.as_deref(), joined.map(|(_, stream)| stream)));
        if let Some(code) = &error_code {
            check_name(&self.path, code)?;
            extra.put("ERRORCODE", code.clone());
        }
        put_circuit(&mut extra, node, circuit, joined)?;

        let [socket, connect, negotiate, request, response, data_request, data_response, data_complete] = self.steps?;
        let mut steps = Steps {
            socket,
            connect,
            negotiate,
            request,
            response,
            data_request,
            data_response,
            data_complete,
            ..Steps::default()
        };
        put_marks(&mut steps, &mut extra, start, self.marks)?;
        let own = self.own.as_ref();
        let said = own.and_then(|own| own.server.as_deref()).and_then(ServerKind::parse);
        let by_name = remote.1.as_deref().filter(|remote| is_onion(remote)).map(|_| ServerKind::Onion);
        if let Some(server) = said.filter(|server| *server != ServerKind::Exit) {
            extra.put("SERVER", server.as_str().to_owned());
        }
        let did_time_out = self.error.is_some();
        let signs = Signs {
            error_code: error_code.as_deref(),
            did_time_out,
            kind: Kind::Download,
            steps: &steps,
            size,
            written,
            read,
        };
        let warning = self.lacks_first_byte.then(|| {
            let why = "OnionPerf's own plots need the time of the first byte";
            self.path.key("time_info").key("usecs-to-first-byte-recv").violation(Rule::FirstByte, why)
        });
        let run = ImportedRun {
            source: node.nick.clone(),
            experiment: own.and_then(|own| own.experiment.clone()),
            id: own.and_then(|own| RunId::parse(own.run_id.as_deref()?)),
            tor: own.and_then(|own| own.tor.clone()),
            start: UnixMicros(start),
            ended: ImportedRun::last_step(&steps),
            size,
            written,
            read,
            local_port,
            kind: Kind::Download,
            server: said.or(by_name).unwrap_or_default(),
            outcome: outcome(&signs),
            did_time_out,
            steps,
            extra: extra.0,
        };
        Ok(Some((run, warning)))
    }
}

/// Keys and values that a line of Torperf's would have.
struct Extra(Vec<(String, String)>);

impl Extra {
    fn put(&mut self, key: &str, value: String) {
        self.0.push((key.to_owned(), value));
    }
}

fn is_filtered(circuit: &Circuit) -> bool {
    circuit.filtered_out.as_ref().is_some_and(|word| word.0.eq_ignore_ascii_case("true"))
}

/// The stream of tor that carried a download from this port: the one that ended nearest to it.
fn joined<'a>(
    node: &'a Source,
    port: &str,
    end: &(Path, Option<f64>),
) -> Result<Option<(&'a String, &'a TorStream)>, Violation> {
    let Some(candidates) = node.tor.streams.get(port) else { return Ok(None) };
    let missing = |path: &Path| path.violation(Rule::Missing, "it must be there, to tell which stream is whose");
    let ended = end.1.ok_or_else(|| missing(&end.0))?;
    let mut nearest: Option<(f64, (&String, &TorStream))> = None;
    for (id, stream) in candidates {
        let at = || node.path.key("tor").key("streams").key(id).key("unix_ts_end");
        let distance = (stream.unix_ts_end.ok_or_else(|| missing(&at()))? - ended).abs();
        if distance < NEAR && nearest.as_ref().is_none_or(|(before, _)| distance < *before) {
            nearest = Some((distance, (id, stream)));
        }
    }
    Ok(nearest.map(|(_, stream)| stream))
}

/// `TOR/END/MISC`, `TGEN/TIMEOUT`: who failed, and why.
fn error_code(error: Option<&str>, stream: Option<&TorStream>) -> Option<String> {
    let mut parts: Vec<&str> = match error {
        Some("PROXY") => vec!["TOR"],
        Some(error) => vec!["TGEN", error],
        None => Vec::new(),
    };
    if let Some(local) = stream.and_then(|stream| stream.failure_reason_local.as_deref()) {
        parts.push(local);
        parts.extend(stream.and_then(|stream| stream.failure_reason_remote.as_deref()));
    }
    parts.retain(|part| !part.is_empty());
    Some(parts.join("/")).filter(|code| !code.is_empty())
}

fn put_circuit(
    extra: &mut Extra,
    node: &Source,
    circuit: Option<(&String, &Circuit)>,
    stream: Option<(&String, &TorStream)>,
) -> Result<(), Violation> {
    let tor = node.path.key("tor");
    if let Some((id, circuit)) = circuit
        && circuit.unix_ts_start.is_some()
    {
        let path = tor.key("circuits").key(id).key("unix_ts_start");
        extra.put("LAUNCH", written(moment(&path, circuit.unix_ts_start)?));
    }
    if let Some((id, stream)) = stream {
        let path = tor.key("streams").key(id).key("unix_ts_end");
        extra.put("USED_AT", written(moment(&path, stream.unix_ts_end)?));
    }
    if let Some((id, circuit)) = circuit
        && let Some(hops) = circuit.path.as_ref().filter(|hops| !hops.is_empty())
    {
        let path = tor.key("circuits").key(id);
        let (relays, times) = check_hops(&path.key("path"), hops)?;
        extra.put("PATH", relays.join(","));
        extra.put("BUILDTIMES", times.iter().map(|time| format!("{time:.6}")).collect::<Vec<_>>().join(","));
        if let Some(timeout) = circuit.build_timeout {
            extra.put("TIMEOUT", within_int32(&path.key("build_timeout"), timeout)?.to_string());
        }
        if let Some(quantile) = circuit.build_quantile {
            extra.put("QUANTILE", format!("{quantile:?}"));
        }
        if let Some(id) = &circuit.circuit_id {
            extra.put("CIRC_ID", digits(&path.key("circuit_id"), Some(id.0.clone()), None)?.to_string());
        }
    }
    if let Some((id, stream)) = stream
        && let Some(stream_id) = &stream.stream_id
    {
        let path = tor.key("streams").key(id).key("stream_id");
        extra.put("USED_BY", digits(&path, Some(stream_id.0.clone()), None)?.to_string());
    }
    Ok(())
}

/// The relays of a path and the seconds in which they were reached.
pub(super) fn check_hops(path: &Path, hops: &[(String, Seconds)]) -> Result<(Vec<String>, Vec<f64>), Violation> {
    let (mut relays, mut times) = (Vec::new(), Vec::new());
    for (index, (relay, seconds)) in hops.iter().enumerate() {
        let fingerprint = relay.split(['~', '=']).next().unwrap_or_default();
        if !is_path(fingerprint) {
            let why = format!("{} is not $ and 40 hexadecimal digits", quoted(relay));
            return Err(path.index(index).index(0).violation(Rule::Path, why));
        }
        match seconds {
            Seconds::Float(seconds) if *seconds >= 0.0 => times.push(*seconds),
            Seconds::Float(_) => {
                return Err(path.index(index).index(1).violation(Rule::BuildTimes, "the seconds are negative"));
            }
            Seconds::Integer => {
                let why = "the seconds must be written with a point, 1.0 and not 1, or readers fail";
                return Err(path.index(index).index(1).violation(Rule::PathSeconds, why));
            }
        }
        relays.push(fingerprint.to_owned());
    }
    Ok((relays, times))
}

/// A value that is to stand in a line of Torperf's.
pub(super) fn check_name(path: &Path, name: &str) -> Result<(), Violation> {
    if name.is_empty() {
        return Err(path.violation(Rule::Name, "it must not be empty"));
    }
    if name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '=') {
        return Err(path.violation(Rule::Name, format!("{} holds a space, = or a control character", quoted(name))));
    }
    Ok(())
}

fn put_marks(steps: &mut Steps, extra: &mut Extra, start: i64, marks: Marks) -> Result<(), Violation> {
    let (path, progress) = marks.progress;
    let mut percents = Vec::new();
    for (key, seconds) in progress.0 {
        let fraction = key.parse::<f64>().ok().filter(|fraction| (0.0..=1.0).contains(fraction));
        let Some(fraction) = fraction else {
            let why = format!("{} is not a fraction from 0.0 to 1.0", quoted(&key));
            return Err(path.violation(Rule::Percent, why));
        };
        percents.push(((fraction * 100.0).round() as usize, after(&path.key(&key), seconds)?));
    }
    percents.sort_unstable();
    percents.dedup_by_key(|(percent, _)| *percent);
    for (percent, at) in percents {
        match steps.deciles.get_mut(percent / 10).filter(|_| percent % 10 == 0) {
            Some(decile) => *decile = Some(at),
            None => extra.put(&format!("DATAPERC{percent}"), written(start.saturating_add_unsigned(at))),
        }
    }
    let (path, bytes) = marks.bytes;
    let mut partials = Vec::new();
    for (key, seconds) in bytes.0 {
        let Some(bytes) = int32(&key) else {
            return Err(path.violation(Rule::Partial, format!("{} is not a number of bytes", quoted(&key))));
        };
        partials.push((bytes, after(&path.key(&key), seconds)?));
    }
    partials.sort_unstable();
    partials.dedup_by_key(|(bytes, _)| *bytes);
    for (bytes, at) in partials {
        let index = PARTIALS.iter().position(|partial| *partial == bytes);
        match index.and_then(|index| steps.partials.get_mut(index)) {
            Some(partial) => *partial = Some(at),
            None => extra.put(&format!("PARTIAL{bytes}"), written(start.saturating_add_unsigned(at))),
        }
    }
    Ok(())
}

fn steps_of_transfer(path: &Path, elapsed: &Elapsed, is_error: bool) -> Result<[Option<u64>; 8], Violation> {
    let step = |key: &str, seconds: Option<f64>| {
        let reached = seconds.filter(|seconds| !is_error || *seconds != 0.0);
        reached.map(|seconds| after(&path.key(key), seconds)).transpose()
    };
    Ok([
        step("socket_create", elapsed.socket_create)?,
        step("socket_connect", elapsed.socket_connect)?,
        step("proxy_choice", elapsed.proxy_choice)?,
        step("proxy_request", elapsed.proxy_request)?,
        step("proxy_response", elapsed.proxy_response)?,
        step("command", elapsed.command)?,
        step("response", elapsed.response)?,
        step("last_byte", elapsed.last_byte)?,
    ])
}

fn steps_of_stream(path: &Path, time: &TimeInfo) -> Result<[Option<u64>; 8], Violation> {
    let step = |key: &str, micros: &Option<String>| {
        let path = path.key(key);
        let Some(text) = micros.as_deref().filter(|text| *text != "-1") else { return Ok(None) };
        let number = Some(text).filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
        let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) else {
            return Err(path.violation(Rule::Number, format!("{} is not microseconds, nor -1", quoted(text))));
        };
        within_run(&path, number).map(Some)
    };
    Ok([
        step("usecs-to-socket-create", &time.usecs_to_socket_create)?,
        step("usecs-to-socket-connect", &time.usecs_to_socket_connect)?,
        step("usecs-to-proxy-choice", &time.usecs_to_proxy_choice)?,
        step("usecs-to-proxy-request", &time.usecs_to_proxy_request)?,
        step("usecs-to-proxy-response", &time.usecs_to_proxy_response)?,
        step("usecs-to-command", &time.usecs_to_command)?,
        step("usecs-to-response", &time.usecs_to_response)?,
        step("usecs-to-last-byte-recv", &time.usecs_to_last_byte_recv)?,
    ])
}

/// Seconds after START as microseconds.
fn after(path: &Path, seconds: f64) -> Result<u64, Violation> {
    if seconds < 0.0 {
        return Err(path.violation(Rule::StepBeforeStart, "it lies before the run's begin"));
    }
    // Saturating, as casts of floats are.
    within_run(path, (seconds * 1e6).round() as u64)
}

fn within_run(path: &Path, micros: u64) -> Result<u64, Violation> {
    if u128::from(micros) <= LONGEST_RUN.as_micros() {
        return Ok(micros);
    }
    let hours = LONGEST_RUN.as_secs() / 3600;
    Err(path.violation(Rule::StepTooLate, format!("it lies more than {hours} hours after the run's begin")))
}

/// Seconds since the epoch as microseconds, of years up to 9999.
fn moment(path: &Path, seconds: Option<f64>) -> Result<i64, Violation> {
    let Some(seconds) = seconds else {
        return Err(path.violation(Rule::Missing, "it must be there"));
    };
    if (0.000_001..253_402_300_800.0).contains(&seconds) {
        return Ok((seconds * 1e6).round() as i64);
    }
    Err(path.violation(Rule::Timestamp, format!("{seconds:?} is not seconds since 1970")))
}

/// A time as it stands in a line.
fn written(micros: i64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

fn digits(path: &Path, text: Option<String>, missing: Option<u64>) -> Result<u64, Violation> {
    match (text, missing) {
        (Some(text), _) => int32(&text)
            .ok_or_else(|| path.violation(Rule::Number, format!("{} is not digits, up to 2147483647", quoted(&text)))),
        (None, Some(missing)) => Ok(missing),
        (None, None) => Err(path.violation(Rule::Missing, "it must be there")),
    }
}

fn within_int32(path: &Path, value: u64) -> Result<u64, Violation> {
    let fits = i32::try_from(value).is_ok();
    fits.then_some(value).ok_or_else(|| path.violation(Rule::Number, format!("{value} is more than 2147483647")))
}
