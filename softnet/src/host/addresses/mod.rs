//! The IPv4 addresses of the host, as they come and go (rule H1).

#[cfg(target_os = "linux")]
mod linux;
mod listed;

use std::net::Ipv4Addr;
use std::time::Duration;

#[cfg(target_os = "linux")]
pub use linux::AddressWatch;
pub use listed::ListedAddresses;
#[cfg(target_os = "macos")]
pub use listed::{is_address_change, routing_messages};

/// The largest number of addresses that are tracked. On a host with more, global ones come first: a VM cannot
/// reach the others unless an entry of `--allow` opens them.
pub const MOST: usize = 4096;

/// The shortest time between two queries, so that a host whose addresses change all the time keeps
/// nobody busy.
const QUERY_INTERVAL: Duration = Duration::from_millis(100);

/// The relevant addresses of `all`, sorted, at most `most`.
fn pick(all: impl Iterator<Item = Ipv4Addr>, gateway: Ipv4Addr, most: usize) -> Vec<Ipv4Addr> {
    let counts = |address: &Ipv4Addr| {
        *address != gateway && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
    };
    let mut addresses: Vec<Ipv4Addr> = all.filter(counts).collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.len() > most {
        tracing::warn!(
            count = addresses.len(),
            most,
            "the host has more addresses than Softnet tracks; the filter does not know the last private ones"
        );
        addresses.sort_by_key(|address| address.is_private() || address.is_link_local());
        addresses.truncate(most);
        addresses.sort_unstable();
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<Ipv4Addr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_gateway_and_loopback_are_left_out() {
        let all =
            addresses(&["127.0.0.1", "198.51.100.2", "192.168.64.1", "10.0.0.1", "10.0.0.1", "127.1.2.3"]);
        let gateway = "192.168.64.1".parse().unwrap();
        assert_eq!(pick(all.into_iter(), gateway, 10), addresses(&["10.0.0.1", "198.51.100.2"]));
    }

    #[test]
    fn too_many_cost_private_ones_first() {
        let all = addresses(&["10.0.0.1", "9.9.9.2", "192.168.1.1", "198.51.100.2"]);
        let kept = pick(all.into_iter(), Ipv4Addr::UNSPECIFIED, 3);
        assert_eq!(kept, addresses(&["9.9.9.2", "10.0.0.1", "198.51.100.2"]));
    }
}
