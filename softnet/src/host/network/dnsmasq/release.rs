//! Giving leases back in the place of a Softnet that did not live to.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};

use softnet_filter::{MacAddr, release_message};

use super::Error;
use super::leases::{SERVER_PORT, leases};
use crate::host::network::Plan;
use crate::host::network::run_dir::NetworkDir;

/// Tells the server that the VM `mac` gives `address` back, in place of a Softnet that did not live to tell it.
///
/// The message goes from the gateway's address to itself, so it takes no privilege and stays on the host. To dnsmasq it
/// comes from the bridge, although loopback carries it: the kernel notes the interface that has the address as the one of
/// arrival. dnsmasq takes a release from any port, and does not answer, so there is nothing to wait for.
///
/// Leases are filed by MAC, and dnsmasq ends one only if the message names both its MAC and its address. So it changes
/// nothing to give a lease back twice, or one whose address another VM has been given since.
///
/// # Errors
/// When the gateway's address is gone, or nobody serves there as far as the kernel can tell at once.
pub fn release(plan: &Plan, mac: MacAddr, address: Ipv4Addr) -> Result<(), Error> {
    let server = plan.gateway().addr();
    let message = release_message(mac, address, server, std::process::id());
    let send = || {
        let socket = UdpSocket::bind((server, 0))?;
        socket.connect((server, SERVER_PORT))?;
        socket.send(&message)?;
        // That nobody listens, loopback says before the call returns.
        socket.take_error()?.map_or(Ok(()), Err)
    };
    send().map_err(|source| Error::Release { mac, address, source })?;
    tracing::info!(%mac, %address, "released the VM's lease on its behalf");
    Ok(())
}

/// Gives back `known` and whatever else the server has noted for the VM `mac`, as [`release`] does one address: a Softnet may
/// have died between the server's answer and its VM's. Says how many those were.
///
/// # Errors
/// Those of [`release`], or if the server's file cannot be read.
pub fn release_all(
    plan: &Plan,
    directory: &NetworkDir,
    mac: MacAddr,
    known: Option<Ipv4Addr>,
) -> Result<usize, Error> {
    let noted = leases(directory)?.into_iter().filter(|lease| lease.mac == mac).map(|lease| lease.address);
    let addresses: BTreeSet<Ipv4Addr> = noted.chain(known).collect();
    addresses.iter().try_for_each(|&address| release(plan, mac, address))?;
    Ok(addresses.len())
}
