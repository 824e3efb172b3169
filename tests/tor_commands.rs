//! What perfd has a tor do as its configuration says, besides measuring: forget its guards and timeouts at times, and
//! keep to guards chosen by their bandwidth. A control port that follows a script notes what it is asked.

mod common;
#[path = "common/service.rs"]
mod service;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::sys::signal::Signal::{SIGKILL, SIGUSR1};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use perfd::config::{self, Control, ControlAddress, StartedTor, TorRun};
use perfd::store::Store;
use perfd::tor::process::{self, Process};
use perfd::tor::{Tor, control, supervise};
use serde_json::Value;
use service::{HARDLY_EVER, PATIENCE, Service, Setup, get, wait_until};
use tokio_util::sync::CancellationToken;

/// Far longer than a tor takes to come up, or to answer.
const LONG: Duration = Duration::from_secs(120);

/// A control port without a tor.
struct Peer {
    address: SocketAddr,
    asked: Arc<Asked>,
}

/// What was asked, with the number of the connection.
#[derive(Default)]
struct Asked {
    all: Mutex<Vec<(usize, String)>>,
    more: Condvar,
}

impl Peer {
    /// One that answers as a tor does, but where the script does; it is told how often this command came before.
    fn start(script: impl Fn(&str, usize) -> Option<String> + Send + Sync + 'static) -> Peer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (address, asked) = (listener.local_addr().unwrap(), Arc::new(Asked::default()));
        let (noted, script) = (Arc::clone(&asked), Arc::new(script));
        std::thread::spawn(move || {
            for (client, number) in listener.incoming().flatten().zip(1..) {
                let (noted, script) = (Arc::clone(&noted), Arc::clone(&script));
                // perfd may be gone.
                std::thread::spawn(move || drop(converse(client, number, &noted, &*script)));
            }
        });
        Peer { address, asked }
    }

    /// Waits until `enough` of what was asked is there, and gives it.
    fn wait_for<T>(&self, what: &str, enough: impl Fn(&[(usize, String)]) -> Option<T>) -> T {
        let mut found = None;
        let waiting = |all: &mut Vec<(usize, String)>| {
            found = enough(all);
            found.is_none()
        };
        let all = self.asked.all.lock().unwrap();
        let (all, waited) = self.asked.more.wait_timeout_while(all, PATIENCE, waiting).unwrap();
        assert!(!waited.timed_out(), "waited in vain for {what}: {all:#?}");
        drop(all);
        found.unwrap()
    }
}

fn converse(
    mut client: TcpStream,
    number: usize,
    asked: &Asked,
    script: &dyn Fn(&str, usize) -> Option<String>,
) -> std::io::Result<()> {
    let mut before: BTreeMap<String, usize> = BTreeMap::new();
    for command in BufReader::new(client.try_clone()?).lines() {
        let command = command?;
        let times = before.entry(command.clone()).or_default();
        let answer = script(&command, *times).unwrap_or_else(|| right_answer(&command));
        *times += 1;
        asked.all.lock().unwrap().push((number, command));
        asked.more.notify_all();
        client.write_all(answer.replace('\n', "\r\n").as_bytes())?;
    }
    Ok(())
}

fn right_answer(command: &str) -> String {
    let lines = match command {
        "PROTOCOLINFO 1" => "250-PROTOCOLINFO 1\n250-AUTH METHODS=NULL\n250-VERSION Tor=\"0.4.9.11\"\n",
        "GETINFO events/names" => "250-events/names=CIRC STREAM GUARD STATUS_CLIENT\n",
        "GETINFO circuit-status" => "250-circuit-status=\n",
        "GETINFO entry-guards" => "250-entry-guards=\n",
        "GETINFO net/listeners/socks" => "250-net/listeners/socks=\"127.0.0.1:1\"\n",
        "GETINFO status/bootstrap-phase" => {
            "250-status/bootstrap-phase=NOTICE BOOTSTRAP PROGRESS=100 TAG=done SUMMARY=\"Done\"\n"
        }
        "GETINFO ns/all" => CONSENSUS,
        _ => "",
    };
    format!("{lines}250 OK\n")
}

