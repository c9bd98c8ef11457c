//! Where a VM may send: the rules D.

pub(crate) mod ports;
pub(crate) mod region;
pub(crate) mod table;
pub(crate) mod trie;

use core::net::Ipv4Addr;

use crate::config::{ConfigError, Gateway, NetType, PolicyError, PortConfig, PublishedPort};
use crate::destination::region::{Rank, Region, regions};
use crate::destination::table::{Class, Table};
use crate::host::{ExposedPort, Host};
use crate::ipv4;
use crate::l2;
use crate::lease::Lease;
use crate::policy::entry::{Entry, Origin, Protocol, Target};
use crate::policy::{Action, Policy};
use crate::segment::Segment;
use crate::verdict::DropReason;
use softnet_wire::MacAddr;

const DNS_PORT: u16 = 53;

/// The destination of a packet of the VM.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Destination {
    pub(crate) address: Ipv4Addr,
    pub(crate) protocol: u8,
    /// The port, of TCP and UDP; a later fragment has none.
    pub(crate) port: Option<u16>,
    pub(crate) is_fragment: bool,
}

/// The peers of one VM, as the rules and the host's state define them.
#[derive(Debug)]
pub(crate) struct Destinations {
    /// What the VM may begin.
    table: Table,
    /// What others may begin, if an entry has a direction (P3).
    incoming: Option<Table>,
    host: Host,
    /// What the tables were compiled from, to compile them again when the host's addresses change.
    policy: Policy,
    gateway: Gateway,
    net_type: NetType,
    /// Sorted.
    published: Vec<PublishedPort>,
}

impl Destinations {
    pub(crate) fn new(config: PortConfig) -> Result<Self, ConfigError> {
        let PortConfig { policy, gateway, net_type, host_addresses, published, .. } = config;
        let mut host = Host::default();
        host.set_addresses(&host_addresses, gateway.address);
        let (table, incoming) = compile(&policy, gateway, net_type, &host)?;
        let mut destinations =
            Self { table, incoming, host, policy, gateway, net_type, published: Vec::new() };
        destinations.set_published(published);
        Ok(destinations)
    }

    /// Takes the host's addresses (H1). If they do not fit into the table, nothing changes. Returns whether they are others
    /// than before.
    pub(crate) fn set_host_addresses(&mut self, addresses: &[Ipv4Addr]) -> Result<bool, ConfigError> {
        let mut host = Host::default();
        host.set_addresses(addresses, self.gateway.address);
        let has_changed = host.addresses() != self.host.addresses();
        if has_changed {
            let compiled = compile(&self.policy, self.gateway, self.net_type, &host)?;
            (self.table, self.incoming) = compiled;
            self.host.set_addresses(addresses, self.gateway.address);
        }
        Ok(has_changed)
    }

