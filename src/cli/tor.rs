//! `perfd tor`: asks a running perfd how its tors are doing.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::Args;
use serde::Deserialize;

use super::ask::{self, ServiceArgs};
use super::exit::{Exit, FAILED, OrExit};
use super::output::{self, columns};
use crate::circuit::book::OpenCircuit;
use crate::circuit::{BuildTimeout, Relay, TorEvent};
use crate::clock::UnixMicros;
use crate::tor::{Condition, OnionStatus, TorStatus};

/// Show how the tors of a running perfd are doing
///
/// Without a name a line each, with one all that perfd knows of that tor: its guards, its open circuits, what
/// happened to it last. Circuits that are, or may be, other programs' are counted and not shown.
#[derive(Args, Debug)]
pub struct TorArgs {
    /// Only this one, by its name in the configuration, and all that is known of it
    name: Option<String>,
    #[command(flatten)]
    service: ServiceArgs,
    /// Print the service's answer: JSON
    #[arg(long)]
    json: bool,
}

#[derive(Deserialize)]
struct Many {
    tors: Vec<TorStatus>,
}

#[derive(Deserialize)]
struct One {
    #[serde(flatten)]
    status: TorStatus,
    /// The newest first.
    events: Vec<TorEvent>,
}

/// Asks and prints.
pub fn run(args: TorArgs) -> Result<(), Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    runtime.block_on(async {
        let path: Vec<&str> = ["tors"].into_iter().chain(args.name.as_deref()).collect();
        let response = ask::get(&args.service, &path, &[]).await?;
        if args.json {
            return ask::copy(response).await;
        }
        let text = match args.name {
            None => table(&ask::read::<Many>(response).await?.tors),
            Some(_) => whole(&ask::read(response).await?),
        };
        output::print(output::harmless(&text)).map(drop)
    })
}

const HEADINGS: [&str; 7] =
    ["NAME", "CONDITION", "VERSION", "BOOTSTRAP", "GUARD", "CIRCUITS", "CONNECTED SINCE / PROBLEM"];

/// Of so many characters is a problem in the table; `perfd tor NAME` has all of it.
const PROBLEM: usize = 100;

/// A line of headings and one for each tor.
fn table(tors: &[TorStatus]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned).to_vec()];
    rows.extend(tors.iter().map(|tor| {
        let circuits = match tor.other_circuits {
            0 => tor.circuits.len().to_string(),
            others => format!("{}, {others} of others", tor.circuits.len()),
        };
        let last = match (&tor.problem, tor.connected_since) {
            (Some(problem), _) => shortened(problem),
            (None, since) => since.map_or("-".to_owned(), second),
        };
        vec![
            tor.name.clone(),
            word(tor.condition).to_owned(),
            tor.version.clone().unwrap_or_else(dash),
            tor.bootstrap.as_ref().map_or_else(dash, |bootstrap| format!("{} %", bootstrap.percent)),
            guard_in_use(&tor.guards).unwrap_or_else(dash),
            if tor.connection == 0 { dash() } else { circuits },
            last,
        ]
    }));
    columns(&rows)
}

/// A tor, a fact a line, and below that its guards, circuits and events.
fn whole(One { status: tor, events }: &One) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(text, "{name:15}  {value}");
        }
    };
    fact("name", Some(tor.name.clone()));
    fact("condition", Some(word(tor.condition).to_owned()));
    fact("problem", tor.problem.clone());
    fact("version", tor.version.clone());
    fact("started", tor.started_by_perfd.then(|| process(tor)));
    fact("socks", tor.socks.map(|socks| socks.to_string()));
    fact(
        "connected",
        tor.connected_since.map(|since| {
            format!("since {}, connection {}, {} lines came", second(since), tor.connection, tor.control_lines)
        }),
    );
    fact(
        "bootstrap",
        tor.bootstrap.as_ref().map(|bootstrap| {
            format!(
                "{} % ({}): {}, since {}",
                bootstrap.percent,
                bootstrap.tag,
                bootstrap.summary,
                second(bootstrap.since)
            )
        }),
    );
    fact("transport", tor.transport.clone());
    fact("build timeout", tor.build_timeout.as_ref().map(build_timeout));
    fact("onion service", tor.onion.as_ref().map(onion));
    let _ = writeln!(text, "\nguards, in tor's order: {}", count(tor.guards.len()));
    for guard in &tor.guards {
        let _ = writeln!(text, "  {guard}");
    }
    put_circuits(&mut text, tor);
    let _ = writeln!(text, "\nlast events, the newest first: {}", count(events.len()));
    let rows =
        events.iter().map(|event| vec![format!("  {}", second(event.at)), event.what.clone(), event.detail.clone()]);
    text + &columns(&rows.collect::<Vec<_>>())
}

