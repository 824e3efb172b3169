//! Imported results in the tables, and how they are read.
//!
//! Only those of an import that is on (its `base` is set) are ever given.

use std::net::SocketAddr;
use std::sync::LazyLock;

use rusqlite::{Connection, OptionalExtension, Result, Row, named_params, params};

use super::annotations;
use super::query::{Filter, Order, start_range};
use super::rows::Columns;
use crate::circuit::imported::{micros, told_by};
use crate::clock::UnixMicros;
use crate::import::Endpoint;
use crate::measurement::{Curve, Imported, Kind, Measurement, Place, ResultRow, RunId, ServerKind, ServerSide};

/// The columns that rows are read from and written to, in this order; the row's place and its run's name come before.
pub(super) const COLUMNS: &str = "source, experiment, tor, start_us, ended_us, size, \
    socket_us, connect_us, negotiate_us, request_us, response_us, data_request_us, data_response_us, data_complete_us, \
    perc0_us, perc10_us, perc20_us, perc30_us, perc40_us, perc50_us, perc60_us, perc70_us, perc80_us, perc90_us, \
    perc100_us, \
    partial_10240_us, partial_20480_us, partial_51200_us, partial_102400_us, partial_204800_us, partial_512000_us, \
    partial_1048576_us, partial_2097152_us, partial_5242880_us, \
    written, read, local_port, kind, server, outcome, phase, cause, socks_code, http_status, detail, \
    did_time_out, names_experiment, names_run, extra";

/// What of an import that is on goes with each of its rows.
const VISIBLE: &str = "(SELECT id AS import_id, base, file FROM import WHERE base IS NOT NULL)";

/// An import that is on.
#[derive(Clone, Debug)]
struct Visible {
    base: i64,
    rows: i64,
    first_row: i64,
    file: String,
}

/// Whether any import is on.
pub(super) fn any(conn: &Connection) -> Result<bool> {
    let mut statement = conn.prepare_cached("SELECT 1 FROM import WHERE base IS NOT NULL LIMIT 1")?;
    statement.exists([])
}

/// The index that finds what `filter` lets through by START.
fn index_of(filter: &Filter) -> &'static str {
    if filter.experiment.is_some() { "INDEXED BY imported_experiment_start" } else { "INDEXED BY imported_start" }
}

/// Whether the index alone leaves no more rows than a window would hold. Those of a file that is being read count.
pub(super) fn few_candidates(conn: &Connection, filter: &Filter, window: i64) -> Result<bool> {
    let (since, until) = start_range(filter);
    let experiment = match filter.experiment {
        Some(_) => "experiment = :experiment",
        None => ":experiment IS NULL",
    };
    let sql = format!(
        "SELECT count(*) FROM (SELECT 1 FROM imported {} \
         WHERE {experiment} AND start_us BETWEEN :since AND :until LIMIT :window)",
        index_of(filter)
    );
    let count: i64 = conn.prepare_cached(&sql)?.query_row(
        named_params! {":experiment": filter.experiment, ":since": since, ":until": until, ":window": window},
        |row| row.get(0),
    )?;
    Ok(count < window)
}

/// The rows that `filter` lets through, found by START.
pub(super) fn select_by_start(
    conn: &Connection,
    filter: &Filter,
    (low, high): (i64, i64),
    order: Order,
    limit: usize,
) -> Result<Vec<ResultRow>> {
    let sql = format!(
        "SELECT base + n, file, id, {COLUMNS} FROM imported {} CROSS JOIN {VISIBLE} USING (import_id) \
         WHERE {} AND base + n BETWEEN :low AND :high ORDER BY base + n {} LIMIT :limit",
        index_of(filter),
        conditions(filter),
        direction(order),
    );
    rows(conn, &sql, filter, &[(":low", &low), (":high", &high)], limit)
}

/// The rows of these revisions that `filter` lets through, in their order; at most `limit`.
pub(super) fn select(
    conn: &Connection,
    filter: &Filter,
    (low, high): (i64, i64),
    order: Order,
    limit: usize,
) -> Result<Vec<ResultRow>> {
    let mut found = Vec::new();
    // The last import that begins below may reach into the range.
    let below: Option<i64> = conn
        .prepare_cached("SELECT max(base) FROM import WHERE base IS NOT NULL AND base < ?1")?
        .query_row([low], |row| row.get(0))?;
    let sql = format!(
        "SELECT base, rows, first_row, file FROM import WHERE base IS NOT NULL AND base BETWEEN ?1 AND ?2 \
         ORDER BY base {}",
        direction(order)
    );
    let mut statement = conn.prepare_cached(&sql)?;
    let mut imports = statement.query([below.unwrap_or(low), high.saturating_sub(1)])?;
    while let Some(row) = imports.next()? {
        let import = Visible { base: row.get(0)?, rows: row.get(1)?, first_row: row.get(2)?, file: row.get(3)? };
        let (first, last) = (low.max(import.base + 1), high.min(import.base + import.rows));
        if first > last {
            continue;
        }
        found.extend(of_import(conn, filter, &import, (first, last), order, limit - found.len())?);
        if found.len() >= limit {
            break;
        }
    }
    Ok(found)
}

