//! What reaches the VM, and what its lease learns from it: the rules B and I.

use std::time::Duration;

use softnet_filter::{Resolvers, Timestamp};

use super::dhcp::{self, Message};
use super::packet::{self, Arp, Ethernet, Ipv4, UDP, UdpChecksum};
use super::vm::is_plain_padding;
use super::{FRESH, Lesson, Oracle, Outcome, Rule, Transaction, breaks, world};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;

impl Oracle {
    /// Safety: the rule that forbids the frame to reach the VM, if one does.
    pub fn must_not_arrive(&self, frame: &[u8]) -> Option<Rule> {
        self.check_arrival(frame).err()
    }

    fn check_arrival(&self, frame: &[u8]) -> Result<(), Rule> {
        let Some(ethernet) = Ethernet::read(frame) else { return Ok(()) };
        breaks("I2", !matches!(ethernet.ether_type, IPV4 | ARP))?;
        breaks("I2", !ethernet.is_group() && ethernet.destination != self.own_mac())?;
        let to_some = ethernet.is_group() && !ethernet.is_broadcast();
        if ethernet.ether_type == ARP {
            breaks("I1", to_some)?;
            // A receiver may take the hardware type of IEEE 802 networks for Ethernet's (RFC 1042).
            let claims = Arp::read(ethernet.body).is_some_and(|arp| {
                matches!(arp.hardware_type, 1 | 6)
                    && arp.protocol_type == IPV4
                    && arp.hardware_length == 6
                    && arp.protocol_length == 4
                    && arp.sender == self.gateway()
                    && (arp.sender_mac != self.gateway_mac() || ethernet.source != self.gateway_mac())
            });
            return breaks("I3", claims);
        }
        let Some(ip) = Ipv4::read(ethernet.body) else { return Ok(()) };
        breaks("I1", to_some && !world::is_multicast(ip.destination))?;
        match ip.udp_ports() {
            Some((67, 68)) if ip.is_fragment() => Err("B1"),
            Some((_, 68)) => match read_reply(&ip) {
                Some(reply) => self.check_reply(&ethernet, &ip, &reply).map(drop),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// B1 to B3, of a UDP packet to port 68 with a BOOTP reply: the lesson that it teaches if it passes.
    fn check_reply(&self, ethernet: &Ethernet<'_>, ip: &Ipv4<'_>, reply: &Message) -> Result<Lesson, Rule> {
        let open = self.transactions.iter().find(|open| open.xid == reply.xid).ok_or("B1")?;
        breaks("B1", ip.is_fragment())?;
        breaks("B1", ethernet.source != self.gateway_mac() || ip.source != self.gateway())?;
        breaks("B1", ip.udp_ports() != Some((67, 68)))?;
        breaks("B1", packet::udp_checksum(ip, ip.payload) == UdpChecksum::Wrong)?;
        breaks("B1", reply.hardware_length != 6 || reply.hardware_address[..6] != self.own_mac())?;
        breaks("B1", ethernet.destination != self.own_mac() && !ethernet.is_broadcast())?;
        breaks("B3", reply.broken)?;
        let kind = reply.kind().ok_or("B1")?;
        breaks("B1", reply.address_once(dhcp::OPTION_SERVER) != Some(self.gateway()))?;
        let to_yours = ip.destination == reply.yours || ip.destination.is_broadcast();
        match kind {
            dhcp::OFFER => breaks("B1", !to_yours).map(|()| Lesson::Nothing),
            dhcp::NAK if open.requests => Ok(Lesson::Revoke),
            dhcp::NAK => Ok(Lesson::Nothing),
            dhcp::ACK if open.informs && !open.requests => Ok(Lesson::Nothing),
            dhcp::ACK if open.requests => {
                breaks("B1", !to_yours && !open.informs)?;
                Ok(self.lesson_of_ack(to_yours, reply, open))
            }
            _ => Err("B1"),
        }
    }

    fn lesson_of_ack(&self, to_yours: bool, reply: &Message, open: &Transaction) -> Lesson {
        match reply.number_once(dhcp::OPTION_LEASE_TIME) {
            Some(seconds) if seconds > 0 && to_yours && self.may_be_leased(reply.yours) => Lesson::Bind {
                address: reply.yours,
                seconds,
                requested: open.since,
                resolvers: reply.resolvers(),
            },
            _ => Lesson::Nothing,
        }
    }

    /// Liveness: whether the frame is so plainly legitimate that it must reach the VM. Asked only where no rule
    /// forbids it.
    pub fn must_arrive(&self, frame: &[u8], now: Timestamp) -> bool {
        let Some(ethernet) = Ethernet::read(frame) else { return false };
        if ethernet.source[0] & 1 == 1 || ethernet.source == self.own_mac() {
            return false;
        }
        if ethernet.ether_type == ARP {
            return Arp::read(ethernet.body).is_some_and(|arp| {
                arp.hardware_type == 1
                    && arp.protocol_type == IPV4
                    && arp.hardware_length == 6
                    && arp.protocol_length == 4
                    && matches!(arp.operation, 1 | 2)
                    && is_plain_padding(&ethernet, &ethernet.body[Arp::LENGTH..])
            });
        }
        let Some(ip) = Ipv4::read(ethernet.body) else { return false };
        if !ip.header_is_right || ip.time_to_live == 0 || !is_plain_padding(&ethernet, ip.trailer) {
            return false;
        }
        if ip.protocol == UDP && ip.offset == 0 {
            return match ip.udp_ports() {
                Some((_, 68)) => self.is_plain_reply(&ethernet, &ip, now),
                Some((67, _) | (_, 67)) | None => false,
                Some(_) if ip.payload.len() < 8 => false,
                Some(_) => self.is_plainly_for_the_vm(&ethernet, &ip),
            };
        }
        self.is_plainly_for_the_vm(&ethernet, &ip)
    }

    fn is_plainly_for_the_vm(&self, ethernet: &Ethernet<'_>, ip: &Ipv4<'_>) -> bool {
        if world::is_multicast(ip.destination) {
            return ethernet.destination == world::multicast_mac(ip.destination);
        }
        ethernet.destination == self.own_mac() || ethernet.is_broadcast()
    }

    /// Whether the packet is the answer to the VM's newest question, well made.
    fn is_plain_reply(&self, ethernet: &Ethernet<'_>, ip: &Ipv4<'_>, now: Timestamp) -> bool {
        let Some(reply) = read_reply(ip) else { return false };
        let Some((xid, question, at)) = self.newest else { return false };
        let Some(kind) = reply.kind() else { return false };
        let answers = matches!(
            (question, kind),
            (dhcp::DISCOVER, dhcp::OFFER) | (dhcp::REQUEST, dhcp::ACK | dhcp::NAK)
        );
        let address_is_plain = match kind {
            dhcp::NAK => {
                let gives_nothing = reply.yours.is_unspecified() && !reply.has(dhcp::OPTION_LEASE_TIME);
                gives_nothing && ip.destination.is_broadcast()
            }
            _ => {
                (ip.destination == reply.yours || ip.destination.is_broadcast())
                    && self.may_be_leased(reply.yours)
                    && reply.number_once(dhcp::OPTION_LEASE_TIME).is_some_and(|seconds| seconds > 0)
            }
        };
        let resolvers = reply.all(dhcp::OPTION_RESOLVERS).concat();
        let datagram_is_whole =
            packet::number16(ip.payload, 4).is_some_and(|length| usize::from(length) == ip.payload.len());
        let is_given_up = self.transactions.iter().any(|open| open.xid == xid && open.given_up);
        answers
            && !is_given_up
            && address_is_plain
            && reply.xid == xid
            && now.saturating_since(at) < FRESH
            && datagram_is_whole
            && ip.header_length == 20
            && packet::udp_checksum(ip, ip.payload) == UdpChecksum::Right
            && reply.op == 2
            && reply.hardware_type == 1
            && reply.hops == 0
            && reply.relay.is_unspecified()
            && reply.is_of(self.own_mac())
            && reply.ended
            && !reply.repeats()
            && !reply.has(dhcp::OPTION_OVERLOAD)
            && !reply.has(dhcp::OPTION_REQUESTED)
            && !reply.has(dhcp::OPTION_CLIENT_ID)
            && resolvers.len().is_multiple_of(4)
            && (!reply.has(dhcp::OPTION_RESOLVERS) || !resolvers.is_empty())
            && (ethernet.destination == self.own_mac() || ip.destination.is_broadcast())
    }

    /// Takes note of a frame for the VM and of its verdict; returns what the lease may be now.
    pub(super) fn after_host(
        &mut self,
        frame: &[u8],
        now: Timestamp,
        forwarded: bool,
        had_to_pass: bool,
    ) -> Vec<Outcome> {
        let unchanged = Outcome::exactly(self.lease_at(now).copied());
        let Some((reply, lesson)) = self.lesson(frame).filter(|_| forwarded) else {
            return vec![unchanged];
        };
        if reply.kind() == Some(dhcp::OFFER) {
            self.offered = Some((reply.yours, now));
            self.offer_may_be_over = false;
        }
        let changed = match lesson {
            Lesson::Nothing => return vec![unchanged],
            Lesson::Revoke => Outcome::Unbound,
            Lesson::Bind { address, seconds, requested, resolvers } => {
                let ends = |from: Timestamp| from.saturating_add(Duration::from_secs(seconds.into()));
                let sane = |all: &[_]| -> Vec<_> {
                    all.iter().copied().filter(|&resolver| self.may_resolve(resolver, address)).collect()
                };
                // Those that every client uses must be open; more than a lease can hold need not.
                let first: Resolvers = sane(&resolvers).into_iter().take(3).collect();
                Outcome::Bound {
                    address,
                    server: self.gateway(),
                    expires: (seconds != u32::MAX).then(|| (ends(requested), ends(now))),
                    resolvers: (first.iter().collect(), sane(&resolvers)),
                }
            }
        };
        self.offer_may_be_over = true;
        self.newest = self.newest.filter(|(xid, ..)| *xid != reply.xid);
        if had_to_pass {
            self.close(reply.xid);
            return vec![changed];
        }
        // What of an unusual reply has taught the filter something has ended its transaction; the rest may have.
        vec![changed, unchanged]
    }

    fn lesson(&self, frame: &[u8]) -> Option<(Message, Lesson)> {
        let ethernet = Ethernet::read(frame).filter(|ethernet| ethernet.ether_type == IPV4)?;
        let ip = Ipv4::read(ethernet.body)?;
        let reply = ip.udp_ports().filter(|&(_, to)| to == 68).and_then(|_| read_reply(&ip))?;
        let lesson = self.check_reply(&ethernet, &ip, &reply).ok()?;
        Some((reply, lesson))
    }

    fn close(&mut self, xid: u32) {
        self.transactions.retain(|open| open.xid != xid);
    }
}

/// The BOOTP reply with the cookie that a UDP packet holds.
fn read_reply(ip: &Ipv4<'_>) -> Option<Message> {
    Message::read(ip.payload.get(8..)?).filter(|message| message.op == 2)
}
