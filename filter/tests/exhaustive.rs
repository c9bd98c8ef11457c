//! What random sequences reach only by luck, one by one: every destination under every kind of policy, and every
//! single fault in the frames of a VM's life. The oracle (see [`oracle`]) knows what must become of each.

mod oracle;
mod scene;

use std::net::Ipv4Addr;
use std::time::Duration;

use softnet_filter::{ExposedPort, Ipv4Net, NetType, PortConfig, Rule, Timestamp, Verdict};

use oracle::{Opinion, dhcp};
use scene::wire::{self, Arp, Ipv4};
use scene::{
    Address, Answer, Content, Damage, FAR_RESOLVER, FIRST_LEASE, GATEWAY, GATEWAY_MAC, HOST_ON_LINK,
    HOST_PRIVATE, HOST_PUBLIC, NEIGHBOUR, NEIGHBOUR_MAC, Question, Scene, Shot, Station, Step, Symbol,
    VM_MAC, Xid, allow, block, plain_config,
};

const START: Timestamp = Timestamp::from_secs(1_000);

fn bound(config: PortConfig, resolvers: Vec<Address>) -> Scene {
    let mut scene = Scene::new(config, START);
    let dora = Step::Dora { address: Address::Any(FIRST_LEASE.into()), lease_time: 600, resolvers };
    scene.play(&dora).expect("a lease");
    assert_eq!(scene.own(), Some(FIRST_LEASE));
    scene
}

fn agreed(result: Result<Verdict, String>, context: impl std::fmt::Debug) {
    if let Err(error) = result {
        panic!("{context:?}: {error}");
    }
}

/// Flags alone and together, the wide ones and the narrow ones.
fn policies() -> Vec<Vec<Rule>> {
    vec![
        vec![],
        vec![allow("0.0.0.0/0")],
        vec![block("0.0.0.0/0")],
        vec![allow("0.0.0.0/0"), block("0.0.0.0/0")],
        vec![block("0.0.0.0/0"), allow("@host")],
        vec![block("0.0.0.0/0"), allow("8.8.8.8"), allow("10.9.8.7")],
        vec![block("@host")],
        vec![allow("@host")],
        vec![allow("@host"), block("192.168.64.1")],
        vec![allow("192.168.64.0/24")],
        vec![allow("192.168.64.20")],
        vec![allow("192.168.0.0/16"), block("192.168.64.0/24"), allow("192.168.64.20/31")],
        vec![block("10.9.8.7")],
        vec![allow("10.0.0.0/8"), block("10.9.0.0/16"), allow("10.9.8.0/24")],
        vec![allow("224.0.0.0/4")],
        vec![allow("169.254.0.0/16"), allow("127.0.0.0/8"), allow("240.0.0.0/4"), allow("0.0.0.0/8")],
        vec![block("8.0.0.0/7"), allow("8.8.8.0/24"), block("8.8.8.8")],
        vec![block("@host"), allow("9.9.9.2")],
        vec![block("@host"), allow("0.0.0.0/0")],
        vec![allow("@host"), block("9.0.0.0/8")],
        vec![block("0.0.0.0/0"), allow("@internet:443"), allow("@private/udp")],
        vec![allow("in 10.0.0.0/8"), block("out 8.0.0.0/7"), allow("192.168.64.20:4000")],
        vec![block("0.0.0.0/0"), allow("out @host"), allow("out 8.8.8.8")],
    ]
}

