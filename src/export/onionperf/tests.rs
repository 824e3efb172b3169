//! The file is taken apart as OnionPerf's `visualize` and Tor Metrics' reader do it: by the fields that they read,
//! and nothing else.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::circuit::{BuildTimeout, CircuitEnd};
use crate::measurement::{Imported, Kind, RunId};
use crate::test_support::circuit::example_circuit;
use crate::test_support::{example_row, result_row};

/// What a reader makes of one download.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    start: f64,
    size: i32,
    onion: bool,
    /// Milliseconds after START, by the names in `time_info`.
    steps: HashMap<String, i64>,
    first_byte: Option<f64>,
    megabits: Option<f64>,
    error_code: Option<String>,
    fingerprints: Vec<String>,
    build_times: Vec<f64>,
}

/// Reads a file, or says what a reader would stumble over.
fn read(file: &str) -> Result<Vec<Seen>, String> {
    let file: Value = serde_json::from_str(file).map_err(|e| e.to_string())?;
    ensure(file["type"] == "onionperf" && file["version"] == "3.1", "type and version")?;
    let mut all = Vec::new();
    for (nick, data) in file["data"].as_object().ok_or("no data")? {
        ensure(nick.bytes().all(|b| b.is_ascii_graphic()), "nick")?;
        word(&data["measurement_ip"])?;
        let (circuits, ports) = (circuits(&data["tor"])?, tor_streams(&data["tor"])?);
        data["tor"]["guards"].as_array().ok_or("no guards")?.iter().try_for_each(|g| word(&g["fingerprint"]))?;
        let streams = data["tgen"]["streams"].as_object().ok_or("no streams")?;
        let mut numbered: Vec<_> = streams.values().collect();
        numbered.sort_by_key(|s| s["stream_info"]["id"].as_str().and_then(|id| id.parse::<u64>().ok()));
        for (key, stream) in streams {
            ensure(stream["stream_id"] == key.as_str(), "stream_id is the key")?;
        }
        for stream in numbered {
            all.push(download(stream, circuits, &ports).map_err(|why| format!("{why}: {stream}"))?);
        }
    }
    Ok(all)
}

fn circuits(tor: &Value) -> Result<&serde_json::Map<String, Value>, String> {
    let circuits = tor["circuits"].as_object().ok_or("no circuits")?;
    for circuit in circuits.values() {
        for number in ["circuit_id", "build_timeout"] {
            ensure(circuit[number].is_null() || int32(&circuit[number]), number)?;
        }
        ensure(circuit.get("path").is_some() && circuit["unix_ts_start"].is_f64(), "path, unix_ts_start")?;
        for number in ["buildtime_seconds", "build_quantile", "unix_ts_end"] {
            ensure(circuit[number].is_null() || circuit[number].is_f64(), number)?;
        }
        for hop in circuit["path"].as_array().into_iter().flatten() {
            let name = hop[0].as_str().ok_or("no name")?;
            let (hex, nick) = name.split_once('~').unwrap_or((name, "a"));
            let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
            ensure(hex.len() == 41 && hex.starts_with('$') && hex[1..].bytes().all(upper), "hop")?;
            ensure((1..20).contains(&nick.len()) && nick.bytes().all(|b| b.is_ascii_alphanumeric()), "nick of hop")?;
            ensure(hop[1].is_f64(), "the time of a hop must be a float")?;
        }
    }
    Ok(circuits)
}

fn tor_streams(tor: &Value) -> Result<HashMap<String, Vec<&Value>>, String> {
    let mut ports: HashMap<String, Vec<&Value>> = HashMap::new();
    for stream in tor["streams"].as_object().ok_or("no tor streams")?.values() {
        ensure(stream["unix_ts_end"].is_f64() && stream.get("circuit_id").is_some(), "end and circuit")?;
        ensure(stream["circuit_id"].is_null() || stream["circuit_id"].is_string(), "circuit_id")?;
        ensure(stream["stream_id"].is_null() || int32(&stream["stream_id"]), "stream_id")?;
        for reason in ["failure_reason_local", "failure_reason_remote"] {
            stream.get(reason).map_or(Ok(()), word)?;
        }
        if let Some(source) = stream["source"].as_str().filter(|source| source.contains(':')) {
            ports.entry(source.split(':').nth(1).unwrap().to_owned()).or_default().push(stream);
        }
    }
    Ok(ports)
}

