//! Finds the gateway: vmnet reports its IP address but not its MAC address, which the filter has to know
//! (rules L5, B1). It is the MAC of the host's interface with this address, the bridge that vmnet creates.

use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;

/// The name and the MAC address of this host's interface with the address `address`.
///
/// # Errors
/// When the system does not list its interfaces.
pub fn gateway_interface(address: Ipv4Addr) -> std::io::Result<Option<(String, [u8; 6])>> {
    let mut name = None;
    for interface in getifaddrs()? {
        let own = interface.address.as_ref().and_then(|address| address.as_sockaddr_in());
        if own.is_some_and(|own| own.ip() == address) {
            name = Some(interface.interface_name);
        }
    }
    let Some(name) = name else { return Ok(None) };
    for interface in getifaddrs()?.filter(|interface| interface.interface_name == name) {
        let link = interface.address.as_ref().and_then(|address| address.as_link_addr());
        if let Some(mac) = link.and_then(|link| link.addr()).filter(|mac| *mac != [0; 6]) {
            return Ok(Some((name, mac)));
        }
    }
    Ok(None)
}
