//! Notes on results: who may write them, what they may hold, where they are shown, and that they are kept.

#[path = "common/web.rs"]
mod web;

use perfd::clock::UnixMicros;
use perfd::measurement::RunId;
use perfd::token;
use serde_json::{Value, json};
use web::{Client, Listener, Reply, Server, add, config, new_result};

const START: &str = "2026-11-22T10:00:00";

/// A server with three runs, a second apart, through two tors, and a token for `ann`.
async fn with_token() -> (Server, String) {
    let server = Server::start(config("")).await;
    for (id, tor) in [(0xaaaa_aa01, "tor-a"), (0xbbbb_bb02, "tor-b"), (0xcccc_cc03, "tor-a")] {
        let mut new = new_result(id << 96, i64::try_from(id & 0xf).unwrap() * 10);
        tor.clone_into(&mut new.tor);
        // Slots are told apart by their planned time, which the helper takes from the low digits.
        new.measurement.id = RunId::from_bits(id << 96 | id);
        add(&server.store, vec![new]).await;
    }
    let token = token::new().unwrap();
    server.store.add_token("ann", &token::hash(&token), UnixMicros(7)).await.unwrap();
    (server, token)
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n")
}

async fn post(server: &Server, headers: &str, body: impl AsRef<[u8]>) -> Reply {
    let mut client = Client::connect(server.address).await;
    let body = body.as_ref();
    let head = format!("POST /annotations HTTP/1.1\r\nHost: test\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    client.send([head.as_bytes(), body].concat()).await;
    client.reply().await
}

async fn annotate(server: &Server, token: &str, body: Value) -> Value {
    let reply = post(server, &bearer(token), body.to_string()).await;
    assert_eq!(reply.status, 201, "{}", reply.text());
    let written = reply.json();
    assert_eq!(reply.header("location"), Some(format!("/annotations/{}", written["id"]).as_str()));
    assert_eq!(server.get(reply.header("location").unwrap()).await.json(), written);
    written
}

async fn ids(server: &Server, query: &str) -> Vec<i64> {
    let reply = server.get(&format!("/annotations.json?{query}")).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["annotations"].as_array().unwrap().iter().map(|one| one["id"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn a_note_on_a_run_is_shown_with_it_and_told_to_followers() {
    let (server, token) = with_token().await;
    let mut listener = Listener::start(server.address, "", "").await;
    assert_eq!(listener.told().await.id, 3);
    let note = "guard overloaded\nsays its operator, \"=1+1\"";
    let written =
        annotate(&server, &token, json!({ "run": "aaaaaa01", "note": note, "tags": ["guard", "bad-day"] })).await;
    let run = RunId::from_bits(0xaaaa_aa01 << 96 | 0xaaaa_aa01).to_string();
    assert_eq!(
        (&written["run_id"], &written["author"], &written["note"], &written["revision"]),
        (&json!(run), &json!("ann"), &json!(note), &json!(4))
    );
    assert_eq!((&written["tor"], &written["experiment"]), (&json!("tor-a"), &json!("50kib")));
    assert_eq!(written["tags"], json!(["bad-day", "guard"]));
    assert_eq!(written["since"], format!("{START}.000000Z").replace(":00.", ":10."));
    let told = listener.told().await;
    assert_eq!((told.name.as_str(), told.id, &told.data), ("annotation", 4, &written));

    let whole = server.get(&format!("/results/{run}.json")).await.json();
    assert_eq!(whole["annotations"], json!([written]));
    let drawn = server.get(&format!("/results/{run}.txt")).await;
    let created = written["created"].as_str().unwrap()[..19].replace('T', " ");
    let expected =
        format!("\nnote 1 by ann, {created} UTC #bad-day #guard\n  guard overloaded\n  says its operator, \"=1+1\"\n");
    assert!(drawn.text().ends_with(&expected), "{}", drawn.text());
    let other = RunId::from_bits(0xbbbb_bb02 << 96 | 0xbbbb_bb02);
    assert_eq!(server.get(&format!("/results/{other}.json")).await.json()["annotations"], json!([]));
}

#[tokio::test]
async fn notes_are_found_by_what_they_are_about() {
    let (server, token) = with_token().await;
    let moment = |second: u32| format!("2026-11-22T10:00:{second:02}Z");
    let at = |since: u32, until: u32| json!({ "since": moment(since), "until": moment(until), "note": "n" });
    let with = |mut body: Value, key: &str, value: Value| {
        body[key] = value;
        body
    };
    let notes = [
        json!({ "run": "aaaaaa01", "note": "of a run", "tags": ["x"] }),
        with(at(11, 20), "tags", json!(["y"])),
        with(at(0, 59), "tor", json!("tor-b")),
        with(at(31, 31), "experiment", json!("50kib")),
        with(at(32, 40), "source", json!("test")),
        with(with(at(0, 59), "experiment", json!("other")), "tags", json!(["x", "z"])),
    ];
    for note in notes {
        annotate(&server, &token, note).await;
    }
    for (query, expected) in [
        ("", vec![1, 2, 3, 4, 5, 6]),
        // The runs lasted 1.5 s from :10, :20 and :30.
        ("run=aaaaaa01", vec![1, 2]),
        ("run=bbbbbb02", vec![2, 3]),
        ("run=cccccc03", vec![4]),
        ("run=0000000000000000000000000000000f", vec![]),
        ("tag=x", vec![1, 6]),
        ("tag=none", vec![]),
        ("tor=tor-b", vec![2, 3, 4, 5, 6]),
        ("tor=tor-a&experiment=50kib", vec![1, 2, 4, 5]),
        ("source=elsewhere", vec![2, 3, 4, 6]),
        ("since=2026-11-22T10:00:35Z", vec![3, 5, 6]),
        ("until=2026-11-22T10:00:11Z", vec![1, 3, 6]),
        ("order=newest&limit=2", vec![6, 5]),
        ("limit=2&cursor=5", vec![3, 4]),
    ] {
        assert_eq!(ids(&server, query).await, expected, "{query}");
    }
    let first = server.get("/annotations.json?limit=2").await.json();
    assert_eq!(first["next_cursor"], json!(5));
    for (tag, expected) in [("x", vec!["aaaaaa01"]), ("y", vec!["aaaaaa01", "bbbbbb02"]), ("z", vec![])] {
        let rows = server.get(&format!("/results.ndjson?tag={tag}")).await;
        let rows = rows.text().lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["run_id"].to_string());
        assert_eq!(rows.map(|id| id[1..9].to_owned()).collect::<Vec<_>>(), expected, "{tag}");
        let within = server.get(&format!("/results.csv?tag={tag}&experiment=50kib&since=2026-11-22")).await;
        assert_eq!(within.text().lines().count(), 1 + expected.len(), "{tag}");
    }
    for (query, reason) in [
        ("tag=X", "\"X\" is no tag"),
        ("kind=upload", "kind is no parameter of this page; there are run"),
        ("limit=1001", "limit=1001: must be a number from 1 to 1000"),
        ("run=xyz", "32 lower-case"),
    ] {
        let reply = server.get(&format!("/annotations.json?{query}")).await;
        assert!(reply.status == 400 && reply.reason().contains(reason), "{query}: {}", reply.text());
    }
}

#[tokio::test]
async fn a_note_is_put_right_by_another_and_outlives_its_run() {
    let (server, token) = with_token().await;
    annotate(&server, &token, json!({ "run": "aaaaaa01", "note": "wrong", "tags": ["guard"] })).await;
    let right = json!({ "run": "aaaaaa01", "note": "right", "tags": ["exit"], "replaces": 1 });
    annotate(&server, &token, right.clone()).await;
    let first = server.get("/annotations/1").await.json();
    assert_eq!((&first["note"], &first["replaced_by"]), (&json!("wrong"), &json!(2)));
    let run = RunId::from_bits(0xaaaa_aa01 << 96 | 0xaaaa_aa01);
    let shown = server.get(&format!("/results/{run}")).await.json();
    assert_eq!((&shown["annotations"][0]["id"], shown["annotations"].as_array().unwrap().len()), (&json!(2), 1));
    assert_eq!(server.get("/results.ndjson?tag=guard").await.text(), "");
    assert_eq!(server.get("/results.ndjson?tag=exit").await.text().lines().count(), 1);
    for (replaces, reason) in [(1, "annotation 1 was replaced already, by 2"), (9, "there is no annotation 9")] {
        let mut body = right.clone();
        body["replaces"] = json!(replaces);
        let reply = post(&server, &bearer(&token), body.to_string()).await;
        assert_eq!((reply.status, reply.reason().contains(reason)), (409, true), "{}", reply.text());
    }
    assert_eq!(server.store.reader().latest_revision().await, Ok(5), "what is refused takes no revision");

    server.database().execute("DELETE FROM result", []).unwrap();
    assert_eq!(ids(&server, &format!("run={run}")).await, [1, 2]);
    assert_eq!(ids(&server, "tor=tor-a").await, [1, 2]);
}

#[tokio::test]
async fn only_who_has_a_token_writes() {
    let (server, token) = with_token().await;
    let body = json!({ "since": "2026-11-22", "note": "n" }).to_string();
    let other = token::new().unwrap();
    for header in [
        String::new(),
        "Authorization: Basic YTpi\r\n".to_owned(),
        format!("Authorization: {token}\r\n"),
        format!("Authorization: Bearer {other}\r\n"),
        format!("Authorization: Bearer {}\r\n", &token[..token.len() - 1]),
        format!("Authorization: Bearer {token}x\r\n"),
        "Authorization: Bearer \r\n".to_owned(),
    ] {
        let reply = post(&server, &format!("{header}Content-Type: application/json\r\n"), &body).await;
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, Some("Bearer realm=\"perfd\"")), "{header}");
        assert!(!reply.reason().contains("perfd_"), "no token is repeated");
    }
    assert_eq!(post(&server, &bearer(&token), &body).await.status, 201);
    for _ in 0..4 {
        assert_eq!(post(&server, &bearer(&other), &body).await.status, 401);
    }
    let limited = post(&server, &bearer(&other), &body).await;
    assert_eq!((limited.status, limited.header("retry-after")), (429, Some("60")));
    assert!(limited.reason().contains("too many wrong tokens"));
    // Who brings none guesses nothing.
    assert_eq!(post(&server, "Content-Type: application/json\r\n", &body).await.status, 401);
    assert_eq!(server.store.remove_token("ann").await, Ok(true));
    assert_eq!(server.store.remove_token("ann").await, Ok(false));
    assert_eq!(ids(&server, "").await, [1]);
}

#[tokio::test]
async fn a_token_that_was_removed_is_none() {
    let (server, token) = with_token().await;
    let taken = server.store.add_token("ann", "0", UnixMicros(0)).await;
    assert!(taken.unwrap_err().to_string().contains("there is a token ann already"));
    server.store.remove_token("ann").await.unwrap();
    let reply = post(&server, &bearer(&token), "{\"since\":\"0\",\"note\":\"n\"}").await;
    assert_eq!(reply.status, 401);
}

#[tokio::test]
async fn what_is_sent_is_bounded_and_read_strictly() {
    let (server, token) = with_token().await;
    let note = |text: &str| json!({ "since": "2026-11-22", "note": text }).to_string();
    let long = format!("{{\"since\":\"2026-11-22\",\"note\":\"{}\"}}", "x".repeat(16 << 10));
    for (body, status, reason) in [
        (String::new(), 400, "this is no annotation"),
        ("{".to_owned(), 400, "this is no annotation"),
        ("null".to_owned(), 400, "this is no annotation"),
        ("{\"note\":\"a\",\"nots\":1}".to_owned(), 400, "unknown field `nots`"),
        ("{\"note\":\"a\"}".to_owned(), 400, "say what it is about"),
        (note(""), 400, "the note has 0 characters"),
        (note(&"x".repeat(2001)), 400, "the note has 2001 characters"),
        (note("\u{1b}]0;x\u{7}"), 400, "the note has the character \\u{1b}"),
        (note("a\u{202e}b"), 400, "the note has the character \\u{202e}"),
        (json!({ "run": "abcdef12", "note": "n" }).to_string(), 404, "there is no result abcdef12"),
        (json!({ "run": "aaaa", "note": "n" }).to_string(), 400, "32 lower-case"),
        (long, 413, "at most 16384 bytes"),
    ] {
        let reply = post(&server, &bearer(&token), &body).await;
        assert_eq!(reply.status, status, "{body}: {}", reply.text());
        assert!(reply.reason().contains(reason), "{body}: {}", reply.reason());
    }
    let form = format!("Authorization: Bearer {token}\r\nContent-Type: text/plain\r\n");
    assert_eq!(post(&server, &form, note("a")).await.status, 415);
    assert_eq!(server.get("/annotations").await.status, 405);
    for id in ["0", "x", "99999999999999999999", "-1"] {
        assert_eq!(server.get(&format!("/annotations/{id}")).await.status, 404, "{id}");
    }
    assert_eq!(ids(&server, "").await, [0; 0]);
}

#[tokio::test]
async fn hostile_text_stays_data() {
    let (server, token) = with_token().await;
    let hostile = "=HYPERLINK(\"http://x\")\n<script>alert(1)</script>\ndata: {}\n\nevent: result";
    let body = json!({ "run": "cccccc03", "note": hostile, "tags": ["-x"] });
    let mut listener = Listener::start(server.address, "", "").await;
    listener.told().await;
    let written = annotate(&server, &token, body).await;
    let told = listener.told().await;
    assert_eq!((told.name.as_str(), &told.data["note"]), ("annotation", &json!(hostile)));
    let csv = server.get("/annotations.csv").await;
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    let cell = format!("\"'{}\"", hostile.replace('"', "\"\""));
    assert!(csv.text().contains(&format!(",{cell},'-x,,\r\n")), "{}", csv.text());
    let run = written["run_id"].as_str().unwrap();
    let drawn = server.get(&format!("/results/{run}.txt")).await;
    assert!(drawn.text().contains("  =HYPERLINK(\"http://x\")\n  <script>alert(1)</script>\n  data: {}\n"));
    assert!(drawn.text().lines().all(|line| line.chars().count() <= 100));
}
