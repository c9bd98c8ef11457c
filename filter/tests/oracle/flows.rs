//! Flows: the rules F, and what P3 and P4 make of them. A list of flows that is searched from its begin, each with the time
//! of its last packet.

use std::net::Ipv4Addr;
use std::time::Duration;

use softnet_filter::{Action, Origin, Policy, Timestamp};

use super::packet::{Ethernet, ICMP, Ipv4, TCP, UDP, number16};
use super::{Oracle, Rule, To, breaks, vm, world};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Whether a packet belongs to a flow. A flow ends at its limit or within a second after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Member,
    Perhaps,
    Stranger,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ends {
    protocol: u8,
    peer: Ipv4Addr,
    own_port: u16,
    peer_port: u16,
}

#[derive(Debug, Clone)]
pub struct Flow {
    ends: Ends,
    origin: Origin,
    /// Somebody has answered; of TCP: the handshake is complete.
    answered: bool,
    closing: bool,
    /// Of TCP: what the acknowledgement of the answer has to be.
    awaited: Option<u32>,
    last: Timestamp,
    /// The filter may have forgotten it and begun another.
    doubtful: bool,
}

impl Flow {
    fn limit(&self) -> Duration {
        Duration::from_secs(match (self.ends.protocol, self.answered) {
            (TCP, _) if self.closing => 4 * 60,
            (TCP, true) => 2 * 3_600 + 4 * 60,
            (UDP, false) => 30,
            (TCP | ICMP, _) => 60,
            _ => 5 * 60,
        })
    }

    fn fate(&self, now: Timestamp) -> Fate {
        let idle = now.saturating_since(self.last);
        if idle >= self.limit() + Duration::from_secs(1) {
            Fate::Stranger
        } else if self.doubtful || idle >= self.limit() {
            Fate::Perhaps
        } else {
            Fate::Member
        }
    }
}

/// The first fragment of a packet that has passed.
#[derive(Debug, Clone)]
pub struct Begun {
    sender: Origin,
    peer: Ipv4Addr,
    protocol: u8,
    id: u16,
    at: Timestamp,
}

fn peer(sender: Origin, ip: &Ipv4<'_>) -> Ipv4Addr {
    if sender == Origin::Vm { ip.destination } else { ip.source }
}

fn flags(ip: &Ipv4<'_>) -> u8 {
    ip.payload.get(13).copied().unwrap_or(0)
}

/// F1: the flow of a packet that is neither an ICMP error nor a later fragment.
fn ends(sender: Origin, ip: &Ipv4<'_>) -> Option<Ends> {
    let (source, destination) = match ip.protocol {
        TCP | UDP => ip.ports()?,
        ICMP if matches!(ip.payload.first(), Some(0 | 8)) => {
            let identifier = number16(ip.payload, 4)?;
            return Some(Ends { protocol: ICMP, peer: peer(sender, ip), own_port: identifier, peer_port: 0 });
        }
        ICMP => return None,
        _ => (0, 0),
    };
    let (own_port, peer_port) =
        if sender == Origin::Vm { (source, destination) } else { (destination, source) };
    Some(Ends { protocol: ip.protocol, peer: peer(sender, ip), own_port, peer_port })
}

/// F1: whether a packet can begin a flow.
pub fn can_begin(ip: &Ipv4<'_>) -> bool {
    !ip.is_fragment()
        && match ip.protocol {
            TCP => flags(ip) & (SYN | ACK | FIN | RST) == SYN,
            ICMP => ip.payload.first() == Some(&8),
            _ => true,
        }
}

/// The flow that an ICMP error quotes, and who sent the quoted packet.
fn quoted(sender: Origin, ip: &Ipv4<'_>) -> Option<(Ends, Ipv4Addr)> {
    if ip.protocol != ICMP || ip.is_fragment() || !matches!(ip.payload.first(), Some(3 | 11 | 12)) {
        return None;
    }
    let quote = ip.payload.get(8..)?;
    let header_length = usize::from(quote.first()? & 0x0f) * 4;
    if !(0x45..=0x4f).contains(quote.first()?) || quote.len() < 20 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(quote[at], quote[at + 1], quote[at + 2], quote[at + 3]);
    let data = quote.get(header_length..header_length + 8)?;
    if number16(quote, 6)? & 0x1fff != 0 {
        return None;
    }
    let protocol = quote[9];
    let (source, destination) = match protocol {
        TCP | UDP => (number16(data, 0)?, number16(data, 2)?),
        ICMP if matches!(data[0], 0 | 8) => {
            let peer = if sender == Origin::Vm { address(12) } else { address(16) };
            let ends = Ends { protocol, peer, own_port: number16(data, 4)?, peer_port: 0 };
            return Some((ends, address(12)));
        }
        ICMP => return None,
        _ => (0, 0),
    };
    let ends = if sender == Origin::Vm {
        Ends { protocol, peer: address(12), own_port: destination, peer_port: source }
    } else {
        Ends { protocol, peer: address(16), own_port: source, peer_port: destination }
    };
    Some((ends, address(12)))
}

