//! One event line of tor's control port, taken apart (no I/O).
//!
//! The form is control-spec's section 4.1, as tor 0.4.9 fills it. A line is never refused: a word that is
//! not known is passed over, one that is missing is absent, and a line of another kind is [`Event::Other`].

use std::borrow::Cow;

use super::{BuildTimeout, Relay};
use crate::clock::UnixMicros;

/// An event line, without its status code (`CIRC 5 BUILT …`).
#[derive(Clone, Debug, PartialEq)]
pub enum Event<'a> {
    /// CIRC, CIRC_MINOR, or a line of `GETINFO circuit-status`.
    Circuit(CircuitLine<'a>),
    /// STREAM.
    Stream(StreamLine<'a>),
    /// CIRC_BW.
    CircuitBandwidth(CircuitBandwidth),
    /// BUILDTIMEOUT_SET.
    BuildTimeout(BuildTimeoutLine<'a>),
    /// GUARD.
    Guard(GuardLine<'a>),
    /// HS_DESC.
    Descriptor(DescriptorLine<'a>),
    /// STATUS_CLIENT.
    StatusClient(StatusLine<'a>),
    /// Anything else, by its first word.
    Other(&'a str),
}

/// What happened to a circuit.
#[derive(Clone, Debug, PartialEq)]
pub struct CircuitLine<'a> {
    /// Whether the line is a CIRC_MINOR.
    pub minor: bool,
    /// tor's id of it.
    pub id: u64,
    /// `LAUNCHED`, `BUILT`, `EXTENDED`, `FAILED`, `CLOSED`, `PURPOSE_CHANGED` …
    pub status: &'a str,
    /// Its hops as tor writes them (`$FINGERPRINT~nickname,…`); empty where there is none yet.
    pub path: &'a str,
    /// `KEY=value` words.
    pub words: Words<'a>,
}

/// What happened to a stream.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamLine<'a> {
    /// tor's id of it.
    pub id: u64,
    /// `NEW`, `SENTCONNECT`, `SUCCEEDED`, `DETACHED`, `CLOSED` …
    pub status: &'a str,
    /// The circuit; 0 is none.
    pub circuit: u64,
    /// `host:port`.
    pub target: &'a str,
    /// `KEY=value` words.
    pub words: Words<'a>,
}

/// What a circuit carried since its last such line, and its congestion control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CircuitBandwidth {
    /// tor's id of the circuit.
    pub id: u64,
    /// Bytes of cells to us.
    pub read: u64,
    /// Bytes of cells from us.
    pub written: u64,
    /// SS: whether it is in slow start.
    pub slow_start: Option<bool>,
    /// CWND, in cells.
    pub cwnd: Option<u64>,
    /// RTT, in milliseconds; absent where tor has none yet (it says 0).
    pub rtt: Option<u64>,
    /// MIN_RTT, in milliseconds, likewise.
    pub min_rtt: Option<u64>,
}

/// A change of the circuit build timeout.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildTimeoutLine<'a> {
    /// `COMPUTED`, `RESET`, `SUSPENDED`, `DISCARD` or `RESUME`.
    pub kind: &'a str,
    /// TIMEOUT_MS.
    pub timeout_ms: Option<u64>,
    /// CUTOFF_QUANTILE.
    pub quantile: Option<f64>,
}

impl BuildTimeoutLine<'_> {
    /// What it announces.
    pub fn announced(&self) -> Option<BuildTimeout> {
        // DISCARD and RESET throw away what was learned; SUSPENDED and RESUME say nothing of it.
        let learning = match self.kind {
            "COMPUTED" => Some(false),
            "RESET" | "DISCARD" => Some(true),
            _ => None,
        };
        Some(BuildTimeout { timeout_ms: self.timeout_ms?, quantile: self.quantile, learning })
    }
}

/// A change of a guard's state.
#[derive(Clone, Debug, PartialEq)]
pub struct GuardLine<'a> {
    /// The relay, as tor writes it.
    pub relay: &'a str,
    /// `NEW`, `UP`, `DOWN`, `BAD`, `GOOD`, `DROPPED` …
    pub status: &'a str,
}

/// A step of an onion service's descriptor.
#[derive(Clone, Debug, PartialEq)]
pub struct DescriptorLine<'a> {
    /// `CREATED`, `UPLOAD`, `UPLOADED`, `REQUESTED`, `RECEIVED`, `FAILED` …
    pub action: &'a str,
    /// The address, without `.onion`.
    pub address: &'a str,
    /// The directory, as tor writes it.
    pub directory: &'a str,
    /// REASON, where it failed.
    pub reason: Option<&'a str>,
}

