//! The runs that are under way: their payloads are served whatever strangers ask for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::measurement::RunId;

/// The names of the runs under way, shared between the scheduler and the server; and of each, whether
/// its payload has been asked for.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Mutex<HashMap<RunId, bool>>>);

/// A run's entry; it goes with this value.
#[derive(Debug)]
pub struct Entry {
    runs: InFlight,
    id: RunId,
}

impl InFlight {
    /// Enters a run, until the entry is dropped.
    pub fn enter(&self, id: RunId) -> Entry {
        self.runs().insert(id.clone(), false);
        Entry { runs: self.clone(), id }
    }

    /// Whether a run of this name is under way.
    pub fn contains(&self, id: &RunId) -> bool {
        self.runs().contains_key(id)
    }

    /// Whether a run of this name is under way and asks for the first time. Its name passes the relays in
    /// the clear, so who asks again is a stranger.
    pub fn claim(&self, id: &RunId) -> bool {
        self.runs().get_mut(id).is_some_and(|claimed| !std::mem::replace(claimed, true))
    }

    fn runs(&self) -> MutexGuard<'_, HashMap<RunId, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.runs.runs().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_granted_one_payload_while_it_is_under_way() {
        let (runs, id) = (InFlight::default(), RunId::from_bits(1));
        assert!(!runs.claim(&id));
        let entry = runs.enter(id.clone());
        assert!(runs.contains(&id) && runs.claim(&id) && !runs.claim(&id));
        drop(entry);
        assert!(!runs.contains(&id));
    }
}
