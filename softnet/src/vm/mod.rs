//! The VM's side: the socket that the VMM passes.

mod datagram;
#[cfg_attr(not(target_os = "linux"), path = "peer_portable.rs")]
mod peer;

use std::os::fd::OwnedFd;

use rustix::net::SocketType;
use rustix::net::sockopt;

use crate::link::{Link, StreamLink};
pub use datagram::DatagramLink;
#[cfg(target_os = "linux")]
pub use peer::PeerWatch;

/// Minimum receive buffer of a VM socket in bytes: as Tart requests it, about 2,700 full frames.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Minimum send buffer of a VM socket in bytes.
const SEND_BUFFER: usize = 1 << 20;

/// Why an inherited descriptor cannot carry a VM's frames.
#[derive(Debug, thiserror::Error)]
pub enum VmSocketError {
    /// Not a socket at all.
    #[error(
        "is not a socket; pass one end of a socketpair(AF_UNIX, SOCK_DGRAM) or a connected stream socket"
    )]
    NotASocket,
    /// A socket of a type that carries no frames.
    #[error(
        "is a {0} socket; pass a datagram socket (bare frames) or a stream socket (length-prefixed frames)"
    )]
    WrongType(&'static str),
    /// A listening socket.
    #[error("is a listening socket; accept the connection and pass the connected socket")]
    Listening,
    /// A socket without a peer.
    #[error("is not connected to a VM; pass one end of a socketpair or connect it first")]
    NotConnected,
    /// A system call failed.
    #[error("cannot be prepared: {0}")]
    Io(#[from] std::io::Error),
}

/// How frames are delimited on the socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Framing {
    /// One bare frame per datagram.
    Datagram,
    /// A 32-bit big-endian length before each frame.
    Stream,
}

/// A checked VM socket.
#[derive(Debug)]
pub struct VmSocket {
    socket: OwnedFd,
    framing: Framing,
}

impl VmSocket {
    /// Checks by `SO_TYPE` whether and how `socket` can carry frames. Changes nothing.
    ///
    /// # Errors
    /// What is wrong with it, and what to pass instead.
    pub fn check(socket: OwnedFd) -> Result<Self, VmSocketError> {
        let framing = match sockopt::socket_type(&socket) {
            Ok(SocketType::DGRAM) => Framing::Datagram,
            Ok(SocketType::STREAM) => Framing::Stream,
            Ok(SocketType::SEQPACKET) => return Err(VmSocketError::WrongType("seqpacket")),
            Ok(SocketType::RAW) => return Err(VmSocketError::WrongType("raw")),
            Ok(_) => return Err(VmSocketError::WrongType("foreign")),
            Err(rustix::io::Errno::NOTSOCK) => return Err(VmSocketError::NotASocket),
            Err(error) => return Err(VmSocketError::Io(error.into())),
        };
        #[cfg(target_os = "linux")]
        if sockopt::socket_acceptconn(&socket) == Ok(true) {
            return Err(VmSocketError::Listening);
        }
        match rustix::net::getpeername(&socket) {
            Ok(_) => Ok(VmSocket { socket, framing }),
            Err(rustix::io::Errno::NOTCONN) => Err(VmSocketError::NotConnected),
            Err(error) => Err(VmSocketError::Io(error.into())),
        }
    }

    /// Returns the socket, to pass it to another process.
    pub fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// How frames are delimited on it.
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Watches the peer from another process, because the kernel does not notify the link when it closes.
    /// `None` for a stream socket. The watch holds no copy of the socket.
    #[cfg(target_os = "linux")]
    pub fn watch_peer(&self) -> Option<std::io::Result<PeerWatch>> {
        (self.framing == Framing::Datagram).then(|| PeerWatch::new(&self.socket))
    }

    /// The link over this socket, which becomes non-blocking and gets larger buffers where they are small.
    ///
    /// # Errors
    /// When the socket cannot be made non-blocking.
    pub fn open(self) -> std::io::Result<Box<dyn Link>> {
        raise_buffers(&self.socket);
        Ok(match self.framing {
            Framing::Datagram => Box::new(DatagramLink::new(self.socket)?),
            Framing::Stream => Box::new(StreamLink::new(self.socket)?),
        })
    }
}

/// Raises buffers below the minimum. The kernel may cap them (`net.core.rmem_max`), which costs only speed.
pub(crate) fn raise_buffers(socket: &OwnedFd) {
    if sockopt::socket_recv_buffer_size(socket).is_ok_and(|size| size < RECEIVE_BUFFER) {
        let _ = sockopt::set_socket_recv_buffer_size(socket, RECEIVE_BUFFER);
    }
    if sockopt::socket_send_buffer_size(socket).is_ok_and(|size| size < SEND_BUFFER) {
        let _ = sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn socket_types_are_distinguished() {
        let (datagram, _a) = UnixDatagram::pair().unwrap();
        assert_eq!(VmSocket::check(datagram.into()).unwrap().framing(), Framing::Datagram);
        let (stream, _b) = UnixStream::pair().unwrap();
        assert_eq!(VmSocket::check(stream.into()).unwrap().framing(), Framing::Stream);
    }

    #[test]
    fn a_socket_that_carries_no_frames_is_refused_by_name() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(VmSocket::check(file.into()), Err(VmSocketError::NotASocket)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(VmSocket::check(listener.into()), Err(VmSocketError::Listening)));
        let unconnected = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(matches!(VmSocket::check(unconnected.into()), Err(VmSocketError::NotConnected)));
        let (seqpacket, _a) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            SocketType::SEQPACKET,
            rustix::net::SocketFlags::empty(),
            None,
        )
        .unwrap();
        assert!(matches!(VmSocket::check(seqpacket), Err(VmSocketError::WrongType("seqpacket"))));
    }
}
