//! Rules L1 to L5.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::{Context, Result, ensure};
use lab::deadline::PATIENCE;
use lab::net::Host;
use lab::wire::{ARP, Arp, IPV4, Ipv4, Mac, ethernet, udp};
use lab::{Segment, kernel_guest};

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

/// A leased VM whose link carries packets of 1,400 bytes.
fn narrow() -> Result<Wire> {
    let mut wire = Wire::start(&[])?;
    Host::main()?.ip(&format!("link set {} mtu 1400", Segment::TAP))?;
    wire.restart_leased(&[])?;
    Ok(wire)
}

pub fn l3_a_packet_too_long_for_the_link_is_answered() -> Result<()> {
    let mut wire = narrow()?;
    let gateway = wire.segment.mac;
    let of_size = |size: usize, fragment: u16| {
        let packet = to_world(udp((VM, 4000), (WORLD, 80), &vec![0x5a; size - 28]));
        Ipv4 { fragment, ..packet }
    };
    wire.passes("the longest packet", &wire.routed(&of_size(1400, 0x4000)))?;
    for size in [1401, 1500] {
        let frame = wire.routed(&of_size(size, 0x4000));
        wire.drops(&format!("a packet of {size} bytes"), &frame)?;
        let is_answer = |seen: &[u8]| seen.get(34..36) == Some(&[3, 4]) && seen[23] == 1;
        let (_, answer) = wire.vm.expect("the answer", is_answer)?;
        ensure!(answer[..6] == VM_MAC.0 && answer[6..12] == gateway.0, "its stations: {answer:02x?}");
        ensure!(answer[26..30] == GATEWAY.octets() && answer[30..34] == VM.octets(), "its addresses");
        ensure!(answer[38..42] == [0, 0, 0x05, 0x78], "its MTU: {:02x?}", &answer[38..42]);
        ensure!(answer.len() == 14 + 576 && answer[42..] == frame[14..14 + 548], "its quote");
    }
    ensure!(wire.softnet.counters()?.answers == 2, "{:?}", wire.softnet.counters()?);
    let own = of_size(1500, 0x4000);
    let never = [
        named("may be fragmented", wire.routed(&of_size(1500, 0))),
        named("from another MAC", own.frame(gateway, OTHER_MAC)),
        named("for another station", own.frame(OTHER_MAC, VM_MAC)),
        named("from another address", wire.routed(&Ipv4 { from: NEIGHBOUR, ..own.clone() })),
        named("to a closed address", wire.routed(&Ipv4 { to: [10, 9, 9, 9].into(), ..own.clone() })),
        named("of a VM that may not live", wire.routed(&Ipv4 { ttl: 0, ..own })),
    ];
    wire.drops_all(&never)?;
    let counters = wire.softnet.counters()?;
    ensure!(counters.answers == 2, "forged or malformed packets are answered: {counters:?}");
    ensure!(counters.from_vm.get("must-fragment") == Some(&1), "{counters:?}");
    Ok(())
}

/// A real network stack that believes in 1,500 bytes, and so does its peer beyond the link.
pub fn l3_a_guest_learns_the_links_mtu() -> Result<()> {
    const LENGTH: u64 = 1 << 20;
    let wire = narrow()?;
    let main = Host::main()?;
    let internet = Host::new("internet")?;
    main.cable(("uplink", "203.0.113.2/24"), &internet, ("eth0", "203.0.113.1/24"))?;
    internet.ip(&format!("addr add {WORLD}/32 dev lo"))?;
    internet.ip("route add default via 203.0.113.2")?;
    main.ip(&format!("route add {WORLD} via 203.0.113.1"))?;
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let listener = internet.run(|| TcpListener::bind(SocketAddr::from((WORLD, 80))))??;
    let sink = std::thread::spawn(move || -> std::io::Result<u64> {
        let (mut peer, _) = listener.accept()?;
        let read = std::io::copy(&mut peer, &mut std::io::sink())?;
        peer.write_all(b"thanks")?;
        Ok(read)
    });
    let guest = kernel_guest("guest", &wire.vm, VM_MAC, (VM, 24), GATEWAY)?;
    let sent = guest.run(|| send(WORLD, LENGTH))?;
    let counters = wire.softnet.counters()?;
    sent.with_context(|| format!("a connection hangs: {counters:?}"))?;
    ensure!(sink.join().expect("no panic")? == LENGTH, "bytes are missing");
    ensure!(counters.answers > 0 && counters.from_vm.contains_key("oversize"), "{counters:?}");
    let route = guest.ip(&format!("route get {WORLD}"))?;
    ensure!(route.contains("mtu 1400"), "the guest has not learnt it: {route}");
    Ok(())
}

/// Sends so many bytes and waits until the peer thanks.
fn send(to: Ipv4Addr, length: u64) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((to, 80)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    std::io::copy(&mut std::io::repeat(7).take(length), &mut stream)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut thanks = [0; 6];
    Ok(stream.read_exact(&mut thanks)?)
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
