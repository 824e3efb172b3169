//! What is gathered of results, or of roll-ups where they are gone, and the rows that become of it (no I/O).

mod tor_metrics;

use std::collections::{BTreeMap, HashMap};

use super::question::{Question, Statistic};
use super::table::{Cell, Row};
use super::window::{Context, Groups};
use crate::clock::UnixMicros;
use crate::export::pairs::compare;
use crate::stats::conflux::{Side, WithAndWithout};
use crate::stats::onionperf::error_code;
use crate::stats::paired::Difference;
use crate::stats::percentile::sorted;
use crate::stats::relays::Relays;
use crate::stats::{Ecdf, End, Quantity, Rollup, Sample, Summary};
use crate::store::{PairRow, Wanted};

/// Takes results in, each with the moment at which its period began and the number of its series.
pub(super) trait Gather {
    /// Takes a result in. Gives how many values it keeps of it.
    fn add(&mut self, start: UnixMicros, series: usize, sample: &Sample) -> u64;

    /// Takes in what a day's results of a series came to.
    fn add_rollup(&mut self, _start: UnixMicros, _series: usize, _rollup: &Rollup) {}

    /// The rows, by period.
    fn finish(self: Box<Self>, context: &Context<'_>) -> Vec<Row>;
}

/// What takes in the results for this question.
pub(super) fn empty(question: &Question, groups: &Groups) -> Box<dyn Gather> {
    match question.statistic {
        Statistic::Downloads
        | Statistic::Timeouts
        | Statistic::BuildTimes
        | Statistic::Latencies
        | Statistic::Throughput => tor_metrics::empty(question.statistic),
        Statistic::Relays => Box::new(RelayLots { group: groups.group.clone(), lots: BTreeMap::new() }),
        Statistic::Conflux => {
            let quantity = question.quantities.first().copied().unwrap_or(Quantity::TimeToLastByte);
            Box::new(Sides { quantity, group: groups.group.clone(), lots: BTreeMap::new() })
        }
        _ => Box::new(Lots {
            quantities: question.quantities.clone(),
            group: groups.group.clone(),
            lots: BTreeMap::new(),
        }),
    }
}

/// What takes in roll-ups for this question; `None` where they don't tell what it asks.
pub(super) fn empty_of_rollups(question: &Question, groups: &Groups) -> Option<Box<dyn Gather>> {
    match question.statistic {
        Statistic::Relays | Statistic::Conflux | Statistic::Paired => None,
        Statistic::Downloads
        | Statistic::Timeouts
        | Statistic::BuildTimes
        | Statistic::Latencies
        | Statistic::Throughput => Some(tor_metrics::empty_of_rollups(question.statistic)),
        _ => Some(empty(question, groups)),
    }
}

/// What of the results is needed.
pub(super) fn wanted(question: &Question) -> Wanted {
    let mut wanted = Wanted::default();
    match question.statistic {
        Statistic::Downloads => wanted.partials = true,
        Statistic::BuildTimes | Statistic::Relays => wanted.circuit = true,
        Statistic::Latencies => wanted.steps = true,
        Statistic::Throughput => wanted.deciles = true,
        Statistic::Conflux => wanted.circuit = true,
        _ => {}
    }
    for quantity in &question.quantities {
        match quantity {
            Quantity::TimeToLastByte | Quantity::MeanThroughput => {}
            Quantity::TimeToFirstByte | Quantity::ThroughputTorMetrics | Quantity::ThroughputOnionperf => {
                wanted.deciles = true;
            }
            Quantity::Download51200 | Quantity::Download1048576 | Quantity::Download5242880 => wanted.partials = true,
            Quantity::BuildTime1 | Quantity::BuildTime2 | Quantity::BuildTime3 => wanted.circuit = true,
            _ => wanted.steps = true,
        }
    }
    wanted
}

const PERCENTILES: [&str; 9] = ["mean", "min", "max", "p10", "p25", "p50", "p75", "p90", "p99"];

/// The names of the columns of its rows.
pub(super) fn columns(question: &Question) -> Vec<&'static str> {
    let group: Vec<&str> = question.group.iter().map(|dimension| dimension.as_str()).collect();
    let of = |before: &[&'static str], after: &[&'static str]| [before, &group, after].concat();
    match question.statistic {
        Statistic::Ecdf => of(&[], &["quantity", "unit", "value", "share", "samples", "coverage", "exact"]),
        Statistic::Failures => {
            let after = ["outcome", "phase", "cause", "runs", "share", "samples", "coverage", "exact"];
            of(&["period"], &after)
        }
        Statistic::Relays => {
            let of_relay = ["list", "rank", "fingerprint", "runs", "complete", "slow", "failed", "slow_share"];
            of(&["period"], &[&of_relay[..], &["failed_share", "samples", "coverage", "exact"]].concat())
        }
        Statistic::Conflux => {
            let before = ["quantity", "unit", "conflux", "runs", "complete", "samples", "coverage"];
            let after = ["median_difference", "unknown", "exact"];
            of(&["period"], &[&before[..], &PERCENTILES, &after].concat())
        }
        Statistic::Paired => vec![
            "period",
            "experiment",
            "a",
            "b",
            "quantity",
            "unit",
            "samples",
            "a_incomplete",
            "b_incomplete",
            "both_incomplete",
            "one_missing",
            "coverage",
            "mean_difference",
            "low_95",
            "high_95",
            "median_difference",
            "median_a",
            "median_b",
        ],
        Statistic::OnionPerfDownloads => of(&["period"], &["downloads", "complete", "coverage", "exact"]),
        Statistic::OnionPerfErrors => {
            of(&["period"], &["error_code", "downloads", "share", "samples", "coverage", "exact"])
        }
        Statistic::Downloads
        | Statistic::Timeouts
        | Statistic::BuildTimes
        | Statistic::Latencies
        | Statistic::Throughput => tor_metrics::columns(question.statistic),
        _ => {
            let before = ["quantity", "unit", "runs", "samples", "coverage"];
            of(&["period"], &[&before[..], &PERCENTILES, &["exact"]].concat())
        }
    }
}

