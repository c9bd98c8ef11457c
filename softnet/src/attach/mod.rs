//! Opens the host side that the configuration names, and starts the monitor. The only module that knows all
//! host sides.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use softnet_filter::MacAddr;

use crate::config::PortSettings;
use crate::privilege::Identity;
use crate::vm::VmSocket;

#[cfg(target_os = "linux")]
pub use linux::open;
#[cfg(target_os = "macos")]
pub use macos::open;

/// A request for a host side.
#[derive(Debug)]
pub struct Request<'a> {
    /// The checked command line.
    pub settings: &'a PortSettings,
    /// The VM's MAC address.
    pub vm_mac: MacAddr,
    /// Whether the VM must not reach other VMs on its bridge.
    pub isolated: bool,
    /// The VM's socket, whose far end the monitor may watch.
    pub vm: &'a VmSocket,
    /// The user that the process that parses frames will become.
    pub identity: &'a Identity,
}
