//! The `[[experiment]]` sections.

use std::collections::HashSet;
use std::time::Duration;

use super::quote::quoted;
use super::sections::{LONGEST_EVERY, name};
use super::units::{LONGEST, format_duration, format_size};
use super::walk::{Entry, Section};
use super::{Experiment, Isolation, ServerChoice, StartedTor, Tor, TorRun};
use crate::measurement::Kind;

/// What an experiment is checked against.
pub(super) struct Known<'a> {
    /// The names of all tors, right or wrong.
    pub(super) names: Vec<&'a str>,
    /// The tors, each that is right.
    pub(super) tors: &'a [Option<Tor>],
    /// The server's, if that is right.
    pub(super) max_payload: Option<u64>,
}

/// In bytes: Torperf's FILESIZE is an int32.
const LARGEST_EXPERIMENT: u64 = (1 << 31) - 1;

pub(super) fn experiment(section: &Section, known: &Known) -> Option<Experiment> {
    let name = section.required("name", r#""50kib""#, |entry| name(entry, "50kib"));
    let tors = section.required("tor", &quoted(known.first()), |entry| tors(entry, known));
    let kind =
        section.optional("kind", Kind::Download, |entry| entry.word(&Kind::ALL.map(|(kind, word)| (word, kind))));
    let server = section.optional("server", ServerChoice::Auto, |entry| entry.word(&ServerChoice::WORDS));
    let onion_tor = section.optional("onion_tor", None, |entry| onion_tor(entry, known).map(Some));
    let optimistic = section.optional("optimistic", false, |entry| entry.boolean());
    let publish = section.optional("publish", true, |entry| entry.boolean());
    let requests = section.optional("requests", 1, |entry| entry.integer(1..=100));
    let isolation = section.optional("isolation", Isolation::Each, |entry| entry.word(&Isolation::WORDS));
    let size = section.required("size", r#""50 KiB""#, |entry| size(entry, known.max_payload));
    let every = section
        .required("every", r#""5 min""#, |entry| entry.duration(Duration::from_secs(1)..=LONGEST_EVERY))
        .map(|every| (every, format_duration(every)));
    let any = |entry: &Entry| entry.duration(Duration::ZERO..=LONGEST);
    let offset = section.optional("offset", Duration::ZERO, any);
    let timeout =
        section.required("timeout", r#""295 s""#, |entry| entry.duration(Duration::from_millis(1)..=LONGEST_EVERY));
    let jitter = section.optional("jitter", Duration::ZERO, any);

    if let (Some(server), Some(tors), Some(onion_tor)) = (server, &tors, &onion_tor) {
        check_onion(section, known, server, tors, onion_tor.as_deref());
    }
    if let (Some((every, every_text)), Some(offset)) = (&every, offset)
        && offset >= *every
    {
        let offset = format_duration(offset);
        let message = format!("\"{offset}\" is not less than every \"{every_text}\"; make it less than {every_text}");
        section.wrong::<()>("offset", message);
    }
    if let (Some((every, every_text)), Some(timeout), Some(jitter), Some(tors), Some(requests)) =
        (&every, timeout, jitter, &tors, requests)
    {
        let runs = Runs { requests, tors: tors.len() };
        if runs.times(timeout).saturating_add(jitter) > *every {
            let (timeout, jitter) = (format_duration(timeout), format_duration(jitter));
            let message = format!(
                "\"{timeout}\"{runs} and jitter \"{jitter}\" are together longer than every \"{every_text}\"; \
                 make timeout{runs} and jitter together at most {every_text}"
            );
            section.wrong::<()>("timeout", message);
        }
    }
    Some(Experiment {
        name: name?,
        tors: tors?,
        kind: kind?,
        server: server?,
        onion_tor: onion_tor?,
        optimistic: optimistic?,
        publish: publish?,
        requests: requests?,
        isolation: isolation?,
        size: size?,
        every: every?.0,
        offset: offset?,
        timeout: timeout?,
        jitter: jitter?,
    })
}

fn tors(entry: &Entry, known: &Known) -> Option<Vec<String>> {
    let tors = entry.one_or_list(&quoted(known.first()), |item| {
        let tor = known_tor(item, known)?;
        if let Some(Tor { run: TorRun::Started(StartedTor { single_hop: true, .. }), .. }) = known.tor(tor) {
            let remedy = "write another here, or this one as onion_tor";
            return item.wrong(format_args!("{} is single_hop, and has no SocksPort; {remedy}", quoted(tor)));
        }
        Some(tor.to_owned())
    })?;
    let mut seen = HashSet::new();
    match tors.iter().find(|tor| !seen.insert(tor.as_str())) {
        Some(twice) => entry.wrong(format_args!("{} is there twice; keep one of them", quoted(twice))),
        None => Some(tors),
    }
}

fn known_tor<'a>(entry: &'a Entry, known: &Known) -> Option<&'a str> {
    let tor = entry.string(known.first())?;
    // Without a single tor, that is the problem, and it is noted.
    if !known.names.is_empty() && !known.names.contains(&tor) {
        let names = known.names.iter().map(|tor| quoted(tor)).collect::<Vec<_>>().join(", ");
        return entry.wrong(format_args!("there is no tor {}; write one of {names}", quoted(tor)));
    }
    Some(tor)
}

fn onion_tor(entry: &Entry, known: &Known) -> Option<String> {
    let tor = known_tor(entry, known)?;
    if known.is_without_control(tor) {
        let remedy = format_args!("write control = \"127.0.0.1:9051\" below that tor, or name another");
        return entry.wrong(format_args!("perfd has no control of {}; {remedy}", quoted(tor)));
    }
    Some(tor.to_owned())
}

/// What publishes an onion service must be under control. Where it is left to perfd how its server is reached, it
/// says at run time that there is no way.
fn check_onion(section: &Section, known: &Known, server: ServerChoice, tors: &[String], onion_tor: Option<&str>) {
    match (server, onion_tor) {
        (ServerChoice::Exit, Some(_)) => {
            let remedy = "leave it out, or write server = \"onion\"";
            section.wrong::<()>("onion_tor", format_args!("is of no use with server = \"exit\"; {remedy}"));
        }
        (ServerChoice::Onion, None) => {
            if let Some(tor) = tors.iter().find(|tor| known.is_without_control(tor)) {
                let remedy = "write control = \"127.0.0.1:9051\" below that tor, or onion_tor = one that has control";
                let tor = quoted(tor);
                section.wrong::<()>("server", format_args!("perfd has no control of {tor} to publish with; {remedy}"));
            }
        }
        _ => {}
    }
}

fn size(entry: &Entry, max_payload: Option<u64>) -> Option<u64> {
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
}

impl<'a> Known<'a> {
    /// An example for who names none.
    fn first(&self) -> &'a str {
        self.names.first().copied().unwrap_or("tor")
    }

    fn tor(&self, name: &str) -> Option<&Tor> {
        self.tors.iter().flatten().find(|tor| tor.name == name)
    }

    /// Not so where the tor is wrong already.
    fn is_without_control(&self, name: &str) -> bool {
        self.tor(name).is_some_and(|tor| !tor.has_control())
    }
}

/// The runs of a slot, displayed as what a timeout is multiplied by: nothing for a single one.
struct Runs {
    requests: u32,
    tors: usize,
}

impl Runs {
    fn times(&self, timeout: Duration) -> Duration {
        timeout.saturating_mul(self.requests).saturating_mul(u32::try_from(self.tors).unwrap_or(u32::MAX))
    }
}

impl std::fmt::Display for Runs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.requests, self.tors) {
            (1, 1) => Ok(()),
            (requests, tors) => write!(f, " × {requests} requests × {tors} tors"),
        }
    }
}
