//! One run of a tor that perfd starts. Not there yet: such a tor is reported as one that can't be started.

use std::io;

use crate::config::{ControlAddress, StartedTor};

fn not_yet() -> io::Error {
    io::Error::other("this perfd can't start tors yet")
}

/// One run of a tor.
pub struct Process;

impl Process {
    /// Starts it.
    pub fn start(_: &str, _: &StartedTor) -> io::Result<Process> {
        Err(not_yet())
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        None
    }

    /// How it reaches its first hop.
    pub fn transport(&self) -> Option<String> {
        None
    }

    /// Its control port, once it is open.
    pub fn control_address(&self) -> impl Future<Output = io::Result<ControlAddress>> + use<> {
        std::future::ready(Err(not_yet()))
    }

    /// Waits for its end.
    pub async fn wait(&mut self) -> String {
        String::new()
    }

    /// Ends it.
    pub async fn end(&mut self) {}
}

/// Writes its torrc anew.
pub fn rewrite(_: &str, _: &StartedTor) -> io::Result<()> {
    Err(not_yet())
}
