//! `cargo xtask soak`: a long run with hundreds of VMs.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::cargo::cargo;
use crate::packages;

/// Run hundreds of VMs that join, flood and leave one small network, and check for lost or leaked resources
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Seed for all random choices
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Minutes for which VMs join
    #[arg(long, default_value_t = 4.0, value_parser = minutes)]
    minutes: f64,
    /// VMs that run at the same time
    #[arg(long, default_value_t = 50)]
    vms: usize,
    /// Ways in which a VM ends: close, release, sigterm, sigint, early, worker, monitor, both
    #[arg(long, value_name = "END,…")]
    ends: Option<String>,
    /// Attackers that take part, or none: desync, filler, hog, shadow, leak, sleep, drip, break
    #[arg(long, value_name = "ATTACKER,…")]
    attackers: Option<String>,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if (0.05..=1440.0).contains(&minutes) => Ok(minutes),
        _ => Err("use a number of minutes from 0.05 to 1440".to_owned()),
    }
}

/// Builds everything in release mode and runs the test `soak` in its long form.
pub fn run(args: &Args) -> Result<ExitCode> {
    packages::need_root("soak")?;
    packages::ensure_installed(&[packages::LAB])?;
    let Args { seed, minutes, vms, ends, attackers } = args;
    let mut plan = format!("seed={seed} seconds={:.0} vms={vms}", minutes * 60.0);
    if let Some(ends) = ends {
        plan += &format!(" ends={ends}");
    }
    if let Some(attackers) = attackers {
        plan += &format!(" attackers={attackers}");
    }
    // The test reads this in `softnet/tests/soak/plan.rs`.
    let status = cargo("test --release --quiet --package softnet --test soak")
        .env("SOFTNET_SOAK", plan)
        .status()
        .context("start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
