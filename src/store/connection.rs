//! Opening the file, and saying well what is wrong with it.

use std::cell::Cell;
use std::fs::{self, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, eaccess, geteuid};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use rusqlite_migration::{Error as MigrationError, MigrationDefinitionError};

use super::error::OpenError;
use super::schema;
use crate::config::folder_of;

/// How large the write-ahead log is kept after a checkpoint, in bytes.
const WAL_LIMIT: i64 = 16 << 20;

/// How many statements a connection keeps prepared: all that it is asked again and again.
const STATEMENTS: usize = 64;

/// Opens (or creates) the store for writing and brings its tables up to date.
pub(super) fn open_store(path: &Path, busy_timeout: Duration) -> Result<Connection, OpenError> {
    check_file(path)?;
    let explain = |error: rusqlite::Error| explain(path, &error);
    let mut conn = open_for_writing(path, true, busy_timeout).map_err(explain)?;
    check_owner_program(path, &conn)?;
    schema::migrations().to_latest(&mut conn).map_err(|error| match error {
        MigrationError::RusqliteError { err, .. } => explain(err),
        MigrationError::MigrationDefinition(MigrationDefinitionError::DatabaseTooFarAhead) => {
            let found = conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap_or(-1);
            OpenError::Newer { path: path.to_owned(), found, known: schema::VERSION }
        }
        other => OpenError::Other { path: path.to_owned(), detail: other.to_string() },
    })?;
    Ok(conn)
}

/// Opens the file for writing, as every writing connection is set.
///
/// FULL: a committed transaction outlives a power cut, and perfd writes too seldom for it to matter.
pub(super) fn open_for_writing(path: &Path, create: bool, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    let mut flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    flags.set(OpenFlags::SQLITE_OPEN_CREATE, create);
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(busy_timeout)?;
    conn.pragma_update(None, "journal_mode", "WAL")?;
    conn.pragma_update(None, "synchronous", "FULL")?;
    conn.pragma_update(None, "journal_size_limit", WAL_LIMIT)?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

thread_local! {
    /// Pages of the write-ahead log after this thread's last commit.
    static LOG_PAGES: Cell<u64> = const { Cell::new(0) };
}

/// Lets [`log_pages`] be known of this connection, in place of SQLite's own checkpoints, which fall on the commit that
/// finds the log long.
pub(super) fn watch_log(conn: &Connection) {
    conn.wal_hook(Some(|_, pages| {
        LOG_PAGES.set(u64::try_from(pages).unwrap_or(0));
        Ok(())
    }));
}

/// How many pages the write-ahead log had after the last commit of a connection of this thread's that is watched.
pub(super) fn log_pages() -> u64 {
    LOG_PAGES.get()
}

/// Puts as much of the write-ahead log into the store's file as can be without waiting for anybody. Gives how many
/// pages the log has, and how many of them are in the file now.
pub(super) fn checkpoint(conn: &Connection) -> rusqlite::Result<(u64, u64)> {
    let pages = |pages: i64| u64::try_from(pages).unwrap_or(0);
    let done = conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| Ok((pages(row.get(1)?), pages(row.get(2)?))));
    LOG_PAGES.set(0);
    done
}

/// Begins a transaction that writes, if need be after others have ended theirs, within this time.
pub(super) fn begin(conn: &Connection, patience: Duration) -> rusqlite::Result<Transaction<'_>> {
    conn.busy_timeout(Duration::ZERO)?;
    let begun = Instant::now();
    loop {
        let error = match Transaction::new_unchecked(conn, TransactionBehavior::Immediate) {
            Ok(transaction) => return Ok(transaction),
            Err(error) => error,
        };
        let waited = begun.elapsed();
        if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || waited >= patience {
            return Err(error);
        }
        let pause = if waited < FINE { FINE_PAUSE } else { COARSE_PAUSE };
        std::thread::sleep(pause.min(patience - waited));
    }
}

/// So long a lock is tried for often.
const FINE: Duration = Duration::from_millis(20);
const FINE_PAUSE: Duration = Duration::from_micros(200);
const COARSE_PAUSE: Duration = Duration::from_millis(2);

