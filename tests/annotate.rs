//! `perfd token`, `perfd annotate` and `perfd annotations`, the real program, beside a running service and without one.

#[path = "common/web.rs"]
mod web;

use std::process::Output;

use perfd::store::Store;
use perfd::token;
use web::{Server, add, config, new_result, perfd};

fn run(args: &[&str], token: Option<&str>) -> Output {
    let mut command = perfd();
    command.args(args).env_remove("PERFD_TOKEN").envs(token.map(|token| ("PERFD_TOKEN", token)));
    command.output().unwrap()
}

/// What it prints, if it does as it is told.
fn done(args: &[&str], token: Option<&str>) -> String {
    let output = run(args, token);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What it says, if it ends with this code.
fn refused(args: &[&str], token: Option<&str>, code: i32) -> String {
    let output = run(args, token);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(code), &b""[..]), "{args:?}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_notes_beside_a_running_service() {
    let server = Server::start(config("")).await;
    add(&server.store, vec![new_result(0x0dea_dbee, 1)]).await;
    let path = server.database().path().unwrap().to_owned();
    let (store, url) = (["--store", &path], format!("http://{}", server.address));
    let service = ["--server", &url];

    assert_eq!(done(&["token", "list", store[0], store[1]], None), "");
    let printed = done(&["token", "add", "ann", store[0], store[1]], None);
    let token = printed.trim_end();
    assert!(token.starts_with("perfd_") && token.len() == token::LENGTH, "{printed}");
    let stored: String = server.database().query_row("SELECT hash FROM token", [], |row| row.get(0)).unwrap();
    assert_eq!(stored, token::hash(token));
    let said = refused(&["token", "add", "ann", store[0], store[1]], None, 1);
    assert!(said.contains("there is a token ann already"), "{said}");
    refused(&["token", "add", "a\tb", store[0], store[1]], None, 2);
    let listed = done(&["token", "list", store[0], store[1]], None);
    assert!(listed.starts_with("NAME  SINCE\nann   20") && !listed.contains(&stored), "{listed}");

    let name = "0000000000000000000000000deadbee";
    let on_run = ["annotate", name, "--note", "guard overloaded\nagain", "--tag", "guard", service[0], service[1]];
    assert_eq!(done(&on_run, Some(token)), "annotation 1\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &printed).unwrap();
    let file = file.path().to_str().unwrap();
    let since = "2026-11-22T10:00:00Z";
    let on_time = ["annotate", "--since", since, "--tor", "main", "--note", "tor upgraded", "--token-file", file];
    assert_eq!(done(&[&on_time[..], &service].concat(), None), "annotation 2\n");
    let in_store = ["annotate", "--since", "0", "--until", since, "--note", "=1+1", "--replaces", "2"];
    assert_eq!(done(&[&in_store[..], &store].concat(), None), "annotation 3\n");
    assert_eq!(done(&["annotate", name, "--note", "n", store[0], store[1]], None), "annotation 4\n");
    let revisions = server.store.reader().latest_revision().await;
    assert_eq!(revisions, Ok(5));

    let listed = done(&["annotations", service[0], service[1]], None);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 5, "{listed}");
    assert!(
        lines[1].contains("  ann")
            && lines[1].contains("run 00000000 ")
            && lines[1].contains("  guard  guard overloaded again"),
        "{listed}"
    );
    assert!(lines[2].contains("2026-11-22 10:00:00, tor main"), "{listed}");
    assert!(lines[2].ends_with("(replaced by 3) tor upgraded"), "{listed}");
    assert!(lines[3].contains("1970-01-01 00:00:00 to 2026-11-22 10:00:00"), "{listed}");
    let csv = done(&["annotations", "--tag", "guard", "--format", "csv", service[0], service[1]], None);
    assert!(csv.lines().count() == 3 && csv.contains("\"guard overloaded\nagain\""), "{csv}");
    let drawn = done(&["results", name, service[0], service[1]], None);
    assert!(drawn.contains("note 1 by ann, ") && drawn.contains("  guard overloaded\n  again\n"), "{drawn}");

    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    for (format, file, lines) in [("json", "annotations.ndjson", 4), ("csv", "annotations.csv", 6)] {
        let said = done(&["export", "--format", format, "--out", out, store[0], store[1]], None);
        assert!(said.starts_with("1 results and 4 notes in "), "{said}");
        assert_eq!(std::fs::read_to_string(folder.path().join(file)).unwrap().lines().count(), lines, "{format}");
    }
    for (filter, rows) in [
        (["--outcome", "complete"], "1 results"),
        (["--outcome", "failed"], "0 results"),
        (["--size", "1"], "0 results"),
        (["--source", "nobody"], "0 results"),
        (["--tor", "none"], "0 results"),
        (["--kind", "upload"], "0 results"),
        (["--imported", "yes"], "0 results"),
        (["--imported", "no"], "1 results"),
    ] {
        let elsewhere = folder.path().join("filtered");
        let args = ["export", "--format", "tpf", "--out", elsewhere.to_str().unwrap(), store[0], store[1]];
        let said = done(&[&args[..], &filter].concat(), None);
        assert!(said.starts_with(rows), "{filter:?}: {said}");
    }
    let all = std::fs::read(folder.path().join("annotations.csv")).unwrap();
    assert_eq!(all, server.get("/annotations.csv").await.body);
    let first = std::fs::read_to_string(folder.path().join("annotations.ndjson")).unwrap();
    let first: serde_json::Value = serde_json::from_str(first.lines().next().unwrap()).unwrap();
    assert_eq!(first, server.get("/annotations/1").await.json());

    done(&["token", "remove", "ann", store[0], store[1]], None);
    let said = refused(&on_run, Some(token), 2);
    assert!(said.contains("this is no token of this perfd"), "{said}");
    let said = refused(&["token", "remove", "ann", store[0], store[1]], None, 1);
    assert!(said.contains("there is no token of ann"), "{said}");
}

