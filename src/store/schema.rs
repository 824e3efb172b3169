//! The tables, as a list of migrations that only ever grows at its end.
//!
//! `PRAGMA user_version` holds how many of them a file has had. Columns are typed and plain, so
//! that any SQLite tool can read the file and any column can be given an index later. Times are
//! microseconds since the Unix epoch; steps are microseconds after START, NULL where not reached.
//! What tor tells has more parts than columns: `body` holds it whole, as JSON, and the columns beside it
//! are there to be asked for.

use rusqlite_migration::{M, Migrations};

use super::backfill;

/// Marks a SQLite file as perfd's (`PRAGMA application_id`): the letters `prfd`.
pub(super) const APPLICATION_ID: i32 = 0x7072_6664;

/// How many migrations this program knows.
pub(super) const VERSION: usize = 3;

/// Every migration, oldest first. Append only: a file in the field has run a prefix of this list.
pub(super) fn migrations() -> Migrations<'static> {
    Migrations::new(vec![M::up(FIRST), M::up(SECOND), M::up_with_hook(THIRD, |change| Ok(backfill::fill(change)?))])
}

/// The tables as the first perfd made them.
#[cfg(test)]
pub(super) fn first_migration() -> Migrations<'static> {
    Migrations::new(vec![M::up(FIRST)])
}

