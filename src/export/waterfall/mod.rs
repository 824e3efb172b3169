//! One run as a waterfall for people: plain text of at most 100 columns.
//!
//! Bars of steps, onion steps and deciles, the rate and the window share one time axis, from START to the end
//! of the run; a circuit's hops have one of their own, from its launch. Nicknames come from the network, and
//! whatever is not plain ASCII in them is shown as `?`.

mod circuit;
mod sheet;
#[cfg(test)]
mod tests;

use super::json::ResultJson;
use super::whole::WholeJson;
use crate::config::units::format_size;
use crate::measurement::Curve;
use sheet::{Axis, Sheet, WIDTH, largest, ms, sparkline};

/// Other runs of the slot that are named.
const MATES: usize = 20;

/// The run as text, each line ended.
pub fn render(run: &WholeJson) -> String {
    let (result, mut sheet) = (&run.result, Sheet::default());
    let steps = steps_of(result);
    let ended = signed(result.ended_us);
    let axis = Axis::over(steps.iter().map(|(_, at)| *at).chain([ended]));
    title(&mut sheet, result);
    put_steps(&mut sheet, result, &steps, axis);
    rate(&mut sheet, &run.curve, axis);
    both_ends(&mut sheet, result, axis);
    circuit::put(&mut sheet, result.circuit.as_ref(), axis);
    mates(&mut sheet, run);
    notes(&mut sheet, run);
    sheet.text()
}

fn title(sheet: &mut Sheet, result: &ResultJson) {
    let outcome = match (&result.phase, &result.cause) {
        (Some(phase), Some(cause)) => format!("{} at {phase} ({cause})", result.outcome),
        (Some(phase), None) => format!("{} waiting for {phase}", result.outcome),
        _ => result.outcome.clone(),
    };
    let optimistic = if result.optimistic { "optimistic " } else { "" };
    let server = match (result.server.as_str(), result.kind.as_str()) {
        ("exit", _) => "by exit",
        ("single_onion", "upload") => "to a single-hop onion service",
        ("single_onion", _) => "from a single-hop onion service",
        (_, "upload") => "to an onion service",
        _ => "from an onion service",
    };
    let size = if result.size_bytes > 0 { format!(" of {}", format_size(result.size_bytes)) } else { String::new() };
    sheet.line(format!("{outcome}: {optimistic}{}{size} {server} through {}", result.kind, result.tor));
    if let Some(detail) = &result.detail {
        sheet.line(detail.as_str());
    }
    sheet.line(format!("run {}, experiment {}, source {}", result.run_id, result.experiment, result.source));
    let start = result.start.replacen('T', " ", 1).replace('Z', " UTC");
    sheet.line(match (&result.perfd_version, &result.imported) {
        (Some(version), _) => format!("START {start}, perfd {version}"),
        (None, Some(file)) => format!("START {start}, imported from {file}"),
        (None, None) => format!("START {start}"),
    });
}

/// The steps that were reached, in order of time.
fn steps_of(result: &ResultJson) -> Vec<(&'static str, i64)> {
    let steps = &result.steps_us;
    let mut reached: Vec<_> = [
        ("socket created", steps.socket),
        ("connected to the proxy", steps.connect),
        ("SOCKS method chosen", steps.negotiate),
        ("SOCKS request sent", steps.request),
        ("SOCKS reply came", steps.response),
        ("HTTP request written", steps.data_request),
        ("HTTP response begun", steps.data_response),
        ("payload complete", steps.data_complete),
    ]
    .into_iter()
    .filter_map(|(name, at)| Some((name, signed(at?))))
    .collect();
    reached.sort_by_key(|(_, at)| *at);
    reached
}

fn put_steps(sheet: &mut Sheet, result: &ResultJson, steps: &[(&str, i64)], axis: Axis) {
    sheet.gap();
    sheet.row("steps", "ms", &axis.ruler());
    let last = put_moments(sheet, steps, axis);
    if let Some(phase) = &result.phase {
        sheet.row(&format!("  no {phase}"), "-", &axis.bar(last, signed(result.ended_us), '░'));
    }
}

