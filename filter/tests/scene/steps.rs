//! Arbitrary steps: mostly such as could be right, some spoilt, some pure noise.

use std::time::Duration;

use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::strategy::Union;
use softnet_filter::{
    Action, Entry, Ipv4Net, MacAddr, NetType, OnBlock, Origin, Policy, PortConfig, Ports, Protocol,
    PublishedPort, Rule, Target, Timestamp,
};

use super::{Address, Answer, Content, Damage, Question, Shot, Station, Step, Symbol, VM_MAC, Xid};
use crate::oracle::dhcp;
use crate::oracle::packet::ICMP;

/// A port: any type of network, any MTU, no rules or a few that meet the addresses of the steps.
pub fn config() -> BoxedStrategy<PortConfig> {
    let net_type = prop_oneof![3 => Just(NetType::Nat), 1 => Just(NetType::Host)];
    let mtu = prop_oneof![4 => Just(1500), 1 => Just(9000), 1 => Just(576), 1 => Just(u16::MAX)];
    let host = prop_oneof![
        2 => Just(vec![]),
        1 => Just(vec![super::HOST_PUBLIC, super::HOST_PRIVATE, super::HOST_ON_LINK]),
    ];
    let server = softnet_filter::Station { mac: MacAddr(super::SERVER_MAC), address: super::SERVER };
    let server = prop_oneof![3 => Just(None), 1 => Just(Some(server))];
    let network = (net_type, mtu, any::<bool>(), host, server);
    (policy(), network, published(), on_block())
        .prop_map(|(rules, network, published, on_block)| {
            let (net_type, mtu, server_files_by_mac, host_addresses, dhcp_server) = network;
            PortConfig {
                dhcp_server,
                net_type,
                mtu,
                server_files_by_mac,
                host_addresses,
                published,
                on_block,
                policy: Policy::new(rules),
                ..super::plain_config(vec![])
            }
        })
        .boxed()
}

/// A few rules, of both kinds of policies.
fn policy() -> BoxedStrategy<Vec<Rule>> {
    let stateful =
        vec((rule(), proptest::sample::select(vec![None, Some(Origin::Vm), Some(Origin::Outside)])), 1..5)
            .prop_map(|rules| {
                let with_origin =
                    |(rule, origin): (Rule, _)| Rule { entry: Entry { origin, ..rule.entry }, ..rule };
                rules.into_iter().map(with_origin).collect()
            });
    prop_oneof![3 => vec(rule(), 0..4), 2 => stateful].boxed()
}

fn on_block() -> BoxedStrategy<OnBlock> {
    prop_oneof![5 => Just(OnBlock::Reject), 1 => Just(OnBlock::Drop)].boxed()
}

/// The ports of the VM that the host publishes, mostly none.
fn published() -> BoxedStrategy<Vec<PublishedPort>> {
    let some = [(6, 53), (17, 53), (17, 4_000), (6, 4_000)];
    let some = vec(proptest::sample::select(some.to_vec()), 1..4).prop_map(|ports| {
        ports.into_iter().map(|(protocol, port)| PublishedPort { protocol, port }).collect()
    });
    prop_oneof![2 => Just(vec![]), 1 => some].boxed()
}

fn rule() -> BoxedStrategy<Rule> {
    let well_known = [
        "0.0.0.0/0",
        "@host",
        "192.168.64.0/24",
        "192.168.64.20",
        "192.168.64.1",
        "10.0.0.0/8",
        "10.9.8.7",
        "224.0.0.0/4",
        "93.184.216.0/24",
        "169.254.169.254",
        "8.8.8.8",
        "9.0.0.0/8",
        "9.9.9.2",
        "10.77.0.1",
        "@private",
        "@metadata",
        "@internet",
        "::/0",
    ];
    let entry = (proptest::sample::select(well_known.to_vec()), ports()).prop_map(|(target, ports)| {
        let target = if ports.starts_with(':') && target == "::/0" { "[::/0]" } else { target };
        format!("{target}{ports}").parse::<Entry>().expect("an entry")
    });
    (entry, action()).prop_map(|(entry, action)| Rule { entry, action }).boxed()
}

/// The ports of an entry, mostly none, else some that the frames of the steps use.
fn ports() -> BoxedStrategy<&'static str> {
    let some =
        [":53", ":53/udp", ":53/tcp", "/udp", "/tcp", ":1-1023", ":50-60", ":1024-65535/tcp", ":3999-4000"];
    prop_oneof![2 => Just(""), 1 => proptest::sample::select(some.to_vec())].boxed()
}

