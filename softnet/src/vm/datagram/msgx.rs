//! Many datagrams in one system call on macOS: `recvmsg_x` and `sendmsg_x`, from XNU's published
//! `sys/socket_private.h`.
//!
//! Every macOS that Softnet runs on has them, but no public header declares them, so they are looked up at
//! run time. Where one is missing or refuses this kind of socket, Softnet makes one call per datagram.
//!
//! What they do differs from what the header says, and between versions (`bsd/kern/uipc_syscalls.c` of XNU, with its
//! lines):
//!
//! | XNU (macOS) | `sendmsg_x`, no room for the first datagram | `recvmsg_x`, a datagram longer than its buffer |
//! | --- | --- | --- |
//! | 8792 to 8796 (13) | returns 0, because the refused datagram was already copied (8792.41.9: 1747, 1763) | sets `MSG_TRUNC`, and leaves what follows for the next call (2418) |
//! | 10002 to 11417 (14 to 15.5) | fails with `ENOBUFS` (10002.1.13: 2156; 11417.121.6: 1951) | reports neither the flag nor the length: it sets another variable than it returns (10002.1.13: 3002, 3068, 3104; 11417.121.6: 2796, 2862, 2898) |
//! | as the header says | fails with `ENOBUFS` | sets `MSG_TRUNC`, and goes on |
//!
//! From 10002 on `recvmsg_x` returns 0 if no more can be received (10002.1.13: 3137). So here a send of 0 datagrams is
//! a full queue; each buffer has a [`SPARE`] byte, which only a datagram that is too long fills; and nothing is left
//! only after `EAGAIN`, or after 0 datagrams.
//!
//! `unsafe`, because both take arrays of pointers into the caller's buffers. The arrays live in
//! [`MessageArray`] and are refilled for every call from slices that outlive it.
#![expect(
    unsafe_code,
    reason = "recvmsg_x and sendmsg_x take arrays of raw pointers, and are looked up by name"
)]

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};

use super::{Arrived, Datagram};
use crate::link::{BATCH_FRAMES, Cutter, FrameBatch};

/// Empty: system calls are not confined on this system.
#[cfg(target_os = "macos")]
pub const SYSCALLS: &[crate::needs::Syscall] = &[];

/// The first pause before a full queue is tried again: about as long as a VMM that is reading takes for a batch of frames.
/// A datagram socket is writable as long as its own buffer has room, even if its peer's queue is full, and nothing
/// reports when that has room again.
#[cfg(target_os = "macos")]
pub const FULL_QUEUE_PAUSE: Option<std::time::Duration> = Some(std::time::Duration::from_micros(50));

/// Bytes of a buffer beyond the longest frame: a datagram that fills them too is longer, whatever the kernel reports.
pub const SPARE: usize = 1;

/// `struct user64_msghdr_x`.
#[repr(C)]
#[derive(Clone, Copy)]
struct MessageHeader {
    name: *mut libc::c_void,
    name_len: libc::socklen_t,
    vectors: *mut libc::iovec,
    vector_count: libc::c_int,
    control: *mut libc::c_void,
    control_len: libc::socklen_t,
    flags: libc::c_int,
    /// Bytes received.
    data_len: libc::size_t,
}

// The layout that the kernel reads, whatever this file says (`bsd/sys/socket_private.h`, XNU 11417.121.6, line 488;
// `bsd/sys/socket.h`, XNU 8792.41.9, line 969).
const _: () = {
    assert!(size_of::<MessageHeader>() == 56 && align_of::<MessageHeader>() == 8);
    assert!(offset_of!(MessageHeader, name) == 0 && offset_of!(MessageHeader, name_len) == 8);
    assert!(offset_of!(MessageHeader, vectors) == 16 && offset_of!(MessageHeader, vector_count) == 24);
    assert!(offset_of!(MessageHeader, control) == 32 && offset_of!(MessageHeader, control_len) == 40);
    assert!(offset_of!(MessageHeader, flags) == 44 && offset_of!(MessageHeader, data_len) == 48);
    assert!(size_of::<libc::socklen_t>() == 4 && size_of::<libc::c_int>() == 4);
    assert!(size_of::<libc::iovec>() == 16 && offset_of!(libc::iovec, iov_len) == 8);
};

