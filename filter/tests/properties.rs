//! The filter against an independent reading of the rules (see [`oracle`]), for arbitrary sequences of frames from
//! both sides and arbitrary time steps.
//!
//! `PROPTEST_CASES` sets the number of sequences; by default the whole file takes some seconds.

mod oracle;
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, TestRunner};
use softnet_filter::{
    Action, Decider, ExposedPort, Origin, OwnAnswer, Question as ExplainQuestion, Target, Timestamp, Verdict,
};

use oracle::packet::{ICMP, TCP, UDP};
use oracle::{Opinion, world};
use scene::steps::{address, any_frame_of_any_length, config, port, rules, start, step};
use scene::{Address, GATEWAY_MAC, Scene, Step, VM_MAC, plain_config, wire};

fn proptest_config(default_cases: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let persistence = FileFailurePersistence::Direct("tests/properties.regressions");
    let base =
        ProptestConfig { failure_persistence: Some(Box::new(persistence)), ..ProptestConfig::default() };
    if asked { base } else { ProptestConfig { cases: default_cases, ..base } }
}

fn play(scene: &mut Scene, steps: &[Step]) -> Result<(), TestCaseError> {
    for (index, step) in steps.iter().enumerate() {
        scene.play(step).map_err(|error| TestCaseError::fail(format!("step {index}, {step:?}: {error}")))?;
    }
    Ok(())
}

/// The first dialogue of a VM, with the resolver of a far network.
fn first_lease() -> Step {
    Step::Dora {
        address: Address::Any(scene::FIRST_LEASE.into()),
        lease_time: 600,
        resolvers: vec![Address::Gateway, Address::FarResolver],
    }
}

proptest! {
    #![proptest_config(proptest_config(300))]

    /// L, A, S, D, C, B, I: from the VM's first breath on, every frame is judged as the oracle judges it, nothing
    /// leaves under a foreign address, and the lease changes only as it may.
    #[test]
    fn from_the_start_the_filter_agrees_with_the_oracle(
        config in config(),
        start in start(),
        steps in vec(step(), 1..60),
    ) {
        play(&mut Scene::new(config, start), &steps)?;
    }

    /// The same for a VM with a lease, so that every sequence begins where most rules bite.
    #[test]
    fn with_a_lease_the_filter_agrees_with_the_oracle(config in config(), steps in vec(step(), 1..60)) {
        let mut scene = Scene::new(config, Timestamp::from_secs(1_000));
        play(&mut scene, &[first_lease()])?;
        prop_assert_eq!(scene.own(), Some(scene::FIRST_LEASE));
        play(&mut scene, &steps)?;
    }

    /// The same for a VM whose address the administrator has given (B9).
    #[test]
    fn with_a_given_address_the_filter_agrees_with_the_oracle(config in config(), steps in vec(step(), 1..60)) {
        let mut scene = Scene::new(config, Timestamp::from_secs(1_000));
        scene.give(scene::FIRST_LEASE).map_err(TestCaseError::fail)?;
        play(&mut scene, &steps)?;
    }

    /// The same for a VM that had a lease before its port existed.
    #[test]
    fn with_an_adopted_lease_the_filter_agrees_with_the_oracle(
        config in config(),
        seconds in 0_u64..1_000,
        id in prop::option::of(Just(&b"\0vm"[..])),
        steps in vec(step(), 1..60),
    ) {
        let mut scene = Scene::new(config, Timestamp::from_secs(1_000));
        scene.adopt(scene::FIRST_LEASE, seconds, id).map_err(TestCaseError::fail)?;
        play(&mut scene, &steps)?;
    }

    /// P6: the same for a VM whose policy can be replaced. That flows are recorded changes no verdict of a stateless policy.
    #[test]
    fn with_recorded_flows_the_filter_agrees_with_the_oracle(config in config(), steps in vec(step(), 1..60)) {
        let mut scene = Scene::new(config, Timestamp::from_secs(1_000));
        scene.watched.record_flows();
        play(&mut scene, &[first_lease()])?;
        play(&mut scene, &steps)?;
    }

    /// I4, R3: no bytes of any length panic, change the lease or leave under a foreign name.
    #[test]
    fn any_bytes_of_any_length_are_judged(
        frames in vec((any_frame_of_any_length(), any::<bool>()), 1..12),
        bound in any::<bool>(),
    ) {
        let mut scene = Scene::new(plain_config(vec![]), Timestamp::from_secs(1_000));
        if bound {
            play(&mut scene, &[first_lease()])?;
        }
        for (frame, of_vm) in frames {
            let result = if of_vm { scene.vm(frame) } else { scene.host(frame) };
            prop_assert!(result.is_ok(), "{}", result.unwrap_err());
        }
    }
}

