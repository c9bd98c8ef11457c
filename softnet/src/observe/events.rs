//! Writes the port's events to the log.

use softnet_filter::PortEvent;

/// Logs an event of the port.
pub fn log_event(event: &PortEvent) {
    match event {
        PortEvent::Bound(lease) => tracing::info!(address = %lease.address, "the VM has a lease"),
        PortEvent::Renewed(lease) => tracing::debug!(address = %lease.address, "the VM renewed its lease"),
        PortEvent::Unbound { lease, cause } => {
            tracing::info!(address = %lease.address, ?cause, "the VM lost its lease");
        }
        PortEvent::ClientIdChanged { used } => {
            tracing::warn!(used, "the VM changed its DHCP client identifier");
        }
        PortEvent::OtherDhcpServer { mac, address } => {
            tracing::warn!(
                %address,
                %mac,
                "a DHCP server answers the VM that is not this network's, as far as Softnet knows, so its replies are dropped; \
                 if it is, start Softnet with --bridge or --tap and --dhcp-server {address}, or with --gateway {address} if it is \
                 the router too"
            );
        }
        PortEvent::ForeignClientId { named } => {
            let named = named.map(|mac| mac.to_string()).unwrap_or_default();
            tracing::warn!(
                named,
                "the VM's DHCP client identifier names a hardware address that is not the VM's, so its DHCP is \
                 dropped; a cloned image keeps that of its template: delete the identifier in the guest (the machine \
                 ID, or the DHCP client's DUID file), give the VM the template's MAC address, or use the managed \
                 network, whose server looks at MAC addresses only"
            );
        }
    }
}
