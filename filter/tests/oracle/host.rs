//! What reaches the VM, and what its lease learns from it: the rules B and I.

use std::time::Duration;

use softnet_filter::{Origin, Resolvers, Timestamp};

use super::dhcp::{self, Message};
use super::flows::Fate;
use super::packet::{self, Arp, Ethernet, Ipv4, UDP, UdpChecksum};
use super::vm::is_plain_padding;
use super::{Believed, FRESH, Lesson, Oracle, Outcome, Rule, Transaction, breaks, is_end_of_time, world};

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;

impl Oracle {
    /// Safety: the rule that forbids the frame to reach the VM, if one does.
    pub fn must_not_arrive(&self, frame: &[u8], now: Timestamp) -> Option<Rule> {
        self.check_arrival(frame, now).err()
    }

    fn check_arrival(&self, frame: &[u8], now: Timestamp) -> Result<(), Rule> {
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
                    && [(self.gateway(), self.gateway_mac()), (self.server(), self.server_mac())]
                        .into_iter()
                        .any(|(address, mac)| {
                            arp.sender == address && (arp.sender_mac != mac || ethernet.source != mac)
                        })
            });
            return breaks("I3", claims);
        }
        let Some(ip) = Ipv4::read(ethernet.body) else { return Ok(()) };
        breaks("I1", to_some && !world::is_multicast(ip.destination))?;
        match ip.udp_ports() {
            Some((67, 68)) if ip.is_fragment() => Err("B1"),
            Some((_, 68)) => match read_reply(&ip) {
                Some(reply) => self.check_reply(&ethernet, &ip, &reply, now).map(drop),
                None => Ok(()),
            },
            _ if self.is_stateful() => self.check_stateful_arrival(&ip, now),
            _ => Ok(()),
        }
    }

    /// B1 to B3 and B7, of a UDP packet to port 68 with a BOOTP reply: the lesson that it teaches if it passes.
    fn check_reply(
        &self,
        ethernet: &Ethernet<'_>,
        ip: &Ipv4<'_>,
        reply: &Message,
        now: Timestamp,
    ) -> Result<Lesson, Rule> {
        let kind = self.check_server(ethernet, ip, reply)?;
        if ip.udp_ports() == Some((4011, 68)) {
            return self.check_boot_reply(ip, reply, kind, now);
        }
        let open = self.transactions.iter().find(|open| open.xid == reply.xid).ok_or("B1")?;
        breaks("B7", open.void)?;
        let to_yours = ip.destination == reply.yours || ip.destination.is_broadcast();
        if open.wish.kind == dhcp::INFORM {
            breaks("B1", kind != dhcp::ACK)?;
            let own = self.lease_at(now).map(|lease| lease.address);
            breaks("B8", !reply.yours.is_unspecified() && Some(reply.yours) != own)?;
            return Ok(Lesson::Nothing);
        }
        match kind {
            dhcp::OFFER => breaks("B1", !to_yours).map(|()| Lesson::Nothing),
            dhcp::NAK if open.wish.binds() => Ok(Lesson::Revoke),
            dhcp::ACK if open.wish.binds() => {
                breaks("B1", !to_yours)?;
                breaks("B7", !open.may_give(reply.yours))?;
                Ok(self.lesson_of_ack(reply, open))
            }
            _ => Err("B1"),
        }
    }

    /// B6, of what comes from the boot server.
    fn check_boot_reply(
        &self,
        ip: &Ipv4<'_>,
        reply: &Message,
        kind: u8,
        now: Timestamp,
    ) -> Result<Lesson, Rule> {
        let own = self.lease_at(now).map(|lease| lease.address);
        let waits = |&(xid, at): &(u32, Timestamp)| {
            xid == reply.xid && (now.saturating_since(at) < Duration::from_secs(60) || is_end_of_time(now))
        };
        breaks("B6", !self.boots.iter().rev().take(4).any(waits))?;
        breaks("B6", !matches!(kind, dhcp::OFFER | dhcp::ACK))?;
        breaks("B6", !reply.yours.is_unspecified() && Some(reply.yours) != own)?;
        breaks("B6", !ip.destination.is_broadcast() && Some(ip.destination) != own)?;
        Ok(Lesson::Nothing)
    }

    /// All of B1 but the transaction: the type of the reply.
    fn check_server(&self, ethernet: &Ethernet<'_>, ip: &Ipv4<'_>, reply: &Message) -> Result<u8, Rule> {
        breaks("B1", ip.is_fragment())?;
        breaks("B1", ethernet.source != self.server_mac() || ip.source != self.server())?;
        breaks("B1", !matches!(ip.udp_ports(), Some((67 | 4011, 68))))?;
        breaks("B1", packet::udp_checksum(ip, ip.payload) == UdpChecksum::Wrong)?;
        breaks("B1", reply.hardware_length != 6 || reply.hardware_address[..6] != self.own_mac())?;
        breaks("B1", ethernet.destination != self.own_mac() && !ethernet.is_broadcast())?;
        breaks("B3", reply.broken)?;
        let kind = reply.kind().ok_or("B1")?;
        breaks("B1", reply.address_once(dhcp::OPTION_SERVER) != Some(self.server()))?;
        Ok(kind)
    }

    fn lesson_of_ack(&self, reply: &Message, open: &Transaction) -> Lesson {
        match reply.number_once(dhcp::OPTION_LEASE_TIME) {
            Some(seconds) if seconds > 0 && self.may_be_leased(reply.yours) => Lesson::Bind {
                address: reply.yours,
                seconds,
                requested: open.since,
                is_time_asked: open.wish.seconds.is_some(),
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
        let is_of_port = ip.ports().is_some_and(|(_, own)| {
            self.config
                .published
                .iter()
                .any(|published| (published.protocol, published.port) == (ip.protocol, own))
        });
        let is_doubtful = if self.is_stateful() {
            ip.is_fragment()
                || super::vm::check_transport(&ip).is_err()
                || self.fate(Origin::Outside, &ip, now) == Fate::Perhaps
        } else {
            // It may be one of a flow that has ended.
            is_of_port || (self.records && self.may_have_ended)
        };
        if is_doubtful && !matches!(ip.udp_ports(), Some((_, 68))) {
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
        let Some(kind) = reply.kind() else { return false };
        if ip.udp_ports() == Some((4011, 68)) {
            let is_fresh = |at| now.saturating_since(at) < FRESH && !is_end_of_time(now);
            return self.boots.last().is_some_and(|&(xid, at)| xid == reply.xid && is_fresh(at))
                && kind == dhcp::ACK
                && self.is_well_made(ethernet, ip, &reply);
        }
        let Some((xid, question, at)) = self.newest else { return false };
        let own = self.lease_at(now).map(|lease| lease.address);
        let to = |address| ip.destination == address || ip.destination.is_broadcast();
        let is_answer = match (question, kind) {
            (dhcp::DISCOVER, dhcp::OFFER) | (dhcp::REQUEST, dhcp::ACK) => {
                to(reply.yours) && self.gives_an_address(&reply)
            }
            (dhcp::REQUEST, dhcp::NAK) => {
                let gives_nothing = reply.yours.is_unspecified() && !reply.has(dhcp::OPTION_LEASE_TIME);
                gives_nothing && ip.destination.is_broadcast()
            }
            // B8
            (dhcp::INFORM, dhcp::ACK) => own.is_some_and(|own| {
                let lasts = !reply.has(dhcp::OPTION_LEASE_TIME)
                    || reply.number_once(dhcp::OPTION_LEASE_TIME).is_some();
                (reply.yours.is_unspecified() || reply.yours == own) && to(own) && lasts
            }),
            _ => false,
        };
        is_answer
            && reply.xid == xid
            && now.saturating_since(at) < FRESH
            && self.is_well_made(ethernet, ip, &reply)
    }

    fn gives_an_address(&self, reply: &Message) -> bool {
        self.may_be_leased(reply.yours)
            && reply.number_once(dhcp::OPTION_LEASE_TIME).is_some_and(|seconds| seconds > 0)
    }

    /// Whether a reply is as every server makes it.
    fn is_well_made(&self, ethernet: &Ethernet<'_>, ip: &Ipv4<'_>, reply: &Message) -> bool {
        let resolvers = reply.all(dhcp::OPTION_RESOLVERS).concat();
        let datagram_is_whole =
            packet::number16(ip.payload, 4).is_some_and(|length| usize::from(length) == ip.payload.len());
        datagram_is_whole
            && ip.header_length == 20
            && ip.header_is_right
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
    pub(super) fn after_host(&mut self, frame: &[u8], now: Timestamp, forwarded: bool) -> Vec<Outcome> {
        let unchanged = Outcome::exactly(self.lease_at(now).copied());
        let Some((reply, lesson)) = self.lesson(frame, now).filter(|_| forwarded) else {
            return self.after_unasked(frame, now);
        };
        if is_of_boot_server(frame) {
            return vec![unchanged];
        }
        let lesson = match (reply.kind(), lesson) {
            (Some(dhcp::OFFER), _) => {
                self.offered = Some((reply.yours, now));
                self.offer_may_be_over = false;
                let discovers = |open: &&mut Transaction| open.xid == reply.xid && open.wish.at_once;
                for open in self.transactions.iter_mut().filter(discovers) {
                    open.unanswered = open.unanswered.saturating_sub(1);
                }
                return vec![unchanged];
            }
            (_, lesson) => lesson,
        };
        self.newest = self.newest.filter(|(xid, ..)| *xid != reply.xid);
        self.close(reply.xid);
        match lesson {
            Lesson::Nothing => vec![unchanged],
            Lesson::Revoke => {
                self.offer_may_be_over = true;
                self.after = Some(Believed::Nothing);
                vec![Outcome::Unbound]
            }
            Lesson::Bind { address, seconds, requested, is_time_asked, resolvers } => {
                self.offer_may_be_over = true;
                self.is_time_asked = is_time_asked;
                // B9: a given address has no end.
                let is_endless = seconds == u32::MAX || self.given.is_some();
                let lasts = (!is_endless).then(|| Duration::from_secs(seconds.into()));
                if !is_time_asked {
                    self.default_time = lasts;
                }
                let end = lasts.map(|lasts| requested.saturating_add(lasts));
                if end.is_some_and(|end| end <= now) {
                    self.after = Some(Believed::Expired(address));
                    return vec![Outcome::Unbound];
                }
                let sane: Vec<_> =
                    resolvers.into_iter().filter(|&resolver| self.may_resolve(resolver, address)).collect();
                // Those that every client uses must be open; more than a lease can hold need not.
                let first: Resolvers = sane.iter().copied().take(3).collect();
                vec![Outcome::Bound {
                    address,
                    server: self.server(),
                    expires: end,
                    resolvers: (first.iter().collect(), sane),
                }]
            }
        }
    }

    /// B7: what a frame for the VM that teaches nothing tells of the server.
    fn after_unasked(&mut self, frame: &[u8], now: Timestamp) -> Vec<Outcome> {
        let Some(lease) = self.lease_at(now).copied() else { return vec![Outcome::Unbound] };
        let unchanged = Outcome::exactly(Some(lease));
        let Some(ethernet) = Ethernet::read(frame).filter(|ethernet| ethernet.ether_type == IPV4) else {
            return vec![unchanged];
        };
        let Some(ip) = Ipv4::read(ethernet.body) else { return vec![unchanged] };
        let reply = ip.udp_ports().filter(|&(_, to)| to == 68).and_then(|_| read_reply(&ip));
        let Some(reply) = reply else { return vec![unchanged] };
        let to_yours = ip.destination == reply.yours || ip.destination.is_broadcast();
        let boots = ip.udp_ports() == Some((4011, 68));
        if boots || self.check_server(&ethernet, &ip, &reply) != Ok(dhcp::ACK) || !to_yours {
            return vec![unchanged];
        }
        let contradicted = if reply.yours != lease.address {
            self.after = Some(Believed::Nothing);
            Outcome::Unbound
        } else {
            let seconds = reply.number_once(dhcp::OPTION_LEASE_TIME);
            let left = match seconds {
                None | Some(0 | u32::MAX) => lease,
                Some(_) if self.given.is_some() => lease,
                Some(seconds) => super::capped(lease, now, Duration::from_secs(seconds.into())),
            };
            if left.is_valid_at(now) {
                Outcome::exactly(Some(left))
            } else {
                // The end of time.
                self.after = Some(Believed::Expired(lease.address));
                Outcome::Unbound
            }
        };
        if self.gives_an_address(&reply) && self.is_well_made(&ethernet, &ip, &reply) {
            vec![contradicted]
        } else {
            vec![unchanged, contradicted]
        }
    }

    fn lesson(&self, frame: &[u8], now: Timestamp) -> Option<(Message, Lesson)> {
        let ethernet = Ethernet::read(frame).filter(|ethernet| ethernet.ether_type == IPV4)?;
        let ip = Ipv4::read(ethernet.body)?;
        let reply = ip.udp_ports().filter(|&(_, to)| to == 68).and_then(|_| read_reply(&ip))?;
        let lesson = self.check_reply(&ethernet, &ip, &reply, now).ok()?;
        Some((reply, lesson))
    }

    fn close(&mut self, xid: u32) {
        self.transactions.retain_mut(|open| {
            let is_awaited = open.wish.binds() && open.unanswered > 1;
            if open.xid == xid && is_awaited {
                open.unanswered -= 1;
                open.void = true;
            }
            open.xid != xid || is_awaited
        });
    }
}

/// B6: whether a frame with a reply is the boot server's.
fn is_of_boot_server(frame: &[u8]) -> bool {
    let ip = Ethernet::read(frame).and_then(|ethernet| Ipv4::read(ethernet.body));
    ip.is_some_and(|ip| ip.udp_ports() == Some((4011, 68)))
}

/// The BOOTP reply with the cookie that a UDP packet holds.
fn read_reply(ip: &Ipv4<'_>) -> Option<Message> {
    Message::read(ip.payload.get(8..)?).filter(|message| message.op == 2)
}
