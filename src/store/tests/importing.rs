use proptest::prelude::*;

use super::reading::{filter, insert, lets_through, varied};
use super::*;
use crate::export::torperf::{HEADER, line};
use crate::import::{ImportedRun, torperf};
use crate::measurement::ResultRow;
use crate::test_support::plausible_row;

/// What a file would tell of this result.
pub(super) fn told(new: &NewResult) -> ImportedRun {
    let run = &new.measurement;
    ImportedRun {
        source: new.source.clone(),
        experiment: Some(new.experiment.clone()),
        id: Some(run.id.clone()),
        tor: Some(new.tor.clone()),
        start: run.start,
        ended: run.ended,
        size: run.size,
        steps: run.steps.clone(),
        written: run.written,
        read: run.read,
        local_port: run.local.map(|local| local.port()),
        kind: run.kind,
        server: new.server,
        outcome: run.outcome.clone(),
        did_time_out: run.did_time_out(),
        extra: Vec::new(),
    }
}

/// A run that no other is.
fn run(n: u64) -> ImportedRun {
    let mut run = told(&new_result(n.into()));
    run.start = UnixMicros(1_000_000_000 + n as i64 * 1_000_000);
    run
}

fn import(importer: &mut Importer, runs: impl IntoIterator<Item = ImportedRun>) -> ImportCounts {
    let mut import = importer.begin("a.tpf", "torperf").unwrap();
    runs.into_iter().for_each(|run| import.add(run).unwrap());
    import.finish().unwrap()
}

fn counts(new: u64, known: u64) -> ImportCounts {
    ImportCounts { new, known }
}

async fn all(store: &Store, filter: &Filter) -> Vec<ResultRow> {
    store.reader().results_page(filter, None, Order::Oldest, 20_000).await.unwrap().rows
}

#[tokio::test]
async fn a_file_becomes_visible_at_once_beyond_what_anybody_has_read() {
    let folder = Folder::new();
    let store = folder.open();
    let mut importer = Importer::open(&folder.file()).unwrap();
    assert_eq!(measure(&store, 1, new_result(1)).await, Ok(1));
    let mut staged = importer.begin("a.tpf", "torperf").unwrap();
    (2..=1_000).for_each(|n| staged.add(run(n)).unwrap());
    assert!(count(&folder.other(), "imported") > 0, "it is staged as it comes");
    assert_eq!(all(&store, &Filter::default()).await.len(), 1);
    assert_eq!(store.reader().result(&RunId::from_bits(2)).await, Ok(None));
    assert_eq!(store.reader().runs_named("000000").await.unwrap().len(), 1);
    assert_eq!(measure(&store, 2, new_result(5_000)).await, Ok(2));
    assert_eq!(store.reader().latest_revision().await, Ok(2));

    assert_eq!(staged.finish(), Ok(counts(999, 0)));
    let page = store.reader().results_page(&Filter::default(), Some(2), Order::Oldest, 20_000).await.unwrap();
    let revisions: Vec<i64> = page.rows.iter().map(|row| row.revision).collect();
    assert_eq!((revisions, page.next, page.latest), ((3..=1_001).collect(), None, 1_001));
    assert_eq!(measure(&store, 3, new_result(5_001)).await, Ok(1_002));
    let found = store.reader().result(&RunId::from_bits(2)).await.unwrap().unwrap();
    assert_eq!((found.row.revision, found.configuration, found.row.planned), (3, None, None));
    assert_eq!(found.row.imported.unwrap().file.as_ref(), "a.tpf");
    let named = store.reader().runs_named(&format!("{}a", "0".repeat(31))).await.unwrap();
    assert_eq!(named, [RunId::from_bits(10)]);
    assert_eq!(store.reader().runs_named("000000").await.unwrap().len(), 10);
    let of = |imported| Filter { imported: Some(imported), ..Filter::default() };
    assert_eq!((all(&store, &of(true)).await.len(), all(&store, &of(false)).await.len()), (999, 3));
}

