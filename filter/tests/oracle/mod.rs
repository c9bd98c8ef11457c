//! A second, independent judge of the port's rules: small, slow and obvious.
//!
//! It is written from the rules (`docs/rules.md`) and not from the filter: it has its own parsing, its own table of
//! addresses and its own state. For each frame it may say that the frame must pass ([`Opinion::MustPass`], a plainly
//! legitimate one), that it must not ([`Opinion::MustDrop`], with the rule that forbids it), or nothing. What follows
//! from a frame for the lease is checked too: only a matched ACK or NAK, the VM's own RELEASE or DECLINE, and the
//! clock may change it.
//!
//! Where it says nothing about a frame, it follows the filter: what has passed has been said, so that the state of
//! the two stays the same and the next frame is judged on equal terms.
//!
//! # How it reads the rules where they leave room
//!
//! - L3: what would pass on a link with a higher MTU is what may be answered, and what would have to pass there must be;
//!   more than 23 answers at once or 10.5 a second are over the rate, fewer than 18 and 9.5 are under it.
//! - L4: padding to 60 bytes may hold anything; that it *must* pass is only said of zeros.
//! - A3: "just offered" is the last address offered and no other. How long that is, the oracle leaves open, but ten
//!   seconds it must be, unless an ACK, NAK, RELEASE or DECLINE ends the dialogue before.
//! - A5: an ARP reply may go to whoever asked; an on-link address needs a rule that allows it, even in a network of
//!   public addresses, since L5 wants an explicit one.
//! - S3: IGMP to a group is judged alike with Router Alert and without. What hosts say: reports of three versions and
//!   leaves, of the length that they count, to the group that they are about or to the routers, with a TTL of 1.
//! - F: a flow ends between its limit and a second later; of one that may be over nothing is said. The budgets are beyond
//!   what a scene reaches.
//! - F1: what the VM would not accept (a cut transport header) may pass or not. D1, D9 and H2 hold for answers too, so what
//!   comes from there begins no flow and passes.
//! - L3: a packet that is too long may begin a flow.
//! - P2: an entry with a protocol alone is one for all its ports, 0 too; a first fragment shows its ports.
//! - S4: the offset counts from the packet's begin, so that the whole reassembled packet, header and all, must fit
//!   into 65,535 bytes. A resolver and on-link addresses take no fragments whatever the flags; the host takes those of
//!   UDP and ICMP where it is open.
//! - C1: a UDP packet from port 67 or to port 68 never leaves, wherever it goes. To port 67 of something that
//!   could be a DHCP server here (gateway, on-link, broadcast) it leaves only from 68; from 68 to 67 only as DHCP.
//! - C5: option 52 with a value that hides options; a client identifier of any assigned hardware type, or a DUID with
//!   or without the type 255 before it, names hardware.
//! - C6: a DECLINE of another address than the own may or may not end the lease.
//! - C7: more than 13 at once or 1.3 a second is over the rate, fewer than 8 and 0.8 is under it.
//!   The first eight DECLINEs are under it in any case.
//!   In the clock's last minute, after 584 years, nothing is said about rates and offers.
//! - D6: the types of errors and of echo are known, timestamp replies may be.
//! - D9: no flag opens a global destination; what it opens beyond the network else is left open.
//! - C5: an identifier that none of the last four was is a new one.
//! - C9: option 81 holds its three fixed bytes, and a name as text or in the format of DNS.
//! - C10: the last lease is known by its end; an ARP reply from it goes to the gateway alone. Where none was ever known,
//!   a REQUEST whose source and `ciaddr` are two different addresses of the subnet may pass or not.
//! - B1: a reply to a DISCOVER is an OFFER; only a reply to a REQUEST makes or ends a lease, or to a DISCOVER that asks
//!   for rapid commit. Sixteen transactions are open; the one used longest ago is forgotten first.
//! - B7: a lease counts from its REQUEST (RFC 2131, section 4.4.1). A REQUEST that names no address could be for any.
//!   A REQUEST without option 51 for a lease that was asked for with one caps it at what the server last gave to a
//!   REQUEST without, or at 60 s. A number binds for 60 s after its last message, and the REQUEST may follow its
//!   DISCOVER, after an OFFER if that asks for rapid commit. What a REQUEST makes void are the open ones that ask for something else; a number with answers on their
//!   way stays void; one DISCOVER with rapid commit that was said again binds no other address than it asks for. An ACK that answers nothing caps the lease too, if it gives the same address.
//! - B6: to the boot server goes nothing that could move a lease: no RELEASE, DECLINE or rapid commit, no other address
//!   than the own. What it says is an OFFER or an ACK that gives no other address. The last four questions wait for
//!   answers for a minute; ten seconds they must.
//! - B6: DHCP-shaped is UDP to port 68 that holds a BOOTP reply with the cookie, and any fragment from 67 to 68.
//! - I1: what the VM would not accept anyway (a wrong header checksum, say) may pass or not.
#![allow(dead_code, reason = "each test file that includes the oracle uses its own part of it")]

