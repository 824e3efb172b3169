//! How results leave perfd: rendering only, no I/O; one file per format.

pub mod csv;
pub mod json;
pub mod table;
pub mod torperf;
#[cfg(test)]
mod torperf_reader;