impl Oracle {
    pub fn is_stateful(&self) -> bool {
        self.config.policy.rules().iter().any(|rule| rule.entry.origin.is_some())
    }

    fn flow(&self, ends: Ends, now: Timestamp) -> Option<&Flow> {
        self.flows.iter().find(|flow| flow.ends == ends && flow.fate(now) != Fate::Stranger)
    }

    /// F2, F5: whether a packet is one of a flow.
    pub fn fate(&self, sender: Origin, ip: &Ipv4<'_>, now: Timestamp) -> Fate {
        if ip.offset > 0 {
            let belongs = |begun: &&Begun| {
                (begun.sender, begun.peer, begun.protocol, begun.id)
                    == (sender, peer(sender, ip), ip.protocol, ip.identification)
                    && now.saturating_since(begun.at) < Duration::from_secs(30)
            };
            return if self.fragments.iter().any(|begun| belongs(&begun)) {
                Fate::Member
            } else {
                Fate::Stranger
            };
        }
        let ends = match quoted(sender, ip) {
            // An error goes to whoever sent the packet.
            Some((ends, source)) => {
                let is_told = sender == Origin::Outside || source == ip.destination;
                let is_own = sender == Origin::Vm || source == ip.destination;
                if !is_told || !is_own {
                    return Fate::Stranger;
                }
                ends
            }
            None => match ends(sender, ip) {
                Some(ends) => ends,
                None => return Fate::Stranger,
            },
        };
        match self.flow(ends, now) {
            Some(flow) if flow.closing && can_begin(ip) && quoted(sender, ip).is_none() => Fate::Stranger,
            Some(flow) => flow.fate(now),
            None => Fate::Stranger,
        }
    }

    /// Whether a frame holds a packet of a flow for sure.
    pub fn is_member(&self, sender: Origin, frame: &[u8], now: Timestamp) -> bool {
        let ip = Ethernet::read(frame)
            .filter(|ethernet| ethernet.ether_type == 0x0800)
            .and_then(|ethernet| Ipv4::read(ethernet.body));
        ip.is_some_and(|ip| self.fate(sender, &ip, now) == Fate::Member)
    }

    /// F2: whether a neighbour has a flow that lives for sure, or may. What is merely remembered (P6) opens nothing.
    pub fn fate_of_peer(&self, address: Ipv4Addr, now: Timestamp) -> Fate {
        let opens = |flow: &&Flow| {
            flow.ends.peer == address
                && (self.is_stateful()
                    || (flow.origin == Origin::Outside
                        && self.is_published(flow.ends.protocol, flow.ends.own_port)))
        };
        let fates = self.flows.iter().filter(opens).map(|flow| flow.fate(now));
        fates.fold(Fate::Stranger, |best, fate| match (best, fate) {
            (Fate::Member, _) | (_, Fate::Member) => Fate::Member,
            (Fate::Perhaps, _) | (_, Fate::Perhaps) => Fate::Perhaps,
            _ => Fate::Stranger,
        })
    }

    /// P4: whether a packet of the VM answers what has reached a published port.
    pub fn answers_published(&self, ip: &Ipv4<'_>, now: Timestamp) -> Fate {
        let ends = match quoted(Origin::Vm, ip) {
            Some((ends, source)) if source == ip.destination => Some(ends),
            Some(_) => None,
            None => ends(Origin::Vm, ip),
        };
        let Some(ends) = ends.filter(|_| !ip.is_fragment()) else { return Fate::Stranger };
        if !self.is_published(ends.protocol, ends.own_port) {
            return Fate::Stranger;
        }
        let flow = self.flow(ends, now).filter(|flow| flow.origin == Origin::Outside);
        match flow {
            Some(flow) if flow.closing && can_begin(ip) => Fate::Stranger,
            flow => flow.map_or(Fate::Stranger, |flow| flow.fate(now)),
        }
    }

