//! Stores that earlier perfds wrote, opened by this one: nothing is lost, and nothing is changed twice.
//!
//! `recorded/store-v1.sqlite` and `store-v2.sqlite` were written by perfds of those days on a private Tor network: runs
//! that were complete, failed and cut off, slots that were done, skipped, aborted and missed; the second one has
//! circuits, evidence and curves, of downloads, uploads, an onion service and slots of several runs. It was cut to a few
//! results of each sort.

#[path = "common/web.rs"]
mod web;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use perfd::measurement::RunId;
use perfd::store::{Filter, Order, Store};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value as Json;
use web::{Service, add, new_result};

/// Each table's columns, and its rows in the order of their text.
type Dump = BTreeMap<String, (Vec<String>, Vec<Vec<Value>>)>;

/// A copy of the store of this version in a folder of its own.
fn copied(version: i64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/recorded/store-v{version}.sqlite"));
    let path = folder.path().join("perfd.sqlite");
    std::fs::copy(recorded, &path).unwrap();
    (folder, path)
}

fn open(path: &Path) -> Connection {
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap()
}

fn number(conn: &Connection, sql: &str) -> i64 {
    conn.query_row(sql, [], |row| row.get(0)).unwrap()
}

/// All rows of these columns, or of every table with all of its columns.
fn dump(conn: &Connection, like: Option<&Dump>) -> Dump {
    let names = |sql: &str| -> Vec<String> {
        let mut statement = conn.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let tables = match like {
        Some(like) => like.keys().cloned().collect(),
        None => names("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"),
    };
    let table = |table: String| {
        let columns = match like {
            Some(like) => like[&table].0.clone(),
            None => names(&format!("SELECT name FROM pragma_table_info('{table}')")),
        };
        let mut statement = conn.prepare(&format!("SELECT {} FROM {table}", columns.join(", "))).unwrap();
        let read = |row: &rusqlite::Row<'_>| (0..columns.len()).map(|column| row.get(column)).collect();
        let mut rows: Vec<Vec<Value>> = statement.query_map([], read).unwrap().collect::<Result<_, _>>().unwrap();
        rows.sort_by_cached_key(|row| format!("{row:?}"));
        (table, (columns, rows))
    };
    tables.into_iter().map(table).collect()
}

/// The values of one column, as text.
fn column(dump: &Dump, table: &str, name: &str) -> Vec<String> {
    let (columns, rows) = &dump[table];
    let at = columns.iter().position(|column| column == name).unwrap();
    let text = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        other => format!("{other:?}"),
    };
    rows.iter().map(|row| text(&row[at])).collect()
}

fn sorts(dump: &Dump, table: &str, name: &str) -> BTreeSet<String> {
    column(dump, table, name).into_iter().collect()
}

fn words<const N: usize>(words: [&str; N]) -> BTreeSet<String> {
    words.map(str::to_owned).into()
}

#[test]
fn the_recorded_stores_have_something_of_everything() {
    for (version, states) in [(1, words(["done", "missed"])), (2, words(["aborted", "done", "missed", "skipped"]))] {
        let (_folder, path) = copied(version);
        let conn = open(&path);
        assert_eq!(number(&conn, "PRAGMA user_version"), version);
        let before = dump(&conn, None);
        assert_eq!(sorts(&before, "result", "outcome"), words(["complete", "failed", "timeout"]), "{version}");
        assert_eq!(sorts(&before, "slot", "state"), states);
        if version == 2 {
            assert_eq!(sorts(&before, "result", "kind"), words(["download", "upload"]));
            assert_eq!(sorts(&before, "result", "server"), words(["exit", "onion"]));
            for table in ["circuit_data", "evidence", "curve", "circuit", "tor_event"] {
                assert!(!before[table].1.is_empty(), "{table}");
            }
        }
    }
}

