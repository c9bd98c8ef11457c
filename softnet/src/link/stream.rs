//! Frames on a stream socket: a 32-bit big-endian length, then the frame (QEMU `-netdev stream`, passt).

use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use mio::{Interest, Registry, Token};
use rustix::io::Errno;

use super::{BATCH_FRAMES, Cutter, FrameBatch, Link, LinkError, Pieces, Received, Registration, Sent};
use crate::needs::{Needs, Syscall};

/// The system calls of a running link.
const SYSCALLS: &[Syscall] = &[Syscall::Read, Syscall::Sendmsg, Syscall::Sendto, Syscall::EpollCtl];

/// Size in bytes of the length before each frame.
const PREFIX: usize = 4;

/// The longest frame that any peer of this framing sends: a 64 KiB super-frame. A larger length is invalid.
/// It ends the link, since the next frame's start cannot be found in a stream.
const LONGEST_ANNOUNCED: usize = 65_550 + 14;

/// Maximum number of system calls in one turn: one that reads everything, and one that finds nothing left. A
/// VM that keeps sending bytes that make no frames must not hold up the other direction (rule R2).
const READS: usize = 2;

/// A stream socket that carries length-prefixed frames.
#[derive(Debug)]
pub struct StreamLink {
    socket: OwnedFd,
    registration: Registration,
    cutter: Cutter,
    /// Where the bytes lie in the batch's arena that have been read and are in no frame yet: a stream has no
    /// boundaries. They stay there when the frames are removed.
    unread: Range<usize>,
    /// Number of bytes of an oversized frame still to be skipped.
    skip: usize,
    /// The unsent rest of a frame of which the socket accepted only a part.
    unsent: Vec<u8>,
}

impl StreamLink {
    /// Takes a connected stream socket and makes it non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(StreamLink {
            socket,
            registration: Registration::default(),
            cutter: Cutter::new(),
            unread: 0..0,
            skip: 0,
            // Its final capacity: once frames flow, memory can neither grow nor move.
            unsent: Vec::with_capacity(PREFIX + LONGEST_ANNOUNCED),
        })
    }

    /// The space in `batch` for further bytes of the stream. Empty only while there are frames.
    fn room<'a>(&mut self, batch: &'a mut FrameBatch) -> &'a mut [u8] {
        // Without whole frames, only a partial frame remains; move it to the front. This is the stream path's
        // only copy.
        if batch.is_empty() && self.unread.start > 0 {
            batch.arena().copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        &mut batch.arena()[self.unread.end..]
    }

    /// Records the whole frames among the bytes that have been read, as many as the batch holds.
    fn split(&mut self, batch: &mut FrameBatch) -> Result<(), LinkError> {
        loop {
            let skipped = self.skip.min(self.unread.len());
            self.unread.start += skipped;
            self.skip -= skipped;
            let unread = &batch.arena()[self.unread.clone()];
            let Some((prefix, rest)) = unread.split_first_chunk::<PREFIX>() else { return Ok(()) };
            let (len, arrived) = (u32::from_be_bytes(*prefix) as usize, rest.len());
            if len > LONGEST_ANNOUNCED {
                return Err(LinkError::Framing(len));
            }
            if len > batch.max_frame() {
                // Longer than the MTU: skipped whole, never cut and forwarded (rule L3).
                batch.push_truncated();
                self.skip = PREFIX + len;
                continue;
            }
            if arrived < len || batch.has_all_frames() {
                return Ok(());
            }
            let start = self.unread.start + PREFIX;
            batch.push_at(start..start + len);
            self.unread.start = start + len;
        }
    }

    /// Sends the rest of a frame that the socket accepted in part. Returns `false` if the socket is still
    /// full.
    fn send_rest(&mut self) -> Result<bool, LinkError> {
        while !self.unsent.is_empty() {
            match rustix::net::send(&self.socket, &self.unsent, crate::sys::SEND) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(closed_or(error, "write to the stream socket")),
            }
        }
        Ok(true)
    }
}

