//! What the filter is told of the host around it: its addresses (rule H1) and the ports that lead to other VMs (rule H2).

use std::net::Ipv4Addr;

use softnet_filter::Port;

use crate::host::expose::Exposed;
use crate::relay::RelayError;

/// All addresses of the host but the gateway's.
///
/// # Errors
/// When the filter cannot hold them: it must not go on without.
pub fn set_host_addresses(_port: &mut Port, addresses: &[Ipv4Addr]) -> Result<(), RelayError> {
    tracing::debug!(?addresses, "the host's addresses");
    Ok(())
}

/// All ports of the host that lead to other VMs.
pub fn set_exposed(_port: &mut Port, ports: &[Exposed]) {
    tracing::debug!(
        ports = ports.iter().map(|port| format!("{port} ")).collect::<String>(),
        "the exposed ports of other VMs"
    );
}
