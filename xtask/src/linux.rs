//! The commands on Linux.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::stage;

use crate::{arm64, bench, demo, fuzz, macos, mutants, release, soak, test};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The commands of the Softnet repository", max_term_width = 100)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Arm64(arm64::Args),
    Bench(bench::Args),
    Demo(demo::Args),
    Fuzz(fuzz::Args),
    Macos(macos::Args),
    Mutants(mutants::Args),
    Test(test::Args),
    Release(release::Args),
    Soak(soak::Args),
}

/// Performs the command that was typed.
pub fn run() -> Result<ExitCode> {
    let stage = stage::enter();
    match Args::parse().command {
        Command::Arm64(args) => arm64::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Demo(args) => demo::run(&args, stage),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Macos(args) => macos::run(&args),
        Command::Mutants(args) => mutants::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Release(args) => release::run(&args),
        Command::Soak(args) => soak::run(&args),
    }
}
