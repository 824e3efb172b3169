//! What each experiment is doing now, for the health of the service and its start page.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::clock::UnixMicros;
use crate::measurement::RunId;

/// How much later than it should an experiment may report before it counts as stuck.
const SLACK: Duration = Duration::from_secs(60);

/// What the experiments reported last, shared between the scheduler and the server.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<BTreeMap<String, Report>>>);

#[derive(Clone, Debug)]
struct Report {
    doing: Doing,
    /// When the next report is due; absent while the store is waited for, which has a health of its own.
    due: Option<Instant>,
}

/// What an experiment is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "doing")]
pub enum Doing {
    /// It waits for its next slot.
    Waiting {
        /// The slot's planned time.
        next: UnixMicros,
    },
    /// It measures.
    Running {
        /// The slot's planned time.
        planned: UnixMicros,
        /// The run's name.
        run_id: RunId,
    },
    /// It waits for the store.
    Storing,
}

impl Board {
    /// Notes what an experiment does, and that it reports again within `next_report` (`None`: when the
    /// store has answered).
    pub fn report(&self, experiment: &str, doing: Doing, next_report: Option<Duration>) {
        let due = next_report.map(|within| Instant::now() + within + SLACK);
        self.reports().insert(experiment.to_owned(), Report { doing, due });
    }

    /// What every experiment does.
    pub fn all(&self) -> BTreeMap<String, Doing> {
        self.reports().iter().map(|(name, report)| (name.clone(), report.doing.clone())).collect()
    }

    /// The experiments whose report is overdue: their task is stuck or gone.
    pub fn stuck(&self) -> Vec<String> {
        let now = Instant::now();
        let overdue = |report: &Report| report.due.is_some_and(|due| due < now);
        self.reports().iter().filter(|(_, report)| overdue(report)).map(|(name, _)| name.clone()).collect()
    }

    fn reports(&self) -> MutexGuard<'_, BTreeMap<String, Report>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_experiment_that_does_not_report_is_stuck() {
        let board = Board::default();
        board.report("a", Doing::Waiting { next: UnixMicros(0) }, Some(Duration::from_secs(1)));
        board.report("b", Doing::Storing, None);
        assert_eq!(board.stuck(), Vec::<String>::new());
        tokio::time::advance(SLACK + Duration::from_secs(2)).await;
        assert_eq!(board.stuck(), ["a"]);
    }
}
