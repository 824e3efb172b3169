//! Conversations with a tor that follows a script, by a clock that stands still while nothing happens.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::time::timeout;

use super::*;
use crate::clock::SteeredClock;
use crate::config::{self, Control, GuardChoice};

const HOUR: Duration = Duration::from_secs(3600);

/// Where commands are due each hour at 45 s past the full one.
const START: &str = "2026-11-24T09:59:30Z";

/// What was asked of tor, and when.
type Asked = Vec<(UnixMicros, String)>;

/// What a conversation was, up to the first command after the time that it was given.
struct Told {
    asked: Asked,
    /// What was recorded as having happened to the tor, and the detail.
    events: Vec<(String, String)>,
    log: String,
    /// Why it ended before its time, if it did.
    ended: Option<String>,
}

impl Told {
    /// The commands that begin so, and the times at which they came.
    fn asked(&self, beginning: &str) -> Vec<(String, &str)> {
        let asked = self.asked.iter().filter(|(_, command)| command.starts_with(beginning));
        asked.map(|(at, command)| (at.to_string(), command.as_str())).collect()
    }

    fn times(&self, command: &str) -> Vec<String> {
        self.asked(command).into_iter().map(|(at, _)| at).collect()
    }

    fn details(&self, what: &str) -> Vec<&str> {
        self.events.iter().filter(|(is, _)| is == what).map(|(_, detail)| detail.as_str()).collect()
    }
}

/// Converses for so long with a tor that gives these answers, or the right ones for `None`. The script is asked
/// before each answer; what it does besides, to the clock or to the tor, is done then.
async fn converse_for(
    time: Duration,
    config: config::Tor,
    mut script: impl FnMut(&str, &SteeredClock, &Tor) -> Option<String>,
) -> Told {
    let steered = SteeredClock::starting_at(moment(START));
    let clock = Clock::Steered(steered.clone());
    let tor = Tor::new(config, None);
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(log.reopen().unwrap()).finish();
    let _logged = tracing::subscriber::set_default(subscriber);
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let (commands, driver) = control::start(ours);
    let mut asked = Vec::new();
    let until = tokio::time::Instant::now() + time;
    let peer = async {
        let mut stream = BufReader::new(theirs);
        loop {
            let mut command = String::new();
            stream.read_line(&mut command).await.unwrap();
            if tokio::time::Instant::now() > until {
                return;
            }
            let command = command.trim_end().to_owned();
            let answer = script(&command, &steered, &tor).unwrap_or_else(|| right_answer(&command));
            asked.push((steered.now(), command));
            stream.write_all(answer.replace('\n', "\r\n").as_bytes()).await.unwrap();
        }
    };
    let conversation = async {
        tokio::select! {
            () = peer => None,
            error = converse(&tor, &commands, None, &clock) => Some(error.to_string()),
            error = driver.run(|at, line| hear(&tor, at, line)) => Some(error.to_string()),
        }
    };
    let ended = timeout(time + HOUR, conversation).await.expect("tor is asked for its guards now and then");
    let events = tor.state().take_events().into_iter().map(|event| (event.what, event.detail)).collect();
    let log = std::fs::read_to_string(log.path()).unwrap();
    Told { asked, events, log, ended }
}

fn moment(text: &str) -> UnixMicros {
    UnixMicros::parse(text).unwrap()
}

fn right_answer(command: &str) -> String {
    let lines = match command {
        "PROTOCOLINFO 1" => "250-PROTOCOLINFO 1\n250-AUTH METHODS=NULL\n250-VERSION Tor=\"0.4.9.11\"\n".to_owned(),
        "GETINFO events/names" => format!("250-events/names={}\n", EVENTS.join(" ")),
        "GETINFO circuit-status" => "250-circuit-status=\n".to_owned(),
        "GETINFO entry-guards" => "250-entry-guards=\n".to_owned(),
        "GETINFO net/listeners/socks" => "250-net/listeners/socks=\"127.0.0.1:9050\"\n".to_owned(),
        "GETINFO status/bootstrap-phase" => format!("250-status/bootstrap-phase={}\n", bootstrapped(100)),
        _ => String::new(),
    };
    format!("{lines}250 OK\n")
}

fn bootstrapped(percent: u8) -> String {
    format!("NOTICE BOOTSTRAP PROGRESS={percent} TAG=any SUMMARY=\"Any\"")
}

fn there(drop_guards_every: Option<Duration>, drop_timeouts_every: Option<Duration>) -> config::Tor {
    let control = Control { address: ControlAddress::Unix("/nowhere".into()), password_file: None };
    let run = TorRun::Address { socks: ([127, 0, 0, 1], 9050).into(), control: Some(control) };
    config::Tor { name: "tor".to_owned(), run, drop_guards_every, drop_timeouts_every }
}