fn download(
    stream: &Value,
    circuits: &serde_json::Map<String, Value>,
    ports: &HashMap<String, Vec<&Value>>,
) -> Result<Seen, String> {
    let (info, transport, times) = (&stream["stream_info"], &stream["transport_info"], &stream["time_info"]);
    let size = info["recvsize"].as_str().and_then(|size| size.parse().ok()).ok_or("recvsize")?;
    [&info["name"], &info["peername"], &transport["proxy"], &transport["remote"]].into_iter().try_for_each(word)?;
    transport.get("local").map_or(Ok(()), word)?;
    ensure(stream["unix_ts_start"].is_f64() && stream["unix_ts_end"].is_f64(), "unix_ts")?;
    let mut seen = Seen { size, start: stream["unix_ts_start"].as_f64().unwrap(), ..Seen::default() };
    seen.onion = transport["remote"].as_str().is_some_and(|remote| remote.contains(".onion:"));
    for (name, at) in times.as_object().ok_or("no time_info")? {
        let at: i64 = at.as_str().and_then(|at| at.parse().ok()).ok_or("a time that is no string of digits")?;
        if let Some(step) = name.strip_prefix("usecs-to-").filter(|_| at >= 0) {
            seen.steps.insert(step.to_owned(), at);
        }
    }
    seen.first_byte = seen.steps.get("first-byte-recv").map(|at| *at as f64 / 1e6);
    let marks = &stream["elapsed_seconds"];
    for map in ["payload_bytes_recv", "payload_progress_recv"] {
        ensure(marks[map].as_object().ok_or("no marks")?.values().all(Value::is_f64), "a mark that is no float")?;
    }
    let progress = &marks["payload_progress_recv"];
    if info["recvsize"] == "5242880"
        && let Some(end) = progress["1.0"].as_f64()
    {
        seen.megabits = Some(8.388608 / (end - progress["0.8"].as_f64().ok_or("no 0.8")?));
    }
    let port = transport["local"].as_str().and_then(|local| local.split(':').nth(2)).unwrap_or_default();
    let end = stream["unix_ts_end"].as_f64().unwrap();
    let near = |s: &&&Value| (s["unix_ts_end"].as_f64().unwrap() - end).abs() < 150.0;
    let joined: Vec<&Value> = ports.get(port).into_iter().flatten().filter(near).copied().collect();
    if let Some(circuit) = joined.last().and_then(|s| circuits.get(s["circuit_id"].as_str()?)) {
        let hops = circuit["path"].as_array().into_iter().flatten();
        seen.fingerprints = hops.clone().map(|hop| hop[0].as_str().unwrap()[1..41].to_owned()).collect();
        seen.build_times = hops.map(|hop| hop[1].as_f64().unwrap()).collect();
    }
    ensure(stream["is_error"].is_boolean(), "is_error")?;
    let error = info["error"].as_str().ok_or("no error")?;
    ensure((error != "NONE") == stream["is_error"].as_bool().unwrap(), "is_error and error")?;
    if error != "NONE" {
        let mut code = if error == "PROXY" { "TOR".to_owned() } else { format!("TGEN/{error}") };
        for reason in joined.iter().flat_map(|s| [&s["failure_reason_local"], &s["failure_reason_remote"]]) {
            code += &reason.as_str().map_or(String::new(), |reason| format!("/{reason}"));
        }
        seen.error_code = Some(code);
    }
    Ok(seen)
}

fn ensure(right: bool, what: &str) -> Result<(), String> {
    if right { Ok(()) } else { Err(format!("wrong: {what}")) }
}

/// A text that may stand in key=value.
fn word(value: &Value) -> Result<(), String> {
    let text = value.as_str().ok_or_else(|| format!("no text: {value}"))?;
    ensure(!text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && b != b'='), text)
}

fn int32(value: &Value) -> bool {
    value.as_u64().is_some_and(|value| value <= 2_147_483_647)
}

