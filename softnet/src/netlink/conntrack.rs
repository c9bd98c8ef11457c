//! Deletes tracked connections by ctnetlink (`linux/netfilter/nfnetlink_conntrack.h`).
//!
//! The kernel decides at a flow's first packet whether and how to translate it, and keeps the decision in
//! conntrack, for days if both ends are silent. So the flows of an address must be deleted before another VM
//! may get it (rule H3): the next holder would receive packets for the previous one. When a port is forwarded
//! to a new destination, its old flows must be deleted too: a UDP client keeps sending, and each datagram
//! renews the old decision. nft cannot delete flows, and conntrack(8) is rarely installed.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLA_F_NESTED as NESTED, NLM_F_DUMP, NlaBuffer};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{Connection, attribute, attributes, find};

/// One direction of a flow, as conntrack stores it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tuple {
    /// The sender's address.
    pub source: Ipv4Addr,
    /// The receiver's address.
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
    /// The direction of the replies, before any translation.
    pub reply: Tuple,
    /// The attributes that identify this entry and no later one, as the kernel wrote them: original tuple,
    /// zone, number.
    name: Vec<u8>,
}

impl Flow {
    /// Whether `address` is an endpoint of the flow, translated or not.
    pub fn has(&self, address: Ipv4Addr) -> bool {
        [self.original, self.reply]
            .iter()
            .any(|tuple| tuple.source == address || tuple.destination == address)
    }
}

/// Deletes every IPv4 flow with an endpoint in `addresses`, and returns how many. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// Those of the socket and of the kernel; `EPROTONOSUPPORT` or `EOPNOTSUPP` if it tracks no connections.
pub fn forget_addresses(addresses: &BTreeSet<Ipv4Addr>) -> io::Result<usize> {
    if addresses.is_empty() {
        return Ok(0);
    }
    let mut table = Table::open()?;
    let ours = |flow: &Flow| addresses.iter().any(|&address| flow.has(address));
    let mut flows = BTreeSet::new();
    let entries = table.count()?;
    if entries == 0 {
        return Ok(0);
    }
    // The kernel filters by one endpoint and one address at a time, and walks its whole table for each.
    let picks: Vec<Vec<u8>> = if entries <= FEW || addresses.len() > 4 {
        vec![Vec::new()]
    } else {
        addresses.iter().flat_map(|&address| Pick::ALL.map(|pick| pick.filter(address))).collect()
    };
    for pick in picks {
        // A kernel without this filter (before 5.8) returns all entries, so each is checked here too.
        table.dump(&pick, |flow| {
            if ours(&flow) {
                flows.insert(flow.name);
            }
        })?;
    }
    table.delete_all(flows)
}

/// Deletes the IPv4 flows for which `stale` returns true, and returns how many. Needs `CAP_NET_ADMIN`.
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

/// The subsystem, in the message type's upper byte.
const CTNETLINK: u16 = 1 << 8;
const GET: u16 = CTNETLINK | 1;
const DELETE: u16 = CTNETLINK | 2;
const GET_STATS: u16 = CTNETLINK | 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
/// `struct nfgenmsg`: IPv4, version 0.
const IPV4: [u8; 4] = [2, 0, 0, 0];

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

/// Up to this many entries, reading them all is faster than four walks of the table: a walk takes some 10 ms
/// for 262,144 buckets, and reading an entry more than 1 µs.
const FEW: u32 = 20_000;

/// How many deletions are sent to the kernel at once.
const DELETIONS_AT_ONCE: usize = 64;

/// An endpoint of a flow by which the kernel filters entries.
#[derive(Clone, Copy, Debug)]
struct Pick {
    /// The tuple's attribute, which is also the number of its flags in `CTA_FILTER`.
    tuple: u16,
    /// Which address of the tuple.
    end: u16,
}

