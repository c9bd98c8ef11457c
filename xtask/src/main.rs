//! The project's own commands: `cargo xtask NAME`. One command per file.
//!
//! The lab is Linux's, and so is nearly every command; a Mac has the one that verifies Softnet there.
#![expect(clippy::print_stdout, reason = "these are programs for people, and this is what they print")]

mod cargo;
mod verify;

#[cfg(target_os = "linux")]
mod arm64;
#[cfg(target_os = "linux")]
mod bench;
#[cfg(target_os = "linux")]
mod debian_rust;
#[cfg(target_os = "linux")]
mod demo;
#[cfg(target_os = "linux")]
mod fuzz;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod mac;
#[cfg(target_os = "linux")]
mod macos;
#[cfg(target_os = "linux")]
mod mutants;
#[cfg(target_os = "linux")]
mod packages;
#[cfg(target_os = "linux")]
mod release;
#[cfg(target_os = "linux")]
mod soak;
#[cfg(target_os = "linux")]
mod test;

use std::process::ExitCode;

#[cfg(target_os = "linux")]
use linux::run;
#[cfg(not(target_os = "linux"))]
use mac::run;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
