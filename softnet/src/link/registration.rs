//! A descriptor's place in the poller.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

/// Whether a link's descriptor is in the poller yet: the first time it is added, after that its interest changes.
#[derive(Debug, Default)]
pub struct Registration {
    done: bool,
}

impl Registration {
    /// Lets `registry` wake the event loop under `token` for `interest` in `descriptor`.
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