fn process(tor: &TorStatus) -> String {
    let times = if tor.starts == 1 { "once".to_owned() } else { format!("{} times", tor.starts) };
    tor.pid.map_or(format!("by perfd, {times}, not running"), |pid| format!("by perfd, {times}, pid {pid}"))
}

fn put_circuits(text: &mut String, tor: &TorStatus) {
    let mut by_purpose: BTreeMap<&str, usize> = BTreeMap::new();
    for circuit in &tor.circuits {
        *by_purpose.entry(circuit.purpose.as_str()).or_default() += 1;
    }
    let purposes: Vec<_> = by_purpose.iter().map(|(purpose, count)| format!("{count} {purpose}")).collect();
    let purposes = if purposes.is_empty() { count(0) } else { purposes.join(", ") };
    let others = if tor.other_circuits == 0 { String::new() } else { format!("; {} of others", tor.other_circuits) };
    let _ = writeln!(text, "\nopen circuits: {purposes}{others}");
    let row = |circuit: &OpenCircuit| {
        let path: Vec<_> = circuit.path.iter().map(relay).collect();
        let path = if path.is_empty() { dash() } else { path.join(">") };
        let conflux = circuit.conflux.as_ref().map_or(String::new(), |set| format!("conflux {set}"));
        vec![format!("  {}", circuit.id), circuit.status.clone(), circuit.purpose.clone(), path, conflux]
    };
    text.push_str(&columns(&tor.circuits.iter().map(row).collect::<Vec<_>>()));
}

fn word(condition: Condition) -> &'static str {
    match condition {
        Condition::Uncontrolled => "uncontrolled",
        Condition::Down => "down",
        Condition::NoControl => "no control",
        Condition::Bootstrapping => "bootstrapping",
        Condition::Ready => "ready",
    }
}

/// The first guard that tor calls up: `$FINGERPRINT~nickname up`.
fn guard_in_use(guards: &[String]) -> Option<String> {
    let relay = guards.iter().find_map(|guard| guard.strip_suffix(" up"))?;
    Some(relay.split_once('~').map_or_else(|| relay.chars().take(9).collect(), |(_, nickname)| nickname.to_owned()))
}

fn relay(relay: &Relay) -> String {
    let name = relay.nickname.clone().filter(|nickname| !nickname.is_empty());
    name.unwrap_or_else(|| format!("${}", relay.fingerprint.chars().take(8).collect::<String>()))
}

fn build_timeout(timeout: &BuildTimeout) -> String {
    let quantile = timeout.quantile.map_or(String::new(), |quantile| format!(", quantile {quantile}"));
    let learning = if timeout.learning == Some(true) { ", still learning" } else { "" };
    format!("{} ms{quantile}{learning}", timeout.timeout_ms)
}

fn onion(onion: &OnionStatus) -> String {
    let state = match (onion.published, onion.uploaded) {
        (true, Some(uploaded)) => format!("published, uploaded first at {}", second(uploaded)),
        (true, None) => "published".to_owned(),
        (false, _) => format!("not published yet, asked for at {}", second(onion.created)),
    };
    format!("{}.onion, {state}", onion.address)
}

fn count(number: usize) -> String {
    if number == 0 { "none".to_owned() } else { number.to_string() }
}

fn dash() -> String {
    "-".to_owned()
}

fn shortened(text: &str) -> String {
    let short: String = text.chars().take(PROBLEM).collect();
    if short.len() < text.len() { format!("{short}…") } else { short }
}