/// Values by period and group, or roll-ups.
struct Lots {
    quantities: Vec<Quantity>,
    /// The group of each series.
    group: Vec<usize>,
    lots: BTreeMap<(UnixMicros, usize), Lot>,
}

#[derive(Default)]
struct Lot {
    ends: HashMap<End, u64>,
    /// By the quantity's number.
    values: Vec<Vec<f64>>,
    rollup: Option<Rollup>,
}

impl Gather for Lots {
    fn add(&mut self, start: UnixMicros, series: usize, sample: &Sample) -> u64 {
        let Some(group) = self.group.get(series) else { return 0 };
        let lot = self.lots.entry((start, *group)).or_default();
        *lot.ends.entry(sample.end).or_default() += 1;
        lot.values.resize(self.quantities.len(), Vec::new());
        let mut kept = 0;
        for (quantity, values) in self.quantities.iter().zip(&mut lot.values) {
            if let Some(value) = quantity.value(sample) {
                values.push(value);
                kept += 1;
            }
        }
        kept
    }

    fn add_rollup(&mut self, start: UnixMicros, series: usize, rollup: &Rollup) {
        let Some(group) = self.group.get(series) else { return };
        let lot = self.lots.entry((start, *group)).or_default();
        for (end, runs) in rollup.ends() {
            let count = lot.ends.entry(end).or_default();
            *count = count.saturating_add(runs);
        }
        lot.rollup.get_or_insert_default().merge(rollup);
    }

    fn finish(mut self: Box<Self>, context: &Context<'_>) -> Vec<Row> {
        // A gap is told too: slots were planned, and there is no result.
        for planned in context.planned() {
            self.lots.entry(planned).or_default();
        }
        let mut rows = Vec::new();
        for ((start, group), lot) in self.lots {
            match context.question.statistic {
                Statistic::Failures => lot.ends_into(context, start, group, &mut rows),
                Statistic::OnionPerfDownloads => {
                    let complete = lot.ends.get(&End::Complete).copied().unwrap_or(0);
                    let cells = [Cell::Count(lot.runs()), Cell::Count(complete), context.group_coverage(start, group)];
                    rows.push(whole_row(context, start, group, &cells));
                }
                Statistic::OnionPerfErrors => lot.errors_into(context, start, group, &mut rows),
                Statistic::Ecdf => lot.points_into(context, start, group, &mut rows),
                _ => lot.summaries_into(context, &self.quantities, start, group, &mut rows),
            }
        }
        rows
    }
}

