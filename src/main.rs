//! The `perfd` command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use perfd::cli::testnet::{self, TestnetArgs};

/// Measures the performance of the Tor network as its users feel it
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A private Tor network on loopback, for demos, tests and development
    Testnet(TestnetArgs),
}

fn main() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Testnet(args) => testnet::run(args),
    }
}
