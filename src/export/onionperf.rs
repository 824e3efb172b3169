//! OnionPerf's analysis JSON, version 3.1: the downloads of one UTC day of one source, as OnionPerf's own
//! `visualize` and Tor Metrics' readers take them
//! (<https://metrics.torproject.org/collector.html#type-onionperf>).
//!
//! A day may be long, and in the file its downloads come before its circuits. So the text is made in pieces
//! ([`Analysis`]): whoever writes the file keeps the pieces of the later sections until their turn.
//!
//! The format knows downloads alone. What tor says is not trusted: a name or reason that would break a reader is
//! escaped or left out. perfd's own words stand in an object `perfd` of each download, which readers pass over.

mod told;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::torperf::{double, error_code, int32, near_endpoint, remote_endpoint, text, within_int32};
use crate::circuit::{Circuit, CircuitData, Hop, Relay, StreamEvent};
use told::Told;

use crate::measurement::{Cause, Failure, Measurement, Outcome, PARTIALS, Phase, Place, ResultRow};

/// The file's text while its rows are added one by one.
///
/// It consists of, in order: [`Analysis::head`], the [`Entries::stream`] of all rows, [`CIRCUITS`], the
/// [`Entries::circuits`] of all rows, [`Analysis::guards`], the [`Entries::tor_stream`] of all rows, and [`TAIL`].
#[derive(Debug)]
pub struct Analysis {
    source: String,
    measurement_ip: String,
    streams: u64,
    tor_streams: Keys,
    circuits: Keys,
    guards: BTreeMap<String, Map<String, Value>>,
}

/// What one row gives to the file, each part with the comma before it where it needs one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// The download.
    pub stream: String,
    /// The circuits that carried it, those that no earlier row had; may be empty.
    pub circuits: String,
    /// What tor told of its stream; empty where it told nothing.
    pub tor_stream: String,
}

/// What stands before the circuits.
pub const CIRCUITS: &str = "}},\"tor\":{\"circuits\":{";

/// What stands at the end.
pub const TAIL: &str = "}}}},\"type\":\"onionperf\",\"version\":\"3.1\"}\n";

/// The whole file of these rows, in their order: for few of them.
pub fn document<'a>(source: &str, measurement_ip: &str, rows: impl IntoIterator<Item = &'a ResultRow>) -> String {
    let mut analysis = Analysis::new(source, measurement_ip);
    let (mut text, mut circuits, mut tor_streams) = (analysis.head(), String::new(), String::new());
    for row in rows {
        let entries = analysis.add(row);
        text += &entries.stream;
        circuits += &entries.circuits;
        tor_streams += &entries.tor_stream;
    }
    [&text, CIRCUITS, &circuits, &analysis.guards(), &tor_streams, TAIL].concat()
}

/// The `measurement_ip` of an instance whose public host is this: the host if it is an address, or else `0.0.0.0`.
///
/// Names are not looked up, and the address of a listener says nothing of how the Internet sees it.
pub fn measurement_ip(public_host: Option<&str>) -> String {
    let address = public_host.and_then(|host| host.parse::<IpAddr>().ok());
    address.map_or("0.0.0.0".to_owned(), |address| address.to_string())
}

impl Analysis {
    /// A file without rows yet; `source` is the instance's name, `[A-Za-z0-9-]+`.
    pub fn new(source: &str, measurement_ip: &str) -> Self {
        Analysis {
            source: source.to_owned(),
            measurement_ip: measurement_ip.to_owned(),
            streams: 0,
            tor_streams: Keys::default(),
            circuits: Keys::default(),
            guards: BTreeMap::new(),
        }
    }

    /// What stands before the first download.
    pub fn head(&self) -> String {
        let (source, ip) = (Value::from(text(&self.source)), Value::from(self.measurement_ip.as_str()));
        format!("{{\"data\":{{{source}:{{\"measurement_ip\":{ip},\"tgen\":{{\"streams\":{{")
    }

