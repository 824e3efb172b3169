//! The API against its own description, by schemathesis; and errors, each JSON with a reason.

#[allow(dead_code, reason = "used in part")]
#[path = "common/fake_tor.rs"]
mod fake_tor;
#[path = "common/relay.rs"]
mod relay;
#[path = "common/service.rs"]
mod service;
#[path = "common/tools.rs"]
mod tools;

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use boon::{Compiler, Schemas};
use fake_tor::{FakeTor, Script};
use perfd::clock::UnixMicros;
use perfd::store::Store;
use perfd::token;
use serde_json::Value;
use service::{HARDLY_EVER, PATIENCE, Service, Setup, Times, ask, get};
use tools::{python_dir, succeed};

/// So often that there are results soon, and so seldom that an answer with all of them stays short.
const OFTEN: Times = Times { every: "5 s", offset: "0 s", timeout: "2 s" };

/// A perfd with results through two tors, of which it controls one, and a token for it.
fn with_results() -> (FakeTor, Setup, Service, String) {
    let tor = FakeTor::start(vec![Script::default()]);
    let mut setup = Setup::new().controlled_tor("tor", tor.socks, tor.control).tor("other", tor.socks);
    // What is huge is bounded: payloads by this.
    setup.server = "max_payload = \"64 KiB\"".to_owned();
    let mut setup = setup
        .experiment("1kib", "tor", "1 KiB", OFTEN)
        .experiment_of("pair", &["tor", "other"], "1 KiB", OFTEN, "")
        .experiment("idle", "other", "1 KiB", HARDLY_EVER);
    let perfd = setup.start_measuring();
    perfd.wait_for_lines(3, "run finished");
    let token = added_token(&setup.store);
    (tor, setup, perfd, token)
}

#[test]
fn schemathesis_finds_no_fault() {
    let Some(python) = python_dir() else { return };
    let (_tor, setup, mut perfd, token) = with_results();
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemathesis.toml");
    let mut schemathesis = Command::new(python.join("schemathesis"));
    schemathesis.arg("--config-file").arg(configuration).arg("run").env("PERFD_TOKEN", token);
    // What never ends can't be checked like this; tests/events.rs does.
    schemathesis.args(["--exclude-path", "/events"]);
    schemathesis.args(["--no-color", &format!("http://127.0.0.1:{}/openapi.json", perfd.port())]);
    let said = succeed(schemathesis.current_dir(setup.folder()), "");
    let generated = said.lines().find_map(|line| line.trim().split_once(" generated, ")).expect(&said);
    assert!(generated.0.parse::<u32>().unwrap() > 1000, "{said}");
    perfd.end_well_within(PATIENCE);
}

#[test]
fn real_answers_are_as_they_are_described() {
    let (_tor, _setup, mut perfd, token) = with_results();
    let port = perfd.port();
    let json = |path: &str| -> Value { serde_json::from_slice(&get(port, path).unwrap().body).unwrap() };
    let whole = json("/openapi.json");
    let (mut compiler, mut schemas) = (Compiler::new(), Schemas::new());
    compiler.add_resource("openapi.json", whole.clone()).unwrap();
    let mut check = |path: &str, answer: &Value, described: &str| {
        let method = if path == "/annotations" { "post" } else { "get" };
        let (code, described) = (if method == "post" { "201" } else { "200" }, described.replace('/', "~1"));
        let at = format!("openapi.json#/paths/{described}/{method}/responses/{code}/content/application~1json/schema");
        let schema = compiler.compile(&at, &mut schemas).unwrap_or_else(|e| panic!("{at}: {e}"));
        if let Err(error) = schemas.validate(answer, schema) {
            panic!("{path}: {error:#}\n{answer:#}");
        }
    };
    let results = json("/results.json");
    let id = results["results"][0]["run_id"].as_str().unwrap().to_owned();
    let note = format!("{{\"run\": \"{id}\", \"note\": \"guard overloaded\", \"tags\": [\"guard\"]}}");
    let request = format!(
        "POST /annotations HTTP/1.0\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{note}",
        note.len()
    );
    let mut answer = String::new();
    ask(port, &request).unwrap().read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 201 "), "{answer}");
    check("/annotations", &serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap(), "/annotations");
    check("/results.json", &results, "/results.json");
    for (path, described) in [
        (format!("/results/{id}"), "/results/{id}"),
        ("/annotations.json".to_owned(), "/annotations.json"),
        ("/annotations/1".to_owned(), "/annotations/{id}"),
        ("/tors".to_owned(), "/tors"),
        ("/tors/tor".to_owned(), "/tors/{name}"),
        ("/tors/other".to_owned(), "/tors/{name}"),
        ("/pairs.json?experiment=pair".to_owned(), "/pairs.json"),
        ("/circuits.json".to_owned(), "/circuits.json"),
        ("/health".to_owned(), "/health"),
    ] {
        check(&path, &json(&path), described);
    }
    perfd.end_well_within(PATIENCE);
}

/// A token of the service's store.
fn added_token(store: &Path) -> String {
    let token = token::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = Store::open(store).unwrap();
        store.add_token("test", &token::hash(&token), UnixMicros::now()).await.unwrap();
        store.close(Duration::from_secs(10)).await.unwrap();
    });
    token
}
