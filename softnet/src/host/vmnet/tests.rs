//! Tests the code above the framework against a stand-in that behaves like it: frames come from one thread, and another
//! calls back as long as any are left; reads and writes come in batches, buffers run out, forwards fail.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use softnet_filter::{Lease, Resolvers, Timestamp};

use super::*;
use crate::link::{BATCH_FRAMES, FrameBatch, Link, LinkError, Losses, Received, Sent};

const MAX_FRAME: usize = 1514;
/// Long enough for any machine; a test that needs it has failed.
const TIMEOUT: Duration = Duration::from_secs(30);

const PARAMETERS: Parameters = Parameters {
    gateway: Ipv4Addr::new(192, 168, 64, 1),
    subnet: Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 64, 1), 24),
    mtu: 1500,
    max_frame: MAX_FRAME,
    max_read: BATCH_FRAMES,
    max_write: BATCH_FRAMES,
};

/// What both sides of the stand-in share.
#[derive(Debug, Default)]
struct State {
    arrived: VecDeque<Vec<u8>>,
    written: Vec<Vec<u8>>,
    /// The errors of the next writes, in order.
    refusals: VecDeque<Refusal>,
    /// How many frames a write takes at most.
    write_limit: Option<usize>,
    /// The errors of the next changes of forwards, in order.
    forward_refusals: VecDeque<Refusal>,
    log: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct Network(Arc<(Mutex<State>, Condvar)>);

impl Network {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap()
    }

    fn is_stopped(&self) -> bool {
        !self.state().log.is_empty()
    }

    fn arrive(&self, frame: Vec<u8>) {
        self.state().arrived.push_back(frame);
        self.0.1.notify_all();
    }

    /// Calls back as long as frames are left, until the interface stops. Returns how often.
    fn call_back(&self, waker: &Arc<Waker>) -> JoinHandle<usize> {
        let (network, waker) = (self.clone(), Arc::clone(waker));
        std::thread::spawn(move || {
            for calls in 0.. {
                let state = network.state();
                let waits = |state: &mut State| state.arrived.is_empty() && state.log.is_empty();
                let state = network.0.1.wait_while(state, waits).unwrap();
                if !state.log.is_empty() {
                    return calls;
                }
                drop(state);
                waker.wake();
            }
            0
        })
    }
}

/// The interface's end.
#[derive(Debug)]
struct FakeInterface(Network, Option<Arc<Waker>>);

impl Interface for FakeInterface {
    fn read(&mut self, buffers: &mut [&mut [u8]], lengths: &mut [usize]) -> Result<usize, Refusal> {
        let mut state = self.0.state();
        let mut count = 0;
        for (buffer, length) in buffers.iter_mut().zip(lengths) {
            let Some(frame) = state.arrived.pop_front() else { break };
            buffer[..frame.len()].copy_from_slice(&frame);
            *length = frame.len();
            count += 1;
        }
        Ok(count)
    }

    fn write(&mut self, frames: &[&[u8]]) -> Result<usize, Refusal> {
        let mut state = self.0.state();
        if let Some(refusal) = state.refusals.pop_front() {
            return Err(refusal);
        }
        let taken = frames.len().min(state.write_limit.unwrap_or(usize::MAX));
        state.written.extend(frames[..taken].iter().map(|frame| frame.to_vec()));
        Ok(taken)
    }

    fn add_forward(&mut self, forward: &Forward) -> Result<(), Refusal> {
        self.change(format!("add {forward}"))
    }

    fn remove_forward(&mut self, forward: &Forward) -> Result<(), Refusal> {
        self.change(format!("remove {forward}"))
    }
}

impl FakeInterface {
    fn change(&mut self, what: String) -> Result<(), Refusal> {
        let mut state = self.0.state();
        match state.forward_refusals.pop_front() {
            Some(refusal) => Err(refusal),
            None => {
                state.log.push(what);
                Ok(())
            }
        }
    }
}

impl Drop for FakeInterface {
    fn drop(&mut self) {
        if let Some(waker) = &self.1 {
            waker.close();
        }
        self.0.state().log.push("stop".to_owned());
        self.0.0.1.notify_all();
    }
}

