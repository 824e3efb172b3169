//! Working off the schedule: each experiment waits for its slots, has them measured, and hands result
//! and slot to the store in one piece.
//!
//! One task an experiment, so that runs of one experiment never overlap and those of another are not
//! held up. What is due is decided in [`plan`]; this module only carries it out.

mod board;
pub mod plan;
mod routes;
mod runs;

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

pub use board::{Board, Doing};

use crate::clock::{Clock, UnixMicros};
use crate::config::Experiment;
use crate::payload::Secret;
use crate::payload::in_flight::InFlight;
use crate::probe::Prober;
use crate::slot::{Grid, SlotId, SlotReason, SlotRow, SlotState};
use crate::store::{NewResult, Store, StoreError};
use plan::{Due, Gap, Plan};
pub use routes::{Route, Server};

/// The clock is looked at at least this often while a slot is waited for, so that a step of it is noticed.
const HOP: Duration = Duration::from_secs(1);

/// So often a read is tried that finds no free reader: each try waits by itself.
const READ_TRIES: u32 = 30;

/// Why an experiment's task ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The store is closed, or can't be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The measuring thread is gone.
    #[error("the measuring thread has ended")]
    ProberGone,
}

/// What all experiments share.
#[derive(Clone)]
pub struct Means {
    /// The wall clock.
    pub clock: Clock,
    /// Where slots and results go.
    pub store: Store,
    /// What measures.
    pub prober: Prober,
    /// What the payloads are keyed with.
    pub secret: Secret,
    /// The runs under way.
    pub in_flight: InFlight,
    /// What the experiments are doing.
    pub board: Board,
}

/// One experiment, with all that it needs to run.
pub struct Experimenter {
    /// What is measured, and when.
    pub experiment: Experiment,
    /// The tors that it is measured through, and to which server.
    pub routes: Vec<Route>,
    /// The instance's name.
    pub source: String,
    /// The configuration in force, as it is stored beside each result.
    pub configuration: String,
    /// What all experiments share.
    pub means: Means,
}

/// How long the last slot took, to tell why slots that came due meanwhile were not run.
struct Occupied {
    begun: UnixMicros,
    measuring: Duration,
    total: Duration,
}

impl Occupied {
    /// Nothing was measured; the store was waited for.
    fn by_the_store(begun: UnixMicros, total: Duration) -> Self {
        Occupied { begun, measuring: Duration::ZERO, total }
    }
}

