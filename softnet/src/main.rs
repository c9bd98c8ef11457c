//! The `softnet` program.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Parser;
use softnet::cli::Cli;
use softnet::config::Config;
use softnet::stage::{Opened, Sealed};
use softnet::usage::UsageError;
use softnet::{command, escalation, logging, signals};

/// Exit status for an invalid command line, the same as clap's.
const USAGE: u8 = 2;
/// Exit status for every other failure.
const FAILURE: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    if let Err(error) = signals::reset_inherited() {
        tracing::warn!(%error, "cannot reset the inherited handling of child processes");
    }
    let outcome = match cli.command {
        None if cli.port.sudo_escalation_probing => Ok(ExitCode::SUCCESS),
        None => Config::try_from((cli.vm, cli.port)).map(|config| filter(config).into()).map_err(Into::into),
        Some(command) => command::perform(command, filter),
    };
    outcome.unwrap_or_else(|error| report_failure(&error).into())
}

/// The main job: filter the frames of one VM. Returns the exit status.
fn filter(config: Config) -> u8 {
    let sealed = match open_and_seal(config) {
        Ok(sealed) => sealed,
        Err(error) => return report_failure(&error),
    };
    match sealed.run() {
        Ok(ended) => {
            tracing::info!(?ended, "ended");
            0
        }
        Err(error) => {
            // Not as an `anyhow::Error`: that may capture a backtrace, for which the seal ends the process.
            print_error(&error);
            FAILURE
        }
    }
}

fn open_and_seal(config: Config) -> anyhow::Result<Sealed> {
    Ok(Opened::open(escalation::ensure(config)?)?.seal()?)
}

/// Prints the error and returns the exit status.
fn report_failure(error: &anyhow::Error) -> u8 {
    print_error(error.as_ref());
    if error.is::<UsageError>() { USAGE } else { FAILURE }
}

/// Prints the error and its causes to standard error. If that fails, the exit status stays the same.
fn print_error(error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Many messages already end with their cause.
        let reason = error.to_string();
        if !text.ends_with(&reason) {
            let _ = write!(text, ": {reason}");
        }
        cause = error.source();
    }
    let _ = writeln!(io::stderr(), "softnet: {text}");
    logging::record_failure(&text);
}
