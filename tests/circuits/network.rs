//! The one private network of these tests, and perfds on it whose tors they start themselves.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use perfd::export::json::ResultJson;
use perfd::testnet::{self, Options, TestNet};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::common;
use crate::service::{Setup, get};

/// Far longer than a network, or a tor in it, takes to come up.
pub const LONG: Duration = Duration::from_secs(120);

/// A network that is up. It goes down with the last test that uses it.
pub struct Network {
    pub net: TestNet,
    /// The tor that perfd is to start.
    pub tor: PathBuf,
    runtime: Runtime,
    _folder: TempDir,
}

/// Those that wait for their turn keep the network up.
static SHARED: Mutex<Weak<Network>> = Mutex::new(Weak::new());
static TURN: Mutex<()> = Mutex::new(());

/// The network, for one test at a time: what is measured must not be another test's doing. `None` without a tor.
pub fn network() -> Option<(Arc<Network>, MutexGuard<'static, ()>)> {
    let tor_dir = common::tor_dir()?;
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let network = shared.upgrade().unwrap_or_else(|| {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = Options {
            dir: folder.path().join("net"),
            tor_dir: Some(tor_dir.clone()),
            deadline: LONG,
            owner: Some(std::process::id()),
        };
        let net = runtime.block_on(testnet::up(options, |_| {})).unwrap();
        Arc::new(Network { net, tor: tor_dir.join("tor"), runtime, _folder: folder })
    });
    *shared = Arc::downgrade(&network);
    drop(shared);
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    Some((network, turn))
}

impl Network {
    /// A tor that perfd starts, with these lines of torrc.
    pub fn tor(&self, setup: Setup, name: &str, torrc: &[&str]) -> Setup {
        let more = if torrc.is_empty() { String::new() } else { format!("torrc = {torrc:?}") };
        self.tor_with(setup, name, &more)
    }

    /// The same with any lines of its section.
    pub fn tor_with(&self, setup: Setup, name: &str, more: &str) -> Setup {
        setup.started_tor(name, &self.tor, &format!("authorities = {:?}\n{more}", self.net.authorities))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let ended = self.runtime.block_on(testnet::down(&self.net.dir));
        if !std::thread::panicking() {
            ended.unwrap();
        }
    }
}

/// All results so far, in the order of their revisions.
pub fn results(port: u16) -> Vec<ResultJson> {
    let answer = get(port, "/results.json").unwrap();
    let page: Value = serde_json::from_slice(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"));
    serde_json::from_value(page["results"].clone()).unwrap()
}

/// What `/tors` says of the tor of this name.
pub fn tor_status(port: u16, name: &str) -> Value {
    let page: Value = serde_json::from_slice(&get(port, "/tors").unwrap().body).unwrap();
    let tors = page["tors"].as_array().unwrap();
    tors.iter().find(|tor| tor["name"] == name).unwrap_or_else(|| panic!("no tor {name}: {page}")).clone()
}

/// Whether this process runs: one that has ended may wait for its parent to notice.
pub fn runs(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}
