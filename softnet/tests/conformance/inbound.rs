//! Rules I1 to I4: host to VM.

use std::net::Ipv4Addr;

use anyhow::Result;
use lab::wire::{ARP, Arp, IPV4, Ipv4, Mac, ethernet, icmp, tcp, udp};

use crate::wire::{GATEWAY, NEIGHBOUR, OTHER_MAC, VM, VM_MAC, WORLD, Wire};

fn to_vm(from: Ipv4Addr) -> Ipv4 {
    Ipv4::new(from, VM, udp((from, 80), (VM, 4000), b"inbound"))
}

pub fn i1_what_is_for_the_vm_passes() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let bridge = wire.segment.mac;
    let group: Ipv4Addr = [239, 1, 2, 3].into();
    let quoted = Ipv4::new(VM, WORLD, udp((VM, 4000), (WORLD, 80), b"")).bytes();
    let unreachable = [&[0; 4][..], &quoted].concat();
    for (what, frame) in [
        ("UDP from the world", to_vm(WORLD).frame(VM_MAC, bridge)),
        ("UDP from the LAN", to_vm([192, 168, 77, 10].into()).frame(VM_MAC, bridge)),
        ("a neighbour", to_vm(NEIGHBOUR).frame(VM_MAC, OTHER_MAC)),
        ("a SYN", Ipv4::new(WORLD, VM, tcp((WORLD, 80), (VM, 22), 1, 2, b"")).frame(VM_MAC, bridge)),
        ("a first fragment", Ipv4 { fragment: 0x2000, ..to_vm(WORLD) }.frame(VM_MAC, bridge)),
        ("a later fragment", Ipv4 { fragment: 90, ..to_vm(WORLD) }.frame(VM_MAC, bridge)),
        ("an ICMP error", Ipv4::new(WORLD, VM, icmp(3, 1, &unreachable)).frame(VM_MAC, bridge)),
        ("ping", Ipv4::new(WORLD, VM, icmp(8, 0, &[0, 1, 0, 1])).frame(VM_MAC, bridge)),
        ("GRE", Ipv4::new(WORLD, VM, (47, vec![0; 40])).frame(VM_MAC, bridge)),
        (
            "multicast",
            Ipv4::new(GATEWAY, group, udp((GATEWAY, 9), (group, 9), b"all"))
                .frame(Mac([1, 0, 0x5e, 1, 2, 3]), bridge),
        ),
        ("an ARP request", Arp::request(bridge, GATEWAY, VM).frame()),
        ("an ARP reply", Arp::reply(bridge, GATEWAY, VM_MAC, VM).frame()),
        ("a neighbour's ARP request", Arp::request(OTHER_MAC, NEIGHBOUR, VM).frame()),
    ] {
        wire.reaches_vm(what, &frame)?;
    }
    let all = Ipv4Addr::BROADCAST;
    let broadcast =
        Ipv4::new(GATEWAY, all, udp((GATEWAY, 9), (all, 9), b"all")).frame(Mac::BROADCAST, bridge);
    wire.reaches_vm("broadcast", &broadcast)
}

pub fn i2_what_is_not_does_not() -> Result<()> {
    let mut wire = Wire::leased(&["--allow=0.0.0.0/0"])?;
    let bridge = wire.segment.mac;
    let inner = to_vm(WORLD).bytes();
    let tagged = [&[0, 7][..], &IPV4.to_be_bytes(), &inner].concat();
    let stp = Mac([0x01, 0x80, 0xc2, 0, 0, 0]);
    let lldp = Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e]);
    for (what, frame) in [
        ("another station's packet", to_vm(WORLD).frame(OTHER_MAC, bridge)),
        (
            "another station's ARP",
            ethernet(OTHER_MAC, bridge, ARP, &Arp::request(bridge, GATEWAY, VM).bytes()),
        ),
        ("a VLAN tag", ethernet(VM_MAC, bridge, 0x8100, &tagged)),
        ("a service VLAN tag", ethernet(VM_MAC, bridge, 0x88a8, &tagged)),
        ("a broadcast VLAN tag", ethernet(Mac::BROADCAST, bridge, 0x8100, &tagged)),
        ("IPv6", ethernet(VM_MAC, bridge, 0x86dd, &[0x60; 60])),
        (
            "an IPv6 router advertisement",
            ethernet(Mac([0x33, 0x33, 0, 0, 0, 1]), bridge, 0x86dd, &[0x60; 60]),
        ),
        ("RARP", ethernet(VM_MAC, bridge, 0x8035, &[0; 46])),
        ("MPLS", ethernet(VM_MAC, bridge, 0x8847, &inner)),
        ("STP", ethernet(stp, bridge, 38, &[0x42; 46])),
        ("STP, broadcast", ethernet(Mac::BROADCAST, bridge, 38, &[0x42; 46])),
        ("LLDP", ethernet(lldp, bridge, 0x88cc, &[1; 46])),
        ("LLDP, unicast", ethernet(VM_MAC, bridge, 0x88cc, &[1; 46])),
    ] {
        wire.never_reaches_vm(what, &frame)?;
    }
    Ok(())
}

pub fn i3_nobody_else_is_the_gateway() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let bridge = wire.segment.mac;
    for sender_mac in [OTHER_MAC, VM_MAC, Mac::ZERO, Mac::BROADCAST] {
        for (what, arp) in [
            ("a reply", Arp::reply(sender_mac, GATEWAY, VM_MAC, VM)),
            ("a request", Arp::request(sender_mac, GATEWAY, VM)),
            ("an announcement", Arp::request(sender_mac, GATEWAY, GATEWAY)),
            ("a broadcast reply", Arp::reply(sender_mac, GATEWAY, Mac::BROADCAST, GATEWAY)),
        ] {
            for from in [OTHER_MAC, bridge] {
                let to = if arp.operation == 1 { Mac::BROADCAST } else { arp.target_mac };
                let frame = ethernet(to, from, ARP, &arp.bytes());
                wire.never_reaches_vm(
                    &format!("{what} that puts the gateway at {sender_mac}, from {from}"),
                    &frame,
                )?;
            }
        }
    }
    wire.reaches_vm("the gateway's own", &Arp::reply(bridge, GATEWAY, VM_MAC, VM).frame())?;
    wire.reaches_vm("a neighbour about itself", &Arp::reply(OTHER_MAC, NEIGHBOUR, VM_MAC, VM).frame())
}

pub fn i4_garbage_harms_nothing() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let bridge = wire.segment.mac;
    // A fixed series without a pattern (Knuth's MMIX generator), so that a failure can be repeated.
    let mut state = 1u64;
    let mut byte = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    for round in 0..2000usize {
        let payload: Vec<u8> = (0..round % 200).map(|_| byte()).collect();
        let ether_type = if round % 2 == 0 { IPV4 } else { ARP };
        let frame = match round % 4 {
            0 | 1 => ethernet(VM_MAC, bridge, ether_type, &payload),
            2 => Ipv4::new(GATEWAY, VM, (17, payload)).frame(VM_MAC, bridge),
            _ => Ipv4::new(GATEWAY, VM, udp((GATEWAY, 67), (VM, 68), &payload)).frame(VM_MAC, bridge),
        };
        wire.segment.send(&frame)?;
        if round % 100 == 99 {
            wire.reaches_vm("a packet behind garbage", &to_vm(WORLD).frame(VM_MAC, bridge))?;
        }
    }
    wire.has_lease(VM)
}
