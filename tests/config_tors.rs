//! Tors that perfd starts and controls, and what is measured through them, in the configuration: what each
//! fault is answered with, what is kept, and that it survives printing.

use std::path::Path;

use perfd::config::{Config, Tor, TorRun};

const STARTED: &str = r#"source = "perfd"
[[tor]]
name = "own"
binary = "/usr/bin/tor"
data = "/srv/own"
torrc = ["ConfluxEnabled 0", "Socks5ProxyPassword geheim"]
torrc_file = "/etc/perfd/own"
bootstrap_timeout = "1 min"
guards = "slowest"
guard_count = 5
drop_guards_every = "1 h"
[[tor]]
name = "there"
socks = "127.0.0.1:9050"
control = "unix:/run/tor/control"
control_password_file = "/etc/perfd/password"
drop_timeouts_every = "1 min"
[[tor]]
name = "hop"
binary = "/usr/bin/tor"
single_hop = true
[[experiment]]
name = "pair"
tor = ["own", "there"]
kind = "upload"
server = "onion"
onion_tor = "hop"
optimistic = true
requests = 3
isolation = "shared"
size = "50 KiB"
every = "5 min"
timeout = "20 s"
"#;

#[test]
fn each_fault_of_tors_and_of_what_goes_through_them_says_what_would_be_right() {
    for case in FAULTS_OF_TORS {
        let (from, to, expected) = *case;
        let text = STARTED.replacen(from, to, 1);
        assert_ne!(text, STARTED, "{case:?}");
        let error = Config::parse(&text, "c").expect_err(to).to_string();
        assert_eq!(error, expected, "\n{text}");
    }
}

