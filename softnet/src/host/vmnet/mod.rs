//! The host side of macOS: Apple's vmnet framework, which gives a VM NAT, DHCP and DNS, or a network with the
//! host only.
//!
//! Everything except the calls into the framework (`apple.rs` and `bindings.rs`) is written against the narrow
//! [`Interface`], so that it and its tests run on any system: [`VmnetLink`] carries batches of frames, [`VmnetForwards`]
//! makes port forwards follow the VM's lease, [`Waker`] turns the framework's callbacks into something to
//! poll.
//!
//! It uses only calls that macOS 13 has, not the network objects of macOS 26.

#[cfg(target_os = "macos")]
mod apple;
#[cfg(target_os = "macos")]
mod bindings;
mod follower;
mod forwards;
mod gateway;
mod link;
mod status;
mod wake;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fmt;
use std::net::Ipv4Addr;
use std::rc::Rc;

use ipnet::Ipv4Net;
use softnet_filter::MacAddr;

use super::{HostLink, Mode, Uplink};
use crate::config::expose::Expose;
use crate::host::addresses::ListedAddresses;
use crate::host::forwarder::Forward;
use crate::leases::LeaseFile;
use crate::link::ETHERNET_HEADER;
use crate::usage::UsageError;

#[cfg(target_os = "macos")]
pub use apple::open;
pub use follower::VmnetFollower;
pub use forwards::VmnetForwards;
pub use gateway::gateway_interface;
pub use link::VmnetLink;
pub use status::{Failure, Status, not_started, serves_users};
pub use wake::{Wake, Waker, pair as wake_pair};

/// A started vmnet interface. Dropping it stops it; none of its callbacks runs after that.
///
/// Implementations are given a [`Waker`] when they start. As long as frames are left they call [`Waker::wake`], one call
/// after the other, on a thread of their own, because a call returns only when everything has been read. To stop, they
/// call [`Waker::close`] first.
pub trait Interface: fmt::Debug {
    /// Fills `buffers` from the front with frames that have arrived, writes their lengths to `lengths`, and returns how
    /// many there were; 0 says that nothing is left.
    ///
    /// # Errors
    /// See [`Refusal`].
    fn read(&mut self, buffers: &mut [&mut [u8]], lengths: &mut [usize]) -> Result<usize, Refusal>;

    /// Takes `frames` from the front and returns how many, at least one.
    ///
    /// # Errors
    /// See [`Refusal`]; no frame was taken then.
    fn write(&mut self, frames: &[&[u8]]) -> Result<usize, Refusal>;

    /// Forwards a port of the host to the VM.
    ///
    /// # Errors
    /// When the framework refuses; a later call may succeed.
    fn add_forward(&mut self, forward: &Forward) -> Result<(), Refusal>;

    /// Removes the forward.
    ///
    /// # Errors
    /// When the framework refuses; a later call may succeed.
    fn remove_forward(&mut self, forward: &Forward) -> Result<(), Refusal>;
}

/// Why a call into the framework failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// Its buffers are full, or memory is short, for now.
    #[error("its buffers are exhausted")]
    Exhausted,
    /// It rejects a frame or an argument.
    #[error("it refused the argument ({0})")]
    Argument(String),
    /// The interface has failed.
    #[error("{0}")]
    Broken(String),
}

/// The parameters that a started interface reports, checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Parameters {
    /// The host's address on the VM's network.
    pub gateway: Ipv4Addr,
    /// The VM's network.
    pub subnet: Ipv4Net,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Largest frame in bytes that a read may give.
    pub max_frame: usize,
    /// Most frames in one read.
    pub max_read: usize,
    /// Most frames in one write.
    pub max_write: usize,
}

/// A missing or invalid parameter.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParameterError {
    /// The framework did not report it.
    #[error("vmnet did not report the interface's {0}")]
    Missing(&'static str),
    /// The framework reported an invalid value.
    #[error("vmnet reported the invalid {name} {value:?} for the interface")]
    Senseless {
        /// Which parameter.
        name: &'static str,
        /// The value.
        value: String,
    },
}

