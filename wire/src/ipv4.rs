//! The Internet protocol (RFC 791).

use core::net::Ipv4Addr;

use crate::checksum::Sum;
use crate::transport::Part;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;

/// The flag that must be 0, in the word of flags and fragment offset.
pub const RESERVED: u16 = 0x8000;
/// The flag that forbids routers to fragment the packet.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// The flag of every fragment but the last.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The fragment offset, in units of 8 bytes.
pub const OFFSET: u16 = 0x1fff;

/// The only option of a packet that routers are to examine on its way (RFC 2113).
pub const ROUTER_ALERT: [u8; 4] = [148, 4, 0, 0];

/// An IPv4 packet whose lengths are consistent.
///
/// Fields are read only when needed: most packets pass after one read of each.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
}

/// Why bytes are not an IPv4 packet without options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPlain {
    /// It is not version 4, or the lengths do not fit.
    Malformed,
    /// The packet is well formed and has options.
    Options,
}

impl<'a> Packet<'a> {
    /// `None` if this is not version 4 or the lengths do not fit.
    #[inline(always)]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [version_ihl, _, l0, l1, ..] = *header;
        let rest = rest.get(..usize::from(u16::from_be_bytes([l0, l1])).checked_sub(HEADER_LEN)?)?;
        if version_ihl == 0x45 {
            return Some(Self { header, options: &[], payload: rest });
        }
        let (options, payload) = rest.split_at_checked(Self::options_len(version_ihl)?)?;
        Some(Self { header, options, payload })
    }

    /// The same for a packet that may have no options.
    #[inline(always)]
    pub fn parse_plain(bytes: &'a [u8]) -> Result<Self, NotPlain> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(NotPlain::Malformed);
        };
        let [version_ihl, _, l0, l1, ..] = *header;
        let payload_len = usize::from(u16::from_be_bytes([l0, l1])).wrapping_sub(HEADER_LEN);
        match rest.get(..payload_len) {
            Some(payload) if version_ihl == 0x45 => Ok(Self { header, options: &[], payload }),
            _ if Self::parse(bytes).is_some() => Err(NotPlain::Options),
            _ => Err(NotPlain::Malformed),
        }
    }

    fn options_len(version_ihl: u8) -> Option<usize> {
        match version_ihl {
            0x45..=0x4f => Some(usize::from(version_ihl).saturating_sub(0x45).saturating_mul(4)),
            _ => None,
        }
    }

    /// The header without its options.
    #[inline(always)]
    pub fn header(&self) -> &'a [u8; HEADER_LEN] {
        self.header
    }

    /// The options behind the header.
    #[inline]
    pub fn options(&self) -> &'a [u8] {
        self.options
    }

    #[inline(always)]
    fn addresses(&self) -> &'a [u8; 8] {
        let [_, _, _, _, _, _, _, _, _, _, _, _, addresses @ ..] = self.header;
        addresses
    }

    /// The source address.
    #[inline(always)]
    pub fn source(&self) -> Ipv4Addr {
        // As one array, which the compiler loads at once.
        let [source @ .., _, _, _, _] = self.addresses();
        (*source).into()
    }

    /// The destination address.
    #[inline(always)]
    pub fn destination(&self) -> Ipv4Addr {
        let [_, _, _, _, destination @ ..] = self.addresses();
        (*destination).into()
    }

    /// The number of the protocol that the packet carries.
    #[inline(always)]
    pub fn protocol(&self) -> u8 {
        self.header[9]
    }

    /// The time to live.
    #[inline(always)]
    pub fn time_to_live(&self) -> u8 {
        self.header[8]
    }

    /// Bytes of header and payload.
    #[expect(clippy::len_without_is_empty, reason = "there is always a header")]
    #[inline(always)]
    pub fn len(&self) -> usize {
        HEADER_LEN.wrapping_add(self.options.len()).wrapping_add(self.payload.len())
    }

    /// Bytes of payload.
    #[inline(always)]
    pub fn payload_len(&self) -> usize {
        self.payload.len()
    }

    /// What the fragments of one packet have in common.
    #[inline(always)]
    pub fn identification(&self) -> u16 {
        u16::from_be_bytes([self.header[4], self.header[5]])
    }

    /// The flags and the fragment offset as they are in the header.
    #[inline(always)]
    pub fn fragment(&self) -> u16 {
        u16::from_be_bytes([self.header[6], self.header[7]])
    }

    /// Whether this is a fragment, first or later.
    #[inline(always)]
    pub fn is_fragment(&self) -> bool {
        self.fragment() & (MORE_FRAGMENTS | OFFSET) != 0
    }

    /// The payload, and whether it is all of the data or which fragment.
    #[inline(always)]
    pub fn part(&self) -> Part<'a> {
        if !self.is_fragment() {
            Part::Whole(self.payload)
        } else if self.fragment() & OFFSET == 0 {
            Part::First(self.payload)
        } else {
            Part::Later
        }
    }

    /// Whether the header checksum is right.
    pub fn is_checksum_valid(&self) -> bool {
        Sum::of(self.header).followed_by(HEADER_LEN, Sum::of(self.options)).is_valid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The well-known example with checksum 0xb861, and a payload of 3 bytes.
    #[rustfmt::skip]
    const PACKET: [u8; 23] = [
        0x45, 0, 0, 23, 0, 0, 0x40, 0, 0x40, 0x11, 0xb8, 0xbd, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8, 0x00, 0xc7,
        1, 2, 3,
    ];

    #[test]
    fn reads_the_fields() {
        let packet = Packet::parse_plain(&PACKET).unwrap();
        assert_eq!(packet.source(), Ipv4Addr::new(192, 168, 0, 1));
        assert_eq!(packet.destination(), Ipv4Addr::new(192, 168, 0, 199));
        assert_eq!((packet.protocol(), packet.time_to_live()), (17, 64));
        assert_eq!((packet.fragment(), packet.is_fragment()), (DONT_FRAGMENT, false));
        assert_eq!((packet.len(), packet.payload_len()), (23, 3));
        assert!(matches!(packet.part(), Part::Whole([1, 2, 3])));
        assert!(packet.is_checksum_valid());
        // Padding behind it is not part of it.
        assert_eq!(Packet::parse(&[&PACKET[..], &[0; 9]].concat()).unwrap().len(), 23);
    }

    #[test]
    fn options_stand_between_header_and_payload() {
        let mut packet = [&PACKET[..20], &[1, 1, 1, 0], &PACKET[20..]].concat();
        (packet[0], packet[3]) = (0x46, 27);
        let parsed = Packet::parse(&packet).unwrap();
        assert_eq!((parsed.len(), parsed.payload_len()), (27, 3));
        assert_eq!(parsed.options(), [1, 1, 1, 0]);
        assert!(!parsed.is_checksum_valid());
        assert_eq!(Packet::parse_plain(&packet).unwrap_err(), NotPlain::Options);
        packet[3] = 23;
        assert!(Packet::parse(&packet).is_none());
        assert_eq!(Packet::parse_plain(&packet).unwrap_err(), NotPlain::Malformed);
    }

    #[test]
    fn refuses_other_versions_and_lengths_that_do_not_fit() {
        for version_ihl in (0..=0x44).chain(0x46..=0xff) {
            let mut packet = PACKET;
            packet[0] = version_ihl;
            assert!(Packet::parse(&packet).is_none(), "{version_ihl:#04x}");
        }
        for len in 0..PACKET.len() {
            assert!(Packet::parse(&PACKET[..len]).is_none(), "{len} bytes");
        }
        for total in (0..20).chain([24, 255]) {
            let mut packet = PACKET;
            packet[3] = total;
            assert!(Packet::parse(&packet).is_none(), "total length {total}");
        }
    }

    #[test]
    fn tells_fragments_apart() {
        let part = |flags: u8, offset: u8| {
            let mut packet = PACKET;
            (packet[6], packet[7]) = (flags, offset);
            match Packet::parse(&packet).unwrap().part() {
                Part::Whole(_) => "whole",
                Part::First(_) => "first",
                Part::Later => "later",
            }
        };
        assert_eq!([part(0, 0), part(0x40, 0), part(0x80, 0)], ["whole"; 3]);
        assert_eq!([part(0x20, 0), part(0x60, 0)], ["first"; 2]);
        assert_eq!([part(0x20, 1), part(0, 1), part(0x1f, 0xff)], ["later"; 3]);
    }
}
