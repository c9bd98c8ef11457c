//! `cargo xtask mutants`: whether the filter's unit tests notice a change of the filter.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo::cargo;

/// Change the filter in every way that cargo-mutants knows, and list the changes that no test notices
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Further arguments for cargo-mutants, such as --file filter/src/arp.rs
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Runs cargo-mutants on the unit tests alone, which are quick to build and to run; a change may make a loop endless.
pub fn run(args: &Args) -> Result<ExitCode> {
    let status = cargo("mutants --package softnet-filter --timeout 20 --cargo-arg=--lib")
        .args(&args.arguments)
        .status()
        .context("start cargo")?;
    if !status.success() {
        eprintln!("If cargo-mutants is missing, install it with `cargo install cargo-mutants`.");
    }
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
