//! `cargo xtask bench`: Softnet's performance.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::cargo::{cargo, root};
use crate::packages;

/// The programs that the benchmark compares with, and the one that counts instructions.
const BENCH: &[&str] = &["passt", "slirp4netns", "valgrind"];

/// Compare Softnet with forwarders that filter nothing and with its alternatives
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `filter` to count only the instructions of a decision, or flags of the benchmark: --quick, --only
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Builds everything in release mode and starts the benchmark.
pub fn run(args: &Args) -> Result<ExitCode> {
    packages::ensure_installed(&[packages::LAB, BENCH])?;
    let built =
        cargo("build --release --quiet --package bench --package softnet").status().context("start cargo")?;
    ensure!(built.success(), "the release build failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), Into::into);
    let status =
        Command::new(target.join("release/bench")).args(&args.arguments).current_dir(root()).status()?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}
