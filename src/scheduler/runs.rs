//! The runs of one slot: one, or a series, through one tor or several, one after the other.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::routes::{Ready, Route};
use super::{Doing, Experimenter, Means, SchedulerError};
use crate::circuit::evidence::RunKey;
use crate::circuit::{USER_PREFIX, derive};
use crate::clock::UnixMicros;
use crate::config::Isolation;
use crate::measurement::{Kind, Measurement, Outcome, Place, Request, RunId};
use crate::slot::SlotId;
use crate::store::{NewResult, StoreError};
use crate::tor::{Following, run_key};
use crate::version;

/// A finished run's stream is told of within moments; its result waits no longer than this for it.
const SETTLE: Duration = Duration::from_millis(250);

/// A run that was measured.
pub(super) struct Finished {
    pub route: Route,
    pub result: NewResult,
    /// By which more can be asked of it, where its tor is under control.
    pub key: Option<RunKey>,
}

impl Finished {
    /// Says so, once the result is stored, and has it completed with what tor tells later.
    pub(super) fn stored(self, experiment: &str) {
        log_run(experiment, &self.result);
        let Some(key) = self.key else { return };
        let stream_known = self.result.circuit.is_some_and(|(data, _)| data.stream_id.is_some());
        let (run, service) = (self.result.measurement.id, self.route.service());
        let following = Following { run, key, service, stream_known };
        if !self.route.tor.follow(following) {
            warn!(tor = self.route.tor.name(), "too much waits for what tor tells; a result is not completed");
        }
    }
}

impl Experimenter {
    /// How many runs a slot is to have.
    pub(super) fn runs_of_a_slot(&self) -> u32 {
        let routes = u32::try_from(self.routes.len()).unwrap_or(u32::MAX);
        self.experiment.requests.saturating_mul(routes).max(1)
    }

    /// Measures all runs of a slot. Each is stored as it ends, but for the last one, which is to be stored with
    /// the slot's end; and whether there were all, or perfd was told to end.
    pub(super) async fn runs(
        &self,
        slot: &SlotId,
        routes: Vec<Ready>,
        shutdown: &CancellationToken,
    ) -> Result<(Option<Finished>, bool), SchedulerError> {
        let mut last: Option<Finished> = None;
        let mut place = Place { index: 0, of: self.runs_of_a_slot() };
        for ready in routes {
            let shared = user_of(&RunId::random());
            for _ in 0..self.experiment.requests {
                if let Some(run) = last.take() {
                    self.add(slot, run).await?;
                }
                let id = RunId::random();
                let user = match self.experiment.isolation {
                    Isolation::Each => user_of(&id),
                    Isolation::Shared => shared.clone(),
                };
                last = self.run_once(slot.planned, place, &ready, id, user, shutdown).await?;
                if last.is_none() {
                    return Ok((None, false));
                }
                place.index += 1;
            }
        }
        Ok((last, true))
    }

    /// Stores a run while its slot goes on.
    async fn add(&self, slot: &SlotId, run: Finished) -> Result<(), SchedulerError> {
        self.means.board.report(&self.experiment.name, Doing::Storing, None);
        match self.means.store.add_result(slot.clone(), run.result.clone()).await {
            Ok(()) => run.stored(&self.experiment.name),
            Err(e @ (StoreError::Failing(_) | StoreError::Closed)) => {
                error!(error = %e, lost = ?run.result, "perfd ends while the store can't be written; this is lost");
                return Err(e.into());
            }
            Err(e) => error!(error = %e, lost = ?run.result, "the store refuses this result"),
        }
        Ok(())
    }

    /// Measures one run; `None` if it was cut off by the end of the service.
    async fn run_once(
        &self,
        planned: UnixMicros,
        place: Place,
        ready: &Ready,
        id: RunId,
        user: String,
        shutdown: &CancellationToken,
    ) -> Result<Option<Finished>, SchedulerError> {
        let Means { board, in_flight, prober, .. } = &self.means;
        let (name, timeout) = (&self.experiment.name, self.experiment.timeout);
        board.report(name, Doing::Running { planned, run_id: id.clone() }, Some(timeout));
        let entry = in_flight.enter(id.clone());
        let measured = tokio::select! {
            measured = prober.measure(self.request(ready, id, user)) => measured.ok_or(SchedulerError::ProberGone)?,
            () = shutdown.cancelled() => return Ok(None),
        };
        drop(entry);

        let route = ready.route.clone();
        let onion = ready.host.strip_suffix(".onion").map(str::to_owned);
        let key = run_key(&measured.measurement, measured.origin, onion);
        let service = route.service();
        route.tor.settle(&key, SETTLE).await;
        let evidence = route.tor.gather(service.as_ref(), &key);
        let circuit = evidence.map(|evidence| (derive(&evidence), evidence));
        let key = circuit.is_some().then_some(key);
        let result = NewResult {
            source: self.source.clone(),
            experiment: name.clone(),
            tor: route.tor.name().to_owned(),
            planned,
            configuration: self.configuration.clone(),
            version: version::VERSION.to_owned(),
            server: ready.server,
            place,
            measurement: measured.measurement,
            circuit,
        };
        Ok(Some(Finished { route, result, key }))
    }

    fn request(&self, ready: &Ready, id: RunId, user: String) -> Request {
        let path = match self.experiment.kind {
            Kind::Download => "payload",
            Kind::Upload => "upload",
        };
        Request {
            kind: self.experiment.kind,
            user,
            optimistic: self.experiment.optimistic,
            socks: ready.socks,
            host: ready.host.clone(),
            port: ready.port,
            path: format!("/{path}/{}", self.experiment.size),
            size: Some(self.experiment.size),
            timeout: self.experiment.timeout,
            payload_seed: Some(self.means.secret.seed(&id)),
            id,
        }
    }
}

fn user_of(id: &RunId) -> String {
    format!("{USER_PREFIX}{id}")
}

/// The one line that every finished run has in the log, written once its result is committed.
fn log_run(experiment: &str, result: &NewResult) {
    let m: &Measurement = &result.measurement;
    let milliseconds = |micros: Option<u64>| micros.map_or("-".to_owned(), |us| format!("{:.3}", us as f64 / 1000.0));
    let (first, last) = (milliseconds(m.time_to_first_byte()), milliseconds(m.time_to_last_byte()));
    let (outcome, size, run, tor) = (m.outcome.word(), m.size, &m.id, &result.tor);
    let path = result.circuit.as_ref().map_or(String::new(), |(circuit, _)| circuit.path_for_people());
    match &m.outcome {
        Outcome::Complete => {
            info!(experiment, outcome, size_bytes = size, first_byte_ms = first, last_byte_ms = last, tor, path, %run, "run finished");
        }
        unhappy => {
            let why = unhappy.to_string();
            warn!(experiment, outcome, size_bytes = size, first_byte_ms = first, last_byte_ms = last, tor, path, why, %run, "run finished");
        }
    }
}
