//! Plays scenes between a VM and its host: steps in symbols (own address, gateway, last transaction …) that become
//! frames when the state is known, so that arbitrary sequences reach the states that only a dialogue reaches.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test file that includes the scene uses its own part of it"
)]

pub mod steps;
mod symbols;
pub mod wire;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use softnet_filter::{
    Action, ExposedPort, Gateway, Lease, MacAddr, NetType, Policy, PortConfig, PortEvent, Rule, Timestamp,
    UnboundCause, Verdict,
};

pub use symbols::{Address, Answer, Content, Damage, Question, Shot, Station, Step, Symbol, Xid};

use crate::oracle::packet::{self, Ethernet, ICMP, IGMP, TCP, UDP};
use crate::oracle::{Watched, dhcp, hex, world};
use wire::{Arp, Dhcp, Ipv4};

pub const VM_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfe];
pub const NEIGHBOUR_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x77];
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
/// A DHCP server that is not the gateway.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 3);
pub const SERVER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0xfd];
/// What the host gives the VM unless a step says otherwise.
pub const FIRST_LEASE: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 5);
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 20);
/// Addresses of the host besides the gateway's.
pub const HOST_PUBLIC: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 2);
pub const HOST_PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const HOST_ON_LINK: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 9);
pub const FAR_RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 9, 8, 7);

/// A port as Tart's VMs have it, with these rules.
pub fn plain_config(rules: Vec<Rule>) -> PortConfig {
    PortConfig {
        vm_mac: MacAddr(VM_MAC),
        gateway: Gateway {
            mac: MacAddr(GATEWAY_MAC),
            address: GATEWAY,
            subnet: "192.168.64.0/24".parse().expect("a network"),
        },
        dhcp_server: None,
        net_type: NetType::Nat,
        policy: Policy::new(rules),
        mtu: 1500,
        server_files_by_mac: false,
        host_addresses: Vec::new(),
        on_block: Default::default(),
        published: Vec::new(),
        seed: 7,
    }
}

pub fn allow(entry: &str) -> Rule {
    Rule { entry: entry.parse().expect("an entry"), action: Action::Allow }
}

pub fn block(entry: &str) -> Rule {
    Rule { entry: entry.parse().expect("an entry"), action: Action::Block }
}

/// A port under the oracle's eyes, with a clock and a memory.
pub struct Scene {
    pub watched: Watched,
    pub now: Timestamp,
    config: PortConfig,
    last_vm: Vec<u8>,
    /// The last frames of the VM and of the host that passed and were no DHCP, to answer them.
    passed: [Vec<u8>; 2],
    last_host: Vec<u8>,
    last_xid: u32,
    /// The address of the VM as the events tell it.
    told: Option<Ipv4Addr>,
    /// C10: the address of the last lease, if that merely expired.
    expired: Option<Ipv4Addr>,
    /// C10: the VM has never had a lease.
    is_new: bool,
    /// What has happened, by name.
    pub happened: BTreeSet<String>,
}

impl Scene {
    pub fn new(config: PortConfig, now: Timestamp) -> Self {
        Self {
            watched: Watched::new(config.clone()),
            now,
            config,
            last_vm: Vec::new(),
            passed: Default::default(),
            last_host: Vec::new(),
            last_xid: 1,
            told: None,
            expired: None,
            is_new: true,
            happened: BTreeSet::new(),
        }
    }

    /// B9: gives the VM an address and the far resolver.
    pub fn give(&mut self, address: Ipv4Addr) -> Result<(), String> {
        self.watched.give(address, [FAR_RESOLVER].into_iter().collect(), self.now)?;
        self.listen()
    }

    /// Gives the VM a lease that it had before, with the far resolver and one that is none.
    pub fn adopt(&mut self, address: Ipv4Addr, seconds: u64, id: Option<&[u8]>) -> Result<(), String> {
        let lease = Lease {
            address,
            server: self.server().0,
            expires: Some(self.now.saturating_add(Duration::from_secs(seconds))),
            resolvers: [FAR_RESOLVER, Ipv4Addr::LOCALHOST].into_iter().collect(),
        };
        self.watched.adopt(lease, id, self.now)?;
        self.listen()
    }

    pub fn own(&self) -> Option<Ipv4Addr> {
        self.watched.port.lease().map(|lease| lease.address)
    }

