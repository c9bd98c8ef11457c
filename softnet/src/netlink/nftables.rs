//! Requests and notifications of nftables that need no nft: the number of the ruleset's generation, whether a
//! table exists, and which tables a notification is about (`linux/netfilter/nf_tables.h`).

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{Connection, Message, attribute, find};

/// `NFNL_SUBSYS_NFTABLES`, in the message type's upper byte.
pub const SUBSYSTEM: u16 = 10 << 8;
/// Ends a transaction's notifications, and answers the request of [`generation`].
pub const NEWGEN: u16 = SUBSYSTEM | 15;
const GETGEN: u16 = SUBSYSTEM | 16;
const GETTABLE: u16 = SUBSYSTEM | 1;

/// `NFTA_GEN_ID`, a number in network byte order; in all other messages attribute 1 is the table's name.
const FIRST: u16 = 1;

/// `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// The families of Softnet's tables.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// `NFPROTO_IPV4`.
    Ipv4 = 2,
    /// `NFPROTO_BRIDGE`.
    Bridge = 7,
}

/// The number of the ruleset's current generation: each transaction with a change makes a new one.
///
/// # Errors
/// Those of the socket and of the kernel, or if its answer holds no number.
pub fn generation() -> io::Result<u32> {
    let mut generation = None;
    Connection::open(NETLINK_NETFILTER)?.exchange(GETGEN, 0, &payload(0, &[]), |answer| {
        generation = first_attribute(answer).and_then(number);
        Ok(())
    })?;
    generation.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether there is a table of this name.
///
/// # Errors
/// Those of the socket and of the kernel.
pub fn has_table(family: Family, name: &str) -> io::Result<bool> {
    let request = payload(family as u8, &[name.as_bytes(), &[0]].concat());
    match Connection::open(NETLINK_NETFILTER)?.exchange(GETTABLE, 0, &request, |_| Ok(())) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            // A kernel without the family has no table in it.
            Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => Ok(false),
            _ => Err(error),
        },
    }
}

/// `struct nfgenmsg` for this family, and attribute 1 with this value if it is not empty.
fn payload(family: u8, value: &[u8]) -> Vec<u8> {
    let attribute = if value.is_empty() { Vec::new() } else { attribute(FIRST, value) };
    [&[family, 0, 0, 0], attribute.as_slice()].concat()
}

/// The value of attribute 1.
pub fn first_attribute<'a>(message: &Message<'a>) -> Option<&'a [u8]> {
    find(message.payload().get(NFGENMSG..)?, FIRST)
}

/// An attribute's value as a number.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

/// A message whose attribute 1 has this value.
#[cfg(test)]
pub fn message(kind: u16, value: &[u8]) -> Vec<u8> {
    super::request(kind, 0, 0, &payload(0, value))
}
