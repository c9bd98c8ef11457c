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
///
/// The fields stay where they are until they are asked for: most packets pass after a look at each of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    header: &'a [u8; HEADER_LEN],
    options: &'a [u8],
    payload: &'a [u8],
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
        let (header, rest) = bytes.split_first_chunk::<HEADER_LEN>()?;
        let [version_ihl, _, l0, l1, ..] = *header;
        let rest = rest.get(..usize::from(u16::from_be_bytes([l0, l1])).checked_sub(HEADER_LEN)?)?;
        if version_ihl == 0x45 {
            return Some(Self { header, options: &[], payload: rest });
        }
        let (options, payload) = rest.split_at_checked(Self::options_len(version_ihl)?)?;
        Some(Self { header, options, payload })
    }

    /// The same for a packet that may have no options (S3).
    #[inline(always)]
    pub(crate) fn parse_plain(bytes: &'a [u8]) -> Result<Self, DropReason> {
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            return Err(DropReason::Ipv4Malformed);
        };
        let [version_ihl, _, l0, l1, ..] = *header;
        let payload_len = usize::from(u16::from_be_bytes([l0, l1])).wrapping_sub(HEADER_LEN);
        match rest.get(..payload_len) {
            Some(payload) if version_ihl == 0x45 => Ok(Self { header, options: &[], payload }),
            _ if Self::parse(bytes).is_some() => Err(DropReason::Ipv4Options),
            _ => Err(DropReason::Ipv4Malformed),
        }
    }

    fn options_len(version_ihl: u8) -> Option<usize> {
        match version_ihl {
            0x45..=0x4f => Some(usize::from(version_ihl).saturating_sub(0x45).saturating_mul(4)),
            _ => None,
        }
    }

    #[inline(always)]
    pub(crate) fn source(&self) -> Ipv4Addr {
        let [.., a, b, c, d, _, _, _, _] = *self.header;
        Ipv4Addr::new(a, b, c, d)
    }

    #[inline(always)]
    pub(crate) fn destination(&self) -> Ipv4Addr {
        let [.., a, b, c, d] = *self.header;
        Ipv4Addr::new(a, b, c, d)
    }

    #[inline(always)]
    pub(crate) fn protocol(&self) -> u8 {
        self.header[9]
    }

    /// Bytes of header and payload.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        HEADER_LEN.wrapping_add(self.options.len()).wrapping_add(self.payload.len())
    }

    /// The flags and the fragment offset as they are in the header.
    #[inline(always)]
    fn fragment(&self) -> u16 {
        u16::from_be_bytes([self.header[6], self.header[7]])
    }

    /// Whether this is a fragment, first or later.
    #[inline(always)]
    pub(crate) fn is_fragment(&self) -> bool {
        self.fragment() & (MORE_FRAGMENTS | OFFSET) != 0
    }

    /// The payload, as what it may be read.
    #[inline(always)]
    pub(crate) fn part(&self) -> Part<'a> {
        if !self.is_fragment() {
            Part::Whole(self.payload)
        } else if self.fragment() & OFFSET == 0 {
            Part::First(self.payload)
        } else {
            Part::Later
        }
    }

    /// Whether the header checksum is right.
    pub(crate) fn is_checksum_valid(&self) -> bool {
        checksum::Sum::default().add(self.header).add(self.options).is_valid()
    }

    /// Judges the header of a packet of the VM by itself: the rest of S2.
    #[inline(always)]
    pub(crate) fn judge_header(&self) -> Result<(), DropReason> {
        if !checksum::is_header_valid(self.header) {
            return Err(DropReason::Ipv4Checksum);
        }
        if self.header[8] == 0 {
            return Err(DropReason::TtlZero);
        }
        if self.fragment() & RESERVED != 0 {
            return Err(DropReason::ReservedFlag);
        }
        Ok(())
    }

    /// Judges the header of a fragment: what of S4 can be told from it.
    pub(crate) fn judge_fragment(&self) -> Result<(), DropReason> {
        let payload_len = self.payload.len();
        let offset = usize::from(self.fragment() & OFFSET);
        let more = self.fragment() & MORE_FRAGMENTS != 0;
        // The reassembled packet would be longer than a packet can be (the "ping of death"). Its header counts too.
        if offset.saturating_mul(8).saturating_add(self.len()) > usize::from(u16::MAX) {
            return Err(DropReason::FragmentBeyondEnd);
        }
        if more && self.fragment() & DONT_FRAGMENT != 0 {
            return Err(DropReason::FragmentDontFragment);
        }
        if payload_len == 0 || (more && !payload_len.is_multiple_of(8)) {
            return Err(DropReason::FragmentLength);
        }
        // RFC 3128: it would overwrite the flags behind the ports of the first fragment.
        if self.protocol() == TCP && offset == 1 {
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
    /// The destination port, of what has ports.
    pub(crate) fn destination_port(&self) -> Option<u16> {
        match *self {
            Self::Tcp { destination_port } | Self::Udp(Udp { destination_port, .. }) => {
                Some(destination_port)
            }
            Self::Icmp(_) | Self::Opaque => None,
        }
    }

    #[inline(always)]
    pub(crate) fn parse(protocol: u8, part: Part<'a>) -> Result<Self, DropReason> {
        let (payload, whole) = match part {
            Part::Whole(payload) => (payload, true),
            Part::First(payload) => (payload, false),
            Part::Later => return Ok(Self::Opaque),
        };
        let truncated = |reason| if whole { reason } else { DropReason::FragmentHeader };
        match protocol {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::verdict::Verdict;

    fn judge(packet: &[u8]) -> Verdict {
        bound().from_vm(&ethernet(GATEWAY, VM, 0x0800, packet), NOW)
    }

    /// A packet with one byte of its header changed and the checksum made right again.
    fn with_byte(at: usize, value: u8) -> Vec<u8> {
        let mut packet = IpFrame::udp(WORLD_IP, 80).packet();
        packet[at] = value;
        fix_header(&mut packet);
        packet
    }

    /// S2: version 4, five words of header at least, and no more than there are.
    #[test]
    fn s2_version_and_header_length() {
        for version_ihl in 0..=255 {
            let expected = match version_ihl {
                0x45 => Verdict::Forward,
                // UDP behind a header of 24 to 36 bytes: the packet of 37 holds that.
                0x46..=0x49 => drop_for(DropReason::Ipv4Options),
                _ => drop_for(DropReason::Ipv4Malformed),
            };
            assert_eq!(judge(&with_byte(0, version_ihl)), expected, "{version_ihl:#04x}");
        }
    }

    /// S2: the total length covers the header and lies within the frame.
    #[test]
    fn s2_total_length() {
        let mut port = bound();
        let packet = IpFrame::new(WORLD_IP, 254, [0; 80]).packet();
        for len in 0..=u16::MAX {
            let mut packet = packet.clone();
            packet[2..4].copy_from_slice(&len.to_be_bytes());
            fix_header(&mut packet);
            let expected = match len {
                100 => Verdict::Forward,
                20..100 => drop_for(DropReason::TrailingBytes),
                _ => drop_for(DropReason::Ipv4Malformed),
            };
            assert_eq!(port.from_vm(&ethernet(GATEWAY, VM, 0x0800, &packet), NOW), expected, "{len}");
        }
        let empty = IpFrame::new(WORLD_IP, 254, []).packet();
        assert_eq!(judge(&empty), Verdict::Forward);
    }

    /// S2: a header with any bit wrong.
    #[test]
    fn s2_header_checksum() {
        let packet = IpFrame::udp(WORLD_IP, 80).packet();
        assert_eq!(judge(&packet), Verdict::Forward);
        // The bits of identification, time to live, protocol, checksum and addresses.
        for bit in (32..48).chain(64..160) {
            let mut packet = packet.clone();
            packet[bit / 8] ^= 0x80 >> (bit % 8);
            assert_eq!(judge(&packet), drop_for(DropReason::Ipv4Checksum), "bit {bit}");
        }
    }

    #[test]
    fn s2_time_to_live() {
        assert_eq!(judge(&with_byte(8, 0)), drop_for(DropReason::TtlZero));
        assert_eq!(judge(&with_byte(8, 1)), Verdict::Forward);
        assert_eq!(judge(&with_byte(8, 255)), Verdict::Forward);
    }

    #[test]
    fn s2_reserved_flag() {
        assert_eq!(judge(&with_byte(6, 0x80)), drop_for(DropReason::ReservedFlag));
        assert_eq!(judge(&with_byte(6, 0xc0)), drop_for(DropReason::ReservedFlag));
        assert_eq!(judge(&with_byte(6, 0x40)), Verdict::Forward);
    }

    /// S3: no options, not even the one that does nothing, even if they are all right.
    #[test]
    fn s3_options_are_dropped() {
        for options in [&[1, 1, 1, 0][..], &[0, 0, 0, 0], &[0x83, 3, 4, 0], &[0x94, 4, 0, 0], &[1; 40]] {
            let plain = IpFrame::udp(WORLD_IP, 80).packet();
            let mut packet = [&plain[..20], options, &plain[20..]].concat();
            packet[0] = 0x45 + (options.len() / 4) as u8;
            let len = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&len);
            fix_header(&mut packet);
            assert_eq!(judge(&packet), drop_for(DropReason::Ipv4Options));
        }
    }

    /// S4: what a fragment may look like, by flags, offset and the length of its payload.
    #[test]
    fn s4_fragment_fields() {
        const MF: u16 = MORE_FRAGMENTS;
        const DF: u16 = DONT_FRAGMENT;
        for (fragment, len, expected) in [
            (MF, 8, Verdict::Forward),
            (MF, 1480, Verdict::Forward),
            (MF | 1, 8, Verdict::Forward),
            (1, 1, Verdict::Forward),
            (185, 13, Verdict::Forward),
            (DF, 100, Verdict::Forward),
            (MF | DF, 8, drop_for(DropReason::FragmentDontFragment)),
            (MF | DF | 1, 8, drop_for(DropReason::FragmentDontFragment)),
            (MF, 7, drop_for(DropReason::FragmentLength)),
            (MF | 5, 1, drop_for(DropReason::FragmentLength)),
            (MF | 5, 12, drop_for(DropReason::FragmentLength)),
            (MF, 0, drop_for(DropReason::FragmentLength)),
            (5, 0, drop_for(DropReason::FragmentLength)),
            // 8189 * 8 = 65512: with the header 3 bytes are left.
            (8189, 3, Verdict::Forward),
            (8189, 4, drop_for(DropReason::FragmentBeyondEnd)),
            (8191, 1, drop_for(DropReason::FragmentBeyondEnd)),
            (8191 | MF, 8, drop_for(DropReason::FragmentBeyondEnd)),
        ] {
            let frame = IpFrame::new(WORLD_IP, 254, vec![0; len]).fragment(fragment).frame();
            assert_eq!(bound().from_vm(&frame, NOW), expected, "{fragment:#06x}, {len} bytes");
        }
    }

    /// S4: a first fragment holds the whole transport header (RFC 1858).
    #[test]
    fn s4_first_fragment_holds_the_header() {
        let header = drop_for(DropReason::FragmentHeader);
        let judge = |protocol, payload: Vec<u8>| {
            bound().from_vm(&IpFrame::new(WORLD_IP, protocol, payload).fragment(MORE_FRAGMENTS).frame(), NOW)
        };
        let mut segment = tcp(1000, 80);
        segment.extend([0; 28]);
        assert_eq!(judge(TCP, segment[..8].to_vec()), header);
        assert_eq!(judge(TCP, segment[..16].to_vec()), header);
        assert_eq!(judge(TCP, segment[..24].to_vec()), Verdict::Forward);
        segment[12] = 7 << 4;
        assert_eq!(judge(TCP, segment[..24].to_vec()), header);
        assert_eq!(judge(TCP, segment[..32].to_vec()), Verdict::Forward);
        segment[12] = 4 << 4;
        assert_eq!(judge(TCP, segment[..32].to_vec()), header);
        // UDP and ICMP headers are the shortest fragment.
        let datagram = udp(1000, 80, &[0; 100]);
        assert_eq!(judge(UDP, datagram[..8].to_vec()), Verdict::Forward);
        assert_eq!(judge(ICMP, vec![8, 0, 0, 0, 0, 0, 0, 0]), Verdict::Forward);
    }

    /// S4: the second fragment cannot overwrite the flags of the first (RFC 3128).
    #[test]
    fn s4_tcp_fragment_at_offset_1() {
        for (protocol, offset, expected) in [
            (TCP, 1, drop_for(DropReason::FragmentOffset)),
            (TCP, MORE_FRAGMENTS | 1, drop_for(DropReason::FragmentOffset)),
            (TCP, 2, Verdict::Forward),
            (UDP, 1, Verdict::Forward),
        ] {
            let frame = IpFrame::new(WORLD_IP, protocol, [0; 64]).fragment(offset).frame();
            assert_eq!(bound().from_vm(&frame, NOW), expected);
        }
    }

    /// S4: the bytes of a later fragment are nobody's ports, types or lengths.
    #[test]
    fn s4_later_fragments_are_not_read() {
        for (protocol, payload) in
            [(UDP, udp(67, 68, b"")), (UDP, vec![0; 3]), (TCP, vec![0; 5]), (ICMP, vec![5; 8])]
        {
            let frame = IpFrame::new(WORLD_IP, protocol, payload).fragment(100).frame();
            assert_eq!(bound().from_vm(&frame, NOW), Verdict::Forward);
        }
    }

    /// S5: a truncated header is dropped, down to nothing; so is a TCP header that says it is longer.
    #[test]
    fn s5_truncated_transport_headers() {
        let judge = |protocol, payload: &[u8]| {
            bound().from_vm(&IpFrame::new(WORLD_IP, protocol, payload).frame(), NOW)
        };
        let mut segment = tcp(1000, 80);
        for len in 0..20 {
            assert_eq!(judge(TCP, &segment[..len]), drop_for(DropReason::TcpHeader), "{len}");
        }
        assert_eq!(judge(TCP, &segment), Verdict::Forward);
        segment.extend([0; 39]);
        for offset in 0..=15 {
            segment[12] = offset << 4;
            let expected =
                if (5..15).contains(&offset) { Verdict::Forward } else { drop_for(DropReason::TcpHeader) };
            assert_eq!(judge(TCP, &segment), expected, "{offset}");
        }
        for len in 0..8 {
            assert_eq!(judge(UDP, &udp(1000, 80, b"")[..len]), drop_for(DropReason::UdpHeader), "{len}");
            assert_eq!(
                judge(ICMP, &[8, 0, 0, 0, 0, 0, 0, 0][..len]),
                drop_for(DropReason::IcmpHeader),
                "{len}"
            );
        }
    }

    /// S5: the length of a datagram is that of the packet's payload, and in a first fragment more than that.
    #[test]
    fn s5_udp_length() {
        let judge = |len: u16, fragment| {
            let mut datagram = udp(1000, 80, &[0; 24]);
            datagram[4..6].copy_from_slice(&len.to_be_bytes());
            bound().from_vm(&IpFrame::new(WORLD_IP, UDP, datagram).fragment(fragment).frame(), NOW)
        };
        for len in 0..100 {
            let exact = if len == 32 { Verdict::Forward } else { drop_for(DropReason::UdpLength) };
            assert_eq!(judge(len, 0), exact, "{len}");
            let more = if len > 32 { Verdict::Forward } else { drop_for(DropReason::UdpLength) };
            assert_eq!(judge(len, MORE_FRAGMENTS), more, "{len}");
        }
    }
}
