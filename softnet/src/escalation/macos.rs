//! Starting again by sudo.

use std::os::unix::process::CommandExt;

use anyhow::Context;
use rustix::process::{geteuid, getgid, getuid};

use super::*;
use crate::config::Config;

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
        has_ready_fd: config.port.ready.is_some(),
    };
    let program = this_program().context("cannot find the path of the running program")?;
    match situation.plan(|| probe(Path::new(SUDO), &program))? {
        Plan::Proceed => Ok(config),
        Plan::Again => {
            let ids = (getuid().as_raw(), getgid().as_raw());
            let arguments = sudo_arguments(&program, std::env::args_os().skip(1), ids);
            let error = Command::new(SUDO)
                .args(arguments)
                .env_clear()
                .stdin(Stdio::from(config.vm.into_socket()))
                .exec();
            Err(error).context(
                "cannot start /usr/bin/sudo, which has just run softnet; set Softnet's SUID bit instead",
            )
        }
    }
}
