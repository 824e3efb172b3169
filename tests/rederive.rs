//! `perfd rederive`: circuits derived again from what tor told, by the real perfd on a real store.

#[path = "common/web.rs"]
mod web;

use std::process::Output;
use std::time::Duration;

use perfd::circuit::{CircuitData, Evidence, derive};
use perfd::measurement::RunId;
use perfd::store::Store;
use rusqlite::Connection;
use tempfile::TempDir;
use web::{add, new_result, perfd, within};

const RUNS: u32 = 70;

/// A store of runs that each went over a circuit of their own; closed.
async fn stored() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    for n in 1..=RUNS {
        let mut new = new_result(n.into(), n.into());
        let evidence = evidence(n, new.measurement.start.0);
        new.circuit = Some((derive(&evidence), evidence));
        add(&store, vec![new]).await;
    }
    within("close", store.close(Duration::from_secs(5))).await.unwrap();
    folder
}

fn open(folder: &TempDir) -> Store {
    Store::open(&folder.path().join("perfd.sqlite")).unwrap()
}

fn evidence(n: u32, start: i64) -> Evidence {
    let relays = format!("${}~one,${}~two", "A".repeat(40), "B".repeat(40));
    Evidence(format!(
        "perfd evidence 1\nuser perfd-{n}\nstart {start}\nconnection 1\nsince -1000\ntor 0.4.9.11\n\n\
         -900 CIRC {n} LAUNCHED\n-100 CIRC {n} BUILT {relays}\n100 STREAM {n} NEW 0 a:80 SOCKS_USERNAME=\"perfd-{n}\"\n\
         200 STREAM {n} SENTCONNECT {n} a:80\n300 STREAM {n} SUCCEEDED {n} a:80\n"
    ))
}

fn rederive(folder: &TempDir, args: &[&str]) -> Output {
    perfd().args(["rederive", "--store"]).arg(folder.path().join("perfd.sqlite")).args(args).output().unwrap()
}

/// It did so, said this and nothing else.
fn assert_says(output: &Output, said: &str) {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*out, &*err), (Some(0), format!("{said}\n").as_str(), ""));
}

fn database(folder: &TempDir) -> Connection {
    Connection::open(folder.path().join("perfd.sqlite")).unwrap()
}

async fn whole(folder: &TempDir, n: u32) -> (i64, Option<CircuitData>, Option<String>) {
    let store = open(folder);
    let whole = store.reader().result(&RunId::from_bits(n.into())).await.unwrap().unwrap();
    within("close", store.close(Duration::from_secs(5))).await.unwrap();
    (whole.row.revision, whole.row.circuit, whole.evidence)
}

#[tokio::test]
async fn what_was_tampered_with_comes_right_again() {
    let folder = stored().await;
    let (revision, right, kept) = whole(&folder, 3).await;
    let path = right.as_ref().unwrap().circuit.as_ref().unwrap().path.clone();
    assert_eq!((revision, path.len(), path[1].relay.nickname.as_deref()), (3, 2, Some("two")));
    assert_says(&rederive(&folder, &[]), "70 runs, 0 changed, 0 unreadable");

    let change = "UPDATE circuit_data SET body = replace(body, '\"two\"', '\"evil\"'), path = 'x' WHERE run_id = ?1";
    assert_eq!(database(&folder).execute(change, [RunId::from_bits(3).as_str()]).unwrap(), 1);
    database(&folder).execute("DELETE FROM circuit_data WHERE run_id = ?1", [RunId::from_bits(69).as_str()]).unwrap();

    assert_says(&rederive(&folder, &["--dry-run"]), "70 runs, 2 would be changed, 0 unreadable");
    assert_ne!(whole(&folder, 3).await, (3, right.clone(), kept.clone()), "a dry run changes nothing");
    assert_says(&rederive(&folder, &[]), "70 runs, 2 changed, 0 unreadable");
    assert_eq!(whole(&folder, 3).await, (71, right, kept));
    assert_eq!(whole(&folder, 69).await.0, 72);
    assert_eq!(whole(&folder, 70).await.0, 70, "others keep their revision");
    assert_says(&rederive(&folder, &[]), "70 runs, 0 changed, 0 unreadable");
}

