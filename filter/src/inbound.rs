//! What reaches the VM: the rules I.

use crate::frame::{EtherType, Frame};
use crate::ipv4::{self, Packet, Part, Udp};
use crate::segment::Segment;
use crate::verdict::DropReason;

/// For which stations a frame is, including the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stations {
    /// For the VM alone, or for all.
    Vm,
    /// For those of an IPv4 multicast group.
    Group,
}

/// I2: nothing but IPv4 and ARP, and no tags.
#[inline(always)]
pub(crate) fn judge_type(frame: Frame<'_>) -> Result<(), DropReason> {
    match frame.ether_type() {
        EtherType::Ipv4 | EtherType::Arp => Ok(()),
        EtherType::Vlan => Err(DropReason::HostVlanTag),
        EtherType::Ipv6 | EtherType::Other => Err(DropReason::HostEtherType),
    }
}

/// I2: nothing for other stations.
#[inline(always)]
pub(crate) fn judge_station(frame: Frame<'_>, segment: &Segment) -> Result<Stations, DropReason> {
    let is_for_vm = frame.destination() == segment.vm_mac || frame.destination().is_broadcast();
    if !is_for_vm && !is_multicast_ipv4(frame) {
        return Err(DropReason::OtherStation);
    }
    Ok(if is_for_vm { Stations::Vm } else { Stations::Group })
}

