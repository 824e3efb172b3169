//! Tors under control on a private network of real tor processes: what perfd says of its runs' circuits against what
//! tor says to somebody else, every kind of run, and tors that die, hang and come back.
//!
//! One network serves all tests of this file, which take turns on it.

#[path = "../common/mod.rs"]
mod common;
mod every_run;
mod judge;
mod kinds;
mod network;
mod observer;
mod onion;
mod restarts;
#[path = "../common/service.rs"]
mod service;
mod troubles;
