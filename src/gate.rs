//! The one place that starts a tor or changes its torrc, and what it refuses to start.
//!
//! A tor that knows the public directory authorities would join the public network. So of a private network, only a
//! torrc that says `TestingTorNetwork 1`, names authorities on loopback addresses alone, and binds every
//! outgoing connection to a loopback address gets past [`check`], and nothing that is written
//! elsewhere (/etc/tor/torrc, a defaults file, an option of the command line) can change what it says. A tor of the
//! public network is refused wherever [`PRIVATE_ONLY`] is set, as it is for every test and under cargo.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;

use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

/// The environment variable that, set to anything but nothing and `0`, lets no tor join the public network.
pub const PRIVATE_ONLY: &str = "PERFD_PRIVATE_TORS_ONLY";

/// What a tor is started for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// To run until it is ended, whatever becomes of perfd; its output goes to the folder's `log`.
    Run,
    /// To make its keys, print its fingerprint and end; its output is piped.
    ListFingerprint,
}

/// Which network a tor is to join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// One on loopback; the torrc must get past [`check`].
    Private,
    /// The one that everybody uses.
    Public,
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
    #[error("its line `{0}` could let in other authorities, or let something out")]
    Line(String),
    /// The environment says so.
    #[error(
        "this tor would join the public network, which {PRIVATE_ONLY} in the environment rules out; give it the \
         authorities of a private one (`perfd testnet status` prints them), or take the variable out"
    )]
    PrivateOnly,
}

/// Starts the `tor` binary with `torrc`, of a private network, in `folder`, which is made if it is missing (mode
/// 0700), and writes its pid to the folder's `pid`. The tor has a process group of its own, so that a terminal's
/// Ctrl-C passes it by.
///
/// # Errors
/// A torrc that is refused, and what the system says.
pub fn start(tor: &Path, folder: &Path, torrc: &str, task: Task) -> io::Result<Child> {
    let mut command = prepare(tor, folder, torrc, Network::Private)?;
    match task {
        Task::Run => {
            let log = File::create(folder.join("log"))?;
            command.stdout(log.try_clone()?).stderr(log);
        }
        Task::ListFingerprint => {
            command.arg("--list-fingerprint").stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        }
    }
    spawn(command, folder)
}

/// The same for a tor that is ours to the end, of either network: all that it says comes through the one pipe, which
/// has to be read, and it is killed when its [`Child`] is dropped.
///
/// # Errors
/// As [`start`].
pub fn start_piped(tor: &Path, folder: &Path, torrc: &str, network: Network) -> io::Result<(Child, pipe::Receiver)> {
    let mut command = prepare(tor, folder, torrc, network)?;
    let (reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer).kill_on_drop(true);
    let output = pipe::Receiver::from_owned_fd(reader.into())?;
    Ok((spawn(command, folder)?, output))
}

/// Has the `tor` binary say whether it would take a torrc: one that it does not take would end a tor that is told to
/// reload. It says so by how it ends, and in its output, which is piped. `folder` is for it alone.
///
/// # Errors
/// As [`start`].
pub fn verify(tor: &Path, folder: &Path, torrc: &str, network: Network) -> io::Result<Child> {
    let mut command = prepare(tor, folder, torrc, network)?;
    command.arg("--verify-config").stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    command.spawn()
}

fn prepare(tor: &Path, folder: &Path, torrc: &str, network: Network) -> io::Result<Command> {
    allow(torrc, network)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let file = folder.join("torrc");
    fs::write(&file, torrc)?;
    // tor reads two files; the second one is empty, and not the system's.
    let defaults = folder.join("torrc-defaults");
    fs::write(&defaults, "")?;
    let mut command = Command::new(tor);
    command.arg("-f").arg(&file).arg("--defaults-torrc").arg(&defaults).stdin(Stdio::null()).process_group(0);
    Ok(command)
}

