//! The Internet protocol (RFC 791) and the headers behind it as far as they are judged: the rules S.

use core::net::Ipv4Addr;

use crate::checksum;
use crate::verdict::DropReason;

/// Protocol numbers (IANA).
pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

/// Bytes of a header without options.
pub(crate) const HEADER_LEN: usize = 20;

const RESERVED: u16 = 0x8000;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// An IPv4 packet whose lengths fit into each other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) part: Part<'a>,
    /// Bytes of header and payload.
    pub(crate) len: usize,
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    /// The flags and the fragment offset as they are in the header.
    fragment: u16,
}

/// How much of a transport header the packet's payload may be expected to hold.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part<'a> {
    /// Not a fragment: the whole of what the protocol sent.
    Whole(&'a [u8]),
    /// The first fragment: begins with a transport header.
    First(&'a [u8]),
    /// A later fragment. It holds no transport header, and nothing of it is to be read as one.
    Later,
}

impl<'a> Packet<'a> {
    /// `None` if this is not version 4 or the lengths do not fit (S2).
    #[inline(always)]
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<HEADER_LEN>()?;
        let [version_ihl, _, l0, l1, _, _, f0, f1, _, protocol, _, _, s0, s1, s2, s3, d0, d1, d2, d3] =
            *header;
        let len = usize::from(u16::from_be_bytes([l0, l1]));
        let header_len = match version_ihl {
            0x45 => HEADER_LEN,
            0x46..=0x4f => usize::from(version_ihl & 0x0f).wrapping_mul(4),
            _ => return None,
        };
        let packet = bytes.get(..len)?;
        let payload = packet.get(header_len..)?;
        let fragment = u16::from_be_bytes([f0, f1]);
        Some(Self {
            source: Ipv4Addr::new(s0, s1, s2, s3),
            destination: Ipv4Addr::new(d0, d1, d2, d3),
            protocol,
            part: if fragment & (MORE_FRAGMENTS | OFFSET) == 0 {
                Part::Whole(payload)
            } else if fragment & OFFSET == 0 {
                Part::First(payload)
            } else {
                Part::Later
            },
            len,
            header,
            options: packet.get(HEADER_LEN..header_len)?,
            fragment,
        })
    }

    /// Whether this is a fragment, first or later.
    pub(crate) fn is_fragment(&self) -> bool {
        !matches!(self.part, Part::Whole(_))
    }

    /// Whether the header checksum is right.
    pub(crate) fn is_checksum_valid(&self) -> bool {
        if self.options.is_empty() {
            checksum::is_header_valid(self.header)
        } else {
            checksum::Sum::default().add(self.header).add(self.options).is_valid()
        }
    }

    /// Judges the header of a packet of the VM by itself: the rules S2 to S4 without the transport headers.
    #[inline(always)]
    pub(crate) fn judge_header(&self) -> Result<(), DropReason> {
        // S3
        if !self.options.is_empty() {
            return Err(DropReason::Ipv4Options);
        }
        // S2
        if !checksum::is_header_valid(self.header) {
            return Err(DropReason::Ipv4Checksum);
        }
        let [_, _, _, _, _, _, _, _, ttl, ..] = *self.header;
        if ttl == 0 {
            return Err(DropReason::TtlZero);
        }
        if self.fragment & RESERVED != 0 {
            return Err(DropReason::ReservedFlag);
        }
        if self.is_fragment() { self.judge_fragment() } else { Ok(()) }
    }

    /// S4, what can be told from the header.
    #[cold]
    fn judge_fragment(&self) -> Result<(), DropReason> {
        let payload_len = self.len.saturating_sub(HEADER_LEN);
        let offset = usize::from(self.fragment & OFFSET);
        let more = self.fragment & MORE_FRAGMENTS != 0;
        // The reassembled packet would be longer than a packet can be (the "ping of death"). Its header counts too.
        if offset.saturating_mul(8).saturating_add(self.len) > usize::from(u16::MAX) {
            return Err(DropReason::FragmentBeyondEnd);
        }
        if more && self.fragment & DONT_FRAGMENT != 0 {
            return Err(DropReason::FragmentDontFragment);
        }
        if payload_len == 0 || (more && !payload_len.is_multiple_of(8)) {
            return Err(DropReason::FragmentLength);
        }
        // RFC 3128: it would overwrite the flags behind the ports of the first fragment.
        if self.protocol == TCP && offset == 1 {
            return Err(DropReason::FragmentOffset);
        }
        Ok(())
    }
}

/// The ports of a UDP datagram or of its first fragment, whose header is whole and whose length fits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Udp {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
}

/// The transport header of a packet of the VM, judged by rule S5 (or S4 for a first fragment).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Transport<'a> {
    Tcp {
        destination_port: u16,
    },
    Udp(Udp),
    /// The whole ICMP message, or what of it the first fragment holds.
    Icmp(&'a [u8]),
    /// Another protocol, or a later fragment of any.
    Opaque,
}

/// Bytes of a UDP header (RFC 768).
pub(crate) const UDP_HEADER_LEN: usize = 8;

impl<'a> Transport<'a> {
    #[inline(always)]
    pub(crate) fn parse(packet: &Packet<'a>) -> Result<Self, DropReason> {
        let (payload, whole) = match packet.part {
            Part::Whole(payload) => (payload, true),
            Part::First(payload) => (payload, false),
            Part::Later => return Ok(Self::Opaque),
        };
        let truncated = |reason| if whole { reason } else { DropReason::FragmentHeader };
        match packet.protocol {
            UDP => {
                let Some(&[s0, s1, d0, d1, l0, l1, _, _]) = payload.first_chunk::<UDP_HEADER_LEN>() else {
                    return Err(truncated(DropReason::UdpHeader));
                };
                // The first fragment holds less than the whole datagram.
                let len = usize::from(u16::from_be_bytes([l0, l1]));
                if (whole && len != payload.len()) || (!whole && len <= payload.len()) {
                    return Err(DropReason::UdpLength);
                }
                Ok(Self::Udp(Udp {
                    source_port: u16::from_be_bytes([s0, s1]),
                    destination_port: u16::from_be_bytes([d0, d1]),
                }))
            }
            TCP => {
                // RFC 1858: the first fragment must hold the flags, and here the whole header.
                let Some(&[_, _, d0, d1, _, _, _, _, _, _, _, _, offset, ..]) = payload.first_chunk::<20>()
                else {
                    return Err(truncated(DropReason::TcpHeader));
                };
                let header_len = usize::from(offset >> 4).wrapping_mul(4);
                if header_len < 20 || header_len > payload.len() {
                    return Err(truncated(DropReason::TcpHeader));
                }
                Ok(Self::Tcp { destination_port: u16::from_be_bytes([d0, d1]) })
            }
            ICMP if payload.len() < 8 => Err(truncated(DropReason::IcmpHeader)),
            ICMP => Ok(Self::Icmp(payload)),
            _ => Ok(Self::Opaque),
        }
    }
}
