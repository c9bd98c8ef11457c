//! The VM's datagram socket: one bare frame per datagram, many datagrams per system call.

#[cfg(target_os = "linux")]
mod mmsg;
#[cfg(any(target_os = "macos", test))]
mod msgx;

/// Sends and receives batches of datagrams in the way of this system.
#[cfg(target_os = "linux")]
use mmsg as messages;
#[cfg(target_os = "macos")]
use msgx as messages;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::{Interest, Registry, Token};

use super::peer::LinkWatch;
use crate::link::{Cutter, FrameBatch, Link, LinkError, Received, Registration, Sent};
use crate::needs::{Needs, Syscall};
use messages::MessageArray;

/// A VMM reports its end by a zero-length datagram; but a guest can also make its VMM send an empty frame,
/// which must have no effect (rule L3). If the VMM sends nothing for this long afterwards, it has ended.
const END_GRACE: Duration = Duration::from_secs(2);

/// One received datagram.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Datagram {
    /// Bytes stored.
    len: usize,
    /// The datagram was longer than a frame may be.
    truncated: bool,
}

/// What one call received.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Arrived {
    /// How many datagrams.
    count: usize,
    /// Whether this shows that nothing is left.
    drained: bool,
}

/// The VM's datagram socket.
#[derive(Debug)]
pub struct DatagramLink {
    socket: OwnedFd,
    registration: Registration,
    messages: MessageArray,
    cutter: Cutter,
    peer: Option<LinkWatch>,
    /// When a zero-length datagram arrived, if no frame has followed it.
    end_announced: Option<Instant>,
}

impl DatagramLink {
    /// Takes a connected datagram socket and makes it non-blocking.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        let peer = LinkWatch::new(&socket).inspect_err(|error| {
            tracing::debug!(%error, "the kernel does not report when the VM's socket closes; watching only the parent");
        });
        Ok(DatagramLink {
            socket,
            registration: Registration::default(),
            messages: MessageArray::new(),
            cutter: Cutter::new(),
            peer: peer.ok(),
            end_announced: None,
        })
    }
}

impl Link for DatagramLink {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.registration.set(&self.socket, registry, token, interest)
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Result<Received, LinkError> {
        let mut filled = [None; crate::link::BATCH_FRAMES];
        let received = self.messages.receive(self.socket.as_fd(), batch.slots(), |index, datagram| {
            filled[index] = Some(datagram);
        });
        let Arrived { count, drained } = match received {
            Ok(arrived) => arrived,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(Received::Drained),
                // An interrupted call does not mean that nothing is left.
                Some(libc::EINTR) => return Ok(Received::More),
                Some(libc::ECONNRESET | libc::ENOTCONN | libc::ECONNREFUSED) => {
                    return Err(LinkError::Closed);
                }
                _ => return Err(LinkError::Io("receive from the VM", error)),
            },
        };
        for (index, datagram) in filled.iter().take(count).flatten().enumerate() {
            self.end_announced = (datagram.len == 0).then(Instant::now);
            if datagram.truncated {
                batch.push_truncated();
            } else {
                batch.push_slot(index, datagram.len);
            }
        }
        Ok(if drained { Received::Drained } else { Received::More })
    }

    fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
        while !batch.is_empty() {
            match self.messages.send(self.socket.as_fd(), &mut self.cutter, batch) {
                Ok(count) => batch.advance(count),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS) => return Ok(Sent::Blocked),
                    Some(libc::EINTR) => {}
                    Some(libc::ECONNREFUSED | libc::ECONNRESET | libc::ENOTCONN | libc::EPIPE) => {
                        return Err(LinkError::Closed);
                    }
                    // The socket can never accept this frame (EMSGSIZE): the frame is lost, but the link
                    // still works.
                    _ => batch.discard_one(),
                },
            }
        }
        Ok(Sent::All)
    }

    fn full_queue_pause(&self) -> Option<Duration> {
        messages::FULL_QUEUE_PAUSE
    }

    fn longest_received(&self, on_wire: usize) -> usize {
        on_wire + messages::SPARE
    }

    fn probe(&mut self) -> Result<(), LinkError> {
        if self.end_announced.is_some_and(|since| since.elapsed() >= END_GRACE) {
            return Err(LinkError::Closed);
        }
        match &self.peer {
            Some(peer) if !peer.is_alive() => Err(LinkError::Closed),
            _ => Ok(()),
        }
    }

    fn needs_probe(&self) -> bool {
        self.end_announced.is_some() || self.peer.as_ref().is_some_and(LinkWatch::needs_probe)
    }

    fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.socket);
        needs.calls(messages::SYSCALLS);
        needs.calls(&[Syscall::EpollCtl, Syscall::ClockGettime]);
        if let Some(peer) = &self.peer {
            peer.needs(needs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    const MAX: usize = 1514;

    fn pair() -> (UnixDatagram, DatagramLink) {
        let (near, far) = UnixDatagram::pair().unwrap();
        (near, DatagramLink::new(far.into()).unwrap())
    }

    #[test]
    fn a_datagram_is_a_frame_and_a_long_one_is_counted_as_cut() {
        let (near, mut link) = pair();
        near.send(&[1; 60]).unwrap();
        near.send(&[2; MAX + 1]).unwrap();
        near.send(&[3; MAX]).unwrap();
        let mut batch = FrameBatch::new(MAX);
        assert_eq!(link.recv(&mut batch).unwrap(), Received::Drained);
        assert_eq!(
            batch.frames().map(|frame| (frame[0], frame.len())).collect::<Vec<_>>(),
            [(1, 60), (3, MAX)]
        );
        assert_eq!(batch.take_truncated(), 1);
    }

    #[test]
    fn a_full_queue_blocks_and_keeps_what_did_not_fit() {
        let (near, mut link) = pair();
        near.set_nonblocking(true).unwrap();
        let mut batch = FrameBatch::new(MAX);
        let mut sent = 0u32;
        while sent < 5_000 {
            batch.clear();
            for _ in 0..crate::link::BATCH_FRAMES {
                batch.free_space()[..4].copy_from_slice(&sent.to_be_bytes());
                batch.push(60);
                sent += 1;
            }
            if link.send(&mut batch).unwrap() == Sent::Blocked {
                break;
            }
        }
        assert!(!batch.is_empty(), "the queue never filled: the test shows nothing");
        let mut expected = 0u32;
        let mut frame = [0; 60];
        loop {
            while near.recv(&mut frame).is_ok() {
                assert_eq!(frame[..4], expected.to_be_bytes());
                expected += 1;
            }
            if batch.is_empty() {
                break;
            }
            link.send(&mut batch).unwrap();
        }
        assert_eq!(expected, sent);
    }

    #[test]
    fn an_empty_datagram_is_a_frame_until_silence_makes_it_the_end() {
        let (near, mut link) = pair();
        let mut batch = FrameBatch::new(MAX);
        near.send(&[]).unwrap();
        link.recv(&mut batch).unwrap();
        assert_eq!(batch.frames().next(), Some(&[][..]));
        link.probe().unwrap();
        link.end_announced = Instant::now().checked_sub(END_GRACE);
        near.send(&[1; 60]).unwrap();
        batch.clear();
        link.recv(&mut batch).unwrap();
        link.probe().unwrap();
        link.end_announced = Instant::now().checked_sub(END_GRACE);
        assert!(matches!(link.probe(), Err(LinkError::Closed)));
    }
}
