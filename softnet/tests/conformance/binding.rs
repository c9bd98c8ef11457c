//! Rules B1 to B9: what makes a lease, and what does not.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use lab::DhcpServer;
use lab::deadline::{Deadline, until};
use lab::wire::{Dhcp, Ipv4, Mac, dhcp_kind as kind, dhcp_option as option, udp};

use crate::wire::{GATEWAY, Marker, NEIGHBOUR, OTHER_MAC, VM, VM_MAC, Wire, named};

/// The server's packet from the right ports.
fn reply(message: &Dhcp, from: Ipv4Addr, to: Ipv4Addr) -> Ipv4 {
    message.packet(from, to)
}

pub fn b1_only_a_matching_ack_binds() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    let xid = wire.requested(VM)?;
    let bridge = wire.segment.mac;
    let ack = wire.server().answer(kind::ACK, xid, VM_MAC, VM);
    let right = reply(&ack, GATEWAY, VM);
    let framed = |packet: &Ipv4| packet.frame(VM_MAC, bridge);
    let changed = |change: &dyn Fn(&mut Dhcp)| {
        let mut ack = ack.clone();
        change(&mut ack);
        reply(&ack, GATEWAY, VM).frame(VM_MAC, bridge)
    };
    let with_udp = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = right.clone();
        change(&mut packet.payload);
        packet.frame(VM_MAC, bridge)
    };
    let from_port = |sport: u16, dport: u16| {
        Ipv4::new(GATEWAY, VM, udp((GATEWAY, sport), (VM, dport), &ack.bytes())).frame(VM_MAC, bridge)
    };
    let option_of = |code: u8, value: &[u8]| changed(&|it| *it = it.clone().without(code).with(code, value));
    let wrong = [
        named("another station's Ethernet source", right.frame(VM_MAC, OTHER_MAC)),
        named("another station's address", framed(&reply(&ack, NEIGHBOUR, VM))),
        named("from port 68", from_port(68, 68)),
        named("from port 4000", from_port(4000, 68)),
        named("to port 67", from_port(67, 67)),
        named("to port 4000", from_port(67, 4000)),
        named("a wrong UDP checksum", with_udp(&|udp| udp[6] ^= 0x55)),
        named("no UDP checksum", with_udp(&|udp| udp[6..8].fill(0))),
        named("a wrong UDP length", with_udp(&|udp| udp[5] ^= 1)),
        named("a first fragment", framed(&Ipv4 { fragment: 0x2000, ..right.clone() })),
        named("a wrong IP checksum", framed(&Ipv4 { checksum: Some(1), ..right.clone() })),
        named("op 1", changed(&|it| it.op = 1)),
        named("hlen 5", changed(&|it| it.hardware_len = 5)),
        named("hlen 16", changed(&|it| it.hardware_len = 16)),
        named("a wrong cookie", changed(&|it| it.cookie = [1, 2, 3, 4])),
        named("another's chaddr", changed(&|it| it.chaddr[5] ^= 1)),
        named("another xid", changed(&|it| it.xid ^= 1)),
        named("two message types", changed(&|it| *it = it.clone().with(option::MESSAGE_TYPE, &[kind::ACK]))),
        named("no message type", changed(&|it| *it = it.clone().without(option::MESSAGE_TYPE))),
        named("no lease time", changed(&|it| *it = it.clone().without(option::LEASE_TIME))),
        named("a lease time of three bytes", option_of(option::LEASE_TIME, &[0, 0, 9])),
        named("a lease time of five bytes", option_of(option::LEASE_TIME, &[0, 0, 0, 9, 9])),
        named("no server", changed(&|it| *it = it.clone().without(option::SERVER))),
        named("another server", option_of(option::SERVER, &NEIGHBOUR.octets())),
        named("a server of three bytes", option_of(option::SERVER, &[10, 7, 0])),
        named("for another station", right.frame(OTHER_MAC, bridge)),
        named("for another address", framed(&reply(&ack, GATEWAY, NEIGHBOUR))),
    ];
    for (what, frame) in &wrong {
        wire.segment.send(frame)?;
        let marker =
            Ipv4::new(GATEWAY, VM, udp((GATEWAY, 9), (VM, 9), what.as_bytes())).frame(VM_MAC, bridge);
        wire.reaches_vm("a packet behind it", &marker)?;
        wire.lacks_lease(&format!("an ACK with {what}"), VM)?;
    }
    // The transaction is open still: the right answer binds.
    wire.server().send(&ack, VM_MAC)?;
    DhcpServer::told(&wire.vm, kind::ACK, xid)?;
    wire.has_lease(VM)?;
    // And it is closed now: a second answer does not.
    let second = wire.server().answer(kind::ACK, xid, VM_MAC, VM);
    wire.never_reaches_vm("a second ACK", &wire.server().frame(&second, VM_MAC))?;
    wire.has_lease(VM)
}