impl Pick {
    const ALL: [Pick; 4] = [
        Pick { tuple: CTA_TUPLE_ORIG, end: CTA_IP_V4_SRC },
        Pick { tuple: CTA_TUPLE_ORIG, end: CTA_IP_V4_DST },
        Pick { tuple: CTA_TUPLE_REPLY, end: CTA_IP_V4_SRC },
        Pick { tuple: CTA_TUPLE_REPLY, end: CTA_IP_V4_DST },
    ];

    /// The attributes that request the entries with `address` at this endpoint.
    fn filter(self, address: Ipv4Addr) -> Vec<u8> {
        // The kernel's flags: bit 0 the source, bit 1 the destination.
        let flags = (u32::from(self.end)).to_ne_bytes();
        let ip = attribute(CTA_TUPLE_IP | NESTED, &attribute(self.end, &address.octets()));
        [attribute(self.tuple | NESTED, &ip), attribute(CTA_FILTER | NESTED, &attribute(self.tuple, &flags))]
            .concat()
    }
}

struct Table {
    connection: Connection,
}

impl Table {
    fn open() -> io::Result<Self> {
        Ok(Table { connection: Connection::open(NETLINK_NETFILTER)? })
    }

    /// How many entries there are, of any address family.
    fn count(&mut self) -> io::Result<u32> {
        let mut entries = None;
        self.connection.exchange(GET_STATS, 0, &IPV4, |answer| {
            let attributes = answer.payload().get(IPV4.len()..).unwrap_or_default();
            entries = find(attributes, CTA_STATS_GLOBAL_ENTRIES)
                .and_then(|value| Some(u32::from_be_bytes(*value.first_chunk()?)));
            Ok(())
        })?;
        entries.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn dump(&mut self, filter: &[u8], mut see: impl FnMut(Flow)) -> io::Result<()> {
        self.connection.exchange(GET, NLM_F_DUMP, &[&IPV4, filter].concat(), |entry| {
            entry.payload().get(IPV4.len()..).and_then(flow).into_iter().for_each(&mut see);
            Ok(())
        })
    }

    /// Deletes the entries with these identifying attributes and returns how many still existed.
    fn delete_all(&mut self, names: impl IntoIterator<Item = Vec<u8>>) -> io::Result<usize> {
        let names: Vec<Vec<u8>> = names.into_iter().map(|name| [&IPV4[..], &name].concat()).collect();
        let mut deleted = 0;
        for some in names.chunks(DELETIONS_AT_ONCE) {
            let mut failure = None;
            for outcome in self.connection.change_all(DELETE, some.iter().map(Vec::as_slice))? {
                match outcome {
                    Ok(()) => deleted += 1,
                    // The flow has ended on its own.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => failure = Some(error),
                }
            }
            if let Some(error) = failure {
                return Err(error);
            }
        }
        Ok(deleted)
    }
}

/// The flow in an entry's attributes.
fn flow(entry: &[u8]) -> Option<Flow> {
    let named =
        attributes(entry).filter(|attribute| matches!(attribute.kind(), CTA_TUPLE_ORIG | CTA_ZONE | CTA_ID));
    Some(Flow {
        original: tuple(find(entry, CTA_TUPLE_ORIG)?)?,
        reply: tuple(find(entry, CTA_TUPLE_REPLY)?)?,
        name: named.flat_map(|attribute| whole(attribute).to_vec()).collect(),
    })
}

/// All bytes of the attribute, including its padding.
fn whole(attribute: NlaBuffer<&[u8]>) -> &[u8] {
    let length = usize::from(attribute.length()).next_multiple_of(4);
    let rest = attribute.into_inner();
    rest.get(..length).unwrap_or(rest)
}

/// Addresses and ports are in network byte order.
fn tuple(attributes: &[u8]) -> Option<Tuple> {
    let ip = find(attributes, CTA_TUPLE_IP)?;
    let protocol = find(attributes, CTA_TUPLE_PROTO)?;
    let address = |end| Some(Ipv4Addr::from(*find(ip, end)?.first_chunk::<4>()?));
    let port = |end| match find(protocol, end).or_else(|| find(protocol, CTA_PROTO_ICMP_ID)) {
        Some(value) => value.first_chunk().map(|port| u16::from_be_bytes(*port)),
        None => Some(0),
    };
    Some(Tuple {
        source: address(CTA_IP_V4_SRC)?,
        destination: address(CTA_IP_V4_DST)?,
        protocol: *find(protocol, CTA_PROTO_NUM)?.first()?,
        source_port: port(CTA_PROTO_SRC_PORT)?,
        destination_port: port(CTA_PROTO_DST_PORT)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UDP: u8 = 17;

    fn tuple_of(kind: u16, protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        let addresses = [attribute(CTA_IP_V4_SRC, &from.0), attribute(CTA_IP_V4_DST, &to.0)].concat();
        let ports = [
            attribute(CTA_PROTO_NUM, &[protocol]),
            attribute(CTA_PROTO_SRC_PORT, &from.1.to_be_bytes()),
            attribute(CTA_PROTO_DST_PORT, &to.1.to_be_bytes()),
        ];
        let inner = [
            attribute(CTA_TUPLE_IP | NESTED, &addresses),
            attribute(CTA_TUPLE_PROTO | NESTED, &ports.concat()),
        ];
        attribute(kind | NESTED, &inner.concat())
    }

    const CLIENT: ([u8; 4], u16) = ([192, 168, 77, 10], 40000);
    const HOST: ([u8; 4], u16) = ([192, 168, 77, 1], 5353);
    const VM: ([u8; 4], u16) = ([192, 168, 64, 5], 53);

    fn entry() -> Vec<u8> {
        [
            tuple_of(CTA_TUPLE_ORIG, UDP, CLIENT, HOST),
            tuple_of(CTA_TUPLE_REPLY, UDP, VM, CLIENT),
            attribute(7, &[0, 0, 0, 30]),
            attribute(CTA_ID, &[1, 2, 3, 4]),
        ]
        .concat()
    }

    #[test]
    fn a_translated_flow_is_read_and_identified() {
        let flow = flow(&entry()).unwrap();
        assert_eq!((flow.original.destination, flow.original.destination_port), (HOST.0.into(), HOST.1));
        assert_eq!(
            (flow.reply.source, flow.reply.source_port, flow.reply.protocol),
            (VM.0.into(), VM.1, UDP)
        );
        let name = [tuple_of(CTA_TUPLE_ORIG, UDP, CLIENT, HOST), attribute(CTA_ID, &[1, 2, 3, 4])].concat();
        assert_eq!(flow.name, name);
        for end in [CLIENT, HOST, VM] {
            assert!(flow.has(end.0.into()));
        }
        assert!(!flow.has(Ipv4Addr::new(192, 168, 64, 6)));
    }

    #[test]
    fn an_entry_without_ports_is_read_too() {
        let ends = |from: [u8; 4], to: [u8; 4]| {
            let addresses = [attribute(CTA_IP_V4_SRC, &from), attribute(CTA_IP_V4_DST, &to)].concat();
            let esp = attribute(CTA_TUPLE_PROTO | NESTED, &attribute(CTA_PROTO_NUM, &[50]));
            [attribute(CTA_TUPLE_IP | NESTED, &addresses), esp].concat()
        };
        let original = attribute(CTA_TUPLE_ORIG | NESTED, &ends(VM.0, CLIENT.0));
        let entry = [original, attribute(CTA_TUPLE_REPLY | NESTED, &ends(CLIENT.0, HOST.0))].concat();
        let flow = flow(&entry).unwrap();
        assert_eq!((flow.original.protocol, flow.original.source_port), (50, 0));
    }

    #[test]
    fn truncated_entries_are_skipped() {
        let whole = entry();
        let tuples = tuple_of(CTA_TUPLE_ORIG, UDP, CLIENT, HOST).len()
            + tuple_of(CTA_TUPLE_REPLY, UDP, VM, CLIENT).len();
        for length in 0..tuples {
            assert_eq!(flow(&whole[..length]), None, "{length}");
        }
    }
}