#[tokio::test]
async fn importing_twice_changes_nothing() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 1, new_result(1)).await.unwrap();
    let mut importer = Importer::open(&folder.file()).unwrap();
    let own = told(&new_result(1));
    let runs = || (1..=300).map(run).chain([run(7), own.clone()]);
    assert_eq!(import(&mut importer, runs()), counts(300, 2));
    let before = all(&store, &Filter::default()).await;
    assert_eq!(import(&mut importer, runs()), counts(0, 302));
    assert_eq!(all(&store, &Filter::default()).await, before);
    assert_eq!((count(&folder.other(), "import"), count(&folder.other(), "imported")), (1, 300));
    assert_eq!(import(&mut importer, [run(301), run(1)]), counts(1, 1));
    assert_eq!(store.reader().latest_revision().await, Ok(302));
}

#[tokio::test]
async fn a_run_is_the_same_by_source_time_size_and_port() {
    let folder = Folder::new();
    let mut importer = Importer::open(&folder.file()).unwrap();
    let mut first = run(1);
    first.local_port = Some(40_000);
    assert_eq!(import(&mut importer, [first.clone()]), counts(1, 0));
    type Change = fn(&mut ImportedRun);
    let changes: [(Change, bool); 9] = [
        (|run| run.start.0 += 999, true),
        (|run| run.id = Some(RunId::from_bits(77)), true),
        (|run| run.experiment = None, true),
        (|run| run.local_port = None, true),
        (|run| run.start.0 += 1_000, false),
        (|run| run.start.0 -= 1, false),
        (|run| run.size += 1, false),
        (|run| run.source.push('x'), false),
        (|run| run.local_port = Some(40_001), false),
    ];
    for (number, (change, same)) in changes.into_iter().enumerate() {
        let mut run = first.clone();
        change(&mut run);
        // Both ways of finding it: in the store, and beside it in one batch.
        let mut import = importer.begin("b.tpf", "torperf").unwrap();
        import.add(run.clone()).unwrap();
        import.write_waiting().unwrap();
        assert_eq!(import.counts(), if same { counts(0, 1) } else { counts(1, 0) }, "{number}");
        import.abandon().unwrap();
        let mut beside = [first.clone(), run];
        beside.iter_mut().for_each(|run| run.source.push_str("-elsewhere"));
        let mut import = importer.begin("b.tpf", "torperf").unwrap();
        beside.into_iter().for_each(|run| import.add(run).unwrap());
        import.write_waiting().unwrap();
        assert_eq!(import.counts(), if same { counts(1, 1) } else { counts(2, 0) }, "{number}");
        import.abandon().unwrap();
    }
}

#[tokio::test]
async fn a_run_without_a_name_gets_the_same_one_everywhere() {
    let mut names = Vec::new();
    for experiment in [None, Some("other".to_owned())] {
        let folder = Folder::new();
        let mut importer = Importer::open(&folder.file()).unwrap();
        let nameless = ImportedRun { id: None, tor: None, experiment, ..run(1) };
        assert_eq!(import(&mut importer, [nameless, ImportedRun { id: None, ..run(2) }]), counts(2, 0));
        let rows = all(&folder.open(), &Filter::default()).await;
        names.push(rows.iter().map(|row| row.measurement.id.clone()).collect::<Vec<_>>());
        let [row, _] = &rows[..] else { panic!("{rows:?}") };
        assert_eq!(row.tor, UNNAMED_TOR);
        let names = [UNNAMED_EXPERIMENT, "other"];
        assert!(names.contains(&row.experiment.as_str()), "{row:?}");
    }
    assert!(names[0] == names[1] && names[0][0] != names[0][1], "{names:?}");
    // Kept: names that changed with a version would be other runs.
    assert_eq!(names[0][0].as_str(), "ebb7729cc491c9f7860a13fcaed156df");
}

#[tokio::test]
async fn what_an_import_that_died_left_is_removed_and_stays_invisible() {
    let folder = Folder::new();
    let store = folder.open();
    let mut importer = Importer::open(&folder.file()).unwrap();
    assert_eq!(import(&mut importer, (1..=200).map(run)), counts(200, 0));
    let mut staged = importer.begin("b.tpf", "torperf").unwrap();
    (201..=900).for_each(|n| staged.add(run(n)).unwrap());
    staged.write_names().unwrap();
    drop(staged);
    drop(importer);
    let mut importer = Importer::open(&folder.file()).unwrap();
    assert_eq!(all(&store, &Filter::default()).await.len(), 200);
    let left = importer.remove_unfinished().unwrap();
    assert!(left >= 500, "{left}");
    assert_eq!(importer.remove_unfinished(), Ok(0));
    let tables = ["import", "imported", "imported_name"].map(|table| count(&folder.other(), table));
    assert_eq!(tables, [1, 200, 200]);
    assert_eq!(import(&mut importer, (1..=900).map(run)), counts(700, 200));
    assert_eq!(all(&store, &Filter::default()).await.len(), 900);
    for n in [1, 200, 201, 900] {
        assert!(store.reader().result(&RunId::from_bits(n)).await.unwrap().is_some(), "{n}");
    }
}

