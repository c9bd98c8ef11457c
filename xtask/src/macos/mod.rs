//! `cargo xtask macos`: Softnet for macOS, built and inspected on Linux.
//!
//! Debian's compiler and linker build for Apple's systems; what they lack is Apple's SDK, of which the linker needs only
//! which library exports which symbol ([`sdk`]). Nothing of what is built can run here: lints and tests are compiled, and
//! the program is taken apart ([`inspect`]).

mod inspect;
mod sdk;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cargo::root;
use crate::packages;
use inspect::{Architecture, Expected};

/// Build Softnet for macOS: lints and tests for arm64, a universal program, and proof of what it is made of
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only compile and lint for arm64; build no program
    #[arg(long)]
    check: bool,
}

/// The matched pair of compiler and standard library's source, the linker and the binary tools; about 930 MB installed.
const PACKAGES: &[&str] =
    &["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy", "rust-web-llvm", "lld-22", "llvm-22"];
/// Where Debian puts them. A rustup on the path is not used: its compilers do not fit the packaged source.
const BIN: &str = "/usr/bin";
const LINKER: &str = "/usr/lib/llvm-22/bin/ld64.lld";
const LIPO: &str = "/usr/bin/llvm-lipo-22";

const ARM64: &str = "aarch64-apple-darwin";
const X86_64: &str = "x86_64-apple-darwin";
/// The oldest macOS that Tart runs on.
const MINIMUM_VERSION: (u32, u32) = (13, 0);
/// What runs on a Mac; the lab, the tests with real guests and these commands are Linux's.
const CRATES: [&str; 3] = ["softnet-filter", "softnet-offload", "softnet"];

/// Builds, inspects, and says what came out.
pub fn run(args: &Args) -> Result<ExitCode> {
    packages::ensure_installed(&[PACKAGES])?;
    let build = Build { target: root().join("target/macos") };
    sdk::write(&root().join("packaging/macos/sdk"), &build.sdk())?;

    let arm64 = ["--target", ARM64];
    // The tests in the folders `tests` are for Linux and its lab; unit tests are for every system.
    let crates = || CRATES.iter().flat_map(|name| ["--package", name]).chain(["--lib", "--bins"]);
    for (name, profile) in [("lints", "dev"), ("lints of the tests", "test")] {
        let lints =
            build.cargo("cargo-clippy", "clippy").args(crates()).args(["--profile", profile]).args(arm64);
        step(name, lints.args(["--", "-D", "warnings"]).command())?;
    }
    let tests = build.cargo("cargo", "test").arg("--no-run").args(crates()).args(arm64);
    step("tests, not run", tests.command())?;
    if args.check {
        return Ok(ExitCode::SUCCESS);
    }
    let release = build.cargo("cargo", "build").args(["--release", "--package", "softnet"]);
    step("program", release.args(arm64).args(["--target", X86_64]).command())?;
    let program = build.target.join("softnet");
    let mut lipo = Command::new(LIPO);
    lipo.arg("-create")
        .args([ARM64, X86_64].map(|target| build.program(target)))
        .arg("-output")
        .arg(&program);
    step("universal program", lipo)?;
    prove(&program)?;
    Ok(ExitCode::SUCCESS)
}

/// One build folder, apart from that of the host's own builds.
#[derive(Debug)]
struct Build {
    target: PathBuf,
}

impl Build {
    fn sdk(&self) -> PathBuf {
        self.target.join("sdk")
    }

    fn program(&self, target: &str) -> PathBuf {
        self.target.join(target).join("release/softnet")
    }

    /// `program` of Debian's toolchain with everything that building for Apple's systems takes.
    fn cargo(&self, program: &str, subcommand: &str) -> Cargo {
        let mut command = Command::new(Path::new(BIN).join(program));
        let flags = format!(
            "-Clinker={LINKER} -Clinker-flavor=ld64.lld -Clink-arg=-adhoc_codesign \
             -Clink-arg=-F{}/System/Library/Frameworks",
            self.sdk().display()
        );
        let (major, minor) = MINIMUM_VERSION;
        command
            .current_dir(root())
            // What the cargo that runs this command says of itself is not true of Debian's.
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTUP_HOME")
            .env_remove("RUSTFLAGS")
            .env("CARGO", Path::new(BIN).join("cargo"))
            .env("RUSTC", Path::new(BIN).join("rustc"))
            .env("RUSTDOC", Path::new(BIN).join("rustdoc"))
            .env("PATH", path())
            // The standard library is built from source, which only a nightly compiler does unasked.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_DIR", &self.target)
            .env("SDKROOT", self.sdk())
            .env("MACOSX_DEPLOYMENT_TARGET", format!("{major}.{minor}"))
            .env("CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS", &flags)
            .env("CARGO_TARGET_X86_64_APPLE_DARWIN_RUSTFLAGS", &flags)
            .args([subcommand, "--quiet", "--locked", "-Zbuild-std=std,panic_abort"]);
        Cargo(command)
    }
}

/// A cargo command under construction.
#[derive(Debug)]
struct Cargo(Command);

impl Cargo {
    fn arg(mut self, arg: &str) -> Self {
        self.0.arg(arg);
        self
    }

    fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.args(args);
        self
    }

    fn command(self) -> Command {
        self.0
    }
}

/// The search path with Debian's programs first.
fn path() -> OsString {
    let mut path = OsString::from(BIN);
    if let Some(rest) = std::env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    path
}

fn step(name: &str, mut command: Command) -> Result<()> {
    let started = Instant::now();
    println!("==> {name}");
    let status = command.status().with_context(|| format!("start {:?}", command.get_program()))?;
    ensure!(status.success(), "{name} failed");
    println!("    {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Asserts what the universal program is made of.
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
