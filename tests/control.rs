//! The client of a control port against a tor that follows a script: well, badly, and not at all.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use perfd::config::ControlAddress;
use perfd::tor::control::{Commands, Connection, ControlError, Reply, Version, authenticate, open, start};
use sha2::Sha256;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;
use tokio::time::timeout;

/// The peer's end of a connection.
struct Tor<S>(Option<BufReader<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> Tor<S> {
    /// The next command.
    async fn asked(&mut self) -> String {
        let mut line = String::new();
        self.stream().read_line(&mut line).await.expect("a command");
        line.strip_suffix("\r\n").expect("CR LF after a command").to_owned()
    }

    async fn says(&mut self, text: &str) {
        let text = text.replace('\n', "\r\n");
        self.stream().write_all(text.as_bytes()).await.expect("perfd reads");
    }

    async fn answers(&mut self, command: &str, reply: &str) {
        assert_eq!(self.asked().await, command);
        self.says(reply).await;
    }

    fn hangs_up(&mut self) {
        self.0 = None;
    }

    fn stream(&mut self) -> &mut BufReader<S> {
        self.0.as_mut().expect("connected")
    }
}

/// What came of a conversation.
#[derive(Debug)]
struct Told<T> {
    outcome: T,
    events: Vec<String>,
    end: ControlError,
}

/// Lets a script play tor and a client ask it, over the two ends of a connection; tor hangs up when both are done.
async fn over<S, P, T>(
    (tor, perfd): (S, P),
    script: impl AsyncFnOnce(&mut Tor<S>),
    client: impl AsyncFnOnce(Commands) -> T,
) -> Told<T>
where
    S: AsyncRead + AsyncWrite + Unpin,
    P: AsyncRead + AsyncWrite + Unpin,
{
    let (commands, driver) = start(perfd);
    let events = RefCell::new(Vec::new());
    let began = Instant::now();
    let driving = driver.run(|at, text| {
        assert!(began <= at && at <= Instant::now());
        events.borrow_mut().push(String::from_utf8_lossy(text).into_owned());
    });
    let talking = async {
        let mut tor = Tor(Some(BufReader::new(tor)));
        let ((), outcome) = tokio::join!(script(&mut tor), client(commands));
        outcome
    };
    let both = async { tokio::join!(talking, driving) };
    let (outcome, end) = timeout(Duration::from_secs(20), both).await.expect("the conversation ends");
    Told { outcome, events: events.into_inner(), end }
}

/// As [`over`], over TCP.
async fn talk<T>(
    script: impl AsyncFnOnce(&mut Tor<tokio::net::TcpStream>),
    client: impl AsyncFnOnce(Commands) -> T,
) -> Told<T> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = ControlAddress::Tcp(listener.local_addr().unwrap());
    let (tor, perfd) = tokio::join!(listener.accept(), open(&address));
    over((tor.unwrap().0, perfd.unwrap()), script, client).await
}

/// Authenticates with a tor that follows the script.
async fn authenticated(
    password: Option<&str>,
    script: impl AsyncFnOnce(&mut Tor<tokio::net::TcpStream>),
) -> Result<Version, ControlError> {
    talk(script, async |commands| authenticate(&commands, password).await).await.outcome
}

const VERSION: &str = "250-VERSION Tor=\"0.4.9.11\"\n250 OK\n";

fn info(auth: &str) -> String {
    format!("250-PROTOCOLINFO 1\n250-AUTH METHODS={auth}\n{VERSION}")
}

fn version(text: &str) -> Version {
    Version(text.to_owned())
}

const COOKIE: [u8; 32] = [0xc0; 32];

/// A folder with a cookie, whose name takes escapes.
fn cookie() -> (tempfile::TempDir, PathBuf, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a \"cookie\"");
    std::fs::write(&path, COOKIE).unwrap();
    let file = format!("COOKIEFILE=\"{}/a \\\"c\\157okie\\\"\"", folder.path().display());
    (folder, path, file)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}

#[tokio::test]
async fn a_tor_that_asks_for_nothing_gets_nothing() {
    let taken = authenticated(Some("pw"), async |tor| {
        tor.answers("PROTOCOLINFO 1", &info("NULL,HASHEDPASSWORD")).await;
        tor.answers("AUTHENTICATE", "250 OK\n").await;
    });
    assert_eq!(taken.await.unwrap(), version("0.4.9.11"));
}

