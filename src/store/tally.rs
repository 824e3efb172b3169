//! What `/metrics` tells of the experiments: one short read, of one moment.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, Result};

use super::query::{self, SlotCounts};
use crate::clock::UnixMicros;

/// So many of an experiment's latest runs are looked through for the last one that got its first byte, and its last.
const LATEST: i64 = 1000;

/// What the store tells of itself, and of the experiments that were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// In the order in which they were asked for.
    pub experiments: Vec<ExperimentTally>,
    /// Bytes of the store's file.
    pub database_bytes: u64,
    /// Bytes of its write-ahead log.
    pub log_bytes: u64,
}

/// How one experiment is doing, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExperimentTally {
    /// The experiment's name.
    pub experiment: String,
    /// How many of its slots are in which state: all that came due, each in one of them.
    pub slots: SlotCounts,
    /// START of its latest complete run.
    pub last_success: Option<UnixMicros>,
    /// Its latest runs, one entry a tor, by the tors' names.
    pub last: Vec<LastRuns>,
}

/// The latest runs of an experiment through one tor, in the order of their START, among the experiment's latest
/// thousand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastRuns {
    /// The tor's name.
    pub tor: String,
    /// START of the latest one.
    pub start: UnixMicros,
    /// Its outcome's word.
    pub outcome: String,
    /// Of the latest one that got a first byte of payload: START, and the µs from START until it came.
    pub first_byte: Option<(UnixMicros, u64)>,
    /// Of the latest complete one: START, and the µs from START until its last byte came.
    pub last_byte: Option<(UnixMicros, u64)>,
}

/// How each of these experiments (and its tors) is doing, in this order; runs through other tors are left out.
pub(super) fn tally(conn: &Connection, path: &Path, experiments: &[(String, Vec<String>)]) -> Result<Tally> {
    // One transaction, so that all numbers speak of the same moment.
    let snapshot = conn.unchecked_transaction()?;
    let tally = |(experiment, tors): &(String, Vec<String>)| {
        Ok(ExperimentTally {
            experiment: experiment.clone(),
            slots: query::slot_counts(&snapshot, experiment)?,
            last_success: query::last_success(&snapshot, experiment)?,
            last: last_runs(&snapshot, experiment, tors)?,
        })
    };
    let experiments = experiments.iter().map(tally).collect::<Result<_>>()?;
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    Ok(Tally { experiments, database_bytes: size_of(path), log_bytes: size_of(Path::new(&log)) })
}

/// A file's size in bytes; 0 where there is none.
fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

fn last_runs(conn: &Connection, experiment: &str, tors: &[String]) -> Result<Vec<LastRuns>> {
    let mut statement = conn.prepare_cached(
        "SELECT tor, start_us, outcome, perc0_us, data_complete_us FROM result INDEXED BY result_experiment_start \
         WHERE experiment = ?1 ORDER BY start_us DESC LIMIT ?2",
    )?;
    let mut rows = statement.query((experiment, LATEST))?;
    let mut last: Vec<LastRuns> = Vec::new();
    // Mostly the first few rows tell all.
    let told = |last: &[LastRuns]| {
        last.len() == tors.len() && last.iter().all(|runs| runs.first_byte.is_some() && runs.last_byte.is_some())
    };
    while !told(&last)
        && let Some(row) = rows.next()?
    {
        let (tor, start, outcome): (String, _, String) = (row.get(0)?, UnixMicros(row.get(1)?), row.get(2)?);
        if !tors.contains(&tor) {
            continue;
        }
        let reached = |column| -> Result<_> {
            let us: Option<i64> = row.get(column)?;
            Ok(us.and_then(|us| u64::try_from(us).ok()).map(|us| (start, us)))
        };
        let first_byte = reached(3)?;
        let last_byte = reached(4)?.filter(|_| outcome == "complete");
        match last.iter_mut().find(|runs| runs.tor == tor) {
            Some(runs) => {
                runs.first_byte = runs.first_byte.or(first_byte);
                runs.last_byte = runs.last_byte.or(last_byte);
            }
            None => last.push(LastRuns { tor, start, outcome, first_byte, last_byte }),
        }
    }
    last.sort_by(|a, b| a.tor.cmp(&b.tor));
    Ok(last)
}
