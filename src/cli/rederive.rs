//! `perfd rederive`: derives what tor told of each stored run again, from the lines that were kept.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use futures_util::future::join_all;
use tokio::sync::watch;

use super::exit::{CONFIG, Exit, FAILED, OrExit, STORE};
use super::output;
use crate::circuit::{CircuitData, Evidence, derive};
use crate::config::Config;
use crate::measurement::RunId;
use crate::store::{Store, StoreError, StoreHealth, StoredEvidence};

/// Runs that are read at a time, and then written at once. Few: a perfd that runs beside this may complete a run
/// between the two, and it must not wait long to write.
const PAGE: usize = 32;

/// A store that can't be written is tried for so long.
const PATIENCE: Duration = Duration::from_secs(15);

/// At the end the store has so long to close.
const FAREWELL: Duration = Duration::from_secs(4);

/// Derive the circuits of all stored runs again
///
/// perfd keeps with each run the lines of tor's control port that touch it. This derives the run's circuit
/// from them as this version of perfd does. Only runs of which something else comes out are written; each
/// gets a new revision, so that who follows the results gets it again. A run whose lines can't be read, or
/// are none of this version, stays as it is, and is counted.
///
/// A perfd that runs may go on meanwhile. A store of an older perfd is brought up to date first, as
/// `perfd run` does it (also with --dry-run), and is then none for that older one any more. Run it as
/// perfd's user, or with sudo.
#[derive(Args, Debug)]
pub struct RederiveArgs {
    /// The configuration that names the store
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
    /// The store's file, in place of the configuration's
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
    /// Only say how many runs would change
    #[arg(long)]
    dry_run: bool,
}

/// How many runs became what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    runs: u64,
    changed: u64,
    unreadable: u64,
}

/// Derives and says what changed.
pub fn run(args: RederiveArgs) -> Result<(), Exit> {
    let path = match args.store {
        Some(path) => path,
        None => Config::load(&args.config).or_exit(CONFIG)?.store,
    };
    // Opening it would make a new one.
    if path.try_exists().is_ok_and(|exists| !exists) {
        let remedy = "give --store FILE, or the configuration of the perfd whose store it is";
        return Err(anyhow!("there is no store {}; {remedy}", path.display())).or_exit(STORE);
    }
    let store = Store::open(&path).or_exit(STORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    runtime
        .block_on(async {
            let mut counts = Counts::default();
            let outcome = all(&store, args.dry_run, &mut counts).await;
            // What waits in vain to be written is given up.
            let patience = if outcome.is_ok() { FAREWELL } else { Duration::ZERO };
            let closed = store.close(patience).await.map_err(|error| named(&path, error));
            if std::io::stderr().is_terminal() {
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            }
            let Counts { runs, changed, unreadable } = counts;
            let would = if args.dry_run { "would be changed" } else { "changed" };
            let summary = format!("{runs} runs, {changed} {would}, {unreadable} unreadable");
            match outcome {
                Ok(()) => {
                    output::line(summary);
                    closed
                }
                Err(error) => {
                    output::note(format_args!("ended before its time: {summary}"));
                    Err(named(&path, error))
                }
            }
        })
        .or_exit(STORE)
}

fn named(path: &Path, error: StoreError) -> anyhow::Error {
    anyhow!("{}: {error}", path.display())
}

/// Goes through all runs that have evidence.
async fn all(store: &Store, dry_run: bool, counts: &mut Counts) -> Result<(), StoreError> {
    let mut after: Option<RunId> = None;
    loop {
        let page = store.reader().evidence_page(after.clone(), PAGE).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.id.clone());
        let mut changes = Vec::new();
        for stored in page {
            counts.runs += 1;
            match rederived(stored) {
                Rederived::Same => {}
                Rederived::Other(id, data, evidence) => changes.push((id, *data, evidence)),
                Rederived::Unreadable => counts.unreadable += 1,
            }
        }
        counts.changed += if dry_run { changes.len() as u64 } else { write(store, changes).await? };
        show(counts);
    }
}

enum Rederived {
    Same,
    Other(RunId, Box<CircuitData>, Evidence),
    Unreadable,
}

fn rederived(StoredEvidence { id, start, evidence, data: before }: StoredEvidence) -> Rederived {
    let Some(evidence) = evidence.map(Evidence) else { return Rederived::Unreadable };
    if evidence.start() != Some(start) {
        return Rederived::Unreadable;
    }
    let data = derive(&evidence);
    if before.as_ref() == Some(&data) { Rederived::Same } else { Rederived::Other(id, data.into(), evidence) }
}

/// Writes these runs, in one transaction as a rule; how many of them were changed.
async fn write(store: &Store, changes: Vec<(RunId, CircuitData, Evidence)>) -> Result<u64, StoreError> {
    let write = |(id, data, evidence)| async move { store.complete_run(&id, data, evidence).await };
    let written = tokio::select! {
        written = join_all(changes.into_iter().map(write)) => written,
        error = given_up(store.health()) => return Err(error),
    };
    written.into_iter().map(|changed| Ok(u64::from(changed?.is_some()))).sum()
}

/// Returns once the store can't be written, and has had its time to get well.
async fn given_up(mut health: watch::Receiver<StoreHealth>) -> StoreError {
    loop {
        let failing = health.wait_for(|health| *health != StoreHealth::Ok).await.map(|health| health.clone());
        let well = tokio::time::timeout(PATIENCE, health.wait_for(|health| *health == StoreHealth::Ok)).await;
        match (failing, well) {
            (Ok(StoreHealth::Failing { error, .. }), Err(_)) => return StoreError::Failing(error),
            (Ok(_), Ok(Ok(_))) => {}
            // The writer is gone, and fails no more.
            _ => return std::future::pending().await,
        }
    }
}

/// How far it is, where somebody watches.
fn show(counts: &Counts) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        // Nobody reads it, then.
        let _ = write!(err, "\r\x1b[K{} runs, {} changed", counts.runs, counts.changed).and_then(|()| err.flush());
    }
}
