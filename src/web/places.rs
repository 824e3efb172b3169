//! Places that few may have at a time, and one client only some of.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::serve::Peer;

/// A number of places, of which each peer may have a share.
#[derive(Clone, Debug)]
pub struct Places {
    all: usize,
    share: usize,
    taken: Arc<Mutex<HashMap<Option<IpAddr>, usize>>>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Place {
    places: Places,
    peer: Option<IpAddr>,
}

impl Places {
    /// So many places, and of these so many for one peer.
    pub fn new(all: usize, share: usize) -> Self {
        Places { all, share, taken: Arc::default() }
    }

    /// A place for this peer (or for one unknown), if there is one left for it.
    pub fn take(&self, peer: Option<Peer>) -> Option<Place> {
        let peer = peer.map(|Peer(address)| address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let own = taken.get(&peer).copied().unwrap_or(0);
        if own >= self.share || taken.values().sum::<usize>() >= self.all {
            return None;
        }
        taken.insert(peer, own + 1);
        Some(Place { places: self.clone(), peer })
    }

    /// How many are taken now.
    pub fn taken(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.peer) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_peer_does_not_get_them_all() {
        let places = Places::new(3, 2);
        let peer = |n: u8| Some(Peer([192, 0, 2, n].into()));
        let first: Vec<_> = (0..5).filter_map(|_| places.take(peer(1))).collect();
        assert_eq!(first.len(), 2);
        let second = places.take(peer(2));
        assert!(second.is_some() && places.take(peer(3)).is_none(), "all three are taken");
        drop(first);
        assert!(places.take(peer(3)).is_some());
    }
}
