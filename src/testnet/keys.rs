//! The authority's keys and the line by which the other nodes know it.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::process::LOG_LINES;
use super::torrc::{Plan, PlannedNode};
use super::{Role, TestNetError, io_error};
use crate::gate;

/// Makes the authority's keys, and from them the value of everyone's `DirAuthority` line.
pub async fn authority_line(plan: &Plan, authority: &PlannedNode, tor_dir: &Path) -> Result<String, TestNetError> {
    let folder = plan.folder(authority);
    let [or_address, dir_address] = [authority.listens_on()[0], authority.listens_on()[1]];
    // An authority without a certificate would refuse, so tor is asked as a relay; and as it has to be
    // told of some authority before ours is known, this one stands in.
    let nobody = Plan { authorities: vec![format!("nobody {dir_address} {}", "0".repeat(40))], ..plan.clone() };
    let as_relay = nobody.torrc(&PlannedNode { role: Role::Relay, ..authority.clone() });
    let keys = folder.join("data/keys");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&keys).map_err(io_error(keys.display().to_string()))?;
    let tor = gate::start(&tor_dir.join("tor"), &folder, &as_relay, gate::Task::ListFingerprint)
        .map_err(io_error("starting tor".to_owned()))?;
    let (fingerprint, certificate) =
        tokio::join!(output("tor --list-fingerprint", tor), certificate(&keys, tor_dir, dir_address));
    // "authority 0123 4567 …"
    let fingerprint = word_after("tor --list-fingerprint", &format!("{} ", authority.name), &fingerprint?)?;
    let identity = word_after("tor-gencert", "fingerprint ", &certificate?)?;
    Ok(format!("{} orport={} no-v2 v3ident={identity} {dir_address} {fingerprint}", authority.name, or_address.port()))
}

/// Makes the authority's long-term and signing keys, and returns the certificate.
async fn certificate(keys: &Path, tor_dir: &Path, dir_address: SocketAddr) -> Result<String, TestNetError> {
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

/// What follows `start` on its line, as one word: tor prints fingerprints in groups of four.
fn word_after(program: &str, start: &str, text: &str) -> Result<String, TestNetError> {
    let rest = text.lines().find_map(|line| line.strip_prefix(start)).unwrap_or_default();
    let word: String = rest.split_whitespace().collect();
    if !word.is_empty() && word.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(word);
    }
    let status = "no fingerprint in what it wrote".to_owned();
    Err(TestNetError::Program { program: program.to_owned(), status, output: text.to_owned() })
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
