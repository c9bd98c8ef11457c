//! Bridges and their TAP ports: finds the gateway of a port, and makes a new TAP a port.
//!
//! The filter trusts one address and one MAC as "the gateway" (rules L5, D4, B1). In the TAP modes both
//! belong to the bridge that the TAP is a port of, or to the TAP itself if the host routes it without a
//! bridge. They are read once, at start, so this module also ensures that a bridge keeps its MAC when ports
//! join or leave later.
//!
//! [`super::tap`] attaches to a TAP (`TUNSETIFF`); this module works on names and indices only.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use softnet_filter::MacAddr;

use super::sysctl;
use crate::netlink::{self, Kind, Link, Netlink};

/// The host's end of the VM's segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gateway {
    /// The interface that holds the address: a bridge, or a routed TAP.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its primary IPv4 address.
    pub address: Ipv4Addr,
    /// Length of the subnet's prefix, in bits.
    pub prefix: u8,
    /// Largest IP packet on the segment, in bytes.
    pub mtu: u32,
}

impl Gateway {
    /// The subnet, without host bits.
    pub fn subnet(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.address, self.prefix).trunc()
    }
}

/// Why a bridge or a TAP cannot be used. The caller adds the flag and its value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such interface.
    #[error("there is no interface {0} (`ip link show` lists them)")]
    Missing(String),
    /// The interface is something else.
    #[error("{0} is not a bridge (`ip link show type bridge` lists them)")]
    NotBridge(String),
    /// The interface is something else.
    #[error("{0} is not a TAP (`ip tuntap show` lists them; `ip tuntap add dev NAME mode tap` creates one)")]
    NotTap(String),
    /// A TUN device carries no Ethernet frames.
    #[error(
        "{0} is a TUN, which carries no Ethernet frames; create a TAP with `ip tuntap add dev NAME mode tap`"
    )]
    Tun(String),
    /// The TAP is a port of something other than a bridge.
    #[error(
        "{tap} is a port of {master}, which is not a bridge; attach it to a bridge with `ip link set {tap} master BRIDGE`"
    )]
    ForeignMaster {
        /// The TAP.
        tap: String,
        /// What it is a port of.
        master: String,
    },
    /// The bridge has no IPv4 address, so there is no gateway.
    #[error(
        "{0} has no IPv4 address, so the VM would have no gateway; add one with `ip address add ADDRESS/PREFIX dev {0}`"
    )]
    NoAddress(String),
    /// The TAP is neither a port nor routed.
    #[error(
        "{0} is not a port of a bridge and has no IPv4 address; attach it to a bridge with `ip link set {0} master BRIDGE`, \
         or give it an address with `ip address add ADDRESS/PREFIX dev {0}`"
    )]
    Unattached(String),
    /// The subnet has no room for a VM besides the gateway.
    #[error(
        "{name} has the address {address}, whose subnet has no room for a VM; use a prefix length of at most 30"
    )]
    NoRoom {
        /// The interface.
        name: String,
        /// Its address and prefix.
        address: Ipv4Net,
    },
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
}

/// The existing bridge `name`.
pub fn find(netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
    let link = netlink.link(name)?.ok_or_else(|| Error::Missing(name.to_owned()))?;
    match link.kind {
        Kind::Bridge => Ok(link),
        _ => Err(Error::NotBridge(name.to_owned())),
    }
}

/// The host's end of the segment of the existing TAP `name`: its bridge, or the TAP itself. Its MTU is the segment's.
pub fn end_of_tap(netlink: &mut Netlink, name: &str) -> Result<Link, Error> {
    let tap = netlink.link(name)?.ok_or_else(|| Error::Missing(name.to_owned()))?;
    match tap.kind {
        Kind::Tun(tun) if tun.tap => {}
        Kind::Tun(_) => return Err(Error::Tun(tap.name)),
        _ => return Err(Error::NotTap(tap.name)),
    }
    let Some(master) = tap.master else { return Ok(tap) };
    let master = netlink.link_at(master)?.ok_or_else(|| Error::Unattached(tap.name.clone()))?;
    match master.kind {
        // Neither carries a longer packet than it says.
        Kind::Bridge => Ok(Link { mtu: master.mtu.min(tap.mtu), ..master }),
        _ => Err(Error::ForeignMaster { tap: tap.name, master: master.name }),
    }
}

