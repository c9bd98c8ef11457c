//! `cargo xtask macos`: Softnet for macOS, built and inspected on Linux.
//!
//! Debian's compiler and linker build for Apple's systems; what they lack is Apple's SDK, of which the linker
//! needs only which library exports which symbol ([`sdk`]). The results cannot run on this system: lints and
//! tests are only compiled, and the program is inspected ([`inspect`]).

mod entitlements;
mod inspect;
#[cfg(test)]
mod sample;
mod sdk;
mod sign;
mod signature;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

use crate::cargo::root;
use crate::debian_rust::{self, DebianRust, step};
use crate::packages;
use crate::verify;
use inspect::{Architecture, Expected};

/// Build Softnet for macOS: lints and tests for arm64, a universal program, and an inspection of its contents
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Compile and lint for arm64 only; build no program
    #[arg(long)]
    check: bool,
    /// Only on a Mac: perform the checklist of packaging/macos-checklist.md as far as a program can
    #[arg(long, conflicts_with = "check")]
    verify: bool,
    #[command(flatten)]
    options: verify::Options,
}

/// The linker and the binary tools; with the compiler about 930 MB installed.
const PACKAGES: &[&str] = &["rust-web-llvm", "lld-22", "llvm-22"];
const LINKER: &str = "/usr/lib/llvm-22/bin/ld64.lld";
const LIPO: &str = "/usr/bin/llvm-lipo-22";

const ARM64: &str = "aarch64-apple-darwin";
const X86_64: &str = "x86_64-apple-darwin";
/// The versions of macOS that must be able to load the program. The oldest one is the oldest that Tart runs on.
const VERSIONS: [u32; 4] = [13, 14, 15, 26];
/// Under which name the program is signed.
const IDENTIFIER: &str = "softnet";
/// What lets a program that is not root use vmnet on macOS 26. It needs no certificate, unlike
/// `com.apple.vm.networking`, for which the kernel ends an ad-hoc signed program at once.
const ENTITLEMENT: &str = "com.apple.security.virtualization";
/// The crates that run on a Mac, the lab and these commands in part; the tests with real guests need Linux.
const CRATES: [&str; 6] = ["softnet-filter", "softnet-offload", "softnet-wire", "softnet", "lab", "xtask"];

/// Builds, inspects, and prints the result.
pub fn run(args: &Args) -> Result<ExitCode> {
    if args.verify {
        return verify::run(&args.options);
    }
    packages::ensure_installed(&[debian_rust::PACKAGES, PACKAGES])?;
    let target = root().join("target/macos");
    let sdk = target.join("sdk");
    sdk::write(&packaging().join("sdk"), &sdk, VERSIONS[0])?;
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
    let plist = packaging().join("entitlements.plist");
    let plist = fs::read_to_string(&plist).with_context(|| format!("read {}", plist.display()))?;
    let mut slices = Vec::new();
    for target in [ARM64, X86_64] {
        slices.push(build.target().join(format!("softnet-{target}")));
        signed(&build.program(target), &slices[slices.len() - 1], &plist)?;
    }
    let program = build.target().join("softnet");
    let mut lipo = Command::new(LIPO);
    lipo.arg("-create").args(slices).arg("-output").arg(&program);
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
    DebianRust::new(target)
        .env("SDKROOT", sdk)
        .env("MACOSX_DEPLOYMENT_TARGET", format!("{}.0", VERSIONS[0]))
        .env("CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS", &flags)
        .env("CARGO_TARGET_X86_64_APPLE_DARWIN_RUSTFLAGS", &flags)
}

/// What describes the program for macOS.
fn packaging() -> PathBuf {
    root().join("packaging/macos")
}

/// Writes the signed `linked` to `signed`.
fn signed(linked: &Path, signed: &Path, plist: &str) -> Result<()> {
    let program = fs::read(linked).with_context(|| format!("read {}", linked.display()))?;
    let program =
        sign::sign(&program, IDENTIFIER, plist).with_context(|| format!("sign {}", linked.display()))?;
    fs::write(signed, program).with_context(|| format!("write {}", signed.display()))
}

/// Checks the contents of the universal program.
fn prove(program: &Path) -> Result<()> {
    println!("==> {}", program.display());
    let list = packaging().join("imports.txt");
    let list = fs::read_to_string(&list).with_context(|| format!("read {}", list.display()))?;
    let exports = sdk::exports(&packaging().join("sdk"), VERSIONS[0])?;
    let expected = Expected::parse(&list, &VERSIONS, exports, ENTITLEMENT)?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(path: &str) -> String {
        fs::read_to_string(root().join(path)).unwrap()
    }

    #[test]
    fn the_documents_claim_the_same_systems() {
        assert_eq!(VERSIONS, [13, 14, 15, 26]);
        assert!(read("README.md").contains("macOS 13 and newer"));
        assert!(read("docs/macos.md").contains("| 13 to 15 | root |\n| 26 and newer | root, or"));
        assert!(read("packaging/softnet.rb").contains("depends_on macos: :ventura"));
    }

    #[test]
    fn the_list_of_imports_has_nothing_that_a_claimed_system_lacks() {
        let exports = sdk::exports(&packaging().join("sdk"), VERSIONS[0]).unwrap();
        let expected =
            Expected::parse(&read("packaging/macos/imports.txt"), &VERSIONS, exports, ENTITLEMENT).unwrap();
        for (library, symbols) in &expected.imports {
            for symbol in symbols {
                assert_eq!(
                    expected.exports[library].get(symbol),
                    Some(&VERSIONS[0]),
                    "{symbol} of {library}"
                );
            }
        }
    }

    #[test]
    fn the_one_entitlement_is_the_harmless_one() {
        let names = entitlements::of_xml(&read("packaging/macos/entitlements.plist")).unwrap();
        assert_eq!(names, BTreeSet::from([ENTITLEMENT.to_owned()]));
    }
}