#[tokio::test]
async fn a_run_whose_evidence_says_nothing_stays_as_it_is() {
    let folder = stored().await;
    let store = open(&folder);
    let other_start = evidence(4, 7).0;
    let texts =
        [(1, "garbage\n"), (2, "perfd evidence 1\n\nrubbish"), (3, "perfd evidence 9\nstart 1\n\n"), (4, &other_start)];
    let mut before = Vec::new();
    for (n, text) in texts {
        let id = RunId::from_bits(n);
        let data = store.reader().result(&id).await.unwrap().unwrap().row.circuit.unwrap();
        store.complete_run(&id, data, Evidence(text.to_owned())).await.unwrap();
    }
    within("close", store.close(Duration::from_secs(5))).await.unwrap();
    for (n, _) in texts {
        before.push(whole(&folder, n as u32).await);
    }
    assert_says(&rederive(&folder, &[]), "70 runs, 0 changed, 4 unreadable");
    for ((n, _), before) in texts.into_iter().zip(before) {
        assert_eq!(whole(&folder, n as u32).await, before);
    }
}

#[tokio::test]
async fn a_perfd_that_runs_goes_on_meanwhile() {
    let folder = stored().await;
    database(&folder).execute("UPDATE circuit_data SET body = replace(body, '\"two\"', '\"evil\"')", []).unwrap();
    let store = open(&folder);
    let writing = async {
        for n in 101..140u32 {
            add(&store, vec![new_result(n.into(), n.into())]).await;
        }
    };
    let file = folder.path().join("perfd.sqlite");
    let rederiving =
        tokio::task::spawn_blocking(move || perfd().args(["rederive", "--store"]).arg(file).output().unwrap());
    let ((), output) = within("both", async { tokio::join!(writing, rederiving) }).await;
    assert_says(&output.unwrap(), "70 runs, 70 changed, 0 unreadable");
    assert_eq!(store.reader().latest_revision().await, Ok(70 + 70 + 39));
    let evil: i64 = database(&folder)
        .query_row("SELECT count(*) FROM circuit_data WHERE body LIKE '%evil%'", [], |row| row.get(0))
        .unwrap();
    assert_eq!(evil, 0);
}

#[tokio::test]
async fn a_store_that_can_not_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |said: &str| {
        let output = rederive(&folder, &[]);
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(74), "{err}");
        assert!(err.contains("perfd.sqlite") && err.contains(said), "{err}");
    };
    refused("there is no store ");
    assert!(!folder.path().join("perfd.sqlite").exists());
    std::fs::write(folder.path().join("perfd.sqlite"), [b'x'; 8192]).unwrap();
    refused("is no SQLite database");
}

#[tokio::test]
async fn damage_to_one_run_keeps_no_other_from_being_put_right() {
    let folder = stored().await;
    let change = |sql: &str, n: u128| {
        assert_eq!(database(&folder).execute(sql, [RunId::from_bits(n).as_str()]).unwrap(), 1);
    };
    change("UPDATE evidence SET lines = x'00' WHERE run_id = ?1", 1);
    change("UPDATE circuit_data SET body = 'no JSON' WHERE run_id = ?1", 2);
    change("UPDATE circuit_data SET body = replace(body, '\"two\"', '\"evil\"') WHERE run_id = ?1", 3);
    assert_says(&rederive(&folder, &[]), "70 runs, 2 changed, 1 unreadable");
    for n in [2, 3] {
        let (_, data, _) = whole(&folder, n).await;
        assert_eq!(data.unwrap().circuit.unwrap().path[1].relay.nickname.as_deref(), Some("two"), "run {n}");
    }
}
