//! Tor Metrics' five statistics, in its columns; what is ours beside them comes last.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::question::Statistic;
use super::super::table::{Cell, Row};
use super::super::window::Context;
use super::Gather;
use crate::clock::UnixMicros;
use crate::stats::period::{date_text, day_of};
use crate::stats::tor_metrics::{BuildTimes, Downloads, Failures, Latencies, Server, Throughputs, Verdict};
use crate::stats::{Quantity, Rollup, Sample, Summary};
use crate::store::Series;

/// What takes in the results of a day.
pub(super) fn empty(statistic: Statistic) -> Box<dyn Gather> {
    match statistic {
        Statistic::Downloads => Box::new(Downloads::default()),
        Statistic::Timeouts => Box::new(Failures::default()),
        Statistic::BuildTimes => Box::new(BuildTimes::new(None)),
        Statistic::Latencies => Box::new(Latencies::new(None)),
        _ => Box::new(Throughputs::new(None)),
    }
}

/// What takes in the roll-ups of a day.
pub(super) fn empty_of_rollups(statistic: Statistic) -> Box<dyn Gather> {
    Box::new(Rolled { statistic, series: BTreeMap::new() })
}

/// The names of the columns.
pub(super) fn columns(statistic: Statistic) -> Vec<&'static str> {
    let of = |theirs: &[&'static str]| [theirs, &["samples", "coverage", "exact"]].concat();
    match statistic {
        Statistic::Downloads => of(&["date", "filesize", "source", "server", "q1", "md", "q3"]),
        Statistic::Timeouts => {
            vec!["date", "source", "server", "timeouts", "failures", "requests", "unfinished", "coverage", "exact"]
        }
        Statistic::BuildTimes => of(&["date", "source", "position", "q1", "md", "q3"]),
        _ => of(&["date", "source", "server", "low", "q1", "md", "q3", "high"]),
    }
}

impl Gather for Downloads {
    fn add(&mut self, _start: UnixMicros, _series: usize, sample: &Sample) -> u64 {
        Downloads::add(self, sample);
        2
    }

    fn finish(self: Box<Self>, context: &Context<'_>) -> Vec<Row> {
        let rows = Downloads::finish(*self, context.question.floor).into_iter().map(|row| {
            let theirs = [Cell::name(&row.date), Cell::Count(row.filesize), Cell::name(&row.source), of(row.server)];
            let figures = [row.q1, row.md, row.q3].map(Cell::from);
            let coverage = coverage(context, &row.date, |series| {
                measures(series, &row.source, Some(row.server)) && has_bytes(series, row.filesize)
            });
            let ours = [Cell::Count(row.samples), coverage, Cell::Flag(context.exact)];
            theirs.into_iter().chain(figures).chain(ours).collect()
        });
        rows.collect()
    }
}

impl Gather for Failures {
    fn add(&mut self, _start: UnixMicros, _series: usize, sample: &Sample) -> u64 {
        Failures::add(self, sample);
        0
    }

    fn finish(self: Box<Self>, context: &Context<'_>) -> Vec<Row> {
        let rows = Failures::finish(*self).into_iter().map(|row| {
            let counts = [row.timeouts, row.failures, row.requests, row.unfinished].map(Cell::Count);
            failures_row(context, &row.date, &row.source, row.server, counts)
        });
        rows.collect()
    }
}

fn failures_row(context: &Context<'_>, date: &str, source: &str, server: Server, counts: [Cell; 4]) -> Row {
    let coverage = coverage(context, date, |series| measures(series, source, Some(server)));
    let theirs = [Cell::name(date), Cell::name(source), of(server)];
    theirs.into_iter().chain(counts).chain([coverage, Cell::Flag(context.exact)]).collect()
}

impl Gather for BuildTimes {
    fn add(&mut self, _start: UnixMicros, _series: usize, sample: &Sample) -> u64 {
        BuildTimes::add(self, sample);
        6
    }