mod answers;
pub mod dhcp;
mod flows;
mod host;
pub mod packet;
mod vm;
pub mod world;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use answers::Answer;
use flows::{Begun, Flow};
use packet::Ipv4;
use softnet_filter::{
    Action, Direction, DropReason, ExposedPort, Lease, NetType, Origin, Policy, Port, PortConfig, Resolvers,
    Timestamp, Verdict,
};

/// The number of a rule, such as `L1`.
pub type Rule = &'static str;

/// What the oracle says about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Opinion {
    MustPass,
    MustDrop(Rule),
    Nothing,
}

/// What a reply that passes may do to the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lesson {
    Nothing,
    Bind {
        address: Ipv4Addr,
        seconds: u32,
        requested: Timestamp,
        is_time_asked: bool,
        resolvers: Vec<Ipv4Addr>,
    },
    Revoke,
}

/// Where a packet of the VM goes.
#[derive(Debug, Clone, Copy)]
struct To {
    address: Ipv4Addr,
    protocol: u8,
    port: Option<u16>,
    is_fragment: bool,
}

impl To {
    fn of(ip: &Ipv4<'_>) -> Self {
        let port = ip.ports().map(|(_, port)| port);
        Self { address: ip.destination, protocol: ip.protocol, port, is_fragment: ip.is_fragment() }
    }

    /// One of a flow.
    fn of_ends(address: Ipv4Addr, protocol: u8, port: u16) -> Self {
        let has_ports = matches!(protocol, packet::TCP | packet::UDP);
        Self { address, protocol, port: has_ports.then_some(port), is_fragment: false }
    }
}

/// What a message of the VM asks of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    kind: u8,
    /// A DISCOVER with rapid commit.
    at_once: bool,
    requested: Option<Ipv4Addr>,
    client: Option<Ipv4Addr>,
    seconds: Option<u32>,
    client_id: Option<Vec<u8>>,
}

impl Wish {
    /// Whether the server may give or take an address because of it.
    fn binds(&self) -> bool {
        self.kind == dhcp::REQUEST || self.at_once
    }

    fn names(&self) -> Vec<Ipv4Addr> {
        self.requested.into_iter().chain(self.client).collect()
    }
}

/// A transaction that the VM began.
#[derive(Debug, Clone)]
struct Transaction {
    xid: u32,
    wish: Wish,
    /// When the first message with this wish left, and when the last.
    since: Timestamp,
    last: Timestamp,
    /// Messages that may still be answered.
    unanswered: usize,
    /// No answer to it counts any more (B7).
    void: bool,
    /// Its number stood for another wish before.
    reused: bool,
    /// Tells which one was used longest ago.
    used: u64,
}

impl Transaction {
    fn is_old(&self, now: Timestamp) -> bool {
        now.saturating_since(self.last) >= Duration::from_secs(60)
    }

    /// Whether an ACK with this address can answer it.
    fn may_give(&self, address: Ipv4Addr) -> bool {
        let names = self.wish.names();
        let is_said_again = self.wish.at_once && self.unanswered > 1;
        if is_said_again && self.wish.requested.is_some_and(|requested| requested != address) {
            return false;
        }
        !self.reused || self.wish.at_once || names.is_empty() || names.contains(&address)
    }
}

/// C10: what a VM without a lease may believe that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Believed {
    Anything,
    Expired(Ipv4Addr),
    Nothing,
}

/// A token bucket in nanoseconds.
#[derive(Debug, Clone)]
struct Bucket {
    capacity: f64,
    per_second: f64,
    tokens: f64,
    at: Timestamp,
}

impl Bucket {
    fn new(capacity: f64, per_second: f64) -> Self {
        Self { capacity, per_second, tokens: capacity, at: Timestamp::from_nanos(0) }
    }

