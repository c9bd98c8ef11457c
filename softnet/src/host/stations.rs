//! Finds the router and the DHCP server of a TAP: the host, or the stations that `--gateway` and `--dhcp-server` name.
//!
//! The filter trusts both by MAC address too. If it is not given, Softnet asks for it through the VM's own TAP before
//! it reads the VM's frames, as a station does that is about to use an address (RFC 5227): that needs no privilege, and
//! the answer comes from where the VM's frames will go. Two different answers are no answer.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use softnet_filter::{MacAddr, Station};
use softnet_wire::arp::Arp;
use softnet_wire::build;
use softnet_wire::ethernet::{EtherType, Frame};

use super::bridge;
use super::tap::Tap;
use crate::config::servers::{Named, Servers};
use crate::link::{FrameBatch, Link, LinkError, Received};
use crate::netlink::{self, Netlink};
use crate::sys::wait::{self, readable};
use crate::usage::UsageError;

/// How long a station may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to wait before asking again.
const REPEAT: Duration = Duration::from_millis(500);
/// How long to listen for a second answer after the first.
const CONTEST: Duration = Duration::from_millis(200);

const GATEWAY: &str = "--gateway";
const DHCP_SERVER: &str = "--dhcp-server";

/// Which stations serve the segment, as far as that is known without asking them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    router: Wanted,
    /// The DHCP server, if it is not the router.
    dhcp_server: Option<Wanted>,
    /// The segment's network.
    pub subnet: Ipv4Net,
    /// The host's own addresses on the segment.
    pub host: Vec<Ipv4Addr>,
    /// The host's interface.
    pub interface: String,
}

/// A station whose MAC address may have to be asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Wanted {
    flag: &'static str,
    address: Ipv4Addr,
    mac: Option<MacAddr>,
}

/// The stations that serve the segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stations {
    /// The router.
    pub router: Station,
    /// The DHCP server, if it is not the router.
    pub dhcp_server: Option<Station>,
}