impl Lot {
    fn runs(&self) -> u64 {
        self.ends.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    fn summaries_into(
        mut self,
        context: &Context<'_>,
        quantities: &[Quantity],
        start: UnixMicros,
        group: usize,
        rows: &mut Vec<Row>,
    ) {
        let (runs, floor) = (self.runs(), context.question.floor);
        for (number, quantity) in quantities.iter().enumerate() {
            let summary = match &self.rollup {
                Some(rollup) => rollup.summary(*quantity, floor),
                None => {
                    Summary::of(&sorted(self.values.get_mut(number).map(std::mem::take).unwrap_or_default()), floor)
                }
            };
            rows.push(summary_row(context, start, group, *quantity, runs, &summary));
        }
    }

    fn points_into(mut self, context: &Context<'_>, start: UnixMicros, group: usize, rows: &mut Vec<Row>) {
        let question = context.question;
        let Some(quantity) = question.quantities.first().copied() else { return };
        let ecdf = match &self.rollup {
            Some(rollup) => {
                rollup.histogram(quantity).map(|histogram| histogram.ecdf(quantity.scale())).unwrap_or_default()
            }
            None => Ecdf::of(&sorted(self.values.first_mut().map(std::mem::take).unwrap_or_default())),
        };
        let samples = ecdf.samples;
        let row = |value: Cell, share: Cell| {
            let cells = [
                Cell::name(quantity.as_str()),
                Cell::name(quantity.unit().as_str()),
                value,
                share,
                Cell::Count(samples),
                context.group_coverage(start, group),
                Cell::Flag(context.exact),
            ];
            context.groups.names[group].iter().cloned().chain(cells).collect::<Row>()
        };
        if !question.floor.shows_any(samples) {
            rows.push(row(Cell::Null, Cell::Null));
            return;
        }
        let points = ecdf.thinned(question.most).points;
        rows.extend(
            points
                .into_iter()
                .map(|(value, rank)| row(Cell::Number(value), Cell::Number(rank as f64 / samples as f64))),
        );
    }

    fn ends_into(self, context: &Context<'_>, start: UnixMicros, group: usize, rows: &mut Vec<Row>) {
        let all = self.runs();
        let mut ends: Vec<(End, u64)> = self.ends.into_iter().collect();
        ends.sort_unstable_by_key(|(end, _)| match end {
            End::Complete => (0, 0, 0),
            End::Timeout(phase) => (1, *phase as usize, 0),
            End::Failed(phase, cause) => (2, *phase as usize, *cause as usize),
        });
        if ends.is_empty() {
            let coverage = context.group_coverage(start, group);
            let cells = [Cell::Null, Cell::Null, Cell::Null, Cell::Count(0), Cell::Null, Cell::Count(0), coverage];
            rows.push(whole_row(context, start, group, &cells));
        }
        for (end, runs) in ends {
            let (outcome, phase, cause) = match end {
                End::Complete => ("complete", Cell::Null, Cell::Null),
                End::Timeout(phase) => ("timeout", Cell::name(phase.as_str()), Cell::Null),
                End::Failed(phase, cause) => ("failed", Cell::name(phase.as_str()), Cell::name(cause.as_str())),
            };
            let cells = [
                Cell::name(outcome),
                phase,
                cause,
                Cell::Count(runs),
                share(runs, all),
                Cell::Count(all),
                context.group_coverage(start, group),
            ];
            rows.push(whole_row(context, start, group, &cells));
        }
    }

    fn errors_into(self, context: &Context<'_>, start: UnixMicros, group: usize, rows: &mut Vec<Row>) {
        let all = self.runs();
        let mut codes: BTreeMap<String, u64> = BTreeMap::new();
        for (end, runs) in &self.ends {
            if let Some(code) = error_code(*end) {
                *codes.entry(code).or_default() += runs;
            }
        }
        for (code, runs) in codes {
            let coverage = context.group_coverage(start, group);
            let cells = [Cell::name(&code), Cell::Count(runs), share(runs, all), Cell::Count(all), coverage];
            rows.push(whole_row(context, start, group, &cells));
        }
    }
}

/// A row that begins with its period and group and ends with whether it is exact.
fn whole_row(context: &Context<'_>, start: UnixMicros, group: usize, cells: &[Cell]) -> Row {
    let mut row = vec![context.period(start)];
    row.extend(context.groups.names[group].iter().cloned());
    row.extend(cells.iter().cloned());
    row.push(Cell::Flag(context.exact));
    row
}

fn summary_row(
    context: &Context<'_>,
    start: UnixMicros,
    group: usize,
    quantity: Quantity,
    runs: u64,
    summary: &Summary,
) -> Row {
    let mut cells = vec![
        Cell::name(quantity.as_str()),
        Cell::name(quantity.unit().as_str()),
        Cell::Count(runs),
        Cell::Count(summary.samples),
        context.group_coverage(start, group),
    ];
    cells.extend(percentiles(summary));
    whole_row(context, start, group, &cells)
}

/// The cells of [`PERCENTILES`].
fn percentiles(summary: &Summary) -> [Cell; 9] {
    let Summary { mean, min, max, p10, p25, p50, p75, p90, p99, .. } = *summary;
    [mean, min, max, p10, p25, p50, p75, p90, p99].map(Cell::from)
}

fn share(part: u64, whole: u64) -> Cell {
    (whole > 0).then(|| part as f64 / whole as f64).into()
}

/// Relays by period and group.
struct RelayLots {
    group: Vec<usize>,
    lots: BTreeMap<(UnixMicros, usize), Relays>,
}

impl Gather for RelayLots {
    fn add(&mut self, start: UnixMicros, series: usize, sample: &Sample) -> u64 {
        if let Some(group) = self.group.get(series) {
            self.lots.entry((start, *group)).or_default().add(sample);
        }
        5
    }

