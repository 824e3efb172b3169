//! perfd told to end, kept from starting, and what it says meanwhile: the real program, by its signals,
//! exit codes and log.

#[path = "common/relay.rs"]
mod relay;
#[path = "common/service.rs"]
mod service;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGHUP, SIGINT, SIGTERM};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use relay::{Pace, Relay};
use rusqlite::Connection;
use service::{EACH_SECOND, HARDLY_EVER, Setup, Times, ask, exit, get, refusal, wait_until};

/// Told to end, perfd has so long.
const FAREWELL: Duration = Duration::from_secs(5);

#[test]
fn a_signal_ends_an_idle_perfd_in_good_order() {
    for signal in [SIGTERM, SIGINT, SIGHUP] {
        let setup = Setup::idle();
        let mut service = setup.start();
        service.port();
        service.signal(signal);
        let status = service.end_within(FAREWELL);
        assert_eq!(status.code(), Some(0), "{}", service.log());
        assert!(service.log().contains(signal.as_str()), "{}", service.log());
        assert_eq!(leftovers(&setup), Vec::<String>::new());
    }
}

/// The files that SQLite keeps beside the store while it is open.
fn leftovers(setup: &Setup) -> Vec<String> {
    let names = std::fs::read_dir(setup.state()).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.ends_with("-wal") || name.ends_with("-shm")).collect()
}

