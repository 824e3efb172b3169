//! What an operator may write into the torrc of a tor that perfd starts (pure).

use super::quote::quoted;
use crate::gate::{self, Refusal};

/// Says what is wrong with a line for the torrc of a tor that perfd starts, a semicolon, and what would be right;
/// nothing where it is fine. Of a `private` network's tor, nothing that the [`gate`] refuses is fine.
///
/// A line that tor doesn't know is tor's to refuse.
pub fn fault_of_torrc_line(line: &str, private: bool) -> Option<String> {
    let fault = fault(line, private)?;
    Some(format!("{} {fault}", quoted(line)))
}

fn fault(line: &str, private: bool) -> Option<String> {
    if line.contains(|c: char| c.is_control() && c != '\t') {
        return Some("contains control characters; write one option a line".to_owned());
    }
    // Also behind a comment: tor goes on with the next line there.
    if line.trim_end().ends_with('\\') {
        return Some("ends in a backslash; write the option on one line".to_owned());
    }
    let text = line.trim_matches([' ', '\t']);
    if text.is_empty() || text.starts_with('#') {
        return None;
    }
    if text.starts_with('%') {
        return Some("brings in another file; write its path as torrc_file".to_owned());
    }
    if text.starts_with(['+', '/']) {
        return Some("begins with a sign; write the option's name and its value alone".to_owned());
    }
    let keyword = text.split([' ', '\t', '#']).next().unwrap_or_default();
    if let Some((name, remedy)) = OWN.iter().find(|(name, _)| name.eq_ignore_ascii_case(keyword)) {
        return Some(format!("sets {name}, which perfd sets itself; {remedy}"));
    }
    // tor completes what is cut short.
    if let Some((name, _)) = OWN.iter().find(|(name, _)| begins_with(name, keyword)) {
        return Some(format!("may stand for {name}, which perfd sets itself; write the option's whole name"));
    }
    match gate::check_line(text) {
        Err(refusal) if private => Some(match refusal {
            Refusal::Line(_) => "could lead out of the private network that authorities names; leave it out".to_owned(),
            other => format!("is not for a private network: {other}; leave it out"),
        }),
        _ => None,
    }
}

/// Whether a path can stand in a torrc as it is, without quotes, whose escapes no two readers agree on.
pub fn fits_a_torrc(path: &str) -> bool {
    !path.contains(|c: char| c.is_control() || matches!(c, '"' | '\\' | '#')) && path.trim() == path
}

/// The option that a line sets, or may set, against guards that perfd chooses.
pub fn against_chosen_guards(line: &str) -> Option<&'static str> {
    let keyword =
        line.trim_matches([' ', '\t']).split([' ', '\t', '#']).next().filter(|keyword| !keyword.is_empty())?;
    ["EntryNodes", "UseEntryGuards", "UseBridges"].into_iter().find(|option| begins_with(option, keyword))
}

fn begins_with(name: &str, start: &str) -> bool {
    name.get(..start.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(start))
}

const LEAVE: &str = "leave it out";
const PORTS: &str = "leave it out, for perfd lets tor choose its ports";
const AUTHORITIES: &str = "write authorities = [\"…\"] instead";
const SINGLE_HOP: &str = "write single_hop = true instead";

