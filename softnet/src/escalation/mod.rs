//! Re-runs Softnet with the privilege that macOS's vmnet requires.
//!
//! On macOS 15 and older only root may use vmnet. On 26 and newer it also serves a user, if the program's signature has
//! the entitlement for it, but only root can set the DHCP server's lease time. So on every version a program that is not
//! set-user-ID root first asks whether it may run itself by `sudo --non-interactive`, which works if the
//! administrator has allowed it without a password, and otherwise fails at once instead of asking. If so it does, and
//! the new process gets the caller's user and group as arguments, and becomes that user again before it reads a
//! frame. If not it goes on as the user where vmnet serves users.
//!
//! `sudo` passes on only the three standard streams, so the VM's socket becomes standard input, and a channel on standard
//! output stays there. The environment is not passed on.

#[cfg(target_os = "macos")]
mod macos;
#[cfg(not(target_os = "macos"))]
mod other;

#[cfg(target_os = "macos")]
pub use macos::ensure;
#[cfg(not(target_os = "macos"))]
pub use other::ensure;

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::host::vmnet::serves_users;
use crate::usage::UsageError;

/// Not looked up in `PATH`, which the caller controls.
pub const SUDO: &str = "/usr/bin/sudo";
/// Tells the new process not to try again.
pub const DONE: &str = "--sudo-escalation-done";
/// With it the program does nothing and succeeds. Tart asks in the same way.
pub const PROBING: &str = "--sudo-escalation-probing";

/// The facts that decide whether to re-run through `sudo`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Situation {
    /// The effective user is root.
    pub is_root: bool,
    /// This process was started by [`Plan::Again`].
    pub is_done: bool,
    /// `uname -r`, such as `24.6.0` on macOS 15.6.
    pub darwin: String,
    /// A flag that gives a descriptor which `sudo` would close: it passes on the standard ones only.
    pub lost: Option<&'static str>,
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
    /// Decides. `sudo` tells whether it would run the program again, or why not; it is asked only if that matters.
    ///
    /// # Errors
    /// If only root can go on and `sudo` does not make this process root, or would close a descriptor that is needed.
    pub fn plan(&self, sudo: impl FnOnce() -> Result<(), String>) -> Result<Plan, UsageError> {
        let serves_users = serves_users(&self.darwin);
        if self.is_root {
            return Ok(Plan::Proceed);
        }
        if self.is_done {
            return Err(UsageError::flag(DONE, "was given to a process that is not root; leave it out"));
        }
        if let Some(flag) = self.lost {
            if serves_users {
                return Ok(Plan::Proceed);
            }
            let reason = "cannot pass through sudo, which vmnet needs on this macOS; run Softnet as root or set its SUID bit";
            return Err(UsageError::flag(flag, reason));
        }
        match sudo() {
            Ok(()) => Ok(Plan::Again),
            Err(reason) if serves_users => {
                tracing::info!(%reason, "sudo does not run softnet without a password; going on without root");
                Ok(Plan::Proceed)
            }
            Err(reason) => Err(UsageError::flag(
                "softnet",
                format!(
                    "vmnet needs root on this macOS, and {reason}; set Softnet's SUID bit (chown root and chmod u+s), or allow \
                     sudo without a password"
                ),
            )),
        }
    }
}