/// The gateway with `link`'s first IPv4 address and its MAC.
pub fn gateway(netlink: &mut Netlink, link: &Link) -> Result<Gateway, Error> {
    let addresses = netlink.addresses(link.index)?;
    let (Some(address), Some(mac)) = (addresses.first(), link.mac) else {
        let name = link.name.clone();
        return Err(if link.kind == Kind::Bridge { Error::NoAddress(name) } else { Error::Unattached(name) });
    };
    if address.prefix_len() > 30 {
        return Err(Error::NoRoom { name: link.name.clone(), address: *address });
    }
    Ok(Gateway {
        name: link.name.clone(),
        index: link.index,
        mac,
        address: address.addr(),
        prefix: address.prefix_len(),
        mtu: link.mtu,
    })
}

/// Gives `bridge` the MAC that it has, for good: one without an explicit MAC takes the lowest of its ports', and the filter
/// would trust a stale one. The kernel forgets the neighbours that it knows on the bridge.
pub fn pin(netlink: &mut Netlink, bridge: &Link) -> Result<(), Error> {
    if let Some(mac) = bridge.mac {
        netlink.set_mac(bridge.index, mac)?;
    }
    Ok(())
}

/// Makes the TAP `tap` a port of `bridge`, up, and returns what the bridge is then. `isolated` ports reach the host but not each other.
///
/// The bridge's MAC is an explicit one, or was pinned before. The order matters: the port is isolated before it is up.
pub fn join(
    netlink: &mut Netlink,
    tap: &str,
    bridge: &Link,
    vm_mac: MacAddr,
    isolated: bool,
) -> Result<Link, Error> {
    let port = netlink.link(tap)?.ok_or_else(|| Error::Missing(tap.to_owned()))?;
    sysctl::silence_ipv6(&port.name);
    netlink.set_mac(port.index, port_mac(vm_mac))?;
    netlink.set_mtu(port.index, bridge.mtu)?;
    if port.up {
        // A new port of a bridge is not isolated, and carries frames at once if it is up.
        netlink.set_down(port.index)?;
    }
    netlink.enslave(port.index, bridge.index)?;
    netlink.set_isolated(port.index, isolated)?;
    netlink.set_up(port.index)?;
    netlink.link_at(bridge.index)?.ok_or_else(|| Error::Missing(bridge.name.clone()))
}

/// The MAC of the host's end of the TAP: the VM's with the first octet fe, the highest locally administered
/// one, so that no bridge prefers it for its own; never the VM's MAC itself, which the bridge would then
/// treat as its own.
fn port_mac(vm_mac: MacAddr) -> MacAddr {
    let [first, b, c, d, e, f] = vm_mac.octets();
    let last = if first == 0xfe { f ^ 1 } else { f };
    MacAddr([0xfe, b, c, d, e, last])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_never_has_the_vms_own_address() {
        assert_eq!(port_mac(MacAddr([0x52, 0x54, 0, 1, 2, 3])), MacAddr([0xfe, 0x54, 0, 1, 2, 3]));
        assert_eq!(port_mac(MacAddr([0xfe, 0x54, 0, 1, 2, 3])), MacAddr([0xfe, 0x54, 0, 1, 2, 2]));
    }

    #[test]
    fn a_gateways_subnet_has_no_host_bits() {
        let gateway = Gateway {
            name: "br0".into(),
            index: 1,
            mac: MacAddr([2; 6]),
            address: Ipv4Addr::new(10, 1, 2, 3),
            prefix: 22,
            mtu: 1500,
        };
        assert_eq!(gateway.subnet().to_string(), "10.1.0.0/22");
    }
}
