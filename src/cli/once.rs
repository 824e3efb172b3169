//! `perfd once`: one measurement now, without a service.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};

use super::exit::{CONFIG, Exit, FAILED, OrExit, STORE, USAGE};
use super::output;
use crate::circuit::{CircuitData, USER_PREFIX, derive};
use crate::config::units::parse_size;
use crate::config::{self, Config, Control, ControlAddress, TorRun};
use crate::export::json::ResultJson;
use crate::export::whole::WholeJson;
use crate::export::{table, torperf, waterfall};
use crate::measurement::{Kind, Measurement, Outcome, Place, Request, ResultRow, RunId, ServerKind};
use crate::payload::Secret;
use crate::probe::{Measured, Prober};
use crate::tor::{Tor, listen, run_key};
use crate::version;

/// tor's control port must be ready in this time.
const CONNECTED: Duration = Duration::from_secs(10);

/// A finished run's stream is told of within moments.
const SETTLE: Duration = Duration::from_secs(2);

/// tor tells the bytes of circuits once a second.
const LAST_BYTES: Duration = Duration::from_millis(1100);

/// Measure one download or upload now and print it
///
/// Works with any SOCKS 5 proxy and any HTTP server; what an upload is sent to must be a perfd. With
/// --control, tor is asked which circuit the run went over. Exits with 0 only if the run is complete.
#[derive(Args, Debug)]
pub struct OnceArgs {
    /// The SOCKS 5 proxy
    #[arg(long, value_name = "HOST:PORT")]
    socks: String,
    /// What to download, by http; of a perfd, http://HOST/payload/BYTES
    #[arg(long)]
    url: String,
    /// Send so many bytes up instead; the URL is that of a perfd, http://HOST or http://HOST/upload/BYTES
    #[arg(long, value_name = "BYTES", value_parser = size, conflicts_with = "size")]
    upload: Option<u64>,
    /// Send the HTTP request before the proxy has replied
    #[arg(long)]
    optimistic: bool,
    /// The control port of the tor behind the proxy, such as 127.0.0.1:9051 or unix:/run/tor/control
    #[arg(long, value_name = "ADDRESS", value_parser = control_address)]
    control: Option<ControlAddress>,
    /// A file that holds the control port's password in its first line; else tor's cookie is used
    #[arg(long, value_name = "FILE", requires = "control")]
    control_password_file: Option<PathBuf>,
    /// How to print the result
    #[arg(long, value_enum, default_value_t = OnceFormat::Table)]
    format: OnceFormat,
    /// Draw the run instead: its steps and, with --control, its circuit
    #[arg(long, conflicts_with = "format")]
    verbose: bool,
    /// How long the run may take, such as "60 s" or "5 min"
    #[arg(long, value_parser = super::duration, default_value = "60 s")]
    timeout: Duration,
    /// How many bytes must come; else what the server announces (or the URL says, with --config)
    #[arg(long, value_parser = size)]
    size: Option<u64>,
    /// The configuration of the perfd at the other end: its key is used to verify every byte
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

fn control_address(text: &str) -> Result<ControlAddress, String> {
    let address = match text.strip_prefix("unix:") {
        Some(path) => path.starts_with('/').then(|| ControlAddress::Unix(path.into())),
        None => text.parse().ok().filter(|address: &SocketAddr| address.port() != 0).map(ControlAddress::Tcp),
    };
    address.ok_or_else(|| "must be tor's ControlPort or ControlSocket: 127.0.0.1:9051, or unix: and a path".to_owned())
}

/// Measures and prints. The code says whether the run is complete.
pub fn run(args: OnceArgs) -> Result<u8, Exit> {
    let (request, source) = request(&args)?;
    let host = request.host.clone();
    let tor = config::Tor {
        name: args.socks,
        run: TorRun::Address {
            socks: request.socks,
            control: args.control.map(|address| Control { address, password_file: args.control_password_file }),
        },
        drop_guards_every: None,
        drop_timeouts_every: None,
    };
    let (prober, measuring) = Prober::start().context("can't start the measuring thread").or_exit(FAILED)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    let name = tor.name.clone();
    let measured = match tor.has_control() {
        true => runtime.block_on(with_circuit(&Tor::new(tor, None), &prober, request)),
        false => runtime.block_on(prober.measure(request)).map(|measured| (measured.measurement, None)),
    };
    drop(prober);
    // It ends with its last handle; whether it panicked shows in what it gave.
    let _ = measuring.join();
    let (measurement, circuit) = measured.context("the measuring thread has failed").or_exit(FAILED)?;

    if let Some(why) = Some(&measurement.outcome).filter(|outcome| **outcome != Outcome::Complete) {
        output::note(why);
    }
    let complete = measurement.outcome == Outcome::Complete;
    let row = ResultRow {
        revision: 0,
        source,
        experiment: "once".to_owned(),
        tor: name,
        planned: Some(measurement.start),
        configuration: Some(0),
        version: Some(version::VERSION.to_owned()),
        server: if onion_address(&host).is_some() { ServerKind::Onion } else { ServerKind::Exit },
        place: Place::ALONE,
        measurement,
        circuit,
        imported: None,
    };
    output::print(match args.format {
        _ if args.verbose => output::harmless(&waterfall::render(&WholeJson::from(&row))),
        OnceFormat::Table => table::render(&[ResultJson::from(&row)]),
        OnceFormat::Tpf => format!("{}{}", torperf::HEADER, torperf::line(&row)),
        OnceFormat::Json => serde_json::to_string_pretty(&ResultJson::from(&row)).or_exit(FAILED)? + "\n",
    })?;
    Ok(if complete { super::exit::OK } else { FAILED })
}

/// What the arguments ask for, and the source that is named in the result.
fn request(args: &OnceArgs) -> Result<(Request, String), Exit> {
    let Url { host, port, mut path } = Url::parse(&args.url).or_exit(USAGE)?;
    if let Some(bytes) = args.upload {
        path = upload_path(&path, bytes).with_context(|| format!("--url {}", args.url)).or_exit(USAGE)?;
    }
    let socks = args
        .socks
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .with_context(|| format!("--socks {}: must be an address and a port, such as 127.0.0.1:9050", args.socks))
        .or_exit(USAGE)?;
    let id = RunId::random();
    let (mut source, mut payload_seed, mut size) = ("perfd".to_owned(), None, args.upload.or(args.size));
    if let Some(file) = &args.config {
        let config = Config::load(file).or_exit(CONFIG)?;
        payload_seed = Some(Secret::load(config.state_directory()).or_exit(STORE)?.seed(&id));
        source = config.source;
        size = size.or_else(|| payload_size(&path));
    }
    let kind = if args.upload.is_some() { Kind::Upload } else { Kind::Download };
    let (user, timeout, optimistic) = (format!("{USER_PREFIX}{id}"), args.timeout, args.optimistic);
    Ok((Request { id, kind, user, optimistic, socks, host, port, path, size, timeout, payload_seed }, source))
}

/// Measures, and asks tor over which circuit. `None` if the measuring thread is gone.
async fn with_circuit(tor: &Tor, prober: &Prober, request: Request) -> Option<(Measurement, Option<CircuitData>)> {
    let onion = onion_address(&request.host);
    let mut listening = pin!(listen(tor));
    let no_circuit = tokio::select! {
        () = tor.connected() => None,
        why = &mut listening => Some(why),
        () = tokio::time::sleep(CONNECTED) => {
            Some(format!("tor's control port was not ready within {} s", CONNECTED.as_secs()))
        }
    };
    if let Some(why) = no_circuit {
        output::note(format_args!("the circuit will not be known: {why}"));
        return Some((prober.measure(request).await?.measurement, None));
    }
    let measuring = async {
        let Measured { measurement, origin } = prober.measure(request).await?;
        let key = run_key(&measurement, origin, onion);
        tor.settle(&key, SETTLE).await;
        if tor.is_connected() {
            tokio::time::sleep(LAST_BYTES).await;
        }
        Some((measurement, tor.gather(None, &key).map(|evidence| derive(&evidence))))
    };
    tokio::select! {
        measured = measuring => measured,
        never = async {
            output::note(listening.await);
            std::future::pending().await
        } => never,
    }
}

/// The address of an onion service, without `.onion`, if it is one; a name before it does not matter to tor.
fn onion_address(host: &str) -> Option<String> {
    let host = host.to_ascii_lowercase();
    let name = host.strip_suffix(".onion")?;
    Some(name.rsplit('.').next().unwrap_or(name).to_owned())
}

/// The path that so many bytes are sent to.
fn upload_path(path: &str, bytes: u64) -> Result<String> {
    let own = format!("/upload/{bytes}");
    match path.strip_prefix("/upload/").map(str::parse::<u64>) {
        Some(Ok(other)) if bytes != other => {
            bail!("it is for {other} bytes, and --upload says {bytes}; make them the same")
        }
        None if path == "/" => Ok(own),
        _ => Ok(path.to_owned()),
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
    fn uploads_go_where_their_size_says() {
        assert_eq!(upload_path("/", 7).ok().as_deref(), Some("/upload/7"));
        assert_eq!(upload_path("/upload/7", 7).ok().as_deref(), Some("/upload/7"));
        assert_eq!(upload_path("/other", 7).ok().as_deref(), Some("/other"));
        assert!(upload_path("/upload/8", 7).is_err());
    }

    #[test]
    fn control_addresses_are_those_of_a_torrc() {
        let tcp = |text: &str| Some(ControlAddress::Tcp(text.parse().unwrap()));
        assert_eq!(control_address("127.0.0.1:9051").ok(), tcp("127.0.0.1:9051"));
        assert_eq!(control_address("[::1]:9051").ok(), tcp("[::1]:9051"));
        assert_eq!(
            control_address("unix:/run/tor/control").ok(),
            Some(ControlAddress::Unix("/run/tor/control".into()))
        );
        for bad in ["", "9051", "127.0.0.1", "127.0.0.1:0", "unix:", "unix:control", "/run/tor/control"] {
            assert!(control_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn onion_services_are_told_by_their_names() {
        assert_eq!(onion_address("abc.onion").as_deref(), Some("abc"));
        assert_eq!(onion_address("www.ABC.Onion").as_deref(), Some("abc"));
        assert_eq!(onion_address("onion.example"), None);
    }

    #[test]
    fn the_path_may_tell_the_size() {
        assert_eq!(payload_size("/payload/51200"), Some(51200));
        assert_eq!(payload_size("/urandom/7"), Some(7));
        assert_eq!(payload_size("/x/payload/7"), None);
        assert_eq!(payload_size("/payload/x"), None);
    }
}