fn spawn(mut command: Command, folder: &Path) -> io::Result<Child> {
    let child = command.spawn()?;
    if let Some(pid) = child.id() {
        fs::write(folder.join("pid"), pid.to_string())?;
    }
    Ok(child)
}

/// Gives the tor of `folder` another torrc, which it reads at the next SIGHUP.
///
/// # Errors
/// As [`start`].
pub fn rewrite(folder: &Path, torrc: &str, network: Network) -> io::Result<()> {
    allow(torrc, network)?;
    fs::write(folder.join("torrc"), torrc)
}

fn allow(torrc: &str, network: Network) -> io::Result<()> {
    let allowed = match network {
        Network::Private => check(torrc),
        Network::Public if is_set(std::env::var_os(PRIVATE_ONLY).as_deref()) => Err(Refusal::PrivateOnly),
        Network::Public => Ok(()),
    };
    allowed.map_err(|refusal| io::Error::other(format!("torrc refused: {refusal}")))
}

fn is_set(variable: Option<&OsStr>) -> bool {
    variable.is_some_and(|value| !value.is_empty() && value != "0")
}

/// Whether a tor with this torrc stays within a private network on loopback.
///
/// Reads keywords as tor does, without regard to case, and refuses what this reading might take for
/// something else than tor's would: continued lines, `+` and `/` prefixes, abbreviated keywords.
///
/// # Errors
/// The first line that is refused, or what is missing.
pub fn check(torrc: &str) -> Result<(), Refusal> {
    let (mut testing, mut authorities, mut bound) = (false, 0, false);
    for line in torrc.split('\n') {
        match check_line(line)? {
            Line::Testing => testing = true,
            Line::Authority => authorities += 1,
            Line::Bound => bound = true,
            Line::Other => {}
        }
    }
    match (testing, authorities, bound) {
        (false, _, _) => Err(Refusal::NotTesting),
        (_, 0, _) => Err(Refusal::NoAuthority),
        (_, _, false) => Err(Refusal::Unbound),
        _ => Ok(()),
    }
}

/// What a line says of the network that a tor joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// `TestingTorNetwork 1`.
    Testing,
    /// An authority on loopback.
    Authority,
    /// Outgoing connections are bound to loopback.
    Bound,
    /// Nothing, or what may be said in a private network: a bridge on loopback.
    Other,
}

