//! A store that can't be written: a full disk, and another process that holds the lock. perfd is to say
//! so, go on serving, lose nothing, and be well again by itself.

#[path = "common/relay.rs"]
mod relay;
#[path = "common/service.rs"]
mod service;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal::{SIGCONT, SIGSTOP, SIGTERM};
use nix::unistd::User;
use relay::{Pace, Relay};
use rusqlite::Connection;
use serde_json::Value;
use service::{EACH_SECOND, Service, Setup, are_root, get, left_out, wait_until};

/// Slots that come due while the store is down, before it is let go.
const SLOTS_MISSED: i64 = 3;

const EVERY_US: i64 = 1_000_000;

const RED: &str = "the store cannot be written; what is to be written waits";
const GREEN: &str = "the store can be written again";

/// One experiment that measures perfd each second, through a relay that takes some time for it.
fn measuring() -> Setup {
    let relay = Relay::start(Pace::Pausing(Duration::from_millis(30)));
    let mut setup = Setup::new().tor("relay", relay.address).experiment("a", "relay", "100 KiB", EACH_SECOND);
    setup.log_format = "json";
    setup
}

#[test]
fn a_full_disk_is_waited_out() {
    let mut setup = measuring();
    let disk = setup.folder().join("disk");
    std::fs::create_dir(&disk).unwrap();
    setup.store = disk.join("state/perfd.sqlite");
    if !are_root() {
        return left_out("not root");
    }
    if !can_mount(&disk) {
        assert_ne!(std::env::var("PERFD_REQUIRE_MOUNT").as_deref(), Ok("1"), "root may mount nothing here");
        return left_out("root may mount nothing here");
    }
    let mut service = setup.start_measuring_by(|setup| on_a_small_disk(setup, &disk));
    let port = service.port();
    service.wait_for_lines(2, "run finished");

    // Seen from outside, the disk is in another place.
    let outside = |path: &Path| PathBuf::from(format!("/proc/{}/root{}", service.pid(), path.display()));
    let ballast = outside(&disk.join("ballast"));
    fill(&ballast);
    service.wait_for(RED);
    expect_failing(port, "full");
    wait_for_slots(port);
    assert_eq!(service.count(RED), 1, "{}", service.log());
    std::fs::remove_file(&ballast).unwrap();

    expect_well_again(&service, port, || snapshot(&service, &outside(&setup.store), setup.folder()));
    service.end_well_within(Duration::from_secs(6));
}

#[test]
fn a_lock_of_another_process_is_waited_out() {
    let mut setup = measuring();
    let mut service = setup.start_measuring();
    let port = service.port();
    service.wait_for_lines(2, "run finished");

    let lock = lock(&setup.store);
    service.wait_for(RED);
    expect_failing(port, "locked");
    wait_for_slots(port);
    assert_eq!(service.count(RED), 1, "{}", service.log());
    lock.execute_batch("ROLLBACK").unwrap();
    drop(lock);

    expect_well_again(&service, port, || setup.read_store());
    service.end_well_within(Duration::from_secs(6));
}

#[test]
fn told_to_end_while_a_result_is_held_back_it_says_what_is_lost() {
    let mut setup = measuring();
    let mut service = setup.start_measuring();
    service.wait_for_lines(1, "run finished");
    let running = "SELECT 1 FROM slot WHERE state = 'running'";
    wait_until("a run under way", || setup.read_store().query_row(running, [], |_| Ok(())).ok());
    let _lock = lock(&setup.store);
    service.wait_for(RED);

    service.signal(SIGTERM);
    let status = service.end_within(Duration::from_secs(6));
    assert!(status.code().is_some_and(|code| code != 0), "{status:?}:\n{}", service.log());
    let lost = service.lines().into_iter().find(|line| line.contains("this is lost"));
    let lost = lost.unwrap_or_else(|| panic!("nothing is said to be lost:\n{}", service.log()));
    assert!(lost.contains("NewResult") && lost.contains("data_complete"), "{lost}");
}

#[test]
fn slots_that_only_need_a_note_do_not_count_as_missed() {
    // Without a public host, a slot is skipped at once; but the ledger has to take it.
    let setup = Setup::new().tor("tor", (Ipv4Addr::LOCALHOST, 1).into()).experiment("a", "tor", "1 KiB", EACH_SECOND);
    let mut service = setup.start();
    let port = service.port();
    service.wait_for("slots skipped");
    let lock = lock(&setup.store);
    service.wait_for(RED);
    wait_for_slots(port);
    drop(lock);
    service.wait_for(GREEN);
    let count = |sql: &str| -> i64 { setup.read_store().query_row(sql, [], |row| row.get(0)).unwrap() };
    let skipped = "SELECT ifnull(sum(count), 0) FROM slot WHERE reason = 'store_down'";
    wait_until("the slots in between", || (count(skipped) >= SLOTS_MISSED - 1).then_some(()));
    service.end_well_within(Duration::from_secs(6));
    assert_eq!(count("SELECT count(*) FROM slot WHERE state = 'missed'"), 0);
}