    pub fn resolve(&self, address: Address) -> Ipv4Addr {
        let subnet = self.config.gateway.subnet;
        match address {
            Address::Own => self.own().or(self.watched.oracle.offered()).unwrap_or(FIRST_LEASE),
            Address::Offered => self.watched.oracle.offered().unwrap_or(FIRST_LEASE),
            Address::Gateway => self.config.gateway.address,
            Address::Server => self.server().0,
            Address::Neighbour => NEIGHBOUR,
            Address::FarResolver => FAR_RESOLVER,
            Address::Zero => Ipv4Addr::UNSPECIFIED,
            Address::LimitedBroadcast => Ipv4Addr::BROADCAST,
            Address::Network => world::edges(subnet)[0],
            Address::SubnetBroadcast => world::edges(subnet)[1],
            Address::World => Ipv4Addr::new(93, 184, 216, 34),
            Address::Private => Ipv4Addr::new(10, 1, 2, 3),
            Address::Metadata => Ipv4Addr::new(169, 254, 169, 254),
            Address::Loopback => Ipv4Addr::LOCALHOST,
            Address::Group => Ipv4Addr::new(224, 0, 0, 251),
            Address::OtherInSubnet(host) => Ipv4Addr::new(192, 168, 64, host),
            Address::Last => self.expired.or(self.own()).unwrap_or(FIRST_LEASE),
            Address::HostPublic => HOST_PUBLIC,
            Address::HostPrivate => HOST_PRIVATE,
            Address::HostOnLink => HOST_ON_LINK,
            Address::Any(bits) => Ipv4Addr::from(bits),
        }
    }

    fn station(&self, station: Station, destination: Option<Ipv4Addr>) -> [u8; 6] {
        match station {
            Station::Vm => self.config.vm_mac.octets(),
            Station::Gateway => self.config.gateway.mac.octets(),
            Station::Server => self.server().1.octets(),
            Station::Neighbour => NEIGHBOUR_MAC,
            Station::Broadcast => [0xff; 6],
            Station::Group => world::multicast_mac(destination.unwrap_or(Ipv4Addr::new(224, 0, 0, 1))),
            Station::Reserved => [0x01, 0x80, 0xc2, 0, 0, 0],
            Station::Zero => [0; 6],
            Station::Any(octets) => octets,
        }
    }

    fn xid(&self, xid: Xid) -> u32 {
        match xid {
            Xid::Last => self.last_xid,
            Xid::Numbered(number) => 0x5eed_0000 + u32::from(number),
        }
    }

    /// The DHCP server: the gateway, unless the configuration names another station.
    fn server(&self) -> (Ipv4Addr, MacAddr) {
        let gateway = self.config.gateway;
        self.config.dhcp_server.map_or((gateway.address, gateway.mac), |server| (server.address, server.mac))
    }

    /// Makes a frame of its symbols.
    pub fn frame(&self, shot: &Shot) -> Vec<u8> {
        let (ether_type, body, destination) = self.body(&shot.symbol);
        let to = self.station(shot.to, destination);
        let mut frame = wire::ethernet(to, self.station(shot.from, None), ether_type, &body);
        for damage in &shot.damage {
            damage.apply(&mut frame);
        }
        frame
    }

    fn body(&self, symbol: &Symbol) -> (u16, Vec<u8>, Option<Ipv4Addr>) {
        match symbol {
            Symbol::Arp { operation, mac, sender, target } => {
                let mac = self.station(*mac, None);
                let request = Arp::request(mac, self.resolve(*sender), self.resolve(*target));
                (wire::ARP, Arp { operation: *operation, ..request }.bytes(), None)
            }
            Symbol::Ipv4 { source, destination, fragment, time_to_live, content } => {
                let destination = self.resolve(*destination);
                let packet = Ipv4::new(self.resolve(*source), destination, self.content(content));
                let packet = Ipv4 { ttl: *time_to_live, fragment: *fragment, ..packet }.with_checksum();
                (wire::IPV4, packet.bytes(), Some(destination))
            }
            Symbol::Question(question) => {
                let destination = if question.unicast { self.server().0 } else { Ipv4Addr::BROADCAST };
                let source = self.resolve(question.source);
                let body = dhcp_packet(source, destination, 68, question.port, &self.question(question));
                (wire::IPV4, body, Some(destination))
            }
            Symbol::Answer(answer) => {
                let destination = self.resolve(answer.destination);
                let source = self.resolve(answer.source);
                let body = dhcp_packet(source, destination, answer.port, 68, &self.answer(answer));
                (wire::IPV4, body, Some(destination))
            }
            Symbol::Other { ether_type, body } => (*ether_type, body.clone(), None),
        }
    }

