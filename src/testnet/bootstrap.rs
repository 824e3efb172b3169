//! From nothing to a network through which a client has fetched.

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::torrc::{INITIAL_VOTING_INTERVAL, Plan, PlannedNode, RELAYS, VOTE_TO_CONSENSUS, client_torrc};
use super::{
    Client, Node, Options, Role, STATE, Status, TestNet, TestNetError, end_all, fetch, gate, lock, prepare, process,
    status,
};

/// How far a network has come, in order; [`up`] reports each when it begins or moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The network was up before.
    AlreadyUp,
    /// The authority's keys are being made.
    AuthorityKeys,
    /// So many relays have told the authority of themselves.
    Relays {
        /// Those that have.
        known: usize,
        /// All.
        of: usize,
    },
    /// The authority makes a consensus with all relays in it, and the relays fetch it.
    Consensus,
    /// The client builds up what it needs.
    Client {
        /// tor's own figure.
        percent: u8,
    },
    /// The client fetches.
    FirstFetch,
    /// The client has fetched.
    Up,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stage::AlreadyUp => write!(f, "already up"),
            Stage::AuthorityKeys => write!(f, "authority keys"),
            Stage::Relays { known, of } => write!(f, "relays {known}/{of}"),
            Stage::Consensus => write!(f, "consensus"),
            Stage::Client { percent } => write!(f, "client bootstrapped {percent} %"),
            Stage::FirstFetch => write!(f, "first fetch"),
            Stage::Up => write!(f, "up"),
        }
    }
}

/// Brings a network up and tells `progress` of each stage. Where one is up already it is returned as
/// it is. Where this fails, or is dropped before it is done, no tor is left.
pub async fn up(options: Options, mut progress: impl FnMut(Stage)) -> Result<TestNet, TestNetError> {
    let tor_dir = find_tor(options.tor_dir.as_deref())?;
    let dir = prepare(&options.dir)?;
    let _lock = lock(&dir)?;
    // A state that cannot be read is one of no network that runs.
    if let Ok(Some(Status { net, ended })) = status(&dir)
        && ended.is_empty()
    {
        progress(Stage::AlreadyUp);
        return Ok(net);
    }
    end_all(&dir).await?;
    clear(&dir)?;

    let (listener, net) = claim_addresses().await?;
    let plan = Plan { dir: dir.clone(), net, authorities: Vec::new(), vote_offset: 0, owner: options.owner };
    let mut rising = Rising { plan, tor_dir, listener, tors: Vec::new(), stage: None, progress: &mut progress };
    let result = match tokio::time::timeout(options.deadline, rising.run()).await {
        Ok(result) => result,
        Err(_) => Err(rising.too_late(options.deadline)),
    };
    match result.and_then(|net| write_state(&net).map(|()| net)) {
        Ok(net) => {
            rising.tors.clear();
            rising.enter(Stage::Up);
            Ok(net)
        }
        Err(error) => {
            end_all(&dir).await?;
            Err(error)
        }
    }
}

/// Starts one more client in a network that is up, at `127.77.NET.NUMBER` (`number` 10 to 250, of
/// nobody else). It bootstraps by itself, and ends with `owner` or at [`super::down`].
pub fn start_client(
    net: &TestNet,
    tor_dir: Option<&Path>,
    name: &str,
    number: u8,
    owner: Option<u32>,
) -> Result<Client, TestNetError> {
    let (planned, torrc) = client_torrc(net, name, number, owner);
    let folder = super::torrc::node_folder(&net.dir, name);
    if let Some(pid) = process::running(&folder) {
        let why = format!("a tor of this name runs (pid {pid})");
        return Err(TestNetError::Folder { dir: folder, why });
    }
    let child = gate::start(&find_tor(tor_dir)?.join("tor"), &folder, &torrc, gate::Task::Run)
        .map_err(io_error(format!("starting the tor of {name}")))?;
    let pid = child.id().unwrap_or_default();
    let [socks, control] = client_ports(&planned);
    let node = Node { name: planned.name, role: planned.role, pid, address: planned.address };
    Ok(Client { node, socks, control, cookie: folder.join("data/control_auth_cookie") })
}

