//! The destinations compiled into one trie, so that the decision costs the same however many entries there are: what a
//! decision's number means, and which prefixes are painted with it. Entries with ports have a table of their own.

use std::collections::BTreeMap;

use core::net::Ipv4Addr;

use softnet_wire::special;

use crate::config::{ConfigError, Gateway, NetType};
use crate::destination::ports::{PortDecision, PortRule, PortTable};
use crate::destination::region::{Rank, Region, regions};
use crate::destination::trie::{Full, Trie};
use crate::ipv4;
use crate::policy::entry::{Origin, Protocol};
use crate::policy::{Action, Policy};

/// What the rules D1 to D4, D9 and P2 say about a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Class {
    /// No entry matched: globally reachable, open to every protocol (D3, D4).
    World,
    /// No entry matched: the gateway, open to TCP, UDP and ICMP (D4).
    Gateway,
    /// An entry of `--allow` decides (D2).
    Allowed,
    /// An entry of `--block` decides (D2).
    Blocked,
    /// An entry of `--block` for everything decides (P5).
    DefaultBlocked,
    /// No entry matched: not globally reachable (D3).
    NotGlobal,
    /// No entry matched: multicast (D3).
    Multicast,
    /// No entry matched: another host on the VM's network (D3), even where the network has public addresses.
    Neighbour,
    /// Globally reachable, in a network whose global destinations are closed, whatever an entry allows (D9).
    HostOnly,
    /// Nothing opens it (D1).
    Never,
}

impl Class {
    const ALL: [Self; 10] = [
        Self::World,
        Self::Gateway,
        Self::Allowed,
        Self::Blocked,
        Self::DefaultBlocked,
        Self::NotGlobal,
        Self::Multicast,
        Self::Neighbour,
        Self::HostOnly,
        Self::Never,
    ];

    /// The class of a peer about which an entry decides.
    fn of(action: Action, is_for_everything: bool) -> Self {
        match action {
            Action::Allow => Self::Allowed,
            Action::Block if is_for_everything => Self::DefaultBlocked,
            Action::Block => Self::Blocked,
        }
    }
}

/// Destinations that no flag opens (D1), besides those that depend on the network.
const NEVER: [special::Block<Ipv4Addr>; 3] = [special::THIS_NETWORK, special::LOOPBACK, special::RESERVED];

/// A decision's number is a [`Class`], and this bit for globally reachable addresses. Entries keep it.
const GLOBAL: u16 = 16;
const DECISIONS: u16 = 2 * GLOBAL;
const _: () = assert!(Class::ALL.len() <= GLOBAL as usize);

/// No decision has this number.
const NONE: u16 = u16::MAX;

/// The entries about what one side begins, compiled for one VM.
pub(crate) struct Table {
    trie: Trie<DECISIONS>,
    /// The entries with ports, if there are any.
    ports: Option<PortTable>,
    /// The number of what is open without a further look: the world, if no entry has ports.
    open: u16,
    /// The number of what is open unless an entry with ports blocks it: the world, if some have.
    open_but_for_ports: u16,
    /// Whether global destinations are open at all (D9).
    has_world: bool,
}

