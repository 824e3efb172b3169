//! The store of commands that write into it themselves, also beside a running perfd.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use tokio::sync::watch;

use super::exit::{CONFIG, Exit, FAILED, OrExit, STORE};
use crate::config::Config;
use crate::store::{Store, StoreError, StoreHealth};

/// A store that can't be written is tried for so long.
const PATIENCE: Duration = Duration::from_secs(15);

/// At the end the store has so long to close.
const FAREWELL: Duration = Duration::from_secs(4);

/// Which store it is.
#[derive(Args, Debug)]
pub(super) struct StoreArgs {
    /// The configuration that names the store
    #[arg(long, value_name = "FILE", env = "PERFD_CONFIG", default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
    /// The store's file, in place of the configuration's
    #[arg(long, value_name = "FILE")]
    store: Option<PathBuf>,
}

impl StoreArgs {
    /// The store's file.
    pub(super) fn path(&self) -> Result<PathBuf, Exit> {
        match &self.store {
            Some(path) => Ok(path.clone()),
            None => Ok(Config::load(&self.config).or_exit(CONFIG)?.store),
        }
    }
}

/// Opens the store at `path`, which must be there: opening it would make a new one.
pub(super) fn open(path: &Path) -> Result<Store, Exit> {
    check_there(path)?;
    Store::open(path).or_exit(STORE)
}

/// Refuses a path where no store is, and says what to give.
pub(super) fn check_there(path: &Path) -> Result<(), Exit> {
    if path.try_exists().is_ok_and(|exists| !exists) {
        let remedy = "give --store FILE, or the configuration of the perfd whose store it is";
        return Err(anyhow!("there is no store {}; {remedy}", path.display())).or_exit(STORE);
    }
    Ok(())
}

/// Opens the store, does one thing with it, and closes it. A store that can't be written for a while is given up.
pub(super) fn with_store<T>(path: &Path, work: impl AsyncFnOnce(&Store) -> Result<T, StoreError>) -> Result<T, Exit> {
    let store = open(path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().or_exit(FAILED)?;
    runtime.block_on(async {
        let outcome = tokio::select! {
            outcome = work(&store) => outcome,
            error = given_up(store.health()) => Err(error),
        };
        let patience = if outcome.is_ok() { FAREWELL } else { Duration::ZERO };
        let closed = store.close(patience).await;
        match (outcome, closed) {
            (Err(StoreError::Refused(reason)), _) => Err(anyhow!(reason)).or_exit(FAILED),
            (Err(error), _) | (_, Err(error)) => Err(named(path, error)).or_exit(STORE),
            (Ok(done), Ok(())) => Ok(done),
        }
    })
}

/// The error with the store's file.
pub(super) fn named(path: &Path, error: StoreError) -> anyhow::Error {
    anyhow!("{}: {error}", path.display())
}

/// Returns once the store can't be written, and has had its time to get well.
pub(super) async fn given_up(mut health: watch::Receiver<StoreHealth>) -> StoreError {
    loop {
        let failing = health.wait_for(|health| *health != StoreHealth::Ok).await.map(|health| health.clone());
        let well = tokio::time::timeout(PATIENCE, health.wait_for(|health| *health == StoreHealth::Ok)).await;
        match (failing, well) {
            (Ok(StoreHealth::Failing { error, .. }), Err(_)) => return StoreError::Failing(error),
            (Ok(_), Ok(Ok(_))) => {}
            // The writer is gone, and fails no more.
            _ => return std::future::pending().await,
        }
    }
}
