//! The torrc of a tor that perfd starts (no I/O).

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use crate::config::{StartedTor, against_chosen_guards, fault_of_torrc_line, fits_a_torrc};
use crate::gate::Network;
use crate::testnet::torrc::private_network;

/// In the data directory: the address of the control port, which tor writes once it listens.
pub const CONTROL_PORT_FILE: &str = "control-port";
/// In the data directory: the cookie for the control port.
pub const COOKIE_FILE: &str = "control.authcookie";
/// In the data directory: the folder of the onion service of a single-hop tor, with its key and its address.
pub const ONION_FOLDER: &str = "onion";

/// Why there is no torrc.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TorrcError {
    /// tor reads no such path as it is written.
    #[error("{}: a torrc can't hold such a path; take one without quotes, backslashes, # and control characters", .0.display())]
    Path(PathBuf),
    /// A line that perfd passes on to no tor.
    #[error("{}:{line}: {fault}", file.display())]
    Line {
        /// The `torrc_file`.
        file: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong, a semicolon, and what would be right.
        fault: String,
    },
}

/// The network that a tor is for.
pub fn network_of(tor: &StartedTor) -> Network {
    if tor.authorities.is_empty() { Network::Public } else { Network::Private }
}

/// The whole torrc of `tor`, whose data directory is `data` (absolute), which is to end with the process `owner`;
/// `file` is what its `torrc_file` holds, empty where it has none. A single-hop tor publishes an onion service that
/// leads to `target`: of a service that is asked for by ADD_ONION, tor (0.4.9) makes an ordinary one, of several
/// hops, whatever its mode.
///
/// # Errors
/// A path that a torrc can't hold, and a line of the file that perfd does not pass on.
pub fn torrc(
    tor: &StartedTor,
    data: &Path,
    owner: u32,
    file: &str,
    target: Option<SocketAddr>,
) -> Result<String, TorrcError> {
    let written = data.to_str().filter(|path| fits_a_torrc(path)).ok_or_else(|| TorrcError::Path(data.to_owned()))?;
    let mut text = if tor.single_hop {
        "SocksPort 0\nHiddenServiceSingleHopMode 1\nHiddenServiceNonAnonymousMode 1\n".to_owned()
    } else {
        "SocksPort 127.0.0.1:auto ExtendedErrors\n".to_owned()
    };
    text.push_str(&format!(
        "ControlPort 127.0.0.1:auto\n\
         ControlPortWriteToFile {written}/{CONTROL_PORT_FILE}\n\
         CookieAuthentication 1\n\
         CookieAuthFile {written}/{COOKIE_FILE}\n\
         DataDirectory {written}\n\
         Log notice stdout\n\
         __OwningControllerProcess {owner}\n"
    ));
    if let Some(target) = target.filter(|_| tor.single_hop) {
        text.push_str(&format!("HiddenServiceDir {written}/{ONION_FOLDER}\nHiddenServicePort 80 {target}\n"));
    }
    let private = network_of(tor) == Network::Private;
    if private {
        text.push_str(&private_network(Ipv4Addr::LOCALHOST, &tor.authorities));
    }
    for line in &tor.torrc {
        text.push_str(line);
        text.push('\n');
    }
    for (i, line) in file.lines().enumerate() {
        let goes_against = || {
            let option = against_chosen_guards(line).filter(|_| tor.guards.is_some())?;
            Some(format!("sets {option}, which goes against guards in the configuration; keep one of the two"))
        };
        if let Some(fault) = fault_of_torrc_line(line, private).or_else(goes_against) {
            let file = tor.torrc_file.clone().unwrap_or_default();
            return Err(TorrcError::Line { file, line: i + 1, fault });
        }
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// The transport of the bridges that a torrc uses, `bridge` for plain ones; several in alphabetical order, with
/// commas. `None` where it uses no bridges.
pub fn transport_of(torrc: &str) -> Option<String> {
    let (mut used, mut transports) = (false, BTreeSet::new());
    for line in torrc.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let keyword = words.next().unwrap_or_default();
        if keyword.eq_ignore_ascii_case("UseBridges") {
            used = words.next() == Some("1");
        } else if keyword.eq_ignore_ascii_case("Bridge") {
            // As tor tells them apart: a transport is a C identifier.
            let is_name = |word: &&str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            transports.insert(words.next().filter(is_name).unwrap_or("bridge"));
        }
    }
    let transports: Vec<_> = transports.into_iter().collect();
    (used && !transports.is_empty()).then(|| transports.join(","))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;
    use std::time::Duration;

    use super::*;
    use crate::gate;

    const TARGET: Option<SocketAddr> = Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 8080)));

    const AUTHORITY: &str = "authority orport=5000 no-v2 v3ident=AB 127.77.0.1:7000 CD";

    fn tor() -> StartedTor {
        StartedTor {
            binary: "/usr/bin/tor".into(),
            data: "/d".into(),
            torrc: vec!["UseEntryGuards 0".to_owned()],
            torrc_file: Some("/etc/extra".into()),
            authorities: vec![AUTHORITY.to_owned()],
            single_hop: false,
            bootstrap_timeout: Duration::from_secs(300),
            guards: None,
        }
    }

    #[test]
    fn a_tor_of_a_private_network_has_its_authorities_and_passes_the_gate() {
        let text =
            torrc(&tor(), Path::new("/a b/d"), 42, "# mine\r\nUseBridges 1\nBridge 127.77.0.2:5000", TARGET).unwrap();
        assert_eq!(
            text,
            "SocksPort 127.0.0.1:auto ExtendedErrors\n\
             ControlPort 127.0.0.1:auto\n\
             ControlPortWriteToFile /a b/d/control-port\n\
             CookieAuthentication 1\n\
             CookieAuthFile /a b/d/control.authcookie\n\
             DataDirectory /a b/d\n\
             Log notice stdout\n\
             __OwningControllerProcess 42\n\
             TestingTorNetwork 1\n\
             OutboundBindAddress 127.0.0.1\n\
             AssumeReachable 1\n\
             EnforceDistinctSubnets 0\n\
             PathsNeededToBuildCircuits 0.67\n\
             ClientRejectInternalAddresses 0\n\
             DirAuthority authority orport=5000 no-v2 v3ident=AB 127.77.0.1:7000 CD\n\
             UseEntryGuards 0\n\
             # mine\n\
             UseBridges 1\n\
             Bridge 127.77.0.2:5000\n"
        );
        gate::check(&text).unwrap();
        assert_eq!(network_of(&tor()), Network::Private);
    }

    #[test]
    fn a_tor_of_the_public_network_has_none() {
        let public = StartedTor { authorities: Vec::new(), ..tor() };
        let text = torrc(&public, Path::new("/d"), 42, "", None).unwrap();
        assert!(!text.contains("Authority") && !text.contains("Testing") && text.ends_with("\nUseEntryGuards 0\n"));
        assert!(gate::check(&text).is_err());
        assert_eq!(network_of(&public), Network::Public);
    }

    #[test]
    fn guards_that_perfd_chooses_are_not_chosen_in_the_file_as_well() {
        use crate::config::{GuardChoice, GuardSet};
        let guards = Some(GuardSet { choice: GuardChoice::Slowest, count: 3 });
        let chosen = StartedTor { guards, torrc: Vec::new(), ..tor() };
        let fault = torrc(&chosen, Path::new("/d"), 42, "# mine\nEntryNodes $AB", None).unwrap_err();
        assert_eq!(
            fault.to_string(),
            "/etc/extra:2: sets EntryNodes, which goes against guards in the configuration; keep one of the two"
        );
        assert!(torrc(&tor(), Path::new("/d"), 42, "EntryNodes $AB", None).is_ok());
    }

    #[test]
    fn a_single_hop_tor_has_no_socks_port() {
        let single_hop = StartedTor { single_hop: true, ..tor() };
        let text = torrc(&single_hop, Path::new("/d"), 42, "", None).unwrap();
        let start = "SocksPort 0\nHiddenServiceSingleHopMode 1\nHiddenServiceNonAnonymousMode 1\nControlPort ";
        assert!(text.starts_with(start) && !text.contains("SocksPort 127"), "{text}");
        assert!(!text.contains("HiddenServiceDir"), "{text}");

        let serves = torrc(&single_hop, Path::new("/a b"), 42, "", TARGET).unwrap();
        assert!(serves.contains("\nHiddenServiceDir /a b/onion\nHiddenServicePort 80 127.0.0.1:8080\n"), "{serves}");
        gate::check(&serves).unwrap();
    }

    #[test]
    fn what_can_not_be_passed_on_is_told_by_its_place() {
        let answer = |data: &str, file: &str| torrc(&tor(), Path::new(data), 42, file, None).unwrap_err().to_string();
        assert_eq!(
            answer("/d", "UseEntryGuards 0\n\nsocksport 9050\n"),
            "/etc/extra:3: \"socksport 9050\" sets SocksPort, which perfd sets itself; leave it out, for perfd lets tor \
             choose its ports"
        );
        assert_eq!(
            answer("/d", "FallbackDir 192.0.2.1:80"),
            "/etc/extra:1: \"FallbackDir 192.0.2.1:80\" could lead out of the private network that authorities names; \
             leave it out"
        );
        for path in ["/a#b", "/a\"b", "/a\\b", "/a\nb", "/a "] {
            let remedy =
                "a torrc can't hold such a path; take one without quotes, backslashes, # and control characters";
            assert_eq!(answer(path, ""), format!("{path}: {remedy}"));
        }
    }

    #[test]
    fn the_transport_is_that_of_the_bridges_in_use() {
        let cases = [
            ("", None),
            ("Bridge obfs4 192.0.2.1:443 AA cert=x", None),
            ("UseBridges 0\nBridge obfs4 192.0.2.1:443", None),
            ("UseBridges 1", None),
            ("UseBridges 1\nBridge obfs4 192.0.2.1:443 AA cert=x", Some("obfs4")),
            ("bridge meek_lite 192.0.2.1:443\nusebridges 1 # yes", Some("meek_lite")),
            ("UseBridges 1\nBridge 192.0.2.1:443 AA", Some("bridge")),
            ("UseBridges 1\nBridge [2001:db8::1]:443", Some("bridge")),
            ("UseBridges 1\n#Bridge obfs4 192.0.2.1:443\nBridge snowflake 192.0.2.3:80", Some("snowflake")),
            (
                "UseBridges 1\nBridge obfs4 192.0.2.1:1\nBridge 192.0.2.1:2\nBridge obfs4 192.0.2.1:3",
                Some("bridge,obfs4"),
            ),
        ];
        for (torrc, transport) in cases {
            assert_eq!(transport_of(torrc).as_deref(), transport, "{torrc}");
        }
    }
}
