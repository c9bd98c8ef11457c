//! Finds and ends the server's process. The keeper starts it as its child and records it.
//!
//! Only root writes to the network's directory, so the process that the file `server` there names is the
//! server; the recorded start time distinguishes it from a later process with the same number. A process that
//! merely looks like dnsmasq is ignored, because any user can start one (rule H9). One case remains: a server
//! whose keeper and file are gone. It is searched for among the processes of root and of dnsmasq's user that
//! run the program that Softnet would start.

use std::fmt;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Error, arguments, names_pid_file, pid_file};
use crate::host::files;
use crate::host::network::run_dir::NetworkDir;
use crate::host::tools::Tool;
use crate::sys::incarnation::Incarnation;

/// How long dnsmasq may take to end after SIGTERM before it is killed.
const TERM_TIMEOUT: Duration = Duration::from_secs(3);

/// The processes in the keeper's public file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Server {
    /// The keeper.
    pub keeper: Option<Incarnation>,
    /// Its dnsmasq.
    pub dnsmasq: Option<Incarnation>,
    /// Its server of names.
    pub names: Option<Incarnation>,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, process) in [("keeper", self.keeper), ("dnsmasq", self.dnsmasq), ("names", self.names)] {
            if let Some(process) = process {
                writeln!(f, "{name} {process}")?;
            }
        }
        Ok(())
    }
}

impl Server {
    /// The content of the file; empty if there is none.
    pub fn recorded(directory: &NetworkDir) -> Self {
        let text = files::read(&Server::file(directory)).ok().flatten().unwrap_or_default();
        let process =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().parse().ok());
        Server { keeper: process("keeper "), dnsmasq: process("dnsmasq "), names: process("names ") }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record(&self, directory: &NetworkDir) -> Result<(), files::Error> {
        files::write_atomically(&Server::file(directory), &self.to_string())
    }

    fn file(directory: &NetworkDir) -> PathBuf {
        directory.file("server")
    }
}

/// The running server of the network, if there is one. Any user may ask.
pub fn running(directory: &NetworkDir) -> Option<u32> {
    Server::recorded(directory).dnsmasq.filter(|process| process.lives()).map(|process| process.pid)
}

/// The running server of names, if there is one.
pub fn names_server(directory: &NetworkDir) -> Option<u32> {
    Server::recorded(directory).names.filter(|process| process.lives()).map(|process| process.pid)
}

/// The keeper of the network, if there is one. Any user may ask.
pub fn keeper(directory: &NetworkDir) -> Option<u32> {
    Server::recorded(directory).keeper.filter(|process| process.lives()).map(|process| process.pid)
}

/// Ends the server of a keeper that is gone, if it runs. Needs the right to inspect other users' processes.
///
/// # Errors
/// When it cannot be ended.
pub fn stop(directory: &NetworkDir) -> Result<(), Error> {
    for pid in running(directory).into_iter().chain(names_server(directory)) {
        end(pid)?;
    }
    kill_all(orphans(directory))
}

/// Kills orphaned processes, and waits until all are gone. They include children that dnsmasq forked for TCP
/// connections, which do not end on SIGTERM and live for minutes.
fn kill_all(pids: Vec<u32>) -> Result<(), Error> {
    let deadline = Instant::now() + TERM_TIMEOUT;
    let mut dying = Vec::new();
    for pid in pids {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { continue };
        // A process that is already gone is fine.
        if let Ok(process) = pidfd_open(raw, PidfdFlags::empty()) {
            let _ = pidfd_send_signal(&process, Signal::KILL);
            dying.push((pid, process));
        }
    }
    for (pid, process) in dying {
        let failed = |errno: rustix::io::Errno| Error::End { pid, source: errno.into() };
        if !ended(&process, deadline.saturating_duration_since(Instant::now())).map_err(failed)? {
            return Err(failed(rustix::io::Errno::TIMEDOUT));
        }
    }
    Ok(())
}

/// All dnsmasq processes of this network, of any keeper.
fn orphans(directory: &NetworkDir) -> Vec<u32> {
    let Ok(program) = Tool::Dnsmasq.find().map(|path| fs::canonicalize(&path).unwrap_or(path)) else {
        return Vec::new();
    };
    let options =
        [pid_file(directory), names_pid_file(directory)].map(|path| format!("--pid-file={}", path.display()));
    let users = [Some(0), uid_of(arguments::user())];
    let is_ours = |&pid: &u32| {
        let of = |name: &str| fs::read_link(format!("/proc/{pid}/{name}")).ok();
        // The owner of the directory is the effective user, root for a process that is not dumpable.
        let user = fs::metadata(format!("/proc/{pid}")).ok().map(|metadata| metadata.uid());
        command_line(pid).is_some_and(|arguments| options.iter().any(|option| arguments.contains(option)))
            && user.is_some_and(|user| users.contains(&Some(user)))
            && real_user(pid).is_some_and(|user| users.contains(&Some(user)))
            && of("exe") == Some(program.clone())
            && of("ns/net").is_some_and(|its| fs::read_link("/proc/self/ns/net").ok() == Some(its))
    };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_ours).collect()
}

fn uid_of(name: &str) -> Option<u32> {
    use crate::privilege::Accounts;
    Some(crate::privilege::System.user(name)?.uid.as_raw())
}

/// The process's real user (proc_pid_status(5)).
fn real_user(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().next()?.parse().ok())
}

fn command_line(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let bytes = bytes.strip_suffix(&[0])?;
    Some(bytes.split(|&byte| byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect())
}

/// Asks the process to end, waits, and kills it if it does not.
///
/// # Errors
/// When the kernel refuses, or the process does not end.
pub fn end(pid: u32) -> Result<(), Error> {
    let failed = |errno: rustix::io::Errno| Error::End { pid, source: errno.into() };
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        }
        if ended(&process, TERM_TIMEOUT).map_err(failed)? {
            return Ok(());
        }
    }
    Err(failed(rustix::io::Errno::TIMEDOUT))
}

fn ended(process: &OwnedFd, limit: Duration) -> rustix::io::Result<bool> {
    let mut waiting = [PollFd::new(process, PollFlags::IN)];
    let timeout = limit.try_into().map_err(|_| rustix::io::Errno::INVAL)?;
    Ok(poll(&mut waiting, Some(&timeout))? > 0)
}

#[cfg(test)]
mod tests {
    use super::super::super::run_dir::RunDir;
    use super::*;

    #[test]
    fn what_the_keeper_notes_is_read_again() {
        let own = Incarnation::of_this_process();
        let server = Server { keeper: own, ..Server::default() };
        assert!(server.to_string().starts_with("keeper "));
        assert_eq!(Server::default().to_string(), "");
    }

    #[test]
    fn a_process_that_only_looks_like_dnsmasq_is_not_taken_for_it() {
        let directory = RunDir::of_this_namespace().network("no-such-net");
        assert_eq!(running(&directory), None);
        assert_eq!(orphans(&directory), Vec::<u32>::new());
    }
}