    /// What this row, a download, gives to the file.
    pub fn add(&mut self, row: &ResultRow) -> Entries {
        let mut entries = Entries::default();
        let key = format!("{}:{}", self.streams, ends(&row.measurement));
        put(&mut entries.stream, self.streams == 0, &key, &download(row, self.streams, &key));
        self.streams += 1;
        if let Some(imported) = &row.imported {
            self.add_told(&Told { row, extra: &imported.extra }, &mut entries);
        }
        let Some(data) = &row.circuit else { return entries };
        let connection = (row.tor.as_str(), data.connection);
        let legs = data.conflux.iter().flat_map(|conflux| &conflux.legs);
        let intro = data.onion.iter().flat_map(|onion| &onion.intro);
        for circuit in data.circuit.iter().chain(legs).chain(intro) {
            let Some(value) = of_circuit(&row.measurement, data, circuit) else { continue };
            let first = self.circuits.is_empty();
            if let Some(key) = self.circuits.enter(connection, circuit.id) {
                put(&mut entries.circuits, first, &key, &value);
            }
        }
        if let Some(stream_id) = data.stream_id {
            let circuit = data.circuit.as_ref().and_then(|circuit| self.circuits.of(connection, circuit.id));
            let first = self.tor_streams.is_empty();
            if let Some(key) = self.tor_streams.enter(connection, stream_id) {
                put(&mut entries.tor_stream, first, &key, &of_tor_stream(&row.measurement, data, circuit));
            }
        }
        self.note_guards(&row.measurement, data);
        entries
    }

    /// What the line of an imported row told of its circuit.
    fn add_told(&mut self, told: &Told, entries: &mut Entries) {
        // Which connection to tor it was is not known: no two rows share what has the same number.
        let connection = (told.row.tor.as_str(), self.streams);
        let mut circuit = None;
        if let Some(value) = told.circuit() {
            let (first, id) = (self.circuits.is_empty(), told.number("CIRC_ID").unwrap_or(0));
            circuit = self.circuits.enter(connection, id);
            put(&mut entries.circuits, first, circuit.as_deref().unwrap_or_default(), &value);
        }
        if let Some(value) = told.tor_stream(circuit.as_deref()) {
            let (first, id) = (self.tor_streams.is_empty(), told.number("USED_BY").unwrap_or(0));
            let key = self.tor_streams.enter(connection, id).unwrap_or_default();
            put(&mut entries.tor_stream, first, &key, &value);
        }
    }

    /// The guards of all rows so far, and what stands before tor's streams.
    pub fn guards(&self) -> String {
        let guards: Vec<_> = self.guards.values().collect();
        format!("}},\"guards\":{},\"streams\":{{", json!(guards))
    }

    fn note_guards(&mut self, run: &Measurement, data: &CircuitData) {
        let events = data.guard_events.iter().map(|event| (&event.relay, Some(event)));
        for (relay, event) in data.guard.iter().map(|relay| (relay, None)).chain(events) {
            let Some(fingerprint) = fingerprint(relay) else { continue };
            let guard = self.guards.entry(fingerprint).or_insert_with_key(|fingerprint| {
                let mut guard = Map::from_iter([("fingerprint".to_owned(), json!(fingerprint))]);
                guard.extend(nickname(relay).map(|nickname| ("nickname".to_owned(), json!(nickname))));
                guard
            });
            if let Some(event) = event
                && matches!(event.status.as_str(), "NEW" | "UP" | "DOWN" | "DROPPED")
            {
                let key = format!("{}_ts", event.status.to_ascii_lowercase());
                guard.insert(key, json!(unix(run, event.at_us)));
            }
        }
    }
}

/// The keys of things that tor numbers, within one control connection each: the number alone, and where two
/// connections have the same one, `-2`, `-3` … behind it.
#[derive(Debug, Default)]
struct Keys {
    keys: HashMap<(String, u64, u64), String>,
    uses: HashMap<u64, u64>,
}

impl Keys {
    fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// A key for this one, unless it has one.
    fn enter(&mut self, (tor, connection): (&str, u64), id: u64) -> Option<String> {
        let identity = (tor.to_owned(), connection, id);
        if self.keys.contains_key(&identity) {
            return None;
        }
        let uses = self.uses.entry(id).or_insert(0);
        *uses += 1;
        let key = if *uses == 1 { id.to_string() } else { format!("{id}-{uses}") };
        self.keys.insert(identity, key.clone());
        Some(key)
    }

    /// The key that this one has.
    fn of(&self, (tor, connection): (&str, u64), id: u64) -> Option<&str> {
        self.keys.get(&(tor.to_owned(), connection, id)).map(String::as_str)
    }
}

fn put(text: &mut String, first: bool, key: &str, value: &Value) {
    if !first || !text.is_empty() {
        text.push(',');
    }
    *text += &format!("\n{}:{value}", Value::from(key));
}