impl Table {
    /// Compiles the entries about what `origin` begins, for a VM whose gateway is `gateway`. `host` are the host's
    /// addresses besides the gateway's (H1).
    pub(crate) fn new(
        policy: &Policy,
        origin: Origin,
        gateway: Gateway,
        net_type: NetType,
        host: &[Ipv4Addr],
    ) -> Result<Self, ConfigError> {
        let mut plain: Vec<(Region, Action)> = Vec::new();
        let mut with_ports: BTreeMap<Region, Vec<PortRule>> = BTreeMap::new();
        // P3: an entry that names no side is about both.
        let is_about_origin = |of: Option<Origin>| of.is_none_or(|of| of == origin);
        for rule in policy.rules().iter().filter(|rule| is_about_origin(rule.entry.origin)) {
            let (entry, action) = (rule.entry, rule.action);
            for region in regions(entry.target, gateway.address, host) {
                if entry.has_ports() {
                    let (ports, protocol) = (entry.ports, entry.protocol);
                    with_ports.entry(region).or_default().push(PortRule { ports, protocol, action });
                } else {
                    plain.push((region, action));
                }
            }
        }
        let ports =
            if with_ports.is_empty() { None } else { Some(PortTable::new(&with_ports, gateway.subnet)?) };
        let has_world = net_type == NetType::Nat;
        let world = if has_world { Class::World } else { Class::HostOnly } as u16 | GLOBAL;
        let (open, open_but_for_ports) = match (has_world, &ports) {
            (false, _) => (NONE, NONE),
            (true, None) => (world, NONE),
            (true, Some(_)) => (NONE, world),
        };
        let mut table = Self { trie: Trie::new(world), ports, open, open_but_for_ports, has_world };
        table.paint_defaults(world, gateway, host)?;

        // D2: the longest prefix is painted last, and of one prefix the block.
        plain.sort_unstable();
        for (Region { rank, address, prefix_len }, action) in plain {
            let class = Class::of(action, rank == Rank::Everything) as u16;
            table.trie.paint(address.octets(), prefix_len, |old| {
                if rank == Rank::Internet && old & GLOBAL == 0 { old } else { class | (old & GLOBAL) }
            })?;
        }

        if origin == Origin::Vm {
            table.paint_never(gateway)?;
        }
        table.trie.shrink_to_fit();
        Ok(table)
    }

    /// D1: what no entry opens to the VM.
    fn paint_never(&mut self, gateway: Gateway) -> Result<(), Full> {
        for block in NEVER {
            self.paint(block.address, block.prefix_len, Class::Never)?;
        }
        self.paint(gateway.subnet.network(), 32, Class::Never)?;
        self.paint(gateway.subnet.broadcast(), 32, Class::Never)
    }

    /// D3, D4, H1: what holds where no entry matches. What no flag opens is painted over later.
    fn paint_defaults(&mut self, world: u16, gateway: Gateway, host: &[Ipv4Addr]) -> Result<(), Full> {
        for block in special::not_global().chain([special::AZURE_PLATFORM]) {
            self.paint(block.address, block.prefix_len, Class::NotGlobal)?;
        }
        for block in special::global_inside() {
            self.trie.paint(block.address.octets(), block.prefix_len, |_| world)?;
        }
        self.paint(special::MULTICAST.address, special::MULTICAST.prefix_len, Class::Multicast)?;
        self.paint(gateway.subnet.network(), gateway.subnet.prefix_len(), Class::Neighbour)?;
        self.paint(gateway.address, 32, Class::Gateway)?;
        // H1: a global address of the host is as open as the gateway; a private one stays what it is.
        for address in host {
            let open = Class::Gateway as u16 | GLOBAL;
            let change = |old| if old == Class::World as u16 | GLOBAL { open } else { old };
            self.trie.paint(address.octets(), 32, change)?;
        }
        Ok(())
    }

    /// What the rules say about `peer` at its `port`, except for the VM's own address, which changes. What has no ports,
    /// or does not show them, is judged by entries without ports alone (P2).
    pub(crate) fn classify(&self, peer: Ipv4Addr, protocol: u8, port: Option<u16>) -> Class {
        let decision = self.trie.decide(peer.octets());
        let class = class_of(decision);
        // D1
        if class == Class::Never {
            return class;
        }
        let by_port = self.decide_by_port(peer, protocol, port);
        let by_port =
            by_port.map_or(class, |decision| Class::of(decision.action, decision.is_for_everything));
        // D9: no entry opens global destinations.
        let is_closed = !self.has_world && decision & GLOBAL != 0;
        if by_port == Class::Allowed && is_closed { Class::HostOnly } else { by_port }
    }

