//! perfd killed again and again in the middle of its work: nothing that anybody was told of may be lost
//! or be there twice, and every slot of the schedule must be accounted for.
//!
//! `PERFD_KILL_ROUNDS` says how often; 50 times where it is not set.

#[path = "common/relay.rs"]
mod relay;
#[path = "common/service.rs"]
mod service;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::SIGKILL;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use relay::{Pace, Relay};
use rusqlite::Connection;
use serde_json::Value;
use service::{PATIENCE, Setup, Times, Watch, get};

/// The moments of the kills vary, but not from one test run to the next.
const SEED: u64 = 20_261_122;

/// A kill comes with a line of the log, up to so long after it, or with the next write to the store.
const LONGEST_DELAY_MS: u64 = 300;

/// And that is the line of this many finished runs, at most.
const MOST_FINISHED: usize = 10;

/// Now and then perfd stays down for so long, and misses slots.
const DOWN: Duration = Duration::from_millis(1300);

const EVERY_US: i64 = 1_000_000;

/// The experiments with their offsets, so that something is always under way.
const EXPERIMENTS: [(&str, &str, &str, &str); 7] = [
    ("a", "relay", "150 KiB", "0 ms"),
    ("b", "relay", "200 KiB", "170 ms"),
    ("c", "relay", "50 KiB", "330 ms"),
    ("d", "relay", "300 KiB", "500 ms"),
    ("e", "relay", "1 KiB", "670 ms"),
    ("too-slow", "relay", "2 MiB", "830 ms"),
    ("refused", "closed", "50 KiB", "900 ms"),
];

/// What was told to somebody in one round, before the kill.
#[derive(Default)]
struct Told {
    /// The runs whose end was logged.
    logged: Vec<String>,
    /// The results that a reader got, by run: their revisions.
    read: HashMap<String, i64>,
}

#[test]
fn nothing_that_was_told_is_lost_and_every_slot_is_accounted_for() {
    let rounds = std::env::var("PERFD_KILL_ROUNDS").map_or(50, |rounds| rounds.parse().unwrap());
    let relay = Relay::start(Pace::Pausing(Duration::from_millis(25)));
    let closed = (Ipv4Addr::LOCALHOST, 1).into();
    let mut setup = Setup::new().tor("relay", relay.address).tor("closed", closed);
    setup.log_format = "json";
    for (name, tor, size, offset) in EXPERIMENTS {
        setup = setup.experiment(name, tor, size, Times { every: "1 s", offset, timeout: "900 ms" });
    }

    let since = Instant::now();
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let told: Vec<Told> = (0..rounds).map(|_| one_life(&mut setup, &mut random)).collect();
    let took = since.elapsed();

    // A last life that ends as it should, so that nothing is left running.
    let mut last = setup.start_measuring();
    last.wait_for_lines(3, "run finished");
    last.end_well_within(Duration::from_secs(5));
    let last = Told { logged: finished(&last.lines()), read: HashMap::new() };

    let conn = setup.read_store();
    let figures = Figures { rounds, took, told: told.iter().chain([&last]).collect(), conn: &conn };
    figures.check();
}

/// Starts perfd, waits for some line of its log and a moment more, and kills it.
fn one_life(setup: &mut Setup, random: &mut ChaCha8Rng) -> Told {
    let mut service = setup.start_measuring();
    let port = service.port();
    let readers = ["/results.ndjson", "/results.ndjson?order=newest&limit=20"]
        .map(|path| (service.watch(), path))
        .map(|(watch, path)| std::thread::spawn(move || read_results(port, &watch, path)));

    service.wait_for_lines(random.random_range(0..=MOST_FINISHED), "run finished");
    match random.random_range(0..3) {
        0 => {}
        1 => std::thread::sleep(Duration::from_millis(random.random_range(0..=LONGEST_DELAY_MS))),
        _ => wait_for_a_write(&setup.store),
    }
    service.signal(SIGKILL);
    service.end_within(PATIENCE);
    if random.random_bool(0.1) {
        std::thread::sleep(DOWN);
    }
    let mut told = Told { logged: finished(&service.lines()), read: HashMap::new() };
    for reader in readers {
        for (run, revision) in reader.join().unwrap() {
            let known = told.read.insert(run.clone(), revision);
            assert!(known.is_none_or(|known| known == revision), "run {run} had two revisions");
        }
    }
    told
}

/// Waits until the store is written to, so that a kill comes in the middle of a commit or right after it.
fn wait_for_a_write(store: &Path) {
    let log = PathBuf::from(format!("{}-wal", store.display()));
    let looks = || std::fs::metadata(&log).map(|found| (found.len(), found.mtime(), found.mtime_nsec())).ok();
    let (before, deadline) = (looks(), Instant::now() + PATIENCE);
    while looks() == before {
        assert!(Instant::now() < deadline, "nothing is written any more");
    }
}

/// Fetches the results after each finished run, until perfd has ended; runs and revisions that came.
fn read_results(port: u16, watch: &Watch, path: &str) -> HashMap<String, i64> {
    let mut read = HashMap::new();
    let mut lines = 0;
    while let Some(line) = watch.line(lines) {
        lines += 1;
        if !line.contains("run finished") && !line.contains("listening") {
            continue;
        }
        // Whatever is killed in the middle gives an answer that breaks off, or none.
        let Ok(answer) = get(port, path) else { continue };
        if answer.status != 200 {
            continue;
        }
        let text = answer.text();
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let result: Value = serde_json::from_str(line).unwrap();
            read.insert(result["run_id"].as_str().unwrap().to_owned(), result["revision"].as_i64().unwrap());
        }
    }
    read
}

