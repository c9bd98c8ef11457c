//! Rules L1 to L5.

use anyhow::Result;
use lab::wire::{ARP, Arp, IPV4, Ipv4, Mac, ethernet, udp};

use crate::wire::{GATEWAY, NEIGHBOUR, OTHER_MAC, VM, VM_MAC, WORLD, Wire, named, packet, to_world};

pub fn l1_source_mac_is_own() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let packet = packet(WORLD);
    wire.passes("the own MAC", &packet.frame(wire.segment.mac, VM_MAC))?;
    let mut one_bit = VM_MAC;
    one_bit.0[5] ^= 1;
    for mac in [OTHER_MAC, one_bit, Mac::ZERO, Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1]), wire.segment.mac] {
        wire.drops(&format!("IPv4 from {mac}"), &packet.frame(wire.segment.mac, mac))?;
        let arp = Arp::request(mac, VM, GATEWAY).frame();
        wire.drops(&format!("ARP from {mac}"), &arp)?;
    }
    Ok(())
}

pub fn l2_only_ipv4_and_arp() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let gateway = wire.segment.mac;
    let inner = packet(WORLD).bytes();
    let mut frames = Vec::new();
    // VLANs of three kinds, then RARP, IPv6, LLDP, pause, EAPOL, MACsec, MPLS, PPPoE, AoE, and what IEEE gave nobody.
    for ether_type in [
        0x8100, 0x88a8, 0x9100, 0x8035, 0x86dd, 0x88cc, 0x8808, 0x888e, 0x88e5, 0x8847, 0x8863, 0x88a2,
        0x0801, 0x0805, 0x0807, 0x0600, 0xffff, 0x0008, 0x0608,
    ] {
        frames.push(named(
            format!("EtherType {ether_type:#06x}"),
            ethernet(gateway, VM_MAC, ether_type, &inner),
        ));
    }
    for vlan in [0u16, 1, 4095, 0xe000] {
        let mut tagged = vlan.to_be_bytes().to_vec();
        tagged.extend(IPV4.to_be_bytes());
        tagged.extend(&inner);
        frames.push(named(format!("VLAN tag {vlan:#06x}"), ethernet(gateway, VM_MAC, 0x8100, &tagged)));
    }
    let stp = Mac([0x01, 0x80, 0xc2, 0, 0, 0]);
    frames.push(named("STP in LLC", ethernet(stp, VM_MAC, 38, &[0x42; 38])));
    let mut snap = vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
    snap.extend(&inner);
    frames.push(named("IPv4 in SNAP", ethernet(gateway, VM_MAC, snap.len() as u16, &snap)));
    wire.drops_all(&frames)?;
    wire.passes("the same packet untagged", &ethernet(gateway, VM_MAC, IPV4, &inner))
}

pub fn l3_sizes() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let whole = wire.to(WORLD).1;
    for len in 1..14 + 20 {
        wire.drops(&format!("the first {len} bytes of a frame"), &whole[..len])?;
    }
    let of_size = |size: usize| to_world(udp((VM, 4000), (WORLD, 80), &vec![0x5a; size - 28]));
    for size in [28, 46, 576, 1499, 1500] {
        let frame = wire.routed(&of_size(size));
        wire.passes(&format!("a packet of {size} bytes"), &frame)?;
    }
    for size in [1501, 1504, 1518, 2000, 9000, 65_000, 65_535] {
        let frame = wire.routed(&of_size(size));
        wire.drops(&format!("a packet of {size} bytes"), &frame)?;
    }
    // A small packet in a frame beyond any: cutting it to size would make it look right.
    let mut long = whole.clone();
    for size in [1515, 1600, 65_550, 65_600, 100_000, 200_000] {
        long.resize(size, 0);
        wire.drops(&format!("a frame of {size} bytes"), &long)?;
    }
    wire.drops("zeros", &[0; 60])?;
    wire.drops("ones", &[0xff; 60])
}

pub fn l4_no_bytes_behind_the_packet() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    const SECRET: &[u8] = b"behind the packet";
    // Padding of a minimal frame is right, zeros or not: Ethernet does not say what is in it.
    let small = to_world(udp((VM, 4000), (WORLD, 80), b"")).bytes();
    let mut padded = wire.routed(&to_world(udp((VM, 4000), (WORLD, 80), b"")));
    padded.resize(60, 0);
    wire.vm.send(&padded)?;
    wire.segment.expect("a padded frame", |seen| seen.get(14..14 + small.len()) == Some(&small[..]))?;
    for payload in [30, 100, 1000] {
        let mut frame = wire.routed(&to_world(udp((VM, 4000), (WORLD, 80), &vec![7; payload])));
        frame.extend(SECRET);
        wire.never_leaks(&format!("behind a packet with {payload} bytes"), &frame, SECRET)?;
    }
    let mut arp = Arp::request(VM_MAC, VM, GATEWAY).frame();
    arp.resize(60, 0);
    arp.extend(SECRET);
    wire.never_leaks("behind an ARP request", &arp, SECRET)
}

pub fn l5_destination_mac_fits_the_packet() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let gateway = wire.segment.mac;
    let groups = [
        Mac::BROADCAST,
        Mac([0x01, 0, 0x5e, 8, 8, 8]),
        Mac([0x33, 0x33, 0, 0, 0, 1]),
        Mac([0x01, 0x80, 0xc2, 0, 0, 0]),
        Mac([0x01, 0x80, 0xc2, 0, 0, 0x0e]),
    ];
    for destination in [WORLD, GATEWAY] {
        let packet = packet(destination);
        wire.passes(&format!("{destination} at the gateway"), &packet.frame(gateway, VM_MAC))?;
        for mac in groups.into_iter().chain([VM_MAC, Mac::ZERO, OTHER_MAC]) {
            wire.drops(&format!("{destination} at {mac}"), &packet.frame(mac, VM_MAC))?;
        }
    }
    wire.restart_leased(&["--allow=10.7.0.9,239.1.2.3"])?;
    wire.passes("an allowed neighbour at its own MAC", &packet(NEIGHBOUR).frame(OTHER_MAC, VM_MAC))?;
    for mac in groups.into_iter().chain([VM_MAC, Mac::ZERO]) {
        wire.drops(&format!("an allowed neighbour at {mac}"), &packet(NEIGHBOUR).frame(mac, VM_MAC))?;
    }
    wire.drops("the world at a neighbour's MAC", &packet(WORLD).frame(OTHER_MAC, VM_MAC))?;
    let group = Ipv4 { ttl: 1, ..packet([239, 1, 2, 3].into()) };
    wire.passes("an allowed group at its MAC", &group.frame(Mac([0x01, 0, 0x5e, 1, 2, 3]), VM_MAC))?;
    for mac in
        [gateway, OTHER_MAC, Mac::BROADCAST, Mac([0x01, 0, 0x5e, 1, 2, 4]), Mac([0x01, 0x80, 0xc2, 0, 0, 0])]
    {
        wire.drops(&format!("an allowed group at {mac}"), &group.frame(mac, VM_MAC))?;
    }
    // ARP is no IPv4, and is broadcast by nature.
    wire.passes(
        "a broadcast ARP request",
        &ethernet(Mac::BROADCAST, VM_MAC, ARP, &Arp::request(VM_MAC, VM, GATEWAY).bytes()),
    )
}
