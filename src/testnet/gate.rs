//! The one place that starts a tor or changes its torrc, and what it refuses to start.
//!
//! A tor that knows the public directory authorities would join the public network. So only a torrc
//! that says `TestingTorNetwork 1`, names authorities on loopback addresses alone, and binds every
//! outgoing connection to a loopback address gets past [`check`], and nothing that is written
//! elsewhere (/etc/tor/torrc, a defaults file, an option of the command line) can change what it says.

use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;

use tokio::process::{Child, Command};

/// What a tor is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// To run until it is ended; its output goes to the folder's `log`.
    Run,
    /// To make its keys, print its fingerprint and end; its output is piped.
    ListFingerprint,
}

/// Why a torrc is not started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Without it tor has the public authorities.
    #[error("it does not say `TestingTorNetwork 1`")]
    NotTesting,
    /// Without one tor has the public authorities.
    #[error("it has no DirAuthority")]
    NoAuthority,
    /// An authority somewhere else, or in a form that is not understood here.
    #[error("its `DirAuthority {0}` is not an authority on a loopback address")]
    Authority(String),
    /// Without it tor may connect to anywhere.
    #[error("it has no OutboundBindAddress on a loopback address")]
    Unbound,
    /// A line which brings in other files or authorities, or that tor could read as another than it seems.
    #[error("its line `{0}` could let in other authorities")]
    Line(String),
}

/// Starts the `tor` binary with `torrc` in `folder`, which is made if it is missing (mode 0700, as is
/// its `data`), and writes its pid to the folder's `pid`. The tor has a process group of its own, so
/// that a terminal's Ctrl-C passes it by.
pub fn start(tor: &Path, folder: &Path, torrc: &str, task: Task) -> io::Result<Child> {
    allow(torrc)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder.join("data"))?;
    let file = folder.join("torrc");
    fs::write(&file, torrc)?;
    // tor reads two files; the second one is empty, and not the system's.
    let defaults = folder.join("torrc-defaults");
    fs::write(&defaults, "")?;

    let mut command = Command::new(tor);
    command.arg("-f").arg(&file).arg("--defaults-torrc").arg(&defaults).stdin(Stdio::null()).process_group(0);
    match task {
        Task::Run => {
            let log = File::create(folder.join("log"))?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        Task::ListFingerprint => {
            command.arg("--list-fingerprint").stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        }
    }
    let child = command.spawn()?;
    if let Some(pid) = child.id() {
        fs::write(folder.join("pid"), pid.to_string())?;
    }
    Ok(child)
}

/// Gives the tor of `folder` another torrc, which it reads at the next SIGHUP.
pub fn rewrite(folder: &Path, torrc: &str) -> io::Result<()> {
    allow(torrc)?;
    fs::write(folder.join("torrc"), torrc)
}

fn allow(torrc: &str) -> io::Result<()> {
    check(torrc).map_err(|refusal| io::Error::other(format!("torrc refused: {refusal}")))
}

/// Whether a tor with this torrc stays within a private network on loopback.
///
/// Reads keywords as tor does, without regard to case, and refuses what this reading might take for
/// something else than tor's would: continued lines, `+` and `/` prefixes, abbreviated keywords.
pub fn check(torrc: &str) -> Result<(), Refusal> {
    let (mut testing, mut authorities, mut bound) = (false, 0, false);
    for line in torrc.split('\n') {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let refused = || Refusal::Line(line.to_owned());
        let odd = |c: char| c == '\\' || c == '"' || (c.is_control() && c != '\t');
        if line.contains(odd) || line.starts_with(['%', '+', '/']) {
            return Err(refused());
        }
        let (keyword, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let (keyword, value) = (keyword.to_ascii_lowercase(), value.trim());
        match keyword.as_str() {
            "testingtornetwork" if value == "1" => testing = true,
            "testingtornetwork" => return Err(Refusal::NotTesting),
            "dirauthority" if is_loopback_authority(value) => authorities += 1,
            "dirauthority" => return Err(Refusal::Authority(value.to_owned())),
            "outboundbindaddress" if value.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) => bound = true,
            _ if GUARDED.iter().any(|name| name.starts_with(&keyword)) => return Err(refused()),
            _ => {}
        }
    }
    match (testing, authorities, bound) {
        (false, _, _) => Err(Refusal::NotTesting),
        (_, 0, _) => Err(Refusal::NoAuthority),
        (_, _, false) => Err(Refusal::Unbound),
        _ => Ok(()),
    }
}

// Refused also as abbreviations, which tor completes; those that are allowed in full come before.
const GUARDED: [&str; 13] = [
    "testingtornetwork",
    "dirauthority",
    "dirserver",
    "alternatedirauthority",
    "alternatebridgeauthority",
    "fallbackdir",
    "usedefaultfallbackdirs",
    "usebridges",
    "bridge",
    "outboundbindaddress",
    "outboundbindaddressor",
    "outboundbindaddressexit",
    "outboundbindaddresspt",
];

