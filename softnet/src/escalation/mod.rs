//! Re-runs Softnet with the privilege that macOS's vmnet requires.
//!
//! On macOS 15 and older only root may use vmnet. A program that is not set-user-ID root runs itself again by
//! `sudo --non-interactive`, which works if the administrator has allowed it without a password, and
//! otherwise fails at once instead of asking. The new process gets the caller's user and group as arguments,
//! and becomes that user again before it reads a frame. From macOS 26 on none of this is needed, and this
//! module does nothing.
//!
//! `sudo` passes on only the three standard streams, so the VM's socket becomes standard input. The
//! environment is not passed on.

#[cfg(target_os = "macos")]
mod macos;
#[cfg(not(target_os = "macos"))]
mod other;

#[cfg(target_os = "macos")]
pub use macos::ensure;
#[cfg(not(target_os = "macos"))]
pub use other::ensure;

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::usage::UsageError;

/// Not looked up in `PATH`, which the caller controls.
pub const SUDO: &str = "/usr/bin/sudo";
/// Tells the new process not to try again.
pub const DONE: &str = "--sudo-escalation-done";

/// Darwin's major version in macOS 26, whose vmnet needs no root.
const DARWIN_OF_MACOS_26: u32 = 25;

/// The facts that decide whether to re-run through `sudo`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Situation {
    /// The effective user is root.
    pub is_root: bool,
    /// This process was started by [`Plan::Again`].
    pub is_done: bool,
    /// `uname -r`, such as `24.6.0` on macOS 15.6.
    pub darwin: String,
    /// `--ready-fd` was given.
    pub has_ready_fd: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Plan {
    /// Continue in this process.
    Proceed,
    /// Run the program again by `sudo`.
    Again,
}

impl Situation {
    /// Decides.
    ///
    /// # Errors
    /// When `sudo` did not make this process root, or would close a descriptor that is needed.
    pub fn plan(&self) -> Result<Plan, UsageError> {
        if self.is_root || !needs_root(&self.darwin) {
            return Ok(Plan::Proceed);
        }
        if self.is_done {
            return Err(UsageError::flag(DONE, "was given to a process that is not root; leave it out"));
        }
        if self.has_ready_fd {
            let reason = "cannot pass through sudo, which vmnet needs on this macOS; run Softnet as root or set its SUID bit";
            return Err(UsageError::flag("--ready-fd", reason));
        }
        Ok(Plan::Again)
    }
}

/// Whether vmnet needs root on this version of Darwin; yes if the version is unknown.
fn needs_root(darwin: &str) -> bool {
    let major = darwin.split('.').next().and_then(|major| major.parse::<u32>().ok());
    major.is_none_or(|major| major < DARWIN_OF_MACOS_26)
}

/// The arguments of `sudo` that start `program` again with the arguments of this process, for the VM's socket on standard
/// input, and for the user `uid` and the group `gid` unless the arguments name others.
pub fn sudo_arguments(
    program: &Path,
    arguments: impl IntoIterator<Item = OsString>,
    (uid, gid): (u32, u32),
) -> Vec<OsString> {
    let mut rest = Vec::new();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--vm-fd" {
            arguments.next();
        } else if !argument.as_bytes().starts_with(b"--vm-fd=") {
            rest.push(argument);
        }
    }
    let mut again = vec!["--non-interactive".into(), program.into(), DONE.into(), "--vm-fd=0".into()];
    for (flag, id) in [("--user", uid), ("--group", gid)] {
        if !rest.iter().any(|argument| is_flag(argument, flag)) {
            again.push(format!("{flag}={id}").into());
        }
    }
    again.append(&mut rest);
    again
}

/// Whether `argument` is `flag` or `flag=…`.
fn is_flag(argument: &OsStr, flag: &str) -> bool {
    let rest = argument.as_bytes().strip_prefix(flag.as_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"="))
}

/// The running program's absolute path, for `sudo`: a bare name could resolve to another program.
///
/// # Errors
/// When the system does not report it.
pub fn this_program() -> std::io::Result<std::path::PathBuf> {
    std::path::absolute(std::env::current_exe()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn on(darwin: &str) -> Situation {
        Situation { is_root: false, is_done: false, darwin: darwin.to_owned(), has_ready_fd: false }
    }

    #[test]
    fn only_macos_before_26_needs_root() {
        for (darwin, plan) in [
            ("22.1.0", Plan::Again),
            ("24.6.0", Plan::Again),
            ("25.0.0", Plan::Proceed),
            ("26.1.2", Plan::Proceed),
            ("", Plan::Again),
            ("x", Plan::Again),
        ] {
            assert_eq!(on(darwin).plan(), Ok(plan), "{darwin:?}");
        }
        let root = Situation { is_root: true, is_done: true, has_ready_fd: true, ..on("22.1.0") };
        assert_eq!(root.plan(), Ok(Plan::Proceed));
    }

    #[test]
    fn nobody_goes_round_in_circles_or_loses_a_descriptor() {
        let done = Situation { is_done: true, ..on("22.1.0") };
        assert!(done.plan().unwrap_err().to_string().contains("not root"));
        let ready = Situation { has_ready_fd: true, ..on("22.1.0") };
        assert!(ready.plan().unwrap_err().to_string().starts_with("--ready-fd"));
    }

    fn again(line: &str) -> Vec<String> {
        let arguments = line.split_whitespace().map(OsString::from);
        let words = sudo_arguments(Path::new("/opt/homebrew/bin/softnet"), arguments, (501, 20));
        words.into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn the_command_line_is_kept_but_for_the_socket() {
        let words = again("--vm-fd 7 --vm-mac-address 5a:94:ef:e4:0c:ee --allow=@host");
        assert_eq!(
            words,
            [
                "--non-interactive",
                "/opt/homebrew/bin/softnet",
                "--sudo-escalation-done",
                "--vm-fd=0",
                "--user=501",
                "--group=20",
                "--vm-mac-address",
                "5a:94:ef:e4:0c:ee",
                "--allow=@host",
            ]
        );
        let cli = Cli::try_parse_from(&words[1..]).unwrap();
        assert_eq!(cli.vm.vm_fd.as_deref(), Some("0"));
        assert!(cli.port.sudo_escalation_done);
    }

    #[test]
    fn named_users_and_groups_stay_named() {
        let words = again("--user ci --group=staff --vm-fd=3 --vm-mac-address 5a:94:ef:e4:0c:ee");
        assert!(!words.iter().any(|word| word.starts_with("--user=") || word == "--group=20"));
        let cli = Cli::try_parse_from(&words[1..]).unwrap();
        assert_eq!((cli.port.user.as_deref(), cli.port.group.as_deref()), (Some("ci"), Some("staff")));
    }

    #[test]
    fn the_running_program_is_known_by_an_absolute_path() {
        assert!(this_program().unwrap().is_absolute());
    }
}