fn action() -> BoxedStrategy<Action> {
    prop_oneof![3 => Just(Action::Allow), 2 => Just(Action::Block)].boxed()
}

/// Up to `count` rules whose prefixes overlap more often than chance would have it.
pub fn rules(count: usize) -> BoxedStrategy<Vec<Rule>> {
    let base = prop_oneof![
        any::<u32>(),
        (0u32..0x1_0000).prop_map(|low| 0x0808_0000 | low),
        (0u32..0x100).prop_map(|low| 0x0808_0800 | low),
    ];
    let net = (base, 0u8..=32).prop_map(|(bits, length)| {
        Target::Ipv4(Ipv4Net::new(bits.into(), length).expect("a length of at most 32"))
    });
    let group =
        proptest::sample::select(vec![Target::Host, Target::Private, Target::Metadata, Target::Internet]);
    let target = prop_oneof![40 => net, 1 => group];
    let bound = || 3_990u16..4_010;
    let ports = (bound(), bound()).prop_map(|(a, b)| Ports::new(a.min(b), a.max(b)));
    let ports = prop_oneof![4 => Just(None), 1 => ports];
    let protocol =
        prop_oneof![6 => Just(None), 1 => Just(Some(Protocol::Tcp)), 1 => Just(Some(Protocol::Udp))];
    let rule = (target, ports, protocol, action()).prop_map(|(target, ports, protocol, action)| Rule {
        entry: Entry { ports, protocol, ..target.into() },
        action,
    });
    vec(rule, 0..=count).boxed()
}

/// When the scene begins: also at the clock's start and near its end.
pub fn start() -> BoxedStrategy<Timestamp> {
    prop_oneof![
        Just(Timestamp::from_nanos(0)),
        Just(Timestamp::from_secs(1_000_000)),
        (0u64..5_000_000_000_000).prop_map(|before| Timestamp::from_nanos(u64::MAX - before)),
    ]
    .boxed()
}

/// One step of a scene.
pub fn step() -> BoxedStrategy<Step> {
    prop_oneof![
        8 => wait().prop_map(Step::Wait),
        48 => shot_of_vm().prop_map(|shot| Step::Vm(Box::new(shot))),
        32 => shot_of_host().prop_map(|shot| Step::Host(Box::new(shot))),
        12 => (leasable(), lease_time(), vec(resolver(), 0..4))
            .prop_map(|(address, lease_time, resolvers)| Step::Dora { address, lease_time, resolvers }),
        4 => lease_time().prop_map(|lease_time| Step::Renew { lease_time }),
        4 => any::<bool>().prop_map(|of_vm| Step::Replay { of_vm }),
        1 => (5usize..16, any::<u8>()).prop_map(|(count, xid)| Step::Flood { count, xid }),
        3 => vec(host_address(), 0..6).prop_map(Step::HostAddresses),
        6 => vec((proptest::sample::select(vec![6u8, 17]), port(), of(prop_oneof![host_address(), Just(Address::Gateway)])), 0..3)
            .prop_map(Step::Exposed),
        2 => Just(Step::Truncated),
        4 => policy().prop_map(Step::Policy),
        1 => of(prop_oneof![Just(Address::Own), address()]).prop_map(Step::LastLease),
        30 => (any::<bool>(), flags()).prop_map(|(of_vm, flags)| Step::Answer { of_vm, flags }),
    ]
    .boxed()
}

fn wait() -> BoxedStrategy<Duration> {
    prop_oneof![
        12 => (0u64..3_000_000_000).prop_map(Duration::from_nanos),
        6 => (0u64..700).prop_map(Duration::from_secs),
        1 => Just(Duration::from_secs(u32::MAX.into())),
        1 => Just(Duration::MAX),
    ]
    .boxed()
}

fn lease_time() -> BoxedStrategy<u32> {
    prop_oneof![6 => Just(600), 1 => 0u32..5, 1 => Just(u32::MAX), 1 => Just(u32::MAX - 1), 1 => any::<u32>()]
        .boxed()
}

fn leasable() -> BoxedStrategy<Address> {
    prop_oneof![
        4 => Just(Address::Own),
        2 => (2u8..=254).prop_map(Address::OtherInSubnet),
        1 => address(),
    ]
    .boxed()
}