/// Both sides of every boundary of D1 and D3, the addresses of the VM's network, and those of the policies.
fn destinations() -> Vec<Ipv4Addr> {
    let named = [
        GATEWAY,
        NEIGHBOUR,
        FIRST_LEASE,
        FAR_RESOLVER,
        HOST_PUBLIC,
        HOST_PRIVATE,
        HOST_ON_LINK,
        Ipv4Addr::new(192, 168, 64, 21),
    ];
    let boundaries = [
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.0.9/32",
        "192.0.0.10/32",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.168.64.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "168.63.129.16/32",
        "169.254.169.254/32",
        "8.8.8.8/32",
        "8.0.0.0/7",
        "10.9.8.0/24",
        "255.255.255.255/32",
    ];
    let edges = boundaries.iter().flat_map(|text| {
        let net: Ipv4Net = text.parse().expect("a network");
        let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
        [first.wrapping_sub(1), first, last, last.wrapping_add(1)].map(Ipv4Addr::from)
    });
    let mut all: Vec<Ipv4Addr> = named.into_iter().chain(edges).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// One packet of each kind that the rules tell apart: protocol and payload.
fn contents(own: Ipv4Addr) -> Vec<(u8, Vec<u8>)> {
    let udp = |from, to| (17, wire::udp(from, to, b"some data"));
    vec![
        udp(4_000, 4_000),
        udp(4_000, 53),
        udp(68, 53),
        udp(67, 53),
        udp(4_000, 67),
        udp(4_000, 68),
        udp(68, 67),
        udp(68, 4_011),
        udp(4_000, 4_011),
        (6, wire::tcp(4_000, 80, b"")),
        (6, wire::tcp(4_000, 53, b"")),
        (1, wire::icmp(8, 0, b"ping")),
        (1, wire::icmp(5, 1, &wire::quote(GATEWAY, own))),
        (1, wire::icmp(3, 3, &wire::quote(GATEWAY, own))),
        (1, wire::icmp(3, 3, &wire::quote(GATEWAY, NEIGHBOUR))),
        (47, vec![0; 16]),
        (2, wire::igmp(0x16, Ipv4Addr::new(224, 0, 0, 251))),
    ]
}

/// L5, S4, D1 to D9, H1, H2: each kind of packet, whole and in fragments, to each kind of destination, through each kind of
/// station, under each kind of policy and network.
#[test]
fn every_destination_under_every_policy() {
    let mut judged = [0usize; 3];
    for rules in policies() {
        for net_type in [NetType::Nat, NetType::Host] {
            let host_addresses = vec![HOST_PUBLIC, HOST_PRIVATE, HOST_ON_LINK];
            let config = PortConfig { net_type, host_addresses, ..plain_config(rules.clone()) };
            let mut scene = bound(config, vec![Address::FarResolver, Address::Neighbour, Address::World]);
            // H2: of the ports below, two lead to other VMs.
            let exposed = vec![
                ExposedPort { protocol: 6, port: 80, address: None },
                ExposedPort { protocol: 17, port: 4_000, address: Some(HOST_PUBLIC) },
            ];
            scene.watched.set_exposed(exposed, START).expect("agreement");
            for destination in destinations() {
                let group = oracle::world::multicast_mac(destination);
                for (protocol, payload) in contents(FIRST_LEASE) {
                    for fragment in [0, 0x4000, 0x2000, 3] {
                        // Only the plainest go to every station.
                        let stations = [GATEWAY_MAC, group, NEIGHBOUR_MAC, [0xff; 6], VM_MAC, [0; 6]];
                        let stations = if fragment == 0 { &stations[..] } else { &stations[..2] };
                        for &station in stations {
                            let source = FIRST_LEASE;
                            let mut payload = payload.clone();
                            if fragment & 0x2fff != 0 {
                                // A TCP header grows to whole units of 8 bytes, all else shrinks to them.
                                let units = payload.len() / 8 + usize::from(protocol == 6);
                                payload.resize(8 * units, 0);
                            }
                            let packet = Ipv4::new(source, destination, (protocol, payload));
                            let packet = Ipv4 { fragment, ..packet }.with_checksum();
                            let frame = packet.frame(station, VM_MAC);
                            judged[match scene.watched.oracle.on_leaving(&frame, scene.now) {
                                Opinion::MustPass => 0,
                                Opinion::MustDrop(_) => 1,
                                Opinion::Nothing => 2,
                            }] += 1;
                            agreed(scene.vm(frame), (&rules, net_type));
                        }
                    }
                }
            }
        }
    }
    let [pass, drop, unsaid] = judged;
    assert!(pass > 5_000 && drop > 5 * pass && unsaid * 10 < pass + drop, "{judged:?}");
}

/// A3 to A5: requests and replies for each kind of address, from each kind of sender, under each kind of policy.
#[test]
fn every_arp_under_every_policy() {
    for rules in policies() {
        for is_bound in [false, true] {
            let config = plain_config(rules.clone());
            let mut scene = if is_bound {
                bound(config, vec![Address::FarResolver, Address::Neighbour])
            } else {
                let mut scene = Scene::new(config, START);
                assert!(scene.ask(Question::new(dhcp::DISCOVER)).expect("agreement").is_forward());
                let offer = Answer::new(dhcp::OFFER, Address::Any(FIRST_LEASE.into()), 600);
                assert!(scene.tell(offer).expect("agreement").is_forward());
                scene
            };
            for target in destinations() {
                for sender in [FIRST_LEASE, Ipv4Addr::UNSPECIFIED, GATEWAY, NEIGHBOUR, target] {
                    for (operation, station) in
                        (0..4).flat_map(|op| [[0xff; 6], GATEWAY_MAC].map(|mac| (op, mac)))
                    {
                        for sender_mac in [VM_MAC, GATEWAY_MAC] {
                            let request = Arp::request(sender_mac, sender, target);
                            let body = Arp { operation, ..request }.bytes();
                            let frame = wire::ethernet(station, VM_MAC, wire::ARP, &body);
                            agreed(scene.vm(frame), &rules);
                            let frame = wire::ethernet(station, sender_mac, wire::ARP, &body);
                            agreed(scene.host(frame), &rules);
                        }
                    }
                }
            }
        }
    }
}

/// Who sends a frame.
#[derive(Clone, Copy, Debug, PartialEq)]
enum From {
    Vm,
    Host,
}

/// A situation and a frame that passes in it.
struct Moment {
    name: &'static str,
    prepare: fn() -> Scene,
    from: From,
    shot: fn() -> Shot,
}

fn question(question: Question) -> Shot {
    let to = if question.unicast { Station::Gateway } else { Station::Broadcast };
    Shot { to, from: Station::Vm, symbol: Symbol::Question(question), damage: vec![] }
}

fn answer(answer: Answer) -> Shot {
    Shot { to: answer.to, from: answer.station, symbol: Symbol::Answer(answer), damage: vec![] }
}

fn from_vm(to: Station, symbol: Symbol) -> Shot {
    Shot { to, from: Station::Vm, symbol, damage: vec![] }
}

fn packet(destination: Address, fragment: u16, content: Content) -> Symbol {
    Symbol::Ipv4 { source: Address::Own, destination, fragment, time_to_live: 64, content }
}

fn arp(operation: u16, sender: Address, target: Address) -> Symbol {
    Symbol::Arp { operation, mac: Station::Vm, sender, target }
}

fn unbound() -> Scene {
    Scene::new(plain_config(vec![]), START)
}

fn with_lease() -> Scene {
    bound(plain_config(vec![]), vec![Address::Gateway, Address::FarResolver])
}

fn discovering() -> Scene {
    let mut scene = unbound();
    assert!(scene.ask(Question::new(dhcp::DISCOVER)).expect("agreement").is_forward());
    scene
}

/// The client identifier of a whole dialogue.
fn client_id() -> Option<Vec<u8>> {
    Some([&[255, 0, 0, 0, 1, 0, 3, 0, 1], &VM_MAC[..]].concat())
}

fn offered() -> Scene {
    let mut scene = unbound();
    let discover = Question { client_id: client_id(), ..Question::new(dhcp::DISCOVER) };
    assert!(scene.ask(discover).expect("agreement").is_forward());
    let offer = Answer::new(dhcp::OFFER, Address::Any(FIRST_LEASE.into()), 600);
    assert!(scene.tell(offer).expect("agreement").is_forward());
    scene
}

fn renewal() -> Question {
    Question { source: Address::Own, client: Address::Own, unicast: true, ..Question::new(dhcp::REQUEST) }
}

fn requesting() -> Scene {
    let mut scene = offered();
    let request = Question { client_id: client_id(), ..Question::new(dhcp::REQUEST) };
    assert!(scene.ask(request).expect("agreement").is_forward());
    scene
}

fn renewing() -> Scene {
    let mut scene = with_lease();
    assert!(scene.ask(renewal()).expect("agreement").is_forward());
    scene
}

/// B6: a question to the boot server.
fn boot_question() -> Question {
    Question { port: 4_011, server: Some(Address::Gateway), ..renewal() }
}

fn booting() -> Scene {
    let mut scene = with_lease();
    assert!(scene.ask(boot_question()).expect("agreement").is_forward());
    scene
}

fn with_groups() -> Scene {
    bound(plain_config(vec![allow("224.0.0.0/4")]), vec![])
}

/// A report of a group as hosts send it (S3).
fn report(kind: u8, destination: Address) -> Shot {
    let content = Content::Igmp { kind, group: Address::Group };
    let symbol = Symbol::Ipv4 { source: Address::Own, destination, fragment: 0, time_to_live: 1, content };
    Shot { damage: vec![Damage::RouterAlert], ..from_vm(Station::Group, symbol) }
}

const MOMENTS: &[Moment] = &[
    Moment {
        name: "IGMPv2 report",
        prepare: with_groups,
        from: From::Vm,
        shot: || report(0x16, Address::Group),
    },
    Moment {
        name: "IGMPv3 report",
        prepare: with_groups,
        from: From::Vm,
        shot: || report(0x22, Address::Any(0xe000_0016)),
    },
    Moment { name: "boot request", prepare: with_lease, from: From::Vm, shot: || question(boot_question()) },
    Moment {
        name: "boot reply",
        prepare: booting,
        from: From::Host,
        shot: || answer(Answer { port: 4_011, lease_time: None, ..Answer::new(dhcp::ACK, Address::Own, 0) }),
    },
    Moment {
        name: "DISCOVER",
        prepare: unbound,
        from: From::Vm,
        shot: || {
            let client_id = Some([&[1], &VM_MAC[..]].concat());
            question(Question { client_id, ..Question::new(dhcp::DISCOVER) })
        },
    },
    Moment {
        name: "REQUEST",
        prepare: offered,
        from: From::Vm,
        shot: || {
            let requested = Some(Address::Offered);
            question(Question {
                requested,
                client_id: client_id(),
                server: Some(Address::Gateway),
                ..Question::new(dhcp::REQUEST)
            })
        },
    },
    Moment { name: "renewal", prepare: with_lease, from: From::Vm, shot: || question(renewal()) },
    Moment {
        name: "RELEASE",
        prepare: with_lease,
        from: From::Vm,
        shot: || question(Question { kind: dhcp::RELEASE, server: Some(Address::Gateway), ..renewal() }),
    },
    Moment {
        name: "DECLINE",
        prepare: with_lease,
        from: From::Vm,
        shot: || {
            let requested = Some(Address::Own);
            question(Question { requested, server: Some(Address::Gateway), ..Question::new(dhcp::DECLINE) })
        },
    },
    Moment {
        name: "DECLINE of an offer",
        prepare: offered,
        from: From::Vm,
        shot: || {
            let requested = Some(Address::Offered);
            question(Question { requested, server: Some(Address::Gateway), ..Question::new(dhcp::DECLINE) })
        },
    },
    Moment {
        name: "OFFER",
        prepare: discovering,
        from: From::Host,
        shot: || answer(Answer::new(dhcp::OFFER, Address::Any(FIRST_LEASE.into()), 600)),
    },
    Moment {
        name: "ACK",
        prepare: requesting,
        from: From::Host,
        shot: || {
            let resolvers = vec![Address::Gateway, Address::FarResolver];
            answer(Answer { resolvers, ..Answer::new(dhcp::ACK, Address::Offered, 600) })
        },
    },
    Moment {
        name: "ACK to all",
        prepare: renewing,
        from: From::Host,
        shot: || {
            let (to, destination) = (Station::Broadcast, Address::LimitedBroadcast);
            answer(Answer { to, destination, ..Answer::new(dhcp::ACK, Address::Own, u32::MAX) })
        },
    },
    Moment { name: "NAK", prepare: renewing, from: From::Host, shot: || answer(Answer::nak()) },
    Moment {
        name: "ARP probe",
        prepare: offered,
        from: From::Vm,
        shot: || from_vm(Station::Broadcast, arp(1, Address::Zero, Address::Offered)),
    },
    Moment {
        name: "ARP request",
        prepare: with_lease,
        from: From::Vm,
        shot: || from_vm(Station::Broadcast, arp(1, Address::Own, Address::Gateway)),
    },
    Moment {
        name: "ARP reply",
        prepare: with_lease,
        from: From::Vm,
        shot: || from_vm(Station::Gateway, arp(2, Address::Own, Address::Gateway)),
    },
    Moment {
        name: "ARP announcement",
        prepare: with_lease,
        from: From::Vm,
        shot: || from_vm(Station::Broadcast, arp(1, Address::Own, Address::Own)),
    },
    Moment {
        name: "ARP from the gateway",
        prepare: with_lease,
        from: From::Host,
        shot: || Shot {
            to: Station::Broadcast,
            from: Station::Gateway,
            symbol: Symbol::Arp {
                operation: 1,
                mac: Station::Gateway,
                sender: Address::Gateway,
                target: Address::Own,
            },
            damage: vec![],
        },
    },
    Moment {
        name: "DNS",
        prepare: with_lease,
        from: From::Vm,
        shot: || {
            let content = Content::Udp { from: 4_000, to: 53, data: vec![7; 24] };
            from_vm(Station::Gateway, packet(Address::FarResolver, 0, content))
        },
    },
    Moment {
        name: "TCP",
        prepare: with_lease,
        from: From::Vm,
        shot: || {
            let content = Content::Tcp { from: 4_000, to: 443, flags: 2, data: vec![] };
            from_vm(Station::Gateway, packet(Address::World, 0x4000, content))
        },
    },
    Moment {
        name: "ICMP error",
        prepare: with_lease,
        from: From::Vm,
        shot: || {
            let content =
                Content::Icmp { kind: 3, quoted: Some((Address::World, Address::Own)), data: vec![] };
            from_vm(Station::Gateway, packet(Address::World, 0, content))
        },
    },
    Moment {
        name: "first fragment",
        prepare: with_lease,
        from: From::Vm,
        shot: || {
            let content = Content::Tcp { from: 4_000, to: 443, flags: 2, data: vec![0; 20] };
            from_vm(Station::Gateway, packet(Address::World, 0x2000, content))
        },
    },
    Moment {
        name: "later fragment",
        prepare: with_lease,
        from: From::Vm,
        shot: || {
            let content = Content::Other { protocol: 17, data: vec![0; 40] };
            from_vm(Station::Gateway, packet(Address::World, 0x2005, content))
        },
    },
];

/// Plays a frame in its situation, spoilt as said.
fn play(moment: &Moment, damage: &[Damage]) -> Result<bool, String> {
    let mut scene = (moment.prepare)();
    let mut frame = scene.frame(&(moment.shot)());
    damage.iter().for_each(|damage| damage.apply(&mut frame));
    let verdict = match moment.from {
        From::Vm => scene.vm(frame),
        From::Host => scene.host(frame),
    };
    verdict
        .map(|verdict| verdict.is_forward())
        .map_err(|error| format!("{}, {damage:?}: {error}", moment.name))
}

/// B1, C1 to C6, A1 to A5, S2 to S5: each single bit of each frame wrong, with the checksums as they were and with
/// such as fit.
#[test]
fn every_single_bit_of_every_frame() {
    for moment in MOMENTS {
        assert_eq!(play(moment, &[]), Ok(true), "{}", moment.name);
        let scene = (moment.prepare)();
        let length = scene.frame(&(moment.shot)()).len();
        // The fields of BOOTP that nobody reads take most of its space: the server's name and the boot file.
        let unread = 90..278;
        for at in (0..length).filter(|at| !unread.contains(at) || at % 17 == 0) {
            for bit in 0..8 {
                for repair in [false, true] {
                    let mut damage = vec![Damage::Flip { at, bit }];
                    if repair {
                        damage.push(Damage::Repair);
                    }
                    play(moment, &damage).unwrap_or_else(|error| panic!("{error}"));
                }
            }
        }
    }
}

/// L3, L4, A1, S2, S5, C2: each frame cut at each length, and with bytes behind it; padded to 60 bytes it passes.
#[test]
fn every_length_of_every_frame() {
    for moment in MOMENTS {
        let length = (moment.prepare)().frame(&(moment.shot)()).len();
        for cut in 0..length {
            let passed =
                play(moment, &[Damage::Cut { length: cut }]).unwrap_or_else(|error| panic!("{error}"));
            assert!(!passed, "{} of {cut} bytes", moment.name);
        }
        for count in [1, 2, 6, 18, 19, 1_600] {
            play(moment, &[Damage::Append { count, byte: 0 }]).unwrap_or_else(|error| panic!("{error}"));
        }
        assert_eq!(play(moment, &[Damage::Pad]), Ok(true), "{}", moment.name);
        for byte in [0, 1] {
            let padded = play(moment, &[Damage::Pad, Damage::Append { count: 1, byte }]);
            assert!(moment.from == From::Host || padded == Ok(false), "{}: {padded:?}", moment.name);
        }
    }
}

/// C5: of many client identifiers the first four pass, and pass again; then one in 150 s. A message without one
/// always does.
#[test]
fn four_client_identifiers() {
    let mut scene = unbound();
    let mut passed = Vec::new();
    for round in 0..3 {
        for number in 0..8 {
            for client_id in [Some(vec![0, b'v', b'm', number]), None] {
                scene.play(&Step::Wait(Duration::from_secs(2))).expect("agreement");
                let xid = Xid::Numbered(if client_id.is_some() { number } else { 100 });
                let asked = Question { xid, client_id: client_id.clone(), ..Question::new(dhcp::DISCOVER) };
                let verdict = scene.ask(asked).expect("agreement");
                assert!(client_id.is_some() || verdict.is_forward());
                if client_id.is_some() && verdict.is_forward() {
                    passed.push((round, number));
                }
            }
        }
    }
    assert_eq!(
        passed,
        (0..3).flat_map(|round| (0..4).map(move |number| (round, number))).collect::<Vec<_>>()
    );
    // One more in 150 s, and then one more again.
    for number in 20..30 {
        scene.play(&Step::Wait(Duration::from_secs(75))).expect("agreement");
        let client_id = Some(vec![0, b'v', b'm', number]);
        let asked = Question { xid: Xid::Numbered(number), client_id, ..Question::new(dhcp::DISCOVER) };
        let verdict = scene.ask(asked).expect("agreement");
        assert_eq!(verdict.is_forward(), number % 2 == 0, "{number}");
    }
}

/// C7: a burst passes and a flood does not, for as long as it lasts; after it the VM is heard again.
#[test]
fn a_flood_of_requests() {
    let mut scene = with_lease();
    let mut passed = 0;
    for _ in 0..600 {
        scene.play(&Step::Wait(Duration::from_millis(100))).expect("agreement");
        passed += usize::from(scene.ask(renewal()).expect("agreement").is_forward());
    }
    assert!((55..=75).contains(&passed), "{passed} in a minute");
    scene.play(&Step::Wait(Duration::from_secs(30))).expect("agreement");
    assert_eq!((0..8).filter(|_| scene.ask(renewal()).expect("agreement").is_forward()).count(), 8);
}

/// S4: the last fragments that a packet of 65,535 bytes can have, and those that are behind its end.
#[test]
fn the_end_of_the_longest_packet() {
    let mut scene = with_lease();
    for offset in 8_186..=8_191 {
        for length in 1..=64 {
            let content = Content::Other { protocol: 17, data: vec![0; length] };
            let frame = scene.frame(&from_vm(Station::Gateway, packet(Address::World, offset, content)));
            let passes = 20 + 8 * usize::from(offset) + length <= 65_535;
            let verdict = scene.vm(frame).map(|verdict| verdict.is_forward());
            assert_eq!(verdict, Ok(passes), "{length} bytes at {offset}");
        }
    }
}

/// L3: a frame of the link's MTU and the 14 bytes before it passes, one byte more does not, and is answered if it must not
/// be fragmented.
#[test]
fn the_longest_frame() {
    for mtu in [576, 1_500, 9_000, u16::MAX] {
        let mut scene = bound(PortConfig { mtu, ..plain_config(vec![]) }, vec![]);
        for (length, passes) in [(mtu.saturating_sub(1), true), (mtu, true), (mtu.wrapping_add(1), false)] {
            if length < 576 - 1 {
                continue;
            }
            for fragment in [0, 0x4000] {
                let data = vec![0; usize::from(length) - 28];
                let content = Content::Udp { from: 4_000, to: 4_000, data };
                let frame =
                    scene.frame(&from_vm(Station::Gateway, packet(Address::World, fragment, content)));
                assert_eq!(frame.len(), 14 + usize::from(length));
                let verdict = scene.vm(frame).map(|verdict| verdict.is_forward());
                assert_eq!(verdict, Ok(passes), "{length} of {mtu}");
            }
        }
        assert_eq!(scene.watched.answers, usize::from(mtu < u16::MAX));
    }
}
