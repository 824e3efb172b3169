//! What was answered, by question and period, as long as what it was made from stays the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Row;

/// So many cells are kept at most, of about 24 bytes each.
const MOST_CELLS: usize = 400_000;

/// Which rows these are: a question but for its window, and from when until when in µs.
pub(super) type Key = (Arc<str>, i64, i64);

/// Rows that were made before. It is bounded: those that were not used for longest go first.
#[derive(Debug, Default)]
pub struct Cache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    kept: HashMap<Key, Kept>,
    cells: usize,
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    mark: u64,
    rows: Arc<Vec<Row>>,
    cells: usize,
    used: u64,
}

impl Cache {
    /// The rows of this key, if they were made from what has this mark.
    pub(super) fn get(&self, key: &Key, mark: u64) -> Option<Arc<Vec<Row>>> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let now = inner.clock;
        let kept = inner.kept.get_mut(key).filter(|kept| kept.mark == mark)?;
        kept.used = now;
        Some(Arc::clone(&kept.rows))
    }

    /// Keeps these rows.
    pub(super) fn put(&self, key: Key, mark: u64, rows: Arc<Vec<Row>>) {
        let cells = 16 + rows.iter().map(|row| row.len() + 2).sum::<usize>();
        if cells > MOST_CELLS / 4 {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.clock += 1;
        let used = inner.clock;
        inner.cells += cells;
        if let Some(before) = inner.kept.insert(key, Kept { mark, rows, cells, used }) {
            inner.cells -= before.cells;
        }
        if inner.cells > MOST_CELLS {
            inner.make_room();
        }
    }
}

impl Inner {
    /// Drops the half that was not used for longest.
    fn make_room(&mut self) {
        let mut ages: Vec<u64> = self.kept.values().map(|kept| kept.used).collect();
        ages.sort_unstable();
        let middle = ages.get(ages.len() / 2).copied().unwrap_or(0);
        self.kept.retain(|_, kept| kept.used > middle);
        self.cells = self.kept.values().map(|kept| kept.cells).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cell;
    use super::*;

    #[test]
    fn rows_are_good_for_their_mark_and_the_oldest_go() {
        let cache = Cache::default();
        let key = |n: i64| -> Key { ("question".into(), n, n + 1) };
        let rows = Arc::new(vec![vec![Cell::Null; 98]; 100]);
        cache.put(key(0), 7, Arc::clone(&rows));
        assert_eq!(
            (cache.get(&key(0), 7), cache.get(&key(0), 8), cache.get(&key(1), 7)),
            (Some(rows.clone()), None, None)
        );
        for n in 1..=60 {
            cache.put(key(n), 7, Arc::clone(&rows));
            assert!(cache.get(&key(0), 7).is_some(), "it is used");
            assert!(cache.inner.lock().unwrap().cells <= MOST_CELLS);
        }
        assert!(cache.get(&key(1), 7).is_none() && cache.get(&key(60), 7).is_some());
    }
}
