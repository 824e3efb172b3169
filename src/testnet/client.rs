//! Further clients in a network that is up.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::process::{self, LOG_LINES, POLL};
use super::torrc::{client_torrc, node_folder};
use super::tors::Tors;
use super::{Node, TestNet, TestNetError, find_tor};

/// What [`start_client`] needs to know.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Its name, of nobody else in the network: ASCII letters and digits.
    pub name: String,
    /// Its address is `127.77.NET.NUMBER`: 10 to 250, of nobody else.
    pub number: u8,
    /// As in [`super::Options`].
    pub tor_dir: Option<PathBuf>,
    /// How long it may take until it is bootstrapped.
    pub deadline: Duration,
    /// As in [`super::Options`].
    pub owner: Option<u32>,
}

/// A client that was started later than its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its tor.
    pub node: Node,
    /// Its SOCKS port.
    pub socks: SocketAddr,
    /// Its control port.
    pub control: SocketAddr,
    /// The cookie for the control port.
    pub cookie: PathBuf,
}

/// Starts one more client and returns when it is bootstrapped. It ends with its owner, or when the
/// network is taken down. Where this fails, or is dropped before it is done, it does not run.
pub async fn start_client(net: &TestNet, options: ClientOptions) -> Result<Client, TestNetError> {
    let ClientOptions { name, number, tor_dir, deadline, owner } = options;
    let folder = node_folder(&net.dir, &name);
    let refused = |why: &str| Err(TestNetError::Client { name: name.clone(), why: why.to_owned() });
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return refused("its name must be of ASCII letters and digits");
    }
    if !(10..=250).contains(&number) {
        return refused("its number must be 10 to 250");
    }
    if process::running(&folder).is_some() {
        return refused("a tor of this name runs");
    }
    let tor_dir = find_tor(tor_dir.as_deref())?;
    let (planned, torrc) = client_torrc(net, &name, number, owner);
    let [socks, control] = planned.ports();
    let mut tors = Tors::default();
    tors.start(&tor_dir, planned, folder.clone(), &torrc)?;
    let bootstrapped = async {
        while process::bootstrapped(&folder) != Some(100) {
            tokio::time::sleep(POLL).await;
            tors.all_run()?;
        }
        Ok(())
    };
    match tokio::time::timeout(deadline, bootstrapped).await {
        Ok(result) => result?,
        Err(_) => {
            let percent = process::bootstrapped(&folder).unwrap_or(0);
            let log = process::last_log_lines(&folder, LOG_LINES);
            let stage = format!("client bootstrapped {percent} %");
            return Err(TestNetError::Deadline { after: deadline, stage, node: name, log });
        }
    }
    let node = tors.nodes().remove(0);
    tors.release();
    Ok(Client { node, socks, control, cookie: folder.join("data/control_auth_cookie") })
}