fn of_import(
    conn: &Connection,
    filter: &Filter,
    import: &Visible,
    (first, last): (i64, i64),
    order: Order,
    limit: usize,
) -> Result<Vec<ResultRow>> {
    let sql = format!(
        "SELECT :base + n, :file, id, {COLUMNS} FROM imported NOT INDEXED \
         WHERE row BETWEEN :low AND :high AND {} ORDER BY row {} LIMIT :limit",
        conditions(filter),
        direction(order),
    );
    let row_of = |revision: i64| import.first_row + (revision - import.base - 1);
    let (low, high) = (row_of(first), row_of(last));
    let own: [(&str, &dyn rusqlite::ToSql); 4] =
        [(":base", &import.base), (":file", &import.file), (":low", &low), (":high", &high)];
    rows(conn, &sql, filter, &own, limit)
}

/// What `filter` asks, but for the range of revisions.
fn conditions(filter: &Filter) -> String {
    let experiment = match filter.experiment {
        Some(_) => "experiment = :experiment",
        None => ":experiment IS NULL",
    };
    let tagged = match filter.tag {
        Some(_) => annotations::tagged("imported"),
        None => ":tag IS NULL".to_owned(),
    };
    format!(
        "{experiment} AND start_us BETWEEN :since AND :until \
         AND (:source IS NULL OR source = :source) AND (:size IS NULL OR size = :size) \
         AND (:outcome IS NULL OR outcome = :outcome) AND (:tor IS NULL OR tor = :tor) \
         AND (:kind IS NULL OR kind = :kind) AND (:server IS NULL OR server = :server) AND {tagged}"
    )
}

fn direction(order: Order) -> &'static str {
    match order {
        Order::Oldest => "ASC",
        Order::Newest => "DESC",
    }
}

fn rows(
    conn: &Connection,
    sql: &str,
    filter: &Filter,
    own: &[(&str, &dyn rusqlite::ToSql)],
    limit: usize,
) -> Result<Vec<ResultRow>> {
    let (since, until) = start_range(filter);
    let size = filter.size.map(|size| i64::try_from(size).unwrap_or(-1));
    let (kind, server) = (filter.kind.map(Kind::as_str), filter.server.map(ServerKind::as_str));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut params: Vec<(&str, &dyn rusqlite::ToSql)> = vec![
        (":experiment", &filter.experiment),
        (":since", &since),
        (":until", &until),
        (":source", &filter.source),
        (":size", &size),
        (":outcome", &filter.outcome),
        (":tor", &filter.tor),
        (":kind", &kind),
        (":server", &server),
        (":tag", &filter.tag),
        (":limit", &limit),
    ];
    params.extend_from_slice(own);
    conn.prepare_cached(sql)?.query_map(&*params, imported_row)?.collect()
}

/// The lowest or the highest revision of an imported row within the range.
pub(super) fn first_revision(conn: &Connection, (low, high): (i64, i64), order: Order) -> Result<Option<i64>> {
    if low > high {
        return Ok(None);
    }
    let span = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    let found = match order {
        Order::Oldest => {
            let reaching = conn
                .prepare_cached(
                    "SELECT base, rows FROM import WHERE base IS NOT NULL AND base < ?1 ORDER BY base DESC LIMIT 1",
                )?
                .query_row([low], span)
                .optional()?
                .filter(|(base, rows)| base + rows >= low);
            match reaching {
                Some(_) => Some(low),
                None => conn
                    .prepare_cached(
                        "SELECT base, rows FROM import WHERE base IS NOT NULL AND base >= ?1 ORDER BY base LIMIT 1",
                    )?
                    .query_row([low], span)
                    .optional()?
                    .map(|(base, _)| base + 1),
            }
        }
        Order::Newest => conn
            .prepare_cached(
                "SELECT base, rows FROM import WHERE base IS NOT NULL AND base < ?1 ORDER BY base DESC LIMIT 1",
            )?
            .query_row([high], span)
            .optional()?
            .map(|(base, rows)| high.min(base + rows)),
    };
    Ok(found.filter(|revision| (low..=high).contains(revision)))
}

/// The imported run of this name.
pub(super) fn named(conn: &Connection, id: &RunId) -> Result<Option<ResultRow>> {
    static SQL: LazyLock<String> = LazyLock::new(|| {
        format!(
            "SELECT base + n, file, id, {COLUMNS} FROM imported_name CROSS JOIN imported USING (row) \
             CROSS JOIN {VISIBLE} USING (import_id) WHERE head = ?1 AND id = ?2 ORDER BY base LIMIT 1"
        )
    });
    conn.prepare_cached(&SQL)?.query_row(params![head(id), id.as_str()], imported_row).optional()
}

