//! How results leave perfd: rendering only, no I/O; one file per format.

pub mod annotations;
pub mod circuits;
pub mod collector;
pub mod csv;
pub mod har;
pub mod json;
pub mod onionperf;
pub mod pairs;
pub mod prometheus;
pub mod table;
pub mod torperf;
pub mod waterfall;
pub mod whole;
