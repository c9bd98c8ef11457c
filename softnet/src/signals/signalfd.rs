//! Signals with their origin: `signalfd(2)`.
//!
//! A supervisor has to know whether the kernel sent a SIGINT to the whole foreground group (then the VM has
//! it already) or another process sent it to this one alone (then it must be passed on).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd as Descriptor};
use rustix::process::Signal;

/// What a supervisor reads.
const SIGNALS: [Number; 6] =
    [Number::SIGINT, Number::SIGTERM, Number::SIGHUP, Number::SIGQUIT, Number::SIGUSR1, Number::SIGUSR2];

/// What a keeper of children reads.
const OF_CHILDREN: [Number; 4] = [Number::SIGCHLD, Number::SIGTERM, Number::SIGINT, Number::SIGHUP];

/// What a terminal stops its processes with.
const STOPS: [Number; 3] = [Number::SIGTSTP, Number::SIGTTIN, Number::SIGTTOU];

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
pub struct SignalFd(Descriptor);

impl SignalFd {
    /// From now on the signals arrive here only. Children inherit the mask: see [`SignalFd::release`] and
    /// `sys::process::spawn_with`.
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

    fn of(signals: &[Number]) -> io::Result<Self> {
        change_mask(SigmaskHow::SIG_BLOCK, signals)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(SignalFd(Descriptor::with_flags(&signals.iter().copied().collect(), flags)?))
    }

    /// The signals have their usual effect again.
    ///
    /// # Errors
    /// Those of `sigprocmask(2)`.
    pub fn release(self) -> io::Result<()> {
        change_mask(SigmaskHow::SIG_UNBLOCK, &SIGNALS).map(drop)
    }

    /// The next signal that has arrived, if any.
    ///
    /// # Errors
    /// Those of `read(2)`.
    pub fn read(&mut self) -> io::Result<Option<Received>> {
        let record = match self.0.read_signal() {
            Ok(Some(record)) => record,
            Ok(None) | Err(Errno::EINTR) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let signal = Signal::from_named_raw(record.ssi_signo as i32);
        Ok(signal.map(|signal| Received { signal, from_kernel: record.ssi_code > 0 }))
    }
}

/// A terminal's stop signals wait until this is dropped.
#[derive(Debug)]
pub struct HeldStops(SigSet);

impl HeldStops {
    /// From now on they wait.
    ///
    /// # Errors
    /// Those of `sigprocmask(2)`.
    pub fn hold() -> io::Result<Self> {
        change_mask(SigmaskHow::SIG_BLOCK, &STOPS).map(HeldStops)
    }
}

impl Drop for HeldStops {
    fn drop(&mut self) {
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.0), None);
    }
}

/// Blocks or unblocks `signals`, and returns the mask before.
fn change_mask(how: SigmaskHow, signals: &[Number]) -> io::Result<SigSet> {
    let mut before = SigSet::empty();
    sigprocmask(how, Some(&signals.iter().copied().collect()), Some(&mut before))?;
    Ok(before)
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
