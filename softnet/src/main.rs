//! The `softnet` program.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use softnet::cli::{Cli, Command};
use softnet::config::{Config, ConfigError};
use softnet::logging;
use softnet::stage::Opened;

/// Exit status for a command line that cannot be carried out, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::init();
    let outcome = match cli.command {
        None if cli.port.sudo_escalation_probing => Ok(()),
        None => Config::try_from((cli.vm, cli.port)).map_err(Into::into).and_then(filter),
        #[cfg(target_os = "linux")]
        Some(Command::Run(args)) => match softnet::run::run(*args, |config| status(filter(config))) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        #[cfg(target_os = "linux")]
        Some(Command::Network(args)) => softnet::manage::run(&args),
        #[cfg(not(target_os = "linux"))]
        Some(Command::Run(_) | Command::Network(_)) => Err(ConfigError::flag(
            "softnet run and softnet network",
            "are for Linux; on macOS, start the VM with `tart run --net-softnet`",
        )
        .into()),
    };
    ExitCode::from(status(outcome))
}

/// The main job: filter the frames of one VM.
fn filter(config: Config) -> anyhow::Result<()> {
    #[cfg(target_os = "macos")]
    let config = softnet::escalation::ensure(config)?;
    let opened = Opened::open(config)?;
    let sealed = opened.seal()?;
    let ended = sealed.run()?;
    tracing::info!(?ended, "ended");
    Ok(())
}

/// The exit status; says on standard error what went wrong.
fn status(outcome: anyhow::Result<()>) -> u8 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            // Nobody reading it changes nothing about the status.
            let _ = writeln!(io::stderr(), "softnet: {error:#}");
            if error.is::<ConfigError>() { USAGE } else { 1 }
        }
    }
}
