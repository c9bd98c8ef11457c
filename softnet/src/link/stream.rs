//! Frames on a stream socket: a 32-bit big-endian length, then the frame (QEMU `-netdev stream`, passt).

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, OwnedFd};

use mio::{Interest, Registry, Token};
use rustix::io::Errno;

use super::batch::SUPER_FRAME_ARENA;
use super::{BATCH_FRAMES, Cutter, FrameBatch, Link, LinkError, Pieces, Received, Registration, Sent};
use crate::sandbox::{Needs, Syscall};

/// What a running link calls.
const SYSCALLS: &[Syscall] = &[Syscall::Read, Syscall::Sendmsg, Syscall::Sendto, Syscall::EpollCtl];

/// Bytes of the length before each frame.
const PREFIX: usize = 4;

/// The longest frame that any peer of this framing sends: a 64 KiB super-frame. A larger announcement is garbage, and
/// since a stream has no boundaries to find again, it ends the link.
const LONGEST_ANNOUNCED: usize = 65_550 + 14;

/// A stream socket that carries length-prefixed frames.
#[derive(Debug)]
pub struct StreamLink {
    socket: OwnedFd,
    registration: Registration,
    cutter: Cutter,
    /// Bytes that were read but not handed over: the beginning of the next frame.
    carry: Vec<u8>,
    /// Bytes of an oversized frame still to be skipped.
    skip: usize,
    /// The unsent rest of a frame of which the socket took only a part.
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
            // Both are as large as they will ever be: once frames flow, memory can neither grow nor move.
            carry: Vec::with_capacity(SUPER_FRAME_ARENA),
            skip: 0,
            unsent: Vec::with_capacity(PREFIX + LONGEST_ANNOUNCED),
        })
    }

    /// Moves whole frames from `bytes` of the batch's free space into the batch; keeps an incomplete one for later.
    fn split(&mut self, batch: &mut FrameBatch, filled: usize) -> Result<(), LinkError> {
        // Offset of the next prefix, relative to the batch's free space, which begins behind the last frame pushed.
        let mut left = filled;
        let mut offset = self.skip.min(left);
        self.skip -= offset;
        left -= offset;
        while left >= PREFIX && !batch.is_full() {
            let free = batch.free_space();
            let prefix: [u8; PREFIX] = [free[offset], free[offset + 1], free[offset + 2], free[offset + 3]];
            let len = u32::from_be_bytes(prefix) as usize;
            if len > LONGEST_ANNOUNCED {
                return Err(LinkError::Framing(len));
            }
            if len > batch.max_frame() {
                // Longer than the MTU: skipped whole, never cut and forwarded (rule L3).
                batch.push_truncated();
                let skipped = (left - PREFIX).min(len);
                self.skip = len - skipped;
                offset += PREFIX + skipped;
                left -= PREFIX + skipped;
                continue;
            }
            if left < PREFIX + len {
                break;
            }
            batch.push_at(offset + PREFIX, len);
            offset = 0;
            left -= PREFIX + len;
        }
        self.carry.extend_from_slice(&batch.free_space()[offset..offset + left]);
        Ok(())
    }

    /// Sends the rest of a frame that the socket took in part. `false` if the socket is still full.
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
        let carried = self.carry.len();
        batch.free_space()[..carried].copy_from_slice(&self.carry);
        let read = match rustix::io::read(&self.socket, &mut batch.free_space()[carried..]) {
            Ok(0) => return Err(LinkError::Closed),
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(closed_or(error, "read from the stream socket")),
        };
        self.carry.clear();
        self.split(batch, carried + read)?;
        // A full batch may have left whole frames in the carry, of which no wake-up will tell.
        Ok(if read == 0 && batch.is_empty() { Received::Drained } else { Received::More })
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
                        // The socket has the beginning, so it must get the rest before anything else.
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

/// A vanished peer is the ordinary end of a link, whatever the system calls it.
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

    fn receive_all(link: &mut StreamLink) -> (Vec<Vec<u8>>, usize) {
        let mut batch = FrameBatch::new(MAX);
        let (mut frames, mut truncated) = (Vec::new(), 0);
        loop {
            batch.clear();
            let more = link.recv(&mut batch).unwrap();
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
            near.write_all(&wire[..cut]).unwrap();
            let (mut seen, _) = receive_all(&mut link);
            near.write_all(&wire[cut..]).unwrap();
            seen.extend(receive_all(&mut link).0);
            assert_eq!(seen, frames, "cut at {cut}");
        }
    }

    #[test]
    fn an_oversized_frame_is_skipped_whole_and_counted() {
        let (mut near, mut link) = pair();
        near.write_all(&prefixed(&[1; MAX + 1])).unwrap();
        near.write_all(&prefixed(&[2; 60])).unwrap();
        let (frames, truncated) = receive_all(&mut link);
        assert_eq!(frames, [vec![2; 60]]);
        assert_eq!(truncated, 1);
    }

    #[test]
    fn an_empty_frame_is_a_frame() {
        let (mut near, mut link) = pair();
        near.write_all(&prefixed(&[])).unwrap();
        near.write_all(&prefixed(&[3; 20])).unwrap();
        assert_eq!(receive_all(&mut link).0, [vec![], vec![3; 20]]);
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
