//! Rules C1 to C10.
//!
//! DHCP is rate limited (C7), so these tests send few messages that are right. The many that are wrong come first of
//! all from a VM with a lease, whose markers are ARP and cost nothing.

use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::DhcpServer;
use lab::deadline::until;
use lab::wire::{
    Dhcp, IPV4, Ipv4, Mac, checksum, dhcp_kind as kind, dhcp_option as option, ethernet, parse_dhcp, tcp, udp,
};

use crate::wire::{GATEWAY, Marker, NEIGHBOUR, OTHER_MAC, VM, VM_MAC, WORLD, Wire, named};

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const ALL: Ipv4Addr = Ipv4Addr::BROADCAST;

fn discover(xid: u32) -> Dhcp {
    Dhcp::client(kind::DISCOVER, xid, VM_MAC)
}

fn between(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), message: &Dhcp) -> Ipv4 {
    Ipv4::new(from.0, to.0, udp(from, to, &message.bytes()))
}

pub fn c1_ports_and_destination() -> Result<()> {
    let mut wire = Wire::leased(&["--allow=10.7.0.9"])?;
    let gateway = wire.segment.mac;
    let message = discover(1);
    let broadcast = |packet: &Ipv4| packet.frame(Mac::BROADCAST, VM_MAC);
    let right = between((NOBODY, 68), (ALL, 67), &message);
    let whole = right.bytes();
    let first = Ipv4 { fragment: 0x2000, ..Ipv4::new(NOBODY, ALL, (17, whole[20..20 + 160].to_vec())) };
    let mut wrong_len = right.clone();
    wrong_len.payload[5] ^= 1;
    let mut frames = vec![
        named("from port 67", broadcast(&between((NOBODY, 67), (ALL, 67), &message))),
        named("to port 68", broadcast(&between((NOBODY, 68), (ALL, 68), &message))),
        named("from port 67 to port 68", broadcast(&between((NOBODY, 67), (ALL, 68), &message))),
        named("from a free port", broadcast(&between((NOBODY, 4000), (ALL, 67), &message))),
        named("to a free port", broadcast(&between((NOBODY, 68), (ALL, 4000), &message))),
        named("a fragment", broadcast(&first)),
        named("a wrong UDP length", broadcast(&wrong_len)),
        named("broadcast IP in the gateway's frame", right.frame(gateway, VM_MAC)),
        named("broadcast IP in another's frame", right.frame(OTHER_MAC, VM_MAC)),
        named("broadcast IP in a group's frame", right.frame(Mac([1, 0, 0x5e, 0, 0, 1]), VM_MAC)),
    ];
    // Not even as the leased VM, and not even to an allowed neighbour, may it be a server.
    for (to, mac) in [(NEIGHBOUR, OTHER_MAC), (GATEWAY, gateway), (WORLD, gateway)] {
        let offer = Dhcp::server(kind::OFFER, 1, OTHER_MAC, VM);
        frames
            .push(named(format!("an OFFER to {to}"), between((VM, 67), (to, 68), &offer).frame(mac, VM_MAC)));
        frames.push(named(
            format!("port 68 of {to}"),
            between((VM, 4000), (to, 68), &offer).frame(mac, VM_MAC),
        ));
        frames.push(named(
            format!("port 67 to {to}"),
            between((VM, 67), (to, 4000), &offer).frame(mac, VM_MAC),
        ));
    }
    let renewal = Dhcp { ciaddr: VM, ..Dhcp::client(kind::REQUEST, 2, VM_MAC) };
    frames.push(named(
        "a renewal by a neighbour",
        between((VM, 68), (NEIGHBOUR, 67), &renewal).frame(OTHER_MAC, VM_MAC),
    ));
    wire.drops_all(&frames)?;
    wire.passes("a renewal by the server", &wire.routed(&renewal.packet(VM, GATEWAY)))?;
    wire.passes("a right DISCOVER", &broadcast(&right))?;
    // Without a lease there is no unicast.
    let release =
        Dhcp { ciaddr: VM, ..Dhcp::client(kind::RELEASE, 3, VM_MAC) }.with(option::SERVER, &GATEWAY.octets());
    wire.marker = Marker::Discover;
    wire.passes("a RELEASE", &wire.routed(&release.packet(VM, GATEWAY)))?;
    wire.drops_all(&[
        named("a renewal without a lease", wire.routed(&renewal.packet(VM, GATEWAY))),
        named("unicast of nobody", wire.routed(&discover(4).packet(NOBODY, GATEWAY))),
    ])
}

