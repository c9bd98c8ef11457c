//! R1: judging allocates nothing, whatever the frame and whatever the verdict.
#![expect(unsafe_code, reason = "an allocator that counts has to be an allocator")]

mod oracle;
mod scene;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::{self, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use oracle::dhcp;
use scene::wire::{self, Arp, Dhcp, Ipv4};
use scene::{FIRST_LEASE, GATEWAY, GATEWAY_MAC, NEIGHBOUR, VM_MAC, plain_config};
use softnet_filter::{Port, Timestamp};

struct Counting;

thread_local! {
    /// Of this thread alone, since the test harness has others.
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator, unchanged. Counting does not allocate: the thread-local is
// initialised at compile time and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` came from the system's allocator with this layout, by the caller's promise.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

fn from_vm(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let packet = Ipv4::new(source, destination, (protocol, payload.to_vec()));
    let to = if destination.is_broadcast() { [0xff; 6] } else { GATEWAY_MAC };
    Ipv4 { fragment, ..packet }.with_checksum().frame(to, VM_MAC)
}

fn message(op: u8, xid: u32, kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let yiaddr = if op == 2 { FIRST_LEASE } else { Ipv4Addr::UNSPECIFIED };
    let mut all = vec![(dhcp::OPTION_TYPE, vec![kind])];
    all.extend(options.iter().map(|(code, value)| (*code, value.to_vec())));
    Dhcp { yiaddr, ..wire::bootp(op, xid, VM_MAC, all) }.bytes()
}

fn question(xid: u32, kind: u8, options: &[(u8, &[u8])]) -> Vec<u8> {
    let datagram = wire::udp(68, 67, &message(1, xid, kind, options));
    from_vm(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, 0, &datagram)
}

fn answer(xid: u32, kind: u8) -> Vec<u8> {
    let options: [(u8, &[u8]); 3] = [
        (dhcp::OPTION_SERVER, &GATEWAY.octets()),
        (dhcp::OPTION_LEASE_TIME, &[0, 0, 2, 88]),
        (dhcp::OPTION_RESOLVERS, &[10, 9, 8, 7]),
    ];
    let destination = if kind == dhcp::NAK { Ipv4Addr::BROADCAST } else { FIRST_LEASE };
    let mut message = message(2, xid, kind, &options);
    if kind == dhcp::NAK {
        message[16..20].fill(0);
    }
    let packet = wire::ipv4(GATEWAY, destination, 17, &wire::udp(67, 68, &message));
    wire::ethernet([0xff; 6], GATEWAY_MAC, wire::IPV4, &packet)
}

#[test]
fn r1_judging_allocates_nothing() {
    let world = Ipv4Addr::new(9, 9, 9, 9);
    let own = FIRST_LEASE;
    let dialogue = [
        (true, question(6, dhcp::DISCOVER, &[(dhcp::OPTION_CLIENT_ID, b"\0one")])),
        (false, answer(6, dhcp::OFFER)),
        (true, question(7, dhcp::REQUEST, &[(dhcp::OPTION_CLIENT_ID, b"\0two")])),
        (false, answer(7, dhcp::ACK)),
        (true, from_vm(own, world, 17, 0, &wire::udp(4000, 53, b"query"))),
        (true, from_vm(own, world, 6, 0, &wire::tcp(4000, 443, &[]))),
        (true, from_vm(own, GATEWAY, 1, 0, &wire::icmp(8, 0, &[0; 32]))),
        (true, from_vm(own, world, 1, 0, &wire::icmp(3, 3, &wire::quote(world, own)))),
        (true, from_vm(own, world, 17, 0x2000, &wire::udp(4000, 4000, &[0; 64])[..32])),
        (true, from_vm(own, world, 17, 9, &[0; 32])),
        (true, from_vm(own, Ipv4Addr::new(10, 9, 8, 7), 17, 0, &wire::udp(4000, 53, b"query"))),
        (true, wire::ethernet([0xff; 6], VM_MAC, wire::ARP, &Arp::request(VM_MAC, own, GATEWAY).bytes())),
        // Dropped, each for another reason.
        (true, from_vm(NEIGHBOUR, world, 17, 0, &wire::udp(4000, 53, b"query"))),
        (true, from_vm(own, NEIGHBOUR, 17, 0, &wire::udp(4000, 53, b"query"))),
        (true, from_vm(own, Ipv4Addr::LOCALHOST, 17, 0, &wire::udp(4000, 53, b"query"))),
        (true, from_vm(own, world, 6, 1, &[0; 32])),
        (true, from_vm(own, world, 1, 0, &wire::icmp(5, 0, &[0; 32]))),
        (true, from_vm(own, world, 17, 0, &wire::udp(67, 68, &[0; 300]))),
        (true, question(7, dhcp::RELEASE, &[])),
        (true, question(7, dhcp::REQUEST, &[(dhcp::OPTION_RELAY, &[1, 1, 0])])),
        (true, wire::ethernet(GATEWAY_MAC, VM_MAC, 0x86dd, &[0; 64])),
        (true, wire::ethernet([0xff; 6], VM_MAC, wire::ARP, &Arp::request(VM_MAC, own, NEIGHBOUR).bytes())),
        (true, vec![0; 9]),
        (true, vec![0xff; 65_600]),
        (false, answer(7, dhcp::ACK)),
        (false, wire::ethernet(GATEWAY_MAC, GATEWAY_MAC, wire::IPV4, &[0; 64])),
        (false, wire::ethernet(VM_MAC, GATEWAY_MAC, wire::IPV4, &[0xff; 65_000])),
        (true, question(8, dhcp::REQUEST, &[])),
        (false, answer(8, dhcp::NAK)),
    ];
    let mut port = Port::new(plain_config(vec![scene::block("8.8.8.8")])).expect("a port");
    let mut now = Timestamp::from_secs(1_000);
    // More rounds than there are event slots, transactions and client identifiers to fill.
    for round in 0..100 {
        for (of_vm, frame) in &dialogue {
            now = now.saturating_add(Duration::from_secs(1));
            let count = allocations_of(|| {
                let verdict = if *of_vm { port.from_vm(frame, now) } else { port.from_host(frame, now) };
                let _ = verdict;
            });
            assert_eq!(count, 0, "round {round}: {frame:02x?}");
        }
        assert_eq!(allocations_of(|| port.advance(now)), 0);
    }
    // Every second thing happened that should: the frames are what they are taken for.
    let counters = port.counters();
    assert_eq!(counters.from_vm.forwarded_frames(), 100 * 11, "{counters}");
    assert_eq!(counters.from_host.forwarded_frames(), 100 * 3);
    assert!(counters.from_vm.drops().count() >= 11, "{counters}");

    let rest = allocations_of(|| {
        while port.poll_event().is_some() {}
        let _ = port.next_deadline();
        let _ = port.truncated_from_vm();
        let _ = port.release(now);
        while port.poll_transmit().is_some() {}
        write!(Nowhere, "{}", port.counters()).expect("nowhere has room");
    });
    assert_eq!(rest, 0);
}

/// F4: neither do flows, however many begin, end, and are refused.
#[test]
fn r1_flows_allocate_nothing() {
    let world = Ipv4Addr::new(9, 9, 9, 9);
    let mut port = Port::new(plain_config(vec![scene::block("in 1.1.1.1")])).expect("a port");
    let mut now = Timestamp::from_secs(1_000);
    let _ = port.from_vm(&question(7, dhcp::REQUEST, &[]), now);
    assert!(port.from_host(&answer(7, dhcp::ACK), now).is_forward());
    let frames = |number: u16| {
        let (own, peer) = (2_000 + number % 30_000, 5_000 + number / 30_000);
        let to_vm = |protocol, payload: &[u8]| {
            wire::ethernet(
                VM_MAC,
                GATEWAY_MAC,
                wire::IPV4,
                &wire::ipv4(world, FIRST_LEASE, protocol, payload),
            )
        };
        [
            (true, from_vm(FIRST_LEASE, world, 17, 0, &wire::udp(own, peer, b"query"))),
            (false, to_vm(17, &wire::udp(peer, own, b"answer"))),
            (false, to_vm(6, &wire::tcp(own, 22, &[]))),
            (true, from_vm(FIRST_LEASE, world, 17, 0x2000, &wire::udp(own, peer, &[0; 64])[..32])),
            (true, from_vm(FIRST_LEASE, NEIGHBOUR, 6, 0, &wire::tcp(own, peer, &[]))),
        ]
    };
    for number in 0..20_000 {
        if number % 7_000 == 6_999 {
            now = now.saturating_add(Duration::from_secs(200));
        }
        for (of_vm, frame) in frames(number) {
            let count = allocations_of(|| {
                let verdict = if of_vm { port.from_vm(&frame, now) } else { port.from_host(&frame, now) };
                let _ = verdict;
            });
            assert_eq!(count, 0, "{number}: {frame:02x?}");
        }
    }
    let counters = port.counters();
    assert!(counters.from_host.drops().any(|(reason, count)| reason.name() == "flows-full" && count > 1_000));
    assert!(counters.from_vm.forwarded_frames() > 20_000, "{counters}");
}

/// Takes text and keeps none.
struct Nowhere;

impl Write for Nowhere {
    fn write_str(&mut self, _: &str) -> fmt::Result {
        Ok(())
    }
}
