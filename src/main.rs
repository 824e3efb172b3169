//! The `perfd` command: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use perfd::cli::{Cli, output};

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => ExitCode::from(code),
        Err(exit) => {
            output::note(format_args!("{:#}", exit.error));
            ExitCode::from(exit.code)
        }
    }
}