    fn tokens(&self, now: Timestamp) -> f64 {
        let seconds = now.saturating_since(self.at).as_secs_f64();
        (self.tokens + seconds * self.per_second).min(self.capacity)
    }

    fn take(&mut self, now: Timestamp) {
        self.tokens = (self.tokens(now) - 1.0).max(0.0);
        self.at = now;
    }
}

/// The oracle's picture of one VM.
#[derive(Debug, Clone)]
pub struct Oracle {
    config: PortConfig,
    lease: Option<Lease>,
    /// B9: the address that the VM has from the start.
    given: Option<Ipv4Addr>,
    offered: Option<(Ipv4Addr, Timestamp)>,
    /// Something has ended the dialogue in which the address was offered.
    offer_may_be_over: bool,
    transactions: Vec<Transaction>,
    /// The last message that the VM sent, if nothing has answered it: its transaction, its type, when.
    newest: Option<(u32, u8, Timestamp)>,
    /// B6: what the VM has asked the boot server, and when it did last; the newest at the end.
    boots: Vec<(u32, Timestamp)>,
    /// The last four, the one used longest ago first.
    client_ids: Vec<Vec<u8>>,
    believed: Believed,
    /// What it may believe after this frame, if the frame leaves it without a lease.
    after: Option<Believed>,
    /// Whether the lease's REQUEST said how long it should last.
    is_time_asked: bool,
    /// What the server gives to a REQUEST that does not.
    default_time: Option<Duration>,
    /// H2: what leads to other VMs.
    exposed: Vec<ExposedPort>,
    /// Messages so far.
    messages: u64,
    /// Like `over` and `under`, of new client identifiers.
    over_ids: Bucket,
    under_ids: Bucket,
    /// The addresses that the VM has declined.
    declines: usize,
    /// Fills too fast: when it is empty, the VM is over the rate for sure.
    over: Bucket,
    /// Fills too slowly: while it holds anything, the VM is under the rate for sure.
    under: Bucket,
    /// Like `over` and `under`, of the answers that the VM gets.
    over_answers: Bucket,
    under_answers: Bucket,
    flows: Vec<Flow>,
    /// F5: first fragments that have passed.
    fragments: Vec<Begun>,
    /// P6: flows are remembered whatever the policy.
    records: bool,
    /// F6: something has changed what is allowed.
    may_have_ended: bool,
}

/// How long after a message its reply is certainly still welcome.
const FRESH: Duration = Duration::from_secs(10);

impl Oracle {
    pub fn new(config: &PortConfig) -> Self {
        Self {
            config: config.clone(),
            lease: None,
            given: None,
            offered: None,
            offer_may_be_over: false,
            declines: 0,
            transactions: Vec::new(),
            newest: None,
            boots: Vec::new(),
            client_ids: Vec::new(),
            believed: Believed::Anything,
            after: None,
            is_time_asked: false,
            default_time: None,
            exposed: Vec::new(),
            messages: 0,
            over_ids: Bucket::new(4.1, 1.0 / 149.0),
            under_ids: Bucket::new(4.0, 1.0 / 151.0),
            over: Bucket::new(13.0, 1.3),
            under: Bucket::new(8.0, 0.8),
            over_answers: Bucket::new(23.0, 10.5),
            under_answers: Bucket::new(18.0, 9.5),
            flows: Vec::new(),
            fragments: Vec::new(),
            records: false,
            may_have_ended: false,
        }
    }

    /// What it says about a frame that the VM sends now.
    pub fn on_leaving(&self, frame: &[u8], now: Timestamp) -> Opinion {
        match self.must_not_leave(frame, now) {
            Some(rule) => Opinion::MustDrop(rule),
            None if self.must_leave(frame, now) => Opinion::MustPass,
            None => Opinion::Nothing,
        }
    }

    /// What it says about a frame that is on its way to the VM now.
    pub fn on_arriving(&self, frame: &[u8], now: Timestamp) -> Opinion {
        match self.must_not_arrive(frame, now) {
            Some(rule) => Opinion::MustDrop(rule),
            None if self.must_arrive(frame, now) => Opinion::MustPass,
            None => Opinion::Nothing,
        }
    }

    /// S1: the lease, if it is valid now.
    pub fn lease_at(&self, now: Timestamp) -> Option<&Lease> {
        self.lease.as_ref().filter(|lease| lease.expires.is_none_or(|expires| now < expires))
    }