#[tokio::test]
async fn a_version_that_protocol_info_leaves_out_is_asked_for() {
    let taken = authenticated(None, async |tor| {
        tor.answers("PROTOCOLINFO 1", "250-AUTH METHODS=NULL\n250 OK\n").await;
        tor.answers("AUTHENTICATE", "250 OK\n").await;
        tor.answers("GETINFO version", "250-version=0.4.10.1-alpha-dev (git-1)\n250 OK\n").await;
    });
    assert_eq!(taken.await.unwrap(), version("0.4.10.1-alpha-dev (git-1)"));
}

#[tokio::test]
async fn a_password_is_sent_in_quotes_and_never_shown() {
    const PASSWORD: &str = "open \"sesame\" \\";
    const SENT: &str = r#"AUTHENTICATE "open \"sesame\" \\""#;
    let taken = authenticated(Some(PASSWORD), async |tor| {
        tor.answers("PROTOCOLINFO 1", &info("COOKIE,HASHEDPASSWORD COOKIEFILE=\"/nowhere\"")).await;
        tor.answers(SENT, "250 OK\n").await;
    });
    assert_eq!(taken.await.unwrap(), version("0.4.9.11"));

    let refused = authenticated(Some(PASSWORD), async |tor| {
        tor.answers("PROTOCOLINFO 1", &info("HASHEDPASSWORD")).await;
        tor.answers(SENT, "515 Authentication failed: sesame is wrong\n").await;
        tor.hangs_up();
    });
    assert_eq!(
        refused.await.unwrap_err().to_string(),
        "tor did not take the password for its control port (515 Authentication failed: […] is wrong); it must be the \
         one that HashedControlPassword in its torrc was made of (tor --hash-password)"
    );

    let split = authenticated(Some("a\r\nSIGNAL HALT"), async |tor| {
        tor.answers("PROTOCOLINFO 1", &info("HASHEDPASSWORD")).await;
    });
    assert!(matches!(split.await, Err(ControlError::NotACommand { command }) if command == "AUTHENTICATE"));
}

#[tokio::test]
async fn a_password_that_is_missing_is_asked_for() {
    let none = authenticated(None, async |tor| tor.answers("PROTOCOLINFO 1", &info("HASHEDPASSWORD")).await);
    assert!(matches!(none.await, Err(ControlError::NoPassword)));
}

#[tokio::test]
async fn a_cookie_is_sent() {
    let (_folder, path, file) = cookie();
    let taken = authenticated(None, async |tor| {
        tor.answers("PROTOCOLINFO 1", &info(&format!("COOKIE {file}"))).await;
        tor.answers(&format!("AUTHENTICATE {}", hex(&COOKIE)), "250 OK\n").await;
    });
    assert_eq!(taken.await.unwrap(), version("0.4.9.11"));

    let refused = authenticated(None, async |tor| {
        tor.answers("PROTOCOLINFO 1", &info(&format!("COOKIE {file}"))).await;
        let key = tor.asked().await;
        tor.says(&format!("515 not {}\n", key.replace("AUTHENTICATE ", ""))).await;
    });
    let expected = format!(
        "tor did not take the cookie {} (515 not […]); does another tor write the same file? Give each tor its own \
         CookieAuthFile",
        path.display()
    );
    assert_eq!(refused.await.unwrap_err().to_string(), expected);
}

fn safecookie(key: &str, cookie: &[u8], ours: &str, theirs: &[u8]) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(format!("Tor safe cookie authentication {key} hash").as_bytes()).unwrap();
    let ours: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&ours[2 * i..2 * i + 2], 16).unwrap()).collect();
    [cookie, &ours, theirs].iter().for_each(|part| mac.update(part));
    hex(&mac.finalize().into_bytes())
}