    /// P2: an entry with ports takes precedence over those without.
    #[inline(always)]
    fn decide_by_port(&self, peer: Ipv4Addr, protocol: u8, port: Option<u16>) -> Option<PortDecision> {
        let protocol = match protocol {
            ipv4::TCP => Protocol::Tcp,
            ipv4::UDP => Protocol::Udp,
            _ => return None,
        };
        self.ports.as_ref()?.decide(peer, protocol, port?)
    }

    /// Whether the destination of a packet is open without a further look, as nearly all destinations are.
    #[inline(always)]
    pub(crate) fn is_open(&self, destination: Ipv4Addr, protocol: u8, port: u16) -> bool {
        let decision = self.trie.decide(destination.octets());
        decision == self.open
            || (decision == self.open_but_for_ports && self.ports_open(destination, protocol, port))
    }

    /// Whether no entry with ports blocks a packet for the world.
    #[inline(never)]
    fn ports_open(&self, destination: Ipv4Addr, protocol: u8, port: u16) -> bool {
        let decision = self.decide_by_port(destination, protocol, Some(port));
        decision.is_none_or(|decision| decision.action == Action::Allow)
    }

    /// Whether an entry allows the address, or some of its ports.
    pub(crate) fn allows(&self, address: Ipv4Addr) -> bool {
        let class = class_of(self.trie.decide(address.octets()));
        let allows_some = || self.ports.as_ref().is_some_and(|ports| ports.allows_some(address));
        class == Class::Allowed || (class != Class::Never && allows_some())
    }

    /// Whether the address is globally reachable, and not on the VM's own network.
    pub(crate) fn is_global(&self, address: Ipv4Addr) -> bool {
        self.trie.decide(address.octets()) & GLOBAL != 0
    }

    /// Whether no entry can open the address (D1, D9).
    pub(crate) fn is_closed_to_all(&self, address: Ipv4Addr) -> bool {
        let decision = self.trie.decide(address.octets());
        class_of(decision) == Class::Never || (!self.has_world && decision & GLOBAL != 0)
    }

    /// Whether an entry with ports or a protocol speaks about the address.
    pub(crate) fn has_ports_for(&self, address: Ipv4Addr) -> bool {
        self.ports.as_ref().is_some_and(|ports| ports.speaks_about(address))
    }

    /// Gives every address of a prefix the class, in place of any earlier one.
    fn paint(&mut self, address: Ipv4Addr, prefix: u8, class: Class) -> Result<(), Full> {
        self.trie.paint(address.octets(), prefix, |_| class as u16)
    }
}

/// The class that a decision's number stands for. It always is one; if it ever were not, nothing would pass.
fn class_of(decision: u16) -> Class {
    Class::ALL.get(usize::from(decision & !GLOBAL)).copied().unwrap_or(Class::Never)
}

impl From<Full> for ConfigError {
    fn from(_: Full) -> Self {
        Self::TooManyRules
    }
}

