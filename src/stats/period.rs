//! The spans of time that statistics are grouped by: hours, days, weeks and months of UTC.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::clock::UnixMicros;

/// A span of UTC. A week is ISO 8601's: it begins on Monday.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Period {
    /// From minute 0.
    Hour,
    /// From midnight.
    Day,
    /// From Monday's midnight.
    Week,
    /// From the first day's midnight.
    Month,
}

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;

/// 1970-01-05 was a Monday.
const A_MONDAY: i64 = 4 * DAY;

impl Period {
    /// Every period, with the word that the API uses for it.
    pub const ALL: [(Period, &'static str); 4] =
        [(Period::Hour, "hour"), (Period::Day, "day"), (Period::Week, "week"), (Period::Month, "month")];

    /// The period's word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// The period of that word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, w)| *w == word).map(|(p, _)| *p)
    }

    /// When the period began that holds `at`.
    ///
    /// Beyond the years -9999 to 9999, which no calendar here reaches, a month begins with its day.
    pub fn start_of(self, at: UnixMicros) -> UnixMicros {
        let on_grid =
            |every: i64, offset: i64| UnixMicros(at.0.saturating_sub(at.0.saturating_sub(offset).rem_euclid(every)));
        match self {
            Period::Hour => on_grid(HOUR, 0),
            Period::Day => on_grid(DAY, 0),
            Period::Week => on_grid(DAY * 7, A_MONDAY),
            Period::Month => {
                date(at).and_then(|date| midnight(date.first_of_month())).unwrap_or_else(|| Period::Day.start_of(at))
            }
        }
    }

    /// When the next period begins after the one that holds `at`.
    pub fn next(self, at: UnixMicros) -> UnixMicros {
        let start = self.start_of(at);
        let later = |span: i64| UnixMicros(start.0.saturating_add(span));
        match self {
            Period::Hour => later(HOUR),
            Period::Day => later(DAY),
            Period::Week => later(DAY * 7),
            Period::Month => date(at)
                .and_then(|date| date.last_of_month().tomorrow().ok())
                .and_then(midnight)
                .unwrap_or_else(|| Period::Day.next(at)),
        }
    }
}

/// The UTC day of `at`, in days since 1970-01-01.
pub fn day_of(at: UnixMicros) -> i64 {
    at.0.div_euclid(DAY)
}

/// When this day began, `day` in days since 1970-01-01; saturating.
pub fn start_of_day(day: i64) -> UnixMicros {
    UnixMicros(day.saturating_mul(DAY))
}

/// A day as `2026-11-22`, `day` in days since 1970-01-01; beyond the calendar (years -9999 to 9999) its number.
pub fn date_text(day: i64) -> String {
    date(start_of_day(day)).map_or_else(|| day.to_string(), |date| date.to_string())
}

fn date(at: UnixMicros) -> Option<Date> {
    let moment = jiff::Timestamp::from_microsecond(at.0).ok()?;
    Some(TimeZone::UTC.to_datetime(moment).date())
}

fn midnight(date: Date) -> Option<UnixMicros> {
    let moment = TimeZone::UTC.to_timestamp(DateTime::from(date)).ok()?;
    Some(UnixMicros(moment.as_microsecond()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> UnixMicros {
        UnixMicros::parse(text).unwrap()
    }

    #[test]
    fn periods_begin_where_the_calendar_says() {
        // 2026-11-25 is a Wednesday; 2026-01-01 a Thursday, whose week began in the year before.
        for (period, moment, start, next) in [
            (Period::Hour, "2026-11-25T13:59:59.999999Z", "2026-11-25T13:00:00Z", "2026-11-25T14:00:00Z"),
            (Period::Day, "2026-11-25T13:59:59Z", "2026-11-25", "2026-11-26"),
            (Period::Week, "2026-11-25T13:59:59Z", "2026-11-23", "2026-11-30"),
            (Period::Week, "2026-11-23T00:00:00Z", "2026-11-23", "2026-11-30"),
            (Period::Week, "2026-11-22T23:59:59Z", "2026-11-16", "2026-11-23"),
            (Period::Week, "2026-01-01", "2025-12-29", "2026-01-05"),
            (Period::Month, "2026-11-25T13:59:59Z", "2026-11-01", "2026-12-01"),
            (Period::Month, "2028-02-29T12:00:00Z", "2028-02-01", "2028-03-01"),
            (Period::Month, "2026-12-31T23:59:59Z", "2026-12-01", "2027-01-01"),
            (Period::Month, "1969-12-31T23:59:59Z", "1969-12-01", "1970-01-01"),
        ] {
            assert_eq!((period.start_of(at(moment)), period.next(at(moment))), (at(start), at(next)), "{moment}");
        }
        assert_eq!(
            (date_text(0), date_text(20_417), date_text(-1)),
            ("1970-01-01".into(), "2025-11-25".into(), "1969-12-31".into())
        );
        assert_eq!(day_of(at("2025-11-25T23:59:59Z")), 20_417);
    }

    #[test]
    fn words_and_values_match() {
        for (period, word) in Period::ALL {
            assert_eq!((period.as_str(), Period::parse(word)), (word, Some(period)));
        }
    }

    proptest! {
        #[test]
        fn periods_leave_no_gap(moment in any::<i64>()) {
            for (period, _) in Period::ALL {
                let (start, next) = (period.start_of(UnixMicros(moment)), period.next(UnixMicros(moment)));
                prop_assert!(start.0 <= moment && (moment < next.0 || next.0 == i64::MAX));
                prop_assert_eq!(period.start_of(start), start);
                prop_assert_eq!(period.next(start), next);
                if next.0 < i64::MAX {
                    prop_assert_eq!(period.start_of(next), next);
                }
            }
        }
    }
}
