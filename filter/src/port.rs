//! The port of one VM: everything that the filter knows about it, and the judgement of its frames.

use core::net::Ipv4Addr;

use crate::answer::{self, Answers};
use crate::arp::{self, Reach};
use crate::binding::Bindings;
use crate::binding::dhcpv4::{self, Datagram};
use crate::config::{ConfigError, PolicyError, PortConfig, PublishedPort};
use crate::counters::{Counters, Direction};
use crate::destination::Destinations;
use crate::event::PortEvent;
use crate::explain::{self, Explanation, Question};
use crate::flow::{Context, Tracker};
use crate::frame::{EtherType, Frame};
use crate::host::{ExposedPort, Readiness};
use crate::icmp;
use crate::igmp;
use crate::inbound;
use crate::ipv4::{self, Packet, Part, Transport};
use crate::l2;
use crate::lease::{AdoptError, Lease, Resolvers};
use crate::policy::Policy;
use crate::segment::Segment;
use crate::time::Timestamp;
use crate::transmit::{Outbox, OwnFrame};
use crate::verdict::{DropReason, Verdict};
use softnet_wire::build::Reset;
use softnet_wire::dhcpv4::CLIENT_PORT;

/// The port of one VM.
///
/// Frames of both directions must be given in the order in which they pass, with a `now` that does not go back.
#[derive(Debug)]
pub struct Port {
    segment: Segment,
    destinations: Destinations,
    tracker: Tracker,
    bindings: Bindings,
    readiness: Readiness,
    answers: Answers,
    outbox: Outbox,
    counters: Counters,
}

impl Port {
    /// A port without a lease.
    ///
    /// # Errors
    ///
    /// If the configuration contradicts itself.
    pub fn new(config: PortConfig) -> Result<Self, ConfigError> {
        let segment = Segment::new(&config)?;
        let mut tracker = Tracker::new(config.seed);
        let answers = Answers::new(config.on_block);
        let destinations = Destinations::new(config)?;
        tracker.follow_policy(&destinations);
        Ok(Self {
            segment,
            destinations,
            tracker,
            bindings: Bindings::default(),
            readiness: Readiness::default(),
            answers,
            outbox: Outbox::default(),
            counters: Counters::default(),
        })
    }

    /// Replaces the host's addresses besides the gateway's (rule H1). Loopback
    /// addresses do not matter. Compiles the destinations again, which allocates and takes about a millisecond.
    ///
    /// # Errors
    ///
    /// If they do not fit into the table together with the rules; then nothing has changed.
    pub fn set_host_addresses(&mut self, addresses: &[Ipv4Addr], now: Timestamp) -> Result<(), ConfigError> {
        if self.destinations.set_host_addresses(addresses)? {
            self.end_forbidden_flows(now);
        }
        Ok(())
    }

    /// Replaces the policy between two frames, whole or not at all (rule P6). Leases and counters stay; flows that the new
    /// policy forbids end (rule F6). Compiles the entries, which allocates, and takes about a millisecond for a
    /// thousand of them.
    ///
    /// # Errors
    ///
    /// If the policy would change the isolation on the bridge, or does not fit into the tables; then nothing has changed.
    pub fn set_policy(&mut self, policy: Policy, now: Timestamp) -> Result<(), PolicyError> {
        self.destinations.set_policy(policy)?;
        self.tracker.follow_policy(&self.destinations);
        self.end_forbidden_flows(now);
        Ok(())
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        self.destinations.policy()
    }

    /// What the policy says about what one side begins: the verdict, which entry or rule decides, and what the VM would
    /// hear of it. Judged as an unfragmented packet with which a flow can begin, by the router.
    pub fn explain(&self, question: &Question) -> Explanation {
        explain::explain(&self.segment, &self.destinations, self.bindings.ipv4(), &self.answers, question)
    }

    /// From now on records flows even while no entry needs them, so that a policy with directions that comes later knows
    /// what lives (rule P6). Allocates.
    pub fn record_flows(&mut self) {
        self.tracker.record(&self.destinations);
    }

    /// Replaces the ports of the VM that the host publishes: what reaches them gets its answer (rule P4). May allocate.
    pub fn set_published(&mut self, published: Vec<PublishedPort>, now: Timestamp) {
        self.destinations.set_published(published);
        self.tracker.follow_policy(&self.destinations);
        self.end_forbidden_flows(now);
    }