impl core::fmt::Debug for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Table").field("blocks", &self.trie.block_count()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Rule;
    use crate::policy::entry::Target;
    use crate::testing::*;

    fn table(allow: &[&str], block: &[&str]) -> Table {
        let config = config(allow, block);
        Table::new(&config.policy, Origin::Vm, config.gateway, config.net_type, &[]).unwrap()
    }

    fn class(table: &Table, address: &str) -> Class {
        table.classify(address.parse().unwrap(), 47, None)
    }

    /// The addresses before, at the start, at the end and after a prefix.
    fn edges(prefix: &str) -> [Option<Ipv4Addr>; 4] {
        let net: ipnet::Ipv4Net = prefix.parse().unwrap();
        let (first, last) = (net.network().to_bits(), net.broadcast().to_bits());
        [first.checked_sub(1), Some(first), Some(last), last.checked_add(1)]
            .map(|bits| bits.map(Ipv4Addr::from))
    }

    /// D3: each special network begins and ends where the registry says.
    #[test]
    fn d3_boundaries_are_exact() {
        let table = table(&[], &[]);
        for (prefix, inside) in [
            ("0.0.0.0/8", Class::Never),
            ("10.0.0.0/8", Class::NotGlobal),
            ("100.64.0.0/10", Class::NotGlobal),
            ("127.0.0.0/8", Class::Never),
            ("169.254.0.0/16", Class::NotGlobal),
            ("172.16.0.0/12", Class::NotGlobal),
            ("168.63.129.16/32", Class::NotGlobal),
            ("192.0.0.0/24", Class::NotGlobal),
            ("192.0.2.0/24", Class::NotGlobal),
            ("192.88.99.0/24", Class::NotGlobal),
            ("192.168.0.0/16", Class::NotGlobal),
            ("198.18.0.0/15", Class::NotGlobal),
            ("198.51.100.0/24", Class::NotGlobal),
            ("203.0.113.0/24", Class::NotGlobal),
        ] {
            let [before, first, last, after] = edges(prefix);
            for address in [first, last].into_iter().flatten() {
                assert_eq!(table.classify(address, 47, None), inside, "{address} of {prefix}");
            }
            for address in [before, after].into_iter().flatten() {
                assert_eq!(table.classify(address, 47, None), Class::World, "{address} beside {prefix}");
            }
        }
        assert_eq!(class(&table, "169.254.169.254"), Class::NotGlobal);
        assert_eq!(class(&table, "223.255.255.255"), Class::World);
        assert_eq!(class(&table, "224.0.0.0"), Class::Multicast);
        assert_eq!(class(&table, "239.255.255.255"), Class::Multicast);
        assert_eq!(class(&table, "240.0.0.0"), Class::Never);
    }

    /// D3: two addresses in 192.0.0.0/24 are global.
    #[test]
    fn d3_exceptions_are_exact() {
        let table = table(&[], &[]);
        for last in 0..=255 {
            let expected = if matches!(last, 9 | 10) { Class::World } else { Class::NotGlobal };
            assert_eq!(table.classify(Ipv4Addr::new(192, 0, 0, last), 47, None), expected, "{last}");
        }
    }

    /// D1: these are closed whatever is allowed.
    #[test]
    fn d1_never_whatever_the_flags() {
        let everything =
            ["0.0.0.0/0", "0.0.0.0/8", "127.0.0.1", "240.0.0.0/4", "255.255.255.255", "192.168.64.0/24"];
        let neighbours = ["192.168.64.0/32", "192.168.64.255", "0.0.0.0", "240.1.2.3/32", "@host"];
        let table = table(&[&everything[..], &neighbours].concat(), &[]);
        for prefix in ["0.0.0.0/8", "127.0.0.0/8", "240.0.0.0/4"] {
            for address in edges(prefix)[1..3].iter().flatten() {
                assert_eq!(table.classify(*address, 47, None), Class::Never, "{address}");
            }
        }
        for address in
            ["0.0.0.0", "127.0.0.1", "240.1.2.3", "255.255.255.255", "192.168.64.0", "192.168.64.255"]
        {
            assert_eq!(class(&table, address), Class::Never, "{address}");
        }
        assert_eq!(class(&table, "192.168.64.254"), Class::Allowed);
        assert_eq!(class(&table, "192.168.64.1"), Class::Allowed);
    }

    /// D2: the longest prefix decides, in whatever order the rules come.
    #[test]
    fn d2_longest_prefix_decides() {
        let table =
            table(&["10.0.0.0/8", "10.1.2.0/24", "10.1.2.4"], &["10.1.0.0/16", "10.1.2.3", "9.0.0.0/8"]);
        for (address, expected) in [
            ("10.0.0.1", Class::Allowed),
            ("10.1.0.1", Class::Blocked),
            ("10.1.2.1", Class::Allowed),
            ("10.1.2.3", Class::Blocked),
            ("10.1.2.4", Class::Allowed),
            ("10.2.0.0", Class::Allowed),
            ("11.0.0.0", Class::World),
            ("9.9.9.9", Class::Blocked),
        ] {
            assert_eq!(class(&table, address), expected, "{address}");
        }
    }

    /// D2: on the same prefix the block takes precedence, however it is written.
    #[test]
    fn d2_block_wins_on_the_same_prefix() {
        let table = table(&["10.9.9.9/8", "@host", "8.8.8.8"], &["10.0.0.0/8", "192.168.64.1", "8.8.8.8/32"]);
        for address in ["10.0.0.1", "192.168.64.1", "8.8.8.8"] {
            assert_eq!(class(&table, address), Class::Blocked, "{address}");
        }
    }

    fn class_at(table: &Table, address: &str, protocol: u8, port: u16) -> Class {
        table.classify(address.parse().unwrap(), protocol, Some(port))
    }

    /// P2: an entry with ports or a protocol beats one without, even one with a longer prefix; it says nothing about
    /// other ports, other protocols, and what has no ports.
    #[test]
    fn p2_ports_come_first() {
        let table = table(&["8.0.0.0/8:443/tcp", "10.0.0.0/8/udp"], &["8.8.8.8", "10.0.0.0/8"]);
        for (address, protocol, port, expected) in [
            ("8.8.8.8", 6, 443, Class::Allowed),
            ("8.8.8.8", 6, 442, Class::Blocked),
            ("8.8.8.8", 6, 444, Class::Blocked),
            ("8.8.8.8", 17, 443, Class::Blocked),
            ("8.8.8.8", 132, 443, Class::Blocked),
            ("8.8.8.9", 6, 443, Class::Allowed),
            ("8.8.8.9", 6, 80, Class::World),
            ("9.0.0.0", 6, 443, Class::World),
            ("10.1.2.3", 17, 0, Class::Allowed),
            ("10.1.2.3", 17, 65_535, Class::Allowed),
            ("10.1.2.3", 6, 443, Class::Blocked),
        ] {
            assert_eq!(class_at(&table, address, protocol, port), expected, "{address} {protocol} {port}");
        }
        assert_eq!(class(&table, "8.8.8.8"), Class::Blocked);
        assert_eq!(class(&table, "10.1.2.3"), Class::Blocked);
        assert!(table.has_ports_for(Ipv4Addr::new(8, 255, 255, 255)));
        assert!(!table.has_ports_for(Ipv4Addr::new(9, 0, 0, 0)));
        assert!(table.allows(Ipv4Addr::new(8, 8, 8, 8)));
        assert!(!table.allows(Ipv4Addr::new(9, 0, 0, 0)));
    }

    /// P2: among entries with ports the longest prefix, then the narrower range, then the block; not the protocol.
    #[test]
    fn p2_longer_prefix_then_narrower_range_then_block() {
        let table = table(
            &["8.0.0.0/8:80-90", "8.8.0.0/16:1-65535", "9.0.0.0/8:80-90/tcp", "9.1.0.0/16:85"],
            &[
                "8.0.0.0/8:85",
                "8.8.8.0/24:80-89",
                "9.0.0.0/8:80-90",
                "9.0.0.0/8:70-100/tcp",
                "9.1.0.0/16:85/tcp",
            ],
        );
        for (address, protocol, port, expected) in [
            ("8.0.0.1", 6, 80, Class::Allowed),
            ("8.0.0.1", 6, 84, Class::Allowed),
            ("8.0.0.1", 6, 85, Class::Blocked),
            ("8.0.0.1", 6, 86, Class::Allowed),
            ("8.0.0.1", 17, 90, Class::Allowed),
            ("8.0.0.1", 17, 91, Class::World),
            ("8.8.0.1", 6, 85, Class::Allowed),
            ("8.8.0.1", 6, 1, Class::Allowed),
            ("8.8.0.1", 6, 65_535, Class::Allowed),
            ("8.8.0.1", 6, 0, Class::World),
            ("8.8.8.1", 6, 85, Class::Blocked),
            ("8.8.8.1", 6, 90, Class::Allowed),
            ("9.0.0.1", 6, 85, Class::Blocked),
            ("9.0.0.1", 17, 85, Class::Blocked),
            ("9.0.0.1", 6, 70, Class::Blocked),
            ("9.0.0.1", 17, 70, Class::World),
            ("9.1.0.1", 6, 85, Class::Blocked),
            ("9.1.0.1", 17, 85, Class::Allowed),
            ("9.1.0.1", 17, 84, Class::Blocked),
        ] {
            assert_eq!(class_at(&table, address, protocol, port), expected, "{address} {protocol} {port}");
        }
    }

    /// P2: the members of a group count with their own prefixes; `@internet` ranks just above /0, and below `@host` (H1).
    #[test]
    fn p2_groups() {
        let host = [Ipv4Addr::new(9, 9, 9, 2), Ipv4Addr::new(10, 77, 0, 1)];
        let table = |allow: &[&str], block: &[&str]| {
            let config = config(allow, block);
            Table::new(&config.policy, Origin::Vm, config.gateway, config.net_type, &host).unwrap()
        };
        let private = table(&["@private"], &["10.0.0.0/7", "10.1.0.0/16"]);
        for (address, expected) in [
            ("9.255.255.255", Class::World),
            ("10.0.0.1", Class::Allowed),
            ("10.1.0.1", Class::Blocked),
            ("11.0.0.1", Class::Blocked),
            ("100.64.0.1", Class::Allowed),
            ("172.31.255.255", Class::Allowed),
            ("192.168.0.1", Class::Allowed),
            ("192.168.64.1", Class::Allowed),
            ("169.254.169.254", Class::NotGlobal),
        ] {
            assert_eq!(class(&private, address), expected, "{address}");
        }
        let metadata = table(&["169.254.0.0/16", "0.0.0.0/0"], &["@metadata"]);
        for address in ["169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"]
        {
            assert_eq!(class(&metadata, address), Class::Blocked, "{address}");
        }
        assert_eq!(class(&metadata, "169.254.169.253"), Class::Allowed);
        // The world without 9.9.9.2, which is the host's.
        let internet = table(&["@internet"], &["0.0.0.0/0", "@host"]);
        for (address, expected) in [
            ("8.8.8.8", Class::Allowed),
            ("9.9.9.2", Class::Blocked),
            ("192.0.0.9", Class::Allowed),
            ("10.0.0.1", Class::DefaultBlocked),
            ("168.63.129.16", Class::DefaultBlocked),
            ("192.168.64.77", Class::DefaultBlocked),
            ("224.0.0.251", Class::DefaultBlocked),
            ("127.0.0.1", Class::Never),
        ] {
            assert_eq!(class(&internet, address), expected, "{address}");
        }
        let with_ports = table(&["@internet:443", "@host:22"], &["0.0.0.0/0:1-1023", "10.0.0.0/8:22"]);
        for (address, port, expected) in [
            ("8.8.8.8", 443, Class::Allowed),
            ("8.8.8.8", 80, Class::DefaultBlocked),
            ("8.8.8.8", 1024, Class::World),
            ("192.0.0.10", 443, Class::Allowed),
            ("192.0.0.11", 443, Class::DefaultBlocked),
            ("168.63.129.16", 443, Class::DefaultBlocked),
            ("192.168.64.77", 443, Class::DefaultBlocked),
            ("224.0.0.251", 443, Class::DefaultBlocked),
            ("9.9.9.2", 22, Class::Allowed),
            ("9.9.9.2", 443, Class::Allowed),
            ("9.9.9.2", 80, Class::DefaultBlocked),
            // An entry longer than /0 decides about an address of the host.
            ("10.77.0.1", 22, Class::Blocked),
            ("192.168.64.1", 22, Class::Allowed),
        ] {
            assert_eq!(class_at(&with_ports, address, 6, port), expected, "{address} {port}");
        }
    }

    /// D1, D9: no port opens what nothing opens.
    #[test]
    fn p2_ports_open_neither_d1_nor_d9() {
        let config = config(&["0.0.0.0/0:80", "127.0.0.1:80", "8.8.8.8:80"], &["9.9.9.9:80"]);
        let table = Table::new(&config.policy, Origin::Vm, config.gateway, NetType::Host, &[]).unwrap();
        for (address, expected) in [
            ("127.0.0.1", Class::Never),
            ("192.168.64.255", Class::Never),
            ("8.8.8.8", Class::HostOnly),
            ("9.9.9.9", Class::Blocked),
            ("1.1.1.1", Class::HostOnly),
            ("10.0.0.1", Class::Allowed),
        ] {
            assert_eq!(class_at(&table, address, 6, 80), expected, "{address}");
        }
        assert!(!table.allows(Ipv4Addr::LOCALHOST));
        assert!(table.allows(Ipv4Addr::new(10, 0, 0, 1)));
    }

    /// D1, P3: what the VM may never send to, others may send from, unless an entry blocks it.
    #[test]
    fn p3_d1_is_about_destinations() {
        let config = config(&["in 1.1.1.1"], &["in 127.0.0.0/8"]);
        for (origin, never, blocked) in
            [(Origin::Vm, Class::Never, Class::Never), (Origin::Outside, Class::NotGlobal, Class::Blocked)]
        {
            let table = Table::new(&config.policy, origin, config.gateway, config.net_type, &[]).unwrap();
            assert_eq!(class(&table, "240.0.0.1"), never);
            assert_eq!(class(&table, "127.0.0.1"), blocked);
        }
    }

    /// P3: an entry that names a side is about what that side begins, any other about both.
    #[test]
    fn p3_entries_of_one_side() {
        let config = config(&["in 8.8.8.8", "out 9.9.9.9:80"], &["8.0.0.0/7"]);
        for (origin, eight, nine) in
            [(Origin::Vm, Class::Blocked, Class::Allowed), (Origin::Outside, Class::Allowed, Class::Blocked)]
        {
            let table = Table::new(&config.policy, origin, config.gateway, config.net_type, &[]).unwrap();
            assert_eq!(class_at(&table, "8.8.8.8", 6, 80), eight);
            assert_eq!(class_at(&table, "9.9.9.9", 6, 80), nine);
        }
    }

    /// More prefixes with ports than can be numbered are refused, not confused; those that fit are distinguished.
    #[test]
    fn too_many_rules_with_ports_are_refused() {
        let many = |count: u32| {
            let rules = (0..count).map(|n| Rule {
                entry: format!("{}:{}", Ipv4Addr::from((n << 9) + 0x0100_0001), n % 60_000 + 1)
                    .parse()
                    .unwrap(),
                action: Action::Block,
            });
            let config = config(&[], &[]);
            let policy = Policy::new(rules.collect());
            Table::new(&policy, Origin::Vm, config.gateway, config.net_type, &[])
        };
        let table = many(10_000).unwrap();
        assert_eq!(class_at(&table, "1.0.2.1", 6, 2), Class::Blocked);
        assert_eq!(class_at(&table, "1.0.2.1", 6, 1), Class::World);
        assert_eq!(class_at(&table, "1.0.2.2", 6, 2), Class::World);
        assert_eq!(many(20_000).unwrap_err(), ConfigError::TooManyRules);
    }

    /// D8: allowing everything opens D3, and nothing of D1.
    #[test]
    fn d8_allowing_everything_opens_d3() {
        let table = table(&["0.0.0.0/0"], &[]);
        for address in
            ["169.254.169.254", "10.1.1.1", "192.168.64.77", "224.0.0.251", "168.63.129.16", "9.9.9.9"]
        {
            assert_eq!(class(&table, address), Class::Allowed, "{address}");
        }
        assert_eq!(class(&table, "127.0.0.1"), Class::Never);
    }

    /// D9: with the type `host` global destinations are closed, the exceptions of D3 too, and no rule opens them.
    #[test]
    fn d9_host_network_has_no_world() {
        let host = |allow: &[&str], block: &[&str]| {
            let config = crate::PortConfig { net_type: NetType::Host, ..config(allow, block) };
            Table::new(&config.policy, Origin::Vm, config.gateway, config.net_type, &[]).unwrap()
        };
        let table = host(&["8.8.8.8", "172.16.0.0/12"], &["9.9.9.0/24"]);
        for (address, expected) in [
            ("1.1.1.1", Class::HostOnly),
            ("192.0.0.9", Class::HostOnly),
            ("8.8.8.8", Class::HostOnly),
            ("9.9.9.9", Class::Blocked),
            ("10.0.0.1", Class::NotGlobal),
            ("172.16.0.1", Class::Allowed),
            ("192.168.64.1", Class::Gateway),
            ("192.168.64.2", Class::Neighbour),
        ] {
            assert_eq!(class(&table, address), expected, "{address}");
        }
        let table = host(&["0.0.0.0/0"], &[]);
        for (address, expected) in [
            ("1.1.1.1", Class::HostOnly),
            ("192.0.0.10", Class::HostOnly),
            ("10.0.0.1", Class::Allowed),
            ("192.168.64.1", Class::Allowed),
            ("192.168.64.2", Class::Allowed),
            ("224.0.0.251", Class::Allowed),
            ("127.0.0.1", Class::Never),
        ] {
            assert_eq!(class(&table, address), expected, "{address}");
        }
    }

    /// D3: the VM's own network is closed, but for the gateway, even where its addresses are public.
    #[test]
    fn d3_neighbours_are_closed() {
        let mut config = config(&[], &[]);
        config.gateway.subnet = "203.0.112.0/23".parse().unwrap();
        config.gateway.address = Ipv4Addr::new(203, 0, 112, 1);
        let table = Table::new(&config.policy, Origin::Vm, config.gateway, config.net_type, &[]).unwrap();
        for (address, expected) in [
            ("203.0.111.255", Class::World),
            ("203.0.112.0", Class::Never),
            ("203.0.112.1", Class::Gateway),
            ("203.0.112.2", Class::Neighbour),
            ("203.0.113.254", Class::Neighbour),
            ("203.0.113.255", Class::Never),
            ("203.0.114.0", Class::World),
        ] {
            assert_eq!(class(&table, address), expected, "{address}");
        }
    }

    /// More blocks than 16 bits can number are refused, not confused.
    #[test]
    fn too_many_rules_are_refused() {
        let many = |count: u32| {
            // One address in each of so many /24, no two of them neighbours within a /16 but by 128.
            let address = |n: u32| Ipv4Addr::from((n << 9) + 0x0100_0001);
            let target = |n| Target::Ipv4(ipnet::Ipv4Net::new(address(n), 32).unwrap());
            let rules = (0..count).map(|n| Rule { entry: target(n).into(), action: Action::Block });
            let config = config(&[], &[]);
            Table::new(&Policy::new(rules.collect()), Origin::Vm, config.gateway, config.net_type, &[])
        };
        let table = many(40_000).unwrap();
        assert_eq!(class(&table, "1.0.0.1"), Class::Blocked);
        assert_eq!(class(&table, "1.0.2.1"), Class::Blocked);
        assert_eq!(class(&table, "1.0.2.2"), Class::World);
        assert_eq!(many(70_000).unwrap_err(), ConfigError::TooManyRules);
    }

    #[test]
    fn debug_is_short() {
        assert!(format!("{:?}", table(&[], &[])).starts_with("Table { blocks: "));
    }
}
