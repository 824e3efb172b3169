//! Tors that can't be started, or hang: they are reported, and perfd goes on measuring through another one.

use serde_json::Value;

use crate::network::{LONG, network, results, runs, tor_status};
use crate::service::{EACH_SECOND, PATIENCE, Service, Setup, get};

#[test]
fn tors_in_trouble_are_reported_and_the_others_go_on() {
    let Some((network, _turn)) = network() else { return };
    let nowhere = "0".repeat(40);
    let hangs = format!(
        "authorities = [\"nowhere orport=1 no-v2 v3ident={nowhere} 127.0.0.1:1 {nowhere}\"]\n\
         bootstrap_timeout = \"3 s\""
    );
    let authorities = format!("authorities = {:?}", network.net.authorities);
    let mut setup = network
        .tor(Setup::new(), "good", &[])
        .started_tor("hangs", &network.tor, &hangs)
        .started_tor("missing", "/nowhere/tor".as_ref(), &authorities)
        .started_tor("public", &network.tor, "");
    for tor in ["good", "hangs", "missing", "public"] {
        setup = setup.experiment(tor, tor, "1 KiB", EACH_SECOND);
    }
    let mut perfd = setup.start_measuring();

    let troubles = [
        ("hangs", "no progress for 3 s at 5 % (conn: Connecting to a relay); it is started again"),
        ("missing", "can't start /nowhere/tor: No such file or directory"),
        ("public", "this tor would join the public network, which PERFD_PRIVATE_TORS_ONLY"),
    ];
    for (tor, trouble) in troubles {
        let warned = perfd.wait_for(trouble);
        assert!(warned.contains("WARN") && warned.contains(&format!("tor=\"{tor}\"")), "{warned}");
    }
    // It stays in trouble for as long as it is, each time that it is started again too.
    let starts = perfd.wait_within(LONG, "one that hangs to be started again and again", || {
        assert_troubles(&perfd, &troubles);
        let status = tor_status(perfd.port(), "hangs");
        assert_ne!(status["condition"], "ready");
        status["starts"].as_u64().filter(|starts| *starts >= 3)
    });
    for tor in ["missing", "public"] {
        let status = tor_status(perfd.port(), tor);
        assert_eq!((&status["condition"], &status["starts"]), (&Value::from("down"), &Value::from(0)), "{status}");
    }
    assert_eq!(perfd.count("no progress for 3 s"), 1, "said once, not at each of {starts} starts");
    // What happens meanwhile is kept.
    let one: Value = serde_json::from_slice(&get(perfd.port(), "/tors/hangs").unwrap().body).unwrap();
    let events: Vec<&str> =
        one["events"].as_array().unwrap().iter().filter_map(|event| event["what"].as_str()).collect();
    assert!(["started", "connected", "stuck"].iter().all(|what| events.contains(what)), "{events:?}");

    let complete = perfd.count("experiment=\"good\" outcome=\"complete\"");
    perfd.wait_within(PATIENCE, "more runs through the good one", || {
        (perfd.count("experiment=\"good\" outcome=\"complete\"") > complete.max(3)).then_some(())
    });
    assert!(results(perfd.port()).iter().all(|result| result.experiment == "good"), "runs through tors that aren't up");
    let health = health(&perfd);
    for experiment in health["experiments"].as_array().unwrap() {
        let skipped = experiment["slots"]["skipped"].as_u64().unwrap();
        assert!(experiment["name"] == "good" || skipped > 3, "{experiment}");
    }
    let pids: Vec<u64> =
        ["good", "hangs"].iter().filter_map(|tor| tor_status(perfd.port(), tor)["pid"].as_u64()).collect();
    perfd.end_well_within(PATIENCE);
    assert!(pids.iter().all(|pid| !runs(u32::try_from(*pid).unwrap())), "{pids:?}");
}

/// `/health` and `/tors` say what is wrong with each tor that is in trouble, and with no other.
fn assert_troubles(perfd: &Service, troubles: &[(&str, &str)]) {
    let health = health(perfd);
    assert_eq!(health["status"], "warning", "{health}");
    let problems: Vec<&str> = health["problems"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for (tor, trouble) in troubles {
        let named = |problem: &&&str| problem.starts_with(&format!("tor {tor}: ")) && problem.contains(trouble);
        assert!(problems.iter().any(|problem| named(&problem)), "{tor}: {problems:?}");
        let status = tor_status(perfd.port(), tor);
        assert!(status["problem"].as_str().is_some_and(|problem| problem.contains(trouble)), "{status}");
    }
    assert!(!problems.iter().any(|problem| problem.starts_with("tor good")), "{problems:?}");
}

fn health(perfd: &Service) -> Value {
    serde_json::from_slice(&get(perfd.port(), "/health").unwrap().body).unwrap()
}
