//! Tors that perfd starts, with the real program; on a private network whose authority is nowhere, but for one test.

mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use perfd::config::StartedTor;
use perfd::testnet::{self, Options};
use perfd::tor::process::{NoControl, Process};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

/// Far more than it takes, so that only a hang reaches it, on a busy machine too.
const LONG: Duration = Duration::from_secs(120);
/// tor looks for its owner every 15 s.
const ORPHANS_END: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_tor_starts_tells_its_control_port_and_ends() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("state/tor-a");
    let tor = StartedTor {
        torrc: ["UseBridges 1", "Bridge 127.0.0.1:1", "ConfluxEnabled 0"].map(str::to_owned).into(),
        ..started(&tor_dir, &data)
    };
    let mut process = Process::start(&tor, "a", None).unwrap();
    let control = process.control(LONG).await.unwrap();
    assert!(control.ip().is_loopback());
    TcpStream::connect(control).await.unwrap();
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::read(process.cookie()).unwrap().len(), 32);
    assert_eq!(process.transport(), Some("bridge"));
    timeout(LONG, until(|| process.last_lines().iter().any(|line| line.contains("[notice]")))).await.unwrap();

    let pid = process.pid();
    let ended = timeout(LONG, process.end()).await.unwrap();
    assert_eq!(ended.status, "exit status: 0", "{ended}");
    assert!(!Path::new(&format!("/proc/{pid}")).exists());

    // The file of this run is not taken for the next one's.
    let mut again = Process::start(&tor, "a", None).unwrap();
    TcpStream::connect(again.control(LONG).await.unwrap()).await.unwrap();
    timeout(LONG, again.end()).await.unwrap();
}

#[tokio::test]
async fn a_tor_of_single_hops_starts_without_a_socks_port() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tor = StartedTor { single_hop: true, ..started(&tor_dir, &folder.path().join("data")) };
    let mut process = Process::start(&tor, "hop", None).unwrap();
    process.control(LONG).await.unwrap();
    let opened: Vec<_> = process.last_lines().into_iter().filter(|line| line.contains("Opened ")).collect();
    assert!(opened.iter().all(|line| !line.contains("Socks")), "{opened:?}");
    timeout(LONG, process.end()).await.unwrap();
}

#[tokio::test]
async fn a_tor_that_dies_at_once_says_why() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let holder = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = holder.local_addr().unwrap();
    for (line, status, reason) in [
        (format!("DNSPort {taken}"), "exit status: 1", format!("Could not bind to {taken}: Address already in use")),
        ("NoSuchOption 1".to_owned(), "exit status: 1", "Unknown option 'NoSuchOption'.  Failing.".to_owned()),
    ] {
        let tor = StartedTor { torrc: vec![line], ..started(&tor_dir, &folder.path().join("data")) };
        let mut process = Process::start(&tor, "a", None).unwrap();
        let Err(NoControl::Ended(ended)) = process.control(LONG).await else { panic!("no end") };
        assert_eq!(ended.status, status);
        assert!(ended.reason().contains(&reason), "{ended}");
        assert!(ended.last_lines.len() > 1, "{ended:?}");
    }
}

#[tokio::test]
async fn a_tor_outlives_no_owner_that_is_killed() {
    const DATA: &str = "PERFD_TEST_OWNER_OF";
    let Some(tor_dir) = common::tor_dir() else { return };
    // This very test is the owner, too: it is run once more, as a process to be killed.
    if let Some(data) = std::env::var_os(DATA) {
        let mut process = Process::start(&started(&tor_dir, Path::new(&data)), "a", None).unwrap();
        process.control(LONG).await.unwrap();
        println!("\npid {}", process.pid());
        return std::future::pending().await;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_tor_outlives_no_owner_that_is_killed", "--nocapture"])
        .env(DATA, folder.path().join("data"))
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let pid = async {
        loop {
            let line = lines.next_line().await.unwrap().expect("the owner ended");
            if let Some(pid) = line.strip_prefix("pid ") {
                break format!("/proc/{pid}");
            }
        }
    };
    let pid = timeout(LONG, pid).await.unwrap();
    assert!(Path::new(&pid).exists());

    owner.kill().await.unwrap();
    timeout(ORPHANS_END, until(|| !runs(&pid))).await.expect("tor outlives its owner");
}

#[tokio::test]
async fn a_tor_joins_the_private_network_whose_authorities_it_is_given() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net");
    let owner = Some(std::process::id());
    let options = Options { dir: dir.clone(), tor_dir: Some(tor_dir.clone()), deadline: LONG, owner };
    testnet::up(options, |_| {}).await.unwrap();

    let status = Command::new(env!("CARGO_BIN_EXE_perfd")).args(["testnet", "status", "--dir"]).arg(&dir).output();
    let status = String::from_utf8(timeout(LONG, status).await.unwrap().unwrap().stdout).unwrap();
    let authorities: Vec<_> =
        status.lines().filter_map(|line| line.strip_prefix("authority ")).map(str::to_owned).collect();
    assert_eq!(authorities.len(), 1, "{status}");

    let tor = StartedTor { authorities, ..started(&tor_dir, &folder.path().join("data")) };
    let process = Process::start(&tor, "a", None).unwrap();
    let bootstrapped = || process.last_lines().iter().any(|line| line.contains("Bootstrapped 100% (done)"));
    timeout(LONG, until(bootstrapped)).await.unwrap_or_else(|_| panic!("{:?}", process.last_lines()));
    timeout(LONG, process.end()).await.unwrap();
    assert_eq!(testnet::down(&dir).await.unwrap(), 8);
}

fn started(tor_dir: &Path, data: &Path) -> StartedTor {
    let nowhere = "0".repeat(40);
    StartedTor {
        binary: tor_dir.join("tor"),
        data: data.to_owned(),
        torrc: Vec::new(),
        torrc_file: None,
        authorities: vec![format!("nowhere orport=1 no-v2 v3ident={nowhere} 127.0.0.1:1 {nowhere}")],
        single_hop: false,
        bootstrap_timeout: LONG,
        guards: None,
    }
}

/// Whether a process of /proc runs: one that has ended may wait there for its new parent.
fn runs(process: &str) -> bool {
    std::fs::read(format!("{process}/cmdline")).is_ok_and(|line| !line.is_empty())
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
