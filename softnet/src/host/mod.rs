//! The host's side: where the VM's frames go.

#[cfg(target_os = "linux")]
pub mod bridge;
pub mod expose;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(target_os = "linux")]
pub mod tap;
#[cfg(target_os = "linux")]
pub mod tools;

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::config::{ConfigError, HostSide, PortSettings};
use crate::link::Link;
use crate::relay::{LeaseFollower, NoFollower};

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
    pub mac: [u8; 6],
    /// Address of the gateway.
    pub address: Ipv4Addr,
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
}

/// Opens the host side that `settings` ask for.
///
/// # Errors
/// A [`ConfigError`] for an interface that cannot serve; anything else with its context.
#[cfg(target_os = "linux")]
pub fn open(settings: &PortSettings, _isolated: bool) -> anyhow::Result<HostLink> {
    match &settings.host {
        HostSide::Tap(name) => open_tap(name),
        HostSide::Bridge(_) | HostSide::Managed { .. } => {
            Err(ConfigError::flag("--tap", "is missing; this build knows no other host side").into())
        }
    }
}

#[cfg(target_os = "linux")]
fn open_tap(name: &str) -> anyhow::Result<HostLink> {
    use crate::netlink::{Kind, Netlink};

    let unusable = |error: &dyn std::fmt::Display| ConfigError::new("--tap", name, error);
    let mut netlink = Netlink::open()?;
    let gateway = bridge::gateway_of_tap(&mut netlink, name).map_err(|error| unusable(&error))?;
    let multi_queue = match netlink.link(name)?.map(|link| link.kind) {
        Some(Kind::Tun(tun)) => tun.multi_queue,
        _ => false,
    };
    let tap = tap::Tap::attach(name, multi_queue).map_err(|error| unusable(&error))?;
    Ok(HostLink {
        uplink: Uplink {
            mac: gateway.mac.octets(),
            address: gateway.address,
            subnet: gateway.subnet(),
            mtu: u16::try_from(gateway.mtu).unwrap_or(u16::MAX),
            interface: tap.name().to_owned(),
        },
        link: Box::new(tap),
        mode: Mode::Tap,
        follower: Box::new(NoFollower),
    })
}