/// A driver that leaves checksums to its card puts the sum of the pseudo-header there; without metadata on the socket
/// nothing else tells.
fn with_open_checksum(packet: &Ipv4) -> Ipv4 {
    let (mut open, len) = (packet.clone(), packet.payload.len() as u16);
    let pseudo =
        [&packet.from.octets()[..], &packet.to.octets(), &[0, packet.protocol], &len.to_be_bytes()].concat();
    let at = if packet.protocol == 6 { 16 } else { 6 };
    open.payload[at..at + 2].copy_from_slice(&(!checksum(&[&pseudo])).to_be_bytes());
    open
}

pub fn c1_wrong_checksums_are_counted_and_open_ones_completed() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    let right = discover(1).packet(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST);
    let framed = |packet: &Ipv4| packet.frame(Mac::BROADCAST, VM_MAC);
    let mut wrong = right.clone();
    wrong.payload[6] ^= 1;
    wire.drops("a wrong checksum", &framed(&wrong))?;
    let counted = wire.softnet.counters()?.from_vm.get("dhcp-checksum").copied();
    ensure!(counted == Some(1), "counted {counted:?} times");
    let open = with_open_checksum(&right);
    ensure!(open != right, "the checksum is not open: the test shows nothing");
    wire.vm.send(&framed(&open))?;
    wire.segment.expect("the DISCOVER with its checksum", |seen| seen == framed(&right))?;
    let mut none = right.clone();
    none.payload[6..8].fill(0);
    wire.passes("no checksum", &framed(&none))?;

    wire.lease(VM)?;
    let text = b"not only DHCP";
    for (what, packet) in [
        ("UDP", Ipv4::new(VM, WORLD, udp((VM, 4000), (WORLD, 80), text))),
        ("TCP", Ipv4::new(VM, WORLD, tcp((VM, 4000), (WORLD, 80), 1, 0x18, text))),
    ] {
        wire.vm.send(&wire.routed(&with_open_checksum(&packet)))?;
        let whole = wire.routed(&packet);
        wire.segment.expect(&format!("{what} with its checksum"), |seen| seen == whole)?;
    }
    Ok(())
}

