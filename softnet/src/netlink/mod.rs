//! Netlink (RFC 3549, netlink(7)): what all its families share, and the families that Softnet uses.
//!
//! This file frames messages and attributes and carries one exchange of a request and its answers. `route`
//! asks about links, addresses and routes, `conntrack`, `nftables` and `trace` about netfilter's tables,
//! `inet_diag` and `unix_diag` about sockets. The messages of links, addresses and routes come from
//! `netlink-packet-route`. No maintained library has those of the others, so their files name the few
//! attributes that they need.
//!
//! Input is checked before it is read: a truncated message or attribute is an error or ends the iteration,
//! and never causes a panic.

pub mod conntrack;
pub(crate) mod inet_diag;
pub(crate) mod nftables;
pub mod route;
pub mod trace;
pub(crate) mod unix_diag;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer, NlaBuffer, NlasIterator, parse_i32,
};
use netlink_sys::{Socket, SocketAddr};

pub use self::route::{Error, Kind, Link, Netlink, Route, Tun};

/// `SOCK_DIAG_BY_FAMILY`, the type of all messages of sock_diag(7) (`linux/sock_diag.h`).
const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A received message.
pub(crate) type Message<'a> = NetlinkBuffer<&'a [u8]>;

/// A socket that sends the kernel one request after the other.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    /// The sequence number of the latest request. Its answers carry the same number.
    sequence: u32,
}

