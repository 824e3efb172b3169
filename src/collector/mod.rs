//! Closing days: once all that belongs to a UTC day is there, its files are made and stored, and never change again.
//!
//! Tor's CollecTor fetches a file once. So a day is closed when it is over, its last run has been for some time (what
//! tor tells later comes within moments), and every slot planned within it has come to something. Days are closed one
//! after the other, the earliest first; what perfd missed while it was not running it makes up for at its start.

mod day;
#[cfg(test)]
mod tests;

use std::io;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use day::{DayFiles, FinishedDay, bytes_of};

use crate::clock::{Clock, UnixMicros};
use crate::config::{Config, Experiment};
use crate::export::collector::{date, day_of, start_of};
use crate::export::onionperf::measurement_ip;
use crate::measurement::Kind;
use crate::slot::Grid;
use crate::store::{Publishable, Store, StoreError, StoreReader};

/// So long after its end, and after that of its last run, a day is closed.
pub const SETTLE: Duration = Duration::from_secs(120);

/// How often it is looked whether a day can be closed.
const LOOK: Duration = Duration::from_secs(20);

/// The first time is so long after the start.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// Results in one read of the store. Of a day that is being closed, so many are in memory, and its files, compressed.
pub const PAGE: usize = 100;

/// Closes days.
pub struct Publisher {
    store: Store,
    clock: Clock,
    source: String,
    measurement_ip: String,
    /// Experiments whose slots are waited for.
    awaited: Vec<(String, Grid)>,
    /// Experiments that are kept out.
    but: Vec<String>,
    /// Every day before this moment is closed, or had no result.
    closed_until: UnixMicros,
}

/// Why a day was not closed.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the files can't be made: {0}")]
    Making(#[from] io::Error),
    #[error("a thread that made files panicked")]
    Panicked,
}

impl Publisher {
    /// What closes the days of this configuration; `None` where it is to publish nothing.
    pub fn new(config: &Config, store: Store, clock: Clock) -> Option<Self> {
        config.collector.path.as_ref()?;
        let plain = |experiment: &&Experiment| {
            experiment.publish
                && experiment.kind == Kind::Download
                && experiment.requests == 1
                && experiment.tors.len() == 1
        };
        let grid = |e: &Experiment| (e.name.clone(), Grid::new(e.every, e.offset));
        let kept_out = config.experiments.iter().filter(|experiment| !experiment.publish);
        Some(Publisher {
            store,
            clock,
            source: config.source.clone(),
            measurement_ip: measurement_ip(config.public.as_ref().map(|public| public.host.as_str())),
            awaited: config.experiments.iter().filter(plain).map(grid).collect(),
            but: kept_out.map(|experiment| experiment.name.clone()).collect(),
            closed_until: UnixMicros(i64::MIN),
        })
    }

    /// Closes days as they settle, until `shutdown`. Trouble is logged, and tried again.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut last_trouble = String::new();
        // By then the experiments have entered what was missed.
        let mut pause = FIRST_LOOK;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
            pause = LOOK;
            match self.close_days(&shutdown).await {
                Ok(_) => last_trouble.clear(),
                Err(Trouble::Store(StoreError::Closed | StoreError::Failing(_))) => return,
                // It passes.
                Err(Trouble::Store(StoreError::Busy)) => {}
                Err(trouble) => {
                    let trouble = trouble.to_string();
                    if trouble != last_trouble {
                        warn!(%trouble, "a finished day can't be published; it is tried again");
                        last_trouble = trouble;
                    }
                }
            }
        }
    }

    /// Closes every day that has settled, up to the first that has not. Gives how many were closed.
    async fn close_days(&mut self, shutdown: &CancellationToken) -> Result<u32, Trouble> {
        let reader = self.store.reader().clone();
        let mut closed = 0;
        while let Some(start) = reader.first_start(&self.source, self.closed_until).await? {
            let (day, now) = (day_of(start), self.clock.now());
            if !reader.is_published(day).await? {
                if !self.has_settled(&reader, day, now).await? {
                    break;
                }
                match self.make(&reader, day, shutdown).await? {
                    Some(files) => closed += u32::from(self.store_files(files).await?),
                    None => break,
                }
            }
            self.closed_until = start_of(day + 1);
        }
        Ok(closed)
    }

    async fn has_settled(&self, reader: &StoreReader, day: i64, now: UnixMicros) -> Result<bool, StoreError> {
        let (since, until) = (start_of(day), start_of(day + 1));
        if now < until.plus(SETTLE) {
            return Ok(false);
        }
        let last_end = reader.last_end(since, until).await?;
        if last_end.is_some_and(|end| now < end.plus(SETTLE)) || reader.running_before(until).await? {
            return Ok(false);
        }
        for (experiment, grid) in &self.awaited {
            let last_of_day = grid.latest_at(UnixMicros(until.0 - 1));
            // One that has no slot yet has not begun.
            if reader.last_slot(experiment).await?.is_some_and(|last| last.planned_last < last_of_day) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The files of a day; `None` if perfd is to end. As long as each step took it rests, for the measurements' sake.
    async fn make(
        &self,
        reader: &StoreReader,
        day: i64,
        shutdown: &CancellationToken,
    ) -> Result<Option<DayFiles>, Trouble> {
        let which = Publishable {
            source: self.source.clone(),
            since: start_of(day),
            until: start_of(day + 1),
            but: self.but.clone(),
        };
        let mut files = DayFiles::new(&self.source, &self.measurement_ip, day)?;
        let (mut after, mut whole) = (None, false);
        let mut more = true;
        while !whole {
            let begun = Instant::now();
            let rows = if more { reader.publishable_page(&which, after.take(), PAGE).await? } else { Vec::new() };
            more = rows.len() == PAGE;
            after = rows.last().map(|row| (row.measurement.start, row.measurement.id.clone()));
            let work = move || {
                files.add(&rows)?;
                let whole = !more && files.finish_some()?;
                Ok::<_, io::Error>((files, whole))
            };
            (files, whole) = tokio::task::spawn_blocking(work).await.map_err(|_| Trouble::Panicked)??;
            tokio::select! {
                () = tokio::time::sleep(begun.elapsed()) => {}
                () = shutdown.cancelled() => return Ok(None),
            }
        }
        Ok(Some(files))
    }

    async fn store_files(&self, files: DayFiles) -> Result<bool, Trouble> {
        let day = files.into_finished(self.clock.now())?;
        let (date, results, names) = (date(day.published.day), day.results, day.published.files.len());
        let stored = self.store.publish(day.published).await?;
        if stored {
            info!(day = date, results, files = names, "a finished day is published");
        }
        Ok(stored)
    }
}