/// Opens the file for reading only.
pub(super) fn open_for_reading(path: &Path, busy_timeout: Duration) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(path, flags)?;
    conn.busy_timeout(busy_timeout)?;
    conn.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(conn)
}

/// Opens a file that nobody writes: without its `-wal` and `-shm`, which SQLite would make otherwise, owned by
/// whoever reads.
pub(super) fn open_still(path: &Path) -> rusqlite::Result<Connection> {
    let escaped: String = path
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|byte| match byte {
            b'/' | b'.' | b'-' | b'_' => char::from(*byte).to_string(),
            byte if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)
}

/// Whether somebody has the file open for writing, or had and did not end well: there is a write-ahead log then.
pub(super) fn is_written(path: &Path) -> bool {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    fs::metadata(log).is_ok_and(|log| log.len() > 0)
}

/// Whether this is a store whose tables this perfd can read.
pub(super) fn check_for_reading(path: &Path, opened: rusqlite::Result<Connection>) -> Result<(), OpenError> {
    let found =
        fs::metadata(path).map_err(|error| OpenError::Other { path: path.to_owned(), detail: error.to_string() })?;
    if !found.is_file() {
        return Err(OpenError::NotAFile { path: path.to_owned() });
    }
    let explain = |error: rusqlite::Error| explain(path, &error);
    let conn = opened.map_err(explain)?;
    check_owner_program(path, &conn)?;
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(explain)?;
    let (path, found, known) = (path.to_owned(), version, schema::VERSION);
    match usize::try_from(version).unwrap_or(usize::MAX).cmp(&known) {
        std::cmp::Ordering::Less => Err(OpenError::Older { path, found, known }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(OpenError::Newer { path, found, known }),
    }
}

/// Which file it is that a path leads to: device and inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    /// The file at `path` now.
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        fs::metadata(path).map(|file| FileId(file.dev(), file.ino()))
    }
}

/// Finds what SQLite would only call "unable to open database file". Runs before SQLite opens the
/// file: closing another descriptor of it later would drop SQLite's locks.
fn check_file(path: &Path) -> Result<(), OpenError> {
    let folder = folder_of(path);
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        _ => return Err(OpenError::NoFolder { path: path.to_owned(), folder: folder.to_owned() }),
    }
    // SQLite creates the -wal and -shm files beside the store.
    match eaccess(folder, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) => {}
        Err(Errno::EACCES) => return Err(not_writable(path, folder)),
        Err(error) => return Err(OpenError::Other { path: path.to_owned(), detail: error.desc().to_owned() }),
    }
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(OpenError::NotAFile { path: path.to_owned() }),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OpenError::Other { path: path.to_owned(), detail: error.to_string() }),
    }
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Err(not_writable(path, path)),
        Err(error) => Err(OpenError::Other { path: path.to_owned(), detail: error.to_string() }),
    }
}

/// The error about `what` (the file or its folder), with its owner and mode.
pub(super) fn not_writable(path: &Path, what: &Path) -> OpenError {
    let (uid, gid, mode) = fs::metadata(what).map_or((0, 0, 0), |m: Metadata| (m.uid(), m.gid(), m.mode() & 0o7777));
    let (path, what): (PathBuf, PathBuf) = (path.to_owned(), what.to_owned());
    OpenError::NotWritable { path, what, uid, gid, mode, user: geteuid().as_raw() }
}

/// Refuses to put perfd's tables into another program's database.
fn check_owner_program(path: &Path, conn: &Connection) -> Result<(), OpenError> {
    let number = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).map_err(|e| explain(path, &e));
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let application = number("PRAGMA application_id")?;
    if tables > 0 && application != i64::from(schema::APPLICATION_ID) {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    Ok(())
}

/// SQLite's error as one that names path and remedy.
fn explain(path: &Path, error: &rusqlite::Error) -> OpenError {
    let (path, detail) = (path.to_owned(), error.to_string());
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => OpenError::NotADatabase { path },
        Some(ErrorCode::DatabaseCorrupt) => OpenError::Corrupt { path, detail },
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked { path, detail },
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => not_writable(&path, &path),
        _ => OpenError::Other { path, detail },
    }
}
