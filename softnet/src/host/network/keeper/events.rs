//! What the kernel tells of changes: interfaces, addresses and forwarding by rtnetlink, tables by nftables' netlink
//! (`linux/rtnetlink.h`, `linux/netfilter/nf_tables.h`).
//!
//! A change by Softnet itself looks like any other; [`super::super::generation`] tells them apart.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::host::network::generation::Tables;
use crate::host::network::ruleset;
use crate::netlink::nftables::{NEWGEN, SUBSYSTEM, first_attribute, number};
use crate::netlink::{Subscription, messages};

/// Links, IPv4 addresses, IPv4 switches (`RTNLGRP_*`).
const ROUTE_GROUPS: [u32; 3] = [1, 5, 24];
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;

/// What has happened since the last look.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Happened {
    /// An interface, an address or a switch changed.
    pub links: bool,
    /// A table that may be the network's changed.
    pub tables: Tables,
}

/// Where the kernel tells.
#[derive(Debug)]
pub struct Events {
    route: Subscription,
    nftables: Subscription,
    /// A table changed in the transaction whose number is still to be told.
    within: bool,
}

impl Events {
    /// From now on, nothing is missed.
    pub fn follow() -> io::Result<Self> {
        Ok(Events {
            route: Subscription::open(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            nftables: Subscription::open(NETLINK_NETFILTER, &[NFTABLES_GROUP])?,
            within: false,
        })
    }

    /// What becomes readable when something happens.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.route.as_fd(), self.nftables.as_fd()]
    }

    /// Reads all that was told. Tables are the network's if their name is the one of all networks or begins like it.
    pub fn read(&mut self) -> Happened {
        let mut happened = Happened::default();
        self.route.drain(|_| happened.links = true);
        let within = &mut self.within;
        self.nftables.drain(|told| {
            let told = told.map_or(Tables::Unknown, |bytes| follow(bytes, within));
            happened.tables = happened.tables.and_then(told);
        });
        happened
    }
}

/// What these messages of nftables tell. `within` is whether the transaction that they go on with has changed a table of the
/// networks.
fn follow(bytes: &[u8], within: &mut bool) -> Tables {
    let mut tables = Tables::Same;
    for message in messages(bytes).map_while(Result::ok) {
        let kind = message.message_type();
        if kind & 0xff00 != SUBSYSTEM {
            continue;
        }
        let value = first_attribute(&message);
        if kind != NEWGEN {
            *within |= value.is_some_and(is_of_networks);
        } else if std::mem::take(within) {
            let number = value.and_then(number);
            tables = tables.and_then(number.map_or(Tables::Unknown, Tables::ChangedIn));
        }
    }
    tables
}

/// Whether a table of this name belongs to the networks. One for a TAP on a bridge of others does not (`--bridge`).
fn is_of_networks(table: &[u8]) -> bool {
    table.starts_with(b"softnet") && !table.starts_with(ruleset::TAP_PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::nftables::message;

    const NEW_RULE: u16 = SUBSYSTEM | 6;

    fn told(messages: &[Vec<u8>]) -> Tables {
        follow(&messages.concat(), &mut false)
    }

    fn end(number: u32) -> Vec<u8> {
        message(NEWGEN, &number.to_be_bytes())
    }

    #[test]
    fn only_transactions_that_change_a_table_of_the_networks_count() {
        for (table, tables) in [
            (b"softnet-softnet0\0".as_slice(), Tables::ChangedIn(7)),
            (b"softnet\0", Tables::ChangedIn(7)),
            (b"softnet-tap-snt0\0", Tables::Same),
            (b"filter\0", Tables::Same),
        ] {
            assert_eq!(told(&[message(NEW_RULE, table), end(7)]), tables);
        }
        let (ours, others) = (message(NEW_RULE, b"softnet\0"), message(NEW_RULE, b"filter\0"));
        let all = [others.clone(), ours, others.clone(), end(7), others, end(8)];
        assert_eq!(told(&all), Tables::ChangedIn(7));
        let mut within = false;
        assert_eq!(follow(&all[..2].concat(), &mut within), Tables::Same);
        assert_eq!(follow(&end(9), &mut within), Tables::ChangedIn(9));
        let all = all.concat();
        for length in 0..all.len() {
            let _ = follow(&all[..length], &mut false);
        }
    }
}
