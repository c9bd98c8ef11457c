//! The destinations compiled into one trie, so that the decision costs the same however many rules there are: what a
//! decision's number means, and which prefixes are painted with it.

use core::net::Ipv4Addr;

use softnet_wire::special;

use crate::config::{ConfigError, Gateway, NetType};
use crate::destination::trie::{DECISIONS, Full, Trie};
use crate::policy::{Action, Policy, Target};

/// What the rules D1 to D4 and D9 say about a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Class {
    /// No rule matched: globally reachable, open to every protocol (D3, D4).
    World,
    /// No rule matched: the gateway, open to TCP, UDP and ICMP (D4).
    Gateway,
    /// `--allow` names it (D2).
    Allowed,
    /// `--block` names it (D2).
    Blocked,
    /// No rule matched: not globally reachable (D3).
    NotGlobal,
    /// No rule matched: multicast (D3).
    Multicast,
    /// No rule matched: another host on the VM's network (D3), even where the network has public addresses.
    Neighbour,
    /// Globally reachable, in a network whose global destinations are closed, whatever a rule allows (D9).
    HostOnly,
    /// Nothing opens it (D1).
    Never,
}

impl Class {
    const ALL: [Self; 9] = [
        Self::World,
        Self::Gateway,
        Self::Allowed,
        Self::Blocked,
        Self::NotGlobal,
        Self::Multicast,
        Self::Neighbour,
        Self::HostOnly,
        Self::Never,
    ];
}

/// Destinations that no flag opens (D1), besides those that depend on the network.
const NEVER: [special::Block<Ipv4Addr>; 3] = [special::THIS_NETWORK, special::LOOPBACK, special::RESERVED];

/// A decision's number is a [`Class`], and this bit for globally reachable addresses where D9 closes them. The rules
/// of D2 keep it.
const WITHOUT_WORLD: u16 = 16;
const _: () = assert!(Class::ALL.len() <= WITHOUT_WORLD as usize && 2 * WITHOUT_WORLD <= DECISIONS);

/// Which of two rules about one destination decides: the greater one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// For a network with a prefix of no bits.
    Everything,
    /// For an address of the host besides the gateway's, by `@host`.
    Host,
    /// For a network with a prefix of so many bits.
    Prefix(u8),
}

/// The compiled destinations of one VM.
pub(crate) struct Table {
    trie: Trie,
}

impl Table {
    /// Compiles the policy for a VM whose gateway is `gateway`. `host` are the host's addresses besides the gateway's
    /// (H1).
    pub(crate) fn new(
        policy: &Policy,
        gateway: Gateway,
        net_type: NetType,
        host: &[Ipv4Addr],
    ) -> Result<Self, ConfigError> {
        let world = match net_type {
            NetType::Nat => Class::World as u16,
            NetType::Host => Class::HostOnly as u16 | WITHOUT_WORLD,
        };
        let mut table = Self { trie: Trie::new(world) };

        // D3. Those that no flag opens are painted over below.
        for block in special::not_global().chain([special::AZURE_PLATFORM]) {
            table.paint(block.address, block.prefix_len, Class::NotGlobal)?;
        }
        for block in special::global_inside() {
            table.trie.paint(block.address.octets(), block.prefix_len, |_| world)?;
        }
        table.paint(Ipv4Addr::new(224, 0, 0, 0), 4, Class::Multicast)?;
        table.paint(gateway.subnet.network(), gateway.subnet.prefix_len(), Class::Neighbour)?;
        table.paint(gateway.address, 32, Class::Gateway)?;

        // H1: a global address of the host is as open as the gateway; a private one stays what it is.
        for address in host {
            if table.is_world(*address) {
                table.paint(*address, 32, Class::Gateway)?;
            }
        }

        // D2: the longest prefix is painted last, and of one prefix the block. H1: `@host` at another address than the
        // gateway's yields to every entry but /0.
        let mut rules: Vec<(Rank, Action, Ipv4Addr, u8)> = Vec::new();
        for rule in policy.rules() {
            match rule.target {
                Target::Net(net) => {
                    let prefix = net.prefix_len();
                    let rank = if prefix == 0 { Rank::Everything } else { Rank::Prefix(prefix) };
                    rules.push((rank, rule.action, net.network(), prefix));
                }
                Target::Gateway => {
                    rules.push((Rank::Prefix(32), rule.action, gateway.address, 32));
                    rules.extend(host.iter().map(|address| (Rank::Host, rule.action, *address, 32)));
                }
            }
        }
        rules.sort_unstable();
        for (_, action, address, prefix) in rules {
            let class = match action {
                Action::Allow => Class::Allowed,
                Action::Block => Class::Blocked,
            };
            // D9: no rule opens global destinations.
            table.trie.paint(address.octets(), prefix, |old| class as u16 | (old & WITHOUT_WORLD))?;
        }

        for block in NEVER {
            table.paint(block.address, block.prefix_len, Class::Never)?;
        }
        table.paint(gateway.subnet.network(), 32, Class::Never)?;
        table.paint(gateway.subnet.broadcast(), 32, Class::Never)?;
        table.trie.shrink_to_fit();
        Ok(table)
    }

    /// What the rules say about `destination`, except for the VM's own address, which changes.
    pub(crate) fn classify(&self, destination: Ipv4Addr) -> Class {
        let decision = self.trie.decide(destination.octets());
        // It is always a class; if it ever were not, nothing would pass.
        let class = Class::ALL.get(usize::from(decision & !WITHOUT_WORLD)).copied().unwrap_or(Class::Never);
        // D9
        let has_no_world = decision & WITHOUT_WORLD != 0;
        if class == Class::Allowed && has_no_world { Class::HostOnly } else { class }
    }

    /// Whether `destination` is of [`Class::World`], where nearly all packets go.
    #[inline(always)]
    pub(crate) fn is_world(&self, destination: Ipv4Addr) -> bool {
        self.trie.decide(destination.octets()) == Class::World as u16
    }

    /// Gives every address of a prefix the class, in place of any earlier one.
    fn paint(&mut self, address: Ipv4Addr, prefix: u8, class: Class) -> Result<(), Full> {
        self.trie.paint(address.octets(), prefix, |_| class as u16)
    }
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
    use crate::testing::*;

    fn table(allow: &[&str], block: &[&str]) -> Table {
        let config = config(allow, block);
        Table::new(&config.policy, config.gateway, config.net_type, &[]).unwrap()
    }

    fn class(table: &Table, address: &str) -> Class {
        table.classify(address.parse().unwrap())
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
                assert_eq!(table.classify(address), inside, "{address} of {prefix}");
            }
            for address in [before, after].into_iter().flatten() {
                assert_eq!(table.classify(address), Class::World, "{address} beside {prefix}");
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
            assert_eq!(table.classify(Ipv4Addr::new(192, 0, 0, last)), expected, "{last}");
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
                assert_eq!(table.classify(*address), Class::Never, "{address}");
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
            Table::new(&config.policy, config.gateway, config.net_type, &[]).unwrap()
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
        let table = Table::new(&config.policy, config.gateway, config.net_type, &[]).unwrap();
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
            let rules = (0..count).map(|n| Rule {
                target: Target::Net(ipnet::Ipv4Net::new(Ipv4Addr::from((n << 9) + 0x0100_0001), 32).unwrap()),
                action: Action::Block,
            });
            let config = config(&[], &[]);
            Table::new(&Policy::new(rules.collect()), config.gateway, config.net_type, &[])
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
