//! perfd's parsers alone, so that fuzzing builds in a minute: the files of perfd itself, with what they need and
//! nothing else. They do no I/O, so they need little.

#![allow(dead_code, missing_docs, unexpected_cfgs)]

#[path = "../../src/circuit/mod.rs"]
pub mod circuit;
#[path = "../../src/clock.rs"]
pub mod clock;
#[path = "../../src/import/mod.rs"]
pub mod import;
#[path = "../../src/measurement.rs"]
pub mod measurement;

pub mod control;
