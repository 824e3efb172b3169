//! Whom perfd becomes: the real program started as root and as an ordinary user, looked at from outside.

#[path = "common/service.rs"]
mod service;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::unistd::{Group, User};
use service::{PATIENCE, Service, Setup, are_root, exit, get, left_out, refusal};

const FAREWELL: Duration = Duration::from_secs(5);

fn nobody() -> User {
    User::from_name("nobody").unwrap().expect("there is a user nobody")
}

/// Whether the test can be done; says so if not.
fn as_root() -> bool {
    if !are_root() {
        left_out("not root");
    }
    are_root()
}

/// A set-up that becomes whom these lines of [privileges] say.
fn becoming(privileges: &str) -> Setup {
    let mut setup = Setup::idle();
    setup.privileges = privileges.to_owned();
    setup
}

/// What `/proc` says of each thread of perfd under this key.
fn of_each_thread(service: &Service, key: &str) -> Vec<Vec<String>> {
    let threads = std::fs::read_dir(format!("/proc/{}/task", service.pid())).unwrap();
    let value = |thread: PathBuf| {
        let status = std::fs::read_to_string(thread.join("status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {key} in {status}")).split_whitespace().map(str::to_owned).collect()
    };
    threads.map(|thread| value(thread.unwrap().path())).collect()
}

/// Expects that every thread is that user and group, in each of four ways, and can be nobody else.
fn expect_identity(service: &Service, uid: u32, gid: u32) {
    service.port();
    let same = |value: String, times| vec![value; times];
    let uids = of_each_thread(service, "Uid");
    assert!(uids.len() > 2, "threads: {}", uids.len());
    assert!(uids.iter().all(|ids| *ids == same(uid.to_string(), 4)), "{uids:?}");
    let gids = of_each_thread(service, "Gid");
    assert!(gids.iter().all(|ids| *ids == same(gid.to_string(), 4)), "{gids:?}");
    let groups = of_each_thread(service, "Groups");
    assert!(groups.iter().flatten().all(|gid| gid != "0"), "{groups:?}");
    for (key, value) in [("NoNewPrivs", "1"), ("CapEff", "0000000000000000"), ("CapPrm", "0000000000000000")] {
        let found = of_each_thread(service, key);
        assert!(found.iter().flatten().all(|found| found == value), "{key}: {found:?}");
    }
}

fn expect_owner(path: &Path, uid: u32, gid: u32) {
    let found = std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!((found.uid(), found.gid()), (uid, gid), "{}", path.display());
}

