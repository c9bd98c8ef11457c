//! Rules P3 to P5, and F: who may begin, and what follows from it.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use lab::deadline::until;
use lab::net::Host;
use lab::wire::{Arp, Ipv4, Mac, icmp, tcp, udp};

use crate::wire::{GATEWAY, NEIGHBOUR, Named, OTHER_MAC, VM, VM_MAC, WORLD, Wire, named};

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x01;
const RST: u8 = 0x04;
/// A number of the other side that `lab`'s segments acknowledge.
const FIRST: u32 = 0x0102_0303;
const OTHER: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

/// A segment of the VM's port 4000 to the peer's 80.
fn out(wire: &Wire, peer: Ipv4Addr, flags: u8, sequence: u32) -> Vec<u8> {
    wire.routed(&Ipv4::new(VM, peer, tcp((VM, 4000), (peer, 80), sequence, flags, b"")))
}

/// A segment of the peer's port 80 to the VM's 4000.
fn back(wire: &Wire, peer: Ipv4Addr, flags: u8, sequence: u32) -> Vec<u8> {
    Ipv4::new(peer, VM, tcp((peer, 80), (VM, 4000), sequence, flags, b"")).frame(VM_MAC, wire.segment.mac)
}

fn udp_out(wire: &Wire, peer: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    wire.routed(&Ipv4::new(VM, peer, udp((VM, ports.0), (peer, ports.1), b"a question")))
}

fn udp_back(wire: &Wire, peer: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    Ipv4::new(peer, VM, udp((peer, ports.1), (VM, ports.0), b"an answer")).frame(VM_MAC, wire.segment.mac)
}

/// A whole handshake that the VM begins.
fn connect(wire: &mut Wire, peer: Ipv4Addr) -> Result<()> {
    let (syn, ack) = (out(wire, peer, SYN, 1), out(wire, peer, ACK, 2));
    let answer = back(wire, peer, SYN | ACK, FIRST);
    wire.passes("a SYN", &syn)?;
    wire.reaches_vm("its answer", &answer)?;
    wire.passes("the acknowledgement", &ack)
}

fn drops(wire: &mut Wire, what: &str, frame: Vec<u8>) -> Result<()> {
    wire.drops_all(&[(what.to_owned(), frame)])
}

pub fn p3_directions() -> Result<()> {
    let mut wire = Wire::leased(&["--block=in 8.8.8.0/24,out 9.9.9.0/24", "--allow", "in 10.7.0.9:80"])?;
    let incoming = back(&wire, WORLD, SYN, 7);
    wire.never_reaches_vm("a SYN from whom `in` blocks", &incoming)?;
    connect(&mut wire, WORLD)?;
    let begun = out(&wire, OTHER, SYN, 1);
    drops(&mut wire, "a SYN to whom `out` blocks", begun)?;
    let incoming = back(&wire, OTHER, SYN, 7);
    wire.reaches_vm("a SYN from whom only `out` blocks", &incoming)?;
    let answer = out(&wire, OTHER, SYN | ACK, 1);
    wire.passes("the answer to it", &answer)?;
    // Without a direction anywhere an answer is judged like everything else, and needs nothing before it.
    wire.restart_leased(&["--block=9.9.9.0/24"])?;
    let incoming = back(&wire, OTHER, SYN, 7);
    wire.reaches_vm("a SYN from whom is blocked", &incoming)?;
    let answer = out(&wire, OTHER, SYN | ACK, 1);
    drops(&mut wire, "the answer to it", answer)?;
    let stray = out(&wire, WORLD, ACK, 9);
    wire.passes("a segment of no connection", &stray)
}

pub fn p4_incoming() -> Result<()> {
    let mut wire = Wire::leased(&["--block", "in 192.168.0.0/16", "--block=in 10.7.0.9:80"])?;
    for peer in [WORLD, GATEWAY] {
        let incoming = back(&wire, peer, SYN, 7);
        wire.reaches_vm("what no `in` entry matches", &incoming)?;
    }
    let blocked = back(&wire, Ipv4Addr::new(192, 168, 1, 1), SYN, 7);
    wire.never_reaches_vm("what an `in` entry blocks", &blocked)?;
    let at_port = back(&wire, NEIGHBOUR, SYN, 7);
    wire.never_reaches_vm("what comes from a blocked port", &at_port)?;
    let counters = wire.softnet.counters()?;
    ensure!(counters.from_host.get("incoming-blocked") == Some(&2), "{counters:?}");
    // A bare block of everything closes it too, beside an entry with a direction.
    wire.restart_leased(&["--block=0.0.0.0/0,out 1.1.1.1", "--allow=@host"])?;
    let incoming = back(&wire, WORLD, SYN, 7);
    wire.never_reaches_vm("a SYN under a block of everything", &incoming)?;
    let incoming = back(&wire, GATEWAY, SYN, 7);
    wire.reaches_vm("a SYN of the host, which is allowed", &incoming)
}

