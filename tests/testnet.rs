//! `perfd testnet`, with real tor processes.

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perfd::testnet::{self, ClientOptions, Options, Stage, TestNetError};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_socks::tcp::Socks5Stream;

const FIVE_MIB: usize = 5 << 20;
/// Far more than it takes, so that only a hang reaches it, on a busy machine too.
const LONG: Duration = Duration::from_secs(120);
/// tor looks for its owner every 15 s.
const ORPHANS_END: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_network_comes_up_carries_a_download_and_leaves_nothing() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net");
    let owner = Some(std::process::id());
    let options = Options { dir: dir.clone(), tor_dir: Some(tor_dir.clone()), deadline: LONG, owner };

    let mut stages = Vec::new();
    let net = testnet::up(options.clone(), |stage| stages.push(stage)).await.unwrap();
    assert_eq!((stages.first(), stages.last()), (Some(&Stage::AuthorityKeys), Some(&Stage::Up)));
    assert!(stages.contains(&Stage::Relays { known: 6, of: 6 }), "{stages:?}");
    assert_eq!(net.nodes.len(), 8);
    assert!(net.cookie.is_file());
    assert_eq!(testnet::status(&dir).unwrap().map(|status| (status.net, status.ended)), Some((net.clone(), vec![])));
    timeout(LONG, fetch(net.socks)).await.unwrap();

    stages.clear();
    assert_eq!(testnet::up(options, |stage| stages.push(stage)).await.unwrap(), net);
    assert_eq!(stages, [Stage::AlreadyUp]);

    let second = ClientOptions { name: "second".to_owned(), number: 10, tor_dir: Some(tor_dir), deadline: LONG, owner };
    let client = testnet::start_client(&net, second.clone()).await.unwrap();
    assert!(!net.nodes.iter().any(|node| node.address == client.node.address));
    timeout(LONG, fetch(client.socks)).await.unwrap();
    for (wrong, why) in [
        (second.clone(), "a tor of this name runs"),
        (ClientOptions { name: "../x".to_owned(), ..second.clone() }, "its name must be of ASCII letters and digits"),
        (ClientOptions { number: 9, ..second }, "its number must be 10 to 250"),
    ] {
        let error = testnet::start_client(&net, wrong).await.unwrap_err().to_string();
        assert!(error.ends_with(why), "{error}");
    }

    kill(Pid::from_raw(net.nodes[1].pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    timeout(LONG, until(|| testnet::status(&dir).unwrap().unwrap().ended == [net.nodes[1].name.clone()]))
        .await
        .unwrap();

    // Seven of the network's, and the second client.
    assert_eq!(testnet::down(&dir).await.unwrap(), 8);
    assert_eq!(processes_in(&dir), Vec::<String>::new());
    assert_eq!(testnet::status(&dir).unwrap(), None);
    assert_eq!(testnet::down(&dir).await.unwrap(), 0);
}

#[tokio::test]
async fn a_killed_owner_leaves_no_orphan() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net");
    let mut owner = perfd_up(&dir, &tor_dir, &["--foreground"]);
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let first =
        timeout(LONG, lines.next_line()).await.unwrap().unwrap().expect("perfd ended before the network was up");
    let socks: SocketAddr = first.strip_prefix("socks ").expect(&first).parse().unwrap();
    assert!(socks.ip().is_loopback());
    assert_eq!(processes_in(&dir).len(), 8);

    owner.kill().await.unwrap();
    timeout(ORPHANS_END, until(|| processes_in(&dir).is_empty())).await.expect("tors outlive their owner");
    assert_eq!(testnet::status(&dir).unwrap().unwrap().ended.len(), 8);
}

#[tokio::test]
async fn an_interrupted_start_leaves_nothing() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net");
    let mut up = perfd_up(&dir, &tor_dir, &[]);
    timeout(LONG, until(|| processes_in(&dir).len() >= 7)).await.unwrap();
    assert!(matches!(testnet::down(&dir).await, Err(TestNetError::Busy(_))));

    kill(Pid::from_raw(up.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
    assert_eq!(timeout(LONG, up.wait()).await.unwrap().unwrap().code(), Some(130));
    timeout(LONG, until(|| processes_in(&dir).is_empty())).await.unwrap();
}

#[tokio::test]
async fn a_deadline_that_passes_tells_the_stage_and_leaves_nothing() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net");
    let deadline = Duration::from_secs(1);
    let error = testnet::up(Options { dir: dir.clone(), tor_dir: Some(tor_dir), deadline, owner: None }, |_| {}).await;
    let message = error.unwrap_err().to_string();
    assert!(message.starts_with("not up after 1 s, still at: "), "{message}");
    assert!(message.contains("the end of the log of "), "{message}");
    assert_eq!(processes_in(&dir), Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_tor_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let tor_dir = Some(folder.path().to_owned());
    let options = Options { dir: folder.path().join("net"), tor_dir, deadline: LONG, owner: None };
    let message = testnet::up(options, |_| {}).await.unwrap_err().to_string();
    for word in [folder.path().to_str().unwrap(), "scripts/get-tor", "PATH", "PERFD_TOR_DIR", "--tor-dir"] {
        assert!(message.contains(word), "{word} in {message}");
    }
}

#[tokio::test]
async fn where_no_network_is_down_succeeds_and_status_says_so() {
    let folder = tempfile::tempdir().unwrap();
    for (command, code) in [("down", 0), ("status", 3)] {
        let output = Command::new(env!("CARGO_BIN_EXE_perfd"))
            .args(["testnet", command, "--dir"])
            .arg(folder.path())
            .kill_on_drop(true)
            .output();
        let output = timeout(LONG, output).await.unwrap().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!((output.status.code(), said.starts_with("no network ")), (Some(code), true), "{command}: {said}");
    }
}

fn perfd_up(dir: &Path, tor_dir: &Path, more: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_perfd"));
    command.args(["testnet", "up", "--dir"]).arg(dir).arg("--tor-dir").arg(tor_dir).args(more);
    command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

/// Fetches 5 MiB from a responder on loopback through the SOCKS port, which may still be bootstrapping.
async fn fetch(socks: SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let target = listener.local_addr().unwrap();
    let respond = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 18];
        stream.read_exact(&mut request).await.unwrap();
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await.unwrap();
        stream.write_all(&vec![b'x'; FIVE_MIB]).await.unwrap();
        stream.shutdown().await.unwrap();
    };
    let request = async {
        let mut stream = loop {
            match Socks5Stream::connect(socks, target).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer.len(), b"HTTP/1.0 200 OK\r\n\r\n".len() + FIVE_MIB);
    };
    tokio::join!(respond, request);
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The command lines of the tors whose torrc is in `dir`.
fn processes_in(dir: &Path) -> Vec<String> {
    let torrcs = dir.join("nodes").into_os_string().into_string().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    processes.filter(|line| line.contains(" -f ") && line.contains(&torrcs)).collect()
}
