//! Dialogues between a VM and its host, made of a fuzzer's bytes: each byte is a choice, so that a changed byte
//! changes one thing, and bytes that end early end the dialogue.

use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use softnet_filter::{NetType, Policy, PortConfig, PublishedPort, Rule, Timestamp};

use crate::oracle::dhcp;
use crate::scene::{
    Address, Answer, Content, Damage, Question, Shot, Station, Step, Symbol, VM_MAC, Xid, allow, block,
    plain_config,
};

const MAX_STEPS: usize = 60;

const ADDRESSES: [Address; 18] = [
    Address::Own,
    Address::Gateway,
    Address::World,
    Address::Neighbour,
    Address::FarResolver,
    Address::Offered,
    Address::Zero,
    Address::LimitedBroadcast,
    Address::Network,
    Address::SubnetBroadcast,
    Address::Private,
    Address::Metadata,
    Address::Loopback,
    Address::Group,
    Address::Last,
    Address::HostPublic,
    Address::HostPrivate,
    Address::HostOnLink,
];

const STATIONS: [Station; 7] = [
    Station::Vm,
    Station::Gateway,
    Station::Neighbour,
    Station::Broadcast,
    Station::Group,
    Station::Reserved,
    Station::Zero,
];

const TARGETS: [&str; 17] = [
    "0.0.0.0/0",
    "@host",
    "192.168.64.0/24",
    "192.168.64.20",
    "10.0.0.0/8",
    "10.9.8.7",
    "224.0.0.0/4",
    "93.184.216.0/24",
    "169.254.169.254",
    "9.0.0.0/8",
    "10.77.0.1",
    "@private",
    "@metadata",
    "@internet",
    "0.0.0.0/0:4000",
    "192.168.64.20:53/udp",
    "@internet:1-1023/tcp",
];

/// A port, the time at which it begins, and what happens to it.
pub fn dialogue(u: &mut Unstructured<'_>) -> Result<(PortConfig, Timestamp, Vec<Step>)> {
    let rules = rules(u)?;
    let published = if u.ratio(1, 4)? {
        vec![PublishedPort { protocol: *u.choose(&[6, 17])?, port: port(u)? }]
    } else {
        vec![]
    };
    let config = PortConfig {
        dhcp_server: None,
        net_type: if u.ratio(1, 4)? { NetType::Host } else { NetType::Nat },
        policy: Policy::new(rules),
        server_files_by_mac: u.ratio(1, 4)?,
        published,
        ..plain_config(vec![])
    };
    let start = *u.choose(&[0, 1_000_000_000_000, u64::MAX - 5_000_000_000_000])?;
    let mut steps = Vec::new();
    while !u.is_empty() && steps.len() < MAX_STEPS {
        steps.push(step(u)?);
    }
    Ok((config, Timestamp::from_nanos(start), steps))
}

fn rules(u: &mut Unstructured<'_>) -> Result<Vec<Rule>> {
    let is_stateful = u.ratio(2, 5)?;
    let rules = (0..u.int_in_range(0..=3)?).map(|_| {
        let origin = if is_stateful { *u.choose(&["", "in ", "out "])? } else { "" };
        let entry = format!("{origin}{}", u.choose(&TARGETS)?);
        Ok(if u.ratio(2, 5)? { block(&entry) } else { allow(&entry) })
    });
    rules.collect()
}

/// Flags of TCP: mostly those that connections have.
fn flags(u: &mut Unstructured<'_>) -> Result<u8> {
    let usual = *u.choose(&[2, 0x12, 0x10, 0x11])?;
    mostly(u, usual, &[0, 1, 4, 0x14, 0xff])
}

