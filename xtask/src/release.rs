//! `cargo xtask release`: the release files, built reproducibly, with a bill of materials.

mod advisories;
mod dependencies;
mod overflow;
mod reproduce;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::cargo::{cargo, root};

/// Build the release: the program, its bill of materials (CycloneDX) and their checksums, in target/dist
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Build two copies of the sources from scratch and compare the bytes; verify that the program has
    /// overflow checks; check the dependencies with cargo-deny, which is installed if it is missing
    #[arg(long, group = "checks")]
    check: bool,
    /// Check only the dependencies; build nothing
    #[arg(long, group = "checks")]
    check_dependencies: bool,
    /// Use this clone of RustSec's advisory database instead of fetching it
    #[arg(long, value_name = "DIR", requires = "checks")]
    advisory_db: Option<PathBuf>,
}

/// Builds, or builds twice and compares.
pub fn run(args: &Args) -> Result<ExitCode> {
    let good = if args.check || args.check_dependencies { check(args) } else { dist()? };
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is shipped: file names and contents.
type Shipped = [(&'static str, Vec<u8>); 2];

fn dist() -> Result<bool> {
    let dist = root().join("target/dist");
    fs::create_dir_all(&dist)?;
    let mut sums = String::new();
    let target = root().join("target");
    for (name, bytes) in make(root(), &target)? {
        let file = dist.join(name);
        if name == PROGRAM {
            // Copied, for the right to execute it.
            fs::copy(target.join(BUILT), &file)?;
        } else {
            fs::write(&file, &bytes)?;
        }
        sums += &format!("{}  {name}\n", checksum(&bytes));
    }
    fs::write(dist.join("SHA256SUMS"), &sums)?;
    print!("{sums}");
    println!("in {}", dist.display());
    Ok(true)
}

/// Runs every check, also after a failed one.
fn check(args: &Args) -> bool {
    let (mut wrong, mut unchecked) = (Vec::new(), Vec::new());
    let mut judge = |name, verdict: Result<Vec<String>>| match verdict {
        Ok(what) => unchecked.extend(what),
        Err(error) => {
            println!("{name}: {error:#}");
            wrong.push(name);
        }
    };
    if args.check {
        judge("the release", reproduce::check().map(|()| Vec::new()));
    }
    judge("the dependencies", dependencies::check(args.advisory_db.as_deref()));
    for what in &unchecked {
        println!("NOT checked: {what}");
    }
    match &wrong[..] {
        [] if unchecked.is_empty() => println!("==> ok"),
        [] => println!("==> ok, except for what was NOT checked"),
        wrong => println!("==> FAILED: {}", wrong.join(", ")),
    }
    wrong.is_empty()
}

const PROGRAM: &str = "softnet";
/// Where a build leaves the program in its target folder.
const BUILT: &str = "release/softnet";

/// Makes what is shipped from the sources in `sources` in the folder `target`, independently of where these and
/// Cargo's own folder are.
fn make(sources: &Path, target: &Path) -> Result<Shipped> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home =
        home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).context("cannot find Cargo's folder")?;
    // The last prefix that matches counts.
    let prefixes = [(sources, "/softnet"), (target, "/softnet/target"), (&*home, "/cargo")];
    let flags: Vec<String> =
        prefixes.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect();
    let status = cargo("build --release --locked --package softnet --bin softnet --target-dir")
        .arg(target)
        .current_dir(sources)
        // Separated so that a path may have spaces; this overrides all flags of the caller's environment.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_INCREMENTAL", "0")
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "the release cannot be built");
    let program = fs::read(target.join(BUILT))?;
    let bill = sbom::of(PROGRAM, &checksum(&program), sources)?;
    Ok([(PROGRAM, program), ("softnet.cdx.json", bill.into_bytes())])
}

fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    Ok(())
}
