//! Which slots come due, and what becomes of each.

use std::time::Duration;

use perfd::clock::UnixMicros;
use perfd::measurement::{Place, ServerKind};
use perfd::slot::{Grid, SlotReason, SlotRow, SlotState};
use perfd::store::NewResult;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::Entry;
use crate::circuits::Network;
use crate::runs::{self, Way};

/// One of the experiments.
pub struct Experiment {
    pub name: String,
    pub tor: &'static str,
    pub server: ServerKind,
    pub size: u64,
    grid: Grid,
}

/// The tors; each is measured through to both servers.
pub const TORS: [&str; 4] = ["main", "single-path", "one-guard", "bridge"];
const SERVERS: [(ServerKind, &str); 2] = [(ServerKind::Exit, "exit"), (ServerKind::Onion, "onion")];
/// Torperf's: size, seconds from one to the next, and after the full such time.
const SIZES: [(&str, u64, u64, u64); 3] =
    [("50kib", 51_200, 300, 0), ("1mib", 1_048_576, 1_800, 67), ("5mib", 5_242_880, 3_600, 131)];

const HOUR: i64 = 3_600_000_000;

/// All slots with their results, in the order of time, until there are so many results.
pub fn entries(rows: u64, seed: u64, circuits: u64, until: UnixMicros) -> impl Iterator<Item = Entry> {
    let experiments = experiments();
    let an_hour = due_within_an_hour(&experiments);
    // Some slots have no result, so that this ends near `until`.
    let hours = (rows as f64 / (an_hour.len() as f64 * 0.99)).ceil() as i64;
    let begin = (until.0 / HOUR - hours) * HOUR;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let network = Network::new(&mut rng);
    let mut state = Ledger { away_until: i64::MIN, down_until: [i64::MIN; TORS.len()] };
    let mut made = 0;
    (0..)
        .flat_map(move |hour| {
            let from = begin + hour * HOUR;
            let mut entries = state.gaps(&experiments, from, &mut rng);
            let years = (from - begin) as f64 / (8766.0 * HOUR as f64);
            let way = Way::at(UnixMicros(from), years, &mut rng);
            for (after, index) in &an_hour {
                let (experiment, planned) = (&experiments[*index], UnixMicros(from + after));
                if planned.0 < state.away_until {
                    continue;
                }
                let (mut slot, measured) = state.slot(experiment, planned, &mut rng);
                let mut results = Vec::new();
                if measured && made < rows {
                    made += 1;
                    let told = made + circuits > rows;
                    let result = result(experiment, planned, &way, &network, told, &mut rng);
                    slot.ended = Some(UnixMicros(result.measurement.start.0 + result.measurement.ended as i64));
                    results.push(result);
                }
                entries.push((slot, results));
            }
            entries
        })
        .scan(0, move |count, entry: Entry| {
            let enough = *count >= rows;
            *count += entry.1.len() as u64;
            (!enough).then_some(entry)
        })
}

fn experiments() -> Vec<Experiment> {
    let mut experiments = Vec::new();
    for (set, tor) in TORS.into_iter().enumerate() {
        for (way, (server, server_name)) in SERVERS.into_iter().enumerate() {
            for (size_name, size, every, offset) in SIZES {
                // No two begin in the same second.
                let offset = offset + (set * 2 + way) as u64 * every / 8;
                experiments.push(Experiment {
                    name: format!("{size_name}-{tor}-{server_name}"),
                    tor,
                    server,
                    size,
                    grid: Grid::new(Duration::from_secs(every), Duration::from_secs(offset)),
                });
            }
        }
    }
    experiments
}

/// When slots come due in each hour, in µs after it began, and of which experiment; in the order of time.
fn due_within_an_hour(experiments: &[Experiment]) -> Vec<(i64, usize)> {
    let mut due = Vec::new();
    for (index, experiment) in experiments.iter().enumerate() {
        let mut at = experiment.grid.next_after(UnixMicros(-1));
        while at.0 < HOUR {
            due.push((at.0, index));
            at = experiment.grid.next_after(at);
        }
    }
    due.sort_unstable();
    due
}

/// What keeps slots from being measured.
struct Ledger {
    away_until: i64,
    down_until: [i64; TORS.len()],
}

impl Ledger {
    /// Whether perfd goes away in this hour, about six times a year: the gap of each experiment. Tors go down too.
    fn gaps(&mut self, experiments: &[Experiment], from: i64, rng: &mut ChaCha8Rng) -> Vec<Entry> {
        for down in &mut self.down_until {
            if rng.random_ratio(1, 3_000) {
                *down = from + rng.random_range(HOUR / 20..3 * HOUR);
            }
        }
        if from < self.away_until || !rng.random_ratio(1, 1_500) {
            return Vec::new();
        }
        self.away_until = from + rng.random_range(HOUR / 30..40 * HOUR);
        let (before, last) = (UnixMicros(from - 1), UnixMicros(self.away_until - 1));
        let gap = |experiment: &Experiment| {
            let grid = &experiment.grid;
            let count = grid.count_between(before, last);
            let row = SlotRow {
                planned: grid.next_after(before),
                planned_last: grid.latest_at(last),
                count,
                ..slot_row(experiment, before, SlotState::Missed, None)
            };
            (count > 0).then_some((row, Vec::new()))
        };
        experiments.iter().filter_map(gap).collect()
    }

    /// The slot's row, and whether there is a result.
    fn slot(&self, experiment: &Experiment, planned: UnixMicros, rng: &mut ChaCha8Rng) -> (SlotRow, bool) {
        let tor = TORS.iter().position(|tor| *tor == experiment.tor).unwrap_or(0);
        let row = |state, reason| slot_row(experiment, planned, state, reason);
        if planned.0 < self.down_until[tor] {
            return (row(SlotState::Skipped, Some(SlotReason::TorDown)), false);
        }
        match rng.random_range(0..10_000) {
            0..20 => (row(SlotState::Skipped, Some(SlotReason::Busy)), false),
            20 => {
                let mut row = row(SlotState::Aborted, Some(SlotReason::Shutdown));
                row.started = Some(UnixMicros(planned.0 + 700));
                row.ended = Some(UnixMicros(planned.0 + rng.random_range(1_000..2_000_000)));
                (row, false)
            }
            _ => {
                let mut row = row(SlotState::Done, None);
                row.started = Some(UnixMicros(planned.0 + rng.random_range(200..2_000)));
                (row, true)
            }
        }
    }
}

fn slot_row(experiment: &Experiment, planned: UnixMicros, state: SlotState, reason: Option<SlotReason>) -> SlotRow {
    SlotRow {
        experiment: experiment.name.clone(),
        planned,
        planned_last: planned,
        count: 1,
        state,
        reason,
        started: None,
        ended: None,
    }
}

fn result(
    experiment: &Experiment,
    planned: UnixMicros,
    way: &Way,
    network: &Network,
    told: bool,
    rng: &mut ChaCha8Rng,
) -> NewResult {
    let measurement = runs::measurement(experiment, planned, way, told, rng);
    let circuit = told.then(|| network.circuit(experiment, &measurement, rng));
    NewResult {
        source: "op-bench".to_owned(),
        experiment: experiment.name.clone(),
        tor: experiment.tor.to_owned(),
        planned,
        configuration: configuration(experiment),
        version: "0.1.0".to_owned(),
        server: experiment.server,
        place: Place::ALONE,
        measurement,
        circuit,
    }
}

fn configuration(experiment: &Experiment) -> String {
    format!("name = \"{}\"\ntor = \"{}\"\nsize = \"{} B\"\n", experiment.name, experiment.tor, experiment.size)
}
