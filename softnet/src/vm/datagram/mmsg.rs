//! Many datagrams in one system call: `recvmmsg(2)` and `sendmmsg(2)`.
//!
//! `unsafe`, because both take arrays of pointers into the caller's buffers. The arrays live in
//! [`MessageArray`] and are refilled for every call from slices that outlive it.
#![expect(unsafe_code, reason = "recvmmsg and sendmmsg take arrays of raw pointers")]

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

use super::{Arrived, Datagram};
use crate::link::{BATCH_FRAMES, Cutter, FrameBatch};
use crate::needs::Syscall;

/// The system calls of this file.
pub const SYSCALLS: &[Syscall] = &[Syscall::Recvmmsg, Syscall::Sendmmsg];

/// No pause: the poller reports when a full queue has room.
pub const FULL_QUEUE_PAUSE: Option<Duration> = None;

/// Bytes of a buffer beyond the longest frame: none, because the kernel reports a datagram that it truncates.
pub const SPARE: usize = 0;

/// Message headers for one call, allocated once.
pub struct MessageArray {
    headers: Box<[libc::mmsghdr; BATCH_FRAMES]>,
    /// Two for each message: the headers and the payload of a cut frame.
    vectors: Box<[[libc::iovec; 2]; BATCH_FRAMES]>,
}

impl fmt::Debug for MessageArray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageArray").finish_non_exhaustive()
    }
}

impl MessageArray {
    /// An array of [`BATCH_FRAMES`] headers.
    pub fn new() -> Self {
        let empty = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        // SAFETY: all-zero is a valid mmsghdr: null pointers with zero lengths.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        MessageArray {
            headers: Box::new([header; BATCH_FRAMES]),
            vectors: Box::new([[empty; 2]; BATCH_FRAMES]),
        }
    }

    /// Receives at most as many datagrams as there are `buffers`, without waiting. Calls `each` with the
    /// index of every buffer that was filled.
    ///
    /// # Errors
    /// Those of `recvmmsg(2)`; `EAGAIN` if nothing has arrived.
    pub fn receive<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        buffers: impl Iterator<Item = &'a mut [u8]>,
        mut each: impl FnMut(usize, Datagram),
    ) -> io::Result<Arrived> {
        let mut offered = 0;
        for ((header, vector), buffer) in self.headers.iter_mut().zip(self.vectors.iter_mut()).zip(buffers) {
            vector[0] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_iov = vector.as_mut_ptr();
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_flags = 0;
            offered += 1;
        }
        // SAFETY: the first `offered` headers each point to one iovec, which points to a distinct buffer that
        // is mutably borrowed for 'a, which outlives this call; no name or control buffer is given.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                offered,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        for (index, header) in self.headers.iter().take(count).enumerate() {
            let truncated = header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0;
            each(index, Datagram { len: header.msg_len as usize, truncated });
        }
        Ok(Arrived { count, drained: count < offered as usize })
    }

    /// Sends the next frames of `batch` as one datagram each, super-frames cut by `cutter`, without waiting.
    /// Returns how many were sent, as [`FrameBatch::advance`] counts.
    ///
    /// # Errors
    /// Those of `sendmmsg(2)` for the first frame; `EAGAIN` if the peer's queue is full.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        cutter: &mut Cutter,
        batch: &FrameBatch,
    ) -> io::Result<usize> {
        let offered = cutter.cut(batch, |index, pieces| {
            let (header, vector) = (&mut self.headers[index], &mut self.vectors[index]);
            let first = usize::from(pieces[0].is_empty());
            for (vector, piece) in vector.iter_mut().zip(&pieces[first..]) {
                *vector = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
            }
            header.msg_hdr.msg_iov = vector.as_mut_ptr();
            header.msg_hdr.msg_iovlen = (2 - first) as _;
        });
        // SAFETY: the first `offered` headers each point to one or two iovecs over slices of `cutter` and
        // `batch`, which are borrowed until this call returns; sendmmsg only reads through them.
        let count = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                offered as _,
                (libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) as _,
            )
        };
        usize::try_from(count).map_err(|_| io::Error::last_os_error())
    }
}

impl Default for MessageArray {
    fn default() -> Self {
        MessageArray::new()
    }
}
