//! Cargo, started from within cargo.

use std::path::Path;
#[cfg(target_os = "linux")]
use std::path::PathBuf;
use std::process::Command;

#[cfg(target_os = "linux")]
use anyhow::{Context, Result, ensure};

/// The workspace's root.
pub fn root() -> &'static Path {
    // The manifest lies one folder below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// A cargo command in the workspace's root.
pub fn cargo(words: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(words.split_whitespace());
    command
}

/// Builds the `softnet` program as `cargo build` does and returns where it is.
#[cfg(target_os = "linux")]
pub fn build_softnet() -> Result<PathBuf> {
    let status = cargo("build --package softnet --bin softnet").status().context("start cargo")?;
    ensure!(status.success(), "building softnet failed");
    softnet()
}

/// Where the last build left the `softnet` program: beside this one.
#[cfg(target_os = "linux")]
pub fn softnet() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().context("a program lies in a folder")?.join("softnet"))
}