/// Either call takes socket, headers, their number and flags, and returns the number of datagrams or -1.
type BatchCall =
    unsafe extern "C" fn(libc::c_int, *mut MessageHeader, libc::c_uint, libc::c_int) -> libc::ssize_t;

/// How datagrams are carried.
#[derive(Clone, Copy)]
enum Calls {
    /// Many per call.
    Batch { receive: BatchCall, send: BatchCall },
    /// One per call.
    Single,
}

/// Message headers for one call, allocated once.
pub struct MessageArray {
    calls: Calls,
    headers: Box<[MessageHeader; BATCH_FRAMES]>,
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
    #[cfg(target_os = "macos")]
    pub fn new() -> Self {
        MessageArray::with(look_up())
    }

    fn with(calls: Calls) -> Self {
        let header = MessageHeader {
            name: ptr::null_mut(),
            name_len: 0,
            vectors: ptr::null_mut(),
            vector_count: 0,
            control: ptr::null_mut(),
            control_len: 0,
            flags: 0,
            data_len: 0,
        };
        let empty = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        MessageArray {
            calls,
            headers: Box::new([header; BATCH_FRAMES]),
            vectors: Box::new([[empty; 2]; BATCH_FRAMES]),
        }
    }

    /// Receives at most as many datagrams as there are `buffers`, without waiting. Calls `each` with the
    /// index of every buffer that was filled; a datagram is truncated if nothing of its buffer is left. The socket must
    /// be non-blocking.
    ///
    /// # Errors
    /// Those of `recvmsg(2)`; `EAGAIN` if nothing has arrived.
    pub fn receive<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        mut buffers: impl Iterator<Item = &'a mut [u8]>,
        mut each: impl FnMut(usize, Datagram),
    ) -> io::Result<Arrived> {
        let Calls::Batch { receive, .. } = self.calls else {
            return receive_singly(socket, buffers, each);
        };
        let mut offered = 0;
        let slots = self.headers.iter_mut().zip(self.vectors.iter_mut());
        for ((header, vector), buffer) in slots.zip(buffers.by_ref()) {
            vector[0] = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.vectors = vector.as_mut_ptr();
            header.vector_count = 1;
            header.flags = 0;
            header.data_len = 0;
            offered += 1;
        }
        // SAFETY: the first `offered` headers each point to one iovec, which points to a distinct buffer that
        // is mutably borrowed for 'a, which outlives this call; no name or control buffer is given.
        let count =
            unsafe { receive(socket.as_raw_fd(), self.headers.as_mut_ptr(), offered, libc::MSG_DONTWAIT) };
        match usize::try_from(count) {
            Ok(count) => {
                for (index, (header, [vector, _])) in
                    self.headers.iter().zip(&*self.vectors).take(count).enumerate()
                {
                    let fills = header.data_len >= vector.iov_len;
                    let truncated = header.flags & libc::MSG_TRUNC != 0 || fills;
                    each(index, Datagram { len: header.data_len.min(vector.iov_len), truncated });
                }
                Ok(Arrived { count, drained: count == 0 })
            }
            Err(_) => Err(self.refused(io::Error::last_os_error())),
        }
    }

    /// Sends the next frames of `batch` as one datagram each, super-frames cut by `cutter`, without waiting.
    /// Returns how many were sent, as [`FrameBatch::advance`] counts. The socket must be non-blocking.
    ///
    /// # Errors
    /// Those of `sendmsg(2)` for the first frame; `ENOBUFS` if the peer's queue is full.
    pub fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        cutter: &mut Cutter,
        batch: &FrameBatch,
    ) -> io::Result<usize> {
        let Calls::Batch { send, .. } = self.calls else {
            return send_singly(socket, cutter, batch);
        };
        let offered = cutter.cut(batch, |index, pieces| {
            let (header, vector) = (&mut self.headers[index], &mut self.vectors[index]);
            let first = usize::from(pieces[0].is_empty());
            for (vector, piece) in vector.iter_mut().zip(&pieces[first..]) {
                *vector = libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() };
            }
            header.vectors = vector.as_mut_ptr();
            header.vector_count = if first == 0 { 2 } else { 1 };
            header.flags = 0;
            header.data_len = 0;
        });
        // SAFETY: the first `offered` headers each point to one or two iovecs over slices of `cutter` and
        // `batch`, which are borrowed until this call returns; the call only reads through them.
        let count = unsafe {
            send(socket.as_raw_fd(), self.headers.as_mut_ptr(), offered as libc::c_uint, libc::MSG_DONTWAIT)
        };
        match usize::try_from(count) {
            Ok(0) => Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            Ok(count) => Ok(count),
            Err(_) => Err(self.refused(io::Error::last_os_error())),
        }
    }

    /// Handles the failure of a batch call. If the call does not support this kind of socket, it is never
    /// made again, and the returned error makes the caller retry at once.
    fn refused(&mut self, error: io::Error) -> io::Error {
        let unknown = [libc::ENOSYS, libc::EOPNOTSUPP, libc::ENOTSUP, libc::EINVAL];
        if !error.raw_os_error().is_some_and(|code| unknown.contains(&code)) {
            return error;
        }
        tracing::info!(%error, "the system does not support batches of datagrams; carrying one per call");
        self.calls = Calls::Single;
        io::Error::from_raw_os_error(libc::EINTR)
    }
}

