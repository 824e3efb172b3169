//! Every kind of run through real tors: uploads, requests sent before the reply, series, and pairs of tors.

use std::collections::{BTreeMap, BTreeSet};

use perfd::circuit::CircuitState;
use perfd::export::json::ResultJson;

use crate::network::{LONG, network, results};
use crate::service::{PATIENCE, Service, Setup, Times};

#[test]
fn every_kind_of_run_knows_its_circuit() {
    let Some((network, _turn)) = network() else { return };
    let times = |every, timeout| Times { every, offset: "0 s", timeout };
    let setup = network.tor(network.tor(Setup::new(), "a", &[]), "b", &["ConfluxEnabled 0"]);
    let mut setup = setup
        .experiment_of("upload", &["a"], "5 MiB", times("2 s", "1900 ms"), "kind = \"upload\"")
        .experiment_of("early", &["b"], "50 KiB", times("1 s", "950 ms"), "optimistic = true")
        .experiment_of("shared", &["b"], "50 KiB", times("4 s", "950 ms"), "requests = 4\nisolation = \"shared\"")
        .experiment_of("each", &["a"], "50 KiB", times("4 s", "950 ms"), "requests = 4")
        .experiment_of("pair", &["a", "b"], "50 KiB", times("2 s", "950 ms"), "");
    let mut perfd = setup.start_measuring();

    uploads(&perfd);
    early_requests(&perfd);
    series(&perfd);
    pairs(&perfd);
    perfd.end_well_within(PATIENCE);
}

fn uploads(perfd: &Service) {
    // Congestion is told of while it lasts, and a fast upload may be over before.
    let sampled = perfd.wait_within(LONG, "an upload with samples of congestion", || {
        complete(perfd, "upload").into_iter().find(|upload| data(upload).congestion.is_some())
    });
    let congestion = data(&sampled).congestion.as_ref().unwrap();
    assert!(!congestion.of_service && congestion.samples.is_sorted_by_key(|sample| sample.at_us), "{congestion:?}");
    assert!(congestion.samples.iter().any(|sample| sample.cwnd_cells.is_some_and(|cwnd| cwnd > 0)), "{congestion:?}");
    let circuits: Vec<u64> = match &data(&sampled).conflux {
        Some(set) => set.legs.iter().map(|leg| leg.id).collect(),
        None => data(&sampled).circuit.iter().map(|circuit| circuit.id).collect(),
    };
    assert!(circuits.contains(&congestion.circuit_id), "{sampled:?}");
    for upload in complete(perfd, "upload") {
        assert_eq!((upload.kind.as_str(), upload.verified, upload.size_bytes), ("upload", Some(true), 5 << 20));
        assert!(upload.bytes_written > upload.size_bytes, "{upload:?}");
        let server = upload.server_us.as_ref().expect("the server's side");
        let times: Vec<i64> = std::iter::once(Some(server.request)).chain(server.deciles.0).flatten().collect();
        assert!(times.len() == 12 && times.is_sorted() && times[0] > 0, "{upload:?}");
        let ours: Vec<u64> = upload.deciles_us.0.into_iter().flatten().collect();
        assert!(ours.len() == 11 && ours.is_sorted(), "{upload:?}");
        // Both clocks are this machine's: what has come was sent before.
        assert!(times.iter().skip(1).zip(&ours).all(|(came, sent)| *came >= *sent as i64), "{upload:?}");
    }
}

fn early_requests(perfd: &Service) {
    let early = at_least(perfd, "early", 3);
    for result in early {
        let steps = &result.steps_us;
        assert!(result.optimistic && result.verified == Some(true), "{result:?}");
        assert!(steps.data_request < steps.response && steps.response <= steps.data_response, "{result:?}");
        assert_eq!(data(&result).circuit.as_ref().unwrap().path.len(), 3, "{result:?}");
    }
}

