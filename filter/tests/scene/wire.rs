//! What the scenes' frames are made of: [`softnet_wire::make`], and a few things in shorter words.

use std::net::Ipv4Addr;

pub use softnet_wire::ethernet::{ARP, IPV4};
pub use softnet_wire::make::{Arp, Dhcp, Ipv4, datagram as udp, ethernet, fix};

use softnet_wire::make::{icmp as message, igmp as report, segment};

use crate::oracle::packet::UDP;

/// A whole packet; the checksum of what it carries is made right, if it has one and is not a fragment.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let packet = Ipv4::new(source, destination, (protocol, payload.to_vec()));
    Ipv4 { fragment: 0, ..packet }.with_checksum().bytes()
}

/// A SYN.
pub fn tcp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    segment(from, to, 1, 0x02, data)
}

/// A message with a header of zeros behind its checksum.
pub fn icmp(kind: u8, code: u8, data: &[u8]) -> Vec<u8> {
    message(kind, code, &[&[0; 4], data].concat()).1
}

/// A host's message about a group, of the version that the type belongs to.
pub fn igmp(kind: u8, group: Ipv4Addr) -> Vec<u8> {
    let group = group.octets();
    let record = [&[0, 0, 0, 1, 4, 0, 0, 0], &group[..]].concat();
    report(kind, if kind == 0x22 { &record } else { &group }).1
}

/// What an ICMP error quotes: the header and 8 bytes of a UDP packet.
pub fn quote(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    ipv4(source, destination, UDP, &udp(53, 4000, &[]))
}

/// A BOOTP message with the cookie and options.
pub fn bootp(op: u8, xid: u32, mac: [u8; 6], options: Vec<(u8, Vec<u8>)>) -> Dhcp {
    Dhcp { op, options, ..Dhcp::client(0, xid, mac.into()) }
}

/// Puts options of whole 4-byte words into the header of a whole IPv4 packet that has none.
pub fn insert_options(frame: &mut Vec<u8>, options: &[u8]) {
    if frame.len() < 34 || frame[12..15] != [8, 0, 0x45] {
        return;
    }
    let total = u16::from_be_bytes([frame[16], frame[17]]).saturating_add(options.len() as u16);
    frame[14] += (options.len() / 4) as u8;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame.splice(34..34, options.iter().copied());
    fix(frame);
}