pub fn p5_default_deny() -> Result<()> {
    let mut wire = Wire::leased(&["--block=0.0.0.0/0", "--allow=192.168.1.20:443/tcp"])?;
    let lan = Ipv4Addr::new(192, 168, 1, 20);
    let to =
        |wire: &Wire, to, port| wire.routed(&Ipv4::new(VM, to, tcp((VM, 4000), (to, port), 1, SYN, b"")));
    let opened = to(&wire, lan, 443);
    wire.passes("the one opening", &opened)?;
    let mut frames: Vec<Named> = [(lan, 80), (GATEWAY, 53), (WORLD, 443), (NEIGHBOUR, 443)]
        .into_iter()
        .map(|(address, port)| named(format!("{address}:{port}"), to(&wire, address, port)))
        .collect();
    frames.push(named("DNS", udp_out(&wire, GATEWAY, (4000, 53))));
    frames.push(named("a ping", wire.routed(&Ipv4::new(VM, GATEWAY, icmp(8, 0, &[0, 1, 0, 1])))));
    wire.drops_all(&frames)?;
    // DHCP lives on.
    wire.lease(VM)?;
    let opened = to(&wire, lan, 443);
    wire.passes("the one opening after a new lease", &opened)
}

pub fn f1_what_begins_a_flow() -> Result<()> {
    let mut wire = Wire::leased(&["--allow", "in 1.1.1.1"])?;
    let mut strays: Vec<Named> = [0, ACK, SYN | ACK, FIN | ACK, RST, SYN | FIN]
        .into_iter()
        .map(|flags| named(format!("flags {flags:#x}"), out(&wire, WORLD, flags, 1)))
        .collect();
    strays.push(named("an echo reply", wire.routed(&Ipv4::new(VM, WORLD, icmp(0, 0, &[0, 1, 0, 1])))));
    wire.drops_all(&strays)?;
    for flags in [ACK, SYN | ACK, RST] {
        let stray = back(&wire, WORLD, flags, 1);
        wire.never_reaches_vm("a stray segment", &stray)?;
    }
    let counters = wire.softnet.counters()?;
    ensure!(counters.from_vm.get("no-flow") == Some(&(strays.len() as u64)), "{counters:?}");
    ensure!(counters.from_host.get("no-flow") == Some(&3), "{counters:?}");
    for frame in [
        out(&wire, WORLD, SYN, 1),
        udp_out(&wire, WORLD, (4000, 53)),
        wire.routed(&Ipv4::new(VM, WORLD, icmp(8, 0, &[0, 1, 0, 1]))),
        wire.routed(&Ipv4::new(VM, WORLD, (47, vec![0; 40]))),
    ] {
        wire.passes("what can begin a flow", &frame)?;
    }
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let to_group = Ipv4::new(GATEWAY, group, udp((GATEWAY, 9), (group, 9), b"all"));
    wire.reaches_vm("a group", &to_group.frame(Mac([1, 0, 0x5e, 1, 2, 3]), wire.segment.mac))
}

pub fn f2_a_flow_passes_both_ways() -> Result<()> {
    let mut wire = Wire::leased(&["--allow", "in 10.7.0.9", "--block=in 8.8.8.8"])?;
    let answer = udp_back(&wire, WORLD, (4000, 53));
    wire.never_reaches_vm("an answer to nothing", &answer)?;
    let question = udp_out(&wire, WORLD, (4000, 53));
    wire.passes("a question", &question)?;
    wire.reaches_vm("its answer", &answer)?;
    let other = udp_back(&wire, WORLD, (4000, 54));
    wire.never_reaches_vm("an answer from another port", &other)?;
    let quote = |packet: &[u8]| [&[0; 4], &packet[14..]].concat();
    let error =
        |about: &[u8]| Ipv4::new(GATEWAY, VM, icmp(3, 1, &quote(about))).frame(VM_MAC, wire.segment.mac);
    let (about_it, about_another) = (error(&question), error(&udp_out(&wire, WORLD, (4000, 54))));
    wire.reaches_vm("an error about the question", &about_it)?;
    wire.never_reaches_vm("an error about none", &about_another)?;
    // A neighbour that has begun is found by ARP and answered at its own hardware address.
    let ask = Arp::request(VM_MAC, VM, NEIGHBOUR).frame();
    drops(&mut wire, "ARP for a neighbour", ask.clone())?;
    let begun = Ipv4::new(NEIGHBOUR, VM, udp((NEIGHBOUR, 6000), (VM, 53), b"hello")).frame(VM_MAC, OTHER_MAC);
    wire.reaches_vm("a neighbour's question", &begun)?;
    wire.passes("ARP for it", &ask)?;
    let reply = Ipv4::new(VM, NEIGHBOUR, udp((VM, 53), (NEIGHBOUR, 6000), b"hello"));
    wire.passes("the answer to it", &reply.frame(OTHER_MAC, VM_MAC))?;
    let other = Ipv4::new(VM, NEIGHBOUR, udp((VM, 53), (NEIGHBOUR, 6001), b"hello"));
    drops(&mut wire, "something else to it", other.frame(OTHER_MAC, VM_MAC))
}

