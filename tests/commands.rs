//! The commands, as an operator types them: the real perfd, its output and its exit codes.

#[path = "common/web.rs"]
mod web;

use std::io::Read;
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use perfd::config::Config;
use serde_json::Value;
use web::{Server, Service, add, config, fill, http_server, incomplete, new_result, perfd, socks_relay};

const COMMANDS: [&str; 6] = ["run", "once", "check", "results", "testnet", "completions"];

fn perfd_with(args: &[&str]) -> Output {
    perfd().args(args).output().unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

/// It ended with this code, and without a panic.
fn assert_code(output: &Output, code: i32) {
    assert_eq!(output.status.code(), Some(code), "{}{}", stdout(output), stderr(output));
    assert!(!stderr(output).contains("panicked"), "{}", stderr(output));
}

#[test]
fn the_version_names_the_commit() {
    let output = perfd_with(&["--version"]);
    assert_code(&output, 0);
    assert_eq!(stdout(&output), format!("perfd {} ({})\n", env!("CARGO_PKG_VERSION"), perfd::version::COMMIT));
    assert!(!perfd::version::COMMIT.is_empty());
}

#[test]
fn every_command_has_its_help() {
    let output = perfd_with(&["--help"]);
    assert_code(&output, 0);
    for command in COMMANDS {
        assert!(stdout(&output).contains(&format!("  {command}")), "{command}");
        let help = perfd_with(&[command, "--help"]);
        assert_code(&help, 0);
        assert!(stdout(&help).contains(&format!("Usage: perfd {command}")), "{}", stdout(&help));
    }
    assert!(stdout(&output).contains("78  the configuration is wrong"));
    for args in [&[][..], &["walk"], &["run", "--loud"], &["once"], &["results", "--format", "xml"]] {
        assert_code(&perfd_with(args), 2);
    }
}

#[test]
fn shells_get_their_completions() {
    for shell in ["bash", "zsh", "fish"] {
        let output = perfd_with(&["completions", shell]);
        assert_code(&output, 0);
        assert!(COMMANDS.iter().all(|command| stdout(&output).contains(command)), "{shell}");
    }
}

#[test]
fn check_prints_the_shipped_configuration_and_warns() {
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
    let output = perfd_with(&["check", "--config", shipped]);
    assert_code(&output, 0);
    let printed = Config::parse(stdout(&output), "printed").unwrap();
    assert_eq!(printed, Config::load(shipped.as_ref()).unwrap());
    assert!(stderr(&output).contains("no public host"), "{}", stderr(&output));
    assert_code(&perfd_with(&["check", "--online", "--config", shipped]), 78);
    assert_code(&perfd().arg("check").env("PERFD_CONFIG", shipped).output().unwrap(), 0);
}

#[test]
fn check_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "source = \"perfd\"\n\n[server]\nmax_payloadz = 1\n").unwrap();
    let file = file.display().to_string();
    let output = perfd_with(&["check", "--config", &file]);
    assert_code(&output, 78);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("bad.toml:4") && stderr(&output).contains("max_payloadz"), "{}", stderr(&output));
    for command in ["check", "run", "results"] {
        assert_code(&perfd_with(&[command, "--config", "/nowhere/config.toml"]), 78);
    }
}

#[test]
fn once_measures_in_every_format() {
    let (socks, server) = (socks_relay().to_string(), http_server(51_200));
    let url = format!("http://localhost:{}/file", server.port());
    let once = |format: &str, more: &[&str]| {
        let args = [&["once", "--socks", &socks, "--url", &url, "--format", format][..], more].concat();
        let output = perfd_with(&args);
        assert_code(&output, 0);
        stdout(&output).to_owned()
    };
    let table = once("table", &[]);
    assert!(table.starts_with("OUTCOME ") && table.contains("\ncomplete ") && table.contains(" 50 KiB "), "{table}");
    let torperf = once("tpf", &["--size", "50 KiB"]);
    assert!(torperf.starts_with("@type torperf 1.1\nSOURCE=perfd FILESIZE=51200 START="), "{torperf}");
    assert!(torperf.contains(" DIDTIMEOUT=0 ") && torperf.lines().count() == 2, "{torperf}");
    let json: Value = serde_json::from_str(&once("json", &["--timeout", "20 s"])).unwrap();
    assert_eq!((json["outcome"].as_str(), json["size_bytes"].as_u64()), (Some("complete"), Some(51_200)));
    assert_eq!(json["isolated"], true);
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.add_resource("urn:result", serde_json::from_str(perfd::export::json::SCHEMA).unwrap()).unwrap();
    let index = compiler.compile("urn:result", &mut schemas).unwrap();
    schemas.validate(&json, index).unwrap();
}

#[test]
fn once_that_fails_still_prints_a_result() {
    let url = format!("http://{}/file", http_server(10));
    let output = perfd_with(&["once", "--socks", &refused().to_string(), "--url", &url, "--format", "json"]);
    assert_code(&output, 1);
    let json: Value = serde_json::from_str(stdout(&output)).unwrap();
    assert_eq!((json["outcome"].as_str(), json["cause"].as_str()), (Some("failed"), Some("refused")));
    assert!(stderr(&output).starts_with("perfd: failed at connect: refused"), "{}", stderr(&output));

    let other_size = ["once", "--socks", &socks_relay().to_string(), "--url", &url, "--size", "11 B"];
    let output = perfd_with(&other_size);
    assert_code(&output, 1);
    assert!(stdout(&output).contains("failed data_complete/payload_size"), "{}", stdout(&output));
}