impl Experimenter {
    /// Works off the schedule until `shutdown`; a run under way is then cut off and its slot aborted.
    ///
    /// # Errors
    /// If the store or the measuring thread is gone. Failed runs are no errors, and while the store
    /// can't be written this waits for it.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), SchedulerError> {
        let (begun, since) = (self.means.clock.now(), Instant::now());
        let mut plan = self.take_up().await?;
        let mut occupied = Some(Occupied::by_the_store(begun, since.elapsed()));
        while !shutdown.is_cancelled() {
            match plan.due(self.means.clock.now()) {
                Due::Later(next) => {
                    occupied = None;
                    self.means.board.report(&self.experiment.name, Doing::Waiting { next }, Some(HOP));
                    let hop = next.since(self.means.clock.now()).min(HOP);
                    pause(hop, &shutdown).await;
                }
                Due::Run(planned) => {
                    occupied = self.slot(planned, &shutdown).await?;
                    plan.account(planned);
                }
                Due::Gap(gap) => {
                    let (begun, since) = (self.means.clock.now(), Instant::now());
                    self.record_gap(gap, occupied.as_ref()).await?;
                    plan.account(gap.last);
                    occupied = Some(Occupied::by_the_store(begun, since.elapsed()));
                }
                Due::SteppedBack => {
                    warn!(
                        experiment = self.experiment.name,
                        "the clock was stepped back; going on in the slots that are free"
                    );
                    plan.resume(self.means.clock.now());
                }
            }
        }
        Ok(())
    }

    fn grid(&self) -> Grid {
        Grid::new(self.experiment.every, self.experiment.offset)
    }

    /// Picks up where the ledger ends: what came due while perfd was not running was missed.
    async fn take_up(&self) -> Result<Plan, SchedulerError> {
        let Experiment { every, jitter, ref name, .. } = self.experiment;
        let (store, now) = (&self.means.store, self.means.clock.now());
        let plan = Plan::new(self.grid(), plan::grace(every, self.longest(), jitter), now);
        let Some(last) = patiently(|| store.reader().last_slot(name)).await? else { return Ok(plan) };
        if last.planned_last > now {
            warn!(experiment = name, last = %last.planned_last, "the ledger goes on after the present time: was the clock wrong, or is it?");
            return Ok(plan);
        }
        let grid = self.grid();
        let count = grid.count_between(last.planned_last, now);
        if count > 0 {
            let gap = Gap { first: grid.next_after(last.planned_last), last: grid.latest_at(now), count };
            self.record_gap(gap, None).await?;
        }
        Ok(plan)
    }

    /// Tries one slot. Returns how long that took, unless it was given up at once.
    async fn slot(
        &self,
        planned: UnixMicros,
        shutdown: &CancellationToken,
    ) -> Result<Option<Occupied>, SchedulerError> {
        let Experiment { every, jitter, ref name, .. } = self.experiment;
        let Means { clock, store, board, .. } = &self.means;
        let jitter_drawn = plan::jitter_of(name, planned, jitter);
        board.report(name, Doing::Waiting { next: planned }, Some(jitter_drawn));
        if self.ready_routes().is_ok() {
            pause(planned.plus(jitter_drawn).since(clock.now()).min(jitter_drawn), shutdown).await;
        }
        if shutdown.is_cancelled() {
            return Ok(None);
        }
        let (routes, left_out) = match self.ready_routes() {
            Ok(routes) => routes,
            Err(reason) => {
                let (begun, since) = (clock.now(), Instant::now());
                let gap = Gap { first: planned, last: planned, count: 1 };
                self.record(gap, SlotState::Skipped, Some(reason)).await?;
                return Ok(Some(Occupied::by_the_store(begun, since.elapsed())));
            }
        };

        let latest = planned.plus(jitter_drawn).plus(plan::grace(every, self.longest(), jitter));
        let (begun, since) = (clock.now(), Instant::now());
        let slot = SlotId { experiment: name.clone(), planned };
        board.report(name, Doing::Storing, None);
        match store.begin_slot(slot.clone(), self.grid(), begun).await {
            Err(StoreError::SlotTaken(_)) => {
                info!(experiment = name, slot = %planned, "this slot is in the ledger already; not run again");
                return Ok(None);
            }
            other => other?,
        }
        if begun.plus(since.elapsed()) > latest {
            // The store could not be written for so long that a run would reach into the next slot.
            self.end_slot(slot, SlotState::Skipped, Some(SlotReason::StoreDown), Vec::new()).await?;
            return Ok(Some(Occupied::by_the_store(begun, since.elapsed())));
        }

        let (last, whole) = self.runs(&slot, routes, shutdown).await?;
        let measuring = since.elapsed();
        board.report(name, Doing::Storing, None);
        let (state, reason) = match whole {
            true => (SlotState::Done, left_out),
            false => (SlotState::Aborted, Some(SlotReason::Shutdown)),
        };
        let result = last.iter().map(|run| run.result.clone()).collect();
        if self.end_slot(slot, state, reason, result).await?
            && let Some(run) = last
        {
            run.stored(name);
        }
        Ok(Some(Occupied { begun, measuring, total: since.elapsed() }))
    }

    /// The longest that the runs of a slot may take together.
    fn longest(&self) -> Duration {
        self.experiment.timeout.saturating_mul(self.runs_of_a_slot())
    }

    /// Commits the end of a slot with its results. `false` if the store refuses this one write, which is
    /// logged with all that would be lost.
    async fn end_slot(
        &self,
        slot: SlotId,
        state: SlotState,
        reason: Option<SlotReason>,
        results: Vec<NewResult>,
    ) -> Result<bool, SchedulerError> {
        let lost = results.clone();
        match self.means.store.finish_slot(slot.clone(), state, reason, self.means.clock.now(), results).await {
            Ok(_) => Ok(true),
            Err(e @ (StoreError::Failing(_) | StoreError::Closed)) => {
                error!(error = %e, ?lost, "perfd ends while the store can't be written; this is lost");
                Err(e.into())
            }
            Err(e) => {
                error!(error = %e, ?lost, "the store refuses this result");
                if !lost.is_empty() {
                    let (state, reason) = (SlotState::Aborted, Some(SlotReason::ResultRefused));
                    Box::pin(self.end_slot(slot, state, reason, Vec::new())).await?;
                }
                Ok(false)
            }
        }
    }

    /// Enters slots that can't be run any more into the ledger: those that came due while the last run
    /// was going, or its result waiting for the store, were skipped; the rest was missed.
    async fn record_gap(&self, gap: Gap, occupied: Option<&Occupied>) -> Result<(), SchedulerError> {
        let mut rest = Some(gap);
        if let Some(Occupied { begun, measuring, total }) = occupied {
            for (until, reason) in [(measuring, SlotReason::Busy), (total, SlotReason::StoreDown)] {
                let Some(gap) = rest else { break };
                let (skipped, later) = gap.split_at(begun.plus(*until), &self.grid());
                if let Some(skipped) = skipped {
                    self.record(skipped, SlotState::Skipped, Some(reason)).await?;
                }
                rest = later;
            }
        }
        if let Some(missed) = rest {
            self.record(missed, SlotState::Missed, None).await?;
        }
        Ok(())
    }

    async fn record(&self, gap: Gap, state: SlotState, reason: Option<SlotReason>) -> Result<(), SchedulerError> {
        let Gap { first, last, count } = gap;
        let name = &self.experiment.name;
        self.means.board.report(name, Doing::Storing, None);
        let row = SlotRow {
            experiment: name.clone(),
            planned: first,
            planned_last: last,
            count,
            state,
            reason,
            started: None,
            ended: None,
        };
        let entered = self.means.store.record_slots(row, self.grid()).await?;
        let why = reason.map(SlotReason::as_str);
        if entered > 0 {
            info!(experiment = name, slots = entered, %first, %last, why, "slots {}", state.as_str());
        }
        Ok(())
    }
}

/// Reads even while strangers keep the readers busy.
async fn patiently<T, F: Future<Output = Result<T, StoreError>>>(read: impl Fn() -> F) -> Result<T, StoreError> {
    for _ in 1..READ_TRIES {
        match read().await {
            Err(StoreError::Busy) => {}
            other => return other,
        }
    }
    read().await
}

async fn pause(time: Duration, shutdown: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = shutdown.cancelled() => {}
    }
}
