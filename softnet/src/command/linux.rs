//! The subcommands of Linux.

use std::process::ExitCode;

use crate::cli::Command;
use crate::config::Config;
use crate::{manage, policy, run};

/// Carries out `command`, which runs `filter` in a process of its own if it needs one.
///
/// # Errors
/// Those of [`run::run`], [`policy::run`] and [`manage::run`].
pub fn perform(command: Command, filter: impl FnOnce(Config) -> u8) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::run(*args, filter),
        Command::Policy(args) => policy::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Network(args) => manage::run(&args).map(|()| ExitCode::SUCCESS),
    }
}
