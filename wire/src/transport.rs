//! What an IP packet carries, whatever its version: UDP (RFC 768), TCP (RFC 9293) and ICMP, as far as their headers go.

/// The protocol number of ICMP for IPv4.
pub const ICMP: u8 = 1;
/// The protocol number of IGMP.
pub const IGMP: u8 = 2;
/// The protocol number of TCP.
pub const TCP: u8 = 6;
/// The protocol number of UDP.
pub const UDP: u8 = 17;

/// Bytes of a UDP header.
pub const UDP_HEADER_LEN: usize = 8;
/// Bytes of a TCP header without options.
pub const TCP_HEADER_LEN: usize = 20;

/// The control bits of TCP (RFC 9293, section 3.1).
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// The sender's first sequence number.
    pub const SYN: u8 = 0x02;
    /// The connection does not exist.
    pub const RST: u8 = 0x04;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// How much of a transport header the packet's payload may be expected to hold.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Not a fragment: everything that the protocol sent.
    Whole(&'a [u8]),
    /// The first fragment: begins with a transport header.
    First(&'a [u8]),
    /// A later fragment. It has no transport header, and none of its bytes may be read as one.
    Later,
}

/// The ports of a UDP datagram or of its first fragment, with a complete header and a consistent length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Udp {
    /// The source port.
    pub source_port: u16,
    /// The destination port.
    pub destination_port: u16,
}

/// A TCP segment or its first fragment, with a complete header. Fields are read only when needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp<'a> {
    header: &'a [u8; TCP_HEADER_LEN],
    data_len: usize,
}

