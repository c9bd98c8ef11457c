//! Which packets pass as parts of a flow, and which begin one (rules P3, P4, F).
//!
//! A policy with `in` or `out` entries is *stateful*: every packet belongs to a flow or begins one. Under any other policy
//! the entries judge each packet of the VM by itself, and flows decide in one case only: what reaches a published port of the VM
//! gets its answer even where the VM may not begin (P4).

pub(crate) mod fragments;
pub(crate) mod packet;
pub(crate) mod peers;
pub(crate) mod state;
pub(crate) mod table;

use core::net::Ipv4Addr;

use crate::destination::{Destination, Destinations};
use crate::flow::fragments::Identity;
use crate::flow::packet::{Relation, Seen, relation};
use crate::flow::state::{Ended, Flows, Membership};
use crate::flow::table::{Key, Share};
use crate::frame::Frame;
use crate::ipv4::{self, Packet, Part, Transport};
use crate::l2;
use crate::lease::Lease;
use crate::policy::entry::Origin;
use crate::segment::Segment;
use crate::time::Timestamp;
use crate::verdict::DropReason;

/// What flows are for under the present policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
enum Mode {
    /// Nothing: there are none.
    #[default]
    Off,
    /// Answers from published ports to peers that the VM may not reach otherwise (P4).
    Published,
    /// The same, and to know what lives when a policy becomes stateful (P6).
    Recorded,
    /// They decide (P3).
    Stateful,
}

/// What a packet is judged by.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) segment: &'a Segment,
    pub(crate) destinations: &'a Destinations,
    /// The VM's lease, and the number that it has among all that the VM had.
    pub(crate) lease: Option<&'a Lease>,
    pub(crate) lease_number: u32,
    pub(crate) now: Timestamp,
}

/// Judges packets by their flows.
#[derive(Debug)]
pub(crate) struct Tracker {
    mode: Mode,
    flows: Option<Box<Flows>>,
    seed: u64,
    /// Flows are recorded whatever the policy (P6).
    records: bool,
}

impl Tracker {
    /// Without flows until [`Tracker::follow_policy`] finds that they are needed. `seed` is a random number.
    pub(crate) fn new(seed: u64) -> Self {
        Self { mode: Mode::Off, flows: None, seed, records: false }
    }

    /// From now on records flows whatever the policy.
    pub(crate) fn record(&mut self, destinations: &Destinations) {
        self.records = true;
        self.follow_policy(destinations);
    }

    /// Does what the present policy needs. Allocates when flows become necessary.
    pub(crate) fn follow_policy(&mut self, destinations: &Destinations) {
        self.mode = if destinations.is_stateful() {
            Mode::Stateful
        } else if self.records {
            Mode::Recorded
        } else if destinations.publishes() {
            Mode::Published
        } else {
            Mode::Off
        };
        if self.mode == Mode::Off {
            self.flows = None;
        } else if self.flows.is_none() {
            self.flows = Some(Box::new(Flows::new(self.seed)));
        }
    }

    /// F6: ends the flows that the present policy forbids.
    pub(crate) fn end_forbidden(&mut self, context: &Context<'_>) {
        let mode = self.mode;
        let Some(flows) = &mut self.flows else { return };
        flows.belong_to(context.lease_number);
        flows.end_forbidden(context.now, |origin, key| context.allows(mode, origin, key));
    }

    /// Whether what is open to the VM by its address alone passes without a look at flows.
    #[inline(always)]
    pub(crate) fn passes_the_open(&self) -> bool {
        self.mode <= Mode::Published
    }

    /// Whether packets on their way to the VM need no look at flows.
    #[inline(always)]
    pub(crate) fn is_off(&self) -> bool {
        self.flows.is_none()
    }

    /// Whether the policy is stateful.
    #[inline(always)]
    pub(crate) fn is_stateful(&self) -> bool {
        self.mode == Mode::Stateful
    }

    /// Whether an unfragmented packet of the VM belongs to a settled flow, of which there is nothing to note. Nearly all do.
    /// In a stateful policy it passes (F2).
    #[inline(always)]
    pub(crate) fn knows_from_vm(
        &mut self,
        peer: Ipv4Addr,
        transport: Transport<'_>,
        lease_number: u32,
        now: Timestamp,
    ) -> bool {
        let key = match transport {
            Transport::Tcp(tcp) if !tcp.begins_or_ends() => {
                Key::new(peer, ipv4::TCP, tcp.source_port(), tcp.destination_port())
            }
            Transport::Udp(udp) => Key::new(peer, ipv4::UDP, udp.source_port, udp.destination_port),
            _ => return false,
        };
        self.flows.as_mut().is_some_and(|flows| flows.settled(key, lease_number, now).is_some())
    }

    /// The same of a packet on its way to the VM, which passes under any policy (I1, F2).
    #[inline(always)]
    pub(crate) fn knows_from_host(
        &mut self,
        packet: Packet<'_>,
        part: Part<'_>,
        lease: Option<&Lease>,
        lease_number: u32,
        now: Timestamp,
    ) -> bool {
        if lease.is_none_or(|lease| lease.address != packet.destination()) {
            return false;
        }
        let Some(flows) = self.flows.as_mut() else { return false };
        let part @ Part::Whole(_) = part else { return false };
        match Transport::parse(packet.protocol(), part) {
            Ok(Transport::Udp(udp)) => {
                let key = Key::new(packet.source(), ipv4::UDP, udp.destination_port, udp.source_port);
                flows.settled(key, lease_number, now).is_some()
            }
            Ok(Transport::Tcp(tcp)) if !tcp.begins_or_ends() => {
                let key = Key::new(packet.source(), ipv4::TCP, tcp.destination_port(), tcp.source_port());
                flows.settled(key, lease_number, now).map(|flow| flow.note_given(tcp)).is_some()
            }
            _ => false,
        }
    }

    /// F2: whether a peer has a flow that opens it to ARP (A5): what is merely recorded opens nothing.
    pub(crate) fn has_peer(
        &mut self,
        destinations: &Destinations,
        peer: Ipv4Addr,
        lease_number: u32,
        now: Timestamp,
    ) -> bool {
        let mode = self.mode;
        let opens = |origin, key: Key| {
            mode == Mode::Stateful
                || (origin == Origin::Outside && destinations.is_published(key.protocol, key.own_port()))
        };
        self.flows.as_mut().is_some_and(|flows| flows.has_peer(peer, lease_number, now, opens))
    }

    /// The connection of the packet that was dropped because a new policy has ended it.
    pub(crate) fn take_ended(&mut self) -> Option<Ended> {
        self.flows.as_mut()?.take_ended()
    }

    /// The VM has heard that a connection has ended, or is not to hear of it.
    pub(crate) fn forget(&mut self, ended: Ended) {
        if let Some(flows) = &mut self.flows {
            flows.remove(ended.key);
        }
    }

    /// Judges a packet of the VM that has its own address as the source, and is not DHCP.
    pub(crate) fn judge_from_vm(
        &mut self,
        context: &Context<'_>,
        lease: &Lease,
        frame: Frame<'_>,
        packet: Packet<'_>,
        transport: Transport<'_>,
    ) -> Result<(), DropReason> {
        let to = Destination::of(packet, transport);
        let Some(flows) = &mut self.flows else {
            return context.destinations.judge(context.segment, lease, frame.destination(), to);
        };
        flows.belong_to(context.lease_number);
        if self.mode == Mode::Stateful {
            judge_from_vm(flows, context, lease, frame, packet, transport)
        } else {
            judge_stateless_from_vm(flows, self.mode, context, lease, frame, packet, transport)
        }
    }

    /// Judges a packet on its way to the VM that is not DHCP.
    pub(crate) fn judge_from_host(
        &mut self,
        context: &Context<'_>,
        packet: Packet<'_>,
    ) -> Result<(), DropReason> {
        let Some(flows) = &mut self.flows else { return Ok(()) };
        flows.belong_to(context.lease_number);
        if self.mode == Mode::Stateful {
            judge_from_host(flows, context, packet)
        } else {
            note_stateless_from_host(flows, self.mode, context, packet)
        }
    }
}