/// A row for each of these moments, which are in order, its bar beginning where the one before ended. Gives
/// the last.
fn put_moments(sheet: &mut Sheet, moments: &[(&str, i64)], axis: Axis) -> i64 {
    let mut last = moments.first().map_or(0, |(_, at)| (*at).min(0));
    for (name, at) in moments {
        sheet.row(&format!("  {name}"), &ms(*at), &axis.bar(last, *at, '█'));
        last = *at;
    }
    last
}

/// Bytes per second over the axis, from the curve.
fn rate(sheet: &mut Sheet, curve: &Curve, axis: Axis) {
    let (Some(first), Some(last)) = (curve.first(), curve.last()) else { return };
    let mut before = (signed(first.0), first.1 as f64);
    let rate = |end: i64| {
        if end <= signed(first.0) || before.0 >= signed(last.0) {
            return None;
        }
        let now = (end, bytes_at(curve, end));
        let seconds = (now.0 - before.0).max(1) as f64 / 1e6;
        let rate = (now.1 - before.1).max(0.0) / seconds;
        before = now;
        Some(rate)
    };
    let rates: Vec<Option<f64>> = axis.ends().map(rate).collect();
    sheet.wide_row(&format!("bytes per second, █ = {:.1} KiB/s", largest(&rates) / 1024.0), &sparkline(&rates));
}

/// The bytes that had passed by then, as if they passed evenly between two points.
fn bytes_at(curve: &Curve, at: i64) -> f64 {
    let at = at.max(0) as u64;
    let after = curve.partition_point(|(us, _)| *us <= at);
    match (after.checked_sub(1).and_then(|before| curve.get(before)), curve.get(after)) {
        (Some(before), Some(next)) => {
            let part = (at - before.0) as f64 / (next.0 - before.0).max(1) as f64;
            before.1 as f64 + part * (next.1 as f64 - before.1 as f64)
        }
        (Some(last), None) => last.1 as f64,
        (None, next) => next.map_or(0.0, |next| next.1 as f64),
    }
}

/// Of an upload, when each tenth was taken for sending here and when it had come there.
fn both_ends(sheet: &mut Sheet, result: &ResultJson, axis: Axis) {
    let Some(server) = &result.server_us else { return };
    sheet.gap();
    sheet.wide_row("payload: sent here, come there (ms)", "");
    for (tenth, (sent, came)) in result.deciles_us.0.iter().zip(server.deciles.0).enumerate() {
        let sent = sent.map(signed);
        let shown = |at: Option<i64>| at.map_or("-".to_owned(), ms);
        let label = format!("  {:>3} %  {:>12}  {:>12}", tenth * 10, shown(sent), shown(came));
        let bar = sent.zip(came).map(|(sent, came)| axis.bar(sent.min(came), came.max(sent), '█'));
        sheet.wide_row(&label, &bar.unwrap_or_default());
    }
}

fn mates(sheet: &mut Sheet, run: &WholeJson) {
    let place = &run.result.place;
    if place.of > 1 || !run.slot_runs.is_empty() {
        sheet.gap();
        sheet.line(format!("run {} of {} of its slot", u64::from(place.index) + 1, place.of));
    }
    for mate in run.slot_runs.iter().take(MATES) {
        sheet.line(format!("  run {}: {} through {}", u64::from(mate.index) + 1, mate.run_id, mate.tor));
    }
    if let more @ 1.. = run.slot_runs.len().saturating_sub(MATES) {
        sheet.line(format!("  and {more} more"));
    }
}

/// What people noted, each line of a note on a line of its own.
fn notes(sheet: &mut Sheet, run: &WholeJson) {
    for note in &run.annotations {
        sheet.gap();
        let about = if note.run_id.is_some() { "" } else { " on this time" };
        let tags: String = note.tags.iter().map(|tag| format!(" #{tag}")).collect();
        let written = note.created.split('.').next().unwrap_or_default().replacen('T', " ", 1);
        sheet.line(format!("note {}{about} by {}, {written} UTC{tags}", note.id, note.author));
        for line in note.note.lines() {
            let characters: Vec<char> = line.chars().collect();
            characters.chunks(WIDTH - 2).for_each(|part| sheet.line(format!("  {}", part.iter().collect::<String>())));
        }
    }
}

fn signed(micros: u64) -> i64 {
    i64::try_from(micros).unwrap_or(i64::MAX)
}
