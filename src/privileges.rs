//! Becoming nobody: privileges are dropped for good, and that they are gone is proved.
//!
//! privdrop does the dropping. It says "done" in cases where root's groups stay or nothing was dropped
//! at all, so [`drop_to`] looks for itself afterwards.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{self, Gid, Group, Uid, User};
use privdrop::PrivDrop;

use crate::config::RunAs;

/// Whom to become.
#[derive(Clone, Debug)]
pub struct Identity {
    user: String,
    group: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

/// Why perfd can't become somebody else. Each says what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PrivilegeError {
    #[error(
        "perfd was started as root, and the configuration names no user to become; set user in the section [privileges]"
    )]
    NobodyToBecome,
    #[error(
        "there is no user {0}; create it (adduser --system --group --no-create-home --home /nonexistent {0}), or name another in the section [privileges]"
    )]
    NoUser(String),
    #[error("there is no group {0}; create it (addgroup --system {0}), or name another in the section [privileges]")]
    NoGroup(String),
    #[error("{0} is root; name a user and a group without privileges in the section [privileges]")]
    Root(String),
    #[error("can't look up users and groups: {0}")]
    Lookup(nix::Error),
    #[error("can't make the folder {} for user {user}: {error}", path.display())]
    Folder { path: PathBuf, user: String, error: io::Error },
    #[error("can't drop privileges: {0}")]
    Drop(String),
    #[error("privileges were not dropped: {0}; perfd does not run like this")]
    NotDropped(String),
}

/// Whether this process is root, in effect or by what it could return to.
pub fn are_root() -> bool {
    let root = |uid: Uid| uid.is_root();
    unistd::getresuid().map_or(true, |ids| root(ids.real) || root(ids.effective) || root(ids.saved))
}

impl Identity {
    /// Looks up user and group, by name or number.
    ///
    /// # Errors
    /// If one of them is unknown, or has root's number.
    pub fn resolve(run_as: &RunAs) -> Result<Identity, PrivilegeError> {
        let user = match run_as.user.parse() {
            Ok(uid) => User::from_uid(Uid::from_raw(uid)),
            Err(_) => User::from_name(&run_as.user),
        };
        let user = user.map_err(PrivilegeError::Lookup)?.ok_or_else(|| PrivilegeError::NoUser(run_as.user.clone()))?;
        let group = match run_as.group.as_deref().map(|group| (group, group.parse())) {
            None => Group::from_gid(user.gid),
            Some((_, Ok(gid))) => Group::from_gid(Gid::from_raw(gid)),
            Some((name, Err(_))) => Group::from_name(name),
        };
        let named = run_as.group.clone().unwrap_or_else(|| user.gid.to_string());
        let group = group.map_err(PrivilegeError::Lookup)?.ok_or(PrivilegeError::NoGroup(named))?;
        if user.uid.is_root() || group.gid.as_raw() == 0 {
            return Err(PrivilegeError::Root(format!("{}:{}", user.name, group.name)));
        }
        let c_name =
            std::ffi::CString::new(user.name.clone()).map_err(|_| PrivilegeError::NoUser(user.name.clone()))?;
        let groups = unistd::getgrouplist(&c_name, group.gid).map_err(PrivilegeError::Lookup)?;
        if groups.iter().any(|gid| gid.as_raw() == 0) {
            return Err(PrivilegeError::Root(format!("{}, a member of the group root,", user.name)));
        }
        Ok(Identity { user: user.name, group: group.name, uid: user.uid, gid: group.gid, groups })
    }

    /// Makes a folder (and those above it) where it is missing, owned by this identity. A folder that is
    /// there is left as it is; and where not all that is there above it is root's, nothing is made: root
    /// would follow links that somebody else laid, and this identity may well make it by itself.
    ///
    /// # Errors
    /// If it can't be made or given away.
    pub fn make_folder(&self, path: &Path) -> Result<(), PrivilegeError> {
        let error = |error| PrivilegeError::Folder { path: path.to_owned(), user: self.user.clone(), error };
        if path.as_os_str().is_empty() || path.exists() || !roots_alone(path) {
            return Ok(());
        }
        for missing in missing_above(path) {
            std::fs::create_dir(missing).map_err(error)?;
            // Whatever the umask, this identity must be able to walk through.
            std::fs::set_permissions(missing, Permissions::from_mode(0o755)).map_err(error)?;
        }
        // Made by us alone, or not at all: what somebody else put there is not given away.
        match DirBuilder::new().mode(0o750).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            other => other.map_err(error)?,
        }
        std::os::unix::fs::lchown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw())).map_err(error)
    }

    /// The user's name.
    pub fn user(&self) -> &str {
        &self.user
    }
}

/// Whether everything above `path` that is there belongs to root.
fn roots_alone(path: &Path) -> bool {
    let above = path.ancestors().skip(1).filter(|folder| !folder.as_os_str().is_empty());
    above.filter_map(|folder| folder.symlink_metadata().ok()).all(|found| found.uid() == 0)
}

/// The folders above `path` that are not there, the outermost first.
fn missing_above(path: &Path) -> Vec<&Path> {
    let above = path.ancestors().skip(1).take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    let mut missing: Vec<_> = above.collect();
    missing.reverse();
    missing
}

/// Becomes `identity` for good: user, group and supplementary groups, and no program started from here
/// can gain privileges again. Must be called before there is a second thread.
///
/// # Errors
/// If it fails, or if it seems to succeed and some privilege is left. The process must end then.
pub fn drop_to(identity: &Identity) -> Result<(), PrivilegeError> {
    PrivDrop::default()
        .user(&identity.user)
        .group(&identity.group)
        .include_default_supplementary_groups()
        .apply()
        .map_err(|e| PrivilegeError::Drop(e.to_string()))?;
    nix::sys::prctl::set_no_new_privs().map_err(|e| PrivilegeError::Drop(e.to_string()))?;
    prove_dropped(identity)
}

fn prove_dropped(identity: &Identity) -> Result<(), PrivilegeError> {
    let not = |what: String| Err(PrivilegeError::NotDropped(what));
    let (users, groups) = match (unistd::getresuid(), unistd::getresgid()) {
        (Ok(users), Ok(groups)) => (users, groups),
        (Err(e), _) | (_, Err(e)) => return not(format!("can't tell who we are: {e}")),
    };
    if [users.real, users.effective, users.saved].iter().any(|uid| *uid != identity.uid) {
        return not(format!("user ids are {users:?}"));
    }
    if [groups.real, groups.effective, groups.saved].iter().any(|gid| *gid != identity.gid) {
        return not(format!("group ids are {groups:?}"));
    }
    match unistd::getgroups() {
        Ok(held) => {
            if let Some(extra) = held.iter().find(|gid| !identity.groups.contains(gid)) {
                return not(format!("group {extra} is still held"));
            }
        }
        Err(e) => return not(format!("can't list the groups: {e}")),
    }
    if unistd::setuid(Uid::from_raw(0)).is_ok() || unistd::seteuid(Uid::from_raw(0)).is_ok() {
        return not("root could be had back".to_owned());
    }
    if unistd::setgid(Gid::from_raw(0)).is_ok() {
        return not("root's group could be had back".to_owned());
    }
    Ok(())
}
