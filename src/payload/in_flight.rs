//! The runs that are under way: their payloads are served whatever strangers ask for.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::measurement::RunId;

/// The names of the runs under way, shared between the scheduler and the server.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Mutex<HashSet<RunId>>>);

/// A run's entry; it goes with this value.
#[derive(Debug)]
pub struct Entry {
    runs: InFlight,
    id: RunId,
}

impl InFlight {
    /// Enters a run, until the entry is dropped.
    pub fn enter(&self, id: RunId) -> Entry {
        self.set().insert(id.clone());
        Entry { runs: self.clone(), id }
    }

    /// Whether a run of this name is under way.
    pub fn contains(&self, id: &RunId) -> bool {
        self.set().contains(id)
    }

    fn set(&self) -> MutexGuard<'_, HashSet<RunId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.runs.set().remove(&self.id);
    }
}