    fn finish(self: Box<Self>, context: &Context<'_>) -> Vec<Row> {
        let rows = BuildTimes::finish(*self, context.question.floor).into_iter().map(|row| {
            let figures = [row.q1, row.md, row.q3].map(Cell::from);
            build_row(context, &row.date, &row.source, row.position, figures, row.samples)
        });
        rows.collect()
    }
}

fn build_row(context: &Context<'_>, date: &str, source: &str, position: u8, figures: [Cell; 3], samples: u64) -> Row {
    let coverage = coverage(context, date, |series| {
        series.kind == crate::measurement::Kind::Download && (source.is_empty() || *series.source == *source)
    });
    let theirs = [Cell::name(date), Cell::name(source), Cell::Count(position.into())];
    theirs.into_iter().chain(figures).chain([Cell::Count(samples), coverage, Cell::Flag(context.exact)]).collect()
}

/// Latencies and throughputs differ in their names alone.
macro_rules! gather_boxes {
    ($boxes:ident) => {
        impl Gather for $boxes {
            fn add(&mut self, _start: UnixMicros, _series: usize, sample: &Sample) -> u64 {
                $boxes::add(self, sample);
                1
            }

            fn finish(self: Box<Self>, context: &Context<'_>) -> Vec<Row> {
                let rows = $boxes::finish(*self, context.question.floor).into_iter().map(|row| {
                    let figures = [row.low, row.q1, row.md, row.q3, row.high].map(Cell::from);
                    box_row(context, &row.date, &row.source, row.server, figures, row.samples)
                });
                rows.collect()
            }
        }
    };
}

gather_boxes!(Latencies);
gather_boxes!(Throughputs);

fn box_row(context: &Context<'_>, date: &str, source: &str, server: Server, figures: [Cell; 5], samples: u64) -> Row {
    let coverage = coverage(context, date, |series| measures(series, source, Some(server)));
    let theirs = [Cell::name(date), Cell::name(source), of(server)];
    theirs.into_iter().chain(figures).chain([Cell::Count(samples), coverage, Cell::Flag(context.exact)]).collect()
}

/// A day's roll-ups by series: what is left of it when the rows are gone. Quartiles come from histograms; the reach
/// of the whiskers they don't tell.
struct Rolled {
    statistic: Statistic,
    series: BTreeMap<(UnixMicros, usize), Rollup>,
}

impl Gather for Rolled {
    fn add(&mut self, _start: UnixMicros, _series: usize, _sample: &Sample) -> u64 {
        0
    }

    fn add_rollup(&mut self, start: UnixMicros, series: usize, rollup: &Rollup) {
        self.series.entry((start, series)).or_default().merge(rollup);
    }

    fn finish(self: Box<Self>, context: &Context<'_>) -> Vec<Row> {
        let mut days: BTreeMap<UnixMicros, Vec<(&Series, &Rollup)>> = BTreeMap::new();
        for ((start, number), rollup) in &self.series {
            let Some(known) = context.groups.known.get(*number).filter(|known| known.series.downloads()) else {
                continue;
            };
            days.entry(*start).or_default().push((&known.series, rollup));
        }
        let statistic = self.statistic;
        days.into_iter().flat_map(|(start, day)| rows_of_day(context, statistic, start, &day)).collect()
    }
}

