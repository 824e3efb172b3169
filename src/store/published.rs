//! Files that are given out for ever: made once of a finished day, and never changed again, whatever becomes of the
//! results that they were made of.

use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};

use super::query::WINDOW;
use super::rows::{Columns, integer, result_row, select_results};
use super::{StoreError, StoreReader, parts};
use crate::clock::UnixMicros;
use crate::measurement::{Kind, ResultRow, RunId};

/// A file as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name, unique: letters, digits, dots and hyphens.
    pub name: String,
    /// When it was made.
    pub modified: UnixMicros,
    /// Its size in bytes.
    pub size: u64,
    /// The SHA-256 of its bytes, as 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// A file with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedFile {
    /// What is listed of it.
    pub listed: Listed,
    /// Whether `body` is compressed (raw deflate), which the file is not.
    pub deflated: bool,
    /// The bytes.
    pub body: Vec<u8>,
}

/// The files of one UTC day.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedDay {
    /// The day, counted from 1970-01-01.
    pub day: i64,
    /// When it was closed.
    pub settled: UnixMicros,
    /// Its files; none, where the day had nothing to be published.
    pub files: Vec<PublishedFile>,
}

/// Which results a day's files are made of: plain downloads (one to a slot) that this perfd measured, by START.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publishable {
    /// The name of the instance.
    pub source: String,
    /// START at this moment or later.
    pub since: UnixMicros,
    /// START before this moment.
    pub until: UnixMicros,
    /// Experiments that are kept out, beside those that were to be kept out when they were measured.
    pub but: Vec<String>,
}

/// After which result a page of [`StoreReader::publishable_page`] goes on.
pub type AfterResult = (UnixMicros, RunId);

impl StoreReader {
    /// The results of which files are made, by START and name, those after `after`, with their circuits; at most
    /// `limit`, and fewer only at the end.
    pub async fn publishable_page(
        &self,
        which: &Publishable,
        after: Option<AfterResult>,
        limit: usize,
    ) -> Result<Vec<ResultRow>, StoreError> {
        let which = which.clone();
        self.read(move |conn| publishable_page(conn, &which, after.as_ref(), limit)).await
    }

    /// The first START of a result of this source from `since` on.
    pub async fn first_start(&self, source: &str, since: UnixMicros) -> Result<Option<UnixMicros>, StoreError> {
        let source = source.to_owned();
        self.read(move |conn| first_start(conn, &source, since)).await
    }

    /// The first START of any result, imported or not, from `since` on.
    pub async fn next_start(&self, since: UnixMicros) -> Result<Option<UnixMicros>, StoreError> {
        self.read(move |conn| next_start(conn, since)).await
    }

    /// When the last run with a START within `since <= START < until` had ended.
    pub async fn last_end(&self, since: UnixMicros, until: UnixMicros) -> Result<Option<UnixMicros>, StoreError> {
        self.read(move |conn| last_end(conn, since, until)).await
    }

    /// Whether a slot planned before this moment is still running.
    pub async fn running_before(&self, moment: UnixMicros) -> Result<bool, StoreError> {
        self.read(move |conn| running_before(conn, moment)).await
    }

    /// Whether the files of this day (counted from 1970-01-01) were made.
    pub async fn is_published(&self, day: i64) -> Result<bool, StoreError> {
        self.read(move |conn| is_published(conn, day)).await
    }

    /// Published files in the order of their names, those after `after`, at most [`WINDOW`].
    pub async fn published_after(&self, after: &str) -> Result<Vec<Listed>, StoreError> {
        let after = after.to_owned();
        self.read(move |conn| published_after(conn, &after)).await
    }

    /// The published file of this name.
    pub async fn published_file(&self, name: &str) -> Result<Option<PublishedFile>, StoreError> {
        let name = name.to_owned();
        self.read(move |conn| published_file(conn, &name)).await
    }
}

