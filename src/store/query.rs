//! What the store can be asked, each as one short read.

use rusqlite::{Connection, OptionalExtension, Result, named_params, params};
use serde::Serialize;

use super::rows::{result_row, select_results, select_slots, slot_row};
use super::{annotations, imported, parts};
use crate::clock::UnixMicros;
use crate::measurement::{Kind, ResultRow, ServerKind};
use crate::slot::{SlotRow, SlotState};

/// How many revisions one page examines at most, so that a filter that matches little among millions
/// of rows never makes a long read.
pub const WINDOW: i64 = 20_000;

/// Which results are wanted; what is absent does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The name of the instance.
    pub source: Option<String>,
    /// The experiment's name.
    pub experiment: Option<String>,
    /// The name of the tor.
    pub tor: Option<String>,
    /// What the run did.
    pub kind: Option<Kind>,
    /// How the server was reached.
    pub server: Option<ServerKind>,
    /// Bytes of payload, exactly.
    pub size: Option<u64>,
    /// The outcome's word (`complete`, `timeout`, `failed`); another word matches nothing.
    pub outcome: Option<String>,
    /// START at this moment or later.
    pub since: Option<UnixMicros>,
    /// START before this moment.
    pub until: Option<UnixMicros>,
    /// A note that touches the run has this tag.
    pub tag: Option<String>,
    /// Imported ones alone, or perfd's own alone.
    pub imported: Option<bool>,
}

/// In which order pages are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// From the lowest revision up: for those who follow.
    #[default]
    Oldest,
    /// From the highest revision down: for those who look at the latest.
    Newest,
}

/// Some results, and where to go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// In the order asked for; may be fewer than asked for, even none, before the end is reached.
    pub rows: Vec<ResultRow>,
    /// The revision to continue after; `None` if there was nothing more at the time of the read.
    pub next: Option<i64>,
    /// The highest revision given to any row, at the time of the read. Who read [`Order::Oldest`] to
    /// the end continues after it later, and gets what was added meanwhile.
    pub latest: i64,
}

/// How an experiment is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExperimentSummary {
    /// The experiment's name.
    pub experiment: String,
    /// The latest START of a complete run.
    pub last_success: Option<UnixMicros>,
    /// The run with the latest START.
    pub last_result: Option<LastResult>,
    /// What became of its slots.
    pub slots: SlotCounts,
}

/// The latest run, in brief.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastResult {
    /// Its START.
    pub start: UnixMicros,
    /// Its outcome's word.
    pub outcome: String,
}

/// How many slots of an experiment are in which state (a gap counts as the slots it stands for).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the states' names say it")]
pub struct SlotCounts {
    pub running: u64,
    pub done: u64,
    pub skipped: u64,
    pub aborted: u64,
    pub missed: u64,
}

/// Results by revision, perfd's own and those of imports that are on. A filter that restricts the time is answered by
/// the indexes if they leave few candidates; otherwise a window of revisions is looked through.
pub(super) fn results_page(
    conn: &Connection,
    filter: &Filter,
    after: Option<i64>,
    order: Order,
    max_rows: usize,
    window: i64,
) -> Result<Page> {
    // One transaction, so that `next` and `latest` speak of the same moment as the rows.
    let snapshot = conn.unchecked_transaction()?;
    let latest = latest_revision(&snapshot)?;
    let max_rows = max_rows.clamp(1, WINDOW as usize);
    let after = after.unwrap_or(match order {
        Order::Oldest => i64::MIN,
        Order::Newest => i64::MAX,
    });
    let (low, high) = match order {
        Order::Oldest => (after.saturating_add(1), i64::MAX),
        Order::Newest => (i64::MIN, after.saturating_sub(1)),
    };
    let tables = Tables {
        own: filter.imported != Some(true),
        imported: filter.imported != Some(false) && imported::any(&snapshot)?,
    };
    // One more than asked for shows whether there are more.
    let most = max_rows + 1;
    if tables.few_candidates(&snapshot, filter, window)? {
        let mut rows = Vec::new();
        if tables.own {
            rows = select(&snapshot, filter, index_of(filter), (low, high), order, most)?;
        }
        if tables.imported {
            rows.extend(imported::select_by_start(&snapshot, filter, (low, high), order, most)?);
        }
        let (rows, next) = cut(&snapshot, rows, order, max_rows)?;
        return Ok(Page { rows, next, latest });
    }
    let Some((low, high, beyond)) = tables.first_window(&snapshot, (low, high), order, window)? else {
        return Ok(Page { rows: Vec::new(), next: None, latest });
    };
    let mut rows = Vec::new();
    if tables.own {
        rows = select(&snapshot, filter, "NOT INDEXED", (low, high), order, most)?;
    }
    if tables.imported {
        rows.extend(imported::select(&snapshot, filter, (low, high), order, most)?);
    }
    let (rows, next) = cut(&snapshot, rows, order, max_rows)?;
    Ok(Page { rows, next: next.or(beyond), latest })
}

