//! The `perfd` command: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use perfd::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => ExitCode::from(code),
        Err(exit) => {
            eprintln!("perfd: {:#}", exit.error);
            ExitCode::from(exit.code)
        }
    }
}