    /// From now on nothing but DHCP and ARP reaches the VM while it has no address, or one that
    /// [`Port::host_is_ready`] has not named, and nothing at another VM's address ever: frames on their way may be for the
    /// address's former holder (rule H3).
    pub fn wait_for_host(&mut self) {
        self.readiness.await_host();
    }

    /// The host keeps nothing of a former holder of `address`, so frames for it may reach the VM.
    pub fn host_is_ready(&mut self, address: Ipv4Addr) {
        self.readiness.set(address);
    }

    /// The VM has lost its address; when it gets one again, the host must get ready again.
    pub fn host_is_not_ready(&mut self) {
        self.readiness.clear();
    }

    /// Replaces the ports of the host that lead to other VMs: this VM does not
    /// reach them by any address of the host (rule H2).
    pub fn set_exposed(&mut self, exposed: Vec<ExposedPort>, now: Timestamp) {
        self.destinations.set_exposed(exposed);
        self.end_forbidden_flows(now);
    }

    /// Judges and counts a frame that the VM sent: an Ethernet frame without its frame check sequence, with complete
    /// checksums.
    pub fn from_vm(&mut self, frame: &[u8], now: Timestamp) -> Verdict {
        self.advance(now);
        let judgement = self.judge_from_vm(frame, now);
        if let Err(reason) = judgement {
            self.answer(frame, reason, now);
        }
        self.counters.from_vm.count(verdict(judgement), frame.len())
    }

    /// Judges and counts a frame that is on its way to the VM: an Ethernet frame without its frame check sequence. It
    /// may be a TCP or UDP super-frame that is segmented later, and is then judged as one.
    ///
    /// The UDP checksum of a DHCP reply is verified (rule B1), so a frame whose checksum the kernel left to be
    /// finished must be finished first, unless it is a super-frame.
    pub fn from_host(&mut self, frame: &[u8], now: Timestamp) -> Verdict {
        self.advance(now);
        let judgement = self.judge_from_host(frame, now);
        if judgement == Err(DropReason::FlowEnded) {
            self.reset_ended(now);
        }
        self.counters.from_host.count(verdict(judgement), frame.len())
    }

    /// Counts a frame of the VM that the link had to truncate, and that is therefore dropped (rule L3).
    pub fn truncated_from_vm(&mut self) -> Verdict {
        self.counters.from_vm.count(Verdict::Drop(DropReason::Truncated), 0)
    }

    /// Counts a frame from the host that its link could not receive completely (rule L6).
    pub fn truncated_from_host(&mut self) -> Verdict {
        self.counters.from_host.count(Verdict::Drop(DropReason::HostOversize), 0)
    }

    /// Counts `frames` frames of `bytes` bytes together, which were forwarded and which the link then lost for
    /// `reason`: they are dropped frames, and no longer forwarded ones (rule L6). A super-frame of which anything is
    /// lost counts as a whole.
    pub fn dropped_by_link(&mut self, direction: Direction, reason: DropReason, frames: u64, bytes: u64) {
        let counters = match direction {
            Direction::FromVm => &mut self.counters.from_vm,
            Direction::FromHost => &mut self.counters.from_host,
        };
        counters.lose(reason, frames, bytes);
    }

    /// The oldest event that has not been fetched. Only the newest 8 are kept; [`Port::lease`] is always current.
    pub fn poll_event(&mut self) -> Option<PortEvent> {
        self.bindings.dhcpv4.events.poll()
    }