/// A link, its stand-in network, and its waker.
fn link() -> (VmnetLink<FakeInterface>, Network, Arc<Waker>) {
    let (waker, wake) = wake::pair().unwrap();
    let waker = Arc::new(waker);
    let network = Network::default();
    let interface = Rc::new(RefCell::new(FakeInterface(network.clone(), Some(Arc::clone(&waker)))));
    (VmnetLink::new(interface, wake, PARAMETERS), network, waker)
}

fn batch_of(count: u8) -> FrameBatch {
    let mut batch = FrameBatch::new(MAX_FRAME);
    for byte in 0..count {
        batch.free_space()[..60].fill(byte);
        batch.push(60);
    }
    batch
}

fn first_bytes(frames: &[Vec<u8>]) -> Vec<u8> {
    frames.iter().map(|frame| frame[0]).collect()
}

/// A callback that did not wait would be called without pause until the loop has read the frames.
#[test]
fn no_wake_up_is_lost_and_none_is_repeated() {
    const FRAMES: u32 = 50_000;
    let (mut link, network, waker) = link();
    let mut poll = Poll::new().unwrap();
    link.register(poll.registry(), Token(0), Interest::READABLE).unwrap();
    let calls = network.call_back(&waker);
    let producer = std::thread::spawn(move || {
        for number in 0..FRAMES {
            network.arrive(number.to_be_bytes().to_vec());
        }
    });
    let mut batch = FrameBatch::new(MAX_FRAME);
    let mut events = Events::with_capacity(4);
    let (mut expected, mut drained) = (0, 0);
    while expected < FRAMES {
        poll.poll(&mut events, Some(TIMEOUT)).unwrap();
        assert!(!events.is_empty(), "asleep with {expected} of {FRAMES} frames");
        loop {
            batch.clear();
            let received = link.recv(&mut batch).unwrap();
            for frame in batch.frames() {
                assert_eq!(frame, expected.to_be_bytes());
                expected += 1;
            }
            if received == Received::Drained {
                drained += 1;
                break;
            }
            // The loop has other things to do, and frames are left.
            std::thread::yield_now();
        }
    }
    producer.join().unwrap();
    drop(link);
    let calls = calls.join().unwrap();
    assert!(calls <= drained + 1, "called {calls} times, and everything was read {drained} times");
}

#[test]
fn a_callback_after_the_end_finds_nobody_and_does_nothing() {
    let (link, network, waker) = link();
    drop(link);
    assert_eq!(network.state().log, ["stop"]);
    for _ in 0..3 {
        waker.wake();
    }
}

/// The end of the loop lets go of a callback even if the interface is still there: its stop could wait for it.
#[test]
fn a_callback_that_waits_returns_at_the_end() {
    let (waker, wake) = wake::pair().unwrap();
    let waiting = std::thread::spawn(move || waker.wake());
    let mut wake = wake;
    let mut poll = Poll::new().unwrap();
    wake.register(poll.registry(), Token(0)).unwrap();
    let mut events = Events::with_capacity(4);
    poll.poll(&mut events, Some(TIMEOUT)).unwrap();
    assert!(!events.is_empty() && !waiting.is_finished(), "it did not wait");
    drop(wake);
    waiting.join().unwrap();
}

#[test]
fn the_end_comes_in_the_middle_of_a_flood() {
    for _ in 0..50 {
        let (mut link, network, waker) = link();
        let calls = network.call_back(&waker);
        let flood = std::thread::spawn(move || {
            while !network.is_stopped() {
                network.arrive(vec![0; 60]);
            }
        });
        let mut batch = FrameBatch::new(MAX_FRAME);
        let mut seen = 0;
        while seen < 100 {
            batch.clear();
            link.recv(&mut batch).unwrap();
            seen += batch.len();
            std::thread::yield_now();
        }
        drop(link);
        flood.join().unwrap();
        calls.join().unwrap();
    }
}

