//! What Softnet answers to the VM itself, as its router or the peer would: ICMP errors about packets that the VM sent, and the
//! RST of a connection that the policy refuses (rules L3, J).

use core::net::Ipv4Addr;

use softnet_wire::build::{Builder, Reset, Unreachable};
use softnet_wire::icmpv4::{ECHO, ECHO_REPLY, FRAGMENTATION_NEEDED, PROHIBITED};
use softnet_wire::transport::flag;

use crate::config::OnBlock;
use crate::frame::Frame;
use crate::ipv4::{ICMP, Packet, Part, Tcp, Transport};
use crate::rate::AnswerRate;
use crate::segment::Segment;
use crate::time::Timestamp;
use crate::transmit::{CAPACITY, OwnFrame};
use crate::verdict::DropReason;

/// The answers to one VM.
#[derive(Debug)]
pub(crate) struct Answers {
    rate: AnswerRate,
    on_block: OnBlock,
}

/// What answers a packet that the policy refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind<'a> {
    /// A RST, to a SYN.
    Reset(Tcp<'a>),
    /// An ICMP error that says "prohibited".
    Prohibited,
}

/// J1: whether the policy refuses a packet that is dropped for this reason, and does not merely find it forged or malformed.
pub(crate) fn is_refusal(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::NeverDestination
            | DropReason::Blocked
            | DropReason::NotGlobal
            | DropReason::Multicast
            | DropReason::Neighbour
            | DropReason::GatewayProtocol
            | DropReason::ResolverPort
            | DropReason::HostOnly
    )
}

/// J1: what answers a refused packet: nothing if it is TCP but no SYN, an ICMP message other than an echo request, for a
/// group or for all, or a later fragment (RFC 1122, section 3.2.2).
pub(crate) fn kind_of<'a>(packet: Packet<'a>, segment: &Segment) -> Option<Kind<'a>> {
    let to = packet.destination();
    if to.is_multicast() || segment.is_broadcast(to) || matches!(packet.part(), Part::Later) {
        return None;
    }
    match Transport::parse(packet.protocol(), packet.part()).ok()? {
        Transport::Tcp(tcp) => {
            let flags = tcp.flags() & (flag::SYN | flag::ACK | flag::RST);
            (flags == flag::SYN).then_some(Kind::Reset(tcp))
        }
        Transport::Icmp(message) => (message.first() == Some(&ECHO)).then_some(Kind::Prohibited),
        Transport::Udp(_) | Transport::Opaque => Some(Kind::Prohibited),
    }
}

impl Answers {
    pub(crate) fn new(on_block: OnBlock) -> Self {
        Self { rate: AnswerRate::default(), on_block }
    }

    /// Whether the VM hears of what the policy refuses.
    pub(crate) fn answers_refusals(&self) -> bool {
        self.on_block == OnBlock::Reject
    }

    /// J1, J2: to a packet in a frame of the VM that the policy refuses, in the name of the address that was asked. `None`
    /// if nothing answers it, or the rate is exceeded.
    pub(crate) fn refusal(
        &mut self,
        frame: Frame<'_>,
        packet: Packet<'_>,
        segment: &Segment,
        now: Timestamp,
    ) -> Option<OwnFrame> {
        // RFC 1122, section 3.2.2, for a frame that was sent to more than one station.
        if self.on_block == OnBlock::Drop || frame.destination().is_group() {
            return None;
        }
        let to = packet.destination();
        match kind_of(packet, segment)? {
            Kind::Prohibited => {
                let error = Unreachable { code: PROHIBITED, next_hop_mtu: 0, packet: frame.payload() };
                self.unreachable(packet, error, to, segment, now)
            }
            // RFC 9293, section 3.10.7.1: the sequence number 0, and everything acknowledged.
            Kind::Reset(tcp) => {
                let reset = Reset {
                    source: (to, tcp.destination_port()),
                    destination: (packet.source(), tcp.source_port()),
                    sequence: 0,
                    acknowledgement: Some(tcp.sequence_end()),
                };
                self.limited(reset, segment, now)
            }
        }
    }

    /// F6, J1: to the VM whose connection a new policy has ended. `None` if the rate is exceeded.
    pub(crate) fn reset(&mut self, reset: Reset, segment: &Segment, now: Timestamp) -> Option<OwnFrame> {
        if self.on_block == OnBlock::Drop { None } else { self.limited(reset, segment, now) }
    }