    fn content(&self, content: &Content) -> (u8, Vec<u8>) {
        match content {
            Content::Udp { from, to, data } => (UDP, wire::udp(*from, *to, data)),
            Content::Tcp { from, to, flags, data } => (TCP, wire::segment_of(*from, *to, *flags, data)),
            Content::Icmp { kind, quoted: Some((source, destination)), .. } => {
                let quoted = wire::quote(self.resolve(*source), self.resolve(*destination));
                (ICMP, wire::icmp(*kind, 0, &quoted))
            }
            Content::Icmp { kind, data, .. } => (ICMP, wire::icmp(*kind, 0, data)),
            Content::Igmp { kind, group } => (IGMP, wire::igmp(*kind, self.resolve(*group))),
            Content::Other { protocol, data } => (*protocol, data.clone()),
        }
    }

    fn question(&self, question: &Question) -> Dhcp {
        let mut options = vec![(dhcp::OPTION_TYPE, vec![question.kind])];
        if let Some(id) = &question.client_id {
            options.push((dhcp::OPTION_CLIENT_ID, id.clone()));
        }
        if let Some(requested) = question.requested {
            options.push((dhcp::OPTION_REQUESTED, self.resolve(requested).octets().to_vec()));
        }
        if let Some(server) = question.server {
            options.push((dhcp::OPTION_SERVER, self.resolve(server).octets().to_vec()));
        }
        options.extend(question.extra.iter().cloned());
        let message = wire::bootp(1, self.xid(question.xid), self.config.vm_mac.octets(), options);
        Dhcp { ciaddr: self.resolve(question.client), ..message }
    }

    fn answer(&self, answer: &Answer) -> Dhcp {
        let mut options = vec![(dhcp::OPTION_TYPE, vec![answer.kind])];
        if let Some(server) = answer.server {
            options.push((dhcp::OPTION_SERVER, self.resolve(server).octets().to_vec()));
        }
        if let Some(seconds) = answer.lease_time {
            options.push((dhcp::OPTION_LEASE_TIME, seconds.to_be_bytes().to_vec()));
        }
        if !answer.resolvers.is_empty() {
            let all = answer.resolvers.iter().flat_map(|&resolver| self.resolve(resolver).octets());
            options.push((dhcp::OPTION_RESOLVERS, all.collect()));
        }
        options.extend(answer.extra.iter().cloned());
        let message = wire::bootp(2, self.xid(answer.xid), self.station(answer.mac, None), options);
        Dhcp { yiaddr: self.resolve(answer.yours), ..message }
    }