/// A change of the client's state.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusLine<'a> {
    /// `NOTICE`, `WARN` or `ERR`.
    pub severity: &'a str,
    /// `BOOTSTRAP`, `CIRCUIT_ESTABLISHED` …
    pub action: &'a str,
    /// `KEY=value` words.
    pub words: Words<'a>,
}

/// Takes a line apart, without its status code and line end.
pub fn parse(line: &str) -> Event<'_> {
    let (keyword, rest) = split_word(line);
    let parsed = match keyword {
        "CIRC_BW" => circuit_bandwidth(rest).map(Event::CircuitBandwidth),
        "CIRC" => circuit(rest, false).map(Event::Circuit),
        "CIRC_MINOR" => circuit(rest, true).map(Event::Circuit),
        "STREAM" => stream(rest).map(Event::Stream),
        "BUILDTIMEOUT_SET" => Some(Event::BuildTimeout(build_timeout(rest))),
        "GUARD" => guard(rest).map(Event::Guard),
        "HS_DESC" => descriptor(rest).map(Event::Descriptor),
        "STATUS_CLIENT" => Some(Event::StatusClient(status_client(rest))),
        _ => None,
    };
    parsed.unwrap_or(Event::Other(keyword))
}

/// What follows `CIRC`, and a line of `GETINFO circuit-status`.
pub fn circuit(rest: &str, minor: bool) -> Option<CircuitLine<'_>> {
    let (id, rest) = split_word(rest);
    let (status, rest) = split_word(rest);
    let (path, words) = match split_word(rest) {
        // A circuit without hops has no such word; the first one is a KEY=value then.
        (word, rest) if word.starts_with('$') || !word.contains('=') => (word, rest),
        _ => ("", rest),
    };
    Some(CircuitLine { minor, id: id.parse().ok()?, status, path, words: Words(words) })
}

fn stream(rest: &str) -> Option<StreamLine<'_>> {
    let (id, rest) = split_word(rest);
    let (status, rest) = split_word(rest);
    let (circuit, rest) = split_word(rest);
    let (target, rest) = split_word(rest);
    let circuit = circuit.parse().unwrap_or(0);
    Some(StreamLine { id: id.parse().ok()?, status, circuit, target, words: Words(rest) })
}

/// By hand, as thousands of these lines come in a second: no word is looked for twice.
fn circuit_bandwidth(rest: &str) -> Option<CircuitBandwidth> {
    let mut line = CircuitBandwidth::default();
    let mut id = None;
    for word in rest.split_ascii_whitespace() {
        let Some((key, value)) = word.split_once('=') else { continue };
        let number = || value.parse::<u64>().ok();
        match key {
            "ID" => id = number(),
            "READ" => line.read = number().unwrap_or(0),
            "WRITTEN" => line.written = number().unwrap_or(0),
            "SS" => line.slow_start = number().map(|ss| ss != 0),
            "CWND" => line.cwnd = number(),
            "RTT" => line.rtt = number().filter(|ms| *ms > 0),
            "MIN_RTT" => line.min_rtt = number().filter(|ms| *ms > 0),
            _ => {}
        }
    }
    line.id = id?;
    Some(line)
}

fn build_timeout(rest: &str) -> BuildTimeoutLine<'_> {
    let (kind, rest) = split_word(rest);
    let words = Words(rest);
    let number = |key| words.get(key).and_then(|value| value.parse().ok());
    let quantile = words.get("CUTOFF_QUANTILE").and_then(|value| value.parse().ok()).filter(|q: &f64| q.is_finite());
    BuildTimeoutLine { kind, timeout_ms: number("TIMEOUT_MS"), quantile }
}

fn guard(rest: &str) -> Option<GuardLine<'_>> {
    // The first word is the kind of guard; tor knows ENTRY alone.
    let (_, rest) = split_word(rest);
    let (relay, rest) = split_word(rest);
    let (status, _) = split_word(rest);
    (!relay.is_empty()).then_some(GuardLine { relay, status })
}

fn descriptor(rest: &str) -> Option<DescriptorLine<'_>> {
    let (action, rest) = split_word(rest);
    let (address, rest) = split_word(rest);
    let (_authentication, rest) = split_word(rest);
    let (directory, rest) = split_word(rest);
    let reason = rest.split_ascii_whitespace().find_map(|word| word.strip_prefix("REASON="));
    (!address.is_empty()).then_some(DescriptorLine { action, address, directory, reason })
}

fn status_client(rest: &str) -> StatusLine<'_> {
    let (severity, rest) = split_word(rest);
    let (action, rest) = split_word(rest);
    StatusLine { severity, action, words: Words(rest) }
}