#[tokio::test]
async fn a_tor_that_knows_the_cookie_gets_a_proof_and_another_gets_nothing() {
    let (_folder, path, file) = cookie();
    let nonce = [0x55; 32];
    for (theirs, knows) in [(COOKIE, true), ([0xc1; 32], false)] {
        let taken = authenticated(None, async |tor| {
            tor.answers("PROTOCOLINFO 1", &info(&format!("COOKIE,SAFECOOKIE {file}"))).await;
            let asked = tor.asked().await;
            let ours = asked.strip_prefix("AUTHCHALLENGE SAFECOOKIE ").expect("a challenge");
            assert_eq!(ours.len(), 64);
            let hash = safecookie("server-to-controller", &theirs, ours, &nonce);
            tor.says(&format!("250 AUTHCHALLENGE SERVERHASH={hash} SERVERNONCE={}\n", hex(&nonce))).await;
            if knows {
                let proof = safecookie("controller-to-server", &COOKIE, ours, &nonce);
                tor.answers(&format!("AUTHENTICATE {proof}"), "250 OK\n").await;
            }
        });
        match taken.await {
            Ok(taken) => assert!(knows && taken == version("0.4.9.11")),
            Err(error) => {
                let path = path.display();
                assert!(!knows, "{error}");
                assert_eq!(
                    error.to_string(),
                    format!(
                        "what answers on the control port does not know tor's cookie {path}: another program, or \
                         another tor that names the same file; perfd told it nothing"
                    )
                );
            }
        }
    }
}

#[tokio::test]
async fn a_challenge_that_is_none_is_unclear() {
    let (_folder, _path, file) = cookie();
    let taken = authenticated(None, async |tor| {
        tor.answers("PROTOCOLINFO 1", &info(&format!("SAFECOOKIE {file}"))).await;
        tor.asked().await;
        tor.says("250 AUTHCHALLENGE SERVERHASH=00 SERVERNONCE=00\n").await;
    });
    assert!(matches!(taken.await, Err(ControlError::Unclear { command: "AUTHCHALLENGE", .. })));
}

#[tokio::test]
async fn a_cookie_that_is_not_there_is_named_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cookie");
    std::fs::create_dir(folder.path().join("folder")).unwrap();
    std::fs::write(folder.path().join("key"), [7; 64]).unwrap();
    let nothing = "perfd sends nothing of it; is it tor that answers, and its CookieAuthFile?";
    let cases = [
        (
            path,
            "No such file or directory (os error 2); if tor runs in a container, in a chroot or on another machine, use a \
             password (HashedControlPassword in its torrc, `control_password_file` beside `control` in perfd's \
             configuration)"
                .to_owned(),
        ),
        (folder.path().join("folder"), format!("it is no plain file; {nothing}")),
        (folder.path().join("key"), format!("it has not 32 bytes, so it is no cookie; {nothing}")),
    ];
    for (path, expected) in cases {
        for method in ["COOKIE", "SAFECOOKIE"] {
            let none = authenticated(None, async |tor| {
                let auth = info(&format!("{method} COOKIEFILE=\"{}\"", path.display()));
                tor.answers("PROTOCOLINFO 1", &auth).await;
            });
            let expected = format!("can't read tor's cookie {}: {expected}", path.display());
            assert_eq!(none.await.unwrap_err().to_string(), expected);
        }
    }
}

/// Asks one thing and another.
async fn twice(commands: Commands) -> (Result<Reply, ControlError>, Result<Reply, ControlError>) {
    (commands.ask("GETINFO a").await, commands.ask("GETINFO b").await)
}

#[tokio::test]
async fn events_come_between_the_lines_of_replies() {
    let told = talk(
        async |tor| {
            tor.says("650 BW 1 1\n650 NOVELTY \u{e9} x=\"\n").await;
            let reply = "250+a=\nx\n650 BW 9 9\n250 OK\n..y\n.\n650 BW 2 2\n250-c=d\n650 BW 3 3\n250 OK\n650 BW 4 4\n";
            tor.answers("GETINFO a", reply).await;
            tor.says("650-CONF_CHANGED\n650-Nickname=x\n").await;
            tor.answers("GETINFO b", "250-b=1\n650 OK\n250 OK\n").await;
            tor.says("650+NS\nr x\n250 OK\n650 BW 9 9\n.\n650 OK\n650 BW 5 5\n").await;
        },
        twice,
    );
    let Told { outcome: (first, second), events, end } = told.await;
    let first = first.unwrap();
    assert_eq!(first.lines, ["a=\nx\n650 BW 9 9\n250 OK\n.y", "c=d", "OK"]);
    assert_eq!((first.value("a"), first.value("c")), (Some("x\n650 BW 9 9\n250 OK\n.y"), Some("d")));
    assert_eq!(second.unwrap().value("b"), Some("1"));
    let expected = ["BW 1 1", "NOVELTY \u{e9} x=\"", "BW 2 2", "BW 3 3", "BW 4 4", "CONF_CHANGED", "NS", "BW 5 5"];
    assert_eq!(events, expected);
    assert!(matches!(end, ControlError::Closed { within_line: false }), "{end}");
}

