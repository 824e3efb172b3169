//! Reading tor's cookie.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::fcntl::OFlag;
use tokio::time::timeout;

use super::access::{self, PASSWORD_INSTEAD};
use super::error::{ControlError, shown_path};

/// In bytes.
pub const COOKIE_LENGTH: usize = 32;

/// How long the file may take; its disk might be far away.
const DEADLINE: Duration = Duration::from_secs(10);

/// What who controls tor must know.
pub struct Cookie([u8; COOKIE_LENGTH]);

impl Cookie {
    /// Reads the file that tor names. That could be the name of any file, so none but a plain one of exactly 32
    /// bytes is taken.
    ///
    /// # Errors
    /// If the file is not there, can't be read within 10 s, or is no cookie.
    pub async fn read(path: &Path) -> Result<Cookie, ControlError> {
        let wanted = path.to_owned();
        let reading = tokio::task::spawn_blocking(move || read(&wanted));
        match timeout(DEADLINE, reading).await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => Err(odd(path, "perfd is ending".to_owned(), "start it again")),
            Err(_) => Err(odd(path, "it takes more than 10 s".to_owned(), "is its disk there?")),
        }
    }

    #[cfg(test)]
    pub fn from_bytes(bytes: [u8; COOKIE_LENGTH]) -> Cookie {
        Cookie(bytes)
    }

    /// The cookie.
    pub fn bytes(&self) -> &[u8; COOKIE_LENGTH] {
        &self.0
    }
}

fn read(path: &Path) -> Result<Cookie, ControlError> {
    let failed = |error| explain(path, &error);
    if !path.is_absolute() {
        return Err(odd(path, "it is no absolute path".to_owned(), NOT_OURS));
    }
    // Looked at before it is opened, as opening a device can do something; and after it, as it may be another then.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(odd(path, "it is no plain file".to_owned(), NOT_OURS));
    }
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(odd(path, "it is no plain file".to_owned(), NOT_OURS));
    }
    match bytes(file).map_err(failed)?.try_into() {
        Ok(bytes) => Ok(Cookie(bytes)),
        Err(_) => Err(odd(path, format!("it has not {COOKIE_LENGTH} bytes, so it is no cookie"), NOT_OURS)),
    }
}

/// The file's bytes, as far as they are needed to see that they are too many.
fn bytes(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(COOKIE_LENGTH + 1);
    file.take(COOKIE_LENGTH as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

const NOT_OURS: &str = "perfd sends nothing of it; is it tor that answers, and its CookieAuthFile?";

fn explain(path: &Path, error: &io::Error) -> ControlError {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => access::remedy(path, access::COOKIE),
        io::ErrorKind::NotFound => {
            format!("if tor runs in a container, in a chroot or on another machine, {PASSWORD_INSTEAD}")
        }
        _ => format!("make it readable, or {PASSWORD_INSTEAD}"),
    };
    ControlError::Cookie { path: shown_path(path), error: error.to_string(), remedy }
}

fn odd(path: &Path, error: String, remedy: &str) -> ControlError {
    ControlError::Cookie { path: shown_path(path), error, remedy: remedy.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(path: &Path) -> String {
        read(path).err().expect("no cookie").to_string()
    }

    #[test]
    fn only_a_plain_file_of_32_bytes_is_a_cookie() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cookie");
        for length in [0, 31, 33, 100_000] {
            std::fs::write(&path, vec![7; length]).unwrap();
            let expected = format!(
                "can't read tor's cookie {}: it has not 32 bytes, so it is no cookie; {NOT_OURS}",
                path.display()
            );
            assert_eq!(message(&path), expected, "{length}");
        }
        std::fs::write(&path, [7; 32]).unwrap();
        assert_eq!(read(&path).ok().map(|cookie| *cookie.bytes()), Some([7; 32]));

        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for odd in [folder.path(), pipe.as_path(), Path::new("/dev/zero")] {
            let expected = format!("can't read tor's cookie {}: it is no plain file; {NOT_OURS}", odd.display());
            assert_eq!(message(odd), expected);
        }
        let steering = message(Path::new("cookie\u{1b}[2J\n"));
        let expected = format!("can't read tor's cookie cookie\\u{{1b}}[2J\\n: it is no absolute path; {NOT_OURS}");
        assert_eq!(steering, expected);
    }

    #[test]
    fn a_cookie_that_is_not_for_us_is_told_whose_it_is() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        let message = explain(file.path(), &io::Error::from_raw_os_error(13)).to_string();
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap();
        let gid = file.path().metadata().unwrap().gid();
        let group = nix::unistd::Group::from_gid(gid.into()).unwrap().unwrap().name;
        let (path, name, uid) = (file.path().display(), user.name, user.uid);
        let beginning = format!(
            "can't read tor's cookie {path}: Permission denied (os error 13); it belongs to {name} (uid {uid}), group \
             {group} (gid {gid}), mode 0600, and perfd runs as {name} (uid {uid}); "
        );
        assert_eq!(message.get(..beginning.len()), Some(beginning.as_str()));
        assert!(message.len() > beginning.len());
    }
}