    /// P6: takes another policy. If it does not fit into the tables, nothing changes.
    pub(crate) fn set_policy(&mut self, policy: Policy) -> Result<(), PolicyError> {
        if policy.bridge_isolation() != self.policy.bridge_isolation() {
            return Err(PolicyError::Isolation);
        }
        (self.table, self.incoming) = compile(&policy, self.gateway, self.net_type, &self.host)?;
        self.policy = policy;
        Ok(())
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Takes the ports that lead to other VMs (H2).
    pub(crate) fn set_exposed(&mut self, exposed: Vec<ExposedPort>) {
        self.host.set_exposed(exposed);
    }

    /// Takes the VM's own ports that the host publishes (P4).
    pub(crate) fn set_published(&mut self, mut published: Vec<PublishedPort>) {
        published.sort_unstable();
        published.dedup();
        self.published = published;
    }

    /// Whether flows decide about answers (P3).
    pub(crate) fn is_stateful(&self) -> bool {
        self.incoming.is_some()
    }

    /// Whether the host publishes ports of the VM.
    pub(crate) fn publishes(&self) -> bool {
        !self.published.is_empty()
    }

    /// Whether the host publishes this port of the VM.
    pub(crate) fn is_published(&self, protocol: u8, port: u16) -> bool {
        self.published.binary_search(&PublishedPort { protocol, port }).is_ok()
    }

    /// Whether a destination is open without a further look, as nearly all of the world is (D3, D4).
    #[inline(always)]
    pub(crate) fn is_open(&self, address: Ipv4Addr, protocol: u8, (_, port): (u16, u16)) -> bool {
        self.table.is_open(address, protocol, port)
    }

    /// Whether an entry opens an address, or some of its ports (D2).
    pub(crate) fn is_allowed(&self, address: Ipv4Addr) -> bool {
        self.table.allows(address)
    }

    /// F5: whether an entry with ports speaks about an address, whoever begins.
    pub(crate) fn has_ports_for(&self, address: Ipv4Addr) -> bool {
        let incoming = self.incoming.as_ref();
        self.table.has_ports_for(address) || incoming.is_some_and(|table| table.has_ports_for(address))
    }

    /// Judges the destination of a packet that is not DHCP and has the VM's own address as its source, in a frame for
    /// `mac`.
    pub(crate) fn judge(
        &self,
        segment: &Segment,
        lease: &Lease,
        mac: MacAddr,
        to: Destination,
    ) -> Result<(), DropReason> {
        self.judge_peer(segment, lease, to)?;
        l2::judge_ipv4_destination(mac, to.address, segment)
    }

    /// The same whatever the frame.
    pub(crate) fn judge_peer(
        &self,
        segment: &Segment,
        lease: &Lease,
        to: Destination,
    ) -> Result<(), DropReason> {
        judge_own_address(lease, to)?;
        let closed = self.judge_class(to)?;
        self.judge_fragment_class(segment, lease, closed, to)?;
        judge_resolver(lease, closed, to)?;
        self.judge_exposed(segment, to)
    }

    /// P3, P4: judges what `peer` begins from its `port` towards the VM's `own_port`. Where no entry matches, it may begin;
    /// at a published port also where an entry for everything blocks.
    pub(crate) fn judge_incoming(
        &self,
        peer: Ipv4Addr,
        protocol: u8,
        port: Option<u16>,
        own_port: Option<u16>,
    ) -> Result<(), DropReason> {
        let class = self.incoming.as_ref().map(|table| table.classify(peer, protocol, port));
        let is_published = || own_port.is_some_and(|port| self.is_published(protocol, port));
        match class {
            Some(Class::Blocked) => Err(DropReason::IncomingBlocked),
            Some(Class::DefaultBlocked) if !is_published() => Err(DropReason::IncomingBlocked),
            _ => Ok(()),
        }
    }

    /// Which entry decides about what `origin` begins with a peer, by a look at every entry.
    pub(crate) fn deciding_entry(
        &self,
        origin: Origin,
        peer: Ipv4Addr,
        protocol: u8,
        port: Option<u16>,
    ) -> Option<DecidingEntry> {
        if origin == Origin::Outside && self.incoming.is_none() {
            return None;
        }
        let matching = self.policy.rules().iter().enumerate().filter_map(|(index, rule)| {
            let entry = rule.entry;
            let is_about_origin = entry.origin.is_none_or(|of| of == origin);
            let rank = self.rank(entry.target, peer).filter(|_| is_about_origin)?;
            let width = if entry.has_ports() { Some(width_for(&entry, protocol, port?)?) } else { None };
            // P2: ports first, the longer prefix, the narrower range, the block.
            let order = (entry.has_ports(), rank, core::cmp::Reverse(width), rule.action);
            Some((order, DecidingEntry { index, blocks: rule.action == Action::Block }))
        });
        matching.max_by_key(|(order, _)| *order).map(|(_, entry)| entry)
    }

    /// The rank of the best of a target's regions that contain the peer.
    fn rank(&self, target: Target, peer: Ipv4Addr) -> Option<Rank> {
        let regions = regions(target, self.gateway.address, self.host.addresses());
        let contains = |region: &Region| {
            region.has_prefix_of(peer) && (region.rank != Rank::Internet || self.table.is_global(peer))
        };
        regions.into_iter().filter(contains).map(|region| region.rank).max()
    }

    /// Whether an address is globally reachable.
    pub(crate) fn is_global(&self, address: Ipv4Addr) -> bool {
        self.table.is_global(address)
    }

    /// Whether an address is one of the host's besides the gateway's.
    pub(crate) fn is_host_address(&self, address: Ipv4Addr) -> bool {
        self.host.has(address)
    }

    /// Whether the VM may send to a peer in a flow that the peer began: what no entry opens stays closed (D1, D9), and so do
    /// the ports that lead to other VMs (H2).
    pub(crate) fn may_answer(&self, segment: &Segment, lease: &Lease, to: Destination) -> bool {
        judge_own_address(lease, to).is_ok()
            && !to.address.is_multicast()
            && !self.table.is_closed_to_all(to.address)
            && self.judge_exposed(segment, to).is_ok()
    }

    /// S4, for a fragment of a flow.
    pub(crate) fn judge_fragment(
        &self,
        segment: &Segment,
        lease: &Lease,
        to: Destination,
    ) -> Result<(), DropReason> {
        let closed = self.judge_class(to).ok().flatten();
        self.judge_fragment_class(segment, lease, closed, to)
    }

    /// D1 to D4, D9, P2: what the rules say about the destination. Returns the reason if it is closed to all but a
    /// resolver's DNS.
    fn judge_class(&self, to: Destination) -> Result<Option<DropReason>, DropReason> {
        match self.table.classify(to.address, to.protocol, to.port) {
            Class::World | Class::Allowed => Ok(None),
            // D4
            Class::Gateway if matches!(to.protocol, ipv4::ICMP | ipv4::TCP | ipv4::UDP) => Ok(None),
            Class::Gateway => Ok(Some(DropReason::GatewayProtocol)),
            // D2, P5: a block takes precedence over D5, which is for addresses that no entry matches.
            Class::Blocked | Class::DefaultBlocked => Err(DropReason::Blocked),
            Class::Never => Err(DropReason::NeverDestination),
            // D9 before D5: without global destinations, global resolvers are closed too.
            Class::HostOnly => Err(DropReason::HostOnly),
            Class::NotGlobal => Ok(Some(DropReason::NotGlobal)),
            Class::Multicast => Ok(Some(DropReason::Multicast)),
            Class::Neighbour => Ok(Some(DropReason::Neighbour)),
        }
    }

    /// S4: the port of a later fragment is unknown, and malicious fragments can crash neighbours. The host accepts
    /// fragments while it is open as a whole. No fragment passes where entries distinguish ports.
    fn judge_fragment_class(
        &self,
        segment: &Segment,
        lease: &Lease,
        closed: Option<DropReason>,
        to: Destination,
    ) -> Result<(), DropReason> {
        if !to.is_fragment {
            return Ok(());
        }
        let is_host = self.is_host(segment, to.address);
        let is_open_host = is_host && closed.is_none() && matches!(to.protocol, ipv4::ICMP | ipv4::UDP);
        let is_restricted = is_host || segment.is_on_link(to.address) || lease.resolvers.contains(to.address);
        if to.is_fragment && ((is_restricted && !is_open_host) || self.has_ports_for(to.address)) {
            return Err(DropReason::FragmentRestricted);
        }
        Ok(())
    }

    /// H2: no port of the host that leads to another VM.
    fn judge_exposed(&self, segment: &Segment, to: Destination) -> Result<(), DropReason> {
        if self.is_host(segment, to.address)
            && self.host.leads_to_another_vm(to.address, to.protocol, to.port)
        {
            return Err(DropReason::ExposedPort);
        }
        Ok(())
    }

    /// Whether an address is one of the host's.
    fn is_host(&self, segment: &Segment, address: Ipv4Addr) -> bool {
        address == segment.router.address || self.host.has(address)
    }
}

/// The entry that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DecidingEntry {
    pub(crate) index: usize,
    pub(crate) blocks: bool,
}

