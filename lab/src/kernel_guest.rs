//! A guest that uses this kernel's network stack: a namespace connected to a VM's port.
//!
//! Cheaper than a virtual machine, and enough where a test needs real connections and not a foreign kernel.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::thread;

use anyhow::{Context, Result};

use crate::deadline::Deadline;
use crate::net::Host;
use crate::wire::Mac;
use crate::{VmPort, tap};

/// The name of its one interface.
pub(crate) const INTERFACE: &str = "eth0";
/// The longest frame in bytes that a TAP without offloads delivers, with room to spare.
const FRAME: usize = 4096;

/// Makes a host called `name` that is connected by `port`, and configures it as a DHCP client would.
///
/// Frames are carried until the program ends, or the other end of `port` closes. The caller may still send on
/// `port`; the guest receives all frames that arrive.
///
/// # Errors
/// Says which step failed.
pub fn kernel_guest(
    name: &str,
    port: &VmPort,
    mac: Mac,
    address: (Ipv4Addr, u8),
    gateway: Ipv4Addr,
) -> Result<Host> {
    let guest = wired(name, port, mac, |_| {})?;
    guest.ip(&format!("addr add {}/{} dev {INTERFACE}", address.0, address.1))?;
    guest.ip(&format!("link set {INTERFACE} up"))?;
    guest.ip(&format!("route add default via {gateway}"))?;
    Ok(guest)
}

/// Makes a host whose card `eth0`, which is down and has no address, is connected by `port`. `watch` sees every frame
/// in both directions.
pub(crate) fn wired(
    name: &str,
    port: &VmPort,
    mac: Mac,
    watch: impl Fn(&[u8]) + Clone + Send + 'static,
) -> Result<Host> {
    let guest = Host::new(name)?;
    guest.ip(&format!("tuntap add dev {INTERFACE} mode tap"))?;
    guest.ip(&format!("link set {INTERFACE} addrgenmode none address {mac}"))?;
    let tap = guest.run(|| tap::open(INTERFACE))?.context("attach to the guest's TAP")?;
    let (mut from_guest, mut to_guest) = (tap.try_clone()?, tap);
    let (up, down) = (port.try_clone()?, port.try_clone()?);
    let watch_up = watch.clone();
    thread::spawn(move || {
        let mut frame = vec![0; FRAME];
        while let Ok(length) = from_guest.read(&mut frame) {
            watch_up(&frame[..length]);
            if up.send(&frame[..length]).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        while let Ok(frame) = down.recv(Deadline::after(std::time::Duration::from_secs(3600))) {
            let Some(frame) = frame else { break };
            watch(&frame);
            // A refused frame is lost, as on any network.
            let _ = to_guest.write(&frame);
        }
    });
    Ok(guest)
}
