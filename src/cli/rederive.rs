//! `perfd rederive`: derives what tor told of each stored run again, from the lines that were kept.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use futures_util::future::join_all;

use super::exit::{Exit, FAILED, OrExit, STORE};
use super::opened::{StoreArgs, given_up, named, open};
use super::output;
use crate::circuit::{CircuitData, Evidence, derive};
use crate::measurement::RunId;
use crate::store::{Rederived, Store, StoreError, StoredEvidence};

/// Runs that are read at a time, and then written at once. Few: a perfd that runs beside this must not wait long to
/// write.
const PAGE: usize = 32;

/// At the end the store has so long to close.
const FAREWELL: Duration = Duration::from_secs(4);

/// Derive the circuits of all stored runs again
///
/// perfd keeps with each run the lines of tor's control port that touch it. This derives the run's circuit
/// from them as this version of perfd does. Only runs of which something else comes out are written; each
/// gets a new revision, so that who follows the results gets it again. A run whose lines can't be read, or
/// are none of this version, stays as it is, and is counted.
///
/// A perfd that runs may go on meanwhile. A run that it completes between reading and writing stays as that
/// perfd wrote it, and is counted as overtaken. A store of an older perfd is brought up to date first, as
/// `perfd run` does it (also with --dry-run), and is then none for that older one any more. Run it as
/// perfd's user, or with sudo.
#[derive(Args, Debug)]
pub struct RederiveArgs {
    #[command(flatten)]
    store: StoreArgs,
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
    overtaken: u64,
}

/// A run of which something else came out, and the evidence that says so.
type Change = (RunId, Box<CircuitData>, Evidence);

/// Derives and says what changed.
pub fn run(args: RederiveArgs) -> Result<(), Exit> {
    let path = args.store.path()?;
    let store = open(&path)?;
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
            let Counts { runs, changed, unreadable, overtaken } = counts;
            let would = if args.dry_run { "would be changed" } else { "changed" };
            let mut summary = format!("{runs} runs, {changed} {would}, {unreadable} unreadable");
            if overtaken > 0 {
                let _ = write!(summary, ", {overtaken} overtaken by a perfd that runs");
            }
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
            match derived(stored) {
                Derived::Same => {}
                Derived::Other(change) => changes.push(change),
                Derived::Unreadable => counts.unreadable += 1,
            }
        }
        if dry_run {
            counts.changed += changes.len() as u64;
        } else {
            write(store, changes, counts).await?;
        }
        show(counts);
    }
}

enum Derived {
    Same,
    Other(Change),
    Unreadable,
}

fn derived(StoredEvidence { id, start, evidence, data: before }: StoredEvidence) -> Derived {
    let Some(evidence) = evidence.map(Evidence) else { return Derived::Unreadable };
    if evidence.start() != Some(start) {
        return Derived::Unreadable;
    }
    let data = derive(&evidence);
    if before.as_ref() == Some(&data) { Derived::Same } else { Derived::Other((id, data.into(), evidence)) }
}

/// Writes these runs, in one transaction as a rule, and counts what became of them.
async fn write(store: &Store, changes: Vec<Change>, counts: &mut Counts) -> Result<(), StoreError> {
    let write = |(id, data, evidence): Change| async move { store.rederive_run(&id, *data, evidence).await };
    let written = tokio::select! {
        written = join_all(changes.into_iter().map(write)) => written,
        error = given_up(store.health()) => return Err(error),
    };
    for rederived in written {
        match rederived? {
            Rederived::Changed(_) => counts.changed += 1,
            Rederived::Same => {}
            Rederived::Overtaken => counts.overtaken += 1,
        }
    }
    Ok(())
}

/// How far it is, where somebody watches.
fn show(counts: &Counts) {
    let mut err = std::io::stderr();
    if err.is_terminal() {
        // Nobody reads it, then.
        let _ = write!(err, "\r\x1b[K{} runs, {} changed", counts.runs, counts.changed).and_then(|()| err.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::UnixMicros;
    use crate::slot::{Grid, SlotId, SlotState};
    use crate::store::NewResult;
    use crate::test_support::circuit::example_circuit;
    use crate::test_support::{example_result, example_row};

    /// Stores two runs whose circuit is none that their evidence gives.
    async fn fill(store: &Store, lines: &Evidence) {
        let row = example_row();
        let planned = row.planned.unwrap();
        let slot = SlotId { experiment: row.experiment, planned };
        let grid = Grid::new(Duration::from_secs(1), Duration::ZERO);
        store.begin_slot(slot.clone(), grid, planned).await.unwrap();
        let result = |run| NewResult { circuit: Some((example_circuit(), lines.clone())), ..example_result(run) };
        let results = vec![result(1), result(2)];
        store.finish_slot(slot, SlotState::Done, None, UnixMicros(1), results).await.unwrap();
    }

    #[tokio::test]
    async fn runs_that_were_completed_meanwhile_are_counted_and_left() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("perfd.sqlite")).unwrap();
        let start = example_row().measurement.start.0;
        let lines = Evidence(format!("perfd evidence 1\nstart {start}\nconnection 1\nsince -1\n\n"));
        fill(&store, &lines).await;
        let page = store.reader().evidence_page(None, PAGE).await.unwrap();
        let changes = page.into_iter().map(|stored| match derived(stored) {
            Derived::Other(change) => change,
            _ => panic!("nothing else came out"),
        });
        let changes: Vec<Change> = changes.collect();

        let later = Evidence(format!("{}100 BUILDTIMEOUT_SET RESUME\n", lines.0));
        let (one, two) = (RunId::from_bits(1), RunId::from_bits(2));
        assert_eq!(store.complete_run(&two, example_circuit(), later.clone()).await, Ok(Some(3)));
        let mut counts = Counts::default();
        write(&store, changes, &mut counts).await.unwrap();
        assert_eq!(counts, Counts { changed: 1, overtaken: 1, ..Counts::default() });
        let stored = async |id| {
            let whole = store.reader().result(id).await.unwrap().unwrap();
            (whole.row.circuit, whole.evidence)
        };
        assert_eq!(stored(&one).await, (Some(derive(&lines)), Some(lines.0.clone())));
        assert_eq!(stored(&two).await, (Some(example_circuit()), Some(later.0)));
    }
}
