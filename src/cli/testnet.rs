//! `perfd testnet`: a private Tor network on loopback, for demos, tests and development.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use super::exit::{INTERRUPTED, NOT_UP};
use super::output;
use crate::testnet::{self, Options, Stage, Status, TestNet};

/// Arguments of `perfd testnet`.
#[derive(Args, Debug)]
pub struct TestnetArgs {
    #[command(subcommand)]
    command: TestnetCommand,
}

#[derive(Subcommand, Debug)]
enum TestnetCommand {
    /// Bring a private Tor network up on loopback: an authority, six relays, a client
    Up {
        #[command(flatten)]
        place: Place,
        /// The folder that holds tor and tor-gencert [default: $PERFD_TOR_DIR, else PATH]
        #[arg(long, value_name = "DIR")]
        tor_dir: Option<PathBuf>,
        /// How long it may take: 90s, 2m
        #[arg(long, value_name = "TIME", default_value = "90s", value_parser = super::duration)]
        deadline: Duration,
        /// Stay, and take the network down on Ctrl-C or SIGTERM; it ends also if perfd is killed
        #[arg(long)]
        foreground: bool,
    },
    /// Take it down; its folder stays, for its logs, until the next `up`
    Down {
        #[command(flatten)]
        place: Place,
    },
    /// Show whether it is up; exit code 0 if every tor runs, else 3
    Status {
        #[command(flatten)]
        place: Place,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
struct Place {
    /// The network's folder [default: perfd-testnet in $XDG_RUNTIME_DIR, else perfd-testnet-UID in the temporary folder]
    #[arg(long)]
    dir: Option<PathBuf>,
}

/// Runs `perfd testnet`.
pub fn run(args: TestnetArgs) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        match args.command {
            TestnetCommand::Up { place, tor_dir, deadline, foreground } => {
                let owner = foreground.then(std::process::id);
                up(Options { dir: place.dir(), tor_dir, deadline, owner }).await
            }
            TestnetCommand::Down { place } => down(place.dir()).await,
            TestnetCommand::Status { place, json } => status(place.dir(), json),
        }
    })
}

impl Place {
    fn dir(self) -> PathBuf {
        let runtime_dir = || std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        self.dir.unwrap_or_else(|| match runtime_dir() {
            Some(dir) => dir.join("perfd-testnet"),
            None => std::env::temp_dir().join(format!("perfd-testnet-{}", nix::unistd::geteuid())),
        })
    }
}

/// How often `--foreground` looks whether its tors still run.
const LOOK_AFTER: Duration = Duration::from_secs(1);

async fn up(options: Options) -> anyhow::Result<u8> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let foreground = options.owner.is_some();
    let mut display = Display::new();
    let net = tokio::select! {
        net = testnet::up(options, |stage| display.show(stage)) => Some(net),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    display.finish();
    let Some(net) = net else { return Ok(INTERRUPTED) };
    let net = net?;
    print_addresses(&net);
    if !foreground || display.already_up {
        return Ok(super::exit::OK);
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        ended = until_one_ends(&net) => {
            let why = ended?;
            // Should this fail, as when somebody else does the same, the rest ends with its owner: us.
            let _ = testnet::down(&net.dir).await;
            anyhow::bail!("the network went down: {why}");
        }
    }
    down(net.dir).await
}

async fn until_one_ends(net: &TestNet) -> anyhow::Result<String> {
    loop {
        match testnet::status(&net.dir)? {
            Some(Status { ended, .. }) if ended.is_empty() => tokio::time::sleep(LOOK_AFTER).await,
            Some(Status { ended, .. }) => return Ok(format!("{} ended", ended.join(", "))),
            None => return Ok("somebody took it down".to_owned()),
        }
    }
}

async fn down(dir: PathBuf) -> anyhow::Result<u8> {
    match testnet::down(&dir).await? {
        0 => output::line(format_args!("no network was up in {}", dir.display())),
        count => output::line(format_args!("down: {count} tors ended")),
    }
    Ok(super::exit::OK)
}

fn status(dir: PathBuf, json: bool) -> anyhow::Result<u8> {
    let status = testnet::status(&dir)?;
    if json {
        output::line(serde_json::to_string_pretty(&status)?);
    } else {
        match &status {
            None => output::line(format_args!("no network is up in {}", dir.display())),
            Some(Status { net, ended }) => {
                for node in &net.nodes {
                    let state = if ended.contains(&node.name) { "ended" } else { "up" };
                    output::line(format_args!("{state:5} {:9} {:12} pid {}", node.name, node.address, node.pid));
                }
                print_addresses(net);
                for authority in &net.authorities {
                    output::line(format_args!("authority {authority}"));
                }
            }
        }
    }
    let all_up = status.is_some_and(|status| status.ended.is_empty());
    Ok(if all_up { super::exit::OK } else { NOT_UP })
}

fn print_addresses(net: &TestNet) {
    output::line(format_args!("socks {}", net.socks));
    output::line(format_args!("control {}", net.control));
    output::line(format_args!("cookie {}", net.cookie.display()));
    output::line(format_args!("dir {}", net.dir.display()));
}

/// The stages on stderr: on a terminal in one line that changes, else a line each.
struct Display {
    start: Instant,
    terminal: bool,
    already_up: bool,
}

impl Display {
    fn new() -> Self {
        Display { start: Instant::now(), terminal: std::io::stderr().is_terminal(), already_up: false }
    }

    fn show(&mut self, stage: Stage) {
        self.already_up |= stage == Stage::AlreadyUp;
        let seconds = self.start.elapsed().as_secs_f64();
        let mut err = std::io::stderr();
        // Nobody reads it, then; the network comes up all the same.
        let _ = if self.terminal {
            write!(err, "\r\x1b[K{seconds:5.1} s  {stage}").and_then(|()| err.flush())
        } else {
            writeln!(err, "{seconds:5.1} s  {stage}")
        };
    }

    fn finish(&self) {
        if self.terminal {
            let _ = writeln!(std::io::stderr());
        }
    }
}
