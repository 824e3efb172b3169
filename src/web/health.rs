//! `GET /health`: whether perfd does its work, for people and for monitors.
//!
//! `failing` (status 503) is perfd's own trouble: the store can't be written, or an experiment is stuck.
//! `warning` (status 200) is what an operator should look at: nothing can be measured, or nothing
//! succeeds. Asking often costs nothing: the store is read at most once a second.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{Response, StatusCode};
use serde::Serialize;

use super::Shared;
use super::error::ApiError;
use crate::clock::UnixMicros;
use crate::scheduler::Doing;
use crate::store::{ExperimentSummary, SlotCounts, StoreError, StoreHealth};
use crate::version;

/// An experiment that has results, and no success for so many intervals, is warned of.
const PATIENCE: u32 = 3;

/// How each experiment is doing, by its name.
pub type Summaries = Arc<BTreeMap<String, ExperimentSummary>>;

/// What `/health` says.
#[derive(Clone, Debug, Serialize)]
pub struct Health {
    /// `ok`, `warning` or `failing`.
    pub status: &'static str,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// The instance's name.
    pub source: String,
    /// A name that only this instance has, derived from its secret.
    pub instance: String,
    /// perfd's version.
    pub version: &'static str,
    /// The commit that it was built from.
    pub commit: &'static str,
    /// Who runs it.
    pub contact: String,
    /// The time of this answer.
    pub now: UnixMicros,
    /// Every experiment of the configuration.
    pub experiments: Vec<ExperimentHealth>,
}

/// How one experiment is doing.
#[derive(Clone, Debug, Serialize)]
pub struct ExperimentHealth {
    /// Its name.
    pub name: String,
    /// Its payload's size.
    pub size_bytes: u64,
    /// The time between two slots, in milliseconds.
    pub every_ms: u128,
    /// START of its last complete run.
    pub last_success: Option<UnixMicros>,
    /// START of its last run.
    pub last_result: Option<UnixMicros>,
    /// That run's outcome.
    pub last_outcome: Option<String>,
    /// How many of its slots ended how; all that came due are among them.
    pub slots: Option<SlotCounts>,
    /// What it does now.
    #[serde(flatten)]
    pub doing: Option<Doing>,
}

/// Answers `GET /health`.
pub async fn health(State(shared): State<Shared>) -> Result<Response<Body>, ApiError> {
    let health = look(&shared).await;
    let mut response = super::json(&health)?;
    if health.status == "failing" {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}

/// Looks how perfd is doing.
pub async fn look(shared: &Shared) -> Health {
    let mut problems = Vec::new();
    let mut failing = false;
    if let StoreHealth::Failing { since, error } = &*shared.store.health().borrow() {
        failing = true;
        problems.push(format!("the store can't be written since {since}: {error}"));
    }
    for stuck in shared.board.stuck() {
        failing = true;
        problems.push(format!("experiment {stuck} is stuck"));
    }
    for experiment in &shared.config.experiments {
        if let Some(fault) = shared.config.fault_of_experiment(experiment) {
            problems.push(format!("experiment {} can't measure: {fault}", experiment.name));
        }
    }
    for tor in shared.tors.iter() {
        // While it comes up for the first time there is nothing wrong yet.
        if let Some(problem) = tor.problem() {
            problems.push(format!("tor {}: {problem}", tor.name()));
        }
    }
    let summaries = summaries(shared).await.unwrap_or_else(|error| {
        failing |= error != StoreError::Busy;
        problems.push(error.to_string());
        Arc::default()
    });
    let mut doing = shared.board.all();
    let now = UnixMicros::now();
    let experiments = shared.config.experiments.iter().map(|experiment| {
        let summary = summaries.get(&experiment.name);
        let last_success = summary.and_then(|s| s.last_success);
        let last_result = summary.and_then(|s| s.last_result.as_ref());
        let patience = experiment.every.saturating_mul(PATIENCE);
        if last_result.is_some() && last_success.is_none_or(|at| now.since(at) > patience) {
            let last = last_success.map_or("yet".to_owned(), |at| format!("since {at}"));
            problems.push(format!("experiment {} has had no success {last}", experiment.name));
        }
        ExperimentHealth {
            name: experiment.name.clone(),
            size_bytes: experiment.size,
            every_ms: experiment.every.as_millis(),
            last_success,
            last_result: last_result.map(|r| r.start),
            last_outcome: last_result.map(|r| r.outcome.clone()),
            slots: summary.map(|s| s.slots),
            doing: doing.remove(&experiment.name),
        }
    });
    let experiments = experiments.collect();
    Health {
        status: match (failing, problems.is_empty()) {
            (true, _) => "failing",
            (false, false) => "warning",
            (false, true) => "ok",
        },
        problems,
        source: shared.config.source.clone(),
        instance: shared.secret.instance_name(),
        version: version::VERSION,
        commit: version::COMMIT,
        contact: shared.config.contact.clone(),
        now,
        experiments,
    }
}

async fn summaries(shared: &Shared) -> Result<Summaries, StoreError> {
    let look = async || {
        let names = shared.config.experiments.iter().map(|e| e.name.clone()).collect();
        let read = shared.store.reader().summaries(names).await?;
        Ok(Arc::new(read.into_iter().map(|s| (s.experiment.clone(), s)).collect()))
    };
    shared.summaries.look(look).await
}
