//! `perfd export`: results as files in a folder, from a store that a perfd may be writing meanwhile.

mod days;
mod notes;
mod output;
mod rows;

use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueEnum};

use super::exit::{CONFIG, Exit, FAILED, OrExit, STORE, USAGE};
use super::opened::check_there;
use super::output::note;
use crate::clock::UnixMicros;
use crate::config::Config;
use crate::config::units::parse_size;
use crate::export::collector::{day_of, start_of};
use crate::measurement::{Kind, ServerKind};
use crate::store::{Filter, StoreReader};
use output::Folder;

/// Write results to files
///
/// collector writes the files of finished days as /collector/ gives them: those that were published byte for byte,
/// and those of days that have settled since; with an index.html and an index.xml, for any web server.
///
/// onionperf writes SOURCE/DATE.onionperf.analysis.json.xz for each UTC day, with all downloads (the format has no
/// uploads). tpf, json, csv and har write all results to one file each: results.tpf, results.ndjson (a JSON object a
/// line), results.csv, results.har; json and csv also the notes on them, annotations.ndjson and annotations.csv. In key=value REVISION is left out, so that what is imported elsewhere and exported
/// again is the same.
///
/// The store is read only, and may belong to a running perfd. A file appears when it is whole.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The store, instead of that which the configuration names
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// The configuration, which names the store, the source, and what is kept out
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
    /// What to write
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// The folder to write to; it is made if it is missing
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    only: OnlyArgs,
    /// Only what started at this time or later (with collector, the beginning of a UTC day): 2026-11-22T10:00:00Z, 2026-11-22 or seconds since 1970
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<UnixMicros>,
    /// Only what started before this time (with collector, the beginning of a UTC day)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<UnixMicros>,
    /// With collector: days too that are not over, or have not settled, as far as they are
    #[arg(long)]
    include_today: bool,
}

/// Which results; collector takes none of these.
#[derive(Args, Debug)]
struct OnlyArgs {
    /// Only of this source (not with collector, as all that follow)
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
    /// Only from a server that is reached like this
    #[arg(long, value_name = "KIND", value_parser = ServerKind::ALL.map(|(_, word)| word))]
    server_kind: Option<String>,
    /// Only of this size, such as 51200 or "50 KiB"
    #[arg(long, value_parser = |text: &str| parse_size(text).map_err(|e| e.to_string()))]
    size: Option<u64>,
    /// Only complete, timeout or failed ones
    #[arg(long, value_parser = ["complete", "timeout", "failed"])]
    outcome: Option<String>,
    /// Only imported ones, or only those that this perfd measured
    #[arg(long, value_parser = ["yes", "no"])]
    imported: Option<String>,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// The files of finished days
    Collector,
    /// OnionPerf's analysis, a file a day
    Onionperf,
    /// Torperf's key=value
    Tpf,
    /// A JSON object a line
    Json,
    /// Comma-separated values
    Csv,
    /// An HTTP archive
    Har,
}

/// Reads and writes.
pub fn run(args: ExportArgs) -> Result<(), Exit> {
    let config = match &args.store {
        Some(_) => None,
        None => Some(Config::load(&args.config).or_exit(CONFIG)?),
    };
    let store = args.store.clone().or(config.as_ref().map(|config| config.store.clone())).unwrap_or_default();
    let filter = filter(&args);
    check(&args, &filter).or_exit(USAGE)?;
    if args.format != ExportFormat::Collector && args.include_today {
        note("--include-today says nothing here: only collector leaves days out");
    }
    check_there(&store)?;
    let reader = StoreReader::open(&store).or_exit(STORE)?;
    let folder = Folder::make(&args.out)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(rows::workers())
        .enable_all()
        .build()
        .or_exit(FAILED)?;
    let written = runtime.block_on(async {
        match args.format {
            ExportFormat::Collector => days::collector(&reader, config.as_ref(), &args, &folder).await,
            ExportFormat::Onionperf => days::onionperf(&reader, config.as_ref(), &filter, &folder).await,
            ExportFormat::Tpf => all(&reader, &filter, rows::Form::Tpf, &folder).await,
            ExportFormat::Json => all(&reader, &filter, rows::Form::Json, &folder).await,
            ExportFormat::Csv => all(&reader, &filter, rows::Form::Csv, &folder).await,
            ExportFormat::Har => all(&reader, &filter, rows::Form::Har, &folder).await,
        }
    })?;
    if reader.overtaken() {
        return Err(anyhow!("a perfd was started on {} meanwhile; export again", store.display())).or_exit(STORE);
    }
    super::output::line(format_args!("{written} in {}", args.out.display()));
    Ok(())
}

/// All results, and the notes on them.
async fn all(reader: &StoreReader, filter: &Filter, form: rows::Form, folder: &Folder) -> Result<String, Exit> {
    let results = rows::write(reader, filter, form, folder).await?;
    Ok(results + &notes::write(reader, filter, form, folder).await?)
}

fn filter(args: &ExportArgs) -> Filter {
    let OnlyArgs { source, experiment, tor, kind, server_kind, size, outcome, imported } = &args.only;
    Filter {
        source: source.clone(),
        experiment: experiment.clone(),
        tor: tor.clone(),
        kind: Kind::ALL.into_iter().find(|(_, word)| kind.as_deref() == Some(*word)).map(|(kind, _)| kind),
        server: ServerKind::ALL
            .into_iter()
            .find(|(_, word)| server_kind.as_deref() == Some(*word))
            .map(|(server, _)| server),
        size: *size,
        outcome: outcome.clone(),
        since: args.since,
        until: args.until,
        imported: imported.as_deref().map(|word| word == "yes"),
        tag: None,
    }
}

/// Refuses what the format can't give.
fn check(args: &ExportArgs, filter: &Filter) -> anyhow::Result<()> {
    if args.format == ExportFormat::Onionperf && filter.kind == Some(Kind::Upload) {
        return Err(anyhow!("OnionPerf's analysis has no uploads; leave --kind out, or write another format"));
    }
    if args.format != ExportFormat::Collector {
        return Ok(());
    }
    if *filter != (Filter { since: args.since, until: args.until, ..Filter::default() }) {
        let remedy = "leave out --source, --experiment, --tor, --kind, --server-kind, --size, --outcome and --imported";
        return Err(anyhow!("collector writes whole days; {remedy}"));
    }
    for (option, moment) in [("--since", args.since), ("--until", args.until)] {
        if moment.is_some_and(|moment| start_of(day_of(moment)) != moment) {
            return Err(anyhow!("collector writes whole days; give {option} as the date of a UTC day: 2026-11-22"));
        }
    }
    Ok(())
}

fn moment(text: &str) -> Result<UnixMicros, String> {
    UnixMicros::parse(text)
        .ok_or_else(|| "must be a time such as 2026-11-22T10:00:00Z, 2026-11-22 or 1795341600".to_owned())
}
