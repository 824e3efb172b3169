//! How results leave perfd: rendering only, no I/O; one file per format.
