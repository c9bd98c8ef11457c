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

/// A segment with these flags, of a connection in which each side's first byte has the number 2.
pub fn segment_of(from: u16, to: u16, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = segment(from, to, 1, flags, data);
    segment[8..12].copy_from_slice(&2u32.to_be_bytes());
    segment
}

/// The frame with which the receiver of a whole IPv4 packet answers it; TCP with these flags.
pub fn answer(frame: &[u8], flags: u8) -> Option<Vec<u8>> {
    let mut answer = frame.to_vec();
    if answer.len() < 34 || answer[12..15] != [8, 0, 0x45] {
        return None;
    }
    let swap = |answer: &mut Vec<u8>, a: usize, b: usize, len: usize| {
        (0..len).for_each(|at| answer.swap(a + at, b + at));
    };
    swap(&mut answer, 0, 6, 6);
    swap(&mut answer, 26, 30, 4);
    match answer[23] {
        6 | 17 if answer.len() >= 42 => swap(&mut answer, 34, 36, 2),
        1 if answer.len() >= 42 && answer[34] == 8 => answer[34] = 0,
        _ => {}
    }
    if answer[23] == 6 && answer.len() >= 54 {
        answer[38..46].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 2]);
        answer[47] = flags;
    }
    fix(&mut answer);
    Some(answer)
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
