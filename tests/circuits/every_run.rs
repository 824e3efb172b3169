//! Each run's circuit is the one that tor itself tells of: by exit with and without Conflux, and to perfd's own
//! onion service, published by the same tor or another.
//!
//! `PERFD_CIRCUIT_RUNS` says how many complete runs of each of the four kinds; 10 where it is not set.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write as _;
use std::time::Duration;

use perfd::circuit::{Evidence, derive};
use perfd::export::json::ResultJson;
use perfd::measurement::RunId;
use perfd::store::Store;

use crate::judge::{Witness, judge};
use crate::network::{LONG, Network, network, results};
use crate::observer::{Observer, Seen};
use crate::service::{PATIENCE, Service, Setup, Times, get};

/// The experiments, the tor that each goes through, and the tor that publishes its onion service.
const EXPERIMENTS: [(&str, &str, Option<&str>); 4] = [
    ("exit-conflux", "conflux", None),
    ("exit-plain", "plain", None),
    ("onion-own", "conflux", Some("conflux")),
    ("onion-other", "plain", Some("service")),
];

#[test]
fn every_run_knows_its_circuit() {
    let Some((network, _turn)) = network() else { return };
    let runs = std::env::var("PERFD_CIRCUIT_RUNS").map_or(10, |runs| runs.parse().expect("a number of runs"));
    let mut setup = setup(&network);
    let mut perfd = setup.start_measuring();
    let observer = |tor: &str| (tor.to_owned(), Observer::of(&setup.state().join(format!("tor-{tor}"))));
    let observers: BTreeMap<_, _> = ["conflux", "plain", "service"].map(observer).into();

    wait_for_runs(&perfd, runs);
    let port = perfd.port();
    // What tor tells in the seconds after a run completes its result.
    let mut told = (Vec::new(), Vec::new());
    for _ in 0..8 {
        let seen: BTreeMap<_, _> = observers.iter().map(|(tor, observer)| (tor.as_str(), observer.seen())).collect();
        told = judge_all(port, runs, &seen);
        if told.1.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    let (judged, mut wrong) = told;
    let not_complete: Vec<_> = results(port).into_iter().filter(|r| r.outcome != "complete").collect();
    perfd.end_well_within(PATIENCE);
    let seen: BTreeMap<_, _> = observers.into_iter().map(|(tor, observer)| (tor, observer.end())).collect();
    for (tor, seen) in &seen {
        assert!(seen.answers > 10, "the observer of {tor} got {} answers", seen.answers);
        wrong.extend(shared_circuits(tor, seen));
    }
    let bytes = derived_again(&setup, &judged, &mut wrong);
    let stored: f64 =
        setup.read_store().query_row("SELECT avg(length(lines)) FROM evidence", [], |row| row.get(0)).unwrap();

    // Now and then tor has no set ready, and takes a plain circuit, which its own word for it shows.
    let by_legs = |name: &str, legs: usize| {
        let of_kind = judged.iter().filter(|result| result.experiment == name);
        let set = of_kind.filter_map(|result| result.circuit.as_ref()?.conflux.as_ref());
        set.filter(|set| set.legs.len() == legs).count()
    };
    let conflux = EXPERIMENTS.map(|(name, ..)| by_legs(name, 2));
    let alone = EXPERIMENTS.map(|(name, ..)| by_legs(name, 1));

    let said = format!(
        "circuits: {} of {} right, {} of them over two legs of Conflux sets, {} over one; {} more runs did not \
         complete; {} bytes of evidence a run, at most {}, stored as {stored:.0}\n",
        judged.len() - wrong.len().min(judged.len()),
        judged.len(),
        conflux[0],
        alone[0],
        not_complete.len(),
        bytes.iter().sum::<usize>() / bytes.len().max(1),
        bytes.iter().max().unwrap_or(&0),
    );
    let _ = std::io::stderr().write_all(said.as_bytes());
    for result in not_complete {
        let state = result.circuit.map(|data| data.state.as_str());
        let at = result.phase.unwrap_or_default();
        let said = format!("not complete: {} {} at {at}, circuit {state:?}\n", result.experiment, result.outcome);
        let _ = std::io::stderr().write_all(said.as_bytes());
    }
    assert_eq!(judged.len(), runs * EXPERIMENTS.len());
    assert!(wrong.is_empty(), "{said}{}", wrong.join("\n"));
    assert!(conflux[0] > runs / 2, "runs over Conflux sets: {conflux:?}");
    assert_eq!((&conflux[1..], &alone[1..]), (&[0; 3][..], &[0; 3][..]), "sets where there are none");
}

fn setup(network: &Network) -> Setup {
    let mut setup = Setup::new();
    // tor keeps no more than ten linked sets, those that were used included, for as long as a stream might come.
    setup = network.tor(setup, "conflux", &["MaxCircuitDirtiness 10"]);
    setup = network.tor(setup, "plain", &["ConfluxEnabled 0"]);
    setup = network.tor(setup, "service", &[]);
    let times = |every, offset, timeout| Times { every, offset, timeout };
    for (name, tor, publisher) in EXPERIMENTS {
        let (times, more) = match publisher {
            None => (times("2 s", "0 s", "950 ms"), "server = \"exit\"".to_owned()),
            Some(publisher) => {
                (times("2 s", "300 ms", "1900 ms"), format!("server = \"onion\"\nonion_tor = \"{publisher}\""))
            }
        };
        setup = setup.experiment_of(name, &[tor], "50 KiB", times, &more);
    }
    setup
}

/// Waits for so many complete runs of each kind.
fn wait_for_runs(perfd: &Service, runs: usize) {
    let a_run = Duration::from_secs(10);
    let patience = 2 * LONG + a_run * u32::try_from(runs).unwrap();
    let mut counts = Vec::new();
    perfd.wait_within(patience, "complete runs of each kind", || {
        let complete = |name: &str| perfd.count(&format!(r#"experiment="{name}" outcome="complete""#));
        counts = EXPERIMENTS.map(|(name, ..)| complete(name)).to_vec();
        std::thread::sleep(Duration::from_millis(100));
        counts.iter().all(|count| *count >= runs).then_some(())
    });
}

/// The first complete runs of each kind, and what is wrong with them.
fn judge_all(port: u16, runs: usize, seen: &BTreeMap<&str, Seen>) -> (Vec<ResultJson>, Vec<String>) {
    let tpf = get(port, "/results.tpf").unwrap().text();
    let tpf: HashMap<String, String> = tpf
        .lines()
        .filter_map(|line| Some((crate::observer::word(line, "RUN_ID")?.to_owned(), line.to_owned())))
        .collect();
    let mut complete = results(port);
    complete.retain(|result| result.outcome == "complete");
    complete.sort_by_key(|result| result.start_unix_us);
    let (mut judged, mut wrong) = (Vec::new(), Vec::new());
    for (name, tor, publisher) in EXPERIMENTS {
        for result in complete.iter().filter(|result| result.experiment == name).take(runs) {
            let witness = Witness { client: &seen[tor], service: publisher.map(|publisher| &seen[publisher]) };
            if let Err(error) = judge(result, &tpf, &witness) {
                wrong.push(format!("{name} {}: {error}", result.run_id));
            }
            judged.push(result.clone());
        }
    }
    (judged, wrong)
}

/// Circuits that carried streams of two of perfd's runs, by tor's own words.
fn shared_circuits(tor: &str, seen: &Seen) -> Vec<String> {
    let mut users: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in &seen.streams {
        let words: Vec<&str> = line.split(' ').collect();
        let user = crate::observer::word(line, "SOCKS_USERNAME").filter(|user| user.starts_with("perfd-"));
        if let ("SUCCEEDED", Some(user)) = (words[1], user) {
            users.entry(words[2]).or_default().insert(user);
        }
    }
    let shared = users.iter().filter(|(_, users)| users.len() > 1);
    shared.map(|(circuit, users)| format!("circuit {circuit} of {tor} carried {users:?}")).collect()
}

/// The evidence of each run says the same when it is read again. Gives how long each is.
fn derived_again(setup: &Setup, judged: &[ResultJson], wrong: &mut Vec<String>) -> Vec<usize> {
    let store = Store::open(&setup.store).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut lengths = Vec::new();
        for result in judged {
            let whole = store.reader().result(&RunId::parse(&result.run_id).unwrap()).await.unwrap().expect("stored");
            let evidence = Evidence(whole.evidence.expect("evidence"));
            lengths.push(evidence.0.len());
            if Some(derive(&evidence)) != whole.row.circuit || whole.row.circuit != result.circuit {
                wrong.push(format!("{}: derived again it is another:\n{}", result.run_id, evidence.0));
            }
        }
        store.close(PATIENCE).await.unwrap();
        lengths
    })
}
