//! A system without subcommands.

use std::process::ExitCode;

use crate::cli::Command;
use crate::config::Config;
use crate::usage::UsageError;

/// Refuses `command`.
///
/// # Errors
/// Always.
pub fn perform(command: Command, _filter: impl FnOnce(Config) -> u8) -> anyhow::Result<ExitCode> {
    let name = match command {
        Command::Run(_) => "softnet run",
        Command::Policy(_) => "softnet policy",
        Command::Network(_) => "softnet network",
    };
    Err(UsageError::flag(name, "is for Linux; on macOS, start the VM with `tart run --net-softnet`").into())
}
