//! Notes on results, and the tokens of those who may write them.
//!
//! A note touches a run if it names it, or if it is about a time that overlaps the run's, from START to its end, and
//! about the run's source, experiment and tor, or about all of them. One that was replaced touches none.

use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};

use super::operation::{Done, Fault, next_revision};
use super::query::{Filter, Order, WINDOW};
use super::rows::Columns;
use super::{StoreError, StoreReader, runs};
use crate::annotation::{About, Annotation, NewAnnotation};
use crate::clock::UnixMicros;
use crate::measurement::{ResultRow, RunId};

/// Which notes are wanted; what is absent does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnotationFilter {
    /// Those that touch this run, or name it.
    pub run: Option<RunId>,
    /// Those about this source, or about all.
    pub source: Option<String>,
    /// Those about this experiment, or about all.
    pub experiment: Option<String>,
    /// Those about this tor, or about all.
    pub tor: Option<String>,
    /// Those with this tag.
    pub tag: Option<String>,
    /// Those about a time that ends at this moment or later.
    pub since: Option<UnixMicros>,
    /// Those about a time that begins before this moment.
    pub until: Option<UnixMicros>,
}

/// A token, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is; notes written with it have this author.
    pub name: String,
    /// The [`hash`](crate::token::hash) of the token.
    pub hash: String,
    /// When it was made.
    pub created: UnixMicros,
}

/// So many notes are shown with one run.
const SHOWN: usize = 100;

const COLUMNS: &str = "id, revision, author, created_us, run_id, source, experiment, tor, since_us, until_us, note, \
    replaces, (SELECT id FROM annotation AS later WHERE later.replaces = annotation.id), \
    (SELECT group_concat(tag, ' ' ORDER BY tag) FROM annotation_tag WHERE annotation_id = annotation.id)";

impl From<&Filter> for AnnotationFilter {
    /// What can be asked of a note too.
    fn from(filter: &Filter) -> Self {
        AnnotationFilter {
            run: None,
            source: filter.source.clone(),
            experiment: filter.experiment.clone(),
            tor: filter.tor.clone(),
            tag: filter.tag.clone(),
            since: filter.since,
            until: filter.until,
        }
    }
}

impl StoreReader {
    /// Notes by revision: those after `after` in this order (all, if `None`), at most `limit` (and [`WINDOW`]).
    pub async fn annotations(
        &self,
        filter: &AnnotationFilter,
        after: Option<i64>,
        order: Order,
        limit: usize,
    ) -> Result<Vec<Annotation>, StoreError> {
        let filter = filter.clone();
        self.read(move |conn| list(conn, &filter, after, order, limit)).await
    }

    /// The note of this number.
    pub async fn annotation(&self, id: i64) -> Result<Option<Annotation>, StoreError> {
        self.read(move |conn| by_number(conn, id)).await
    }

    /// Every token that lets somebody write, by name.
    pub async fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        self.read(tokens).await
    }
}

/// A condition on a row of this table of results: that a note which touches the run has the tag `:tag`.
pub(super) fn tagged(table: &str) -> String {
    let tagged = "SELECT a.run_id FROM annotation_tag AS t JOIN annotation AS a ON a.id = t.annotation_id \
        WHERE t.tag = :tag AND NOT EXISTS (SELECT 1 FROM annotation AS later WHERE later.replaces = a.id)";
    format!(
        "({table}.id IN ({tagged} AND a.run_id IS NOT NULL) OR EXISTS ({tagged} AND a.run_id IS NULL \
         AND a.since_us <= {table}.start_us + {table}.ended_us AND a.until_us >= {table}.start_us \
         AND (a.source IS NULL OR a.source = {table}.source) \
         AND (a.experiment IS NULL OR a.experiment = {table}.experiment) \
         AND (a.tor IS NULL OR a.tor = {table}.tor)))"
    )
}

