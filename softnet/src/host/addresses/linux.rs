//! The addresses as rtnetlink reports them.
//!
//! The kernel reports each change to a multicast group of rtnetlink. The message's content is ignored: all
//! addresses are queried again, so that an overflow of the queue loses nothing.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use softnet_filter::Timestamp;

use super::{MOST, QUERY_INTERVAL, pick};
use crate::netlink::{Error, Netlink};

/// The multicast group of changes to IPv4 addresses (`RTNLGRP_IPV4_IFADDR`, `linux/rtnetlink.h`).
const ADDRESS_CHANGES: u32 = 5;

/// Watches the addresses of the network namespace that it was created in, except one gateway's and the
/// loopback network.
#[derive(Debug)]
pub struct AddressWatch {
    changes: Socket,
    netlink: Netlink,
    gateway: Ipv4Addr,
    known: Vec<Ipv4Addr>,
    /// No query is made before this time.
    not_before: Timestamp,
    /// Whether a query failed and is due again at `not_before`.
    stale: bool,
}

impl AddressWatch {
    /// Subscribes first and queries then, so that no change between the two is missed.
    ///
    /// # Errors
    /// When the kernel cannot be queried.
    pub fn new(gateway: Ipv4Addr) -> Result<Self, Error> {
        let changes = subscribe().map_err(Error::Open)?;
        let mut watch = AddressWatch {
            changes,
            netlink: Netlink::open()?,
            gateway,
            known: Vec::new(),
            not_before: Timestamp::default(),
            stale: false,
        };
        watch.known = watch.query()?;
        Ok(watch)
    }

    /// The addresses at the last query, sorted.
    pub fn known(&self) -> &[Ipv4Addr] {
        &self.known
    }

    /// The socket that becomes readable on a change.
    pub fn changes(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// The socket for queries.
    pub fn query_socket(&self) -> BorrowedFd<'_> {
        self.netlink.as_fd()
    }

    /// Whether to wait for a change; if not, [`AddressWatch::deadline`] says when to query.
    pub fn is_listening(&self, now: Timestamp) -> bool {
        now >= self.not_before
    }

    /// When to query or to wait for changes again.
    pub fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        (self.stale || now < self.not_before).then_some(self.not_before)
    }

    /// The addresses, if they differ from those known. Call it when [`AddressWatch::changes`] is readable, and when the
    /// deadline has come.
    pub fn changed(&mut self, now: Timestamp) -> Option<&[Ipv4Addr]> {
        // An overflow of the queue (ENOBUFS) is a change too.
        let mut notified = self.stale;
        loop {
            match self.changes.recv_from_full() {
                Ok(_) => notified = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => notified = true,
                Err(_) => break,
            }
        }
        if !notified {
            return None;
        }
        self.not_before = now.saturating_add(QUERY_INTERVAL);
        match self.query() {
            Ok(addresses) => {
                self.stale = false;
                if addresses == self.known {
                    return None;
                }
                self.known = addresses;
                Some(&self.known)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the host's addresses, which may have changed; trying again");
                self.stale = true;
                None
            }
        }
    }

    fn query(&mut self) -> Result<Vec<Ipv4Addr>, Error> {
        let all = self.netlink.all_addresses()?.into_iter().map(|(_, address)| address.addr());
        Ok(pick(all, self.gateway, MOST))
    }
}

fn subscribe() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    socket.add_membership(ADDRESS_CHANGES)?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}