    fn finish(self: Box<Self>, context: &Context<'_>) -> Vec<Row> {
        let mut rows = Vec::new();
        for ((start, group), relays) in self.lots {
            let report = relays.finish(context.question.most, context.question.floor);
            for (list, relays) in [("slowest", report.slowest), ("failing", report.failing)] {
                for (relay, rank) in relays.into_iter().zip(1..) {
                    let cells = [
                        Cell::name(list),
                        Cell::Count(rank),
                        Cell::name(&relay.fingerprint),
                        Cell::Count(relay.runs),
                        Cell::Count(relay.complete),
                        Cell::Count(relay.slow),
                        Cell::Count(relay.failed),
                        relay.slow_share.into(),
                        relay.failed_share.into(),
                        Cell::Count(report.runs),
                        context.group_coverage(start, group),
                    ];
                    rows.push(whole_row(context, start, group, &cells));
                }
            }
        }
        rows
    }
}

/// With Conflux and without, by period and group.
struct Sides {
    quantity: Quantity,
    group: Vec<usize>,
    lots: BTreeMap<(UnixMicros, usize), WithAndWithout>,
}

impl Gather for Sides {
    fn add(&mut self, start: UnixMicros, series: usize, sample: &Sample) -> u64 {
        let Some(group) = self.group.get(series) else { return 0 };
        self.lots.entry((start, *group)).or_insert_with(|| WithAndWithout::new(self.quantity)).add(sample);
        1
    }

    fn finish(self: Box<Self>, context: &Context<'_>) -> Vec<Row> {
        let mut rows = Vec::new();
        for ((start, group), sides) in self.lots {
            let found = sides.finish(context.question.floor);
            for (conflux, Side { runs, complete, values }) in [(true, found.with), (false, found.without)] {
                let mut cells = vec![
                    Cell::name(found.quantity.as_str()),
                    Cell::name(found.unit.as_str()),
                    Cell::Flag(conflux),
                    Cell::Count(runs),
                    Cell::Count(complete),
                    Cell::Count(values.samples),
                    context.group_coverage(start, group),
                ];
                cells.extend(percentiles(&values));
                cells.extend([found.median_difference.into(), Cell::Count(found.unknown)]);
                rows.push(whole_row(context, start, group, &cells));
            }
        }
        rows
    }
}

/// Tors compared in the same slots, by the period that `period_of` gives for the moment at which a slot was planned.
pub(super) fn paired(
    context: &Context<'_>,
    pairs: &[PairRow],
    period_of: impl Fn(UnixMicros) -> UnixMicros,
) -> Vec<Row> {
    let mut periods: BTreeMap<UnixMicros, Vec<PairRow>> = BTreeMap::new();
    for pair in pairs {
        periods.entry(period_of(pair.planned)).or_default().push(pair.clone());
    }
    let experiment = context.question.filter.experiment.as_deref().unwrap_or_default();
    let mut rows = Vec::new();
    for (start, pairs) in periods {
        for found in compare(&pairs) {
            let differences = [
                (Quantity::TimeToFirstByte, &found.time_to_first_byte),
                (Quantity::TimeToLastByte, &found.time_to_last_byte),
            ];
            for (quantity, difference) in differences {
                let mut row = vec![
                    context.period(start),
                    Cell::name(experiment),
                    Cell::name(&found.a),
                    Cell::name(&found.b),
                    Cell::name(quantity.as_str()),
                    Cell::name(quantity.unit().as_str()),
                    Cell::Count(found.slots as u64),
                ];
                let left_out = &found.left_out;
                let counts =
                    [left_out.a_incomplete, left_out.b_incomplete, left_out.both_incomplete, left_out.one_missing];
                row.extend(counts.map(|count| Cell::Count(count as u64)));
                row.push(context.coverage(start, |_, _| true));
                row.extend(difference_cells(difference.as_ref()));
                rows.push(row);
            }
        }
    }
    rows
}

fn difference_cells(difference: Option<&Difference>) -> [Cell; 6] {
    let interval = difference.and_then(|difference| difference.confidence_95_ms);
    let of = |get: fn(&Difference) -> f64| Cell::from(difference.map(get));
    [
        of(|difference| difference.mean_ms),
        interval.map(|[low, _]| low).into(),
        interval.map(|[_, high]| high).into(),
        of(|difference| difference.median_ms),
        of(|difference| difference.median_a_ms),
        of(|difference| difference.median_b_ms),
    ]
}