pub fn b2_address_is_in_the_subnet() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    let xid = wire.requested(VM)?;
    for address in [
        GATEWAY,
        [10, 7, 0, 0].into(),
        [10, 7, 0, 255].into(),
        [10, 7, 1, 2].into(),
        [10, 6, 255, 255].into(),
        [8, 8, 8, 8].into(),
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::BROADCAST,
        [224, 0, 0, 1].into(),
    ] {
        let ack = wire.server().answer(kind::ACK, xid, VM_MAC, address);
        for to in [address, Ipv4Addr::BROADCAST] {
            let frame = reply(&ack, GATEWAY, to).frame(VM_MAC, wire.segment.mac);
            wire.inbound(&frame)?;
            wire.lacks_lease(&format!("an ACK of {address}"), address)?;
        }
    }
    wire.server().send(&wire.server().answer(kind::ACK, xid, VM_MAC, VM), VM_MAC)?;
    DhcpServer::told(&wire.vm, kind::ACK, xid)?;
    wire.has_lease(VM)
}

pub fn b3_ignored_acks() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    let xid = wire.requested(VM)?;
    let none = wire.server().with_lease_seconds(0).answer(kind::ACK, xid, VM_MAC, VM);
    let malformed = Dhcp { tail: vec![12, 250], ..wire.server().answer(kind::ACK, xid, VM_MAC, VM) };
    for (what, ack) in [("a lease of no time", none), ("an option beyond the end", malformed)] {
        let frame = wire.server().frame(&ack, VM_MAC);
        wire.inbound(&frame)?;
        wire.lacks_lease(what, VM)?;
    }
    wire.server().send(&wire.server().answer(kind::ACK, xid, VM_MAC, VM), VM_MAC)?;
    DhcpServer::told(&wire.vm, kind::ACK, xid)?;
    wire.has_lease(VM)?;
    let xid = wire.next();
    let inform = Dhcp { ciaddr: VM, ..Dhcp::client(kind::INFORM, xid, VM_MAC) };
    wire.vm.send(&wire.routed(&inform.packet(VM, GATEWAY)))?;
    wire.server().heard(kind::INFORM, xid)?;
    let offer = wire.server().answer(kind::OFFER, xid, VM_MAC, NEIGHBOUR);
    wire.never_reaches_vm("an OFFER to INFORM", &wire.server().frame(&offer, VM_MAC))?;
    wire.lacks_lease("an OFFER to INFORM", NEIGHBOUR)?;
    wire.has_lease(VM)
}

pub fn b4_infinity() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    for lease_seconds in [u32::MAX, u32::MAX - 1, 0x8000_0000, 1 << 30] {
        let xid = wire.next();
        wire.server().with_lease_seconds(lease_seconds).lease(&wire.vm, VM_MAC, VM, xid)?;
        wire.has_lease(VM)?;
    }
    Ok(())
}

