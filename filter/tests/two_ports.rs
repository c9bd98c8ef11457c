//! No address is held by two VMs (rule B7): two ports before one DHCP server whose answers get lost, come late or in
//! another order, and whose clients say whatever the filter lets them say.
//!
//! The server is modelled after dnsmasq and bootpd: it acts on requests, whatever becomes of its answers. It files
//! leases by MAC address or by client identifier, honours option 51 up to a limit, moves a client that asks for another
//! free address, and gives what is free to anybody.
#![allow(
    dead_code,
    reason = "only the part of the oracle that reads, and of the scene that writes frames, is used"
)]

mod oracle;
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use softnet_filter::{MacAddr, Port, PortConfig, Timestamp};

use oracle::dhcp::{self, Message};
use oracle::packet::{Ethernet, Ipv4, UDP};
use scene::wire::{self, Dhcp};
use scene::{GATEWAY, GATEWAY_MAC, plain_config};

/// What the server may give: so few that the two VMs meet at once.
const POOL: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 168, 64, 5), Ipv4Addr::new(192, 168, 64, 6), Ipv4Addr::new(192, 168, 64, 7)];
const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
const DEFAULT_TIME: u32 = 100;
const LONGEST_TIME: u32 = 400;
const START: Timestamp = Timestamp::from_secs(1_000);
/// How long an answer can be on its way. A number binds the VM for longer.
const LATEST: Duration = Duration::from_secs(50);

/// An address by what it is to the one who says it.
#[derive(Debug, Clone, Copy)]
enum Name {
    None,
    /// The port's lease, or the last one that it had.
    Own,
    Pool(usize),
}

/// A message of a VM.
#[derive(Debug, Clone)]
struct Says {
    kind: u8,
    xid: u32,
    source: Name,
    client: Name,
    requested: Name,
    unicast: bool,
    /// 0 is none.
    id: u8,
    seconds: Option<u32>,
    rapid: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Says(usize, Says),
    /// The VM's last message once more.
    Repeats(usize),
    /// One of the answers that are on their way arrives.
    Arrives(usize, prop::sample::Index),
    /// One is lost.
    IsLost(usize, prop::sample::Index),
    /// All of them arrive, in order.
    AllArrive(usize),
    Wait(u64),
}

fn name() -> BoxedStrategy<Name> {
    prop_oneof![2 => Just(Name::None), 3 => Just(Name::Own), 3 => (0..POOL.len()).prop_map(Name::Pool)]
        .boxed()
}

fn says() -> BoxedStrategy<Says> {
    let kind = prop_oneof![
        6 => Just(dhcp::REQUEST),
        3 => Just(dhcp::DISCOVER),
        1 => Just(dhcp::RELEASE),
        1 => Just(dhcp::DECLINE),
        1 => Just(dhcp::INFORM),
    ];
    let seconds = prop_oneof![
        5 => Just(None),
        3 => proptest::sample::select(vec![1, 10, 30, 99, 101, 300, 1_000, u32::MAX]).prop_map(Some),
    ];
    let way = prop_oneof![
        // Selecting, renewing, rebinding, anything.
        4 => name().prop_map(|requested| (Name::None, Name::None, requested, false)),
        3 => Just((Name::Own, Name::Own, Name::None, true)),
        1 => Just((Name::None, Name::Own, Name::None, false)),
        2 => (name(), name(), name(), any::<bool>()),
    ];
    let id = prop_oneof![3 => Just(0u8), 2 => 1u8..4];
    (kind, 1u32..4, way, id, seconds, proptest::bool::weighted(0.2))
        .prop_map(|(kind, xid, (source, client, requested, unicast), id, seconds, rapid)| Says {
            kind,
            xid,
            source,
            client,
            requested,
            unicast,
            id,
            seconds,
            rapid,
        })
        .boxed()
}

fn step() -> BoxedStrategy<Step> {
    let vm = 0..MACS.len();
    prop_oneof![
        8 => (vm.clone(), says()).prop_map(|(vm, says)| Step::Says(vm, says)),
        4 => vm.clone().prop_map(Step::Repeats),
        4 => (vm.clone(), any::<prop::sample::Index>()).prop_map(|(vm, which)| Step::Arrives(vm, which)),
        2 => (vm.clone(), any::<prop::sample::Index>()).prop_map(|(vm, which)| Step::IsLost(vm, which)),
        3 => vm.prop_map(Step::AllArrive),
        2 => (0u64..12).prop_map(Step::Wait),
        1 => (0u64..120).prop_map(Step::Wait),
    ]
    .boxed()
}