impl Context<'_> {
    /// P4, F6: whether a flow of `origin` may begin now, or go on.
    fn allows(&self, mode: Mode, origin: Origin, key: Key) -> bool {
        let Some(lease) = self.lease else { return false };
        let to = Destination::of_flow(key);
        let (peer, protocol) = (key.peer(), key.protocol);
        let may_answer = || self.destinations.may_answer(self.segment, lease, to);
        match (mode, origin) {
            (Mode::Stateful, Origin::Outside) => {
                let own_port = Some(key.own_port());
                let judgement = self.destinations.judge_incoming(peer, protocol, to.port, own_port);
                judgement.is_ok() && may_answer()
            }
            (Mode::Stateful, Origin::Vm) => self.destinations.judge_peer(self.segment, lease, to).is_ok(),
            _ => {
                let is_published = origin == Origin::Outside
                    && self.destinations.is_published(protocol, key.own_port())
                    && may_answer();
                is_published || self.destinations.judge_peer(self.segment, lease, to).is_ok()
            }
        }
    }
}

/// The rules F for a packet of the VM.
fn judge_from_vm(
    flows: &mut Flows,
    context: &Context<'_>,
    lease: &Lease,
    frame: Frame<'_>,
    packet: Packet<'_>,
    transport: Transport<'_>,
) -> Result<(), DropReason> {
    let Context { segment, destinations, now, .. } = *context;
    let peer = packet.destination();
    let judge =
        || destinations.judge(segment, lease, frame.destination(), Destination::of(packet, transport));
    // F1: groups have no flows.
    if peer.is_multicast() {
        return judge();
    }
    if packet.is_fragment() {
        // S4
        destinations.judge_fragment(segment, lease, Destination::of(packet, transport))?;
        if !is_fragment_of_flow(flows, Origin::Vm, packet, transport, now) {
            judge()?;
            return Err(DropReason::FragmentFlow);
        }
    } else {
        match relation(Origin::Vm, packet, transport) {
            Relation::Of(seen) => match flows.note(Origin::Vm, seen, now) {
                Membership::Live => {}
                Membership::Ended(ended) => return Err(flows.note_ended(ended)),
                Membership::None => {
                    judge()?;
                    return flows.begin(Origin::Vm, seen, Share::Whole, now);
                }
            },
            // F2: an error is sent to whoever sent the packet.
            Relation::Icmp { source, flow } => {
                if source != peer || !flow.is_some_and(|flow| flows.has(flow, now)) {
                    judge()?;
                    return Err(DropReason::NoFlow);
                }
            }
        }
    }
    // L5
    if frame.head() == segment.vm_to_router {
        return Ok(());
    }
    l2::judge_ipv4_destination(frame.destination(), peer, segment)
}

/// The rules F for a packet on its way to the VM.
fn judge_from_host(flows: &mut Flows, context: &Context<'_>, packet: Packet<'_>) -> Result<(), DropReason> {
    let Context { segment, destinations, now, .. } = *context;
    let (peer, own) = (packet.source(), packet.destination());
    // I4
    let transport =
        Transport::parse(packet.protocol(), packet.part()).map_err(|_| DropReason::HostMalformed)?;
    let judge =
        |own_port| destinations.judge_incoming(peer, packet.protocol(), transport.source_port(), own_port);
    // F1: neither groups nor broadcasts have flows.
    if own.is_multicast() || segment.is_broadcast(own) {
        return judge(None);
    }
    let Some(lease) = context.lease.filter(|lease| lease.address == own) else {
        return Err(DropReason::NoFlow);
    };
    if packet.is_fragment() {
        // F5
        let is_distinguished = destinations.has_ports_for(peer);
        if !is_distinguished && is_fragment_of_flow(flows, Origin::Outside, packet, transport, now) {
            return Ok(());
        }
        judge(None)?;
        return Err(DropReason::FragmentFlow);
    }
    match relation(Origin::Outside, packet, transport) {
        Relation::Of(seen) => match flows.note(Origin::Outside, seen, now) {
            Membership::Live => Ok(()),
            Membership::Ended(ended) => Err(flows.note_ended(ended)),
            Membership::None => {
                judge(Some(seen.key.own_port()))?;
                begin_from_outside(flows, context, lease, seen)
            }
        },
        Relation::Icmp { source, flow } => {
            if source == own && flow.is_some_and(|flow| flows.has(flow, now)) {
                return Ok(());
            }
            judge(None)?;
            Err(DropReason::NoFlow)
        }
    }
}

/// F1: begins a flow with an allowed packet from outside. Where the VM may not answer whatever the policy says (D1, D9, H2),
/// there is no flow: the packet passes as the rules I let it, and its answer does not.
fn begin_from_outside(
    flows: &mut Flows,
    context: &Context<'_>,
    lease: &Lease,
    seen: Seen<'_>,
) -> Result<(), DropReason> {
    if !seen.can_begin() {
        return Err(DropReason::NoFlow);
    }
    if !context.destinations.may_answer(context.segment, lease, Destination::of_flow(seen.key)) {
        return Ok(());
    }
    flows.begin(Origin::Outside, seen, Share::Whole, context.now)
}

/// F5: whether a fragment is one of a flow. A first one is noted.
fn is_fragment_of_flow(
    flows: &mut Flows,
    sender: Origin,
    packet: Packet<'_>,
    transport: Transport<'_>,
    now: Timestamp,
) -> bool {
    let peer = if sender == Origin::Vm { packet.destination() } else { packet.source() };
    let identity = Identity { peer, protocol: packet.protocol(), identification: packet.identification() };
    if matches!(packet.part(), Part::Later) {
        return flows.has_fragment(sender, identity, now);
    }
    let Relation::Of(seen) = relation(sender, packet, transport) else { return false };
    let is_of_flow = flows.note(sender, seen, now) == Membership::Live;
    if is_of_flow {
        flows.note_fragment(sender, identity, now);
    }
    is_of_flow
}

/// P4: a packet of the VM under a policy that is not stateful. What the VM may not send by itself passes if it answers what
/// reached a published port.
fn judge_stateless_from_vm(
    flows: &mut Flows,
    mode: Mode,
    context: &Context<'_>,
    lease: &Lease,
    frame: Frame<'_>,
    packet: Packet<'_>,
    transport: Transport<'_>,
) -> Result<(), DropReason> {
    let Context { segment, destinations, now, .. } = *context;
    let to = Destination::of(packet, transport);
    let judgement = destinations.judge(segment, lease, frame.destination(), to);
    let refusal = match judgement {
        Ok(()) if mode != Mode::Recorded => return Ok(()),
        Ok(()) => None,
        Err(reason) if is_of_entries(reason) => Some(reason),
        Err(reason) => return Err(reason),
    };
    if packet.is_fragment() {
        return judgement;
    }
    let answers_published = |flows: &Flows, key: Key| {
        destinations.is_published(key.protocol, key.own_port())
            && flows.origin(key) == Some(Origin::Outside)
            && flows.has(key, now)
    };
    match (relation(Origin::Vm, packet, transport), refusal) {
        (Relation::Of(seen), None) => {
            match flows.note(Origin::Vm, seen, now) {
                Membership::Live => {}
                // What is allowed again needs no new beginning.
                Membership::Ended(ended) => flows.remove(ended.key),
                Membership::None => record(flows, Origin::Vm, seen, context),
            }
            return Ok(());
        }
        // What is refused does nothing to a flow that does not let it through.
        (Relation::Of(seen), Some(reason)) => {
            if !flows.is_ended(seen.key) && !answers_published(flows, seen.key) {
                return Err(reason);
            }
            match flows.note(Origin::Vm, seen, now) {
                Membership::Live => {}
                Membership::Ended(ended) => return Err(flows.note_ended(ended)),
                Membership::None => return Err(reason),
            }
        }
        (Relation::Icmp { .. }, None) => return Ok(()),
        (Relation::Icmp { source, flow }, Some(reason)) => {
            let is_to_sender = source == to.address;
            if !is_to_sender || !flow.is_some_and(|key| answers_published(flows, key)) {
                return Err(reason);
            }
        }
    }
    l2::judge_ipv4_destination(frame.destination(), to.address, segment)
}

/// P6: remembers a packet that passes whether there is room for its flow or not. Where published ports need flows (P4),
/// this leaves room for them.
fn record(flows: &mut Flows, sender: Origin, seen: Seen<'_>, context: &Context<'_>) {
    let share = if context.destinations.publishes() { Share::Part } else { Share::Whole };
    let _ = flows.begin(sender, seen, share, context.now);
}

/// Whether entries, or the lack of them, closed a destination.
fn is_of_entries(reason: DropReason) -> bool {
    matches!(
        reason,
        DropReason::Blocked | DropReason::NotGlobal | DropReason::Neighbour | DropReason::ResolverPort
    )
}

