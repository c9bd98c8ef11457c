use super::lease::SETTLE_LIMIT;
use super::*;
use crate::lease_follower::{NoFollower, Notice};
use crate::vm::DatagramLink;
use mio::Token;
use softnet_filter::{DropReason, Gateway, Lease, MacAddr, NetType, Policy, PortConfig, Resolvers, Verdict};
use softnet_wire::make::{Arp, Ipv4, udp};
use std::cell::RefCell;
use std::os::unix::net::UnixDatagram;
use std::rc::Rc;

const VM: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
const MAX_FRAME: usize = 1514;

/// A relay between two socket pairs, whose other ends are the VM and the host.
fn relay() -> (UnixDatagram, Relay, UnixDatagram) {
    relay_with(Box::new(NoFollower))
}

fn relay_with(follower: Box<dyn LeaseFollower>) -> (UnixDatagram, Relay, UnixDatagram) {
    let (vm, vm_end) = UnixDatagram::pair().unwrap();
    let (host, host_end) = UnixDatagram::pair().unwrap();
    for socket in [&vm, &host] {
        socket.set_nonblocking(true).unwrap();
    }
    let gateway = "192.168.64.1".parse().unwrap();
    let port = Port::new(PortConfig {
        vm_mac: VM,
        gateway: Gateway { mac: HOST, address: gateway, subnet: "192.168.64.0/24".parse().unwrap() },
        dhcp_server: None,
        net_type: NetType::Nat,
        policy: Policy::default(),
        mtu: 1500,
        server_files_by_mac: false,
        host_addresses: Vec::new(),
        on_block: Default::default(),
        published: Vec::new(),
        seed: 7,
    });
    let relay = Relay::new(
        Box::new(DatagramLink::new(vm_end.into()).unwrap()),
        Box::new(DatagramLink::new(host_end.into()).unwrap()),
        port.unwrap(),
        follower,
        ParentWatch::new().unwrap(),
        MAX_FRAME,
    );
    (vm, relay.unwrap(), host)
}

fn lease_until(relay: &mut Relay, expires: Timestamp) {
    let address = "192.168.64.7".parse().unwrap();
    let server = "192.168.64.1".parse().unwrap();
    let lease = Lease { address, server, expires: Some(expires), resolvers: Resolvers::default() };
    relay.port.adopt(lease, None, clock::now()).unwrap();
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 64, last)
}

/// An ARP request of the VM for its gateway, which passes while the VM has its lease.
fn arp_request() -> Vec<u8> {
    Arp::request(VM, address(7), address(1)).frame()
}

/// An announcement of the VM's own address, which passes only while the VM has its lease (rule C10).
fn arp_announcement() -> Vec<u8> {
    Arp::request(VM, address(7), address(7)).frame()
}

/// A frame that the host sends to the VM.
fn arp_reply() -> Vec<u8> {
    Arp::reply(HOST, address(1), VM, address(7)).frame()
}

/// A full frame of the VM that passes while it has its lease.
fn datagram_to_the_world() -> Vec<u8> {
    let world = Ipv4Addr::new(9, 9, 9, 9);
    let datagram = udp((address(7), 4000), (world, 4000), &[7; MAX_FRAME - 42]);
    Ipv4::new(address(7), world, datagram).frame(HOST, VM)
}

/// One turn that does not wait.
fn turn(relay: &mut Relay) -> Result<(), Stop> {
    let mut events = wake::events();
    relay.sources.wait(&mut events, Some(Duration::ZERO))?;
    relay.turn(&events)
}

fn received(socket: &UnixDatagram) -> usize {
    std::iter::from_fn(|| socket.recv(&mut [0; MAX_FRAME]).ok()).count()
}

#[test]
fn frames_pass_both_ways_and_bad_ones_are_counted() {
    let (vm, mut relay, host) = relay();
    lease_until(&mut relay, Timestamp::MAX);
    vm.send(&arp_request()).unwrap();
    vm.send(b"garbage").unwrap();
    vm.send(&[0; MAX_FRAME + 1]).unwrap();
    host.send(&arp_reply()).unwrap();
    turn(&mut relay).unwrap();
    assert_eq!((received(&vm), received(&host)), (1, 1));
    let counters = relay.port.counters().to_string();
    assert!(counters.contains("runt=1") && counters.contains("truncated=1"), "{counters}");
}

/// Records the judged frames.
#[derive(Debug, Default)]
struct Notes(Rc<RefCell<Vec<(Direction, usize, Verdict)>>>);

impl Observer for Notes {
    fn judged(&mut self, direction: Direction, frame: &[u8], verdict: Verdict) {
        self.0.borrow_mut().push((direction, frame.len(), verdict));
    }
}

