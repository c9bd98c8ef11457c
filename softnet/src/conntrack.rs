//! Makes the kernel forget UDP flows by ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! Whether and where to a flow is translated is decided at its first packet and kept in conntrack. A TCP client that is
//! refused connects anew; a UDP client just goes on sending, and each datagram keeps the old decision alive: towards nobody,
//! or towards the address of a VM that is gone. So when a UDP port is led somewhere, what was decided for it before has to
//! go. nft cannot do that, and conntrack(8) is seldom installed.

use std::io;
use std::net::Ipv4Addr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// An entry of conntrack, as far as it matters here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// Where the flow's first packet was sent.
    pub destination: (Ipv4Addr, u16),
    /// Who answers: the destination, or where it was translated to.
    pub answers: (Ipv4Addr, u16),
    /// The attribute that names the entry, as the kernel wrote it.
    tuple: Vec<u8>,
}

/// Forgets the UDP flows for which `stale` says so and returns how many. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// Those of the socket and of the kernel; `EPROTONOSUPPORT` or `EOPNOTSUPP` if it tracks no connections.
pub fn forget_udp(stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut table = Table::open()?;
    let flows = table.dump()?;
    let mut forgotten = 0;
    for flow in flows.iter().filter(|flow| stale(flow)) {
        match table.delete(flow) {
            Ok(()) => forgotten += 1,
            // It has ended by itself.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// The subsystem, in the message type's upper byte.
const CTNETLINK: u16 = 1 << 8;
const GET: u16 = CTNETLINK | 1;
const DELETE: u16 = CTNETLINK | 2;
/// `struct nfgenmsg`: IPv4, version 0.
const IPV4: [u8; 4] = [2, 0, 0, 0];
const UDP: u8 = 17;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

struct Table {
    socket: Socket,
}

impl Table {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Table { socket })
    }

    fn dump(&mut self) -> io::Result<Vec<Flow>> {
        self.socket.send(&message(GET, NLM_F_DUMP, &[]), 0)?;
        let mut flows = Vec::new();
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (kind, body) in messages(&bytes) {
                match kind {
                    NLMSG_DONE => return Ok(flows),
                    NLMSG_ERROR => result(body)?,
                    _ => flows.extend(body.get(IPV4.len()..).and_then(flow)),
                }
            }
        }
    }

    fn delete(&mut self, flow: &Flow) -> io::Result<()> {
        self.socket.send(&message(DELETE, NLM_F_ACK, &flow.tuple), 0)?;
        let (bytes, _) = self.socket.recv_from_full()?;
        messages(&bytes).find(|(kind, _)| *kind == NLMSG_ERROR).map_or(Ok(()), |(_, body)| result(body))
    }
}

fn message(kind: u16, flags: u16, attributes: &[u8]) -> Vec<u8> {
    let length = (HEADER + IPV4.len() + attributes.len()) as u32;
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port: one question at a time needs neither.
    bytes.extend([0; 8]);
    bytes.extend(IPV4);
    bytes.extend(attributes);
    bytes
}

/// The outcome in the body of an `NLMSG_ERROR`: a negative error number, or zero for an acknowledgement.
fn result(body: &[u8]) -> io::Result<()> {
    match body.first_chunk().map(|code| i32::from_ne_bytes(*code)) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Type and body of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*bytes.get(4..)?.first_chunk()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, body))
    })
}

/// Type, value and all bytes of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8], &[u8])> {
    /// Two bits of the type are flags (nested, byte order).
    const TYPE: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes(*bytes.get(2..)?.first_chunk()?) & TYPE;
        let (value, padded) = (bytes.get(4..length)?, length.next_multiple_of(4));
        let whole = bytes.get(..padded).unwrap_or(bytes);
        bytes = bytes.get(padded..).unwrap_or(&[]);
        Some((kind, value, whole))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, ..)| *kind == wanted).map(|(_, value, _)| value)
}

/// The flow in an entry's attributes, if it is a UDP flow.
fn flow(entry: &[u8]) -> Option<Flow> {
    let original = attribute(entry, CTA_TUPLE_ORIG)?;
    let reply = attribute(entry, CTA_TUPLE_REPLY)?;
    if attribute(attribute(original, CTA_TUPLE_PROTO)?, CTA_PROTO_NUM)? != [UDP] {
        return None;
    }
    Some(Flow {
        destination: end(original, CTA_IP_V4_DST, CTA_PROTO_DST_PORT)?,
        answers: end(reply, CTA_IP_V4_SRC, CTA_PROTO_SRC_PORT)?,
        tuple: attributes(entry).find(|(kind, ..)| *kind == CTA_TUPLE_ORIG)?.2.to_vec(),
    })
}

/// One end of a tuple. Addresses and ports are in network byte order.
fn end(tuple: &[u8], address: u16, port: u16) -> Option<(Ipv4Addr, u16)> {
    let address: [u8; 4] = *attribute(attribute(tuple, CTA_TUPLE_IP)?, address)?.first_chunk()?;
    let port: [u8; 2] = *attribute(attribute(tuple, CTA_TUPLE_PROTO)?, port)?.first_chunk()?;
    Some((address.into(), u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple(kind: u16, protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let addresses = [nla(CTA_IP_V4_SRC, &from.0), nla(CTA_IP_V4_DST, &to.0)].concat();
        let ports = [
            nla(CTA_PROTO_NUM, &[protocol]),
            nla(CTA_PROTO_SRC_PORT, &from.1.to_be_bytes()),
            nla(CTA_PROTO_DST_PORT, &to.1.to_be_bytes()),
        ];
        const NESTED: u16 = 0x8000;
        let inner = [nla(CTA_TUPLE_IP | NESTED, &addresses), nla(CTA_TUPLE_PROTO | NESTED, &ports.concat())];
        nla(kind | NESTED, &inner.concat())
    }

    const CLIENT: ([u8; 4], u16) = ([192, 168, 77, 10], 40000);
    const HOST: ([u8; 4], u16) = ([192, 168, 77, 1], 5353);
    const VM: ([u8; 4], u16) = ([192, 168, 64, 5], 53);

    fn entry(protocol: u8) -> Vec<u8> {
        [
            tuple(CTA_TUPLE_ORIG, protocol, CLIENT, HOST),
            tuple(CTA_TUPLE_REPLY, protocol, VM, CLIENT),
            nla(7, &[0, 0, 0, 30]),
        ]
        .concat()
    }

    #[test]
    fn a_translated_udp_flow_is_read() {
        let flow = flow(&entry(UDP)).unwrap();
        assert_eq!(flow.destination, (HOST.0.into(), HOST.1));
        assert_eq!(flow.answers, (VM.0.into(), VM.1));
        assert_eq!(flow.tuple, tuple(CTA_TUPLE_ORIG, UDP, CLIENT, HOST));
    }

    #[test]
    fn other_protocols_and_cut_entries_are_none() {
        assert_eq!(flow(&entry(6)), None);
        let whole = entry(UDP);
        for length in 0..whole.len() - 8 {
            assert_eq!(flow(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn an_answer_is_an_acknowledgement_or_an_error() {
        assert!(result(&0_i32.to_ne_bytes()).is_ok());
        assert_eq!(result(&(-2_i32).to_ne_bytes()).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(result(&[]).is_err());
    }
}