pub fn c2_message_is_well_formed() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let good = discover(1);
    let mut padded_chaddr = good.chaddr;
    padded_chaddr[6] = 1;
    let mut last_chaddr = good.chaddr;
    last_chaddr[15] = 1;
    let other = discover(1);
    let mut other_chaddr = other.chaddr;
    other_chaddr[..6].copy_from_slice(&OTHER_MAC.0);
    let wrong = [
        ("op 0", Dhcp { op: 0, ..good.clone() }),
        ("htype 6", Dhcp { hardware: 6, ..good.clone() }),
        ("hlen 0", Dhcp { hardware_len: 0, ..good.clone() }),
        ("hlen 16", Dhcp { hardware_len: 16, ..good.clone() }),
        ("hlen 255", Dhcp { hardware_len: 255, ..good.clone() }),
        ("hops 1", Dhcp { hops: 1, ..good.clone() }),
        ("a relay", Dhcp { giaddr: GATEWAY, ..good.clone() }),
        ("another's chaddr", Dhcp { chaddr: other_chaddr, ..good.clone() }),
        ("bytes behind chaddr", Dhcp { chaddr: padded_chaddr, ..good.clone() }),
        ("a byte at the end of chaddr", Dhcp { chaddr: last_chaddr, ..good.clone() }),
        ("a wrong cookie", Dhcp { cookie: [99, 130, 83, 98], ..good.clone() }),
        ("no cookie", Dhcp { cookie: [0; 4], ..good.clone() }),
        ("no message type", Dhcp { options: vec![], ..good.clone() }),
        ("two message types", good.clone().with(option::MESSAGE_TYPE, &[kind::DISCOVER])),
        ("two different message types", good.clone().with(option::MESSAGE_TYPE, &[kind::REQUEST])),
        (
            "a message type of two bytes",
            Dhcp { options: vec![(option::MESSAGE_TYPE, vec![1, 1])], ..good.clone() },
        ),
        ("an empty message type", Dhcp { options: vec![(option::MESSAGE_TYPE, vec![])], ..good.clone() }),
        ("no end", Dhcp { tail: vec![], ..good.clone() }),
        ("an option beyond the end", Dhcp { tail: vec![12, 200, b'x'], ..good.clone() }),
        ("an option without a length", Dhcp { tail: vec![12], ..good.clone() }),
    ];
    let mut frames: Vec<_> = wrong
        .into_iter()
        .map(|(what, message)| {
            named(what, between((NOBODY, 68), (ALL, 67), &message).frame(Mac::BROADCAST, VM_MAC))
        })
        .collect();
    let bytes = good.bytes();
    for len in [0, 1, 44, 236, 239, 240, 241, 242] {
        let packet = Ipv4::new(NOBODY, ALL, udp((NOBODY, 68), (ALL, 67), &bytes[..len]));
        frames.push(named(format!("cut to {len} bytes"), packet.frame(Mac::BROADCAST, VM_MAC)));
    }
    wire.drops_all(&frames)?;
    wire.passes("a right one", &good.broadcast())
}

pub fn c3_client_types_only() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let of_type = |kind: u8| Dhcp { ciaddr: VM, ..Dhcp::client(kind, 9, VM_MAC) };
    let mut frames = Vec::new();
    for kind in (0..=255).filter(|kind| !matches!(kind, 1 | 3 | 4 | 7 | 8)) {
        frames.push(named(format!("type {kind}, broadcast"), Dhcp::client(kind, 9, VM_MAC).broadcast()));
        frames.push(named(format!("type {kind}, unicast"), wire.routed(&of_type(kind).packet(VM, GATEWAY))));
    }
    wire.drops_all(&frames)?;
    wire.passes("INFORM", &wire.routed(&of_type(kind::INFORM).packet(VM, GATEWAY)))?;
    wire.passes("REQUEST", &wire.routed(&Dhcp { xid: 10, ..of_type(kind::REQUEST) }.packet(VM, GATEWAY)))?;
    wire.passes("DISCOVER", &discover(11).broadcast())
}

pub fn c4_source_and_ciaddr() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let renewal = Dhcp { ciaddr: VM, ..Dhcp::client(kind::REQUEST, 9, VM_MAC) };
    let mut frames = Vec::new();
    for from in [NEIGHBOUR, GATEWAY, WORLD, ALL, Ipv4Addr::LOCALHOST] {
        frames.push(named(
            format!("a DISCOVER from {from}"),
            discover(9).packet(from, ALL).frame(Mac::BROADCAST, VM_MAC),
        ));
        frames.push(named(format!("a renewal from {from}"), wire.routed(&renewal.packet(from, GATEWAY))));
        let wrong = Dhcp { ciaddr: from, ..renewal.clone() };
        frames.push(named(format!("a renewal of {from}"), wire.routed(&wrong.packet(VM, GATEWAY))));
        frames.push(named(format!("a broadcast renewal of {from}"), wrong.broadcast()));
    }
    wire.drops_all(&frames)?;
    wire.passes("a renewal of the lease", &wire.routed(&renewal.packet(VM, GATEWAY)))?;
    wire.passes("a rebinding of the lease", &renewal.packet(VM, ALL).frame(Mac::BROADCAST, VM_MAC))
}

