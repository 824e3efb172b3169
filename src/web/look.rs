//! A look at the store that many may ask for, and that is made at most once a second.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::store::StoreError;

/// How long a look at the store is good for, and so is word that it can't be read.
const FRESH: Duration = Duration::from_secs(1);

/// While strangers keep the store busy, an older look does for so long.
const STALE: Duration = Duration::from_secs(60);

/// The last looks at the store; while one is made, others wait for it.
pub struct Looks<T>(Mutex<Last<T>>);

struct Last<T> {
    last: Option<(Instant, Result<T, StoreError>)>,
    last_good: Option<(Instant, T)>,
}

impl<T> Default for Looks<T> {
    fn default() -> Self {
        Looks(Mutex::new(Last { last: None, last_good: None }))
    }
}

impl<T: Clone> Looks<T> {
    /// What was seen last, if that is fresh, whether the look succeeded or not: a crowd that asks while the store
    /// can't be read must not wait for one failure after the other. Else what `look` sees now.
    pub async fn look(&self, look: impl AsyncFnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut looks = self.0.lock().await;
        if let Some((at, seen)) = &looks.last
            && at.elapsed() < FRESH
        {
            return seen.clone();
        }
        let seen = match look().await {
            Ok(seen) => {
                looks.last_good = Some((Instant::now(), seen.clone()));
                Ok(seen)
            }
            Err(StoreError::Busy) => match &looks.last_good {
                Some((at, seen)) if at.elapsed() < STALE => Ok(seen.clone()),
                _ => Err(StoreError::Busy),
            },
            Err(other) => Err(other),
        };
        looks.last = Some((Instant::now(), seen.clone()));
        seen
    }
}