fn host_address() -> BoxedStrategy<Address> {
    proptest::sample::select(vec![
        Address::HostPublic,
        Address::HostPrivate,
        Address::HostOnLink,
        Address::Loopback,
    ])
    .boxed()
}

fn resolver() -> BoxedStrategy<Address> {
    prop_oneof![3 => Just(Address::FarResolver), 2 => Just(Address::Neighbour), 2 => Just(Address::Gateway), 1 => address()]
    .boxed()
}

/// Any address that means something, and some others.
pub fn address() -> BoxedStrategy<Address> {
    prop_oneof![
        6 => Just(Address::Own),
        4 => Just(Address::Gateway),
        1 => Just(Address::Server),
        4 => Just(Address::World),
        3 => Just(Address::Neighbour),
        3 => Just(Address::FarResolver),
        2 => Just(Address::Offered),
        2 => Just(Address::Last),
        2 => host_address(),
        2 => Just(Address::HostPublic),
        2 => Just(Address::Zero),
        2 => Just(Address::LimitedBroadcast),
        1 => Just(Address::Network),
        1 => Just(Address::SubnetBroadcast),
        2 => Just(Address::Private),
        1 => Just(Address::Metadata),
        1 => Just(Address::Loopback),
        2 => Just(Address::Group),
        1 => any::<u8>().prop_map(Address::OtherInSubnet),
        1 => any::<u32>().prop_map(Address::Any),
    ]
    .boxed()
}

fn mostly(usual: Address) -> BoxedStrategy<Address> {
    prop_oneof![7 => Just(usual), 1 => address()].boxed()
}

fn station() -> BoxedStrategy<Station> {
    prop_oneof![
        2 => Just(Station::Vm),
        3 => Just(Station::Gateway),
        1 => Just(Station::Server),
        3 => Just(Station::Neighbour),
        3 => Just(Station::Broadcast),
        2 => Just(Station::Group),
        1 => Just(Station::Reserved),
        1 => Just(Station::Zero),
        1 => any::<[u8; 6]>().prop_map(Station::Any),
    ]
    .boxed()
}

fn mostly_at(usual: Station) -> BoxedStrategy<Station> {
    prop_oneof![15 => Just(usual), 1 => station()].boxed()
}

fn xid() -> BoxedStrategy<Xid> {
    prop_oneof![6 => Just(Xid::Last), 3 => (0u8..6).prop_map(Xid::Numbered)].boxed()
}

fn shot_of_vm() -> BoxedStrategy<Shot> {
    let arp = (
        arp(Station::Vm, Address::Own),
        prop_oneof![Just(Station::Broadcast), Just(Station::Gateway), station()],
    );
    let ipv4 = ipv4(Address::Own).prop_flat_map(|symbol| {
        let to = match &symbol {
            Symbol::Ipv4 { destination: Address::Group, .. } => Station::Group,
            _ => Station::Gateway,
        };
        (Just(symbol), prop_oneof![5 => Just(to), 2 => station()])
    });
    let question = question().prop_flat_map(|question| {
        let to = if question.unicast { Station::Server } else { Station::Broadcast };
        (Just(Symbol::Question(question)), mostly_at(to))
    });
    let symbol = prop_oneof![3 => arp, 8 => ipv4, 6 => question, 1 => (other(), station())];
    let plain = (symbol, mostly_at(Station::Vm), damages()).prop_map(|((symbol, to), from, damage)| Shot {
        to,
        from,
        symbol,
        damage,
    });
    prop_oneof![17 => plain, 1 => report()].boxed()
}

/// IGMP, mostly as hosts send it (S3).
fn report() -> BoxedStrategy<Shot> {
    let routers = Address::Any(0xe000_0016);
    let about = prop_oneof![
        2 => Just((0x16, Address::Group, Address::Group)),
        2 => Just((0x22, Address::Group, routers)),
        1 => Just((0x17, Address::Group, Address::Any(0xe000_0002))),
        1 => (proptest::sample::select(vec![0x11, 0x12, 0x16, 0x17, 0x22]), address(), mostly(Address::Group)),
    ];
    let time_to_live = prop_oneof![7 => Just(1u8), 1 => any::<u8>()];
    let alert = prop_oneof![3 => Just(vec![Damage::RouterAlert]), 1 => Just(vec![])];
    (about, mostly(Address::Own), time_to_live, mostly_at(Station::Group), alert, damages())
        .prop_map(|((kind, group, destination), source, time_to_live, to, mut damage, more)| {
            damage.extend(more);
            let content = Content::Igmp { kind, group };
            let symbol = Symbol::Ipv4 { source, destination, fragment: 0, time_to_live, content };
            Shot { to, from: Station::Vm, symbol, damage }
        })
        .boxed()
}