fn one(row: &ResultRow) -> Seen {
    let file = document("op-test", "192.0.2.1", [row]);
    let mut seen = read(&file).unwrap_or_else(|why| panic!("{why}: {file}"));
    assert_eq!(seen.len(), 1);
    seen.remove(0)
}

#[test]
fn a_complete_run_is_written_like_this() {
    let row = ResultRow { circuit: Some(example_circuit()), ..example_row() };
    let file: Value = serde_json::from_str(&document("op-test", "192.0.2.1", [&row])).unwrap();
    let data = &file["data"]["op-test"];
    assert_eq!(data["measurement_ip"], "192.0.2.1");
    let stream = &data["tgen"]["streams"]["0:localhost:127.0.0.1:40000:example.org:0.0.0.0:8080"];
    assert_eq!(stream["unix_ts_start"].to_string(), "1795341600.0");
    assert_eq!(stream["unix_ts_end"].to_string(), "1795341601.5002");
    assert_eq!(stream["stream_info"]["error"], "NONE");
    assert_eq!(stream["byte_info"]["payload-bytes-recv"], "51200");
    assert_eq!(stream["byte_info"]["payload-progress-recv"], "100.00%");
    assert_eq!(stream["byte_info"]["total-bytes-recv"], "51466");
    assert_eq!(stream["elapsed_seconds"]["payload_bytes_recv"].to_string(), r#"{"10240":0.9,"20480":1.1,"51200":1.5}"#);
    assert_eq!(stream["time_info"]["usecs-to-proxy-response"], "400000");
    assert_eq!(stream["perfd"]["run_id"], row.measurement.id.as_str());
    let tor = &data["tor"];
    assert_eq!(
        tor["streams"]["24"].to_string(),
        "{\"circuit_id\":\"17\",\"elapsed_seconds\":[[\"USER:NEW\",0.0],[\"USER:SENTCONNECT\",0.00005],\
         [\"USER:SUCCEEDED\",0.3984],[\"USER:CLOSED\",1.4997]],\"source\":\"127.0.0.1:40000\",\"stream_id\":24,\
         \"target\":\"example.org:8080\",\"unix_ts_end\":1795341601.5003,\"unix_ts_start\":1795341600.0006}"
    );
    let (one, two, three) = ("1".repeat(40), "2".repeat(40), "3".repeat(40));
    let circuit = json!({
        "build_quantile": 0.8,
        "build_timeout": 1500,
        "buildtime_seconds": 0.34,
        "cbt_set": true,
        "circuit_id": 17,
        "current_guards": [{ "fingerprint": one }],
        "elapsed_seconds": [["GENERAL:LAUNCHED", 0.0], ["GENERAL:EXTENDED", 0.12], ["GENERAL:EXTENDED", 0.23],
            ["GENERAL:EXTENDED", 0.34], ["GENERAL:BUILT", 0.34]],
        "path": [[format!("${one}~relay1"), 0.12], [format!("${two}~relay2"), 0.23], [format!("${three}~relay3"), 0.34]],
        "unix_ts_start": 1795341587.6,
    });
    assert_eq!(tor["circuits"], json!({ "17": circuit }));
    assert_eq!(tor["guards"], json!([{ "fingerprint": one, "nickname": "relay1" }]));

    let seen = self::one(&row);
    assert_eq!((seen.size, seen.onion, seen.error_code), (51_200, false, None));
    assert_eq!((seen.first_byte, seen.build_times), (Some(0.7001), vec![0.12, 0.23, 0.34]));
    assert_eq!(seen.fingerprints, [one, two, three]);
}

#[test]
fn a_day_without_rows_is_a_file_all_the_same() {
    assert_eq!(read(&document("op-test", "0.0.0.0", [])), Ok(Vec::new()));
}

#[test]
fn throughput_is_that_of_the_last_of_five_mebibytes() {
    let mut row = example_row();
    row.measurement.size = 5_242_880;
    row.measurement.steps.deciles = std::array::from_fn(|tenth| Some(1_000_000 + tenth as u64 * 100_000));
    assert!((one(&row).megabits.unwrap() - 8.388608 / 0.2).abs() < 1e-6);
}

#[test]
fn failures_are_counted_by_their_codes() {
    use Cause::*;
    let failed = |phase, cause| {
        let failure = Failure { phase, cause, socks_code: None, http_status: None, detail: String::new() };
        Outcome::Failed(failure)
    };
    for (outcome, code) in [
        (Outcome::Timeout(Phase::Response), "TGEN/TIMEOUT/END/RESOLVEFAILED"),
        (failed(Phase::Connect, Refused), "TOR/END/RESOLVEFAILED"),
        (failed(Phase::Response, SocksReply), "TOR/END/RESOLVEFAILED"),
        (failed(Phase::DataRequest, Reset), "TGEN/WRITE/END/RESOLVEFAILED"),
        (failed(Phase::DataResponse, Reset), "TGEN/READ/END/RESOLVEFAILED"),
        (failed(Phase::DataComplete, Closed), "TGEN/READEOF/END/RESOLVEFAILED"),
        (failed(Phase::DataComplete, PayloadTruncated), "TGEN/READEOF/END/RESOLVEFAILED"),
        (failed(Phase::DataComplete, PayloadTampered), "TGEN/CHECKSUM/END/RESOLVEFAILED"),
        (failed(Phase::DataResponse, HttpStatus), "TGEN/HEADER/END/RESOLVEFAILED"),
        (failed(Phase::DataComplete, PayloadSize), "TGEN/MISC/END/RESOLVEFAILED"),
    ] {
        let mut row = ResultRow { circuit: Some(example_circuit()), ..example_row() };
        row.measurement.outcome = outcome;
        let last = row.circuit.as_mut().and_then(|data| data.stream.last_mut()).unwrap();
        last.status = "FAILED".to_owned();
        (last.reason, last.remote_reason) = (Some("END".to_owned()), Some("RESOLVEFAILED".to_owned()));
        assert_eq!(one(&row).error_code.as_deref(), Some(code));
    }
}

#[test]
fn a_circuit_that_is_known_in_part_breaks_nobody() {
    let with = |change: &dyn Fn(&mut CircuitData)| {
        let mut data = example_circuit();
        change(&mut data);
        one(&ResultRow { circuit: Some(data), ..example_row() })
    };
    let hop = |data: &mut CircuitData| data.circuit.as_mut().unwrap().path[1].built_after_us = None;
    assert_eq!(with(&hop).fingerprints, Vec::<String>::new());
    let unknown = |data: &mut CircuitData| data.circuit.as_mut().unwrap().path[1].relay.fingerprint.push('x');
    assert_eq!(with(&unknown).fingerprints, Vec::<String>::new());
    let launch = |data: &mut CircuitData| data.circuit.as_mut().unwrap().launched_us = None;
    assert_eq!(with(&launch).fingerprints, Vec::<String>::new());
    let hostile = |data: &mut CircuitData| {
        let circuit = data.circuit.as_mut().unwrap();
        circuit.path[0].relay.nickname = Some("a~b \"=\n".to_owned());
        circuit.path[1].relay.nickname = None;
        circuit.id = u64::MAX;
        circuit.end = Some(CircuitEnd {
            at_us: 5,
            failed: true,
            reason: Some("a b=c".to_owned()),
            remote_reason: Some(String::new()),
        });
        data.build_timeout = Some(BuildTimeout { timeout_ms: u64::MAX, quantile: Some(f64::NAN), learning: None });
        data.guard = Some(Relay { fingerprint: "no fingerprint".to_owned(), nickname: None });
    };
    assert_eq!(with(&hostile).fingerprints.len(), 3);
}

#[test]
fn the_same_port_and_number_twice_stay_two() {
    let row = |run: u128, tor: &str, connection| {
        let mut row = ResultRow { circuit: Some(example_circuit()), tor: tor.to_owned(), ..example_row() };
        row.measurement.id = RunId::from_bits(run);
        row.circuit.as_mut().unwrap().connection = connection;
        row
    };
    let rows = [row(1, "a", 1), row(2, "a", 2), row(3, "b", 1), row(4, "b", 1)];
    let file: Value = serde_json::from_str(&document("op-test", "0.0.0.0", &rows)).unwrap();
    let data = &file["data"]["op-test"];
    let keys = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<HashSet<_>>();
    assert_eq!(keys(&data["tgen"]["streams"]).len(), 4);
    let expected = HashSet::from(["17", "17-2", "17-3"].map(str::to_owned));
    assert_eq!(keys(&data["tor"]["circuits"]), expected);
    assert_eq!(data["tor"]["streams"]["24-3"]["circuit_id"], "17-3");
}

#[test]
fn the_address_is_the_public_one_if_it_is_one() {
    for (host, ip) in [
        (Some("192.0.2.7"), "192.0.2.7"),
        (Some("2001:db8::7"), "2001:db8::7"),
        (Some("perf.example.org"), "0.0.0.0"),
        (None, "0.0.0.0"),
    ] {
        assert_eq!(measurement_ip(host), ip);
    }
}

#[test]
fn what_an_imported_line_told_stands_where_readers_look_for_it() {
    let fingerprints = ["1", "2", "3"].map(|digit| digit.repeat(40));
    let path = format!("${}", fingerprints.join(",$"));
    let extra = [
        ("ENDPOINTLOCAL", "localhost:127.0.0.1:40001"),
        ("ENDPOINTREMOTE", "abc.onion:0.0.0.0:8080"),
        ("ERRORCODE", "TGEN/READ/END/DESTROY"),
        ("LAUNCH", "1795341590.500000"),
        ("USED_AT", "1795341601.500000"),
        ("PATH", path.as_str()),
        ("BUILDTIMES", "0.1,0.2,0.3"),
        ("CIRC_ID", "17"),
        ("USED_BY", "24"),
    ];
    let extra = extra.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    let mut row = example_row();
    row.measurement.local = None;
    row.measurement.outcome = Outcome::Timeout(Phase::DataComplete);
    row.imported = Some(Imported { did_time_out: true, extra, ..Imported::default() });
    let seen = one(&row);
    assert_eq!((seen.onion, seen.error_code.as_deref()), (true, Some("TGEN/READ/END/DESTROY")));
    assert_eq!((seen.fingerprints, seen.build_times), (fingerprints.to_vec(), vec![0.1, 0.2, 0.3]));
    // What perfd itself wrote is known by its outcome.
    let code = row.imported.as_mut().and_then(|imported| imported.extra.get_mut(2)).unwrap();
    code.1 = "TIMEOUT/DATACOMPLETE".to_owned();
    assert_eq!(one(&row).error_code.as_deref(), Some("TGEN/TIMEOUT"));
}

proptest! {
    #[test]
    fn readers_take_whatever_was_measured(rows in prop::collection::vec(result_row(), 0..4)) {
        let rows: Vec<_> = rows.into_iter().filter(|row| row.measurement.kind == Kind::Download).collect();
        let file = document("op-test", "0.0.0.0", &rows);
        let seen = read(&file).map_err(|why| TestCaseError::fail(format!("{why}: {file}")))?;
        prop_assert_eq!(seen.len(), rows.len());
        for (seen, row) in seen.iter().zip(&rows) {
            let run = &row.measurement;
            prop_assert_eq!(seen.size, i32::try_from(run.size).unwrap_or(i32::MAX));
            prop_assert_eq!(seen.error_code.is_some(), run.outcome != Outcome::Complete);
            if run.start.0.abs() < 1 << 52 {
                prop_assert!((seen.start * 1e6 - run.start.0.max(1_000) as f64).abs() < 1.0);
            }
            let steps = &run.steps;
            for (name, at) in [
                ("socket-create", steps.socket),
                ("socket-connect", steps.connect),
                ("proxy-choice", steps.negotiate),
                ("proxy-request", steps.request),
                ("proxy-response", steps.response),
                ("command", steps.data_request),
                ("response", steps.data_response),
                ("first-byte-recv", steps.deciles[0]),
                ("last-byte-recv", steps.data_complete),
            ] {
                prop_assert_eq!(seen.steps.get(name).map(|at| *at as u64), at);
            }
        }
    }
}
