//! One address, one VM (B7); and who is right about a lease keeps the network (B8, C5, C10).

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, until};
use lab::net::Host;
use lab::stage::run;
use lab::wire::{
    ARP, Arp, Dhcp, Ipv4, Mac, address_at, dhcp_kind as kind, dhcp_option as option, ether_type, icmp,
    source, udp,
};
use lab::{DhcpServer, PacketSocket, Segment};

use crate::fixture::{GATEWAY, INTERNET, PORT, Vm, World, is_leased, leases, mac, routed, xid};

/// An address of the first network that nobody is given unasked.
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 77);

fn renewal(client: Mac, address: Ipv4Addr, xid: u32) -> Dhcp {
    Dhcp { ciaddr: address, ..Dhcp::client(kind::REQUEST, xid, client) }
}

fn selection(client: Mac, address: Ipv4Addr, server: Ipv4Addr, xid: u32) -> Dhcp {
    Dhcp::client(kind::REQUEST, xid, client)
        .with(option::REQUESTED_ADDRESS, &address.octets())
        .with(option::SERVER, &server.octets())
}

/// Frames with which a VM pretends to, or does, have an address.
fn claims(vm: &Vm, gateway: Mac, address: Ipv4Addr) -> Vec<Vec<u8>> {
    vec![
        Arp::request(vm.mac, address, vm.gateway).frame(),
        Arp::reply(vm.mac, address, gateway, vm.gateway).frame(),
        routed(vm, gateway, address, vm.gateway, icmp(8, 0, &[0, 1, 0, 1])),
        routed(vm, gateway, address, INTERNET, udp((address, 4000), (INTERNET, PORT), b"?")),
    ]
}

/// A second VM joins that would like `wanted`. Whatever it is given, the first one has it no more, and the second one's
/// Softnet and connections live.
pub fn is_nobody_elses(first: &Vm, gateway: Mac, wanted: Ipv4Addr) -> Result<()> {
    let mut second = Vm::start(mac(2), &[])?;
    let given = second.lease(Some(wanted))?;
    let sniffer = PacketSocket::open("softnet0")?;
    first.send_judged(&claims(first, gateway, given))?;
    while let Ok(frame) = sniffer.try_recv() {
        let claimed = if ether_type(&frame) == ARP { address_at(&frame, 28) } else { address_at(&frame, 26) };
        ensure!(
            source(&frame) != first.mac || claimed != given,
            "{given} was given to {}, and {} sends from it: {frame:02x?}\n{}",
            second.mac,
            first.mac,
            leases()
        );
    }
    let neighbours = run("ip", &["neigh", "show", &given.to_string(), "dev", "softnet0"])?;
    ensure!(
        !neighbours.contains(&first.mac.to_string()),
        "the host takes {given} for the first one's: {neighbours}"
    );
    for id in 0..2 {
        let gateway = second.gateway_mac(given).with_context(|| second.softnet.log())?;
        let mine = format!("to {}", crate::fixture::PUBLIC);
        second.port.send(&routed(
            &second,
            gateway,
            given,
            INTERNET,
            udp((given, 5000 + id), (INTERNET, PORT), b"?"),
        ))?;
        let heard = second
            .listen(given, Duration::from_secs(5), |frame| lab::wire::carries(frame, mine.as_bytes()))?;
        ensure!(heard.is_some(), "the second VM has no internet: {}", second.softnet.log());
    }
    ensure!(second.softnet.is_running(), "the second VM's Softnet ended: {}", second.softnet.log());
    Ok(())
}

/// ACK of the renewal closes the transaction, that of the selection moves the server.
pub fn b7_two_requests_with_one_xid_share_no_address() -> Result<()> {
    let _world = World::build()?;
    let (first, address) = Vm::leased(mac(1), &[])?;
    let gateway = first.gateway_mac(address)?;
    let xid = xid();
    first.port.send(&renewal(first.mac, address, xid).packet(address, GATEWAY).frame(gateway, first.mac))?;
    first.port.send(&selection(first.mac, OTHER, GATEWAY, xid).broadcast())?;
    first.told(kind::ACK, xid, Duration::from_secs(5))?.context("not even the renewal was answered")?;
    // The server answers in order; a question of its own behind both says that it has read them.
    let inform = Dhcp { ciaddr: address, ..Dhcp::client(kind::INFORM, xid + 0x1000, first.mac) };
    first.port.send(&inform.broadcast())?;
    let _ = first.told(kind::ACK, xid + 0x1000, Duration::from_millis(300))?;
    is_nobody_elses(&first, gateway, address)
}