const POLL: Duration = Duration::from_millis(50);
const LOG_LINES: usize = 12;
/// From the torrcs' writing until the relays have told the authority of themselves.
const RELAYS_READY: Duration = Duration::from_millis(1500);

/// A network that comes up. Dropped on the way, it takes its tors with it.
struct Rising<'a> {
    plan: Plan,
    tor_dir: PathBuf,
    /// Holds the network's addresses until the tors do, and is then fetched from.
    listener: TcpListener,
    tors: Vec<(PlannedNode, Child)>,
    stage: Option<Stage>,
    progress: &'a mut dyn FnMut(Stage),
}

impl Drop for Rising<'_> {
    fn drop(&mut self) {
        for (_, child) in &mut self.tors {
            // One that has ended already cannot be killed, which is just as well.
            let _ = child.start_kill();
        }
    }
}

impl Rising<'_> {
    async fn run(&mut self) -> Result<TestNet, TestNetError> {
        self.enter(Stage::AuthorityKeys);
        let resolv = self.plan.dir.join("resolv.conf");
        // Nobody answers there. Without a name server relays would ask the machine's.
        fs::write(&resolv, format!("nameserver {}\n", self.plan.authority().address))
            .map_err(io_error(resolv.display().to_string()))?;
        let authority = self.plan.authority();
        let line = authority_line(&self.plan, &authority, &self.tor_dir).await?;
        self.plan.authorities = vec![line];

        self.enter(Stage::Relays { known: 0, of: usize::from(RELAYS) });
        self.plan.vote_offset = vote_offset(SystemTime::now());
        let data = self.plan.folder(&authority).join("data");
        self.start(authority)?;
        for relay in self.plan.relays() {
            self.start(relay)?;
        }
        self.until_relays(&data.join("cached-descriptors.new"), "router ", |known, of| {
            Some(Stage::Relays { known, of })
        })
        .await?;

        self.enter(Stage::Consensus);
        let consensus = "cached-microdesc-consensus";
        self.until_relays(&data.join(consensus), "r ", |_, _| None).await?;
        // Who asked for a consensus too early waits long before asking again, unless told to reload.
        let relays: Vec<PathBuf> = self.plan.relays().iter().map(|relay| self.plan.folder(relay)).collect();
        process::send(&relays, Signal::SIGHUP);
        for relay in &relays {
            self.until_relays(&relay.join("data").join(consensus), "r ", |_, _| None).await?;
        }

        self.enter(Stage::Client { percent: 0 });
        let client = self.plan.client();
        let folder = self.plan.folder(&client);
        self.start(client.clone())?;
        loop {
            match process::bootstrapped(&folder) {
                Some(100) => break,
                percent => self.enter(Stage::Client { percent: percent.unwrap_or(0) }),
            }
            self.pause().await?;
        }

        self.enter(Stage::FirstFetch);
        let [socks, control] = client_ports(&client);
        fetch::until_fetched(&self.listener, socks).await.map_err(io_error("the HTTP responder".to_owned()))?;
        self.all_run()?;
        let cookie = folder.join("data/control_auth_cookie");
        let nodes = self.tors.iter().map(|(planned, child)| Node {
            name: planned.name.clone(),
            role: planned.role,
            pid: child.id().unwrap_or_default(),
            address: planned.address,
        });
        let (dir, authorities) = (self.plan.dir.clone(), self.plan.authorities.clone());
        Ok(TestNet { socks, control, cookie, dir, authorities, nodes: nodes.collect() })
    }

    fn enter(&mut self, stage: Stage) {
        if self.stage != Some(stage) {
            self.stage = Some(stage);
            (self.progress)(stage);
        }
    }

    fn start(&mut self, node: PlannedNode) -> Result<(), TestNetError> {
        let (folder, torrc) = (self.plan.folder(&node), self.plan.torrc(&node));
        let child = gate::start(&self.tor_dir.join("tor"), &folder, &torrc, gate::Task::Run)
            .map_err(io_error(format!("starting the tor of {}", node.name)))?;
        self.tors.push((node, child));
        Ok(())
    }

    /// Waits until `file` has a line for every relay that starts with `keyword` and its nickname.
    async fn until_relays(
        &mut self,
        file: &Path,
        keyword: &str,
        stage: impl Fn(usize, usize) -> Option<Stage>,
    ) -> Result<(), TestNetError> {
        let starts: Vec<_> = self.plan.relays().iter().map(|relay| format!("{keyword}{} ", relay.name)).collect();
        loop {
            // tor writes it in its own time, and not always as text.
            let text = fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            let known = starts.iter().filter(|start| text.lines().any(|line| line.starts_with(*start))).count();
            if let Some(stage) = stage(known, starts.len()) {
                self.enter(stage);
            }
            if known == starts.len() {
                return Ok(());
            }
            self.pause().await?;
        }
    }

    async fn pause(&mut self) -> Result<(), TestNetError> {
        tokio::time::sleep(POLL).await;
        self.all_run()
    }

    fn all_run(&mut self) -> Result<(), TestNetError> {
        for (node, child) in &mut self.tors {
            let ended = child.try_wait().map_err(io_error(format!("the tor of {}", node.name)))?;
            if let Some(status) = ended {
                let log = process::last_log_lines(&self.plan.folder(node), LOG_LINES);
                return Err(TestNetError::TorEnded { node: node.name.clone(), status: status.to_string(), log });
            }
        }
        Ok(())
    }

    fn too_late(&self, after: Duration) -> TestNetError {
        let at_fault = match self.stage {
            Some(Stage::Client { .. } | Stage::FirstFetch) => self.plan.client(),
            _ => self.plan.authority(),
        };
        TestNetError::Deadline {
            after,
            stage: self.stage.map(|stage| stage.to_string()).unwrap_or_default(),
            log: process::last_log_lines(&self.plan.folder(&at_fault), LOG_LINES),
            node: at_fault.name,
        }
    }
}