/// The latest notes that touch this run, the oldest first.
pub(super) fn touching(conn: &Connection, row: &ResultRow) -> Result<Vec<Annotation>> {
    let (run, start) = (&row.measurement, row.measurement.start.0);
    let end = start.saturating_add(i64::try_from(run.ended).unwrap_or(i64::MAX));
    let sql = format!(
        "SELECT {COLUMNS} FROM annotation WHERE (run_id = :run OR (run_id IS NULL AND since_us <= :end \
         AND until_us >= :start AND (source IS NULL OR source = :source) \
         AND (experiment IS NULL OR experiment = :experiment) AND (tor IS NULL OR tor = :tor))) \
         AND NOT EXISTS (SELECT 1 FROM annotation AS later WHERE later.replaces = annotation.id) \
         ORDER BY revision DESC LIMIT {SHOWN}"
    );
    let mut found = conn
        .prepare_cached(&sql)?
        .query_map(
            named_params! {
                ":run": run.id.as_str(), ":start": start, ":end": end, ":source": row.source,
                ":experiment": row.experiment, ":tor": row.tor,
            },
            annotation,
        )?
        .collect::<Result<Vec<_>>>()?;
    found.reverse();
    Ok(found)
}

/// Notes by revision.
pub(super) fn list(
    conn: &Connection,
    filter: &AnnotationFilter,
    after: Option<i64>,
    order: Order,
    limit: usize,
) -> Result<Vec<Annotation>> {
    let (low, high, direction) = match order {
        Order::Oldest => (after.map_or(i64::MIN, |after| after.saturating_add(1)), i64::MAX, "ASC"),
        Order::Newest => (i64::MIN, after.map_or(i64::MAX, |after| after.saturating_sub(1)), "DESC"),
    };
    let run = filter.run.as_ref();
    // The run itself is asked for what it is about; one that is gone is known by its name alone.
    let row = run.map(|id| runs::whole_result(conn, id)).transpose()?.flatten().map(|whole| whole.row);
    let start = row.as_ref().map(|row| row.measurement.start.0);
    let ended = row.as_ref().map(|row| i64::try_from(row.measurement.ended).unwrap_or(i64::MAX));
    let sql = format!(
        "SELECT {COLUMNS} FROM annotation WHERE revision BETWEEN :low AND :high \
         AND until_us >= :since AND since_us < :until \
         AND (:source IS NULL OR source IS NULL OR source = :source) \
         AND (:experiment IS NULL OR experiment IS NULL OR experiment = :experiment) \
         AND (:tor IS NULL OR tor IS NULL OR tor = :tor) \
         AND (:tag IS NULL OR id IN (SELECT annotation_id FROM annotation_tag WHERE tag = :tag)) \
         AND (:run IS NULL OR run_id = :run OR (run_id IS NULL AND since_us <= :end AND until_us >= :start \
              AND (source IS NULL OR source = :run_source) AND (experiment IS NULL OR experiment = :run_experiment) \
              AND (tor IS NULL OR tor = :run_tor))) \
         ORDER BY revision {direction} LIMIT :limit"
    );
    conn.prepare_cached(&sql)?
        .query_map(
            named_params! {
                ":low": low, ":high": high, ":since": filter.since.map_or(i64::MIN, |since| since.0),
                ":until": filter.until.map_or(i64::MAX, |until| until.0),
                ":source": filter.source, ":experiment": filter.experiment, ":tor": filter.tor, ":tag": filter.tag,
                ":run": run.map(RunId::as_str), ":start": start,
                ":end": start.zip(ended).map(|(start, ended)| start.saturating_add(ended)),
                ":run_source": row.as_ref().map(|row| &row.source),
                ":run_experiment": row.as_ref().map(|row| &row.experiment),
                ":run_tor": row.as_ref().map(|row| &row.tor),
                ":limit": i64::try_from(limit).unwrap_or(i64::MAX).min(WINDOW),
            },
            annotation,
        )?
        .collect()
}

fn by_number(conn: &Connection, id: i64) -> Result<Option<Annotation>> {
    conn.prepare_cached(&format!("SELECT {COLUMNS} FROM annotation WHERE id = ?1"))?
        .query_row([id], annotation)
        .optional()
}

