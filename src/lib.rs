//! perfd measures the performance of the Tor network as its users feel it.
//!
//! Data flows one way: config → scheduler → probe → store → export → web. Beside the probe stands tor, which hears what
//! the tors tell, and keeps it in circuit, where it is derived what carried a run; that comes to the store with
//! the run's result, or a few seconds after it. What others measured comes to the store by import; report makes of many
//! results, by the formulas of stats, what they say together; collector closes finished days. A module uses only those
//! below it on the map that ARCHITECTURE.md draws; it also walks one measurement, one request and more through it.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod annotation;
pub mod circuit;
pub mod cli;
pub mod clock;
pub mod collector;
pub mod config;
pub mod export;
pub mod gate;
pub mod import;
pub mod logging;
pub mod measurement;
pub mod payload;
pub mod privileges;
pub mod probe;
pub mod report;
pub mod scheduler;
pub mod service;
pub mod slot;
pub mod stats;
pub mod store;
pub mod testnet;
pub mod token;
pub mod tor;
pub mod version;
pub mod web;

#[cfg(test)]
mod test_support;