    /// When [`Port::advance`] has something to do: the end of the lease.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        self.bindings.next_end()
    }

    /// Does what is due at the time `now`: ends a lease that has expired. Judging a frame does the same, so calling
    /// this late never lets a frame pass; calling it at the deadline reports the event in time.
    #[inline(always)]
    pub fn advance(&mut self, now: Timestamp) {
        self.bindings.advance(now);
    }

    /// The VM's lease, if it has one that was valid at the time last passed to the port.
    pub fn lease(&self) -> Option<Lease> {
        self.bindings.ipv4().copied()
    }

    /// Takes over a lease that the VM got before this port existed, from the DHCP server's lease file, with the
    /// client identifier (option 61: type byte and value) under which the server stores it, if any.
    ///
    /// Addresses that cannot be a resolver's are left out (rule D5).
    ///
    /// # Errors
    ///
    /// If a DHCP reply with this lease would not have been accepted either.
    pub fn adopt(
        &mut self,
        lease: Lease,
        client_id: Option<&[u8]>,
        now: Timestamp,
    ) -> Result<(), AdoptError> {
        self.advance(now);
        self.bindings.dhcpv4.adopt(&self.segment, lease, client_id, now)
    }

    /// Gives the VM an address from the start, which does not expire and is the only one that DHCP can give it (rule B9).
    /// The caller ensures that nobody else gets it as long as this port exists.
    ///
    /// Resolvers that cannot be one's address are left out (rule D5).
    ///
    /// # Errors
    ///
    /// If the VM has a lease already, or cannot have this address (rule B2).
    pub fn give(
        &mut self,
        address: Ipv4Addr,
        resolvers: Resolvers,
        now: Timestamp,
    ) -> Result<(), AdoptError> {
        self.advance(now);
        self.bindings.dhcpv4.give(&self.segment, address, resolvers, now)
    }

    /// Names the VM's last lease as the DHCP server's records have it: only this address may be renewed while the VM
    /// has no lease, and none if there is no such lease or DHCP could not have given it (rule C10). Without this call
    /// a VM may try any address until it has had a lease, which is for servers that look whose it is.
    pub fn set_last_lease(&mut self, last: Option<Ipv4Addr>) {
        let last = last.filter(|address| self.segment.may_be_leased(*address));
        self.bindings.dhcpv4.set_last_lease(last);
    }

    /// Releases the VM's address at a clean end: the binding ends at once, and [`Port::poll_transmit`] returns the
    /// DHCPRELEASE for the server (RFC 2131, section 4.4.6). `false` if the server can have no lease for it.
    pub fn release(&mut self, now: Timestamp) -> bool {
        self.advance(now);
        let transaction = self.bindings.dhcpv4.transactions.fresh_id();
        let lease = self.bindings.dhcpv4.take_for_release(self.segment.server_files_by_mac, now);
        let frame = lease.and_then(|lease| dhcpv4::release_frame(&lease, &self.segment, transaction));
        frame.is_some_and(|frame| self.outbox.push(Direction::FromVm, frame))
    }

    /// The oldest frame that Softnet itself has to send, and its direction. Such frames are not judged
    /// and not counted.
    ///
    /// There is one for the host after [`Port::release`], and one when the server has given the VM another address: then
    /// the earlier lease is released with its identifier, since a VM has one at a time (rule C5). There is one for the VM
    /// when it has sent a packet that is too long for the link and must not be fragmented (rule L3).
    pub fn poll_transmit(&mut self) -> Option<(Direction, OwnFrame)> {
        self.give_back_surplus();
        self.outbox.poll()
    }

    /// C5. This is decided only here, because the VM may get the address again before the release is sent.
    fn give_back_surplus(&mut self) {
        // A server that stores leases by MAC address has one lease of the VM, and has moved it itself.
        let lease = self.bindings.dhcpv4.take_surplus().filter(|_| !self.segment.server_files_by_mac);
        let transaction = self.bindings.dhcpv4.transactions.fresh_id();
        if let Some(frame) = lease.and_then(|lease| dhcpv4::release_frame(&lease, &self.segment, transaction))
        {
            // There is room: the only other frame is the last release.
            self.outbox.push(Direction::FromVm, frame);
        }
    }

    /// F6: what the rules forbid since they have changed does not go on.
    fn end_forbidden_flows(&mut self, now: Timestamp) {
        self.advance(now);
        let lease = self.bindings.ipv4();
        let context = context(&self.segment, &self.destinations, &self.bindings, lease, now);
        self.tracker.end_forbidden(&context);
    }

    /// What was forwarded and dropped so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The rules L, A, S, D, F and C.
    #[inline(always)]
    fn judge_from_vm(&mut self, bytes: &[u8], now: Timestamp) -> Result<(), DropReason> {
        let frame = l2::judge_runt(bytes)?;
        if l2::is_too_long(bytes.len(), &self.segment) {
            return Err(self.refuse_too_long(frame, now));
        }
        match l2::judge_source_and_type(frame, &self.segment)? {
            l2::Content::Ipv4 => self.judge_ipv4_from_vm(frame, now),
            l2::Content::Arp => self.judge_arp_from_vm(frame, now),
        }
    }

    /// J1: answers a frame of the VM that is dropped, if the policy refuses it.
    #[cold]
    fn answer(&mut self, frame: &[u8], reason: DropReason, now: Timestamp) {
        if reason == DropReason::FlowEnded {
            return self.reset_ended(now);
        }
        if !answer::is_refusal(reason) {
            return;
        }
        let Some(frame) = Frame::parse(frame) else { return };
        let Some(packet) = Packet::parse(frame.payload()) else { return };
        let answer = self.answers.refusal(frame, packet, &self.segment, now);
        let _ = self.send_to_vm(answer);
    }

    /// F6: tells the VM that the connection of a dropped packet has ended. If it cannot be told now, the next packet tells it.
    #[cold]
    fn reset_ended(&mut self, now: Timestamp) {
        let Some(ended) = self.tracker.take_ended() else { return };
        let Some(lease) = self.bindings.ipv4() else { return };
        let reset = Reset {
            source: (ended.key.peer(), ended.key.peer_port()),
            destination: (lease.address, ended.key.own_port()),
            sequence: ended.given,
            acknowledgement: None,
        };
        let answer = self.answers.reset(reset, &self.segment, now);
        if self.send_to_vm(answer) || !self.answers.answers_refusals() {
            self.tracker.forget(ended);
        }
    }

    /// J3: puts an answer into the outbox, and counts it. Returns whether there was one, and room for it.
    fn send_to_vm(&mut self, answer: Option<OwnFrame>) -> bool {
        let is_sent = answer.is_some_and(|answer| self.outbox.push(Direction::FromHost, answer));
        self.counters.answers = self.counters.answers.wrapping_add(is_sent.into());
        is_sent
    }

    /// L3: why a frame that is too long is dropped. The VM is told of a packet that it has to send in shorter ones.
    #[cold]
    fn refuse_too_long(&mut self, frame: Frame<'_>, now: Timestamp) -> DropReason {
        let Some(packet) = self.only_too_long(frame, now) else { return DropReason::Oversize };
        if packet.fragment() & ipv4::DONT_FRAGMENT == 0 {
            return DropReason::MustFragment;
        }
        let answer = self.answers.fragmentation_needed(packet, frame.payload(), &self.segment, now);
        let _ = self.send_to_vm(answer);
        DropReason::Oversize
    }

    /// L3: the packet of a frame that would pass on a link which carries its length. Judging a DHCP message would have
    /// effects, and no client sends one that long.
    fn only_too_long<'a>(&mut self, frame: Frame<'a>, now: Timestamp) -> Option<Packet<'a>> {
        let l2::Content::Ipv4 = l2::judge_source_and_type(frame, &self.segment).ok()? else { return None };
        let packet = ipv4::judge_format(frame.payload()).ok()?;
        let transport = ipv4::judge_transport(packet.protocol(), packet.part()).ok()?;
        let to = packet.destination();
        if matches!(transport, Transport::Udp(udp) if dhcpv4::is_dhcp_from_vm(&self.segment, to, udp)) {
            return None;
        }
        self.judge_ipv4_from_vm(frame, now).ok().map(|()| packet)
    }

    #[inline(always)]
    fn judge_arp_from_vm(&mut self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        let arp = arp::judge_format(frame.payload())?;
        l2::judge_trailer(frame, arp::LEN)?;
        let reach = Reach { destinations: &self.destinations, tracker: &mut self.tracker };
        arp::judge_from_vm(arp, frame, &self.segment, reach, &self.bindings, now)
    }

    #[inline(always)]
    fn judge_ipv4_from_vm(&mut self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        // S2, S3
        let packet = match ipv4::judge_format(frame.payload()) {
            Ok(packet) => packet,
            Err(DropReason::Ipv4Options) => return self.judge_options_from_vm(frame, now),
            Err(reason) => return Err(reason),
        };
        l2::judge_trailer(frame, packet.len())?;
        ipv4::judge_header(packet)?;
        match packet.part() {
            part @ Part::Whole(_) => self.judge_part_from_vm(frame, packet, part, now),
            Part::First(_) | Part::Later => self.judge_fragment_from_vm(frame, now),
        }
    }

    /// Like fragments, the only packets with an option that may pass have a path of their own.
    #[cold]
    fn judge_options_from_vm(&mut self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        let packet = ipv4::judge_options(frame.payload())?;
        l2::judge_trailer(frame, packet.len())?;
        ipv4::judge_long_header(packet)?;
        self.judge_part_from_vm(frame, packet, packet.part(), now)
    }

    /// Fragments have a path of their own, so that unfragmented packets are not tested for it again and again. It
    /// parses the packet again: passing it on would cost every unfragmented packet registers.
    #[cold]
    fn judge_fragment_from_vm(&mut self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        let packet = ipv4::judge_format(frame.payload())?;
        ipv4::judge_fragment(packet)?;
        self.judge_part_from_vm(frame, packet, packet.part(), now)
    }

    #[inline(always)]
    fn judge_part_from_vm(
        &mut self,
        frame: Frame<'_>,
        packet: Packet<'_>,
        part: Part<'_>,
        now: Timestamp,
    ) -> Result<(), DropReason> {
        // S5
        let transport = ipv4::judge_transport(packet.protocol(), part)?;
        if let Transport::Udp(udp) = transport
            && dhcpv4::is_dhcp_from_vm(&self.segment, packet.destination(), udp)
        {
            let datagram = Datagram { source: packet.source(), destination: packet.destination(), udp, part };
            return dhcpv4::judge_from_vm(&mut self.bindings.dhcpv4, &self.segment, frame, datagram, now);
        }
        // An expired lease was ended before.
        self.bindings.judge_source(packet.source())?;
        // D3, D4, F2: unfragmented TCP and UDP to destinations that are open without a further look, or of flows that live,
        // by the router.
        if let (Part::Whole(_), Some(ports)) = (part, transport.ports())
            && frame.head() == self.segment.vm_to_router
            && if self.tracker.passes_the_open() {
                self.destinations.is_open(packet.destination(), packet.protocol(), ports)
            } else {
                let lease_number = self.bindings.ipv4_number();
                self.tracker.knows_from_vm(packet.destination(), transport, lease_number, now)
                    && (self.tracker.is_stateful()
                        || self.destinations.is_open(packet.destination(), packet.protocol(), ports))
            }
        {
            return Ok(());
        }
        self.judge_further_from_vm(frame, now)
    }

    /// Everything else that has the VM's own address as its source and is not DHCP. It parses the packet again, for the same
    /// reason as for fragments.
    #[inline(never)]
    fn judge_further_from_vm(&mut self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        let packet = Packet::parse(frame.payload()).ok_or(DropReason::Ipv4Malformed)?;
        let transport = ipv4::judge_transport(packet.protocol(), packet.part())?;
        let lease = self.bindings.judge_source(packet.source())?;
        // D6: to any destination.
        if let Transport::Icmp(message) = transport {
            icmp::judge(message, lease.address)?;
        }
        let context = context(&self.segment, &self.destinations, &self.bindings, Some(lease), now);
        self.tracker.judge_from_vm(&context, lease, frame, packet, transport)?;
        // S3
        if packet.protocol() == ipv4::IGMP && packet.destination().is_multicast() {
            igmp::judge(packet)?;
        }
        Ok(())
    }

    /// The rules B, I and F.
    #[inline(always)]
    fn judge_from_host(&mut self, bytes: &[u8], now: Timestamp) -> Result<(), DropReason> {
        // I4
        let frame = Frame::parse(bytes).ok_or(DropReason::HostMalformed)?;
        inbound::judge_type(frame)?;
        let stations = inbound::judge_station(frame, &self.segment)?;
        if frame.ether_type() == EtherType::Arp {
            return arp::judge_from_host(frame, &self.segment);
        }
        let packet = inbound::judge_packet(frame, stations)?;
        // B6
        let part = packet.part();
        if let Some(datagram) = inbound::datagram(packet.protocol(), part) {
            let udp = inbound::judge_udp(datagram)?;
            if udp.destination_port == CLIENT_PORT {
                return dhcpv4::judge_from_host(
                    &mut self.bindings.dhcpv4,
                    &self.segment,
                    frame,
                    packet,
                    udp,
                    now,
                );
            }
        }
        let lease = self.bindings.ipv4();
        let is_of_subnet = |address| self.segment.may_be_leased(address);
        self.readiness.judge(lease.map(|lease| lease.address), packet.destination(), is_of_subnet)?;
        let lease_number = self.bindings.ipv4_number();
        if self.tracker.is_off() || self.tracker.knows_from_host(packet, part, lease, lease_number, now) {
            return Ok(());
        }
        self.judge_further_from_host(frame, now)
    }

    /// The rules P4 and F for all else. It parses the packet again, so that what passes needs fewer registers.
    #[inline(never)]
    fn judge_further_from_host(&mut self, frame: Frame<'_>, now: Timestamp) -> Result<(), DropReason> {
        let packet = Packet::parse(frame.payload()).ok_or(DropReason::HostMalformed)?;
        let lease = self.bindings.ipv4();
        let context = context(&self.segment, &self.destinations, &self.bindings, lease, now);
        self.tracker.judge_from_host(&context, packet)
    }
}