fn rows_of_day(context: &Context<'_>, statistic: Statistic, start: UnixMicros, day: &[(&Series, &Rollup)]) -> Vec<Row> {
    let date = date_text(day_of(start));
    let mut lots: BTreeMap<(u64, Arc<str>, Server), Rollup> = BTreeMap::new();
    let mut put = |size: u64, source: &Arc<str>, server: Server, rollup: &Rollup| {
        lots.entry((size, Arc::clone(source), server)).or_default().merge(rollup);
    };
    let everybody: Arc<str> = "".into();
    for (series, rollup) in day {
        let server = Server::from(series.server);
        match statistic {
            Statistic::Downloads => {
                put(series.size, &series.source, server, rollup);
                for larger in [51_200, 1_048_576].into_iter().filter(|size| series.size > *size) {
                    put(larger, &series.source, server, rollup);
                }
            }
            Statistic::BuildTimes => {
                put(0, &everybody, Server::Public, rollup);
                put(0, &series.source, Server::Public, rollup);
            }
            _ => put(0, &series.source, server, rollup),
        }
    }
    let floor = context.question.floor;
    let whole = |value: Option<f64>| Cell::from(value.map(|value| value as i64));
    let mut rows = Vec::new();
    for ((size, source, server), rollup) in lots {
        match statistic {
            Statistic::Downloads => {
                let quantity = match size {
                    51_200 => Quantity::Download51200,
                    1_048_576 => Quantity::Download1048576,
                    5_242_880 => Quantity::Download5242880,
                    _ => Quantity::TimeToLastByte,
                };
                let Summary { samples, p25, p50, p75, .. } = rollup.summary(quantity, floor);
                let theirs = [Cell::name(&date), Cell::Count(size), Cell::name(&source), of(server)];
                let coverage = coverage(context, &date, |series| {
                    measures(series, &source, Some(server)) && has_bytes(series, size)
                });
                let ours = [Cell::Count(samples), coverage, Cell::Flag(context.exact)];
                let figures = [p25, p50, p75].map(whole);
                let row: Row = theirs.into_iter().chain(figures).chain(ours).collect();
                if samples > 0 {
                    rows.push(row);
                }
            }
            Statistic::Timeouts => {
                let [timeouts, failures, unfinished, successes] =
                    [Verdict::Timeout, Verdict::Failure, Verdict::Unfinished, Verdict::Success]
                        .map(|v| rollup.verdict(v));
                let requests = timeouts + failures + unfinished + successes;
                let counts = [timeouts, failures, requests, unfinished].map(Cell::Count);
                rows.push(failures_row(context, &date, &source, server, counts));
            }
            Statistic::BuildTimes => {
                let quantities = [Quantity::BuildTime1, Quantity::BuildTime2, Quantity::BuildTime3];
                for (position, quantity) in (1..).zip(quantities) {
                    let Summary { samples, p25, p50, p75, .. } = rollup.summary(quantity, floor);
                    if samples > 0 {
                        rows.push(build_row(context, &date, &source, position, [p25, p50, p75].map(whole), samples));
                    }
                }
            }
            _ => {
                let quantity = match statistic {
                    Statistic::Latencies => Quantity::Latency,
                    _ => Quantity::ThroughputTorMetrics,
                };
                let Summary { samples, p25, p50, p75, .. } = rollup.summary(quantity, floor);
                let figures = [Cell::Null, whole(p25), whole(p50), whole(p75), Cell::Null];
                if samples > 0 {
                    rows.push(box_row(context, &date, &source, server, figures, samples));
                }
            }
        }
    }
    rows
}

fn of(server: Server) -> Cell {
    Cell::name(server.as_str())
}

/// Whether a series is one of this source's downloads by this kind of server.
fn measures(series: &Series, source: &str, server: Option<Server>) -> bool {
    series.downloads() && *series.source == *source && server.is_none_or(|server| Server::from(series.server) == server)
}

/// Whether a download of this series tells of one of so many bytes.
fn has_bytes(series: &Series, bytes: u64) -> bool {
    series.size == bytes || (matches!(bytes, 51_200 | 1_048_576) && series.size > bytes)
}

/// Slots done of slots planned on this day, of the experiments of these series.
fn coverage(context: &Context<'_>, date: &str, of: impl Fn(&Series) -> bool) -> Cell {
    let start = UnixMicros::parse(date).unwrap_or(UnixMicros(0));
    context.coverage(start, |_, series| of(series))
}
