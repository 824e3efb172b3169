//! Wall-clock time, in microseconds since the Unix epoch (no I/O but reading the clock).
//!
//! A measurement reads the wall clock once, at START, and the monotonic clock from then on; the
//! scheduler asks a [`Clock`], so that tests can drive it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment in UTC: microseconds since the Unix epoch, negative before it.
///
/// Shown and serialized as RFC 3339 with six decimals (`2026-11-22T10:00:00.000000Z`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMicros(pub i64);

impl UnixMicros {
    /// The system's wall clock, now.
    pub fn now() -> Self {
        let since = |d: Duration| i64::try_from(d.as_micros()).unwrap_or(i64::MAX);
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(after) => UnixMicros(since(after)),
            Err(before) => UnixMicros(since(before.duration()).saturating_neg()),
        }
    }

    /// This moment and `later` after it, saturating.
    pub fn plus(self, later: Duration) -> Self {
        UnixMicros(self.0.saturating_add(i64::try_from(later.as_micros()).unwrap_or(i64::MAX)))
    }

    /// How long after `earlier` this moment is; zero if it is not after it.
    pub fn since(self, earlier: UnixMicros) -> Duration {
        let micros = self.0.saturating_sub(earlier.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    }

    /// Reads `2026-11-22T10:00:00Z` (any RFC 3339 offset), `2026-11-22` (midnight UTC), or seconds
    /// since the epoch with up to six decimals.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(micros) = parse_epoch_seconds(text) {
            return Some(UnixMicros(micros));
        }
        if let Ok(moment) = text.parse::<jiff::Timestamp>() {
            return Some(UnixMicros(moment.as_microsecond()));
        }
        let midnight = text.parse::<jiff::civil::Date>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(UnixMicros(midnight.timestamp().as_microsecond()))
    }
}

fn parse_epoch_seconds(text: &str) -> Option<i64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(decimals) || decimals.len() > 6 {
        return None;
    }
    let micros: i64 = format!("{decimals:0<6}").parse().ok()?;
    whole.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add(micros)
}

impl fmt::Display for UnixMicros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_microsecond(self.0) {
            Ok(moment) => write!(f, "{moment:.6}"),
            Err(_) => write!(f, "{} µs", self.0),
        }
    }
}

impl fmt::Debug for UnixMicros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for UnixMicros {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UnixMicros {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse::<jiff::Timestamp>().map(|moment| UnixMicros(moment.as_microsecond())).map_err(D::Error::custom)
    }
}

/// Where the scheduler reads the wall clock.
///
/// The real clock is the system's. The steered one follows tokio's time, which tests can pause and
/// advance, plus an offset that they can step, as an operator or NTP would step the system's.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's wall clock.
    System,
    /// A clock that tests steer.
    Steered(SteeredClock),
}

impl Clock {
    /// The wall clock, now.
    pub fn now(&self) -> UnixMicros {
        match self {
            Clock::System => UnixMicros::now(),
            Clock::Steered(clock) => clock.now(),
        }
    }
}

/// A wall clock that runs with tokio's (pausable) time and can be stepped.
#[derive(Clone, Debug)]
pub struct SteeredClock {
    origin: tokio::time::Instant,
    at_origin: Arc<AtomicI64>,
}

impl SteeredClock {
    /// A clock that shows `start` now. Must be made inside a tokio runtime.
    pub fn starting_at(start: UnixMicros) -> Self {
        SteeredClock { origin: tokio::time::Instant::now(), at_origin: Arc::new(AtomicI64::new(start.0)) }
    }

    /// What the clock shows.
    pub fn now(&self) -> UnixMicros {
        UnixMicros(self.at_origin.load(Ordering::SeqCst)).plus(self.origin.elapsed())
    }

    /// Moves the clock's hands by `micros`, forwards or back, without time passing.
    pub fn step(&self, micros: i64) {
        self.at_origin.fetch_add(micros, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_three_forms_and_shown_in_one() {
        for text in ["2026-11-22T10:00:00.5Z", "2026-11-22T11:00:00.5+01:00", "1795341600.5"] {
            assert_eq!(UnixMicros::parse(text).unwrap().to_string(), "2026-11-22T10:00:00.500000Z");
        }
        assert_eq!(UnixMicros::parse("2026-11-22").unwrap().to_string(), "2026-11-22T00:00:00.000000Z");
        for text in ["", "now", "1.", ".5", "1.1234567", "-5", "2026-13-01", "99999999999999999999"] {
            assert_eq!(UnixMicros::parse(text), None, "{text}");
        }
    }
}