#[test]
fn root_becomes_nobody_and_all_that_it_makes_is_nobodys() {
    if !as_root() {
        return;
    }
    let setup = becoming("user = \"nobody\"\ngroup = \"nogroup\"");
    let (uid, gid) = (nobody().uid.as_raw(), Group::from_name("nogroup").unwrap().unwrap().gid.as_raw());
    let mut service = setup.start();
    expect_identity(&service, uid, gid);

    let key = setup.state().join("payload.key");
    let wal = setup.state().join("perfd.sqlite-wal");
    let followed = std::fs::canonicalize(&setup.log).unwrap();
    for path in [setup.state(), setup.log.parent().unwrap(), &setup.store, &wal, &key, &setup.log, &followed] {
        expect_owner(path, uid, gid);
    }
    assert_eq!(std::fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
    service.end_well_within(FAREWELL);

    // The second start finds everything in place.
    let mut service = setup.start();
    service.port();
    service.end_well_within(FAREWELL);
}

#[test]
fn root_listens_on_a_low_port_in_both_families() {
    if !as_root() {
        return;
    }
    let ipv6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if !ipv6 {
        left_out("no IPv6 here");
    }
    let addresses = |port| {
        let (v4, v6): (SocketAddr, SocketAddr) =
            ((Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into());
        if ipv6 { vec![v4, v6] } else { vec![v4] }
    };
    let free = |port: &u16| addresses(*port).iter().all(|address| TcpListener::bind(address).is_ok());
    let port = (1..1024).rev().find(free).expect("a port below 1024 is free");
    let listen: Vec<String> = addresses(port).iter().map(SocketAddr::to_string).collect();
    let mut setup = becoming("user = \"nobody\"");
    setup.listen = listen.clone();
    let mut service = setup.start();
    listen.iter().for_each(|address| drop(service.wait_for(&format!("address={address} "))));
    assert_eq!(service.port(), port);
    assert_eq!(get(port, "/health").unwrap().status, 200);
    service.end_well_within(FAREWELL);
}

#[test]
fn numbers_do_for_names_and_the_group_is_the_users_own() {
    if !as_root() {
        return;
    }
    let User { uid, gid, .. } = nobody();
    let daemon = Group::from_name("daemon").unwrap().expect("there is a group daemon").gid;
    let cases = [
        (format!("user = \"{uid}\"\ngroup = \"{gid}\""), gid),
        (format!("user = \"{uid}\""), gid),
        (format!("user = \"{uid}\"\ngroup = \"{daemon}\""), daemon),
        ("user = \"nobody\"\ngroup = \"daemon\"".to_owned(), daemon),
    ];
    for (privileges, gid) in cases {
        let setup = becoming(&privileges);
        let mut service = setup.start();
        expect_identity(&service, uid.as_raw(), gid.as_raw());
        expect_owner(&setup.store, uid.as_raw(), gid.as_raw());
        service.end_well_within(FAREWELL);
    }
}

#[test]
fn root_that_cannot_become_somebody_else_does_not_start() {
    if !as_root() {
        return;
    }
    let cases = [
        ("", exit::PRIVILEGES, "set user in the section [privileges]"),
        ("user = \"no-such-user\"", exit::PRIVILEGES, "no-such-user"),
        ("user = \"4123456789\"", exit::PRIVILEGES, "4123456789"),
        ("user = \"nobody\"\ngroup = \"no-such-group\"", exit::PRIVILEGES, "no-such-group"),
    ];
    for (privileges, code, part) in cases {
        let setup = becoming(privileges);
        let said = refusal(setup.command(), code);
        assert!(said.contains(part), "{privileges}: {said}");
        assert!(!setup.state().exists(), "{privileges}");
    }
    for privileges in
        ["user = \"root\"", "user = \"0\"", "user = \"nobody\"\ngroup = \"root\"", "user = \"nobody\"\ngroup = \"0\""]
    {
        let mut service = becoming(privileges).start();
        let code = service.end_within(PATIENCE).code();
        assert!([Some(exit::CONFIG), Some(exit::PRIVILEGES)].contains(&code), "{privileges}: {code:?}");
        assert!(service.log().contains("privileges"), "{privileges}: {}", service.log());
    }
}

#[test]
fn a_folder_that_is_roots_is_refused_with_the_remedy() {
    if !as_root() {
        return;
    }
    let folders: [fn(&Setup) -> &Path; 2] = [Setup::state, |setup| setup.log.parent().unwrap()];
    for folder in folders {
        let setup = becoming("user = \"nobody\"");
        let folder = folder(&setup);
        std::fs::create_dir(folder).unwrap();
        let said = refusal(setup.command(), exit::STORE);
        assert!(said.contains(folder.to_str().unwrap()), "{said}");
        assert!(said.contains("belong to the user that perfd runs as"), "{said}");
        assert_eq!(said.matches("Permission denied").count(), 1, "{said}");
    }
}

/// Root must not follow where others point: what perfd's own user laid out is made as that user, or not at all.
#[test]
fn root_makes_nothing_behind_a_link_of_somebody_elses() {
    if !as_root() {
        return;
    }
    let mut setup = becoming("user = \"nobody\"");
    let (roots, nobodys) = (setup.folder().join("roots"), setup.folder().join("nobodys"));
    for folder in [&roots, &nobodys] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::set_permissions(&roots, PermissionsExt::from_mode(0o700)).unwrap();
    std::os::unix::fs::symlink(&roots, nobodys.join("link")).unwrap();
    chown(&nobodys, Some(nobody().uid.as_raw()), Some(nobody().gid.as_raw())).unwrap();

    setup.log = nobodys.join("link/a/b/perfd.log");
    let said = refusal(setup.command(), exit::STORE);
    assert!(said.contains("can't make the folder") && said.contains("link/a/b"), "{said}");
    assert_eq!(std::fs::read_dir(&roots).unwrap().count(), 0);

    // Beside it, in a folder of its own, perfd's user may make what it likes.
    setup.log = nobodys.join("a/b/perfd.log");
    let mut service = setup.start();
    service.port();
    assert_eq!(setup.log.parent().unwrap().metadata().unwrap().uid(), nobody().uid.as_raw());
    service.end_well_within(FAREWELL);
}

/// What an ordinary user starts: a copy of perfd that this user can reach, in a folder of the user's own.
fn as_ordinary_user(setup: &Setup) -> Command {
    let mut command = setup.command();
    if are_root() {
        let User { uid, gid, .. } = nobody();
        chown(setup.folder(), Some(uid.as_raw()), Some(gid.as_raw())).unwrap();
        let copy = setup.folder().join("perfd");
        std::fs::copy(command.get_program(), &copy).unwrap();
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
        let mut theirs = Command::new(copy);
        theirs.args(command.get_args()).uid(uid.as_raw()).gid(gid.as_raw());
        command = theirs;
    }
    command
}

#[test]
fn an_ordinary_user_needs_no_section_and_a_high_port() {
    for privileges in ["", "user = \"nobody\""] {
        let setup = becoming(privileges);
        let mut service = Service::spawn(as_ordinary_user(&setup));
        assert_eq!(get(service.port(), "/robots.txt").unwrap().status, 200);
        assert!(setup.store.exists() && setup.log.exists());
        service.end_well_within(FAREWELL);
    }
}

#[test]
fn an_ordinary_user_is_told_who_may_have_port_80() {
    let first = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first.trim().parse::<u16>().is_ok_and(|first| first <= 80) {
        return left_out("every user may listen on port 80 here");
    }
    let mut setup = becoming("");
    setup.listen = vec!["127.0.0.1:80".to_owned()];
    let said = refusal(as_ordinary_user(&setup), exit::CANT_LISTEN);
    assert!(said.contains("127.0.0.1:80") && said.contains("choose a higher port"), "{said}");
    assert!(!setup.state().exists());
}
