//! The torrc texts of the private network (no I/O).

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::{Path, PathBuf};

use super::{Role, TestNet};

/// Every node's ORPort; each has an address of its own.
pub const OR_PORT: u16 = 5000;
/// The authority's DirPort.
pub const DIR_PORT: u16 = 7000;
/// A client's SocksPort.
pub const SOCKS_PORT: u16 = 9050;
/// A client's ControlPort.
pub const CONTROL_PORT: u16 = 9051;

/// Six relays, as onion services and vanguards find no hop among three.
pub const RELAYS: u8 = 6;

/// How often the first consensus is tried for, in seconds: the least that tor takes.
pub const INITIAL_VOTING_INTERVAL: u64 = 5;
/// The same while the authority shall not vote yet: the most that tor takes.
const NO_VOTING_INTERVAL: u64 = 1800;
/// From the authority's first vote to the consensus, in seconds: as the configured delays do not fit
/// into half of an initial interval, tor takes a quarter of that, in whole seconds, for each of the two.
pub const VOTE_TO_CONSENSUS: u64 = 2;

/// Everything that the torrcs of one network are made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The network's folder; each node's is inside.
    pub dir: PathBuf,
    /// The network's addresses are `127.77.NET.1` and up.
    pub net: u8,
    /// `DirAuthority` values.
    pub authorities: Vec<String>,
    /// The first consensus is made so many seconds after a whole interval, 0 to 4; until there is a
    /// time, the authority does not vote. A vote without the relays would cost a whole interval.
    pub vote_offset: Option<u64>,
    /// The tors end by themselves when this process has.
    pub owner: Option<u32>,
}

/// A node of the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedNode {
    /// Its nickname and the name of its folder.
    pub name: String,
    /// What it does in the network.
    pub role: Role,
    /// Its own loopback address.
    pub address: Ipv4Addr,
}

impl PlannedNode {
    /// The addresses that its tor listens on.
    pub fn listens_on(&self) -> Vec<SocketAddr> {
        let ports: &[u16] = match self.role {
            Role::Authority => &[OR_PORT, DIR_PORT],
            Role::Relay => &[OR_PORT],
            Role::Client => &[SOCKS_PORT, CONTROL_PORT],
        };
        ports.iter().map(|&port| SocketAddrV4::new(self.address, port).into()).collect()
    }

    /// A client's SOCKS and control ports.
    pub fn ports(&self) -> [SocketAddr; 2] {
        [SOCKS_PORT, CONTROL_PORT].map(|port| (self.address, port).into())
    }
}

impl Plan {
    /// The authority.
    pub fn authority(&self) -> PlannedNode {
        self.node("authority".to_owned(), Role::Authority, 1)
    }

    /// The relays.
    pub fn relays(&self) -> Vec<PlannedNode> {
        (1..=RELAYS).map(|n| self.node(format!("relay{n}"), Role::Relay, 1 + n)).collect()
    }

    /// The client.
    pub fn client(&self) -> PlannedNode {
        self.node("client".to_owned(), Role::Client, 9)
    }

    /// All nodes.
    pub fn nodes(&self) -> Vec<PlannedNode> {
        let mut all = vec![self.authority()];
        all.extend(self.relays());
        all.push(self.client());
        all
    }

    /// A node's folder: its torrc, log, and tor's data.
    pub fn folder(&self, node: &PlannedNode) -> PathBuf {
        node_folder(&self.dir, &node.name)
    }

    /// The torrc of `node`.
    pub fn torrc(&self, node: &PlannedNode) -> String {
        let mut text = common(&self.dir, node, &self.authorities, self.owner);
        match node.role {
            Role::Authority => text.push_str(&self.authority_part(node)),
            Role::Relay => text.push_str(&relay_part(&self.dir, node)),
            Role::Client => text.push_str(&client_part(node)),
        }
        text
    }

    fn node(&self, name: String, role: Role, number: u8) -> PlannedNode {
        PlannedNode { name, role, address: Ipv4Addr::new(127, 77, self.net, number) }
    }

    fn authority_part(&self, node: &PlannedNode) -> String {
        format!(
            "{relay}\
             DirPort {address}:{DIR_PORT}\n\
             AuthoritativeDirectory 1\n\
             V3AuthoritativeDirectory 1\n\
             ContactInfo nobody\n\
             V3AuthVotingInterval 10\n\
             V3AuthVoteDelay 2\n\
             V3AuthDistDelay 2\n\
             V3AuthNIntervalsValid 3\n\
             TestingV3AuthInitialVotingInterval {interval}\n\
             TestingV3AuthInitialVoteDelay 2\n\
             TestingV3AuthInitialDistDelay 2\n\
             TestingV3AuthVotingStartOffset {offset}\n\
             TestingDirAuthVoteExit *\n\
             TestingDirAuthVoteGuard *\n\
             TestingDirAuthVoteHSDir *\n\
             TestingMinExitFlagThreshold 0\n",
            relay = relay_part(&self.dir, node),
            address = node.address,
            interval = self.vote_offset.map_or(NO_VOTING_INTERVAL, |_| INITIAL_VOTING_INTERVAL),
            offset = self.vote_offset.unwrap_or(0),
        )
    }
}