    /// C10: what the VM may believe that it has.
    fn believed_at(&self, now: Timestamp) -> Believed {
        match &self.lease {
            Some(lease) if self.lease_at(now).is_none() => Believed::Expired(lease.address),
            Some(_) => Believed::Nothing,
            None => self.believed,
        }
    }

    /// C10: whether a VM without a lease may believe that it has this one.
    fn may_believe(&self, address: Ipv4Addr, now: Timestamp) -> bool {
        match self.believed_at(now) {
            Believed::Anything => self.may_be_leased(address),
            Believed::Expired(last) => address == last,
            Believed::Nothing => false,
        }
    }

    /// H1: takes the host's addresses.
    pub fn set_host_addresses(&mut self, addresses: &[Ipv4Addr]) {
        self.config.host_addresses = addresses.to_vec();
    }

    /// H2: takes the ports that lead to other VMs.
    pub fn set_exposed(&mut self, exposed: &[ExposedPort]) {
        self.exposed = exposed.to_vec();
    }

    /// H1: the gateway and every other address of the host.
    fn is_host(&self, address: Ipv4Addr) -> bool {
        address == self.gateway() || self.config.host_addresses.contains(&address)
    }

    /// The address last offered.
    pub fn offered(&self) -> Option<Ipv4Addr> {
        self.offered.map(|(address, _)| address)
    }

    /// The transaction of the VM's last message.
    pub fn newest_xid(&self) -> Option<u32> {
        self.newest.map(|(xid, ..)| xid)
    }

    fn own_mac(&self) -> [u8; 6] {
        self.config.vm_mac.octets()
    }

    fn gateway_mac(&self) -> [u8; 6] {
        self.config.gateway.mac.octets()
    }

    fn gateway(&self) -> Ipv4Addr {
        self.config.gateway.address
    }

    /// The DHCP server: the gateway, unless the configuration names another station.
    fn server(&self) -> Ipv4Addr {
        self.config.dhcp_server.map_or(self.gateway(), |server| server.address)
    }

    fn server_mac(&self) -> [u8; 6] {
        self.config.dhcp_server.map_or(self.gateway_mac(), |server| server.mac.octets())
    }

    fn is_on_link(&self, address: Ipv4Addr) -> bool {
        let subnet = self.config.gateway.subnet;
        world::covers(subnet.addr(), subnet.prefix_len(), address)
    }

    /// An address at the edge of the subnet, which is no host's.
    fn is_edge(&self, address: Ipv4Addr) -> bool {
        world::edges(self.config.gateway.subnet).contains(&address)
    }

    /// P2: what the entries say about a packet that the VM sends.
    fn rule_for(&self, to: &To) -> Option<Action> {
        let port = to.port.map(|port| (to.protocol, port));
        world::deciding(&self.config, Origin::Vm, to.address, port).map(|(action, _)| action)
    }

    fn is_host_only(&self) -> bool {
        self.config.net_type == NetType::Host
    }

    /// D5: handed out with the lease, and sane.
    fn is_resolver(&self, address: Ipv4Addr, now: Timestamp) -> bool {
        self.lease_at(now).is_some_and(|lease| {
            lease.resolvers.contains(address) && self.may_resolve(address, lease.address)
        })
    }

    fn may_resolve(&self, address: Ipv4Addr, own: Ipv4Addr) -> bool {
        !world::is_never(address) && !world::is_multicast(address) && !self.is_edge(address) && address != own
    }

    /// B2, B9: whether an address can be the VM's.
    fn may_be_leased(&self, address: Ipv4Addr) -> bool {
        self.given.is_none_or(|given| given == address) && self.may_be_a_hosts(address)
    }

    /// B2: whether it can be a VM's.
    fn may_be_a_hosts(&self, address: Ipv4Addr) -> bool {
        self.is_on_link(address)
            && !self.is_edge(address)
            && address != self.gateway()
            && address != self.server()
            && !world::is_never(address)
            && !world::is_multicast(address)
    }

    fn offered_lately(&self, address: Ipv4Addr, now: Timestamp) -> bool {
        let is_fresh = |at| now.saturating_since(at) < FRESH && !is_end_of_time(now);
        !self.offer_may_be_over && self.offered.is_some_and(|(offer, at)| offer == address && is_fresh(at))
    }
}

