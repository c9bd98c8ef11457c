//! What the kernel tells of changes: interfaces, addresses and forwarding by rtnetlink, tables by nftables' netlink
//! (`linux/rtnetlink.h`, `linux/netfilter/nf_tables.h`).
//!
//! A change by Softnet itself looks like anybody's. After each of its own transactions, under the lock, it notes the number of
//! the ruleset's generation; as long as that is the present one, nobody else has changed a thing since.

use std::fs;
use std::io;
use std::os::fd::BorrowedFd;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};

use crate::host::network::ruleset;
use crate::host::network::run_dir::{self, RunDir};

/// Links, IPv4 addresses, IPv4 switches (`RTNLGRP_*`).
const ROUTE_GROUPS: [u32; 3] = [1, 5, 24];
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;

/// `NFNL_SUBSYS_NFTABLES`, in the message type's upper byte.
const NFTABLES: u16 = 10 << 8;
const NEWGEN: u16 = NFTABLES | 15;
const GETGEN: u16 = NFTABLES | 16;
/// `NFTA_GEN_ID`, a number in network byte order; in all other messages attribute 1 is the table's name.
const FIRST: u16 = 1;

const NLM_F_REQUEST: u16 = 1;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADERS: usize = 16 + 4;

/// What has happened since the last look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Happened {
    /// An interface, an address or a switch changed.
    pub links: bool,
    /// A table that may be the network's changed.
    pub tables: bool,
}

/// Where the kernel tells.
pub struct Events {
    route: Socket,
    nftables: Socket,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// From now on, nothing is missed.
    pub fn follow() -> io::Result<Self> {
        let open = |protocol, groups: &[u32]| {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            groups.iter().try_for_each(|&group| socket.add_membership(group))?;
            Ok::<_, io::Error>(socket)
        };
        Ok(Events {
            route: open(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            nftables: open(NETLINK_NETFILTER, &[NFTABLES_GROUP])?,
        })
    }

    /// What becomes readable when something happens.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [&self.route, &self.nftables].map(crate::sys::fd::borrow)
    }

    /// Reads all that was told. Tables are the network's if their name is the one of all networks or begins like it.
    pub fn read(&mut self) -> Happened {
        let mut happened = Happened::default();
        drain(&self.route, |_| happened.links = true);
        drain(&self.nftables, |told| happened.tables |= told.is_none_or(is_ours));
        happened
    }
}

/// Hands out every datagram, and `None` if some were lost.
fn drain(socket: &Socket, mut told: impl FnMut(Option<&[u8]>)) {
    loop {
        match socket.recv_from_full() {
            Ok((bytes, _)) => told(Some(&bytes)),
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => told(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Whether one of the messages names a table of Softnet's.
fn is_ours(bytes: &[u8]) -> bool {
    messages(bytes).any(|(kind, message)| {
        kind & 0xff00 == NFTABLES && kind != NEWGEN && first_attribute(message).is_some_and(is_of_networks)
    })
}

/// Whether a table of this name belongs to the networks. One for a TAP on a bridge of others does not (`--bridge`).
fn is_of_networks(table: &[u8]) -> bool {
    table.starts_with(b"softnet") && !table.starts_with(ruleset::TAP_PREFIX.as_bytes())
}

/// The number of the ruleset's present generation.
pub fn generation() -> io::Result<u32> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = (HEADERS as u32).to_ne_bytes().to_vec();
    request.extend(GETGEN.to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.extend([0; HEADERS - 8]);
    socket.send(&request, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let number = messages(&answer)
        .find(|(kind, _)| *kind == NEWGEN)
        .and_then(|(_, message)| Some(u32::from_be_bytes(*first_attribute(message)?.first_chunk()?)));
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Notes that the present ruleset is as Softnet made it. Call it under the lock, after a transaction.
pub fn note_generation(run_dir: &RunDir) {
    let noted = generation().map_err(io::Error::other).and_then(|generation| {
        run_dir::write_atomically(&run_dir.generation_file(), &generation.to_string())
            .map_err(io::Error::other)
    });
    if let Err(error) = noted {
        // The keeper renders it once more.
        tracing::debug!(%error, "the ruleset's generation is not noted");
    }
}

/// Whether nobody but Softnet has changed the ruleset since it last did. Call it under the lock.
pub fn is_as_noted(run_dir: &RunDir) -> bool {
    let noted = fs::read_to_string(run_dir.generation_file()).ok().and_then(|text| text.parse().ok());
    noted.is_some() && noted == generation().ok()
}

/// Type and whole of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let message = bytes.get(..length).filter(|message| message.len() >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, message))
    })
}

/// The value of attribute 1.
fn first_attribute(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message.get(HEADERS..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & 0x3fff;
        let value = rest.get(4..length)?;
        if kind == FIRST {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = HEADERS + 4 + value.len();
        let mut bytes = (length as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; HEADERS - 6]);
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(FIRST.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(length.next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_messages_that_name_a_table_of_softnets_count() {
        let new_rule = NFTABLES | 6;
        assert!(is_ours(&message(new_rule, b"softnet-softnet0\0")));
        assert!(!is_ours(&message(new_rule, b"filter\0")));
        assert!(!is_ours(&message(new_rule, b"softnet-tap-snt0\0")));
        assert!(!is_ours(&message(NEWGEN, b"softnet")));
        let both = [message(new_rule, b"filter\0"), message(new_rule, b"softnet\0")].concat();
        assert!(is_ours(&both));
        for length in 0..both.len() {
            let _ = is_ours(&both[..length]);
        }
    }
}
