//! The managed network: a bridge with NAT, DHCP and DNS that the first Softnet creates and all later ones
//! join.
//!
//! It is the counterpart of vmnet on macOS. The kernel and dnsmasq do the work; Softnet only sets them up: a
//! bridge with its own MAC and address ([`build`]), nftables rules ([`ruleset`]), one dnsmasq ([`dnsmasq`]),
//! the kernel's switches ([`super::sysctl`]) and a directory with locks ([`run_dir`]). Each start checks all of them
//! and repairs what is missing or different, and while VMs run the network's [`keeper`] does the same when
//! something breaks. For an intact network this takes a few milliseconds.
//!
//! A running Softnet is a [`Membership`]: it holds locks that end with its process, so that the next start
//! recognises and removes what a killed one left. The network itself stays until `softnet network down`.

pub mod build;
mod claim;
mod dispute;
pub mod dnsmasq;
pub mod exposed;
mod firewall;
mod generation;
pub mod keeper;
mod lock;
mod member;
mod pool;
mod record;
mod rules;
mod ruleset;
mod run_dir;
mod service;
mod status;
pub mod subnet;

use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use softnet_filter::{MacAddr, NetType};

use super::{bridge, files, tools};
use crate::config::NetworkName;
use crate::netlink;

pub use build::{Down, Forwarding, down, ensure, names};
pub use member::{Member, Membership};
pub use rules::rules_are_current;
pub use ruleset::install_for_tap;
pub use status::{Status, status};

/// MTU of the bridge and so of every VM on it, in bytes: that of Ethernet.
pub const MTU: u32 = 1500;

/// The default lease time. Short, so that the pool is not exhausted by VMs that end without releasing their
/// leases.
pub const DEFAULT_LEASE_TIME: Duration = Duration::from_secs(600);

/// What a start requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkConfig {
    /// Which network.
    pub name: NetworkName,
    /// Its subnet; `None` uses that of the existing network, or a free one for a new network.
    pub subnet: Option<Ipv4Net>,
    /// Whether its VMs reach the internet.
    pub net_type: NetType,
    /// How long a lease lasts. The latest start sets it for all VMs.
    pub lease_time: Duration,
    /// Whether its server has to serve TFTP. Once it does, it does until the network is removed.
    pub tftp: bool,
    /// Whether the host has to find VMs by their names. Once it does, it does until the network is removed.
    pub names: bool,
}

/// The settings of a network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// Its name and its bridge's.
    pub name: NetworkName,
    /// Its subnet, without host bits.
    pub subnet: Ipv4Net,
    /// Whether its VMs reach the internet.
    pub net_type: NetType,
    /// How long a lease lasts.
    pub lease_time: Duration,
    /// Whether its server serves TFTP, to the VMs that have a directory for it.
    pub tftp: bool,
    /// Whether the host finds VMs by their names.
    pub names: bool,
}

impl Plan {
    /// The gateway's address with the subnet's prefix length.
    pub fn gateway(&self) -> Ipv4Net {
        subnet::gateway(self.subnet)
    }

    /// The bridge's MAC address.
    pub fn mac(&self) -> MacAddr {
        bridge_mac(&self.name)
    }
}

/// The MAC address of the bridge of this name: the same on every boot, so that guests that know networks by their gateway's
/// MAC know this one again. Locally administered; "SN", then a hash (FNV-1a) of the name.
fn bridge_mac(name: &NetworkName) -> MacAddr {
    let hash = name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, ..] = hash.to_be_bytes();
    MacAddr([0x0a, b'S', b'N', a, b, c])
}

