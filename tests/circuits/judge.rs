//! Whether what perfd says of a run's circuit is what tor said to somebody else.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result, ensure};
use perfd::circuit::{Circuit, CircuitData, CircuitState, OnionSteps};
use perfd::export::json::ResultJson;

use crate::observer::{Seen, circuit_id, path, word};

/// Lines of two connections are read at different times, so much apart at most, in µs.
const APART: i64 = 100_000;

/// What was seen of a run from outside.
pub struct Witness<'a> {
    /// At the tor that it was measured through.
    pub client: &'a Seen,
    /// At the tor that publishes the onion service, for a run to one.
    pub service: Option<&'a Seen>,
}

/// Whether all is right that is said of a complete run.
pub fn judge(result: &ResultJson, tpf: &HashMap<String, String>, witness: &Witness) -> Result<()> {
    let data = result.circuit.as_ref().context("no circuit")?;
    ensure!(data.state == CircuitState::Known, "state {:?}", data.state);
    ensure!(data.connection == 1, "connection {}", data.connection);
    ensure!(data.tor_version.as_deref().is_some_and(|v| v.starts_with("0.4.")), "tor {:?}", data.tor_version);
    let user = format!("perfd-{}", result.run_id);
    ensure!(result.socks_user.as_ref() == Some(&user), "user {:?}", result.socks_user);

    let (stream, attached) = stream_as_seen(&user, witness.client)?;
    ensure!(data.stream_id == Some(stream), "stream {:?}, and tor said {stream}", data.stream_id);
    let circuit = data.circuit.as_ref().context("no circuit of the stream")?;
    ensure!(circuit.id == attached, "circuit {}, and tor said {attached}", circuit.id);
    let raw = raw_line(witness.client, circuit, |line| word(line, "SOCKS_USERNAME") == Some(&user))?;
    ensure!(word(raw, "PURPOSE") == circuit.purpose.as_deref(), "purpose {:?}: {raw}", circuit.purpose);
    ensure!(word(raw, "CONFLUX_ID") == data.conflux.as_ref().map(|set| set.id.as_str()), "Conflux: {raw}");
    let guard = data.guard.as_ref().map(|guard| guard.fingerprint.as_str());
    ensure!(guard == path(raw).first().copied(), "guard {guard:?}: {raw}");

    stream_events(data, result)?;
    let onion = result.server == "onion";
    conflux(data, result, witness.client)?;
    ensure!(data.onion.is_some() == onion, "onion steps: {:?}", data.onion);
    if let (Some(steps), Some(service)) = (&data.onion, witness.service) {
        ensure!(circuit.purpose.as_deref() == Some("HS_CLIENT_REND"), "purpose {:?}", circuit.purpose);
        onion_steps(steps, circuit, result, service)?;
        let congestion = data.congestion.as_ref();
        let of_service =
            congestion.is_none_or(|c| c.of_service && Some(c.circuit_id) == steps.service.as_ref().map(|s| s.id));
        ensure!(of_service, "congestion of {congestion:?}");
    }
    torperf(tpf.get(&result.run_id).context("no line in /results.tpf")?, result, raw, stream)
}

/// The stream of a SOCKS user, and the circuit by which it was connected, by tor's own words.
fn stream_as_seen(user: &str, seen: &Seen) -> Result<(u64, u64)> {
    let mut streams = BTreeSet::new();
    let mut connected = None;
    for line in seen.streams_of(user) {
        let words: Vec<&str> = line.split(' ').collect();
        streams.insert(words[0]);
        if words[1] == "SUCCEEDED" {
            connected = Some(words[2].parse()?);
        }
    }
    ensure!(streams.len() == 1, "tor told of the streams {streams:?}");
    Ok((streams.first().context("none")?.parse()?, connected.context("never connected")?))
}