/// The width of the range of ports with which an entry matches a port of a protocol.
fn width_for(entry: &Entry, protocol: u8, port: u16) -> Option<u16> {
    let is_about = match protocol {
        ipv4::TCP => entry.protocol != Some(Protocol::Udp),
        ipv4::UDP => entry.protocol != Some(Protocol::Tcp),
        _ => false,
    };
    let (low, high) = entry.ports.map_or((0, u16::MAX), |ports| (ports.low(), ports.high()));
    (is_about && (low..=high).contains(&port)).then_some(high.saturating_sub(low))
}

/// The tables of a policy: what the VM may begin, and what others may, if an entry has a direction.
fn compile(
    policy: &Policy,
    gateway: Gateway,
    net_type: NetType,
    host: &Host,
) -> Result<(Table, Option<Table>), ConfigError> {
    let compile = |origin| Table::new(policy, origin, gateway, net_type, host.addresses());
    let incoming = if policy.is_stateful() { Some(compile(Origin::Outside)?) } else { None };
    Ok((compile(Origin::Vm)?, incoming))
}

/// D1: the VM's own address is the lease's.
fn judge_own_address(lease: &Lease, to: Destination) -> Result<(), DropReason> {
    if to.address == lease.address { Err(DropReason::NeverDestination) } else { Ok(()) }
}

