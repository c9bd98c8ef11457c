//! Chooses the subnet of a managed network: one that overlaps no route of the host.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use softnet_wire::special::{Block, PRIVATE_USE, SHARED_ADDRESS_SPACE};

/// Shorter prefixes count as parts of a default route (VPNs install 0.0.0.0/1 and 128.0.0.0/1), which
/// conflict with no subnet.
const SHORTEST_SPECIFIC_PREFIX: u8 = 8;

/// The ranges that a subnet may lie in: private or shared addresses, which the filter's rule D3 treats as not global. In a
/// public subnet a VM's neighbours would count as the internet.
const ALLOWED: [Block<Ipv4Addr>; 4] = [PRIVATE_USE[0], PRIVATE_USE[1], PRIVATE_USE[2], SHARED_ADDRESS_SPACE];

/// Why a subnet cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// Outside of the private ranges.
    #[error(
        "{0} is not private; use a network within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"
    )]
    NotPrivate(Ipv4Net),
    /// Too large or too small.
    #[error("a prefix length of {0} is not supported; use 16 to 29, such as {1}/24")]
    Size(u8, Ipv4Addr),
    /// The host already routes some of it.
    #[error("{subnet} overlaps {route}, which the host already routes; choose another with --subnet")]
    Taken {
        /// The requested subnet.
        subnet: Ipv4Net,
        /// The route that it overlaps.
        route: Ipv4Net,
    },
    /// All candidates overlap something.
    #[error("every candidate subnet overlaps a route of the host; choose one with --subnet")]
    Exhausted,
}

/// Checks a subnet that the user requested and clears its host bits.
pub fn validate(subnet: Ipv4Net) -> Result<Ipv4Net, Error> {
    if !(16..=29).contains(&subnet.prefix_len()) {
        return Err(Error::Size(subnet.prefix_len(), subnet.network()));
    }
    let subnet = subnet.trunc();
    let private =
        ALLOWED.iter().any(|block| Ipv4Net::new_assert(block.address, block.prefix_len).contains(&subnet));
    if private { Ok(subnet) } else { Err(Error::NotPrivate(subnet)) }
}

/// `wanted`, or else the first candidate, if it overlaps no route.
pub fn choose(wanted: Option<Ipv4Net>, routes: &[Ipv4Net]) -> Result<Ipv4Net, Error> {
    match wanted {
        Some(subnet) => match obstacle(subnet, routes) {
            Some(route) => Err(Error::Taken { subnet, route }),
            None => Ok(subnet),
        },
        None => candidates().find(|&subnet| obstacle(subnet, routes).is_none()).ok_or(Error::Exhausted),
    }
}

/// The first host address, which is the gateway's.
pub fn gateway(subnet: Ipv4Net) -> Ipv4Net {
    let first = Ipv4Addr::from_bits(subnet.network().to_bits().saturating_add(1));
    Ipv4Net::new_assert(first, subnet.prefix_len())
}

/// The first and the last address that DHCP hands out: all but network, gateway and broadcast.
pub fn pool(subnet: Ipv4Net) -> (Ipv4Addr, Ipv4Addr) {
    let first = Ipv4Addr::from_bits(subnet.network().to_bits().saturating_add(2));
    let last = Ipv4Addr::from_bits(subnet.broadcast().to_bits().saturating_sub(1));
    (first, last)
}

fn obstacle(subnet: Ipv4Net, routes: &[Ipv4Net]) -> Option<Ipv4Net> {
    let overlaps = |route: &Ipv4Net| route.contains(&subnet) || subnet.contains(route);
    routes.iter().copied().find(|route| route.prefix_len() >= SHORTEST_SPECIFIC_PREFIX && overlaps(route))
}

/// The range that vmnet uses on macOS first, then ranges that home and company networks rarely use.
fn candidates() -> impl Iterator<Item = Ipv4Net> {
    let home = (64..128).map(|third| Ipv4Addr::new(192, 168, third, 0));
    let middle = (16..32).rev().map(|second| Ipv4Addr::new(172, second, 251, 0));
    let large = (64..256).map(|second: u32| Ipv4Addr::from_bits(10 << 24 | second << 16 | 251 << 8));
    home.chain(middle).chain(large).map(|base| Ipv4Net::new_assert(base, 24))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_free_candidate_is_taken() {
        assert_eq!(choose(None, &[]), Ok(net("192.168.64.0/24")));
        assert_eq!(choose(None, &[net("192.168.64.128/25")]), Ok(net("192.168.65.0/24")));
        assert_eq!(choose(None, &[net("192.168.0.0/16")]), Ok(net("172.31.251.0/24")));
        let private = [net("192.168.0.0/16"), net("172.16.0.0/12"), net("10.0.0.0/8")];
        assert_eq!(choose(None, &private), Err(Error::Exhausted));
    }

    #[test]
    fn default_routes_are_in_nobodys_way() {
        let vpn = [net("0.0.0.0/0"), net("0.0.0.0/1"), net("128.0.0.0/1")];
        assert_eq!(choose(None, &vpn), Ok(net("192.168.64.0/24")));
    }

    #[test]
    fn a_wanted_subnet_is_taken_or_refused_never_changed() {
        let wanted = net("10.9.0.0/24");
        assert_eq!(choose(Some(wanted), &[net("10.8.0.0/24")]), Ok(wanted));
        for route in [net("10.9.0.7/32"), net("10.0.0.0/8"), wanted] {
            assert_eq!(choose(Some(wanted), &[route]), Err(Error::Taken { subnet: wanted, route }));
        }
    }

    #[test]
    fn only_private_subnets_of_a_sane_size_pass() {
        assert_eq!(validate(net("10.1.2.3/24")), Ok(net("10.1.2.0/24")));
        assert_eq!(validate(net("100.127.0.0/16")), Ok(net("100.127.0.0/16")));
        assert!(matches!(validate(net("8.8.8.0/24")), Err(Error::NotPrivate(_))));
        assert!(matches!(validate(net("172.32.0.0/16")), Err(Error::NotPrivate(_))));
        assert!(matches!(validate(net("10.0.0.0/8")), Err(Error::Size(8, _))));
        assert!(matches!(validate(net("10.0.0.0/30")), Err(Error::Size(30, _))));
    }

    #[test]
    fn gateway_and_pool_share_the_subnet_without_overlap() {
        let subnet = net("192.168.64.0/29");
        assert_eq!(gateway(subnet), net("192.168.64.1/29"));
        assert_eq!(pool(subnet), (Ipv4Addr::new(192, 168, 64, 2), Ipv4Addr::new(192, 168, 64, 6)));
    }
}
