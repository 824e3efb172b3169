//! The runs of one slot: one, or a series, through one tor or several, one after the other.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::routes::{Ready, Route};
use super::{Doing, Experimenter, Means, SchedulerError};
use crate::circuit::evidence::RunKey;
use crate::circuit::{USER_PREFIX, derive};
use crate::clock::UnixMicros;
use crate::config::Isolation;
use crate::measurement::{Kind, Place, Request, RunId};
use crate::store::NewResult;
use crate::tor::run_key;
use crate::version;

/// A finished run's stream is told of within moments; its result waits no longer than this for it.
const SETTLE: Duration = Duration::from_millis(250);

/// What became of a slot's runs.
pub(super) struct Runs {
    /// Those that were measured.
    pub finished: Vec<Finished>,
    /// Whether all were: else perfd was told to end.
    pub whole: bool,
}

/// A run that was measured.
pub(super) struct Finished {
    pub route: Route,
    pub result: NewResult,
    /// By which more can be asked of it, where its tor is under control.
    pub key: Option<RunKey>,
}

impl Experimenter {
    /// How many runs a slot is to have.
    pub(super) fn runs_of_a_slot(&self) -> u32 {
        let routes = u32::try_from(self.routes.len()).unwrap_or(u32::MAX);
        self.experiment.requests.saturating_mul(routes).max(1)
    }

    /// Measures all runs of a slot.
    pub(super) async fn runs(
        &self,
        planned: UnixMicros,
        routes: Vec<Ready>,
        shutdown: &CancellationToken,
    ) -> Result<Runs, SchedulerError> {
        let mut runs = Runs { finished: Vec::new(), whole: true };
        let mut place = Place { index: 0, of: self.runs_of_a_slot() };
        for ready in routes {
            let shared = user_of(&RunId::random());
            for _ in 0..self.experiment.requests {
                let id = RunId::random();
                let user = match self.experiment.isolation {
                    Isolation::Each => user_of(&id),
                    Isolation::Shared => shared.clone(),
                };
                let Some(finished) = self.run_once(planned, place, &ready, id, user, shutdown).await? else {
                    runs.whole = false;
                    return Ok(runs);
                };
                runs.finished.push(finished);
                place.index += 1;
            }
        }
        Ok(runs)
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
