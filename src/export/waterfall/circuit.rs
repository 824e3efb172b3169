//! What tor told of a run, drawn: its circuit, Conflux legs, onion steps, stream and window.

use super::super::table::{graphic, relay_name};
use super::put_moments;
use super::sheet::{Axis, Sheet, beside_start, largest, ms, sparkline};
use crate::circuit::{Circuit, CircuitData, CircuitState, Conflux, Congestion, CongestionSample, OnionSteps};

/// Lines of a list that are shown at most.
const LINES: usize = 40;

/// The longest word of tor's that is shown whole.
const WORD: usize = 24;

/// Draws all of it.
pub(super) fn put(sheet: &mut Sheet, data: Option<&CircuitData>, axis: Axis) {
    sheet.gap();
    let Some(data) = data else {
        sheet.line("circuit not known: perfd has no control of this tor");
        return;
    };
    match data.state {
        CircuitState::Known => {}
        CircuitState::Unseen => sheet.line("circuit unseen: tor told of no stream of this run"),
        CircuitState::TorLost => {
            sheet.line("circuit tor_lost: perfd was not connected to tor's control port, or not all the time");
        }
    }
    if let Some(circuit) = &data.circuit {
        put_circuit(sheet, data, circuit);
    }
    if let Some(conflux) = &data.conflux {
        put_conflux(sheet, conflux);
    }
    if let Some(onion) = &data.onion {
        put_onion(sheet, onion, axis);
    }
    if let Some(congestion) = &data.congestion {
        put_congestion(sheet, congestion, axis);
    }
    put_stream(sheet, data);
    for event in data.guard_events.iter().take(LINES) {
        let (at, guard) = (ms(event.at_us), relay_name(&event.relay));
        sheet.line(format!("{at:>12} ms  guard {guard} {}", graphic(&event.status, WORD)));
    }
}

fn put_circuit(sheet: &mut Sheet, data: &CircuitData, circuit: &Circuit) {
    let of_tor =
        data.tor_version.as_ref().map_or(String::new(), |version| format!(" of tor {}", graphic(version, WORD)));
    let stream = data.stream_id.map_or(String::new(), |id| format!(", stream {id}"));
    let words = [&circuit.purpose, &circuit.hs_state].into_iter().flatten();
    let words: String = words.map(|word| format!(" {}", graphic(word, WORD))).collect();
    sheet.line(format!("circuit {}{words}{of_tor} (connection {}{stream})", circuit.id, data.connection));
    if !circuit.build_flags.is_empty() {
        let flags: Vec<String> = circuit.build_flags.iter().map(|flag| graphic(flag, WORD)).collect();
        sheet.line(format!("  flags {}", flags.join(", ")));
    }
    let mut facts = Vec::new();
    if let Some(launched) = circuit.launched_us {
        facts.push(format!("launched {}", beside_start(launched)));
        if let Some(took) = circuit.built_us.and_then(|built| built.checked_sub(launched)) {
            facts.push(format!("built in {} ms", ms(took)));
        }
    }
    if !facts.is_empty() {
        sheet.line(format!("  {}", facts.join(", ")));
    }
    if let Some(used) = circuit.last_used_us {
        sheet.line(format!("  used by another run {}", beside_start(used)));
    }
    if let Some(timeout) = &data.build_timeout {
        let quantile = timeout.quantile.map_or(String::new(), |quantile| format!(", quantile {quantile}"));
        let learning = if timeout.learning == Some(true) { ", still learning" } else { "" };
        sheet.line(format!("  build timeout {} ms{quantile}{learning}", timeout.timeout_ms));
    }
    if let Some(end) = &circuit.end {
        let word = if end.failed { "failed" } else { "closed" };
        let reasons = reasons(end.reason.as_deref(), end.remote_reason.as_deref());
        sheet.line(format!("  {word} {}{reasons}", beside_start(end.at_us)));
    }
    put_hops(sheet, circuit);
}

/// The hops, each with its time after the launch.
fn put_hops(sheet: &mut Sheet, circuit: &Circuit) {
    let at = |micros: u64| i64::try_from(micros).unwrap_or(i64::MAX);
    let times: Vec<Option<i64>> = circuit.path.iter().map(|hop| hop.built_after_us.map(at)).collect();
    let axis = Axis::over(times.iter().flatten().copied());
    let ruler = if times.iter().any(Option::is_some) { axis.ruler() } else { String::new() };
    sheet.row("  hops, after the launch", "ms", &ruler);
    let mut last = 0;
    for (number, (hop, time)) in circuit.path.iter().zip(times).take(LINES).enumerate() {
        let short: String = hop.relay.fingerprint.chars().take(8).collect();
        let label = format!("  {} {} ${}", number + 1, relay_name(&hop.relay), graphic(&short, 8));
        let bar = time.map_or(String::new(), |time| axis.bar(last.min(time), time, '█'));
        sheet.row(&label, &time.map_or("-".to_owned(), ms), &bar);
        last = time.unwrap_or(last);
    }
}

