//! The commands, as an operator types them: the real perfd, its output and its exit codes.

#[path = "common/web.rs"]
mod web;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};

use perfd::config::Config;
use serde_json::Value;
use web::{Server, Service, add, config, fill, http_server, incomplete, new_result, perfd, socks_relay};

const COMMANDS: [&str; 9] =
    ["run", "once", "check", "results", "tor", "rederive", "validate", "testnet", "completions"];

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
    let said = "perfd: experiment 50kib: can't measure through tor \"tor\": no public host is configured; set host in the \
                section [public], or control in the section [[tor]], for an onion service\n";
    assert!(stderr(&output).starts_with(said), "{}", stderr(&output));
    assert_code(&perfd_with(&["check", "--online", "--config", shipped]), 78);
    assert_code(&perfd().arg("check").env("PERFD_CONFIG", shipped).output().unwrap(), 0);
}

/// What `perfd check` with these arguments says of a configuration, and its code.
fn check(public: &str, tors: &str, experiments: &str, args: &[&str]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let (file, store) = (folder.path().join("config.toml"), folder.path().join("perfd.sqlite"));
    let text = format!("source = \"test\"\n[public]\n{public}\n[store]\npath = {store:?}\n{tors}\n{experiments}");
    std::fs::write(&file, text).unwrap();
    let output = perfd().arg("check").args(args).arg("--config").arg(file).output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    let said = stderr(&output).replace(folder.path().to_str().unwrap(), "FOLDER");
    (output.status.code(), said)
}

fn experiment(name: &str, more: &str) -> String {
    let times = "size = \"1 KiB\"\nevery = \"5 min\"\ntimeout = \"60 s\"";
    format!("[[experiment]]\nname = \"{name}\"\n{times}\n{more}\n")
}

