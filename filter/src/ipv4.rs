//! The headers of IPv4 and of what it carries, judged by themselves: the rules S2 to S5.

pub(crate) use softnet_wire::ipv4::*;
pub(crate) use softnet_wire::transport::*;

use crate::verdict::DropReason;
use softnet_wire::checksum;

/// S2, S3: a header of version 4 without options, and lengths that fit.
#[inline(always)]
pub(crate) fn judge_format(bytes: &[u8]) -> Result<Packet<'_>, DropReason> {
    Packet::parse_plain(bytes).map_err(|error| match error {
        NotPlain::Malformed => DropReason::Ipv4Malformed,
        NotPlain::Options => DropReason::Ipv4Options,
    })
}

/// S3: IGMP to a multicast group is the one packet that may have an option, which is nothing but Router Alert.
pub(crate) fn judge_options(bytes: &[u8]) -> Result<Packet<'_>, DropReason> {
    let packet = Packet::parse(bytes).ok_or(DropReason::Ipv4Malformed)?;
    let is_report = packet.protocol() == IGMP && packet.destination().is_multicast() && !packet.is_fragment();
    if is_report && packet.options() == ROUTER_ALERT { Ok(packet) } else { Err(DropReason::Ipv4Options) }
}

/// The rest of S2: what can be judged of a packet of the VM without options from its header alone.
#[inline(always)]
pub(crate) fn judge_header(packet: Packet<'_>) -> Result<(), DropReason> {
    if !checksum::is_header_valid(packet.header()) {
        return Err(DropReason::Ipv4Checksum);
    }
    judge_fields(packet)
}

/// The same of one with options.
pub(crate) fn judge_long_header(packet: Packet<'_>) -> Result<(), DropReason> {
    if !packet.is_checksum_valid() {
        return Err(DropReason::Ipv4Checksum);
    }
    judge_fields(packet)
}

#[inline(always)]
fn judge_fields(packet: Packet<'_>) -> Result<(), DropReason> {
    if packet.time_to_live() == 0 {
        return Err(DropReason::TtlZero);
    }
    if packet.fragment() & RESERVED != 0 {
        return Err(DropReason::ReservedFlag);
    }
    Ok(())
}

/// The part of S4 that the header of a fragment shows.
pub(crate) fn judge_fragment(packet: Packet<'_>) -> Result<(), DropReason> {
    let payload_len = packet.payload_len();
    let offset = usize::from(packet.fragment() & OFFSET);
    let more = packet.fragment() & MORE_FRAGMENTS != 0;
    // The reassembled packet would be longer than a packet can be (the "ping of death"). Its header counts too.
    if offset.saturating_mul(8).saturating_add(packet.len()) > usize::from(u16::MAX) {
        return Err(DropReason::FragmentBeyondEnd);
    }
    if more && packet.fragment() & DONT_FRAGMENT != 0 {
        return Err(DropReason::FragmentDontFragment);
    }
    if payload_len == 0 || (more && !payload_len.is_multiple_of(8)) {
        return Err(DropReason::FragmentLength);
    }
    // RFC 3128: it would overwrite the flags behind the ports of the first fragment.
    if packet.protocol() == TCP && offset == 1 {
        return Err(DropReason::FragmentOffset);
    }
    Ok(())
}

/// S5, and S4 for a first fragment: the transport header is complete.
#[inline(always)]
pub(crate) fn judge_transport(protocol: u8, part: Part<'_>) -> Result<Transport<'_>, DropReason> {
    Transport::parse(protocol, part).map_err(|error| match error {
        Malformed::UdpHeader => DropReason::UdpHeader,
        Malformed::TcpHeader => DropReason::TcpHeader,
        Malformed::IcmpHeader => DropReason::IcmpHeader,
        Malformed::FragmentHeader => DropReason::FragmentHeader,
        Malformed::UdpLength => DropReason::UdpLength,
    })
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

    /// S2: version 4, and a header of at least five words that fits into the packet.
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

    /// S3: no options, not even the one that does nothing, even if they are all right. `igmp.rs` tests the exception.
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

    /// S4: a first fragment holds the complete transport header (RFC 1858).
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

    /// S4: the bytes of a later fragment are not read as ports, types or lengths.
    #[test]
    fn s4_later_fragments_are_not_read() {
        for (protocol, payload) in
            [(UDP, udp(67, 68, b"")), (UDP, vec![0; 3]), (TCP, vec![0; 5]), (ICMP, vec![5; 8])]
        {
            let frame = IpFrame::new(WORLD_IP, protocol, payload).fragment(100).frame();
            assert_eq!(bound().from_vm(&frame, NOW), Verdict::Forward);
        }
    }

    /// S5: a truncated header of any length is dropped; so is a TCP header whose length field exceeds it.
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
