//! The configuration file: from its path or text to [`Config`], or to all that is wrong with it.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::de::DeTable;

use super::quote::shown_key;
use super::sections::config;
use super::walk::{Report, Section};
use super::{Config, ConfigError, Problem};

impl Config {
    /// Reads a configuration file.
    ///
    /// # Errors
    ///
    /// The file can't be read, or anything in it is wrong; see [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        let mut bytes = Vec::new();
        // The limit is there for a path that was meant for something else, a device or a disk image.
        let read = File::open(path).and_then(|opened| opened.take(LARGEST_FILE + 1).read_to_end(&mut bytes));
        if let Err(reason) = read {
            return Err(ConfigError::Unreadable { file, reason });
        }
        let problem = |line, message: &str| {
            let problem = Problem { file: file.clone(), line, key: String::new(), message: message.to_owned() };
            Err(ConfigError::Faulty(vec![problem]))
        };
        if bytes.len() as u64 > LARGEST_FILE {
            return problem(1, "the file is larger than 1 MiB; give a configuration with --config FILE");
        }
        match str::from_utf8(&bytes) {
            Ok(text) => Self::parse(text, &file),
            Err(error) => {
                let before = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let line = 1 + before.iter().filter(|b| **b == b'\n').count();
                problem(line, "the line is not UTF-8; save the file as UTF-8")
            }
        }
    }

    /// Reads a configuration; `file_name` is how messages call it.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Faulty`], with all that is wrong; what is no TOML is reported up to its first error.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, ConfigError> {
        let report = Report::new(file_name, text);
        let config = match DeTable::parse(text) {
            Ok(table) => config(&Section::top(&report, table.get_ref())),
            Err(error) => {
                note_syntax(&report, text, &error);
                None
            }
        };
        match (config, report.into_problems()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError::Faulty(problems)),
        }
    }
}

/// In bytes.
const LARGEST_FILE: u64 = 1 << 20;

fn note_syntax(report: &Report, text: &str, error: &toml::de::Error) {
    let span = error.span().unwrap_or(0..0);
    let line = report.line(&span);
    match text.get(span) {
        Some(key) if error.message() == "duplicate key" => {
            report.note(line, shown_key(key), "is there twice; keep one of them");
        }
        _ => {
            let message = error.message();
            report.note(line, "", format_args!("not TOML: {message}; write key = value, with words in quotes"));
        }
    }
}
