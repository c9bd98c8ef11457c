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

/// The transport header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport<'a> {
    /// TCP with a complete header.
    Tcp {
        /// The destination port.
        destination_port: u16,
    },
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
    /// The destination port, if the protocol has ports.
    #[inline]
    pub fn destination_port(&self) -> Option<u16> {
        match *self {
            Self::Tcp { destination_port } | Self::Udp(Udp { destination_port, .. }) => {
                Some(destination_port)
            }
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
                let Some(&[_, _, d0, d1, _, _, _, _, _, _, _, _, offset, ..]) =
                    payload.first_chunk::<TCP_HEADER_LEN>()
                else {
                    return Err(truncated(Malformed::TcpHeader));
                };
                let header_len = usize::from(offset >> 4).wrapping_mul(4);
                if header_len < TCP_HEADER_LEN || header_len > payload.len() {
                    return Err(truncated(Malformed::TcpHeader));
                }
                Ok(Self::Tcp { destination_port: u16::from_be_bytes([d0, d1]) })
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
    const SEGMENT: [u8; 20] = [0x03, 0xe8, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0];

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
        let tcp = Transport::Tcp { destination_port: 80 };
        assert_eq!(Transport::parse(TCP, Part::Whole(&SEGMENT)), Ok(tcp));
        assert_eq!(tcp.destination_port(), Some(80));
        assert_eq!(Transport::parse(TCP, Part::Whole(&SEGMENT[..19])), Err(Malformed::TcpHeader));
        for offset in [4 << 4, 6 << 4] {
            let mut segment = SEGMENT;
            segment[12] = offset;
            assert_eq!(Transport::parse(TCP, Part::Whole(&segment)), Err(Malformed::TcpHeader));
            assert_eq!(Transport::parse(TCP, Part::First(&segment)), Err(Malformed::FragmentHeader));
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
