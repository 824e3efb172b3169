//! The commands that speak to tors, and the tors of a running perfd, on a private network of real tor processes.
//!
//! One network serves all tests of this file, one after the other.

#[path = "common/mod.rs"]
mod common;
#[path = "common/service.rs"]
mod service;

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::Signal;
use perfd::circuit::{Circuit, CircuitState};
use perfd::export::json::ResultJson;
use perfd::testnet::{self, Options, TestNet};
use perfd::tor::{Condition, TorStatus};
use service::{HARDLY_EVER, PATIENCE, Service, Setup, are_root, get, wait_until};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn commands_tell_what_real_tors_do() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    // The user nobody, who perfd becomes, has to find the network's cookie.
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let owner = Some(std::process::id());
    let options =
        Options { dir: folder.path().join("net"), tor_dir: Some(tor_dir.clone()), deadline: 2 * MINUTE, owner };
    let net = runtime.block_on(testnet::up(options, |_| {})).unwrap();

    let started = format!("authorities = {:?}\ntorrc_file = {:?}", net.authorities, folder.path().join("extra"));
    std::fs::write(folder.path().join("extra"), "MaxCircuitDirtiness 700\n").unwrap();
    let mut setup = Setup::new()
        .started_tor("own", &tor_dir.join("tor"), &started)
        .experiment_of("by_exit", &["own"], "50 KiB", HARDLY_EVER, "server = \"exit\"")
        .experiment_of("onion", &["own"], "50 KiB", HARDLY_EVER, "server = \"onion\"");
    let mut perfd = setup.start_measuring();

    once_tells_the_circuit(&net, perfd.port());
    once_tells_the_steps_to_an_onion_service(&net, perfd.port());
    a_signal_has_tors_read_their_torrc_anew(&perfd, &setup, &folder.path().join("extra"));
    tors_are_told_of(perfd.port());
    perfd.end_well_within(PATIENCE);
    check_online_tries_control(&net);
    runtime.block_on(testnet::down(&net.dir)).unwrap();
}

