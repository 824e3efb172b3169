//! `perfd results`: asks a running perfd for its results.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use futures_util::StreamExt;
use serde::Deserialize;

use super::exit::{CONFIG, Exit, FAILED, OrExit, UNAVAILABLE, USAGE};
use super::output;
use crate::config::Config;
use crate::export::json::ResultJson;
use crate::export::whole::WholeJson;
use crate::export::{table, waterfall};
use crate::measurement::{Kind, ServerKind};
use crate::service;

/// Why a service refuses is a line.
const LONGEST_REFUSAL: usize = 64 << 10;

/// A table of so many bytes of JSON holds tens of thousands of rows; for more there are the other formats.
const LONGEST_TABLE: usize = 64 << 20;

/// Rows of the table, where no limit is given.
const TABLE_ROWS: usize = 20;

/// What goes with many results alone.
const FILTERS: [&str; 11] =
    ["source", "experiment", "tor", "kind", "server_kind", "size", "outcome", "since", "until", "limit", "order"];

/// Show the results of a running perfd
///
/// The table shows the latest results, the other formats all that the filters let through, oldest first. One
/// result, by its RUN, is drawn with all that is known of it.
#[derive(Args, Debug)]
pub struct ResultsArgs {
    /// Only this one: its name, or the beginning of it (six digits or more)
    #[arg(conflicts_with_all = FILTERS)]
    run: Option<String>,
    /// The service, such as http://127.0.0.1:8080; else the first address of the configuration
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// The configuration that names the service's address
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
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
    /// At most so many
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Which come first; the table's default is the newest, though it shows them last
    #[arg(long, value_parser = ["oldest", "newest"])]
    order: Option<String>,
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
struct Answer {
    results: Vec<ResultJson>,
}

#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// Asks and prints.
pub fn run(args: &ResultsArgs) -> Result<(), Exit> {
    let server = match &args.server {
        Some(url) => url.clone(),
        None => {
            let config = Config::load(&args.config)
                .context("give --server URL, or the configuration of the service")
                .or_exit(CONFIG)?;
            format!("http://{}", service::reachable(config.server.listen[0]))
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    runtime.block_on(ask(&server, args))
}

async fn ask(server: &str, args: &ResultsArgs) -> Result<(), Exit> {
    let client = reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(std::time::Duration::from_secs(10))
        .read_timeout(std::time::Duration::from_secs(60))
        .build()
        .or_exit(FAILED)?;
    let ending = match args.format {
        ResultsFormat::Table | ResultsFormat::Json => "json",
        ResultsFormat::Ndjson => "ndjson",
        ResultsFormat::Tpf => "tpf",
        ResultsFormat::Csv => "csv",
    };
    let (all, one) = (format!("results.{ending}"), args.run.as_ref().map(|run| format!("{run}.{ending}")));
    let path = one.as_ref().map_or(vec![all.as_str()], |one| vec!["results", one.as_str()]);
    let url = page(server, &path)
        .with_context(|| format!("--server {server}: give a URL such as http://127.0.0.1:8080"))
        .or_exit(USAGE)?;
    let request = if one.is_some() { client.get(url) } else { client.get(url).query(&query(args)) };
    let response = request
        .send()
        .await
        .with_context(|| format!("{server} does not answer; is perfd running?"))
        .or_exit(UNAVAILABLE)?;
    if !response.status().is_success() {
        let status = response.status();
        let code = if status.is_client_error() { USAGE } else { UNAVAILABLE };
        let answer = output::read_whole(response, LONGEST_REFUSAL).await.unwrap_or_default();
        let refusal = serde_json::from_slice::<Refusal>(&answer);
        let reason = refusal.map_or_else(|_| status.to_string(), |refusal| refusal.error);
        return Err(anyhow::anyhow!("{server} refuses: {}", table::printable(&reason))).or_exit(code);
    }
    match args.format {
        ResultsFormat::Table if one.is_some() => draw(response).await,
        ResultsFormat::Table => print_table(response).await,
        _ => copy(response).await,
    }
}

/// A page of the server, which may be given with a path of its own, as behind a reverse proxy.
fn page(server: &str, path: &[&str]) -> Option<reqwest::Url> {
    let mut url = reqwest::Url::parse(server).ok().filter(|url| url.scheme() == "http")?;
    url.path_segments_mut().ok()?.pop_if_empty().extend(path);
    Some(url)
}

fn query(args: &ResultsArgs) -> Vec<(&'static str, String)> {
    let mut query = Vec::new();
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
    ];
    query.extend(filters.into_iter().filter_map(|(name, value)| Some((name, value.clone()?))));
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

async fn print_table(response: reqwest::Response) -> Result<(), Exit> {
    let answer = output::read_whole(response, LONGEST_TABLE).await.or_exit(UNAVAILABLE)?;
    let answer = serde_json::from_slice::<Answer>(&answer).context("the answer is not what a perfd gives");
    let mut results = answer.or_exit(UNAVAILABLE)?.results;
    if results.is_empty() {
        output::note("there are no results yet, or none that the filters let through");
        return Ok(());
    }
    results.sort_by_key(|result| result.revision);
    output::print(table::render(&results)).map(drop)
}

async fn draw(response: reqwest::Response) -> Result<(), Exit> {
    let answer = output::read_whole(response, LONGEST_TABLE).await.or_exit(UNAVAILABLE)?;
    let whole = serde_json::from_slice::<WholeJson>(&answer).context("the answer is not what a perfd gives");
    output::print(waterfall::render(&whole.or_exit(UNAVAILABLE)?)).map(drop)
}

async fn copy(response: reqwest::Response) -> Result<(), Exit> {
    let mut pieces = response.bytes_stream();
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdout());
    while let Some(piece) = pieces.next().await {
        let mut piece = piece.context("the answer was cut off").or_exit(UNAVAILABLE)?;
        if terminal {
            piece = output::harmless(&String::from_utf8_lossy(&piece)).into();
        }
        if !output::print(piece)? {
            break;
        }
    }
    Ok(())
}
