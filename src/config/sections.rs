//! What each section of the file may hold: keys, defaults, ranges, and the rules between them.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::host::fault_of_host;
use super::quote::quoted;
use super::units::{LONGEST, format_duration, format_size};
use super::walk::{Entry, Section};
use super::{
    Config, Experiment, Isolation, Log, LogFormat, LogLevel, PublicAddress, RunAs, Server, ServerChoice, Tor, TorRun,
};
use crate::measurement::Kind;

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
    let store = store_section.optional("path", PathBuf::from("/var/lib/perfd/perfd.sqlite"), store);
    let log_section = top.section("log");
    let log = log(&log_section);
    if let (Some(store), Some(Log { file: Some(file), .. })) = (&store, &log)
        && takes_in_state(file, store)
    {
        let remedy = "write one in another folder, such as \"/var/log/perfd/perfd.log\"";
        let _: Option<()> = log_section.wrong("file", format!("begins the name of a file of the store's; {remedy}"));
    }

    let tor_sections = top.sections("tor");
    let names = tor_sections.as_ref().map(|sections| names(sections));
    let tors = tor_sections.map(|sections| sections.iter().map(tor).collect::<Vec<_>>());

    let experiment_sections = top.sections("experiment");
    experiment_sections.as_ref().map(|sections| self::names(sections));
    let max_payload = server.as_ref().map(|server| server.max_payload);
    let known_tors = names.unwrap_or_default();
    let experiment = |section: &Section| experiment(section, &known_tors, max_payload);
    let experiments = experiment_sections.map(|sections| sections.iter().map(experiment).collect::<Vec<_>>());

    Some(Config {
        source: source?,
        contact: contact?,
        server: server?,
        public: public?,
        run_as: run_as?,
        store: store?,
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
    ("log", &["file", "format", "level", "keep_days"]),
    ("tor", &["name", "socks"]),
    ("experiment", &["name", "tor", "size", "every", "offset", "timeout", "jitter"]),
];

/// In bytes: 1 TiB, beyond which a payload is surely a slip of the pen.
const LARGEST_PAYLOAD: u64 = 1 << 40;

/// In bytes: Torperf's FILESIZE is an int32.
const LARGEST_EXPERIMENT: u64 = (1 << 31) - 1;

const LONGEST_EVERY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// In bytes, so that file names and URLs made of it stay within theirs.
const LONGEST_NAME: usize = 64;

fn source(entry: &Entry) -> Option<String> {
    named(entry, "perfd", "letters, digits and hyphens", |b| b.is_ascii_alphanumeric() || b == b'-')
}

fn name(entry: &Entry, such_as: &str) -> Option<String> {
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
    const SUCH_AS: &str = "/var/lib/perfd/perfd.sqlite";
    let path = path(entry, SUCH_AS)?;
    // SQLite has its own ideas about these.
    if path.is_empty() || path.starts_with(':') || path.starts_with("file:") {
        return entry.wrong(format_args!(
            "{} is no path of a file; write one such as {}",
            quoted(path),
            quoted(SUCH_AS)
        ));
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

fn tor(section: &Section) -> Option<Tor> {
    let name = section.required("name", r#""tor""#, |entry| name(entry, "tor"));
    let socks = section.required("socks", r#""127.0.0.1:9050""#, |entry| match entry.address("127.0.0.1:9050")? {
        address if address.port() == 0 => {
            entry.wrong(format_args!("\"{address}\" has port 0; write tor's SocksPort, such as \"127.0.0.1:9050\""))
        }
        address => Some::<SocketAddr>(address),
    });
    let run = TorRun::Address { socks: socks?, control: None };
    Some(Tor { name: name?, run, drop_guards_every: None, drop_timeouts_every: None })
}

fn experiment(section: &Section, tors: &[&str], max_payload: Option<u64>) -> Option<Experiment> {
    let name = section.required("name", r#""50kib""#, |entry| name(entry, "50kib"));
    let first_tor = tors.first().copied().unwrap_or("tor");
    let tor = section.required("tor", &quoted(first_tor), |entry| {
        let tor = entry.string(first_tor)?;
        // Without a single tor, that is the problem, and it is noted.
        if !tors.is_empty() && !tors.contains(&tor) {
            let known = tors.iter().map(|tor| quoted(tor)).collect::<Vec<_>>().join(", ");
            return entry.wrong(format_args!("there is no tor {}; write one of {known}", quoted(tor)));
        }
        Some(tor.to_owned())
    });
    let size = section.required("size", r#""50 KiB""#, |entry| {
        let size = entry.size(1..=LARGEST_EXPERIMENT)?;
        match max_payload {
            Some(most) if size > most => {
                let (size, most) = (format_size(size), format_size(most));
                entry.wrong(format_args!(
                    "\"{size}\" is more than server.max_payload \"{most}\"; make it at most {most}, or raise that"
                ))
            }
            _ => Some(size),
        }
    });
    let every = section
        .required("every", r#""5 min""#, |entry| entry.duration(Duration::from_secs(1)..=LONGEST_EVERY))
        .map(|every| (every, format_duration(every)));
    let any = |entry: &Entry| entry.duration(Duration::ZERO..=LONGEST);
    let offset = section.optional("offset", Duration::ZERO, any);
    let timeout =
        section.required("timeout", r#""295 s""#, |entry| entry.duration(Duration::from_millis(1)..=LONGEST_EVERY));
    let jitter = section.optional("jitter", Duration::ZERO, any);

    if let (Some((every, every_text)), Some(offset)) = (&every, offset)
        && offset >= *every
    {
        let offset = format_duration(offset);
        let message = format!("\"{offset}\" is not less than every \"{every_text}\"; make it less than {every_text}");
        section.wrong::<()>("offset", message);
    }
    if let (Some((every, every_text)), Some(timeout), Some(jitter)) = (&every, timeout, jitter)
        && timeout.saturating_add(jitter) > *every
    {
        let (timeout, jitter) = (format_duration(timeout), format_duration(jitter));
        let message = format!(
            "\"{timeout}\" and jitter \"{jitter}\" are together longer than every \"{every_text}\"; \
             make timeout and jitter together at most {every_text}"
        );
        section.wrong::<()>("timeout", message);
    }
    Some(Experiment {
        name: name?,
        tors: vec![tor?],
        kind: Kind::Download,
        server: ServerChoice::Auto,
        onion_tor: None,
        optimistic: false,
        requests: 1,
        isolation: Isolation::Each,
        size: size?,
        every: every?.0,
        offset: offset?,
        timeout: timeout?,
        jitter: jitter?,
    })
}
