//! `perfd check`: is the configuration right, and does the public address answer?

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::redirect::Policy;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio_socks::tcp::Socks5Stream;

use super::exit::{CONFIG, Exit, FAILED, OrExit, UNAVAILABLE};
use super::output;
use crate::config::{Config, PublicAddress, Tor};
use crate::measurement::RunId;
use crate::payload::Secret;
use crate::privileges::Identity;

/// What perfd says of its health is much shorter.
const LONGEST_ANSWER: usize = 1 << 20;

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
    output::print(config.to_toml())?;
    if let Some(Err(error)) = config.run_as.as_ref().map(Identity::resolve) {
        output::note(format_args!("started as root, perfd would refuse to run: {error}"));
    }
    let Some(public) = &config.public else {
        output::note("no public host is configured: perfd serves, but can't measure; set host in the section [public]");
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
            output::note(format_args!("can't tell whether it is this perfd that answers: {error}"));
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    let mut silent = 0;
    for tor in &config.tors {
        match runtime.block_on(ask(tor, public, instance.as_deref())) {
            Ok(answer) => output::note(format_args!("through \"{}\": {answer}", tor.name)),
            Err(error) => {
                silent += 1;
                output::note(format_args!("through \"{}\": {error:#}", tor.name));
            }
        }
    }
    match silent {
        0 => Ok(()),
        n => Err(anyhow::anyhow!("{n} of {} tors did not reach this perfd", config.tors.len())).or_exit(UNAVAILABLE),
    }
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
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let through = format!("http://{}/health", listener.local_addr()?);
    let client = reqwest::Client::builder().no_proxy().redirect(Policy::none()).timeout(PATIENCE).build()?;
    let request = client.get(through).header(reqwest::header::HOST, format!("{host}:{}", public.port));
    let answer = async {
        let response = request.send().await.with_context(|| format!("{url} does not answer"))?;
        let status = response.status();
        let answer = output::read_whole(response, LONGEST_ANSWER).await;
        let answer = answer.and_then(|answer| Ok(serde_json::from_slice(&answer)?));
        answer.with_context(|| format!("{url} answers (status {status}), but it is no perfd"))
    };
    let answer: Answer = tokio::select! {
        answer = answer => answer?,
        failed = forward(listener, tor, public) => {
            return Err(failed).with_context(|| format!("{url} can't be reached"));
        }
    };
    match expected {
        Some(instance) if instance != answer.instance => {
            bail!("{url} is answered by another perfd ({}, instance {})", answer.source, answer.instance)
        }
        Some(_) => Ok(format!("{url} answers, and it is this perfd ({})", answer.source)),
        None => {
            Ok(format!("{url} answers as a perfd named {}; whether it is this one could not be checked", answer.source))
        }
    }
}

/// Carries one connection through the tor to the public address; returns only if that can't be opened.
/// (reqwest can't speak to a SOCKS proxy itself when it is built without TLS.)
async fn forward(listener: TcpListener, tor: &Tor, public: &PublicAddress) -> anyhow::Error {
    let carry = async {
        let (mut near, _) = listener.accept().await?;
        let target = (public.host.as_str(), public.port);
        // A user name of its own, so that tor builds a fresh circuit for the question.
        let user = format!("check-{}", RunId::random());
        let near_tor = TcpStream::connect(tor.socks().context("perfd starts this tor itself")?)
            .await
            .context("nothing listens there; is tor running?")?;
        let mut far = Socks5Stream::connect_with_password_and_socket(near_tor, target, &user, "perfd").await?;
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        Ok::<(), anyhow::Error>(())
    };
    match carry.await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}
