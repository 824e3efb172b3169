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

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;
    use crate::circuit::Evidence;
    use crate::clock::UnixMicros;
    use crate::config::{self, Control, ControlAddress, TorRun};
    use crate::slot::{Grid, SlotId, SlotState};
    use crate::store::{NewResult, StoreHealth};
    use crate::test_support::example_result;

    /// A tor under control, of whose connection everything is known.
    fn connected() -> Tor {
        let control = Control { address: ControlAddress::Tcp(([127, 0, 0, 1], 9).into()), password_file: None };
        let run = TorRun::Address { socks: ([127, 0, 0, 1], 9).into(), control: Some(control) };
        let tor = Tor::new(
            config::Tor { name: "main".to_owned(), run, drop_guards_every: None, drop_timeouts_every: None },
            None,
        );
        tor.open_book();
        tor
    }

    fn tells(tor: &Tor, line: &str) {
        tor.state().books.back_mut().unwrap().note(std::time::Instant::now(), line);
    }

    /// Stores two runs with what tor has told of them so far: their streams are new.
    async fn two_runs(tor: &Tor, store: &Store) -> [Following; 2] {
        let runs = [1, 2].map(|n: u64| {
            let new = example_result(n.into());
            let (user, now) = (new.measurement.user.clone().unwrap() + &n.to_string(), std::time::Instant::now());
            tells(tor, &format!("STREAM {n} NEW 0 a:80 SOCKS_USERNAME=\"{user}\""));
            let key = RunKey {
                user: Some(user),
                local: None,
                start: now,
                start_wall: new.measurement.start,
                ended: now,
                onion: None,
                upload: false,
            };
            let evidence = tor.gather(None, &key).unwrap();
            let following = Following { run: new.measurement.id.clone(), key, service: None, stream_known: true };
            (following, NewResult { circuit: Some((derive(&evidence), evidence)), ..new })
        });
        let [(one, first), (two, second)] = runs;
        let slot = SlotId { experiment: first.experiment.clone(), planned: first.planned };
        let grid = Grid::new(Duration::from_secs(1), Duration::ZERO);
        store.begin_slot(slot.clone(), grid, slot.planned).await.unwrap();
        store.finish_slot(slot, SlotState::Done, None, UnixMicros(1), vec![first, second]).await.unwrap();
        [one, two]
    }

    async fn stored(store: &Store, following: &Following) -> Option<Evidence> {
        store.reader().result(&following.run).await.unwrap().unwrap().evidence.map(Evidence)
    }

    /// The clock of the test jumps over the time that runs have to settle.
    #[tokio::test(start_paused = true)]
    async fn what_tor_tells_later_outlasts_a_store_that_can_not_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("perfd.sqlite");
        let store = Store::open(&file).unwrap();
        let tor = connected();
        let runs = two_runs(&tor, &store).await;
        let followed = tor.0.followed.lock().unwrap().take().unwrap();

        let locked = Connection::open(&file).unwrap();
        locked.execute_batch("BEGIN EXCLUSIVE").unwrap();
        tells(&tor, "STREAM 1 CLOSED 0 a:80 REASON=DONE");
        assert!(runs.iter().all(|following| tor.follow(following.clone())));
        let shutdown = CancellationToken::new();
        let troubled = async {
            let mut health = store.health();
            health.wait_for(|health| *health != StoreHealth::Ok).await.unwrap();
            // The keeper waits with the first run, and the tor is heard all the same.
            tells(&tor, "STREAM 2 CLOSED 0 a:80 REASON=TIMEOUT");
            tor.record("started", "");
            drop(locked);
            health.wait_for(|health| *health == StoreHealth::Ok).await.unwrap();
            while stored(&store, &runs[1]).await != tor.gather(None, &runs[1].key) {}
            shutdown.cancel();
        };
        tokio::join!(keep(&tor, followed, &store, &shutdown), troubled);

        for (following, end) in runs.iter().zip(["REASON=DONE", "REASON=TIMEOUT"]) {
            let evidence = stored(&store, following).await.unwrap();
            assert!(evidence.0.contains(end), "{evidence:?}");
        }
        assert_eq!(store.reader().latest_revision().await, Ok(4), "each was completed once");
        assert_eq!(store.reader().tor_events("main", 9).await.unwrap().len(), 1);
    }
}