/// One download, as TGen would have logged it.
fn download(row: &ResultRow, number: u64, key: &str) -> Value {
    let run = &row.measurement;
    let complete = run.outcome == Outcome::Complete;
    let told = Told::of(row);
    let error = told.tgen_error().filter(|_| !complete).unwrap_or(tgen_error(&run.outcome));
    let mut transport = json!({
        "error": transport_error(&run.outcome),
        "proxy": told.said("ENDPOINTPROXY").map_or(run.proxy.map_or("-".to_owned(), near_endpoint), str::to_owned),
        "remote": told.said("ENDPOINTREMOTE").map_or(server_end(run), str::to_owned),
        "state": if complete { "SUCCESS_OPEN" } else { "ERROR" },
    });
    if let Some(local) = told.said("ENDPOINTLOCAL").map(str::to_owned).or(run.local.map(near_endpoint)) {
        transport["local"] = json!(local);
    }
    json!({
        "byte_info": byte_info(run),
        "elapsed_seconds": {
            "payload_bytes_recv": marks(PARTIALS.iter().map(u64::to_string).zip(run.steps.partials)),
            "payload_bytes_send": {},
            "payload_progress_recv": marks((0..=10).map(tenths).zip(run.steps.deciles)),
            "payload_progress_send": {},
        },
        "is_complete": true,
        "is_error": !complete,
        "is_success": complete,
        "perfd": own_words(row),
        "stream_id": key,
        "stream_info": {
            "error": error,
            "id": number.to_string(),
            "name": told.said("HOSTNAMELOCAL").map_or(text(&row.source), str::to_owned),
            "peername": told.said("HOSTNAMEREMOTE").map_or(text(run.remote_host.as_deref().unwrap_or_default()), str::to_owned),
            "recvsize": int32(run.size),
            "recvstate": if complete { "RECV_SUCCESS" } else { "RECV_ERROR" },
            "sendsize": "0",
            "sendstate": if run.steps.data_request.is_some() { "SEND_SUCCESS" } else { "SEND_COMMAND" },
            "vertexid": text(&row.experiment),
        },
        "time_info": time_info(run),
        "transport_info": transport,
        "unix_ts_end": unix(run, i64::try_from(run.ended).unwrap_or(i64::MAX)),
        "unix_ts_start": unix(run, 0),
    })
}

/// What the format has no place for.
fn own_words(row: &ResultRow) -> Value {
    let run = &row.measurement;
    let mut words = json!({
        "experiment": row.experiment,
        "optimistic": run.optimistic,
        "outcome": run.outcome.word(),
        "run_id": run.id,
        "server": row.server,
        "tor": row.tor,
    });
    if let Some(code) = error_code(&run.outcome) {
        words["error_code"] = json!(code);
    }
    if row.place != Place::ALONE {
        words["place"] = json!(row.place);
    }
    if let Some(data) = &row.circuit {
        words["circuit"] = json!(data.state);
    }
    words
}

/// Our end and the server's, for a key.
fn ends(run: &Measurement) -> String {
    let local = run.local.map_or("-".to_owned(), near_endpoint);
    format!("{local}:{}", server_end(run))
}

/// The server's end; perfd's own results always have one.
fn server_end(run: &Measurement) -> String {
    remote_endpoint(run.remote_host.as_deref().unwrap_or_default(), run.remote_port.unwrap_or_default())
}

/// Microseconds after START as TGen writes them; `-1` where a step was not reached.
fn time_info(run: &Measurement) -> Value {
    let steps = &run.steps;
    let micros = |at: Option<u64>| at.map_or("-1".to_owned(), |at| at.to_string());
    let verified = steps.data_complete.filter(|_| run.verified);
    json!({
        "created-ts": run.start.0.to_string(),
        "now-ts": run.start.0.saturating_add_unsigned(run.ended).to_string(),
        "usecs-to-checksum-recv": micros(verified),
        "usecs-to-checksum-send": "-1",
        "usecs-to-command": micros(steps.data_request),
        "usecs-to-first-byte-recv": micros(steps.deciles[0]),
        "usecs-to-first-byte-send": "-1",
        "usecs-to-last-byte-recv": micros(steps.data_complete),
        "usecs-to-last-byte-send": "-1",
        "usecs-to-proxy-choice": micros(steps.negotiate),
        "usecs-to-proxy-init": "-1",
        "usecs-to-proxy-request": micros(steps.request),
        "usecs-to-proxy-response": micros(steps.response),
        "usecs-to-response": micros(steps.data_response),
        "usecs-to-socket-connect": micros(steps.connect),
        "usecs-to-socket-create": micros(steps.socket),
    })
}

