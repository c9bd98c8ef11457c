//! Rules A1 to A5.

use std::net::Ipv4Addr;

use anyhow::Result;
use lab::DhcpServer;
use lab::wire::{ARP, Arp, Dhcp, Mac, dhcp_kind, ethernet};

use crate::wire::{GATEWAY, Marker, NEIGHBOUR, OTHER_MAC, VM, VM_MAC, WORLD, Wire, named};

fn request(target: Ipv4Addr) -> Arp {
    Arp::request(VM_MAC, VM, target)
}

pub fn a1_only_ipv4_over_ethernet() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let good = request(GATEWAY);
    wire.passes("a request", &good.frame())?;
    wire.passes("a reply", &Arp::reply(VM_MAC, VM, wire.segment.mac, GATEWAY).frame())?;
    let frame = |arp: Arp| ethernet(Mac::BROADCAST, VM_MAC, ARP, &arp.bytes());
    let mut frames = Vec::new();
    for hardware in [0, 2, 6, 0x0100, 0xffff] {
        frames.push(named(format!("htype {hardware}"), frame(Arp { hardware, ..good.clone() })));
    }
    for protocol in [0, 0x86dd, 0x0008, 0x0806, 0xffff] {
        frames.push(named(format!("ptype {protocol:#x}"), frame(Arp { protocol, ..good.clone() })));
    }
    for len in [0, 1, 3, 5, 7, 8, 16, 127, 128, 255] {
        frames.push(named(format!("hlen {len}"), frame(Arp { hardware_len: len, ..good.clone() })));
        frames.push(named(format!("plen {len}"), frame(Arp { protocol_len: len, ..good.clone() })));
    }
    frames.push(named("both lengths", frame(Arp { hardware_len: 255, protocol_len: 255, ..good.clone() })));
    for operation in [0, 3, 4, 8, 9, 0x0100, 0xffff] {
        frames.push(named(format!("operation {operation}"), frame(Arp { operation, ..good.clone() })));
    }
    let whole = good.frame();
    for len in 14..whole.len() {
        frames.push(named(format!("cut to {len} bytes"), whole[..len].to_vec()));
    }
    wire.drops_all(&frames)
}

pub fn a2_sender_mac_is_own() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    wire.passes("the own sender", &request(GATEWAY).frame())?;
    for sender_mac in [OTHER_MAC, Mac::ZERO, Mac::BROADCAST, wire.segment.mac] {
        let arp = Arp { sender_mac, ..request(GATEWAY) };
        wire.drops(
            &format!("request of {sender_mac}"),
            &ethernet(Mac::BROADCAST, VM_MAC, ARP, &arp.bytes()),
        )?;
        let arp = Arp { sender_mac, ..Arp::reply(VM_MAC, VM, wire.segment.mac, GATEWAY) };
        wire.drops(
            &format!("reply of {sender_mac}"),
            &ethernet(wire.segment.mac, VM_MAC, ARP, &arp.bytes()),
        )?;
    }
    Ok(())
}

pub fn a3_sender_address_is_leased() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let nobody = Ipv4Addr::UNSPECIFIED;
    wire.passes("the own address", &request(GATEWAY).frame())?;
    wire.passes("a probe of the own address", &Arp::request(VM_MAC, nobody, VM).frame())?;
    wire.passes("an announcement of the own address", &Arp::request(VM_MAC, VM, VM).frame())?;
    for sender in [NEIGHBOUR, GATEWAY, WORLD, Ipv4Addr::BROADCAST, [10, 7, 0, 3].into()] {
        wire.drops(&format!("request of {sender}"), &Arp::request(VM_MAC, sender, GATEWAY).frame())?;
        wire.drops(&format!("announcement of {sender}"), &Arp::request(VM_MAC, sender, sender).frame())?;
        wire.drops(
            &format!("reply of {sender}"),
            &Arp::reply(VM_MAC, sender, wire.segment.mac, GATEWAY).frame(),
        )?;
    }
    for target in [NEIGHBOUR, GATEWAY, WORLD] {
        wire.drops(&format!("a probe of {target}"), &Arp::request(VM_MAC, nobody, target).frame())?;
    }
    wire.drops("a reply of nobody", &Arp::reply(VM_MAC, nobody, wire.segment.mac, VM).frame())
}

pub fn a4_no_lease_no_arp() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    let nobody = Ipv4Addr::UNSPECIFIED;
    wire.drops_all(&[
        named("a request without a lease", request(GATEWAY).frame()),
        named("a probe without an offer", Arp::request(VM_MAC, nobody, VM).frame()),
        named("a probe of the gateway", Arp::request(VM_MAC, nobody, GATEWAY).frame()),
        named("an announcement", Arp::request(VM_MAC, VM, VM).frame()),
        named("a reply", Arp::reply(VM_MAC, VM, wire.segment.mac, GATEWAY).frame()),
    ])?;
    let xid = wire.next();
    wire.vm.send(&Dhcp::client(dhcp_kind::DISCOVER, xid, VM_MAC).broadcast())?;
    let server = wire.server();
    server.heard(dhcp_kind::DISCOVER, xid)?;
    server.send(&server.answer(dhcp_kind::OFFER, xid, VM_MAC, VM), VM_MAC)?;
    DhcpServer::told(&wire.vm, dhcp_kind::OFFER, xid)?;
    wire.marker = Marker::Probe(VM);
    wire.passes("a probe of the offered address", &Arp::request(VM_MAC, nobody, VM).frame())?;
    wire.drops_all(&[
        named("a probe of another address", Arp::request(VM_MAC, nobody, NEIGHBOUR).frame()),
        named("a probe of the gateway", Arp::request(VM_MAC, nobody, GATEWAY).frame()),
        named("a request with an offer only", request(GATEWAY).frame()),
        named("an announcement with an offer only", Arp::request(VM_MAC, VM, VM).frame()),
    ])
}

pub fn a5_no_scanning() -> Result<()> {
    let mut wire = Wire::start(&["--allow=10.7.0.9"])?;
    let xid = wire.next();
    let resolver: Ipv4Addr = [10, 7, 0, 53].into();
    let server = wire.server().with_dns(vec![resolver]);
    server.lease(&wire.vm, VM_MAC, VM, xid)?;
    wire.marker = Marker::Gateway(VM);
    for (what, target) in
        [("gateway", GATEWAY), ("own address", VM), ("resolver", resolver), ("allowed", NEIGHBOUR)]
    {
        wire.passes(&format!("a request for the {what}"), &request(target).frame())?;
    }
    let scan: Vec<_> = (0..=255u8)
        .map(|last| Ipv4Addr::new(10, 7, 0, last))
        .filter(|target| ![GATEWAY, VM, resolver, NEIGHBOUR].contains(target))
        .chain([WORLD, [192, 168, 0, 1].into(), Ipv4Addr::BROADCAST, [169, 254, 169, 254].into()])
        .map(|target| named(format!("a request for {target}"), request(target).frame()))
        .collect();
    wire.drops_all(&scan)
}
