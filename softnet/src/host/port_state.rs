//! Waits until frames flow between a TAP and its host.
//!
//! When a program attaches to a TAP, the TAP and the bridge may get their carriers. Some time later the
//! kernel starts their queues, and the bridge enables the TAP as a port: at once on an idle machine, many
//! milliseconds later on a busy one, and seconds later under the spanning tree protocol. Until then frames
//! are dropped in either direction, for example a VM's first DHCPDISCOVER or its answer, and the VM retries
//! only after seconds. The VM's socket queues its frames meanwhile, so waiting loses nothing.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::netlink::{Error, Netlink};
use crate::sys::wait::{self, readable};

/// The multicast group of changes to links (`RTNLGRP_LINK`, `linux/rtnetlink.h`).
const LINK_CHANGES: u32 = 1;

/// How long to wait: longer than the kernel needs without a spanning tree, short enough for a user.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until the host, through the bridge if there is one, carries the frames of `tap`; returns false if it
/// still does not after two seconds, or if either is down.
///
/// # Errors
/// When the kernel cannot be queried.
pub fn wait_until_frames_flow(netlink: &mut Netlink, tap: &str) -> Result<bool, Error> {
    // Subscribes first and queries then, so that no change between the two is missed.
    let changes = subscribe().map_err(Error::Open)?;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match frames_flow(netlink, tap)? {
            None => return Ok(false),
            Some(true) => return Ok(true),
            Some(false) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        wait(&changes, left).map_err(Error::Open)?;
    }
}

/// Whether the host carries the frames of `tap` now; `None` if it or its bridge is down, so that waiting is of no use.
///
/// # Errors
/// When the kernel cannot be queried.
pub fn frames_flow(netlink: &mut Netlink, tap: &str) -> Result<Option<bool>, Error> {
    let Some(port) = netlink.link(tap)?.filter(|link| link.up) else { return Ok(None) };
    let bridge = port.master.map(|index| netlink.link_at(index)).transpose()?.flatten();
    if bridge.as_ref().is_some_and(|bridge| !bridge.up) {
        return Ok(None);
    }
    let carries = bridge.is_none_or(|bridge| bridge.transmits && port.forwards == Some(true));
    Ok(Some(carries && port.transmits))
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(LINK_CHANGES)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Waits for a change to any link, and discards the messages: the caller queries the link again.
fn wait(changes: &Socket, left: Duration) -> io::Result<()> {
    wait::wait(&mut [readable(changes.as_fd())], Some(left))?;
    // An overflow of the queue (ENOBUFS) is a change too.
    while changes.recv_from_full().is_ok() {}
    Ok(())
}