/// Told to end, too; but nothing has failed yet when the signal comes.
#[test]
fn told_to_end_when_the_store_begins_to_fail_it_ends_all_the_same() {
    let relay = Relay::start(Pace::StallingAfter(10_000));
    let mut setup = Setup::new().tor("relay", relay.address).experiment("a", "relay", "100 KiB", EACH_SECOND);
    let mut service = setup.start_measuring();
    let running = "SELECT 1 FROM slot WHERE state = 'running'";
    wait_until("a run under way", || setup.read_store().query_row(running, [], |_| Ok(())).ok());
    let _lock = lock(&setup.store);
    service.signal(SIGTERM);
    let status = service.end_within(Duration::from_secs(6));
    assert!(status.code().is_some_and(|code| code != 0), "{status:?}:\n{}", service.log());
    assert!(service.count("this is lost") > 0, "{}", service.log());
}

/// Takes the store's write lock and keeps it.
fn lock(store: &Path) -> Connection {
    let conn = Connection::open(store).unwrap();
    conn.busy_timeout(Duration::from_secs(10)).unwrap();
    conn.execute_batch("BEGIN EXCLUSIVE").unwrap();
    conn
}

/// Whether a small file system can be mounted for one process alone.
fn can_mount(at: &Path) -> bool {
    let mut command = Command::new("unshare");
    command.args(["-m", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at);
    command.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
}

/// perfd with a disk of 4 MiB that only it sees.
fn on_a_small_disk(setup: &Setup, at: &Path) -> Command {
    let uid = User::from_name("nobody").unwrap().expect("there is a user nobody").uid;
    let perfd = setup.command();
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c"]).arg("mount -t tmpfs -o size=4m,uid=\"$1\" tmpfs \"$2\" && shift 2 && exec \"$@\"");
    command.arg("sh").arg(uid.to_string()).arg(at).arg(perfd.get_program()).args(perfd.get_args());
    command
}

/// Writes until there is no room for another byte.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    for size in [64 * 1024, 1024, 1] {
        loop {
            match file.write(&vec![0; size]) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A copy of the store on the small disk, made while perfd holds still. SQLite itself can't go there: it
/// takes the way into another process's file system for a mere link.
fn snapshot(service: &Service, store: &Path, into: &Path) -> Connection {
    service.signal(SIGSTOP);
    wait_until("perfd to hold still", || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", service.pid())).unwrap();
        stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")).then_some(())
    });
    let copy = into.join("copy.sqlite");
    for ending in ["", "-wal"] {
        let with_ending = |path: &Path| PathBuf::from(format!("{}{ending}", path.display()));
        std::fs::copy(with_ending(store), with_ending(&copy)).unwrap();
    }
    service.signal(SIGCONT);
    Connection::open(copy).unwrap()
}

/// `/health` fails, and says why; payloads and results are given out all the same.
fn expect_failing(port: u16, why: &str) {
    let answer = get(port, "/health").unwrap();
    let health: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, health["status"].as_str()), (503, Some("failing")), "{health}");
    assert!(health["problems"].to_string().contains(why), "{health}");
    let payload = get(port, "/payload/100000").unwrap();
    assert_eq!((payload.status, payload.body.len()), (200, 100_000));
    let results = get(port, "/results.ndjson").unwrap();
    assert!(results.status == 200 && results.text().lines().count() >= 1, "{results:?}");
}

/// Waits until some slots have come due after the one that is held back.
fn wait_for_slots(port: u16) {
    let begun = Instant::now();
    let enough = Duration::from_micros((SLOTS_MISSED * EVERY_US).unsigned_abs());
    wait_until("slots to come due", || {
        assert_eq!(get(port, "/health").unwrap().status, 503);
        (begun.elapsed() > enough).then_some(())
    });
}

/// All is green, what was held back is there, and the slots in between were skipped for the store's sake.
fn expect_well_again(service: &Service, port: u16, store: impl FnOnce() -> Connection) {
    service.wait_for(GREEN);
    let held_back = service.wait_until({
        let mut green = false;
        move |line| {
            green |= line.contains(GREEN);
            green && line.contains("run finished")
        }
    });
    let run = serde_json::from_str::<Value>(&held_back).unwrap()["run"].as_str().unwrap().to_owned();
    assert_eq!(get(port, &format!("/results/{run}")).unwrap().status, 200);
    wait_until("health", || get(port, "/health").ok().filter(|answer| answer.status == 200));
    service.wait_until({
        let mut green = 0;
        move |line| {
            green += u8::from(line.contains(GREEN) || (green > 0 && line.contains("run finished")));
            green == 4
        }
    });
    assert_eq!((service.count(RED), service.count(GREEN)), (1, 1), "{}", service.log());

    let conn = store();
    let sql = "SELECT planned_us, planned_last_us, count, state || '/' || ifnull(reason, '') FROM slot ORDER BY 1";
    let mut statement = conn.prepare(sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))).unwrap();
    let rows: Vec<(i64, i64, i64, String)> = rows.collect::<Result<_, _>>().unwrap();
    for pair in rows.windows(2) {
        assert_eq!(pair[1].0, pair[0].1 + EVERY_US, "{rows:?}");
    }
    let count = |state: &str| rows.iter().filter(|row| row.3 == state).map(|row| row.2).sum::<i64>();
    assert!(count("skipped/store_down") >= SLOTS_MISSED - 1, "{rows:?}");
    assert_eq!((count("missed/"), count("aborted/died")), (0, 0), "{rows:?}");
    let results: i64 = conn.query_row("SELECT count(*) FROM result", [], |row| row.get(0)).unwrap();
    assert_eq!(results, count("done/"), "{rows:?}");
    let finished = service.count("run finished");
    assert!(usize::try_from(results).unwrap() >= finished, "{results} stored, {finished} logged");
}