pub fn c5_options() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let id = |value: &[u8]| discover(9).with(option::CLIENT_ID, value);
    let hardware = |mac: Mac| [&[1][..], &mac.0].concat();
    // RFC 4361: type 255, four bytes of the interface's identity, then a DUID; RFC 8415, 11.4 (LL) and 11.2 (LLT).
    let duid_ll = |mac: Mac| [&[255, 0, 0, 0, 1, 0, 3, 0, 1][..], &mac.0].concat();
    let duid_llt = |mac: Mac| [&[255, 0, 0, 0, 1, 0, 1, 0, 1, 9, 9, 9, 9][..], &mac.0].concat();
    let frames: Vec<_> = [
        ("relay information", discover(9).with(option::RELAY_AGENT, &[1, 2, 3, 4])),
        ("overload of file", discover(9).with(option::OVERLOAD, &[1])),
        ("overload of sname", discover(9).with(option::OVERLOAD, &[2])),
        ("overload of both", discover(9).with(option::OVERLOAD, &[3])),
        ("a split client-id", id(b"\0half").with(option::CLIENT_ID, b"half")),
        ("another's MAC", id(&hardware(OTHER_MAC))),
        ("another's DUID-LL", id(&duid_ll(OTHER_MAC))),
        ("another's DUID-LLT", id(&duid_llt(OTHER_MAC))),
        ("an empty client-id", id(b"")),
    ]
    .into_iter()
    .map(|(what, message)| named(what, message.broadcast()))
    .collect();
    wire.drops_all(&frames)?;
    let numbered = |xid: u32, value: &[u8]| Dhcp { xid, ..id(value) }.broadcast();
    wire.passes("the own MAC", &numbered(11, &hardware(VM_MAC)))?;
    wire.passes("the own DUID-LL", &numbered(12, &duid_ll(VM_MAC)))?;
    wire.passes("a name", &numbered(13, b"\0third"))?;
    wire.passes("a fourth", &numbered(14, b"\0fourth"))?;
    wire.drops("a fifth at once", &numbered(15, b"\0fifth"))?;
    wire.passes("one that is known", &numbered(13, b"\0third"))
}

pub fn c6_release_and_decline() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let release = |address: Ipv4Addr| {
        Dhcp { ciaddr: address, ..Dhcp::client(kind::RELEASE, 9, VM_MAC) }
            .with(option::SERVER, &GATEWAY.octets())
    };
    let decline = |address: Ipv4Addr| {
        Dhcp::client(kind::DECLINE, 9, VM_MAC)
            .with(option::REQUESTED_ADDRESS, &address.octets())
            .with(option::SERVER, &GATEWAY.octets())
    };
    let mut frames = vec![named("a RELEASE of nothing", wire.routed(&release(NOBODY).packet(VM, GATEWAY)))];
    for address in [NEIGHBOUR, GATEWAY, Ipv4Addr::new(10, 7, 0, 3)] {
        frames.push(named(
            format!("a RELEASE of {address}"),
            wire.routed(&release(address).packet(VM, GATEWAY)),
        ));
        frames.push(named(
            format!("a RELEASE by {address}"),
            wire.routed(&release(address).packet(address, GATEWAY)),
        ));
        frames.push(named(format!("a DECLINE of {address}"), decline(address).broadcast()));
    }
    frames.push(named("a DECLINE of nothing", Dhcp::client(kind::DECLINE, 9, VM_MAC).broadcast()));
    wire.drops_all(&frames)?;
    wire.has_lease(VM)?;
    wire.marker = Marker::Discover;
    wire.passes("a RELEASE of the lease", &wire.routed(&release(VM).packet(VM, GATEWAY)))?;
    wire.lacks_lease("RELEASE", VM)?;
    wire.lease(VM)?;
    wire.has_lease(VM)?;
    wire.marker = Marker::Discover;
    wire.passes("a DECLINE of the lease", &decline(VM).broadcast())?;
    wire.lacks_lease("DECLINE", VM)
}

