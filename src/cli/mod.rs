//! The commands: one file each, all of them thin.

mod annotate;
mod ask;
mod check;
pub mod exit;
mod export;
mod follow;
mod import;
mod once;
mod opened;
pub mod output;
mod rederive;
mod results;
mod run;
mod stats;
mod testnet;
mod token;
mod tor;
mod validate;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::units;
use crate::version;
use exit::Exit;

/// Where an operator keeps the configuration.
const DEFAULT_CONFIG: &str = "/etc/perfd/config.toml";

/// Measures the performance of the Tor network as its users feel it
///
/// perfd serves random payloads over HTTP, downloads them from itself through Tor on a schedule, records
/// when each step of each download happened, and gives the results out as JSON, CSV and Torperf's
/// key=value.
#[derive(Parser, Debug)]
#[command(name = "perfd", version = version::LONG, after_help = exit::HELP, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::RunArgs),
    Once(once::OnceArgs),
    Check(check::CheckArgs),
    Results(Box<results::ResultsArgs>),
    Stats(Box<stats::StatsArgs>),
    Tor(tor::TorArgs),
    Rederive(rederive::RederiveArgs),
    Import(import::ImportArgs),
    Validate(validate::ValidateArgs),
    Export(export::ExportArgs),
    Annotate(Box<annotate::AnnotateArgs>),
    Annotations(Box<annotate::AnnotationsArgs>),
    Token(token::TokenArgs),
    /// A private Tor network on loopback, for demos, tests and development
    Testnet(testnet::TestnetArgs),
    /// Print a completion script for a shell
    Completions {
        /// Which shell's
        shell: Shell,
    },
}

impl Cli {
    /// Carries the command out; gives the exit code.
    ///
    /// # Errors
    /// What ends it before its time, with an exit code.
    pub fn run(self) -> Result<u8, Exit> {
        match self.command {
            Command::Run(args) => run::run(args).map(|()| exit::OK),
            Command::Once(args) => once::run(args),
            Command::Check(args) => check::run(args).map(|()| exit::OK),
            Command::Results(args) => results::run(*args).map(|()| exit::OK),
            Command::Stats(args) => stats::run(*args).map(|()| exit::OK),
            Command::Tor(args) => tor::run(args).map(|()| exit::OK),
            Command::Rederive(args) => rederive::run(args).map(|()| exit::OK),
            Command::Export(args) => export::run(args).map(|()| exit::OK),
            Command::Import(args) => import::run(args),
            Command::Validate(args) => validate::run(args),
            Command::Annotate(args) => annotate::annotate(*args).map(|()| exit::OK),
            Command::Annotations(args) => annotate::annotations(*args).map(|()| exit::OK),
            Command::Token(args) => token::run(args).map(|()| exit::OK),
            Command::Testnet(args) => Ok(testnet::run(args)?),
            Command::Completions { shell } => {
                // Not straight to stdout: clap panics if nobody reads on.
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "perfd", &mut script);
                output::print(script)?;
                Ok(exit::OK)
            }
        }
    }
}

/// A time on the command line, such as `90 s`; not nothing.
fn duration(text: &str) -> Result<std::time::Duration, String> {
    match units::parse_duration(text) {
        Ok(time) if time.is_zero() => Err("must be longer than nothing".to_owned()),
        other => other.map_err(|e| e.to_string()),
    }
}