    fn is_published(&self, protocol: u8, port: u16) -> bool {
        self.config.published.iter().any(|published| (published.protocol, published.port) == (protocol, port))
    }

    /// P3, P4: what the entries say about what others begin.
    fn check_incoming(&self, ip: &Ipv4<'_>, to_vm_alone: bool) -> Result<(), Rule> {
        let ports = ip.ports();
        let port = ports.map(|(source, _)| (ip.protocol, source));
        let is_published = to_vm_alone && ports.is_some_and(|(_, own)| self.is_published(ip.protocol, own));
        match world::deciding(&self.config, Origin::Outside, ip.source, port) {
            Some((Action::Block, true)) => Err("P4"),
            Some((Action::Block, false)) => breaks("P4", !is_published),
            _ => Ok(()),
        }
    }

    /// P4, F: why a packet must not reach the VM under a stateful policy.
    pub fn check_stateful_arrival(&self, ip: &Ipv4<'_>, now: Timestamp) -> Result<(), Rule> {
        if vm::check_transport(ip).is_err() {
            // What the VM would not accept anyway.
            return Ok(());
        }
        if world::is_multicast(ip.destination)
            || ip.destination.is_broadcast()
            || self.is_edge(ip.destination)
        {
            return self.check_incoming(ip, false);
        }
        breaks("F1", self.lease_at(now).is_none_or(|lease| lease.address != ip.destination))?;
        if ip.is_fragment() {
            breaks("F5", world::has_ports(&self.config, ip.source))?;
            return breaks("F5", self.fate(Origin::Outside, ip, now) == Fate::Stranger);
        }
        if self.fate(Origin::Outside, ip, now) != Fate::Stranger {
            return Ok(());
        }
        self.check_incoming(ip, true)?;
        breaks("F1", !can_begin(ip))
    }

    /// Whether the VM may answer a peer at all: D1, D9, H2.
    fn may_answer(&self, ends: Ends, now: Timestamp) -> bool {
        let Some(own) = self.lease_at(now).map(|lease| lease.address) else { return false };
        let to = To::of_ends(ends.peer, ends.protocol, ends.peer_port);
        let is_world = world::is_globally_reachable(ends.peer) && !self.is_on_link(ends.peer);
        let is_closed = self.is_never(ends.peer, own) || (self.is_host_only() && is_world);
        !is_closed && !world::is_multicast(ends.peer) && !self.leads_away(&to)
    }

    fn may_send(&self, ends: Ends, now: Timestamp) -> bool {
        let Some(own) = self.lease_at(now).map(|lease| lease.address) else { return false };
        self.check_destination(&To::of_ends(ends.peer, ends.protocol, ends.peer_port), own, now).is_ok()
    }

    /// Takes note of a packet that has passed. `doubtful`: it may have changed flows or not.
    pub fn note_packet(&mut self, sender: Origin, frame: &[u8], doubtful: bool, now: Timestamp) {
        let Some(ethernet) = Ethernet::read(frame).filter(|ethernet| ethernet.ether_type == 0x0800) else {
            return;
        };
        let Some(ip) = Ipv4::read(ethernet.body) else { return };
        let own = self.lease_at(now).map(|lease| lease.address);
        let is_own =
            own.is_some_and(|own| own == if sender == Origin::Vm { ip.source } else { ip.destination });
        let is_dhcp = matches!(ip.udp_ports(), Some((68, 67) | (_, 68)));
        if !is_own || is_dhcp || world::is_multicast(ip.destination) || vm::check_transport(&ip).is_err() {
            return;
        }
        if ip.is_fragment() {
            self.note_fragment(sender, &ip, now);
        }
        if ip.offset > 0 || quoted(sender, &ip).is_some() {
            return;
        }
        let Some(ends) = ends(sender, &ip) else { return };
        let known = self.flows.iter().position(|flow| flow.ends == ends);
        let alive = known.filter(|&at| {
            let flow = &self.flows[at];
            flow.fate(now) != Fate::Stranger && !(flow.closing && can_begin(&ip))
        });
        match alive {
            Some(at) => {
                let flow = &mut self.flows[at];
                flow.doubtful |= doubtful || flow.fate(now) == Fate::Perhaps;
                note_change(flow, sender, &ip);
                flow.last = now;
            }
            None if can_begin(&ip) && self.begins(sender, ends, now) => {
                known.map(|at| self.flows.remove(at));
                self.flows.push(Flow {
                    ends,
                    origin: sender,
                    answered: false,
                    closing: false,
                    awaited: None,
                    last: now,
                    doubtful,
                });
            }
            None => {}
        }
    }

