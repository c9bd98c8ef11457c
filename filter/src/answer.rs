//! What Softnet answers to the VM itself, as its router would: ICMP errors about packets that the VM sent.

use core::net::Ipv4Addr;

use softnet_wire::build::{Builder, Unreachable};
use softnet_wire::icmpv4::{ECHO, ECHO_REPLY, FRAGMENTATION_NEEDED};

use crate::ipv4::{ICMP, Packet, Part};
use crate::rate::AnswerRate;
use crate::segment::Segment;
use crate::time::Timestamp;
use crate::transmit::{CAPACITY, OwnFrame};

/// The answers to one VM.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    rate: AnswerRate,
}

impl Answers {
    /// L3: to a packet that is too long for the link and must not be fragmented (RFC 1191, section 4). `bytes` are the
    /// packet's. `None` if the rate is exceeded, or no host may answer such a packet.
    pub(crate) fn fragmentation_needed(
        &mut self,
        packet: Packet<'_>,
        bytes: &[u8],
        segment: &Segment,
        now: Timestamp,
    ) -> Option<OwnFrame> {
        let error = Unreachable { code: FRAGMENTATION_NEEDED, next_hop_mtu: segment.mtu, packet: bytes };
        self.unreachable(packet, error, segment.router.address, segment, now)
    }

    /// An ICMP error about `packet` from the address `from`, in a frame of the router.
    fn unreachable(
        &mut self,
        packet: Packet<'_>,
        error: Unreachable<'_>,
        from: Ipv4Addr,
        segment: &Segment,
        now: Timestamp,
    ) -> Option<OwnFrame> {
        if !may_be_answered(packet) || !self.rate.has_room(now) {
            return None;
        }
        self.rate.count(now);
        let frame: Builder<CAPACITY> =
            error.frame((segment.router.mac, from), (segment.vm_mac, packet.source()))?;
        Some(OwnFrame::new(frame))
    }
}

