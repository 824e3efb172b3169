//! Tors that are being started together: all come up, or none stays.

use std::path::{Path, PathBuf};

use tokio::process::Child;

use super::process::{self, LOG_LINES};
use super::torrc::PlannedNode;
use super::{Node, TestNetError, io_error};
use crate::gate;

/// Started tors, which are killed if this is dropped before they are released.
#[derive(Default)]
pub struct Tors(Vec<Started>);

struct Started {
    node: PlannedNode,
    folder: PathBuf,
    child: Child,
}

impl Tors {
    /// Starts the tor of `node` in `folder`.
    pub fn start(
        &mut self,
        tor_dir: &Path,
        node: PlannedNode,
        folder: PathBuf,
        torrc: &str,
    ) -> Result<(), TestNetError> {
        let child = gate::start(&tor_dir.join("tor"), &folder, torrc, gate::Task::Run)
            .map_err(io_error(format!("starting the tor of {}", node.name)))?;
        self.0.push(Started { node, folder, child });
        Ok(())
    }

    /// Fails for the first that has ended, with the end of its log.
    pub fn all_run(&mut self) -> Result<(), TestNetError> {
        for Started { node, folder, child } in &mut self.0 {
            let ended = child.try_wait().map_err(io_error(format!("the tor of {}", node.name)))?;
            if let Some(status) = ended {
                let log = process::last_log_lines(folder, LOG_LINES);
                return Err(TestNetError::TorEnded { node: node.name.clone(), status: status.to_string(), log });
            }
        }
        Ok(())
    }

    /// What they are, with their pids.
    pub fn nodes(&self) -> Vec<Node> {
        let nodes = self.0.iter().map(|Started { node, child, .. }| Node {
            name: node.name.clone(),
            role: node.role,
            pid: child.id().unwrap_or_default(),
            address: node.address,
        });
        nodes.collect()
    }

    /// Lets them run on.
    pub fn release(&mut self) {
        self.0.clear();
    }
}

impl Drop for Tors {
    fn drop(&mut self) {
        for started in &mut self.0 {
            // One that has ended already cannot be killed, which is just as well.
            let _ = started.child.start_kill();
        }
    }
}
