//! What each section of the file may hold: keys, defaults, ranges, and the rules between them.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::experiments::{Known, experiment};
use super::host::fault_of_host;
use super::quote::quoted;
use super::tors::tors;
use super::walk::{Entry, Section};
use super::{Collector, Config, Log, LogFormat, LogLevel, PublicAddress, RunAs, Server, folder_of};

/// The whole file; whatever is wrong is in the section's report, and nothing may be made of the result then.
///
/// Everything is read before anything is unwrapped, so that all problems are found.
pub(super) fn config(top: &Section) -> Option<Config> {
    let source = top.required("source", r#""perfd", the name of this instance"#, source);
    let contact = top.optional("contact", String::new(), contact);
    let server = server(&top.section("server"));
    let public = public(&top.section("public"));
    let run_as = run_as(&top.section("privileges"));
    let store_section = top.section("store");
    let store = store_section.optional("path", PathBuf::from(STORE), store);
    let collector = collector(&top.section("collector"));
    let log_section = top.section("log");
    let log = log(&log_section);
    if let (Some(store), Some(Log { file: Some(file), .. })) = (&store, &log)
        && takes_in_state(file, store)
    {
        let remedy = "write one in another folder, such as \"/var/log/perfd/perfd.log\"";
        let _: Option<()> = log_section.wrong("file", format!("begins the name of a file of the store's; {remedy}"));
    }

    let tor_sections = top.sections("tor", "name, socks");
    let names_of_tors = tor_sections.as_ref().map(|sections| names(sections));
    let state = folder_of(store.as_deref().unwrap_or(Path::new(STORE)));
    let tors = tor_sections.map(|sections| tors(&sections, state));

    let experiment_sections = top.sections("experiment", "name, tor, size, every, timeout");
    experiment_sections.as_ref().map(|sections| self::names(sections));
    let known = Known {
        names: names_of_tors.unwrap_or_default(),
        tors: tors.as_deref().unwrap_or_default(),
        max_payload: server.as_ref().map(|server| server.max_payload),
    };
    let experiments = experiment_sections
        .map(|sections| sections.iter().map(|section| experiment(section, &known)).collect::<Vec<_>>());

    Some(Config {
        source: source?,
        contact: contact?,
        server: server?,
        public: public?,
        run_as: run_as?,
        store: store?,
        collector: collector?,
        log: log?,
        tors: tors?.into_iter().collect::<Option<_>>()?,
        experiments: experiments?.into_iter().collect::<Option<_>>()?,
    })
}

/// Every key of the file by section, the top level's first.
pub const KEYS: &[(&str, &[&str])] = &[
    ("", &["source", "contact"]),
    ("server", &["listen", "max_payload", "max_connections", "max_payloads", "stall_timeout"]),
    ("public", &["host", "port"]),
    ("privileges", &["user", "group"]),
    ("store", &["path"]),
    ("collector", &["path"]),
    ("log", &["file", "format", "level", "keep_days"]),
    (
        "tor",
        &[
            "name",
            "socks",
            "control",
            "control_password_file",
            "drop_guards_every",
            "drop_timeouts_every",
            "binary",
            "data",
            "torrc",
            "torrc_file",
            "authorities",
            "single_hop",
            "bootstrap_timeout",
            "guards",
            "guard_count",
        ],
    ),
    (
        "experiment",
        &[
            "name",
            "tor",
            "kind",
            "server",
            "onion_tor",
            "optimistic",
            "publish",
            "requests",
            "isolation",
            "size",
            "every",
            "offset",
            "timeout",
            "jitter",
        ],
    ),
];

/// In bytes: 1 TiB, beyond which a payload is surely a slip of the pen.
const LARGEST_PAYLOAD: u64 = 1 << 40;

/// Where finished days are listed unless the file says otherwise.
const COLLECTOR: &str = "/collector/";

/// How the paths of perfd's own pages begin.
pub const OWN_PAGES: &[&str] = &[
    "",
    "annotations",
    "annotations.csv",
    "annotations.json",
    "annotations.ndjson",
    "circuits.json",
    "events",
    "health",
    "metrics",
    "openapi.json",
    "pairs.json",
    "payload",
    "results",
    "results.csv",
    "results.har",
    "results.json",
    "results.ndjson",
    "results.tpf",
    "robots.txt",
    "schema",
    "stats",
    "tors",
    "upload",
    "urandom",
];

/// Where measurements are kept unless the file says otherwise.
const STORE: &str = "/var/lib/perfd/perfd.sqlite";

pub(super) const LONGEST_EVERY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// In bytes, so that file names and URLs made of it stay within theirs.
const LONGEST_NAME: usize = 64;

fn source(entry: &Entry) -> Option<String> {
    named(entry, "perfd", "letters, digits and hyphens", |b| b.is_ascii_alphanumeric() || b == b'-')
}

pub(super) fn name(entry: &Entry, such_as: &str) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let name = named(entry, such_as, "letters, digits, dots, hyphens and underscores", allowed)?;
    match name.as_str() {
        // In a URL or a path they would mean another place.
        "." | ".." => entry.wrong(format_args!("{} is no name; write one such as {}", quoted(&name), quoted(such_as))),
        _ => Some(name),
    }
}

