//! `perfd stats`: statistics of a running perfd, or of a store's file.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::ask::{self, ServiceArgs};
use super::exit::{Exit, FAILED, OrExit, USAGE};
use super::output;
use crate::clock::UnixMicros;
use crate::report::{Cache, Cell, Question, Row, Statistic, answer, for_people};
use crate::store;

/// Show statistics of a running perfd, or of a store
///
/// Beside every figure stand the number of samples and the coverage: slots done, whatever the outcome, of slots
/// planned. What there are too few samples for is not shown.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// Which one
    #[arg(default_value = "summary", value_parser = Statistic::ALL.map(|(_, path, _)| path))]
    statistic: String,
    #[command(flatten)]
    service: ServiceArgs,
    /// Read this store's file instead of asking a service
    #[arg(long, value_name = "FILE", conflicts_with = "server")]
    store: Option<PathBuf>,
    /// How to print them
    #[arg(long, value_enum, default_value_t = StatsFormat::Table)]
    format: StatsFormat,
    /// Of what: time_to_last_byte (the default), time_to_first_byte, latency, … (a wrong one lists all)
    #[arg(long)]
    quantity: Option<String>,
    /// Grouped by these of source, experiment, server, size and tor, with commas between
    #[arg(long, value_name = "NAMES")]
    group: Option<String>,
    /// For each hour, day, week or month, or for all of the time at once
    #[arg(long, value_parser = ["hour", "day", "week", "month", "all"])]
    period: Option<String>,
    /// At most so many points of a distribution
    #[arg(long, value_name = "N")]
    points: Option<usize>,
    /// At most so many relays
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Leave out the results of the last days, today included; Tor Metrics leaves out 2
    #[arg(long, value_name = "N")]
    omit_last_days: Option<u64>,
    /// Show figures from so many samples on
    #[arg(long, value_name = "N")]
    floor: Option<u64>,
    /// Only of this source
    #[arg(long)]
    source: Option<String>,
    /// Only of this experiment
    #[arg(long)]
    experiment: Option<String>,
    /// Only through this tor
    #[arg(long)]
    tor: Option<String>,
    /// Only downloads or uploads
    #[arg(long)]
    kind: Option<String>,
    /// Only from a server that is reached like this (`--server` names the service to ask)
    #[arg(long, value_name = "KIND")]
    server_kind: Option<String>,
    /// Only of this size, such as 51200 or "50 KiB"
    #[arg(long)]
    size: Option<String>,
    /// Only results that began at this time or later: 2026-11-22T10:00:00Z, 2026-11-22 or seconds since 1970
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only results that began before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
}

/// How statistics are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum StatsFormat {
    /// For people
    Table,
    /// A JSON object
    Json,
    /// Comma-separated values
    Csv,
}

/// Asks and prints.
pub fn run(args: StatsArgs) -> Result<(), Exit> {
    let query = args.query();
    // The same rules whoever answers, and a mistake is told before anybody is asked.
    let statistic = Statistic::parse(&args.statistic).unwrap_or(Statistic::Summary);
    let parameters = query.iter().map(|(name, value)| (*name, value.as_str()));
    let question = Question::parse(statistic, parameters).map_err(anyhow::Error::msg).or_exit(USAGE)?;
    if let Some(path) = &args.store {
        let now = UnixMicros::now();
        let table =
            store::ask_file(path, |reading| answer(reading, &Cache::default(), &question, now)).or_exit(FAILED)?;
        let table = table.or_exit(USAGE)?;
        return match args.format {
            StatsFormat::Table => show(&table.columns, &table.rows),
            StatsFormat::Json => output::print(table.json()).map(drop),
            StatsFormat::Csv => output::print(table.csv()).map(drop),
        };
    }
    let ending = if args.format == StatsFormat::Csv { "csv" } else { "json" };
    let page = format!("stats/{}.{ending}", args.statistic);
    let path: Vec<&str> = page.split('/').collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    runtime.block_on(async {
        let response = ask::get(&args.service, &path, &query).await?;
        if args.format != StatsFormat::Table {
            return ask::copy(response).await;
        }
        let Answer { rows } = ask::read(response).await?;
        let columns: Vec<&str> =
            rows.first().map(|row| row.0.iter().map(|(name, _)| name.as_str()).collect()).unwrap_or_default();
        let cells: Vec<Row> = rows.iter().map(|row| row.0.iter().map(|(_, value)| cell_of(value)).collect()).collect();
        show(&columns, &cells)
    })
}

fn show(columns: &[&str], rows: &[Row]) -> Result<(), Exit> {
    if rows.is_empty() {
        output::note("there are no results yet, or none that the filters let through");
        return Ok(());
    }
    output::print(output::harmless(&output::columns(&for_people(columns, rows)))).map(drop)
}

impl StatsArgs {
    fn query(&self) -> Vec<(&'static str, String)> {
        let number = |number: Option<u64>| number.map(|number| number.to_string());
        let count = |number: Option<usize>| number.map(|number| number.to_string());
        let parameters = [
            ("quantity", self.quantity.clone()),
            ("group", self.group.clone()),
            ("period", self.period.clone()),
            ("points", count(self.points)),
            ("top", count(self.top)),
            ("omit_last_days", number(self.omit_last_days)),
            ("floor", number(self.floor)),
            ("source", self.source.clone()),
            ("experiment", self.experiment.clone()),
            ("tor", self.tor.clone()),
            ("kind", self.kind.clone()),
            ("server", self.server_kind.clone()),
            ("size", self.size.clone()),
            ("since", self.since.clone()),
            ("until", self.until.clone()),
        ];
        parameters.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

#[derive(serde::Deserialize)]
struct Answer {
    rows: Vec<Cells>,
}

/// A row's cells, in the order in which they came.
struct Cells(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Cells {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Cells;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a row")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cells, A::Error> {
                let mut cells = Vec::new();
                while let Some(cell) = map.next_entry()? {
                    cells.push(cell);
                }
                Ok(Cells(cells))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

fn cell_of(value: &Value) -> Cell {
    match value {
        Value::Bool(flag) => Cell::Flag(*flag),
        Value::String(text) => Cell::name(text),
        Value::Number(number) => match (number.as_u64(), number.as_f64()) {
            (Some(count), _) => Cell::Count(count),
            (None, number) => number.into(),
        },
        _ => Cell::Null,
    }
}
