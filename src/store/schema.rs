//! The tables, as a list of migrations that only ever grows at its end.
//!
//! `PRAGMA user_version` holds how many of them a file has had. Every column is typed and plain, so
//! that any SQLite tool can read the file and any column can be given an index later. Times are
//! microseconds since the Unix epoch; steps are microseconds after START, NULL where not reached.

use rusqlite_migration::{M, Migrations};

/// Marks a SQLite file as perfd's (`PRAGMA application_id`): the letters `prfd`.
pub(super) const APPLICATION_ID: i32 = 0x7072_6664;

/// How many migrations this program knows.
pub(super) const VERSION: usize = MIGRATIONS.len();

/// Every migration, oldest first.
pub(super) fn migrations() -> Migrations<'static> {
    Migrations::from_slice(MIGRATIONS)
}

/// Append only: a file in the field has run a prefix of this list.
const MIGRATIONS: &[M<'static>] = &[M::up(FIRST)];

/// A revision is drawn from `counter`, so that none is given twice even if rows are deleted.
/// `slot_count` is kept by triggers: summing a ledger of years for every request would be a long read.
const FIRST: &str = "
PRAGMA application_id = 0x70726664;

CREATE TABLE counter (
    name  TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counter (name, value) VALUES ('revision', 0);

CREATE TABLE configuration (
    id   INTEGER PRIMARY KEY,
    body TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE slot (
    experiment      TEXT NOT NULL,
    planned_us      INTEGER NOT NULL,
    planned_last_us INTEGER NOT NULL CHECK (planned_last_us >= planned_us),
    count           INTEGER NOT NULL CHECK (count >= 1),
    state           TEXT NOT NULL CHECK (state IN ('running', 'done', 'skipped', 'aborted', 'missed')),
    reason          TEXT,
    started_us      INTEGER,
    ended_us        INTEGER,
    PRIMARY KEY (experiment, planned_us)
) STRICT, WITHOUT ROWID;
CREATE INDEX slot_last ON slot (experiment, planned_last_us);
CREATE INDEX slot_running ON slot (planned_us) WHERE state = 'running';

CREATE TABLE slot_count (
    experiment TEXT NOT NULL,
    state      TEXT NOT NULL,
    slots      INTEGER NOT NULL,
    PRIMARY KEY (experiment, state)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER slot_inserted AFTER INSERT ON slot BEGIN
    INSERT INTO slot_count VALUES (new.experiment, new.state, new.count)
        ON CONFLICT DO UPDATE SET slots = slots + excluded.slots;
END;
CREATE TRIGGER slot_deleted AFTER DELETE ON slot BEGIN
    UPDATE slot_count SET slots = slots - old.count WHERE experiment = old.experiment AND state = old.state;
END;
CREATE TRIGGER slot_updated AFTER UPDATE OF experiment, state, count ON slot BEGIN
    UPDATE slot_count SET slots = slots - old.count WHERE experiment = old.experiment AND state = old.state;
    INSERT INTO slot_count VALUES (new.experiment, new.state, new.count)
        ON CONFLICT DO UPDATE SET slots = slots + excluded.slots;
END;

CREATE TABLE result (
    revision         INTEGER PRIMARY KEY,
    id               TEXT NOT NULL UNIQUE,
    source           TEXT NOT NULL,
    experiment       TEXT NOT NULL,
    tor              TEXT NOT NULL,
    planned_us       INTEGER NOT NULL,
    configuration_id INTEGER NOT NULL REFERENCES configuration (id),
    version          TEXT NOT NULL,
    start_us         INTEGER NOT NULL,
    ended_us         INTEGER NOT NULL,
    size             INTEGER NOT NULL,
    socket_us        INTEGER,
    connect_us       INTEGER,
    negotiate_us     INTEGER,
    request_us       INTEGER,
    response_us      INTEGER,
    data_request_us  INTEGER,
    data_response_us INTEGER,
    data_complete_us INTEGER,
    perc0_us         INTEGER,
    perc10_us        INTEGER,
    perc20_us        INTEGER,
    perc30_us        INTEGER,
    perc40_us        INTEGER,
    perc50_us        INTEGER,
    perc60_us        INTEGER,
    perc70_us        INTEGER,
    perc80_us        INTEGER,
    perc90_us        INTEGER,
    perc100_us       INTEGER,
    partial_10240_us   INTEGER,
    partial_20480_us   INTEGER,
    partial_51200_us   INTEGER,
    partial_102400_us  INTEGER,
    partial_204800_us  INTEGER,
    partial_512000_us  INTEGER,
    partial_1048576_us INTEGER,
    partial_2097152_us INTEGER,
    partial_5242880_us INTEGER,
    written          INTEGER NOT NULL,
    read             INTEGER NOT NULL,
    local_ip         TEXT,
    local_port       INTEGER,
    proxy_ip         TEXT NOT NULL,
    proxy_port       INTEGER NOT NULL,
    remote_host      TEXT NOT NULL,
    remote_port      INTEGER NOT NULL,
    isolated         INTEGER CHECK (isolated IN (0, 1)),
    verified         INTEGER NOT NULL CHECK (verified IN (0, 1)),
    outcome          TEXT NOT NULL CHECK (outcome IN ('complete', 'timeout', 'failed')),
    phase            TEXT,
    cause            TEXT,
    socks_code       INTEGER,
    http_status      INTEGER,
    detail           TEXT
) STRICT;
CREATE INDEX result_experiment_start ON result (experiment, start_us);
CREATE INDEX result_start ON result (start_us);
CREATE INDEX result_success ON result (experiment, start_us) WHERE outcome = 'complete';
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_migrations_run_and_mark_the_file() {
        migrations().validate().unwrap();
        let mut conn = rusqlite::Connection::open_in_memory().unwrap();
        migrations().to_latest(&mut conn).unwrap();
        let id: i32 = conn.pragma_query_value(None, "application_id", |row| row.get(0)).unwrap();
        assert_eq!(id, APPLICATION_ID);
    }
}