fn is_loopback_authority(value: &str) -> bool {
    let harmless = |word: &str| {
        let word = word.to_ascii_lowercase();
        word == "no-v2" || word.starts_with("orport=") || word.starts_with("v3ident=")
    };
    let mut words = value.split_whitespace().skip(1).skip_while(|word| harmless(word));
    let address = words.next().and_then(|word| word.parse::<SocketAddr>().ok());
    let fingerprint = words.all(|word| word.bytes().all(|b| b.is_ascii_hexdigit()));
    address.is_some_and(|address| address.ip().is_loopback()) && fingerprint
}

#[cfg(test)]
mod tests {
    use super::*;

    const TESTING: &str = "TestingTorNetwork 1\n";
    const AUTHORITY: &str = "DirAuthority a orport=5000 no-v2 v3ident=AA 127.77.0.1:7000 BBBB CCCC\n";
    const BOUND: &str = "OutboundBindAddress 127.77.0.1\n";

    fn with(line: &str) -> Result<(), Refusal> {
        check(&format!("{TESTING}{AUTHORITY}{BOUND}{line}\n"))
    }

    #[test]
    fn a_private_network_on_loopback_is_let_through() {
        assert_eq!(check(&format!("{TESTING}{AUTHORITY}{BOUND}")), Ok(()));
        assert_eq!(check(&format!("testingTORnetwork\t1 # yes\n{AUTHORITY}{AUTHORITY}{BOUND}")), Ok(()));
        for line in ["SocksPort 0", "# %include x", "Nickname bridge", "DirCache 1", "DataDirectory /a b"] {
            assert_eq!(with(line), Ok(()), "{line}");
        }
    }

    #[test]
    fn the_public_network_is_refused() {
        let cases = [
            ("".to_owned(), Refusal::NotTesting),
            (format!("{AUTHORITY}{BOUND}"), Refusal::NotTesting),
            (format!("#{TESTING}{AUTHORITY}{BOUND}"), Refusal::NotTesting),
            (format!("TestingTorNetwork 0\n{AUTHORITY}{BOUND}"), Refusal::NotTesting),
            (format!("{TESTING}{BOUND}"), Refusal::NoAuthority),
            (format!("{TESTING}#{AUTHORITY}{BOUND}"), Refusal::NoAuthority),
            (format!("{TESTING}{AUTHORITY}"), Refusal::Unbound),
        ];
        for (torrc, refusal) in cases {
            assert_eq!(check(&torrc), Err(refusal), "{torrc}");
        }
        assert_eq!(with("TESTINGTORNETWORK 0"), Err(Refusal::NotTesting));
    }

    #[test]
    fn other_authorities_are_refused() {
        for value in [
            "moria1 orport=9101 v3ident=AA 128.31.0.39:9131 BBBB",
            "a 127.0.0.1:7000 8.8.8.8:80",
            "a upload=http://8.8.8.8/ 127.0.0.1:7000 BBBB",
            "a ipv6=[2001:db8::1]:9001 127.0.0.1:7000 BBBB",
            "127.0.0.1:7000 BBBB",
            "a localhost:7000 BBBB",
            "",
        ] {
            assert_eq!(with(&format!("dirauthority {value}")), Err(Refusal::Authority(value.to_owned())));
        }
    }

    #[test]
    fn lines_that_tor_could_read_otherwise_are_refused() {
        for line in [
            "%include /etc/tor/torrc",
            "%INCLUDE x",
            "/DirAuthority",
            "+DirAuthority moria1 128.31.0.39:9131 BBBB",
            "DirAuth moria1 128.31.0.39:9131 BBBB",
            "DirServer moria1 128.31.0.39:9131 BBBB",
            "TestingTorNet 0",
            "AlternateDirAuthority moria1 128.31.0.39:9131 BBBB",
            "FallbackDir 8.8.8.8:80",
            "UseBridges 1",
            "Bridge 8.8.8.8:80",
            "OutboundBindAddress 0.0.0.0",
            "OutboundBindAddressExit 192.0.2.1",
            "Nickname a\\",
            "Nickname a\rOutboundBindAddress 127.0.0.1",
            "DataDirectory \"x\"",
        ] {
            assert_eq!(with(line), Err(Refusal::Line(line.to_owned())));
        }
    }

    #[tokio::test]
    async fn a_refused_torrc_starts_nothing_and_writes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("node");
        let error = start(Path::new("/bin/true"), &folder, "SocksPort 9050\n", Task::Run).unwrap_err();
        assert_eq!(error.to_string(), "torrc refused: it does not say `TestingTorNetwork 1`");
        assert!(!folder.exists());
        assert!(rewrite(dir.path(), "SocksPort 9050\n").is_err());
        assert!(!dir.path().join("torrc").exists());
    }
}