/// Why the managed network cannot be set up. Messages are complete; callers add no context.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An interface with this name exists and is not Softnet's.
    #[error(
        "interface {0} exists and was not created by Softnet; use --bridge {0} if it is a bridge, or choose another name \
         with --network"
    )]
    Foreign(NetworkName),
    /// The subnet cannot be used.
    #[error("network {name}: {source}")]
    Subnet {
        /// The network.
        name: NetworkName,
        /// Why.
        source: subnet::Error,
    },
    /// The network has another subnet than the one asked for.
    #[error(
        "network {name} has the subnet {present}, not {wanted}; leave out --subnet, choose another --network, or remove \
         the network with `softnet network down --network {name}`"
    )]
    SubnetDiffers {
        /// The network.
        name: NetworkName,
        /// What it has.
        present: Ipv4Net,
        /// What was asked for.
        wanted: Ipv4Net,
    },
    /// NAT and host-only VMs do not share a network.
    #[error(
        "network {name} was created for --vm-net-type {present}; choose another --network, or remove it with \
         `softnet network down --network {name}`"
    )]
    TypeDiffers {
        /// The network.
        name: NetworkName,
        /// `nat` or `host`.
        present: &'static str,
    },
    /// Another VM with this MAC runs.
    #[error(
        "network {name} already has a VM with the MAC address {mac}{}; give each VM its own MAC address",
        match pid { Some(pid) => format!(" (process {pid})"), None => String::new() }
    )]
    MacTaken {
        /// The network.
        name: NetworkName,
        /// The MAC.
        mac: MacAddr,
        /// The Softnet that has it.
        pid: Option<u32>,
    },
    /// The VM has the gateway's MAC.
    #[error("the VM's MAC address {0} is the gateway's; give the VM another")]
    MacIsGateway(MacAddr),
    /// Another VM holds the address that was leased to this one.
    #[error(
        "{address} is already held by the VM {holder}, so this VM must not use it; `softnet network status` shows both"
    )]
    LeaseTaken {
        /// The address.
        address: Ipv4Addr,
        /// The VM that has it.
        holder: String,
    },
    /// The fixed address is not one that the network hands out.
    #[error(
        "network {name} does not give {address} to a VM; choose an address from {} to {}",
        subnet::pool(*.subnet).0,
        subnet::pool(*.subnet).1
    )]
    AddressOutside {
        /// The address.
        address: Ipv4Addr,
        /// The network.
        name: NetworkName,
        /// Its subnet.
        subnet: Ipv4Net,
    },
    /// A resolver of the VM is no host.
    #[error(
        "network {name} has the subnet {subnet}, in which no host has the address {address}; give that of a resolver which the VM can reach"
    )]
    NoResolver {
        /// The address.
        address: Ipv4Addr,
        /// The network.
        name: NetworkName,
        /// Its subnet.
        subnet: Ipv4Net,
    },
    /// A running VM has the fixed address.
    #[error(
        "the VM {holder} has {address}; choose another address, or stop that VM (`softnet network status` shows it)"
    )]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// The VM that has it.
        holder: String,
    },
    /// The server has leased the fixed address to another VM.
    #[error(
        "the DHCP server has leased {address} to {mac}{}; choose another address, or wait until that lease ends",
        match left { Some(left) => format!(" for another {} s", left.as_secs()), None => String::new() }
    )]
    AddressLeased {
        /// The address.
        address: Ipv4Addr,
        /// The VM that has it.
        mac: MacAddr,
        /// How much is left of the lease; `None` if it never ends.
        left: Option<Duration>,
    },
    /// The Softnet of a VM that holds another VM's address could not be signalled.
    #[error("cannot signal process {pid}, whose VM holds {address}: {source}")]
    Evict {
        /// The address.
        address: Ipv4Addr,
        /// The process.
        pid: u32,
        /// Why.
        source: std::io::Error,
    },
    /// The address is outside the DHCP range.
    #[error("{0} is outside the DHCP range of network {1}")]
    NotOurs(Ipv4Addr, NetworkName),
    /// The server's file does not have the address for this VM.
    #[error("the DHCP server has not leased {address} to {mac}, so this VM must not use it")]
    NotLeased {
        /// The VM.
        mac: MacAddr,
        /// The address.
        address: Ipv4Addr,
    },
    /// The network was removed while the VM was running.
    #[error("network {0} was taken down; stop the VM and start it again")]
    Gone(NetworkName),
    /// VMs are attached.
    #[error(
        "network {name} has {count} running VM(s); stop them first, or use `softnet network down --network {name} --force`"
    )]
    InUse {
        /// The network.
        name: NetworkName,
        /// How many.
        count: usize,
    },
    /// A bridge or TAP.
    #[error(transparent)]
    Bridge(#[from] bridge::Error),
    /// The kernel's interfaces.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The tracked connections of an address could not be deleted.
    #[error("cannot delete the tracked connections of an address that changes hands: {0}")]
    Conntrack(std::io::Error),
    /// The way of packets through the host's filters could not be followed.
    #[error("cannot follow packets through the host's filters: {0}")]
    Look(std::io::Error),
    /// nft.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// dnsmasq.
    #[error(transparent)]
    Dnsmasq(#[from] dnsmasq::Error),
    /// The keeper reported an error.
    #[error("{0}")]
    Keeper(String),
    /// The run directory, or the kernel's switches.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// A switch of the kernel's that the network needs.
    #[error(transparent)]
    Switch(#[from] crate::host::sysctl::SwitchError),
}

/// The name of a network's type on the command line and in files.
pub(crate) fn type_name(net_type: NetType) -> &'static str {
    match net_type {
        NetType::Nat => "nat",
        NetType::Host => "host",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network as most are.
    pub fn plan(net_type: NetType) -> Plan {
        Plan {
            name: "softnet0".parse().unwrap(),
            subnet: "192.168.64.0/24".parse().unwrap(),
            net_type,
            lease_time: DEFAULT_LEASE_TIME,
            tftp: false,
            names: false,
        }
    }

    #[test]
    fn a_networks_mac_is_its_own_and_stays() {
        let first = plan(NetType::Nat);
        let other = Plan { name: "softnet1".parse().unwrap(), ..first.clone() };
        assert!(first.mac().is_unicast());
        assert_eq!(first.mac(), Plan { subnet: "10.0.0.0/24".parse().unwrap(), ..first.clone() }.mac());
        assert_ne!(first.mac(), other.mac());
    }
}