#[test]
fn check_says_what_each_experiment_measures() {
    let tors = "[[tor]]\nname = \"plain\"\nsocks = \"127.0.0.1:1\"\n\
                [[tor]]\nname = \"ours\"\nsocks = \"127.0.0.1:2\"\ncontrol = \"127.0.0.1:3\"\n\
                [[tor]]\nname = \"single\"\nbinary = \"/bin/sh\"\nsingle_hop = true\n";
    let experiments = [
        experiment("auto", "tor = [\"plain\", \"ours\"]"),
        experiment("exit", "tor = \"ours\"\nserver = \"exit\""),
        experiment("single", "tor = \"plain\"\nserver = \"onion\"\nonion_tor = \"single\""),
    ]
    .concat();
    let notes = |public: &str| {
        let (code, said) = check(public, tors, &experiments, &[]);
        assert_eq!(code, Some(0), "{said}");
        said.lines().filter(|line| line.starts_with("perfd: experiment ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let onion = "it measures perfd's own onion service, published by tor";
    let single = format!(
        "perfd: experiment single: through tor \"plain\" {onion} \"single\", a single-hop one: that is rendezvous \
         circuits of 4 hops, not exits"
    );
    let expected = [
        "perfd: experiment auto: through tor \"plain\" to http://[2001:db8::1]:81 by an exit",
        "perfd: experiment auto: through tor \"ours\" to http://[2001:db8::1]:81 by an exit",
        "perfd: experiment exit: through tor \"ours\" to http://[2001:db8::1]:81 by an exit",
        &single,
    ];
    assert_eq!(notes("host = \"2001:db8::1\"\nport = 81"), expected);
    let nowhere = "no public host is configured; set host in the section [public], or";
    let expected = [
        format!(
            "perfd: experiment auto: can't measure through tor \"plain\": {nowhere} control in the section [[tor]], for \
             an onion service"
        ),
        format!(
            "perfd: experiment auto: no public host is configured: through tor \"ours\" {onion} \"ours\", that is \
             rendezvous circuits of 6 hops, not exits"
        ),
        format!(
            "perfd: experiment exit: can't measure through tor \"ours\": {nowhere} server = \"auto\" or \"onion\" in \
             the experiment"
        ),
        single,
    ];
    assert_eq!(notes(""), expected);
}

#[test]
fn check_says_what_a_tor_to_be_started_lacks() {
    let of = |lines: &str| {
        let tor = format!("[[tor]]\nname = \"own\"\n{lines}\n");
        let (code, said) = check("host = \"192.0.2.1\"", &tor, &experiment("a", "tor = \"own\""), &[]);
        assert_eq!(code, Some(0), "{said}");
        said.lines().find(|line| line.contains("would not be started")).map(str::to_owned)
    };
    assert_eq!(of("binary = \"/bin/sh\""), None);
    let said = |why: &str| Some(format!("perfd: tor \"own\" would not be started: {why}"));
    assert_eq!(of("binary = \"/no/tor\""), said("can't start /no/tor: No such file or directory (os error 2)"));
    assert_eq!(of("binary = \"/etc/passwd\""), said("can't start /etc/passwd: Permission denied (os error 13)"));
    assert_eq!(of("binary = \"/etc\""), said("can't start /etc: it is no file"));
    let file = of("binary = \"/bin/sh\"\ntorrc_file = \"/no/torrc\"").unwrap();
    assert!(file.contains("torrc_file /no/torrc: No such file or directory (os error 2); it must be"), "{file}");
}

#[test]
fn check_online_asks_control_where_there_is_no_public_address() {
    let tor = |control: SocketAddr| {
        format!(
            "[[tor]]\nname = \"ours\"\nsocks = \"127.0.0.1:1\"\ncontrol = \"{control}\"\ncontrol_password_file = \"/no/pw\"\n"
        )
    };
    let online = |tors: &str, experiment: &str| check("", tors, experiment, &["--online"]);
    let (code, said) = online(&tor(refused()), &experiment("a", "tor = \"ours\""));
    assert_eq!(code, Some(69), "{said}");
    let unreadable = "perfd: control of tor \"ours\": the password for tor's control port can't be read from /no/pw: ";
    assert!(said.contains(unreadable) && said.contains("1 of 1 questions had no good answer"), "{said}");

    let control =
        control_port(["250-PROTOCOLINFO 1", "250-AUTH METHODS=NULL", "250-VERSION Tor=\"0.4.9.11\"", "250 OK"]);
    let tors = tor(control).replace("control_password_file = \"/no/pw\"\n", "");
    let own = "[[tor]]\nname = \"own\"\nbinary = \"/bin/sh\"\n";
    let (code, said) = online(&format!("{tors}{own}"), &experiment("a", "tor = [\"ours\", \"own\"]"));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("perfd: control of tor \"ours\": it lets perfd in, and is tor 0.4.9.11\n"), "{said}");
    assert!(said.contains("perfd: tor \"own\" is not asked: perfd starts it, and check does not\n"), "{said}");
}

/// A control port that answers its one client's first command with these lines, and any other with 250 OK.
fn control_port<const N: usize>(info: [&'static str; N]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let commands = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        for (number, _) in commands.enumerate() {
            let answer = if number == 0 { info.join("\r\n") } else { "250 OK".to_owned() };
            (&stream).write_all(format!("{answer}\r\n").as_bytes()).unwrap();
        }
    });
    address
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
    for command in ["check", "run", "results", "tor", "rederive"] {
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
    assert_eq!(open_files.split_whitespace().nth(3), Some("956"), "{open_files}");
}

#[tokio::test]
async fn once_sends_a_payload_up() {
    let server = Server::start(config("")).await;
    let (host, socks) = (url(&server), socks_relay().to_string());
    let once = async |page: &str, args: &[&str]| {
        let mut command = perfd();
        command.args(["once", "--socks", &socks, "--url", &format!("{host}{page}"), "--upload", "50 KiB"]).args(args);
        beside(command).await
    };
    for (page, more) in [("", &[][..]), ("/", &["--optimistic"]), ("/upload/51200", &[])] {
        let output = once(page, &[&["--format", "json"], more].concat()).await;
        assert_code(&output, 0);
        let json: Value = serde_json::from_str(stdout(&output)).unwrap();
        assert_eq!((&json["kind"], &json["size_bytes"]), (&"upload".into(), &51_200.into()));
        assert_eq!(json["optimistic"], !more.is_empty());
        assert!(json["server_us"]["request"].is_i64(), "{json}");
    }
    let output = once("/upload/7", &[]).await;
    assert_code(&output, 2);
    assert!(stderr(&output).contains("it is for 7 bytes, and --upload says 51200"), "{}", stderr(&output));
    assert_code(&once("/", &["--size", "7"]).await, 2);
}

#[test]
fn once_draws_the_run_without_a_circuit() {
    let (socks, url) = (socks_relay().to_string(), format!("http://{}/file", http_server(51_200)));
    let once = |args: &[&str]| perfd_with(&[&["once", "--socks", &socks, "--url", &url, "--verbose"], args].concat());
    let output = once(&[]);
    assert_code(&output, 0);
    assert!(stdout(&output).starts_with("complete: download of 50 KiB by exit through 127.0.0.1:"), "{output:?}");
    assert!(stdout(&output).contains("\n  payload complete "), "{}", stdout(&output));
    assert_eq!(stderr(&output), "");

    // Where control of the tor fails, it is measured all the same.
    let no_port = format!("the circuit will not be known: no connection to tor's control port {}", refused());
    let other = control_port(["250 OK"]).to_string();
    for (args, said) in [
        (&["--control", &refused().to_string()][..], no_port.split(" port ").next().unwrap()),
        (&["--control", "unix:/no/socket"], "no connection to tor's control port unix:/no/socket: "),
        (&["--control", &other, "--control-password-file", "/no/pw"], "can't be read from /no/pw: "),
        (&["--control", &other], "tor's reply to PROTOCOLINFO can't be understood"),
    ] {
        let output = once(args);
        assert_code(&output, 0);
        assert!(stdout(&output).starts_with("complete: "), "{args:?}: {}", stdout(&output));
        assert!(stderr(&output).contains(said), "{args:?}: {}", stderr(&output));
    }
    for bad in [
        &["--control", "9051"][..],
        &["--control", "unix:control"],
        &["--control-password-file", "/no/pw"],
        &["--format", "json"],
    ] {
        assert_code(&once(bad), 2);
    }
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
async fn one_result_is_drawn_or_printed_in_every_format() {
    let server = Server::start(config("")).await;
    let id = "0123456789abcdef0123456789abcdef";
    add(&server.store, vec![new_result(u128::from_str_radix(id, 16).unwrap(), 0)]).await;
    let drawn = results(&url(&server), &[&id.to_ascii_uppercase()]).await;
    assert_code(&drawn, 0);
    assert!(
        stdout(&drawn).starts_with(&format!("complete: download of 50 KiB by exit through tor\nrun {id},")),
        "{drawn:?}"
    );
    for format in ["json", "tpf", "csv"] {
        let output = results(&url(&server), &[id, "--format", format]).await;
        assert_code(&output, 0);
        assert_eq!(output.stdout, server.get(&format!("/results/{id}.{format}")).await.body);
    }
    let missing = results(&url(&server), &[&id.replace('0', "1")]).await;
    assert_code(&missing, 1);
    assert!(stderr(&missing).contains("refuses: there is no result 11"), "{}", stderr(&missing));
    for bad in ["12345", "0123456z", "0123456789abcdef0123456789abcdef0"] {
        let output = results(&url(&server), &[bad]).await;
        assert_code(&output, 2);
        assert!(stderr(&output).contains("6 to 32 hexadecimal digits"), "{}", stderr(&output));
    }
    assert_code(&results(&url(&server), &[id, "--limit", "3"]).await, 2);
}

#[tokio::test]
async fn a_service_that_refuses_is_quoted() {
    // As a service answers that knows beginnings of names, and finds two.
    let reason = "more than one result begins with abcdef: abcdef01, abcdef02";
    let body = serde_json::json!({ "error": reason }).to_string();
    let answer = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        lines.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
        (&stream).write_all(answer.as_bytes()).unwrap();
        first
    });
    let output = results(&format!("http://{address}/behind"), &["abcdef"]).await;
    assert_code(&output, 2);
    assert_eq!(stderr(&output), format!("perfd: http://{address}/behind refuses: {reason}\n"));
    assert_eq!(asked.join().unwrap(), "GET /behind/results/abcdef.json HTTP/1.1");
}

