//! What becomes known of a run after its result was stored, and what belongs to no run, brought to the store.
//!
//! The store may be waited for here, as long as it takes: the control connection is read elsewhere.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::Tor;
use crate::circuit::book::KEPT;
use crate::circuit::evidence::{RunKey, loose};
use crate::circuit::{LooseCircuit, derive, derive_loose};
use crate::measurement::RunId;
use crate::store::{Store, StoreError};

/// tor tells the bytes of circuits once a second, and of a stream's end within moments: after this long, what
/// concerns a run has been told.
const SETTLING: Duration = Duration::from_secs(3);

/// What belongs to no run is stored at most so often.
const PAUSE: Duration = Duration::from_secs(1);

/// A stored result that is to be completed.
#[derive(Clone)]
pub struct Following {
    /// The run.
    pub run: RunId,
    /// What tells it from others.
    pub key: RunKey,
    /// The tor that publishes the onion service that it went to.
    pub service: Option<Tor>,
    /// Whether its stream was known when it was stored.
    pub stream_known: bool,
}

/// Works until `shutdown`, and then brings the rest to the store.
pub(super) async fn keep(
    tor: &Tor,
    mut followed: mpsc::Receiver<Following>,
    store: &Store,
    shutdown: &CancellationToken,
) {
    let mut waiting: VecDeque<(Instant, Following)> = VecDeque::new();
    // Since what was last stored, and whether there is more.
    let (mut rest_due, mut rest) = (Instant::now(), false);
    loop {
        let first_due = waiting.front().map(|(due, _)| *due);
        tokio::select! {
            () = shutdown.cancelled() => break,
            // Those that wait here are bounded as those in the queue are.
            Some(following) = followed.recv(), if waiting.len() < super::FOLLOWED => {
                waiting.push_back((Instant::now() + SETTLING, following));
            }
            () = sleep_until(first_due.unwrap_or_else(Instant::now)), if first_due.is_some() => {
                if let Some((_, following)) = waiting.pop_front() {
                    complete(tor, store, following).await;
                }
            }
            () = tor.0.to_store.notified(), if !rest => rest = true,
            () = sleep_until(rest_due), if rest => {
                (rest_due, rest) = (Instant::now() + PAUSE, false);
                store_the_rest(tor, store).await;
            }
        }
    }
    followed.close();
    while let Some((_, following)) = waiting.pop_front() {
        complete(tor, store, following).await;
    }
    while let Ok(following) = followed.try_recv() {
        complete(tor, store, following).await;
    }
    store_the_rest(tor, store).await;
}

async fn complete(tor: &Tor, store: &Store, following: Following) {
    let Following { run, key, service, stream_known } = following;
    // Where the store was waited for, tor's lines may be forgotten by now: what was stored says more.
    if key.ended.elapsed() > KEPT / 2 {
        return;
    }
    let Some(evidence) = tor.gather(service.as_ref(), &key) else { return };
    let data = derive(&evidence);
    if stream_known && data.stream_id.is_none() {
        return;
    }
    match store.complete_run(&run, data, evidence).await {
        Ok(Some(revision)) => debug!(tor = tor.name(), %run, revision, "completed with what tor told later"),
        // Nothing came to it.
        Ok(None) => {}
        Err(error) => not_stored(tor, "what tor told later of a run", &error),
    }
}

/// Circuits that no run used, and what happened to the tor.
async fn store_the_rest(tor: &Tor, store: &Store) {
    let (circuits, forgotten) = tor.state().take_loose();
    if forgotten > 0 {
        warn!(
            tor = tor.name(),
            circuits = forgotten,
            "circuits that no run used came faster than they could be stored"
        );
    }
    let circuits: Vec<LooseCircuit> = circuits
        .into_iter()
        .filter_map(|(connection, record)| {
            // SQLite's integers are signed; tor's own ids never get there.
            i64::try_from(record.id).ok()?;
            let circuit = derive_loose(&loose(&record)?)?;
            Some(LooseCircuit { tor: tor.name().to_owned(), connection, since: record.heard_of, circuit })
        })
        .collect();
    if !circuits.is_empty()
        && let Err(error) = store.record_circuits(circuits).await
    {
        not_stored(tor, "circuits that no run used", &error);
    }
    let events = tor.state().take_events();
    if !events.is_empty()
        && let Err(error) = store.record_tor_events(events).await
    {
        not_stored(tor, "events of the tor", &error);
    }
}

fn not_stored(tor: &Tor, what: &str, error: &StoreError) {
    warn!(tor = tor.name(), %error, "not stored: {what}");
}
