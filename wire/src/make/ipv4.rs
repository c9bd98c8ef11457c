//! IPv4 (RFC 791) and what it carries (RFC 768, 9293, 792) as bytes.

use core::net::Ipv4Addr;

use super::ethernet;
use crate::checksum::{self, Sum};
use crate::ethernet::{HEADER_LEN, IPV4, MacAddr};
use crate::ipv4::{self, DONT_FRAGMENT, MORE_FRAGMENTS, OFFSET};
use crate::transport::{ICMP, IGMP, TCP, TCP_HEADER_LEN, UDP, UDP_HEADER_LEN};

/// An IPv4 packet; [`Ipv4::new`] is right, each field can be made wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ipv4 {
    /// Source address.
    pub from: Ipv4Addr,
    /// Destination address.
    pub to: Ipv4Addr,
    /// Protocol number.
    pub protocol: u8,
    /// Time to live.
    pub ttl: u8,
    /// Identification.
    pub id: u16,
    /// Flags and offset as they are on the wire: 0x8000 reserved, 0x4000 DF, 0x2000 MF, then the offset in 8 bytes.
    pub fragment: u16,
    /// Options, padded by the caller to a multiple of 4.
    pub options: Vec<u8>,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// Instead of 4.
    pub version: u8,
    /// Instead of the right header length, in words.
    pub ihl: Option<u8>,
    /// Instead of the right total length.
    pub total_len: Option<u16>,
    /// Instead of the right header checksum.
    pub checksum: Option<u16>,
}

/// A segment that can stand behind an IPv4 header: protocol number and bytes.
pub type Transport = (u8, Vec<u8>);

impl Ipv4 {
    /// A right packet from one address to another.
    #[must_use]
    pub fn new(from: Ipv4Addr, to: Ipv4Addr, (protocol, payload): Transport) -> Self {
        Self {
            from,
            to,
            protocol,
            ttl: 64,
            id: 0x1234,
            fragment: DONT_FRAGMENT,
            options: Vec::new(),
            payload,
            version: 4,
            ihl: None,
            total_len: None,
            checksum: None,
        }
    }

    /// With the checksum of the UDP or ICMP that it carries, which is not cut into fragments, made right.
    #[must_use]
    pub fn with_checksum(mut self) -> Self {
        if self.fragment & (MORE_FRAGMENTS | OFFSET) == 0 {
            fix_transport(self.from, self.to, self.protocol, &mut self.payload);
        }
        self
    }

    /// The packet without a frame around it.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let header_len = ipv4::HEADER_LEN + self.options.len();
        let words = self.ihl.unwrap_or((header_len / 4) as u8);
        let total = self.total_len.unwrap_or((header_len + self.payload.len()) as u16);
        let mut bytes = vec![self.version << 4 | words & 0x0f, 0];
        bytes.extend(total.to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.from.octets());
        bytes.extend(self.to.octets());
        bytes.extend(&self.options);
        let sum = self.checksum.unwrap_or_else(|| checksum(&[&bytes]));
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(&self.payload);
        bytes
    }

    /// In a frame between these two.
    #[must_use]
    pub fn frame(&self, to: impl Into<MacAddr>, from: impl Into<MacAddr>) -> Vec<u8> {
        ethernet(to, from, IPV4, &self.bytes())
    }
}

/// The checksum over pieces one after another.
#[must_use]
pub fn checksum(pieces: &[&[u8]]) -> u16 {
    let add =
        |(at, sum): (usize, Sum), piece: &&[u8]| (at + piece.len(), sum.followed_by(at, Sum::of(piece)));
    pieces.iter().fold((0, Sum::ZERO), add).1.finish()
}

fn with_pseudo_header(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, segment: &[u8]) -> u16 {
    let len = (segment.len() as u16).to_be_bytes();
    checksum(&[&from.octets(), &to.octets(), &[0, protocol], &len, segment])
}

