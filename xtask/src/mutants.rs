//! `cargo xtask mutants`: whether the unit tests of the filter, and of the formats that it reads, notice a change.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo::cargo;

/// Change the filter and the formats in every way that cargo-mutants knows, and list the changes that no test notices
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Further arguments for cargo-mutants, such as --file filter/src/arp.rs
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// What is changed. The unit tests of both run on each change, since the filter's show what a format is for.
const CRATES: [&str; 2] = ["softnet-filter", "softnet-wire"];

/// Runs cargo-mutants on the unit tests alone, which are quick to build and to run; a change may make a loop endless.
pub fn run(args: &Args) -> Result<ExitCode> {
    let status = cargo("mutants --timeout 20 --cargo-arg=--lib")
        // The frames for tests are no part of what is tested.
        .args(["--exclude", "wire/src/make/**"])
        .args(CRATES.iter().flat_map(|name| ["--package", name, "--test-package", name]))
        .args(&args.arguments)
        .status()
        .context("start cargo")?;
    if !status.success() {
        eprintln!("If cargo-mutants is missing, install it with `cargo install cargo-mutants`.");
    }
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