/// A moment to the second.
fn second(moment: UnixMicros) -> String {
    let text = moment.to_string().replacen('T', " ", 1);
    text.split_once('.').map_or(text.clone(), |(seconds, _)| seconds.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tor::Bootstrap;

    fn ready() -> TorStatus {
        let hop =
            |n: u8| Relay { fingerprint: n.to_string().repeat(40), nickname: (n < 3).then(|| format!("relay{n}")) };
        let circuit = |id, purpose: &str| OpenCircuit {
            id,
            status: "BUILT".to_owned(),
            purpose: purpose.to_owned(),
            path: vec![hop(1), hop(2), hop(3)],
            conflux: (id == 7).then(|| "A1B2".to_owned()),
        };
        let at = UnixMicros(1_795_341_600_000_000);
        let (tag, summary) = ("done".to_owned(), "Done".to_owned());
        TorStatus {
            name: "a".to_owned(),
            started_by_perfd: true,
            condition: Condition::Ready,
            problem: None,
            version: Some("0.4.9.11".to_owned()),
            pid: Some(77),
            starts: 2,
            socks: Some(([127, 0, 0, 1], 9050).into()),
            connection: 3,
            connected_since: Some(at),
            control_lines: 400,
            bootstrap: Some(Bootstrap { percent: 100, tag, summary, since: at }),
            transport: Some("obfs4".to_owned()),
            guards: ["$AA~gone down", "$BB~relay1 up", "$CC~relay2 up"].map(str::to_owned).to_vec(),
            build_timeout: Some(BuildTimeout { timeout_ms: 1500, quantile: Some(0.8), learning: Some(true) }),
            onion: Some(OnionStatus { address: "abc".to_owned(), published: true, created: at, uploaded: Some(at) }),
            circuits: vec![circuit(5, "GENERAL"), circuit(7, "CONFLUX_LINKED"), circuit(8, "GENERAL")],
            other_circuits: 2,
        }
    }

    fn down() -> TorStatus {
        TorStatus {
            name: "longer".to_owned(),
            started_by_perfd: false,
            condition: Condition::Down,
            problem: Some("no connection\u{1b}[2J".to_owned()),
            version: None,
            pid: None,
            starts: 0,
            connection: 0,
            connected_since: None,
            control_lines: 0,
            bootstrap: None,
            transport: None,
            guards: Vec::new(),
            build_timeout: None,
            onion: None,
            circuits: Vec::new(),
            other_circuits: 0,
            ..ready()
        }
    }

    #[test]
    fn each_tor_has_a_line() {
        let expected = "\
NAME    CONDITION  VERSION   BOOTSTRAP  GUARD   CIRCUITS        CONNECTED SINCE / PROBLEM
a       ready      0.4.9.11  100 %      relay1  3, 2 of others  2026-11-22 10:00:00
longer  down       -         -          -       -               no connection?[2J
";
        assert_eq!(output::harmless(&table(&[ready(), down()])), expected);
    }

    #[test]
    fn of_one_tor_all_is_told() {
        let event = |second: i64, what: &str, detail: &str| TorEvent {
            tor: "a".to_owned(),
            at: UnixMicros(1_795_341_600_000_000 + second * 1_000_000),
            connection: 3,
            what: what.to_owned(),
            detail: detail.to_owned(),
        };
        let events = vec![event(9, "reloaded", ""), event(1, "connected", "tor 0.4.9.11")];
        let expected = "\
name             a
condition        ready
version          0.4.9.11
started          by perfd, 2 times, pid 77
socks            127.0.0.1:9050
connected        since 2026-11-22 10:00:00, connection 3, 400 lines came
bootstrap        100 % (done): Done, since 2026-11-22 10:00:00
transport        obfs4
build timeout    1500 ms, quantile 0.8, still learning
onion service    abc.onion, published, uploaded first at 2026-11-22 10:00:00

guards, in tor's order: 3
  $AA~gone down
  $BB~relay1 up
  $CC~relay2 up

open circuits: 1 CONFLUX_LINKED, 2 GENERAL; 2 of others
  5  BUILT  GENERAL         relay1>relay2>$33333333
  7  BUILT  CONFLUX_LINKED  relay1>relay2>$33333333  conflux A1B2
  8  BUILT  GENERAL         relay1>relay2>$33333333

last events, the newest first: 2
  2026-11-22 10:00:09  reloaded
  2026-11-22 10:00:01  connected  tor 0.4.9.11
";
        assert_eq!(whole(&One { status: ready(), events }), expected);
        let nothing = whole(&One { status: down(), events: Vec::new() });
        assert!(
            nothing.ends_with(
                "guards, in tor's order: none\n\nopen circuits: none\n\nlast events, the newest first: none\n"
            )
        );
    }

    #[test]
    fn what_the_service_sends_is_read_back() {
        let sent = serde_json::to_string(&ready()).unwrap();
        assert_eq!(serde_json::from_str::<TorStatus>(&sent).unwrap(), ready());
    }
}
