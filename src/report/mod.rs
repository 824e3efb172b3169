//! What `/stats/…` and `perfd stats` answer: a statistic over a window of time, period by period, of the results that
//! the store has, beside each figure how many samples it is made of and how many of the planned slots were done.
//!
//! A period's rows are made from the results' rows while they are there; where some are gone, from the roll-ups of the
//! period's days, and are then marked as not exact (hours, relays, Conflux and pairs tell of what is left). What was
//! made, but for pairs, is kept, and is good as long as nothing was stored that belongs to the period.

mod cache;
mod empty;
mod gather;
mod people;
mod question;
mod table;
#[cfg(test)]
mod tests;
mod window;

pub use cache::Cache;
pub use people::compact;
pub use question::{Dimension, HIGHEST_FLOOR, MOST_DAYS, MOST_POINTS, MOST_RELAYS, Question, Spelling, Statistic};
pub use table::{Cell, Row, Table, for_people};
pub use window::answer;

/// Why a question is not answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// More values would have to be held at once than perfd has room for.
    #[error("that is more than {0} values at once; ask for less time, a shorter period or one experiment")]
    TooManyValues(u64),
    /// The answer would have more rows than anybody reads.
    #[error("the answer would have more than {0} rows; ask for less time, a longer period or fewer groups")]
    TooManyRows(usize),
}
