//! The keeper of a managed network: runs the DHCP and DNS server as its child and repairs the network.
//!
//! # Theory of operation
//! A network must not depend on any single user of it (rule H8). So the first Softnet that needs the server
//! starts a process that inherits nothing ([`surroundings`]) and asks it, as every later start does, to serve
//! ([`super::service`]): one word over a socket in the directory that only root can enter, and one word or an
//! error back. The asking process holds the lock meanwhile, and the keeper works under that lock.
//!
//! While VMs run, the keeper receives the kernel's events about interfaces, addresses, forwarding and tables
//! ([`events`]), notices when its child ends or is stopped, and checks the child's sockets periodically
//! ([`server`]). If something is missing or changed, it repairs it as a start does, under the lock
//! ([`watch`]). It never waits for the lock: the holder may be waiting for the keeper.
//!
//! There are two processes. The *warden* only waits, and starts another keeper if its child dies; the keeper
//! starts another pair if its warden dies. A running Softnet could not do that: it has given up the privilege
//! that a server needs.

mod events;
mod server;
mod surroundings;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use super::claim;
use super::run_dir::{NetworkDir, RunDir};
use super::service::{EXIT_TIMEOUT, MAX_MESSAGE, lock_file, readable};
use crate::config::NetworkName;
use crate::host::files;
use crate::sys;
use crate::sys::incarnation::Incarnation;
use crate::sys::process::Fork;

/// The exit status of a keeper that could not start.
const CANNOT_START: i32 = 3;

/// How soon a keeper that died is replaced.
const RESTART_DELAY: Duration = Duration::from_millis(200);

/// Runs the keeper if the command line is a keeper's, and returns the exit status; `None` for any other
/// command line. Every program that calls [`super::ensure`] or joins a network must call this first, because
/// it is started again as the keeper.
pub fn as_asked() -> Option<i32> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["network", "keep", "--network", name] => Some(name.parse().map_or(2, |name| keep(&name))),
        _ => None,
    }
}

/// Runs the warden and the keeper of the network until they are asked to end. Returns the exit status.
pub fn keep(name: &NetworkName) -> i32 {
    status(warden(name))
}

fn status(outcome: io::Result<()>) -> i32 {
    match outcome {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!("{error}");
            1
        }
    }
}

fn warden(name: &NetworkName) -> io::Result<()> {
    if !rustix::process::getuid().is_root() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let run_dir = RunDir::of_this_namespace();
    let directory = run_dir.network(name.as_str());
    let channel = surroundings::take_channel()?;
    match take_over(&directory) {
        Ok(lock) => supervise(name, run_dir, directory, lock, channel),
        Err(error) => {
            answer_error(channel.as_ref(), &error);
            Err(error)
        }
    }
}

/// Resets what was inherited, and takes the lock of the network's only keeper, which is held until it ends.
fn take_over(directory: &NetworkDir) -> io::Result<File> {
    surroundings::take_log(&directory.file("keeper.log"))?;
    surroundings::reset_inherited();
    let lock = files::create(&lock_file(directory), 0o600).map_err(io::Error::other)?;
    let deadline = Instant::now() + EXIT_TIMEOUT;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= deadline {
            return Err(io::Error::other("the previous keeper does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(lock)
}

/// Answers the asking process with the reason why there will be no server.
fn answer_error(channel: Option<&OwnedFd>, error: &io::Error) {
    if let Some(channel) = channel {
        // Unread data would discard the answer when the socket closes.
        if readable(channel, EXIT_TIMEOUT) {
            let _ = recv(channel, &mut [0; MAX_MESSAGE][..], RecvFlags::DONTWAIT);
        }
        let _ = send(channel, error.to_string().as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// Restarts the keeper until one ends successfully, or the first cannot start.
fn supervise(
    name: &NetworkName,
    run_dir: RunDir,
    directory: NetworkDir,
    lock: File,
    mut channel: Option<OwnedFd>,
) -> io::Result<()> {
    let mut first = true;
    let own = Incarnation::of_this_process();
    loop {
        let warden = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())?;
        match sys::process::fork()? {
            Fork::Child => {
                let status = match watch::Keeper::new(name, run_dir, directory, lock, own) {
                    Ok(keeper) => status(keeper.asked_by(channel).watch(&warden)),
                    Err(error) => {
                        answer_error(channel.as_ref(), &error);
                        status(Err(error));
                        CANNOT_START
                    }
                };
                sys::process::exit_now(status)
            }
            Fork::Parent(keeper) => {
                // Only the keeper holds the channel, so that the other side notices its end.
                channel = None;
                let status = reap(keeper);
                if status == Some(0)
                    || first && status == Some(CANNOT_START)
                    || !claim::is_current(&lock, &lock_file(&directory))
                {
                    return Ok(());
                }
                tracing::warn!(network = %name, "the keeper exited; starting another");
                std::thread::sleep(RESTART_DELAY);
                first = false;
            }
        }
    }
}

fn reap(keeper: Pid) -> Option<i32> {
    loop {
        match waitpid(Some(keeper), WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(Some((_, status))) => return status.exit_status(),
            Ok(None) | Err(_) => return None,
        }
    }
}
