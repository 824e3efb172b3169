//! Counters of perfd's own results since the store began, kept in the transaction that stores each: what a monitor
//! reads again and again must not cost more with every result there is.
//!
//! Table `total` has a row an experiment, name and label:
//!
//! | name | label | value |
//! |---|---|---|
//! | `results` | `complete`, `timeout/PHASE` or `failed/PHASE/CAUSE` | results that ended like this |
//! | `first_byte` | an upper bound in seconds of [`FIRST_BYTE_BOUNDS`], or `+Inf` | results whose time to the first byte is at most this, and more than the bound before |
//! | `last_byte` | the same of [`LAST_BYTE_BOUNDS`] | results whose time to the last byte is, likewise |
//! | `first_byte_us`, `last_byte_us` | empty | the sum of these times, µs |
//! | `bytes_read`, `bytes_written` | empty | bytes of HTTP, headers included |
//!
//! Times are counted of results that have them, whatever their outcome.

use std::collections::BTreeMap;

use rusqlite::{Connection, Result, params};

/// Upper bounds of the buckets of the time to the first byte, milliseconds.
pub const FIRST_BYTE_BOUNDS: [u64; 16] =
    [100, 250, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000];

/// Upper bounds of the buckets of the time to the last byte, milliseconds.
pub const LAST_BYTE_BOUNDS: [u64; 20] = [
    100, 250, 500, 750, 1_000, 1_500, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 30_000, 60_000, 120_000, 300_000,
    600_000, 1_200_000, 1_800_000, 3_600_000,
];

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Total {
    /// The experiment's name.
    pub experiment: String,
    /// What is counted: `results`, `first_byte`, `first_byte_us`, `last_byte`, `last_byte_us`, `bytes_read` or
    /// `bytes_written`.
    pub name: String,
    /// Of which kind (an outcome, a bucket); empty where there is but one.
    pub label: String,
    /// How many; it stays at 2^63 − 1 once it is there.
    pub value: u64,
}

/// The label of the bucket with this upper bound in milliseconds, in seconds: `0.1`, `1.5`, `3600`.
pub fn bound_label(milliseconds: u64) -> String {
    let text = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// What one result adds.
#[derive(Clone, Debug)]
pub(super) struct Counted<'a> {
    pub experiment: &'a str,
    pub outcome: &'a str,
    pub phase: Option<&'a str>,
    pub cause: Option<&'a str>,
    /// µs after START.
    pub first_byte: Option<u64>,
    /// µs after START.
    pub last_byte: Option<u64>,
    pub read: u64,
    pub written: u64,
}

/// Counts of several results, to be added at once.
#[derive(Debug, Default)]
pub(super) struct Counts(BTreeMap<(String, &'static str, String), u64>);

impl Counts {
    /// Adds one result.
    pub(super) fn add(&mut self, result: &Counted<'_>) {
        let words = [Some(result.outcome), result.phase, result.cause].into_iter().flatten().collect::<Vec<_>>();
        self.put(result.experiment, "results", words.join("/"), 1);
        let times = [
            ("first_byte", "first_byte_us", result.first_byte, &FIRST_BYTE_BOUNDS[..]),
            ("last_byte", "last_byte_us", result.last_byte, &LAST_BYTE_BOUNDS[..]),
        ];
        for (buckets, sum, time, bounds) in times {
            let Some(time) = time else { continue };
            let bound = bounds.iter().find(|bound| time <= **bound * 1000);
            self.put(result.experiment, buckets, bound.map_or("+Inf".to_owned(), |bound| bound_label(*bound)), 1);
            self.put(result.experiment, sum, String::new(), time);
        }
        self.put(result.experiment, "bytes_read", String::new(), result.read);
        self.put(result.experiment, "bytes_written", String::new(), result.written);
    }

    fn put(&mut self, experiment: &str, name: &'static str, label: String, more: u64) {
        let value = self.0.entry((experiment.to_owned(), name, label)).or_default();
        *value = value.saturating_add(more);
    }

    /// Adds all of this to the table.
    pub(super) fn store(self, conn: &Connection) -> Result<()> {
        let mut add = conn.prepare_cached(
            "INSERT INTO total (experiment, name, label, value) VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET \
             value = CASE WHEN value > 9223372036854775807 - excluded.value THEN 9223372036854775807 \
                          ELSE value + excluded.value END",
        )?;
        for ((experiment, name, label), value) in self.0 {
            add.execute(params![experiment, name, label, i64::try_from(value).unwrap_or(i64::MAX)])?;
        }
        Ok(())
    }
}

/// All counters, by experiment, name and label.
pub(super) fn totals(conn: &Connection) -> Result<Vec<Total>> {
    conn.prepare_cached("SELECT experiment, name, label, value FROM total ORDER BY 1, 2, 3")?
        .query_map([], |row| {
            let value = u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0);
            Ok(Total { experiment: row.get(0)?, name: row.get(1)?, label: row.get(2)?, value })
        })?
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_in_seconds() {
        let labels: Vec<_> = FIRST_BYTE_BOUNDS.iter().map(|bound| bound_label(*bound)).collect();
        assert_eq!(labels.join(" "), "0.1 0.25 0.5 0.75 1 1.5 2 3 5 7.5 10 15 30 60 120 300");
        assert_eq!(LAST_BYTE_BOUNDS[..16], FIRST_BYTE_BOUNDS);
    }

    #[test]
    fn a_bound_belongs_to_its_bucket_and_sums_saturate() {
        let mut conn = Connection::open_in_memory().unwrap();
        super::super::schema::migrations().to_latest(&mut conn).unwrap();
        let run = Counted {
            experiment: "e",
            outcome: "failed",
            phase: Some("response"),
            cause: Some("socks_reply"),
            first_byte: Some(100_000),
            last_byte: None,
            read: i64::MAX as u64,
            written: 3,
        };
        for first_byte in [Some(100_000), Some(100_001), Some(300_000_001), None] {
            let mut counts = Counts::default();
            counts.add(&Counted { first_byte, ..run.clone() });
            counts.store(&conn).unwrap();
        }
        let found = totals(&conn).unwrap();
        let brief: Vec<_> = found.iter().map(|t| format!("{} {} {}", t.name, t.label, t.value)).collect();
        assert_eq!(
            brief,
            [
                "bytes_read  9223372036854775807",
                "bytes_written  12",
                "first_byte +Inf 1",
                "first_byte 0.1 1",
                "first_byte 0.25 1",
                "first_byte_us  300200002",
                "results failed/response/socks_reply 4",
            ]
        );
    }
}