/// The folder that holds `tor` and `tor-gencert`: the one `asked` for, else `$PERFD_TOR_DIR`, else one of `PATH`.
pub fn find_tor(asked: Option<&Path>) -> Result<PathBuf, TestNetError> {
    let holds_both = |dir: &Path| dir.join("tor").is_file() && dir.join("tor-gencert").is_file();
    let named = asked.map(Path::to_owned).or_else(|| std::env::var_os("PERFD_TOR_DIR").map(PathBuf::from));
    if let Some(dir) = named {
        return if holds_both(&dir) { Ok(dir) } else { Err(TestNetError::TorNotFound(dir.display().to_string())) };
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|dir| holds_both(dir));
    found.ok_or_else(|| TestNetError::TorNotFound("PATH".to_owned()))
}

fn clear(dir: &Path) -> Result<(), TestNetError> {
    match fs::remove_dir_all(dir.join("nodes")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing the old nodes".into())(error)),
        _ => Ok(()),
    }
}

/// Finds a NET whose addresses `127.77.NET.N` are free. The listener, whose port is the same in every
/// network, is what two that come up at the same time cannot both have.
async fn claim_addresses() -> Result<(TcpListener, u8), TestNetError> {
    let mut last = None;
    for net in 0..=255 {
        let claim = SocketAddr::from((Ipv4Addr::new(127, 77, net, 254), 7077));
        let plan = Plan { dir: PathBuf::new(), net, authorities: Vec::new(), vote_offset: 0, owner: None };
        match TcpListener::bind(claim).await {
            Ok(listener) => match taken(&plan) {
                None => return Ok((listener, net)),
                taken => last = taken,
            },
            Err(source) => last = Some((claim, source)),
        }
    }
    let (address, source) = last.unwrap_or_else(|| (([127, 77, 0, 1], 0).into(), io::ErrorKind::AddrInUse.into()));
    Err(TestNetError::Address { address, source })
}

fn taken(plan: &Plan) -> Option<(SocketAddr, io::Error)> {
    let addresses: Vec<_> = plan.nodes().iter().flat_map(PlannedNode::listens_on).collect();
    addresses.into_iter().find_map(|address| match std::net::TcpListener::bind(address) {
        Ok(_) => None,
        Err(error) => Some((address, error)),
    })
}

