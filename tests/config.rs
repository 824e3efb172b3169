//! The shipped configuration, what each fault of a configuration is answered with, and that no text
//! makes the loader panic.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use perfd::config::{
    Collector, Config, ConfigError, Control, ControlAddress, Experiment, GuardChoice, GuardSet, Isolation, KEYS, Log,
    LogFormat, LogLevel, PublicAddress, RunAs, Server, ServerChoice, StartedTor, Tor, TorRun,
};
use perfd::measurement::Kind;
use proptest::prelude::*;

const SHIPPED: &str = include_str!("../config.toml");

const MINIMAL: &str = r#"source = "perfd"
[[tor]]
name = "tor"
socks = "127.0.0.1:9050"
[[experiment]]
name = "50kib"
tor = "tor"
size = "50 KiB"
every = "5 min"
timeout = "295 s"
"#;

#[test]
fn the_shipped_file_says_what_is_expected() {
    let shipped = Config::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml")).unwrap();
    let experiment = |name: &str, size, minutes: u64, offset| Experiment {
        name: name.to_owned(),
        tors: vec!["tor".to_owned()],
        kind: Kind::Download,
        server: ServerChoice::Auto,
        onion_tor: None,
        optimistic: false,
        publish: true,
        requests: 1,
        isolation: Isolation::Each,
        size,
        every: Duration::from_secs(minutes * 60),
        offset: Duration::from_secs(offset),
        timeout: Duration::from_secs(minutes * 60 - 5),
        jitter: Duration::ZERO,
    };
    let expected = Config {
        source: "perfd".to_owned(),
        contact: String::new(),
        server: default_server(),
        public: None,
        run_as: Some(RunAs { user: "nobody".to_owned(), group: Some("nogroup".to_owned()) }),
        store: "/var/lib/perfd/perfd.sqlite".into(),
        collector: Collector { path: Some("/collector/".to_owned()) },
        log: Log {
            file: Some("/var/log/perfd/perfd.log".into()),
            format: LogFormat::Text,
            level: LogLevel::Info,
            keep_days: 30,
        },
        tors: vec![Tor {
            name: "tor".to_owned(),
            run: TorRun::Address { socks: "127.0.0.1:9050".parse().unwrap(), control: None },
            drop_guards_every: None,
            drop_timeouts_every: None,
        }],
        experiments: vec![
            experiment("50kib", 51_200, 5, 0),
            experiment("1mib", 1_048_576, 30, 60),
            experiment("5mib", 5_242_880, 60, 120),
        ],
    };
    assert_eq!(shipped, expected);
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = Config::parse(MINIMAL, "config.toml").unwrap();
    assert_eq!(config.server, default_server());
    assert_eq!((config.contact.as_str(), &config.public, &config.run_as), ("", &None, &None));
    assert_eq!(config.store, Path::new("/var/lib/perfd/perfd.sqlite"));
    assert_eq!(config.log, Log { file: None, format: LogFormat::Text, level: LogLevel::Info, keep_days: 30 });
    assert_eq!((config.experiments[0].offset, config.experiments[0].jitter), (Duration::ZERO, Duration::ZERO));

    let public = Config::parse(&format!("{MINIMAL}[public]\nhost = \"perf.example.org\"\n"), "config.toml").unwrap();
    assert_eq!(public.public, Some(PublicAddress { host: "perf.example.org".to_owned(), port: 80 }));
}

fn default_server() -> Server {
    Server {
        listen: vec!["0.0.0.0:80".parse().unwrap(), "[::]:80".parse().unwrap()],
        max_payload: 64 << 20,
        max_connections: 512,
        max_payloads: 64,
        stall_timeout: Duration::from_secs(60),
    }
}