/// The lowest and the highest revision that a row has, perfd's own or one of an import that is on.
pub(super) fn revisions(conn: &Connection) -> Result<Option<(i64, i64)>> {
    let snapshot = conn.unchecked_transaction()?;
    let tables = Tables { own: true, imported: imported::any(&snapshot)? };
    let all = (i64::MIN, i64::MAX);
    Ok(tables.first(&snapshot, all, Order::Oldest)?.zip(tables.first(&snapshot, all, Order::Newest)?))
}

/// The rows of these revisions (not more than [`WINDOW`] of them) that `filter` lets through, by revision.
pub(super) fn results_within(conn: &Connection, filter: &Filter, (low, high): (i64, i64)) -> Result<Vec<ResultRow>> {
    let snapshot = conn.unchecked_transaction()?;
    let most = WINDOW as usize;
    let high = high.min(low.saturating_add(WINDOW - 1));
    let mut rows = Vec::new();
    if filter.imported != Some(true) {
        rows = select(&snapshot, filter, "NOT INDEXED", (low, high), Order::Oldest, most)?;
    }
    if filter.imported != Some(false) && imported::any(&snapshot)? {
        rows.extend(imported::select(&snapshot, filter, (low, high), Order::Oldest, most)?);
    }
    Ok(cut(&snapshot, rows, Order::Oldest, most)?.0)
}

/// All rows of these revisions (not more than [`WINDOW`] of them), with what key=value tells of their circuits.
pub(super) fn results_with_keys(conn: &Connection, (low, high): (i64, i64)) -> Result<Vec<ResultRow>> {
    let snapshot = conn.unchecked_transaction()?;
    let (most, filter) = (WINDOW as usize, Filter::default());
    let high = high.min(low.saturating_add(WINDOW - 1));
    let mut rows = select(&snapshot, &filter, "NOT INDEXED", (low, high), Order::Oldest, most)?;
    let mut circuits = parts::circuit_keys(&snapshot, (low, high))?.into_iter().peekable();
    for row in &mut rows {
        row.circuit = circuits.next_if(|(revision, _)| *revision == row.revision).map(|(_, circuit)| circuit);
    }
    if imported::any(&snapshot)? {
        rows.extend(imported::select(&snapshot, &filter, (low, high), Order::Oldest, most)?);
        rows.sort_by_key(|row| row.revision);
    }
    Ok(rows)
}

/// Which tables have rows that a filter may let through.
#[derive(Clone, Copy, Debug)]
struct Tables {
    own: bool,
    imported: bool,
}

/// The first rows in this order, with what tor told of them, and the revision to continue after if there are more.
fn cut(
    conn: &Connection,
    mut rows: Vec<ResultRow>,
    order: Order,
    max_rows: usize,
) -> Result<(Vec<ResultRow>, Option<i64>)> {
    match order {
        Order::Oldest => rows.sort_by_key(|row| row.revision),
        Order::Newest => rows.sort_by_key(|row| std::cmp::Reverse(row.revision)),
    }
    let more = rows.len() > max_rows;
    rows.truncate(max_rows);
    let next = rows.last().filter(|_| more).map(|row| row.revision);
    // One look into an index for each row that is given, where a join would look for every candidate.
    for row in rows.iter_mut().filter(|row| row.imported.is_none()) {
        row.circuit = parts::circuit(conn, &row.measurement.id)?;
    }
    Ok((rows, next))
}

/// The index that finds what `filter` lets through by START.
fn index_of(filter: &Filter) -> &'static str {
    if filter.experiment.is_some() { "INDEXED BY result_experiment_start" } else { "INDEXED BY result_start" }
}

impl Tables {
    /// Whether the indexes alone leave no more rows than a window would hold.
    fn few_candidates(self, conn: &Connection, filter: &Filter, window: i64) -> Result<bool> {
        if filter.experiment.is_none() && filter.since.is_none() && filter.until.is_none() {
            return Ok(false);
        }
        Ok((!self.own || few_candidates(conn, filter, window)?)
            && (!self.imported || imported::few_candidates(conn, filter, window)?))
    }

    /// The first revision within the range in this order.
    fn first(self, conn: &Connection, range: (i64, i64), order: Order) -> Result<Option<i64>> {
        let own = if self.own { first_revision(conn, range, order)? } else { None };
        let other = if self.imported { imported::first_revision(conn, range, order)? } else { None };
        Ok(match order {
            Order::Oldest => own.into_iter().chain(other).min(),
            Order::Newest => own.max(other),
        })
    }

