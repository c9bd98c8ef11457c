//! The system calls of the forwarders and the pump.
#![expect(unsafe_code, reason = "TAPs are attached by ioctl; recvmmsg and sendmmsg take arrays of pointers")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Frames in one batch.
pub const BATCH: usize = 64;

/// From `linux/if_tun.h`; libc does not define it.
const TUN_F_USO: libc::c_uint = 0x20 | 0x40;

/// Attaches to the TAP `name` of the calling thread's network namespace, or makes it. With `offload` every
/// frame has a virtio-net header, and super-frames pass.
///
/// # Errors
/// The kernel's refusal.
pub fn tap(name: &str, offload: bool) -> io::Result<File> {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeros is an empty request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    let header = if offload { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | header) as libc::c_short;
    // SAFETY: the request is ours and outlives the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let takes = match offload {
        true => libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN | TUN_F_USO,
        false => 0,
    };
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(takes)) })?;
    Ok(tap)
}

/// Makes a descriptor blocking or non-blocking.
///
/// # Errors
/// The kernel's refusal.
pub fn set_nonblocking(fd: BorrowedFd<'_>, nonblocking: bool) -> io::Result<()> {
    let mut value = libc::c_int::from(nonblocking);
    // SAFETY: one int, ours.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONBIO, &raw mut value) }).map(drop)
}

/// Takes ownership of a descriptor that this program inherited.
///
/// # Errors
/// If it is not open.
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: it is open, and the caller takes each one only once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Waits until one of two descriptors is readable, and returns which.
///
/// # Errors
/// The kernel's refusal.
pub fn wait(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> io::Result<[bool; 2]> {
    let mut polls =
        [first, second].map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 });
    // SAFETY: two of ours.
    check(unsafe { libc::poll(polls.as_mut_ptr(), 2, -1) })?;
    Ok(polls.map(|poll| poll.revents != 0))
}

/// Buffers for one batch of received datagrams, allocated once.
#[derive(Debug)]
pub struct Datagrams {
    arena: Vec<u8>,
    slot: usize,
    lengths: [usize; BATCH],
    count: usize,
}

impl Datagrams {
    /// Buffers for datagrams of up to `slot` bytes.
    #[must_use]
    pub fn new(slot: usize) -> Datagrams {
        Datagrams { arena: vec![0; slot * BATCH], slot, lengths: [0; BATCH], count: 0 }
    }

    /// Receives all queued datagrams, at most [`BATCH`]; waits for the first if the socket blocks.
    ///
    /// # Errors
    /// Those of `recvmmsg(2)`.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.count = 0;
        // SAFETY: all zeros are empty headers and vectors.
        let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
        // SAFETY: the same.
        let mut vectors: [libc::iovec; BATCH] = unsafe { std::mem::zeroed() };
        for ((header, vector), slot) in
            headers.iter_mut().zip(&mut vectors).zip(self.arena.chunks_exact_mut(self.slot))
        {
            *vector = libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: each header points to one vector over a slot of its own; all of them outlive the call.
        self.count = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as _,
                libc::MSG_WAITFORONE as _,
                std::ptr::null_mut(),
            )
        })? as usize;
        for (length, header) in self.lengths.iter_mut().zip(&headers) {
            *length = header.msg_len as usize;
        }
        Ok(())
    }

    /// The received datagrams.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let slots = self.arena.chunks_exact(self.slot);
        slots.zip(self.lengths).take(self.count).map(|(slot, length)| &slot[..length])
    }
}

/// Sends datagrams of two pieces each, at most [`BATCH`] of them, and returns how many were sent.
///
/// # Errors
/// Those of `sendmmsg(2)` for the first.
pub fn send(socket: BorrowedFd<'_>, datagrams: &[[&[u8]; 2]]) -> io::Result<usize> {
    // SAFETY: all zeros are empty headers and vectors.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    // SAFETY: the same.
    let mut vectors: [[libc::iovec; 2]; BATCH] = unsafe { std::mem::zeroed() };
    for ((header, vectors), pieces) in headers.iter_mut().zip(&mut vectors).zip(datagrams) {
        for (vector, piece) in vectors.iter_mut().zip(pieces) {
            *vector = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
        }
        header.msg_hdr.msg_iov = vectors.as_mut_ptr();
        header.msg_hdr.msg_iovlen = 2;
    }
    // SAFETY: as many headers as there are datagrams point to two vectors each, over borrowed slices; all of
    // them outlive the call, which only reads.
    let sent = check(unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            datagrams.len().min(BATCH) as _,
            libc::MSG_NOSIGNAL as _,
        )
    })?;
    Ok(sent as usize)
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