/// Whether a host may send an ICMP error about a packet that passed the rules L and S: not about another error, a
/// packet for a group, or a later fragment (RFC 1122, section 3.2.2).
fn may_be_answered(packet: Packet<'_>) -> bool {
    let is_icmp_error =
        |payload: &[u8]| packet.protocol() == ICMP && !matches!(payload.first(), Some(&(ECHO | ECHO_REPLY)));
    match packet.part() {
        Part::Whole(payload) | Part::First(payload) => {
            !is_icmp_error(payload) && !packet.destination().is_multicast()
        }
        Part::Later => false,
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::testing::*;
    use crate::verdict::DropReason;
    use crate::{Direction, MacAddr, Port, PortConfig};

    const DF: u16 = 0x4000;
    const MF: u16 = 0x2000;

    /// A bound port of a link that carries 1,400 bytes.
    fn narrow() -> Port {
        bound_by(PortConfig { mtu: 1400, ..config(&["192.168.64.77", "224.0.0.0/4"], &["8.8.8.8"]) })
    }

    /// A packet of 1,500 bytes that must not be fragmented.
    fn long() -> IpFrame {
        IpFrame::new(WORLD_IP, 17, udp(40_000, 80, &[7; 1472])).fragment(DF)
    }

    /// Whether the VM gets an answer to a frame that is dropped for `reason`.
    fn is_answered(port: &mut Port, frame: &[u8], reason: DropReason) -> bool {
        assert_eq!(port.from_vm(frame, NOW), drop_for(reason));
        let answer = port.poll_transmit();
        assert!(port.poll_transmit().is_none());
        answer.is_some_and(|(direction, _)| direction == Direction::FromHost)
    }

    /// L3: the answer names the link's MTU and quotes the packet, and comes from the gateway.
    #[test]
    fn l3_a_packet_that_must_not_be_fragmented_is_answered() {
        let mut port = narrow();
        let frame = long().frame();
        assert_eq!(frame.len(), 1514);
        assert_eq!(port.from_vm(&frame, NOW), drop_for(DropReason::Oversize));
        let (direction, answer) = port.poll_transmit().unwrap();
        assert_eq!(direction, Direction::FromHost);
        #[rustfmt::skip]
        let headers = [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xfe, 0x08, 0x00,
            0x45, 0, 0x02, 0x40, 0, 0, 0x40, 0, 64, 1, 0x37, 0x69, 192, 168, 64, 1, 192, 168, 64, 2,
            3, 4,
        ];
        assert_eq!(answer[..36], headers);
        assert_eq!(answer[38..42], [0, 0, 0x05, 0x78]);
        assert_eq!(answer[42..], frame[14..14 + 548]);
        assert_eq!(port.counters().answers, 1);
        assert_eq!(port.counters().from_host.forwarded_frames(), 1, "the ACK alone");
        assert_eq!(port.poll_transmit(), None);
        // One byte above the MTU, and none.
        let datagram =
            |len: usize| IpFrame::new(WORLD_IP, 17, udp(40_000, 80, &vec![7; len - 28])).fragment(DF).frame();
        assert!(is_answered(&mut port, &datagram(1401), DropReason::Oversize));
        assert_eq!(port.from_vm(&datagram(1400), NOW), crate::Verdict::Forward);
        assert_eq!(port.poll_transmit(), None);
    }

    /// L3: what may be fragmented is not answered; no host may do that.
    #[test]
    fn l3_a_packet_that_may_be_fragmented_is_dropped() {
        let mut port = narrow();
        for fragment in [0, MF, MF | 3, 3] {
            let frame = IpFrame::new(WORLD_IP, 254, [7; 1480]).fragment(fragment).frame();
            assert!(!is_answered(&mut port, &frame, DropReason::MustFragment), "{fragment:#06x}");
        }
        assert_eq!(port.counters().from_vm.dropped(DropReason::MustFragment), 4);
        assert_eq!(port.counters().answers, 0);
    }

    /// L3: nothing that would not pass if it were shorter is answered.
    #[test]
    fn l3_what_other_rules_drop_is_not_answered() {
        let mut port = narrow();
        let mut wrong_checksum = long().frame();
        wrong_checksum[24] ^= 1;
        let mut reserved = long();
        reserved.fragment |= 0x8000;
        let frames = [
            // L1, L2, L4, L5
            IpFrame { from_mac: STRANGER, ..long() }.frame(),
            ethernet(GATEWAY, VM, 0x86dd, &long().packet()),
            ethernet(GATEWAY, VM, 0x0806, &long().packet()),
            [&long().frame()[..], &[0]].concat(),
            long().in_frame_to(MacAddr::BROADCAST).frame(),
            long().in_frame_to(STRANGER).frame(),
            // S1 to S5
            IpFrame { from: OTHER_IP, ..long() }.frame(),
            wrong_checksum,
            IpFrame { ttl: 0, ..long() }.frame(),
            reserved.frame(),
            long().fragment(DF | MF).frame(),
            IpFrame::new(WORLD_IP, 17, udp(40_000, 80, &[7; 1472])[..1479].to_vec()).fragment(DF).frame(),
            // D1 to D6
            IpFrame { to: Ipv4Addr::LOCALHOST, ..long() }.frame(),
            IpFrame { to: Ipv4Addr::new(8, 8, 8, 8), ..long() }.frame(),
            IpFrame { to: OTHER_IP, ..long() }.frame(),
            IpFrame::new(WORLD_IP, 1, [5; 1480]).fragment(DF).frame(),
        ];
        for (index, frame) in frames.iter().enumerate() {
            assert!(!is_answered(&mut port, frame, DropReason::Oversize), "{index}");
        }
        assert!(is_answered(&mut port, &long().frame(), DropReason::Oversize));
        let mut unbound = Port::new(PortConfig { mtu: 1400, ..config(&[], &[]) }).unwrap();
        assert!(!is_answered(&mut unbound, &long().frame(), DropReason::Oversize));
    }

    /// L3: no errors about errors, groups and later fragments (RFC 1122, section 3.2.2).
    #[test]
    fn l3_some_packets_are_never_answered() {
        let mut port = narrow();
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let quote = IpFrame::new(OWN_IP, 17, [0; 1452]).packet();
        let error = IpFrame::new(WORLD_IP, 1, [&[3, 4, 0, 0, 0, 0, 0, 0], &quote[..]].concat());
        let to_group = IpFrame { to: group, ..long() }.in_frame_to(crate::l2::multicast_mac(group));
        let later = IpFrame::new(WORLD_IP, 17, [7; 1480]).fragment(DF | 3);
        for (name, frame) in [("error", error.fragment(DF)), ("group", to_group), ("fragment", later)] {
            assert!(!is_answered(&mut port, &frame.frame(), DropReason::Oversize), "{name}");
        }
        for kind in [0, 8] {
            let echo = [&[kind, 0, 0, 0], &[7; 1476][..]].concat();
            let frame = IpFrame::new(WORLD_IP, 1, echo).fragment(DF).frame();
            assert!(is_answered(&mut port, &frame, DropReason::Oversize), "{kind}");
        }
    }

    /// L3: 20 answers at once, then 10 a second, and one more does not take the place of another frame.
    #[test]
    fn l3_answers_are_limited() {
        let mut port = narrow();
        let answers = |port: &mut Port, frames: usize, at| {
            for _ in 0..frames {
                assert_eq!(port.from_vm(&long().frame(), at), drop_for(DropReason::Oversize));
            }
            core::iter::from_fn(|| port.poll_transmit()).count()
        };
        assert_eq!(answers(&mut port, 100, NOW), 20);
        assert_eq!(answers(&mut port, 100, NOW.saturating_add(Duration::from_millis(99))), 0);
        assert_eq!(answers(&mut port, 100, NOW.saturating_add(Duration::from_millis(100))), 1);
        assert_eq!(answers(&mut port, 100, NOW.saturating_add(Duration::from_secs(1))), 9);
        assert_eq!(answers(&mut port, 100, NOW.saturating_add(Duration::from_secs(60))), 20);
        assert_eq!(port.counters().answers, 50);
    }

    /// L3, B1: a DHCP message that is too long is not sent, and so has asked for nothing.
    #[test]
    fn l3_a_dhcp_message_that_is_too_long_has_no_effect() {
        let mut port = Port::new(PortConfig { mtu: 1400, ..config(&[], &[]) }).unwrap();
        let request = DhcpFrame { tail: [&[255][..], &[0; 1400]].concat(), ..DhcpFrame::request() };
        let mut packet = request.packet();
        packet.fragment = DF;
        assert!(!is_answered(&mut port, &packet.frame(), DropReason::Oversize));
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), drop_for(DropReason::ReplyTransaction));
        assert_eq!(port.lease(), None);
    }
}
