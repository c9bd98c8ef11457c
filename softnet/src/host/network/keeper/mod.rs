//! The keeper of a managed network: it has the DHCP and DNS server for a child and sees to it that the network stays whole.
//!
//! # Theory of operation
//! A network belongs to nobody who uses it (rule H8). So whoever first needs its server starts a process that inherits
//! nothing ([`surroundings`]) and asks it, as every later start does, to serve ([`ensure`]): one word over a socket in the
//! directory that only root can enter, and one word or an error back. The asking process holds the lock meanwhile, and the
//! keeper works in its name.
//!
//! While VMs run, the keeper listens to what the kernel tells of interfaces, addresses, forwarding and tables ([`events`]),
//! hears of its child's end and stops, and looks at the child's sockets now and then ([`server`]). Where something is not as
//! it should be, it does what a start does, under the lock ([`watch`]). It never waits for the lock: who holds it may be
//! waiting for the keeper.
//!
//! There are two processes. The *warden* does nothing but wait, and starts another keeper if its child dies; the keeper
//! starts another pair if its warden does. A running Softnet could not: it has given up what a server needs.

mod events;
mod server;
mod surroundings;
mod watch;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    socket_with, socketpair,
};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, waitpid};

use super::Error;
use super::dnsmasq;
use super::run_dir::{self, Lock, NetworkDir, RunDir};
use crate::config::NetworkName;
use crate::sys;
use crate::sys::incarnation::Incarnation;
use crate::sys::process::Fork;

pub use events::{is_as_noted, note_generation};

/// How long a keeper may take for what it is asked, a slow end of the former server included.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a keeper waits for the last one to be gone.
const PREDECESSOR: Duration = Duration::from_secs(5);

/// How soon a keeper that died is replaced.
const AGAIN: Duration = Duration::from_millis(200);

/// Asks for the server to be the right one, and to run.
const SERVE: &str = "serve";
/// Asks for the server's end, and the keeper's.
const END: &str = "end";
/// The answer, if it is no error's text.
const DONE: &str = "ok";

/// The status of a keeper that could not begin.
const UNABLE: i32 = 3;

/// The longest message.
const LONGEST: usize = 4096;

/// Sees to it that the network has a keeper and the right server runs.
///
/// # Errors
/// The keeper's, if it cannot start the server; or when there is no way to start a keeper.
pub(super) fn ensure(name: &NetworkName, directory: &NetworkDir, _lock: &Lock) -> Result<(), Error> {
    if is_kept(directory) {
        match reach(directory).and_then(|channel| ask(&channel, SERVE)) {
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
pub(super) fn end(directory: &NetworkDir, _lock: &Lock) -> Result<(), Error> {
    if is_kept(directory) {
        let processes = processes(directory);
        match reach(directory).and_then(|channel| ask(&channel, END)) {
            Ok(_) => processes.into_iter().for_each(wait_for),
            Err(error) => tracing::warn!(%error, "the keeper does not answer; killing it"),
        }
        kill(directory)?;
    }
    Ok(dnsmasq::stop(directory)?)
}

/// Whether a keeper or its warden lives.
fn is_kept(directory: &NetworkDir) -> bool {
    File::open(lock_file(directory)).is_ok_and(|file| run_dir::is_locked(&file))
}

fn lock_file(directory: &NetworkDir) -> PathBuf {
    directory.locked_file("keeper")
}

fn socket_file(directory: &NetworkDir) -> PathBuf {
    directory.locked_file("keeper.sock")
}

/// The warden and the keeper, in this order.
fn processes(directory: &NetworkDir) -> Vec<Incarnation> {
    let text = run_dir::read(&lock_file(directory)).ok().flatten().unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Kills what is left of a keeper.
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
        readable(&descriptor, PREDECESSOR);
    }
}

fn pid_of(process: Incarnation) -> Option<Pid> {
    i32::try_from(process.pid).ok().and_then(Pid::from_raw)
}

/// The way to a keeper that runs.
fn reach(directory: &NetworkDir) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(socket_file(directory))?;
    let give_up = Instant::now() + PREDECESSOR;
    loop {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        match connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            // One that was killed is being replaced.
            Err(_) if is_kept(directory) && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Says `word` and waits for the answer: an error's text, or nothing.
fn ask(channel: &OwnedFd, word: &str) -> io::Result<Result<(), String>> {
    send(channel, word.as_bytes(), SendFlags::NOSIGNAL)?;
    if !readable(channel, PATIENCE) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut bytes = [0; LONGEST];
    let (length, _) = recv(channel, &mut bytes[..], RecvFlags::DONTWAIT)?;
    match bytes.get(..length) {
        None | Some([]) => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(answer) if answer == DONE.as_bytes() => Ok(Ok(())),
        Some(answer) => Ok(Err(String::from_utf8_lossy(answer).into_owned())),
    }
}

fn readable(descriptor: &OwnedFd, patience: Duration) -> bool {
    let give_up = Instant::now() + patience;
    loop {
        let left = give_up.saturating_duration_since(Instant::now());
        let Ok(timeout) = left.try_into() else { return false };
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            outcome => return outcome.is_ok_and(|ready| ready > 0),
        }
    }
}

/// Starts a pair of warden and keeper as this program's `network keep`, with a channel to the keeper if one is `asked` for.
fn start(name: &NetworkName, asked: bool) -> io::Result<Option<OwnedFd>> {
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

/// What a program does first whose command line is that of a keeper. Returns the status to end with; `None` for any other
/// command line. Every program that calls [`super::ensure`] or joins a network must call this, because it is started again as
/// the keeper.
pub fn as_asked() -> Option<i32> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["network", "keep", "--network", name] => Some(name.parse().map_or(2, |name| keep(&name))),
        _ => None,
    }
}

/// Is the warden and the keeper of the network, until it is asked to end. Returns the status to end with.
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
    match settle(&directory) {
        Ok(lock) => guard(name, run_dir, directory, lock, channel),
        Err(error) => {
            tell(channel.as_ref(), &error);
            Err(error)
        }
    }
}

/// Takes the place of the network's only keeper, in a surrounding of its own. The lock is its life's.
fn settle(directory: &NetworkDir) -> io::Result<File> {
    surroundings::take_log(&directory.file("keeper.log"))?;
    surroundings::settle_in();
    let lock = run_dir::create(&lock_file(directory), 0o600).map_err(io::Error::other)?;
    let give_up = Instant::now() + PREDECESSOR;
    while flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= give_up {
            return Err(io::Error::other("another keeper does not end"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(lock)
}

/// Answers who asked with the reason why nobody will serve.
fn tell(channel: Option<&OwnedFd>, error: &io::Error) {
    if let Some(channel) = channel {
        // What is unread when the socket closes would take the answer with it.
        if readable(channel, PREDECESSOR) {
            let _ = recv(channel, &mut [0; LONGEST][..], RecvFlags::DONTWAIT);
        }
        let _ = send(channel, error.to_string().as_bytes(), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
    }
}

/// Sees to it that there is a keeper until one ends as it should, or the first cannot begin.
fn guard(
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
                        tell(channel.as_ref(), &error);
                        status(Err(error));
                        UNABLE
                    }
                };
                sys::process::exit_now(status)
            }
            Fork::Parent(keeper) => {
                // The keeper's alone, so that its end is seen.
                channel = None;
                let status = reap(keeper);
                if status == Some(0)
                    || first && status == Some(UNABLE)
                    || !run_dir::stands(&lock, &lock_file(&directory))
                {
                    return Ok(());
                }
                tracing::warn!(network = %name, "the keeper died; starting another");
                std::thread::sleep(AGAIN);
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
