//! `perfd once`: one measurement now, without a service.

use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};

use super::exit::{CONFIG, Exit, FAILED, OrExit, STORE, USAGE};
use super::output;
use crate::config::Config;
use crate::config::units::parse_size;
use crate::export::json::ResultJson;
use crate::export::{table, torperf};
use crate::measurement::{Kind, Measurement, Outcome, Place, Request, ResultRow, RunId, ServerKind};
use crate::payload::Secret;
use crate::probe::measure;
use crate::version;

/// Measure one download now and print it
///
/// Works with any SOCKS 5 proxy and any HTTP server. Exits with 0 only if the run is complete.
#[derive(Args, Debug)]
pub struct OnceArgs {
    /// The SOCKS 5 proxy
    #[arg(long, value_name = "HOST:PORT")]
    socks: String,
    /// What to download, by http; of a perfd, http://HOST/payload/BYTES
    #[arg(long)]
    url: String,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = OnceFormat::Table)]
    format: OnceFormat,
    /// How long the run may take, such as "60 s" or "5 min"
    #[arg(long, value_parser = super::duration, default_value = "60 s")]
    timeout: Duration,
    /// How many bytes must come; else what the server announces (or the URL says, with --config)
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// The configuration of the perfd that is downloaded from: its key is used to verify every byte
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnceFormat {
    /// For people
    Table,
    /// Torperf's key=value
    Tpf,
    /// JSON with units in its names
    Json,
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|e| e.to_string())
}

/// Measures and prints. The code says whether the run is complete.
pub fn run(args: OnceArgs) -> Result<u8, Exit> {
    let Url { host, port, path } = Url::parse(&args.url).or_exit(USAGE)?;
    let socks = args
        .socks
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .with_context(|| format!("--socks {}: must be an address and a port, such as 127.0.0.1:9050", args.socks))
        .or_exit(USAGE)?;
    let id = RunId::random();
    let (mut source, mut payload_seed, mut size) = ("perfd".to_owned(), None, args.size);
    if let Some(file) = &args.config {
        let config = Config::load(file).or_exit(CONFIG)?;
        payload_seed = Some(Secret::load(config.state_directory()).or_exit(STORE)?.seed(&id));
        source = config.source;
        size = size.or_else(|| payload_size(&path));
    }
    let (user, timeout) = (format!("perfd-{id}"), args.timeout);
    let (kind, optimistic) = (Kind::Download, false);
    let request = Request { id, kind, user, optimistic, socks, host, port, path, size, timeout, payload_seed };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    let measurement = runtime.block_on(measure(&request));

    if let Some(why) = Some(&measurement.outcome).filter(|outcome| **outcome != Outcome::Complete) {
        output::note(why);
    }
    let complete = measurement.outcome == Outcome::Complete;
    let row = row(source, args.socks, measurement);
    output::print(match args.format {
        OnceFormat::Table => table::render(&[ResultJson::from(&row)]),
        OnceFormat::Tpf => format!("{}{}", torperf::HEADER, torperf::line(&row)),
        OnceFormat::Json => serde_json::to_string_pretty(&ResultJson::from(&row)).or_exit(FAILED)? + "\n",
    })?;
    Ok(if complete { super::exit::OK } else { FAILED })
}

fn row(source: String, socks: String, measurement: Measurement) -> ResultRow {
    ResultRow {
        revision: 0,
        source,
        experiment: "once".to_owned(),
        tor: socks,
        planned: measurement.start,
        configuration: 0,
        version: version::VERSION.to_owned(),
        server: ServerKind::Exit,
        place: Place::ALONE,
        measurement,
        circuit: None,
    }
}

/// The number in `/payload/NUMBER`.
fn payload_size(path: &str) -> Option<u64> {
    let (route, bytes) = path.rsplit_once('/')?;
    ["/payload", "/urandom"].contains(&route).then(|| bytes.parse().ok())?
}

/// The parts of an http URL.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    host: String,
    port: u16,
    path: String,
}

impl Url {
    fn parse(text: &str) -> Result<Url> {
        let uri: hyper::Uri = text
            .parse()
            .map_err(|e| anyhow!("--url {text}: {e}; give a URL such as http://192.0.2.1/payload/51200"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some(other) => bail!("--url {text}: {other} is not measured; give a URL that begins with http://"),
            None => bail!("--url {text}: give a whole URL, such as http://192.0.2.1/payload/51200"),
        }
        let authority = uri.authority().with_context(|| format!("--url {text}: it names no host"))?;
        if authority.as_str().contains('@') {
            bail!("--url {text}: a user name in the URL is not sent; leave it out");
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let explicit =
            authority.as_str().rsplit_once(':').filter(|(before, _)| !before.contains('[') || before.ends_with(']'));
        let port = match (authority.port_u16(), explicit) {
            (Some(0), _) | (None, Some(_)) => bail!("--url {text}: the port must be a number from 1 to 65535"),
            (Some(port), _) => port,
            (None, None) => 80,
        };
        let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
        Ok(Url { host, port, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = |host: &str, port, path: &str| Some(Url { host: host.to_owned(), port, path: path.to_owned() });
        assert_eq!(Url::parse("http://a.example").ok(), url("a.example", 80, "/"));
        assert_eq!(Url::parse("http://192.0.2.1:81/payload/5?x=y").ok(), url("192.0.2.1", 81, "/payload/5?x=y"));
        assert_eq!(Url::parse("http://[2001:db8::1]/x").ok(), url("2001:db8::1", 80, "/x"));
        assert_eq!(Url::parse("http://[2001:db8::1]:8080/x").ok(), url("2001:db8::1", 8080, "/x"));
        for bad in [
            "https://a.example/",
            "a.example",
            "/x",
            "http://",
            "http://a:0/",
            "http://a:99999/",
            "http://u:p@a/",
            "ftp://a/",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_path_may_tell_the_size() {
        assert_eq!(payload_size("/payload/51200"), Some(51200));
        assert_eq!(payload_size("/urandom/7"), Some(7));
        assert_eq!(payload_size("/x/payload/7"), None);
        assert_eq!(payload_size("/payload/x"), None);
    }
}