#[cfg(target_os = "macos")]
impl Default for MessageArray {
    fn default() -> Self {
        MessageArray::new()
    }
}

/// The batch calls of the running system, if it has both.
#[cfg(target_os = "macos")]
fn look_up() -> Calls {
    let find = |name: &std::ffi::CStr| {
        // SAFETY: dlsym takes a terminated string, which outlives the call.
        let address = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        // SAFETY: a symbol of this name is the function with this signature in every XNU since 10.10; a null
        // pointer becomes None.
        unsafe { std::mem::transmute::<*mut libc::c_void, Option<BatchCall>>(address) }
    };
    match (find(c"recvmsg_x"), find(c"sendmsg_x")) {
        (Some(receive), Some(send)) => Calls::Batch { receive, send },
        _ => Calls::Single,
    }
}

fn receive_singly<'a>(
    socket: BorrowedFd<'_>,
    buffers: impl Iterator<Item = &'a mut [u8]>,
    mut each: impl FnMut(usize, Datagram),
) -> io::Result<Arrived> {
    let mut count = 0;
    for buffer in buffers.take(BATCH_FRAMES) {
        let room = buffer.len();
        let mut vector = [IoSliceMut::new(buffer)];
        match recvmsg(socket, &mut vector, &mut RecvAncillaryBuffer::default(), RecvFlags::empty()) {
            Ok(message) => {
                let truncated = message.flags.contains(ReturnFlags::TRUNC) || message.bytes >= room;
                each(count, Datagram { len: message.bytes, truncated });
                count += 1;
            }
            Err(error) if count == 0 => return Err(error.into()),
            Err(_) => break,
        }
    }
    Ok(Arrived { count, drained: false })
}