    fn limited(&mut self, reset: Reset, segment: &Segment, now: Timestamp) -> Option<OwnFrame> {
        if !self.rate.has_room(now) {
            return None;
        }
        self.rate.count(now);
        Some(OwnFrame::new(reset.frame(segment.router.mac, segment.vm_mac)?))
    }

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

    /// The answers to a frame that is dropped.
    fn answers(port: &mut Port, frame: &[u8], now: Timestamp) -> Vec<OwnFrame> {
        assert!(!port.from_vm(frame, now).is_forward());
        core::iter::from_fn(|| port.poll_transmit()).map(|(_, frame)| frame).collect()
    }

    const LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

    /// J1: a refused SYN is answered by a RST that acknowledges it, in the name of the peer.
    #[test]
    fn j1_a_refused_syn_is_reset() {
        let mut port = bound();
        let syn = IpFrame::new(
            LAN,
            6,
            softnet_wire::make::tcp((OWN_IP, 40_000), (LAN, 443), 7, flag::SYN, b"abc").1,
        );
        let answers = answers(&mut port, &syn.frame(), NOW);
        assert_eq!(answers.len(), 1);
        let answer = &answers[0];
        #[rustfmt::skip]
        assert_eq!(answer[..24], [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xfe, 0x08, 0x00,
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6,
        ]);
        #[rustfmt::skip]
        assert_eq!(answer[26..50], [
            10, 0, 0, 9, 192, 168, 64, 2,
            // From port 443 to 40,000; 0; 7 and a SYN and three bytes; RST and ACK.
            0x01, 0xbb, 0x9c, 0x40, 0, 0, 0, 0, 0, 0, 0, 11, 0x50, 0x14, 0, 0,
        ]);
        assert_eq!(answer.len(), 54);
    }

    /// J1: all else that is refused is answered by ICMP 3/13, which quotes it.
    #[test]
    fn j1_other_refused_packets_are_prohibited() {
        let mut port = bound_with(&[], &["9.9.9.9"]);
        for (frame, reason) in [
            (IpFrame::udp(WORLD_IP, 53), DropReason::Blocked),
            (IpFrame::udp(LAN, 53), DropReason::NotGlobal),
            (IpFrame::icmp(LAN, 8), DropReason::NotGlobal),
            (IpFrame::new(GATEWAY_IP, 47, [1; 30]), DropReason::GatewayProtocol),
            (IpFrame::udp(NEIGHBOUR_IP, 53), DropReason::Neighbour),
            (IpFrame::udp(RESOLVER_IP, 80), DropReason::ResolverPort),
            (IpFrame::udp(Ipv4Addr::new(240, 0, 0, 1), 53), DropReason::NeverDestination),
            (IpFrame::new(LAN, 17, udp(1, 2, &[0; 64])[..32].to_vec()).fragment(MF), DropReason::NotGlobal),
        ] {
            let bytes = frame.frame();
            assert_eq!(port.from_vm(&bytes, NOW), drop_for(reason));
            let (direction, answer) = port.poll_transmit().unwrap();
            assert_eq!(direction, Direction::FromHost);
            assert_eq!(answer[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0xfe]);
            assert_eq!(answer[26..30], frame.to.octets(), "J2: in the name of whom it was for");
            assert_eq!(answer[30..36], [192, 168, 64, 2, 3, 13]);
            assert_eq!(answer[38..42], [0; 4]);
            assert_eq!(answer[42..], bytes[14..]);
            assert_eq!(port.poll_transmit(), None);
        }
        let mut host_only = bound_by(PortConfig { net_type: crate::NetType::Host, ..config(&[], &[]) });
        assert_eq!(answers(&mut host_only, &IpFrame::udp(WORLD_IP, 53).frame(), NOW).len(), 1);
        assert_eq!(port.counters().answers, 8);
    }

