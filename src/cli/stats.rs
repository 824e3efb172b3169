//! `perfd stats`: statistics of a running perfd, or of a store's file.

use std::fmt;
use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, ValueEnum};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::ask::{self, ServiceArgs};
use super::exit::{Exit, FAILED, OrExit, USAGE};
use super::opened::check_there;
use super::output;
use crate::clock::UnixMicros;
use crate::report::{Cache, Cell, Question, Row, Spelling, Statistic, answer, compact};
use crate::stats::Floor;
use crate::store;

/// Show statistics of a running perfd, or of a store
///
/// Beside every figure stand the number of samples and the coverage: slots done, whatever the outcome, of slots
/// planned. What there are too few samples for is not shown.
#[derive(Args, Debug)]
pub struct StatsArgs {
    /// Which one
    #[arg(default_value = "summary", value_parser = PossibleValuesParser::new(Statistic::ALL.map(described)))]
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
    /// Grouped by these of source, experiment, server, size and tor, with commas between [default: source,experiment]
    #[arg(long, value_name = "NAMES")]
    group: Option<String>,
    /// For each hour, day, week or month, or for all of the time at once [default: all]; tor-metrics/… is always by day
    #[arg(long, value_parser = ["hour", "day", "week", "month", "all"])]
    period: Option<String>,
    /// At most so many points of a distribution [default: 200]
    #[arg(long, value_name = "N")]
    points: Option<usize>,
    /// At most so many relays [default: 15]
    #[arg(long, value_name = "N")]
    top: Option<usize>,
    /// Leave out the results of the last days, today included; Tor Metrics leaves out 2
    #[arg(long, value_name = "N")]
    omit_last_days: Option<u64>,
    /// Show figures from so many samples on, and 1 for all that can be computed [default: 5]
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
    let question =
        Question::parse_as(statistic, parameters, Spelling::Options).map_err(anyhow::Error::msg).or_exit(USAGE)?;
    if let Some(path) = &args.store {
        check_there(path)?;
        let now = UnixMicros::now();
        let table =
            store::ask_file(path, |reading| answer(reading, &Cache::default(), &question, now)).or_exit(FAILED)?;
        let table = table.or_exit(USAGE)?;
        return match args.format {
            StatsFormat::Table => show(&question, &table.columns, &table.rows, table.note.as_deref()),
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
        let Answer { rows, note } = ask::read(response).await?;
        let columns: Vec<&str> =
            rows.first().map(|row| row.0.iter().map(|(name, _)| name.as_str()).collect()).unwrap_or_default();
        let cells: Vec<Row> = rows.iter().map(|row| row.0.iter().map(|(_, value)| cell_of(value)).collect()).collect();
        show(&question, &columns, &cells, note.as_deref())
    })
}

/// What the help says of a statistic: what it gives, and which options it takes beside those that pick results.
fn described((statistic, path, what): (Statistic, &'static str, &'static str)) -> PossibleValue {
    let options: Vec<_> = statistic.own_names().map(|name| Spelling::Options.name(name)).collect();
    PossibleValue::new(path).help(format!("{what} ({})", options.join(", ")))
}

fn show(question: &Question, columns: &[&str], rows: &[Row], note: Option<&str>) -> Result<(), Exit> {
    if rows.is_empty() {
        output::note(note.unwrap_or("there are no results that the filters let through"));
        return Ok(());
    }
    let (heading, lines) = compact(columns, rows);
    let gap = if heading.is_empty() { "" } else { "\n" };
    output::print(output::harmless(&format!("{heading}{gap}{}", output::columns(&lines))))?;
    if question.floor != Floor::NONE && lacks_figures(columns, rows) {
        output::note("too few samples for some figures (-); --floor 1 shows all that can be computed");
    }
    Ok(())
}

/// Whether there is a row with samples and without the figure in its middle.
fn lacks_figures(columns: &[&str], rows: &[Row]) -> bool {
    let place = |names: &[&str]| columns.iter().position(|column| names.contains(column));
    let (Some(samples), Some(middle)) = (place(&["samples"]), place(&["p50", "md", "value"])) else { return false };
    let is_some = |row: &Row| row.get(samples).is_some_and(|cell| !matches!(cell, Cell::Null | Cell::Count(0)));
    rows.iter().any(|row| is_some(row) && row.get(middle) == Some(&Cell::Null))
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
    note: Option<String>,
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