fn once_tells_the_circuit(net: &TestNet, port: u16) {
    for (more, kind) in [(&[][..], "download"), (&["--upload", "100 KiB", "--optimistic"], "upload")] {
        let page = if kind == "download" { "/payload/102400" } else { "" };
        let url = format!("http://127.0.0.1:{port}{page}");
        let args = ["--control", &net.control.to_string(), "--format", "json"];
        let once = once(net.socks, &url, &[&args, more].concat());
        let result: ResultJson = serde_json::from_slice(&once.stdout).unwrap();
        assert_eq!((result.outcome.as_str(), result.kind.as_str(), result.size_bytes), ("complete", kind, 102_400));
        let data = result.circuit.expect("tor was asked");
        let circuit = data.circuit.expect("there is one");
        assert_eq!((data.state, data.stream.last().unwrap().status.as_str()), (CircuitState::Known, "CLOSED"));
        assert_eq!((circuit.path.len(), data.tor_version.is_some(), data.onion), (3, true, None));
        assert_eq!(data.guard.as_ref(), Some(&circuit.path[0].relay));
        let legs = data.conflux.map_or(vec![circuit], |conflux| conflux.legs);
        let bytes = |leg: &Circuit| if kind == "download" { leg.bytes_read } else { leg.bytes_written };
        let bytes: u64 = legs.iter().filter_map(bytes).sum();
        assert!(bytes > 102_400, "{bytes} over {legs:?}");
    }

    let url = format!("http://127.0.0.1:{port}/payload/51200");
    let drawn = once(net.socks, &url, &["--control", &net.control.to_string(), "--verbose"]);
    let text = text(&drawn.stdout);
    for part in ["complete: download of 50 KiB by exit through 127.", "\nsteps ", "\ncircuit ", "\n  3 "] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

fn once_tells_the_steps_to_an_onion_service(net: &TestNet, port: u16) {
    let address = wait_until("a published onion service", || {
        let status: TorStatus = serde_json::from_slice(&get(port, "/tors/own").ok()?.body).ok()?;
        status.onion.filter(|onion| onion.published).map(|onion| onion.address)
    });
    let url = format!("http://{address}.onion/payload/51200");
    let args = ["--control", &net.control.to_string(), "--format", "json"];
    let once = once(net.socks, &url, &args);
    let result: ResultJson = serde_json::from_slice(&once.stdout).unwrap();
    assert_eq!((result.outcome.as_str(), result.server.as_str()), ("complete", "onion"), "{result:?}");
    let data = result.circuit.expect("tor was asked");
    let onion = data.onion.as_ref().expect("the steps to an onion service");
    let steps = [onion.descriptor_received_us, onion.introduced_us, onion.joined_us];
    let reached: Vec<i64> =
        steps.into_iter().map(|at| at.unwrap_or_else(|| panic!("not all reached: {data:#?}"))).collect();
    assert!(reached.is_sorted(), "{reached:?}");
}

fn a_signal_has_tors_read_their_torrc_anew(perfd: &Service, setup: &Setup, extra: &Path) {
    perfd.wait_for("connected to tor's control port");
    std::fs::write(extra, "MaxCircuitDirtiness 701\n").unwrap();
    perfd.signal(Signal::SIGUSR1);
    perfd.wait_for(" reloaded tor=\"own\"");
    assert_eq!(perfd.count("told to end"), 0, "{}", perfd.log());
    let torrc = std::fs::read_to_string(setup.state().join("tor-own/torrc")).unwrap();
    assert!(torrc.ends_with("\nMaxCircuitDirtiness 701\n"), "{torrc}");
}

fn tors_are_told_of(port: u16) {
    let server = format!("http://127.0.0.1:{port}");
    let tor = |args: &[&str]| text(&run(&[&["tor", "--server", &server], args].concat()).stdout).to_owned();
    let table = wait_until("a tor that is ready", || Some(tor(&[])).filter(|table| table.contains("\nown   ready ")));
    let guard = table.contains(" relay") || table.contains(" authority");
    assert!(guard && table.contains(" 100 % "), "{table}");
    let status: TorStatus = serde_json::from_str(&tor(&["own", "--json"])).unwrap();
    assert_eq!((status.condition, status.started_by_perfd), (Condition::Ready, true));
    let one = wait_until("the event in the store", || Some(tor(&["own"])).filter(|one| one.contains("  reloaded\n")));
    let onion = format!("{}.onion, published", status.onion.unwrap().address);
    for part in ["condition        ready\n", "bootstrap        100 % (done): Done", "  BUILT  ", " up\n", &onion] {
        assert!(one.contains(part), "{part}: {one}");
    }
    let page = get(port, "/").unwrap().text();
    assert!(page.contains("<li>own: up, tor 0."), "{page}");
}

fn check_online_tries_control(net: &TestNet) {
    let check = |setup: Setup| {
        let output = run(&["check", "--online", "--config", setup.write().to_str().unwrap()]);
        (output.status.code(), text(&output.stderr).to_owned())
    };
    let onion = "server = \"onion\"";
    let setup = || Setup::new().experiment_of("a", &["tor"], "1 KiB", HARDLY_EVER, onion);
    if are_root() {
        // perfd would run as nobody, who may not read what is root's; so it must not be said that all is well.
        let (code, said) = check(setup().controlled_tor("tor", net.socks, net.control));
        assert_eq!(code, Some(69), "{said}");
        assert!(said.contains("can't read tor's cookie") && said.contains("perfd runs as nobody"), "{said}");
        for above in net.cookie.ancestors().take_while(|above| above.starts_with(net.dir.parent().unwrap())) {
            std::fs::set_permissions(above, Permissions::from_mode(0o755)).unwrap();
        }
    }
    let (code, said) = check(setup().controlled_tor("tor", net.socks, net.control));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("control of tor \"tor\": it lets perfd in, and is tor 0."), "{said}");
    let (code, said) = check(setup().controlled_tor("tor", net.socks, net.socks));
    assert_eq!(code, Some(69), "{said}");
}

fn once(socks: SocketAddr, url: &str, more: &[&str]) -> Output {
    let once = run(&[&["once", "--socks", &socks.to_string(), "--url", url], more].concat());
    assert!(once.status.success() && once.stderr.is_empty(), "{once:?}");
    once
}

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_perfd")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}
