//! What the rules must know of the host: ports in use, interfaces, the size of its connection table.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;

use super::super::Error;
use super::ports;
use crate::netlink::{Kind, Link, Netlink, inet_diag};

/// The kernel's lists of sockets of this network namespace.
const TCP_SOCKETS: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];
const UDP_SOCKETS: [&str; 2] = ["/proc/net/udp", "/proc/net/udp6"];

const LOCAL_PORTS: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const TABLE_SIZE: &str = "/proc/sys/net/netfilter/nf_conntrack_max";

/// How many VMs can fill their shares before the host's table is full: one VM alone leaves at least half of
/// it.
const SHARES_AT_LEAST: u32 = 4;

/// The current state of the host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// Source ports for translated flows.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Interfaces that are exempt where Softnet turned forwarding on; `None` if it did not.
    pub crossing: Option<Crossing>,
    /// Bounds of shares.
    pub limits: Limits,
}

/// Interfaces between which packets are forwarded although Softnet turned forwarding on.
#[derive(Clone, Debug, Default)]
pub struct Crossing {
    /// Routing interfaces that other programs have created since.
    pub spared: BTreeSet<String>,
    /// All bridges: what a bridge carries from port to port is not forwarded by the host.
    pub bridges: BTreeSet<String>,
}

/// Bounds of shares.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest number of tracked connections of one VM, whatever its setting.
    pub largest_share: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { largest_share: u32::MAX }
    }
}

impl Limits {
    /// A quarter of the host's connection table; no bound if it has none.
    pub fn of_this_host() -> Self {
        let size = fs::read_to_string(TABLE_SIZE).ok().and_then(|text| text.trim().parse::<u32>().ok());
        // For the kernel 0 means no limit.
        let size = size.filter(|&size| size > 0);
        Limits { largest_share: size.map_or(u32::MAX, |size| (size / SHARES_AT_LEAST).max(1)) }
    }
}

impl Host {
    /// Reads the state of the host. `marker` is the text of the file that says that Softnet turned forwarding
    /// on, `exposed` are the ports that VMs expose, and `own` the names of the networks' bridges and TAPs.
    ///
    /// # Errors
    /// If the interfaces cannot be listed.
    pub fn read(marker: Option<&str>, exposed: BTreeSet<u16>, own: &BTreeSet<&str>) -> Result<Host, Error> {
        let mut taken = exposed;
        // A connection needs no port for itself: conntrack knows it, and uses its addresses and ports for no
        // other.
        taken.extend(inet_diag::listening_tcp_ports().unwrap_or_else(|error| {
            tracing::debug!(%error, "no socket diagnostics; reading the list of all sockets");
            bound_ports(&TCP_SOCKETS)
        }));
        taken.extend(bound_ports(&UDP_SOCKETS));
        let of_connections = fs::read_to_string(LOCAL_PORTS).ok().and_then(|text| range(&text));
        let crossing = match marker {
            Some(text) => Some(crossing(text, &Netlink::open()?.links()?, own)),
            None => None,
        };
        Ok(Host {
            ports: ports::free(&taken, &of_connections.unwrap_or(32768..=60999)),
            crossing,
            limits: Limits::of_this_host(),
        })
    }

    /// How many source ports there are.
    pub fn port_count(&self) -> usize {
        ports::count(&self.ports)
    }
}

/// The text of the file that says that Softnet turned forwarding on: the interfaces that were there.
pub fn forwarding_interfaces(links: &[Link]) -> String {
    links.iter().map(|link| format!("{}\n", link.name)).collect()
}

/// Whether nft reads the name of an interface as a plain word.
pub fn plain(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !name.is_empty() && name.bytes().all(letter)
}

/// Foreign interfaces that may rely on forwarding by now: bridges, tunnels and TAPs that were created after
/// Softnet turned it on. `own` are Softnet's.
pub fn relying(marker: &str, links: &[Link], own: &BTreeSet<&str>) -> BTreeSet<String> {
    crossing(marker, links, own).spared
}

fn crossing(marker: &str, links: &[Link], own: &BTreeSet<&str>) -> Crossing {
    let before: BTreeSet<&str> = marker.lines().collect();
    let foreign = || links.iter().filter(|link| plain(&link.name) && !own.contains(link.name.as_str()));
    let routes = |link: &&Link| {
        link.master.is_none() && matches!(link.kind, Kind::Bridge | Kind::Tun(_) | Kind::Wireguard)
    };
    let names = |links: &mut dyn Iterator<Item = &Link>| links.map(|link| link.name.clone()).collect();
    Crossing {
        spared: names(&mut foreign().filter(routes).filter(|link| !before.contains(link.name.as_str()))),
        bridges: names(&mut foreign().filter(|link| link.kind == Kind::Bridge)),
    }
}

/// The ports that the sockets in these lists are bound to.
fn bound_ports(lists: &[&str]) -> BTreeSet<u16> {
    // A kernel without IPv6 has no such list.
    let text = lists.iter().map(|path| fs::read_to_string(path).unwrap_or_default());
    text.flat_map(|text| listed_ports(&text).collect::<Vec<_>>()).collect()
}

/// The ports in one of the kernel's lists (proc_pid_net(5)).
fn listed_ports(sockets: &str) -> impl Iterator<Item = u16> {
    sockets.lines().filter_map(|line| {
        let (_, port) = line.split_ascii_whitespace().nth(1)?.rsplit_once(':')?;
        u16::from_str_radix(port, 16).ok()
    })
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = text.split_ascii_whitespace().map(str::parse);
    Some(ends.next()?.ok()?..=ends.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read_from_the_kernels_lists() {
        let text = "  sl  local_address rem_address   st\n   0: 0100007F:CA6C 00000000:0000 0A\n\
                    0: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07\n garbage\n";
        assert_eq!(listed_ports(text).collect::<Vec<_>>(), [51820, 53]);
        assert_eq!(range("32768\t60999\n"), Some(32768..=60999));
        assert_eq!(range("x"), None);
    }

    #[test]
    fn names_that_nft_would_read_otherwise_are_not_plain() {
        assert!(plain("eth0.5") && plain("br-1a_b"));
        for bad in ["", "a*", "a\"b", "a b", "a;b", "a{"] {
            assert!(!plain(bad), "{bad}");
        }
    }
}
