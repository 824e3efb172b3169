//! What `/metrics` tells of the experiments: one short read, of one moment.

use std::fs;
use std::path::Path;

use rusqlite::{Connection, Result};

use super::query::{self, SlotCounts};
use super::total::{FIRST_BYTE_BOUNDS, LAST_BYTE_BOUNDS, bound_label};
use crate::clock::UnixMicros;
use crate::measurement::{Cause, Phase};

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
    /// How its results ended, since the store began.
    pub ended: Vec<Ended>,
    /// Of its results that got a first byte of payload, the time from START until it came.
    pub first_byte: Histogram,
    /// Of its results that got all of the payload, the time from START until its last byte came.
    pub last_byte: Histogram,
    /// Bytes of HTTP that its runs read, headers included.
    pub bytes_read: u64,
    /// Bytes of HTTP that its runs wrote, headers included.
    pub bytes_written: u64,
}

/// How many results ended in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The outcome's word.
    pub outcome: String,
    /// The step that was being waited for; `None` of complete ones.
    pub phase: Option<Phase>,
    /// Why; of failed ones alone.
    pub cause: Option<Cause>,
    /// How many.
    pub results: u64,
}

/// How long something took, by buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Each upper bound in milliseconds with how many took no longer, shorter bounds' included.
    pub buckets: Vec<(u64, u64)>,
    /// How many there are in all.
    pub count: u64,
    /// What they took together, in microseconds.
    pub sum_us: u64,
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
        let totals = totals_of(&snapshot, experiment)?;
        Ok(ExperimentTally {
            experiment: experiment.clone(),
            slots: query::slot_counts(&snapshot, experiment)?,
            last_success: query::last_success(&snapshot, experiment)?,
            last: last_runs(&snapshot, experiment, tors)?,
            ended: ended(&totals),
            first_byte: histogram(&totals, "first_byte", "first_byte_us", &FIRST_BYTE_BOUNDS),
            last_byte: histogram(&totals, "last_byte", "last_byte_us", &LAST_BYTE_BOUNDS),
            bytes_read: total(&totals, "bytes_read", ""),
            bytes_written: total(&totals, "bytes_written", ""),
        })
    };
    let experiments = experiments.iter().map(tally).collect::<Result<_>>()?;
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    Ok(Tally { experiments, database_bytes: size_of(path), log_bytes: size_of(Path::new(&log)) })
}

/// An experiment's rows of table `total`: name, label, value.
type Totals = Vec<(String, String, u64)>;

fn totals_of(conn: &Connection, experiment: &str) -> Result<Totals> {
    conn.prepare_cached("SELECT name, label, value FROM total WHERE experiment = ?1")?
        .query_map([experiment], |row| {
            Ok((row.get(0)?, row.get(1)?, u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0)))
        })?
        .collect()
}

/// 0 where it was never counted.
fn total(totals: &Totals, name: &str, label: &str) -> u64 {
    totals.iter().find(|(n, l, _)| n == name && l == label).map_or(0, |(.., value)| *value)
}

/// Those whose words are known.
fn ended(totals: &Totals) -> Vec<Ended> {
    let results = totals.iter().filter(|(name, ..)| name == "results");
    let ended = results.filter_map(|(_, label, results)| {
        let mut words = label.split('/');
        let outcome = words.next().filter(|word| ["complete", "timeout", "failed"].contains(word))?;
        let phase = words.next().map(|word| Phase::parse(word).ok_or(())).transpose().ok()?;
        let cause = words.next().map(|word| Cause::parse(word).ok_or(())).transpose().ok()?;
        Some(Ended { outcome: outcome.to_owned(), phase, cause, results: *results })
    });
    ended.collect()
}

fn histogram(totals: &Totals, buckets: &str, sum: &str, bounds: &[u64]) -> Histogram {
    let mut count: u64 = 0;
    let mut up_to = |label: &str| {
        count = count.saturating_add(total(totals, buckets, label));
        count
    };
    let buckets = bounds.iter().map(|bound| (*bound, up_to(&bound_label(*bound)))).collect();
    Histogram { buckets, count: up_to("+Inf"), sum_us: total(totals, sum, "") }
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
