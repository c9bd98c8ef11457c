//! Makes the kernel forget tracked connections by ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! Whether and where to a flow is translated is decided at its first packet and kept in conntrack, for days if its peers fall
//! silent. So what is known of an address must go when another VM may get it (rule H3): the next holder would get the
//! former one's packets. And when a port is led somewhere, what was decided for it before must go: a UDP client just goes on
//! sending, and each datagram keeps the old decision alive. nft cannot do that, and conntrack(8) is seldom installed.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

/// One direction of a flow, as conntrack files it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tuple {
    /// Who sends.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// The IP protocol's number.
    pub protocol: u8,
    /// The sender's port, or the identifier of an ICMP echo; 0 for a protocol without either.
    pub source_port: u16,
    /// The receiver's port, or the identifier of an ICMP echo; 0 for a protocol without either.
    pub destination_port: u16,
}

/// An entry of conntrack.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// The direction of the first packet, before any translation.
    pub original: Tuple,
    /// The direction of the answers, before any translation.
    pub reply: Tuple,
    /// The attributes that name the entry and no later one, as the kernel wrote them: original tuple, zone, number.
    name: Vec<u8>,
}

impl Flow {
    /// Whether `address` is an end of the flow, translated or not.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        [self.original, self.reply]
            .iter()
            .any(|tuple| tuple.source == address || tuple.destination == address)
    }
}

/// Forgets every IPv4 flow that one of `addresses` is an end of, and returns how many. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// Those of the socket and of the kernel; `EPROTONOSUPPORT` or `EOPNOTSUPP` if it tracks no connections.
pub fn forget_addresses(addresses: &BTreeSet<Ipv4Addr>) -> io::Result<usize> {
    let mut table = Table::open()?;
    let ours = |flow: &Flow| addresses.iter().any(|&address| flow.has(address));
    let mut flows = BTreeSet::new();
    // The kernel can pick by one end of one address at a time, and walks all of its table for each.
    let entries = table.count()?;
    if addresses.is_empty() || entries == 0 {
        return Ok(0);
    }
    let picks: Vec<Vec<u8>> = if entries <= FEW || addresses.len() > 4 {
        vec![Vec::new()]
    } else {
        addresses.iter().flat_map(|&address| Pick::ALL.map(|pick| pick.filter(address))).collect()
    };
    for pick in picks {
        // A kernel that does not know the filter (before 5.8) tells all, so each entry is looked at here too.
        table.dump(&pick, |flow| {
            if ours(&flow) {
                flows.insert(flow.name);
            }
        })?;
    }
    table.delete_all(flows)
}