/// The last line of `circuit-status` that tells of exactly this circuit with exactly this path, and is `wanted`.
fn raw_line<'a>(seen: &'a Seen, circuit: &Circuit, wanted: impl Fn(&str) -> bool) -> Result<&'a str> {
    let ours: Vec<&str> = circuit.path.iter().map(|hop| hop.relay.fingerprint.as_str()).collect();
    let lines: Vec<&str> = seen.circuit(circuit.id).collect();
    let same = |line: &str| path(line) == ours && line.split(' ').nth(1) == Some("BUILT") && wanted(line);
    let of_path = lines.iter().rev().find(|line| same(line));
    of_path.copied().with_context(|| format!("circuit {} of path {ours:?}, and tor said {lines:?}", circuit.id))
}

fn stream_events(data: &CircuitData, result: &ResultJson) -> Result<()> {
    let words: Vec<&str> = data.stream.iter().map(|event| event.status.as_str()).collect();
    let ends = words.first() == Some(&"NEW") && words.last() == Some(&"CLOSED") && words.contains(&"SUCCEEDED");
    ensure!(ends && data.stream.is_sorted_by_key(|event| event.at_us), "stream {:?}", data.stream);
    let begun = data.stream[0].at_us;
    let request = i64::try_from(result.steps_us.request.unwrap_or(0))?;
    ensure!(begun > 0 && begun <= request + APART, "the stream began at {begun}, the request was sent at {request}");
    let circuit = data.circuit.as_ref().context("no circuit")?;
    let (launched, built) =
        (circuit.launched_us.context("no launch")?, circuit.built_us.context("no end of building")?);
    let sent = data.stream.iter().find(|event| event.status == "SENTCONNECT").context("never sent")?.at_us;
    ensure!(launched < built && built <= sent, "launched {launched}, built {built}, used {sent}");
    ensure!(circuit.built_before_run == Some(launched < 0), "built before the run: {:?}", circuit.built_before_run);
    ensure!(circuit.last_used_us.is_none(), "another run used it at {:?}", circuit.last_used_us);
    Ok(())
}

/// Both legs, and what they carried; without a set, what the circuit carried.
fn conflux(data: &CircuitData, result: &ResultJson, seen: &Seen) -> Result<()> {
    let legs: Vec<&Circuit> = match &data.conflux {
        Some(set) => set.legs.iter().collect(),
        None => data.circuit.iter().collect(),
    };
    if let Some(set) = &data.conflux {
        let raw: BTreeMap<u64, Vec<&str>> = seen
            .circuits
            .iter()
            .filter(|line| word(line, "CONFLUX_ID") == Some(&set.id) && word(line, "PURPOSE") == Some("CONFLUX_LINKED"))
            .map(|line| (circuit_id(line), path(line)))
            .collect();
        let ours = legs.iter().map(|leg| (leg.id, leg.path.iter().map(|hop| hop.relay.fingerprint.as_str()).collect()));
        let linked = legs.iter().filter(|leg| leg.purpose.as_deref() == Some("CONFLUX_LINKED"));
        // Now and then one leg alone came up, or is left.
        ensure!(linked.count() == raw.len() && raw.len() <= 2, "{} legs {legs:?}, and tor said {raw:?}", legs.len());
        ensure!(ours.collect::<BTreeMap<_, _>>() == raw, "legs {legs:?}, and tor said {raw:?}");
    }
    let read: u64 = legs.iter().filter_map(|leg| leg.bytes_read).sum();
    // In cells, of which each carries at most 498 bytes, and with some for the circuit itself.
    let most = result.bytes_read * 514 / 490 + 100 * 514;
    ensure!(read >= result.size_bytes && read <= most, "{read} bytes of {} came by {legs:?}", result.size_bytes);
    Ok(())
}

