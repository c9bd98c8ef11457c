//! A Softnet in front of a guest without a machine, started as Tart starts it.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::SocketGuest;
use lab::deadline::until;

use super::output;

/// Where the privilege comes from that vmnet wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From sudo, by which Softnet starts itself again.
    Sudo,
    /// From the set-user-ID bit.
    SetUserId,
    /// From the entitlement in the signature, without root.
    Entitlement,
}

impl Way {
    /// For reports and paths.
    pub fn name(self) -> &'static str {
        match self {
            Way::Sudo => "sudo",
            Way::SetUserId => "set-user-ID bit",
            Way::Entitlement => "entitlement",
        }
    }

    /// Puts `program` into `folder` so that it takes this way, and returns its path.
    pub fn install(self, program: &Path, folder: &Path) -> Result<PathBuf> {
        let folder = folder.join(self.name().replace(' ', "-"));
        fs::create_dir_all(&folder)?;
        let path = folder.join("softnet");
        // A copy of an earlier run may be root's.
        output("sudo", ["--non-interactive", "rm", "-f", &text(&path)?])?;
        fs::copy(program, &path)
            .with_context(|| format!("copy {} to {}", program.display(), path.display()))?;
        if self == Way::SetUserId {
            output("sudo", ["--non-interactive", "chown", "root", &text(&path)?])?;
            output("sudo", ["--non-interactive", "chmod", "u+s", &text(&path)?])?;
        }
        Ok(path)
    }
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().context("a path that is not UTF-8")?.to_owned())
}

/// A running Softnet.
#[derive(Debug)]
pub struct Session {
    /// The guest in front of it.
    pub guest: SocketGuest,
    child: Child,
}

impl Session {
    /// Starts `program` by `way` for a guest with the address `mac`, with its log at `log`, and with the `channel` of a
    /// controller as its standard output, if there is one.
    pub fn start(
        way: Way,
        program: &Path,
        mac: [u8; 6],
        arguments: &[&str],
        channel: Option<OwnedFd>,
        log: &Path,
    ) -> Result<Self> {
        let (guest, theirs) = SocketGuest::new(mac)?;
        let control: &[_] = if channel.is_some() { &["--control-fd", "1"] } else { &[] };
        // With a descriptor that sudo would close, Softnet takes no way through it.
        let mut command = match way {
            Way::Sudo | Way::SetUserId => Command::new(program),
            Way::Entitlement => {
                let mut command = Command::new("/bin/sh");
                command.args(["-c", "exec \"$0\" \"$@\" 3>/dev/null"]).arg(program).arg("--ready-fd=3");
                command
            }
        };
        let log = File::options().create(true).append(true).open(log)?;
        command
            .args(["--vm-fd", "0", "--vm-mac-address", &guest.mac().to_string(), "--stats"])
            .args(control)
            .args(arguments)
            .stdin(theirs)
            .stdout(channel.map_or_else(Stdio::piped, Into::into))
            .stderr(log)
            // An interrupt of the terminal is not for it.
            .process_group(0);
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        Ok(Self { guest, child })
    }

    /// The process that has the frames: the one that was started, or the last one below sudo.
    pub fn worker(&self) -> Result<u32> {
        let mut pid = self.child.id();
        while let Ok(children) = output("pgrep", ["-P", &pid.to_string()]) {
            pid = children.split_ascii_whitespace().next().context("pgrep found nothing")?.parse()?;
        }
        Ok(pid)
    }

    /// Interrupts the process that was started, as Tart does for a suspension and for the end: with the user's own privilege.
    pub fn interrupt(&self) -> Result<()> {
        output("kill", ["-INT", &self.child.id().to_string()]).map(drop)
    }

    /// Whether the process that was started ends within the usual patience, and how.
    pub fn ends(&mut self) -> Result<String> {
        ends(&mut self.child)
    }

    /// Ends it, whichever way it takes, and returns what it wrote to standard output.
    pub fn end(mut self) -> Result<String> {
        if let Ok(worker) = self.worker() {
            // It may have ended meanwhile.
            let _ = send("INT", worker);
        }
        self.ends()?;
        let mut written = String::new();
        self.child.stdout.take().context("standard output is piped")?.read_to_string(&mut written)?;
        Ok(written)
    }

    /// Closes the VM's end of the socket, and waits for what Softnet makes of it.
    pub fn hang_up(self) -> Result<String> {
        let Self { guest, mut child } = self;
        drop(guest);
        ends(&mut child)
    }
}

fn ends(child: &mut Child) -> Result<String> {
    let mut status = None;
    let ended = until(|| {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    ensure!(ended, "it does not end");
    Ok(status.context("it has no status")?.to_string())
}

/// Sends `signal` to `pid`; as root if the user may not.
pub fn send(signal: &str, pid: u32) -> Result<()> {
    let (signal, pid) = (format!("-{signal}"), pid.to_string());
    match output("kill", [&signal, &pid]) {
        Ok(_) => Ok(()),
        Err(_) => output("sudo", ["--non-interactive", "kill", &signal, &pid]).map(drop),
    }
}

/// Processor time that `pid` has used so far.
pub fn processor_time(pid: u32) -> Result<Duration> {
    let time = output("ps", ["-o", "time=", "-p", &pid.to_string()])?;
    parse_time(time.trim()).with_context(|| format!("{time:?} is not a time of ps"))
}

/// `[[HH:]MM:]SS[.FRACTION]`.
fn parse_time(time: &str) -> Option<Duration> {
    let mut seconds = 0.0;
    for part in time.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>().ok().filter(|part| (0.0..1e6).contains(part))?;
    }
    Some(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_ps_are_read() {
        assert_eq!(parse_time("0:01.25"), Some(Duration::from_millis(1250)));
        assert_eq!(parse_time("1:02:03"), Some(Duration::from_secs(3723)));
        assert_eq!(parse_time("00:00:00"), Some(Duration::ZERO));
        for wrong in ["", "x", "1:-2", ":"] {
            assert_eq!(parse_time(wrong), None, "{wrong}");
        }
    }

    #[cfg(target_os = "macos")]
    #[test]
    fn the_own_processor_time_is_known() {
        processor_time(std::process::id()).unwrap();
    }
}