/// The first word and what follows it.
fn split_word(text: &str) -> (&str, &str) {
    let text = text.trim_start_matches(' ');
    text.split_once(' ').unwrap_or((text, ""))
}

/// `KEY=value` words, separated by spaces; a value may be quoted, with backslashes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Words<'a>(pub &'a str);

impl<'a> Words<'a> {
    /// The value of the first word of this key.
    pub fn get(&self, key: &str) -> Option<Cow<'a, str>> {
        self.iter().find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// The same as text of its own.
    pub fn text(&self, key: &str) -> Option<String> {
        self.get(key).map(Cow::into_owned)
    }

    /// All keys and values. What has no `=` is passed over.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, Cow<'a, str>)> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            loop {
                rest = rest.trim_start_matches(' ');
                let end = rest.find([' ', '='])?;
                let (key, after) = rest.split_at(end);
                if after.starts_with(' ') {
                    rest = after;
                    continue;
                }
                let (value, after) = value(&after[1..]);
                rest = after;
                return Some((key, value));
            }
        })
    }
}

/// The value at the beginning of `text`, and what follows it.
fn value(text: &str) -> (Cow<'_, str>, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(' ').unwrap_or(text.len());
        return (Cow::Borrowed(&text[..end]), &text[end..]);
    };
    let mut escaped = false;
    let mut has_escapes = false;
    for (at, c) in quoted.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => (escaped, has_escapes) = (true, true),
            '"' => {
                let inside = &quoted[..at];
                let value = if has_escapes { Cow::Owned(unescaped(inside)) } else { Cow::Borrowed(inside) };
                return (value, &quoted[at + 1..]);
            }
            _ => {}
        }
    }
    // The closing quote is missing: the rest of the line is the value.
    (Cow::Borrowed(quoted), "")
}

/// Without the backslashes of tor's quoting; a code such as `\n` or `\033` stays as it is, since what
/// perfd looks for holds none.
fn unescaped(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match (c, characters.peek()) {
            ('\\', Some('"' | '\\')) => plain.extend(characters.next()),
            _ => plain.push(c),
        }
    }
    plain
}

/// A relay as tor writes it: `$FINGERPRINT~nickname`, `$FINGERPRINT=nickname` or `$FINGERPRINT`.
pub fn relay(text: &str) -> Option<Relay> {
    let text = text.strip_prefix('$')?;
    let (fingerprint, nickname) = match text.split_once(['~', '=']) {
        Some((fingerprint, nickname)) => (fingerprint, Some(nickname)),
        None => (text, None),
    };
    let is_fingerprint = fingerprint.len() == 40 && fingerprint.bytes().all(|b| b.is_ascii_hexdigit());
    let nickname = nickname.filter(|name| !name.is_empty() && *name != "Unnamed").map(str::to_owned);
    is_fingerprint.then(|| Relay { fingerprint: fingerprint.to_ascii_uppercase(), nickname })
}

/// The hops of a path; what is no relay is left out.
pub fn path(text: &str) -> Vec<Relay> {
    text.split(',').filter_map(relay).collect()
}