fn step(u: &mut Unstructured<'_>) -> Result<Step> {
    Ok(match u.int_in_range(0..=20)? {
        18 => Step::Policy(rules(u)?),
        19..=20 => Step::Answer { of_vm: u.arbitrary()?, flags: flags(u)? },
        16 => Step::HostAddresses(host_addresses(u)?),
        17 => Step::Exposed(vec![(*u.choose(&[6, 17])?, port(u)?, option(u, |u| u.choose(&HOST).copied())?)]),
        0 => Step::Wait(Duration::from_millis(u16::arbitrary(u)?.into())),
        1 => Step::Wait(Duration::from_secs(u16::arbitrary(u)?.into())),
        2 => Step::Dora { address: leasable(u)?, lease_time: lease_time(u)?, resolvers: resolvers(u)? },
        3 => Step::Renew { lease_time: lease_time(u)? },
        4 => Step::Replay { of_vm: u.arbitrary()? },
        5..=10 => Step::Vm(Box::new(shot_of_vm(u)?)),
        _ => Step::Host(Box::new(shot_of_host(u)?)),
    })
}

const NAMES: [&[u8]; 5] = [b"vm", b"vm-1.example.com", b"vm.", b"", b"a b"];

const HOST: [Address; 4] = [Address::Gateway, Address::HostPublic, Address::HostPrivate, Address::HostOnLink];

fn host_addresses(u: &mut Unstructured<'_>) -> Result<Vec<Address>> {
    (0..u.int_in_range(0..=3)?).map(|_| u.choose(&HOST).copied()).collect()
}

/// The usual value, or now and then another.
fn mostly<T: Copy>(u: &mut Unstructured<'_>, usual: T, others: &[T]) -> Result<T> {
    if u.ratio(7, 8)? { Ok(usual) } else { u.choose(others).copied() }
}

fn address(u: &mut Unstructured<'_>) -> Result<Address> {
    Ok(match u.int_in_range(0..=15)? {
        0 => Address::OtherInSubnet(u.arbitrary()?),
        1 => Address::Any(u.arbitrary()?),
        _ => *u.choose(&ADDRESSES)?,
    })
}

fn leasable(u: &mut Unstructured<'_>) -> Result<Address> {
    if u.ratio(2, 3)? { Ok(Address::Own) } else { address(u) }
}

fn lease_time(u: &mut Unstructured<'_>) -> Result<u32> {
    Ok(*u.choose(&[600, 600, 60, 1, 0, u32::MAX, u32::MAX - 1])?)
}

fn resolvers(u: &mut Unstructured<'_>) -> Result<Vec<Address>> {
    (0..u.int_in_range(0..=3)?).map(|_| address(u)).collect()
}

fn shot_of_vm(u: &mut Unstructured<'_>) -> Result<Shot> {
    let (symbol, to) = match u.int_in_range(0..=15)? {
        0..=2 => (arp(u, Station::Vm, Address::Own)?, mostly(u, Station::Broadcast, &STATIONS)?),
        3..=8 => {
            let symbol = ipv4(u, Address::Own)?;
            let to = match symbol {
                Symbol::Ipv4 { destination: Address::Group, .. } => Station::Group,
                _ => Station::Gateway,
            };
            (symbol, mostly(u, to, &STATIONS)?)
        }
        9..=14 => {
            let question = question(u)?;
            let to = if question.unicast { Station::Gateway } else { Station::Broadcast };
            (Symbol::Question(question), mostly(u, to, &STATIONS)?)
        }
        _ => (Symbol::Other { ether_type: u.arbitrary()?, body: bytes(u, 64)? }, *u.choose(&STATIONS)?),
    };
    Ok(Shot { to, from: mostly(u, Station::Vm, &STATIONS)?, symbol, damage: damage(u)? })
}

