//! Detects that the peer of a Unix datagram pair has closed, on systems where the socket itself knows.
//!
//! The BSDs disconnect a datagram socket when its peer closes, without an event: getpeername(2) then fails.
//! Linux does not; `peer.rs` has its way.

use std::io;
use std::os::fd::OwnedFd;

use crate::needs::Needs;

/// Watches one socket's peer from within the link.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    /// Prepares to query the peer of `socket`.
    ///
    /// # Errors
    /// When no further descriptor can be opened.
    pub fn new(socket: &OwnedFd) -> io::Result<Self> {
        Ok(LinkWatch { socket: socket.try_clone()? })
    }

    /// Whether the link has to be probed.
    pub fn needs_probe(&self) -> bool {
        true
    }

    /// Whether the peer still has an open descriptor. True in doubt: a wrong "no" would end a healthy VM's
    /// network.
    pub fn is_alive(&self) -> bool {
        rustix::net::getpeername(&self.socket) != Err(rustix::io::Errno::NOTCONN)
    }

    /// Adds the descriptors and system calls that [`LinkWatch::is_alive`] needs.
    pub fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.socket);
    }
}
