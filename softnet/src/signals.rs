//! Signals as events: a handler writes one byte to a socket that the event loop watches.

use std::io;
use std::os::unix::net::UnixStream;

use mio::{Interest, Registry, Token};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

/// One group of signals as something to poll.
#[derive(Debug)]
pub struct Signals {
    receiver: mio::net::UnixStream,
}

impl Signals {
    /// The signals that ask Softnet to end: SIGINT (Tart's stop), SIGTERM, SIGHUP.
    pub fn termination() -> io::Result<Self> {
        Signals::of(&[SIGINT, SIGTERM, SIGHUP])
    }

    /// The signal that asks for the counters: SIGUSR1.
    pub fn statistics() -> io::Result<Self> {
        Signals::of(&[SIGUSR1])
    }

    fn of(signals: &[i32]) -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        for &signal in signals {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Signals { receiver: mio::net::UnixStream::from_std(receiver) })
    }

    /// Lets `registry` wake the event loop under `token`.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.receiver, token, Interest::READABLE)
    }

    /// Forgets the signals that have arrived.
    pub fn drain(&mut self) {
        let mut bytes = [0; 64];
        while io::Read::read(&mut self.receiver, &mut bytes).is_ok_and(|count| count > 0) {}
    }
}