/// Asks `sudo` whether it runs `program` as root without a password.
///
/// # Errors
/// If it does not; the message says why, in its words.
pub fn probe(sudo: &Path, program: &Path) -> Result<(), String> {
    let mut command = Command::new(sudo);
    command.arg("--non-interactive").arg(program).arg(PROBING);
    // The VM's socket is standard input, and standard output may be a control channel.
    command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let name = sudo.display();
    let output = command.output().map_err(|error| format!("{name} cannot be started: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(match said.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        // Its own name is in front of its messages.
        Some(line) => line.to_owned(),
        None => format!("{name} failed: {}", output.status),
    })
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

/// The command that starts this program again by `sudo`, with the `vm`'s socket as standard input, and with the `control`
/// channel, if there is one, as standard output.
pub fn command(sudo: &Path, arguments: Vec<OsString>, vm: OwnedFd, control: Option<OwnedFd>) -> Command {
    let mut command = Command::new(sudo);
    command.args(arguments).env_clear().stdin(vm).stdout(control.map_or_else(Stdio::inherit, Into::into));
    command
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
        Situation { is_root: false, is_done: false, darwin: darwin.to_owned(), lost: None }
    }

    /// A `sudo` that is not to be asked.
    fn nobody() -> Result<(), String> {
        panic!("sudo was asked")
    }

    fn refuses() -> Result<(), String> {
        Err("sudo: a password is required".to_owned())
    }

    #[test]
    fn sudo_is_tried_on_every_version() {
        for darwin in ["22.1.0", "24.6.0", "25.0.0", "26.1.2", "", "x"] {
            assert_eq!(on(darwin).plan(|| Ok(())), Ok(Plan::Again), "{darwin:?}");
        }
        let root = Situation { is_root: true, is_done: true, lost: Some("--ready-fd"), ..on("22.1.0") };
        assert_eq!(root.plan(nobody), Ok(Plan::Proceed));
    }

    #[test]
    fn only_macos_26_and_newer_goes_on_without_root() {
        for darwin in ["25.0.0", "26.1.2"] {
            assert_eq!(on(darwin).plan(refuses), Ok(Plan::Proceed), "{darwin:?}");
        }
        for darwin in ["22.1.0", "24.6.0", "", "x"] {
            let error = on(darwin).plan(refuses).unwrap_err().to_string();
            assert!(error.contains("a password is required") && error.contains("SUID bit"), "{error}");
        }
    }

    #[test]
    fn nobody_goes_round_in_circles_or_loses_a_descriptor() {
        for darwin in ["22.1.0", "25.0.0"] {
            let done = Situation { is_done: true, ..on(darwin) };
            assert!(done.plan(nobody).unwrap_err().to_string().contains("not root"));
        }
        let ready = Situation { lost: Some("--ready-fd"), ..on("22.1.0") };
        assert!(ready.plan(nobody).unwrap_err().to_string().starts_with("--ready-fd"));
        let ready = Situation { lost: Some("--ready-fd"), ..on("25.0.0") };
        assert_eq!(ready.plan(nobody), Ok(Plan::Proceed));
    }

    /// A program in the place of `sudo`, in a folder of its own.
    fn stand_in(name: &str, script: &str) -> std::path::PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let folder = std::env::temp_dir().join(format!("softnet-sudo-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("sudo");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn sudo_is_asked_as_tart_asks() {
        let program = Path::new("/opt/homebrew/bin/softnet");
        // Says yes only to what a sudo of macOS is to be asked, with nothing of the caller's on its streams.
        let says = format!(
            "[ \"$*\" = \"--non-interactive {} {PROBING}\" ] && ! read line && ! [ -S /dev/stdout ]",
            program.display()
        );
        let sudo = stand_in("yes", &says);
        assert_eq!(probe(&sudo, program), Ok(()));
        std::fs::remove_dir_all(sudo.parent().unwrap()).unwrap();
        let sudo = stand_in("no", "echo 'sudo: a password is required' >&2; exit 1");
        assert_eq!(probe(&sudo, program), Err("sudo: a password is required".to_owned()));
        std::fs::remove_dir_all(sudo.parent().unwrap()).unwrap();
        let gone = probe(&sudo, program).unwrap_err();
        assert!(gone.contains("cannot be started"), "{gone}");
    }

    /// As Tart starts it: the VM's socket on standard input, and a controller's channel on standard output.
    #[test]
    fn the_sockets_pass_through_sudo() {
        use std::io::Read;
        use std::os::unix::net::{UnixDatagram, UnixStream};
        // Says what it receives and what it was given, but only in an empty environment.
        let sudo = stand_in("sockets", "[ -z \"$HOME\" ] && echo \"$(head -n 1) $*\"");
        let (vm, theirs) = UnixDatagram::pair().unwrap();
        let (mut controller, channel) = UnixStream::pair().unwrap();
        vm.send(b"frame\n").unwrap();
        let arguments = vec!["--non-interactive".into(), "softnet".into()];
        let mut command = command(&sudo, arguments, theirs.into(), Some(channel.into()));
        assert!(command.status().unwrap().success());
        drop(command);
        let mut said = String::new();
        controller.read_to_string(&mut said).unwrap();
        assert_eq!(said, "frame --non-interactive softnet\n");
        std::fs::remove_dir_all(sudo.parent().unwrap()).unwrap();
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
