//! Rules D1 to D9.

use std::net::Ipv4Addr;

use anyhow::Result;
use lab::DhcpServer;
use lab::wire::{Arp, Dhcp, Ipv4, Mac, dhcp_kind, icmp, tcp, udp};

use crate::wire::{
    GATEWAY, Marker, NEIGHBOUR, Named, OTHER_MAC, VM, VM_MAC, WORLD, Wire, named, packet, to_world,
};

fn address(text: &str) -> Ipv4Addr {
    text.parse().expect("an address in a test")
}

/// UDP to each of these, at the gateway's MAC.
fn to_each(wire: &Wire, addresses: &[&str]) -> Vec<Named> {
    addresses.iter().map(|text| wire.to(address(text))).collect()
}

/// The Ethernet address of a group (RFC 1112, 6.4).
fn group_mac(group: Ipv4Addr) -> Mac {
    let [_, b, c, d] = group.octets();
    Mac([0x01, 0, 0x5e, b & 0x7f, c, d])
}

pub fn d1_never() -> Result<()> {
    const NEVER: &[&str] = &[
        "0.0.0.0",
        "0.1.2.3",
        "0.255.255.255",
        "127.0.0.0",
        "127.0.0.1",
        "127.255.255.255",
        "240.0.0.0",
        "250.1.2.3",
        "255.255.255.254",
        "255.255.255.255",
        "10.7.0.0",
        "10.7.0.2",
        "10.7.0.255",
    ];
    let mut wire = Wire::leased(&[])?;
    for flags in [
        &[][..],
        &["--allow=0.0.0.0/0"],
        &["--allow=0.0.0.0/8,127.0.0.0/8,240.0.0.0/4,255.255.255.255,10.7.0.0,10.7.0.2,10.7.0.255"],
    ] {
        wire.restart_leased(flags)?;
        let mut frames = to_each(&wire, NEVER);
        for text in ["255.255.255.255", "10.7.0.255", "10.7.0.0"] {
            frames.push(named(
                format!("broadcast to {text}"),
                packet(address(text)).frame(Mac::BROADCAST, VM_MAC),
            ));
            frames.push(named(format!("neighbour, {text}"), packet(address(text)).frame(OTHER_MAC, VM_MAC)));
        }
        wire.drops_all(&frames)?;
        wire.has_lease(VM)?;
    }
    Ok(())
}

pub fn d2_longest_prefix() -> Result<()> {
    let mut wire = Wire::leased(&[
        "--block=8.0.0.0/8,8.8.8.0/24",
        "--allow=8.8.0.0/16",
        "--allow=8.8.8.8",
        "--allow=192.168.0.0/16",
        "--block=192.168.7.9/24",
        "--allow=192.168.7.128/25",
    ])?;
    let passing = to_each(
        &wire,
        &["8.8.0.0", "8.8.7.255", "8.8.9.0", "8.8.255.255", "8.8.8.8", "7.255.255.255", "9.0.0.0"],
    );
    wire.passes_all(&passing)?;
    let passing =
        to_each(&wire, &["192.168.0.1", "192.168.6.255", "192.168.8.0", "192.168.7.128", "192.168.7.255"]);
    wire.passes_all(&passing)?;
    // Host bits of 192.168.7.9/24 are masked: the whole /24 is meant.
    let dropped = to_each(
        &wire,
        &["8.0.0.0", "8.7.255.255", "8.9.0.0", "8.255.255.255", "8.8.8.0", "8.8.8.7", "8.8.8.9", "8.8.8.255"],
    );
    wire.drops_all(&dropped)?;
    let dropped = to_each(&wire, &["192.168.7.0", "192.168.7.9", "192.168.7.127"]);
    wire.drops_all(&dropped)
}

