//! The lock for all changes to networks: waiting for it is bounded, and no ordinary user can stop the process
//! that holds it.
//!
//! A set-user-ID start has its caller's real user until it has given its privilege up, and the caller may
//! stop it: by a signal (kill(2)), or from its terminal. If it were stopped while it holds the lock, it would
//! block all others (rule H9). So while it holds the lock its real user is root, stop signals of a terminal
//! are blocked, and a low priority is raised.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Uid, geteuid, getpriority_process, getuid, setpriority_process};
use rustix::thread::set_thread_res_uid;

use crate::host::files::{Error, create};
use crate::signals::signalfd::HeldStops;
use crate::sys::incarnation::Incarnation;

/// How long to wait for the lock.
pub const LOCK_TIMEOUT: Duration = Duration::from_secs(30);

/// How often to retry a lock that is held: flock(2) has no timeout.
const RETRY_INTERVAL: Duration = Duration::from_millis(2);

/// Whether to wait for a lock that another process holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wait {
    /// Do not wait.
    Never,
    /// Wait for at most [`LOCK_TIMEOUT`].
    Bounded,
}

/// While this is held, no other Softnet changes any network of this namespace.
#[derive(Debug)]
pub struct Lock {
    file: File,
    // Dropped after the file: the lock is released before its holder can be stopped again.
    caller: Option<Caller>,
}

impl Lock {
    /// Takes the lock of the file at `path`; `None` if another process holds it and `wait` is
    /// [`Wait::Never`].
    ///
    /// # Errors
    /// When the file cannot be used, or is still locked after [`LOCK_TIMEOUT`]; the error then names the
    /// process that holds it.
    pub(super) fn acquire(path: &Path, wait: Wait) -> Result<Option<Lock>, Error> {
        let mut file = create(path, 0o600)?;
        let failed = |error: Errno| Error::new("lock", path)(error.into());
        // Before taking the lock, so that the caller can never stop this process while it holds it.
        let caller = Caller::become_root().map_err(Error::new("prepare to lock", path))?;
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) if wait == Wait::Never => return Ok(None),
                Err(Errno::WOULDBLOCK) if Instant::now() >= deadline => {
                    let said = format!("{} has held it for {} s", holder(&mut file), LOCK_TIMEOUT.as_secs());
                    return Err(Error::new("lock", path)(io::Error::new(io::ErrorKind::TimedOut, said)));
                }
                Err(Errno::WOULDBLOCK) => std::thread::sleep(RETRY_INTERVAL),
                Err(error) => return Err(failed(error)),
            }
        }
        let mut write_holder = || {
            let text = format!("{}\n", std::process::id());
            file.rewind()?;
            file.write_all(text.as_bytes())?;
            file.set_len(text.len() as u64)
        };
        // A full disk must not keep a VM from leaving.
        if let Err(error) = write_holder() {
            tracing::debug!(%error, "cannot write the holder's process number to the lock file");
        }
        Ok(Some(Lock { file, caller }))
    }

    /// Whether the process has more privilege than its caller, who may then not change settings of a network
    /// that others use (rule H9).
    pub fn is_elevated(&self) -> bool {
        self.caller.is_some()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Explicitly, because a program that is being started may share the descriptor a moment longer.
        let _ = flock(&self.file, FlockOperation::Unlock);
        if let Some(caller) = self.caller.take() {
            caller.restore();
        }
    }
}

/// A description of the process that holds the lock of `file`: from the kernel's list, or else from what the
/// holder wrote.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let written = || read.ok().and_then(|_| text.trim().parse::<u32>().ok());
    match listed_holder(file).or_else(written) {
        Some(pid) => match Incarnation::name(pid) {
            Some(name) => format!("process {pid} ({name})"),
            None => format!("process {pid}, which has ended, or one of its children,"),
        },
        None => "another process".to_owned(),
    }
}

/// The process that locked `file`, according to `/proc/locks` (proc_locks(5)). A child that inherited the
/// lock is not listed there.
fn listed_holder(file: &File) -> Option<u32> {
    let inode = format!(":{}", file.metadata().ok()?.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let holder = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (kind, _, _, pid, file) =
            (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        // A process of another PID namespace has no number here.
        (kind == "FLOCK" && file.ends_with(&inode)).then(|| pid.parse().ok().filter(|pid| *pid > 0)).flatten()
    };
    locks.lines().find_map(holder)
}

/// The ordinary user who started an elevated process.
#[derive(Debug)]
struct Caller {
    user: Uid,
    priority: Option<i32>,
    _stops: HeldStops,
}

impl Caller {
    /// Makes root the real user too; `None` if the process is not elevated.
    fn become_root() -> io::Result<Option<Caller>> {
        let user = getuid();
        if !geteuid().is_root() || user.is_root() {
            return Ok(None);
        }
        let stops = HeldStops::hold()?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        // The monitor may not raise its priority; others then wait for it, but no longer than the timeout.
        let low = getpriority_process(None).ok().filter(|priority| *priority > 0);
        let priority = low.filter(|_| setpriority_process(None, 0).is_ok());
        Ok(Some(Caller { user, priority, _stops: stops }))
    }

    /// Makes the caller the real user again, who must be able to stop a Softnet that it started.
    fn restore(self) {
        if let Some(priority) = self.priority {
            let _ = setpriority_process(None, priority);
        }
        if let Err(error) = set_thread_res_uid(self.user, Uid::ROOT, Uid::ROOT) {
            tracing::warn!(%error, "cannot restore the caller's user ID; only root can stop this process now");
        }
    }
}
