//! Rules S1 to S5.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use lab::DhcpServer;
use lab::deadline::until;
use lab::wire::{Dhcp, Ipv4, Mac, dhcp_kind, dhcp_option, icmp, igmp, tcp, udp};

use crate::wire::{GATEWAY, Marker, NEIGHBOUR, OTHER_MAC, VM, VM_MAC, WORLD, Wire, named, packet, to_world};

pub fn s1_source_is_leased() -> Result<()> {
    let mut wire = Wire::leased(&["--allow=0.0.0.0/0"])?;
    wire.has_lease(VM)?;
    for from in [
        NEIGHBOUR,
        GATEWAY,
        WORLD,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::LOCALHOST,
        Ipv4Addr::BROADCAST,
        [10, 7, 0, 3].into(),
        [10, 7, 0, 0].into(),
        [10, 7, 0, 255].into(),
        [224, 0, 0, 1].into(),
    ] {
        for to in [WORLD, GATEWAY] {
            let frame = wire.routed(&Ipv4::new(from, to, udp((from, 4000), (to, 80), b"spoofed")));
            wire.drops(&format!("{from} to {to}"), &frame)?;
        }
    }
    Ok(())
}

pub fn s1_nothing_before_the_lease() -> Result<()> {
    let mut wire = Wire::start(&["--allow=0.0.0.0/0"])?;
    wire.drops_all(&[wire.to(WORLD), wire.to(GATEWAY)])?;
    wire.requested(VM)?;
    wire.lacks_lease("a request without an answer", VM)
}

pub fn s1_nothing_after_release() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    wire.has_lease(VM)?;
    let release = Dhcp { ciaddr: VM, ..Dhcp::client(dhcp_kind::RELEASE, 0x77, VM_MAC) }
        .with(dhcp_option::SERVER, &GATEWAY.octets());
    wire.vm.send(&wire.routed(&release.packet(VM, GATEWAY)))?;
    wire.server().heard(dhcp_kind::RELEASE, 0x77)?;
    wire.marker = Marker::Discover;
    wire.lacks_lease("RELEASE", VM)
}

pub fn s1_nothing_after_decline() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    wire.has_lease(VM)?;
    let decline = Dhcp::client(dhcp_kind::DECLINE, 0x78, VM_MAC)
        .with(dhcp_option::REQUESTED_ADDRESS, &VM.octets())
        .with(dhcp_option::SERVER, &GATEWAY.octets());
    wire.vm.send(&decline.broadcast())?;
    wire.server().heard(dhcp_kind::DECLINE, 0x78)?;
    wire.marker = Marker::Discover;
    wire.lacks_lease("DECLINE", VM)
}

pub fn s1_nothing_after_nak() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    wire.has_lease(VM)?;
    let xid = wire.next();
    let renewal = Dhcp { ciaddr: VM, ..Dhcp::client(dhcp_kind::REQUEST, xid, VM_MAC) };
    wire.vm.send(&wire.routed(&renewal.packet(VM, GATEWAY)))?;
    let server = wire.server();
    server.heard(dhcp_kind::REQUEST, xid)?;
    server.send(&server.answer(dhcp_kind::NAK, xid, VM_MAC, VM), VM_MAC)?;
    DhcpServer::told(&wire.vm, dhcp_kind::NAK, xid)?;
    wire.marker = Marker::Discover;
    wire.lacks_lease("NAK", VM)
}

pub fn s1_nothing_after_expiry() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    let xid = wire.next();
    wire.server().with_lease_seconds(2).lease(&wire.vm, VM_MAC, VM, xid)?;
    wire.has_lease(VM)?;
    let frame = wire.to(WORLD).1;
    let expired = until(|| {
        let sent = wire.vm.send(&frame).is_ok();
        sent && wire.softnet.counters().is_ok_and(|counters| counters.from_vm.contains_key("no-lease"))
    });
    ensure!(expired, "a lease of two seconds never expires");
    wire.marker = Marker::Discover;
    // What passed before it expired is on the wire still; the marker ends it.
    wire.settle()?;
    wire.lacks_lease("expiry", VM)
}

