//! Building frames, right by default; every field can be made wrong.

use std::net::Ipv4Addr;

use crate::oracle::packet::{ICMP, UDP, sum16};

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;

pub fn ethernet(destination: [u8; 6], source: [u8; 6], ether_type: u16, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + body.len());
    frame.extend(destination);
    frame.extend(source);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(body);
    frame
}

pub fn arp(operation: u16, sender_mac: [u8; 6], sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend(operation.to_be_bytes());
    body.extend(sender_mac);
    body.extend(sender.octets());
    body.extend([0; 6]);
    body.extend(target.octets());
    body
}

/// The fields of an IPv4 header that are not always the same.
#[derive(Debug, Clone)]
pub struct Header {
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub protocol: u8,
    pub time_to_live: u8,
    /// Flags and offset as they stand in the header.
    pub fragment: u16,
}

pub fn ipv4(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend((20 + payload.len() as u16).to_be_bytes());
    packet.extend([0x12, 0x34]);
    packet.extend(header.fragment.to_be_bytes());
    packet.extend([header.time_to_live, header.protocol, 0, 0]);
    packet.extend(header.source.octets());
    packet.extend(header.destination.octets());
    packet.extend(payload);
    repair_ipv4(&mut packet);
    packet
}

/// A UDP datagram; its checksum is made when the packet is.
pub fn udp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(8 + data.len());
    datagram.extend(from.to_be_bytes());
    datagram.extend(to.to_be_bytes());
    datagram.extend((8 + data.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    datagram
}

pub fn tcp(from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(data);
    segment
}

pub fn icmp(kind: u8, code: u8, data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(data);
    message
}

/// What an ICMP error quotes: the header and 8 bytes of a UDP packet.
pub fn quote(source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
    let header = Header { source, destination, protocol: UDP, time_to_live: 3, fragment: 0 };
    ipv4(&header, &udp(53, 4000, &[]))
}

/// A BOOTP message with the cookie and options.
#[derive(Debug, Clone)]
pub struct Bootp {
    pub op: u8,
    pub xid: u32,
    pub client: Ipv4Addr,
    pub yours: Ipv4Addr,
    pub mac: [u8; 6],
    pub options: Vec<(u8, Vec<u8>)>,
}

impl Bootp {
    pub fn bytes(&self) -> Vec<u8> {
        let mut message = vec![self.op, 1, 6, 0];
        message.extend(self.xid.to_be_bytes());
        message.extend([0; 4]);
        message.extend(self.client.octets());
        message.extend(self.yours.octets());
        message.extend([0; 8]);
        message.extend(self.mac);
        message.extend([0; 10 + 192]);
        message.extend([99, 130, 83, 99]);
        for (code, value) in &self.options {
            message.extend([*code, value.len() as u8]);
            message.extend(value);
        }
        message.push(255);
        message
    }
}

/// Makes the checksums of a frame right again as far as its lengths allow: the IPv4 header's, and UDP's or ICMP's.
pub fn repair(frame: &mut [u8]) {
    if frame.len() >= 14 && frame[12..14] == [8, 0] {
        repair_ipv4(&mut frame[14..]);
    }
}

/// Puts 4-byte words of options into the header of a whole IPv4 packet that has none.
pub fn insert_options(frame: &mut Vec<u8>, words: usize) {
    if frame.len() < 34 || frame[12..15] != [8, 0, 0x45] {
        return;
    }
    let total = u16::from_be_bytes([frame[16], frame[17]]).saturating_add(4 * words as u16);
    frame[14] += words as u8;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame.splice(34..34, vec![1; 4 * words]);
    repair(frame);
}

fn repair_ipv4(packet: &mut [u8]) {
    if packet.len() < 20 {
        return;
    }
    let header = usize::from(packet[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if header < 20 || header > total || total > packet.len() {
        return;
    }
    packet[10..12].fill(0);
    let sum = !sum16(&packet[..header]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());

    let protocol = packet[9];
    let is_fragment = packet[6] & 0x3f != 0 || packet[7] != 0;
    let mut pseudo = packet[12..20].to_vec();
    let payload = &mut packet[header..total];
    let at = match protocol {
        UDP => 6,
        ICMP => 2,
        _ => return,
    };
    if is_fragment || payload.len() < 8 {
        return;
    }
    payload[at..at + 2].fill(0);
    let mut sum = if protocol == UDP {
        pseudo.extend([0, UDP]);
        pseudo.extend((payload.len() as u16).to_be_bytes());
        pseudo.extend(&*payload);
        !sum16(&pseudo)
    } else {
        !sum16(payload)
    };
    if protocol == UDP && sum == 0 {
        sum = 0xffff;
    }
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}