impl Link for StreamLink {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.registration.set(&self.socket, registry, token, interest)
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Result<Received, LinkError> {
        for _ in 0..READS {
            // An earlier call may have left whole frames, for which no wake-up comes.
            self.split(batch)?;
            let is_full = batch.has_all_frames();
            let room = self.room(batch);
            if is_full || room.is_empty() {
                return Ok(Received::More);
            }
            match rustix::io::read(&self.socket, room) {
                // The frames before the end are carried first; the next call finds the end again.
                Ok(0) if !batch.is_empty() => return Ok(Received::More),
                Ok(0) => return Err(LinkError::Closed),
                Ok(read) => self.unread.end += read,
                Err(Errno::AGAIN) => return Ok(Received::Drained),
                Err(Errno::INTR) => {}
                Err(_) if !batch.is_empty() => return Ok(Received::More),
                Err(error) => return Err(closed_or(error, "read from the stream socket")),
            }
        }
        self.split(batch)?;
        Ok(Received::More)
    }

    fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
        if !self.send_rest()? {
            return Ok(Sent::Blocked);
        }
        while !batch.is_empty() {
            let mut frames: [Pieces<'_>; BATCH_FRAMES] = [[&[]; 2]; BATCH_FRAMES];
            let mut prefixes = [[0; PREFIX]; BATCH_FRAMES];
            let count = self.cutter.cut(batch, |index, pieces| {
                frames[index] = pieces;
                prefixes[index] = ((pieces[0].len() + pieces[1].len()) as u32).to_be_bytes();
            });
            let frames = || prefixes.iter().zip(&frames).take(count);
            let mut slices = [IoSlice::new(&[]); 3 * BATCH_FRAMES];
            for (slices, (prefix, [headers, rest])) in slices.chunks_exact_mut(3).zip(frames()) {
                slices.copy_from_slice(&[IoSlice::new(prefix), IoSlice::new(headers), IoSlice::new(rest)]);
            }
            let written = rustix::net::sendmsg(
                self.socket.as_fd(),
                &slices[..3 * count],
                &mut rustix::net::SendAncillaryBuffer::default(),
                crate::sys::SEND,
            );
            let mut written = match written {
                Ok(written) => written,
                Err(Errno::AGAIN) => return Ok(Sent::Blocked),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(closed_or(error, "write to the stream socket")),
            };
            let mut whole = 0;
            for (prefix, [headers, rest]) in frames() {
                let size = PREFIX + headers.len() + rest.len();
                if written < size {
                    if written > 0 {
                        // The socket has the beginning, so the rest must be sent before anything else.
                        self.unsent.extend(prefix.iter().chain(*headers).chain(*rest).skip(written));
                        whole += 1;
                    }
                    break;
                }
                written -= size;
                whole += 1;
            }
            batch.advance(whole);
            if !self.send_rest()? {
                return Ok(Sent::Blocked);
            }
        }
        Ok(Sent::All)
    }

    fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.socket);
        needs.calls(SYSCALLS);
    }
}