impl Connection {
    /// Opens the socket for `protocol` (`NETLINK_*`) in the caller's network namespace.
    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Connection { socket, sequence: 0 })
    }

    /// Sends one request and passes every message of the answer to `see`, up to the acknowledgement, the end
    /// of the dump or the single answer.
    ///
    /// # Errors
    /// Those of the socket, of the kernel and of `see`; `InvalidData` if the answer is truncated.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
        mut see: impl FnMut(&Message<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let is_single = flags & NLM_F_DUMP != NLM_F_DUMP && flags & NLM_F_ACK == 0;
        self.send(kind, flags, [payload])?;
        self.receive(|message| {
            match message.message_type() {
                NLMSG_NOOP | NLMSG_OVERRUN => return Ok(ControlFlow::Continue(())),
                NLMSG_DONE | NLMSG_ERROR => {
                    outcome(message.payload())?;
                    return Ok(ControlFlow::Break(()));
                }
                _ => see(message)?,
            }
            Ok(if is_single { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })
    }

    /// Sends one request for each of `payloads`, all at once, and returns the result of each.
    fn change_all<'a>(
        &mut self,
        kind: u16,
        payloads: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> io::Result<Vec<io::Result<()>>> {
        let count = payloads.len();
        let mut outcomes = Vec::with_capacity(count);
        if count == 0 {
            return Ok(outcomes);
        }
        self.send(kind, NLM_F_ACK, payloads)?;
        self.receive(|message| {
            if message.message_type() == NLMSG_ERROR {
                outcomes.push(outcome(message.payload()));
            }
            Ok(if outcomes.len() < count { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok(outcomes)
    }

    fn send<'a>(
        &mut self,
        kind: u16,
        flags: u16,
        payloads: impl IntoIterator<Item = &'a [u8]>,
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let requests: Vec<u8> =
            payloads.into_iter().flat_map(|payload| request(kind, flags, sequence, payload)).collect();
        self.socket.send(&requests, 0).map(drop)
    }

    /// Passes the answers to the latest request to `see` until it breaks.
    fn receive(&self, mut see: impl FnMut(&Message<'_>) -> io::Result<ControlFlow<()>>) -> io::Result<()> {
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for message in messages(&bytes) {
                let message = message?;
                if message.sequence_number() == self.sequence && see(&message)?.is_break() {
                    return Ok(());
                }
            }
        }
    }
}

/// A socket that the kernel sends notifications to.
#[derive(Debug)]
pub(crate) struct Subscription(Socket);

impl Subscription {
    /// Subscribes to the multicast `groups` of `protocol`. From now on, no notification is lost undetected.
    pub(crate) fn open(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        groups.iter().try_for_each(|&group| socket.add_membership(group))?;
        Ok(Subscription(socket))
    }

    /// Passes every datagram that has arrived to `each`, and `None` where the kernel dropped some.
    pub(crate) fn drain(&self, mut each: impl FnMut(Option<&[u8]>)) {
        loop {
            match self.0.recv_from_full() {
                Ok((bytes, _)) => each(Some(&bytes)),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => each(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Subscription {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A request with its header.
fn request(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + payload.len()];
    let mut message = NetlinkBuffer::new(&mut bytes);
    message.set_length((HEADER + payload.len()) as u32);
    message.set_message_type(kind);
    message.set_flags(NLM_F_REQUEST | flags);
    message.set_sequence_number(sequence);
    message.payload_mut().copy_from_slice(payload);
    // The next message starts at a multiple of four.
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The messages in `bytes`. A truncated message is an error and ends the iteration.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = io::Result<Message<'_>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = NetlinkBuffer::new_checked(bytes).map_err(|_| {
            let detail = format!("a message of {} bytes is cut short", bytes.len());
            io::Error::new(io::ErrorKind::InvalidData, detail)
        });
        let length = message.as_ref().map_or(bytes.len(), |message| message.length() as usize);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The kernel's result for a request, in the payload of an `NLMSG_ERROR` or `NLMSG_DONE`: a negative error
/// number, or zero.
fn outcome(payload: &[u8]) -> io::Result<()> {
    match payload.get(..4).and_then(|code| parse_i32(code).ok()) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// One attribute, padded. `kind` holds its flags too.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let attribute = DefaultNla::new(kind, value.to_vec());
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// The attributes in `bytes`, up to the first truncated one.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(bytes).map_while(Result::ok)
}

/// The value of the first attribute of this kind.
fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let attribute = attributes(bytes).find(|attribute| attribute.kind() == kind)?;
    let length = usize::from(attribute.length());
    attribute.into_inner().get(NLA_HEADER_SIZE..length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_claims_more_than_was_received_is_refused() {
        let whole = request(20, 0, 7, &[]);
        for (length, is_whole) in [(15, false), (16, true), (17, false), (u32::MAX, false)] {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&u32::to_ne_bytes(length));
            let read: Vec<_> = messages(&bytes).collect();
            assert_eq!(read.len(), 1);
            assert_eq!(read[0].as_ref().ok().map(NetlinkBuffer::sequence_number), is_whole.then_some(7));
        }
    }

    #[test]
    fn messages_are_read_up_to_the_first_truncated_one() {
        let two = [request(20, 0, 1, &[1, 2, 3, 4, 5]), request(21, 0, 2, &[6])].concat();
        let read = |length| messages(&two[..length]).filter_map(Result::ok).count();
        for length in 0..two.len() {
            let whole = match length {
                // The first has three bytes of padding, and so has the second.
                ..21 => 0,
                21..41 => 1,
                _ => 2,
            };
            assert_eq!(read(length), whole, "{length}");
        }
        let payloads: Vec<&[u8]> = messages(&two).map(|message| message.unwrap().payload()).collect();
        assert_eq!(payloads, [&[1, 2, 3, 4, 5][..], &[6]]);
    }

    #[test]
    fn attributes_are_read_up_to_the_first_truncated_one() {
        let two = [attribute(1, b"one"), attribute(2 | 0x8000, b"two")].concat();
        assert_eq!(
            (find(&two, 1), find(&two, 2), find(&two, 3)),
            (Some(&b"one"[..]), Some(&b"two"[..]), None)
        );
        for length in 0..15 {
            assert_eq!(find(&two[..length], 2), None, "{length}");
        }
        assert_eq!(find(&[3, 0, 1, 0, 0], 1), None);
    }

    #[test]
    fn an_answer_is_an_acknowledgement_or_an_error() {
        assert!(outcome(&0_i32.to_ne_bytes()).is_ok());
        assert_eq!(outcome(&(-2_i32).to_ne_bytes()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(outcome(&i32::MIN.to_ne_bytes()).is_err());
        assert!(outcome(&[]).is_err());
    }
}