pub fn f4_half_open_flows_are_bounded() -> Result<()> {
    let mut wire = Wire::leased(&["--allow", "in 1.1.1.1"])?;
    let syn = |wire: &Wire, peer: Ipv4Addr, port: u16| {
        Ipv4::new(peer, VM, tcp((peer, port), (VM, 22), 1, SYN, b"")).frame(VM_MAC, wire.segment.mac)
    };
    for port in 1..=256 {
        let frame = syn(&wire, OTHER, port);
        wire.reaches_vm("a SYN", &frame)?;
    }
    let one_more = syn(&wire, OTHER, 257);
    wire.never_reaches_vm("the 257th half-open connection of one peer", &one_more)?;
    let counters = wire.softnet.counters()?;
    ensure!(counters.from_host.get("flows-full") == Some(&1), "{counters:?}");
    let elsewhere = syn(&wire, WORLD, 1);
    wire.reaches_vm("another peer's SYN", &elsewhere)?;
    connect(&mut wire, WORLD)
}

pub fn f5_fragments() -> Result<()> {
    let mut wire = Wire::leased(&["--allow", "in 1.1.1.1", "--block=out 9.9.9.0/24:25"])?;
    // A datagram of 40 bytes in two fragments.
    let first = |peer: Ipv4Addr, id| {
        let datagram = udp((VM, 4000), (peer, 53), &[7; 32]).1;
        Ipv4 { fragment: 0x2000, id, ..Ipv4::new(VM, peer, (17, datagram[..24].to_vec())) }
    };
    let second = |peer: Ipv4Addr, id| Ipv4 { fragment: 3, id, ..Ipv4::new(VM, peer, (17, vec![7; 16])) };
    let frames = [
        named("a first fragment of no flow", wire.routed(&first(WORLD, 1))),
        named("a later one", wire.routed(&second(WORLD, 1))),
    ];
    wire.drops_all(&frames)?;
    let question = udp_out(&wire, WORLD, (4000, 53));
    wire.passes("a question", &question)?;
    let stray = wire.routed(&second(WORLD, 2));
    drops(&mut wire, "a later fragment before the first", stray)?;
    for fragment in [first(WORLD, 2), second(WORLD, 2), second(WORLD, 2)] {
        let frame = wire.routed(&fragment);
        wire.passes("fragments of a flow", &frame)?;
    }
    let question = udp_out(&wire, OTHER, (4000, 53));
    wire.passes("a question where ports are distinguished", &question)?;
    let frames = [named("its fragment", wire.routed(&first(OTHER, 3)))];
    wire.drops_all(&frames)
}

pub fn f6_a_forbidden_flow_ends() -> Result<()> {
    let mut wire = Wire::leased(&["--block=out @host", "--allow=in 1.1.1.1"])?;
    connect(&mut wire, WORLD)?;
    // The world's address becomes one of the host's, which are blocked.
    Host::main()?.ip(&format!("addr add {WORLD}/32 dev lo"))?;
    let data = out(&wire, WORLD, ACK, 2);
    let ended = || {
        let sent = wire.vm.send(&data).is_ok();
        sent && wire.softnet.counters().is_ok_and(|now| now.from_vm.get("flow-ended") == Some(&1))
    };
    ensure!(until(ended), "the flow lives on: {:?}", wire.softnet.counters());
    let syn = out(&wire, WORLD, SYN, 1);
    // What passed before its end is on the TAP.
    wire.settle()?;
    drops(&mut wire, "a new connection", syn)
}