#[test]
fn once_refuses_what_it_can_not_understand() {
    let good = ["--socks", "127.0.0.1:9050", "--url", "http://127.0.0.1/"];
    for (at, bad) in [
        (1, "127.0.0.1"),
        (1, "127.0.0.1:99999"),
        (1, ""),
        (1, "no such host:9050"),
        (3, "https://127.0.0.1/"),
        (3, "127.0.0.1"),
        (3, "http://"),
        (3, "http://127.0.0.1:0/"),
        (3, "http://user@127.0.0.1/"),
        (3, "http://127.0.0.1/a b"),
    ] {
        let mut args = good;
        args[at] = bad;
        let output = perfd_with(&[&["once"][..], &args].concat());
        assert_code(&output, 2);
        assert!(stderr(&output).contains(&format!("{} {bad}", good[at - 1])), "{bad:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn run_may_open_as_many_files_as_it_has_connections() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start_after("ulimit -Sn 100", folder.path(), "max_connections = 700");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", service.child.id())).unwrap();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(open_files.split_whitespace().nth(3), Some("892"), "{open_files}");
}

/// An address at which nothing listens.
fn refused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn url(server: &Server) -> String {
    format!("http://{}", server.address)
}

/// Runs a command while the server of the test goes on.
async fn beside(mut command: Command) -> Output {
    web::within("command", tokio::task::spawn_blocking(move || command.output().unwrap())).await.unwrap()
}

async fn results(server: &str, args: &[&str]) -> Output {
    let mut command = perfd();
    command.args(["results", "--server", server]).args(args);
    beside(command).await
}

#[tokio::test]
async fn results_are_printed_in_every_format() {
    let server = Server::start(config("")).await;
    let run = |n: u32| new_result(n.into(), n.into());
    add(&server.store, (1..=30).map(|n| if n == 30 { incomplete(run(n), false) } else { run(n) }).collect()).await;

    let table = results(&url(&server), &[]).await;
    assert_code(&table, 0);
    let lines: Vec<_> = stdout(&table).lines().collect();
    assert_eq!(lines.len(), 21, "a heading and the latest twenty");
    assert!(lines[20].starts_with("failed response/socks_reply"), "the latest comes last: {}", lines[20]);

    for (format, count) in [("json", 32), ("ndjson", 30), ("tpf", 31), ("csv", 31)] {
        let output = results(&url(&server), &["--format", format]).await;
        assert_code(&output, 0);
        // A detail that has a line end in it stands in quotes in CSV.
        let line_ends = count + usize::from(format == "csv");
        assert_eq!(stdout(&output).lines().count(), line_ends, "{format}");
        assert_eq!(output.stdout, server.get(&format!("/results.{format}")).await.body);
    }

    let which = "--format ndjson --source test --experiment 50kib --size 50KiB --outcome complete \
                 --since 2026-11-22T10:00:05Z --until 2026-11-23 --limit 3";
    let output = results(&format!("{}/", url(&server)), &which.split_whitespace().collect::<Vec<_>>()).await;
    assert_code(&output, 0);
    assert_eq!(stdout(&output).lines().count(), 3);
    assert!(stdout(&output).contains("\"start\":\"2026-11-22T10:00:05.000000Z\""));
}

#[tokio::test]
async fn results_says_why_there_are_none() {
    let server = Server::start(config("")).await;
    let empty = results(&url(&server), &[]).await;
    assert_code(&empty, 0);
    assert_eq!((stdout(&empty), stderr(&empty).contains("there are no results")), ("", true));

    let misled = results(&url(&server), &["--since", "soon"]).await;
    assert_code(&misled, 2);
    assert!(stderr(&misled).contains("since=soon: must be a time such as"), "{}", stderr(&misled));

    let gone = results(&format!("http://{}", refused()), &[]).await;
    assert_code(&gone, 69);
    assert!(stderr(&gone).contains("does not answer"), "{}", stderr(&gone));

    for url in ["", "127.0.0.1:80", "https://127.0.0.1", "http://", "ftp://127.0.0.1"] {
        let output = results(url, &[]).await;
        assert_code(&output, 2);
        assert!(stderr(&output).contains("--server"), "{}", stderr(&output));
    }

    let other = results(&format!("http://{}", http_server(100)), &[]).await;
    assert_code(&other, 69);
    assert!(stderr(&other).contains("not what a perfd gives"), "{}", stderr(&other));
}

#[tokio::test]
async fn results_finds_the_service_of_a_configuration() {
    let server = Server::start(config("")).await;
    fill(&server.store, 2).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let here = format!("listen = [\"0.0.0.0:{}\"]", server.address.port());
    std::fs::write(&file, config("").to_toml().replace("listen = [\"127.0.0.1:0\"]", &here)).unwrap();
    let mut command = perfd();
    command.args(["results", "--format", "csv", "--config"]).arg(&file);
    let output = beside(command).await;
    assert_code(&output, 0);
    assert_eq!(stdout(&output).lines().count(), 3);
}

#[tokio::test]
async fn a_pipe_that_nobody_reads_is_no_error() {
    let server = Server::start(config("")).await;
    fill(&server.store, 1000).await;
    let url_of_results = url(&server);
    let (socks, file) = (socks_relay().to_string(), format!("http://{}/", http_server(10)));
    let shipped = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
    for args in [
        &["results", "--server", &url_of_results, "--format", "ndjson"][..],
        &["results", "--server", &url_of_results],
        &["once", "--socks", &socks, "--url", &file],
        &["check", "--config", shipped],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
    ] {
        let mut command = perfd();
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let ended = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().unwrap();
            drop(child.stdout.take());
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            (child.wait().unwrap(), said)
        });
        let (status, said) = web::within("end", ended).await.unwrap();
        assert_eq!(status.code(), Some(0), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
}