/// A port and the oracle that looks over its shoulder.
#[derive(Debug)]
pub struct Watched {
    pub port: Port,
    pub oracle: Oracle,
    /// What the oracle has said so far of frames from the VM and from the host, and how often.
    pub said: [BTreeMap<Opinion, usize>; 2],
    /// How often the VM was answered.
    pub answers: usize,
    /// How often because the policy refused.
    pub refusals: usize,
    /// Packets from the VM and from the host that passed as parts of flows.
    pub members: [usize; 2],
}

impl Watched {
    /// # Panics
    /// If the configuration makes no port.
    pub fn new(config: PortConfig) -> Self {
        let oracle = Oracle::new(&config);
        Self {
            port: Port::new(config).expect("a valid configuration"),
            oracle,
            said: Default::default(),
            answers: 0,
            refusals: 0,
            members: [0; 2],
        }
    }

    /// B9: gives the VM an address from the start.
    ///
    /// # Errors
    /// The disagreement, in words.
    pub fn give(&mut self, address: Ipv4Addr, resolvers: Resolvers, now: Timestamp) -> Result<(), String> {
        self.port.give(address, resolvers, now).map_err(|error| error.to_string())?;
        self.oracle.given = Some(address);
        let lease = Lease { address, server: self.oracle.server(), expires: None, resolvers };
        self.follow(&[Outcome::exactly(Some(lease))], now)
    }

    /// Gives the VM a lease that it had before, under this client identifier.
    ///
    /// # Errors
    /// The disagreement, in words.
    pub fn adopt(&mut self, lease: Lease, client_id: Option<&[u8]>, now: Timestamp) -> Result<(), String> {
        let is_taken = self.port.adopt(lease, client_id, now).is_ok();
        let is_right = self.oracle.lease_at(now).is_none()
            && lease.server == self.oracle.server()
            && self.oracle.may_be_a_hosts(lease.address)
            && lease.is_valid_at(now);
        if is_taken != is_right {
            return Err(format!("{lease:?} is taken: {is_taken}"));
        }
        if !is_taken {
            return self.advance(now);
        }
        self.oracle.client_ids.extend(client_id.map(<[u8]>::to_vec));
        // B7: for how long it was requested is not known.
        self.oracle.is_time_asked = true;
        self.oracle.offer_may_be_over = true;
        let may_resolve = |resolver: &Ipv4Addr| self.oracle.may_resolve(*resolver, lease.address);
        let resolvers = lease.resolvers.iter().filter(may_resolve).collect();
        self.follow(&[Outcome::exactly(Some(Lease { resolvers, ..lease }))], now)
    }

    /// C10: tells both which lease was the VM's last, and whether it had any.
    ///
    /// # Errors
    /// The disagreement, in words.
    pub fn set_last_lease(&mut self, last: Option<Ipv4Addr>, now: Timestamp) -> Result<(), String> {
        self.advance(now)?;
        self.port.set_last_lease(last);
        if self.oracle.lease_at(now).is_none() {
            let last = last.filter(|last| self.oracle.may_be_a_hosts(*last));
            self.oracle.believed = last.map_or(Believed::Nothing, Believed::Expired);
        }
        self.advance(now)
    }

    /// P6: from now on both remember flows whatever the policy.
    pub fn record_flows(&mut self) {
        self.port.record_flows();
        self.oracle.records = true;
    }

    /// Judges a frame of the VM by both.
    ///
    /// # Errors
    /// The disagreement, in words.
    pub fn vm(&mut self, frame: &[u8], now: Timestamp) -> Result<Verdict, String> {
        let opinion = self.oracle.on_leaving(frame, now);
        *self.said[0].entry(opinion).or_default() += 1;
        let verdict = self.port.from_vm(frame, now);
        agree("from the VM", opinion, verdict, frame)?;
        self.hear_answer(frame, opinion, verdict, now)
            .map_err(|error| format!("{error}, to\n{}", hex(frame)))?;
        if self.oracle.is_too_long(frame) {
            self.oracle.note_packet(Origin::Vm, frame, true, now);
        }
        if verdict.is_forward() {
            self.members[0] += usize::from(self.oracle.is_member(Origin::Vm, frame, now));
            self.oracle.note_packet(Origin::Vm, frame, false, now);
        }
        let allowed = self.oracle.after_vm(frame, now, verdict.is_forward());
        self.follow(&allowed, now)
            .map_err(|error| format!("{error}, after {verdict:?} of\n{}", hex(frame)))?;
        Ok(verdict)
    }

