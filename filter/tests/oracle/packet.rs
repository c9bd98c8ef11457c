//! Reading frames the slow way: every field by its offset, every length checked where it is used.

use std::net::Ipv4Addr;

/// An Ethernet frame, split at its header.
pub struct Ethernet<'a> {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ether_type: u16,
    pub body: &'a [u8],
    /// The length of the whole frame.
    pub length: usize,
}

impl<'a> Ethernet<'a> {
    pub fn read(frame: &'a [u8]) -> Option<Self> {
        Some(Self {
            destination: octets(frame, 0)?,
            source: octets(frame, 6)?,
            ether_type: number16(frame, 12)?,
            body: &frame[14..],
            length: frame.len(),
        })
    }

    pub fn is_broadcast(&self) -> bool {
        self.destination == [0xff; 6]
    }

    /// For a group of stations, all of them included.
    pub fn is_group(&self) -> bool {
        self.destination[0] & 1 == 1
    }
}

/// An ARP body that is long enough for IPv4 over Ethernet.
pub struct Arp {
    pub hardware_type: u16,
    pub protocol_type: u16,
    pub hardware_length: u8,
    pub protocol_length: u8,
    pub operation: u16,
    pub sender_mac: [u8; 6],
    pub sender: Ipv4Addr,
    pub target: Ipv4Addr,
}

impl Arp {
    pub const LENGTH: usize = 28;

    pub fn read(body: &[u8]) -> Option<Self> {
        if body.len() < Self::LENGTH {
            return None;
        }
        Some(Self {
            hardware_type: number16(body, 0)?,
            protocol_type: number16(body, 2)?,
            hardware_length: body[4],
            protocol_length: body[5],
            operation: number16(body, 6)?,
            sender_mac: octets(body, 8)?,
            sender: address(body, 14)?,
            target: address(body, 24)?,
        })
    }
}

/// An IPv4 packet: the header's fields as they stand, right or wrong.
pub struct Ipv4<'a> {
    pub version: u8,
    /// Bytes of the header as it says itself.
    pub header_length: usize,
    /// Bytes of the packet as the header says.
    pub total_length: usize,
    pub identification: u16,
    pub reserved_flag: bool,
    pub dont_fragment: bool,
    pub more_fragments: bool,
    /// Where the payload begins in the unfragmented one, in units of 8 bytes.
    pub offset: usize,
    pub time_to_live: u8,
    pub protocol: u8,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    /// Whether version, lengths and checksum of the header are right.
    pub header_is_right: bool,
    /// What is behind the first 20 bytes of the header; empty if the lengths are wrong.
    pub options: &'a [u8],
    /// What is behind the header; empty if the lengths are wrong.
    pub payload: &'a [u8],
    /// What is behind the packet in the frame.
    pub trailer: &'a [u8],
}

impl<'a> Ipv4<'a> {
    /// `None` for less than the 20 bytes of the shortest header.
    pub fn read(body: &'a [u8]) -> Option<Self> {
        if body.len() < 20 {
            return None;
        }
        let version = body[0] >> 4;
        let header_length = usize::from(body[0] & 15) * 4;
        let total_length = usize::from(number16(body, 2)?);
        let flags = number16(body, 6)?;
        let lengths_are_right =
            header_length >= 20 && total_length >= header_length && total_length <= body.len();
        let (options, payload, trailer) = if lengths_are_right {
            (&body[20..header_length], &body[header_length..total_length], &body[total_length..])
        } else {
            (&body[..0], &body[..0], &body[..0])
        };
        Some(Self {
            version,
            header_length,
            total_length,
            identification: number16(body, 4)?,
            reserved_flag: flags & 0x8000 != 0,
            dont_fragment: flags & 0x4000 != 0,
            more_fragments: flags & 0x2000 != 0,
            offset: usize::from(flags & 0x1fff),
            time_to_live: body[8],
            protocol: body[9],
            source: address(body, 12)?,
            destination: address(body, 16)?,
            header_is_right: version == 4 && lengths_are_right && sum16(&body[..header_length]) == 0xffff,
            options,
            payload,
            trailer,
        })
    }

    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.offset > 0
    }

    /// The ports, if the packet is UDP or TCP and holds them.
    pub fn ports(&self) -> Option<(u16, u16)> {
        if self.offset > 0 || !matches!(self.protocol, TCP | UDP) {
            return None;
        }
        Some((number16(self.payload, 0)?, number16(self.payload, 2)?))
    }

    pub fn udp_ports(&self) -> Option<(u16, u16)> {
        self.ports().filter(|_| self.protocol == UDP)
    }
}

pub const ICMP: u8 = 1;
pub const IGMP: u8 = 2;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// What a UDP checksum says (RFC 768).
#[derive(PartialEq)]
pub enum UdpChecksum {
    Right,
    Wrong,
    /// Zero: the sender made none.
    Absent,
}

/// The checksum over the pseudo header and the `length` bytes of a UDP datagram.
pub fn udp_checksum(ip: &Ipv4<'_>, datagram: &[u8]) -> UdpChecksum {
    if number16(datagram, 6) == Some(0) {
        return UdpChecksum::Absent;
    }
    let mut all = Vec::new();
    all.extend(ip.source.octets());
    all.extend(ip.destination.octets());
    all.extend([0, UDP]);
    all.extend((datagram.len() as u16).to_be_bytes());
    all.extend(datagram);
    if sum16(&all) == 0xffff { UdpChecksum::Right } else { UdpChecksum::Wrong }
}

/// The ones' complement sum of 16-bit words (RFC 1071); an odd byte at the end is a word with a zero.
pub fn sum16(bytes: &[u8]) -> u16 {
    let mut sum = 0u64;
    for word in bytes.chunks(2) {
        sum += u64::from(word[0]) * 256 + u64::from(word.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = sum / 0x1_0000 + sum % 0x1_0000;
    }
    sum as u16
}

pub fn octets<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

pub fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    octets(bytes, at).map(u16::from_be_bytes)
}

pub fn address(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    octets::<4>(bytes, at).map(Ipv4Addr::from)
}
