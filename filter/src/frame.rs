//! Ethernet II framing (IEEE 802.3, clause 3).

use crate::mac::MacAddr;

/// Bytes of an Ethernet header: destination, source, EtherType.
pub(crate) const HEADER_LEN: usize = 14;

/// The shortest Ethernet frame without its frame check sequence; up to here a frame may be padded.
pub(crate) const PADDED_LEN: usize = 60;

/// EtherTypes (IANA) of what may pass.
pub(crate) const IPV4: u16 = 0x0800;
pub(crate) const ARP: u16 = 0x0806;

/// What an Ethernet frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EtherType {
    Ipv4,
    Arp,
    Ipv6,
    /// A VLAN tag of any kind: 802.1Q, 802.1ad, and the values of stacked tags from before that standard.
    Vlan,
    /// All else, a length (LLC) included.
    Other,
}

/// An Ethernet frame. Its header is whole; its payload is only bytes.
///
/// The fields stay where they are until they are asked for: most frames pass after a look at each of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Frame<'a> {
    /// At least a header.
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `None` for a runt.
    #[inline(always)]
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        (bytes.len() >= HEADER_LEN).then_some(Self { bytes })
    }

    /// The fallback is for the compiler, which sees that it is not needed.
    #[inline(always)]
    fn header(&self) -> &'a [u8; HEADER_LEN] {
        self.bytes.first_chunk().unwrap_or(&[0; HEADER_LEN])
    }

    #[inline(always)]
    pub(crate) fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or_default()
    }

    #[inline(always)]
    pub(crate) fn destination(&self) -> MacAddr {
        MacAddr(self.header().first_chunk().copied().unwrap_or_default())
    }

    #[inline(always)]
    pub(crate) fn source(&self) -> MacAddr {
        let [_, _, _, _, _, _, source @ .., _, _] = *self.header();
        MacAddr(source)
    }

    /// The destination and the first two bytes of the source, as one word to compare.
    #[inline(always)]
    pub(crate) fn head(&self) -> u64 {
        u64::from_ne_bytes(self.header().first_chunk().copied().unwrap_or_default())
    }

    /// The source and the EtherType, as one word to compare.
    #[inline(always)]
    pub(crate) fn tail(&self) -> u64 {
        u64::from_ne_bytes(self.header().last_chunk().copied().unwrap_or_default())
    }

    #[inline(always)]
    pub(crate) fn ether_type(&self) -> EtherType {
        let [.., high, low] = *self.header();
        match u16::from_be_bytes([high, low]) {
            IPV4 => EtherType::Ipv4,
            ARP => EtherType::Arp,
            other => Self::other_ether_type(other),
        }
    }

    /// Kept out of the way of the two that pass.
    #[cold]
    fn other_ether_type(number: u16) -> EtherType {
        match number {
            0x86dd => EtherType::Ipv6,
            0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => EtherType::Vlan,
            _ => EtherType::Other,
        }
    }

    /// Whether there are bytes behind a packet of `packet_len` bytes that padding does not explain (rule L4).
    #[inline(always)]
    pub(crate) fn has_trailer(&self, packet_len: usize) -> bool {
        self.bytes.len() > PADDED_LEN && self.payload().len() > packet_len
    }
}