/// Bytes as far as they are known: of a payload that is not complete, those of the last mark that it reached.
fn byte_info(run: &Measurement) -> Value {
    let partials = PARTIALS.iter().zip(run.steps.partials).filter(|(_, at)| at.is_some()).map(|(bytes, _)| *bytes);
    let deciles = (0u64..).zip(run.steps.deciles).filter(|(_, at)| at.is_some());
    let deciles = deciles.map(|(tenth, _)| (u128::from(run.size) * u128::from(tenth)).div_ceil(10) as u64);
    let whole = run.steps.data_complete.map(|_| run.size);
    let received = partials.chain(deciles).chain(whole).filter(|bytes| *bytes <= run.size).max().unwrap_or(0);
    let progress = if run.size == 0 { 0.0 } else { received as f64 * 100.0 / run.size as f64 };
    json!({
        "payload-bytes-recv": received.to_string(),
        "payload-bytes-send": "0",
        "payload-progress-recv": format!("{progress:.2}%"),
        "payload-progress-send": "100.00%",
        "total-bytes-recv": int32(run.read),
        "total-bytes-send": int32(run.written),
    })
}

/// Those marks that were reached, in seconds.
fn marks(marks: impl Iterator<Item = (String, Option<u64>)>) -> Value {
    marks.filter_map(|(mark, at)| Some((mark, json!(seconds(at? as f64))))).collect::<Map<_, _>>().into()
}

fn tenths(tenth: u8) -> String {
    format!("{}.{}", tenth / 10, tenth % 10)
}

/// TGen's word for how a stream failed, by which OnionPerf counts: `PROXY` is up to tor's SOCKS reply, the others
/// come after it.
fn tgen_error(outcome: &Outcome) -> &'static str {
    let failure = match outcome {
        Outcome::Complete => return "NONE",
        Outcome::Timeout(_) => return "TIMEOUT",
        Outcome::Failed(failure) => failure,
    };
    if before_reply(failure) {
        return "PROXY";
    }
    match failure.cause {
        Cause::HttpMalformed | Cause::HttpStatus => "HEADER",
        Cause::PayloadTampered => "CHECKSUM",
        Cause::PayloadSize | Cause::PayloadPadded | Cause::Other => "MISC",
        _ if failure.phase == Phase::DataRequest => "WRITE",
        Cause::Closed | Cause::PayloadTruncated => "READEOF",
        _ => "READ",
    }
}

/// TGen's word for how the connection to the proxy failed.
fn transport_error(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Complete => "NONE",
        Outcome::Timeout(_) => "TIMEOUT",
        Outcome::Failed(failure) => match failure.cause {
            _ if matches!(failure.phase, Phase::Socket | Phase::Connect) => "CONNECT",
            Cause::SocksMalformed => "PROXY_VERSION",
            Cause::SocksMethod => "PROXY_CHOICE",
            Cause::SocksAuth => "PROXY_AUTH",
            Cause::SocksReply => "PROXY_STATUS",
            Cause::Refused | Cause::Unreachable | Cause::Reset | Cause::Closed | Cause::Io => {
                if failure.phase == Phase::DataRequest { "WRITE" } else { "READ" }
            }
            _ => "NONE",
        },
    }
}

fn before_reply(failure: &Failure) -> bool {
    matches!(failure.phase, Phase::Socket | Phase::Connect | Phase::Negotiate | Phase::Request | Phase::Response)
}

/// What tor told of the run's stream. A reader finds it by the port of `source`, which an IPv6 address would hide.
fn of_tor_stream(run: &Measurement, data: &CircuitData, circuit: Option<&str>) -> Value {
    let begun = data.stream.first().map_or(0, |event| event.at_us);
    let ended = data.used_at_us().or(data.stream.last().map(|event| event.at_us));
    let ended = ended.unwrap_or(i64::try_from(run.ended).unwrap_or(i64::MAX));
    let event = |event: &StreamEvent| json!([format!("USER:{}", event.status), span(begun, event.at_us)]);
    let mut stream = json!({
        "circuit_id": circuit,
        "elapsed_seconds": data.stream.iter().map(event).collect::<Vec<_>>(),
        "target": format!("{}:{}", run.remote_host.as_deref().unwrap_or("-"), run.remote_port.unwrap_or_default()),
        "unix_ts_end": unix(run, ended),
        "unix_ts_start": unix(run, begun),
    });
    if let Some(id) = data.stream_id.and_then(number) {
        stream["stream_id"] = id;
    }
    if let Some(SocketAddr::V4(local)) = run.local {
        stream["source"] = json!(local.to_string());
    }
    let failed = data.stream.iter().rev().find(|event| event.status == "FAILED");
    if let Some(StreamEvent { reason, remote_reason, .. }) = failed {
        put_reasons(&mut stream, reason.as_deref(), remote_reason.as_deref());
    }
    stream
}