#[test]
fn an_observer_receives_every_judged_frame_and_changes_none() {
    let (vm, mut relay, host) = relay();
    let notes = Notes::default();
    let seen = Rc::clone(&notes.0);
    relay.set_observer(notes);
    lease_until(&mut relay, Timestamp::MAX);
    vm.send(b"garbage").unwrap();
    vm.send(&arp_request()).unwrap();
    host.send(&arp_reply()).unwrap();
    turn(&mut relay).unwrap();
    let expected = [
        (Direction::FromVm, 7, Verdict::Drop(DropReason::Runt)),
        (Direction::FromVm, 42, Verdict::Forward),
        (Direction::FromHost, 42, Verdict::Forward),
    ];
    assert_eq!(seen.take(), expected);
    assert_eq!((received(&vm), received(&host)), (1, 1));
}

#[test]
fn a_lease_ends_on_time_in_the_middle_of_a_flood() {
    let (vm, mut relay, host) = relay();
    let expires = clock::now().saturating_add(Duration::from_millis(20));
    lease_until(&mut relay, expires);
    // The VM's queue never runs dry, so no turn ever waits.
    while clock::now() < expires {
        while vm.send(&arp_announcement()).is_ok() {}
        turn(&mut relay).unwrap();
        received(&host);
    }
    while vm.send(&arp_announcement()).is_ok() {}
    turn(&mut relay).unwrap();
    assert_eq!(received(&host), 0);
    assert!(relay.port.lease().is_none());
}

#[test]
fn a_flood_one_way_leaves_the_other_its_turn() {
    let (vm, mut relay, host) = relay();
    lease_until(&mut relay, Timestamp::MAX);
    for _ in 0..50 {
        while vm.send(&arp_request()).is_ok() {}
        host.send(&arp_reply()).unwrap();
        turn(&mut relay).unwrap();
        assert_eq!(received(&vm), 1, "the host's frame did not pass in the same turn");
        received(&host);
    }
}

#[test]
fn a_vm_that_does_not_read_costs_its_own_frames_only() {
    let (vm, mut relay, host) = relay();
    lease_until(&mut relay, Timestamp::MAX);
    // After the wait for the full queue, frames are read, judged and dropped at once.
    let lost = |relay: &Relay| relay.port.counters().from_host.dropped(DropReason::VmQueueFull);
    while lost(&relay) < 100 {
        let _ = host.send(&arp_reply());
        turn(&mut relay).unwrap();
    }
    vm.send(&arp_request()).unwrap();
    turn(&mut relay).unwrap();
    assert_eq!(received(&host), 1, "the other direction is stuck");
    // When the VM reads again, it gets the frames that arrive from then on.
    assert!(received(&vm) > 0);
    while {
        turn(&mut relay).unwrap();
        received(&vm) > 0
    } {}
    host.send(&arp_reply()).unwrap();
    turn(&mut relay).unwrap();
    assert_eq!(received(&vm), 1);
}

/// Prepares the host for a new address until the test reports it ready.
#[derive(Debug, Default)]
struct Settler(Rc<RefCell<Option<Notice>>>);

impl LeaseFollower for Settler {
    fn needs(&self, _: &mut Needs) {}
    fn register(&mut self, _: &mio::Registry, _: Token) -> io::Result<()> {
        Ok(())
    }
    fn lease_changed(&mut self, _: Option<Lease>, _: Timestamp) {}
    fn attend(&mut self, _: Timestamp) -> Result<(), lease_follower::Error> {
        Ok(())
    }
    fn deadline(&self) -> Option<Timestamp> {
        None
    }
    fn notice(&mut self) -> Result<Option<Notice>, lease_follower::Error> {
        Ok(self.0.borrow_mut().take())
    }
    fn settles(&self) -> bool {
        true
    }
}

#[test]
fn a_new_lease_waits_until_the_host_is_ready() {
    let settler = Settler::default();
    let notice = Rc::clone(&settler.0);
    let (vm, mut relay, host) = relay_with(Box::new(settler));
    lease_until(&mut relay, Timestamp::MAX);
    host.send(&arp_reply()).unwrap();
    turn(&mut relay).unwrap();
    assert_eq!(received(&vm), 0, "the VM learns of a lease that the host is not ready for");
    // Meanwhile the VM may send, and readiness for another address does not count.
    vm.send(&arp_request()).unwrap();
    notice.replace(Some(Notice::Settled([192, 168, 64, 8].into())));
    relay.read_notices(clock::now()).unwrap();
    turn(&mut relay).unwrap();
    assert_eq!((received(&vm), received(&host)), (0, 1));
    notice.replace(Some(Notice::Settled([192, 168, 64, 7].into())));
    relay.read_notices(clock::now()).unwrap();
    assert_eq!(received(&vm), 1);
    host.send(&arp_reply()).unwrap();
    turn(&mut relay).unwrap();
    assert_eq!(received(&vm), 1);
}

