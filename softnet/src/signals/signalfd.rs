//! Signals with their sender: `signalfd(2)`.
//!
//! A supervisor has to know whether the kernel sent a SIGINT to the whole foreground group (then the VM has
//! received it too) or another process sent it to this one only (then the supervisor must forward it).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal as Number, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd as Descriptor};
use rustix::process::Signal;

/// The signals that a supervisor reads.
const SIGNALS: [Number; 6] =
    [Number::SIGINT, Number::SIGTERM, Number::SIGHUP, Number::SIGQUIT, Number::SIGUSR1, Number::SIGUSR2];

/// The signals that a keeper of children reads.
const OF_CHILDREN: [Number; 4] = [Number::SIGCHLD, Number::SIGTERM, Number::SIGINT, Number::SIGHUP];

/// The signals by which a terminal stops its processes.
const STOPS: [Number; 3] = [Number::SIGTSTP, Number::SIGTTIN, Number::SIGTTOU];

/// A signal that was sent to this process.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Its number.
    pub signal: Signal,
    /// The kernel sent it, as a terminal does to its foreground group.
    pub from_kernel: bool,
}

impl Received {
    /// Whether the signal requests that this process end.
    pub fn asks_to_end(self) -> bool {
        [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT].contains(&self.signal)
    }

    /// Whether the signal requests the counters, which only the filter's process has.
    pub fn asks_for_counters(self) -> bool {
        self.signal == Signal::USR1
    }

    /// Whether it must be forwarded to the VM, which has not received it.
    pub fn is_for_the_vm(self) -> bool {
        !self.from_kernel
    }
}

/// Blocks the supervisor's signals and makes them readable.
#[derive(Debug)]
pub struct SignalFd(Descriptor);

impl SignalFd {
    /// From now on, the signals arrive only here. Children inherit the mask: see [`SignalFd::release`] and
    /// `sys::process::spawn_with`.
    ///
    /// # Errors
    /// Those of `signalfd(2)`.
    pub fn new() -> io::Result<Self> {
        SignalFd::of(&SIGNALS)
    }

    /// The same for SIGCHLD and the signals that end a service.
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

    /// Unblocks the signals.
    ///
    /// # Errors
    /// Those of `sigprocmask(2)`.
    pub fn release(self) -> io::Result<()> {
        change_mask(SigmaskHow::SIG_UNBLOCK, &SIGNALS).map(drop)
    }

    /// Reads the next signal that has arrived, if any.
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

/// Blocks a terminal's stop signals until this is dropped.
#[derive(Debug)]
pub struct HeldStops(SigSet);

impl HeldStops {
    /// Blocks them from now on.
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

/// Blocks or unblocks `signals`, and returns the previous mask.
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