fn shot_of_host(u: &mut Unstructured<'_>) -> Result<Shot> {
    let (symbol, to, from) = match u.int_in_range(0..=7)? {
        0 => {
            let symbol = arp(u, Station::Gateway, Address::Gateway)?;
            (symbol, mostly(u, Station::Vm, &STATIONS)?, *u.choose(&STATIONS)?)
        }
        1..=2 => {
            let symbol = ipv4(u, Address::World)?;
            (symbol, mostly(u, Station::Vm, &STATIONS)?, mostly(u, Station::Gateway, &STATIONS)?)
        }
        _ => {
            let answer = answer(u)?;
            let (to, from) = (answer.to, answer.station);
            (Symbol::Answer(answer), to, from)
        }
    };
    Ok(Shot { to, from, symbol, damage: damage(u)? })
}

fn arp(u: &mut Unstructured<'_>, mac: Station, sender: Address) -> Result<Symbol> {
    Ok(Symbol::Arp {
        operation: mostly(u, 1, &[0, 1, 2, 2, 3, 9])?,
        mac: mostly(u, mac, &STATIONS)?,
        sender: mostly(u, sender, &ADDRESSES)?,
        target: address(u)?,
    })
}

fn ipv4(u: &mut Unstructured<'_>, source: Address) -> Result<Symbol> {
    let content = match u.int_in_range(0..=4)? {
        0 => Content::Udp { from: port(u)?, to: port(u)?, data: bytes(u, 40)? },
        1 => Content::Tcp { from: port(u)?, to: port(u)?, flags: flags(u)?, data: bytes(u, 40)? },
        2 => {
            let quoted =
                if u.ratio(3, 4)? { Some((address(u)?, mostly(u, Address::Own, &ADDRESSES)?)) } else { None };
            Content::Icmp {
                kind: mostly(u, 3, &[0, 3, 4, 5, 8, 11, 12, 13, 17, 42])?,
                quoted,
                data: bytes(u, 40)?,
            }
        }
        3 => Content::Igmp { kind: mostly(u, 0x16, &[0x11, 0x12, 0x17, 0x22])?, group: address(u)? },
        _ => Content::Other { protocol: u.arbitrary()?, data: bytes(u, 40)? },
    };
    Ok(Symbol::Ipv4 {
        source: mostly(u, source, &ADDRESSES)?,
        destination: address(u)?,
        fragment: mostly(u, 0, &[0x4000, 0x2000, 0x2001, 1, 3, 100, 0x1fff, 0x3fff, 0x6000, 0x8000])?,
        time_to_live: mostly(u, 64, &[0, 1, 1, 255])?,
        content,
    })
}

fn port(u: &mut Unstructured<'_>) -> Result<u16> {
    mostly(u, 4_000, &[53, 53, 67, 68, 80, 0, 66, 69, 4_011])
}

fn bytes(u: &mut Unstructured<'_>, most: usize) -> Result<Vec<u8>> {
    let len = u.int_in_range(0..=most)?;
    Ok(u.bytes(len.min(u.len()))?.to_vec())
}

fn xid(u: &mut Unstructured<'_>) -> Result<Xid> {
    mostly(u, Xid::Last, &[Xid::Numbered(0), Xid::Numbered(1), Xid::Numbered(2)])
}

fn option<T>(u: &mut Unstructured<'_>, value: fn(&mut Unstructured<'_>) -> Result<T>) -> Result<Option<T>> {
    if u.arbitrary()? { value(u).map(Some) } else { Ok(None) }
}

fn question(u: &mut Unstructured<'_>) -> Result<Question> {
    let kinds =
        [dhcp::DISCOVER, dhcp::REQUEST, dhcp::REQUEST, dhcp::DECLINE, dhcp::RELEASE, dhcp::INFORM, 2, 9];
    let own = u.ratio(1, 2)?;
    let usual = if own { mostly(u, Address::Own, &[Address::Last])? } else { Address::Zero };
    Ok(Question {
        kind: *u.choose(&kinds)?,
        xid: xid(u)?,
        source: mostly(u, usual, &ADDRESSES)?,
        unicast: mostly(u, own, &[false, true])?,
        client: mostly(u, usual, &ADDRESSES)?,
        requested: option(u, |u| mostly(u, Address::Offered, &ADDRESSES))?,
        server: option(u, |u| mostly(u, Address::Gateway, &ADDRESSES))?,
        client_id: option(u, client_id)?,
        extra: extra(u)?,
        port: mostly(u, 67, &[4_011])?,
    })
}