/// The server's answer to a selection is lost, as in a full queue.
pub fn b7_a_lost_answer_leaves_no_address_behind() -> Result<()> {
    let _world = World::build()?;
    let (first, address) = Vm::leased(mac(1), &[])?;
    let gateway = first.gateway_mac(address)?;
    let rules = "add table bridge lab; add chain bridge lab out { type filter hook output priority 0; };\
                 add rule bridge lab out udp sport 67 drop";
    run("nft", &[rules])?;
    first.port.send(&selection(first.mac, OTHER, GATEWAY, xid()).broadcast())?;
    ensure!(until(|| is_leased(first.mac, OTHER)), "the server did not move the VM:\n{}", leases());
    run("nft", &["delete table bridge lab"])?;
    is_nobody_elses(&first, gateway, address)
}

/// A wire on which the test plays the server.
fn wire(segment: &Segment) -> Result<Vm> {
    let tap = format!("--tap={}", Segment::TAP);
    let vm = Vm::start(mac(1), &[&tap])?;
    ensure!(vm.gateway == segment.gateway, "{}", vm.ready);
    Ok(vm)
}

const WIRE_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const LEASE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const MOVED: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);

fn segment() -> Result<Segment> {
    Segment::build(&Host::main()?, WIRE_GATEWAY, 24)
}

/// What the VM's queue does not take is not forwarded.
pub fn l6_what_the_link_loses_is_dropped() -> Result<()> {
    let segment = segment()?;
    let server = DhcpServer::new(&segment);
    let vm = wire(&segment)?;
    server.lease(&vm.port, vm.mac, LEASE, xid())?;
    let get = |name: &str| -> Result<u64> {
        Ok(vm.softnet.counters()?.from_host.get(name).copied().unwrap_or_default())
    };
    while vm.port.try_recv(&mut [0; 2048])?.is_some() {}
    let before = (get("forwarded")?, get("dropped")?);
    let frame = Ipv4::new(WIRE_GATEWAY, LEASE, udp((WIRE_GATEWAY, 9), (LEASE, 9), &[7; 1400]))
        .frame(vm.mac, segment.mac);
    // The VM reads nothing meanwhile, until something was lost or counted as carried.
    for _ in 0..20 {
        for _ in 0..500 {
            // Its queue may be full, which is a loss before Softnet.
            let _ = segment.send(&frame);
        }
        let mut last = 0;
        ensure!(until(|| {
            let now = get("forwarded").unwrap_or_default() + get("dropped").unwrap_or_default();
            std::mem::replace(&mut last, now) == now
        }));
    }
    let mut buffer = vec![0; 2048];
    let mut read = 0;
    ensure!(
        until(|| {
            while let Ok(Some(_)) = vm.port.try_recv(&mut buffer) {
                read += 1;
            }
            get("forwarded").is_ok_and(|now| now - before.0 == read)
        }),
        "{} frames are counted as forwarded, the VM got {read}",
        get("forwarded")? - before.0
    );
    ensure!(get("dropped")? > before.1, "nothing was lost: the test shows nothing");
    Ok(())
}

/// True if a datagram from the VM's address comes out.
fn sends_from(vm: &Vm, segment: &Segment, address: Ipv4Addr) -> Result<bool> {
    let datagram =
        routed(vm, segment.mac, address, WIRE_GATEWAY, udp((address, 4000), (WIRE_GATEWAY, 4000), b"?"));
    Ok(vm.send_judged(&[datagram])? == 1)
}