pub fn d2_the_alias_and_the_same_prefix() -> Result<()> {
    let mut wire = Wire::leased(&["--allow=9.9.9.9,9.9.0.0/16", "--block=9.9.9.9/32", "--block=9.9.0.0/16"])?;
    let both = to_each(&wire, &["9.9.9.9", "9.9.9.8"]);
    wire.drops_all(&both)?;
    wire.restart_leased(&["--block=@host"])?;
    let gateway = wire.to(GATEWAY);
    wire.drops_all(&[
        gateway.clone(),
        named("a ping", wire.routed(&Ipv4::new(VM, GATEWAY, icmp(8, 0, &[0, 1, 0, 1])))),
    ])?;
    wire.has_lease(VM)?;
    wire.restart_leased(&["--block=10.0.0.0/8", "--allow=@host"])?;
    wire.passes(&gateway.0, &gateway.1)?;
    wire.restart_leased(&["--allow=@host", "--block=10.7.0.1"])?;
    wire.drops(&gateway.0, &gateway.1)
}

pub fn d3_exact_boundaries() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    #[rustfmt::skip]
    let global = to_each(&wire, &[
        "1.0.0.0", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
        "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0",
        "191.255.255.255", "192.0.0.9", "192.0.0.10", "192.0.1.0", "192.0.1.255", "192.0.3.0", "192.88.98.255",
        "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255",
        "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
    ]);
    wire.passes_all(&global)?;
    #[rustfmt::skip]
    let mut special = to_each(&wire, &[
        "10.0.0.0", "10.255.255.255", "10.7.0.9", "10.7.1.0", "100.64.0.0", "100.127.255.255", "168.63.129.16",
        "169.254.0.0", "169.254.169.254", "169.254.255.255", "172.16.0.0", "172.31.255.255", "192.0.0.0", "192.0.0.8",
        "192.0.0.11", "192.0.0.170", "192.0.0.255", "192.0.2.0", "192.0.2.255", "192.88.99.0", "192.88.99.255",
        "192.168.0.0", "192.168.255.255", "198.18.0.0", "198.19.255.255", "198.51.100.0", "198.51.100.255",
        "203.0.113.0", "203.0.113.255", "224.0.0.0", "224.0.0.251", "239.255.255.255",
    ]);
    for group in ["224.0.0.1", "224.0.0.22", "224.0.0.251", "239.255.255.250"] {
        let frame = packet(address(group)).frame(group_mac(address(group)), VM_MAC);
        special.push(named(format!("the group {group} at its MAC"), frame));
    }
    special.push(named("the neighbour at its MAC", packet(NEIGHBOUR).frame(OTHER_MAC, VM_MAC)));
    wire.drops_all(&special)
}

pub fn d4_gateway_protocols() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    for (what, transport) in [
        ("TCP", tcp((VM, 4000), (GATEWAY, 22), 1, 2, b"")),
        ("UDP", udp((VM, 4000), (GATEWAY, 123), b"time")),
        ("ICMP", icmp(8, 0, &[0, 1, 0, 1])),
    ] {
        wire.passes(&format!("{what} to the gateway"), &wire.routed(&Ipv4::new(VM, GATEWAY, transport)))?;
    }
    // IGMP, IPIP, EGP, 6in4, RSVP, GRE, ESP, AH, EIGRP, OSPF, PIM, VRRP, L2TP, SCTP, UDP-Lite, and unassigned ones.
    let protocols = [0, 2, 4, 8, 41, 46, 47, 50, 51, 88, 89, 103, 112, 115, 132, 136, 150, 255];
    let to_gateway: Vec<_> = protocols
        .iter()
        .map(|protocol| {
            let packet = Ipv4::new(VM, GATEWAY, (*protocol, vec![0x45; 40]));
            named(format!("protocol {protocol} to the gateway"), wire.routed(&packet))
        })
        .collect();
    wire.drops_all(&to_gateway)?;
    for protocol in [4, 41, 47, 50, 51, 132] {
        let frame = wire.routed(&to_world((protocol, vec![0x45; 40])));
        wire.passes(&format!("protocol {protocol} to the world"), &frame)?;
    }
    Ok(())
}

