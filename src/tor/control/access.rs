//! What keeps perfd from a file of tor's, and what would help: the most common trouble of all.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, geteuid};

use super::error::shown_path;

/// What works without the cookie.
pub(super) const PASSWORD_INSTEAD: &str = "use a password (HashedControlPassword in its torrc, `control_password_file` beside `control` in perfd's configuration)";

/// A way in that tor may leave to its group.
#[derive(Clone, Copy, Debug)]
pub(super) struct GroupAccess {
    /// The permission bit that it takes.
    pub bit: u32,
    /// The line of a torrc that sets it.
    pub option: &'static str,
    /// What works without it.
    pub instead: &'static str,
}

/// To read the cookie.
pub(super) const COOKIE: GroupAccess =
    GroupAccess { bit: 0o040, option: "CookieAuthFileGroupReadable 1", instead: PASSWORD_INSTEAD };

/// To connect to the socket.
pub(super) const SOCKET: GroupAccess = GroupAccess {
    bit: 0o020,
    option: "ControlSocketsGroupWritable 1",
    instead: "use a ControlPort on loopback instead of the socket",
};

/// Whose a file is, who we are, and what to do about a permission that is missing.
pub(super) fn remedy(path: &Path, access: GroupAccess) -> String {
    let us = geteuid();
    let perfd = user(us);
    let me = short(User::from_uid(us).ok().flatten().map(|user| user.name), us.as_raw());
    match Found::at(path) {
        Ok(found) => {
            let advice = found.advice(access, &me);
            format!("{found}, and perfd runs as {perfd}; {advice}")
        }
        Err(error) => format!("perfd runs as {perfd}, and can't see whose it is ({error}); {}", access.instead),
    }
}

/// A file, or the innermost folder above it that can be seen: the one that does not let us through.
#[derive(Debug)]
struct Found {
    folder: Option<PathBuf>,
    owner: Uid,
    group: Gid,
    mode: u32,
}

impl Found {
    fn at(path: &Path) -> io::Result<Found> {
        let (folder, found) = match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let above = path.ancestors().skip(1);
                above.filter_map(|path| Some((Some(path.to_owned()), path.metadata().ok()?))).next().ok_or(error)?
            }
            other => (None, other?),
        };
        let (owner, group) = (Uid::from_raw(found.uid()), Gid::from_raw(found.gid()));
        Ok(Found { folder, owner, group, mode: found.mode() & 0o7777 })
    }

    fn advice(&self, access: GroupAccess, me: &str) -> String {
        let GroupAccess { bit, option, instead } = access;
        let bit = if self.folder.is_some() { 0o010 } else { bit };
        let open = self.mode & bit != 0;
        let group = short(group_name(self.group), self.group.as_raw());
        let join = format!("add {me} to the group {group} (adduser {me} {group})");
        // perfd takes no membership of root's group.
        if self.group.as_raw() == 0 {
            return format!("let tor run as a user of its own (User in its torrc), or {instead}");
        }
        match (&self.folder, open) {
            (None, true) => format!("{join} and restart perfd"),
            (None, false) => format!("set `{option}` in tor's torrc, {join}, and restart both"),
            (Some(_), true) => format!("{join}, set `{option}` in tor's torrc, and restart both"),
            (Some(_), false) => format!(
                "let tor keep it in a folder that its group can enter, set `{option}` in its torrc, {join}, and \
                 restart both; or {instead}"
            ),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.folder {
            None => f.write_str("it")?,
            Some(folder) => write!(f, "its folder {}", shown_path(folder))?,
        }
        let group = with_number(group_name(self.group), "gid", self.group.as_raw());
        write!(f, " belongs to {}, group {group}, mode {:04o}", user(self.owner), self.mode)
    }
}

/// `debian-tor (uid 105)`.
fn user(uid: Uid) -> String {
    with_number(User::from_uid(uid).ok().flatten().map(|user| user.name), "uid", uid.as_raw())
}

fn group_name(gid: Gid) -> Option<String> {
    Group::from_gid(gid).ok().flatten().map(|group| group.name)
}

fn with_number(name: Option<String>, kind: &str, number: u32) -> String {
    name.map_or_else(|| format!("{kind} {number}"), |name| format!("{name} ({kind} {number})"))
}

fn short(name: Option<String>, number: u32) -> String {
    name.unwrap_or_else(|| number.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(folder: Option<&str>, group: u32, mode: u32) -> Found {
        let folder = folder.map(PathBuf::from);
        Found { folder, owner: Uid::from_raw(0), group: Gid::from_raw(group), mode }
    }

    #[test]
    fn the_advice_fits_the_mode() {
        // A number that has no name.
        const TOR: u32 = 4_000_000_000;
        let join = "add perfd to the group 4000000000 (adduser perfd 4000000000)";
        let option = "set `CookieAuthFileGroupReadable 1` in tor's torrc";
        let cases = [
            (found(None, TOR, 0o640), format!("{join} and restart perfd")),
            (found(None, TOR, 0o600), format!("{option}, {join}, and restart both")),
            (found(Some("/run/tor"), TOR, 0o2750), format!("{join}, {option}, and restart both")),
            (
                found(Some("/var/lib/tor"), TOR, 0o2700),
                format!(
                    "let tor keep it in a folder that its group can enter, set `CookieAuthFileGroupReadable 1` in its \
                     torrc, {join}, and restart both; or {PASSWORD_INSTEAD}"
                ),
            ),
            (
                found(None, 0, 0o640),
                format!("let tor run as a user of its own (User in its torrc), or {PASSWORD_INSTEAD}"),
            ),
        ];
        for (found, expected) in cases {
            assert_eq!(found.advice(COOKIE, "perfd"), expected, "{found:?}");
        }
        assert!(found(None, TOR, 0o660).advice(SOCKET, "perfd").ends_with("and restart perfd"));
        assert!(found(None, TOR, 0o640).advice(SOCKET, "perfd").starts_with("set `ControlSocketsGroupWritable 1`"));
    }

    #[test]
    fn whose_it_is_is_shown_with_names_and_numbers() {
        let file = found(None, 0, 0o640).to_string();
        assert_eq!(file, "it belongs to root (uid 0), group root (gid 0), mode 0640");
        let folder = found(Some("/var/lib/tor"), 4_000_000_000, 0o2700).to_string();
        assert_eq!(folder, "its folder /var/lib/tor belongs to root (uid 0), group gid 4000000000, mode 2700");
    }

    #[test]
    fn a_file_is_found_as_it_is() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        let found = Found::at(file.path()).unwrap();
        assert_eq!((found.folder, found.owner, found.mode), (None, geteuid(), 0o640));
        assert_eq!(Found::at(&file.path().join("x")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