/// The shipped file with its examples in force.
fn with_examples() -> String {
    let example = |line: &str| match line.strip_prefix('#').filter(|rest| rest.starts_with(|c| c != ' ')) {
        Some(rest) => rest.to_owned(),
        None => line.to_owned(),
    };
    SHIPPED.lines().map(example).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_examples_of_the_shipped_file_are_right() {
    let text = with_examples();
    let config = Config::parse(&text, "config.toml").unwrap();
    assert_eq!(config.tors.len(), 2);
    assert_eq!(
        config.tors[0].run,
        TorRun::Address {
            socks: "127.0.0.1:9050".parse().unwrap(),
            control: Some(Control {
                address: ControlAddress::Tcp("127.0.0.1:9051".parse().unwrap()),
                password_file: Some("/etc/perfd/control-password".into()),
            }),
        }
    );
    assert_eq!(config.tors[0].drop_guards_every, Some(Duration::from_secs(86_400)));
    assert_eq!(config.tors[0].drop_timeouts_every, Some(Duration::from_secs(86_400)));
    let id = "0123456789ABCDEF0123456789ABCDEF01234567";
    assert_eq!(
        config.tors[1].run,
        TorRun::Started(StartedTor {
            binary: "/usr/bin/tor".into(),
            data: "/var/lib/perfd/tor-own".into(),
            torrc: vec!["ConfluxEnabled 0".to_owned()],
            torrc_file: Some("/etc/perfd/torrc-own".into()),
            authorities: vec![format!("authority orport=5000 no-v2 v3ident={id} 127.77.0.1:7000 {id}")],
            single_hop: false,
            bootstrap_timeout: Duration::from_secs(300),
            guards: Some(GuardSet { choice: GuardChoice::Fastest, count: 3 }),
        })
    );
    assert_eq!(config.experiments[0].onion_tor.as_deref(), Some("own"));
    assert_eq!(Config::parse(&config.to_toml(), "printed").unwrap(), config);
}

#[test]
fn the_shipped_file_explains_every_key() {
    let mut section = "";
    let mut explained = HashSet::new();
    let mut above = String::new();
    for line in with_examples().lines() {
        if line.starts_with('[') {
            section = KEYS.iter().find(|(name, _)| line.trim_matches(['[', ']']) == *name).unwrap().0;
            assert!(above.starts_with('#'), "no comment above {line}");
        } else if let Some((key, _)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) {
            // Of several [[experiment]]s, the first explains the keys.
            let key = KEYS.iter().flat_map(|(_, keys)| *keys).find(|known| **known == key).copied().expect(key);
            let known = explained.contains(&(section, key));
            assert!(known || above.starts_with('#'), "no comment above {line}");
            explained.insert((section, key));
        }
        above.clear();
        above.push_str(line);
    }
    let keys: HashSet<_> = KEYS.iter().flat_map(|(section, keys)| keys.iter().map(|key| (*section, *key))).collect();
    assert_eq!(explained, keys);
}

#[test]
fn every_known_key_is_read() {
    let text = with_examples();
    let mut section = "";
    let mut tried = 0;
    for (i, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']);
        }
        let Some((key, value)) = line.split_once(" = ").filter(|_| !line.starts_with('#')) else { continue };
        // What no key takes.
        let (wrong, is) =
            if matches!(value, "true" | "false") { ("1.5", "a number with decimals") } else { ("true", "a boolean") };
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines[i] = format!("{key} = {wrong}");
        let error = Config::parse(&lines.join("\n"), "c").unwrap_err().to_string();
        let number = i + 1;
        let expected = format!(" is {is}, not a");
        let of_this_line =
            error.lines().any(|line| line.starts_with(&format!("c:{number}: ")) && line.contains(&expected));
        assert!(of_this_line, "{section}: {error}");
        tried += 1;
    }
    assert!(tried >= 50, "{tried}");
}

#[test]
fn each_fault_says_where_it_is_and_what_would_be_right() {
    for case in FAULTS {
        let (from, to, expected) = *case;
        let text = if from.is_empty() { format!("{MINIMAL}{to}\n") } else { MINIMAL.replacen(from, to, 1) };
        assert_ne!(text, MINIMAL, "{case:?}");
        let error = Config::parse(&text, "config.toml").expect_err(to).to_string();
        assert_eq!(error, expected, "\n{text}");
    }
}