    /// The first `window` revisions within the range, and where to continue after them, if anything lies
    /// beyond. `None` if nothing lies in the range.
    fn first_window(
        self,
        conn: &Connection,
        (low, high): (i64, i64),
        order: Order,
        window: i64,
    ) -> Result<Option<(i64, i64, Option<i64>)>> {
        let first = |low: i64, high: i64| self.first(conn, (low, high), order);
        let Some(begin) = first(low, high)? else { return Ok(None) };
        Ok(Some(match order {
            Order::Oldest => {
                let end = begin.saturating_add(window - 1);
                (begin, end, first(end.saturating_add(1), i64::MAX)?.map(|_| end))
            }
            Order::Newest => {
                let end = begin.saturating_sub(window - 1);
                (end, begin, first(i64::MIN, end.saturating_sub(1))?.map(|_| end))
            }
        }))
    }
}

/// Whether the index alone leaves no more of perfd's own rows than a window would hold.
fn few_candidates(conn: &Connection, filter: &Filter, window: i64) -> Result<bool> {
    let (since, until) = start_range(filter);
    let experiment = filter.experiment.as_ref().map_or("", |_| "experiment = :experiment AND");
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM result {} \
         WHERE {experiment} start_us BETWEEN :since AND :until LIMIT :window)",
        index_of(filter)
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let row = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
    let count = match &filter.experiment {
        Some(name) => statement
            .query_row(named_params! {":experiment": name, ":since": since, ":until": until, ":window": window}, row)?,
        None => statement.query_row(named_params! {":since": since, ":until": until, ":window": window}, row)?,
    };
    Ok(count < window)
}

/// The lowest or the highest revision of perfd's own rows within the range.
fn first_revision(conn: &Connection, (low, high): (i64, i64), order: Order) -> Result<Option<i64>> {
    let aggregate = match order {
        Order::Oldest => "min",
        Order::Newest => "max",
    };
    let sql = format!("SELECT {aggregate}(revision) FROM result WHERE revision BETWEEN ?1 AND ?2");
    conn.prepare_cached(&sql)?.query_row([low, high], |row| row.get(0))
}

/// Perfd's own rows that `filter` lets through, at most `limit`, without what tor told of them.
fn select(
    conn: &Connection,
    filter: &Filter,
    index: &str,
    (low, high): (i64, i64),
    order: Order,
    limit: usize,
) -> Result<Vec<ResultRow>> {
    let (since, until) = start_range(filter);
    let mut statement = conn.prepare_cached(&select_sql(filter, index, order))?;
    let size = filter.size.map(|size| i64::try_from(size).unwrap_or(-1));
    let rows = statement.query_map(
        named_params! {
            ":experiment": filter.experiment, ":since": since, ":until": until, ":low": low, ":high": high,
            ":source": filter.source, ":size": size, ":outcome": filter.outcome,
            ":tor": filter.tor, ":kind": filter.kind.map(Kind::as_str), ":server": filter.server.map(ServerKind::as_str),
            ":limit": i64::try_from(limit).unwrap_or(i64::MAX),
            ":tag": filter.tag,
        },
        result_row,
    )?;
    rows.collect()
}

/// The index is always named (`NOT INDEXED` leaves the revision): without statistics the planner
/// would take the filter's, and look through far more than a window.
fn select_sql(filter: &Filter, index: &str, order: Order) -> String {
    let direction = match order {
        Order::Oldest => "ASC",
        Order::Newest => "DESC",
    };
    let experiment = match filter.experiment {
        Some(_) => "experiment = :experiment",
        None => ":experiment IS NULL",
    };
    let tagged = match filter.tag {
        Some(_) => annotations::tagged("result"),
        None => ":tag IS NULL".to_owned(),
    };
    select_results(&format!(
        "{index} WHERE {experiment} AND start_us BETWEEN :since AND :until AND revision BETWEEN :low AND :high \
         AND (:source IS NULL OR source = :source) AND (:size IS NULL OR size = :size) \
         AND (:outcome IS NULL OR outcome = :outcome) AND (:tor IS NULL OR tor = :tor) \
         AND (:kind IS NULL OR kind = :kind) AND (:server IS NULL OR server = :server) AND {tagged} ORDER BY revision {direction} LIMIT :limit"
    ))
}

/// The first and the last START that `filter` lets through.
pub(super) fn start_range(filter: &Filter) -> (i64, i64) {
    let since = filter.since.map_or(i64::MIN, |since| since.0);
    let until = filter.until.map_or(i64::MAX, |until| until.0.saturating_sub(1));
    (since, until)
}

