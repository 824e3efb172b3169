//! The `[[tor]]` sections: tors that somebody else runs, and tors that perfd starts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::quote::quoted;
use super::sections::{LONGEST_EVERY, file_path, name};
use super::torrc_line::{against_chosen_guards, fault_of_torrc_line, fits_a_torrc};
use super::walk::{Entry, Section};
use super::{Control, ControlAddress, GuardChoice, GuardSet, StartedTor, Tor, TorRun};
use crate::gate;

/// The tors, each that is right; `state` is perfd's state directory.
pub(super) fn tors(sections: &[Section], state: &Path) -> Vec<Option<Tor>> {
    let tors: Vec<_> = sections.iter().map(|section| tor(section, state)).collect();
    let mut first_of = HashMap::new();
    for (section, tor) in sections.iter().zip(&tors) {
        let Some(Tor { run: TorRun::Started(started), .. }) = tor else { continue };
        if let Some(first) = first_of.insert(started.data.clone(), &section.path) {
            let data = quoted(&started.data.to_string_lossy());
            section.wrong::<()>("data", format_args!("{data} is that of {first} too; give each a folder of its own"));
        }
    }
    tors
}

/// The keys of a tor that somebody else runs.
const OF_ADDRESS: [&str; 2] = ["control", "control_password_file"];

/// The keys of a tor that perfd starts.
const OF_STARTED: [&str; 8] =
    ["data", "torrc", "torrc_file", "authorities", "single_hop", "bootstrap_timeout", "guards", "guard_count"];

fn tor(section: &Section, state: &Path) -> Option<Tor> {
    let name = section.required("name", r#""tor""#, |entry| name(entry, "tor"));
    let run = match (section.has("socks"), section.has("binary")) {
        (true, false) => of_address(section),
        (false, true) => of_started(section, state).map(TorRun::Started),
        (true, true) => {
            let remedy = "keep socks for a tor that runs already, or binary for one that perfd is to start";
            section.wrong("binary", format_args!("is there beside socks; {remedy}"))
        }
        (false, false) => {
            let remedy = "or binary = \"/usr/bin/tor\" for a tor that perfd is to start";
            section.wrong("socks", format_args!("is missing; write socks = \"127.0.0.1:9050\", {remedy}"))
        }
    };
    let rhythm =
        |key| section.optional(key, None, |entry| entry.duration(Duration::from_secs(60)..=LONGEST_EVERY).map(Some));
    let (drop_guards_every, drop_timeouts_every) = (rhythm("drop_guards_every"), rhythm("drop_timeouts_every"));
    if section.has("socks") && !section.has("binary") && !section.has("control") {
        for key in ["drop_guards_every", "drop_timeouts_every"].into_iter().filter(|key| section.has(key)) {
            let remedy = "write control = \"127.0.0.1:9051\", its ControlPort";
            section.wrong::<()>(key, format_args!("needs control of this tor; {remedy}"));
        }
    }
    Some(Tor {
        name: name?,
        run: run?,
        drop_guards_every: drop_guards_every?,
        drop_timeouts_every: drop_timeouts_every?,
    })
}

fn of_address(section: &Section) -> Option<TorRun> {
    foreign(section, &OF_STARTED, "is for a tor that perfd starts; leave it out, or write binary instead of socks");
    let socks = section.required("socks", r#""127.0.0.1:9050""#, |entry| match entry.address("127.0.0.1:9050")? {
        address if address.port() == 0 => {
            entry.wrong(format_args!("\"{address}\" has port 0; write tor's SocksPort, such as \"127.0.0.1:9050\""))
        }
        address => Some::<SocketAddr>(address),
    });
    let address = section.optional("control", None, |entry| control_address(entry).map(Some));
    let password_file = section
        .optional("control_password_file", None, |entry| file_path(entry, "/etc/perfd/control-password").map(Some));
    if section.has("control_password_file") && !section.has("control") {
        let remedy = "write control = \"127.0.0.1:9051\" too, its ControlPort";
        return section.wrong("control_password_file", format_args!("is of no use without control; {remedy}"));
    }
    let (address, password_file) = (address?, password_file?);
    Some(TorRun::Address { socks: socks?, control: address.map(|address| Control { address, password_file }) })
}

fn control_address(entry: &Entry) -> Option<ControlAddress> {
    const SUCH_AS: &str = "127.0.0.1:9051";
    let text = entry.string(SUCH_AS)?;
    let Some(path) = text.strip_prefix("unix:") else {
        return match entry.address(SUCH_AS)? {
            address if address.port() == 0 => {
                entry.wrong(format_args!("\"{address}\" has port 0; write tor's ControlPort, such as \"{SUCH_AS}\""))
            }
            address => Some(ControlAddress::Tcp(address)),
        };
    };
    if !path.starts_with('/') || path.contains(char::is_control) || path.ends_with('/') {
        let remedy = "write unix: and tor's ControlSocket, such as \"unix:/run/tor/control\"";
        return entry.wrong(format_args!("{} has no absolute path of a socket; {remedy}", quoted(text)));
    }
    Some(ControlAddress::Unix(path.into()))
}