/// In [`MINIMAL`], what is replaced (nothing: it is put at the end, as line 11) by what, and the whole answer.
const FAULTS: &[(&str, &str, &str)] = &[
    (
        "",
        "size = 50 KiB",
        "config.toml:11: not TOML: string values must be quoted, expected literal string; write key = value, with words in quotes",
    ),
    (
        "",
        r#"x = "unclosed"#,
        r#"config.toml:11: not TOML: invalid basic string, expected `"`; write key = value, with words in quotes"#,
    ),
    ("", r#"size = "1 B""#, "config.toml:11: size: is there twice; keep one of them"),
    (
        "",
        "[",
        "config.toml:11: not TOML: unquoted keys cannot be empty, expected letters, numbers, `-`, `_`; write key = value, with words in quotes",
    ),
    (
        r#"source = "perfd""#,
        r#"source = "perfd"
[server]
[server]"#,
        "config.toml:3: server: is there twice; keep one of them",
    ),
    ("", "size", "config.toml:11: not TOML: key with no value, expected `=`; write key = value, with words in quotes"),
    (
        r#"source = "perfd""#,
        "source = \"perfd\"\n[collector]\npath = \"/results/x/\"",
        r#"config.toml:3: collector.path: "/results/x/" begins like a page of perfd's own; write another, such as "/collector/""#,
    ),
    (
        r#"source = "perfd""#,
        "source = \"perfd\"\n[collector]\npath = \"/a/../\"",
        r#"config.toml:3: collector.path: "/a/../" is no path; write one of letters, digits, dots, hyphens and underscores with a / at both ends, such as "/collector/""#,
    ),
    (
        r#"source = "perfd""#,
        "source = \"perfd\"\n[collector]\npath = \"collector\"",
        r#"config.toml:3: collector.path: "collector" is no path; write one of letters, digits, dots, hyphens and underscores with a / at both ends, such as "/collector/""#,
    ),
    (
        r#"source = "perfd""#,
        "source = \"perfd\"\n[collector]\npath = \"/\"",
        r#"config.toml:3: collector.path: "/" is no path; write one of letters, digits, dots, hyphens and underscores with a / at both ends, such as "/collector/""#,
    ),
    (
        "",
        r#"jiter = "0 s""#,
        "config.toml:11: experiment[1].jiter: no such key in [[experiment]]; did you mean jitter?",
    ),
    (
        "",
        "colour = 1",
        "config.toml:11: experiment[1].colour: no such key in [[experiment]]; there are name, tor, kind, server, onion_tor, optimistic, publish, requests, isolation, size, every, offset, timeout, jitter",
    ),
    (
        r#"source = "perfd""#,
        r#"source = "perfd"
server.colour = 1"#,
        "config.toml:2: server.colour: no such key in [server]; there are listen, max_payload, max_connections, max_payloads, stall_timeout",
    ),
    (
        "",
        r"[serve]
listen = []",
        "config.toml:11: serve: no such key at the top level; did you mean server?",
    ),
    (
        "",
        r#"[log]
contact = "me""#,
        "config.toml:12: log.contact: no such key in [log]; it belongs above the first section",
    ),
    (
        r#"source = "perfd""#,
        r#"source = "perfd"
listen = []"#,
        "config.toml:2: listen: no such key at the top level; it belongs below [server]",
    ),
    (
        r#"source = "perfd""#,
        r#"source = "perfd"
colour = "red""#,
        "config.toml:2: colour: no such key at the top level; there are source, contact, and the sections [server], [public], [privileges], [store], [collector], [log], [[tor]], [[experiment]]",
    ),
    (
        "",
        r#""a\nb" = 1"#,
        r#"config.toml:11: experiment[1]."a\nb": no such key in [[experiment]]; there are name, tor, kind, server, onion_tor, optimistic, publish, requests, isolation, size, every, offset, timeout, jitter"#,
    ),
    (
        r#"source = "perfd""#,
        r#"server = 3
source = "perfd""#,
        "config.toml:1: server: is no section; write [server] on a line of its own, its keys below it",
    ),
    ("", "[[log]]", "config.toml:11: log: is a list of sections; write [log], and once"),
    (
        r#"source = "perfd""#,
        r#"source = "perfd"
[store]
path = []"#,
        r#"config.toml:3: store.path: is a list, not a string; write one such as "/var/lib/perfd/perfd.sqlite""#,
    ),
    ("[[tor]]", "[tor]", "config.toml:2: tor: is a single section; write [[tor]]"),
    (
        r#"[[tor]]
name = "tor"
socks = "127.0.0.1:9050"
"#,
        r"tor = []
",
        "config.toml:2: tor: is no section; write [[tor]] on a line of its own, its keys below it",
    ),
    (
        r#"[[tor]]
name = "tor"
socks = "127.0.0.1:9050"
"#,
        r"tor = [1]
",
        "config.toml:2: tor[1]: is no section; write [[tor]] on a line of its own",
    ),
    (
        r#"[[tor]]
name = "tor"
socks = "127.0.0.1:9050"
"#,
        "",
        "config.toml:1: tor: is missing; write at least one [[tor]], with its keys name, socks",
    ),
    (
        r#"[[experiment]]
name = "50kib"
tor = "tor"
size = "50 KiB"
every = "5 min"
timeout = "295 s"
"#,
        "",
        "config.toml:1: experiment: is missing; write at least one [[experiment]], with its keys name, tor, size, every, timeout",
    ),
    (
        r#"source = "perfd""#,
        "",
        r#"config.toml:1: source: is missing; write source = "perfd", the name of this instance"#,
    ),
    (
        r#"name = "tor"
"#,
        "",
        r#"config.toml:2: tor[1].name: is missing; write name = "tor""#,
    ),
    (
        r#"socks = "127.0.0.1:9050"
"#,
        "",
        r#"config.toml:2: tor[1].socks: is missing; write socks = "127.0.0.1:9050", or binary = "/usr/bin/tor" for a tor that perfd is to start"#,
    ),
    (
        r#"tor = "tor"
"#,
        "",
        r#"config.toml:5: experiment[1].tor: is missing; write tor = "tor""#,
    ),
    (
        r#"size = "50 KiB"
"#,
        "",
        r#"config.toml:5: experiment[1].size: is missing; write size = "50 KiB""#,
    ),
    (
        r#"every = "5 min"
"#,
        "",
        r#"config.toml:5: experiment[1].every: is missing; write every = "5 min""#,
    ),
    (
        r#"timeout = "295 s"
"#,
        "",
        r#"config.toml:5: experiment[1].timeout: is missing; write timeout = "295 s""#,
    ),
    (
        r#"name = "50kib"
"#,
        "",
        r#"config.toml:5: experiment[1].name: is missing; write name = "50kib""#,
    ),
    (r#""perfd""#, "1979-05-27", r#"config.toml:1: source: is a date, not a string; write one such as "perfd""#),
    (
        r#""50 KiB""#,
        "50.5",
        r#"config.toml:8: experiment[1].size: is a number with decimals, not a size; write one such as "5 MiB""#,
    ),
    (
        r#""5 min""#,
        r#"["5 min"]"#,
        r#"config.toml:9: experiment[1].every: is a list, not a duration; write one such as "5 min""#,
    ),
    (
        "",
        r#"[log]
keep_days = "30""#,
        "config.toml:12: log.keep_days: is a string, not a whole number; write 1 to 3650 without quotes",
    ),
    (
        "",
        r"[public]
host = 1",
        r#"config.toml:12: public.host: is a whole number, not a string; write one such as "perf.example.org""#,
    ),
    (
        "",
        r#"[server]
listen = "[::]:80""#,
        r#"config.toml:12: server.listen: is a string, not a list; write one such as ["0.0.0.0:80", "[::]:80"]"#,
    ),
    (
        r#""perfd""#,
        r#""my_perfd""#,
        r#"config.toml:1: source: "my_perfd" is no name; write 1 to 64 letters, digits and hyphens, such as "perfd""#,
    ),
    (
        r#""perfd""#,
        r#""""#,
        r#"config.toml:1: source: "" is no name; write 1 to 64 letters, digits and hyphens, such as "perfd""#,
    ),
    (
        r#""50kib""#,
        r#""50 kib""#,
        r#"config.toml:6: experiment[1].name: "50 kib" is no name; write 1 to 64 letters, digits, dots, hyphens and underscores, such as "50kib""#,
    ),
    (r#""50kib""#, r#""..""#, r#"config.toml:6: experiment[1].name: ".." is no name; write one such as "50kib""#),
    (
        "[[experiment]]",
        r#"[[tor]]
name = "tor"
socks = "127.0.0.1:9051"
[[experiment]]"#,
        r#"config.toml:6: tor[2].name: "tor" is the name of tor[1] too; give each a name of its own"#,
    ),
    (
        "",
        r#"[[experiment]]
name = "50kib"
tor = "tor"
size = 1
every = "1 h"
timeout = "1 h""#,
        r#"config.toml:12: experiment[2].name: "50kib" is the name of experiment[1] too; give each a name of its own"#,
    ),
    (
        r#"tor = "tor""#,
        r#"tor = "guard""#,
        r#"config.toml:7: experiment[1].tor: there is no tor "guard"; write one of "tor""#,
    ),
    (
        r#"[[experiment]]
name = "50kib"
tor = "tor""#,
        r#"[[tor]]
name = "tor-2"
socks = "127.0.0.1:9051"
[[experiment]]
name = "50kib"
tor = "tor2""#,
        r#"config.toml:10: experiment[1].tor: there is no tor "tor2"; write one of "tor", "tor-2""#,
    ),
    (
        r#"source = "perfd""#,
        r#"source = "perfd"
contact = "me\u0000""#,
        r#"config.toml:2: contact: "me\0" contains control characters; write it on one line"#,
    ),
    (
        r#""50 KiB""#,
        r#""50 KB""#,
        r#"config.toml:8: experiment[1].size: "50 KB" is not in a binary unit; write "50 KiB" (1 KiB is 1024 B, 1 MiB is 1024 KiB)"#,
    ),
    (r#""50 KiB""#, "-5", r#"config.toml:8: experiment[1].size: -5 is out of range; write "1 B" to "2147483647 B""#),
    (
        r#""50 KiB""#,
        "99999999999999999999",
        r#"config.toml:8: experiment[1].size: 99999999999999999999 is out of range; write "1 B" to "2147483647 B""#,
    ),
    (
        r#""50 KiB""#,
        r#""50 parsecs""#,
        r#"config.toml:8: experiment[1].size: "50 parsecs" has no unit that perfd knows; write B, KiB, MiB or GiB, such as "50 KiB""#,
    ),
    (
        r#""5 min""#,
        "300",
        r#"config.toml:9: experiment[1].every: 300 has no unit; write it in quotes with ms, s, min, h or d, such as "5 min""#,
    ),
    (
        r#""5 min""#,
        r#""5 minutes""#,
        r#"config.toml:9: experiment[1].every: "5 minutes" has no unit that perfd knows; write ms, s, min, h or d, such as "5 min""#,
    ),
    (
        r#""295 s""#,
        r#""18446744073709551616 s""#,
        r#"config.toml:10: experiment[1].timeout: "18446744073709551616 s" is too long; write at most "36500 d""#,
    ),
    (r#""50 KiB""#, "0", r#"config.toml:8: experiment[1].size: 0 is out of range; write "1 B" to "2147483647 B""#),
    (
        r#""50 KiB""#,
        r#""2 GiB""#,
        r#"config.toml:8: experiment[1].size: "2 GiB" is out of range; write "1 B" to "2147483647 B""#,
    ),
    (
        r#""50 KiB""#,
        r#""65 MiB""#,
        r#"config.toml:8: experiment[1].size: "65 MiB" is more than server.max_payload "64 MiB"; make it at most 64 MiB, or raise that"#,
    ),
    (
        r#""295 s""#,
        r#""400 s""#,
        r#"config.toml:10: experiment[1].timeout: "400 s" and jitter "0 s" are together longer than every "5 min"; make timeout and jitter together at most 5 min"#,
    ),
    (
        r#""295 s""#,
        r#""295 s"
jitter = "6 s""#,
        r#"config.toml:10: experiment[1].timeout: "295 s" and jitter "6 s" are together longer than every "5 min"; make timeout and jitter together at most 5 min"#,
    ),
    (r#""295 s""#, "0", r#"config.toml:10: experiment[1].timeout: 0 is out of range; write "1 ms" to "365 d""#),
    (
        r#""5 min""#,
        r#""999 ms""#,
        r#"config.toml:9: experiment[1].every: "999 ms" is out of range; write "1 s" to "365 d""#,
    ),
    (
        r#""5 min""#,
        r#""366 d""#,
        r#"config.toml:9: experiment[1].every: "366 d" is out of range; write "1 s" to "365 d""#,
    ),
    (
        "",
        r#"offset = "5 min""#,
        r#"config.toml:11: experiment[1].offset: "5 min" is not less than every "5 min"; make it less than 5 min"#,
    ),
    (
        "",
        r"[server]
listen = []",
        r#"config.toml:12: server.listen: is empty; write at least one, such as ["0.0.0.0:80", "[::]:80"]"#,
    ),
    (
        "",
        r#"[server]
listen = ["127.0.0.1:99999"]"#,
        r#"config.toml:12: server.listen: "99999" is no port; write one up to 65535, such as "0.0.0.0:80""#,
    ),
    (
        "",
        r#"[server]
listen = [
  "[::]:80",
  "localhost:80"]"#,
        r#"config.toml:14: server.listen: "localhost:80" is no IP address with a port; write one such as "0.0.0.0:80", no host name"#,
    ),
    (
        "",
        r#"[server]
listen = ["0.0.0.0"]"#,
        r#"config.toml:12: server.listen: "0.0.0.0" has no port; write one after a colon, such as "0.0.0.0:80""#,
    ),
    (
        "",
        r#"[server]
listen = ["::1"]"#,
        r#"config.toml:12: server.listen: "::1" is an IPv6 address without brackets and port; write one such as "[::1]:80""#,
    ),
    (
        "",
        r#"[server]
listen = ["[::]:80", "[0::0]:80"]"#,
        r#"config.toml:12: server.listen: "[::]:80" is there twice; keep one of them"#,
    ),
    (
        "",
        r#"[server]
max_payload = "2 KiB""#,
        r#"config.toml:8: experiment[1].size: "50 KiB" is more than server.max_payload "2 KiB"; make it at most 2 KiB, or raise that"#,
    ),
    (
        "",
        r#"[server]
max_payload = "1025 GiB""#,
        r#"config.toml:12: server.max_payload: "1025 GiB" is out of range; write "1 B" to "1024 GiB""#,
    ),
    (
        "",
        r"[server]
max_connections = 0",
        "config.toml:12: server.max_connections: 0 is out of range; write 1 to 10000",
    ),
    (
        "",
        r"[server]
max_payloads = 10001",
        "config.toml:12: server.max_payloads: 10001 is out of range; write 1 to 10000",
    ),
    (
        "",
        r#"[server]
stall_timeout = "2 h""#,
        r#"config.toml:12: server.stall_timeout: "2 h" is out of range; write "1 s" to "1 h""#,
    ),
    (
        "",
        r#"[public]
host = "https://perf.example.org/""#,
        r#"config.toml:12: public.host: "https://perf.example.org/" contains a scheme; write "perf.example.org" alone"#,
    ),
    (
        "",
        r#"[public]
host = "perf.example.org:8080""#,
        r#"config.toml:12: public.host: "perf.example.org:8080" contains a port; write "perf.example.org" alone, and the port as public.port"#,
    ),
    (
        "",
        r#"[public]
host = "perf.example.org/x""#,
        r#"config.toml:12: public.host: "perf.example.org/x" contains a path; write "perf.example.org" alone"#,
    ),
    (
        "",
        r#"[public]
host = "perf example""#,
        r#"config.toml:12: public.host: "perf example" contains spaces or control characters; write a host name such as "perf.example.org", or an IP address"#,
    ),
    (
        "",
        r#"[public]
host = "[2001:db8::7]""#,
        r#"config.toml:12: public.host: "[2001:db8::7]" contains brackets; write "2001:db8::7" alone"#,
    ),
    (
        "",
        r#"[public]
host = "-""#,
        r#"config.toml:12: public.host: "-" is neither a host name nor an IP address; write a host name such as "perf.example.org", or an IP address"#,
    ),
    (
        "",
        r"[public]
port = 0",
        "config.toml:12: public.port: 0 is out of range; write 1 to 65535",
    ),
    (
        "",
        r"[public]
port = 65536",
        "config.toml:12: public.port: 65536 is out of range; write 1 to 65535",
    ),
    (
        "",
        r"[public]
port = -1",
        "config.toml:12: public.port: -1 is out of range; write 1 to 65535",
    ),
    (
        "",
        r#"[public]
port = "80""#,
        "config.toml:12: public.port: is a string, not a whole number; write 1 to 65535 without quotes",
    ),
    (
        "",
        "[server.listen]",
        r#"config.toml:11: server.listen: is a section, not a list; write one such as ["0.0.0.0:80", "[::]:80"]"#,
    ),
    (
        "127.0.0.1:9050",
        "127.0.0.1:0",
        r#"config.toml:4: tor[1].socks: "127.0.0.1:0" has port 0; write tor's SocksPort, such as "127.0.0.1:9050""#,
    ),
    (
        "127.0.0.1:9050",
        "localhost:9050",
        r#"config.toml:4: tor[1].socks: "localhost:9050" is no IP address with a port; write one such as "127.0.0.1:9050", no host name"#,
    ),
    (
        "127.0.0.1:9050",
        "127.0.0.1",
        r#"config.toml:4: tor[1].socks: "127.0.0.1" has no port; write one after a colon, such as "127.0.0.1:9050""#,
    ),
    (
        "",
        r#"[privileges]
user = "root""#,
        r#"config.toml:12: privileges.user: "root" is what perfd gives up; write another, such as "nobody""#,
    ),
    (
        "",
        r#"[privileges]
user = "00""#,
        r#"config.toml:12: privileges.user: "00" is what perfd gives up; write another, such as "nobody""#,
    ),
    (
        "",
        r#"[privileges]
user = "nobody"
group = "root""#,
        r#"config.toml:13: privileges.group: "root" is what perfd gives up; write another, such as "nogroup""#,
    ),
    (
        "",
        r#"[privileges]
group = "nogroup""#,
        r#"config.toml:11: privileges.user: is missing, though there is a group; write user = "nobody""#,
    ),
    (
        "",
        r#"[privileges]
user = "no body""#,
        r#"config.toml:12: privileges.user: "no body" is no name of an account; write one such as "nobody""#,
    ),
    (
        "",
        r"[privileges]
user = 1000",
        r#"config.toml:12: privileges.user: is a whole number, not a string; write one such as "nobody""#,
    ),
    (
        "",
        r#"[store]
path = """#,
        r#"config.toml:12: store.path: "" is no path of a file; write one such as "/var/lib/perfd/perfd.sqlite""#,
    ),
    (
        "",
        r#"[store]
path = ":memory:""#,
        r#"config.toml:12: store.path: ":memory:" is no path of a file; write one such as "/var/lib/perfd/perfd.sqlite""#,
    ),
    (
        "",
        r#"[store]
path = "/var/lib/perfd/""#,
        r#"config.toml:12: store.path: "/var/lib/perfd/" is a folder; write a file in it, such as "/var/lib/perfd/perfd.sqlite""#,
    ),
    (
        "",
        r#"[store]
path = "a\u0000b""#,
        r#"config.toml:12: store.path: "a\0b" contains control characters; write a path such as "/var/lib/perfd/perfd.sqlite""#,
    ),
    (
        "",
        r#"[log]
file = "/var/lib/perfd/perfd.sqlite""#,
        r#"config.toml:12: log.file: begins the name of a file of the store's; write one in another folder, such as "/var/log/perfd/perfd.log""#,
    ),
    (
        "",
        r#"[log]
file = "/var/lib/perfd/perfd""#,
        r#"config.toml:12: log.file: begins the name of a file of the store's; write one in another folder, such as "/var/log/perfd/perfd.log""#,
    ),
    (
        "",
        r#"[log]
format = "xml""#,
        r#"config.toml:12: log.format: "xml" is no choice; write one of "text", "json""#,
    ),
    (
        "",
        r#"[log]
level = "INFO""#,
        r#"config.toml:12: log.level: "INFO" is no choice; write one of "error", "warn", "info", "debug", "trace""#,
    ),
    (
        "",
        r"[log]
keep_days = 0",
        "config.toml:12: log.keep_days: 0 is out of range; write 1 to 3650",
    ),
    (
        "",
        r"[log]
keep_days = 0xFFFF_FFFF_FFFF_FFFF",
        "config.toml:12: log.keep_days: 0xFFFFFFFFFFFFFFFF is out of range; write 1 to 3650",
    ),
];

#[test]
fn without_a_way_to_the_server_the_schedule_is_kept() {
    // perfd says at run time that nothing can be measured yet, and skips the slots.
    for server in ["auto", "exit"] {
        let text = format!("{MINIMAL}server = \"{server}\"\n");
        assert_eq!(Config::parse(&text, "c").unwrap().experiments[0].server.as_str(), server);
    }
}

#[test]
fn all_faults_are_told_by_line() {
    let text = r#"sauce = "x"
[server]
max_payloads = 0
listen = [
  "localhost:80",
  "[::]:80",
  "0.0.0.0",
]
[[tor]]
[[experiment]]
name = "a b"
tor = "tor"
size = 0
every = "5"
"#;
    let error = Config::parse(text, "config.toml").unwrap_err();
    let expected = r#"config.toml:1: sauce: no such key at the top level; did you mean source?
config.toml:1: source: is missing; write source = "perfd", the name of this instance
config.toml:3: server.max_payloads: 0 is out of range; write 1 to 10000
config.toml:5: server.listen: "localhost:80" is no IP address with a port; write one such as "0.0.0.0:80", no host name
config.toml:7: server.listen: "0.0.0.0" has no port; write one after a colon, such as "0.0.0.0:80"
config.toml:9: tor[1].name: is missing; write name = "tor"
config.toml:9: tor[1].socks: is missing; write socks = "127.0.0.1:9050", or binary = "/usr/bin/tor" for a tor that perfd is to start
config.toml:10: experiment[1].timeout: is missing; write timeout = "295 s"
config.toml:11: experiment[1].name: "a b" is no name; write 1 to 64 letters, digits, dots, hyphens and underscores, such as "50kib"
config.toml:13: experiment[1].size: 0 is out of range; write "1 B" to "2147483647 B"
config.toml:14: experiment[1].every: "5" has no unit; write ms, s, min, h or d after it, such as "5 min""#;
    assert_eq!(error.to_string(), expected);
    let ConfigError::Faulty(problems) = error else { panic!("{error}") };
    assert_eq!((problems[0].file.as_str(), problems[0].line, problems[0].key.as_str()), ("config.toml", 1, "sauce"));
}

#[test]
fn a_file_that_cannot_be_read_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let answer = || Config::load(&file).unwrap_err().to_string().replace(file.to_str().unwrap(), "config.toml");
    let expected =
        "cannot read config.toml: No such file or directory (os error 2); give a configuration with --config FILE";
    assert_eq!(answer(), expected);

    std::fs::write(&file, b"source = \"perfd\"\ncontact = \"\xff\"\n").unwrap();
    assert_eq!(answer(), "config.toml:2: the line is not UTF-8; save the file as UTF-8");

    std::fs::write(&file, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(answer(), "config.toml:1: the file is larger than 1 MiB; give a configuration with --config FILE");

    std::fs::write(&file, MINIMAL).unwrap();
    assert_eq!(Config::load(&file).unwrap(), Config::parse(MINIMAL, "x").unwrap());
}

#[test]
fn a_file_made_to_hurt_is_refused_like_any_other() {
    let many = |item: &str| item.repeat(200_000 / item.len());
    let texts = [
        format!("x = {}", many("[")),
        format!("x = {}", many("{a=")),
        format!("[{}a]", many("a.")),
        format!("{} = 1", many("a.") + "a"),
        (0..20_000).map(|i| format!("key{i} = 0\n")).collect(),
        format!("server.listen = [{}]", many("\"[::]:80\",\n")),
        format!("server.listen = [{}]", many("0,")),
        format!("tor = [{}]", many("{name=\"a\"},")),
        format!("server.max_payload = {}", many("9")),
        format!("server.max_payload = \"{} KB\"", many("9")),
        format!("public.host = \"{}\"", many("a.")),
        "\0\u{feff}source = 1".to_owned(),
    ];
    for text in texts {
        let error = Config::parse(&text, "c").unwrap_err().to_string();
        let of_one_line = error.lines().all(|line| line.starts_with("c:") && line.len() < 1000);
        assert!(of_one_line, "{}", error.chars().take(2000).collect::<String>());
    }
}

#[test]
fn what_was_in_force_is_told_the_same_way_each_time() {
    let public = "[public]\nhost = \"perf.example.org\"\nport = 8080\n";
    let config =
        Config::parse(&format!("{MINIMAL}offset = \"1 s\"\njitter = \"5 s\"\n{public}"), "config.toml").unwrap();
    let expected = concat!(
        r#"{"experiment":{"every_ms":300000,"isolation":"each","jitter_ms":5000,"kind":"download","name":"50kib","#,
        r#""offset_ms":1000,"onion_tor":null,"optimistic":false,"publish":true,"requests":1,"server":"auto","size_bytes":51200,"#,
        r#""timeout_ms":295000,"tor":"tor"},"onion_tor":null,"public":{"host":"perf.example.org","port":8080},"#,
        r#""source":"perfd","tor":{"control":null,"drop_guards_every_ms":null,"drop_timeouts_every_ms":null,"#,
        r#""name":"tor","run":"address","socks":"127.0.0.1:9050"}}"#,
    );
    assert_eq!(config.in_force(&config.experiments[0]).to_string(), expected);

    let config = Config::parse(MINIMAL, "config.toml").unwrap();
    let elsewhere = Experiment { tors: vec!["gone".to_owned()], ..config.experiments[0].clone() };
    let in_force = config.in_force(&elsewhere);
    assert!(in_force["tor"].is_null() && in_force["public"].is_null());
}

#[test]
fn the_shipped_file_survives_printing() {
    let shipped = Config::parse(SHIPPED, "config.toml").unwrap();
    assert_eq!(Config::parse(&shipped.to_toml(), "printed").unwrap(), shipped);
}

proptest! {
    #[test]
    fn arbitrary_text_never_panics(text in any::<String>(), toml in "([a-z]{1,9}|[=\\[\\]\"'{}.,\n#0-9-]|\\PC){0,60}") {
        for text in [&text, &toml] {
            if let Err(error) = Config::parse(text, "c") {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn the_shipped_file_with_a_fault_never_panics(
        at in 0..SHIPPED.len(),
        length in 0..40_usize,
        with in "([0-9]{1,30}|\"[^\"]{0,9}\"|\\[|\\]|\n|\\PC){0,3}",
    ) {
        let end = (at + length).min(SHIPPED.len());
        let text = format!("{}{with}{}", &SHIPPED[..at], &SHIPPED[end..]);
        match Config::parse(&text, "c") {
            Ok(config) => prop_assert_eq!(Config::parse(&config.to_toml(), "printed").unwrap(), config),
            Err(error) => for line in error.to_string().lines() {
                prop_assert!(line.starts_with("c:") && line.contains("; "), "{}", line);
            }
        }
    }

    #[test]
    fn what_is_printed_is_read_back(config in configs()) {
        let printed = config.to_toml();
        let read = Config::parse(&printed, "printed");
        prop_assert_eq!(read.map_err(|error| format!("{error}\n{printed}")), Ok(config));
    }
}

fn configs() -> impl Strategy<Value = Config> {
    let text = "[^\\p{Cc}]{0,20}";
    let server = (
        prop::collection::hash_set(any::<std::net::SocketAddr>(), 1..4),
        1_u64 << 31..1 << 40,
        1..=10_000_usize,
        1..=10_000_usize,
        (1000..=3_600_000_u64).prop_map(Duration::from_millis),
    )
        .prop_map(|(listen, max_payload, max_connections, max_payloads, stall_timeout)| {
            let listen = listen.into_iter().map(without_flow).collect();
            Server { listen, max_payload, max_connections, max_payloads, stall_timeout }
        });
    let public =
        prop::option::of(("[a-z]{1,9}\\.org", 1..=u16::MAX).prop_map(|(host, port)| PublicAddress { host, port }));
    let run_as = prop::option::of(
        ("[a-z]{1,3}", prop::option::of("[1-9][0-9]{0,4}")).prop_map(|(user, group)| RunAs { user, group }),
    );
    let log = (
        prop::option::of("/[^\\p{Cc}/]{1,9}".prop_map(Into::into)),
        prop::sample::select(LogFormat::WORDS.to_vec()),
        prop::sample::select(LogLevel::WORDS.to_vec()),
        1..=3650_usize,
    )
        .prop_map(|(file, format, level, keep_days)| Log { file, format: format.1, level: level.1, keep_days });
    let tors = prop::collection::vec((tor_run(), any::<[bool; 2]>()), 1..4).prop_map(|drawn| {
        let tor = |(i, (mut run, [drop_guards, drop_timeouts])): (usize, (TorRun, [bool; 2]))| {
            if let TorRun::Started(started) = &mut run {
                // What is measured through has a SocksPort, and each tor a folder of its own.
                started.single_hop &= i > 0;
                started.data.push(i.to_string());
            }
            let controlled = !matches!(run, TorRun::Address { control: None, .. });
            let every = |drop: bool| (drop && controlled).then(|| Duration::from_secs(60 + i as u64));
            Tor {
                name: format!("tor-{i}"),
                run,
                drop_guards_every: every(drop_guards),
                drop_timeouts_every: every(drop_timeouts),
            }
        };
        drawn.into_iter().enumerate().map(tor).collect::<Vec<_>>()
    });
    let kinds = (
        prop::sample::select(Kind::ALL.to_vec()),
        prop::sample::select(ServerChoice::WORDS.to_vec()),
        prop::sample::select(Isolation::WORDS.to_vec()),
    );
    let experiment =
        (1..1_u64 << 31, 1_000_000..=31_536_000_000_u64, any::<[u64; 3]>(), any::<[bool; 4]>(), 1..=100_u32, kinds);
    let experiments = prop::collection::vec(experiment, 1..4);
    let tors_and_experiments = (tors, experiments).prop_map(|(tors, drawn)| {
        let measured_through = |tor: &&Tor| !matches!(&tor.run, TorRun::Started(StartedTor { single_hop: true, .. }));
        let names = |tors: &[&Tor]| tors.iter().map(|tor| tor.name.clone()).collect::<Vec<_>>();
        let (through, controlled): (Vec<_>, Vec<_>) =
            (tors.iter().filter(measured_through).collect(), tors.iter().filter(|tor| tor.has_control()).collect());
        let mut experiments = Vec::new();
        for (i, (size, every, [a, b, c], [all, onion, optimistic, publish], requests, (kind, server, isolation))) in
            drawn.into_iter().enumerate()
        {
            let tors = names(if all { &through } else { &through[..1] });
            let all_controlled = through.iter().all(|tor| tor.has_control());
            let server = match server.1 {
                ServerChoice::Onion if !all_controlled => ServerChoice::Auto,
                server => server,
            };
            let onion_tor = names(&controlled).pop().filter(|_| onion && server != ServerChoice::Exit);
            let runs = u64::from(requests) * tors.len() as u64;
            let timeout = 1 + a % (every / runs);
            experiments.push(Experiment {
                name: format!("e_{i}.x"),
                tors,
                kind: kind.0,
                server,
                onion_tor,
                optimistic,
                publish,
                requests,
                isolation: isolation.1,
                size,
                every: Duration::from_millis(every),
                offset: Duration::from_millis(b % every),
                timeout: Duration::from_millis(timeout),
                jitter: Duration::from_millis(c % (every - timeout * runs + 1)),
            });
        }
        (tors, experiments)
    });
    let store = "/[^\\p{Cc}]{0,9}x".prop_map(|path| format!("/store{path}").into());
    let collector = prop::option::of("/[A-Z][A-Za-z0-9._-]{0,9}/");
    ("[A-Za-z0-9-]{1,64}", text, server, public, run_as, store, (collector, log), tors_and_experiments).prop_map(
        |(source, contact, server, public, run_as, store, (collector, log), (tors, experiments))| Config {
            source,
            contact,
            server,
            public,
            run_as,
            store,
            collector: Collector { path: collector },
            log,
            tors,
            experiments,
        },
    )
}

fn tor_run() -> impl Strategy<Value = TorRun> {
    let path = || "/[^\\p{Cc}]{0,9}x".prop_map(PathBuf::from);
    let address = || {
        (any::<std::net::SocketAddr>(), 1..=u16::MAX).prop_map(|(mut address, port)| {
            address.set_port(port);
            without_flow(address)
        })
    };
    let control = prop_oneof![address().prop_map(ControlAddress::Tcp), path().prop_map(ControlAddress::Unix),];
    let control =
        (control, prop::option::of(path())).prop_map(|(address, password_file)| Control { address, password_file });
    let run = (address(), prop::option::of(control)).prop_map(|(socks, control)| TorRun::Address { socks, control });
    let guards = (prop::sample::select(GuardChoice::WORDS.to_vec()), 1..=100_u32)
        .prop_map(|((_, choice), count)| GuardSet { choice, count });
    let authority = "[a-z]{1,9} (orport=[0-9]{1,4} )?127\\.0\\.0\\.[0-9]:[0-9]{1,4} [0-9A-F]{8}";
    let started = (
        path(),
        "/[a-zé /]{0,9}x",
        prop::collection::vec("Nickname [^\\p{Cc}\\\\\"#]{0,20}", 0..3),
        prop::option::of(path()),
        prop::collection::vec(authority, 0..3),
        any::<bool>(),
        1000..=86_400_000_u64,
        prop::option::of(guards),
    )
        .prop_map(|(binary, data, torrc, torrc_file, authorities, single_hop, bootstrap_timeout, guards)| {
            TorRun::Started(StartedTor {
                binary,
                data: data.into(),
                torrc,
                torrc_file,
                authorities,
                single_hop,
                bootstrap_timeout: Duration::from_millis(bootstrap_timeout),
                guards,
            })
        });
    prop_oneof![run, started]
}

/// An IPv6 flow label has no place in a written address.
fn without_flow(mut address: std::net::SocketAddr) -> std::net::SocketAddr {
    if let std::net::SocketAddr::V6(v6) = &mut address {
        v6.set_flowinfo(0);
    }
    address
}