#[tokio::test]
async fn an_import_that_another_removed_meanwhile_does_not_say_that_it_succeeded() {
    for (more, late) in [(0, "while it waited"), (300, "while it went on")] {
        let folder = Folder::new();
        let store = folder.open();
        let (mut one, mut other) = (Importer::open(&folder.file()).unwrap(), Importer::open(&folder.file()).unwrap());
        let mut staged = one.begin("a.tpf", "torperf").unwrap();
        (1..=256).for_each(|n| staged.add(run(n)).unwrap());
        assert_eq!(other.remove_unfinished(), Ok(256), "{late}");
        (257..257 + more).for_each(|n| staged.add(run(n)).unwrap());
        assert!(staged.finish().is_err(), "{late}");
        assert_eq!(store.reader().latest_revision().await, Ok(0), "{late}");
        assert_eq!(all(&store, &Filter::default()).await.len(), 0, "{late}");
    }
}

#[tokio::test]
async fn a_line_of_what_was_imported_says_what_came_with_it() {
    let folder = Folder::new();
    let mut importer = Importer::open(&folder.file()).unwrap();
    let lines = [
        "SOURCE=a FILESIZE=51200 START=1.500000 SOCKET=1.500000 CONNECT=1.600000 NEGOTIATE=0.0 REQUEST=0.0 \
         RESPONSE=0.0 DATAREQUEST=0.0 DATARESPONSE=0.0 DATACOMPLETE=0.0 WRITEBYTES=0 READBYTES=0 DIDTIMEOUT=1 \
         DATAPERC10=0.0 DATAPERC95=0.0 PARTIAL77=0.0 ENDPOINTLOCAL=a:192.0.2.1:40000 ENDPOINTREMOTE=b%3Ac:0.0.0.0:80 \
         LAUNCH=0.500000 USED_AT=2.000000 CIRC_ID=7 X=y",
        "SOURCE=a FILESIZE=1 START=2.500000 SOCKET=0.0 CONNECT=0.0 NEGOTIATE=0.0 REQUEST=0.0 RESPONSE=0.0 \
         DATAREQUEST=0.0 DATARESPONSE=0.0 DATACOMPLETE=0.0 WRITEBYTES=0 READBYTES=0 DIDTIMEOUT=0 TOR=b PLACE=1/4 \
         OPTIMISTIC=1 EXPERIMENT=e%20e RUN_ID=0123456789abcdef0123456789abcdef",
    ];
    assert_eq!(import(&mut importer, lines.map(|line| torperf::run(line).unwrap())), counts(2, 0));
    let rows = all(&folder.open(), &Filter::default()).await;
    for (n, (row, expected)) in rows.iter().zip(lines).enumerate() {
        assert_eq!(line(row), format!("{expected} REVISION={}\n", n + 1));
    }
    let [first, second] = &rows[..] else { panic!("{rows:?}") };
    let run = &first.measurement;
    assert_eq!((run.local, run.proxy), (Some("192.0.2.1:40000".parse().unwrap()), None));
    assert_eq!((run.remote_host.as_deref(), run.remote_port), (Some("b:c"), Some(80)));
    let circuit = first.circuit.as_ref().unwrap();
    assert_eq!((circuit.circuit.as_ref().unwrap().id, circuit.used_at_us()), (7, Some(500_000)));
    assert_eq!((second.tor.as_str(), second.place), ("b", Place { index: 1, of: 4 }));
    assert_eq!((second.experiment.as_str(), second.measurement.optimistic, &second.circuit), ("e e", true, &None));
}

