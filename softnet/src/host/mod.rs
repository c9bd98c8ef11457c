//! The host's side: where the VM's frames go.

pub mod addresses;
#[cfg(target_os = "linux")]
pub mod bridge;
#[cfg(target_os = "linux")]
pub mod files;
pub mod forwarder;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(target_os = "linux")]
pub mod passt;
#[cfg(target_os = "linux")]
pub mod port_state;
#[cfg(target_os = "linux")]
pub mod reservation;
#[cfg(target_os = "linux")]
pub mod stations;
#[cfg(target_os = "linux")]
pub mod sysctl;
#[cfg(target_os = "linux")]
pub mod tap;
#[cfg(target_os = "linux")]
pub mod tools;
pub mod vmnet;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use softnet_filter::{MacAddr, Station};

use crate::config::expose::Exposed;
use crate::control::Connection;
use crate::lease_follower::LeaseFollower;
use crate::leases::LeaseFile;
use crate::link::Link;

/// What kind of host side it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// An existing TAP.
    Tap,
    /// A new TAP in an existing bridge.
    Bridge,
    /// The managed network.
    Network,
    /// passt.
    Passt,
    /// macOS's vmnet.
    Vmnet,
}

impl Mode {
    /// The word that users see.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Tap => "tap",
            Mode::Bridge => "bridge",
            Mode::Network => "network",
            Mode::Passt => "passt",
            Mode::Vmnet => "vmnet",
        }
    }
}

/// The far end of the VM's network segment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Uplink {
    /// MAC address of the gateway.
    pub mac: MacAddr,
    /// Address of the gateway.
    pub address: Ipv4Addr,
    /// The DHCP server, if it is not the gateway.
    pub dhcp_server: Option<Station>,
    /// Subnet of the VM and the gateway.
    pub subnet: Ipv4Net,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// The interface that carries the frames.
    pub interface: String,
}

/// An open host side.
#[derive(Debug)]
pub struct HostLink {
    /// Carries the frames.
    pub link: Box<dyn Link>,
    /// What is at its far end.
    pub uplink: Uplink,
    /// What it is.
    pub mode: Mode,
    /// What follows the VM's lease.
    pub follower: Box<dyn LeaseFollower>,
    /// Whether the DHCP server files leases by MAC address, whatever client identifiers say (rule C5).
    pub files_by_mac: bool,
    /// The DHCP server's lease file, if this process may read it.
    pub leases: Option<LeaseFile>,
    /// The addresses of the host except the gateway's, as far as known. The follower reports changes.
    pub host_addresses: Vec<Ipv4Addr>,
    /// The ports of the host that lead to other VMs. The follower reports changes.
    pub exposed: Vec<Exposed>,
    /// Where the VM's control socket leads to, if it has one.
    pub control: Option<Connection>,
}
