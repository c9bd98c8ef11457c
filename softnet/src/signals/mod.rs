//! Signals as events: a handler writes one byte to a socket that the event loop watches.

#[cfg(target_os = "linux")]
pub mod signalfd;

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use crate::needs::{Needs, Syscall};
use crate::sys;

/// The system calls of a handler and of the event loop.
const SYSCALLS: &[Syscall] = &[Syscall::Sendto, Syscall::RtSigreturn, Syscall::Recvfrom];

/// Resets what the process inherited: with SIGCHLD ignored no child could be waited for.
///
/// # Errors
/// Those of `signal(2)`.
pub fn reset_inherited() -> io::Result<()> {
    sys::sigchld::reset_sigchld()
}

/// One group of signals as a source for the poller.
#[derive(Debug)]
pub struct Signals {
    receiver: mio::net::UnixStream,
    /// The ends that the handlers write to. They stay open as long as the process runs.
    senders: Vec<RawFd>,
}

impl Signals {
    /// The signals that end Softnet: SIGINT (Tart's stop), SIGTERM, SIGHUP.
    pub fn termination() -> io::Result<Self> {
        Signals::of(&[SIGINT, SIGTERM, SIGHUP])
    }

    /// The signal that prints the counters: SIGUSR1.
    pub fn statistics() -> io::Result<Self> {
        Signals::of(&[SIGUSR1])
    }

    fn of(signals: &[i32]) -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        let mut senders = Vec::new();
        for &signal in signals {
            let sender = sender.try_clone()?;
            senders.push(sender.as_raw_fd());
            signal_hook::low_level::pipe::register(signal, sender)?;
        }
        Ok(Signals { receiver: mio::net::UnixStream::from_std(receiver), senders })
    }

    /// Registers the signals, so that the poller wakes the event loop with `token`.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.receiver, token, Interest::READABLE)
    }

    /// Adds the descriptors and system calls that the signals need once the process is sealed.
    pub fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.receiver);
        for &sender in &self.senders {
            needs.raw_descriptor(sender);
        }
        needs.calls(SYSCALLS);
    }

    /// Discards the signals that have arrived.
    pub fn drain(&mut self) {
        let mut bytes = [0; 64];
        while io::Read::read(&mut self.receiver, &mut bytes).is_ok_and(|count| count > 0) {}
    }
}