pub fn b7_a_shorter_time_that_was_asked_for_holds_without_an_answer() -> Result<()> {
    let segment = segment()?;
    let server = DhcpServer::new(&segment);
    let vm = wire(&segment)?;
    server.lease(&vm.port, vm.mac, LEASE, xid())?;
    ensure!(sends_from(&vm, &segment, LEASE)?);
    let xid = xid();
    let request = renewal(vm.mac, LEASE, xid).with(option::LEASE_TIME, &2u32.to_be_bytes());
    vm.port.send(&request.packet(LEASE, WIRE_GATEWAY).frame(segment.mac, vm.mac))?;
    server.heard(kind::REQUEST, xid)?;
    let mut failed = None;
    let deadline = Deadline::after(Duration::from_secs(6));
    let ended = until(|| match sends_from(&vm, &segment, LEASE) {
        Ok(sends) => !sends || deadline.left().is_zero(),
        Err(error) => {
            failed = Some(error);
            true
        }
    });
    failed.map_or(Ok(()), Err)?;
    ensure!(
        ended && !sends_from(&vm, &segment, LEASE)?,
        "the server's lease was 2 s, the filter's is longer"
    );
    Ok(())
}

pub fn b7_a_late_answer_does_not_bring_an_address_back() -> Result<()> {
    let segment = segment()?;
    let server = DhcpServer::new(&segment);
    let vm = wire(&segment)?;
    server.lease(&vm.port, vm.mac, LEASE, xid())?;
    let (early, late) = (xid(), xid());
    vm.port.send(&renewal(vm.mac, LEASE, early).packet(LEASE, WIRE_GATEWAY).frame(segment.mac, vm.mac))?;
    server.heard(kind::REQUEST, early)?;
    vm.port.send(&selection(vm.mac, MOVED, WIRE_GATEWAY, late).broadcast())?;
    server.heard(kind::REQUEST, late)?;
    ensure!(
        !sends_from(&vm, &segment, LEASE)?,
        "the VM asked for another address and goes on to use this one"
    );
    server.send(&server.answer(kind::ACK, early, vm.mac, LEASE), vm.mac)?;
    is_behind(&vm, &segment)?;
    ensure!(!sends_from(&vm, &segment, LEASE)?, "a late answer to the earlier request binds again");
    server.send(&server.answer(kind::ACK, late, vm.mac, MOVED), vm.mac)?;
    DhcpServer::told(&vm.port, kind::ACK, late)?;
    ensure!(sends_from(&vm, &segment, MOVED)? && !sends_from(&vm, &segment, LEASE)?);
    Ok(())
}

pub fn b7_an_answer_for_another_address_ends_the_lease() -> Result<()> {
    let segment = segment()?;
    let server = DhcpServer::new(&segment);
    let vm = wire(&segment)?;
    server.lease(&vm.port, vm.mac, LEASE, xid())?;
    ensure!(sends_from(&vm, &segment, LEASE)?);
    server.send(&server.answer(kind::ACK, xid(), vm.mac, MOVED), vm.mac)?;
    is_behind(&vm, &segment)?;
    ensure!(
        !sends_from(&vm, &segment, LEASE)?,
        "the server has moved the VM, and it still has its old address"
    );
    ensure!(!sends_from(&vm, &segment, MOVED)?, "an answer of no transaction binds");
    Ok(())
}

/// Returns when all that the segment has sent has been judged: what follows it has come through.
fn is_behind(vm: &Vm, segment: &Segment) -> Result<()> {
    let marker = b"behind all that";
    let datagram = Ipv4::new(WIRE_GATEWAY, LEASE, udp((WIRE_GATEWAY, 9), (LEASE, 9), marker));
    segment.send(&datagram.frame(vm.mac, segment.mac))?;
    vm.port.expect("the marker", |frame| lab::wire::carries(frame, marker))?;
    Ok(())
}

