//! `perfd results`: asks a running perfd for its results.

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::ask::{self, ServiceArgs};
use super::exit::{Exit, FAILED, OrExit, USAGE};
use super::follow::{self, Follow};
use super::output;
use crate::export::annotations::AnnotationJson;
use crate::export::json::ResultJson;
use crate::export::whole::{SlotRunJson, WholeJson};
use crate::export::{table, waterfall};
use crate::measurement::{Curve, Kind, ServerKind};
use crate::store::SHORTEST_PREFIX;

/// Rows of the table, where no limit is given.
const TABLE_ROWS: usize = 20;

/// What goes with many results alone.
const FILTERS: [&str; 13] = [
    "source",
    "experiment",
    "tor",
    "kind",
    "server_kind",
    "size",
    "outcome",
    "since",
    "until",
    "tag",
    "imported",
    "limit",
    "order",
];

/// Show the results of a running perfd
///
/// The table shows the latest results, the other formats all that the filters let through, oldest first. One
/// result, by its RUN, is drawn with all that is known of it. With --follow, it goes on as results are stored: also
/// over a restart of the service, without a gap. The table shows each run once; in the other formats a run comes again
/// when more is known of it, and the later line holds.
#[derive(Args, Debug)]
pub struct ResultsArgs {
    /// Only this one: its name, or the beginning of it (six digits or more)
    #[arg(value_parser = run_name, conflicts_with_all = FILTERS)]
    run: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
    /// How to print them
    #[arg(long, value_enum, default_value_t = ResultsFormat::Table)]
    format: ResultsFormat,
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
    #[arg(long, value_parser = Kind::ALL.map(|(_, word)| word))]
    kind: Option<String>,
    /// Only from a server that is reached like this (`--server` names the service to ask)
    #[arg(long, value_name = "KIND", value_parser = ServerKind::ALL.map(|(_, word)| word))]
    server_kind: Option<String>,
    /// Only of this size, such as 51200 or "50 KiB"
    #[arg(long)]
    size: Option<String>,
    /// Only complete, timeout or failed ones
    #[arg(long, value_parser = ["complete", "timeout", "failed"])]
    outcome: Option<String>,
    /// Only those started at this time or later: 2026-11-22T10:00:00Z, 2026-11-22 or seconds since 1970
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only those started before this time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only imported ones, or only those that this perfd measured
    #[arg(long, value_parser = ["yes", "no"])]
    imported: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Which come first; the table's default is the newest, though it shows them last
    #[arg(long, value_parser = ["oldest", "newest"])]
    order: Option<String>,
    /// Go on and print results as they are stored, until interrupted; the table begins with the last ones
    #[arg(long, short = 'f', conflicts_with_all = ["run", "order"])]
    follow: bool,
    /// With --follow, the table shows a run again when more is known of it (the other formats always do)
    #[arg(long, requires = "follow")]
    completed: bool,
    /// Only with a note on them, or on their time, that has this tag
    #[arg(long)]
    tag: Option<String>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ResultsFormat {
    /// For people
    Table,
    /// One JSON object with all results
    Json,
    /// A JSON object a line
    Ndjson,
    /// Torperf's key=value
    Tpf,
    /// Comma-separated values
    Csv,
}

#[derive(Deserialize)]
struct Many {
    results: Vec<ResultJson>,
}

/// A result and what is kept beside it, as far as the service gives that.
#[derive(Deserialize)]
struct One {
    #[serde(flatten)]
    result: ResultJson,
    #[serde(default)]
    curve: Curve,
    #[serde(default)]
    slot_runs: Vec<SlotRunJson>,
    #[serde(default)]
    annotations: Vec<AnnotationJson>,
}

/// Asks and prints.
pub fn run(args: ResultsArgs) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    runtime.block_on(async {
        match &args.run {
            Some(run) => one(&args, run).await,
            None if args.follow => follow(&args).await,
            None => many(&args).await,
        }
    })
}

async fn one(args: &ResultsArgs, run: &str) -> Result<(), Exit> {
    let page = format!("{run}.{}", args.format.ending());
    let response = ask::get(&args.service, &["results", &page], &[]).await?;
    if args.format != ResultsFormat::Table {
        return ask::copy(response).await;
    }
    let One { result, curve, slot_runs, annotations } = ask::read(response).await?;
    let drawn = waterfall::render(&WholeJson { result, curve, evidence: None, slot_runs, annotations });
    output::print(output::harmless(&drawn)).map(drop)
}

async fn many(args: &ResultsArgs) -> Result<(), Exit> {
    let page = format!("results.{}", args.format.ending());
    let response = ask::get(&args.service, &[&page], &query(args)).await?;
    if args.format != ResultsFormat::Table {
        return ask::copy(response).await;
    }
    let Many { mut results } = ask::read(response).await?;
    if results.is_empty() {
        output::note("there are no results yet, or none that the filters let through");
        return Ok(());
    }
    // A run that was completed later has a higher revision than some that began after it.
    results.sort_by_key(|result| result.start_unix_us);
    output::print(table::render(&results)).map(drop)
}

async fn follow(args: &ResultsArgs) -> Result<(), Exit> {
    let table = args.format == ResultsFormat::Table;
    if args.format == ResultsFormat::Json {
        return Err(anyhow!("an object that has no end is no JSON; follow with --format ndjson")).or_exit(USAGE);
    }
    let mut query = filters(args);
    match args.limit.or(table.then_some(TABLE_ROWS)) {
        None => query.push(("cursor", "0".to_owned())),
        Some(0) => {}
        Some(limit) => query.push(("last", limit.to_string())),
    }
    let form = if table { "ndjson" } else { args.format.ending() };
    query.push(("format", form.to_owned()));
    follow::run(Follow { service: &args.service, query, table, completed: args.completed }).await
}

impl ResultsFormat {
    /// The file ending by which the service is asked for it.
    fn ending(self) -> &'static str {
        match self {
            ResultsFormat::Table | ResultsFormat::Json => "json",
            ResultsFormat::Ndjson => "ndjson",
            ResultsFormat::Tpf => "tpf",
            ResultsFormat::Csv => "csv",
        }
    }
}

/// A run's name, or its beginning.
pub(super) fn run_name(text: &str) -> Result<String, String> {
    let fits = (SHORTEST_PREFIX..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    let remedy = "write the RUN of a line of the table: 6 to 32 hexadecimal digits, such as da773527";
    if fits { Ok(text.to_ascii_lowercase()) } else { Err(format!("no run is called that; {remedy}")) }
}

fn filters(args: &ResultsArgs) -> Vec<(&'static str, String)> {
    let filters = [
        ("source", &args.source),
        ("experiment", &args.experiment),
        ("tor", &args.tor),
        ("kind", &args.kind),
        ("server", &args.server_kind),
        ("size", &args.size),
        ("outcome", &args.outcome),
        ("since", &args.since),
        ("until", &args.until),
        ("tag", &args.tag),
        ("imported", &args.imported),
    ];
    filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))).collect()
}

fn query(args: &ResultsArgs) -> Vec<(&'static str, String)> {
    let mut query = filters(args);
    let mut limit = args.limit;
    if args.format == ResultsFormat::Table {
        limit = limit.or(Some(TABLE_ROWS));
    }
    let table = args.format == ResultsFormat::Table;
    let order = args.order.clone().or_else(|| table.then(|| "newest".to_owned()));
    query.extend(order.map(|order| ("order", order)));
    query.extend(limit.map(|limit| ("limit", limit.to_string())));
    query
}
