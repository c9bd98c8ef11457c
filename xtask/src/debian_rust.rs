//! Building for other systems than this one: Debian's compiler builds their standard library from the source
//! that is packaged with it, so everything comes from Debian.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cargo::root;

/// The matched pair of compiler and standard library's source, and the lints.
pub const PACKAGES: &[&str] = &["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"];
/// Where Debian puts them. A rustup on the path is not used: its compilers do not match the packaged source.
const BIN: &str = "/usr/bin";

/// The toolchain with one build folder, apart from that of the host's own builds.
#[derive(Debug)]
pub struct DebianRust {
    target: PathBuf,
    variables: Vec<(&'static str, OsString)>,
}

impl DebianRust {
    /// Builds into the folder `target`.
    pub fn new(target: PathBuf) -> Self {
        DebianRust { target, variables: Vec::new() }
    }

    /// Sets a variable of every command's environment.
    pub fn env(mut self, name: &'static str, value: impl AsRef<OsStr>) -> Self {
        self.variables.push((name, value.as_ref().to_owned()));
        self
    }

    /// The build folder.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where a release for `triple` leaves the `softnet` program.
    pub fn program(&self, triple: &str) -> PathBuf {
        self.target.join(triple).join("release/softnet")
    }

    /// `cargo SUBCOMMAND` with the standard library built along.
    pub fn cargo(&self, subcommand: &str) -> Cargo {
        // By its own name: cargo looks for those that it does not have itself where rustup puts them, too.
        let program = if subcommand == "clippy" { "cargo-clippy" } else { "cargo" };
        let mut command = Command::new(Path::new(BIN).join(program));
        command
            .current_dir(root())
            // The variables of the cargo that runs this command do not apply to Debian's.
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
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .args([subcommand, "--quiet", "--locked", "-Zbuild-std=std,panic_abort"]);
        Cargo(command)
    }
}

/// A cargo command under construction.
#[derive(Debug)]
pub struct Cargo(Command);

impl Cargo {
    pub fn arg(mut self, arg: &str) -> Self {
        self.0.arg(arg);
        self
    }

    pub fn args<'a>(mut self, args: impl IntoIterator<Item = &'a str>) -> Self {
        self.0.args(args);
        self
    }

    pub fn command(self) -> Command {
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

/// Runs one step of a build and prints how long it took.
pub fn step(name: &str, mut command: Command) -> Result<()> {
    let started = Instant::now();
    println!("==> {name}");
    let status = command.status().with_context(|| format!("start {:?}", command.get_program()))?;
    ensure!(status.success(), "{name} failed");
    println!("    {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}