/// The runs whose end is in the log.
fn finished(lines: &[String]) -> Vec<String> {
    let entries = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let finished = entries.filter(|entry| entry["message"] == "run finished");
    finished.map(|entry| entry["run"].as_str().unwrap().to_owned()).collect()
}

/// What is in the store at the end, beside what was told.
struct Figures<'a> {
    rounds: usize,
    took: Duration,
    told: Vec<&'a Told>,
    conn: &'a Connection,
}

impl Figures<'_> {
    /// Prints the figures, and expects that all is well.
    fn check(&self) {
        let integrity: String = self.conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(integrity, "ok");

        let stored: Vec<(String, i64)> =
            self.rows("SELECT id, revision FROM result", |row| Ok((row.get(0)?, row.get(1)?)));
        let revisions: HashMap<&str, i64> = stored.iter().map(|(id, revision)| (id.as_str(), *revision)).collect();
        let doubled = stored.len() - revisions.len();
        let logged: BTreeSet<&str> = self.told.iter().flat_map(|told| &told.logged).map(String::as_str).collect();
        let read: BTreeMap<&str, i64> =
            self.told.iter().flat_map(|told| &told.read).map(|(run, revision)| (run.as_str(), *revision)).collect();
        let told: BTreeSet<&str> = logged.iter().copied().chain(read.keys().copied()).collect();
        let lost: Vec<&str> = told.iter().copied().filter(|run| !revisions.contains_key(run)).collect();

        let states: BTreeMap<String, i64> = self
            .rows("SELECT state, sum(count) FROM slot GROUP BY state", |row| Ok((row.get(0)?, row.get(1)?)))
            .into_iter()
            .collect();
        let _ = writeln!(
            std::io::stderr(),
            "killed {} times in {:.1} s: {} results stored, {} logged, {} read by others; {} lost, {doubled} doubled; \
             slots {states:?}",
            self.rounds,
            self.took.as_secs_f64(),
            stored.len(),
            logged.len(),
            read.len(),
            lost.len(),
        );
        assert_eq!((lost, doubled), (Vec::new(), 0));
        assert!(!logged.is_empty() && !read.is_empty(), "nothing was told before a kill, so nothing was tested");
        assert_eq!(
            logged.len(),
            self.told.iter().map(|told| told.logged.len()).sum::<usize>(),
            "a run was logged twice"
        );
        assert!(read.iter().all(|(run, revision)| revisions[run] == *revision), "a revision has changed");
        assert!(!states.contains_key("running"), "{states:?}");
        self.check_that_revisions_grow(&revisions);
        self.check_that_results_and_slots_match();
        for (name, ..) in EXPERIMENTS {
            self.check_that_no_slot_is_missing(name);
        }
    }

    /// Each life's results have later revisions than those of the lives before it.
    fn check_that_revisions_grow(&self, revisions: &HashMap<&str, i64>) {
        let mut highest = 0;
        for (round, told) in self.told.iter().enumerate() {
            let these = told.logged.iter().map(|run| revisions[run.as_str()]);
            let (least, most) = these.fold((i64::MAX, highest), |(least, most), r| (least.min(r), most.max(r)));
            assert!(least > highest, "revision {least} was given in round {round}, after {highest}");
            highest = most;
        }
    }

    /// A slot is done if and only if it has its one result.
    fn check_that_results_and_slots_match(&self) {
        let done = "SELECT experiment, planned_us FROM slot WHERE state = 'done' ORDER BY 1, 2";
        let results = "SELECT experiment, planned_us FROM result ORDER BY 1, 2";
        let slots = |sql| self.rows(sql, |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)));
        assert_eq!(slots(done), slots(results));
        let counted = "SELECT state, sum(slots) FROM slot_count GROUP BY state HAVING sum(slots) > 0";
        let summed = "SELECT state, sum(count) FROM slot GROUP BY state";
        assert_eq!(slots(counted), slots(summed), "the counts kept beside the ledger");
    }

    /// The ledger goes over the grid without a hole or an overlap.
    fn check_that_no_slot_is_missing(&self, experiment: &str) {
        let sql = format!(
            "SELECT planned_us, planned_last_us, count FROM slot WHERE experiment = '{experiment}' ORDER BY planned_us"
        );
        let rows: Vec<(i64, i64, i64)> = self.rows(&sql, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        assert!(!rows.is_empty(), "{experiment} has no slots");
        for (first, last, count) in &rows {
            assert_eq!((last - first) / EVERY_US + 1, *count, "{experiment}: {first} to {last}");
            assert_eq!((last - first) % EVERY_US, 0, "{experiment}: {first} to {last}");
        }
        for pair in rows.windows(2) {
            assert_eq!(pair[1].0, pair[0].1 + EVERY_US, "{experiment}: {pair:?}");
        }
    }

    fn rows<T>(&self, sql: &str, row: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
        self.conn.prepare(sql).unwrap().query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
    }
}
