//! `perfd check`: is the configuration right, and does the public address answer?

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use super::exit::{CONFIG, Exit, FAILED, OrExit, UNAVAILABLE};
use crate::config::{Config, PublicAddress, Tor};
use crate::measurement::RunId;
use crate::payload::Secret;

/// A circuit must be built and an answer fetched in this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Check the configuration and print it as understood
///
/// Says what is wrong by file, line and key, or prints the configuration with everything that the file
/// leaves to its defaults.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
    /// Also ask through each tor whether the public address answers, and whether it is this perfd
    #[arg(long)]
    online: bool,
}

/// Checks and prints.
pub fn run(args: CheckArgs) -> Result<(), Exit> {
    let config = Config::load(&args.config).or_exit(CONFIG)?;
    print!("{config}");
    let Some(public) = &config.public else {
        eprintln!(
            "perfd: no public host is configured: perfd serves, but can't measure; set host in the section [public]"
        );
        return if args.online {
            Err(anyhow::anyhow!("there is no public address to ask")).or_exit(CONFIG)
        } else {
            Ok(())
        };
    };
    if !args.online {
        return Ok(());
    }
    let instance = match Secret::load(config.state_directory()) {
        Ok(secret) => Some(secret.instance_name()),
        Err(error) => {
            eprintln!("perfd: can't tell whether it is this perfd that answers: {error}");
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    let mut all_answered = Ok(());
    for tor in &config.tors {
        match runtime.block_on(ask(tor, public, instance.as_deref())) {
            Ok(answer) => eprintln!("perfd: through tor {}: {answer}", tor.name),
            Err(error) => all_answered = Err(error.context(format!("through tor {} at {}", tor.name, tor.socks))),
        }
    }
    all_answered.or_exit(UNAVAILABLE)
}

#[derive(Deserialize)]
struct Answer {
    source: String,
    instance: String,
}

/// Fetches `/health` from the public address through a tor.
async fn ask(tor: &Tor, public: &PublicAddress, expected: Option<&str>) -> Result<String> {
    let host = if public.host.contains(':') { format!("[{}]", public.host) } else { public.host.clone() };
    let url = format!("http://{host}:{}/health", public.port);
    // A user name of its own, so that tor builds a fresh circuit for the question.
    let proxy = format!("socks5h://check-{}:perfd@{}", RunId::random(), tor.socks);
    let client = reqwest::Client::builder()
        .no_proxy()
        .proxy(reqwest::Proxy::all(proxy)?)
        .redirect(reqwest::redirect::Policy::none())
        .timeout(PATIENCE)
        .build()?;
    let response = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    let status = response.status();
    let answer: Answer =
        response.json().await.with_context(|| format!("{url} answers (status {status}), but it is no perfd"))?;
    match expected {
        Some(instance) if instance != answer.instance => {
            bail!("{url} is answered by another perfd ({}, instance {})", answer.source, answer.instance)
        }
        Some(_) => Ok(format!("{url} answers, and it is this perfd ({})", answer.source)),
        None => Ok(format!("{url} answers, and it is a perfd ({})", answer.source)),
    }
}