/// A circuit, if it is known when it was launched: its times are relative to that.
fn of_circuit(run: &Measurement, data: &CircuitData, circuit: &Circuit) -> Option<Value> {
    let launched = circuit.launched_us?;
    let purpose = circuit.purpose.as_deref().unwrap_or("GENERAL");
    let mut events = vec![json!([format!("{purpose}:LAUNCHED"), 0.0])];
    let mut event = |status: &str, at: f64| events.push(json!([format!("{purpose}:{status}"), at]));
    let times: Vec<f64> =
        circuit.path.iter().filter_map(|hop| hop.built_after_us.map(|at| seconds(at as f64))).collect();
    times.iter().for_each(|at| event("EXTENDED", *at));
    let built = circuit.built_us.map(|at| span(launched, at));
    if let Some(at) = built {
        event("BUILT", at);
    }
    if let Some(end) = &circuit.end {
        event(if end.failed { "FAILED" } else { "CLOSED" }, span(launched, end.at_us));
    }
    let timeout = data.build_timeout.as_ref();
    let mut value = json!({
        "cbt_set": timeout.is_some_and(|timeout| timeout.learning == Some(false)),
        "elapsed_seconds": events,
        "path": path(circuit),
        "unix_ts_start": unix(run, launched),
    });
    let guard = circuit.path.first().and_then(|hop| fingerprint(&hop.relay));
    let parts = [
        ("circuit_id", number(circuit.id)),
        ("buildtime_seconds", built.map(Value::from)),
        ("build_timeout", timeout.and_then(|timeout| number(timeout.timeout_ms))),
        ("build_quantile", timeout.and_then(|t| t.quantile).filter(|q| double(*q).is_some()).map(Value::from)),
        ("unix_ts_end", circuit.end.as_ref().map(|end| json!(unix(run, end.at_us)))),
        ("current_guards", guard.map(|fingerprint| json!([{ "fingerprint": fingerprint }]))),
    ];
    for (key, part) in parts {
        if let Some(part) = part {
            value[key] = part;
        }
    }
    if let Some(end) = circuit.end.as_ref().filter(|end| end.failed) {
        put_reasons(&mut value, end.reason.as_deref(), end.remote_reason.as_deref());
    }
    Some(value)
}

/// Each hop's name and the seconds after the launch at which it was reached; null unless all of both are known, since
/// readers take a missing time for zero, or break.
fn path(circuit: &Circuit) -> Option<Vec<Value>> {
    let hop = |hop: &Hop| {
        let name = match nickname(&hop.relay) {
            Some(nickname) => format!("${}~{nickname}", fingerprint(&hop.relay)?),
            None => format!("${}", fingerprint(&hop.relay)?),
        };
        Some(json!([name, seconds(hop.built_after_us? as f64)]))
    };
    let path: Option<Vec<Value>> = circuit.path.iter().map(hop).collect();
    path.filter(|path| !path.is_empty())
}

/// The fingerprint in upper case, if it is one.
fn fingerprint(relay: &Relay) -> Option<String> {
    let hex = relay.fingerprint.len() == 40 && relay.fingerprint.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| relay.fingerprint.to_ascii_uppercase())
}

/// The nickname, if it is one by tor's rules.
fn nickname(relay: &Relay) -> Option<&str> {
    let name = relay.nickname.as_deref()?;
    let right = (1..=19).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric());
    right.then_some(name)
}

/// Readers join these words to an error code, without looking at them.
fn put_reasons(value: &mut Value, local: Option<&str>, remote: Option<&str>) {
    for (key, reason) in [("failure_reason_local", local), ("failure_reason_remote", remote)] {
        if let Some(reason) = reason.filter(|reason| !reason.is_empty()) {
            value[key] = json!(text(reason));
        }
    }
}

/// A number that fits an int32.
fn number(value: u64) -> Option<Value> {
    within_int32(value).map(|_| json!(value))
}

/// Seconds since the epoch at so many microseconds after START, at least the millisecond to which readers cut.
fn unix(run: &Measurement, after: i64) -> f64 {
    seconds(run.start.0.saturating_add(after).max(1_000) as f64)
}

/// Seconds from one moment to a later one.
fn span(from: i64, to: i64) -> f64 {
    seconds(to.saturating_sub(from) as f64)
}

fn seconds(micros: f64) -> f64 {
    micros / 1e6
}

#[cfg(test)]
mod tests;