fn tokens(conn: &Connection) -> Result<Vec<Token>> {
    conn.prepare_cached("SELECT name, hash, created_us FROM token ORDER BY name")?
        .query_map([], |row| {
            let mut columns = Columns::of(row);
            Ok(Token { name: columns.next()?, hash: columns.next()?, created: UnixMicros(columns.next()?) })
        })?
        .collect()
}

/// Stores a note.
pub(super) fn put(conn: &Connection, new: &NewAnnotation, again: bool) -> Result<Annotation, Fault> {
    if again && let Some(stored) = stored(conn, new)? {
        return Ok(stored);
    }
    if let Some(replaced) = new.replaces {
        let refuse = |why: String| Err(Fault::Request(StoreError::Refused(why)));
        match by_number(conn, replaced)?.map(|found| found.replaced_by) {
            None => return refuse(format!("there is no annotation {replaced} to replace")),
            Some(Some(later)) => return refuse(format!("annotation {replaced} was replaced already, by {later}")),
            Some(None) => {}
        }
    }
    let revision = next_revision(conn)?;
    let about = &new.about;
    conn.prepare_cached(
        "INSERT INTO annotation (revision, author, created_us, run_id, source, experiment, tor, since_us, until_us, \
         note, replaces) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
    )?
    .execute(params![
        revision,
        new.author,
        new.created.0,
        about.run.as_ref().map(RunId::as_str),
        about.source,
        about.experiment,
        about.tor,
        about.since.0,
        about.until.0,
        new.note,
        new.replaces,
    ])?;
    let id = conn.last_insert_rowid();
    let mut insert = conn.prepare_cached("INSERT INTO annotation_tag (tag, annotation_id) VALUES (?1, ?2)")?;
    for tag in &new.tags {
        insert.execute(params![tag, id])?;
    }
    Ok(Annotation { id, revision, replaced_by: None, written: new.clone() })
}

/// The same note, if a transaction that was called failed stored it all the same.
fn stored(conn: &Connection, new: &NewAnnotation) -> Result<Option<Annotation>> {
    let sql = format!("SELECT {COLUMNS} FROM annotation WHERE author = ?1 AND created_us = ?2 ORDER BY id");
    let mut find = conn.prepare_cached(&sql)?;
    for found in find.query_map(params![new.author, new.created.0], annotation)? {
        let found = found?;
        if found.written == *new {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Stores what is known of a new token.
pub(super) fn add_token(
    conn: &Connection,
    name: &str,
    hash: &str,
    created: UnixMicros,
    again: bool,
) -> Result<Done, Fault> {
    let known = tokens(conn)?.into_iter().find(|token| token.name == name);
    match known {
        Some(token) if again && token.hash == hash => return Ok(Done::Nothing),
        Some(_) => return Err(Fault::Request(StoreError::Refused(format!("there is a token {name} already")))),
        None => {}
    }
    conn.prepare_cached("INSERT INTO token (name, hash, created_us) VALUES (?1, ?2, ?3)")?
        .execute(params![name, hash, created.0])?;
    Ok(Done::Nothing)
}

/// Forgets a token.
pub(super) fn remove_token(conn: &Connection, name: &str) -> Result<Done, Fault> {
    let removed = conn.prepare_cached("DELETE FROM token WHERE name = ?1")?.execute([name])?;
    Ok(Done::Count(removed as u64))
}

fn annotation(row: &Row<'_>) -> Result<Annotation> {
    let mut columns = Columns::of(row);
    let (id, revision, author) = (columns.next()?, columns.next()?, columns.next()?);
    let created = UnixMicros(columns.next()?);
    let run = columns.maybe_word(RunId::parse)?;
    let (source, experiment, tor) = (columns.next()?, columns.next()?, columns.next()?);
    let (since, until) = (UnixMicros(columns.next()?), UnixMicros(columns.next()?));
    let (note, replaces, replaced_by) = (columns.next()?, columns.next()?, columns.next()?);
    let tags: Option<String> = columns.next()?;
    let tags = tags.iter().flat_map(|tags| tags.split(' ')).map(str::to_owned).collect();
    let about = About { run, source, experiment, tor, since, until };
    Ok(Annotation {
        id,
        revision,
        replaced_by,
        written: NewAnnotation { author, created, about, note, tags, replaces },
    })
}