    /// Whether an allowed packet that can begin a flow does so.
    fn begins(&self, sender: Origin, ends: Ends, now: Timestamp) -> bool {
        if sender == Origin::Vm {
            return self.is_stateful() || self.records;
        }
        let is_needed = || self.is_published(ends.protocol, ends.own_port) && !self.may_send(ends, now);
        self.may_answer(ends, now) && (self.is_stateful() || self.records || is_needed())
    }

    fn note_fragment(&mut self, sender: Origin, ip: &Ipv4<'_>, now: Timestamp) {
        if ip.offset > 0 || self.fate(sender, ip, now) == Fate::Stranger {
            return;
        }
        let begun =
            Begun { sender, peer: peer(sender, ip), protocol: ip.protocol, id: ip.identification, at: now };
        self.fragments.push(begun);
    }

    /// P6, F6: takes another policy; whether it may.
    pub fn set_policy(&mut self, policy: &Policy, now: Timestamp) -> bool {
        if policy.bridge_isolation() != self.config.policy.bridge_isolation() {
            return false;
        }
        self.config.policy = policy.clone();
        self.end_forbidden(now);
        true
    }

    /// F6: ends the flows that are forbidden now.
    pub fn end_forbidden(&mut self, now: Timestamp) {
        self.fragments.clear();
        self.may_have_ended = true;
        let flows = std::mem::take(&mut self.flows);
        let is_allowed = |flow: &Flow| {
            let Ends { protocol, peer, own_port, peer_port } = flow.ends;
            let has_ports = matches!(protocol, TCP | UDP);
            let is_published = self.is_published(protocol, own_port);
            match flow.origin {
                Origin::Vm => self.may_send(flow.ends, now),
                Origin::Outside if self.is_stateful() => {
                    let port = has_ports.then_some((protocol, peer_port));
                    let decision = world::deciding(&self.config, Origin::Outside, peer, port);
                    let is_blocked = decision.is_some_and(|(action, is_longer)| {
                        action == Action::Block && (is_longer || !is_published)
                    });
                    !is_blocked && self.may_answer(flow.ends, now)
                }
                Origin::Outside => {
                    (is_published && self.may_answer(flow.ends, now)) || self.may_send(flow.ends, now)
                }
            }
        };
        // Where nothing but published ports has flows, nothing is noted of the others that still live.
        let is_noted = |flow: &Flow| {
            self.is_stateful()
                || self.records
                || (flow.origin == Origin::Outside
                    && self.is_published(flow.ends.protocol, flow.ends.own_port))
        };
        let kept = flows.into_iter().filter(|flow| is_allowed(flow));
        let kept = kept.map(|flow| Flow { doubtful: flow.doubtful || !is_noted(&flow), ..flow }).collect();
        // Without a use for flows they are forgotten.
        let has_use = self.is_stateful() || self.records || !self.config.published.is_empty();
        self.flows = if has_use { kept } else { vec![] };
    }

    /// Who is given an address inherits nothing (H3).
    pub fn forget_flows(&mut self) {
        self.flows.clear();
        self.fragments.clear();
    }
}

/// F3: how a packet changes its flow.
fn note_change(flow: &mut Flow, sender: Origin, ip: &Ipv4<'_>) {
    let is_answer = sender != flow.origin;
    if ip.protocol != TCP {
        flow.answered |= is_answer;
        return;
    }
    let flags = flags(ip);
    let number =
        |at| ip.payload.get(at..at + 4).map(|four| u32::from_be_bytes(four.try_into().expect("four")));
    if flow.answered {
        flow.closing |= flags & (FIN | RST) != 0;
    } else if is_answer && flags & (SYN | ACK | RST) == SYN | ACK {
        flow.awaited = number(4).map(|sequence| sequence.wrapping_add(1));
    } else if !is_answer && flags & (SYN | RST | ACK) == ACK && flow.awaited == number(8) {
        flow.answered = true;
        flow.closing = flags & FIN != 0;
    }
}
