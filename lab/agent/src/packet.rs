//! A packet socket: whole Ethernet frames to and from one interface, or seen on all of them, past the IP stack.
//!
//! The one file of the lab with unsafe code: `struct sockaddr_ll` has no safe constructor in the crates at hand.
#![expect(unsafe_code, reason = "packet sockets are opened and read by plain system calls")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Room for the largest frame that a TAP with segmentation offload can show.
const FRAME_MAX: usize = 66_000;

/// A raw socket bound to one interface, or to all of them.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

/// Where a frame was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sighting {
    /// The interface's index.
    pub interface: u32,
    /// The machine sent it there; otherwise it came in.
    pub outgoing: bool,
}

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
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = Self::unbound()?;
        socket.set(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        socket.bind(index)
    }

    /// Opens a socket that sees every frame of every interface, present or to come, in both directions and in order, and
    /// that queues `room` bytes of them.
    ///
    /// # Errors
    /// Fails without `CAP_NET_RAW` and `CAP_NET_ADMIN`.
    pub fn open_everywhere(room: u32) -> io::Result<Self> {
        let socket = Self::unbound()?;
        socket.set(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, room.try_into().unwrap_or(libc::c_int::MAX))?;
        socket.bind(0)
    }

    /// Protocol 0 receives nothing, so no frame of another interface gets in before the bind.
    fn unbound() -> io::Result<Self> {
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: no pointers; a negative result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_PACKET, flags, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `value` is a live `int` and its size is passed.
        let set =
            unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const value).cast(), size) };
        if set < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Index 0 is every interface.
    fn bind(self, index: u32) -> io::Result<Self> {
        // SAFETY: all-zero is a valid `sockaddr_ll`.
        let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
        // SAFETY: `address` is a whole `sockaddr_ll` and its size is passed.
        let bound = unsafe {
            libc::bind(
                self.0.as_raw_fd(),
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(self) }
    }

    /// Takes the next frame that waits in the socket into `buffer` and says where it was seen and how long it is.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; wait for readability with `poll`.
    pub fn try_recv_from(&self, buffer: &mut [u8]) -> io::Result<(Sighting, usize)> {
        // SAFETY: all-zero is a valid `sockaddr_ll`.
        let mut from: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
        let mut size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the pointers are those of one live buffer and one live `sockaddr_ll`, each with its size.
        let got = unsafe {
            libc::recvfrom(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut size,
            )
        };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        let outgoing = from.sll_pkttype == libc::PACKET_OUTGOING;
        Ok((Sighting { interface: from.sll_ifindex.unsigned_abs(), outgoing }, got))
    }

    /// How many frames did not fit into the socket's queue since this was asked last.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn lost(&self) -> io::Result<u32> {
        let mut statistics = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut size = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: `statistics` is live and its size is passed.
        let asked = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut size,
            )
        };
        if asked < 0 { Err(io::Error::last_os_error()) } else { Ok(statistics.tp_drops) }
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
