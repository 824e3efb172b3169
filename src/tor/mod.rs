//! What perfd has to do with each tor: it talks to its control port ([`control`]).

pub mod control;