/// Three guards, and a relay that is slower and none.
const CONSENSUS: &str = "250+ns/all=\n\
    r a eDj5zmyYvQyul3kG4jTYhCAk310 XnLPPMJyYStGRnCdm9IQp79dNnk 2038-01-01 00:00:00 127.77.0.4 5000 0\n\
    s Exit HSDir Running Stable V2Dir Valid\nw Bandwidth=1\n\
    r b ebe9GYTfAi1I3dGLIlqCS95O8w0 PJC3MmPajZ2wNNogL3XrJSMYZ8k 2038-01-01 00:00:00 127.77.0.1 5000 7000\n\
    s Exit Fast Guard HSDir Running Stable V2Dir Valid\nw Bandwidth=14\n\
    r c fkB85hVweGnutI1TgjsjXU1rAJQ FzLhZMN/6aqFfP8TxZjqpp9Jc60 2038-01-01 00:00:00 127.77.0.3 5000 0\n\
    s Exit Fast Guard HSDir Running Stable V2Dir Valid\nw Bandwidth=12\n\
    r d kP4U4RD9m3Rm2t18XC8ptLmcpd8 QV0CdQbu7SkvUTJgGJrqqLDv5gI 2038-01-01 00:00:00 127.77.0.6 5000 0\n\
    s Exit Fast Guard HSDir Running Stable V2Dir Valid\nw Bandwidth=900\n.\n";
/// The two slowest guards of it.
const SLOWEST: &str = "$79B7BD1984DF022D48DDD18B225A824BDE4EF30D,$7E407CE615707869EEB48D53823B235D4D6B0094";

/// The times themselves are shown where the clock can be steered, beside the code; here they follow each other quickly.
#[tokio::test]
async fn scheduled_commands_are_stored_as_events_and_a_refusal_ends_no_connection() {
    let peer = Peer::start(|command, before| {
        let refused = matches!((command, before), ("DROPGUARDS", 1) | ("DROPTIMEOUTS", 0));
        refused.then(|| "510 Not now\n".to_owned())
    });
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("perfd.sqlite")).unwrap();
    let control = Control { address: ControlAddress::Tcp(peer.address), password_file: None };
    let often = Some(Duration::from_millis(100));
    let tor = Tor::new(
        config::Tor {
            name: "tor".to_owned(),
            run: TorRun::Address { socks: (Ipv4Addr::LOCALHOST, 1).into(), control: Some(control) },
            drop_guards_every: often,
            drop_timeouts_every: often,
        },
        None,
    );
    let shutdown = CancellationToken::new();
    let supervised = tokio::spawn(supervise(tor.clone(), store.clone(), shutdown.clone()));
    let asked = tokio::task::spawn_blocking(move || {
        peer.wait_for("five of each", |all| {
            let count = |wanted| all.iter().filter(|(_, command)| command == wanted).count();
            (count("DROPGUARDS") >= 5 && count("DROPTIMEOUTS") >= 5).then(|| all.to_vec())
        })
    });
    let asked = asked.await.unwrap();
    assert!(tor.is_connected() && tor.problem().is_none(), "{:?}", tor.problem());
    shutdown.cancel();
    tokio::time::timeout(PATIENCE, supervised).await.expect("it ends").unwrap();

    assert!(asked.iter().all(|(connection, _)| *connection == 1), "{asked:#?}");
    let events = store.reader().tor_events("tor", 1000).await.unwrap();
    for what in ["dropguards", "droptimeouts"] {
        let of: Vec<_> = events.iter().filter(|event| event.what == what).collect();
        // The last one may have been on its way.
        assert!(of.len() >= 3, "{events:#?}");
        assert!(of.iter().all(|event| (event.connection, event.detail.as_str()) == (1, "as scheduled")), "{of:#?}");
    }
    assert!(!events.iter().any(|event| event.what == "lost"), "{events:#?}");
    store.close(PATIENCE).await.unwrap();
}