proptest! {
    #![proptest_config(proptest_config(60))]

    /// D2, D3, P2: for up to 1,000 rules the verdict on any destination is that of a look at every rule.
    #[test]
    fn longest_prefix_match_equals_a_linear_scan(
        rules in rules(1_000),
        near in vec((any::<prop::sample::Index>(), any::<u32>()), 100),
        far in vec(any::<u32>(), 50),
    ) {
        let config = plain_config(rules.clone());
        let mut scene = Scene::new(config.clone(), Timestamp::from_secs(1_000));
        play(&mut scene, &[first_lease()])?;
        let mut port = scene.watched.port;
        // Destinations at the edges of the rules' own networks tell more than random ones.
        let edges = near.iter().filter(|_| !rules.is_empty()).flat_map(|(index, noise)| {
            match rules[index.index(rules.len())].entry.target {
                Target::Ipv4(net) => {
                    let [first, last] = world::edges(net).map(u32::from);
                    [first, last, first.wrapping_sub(1), first | (noise & (first ^ last))]
                }
                _ => [u32::from(scene::GATEWAY); 4],
            }
        });
        for bits in edges.chain(far) {
            let destination = Ipv4Addr::from(bits);
            let verdict = port.from_vm(&datagram_to(destination), scene.now);
            let expected = expected_verdict(&config, destination);
            prop_assert_eq!(verdict.is_forward(), expected == Expected::Pass, "{} {:?}", destination, verdict);
            prop_assert_eq!(
                matches!(verdict, Verdict::Drop(reason) if reason.rule() == "D2"),
                expected == Expected::Blocked,
                "{} {:?}", destination, verdict
            );
        }
    }
}

proptest! {
    #![proptest_config(proptest_config(1_000))]

    /// P2, J1: what is explained is what happens to a packet that begins something: its verdict, and what the VM hears.
    #[test]
    fn an_explanation_is_what_happens(
        config in config(),
        origin in prop::sample::select(vec![Origin::Vm, Origin::Outside]),
        peer in address(),
        protocol in prop::sample::select(vec![TCP, UDP, ICMP, 47]),
        (port, own_port) in (port(), prop_oneof![Just(53), Just(4_000), Just(68), 5_000_u16..]),
        exposed in prop::option::of(port()),
    ) {
        let mut scene = Scene::new(config.clone(), Timestamp::from_secs(1_000));
        play(&mut scene, &[first_lease()])?;
        let peer = scene.resolve(peer);
        // From the server's port, which datagrams of the VM never have, or it may be DHCP.
        prop_assume!(!matches!((protocol, own_port, origin), (UDP, 67 | 68, Origin::Vm)));
        prop_assume!(!matches!((protocol, port, own_port), (UDP, 67 | 4_011, 68)));
        let now = scene.now;
        let port_of_vm = &mut scene.watched.port;
        let exposed = exposed.map(|port| ExposedPort { protocol, port, address: None });
        port_of_vm.set_exposed(exposed.into_iter().collect(), now);
        let has_ports = matches!(protocol, TCP | UDP);
        let (port, own_port) = (Some(port).filter(|_| has_ports), Some(own_port).filter(|_| has_ports));
        let frame = beginning(origin, peer, protocol, port.unwrap_or(0), own_port.unwrap_or(0));
        let explained = port_of_vm.explain(&ExplainQuestion { origin, peer, protocol, port, own_port });
        let verdict = match origin {
            Origin::Vm => port_of_vm.from_vm(&frame, now),
            Origin::Outside => port_of_vm.from_host(&frame, now),
        };
        prop_assert_eq!(verdict, explained.verdict, "{:?}", explained);
        let heard = match port_of_vm.poll_transmit() {
            None => OwnAnswer::Nothing,
            Some((_, answer)) if answer[23] == TCP => OwnAnswer::Reset,
            Some(_) => OwnAnswer::Prohibited,
        };
        prop_assert_eq!(heard, explained.answer, "{:?}", explained);
        // The entry that is named is one that says so.
        if let Decider::Entry(index) = explained.decider {
            let says_so = config.policy.rules()[index].action == Action::Allow;
            prop_assert_eq!(says_so, verdict.is_forward(), "{:?}", explained);
        }
    }
}

