//! `cargo xtask arm64`: Softnet for ARM's 64-bit processors, built on another.
//!
//! What differs there, the compiler sees: which system calls there are for the seal to allow, and C's `char`, which has
//! no sign.

use std::process::ExitCode;

use anyhow::Result;

use crate::cargo::root;
use crate::debian_rust::{self, DebianRust, step};
use crate::packages;

/// Build Softnet for aarch64 Linux: the lints and the program
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only lint; build no program
    #[arg(long)]
    check: bool,
}

/// The linker and the C library.
const PACKAGES: &[&str] = &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"];

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "/usr/bin/aarch64-linux-gnu-gcc";

/// Lints, and builds.
pub fn run(args: &Args) -> Result<ExitCode> {
    packages::ensure_installed(&[debian_rust::PACKAGES, PACKAGES])?;
    let build = DebianRust::new(root().join("target/arm64"))
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
    let lints = build.cargo("clippy").args(["--workspace", "--all-targets", "--target", TARGET]);
    step("lints", lints.args(["--", "-D", "warnings"]).command())?;
    if args.check {
        return Ok(ExitCode::SUCCESS);
    }
    let program = build.cargo("build").args(["--release", "--package", "softnet", "--target", TARGET]);
    step("program", program.command())?;
    println!("==> {}", build.program(TARGET).display());
    Ok(ExitCode::SUCCESS)
}