fn shot_of_host() -> BoxedStrategy<Shot> {
    let arp = (
        prop_oneof![arp(Station::Gateway, Address::Gateway), arp(Station::Server, Address::Server)],
        prop_oneof![Just(Station::Broadcast), Just(Station::Vm), station()],
    );
    let ipv4 = (ipv4(Address::World), mostly_at(Station::Vm));
    let answer = answer().prop_flat_map(|answer| {
        let (to, from) = (answer.to, answer.station);
        (Just(Symbol::Answer(answer)), Just(to), Just(from))
    });
    let symbol = prop_oneof![
        2 => (arp, station()).prop_map(|((symbol, to), from)| (symbol, to, from)),
        3 => (ipv4, mostly_at(Station::Gateway)).prop_map(|((symbol, to), from)| (symbol, to, from)),
        6 => answer,
        1 => (other(), station(), station()),
    ];
    (symbol, damages()).prop_map(|((symbol, to, from), damage)| Shot { to, from, symbol, damage }).boxed()
}

fn arp(mac: Station, sender: Address) -> BoxedStrategy<Symbol> {
    let operation = prop_oneof![4 => Just(1u16), 3 => Just(2), 1 => 0u16..12];
    let sender = prop_oneof![3 => Just(sender), 1 => Just(Address::Zero), 1 => address()];
    (operation, mostly_at(mac), sender, address())
        .prop_map(|(operation, mac, sender, target)| Symbol::Arp { operation, mac, sender, target })
        .boxed()
}

fn ipv4(source: Address) -> BoxedStrategy<Symbol> {
    let fragment = prop_oneof![
        8 => Just(0u16),
        3 => Just(0x4000),
        1 => Just(0x2000),
        1 => (0u16..4).prop_map(|offset| 0x2000 | offset),
        1 => (0u16..200).prop_map(|offset| offset),
        1 => any::<u16>(),
    ];
    (mostly(source), address(), fragment, prop_oneof![9 => Just(64u8), 1 => any::<u8>()], content())
        .prop_map(|(source, destination, fragment, time_to_live, content)| Symbol::Ipv4 {
            source,
            destination,
            fragment,
            time_to_live,
            content,
        })
        .boxed()
}

fn content() -> BoxedStrategy<Content> {
    let kind = prop_oneof![4 => proptest::sample::select(vec![0u8, 3, 8, 11, 12]), 1 => any::<u8>()];
    prop_oneof![
        4 => (port(), port(), data()).prop_map(|(from, to, data)| Content::Udp { from, to, data }),
        3 => (port(), port(), flags(), data())
            .prop_map(|(from, to, flags, data)| Content::Tcp { from, to, flags, data }),
        3 => (kind, of((address(), mostly(Address::Own))), data())
            .prop_map(|(kind, quoted, data)| Content::Icmp { kind, quoted, data }),
        1 => (any::<u8>(), data()).prop_map(|(protocol, data)| Content::Other { protocol, data }),
        2 => (proptest::sample::select(vec![ICMP, 2, 4, 6, 17, 41, 47, 50, 51, 89, 112]), data())
            .prop_map(|(protocol, data)| Content::Other { protocol, data }),
    ]
    .boxed()
}

/// The flags of TCP, mostly those that connections have.
fn flags() -> BoxedStrategy<u8> {
    prop_oneof![6 => Just(2u8), 4 => Just(0x12), 6 => Just(0x10), 2 => Just(0x11), 1 => Just(4), 1 => any::<u8>()].boxed()
}

/// A port that means something, and some others.
pub fn port() -> BoxedStrategy<u16> {
    prop_oneof![4 => 1024u16.., 4 => Just(53), 1 => Just(67), 1 => Just(68), 1 => Just(4011), 1 => any::<u16>(), 2 => 3_998u16..4_002]
        .boxed()
}

fn data() -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..64),
        1 => (560usize..570).prop_map(|length| vec![0; length]),
        1 => (1440usize..1500).prop_map(|length| vec![0; length]),
    ]
    .boxed()
}