pub fn c7_rate() -> Result<()> {
    const SENT: u32 = 60;
    let mut wire = Wire::leased(&[])?;
    let started = Instant::now();
    for xid in 0..SENT {
        wire.vm.send(&discover(0xf100_0000 + xid).broadcast())?;
    }
    let marker = named("the end of the burst", lab::wire::Arp::request(VM_MAC, VM, VM).frame());
    wire.vm.send(&marker.1)?;
    let (passed, _) = wire.segment.expect(&marker.0, |seen| seen == marker.1)?;
    let passed = u64::try_from(passed.len())?;
    // "About": twelve at once is the most, and however slow this machine is, one a second comes on top.
    let most = 12 + started.elapsed().as_secs() + 1;
    ensure!((5..=most).contains(&passed), "{passed} of {SENT} messages passed, at most {most} should");
    // Other traffic is not limited with it.
    wire.has_lease(VM)?;
    wire.passes("ARP", &ethernet(Mac::BROADCAST, VM_MAC, lab::wire::ARP, &marker.1[14..]))?;
    let ip = wire.to(WORLD).1;
    ensure!(lab::wire::ether_type(&ip) == IPV4);
    wire.passes("IPv4", &ip)
}

pub fn c5_the_earlier_lease_is_given_back() -> Result<()> {
    let new: Ipv4Addr = [10, 7, 0, 3].into();
    let mut wire = Wire::start(&[])?;
    for (address, id) in [(VM, &b"\0firmware"[..]), (new, b"\0system")] {
        let xid = wire.next();
        let request = Dhcp::client(kind::REQUEST, xid, VM_MAC)
            .with(option::REQUESTED_ADDRESS, &address.octets())
            .with(option::CLIENT_ID, id);
        wire.vm.send(&request.broadcast())?;
        wire.server().heard(kind::REQUEST, xid)?;
        wire.server().send(&wire.server().answer(kind::ACK, xid, VM_MAC, address), VM_MAC)?;
        DhcpServer::told(&wire.vm, kind::ACK, xid)?;
    }
    let given_back = |frame: &[u8]| {
        parse_dhcp(frame).is_some_and(|it| it.message_type() == kind::RELEASE && it.ciaddr == VM)
    };
    let (_, release) = wire.segment.expect("the RELEASE of the earlier lease", given_back)?;
    let id = parse_dhcp(&release).and_then(|it| it.option(option::CLIENT_ID).map(<[u8]>::to_vec));
    ensure!(id.as_deref() == Some(&b"\0firmware"[..]), "it is given back under {id:?}");
    wire.has_lease(new)
}

pub fn c8_no_other_server() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let request = |xid: u32, server: &[u8]| {
        Dhcp::client(kind::REQUEST, xid, VM_MAC)
            .with(option::REQUESTED_ADDRESS, &VM.octets())
            .with(option::SERVER, server)
            .broadcast()
    };
    let mut frames: Vec<_> = [NEIGHBOUR, WORLD, NOBODY, ALL]
        .into_iter()
        .map(|server| named(format!("a REQUEST to {server}"), request(9, &server.octets())))
        .collect();
    frames.push(named("a server of three bytes", request(9, &[10, 7, 0])));
    frames.push(named("an empty server", request(9, &[])));
    let discover = discover(9).with(option::SERVER, &NEIGHBOUR.octets());
    frames.push(named("a DISCOVER to a neighbour", discover.broadcast()));
    wire.drops_all(&frames)?;
    wire.passes("a REQUEST to the gateway", &request(10, &GATEWAY.octets()))
}