/// What the server knows of an address.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Record {
    vm: usize,
    /// The identifier under which it is filed: 0 for the MAC address.
    id: u8,
    expires: Option<Timestamp>,
}

#[derive(Debug)]
struct Server {
    files_by_mac: bool,
    records: BTreeMap<Ipv4Addr, Record>,
    declined: BTreeSet<Ipv4Addr>,
}

impl Server {
    fn expire(&mut self, now: Timestamp) {
        self.records.retain(|_, record| record.expires.is_none_or(|expires| now < expires));
    }

    fn holder(&self, address: Ipv4Addr, now: Timestamp) -> Option<Record> {
        self.records
            .get(&address)
            .copied()
            .filter(|record| record.expires.is_none_or(|expires| now < expires))
    }

    fn is_same(&self, record: &Record, vm: usize, id: u8) -> bool {
        record.vm == vm && (self.files_by_mac || record.id == id)
    }

    fn current(&self, vm: usize, id: u8) -> Option<Ipv4Addr> {
        self.records.iter().find(|(_, record)| self.is_same(record, vm, id)).map(|(address, _)| *address)
    }

    /// Hears a message of a VM: what it answers.
    fn hears(&mut self, vm: usize, message: &Message, now: Timestamp) -> Option<Dhcp> {
        self.expire(now);
        let id = message.once(dhcp::OPTION_CLIENT_ID).and_then(|id| id.last().copied()).unwrap_or(0);
        let requested = message.address_once(dhcp::OPTION_REQUESTED);
        let client = Some(message.client).filter(|address| !address.is_unspecified());
        let current = self.current(vm, id);
        let is_free = |server: &Self, address: Ipv4Addr| {
            POOL.contains(&address)
                && !server.declined.contains(&address)
                && server.records.get(&address).is_none_or(|record| server.is_same(record, vm, id))
        };
        match message.kind()? {
            dhcp::DISCOVER => {
                let address = requested
                    .filter(|&address| is_free(self, address))
                    .or(current)
                    .or_else(|| POOL.into_iter().find(|&address| is_free(self, address)))?;
                if message.has(dhcp::OPTION_RAPID_COMMIT) && !self.files_by_mac {
                    return Some(self.gives(address, vm, id, message, now));
                }
                Some(reply(dhcp::OFFER, message, address, DEFAULT_TIME))
            }
            dhcp::REQUEST => {
                let address = requested.or(client).or(current)?;
                if !is_free(self, address) {
                    return Some(reply(dhcp::NAK, message, Ipv4Addr::UNSPECIFIED, 0));
                }
                Some(self.gives(address, vm, id, message, now))
            }
            dhcp::RELEASE => {
                if client.is_some() && client == current {
                    self.records.retain(|address, _| Some(*address) != client);
                }
                None
            }
            dhcp::DECLINE => {
                // It is set aside, but for one that is always left to give.
                let declined = requested?;
                if current == Some(declined) {
                    self.records.remove(&declined);
                }
                if self.declined.is_empty() {
                    self.declined.insert(declined);
                }
                None
            }
            dhcp::INFORM => Some(reply(dhcp::ACK, message, Ipv4Addr::UNSPECIFIED, 0)),
            _ => None,
        }
    }

    /// The client has this address from now on, and no other.
    fn gives(&mut self, address: Ipv4Addr, vm: usize, id: u8, message: &Message, now: Timestamp) -> Dhcp {
        let files_by_mac = self.files_by_mac;
        self.records.retain(|_, record| record.vm != vm || (!files_by_mac && record.id != id));
        let asked = message.number_once(dhcp::OPTION_LEASE_TIME);
        let seconds = asked.map_or(DEFAULT_TIME, |asked| asked.min(LONGEST_TIME));
        let expires = Some(now.saturating_add(Duration::from_secs(seconds.into())));
        self.records.insert(address, Record { vm, id, expires });
        reply(dhcp::ACK, message, address, seconds)
    }
}

fn reply(kind: u8, to: &Message, yiaddr: Ipv4Addr, seconds: u32) -> Dhcp {
    let mut options = vec![(dhcp::OPTION_TYPE, vec![kind]), (dhcp::OPTION_SERVER, GATEWAY.octets().to_vec())];
    if seconds > 0 {
        options.push((dhcp::OPTION_LEASE_TIME, seconds.to_be_bytes().to_vec()));
    }
    let mac = to.hardware_address[..6].try_into().expect("six bytes");
    Dhcp { yiaddr, ..wire::bootp(2, to.xid, mac, options) }
}