/// A series whose runs share their isolation shares its circuit; one whose runs don't, does not.
fn series(perfd: &Service) {
    for (name, shared) in [("shared", true), ("each", false)] {
        let slots = slots_of(perfd, name, 4, |slots| slots.len() >= 2);
        for slot in slots {
            let ids: BTreeSet<u64> = slot.iter().map(circuit_id).collect();
            let users: BTreeSet<&str> = slot.iter().map(|result| result.socks_user.as_deref().unwrap()).collect();
            let streams: BTreeSet<_> = slot.iter().map(|result| data(result).stream_id).collect();
            let expected = if shared { 1 } else { 4 };
            assert_eq!((ids.len(), users.len(), streams.len()), (expected, expected, 4), "{slot:#?}");
            for (i, result) in slot.iter().enumerate() {
                let circuit = data(result).circuit.as_ref().unwrap();
                let again = shared && i > 0;
                assert_eq!(circuit.last_used_us.is_some_and(|at| at < 0), again, "run {i}: {slot:#?}");
                assert!(!again || circuit.built_before_run == Some(true), "run {i}: {slot:#?}");
                let elsewhere = slot.iter().filter(|other| other.run_id != result.run_id);
                assert!(elsewhere.clone().all(|other| other.endpoint_local != result.endpoint_local), "{slot:#?}");
            }
        }
    }
}

/// Each slot has a run through each tor, in an order that is drawn.
fn pairs(perfd: &Service) {
    let order = |slot: &[ResultJson]| slot.iter().map(|result| result.tor.clone()).collect::<Vec<_>>();
    let slots =
        slots_of(perfd, "pair", 2, |slots| slots.iter().map(|slot| order(slot)).collect::<BTreeSet<_>>().len() > 1);
    let orders: BTreeSet<_> = slots.iter().map(|slot| order(slot)).collect();
    assert_eq!(orders, [vec!["a".to_owned(), "b".to_owned()], vec!["b".to_owned(), "a".to_owned()]].into());
}

/// The complete runs of an experiment, each of which must know its circuit.
fn complete(perfd: &Service, experiment: &str) -> Vec<ResultJson> {
    let mut complete = results(perfd.port());
    complete.retain(|result| result.experiment == experiment && result.outcome == "complete");
    assert!(complete.iter().all(|result| data(result).state == CircuitState::Known), "{complete:#?}");
    complete
}

fn at_least(perfd: &Service, experiment: &str, count: usize) -> Vec<ResultJson> {
    perfd.wait_within(LONG, experiment, || Some(complete(perfd, experiment)).filter(|complete| complete.len() >= count))
}

/// The slots that have so many runs, all complete, in the order of their places, once there are enough.
fn slots_of(
    perfd: &Service,
    experiment: &str,
    runs: u32,
    enough: impl Fn(&[Vec<ResultJson>]) -> bool,
) -> Vec<Vec<ResultJson>> {
    perfd.wait_within(LONG, experiment, || {
        let mut slots: BTreeMap<i64, Vec<ResultJson>> = BTreeMap::new();
        for result in complete(perfd, experiment) {
            assert_eq!(result.place.of, runs, "{result:?}");
            slots.entry(result.planned_unix_us.unwrap()).or_default().push(result);
        }
        let mut slots: Vec<_> = slots.into_values().filter(|slot| slot.len() == runs as usize).collect();
        for slot in &mut slots {
            slot.sort_by_key(|result| result.place.index);
            let places: Vec<u32> = slot.iter().map(|result| result.place.index).collect();
            assert_eq!(places, (0..runs).collect::<Vec<_>>(), "{slot:#?}");
            assert!(slot.is_sorted_by_key(|result| result.start_unix_us), "{slot:#?}");
        }
        enough(&slots).then_some(slots)
    })
}

fn data(result: &ResultJson) -> &perfd::circuit::CircuitData {
    result.circuit.as_ref().expect("something is known of its circuit")
}

fn circuit_id(result: &ResultJson) -> u64 {
    data(result).circuit.as_ref().expect("a circuit").id
}
