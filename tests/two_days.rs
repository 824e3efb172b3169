//! A run on a private Tor network that spans midnight: its process's clock is shifted, and no row is rewritten. Both
//! days are published, and what is exported reads back.

#[path = "common/mod.rs"]
mod common;
#[path = "common/service.rs"]
mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use liblzma::read::XzDecoder;
use perfd::clock::UnixMicros;
use perfd::export::collector::{date, day_of, onionperf_name, start_of};
use perfd::import::torperf;
use perfd::testnet::{self, Options};
use serde_json::Value;
use service::{PATIENCE, Setup, Times, get};

const MINUTE: Duration = Duration::from_secs(60);
const DAY: u64 = 86_400;

/// So long before midnight the first perfd is started.
const BEFORE: u64 = 14;

#[test]
fn a_run_over_midnight_is_published_and_reads_back() {
    let Some(tor_dir) = common::tor_dir() else { return };
    let Some(library) = faketime() else { return };
    let folder = tempfile::tempdir().unwrap();
    // The user nobody, who perfd becomes, has to find the network's cookie.
    fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let owner = Some(std::process::id());
    let options = Options { dir: folder.path().join("net"), tor_dir: Some(tor_dir), deadline: 2 * MINUTE, owner };
    let net = runtime.block_on(testnet::up(options, |_| {})).unwrap();
    for above in net.cookie.ancestors().take_while(|above| above.starts_with(&net.dir)) {
        fs::set_permissions(above, PermissionsExt::from_mode(0o755)).unwrap();
    }

    let times = |every, timeout| Times { every, offset: "0 s", timeout };
    let mut setup = Setup::new()
        .controlled_tor("testnet", net.socks, net.control)
        .experiment("50kib", "testnet", "50 KiB", times("2 s", "1900 ms"))
        .experiment("100kib", "testnet", "100 KiB", times("4 s", "1900 ms"))
        .experiment_of("series", &["testnet"], "1 KiB", times("5 s", "1900 ms"), "requests = 2")
        .experiment_of("secret", &["testnet"], "50 KiB", times("5 s", "1900 ms"), "publish = false");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let shift = DAY - now % DAY - BEFORE;
    let midnight = now - now % DAY + DAY;
    let days = [midnight - DAY, midnight].map(|second| day_of(UnixMicros(second as i64 * 1_000_000)));

    // A slot each two seconds: some before midnight, some after it.
    let mut perfd = setup.start_measuring_by(|setup| shifted(setup, &library, shift));
    perfd.wait_for_lines(14, r#"experiment="50kib" outcome="complete""#);
    perfd.end_well_within(PATIENCE);

    // The same perfd, when both days are over.
    let mut perfd = setup.start_measuring_by(|setup| shifted(setup, &library, shift + DAY + 600));
    perfd.wait_for_lines(2, "a finished day is published");
    let port = perfd.port();
    let listing = get(port, "/collector/").unwrap().text();
    let published: BTreeMap<String, Vec<u8>> = names(&listing)
        .into_iter()
        .map(|name| (name.clone(), get(port, &format!("/collector/{name}")).unwrap().body))
        .collect();
    let mut expected = BTreeSet::new();
    for day in days {
        expected.insert(onionperf_name(day));
        expected.extend([51_200, 102_400].map(|size| format!("test-{size}-{}.tpf", date(day))));
    }
    assert_eq!(published.keys().cloned().collect::<BTreeSet<_>>(), expected);
    for day in days {
        let downloads: usize = [51_200, 102_400]
            .map(|size| check_torperf(&published[&format!("test-{size}-{}.tpf", date(day))], size, day))
            .iter()
            .sum();
        assert!(downloads >= 3, "{downloads} on {}", date(day));
        assert_eq!(check_onionperf(&published[&onionperf_name(day)]), downloads);
    }

    // Beside the running service, and once more when it has ended.
    let config = setup.folder().join("config.toml");
    let export = |format: &str, to: &str| {
        let out = setup.folder().join(to);
        perfd_does(&[
            Path::new("export"),
            "--config".as_ref(),
            &config,
            "--format".as_ref(),
            format.as_ref(),
            "--out".as_ref(),
            &out,
        ]);
        files(&out)
    };
    for to in ["beside", "after"] {
        let mut exported = export("collector", to);
        let index = String::from_utf8(exported.remove("index.xml").unwrap()).unwrap();
        assert_eq!(index.matches("<file ").count(), published.len());
        assert!(exported.remove("index.html").is_some());
        assert_eq!(exported, published);
        if to == "beside" {
            perfd.end_well_within(PATIENCE);
        }
    }
    runtime.block_on(testnet::down(&net.dir)).unwrap();

    let everything = export("tpf", "tpf").remove("results.tpf").unwrap();
    let lines = torperf::Reader::new(&everything[..]).collect::<Result<Vec<_>, _>>().unwrap();
    let on = |day: i64| lines.iter().filter(|line| day_of(line.start) == day).count();
    assert!(on(days[0]) >= 3 && on(days[1]) >= 3, "the clock went over midnight");
    // The same again from a store that knows nothing else, in whatever form it got it.
    let fresh = setup.folder().join("fresh.sqlite");
    let file = setup.folder().join("tpf/results.tpf");
    perfd_does(&["import".as_ref(), "--store".as_ref(), &fresh, &file]);
    let out = setup.folder().join("again");
    perfd_does(&[
        "export".as_ref(),
        "--store".as_ref(),
        &fresh,
        "--format".as_ref(),
        "tpf".as_ref(),
        "--out".as_ref(),
        &out,
    ]);
    let again = files(&out).remove("results.tpf").unwrap();
    assert!(again == everything, "{}", String::from_utf8_lossy(&again));

    let analyses = export("onionperf", "onionperf");
    let downloads: usize = analyses.values().map(|analysis| check_onionperf(analysis)).sum();
    assert_eq!(downloads, lines.len());
}

/// `perfd run` with a clock that is so many seconds ahead.
fn shifted(setup: &Setup, library: &Path, seconds: u64) -> Command {
    let mut command = setup.command();
    command
        .env("LD_PRELOAD", library)
        .env("FAKETIME", format!("+{seconds}s"))
        // Steps are measured, and pauses made, by the monotonic clock.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1")
        .env("FAKETIME_DONT_RESET", "1");
    command
}

/// The library that shifts a process's clock, from `PERFD_FAKETIME_DIR` or where scripts/get-package puts it. `None`,
/// after a line that says so, where there is none; a panic if `PERFD_REQUIRE_TOOLS=1`.
fn faketime() -> Option<PathBuf> {
    let fetched = || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/libfaketime");
    let folder = std::env::var_os("PERFD_FAKETIME_DIR").map_or_else(fetched, PathBuf::from);
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if entry.file_name() == "libfaketimeMT.so.1" {
                return Some(path);
            }
        }
    }
    let left_out = "left out: no libfaketime (run scripts/get-package libfaketime)";
    assert!(std::env::var("PERFD_REQUIRE_TOOLS").as_deref() != Ok("1"), "{left_out}");
    let _ = writeln!(std::io::stderr(), "{left_out}");
    None
}