pub fn b5_replace_and_nak() -> Result<()> {
    let new: Ipv4Addr = [10, 7, 0, 3].into();
    let mut wire = Wire::leased(&[])?;
    wire.has_lease(VM)?;
    wire.lease(new)?;
    wire.has_lease(new)?;
    wire.lacks_lease("another ACK", VM)?;
    let xid = wire.next();
    let renewal = Dhcp { ciaddr: new, ..Dhcp::client(kind::REQUEST, xid, VM_MAC) };
    wire.vm.send(&wire.routed(&renewal.packet(new, GATEWAY)))?;
    wire.server().heard(kind::REQUEST, xid)?;
    let nak = wire.server().answer(kind::NAK, xid, VM_MAC, new);
    let all = Ipv4Addr::BROADCAST;
    let bridge = wire.segment.mac;
    let other_xid = Dhcp { xid: xid ^ 1, ..nak.clone() };
    let other_server = nak.clone().without(option::SERVER).with(option::SERVER, &NEIGHBOUR.octets());
    let mut other_client = nak.clone();
    other_client.chaddr[0] ^= 2;
    for (what, frame) in [
        ("another xid", reply(&other_xid, GATEWAY, all).frame(VM_MAC, bridge)),
        ("another server", reply(&other_server, GATEWAY, all).frame(VM_MAC, bridge)),
        ("no server", reply(&nak.clone().without(option::SERVER), GATEWAY, all).frame(VM_MAC, bridge)),
        ("another client", reply(&other_client, GATEWAY, all).frame(VM_MAC, bridge)),
        ("another station", reply(&nak, GATEWAY, all).frame(VM_MAC, OTHER_MAC)),
        ("another address", reply(&nak, NEIGHBOUR, all).frame(VM_MAC, bridge)),
    ] {
        wire.never_reaches_vm(&format!("a NAK with {what}"), &frame)?;
        wire.has_lease(new)?;
    }
    let right = reply(&nak, GATEWAY, all).frame(Mac::BROADCAST, bridge);
    wire.reaches_vm("the right NAK", &right)?;
    wire.marker = Marker::Discover;
    wire.lacks_lease("a NAK", new)
}

pub fn b6_rogue_servers_do_not_reach_the_vm() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    let xid = wire.next();
    wire.vm.send(&Dhcp::client(kind::DISCOVER, xid, VM_MAC).broadcast())?;
    wire.server().heard(kind::DISCOVER, xid)?;
    let bridge = wire.segment.mac;
    let rogue = Dhcp { yiaddr: VM, ..Dhcp::server(kind::OFFER, xid, VM_MAC, NEIGHBOUR) }
        .with(option::LEASE_TIME, &600u32.to_be_bytes())
        .with(option::ROUTER, &NEIGHBOUR.octets());
    for mac in [VM_MAC, Mac::BROADCAST] {
        for to in [VM, Ipv4Addr::BROADCAST] {
            let what = format!("a rogue OFFER for {mac} at {to}");
            wire.never_reaches_vm(&what, &reply(&rogue, NEIGHBOUR, to).frame(mac, OTHER_MAC))?;
            wire.never_reaches_vm(
                &format!("{what} as the bridge"),
                &reply(&rogue, NEIGHBOUR, to).frame(mac, bridge),
            )?;
            wire.never_reaches_vm(
                &format!("{what} as the server"),
                &reply(&rogue, GATEWAY, to).frame(mac, bridge),
            )?;
            wire.never_reaches_vm(
                &format!("{what} as another"),
                &reply(&rogue, GATEWAY, to).frame(mac, OTHER_MAC),
            )?;
        }
    }
    let unasked = wire.server().answer(kind::OFFER, xid ^ 0xff, VM_MAC, VM);
    wire.never_reaches_vm("an OFFER that nobody asked for", &wire.server().frame(&unasked, VM_MAC))?;
    let right = wire.server().answer(kind::OFFER, xid, VM_MAC, VM);
    wire.reaches_vm("the right OFFER", &wire.server().frame(&right, VM_MAC))
}