/// P4: a packet on its way to the VM under a policy that is not stateful. It passes (I1), unless it would begin a flow at a
/// published port for which there is no room.
fn note_stateless_from_host(
    flows: &mut Flows,
    mode: Mode,
    context: &Context<'_>,
    packet: Packet<'_>,
) -> Result<(), DropReason> {
    let Context { segment, destinations, now, .. } = *context;
    let Some(lease) = context.lease.filter(|lease| lease.address == packet.destination()) else {
        return Ok(());
    };
    let Ok(transport) = Transport::parse(packet.protocol(), packet.part()) else { return Ok(()) };
    if packet.is_fragment() {
        return Ok(());
    }
    let Relation::Of(seen) = relation(Origin::Outside, packet, transport) else { return Ok(()) };
    let key = seen.key;
    let is_published = destinations.is_published(key.protocol, key.own_port());
    if mode != Mode::Recorded && !is_published {
        return Ok(());
    }
    match flows.note(Origin::Outside, seen, now) {
        Membership::Live => return Ok(()),
        Membership::Ended(ended) if context.allows(mode, ended.origin, key) => {
            flows.remove(key);
            return Ok(());
        }
        Membership::Ended(ended) => return Err(flows.note_ended(ended)),
        Membership::None => {}
    }
    let to = Destination::of_flow(key);
    if !seen.can_begin() || !destinations.may_answer(segment, lease, to) {
        return Ok(());
    }
    if is_published && destinations.judge_peer(segment, lease, to).is_err() {
        return flows.begin(Origin::Outside, seen, Share::Whole, now);
    }
    if mode == Mode::Recorded {
        record(flows, Origin::Outside, seen, context);
    }
    Ok(())
}

impl Destination {
    /// That of a packet of the VM.
    #[inline(always)]
    pub(crate) fn of(packet: Packet<'_>, transport: Transport<'_>) -> Self {
        Self {
            address: packet.destination(),
            protocol: packet.protocol(),
            port: transport.destination_port(),
            is_fragment: packet.is_fragment(),
        }
    }

    /// That of the packets that the VM sends in a flow.
    fn of_flow(key: Key) -> Self {
        let has_ports = matches!(key.protocol, ipv4::TCP | ipv4::UDP);
        Self {
            address: key.peer(),
            protocol: key.protocol,
            port: has_ports.then_some(key.peer_port()),
            is_fragment: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use softnet_wire::make;
    use softnet_wire::transport::flag::{ACK, FIN, RST, SYN};

    use super::*;
    use crate::testing::*;
    use crate::{ExposedPort, NetType, Policy, PolicyError, Port, PortConfig, PublishedPort, Verdict};

    const MF: u16 = 0x2000;
    const LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);
    const NO_FLOW: Verdict = Verdict::Drop(DropReason::NoFlow);
    const BLOCKED: Verdict = Verdict::Drop(DropReason::Blocked);
    const INCOMING: Verdict = Verdict::Drop(DropReason::IncomingBlocked);

    fn after(secs: u64) -> Timestamp {
        NOW.saturating_add(Duration::from_secs(secs))
    }

    /// A nanosecond before so many seconds have passed.
    fn just_before(secs: u64) -> Timestamp {
        Timestamp::from_nanos(after(secs).as_nanos() - 1)
    }

    /// A segment of the VM's port 40,000 and the peer's, with the numbers of a connection that begins with 100 and 500.
    fn segment(peer: Ipv4Addr, port: u16, flags: u8, sequence: u32, acknowledgement: u32) -> IpFrame {
        let mut segment = make::tcp((OWN_IP, 40_000), (peer, port), sequence, flags, b"").1;
        segment[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
        IpFrame::new(peer, 6, segment)
    }

    /// The same from the peer's port to the VM's.
    fn from_peer(
        peer: Ipv4Addr,
        own: u16,
        port: u16,
        flags: u8,
        sequence: u32,
        acknowledgement: u32,
    ) -> IpFrame {
        let mut segment = make::tcp((peer, port), (OWN_IP, own), sequence, flags, b"").1;
        segment[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
        IpFrame { from: peer, to: OWN_IP, ..IpFrame::new(OWN_IP, 6, segment).reversed_stations() }
    }

    fn datagram(peer: Ipv4Addr, own: u16, port: u16) -> (IpFrame, IpFrame) {
        let to = IpFrame::new(peer, 17, udp(own, port, b"data"));
        let back = IpFrame::new(peer, 17, udp(port, own, b"data")).reversed();
        (to, back)
    }

    fn echo(peer: Ipv4Addr, kind: u8, identifier: u8) -> IpFrame {
        IpFrame::new(peer, 1, [kind, 0, 0, 0, 0, identifier, 0, 1])
    }

    fn from_vm(port: &mut Port, frame: &IpFrame, now: Timestamp) -> Verdict {
        port.from_vm(&frame.frame(), now)
    }

    fn from_host(port: &mut Port, frame: &IpFrame, now: Timestamp) -> Verdict {
        port.from_host(&frame.frame(), now)
    }

    /// A connection that the VM begins, up to its handshake.
    fn connect(port: &mut Port, peer: Ipv4Addr, to: u16, now: Timestamp) {
        assert_eq!(from_vm(port, &segment(peer, to, SYN, 100, 0), now), Verdict::Forward);
        assert_eq!(from_host(port, &from_peer(peer, 40_000, to, SYN | ACK, 500, 101), now), Verdict::Forward);
        assert_eq!(from_vm(port, &segment(peer, to, ACK, 101, 501), now), Verdict::Forward);
    }

    /// A stateful port whose entries say nothing about the peers of the tests.
    fn stateful() -> Port {
        bound_with(&["in 1.1.1.1"], &[])
    }

    fn policy(allow: &[&str], block: &[&str]) -> Policy {
        config(allow, block).policy
    }

    /// P3: with bare entries nothing is remembered: what would be an answer is judged like everything else.
    #[test]
    fn p3_bare_entries_are_stateless() {
        let mut port = bound_with(&["10.0.0.9:80"], &["9.9.9.9"]);
        let (query, answer) = datagram(WORLD_IP, 40_000, 53);
        assert_eq!(from_host(&mut port, &answer, NOW), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &query, NOW), BLOCKED);
        let late = segment(LAN, 80, ACK, 1, 1);
        assert_eq!(from_vm(&mut port, &late, NOW), Verdict::Forward, "no connection is asked for");
    }

    /// P3: beside an entry with a direction, entries without one hold for both, and answers pass whatever the entries say.
    #[test]
    fn p3_directions() {
        let mut port = bound_with(&["out 10.0.0.9:80", "in 10.0.0.0/8"], &["10.0.0.0/8", "9.9.9.9"]);
        let (query, answer) = datagram(WORLD_IP, 40_000, 53);
        assert_eq!(from_vm(&mut port, &query, NOW), BLOCKED);
        assert_eq!(from_host(&mut port, &answer, NOW), INCOMING);
        connect(&mut port, LAN, 80, NOW);
        assert_eq!(from_vm(&mut port, &segment(LAN, 81, SYN, 100, 0), NOW), BLOCKED);
        // On one prefix the block, in the direction that it is for: 10.0.0.0/8 is blocked both ways.
        assert_eq!(from_host(&mut port, &from_peer(LAN, 22, 5_000, SYN, 500, 0), NOW), INCOMING);
        let mut port = bound_with(&["in 10.0.0.9"], &["10.0.0.0/8"]);
        assert_eq!(from_vm(&mut port, &segment(LAN, 80, SYN, 100, 0), NOW), BLOCKED);
        assert_eq!(from_host(&mut port, &from_peer(LAN, 22, 5_000, SYN, 500, 0), NOW), Verdict::Forward);
        let answer = IpFrame::new(LAN, 6, make::tcp((OWN_IP, 22), (LAN, 5_000), 900, SYN | ACK, b"").1);
        assert_eq!(from_vm(&mut port, &answer, NOW), Verdict::Forward);
    }

    /// P3: the port of an entry is the peer's, for `in` too.
    #[test]
    fn p3_ports_are_the_peers() {
        let mut port = bound_with(&[], &["in 10.0.0.9:5000", "in 10.0.0.8:22"]);
        assert_eq!(from_host(&mut port, &from_peer(LAN, 22, 5_000, SYN, 500, 0), NOW), INCOMING);
        assert_eq!(from_host(&mut port, &from_peer(LAN, 22, 5_001, SYN, 500, 0), NOW), Verdict::Forward);
        let other = Ipv4Addr::new(10, 0, 0, 8);
        assert_eq!(from_host(&mut port, &from_peer(other, 22, 5_000, SYN, 500, 0), NOW), Verdict::Forward);
    }

    /// A port with published ports 22 of TCP and 53 of UDP.
    fn published(allow: &[&str], block: &[&str]) -> Port {
        let published =
            vec![PublishedPort { protocol: 17, port: 53 }, PublishedPort { protocol: 6, port: 22 }];
        bound_by(PortConfig { published, ..config(allow, block) })
    }

    /// P4: what reaches a published port is answered, however much is blocked; the VM begins nothing by it.
    #[test]
    fn p4_published_ports_answer_under_any_block() {
        for block in [
            &["@host"][..],
            &["0.0.0.0/0"],
            &["192.168.64.1", "10.0.0.0/8", "9.9.9.9"],
            &["0.0.0.0/0:1-65535"],
        ] {
            for peer in [GATEWAY_IP, LAN] {
                let mut port = published(&[], block);
                let own = |own: u16, flags| {
                    IpFrame::new(peer, 6, make::tcp((OWN_IP, own), (peer, 5_000), 900, flags, b"").1)
                };
                for flags in [SYN, SYN | ACK, ACK, RST] {
                    assert!(!from_vm(&mut port, &own(22, flags), NOW).is_forward(), "nothing came in before");
                }
                let syn = from_peer(peer, 22, 5_000, SYN, 500, 0);
                assert_eq!(from_host(&mut port, &syn, NOW), Verdict::Forward);
                for flags in [SYN | ACK, ACK, RST | ACK] {
                    assert_eq!(
                        from_vm(&mut port, &own(22, flags), NOW),
                        Verdict::Forward,
                        "{block:?} {peer}"
                    );
                }
                let elsewhere = own(22, ACK).in_frame_to(STRANGER);
                assert_eq!(from_vm(&mut port, &elsewhere, NOW), drop_for(DropReason::DestinationMac));
                // Another port of the peer, another of the VM, and one that is not published.
                let other = IpFrame::new(peer, 6, make::tcp((OWN_IP, 22), (peer, 5_001), 900, ACK, b"").1);
                assert!(!from_vm(&mut port, &other, NOW).is_forward());
                assert_eq!(
                    from_host(&mut port, &from_peer(peer, 23, 5_000, SYN, 500, 0), NOW),
                    Verdict::Forward
                );
                assert!(!from_vm(&mut port, &own(23, SYN | ACK), NOW).is_forward());
                // UDP, and the error of a VM that serves nothing.
                let (to, from) = datagram(peer, 53, 6_000);
                assert!(!from_vm(&mut port, &to, NOW).is_forward());
                assert_eq!(from_host(&mut port, &from, NOW), Verdict::Forward);
                assert_eq!(from_vm(&mut port, &to, NOW), Verdict::Forward);
                let quote = [&[3, 3, 0, 0, 0, 0, 0, 0], &from.packet()[..]].concat();
                assert_eq!(from_vm(&mut port, &IpFrame::new(peer, 1, quote.clone()), NOW), Verdict::Forward);
                let astray = IpFrame::new(Ipv4Addr::new(10, 0, 0, 10), 1, quote);
                assert!(!from_vm(&mut port, &astray, NOW).is_forward());
            }
        }
        // A flow that the VM may not begin is over when it has been idle.
        let mut port = published(&[], &["0.0.0.0/0"]);
        let (to, from) = datagram(LAN, 53, 6_000);
        assert_eq!(from_host(&mut port, &from, NOW), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &to, after(29)), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &to, after(29 + 301)), BLOCKED);
    }

