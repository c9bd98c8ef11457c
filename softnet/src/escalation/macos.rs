//! Starting again by sudo.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;

use anyhow::Context;
use rustix::process::{geteuid, getgid, getuid};

use super::*;
use crate::config::{Config, PortSettings};
use crate::control::Connection;

/// Returns `config` if this process has the privilege that vmnet needs; otherwise executes `sudo`, and
/// returns only if that fails.
///
/// # Errors
/// When the privilege cannot be obtained; the message says what to do.
pub fn ensure(config: Config) -> anyhow::Result<Config> {
    let situation = Situation {
        is_root: geteuid().is_root(),
        is_done: std::env::args_os().any(|argument| argument == DONE),
        darwin: rustix::system::uname().release().to_string_lossy().into_owned(),
        lost: lost(&config.port),
    };
    let program = this_program().context("cannot find the path of the running program")?;
    match situation.plan(|| probe(Path::new(SUDO), &program))? {
        Plan::Proceed => Ok(config),
        Plan::Again => {
            let ids = (getuid().as_raw(), getgid().as_raw());
            let arguments = sudo_arguments(&program, std::env::args_os().skip(1), ids);
            let control = config.port.control.map(Connection::into_socket);
            let error = command(Path::new(SUDO), arguments, config.vm.into_socket(), control).exec();
            Err(error).context(
                "cannot start /usr/bin/sudo, which has just run softnet; set Softnet's SUID bit instead",
            )
        }
    }
}

/// The flag whose descriptor `sudo` would close. A channel on standard output, where Tart has it, stays.
fn lost(settings: &PortSettings) -> Option<&'static str> {
    let has_control = |control: &Connection| control.as_fd().as_raw_fd() != libc::STDOUT_FILENO;
    if settings.ready.is_some() {
        Some("--ready-fd")
    } else {
        settings.control.as_ref().filter(|control| has_control(control)).map(|_| "--control-fd")
    }
}
