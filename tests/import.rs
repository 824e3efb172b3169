//! `perfd import`: files of others into a store, by the real perfd.

#[path = "common/web.rs"]
mod web;

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perfd::store::{Filter, Order, Store};
use rusqlite::Connection;
use tempfile::TempDir;
use web::{add, new_result, perfd, within};

const HEADER: &str = "@type torperf 1.1\n";

struct Setup(TempDir);

impl Setup {
    fn new() -> Self {
        Setup(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> PathBuf {
        self.0.path().join("perfd.sqlite")
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn import(&self, files: &[&Path]) -> Output {
        perfd().args(["import", "--store"]).arg(self.store()).args(files).output().unwrap()
    }

    /// An import that reads what it is sent.
    fn waiting(&self) -> Child {
        let mut command = perfd();
        command.args(["import", "-", "--store"]).arg(self.store());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn database(&self) -> Connection {
        let database = Connection::open(self.store()).unwrap();
        database.busy_timeout(Duration::from_secs(5)).unwrap();
        database
    }

    fn count(&self, sql: &str) -> i64 {
        self.database().query_row(sql, [], |row| row.get(0)).unwrap()
    }

    async fn visible(&self) -> Vec<i64> {
        let store = Store::open(&self.store()).unwrap();
        let page = store.reader().results_page(&Filter::default(), None, Order::Oldest, 20_000).await.unwrap();
        within("close", store.close(Duration::from_secs(5))).await.unwrap();
        page.rows.iter().map(|row| row.revision).collect()
    }
}

/// A line of the `n`th second.
fn line(n: u32) -> String {
    format!(
        "SOURCE=op-nl FILESIZE=51200 START={0}.100000 SOCKET={0}.100000 CONNECT={0}.200000 NEGOTIATE={0}.300000 \
         REQUEST={0}.300000 RESPONSE={0}.400000 DATAREQUEST={0}.400000 DATARESPONSE={0}.500000 \
         DATACOMPLETE={0}.900000 WRITEBYTES=84 READBYTES=51466 DIDTIMEOUT=0 DATAPERC50={0}.700000 \
         ENDPOINTLOCAL=localhost:127.0.0.1:{1}\n",
        1_600_000_000 + n,
        20_000 + n % 20_000,
    )
}

fn lines(numbers: std::ops::Range<u32>) -> String {
    numbers.fold(HEADER.to_owned(), |text, n| text + &line(n))
}

fn assert_says(output: &Output, code: i32, out: &str, err: &str) {
    let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*said.0, &*said.1), (Some(code), out, err));
}

/// Asks until it holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_file_is_imported_once() {
    let setup = Setup::new();
    let file = setup.file("op-nl-51200-2020-09-13.tpf", &lines(0..500));
    let shown = file.display().to_string();
    assert_says(&setup.import(&[&file]), 0, &format!("{shown}: 500 new, 0 known already\n"), "");
    assert_eq!(setup.visible().await, (1..=500).collect::<Vec<_>>());
    assert_says(&setup.import(&[&file]), 0, &format!("{shown}: 0 new, 500 known already\n"), "");
    assert_eq!(setup.visible().await.len(), 500);
    assert_eq!(setup.count("SELECT count(*) FROM import"), 1);
    assert_eq!(setup.count("SELECT sum(runs) FROM daily WHERE import_id <> 0"), 500);
    let more = setup.file("more.tpf", &lines(499..501));
    assert_says(&setup.import(&[&more]), 0, &format!("{}: 1 new, 1 known already\n", more.display()), "");
}

#[tokio::test]
async fn one_bad_line_at_the_end_keeps_a_whole_file_out_and_no_other() {
    let setup = Setup::new();
    let bad = setup.file("bad.tpf", &(lines(0..5_000) + &line(5_000).replace("DIDTIMEOUT=0", "DIDTIMEOUT=2")));
    let good = setup.file("good.tpf", &lines(10_000..10_010));
    let missing = setup.0.path().join("missing.tpf");
    let output = setup.import(&[&bad, &good]);
    let (bad_shown, good_shown) = (bad.display(), good.display());
    let err = String::from_utf8_lossy(&output.stderr);
    let mut told = err.lines();
    assert!(told.next().unwrap().starts_with(&format!("perfd: {bad_shown}:5002: ")), "{err}");
    assert_eq!(told.next(), Some(&*format!("perfd: {bad_shown}: not imported, for 1 departure from its format")));
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!((output.status.code(), &*out), (Some(65), &*format!("{good_shown}: 10 new, 0 known already\n")));
    assert_eq!(setup.visible().await.len(), 10);
    let tables =
        ["import", "imported", "imported_name"].map(|table| setup.count(&format!("SELECT count(*) FROM {table}")));
    assert_eq!(tables, [1, 10, 10]);
    assert_eq!(setup.count("SELECT sum(runs) FROM daily"), 10);
    let output = setup.import(&[&missing, &good]);
    assert_eq!(output.status.code(), Some(66));
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{good_shown}: 0 new, 10 known already\n"));
}

#[tokio::test]
async fn an_import_that_is_killed_leaves_nothing_that_is_seen() {
    let setup = Setup::new();
    let mut child = setup.waiting();
    child.stdin.as_mut().unwrap().write_all(lines(0..3_000).as_bytes()).unwrap();
    let staged = || {
        setup.store().exists()
            && setup
                .database()
                .query_row("SELECT count(*) FROM imported", [], |row| row.get::<_, i64>(0))
                .is_ok_and(|rows| rows > 1_000)
    };
    until("rows are staged", staged).await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(setup.visible().await, [0; 0]);
    let file = setup.file("a.tpf", &lines(0..3_000));
    let said = format!("{}: 3000 new, 0 known already\n", file.display());
    assert_says(&setup.import(&[&file]), 0, &said, "");
    assert_eq!(setup.visible().await, (1..=3_000).collect::<Vec<_>>());
    assert_eq!(setup.count("SELECT count(*) FROM imported"), 3_000);
    assert_eq!(setup.count("SELECT sum(runs) FROM daily"), 3_000);
}

#[tokio::test]
async fn a_signal_ends_it_though_its_input_stands_still_and_only_one_imports_at_a_time() {
    let setup = Setup::new();
    let mut child = setup.waiting();
    child.stdin.as_mut().unwrap().write_all(lines(0..1_000).as_bytes()).unwrap();
    let begun = || {
        setup.store().exists()
            && setup
                .database()
                .query_row("SELECT count(*) FROM import", [], |row| row.get::<_, i64>(0))
                .is_ok_and(|rows| rows > 0)
    };
    until("it has begun", begun).await;
    let file = setup.file("a.tpf", &lines(0..10));
    let refused = setup.import(&[&file]);
    assert_eq!(refused.status.code(), Some(74));
    let err = String::from_utf8_lossy(&refused.stderr);
    assert!(err.contains("another import works on this store"), "{err}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    let input = child.stdin.take();
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let output = within("end", ended).await.unwrap();
    drop(input);
    let told = "perfd: told to end; nothing of the file at hand is visible, and the next import removes what it left\n";
    assert_says(&output, 130, "", told);
    assert_eq!(setup.visible().await, [0; 0]);
    assert_says(&setup.import(&[&file]), 0, &format!("{}: 10 new, 0 known already\n", file.display()), "");
}

#[tokio::test]
async fn data_and_extradata_go_together() {
    let setup = Setup::new();
    let (mut data, path) = (String::new(), format!("${},${}", "A".repeat(40), "B".repeat(40)));
    for n in 0..3 {
        let at = 1_300_000_000 + n * 300;
        let steps: Vec<String> = (0..9).map(|step| format!("{} {}", at + step, 1_000)).collect();
        writeln!(data, "{} 84 51466 0", steps.join(" ")).unwrap();
    }
    let extra =
        format!("CIRC_ID=7 LAUNCH=1299999990.5 PATH={path} BUILDTIMES=0.1,0.2 USED_AT=1300000008.002 USED_BY=9\n");
    let data = setup.file("50kb-siv.data", &data);
    let extra = setup.file("50kb-siv.extradata", &extra);
    let said = format!("{}: 3 new, 0 known already\n", data.display());
    assert_says(&setup.import(&[&extra, &data]), 0, &said, "");
    let store = Store::open(&setup.store()).unwrap();
    let page = store.reader().results_page(&Filter::default(), None, Order::Oldest, 9).await.unwrap();
    let first = &page.rows[0];
    assert_eq!((first.source.as_str(), first.measurement.size), ("siv", 51_200));
    let circuit = first.circuit.as_ref().and_then(|data| data.circuit.as_ref()).unwrap();
    assert_eq!((circuit.id, circuit.path_text()), (7, Some(path)));
    assert_eq!(page.rows[1].circuit, None);
}

#[tokio::test]
async fn a_follower_gets_everything_once_while_files_are_imported_and_runs_are_measured() {
    const MEASURED: u32 = 60;
    let setup = Setup::new();
    let store = Store::open(&setup.store()).unwrap();
    let files: Vec<PathBuf> =
        (0..4).map(|n| setup.file(&format!("{n}.tpf"), &lines(n * 2_000..(n + 1) * 2_000))).collect();
    let mut command = perfd();
    command.args(["import", "--store"]).arg(setup.store()).args(&files);
    let mut importing = command.stdout(Stdio::null()).spawn().unwrap();
    let writer = store.clone();
    let measuring = tokio::spawn(async move {
        for n in 1..=MEASURED {
            add(&writer, vec![new_result(n.into(), n.into())]).await;
        }
    });
    let (mut seen, mut after) = (Vec::new(), None);
    let begun = Instant::now();
    while seen.len() < 8_000 + MEASURED as usize {
        let page = store.reader().results_page(&Filter::default(), after, Order::Oldest, 500).await.unwrap();
        seen.extend(page.rows.iter().map(|row| row.revision));
        after = Some(page.next.unwrap_or(page.latest));
        assert!(begun.elapsed() < Duration::from_secs(60), "{} came", seen.len());
    }
    measuring.await.unwrap();
    let ended = tokio::task::spawn_blocking(move || importing.wait().unwrap());
    assert!(within("end", ended).await.unwrap().success());
    assert_eq!(seen, (1..=8_000 + i64::from(MEASURED)).collect::<Vec<_>>());
}

#[test]
fn what_was_imported_does_not_choose_where_its_export_is_written() {
    let setup = Setup::new();
    let outside = setup.0.path().join("outside");
    let sources = ["../../etc-of-nobody", "..", &outside.display().to_string()];
    let named = |(n, source): (usize, &&str)| line(n as u32).replace("SOURCE=op-nl", &format!("SOURCE={source}"));
    let text = sources.iter().enumerate().map(named).fold(HEADER.to_owned(), |text, line| text + &line);
    assert_eq!(setup.import(&[&setup.file("a.tpf", &text)]).status.code(), Some(0));
    let out = setup.0.path().join("deep").join("out");
    let mut command = perfd();
    command.args(["export", "--format", "onionperf", "--store"]).arg(setup.store()).arg("--out").arg(&out);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let names = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    let escaped = outside.display().to_string().replace('/', "%2F").replace('.', "%2E").replace('_', "%5F");
    let mut wanted = vec!["%2E%2E".to_owned(), "%2E%2E%2F%2E%2E%2Fetc-of-nobody".to_owned(), escaped];
    wanted.sort();
    assert_eq!(names(&out), wanted);
    assert_eq!(names(&setup.0.path().join("deep")), ["out"]);
    assert!(!outside.exists());
    for folder in wanted {
        assert_eq!(names(&out.join(folder)), ["2020-09-13.onionperf.analysis.json.xz"]);
    }
}