#[tokio::test]
async fn every_row_of_an_earlier_store_is_still_there() {
    for version in [1, 2] {
        let (_folder, path) = copied(version);
        let before = dump(&open(&path), None);
        let store = Store::open(&path).unwrap();
        store.close(web::DEADLINE).await.unwrap();
        drop(store);
        let conn = open(&path);
        let after = dump(&conn, Some(&before));
        for (table, rows) in &before {
            assert_eq!(&after[table], rows, "table {table} of version {version}");
        }
        let now = number(&conn, "PRAGMA user_version");
        assert!(now > 2, "{now}");
        let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!((check.as_str(), number(&conn, "SELECT count(*) FROM pragma_foreign_key_check")), ("ok", 0));
        drop(conn);

        // Opened once more, it stays as it is, to the byte.
        let bytes = std::fs::read(&path).unwrap();
        let store = Store::open(&path).unwrap();
        store.close(web::DEADLINE).await.unwrap();
        drop(store);
        assert!(std::fs::read(&path).unwrap() == bytes, "version {version} was changed by opening it again");
    }
}

#[tokio::test]
async fn what_was_kept_of_each_run_is_read_by_todays_perfd() {
    for version in [1, 2] {
        let (_folder, path) = copied(version);
        let before = dump(&open(&path), None);
        let store = Store::open(&path).unwrap();
        let reader = store.reader();
        let page = reader.results_page(&Filter::default(), None, Order::Oldest, 1000).await.unwrap();
        let seen: Vec<String> = page.rows.iter().map(|row| row.measurement.id.to_string()).collect();
        assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), sorts(&before, "result", "id"));
        let latest = &before["counter"].1[0][1];
        assert_eq!(&Value::Integer(page.latest), latest);
        let has = |table: &str, run: &str| {
            before.contains_key(table) && column(&before, table, "run_id").contains(&run.to_owned())
        };
        for run in &seen {
            let whole = reader.result(&RunId::parse(run).unwrap()).await.unwrap().unwrap();
            let configuration = whole.configuration.unwrap();
            assert!(column(&before, "configuration", "body").contains(&configuration), "{run}");
            assert!(serde_json::from_str::<Json>(&configuration).is_ok());
            assert_eq!(whole.row.circuit.is_some(), has("circuit_data", run), "{run}");
            assert_eq!(whole.evidence.is_some(), has("evidence", run), "{run}");
            assert_eq!(!whole.row.measurement.curve.is_empty(), has("curve", run), "{run}");
            assert_eq!(whole.annotations, []);
            if let Some(data) = whole.row.circuit {
                let at = column(&before, "circuit_data", "run_id").iter().position(|id| id == run).unwrap();
                let body: Json = serde_json::from_str(&column(&before, "circuit_data", "body")[at]).unwrap();
                let now = serde_json::to_value(&data).unwrap();
                // Whatever stood there stands there still; what came since is beside it.
                for (name, value) in body.as_object().unwrap() {
                    assert_eq!(&now[name], value, "{name} of {run}");
                }
            }
            if let Some(evidence) = whole.evidence {
                let at = column(&before, "evidence", "run_id").iter().position(|id| id == run).unwrap();
                let length = format!("Integer({})", evidence.len());
                assert_eq!(column(&before, "evidence", "length")[at], length);
                assert!(evidence.starts_with("perfd evidence 1\n"));
            }
        }
        store.close(web::DEADLINE).await.unwrap();
    }
}

#[tokio::test]
async fn an_earlier_store_is_written_on_and_served() {
    for version in [1, 2] {
        let (folder, path) = copied(version);
        let before = dump(&open(&path), None);
        let rows = before["result"].1.len();
        let store = Store::open(&path).unwrap();
        let latest = store.reader().latest_revision().await.unwrap();
        assert_eq!(add(&store, vec![new_result(7, 7)]).await, [latest + 1]);
        store.close(web::DEADLINE).await.unwrap();
        drop(store);
        let service = Service::start(folder.path(), "");
        for (ending, beside) in [("ndjson", 0), ("tpf", 1), ("csv", 1)] {
            let mut client = web::Client::connect(service.address).await;
            client.send(format!("GET /results.{ending} HTTP/1.1\r\nHost: test\r\n\r\n")).await;
            let reply = client.reply().await;
            assert_eq!((reply.status, reply.text().lines().count()), (200, rows + 1 + beside), "{ending} of {version}");
        }
    }
}