/// One more client for a network that is up, at `127.77.NET.NUMBER`, and its torrc.
pub fn client_torrc(net: &TestNet, name: &str, number: u8, owner: Option<u32>) -> (PlannedNode, String) {
    let [a, b, c, _] = net.address().octets();
    let node = PlannedNode { name: name.to_owned(), role: Role::Client, address: Ipv4Addr::new(a, b, c, number) };
    let text = common(&net.dir, &node, &net.authorities, owner) + &client_part(&node);
    (node, text)
}

/// Where a node of the network in `dir` keeps its files.
pub fn node_folder(dir: &Path, name: &str) -> PathBuf {
    dir.join("nodes").join(name)
}

/// What makes a tor, whose connections come from `address`, part of a private network with these `DirAuthority`
/// values: all that the [gate](crate::gate) demands, and that loopback addresses are as good as others.
pub fn private_network(address: Ipv4Addr, authorities: &[String]) -> String {
    let mut text = format!(
        "TestingTorNetwork 1\n\
         OutboundBindAddress {address}\n\
         AssumeReachable 1\n\
         EnforceDistinctSubnets 0\n\
         PathsNeededToBuildCircuits 0.67\n\
         ClientRejectInternalAddresses 0\n"
    );
    for authority in authorities {
        text.push_str(&format!("DirAuthority {authority}\n"));
    }
    text
}

fn common(dir: &Path, node: &PlannedNode, authorities: &[String], owner: Option<u32>) -> String {
    let mut text = format!(
        "DataDirectory {data}\n\
         Log notice stdout\n",
        data = node_folder(dir, &node.name).join("data").display(),
    );
    text.push_str(&private_network(node.address, authorities));
    if let Some(pid) = owner {
        text.push_str(&format!("__OwningControllerProcess {pid}\n"));
    }
    text
}

// No `reject *:*` after the loopback addresses: private ranges are left out of the policy's summary,
// and a relay that rejects the rest is no exit for anyone. OutboundBindAddress keeps exits in: the
// kernel sends nothing off the machine from a loopback address.
fn relay_part(dir: &Path, node: &PlannedNode) -> String {
    format!(
        "Nickname {name}\n\
         Address {address}\n\
         ORPort {address}:{OR_PORT}\n\
         SocksPort 0\n\
         ExitRelay 1\n\
         ExitPolicy accept 127.0.0.0/8:*\n\
         ExitPolicyRejectPrivate 0\n\
         ServerDNSResolvConfFile {resolv}\n\
         ServerDNSAllowBrokenConfig 1\n\
         ServerDNSDetectHijacking 0\n\
         MaxConsensusAgeForDiffs 5 minutes\n",
        name = node.name,
        address = node.address,
        resolv = dir.join("resolv.conf").display(),
    )
}

fn client_part(node: &PlannedNode) -> String {
    format!(
        "SocksPort {address}:{SOCKS_PORT} ExtendedErrors\n\
         ControlPort {address}:{CONTROL_PORT}\n\
         CookieAuthentication 1\n",
        address = node.address,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gate;

    fn plan() -> Plan {
        Plan {
            dir: PathBuf::from("/somewhere"),
            net: 3,
            authorities: vec![format!("authority orport=5000 no-v2 v3ident={0} 127.77.3.1:7000 {0}", "AB".repeat(20))],
            vote_offset: Some(2),
            owner: Some(42),
        }
    }

    #[test]
    fn every_node_has_its_own_loopback_address_and_a_torrc_that_may_be_started() {
        let plan = plan();
        let nodes = plan.nodes();
        assert_eq!(nodes.len(), 8);
        for (i, node) in nodes.iter().enumerate() {
            assert!(node.address.is_loopback());
            assert!(nodes[..i].iter().all(|other| other.address != node.address));
            let torrc = plan.torrc(node);
            gate::check(&torrc).unwrap();
            assert!(torrc.contains("__OwningControllerProcess 42\n"));
            for listen in node.listens_on() {
                let words = format!("Port {listen}");
                assert!(torrc.contains(&words), "{words} in {torrc}");
            }
        }
    }

    #[test]
    fn a_client_takes_loopback_destinations_and_explains_its_failures() {
        let plan = plan();
        let torrc = plan.torrc(&plan.client());
        assert!(torrc.contains("SocksPort 127.77.3.9:9050 ExtendedErrors\n"), "{torrc}");
        assert!(torrc.contains("ClientRejectInternalAddresses 0\n"));
        assert!(torrc.contains("CookieAuthentication 1\n"));
    }

    #[test]
    fn no_torrc_names_an_owner_unless_there_is_one() {
        let plan = Plan { owner: None, ..plan() };
        assert!(plan.nodes().iter().all(|node| !plan.torrc(node).contains("__Owning")));
    }
}
