//! Rules P: entries of `--allow` and `--block`.

use std::net::Ipv4Addr;

use anyhow::Result;
use lab::wire::{Arp, Ipv4, icmp, tcp, udp};

use crate::wire::{GATEWAY, NEIGHBOUR, Named, OTHER_MAC, VM, VM_MAC, Wire, named};

fn address(text: &str) -> Ipv4Addr {
    text.parse().expect("an address in a test")
}

/// A SYN and a datagram of the leased VM to a port, or a ping where the port is 0.
fn to(wire: &Wire, protocol: &str, destination: &str, port: u16) -> Named {
    let to = address(destination);
    let transport = match protocol {
        "tcp" => tcp((VM, 4000), (to, port), 1, 2, b""),
        "udp" => udp((VM, 4000), (to, port), b"hello"),
        _ => icmp(8, 0, &[0, 1, 0, 1]),
    };
    named(format!("{protocol} to {destination}:{port}"), wire.routed(&Ipv4::new(VM, to, transport)))
}

fn each(wire: &Wire, frames: &[(&str, &str, u16)]) -> Vec<Named> {
    frames.iter().map(|(protocol, destination, port)| to(wire, protocol, destination, *port)).collect()
}

pub fn p1_every_form_is_taken() -> Result<()> {
    let mut wire = Wire::leased(&[
        "--block=0.0.0.0/0,::/0,2001:db8::1,[2001:db8::/32]:80-90/tcp,@metadata",
        "--allow=10.1.2.3,10.2.0.0/16:80,10.3.0.0/16:80-90/tcp",
        "--allow",
        "10.4.0.0/16/udp,@private:7000",
        "--allow=@internet:443-443",
        "--allow=@host:53/udp",
    ])?;
    let passing = each(
        &wire,
        &[
            ("tcp", "10.1.2.3", 1),
            ("ping", "10.1.2.3", 0),
            ("tcp", "10.2.0.1", 80),
            ("udp", "10.2.0.1", 80),
            ("tcp", "10.3.0.1", 85),
            ("udp", "10.4.0.1", 9),
            ("tcp", "172.16.0.1", 7000),
            ("udp", "192.168.99.1", 7000),
            ("tcp", "8.8.8.8", 443),
            ("udp", "10.7.0.1", 53),
        ],
    );
    wire.passes_all(&passing)?;
    let dropped = each(
        &wire,
        &[
            ("tcp", "10.1.2.4", 1),
            ("tcp", "10.2.0.1", 81),
            ("ping", "10.2.0.1", 0),
            ("udp", "10.3.0.1", 85),
            ("tcp", "10.3.0.1", 91),
            ("tcp", "10.4.0.1", 9),
            ("tcp", "172.16.0.1", 7001),
            ("tcp", "8.8.8.8", 80),
            ("tcp", "168.63.129.16", 443),
            ("tcp", "10.7.0.1", 53),
            ("ping", "10.7.0.1", 0),
        ],
    );
    wire.drops_all(&dropped)
}

pub fn p2_ports_then_prefix_then_range_then_block() -> Result<()> {
    let mut wire = Wire::leased(&[
        "--block=8.8.8.8,9.0.0.0/8:80-90,8.9.0.0/16:25",
        "--allow=8.0.0.0/8:443,9.0.0.0/8:85,8.9.9.0/24:20-30,9.1.0.0/16:80-90,10.7.0.9:22/tcp",
    ])?;
    let passing = each(
        &wire,
        &[
            // Ports before a longer prefix.
            ("tcp", "8.8.8.8", 443),
            // The longer prefix before a narrower range.
            ("tcp", "8.9.9.9", 25),
            // The narrower range before a block.
            ("udp", "9.0.0.1", 85),
            ("tcp", "9.1.0.1", 80),
            ("tcp", "9.0.0.1", 79),
            ("ping", "9.0.0.1", 0),
        ],
    );
    wire.passes_all(&passing)?;
    let neighbour = |port| Ipv4::new(VM, NEIGHBOUR, tcp((VM, 4000), (NEIGHBOUR, port), 1, 2, b""));
    wire.passes("an open port of a neighbour", &neighbour(22).frame(OTHER_MAC, VM_MAC))?;
    wire.passes("ARP for that neighbour", &Arp::request(VM_MAC, VM, NEIGHBOUR).frame())?;
    let mut dropped = each(
        &wire,
        &[
            ("tcp", "8.8.8.8", 80),
            ("ping", "8.8.8.8", 0),
            ("tcp", "8.9.0.1", 25),
            ("udp", "9.0.0.1", 80),
            ("tcp", "9.0.0.1", 90),
        ],
    );
    dropped.push(named("another port of the neighbour", neighbour(23).frame(OTHER_MAC, VM_MAC)));
    let first = Ipv4 { fragment: 0x2000, ..Ipv4::new(VM, address("9.0.0.1"), (17, vec![0; 16])) };
    let later = Ipv4 { fragment: 9, ..first.clone() };
    dropped.push(named("a first fragment where ports are distinguished", wire.routed(&first)));
    dropped.push(named("a later one", wire.routed(&later)));
    wire.drops_all(&dropped)?;
    let elsewhere = Ipv4 { to: address("11.0.0.1"), ..later };
    wire.passes("a later fragment where they are not", &wire.routed(&elsewhere))?;
    // On the same prefix and range the block, and the protocol breaks no tie.
    wire.restart_leased(&["--block=9.0.0.0/8:443", "--allow=9.0.0.0/8:443/tcp,@host:443"])?;
    let both = each(&wire, &[("tcp", "9.0.0.1", 443), ("udp", "9.0.0.1", 443)]);
    wire.drops_all(&both)?;
    let gateway = wire.to(GATEWAY);
    wire.passes(&gateway.0, &gateway.1)
}