fn question() -> BoxedStrategy<Question> {
    let kind = prop_oneof![
        4 => Just(dhcp::REQUEST),
        3 => Just(dhcp::DISCOVER),
        1 => Just(dhcp::DECLINE),
        1 => Just(dhcp::RELEASE),
        1 => Just(dhcp::INFORM),
        1 => any::<u8>(),
    ];
    let addressed = prop_oneof![
        3 => Just((Address::Zero, Address::Zero, false)),
        2 => Just((Address::Own, Address::Own, true)),
        1 => Just((Address::Own, Address::Own, false)),
        1 => Just((Address::Last, Address::Last, true)),
        1 => Just((Address::Last, Address::Last, false)),
        1 => Just((Address::Zero, Address::Last, false)),
        1 => (address(), address(), any::<bool>()),
    ];
    let requested = of(prop_oneof![3 => Just(Address::Offered), 2 => Just(Address::Own), 1 => address()]);
    let server = weighted(0.7, mostly(Address::Server));
    (kind, xid(), addressed, requested, server, of(client_id()), extra(), server_port())
        .prop_map(|(kind, xid, (source, client, unicast), requested, server, client_id, extra, port)| {
            Question { kind, port, xid, source, unicast, client, requested, server, client_id, extra }
        })
        .boxed()
}

/// The DHCP server's, or the boot server's (B6).
fn server_port() -> BoxedStrategy<u16> {
    prop_oneof![5 => Just(67), 1 => Just(4011)].boxed()
}

fn client_id() -> BoxedStrategy<Vec<u8>> {
    let mac = prop_oneof![3 => Just(VM_MAC), 1 => any::<[u8; 6]>()];
    prop_oneof![
        4 => mac.clone().prop_map(|mac| [&[1], &mac[..]].concat()),
        2 => (mac.clone(), any::<u8>()).prop_map(|(mac, iaid)| [&[255, 0, 0, 0, iaid, 0, 3, 0, 1], &mac[..]].concat()),
        2 => mac.prop_map(|mac| [&[255, 0, 0, 0, 1, 0, 1, 0, 1, 9, 9, 9, 9], &mac[..]].concat()),
        2 => (0u8..8).prop_map(|number| vec![0, b'v', b'm', number]),
        1 => vec(any::<u8>(), 0..40),
    ]
    .boxed()
}

fn extra() -> BoxedStrategy<Vec<(u8, Vec<u8>)>> {
    let code = prop_oneof![
        2 => any::<u8>(),
        1 => proptest::sample::select(vec![0u8, 6, 50, 51, 52, 53, 54, 55, 57, 61, 82, 255]),
    ];
    let option = (code, prop_oneof![vec(any::<u8>(), 0..12), vec(0u8..4, 1..5)]);
    // What clients send, and may not be taken for nothing.
    let usual = prop_oneof![
        3 => lease_time().prop_map(|seconds| (dhcp::OPTION_LEASE_TIME, seconds.to_be_bytes().to_vec())),
        3 => name().prop_map(|name| (dhcp::OPTION_HOST_NAME, name)),
        2 => (any::<u8>(), name()).prop_map(|(flags, name)| {
            (dhcp::OPTION_FQDN, [&[flags & 5, 0, 0], &name[..]].concat())
        }),
        1 => name().prop_map(|name| {
            (dhcp::OPTION_FQDN, [&[5, 0, 0, name.len() as u8], &name[..], &[0]].concat())
        }),
        2 => Just((dhcp::OPTION_RAPID_COMMIT, vec![])),
    ];
    prop_oneof![5 => Just(vec![]), 2 => vec(option, 1..3), 4 => vec(usual, 1..3)].boxed()
}

fn name() -> BoxedStrategy<Vec<u8>> {
    prop_oneof![
        4 => proptest::sample::select(vec!["vm", "vm-1.example.com", "vm.", "vm\0", "x"]),
        2 => proptest::sample::select(vec!["", "a b", "a_b", "..", "a\nb", "\0"]),
    ]
    .prop_map(|name| name.as_bytes().to_vec())
    .boxed()
}