/// What happens to a store.
#[derive(Clone, Debug)]
enum Step {
    Measure(u8),
    Import(Vec<u8>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => any::<u8>().prop_map(Step::Measure),
        1 => prop::collection::vec(any::<u8>(), 1..9).prop_map(Step::Import),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn pages_skip_and_repeat_nothing_while_rows_are_measured_and_imported(
        steps in prop::collection::vec(step(), 1..25), pauses in prop::collection::vec(0usize..4, 1..20),
        filter in filter(), newest in any::<bool>(), max_rows in 1usize..6, window in 1i64..12,
    ) {
        let folder = Folder::new();
        let mut importer = Importer::open(&folder.file()).unwrap();
        let conn = folder.other();
        conn.pragma_update(None, "synchronous", "OFF").unwrap();
        let order = if newest { Order::Newest } else { Order::Oldest };
        // Each row: its revision, what it is, and whether it was imported.
        let (mut stored, mut id): (Vec<(i64, NewResult, bool)>, i64) = (Vec::new(), 0);
        let mut next = |kind| {
            id += 1;
            let mut new = varied(id, kind);
            // Starts beside each other, and no two the same.
            new.measurement.start.0 = new.measurement.start.0 * 1_000_000_000 + id * 1_000;
            (id, new)
        };
        let (mut steps, mut pauses) = (steps.into_iter(), pauses.into_iter().chain(std::iter::repeat(usize::MAX)));
        let mut go_on = |stored: &mut Vec<(i64, NewResult, bool)>| {
            for step in steps.by_ref().take(pauses.next().unwrap()) {
                match step {
                    Step::Measure(kind) => {
                        let (id, new) = next(kind);
                        stored.push((insert(&conn, id, new.clone()), new, false));
                    }
                    Step::Import(kinds) => {
                        let latest = query::latest_revision(&conn).unwrap();
                        let rows: Vec<NewResult> = kinds.into_iter().map(|kind| next(kind).1).collect();
                        import(&mut importer, rows.iter().map(told));
                        stored.extend(rows.into_iter().zip(latest + 1..).map(|(new, revision)| (revision, new, true)));
                    }
                }
            }
        };
        let scaled = |at: Option<UnixMicros>| at.map(|at| UnixMicros(at.0 * 1_000_000_000));
        let filter = Filter { since: scaled(filter.since), until: scaled(filter.until), ..filter };
        go_on(&mut stored);
        let begun_with = stored.last().map_or(0, |(revision, ..)| *revision);
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = query::results_page(&conn_of(&folder), &filter, after, order, max_rows, window).unwrap();
            prop_assert!(page.rows.len() <= max_rows);
            seen.extend(page.rows.iter().map(|row| (row.revision, row.measurement.id.clone(), row.imported.is_some())));
            let Some(next) = page.next else { break };
            let onwards = after.is_none_or(|after| (next < after) == newest && next != after);
            prop_assert!(onwards);
            after = Some(next);
            go_on(&mut stored);
        }
        let wanted = |(_, new, imported): &&(i64, NewResult, bool)| {
            lets_through(&filter, new) && filter.imported.is_none_or(|wanted| wanted == *imported)
        };
        let rows = stored.iter().filter(wanted);
        let mut expected: Vec<_> =
            rows.map(|(revision, new, imported)| (*revision, new.measurement.id.clone(), *imported)).collect();
        if newest {
            expected.retain(|(revision, ..)| *revision <= begun_with);
            expected.reverse();
        }
        prop_assert_eq!(seen, expected);
    }

    #[test]
    fn what_perfd_wrote_is_written_again_byte_for_byte(rows in prop::collection::vec(plausible_row(), 1..6)) {
        let folder = Folder::new();
        let mut importer = Importer::open(&folder.file()).unwrap();
        let file = rows.iter().fold(HEADER.to_owned(), |file, row| file + &line(row));
        let runs: Result<Vec<_>, _> = torperf::Reader::new(file.as_bytes()).collect();
        let runs = runs.map_err(|violation| TestCaseError::fail(format!("{violation:?}")))?;
        let counts = import(&mut importer, runs.clone());
        prop_assert_eq!(counts.new + counts.known, rows.len() as u64);
        let stored = query::results_page(&conn_of(&folder), &Filter::default(), None, Order::Oldest, 10, WINDOW).unwrap();
        let without_revision = |line: &str| line.rsplit_once(" REVISION=").unwrap().0.to_owned();
        let again: Vec<_> = stored.rows.iter().map(|row| without_revision(&line(row))).collect();
        if counts.known == 0 {
            prop_assert_eq!(again, rows.iter().map(|row| without_revision(&line(row))).collect::<Vec<_>>());
        }
    }
}

fn conn_of(folder: &Folder) -> Connection {
    folder.other()
}