    /// P4, D1, D9, H2: a published port opens nothing that no entry opens.
    #[test]
    fn p4_published_ports_keep_d1_d9_and_h2() {
        let mut port = published(&[], &["0.0.0.0/0"]);
        let reserved = Ipv4Addr::new(240, 0, 0, 1);
        assert_eq!(from_host(&mut port, &datagram(reserved, 53, 6_000).1, NOW), Verdict::Forward);
        assert_eq!(
            from_vm(&mut port, &datagram(reserved, 53, 6_000).0, NOW),
            drop_for(DropReason::NeverDestination)
        );
        port.set_exposed(vec![ExposedPort { protocol: 17, port: 6_000, address: None }], NOW);
        let (to, from) = datagram(GATEWAY_IP, 53, 6_000);
        assert_eq!(from_host(&mut port, &from, NOW), Verdict::Forward);
        assert!(!from_vm(&mut port, &to, NOW).is_forward());
        let published = vec![PublishedPort { protocol: 17, port: 53 }];
        let mut port = bound_by(PortConfig { published, net_type: NetType::Host, ..config(&[], &[]) });
        let (to, from) = datagram(WORLD_IP, 53, 6_000);
        assert_eq!(from_host(&mut port, &from, NOW), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &to, NOW), drop_for(DropReason::HostOnly));
    }

    /// P4: in a stateful policy what no `in` entry matches may begin; a block of everything leaves the published ports open,
    /// a longer one does not.
    #[test]
    fn p4_incoming_in_a_stateful_policy() {
        let syn = |own| from_peer(LAN, own, 5_000, SYN, 500, 0);
        for (block, expected_22, expected_23) in [
            (&["in 1.1.1.1"][..], Verdict::Forward, Verdict::Forward),
            (&["in 0.0.0.0/0"], Verdict::Forward, INCOMING),
            (&["0.0.0.0/0", "out 1.1.1.1"], Verdict::Forward, INCOMING),
            (&["in 0.0.0.0/0:5000"], Verdict::Forward, INCOMING),
            (&["in @private"], INCOMING, INCOMING),
            (&["in 10.0.0.0/8", "in 0.0.0.0/0"], INCOMING, INCOMING),
            (&["in 10.0.0.0/8:5000-5010"], INCOMING, INCOMING),
        ] {
            let mut port = published(&[], block);
            assert_eq!(from_host(&mut port, &syn(22), NOW), expected_22, "{block:?}");
            assert_eq!(from_host(&mut port, &syn(23), NOW), expected_23, "{block:?}");
        }
        // Its answers pass by the flow.
        let mut port = published(&[], &["0.0.0.0/0", "out 1.1.1.1"]);
        assert_eq!(from_host(&mut port, &syn(22), NOW), Verdict::Forward);
        let answer =
            |own| IpFrame::new(LAN, 6, make::tcp((OWN_IP, own), (LAN, 5_000), 900, SYN | ACK, b"").1);
        assert_eq!(from_vm(&mut port, &answer(22), NOW), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &answer(23), NOW), BLOCKED);
    }

    /// P5: a block of everything closes the gateway and the resolvers too, and leaves DHCP and ARP.
    #[test]
    fn p5_default_deny() {
        let mut port = bound_with(&["10.0.0.9:443/tcp", "::/0"], &["0.0.0.0/0"]);
        for frame in [
            IpFrame::tcp(GATEWAY_IP, 53),
            IpFrame::udp(GATEWAY_IP, 53),
            IpFrame::icmp(GATEWAY_IP, 8),
            IpFrame::udp(RESOLVER_IP, 53),
            IpFrame::udp(WORLD_IP, 53),
            IpFrame::tcp(LAN, 80),
        ] {
            assert_eq!(from_vm(&mut port, &frame, NOW), BLOCKED, "{}", frame.to);
        }
        assert_eq!(from_vm(&mut port, &IpFrame::tcp(LAN, 443), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::request(GATEWAY_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::renewal().frame(), NOW), Verdict::Forward);
        let ipv6 = ethernet(GATEWAY, VM, 0x86dd, &[0x60; 60]);
        assert_eq!(port.from_vm(&ipv6, NOW), drop_for(DropReason::Ipv6));
    }

    /// P6: a policy is replaced between two frames, or not at all; the lease stays.
    #[test]
    fn p6_a_policy_is_replaced_whole_or_not_at_all() {
        let mut port = bound_with(&[], &["9.9.9.9"]);
        let frame = IpFrame::tcp(WORLD_IP, 80);
        assert_eq!(from_vm(&mut port, &frame, NOW), BLOCKED);
        port.set_policy(policy(&["9.9.9.9:80"], &["0.0.0.0/0"]), NOW).unwrap();
        assert_eq!(from_vm(&mut port, &frame, NOW), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &IpFrame::tcp(WORLD_IP, 81), NOW), BLOCKED);
        assert!(port.lease().is_some());
        let dropped = port.counters().from_vm.dropped(DropReason::Blocked);
        assert_eq!(dropped, 2);
        // One that would end the isolation on the bridge, and one that does not fit, change nothing.
        let before = port.policy().clone();
        assert_eq!(port.set_policy(policy(&["0.0.0.0/0"], &[]), NOW), Err(PolicyError::Isolation));
        let many: Vec<String> =
            (0..70_000_u32).map(|n| Ipv4Addr::from((n << 9) + 0x0100_0001).to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let error = port.set_policy(policy(&[], &many), NOW).unwrap_err();
        assert!(matches!(error, PolicyError::Config(_)), "{error}");
        assert_eq!(port.policy(), &before);
        assert_eq!(from_vm(&mut port, &frame, NOW), Verdict::Forward);
        let mut open = bound_with(&["0.0.0.0/0"], &[]);
        assert_eq!(open.set_policy(policy(&[], &[]), NOW), Err(PolicyError::Isolation));
        assert_eq!(open.set_policy(policy(&["0.0.0.0/0", "in 1.1.1.1"], &[]), NOW), Ok(()));
    }

    /// P6: where flows are recorded, a policy that becomes stateful forgets nothing that lives; elsewhere it does.
    #[test]
    fn p6_what_lives_is_known_if_it_was_recorded() {
        for records in [false, true] {
            let mut port = bound();
            if records {
                port.record_flows();
            }
            connect(&mut port, WORLD_IP, 443, NOW);
            assert_eq!(from_host(&mut port, &from_peer(LAN, 22, 5_000, SYN, 500, 0), NOW), Verdict::Forward);
            port.set_policy(policy(&["in 1.1.1.1"], &[]), NOW).unwrap();
            let expected = if records { Verdict::Forward } else { NO_FLOW };
            assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, ACK, 101, 501), NOW), expected);
            assert_eq!(from_host(&mut port, &from_peer(WORLD_IP, 40_000, 443, ACK, 501, 101), NOW), expected);
        }
    }

    /// P6, A5: that flows are recorded opens no neighbour to ARP; one that reaches a published port is found.
    #[test]
    fn p6_what_is_recorded_opens_nothing() {
        let published = vec![PublishedPort { protocol: 17, port: 53 }];
        let mut port = bound_by(PortConfig { published, ..config(&[], &[]) });
        port.record_flows();
        let ask = ArpFrame::request(NEIGHBOUR_IP).frame();
        for (own, expected) in [(54, drop_for(DropReason::ArpTarget)), (53, Verdict::Forward)] {
            let (to, from) = datagram(NEIGHBOUR_IP, own, 6_000);
            assert_eq!(from_host(&mut port, &from, NOW), Verdict::Forward);
            assert_eq!(port.from_vm(&ask, NOW), expected, "{own}");
            assert_eq!(from_vm(&mut port, &to, NOW).is_forward(), expected.is_forward(), "{own}");
        }
    }

    /// P6: a table that is full of what is recorded changes no verdict of a stateless policy.
    #[test]
    fn p6_a_full_record_changes_no_verdict() {
        let mut port = bound();
        port.record_flows();
        let peer = |number: u32| Ipv4Addr::from(0x0900_0000 + number);
        for number in 0..20_000 {
            let (query, answer) = datagram(peer(number), 40_000, 53);
            assert_eq!(from_vm(&mut port, &query, NOW), Verdict::Forward, "{number}");
            assert_eq!(from_host(&mut port, &answer, NOW), Verdict::Forward, "{number}");
            let syn = from_peer(peer(number), 22, 5_000, SYN, 500, 0);
            assert_eq!(from_host(&mut port, &syn, NOW), Verdict::Forward, "{number}");
        }
        assert_eq!(
            (port.counters().from_vm.dropped_total(), port.counters().from_host.dropped_total()),
            (0, 0)
        );
        // Of the flows that it has room for, none was forgotten.
        port.set_policy(policy(&["in 1.1.1.1"], &["in 9.0.0.0/8"]), NOW).unwrap();
        let live = (0..20_000)
            .filter(|number| from_host(&mut port, &datagram(peer(*number), 40_000, 53).1, NOW).is_forward());
        assert_eq!(live.count(), 16_384 - 256 * 4);
    }

    /// P4, P6: neither does a flood of what is recorded take the room of a published port.
    #[test]
    fn p6_what_is_recorded_leaves_room_for_published_ports() {
        let mut port = published(&[], &["10.0.0.0/8"]);
        port.record_flows();
        for source in 1..2_000 {
            for peer in [LAN, WORLD_IP, GATEWAY_IP] {
                let syn = from_peer(peer, 23, source, SYN, 500, 0);
                assert_eq!(from_host(&mut port, &syn, NOW), Verdict::Forward);
            }
        }
        for number in 0..20_000 {
            let peer = Ipv4Addr::from(0x0900_0000 + number);
            assert_eq!(from_vm(&mut port, &datagram(peer, 40_000, 53).0, NOW), Verdict::Forward);
        }
        for source in 1..=64 {
            let syn = from_peer(LAN, 22, source, SYN, 500, 0);
            assert_eq!(from_host(&mut port, &syn, NOW), Verdict::Forward, "{source}");
            let answer = make::tcp((OWN_IP, 22), (LAN, source), 900, SYN | ACK, b"").1;
            assert_eq!(from_vm(&mut port, &IpFrame::new(LAN, 6, answer), NOW), Verdict::Forward, "{source}");
        }
    }

    /// F1: what begins a flow, and what does not, in either direction.
    #[test]
    fn f1_what_begins_a_flow() {
        for (flags, begins) in [
            (SYN, true),
            (SYN | 0x08, true),
            (SYN | 0xc0, true),
            (0, false),
            (ACK, false),
            (SYN | ACK, false),
            (SYN | FIN, false),
            (SYN | RST, false),
            (FIN | ACK, false),
            (RST, false),
        ] {
            let mut port = stateful();
            let expected = if begins { Verdict::Forward } else { NO_FLOW };
            assert_eq!(
                from_vm(&mut port, &segment(WORLD_IP, 80, flags, 100, 0), NOW),
                expected,
                "{flags:#x}"
            );
            let answer = from_peer(WORLD_IP, 40_000, 80, SYN | ACK, 500, 101);
            assert_eq!(from_host(&mut port, &answer, NOW), expected, "{flags:#x}");
            let mut port = stateful();
            assert_eq!(from_host(&mut port, &from_peer(WORLD_IP, 22, 80, flags, 500, 0), NOW), expected);
        }
        let mut port = stateful();
        let (to, back) = datagram(WORLD_IP, 40_000, 53);
        assert_eq!(from_vm(&mut port, &to, NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &back, NOW), Verdict::Forward);
        // Each end of the key counts.
        assert_eq!(from_host(&mut port, &echo(WORLD_IP, 0, 7).reversed(), NOW), NO_FLOW);
        assert_eq!(from_vm(&mut port, &echo(WORLD_IP, 0, 7), NOW), NO_FLOW);
        assert_eq!(from_vm(&mut port, &echo(WORLD_IP, 8, 7), NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &echo(WORLD_IP, 0, 7).reversed(), NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &echo(WORLD_IP, 0, 8).reversed(), NOW), NO_FLOW);
        assert_eq!(from_host(&mut port, &echo(LAN, 0, 7).reversed(), NOW), NO_FLOW);
        for kind in [5, 9, 13, 14, 17, 42] {
            assert_eq!(from_host(&mut port, &echo(WORLD_IP, kind, 7).reversed(), NOW), NO_FLOW, "{kind}");
        }
        // Other protocols have a flow by peer and protocol.
        let other = |protocol| IpFrame::new(WORLD_IP, protocol, [1; 9]);
        assert_eq!(from_vm(&mut port, &other(47), NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &other(47).reversed(), NOW), Verdict::Forward);
    }

    /// F1: a packet that begins nothing is dropped for what the policy says first.
    #[test]
    fn f1_the_policy_comes_first() {
        let mut port = bound_with(&["in 1.1.1.1"], &["9.9.9.9"]);
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 80, ACK, 1, 1), NOW), BLOCKED);
        assert_eq!(from_host(&mut port, &from_peer(WORLD_IP, 22, 80, ACK, 1, 1), NOW), INCOMING);
        assert_eq!(
            from_vm(&mut port, &segment(NEIGHBOUR_IP, 80, ACK, 1, 1), NOW),
            drop_for(DropReason::Neighbour)
        );
    }

    /// F1: groups and broadcasts have no flows.
    #[test]
    fn f1_groups_are_judged_one_by_one() {
        let group = Ipv4Addr::new(224, 0, 0, 251);
        let mac = l2::multicast_mac(group);
        let mut port = bound_with(&["224.0.0.0/4", "in 1.1.1.1"], &["in 10.0.0.0/8"]);
        let to_group = IpFrame::new(group, 17, udp(5_353, 5_353, b"query")).in_frame_to(mac);
        assert_eq!(from_vm(&mut port, &to_group, NOW), Verdict::Forward);
        for (to, to_mac) in [
            (group, mac),
            (Ipv4Addr::BROADCAST, softnet_wire::MacAddr::BROADCAST),
            (Ipv4Addr::new(192, 168, 64, 255), VM),
        ] {
            for (from, expected) in [(NEIGHBOUR_IP, Verdict::Forward), (LAN, INCOMING)] {
                let frame =
                    IpFrame { from, from_mac: GATEWAY, to_mac, ..IpFrame::new(to, 17, udp(9, 9, b"all")) };
                assert_eq!(from_host(&mut port, &frame, NOW), expected, "{from} {to}");
            }
        }
        // Nobody answers a packet for another address, and no flow begins with it.
        let astray = IpFrame { to: OTHER_IP, ..datagram(WORLD_IP, 1, 2).1 };
        assert_eq!(from_host(&mut port, &astray, NOW), NO_FLOW);
    }

    /// F2: packets of a flow pass both ways, errors that quote it too, and a neighbour with a flow is found by ARP.
    #[test]
    fn f2_a_flow_passes_both_ways() {
        let mut port = stateful();
        assert_eq!(
            port.from_vm(&ArpFrame::request(NEIGHBOUR_IP).frame(), NOW),
            drop_for(DropReason::ArpTarget)
        );
        let (to, from) = datagram(NEIGHBOUR_IP, 53, 6_000);
        assert_eq!(from_vm(&mut port, &to, NOW), drop_for(DropReason::Neighbour));
        assert_eq!(from_host(&mut port, &from, NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::request(NEIGHBOUR_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::request(OTHER_IP).frame(), NOW), drop_for(DropReason::ArpTarget));
        for mac in [GATEWAY, STRANGER] {
            assert_eq!(from_vm(&mut port, &to.clone().in_frame_to(mac), NOW), Verdict::Forward);
        }
        let own = to.clone().in_frame_to(VM);
        assert_eq!(from_vm(&mut port, &own, NOW), drop_for(DropReason::DestinationMac));
        // Nothing else follows from it.
        assert_eq!(
            from_vm(&mut port, &datagram(NEIGHBOUR_IP, 53, 6_001).0, NOW),
            drop_for(DropReason::Neighbour)
        );
        // Errors, by whoever is on the way to the VM, and by the VM to the peer.
        let error = |about: &IpFrame, to| {
            let quote = [&[3, 1, 0, 0, 0, 0, 0, 0], &about.packet()[..28]].concat();
            IpFrame::new(to, 1, quote)
        };
        let about = |about: &IpFrame| error(about, LAN).reversed();
        assert_eq!(from_host(&mut port, &about(&to), NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &about(&datagram(NEIGHBOUR_IP, 53, 6_001).0), NOW), NO_FLOW);
        assert_eq!(from_host(&mut port, &about(&from), NOW), NO_FLOW);
        assert_eq!(from_vm(&mut port, &error(&from, NEIGHBOUR_IP), NOW), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &error(&from, WORLD_IP), NOW), NO_FLOW);
        let other = datagram(NEIGHBOUR_IP, 53, 6_001).1;
        assert_eq!(from_vm(&mut port, &error(&other, NEIGHBOUR_IP), NOW), drop_for(DropReason::Neighbour));
        assert_eq!(from_vm(&mut port, &echo(WORLD_IP, 8, 7), NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &about(&echo(WORLD_IP, 8, 7)), NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &about(&echo(WORLD_IP, 8, 9)), NOW), NO_FLOW);
        // The flow is over, and ARP with it.
        let end = after(302);
        assert_eq!(
            port.from_vm(&ArpFrame::request(NEIGHBOUR_IP).frame(), end),
            drop_for(DropReason::ArpTarget)
        );
        assert_eq!(from_host(&mut port, &about(&to), end), NO_FLOW);
    }

    /// F2, A5: a flow of a neighbour is found behind any number that are over.
    #[test]
    fn f2_a_flow_that_lives_is_found_behind_expired_ones() {
        let mut port = stateful();
        let (to, from) = datagram(NEIGHBOUR_IP, 53, 6_000);
        assert_eq!(from_host(&mut port, &from, NOW), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &to, NOW), Verdict::Forward);
        for source in 1..=200 {
            let brief = datagram(NEIGHBOUR_IP, 54, source).1;
            assert_eq!(from_host(&mut port, &brief, NOW), Verdict::Forward);
        }
        let ask = ArpFrame::request(NEIGHBOUR_IP).frame();
        assert_eq!(port.from_vm(&ask, after(100)), Verdict::Forward);
        assert_eq!(port.from_vm(&ask, after(302)), drop_for(DropReason::ArpTarget));
    }

    /// F2: super-frames are packets of a flow like others, of one flow.
    #[test]
    fn f2_a_super_frame_is_one_packet() {
        let mut port = stateful();
        connect(&mut port, WORLD_IP, 443, NOW);
        let mut long = from_peer(WORLD_IP, 40_000, 443, ACK, 501, 101);
        long.payload.resize(65_515, 0);
        assert_eq!(from_host(&mut port, &long, NOW), Verdict::Forward);
        assert_eq!(
            from_vm(&mut port, &segment(WORLD_IP, 443, ACK, 101, 501 + 65_495), NOW),
            Verdict::Forward
        );
    }

    /// H3: a new lease inherits no flow, not even of the same address.
    #[test]
    fn f2_flows_end_with_the_lease() {
        let mut port = stateful();
        connect(&mut port, WORLD_IP, 443, NOW);
        assert_eq!(port.from_vm(&DhcpFrame::release().frame(), NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &from_peer(WORLD_IP, 40_000, 443, ACK, 501, 101), NOW), NO_FLOW);
        assert_eq!(port.from_vm(&DhcpFrame::request().xid(77).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::ack().xid(77).frame(), NOW), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, ACK, 101, 501), NOW), NO_FLOW);
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, SYN, 100, 0), NOW), Verdict::Forward);
    }

    /// F3: how long each kind of flow may be idle: never less, and at most a second more.
    #[test]
    fn f3_idle_limits() {
        type Step = fn(&mut Port, Timestamp);
        let established: Step = |port, now| connect(port, WORLD_IP, 443, now);
        let opening: Step = |port, now| {
            assert_eq!(from_vm(port, &segment(WORLD_IP, 443, SYN, 100, 0), now), Verdict::Forward);
        };
        let answered_syn: Step = |port, now| {
            assert_eq!(from_vm(port, &segment(WORLD_IP, 443, SYN, 100, 0), now), Verdict::Forward);
            let answer = from_peer(WORLD_IP, 40_000, 443, SYN | ACK, 500, 101);
            assert_eq!(from_host(port, &answer, now), Verdict::Forward);
            // Not the acknowledgement of that answer.
            let _ = from_vm(port, &segment(WORLD_IP, 443, ACK, 101, 502), now);
        };
        let closing: Step = |port, now| {
            connect(port, WORLD_IP, 443, now);
            assert_eq!(from_vm(port, &segment(WORLD_IP, 443, FIN | ACK, 101, 501), now), Verdict::Forward);
        };
        let reset: Step = |port, now| {
            connect(port, WORLD_IP, 443, now);
            assert_eq!(
                from_host(port, &from_peer(WORLD_IP, 40_000, 443, RST, 501, 0), now),
                Verdict::Forward
            );
        };
        let tcp: (IpFrame, IpFrame) =
            (segment(WORLD_IP, 443, ACK, 101, 501), from_peer(WORLD_IP, 40_000, 443, ACK, 501, 101));
        for (name, begin, limit) in [
            ("opening", opening, 60),
            ("answered", answered_syn, 60),
            ("established", established, 7_440),
            ("closing", closing, 240),
            ("reset", reset, 240),
        ] {
            for late in [false, true] {
                for (frame, of_vm) in [(&tcp.0, true), (&tcp.1, false)] {
                    let mut port = long_lived();
                    begin(&mut port, NOW);
                    let at = if late { after(limit + 1) } else { just_before(limit) };
                    let verdict =
                        if of_vm { from_vm(&mut port, frame, at) } else { from_host(&mut port, frame, at) };
                    assert_eq!(verdict, if late { NO_FLOW } else { Verdict::Forward }, "{name} {of_vm}");
                }
            }
        }
        // What has no handshake: after so long the answer comes too late, and a new question begins a new flow.
        let (query, answer) = datagram(WORLD_IP, 40_000, 53);
        let other = IpFrame::new(WORLD_IP, 47, [1; 9]);
        for (name, question, answer, answers, limit) in [
            ("UDP", query.clone(), answer.clone(), 0, 30),
            ("UDP, answered", query, answer, 1, 300),
            ("echo", echo(WORLD_IP, 8, 7), echo(WORLD_IP, 0, 7).reversed(), 0, 60),
            ("echo, answered", echo(WORLD_IP, 8, 7), echo(WORLD_IP, 0, 7).reversed(), 1, 60),
            ("other", other.clone(), other.reversed(), 0, 300),
        ] {
            for late in [false, true] {
                let mut port = bound_with(&["in 1.1.1.1"], &["in 9.9.9.9"]);
                assert_eq!(from_vm(&mut port, &question, NOW), Verdict::Forward);
                for _ in 0..answers {
                    assert_eq!(from_host(&mut port, &answer, NOW), Verdict::Forward);
                }
                let at = if late { after(limit + 1) } else { just_before(limit) };
                let expected = if late { INCOMING } else { Verdict::Forward };
                assert_eq!(from_host(&mut port, &answer, at), expected, "{name}");
            }
        }
        // Each packet begins the time anew.
        let mut port = long_lived();
        connect(&mut port, WORLD_IP, 443, NOW);
        for step in 1..5 {
            assert_eq!(from_host(&mut port, &tcp.1, after(7_000 * step)), Verdict::Forward);
        }
    }

    /// A stateful port with a lease that lasts.
    fn long_lived() -> Port {
        let mut port = Port::new(config(&["in 1.1.1.1"], &[])).unwrap();
        let _ = port.from_vm(&DhcpFrame::request().frame(), NOW);
        let _ = port.from_host(&DhcpFrame::ack().lease_time(u32::MAX).frame(), NOW);
        assert!(port.lease().is_some());
        port
    }

    /// F3: ports that are used again after the end of a connection begin another, if that is allowed.
    #[test]
    fn f3_a_closed_connection_begins_anew() {
        let mut port = bound_with(&["in 1.1.1.1"], &["in 9.9.9.9"]);
        connect(&mut port, WORLD_IP, 443, NOW);
        let syn = from_peer(WORLD_IP, 40_000, 443, SYN, 900, 0);
        assert_eq!(from_host(&mut port, &syn, NOW), Verdict::Forward, "of the connection that lives");
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, FIN | ACK, 101, 501), NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &syn, NOW), INCOMING);
        assert_eq!(from_host(&mut port, &from_peer(WORLD_IP, 40_000, 443, ACK, 501, 102), NOW), INCOMING);
        connect(&mut port, WORLD_IP, 443, NOW);
    }

    /// F4: half-open flows of one peer, of all others, and all flows of others; none of them stops what the VM begins.
    #[test]
    fn f4_budgets() {
        let full = drop_for(DropReason::FlowsFull);
        let mut port = long_lived();
        let syn = |peer: u32, source: u16| {
            let peer = Ipv4Addr::from(0x0900_0000 + peer);
            from_peer(peer, 22, source, SYN, 500, 0)
        };
        for source in 1..=256 {
            assert_eq!(from_host(&mut port, &syn(1, source), NOW), Verdict::Forward);
        }
        assert_eq!(from_host(&mut port, &syn(1, 257), NOW), full);
        // What is there already lives on.
        assert_eq!(from_host(&mut port, &syn(1, 1), NOW), Verdict::Forward);
        for peer in 2..=769 {
            assert_eq!(from_host(&mut port, &syn(peer, 1), NOW), Verdict::Forward, "{peer}");
        }
        assert_eq!(from_host(&mut port, &syn(770, 1), NOW), full);
        assert_eq!(from_host(&mut port, &datagram(Ipv4Addr::new(9, 1, 1, 1), 53, 9).1, NOW), full);
        assert_eq!(port.counters().from_host.dropped(DropReason::FlowsFull), 3);
        connect(&mut port, WORLD_IP, 443, NOW);
        // Half-open flows expire, and an answered one is no longer half-open.
        let later = after(61);
        assert_eq!(from_host(&mut port, &syn(770, 1), later), Verdict::Forward);
        for source in 1_001..=1_300 {
            let (to, from) = datagram(WORLD_IP, 53, source);
            assert_eq!(from_host(&mut port, &from, later), Verdict::Forward, "{source}");
            assert_eq!(from_vm(&mut port, &to, later), Verdict::Forward, "{source}");
        }
        // Half of all flows are the most that others begin.
        let mut begun = 301;
        for peer in 0..100_u32 {
            for source in 1_001..=1_100 {
                let (to, from) = datagram(Ipv4Addr::from(0x0800_0000 + peer), 53, source);
                let expected = if begun < 8_192 { Verdict::Forward } else { full };
                assert_eq!(from_host(&mut port, &from, later), expected, "{begun}");
                if begun < 8_192 {
                    assert_eq!(from_vm(&mut port, &to, later), Verdict::Forward);
                    begun += 1;
                }
            }
        }
        // The VM has the rest: one connection is there already.
        for number in 0..8_191_u32 {
            let peer = Ipv4Addr::from(0x0b00_0000 + number);
            assert_eq!(
                from_vm(&mut port, &datagram(peer, 40_000, 53).0, later),
                Verdict::Forward,
                "{number}"
            );
        }
        let late = datagram(Ipv4Addr::new(12, 0, 0, 1), 40_000, 53);
        assert_eq!(from_vm(&mut port, &late.0, later), full);
        // Those that expire make room, one for one, and none is taken from those that live.
        let expired = later.saturating_add(Duration::from_secs(31));
        assert_eq!(from_vm(&mut port, &late.0, expired), Verdict::Forward);
        assert_eq!(from_host(&mut port, &late.1, expired), Verdict::Forward);
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, ACK, 101, 501), expired), Verdict::Forward);
    }

    /// F5: fragments begin no flow; later ones pass behind a first one of a flow, for 30 s, where no ports are distinguished.
    #[test]
    fn f5_fragments() {
        let no_fragment = drop_for(DropReason::FragmentFlow);
        let first = |id: u8, frame: &IpFrame| {
            let mut frame = frame.clone().fragment(MF);
            // The length of the whole datagram, of which this is the beginning.
            frame.payload[4..6].copy_from_slice(&100_u16.to_be_bytes());
            frame.payload.resize(16, 0);
            with_identification(&frame, id)
        };
        let later = |id: u8, frame: &IpFrame| {
            with_identification(&IpFrame { payload: vec![0; 8], ..frame.clone().fragment(2) }, id)
        };
        let (to, from) = datagram(WORLD_IP, 40_000, 53);
        let mut port = stateful();
        assert_eq!(port.from_vm(&first(1, &to), NOW), no_fragment);
        assert_eq!(port.from_host(&first(1, &from), NOW), no_fragment);
        assert_eq!(from_vm(&mut port, &to, NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&later(1, &to), NOW), no_fragment);
        assert_eq!(port.from_vm(&first(1, &to), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&later(1, &to), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&later(2, &to), NOW), no_fragment);
        assert_eq!(port.from_vm(&later(1, &datagram(LAN, 1, 2).0), NOW), drop_for(DropReason::NotGlobal));
        assert_eq!(port.from_host(&later(1, &from), NOW), no_fragment, "each direction for itself");
        assert_eq!(port.from_host(&first(9, &from), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&later(9, &from), NOW), Verdict::Forward);
        let almost = just_before(30);
        assert_eq!(port.from_vm(&later(1, &to), almost), Verdict::Forward);
        assert_eq!(port.from_vm(&later(1, &to), after(30)), no_fragment);
        // 64 are remembered.
        for id in 10..74 {
            assert_eq!(port.from_vm(&first(id, &to), after(30)), Verdict::Forward);
        }
        assert_eq!(port.from_vm(&later(10, &to), after(30)), Verdict::Forward);
        assert_eq!(port.from_vm(&first(74, &to), after(30)), Verdict::Forward);
        assert_eq!(port.from_vm(&later(10, &to), after(30)), no_fragment);
        assert_eq!(port.from_vm(&later(11, &to), after(30)), Verdict::Forward);
        // Where an entry with ports speaks about the address, none.
        for entry in ["in 9.9.9.9:1", "out 9.9.9.0/24/udp"] {
            let mut port = bound_with(&["in 1.1.1.1", entry], &[]);
            assert_eq!(from_vm(&mut port, &to, NOW), Verdict::Forward);
            assert_eq!(port.from_vm(&first(1, &to), NOW), drop_for(DropReason::FragmentRestricted));
            assert_eq!(port.from_host(&first(1, &from), NOW), no_fragment);
        }
    }

    /// A frame whose packet has this identification.
    fn with_identification(frame: &IpFrame, id: u8) -> Vec<u8> {
        let mut packet = frame.packet();
        packet[5] = id;
        fix_header(&mut packet);
        ethernet(frame.to_mac, frame.from_mac, 0x0800, &packet)
    }

    /// F6: a flow that a new policy forbids ends with it, also if a later policy allows it again.
    #[test]
    fn f6_a_forbidden_flow_ends() {
        let ended = drop_for(DropReason::FlowEnded);
        let ack = segment(WORLD_IP, 443, ACK, 101, 501);
        let (query, answer) = datagram(WORLD_IP, 40_000, 53);
        let mut port = stateful();
        connect(&mut port, WORLD_IP, 443, NOW);
        assert_eq!(from_vm(&mut port, &query, NOW), Verdict::Forward);
        // One that allows them changes nothing.
        port.set_policy(policy(&["in 1.1.1.2", "9.9.9.9"], &[]), NOW).unwrap();
        assert_eq!(from_vm(&mut port, &ack, NOW), Verdict::Forward);
        assert_eq!(from_host(&mut port, &answer, NOW), Verdict::Forward);
        port.set_policy(policy(&["in 1.1.1.1"], &["out 9.9.9.9"]), NOW).unwrap();
        port.set_policy(policy(&["in 1.1.1.1"], &["in 9.9.9.9"]), NOW).unwrap();
        assert_eq!(from_vm(&mut port, &ack, NOW), ended);
        assert_eq!(from_vm(&mut port, &ack, NOW), NO_FLOW, "the next packet is told, and no other");
        assert_eq!(from_host(&mut port, &answer, NOW), INCOMING);
        // It begins anew.
        connect(&mut port, WORLD_IP, 443, NOW);
        // What others began ends by the entries of that direction.
        let syn = from_peer(LAN, 22, 5_000, SYN, 500, 0);
        assert_eq!(from_host(&mut port, &syn, NOW), Verdict::Forward);
        port.set_policy(policy(&["in 1.1.1.1"], &["in 10.0.0.0/8"]), NOW).unwrap();
        assert_eq!(from_host(&mut port, &from_peer(LAN, 22, 5_000, ACK, 501, 0), NOW), ended);
        assert_eq!(from_host(&mut port, &from_peer(LAN, 22, 5_000, ACK, 501, 0), NOW), INCOMING);
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, ACK, 101, 501), NOW), Verdict::Forward);
    }

    /// F6, J1: the VM is told by a RST right behind the last byte that it was given (RFC 5961, section 3.2).
    #[test]
    fn j1_an_ended_connection_is_reset() {
        for (last, of_vm) in [
            (segment(WORLD_IP, 443, ACK, 101, 501), true),
            (from_peer(WORLD_IP, 40_000, 443, ACK, 511, 101), false),
        ] {
            let mut port = stateful();
            connect(&mut port, WORLD_IP, 443, NOW);
            let mut data = from_peer(WORLD_IP, 40_000, 443, ACK, 501, 101);
            data.payload.extend([7; 10]);
            assert_eq!(from_host(&mut port, &data, NOW), Verdict::Forward);
            // One that comes once more is not the last.
            data.payload.truncate(25);
            assert_eq!(from_host(&mut port, &data, NOW), Verdict::Forward);
            port.set_policy(policy(&["in 1.1.1.1"], &["out 9.9.9.9"]), NOW).unwrap();
            assert_eq!(port.poll_transmit(), None);
            let ended = drop_for(DropReason::FlowEnded);
            let verdict =
                if of_vm { from_vm(&mut port, &last, NOW) } else { from_host(&mut port, &last, NOW) };
            assert_eq!(verdict, ended);
            let (direction, reset) = port.poll_transmit().unwrap();
            assert_eq!(direction, crate::Direction::FromHost);
            #[rustfmt::skip]
            assert_eq!(reset[26..50], [
                9, 9, 9, 9, 192, 168, 64, 2,
                // From port 443 to 40,000; 511; RST.
                0x01, 0xbb, 0x9c, 0x40, 0, 0, 1, 255, 0, 0, 0, 0, 0x50, 0x04, 0, 0,
            ]);
            assert_eq!(port.poll_transmit(), None);
        }
        let mut silent =
            bound_by(PortConfig { on_block: crate::OnBlock::Drop, ..config(&["in 1.1.1.1"], &[]) });
        connect(&mut silent, WORLD_IP, 443, NOW);
        silent.set_policy(policy(&["in 1.1.1.1"], &["out 9.9.9.9"]), NOW).unwrap();
        assert!(!from_vm(&mut silent, &segment(WORLD_IP, 443, ACK, 101, 501), NOW).is_forward());
        assert_eq!(silent.poll_transmit(), None);
    }

    /// F6, J1: of many connections that end at once, those are told later for which there is no answer now.
    #[test]
    fn f6_a_connection_that_is_not_told_is_told_later() {
        let mut port = stateful();
        let peer = |number: u8| Ipv4Addr::new(9, 9, 9, number);
        for number in 0..30 {
            connect(&mut port, peer(number), 443, NOW);
        }
        port.set_policy(policy(&["in 1.1.1.1"], &["out 9.0.0.0/8"]), NOW).unwrap();
        let told = |port: &mut Port, now| {
            for number in 0..30 {
                let _ = from_vm(port, &segment(peer(number), 443, ACK, 101, 501), now);
            }
            core::iter::from_fn(|| port.poll_transmit()).count()
        };
        assert_eq!(told(&mut port, NOW), 20);
        assert_eq!(port.counters().from_vm.dropped(DropReason::FlowEnded), 30);
        assert_eq!(told(&mut port, after(1)), 10);
        assert_eq!(told(&mut port, after(9)), 0);
    }

    /// F6: so it does when the host's addresses or the ports of other VMs change what is allowed.
    #[test]
    fn f6_the_host_ends_flows_too() {
        let ended = drop_for(DropReason::FlowEnded);
        let mut port = bound_with(&["in 1.1.1.1"], &["out @host"]);
        connect(&mut port, WORLD_IP, 443, NOW);
        port.set_host_addresses(&[WORLD_IP], NOW).unwrap();
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, ACK, 101, 501), NOW), ended);
        let mut port = stateful();
        connect(&mut port, GATEWAY_IP, 443, NOW);
        port.set_exposed(vec![ExposedPort { protocol: 6, port: 444, address: None }], NOW);
        assert_eq!(from_vm(&mut port, &segment(GATEWAY_IP, 443, ACK, 101, 501), NOW), Verdict::Forward);
        port.set_exposed(vec![ExposedPort { protocol: 6, port: 443, address: None }], NOW);
        assert_eq!(from_vm(&mut port, &segment(GATEWAY_IP, 443, ACK, 101, 501), NOW), ended);
    }

    /// F6: recorded flows end under stateless policies too.
    #[test]
    fn f6_recorded_flows_end_in_stateless_policies() {
        let ended = drop_for(DropReason::FlowEnded);
        let mut port = bound();
        port.record_flows();
        connect(&mut port, WORLD_IP, 443, NOW);
        port.set_policy(policy(&[], &["9.9.9.9"]), NOW).unwrap();
        assert_eq!(from_host(&mut port, &from_peer(WORLD_IP, 40_000, 443, ACK, 501, 101), NOW), ended);
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, ACK, 101, 501), NOW), BLOCKED);
        port.set_policy(policy(&[], &[]), NOW).unwrap();
        assert_eq!(from_vm(&mut port, &segment(WORLD_IP, 443, ACK, 101, 501), NOW), Verdict::Forward);
    }
}