/// The imported runs whose names begin with these digits (of 0 to 9 and a to f); at most `limit`.
pub(super) fn beginning_with(conn: &Connection, prefix: &str, limit: i64) -> Result<Vec<RunId>> {
    let digits = |fill: &str| {
        let digits: String = prefix.chars().chain(fill.repeat(16).chars()).take(16).collect();
        ordered(u64::from_str_radix(&digits, 16).unwrap_or_default())
    };
    conn.prepare_cached(&format!(
        "SELECT id FROM imported_name CROSS JOIN imported USING (row) CROSS JOIN {VISIBLE} USING (import_id) \
         WHERE head BETWEEN ?1 AND ?2 AND id >= ?3 AND id < ?3 || 'g' ORDER BY head LIMIT ?4",
    ))?
    .query_map(params![digits("0"), digits("f"), prefix, limit], |row| Columns::of(row).word(RunId::parse))?
    .collect()
}

/// The first 16 digits of a run's name as `imported_name` has them.
pub(super) fn head(id: &RunId) -> i64 {
    let digits = id.as_str().get(..16).unwrap_or_default();
    ordered(u64::from_str_radix(digits, 16).unwrap_or_default())
}

/// The same order, in SQLite's signed integers.
fn ordered(digits: u64) -> i64 {
    (digits ^ (1 << 63)).cast_signed()
}

/// Reads a row: revision, file, name, and [`COLUMNS`].
fn imported_row(row: &Row<'_>) -> Result<ResultRow> {
    let mut columns = Columns::of(row);
    let revision = columns.next()?;
    let file: String = columns.next()?;
    let id = columns.word(RunId::parse)?;
    let (source, experiment, tor) = (columns.next()?, columns.next()?, columns.next()?);
    let start = UnixMicros(columns.next()?);
    let (ended, size) = (columns.natural()?, columns.natural()?);
    let steps = columns.steps()?;
    let (written, read) = (columns.natural()?, columns.natural()?);
    let _local_port: Option<u16> = columns.next()?;
    let kind = columns.word(Kind::parse)?;
    let server = columns.word(ServerKind::parse)?;
    let outcome = columns.outcome()?;
    let (did_time_out, names_experiment, names_run) = (columns.next()?, columns.next()?, columns.next()?);
    let extra = unjoined(&columns.next::<String>()?).ok_or_else(|| columns.unreadable("a line without ="))?;
    let keys = Keys { start, keys: &extra };
    let remote = keys.endpoint("ENDPOINTREMOTE");
    let measurement = Measurement {
        kind,
        user: None,
        optimistic: keys.value("OPTIMISTIC") == Some("1"),
        curve: Curve::new(),
        server: keys.server_side(),
        id,
        start,
        ended,
        size,
        steps,
        outcome,
        written,
        read,
        local: keys.address("ENDPOINTLOCAL"),
        proxy: keys.address("ENDPOINTPROXY"),
        remote_port: remote.as_ref().map(|end| end.port),
        remote_host: remote.map(|end| end.host),
        isolated: None,
        verified: false,
    };
    Ok(ResultRow {
        revision,
        source,
        experiment,
        tor,
        planned: None,
        configuration: None,
        version: None,
        server,
        place: keys.place().unwrap_or(Place::ALONE),
        measurement,
        circuit: told_by(start, &extra),
        imported: Some(Imported { file: file.into(), did_time_out, names_experiment, names_run, extra }),
    })
}

/// Keys and values as the column `extra` has them.
pub(super) fn joined(keys: &[(String, String)]) -> String {
    let length = keys.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    keys.iter().fold(String::with_capacity(length), |text, (key, value)| {
        let end = if text.is_empty() { "" } else { "\n" };
        text + end + key + "=" + value
    })
}

fn unjoined(text: &str) -> Option<Vec<(String, String)>> {
    let pair = |line: &str| line.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
    if text.is_empty() { Some(Vec::new()) } else { text.split('\n').map(pair).collect() }
}

/// What has no column, and a field all the same.
struct Keys<'a> {
    start: UnixMicros,
    keys: &'a [(String, String)],
}

impl Keys<'_> {
    fn value(&self, name: &str) -> Option<&str> {
        self.keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn endpoint(&self, name: &str) -> Option<Endpoint> {
        Endpoint::parse(self.value(name)?)
    }

    fn address(&self, name: &str) -> Option<SocketAddr> {
        self.endpoint(name)?.address()
    }

    fn place(&self) -> Option<Place> {
        let (index, of) = self.value("PLACE")?.split_once('/')?;
        Some(Place { index: index.parse().ok()?, of: of.parse().ok()? })
    }

    fn server_side(&self) -> Option<ServerSide> {
        let after_start = |name: &str| micros(self.value(name)?)?.checked_sub(self.start.0);
        let decile = |tenth: usize| {
            let name = format!("SERVERPERC{}", tenth * 10);
            if self.value(&name) == Some("0.0") { None } else { after_start(&name) }
        };
        Some(ServerSide { request: after_start("SERVERREQUEST")?, deciles: std::array::from_fn(decile) })
    }
}