#[test]
fn a_host_that_is_never_ready_is_waited_for_some_seconds() {
    let (vm, mut relay, host) = relay_with(Box::<Settler>::default());
    lease_until(&mut relay, Timestamp::MAX);
    host.send(&arp_reply()).unwrap();
    let now = clock::now();
    turn(&mut relay).unwrap();
    let deadline = relay.next_deadline().unwrap();
    assert!(deadline >= now.saturating_add(SETTLE_LIMIT));
    relay.attend(deadline).unwrap();
    assert_eq!(received(&vm), 1);
}

/// Turns that wait as the running loop does, until `done`; returns how many there were.
fn turns_until(relay: &mut Relay, mut done: impl FnMut() -> bool) -> usize {
    let mut events = wake::events();
    (1..)
        .find(|_| {
            relay.wait(&mut events).unwrap();
            relay.turn(&events).unwrap();
            done()
        })
        .unwrap()
}

/// What a limited lane does not read waits in the socket, and all of it arrives, no faster than the limit; then nothing
/// wakes the loop.
#[test]
fn a_limit_holds_frames_back_and_loses_none() {
    const RATE: u64 = 1_000_000;
    const FRAMES: usize = 400;
    for direction in [Direction::FromVm, Direction::FromHost] {
        let (vm, mut relay, host) = relay();
        lease_until(&mut relay, Timestamp::MAX);
        let (from, to) = match direction {
            Direction::FromVm => (&vm, &host),
            Direction::FromHost => (&host, &vm),
        };
        let (up, down) = match direction {
            Direction::FromVm => (NonZeroU64::new(RATE), None),
            Direction::FromHost => (None, NonZeroU64::new(RATE)),
        };
        let idle = relay.next_deadline();
        relay.set_limits(up, down);
        assert_eq!(relay.next_deadline(), idle);
        let frame = match direction {
            Direction::FromVm => datagram_to_the_world(),
            Direction::FromHost => {
                [&VM.octets()[..], &HOST.octets(), &datagram_to_the_world()[12..]].concat()
            }
        };
        let start = clock::now();
        let (mut sent, mut arrived) = (0, 0);
        let turns = turns_until(&mut relay, || {
            while sent < FRAMES && from.send(&frame).is_ok() {
                sent += 1;
            }
            arrived += received(to);
            let elapsed = clock::now().saturating_since(start).as_secs_f64();
            let most = RATE as f64 * elapsed + limit::LEAST_BURST as f64 + frame.len() as f64;
            assert!((arrived * frame.len()) as f64 <= most, "{arrived} frames in {elapsed} s");
            arrived == FRAMES
        });
        assert_eq!(relay.counters().from_vm.dropped_total() + relay.counters().from_host.dropped_total(), 0);
        // A turn for what may be read, a wake-up for what has been sent, and one for the end of each wait.
        assert!(turns < 4 * FRAMES, "{turns} turns for {FRAMES} frames");
        // The last frame may have emptied the bucket; then there is one more turn, which finds the socket empty.
        let mut events = wake::events();
        while relay.has_work(direction) || relay.next_deadline() != idle {
            relay.wait(&mut events).unwrap();
            relay.turn(&events).unwrap();
        }
        // It stays so, however empty the bucket still is.
        turn(&mut relay).unwrap();
        assert!(!relay.has_work(direction) && relay.next_deadline() == idle);
    }
}

/// The other direction and the lease's end do not wait for a limit.
#[test]
fn a_limit_holds_nothing_else_up() {
    let (vm, mut relay, host) = relay();
    let expires = clock::now().saturating_add(Duration::from_millis(200));
    lease_until(&mut relay, expires);
    relay.set_limits(NonZeroU64::new(64_000), None);
    while relay.from_vm.refill_at().is_none() {
        while vm.send(&datagram_to_the_world()).is_ok() {}
        turn(&mut relay).unwrap();
        received(&host);
    }
    host.send(&arp_reply()).unwrap();
    turns_until(&mut relay, || received(&vm) == 1);
    let mut events = wake::events();
    while relay.port.lease().is_some() {
        relay.wait(&mut events).unwrap();
        relay.turn(&events).unwrap();
        assert!(
            relay.port.lease().is_none() || clock::now() < expires.saturating_add(Duration::from_secs(60))
        );
    }
    assert!(clock::now() >= expires);
}

#[test]
fn a_vm_that_closes_ends_the_loop_at_the_next_frame() {
    let (vm, mut relay, host) = relay();
    drop(vm);
    host.send(&arp_reply()).unwrap();
    assert!(matches!(turn(&mut relay), Err(Stop::Ended(Ended::VmClosed))));
}

#[test]
fn a_vm_that_sends_nothing_is_warned_of_once() {
    let (_vm, mut relay, _host) = relay();
    relay.warn_if_mute(Duration::ZERO);
    assert!(relay.next_deadline().is_some());
    turn(&mut relay).unwrap();
    assert!(relay.mute_at.is_none());
}