fn client_id(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mac = if u.ratio(3, 4)? { VM_MAC } else { u.arbitrary()? };
    Ok(match u.int_in_range(0..=4)? {
        0 => [&[1], &mac[..]].concat(),
        1 => [&[255, 0, 0, 0, 1, 0, 3, 0, 1], &mac[..]].concat(),
        2 => [&[255, 0, 0, 0, 1, 0, 1, 0, 1, 9, 9, 9, 9], &mac[..]].concat(),
        3 => vec![0, b'v', b'm', u.int_in_range(0..=7)?],
        _ => bytes(u, 40)?,
    })
}

fn extra(u: &mut Unstructured<'_>) -> Result<Vec<(u8, Vec<u8>)>> {
    let mut options = Vec::new();
    while u.ratio(1, 4)? && options.len() < 3 {
        let code = mostly(u, 12, &[0, 6, 50, 51, 52, 53, 54, 61, 80, 81, 82, 255])?;
        options.push(match u.int_in_range(0..=3)? {
            0 => (dhcp::OPTION_LEASE_TIME, lease_time(u)?.to_be_bytes().to_vec()),
            1 => (dhcp::OPTION_HOST_NAME, u.choose(&NAMES)?.to_vec()),
            _ => (code, bytes(u, 8)?),
        });
    }
    Ok(options)
}

fn answer(u: &mut Unstructured<'_>) -> Result<Answer> {
    let kind = *u.choose(&[dhcp::ACK, dhcp::ACK, dhcp::OFFER, dhcp::NAK, dhcp::INFORM])?;
    let yours = if kind == dhcp::NAK { Address::Zero } else { leasable(u)? };
    let (to, destination) =
        if u.arbitrary()? { (Station::Vm, yours) } else { (Station::Broadcast, Address::LimitedBroadcast) };
    Ok(Answer {
        kind,
        xid: xid(u)?,
        station: mostly(u, Station::Gateway, &STATIONS)?,
        source: mostly(u, Address::Gateway, &ADDRESSES)?,
        to: mostly(u, to, &STATIONS)?,
        destination: mostly(u, destination, &ADDRESSES)?,
        yours,
        server: if u.ratio(15, 16)? { Some(mostly(u, Address::Gateway, &ADDRESSES)?) } else { None },
        lease_time: if kind != dhcp::NAK && u.ratio(15, 16)? { Some(lease_time(u)?) } else { None },
        resolvers: resolvers(u)?,
        mac: mostly(u, Station::Vm, &STATIONS)?,
        extra: extra(u)?,
        port: mostly(u, 67, &[4_011])?,
    })
}

fn damage(u: &mut Unstructured<'_>) -> Result<Vec<Damage>> {
    let mut damage = Vec::new();
    while u.ratio(1, 4)? && damage.len() < 3 {
        damage.push(match u.int_in_range(0..=6)? {
            0 | 1 => Damage::Set { at: u.int_in_range(0..=330)?, value: u.arbitrary()? },
            2 => Damage::Flip { at: u.int_in_range(0..=330)?, bit: u.int_in_range(0..=7)? },
            3 => Damage::Cut { length: u.int_in_range(0..=330)? },
            5 => Damage::RouterAlert,
            4 => Damage::Append { count: u.int_in_range(1..=40)?, byte: u.arbitrary()? },
            _ => Damage::Pad,
        });
    }
    // So that the damage gets past the checksums.
    if !damage.is_empty() && u.arbitrary()? {
        damage.push(Damage::Repair);
    }
    Ok(damage)
}