/// Whether a line may stand in the torrc of a private network.
///
/// # Errors
/// It may not.
pub fn check_line(line: &str) -> Result<Line, Refusal> {
    let line = line.split('#').next().unwrap_or_default().trim();
    if line.is_empty() {
        return Ok(Line::Other);
    }
    let refused = || Err(Refusal::Line(line.to_owned()));
    let odd = |c: char| c == '\\' || c == '"' || (c.is_control() && c != '\t');
    if line.contains(odd) || line.starts_with(['%', '+', '/']) {
        return refused();
    }
    let (keyword, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let (keyword, value) = (keyword.to_ascii_lowercase(), value.trim());
    match keyword.as_str() {
        "testingtornetwork" if value == "1" => Ok(Line::Testing),
        "testingtornetwork" => Err(Refusal::NotTesting),
        "dirauthority" if is_loopback_authority(value) => Ok(Line::Authority),
        "dirauthority" => Err(Refusal::Authority(value.to_owned())),
        "outboundbindaddress" if value.parse().is_ok_and(|ip: IpAddr| ip.is_loopback()) => Ok(Line::Bound),
        "usebridges" if matches!(value, "0" | "1") => Ok(Line::Other),
        "bridge" if is_loopback_bridge(value) => Ok(Line::Other),
        _ if GUARDED.iter().any(|name| name.starts_with(&keyword)) => refused(),
        _ => Ok(Line::Other),
    }
}

// Refused also as abbreviations, which tor completes; those that are allowed in full come before.
const GUARDED: [&str; 15] = [
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
    // Other programs, which would connect for themselves.
    "clienttransportplugin",
    "servertransportplugin",
];

fn is_loopback_authority(value: &str) -> bool {
    let harmless = |word: &str| {
        let word = word.to_ascii_lowercase();
        word == "no-v2" || word.starts_with("orport=") || word.starts_with("v3ident=")
    };
    is_loopback(value.split_whitespace().skip(1).skip_while(|word| harmless(word)))
}

fn is_loopback_bridge(value: &str) -> bool {
    is_loopback(value.split_whitespace())
}

/// A loopback address and, perhaps in several words, a fingerprint.
fn is_loopback<'a>(mut words: impl Iterator<Item = &'a str>) -> bool {
    let address = words.next().and_then(|word| word.parse::<SocketAddr>().ok());
    let fingerprint = words.all(|word| word.bytes().all(|b| b.is_ascii_hexdigit()));
    address.is_some_and(|address| address.ip().is_loopback()) && fingerprint
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use tokio::io::AsyncReadExt;

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
        for line in ["UseBridges 0", "usebridges 1 # yes", "Bridge 127.77.0.2:5000", "BRIDGE [::1]:5000 AAAA BBBB"] {
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
            "UseBridges 2",
            "UseB 1",
            "Bridge 8.8.8.8:80",
            "Bridge 8.8.8.8:80 127.0.0.1:80",
            "Bridge 127.0.0.1",
            "Bridge localhost:80",
            "Bridge obfs4 127.0.0.1:80 AAAA",
            "Bridge 127.0.0.1:80 AAAA cert=x",
            "Bridge",
            "Bri 127.0.0.1:80",
            "ClientTransportPlugin obfs4 exec /usr/bin/obfs4proxy",
            "ServerTransportPlugin obfs4 exec /usr/bin/obfs4proxy",
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
        assert!(rewrite(dir.path(), "SocksPort 9050\n", Network::Private).is_err());
        assert!(!dir.path().join("torrc").exists());
    }

    #[tokio::test]
    async fn no_tor_of_the_public_network_is_started_where_the_environment_rules_it_out() {
        // Under cargo, this is what .cargo/config.toml says, and scripts/lib.sh for the scripts.
        assert_eq!(std::env::var(PRIVATE_ONLY).as_deref(), Ok("1"));
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        let error = start_piped(Path::new("/bin/true"), &folder, "SocksPort auto\n", Network::Public).unwrap_err();
        assert_eq!(
            error.to_string(),
            "torrc refused: this tor would join the public network, which PERFD_PRIVATE_TORS_ONLY in the environment \
             rules out; give it the authorities of a private one (`perfd testnet status` prints them), or take the \
             variable out"
        );
        assert!(!folder.exists());
        assert!(rewrite(dir.path(), "SocksPort auto\n", Network::Public).is_err());
    }

    #[test]
    fn the_variable_counts_unless_it_is_empty_or_zero() {
        for (value, set) in
            [(None, false), (Some(""), false), (Some("0"), false), (Some("1"), true), (Some("no"), true)]
        {
            assert_eq!(is_set(value.map(OsStr::new)), set, "{value:?}");
        }
    }

    #[tokio::test]
    async fn what_a_piped_tor_says_on_either_stream_comes_through_one_pipe() {
        let dir = tempfile::tempdir().unwrap();
        // A shell takes the torrc for a script, most of which it does not find.
        let torrc = format!("{TESTING}{AUTHORITY}{BOUND}echo said on stdout\n");
        let folder = dir.path().join("data");
        let (mut child, mut output) = start_piped(Path::new("/bin/sh"), &folder, &torrc, Network::Private).unwrap();
        let mut said = String::new();
        output.read_to_string(&mut said).await.unwrap();
        assert!(child.wait().await.unwrap().success());
        assert!(said.contains("TestingTorNetwork: ") && said.ends_with("said on stdout\n"), "{said}");
        assert_eq!(fs::read_to_string(folder.join("torrc")).unwrap(), torrc);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
