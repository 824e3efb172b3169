//! What several tests need.

use std::io::Write;
use std::path::{Path, PathBuf};

/// The folder that holds tor and tor-gencert: `PERFD_TOR_DIR`, one of `PATH`, or where scripts/get-tor
/// puts them. `None`, after a line that says so, where there is none; a panic if `PERFD_REQUIRE_TOR=1`.
pub fn tor_dir() -> Option<PathBuf> {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tor/usr/bin");
    let found = perfd::testnet::find_tor(None).or_else(|_| perfd::testnet::find_tor(Some(&fetched)));
    if let Ok(dir) = found {
        return Some(dir);
    }
    let left_out = "left out: no tor (run scripts/get-tor)";
    assert!(std::env::var("PERFD_REQUIRE_TOR").as_deref() != Ok("1"), "{left_out}");
    // Not eprintln, which the test harness keeps to itself while a test passes.
    let _ = writeln!(std::io::stderr(), "{left_out}");
    None
}
