//! What many results say together: percentiles, distributions, and the statistics that Tor Metrics and OnionPerf
//! publish, by their formulas (no I/O).
//!
//! The store feeds it [`Sample`]s, a result each, as far as statistics need it.

mod sample;

pub use sample::{End, Sample, SampleCircuit};