/// The options that perfd sets, or that must stay at tor's default for perfd to work, and what to do instead.
const OWN: &[(&str, &str)] = &[
    ("SocksPort", PORTS),
    ("__SocksPort", PORTS),
    ("ControlPort", PORTS),
    ("__ControlPort", PORTS),
    ("ControlSocket", PORTS),
    ("ControlPortWriteToFile", LEAVE),
    ("CookieAuthentication", LEAVE),
    ("CookieAuthFile", LEAVE),
    ("HashedControlPassword", LEAVE),
    ("__HashedControlSessionPassword", LEAVE),
    ("DataDirectory", "write data = \"…\" instead"),
    ("Log", "leave it out, for perfd logs what tor says"),
    ("RunAsDaemon", LEAVE),
    ("PidFile", LEAVE),
    ("User", "leave it out, for tor runs as perfd's user"),
    ("__OwningControllerProcess", LEAVE),
    ("__OwningControllerFD", LEAVE),
    ("__DisableSignalHandlers", LEAVE),
    ("__ReloadTorrcOnSIGHUP", LEAVE),
    ("__LeaveStreamsUnattached", LEAVE),
    ("TestingTorNetwork", AUTHORITIES),
    ("DirAuthority", AUTHORITIES),
    ("DirServer", AUTHORITIES),
    ("AlternateDirAuthority", AUTHORITIES),
    ("AlternateBridgeAuthority", AUTHORITIES),
    ("HiddenServiceSingleHopMode", SINGLE_HOP),
    ("HiddenServiceNonAnonymousMode", SINGLE_HOP),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_an_operator_may_want_is_fine() {
        for line in [
            "",
            "# SocksPort 9050",
            "UseEntryGuards 0",
            "SocksPolicy accept 127.0.0.1",
            "UseBridges 1",
            "Bridge obfs4 192.0.2.1:443 0123456789012345678901234567890123456789 cert=abc iat-mode=0",
            "ClientTransportPlugin obfs4 exec /usr/bin/obfs4proxy",
            "EntryNodes {de}",
            "ConfluxEnabled 0",
            "Sandbox 1",
            "OutboundBindAddress 192.0.2.7",
            "DNSPort 127.0.0.1:5353",
            "LogTimeGranularity 1",
            "ContactInfo \"me \\\"myself\\\" # and I\"",
        ] {
            assert_eq!(fault_of_torrc_line(line, false), None, "{line}");
        }
        for line in ["UseBridges 1", "Bridge 127.0.0.1:5000", "UseEntryGuards 0", "ConfluxEnabled 0"] {
            assert_eq!(fault_of_torrc_line(line, true), None, "{line}");
        }
    }

    #[test]
    fn all_else_says_what_to_do() {
        let own = |name: &str, remedy: &str| format!("sets {name}, which perfd sets itself; {remedy}");
        let short =
            |name: &str| format!("may stand for {name}, which perfd sets itself; write the option's whole name");
        let cases = [
            ("SocksPort 9050", own("SocksPort", PORTS)),
            ("\tsocksport\t9050", own("SocksPort", PORTS)),
            ("SocksPort#", own("SocksPort", PORTS)),
            ("CONTROLPORT 9051", own("ControlPort", PORTS)),
            ("DataDirectory /x", own("DataDirectory", "write data = \"…\" instead")),
            ("Log debug file /x", own("Log", "leave it out, for perfd logs what tor says")),
            ("DirAuthority a 192.0.2.1:80 AA", own("DirAuthority", AUTHORITIES)),
            ("HiddenServiceSingleHopMode 1", own("HiddenServiceSingleHopMode", SINGLE_HOP)),
            ("SocksPo 9050", short("SocksPort")),
            ("DirAuth a", short("DirAuthority")),
            ("l notice", short("Log")),
            ("Use 1", short("User")),
            ("HiddenServiceS 1", short("HiddenServiceSingleHopMode")),
            ("+SocksPort 9050", "begins with a sign; write the option's name and its value alone".to_owned()),
            ("/DirAuthority", "begins with a sign; write the option's name and its value alone".to_owned()),
            ("%include /etc/tor/torrc", "brings in another file; write its path as torrc_file".to_owned()),
            ("Nickname a\\", "ends in a backslash; write the option on one line".to_owned()),
            ("# a\\ ", "ends in a backslash; write the option on one line".to_owned()),
        ];
        for (line, fault) in cases {
            for private in [false, true] {
                assert_eq!(fault_of_torrc_line(line, private), Some(format!("{} {fault}", quoted(line))));
            }
        }
        assert_eq!(
            fault_of_torrc_line("A 1\nSocksPort 1", false).as_deref(),
            Some(r#""A 1\nSocksPort 1" contains control characters; write one option a line"#)
        );
        assert_eq!(
            fault_of_torrc_line("FallbackDir 192.0.2.1:80", true).as_deref(),
            Some(
                r#""FallbackDir 192.0.2.1:80" could lead out of the private network that authorities names; leave it out"#
            )
        );
    }

    proptest! {
        #[test]
        fn any_beginning_of_an_option_of_ours_is_refused(
            which in 0..OWN.len(), length in 1..30_usize, upper: bool, before in "[ \t]{0,3}", after in "([ \t#]\\PC{0,9})?",
        ) {
            let (name, _) = OWN[which];
            let start: String = name.chars().take(length).collect();
            let start = if upper { start.to_ascii_uppercase() } else { start.to_ascii_lowercase() };
            let line = format!("{before}{start}{after}");
            prop_assert!(fault_of_torrc_line(&line, false).is_some(), "{}", line);
        }

        #[test]
        fn nothing_that_is_fine_is_two_lines(line in "\\PC{0,20}([\n\r\\\\]\\PC{0,9})?") {
            if fault_of_torrc_line(&line, false).is_none() {
                prop_assert!(!line.contains(['\n', '\r']) && !line.ends_with('\\'));
            }
        }
    }
}