    /// What the VM is told.
    fn take_answers(&mut self) -> Vec<Vec<u8>> {
        let mut answers = Vec::new();
        while let Some((direction, own)) = self.port.poll_transmit() {
            // What the VM gives back now is no part of its own dialogue.
            if direction == Direction::FromHost {
                answers.push(own.to_vec());
            }
        }
        answers
    }

    /// L3, F6, J: compares what the VM is told about a frame with what it may be told.
    fn hear_answer(
        &mut self,
        frame: &[u8],
        opinion: Opinion,
        verdict: Verdict,
        now: Timestamp,
    ) -> Result<(), String> {
        let answers = self.take_answers();
        let is_too_long = self.oracle.is_too_long(frame);
        let has_ended = verdict == Verdict::Drop(DropReason::FlowEnded);
        let expected = if is_too_long {
            self.oracle.answer_to(frame, now)
        } else if has_ended {
            Answer::May
        } else {
            self.oracle.refusal_of(frame, opinion, verdict, now)
        };
        match (&answers[..], expected) {
            ([], Answer::Must) => Err(format!("no answer after {opinion:?}, {verdict:?}")),
            ([], _) => Ok(()),
            ([_], Answer::MustNot) => Err(format!("an answer after {opinion:?}, {verdict:?}")),
            ([answer], _) => {
                self.note_answer(now);
                let check = if is_too_long {
                    self.oracle.check_answer(answer, frame)
                } else if has_ended {
                    self.oracle.check_reset(answer, now)
                } else {
                    self.refusals += 1;
                    self.oracle.check_refusal(answer, frame)
                };
                check.map_err(|error| format!("{error}: {}", hex(answer)))
            }
            _ => Err(format!("{} answers", answers.len())),
        }
    }

    fn note_answer(&mut self, now: Timestamp) {
        self.answers += 1;
        self.oracle.over_answers.take(now);
        self.oracle.under_answers.take(now);
    }

    /// Judges a frame for the VM by both.
    ///
    /// # Errors
    /// The disagreement, in words.
    pub fn host(&mut self, frame: &[u8], now: Timestamp) -> Result<Verdict, String> {
        let opinion = self.oracle.on_arriving(frame, now);
        *self.said[1].entry(opinion).or_default() += 1;
        let verdict = self.port.from_host(frame, now);
        agree("from the host", opinion, verdict, frame)?;
        for answer in self.take_answers() {
            self.note_answer(now);
            let is_due = verdict == Verdict::Drop(DropReason::FlowEnded);
            let check = if is_due { self.oracle.check_reset(&answer, now) } else { Err("nothing is due") };
            check.map_err(|error| format!("{error}: {}", hex(&answer)))?;
        }
        if verdict.is_forward() {
            self.members[1] += usize::from(self.oracle.is_member(Origin::Outside, frame, now));
            self.oracle.note_packet(Origin::Outside, frame, false, now);
        }
        let allowed = self.oracle.after_host(frame, now, verdict.is_forward());
        self.follow(&allowed, now)
            .map_err(|error| format!("{error}, after {verdict:?} of\n{}", hex(frame)))?;
        Ok(verdict)
    }

    /// Tells both the host's addresses.
    ///
    /// # Errors
    /// If they do not fit.
    pub fn set_host_addresses(&mut self, addresses: &[Ipv4Addr], now: Timestamp) -> Result<(), String> {
        self.port.set_host_addresses(addresses, now).map_err(|error| error.to_string())?;
        self.oracle.set_host_addresses(addresses);
        self.oracle.end_forbidden(now);
        self.advance(now)
    }

    /// P6: gives both another policy.
    ///
    /// # Errors
    /// The disagreement, in words.
    pub fn set_policy(&mut self, policy: Policy, now: Timestamp) -> Result<(), String> {
        let is_taken = self.port.set_policy(policy.clone(), now).is_ok();
        if is_taken != self.oracle.set_policy(&policy, now) {
            return Err(format!("{policy:?} is taken: {is_taken}"));
        }
        self.advance(now)
    }

    /// Tells both the ports that lead to other VMs.
    ///
    /// # Errors
    /// The disagreement, in words.
    pub fn set_exposed(&mut self, exposed: Vec<ExposedPort>, now: Timestamp) -> Result<(), String> {
        self.oracle.set_exposed(&exposed);
        self.oracle.end_forbidden(now);
        self.port.set_exposed(exposed, now);
        self.advance(now)
    }