#[test]
fn what_arrived_before_the_callback_wakes_the_loop_once() {
    let (mut link, _network, waker) = link();
    let mut poll = Poll::new().unwrap();
    link.register(poll.registry(), Token(0), Interest::READABLE).unwrap();
    for _ in 0..1000 {
        waker.wake_once();
    }
    let mut events = Events::with_capacity(4);
    poll.poll(&mut events, Some(TIMEOUT)).unwrap();
    assert_eq!(events.iter().count(), 1);
    assert_eq!(link.recv(&mut FrameBatch::new(MAX_FRAME)).unwrap(), Received::Drained);
    poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
    assert!(events.is_empty(), "nothing has happened since");
    waker.wake_once();
    poll.poll(&mut events, Some(TIMEOUT)).unwrap();
    assert!(!events.is_empty(), "the flag was not cleared");
}

#[test]
fn writes_go_on_where_the_interface_took_only_some() {
    let (mut link, network, _waker) = link();
    network.state().write_limit = Some(3);
    let mut batch = batch_of(10);
    assert_eq!(link.send(&mut batch).unwrap(), Sent::All);
    assert_eq!(first_bytes(&network.state().written), (0..10).collect::<Vec<_>>());
    assert_eq!(batch.take_losses(), Losses::default());
}

#[test]
fn exhausted_buffers_keep_the_frames_for_another_attempt() {
    for refusal in [Some(Refusal::Exhausted), None] {
        let (mut link, network, _waker) = link();
        match refusal {
            Some(refusal) => network.state().refusals.push_back(refusal),
            None => network.state().write_limit = Some(0),
        }
        let mut batch = batch_of(10);
        assert_eq!(link.send(&mut batch).unwrap(), Sent::Blocked);
        assert_eq!(batch.len(), 10);
        // Nothing reports when it has room again.
        assert_eq!(link.full_queue_pause(), Some(Duration::from_micros(50)));
        network.state().write_limit = None;
        assert_eq!(link.send(&mut batch).unwrap(), Sent::All);
        assert_eq!(first_bytes(&network.state().written), (0..10).collect::<Vec<_>>());
        assert_eq!(batch.take_losses(), Losses::default());
    }
}

#[test]
fn one_refused_frame_costs_no_other() {
    let (mut link, network, _waker) = link();
    let argument = || Refusal::Argument("too big".to_owned());
    network.state().refusals.extend([argument(), argument()]);
    let mut batch = batch_of(5);
    assert_eq!(link.send(&mut batch).unwrap(), Sent::All);
    assert_eq!(first_bytes(&network.state().written), [1, 2, 3, 4]);
    assert_eq!(batch.take_losses().refused.frames, 1);
}

#[test]
fn a_broken_interface_ends_the_link() {
    let (mut link, network, _waker) = link();
    network.state().refusals.push_back(Refusal::Broken("gone".to_owned()));
    assert!(matches!(link.send(&mut batch_of(1)), Err(LinkError::Io("write to vmnet", _))));
}

fn lease(last: u8) -> Option<Lease> {
    let server = PARAMETERS.gateway;
    let address = Ipv4Addr::new(192, 168, 64, last);
    Some(Lease { address, server, expires: None, resolvers: Resolvers::default() })
}

fn forwards(exposes: &[&str]) -> (VmnetForwards<FakeInterface>, Network) {
    let network = Network::default();
    let interface = Rc::new(RefCell::new(FakeInterface(network.clone(), None)));
    let exposes = exposes.iter().map(|expose| expose.parse().unwrap()).collect();
    (VmnetForwards::new(interface, exposes), network)
}

#[test]
fn forwards_follow_the_lease_and_go_before_the_interface() {
    let (mut forwards, network) = forwards(&["2222:22", "53:53/udp"]);
    let now = Timestamp::from_secs(1);
    assert_eq!(forwards.deadline(), None);
    forwards.set_lease(lease(5), now);
    forwards.set_lease(lease(6), now);
    assert_eq!(forwards.deadline(), None);
    forwards.set_lease(None, now);
    forwards.set_lease(lease(7), now);
    drop(forwards);
    let log = network.state().log.clone();
    let of = |address: &str, what: &str| {
        [format!("{what} 0.0.0.0:2222 -> {address}:22 tcp"), format!("{what} 0.0.0.0:53 -> {address}:53 udp")]
    };
    let expected = [
        of("192.168.64.5", "add"),
        of("192.168.64.5", "remove"),
        of("192.168.64.6", "add"),
        of("192.168.64.6", "remove"),
        of("192.168.64.7", "add"),
        of("192.168.64.7", "remove"),
    ];
    assert_eq!(log[..12], expected.concat());
    assert_eq!(log[12..], ["stop"]);
}