/// A VM: its port, what it last had and said, and the answers that are on their way to it.
struct Vm {
    port: Port,
    last: Ipv4Addr,
    said: Option<Vec<u8>>,
    answers: Vec<(Timestamp, Vec<u8>)>,
}

struct World {
    vms: Vec<Vm>,
    server: Server,
    now: Timestamp,
    /// How often something happened.
    happened: BTreeMap<&'static str, usize>,
}

impl World {
    fn new(files_by_mac: bool) -> Self {
        let vms = MACS.iter().map(|&mac| Vm {
            port: Port::new(PortConfig {
                vm_mac: MacAddr(mac),
                server_files_by_mac: files_by_mac,
                ..plain_config(vec![])
            })
            .expect("a port"),
            last: POOL[0],
            said: None,
            answers: Vec::new(),
        });
        let server = Server { files_by_mac, records: BTreeMap::new(), declined: BTreeSet::new() };
        Self { vms: vms.collect(), server, now: START, happened: BTreeMap::new() }
    }

    fn note(&mut self, what: &'static str) {
        *self.happened.entry(what).or_default() += 1;
    }

    fn play(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Wait(seconds) => self.now = self.now.saturating_add(Duration::from_secs(*seconds)),
            Step::Says(vm, says) => {
                let frame = self.frame(*vm, says);
                self.send(*vm, frame);
            }
            Step::Repeats(vm) => {
                if let Some(frame) = self.vms[*vm].said.clone() {
                    self.send(*vm, frame);
                }
            }
            Step::Arrives(vm, which) => {
                let answers = &mut self.vms[*vm].answers;
                if !answers.is_empty() {
                    let (_, frame) = answers.remove(which.index(answers.len()));
                    self.arrives(*vm, &frame);
                }
            }
            Step::IsLost(vm, which) => {
                let answers = &mut self.vms[*vm].answers;
                if !answers.is_empty() {
                    answers.remove(which.index(answers.len()));
                }
            }
            Step::AllArrive(vm) => {
                for (_, frame) in std::mem::take(&mut self.vms[*vm].answers) {
                    self.arrives(*vm, &frame);
                }
            }
        }
        self.check()
    }

    fn frame(&self, vm: usize, says: &Says) -> Vec<u8> {
        let resolve = |name| match name {
            Name::None => Ipv4Addr::UNSPECIFIED,
            Name::Own => self.vms[vm].port.lease().map_or(self.vms[vm].last, |lease| lease.address),
            Name::Pool(index) => POOL[index],
        };
        let mut options = vec![(dhcp::OPTION_TYPE, vec![says.kind])];
        if !matches!(says.requested, Name::None) {
            options.push((dhcp::OPTION_REQUESTED, resolve(says.requested).octets().to_vec()));
        }
        if says.id > 0 {
            // Each VM has its own: who takes an opaque one of another is the server's matter.
            options.push((dhcp::OPTION_CLIENT_ID, vec![0, b'v', vm as u8, says.id]));
        }
        if let Some(seconds) = says.seconds {
            options.push((dhcp::OPTION_LEASE_TIME, seconds.to_be_bytes().to_vec()));
        }
        if says.rapid && says.kind == dhcp::DISCOVER {
            options.push((dhcp::OPTION_RAPID_COMMIT, vec![]));
        }
        let ciaddr = resolve(says.client);
        let message = Dhcp { ciaddr, ..wire::bootp(1, says.xid, MACS[vm], options) };
        let (to, destination) =
            if says.unicast { (GATEWAY_MAC, GATEWAY) } else { ([0xff; 6], Ipv4Addr::BROADCAST) };
        let source = resolve(says.source);
        let packet = wire::ipv4(source, destination, UDP, &wire::udp(68, 67, &message.bytes()));
        wire::ethernet(to, MACS[vm], wire::IPV4, &packet)
    }

    /// The VM says something, and if its port lets it through, the server acts on it.
    fn send(&mut self, vm: usize, frame: Vec<u8>) {
        let had = self.vms[vm].port.lease();
        let passes = self.vms[vm].port.from_vm(&frame, self.now).is_forward();
        self.remember(vm, had.map(|lease| lease.address));
        if passes {
            self.note("sent");
            self.serve(vm, &frame);
        }
        self.vms[vm].said = Some(frame);
    }

    fn serve(&mut self, vm: usize, frame: &[u8]) {
        let message = message_of(frame).expect("a message of DHCP");
        let Some(reply) = self.server.hears(vm, &message, self.now) else { return };
        let is_nak = reply.yiaddr.is_unspecified() && reply.options.len() == 2;
        let destination = if is_nak { Ipv4Addr::BROADCAST } else { reply.yiaddr };
        let destination = if destination.is_unspecified() { Ipv4Addr::BROADCAST } else { destination };
        let packet = wire::ipv4(GATEWAY, destination, UDP, &wire::udp(67, 68, &reply.bytes()));
        let to = if destination.is_broadcast() { [0xff; 6] } else { MACS[vm] };
        self.vms[vm].answers.push((self.now, wire::ethernet(to, GATEWAY_MAC, wire::IPV4, &packet)));
    }

    fn arrives(&mut self, vm: usize, frame: &[u8]) {
        let had = self.vms[vm].port.lease();
        if self.vms[vm].port.from_host(frame, self.now).is_forward() {
            self.note("answered");
        }
        self.remember(vm, had.map(|lease| lease.address));
        if let Some((_, release)) = self.vms[vm].port.poll_transmit() {
            self.note("given back");
            self.serve(vm, &release);
        }
    }

    fn remember(&mut self, vm: usize, had: Option<Ipv4Addr>) {
        let has = self.vms[vm].port.lease().map(|lease| lease.address);
        if let Some(address) = has.or(had) {
            self.vms[vm].last = address;
        }
        match (had, has) {
            (None, Some(_)) => self.note("bound"),
            (Some(_), None) => self.note("lost"),
            _ => {}
        }
    }

    fn check(&mut self) -> Result<(), String> {
        self.server.expire(self.now);
        for vm in &mut self.vms {
            vm.port.advance(self.now);
            vm.answers.retain(|(at, _)| self.now.saturating_since(*at) < LATEST);
        }
        let held = self.vms.iter().map(|vm| vm.port.lease().map(|lease| lease.address));
        let held: Vec<_> = held.collect();
        if held[0].is_some() && held[0] == held[1] {
            return Err(format!("both hold {:?}; the server: {:?}", held[0], self.server));
        }
        for (number, vm) in self.vms.iter().enumerate() {
            let Some(lease) = vm.port.lease() else { continue };
            let record = self.server.holder(lease.address, self.now).filter(|record| record.vm == number);
            let ends = |expires: Option<Timestamp>| expires.unwrap_or(Timestamp::MAX);
            if record.is_none_or(|record| ends(record.expires) < ends(lease.expires)) {
                return Err(format!("VM {number} has {lease:?}, its server says {record:?}"));
            }
        }
        if self.server.records.values().map(|record| record.vm).collect::<BTreeSet<_>>().len() == 2 {
            self.note("both have one");
        }
        Ok(())
    }
}