pub fn d5_resolvers() -> Result<()> {
    let private = address("192.168.50.53");
    let on_link = address("10.7.0.53");
    let insane = ["127.0.0.1", "224.0.0.251", "0.0.0.0", "255.255.255.255", "10.7.0.255"].map(address);
    let mut wire = Wire::start(&[])?;
    let xid = wire.next();
    let mut dns = vec![private, on_link];
    dns.extend(insane);
    wire.server().with_dns(dns.clone()).lease(&wire.vm, VM_MAC, VM, xid)?;
    wire.marker = Marker::Gateway(VM);
    let query = |to, port| Ipv4::new(VM, to, udp((VM, 4000), (to, port), b"a query"));
    let connect = |to, port| Ipv4::new(VM, to, tcp((VM, 4000), (to, port), 1, 2, b""));
    wire.passes("DNS to a private resolver", &wire.routed(&query(private, 53)))?;
    wire.passes("DNS over TCP to it", &wire.routed(&connect(private, 53)))?;
    wire.passes("DNS to a resolver on the link", &query(on_link, 53).frame(OTHER_MAC, VM_MAC))?;
    let mut frames = Vec::new();
    for (to, mac) in [(private, wire.segment.mac), (on_link, OTHER_MAC)] {
        for port in [52, 54, 80, 853, 5353] {
            frames.push(named(format!("UDP port {port} of {to}"), query(to, port).frame(mac, VM_MAC)));
            frames.push(named(format!("TCP port {port} of {to}"), connect(to, port).frame(mac, VM_MAC)));
        }
        frames.push(named(
            format!("a ping to {to}"),
            Ipv4::new(VM, to, icmp(8, 0, &[0, 1, 0, 1])).frame(mac, VM_MAC),
        ));
    }
    let stranger = address("192.168.50.54");
    frames.push(named("a resolver that nobody named", wire.routed(&query(stranger, 53))));
    for to in insane {
        frames.push(named(format!("DNS to {to}"), wire.routed(&query(to, 53))));
        frames.push(named(format!("DNS to {to}, broadcast"), query(to, 53).frame(Mac::BROADCAST, VM_MAC)));
    }
    let group = insane[1];
    frames.push(named("multicast DNS at its MAC", query(group, 53).frame(group_mac(group), VM_MAC)));
    wire.drops_all(&frames)?;
    // The same lease with that resolver blocked.
    wire.restart_leased(&["--block=192.168.50.53"])?;
    let xid = wire.next();
    wire.server().with_dns(dns).lease(&wire.vm, VM_MAC, VM, xid)?;
    wire.drops("a blocked resolver", &wire.routed(&query(private, 53)))
}

pub fn d6_icmp() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let quote = |from: Ipv4Addr, to: Ipv4Addr| {
        let mut rest = vec![0; 4];
        rest.extend(&Ipv4::new(from, to, udp((from, 80), (to, 4000), b"")).bytes()[..28]);
        rest
    };
    for to in [WORLD, GATEWAY] {
        let send = |transport| Ipv4::new(VM, to, transport).frame(wire.segment.mac, VM_MAC);
        let mut passing = vec![
            named("echo request", send(icmp(8, 0, &[0, 1, 0, 1, 5]))),
            named("echo reply", send(icmp(0, 0, &[0, 1, 0, 1, 5]))),
        ];
        let mut dropped = Vec::new();
        for (what, kind, code) in
            [("unreachable", 3, 3), ("time exceeded", 11, 1), ("parameter problem", 12, 0)]
        {
            passing.push(named(
                format!("{what} about a packet to the VM"),
                send(icmp(kind, code, &quote(to, VM))),
            ));
            dropped.push(named(
                format!("{what} about a packet to another"),
                send(icmp(kind, code, &quote(to, NEIGHBOUR))),
            ));
            dropped
                .push(named(format!("{what} about the own packet"), send(icmp(kind, code, &quote(VM, to)))));
            dropped.push(named(format!("{what} about nothing"), send(icmp(kind, code, &[0; 4]))));
        }
        for kind in [
            1, 2, 4, 5, 6, 7, 9, 10, 13, 14, 15, 16, 17, 18, 19, 30, 31, 37, 38, 40, 41, 42, 43, 200, 253,
            255,
        ] {
            dropped.push(named(format!("type {kind}"), send(icmp(kind, 0, &quote(to, VM)))));
        }
        wire.passes_all(&passing)?;
        wire.drops_all(&dropped)?;
    }
    Ok(())
}