/// What the packets of flows are judged by.
#[inline(always)]
fn context<'a>(
    segment: &'a Segment,
    destinations: &'a Destinations,
    bindings: &Bindings,
    lease: Option<&'a Lease>,
    now: Timestamp,
) -> Context<'a> {
    Context { segment, destinations, lease, lease_number: bindings.ipv4_number(), now }
}

fn verdict(judgement: Result<(), DropReason>) -> Verdict {
    match judgement {
        Ok(()) => Verdict::Forward,
        Err(reason) => Verdict::Drop(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    /// A VM from its first DHCP message to its first answer from the world.
    #[test]
    fn a_vm_starts_and_talks() {
        let mut port = fresh();
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 53).frame(), NOW), drop_for(DropReason::NoLease));
        assert_eq!(port.from_vm(&DhcpFrame::discover().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&DhcpFrame::offer().frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&ArpFrame::probe(OWN_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&DhcpFrame::request().frame(), NOW), Verdict::Forward);
        assert_eq!(port.lease(), None);
        assert_eq!(port.from_host(&DhcpFrame::ack().frame(), NOW), Verdict::Forward);
        let lease = port.lease().unwrap();
        assert_eq!(port.poll_event(), Some(PortEvent::Bound(lease)));
        assert_eq!(lease.address, OWN_IP);
        assert_eq!(port.next_deadline(), Some(NOW.saturating_add(core::time::Duration::from_secs(600))));
        assert_eq!(port.from_vm(&ArpFrame::request(GATEWAY_IP).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 53).frame(), NOW), Verdict::Forward);
        assert_eq!(port.from_host(&IpFrame::udp(WORLD_IP, 53).reversed().frame(), NOW), Verdict::Forward);
        assert_eq!(port.counters().from_vm.forwarded_frames(), 5);
        assert_eq!(port.counters().from_host.forwarded_frames(), 3);
    }

    /// S1: the leased address and no other, and DHCP alone without a lease.
    #[test]
    fn s1_source_is_the_lease() {
        let mut port = bound();
        for from in
            [GATEWAY_IP, OTHER_IP, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, WORLD_IP, Ipv4Addr::LOCALHOST]
        {
            for frame in [IpFrame::udp(WORLD_IP, 80), IpFrame::tcp(WORLD_IP, 80), IpFrame::icmp(WORLD_IP, 8)]
            {
                let frame = IpFrame { from, ..frame };
                assert_eq!(port.from_vm(&frame.frame(), NOW), drop_for(DropReason::SourceAddress), "{from}");
                assert_eq!(fresh().from_vm(&frame.frame(), NOW), drop_for(DropReason::NoLease), "{from}");
                let later = frame.fragment(9);
                assert_eq!(port.from_vm(&later.frame(), NOW), drop_for(DropReason::SourceAddress), "{from}");
            }
        }
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), Verdict::Forward);
        assert_eq!(fresh().from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), drop_for(DropReason::NoLease));
    }

    /// S1: an offer is not a lease.
    #[test]
    fn s1_offer_is_no_lease() {
        let mut port = fresh();
        let _ = port.from_vm(&DhcpFrame::discover().frame(), NOW);
        let _ = port.from_host(&DhcpFrame::offer().frame(), NOW);
        assert_eq!(port.from_vm(&IpFrame::udp(GATEWAY_IP, 53).frame(), NOW), drop_for(DropReason::NoLease));
    }

    /// L6: what a link loses is dropped, not forwarded.
    #[test]
    fn l6_losses_of_links_are_drops() {
        let mut port = bound();
        let frame = IpFrame::udp(WORLD_IP, 80).frame();
        for _ in 0..3 {
            assert!(port.from_vm(&frame, NOW).is_forward());
        }
        let len = frame.len() as u64;
        let before = port.counters().from_vm.forwarded_bytes();
        port.dropped_by_link(Direction::FromVm, DropReason::HostQueueFull, 2, 2 * len);
        port.dropped_by_link(Direction::FromHost, DropReason::VmRefused, 1, 1);
        let _ = port.truncated_from_host();
        let Counters { from_vm, from_host, .. } = port.counters();
        assert_eq!(from_vm.forwarded_frames(), 2, "the request and one datagram");
        assert_eq!(from_vm.forwarded_bytes(), before - 2 * len);
        assert_eq!((from_vm.dropped(DropReason::HostQueueFull), from_vm.dropped_total()), (2, 2));
        assert_eq!((from_host.forwarded_frames(), from_host.dropped_total()), (0, 2));
    }

    /// A lease of the server's file is taken over if a reply with it would have been accepted.
    #[test]
    fn adopt_checks_the_lease() {
        let lease = Lease {
            address: OWN_IP,
            server: GATEWAY_IP,
            expires: Some(Timestamp::from_secs(1_600)),
            resolvers: [RESOLVER_IP, Ipv4Addr::LOCALHOST, OWN_IP].into_iter().collect(),
        };
        let mut port = fresh();
        for (bad, error) in [
            (Lease { address: GATEWAY_IP, ..lease }, AdoptError::Address(GATEWAY_IP)),
            (Lease { address: WORLD_IP, ..lease }, AdoptError::Address(WORLD_IP)),
            (Lease { server: OTHER_IP, ..lease }, AdoptError::Server(OTHER_IP)),
            (Lease { expires: Some(NOW), ..lease }, AdoptError::Expired),
        ] {
            assert_eq!(port.adopt(bad, None, NOW), Err(error));
        }
        for id in [&[][..], &[0], &[0; 256]] {
            assert_eq!(port.adopt(lease, Some(id), NOW), Err(AdoptError::ClientId));
        }
        assert_eq!(port.lease(), None);
        assert_eq!(port.adopt(lease, Some(b"\0system"), NOW), Ok(()));
        let adopted = Lease { resolvers: [RESOLVER_IP].into_iter().collect(), ..lease };
        assert_eq!(port.lease(), Some(adopted));
        assert_eq!(port.poll_event(), Some(PortEvent::Bound(adopted)));
        assert_eq!(port.adopt(lease, None, NOW), Err(AdoptError::Bound));
        assert_eq!(port.from_vm(&IpFrame::udp(WORLD_IP, 80).frame(), NOW), Verdict::Forward);
        // After its end another one can be.
        let mut longest = [7; 255];
        longest[0] = 0;
        let next = Lease { expires: None, ..lease };
        assert_eq!(port.adopt(next, Some(&longest), Timestamp::from_secs(1_600)), Ok(()));
        assert_eq!(port.next_deadline(), None);
        // The lease is released under this identifier, which is then a known one (C5).
        let end = Timestamp::from_secs(1_600);
        assert!(port.release(end));
        let (_, frame) = port.poll_transmit().unwrap();
        assert!(frame.windows(255).any(|window| window == longest));
        for n in 1..=4 {
            let discover = DhcpFrame::discover().option(61, &longest[..255 - usize::from(n == 1)]).xid(n);
            assert_eq!(port.from_vm(&discover.frame(), end), Verdict::Forward);
        }
    }
}