#[tokio::test]
async fn a_refusal_ends_its_command_alone() {
    let told = talk(
        async |tor| {
            tor.answers("GETINFO a", "552-Unrecognized key \"a\"\n552 \u{1b}[31mreally\n").await;
            tor.answers("GETINFO b", "250-b=1\n250 OK\n").await;
        },
        twice,
    );
    let Told { outcome: (first, second), .. } = told.await;
    let expected = "tor refused GETINFO: 552 Unrecognized key \"a\"; \\u{1b}[31mreally";
    assert_eq!(first.unwrap_err().to_string(), expected);
    assert_eq!(second.unwrap().value("b"), Some("1"));
}

#[tokio::test]
async fn commands_of_many_askers_get_their_own_replies() {
    let told = talk(
        async |tor| {
            for _ in 0..200 {
                let asked = tor.asked().await;
                let number = asked.strip_prefix("GETINFO ").expect("GETINFO");
                tor.says(&format!("250-{number}={number}\n650 BW 1 1\n250 OK\n")).await;
            }
        },
        async |commands| {
            let asks = (0..200).map(|number| {
                let commands = commands.clone();
                async move {
                    let reply = commands.ask(&format!("GETINFO {number}")).await.unwrap();
                    assert_eq!(reply.value(&number.to_string()), Some(number.to_string().as_str()));
                }
            });
            futures_util::future::join_all(asks).await.len()
        },
    );
    let told = told.await;
    assert_eq!((told.outcome, told.events.len()), (200, 200));
}

