//! `cargo xtask arm64`: Softnet for ARM's 64-bit processors, built on another.
//!
//! These differ: the number of each system call that the seal allows, the set of calls, and C's `char`, which
//! is unsigned. The compiler checks the last; for the others the tests of the seal run on an emulated
//! [`machine`].

mod debian;
mod machine;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo::root;
use crate::debian_rust::{self, DebianRust, step};
use crate::packages;

/// Build Softnet for aarch64 Linux: the lints and the program
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Run the lints only; build no program
    #[arg(long, conflicts_with = "test")]
    check: bool,
    /// Also run the tests of the seal, with that program, on an emulated machine
    #[arg(long)]
    test: bool,
}

/// The linker and the C library.
const PACKAGES: &[&str] = &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "/usr/bin/aarch64-linux-gnu-gcc";

/// Lints, builds, and runs the requested tests.
pub fn run(args: &Args) -> Result<ExitCode> {
    packages::ensure_installed(&[debian_rust::PACKAGES, PACKAGES])?;
    let build = DebianRust::new(root().join("target/arm64"))
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER)
        // No debug information: the machine keeps all files in memory.
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    let lints = build.cargo("clippy").args(["--workspace", "--all-targets", "--target", TARGET]);
    step("lints", lints.args(["--", "-D", "warnings"]).command())?;
    if args.check {
        return Ok(ExitCode::SUCCESS);
    }
    let program = build.cargo("build").args(["--release", "--package", "softnet", "--target", TARGET]);
    step("program", program.command())?;
    println!("==> {}", build.program(TARGET).display());
    if args.test {
        packages::ensure_installed(&[machine::PACKAGES])?;
        let tests = build_tests(&build)?;
        // The path at which the tests expect the program.
        let place = build.target().join(TARGET).join("debug/softnet");
        machine::run(&build.target().join("machine"), &tests, &build.program(TARGET), &place)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the tests of the seal and returns where they are.
fn build_tests(build: &DebianRust) -> Result<PathBuf> {
    println!("==> tests");
    let words = ["--no-run", "--package", "softnet", "--test", "sandbox", "--target", TARGET];
    let mut tests = build.cargo("test").args(words).arg("--message-format=json").command();
    let output = tests.stderr(Stdio::inherit()).output().context("start cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let messages = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
    let is_test = |message: &Value| message["target"]["name"] == "sandbox";
    let test = messages.filter_map(Result::ok).find(is_test).context("cargo built no such test")?;
    Ok(test["executable"].as_str().context("the test has no executable")?.into())
}