#[tokio::test]
async fn tors_of_a_service_are_shown() {
    let server = Server::start(config("")).await;
    let tor = async |args: &[&str]| {
        let mut command = perfd();
        command.args(["tor", "--server", &url(&server)]).args(args);
        beside(command).await
    };
    let table = tor(&[]).await;
    assert_code(&table, 0);
    let expected = "\
NAME  CONDITION     VERSION  BOOTSTRAP  GUARD  CIRCUITS  CONNECTED SINCE / PROBLEM
tor   uncontrolled  -        -          -      -         -
";
    assert_eq!(stdout(&table), expected);
    let one = tor(&["tor"]).await;
    assert_code(&one, 0);
    assert!(
        stdout(&one).starts_with("name             tor\ncondition        uncontrolled\nsocks            127.0.0.1:9\n")
    );
    for (args, page) in [(&["--json"][..], "/tors"), (&["--json", "tor"], "/tors/tor")] {
        let output = tor(args).await;
        assert_code(&output, 0);
        assert_eq!(output.stdout, server.get(page).await.body);
    }
    let missing = tor(&["a/b"]).await;
    assert_code(&missing, 1);
    assert!(stderr(&missing).contains("refuses: there is no such tor"), "{}", stderr(&missing));
    let mut command = perfd();
    command.args(["tor", "--server", &format!("http://{}", refused())]);
    assert_code(&beside(command).await, 69);
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