/// A packet with which `origin` begins something, by the router.
fn beginning(origin: Origin, peer: Ipv4Addr, protocol: u8, port: u16, own_port: u16) -> Vec<u8> {
    let (from, to) = if origin == Origin::Vm { (own_port, port) } else { (port, own_port) };
    let payload = match protocol {
        TCP => wire::tcp(from, to, &[]),
        UDP => wire::udp(from, to, b"hello"),
        ICMP => wire::icmp(8, 0, &[]),
        _ => vec![0; 16],
    };
    match origin {
        Origin::Vm => {
            let packet = wire::ipv4(scene::FIRST_LEASE, peer, protocol, &payload);
            let is_group = world::is_multicast(peer);
            let mac = if is_group { world::multicast_mac(peer) } else { GATEWAY_MAC };
            wire::ethernet(mac, VM_MAC, wire::IPV4, &packet)
        }
        Origin::Outside => {
            let packet = wire::ipv4(peer, scene::FIRST_LEASE, protocol, &payload);
            wire::ethernet(VM_MAC, GATEWAY_MAC, wire::IPV4, &packet)
        }
    }
}

/// The destination port; the rules' ranges of ports begin and end around it.
const PORT: u16 = 4_000;

#[derive(Debug, PartialEq)]
enum Expected {
    Pass,
    Blocked,
    OtherDrop,
}

/// D1 to D3 for a UDP datagram of a VM at [`scene::FIRST_LEASE`].
fn expected_verdict(config: &softnet_filter::PortConfig, destination: Ipv4Addr) -> Expected {
    let edges = world::edges(config.gateway.subnet);
    if world::is_never(destination) || edges.contains(&destination) || destination == scene::FIRST_LEASE {
        return Expected::OtherDrop;
    }
    let port = Some((oracle::packet::UDP, PORT));
    match world::deciding(config, Origin::Vm, destination, port).map(|(action, _)| action) {
        Some(Action::Block) => Expected::Blocked,
        Some(Action::Allow) => Expected::Pass,
        None if destination == scene::GATEWAY || world::is_globally_reachable(destination) => Expected::Pass,
        None => Expected::OtherDrop,
    }
}

fn datagram_to(destination: Ipv4Addr) -> Vec<u8> {
    let datagram = wire::udp(4_000, PORT, b"hello");
    let packet = wire::ipv4(scene::FIRST_LEASE, destination, oracle::packet::UDP, &datagram);
    let mac = if world::is_multicast(destination) { world::multicast_mac(destination) } else { GATEWAY_MAC };
    wire::ethernet(mac, VM_MAC, wire::IPV4, &packet)
}

/// The properties above are worth what their sequences reach: every rule is broken, every way into and out of a lease
/// is gone, and much must pass.
#[test]
fn sequences_reach_every_rule() {
    let mut runner = TestRunner::deterministic();
    let strategy = (config(), vec(step(), 60));
    let mut said: [BTreeMap<Opinion, usize>; 2] = Default::default();
    let mut happened = BTreeSet::new();
    let (mut members, mut refusals) = ([0; 2], 0);
    for _ in 0..1_000 {
        let (config, steps) = strategy.new_tree(&mut runner).expect("a sequence").current();
        let mut scene = Scene::new(config, Timestamp::from_secs(1_000));
        play(&mut scene, &steps).expect("agreement");
        for (all, new) in said.iter_mut().zip(&scene.watched.said) {
            new.iter().for_each(|(opinion, count)| *all.entry(*opinion).or_default() += count);
        }
        happened.extend(scene.happened);
        refusals += scene.watched.refusals;
        members.iter_mut().zip(scene.watched.members).for_each(|(all, new)| *all += new);
    }
    let [of_vm, of_host] = said;
    // Not C7: the oracle counts what has left, so only a filter that fails brings it to say so.
    let rules = "L1 L2 L3 L4 L5 A1 A2 A3 A4 A5 S1 S2 S3 S4 S5 D1 D2 D3 D4 D5 D6 D9 C1 C2 C3 C4 C5 C6 C8 C9 \
                 B6 B7 H1 H2 F1 F5";
    for rule in rules.split(' ') {
        assert!(of_vm.contains_key(&Opinion::MustDrop(rule)), "{rule} is never broken: {of_vm:?}");
    }
    for rule in "I1 I2 I3 B1 B3 B6 B7 B8 P4 F1 F5".split(' ') {
        assert!(of_host.contains_key(&Opinion::MustDrop(rule)), "{rule} is never broken: {of_host:?}");
    }
    for said in [of_vm, of_host] {
        let silent = said[&Opinion::Nothing];
        let all: usize = said.values().sum();
        assert!(said[&Opinion::MustPass] * 10 > all, "little must pass: {said:?}");
        assert!(silent * 3 < all, "the oracle has no opinion: {said:?}");
    }
    assert!(refusals > 300, "few refusals are answered: {refusals}");
    assert!(members.iter().all(|count| *count > 50), "few packets belong to flows: {members:?}");
    let ways = "Bound Renewed Expired Released Declined Refused Replaced Superseded LastLeaseUsed ClientIdChanged ForeignClientId";
    for way in ways.split(' ') {
        assert!(happened.contains(way), "{way} never happens: {happened:?}");
    }
}