/// What is linked, one a line as CollecTor takes it, but for the index.
fn names(listing: &str) -> Vec<String> {
    let name = |line: &str| line.split_once("<a href=\"")?.1.split_once("\">").map(|(name, _)| name.to_owned());
    listing.lines().filter_map(name).filter(|name| name != "index.xml").collect()
}

/// Each line is right, and belongs to this file. Gives their number.
fn check_torperf(file: &[u8], size: u64, day: i64) -> usize {
    let lines = torperf::Reader::new(file).collect::<Result<Vec<_>, _>>().unwrap();
    let (first, next) = (start_of(day), start_of(day + 1));
    for line in &lines {
        assert_eq!((line.source.as_str(), line.size), ("test", size));
        assert!(first <= line.start && line.start < next, "{line:?}");
        let experiment = line.experiment.as_deref();
        assert!(matches!(experiment, Some("50kib" | "100kib")), "{line:?}");
    }
    assert!(lines.is_sorted_by_key(|line| line.start));
    lines.len()
}

/// The file is packed JSON whose downloads have circuits. Gives their number.
fn check_onionperf(file: &[u8]) -> usize {
    let mut text = String::new();
    XzDecoder::new(file).read_to_string(&mut text).unwrap();
    let analysis: Value = serde_json::from_str(&text).unwrap();
    let data = &analysis["data"]["test"];
    let streams = data["tgen"]["streams"].as_object().unwrap();
    let joined = data["tor"]["streams"].as_object().unwrap().values().filter(|stream| {
        let circuit = stream["circuit_id"].as_str().and_then(|id| data["tor"]["circuits"].get(id));
        circuit.is_some_and(|circuit| circuit["path"].as_array().is_some_and(|path| path.len() >= 3))
    });
    let complete = streams.values().filter(|stream| stream["is_success"] == true).count();
    assert!(joined.count() * 2 > complete, "most have the circuit that carried them: {text}");
    streams.len()
}

/// All files in a folder and those in it, by their names.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap());
        }
    }
    found
}

fn perfd_does(arguments: &[&Path]) {
    let output = Command::new(env!("CARGO_BIN_EXE_perfd")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