pub fn c9_names() -> Result<()> {
    const HOST_NAME: u8 = 12;
    const FQDN: u8 = 81;
    let mut wire = Wire::leased(&[])?;
    let with = |xid: u32, code: u8, value: &[u8]| discover(xid).with(code, value).broadcast();
    let long = [b'a'; 64];
    let mut frames = Vec::new();
    for name in [&b""[..], b"a b", b"a_b", b"a\nb", b"..", b"a..b", b".a", b"vm\0\0", b"a=b", b"*", &long] {
        frames.push(named(format!("the name {}", name.escape_ascii()), with(9, HOST_NAME, name)));
        let fqdn = [&[1, 0, 0][..], name].concat();
        if !name.is_empty() {
            frames.push(named(format!("the FQDN {}", name.escape_ascii()), with(9, FQDN, &fqdn)));
        }
    }
    frames.push(named("an FQDN in a loop", with(9, FQDN, &[4, 0, 0, 0xc0, 3])));
    frames.push(named("a short FQDN", with(9, FQDN, &[1, 0])));
    wire.drops_all(&frames)?;
    wire.passes("a name", &with(10, HOST_NAME, b"vm-1.example.com"))?;
    wire.passes("a name with a dot", &with(11, HOST_NAME, b"vm."))?;
    wire.passes("an empty FQDN", &with(12, FQDN, &[1, 0, 0]))?;
    wire.passes("an FQDN in DNS's format", &with(13, FQDN, b"\x05\0\0\x02vm\x07example\x03com\0"))
}

pub fn c10_the_last_lease_is_renewed() -> Result<()> {
    let renewal =
        |xid: u32, address: Ipv4Addr| Dhcp { ciaddr: address, ..Dhcp::client(kind::REQUEST, xid, VM_MAC) };
    // A VM that is older than its Softnet.
    let mut wire = Wire::start(&[])?;
    wire.drops_all(&[
        named("a renewal from elsewhere", wire.routed(&renewal(9, WORLD).packet(WORLD, GATEWAY))),
        named("a renewal of the gateway", wire.routed(&renewal(9, GATEWAY).packet(GATEWAY, GATEWAY))),
        named("a DISCOVER from an address", wire.routed(&discover(9).packet(VM, GATEWAY))),
    ])?;
    wire.passes("a renewal", &wire.routed(&renewal(10, VM).packet(VM, GATEWAY)))?;
    wire.lacks_lease("a renewal without an answer", VM)?;
    wire.server().send(&wire.server().with_lease_seconds(2).answer(kind::ACK, 10, VM_MAC, VM), VM_MAC)?;
    DhcpServer::told(&wire.vm, kind::ACK, 10)?;
    let frame = wire.to(WORLD).1;
    let before = wire.softnet.counters()?.from_vm.get("no-lease").copied();
    let expired = until(|| {
        let sent = wire.vm.send(&frame).is_ok();
        sent && wire.softnet.counters().is_ok_and(|now| now.from_vm.get("no-lease").copied() > before)
    });
    ensure!(expired, "a lease of two seconds never expires");
    wire.marker = Marker::Gateway(VM);
    wire.settle()?;
    wire.drops_all(&[
        named("a packet", wire.to(WORLD).1),
        named("ARP for another", lab::wire::Arp::request(VM_MAC, VM, NEIGHBOUR).frame()),
        named("another address", wire.routed(&renewal(11, NEIGHBOUR).packet(NEIGHBOUR, GATEWAY))),
    ])?;
    wire.passes("a renewal of the last lease", &wire.routed(&renewal(12, VM).packet(VM, GATEWAY)))?;
    wire.passes("its rebinding", &renewal(13, VM).broadcast())?;
    wire.server().send(&wire.server().answer(kind::ACK, 13, VM_MAC, VM), VM_MAC)?;
    DhcpServer::told(&wire.vm, kind::ACK, 13)?;
    wire.has_lease(VM)?;
    // Not after it was given up.
    let release = Dhcp { ciaddr: VM, ..Dhcp::client(kind::RELEASE, 14, VM_MAC) }
        .with(option::SERVER, &GATEWAY.octets());
    wire.marker = Marker::Discover;
    wire.passes("a RELEASE", &wire.routed(&release.packet(VM, GATEWAY)))?;
    wire.drops("a renewal after RELEASE", &wire.routed(&renewal(15, VM).packet(VM, GATEWAY)))
}
