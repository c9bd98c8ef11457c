//! Finds out that the far end of a Unix datagram pair has closed, where the socket itself knows.
//!
//! The BSDs disconnect a datagram socket when its peer closes, without waking anybody: asking for the peer's name then
//! fails. Linux does not, and has another way.

use std::io;
use std::os::fd::OwnedFd;

use crate::needs::Needs;

/// Watches one socket's peer from within the link.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    /// Prepares to ask for the peer of `socket`.
    ///
    /// # Errors
    /// When no further descriptor can be opened.
    pub fn new(socket: &OwnedFd) -> io::Result<Self> {
        Ok(LinkWatch { socket: socket.try_clone()? })
    }

    /// Whether the link has to be probed for it.
    pub fn asks(&self) -> bool {
        true
    }

    /// Whether the peer still has an open descriptor. In doubt it has: a wrong "no" would end a healthy VM's network.
    pub fn is_alive(&self) -> bool {
        rustix::net::getpeername(&self.socket) != Err(rustix::io::Errno::NOTCONN)
    }

    /// Says which descriptors and system calls [`LinkWatch::is_alive`] needs.
    pub fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.socket);
    }
}
