//! `cargo xtask fuzz`: long runs of the fuzz targets; `cargo test` only replays what they have found.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::cargo::root;

/// Each target, and where its seeds lie.
const TARGETS: [(&str, &str); 5] = [
    ("frame", "fuzz/seeds/frame"),
    ("sequence", "fuzz/seeds/sequence"),
    ("dhcp", "fuzz/seeds/dhcp"),
    ("offload_batch", "offload/tests/fixtures/batch"),
    ("offload_super_frame", "offload/tests/fixtures/super_frame"),
];

/// The longest input: a super-frame and what a target reads before it.
const MAX_LEN: usize = 65_700;

/// Fuzz one target or all of them, one after the other; needs a nightly compiler and cargo-fuzz
#[derive(Debug, clap::Args)]
pub struct Args {
    /// frame, sequence, dhcp, offload_batch or offload_super_frame; all of them if there is none
    target: Option<String>,
    /// Seconds for each target
    #[arg(default_value_t = 1_200)]
    seconds: u64,
}

/// Runs the targets; the first crash ends it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let chosen: Vec<_> =
        TARGETS.iter().filter(|(name, _)| args.target.as_ref().is_none_or(|target| target == name)).collect();
    if chosen.is_empty() {
        bail!("there is no such target: {}", args.target.as_deref().unwrap_or_default());
    }
    for (name, seeds) in chosen {
        let corpus = PathBuf::from("fuzz/corpus").join(name);
        fs::create_dir_all(root().join(&corpus)).context("make a folder for the corpus")?;
        // By the name that rustup gives it, since the compiler that runs this is not the nightly one.
        let status = Command::new("cargo")
            .current_dir(root())
            .args(["+nightly", "fuzz", "run", name])
            .arg(&corpus)
            .arg(seeds)
            .arg("--")
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-max_len={MAX_LEN}"))
            .arg("-print_final_stats=1")
            .status()
            .context("start cargo")?;
        if !status.success() {
            bail!(
                "{name} failed. If there is no cargo-fuzz, `cargo install cargo-fuzz` brings it. If it found \
                 something, the input is in fuzz/artifacts/{name}: move it to where cargo test replays it \
                 (filter/tests/fixtures/{name}, or {seeds} for offload) in the commit that mends it."
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