/// I2, I4: a packet that can be read, and that is for a group if its frame is.
#[inline(always)]
pub(crate) fn judge_packet(frame: Frame<'_>, stations: Stations) -> Result<Packet<'_>, DropReason> {
    let packet = Packet::parse(frame.payload()).ok_or(DropReason::HostMalformed)?;
    if stations == Stations::Group && !packet.destination().is_multicast() {
        return Err(DropReason::OtherStation);
    }
    Ok(packet)
}

/// What begins with a UDP header. A packet that hides its ports, or is a later fragment of one that had others, shows
/// none (I1).
#[inline(always)]
pub(crate) fn datagram(protocol: u8, part: Part<'_>) -> Option<&[u8]> {
    match part {
        Part::Whole(payload) | Part::First(payload) if protocol == ipv4::UDP => Some(payload),
        _ => None,
    }
}

/// I4: a complete UDP header.
#[inline(always)]
pub(crate) fn judge_udp(datagram: &[u8]) -> Result<Udp, DropReason> {
    let &[s0, s1, d0, d1, ..] =
        datagram.first_chunk::<{ ipv4::UDP_HEADER_LEN }>().ok_or(DropReason::HostMalformed)?;
    Ok(Udp { source_port: u16::from_be_bytes([s0, s1]), destination_port: u16::from_be_bytes([d0, d1]) })
}

/// Whether a frame is for the stations of an IPv4 multicast group (RFC 1112, section 6.4).
fn is_multicast_ipv4(frame: Frame<'_>) -> bool {
    frame.ether_type() == EtherType::Ipv4
        && matches!(frame.destination().octets(), [0x01, 0x00, 0x5e, 0..=0x7f, _, _])
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use crate::testing::*;
    use crate::verdict::{DropReason, Verdict};
    use softnet_wire::MacAddr;

    /// I1: frames for the VM pass, whatever their sender.
    #[test]
    fn i1_incoming_traffic_passes() {
        let mut port = fresh();
        for (to_mac, to) in [
            (VM, OWN_IP),
            (VM, OTHER_IP),
            (MacAddr::BROADCAST, Ipv4Addr::BROADCAST),
            (MacAddr::BROADCAST, Ipv4Addr::new(192, 168, 64, 255)),
            (MacAddr([0x01, 0, 0x5e, 0, 0, 0xfb]), Ipv4Addr::new(224, 0, 0, 251)),
            (MacAddr::BROADCAST, Ipv4Addr::new(224, 0, 0, 251)),
            (VM, Ipv4Addr::new(224, 0, 0, 251)),
        ] {
            for from_mac in [GATEWAY, STRANGER] {
                for from in [GATEWAY_IP, NEIGHBOUR_IP, WORLD_IP] {
                    let back = |frame: IpFrame| IpFrame { to_mac, from_mac, from, to, ..frame };
                    for frame in [
                        back(IpFrame::udp(to, 1234)),
                        back(IpFrame::udp(to, 67)),
                        back(IpFrame::tcp(to, 22)),
                        back(IpFrame::icmp(to, 3)),
                        back(IpFrame::icmp(to, 8)),
                        back(IpFrame::new(to, 47, [0; 9])),
                        back(IpFrame::udp(to, 1234).fragment(0x2000)),
                        back(IpFrame::udp(to, 68).fragment(0x2001)),
                        back(IpFrame::new(to, 17, [0; 3]).fragment(7)),
                    ] {
                        assert_eq!(port.from_host(&frame.frame(), NOW), Verdict::Forward);
                    }
                }
            }
        }
        let arp =
            ArpFrame { to_mac: VM, from_mac: GATEWAY, sender_mac: GATEWAY, ..ArpFrame::request(OWN_IP) };
        for to_mac in [VM, MacAddr::BROADCAST] {
            assert_eq!(port.from_host(&ArpFrame { to_mac, ..arp }.frame(), NOW), Verdict::Forward);
        }
    }

    /// I1: a super-frame is one frame, up to the longest that there is.
    #[test]
    fn i1_super_frames_pass() {
        let mut port = fresh();
        let mut segment = tcp(80, 40_000);
        segment.resize(65_515, 0);
        let frame = IpFrame::new(WORLD_IP, 6, segment).reversed().frame();
        assert_eq!(frame.len(), 65_549);
        assert_eq!(port.from_host(&frame, NOW), Verdict::Forward);
    }

    /// I2: frames for other stations and groups do not pass.
    #[test]
    fn i2_other_stations() {
        let mut port = bound();
        let frame = IpFrame::udp(WORLD_IP, 80).reversed();
        let arp = ArpFrame { from_mac: GATEWAY, sender_mac: GATEWAY, ..ArpFrame::request(OWN_IP) };
        for mac in [
            STRANGER,
            GATEWAY,
            MacAddr::ZERO,
            MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]),
            MacAddr([0x33, 0x33, 0, 0, 0, 1]),
            MacAddr([0x01, 0, 0x5e, 0x80, 0, 0xfb]),
            MacAddr([0x01, 0, 0x5e, 0, 0, 0xfb]),
        ] {
            let dropped = drop_for(DropReason::OtherStation);
            assert_eq!(port.from_host(&frame.clone().in_frame_to(mac).frame(), NOW), dropped, "{mac}");
            assert_eq!(port.from_host(&ArpFrame { to_mac: mac, ..arp }.frame(), NOW), dropped, "{mac}");
        }
    }

    /// I2: nothing but IPv4 and ARP, and no tags.
    #[test]
    fn i2_other_ether_types() {
        let mut port = bound();
        let packet = IpFrame::udp(WORLD_IP, 80).reversed().packet();
        for ether_type in 0..=u16::MAX {
            let expected = match ether_type {
                0x0800 => Verdict::Forward,
                0x0806 => drop_for(DropReason::HostMalformed),
                0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300 => drop_for(DropReason::HostVlanTag),
                _ => drop_for(DropReason::HostEtherType),
            };
            for to_mac in [VM, MacAddr::BROADCAST] {
                let frame = ethernet(to_mac, GATEWAY, ether_type, &packet);
                assert_eq!(port.from_host(&frame, NOW), expected, "{ether_type:#06x}");
            }
        }
    }

    /// I4: every prefix of every kind of frame, and every byte of them changed: a verdict, and no lease.
    #[test]
    fn i4_garbage_harms_nothing() {
        let frames = [
            IpFrame::udp(WORLD_IP, 80).reversed().frame(),
            IpFrame::tcp(WORLD_IP, 80).reversed().frame(),
            ArpFrame { to_mac: VM, from_mac: GATEWAY, sender_mac: GATEWAY, ..ArpFrame::request(OWN_IP) }
                .frame(),
            DhcpFrame::ack().frame(),
            DhcpFrame::nak().frame(),
        ];
        let mut port = fresh();
        let malformed = drop_for(DropReason::HostMalformed);
        for frame in &frames {
            for len in 0..frame.len() {
                assert!(!port.from_host(&frame[..len], NOW).is_forward(), "{len}");
                let _ = port.from_vm(&frame[..len], NOW);
                if len < 34 {
                    assert_eq!(port.from_host(&frame[..len], NOW), malformed, "{len}");
                }
            }
            for at in 0..frame.len() {
                for value in [0, 1, 0x45, 0x7f, 0x80, 0xff] {
                    let mut frame = frame.clone();
                    frame[at] = value;
                    let _ = port.from_host(&frame, NOW);
                    let _ = port.from_vm(&frame, NOW);
                }
            }
        }
        assert_eq!(port.lease(), None);
        for byte in [0, 0x08, 0x45, 0xff] {
            for len in [0, 1, 13, 14, 33, 34, 60, 1514, 65_535, 65_600] {
                let _ = port.from_host(&vec![byte; len], NOW);
                let _ = port.from_vm(&vec![byte; len], NOW);
            }
        }
        assert_eq!(port.lease(), None);
    }
}