/// The same as the framework reports it: text and wide numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RawParameters {
    /// First address of the DHCP range, which the host has itself.
    pub start_address: Option<String>,
    /// Mask of the subnet.
    pub subnet_mask: Option<String>,
    /// Largest IP packet in bytes.
    pub mtu: Option<u64>,
    /// Largest frame in bytes.
    pub max_packet_size: Option<u64>,
    /// Most frames in one read; macOS 13 and 14 do not report it.
    pub read_max_packets: Option<u64>,
    /// Most frames in one write; macOS 13 and 14 do not report it.
    pub write_max_packets: Option<u64>,
}

/// Frames in one read where vmnet does not report how many it gives at most: as many as socket_vmnet has read at once
/// since macOS 10.15. For writes there is no such precedent.
const UNREPORTED_MAX_READ: usize = 32;

impl TryFrom<RawParameters> for Parameters {
    type Error = ParameterError;

    fn try_from(raw: RawParameters) -> Result<Self, ParameterError> {
        let gateway: Ipv4Addr = address("start address", raw.start_address)?;
        let mask: Ipv4Addr = address("subnet mask", raw.subnet_mask)?;
        let subnet = Ipv4Net::with_netmask(gateway, mask)
            .map_err(|_| ParameterError::Senseless { name: "subnet mask", value: mask.to_string() })?;
        let max_frame = length("maximum packet size", raw.max_packet_size)?;
        let mtu = length("MTU", raw.mtu)?.min(max_frame.saturating_sub(ETHERNET_HEADER));
        // The limit of a frame's length field; more would be a super-frame, which was not requested.
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
        let batch = |packets: Option<u64>, unreported: usize| {
            packets.map_or(unreported, |packets| packets.clamp(1, 1 << 16) as usize)
        };
        Ok(Parameters {
            gateway,
            subnet,
            mtu,
            max_frame,
            max_read: batch(raw.read_max_packets, UNREPORTED_MAX_READ),
            max_write: batch(raw.write_max_packets, 1),
        })
    }
}

fn address(name: &'static str, value: Option<String>) -> Result<Ipv4Addr, ParameterError> {
    let value = value.ok_or(ParameterError::Missing(name))?;
    value.parse().map_err(|_| ParameterError::Senseless { name, value })
}

fn length(name: &'static str, value: Option<u64>) -> Result<usize, ParameterError> {
    let value = value.ok_or(ParameterError::Missing(name))?;
    let sane = usize::try_from(value).ok().filter(|value| (576..=1 << 17).contains(value));
    sane.ok_or_else(|| ParameterError::Senseless { name, value: value.to_string() })
}

/// Checks that vmnet can make the forwards: it cannot bind them to one address of the host.
///
/// # Errors
/// The first forward that it cannot make.
pub fn check_exposes(exposes: &[Expose]) -> Result<(), UsageError> {
    let bound = exposes.iter().find(|expose| expose.address.is_some_and(|address| !address.is_unspecified()));
    match bound {
        None => Ok(()),
        Some(expose) => {
            let reason = format!(
                "names an address of the host, which macOS's vmnet does not support; write {}:{}/{}",
                expose.external, expose.internal, expose.protocol
            );
            Err(UsageError::new("--expose", expose.to_string(), reason))
        }
    }
}

/// A host side over a started `interface`, whose wake-ups come by `wake`. `gateway` is the gateway's interface name and
/// MAC address, and `addresses` are those of the host. `files_by_mac` says whether bootpd files leases by MAC address.
pub fn host_link<I: Interface + 'static>(
    interface: I,
    parameters: Parameters,
    wake: Wake,
    (name, mac): (String, [u8; 6]),
    exposes: Vec<Expose>,
    addresses: ListedAddresses,
    files_by_mac: bool,
) -> HostLink {
    // Forwards are removed before the interface stops; it stops when the last of the two is dropped.
    let interface = Rc::new(RefCell::new(interface));
    HostLink {
        uplink: Uplink {
            dhcp_server: None,
            mac: MacAddr(mac),
            address: parameters.gateway,
            subnet: parameters.subnet,
            mtu: parameters.mtu,
            interface: name,
        },
        link: Box::new(VmnetLink::new(Rc::clone(&interface), wake, parameters)),
        mode: Mode::Vmnet,
        files_by_mac,
        leases: Some(LeaseFile::bootpd()),
        host_addresses: addresses.known().to_vec(),
        follower: Box::new(VmnetFollower::new(VmnetForwards::new(interface, exposes), addresses)),
        exposed: Vec::new(),
        control: None,
    }
}