/// A time as tor writes it in events: `2026-11-22T09:08:02.581497`, in UTC.
pub fn time(text: &str) -> Option<UnixMicros> {
    let moment = text.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some(UnixMicros(moment.timestamp().as_microsecond()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FP: &str = "27C0018F4BDFC2AC371EA2505C2D7E1D315715B9";

    #[test]
    fn a_circuit_line_is_taken_apart() {
        let line = format!(
            "CIRC 12 EXTENDED ${FP}~relay3 BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL \
             TIME_CREATED=2026-11-22T09:08:03.504543 SOCKS_USERNAME=\"a \\\"b\\\" c\" NEWWORD ODD=1"
        );
        let Event::Circuit(circuit) = parse(&line) else { panic!("{line}") };
        assert_eq!((circuit.id, circuit.status, circuit.minor), (12, "EXTENDED", false));
        assert_eq!(path(circuit.path), [Relay { fingerprint: FP.to_owned(), nickname: Some("relay3".to_owned()) }]);
        assert_eq!(circuit.words.get("SOCKS_USERNAME").as_deref(), Some("a \"b\" c"));
        assert_eq!(circuit.words.get("ODD").as_deref(), Some("1"));
        assert_eq!(circuit.words.get("NEWWORD"), None);
        let created = time(&circuit.words.get("TIME_CREATED").unwrap()).unwrap();
        assert_eq!(created.to_string(), "2026-11-22T09:08:03.504543Z");
    }

    #[test]
    fn a_circuit_without_hops_has_an_empty_path() {
        let Event::Circuit(circuit) = parse("CIRC 11 LAUNCHED BUILD_FLAGS=A,B PURPOSE=HS_VANGUARDS") else { panic!() };
        assert_eq!((circuit.path, circuit.words.get("BUILD_FLAGS").as_deref()), ("", Some("A,B")));
        let Event::Circuit(circuit) = parse("CIRC_MINOR 11 PURPOSE_CHANGED") else { panic!() };
        assert_eq!((circuit.minor, circuit.path), (true, ""));
    }

    #[test]
    fn a_stream_line_is_taken_apart() {
        let line = "STREAM 27 DETACHED 9 127.0.0.1:1 REASON=END REMOTE_REASON=MISC SOCKS_USERNAME=\"refused\"";
        let Event::Stream(stream) = parse(line) else { panic!() };
        assert_eq!((stream.id, stream.status, stream.circuit, stream.target), (27, "DETACHED", 9, "127.0.0.1:1"));
        assert_eq!(stream.words.get("REMOTE_REASON").as_deref(), Some("MISC"));
    }

    #[test]
    fn bandwidth_and_congestion_are_read() {
        let line = "CIRC_BW ID=51 READ=14761 WRITTEN=626070 TIME=2026-11-24T23:11:47.476071 DELIVERED_READ=792 \
                    SS=0 CWND=640 RTT=67 MIN_RTT=0";
        let expected = CircuitBandwidth {
            id: 51,
            read: 14_761,
            written: 626_070,
            slow_start: Some(false),
            cwnd: Some(640),
            rtt: Some(67),
            min_rtt: None,
        };
        assert_eq!(parse(line), Event::CircuitBandwidth(expected));
    }

    #[test]
    fn timeouts_guards_and_descriptors_are_read() {
        let Event::BuildTimeout(timeout) =
            parse("BUILDTIMEOUT_SET COMPUTED TOTAL_TIMES=100 TIMEOUT_MS=815 CUTOFF_QUANTILE=0.800000 CLOSE_MS=60000")
        else {
            panic!()
        };
        assert_eq!((timeout.kind, timeout.timeout_ms, timeout.quantile), ("COMPUTED", Some(815), Some(0.8)));
        let line = format!("GUARD ENTRY ${FP}~relay3 DROPPED");
        let Event::Guard(guard) = parse(&line) else { panic!() };
        assert_eq!((relay(guard.relay).unwrap().nickname.as_deref(), guard.status), (Some("relay3"), "DROPPED"));
        let line = format!("HS_DESC FAILED abc NO_AUTH ${FP}~relay1 descriptor REASON=NOT_FOUND");
        let Event::Descriptor(descriptor) = parse(&line) else { panic!() };
        assert_eq!((descriptor.action, descriptor.address, descriptor.reason), ("FAILED", "abc", Some("NOT_FOUND")));
    }

    #[test]
    fn what_is_not_known_is_told_by_its_first_word() {
        for (line, word) in [("", ""), ("PT_LOG PT=x", "PT_LOG"), ("CIRC", "CIRC"), ("STREAM x NEW 0 a", "STREAM")] {
            assert_eq!(parse(line), Event::Other(word), "{line}");
        }
    }

    #[test]
    fn relays_without_a_fingerprint_are_none() {
        for text in ["relay3", "$27C0", "", "$", "~", &format!("${}~x", "G".repeat(40))] {
            assert_eq!(relay(text), None, "{text}");
        }
        assert_eq!(relay(&format!("${FP}")).unwrap().nickname, None);
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in any::<String>()) {
            parse(&line);
        }

        #[test]
        fn no_line_of_a_known_kind_is_too_strange(
            keyword in prop::sample::select(vec![
                "CIRC", "CIRC_MINOR", "STREAM", "CIRC_BW", "BUILDTIMEOUT_SET", "GUARD", "HS_DESC", "STATUS_CLIENT",
            ]),
            rest in "[ =\"\\\\$~,a-zA-Z0-9µ]{0,60}",
        ) {
            let line = format!("{keyword} {rest}");
            match parse(&line) {
                Event::Circuit(line) => { path(line.path); line.words.iter().for_each(drop); }
                Event::Stream(line) => line.words.iter().for_each(drop),
                Event::StatusClient(line) => line.words.iter().for_each(drop),
                _ => {}
            }
        }

        #[test]
        fn words_come_back(pairs in prop::collection::vec(("[A-Z_]{1,8}", "[ a-z\"=\\\\]{0,8}"), 0..6)) {
            let quote = |value: &str| format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
            let line: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={}", quote(value))).collect();
            let line = line.join(" ");
            let read: Vec<(String, String)> =
                Words(&line).iter().map(|(key, value)| (key.to_owned(), value.into_owned())).collect();
            prop_assert_eq!(read, pairs);
        }
    }
}
