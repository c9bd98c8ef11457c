//! `cargo xtask macos`: Softnet for macOS, built and inspected on Linux.
//!
//! Debian's compiler and linker build for Apple's systems; what they lack is Apple's SDK, of which the linker
//! needs only which library exports which symbol ([`sdk`]). The results cannot run on this system: lints and
//! tests are only compiled, and the program is inspected ([`inspect`]).

mod inspect;
mod sdk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::cargo::root;
use crate::debian_rust::{self, DebianRust, step};
use crate::packages;
use inspect::{Architecture, Expected};

/// Build Softnet for macOS: lints and tests for arm64, a universal program, and an inspection of its contents
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compile and lint for arm64 only; build no program
    #[arg(long)]
    check: bool,
}

/// The linker and the binary tools; with the compiler about 930 MB installed.
const PACKAGES: &[&str] = &["rust-web-llvm", "lld-22", "llvm-22"];
const LINKER: &str = "/usr/lib/llvm-22/bin/ld64.lld";
const LIPO: &str = "/usr/bin/llvm-lipo-22";

const ARM64: &str = "aarch64-apple-darwin";
const X86_64: &str = "x86_64-apple-darwin";
/// The oldest macOS that Tart runs on.
const MINIMUM_VERSION: (u32, u32) = (13, 0);
/// The crates that run on a Mac; the lab, the tests with real guests and these commands need Linux.
const CRATES: [&str; 4] = ["softnet-filter", "softnet-offload", "softnet-wire", "softnet"];

/// Builds, inspects, and prints the result.
pub fn run(args: &Args) -> Result<ExitCode> {
    packages::ensure_installed(&[debian_rust::PACKAGES, PACKAGES])?;
    let target = root().join("target/macos");
    let sdk = target.join("sdk");
    sdk::write(&root().join("packaging/macos/sdk"), &sdk)?;
    let build = toolchain(target, &sdk);

    let arm64 = ["--target", ARM64];
    // The tests in the folders `tests` are for Linux and its lab; unit tests are for every system.
    let crates = || CRATES.iter().flat_map(|name| ["--package", name]).chain(["--lib", "--bins"]);
    for (name, profile) in [("lints", "dev"), ("lints of the tests", "test")] {
        let lints = build.cargo("clippy").args(crates()).args(["--profile", profile]).args(arm64);
        step(name, lints.args(["--", "-D", "warnings"]).command())?;
    }
    let tests = build.cargo("test").arg("--no-run").args(crates()).args(arm64);
    step("tests, not run", tests.command())?;
    if args.check {
        return Ok(ExitCode::SUCCESS);
    }
    let release = build.cargo("build").args(["--release", "--package", "softnet"]);
    step("program", release.args(arm64).args(["--target", X86_64]).command())?;
    let program = build.target().join("softnet");
    let mut lipo = Command::new(LIPO);
    lipo.arg("-create")
        .args([ARM64, X86_64].map(|target| build.program(target)))
        .arg("-output")
        .arg(&program);
    step("universal program", lipo)?;
    prove(&program)?;
    Ok(ExitCode::SUCCESS)
}

/// Debian's toolchain with everything that building for Apple's systems takes.
fn toolchain(target: PathBuf, sdk: &Path) -> DebianRust {
    let flags = format!(
        "-Clinker={LINKER} -Clinker-flavor=ld64.lld -Clink-arg=-adhoc_codesign \
         -Clink-arg=-F{}/System/Library/Frameworks",
        sdk.display()
    );
    let (major, minor) = MINIMUM_VERSION;
    DebianRust::new(target)
        .env("SDKROOT", sdk)
        .env("MACOSX_DEPLOYMENT_TARGET", format!("{major}.{minor}"))
        .env("CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS", &flags)
        .env("CARGO_TARGET_X86_64_APPLE_DARWIN_RUSTFLAGS", &flags)
}

/// Checks the contents of the universal program.
fn prove(program: &Path) -> Result<()> {
    println!("==> {}", program.display());
    let list = root().join("packaging/macos/imports.txt");
    let list = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let expected = Expected::parse(&list, MINIMUM_VERSION)?;
    let file = fs::read(program)?;
    let slices = inspect::slices(&file)?;
    for slice in &slices {
        slice.check(&expected)?;
        println!("    {slice}");
    }
    let architectures: Vec<Architecture> = slices.iter().map(|slice| slice.architecture).collect();
    ensure!(
        architectures.len() == 2
            && architectures.contains(&Architecture::Arm64)
            && architectures.contains(&Architecture::X86_64),
        "the universal program is for {architectures:?}"
    );
    println!("    universal: {} bytes", file.len());
    Ok(())
}
