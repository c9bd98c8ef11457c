//! The commands on a Mac.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use crate::verify;

#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    about = "The commands of the Softnet repository on a Mac",
    max_term_width = 100
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Verify Softnet on this Mac, against vmnet, bootpd and sudo; needs sudo without a password
    Macos {
        /// Perform the checklist of packaging/macos-checklist.md as far as a program can
        #[arg(long)]
        verify: bool,
        #[command(flatten)]
        options: verify::Options,
    },
}

/// Performs the command that was typed.
pub fn run() -> Result<ExitCode> {
    match Args::parse().command {
        Command::Macos { verify: true, options } => verify::run(&options),
        Command::Macos { .. } => bail!("the universal program is built on Linux; on a Mac use --verify"),
    }
}
