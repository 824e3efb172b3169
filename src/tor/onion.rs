//! perfd's own onion service: its key, kept so that the address stays, and how tor is asked to publish it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A key is never longer than this.
const LONGEST_KEY: u64 = 1024;

/// An onion service that a tor is to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnionPlan {
    /// Where its key is kept: made at the first start, mode 0600.
    pub key_file: PathBuf,
    /// Where tor connects to for it: perfd's own server.
    pub target: SocketAddr,
}

/// Why there is no key. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeyError {
    #[error("can't read the onion service's key {}: {error}; it must belong to the user that perfd runs as", path.display())]
    Unreadable { path: PathBuf, error: io::Error },
    #[error("others may read the onion service's key {} (mode {mode:o}); chmod 600 it", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error(
        "{} holds no key of an onion service (ED25519-V3:…); put the right one back, or move it away for a new address",
        .0.display()
    )]
    NoKey(PathBuf),
    #[error("can't keep the onion service's key in {}: {error}", path.display())]
    Unwritable { path: PathBuf, error: io::Error },
    #[error("the address of tor's onion service can't be read from {}: {why}; tor makes it at its start", path.display())]
    NoAddress { path: PathBuf, why: String },
}

/// The key (`ED25519-V3:…`), if there is one.
pub(super) fn load(path: &Path) -> Result<Option<String>, KeyError> {
    let unreadable = |error| KeyError::Unreadable { path: path.to_owned(), error };
    let mode = match fs::metadata(path) {
        Ok(found) => found.mode() & 0o7777,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { path: path.to_owned(), mode });
    }
    let text = read_small(path).map_err(unreadable)?;
    let key = text.trim();
    if is_key(key) { Ok(Some(key.to_owned())) } else { Err(KeyError::NoKey(path.to_owned())) }
}

/// Reads a file that holds a line: a plain one, as reading from a pipe might never end.
pub(super) fn read_small(path: &Path) -> io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no plain file"));
    }
    let mut text = String::new();
    File::open(path)?.take(LONGEST_KEY).read_to_string(&mut text)?;
    Ok(text)
}

/// Keeps a new key, before anybody relies on its address.
pub(super) fn keep(path: &Path, key: &str) -> Result<(), KeyError> {
    let draft = path.with_extension("key.new");
    let write = || {
        // One that is there may be open to others.
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
        file.write_all(key.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&draft, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    write().map_err(|error| KeyError::Unwritable { path: path.to_owned(), error })
}

/// The command that has tor publish the service: of the key, or of a new one.
pub(super) fn command(key: Option<&str>, target: SocketAddr) -> String {
    format!("ADD_ONION {} Port=80,{target}", key.unwrap_or("NEW:ED25519-V3"))
}

/// The address, without `.onion`, of the service that tor keeps in this folder.
pub(super) fn hostname(folder: &Path) -> Result<String, KeyError> {
    let path = folder.join("hostname");
    let text = fs::read_to_string(&path)
        .map_err(|error| KeyError::NoAddress { path: path.clone(), why: error.to_string() })?;
    match text.trim().strip_suffix(".onion").filter(|address| is_address(address)) {
        Some(address) => Ok(address.to_owned()),
        None => Err(KeyError::NoAddress { path, why: "it holds none".to_owned() }),
    }
}

/// The form of a key as ADD_ONION takes and gives it: a word that can't be anything else in a command.
fn is_key(key: &str) -> bool {
    let base64 = |c: char| c.is_ascii_alphanumeric() || "+/=".contains(c);
    key.strip_prefix("ED25519-V3:").is_some_and(|key| key.len() >= 80 && key.chars().all(base64))
}

/// Whether this is the address of a version 3 onion service, without `.onion`.
pub(super) fn is_address(text: &str) -> bool {
    text.len() == 56 && text.bytes().all(|b| b.is_ascii_lowercase() || (b'2'..=b'7').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn key() -> String {
        format!("ED25519-V3:{}==", "aB3/".repeat(21))
    }

    #[test]
    fn a_key_is_kept_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("onion-tor.key");
        assert!(load(&path).unwrap().is_none());
        keep(&path, &key()).unwrap();
        assert_eq!(load(&path).unwrap(), Some(key()));
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let refused = load(&path).unwrap_err().to_string();
        assert!(refused.ends_with("(mode 640); chmod 600 it"), "{refused}");
    }

    #[test]
    fn what_is_no_key_is_not_sent_to_tor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for text in ["", "RSA1024:abc", "ED25519-V3:short", &format!("{}\nSIGNAL HALT", key()), &format!("{} x", key())]
        {
            keep(&path, text).unwrap();
            let refused = load(&path).unwrap_err().to_string();
            assert!(refused.contains("holds no key of an onion service"), "{text}: {refused}");
        }
    }

    #[test]
    fn the_command_names_key_and_target() {
        let target = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(command(None, target), "ADD_ONION NEW:ED25519-V3 Port=80,127.0.0.1:8080");
        assert_eq!(command(Some("K:x"), target), "ADD_ONION K:x Port=80,127.0.0.1:8080");
    }

    #[test]
    fn the_address_is_that_of_tors_file() {
        let dir = tempfile::tempdir().unwrap();
        assert!(hostname(dir.path()).unwrap_err().to_string().contains("hostname: No such file"));
        for (text, expected) in
            [(format!("{}.onion\n", "a7".repeat(28)), Some("a7".repeat(28))), ("x.onion".into(), None)]
        {
            fs::write(dir.path().join("hostname"), text).unwrap();
            assert_eq!(hostname(dir.path()).ok(), expected);
        }
    }

    #[test]
    fn addresses_are_of_version_3() {
        assert!(is_address(&"a7".repeat(28)));
        for text in ["", "a", &"A7".repeat(28), &"a1".repeat(28), &"a7".repeat(29)] {
            assert!(!is_address(text), "{text}");
        }
    }
}
