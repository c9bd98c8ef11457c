//! The host side of a system that has one.

use softnet_filter::NetType;

use super::client::ClientSettings;
use super::servers::Servers;
use super::{HostSide, NetworkName};
use crate::cli::HostArgs;
use crate::usage::UsageError;

/// The host side.
///
/// # Errors
/// None.
pub fn host_side(_args: &HostArgs, _exposes: bool, net_type: NetType) -> Result<HostSide, UsageError> {
    Ok(HostSide::Managed { network: NetworkName::default_for(net_type), explicit: false, subnet: None })
}

/// Softnet does not manage the host's connection table there.
///
/// # Errors
/// None.
pub fn connections(_args: &HostArgs) -> Result<u32, UsageError> {
    Ok(0)
}

/// The system's own server gives all VMs the same.
///
/// # Errors
/// None.
pub fn client(_args: &HostArgs, _net_type: NetType) -> Result<ClientSettings, UsageError> {
    Ok(ClientSettings::default())
}

/// The system's own network has one router, which is its DHCP server.
///
/// # Errors
/// None.
pub fn servers(_args: &HostArgs) -> Result<Servers, UsageError> {
    Ok(Servers::default())
}