    /// Lets the time pass without a frame.
    ///
    /// # Errors
    /// The disagreement, in words.
    pub fn advance(&mut self, now: Timestamp) -> Result<(), String> {
        self.port.advance(now);
        let allowed = [Outcome::exactly(self.oracle.lease_at(now).copied())];
        self.follow(&allowed, now)
    }

    /// Compares the lease with what it may be now, and goes on with it.
    fn follow(&mut self, allowed: &[Outcome], now: Timestamp) -> Result<(), String> {
        let lease = self.port.lease();
        if !allowed.iter().any(|outcome| outcome.is(lease.as_ref())) {
            return Err(format!("the lease is {lease:?} and may be {allowed:?} at {now:?}"));
        }
        if self.port.next_deadline() != lease.and_then(|lease| lease.expires) {
            return Err(format!("the deadline is {:?} with {lease:?}", self.port.next_deadline()));
        }
        self.oracle.believed = match (lease, self.oracle.believed_at(now)) {
            (Some(_), _) => Believed::Nothing,
            (None, believed) => self.oracle.after.take().unwrap_or(believed),
        };
        self.oracle.after = None;
        if self.oracle.lease_at(now).map(|lease| lease.address) != lease.map(|lease| lease.address) {
            self.oracle.forget_flows();
        }
        self.oracle.lease = lease;
        Ok(())
    }
}

fn agree(direction: &str, opinion: Opinion, verdict: Verdict, frame: &[u8]) -> Result<(), String> {
    let agreed = match opinion {
        Opinion::MustPass => verdict.is_forward(),
        Opinion::MustDrop(_) => !verdict.is_forward(),
        Opinion::Nothing => true,
    };
    if agreed {
        Ok(())
    } else {
        Err(format!("{direction}: the oracle says {opinion:?}, the filter {verdict:?}, of\n{}", hex(frame)))
    }
}

/// What the lease may be after a frame.
#[derive(Debug, Clone)]
enum Outcome {
    Unbound,
    Bound {
        address: Ipv4Addr,
        server: Ipv4Addr,
        /// `None` for an infinite lease.
        expires: Option<Timestamp>,
        /// Those that must be open, and those that may be.
        resolvers: (Vec<Ipv4Addr>, Vec<Ipv4Addr>),
    },
}

impl Outcome {
    fn exactly(lease: Option<Lease>) -> Self {
        match lease {
            None => Self::Unbound,
            Some(lease) => Self::Bound {
                address: lease.address,
                server: lease.server,
                expires: lease.expires,
                resolvers: (lease.resolvers.iter().collect(), lease.resolvers.iter().collect()),
            },
        }
    }

    fn is(&self, actual: Option<&Lease>) -> bool {
        match (self, actual) {
            (Self::Unbound, None) => true,
            (Self::Bound { address, server, expires, resolvers }, Some(lease)) => {
                lease.address == *address
                    && lease.server == *server
                    && *expires == lease.expires
                    && resolvers.0.iter().all(|&resolver| lease.resolvers.contains(resolver))
                    && lease.resolvers.iter().all(|resolver| resolvers.1.contains(&resolver))
            }
            _ => false,
        }
    }
}

/// B7: the lease, which ends in so long at the latest.
fn capped(lease: Lease, now: Timestamp, lasts: Duration) -> Lease {
    let end = now.saturating_add(lasts);
    Lease { expires: Some(lease.expires.map_or(end, |expires| expires.min(end))), ..lease }
}

/// A frame in rows of 16 bytes.
pub fn hex(frame: &[u8]) -> String {
    let shown = &frame[..frame.len().min(640)];
    let mut text = format!("{} bytes:\n", frame.len());
    for row in shown.chunks(16) {
        for byte in row {
            text += &format!("{byte:02x} ");
        }
        text += "\n";
    }
    text
}

/// The clock's last minute, in which it stands still.
fn is_end_of_time(now: Timestamp) -> bool {
    now.saturating_add(Duration::from_secs(60)) == Timestamp::MAX
}

/// `Err(rule)` if the rule is broken.
fn breaks(rule: Rule, broken: bool) -> Result<(), Rule> {
    if broken { Err(rule) } else { Ok(()) }
}
