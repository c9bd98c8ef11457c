//! Which addresses there are: the special-purpose table, and the longest matching prefix by looking at every rule.

use std::net::Ipv4Addr;

use softnet_filter::{Action, Ipv4Net, PortConfig, Target};

/// Network, prefix length, what it is.
type Prefix = ([u8; 4], u8, &'static str);

/// What no packet of a VM is ever for (D1), whatever its network.
const NEVER: &[Prefix] = &[
    ([0, 0, 0, 0], 8, "this network, RFC 791"),
    ([127, 0, 0, 0], 8, "loopback, RFC 1122"),
    ([240, 0, 0, 0], 4, "reserved, RFC 1112, and limited broadcast, RFC 8190"),
];

/// What the registry (IANA, IPv4 Special-Purpose Address Registry) calls not globally reachable, with multicast and
/// the one address that D3 adds.
const NOT_GLOBAL: &[Prefix] = &[
    ([10, 0, 0, 0], 8, "private use, RFC 1918"),
    ([100, 64, 0, 0], 10, "shared address space, RFC 6598"),
    ([169, 254, 0, 0], 16, "link local, RFC 3927"),
    ([172, 16, 0, 0], 12, "private use, RFC 1918"),
    ([192, 0, 0, 0], 24, "IETF protocol assignments, RFC 6890"),
    ([192, 0, 2, 0], 24, "documentation, RFC 5737"),
    ([192, 88, 99, 0], 24, "deprecated 6to4 relay anycast, RFC 7526"),
    ([192, 168, 0, 0], 16, "private use, RFC 1918"),
    ([198, 18, 0, 0], 15, "benchmarking, RFC 2544"),
    ([198, 51, 100, 0], 24, "documentation, RFC 5737"),
    ([203, 0, 113, 0], 24, "documentation, RFC 5737"),
    ([224, 0, 0, 0], 4, "multicast, RFC 5771"),
    ([168, 63, 129, 16], 32, "the platform address of a cloud"),
];

/// What is globally reachable although it lies in one of those.
const GLOBAL_AFTER_ALL: &[Prefix] = &[
    ([192, 0, 0, 9], 32, "port control protocol anycast, RFC 7723"),
    ([192, 0, 0, 10], 32, "TURN anycast, RFC 8155"),
];

fn listed(table: &[Prefix], address: Ipv4Addr) -> bool {
    table.iter().any(|&(network, length, _)| covers(network.into(), length, address))
}

/// Whether the first `length` bits of two addresses are the same.
pub fn covers(network: Ipv4Addr, length: u8, address: Ipv4Addr) -> bool {
    let differing = u32::from(network) ^ u32::from(address);
    differing.leading_zeros() >= u32::from(length)
}

pub fn is_never(address: Ipv4Addr) -> bool {
    listed(NEVER, address)
}

pub fn is_multicast(address: Ipv4Addr) -> bool {
    covers(Ipv4Addr::new(224, 0, 0, 0), 4, address)
}

pub fn is_globally_reachable(address: Ipv4Addr) -> bool {
    !listed(NEVER, address) && (!listed(NOT_GLOBAL, address) || listed(GLOBAL_AFTER_ALL, address))
}

/// The network and broadcast addresses of a subnet.
pub fn edges(subnet: Ipv4Net) -> [Ipv4Addr; 2] {
    let ones = u32::MAX.checked_shr(u32::from(subnet.prefix_len())).unwrap_or(0);
    let address = u32::from(subnet.addr());
    [Ipv4Addr::from(address & !ones), Ipv4Addr::from(address | ones)]
}

/// The Ethernet address of an IPv4 multicast group: the low 23 bits behind 01:00:5e (RFC 1112, section 6.4).
pub fn multicast_mac(group: Ipv4Addr) -> [u8; 6] {
    let [_, b, c, d] = group.octets();
    [0x01, 0x00, 0x5e, b & 0x7f, c, d]
}

/// D2: what the rules say about an address, found by looking at all of them. `@host` is the gateway as a /32, and every
/// other address of the host with less than a /1 and more than a /0 (H1).
pub fn longest_match(config: &PortConfig, address: Ipv4Addr) -> Option<Action> {
    let mut best: Option<(u8, Action)> = None;
    for rule in config.policy.rules() {
        let rank = match rule.target {
            Target::Gateway if address == config.gateway.address => 64,
            Target::Gateway if config.host_addresses.contains(&address) => 1,
            Target::Net(net) if covers(net.addr(), net.prefix_len(), address) => 2 * net.prefix_len(),
            _ => continue,
        };
        best = match best {
            Some((highest, _)) if highest > rank => best,
            Some((highest, Action::Block)) if highest == rank => best,
            _ => Some((rank, rule.action)),
        };
    }
    best.map(|(_, action)| action)
}