pub fn s2_header_is_right() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let good = packet(WORLD);
    let right = wire.routed(&good);
    wire.passes("a right header", &right)?;
    wire.passes("a TTL of 1", &wire.routed(&Ipv4 { ttl: 1, ..good.clone() }))?;
    let bytes = good.bytes();
    let right_sum = u16::from_be_bytes([bytes[10], bytes[11]]);
    let len = bytes.len() as u16;
    let wrong = [
        ("version 0", Ipv4 { version: 0, ..good.clone() }),
        ("version 5", Ipv4 { version: 5, ..good.clone() }),
        ("version 6", Ipv4 { version: 6, ..good.clone() }),
        ("IHL 0", Ipv4 { ihl: Some(0), ..good.clone() }),
        ("IHL 4", Ipv4 { ihl: Some(4), ..good.clone() }),
        ("IHL beyond the frame", Ipv4 { ihl: Some(15), ..good.clone() }),
        ("total length 0", Ipv4 { total_len: Some(0), ..good.clone() }),
        ("total length below the header", Ipv4 { total_len: Some(19), ..good.clone() }),
        ("total length beyond the frame", Ipv4 { total_len: Some(len + 1), ..good.clone() }),
        ("total length of all ones", Ipv4 { total_len: Some(0xffff), ..good.clone() }),
        ("a wrong checksum", Ipv4 { checksum: Some(right_sum ^ 1), ..good.clone() }),
        ("no checksum", Ipv4 { checksum: Some(0), ..good.clone() }),
        ("a TTL of 0", Ipv4 { ttl: 0, ..good.clone() }),
        ("the reserved flag", Ipv4 { fragment: 0x8000, ..good.clone() }),
        ("the reserved flag with DF", Ipv4 { fragment: 0xc000, ..good.clone() }),
    ];
    let frames: Vec<_> = wrong.into_iter().map(|(what, packet)| named(what, wire.routed(&packet))).collect();
    wire.drops_all(&frames)
}