fn of_started(section: &Section, state: &Path) -> Option<StartedTor> {
    foreign(section, &OF_ADDRESS, "is for a tor that runs already; leave it out, for perfd controls those it starts");
    let binary = section.required("binary", r#""/usr/bin/tor""#, |entry| {
        let path = file_path(entry, "/usr/bin/tor")?;
        match path.to_string_lossy().contains('/') {
            true => Some(path),
            false => entry.wrong(format_args!("{} is no path; write one such as \"/usr/bin/tor\"", quoted_path(&path))),
        }
    });
    let in_state = state.join(format!("tor-{}", section.text("name").unwrap_or_default()));
    let data = section.optional("data", in_state, data);
    let authorities = section.optional("authorities", Vec::new(), |entry| entry.list(AUTHORITIES, authority));
    let private = section.has("authorities");
    let torrc = section.optional("torrc", Vec::new(), |entry| {
        entry.list(r#"["UseEntryGuards 0"]"#, |item| {
            let line = item.string("UseEntryGuards 0")?;
            match fault_of_torrc_line(line, private) {
                Some(fault) => item.wrong(fault),
                None => Some(line.to_owned()),
            }
        })
    });
    let torrc_file = section.optional("torrc_file", None, |entry| file_path(entry, "/etc/perfd/torrc").map(Some));
    let single_hop = section.optional("single_hop", false, |entry| entry.boolean());
    let bootstrap_timeout = section.optional("bootstrap_timeout", Duration::from_secs(5 * 60), |entry| {
        entry.duration(Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60))
    });
    let guards = guards(section, torrc.as_deref().unwrap_or_default());
    Some(StartedTor {
        binary: binary?,
        data: data?,
        torrc: torrc?,
        torrc_file: torrc_file?,
        authorities: authorities?,
        single_hop: single_hop?,
        bootstrap_timeout: bootstrap_timeout?,
        guards: guards?,
    })
}

const AUTHORITIES: &str = r#"["authority orport=5000 no-v2 v3ident=… 127.77.0.1:7000 …"]"#;

fn authority(entry: &Entry) -> Option<String> {
    let value = entry.string("authority orport=5000 no-v2 v3ident=… 127.77.0.1:7000 …")?;
    // A comment would leave less than is written.
    if value.contains('#') || value.trim() != value || gate::check_line(&format!("DirAuthority {value}")).is_err() {
        let remedy = "write what `perfd testnet status` prints behind the word authority";
        return entry.wrong(format_args!("{} is no authority on a loopback address; {remedy}", quoted(value)));
    }
    Some(value.to_owned())
}

fn data(entry: &Entry) -> Option<PathBuf> {
    const SUCH_AS: &str = "/var/lib/perfd/tor-a";
    let text = entry.string(SUCH_AS)?;
    let remedy = format_args!("write the path of a folder for this tor alone, such as {}", quoted(SUCH_AS));
    if text.trim_matches(['/', '.']).is_empty() {
        return entry.wrong(format_args!("{} is no folder for a tor; {remedy}", quoted(text)));
    }
    if !fits_a_torrc(text) {
        let what = "contains control characters, or what a torrc can't hold in a path";
        return entry.wrong(format_args!("{} {what}; {remedy}", quoted(text)));
    }
    Some(text.trim_end_matches('/').into())
}

/// `Some(None)` where the guards are left to tor.
fn guards(section: &Section, torrc: &[String]) -> Option<Option<GuardSet>> {
    let choice = section.optional("guards", None, |entry| entry.word(&GuardChoice::WORDS).map(Some));
    let count = section.optional("guard_count", 3, |entry| entry.integer(1..=100));
    if section.has("guard_count") && !section.has("guards") {
        let remedy = "write guards = \"slowest\", \"fastest\" or \"random\" too";
        return section.wrong("guard_count", format_args!("is of no use without guards; {remedy}"));
    }
    if section.has("guards")
        && let Some(option) = torrc.iter().find_map(|line| against_chosen_guards(line))
    {
        return section.wrong("guards", format_args!("goes against {option} in torrc; keep one of the two"));
    }
    let (choice, count) = (choice?, count?);
    Some(choice.map(|choice| GuardSet { choice, count }))
}

fn foreign(section: &Section, keys: &[&str], message: &str) {
    for key in keys.iter().filter(|key| section.has(key)) {
        section.wrong::<()>(key, message);
    }
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}