/// PXE: a VM with a lease asks at the gateway's port 4011, and the answer binds nothing.
pub fn b6_a_boot_server_answers() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    wire.has_lease(VM)?;
    let xid = wire.next();
    let question = Dhcp { ciaddr: VM, ..Dhcp::client(kind::REQUEST, xid, VM_MAC) }
        .with(option::SERVER, &GATEWAY.octets());
    let asked = |question: &Dhcp, from: u16, to: Ipv4Addr| {
        Ipv4::new(VM, to, udp((VM, from), (to, 4011), &question.bytes()))
    };
    let told = |ack: &Dhcp, from: u16, to: Ipv4Addr| {
        Ipv4::new(GATEWAY, to, udp((GATEWAY, from), (to, 68), &ack.bytes()))
    };
    let bridge = wire.segment.mac;
    let ack = wire.server().answer(kind::ACK, xid, VM_MAC, VM).without(option::LEASE_TIME);
    let right = told(&ack, 4011, VM).frame(VM_MAC, bridge);
    wire.never_reaches_vm("a boot server's answer that nobody asked for", &right)?;

    let release = Dhcp { ciaddr: VM, ..Dhcp::client(kind::RELEASE, xid, VM_MAC) };
    let wrong = [
        named("from another port", wire.routed(&asked(&question, 40_000, GATEWAY))),
        named("a RELEASE", wire.routed(&asked(&release, 68, GATEWAY))),
        named("to all", asked(&question, 68, Ipv4Addr::BROADCAST).frame(Mac::BROADCAST, VM_MAC)),
        named("for another address", {
            let other = question.clone().with(option::REQUESTED_ADDRESS, &NEIGHBOUR.octets());
            wire.routed(&asked(&other, 68, GATEWAY))
        }),
    ];
    wire.drops_all(&wrong)?;
    wire.passes("a question to the boot server", &wire.routed(&asked(&question, 68, GATEWAY)))?;
    let elsewhere = Ipv4::new(VM, crate::wire::WORLD, udp((VM, 40_000), (crate::wire::WORLD, 4011), b"game"));
    wire.passes("the same port of somebody else", &wire.routed(&elsewhere))?;

    let bridge_ack = |ack: &Dhcp| told(ack, 4011, VM).frame(VM_MAC, bridge);
    let other = wire.server().answer(kind::ACK, xid, VM_MAC, NEIGHBOUR);
    let to_all = told(&other, 4011, Ipv4Addr::BROADCAST).frame(Mac::BROADCAST, bridge);
    let wrong = [
        named("an address", to_all),
        named("a NAK", bridge_ack(&wire.server().answer(kind::NAK, xid, VM_MAC, VM))),
        named("another number", bridge_ack(&Dhcp { xid: xid ^ 1, ..ack.clone() })),
        named("the DHCP server's port", told(&ack, 67, VM).frame(VM_MAC, bridge)),
        named("another station", told(&ack, 4011, VM).frame(VM_MAC, OTHER_MAC)),
    ];
    for (what, frame) in wrong {
        wire.never_reaches_vm(&what, &frame)?;
        wire.has_lease(VM)?;
    }
    wire.reaches_vm("the boot server's answer", &right)?;
    wire.has_lease(VM)?;
    wire.lacks_lease("the boot server's answer", NEIGHBOUR)
}

pub fn b7_no_more_than_the_server_gives() -> Result<()> {
    let new: Ipv4Addr = [10, 7, 0, 3].into();
    let select = |xid: u32, address: Ipv4Addr| {
        Dhcp::client(kind::REQUEST, xid, VM_MAC)
            .with(option::REQUESTED_ADDRESS, &address.octets())
            .with(option::SERVER, &GATEWAY.octets())
            .broadcast()
    };
    let renewal = |xid: u32| Dhcp { ciaddr: VM, ..Dhcp::client(kind::REQUEST, xid, VM_MAC) };
    let mut wire = Wire::leased(&[])?;
    // One number asks for one thing.
    wire.passes("a renewal", &wire.routed(&renewal(1).packet(VM, GATEWAY)))?;
    wire.drops("another address under its number", &select(1, new))?;
    wire.has_lease(VM)?;
    // Under another it passes, and the server may move the VM, whether or not its answer ever comes.
    wire.marker = Marker::Discover;
    wire.passes("a REQUEST for another address", &select(2, new))?;
    wire.lacks_lease("a REQUEST for another address", VM)?;
    // The answer to the renewal comes late, and brings nothing back.
    let late = wire.server().answer(kind::ACK, 1, VM_MAC, VM);
    wire.never_reaches_vm("a late ACK", &wire.server().frame(&late, VM_MAC))?;
    wire.lacks_lease("a late ACK", VM)?;
    wire.server().send(&wire.server().answer(kind::ACK, 2, VM_MAC, new), VM_MAC)?;
    DhcpServer::told(&wire.vm, kind::ACK, 2)?;
    wire.has_lease(new)
}