#[tokio::test]
async fn what_is_no_command_is_not_sent() {
    let told = talk(
        async |tor| tor.answers("GETINFO a", "250 OK\n").await,
        async |commands| {
            for wrong in ["", " ", "+LOADCONF", "GETINFO a\r\nSIGNAL HALT", "GETINFO\na", "GETINFO\ra", "GETINFO \0"] {
                let error = commands.ask(wrong).await.unwrap_err();
                assert!(matches!(error, ControlError::NotACommand { .. }), "{wrong:?}: {error}");
            }
            commands.ask("GETINFO a").await
        },
    );
    assert!(told.await.outcome.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_late_reply_is_not_taken_for_the_next_one() {
    // In memory, as time can stand still only there.
    let told = over(
        tokio::io::duplex(1024),
        async |tor| {
            assert_eq!(tor.asked().await, "GETINFO a");
            let next = tor.asked().await;
            assert_eq!(next, "GETINFO b");
            tor.says("250-a=1\n250 OK\n250-b=2\n250 OK\n").await;
        },
        async |commands| {
            let short = Duration::from_millis(20);
            let late = commands.ask_within("GETINFO a", short).await;
            (late, commands.ask("GETINFO b").await)
        },
    );
    let (late, next) = told.await.outcome;
    let expected = "tor did not answer GETINFO within 0.02 s; it is overloaded or stuck: see its log, and restart it if it stays so";
    assert_eq!(late.unwrap_err().to_string(), expected);
    assert_eq!(next.unwrap().lines, ["b=2", "OK"]);
}

#[tokio::test(start_paused = true)]
async fn a_tor_that_says_nothing_holds_nobody_up() {
    let told = over(
        tokio::io::duplex(64),
        async |tor| {
            tor.asked().await;
        },
        async |commands| authenticate(&commands, None).await,
    );
    let error = told.await.outcome.unwrap_err();
    assert!(
        matches!(&error, ControlError::Stalled { command, within }
        if command == "PROTOCOLINFO" && *within == Duration::from_secs(10)),
        "{error}"
    );
}

#[tokio::test]
async fn a_tor_that_does_not_read_is_still_read_from() {
    // tor takes 64 bytes of a long command, and has said all its events before it takes the rest.
    let (tor, perfd) = tokio::io::duplex(64);
    let command = format!("GETINFO {}", "x".repeat(1000));
    let told = over(
        (tor, perfd),
        async |tor| {
            for number in 0..1000 {
                tor.says(&format!("650 BW {number} {number}\n")).await;
            }
            tor.answers(&command, "250 OK\n").await;
        },
        async |commands| commands.ask(&command).await,
    );
    let told = told.await;
    assert_eq!((told.outcome.unwrap().lines, told.events.len()), (vec!["OK".to_owned()], 1000));
}

#[tokio::test(start_paused = true)]
async fn askers_that_gave_up_before_their_turn_are_passed_over() {
    let given_up = Notify::new();
    let told = over(
        tokio::io::duplex(1 << 16),
        async |tor| {
            given_up.notified().await;
            // As many as may be without a reply; what nobody waits for any more is not sent.
            for number in 0..64 {
                assert_eq!(tor.asked().await, format!("GETINFO {number}"));
            }
            tor.says(&"250 OK\n".repeat(64)).await;
            tor.answers("GETINFO last", "250-last=1\n250 OK\n").await;
        },
        async |commands| {
            let asks = (0..100).map(|number| {
                let (commands, command) = (commands.clone(), format!("GETINFO {number}"));
                async move { commands.ask_within(&command, Duration::from_millis(50)).await }
            });
            let late = futures_util::future::join_all(asks).await;
            given_up.notify_one();
            assert!(late.iter().all(|reply| matches!(reply, Err(ControlError::Stalled { .. }))));
            commands.ask("GETINFO last").await
        },
    );
    assert_eq!(told.await.outcome.unwrap().value("last"), Some("1"));
}

#[tokio::test]
async fn a_connection_that_closes_is_told_where() {
    for (text, within) in [("650 BW 1 1\n", false), ("650 BW 1 1\n250-a=b", true)] {
        let told = talk(
            async |tor| {
                tor.asked().await;
                tor.says(text).await;
                tor.hangs_up();
            },
            twice,
        );
        let Told { outcome: (first, second), events, end } = told.await;
        for outcome in [first, second] {
            assert_eq!(outcome.unwrap_err().to_string(), "GETINFO was not answered: the control connection has ended");
        }
        assert_eq!(events, ["BW 1 1"]);
        assert!(matches!(end, ControlError::Closed { within_line } if within_line == within), "{end}");
    }
}

#[tokio::test]
async fn what_was_said_last_is_heard_though_nothing_can_be_sent() {
    let told = over(
        tokio::io::duplex(1024),
        async |tor| {
            tor.says("650 BW 1 1\n650 BW 2 2\n").await;
            tor.hangs_up();
        },
        async |commands| commands.ask("GETINFO a").await,
    );
    let Told { outcome, events, end } = told.await;
    assert!(matches!(outcome, Err(ControlError::Ended { .. })), "{outcome:?}");
    assert_eq!(events, ["BW 1 1", "BW 2 2"]);
    assert!(matches!(end, ControlError::Closed { within_line: false }), "{end}");
}

/// A tor that never stops talking, and counts how often it was read from.
struct Flood(Rc<Cell<usize>>);

impl AsyncRead for Flood {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, room: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.set(self.0.get() + 1);
        let line = b"650 BW 1 1\r\n";
        while room.remaining() >= line.len() {
            room.put_slice(line);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Flood {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_flood_leaves_others_their_turn_after_each_read() {
    let reads = Rc::new(Cell::new(0));
    let (_commands, driver) = start(Flood(reads.clone()));
    let events = Cell::new(0);
    tokio::select! {
        biased;
        end = driver.run(|_, _| events.set(events.get() + 1)) => panic!("{end}"),
        () = async {
            for turn in 1..=100 {
                assert_eq!(reads.get(), turn);
                tokio::task::yield_now().await;
            }
        } => {}
    }
    assert!(events.get() >= 100 * 5000, "{}", events.get());
}

#[tokio::test]
async fn a_line_of_ten_megabytes_is_passed_over() {
    let told = talk(
        async |tor| {
            tor.says("650 BW 1 1\n650 NOVELTY ").await;
            for _ in 0..10_000 {
                tor.says(&"x".repeat(1000)).await;
            }
            tor.says("\n650 BW 2 2\n").await;
            assert_eq!(tor.asked().await, "GETINFO a");
            tor.says("250-a=").await;
            for _ in 0..10_000 {
                tor.says(&"x".repeat(1000)).await;
            }
            tor.says("\n250 OK\n650 BW 3 3\n").await;
            tor.answers("GETINFO b", "250-b=1\n250 OK\n").await;
        },
        twice,
    );
    let Told { outcome: (first, second), events, .. } = told.await;
    assert!(matches!(first, Err(ControlError::TooLong { command }) if command == "GETINFO"));
    assert_eq!(second.unwrap().value("b"), Some("1"));
    assert_eq!(events, ["BW 1 1", "BW 2 2", "BW 3 3"]);
}

#[tokio::test]
async fn a_reply_of_twenty_megabytes_is_thrown_away() {
    let told = talk(
        async |tor| {
            assert_eq!(tor.asked().await, "GETINFO a");
            tor.says("250+a=\n").await;
            let lines = format!("{}\n", "x".repeat(999)).repeat(100);
            for _ in 0..200 {
                tor.says(&lines).await;
            }
            tor.says(".\n250 OK\n650 BW 1 1\n").await;
            tor.answers("GETINFO b", "250-b=1\n250 OK\n").await;
        },
        twice,
    );
    let Told { outcome: (first, second), events, .. } = told.await;
    let expected = "tor's reply to GETINFO is longer than 16 MiB, or has a line of more than 1 MiB; it was thrown away";
    assert_eq!(first.unwrap_err().to_string(), expected);
    assert_eq!((second.unwrap().value("b"), events), (Some("1"), vec!["BW 1 1".to_owned()]));
}

#[tokio::test]
async fn what_nobody_asked_for_or_understands_ends_the_connection() {
    let unasked = "came over the control connection as a reply to nothing; perfd connects anew";
    let malformed =
        "came over the control connection, which is none of its protocol; is this the address of tor's ControlPort?";
    let long = format!("250 {}", "x".repeat(2000));
    let cases = [
        ("250 OK", "\"250 OK\"", unasked),
        ("250-a=b", "\"250-a=b\"", unasked),
        ("250+a=", "\"250+a=\"", unasked),
        (&long, &format!("\"250 {}…\"", "x".repeat(76)), unasked),
        ("HTTP/1.1 400 Bad \"R\"\u{1b}", r#""HTTP/1.1 400 Bad \"R\"\x1b""#, malformed),
        ("", "\"\"", malformed),
        ("700 x", "\"700 x\"", malformed),
    ];
    for (line, quoted, what) in cases {
        let told = talk(async |tor| tor.says(&format!("650 BW 1 1\n{line}\n650 BW 2 2\n")).await, async |_commands| {});
        let told = told.await;
        assert_eq!((told.end.to_string(), told.events), (format!("{quoted} {what}"), vec!["BW 1 1".to_owned()]));
    }
}

#[tokio::test]
async fn a_unix_socket_does_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let listener = UnixListener::bind(&path).unwrap();
    let address = ControlAddress::Unix(path);
    let (tor, perfd) = tokio::join!(listener.accept(), open(&address));
    let perfd = perfd.unwrap();
    assert!(matches!(perfd, Connection::Unix(_)));
    let told = over(
        (tor.unwrap().0, perfd),
        async |tor| {
            tor.answers("PROTOCOLINFO 1", &info("NULL")).await;
            tor.answers("AUTHENTICATE", "250 OK\n").await;
            tor.says("650 BW 1 1\n").await;
        },
        async |commands| authenticate(&commands, None).await,
    );
    let told = told.await;
    assert_eq!((told.outcome.unwrap(), told.events), (version("0.4.9.11"), vec!["BW 1 1".to_owned()]));
}

#[tokio::test]
async fn an_address_where_no_tor_is_is_named_with_a_remedy() {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = port.local_addr().unwrap();
    drop(port);
    let error = open(&ControlAddress::Tcp(address)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "no connection to tor's control port {address}: Connection refused (os error 111); is tor running, and is \
             `ControlPort {address}` in its torrc?"
        )
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control");
    let missing = |error: &str| {
        let path = path.display();
        format!(
            "no connection to tor's control port unix:{path}: {error}; is tor running, and is `ControlSocket {path}` in \
             its torrc?"
        )
    };
    let error = open(&ControlAddress::Unix(path.clone())).await.unwrap_err();
    assert_eq!(error.to_string(), missing("No such file or directory (os error 2)"));
    drop(UnixListener::bind(&path).unwrap());
    let error = open(&ControlAddress::Unix(path.clone())).await.unwrap_err();
    assert_eq!(error.to_string(), missing("Connection refused (os error 111)"));
}

/// In reads of a few bytes and of many.
#[tokio::test]
async fn a_recorded_conversation_is_heard_as_it_was() {
    let recording = std::fs::read_to_string("tests/recorded/control-port-tor-0.4.9.11.txt").unwrap();
    let lines: Vec<_> =
        recording.lines().map(|line| line.split_once(' ').expect("a time before each line").1).collect();
    let codes = [250, 250, 250, 552, 250, 250, 250, 250, 250, 250, 510, 250];
    for size in [7, 4096, 1 << 20] {
        let told = over(
            tokio::io::duplex(size),
            async |tor| {
                let (mut within_reply, mut within_data) = (false, false);
                for line in &lines {
                    if !within_data && !line.starts_with("650 ") {
                        // The commands are not in the recording; each comes before the first line of its reply.
                        if !within_reply {
                            tor.asked().await;
                        }
                        within_reply = line.get(3..4) != Some(" ");
                    }
                    within_data = if within_data { *line != "." } else { line.starts_with("250+") };
                    tor.says(&format!("{line}\n")).await;
                }
            },
            async |commands| {
                let mut replies = Vec::new();
                for number in 0..codes.len() {
                    replies.push(match commands.ask(&format!("GETINFO {number}")).await {
                        Ok(reply) => (reply.code, reply.lines),
                        Err(ControlError::Refused { code, text, .. }) => (code, vec![text]),
                        Err(other) => panic!("{other}"),
                    });
                }
                replies
            },
        );
        let Told { outcome: replies, events, end } = told.await;
        assert_eq!(replies.iter().map(|(code, _)| *code).collect::<Vec<_>>(), codes);
        assert_eq!(replies[3].1, ["Unrecognized event \"NOSUCH\""]);
        let [circuits, streams, ok] = replies[9].1.as_slice() else { panic!("{:?}", replies[9]) };
        assert_eq!((circuits.lines().count(), streams.as_str(), ok.as_str()), (60, "stream-status=", "OK"));

        let mut counts = BTreeMap::new();
        for event in &events {
            *counts.entry(event.split(' ').next().unwrap_or_default()).or_insert(0) += 1;
        }
        let expected = [
            ("BUILDTIMEOUT_SET", 1),
            ("CIRC", 323),
            ("CIRC_BW", 502),
            ("CIRC_MINOR", 41),
            ("CONN_BW", 44),
            ("GUARD", 20),
            ("HS_DESC", 44),
            ("STATUS_CLIENT", 9),
            ("STREAM", 143),
            ("STREAM_BW", 34),
        ];
        assert_eq!(counts.into_iter().collect::<Vec<_>>(), expected);
        let sent: Vec<_> = lines.iter().filter_map(|line| line.strip_prefix("650 ")).collect();
        assert_eq!(events, sent);
        assert!(matches!(end, ControlError::Closed { within_line: false }), "{end}");
    }
}

/// tor's events are small writes, which wait for each other's acknowledgements (Nagle). Where the system puts
/// these off, two events of a few ms apart seem to come together, 40 ms late.
#[tokio::test]
async fn small_events_are_not_held_up_by_put_off_acknowledgements() {
    const PAIRS: usize = 40;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = ControlAddress::Tcp(listener.local_addr().unwrap());
    let (heard, both) = (RefCell::new(Vec::new()), Notify::new());
    let tor = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..PAIRS {
            stream.write_all(b"650 GUARD ENTRY x UP\r\n").await.unwrap();
            stream.write_all(b"650 GUARD ENTRY x DOWN\r\n").await.unwrap();
            both.notified().await;
        }
    };
    let perfd = async {
        let (_commands, driver) = start(open(&address).await.unwrap());
        driver
            .run(|at, line| {
                heard.borrow_mut().push(at);
                if line.ends_with(b"DOWN") {
                    both.notify_one();
                }
            })
            .await
    };
    timeout(Duration::from_secs(30), async { tokio::join!(tor, perfd) }).await.unwrap();
    let heard = heard.into_inner();
    let late = heard.chunks(2).filter(|pair| pair[1] - pair[0] > Duration::from_millis(30)).count();
    assert_eq!(heard.len(), 2 * PAIRS);
    assert!(late < PAIRS / 4, "{late} of {PAIRS} second events came late");
}