pub fn d7_renewal_survives_block_all() -> Result<()> {
    let mut wire = Wire::leased(&["--block=0.0.0.0/0"])?;
    let dropped = to_each(&wire, &["8.8.8.8", "10.7.0.1", "1.1.1.1"]);
    wire.drops_all(&dropped)?;
    let xid = wire.next();
    let renewal = Dhcp { ciaddr: VM, ..Dhcp::client(dhcp_kind::REQUEST, xid, VM_MAC) };
    wire.passes("a renewal", &wire.routed(&renewal.packet(VM, GATEWAY)))?;
    let server = wire.server();
    server.send(&server.answer(dhcp_kind::ACK, xid, VM_MAC, VM), VM_MAC)?;
    DhcpServer::told(&wire.vm, dhcp_kind::ACK, xid)?;
    Ok(())
}

pub fn d8_allow_all_keeps_the_guards() -> Result<()> {
    let mut wire = Wire::leased(&["--allow=0.0.0.0/0"])?;
    let open = to_each(
        &wire,
        &["169.254.169.254", "192.168.77.10", "10.1.2.3", "100.64.0.1", "168.63.129.16", "8.8.8.8"],
    );
    wire.passes_all(&open)?;
    wire.passes("the neighbour", &packet(NEIGHBOUR).frame(OTHER_MAC, VM_MAC))?;
    wire.passes("the neighbour's ARP", &Arp::request(VM_MAC, VM, NEIGHBOUR).frame())?;
    let group = address("224.0.0.251");
    wire.passes("a group", &packet(group).frame(group_mac(group), VM_MAC))?;
    let gateway = wire.segment.mac;
    let mut frames = to_each(&wire, &["0.0.0.0", "127.0.0.1", "240.0.0.1", "255.255.255.255", "10.7.0.255"]);
    frames.extend([
        named("L1", packet(WORLD).frame(gateway, OTHER_MAC)),
        named("L5", packet(WORLD).frame(Mac::BROADCAST, VM_MAC)),
        named("A3", Arp::request(VM_MAC, NEIGHBOUR, GATEWAY).frame()),
        named("S1", wire.routed(&Ipv4::new(NEIGHBOUR, WORLD, udp((NEIGHBOUR, 1), (WORLD, 2), b"")))),
        named("S3", wire.routed(&Ipv4 { options: vec![1; 4], ..packet(WORLD) })),
        named(
            "C1",
            Dhcp::server(dhcp_kind::OFFER, 1, OTHER_MAC, VM).packet(VM, NEIGHBOUR).frame(OTHER_MAC, VM_MAC),
        ),
        named("D6", wire.routed(&to_world(icmp(5, 1, &[0; 32])))),
    ]);
    wire.drops_all(&frames)
}

pub fn d9_host_network() -> Result<()> {
    let mut wire = Wire::leased(&["--vm-net-type=host"])?;
    wire.marker = Marker::Gateway(VM);
    let gateway = wire.to(GATEWAY);
    wire.passes(&gateway.0, &gateway.1)?;
    let mut frames = to_each(&wire, &["8.8.8.8", "1.1.1.1", "9.9.9.9", "192.168.0.1", "169.254.169.254"]);
    frames.push(named("the neighbour", packet(NEIGHBOUR).frame(OTHER_MAC, VM_MAC)));
    wire.drops_all(&frames)?;
    wire.restart_leased(&["--vm-net-type=host", "--allow=10.7.0.9"])?;
    wire.passes("an allowed neighbour", &packet(NEIGHBOUR).frame(OTHER_MAC, VM_MAC))?;
    let world = wire.to(WORLD);
    wire.drops(&world.0, &world.1)
}
