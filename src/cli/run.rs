//! `perfd run`: the service.
//!
//! The order matters. Sockets are bound as root; privileges are dropped before there is a second thread;
//! store and log are opened as the user that they will belong to; the runtime starts last.

use std::fs::File;
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use super::exit::{CANT_LISTEN, CONFIG, Exit, FAILED, OrExit, PRIVILEGES, STORE};
use super::output;
use crate::config::Config;
use crate::payload::Secret;
use crate::privileges::{self, Identity, PrivilegeError};
use crate::service::Controls;
use crate::store::Store;
use crate::web::serve::CROWD;
use crate::{logging, service};

/// Threads that serve and schedule; measuring has one of its own.
const MOST_WORKERS: usize = 4;

/// Measure and serve until told to end
///
/// Started as root, perfd listens, becomes the user of the section [privileges] for good, and only then
/// opens its store and log. Started as an ordinary user, it runs as that one, on ports from 1024 up.
/// SIGTERM, SIGINT and SIGHUP end it within a few seconds with everything committed (what a
/// store that can't be written holds up is in the log then); a second signal at once. SIGUSR1 has the
/// tors that perfd starts read their torrcs anew, with what each torrc_file holds by then; perfd's own
/// configuration is read at the start alone.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// The configuration
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
}

/// Files that are open beside the clients' connections: the store, the log, the runs.
const OTHER_FILES: usize = 128;

/// Runs the service to its end.
pub fn run(args: RunArgs) -> Result<(), Exit> {
    let config = Arc::new(Config::load(&args.config).or_exit(CONFIG)?);
    let root = privileges::are_root();
    let identity = match (&config.run_as, root) {
        (Some(run_as), true) => Some(Identity::resolve(run_as).or_exit(PRIVILEGES)?),
        (None, true) => return Err(PrivilegeError::NobodyToBecome).or_exit(PRIVILEGES),
        (_, false) => None,
    };
    let listeners = listen(&config)?;
    // The onion service has a listener of its own.
    let crowds = (listeners.len() + 1) * CROWD;
    allow_open_files(config.server.max_connections + crowds + OTHER_FILES)?;
    if let Some(identity) = &identity {
        for folder in folders(&config) {
            identity.make_folder(folder).or_exit(PRIVILEGES)?;
        }
        privileges::drop_to(identity).or_exit(PRIVILEGES)?;
    }
    for folder in folders(&config) {
        std::fs::create_dir_all(folder)
            .map_err(|e| anyhow!("can't make the folder {}: {e}", folder.display()))
            .or_exit(STORE)?;
    }

    // Log and store are for perfd's user and group.
    umask(Mode::from_bits_truncate(0o027));
    let _lock = lock(&config.lock_directory())?;
    logging::start(&config.log).or_exit(STORE)?;
    if let Some(identity) = identity {
        info!(user = identity.user(), "privileges dropped for good");
    }
    let secret = Secret::load_or_create(config.state_directory()).or_exit(STORE)?;
    let store = Store::open(&config.store).or_exit(STORE)?;

    let workers = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, MOST_WORKERS);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().or_exit(FAILED)?;
    let outcome = runtime.block_on(until_signalled(config, listeners, store, secret));
    // Nothing is left that is worth waiting for: every part was joined or has had its time.
    runtime.shutdown_background();
    outcome.or_exit(FAILED)
}

/// Makes sure that no other perfd works on the same store: it would take the slots that this one runs
/// for those of a perfd that died.
fn lock(folder: &Path) -> Result<Flock<File>, Exit> {
    let path = folder.join("perfd.lock");
    let file = File::options()
        .create(true)
        .write(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| {
            let remedy = "its folder must belong to the user that perfd runs as (chown -R it, if that user is new)";
            anyhow!("can't open {}: {e}; {remedy}", path.display())
        })
        .or_exit(STORE)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| anyhow!("another perfd works on this store ({} is locked); end it first", path.display()))
        .or_exit(STORE)
}

/// Listens on every address. An IPv6 address on a host that has none is passed over, if another is left.
fn listen(config: &Config) -> Result<Vec<TcpListener>, Exit> {
    let mut listeners = Vec::new();
    let mut passed_over = None;
    for address in &config.server.listen {
        match service::bind(*address) {
            Ok(listener) => listeners.push(listener),
            Err(e) if address.is_ipv6() && no_ipv6(&e) => passed_over = Some(e),
            Err(e) => return Err(in_plain_words(e)).or_exit(CANT_LISTEN),
        }
    }
    match passed_over {
        Some(e) if listeners.is_empty() => Err(e).or_exit(CANT_LISTEN),
        Some(e) => {
            output::note(format_args!("this host has no IPv6: {e}"));
            Ok(listeners)
        }
        None => Ok(listeners),
    }
}

/// Raises the limit of open files, if it is lower: strangers who use it up would take from perfd the
/// sockets that it measures with.
fn allow_open_files(needed: usize) -> Result<(), Exit> {
    let needed = needed as u64;
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return Ok(()) };
    // Only root may go beyond the hard limit.
    if soft >= needed || setrlimit(Resource::RLIMIT_NOFILE, needed, needed.max(hard)).is_ok() {
        return Ok(());
    }
    if hard < OTHER_FILES as u64 {
        return Err(anyhow!("only {hard} files may be open, and perfd needs {OTHER_FILES} beside its clients; raise the limit (ulimit -n)"))
            .or_exit(CANT_LISTEN);
    }
    let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    if hard < needed {
        output::note(format_args!(
            "only {hard} files may be open, where server.max_connections needs {needed}; lower that, or raise the limit"
        ));
    }
    Ok(())
}

fn no_ipv6(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported)
        || error.to_string().contains("Address family not supported")
}

fn in_plain_words(error: io::Error) -> anyhow::Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need root: start perfd with sudo, or choose a higher port in the section [server]"
        }
        io::ErrorKind::AddrInUse => {
            "; another program listens there: stop it, or choose another port in the section [server]"
        }
        _ => "",
    };
    anyhow!("{error}{remedy}")
}

/// The folders that must be there: the store's and the log's.
fn folders(config: &Config) -> impl Iterator<Item = &Path> {
    let log = config.log.file.as_deref().and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
    std::iter::once(config.state_directory()).chain(log)
}

/// The service, which a first signal tells to end and a second one cuts off. SIGUSR1 does neither.
async fn until_signalled(
    config: Arc<Config>,
    listeners: Vec<TcpListener>,
    store: Store,
    secret: Secret,
) -> anyhow::Result<()> {
    let controls = Controls::default();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut reload = signal(SignalKind::user_defined1())?;
    let mut service = std::pin::pin!(service::run(config, listeners, store, secret, controls.clone()));
    loop {
        let name = tokio::select! {
            outcome = &mut service => return outcome,
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            _ = hang_up.recv() => "SIGHUP",
            _ = reload.recv() => {
                info!(signal = "SIGUSR1", "told to have perfd's own tors read their torrcs anew");
                controls.reload.notify_one();
                continue;
            }
        };
        if controls.shutdown.is_cancelled() {
            // At once: nothing is waited for, not even a disk that hangs.
            super::output::note("ended at once by a second signal; what was not committed is lost");
            std::process::exit(FAILED.into());
        }
        info!(signal = name, "told to end");
        controls.shutdown.cancel();
    }
}