pub fn s3_no_options() -> Result<()> {
    let mut wire = Wire::leased(&["--allow=0.0.0.0/0"])?;
    let good = packet(WORLD);
    wire.passes("no options", &wire.routed(&good))?;
    for (what, options) in [
        ("no-operation", vec![1, 1, 1, 0]),
        ("end of list", vec![0, 0, 0, 0]),
        ("router alert", vec![148, 4, 0, 0]),
        ("record route", vec![7, 7, 4, 0, 0, 0, 0, 0]),
        ("timestamp", vec![68, 8, 5, 0, 0, 0, 0, 0]),
        ("loose source route", vec![131, 7, 4, 8, 8, 4, 4, 0]),
        ("strict source route", vec![137, 7, 4, 8, 8, 4, 4, 0]),
        ("security", vec![130, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("a length of 0", vec![148, 0, 0, 0]),
        ("as many as fit", vec![1; 40]),
    ] {
        let frame = wire.routed(&Ipv4 { options, ..good.clone() });
        wire.drops(what, &frame)?;
    }
    Ok(())
}

/// The exception: what a host reports about groups that an entry opens.
pub fn s3_reports_of_groups_may_alert_routers() -> Result<()> {
    const GROUP: Ipv4Addr = Ipv4Addr::new(239, 1, 2, 3);
    const ROUTERS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 22);
    let alert = || vec![148, 4, 0, 0];
    let report = |kind: u8, rest: &[u8], to: Ipv4Addr| Ipv4 {
        ttl: 1,
        options: alert(),
        ..Ipv4::new(VM, to, igmp(kind, rest))
    };
    let in_its_mac = |packet: &Ipv4| {
        let [_, b, c, d] = packet.to.octets();
        packet.frame(Mac([0x01, 0, 0x5e, b & 0x7f, c, d]), VM_MAC)
    };
    let joins = report(0x16, &GROUP.octets(), GROUP);
    let record = [&[0, 0, 0, 1, 4, 0, 0, 0], &GROUP.octets()[..]].concat();
    let version_3 = report(0x22, &record, ROUTERS);
    let leaves = report(0x17, &GROUP.octets(), [224, 0, 0, 2].into());

    let mut wire = Wire::leased(&["--allow=239.1.0.0/16,224.0.0.22"])?;
    wire.passes("a report", &in_its_mac(&joins))?;
    wire.passes("a report of version 3", &in_its_mac(&version_3))?;
    let mut broken = joins.clone();
    broken.payload[3] ^= 1;
    let query = report(0x11, &[0; 4], GROUP);
    let wrong = [
        named("a leave to a closed group", in_its_mac(&leaves)),
        named(
            "a report to another closed group",
            in_its_mac(&report(0x16, &[239, 2, 0, 1], [239, 2, 0, 1].into())),
        ),
        named("a query", in_its_mac(&query)),
        named("a query without the option", in_its_mac(&Ipv4 { options: vec![], ..query.clone() })),
        named("a wrong checksum", in_its_mac(&broken)),
        named("a TTL of 2", in_its_mac(&Ipv4 { ttl: 2, ..joins.clone() })),
        named("a foreign source", in_its_mac(&Ipv4 { from: NEIGHBOUR, ..joins.clone() })),
        named("another group's MAC", joins.frame(Mac([0x01, 0, 0x5e, 1, 2, 4]), VM_MAC)),
        named("the gateway's MAC", wire.routed(&joins)),
        named("a second option", {
            let options = [alert(), vec![7, 7, 4, 0, 0, 0, 0, 0]].concat();
            in_its_mac(&Ipv4 { options, ..joins.clone() })
        }),
        named("a value in the option", in_its_mac(&Ipv4 { options: vec![148, 4, 0, 1], ..joins.clone() })),
        named("UDP with the option", {
            let datagram = Ipv4::new(VM, GROUP, udp((VM, 9), (GROUP, 9), b"options"));
            in_its_mac(&Ipv4 { ttl: 1, options: alert(), ..datagram })
        }),
    ];
    wire.drops_all(&wrong)?;
    wire.restart_leased(&[])?;
    wire.drops("a report with nothing opened", &in_its_mac(&joins))?;
    wire.restart_leased(&["--allow=0.0.0.0/0"])?;
    wire.passes("a leave where everything is open", &in_its_mac(&leaves))
}

pub fn s4_fragments() -> Result<()> {
    const MORE: u16 = 0x2000;
    const DONT: u16 = 0x4000;
    let mut wire = Wire::start(&["--allow=10.7.0.9"])?;
    let xid = wire.next();
    let resolver: Ipv4Addr = [192, 168, 50, 53].into();
    wire.server().with_dns(vec![resolver]).lease(&wire.vm, VM_MAC, VM, xid)?;
    wire.has_lease(VM)?;
    let part = |to, protocol, fragment, payload: Vec<u8>| Ipv4 {
        fragment,
        ..Ipv4::new(VM, to, (protocol, payload))
    };
    // The UDP length is that of the whole datagram, of which this is the beginning.
    let datagram = udp((VM, 4000), (WORLD, 80), &[9; 400]).1[..80].to_vec();
    let segment = tcp((VM, 4000), (WORLD, 80), 1, 2, &[9; 20]).1;
    let dhcp_like = udp((VM, 68), (WORLD, 67), &[9; 72]).1;
    for (what, packet) in [
        ("a first UDP fragment", part(WORLD, 17, MORE, datagram.clone())),
        ("a first TCP fragment", part(WORLD, 6, MORE, segment.clone())),
        ("a middle fragment", part(WORLD, 17, MORE | 10, vec![3; 80])),
        ("a last fragment of odd length", part(WORLD, 17, 20, vec![3; 13])),
        ("a last fragment at the very end", part(WORLD, 17, 8189, vec![3; 3])),
        ("a later fragment that looks like DHCP", part(WORLD, 17, 100, dhcp_like)),
        ("a first UDP fragment to the gateway", part(GATEWAY, 17, MORE, datagram.clone())),
        ("a later UDP fragment to the gateway", part(GATEWAY, 17, 10, vec![3; 80])),
        ("a later ICMP fragment to the gateway", part(GATEWAY, 1, 10, vec![3; 80])),
    ] {
        wire.passes(what, &wire.routed(&packet))?;
    }
    for (what, packet) in [
        ("beyond 65,535 bytes", part(WORLD, 17, 8191, vec![3; 8])),
        ("beyond 65,535 bytes with more to come", part(WORLD, 17, MORE | 8190, vec![3; 800])),
        ("DF with MF", part(WORLD, 17, DONT | MORE, datagram.clone())),
        ("a first fragment of odd length", part(WORLD, 17, MORE, datagram[..79].to_vec())),
        ("a middle fragment of odd length", part(WORLD, 17, MORE | 10, vec![3; 81])),
        ("TCP's first 8 bytes", part(WORLD, 6, MORE, segment[..8].to_vec())),
        ("TCP's first 16 bytes", part(WORLD, 6, MORE, segment[..16].to_vec())),
        ("TCP at offset 1", part(WORLD, 6, 1, segment[8..].to_vec())),
        ("TCP at offset 1 with more to come", part(WORLD, 6, MORE | 1, segment[8..].to_vec())),
        ("nothing of UDP", part(WORLD, 17, MORE, vec![])),
        ("a first TCP fragment to the gateway", part(GATEWAY, 6, MORE, segment.clone())),
        ("a later TCP fragment to the gateway", part(GATEWAY, 6, 10, vec![3; 80])),
        (
            "a first fragment to the resolver",
            part(resolver, 17, MORE, udp((VM, 4), (resolver, 53), &[9; 400]).1[..80].to_vec()),
        ),
        ("a later fragment to the resolver", part(resolver, 17, 10, vec![3; 80])),
    ] {
        wire.drops(what, &wire.routed(&packet))?;
    }
    let neighbour = part(NEIGHBOUR, 17, 10, vec![3; 80]).frame(OTHER_MAC, VM_MAC);
    wire.drops("a later fragment to an allowed neighbour", &neighbour)?;
    wire.restart_leased(&["--block=@host"])?;
    let frame = wire.routed(&part(GATEWAY, 17, 10, vec![3; 80]));
    wire.drops("a later UDP fragment to a closed gateway", &frame)
}

pub fn s5_transport_headers_are_whole() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let segment = tcp((VM, 4000), (WORLD, 80), 1, 2, b"").1;
    let datagram = udp((VM, 4000), (WORLD, 80), b"12345678").1;
    let ping = icmp(8, 0, &[0, 1, 0, 2]).1;
    for (what, transport) in
        [("TCP", (6, segment.clone())), ("UDP", (17, datagram.clone())), ("ICMP", (1, ping.clone()))]
    {
        wire.passes(what, &wire.routed(&to_world(transport)))?;
    }
    let mut frames = Vec::new();
    for len in 0..20 {
        frames
            .push(named(format!("TCP of {len} bytes"), wire.routed(&to_world((6, segment[..len].to_vec())))));
    }
    for words in [0, 4, 6, 15] {
        let mut wrong = segment.clone();
        wrong[12] = words << 4;
        frames.push(named(format!("TCP data offset {words}"), wire.routed(&to_world((6, wrong)))));
    }
    for len in 0..8 {
        frames.push(named(
            format!("UDP of {len} bytes"),
            wire.routed(&to_world((17, datagram[..len].to_vec()))),
        ));
        frames.push(named(format!("ICMP of {len} bytes"), wire.routed(&to_world((1, ping[..len].to_vec())))));
    }
    for len in [0u16, 7, 8, 15, 17, 0xffff] {
        let mut wrong = datagram.clone();
        wrong[4..6].copy_from_slice(&len.to_be_bytes());
        frames.push(named(format!("UDP length {len} of 16"), wire.routed(&to_world((17, wrong)))));
    }
    wire.drops_all(&frames)
}
