//! `perfd results --follow`, the real program: over restarts of the service, and to its own end.

#[path = "common/web.rs"]
mod web;

use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perfd::circuit::Evidence;
use perfd::measurement::RunId;
use perfd::store::Store;
use serde_json::Value;
use web::{Server, Service, add, circuit_data, config, fill, new_result, perfd, with_circuit, within};

/// `perfd results --follow` as a child, ended with this value.
struct Follower {
    child: Child,
    stdout: Option<Receiver<String>>,
    stderr: Receiver<String>,
}

impl Follower {
    fn start(server: SocketAddr, args: &[&str]) -> Follower {
        let mut command = perfd();
        command.args(["results", "--follow", "--server", &format!("http://{server}")]).args(args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = Some(lines(child.stdout.take().unwrap()));
        let stderr = lines(child.stderr.take().unwrap());
        Follower { child, stdout, stderr }
    }

    /// The next line of its output.
    fn line(&self) -> String {
        self.stdout.as_ref().unwrap().recv_timeout(web::DEADLINE).expect("a line")
    }

    /// The next line beside that; nothing at its end.
    fn said(&self) -> String {
        match self.stderr.recv_timeout(web::DEADLINE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => String::new(),
            Err(RecvTimeoutError::Timeout) => panic!("it says nothing"),
        }
    }

    fn run(&self) -> u128 {
        let line: Value = serde_json::from_str(&self.line()).unwrap();
        u128::from_str_radix(line["run_id"].as_str().unwrap(), 16).unwrap()
    }
}

/// Lines as they come, read as long as somebody wants them.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut from = BufReader::new(from);
        let mut line = String::new();
        while from.read_line(&mut line).is_ok_and(|length| length > 0) && sender.send(line.clone()).is_ok() {
            line.clear();
        }
    });
    receiver
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that leads to the service, wherever that listens now: one that is restarted has another port.
struct Door {
    address: SocketAddr,
    behind: Arc<Mutex<Option<SocketAddr>>>,
}

impl Door {
    fn open() -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, behind) = (listener.local_addr().unwrap(), Arc::new(Mutex::new(None::<SocketAddr>)));
        let target = Arc::clone(&behind);
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                let Some(far) = target.lock().unwrap().and_then(|address| TcpStream::connect(address).ok()) else {
                    continue;
                };
                let (near_again, far_again) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                for (mut from, mut to) in [(near, far), (far_again, near_again)] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Door { address, behind }
    }

    fn leads_to(&self, service: &Service) {
        *self.behind.lock().unwrap() = Some(service.address);
    }
}

async fn add_offline(path: &Path, ids: std::ops::RangeInclusive<u32>) {
    let store = Store::open(path).unwrap();
    for id in ids {
        add(&store, vec![new_result(id.into(), id.into())]).await;
    }
    store.close(web::DEADLINE).await.unwrap();
}

#[tokio::test]
async fn a_restart_of_the_service_makes_no_gap_and_repeats_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("perfd.sqlite");
    add_offline(&path, 1..=150).await;
    let door = Door::open();
    let mut service = Service::start(folder.path(), "");
    door.leads_to(&service);
    let mut follower = Follower::start(door.address, &["--format", "ndjson"]);
    let short = Follower::start(door.address, &["--format", "tpf", "--limit", "2"]);
    let runs: Vec<u128> = (0..150).map(|_| follower.run()).collect();
    assert_eq!(runs, (1..=150).collect::<Vec<_>>());
    assert_eq!(short.line(), "@type torperf 1.1\n");
    for _ in 0..2 {
        assert!(short.line().starts_with("SOURCE=test "));
    }
    for last in [151, 152] {
        kill(Pid::from_raw(service.child.id() as i32), Signal::SIGTERM).unwrap();
        service.child.wait().unwrap();
        let said = follower.said();
        assert!(said.contains("trying again until it answers"), "{said}");
        add_offline(&path, last..=last).await;
        service = Service::start(folder.path(), "");
        door.leads_to(&service);
        assert_eq!(follower.run(), u128::from(last));
        let said = follower.said();
        assert!(said.contains("connected again; nothing was missed"), "{said}");
        let line = short.line();
        assert!(line.contains(&format!("{:032x}", u128::from(last))), "{line}");
    }
    kill(Pid::from_raw(follower.child.id() as i32), Signal::SIGINT).unwrap();
    assert_eq!(follower.child.wait().unwrap().code(), Some(0));
    assert_eq!(follower.said(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_goes_on_line_by_line() {
    let server = Server::start(config("")).await;
    fill(&server.store, 30).await;
    let plain = Follower::start(server.address, &["--limit", "2"]);
    let marked = Follower::start(server.address, &["--limit", "2", "--completed"]);
    for follower in [&plain, &marked] {
        assert!(follower.line().starts_with("OUTCOME"));
        let starts = [follower.line(), follower.line()];
        assert!(starts[0].contains("10:00:29") && starts[1].contains("10:00:30"), "{starts:?}");
    }
    add(&server.store, with_circuit(31, 31, &["main"], Some(900))).await;
    assert!(plain.line().contains("10:00:31") && marked.line().contains("10:00:31"));
    let evidence = Evidence("650 CIRC 17 BUILT\nmore\n".to_owned());
    within("store", server.store.complete_run(&RunId::from_bits(31), circuit_data(), evidence)).await.unwrap();
    add(&server.store, vec![new_result(32, 32)]).await;
    assert!(marked.line().ends_with("relay1>relay2>relay3  completed later\n"));
    assert!(plain.line().contains("10:00:32"), "it is not shown again");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_who_reads_is_no_error() {
    let server = Server::start(config("")).await;
    fill(&server.store, 3).await;
    let mut follower = Follower::start(server.address, &["--format", "csv", "--limit", "1"]);
    assert!(follower.line().starts_with("run_id,") && follower.line().contains("10:00:03"));
    drop(follower.stdout.take());
    // The first is read by nobody, and the second meets a closed pipe.
    add(&server.store, vec![new_result(4, 4)]).await;
    add(&server.store, vec![new_result(5, 5)]).await;
    assert_eq!((follower.child.wait().unwrap().code(), follower.said()), (Some(0), String::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_followed_is_told() {
    let server = Server::start(config("")).await;
    for (args, code, reason) in [
        (&["--format", "json"][..], 2, "follow with --format ndjson"),
        (&["--limit", "100000"], 2, "last=100000: must be a number from 1 to 20000"),
        (&["--tag", "X"], 2, "no tag"),
    ] {
        let mut follower = Follower::start(server.address, args);
        assert_eq!(follower.child.wait().unwrap().code(), Some(code), "{args:?}");
        let said = follower.said();
        assert!(said.contains(reason), "{said}");
    }
    let nobody = Door::open();
    let mut follower = Follower::start(nobody.address, &[]);
    assert_eq!(follower.child.wait().unwrap().code(), Some(69));
}
