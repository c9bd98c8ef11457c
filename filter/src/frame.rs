//! Ethernet frames, whose header the rules L judge.

pub(crate) use softnet_wire::ethernet::*;

#[cfg(test)]
mod tests {
    use crate::testing::*;
    use crate::verdict::{DropReason, Verdict};

    /// L2: nothing but IPv4 and ARP.
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

    /// L2: every tag is dropped, also with VID 0 (priority only), whatever follows it.
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
        assert_eq!(port.from_vm(&frame, NOW), drop_for(DropReason::MustFragment));
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
