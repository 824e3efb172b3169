//! perfd's own onion services: ordinary and of a single hop, the same after a restart, and without any public host.

use std::os::unix::fs::PermissionsExt;

use perfd::export::json::ResultJson;
use serde_json::Value;

use crate::network::{LONG, network, results, tor_status};
use crate::observer::{Observer, path, word};
use crate::service::{PATIENCE, Service, Setup, Times, get};

const TIMES: Times = Times { every: "2 s", offset: "0 s", timeout: "1900 ms" };

#[test]
fn onion_services_keep_their_address_and_may_be_of_a_single_hop() {
    let Some((network, _turn)) = network() else { return };
    let setup = network.tor_with(network.tor(Setup::new(), "tor", &[]), "hop", "single_hop = true");
    let mut setup = setup.experiment_of("own", &["tor"], "50 KiB", TIMES, "server = \"onion\"").experiment_of(
        "single",
        &["tor"],
        "50 KiB",
        TIMES,
        "server = \"onion\"\nonion_tor = \"hop\"",
    );
    let mut addresses = Vec::new();
    for start in 1..=2 {
        let mut perfd = setup.start_measuring();
        let observer = Observer::of(&setup.state().join("tor-hop"));
        let (own, single) = (complete(&perfd, "own", start), complete(&perfd, "single", start));
        assert_eq!((own.server.as_str(), single.server.as_str()), ("onion", "single_onion"));
        let of_tors = ["tor", "hop"].map(|tor| tor_status(perfd.port(), tor)["onion"]["address"].clone());
        for (result, address) in [(&own, &of_tors[0]), (&single, &of_tors[1])] {
            assert_eq!(result.endpoint_remote, Some(format!("{}.onion:80", address.as_str().unwrap())));
        }
        addresses.push(of_tors);
        let hops = |result: &ResultJson| {
            let service = result.circuit.as_ref()?.onion.as_ref()?.service.as_ref()?;
            Some((service.id, service.path.len()))
        };
        assert!(hops(&own).is_some_and(|(_, hops)| hops >= 3), "{own:?}");
        let (id, of_single) = hops(&single).unwrap_or_else(|| panic!("no circuit of the service: {single:?}"));
        perfd.end_well_within(PATIENCE);
        // tor's own word for it: from the service to the rendezvous point it is one hop.
        let seen = observer.end();
        let told: Vec<_> = seen.circuit(id).filter(|line| word(line, "PURPOSE") == Some("HS_SERVICE_REND")).collect();
        assert!(told.iter().any(|line| path(line).len() == 1), "{told:?}");
        assert_eq!(of_single, 1, "{single:?}");
    }
    assert_eq!(addresses[0], addresses[1]);
    assert_ne!(addresses[0][0], addresses[0][1]);
    for file in ["onion-tor.key", "tor-hop/onion/hs_ed25519_secret_key"] {
        let key = std::fs::metadata(setup.state().join(file)).unwrap();
        assert_eq!(key.permissions().mode() & 0o7777, 0o600, "{file}");
    }
}

#[test]
fn without_any_public_host_perfd_measures_its_own_onion_service() {
    let Some((network, _turn)) = network() else { return };
    let setup = network.tor(Setup::new(), "tor", &[]).experiment("50kib", "tor", "50 KiB", TIMES);
    let mut perfd = setup.start();
    let result = complete(&perfd, "50kib", 1);
    assert_eq!((result.server.as_str(), result.verified), ("onion", Some(true)));
    perfd.wait_within(PATIENCE, "good health", || {
        let health: Value = serde_json::from_slice(&get(perfd.port(), "/health").unwrap().body).unwrap();
        (health["status"] == "ok").then_some(())
    });
    perfd.end_well_within(PATIENCE);
}

/// The latest complete run of an experiment since perfd's start, once there is one.
fn complete(perfd: &Service, experiment: &str, start: u64) -> ResultJson {
    let line = format!("experiment=\"{experiment}\" outcome=\"complete\"");
    perfd.wait_within(LONG, experiment, || (perfd.count(&line) > 0).then_some(()));
    let all = results(perfd.port()).into_iter();
    let complete = all.filter(|result| result.experiment == experiment && result.outcome == "complete");
    complete.max_by_key(|result| result.start_unix_us).unwrap_or_else(|| panic!("start {start}: no result"))
}