#[test]
fn what_is_wrong_is_told_before_anybody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("perfd.sqlite");
    let file = path.to_str().unwrap();
    let said = refused(&["token", "list", "--store", file], None, 74);
    assert!(said.contains("there is no store"), "{said}");
    let out = folder.path().join("out");
    let export = ["export", "--out", out.to_str().unwrap(), "--store", file, "--format"];
    for args in [&["stats", "--store", file][..], &[&export[..], &["json"]].concat()] {
        let said = refused(args, None, 74);
        assert!(said.contains("there is no store") && said.contains("give --store FILE"), "{said}");
    }
    for (args, reason) in [
        (&["collector", "--since", "2026-11-25T03:50:00Z"][..], "give --since as the date of a UTC day"),
        (&["collector", "--tor", "a"], "collector writes whole days; leave out --source"),
        (&["onionperf", "--kind", "upload"], "has no uploads"),
    ] {
        let said = refused(&[&export[..], args].concat(), None, 2);
        assert!(said.contains(reason), "{said}");
    }
    drop(Store::open(&path).unwrap());
    let nobody = "http://127.0.0.1:9";
    for (args, token, code, reason) in [
        (&["annotate", "--note", "n", "--server", nobody][..], None, 2, "--since TIME"),
        (&["annotate", "--since", "0", "--server", nobody], None, 2, "--note"),
        (&["annotate", "abcdef", "--since", "0", "--note", "n"], None, 2, "cannot be used with"),
        (&["annotate", "--since", "0", "--note", "n", "--server", nobody], None, 2, "set PERFD_TOKEN"),
        (&["annotate", "--since", "0", "--note", "n", "--server", nobody], Some("a\nb"), 2, "for a token is none"),
        (&["annotate", "--since", "0", "--note", "n", "--server", nobody], Some("x"), 69, "does not answer"),
        (
            &["annotate", "--since", "0", "--note", "\u{1b}", "--server", nobody],
            Some("x"),
            2,
            "the note has the character",
        ),
        (&["annotate", "--since", "0", "--note", "n", "--tag", "X", "--store", file], None, 2, "\"X\" is no tag"),
        (&["annotate", "abcdef", "--note", "n", "--store", file], None, 1, "there is no result abcdef"),
        (&["annotate", "--since", "0", "--note", "n", "--replaces", "7", "--store", file], None, 1, "no annotation 7"),
    ] {
        let said = refused(args, token, code);
        assert!(said.contains(reason), "{args:?}: {said}");
    }
}