    /// J1: what no host may answer, and what is forged or malformed, is dropped in silence.
    #[test]
    fn j1_never_answered() {
        let mut port = bound_with(&["in 1.1.1.1"], &["10.0.0.9", "in 9.9.9.9"]);
        let segment = |flags| softnet_wire::make::tcp((OWN_IP, 40_000), (LAN, 443), 7, flags, b"").1;
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let mut wrong_checksum = IpFrame::udp(LAN, 53).frame();
        wrong_checksum[24] ^= 1;
        for frame in [
            // Segments that ask for no connection.
            IpFrame::new(LAN, 6, segment(flag::ACK)).frame(),
            IpFrame::new(LAN, 6, segment(flag::SYN | flag::ACK)).frame(),
            IpFrame::new(LAN, 6, segment(flag::RST)).frame(),
            IpFrame::new(LAN, 6, segment(flag::SYN | flag::RST)).frame(),
            // Errors, replies, later fragments, groups and broadcasts.
            IpFrame::icmp(LAN, 0).frame(),
            IpFrame::new(
                LAN,
                1,
                [&[3, 1, 0, 0, 0, 0, 0, 0], &IpFrame::udp(LAN, 9).reversed().packet()[..]].concat(),
            )
            .frame(),
            IpFrame::new(LAN, 17, [0; 8]).fragment(9).frame(),
            IpFrame::udp(group, 5_353).in_frame_to(crate::l2::multicast_mac(group)).frame(),
            IpFrame::udp(Ipv4Addr::BROADCAST, 9).frame(),
            IpFrame::udp(Ipv4Addr::new(192, 168, 64, 255), 9).frame(),
            IpFrame::udp(LAN, 53).in_frame_to(MacAddr::BROADCAST).frame(),
            // L, A, S, C
            IpFrame { from_mac: STRANGER, ..IpFrame::udp(LAN, 53) }.frame(),
            IpFrame { from: OTHER_IP, ..IpFrame::udp(LAN, 53) }.frame(),
            wrong_checksum,
            IpFrame::udp(WORLD_IP, 53).in_frame_to(STRANGER).frame(),
            ArpFrame::request(NEIGHBOUR_IP).frame(),
            IpFrame::udp(LAN, 68).frame(),
            // No flow.
            IpFrame::new(WORLD_IP, 6, segment(flag::ACK)).frame(),
        ] {
            assert_eq!(answers(&mut port, &frame, NOW), [], "{frame:02x?}");
        }
        assert_eq!(port.counters().answers, 0);
        // Nor what is on its way to the VM.
        assert!(!port.from_host(&IpFrame::tcp(WORLD_IP, 22).reversed().frame(), NOW).is_forward());
        assert_eq!(port.poll_transmit(), None);
        assert_eq!(answers(&mut port, &IpFrame::udp(LAN, 53).frame(), NOW).len(), 1);
    }

    /// J1: `--on-block drop` is silent; a link's MTU is told all the same.
    #[test]
    fn j1_drop_is_silent() {
        let mut port =
            bound_by(PortConfig { on_block: OnBlock::Drop, mtu: 1400, ..config(&[], &["10.0.0.9"]) });
        for frame in [IpFrame::tcp(LAN, 80), IpFrame::udp(LAN, 80), IpFrame::icmp(NEIGHBOUR_IP, 8)] {
            assert_eq!(answers(&mut port, &frame.frame(), NOW), []);
        }
        assert!(is_answered(&mut port, &long().frame(), DropReason::Oversize));
    }

    /// J1, J3: 20 at once, then 10 a second, of all kinds together; they are counted apart from frames.
    #[test]
    fn j3_answers_are_limited_and_counted_apart() {
        let mut port = bound();
        let mut answered = 0;
        for round in 0..50 {
            let frame = if round % 2 == 0 { IpFrame::tcp(LAN, 80) } else { IpFrame::udp(LAN, 80) };
            answered += answers(&mut port, &frame.frame(), NOW).len();
        }
        assert_eq!(answered, 20);
        let later = NOW.saturating_add(Duration::from_millis(500));
        let more: usize =
            (0..50).map(|_| answers(&mut port, &IpFrame::udp(LAN, 80).frame(), later).len()).sum();
        assert_eq!(more, 5);
        let counters = port.counters();
        assert_eq!((counters.answers, counters.from_vm.dropped(DropReason::NotGlobal)), (25, 100));
        assert_eq!(counters.from_host.forwarded_frames(), 1, "the ACK alone");
        // Those that are not fetched make nothing grow.
        for _ in 0..100 {
            let _ =
                port.from_vm(&IpFrame::udp(LAN, 80).frame(), later.saturating_add(Duration::from_secs(9)));
        }
        assert_eq!(core::iter::from_fn(|| port.poll_transmit()).count(), 20);
    }
}
