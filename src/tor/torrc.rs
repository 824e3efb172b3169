//! The torrc of a tor that perfd starts.
