//! Opens the host side that the configuration names, and leaves the monitor beside it. The one place that knows all of them.

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

/// Who asks for a host side.
#[derive(Debug)]
pub struct Request<'a> {
    /// What the command line says.
    pub settings: &'a PortSettings,
    /// The VM's MAC address.
    pub vm_mac: MacAddr,
    /// Whether the VM reaches no other VM on its bridge.
    pub isolated: bool,
    /// The VM's socket, for whoever watches its far end from another process.
    pub vm: &'a VmSocket,
    /// The user that the process that parses frames will become.
    pub identity: &'a Identity,
}
