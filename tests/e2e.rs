//! perfd on a private Tor network of real tor processes: all three sizes, a circuit for each run, real
//! failures, and a tor that goes away and comes back.
//!
//! One network serves all tests of this file, one after the other.

#[path = "common/mod.rs"]
mod common;
#[path = "common/service.rs"]
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perfd::export::json::ResultJson;
use perfd::testnet::{self, ClientOptions, Options, TestNet};
use service::{PATIENCE, Setup, Times, get};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn perfd_measures_a_real_tor_network() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let owner = Some(std::process::id());
    let options =
        Options { dir: folder.path().join("net"), tor_dir: Some(tor_dir.clone()), deadline: 2 * MINUTE, owner };
    let net = runtime.block_on(testnet::up(options, |_| {})).unwrap();
    let client = |number: u8| {
        let name = format!("client{number}");
        let options = ClientOptions { name, number, tor_dir: Some(tor_dir.clone()), deadline: MINUTE, owner };
        runtime.block_on(testnet::start_client(&net, options)).unwrap()
    };

    all_three_sizes_come_whole_each_over_a_circuit_of_its_own(&net);
    commands_work_through_a_real_tor(&net);
    a_real_tor_says_why_it_fails(&net);

    let tor = client(10);
    let mut setup = setup(tor.socks);
    let mut perfd = setup.start_measuring();
    perfd.wait_for(r#"outcome="complete""#);
    kill(Pid::from_raw(tor.node.pid as i32), Signal::SIGKILL).unwrap();
    perfd.wait_for("why=\"failed at");
    let complete = perfd.count(r#"outcome="complete""#);
    // The same address: perfd is not told, and goes on by itself.
    assert_eq!(client(10).socks, tor.socks);
    perfd.wait_for_lines(complete + 2, r#"outcome="complete""#);
    perfd.end_well_within(PATIENCE);
    runtime.block_on(testnet::down(&net.dir)).unwrap();
}

fn setup(socks: SocketAddr) -> Setup {
    let times = |every, timeout| Times { every, offset: "0 s", timeout };
    Setup::new()
        .tor("testnet", socks)
        .experiment("50kib", "testnet", "50 KiB", times("2 s", "1900 ms"))
        .experiment("1mib", "testnet", "1 MiB", times("3 s", "2900 ms"))
        .experiment("5mib", "testnet", "5 MiB", times("5 s", "4900 ms"))
}

fn all_three_sizes_come_whole_each_over_a_circuit_of_its_own(net: &TestNet) {
    let circuits = CircuitsOfUsers::watch(net);
    let mut setup = setup(net.socks);
    let mut perfd = setup.start_measuring();
    let port = perfd.port();
    for name in ["50kib", "1mib", "5mib"] {
        perfd.wait_for_lines(2, &format!(r#"experiment="{name}" outcome="complete""#));
    }

    let page: serde_json::Value = serde_json::from_slice(&get(port, "/results.json").unwrap().body).unwrap();
    let results: Vec<ResultJson> = serde_json::from_value(page["results"].clone()).unwrap();
    let complete: Vec<_> = results.iter().filter(|r| r.outcome == "complete").collect();
    for (name, size) in [("50kib", 51_200), ("1mib", 1_048_576), ("5mib", 5_242_880)] {
        let of_size: Vec<_> = complete.iter().filter(|r| r.experiment == name).collect();
        assert!(of_size.len() >= 2, "{name}: {results:?}");
        for result in of_size {
            assert_eq!(result.size_bytes, size);
            assert_whole(result);
        }
    }
    let tpf = get(port, "/results.tpf").unwrap().text();
    assert!(tpf.starts_with("@type torperf 1.1\nSOURCE=test "), "{tpf}");
    assert_eq!(get(port, "/health").unwrap().status, 200);
    perfd.end_well_within(PATIENCE);

    let users = circuits.end();
    let mut taken = BTreeSet::new();
    for result in complete {
        let own = users.get(&format!("perfd-{}", result.run_id)).expect("tor tells of every run");
        for circuit in own {
            assert!(taken.insert(*circuit), "circuit {circuit} carried two runs");
        }
    }
}

/// A complete result has every step, in order, and the payload was verified.
fn assert_whole(result: &ResultJson) {
    let s = &result.steps_us;
    let steps =
        [s.socket, s.connect, s.negotiate, s.request, s.response, s.data_request, s.data_response, s.data_complete];
    let steps: Vec<u64> = steps.into_iter().map(|step| step.expect("reached")).collect();
    assert!(steps.is_sorted(), "{result:?}");
    let deciles: Vec<u64> = result.deciles_us.0.into_iter().map(|at| at.expect("reached")).collect();
    assert!(deciles.is_sorted() && s.data_response.unwrap() <= deciles[0], "{result:?}");
    assert_eq!((deciles[10], result.verified, result.isolated), (s.data_complete.unwrap(), Some(true), Some(true)));
    assert!(result.bytes_read > result.size_bytes && result.bytes_read < result.size_bytes + 1000, "{result:?}");
    assert!(result.planned_unix_us <= Some(result.start_unix_us), "{result:?}");
}

fn commands_work_through_a_real_tor(net: &TestNet) {
    let mut setup = setup(net.socks);
    let mut perfd = setup.start_measuring();
    let config = setup.folder().join("config.toml");
    let url = format!("http://127.0.0.1:{}/payload/102400", perfd.port());

    let once = once(net, &url, &["--config", config.to_str().unwrap(), "--format", "json"]);
    assert!(once.status.success(), "{once:?}");
    let result: ResultJson = serde_json::from_slice(&once.stdout).unwrap();
    assert_eq!((result.outcome.as_str(), result.size_bytes, result.verified), ("complete", 102_400, Some(true)));

    let check = run(Path::new(&config), &["check", "--online"]);
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(check.status.success() && said.contains("it is this perfd"), "{check:?}");
    perfd.end_well_within(PATIENCE);
    let check = run(Path::new(&config), &["check", "--online"]);
    assert_eq!(check.status.code(), Some(69), "{check:?}");
}

fn a_real_tor_says_why_it_fails(net: &TestNet) {
    // A port where nothing listens: tor tries three exits and then gives up, with "general failure".
    let closed = service::free_port();
    // No v3 address ends like that: tor's extended code for an invalid onion address.
    let onion = format!("http://{}.onion/", "a".repeat(56));
    for (url, code) in [(format!("http://127.0.0.1:{closed}/"), 0x01), (onion, 0xf6)] {
        let once = once(net, &url, &["--format", "json", "--timeout", "60 s"]);
        let result: ResultJson = serde_json::from_slice(&once.stdout).unwrap();
        assert_eq!(once.status.code(), Some(1));
        assert_eq!((result.cause.as_deref(), result.socks_code), (Some("socks_reply"), Some(code)), "{result:?}");
        assert_eq!(result.phase.as_deref(), Some("response"));
    }
}

fn once(net: &TestNet, url: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perfd"));
    command.args(["once", "--socks", &net.socks.to_string(), "--url", url]).args(more);
    command.output().unwrap()
}

fn run(config: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_perfd")).args(arguments).arg("--config").arg(config).output().unwrap()
}

/// Which circuits tor attached the streams of which SOCKS user to, as its control port tells it.
struct CircuitsOfUsers {
    control: TcpStream,
    reader: std::thread::JoinHandle<BTreeMap<String, BTreeSet<u32>>>,
}

impl CircuitsOfUsers {
    fn watch(net: &TestNet) -> Self {
        let mut control = TcpStream::connect(net.control).unwrap();
        control.set_read_timeout(Some(2 * MINUTE)).unwrap();
        let cookie: String = std::fs::read(&net.cookie).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        write!(control, "AUTHENTICATE {cookie}\r\nSETEVENTS STREAM\r\n").unwrap();
        let mut lines = BufReader::new(control.try_clone().unwrap()).lines();
        for _ in 0..2 {
            assert_eq!(lines.next().unwrap().unwrap(), "250 OK");
        }
        let reader = std::thread::spawn(move || {
            let mut users: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
            for line in lines.map_while(Result::ok) {
                // 650 STREAM 12 SUCCEEDED 34 127.0.0.1:8080 … SOCKS_USERNAME="perfd-…" …
                let words: Vec<&str> = line.split(' ').collect();
                let user = line.split("SOCKS_USERNAME=\"").nth(1).and_then(|rest| rest.split('"').next());
                if let (["650", "STREAM", _, "SUCCEEDED", circuit, ..], Some(user)) = (words.as_slice(), user) {
                    users.entry(user.to_owned()).or_default().insert(circuit.parse().unwrap());
                }
            }
            users
        });
        CircuitsOfUsers { control, reader }
    }

    fn end(mut self) -> BTreeMap<String, BTreeSet<u32>> {
        self.control.write_all(b"QUIT\r\n").unwrap();
        self.reader.join().unwrap()
    }
}
