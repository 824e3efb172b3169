//! Tor processes known by their folders: which one runs, how it ends, what it said last.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a tor may take to end after SIGTERM.
const TERM_WAIT: Duration = Duration::from_secs(5);
/// How long the system may take to end it after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// Between two looks at what tors do.
pub const POLL: Duration = Duration::from_millis(50);
/// As much of a log as an error shows.
pub const LOG_LINES: usize = 12;
/// As much of a log's end as is searched for its last lines.
const LOG_TAIL: u64 = 64 * 1024;

/// The pid of the tor that was started in `folder`, if it still runs.
///
/// A pid alone proves nothing, as the system gives it out again: the process must have been started
/// with this folder's torrc. A dead process that nobody has waited for has no command line.
pub fn running(folder: &Path) -> Option<u32> {
    let pid = fs::read_to_string(folder.join("pid")).ok()?.trim().parse().ok()?;
    is_tor_of(pid, folder).then_some(pid)
}

/// Whether `pid` is the tor of `folder`.
pub fn is_tor_of(pid: u32, folder: &Path) -> bool {
    let torrc = folder.join("torrc");
    let Ok(command_line) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    command_line.split(|&b| b == 0).any(|word| word == torrc.as_os_str().as_encoded_bytes())
}

/// The folders of all nodes below `dir`, whoever started them.
pub fn node_folders(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join("nodes")) else { return Vec::new() };
    let mut folders: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    folders.sort();
    folders
}

/// Ends the tors of `folders`, all at once, and returns how many there were. Those that have not
/// ended after a while are killed; the folders of any that survive even that are the error.
pub async fn end(folders: &[PathBuf]) -> Result<usize, Vec<PathBuf>> {
    let count = send(folders, Signal::SIGTERM);
    if wait_for_end(folders, TERM_WAIT).await {
        return Ok(count);
    }
    send(folders, Signal::SIGKILL);
    if wait_for_end(folders, KILL_WAIT).await {
        return Ok(count);
    }
    Err(folders.iter().filter(|folder| running(folder).is_some()).cloned().collect())
}

/// Sends `signal` to the tors of `folders` that run, and returns how many do.
pub fn send(folders: &[PathBuf], signal: Signal) -> usize {
    let pids = folders.iter().filter_map(|folder| i32::try_from(running(folder)?).ok());
    pids.filter(|&pid| kill(Pid::from_raw(pid), signal).is_ok()).count()
}

async fn wait_for_end(folders: &[PathBuf], at_most: Duration) -> bool {
    let deadline = Instant::now() + at_most;
    loop {
        if folders.iter().all(|folder| running(folder).is_none()) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The last `count` lines of the log in `folder`; empty if it cannot be read.
pub fn last_log_lines(folder: &Path, count: usize) -> String {
    let text = log_tail(folder);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// The last per cent of `Bootstrapped N%` in the log of `folder`.
pub fn bootstrapped(folder: &Path) -> Option<u8> {
    let text = log_tail(folder);
    let (_, after) = text.rsplit_once("Bootstrapped ")?;
    after.split_once('%')?.0.parse().ok()
}

fn log_tail(folder: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(folder.join("log")) {
        let length = file.metadata().map_or(0, |meta| meta.len());
        let read = file
            .seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))
            .and_then(|_| file.take(LOG_TAIL).read_to_end(&mut bytes));
        if read.is_err() {
            bytes.clear();
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_with_the_same_pid_is_not_the_tor() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(running(dir.path()), None);
        for text in ["", "x", "-1", "0", "99999999999", &std::process::id().to_string()] {
            fs::write(dir.path().join("pid"), text).unwrap();
            assert_eq!(running(dir.path()), None, "{text}");
        }
    }

    #[tokio::test]
    async fn a_process_started_with_the_folders_torrc_is_found_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let torrc = dir.path().join("torrc");
        // The shell stands in for tor: it waits, with the torrc's path on its command line.
        let script = "trap 'exit 0' TERM; while :; do sleep 0.05; done";
        let mut child = tokio::process::Command::new("sh").args(["-c", script, "sh"]).arg(&torrc).spawn().unwrap();
        let pid = child.id().unwrap();
        fs::write(dir.path().join("pid"), pid.to_string()).unwrap();
        let folders = [dir.path().to_owned()];
        let found = async {
            while running(dir.path()) != Some(pid) {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), found).await.unwrap();
        assert_eq!(end(&folders).await, Ok(1));
        assert_eq!(end(&folders).await, Ok(0));
        child.wait().await.unwrap();
    }

    #[test]
    fn the_log_tells_how_far_the_bootstrap_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(bootstrapped(dir.path()), None);
        assert_eq!(last_log_lines(dir.path(), 3), "");
        let log = "a\n[notice] Bootstrapped 0% (starting): Starting\nb\n[notice] Bootstrapped 45% (requesting)\nc\n";
        fs::write(dir.path().join("log"), log).unwrap();
        assert_eq!(bootstrapped(dir.path()), Some(45));
        assert_eq!(last_log_lines(dir.path(), 2), "[notice] Bootstrapped 45% (requesting)\nc");
    }
}
