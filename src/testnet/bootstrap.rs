//! From nothing to a network through which a client has fetched.

use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use tokio::net::TcpListener;

use super::keys::authority_line;
use super::process::{self, LOG_LINES, POLL};
use super::torrc::{INITIAL_VOTING_INTERVAL, Plan, PlannedNode, RELAYS, VOTE_TO_CONSENSUS};
use super::tors::Tors;
use super::{Options, STATE, Status, TestNet, TestNetError, end_all, fetch, io_error, lock, prepare, status};
use crate::gate::{self, Network};

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
pub async fn up(options: Options, mut progress: impl FnMut(Stage) + Send) -> Result<TestNet, TestNetError> {
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
    let plan = Plan { dir: dir.clone(), net, authorities: Vec::new(), vote_offset: None, owner: options.owner };
    let mut rising = Rising {
        tors: Tors::default(),
        awaited: plan.authority(),
        plan,
        tor_dir,
        listener,
        stage: None,
        progress: &mut progress,
    };
    let result = match tokio::time::timeout(options.deadline, rising.run()).await {
        Ok(result) => result,
        Err(_) => Err(rising.too_late(options.deadline)),
    };
    match result.and_then(|net| write_state(&net).map(|()| net)) {
        Ok(net) => {
            rising.tors.release();
            rising.enter(Stage::Up);
            Ok(net)
        }
        Err(error) => {
            end_all(&dir).await?;
            Err(error)
        }
    }
}

/// As long as the authority may take to read its torrc again, before it is late for the first vote.
const RELOAD: Duration = Duration::from_millis(400);
/// Between two reminders to a relay to fetch the consensus.
const NUDGE: Duration = Duration::from_millis(500);

