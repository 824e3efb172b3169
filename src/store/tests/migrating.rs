//! A file that the first perfd wrote.

use super::*;
use crate::measurement::{Cause, Failure, Kind, Outcome, Phase, ResultRow};

const FIRST_ROWS: &str = "
INSERT INTO configuration (id, body) VALUES (1, 'the configuration');
INSERT INTO slot VALUES ('small', 10, 10, 1, 'done', NULL, 11, 12), ('small', 20, 40, 3, 'missed', NULL, NULL, NULL),
    ('small', 50, 50, 1, 'running', NULL, 51, NULL);
UPDATE counter SET value = 9 WHERE name = 'revision';
INSERT INTO result (revision, id, source, experiment, tor, planned_us, configuration_id, version, start_us, ended_us,
    size, socket_us, written, read, proxy_ip, proxy_port, remote_host, remote_port, verified, outcome, phase, cause,
    socks_code, detail)
VALUES
    (4, '0000000000000000000000000000000a', 'op', 'small', 'main', 10, 1, '0.1.0', 11, 7, 51200, 3, 84, 0,
     '127.0.0.1', 9050, 'example.org', 80, 0, 'failed', 'response', 'socks_reply', 242, 'no'),
    (9, '0000000000000000000000000000000b', 'op', 'small', 'main', 10, 1, '0.1.0', 12, 7, 51200, 3, 84, 51466,
     '127.0.0.1', 9050, 'example.org', 80, 1, 'complete', NULL, NULL, NULL, NULL);
";

fn first_file(folder: &Folder) {
    let mut conn = folder.other();
    conn.pragma_update(None, "journal_mode", "WAL").unwrap();
    schema::first_migration().to_latest(&mut conn).unwrap();
    conn.execute_batch(FIRST_ROWS).unwrap();
    let version: i64 = conn.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!(version, 1);
}

#[tokio::test]
async fn a_file_of_the_first_version_keeps_every_row() {
    let folder = Folder::new();
    first_file(&folder);
    let store = folder.open();
    let page = store.reader().results_page(&Filter::default(), None, Order::Oldest, 10).await.unwrap();
    let brief = |row: &ResultRow| (row.revision, row.measurement.id.to_string(), row.measurement.steps.socket);
    let (first, second) = (RunId::from_bits(10), RunId::from_bits(11));
    let expected = [(4, first.to_string(), Some(3)), (9, second.to_string(), Some(3))];
    assert_eq!(page.rows.iter().map(brief).collect::<Vec<_>>(), expected);
    let failure = Failure {
        phase: Phase::Response,
        cause: Cause::SocksReply,
        socks_code: Some(242),
        http_status: None,
        detail: "no".to_owned(),
    };
    assert_eq!(page.rows[0].measurement.outcome, Outcome::Failed(failure));
    for row in &page.rows {
        let run = &row.measurement;
        assert_eq!(
            (run.kind, run.user.clone(), run.optimistic),
            (Kind::Download, Some(format!("perfd-{}", run.id)), false)
        );
        assert_eq!((row.server, row.place, &row.circuit), (ServerKind::Exit, Place::ALONE, &None));
        assert_eq!((&run.server, run.curve.len()), (&None, 0));
    }
    let whole = store.reader().result(&first).await.unwrap().unwrap();
    assert_eq!((whole.configuration.as_deref(), whole.evidence), (Some("the configuration"), None));
    assert_eq!(whole.slot_mates.iter().map(|mate| mate.id.clone()).collect::<Vec<_>>(), [second]);
    let counts = store.reader().slot_counts("small").await.unwrap();
    assert_eq!(counts, SlotCounts { running: 1, done: 1, missed: 3, ..SlotCounts::default() });
}

#[tokio::test]
async fn a_file_of_the_first_version_is_written_on() {
    let folder = Folder::new();
    first_file(&folder);
    let store = folder.open();
    assert_eq!(store.abort_unfinished(UnixMicros(60)).await, Ok(1));
    assert_eq!(measure(&store, 100, new_result(12)).await, Ok(10));
    let data = crate::test_support::circuit::example_circuit();
    let completed = store.complete_run(&RunId::from_bits(10), data.clone(), Evidence("x\n".to_owned())).await;
    assert_eq!(completed, Ok(Some(11)));
    let whole = store.reader().result(&RunId::from_bits(10)).await.unwrap().unwrap();
    assert_eq!((whole.row.revision, whole.row.circuit, whole.evidence), (11, Some(data), Some("x\n".to_owned())));
    let conn = folder.other();
    let check: String = conn.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    let broken: i64 = conn.query_row("SELECT count(*) FROM pragma_foreign_key_check", [], |row| row.get(0)).unwrap();
    assert_eq!((check.as_str(), broken), ("ok", 0));
}
