//! What netfilter's tables do with one packet: the kernel reports every rule that a packet matches, and every chain that it
//! passes, once a rule has set `meta nftrace` on it (`NFT_MSG_TRACE`, `linux/netfilter/nf_tables.h`).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::protocols::NETLINK_NETFILTER;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

use super::nftables::{SUBSYSTEM, number};
use super::{Message, Subscription, find, messages};

/// `NFNLGRP_NFTRACE`.
const GROUP: u32 = 9;
const TRACE: u16 = SUBSYSTEM | 17;

/// `NFTA_TRACE_*`.
const TABLE: u16 = 1;
const CHAIN: u16 = 2;
const TYPE: u16 = 4;
const VERDICT: u16 = 5;
const ID: u16 = 6;
const ETHERNET: u16 = 7;
const NETWORK: u16 = 8;
const TRANSPORT: u16 = 9;
const POLICY: u16 = 16;

/// `NFT_TRACETYPE_POLICY`: the end of a chain was reached, and its policy decides.
const BY_POLICY: u32 = 1;
/// `NFTA_VERDICT_CODE`.
const CODE: u16 = 1;
/// `NF_DROP`; rejected packets are dropped too.
const DROP: u32 = 0;

/// How many bytes of events the kernel queues. A packet takes some hundred steps through the chains of firewalld, each of them
/// an event of a few kilobytes, before the caller reads the first one.
const QUEUE: usize = 8 << 20;

/// `struct nfgenmsg`.
const NFGENMSG: usize = 4;

/// One event in a packet's way through the tables.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Step {
    /// Distinguishes one packet from others that are in the kernel at the same time.
    pub id: u32,
    /// The table's family, as nft names it.
    pub family: &'static str,
    /// The table.
    pub table: String,
    /// The chain.
    pub chain: String,
    /// Whether the packet ends here.
    pub dropped: bool,
    /// The packet's headers, in the first event of each base chain only.
    pub packet: Option<Headers>,
}

/// The headers of a traced packet, as far as the kernel reports them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Headers {
    /// The Ethernet header, or nothing if the packet has none (yet).
    pub ethernet: Vec<u8>,
    /// The header of IP.
    pub network: Vec<u8>,
    /// The first bytes of what IP carries.
    pub transport: Vec<u8>,
}

/// The socket on which the kernel reports the way of traced packets.
#[derive(Debug)]
pub struct Traces(Subscription);

impl Traces {
    /// Subscribes. The kernel reports nothing of packets before this.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn follow() -> io::Result<Self> {
        let events = Subscription::open(NETLINK_NETFILTER, &[GROUP])?;
        // Without the right to more, the usual queue has to do.
        let _ = set_socket_recv_buffer_size_force(&events, QUEUE);
        Ok(Traces(events))
    }

    /// Passes every event that has arrived to `each`; returns false if the kernel lost some.
    pub fn read(&self, mut each: impl FnMut(Step)) -> bool {
        let mut complete = true;
        self.0.drain(|bytes| match bytes {
            Some(bytes) => {
                messages(bytes)
                    .map_while(Result::ok)
                    .filter_map(|message| step(&message))
                    .for_each(&mut each);
            }
            None => complete = false,
        });
        complete
    }
}

impl AsFd for Traces {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn step(message: &Message<'_>) -> Option<Step> {
    if message.message_type() != TRACE {
        return None;
    }
    let (&family, attributes) = (message.payload().first()?, message.payload().get(NFGENMSG..)?);
    let value = |kind| find(attributes, kind);
    let text = |kind| {
        let text = value(kind).unwrap_or_default();
        String::from_utf8_lossy(text.strip_suffix(&[0]).unwrap_or(text)).into_owned()
    };
    let bytes = |kind| value(kind).unwrap_or_default().to_vec();
    let verdict = match value(TYPE).and_then(number)? {
        BY_POLICY => value(POLICY).and_then(number),
        _ => value(VERDICT).and_then(|verdict| find(verdict, CODE)).and_then(number),
    };
    let packet = value(NETWORK).map(|network| Headers {
        ethernet: bytes(ETHERNET),
        network: network.to_vec(),
        transport: bytes(TRANSPORT),
    });
    Some(Step {
        id: value(ID).and_then(number)?,
        family: family_name(family),
        table: text(TABLE),
        chain: text(CHAIN),
        dropped: verdict == Some(DROP),
        packet,
    })
}

/// `NFPROTO_*` as nft names them.
fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        7 => "bridge",
        10 => "ip6",
        _ => "netdev",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{attribute, request};

    fn event(attributes: &[Vec<u8>]) -> Vec<u8> {
        request(TRACE, 0, 0, &[&[2, 0, 0, 0][..], &attributes.concat()].concat())
    }

    fn read(bytes: &[u8]) -> Option<Step> {
        step(&messages(bytes).next()?.ok()?)
    }

    #[test]
    fn a_rule_and_a_policy_can_drop() {
        let place =
            [attribute(TABLE, b"filter\0"), attribute(CHAIN, b"INPUT\0"), attribute(ID, &[0, 0, 0, 7])];
        let number = |kind, value: u32| attribute(kind, &value.to_be_bytes());
        let ways = [
            (vec![number(TYPE, 3), attribute(VERDICT | 0x8000, &number(CODE, 0))], true),
            (vec![number(TYPE, 3), attribute(VERDICT | 0x8000, &number(CODE, u32::MAX))], false),
            (vec![number(TYPE, 1), number(POLICY, 0)], true),
            (vec![number(TYPE, 1), number(POLICY, 1)], false),
            // A return has a verdict that is no drop.
            (vec![number(TYPE, 2), attribute(VERDICT | 0x8000, &number(CODE, u32::MAX - 4))], false),
        ];
        for (way, dropped) in ways {
            let bytes = event(&[&place[..], &way].concat());
            let step = read(&bytes).unwrap();
            assert_eq!((step.id, step.family, step.dropped), (7, "ip", dropped), "{way:?}");
            assert_eq!((step.table.as_str(), step.chain.as_str()), ("filter", "INPUT"));
            assert_eq!(step.packet, None);
            for length in 0..bytes.len() {
                let _ = read(&bytes[..length]);
            }
        }
    }
}