/// Stores a day's files, unless the day has been closed already. Whether it did.
pub(super) fn publish(conn: &Connection, day: &PublishedDay) -> Result<bool> {
    let files = integer(day.files.len() as u64)?;
    let entered = conn
        .prepare_cached(
            "INSERT INTO published_day (day, settled_us, files) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
        )?
        .execute(params![day.day, day.settled.0, files])?;
    if entered == 0 {
        return Ok(false);
    }
    let mut insert = conn.prepare_cached(
        "INSERT INTO published (name, day, modified_us, size, sha256, deflated, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )?;
    for PublishedFile { listed, deflated, body } in &day.files {
        let size = integer(listed.size)?;
        insert.execute(params![listed.name, day.day, listed.modified.0, size, listed.sha256, deflated, body])?;
    }
    Ok(true)
}

fn publishable_page(
    conn: &Connection,
    which: &Publishable,
    after: Option<&AfterResult>,
    limit: usize,
) -> Result<Vec<ResultRow>> {
    let (from, name) = after.map_or((which.since.0, ""), |(start, id)| (start.0.max(which.since.0), id.as_str()));
    let but = serde_json::to_string(&which.but).unwrap_or_default();
    let mut rows = conn
        .prepare_cached(&select_results(
            "INDEXED BY result_start WHERE start_us >= :from AND start_us < :until AND (start_us > :from OR id > :name) \
             AND source = :source AND kind = :kind AND place_of = 1 \
             AND experiment NOT IN (SELECT value FROM json_each(:but)) \
             AND configuration_id NOT IN (SELECT id FROM configuration WHERE CASE WHEN json_valid(body) \
             THEN json_extract(body, '$.experiment.publish') IS 0 ELSE 0 END) \
             ORDER BY start_us, id LIMIT :limit",
        ))?
        .query_map(
            named_params! {
                ":from": from, ":name": name, ":until": which.until.0, ":source": which.source,
                ":kind": Kind::Download.as_str(), ":but": but, ":limit": at_most(limit),
            },
            result_row,
        )?
        .collect::<Result<Vec<_>>>()?;
    for row in &mut rows {
        row.circuit = parts::circuit(conn, &row.measurement.id)?;
    }
    Ok(rows)
}

fn first_start(conn: &Connection, source: &str, since: UnixMicros) -> Result<Option<UnixMicros>> {
    conn.prepare_cached(
        "SELECT start_us FROM result INDEXED BY result_start WHERE start_us >= ?1 AND source = ?2 \
         ORDER BY start_us LIMIT 1",
    )?
    .query_row(params![since.0, source], |row| row.get(0).map(UnixMicros))
    .optional()
}

fn next_start(conn: &Connection, since: UnixMicros) -> Result<Option<UnixMicros>> {
    let first = |sql: &str| -> Result<Option<i64>> { conn.prepare_cached(sql)?.query_row([since.0], |row| row.get(0)) };
    let own = first("SELECT min(start_us) FROM result INDEXED BY result_start WHERE start_us >= ?1")?;
    let imported = first("SELECT min(start_us) FROM imported INDEXED BY imported_start WHERE start_us >= ?1")?;
    Ok([own, imported].into_iter().flatten().min().map(UnixMicros))
}

fn last_end(conn: &Connection, since: UnixMicros, until: UnixMicros) -> Result<Option<UnixMicros>> {
    let sql =
        "SELECT max(start_us + ended_us) FROM result INDEXED BY result_start WHERE start_us >= ?1 AND start_us < ?2";
    let end: Option<i64> = conn.prepare_cached(sql)?.query_row([since.0, until.0], |row| row.get(0))?;
    Ok(end.map(UnixMicros))
}

fn running_before(conn: &Connection, moment: UnixMicros) -> Result<bool> {
    conn.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM slot INDEXED BY slot_running WHERE state = 'running' AND planned_us < ?1)",
    )?
    .query_row([moment.0], |row| row.get(0))
}

fn is_published(conn: &Connection, day: i64) -> Result<bool> {
    conn.prepare_cached("SELECT EXISTS (SELECT 1 FROM published_day WHERE day = ?1)")?
        .query_row([day], |row| row.get(0))
}

fn published_after(conn: &Connection, after: &str) -> Result<Vec<Listed>> {
    conn.prepare_cached("SELECT name, modified_us, size, sha256 FROM published WHERE name > ?1 ORDER BY name LIMIT ?2")?
        .query_map(params![after, WINDOW], listed)?
        .collect()
}

fn published_file(conn: &Connection, name: &str) -> Result<Option<PublishedFile>> {
    conn.prepare_cached("SELECT name, modified_us, size, sha256, deflated, body FROM published WHERE name = ?1")?
        .query_row([name], |row| Ok(PublishedFile { listed: listed(row)?, deflated: row.get(4)?, body: row.get(5)? }))
        .optional()
}

fn listed(row: &Row<'_>) -> Result<Listed> {
    let mut columns = Columns::of(row);
    Ok(Listed {
        name: columns.next()?,
        modified: UnixMicros(columns.next()?),
        size: columns.natural()?,
        sha256: columns.next()?,
    })
}

fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX).min(WINDOW)
}
