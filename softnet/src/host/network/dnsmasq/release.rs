//! Releases leases on behalf of a Softnet process that was killed.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, UdpSocket};

use softnet_filter::{MacAddr, release_message};
use softnet_wire::dhcpv4::SERVER_PORT;

use super::Error;
use super::leases::leases;
use crate::host::network::Plan;
use crate::host::network::run_dir::NetworkDir;

/// Tells the server that the VM `mac` releases `address`, on behalf of a Softnet process that was killed.
///
/// The message goes from the gateway's address to itself, so it needs no privilege and stays on the host.
/// dnsmasq sees it arrive on the bridge, although loopback carries it: the kernel reports the interface that
/// has the address. dnsmasq accepts a release from any port, and does not answer, so there is nothing to wait
/// for.
///
/// dnsmasq ends a lease only if the message names both its MAC and its address. So it is harmless to release
/// a lease twice, or one whose address was leased to another VM since.
///
/// # Errors
/// When the gateway's address is gone, or the kernel reports at once that no server listens there.
pub fn release(plan: &Plan, mac: MacAddr, address: Ipv4Addr) -> Result<(), Error> {
    let server = plan.gateway().addr();
    let message = release_message(mac, address, server, std::process::id());
    let send = || {
        let socket = UdpSocket::bind((server, 0))?;
        socket.connect((server, SERVER_PORT))?;
        socket.send(&message)?;
        // If no server listens, loopback reports that before the call returns.
        socket.take_error()?.map_or(Ok(()), Err)
    };
    send().map_err(|source| Error::Release { mac, address, source })?;
    tracing::info!(%mac, %address, "released the VM's lease on its behalf");
    Ok(())
}

/// Releases `known` and every other address that the server's file has for the VM `mac`, as [`release`] does:
/// a Softnet may have died after the server's answer and before its VM used the address. Returns how many.
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