/// D5: a resolver is open for DNS where the destination is `closed` otherwise.
fn judge_resolver(lease: &Lease, closed: Option<DropReason>, to: Destination) -> Result<(), DropReason> {
    let Some(reason) = closed else { return Ok(()) };
    match (lease.resolvers.contains(to.address), to.port) {
        (true, Some(DNS_PORT)) => Ok(()),
        (true, _) => Err(DropReason::ResolverPort),
        (false, _) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::l2::multicast_mac;
    use crate::testing::*;
    use crate::{NetType, Port, PortConfig, Verdict};

    /// A port with these flags, whose neighbours' network is allowed if a test says so.
    fn sent(port: &mut Port, frame: &IpFrame) -> Verdict {
        port.from_vm(&frame.frame(), NOW)
    }

    /// The frame's destination that would be right if the destination were allowed.
    fn right_mac(to: Ipv4Addr) -> MacAddr {
        if to.is_multicast() { multicast_mac(to) } else { GATEWAY }
    }

    /// D1: nothing opens these, in whatever frame.
    #[test]
    fn d1_never_whatever_the_flags() {
        let mut port = bound_with(&["0.0.0.0/0", "192.168.64.0/24", "127.0.0.0/8"], &[]);
        let never = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.168.64.0",
            "192.168.64.255",
        ];
        for to in never.map(|to| to.parse().unwrap()).into_iter().chain([OWN_IP]) {
            for mac in [GATEWAY, STRANGER, VM, MacAddr::BROADCAST] {
                let verdict = sent(&mut port, &IpFrame::udp(to, 80).in_frame_to(mac));
                assert_eq!(verdict, drop_for(DropReason::NeverDestination), "{to} in {mac}");
            }
        }
        // The VM's own address is the one that is leased now.
        assert_eq!(sent(&mut port, &IpFrame::udp(OTHER_IP, 80)), Verdict::Forward);
        // So it is with no flags at all.
        let verdict = sent(&mut bound(), &IpFrame::udp(OWN_IP, 80));
        assert_eq!(verdict, drop_for(DropReason::NeverDestination));
    }

    /// D2: what is allowed passes and what is blocked does not, for every protocol.
    #[test]
    fn d2_rules_decide() {
        let mut port =
            bound_with(&["10.0.0.0/8", "9.9.9.9", "192.168.64.77"], &["10.1.0.0/16", "9.0.0.0/8", "8.8.8.8"]);
        let allowed = ["10.0.0.1", "10.2.0.1", "9.9.9.9", "192.168.64.77"];
        let blocked = ["10.1.0.1", "9.9.9.8", "8.8.8.8"];
        for (list, expected) in
            [(&allowed[..], Verdict::Forward), (&blocked[..], drop_for(DropReason::Blocked))]
        {
            for to in list.iter().map(|to| to.parse().unwrap()) {
                for frame in [
                    IpFrame::udp(to, 80),
                    IpFrame::tcp(to, 80),
                    IpFrame::icmp(to, 8),
                    IpFrame::new(to, 47, []),
                ] {
                    assert_eq!(sent(&mut port, &frame), expected, "{to}");
                }
            }
        }
        let mut port = bound_with(&[], &["@host"]);
        assert_eq!(sent(&mut port, &IpFrame::icmp(GATEWAY_IP, 8)), drop_for(DropReason::Blocked));
    }

    /// D3: the world is open, all else is not, by the names that users see.
    #[test]
    fn d3_only_the_world_is_open() {
        let mut port = bound();
        for (to, expected) in [
            (WORLD_IP, Verdict::Forward),
            (Ipv4Addr::new(10, 0, 0, 1), drop_for(DropReason::NotGlobal)),
            (Ipv4Addr::new(169, 254, 169, 254), drop_for(DropReason::NotGlobal)),
            (Ipv4Addr::new(224, 0, 0, 251), drop_for(DropReason::Multicast)),
            (NEIGHBOUR_IP, drop_for(DropReason::Neighbour)),
        ] {
            assert_eq!(sent(&mut port, &IpFrame::udp(to, 80).in_frame_to(right_mac(to))), expected, "{to}");
            assert_eq!(sent(&mut port, &IpFrame::icmp(to, 8).in_frame_to(right_mac(to))), expected, "{to}");
        }
    }

    /// D4: no tunnels to the gateway; to the world any protocol. An explicit rule is explicit.
    #[test]
    fn d4_protocols_for_the_gateway() {
        let mut port = bound();
        for protocol in (0..=255).filter(|protocol| ![1, 6, 17].contains(protocol)) {
            let frame = IpFrame::new(GATEWAY_IP, protocol, [0; 64]);
            assert_eq!(sent(&mut port, &frame), drop_for(DropReason::GatewayProtocol), "{protocol}");
            assert_eq!(
                sent(&mut port, &IpFrame::new(WORLD_IP, protocol, [0; 64])),
                Verdict::Forward,
                "{protocol}"
            );
        }
        for frame in
            [IpFrame::udp(GATEWAY_IP, 123), IpFrame::tcp(GATEWAY_IP, 22), IpFrame::icmp(GATEWAY_IP, 8)]
        {
            assert_eq!(sent(&mut port, &frame), Verdict::Forward);
        }
        let mut port = bound_with(&["@host"], &[]);
        assert_eq!(sent(&mut port, &IpFrame::new(GATEWAY_IP, 47, [0; 64])), Verdict::Forward);
    }

    /// D5: a resolver is open at port 53 of UDP and TCP, and nowhere else.
    #[test]
    fn d5_resolver_is_open_for_dns() {
        let mut port = bound();
        let closed = drop_for(DropReason::ResolverPort);
        for (frame, expected) in [
            (IpFrame::udp(RESOLVER_IP, 53), Verdict::Forward),
            (IpFrame::tcp(RESOLVER_IP, 53), Verdict::Forward),
            (IpFrame::udp(RESOLVER_IP, 52), closed),
            (IpFrame::tcp(RESOLVER_IP, 54), closed),
            (IpFrame::tcp(RESOLVER_IP, 853), closed),
            (IpFrame::icmp(RESOLVER_IP, 8), closed),
            (IpFrame::new(RESOLVER_IP, 132, udp(1000, 53, &[0; 64])), closed),
            (IpFrame::new(RESOLVER_IP, 17, udp(53, 1000, b"")), closed),
            (IpFrame::udp(Ipv4Addr::new(10, 0, 0, 54), 53), drop_for(DropReason::NotGlobal)),
            (IpFrame::udp(RESOLVER_IP, 53).in_frame_to(STRANGER), drop_for(DropReason::DestinationMac)),
        ] {
            assert_eq!(sent(&mut port, &frame), expected);
        }
    }

    /// D5: a rule that matches the resolver decides, either way.
    #[test]
    fn d5_rules_win_over_the_resolver() {
        for block in ["10.0.0.53", "10.0.0.0/8", "0.0.0.0/0"] {
            let mut port = bound_with(&[], &[block]);
            assert_eq!(
                sent(&mut port, &IpFrame::udp(RESOLVER_IP, 53)),
                drop_for(DropReason::Blocked),
                "{block}"
            );
        }
        let mut port = bound_with(&["10.0.0.0/8"], &[]);
        assert_eq!(sent(&mut port, &IpFrame::udp(RESOLVER_IP, 80)), Verdict::Forward);
    }

    /// D5: a resolver on the own network is reached at its own MAC address, for DNS.
    #[test]
    fn d5_resolver_on_the_own_network() {
        let mut port = fresh();
        let _ = port.from_vm(&DhcpFrame::request().frame(), NOW);
        let _ = port.from_host(&DhcpFrame::ack().address_option(6, NEIGHBOUR_IP).frame(), NOW);
        let dns = IpFrame::udp(NEIGHBOUR_IP, 53);
        assert_eq!(sent(&mut port, &dns.clone().in_frame_to(STRANGER)), Verdict::Forward);
        assert_eq!(sent(&mut port, &dns), Verdict::Forward);
        assert_eq!(sent(&mut port, &dns.in_frame_to(MacAddr::BROADCAST)), drop_for(DropReason::GroupMac));
        assert_eq!(
            sent(&mut port, &IpFrame::udp(NEIGHBOUR_IP, 80).in_frame_to(STRANGER)),
            drop_for(DropReason::ResolverPort)
        );
    }

    /// D5: an address that cannot be a resolver's is not opened by naming it one; and only as many as fit are opened.
    #[test]
    fn d5_insane_resolvers_open_nothing() {
        let insane =
            ["127.0.0.1", "224.0.0.251", "0.0.0.0", "255.255.255.255", "192.168.64.255", "192.168.64.2"];
        let insane: Vec<u8> = insane.iter().flat_map(|ip| ip.parse::<Ipv4Addr>().unwrap().octets()).collect();
        let many = (1..=9).flat_map(|n| [10, 0, 0, n]);
        let mut port = fresh();
        let _ = port.from_vm(&DhcpFrame::request().frame(), NOW);
        let value: Vec<u8> = insane.into_iter().chain(many).collect();
        let _ = port.from_host(&DhcpFrame::ack().without(6).option(6, &value).frame(), NOW);
        let resolvers: Vec<Ipv4Addr> = port.lease().unwrap().resolvers.iter().collect();
        assert_eq!(resolvers, [1, 2, 3, 4, 5, 6].map(|n| Ipv4Addr::new(10, 0, 0, n)));
        let mdns = Ipv4Addr::new(224, 0, 0, 251);
        assert_eq!(
            sent(&mut port, &IpFrame::udp(mdns, 53).in_frame_to(multicast_mac(mdns))),
            drop_for(DropReason::Multicast)
        );
        assert_eq!(
            sent(&mut port, &IpFrame::udp(Ipv4Addr::LOCALHOST, 53)),
            drop_for(DropReason::NeverDestination)
        );
    }

    /// D8: `--allow=0.0.0.0/0` opens the metadata service, neighbours, multicast; and no more.
    #[test]
    fn d8_allowing_everything() {
        let mut port = bound_with(&["0.0.0.0/0"], &[]);
        for to in ["169.254.169.254", "10.0.0.1", "168.63.129.16", "192.168.64.77", "224.0.0.251", "9.9.9.9"]
        {
            let to: Ipv4Addr = to.parse().unwrap();
            assert_eq!(
                sent(&mut port, &IpFrame::udp(to, 80).in_frame_to(right_mac(to))),
                Verdict::Forward,
                "{to}"
            );
        }
        assert_eq!(sent(&mut port, &IpFrame::udp(NEIGHBOUR_IP, 80).in_frame_to(STRANGER)), Verdict::Forward);
        for (frame, reason) in [
            (IpFrame::udp(Ipv4Addr::LOCALHOST, 80), DropReason::NeverDestination),
            (IpFrame { from_mac: STRANGER, ..IpFrame::udp(WORLD_IP, 80) }, DropReason::SourceMac),
            (IpFrame { from: OTHER_IP, ..IpFrame::udp(WORLD_IP, 80) }, DropReason::SourceAddress),
            (IpFrame::udp(NEIGHBOUR_IP, 67).in_frame_to(STRANGER), DropReason::DhcpPorts),
            (IpFrame::icmp(NEIGHBOUR_IP, 5).in_frame_to(STRANGER), DropReason::IcmpType),
            (IpFrame::udp(NEIGHBOUR_IP, 80).fragment(1), DropReason::FragmentRestricted),
        ] {
            assert_eq!(sent(&mut port, &frame), drop_for(reason));
        }
    }

    /// P2: entries with ports decide about TCP and UDP at those ports; what is opened at one port is found by ARP too (A5),
    /// and no fragment passes where entries distinguish ports (S4).
    #[test]
    fn p2_ports_decide() {
        let blocked = drop_for(DropReason::Blocked);
        let mut port = bound_with(&["192.168.64.77:22/tcp", "9.9.9.9:53"], &["9.0.0.0/8", "8.8.8.8:25"]);
        for (frame, expected) in [
            (IpFrame::tcp(NEIGHBOUR_IP, 22), Verdict::Forward),
            (IpFrame::tcp(NEIGHBOUR_IP, 22).in_frame_to(STRANGER), Verdict::Forward),
            (IpFrame::tcp(NEIGHBOUR_IP, 23), drop_for(DropReason::Neighbour)),
            (IpFrame::udp(NEIGHBOUR_IP, 22), drop_for(DropReason::Neighbour)),
            (IpFrame::icmp(NEIGHBOUR_IP, 8), drop_for(DropReason::Neighbour)),
            (IpFrame::udp(WORLD_IP, 53), Verdict::Forward),
            (IpFrame::tcp(WORLD_IP, 53), Verdict::Forward),
            (IpFrame::udp(WORLD_IP, 54), blocked),
            (IpFrame::icmp(WORLD_IP, 8), blocked),
            (IpFrame::new(WORLD_IP, 132, udp(53, 53, b"sctp")), blocked),
            (IpFrame::tcp(Ipv4Addr::new(8, 8, 8, 8), 25), blocked),
            (IpFrame::tcp(Ipv4Addr::new(8, 8, 8, 8), 443), Verdict::Forward),
            (IpFrame::tcp(Ipv4Addr::new(8, 8, 8, 9), 25), Verdict::Forward),
            (
                IpFrame::tcp(Ipv4Addr::new(1, 1, 1, 1), 25).in_frame_to(STRANGER),
                drop_for(DropReason::DestinationMac),
            ),
        ] {
            assert_eq!(sent(&mut port, &frame), expected, "{} {}", frame.to, frame.protocol);
        }
        for (target, expected) in
            [(NEIGHBOUR_IP, Verdict::Forward), (OTHER_IP, drop_for(DropReason::ArpTarget))]
        {
            assert_eq!(port.from_vm(&ArpFrame::request(target).frame(), NOW), expected);
        }
        for to in [WORLD_IP, Ipv4Addr::new(8, 8, 8, 8)] {
            let first = IpFrame::new(to, 17, udp(1000, 53, &[0; 64])[..32].to_vec()).fragment(0x2000);
            assert_eq!(sent(&mut port, &first), drop_for(DropReason::FragmentRestricted));
        }
        let later = IpFrame::new(Ipv4Addr::new(8, 8, 8, 8), 17, [0; 8]).fragment(4);
        assert_eq!(sent(&mut port, &later), drop_for(DropReason::FragmentRestricted));
        let later = IpFrame::new(Ipv4Addr::new(8, 8, 8, 9), 17, [0; 8]).fragment(4);
        assert_eq!(sent(&mut port, &later), Verdict::Forward);
    }

    /// D9: in a network of the type `host` global destinations are closed whatever the flags say; the flags decide
    /// the rest.
    #[test]
    fn d9_host_network() {
        let mut port =
            bound_by(PortConfig { net_type: NetType::Host, ..config(&["192.168.64.77", "8.8.8.8"], &[]) });
        for (to, expected) in [
            (WORLD_IP, drop_for(DropReason::HostOnly)),
            (GATEWAY_IP, Verdict::Forward),
            (NEIGHBOUR_IP, Verdict::Forward),
            (Ipv4Addr::new(8, 8, 8, 8), drop_for(DropReason::HostOnly)),
            (OTHER_IP, drop_for(DropReason::Neighbour)),
            (Ipv4Addr::new(10, 0, 0, 1), drop_for(DropReason::NotGlobal)),
        ] {
            assert_eq!(sent(&mut port, &IpFrame::tcp(to, 80)), expected, "{to}");
        }
        assert_eq!(sent(&mut port, &IpFrame::udp(RESOLVER_IP, 53)), Verdict::Forward);
    }

    /// S4: no fragment, first or later, passes to a resolver or a neighbour; to the gateway UDP and ICMP do while it
    /// is open.
    #[test]
    fn s4_fragments_to_restricted_destinations() {
        for allow in [&[][..], &["0.0.0.0/0"], &["@host", "192.168.64.0/24", "10.0.0.53"]] {
            let mut port = bound_with(allow, &[]);
            for (to, mac) in [(RESOLVER_IP, GATEWAY), (NEIGHBOUR_IP, STRANGER)] {
                for (fragment, payload) in [(0x2000, udp(1000, 53, &[0; 64])[..32].to_vec()), (4, vec![0; 8])]
                {
                    let frame = IpFrame::new(to, 17, payload).fragment(fragment).in_frame_to(mac);
                    let expected = match sent(&mut port, &frame) {
                        // Without the flag a neighbour is closed altogether.
                        verdict if to == NEIGHBOUR_IP && allow.is_empty() => {
                            assert!(!verdict.is_forward());
                            continue;
                        }
                        verdict => verdict,
                    };
                    assert_eq!(expected, drop_for(DropReason::FragmentRestricted), "{to}");
                }
            }
            for (protocol, expected) in [
                (17, Verdict::Forward),
                (1, Verdict::Forward),
                (6, drop_for(DropReason::FragmentRestricted)),
                (47, drop_for(DropReason::FragmentRestricted)),
            ] {
                let frame = IpFrame::new(GATEWAY_IP, protocol, [0; 8]).fragment(4);
                assert_eq!(sent(&mut port, &frame), expected, "{protocol}");
            }
            let frame = IpFrame::new(WORLD_IP, 17, [0; 8]).fragment(4);
            assert_eq!(sent(&mut port, &frame), Verdict::Forward);
            assert_eq!(sent(&mut port, &frame.in_frame_to(STRANGER)), drop_for(DropReason::DestinationMac));
        }
        let blocked = IpFrame::new(GATEWAY_IP, 17, [0; 8]).fragment(4);
        assert!(!sent(&mut bound_with(&[], &["@host"]), &blocked).is_forward());
        // What is allowed beyond the network is not restricted.
        let frame = IpFrame::new(Ipv4Addr::new(10, 9, 9, 9), 17, [0; 8]).fragment(4);
        assert_eq!(sent(&mut bound_with(&["10.0.0.0/8"], &[]), &frame), Verdict::Forward);
    }
}