/// Why the stations are not known.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's interface does not serve.
    #[error(transparent)]
    Host(#[from] bridge::Error),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// A flag names a station that is none of the segment.
    #[error(transparent)]
    Usage(#[from] UsageError),
    /// The TAP does not carry the question.
    #[error("cannot ask for the MAC address of {0}")]
    Link(Ipv4Addr, #[source] LinkError),
    /// The TAP cannot be waited for.
    #[error("cannot wait for an answer")]
    Wait(#[from] rustix::io::Errno),
}

impl Plan {
    /// Plans for the segment whose end at the host is `link`: a bridge, or a TAP without one.
    ///
    /// # Errors
    /// If neither the host nor a flag names a router, or a flag names an address outside of the segment.
    pub fn new(netlink: &mut Netlink, link: &netlink::Link, servers: &Servers) -> Result<Self, Error> {
        let addresses = netlink.addresses(link.index)?;
        let host_router = match &servers.gateway {
            Some(_) => None,
            None => Some(bridge::gateway(netlink, link)?),
        };
        let (router, subnet) = match (&host_router, servers.gateway) {
            (Some(host), _) => {
                (Wanted { flag: GATEWAY, address: host.address, mac: Some(host.mac) }, host.subnet())
            }
            (None, Some((named, prefix))) => gateway(link, &addresses, named, prefix)?,
            (None, None) => return Err(bridge::Error::NoAddress(link.name.clone()).into()),
        };
        let dhcp_server = servers.dhcp_server.map(|named| wanted(DHCP_SERVER, link, &addresses, named));
        let dhcp_server = dhcp_server.transpose()?.filter(|server| server.address != router.address);
        if let Some(server) = &dhcp_server {
            check_in(DHCP_SERVER, server.address, subnet)?;
        }
        let host = addresses.iter().map(Ipv4Net::addr).collect();
        Ok(Plan { router, dhcp_server, subnet, host, interface: link.name.clone() })
    }

    /// The router's address.
    pub fn router(&self) -> Ipv4Addr {
        self.router.address
    }

    /// The DHCP server's address.
    pub fn dhcp_server(&self) -> Ipv4Addr {
        self.dhcp_server.map_or(self.router.address, |server| server.address)
    }

    /// Addresses of the segment that cannot be the VM's: those of the stations and of the host.
    pub fn not_the_vms(&self) -> Vec<Ipv4Addr> {
        let mut all = vec![self.router(), self.dhcp_server()];
        all.extend(&self.host);
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Asks for the MAC addresses that are not known, through `tap`, whose frames must flow.
    ///
    /// # Errors
    /// If a station does not answer, or two different ones do.
    pub fn find(&self, tap: &mut Tap, vm_mac: MacAddr) -> Result<Stations, Error> {
        let mut find = |wanted: Wanted| -> Result<Station, Error> {
            let mac = match wanted.mac {
                Some(mac) => mac,
                None => ask(tap, vm_mac, wanted, &self.interface)?,
            };
            Ok(Station { mac, address: wanted.address })
        };
        Ok(Stations { router: find(self.router)?, dhcp_server: self.dhcp_server.map(find).transpose()? })
    }
}

/// The router that a flag names, and its network: the given one, or that of the host's address beside it.
fn gateway(
    link: &netlink::Link,
    addresses: &[Ipv4Net],
    named: Named,
    prefix: Option<u8>,
) -> Result<(Wanted, Ipv4Net), UsageError> {
    let address = named.address;
    let of_host = || addresses.iter().find(|own| own.contains(&address)).map(Ipv4Net::trunc);
    let Some(subnet) = prefix.map(|prefix| Ipv4Net::new_assert(address, prefix).trunc()).or_else(of_host)
    else {
        let reason = format_args!(
            "lies in no network in which {} has an address; add the length of its network's prefix, such as {address}/24",
            link.name
        );
        return Err(UsageError::new(GATEWAY, address.to_string(), reason));
    };
    check_in(GATEWAY, address, subnet)?;
    Ok((wanted(GATEWAY, link, addresses, named)?, subnet))
}

fn check_in(flag: &'static str, address: Ipv4Addr, subnet: Ipv4Net) -> Result<(), UsageError> {
    if subnet.contains(&address) && ![subnet.network(), subnet.broadcast()].contains(&address) {
        return Ok(());
    }
    let reason = format_args!("is no host's address in the VM's network {subnet}; choose one in it");
    Err(UsageError::new(flag, address.to_string(), reason))
}

/// The station that a flag names. The host's own MAC address is known.
fn wanted(
    flag: &'static str,
    link: &netlink::Link,
    addresses: &[Ipv4Net],
    Named { address, mac }: Named,
) -> Result<Wanted, UsageError> {
    let own = link.mac.filter(|_| addresses.iter().any(|own| own.addr() == address));
    match (mac, own) {
        (Some(mac), Some(own)) if mac != own => {
            let reason =
                format_args!("is the address of {}, whose MAC address is {own}; leave {mac} out", link.name);
            Err(UsageError::new(flag, address.to_string(), reason))
        }
        _ => Ok(Wanted { flag, address, mac: mac.or(own) }),
    }
}

/// Asks who has an address, until somebody answers.
fn ask(tap: &mut Tap, vm_mac: MacAddr, wanted: Wanted, interface: &str) -> Result<MacAddr, Error> {
    let Wanted { flag, address, .. } = wanted;
    let failed = |error| Error::Link(address, error);
    let mut batch = FrameBatch::new(tap.longest_received(build::PROBE_LEN));
    let mut found: Option<MacAddr> = None;
    let now = Instant::now();
    let (mut until, mut next) = (now + PATIENCE, now);
    loop {
        let now = Instant::now();
        if now >= until {
            break;
        }
        if found.is_none() && now >= next {
            let probe = build::arp_probe(vm_mac, address);
            batch.clear();
            batch.free_space()[..probe.len()].copy_from_slice(&probe);
            batch.push(probe.len());
            tap.send(&mut batch).map_err(failed)?;
            next = now + REPEAT;
        }
        let end = if found.is_none() { until.min(next) } else { until };
        wait::wait(&mut [readable(tap.as_fd())], Some(end.saturating_duration_since(now)))?;
        loop {
            batch.clear();
            let received = tap.recv(&mut batch).map_err(failed)?;
            for mac in batch.frames().filter_map(|frame| claim(frame, address)).filter(|mac| *mac != vm_mac) {
                match found {
                    None => (found, until) = (Some(mac), Instant::now() + CONTEST),
                    Some(first) if first != mac => {
                        let reason = format_args!(
                            "is claimed by two stations, {first} and {mac}; give the MAC address of the right one: \
                             {flag} {address},{first}"
                        );
                        return Err(UsageError::new(flag, address.to_string(), reason).into());
                    }
                    Some(_) => {}
                }
            }
            if received == Received::Drained {
                break;
            }
        }
    }
    found.ok_or_else(|| {
        let reason = format_args!(
            "is the address of no station that answers on {interface} within {} s; check that it is up there, or give its \
             MAC address: {flag} {address},MAC",
            PATIENCE.as_secs()
        );
        UsageError::new(flag, address.to_string(), reason).into()
    })
}

/// The station that says by ARP that it has `address`.
fn claim(frame: &[u8], address: Ipv4Addr) -> Option<MacAddr> {
    let frame = Frame::parse(frame).filter(|frame| frame.ether_type() == EtherType::Arp)?;
    let arp = Arp::parse(frame.payload())?;
    let mac = arp.sender_mac();
    (arp.sender() == address && mac == frame.source() && mac.is_unicast()).then_some(mac)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> netlink::Link {
        netlink::Link {
            name: "br0".into(),
            index: 1,
            kind: netlink::Kind::Bridge,
            master: None,
            mac: Some(HOST),
            mtu: 1500,
            up: true,
            transmits: true,
            isolated: None,
            forwards: None,
            spanning_tree: None,
        }
    }

    const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn named(address: &str, mac: Option<MacAddr>) -> Named {
        Named { address: address.parse().unwrap(), mac }
    }

    #[test]
    fn a_gateway_lies_in_the_hosts_network_or_in_its_own() {
        let own: Vec<Ipv4Net> = vec!["10.0.0.5/24".parse().unwrap(), "192.168.1.5/16".parse().unwrap()];
        let find = |address, prefix| gateway(&link(), &own, named(address, None), prefix);
        let (router, subnet) = find("192.168.1.1", None).unwrap();
        assert_eq!((router.address, router.mac), ([192, 168, 1, 1].into(), None));
        assert_eq!(subnet.to_string(), "192.168.0.0/16");
        assert_eq!(find("192.168.1.1", Some(24)).unwrap().1.to_string(), "192.168.1.0/24");
        assert_eq!(find("172.16.0.1", Some(12)).unwrap().1.to_string(), "172.16.0.0/12");
        let refused = find("172.16.0.1", None).unwrap_err().to_string();
        assert!(refused.contains("--gateway") && refused.contains("172.16.0.1/24"), "{refused}");
        for (address, prefix) in [("10.0.0.0", None), ("10.0.0.255", None), ("172.16.0.0", Some(12))] {
            let refused = find(address, prefix).unwrap_err().to_string();
            assert!(refused.contains("is no host's address"), "{refused}");
        }
    }

    #[test]
    fn the_hosts_own_address_needs_no_question() {
        let own: Vec<Ipv4Net> = vec!["10.0.0.5/24".parse().unwrap()];
        let find = |address, mac| wanted(DHCP_SERVER, &link(), &own, named(address, mac)).map(|it| it.mac);
        assert_eq!(find("10.0.0.5", None), Ok(Some(HOST)));
        assert_eq!(find("10.0.0.5", Some(HOST)), Ok(Some(HOST)));
        assert_eq!(find("10.0.0.1", None), Ok(None));
        assert_eq!(find("10.0.0.1", Some(OTHER)), Ok(Some(OTHER)));
        let refused = find("10.0.0.5", Some(OTHER)).unwrap_err().to_string();
        assert!(refused.contains("leave 02:00:00:00:00:02 out"), "{refused}");
    }

    #[test]
    fn only_a_station_that_speaks_for_itself_claims_an_address() {
        let address = Ipv4Addr::new(10, 0, 0, 1);
        let reply = softnet_wire::make::Arp::reply(OTHER, address, HOST, Ipv4Addr::UNSPECIFIED).frame();
        assert_eq!(claim(&reply, address), Some(OTHER));
        assert_eq!(claim(&reply, [10, 0, 0, 2].into()), None);
        let mut forged = reply.clone();
        forged[11] ^= 1;
        assert_eq!(claim(&forged, address), None);
        for len in 0..reply.len() {
            assert_eq!(claim(&reply[..len], address), None, "{len}");
        }
    }
}
