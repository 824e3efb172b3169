//! How often somebody may come with a wrong token.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::serve::Peer;

/// So many wrong tokens of one client are looked at in [`SPAN`].
pub const MOST: u32 = 10;

/// Then it is turned away, with right ones too, until this time is over.
pub const SPAN: Duration = Duration::from_secs(60);

/// So many clients are told apart; those beyond count as one.
const PEERS: usize = 1024;

/// Wrong tokens of late, by client.
#[derive(Debug, Default)]
pub struct Attempts(Mutex<Counts>);

#[derive(Debug, Default)]
struct Counts {
    since: Option<Instant>,
    failed: HashMap<Option<IpAddr>, u32>,
}

impl Attempts {
    /// Whether a token of this client is looked at.
    pub fn may(&self, peer: Option<Peer>) -> bool {
        self.with(peer, |count| *count < MOST)
    }

    /// Notes that one was wrong.
    pub fn failed(&self, peer: Option<Peer>) {
        self.with(peer, |count| *count = count.saturating_add(1));
    }

    fn with<T>(&self, peer: Option<Peer>, look: impl FnOnce(&mut u32) -> T) -> T {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.since.is_none_or(|since| since.elapsed() >= SPAN) {
            *counts = Counts { since: Some(Instant::now()), failed: HashMap::new() };
        }
        let address = peer.map(|Peer(address)| address);
        let told_apart = counts.failed.contains_key(&address) || counts.failed.len() < PEERS;
        let key = if told_apart { address } else { None };
        let count = counts.failed.get(&key).copied().unwrap_or(0);
        let (before, mut count) = (count, count);
        let seen = look(&mut count);
        if count != before {
            counts.failed.insert(key, count);
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u32) -> Option<Peer> {
        Some(Peer(std::net::Ipv4Addr::from(n).into()))
    }

    #[tokio::test(start_paused = true)]
    async fn who_fails_too_often_waits_and_others_do_not() {
        let attempts = Attempts::default();
        for _ in 0..MOST {
            assert!(attempts.may(peer(1)));
            attempts.failed(peer(1));
        }
        assert!(!attempts.may(peer(1)) && attempts.may(peer(2)));
        tokio::time::advance(SPAN).await;
        assert!(attempts.may(peer(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn clients_beyond_number_count_as_one() {
        let attempts = Attempts::default();
        (0..100_000).for_each(|n| attempts.failed(peer(n)));
        assert_eq!(attempts.0.lock().unwrap().failed.len(), PEERS + 1);
        assert!(attempts.may(peer(1)) && !attempts.may(peer(200_000)));
    }
}
