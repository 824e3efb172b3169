//! The file that holds the instance's secret: made at first start, readable by its owner alone.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use rand::TryRng;
use rand::rngs::SysRng;

use super::Secret;

/// The secret's file in the state directory.
pub const FILE_NAME: &str = "payload.key";

/// Why there is no secret; every message names the file and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file can't be read, made or written.
    #[error("payload key {}: {error}; it is for perfd's user alone, who must be able to read it and to write its folder (with once and check, use sudo)", path.display())]
    Io {
        /// The secret's file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is not one that perfd wrote.
    #[error("payload key {}: not a file of 64 hexadecimal digits; move it away, and perfd makes a new one", path.display())]
    Malformed {
        /// The secret's file.
        path: PathBuf,
    },
    /// Others can read the file.
    #[error("payload key {}: its mode is {mode:03o}, so others can read it; chmod 600 it, or move it away for a new one", path.display())]
    Exposed {
        /// The secret's file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

impl Secret {
    /// Reads the secret of this state directory.
    ///
    /// # Errors
    /// If the file is missing, unreadable, malformed, or readable for others.
    pub fn load(state_directory: &Path) -> Result<Secret, SecretError> {
        let path = state_directory.join(FILE_NAME);
        let io_error = |error| SecretError::Io { path: path.clone(), error };
        // Without waiting for the other end, should it be a pipe.
        let file =
            OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&path).map_err(io_error)?;
        let found = file.metadata().map_err(io_error)?;
        if !found.is_file() {
            return Err(SecretError::Malformed { path });
        }
        let mode = found.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { path, mode });
        }
        let mut text = String::new();
        match file.take(100).read_to_string(&mut text) {
            Err(e) if e.kind() != io::ErrorKind::InvalidData => return Err(io_error(e)),
            _ => {}
        }
        match decode_hex(text.trim_end()) {
            Some(bytes) => Ok(Secret::from_bytes(bytes)),
            None => Err(SecretError::Malformed { path }),
        }
    }

    /// Reads the secret of this state directory, and makes one where there is none.
    ///
    /// # Errors
    /// As [`Secret::load`], or if the file can't be made.
    pub fn load_or_create(state_directory: &Path) -> Result<Secret, SecretError> {
        let path = state_directory.join(FILE_NAME);
        if !path.exists() {
            create(&path).map_err(|error| SecretError::Io { path, error })?;
        }
        Self::load(state_directory)
    }
}

/// Writes a new secret beside `path`, syncs it, and links it into place: a file of that name is whole
/// from the beginning, and of two that start at once one wins.
fn create(path: &Path) -> io::Result<()> {
    let mut bytes = [0u8; 32];
    SysRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let temporary = path.with_extension(format!("key.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(hex.as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        match std::fs::hard_link(&temporary, path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    };
    let written = write();
    let removed = std::fs::remove_file(&temporary);
    written.and(removed)
}

fn decode_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut bytes = [0u8; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *byte = (digit(pair[0])? * 16 + digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let made = Secret::load_or_create(folder.path()).unwrap();
        let read = Secret::load_or_create(folder.path()).unwrap();
        assert_eq!(made.instance_name(), read.instance_name());
        let file = folder.path().join(FILE_NAME);
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");

        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(Secret::load(folder.path()), Err(SecretError::Exposed { mode: 0o644, .. })));
    }

    #[test]
    fn a_pipe_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join(FILE_NAME);
        let made = std::process::Command::new("mkfifo").arg("-m600").arg(&pipe).status().unwrap();
        assert!(made.success());
        assert!(matches!(Secret::load(folder.path()), Err(SecretError::Malformed { .. })));
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        for text in ["", "0", "zz", &"0".repeat(63), &"g".repeat(64), &"0".repeat(65)] {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join(FILE_NAME);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(Secret::load_or_create(folder.path()), Err(SecretError::Malformed { .. })), "{text:?}");
        }
    }
}