/// A network that comes up.
struct Rising<'a> {
    plan: Plan,
    tor_dir: PathBuf,
    /// Holds the network's addresses until the tors do, and is then fetched from.
    listener: TcpListener,
    tors: Tors,
    /// Whose log tells most of what is being waited for.
    awaited: PlannedNode,
    stage: Option<Stage>,
    progress: &'a mut (dyn FnMut(Stage) + Send),
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
        self.start(authority.clone())?;
        for relay in self.plan.relays() {
            self.start(relay)?;
        }
        self.until_relays_are_known(&authority).await?;
        self.enter(Stage::Consensus);
        self.let_vote(&authority)?;
        self.until_consensus(&authority).await?;

        self.enter(Stage::Client { percent: 0 });
        let client = self.plan.client();
        let folder = self.plan.folder(&client);
        self.start(client.clone())?;
        self.awaited = client.clone();
        loop {
            match process::bootstrapped(&folder) {
                Some(100) => break,
                percent => self.enter(Stage::Client { percent: percent.unwrap_or(0) }),
            }
            self.pause().await?;
        }

        self.enter(Stage::FirstFetch);
        let [socks, control] = client.ports();
        fetch::until_fetched(&self.listener, socks).await.map_err(io_error("the HTTP responder".to_owned()))?;
        self.tors.all_run()?;
        let cookie = folder.join("data/control_auth_cookie");
        let nodes = self.tors.nodes();
        let (dir, authorities) = (self.plan.dir.clone(), self.plan.authorities.clone());
        Ok(TestNet { socks, control, cookie, dir, authorities, nodes })
    }

    fn enter(&mut self, stage: Stage) {
        if self.stage != Some(stage) {
            self.stage = Some(stage);
            (self.progress)(stage);
        }
    }

    fn start(&mut self, node: PlannedNode) -> Result<(), TestNetError> {
        let (folder, torrc) = (self.plan.folder(&node), self.plan.torrc(&node));
        self.tors.start(&self.tor_dir, node, folder, &torrc)
    }

    async fn until_relays_are_known(&mut self, authority: &PlannedNode) -> Result<(), TestNetError> {
        let of = usize::from(RELAYS);
        loop {
            // The second is where tor moves them when there are many.
            let missing = self.missing_in(authority, &["cached-descriptors.new", "cached-descriptors"], "router ");
            self.enter(Stage::Relays { known: of - missing.len(), of });
            match missing.into_iter().next() {
                Some(relay) => self.awaited = relay,
                None => return Ok(()),
            }
            self.pause().await?;
        }
    }

    fn let_vote(&mut self, authority: &PlannedNode) -> Result<(), TestNetError> {
        self.plan.vote_offset = Some(vote_offset(SystemTime::now()));
        let folder = self.plan.folder(authority);
        gate::rewrite(&folder, &self.plan.torrc(authority), Network::Private)
            .map_err(io_error("the authority's torrc".to_owned()))?;
        process::send(&[folder], Signal::SIGHUP);
        Ok(())
    }

    async fn until_consensus(&mut self, authority: &PlannedNode) -> Result<(), TestNetError> {
        let file = ["cached-microdesc-consensus"];
        self.awaited = authority.clone();
        while !self.missing_in(authority, &file, "r ").is_empty() {
            self.pause().await?;
        }
        let relays = self.plan.relays();
        let mut nudge = Instant::now();
        loop {
            let lacking = relays.iter().filter(|relay| !self.missing_in(relay, &file, "r ").is_empty());
            let lacking: Vec<PlannedNode> = lacking.cloned().collect();
            match lacking.first() {
                Some(relay) => self.awaited = relay.clone(),
                None => return Ok(()),
            }
            // Who asked for a consensus too early waits long before asking again, unless told to reload.
            if Instant::now() >= nudge {
                let folders: Vec<PathBuf> = lacking.iter().map(|relay| self.plan.folder(relay)).collect();
                process::send(&folders, Signal::SIGHUP);
                nudge = Instant::now() + NUDGE;
            }
            self.pause().await?;
        }
    }

    /// The relays of which `files` in the data of `node` have no line of `keyword` and nickname.
    fn missing_in(&self, node: &PlannedNode, files: &[&str], keyword: &str) -> Vec<PlannedNode> {
        let data = self.plan.folder(node).join("data");
        let mut text = String::new();
        for file in files {
            // One that is not there, which tor writes in its own time, has nothing.
            text.push_str(&String::from_utf8_lossy(&fs::read(data.join(file)).unwrap_or_default()));
        }
        let is_missing = |relay: &PlannedNode| {
            let start = format!("{keyword}{} ", relay.name);
            !text.lines().any(|line| line.starts_with(&start))
        };
        self.plan.relays().into_iter().filter(is_missing).collect()
    }

    async fn pause(&mut self) -> Result<(), TestNetError> {
        tokio::time::sleep(POLL).await;
        self.tors.all_run()
    }

    fn too_late(&self, after: Duration) -> TestNetError {
        TestNetError::Deadline {
            after,
            stage: self.stage.map(|stage| stage.to_string()).unwrap_or_default(),
            log: process::last_log_lines(&self.plan.folder(&self.awaited), LOG_LINES),
            node: self.awaited.name.clone(),
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
        let plan = Plan { dir: PathBuf::new(), net, authorities: Vec::new(), vote_offset: None, owner: None };
        match TcpListener::bind(claim).await {
            Ok(listener) => match taken(&plan) {
                None => return Ok((listener, net)),
                taken => last = taken,
            },
            Err(source) => last = Some((claim, source)),
        }
    }
    let (address, source) = last.unwrap_or_else(|| (([127, 77, 0, 1], 0).into(), io::ErrorKind::AddrInUse.into()));
    Err(TestNetError::Address { address, error: source })
}

fn taken(plan: &Plan) -> Option<(SocketAddr, io::Error)> {
    let addresses: Vec<_> = plan.nodes().iter().flat_map(PlannedNode::listens_on).collect();
    addresses.into_iter().find_map(|address| match std::net::TcpListener::bind(address) {
        Ok(_) => None,
        Err(error) => Some((address, error)),
    })
}

/// The votes' offset with which the authority's first vote is soon after it has read its torrc.
fn vote_offset(now: SystemTime) -> u64 {
    let vote = now.duration_since(UNIX_EPOCH).unwrap_or_default() + RELOAD;
    (vote.as_secs() + 1 + VOTE_TO_CONSENSUS) % INITIAL_VOTING_INTERVAL
}

/// Under another name first, so that nobody reads half of it.
fn write_state(net: &TestNet) -> Result<(), TestNetError> {
    let (file, draft) = (net.dir.join(STATE), net.dir.join("testnet.json.new"));
    let text = serde_json::to_string_pretty(net).map_err(|error| io_error(STATE.to_owned())(error.into()))?;
    fs::write(&draft, text + "\n")
        .and_then(|()| fs::rename(&draft, &file))
        .map_err(io_error(file.display().to_string()))
}