impl Tcp<'_> {
    /// The source port.
    #[inline(always)]
    pub fn source_port(&self) -> u16 {
        u16::from_be_bytes([self.header[0], self.header[1]])
    }

    /// The destination port.
    #[inline(always)]
    pub fn destination_port(&self) -> u16 {
        u16::from_be_bytes([self.header[2], self.header[3]])
    }

    /// The number of the first byte.
    #[inline(always)]
    pub fn sequence(&self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = *self.header;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The number of the next byte that the sender expects, if the segment has [`flag::ACK`].
    #[inline(always)]
    pub fn acknowledgement(&self) -> u32 {
        let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = *self.header;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The control bits, see [`flag`].
    #[inline(always)]
    pub fn flags(&self) -> u8 {
        self.header[13]
    }

    /// Whether the segment begins or ends a connection: whether it has SYN, FIN or RST.
    #[inline(always)]
    pub fn begins_or_ends(&self) -> bool {
        self.flags() & (flag::SYN | flag::FIN | flag::RST) != 0
    }

    /// The number behind the last byte. SYN and FIN count as one each (RFC 9293, section 3.4).
    #[inline(always)]
    pub fn sequence_end(&self) -> u32 {
        let flags = self.flags();
        let controls = u32::from(flags >> 1 & 1).wrapping_add(u32::from(flags & flag::FIN));
        self.sequence().wrapping_add(self.data_len as u32).wrapping_add(controls)
    }
}

/// The transport header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport<'a> {
    /// TCP with a complete header.
    Tcp(Tcp<'a>),
    /// UDP with a complete header and a consistent length.
    Udp(Udp),
    /// The ICMP message, or the part of it in the first fragment.
    Icmp(&'a [u8]),
    /// Another protocol, or a later fragment of any.
    Opaque,
}

/// Why a transport header cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer than 8 bytes of UDP.
    UdpHeader,
    /// Fewer bytes of TCP than the shortest header, or than this header's length field says.
    TcpHeader,
    /// Fewer than 8 bytes of ICMP.
    IcmpHeader,
    /// A first fragment that does not hold the whole header (RFC 1858).
    FragmentHeader,
    /// The length of a UDP datagram is not that of the payload; in a first fragment, not more than that.
    UdpLength,
}

impl<'a> Transport<'a> {
    /// The source and the destination port, if the protocol has ports.
    #[inline(always)]
    pub fn ports(&self) -> Option<(u16, u16)> {
        match *self {
            Self::Tcp(tcp) => Some((tcp.source_port(), tcp.destination_port())),
            Self::Udp(Udp { source_port, destination_port }) => Some((source_port, destination_port)),
            Self::Icmp(_) | Self::Opaque => None,
        }
    }

    /// The source port, if the protocol has ports.
    #[inline]
    pub fn source_port(&self) -> Option<u16> {
        match *self {
            Self::Tcp(tcp) => Some(tcp.source_port()),
            Self::Udp(Udp { source_port, .. }) => Some(source_port),
            Self::Icmp(_) | Self::Opaque => None,
        }
    }

    /// The destination port, if the protocol has ports.
    #[inline]
    pub fn destination_port(&self) -> Option<u16> {
        match *self {
            Self::Tcp(tcp) => Some(tcp.destination_port()),
            Self::Udp(Udp { destination_port, .. }) => Some(destination_port),
            Self::Icmp(_) | Self::Opaque => None,
        }
    }

    /// Reads the header that `part` of a packet of `protocol` holds.
    #[inline(always)]
    pub fn parse(protocol: u8, part: Part<'a>) -> Result<Self, Malformed> {
        let (payload, whole) = match part {
            Part::Whole(payload) => (payload, true),
            Part::First(payload) => (payload, false),
            Part::Later => return Ok(Self::Opaque),
        };
        let truncated = |reason| if whole { reason } else { Malformed::FragmentHeader };
        match protocol {
            UDP => {
                let Some(&[s0, s1, d0, d1, l0, l1, _, _]) = payload.first_chunk::<UDP_HEADER_LEN>() else {
                    return Err(truncated(Malformed::UdpHeader));
                };
                // The first fragment holds less than the whole datagram.
                let len = usize::from(u16::from_be_bytes([l0, l1]));
                if (whole && len != payload.len()) || (!whole && len <= payload.len()) {
                    return Err(Malformed::UdpLength);
                }
                Ok(Self::Udp(Udp {
                    source_port: u16::from_be_bytes([s0, s1]),
                    destination_port: u16::from_be_bytes([d0, d1]),
                }))
            }
            TCP => {
                // RFC 1858: the first fragment must hold the flags, and here the whole header.
                let Some(header) = payload.first_chunk::<TCP_HEADER_LEN>() else {
                    return Err(truncated(Malformed::TcpHeader));
                };
                let header_len = usize::from(header[12] >> 4).wrapping_mul(4);
                if header_len < TCP_HEADER_LEN || header_len > payload.len() {
                    return Err(truncated(Malformed::TcpHeader));
                }
                Ok(Self::Tcp(Tcp { header, data_len: payload.len().wrapping_sub(header_len) }))
            }
            ICMP if payload.len() < 8 => Err(truncated(Malformed::IcmpHeader)),
            ICMP => Ok(Self::Icmp(payload)),
            _ => Ok(Self::Opaque),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM: [u8; 9] = [0x03, 0xe8, 0, 80, 0, 9, 0, 0, b'x'];
    #[rustfmt::skip]
    const SEGMENT: [u8; 20] = [0x03, 0xe8, 0, 80, 0, 0, 0, 1, 2, 3, 4, 5, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];

    #[test]
    fn reads_udp() {
        let udp = Transport::Udp(Udp { source_port: 1000, destination_port: 80 });
        assert_eq!(Transport::parse(UDP, Part::Whole(&DATAGRAM)), Ok(udp));
        assert_eq!(udp.destination_port(), Some(80));
        assert_eq!(Transport::parse(UDP, Part::First(&DATAGRAM[..8])), Ok(udp));
        assert_eq!(Transport::parse(UDP, Part::First(&DATAGRAM)), Err(Malformed::UdpLength));
        assert_eq!(Transport::parse(UDP, Part::Whole(&DATAGRAM[..8])), Err(Malformed::UdpLength));
        assert_eq!(Transport::parse(UDP, Part::Whole(&DATAGRAM[..7])), Err(Malformed::UdpHeader));
        assert_eq!(Transport::parse(UDP, Part::First(&DATAGRAM[..7])), Err(Malformed::FragmentHeader));
    }

    #[test]
    fn reads_tcp() {
        let parsed = Transport::parse(TCP, Part::Whole(&SEGMENT)).unwrap();
        assert_eq!(parsed.destination_port(), Some(80));
        let Transport::Tcp(tcp) = parsed else { panic!("{parsed:?}") };
        assert_eq!((tcp.source_port(), tcp.destination_port(), tcp.flags()), (1000, 80, flag::SYN));
        assert_eq!((tcp.sequence(), tcp.acknowledgement(), tcp.sequence_end()), (1, 0x0203_0405, 2));
        assert_eq!(Transport::parse(TCP, Part::Whole(&SEGMENT[..19])), Err(Malformed::TcpHeader));
        for offset in [4 << 4, 6 << 4] {
            let mut segment = SEGMENT;
            segment[12] = offset;
            assert_eq!(Transport::parse(TCP, Part::Whole(&segment)), Err(Malformed::TcpHeader));
            assert_eq!(Transport::parse(TCP, Part::First(&segment)), Err(Malformed::FragmentHeader));
        }
    }

    #[test]
    fn a_segment_ends_behind_its_data_and_its_controls() {
        for (flags, header_len, len, expected) in [
            (0, 20, 20, 0xffff_fffe),
            (flag::ACK, 20, 21, 0xffff_ffff),
            (flag::SYN, 20, 20, 0xffff_ffff),
            (flag::FIN | flag::ACK, 20, 20, 0xffff_ffff),
            (flag::SYN | flag::FIN, 20, 20, 0),
            (flag::FIN, 24, 30, 5),
            (flag::RST | flag::ACK, 24, 24, 0xffff_fffe),
            (0xff, 60, 60, 0),
        ] {
            let mut segment = [&SEGMENT[..], &[0; 40]].concat();
            segment[4..8].copy_from_slice(&0xffff_fffe_u32.to_be_bytes());
            (segment[12], segment[13]) = (header_len << 2, flags);
            let parsed = Transport::parse(TCP, Part::Whole(&segment[..len]));
            let Ok(Transport::Tcp(tcp)) = parsed else { panic!("{parsed:?}") };
            assert_eq!(tcp.sequence_end(), expected, "{flags:#x}, {len} bytes");
        }
    }

    #[test]
    fn reads_icmp_and_leaves_the_rest_alone() {
        let echo = [8, 0, 0, 0, 0, 1, 0, 1];
        assert_eq!(Transport::parse(ICMP, Part::Whole(&echo)), Ok(Transport::Icmp(&echo)));
        assert_eq!(Transport::parse(ICMP, Part::Whole(&echo[..7])), Err(Malformed::IcmpHeader));
        assert_eq!(Transport::Icmp(&echo).destination_port(), None);
        assert_eq!(Transport::parse(UDP, Part::Later), Ok(Transport::Opaque));
        assert_eq!(Transport::parse(254, Part::Whole(&[])), Ok(Transport::Opaque));
    }
}
