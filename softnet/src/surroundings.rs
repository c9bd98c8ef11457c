//! Passes to the filter what it has to know of the host: its addresses (rule H1), the ports that lead to
//! other VMs (rule H2), and the VM's ports that the host publishes (rule P4).

use std::net::Ipv4Addr;

use softnet_filter::{ExposedPort, Port, PublishedPort, Timestamp};

use crate::config::expose::{Expose, Exposed};
use crate::lease_follower::Error;

/// All addresses of the host but the gateway's.
///
/// # Errors
/// When the filter cannot hold them: it must not run without them.
pub fn set_host_addresses(port: &mut Port, addresses: &[Ipv4Addr], now: Timestamp) -> Result<(), Error> {
    tracing::debug!(?addresses, "the host's addresses");
    port.set_host_addresses(addresses, now)
        .map_err(|error| Error(format!("the filter cannot hold the host's addresses: {error}")))
}

/// All ports of the host that lead to other VMs.
pub fn set_exposed(port: &mut Port, ports: &[Exposed], now: Timestamp) {
    tracing::debug!(
        ports = ports.iter().map(|port| format!("{port} ")).collect::<String>(),
        "the exposed ports of other VMs"
    );
    port.set_exposed(ports.iter().copied().map(for_the_filter).collect(), now);
}

/// The VM's own ports to which ports of the host lead (rule P4).
pub fn published(exposes: &[Expose]) -> Vec<PublishedPort> {
    let published =
        |expose: &Expose| PublishedPort { protocol: expose.protocol.number(), port: expose.internal.get() };
    exposes.iter().map(published).collect()
}

fn for_the_filter(exposed: Exposed) -> ExposedPort {
    let Exposed { address, protocol, port } = exposed;
    ExposedPort { protocol: protocol.number(), port: port.get(), address }
}