fn named(entry: &Entry, such_as: &str, of: &str, allowed: impl Fn(u8) -> bool) -> Option<String> {
    let text = entry.string(such_as)?;
    if (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(allowed) {
        return Some(text.to_owned());
    }
    let shown = quoted(text);
    entry.wrong(format_args!("{shown} is no name; write 1 to {LONGEST_NAME} {of}, such as {}", quoted(such_as)))
}

fn contact(entry: &Entry) -> Option<String> {
    let text = entry.string("you@example.org")?;
    if text.contains(char::is_control) {
        return entry.wrong(format_args!("{} contains control characters; write it on one line", quoted(text)));
    }
    Some(text.to_owned())
}

fn server(section: &Section) -> Option<Server> {
    let everywhere = vec![(Ipv4Addr::UNSPECIFIED, 80).into(), (Ipv6Addr::UNSPECIFIED, 80).into()];
    let listen = section.optional("listen", everywhere, |entry| {
        let addresses = entry.list(r#"["0.0.0.0:80", "[::]:80"]"#, |item| item.address("0.0.0.0:80"))?;
        let mut seen = HashSet::new();
        match addresses.iter().find(|address| !seen.insert(**address)) {
            Some(twice) => entry.wrong(format_args!("\"{twice}\" is there twice; keep one of them")),
            None => Some(addresses),
        }
    });
    let most = |entry: &Entry| entry.integer(1..=10_000).map(|n| n as usize);
    let max_payload = section.optional("max_payload", 64 << 20, |entry| entry.size(1..=LARGEST_PAYLOAD));
    let max_connections = section.optional("max_connections", 512, most);
    let max_payloads = section.optional("max_payloads", 64, most);
    let stall_timeout = section.optional("stall_timeout", Duration::from_secs(60), |entry| {
        entry.duration(Duration::from_secs(1)..=Duration::from_secs(60 * 60))
    });
    Some(Server {
        listen: listen?,
        max_payload: max_payload?,
        max_connections: max_connections?,
        max_payloads: max_payloads?,
        stall_timeout: stall_timeout?,
    })
}

/// `Some(None)` is a section that is fine and gives no address.
fn public(section: &Section) -> Option<Option<PublicAddress>> {
    let host = section.optional("host", String::new(), |entry| {
        let host = entry.string("perf.example.org")?;
        match fault_of_host(host).filter(|_| !host.is_empty()) {
            Some(fault) => entry.wrong(fault),
            None => Some(host.to_owned()),
        }
    });
    let port = section.optional("port", 80, |entry| entry.integer(1..=65535).and_then(|port| u16::try_from(port).ok()));
    let (host, port) = (host?, port?);
    Some((!host.is_empty()).then_some(PublicAddress { host, port }))
}

/// `Some(None)` is a section that is fine and names nobody.
fn run_as(section: &Section) -> Option<Option<RunAs>> {
    let user = section.optional("user", String::new(), |entry| account(entry, "nobody"));
    let group = section.optional("group", String::new(), |entry| account(entry, "nogroup"));
    let (user, group) = (user?, group?);
    // An empty user is a decision; a missing one next to a group is an oversight that would leave perfd root.
    if !section.has("user") && !group.is_empty() {
        return section.wrong("user", r#"is missing, though there is a group; write user = "nobody""#);
    }
    let group = (!group.is_empty()).then_some(group);
    Some((!user.is_empty()).then_some(RunAs { user, group }))
}

fn account(entry: &Entry, such_as: &str) -> Option<String> {
    let text = entry.string(such_as)?;
    let (shown, such_as) = (quoted(text), quoted(such_as));
    if text == "root" || text.parse() == Ok(0_u64) {
        return entry.wrong(format_args!("{shown} is what perfd gives up; write another, such as {such_as}"));
    }
    if text.len() > 255 || text.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/' | ','))
    {
        return entry.wrong(format_args!("{shown} is no name of an account; write one such as {such_as}"));
    }
    Some(text.to_owned())
}

fn store(entry: &Entry) -> Option<PathBuf> {
    let path = path(entry, STORE)?;
    // SQLite has its own ideas about these.
    if path.is_empty() || path.starts_with(':') || path.starts_with("file:") {
        return entry.wrong(format_args!("{} is no path of a file; write one such as {}", quoted(path), quoted(STORE)));
    }
    Some(path.into())
}

fn path<'a>(entry: &'a Entry, such_as: &str) -> Option<&'a str> {
    let path = entry.string(such_as)?;
    let (shown, such_as) = (quoted(path), quoted(such_as));
    if path.contains(char::is_control) {
        return entry.wrong(format_args!("{shown} contains control characters; write a path such as {such_as}"));
    }
    if path.ends_with('/') {
        return entry.wrong(format_args!("{shown} is a folder; write a file in it, such as {such_as}"));
    }
    Some(path)
}

/// The path of a file that must be named.
pub(super) fn file_path(entry: &Entry, such_as: &str) -> Option<PathBuf> {
    match path(entry, such_as)? {
        "" => entry.wrong(format_args!("\"\" is no path of a file; write one such as {}", quoted(such_as))),
        path => Some(path.into()),
    }
}

/// An empty path publishes nothing.
fn collector(section: &Section) -> Option<Collector> {
    let path = section.optional("path", Some(COLLECTOR.to_owned()), |entry| {
        let path = entry.string(COLLECTOR)?;
        match fault_of_pages(path).filter(|_| !path.is_empty()) {
            Some(fault) => entry.wrong(format_args!("{} {fault}", quoted(path))),
            None => Some((!path.is_empty()).then(|| path.to_owned())),
        }
    });
    Some(Collector { path: path? })
}

/// What is wrong with a path of pages, and what to write; nothing where it is one, and none that perfd's own pages have.
fn fault_of_pages(path: &str) -> Option<String> {
    let inner = path.strip_prefix('/').and_then(|rest| rest.strip_suffix('/'));
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let right = |part: &str| !part.is_empty() && part.bytes().all(allowed) && !matches!(part, "." | "..");
    let such_as = quoted(COLLECTOR);
    match inner {
        Some(inner) if path.len() <= LONGEST_NAME && inner.split('/').all(right) => {
            let first = inner.split('/').next().unwrap_or_default();
            let own = OWN_PAGES.contains(&first);
            own.then(|| format!("begins like a page of perfd's own; write another, such as {such_as}"))
        }
        _ => Some(format!(
            "is no path; write one of letters, digits, dots, hyphens and underscores with a / at both ends, such as {such_as}"
        )),
    }
}

fn log(section: &Section) -> Option<Log> {
    let file = section.optional("file", None, |entry| {
        let path = path(entry, "/var/log/perfd/perfd.log")?;
        Some((!path.is_empty()).then(|| path.into()))
    });
    let format = section.optional("format", LogFormat::Text, |entry| entry.word(&LogFormat::WORDS));
    let level = section.optional("level", LogLevel::Info, |entry| entry.word(&LogLevel::WORDS));
    let keep_days = section.optional("keep_days", 30, |entry| entry.integer(1..=3650).map(|days| days as usize));
    Some(Log { file: file?, format: format?, level: level?, keep_days: keep_days? })
}

/// Old logs are removed by the beginning of their names, so no file that must stay may begin like the log.
fn takes_in_state(log: &Path, store: &Path) -> bool {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let state_files = [name(store), "payload.key".to_owned(), "perfd.lock".to_owned()];
    log.parent() == store.parent() && state_files.iter().any(|file| file.starts_with(&name(log)))
}

/// The names of several sections in their order, right or wrong; two of one name are a problem.
fn names<'a>(sections: &[Section<'a>]) -> Vec<&'a str> {
    let mut first_of = HashMap::new();
    let mut names = Vec::new();
    for section in sections {
        let Some(name) = section.text("name") else { continue };
        match first_of.get(name) {
            Some(first) => {
                let message = format!("{} is the name of {first} too; give each a name of its own", quoted(name));
                section.wrong::<()>("name", message);
            }
            None => {
                first_of.insert(name, &section.path);
                names.push(name);
            }
        }
    }
    names
}