    /// Plays one step.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn play(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Wait(duration) => {
                self.now = self.now.saturating_add(*duration);
                self.watched.advance(self.now)?;
                // What the VM gives back now is no part of its own dialogue.
                let _ = self.watched.port.poll_transmit();
                self.listen()
            }
            Step::Vm(shot) => {
                let frame = self.frame(shot);
                if let Symbol::Question(question) = &shot.symbol {
                    self.last_xid = self.xid(question.xid);
                }
                self.vm(frame).map(drop)
            }
            Step::Host(shot) => {
                let frame = self.frame(shot);
                self.host(frame).map(drop)
            }
            Step::Dora { address, lease_time, resolvers } => self.dora(*address, *lease_time, resolvers),
            Step::Renew { lease_time } => self.renew(*lease_time),
            Step::Flood { count, xid } => (0..*count).try_for_each(|index| {
                let xid = Xid::Numbered(xid.wrapping_add(index as u8));
                self.ask(Question { xid, ..Question::new(dhcp::REQUEST) }).map(drop)
            }),
            Step::Replay { of_vm: true } => self.vm(self.last_vm.clone()).map(drop),
            Step::Replay { of_vm: false } => self.host(self.last_host.clone()).map(drop),
            Step::HostAddresses(addresses) => {
                let addresses: Vec<_> = addresses.iter().map(|&address| self.resolve(address)).collect();
                self.watched.set_host_addresses(&addresses, self.now)?;
                self.listen()
            }
            Step::Exposed(exposed) => {
                let exposed = exposed.iter().map(|&(protocol, port, address)| ExposedPort {
                    protocol,
                    port,
                    address: address.map(|address| self.resolve(address)),
                });
                let exposed = exposed.collect();
                self.watched.set_exposed(exposed, self.now)?;
                self.listen()
            }
            Step::Policy(rules) => {
                self.watched.set_policy(Policy::new(rules.clone()), self.now)?;
                self.listen()
            }
            Step::LastLease(last) => {
                let last = last.map(|last| self.resolve(last));
                self.watched.set_last_lease(last, self.now)?;
                if self.own().is_none() {
                    (self.expired, self.is_new) = (last, false);
                }
                self.listen()
            }
            Step::Answer { of_vm, flags } => {
                let Some(answer) = wire::answer(&self.passed[usize::from(*of_vm)], *flags) else {
                    return Ok(());
                };
                if *of_vm { self.vm(answer) } else { self.host(answer) }.map(drop)
            }
            Step::Truncated => {
                let verdict = self.watched.port.truncated_from_vm();
                if verdict.is_forward() { Err("a truncated frame passed".into()) } else { Ok(()) }
            }
        }
    }

    /// A frame of the VM.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn vm(&mut self, frame: Vec<u8>) -> Result<Verdict, String> {
        let verdict = self.watched.vm(&frame, self.now)?;
        if verdict.is_forward() {
            self.has_no_foreign_sender(&frame)?;
            if self.comes_from_the_last_lease(&frame) {
                self.happened.insert("LastLeaseUsed".into());
            }
        }
        if verdict.is_forward() && is_answerable(&frame) {
            self.passed[0].clone_from(&frame);
        }
        self.last_vm = frame;
        self.listen()?;
        Ok(verdict)
    }

    /// A frame for the VM.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn host(&mut self, frame: Vec<u8>) -> Result<Verdict, String> {
        let verdict = self.watched.host(&frame, self.now)?;
        if verdict.is_forward() && is_answerable(&frame) {
            self.passed[1].clone_from(&frame);
        }
        self.last_host = frame;
        self.listen()?;
        Ok(verdict)
    }

    /// A question of the VM, well made but for what it says itself.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn ask(&mut self, question: Question) -> Result<Verdict, String> {
        self.last_xid = self.xid(question.xid);
        let to = if question.unicast { Station::Server } else { Station::Broadcast };
        let shot = Shot { to, from: Station::Vm, symbol: Symbol::Question(question), damage: vec![] };
        self.vm(self.frame(&shot))
    }

    /// An answer of the server, well made but for what it says itself.
    ///
    /// # Errors
    /// What went wrong, in words.
    pub fn tell(&mut self, answer: Answer) -> Result<Verdict, String> {
        let (to, from) = (answer.to, answer.station);
        let shot = Shot { to, from, symbol: Symbol::Answer(answer), damage: vec![] };
        self.host(self.frame(&shot))
    }

    fn dora(&mut self, address: Address, lease_time: u32, resolvers: &[Address]) -> Result<(), String> {
        let next = Xid::Numbered((self.last_xid as u8).wrapping_add(1));
        let (address, resolvers) = (Address::Any(self.resolve(address).into()), resolvers.to_vec());
        let told = |kind| Answer { resolvers: resolvers.clone(), ..Answer::new(kind, address, lease_time) };
        self.ask(Question { xid: next, ..Question::new(dhcp::DISCOVER) }).map(drop)?;
        self.tell(told(dhcp::OFFER)).map(drop)?;
        self.ask(Question {
            requested: Some(address),
            server: Some(Address::Server),
            ..Question::new(dhcp::REQUEST)
        })
        .map(drop)?;
        self.tell(told(dhcp::ACK)).map(drop)
    }

    fn renew(&mut self, lease_time: u32) -> Result<(), String> {
        let next = Xid::Numbered((self.last_xid as u8).wrapping_add(1));
        self.ask(Question {
            xid: next,
            source: Address::Own,
            client: Address::Own,
            unicast: true,
            ..Question::new(dhcp::REQUEST)
        })
        .map(drop)?;
        self.tell(Answer::new(dhcp::ACK, Address::Own, lease_time)).map(drop)
    }

    /// C10: a VM without a lease sends from its last one.
    fn comes_from_the_last_lease(&self, frame: &[u8]) -> bool {
        let sender = match Ethernet::read(frame) {
            Some(ethernet) if ethernet.ether_type == wire::ARP => {
                packet::Arp::read(ethernet.body).map(|arp| arp.sender)
            }
            Some(ethernet) => packet::Ipv4::read(ethernet.body).map(|ip| ip.source),
            None => None,
        };
        self.own().is_none() && sender.is_some() && self.expired == sender
    }

    /// The plainest form of the property: nobody else's MAC, IP or ARP sender address leaves.
    fn has_no_foreign_sender(&self, frame: &[u8]) -> Result<(), String> {
        let foreign = |what: &str| Err(format!("{what} left:\n{}", hex(frame)));
        let is_last = |sender: Ipv4Addr| self.own().is_none() && self.expired == Some(sender);
        let Some(ethernet) = Ethernet::read(frame) else { return foreign("a runt") };
        // A DECLINE or RELEASE leaves with the address that it ends.
        let is_own = |sender: Ipv4Addr| self.own() == Some(sender) || self.told == Some(sender);
        if ethernet.source != self.config.vm_mac.octets() {
            return foreign("a foreign MAC address");
        }
        if ethernet.ether_type == wire::ARP {
            return match packet::Arp::read(ethernet.body) {
                Some(arp) if arp.sender_mac != ethernet.source => foreign("a foreign ARP hardware address"),
                Some(arp) if is_last(arp.sender) && arp.target == self.server().0 => Ok(()),
                Some(arp) if !arp.sender.is_unspecified() && !is_own(arp.sender) => {
                    foreign("a foreign ARP address")
                }
                Some(_) => Ok(()),
                None => foreign("cut ARP"),
            };
        }
        let Some(ip) = packet::Ipv4::read(ethernet.body) else { return foreign("no IPv4") };
        let may_renew =
            is_last(ip.source) || (self.is_new && self.config.gateway.subnet.contains(&ip.source));
        let is_dhcp = (ip.source.is_unspecified() || may_renew)
            && matches!(ip.udp_ports(), Some((68, 67 | 4011)))
            && !ip.is_fragment();
        if is_dhcp || is_own(ip.source) { Ok(()) } else { foreign("a foreign IP address") }
    }

    /// The events tell the same story as the lease.
    fn listen(&mut self) -> Result<(), String> {
        while let Some(event) = self.watched.port.poll_event() {
            self.happened.insert(match event {
                PortEvent::Bound(_) => "Bound".into(),
                PortEvent::Renewed(_) => "Renewed".into(),
                PortEvent::Unbound { cause, .. } => format!("{cause:?}"),
                PortEvent::ClientIdChanged { .. } => "ClientIdChanged".into(),
                PortEvent::ForeignClientId { .. } => "ForeignClientId".into(),
                PortEvent::OtherDhcpServer { .. } => "OtherDhcpServer".into(),
            });
            match event {
                PortEvent::Bound(lease) if self.told.is_none() => {
                    (self.told, self.is_new) = (Some(lease.address), false);
                }
                PortEvent::Renewed(lease) if self.told == Some(lease.address) => {}
                PortEvent::Unbound { lease, cause } if self.told == Some(lease.address) => {
                    self.told = None;
                    self.expired = (cause == UnboundCause::Expired).then_some(lease.address);
                }
                PortEvent::ClientIdChanged { used } if used > 1 => {}
                PortEvent::ForeignClientId { .. } if !self.config.server_files_by_mac => {}
                PortEvent::OtherDhcpServer { address, .. } if address != self.server().0 => {}
                event => return Err(format!("{event:?} while bound to {:?}", self.told)),
            }
        }
        if self.told == self.own() {
            Ok(())
        } else {
            Err(format!("the events say {:?}, the lease {:?}", self.told, self.own()))
        }
    }
}

/// Whether a frame is IPv4 and no DHCP.
fn is_answerable(frame: &[u8]) -> bool {
    let ip = Ethernet::read(frame)
        .filter(|ethernet| ethernet.ether_type == wire::IPV4)
        .and_then(|ethernet| packet::Ipv4::read(ethernet.body));
    ip.is_some_and(|ip| !matches!(ip.udp_ports(), Some((67 | 68, _) | (_, 67 | 68))))
}

fn dhcp_packet(source: Ipv4Addr, destination: Ipv4Addr, from: u16, to: u16, message: &Dhcp) -> Vec<u8> {
    wire::ipv4(source, destination, UDP, &wire::udp(from, to, &message.bytes()))
}