/// The legs, each with what it carried; the bars are shares of what was read, or of what was written if more.
fn put_conflux(sheet: &mut Sheet, conflux: &Conflux) {
    sheet.line(format!("conflux set {}: {} legs", graphic(&conflux.id, WORD), conflux.legs.len()));
    let carried = |leg: &Circuit| i64::try_from(leg.bytes_read.max(leg.bytes_written).unwrap_or(0)).unwrap_or(i64::MAX);
    let all = conflux.legs.iter().fold(0i64, |all, leg| all.saturating_add(carried(leg)));
    let axis = Axis::over([all]);
    for leg in conflux.legs.iter().take(LINES) {
        let kib = |bytes: Option<u64>| bytes.map_or("-".to_owned(), |bytes| format!("{:.1}", bytes as f64 / 1024.0));
        let label = format!("  leg {}: KiB {} in, {} out", leg.id, kib(leg.bytes_read), kib(leg.bytes_written));
        let bar = if carried(leg) > 0 { axis.bar(0, carried(leg), '█') } else { String::new() };
        sheet.wide_row(&label, &bar);
        sheet.line(format!("    {}", path(leg)));
    }
}

fn put_onion(sheet: &mut Sheet, onion: &OnionSteps, axis: Axis) {
    let mut moments: Vec<(&str, i64)> = [
        ("descriptor asked for", onion.descriptor_requested_us),
        ("descriptor came", onion.descriptor_received_us),
        ("introduction circuit built", onion.intro_built_us),
        ("rendezvous circuit built", onion.rend_built_us),
        ("rendezvous established", onion.rend_established_us),
        ("introduction sent", onion.introduced_us),
        ("introduction acknowledged", onion.intro_acknowledged_us),
        ("service joined", onion.joined_us),
    ]
    .into_iter()
    .filter_map(|(name, at)| Some((name, at?)))
    .collect();
    moments.sort_by_key(|(_, at)| *at);
    sheet.row("onion service", "ms", &axis.ruler());
    put_moments(sheet, &moments, axis);
    if onion.descriptor_requests > 1 {
        sheet.line(format!("  {} directories were asked for the descriptor", onion.descriptor_requests));
    }
    for (whose, circuit) in [("introduction", &onion.intro), ("the service's", &onion.service)] {
        if let Some(circuit) = circuit {
            sheet.line(format!("  {whose} circuit {}: {}", circuit.id, path(circuit)));
        }
    }
}

/// The window and the round-trip time over the run's axis, each sample held until the next.
fn put_congestion(sheet: &mut Sheet, congestion: &Congestion, axis: Axis) {
    let held = |value: fn(&CongestionSample) -> Option<u64>| -> Vec<Option<f64>> {
        let samples = &congestion.samples;
        let at = |end: i64| samples.iter().rev().filter(|sample| sample.at_us <= end).find_map(value);
        axis.ends().map(|end| at(end).map(|value| value as f64)).collect()
    };
    let whose = if congestion.of_service { "the service's" } else { "the client's" };
    sheet.line(format!("congestion control of {whose} circuit {}", congestion.circuit_id));
    let window = held(|sample| sample.cwnd_cells);
    sheet.wide_row(&format!("  window, █ = {:.0} cells", largest(&window)), &sparkline(&window));
    let trip = held(|sample| sample.rtt_us);
    if largest(&trip) > 0.0 {
        sheet.wide_row(&format!("  round trip, █ = {:.1} ms", largest(&trip) / 1e3), &sparkline(&trip));
    }
    if let Some(least) = congestion.samples.iter().filter_map(|sample| sample.min_rtt_us).min() {
        sheet.line(format!("  shortest round trip {:.1} ms", least as f64 / 1e3));
    }
    if let Some(left) = congestion.samples.iter().find(|sample| sample.slow_start == Some(false)) {
        sheet.line(format!("  out of slow start by {}", beside_start(left.at_us)));
    }
}

/// The stream's story, where there is one: more than one attachment, or a failure.
fn put_stream(sheet: &mut Sheet, data: &CircuitData) {
    let attached = data.stream.iter().filter(|event| event.status.starts_with("SENT")).count();
    let troubled = data.stream.iter().any(|event| matches!(event.status.as_str(), "DETACHED" | "FAILED"));
    if attached < 2 && !troubled {
        return;
    }
    sheet.line("the run's stream");
    for event in data.stream.iter().take(LINES) {
        let circuit = event.circuit_id.map_or(String::new(), |id| format!("circuit {id}"));
        let reasons = reasons(event.reason.as_deref(), event.remote_reason.as_deref());
        let (at, status) = (ms(event.at_us), graphic(&event.status, WORD));
        sheet.line(format!("{at:>12} ms  {status:<12} {circuit}{reasons}"));
    }
    if let more @ 1.. = data.stream.len().saturating_sub(LINES) {
        sheet.line(format!("  and {more} more"));
    }
}

fn reasons(own: Option<&str>, remote: Option<&str>) -> String {
    let own = own.map_or(String::new(), |reason| format!(" REASON={}", graphic(reason, WORD)));
    let remote = remote.map_or(String::new(), |reason| format!(" REMOTE_REASON={}", graphic(reason, WORD)));
    own + &remote
}

fn path(circuit: &Circuit) -> String {
    circuit.path.iter().map(|hop| relay_name(&hop.relay)).collect::<Vec<_>>().join(">")
}
