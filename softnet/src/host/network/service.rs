//! Asks the network's keeper to run the server, or to end together with it. Starts a keeper if there is none.
//!
//! The keeper itself is in [`super::keeper`]; this module has what both sides need.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with, socketpair,
};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Error;
use super::claim;
use super::dnsmasq;
use super::lock::Lock;
use super::run_dir::NetworkDir;
use crate::config::NetworkName;
use crate::host::files;
use crate::sys;
use crate::sys::incarnation::Incarnation;

/// How long a keeper may take to answer, including a slow end of the former server.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait for the previous keeper to end.
pub const EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the keeper to run the right server.
pub const SERVE: &str = "serve";
/// Asks the keeper to end the server and itself.
pub const END: &str = "end";
/// Asks the keeper to look at what the host's filters drop, and to answer afterwards.
pub const LOOK: &str = "look";
/// The answer on success; any other answer is an error's text.
pub const DONE: &str = "ok";

/// The longest message.
pub const MAX_MESSAGE: usize = 4096;

/// Ensures that the network has a keeper and that the right server runs.
///
/// # Errors
/// The keeper's, if it cannot start the server; or when no keeper can be started.
pub fn ensure(name: &NetworkName, directory: &NetworkDir, _lock: &Lock) -> Result<(), Error> {
    if is_kept(directory) {
        match connect_to_keeper(directory).and_then(|channel| ask(&channel, SERVE)) {
            Ok(answer) => return answer.map_err(Error::Keeper),
            Err(error) => {
                tracing::warn!(%error, network = %name, "the keeper does not answer; starting another");
                kill(directory)?;
            }
        }
    }
    let failed = |error| Error::Keeper(format!("cannot start the network's keeper: {error}"));
    let channel = start(name, true).map_err(failed)?;
    match channel.as_ref().map(|channel| ask(channel, SERVE)) {
        Some(Ok(answer)) => answer.map_err(Error::Keeper),
        Some(Err(error)) => Err(failed(error)),
        None => Ok(()),
    }
}

/// Ends the network's keeper and its server.
///
/// # Errors
/// When one of them cannot be ended.
pub fn end(directory: &NetworkDir, _lock: &Lock) -> Result<(), Error> {
    if is_kept(directory) {
        let processes = processes(directory);
        match connect_to_keeper(directory).and_then(|channel| ask(&channel, END)) {
            Ok(_) => processes.into_iter().for_each(wait_for),
            Err(error) => tracing::warn!(%error, "the keeper does not answer; killing it"),
        }
        kill(directory)?;
    }
    Ok(dnsmasq::stop(directory)?)
}

/// Asks the keeper for a look at what the host's filters drop, and waits for its end.
///
/// # Errors
/// When there is no keeper, or it does not answer.
pub fn look(directory: &NetworkDir) -> io::Result<()> {
    if !is_kept(directory) {
        return Err(io::ErrorKind::NotFound.into());
    }
    connect_to_keeper(directory).and_then(|channel| ask(&channel, LOOK)).map(drop)
}

/// Whether a keeper or its warden is alive.
fn is_kept(directory: &NetworkDir) -> bool {
    File::open(lock_file(directory)).is_ok_and(|file| claim::is_locked(&file))
}

/// The file that a running keeper has locked; it lists the warden and the keeper.
pub fn lock_file(directory: &NetworkDir) -> PathBuf {
    directory.locked_file("keeper")
}

/// The socket on which a keeper is asked.
pub fn socket_file(directory: &NetworkDir) -> PathBuf {
    directory.locked_file("keeper.sock")
}

/// The warden and the keeper, in this order.
fn processes(directory: &NetworkDir) -> Vec<Incarnation> {
    let text = files::read(&lock_file(directory)).ok().flatten().unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills the remaining processes of a keeper.
fn kill(directory: &NetworkDir) -> Result<(), Error> {
    let left = processes(directory);
    for process in left.iter().filter(|process| process.lives()) {
        if let Some(pid) = pid_of(*process) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    left.into_iter().for_each(wait_for);
    Ok(())
}

fn wait_for(process: Incarnation) {
    let Some(Ok(descriptor)) = pid_of(process).map(|pid| pidfd_open(pid, PidfdFlags::empty())) else {
        return;
    };
    if process.lives() {
        readable(&descriptor, EXIT_TIMEOUT);
    }
}

fn pid_of(process: Incarnation) -> Option<Pid> {
    i32::try_from(process.pid).ok().and_then(Pid::from_raw)
}

/// Connects to a running keeper.
fn connect_to_keeper(directory: &NetworkDir) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(socket_file(directory))?;
    let deadline = Instant::now() + EXIT_TIMEOUT;
    loop {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            // A killed keeper is being replaced.
            Err(_) if is_kept(directory) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Sends `word` and waits for the answer: an error's text, or nothing.
fn ask(channel: &OwnedFd, word: &str) -> io::Result<Result<(), String>> {
    send(channel, word.as_bytes(), SendFlags::NOSIGNAL)?;
    if !readable(channel, ANSWER_TIMEOUT) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut bytes = [0; MAX_MESSAGE];
    let (length, _) = recv(channel, &mut bytes[..], RecvFlags::DONTWAIT)?;
    match bytes.get(..length) {
        None | Some([]) => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(answer) if answer == DONE.as_bytes() => Ok(Ok(())),
        Some(answer) => Ok(Err(String::from_utf8_lossy(answer).into_owned())),
    }
}

/// Waits until there is something to read.
pub fn readable(descriptor: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok(timeout) = left.try_into() else { return false };
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return outcome.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Starts a warden and a keeper by running this program as `network keep`, with a channel to the keeper if
/// `asked`.
pub fn start(name: &NetworkName, asked: bool) -> io::Result<Option<OwnedFd>> {
    let (ours, theirs) = if asked {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        (Some(ours), Stdio::from(theirs))
    } else {
        (None, Stdio::null())
    };
    let mut command = Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut command, "softnet-keeper");
    command
        .args(["network", "keep", "--network", name.as_str()])
        .env_clear()
        .current_dir("/")
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    sys::process::detach(&mut command);
    command.spawn()?.wait()?;
    Ok(ours)
}
