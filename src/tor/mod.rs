//! The tors: those that perfd starts, and the control of all.

mod output;
pub mod process;
pub mod torrc;
