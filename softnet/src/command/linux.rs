//! The subcommands of Linux.

use std::process::ExitCode;

use crate::cli::Command;
use crate::config::Config;
use crate::{manage, run};

/// Carries out `command`, which runs `filter` in a process of its own if it needs one.
///
/// # Errors
/// Those of [`run::run`] and [`manage::run`].
pub fn perform(command: Command, filter: impl FnOnce(Config) -> u8) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(*args, filter),
        Command::Network(args) => manage::run(&args).map(|()| ExitCode::SUCCESS),
    }
}