/// The votes' offset with which the authority first votes soon after the relays are ready.
fn vote_offset(now: SystemTime) -> u64 {
    let ready = now.duration_since(UNIX_EPOCH).unwrap_or_default() + RELAYS_READY;
    (ready.as_secs() + 1 + VOTE_TO_CONSENSUS) % INITIAL_VOTING_INTERVAL
}

/// Makes the authority's keys, and from them the value of everyone's `DirAuthority` line.
async fn authority_line(plan: &Plan, authority: &PlannedNode, tor_dir: &Path) -> Result<String, TestNetError> {
    let folder = plan.folder(authority);
    let [or_address, dir_address] = [authority.listens_on()[0], authority.listens_on()[1]];
    // An authority without a certificate would refuse, so tor is asked as a relay; and as it has to be
    // told of some authority before ours is known, this one stands in.
    let nobody = Plan { authorities: vec![format!("nobody {dir_address} {}", "0".repeat(40))], ..plan.clone() };
    let as_relay = nobody.torrc(&PlannedNode { role: Role::Relay, ..authority.clone() });
    let tor = gate::start(&tor_dir.join("tor"), &folder, &as_relay, gate::Task::ListFingerprint)
        .map_err(io_error("starting tor".to_owned()))?;
    let (fingerprint, certificate) =
        tokio::join!(output("tor --list-fingerprint", tor), certificate(&folder, tor_dir, dir_address));
    // "authority 0123 4567 …"
    let fingerprint: String = fingerprint?
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{} ", authority.name)))
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let certificate = certificate?;
    let identity =
        certificate.lines().find_map(|line| line.strip_prefix("fingerprint ")).unwrap_or_default().trim().to_owned();
    Ok(format!("{} orport={} no-v2 v3ident={identity} {dir_address} {fingerprint}", authority.name, or_address.port()))
}

/// Makes the authority's long-term and signing keys, and returns the certificate.
async fn certificate(folder: &Path, tor_dir: &Path, dir_address: SocketAddr) -> Result<String, TestNetError> {
    let keys = folder.join("data/keys");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys).map_err(io_error(keys.display().to_string()))?;
    let certificate = keys.join("authority_certificate");
    let mut gencert = Command::new(tor_dir.join("tor-gencert"))
        .args(["--create-identity-key", "--passphrase-fd", "0", "-m", "12", "-a", &dir_address.to_string()])
        .arg("-i")
        .arg(keys.join("authority_identity_key"))
        .arg("-s")
        .arg(keys.join("authority_signing_key"))
        .arg("-c")
        .arg(&certificate)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(io_error("starting tor-gencert".to_owned()))?;
    if let Some(mut stdin) = gencert.stdin.take() {
        // A key of minutes on loopback; one that ended early says why below.
        let _ = stdin.write_all(b"not a secret\n").await;
    }
    output("tor-gencert", gencert).await?;
    fs::read_to_string(&certificate).map_err(io_error(certificate.display().to_string()))
}

async fn output(program: &str, child: Child) -> Result<String, TestNetError> {
    let output = child.wait_with_output().await.map_err(io_error(program.to_owned()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let all = text + &String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = all.lines().collect();
    let last = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    Err(TestNetError::Program { program: program.to_owned(), status: output.status.to_string(), output: last })
}

fn client_ports(client: &PlannedNode) -> [SocketAddr; 2] {
    debug_assert_eq!(client.role, Role::Client);
    [super::torrc::SOCKS_PORT, super::torrc::CONTROL_PORT].map(|port| (client.address, port).into())
}

/// Under another name first, so that nobody reads half of it.
fn write_state(net: &TestNet) -> Result<(), TestNetError> {
    let (file, draft) = (net.dir.join(STATE), net.dir.join("testnet.json.new"));
    let text = serde_json::to_string_pretty(net).map_err(|error| io_error(STATE.to_owned())(error.into()))?;
    fs::write(&draft, text + "\n")
        .and_then(|()| fs::rename(&draft, &file))
        .map_err(io_error(file.display().to_string()))
}

fn io_error(what: String) -> impl FnOnce(io::Error) -> TestNetError {
    move |source| TestNetError::Io { what, source }
}