#[test]
fn chosen_guards_are_set_at_each_start_and_after_each_reload() {
    let peer = Peer::start(|_, _| None);
    let setup = Setup::new();
    let binary = stand_in(&setup, peer.address);
    let nowhere = "0".repeat(40);
    let more = format!(
        "authorities = [\"nowhere orport=1 no-v2 v3ident={nowhere} 127.0.0.1:1 {nowhere}\"]\n\
         guards = \"slowest\"\nguard_count = 2"
    );
    let mut setup = setup.started_tor("own", &binary, &more).experiment("idle", "own", "1 KiB", HARDLY_EVER);
    let mut perfd = setup.start_measuring();

    let set = format!("SETCONF EntryNodes=\"{SLOWEST}\"");
    let chosen = ["GETINFO ns/all", &set, "DROPGUARDS"];
    let reloaded = ["SIGNAL RELOAD"].into_iter().chain(chosen).collect::<Vec<_>>();
    let of_guards = |connection, count| {
        peer.wait_for("what concerns guards", |all| {
            let concerns =
                |command: &str| reloaded.iter().any(|one| one.split(' ').next() == command.split(' ').next());
            let of = all.iter().filter(|(of, command)| *of == connection && concerns(command));
            let of: Vec<_> =
                of.map(|(_, command)| command.clone()).skip_while(|command| *command != "GETINFO ns/all").collect();
            // Those that are asked for now and then.
            let of: Vec<_> = of.into_iter().filter(|command| command != "GETINFO entry-guards").collect();
            (of.len() >= count).then_some(of)
        })
    };
    assert_eq!(of_guards(1, 3), chosen);
    for reloads in 1..=2 {
        perfd.wait_for_lines(reloads, "guards chosen");
        perfd.signal(SIGUSR1);
        let expected: Vec<_> = chosen.into_iter().chain(reloaded.repeat(reloads)).collect();
        assert_eq!(of_guards(1, expected.len()), expected);
    }
    perfd.wait_for_lines(3, "guards chosen");
    // One that was started again knows nothing of them.
    kill(Pid::from_raw(i32::try_from(page(&perfd, "/tors")["tors"][0]["pid"].as_i64().unwrap()).unwrap()), SIGKILL)
        .unwrap();
    assert_eq!(of_guards(2, 3), chosen);
    perfd.wait_for_lines(4, "guards chosen");

    let events = wait_until("the events to be stored", || {
        let page = page(&perfd, "/tors/own");
        let events = page["events"].as_array().unwrap().iter();
        let guards: Vec<_> = events.filter(|event| event["what"] == "guards_chosen").cloned().collect();
        (guards.len() >= 4).then_some(guards)
    });
    let told = format!("2 slowest: {}", SLOWEST.replace(',', ", "));
    assert!(events.len() == 4 && events.iter().all(|event| event["detail"] == *told), "{events:#?}");
    perfd.end_well_within(PATIENCE);
}

/// What perfd relies on there, of the real program: what it is told once it has answered comes after its reload.
#[tokio::test]
async fn what_a_tor_is_told_after_a_reload_outlasts_it() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let folder = tempfile::tempdir().unwrap();
    let nowhere = "0".repeat(40);
    let mut tor = StartedTor {
        binary: tor_dir.join("tor"),
        data: folder.path().join("data"),
        torrc: Vec::new(),
        torrc_file: None,
        authorities: vec![format!("nowhere orport=1 no-v2 v3ident={nowhere} 127.0.0.1:1 {nowhere}")],
        single_hop: false,
        bootstrap_timeout: LONG,
        guards: None,
    };
    let mut process = Process::start(&tor, "a", None).unwrap();
    let address = ControlAddress::Tcp(process.control(LONG).await.unwrap());
    let (commands, driver) = control::start(control::open(&address).await.unwrap());
    let asking = async {
        control::authenticate(&commands, None).await.unwrap();
        let ask = async |command: String| commands.ask(&command).await.unwrap().lines.join("; ");
        let guards = |digit: &str| format!("EntryNodes=${}", digit.repeat(40));
        for (digit, dirtiness) in [("A", "601"), ("B", "602"), ("C", "603")] {
            tor.torrc = vec![format!("MaxCircuitDirtiness {dirtiness}")];
            process::rewrite(&tor, None).await.unwrap();
            ask("SIGNAL RELOAD".to_owned()).await;
            ask(format!("SETCONF {}", guards(digit))).await;
            assert_eq!(ask("GETCONF MaxCircuitDirtiness".to_owned()).await, format!("MaxCircuitDirtiness={dirtiness}"));
            assert_eq!(ask("GETCONF EntryNodes".to_owned()).await, guards(digit));
            // Until the next one, which it does not outlast.
            ask("SIGNAL RELOAD".to_owned()).await;
            assert_eq!(ask("GETCONF EntryNodes".to_owned()).await, "EntryNodes=");
        }
    };
    let asked = async {
        tokio::select! {
            () = asking => {}
            ended = driver.run(|_, _| {}) => panic!("{ended}"),
        }
    };
    tokio::time::timeout(LONG, asked).await.expect("tor answers");
    tokio::time::timeout(LONG, process.end()).await.unwrap();
}

/// A program to be started as tor, which takes any torrc and has its control port at this address.
fn stand_in(setup: &Setup, control: SocketAddr) -> PathBuf {
    let path = setup.folder().join("tor");
    // Called as `tor -f DATA/torrc …`; it is ended with perfd, and would else end by itself.
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--verify-config*) exit 0;; esac\n\
         echo PORT={control} > \"$(dirname \"$2\")/control-port\"\nexec sleep 300\n"
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

fn page(perfd: &Service, path: &str) -> Value {
    serde_json::from_slice(&get(perfd.port(), path).unwrap().body).unwrap()
}
