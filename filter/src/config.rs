//! What a port is made from, and the errors of that.

use core::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::policy::Policy;
use softnet_wire::MacAddr;

/// The value of `--vm-net-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetType {
    /// The VM reaches the world through the host.
    #[default]
    Nat,
    /// The VM reaches no global destination, whatever the policy allows; only the gateway, and what else the policy
    /// allows (rule D9).
    Host,
}

/// A station whose addresses are known before the first frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
}

/// The router of the VM's network: the host, or another station. It is the DHCP server too, unless
/// [`PortConfig::dhcp_server`] names another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gateway {
    /// Its MAC address.
    pub mac: MacAddr,
    /// Its IPv4 address.
    pub address: Ipv4Addr,
    /// The network that it shares with the VM; bits after the prefix do not matter.
    pub subnet: Ipv4Net,
}

/// Everything that a port needs to know before the first frame.
#[derive(Debug, Clone)]
pub struct PortConfig {
    /// The VM's MAC address (rule L1).
    pub vm_mac: MacAddr,
    /// The router of the VM's network.
    pub gateway: Gateway,
    /// The DHCP server, if it is not the gateway (rules B1, C1 and C8).
    pub dhcp_server: Option<Station>,
    /// Whether global destinations are open.
    pub net_type: NetType,
    /// The rules of `--allow` and `--block`.
    pub policy: Policy,
    /// The largest IP packet, in bytes, that the VM's link carries (rule L3).
    pub mtu: u16,
    /// Whether the DHCP server stores leases by MAC address alone and ignores client identifiers. Then an identifier
    /// with another VM's hardware address takes nothing from that VM (rule C5).
    pub server_files_by_mac: bool,
    /// The host's addresses besides the gateway's (rule H1); more can be given later by
    /// [`Port::set_host_addresses`](crate::Port::set_host_addresses).
    pub host_addresses: Vec<Ipv4Addr>,
    /// What the VM hears of a packet that the policy refuses.
    pub on_block: OnBlock,
    /// The ports of the VM that the host publishes (rule P4).
    pub published: Vec<PublishedPort>,
    /// A random number. With it a VM that chooses its ports cannot make the search for flows slow (rule F4).
    pub seed: u64,
}

/// The value of `--on-block`: what the VM hears of a packet that the policy refuses (rule J1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnBlock {
    /// An answer, so that its program fails at once.
    #[default]
    Reject,
    /// Nothing, so that its program waits until it gives up.
    Drop,
}

/// A port of the VM to which a port of the host leads (`--expose` of this VM).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedPort {
    /// The number of the protocol: 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// The VM's port.
    pub port: u16,
}

/// Why a policy does not take the place of the one before; nothing has changed then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// The host would have to isolate the VM from others on its bridge, or to stop that (rule P6).
    #[error(
        "the policy changes whether the VM is isolated from others on its bridge, which is decided when the VM starts: \
         only allowing 0.0.0.0/0 and blocking no 0.0.0.0/0 ends it"
    )]
    Isolation,
    /// The entries do not fit into the tables.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Why a [`PortConfig`] is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The VM's MAC address is a group or zero (rule L1).
    #[error(
        "the VM's MAC address {0} is not the address of one station: use a unicast address such as 02:00:00:00:00:01"
    )]
    VmMac(MacAddr),
    /// The gateway's MAC address is a group or zero.
    #[error("the gateway's MAC address {0} is not the address of one station")]
    GatewayMac(MacAddr),
    /// The VM and the gateway have the same MAC address.
    #[error("the VM and the gateway have the same MAC address {0}")]
    SameMac(MacAddr),
    /// The DHCP server's MAC address is a group, zero or the VM's.
    #[error("the DHCP server's MAC address {0} is not the address of another station than the VM")]
    DhcpServerMac(MacAddr),
    /// The DHCP server's address is not a host address of the VM's network.
    #[error("the DHCP server's address {address} is not a host address of the VM's network {subnet}")]
    DhcpServerAddress {
        /// The DHCP server.
        address: Ipv4Addr,
        /// The VM's network.
        subnet: Ipv4Net,
    },
    /// The network has no room for a VM beside the gateway.
    #[error("the network {0} has no room for a gateway and a VM: use a prefix of at most 30 bits")]
    SubnetTooSmall(Ipv4Net),
    /// The gateway's address is not a host address of its network.
    #[error("the gateway's address {address} is not a host address of its network {subnet}")]
    GatewayAddress {
        /// The gateway.
        address: Ipv4Addr,
        /// Its network.
        subnet: Ipv4Net,
    },
    /// The MTU is below the 576 bytes that every IPv4 host must accept (RFC 791).
    #[error("the MTU {0} is too small: IPv4 needs at least 576 bytes")]
    Mtu(u16),
    /// The rules do not fit into the table; some 30,000 always do.
    #[error("there are too many rules for destinations: join neighbouring networks into larger ones")]
    TooManyRules,
}
