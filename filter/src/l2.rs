//! What Ethernet frames the VM may send: the rules L.

use core::net::Ipv4Addr;

use crate::frame::{EtherType, Frame};
use crate::segment::Segment;
use crate::verdict::DropReason;
use softnet_wire::MacAddr;

/// What a frame of the VM carries.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Content {
    Ipv4,
    Arp,
}

/// L3: a complete header.
#[inline(always)]
pub(crate) fn judge_runt(bytes: &[u8]) -> Result<Frame<'_>, DropReason> {
    Frame::parse(bytes).ok_or(DropReason::Runt)
}

/// L3: whether a frame of `len` bytes is longer than the link carries.
#[inline(always)]
pub(crate) fn is_too_long(len: usize, segment: &Segment) -> bool {
    len > segment.max_frame_len
}

/// L1, L2: the source and the EtherType at once.
#[inline(always)]
pub(crate) fn judge_source_and_type(frame: Frame<'_>, segment: &Segment) -> Result<Content, DropReason> {
    let tail = frame.tail();
    if tail == segment.ipv4_from_vm {
        Ok(Content::Ipv4)
    } else if tail == segment.arp_from_vm {
        Ok(Content::Arp)
    } else {
        Err(why_neither(frame, segment))
    }
}

/// L1, L2: what is wrong with a frame that is neither IPv4 nor ARP of the VM.
#[cold]
fn why_neither(frame: Frame<'_>, segment: &Segment) -> DropReason {
    match frame.ether_type() {
        _ if frame.source() != segment.vm_mac => DropReason::SourceMac,
        EtherType::Vlan => DropReason::VlanTag,
        EtherType::Ipv6 => DropReason::Ipv6,
        EtherType::Ipv4 | EtherType::Arp | EtherType::Other => DropReason::EtherType,
    }
}

/// L4: nothing but padding follows the packet of `packet_len` bytes.
#[inline(always)]
pub(crate) fn judge_trailer(frame: Frame<'_>, packet_len: usize) -> Result<(), DropReason> {
    if frame.has_trailer(packet_len) { Err(DropReason::TrailingBytes) } else { Ok(()) }
}

/// L5: ARP is sent to one station or to all, never to the groups of bridges and switches.
#[inline(always)]
pub(crate) fn judge_arp_destination(frame: Frame<'_>, segment: &Segment) -> Result<(), DropReason> {
    if frame.destination().is_broadcast() || segment.may_be_peer(frame.destination()) {
        Ok(())
    } else {
        Err(why_not_to(frame.destination()))
    }
}

/// L5: the frame's destination `mac` belongs to the packet's `destination`.
pub(crate) fn judge_ipv4_destination(
    mac: MacAddr,
    destination: Ipv4Addr,
    segment: &Segment,
) -> Result<(), DropReason> {
    if destination.is_multicast() {
        return if mac == multicast_mac(destination) { Ok(()) } else { Err(DropReason::MulticastMac) };
    }
    let is_neighbour = segment.is_on_link(destination) && destination != segment.router.address;
    if mac == segment.router.mac || (is_neighbour && segment.may_be_peer(mac)) {
        Ok(())
    } else {
        Err(why_not_to(mac))
    }
}

/// L5: the reason for a frame to a station that the VM may not address.
fn why_not_to(mac: MacAddr) -> DropReason {
    if mac.is_group() { DropReason::GroupMac } else { DropReason::DestinationMac }
}