/// What [`Frame::head`] gives for frames from `source` to `destination`, and for some others, whose source begins the
/// same.
pub(crate) fn head(destination: MacAddr, source: MacAddr) -> u64 {
    let [a, b, c, d, e, f] = destination.octets();
    let [g, h, ..] = source.octets();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// What [`Frame::tail`] gives for frames from `source` that carry `ether_type`, and for no others.
pub(crate) fn tail(source: MacAddr, ether_type: u16) -> u64 {
    let [a, b, c, d, e, f] = source.octets();
    let [g, h] = ether_type.to_be_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::verdict::{DropReason, Verdict};

    #[test]
    fn parses_the_header() {
        let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x08, 0x06, 0xaa];
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.destination(), MacAddr([1, 2, 3, 4, 5, 6]));
        assert_eq!(frame.source(), MacAddr([7, 8, 9, 10, 11, 12]));
        assert_eq!((frame.ether_type(), frame.payload()), (EtherType::Arp, &[0xaa][..]));
        assert_eq!(frame.head(), head(frame.destination(), frame.source()));
        assert_eq!(frame.tail(), tail(frame.source(), 0x0806));
        assert!(Frame::parse(&bytes[..13]).is_none());
        assert!(Frame::parse(&bytes[..14]).is_some_and(|frame| frame.payload().is_empty()));
    }

    /// L2: nothing but IPv4 and ARP, whatever it is.
    #[test]
    fn l2_other_ether_types_are_dropped() {
        let packet = IpFrame::udp(WORLD_IP, 80).packet();
        let mut port = bound();
        for ether_type in 0..=u16::MAX {
            let expected = match ether_type {
                0x0800 => Verdict::Forward,
                0x0806 => drop_for(DropReason::ArpMalformed),
                0x86dd => drop_for(DropReason::Ipv6),
                0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => drop_for(DropReason::VlanTag),
                _ => drop_for(DropReason::EtherType),
            };
            let frame = ethernet(GATEWAY, VM, ether_type, &packet);
            assert_eq!(port.from_vm(&frame, NOW), expected, "{ether_type:#06x}");
        }
    }

    /// L2: a tag is a tag, with VID 0 (priority only) too, and whatever it hides.
    #[test]
    fn l2_tagged_frames_are_dropped() {
        let packet = IpFrame::udp(WORLD_IP, 80).packet();
        for tag in [[0, 0], [0xe0, 0], [0, 1], [0x0f, 0xff]] {
            for ether_type in [0x8100, 0x88a8, 0x9100] {
                let tagged = [&tag[..], &[0x08, 0x00], &packet].concat();
                let frame = ethernet(GATEWAY, VM, ether_type, &tagged);
                assert_eq!(bound().from_vm(&frame, NOW), drop_for(DropReason::VlanTag));
            }
        }
    }

    /// L3: from nothing up to a byte less than a header is a runt; a byte more than the MTU is too long.
    #[test]
    fn l3_runts_and_long_frames_are_dropped() {
        let mut port = bound();
        let frame = IpFrame::new(WORLD_IP, 17, udp(1000, 80, &[0; 1500 - 28])).frame();
        assert_eq!(frame.len(), 1514);
        assert_eq!(port.from_vm(&frame, NOW), Verdict::Forward);
        let frame = IpFrame::new(WORLD_IP, 17, udp(1000, 80, &[0; 1501 - 28])).frame();
        assert_eq!(port.from_vm(&frame, NOW), drop_for(DropReason::Oversize));
        for len in 0..14 {
            assert_eq!(port.from_vm(&frame[..len], NOW), drop_for(DropReason::Runt));
        }
        for len in 14..34 {
            assert_eq!(port.from_vm(&frame[..len], NOW), drop_for(DropReason::Ipv4Malformed));
        }
        assert_eq!(port.from_vm(&vec![0; 65_600], NOW), drop_for(DropReason::Oversize));
        assert_eq!(port.truncated_from_vm(), drop_for(DropReason::Truncated));
        assert_eq!(port.counters().from_vm.dropped(DropReason::Truncated), 1);
    }

    /// L4: padding to 60 bytes passes; a byte more behind the packet does not.
    #[test]
    fn l4_bytes_behind_the_packet_are_dropped() {
        let mut port = bound();
        for frame in [IpFrame::udp(WORLD_IP, 80).frame(), ArpFrame::request(GATEWAY_IP).frame()] {
            assert!(frame.len() < 60);
            let padded = |len: usize| [&frame[..], &vec![0; len - frame.len()]].concat();
            assert_eq!(port.from_vm(&padded(60), NOW), Verdict::Forward);
            assert_eq!(port.from_vm(&padded(61), NOW), drop_for(DropReason::TrailingBytes));
            assert_eq!(port.from_vm(&padded(1514), NOW), drop_for(DropReason::TrailingBytes));
        }
        let mut frame = IpFrame::new(WORLD_IP, 17, udp(1000, 80, &[0; 19])).frame();
        assert_eq!(frame.len(), 61);
        assert_eq!(port.from_vm(&frame, NOW), Verdict::Forward);
        frame.push(0);
        assert_eq!(port.from_vm(&frame, NOW), drop_for(DropReason::TrailingBytes));
    }
}
