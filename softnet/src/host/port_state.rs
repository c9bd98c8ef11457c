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

use crate::netlink::{Error, Link, Netlink};
use crate::sys::wait::{self, readable};

/// The multicast group of changes to links (`RTNLGRP_LINK`, `linux/rtnetlink.h`).
const LINK_CHANGES: u32 = 1;

/// How long to wait: longer than the kernel needs without a spanning tree, short enough for a user. With a spanning
/// tree, its delay comes on top.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Waits until the host, through the bridge if there is one, carries the frames of `tap`; returns false if it
/// still does not after two seconds and the delay of the bridge's spanning tree, or if either is down. Says at once
/// that it waits for a spanning tree.
///
/// # Errors
/// When the kernel cannot be queried.
pub fn wait_until_frames_flow(netlink: &mut Netlink, tap: &str) -> Result<bool, Error> {
    // Subscribes first and queries then, so that no change between the two is missed.
    let changes = subscribe().map_err(Error::Open)?;
    let mut deadline = Instant::now() + TIMEOUT;
    let mut waits_for_tree = false;
    loop {
        let Some((port, bridge)) = look(netlink, tap)? else { return Ok(false) };
        if carries(&port, bridge.as_ref()) {
            return Ok(true);
        }
        if let (Some(bridge), false) = (&bridge, waits_for_tree || port.forwards == Some(true))
            && let Some(delay) = bridge.spanning_tree.filter(|delay| !delay.is_zero())
        {
            waits_for_tree = true;
            deadline += delay;
            tracing::warn!(
                bridge = bridge.name,
                seconds = delay.as_secs_f32(),
                "the bridge's spanning tree keeps the VM's port from carrying frames at first, so Softnet waits for it; where no \
                 bridges form a loop, `ip link set {} type bridge stp_state 0` avoids that, and a lower forward_delay shortens it",
                bridge.name
            );
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
    Ok(look(netlink, tap)?.map(|(port, bridge)| carries(&port, bridge.as_ref())))
}

/// The TAP and its bridge, if it has one; `None` if either is down.
fn look(netlink: &mut Netlink, tap: &str) -> Result<Option<(Link, Option<Link>)>, Error> {
    let Some(port) = netlink.link(tap)?.filter(|link| link.up) else { return Ok(None) };
    let bridge = port.master.map(|index| netlink.link_at(index)).transpose()?.flatten();
    let is_down = bridge.as_ref().is_some_and(|bridge| !bridge.up);
    Ok((!is_down).then_some((port, bridge)))
}

fn carries(port: &Link, bridge: Option<&Link>) -> bool {
    port.transmits && bridge.is_none_or(|bridge| bridge.transmits && port.forwards == Some(true))
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
