//! What can go wrong with the store.

use std::path::PathBuf;

use crate::clock::UnixMicros;
use crate::slot::SlotId;

/// Why the store could not be opened. Every message names the path and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum OpenError {
    #[error(
        "the store {path} cannot be opened: there is no folder {folder}; create it, owned by the user that perfd runs as"
    )]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error("the store {path} is not a regular file; name a file in the configuration")]
    NotAFile { path: PathBuf },
    #[error(
        "the store {path} cannot be written: {what} belongs to user {uid} and group {gid} with mode {mode:04o}, \
         and perfd runs as user {user}; run `chown {user} {what}` or perfd as its owner"
    )]
    NotWritable { path: PathBuf, what: PathBuf, uid: u32, gid: u32, mode: u32, user: u32 },
    #[error("the store {path} is no SQLite database; move it away (perfd then makes a new one) or name another file")]
    NotADatabase { path: PathBuf },
    #[error("the store {path} is a SQLite database of another program; name another file in the configuration")]
    Foreign { path: PathBuf },
    #[error(
        "the store {path} is damaged ({detail}); restore a backup, or save what can be read with \
         `sqlite3 FILE .recover`, and move the file and its -wal and -shm away together"
    )]
    Corrupt { path: PathBuf, detail: String },
    #[error(
        "the store {path} was written by a newer perfd: it has version {found}, and this one knows {known}; \
         run the newer perfd, or restore a backup made before it"
    )]
    Newer { path: PathBuf, found: i64, known: usize },
    #[error(
        "the store {path} was last used by an older perfd: it has version {found}, and this one reads {known}; \
         start perfd on it once, or give its configuration"
    )]
    Older { path: PathBuf, found: i64, known: usize },
    #[error(
        "the store {path} is locked by another process ({detail}); stop the other perfd or the tool that has it open"
    )]
    Locked { path: PathBuf, detail: String },
    #[error("the store {path} cannot be opened: {detail}; see to the disk that it is on, and start perfd again")]
    Other { path: PathBuf, detail: String },
}

/// Why a request to the store was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The slot is in the ledger already: it was begun, skipped or missed before.
    #[error("slot {} of experiment {} is taken", .0.planned, .0.experiment)]
    SlotTaken(SlotId),
    /// The slot to finish is not running.
    #[error("slot {} of experiment {} is not running", .0.planned, .0.experiment)]
    SlotNotRunning(SlotId),
    /// This one request breaks a rule of the tables; trying again will not help.
    #[error("the store refuses: {0}")]
    Refused(String),
    /// The store could not be written until it was closed; nothing of this request was kept.
    #[error("the store cannot be written: {0}")]
    Failing(String),
    /// The store could not be read.
    #[error("the store cannot be read: {0}")]
    Unreadable(String),
    /// Too many reads are under way; try again later.
    #[error("the store is busy: too many reads at once")]
    Busy,
    /// The answer would have taken longer than the question may; ask for less at a time.
    #[error("the answer takes too long to find; ask for less time at once, or for one experiment")]
    Overdue,
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
}

/// Whether the store can be written, as the last attempt showed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StoreHealth {
    /// The last transaction was committed (or none was tried yet).
    #[default]
    Ok,
    /// Nothing was committed since; what is to be written waits and is tried again.
    Failing {
        /// The wall clock at the first failed attempt.
        since: UnixMicros,
        /// The latest error, for people.
        error: String,
    },
}
