//! Which addresses there are: the special-purpose table, and the longest matching prefix by looking at every rule.

use std::net::Ipv4Addr;

use softnet_filter::{Action, Ipv4Net, Origin, PortConfig, Protocol, Rule, Target};

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

/// What an entry about ports is asked: the protocol and the peer's port.
pub type Port = Option<(u8, u16)>;

/// P2, H1: how well an entry's target fits an address, if it does. `@host` is the gateway as a /32, and every other address
/// of the host with less than a /1; `@internet` comes between that and a /0.
fn fit(config: &PortConfig, target: Target, address: Ipv4Addr) -> Option<u8> {
    let among = |list: &[Prefix]| {
        let fits = |prefix: &&Prefix| covers(prefix.0.into(), prefix.1, address);
        list.iter().filter(fits).map(|prefix| 4 * prefix.1).max()
    };
    match target {
        Target::Host if address == config.gateway.address => Some(4 * 32),
        Target::Host => config.host_addresses.contains(&address).then_some(2),
        Target::Ipv4(net) => covers(net.addr(), net.prefix_len(), address).then_some(4 * net.prefix_len()),
        Target::Ipv6(_) => None,
        Target::Private => among(PRIVATE),
        Target::Metadata => among(METADATA),
        Target::Internet => {
            let is_near = config.gateway.subnet.contains(&address);
            (is_globally_reachable(address) && !is_near).then_some(1)
        }
    }
}

/// The networks that anybody may use for himself.
const PRIVATE: &[Prefix] = &[
    ([10, 0, 0, 0], 8, "RFC 1918"),
    ([172, 16, 0, 0], 12, "RFC 1918"),
    ([192, 168, 0, 0], 16, "RFC 1918"),
    ([100, 64, 0, 0], 10, "RFC 6598"),
];

/// Where clouds speak to their guests.
const METADATA: &[Prefix] = &[
    ([169, 254, 169, 254], 32, "most of them"),
    ([169, 254, 170, 2], 32, "AWS, containers"),
    ([169, 254, 170, 23], 32, "AWS, pods"),
    ([169, 254, 0, 23], 32, "Tencent"),
    ([168, 63, 129, 16], 32, "Azure"),
    ([100, 100, 100, 200], 32, "Alibaba"),
    ([192, 0, 0, 192], 32, "Oracle, of old"),
];

/// P2: what the entries say about what `origin` begins with a peer, by looking at all of them; and whether the entry is
/// longer than /0.
pub fn deciding(
    config: &PortConfig,
    origin: Origin,
    address: Ipv4Addr,
    port: Port,
) -> Option<(Action, bool)> {
    let mut best: Option<((bool, u8, u16, bool), Action)> = None;
    for Rule { entry, action } in config.policy.rules() {
        let Some(fit) = fit(config, entry.target, address) else { continue };
        if entry.origin.is_some_and(|of| of != origin) {
            continue;
        }
        let speaks_of_ports = entry.ports.is_some() || entry.protocol.is_some();
        let (low, high) = entry.ports.map_or((0, u16::MAX), |ports| (ports.low(), ports.high()));
        if speaks_of_ports {
            let Some((protocol, port)) = port else { continue };
            let is_protocol = match entry.protocol {
                Some(Protocol::Tcp) => protocol == 6,
                Some(Protocol::Udp) => protocol == 17,
                None => matches!(protocol, 6 | 17),
            };
            if !is_protocol || port < low || port > high {
                continue;
            }
        }
        let key = (speaks_of_ports, fit, u16::MAX - (high - low), *action == Action::Block);
        if best.is_none_or(|(other, _)| other < key) {
            best = Some((key, *action));
        }
    }
    best.map(|((_, fit, _, _), action)| (action, fit > 0))
}

/// S4, F5: whether an entry with ports or a protocol speaks about an address.
pub fn has_ports(config: &PortConfig, address: Ipv4Addr) -> bool {
    config.policy.rules().iter().any(|Rule { entry, .. }| {
        (entry.ports.is_some() || entry.protocol.is_some()) && fit(config, entry.target, address).is_some()
    })
}

/// A5: whether an entry allows an address or some of its ports.
pub fn allows_some(config: &PortConfig, address: Ipv4Addr) -> bool {
    let plain = deciding(config, Origin::Vm, address, None);
    plain.is_some_and(|(action, _)| action == Action::Allow)
        || config.policy.rules().iter().any(|Rule { entry, action }| {
            *action == Action::Allow
                && entry.origin != Some(Origin::Outside)
                && (entry.ports.is_some() || entry.protocol.is_some())
                && fit(config, entry.target, address).is_some()
        })
}