/// How each of these experiments is doing, by one look into an index per question.
pub(super) fn summaries(conn: &Connection, experiments: &[String]) -> Result<Vec<ExperimentSummary>> {
    let mut last = conn.prepare_cached(
        "SELECT start_us, outcome FROM result INDEXED BY result_experiment_start WHERE experiment = ?1 \
         ORDER BY start_us DESC LIMIT 1",
    )?;
    let mut summary = |experiment: &String| -> Result<ExperimentSummary> {
        let last_success = last_success(conn, experiment)?;
        let last_result = last
            .query_row([experiment], |row| Ok(LastResult { start: UnixMicros(row.get(0)?), outcome: row.get(1)? }))
            .optional()?;
        let slots = slot_counts(conn, experiment)?;
        Ok(ExperimentSummary { experiment: experiment.clone(), last_success, last_result, slots })
    };
    experiments.iter().map(&mut summary).collect()
}

/// The latest START of a complete run.
pub(super) fn last_success(conn: &Connection, experiment: &str) -> Result<Option<UnixMicros>> {
    let mut statement = conn.prepare_cached(
        "SELECT max(start_us) FROM result INDEXED BY result_success WHERE experiment = ?1 AND outcome = 'complete'",
    )?;
    Ok(statement.query_row([experiment], |row| row.get::<_, Option<i64>>(0))?.map(UnixMicros))
}

/// The slot or gap with the latest planned time.
pub(super) fn last_slot(conn: &Connection, experiment: &str) -> Result<Option<SlotRow>> {
    conn.prepare_cached(&select_slots(
        "INDEXED BY slot_last WHERE experiment = ?1 ORDER BY planned_last_us DESC LIMIT 1",
    ))?
    .query_row([experiment], slot_row)
    .optional()
}

/// Slots planned within `from <= planned < until`, gaps that reach into it included, earliest first.
/// Rows don't overlap, so the last row planned before `from` is the only one that can reach into it.
pub(super) fn slots_between(
    conn: &Connection,
    experiment: &str,
    from: UnixMicros,
    until: UnixMicros,
    limit: usize,
) -> Result<Vec<SlotRow>> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX).min(WINDOW);
    conn.prepare_cached(&select_slots(
        "WHERE experiment = ?1 AND planned_last_us >= ?2 AND planned_us < ?3 AND planned_us >= \
         coalesce((SELECT max(planned_us) FROM slot WHERE experiment = ?1 AND planned_us <= ?2), ?2) \
         ORDER BY planned_us LIMIT ?4",
    ))?
    .query_map(params![experiment, from.0, until.0, limit], slot_row)?
    .collect()
}

/// How many slots of an experiment are in which state.
pub(super) fn slot_counts(conn: &Connection, experiment: &str) -> Result<SlotCounts> {
    let mut counts = SlotCounts::default();
    let mut statement = conn.prepare_cached("SELECT state, slots FROM slot_count WHERE experiment = ?1")?;
    let mut rows = statement.query([experiment])?;
    while let Some(row) = rows.next()? {
        let count = u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0);
        match SlotState::parse(&row.get::<_, String>(0)?) {
            Some(SlotState::Running) => counts.running = count,
            Some(SlotState::Done) => counts.done = count,
            Some(SlotState::Skipped) => counts.skipped = count,
            Some(SlotState::Aborted) => counts.aborted = count,
            Some(SlotState::Missed) => counts.missed = count,
            None => {}
        }
    }
    Ok(counts)
}

/// The highest revision ever given; 0 if none was.
pub(super) fn latest_revision(conn: &Connection) -> Result<i64> {
    conn.prepare_cached("SELECT value FROM counter WHERE name = 'revision'")?.query_row([], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_by_revision_whatever_the_filter() {
        let mut conn = Connection::open_in_memory().unwrap();
        super::super::schema::migrations().to_latest(&mut conn).unwrap();
        let plan = |filter: &Filter, index: &str| -> String {
            let sql = format!("EXPLAIN QUERY PLAN {}", select_sql(filter, index, Order::Newest));
            let mut statement = conn.prepare(&sql).unwrap();
            let steps = statement.raw_query().mapped(|row| row.get::<_, String>(3));
            steps.collect::<Result<Vec<_>>>().unwrap().join("; ")
        };
        let everything = Filter::default();
        let of_one = Filter { experiment: Some("small".to_owned()), ..Filter::default() };
        for filter in [&everything, &of_one] {
            assert_eq!(plan(filter, "NOT INDEXED"), "SEARCH result USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)");
        }
        for (filter, columns) in [(&everything, "start_us>? AND start_us<?"), (&of_one, "experiment=? AND start_us>?")]
        {
            let plan = plan(filter, index_of(filter));
            assert!(plan.contains(columns), "{plan}");
        }
    }
}