/// A UDP datagram with the right length and without a checksum.
#[must_use]
pub fn datagram(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(UDP_HEADER_LEN + payload.len());
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend(((UDP_HEADER_LEN + payload.len()) as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// A TCP segment without options and without a checksum.
#[must_use]
pub fn segment(from: u16, to: u16, sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(TCP_HEADER_LEN + payload.len());
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(0x0102_0304u32.to_be_bytes());
    bytes.extend([5 << 4, flags]);
    bytes.extend(4096u16.to_be_bytes());
    bytes.extend([0, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

/// A UDP datagram with the right length and checksum; the pairs are address and port.
#[must_use]
pub fn udp(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Transport {
    let mut bytes = datagram(from.1, to.1, payload);
    let sum = checksum::udp(from.0.octets(), to.0.octets(), &bytes).finish_udp();
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    (UDP, bytes)
}

/// A TCP segment without options: `flags` as on the wire (0x02 SYN, 0x10 ACK, 0x08 PSH).
#[must_use]
pub fn tcp(
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
    sequence: u32,
    flags: u8,
    payload: &[u8],
) -> Transport {
    let mut bytes = segment(from.1, to.1, sequence, flags, payload);
    let sum = with_pseudo_header(from.0, to.0, TCP, &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    (TCP, bytes)
}

/// An ICMP message with the right checksum: type, code, and everything behind the checksum.
#[must_use]
pub fn icmp(kind: u8, code: u8, rest: &[u8]) -> Transport {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    let sum = checksum(&[&bytes]);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    (ICMP, bytes)
}

/// An IGMP message with the right checksum: type, and everything behind the checksum.
#[must_use]
pub fn igmp(kind: u8, rest: &[u8]) -> Transport {
    (IGMP, icmp(kind, 0, rest).1)
}

/// Makes the checksums of a frame right again as far as its lengths allow: the IPv4 header's, and UDP's, ICMP's or IGMP's.
pub fn fix(frame: &mut [u8]) {
    if frame.get(12..HEADER_LEN) == Some(&IPV4.to_be_bytes()) {
        fix_packet(&mut frame[HEADER_LEN..]);
    }
}

/// Corrects the header checksum of a packet whose header length is right.
pub fn fix_header(packet: &mut [u8]) {
    let len = (usize::from(packet[0] & 0x0f) * 4).min(packet.len());
    packet[10..12].fill(0);
    let sum = Sum::of(&packet[..len]).finish();
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

fn fix_packet(packet: &mut [u8]) {
    if packet.len() < ipv4::HEADER_LEN {
        return;
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    if header < ipv4::HEADER_LEN || header > total || total > packet.len() {
        return;
    }
    fix_header(packet);
    let fragment = u16::from_be_bytes([packet[6], packet[7]]);
    if fragment & (MORE_FRAGMENTS | OFFSET) != 0 {
        return;
    }
    let (head, payload) = packet[..total].split_at_mut(header);
    let [.., a, b, c, d, e, f, g, h] = head[..ipv4::HEADER_LEN] else { return };
    fix_transport([a, b, c, d].into(), [e, f, g, h].into(), head[9], payload);
}

fn fix_transport(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &mut [u8]) {
    let at = match protocol {
        UDP => 6,
        ICMP | IGMP => 2,
        _ => return,
    };
    if payload.len() < UDP_HEADER_LEN {
        return;
    }
    payload[at..at + 2].fill(0);
    let sum = match protocol {
        UDP => checksum::udp(from.octets(), to.octets(), payload).finish_udp(),
        _ => Sum::of(payload).finish(),
    };
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn a_right_header_sums_to_zero() {
        let bytes = Ipv4::new(A, B, udp((A, 1), (B, 2), b"odd")).bytes();
        assert_eq!(checksum(&[&bytes[..20]]), 0);
        assert_eq!(with_pseudo_header(A, B, 17, &bytes[20..]), 0);
    }

    #[test]
    fn tcp_and_icmp_sum_to_zero() {
        let (_, segment) = tcp((A, 1), (B, 2), 7, 0x18, b"data");
        assert_eq!(with_pseudo_header(A, B, 6, &segment), 0);
        let (_, message) = icmp(8, 0, &[0, 1, 0, 2, 9]);
        assert_eq!(checksum(&[&message]), 0);
    }

    #[test]
    fn checksums_are_fixed() {
        for transport in [udp((A, 1), (B, 2), b"odd"), icmp(8, 0, &[0, 1, 0, 2, 9])] {
            let right = Ipv4::new(A, B, transport).frame(MacAddr::BROADCAST, MacAddr::ZERO);
            let mut frame = right.clone();
            let at = if frame[23] == UDP { 40 } else { 36 };
            frame[24] ^= 1;
            frame[at] ^= 1;
            assert_ne!(frame, right);
            fix(&mut frame);
            assert_eq!(frame, right);
            for len in 0..right.len() {
                fix(&mut frame[..len]);
            }
        }
    }

    #[test]
    fn overrides_reach_the_wire() {
        let wrong =
            Ipv4 { ihl: Some(4), total_len: Some(9), checksum: Some(0xdead), ..Ipv4::new(A, B, (1, vec![])) };
        let bytes = wrong.bytes();
        assert_eq!((bytes[0], &bytes[2..4], &bytes[10..12]), (0x44, &[0, 9][..], &[0xde, 0xad][..]));
    }
}
