//! The project's own commands: `cargo xtask NAME`. One command per file.
#![expect(clippy::print_stdout, reason = "these are programs for people, and this is what they print")]

mod arm64;
mod bench;
mod cargo;
mod debian_rust;
mod demo;
mod fuzz;
mod macos;
mod mutants;
mod packages;
mod release;
mod soak;
mod test;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use lab::stage::{self, Stage};

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

fn main() -> ExitCode {
    let stage = stage::enter();
    match perform(Args::parse().command, stage) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(command: Command, stage: Stage) -> Result<ExitCode> {
    match command {
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
