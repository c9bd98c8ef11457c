//! A packet socket: whole Ethernet frames to and from one interface, past the IP stack.
//!
//! The one file of the lab with unsafe code: `struct sockaddr_ll` has no safe constructor in the crates at hand.
#![expect(unsafe_code, reason = "packet sockets are opened and read by plain system calls")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Room for the largest frame that a TAP with segmentation offload can show.
const FRAME_MAX: usize = 66_000;

/// A raw socket bound to one interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens a socket that sees every frame that comes into `interface`, in the calling thread's network namespace.
    /// What the machine itself sends there is not seen.
    ///
    /// # Errors
    /// Fails without `CAP_NET_RAW` or without such an interface.
    pub fn open(interface: &str) -> io::Result<Self> {
        let name = std::ffi::CString::new(interface)?;
        // SAFETY: `name` is a NUL-terminated string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        let index = i32::try_from(index).map_err(io::Error::other)?;
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // Protocol 0 receives nothing, so no frame of another interface gets in before the bind.
        // SAFETY: no pointers; a negative result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let on: libc::c_int = 1;
        // SAFETY: `on` is a live `int` and its size is passed.
        let ignored = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_IGNORE_OUTGOING,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if ignored < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all-zero is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index;
        // SAFETY: `address` is a whole `sockaddr_ll` and its size is passed.
        let bound = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(socket)) }
    }

    /// Sends one frame as it is.
    ///
    /// # Errors
    /// The kernel's refusal: a frame beyond the MTU, an interface that is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and the length are those of one live slice.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes the next frame that waits in the socket.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; wait for readability with `poll`.
    pub fn try_recv(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; FRAME_MAX];
        // SAFETY: the pointer and the length are those of one live buffer.
        let got = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        bytes.truncate(usize::try_from(got).map_err(|_| io::Error::last_os_error())?);
        Ok(bytes)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