fn onion_steps(steps: &OnionSteps, client: &Circuit, result: &ResultJson, service: &Seen) -> Result<()> {
    let fetched = [steps.descriptor_requested_us, steps.descriptor_received_us];
    ensure!(fetched.iter().flatten().count() != 1, "half a descriptor: {steps:?}");
    ensure!((steps.descriptor_requests > 0) == fetched[0].is_some(), "requests: {steps:?}");
    // The rendezvous may be there before the descriptor is, and before the introduction point is reached.
    let orders: [&[Option<i64>]; 3] = [
        &[steps.descriptor_received_us, steps.introduced_us],
        &[steps.intro_built_us, steps.introduced_us, steps.intro_acknowledged_us],
        &[steps.rend_built_us, steps.rend_established_us, steps.introduced_us, steps.joined_us],
    ];
    for order in orders {
        ensure!(order.iter().flatten().is_sorted(), "not in order: {steps:?}");
    }
    let rendezvous = [steps.rend_built_us, steps.rend_established_us];
    ensure!(rendezvous.iter().all(Option::is_some), "a step is missing: {steps:?}");
    let (joined, response) = (steps.joined_us.context("never joined")?, result.steps_us.response.context("no reply")?);
    ensure!(joined <= i64::try_from(response)? + APART, "joined {joined}, granted {response}");
    if joined < 0 || steps.introduced_us.is_none() && rendezvous[1] < Some(0) {
        // tor went to the rendezvous for a run before, whose time was up: that run's introduction is not this one's.
        ensure!(steps.intro.is_none() && steps.service.is_none(), "an introduction before the run: {steps:?}");
        return Ok(());
    }
    let introduction = [steps.intro_built_us, steps.introduced_us];
    ensure!(introduction.iter().all(Option::is_some), "a step is missing: {steps:?}");
    ensure!(steps.intro.as_ref().is_some_and(|intro| !intro.path.is_empty()), "no introduction: {steps:?}");

    let ours = steps.service.as_ref().context("no circuit of the service")?;
    raw_line(service, ours, |line| word(line, "PURPOSE") == Some("HS_SERVICE_REND"))?;
    let meeting = |circuit: &Circuit| circuit.path.last().map(|hop| hop.relay.fingerprint.clone());
    ensure!(meeting(client) == meeting(ours), "they met at {:?} and {:?}", meeting(client), meeting(ours));
    Ok(())
}

/// The line of Torperf's format, read by splitting.
fn torperf(line: &str, result: &ResultJson, raw: &str, stream: u64) -> Result<()> {
    let get = |key: &str| word(line, key).with_context(|| format!("no {key}: {line}"));
    let seconds = |key: &str| -> Result<f64> { Ok(get(key)?.parse()?) };
    let (launch, start, used) = (seconds("LAUNCH")?, seconds("START")?, seconds("USED_AT")?);
    let (response, complete) = (seconds("RESPONSE")?, seconds("DATACOMPLETE")?);
    ensure!(launch < response && start < response, "LAUNCH {launch} RESPONSE {response}: {line}");
    ensure!((used - complete).abs() < 0.5, "USED_AT {used} DATACOMPLETE {complete}: {line}");
    let hops: Vec<String> = path(raw).iter().map(|hop| format!("${hop}")).collect();
    ensure!(get("PATH")? == hops.join(","), "PATH, and tor said {raw}: {line}");
    ensure!(get("CIRC_ID")? == circuit_id(raw).to_string(), "CIRC_ID, and tor said {raw}: {line}");
    ensure!(get("USED_BY")? == stream.to_string(), "USED_BY, and tor said {stream}: {line}");
    let times: Vec<f64> = get("BUILDTIMES")?.split(',').map(str::parse).collect::<Result<_, _>>()?;
    // tor tells of the launch and of a first hop to which it is connected already at one moment.
    ensure!(times.len() == hops.len() && times.is_sorted() && times[0] >= 0.0, "BUILDTIMES: {line}");
    ensure!(word(line, "SERVER").unwrap_or("exit") == result.server, "SERVER: {line}");
    ensure!(word(line, "CIRCUIT").is_none(), "CIRCUIT: {line}");
    Ok(())
}