/// In [`STARTED`], what is replaced by what, and the whole answer.
const FAULTS_OF_TORS: &[(&str, &str, &str)] = &[
    (
        r#"binary = "/usr/bin/tor""#,
        r#"binary = "/usr/bin/tor"
socks = "127.0.0.1:9050""#,
        "c:4: tor[1].binary: is there beside socks; keep socks for a tor that runs already, or binary for one that perfd is to start",
    ),
    (
        r#"binary = "/usr/bin/tor""#,
        r#"binary = "/usr/bin/tor"
control = "127.0.0.1:9051""#,
        "c:5: tor[1].control: is for a tor that runs already; leave it out, for perfd controls those it starts",
    ),
    (
        r#"socks = "127.0.0.1:9050""#,
        r#"socks = "127.0.0.1:9050"
torrc = ["UseEntryGuards 0"]"#,
        "c:15: tor[2].torrc: is for a tor that perfd starts; leave it out, or write binary instead of socks",
    ),
    (
        r#"socks = "127.0.0.1:9050""#,
        r#"socks = "127.0.0.1:9050"
single_hop = false
guards = "fastest""#,
        "c:15: tor[2].single_hop: is for a tor that perfd starts; leave it out, or write binary instead of socks\n\
         c:16: tor[2].guards: is for a tor that perfd starts; leave it out, or write binary instead of socks",
    ),
    (
        r#"binary = "/usr/bin/tor""#,
        r#"binary = "tor""#,
        r#"c:4: tor[1].binary: "tor" is no path; write one such as "/usr/bin/tor""#,
    ),
    (
        r#"binary = "/usr/bin/tor""#,
        r#"binary = """#,
        r#"c:4: tor[1].binary: "" is no path of a file; write one such as "/usr/bin/tor""#,
    ),
    (
        r#"data = "/srv/own""#,
        r#"data = "/srv/#1""#,
        r##"c:5: tor[1].data: "/srv/#1" contains control characters, or what a torrc can't hold in a path; write the path of a folder for this tor alone, such as "/var/lib/perfd/tor-a""##,
    ),
    (
        r#"data = "/srv/own""#,
        r#"data = "/""#,
        r#"c:5: tor[1].data: "/" is no folder for a tor; write the path of a folder for this tor alone, such as "/var/lib/perfd/tor-a""#,
    ),
    (
        r#"single_hop = true"#,
        r#"single_hop = true
data = "/srv/own/""#,
        r#"c:22: tor[3].data: "/srv/own" is that of tor[1] too; give each a folder of its own"#,
    ),
    (
        r#"data = "/srv/own""#,
        r#"data = "/var/lib/perfd/tor-hop""#,
        r#"c:18: tor[3].data: "/var/lib/perfd/tor-hop" is that of tor[1] too; give each a folder of its own"#,
    ),
    (
        r#""ConfluxEnabled 0""#,
        r#""SocksPort 9050""#,
        r#"c:6: tor[1].torrc: "SocksPort 9050" sets SocksPort, which perfd sets itself; leave it out, for perfd lets tor choose its ports"#,
    ),
    (
        r#""ConfluxEnabled 0""#,
        r#""datad /x""#,
        r#"c:6: tor[1].torrc: "datad /x" may stand for DataDirectory, which perfd sets itself; write the option's whole name"#,
    ),
    (
        r#""ConfluxEnabled 0""#,
        r#""A 1\nDirAuthority x""#,
        r#"c:6: tor[1].torrc: "A 1\nDirAuthority x" contains control characters; write one option a line"#,
    ),
    (
        r#"torrc = ["ConfluxEnabled 0", "#,
        r#"authorities = ["a 127.77.0.1:7000 AAAA"]
torrc = ["Bridge 192.0.2.1:80", "#,
        r#"c:7: tor[1].torrc: "Bridge 192.0.2.1:80" could lead out of the private network that authorities names; leave it out"#,
    ),
    (
        r#"data = "/srv/own""#,
        r#"authorities = ["moria1 orport=9101 128.31.0.39:9131 AAAA"]"#,
        r#"c:5: tor[1].authorities: "moria1 orport=9101 128.31.0.39:9131 AAAA" is no authority on a loopback address; write what `perfd testnet status` prints behind the word authority"#,
    ),
    (
        r#"data = "/srv/own""#,
        r"authorities = []",
        r#"c:5: tor[1].authorities: is empty; write at least one, such as ["authority orport=5000 no-v2 v3ident=… 127.77.0.1:7000 …"]"#,
    ),
    (
        r#"guards = "slowest""#,
        r#"guards = "slow""#,
        r#"c:9: tor[1].guards: "slow" is no choice; write one of "slowest", "fastest", "random""#,
    ),
    (
        r#"guards = "slowest"
"#,
        "",
        r#"c:9: tor[1].guard_count: is of no use without guards; write guards = "slowest", "fastest" or "random" too"#,
    ),
    (
        r#""ConfluxEnabled 0""#,
        r#""entrynodes {de}""#,
        "c:9: tor[1].guards: goes against EntryNodes in torrc; keep one of the two",
    ),
    ("guard_count = 5", "guard_count = 0", "c:10: tor[1].guard_count: 0 is out of range; write 1 to 100"),
    (
        r#"drop_guards_every = "1 h""#,
        r#"drop_guards_every = "59 s""#,
        r#"c:11: tor[1].drop_guards_every: "59 s" is out of range; write "1 min" to "365 d""#,
    ),
    (
        r#"bootstrap_timeout = "1 min""#,
        r#"bootstrap_timeout = "0 s""#,
        r#"c:8: tor[1].bootstrap_timeout: "0 s" is out of range; write "1 s" to "1 d""#,
    ),
    (
        r#"control = "unix:/run/tor/control""#,
        r#"control = "127.0.0.1""#,
        r#"c:15: tor[2].control: "127.0.0.1" has no port; write one after a colon, such as "127.0.0.1:9051""#,
    ),
    (
        r#"control = "unix:/run/tor/control""#,
        r#"control = "127.0.0.1:0""#,
        r#"c:15: tor[2].control: "127.0.0.1:0" has port 0; write tor's ControlPort, such as "127.0.0.1:9051""#,
    ),
    (
        r#"control = "unix:/run/tor/control""#,
        r#"control = "unix:control""#,
        r#"c:15: tor[2].control: "unix:control" has no absolute path of a socket; write unix: and tor's ControlSocket, such as "unix:/run/tor/control""#,
    ),
    (
        r#"control = "unix:/run/tor/control"
control_password_file = "/etc/perfd/password"
"#,
        "",
        r#"c:15: tor[2].drop_timeouts_every: needs control of this tor; write control = "127.0.0.1:9051", its ControlPort"#,
    ),
    (
        r#"control = "unix:/run/tor/control"
control_password_file = "/etc/perfd/password"
drop_timeouts_every = "1 min"
"#,
        r#"control_password_file = "/etc/perfd/password"
"#,
        r#"c:15: tor[2].control_password_file: is of no use without control; write control = "127.0.0.1:9051" too, its ControlPort"#,
    ),
    (
        r#"control_password_file = "/etc/perfd/password""#,
        r#"control_password_file = """#,
        r#"c:16: tor[2].control_password_file: "" is no path of a file; write one such as "/etc/perfd/control-password""#,
    ),
    (
        "single_hop = true",
        "single_hop = 1",
        "c:21: tor[3].single_hop: is a whole number, not a boolean; write true or false",
    ),
    (
        r#"tor = ["own", "there"]"#,
        r#"tor = ["own", "own"]"#,
        r#"c:24: experiment[1].tor: "own" is there twice; keep one of them"#,
    ),
    (
        r#"tor = ["own", "there"]"#,
        r"tor = []",
        r#"c:24: experiment[1].tor: is empty; write at least one, such as "own""#,
    ),
    (
        r#"tor = ["own", "there"]"#,
        r#"tor = ["own", "hop"]"#,
        r#"c:24: experiment[1].tor: "hop" is single_hop, and has no SocksPort; write another here, or this one as onion_tor"#,
    ),
    (
        r#"tor = ["own", "there"]"#,
        r#"tor = ["own", "theirs"]"#,
        r#"c:24: experiment[1].tor: there is no tor "theirs"; write one of "own", "there", "hop""#,
    ),
    (
        r#"kind = "upload""#,
        r#"kind = "up""#,
        r#"c:25: experiment[1].kind: "up" is no choice; write one of "download", "upload""#,
    ),
    (
        r#"server = "onion""#,
        r#"server = "hidden""#,
        r#"c:26: experiment[1].server: "hidden" is no choice; write one of "auto", "exit", "onion""#,
    ),
    (
        r#"server = "onion""#,
        r#"server = "exit""#,
        r#"c:27: experiment[1].onion_tor: is of no use with server = "exit"; leave it out, or write server = "onion""#,
    ),
    (
        r#"onion_tor = "hop""#,
        r#"onion_tor = "hope""#,
        r#"c:27: experiment[1].onion_tor: there is no tor "hope"; write one of "own", "there", "hop""#,
    ),
    (
        r#"[[experiment]]
name = "pair"
tor = ["own", "there"]
kind = "upload"
server = "onion"
onion_tor = "hop""#,
        r#"[[tor]]
name = "mute"
socks = "127.0.0.1:9055"
[[experiment]]
name = "pair"
tor = ["own", "there"]
server = "onion"
onion_tor = "mute""#,
        r#"c:29: experiment[1].onion_tor: perfd has no control of "mute"; write control = "127.0.0.1:9051" below that tor, or name another"#,
    ),
    (
        r#"[[experiment]]
name = "pair"
tor = ["own", "there"]
kind = "upload"
server = "onion"
onion_tor = "hop""#,
        r#"[[tor]]
name = "mute"
socks = "127.0.0.1:9055"
[[experiment]]
name = "pair"
tor = ["own", "mute"]
server = "onion""#,
        r#"c:28: experiment[1].server: perfd has no control of "mute" to publish with; write control = "127.0.0.1:9051" below that tor, or onion_tor = one that has control"#,
    ),
    (
        "optimistic = true",
        r#"optimistic = "yes""#,
        "c:28: experiment[1].optimistic: is a string, not a boolean; write true or false",
    ),
    ("requests = 3", "requests = 101", "c:29: experiment[1].requests: 101 is out of range; write 1 to 100"),
    (
        r#"isolation = "shared""#,
        r#"isolation = "none""#,
        r#"c:30: experiment[1].isolation: "none" is no choice; write one of "each", "shared""#,
    ),
    (
        r#"size = "50 KiB""#,
        r#"size = "65 MiB""#,
        r#"c:31: experiment[1].size: "65 MiB" is more than server.max_payload "64 MiB"; make it at most 64 MiB, or raise that"#,
    ),
    (
        r#"timeout = "20 s""#,
        r#"timeout = "51 s""#,
        r#"c:33: experiment[1].timeout: "51 s" × 3 requests × 2 tors and jitter "0 s" are together longer than every "5 min"; make timeout × 3 requests × 2 tors and jitter together at most 5 min"#,
    ),
];

#[test]
fn what_perfd_starts_keeps_its_data_beside_the_store() {
    let text = STARTED.replacen("data = \"/srv/own\"\n", "", 1) + "[store]\npath = \"/srv/perfd/db\"\n";
    let config = Config::parse(&text, "c").unwrap();
    let TorRun::Started(own) = &config.tors[0].run else { panic!("{:?}", config.tors[0]) };
    assert_eq!(own.data, Path::new("/srv/perfd/tor-own"));
    assert!(config.tors.iter().all(Tor::has_control));
    assert_eq!(config.tors[0].socks(), None);
}

#[test]
fn what_was_in_force_names_every_tor_and_no_secret() {
    let config = Config::parse(STARTED, "config.toml").unwrap();
    let experiment = concat!(
        r#"{"experiment":{"every_ms":300000,"isolation":"shared","jitter_ms":0,"kind":"upload","name":"pair","#,
        r#""offset_ms":0,"onion_tor":"hop","optimistic":true,"publish":true,"requests":3,"server":"onion","size_bytes":51200,"#,
        r#""timeout_ms":20000,"tor":["own","there"]},"#,
    );
    let tors = concat!(
        r#""onion_tor":{"authorities":[],"binary":"/usr/bin/tor","bootstrap_timeout_ms":300000,"#,
        r#""data":"/var/lib/perfd/tor-hop","drop_guards_every_ms":null,"drop_timeouts_every_ms":null,"guards":null,"#,
        r#""name":"hop","run":"started","single_hop":true,"torrc":[],"torrc_file":null},"public":null,"#,
        r#""source":"perfd","tor":[{"authorities":[],"binary":"/usr/bin/tor","bootstrap_timeout_ms":60000,"#,
        r#""data":"/srv/own","drop_guards_every_ms":3600000,"drop_timeouts_every_ms":null,"#,
        r#""guards":{"choice":"slowest","count":5},"name":"own","run":"started","single_hop":false,"#,
        r#""torrc":["ConfluxEnabled 0","Socks5ProxyPassword (not shown)"],"torrc_file":"/etc/perfd/own"},"#,
        r#"{"control":"unix:/run/tor/control","drop_guards_every_ms":null,"drop_timeouts_every_ms":60000,"#,
        r#""name":"there","run":"address","socks":"127.0.0.1:9050"}]}"#,
    );
    let in_force = config.in_force(&config.experiments[0]).to_string();
    assert_eq!(in_force, format!("{experiment}{tors}"));
}

#[test]
fn it_survives_printing() {
    let started = Config::parse(STARTED, "config.toml").unwrap();
    assert_eq!(Config::parse(&started.to_toml(), "printed").unwrap(), started);
}