#[tokio::test(start_paused = true)]
async fn scheduled_commands_are_sent_45_s_past_the_grid_and_recorded() {
    let told = converse_for(HOUR * 2, there(Some(HOUR), Some(HOUR / 2)), |_, _, _| None).await;
    assert_eq!(told.ended, None, "{}", told.log);
    let at = |time: &str| format!("2026-11-24T{time}:45.000000Z");
    assert_eq!(told.times("DROPGUARDS"), ["10:00", "11:00"].map(at));
    assert_eq!(told.times("DROPTIMEOUTS"), ["10:00", "10:30", "11:00", "11:30"].map(at));
    assert_eq!(told.details("dropguards"), ["as scheduled"; 2]);
    assert_eq!(told.details("droptimeouts"), ["as scheduled"; 4]);
    assert_eq!(told.log.matches("INFO perfd::tor::session: DROPGUARDS sent, as scheduled").count(), 2, "{}", told.log);
}

#[tokio::test(start_paused = true)]
async fn what_has_no_schedule_is_not_sent() {
    let told = converse_for(HOUR * 50, there(None, Some(HOUR * 24)), |_, _, _| None).await;
    assert_eq!((told.ended.as_deref(), told.times("DROPGUARDS")), (None, vec![]));
    let at = |day: &str| format!("2026-11-{day}T00:00:45.000000Z");
    assert_eq!(told.times("DROPTIMEOUTS"), ["25", "26"].map(at));
    assert_eq!(told.details("dropguards"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_scheduled_command_that_tor_refuses_is_reported_and_the_connection_goes_on() {
    let mut refusals = 2;
    let told = converse_for(HOUR * 4, there(Some(HOUR), Some(HOUR)), |command, _, _| {
        let refused = command == "DROPGUARDS" && refusals > 0;
        refusals -= usize::from(refused);
        refused.then(|| "510 Unrecognized command \"DROPGUARDS\"\n".to_owned())
    })
    .await;
    assert_eq!(told.ended, None, "{}", told.log);
    assert_eq!((told.times("DROPGUARDS").len(), told.times("DROPTIMEOUTS").len()), (4, 4));
    let warnings: Vec<_> = told.log.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 2, "{}", told.log);
    for part in ["tor=\"tor\"", "DROPGUARDS", "510 Unrecognized command"] {
        assert!(warnings.iter().all(|line| line.contains(part)), "{part}: {warnings:#?}");
    }
    // Nothing is said to have been done that was not.
    assert_eq!(told.details("dropguards"), ["as scheduled"; 2]);
    assert_eq!(told.details("droptimeouts"), ["as scheduled"; 4]);
    assert_eq!(told.log.matches("DROPGUARDS sent").count(), 2, "{}", told.log);
}

/// tor is asked for its guards each 30 s; the clock is stepped when it is asked for the fourth time after the start.
async fn stepped_at_10_01_30(by: i64) -> Told {
    let mut times = 0;
    converse_for(HOUR, there(Some(HOUR), None), |command, clock, _| {
        times += usize::from(command == "GETINFO entry-guards");
        if times == 5 {
            times += 1;
            assert_eq!(clock.now(), moment("2026-11-24T10:01:30Z"));
            clock.step(by * 1_000_000);
        }
        None
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_steps_back_over_the_grid_makes_nothing_be_sent_off_it() {
    // To 9:31:30.
    let told = stepped_at_10_01_30(-1800).await;
    // The time of it that comes again is kept again.
    assert_eq!(told.times("DROPGUARDS"), ["2026-11-24T10:00:45.000000Z"; 2], "{}", told.log);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_jumps_over_a_time_of_the_grid_has_it_made_up_for_once() {
    // To 12:31:30, beyond two of them; it is looked at each 10 s.
    let told = stepped_at_10_01_30(9000).await;
    let [first, late, then] = told.times("DROPGUARDS").try_into().unwrap();
    let at = |time| moment(&format!("2026-11-24T{time}Z"));
    assert_eq!((moment(&first), moment(&then)), (at("10:00:45"), at("13:00:45")));
    assert!(moment(&late).since(at("12:31:30")) <= Duration::from_secs(10), "{late}");
}

/// A tor of perfd's own that is to have these guards. It is not started: its conversation is all that is had here.
fn own(choice: GuardChoice, count: u32) -> config::Tor {
    let started = StartedTor {
        binary: "/nowhere/tor".into(),
        data: "/nowhere".into(),
        torrc: Vec::new(),
        torrc_file: None,
        authorities: vec!["a 127.77.0.1:7000 AAAA".to_owned()],
        single_hop: false,
        bootstrap_timeout: HOUR,
        guards: Some(GuardSet { choice, count }),
    };
    config::Tor { run: TorRun::Started(started), ..there(None, None) }
}

/// The answer to `GETINFO ns/all`: guards of these bandwidths, the fingerprint of each of which is its place, in hex.
fn consensus(bandwidths: impl IntoIterator<Item = u32>) -> Option<String> {
    let relay = |(i, bandwidth): (u8, u32)| {
        let identity = STANDARD_NO_PAD.encode([i; 20]);
        format!(
            "r any {identity} any 2038-01-01 00:00:00 127.0.0.1 1 0\ns Guard Running Valid\nw Bandwidth={bandwidth}\n"
        )
    };
    Some(format!("250+ns/all=\n{}.\n250 OK\n", (0..).zip(bandwidths).map(relay).collect::<String>()))
}

fn entry_nodes(places: &[u8]) -> String {
    let nodes = places.iter().map(|place| format!("${}", format!("{place:02X}").repeat(20)));
    format!("SETCONF EntryNodes=\"{}\"", nodes.collect::<Vec<_>>().join(","))
}

#[tokio::test(start_paused = true)]
async fn guards_are_chosen_at_the_start_and_then_as_the_consensus_changes() {
    let mut looks = 0;
    let told = converse_for(HOUR * 3 + HOUR / 2, own(GuardChoice::Slowest, 2), |command, _, _| {
        (command == "GETINFO ns/all").then_some(())?;
        looks += 1;
        // The slowest of it: those at 1 and 3, the third time those at 0 and 3.
        consensus([if looks < 3 { 90 } else { 1 }, 10, 80, 5])
    })
    .await;
    assert_eq!(told.ended, None, "{}", told.log);
    assert_eq!(told.times("GETINFO ns/all"), ["09", "10", "11", "12"].map(|h| format!("2026-11-24T{h}:59:30.000000Z")));
    let at = |h| format!("2026-11-24T{h}:59:30.000000Z");
    let (first, second) = (entry_nodes(&[1, 3]), entry_nodes(&[0, 3]));
    assert_eq!(told.asked("SETCONF"), [(at("09"), first.as_str()), (at("11"), second.as_str())]);
    // tor would go on using those it has sampled.
    assert_eq!(told.times("DROPGUARDS"), [at("09"), at("11")]);
    let all = told.details("guards_chosen");
    assert!(all.len() == 2 && all.iter().all(|detail| detail.starts_with("2 slowest: $")), "{all:?}");
}

#[tokio::test(start_paused = true)]
async fn guards_that_were_drawn_are_set_again_after_a_reload() {
    let mut rounds = 0;
    let told = converse_for(HOUR / 2, own(GuardChoice::Random, 3), |command, _, tor| {
        rounds += usize::from(command == "GETINFO entry-guards");
        if rounds == 3 {
            rounds += 1;
            tor.0.reloaded.notify_one();
        }
        if command == "GETINFO ns/all" { consensus([7; 200]) } else { None }
    })
    .await;
    assert_eq!(told.ended, None, "{}", told.log);
    let set = told.asked("SETCONF");
    assert_eq!(set.len(), 2, "{}", told.log);
    assert_eq!(set[0].1, set[1].1, "those drawn first");
    assert_eq!(told.times("DROPGUARDS"), told.times("SETCONF"));
    assert_eq!(told.details("guards_chosen").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn guards_are_set_after_a_reload_also_where_the_consensus_has_none_at_first() {
    let (mut rounds, mut looks) = (0, 0);
    let told = converse_for(HOUR * 2, own(GuardChoice::Fastest, 1), |command, _, tor| {
        rounds += usize::from(command == "GETINFO entry-guards");
        if rounds == 3 {
            rounds += 1;
            tor.0.reloaded.notify_one();
        }
        (command == "GETINFO ns/all").then_some(())?;
        looks += 1;
        consensus(if looks == 2 { vec![] } else { vec![3, 9] })
    })
    .await;
    assert_eq!(told.ended, None, "{}", told.log);
    let wanted = entry_nodes(&[1]);
    let set: Vec<_> = told.asked("SETCONF").into_iter().map(|(_, command)| command).collect();
    assert_eq!(set, [&wanted; 2], "{}", told.log);
    assert_eq!(told.log.matches("the consensus has no guard").count(), 1, "{}", told.log);
}

#[tokio::test(start_paused = true)]
async fn a_tor_that_is_not_ready_gets_no_guards() {
    let mut rounds = 0;
    let told = converse_for(HOUR, own(GuardChoice::Fastest, 1), |command, _, _| {
        rounds += usize::from(command == "GETINFO entry-guards");
        match command {
            "GETINFO status/bootstrap-phase" => {
                Some(format!("250-status/bootstrap-phase={}\n250 OK\n", bootstrapped(50)))
            }
            "GETINFO entry-guards" if rounds == 41 => {
                Some(format!("{}650 STATUS_CLIENT {}\n", right_answer(command), bootstrapped(100)))
            }
            "GETINFO ns/all" => consensus([1]),
            _ => None,
        }
    })
    .await;
    assert_eq!(told.ended, None, "{}", told.log);
    for command in ["GETINFO ns/all", "SETCONF", "DROPGUARDS"] {
        assert_eq!(told.times(command), ["2026-11-24T10:19:30.000000Z"], "{command}");
    }
}
