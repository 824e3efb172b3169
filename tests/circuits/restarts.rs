//! A tor of perfd's own that is killed in the middle of a run, again and again; and a perfd that is.
//!
//! `PERFD_TOR_KILLS` says how many runs are to be hit; 3 where it is not set.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{self, SIGKILL};
use nix::unistd::Pid;
use perfd::circuit::CircuitState;
use perfd::export::json::ResultJson;
use serde_json::Value;

use crate::network::{LONG, network, results, runs, tor_status};
use crate::service::{PATIENCE, Service, Setup, Times, get, wait_within};

/// After so many, perfd is started anew: it waits longer and longer before it starts a tor that dies each time.
const KILLS_A_PERFD: usize = 10;

/// tor looks for its owner every 15 s.
const ORPHANS_END: Duration = Duration::from_secs(20);

#[test]
fn a_tor_that_is_killed_costs_one_run() {
    let Some((network, _turn)) = network() else { return };
    let kills: usize = std::env::var("PERFD_TOR_KILLS").map_or(3, |kills| kills.parse().expect("a number of kills"));
    let every = Times { every: "1 s", offset: "0 s", timeout: "950 ms" };
    let mut setup = network.tor(Setup::new(), "tor", &[]).experiment("5mib", "tor", "5 MiB", every);
    let mut pids = BTreeSet::new();
    let mut lost = Vec::new();
    let (mut hit, mut late) = (0, 0);
    while hit < kills {
        let mut perfd = setup.start_measuring();
        let mut after = next_known(&perfd, None);
        for _ in 0..KILLS_A_PERFD {
            if hit == kills {
                break;
            }
            let (run, pid) = kill_within_a_run(&perfd);
            pids.insert(pid);
            let result = recorded(&perfd, &run);
            if result.outcome == "complete" {
                // It was over before the kill.
                late += 1;
                assert!(late <= 2 * kills, "kills come too late again and again");
            } else {
                hit += 1;
                let data = result.circuit.as_ref().expect("something is known of its circuit");
                assert!(matches!(data.state, CircuitState::TorLost | CircuitState::Known), "{result:?}");
                assert_eq!(data.connection, after.1, "{result:?}");
                lost.push(data.state);
            }
            after = next_known(&perfd, Some((&result, after.1)));
        }
        pids.insert(pid_of(&perfd).expect("it measured through it"));
        perfd.end_well_within(PATIENCE);
        assert_eq!(still_running(&pids), BTreeSet::new(), "perfd has ended");
    }

    let mut perfd = setup.start_measuring();
    next_known(&perfd, None);
    pids.insert(pid_of(&perfd).expect("it measured through it"));
    perfd.signal(SIGKILL);
    perfd.end_within(PATIENCE);
    let killed = Instant::now();
    wait_within(ORPHANS_END, "the end of the tor of a perfd that was killed", || {
        still_running(&pids).is_empty().then_some(())
    });
    let lost = lost.iter().filter(|state| **state == CircuitState::TorLost).count();
    let said = format!(
        "kills: {hit} of {kills} runs hit are recorded ({lost} as tor_lost), each with a known one after it; {late} \
         kills came after a run's end; {} tors, none left; {:.1} s after perfd was killed so was its tor\n",
        pids.len(),
        killed.elapsed().as_secs_f64()
    );
    let _ = std::io::stderr().write_all(said.as_bytes());
}

/// Kills the tor while a run is under way; the run and the tor's pid.
fn kill_within_a_run(perfd: &Service) -> (String, u32) {
    let (run, pid) = perfd.wait_within(LONG, "a run under way", || {
        let health: Value = serde_json::from_slice(&get(perfd.port(), "/health").ok()?.body).ok()?;
        let doing = &health["experiments"][0];
        let run = doing["run_id"].as_str().filter(|_| doing["doing"] == "running")?.to_owned();
        Some((run, pid_of(perfd)?))
    });
    // Somewhere within it: it takes half a second.
    std::thread::sleep(Duration::from_millis(rand::random_range(0..300)));
    nix::sys::signal::kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    (run, pid)
}

fn recorded(perfd: &Service, run: &str) -> ResultJson {
    perfd.wait_within(PATIENCE, "the result of the run that was hit", || {
        results(perfd.port()).into_iter().find(|result| result.run_id == run)
    })
}

/// The next complete run whose circuit is known, later than `last` and over a later connection; that connection.
fn next_known(perfd: &Service, last: Option<(&ResultJson, u64)>) -> (ResultJson, u64) {
    let begun = perfd.count("");
    perfd.wait_within(LONG, "a complete run", || {
        let said = perfd.lines();
        let complete = said.iter().skip(if last.is_some() { begun } else { 0 });
        let runs: Vec<_> = complete
            .filter(|line| line.contains(r#"outcome="complete""#))
            .filter_map(|line| line.split("run=").nth(1)?.split(' ').next())
            .collect();
        if runs.is_empty() {
            return None;
        }
        let found = results(perfd.port()).into_iter().find(|result| {
            let later = last.is_none_or(|(last, _)| result.start_unix_us > last.start_unix_us);
            later && result.outcome == "complete" && runs.contains(&result.run_id.as_str())
        })?;
        let data = found.circuit.clone().expect("something is known of its circuit");
        assert_eq!(data.state, CircuitState::Known, "{found:?}");
        assert!(last.is_none_or(|(_, before)| data.connection > before), "over the same connection: {found:?}");
        assert!(data.circuit.is_some_and(|circuit| circuit.path.len() == 3), "{found:?}");
        Some((found, data.connection))
    })
}

fn pid_of(perfd: &Service) -> Option<u32> {
    u32::try_from(tor_status(perfd.port(), "tor")["pid"].as_u64()?).ok()
}

fn still_running(pids: &BTreeSet<u32>) -> BTreeSet<u32> {
    pids.iter().copied().filter(|pid| runs(*pid)).collect()
}
