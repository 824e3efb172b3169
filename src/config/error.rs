//! What is wrong with a configuration.

use std::fmt;
use std::io;

/// Why there is no configuration. Displayed one problem a line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read {file}: {reason}; give a configuration with --config FILE")]
    Unreadable {
        /// The file as it was given.
        file: String,
        /// What the system says; no `source`, for the message holds it.
        reason: io::Error,
    },
    /// What is wrong with the file, at least one problem, by line.
    #[error("{}", lines(.0))]
    Faulty(Vec<Problem>),
}

/// One thing that is wrong with a configuration: `FILE:LINE: KEY: what is wrong; what would be right`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was given.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// Such as `server.listen` or `experiment[2].every`, counted from 1; empty where the line is no TOML.
    pub key: String,
    /// What is wrong, a semicolon, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem { file, line, key, message } = self;
        let separator = if key.is_empty() { "" } else { ": " };
        write!(f, "{file}:{line}: {key}{separator}{message}")
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