#[test]
fn a_forward_that_fails_is_tried_again_and_holds_up_no_other() {
    let (mut forwards, network) = forwards(&["2222:22", "8080:80"]);
    let busy = || Refusal::Broken("busy".to_owned());
    network.state().forward_refusals.extend([busy()]);
    let mut now = Timestamp::from_secs(1);
    forwards.set_lease(lease(5), now);
    assert_eq!(network.state().log, ["add 0.0.0.0:8080 -> 192.168.64.5:80 tcp"]);
    // Not before the pause is over, and ever later.
    network.state().forward_refusals.extend([busy(), busy()]);
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let at = forwards.deadline().unwrap();
        assert!(at > now);
        pauses.push(at.as_nanos() - now.as_nanos());
        forwards.apply(now);
        assert_eq!(network.state().log.len(), 1);
        now = at;
        forwards.apply(now);
    }
    assert!(pauses.is_sorted());
    assert_eq!(network.state().log.last().unwrap(), "add 0.0.0.0:2222 -> 192.168.64.5:22 tcp");
    assert_eq!(forwards.deadline(), None);
}

#[test]
fn a_lost_lease_takes_back_only_what_is_there() {
    let (mut forwards, network) = forwards(&["2222:22"]);
    network.state().forward_refusals.push_back(Refusal::Exhausted);
    forwards.set_lease(lease(5), Timestamp::from_secs(1));
    forwards.set_lease(None, Timestamp::from_secs(2));
    assert_eq!(forwards.deadline(), None);
    drop(forwards);
    assert_eq!(network.state().log, ["stop"]);
}

#[test]
fn forwards_for_one_address_of_the_host_are_refused() {
    let parse = |text: &str| vec![text.parse::<Expose>().unwrap()];
    check_exposes(&parse("8080:80")).unwrap();
    check_exposes(&parse("0.0.0.0:8080:80")).unwrap();
    let error = check_exposes(&parse("127.0.0.1:8080:80")).unwrap_err().to_string();
    assert!(error.contains("write 8080:80/tcp"), "{error}");
}

fn raw() -> RawParameters {
    RawParameters {
        start_address: Some("192.168.64.1".to_owned()),
        subnet_mask: Some("255.255.255.0".to_owned()),
        mtu: Some(1500),
        max_packet_size: Some(1514),
        read_max_packets: Some(64),
        write_max_packets: None,
    }
}

#[test]
fn parameters_are_checked() {
    let parameters = Parameters::try_from(raw()).unwrap();
    assert_eq!(parameters, Parameters { max_read: 64, max_write: 1, ..PARAMETERS });
    let old = Parameters::try_from(RawParameters { read_max_packets: None, ..raw() }).unwrap();
    assert_eq!((old.max_read, old.max_write), (32, 1), "macOS 13 and 14 report neither");
    let small = Parameters::try_from(RawParameters { max_packet_size: Some(1000), ..raw() }).unwrap();
    assert_eq!(small.mtu, 986);
    for (wrong, name) in [
        (RawParameters { start_address: None, ..raw() }, "start address"),
        (RawParameters { start_address: Some("x".to_owned()), ..raw() }, "start address"),
        (RawParameters { subnet_mask: Some("255.0.255.0".to_owned()), ..raw() }, "subnet mask"),
        (RawParameters { mtu: Some(0), ..raw() }, "MTU"),
        (RawParameters { mtu: None, ..raw() }, "MTU"),
        (RawParameters { max_packet_size: Some(u64::MAX), ..raw() }, "maximum packet size"),
    ] {
        let error = Parameters::try_from(wrong).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
}
