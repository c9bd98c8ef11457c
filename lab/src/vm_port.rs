//! A VM as Softnet sees it: the peer of its socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};

use crate::deadline::Deadline;

/// The VM's end of a datagram socket pair: sends and receives bare Ethernet frames.
#[derive(Debug)]
pub struct VmPort(OwnedFd);

impl VmPort {
    /// Creates the pair with the buffer sizes that VMMs use; the second value is Softnet's end.
    ///
    /// # Errors
    /// Fails if the kernel cannot create the sockets.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let (vm, softnet) =
            socketpair(AddressFamily::Unix, SockType::Datagram, None, SockFlag::SOCK_CLOEXEC)?;
        for end in [&vm, &softnet] {
            setsockopt(end, sockopt::SndBuf, &(1 << 20))?;
            setsockopt(end, sockopt::RcvBuf, &(4 << 20))?;
        }
        Ok((Self(vm), softnet))
    }

    /// Duplicates this end for another thread.
    ///
    /// # Errors
    /// Fails if no descriptor is left.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Sends a frame, waiting while Softnet's queue is full.
    ///
    /// # Errors
    /// Fails once Softnet's end is closed.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.0.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL).context("send a frame to Softnet")?;
        Ok(())
    }

    /// Sends a frame unless the queue is full. Returns whether it was sent.
    ///
    /// # Errors
    /// Fails once Softnet's end is closed.
    pub fn try_send(&self, frame: &[u8]) -> Result<bool> {
        match send(self.0.as_raw_fd(), frame, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
            Ok(_) => Ok(true),
            Err(nix::errno::Errno::EAGAIN) => Ok(false),
            Err(error) => Err(io::Error::from(error)).context("send a frame to Softnet"),
        }
    }

    /// The next frame from Softnet, or `None` if there is none before the deadline or Softnet's end is
    /// closed.
    ///
    /// # Errors
    /// Fails on a broken socket.
    pub fn recv(&self, deadline: Deadline) -> Result<Option<Vec<u8>>> {
        if !deadline.readable(self.0.as_fd()) {
            return Ok(None);
        }
        let mut frame = vec![0; 66_000];
        let got = match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(nix::errno::Errno::ECONNRESET) => return Ok(None),
            other => other.context("receive a frame from Softnet")?,
        };
        frame.truncate(got);
        Ok(Some(frame))
    }

    /// Reads the next queued frame into `buffer`; `None` if there is none or Softnet's end is closed.
    ///
    /// # Errors
    /// Fails on a broken socket.
    pub fn try_recv(&self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match recv(self.0.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) | Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::ECONNRESET) => Ok(None),
            other => other.map(Some).context("receive a frame from Softnet"),
        }
    }

    /// Waits for a frame that `wanted` accepts, and returns it after all frames that arrived before it.
    ///
    /// # Errors
    /// Fails if none arrives before the deadline.
    pub fn expect(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<(Vec<Vec<u8>>, Vec<u8>)> {
        let deadline = Deadline::default();
        let mut before = Vec::new();
        while let Some(frame) = self.recv(deadline)? {
            if wanted(&frame) {
                return Ok((before, frame));
            }
            before.push(frame);
        }
        bail!("the VM never received {what}; it received {} other frames", before.len())
    }

    /// True if Softnet's end is closed. A datagram socket reports that only to a sender, so this sends a
    /// byte.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.try_send(&[0]).is_err()
    }
}

impl AsFd for VmPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
