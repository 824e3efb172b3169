//! `perfd check`: is the configuration right, what does it measure, and does who is asked answer?

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use reqwest::redirect::Policy;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio_socks::tcp::Socks5Stream;

use super::exit::{CONFIG, Exit, FAILED, OrExit, PRIVILEGES, UNAVAILABLE};
use super::output;
use crate::config::{Config, Experiment, PublicAddress, ServerChoice, ServerOf, Tor, TorRun};
use crate::measurement::RunId;
use crate::payload::Secret;
use crate::privileges::{self, Identity};
use crate::tor::{greet, process};

/// What perfd says of its health is much shorter.
const LONGEST_ANSWER: usize = 1 << 20;

/// A circuit must be built and an answer fetched in this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Check the configuration and print it as understood
///
/// Says what is wrong by file, line and key, or prints the configuration with everything that the file
/// leaves to its defaults; and on stderr what each experiment measures with it, and what tors that perfd is
/// to start lack. Started as root, it becomes the user of the section [privileges] for that, as perfd run does.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
    /// Also ask through each tor whether the public address answers, and whether it is this perfd; and whether
    /// each control port lets perfd in. A tor that perfd starts is not asked: it is started by `perfd run` alone
    #[arg(long)]
    online: bool,
}

/// Checks and prints.
pub fn run(args: CheckArgs) -> Result<(), Exit> {
    let config = Config::load(&args.config).or_exit(CONFIG)?;
    output::print(config.to_toml())?;
    match config.run_as.as_ref().map(Identity::resolve) {
        Some(Err(error)) => output::note(format_args!("started as root, perfd would refuse to run: {error}")),
        // What it can read and run is asked as the user that `perfd run` becomes.
        Some(Ok(identity)) if privileges::are_root() => privileges::drop_to(&identity).or_exit(PRIVILEGES)?,
        Some(Ok(_)) | None => {}
    }
    routes(&config).iter().for_each(|route| output::note(route.told(&config)));
    for tor in &config.tors {
        if let TorRun::Started(started) = &tor.run
            && let Err(error) = process::check(started)
        {
            output::note(format_args!("tor \"{}\" would not be started: {error}", tor.name));
        }
    }
    if args.online { online(&config) } else { Ok(()) }
}

/// The way that an experiment's runs through one tor take.
struct Route<'a> {
    experiment: &'a Experiment,
    tor: &'a Tor,
    server: ServerOf<'a>,
}

/// All routes of the configuration.
fn routes(config: &Config) -> Vec<Route<'_>> {
    let mut routes = Vec::new();
    for experiment in &config.experiments {
        let tors = config.tors.iter().filter(|tor| experiment.tors.contains(&tor.name));
        routes.extend(tors.map(|tor| Route { experiment, tor, server: config.server_of(experiment, &tor.name) }));
    }
    routes
}

impl Route<'_> {
    /// What it means, in a sentence.
    fn told(&self, config: &Config) -> String {
        let (experiment, tor) = (&self.experiment.name, &self.tor.name);
        let auto = self.experiment.server == ServerChoice::Auto && config.public.is_none();
        let no_public = if auto { "no public host is configured: " } else { "" };
        match self.server {
            ServerOf::Public(public) => {
                format!("experiment {experiment}: through tor \"{tor}\" to {} by an exit", url(public))
            }
            ServerOf::Onion(publisher) => {
                let is_single = |tor: &&Tor| matches!(&tor.run, TorRun::Started(started) if started.single_hop);
                let single = config.tors.iter().filter(|tor| tor.name == publisher).any(|tor| is_single(&tor));
                let hops = match single {
                    true => "a single-hop one: that is rendezvous circuits of 4 hops, not exits",
                    false => "that is rendezvous circuits of 6 hops, not exits",
                };
                format!(
                    "experiment {experiment}: {no_public}through tor \"{tor}\" it measures perfd's own onion service, \
                     published by tor \"{publisher}\", {hops}"
                )
            }
            ServerOf::Nowhere => {
                let fault = Config::fault_of_nowhere(self.experiment);
                format!("experiment {experiment}: can't measure through tor \"{tor}\": {fault}")
            }
        }
    }
}

/// Asks through each tor, and each control port.
fn online(config: &Config) -> Result<(), Exit> {
    let routes = routes(config);
    if routes.iter().all(|route| route.server == ServerOf::Nowhere) {
        return Err(anyhow!("there is no public address to ask, and no onion service could be published"))
            .or_exit(CONFIG);
    }
    let by_exit = |tor: &Tor| routes.iter().any(|r| r.tor.name == tor.name && matches!(r.server, ServerOf::Public(_)));
    let instance = match Secret::load(config.state_directory()) {
        Ok(secret) => Some(secret.instance_name()),
        Err(error) => {
            if config.tors.iter().any(by_exit) {
                output::note(format_args!("can't tell whether it is this perfd that answers: {error}"));
            }
            None
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    let (mut asked, mut silent) = (0, 0);
    let mut tell = |question: &str, tor: &Tor, answer: Result<String>| {
        asked += 1;
        silent += usize::from(answer.is_err());
        let answer = answer.unwrap_or_else(|error| format!("{error:#}"));
        output::note(format_args!("{question} \"{}\": {answer}", tor.name));
    };
    for tor in &config.tors {
        let TorRun::Address { socks, control } = &tor.run else {
            output::note(format_args!("tor \"{}\" is not asked: perfd starts it, and check does not", tor.name));
            continue;
        };
        if let Some(control) = control {
            let greeted = runtime.block_on(greet(control)).map_err(|error| anyhow!(error));
            tell("control of tor", tor, greeted.map(|version| format!("it lets perfd in, and is tor {version}")));
        }
        if let Some(public) = config.public.as_ref().filter(|_| by_exit(tor)) {
            tell("through", tor, runtime.block_on(ask(*socks, public, instance.as_deref())));
        }
    }
    match silent {
        0 => Ok(()),
        n => Err(anyhow!("{n} of {asked} questions had no good answer")).or_exit(UNAVAILABLE),
    }
}

fn url(public: &PublicAddress) -> String {
    format!("http://{}:{}", host_in_url(&public.host), public.port)
}

fn host_in_url(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

#[derive(Deserialize)]
struct Answer {
    source: String,
    instance: String,
}

/// Fetches `/health` from the public address through the tor with this SOCKS port.
async fn ask(socks: SocketAddr, public: &PublicAddress, expected: Option<&str>) -> Result<String> {
    let host = host_in_url(&public.host);
    let url = format!("{}/health", url(public));
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
        failed = forward(listener, socks, public) => {
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
async fn forward(listener: TcpListener, socks: SocketAddr, public: &PublicAddress) -> anyhow::Error {
    let carry = async {
        let (mut near, _) = listener.accept().await?;
        let target = (public.host.as_str(), public.port);
        // A user name of its own, so that tor builds a fresh circuit for the question.
        let user = format!("check-{}", RunId::random());
        let near_tor = TcpStream::connect(socks).await.context("nothing listens there; is tor running?")?;
        let mut far = Socks5Stream::connect_with_password_and_socket(near_tor, target, &user, "perfd").await?;
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        Ok::<(), anyhow::Error>(())
    };
    match carry.await {
        Ok(()) => std::future::pending().await,
        Err(error) => error,
    }
}
