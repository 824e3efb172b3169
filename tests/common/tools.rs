//! Programs of others that check perfd, where they are there.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The folder that holds promtool and prometheus: `PERFD_PROMETHEUS_DIR`, or where scripts/get-package puts them.
/// `None`, after a line that says so, where there is none; a panic if `PERFD_REQUIRE_TOOLS=1`.
pub fn prometheus_dir() -> Option<PathBuf> {
    let none = "no promtool (run scripts/get-package prometheus)";
    dir("PERFD_PROMETHEUS_DIR", "target/prometheus/usr/bin", "promtool", none)
}

/// The folder that holds schemathesis and its Python: of the virtual environment `PERFD_VENV`, or of the one that
/// scripts/get-venv makes; likewise.
pub fn python_dir() -> Option<PathBuf> {
    let none = "no schemathesis (run scripts/get-venv)";
    dir("PERFD_VENV", "target/venv", "bin/schemathesis", none).map(|dir| dir.join("bin"))
}

fn dir(variable: &str, fetched: &str, holds: &str, none: &str) -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join(fetched);
    let dir = std::env::var_os(variable).map_or(fetched, PathBuf::from);
    if dir.join(holds).exists() {
        return Some(dir);
    }
    assert!(std::env::var("PERFD_REQUIRE_TOOLS").as_deref() != Ok("1"), "left out: {none}");
    // Not eprintln, which the test harness keeps to itself while a test passes.
    let _ = writeln!(std::io::stderr(), "left out: {none}");
    None
}

/// Runs a command to its end, with this as its input, and expects that it succeeds; what it says.
pub fn succeed(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Who reads nothing closes its end.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    let said = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(status.success(), "{command:?} {status}: {said}\n{input}");
    said
}
