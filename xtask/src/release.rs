//! `cargo xtask release`: what is shipped, so built that anybody gets the same bytes, with a list of what is in it.

mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::cargo::{cargo, root};

/// Build the release: the program, its bill of materials (CycloneDX) and their checksums, in target/dist
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build twice from nothing in different places and compare the bytes; check the dependencies with cargo-deny
    #[arg(long)]
    check: bool,
}

/// Builds, or builds twice and compares.
pub fn run(args: &Args) -> Result<ExitCode> {
    let good = if args.check { check()? } else { dist()? };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn dist() -> Result<bool> {
    let target = root().join("target");
    let program = build(&target)?;
    let dist = target.join("dist");
    fs::create_dir_all(&dist)?;
    fs::copy(&program, dist.join("softnet"))?;
    let bytes = fs::read(&program)?;
    let bill = sbom::of("softnet", &checksum(&bytes))?;
    fs::write(dist.join("softnet.cdx.json"), &bill)?;
    let sums = format!("{}  softnet\n{}  softnet.cdx.json\n", checksum(&bytes), checksum(bill.as_bytes()));
    fs::write(dist.join("SHA256SUMS"), &sums)?;
    print!("{sums}");
    println!("in {}", dist.display());
    Ok(true)
}

fn check() -> Result<bool> {
    let place = root().join("target/release-check");
    // Names of different lengths, so that a path that gets in moves what lies behind it.
    let before = sources()?;
    let mut builds = Vec::new();
    for name in ["one", "another-one"] {
        let target = place.join(name);
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        println!("==> building in {}", target.display());
        let program = build(&target)?;
        builds.push(fs::read(program)?);
        fs::remove_dir_all(&target)?;
    }
    ensure!(
        sources()? == before,
        "the sources changed between the builds, so that comparing them shows nothing"
    );
    let same = builds.windows(2).all(|pair| pair[0] == pair[1]);
    for bytes in &builds {
        println!("{}  {} bytes", checksum(bytes), bytes.len());
    }
    println!("two clean builds {}", if same { "give the same bytes" } else { "DIFFER" });
    let dependencies = dependencies()?;
    Ok(same && dependencies)
}

/// The commit and what differs from it.
fn sources() -> Result<Vec<u8>> {
    let mut state = Vec::new();
    for words in [["rev-parse", "HEAD"], ["diff", "HEAD"]] {
        let output = Command::new("git").current_dir(root()).args(words).output().context("start git")?;
        ensure!(
            output.status.success(),
            "git {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        state.extend(output.stdout);
    }
    Ok(state)
}

/// Builds the release into the folder `target`, independently of where that, the sources and Cargo's own folder are.
fn build(target: &Path) -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("find Cargo's folder")?;
    // The last prefix that matches counts.
    let prefixes = [(root(), "/softnet"), (target, "/softnet/target"), (&*home, "/cargo")];
    let flags: Vec<String> =
        prefixes.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect();
    let status = cargo("build --release --locked --package softnet --bin softnet --target-dir")
        .arg(target)
        // Separated so that a path may have spaces; whatever else the caller's environment says about flags is void.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_INCREMENTAL", "0")
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "the release cannot be built");
    Ok(target.join("release/softnet"))
}

fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Runs cargo-deny by deny.toml. What cannot be checked here is said, and is no failure.
fn dependencies() -> Result<bool> {
    let quietly = |command: &mut Command| {
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    };
    if !quietly(&mut cargo("deny --version")) {
        println!("dependencies not checked: there is no cargo-deny (cargo install --locked cargo-deny)");
        return Ok(true);
    }
    let mut checks = vec!["licenses", "bans", "sources"];
    if quietly(&mut cargo("deny fetch db")) {
        checks.push("advisories");
    } else {
        println!("advisories not checked: their database cannot be fetched");
    }
    let status =
        cargo("deny --locked check --hide-inclusion-graph").args(checks).status().context("start cargo")?;
    Ok(status.success())
}