pub fn b7_the_servers_word_counts_unasked() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let unasked = wire.server().answer(kind::ACK, 0x77, VM_MAC, VM);
    wire.never_reaches_vm("an ACK that nobody asked for", &wire.server().frame(&unasked, VM_MAC))?;
    wire.has_lease(VM)?;
    let other = wire.server().answer(kind::ACK, 0x77, VM_MAC, NEIGHBOUR);
    let forged = reply(&other, GATEWAY, NEIGHBOUR).frame(VM_MAC, OTHER_MAC);
    wire.never_reaches_vm("a forged ACK", &forged)?;
    wire.has_lease(VM)?;
    wire.never_reaches_vm("an ACK for another address", &wire.server().frame(&other, VM_MAC))?;
    wire.marker = Marker::Discover;
    wire.lacks_lease("an ACK for another address", VM)
}

/// The VM asks for a second more, and the answer is lost: the lease ends when the server's does.
pub fn b7_an_asked_time_caps_the_lease() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let renewal = Dhcp { ciaddr: VM, ..Dhcp::client(kind::REQUEST, 5, VM_MAC) }
        .with(option::LEASE_TIME, &1u32.to_be_bytes());
    wire.passes("a renewal for a second", &wire.routed(&renewal.packet(VM, GATEWAY)))?;
    let frame = wire.to(crate::wire::WORLD).1;
    let ended = until(|| {
        let sent = wire.vm.send(&frame).is_ok();
        sent && wire.softnet.counters().is_ok_and(|counters| counters.from_vm.contains_key("no-lease"))
    });
    ensure!(ended, "the lease outlives what was asked for: {:?}", wire.softnet.counters());
    Ok(())
}

pub fn b8_an_inform_is_answered() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    for (xid, yours, seconds) in
        [(1, None, Some(600)), (2, Some(VM), Some(1)), (3, None, None), (4, None, Some(0))]
    {
        let inform = Dhcp { ciaddr: VM, ..Dhcp::client(kind::INFORM, xid, VM_MAC) };
        wire.passes("an INFORM", &wire.routed(&inform.packet(VM, GATEWAY)))?;
        let mut ack = Dhcp::server(kind::ACK, xid, VM_MAC, GATEWAY);
        ack.yiaddr = yours.unwrap_or(Ipv4Addr::UNSPECIFIED);
        if let Some(seconds) = seconds {
            ack = ack.with(option::LEASE_TIME, &u32::to_be_bytes(seconds));
        }
        let frame = reply(&ack, GATEWAY, VM).frame(VM_MAC, wire.segment.mac);
        wire.reaches_vm("an ACK to INFORM", &frame)?;
    }
    wire.has_lease(VM)
}

pub fn b9_a_given_address_needs_no_dhcp_and_has_no_end() -> Result<()> {
    let mut wire = Wire::start(&["--vm-address=10.7.0.2"])?;
    wire.has_lease(VM)?;
    wire.lacks_lease("the start with another one", NEIGHBOUR)?;
    // A server of the segment cannot give it another, nor limit it.
    let xid = wire.requested(VM)?;
    let other = wire.server().answer(kind::ACK, xid, VM_MAC, NEIGHBOUR);
    wire.never_reaches_vm("an ACK of another address", &wire.server().frame(&other, VM_MAC))?;
    wire.server().send(&wire.server().with_lease_seconds(1).answer(kind::ACK, xid, VM_MAC, VM), VM_MAC)?;
    DhcpServer::told(&wire.vm, kind::ACK, xid)?;
    let longer = Deadline::after(std::time::Duration::from_millis(1200));
    while !longer.left().is_zero() {
        wire.has_lease(VM)?;
    }
    Ok(())
}