/// Adds slots (or takes them away) of the rows that `$rows` selects to the days on which they were planned. A gap
/// stands for slots that are equally far apart; the counts of its days add up to its own. One that is longer than a
/// few hundred years (a clock that was very wrong) is not followed to its end.
macro_rules! into_days {
    ($rows:literal, $sign:literal, $days:literal) => {
        concat!(
            "INSERT INTO slot_day (experiment, day, state, slots)
             WITH RECURSIVE part (experiment, state, planned_us, planned_last_us, count, step, day, last) AS (
                SELECT experiment, state, planned_us, planned_last_us, count,
                       max(1, (planned_last_us - planned_us) / max(1, count - 1)),
                       (planned_us - (planned_us % 86400000000 + 86400000000) % 86400000000) / 86400000000,
                       (planned_last_us - (planned_last_us % 86400000000 + 86400000000) % 86400000000) / 86400000000
                FROM (",
            $rows,
            ")
                UNION ALL
                SELECT experiment, state, planned_us, planned_last_us, count, step, day + 1, last
                FROM part WHERE day < last ",
            $days,
            ")
             SELECT experiment, day, state, ",
            $sign,
            "(CASE WHEN day = last THEN count
                   ELSE min(count, ((day + 1) * 86400000000 - 1 - planned_us) / step + 1) END
              - CASE WHEN day * 86400000000 - 1 < planned_us THEN 0
                     ELSE min(count, (day * 86400000000 - 1 - planned_us) / step + 1) END)
             FROM part WHERE true
             ON CONFLICT DO UPDATE SET slots = slots + excluded.slots;\n"
        )
    };
}

/// All that is in the ledger.
macro_rules! slots_into_days {
    () => {
        into_days!("SELECT experiment, state, planned_us, planned_last_us, count FROM slot", "", "")
    };
}

/// The row that a trigger is about.
macro_rules! row_into_days {
    ("new") => {
        into_days!(
            "SELECT new.experiment AS experiment, new.state AS state, new.planned_us AS planned_us,
             new.planned_last_us AS planned_last_us, new.count AS count",
            "",
            "LIMIT 100000"
        )
    };
    ("old") => {
        into_days!(
            "SELECT old.experiment AS experiment, old.state AS state, old.planned_us AS planned_us,
             old.planned_last_us AS planned_last_us, old.count AS count",
            "-",
            "LIMIT 100000"
        )
    };
}

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

/// What a run does, where its server is, and what tor told of it.
///
/// `socks_user` is NULL in rows of the first version: their runs used `perfd-` and their id.
/// `evidence.lines` is the text, compressed (raw deflate); `length` is its size before.
const SECOND: &str = "
ALTER TABLE result ADD COLUMN kind TEXT NOT NULL DEFAULT 'download' CHECK (kind IN ('download', 'upload'));
ALTER TABLE result ADD COLUMN socks_user TEXT;
ALTER TABLE result ADD COLUMN optimistic INTEGER NOT NULL DEFAULT 0 CHECK (optimistic IN (0, 1));
ALTER TABLE result ADD COLUMN server TEXT NOT NULL DEFAULT 'exit'
    CHECK (server IN ('exit', 'onion', 'single_onion'));
ALTER TABLE result ADD COLUMN place_index INTEGER NOT NULL DEFAULT 0;
ALTER TABLE result ADD COLUMN place_of INTEGER NOT NULL DEFAULT 1;
ALTER TABLE result ADD COLUMN server_request_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc0_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc10_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc20_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc30_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc40_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc50_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc60_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc70_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc80_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc90_us INTEGER;
ALTER TABLE result ADD COLUMN server_perc100_us INTEGER;
CREATE INDEX result_slot ON result (experiment, planned_us);

CREATE TABLE circuit_data (
    run_id      TEXT PRIMARY KEY NOT NULL REFERENCES result (id) ON DELETE CASCADE,
    state       TEXT NOT NULL,
    connection  INTEGER,
    tor_version TEXT,
    stream_id   INTEGER,
    circuit_id  INTEGER,
    launched_us INTEGER,
    built_us    INTEGER,
    used_at_us  INTEGER,
    path        TEXT,
    guard       TEXT,
    conflux     INTEGER NOT NULL CHECK (conflux IN (0, 1)),
    timeout_ms  INTEGER,
    quantile    REAL,
    learning    INTEGER CHECK (learning IN (0, 1)),
    body        TEXT NOT NULL
) STRICT;

CREATE TABLE evidence (
    run_id TEXT PRIMARY KEY NOT NULL REFERENCES result (id) ON DELETE CASCADE,
    length INTEGER NOT NULL,
    lines  BLOB NOT NULL
) STRICT;

CREATE TABLE curve (
    run_id TEXT PRIMARY KEY NOT NULL REFERENCES result (id) ON DELETE CASCADE,
    points TEXT NOT NULL
) STRICT;

CREATE TABLE circuit (
    tor           TEXT NOT NULL,
    connection    INTEGER NOT NULL,
    circuit_id    INTEGER NOT NULL,
    since_us      INTEGER NOT NULL,
    purpose       TEXT,
    path          TEXT,
    built_us      INTEGER,
    ended_us      INTEGER,
    failed        INTEGER NOT NULL CHECK (failed IN (0, 1)),
    reason        TEXT,
    remote_reason TEXT,
    body          TEXT NOT NULL
) STRICT;
CREATE UNIQUE INDEX circuit_since ON circuit (since_us, tor, connection, circuit_id);

CREATE TABLE tor_event (
    tor        TEXT NOT NULL,
    at_us      INTEGER NOT NULL,
    connection INTEGER NOT NULL,
    what       TEXT NOT NULL,
    detail     TEXT NOT NULL
) STRICT;
CREATE INDEX tor_event_at ON tor_event (tor, at_us);
";

/// Results of others (or of long ago), statistics, files given out for ever, notes.
///
/// Imported rows have a table of their own. Their revision is `import.base + n`, n counting from 1 without a gap:
/// `base` is NULL while a file is being read, and set when all of it is there, to the counter's value, which then
/// moves on by `rows`. So a file becomes visible at once, however long it is, at revisions that nobody has read past.
/// The rows of one import lie together: `row` is `first_row + n - 1`. `extra` holds, one `KEY=value` a line, what the
/// line said beyond the columns.
///
/// `imported_name` finds a row by its run's name: `head` is the first 16 digits of that, as a number of 64 bits whose
/// highest bit is flipped, so that SQLite's signed order is the digits'. Names have no order that the rows come in, so
/// this small table is written in long sorted runs instead of an index of `imported` row by row.
///
/// `daily` is a roll-up: a row a UTC day (days since 1970), series and import (0 for perfd's own), with histograms
/// in `body`; it outlives the rows that it was made of. `total` counts perfd's own results since the store began.
/// `slot_day` counts slots by the UTC day on which they were planned, a gap's by its grid; triggers keep it.
/// `published` holds files that were given out, which never change again. A token is known by its SHA-256 alone.
///
/// An annotation of a run has that run's names and times, so that it says all when the run is gone; one of a time has
/// no `run_id`, and NULL for a name means all of them.
///
/// `result.first_revision` is the revision that a row was stored at, and NULL as long as it has had no other.
///
/// `circuit_data.build_times` is Torperf's BUILDTIMES: µs after the launch, with commas between; NULL where not every
/// hop's is known.
const THIRD: &str = concat!(
    "
ALTER TABLE circuit_data ADD COLUMN build_times TEXT;
ALTER TABLE result ADD COLUMN first_revision INTEGER;

CREATE TABLE import (
    id       INTEGER PRIMARY KEY,
    file     TEXT NOT NULL,
    format   TEXT NOT NULL,
    begun_us INTEGER NOT NULL,
    ended_us INTEGER,
    rows     INTEGER NOT NULL DEFAULT 0,
    known    INTEGER NOT NULL DEFAULT 0,
    base     INTEGER,
    first_row INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX import_base ON import (base) WHERE base IS NOT NULL;

CREATE TABLE imported (
    row              INTEGER PRIMARY KEY,
    import_id        INTEGER NOT NULL,
    n                INTEGER NOT NULL,
    id               TEXT NOT NULL,
    source           TEXT NOT NULL,
    experiment       TEXT NOT NULL,
    tor              TEXT NOT NULL,
    start_us         INTEGER NOT NULL,
    ended_us         INTEGER NOT NULL,
    size             INTEGER NOT NULL,
    socket_us          INTEGER,
    connect_us         INTEGER,
    negotiate_us       INTEGER,
    request_us         INTEGER,
    response_us        INTEGER,
    data_request_us    INTEGER,
    data_response_us   INTEGER,
    data_complete_us   INTEGER,
    perc0_us           INTEGER,
    perc10_us          INTEGER,
    perc20_us          INTEGER,
    perc30_us          INTEGER,
    perc40_us          INTEGER,
    perc50_us          INTEGER,
    perc60_us          INTEGER,
    perc70_us          INTEGER,
    perc80_us          INTEGER,
    perc90_us          INTEGER,
    perc100_us         INTEGER,
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
    local_port       INTEGER,
    kind             TEXT NOT NULL,
    server           TEXT NOT NULL,
    outcome          TEXT NOT NULL CHECK (outcome IN ('complete', 'timeout', 'failed')),
    phase            TEXT,
    cause            TEXT,
    socks_code       INTEGER,
    http_status      INTEGER,
    detail           TEXT,
    did_time_out     INTEGER NOT NULL CHECK (did_time_out IN (0, 1)),
    names_experiment INTEGER NOT NULL CHECK (names_experiment IN (0, 1)),
    names_run        INTEGER NOT NULL CHECK (names_run IN (0, 1)),
    extra            TEXT NOT NULL
) STRICT;
CREATE INDEX imported_start ON imported (start_us);
CREATE INDEX imported_experiment_start ON imported (experiment, start_us);

CREATE TABLE imported_name (
    head INTEGER NOT NULL,
    row  INTEGER NOT NULL,
    PRIMARY KEY (head, row)
) STRICT, WITHOUT ROWID;

CREATE TABLE series (
    id         INTEGER PRIMARY KEY,
    source     TEXT NOT NULL,
    experiment TEXT NOT NULL,
    tor        TEXT NOT NULL,
    kind       TEXT NOT NULL,
    server     TEXT NOT NULL,
    size       INTEGER NOT NULL,
    UNIQUE (source, experiment, tor, kind, server, size)
) STRICT;

CREATE TABLE daily (
    day       INTEGER NOT NULL,
    series_id INTEGER NOT NULL REFERENCES series (id),
    import_id INTEGER NOT NULL DEFAULT 0,
    revision  INTEGER NOT NULL,
    runs      INTEGER NOT NULL,
    body      BLOB NOT NULL,
    PRIMARY KEY (day, series_id, import_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX daily_series ON daily (series_id, day, import_id, revision, runs);
CREATE INDEX daily_import ON daily (import_id) WHERE import_id <> 0;

CREATE TABLE slot_day (
    experiment TEXT NOT NULL,
    day        INTEGER NOT NULL,
    state      TEXT NOT NULL,
    slots      INTEGER NOT NULL,
    PRIMARY KEY (experiment, day, state)
) STRICT, WITHOUT ROWID;
",
    slots_into_days!(),
    "CREATE TRIGGER slot_day_inserted AFTER INSERT ON slot BEGIN\n",
    row_into_days!("new"),
    "END;\nCREATE TRIGGER slot_day_deleted AFTER DELETE ON slot BEGIN\n",
    row_into_days!("old"),
    "END;\nCREATE TRIGGER slot_day_updated AFTER UPDATE ON slot BEGIN\n",
    row_into_days!("old"),
    row_into_days!("new"),
    "END;

CREATE TABLE total (
    experiment TEXT NOT NULL,
    name       TEXT NOT NULL,
    label      TEXT NOT NULL,
    value      INTEGER NOT NULL,
    PRIMARY KEY (experiment, name, label)
) STRICT, WITHOUT ROWID;

CREATE TABLE published (
    name        TEXT PRIMARY KEY NOT NULL,
    day         INTEGER NOT NULL,
    modified_us INTEGER NOT NULL,
    size        INTEGER NOT NULL,
    sha256      TEXT NOT NULL,
    deflated    INTEGER NOT NULL CHECK (deflated IN (0, 1)),
    body        BLOB NOT NULL
) STRICT;
CREATE TABLE published_day (
    day        INTEGER PRIMARY KEY,
    settled_us INTEGER NOT NULL,
    files      INTEGER NOT NULL
) STRICT;

CREATE TABLE token (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    hash       TEXT NOT NULL UNIQUE,
    created_us INTEGER NOT NULL
) STRICT;

CREATE TABLE annotation (
    id         INTEGER PRIMARY KEY,
    revision   INTEGER NOT NULL UNIQUE,
    author     TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    run_id     TEXT,
    source     TEXT,
    experiment TEXT,
    tor        TEXT,
    since_us   INTEGER NOT NULL,
    until_us   INTEGER NOT NULL CHECK (until_us >= since_us),
    note       TEXT NOT NULL,
    replaces   INTEGER UNIQUE REFERENCES annotation (id)
) STRICT;
CREATE INDEX annotation_run ON annotation (run_id) WHERE run_id IS NOT NULL;
CREATE INDEX annotation_since ON annotation (since_us);
CREATE TABLE annotation_tag (
    tag           TEXT NOT NULL,
    annotation_id INTEGER NOT NULL REFERENCES annotation (id),
    PRIMARY KEY (tag, annotation_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX annotation_tag_annotation ON annotation_tag (annotation_id);
"
);

/// How an existing ledger is counted by day.
#[cfg(test)]
pub(super) const SLOTS_INTO_DAYS: &str = slots_into_days!();

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
