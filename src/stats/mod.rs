//! What many results say together: percentiles, distributions, and the statistics that Tor Metrics and OnionPerf
//! publish, by their formulas (no I/O).
//!
//! The store feeds it [`Sample`]s, a result each, as far as statistics need it. docs/statistics.md lists every
//! statistic with its formula.

pub mod conflux;
pub mod histogram;
pub mod onionperf;
pub mod paired;
pub mod percentile;
pub mod period;
pub mod quantity;
pub mod relays;
pub mod rollup;
mod sample;
pub mod tor_metrics;
pub mod varint;

pub use histogram::Histogram;
pub use percentile::{BoxStatistics, Ecdf, Floor, Summary};
pub use period::Period;
pub use quantity::Quantity;
pub use rollup::Rollup;
pub use sample::{End, Sample, SampleCircuit};