/// Forgets the IPv4 flows for which `stale` says so and returns how many. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// Those of [`forget_addresses`].
pub fn forget(stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let mut table = Table::open()?;
    let mut flows = Vec::new();
    table.dump(&[], |flow| {
        if stale(&flow) {
            flows.push(flow.name);
        }
    })?;
    table.delete_all(flows)
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
const GET_STATS: u16 = CTNETLINK | 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
/// `struct nfgenmsg`: IPv4, version 0.
const IPV4: [u8; 4] = [2, 0, 0, 0];

const NESTED: u16 = 0x8000;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_FILTER: u16 = 25;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTO_ICMP_ID: u16 = 4;

/// As many entries are read sooner than the table is walked four times: a walk takes some 10 ms where it has 262,144 buckets, and
/// reading an entry more than 1 µs.
const FEW: u32 = 20_000;

/// How many deletions one message to the kernel holds.
const DELETIONS_AT_ONCE: usize = 64;

/// An end of a flow by which the kernel picks entries.
#[derive(Clone, Copy, Debug)]
struct Pick {
    /// Which tuple, which is also the number of its flags in `CTA_FILTER`.
    tuple: u16,
    /// Which address of it.
    end: u16,
}

impl Pick {
    const ALL: [Pick; 4] = [
        Pick { tuple: CTA_TUPLE_ORIG, end: CTA_IP_V4_SRC },
        Pick { tuple: CTA_TUPLE_ORIG, end: CTA_IP_V4_DST },
        Pick { tuple: CTA_TUPLE_REPLY, end: CTA_IP_V4_SRC },
        Pick { tuple: CTA_TUPLE_REPLY, end: CTA_IP_V4_DST },
    ];

    /// The attributes that ask for the entries with `address` at this end.
    fn filter(self, address: Ipv4Addr) -> Vec<u8> {
        // The kernel's flags: bit 0 the source, bit 1 the destination.
        let flags = (u32::from(self.end)).to_ne_bytes();
        let ip = nla(CTA_TUPLE_IP | NESTED, &nla(self.end, &address.octets()));
        [nla(self.tuple | NESTED, &ip), nla(CTA_FILTER | NESTED, &nla(self.tuple, &flags))].concat()
    }
}

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

    /// How many entries there are, of any address family.
    fn count(&mut self) -> io::Result<u32> {
        self.socket.send(&message(GET_STATS, 0, &[]), 0)?;
        let (bytes, _) = self.socket.recv_from_full()?;
        let (kind, body) = messages(&bytes).next().ok_or(io::ErrorKind::InvalidData)?;
        if kind == NLMSG_ERROR {
            result(body)?;
        }
        let entries = body.get(IPV4.len()..).and_then(|body| attribute(body, CTA_STATS_GLOBAL_ENTRIES));
        let entries = entries.and_then(|value| Some(u32::from_be_bytes(*value.first_chunk()?)));
        entries.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn dump(&mut self, filter: &[u8], mut see: impl FnMut(Flow)) -> io::Result<()> {
        self.socket.send(&message(GET, NLM_F_DUMP, filter), 0)?;
        loop {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (kind, body) in messages(&bytes) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => result(body)?,
                    _ => body.get(IPV4.len()..).and_then(flow).into_iter().for_each(&mut see),
                }
            }
        }
    }

    /// Deletes the entries with these names and returns how many there still were.
    fn delete_all(&mut self, names: impl IntoIterator<Item = Vec<u8>>) -> io::Result<usize> {
        let names: Vec<Vec<u8>> = names.into_iter().collect();
        let mut deleted = 0;
        for some in names.chunks(DELETIONS_AT_ONCE) {
            let messages: Vec<u8> = some.iter().flat_map(|name| message(DELETE, NLM_F_ACK, name)).collect();
            self.socket.send(&messages, 0)?;
            deleted += self.outcomes(some.len())?;
        }
        Ok(deleted)
    }

    /// Reads the outcomes of `count` deletions and says how many succeeded.
    fn outcomes(&mut self, count: usize) -> io::Result<usize> {
        let (mut heard, mut succeeded, mut failure) = (0, 0, None);
        while heard < count {
            let (bytes, _) = self.socket.recv_from_full()?;
            for (_, body) in messages(&bytes).filter(|(kind, _)| *kind == NLMSG_ERROR) {
                heard += 1;
                match result(body) {
                    Ok(()) => succeeded += 1,
                    // It has ended by itself.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => failure = Some(error),
                }
            }
        }
        failure.map_or(Ok(succeeded), Err)
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

/// One attribute, padded.
fn nla(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (value.len() as u16 + 4).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
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

/// The flow in an entry's attributes.
fn flow(entry: &[u8]) -> Option<Flow> {
    let named = |(kind, ..): &(u16, &[u8], &[u8])| matches!(*kind, CTA_TUPLE_ORIG | CTA_ZONE | CTA_ID);
    Some(Flow {
        original: tuple(attribute(entry, CTA_TUPLE_ORIG)?)?,
        reply: tuple(attribute(entry, CTA_TUPLE_REPLY)?)?,
        name: attributes(entry).filter(named).flat_map(|(.., whole)| whole.to_vec()).collect(),
    })
}

/// Addresses and ports are in network byte order.
fn tuple(attributes: &[u8]) -> Option<Tuple> {
    let ip = attribute(attributes, CTA_TUPLE_IP)?;
    let protocol = attribute(attributes, CTA_TUPLE_PROTO)?;
    let address = |end| Some(Ipv4Addr::from(*attribute(ip, end)?.first_chunk::<4>()?));
    let port = |end| match attribute(protocol, end).or_else(|| attribute(protocol, CTA_PROTO_ICMP_ID)) {
        Some(value) => value.first_chunk().map(|port| u16::from_be_bytes(*port)),
        None => Some(0),
    };
    Some(Tuple {
        source: address(CTA_IP_V4_SRC)?,
        destination: address(CTA_IP_V4_DST)?,
        protocol: *attribute(protocol, CTA_PROTO_NUM)?.first()?,
        source_port: port(CTA_PROTO_SRC_PORT)?,
        destination_port: port(CTA_PROTO_DST_PORT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: u8 = 17;

    fn tuple_of(kind: u16, protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let addresses = [nla(CTA_IP_V4_SRC, &from.0), nla(CTA_IP_V4_DST, &to.0)].concat();
        let ports = [
            nla(CTA_PROTO_NUM, &[protocol]),
            nla(CTA_PROTO_SRC_PORT, &from.1.to_be_bytes()),
            nla(CTA_PROTO_DST_PORT, &to.1.to_be_bytes()),
        ];
        let inner = [nla(CTA_TUPLE_IP | NESTED, &addresses), nla(CTA_TUPLE_PROTO | NESTED, &ports.concat())];
        nla(kind | NESTED, &inner.concat())
    }

    const CLIENT: ([u8; 4], u16) = ([192, 168, 77, 10], 40000);
    const HOST: ([u8; 4], u16) = ([192, 168, 77, 1], 5353);
    const VM: ([u8; 4], u16) = ([192, 168, 64, 5], 53);

    fn entry() -> Vec<u8> {
        [
            tuple_of(CTA_TUPLE_ORIG, UDP, CLIENT, HOST),
            tuple_of(CTA_TUPLE_REPLY, UDP, VM, CLIENT),
            nla(7, &[0, 0, 0, 30]),
            nla(CTA_ID, &[1, 2, 3, 4]),
        ]
        .concat()
    }

    #[test]
    fn a_translated_flow_is_read_and_named() {
        let flow = flow(&entry()).unwrap();
        assert_eq!((flow.original.destination, flow.original.destination_port), (HOST.0.into(), HOST.1));
        assert_eq!(
            (flow.reply.source, flow.reply.source_port, flow.reply.protocol),
            (VM.0.into(), VM.1, UDP)
        );
        let name = [tuple_of(CTA_TUPLE_ORIG, UDP, CLIENT, HOST), nla(CTA_ID, &[1, 2, 3, 4])].concat();
        assert_eq!(flow.name, name);
        for end in [CLIENT, HOST, VM] {
            assert!(flow.has(end.0.into()));
        }
        assert!(!flow.has(Ipv4Addr::new(192, 168, 64, 6)));
    }

    #[test]
    fn an_entry_without_ports_is_read_too() {
        let ends = |from: [u8; 4], to: [u8; 4]| {
            let addresses = [nla(CTA_IP_V4_SRC, &from), nla(CTA_IP_V4_DST, &to)].concat();
            let esp = nla(CTA_TUPLE_PROTO | NESTED, &nla(CTA_PROTO_NUM, &[50]));
            [nla(CTA_TUPLE_IP | NESTED, &addresses), esp].concat()
        };
        let original = nla(CTA_TUPLE_ORIG | NESTED, &ends(VM.0, CLIENT.0));
        let entry = [original, nla(CTA_TUPLE_REPLY | NESTED, &ends(CLIENT.0, HOST.0))].concat();
        let flow = flow(&entry).unwrap();
        assert_eq!((flow.original.protocol, flow.original.source_port), (50, 0));
    }

    #[test]
    fn cut_entries_are_none() {
        let whole = entry();
        let tuples = tuple_of(CTA_TUPLE_ORIG, UDP, CLIENT, HOST).len()
            + tuple_of(CTA_TUPLE_REPLY, UDP, VM, CLIENT).len();
        for length in 0..tuples {
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
