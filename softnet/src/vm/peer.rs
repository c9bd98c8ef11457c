//! Detects that the peer of a Unix datagram pair has closed.
//!
//! Linux sends no event when the peer of a `SOCK_DGRAM` pair closes: no hang-up, no end of file. Only a send
//! fails, and a silent host sends nothing. The socket diagnostics interface (`sock_diag(7)`, family
//! `AF_UNIX`) names a socket's peer by inode, and the inode of a peer that has closed is 0. The query has no
//! effect on the peer.
//!
//! `unsafe`, because the socket's network namespace comes from an ioctl as a descriptor's number.
#![expect(unsafe_code, reason = "SIOCGSKNS returns a descriptor through an ioctl")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::thread;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::needs::Needs;
use crate::netlink::unix_diag;

/// `ioctl` that opens the network namespace of a socket, `linux/sockios.h`.
const SIOCGSKNS: libc::Ioctl = 0x894C;

/// Watches one socket's peer.
#[derive(Debug)]
pub struct PeerWatch {
    diag: OwnedFd,
    request: Vec<u8>,
}

impl PeerWatch {
    /// Prepares to query the peer of `socket`.
    ///
    /// # Errors
    /// When the kernel has no diagnostics for Unix sockets, or the socket belongs to a network namespace that
    /// this process may not enter.
    pub fn new(socket: &OwnedFd) -> io::Result<Self> {
        let inode = u32::try_from(rustix::fs::fstat(socket)?.st_ino).map_err(io::Error::other)?;
        let here = PeerWatch { diag: open_diag()?, request: unix_diag::peer_request(inode) };
        match here.peer() {
            Ok(_) => Ok(here),
            // The launcher made the pair in another network namespace.
            Err(_) => {
                let there = PeerWatch { diag: open_diag_in(namespace_of(socket)?)?, ..here };
                there.peer().map(|_| there)
            }
        }
    }

    /// Whether the peer still has an open descriptor. True in doubt: a wrong "no" would end a healthy VM's
    /// network.
    pub fn is_alive(&self) -> bool {
        !matches!(self.peer(), Ok(0))
    }

    /// The inode of the peer; 0 if it has closed.
    fn peer(&self) -> io::Result<u32> {
        rustix::net::send(&self.diag, &self.request, SendFlags::empty())?;
        let mut reply = [0; 256];
        let (len, _) = rustix::net::recv(&self.diag, &mut reply, RecvFlags::empty())?;
        unix_diag::peer(reply.get(..len).unwrap_or_default())
    }
}

impl AsFd for PeerWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.diag.as_fd()
    }
}

/// The link itself does nothing about it. The diagnostics socket could list all sockets of the host, so
/// another process than the one with the frames holds it (rule H10).
#[derive(Debug)]
pub struct LinkWatch;

impl LinkWatch {
    /// Prepares nothing.
    ///
    /// # Errors
    /// None.
    pub fn new(_socket: &OwnedFd) -> io::Result<Self> {
        Ok(LinkWatch)
    }

    /// Whether the link has to be probed.
    pub fn needs_probe(&self) -> bool {
        false
    }

    /// Always true: the link does not know.
    pub fn is_alive(&self) -> bool {
        true
    }

    /// Adds nothing.
    pub fn needs(&self, _needs: &mut Needs) {}
}

fn open_diag() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let protocol = netlink::SOCK_DIAG;
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(protocol))?)
}

/// Opens the diagnostics socket inside `namespace`, on a separate thread, so that this one stays in its
/// namespace.
fn open_diag_in(namespace: OwnedFd) -> io::Result<OwnedFd> {
    let opened = thread::spawn(move || {
        rustix::thread::move_into_link_name_space(
            namespace.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )?;
        open_diag()
    });
    opened.join().map_err(|_| io::Error::other("the thread that enters the namespace failed"))?
}

fn namespace_of(socket: &OwnedFd) -> io::Result<OwnedFd> {
    let socket: BorrowedFd<'_> = socket.as_fd();
    // SAFETY: SIOCGSKNS takes no argument and returns a new descriptor or -1.
    let namespace = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS, 0) };
    if namespace < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(namespace) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_closes_without_notification_is_detected() {
        let (near, far) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let socket = OwnedFd::from(far);
        let watch = PeerWatch::new(&socket).unwrap();
        assert!(watch.is_alive());
        drop(near);
        assert!(!watch.is_alive());
    }
}
