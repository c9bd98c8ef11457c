//! What of nftables is asked and heard without nft: the number of the ruleset's generation, whether a table is there, and which
//! tables a notification is about (`linux/netfilter/nf_tables.h`).

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// `NFNL_SUBSYS_NFTABLES`, in the message type's upper byte.
pub const SUBSYSTEM: u16 = 10 << 8;
/// The end of a transaction's notifications, and the answer to [`generation`]'s question.
pub const NEWGEN: u16 = SUBSYSTEM | 15;
const GETGEN: u16 = SUBSYSTEM | 16;
const NEWTABLE: u16 = SUBSYSTEM;
const GETTABLE: u16 = SUBSYSTEM | 1;

/// `NFTA_GEN_ID`, a number in network byte order; in all other messages attribute 1 is the table's name.
const FIRST: u16 = 1;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
/// `struct nlmsghdr` and `struct nfgenmsg`.
const HEADERS: usize = 16 + 4;

/// The families of tables that Softnet has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// `NFPROTO_IPV4`.
    Ipv4 = 2,
    /// `NFPROTO_BRIDGE`.
    Bridge = 7,
}

/// The number of the ruleset's present generation: each transaction that changes a thing makes another.
///
/// # Errors
/// Those of the socket, or if the kernel does not know.
pub fn generation() -> io::Result<u32> {
    let answer = ask(&message(GETGEN, 0, &[]))?;
    let number = messages(&answer)
        .find(|(kind, _)| *kind == NEWGEN)
        .and_then(|(_, message)| first_attribute(message))
        .and_then(number);
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Whether there is a table of this name.
///
/// # Errors
/// Those of the socket and of the kernel.
pub fn has_table(family: Family, name: &str) -> io::Result<bool> {
    let answer = ask(&message(GETTABLE, family as u8, &[name.as_bytes(), &[0]].concat()))?;
    match messages(&answer).next() {
        Some((NEWTABLE, _)) => Ok(true),
        Some((NLMSG_ERROR, message)) => {
            let code =
                message.get(16..).and_then(|body| body.first_chunk()).map(|code| i32::from_ne_bytes(*code));
            match code.map(i32::saturating_neg) {
                // A kernel without the family has no table of it.
                Some(libc::ENOENT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT) => Ok(false),
                Some(code) => Err(io::Error::from_raw_os_error(code)),
                None => Err(io::ErrorKind::InvalidData.into()),
            }
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn ask(question: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(question, 0)?;
    Ok(socket.recv_from_full()?.0)
}

/// A message of this family whose attribute 1 has this value, if it is not empty.
pub fn message(kind: u16, family: u8, value: &[u8]) -> Vec<u8> {
    let attribute = if value.is_empty() { 0 } else { 4 + value.len() };
    let mut bytes = ((HEADERS + attribute) as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and port: one question at a time needs neither.
    bytes.extend([0; 8]);
    bytes.extend([family, 0, 0, 0]);
    if !value.is_empty() {
        bytes.extend((attribute as u16).to_ne_bytes());
        bytes.extend(FIRST.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// Type and whole of each message.
pub fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let message = bytes.get(..length).filter(|message| message.len() >= 16)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, message))
    })
}

/// The value of attribute 1.
pub fn first_attribute(message: &[u8]) -> Option<&[u8]> {
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

/// The number that an attribute is.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}