/// The MAC address of an IPv4 multicast group (RFC 1112, section 6.4).
pub(crate) fn multicast_mac(group: Ipv4Addr) -> MacAddr {
    let [_, b, c, d] = group.octets();
    MacAddr([0x01, 0x00, 0x5e, b & 0x7f, c, d])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;
    use crate::{Port, Verdict};

    /// L1: no other source address, whatever the frame carries.
    #[test]
    fn l1_foreign_source_mac_is_dropped() {
        let mut port = bound();
        let foreign = [GATEWAY, STRANGER, MacAddr::ZERO, MacAddr::BROADCAST, MacAddr([3, 0, 0, 0, 0, 1])];
        let near = (0..48).map(|bit| {
            let mut mac = VM.octets();
            mac[bit / 8] ^= 1 << (bit % 8);
            MacAddr(mac)
        });
        for from_mac in near.chain(foreign) {
            for frame in [
                IpFrame { from_mac, ..IpFrame::udp(WORLD_IP, 80) }.frame(),
                ArpFrame { from_mac, ..ArpFrame::request(GATEWAY_IP) }.frame(),
                DhcpFrame { from_mac, ..DhcpFrame::discover() }.frame(),
                ethernet(GATEWAY, from_mac, 0x86dd, &[]),
            ] {
                assert_eq!(port.from_vm(&frame, NOW), drop_for(DropReason::SourceMac), "{from_mac}");
            }
        }
    }

    fn sent(port: &mut Port, frame: &IpFrame) -> Verdict {
        port.from_vm(&frame.frame(), NOW)
    }

    /// L5: packets for the world and the gateway are sent to the gateway's MAC address.
    #[test]
    fn l5_unicast_goes_to_the_gateway() {
        let mut port = bound();
        for to in [WORLD_IP, GATEWAY_IP] {
            let frame = IpFrame::udp(to, 80);
            for (mac, expected) in [
                (GATEWAY, Verdict::Forward),
                (STRANGER, drop_for(DropReason::DestinationMac)),
                (VM, drop_for(DropReason::DestinationMac)),
                (MacAddr::ZERO, drop_for(DropReason::DestinationMac)),
                (MacAddr::BROADCAST, drop_for(DropReason::GroupMac)),
                (MacAddr([0x01, 0x80, 0xc2, 0, 0, 0]), drop_for(DropReason::GroupMac)),
                (MacAddr([0x01, 0x80, 0xc2, 0, 0, 0x0e]), drop_for(DropReason::GroupMac)),
                (MacAddr([0x01, 0x00, 0x5e, 9, 9, 9]), drop_for(DropReason::GroupMac)),
                (MacAddr([0x33, 0x33, 0, 0, 0, 1]), drop_for(DropReason::GroupMac)),
            ] {
                assert_eq!(sent(&mut port, &frame.clone().in_frame_to(mac)), expected, "{to} in {mac}");
            }
        }
        // That the gateway is allowed by name makes no other station the gateway.
        let mut port = bound_with(&["@host", "9.9.9.9"], &[]);
        for to in [WORLD_IP, GATEWAY_IP] {
            let frame = IpFrame::udp(to, 80).in_frame_to(STRANGER);
            assert_eq!(sent(&mut port, &frame), drop_for(DropReason::DestinationMac));
        }
    }

    /// L5: a neighbour that is allowed by name is reached at its own MAC address, or through the gateway.
    #[test]
    fn l5_allowed_neighbour_is_reached_directly() {
        let mut port = bound_with(&["192.168.64.0/24"], &[]);
        let frame = IpFrame::udp(NEIGHBOUR_IP, 80);
        for (mac, expected) in [
            (STRANGER, Verdict::Forward),
            (GATEWAY, Verdict::Forward),
            (VM, drop_for(DropReason::DestinationMac)),
            (MacAddr::ZERO, drop_for(DropReason::DestinationMac)),
            (MacAddr::BROADCAST, drop_for(DropReason::GroupMac)),
            (MacAddr([0x01, 0x00, 0x5e, 40, 64, 77]), drop_for(DropReason::GroupMac)),
        ] {
            assert_eq!(sent(&mut port, &frame.clone().in_frame_to(mac)), expected, "{mac}");
        }
    }

    /// L5: multicast is sent to the group's MAC address, which has only the lower 23 bits of the group.
    #[test]
    fn l5_multicast_goes_in_its_own_mac() {
        let group = Ipv4Addr::new(239, 129, 2, 3);
        let mut port = bound_with(&["224.0.0.0/4"], &[]);
        let frame = IpFrame::udp(group, 5353);
        let own = MacAddr([0x01, 0x00, 0x5e, 1, 2, 3]);
        assert_eq!(sent(&mut port, &frame.clone().in_frame_to(own)), Verdict::Forward);
        let others = [
            MacAddr([0x01, 0x00, 0x5e, 129, 2, 3]),
            MacAddr([0x01, 0x00, 0x5e, 1, 2, 4]),
            MacAddr::BROADCAST,
            GATEWAY,
        ];
        for mac in others {
            assert_eq!(
                sent(&mut port, &frame.clone().in_frame_to(mac)),
                drop_for(DropReason::MulticastMac),
                "{mac}"
            );
        }
    }
}