#[test]
fn a_run_under_way_is_cut_off_and_its_slot_aborted() {
    let relay = Relay::start(Pace::StallingAfter(20_000));
    let times = Times { every: "3 s", offset: "0 s", timeout: "3 s" };
    let mut setup = Setup::new().tor("relay", relay.address).experiment("a", "relay", "1 MiB", times);
    let mut service = setup.start_measuring();
    let running = "SELECT planned_us FROM slot WHERE state = 'running'";
    let port = service.port();
    let planned: i64 =
        wait_until("a running slot", || setup.read_store().query_row(running, [], |row| row.get(0)).ok());
    // A reader's connection is open, too.
    assert_eq!(get(port, "/results.ndjson").unwrap().status, 200);
    service.end_well_within(FAREWELL);

    assert_eq!(leftovers(&setup), Vec::<String>::new());
    let fate = "SELECT state, reason FROM slot WHERE planned_us = ?1";
    let fate: (String, String) =
        setup.read_store().query_row(fate, [planned], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    assert_eq!((fate.0.as_str(), fate.1.as_str()), ("aborted", "shutdown"));
}

#[test]
fn clients_do_not_hold_up_the_end() {
    let setup = Setup::idle();
    let mut service = setup.start();
    let port = service.port();

    let mut idle = ask(port, "GET /robots.txt HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(idle.read(&mut [0; 16]).unwrap(), 16);
    let mut stalled = ask(port, "GET /payload/60000000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(stalled.read(&mut [0; 16]).unwrap(), 16);
    let silent = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let half = ask(port, "GET /hea").unwrap();

    service.end_well_within(FAREWELL);
    drop((idle, stalled, silent, half));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let setup = Setup::idle();
    let mut service = setup.start();
    // Something that the first signal waits for.
    let mut stalled = ask(service.port(), "GET /payload/60000000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert_eq!(stalled.read(&mut [0; 16]).unwrap(), 16);
    service.signal(SIGTERM);
    service.wait_for("told to end");
    let since = Instant::now();
    service.signal(SIGINT);
    let status = service.end_within(FAREWELL);
    assert_eq!(status.code(), Some(1), "{}", service.log());
    assert!(since.elapsed() < Duration::from_millis(1500), "{:?}", since.elapsed());
    assert!(service.log().contains("second signal"), "{}", service.log());
}

#[test]
fn a_second_perfd_on_the_same_store_is_refused() {
    let setup = Setup::idle();
    let mut first = setup.start();
    first.port();
    let said = refusal(setup.command(), exit::STORE);
    assert!(said.contains("another perfd works on this store"), "{said}");
    first.end_well_within(FAREWELL);
    let mut next = setup.start();
    next.port();
    next.end_well_within(FAREWELL);
}

#[test]
fn a_wrong_configuration_is_refused_and_nothing_made() {
    let setup = Setup::idle().experiment("b", "no-such-tor", "1 KiB", HARDLY_EVER);
    let said = refusal(setup.command(), exit::CONFIG);
    assert!(said.contains("no-such-tor"), "{said}");
    assert!(!said.contains("listening"), "{said}");
    assert!(!setup.state().exists() && !setup.log.parent().unwrap().exists());
}

#[test]
fn a_store_that_perfd_cannot_use_is_refused() {
    let setup = Setup::idle();
    let mut service = setup.start();
    service.port();
    service.end_well_within(FAREWELL);
    let whole = std::fs::read(&setup.store).unwrap();
    let refused = |part: &str| {
        let said = refusal(setup.command(), exit::STORE);
        assert!(said.contains(part) && said.contains(setup.store.to_str().unwrap()), "{said}");
    };

    let rewrite = |bytes: &[u8]| {
        // In place, so that it keeps its owner.
        let mut file = OpenOptions::new().write(true).truncate(true).open(&setup.store).unwrap();
        file.write_all(bytes).unwrap();
    };
    rewrite(&[b'x'; 8192]);
    refused("is no SQLite database");
    rewrite(&whole[..whole.len() / 2]);
    refused("is damaged");
    rewrite(&whole);
    Connection::open(&setup.store).unwrap().pragma_update(None, "user_version", 1000).unwrap();
    refused("newer perfd");
    rewrite(&[]);
    Connection::open(&setup.store).unwrap().execute_batch("CREATE TABLE theirs (a)").unwrap();
    refused("of another program");
    rewrite(&whole);
    let mut service = setup.start();
    service.port();
    service.end_well_within(FAREWELL);
}

#[test]
fn every_finished_run_has_its_line_in_a_log_that_can_be_followed() {
    let relay = Relay::start(Pace::AtOnce);
    let closed = (Ipv4Addr::LOCALHOST, 1).into();
    let mut setup = Setup::new()
        .tor("relay", relay.address)
        .tor("closed", closed)
        .experiment("good", "relay", "50 KiB", EACH_SECOND)
        .experiment("bad", "closed", "50 KiB", EACH_SECOND);
    let mut service = setup.start_measuring();
    let is_good = |line: &str| line.contains("run finished") && line.contains("good");
    let good = service.wait_until(is_good);
    for part in ["outcome=\"complete\"", "size_bytes=51200", "first_byte_ms=", "last_byte_ms=", "run="] {
        assert!(good.contains(part), "{part} is not in {good}");
    }
    let bad = service.wait_until(|line| line.contains("run finished") && line.contains("bad"));
    assert!(bad.contains("outcome=\"failed\"") && bad.contains("why="), "{bad}");
    service.end_well_within(FAREWELL);

    // Started again, it goes on in the same file.
    let first = std::fs::read_to_string(&setup.log).unwrap();
    assert!(first.lines().any(is_good), "{first}");
    let mut service = setup.start_measuring();
    service.wait_until(is_good);
    service.end_well_within(FAREWELL);
    let both = std::fs::read_to_string(&setup.log).unwrap();
    let folder = std::fs::read_dir(setup.log.parent().unwrap()).unwrap();
    let days = folder.filter(|entry| entry.as_ref().is_ok_and(|entry| !entry.path().is_symlink())).count();
    // Unless a day has passed in between, and a new file begun.
    assert!(days == 2 || days == 1 && both.starts_with(&first) && both.len() > first.len(), "{days} days:\n{both}");
}

/// A log that can't be written (a full disk, a pipe whose reader has gone) is no reason to stop measuring.
#[test]
fn a_terminal_that_takes_nothing_does_not_end_it() {
    // No proxy listens there, so every run fails at once, whatever port is measured.
    let closed = (Ipv4Addr::LOCALHOST, 1).into();
    let mut setup = Setup::new().tor("closed", closed).experiment("a", "closed", "50 KiB", EACH_SECOND);
    setup.public_port = Some(1);
    let mut command = setup.command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create("/dev/full").unwrap());
    let mut child = command.spawn().unwrap();
    let (ended, log) = wait_until("a finished run in the log, or its end", || {
        let log = std::fs::read_to_string(&setup.log).unwrap_or_default();
        let ended = child.try_wait().unwrap();
        (ended.is_some() || log.contains("run finished")).then_some((ended, log))
    });
    assert!(ended.is_none(), "{ended:?}:\n{log}");
    kill(Pid::from_raw(child.id().try_into().unwrap()), SIGTERM).unwrap();
    assert_eq!(wait_until("its end", || child.try_wait().unwrap()).code(), Some(0));
}