fn message_of(frame: &[u8]) -> Option<Message> {
    Message::read(Ipv4::read(Ethernet::read(frame)?.body)?.payload.get(8..)?)
}

fn config() -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let persistence = FileFailurePersistence::Direct("tests/two_ports.regressions");
    let base =
        ProptestConfig { failure_persistence: Some(Box::new(persistence)), ..ProptestConfig::default() };
    if asked { base } else { ProptestConfig { cases: 10_000, ..base } }
}

proptest! {
    #![proptest_config(config())]

    /// B7: whatever two VMs say and whatever answers get lost or come late, no address is in a valid lease of both, and
    /// no lease outlives what the server has for that VM.
    #[test]
    fn two_ports_never_hold_one_address(files_by_mac in any::<bool>(), steps in vec(step(), 1..60)) {
        let mut world = World::new(files_by_mac);
        for (index, step) in steps.iter().enumerate() {
            if let Err(error) = world.play(step) {
                prop_assert!(false, "step {}, {:?}: {}", index, step, error);
            }
        }
    }
}

/// The property above is worth what its sequences reach.
#[test]
fn two_ports_meet() {
    let mut runner = TestRunner::deterministic();
    let strategy = (any::<bool>(), vec(step(), 60));
    let mut happened = BTreeMap::new();
    for _ in 0..400 {
        let (files_by_mac, steps) = strategy.new_tree(&mut runner).expect("a sequence").current();
        let mut world = World::new(files_by_mac);
        steps.iter().for_each(|step| world.play(step).expect("no address with two VMs"));
        world.happened.into_iter().for_each(|(what, count)| *happened.entry(what).or_insert(0) += count);
    }
    for what in ["sent", "answered", "bound", "lost", "given back", "both have one"] {
        assert!(happened.get(what).is_some_and(|&count| count >= 20), "{what}: {happened:?}");
    }
}
