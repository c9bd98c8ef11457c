//! Signals with their origin: `signalfd(2)`.
//!
//! A supervisor has to know whether the kernel sent a SIGINT to the whole foreground group (then the VM has it already)
//! or somebody sent it to this process alone (then it must be passed on). `unsafe`, because signal sets and the
//! record that is read are C structs.
#![expect(unsafe_code, reason = "signalfd and sigprocmask take C structs by pointer")]

use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Signal;

/// What a supervisor reads.
const SIGNALS: [libc::c_int; 6] =
    [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2];

/// What a keeper of children reads.
const OF_CHILDREN: [libc::c_int; 4] = [libc::SIGCHLD, libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// What a terminal stops its processes with.
const STOPS: [libc::c_int; 3] = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// A signal that was sent to this process.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Which.
    pub signal: Signal,
    /// The kernel sent it, as a terminal does to its foreground group.
    pub from_kernel: bool,
}

impl Received {
    /// Whether the sender wants this process to end.
    pub fn asks_to_end(self) -> bool {
        [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&self.signal)
    }

    /// Whether it asks for the counters, which only the filter knows.
    pub fn asks_for_counters(self) -> bool {
        self.signal == Signal::USR1
    }

    /// Whether the VM has to be told, because nobody else told it.
    pub fn is_for_the_vm(self) -> bool {
        !self.from_kernel
    }
}

/// Blocks the supervisor's signals and makes them readable.
#[derive(Debug)]
pub struct SignalFd(OwnedFd);

impl SignalFd {
    /// From now on the signals arrive here only. Children inherit the mask: see [`SignalFd::release`] and
    /// [`super::process::spawn_with`].
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn new() -> io::Result<Self> {
        SignalFd::of(&SIGNALS)
    }

    /// The same for the ends and stops of children, and for what asks a service to end.
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn of_children() -> io::Result<Self> {
        SignalFd::of(&OF_CHILDREN)
    }

    fn of(signals: &[libc::c_int]) -> io::Result<Self> {
        let (set, _) = change_mask(libc::SIG_BLOCK, signals)?;
        // SAFETY: the set is a local that lives through the call; the descriptor that signalfd returns is ours alone.
        unsafe {
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(SignalFd(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// The signals have their usual effect again.
    ///
    /// # Errors
    /// Those of `sigprocmask(2)`.
    pub fn release(self) -> io::Result<()> {
        change_mask(libc::SIG_UNBLOCK, &SIGNALS).map(drop)
    }

    /// The next signal that has arrived, if any.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub fn read(&mut self) -> io::Result<Option<Received>> {
        const SIZE: usize = mem::size_of::<libc::signalfd_siginfo>();
        let mut record = [0u8; SIZE];
        match rustix::io::read(&self.0, &mut record) {
            Ok(SIZE) => {}
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // SAFETY: the kernel filled the whole record, and any bytes are a valid signalfd_siginfo.
        let record: libc::signalfd_siginfo = unsafe { mem::transmute(record) };
        let signal = Signal::from_named_raw(record.ssi_signo as i32);
        Ok(signal.map(|signal| Received { signal, from_kernel: record.ssi_code > 0 }))
    }
}

/// A terminal's stop signals wait until this is dropped.
pub struct HeldStops(libc::sigset_t);

impl HeldStops {
    /// From now on they wait.
    ///
    /// # Errors
    /// Those of `sigprocmask(2)`.
    pub fn hold() -> io::Result<Self> {
        change_mask(libc::SIG_BLOCK, &STOPS).map(|(_, before)| HeldStops(before))
    }
}

impl std::fmt::Debug for HeldStops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HeldStops")
    }
}

impl Drop for HeldStops {
    fn drop(&mut self) {
        // SAFETY: the set is one that sigprocmask filled.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Blocks or unblocks `signals`, and returns their set and the mask before.
fn change_mask(how: libc::c_int, signals: &[libc::c_int]) -> io::Result<(libc::sigset_t, libc::sigset_t)> {
    // SAFETY: both sets are filled by sigemptyset before they are read, and locals that live through the calls.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        let mut before: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigemptyset(&raw mut before);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        if libc::sigprocmask(how, &raw const set, &raw mut before) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((set, before))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
