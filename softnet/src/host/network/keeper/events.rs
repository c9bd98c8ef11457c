//! The kernel's notifications of changes: interfaces, addresses and forwarding by rtnetlink, tables by
//! nftables' netlink (`linux/rtnetlink.h`, `linux/netfilter/nf_tables.h`).
//!
//! The kernel reports a change by Softnet itself like any other; [`super::super::generation`] distinguishes
//! them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::host::network::generation::Tables;
use crate::host::network::ruleset;
use crate::netlink::nftables::{NEWGEN, SUBSYSTEM, first_attribute, number};
use crate::netlink::{Subscription, messages};

/// Links, IPv4 addresses, IPv4 settings such as forwarding (`RTNLGRP_*`).
const ROUTE_GROUPS: [u32; 3] = [1, 5, 24];
/// `NFNLGRP_NFTABLES`.
const NFTABLES_GROUP: u32 = 7;

/// What has changed since the last read.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Happened {
    /// An interface, an address or a setting changed.
    pub links: bool,
    /// Whether a table of the networks changed.
    pub tables: Tables,
    /// A table of another program changed.
    pub filters: bool,
}

/// The sockets on which the kernel reports changes.
#[derive(Debug)]
pub struct Events {
    route: Subscription,
    nftables: Subscription,
    /// A table of the networks changed in a transaction whose number has not arrived yet.
    within: bool,
}

impl Events {
    /// Subscribes to changes. From now on, none is missed.
    pub fn follow() -> io::Result<Self> {
        Ok(Events {
            route: Subscription::open(NETLINK_ROUTE, &ROUTE_GROUPS)?,
            nftables: Subscription::open(NETLINK_NETFILTER, &[NFTABLES_GROUP])?,
            within: false,
        })
    }

    /// The descriptors that become readable when something changes.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.route.as_fd(), self.nftables.as_fd()]
    }

    /// Reads all notifications that have arrived.
    pub fn read(&mut self) -> Happened {
        let mut happened = Happened::default();
        self.route.drain(|_| happened.links = true);
        let within = &mut self.within;
        self.nftables.drain(|messages| {
            let change = messages.map_or(Tables::Unknown, |bytes| changes_in(bytes, within));
            happened.tables = happened.tables.and_then(change);
            happened.filters |= messages.is_none_or(is_of_others);
        });
        happened
    }
}

/// What these messages of nftables report. `within` says whether an earlier message of the same transaction
/// changed a table of the networks.
fn changes_in(bytes: &[u8], within: &mut bool) -> Tables {
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

/// Whether one of these messages of nftables reports a change of a table that is not Softnet's.
fn is_of_others(bytes: &[u8]) -> bool {
    messages(bytes).map_while(Result::ok).any(|message| {
        let kind = message.message_type();
        kind & 0xff00 == SUBSYSTEM
            && kind != NEWGEN
            && first_attribute(&message).is_some_and(|table| !table.starts_with(b"softnet"))
    })
}

/// Whether a table of this name belongs to the networks. Tables for a TAP on a bridge that Softnet does not
/// manage (`--bridge`) do not.
fn is_of_networks(table: &[u8]) -> bool {
    table.starts_with(b"softnet") && !table.starts_with(ruleset::TAP_PREFIX.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::nftables::message;

    const NEW_RULE: u16 = SUBSYSTEM | 6;

    fn changes(messages: &[Vec<u8>]) -> Tables {
        changes_in(&messages.concat(), &mut false)
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
            assert_eq!(changes(&[message(NEW_RULE, table), end(7)]), tables);
        }
        let (ours, others) = (message(NEW_RULE, b"softnet\0"), message(NEW_RULE, b"filter\0"));
        let all = [others.clone(), ours, others.clone(), end(7), others, end(8)];
        assert_eq!(changes(&all), Tables::ChangedIn(7));
        assert!(is_of_others(&all.concat()) && !is_of_others(&all[1..2].concat()));
        let mut within = false;
        assert_eq!(changes_in(&all[..2].concat(), &mut within), Tables::Same);
        assert_eq!(changes_in(&end(9), &mut within), Tables::ChangedIn(9));
        let all = all.concat();
        for length in 0..all.len() {
            let _ = changes_in(&all[..length], &mut false);
        }
    }
}