/// A VM that has slept longer than its lease believes in it.
pub fn c10_an_expired_lease_is_renewed() -> Result<()> {
    let segment = segment()?;
    let server = DhcpServer::new(&segment).with_lease_seconds(2);
    let vm = wire(&segment)?;
    server.lease(&vm.port, vm.mac, LEASE, xid())?;
    ensure!(until(|| sends_from(&vm, &segment, LEASE).is_ok_and(|sends| !sends)), "the lease does not end");
    vm.port.send(&Arp::request(vm.mac, LEASE, WIRE_GATEWAY).frame())?;
    let is_it = |frame: &[u8]| ether_type(frame) == ARP && address_at(frame, 28) == LEASE;
    segment.expect("the ARP request for the gateway", is_it)?;
    let (unicast, broadcast, raw) = (xid(), xid(), xid());
    let request = |xid| renewal(vm.mac, LEASE, xid);
    vm.port.send(&request(unicast).packet(LEASE, WIRE_GATEWAY).frame(segment.mac, vm.mac))?;
    server.heard(kind::REQUEST, unicast).context("a renewal")?;
    vm.port.send(&request(broadcast).packet(LEASE, Ipv4Addr::BROADCAST).frame(Mac::BROADCAST, vm.mac))?;
    server.heard(kind::REQUEST, broadcast).context("a rebinding")?;
    vm.port.send(&request(raw).broadcast())?;
    server.heard(kind::REQUEST, raw).context("a rebinding by a raw socket")?;
    ensure!(!sends_from(&vm, &segment, LEASE)?, "a request alone binds");
    server.send(&server.answer(kind::ACK, raw, vm.mac, LEASE), vm.mac)?;
    DhcpServer::told(&vm.port, kind::ACK, raw)?;
    ensure!(sends_from(&vm, &segment, LEASE)?);
    Ok(())
}

/// A Softnet that was started again while its VM kept its lease.
pub fn c10_a_new_softnet_lets_a_guest_renew() -> Result<()> {
    let segment = segment()?;
    let server = DhcpServer::new(&segment);
    let vm = wire(&segment)?;
    let renewing = xid();
    vm.port.send(&renewal(vm.mac, LEASE, renewing).packet(LEASE, WIRE_GATEWAY).frame(segment.mac, vm.mac))?;
    server.heard(kind::REQUEST, renewing)?;
    ensure!(!sends_from(&vm, &segment, LEASE)?, "a request alone binds");
    server.send(&server.answer(kind::ACK, renewing, vm.mac, LEASE), vm.mac)?;
    DhcpServer::told(&vm.port, kind::ACK, renewing)?;
    ensure!(sends_from(&vm, &segment, LEASE)?);
    // Outside the subnet no lease can be.
    let foreign = Ipv4Addr::new(10, 0, 1, 2);
    let request = renewal(vm.mac, foreign, xid()).packet(foreign, WIRE_GATEWAY).frame(segment.mac, vm.mac);
    ensure!(vm.send_judged(&[request])? == 0);
    Ok(())
}

/// bootpd turns DHCP off for all when one guest selects a foreign server, and 0.0.0.0 is one.
pub fn c8_no_foreign_server_is_selected() -> Result<()> {
    let segment = segment()?;
    let vm = wire(&segment)?;
    for server in [[0, 0, 0, 0], [10, 0, 0, 9], [255, 255, 255, 255]] {
        let request = selection(vm.mac, LEASE, server.into(), xid()).broadcast();
        ensure!(vm.send_judged(&[request])? == 0, "{server:?}");
    }
    let request = selection(vm.mac, LEASE, WIRE_GATEWAY, xid());
    let short = Dhcp {
        options: request
            .options
            .iter()
            .map(|(code, value)| (*code, value[..value.len().min(3)].to_vec()))
            .collect(),
        ..request.clone()
    };
    ensure!(vm.send_judged(&[short.broadcast()])? == 0, "three bytes");
    ensure!(vm.send_judged(&[request.broadcast()])? == 1, "the gateway itself");
    Ok(())
}

/// What a VM calls itself ends in files and names of the host's.
pub fn c9_a_host_name_is_a_name() -> Result<()> {
    const NAME: u8 = 12;
    let segment = segment()?;
    let long = "a".repeat(64);
    let bad: [&[u8]; 10] =
        [b"", b"a b", b"a\nb", b"a..b", b".a", b"a\0b", b"a_b", b"a\xc3\xa4", b"a/b", long.as_bytes()];
    let good: [&[u8]; 6] = [b"a", b"vm-1", b"vm-1.example.com", b"vm.example.", b"vm\0", &[b'a'; 63]];
    // The rate of a client's messages is one VM's: each gets a VM of its own.
    for (names, passes) in [(&bad[..], 0), (&good[..], 1)] {
        let vm = wire(&segment)?;
        for name in names {
            let discover = Dhcp::client(kind::DISCOVER, xid(), vm.mac).with(NAME, name);
            ensure!(
                vm.send_judged(&[discover.broadcast()])? == passes,
                "{:?}",
                String::from_utf8_lossy(name)
            );
        }
        let mut softnet = vm.softnet;
        ensure!(softnet.stop()?.success());
    }
    Ok(())
}

