//! Results as an aligned table for people.

use super::json::ResultJson;
use crate::circuit::{CircuitState, Relay};
use crate::config::units::format_size;

const COLUMNS: usize = 9;

const HEADINGS: [&str; COLUMNS] =
    ["OUTCOME", "EXPERIMENT", "SIZE", "START", "FIRST BYTE", "LAST BYTE", "KiB/s", "RUN", "PATH"];

/// Which columns hold numbers, which are aligned to the right.
const NUMBERS: [bool; COLUMNS] = [false, false, true, false, true, true, true, false, false];

/// A line of headings and one line per result, each ended. Times are seconds after START (the start
/// itself in UTC), KiB/s is the mean from START to the last byte, RUN the first eight digits of the
/// run's name, PATH the nicknames of the circuit's hops (of a relay without one, the first eight digits of its
/// fingerprint), the guard first. `-` stands where a step was not reached or a path is not known, and
/// `tor_lost` where perfd did not hear tor.
pub fn render(results: &[ResultJson]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(results.iter().map(cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    lines.iter().map(|line| align(line, &widths)).collect()
}

/// The same table, line by line as results come: a column is as wide as the widest cell so far.
#[derive(Debug)]
pub struct Lines {
    widths: [usize; COLUMNS],
}

impl Default for Lines {
    /// With room for what is usual.
    fn default() -> Self {
        // As wide as what fails at the step with the longest name.
        let usual = ["timeout data_complete", "", "512 KiB", "2026-11-22 10:00:00", "", "", "10000.0", "00000000", ""];
        Lines { widths: std::array::from_fn(|column| usual[column].len().max(HEADINGS[column].len())) }
    }
}

impl Lines {
    /// The line of headings, ended.
    pub fn headings(&self) -> String {
        align(&HEADINGS.map(str::to_owned), &self.widths)
    }

    /// The result's line, ended; of one that was shown before, `again`, it says that it was completed.
    pub fn line(&mut self, result: &ResultJson, again: bool) -> String {
        let mut cells = cells(result);
        if again {
            cells[COLUMNS - 1].push_str("  completed later");
        }
        for (width, cell) in self.widths.iter_mut().zip(&cells).take(COLUMNS - 1) {
            *width = cell.chars().count().max(*width);
        }
        align(&cells, &self.widths)
    }
}

fn align(cells: &[String; COLUMNS], widths: &[usize; COLUMNS]) -> String {
    let mut line = String::new();
    for ((cell, &width), number) in cells.iter().zip(widths).zip(NUMBERS) {
        let gap = if line.is_empty() { "" } else { "  " };
        let padded = if number { format!("{gap}{cell:>width$}") } else { format!("{gap}{cell:<width$}") };
        line.push_str(&padded);
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

fn cells(result: &ResultJson) -> [String; COLUMNS] {
    let start = result.start.split('.').next().unwrap_or_default().replace('T', " ");
    let rate = result.mean_bytes_per_second.map_or("-".to_owned(), |rate| format!("{:.1}", rate / 1024.0));
    [
        printable(&outcome(result)),
        printable(&result.experiment),
        if result.size_bytes > 0 { format_size(result.size_bytes) } else { "-".to_owned() },
        printable(&start),
        seconds(result.time_to_first_byte_us),
        seconds(result.time_to_last_byte_us),
        rate,
        printable(result.run_id.get(..8).unwrap_or(&result.run_id)),
        path(result),
    ]
}

fn path(result: &ResultJson) -> String {
    let Some(data) = &result.circuit else { return "-".to_owned() };
    let hops = data.circuit.as_ref().map_or(&[][..], |circuit| &circuit.path);
    match (hops, data.state) {
        ([], CircuitState::TorLost) => CircuitState::TorLost.as_str().to_owned(),
        ([], _) => "-".to_owned(),
        _ => hops.iter().map(|hop| relay_name(&hop.relay)).collect::<Vec<_>>().join(">"),
    }
}

/// A relay's nickname, or else the first eight digits of its fingerprint, of graphic ASCII alone: a relay's
/// operator chooses it.
pub(super) fn relay_name(relay: &Relay) -> String {
    let name = match relay.nickname.as_deref() {
        Some(nickname) if !nickname.is_empty() => nickname.to_owned(),
        _ => format!("${}", relay.fingerprint.chars().take(8).collect::<String>()),
    };
    graphic(&name, 19)
}

/// Text of a stranger's, on one line and within one word: what is not graphic ASCII is `?`, and what is longer
/// than `most` is cut.
pub(super) fn graphic(text: &str, most: usize) -> String {
    let shown = |c: char| if c.is_ascii_graphic() { c } else { '?' };
    text.chars().take(most).map(shown).collect()
}

fn outcome(result: &ResultJson) -> String {
    match (&result.phase, &result.cause) {
        (Some(phase), Some(cause)) => format!("{} {phase}/{cause}", result.outcome),
        (Some(phase), None) => format!("{} {phase}", result.outcome),
        _ => result.outcome.clone(),
    }
}

fn seconds(micros: Option<u64>) -> String {
    micros.map_or("-".to_owned(), |micros| format!("{:.3} s", micros as f64 / 1e6))
}

/// Text on one line: what a service sends must not steer the terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measurement::{Outcome, Phase};
    use crate::test_support::circuit::example_circuit;
    use crate::test_support::example_row;

    #[test]
    fn results_stand_in_columns() {
        let mut late = example_row();
        late.experiment = "large\u{1b}[2J".to_owned();
        late.measurement.size = 5 << 20;
        late.measurement.outcome = Outcome::Timeout(Phase::DataComplete);
        late.measurement.steps.data_complete = None;
        let mut data = example_circuit();
        data.circuit = None;
        data.state = CircuitState::TorLost;
        late.circuit = Some(data);
        let mut hostile = example_row();
        hostile.circuit = Some(example_circuit());
        let hops = &mut hostile.circuit.as_mut().unwrap().circuit.as_mut().unwrap().path;
        hops[1].relay.nickname = Some("\u{202e}evil\u{1b}[2J and more than it may".to_owned());
        hops[2].relay.nickname = None;
        let table = render(&[example_row(), late, hostile].map(|row| ResultJson::from(&row)));
        let expected = "\
OUTCOME                EXPERIMENT    SIZE  START                FIRST BYTE  LAST BYTE  KiB/s  RUN       PATH
complete               small       50 KiB  2026-11-22 10:00:00     0.700 s    1.500 s   33.3  00000000  -
timeout data_complete  large?[2J    5 MiB  2026-11-22 10:00:00     0.700 s          -      -  00000000  tor_lost
complete               small       50 KiB  2026-11-22 10:00:00     0.700 s    1.500 s   33.3  00000000  relay1>?evil?[2J?and?more?>$33333333
";
        assert_eq!(table, expected);
    }

    #[test]
    fn lines_that_come_one_by_one_stand_in_columns_too() {
        let (mut lines, mut large) = (Lines::default(), example_row());
        large.experiment = "an experiment".to_owned();
        let text = [
            lines.headings(),
            lines.line(&ResultJson::from(&example_row()), false),
            lines.line(&ResultJson::from(&large), false),
            lines.line(&ResultJson::from(&example_row()), true),
        ];
        let expected = "\
OUTCOME                EXPERIMENT     SIZE  START                FIRST BYTE  LAST BYTE    KiB/s  RUN       PATH
complete               small        50 KiB  2026-11-22 10:00:00     0.700 s    1.500 s     33.3  00000000  -
complete               an experiment   50 KiB  2026-11-22 10:00:00     0.700 s    1.500 s     33.3  00000000  -
complete               small           50 KiB  2026-11-22 10:00:00     0.700 s    1.500 s     33.3  00000000  -  completed later
";
        assert_eq!(text.concat(), expected);
    }
}
