//! A descriptor's registration with the poller.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// Whether a link's descriptor is registered: the first call adds it, later calls change its interest.
#[derive(Debug, Default)]
pub struct Registration {
    done: bool,
}

impl Registration {
    /// Registers `descriptor` for `interest`, so that the poller wakes the event loop with `token`.
    ///
    /// # Errors
    /// Those of the poller.
    pub fn set(
        &mut self,
        descriptor: &impl AsFd,
        registry: &Registry,
        token: Token,
        interest: Interest,
    ) -> io::Result<()> {
        let number = descriptor.as_fd().as_raw_fd();
        let mut source = SourceFd(&number);
        if std::mem::replace(&mut self.done, true) {
            registry.reregister(&mut source, token, interest)
        } else {
            registry.register(&mut source, token, interest)
        }
    }
}