fn send_singly(socket: BorrowedFd<'_>, cutter: &mut Cutter, batch: &FrameBatch) -> io::Result<usize> {
    let mut outcome: (usize, Option<Errno>) = (0, None);
    cutter.cut(batch, |_, pieces| {
        if outcome.1.is_none() {
            let vectors = pieces.map(IoSlice::new);
            match sendmsg(socket, &vectors, &mut SendAncillaryBuffer::default(), SendFlags::empty()) {
                Ok(_) => outcome.0 += 1,
                Err(error) => outcome.1 = Some(error),
            }
        }
    });
    match outcome {
        (0, Some(error)) => Err(error.into()),
        (count, _) => Ok(count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    /// Receives one datagram as `header` says. Returns its real length.
    ///
    /// # Safety
    /// `header` must point to valid vectors.
    unsafe fn receive_one(
        socket: libc::c_int,
        header: &mut MessageHeader,
        flags: libc::c_int,
    ) -> Option<usize> {
        // SAFETY: all-zero is a valid msghdr; its one iovec is the caller's.
        let received = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = header.vectors;
            message.msg_iovlen = header.vector_count as _;
            // On Linux MSG_TRUNC asks for the real length.
            libc::recvmsg(socket, &raw mut message, flags | libc::MSG_TRUNC)
        };
        usize::try_from(received).ok()
    }

    /// Receives like one version of XNU: until a buffer is too short if `stops`, which it reports if `reports`.
    ///
    /// # Safety
    /// As the kernel, it trusts the caller's headers.
    unsafe fn receive_like(
        (stops, reports): (bool, bool),
        socket: libc::c_int,
        headers: *mut MessageHeader,
        count: libc::c_uint,
        flags: libc::c_int,
    ) -> libc::ssize_t {
        // SAFETY: the caller passes `count` headers.
        let headers = unsafe { std::slice::from_raw_parts_mut(headers, count as usize) };
        if headers.iter().any(|header| header.flags != 0) {
            nix::errno::Errno::EINVAL.set();
            return -1;
        }
        for (index, header) in headers.iter_mut().enumerate() {
            // SAFETY: the header is the caller's.
            let Some(len) = (unsafe { receive_one(socket, header, flags) }) else {
                return if index == 0 { -1 } else { index as _ };
            };
            // SAFETY: the header's one vector is the caller's.
            let room = unsafe { (*header.vectors).iov_len };
            header.data_len = len.min(room);
            header.flags = if len > room && reports { libc::MSG_TRUNC } else { 0 };
            if len > room && stops {
                return index as libc::ssize_t + 1;
            }
        }
        headers.len() as _
    }

    /// Sends like one version of XNU: it returns 0 if the queue is full if `swallows`.
    ///
    /// # Safety
    /// As the kernel, it trusts the caller's headers.
    unsafe fn send_like(
        swallows: bool,
        socket: libc::c_int,
        headers: *mut MessageHeader,
        count: libc::c_uint,
        flags: libc::c_int,
    ) -> libc::ssize_t {
        // SAFETY: the caller passes `count` headers.
        let headers = unsafe { std::slice::from_raw_parts_mut(headers, count as usize) };
        for (index, header) in headers.iter_mut().enumerate() {
            // SAFETY: all-zero is a valid msghdr; its iovecs are the caller's.
            let sent = unsafe {
                let mut message: libc::msghdr = std::mem::zeroed();
                message.msg_iov = header.vectors;
                message.msg_iovlen = header.vector_count as _;
                libc::sendmsg(socket, &raw const message, flags)
            };
            if sent < 0 {
                // Linux reports EAGAIN where XNU reports ENOBUFS.
                nix::errno::Errno::ENOBUFS.set();
                return if index == 0 && !swallows { -1 } else { index as _ };
            }
        }
        headers.len() as _
    }

    /// A version of XNU: what it is called, and its two calls.
    macro_rules! version {
        ($name:literal, stops: $stops:literal, reports: $reports:literal, swallows: $swallows:literal) => {{
            unsafe extern "C" fn receive(
                socket: libc::c_int,
                headers: *mut MessageHeader,
                count: libc::c_uint,
                flags: libc::c_int,
            ) -> libc::ssize_t {
                // SAFETY: the caller's promise.
                unsafe { receive_like(($stops, $reports), socket, headers, count, flags) }
            }
            unsafe extern "C" fn send(
                socket: libc::c_int,
                headers: *mut MessageHeader,
                count: libc::c_uint,
                flags: libc::c_int,
            ) -> libc::ssize_t {
                // SAFETY: the caller's promise.
                unsafe { send_like($swallows, socket, headers, count, flags) }
            }
            ($name, Calls::Batch { receive, send })
        }};
    }

    /// The rows of the table at the top of this file, and the system without batch calls.
    fn versions() -> [(&'static str, Calls); 4] {
        [
            version!("XNU 8792", stops: true, reports: true, swallows: true),
            version!("XNU 10002", stops: false, reports: false, swallows: false),
            version!("as the header says", stops: false, reports: true, swallows: false),
            ("one per call", Calls::Single),
        ]
    }

    /// What `recvmsg_x` returns from XNU 10002 on if the socket can receive no more.
    unsafe extern "C" fn receive_nothing(
        _: libc::c_int,
        _: *mut MessageHeader,
        _: libc::c_uint,
        _: libc::c_int,
    ) -> libc::ssize_t {
        0
    }

    unsafe extern "C" fn refuse(
        _: libc::c_int,
        _: *mut MessageHeader,
        _: libc::c_uint,
        _: libc::c_int,
    ) -> libc::ssize_t {
        nix::errno::Errno::EOPNOTSUPP.set();
        -1
    }

    fn pair() -> (UnixDatagram, UnixDatagram) {
        let (a, b) = UnixDatagram::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        b.set_nonblocking(true).unwrap();
        (a, b)
    }

    fn batch_of(frames: &[(u8, usize)]) -> FrameBatch {
        let mut batch = FrameBatch::new(1514);
        for &(byte, len) in frames {
            batch.free_space()[..len].fill(byte);
            batch.push(len);
        }
        batch
    }

    /// Receives until nothing is left, into buffers for frames of up to `longest` bytes.
    fn received(array: &mut MessageArray, socket: &UnixDatagram, longest: usize) -> Vec<(u8, Datagram)> {
        let mut all = Vec::new();
        loop {
            let mut buffers = vec![vec![0; longest + SPARE]; 8];
            let mut datagrams = Vec::new();
            let slots = buffers.iter_mut().map(|buffer| &mut buffer[..]);
            match array.receive(socket.as_fd(), slots, |index, datagram| datagrams.push((index, datagram))) {
                Ok(arrived) => {
                    assert_eq!((arrived.count, arrived.drained), (datagrams.len(), false));
                    all.extend(datagrams.into_iter().map(|(index, datagram)| (buffers[index][0], datagram)));
                }
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    return all;
                }
            }
        }
    }

    fn whole(len: usize) -> Datagram {
        Datagram { len, truncated: false }
    }

    #[test]
    fn frames_pass_in_order_however_they_are_carried() {
        for (name, calls) in versions() {
            let (near, far) = pair();
            let mut array = MessageArray::with(calls);
            let batch = batch_of(&[(1, 60), (2, 1514), (3, 42)]);
            assert_eq!(array.send(near.as_fd(), &mut Cutter::new(), &batch).unwrap(), 3);
            let expected = [(1, whole(60)), (2, whole(1514)), (3, whole(42))];
            assert_eq!(received(&mut array, &far, 1514), expected, "{name}");
        }
    }

    /// A frame that the kernel cut is never taken for one that is whole, and what follows it is received.
    #[test]
    fn a_datagram_that_does_not_fit_is_marked() {
        for (name, calls) in versions() {
            let (near, far) = pair();
            for (byte, len) in [(1, 60), (2, 61), (3, 100), (4, 60)] {
                near.send(&vec![byte; len]).unwrap();
            }
            let all = received(&mut MessageArray::with(calls), &far, 60);
            let judged: Vec<_> = all.iter().map(|(byte, datagram)| (*byte, datagram.truncated)).collect();
            assert_eq!(judged, [(1, false), (2, true), (3, true), (4, false)], "{name}");
            assert_eq!(all[3].1, whole(60), "{name}");
        }
    }

    /// The loop would never wait for the queue, nor hear a signal, if this were no error.
    #[test]
    fn a_full_queue_takes_what_fits_and_is_reported() {
        for (name, calls) in versions() {
            let (near, far) = pair();
            let mut array = MessageArray::with(calls);
            let batch = batch_of(&[(1, 60); BATCH_FRAMES]);
            let mut taken = 0;
            let full = loop {
                match array.send(near.as_fd(), &mut Cutter::new(), &batch) {
                    Ok(count) => {
                        assert!(count > 0, "{name} reports a full queue as success");
                        taken += count;
                    }
                    Err(error) => break error.raw_os_error(),
                }
            };
            assert!(taken > 0 && [Some(libc::EAGAIN), Some(libc::ENOBUFS)].contains(&full), "{name}");
            assert_eq!(received(&mut array, &far, 60).len(), taken, "{name}");
        }
    }

    #[test]
    fn a_socket_that_receives_no_more_is_drained() {
        let (_near, far) = pair();
        let mut array = MessageArray::with(Calls::Batch { receive: receive_nothing, send: refuse });
        let mut buffer = [0; 61];
        let arrived = array.receive(far.as_fd(), [&mut buffer[..]].into_iter(), |_, _| {}).unwrap();
        assert_eq!(arrived, Arrived { count: 0, drained: true });
    }

    #[test]
    fn a_batch_call_that_the_system_refuses_is_made_once() {
        let (near, far) = pair();
        let mut array = MessageArray::with(Calls::Batch { receive: refuse, send: refuse });
        let batch = batch_of(&[(1, 60)]);
        let error = array.send(near.as_fd(), &mut Cutter::new(), &batch).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
        assert_eq!(array.send(near.as_fd(), &mut Cutter::new(), &batch).unwrap(), 1);
        assert_eq!(received(&mut array, &far, 60).len(), 1);
    }
}