pub fn b8_an_inform_of_a_bound_vm_is_answered() -> Result<()> {
    let segment = segment()?;
    let server = DhcpServer::new(&segment);
    let vm = wire(&segment)?;
    server.lease(&vm.port, vm.mac, LEASE, xid())?;
    for lease_time in [None, Some(0u32), Some(600)] {
        let xid = xid();
        let inform = Dhcp { ciaddr: LEASE, ..Dhcp::client(kind::INFORM, xid, vm.mac) };
        vm.port.send(&inform.packet(LEASE, WIRE_GATEWAY).frame(segment.mac, vm.mac))?;
        server.heard(kind::INFORM, xid)?;
        let mut answer = Dhcp { ciaddr: LEASE, ..Dhcp::server(kind::ACK, xid, vm.mac, WIRE_GATEWAY) };
        if let Some(seconds) = lease_time {
            answer = answer.with(option::LEASE_TIME, &seconds.to_be_bytes());
        }
        segment.send(&answer.packet(WIRE_GATEWAY, LEASE).frame(vm.mac, segment.mac))?;
        let heard = vm.told(kind::ACK, xid, Duration::from_secs(5))?;
        ensure!(heard.is_some(), "not answered, option 51 {lease_time:?}");
        ensure!(sends_from(&vm, &segment, LEASE)?, "the lease ended, option 51 {lease_time:?}");
    }
    Ok(())
}

pub fn b8_dnsmasq_answers_an_inform_without_option_55() -> Result<()> {
    let (vm, address) = Vm::leased(mac(1), &[])?;
    let gateway = vm.gateway_mac(address)?;
    let xid = xid();
    let inform = Dhcp { ciaddr: address, ..Dhcp::client(kind::INFORM, xid, vm.mac) };
    vm.port.send(&inform.packet(address, GATEWAY).frame(gateway, vm.mac))?;
    ensure!(vm.told(kind::ACK, xid, Duration::from_secs(5))?.is_some(), "not answered");
    Ok(())
}

/// A client identifier as systemd makes it out of a DUID (RFC 4361).
fn duid(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut id = vec![255, 0, 0, 0, 1, 0, kind];
    id.extend(rest);
    id
}

/// A live system makes itself a new one at every boot.
pub fn c5_the_fifth_boot_gets_an_address() -> Result<()> {
    let vm = Vm::start(mac(1), &[])?;
    let mut last = None;
    for boot in 1..=5u8 {
        let id = duid(4, &[boot; 16]);
        // Some may have to wait for 150 s; a client keeps asking.
        let patience = Duration::from_secs(if boot < 5 { 20 } else { 170 });
        let address = vm.lease_as(None, &[(option::CLIENT_ID, &id)], Deadline::after(patience));
        last = Some(address.with_context(|| format!("boot {boot}"))?);
    }
    let address = last.context("no boot")?;
    vm.gateway_mac(address)?;
    ensure!(leases().lines().count() == 1, "one VM has several leases:\n{}", leases());
    Ok(())
}

/// The template's identifiers, in a clone with a MAC address of its own.
pub fn c5_a_cloned_image_gets_an_address() -> Result<()> {
    let template = [2, 0, 0, 0, 0, 0x99];
    let with_time = [&[0, 1, 1, 2, 3, 4][..], &template].concat();
    let plain = [&[0, 1][..], &template].concat();
    let ids = [duid(1, &with_time), duid(3, &plain), [&[1][..], &template].concat()];
    for (number, id) in (1..).zip(ids) {
        let vm = Vm::start(mac(number), &[])?;
        let deadline = Deadline::after(Duration::from_secs(6));
        let address =
            vm.lease_as(None, &[(option::CLIENT_ID, &id)], deadline).with_context(|| format!("{id:02x?}"))?;
        vm.gateway_mac(address)?;
    }
    Ok(())
}
