//! `cargo xtask fuzz`: long runs of the fuzz targets. `cargo test` only replays their findings.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::cargo::root;

/// Each target, and where its seeds lie.
const TARGETS: [(&str, &str); 8] = [
    ("frame", "fuzz/seeds/frame"),
    ("sequence", "fuzz/seeds/sequence"),
    ("dhcp", "fuzz/seeds/dhcp"),
    ("stream", "fuzz/seeds/stream"),
    ("leases", "fuzz/seeds/leases"),
    ("entry", "fuzz/seeds/entry"),
    ("offload_batch", "offload/tests/fixtures/batch"),
    ("offload_super_frame", "offload/tests/fixtures/super_frame"),
];

/// The longest input: a super-frame and the header that a target reads before it.
const MAX_LEN: usize = 65_700;

/// Fuzz one target or all of them, one after the other; needs a nightly compiler and cargo-fuzz
#[derive(Debug, clap::Args)]
pub struct Args {
    /// frame, sequence, dhcp, stream, leases, entry, offload_batch or offload_super_frame; all of them by default
    target: Option<String>,
    /// Seconds for each target
    #[arg(default_value_t = 1_200)]
    seconds: u64,
}

/// Seconds for each target of a short run.
pub const SHORT: u64 = 10;

/// A short run of every target, as a part of `cargo xtask test`. Installs cargo-fuzz if it is missing;
/// returns `None` without a nightly compiler, which building a target requires.
pub fn run_shortly() -> Result<Option<ExitCode>> {
    let works = |arguments: &[&str]| {
        let output = Command::new("cargo").current_dir(root()).args(arguments).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works(&["+nightly", "--version"]) {
        println!(
            "skipped: there is no nightly compiler (install it with `rustup toolchain install nightly`)"
        );
        return Ok(None);
    }
    if !works(&["+nightly", "fuzz", "--version"]) {
        println!("installing cargo-fuzz");
        if !works(&["install", "--locked", "cargo-fuzz"]) {
            bail!("cannot install cargo-fuzz; try: cargo install --locked cargo-fuzz");
        }
    }
    run(&Args { target: None, seconds: SHORT }).map(Some)
}

/// Runs the targets; the first crash ends it.
pub fn run(args: &Args) -> Result<ExitCode> {
    let chosen: Vec<_> =
        TARGETS.iter().filter(|(name, _)| args.target.as_ref().is_none_or(|target| target == name)).collect();
    if chosen.is_empty() {
        let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        bail!(
            "there is no target {}; the targets are {}",
            args.target.as_deref().unwrap_or_default(),
            known.join(", ")
        );
    }
    for (name, seeds) in chosen {
        let corpus = PathBuf::from("fuzz/corpus").join(name);
        fs::create_dir_all(root().join(&corpus)).context("create a folder for the corpus")?;
        // By rustup's name, because this program is run by another compiler than nightly.
        let status = Command::new("cargo")
            .current_dir(root())
            .args(["+nightly", "fuzz", "run", name])
            .arg(&corpus)
            .arg(seeds)
            .arg("--")
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-max_len={MAX_LEN}"))
            // The leak checker wants to trace the process, which containers forbid; safe Rust is fuzzed for other faults.
            .arg("-detect_leaks=0")
            .arg("-print_final_stats=1")
            .status()
            .context("start cargo")?;
        if !status.success() {
            bail!(
                "{name} failed. If cargo-fuzz is missing, install it with `cargo install cargo-fuzz`. If it found \
                 something, the input is in fuzz/artifacts/{name}: move it to where cargo test replays it \
                 (filter/tests/fixtures/{name}, or {seeds} for offload) in the commit that fixes it."
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}