fn answer() -> BoxedStrategy<Answer> {
    let kind = prop_oneof![
        6 => Just(dhcp::ACK),
        3 => Just(dhcp::OFFER),
        2 => Just(dhcp::NAK),
        1 => any::<u8>(),
    ];
    let ways = prop_oneof![
        3 => Just((Station::Vm, Address::Offered)),
        3 => Just((Station::Broadcast, Address::LimitedBroadcast)),
        1 => (station(), address()),
    ];
    let names = (mostly_at(Station::Server), mostly(Address::Server), mostly_at(Station::Vm));
    let times = weighted(0.9, lease_time());
    (
        (kind, xid(), server_port()),
        names,
        ways,
        leasable(),
        weighted(0.9, mostly(Address::Server)),
        times,
        vec(resolver(), 0..4),
        extra(),
    )
        .prop_map(
            |(
                (kind, xid, port),
                (station, source, mac),
                (to, destination),
                leased,
                server,
                times,
                resolvers,
                extra,
            )| {
                let yours = if kind == dhcp::NAK { Address::Zero } else { leased };
                let destination = if matches!(destination, Address::Offered) && kind != dhcp::NAK {
                    yours
                } else {
                    destination
                };
                let lease_time = times.filter(|_| kind != dhcp::NAK);
                Answer {
                    kind,
                    port,
                    xid,
                    station,
                    source,
                    to,
                    destination,
                    yours,
                    server,
                    lease_time,
                    resolvers,
                    mac,
                    extra,
                }
            },
        )
        .boxed()
}

fn other() -> BoxedStrategy<Symbol> {
    let ether_type = prop_oneof![
        any::<u16>(),
        proptest::sample::select(vec![
            0x8100, 0x88a8, 0x9100, 0x86dd, 0x8035, 0x88cc, 0x8808, 0x888e, 0x0026, 0x0800, 0x0806
        ]),
    ];
    (ether_type, vec(any::<u8>(), 0..80))
        .prop_map(|(ether_type, body)| Symbol::Other { ether_type, body })
        .boxed()
}

/// No damage half of the time; otherwise some, and often with the checksums made right again.
fn damages() -> BoxedStrategy<Vec<Damage>> {
    let at = || prop_oneof![4 => 0usize..62, 2 => 254usize..330, 2 => 42usize..290, 1 => 0usize..1600];
    let one = prop_oneof![
        5 => (at(), any::<u8>()).prop_map(|(at, value)| Damage::Set { at, value }),
        5 => (at(), any::<u8>()).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        2 => (0usize..330).prop_map(|length| Damage::Cut { length }),
        2 => (1usize..40, any::<u8>()).prop_map(|(count, byte)| Damage::Append { count, byte }),
        2 => Just(Damage::Pad),
        1 => (1usize..=10).prop_map(|words| Damage::Options { words }),
    ];
    Union::new_weighted(vec![
        (4, Just(vec![]).boxed()),
        (1, Just(vec![Damage::Pad]).boxed()),
        (
            3,
            (vec(one, 1..3), any::<bool>())
                .prop_map(|(mut damages, repair)| {
                    if repair {
                        damages.push(Damage::Repair);
                    }
                    damages
                })
                .boxed(),
        ),
    ])
    .boxed()
}

/// Noise of any length, half of it behind the begin of a real frame.
pub fn any_frame_of_any_length() -> BoxedStrategy<Vec<u8>> {
    let length = prop_oneof![3 => 0usize..100, 2 => 0usize..1600, 1 => 0usize..=65_600, 1 => Just(65_600)];
    let begin = prop_oneof![
        Just(vec![]),
        Just([&[0xff; 6], &VM_MAC[..], &[8, 6]].concat()),
        Just([&super::GATEWAY_MAC, &VM_MAC[..], &[8, 0, 0x45]].concat()),
        Just([&VM_MAC, &super::GATEWAY_MAC[..], &[8, 0, 0x45]].concat()),
    ];
    (length, begin, any::<u64>(), any::<bool>())
        .prop_map(|(length, begin, seed, repair)| {
            let mut frame = begin;
            let mut state = seed | 1;
            while frame.len() < length {
                // Xorshift: noise that is cheap enough for long frames.
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                frame.push(state as u8);
            }
            frame.truncate(length);
            if repair {
                if frame.len() > 34 {
                    let total = u16::try_from(frame.len() - 14).unwrap_or(u16::MAX);
                    frame[16..18].copy_from_slice(&total.to_be_bytes());
                }
                super::wire::fix(&mut frame);
            }
            frame
        })
        .boxed()
}