/// A closed peer is the ordinary end of a link, whichever error the system reports.
fn closed_or(error: Errno, doing: &'static str) -> LinkError {
    match error {
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED => LinkError::Closed,
        other => LinkError::Io(doing, other.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const MAX: usize = 1514;

    fn pair() -> (UnixStream, StreamLink) {
        let (near, far) = UnixStream::pair().unwrap();
        (near, StreamLink::new(far.into()).unwrap())
    }

    fn prefixed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
    }

    fn receive_all(link: &mut StreamLink, batch: &mut FrameBatch) -> (Vec<Vec<u8>>, usize) {
        let (mut frames, mut truncated) = (Vec::new(), 0);
        loop {
            batch.clear();
            let more = link.recv(batch).unwrap();
            frames.extend(batch.frames().map(<[u8]>::to_vec));
            truncated += batch.take_truncated();
            if more == Received::Drained {
                return (frames, truncated);
            }
        }
    }

    #[test]
    fn frames_split_at_any_byte_come_out_whole() {
        let frames: Vec<Vec<u8>> = (0..5).map(|n| vec![n as u8; 60 + n * 300]).collect();
        let wire: Vec<u8> = frames.iter().flat_map(|frame| prefixed(frame)).collect();
        for cut in 0..wire.len() {
            let (mut near, mut link) = pair();
            let mut batch = FrameBatch::new(MAX);
            near.write_all(&wire[..cut]).unwrap();
            let (mut seen, _) = receive_all(&mut link, &mut batch);
            near.write_all(&wire[cut..]).unwrap();
            seen.extend(receive_all(&mut link, &mut batch).0);
            assert_eq!(seen, frames, "cut at {cut}");
        }
    }

    #[test]
    fn an_oversized_frame_is_skipped_whole_and_counted() {
        let (mut near, mut link) = pair();
        near.write_all(&prefixed(&[1; MAX + 1])).unwrap();
        near.write_all(&prefixed(&[2; 60])).unwrap();
        let (frames, truncated) = receive_all(&mut link, &mut FrameBatch::new(MAX));
        assert_eq!(frames, [vec![2; 60]]);
        assert_eq!(truncated, 1);
    }

    #[test]
    fn many_frames_that_arrive_at_once_are_received_batch_by_batch() {
        let (mut near, mut link) = pair();
        let frames: Vec<Vec<u8>> = (0..=255).map(|n| vec![n; 60]).collect();
        near.write_all(&frames.iter().flat_map(|frame| prefixed(frame)).collect::<Vec<u8>>()).unwrap();
        let mut batch = FrameBatch::new(MAX);
        let mut seen = Vec::new();
        for _ in 0..256 / BATCH_FRAMES {
            batch.clear();
            assert_eq!(link.recv(&mut batch).unwrap(), Received::More);
            assert_eq!(batch.len(), BATCH_FRAMES);
            seen.extend(batch.frames().map(<[u8]>::to_vec));
        }
        assert_eq!(seen, frames);
        batch.clear();
        assert_eq!(link.recv(&mut batch).unwrap(), Received::Drained);
        assert!(batch.is_empty());
    }

    #[test]
    fn bytes_that_make_no_frames_do_not_hold_up_the_turn() {
        let (mut near, mut link) = pair();
        rustix::net::sockopt::set_socket_send_buffer_size(&near, 1 << 20).unwrap();
        let oversized = prefixed(&[1; 50_000]);
        for _ in 0..8 {
            near.write_all(&oversized).unwrap();
        }
        let mut batch = FrameBatch::new(MAX);
        let mut seen = Vec::new();
        while link.recv(&mut batch).unwrap() == Received::More {
            seen.push(batch.take_truncated());
        }
        assert!(seen.iter().all(|seen| *seen < 5) && seen.iter().sum::<usize>() == 8, "{seen:?}");
    }

    #[test]
    fn frames_before_the_end_are_carried() {
        let (mut near, mut link) = pair();
        near.write_all(&prefixed(&[3; 20])).unwrap();
        drop(near);
        let mut batch = FrameBatch::new(MAX);
        assert_eq!(link.recv(&mut batch).unwrap(), Received::More);
        assert_eq!(batch.frames().next(), Some(&[3; 20][..]));
        batch.clear();
        assert!(matches!(link.recv(&mut batch), Err(LinkError::Closed)));
    }

    #[test]
    fn an_empty_frame_is_a_frame() {
        let (mut near, mut link) = pair();
        near.write_all(&prefixed(&[])).unwrap();
        near.write_all(&prefixed(&[3; 20])).unwrap();
        assert_eq!(receive_all(&mut link, &mut FrameBatch::new(MAX)).0, [vec![], vec![3; 20]]);
    }

    #[test]
    fn an_impossible_length_ends_the_link() {
        let (mut near, mut link) = pair();
        near.write_all(&u32::MAX.to_be_bytes()).unwrap();
        assert!(matches!(link.recv(&mut FrameBatch::new(MAX)), Err(LinkError::Framing(_))));
    }

    #[test]
    fn a_closed_peer_ends_the_link() {
        let (near, mut link) = pair();
        drop(near);
        assert!(matches!(link.recv(&mut FrameBatch::new(MAX)), Err(LinkError::Closed)));
    }

    #[test]
    fn a_full_socket_blocks_and_loses_nothing() {
        let (mut near, mut link) = pair();
        let (mut sent, mut seen) = (Vec::new(), Vec::new());
        let mut batch = FrameBatch::new(MAX);
        let mut blocked = false;
        for round in 0..200u32 {
            batch.clear();
            for n in 0..BATCH_FRAMES {
                let len = 100 + (round as usize * 31 + n * 97) % 1400;
                batch.free_space()[..len].fill(n as u8);
                batch.push(len);
                sent.extend(prefixed(&vec![n as u8; len]));
            }
            while link.send(&mut batch).unwrap() == Sent::Blocked {
                blocked = true;
                let mut chunk = [0; 7001];
                let count = near.read(&mut chunk).unwrap();
                seen.extend_from_slice(&chunk[..count]);
            }
        }
        drop(link);
        near.read_to_end(&mut seen).unwrap();
        assert!(blocked, "the socket never filled: the test shows nothing");
        assert_eq!(seen, sent);
    }
}
