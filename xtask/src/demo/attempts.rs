//! What the hostile guest tries, and the expected results.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result, bail};
use lab::deadline::until;
use lab::guest::{Answer, Guest, Request, to_hex};
use lab::net::{INTERNET, INTERNET_TOO, LAN, METADATA, NAME, World};
use lab::wire::{Arp, Dhcp, IPV4, Ipv4, Mac, dhcp_kind, ethernet, icmp, udp};

use super::Cast;
use super::table::{Outcome, Row};

/// Timeout of an attempt that should fail, in milliseconds.
const PATIENCE_MS: u64 = 1500;

/// A stranger's hardware address.
const STRANGER: Mac = Mac([0x02, 0xde, 0xad, 0xbe, 0xef, 0x01]);

/// Performs all attempts in order.
pub fn perform(cast: &mut Cast, world: &World) -> Result<Vec<Row>> {
    let before: Vec<usize> = world.services.iter().map(|service| service.seen().len()).collect();
    let mut rows = good(cast)?;
    rows.extend(forbidden_places(cast)?);
    rows.extend(forged_frames(cast)?);
    // Finally, the services that must not have been reached report, and so does the other guest.
    for (service, before) in world.services.iter().zip(before) {
        let address = *service.at.ip();
        if [LAN, METADATA].contains(&address) {
            let came = service.seen().len() - before;
            let seen = if came == 0 { Outcome::Works } else { Outcome::Nothing };
            let what = format!("{address} was left alone");
            rows.push(Row {
                what,
                expected: Outcome::Works,
                seen,
                detail: format!("{came} visits by guests"),
            });
        }
    }
    let to = SocketAddrV4::new(INTERNET, 80);
    let request = Request::Tcp { to, patience_ms: PATIENCE_MS };
    rows.push(attempt(&mut cast.alice, "alice, unharmed, reaches the internet", None, &request)?);
    Ok(rows)
}

fn good(cast: &mut Cast) -> Result<Vec<Row>> {
    let guest = &mut cast.mallory;
    let router = cast.mallory_lease.router.context("the lease names no router")?;
    let resolver = cast.mallory_lease.dns.first().copied().unwrap_or(router);
    let tcp = |to| Request::Tcp { to: SocketAddrV4::new(to, 80), patience_ms: PATIENCE_MS };
    let run = |words: &str| Request::Run { argv: words.split(' ').map(str::to_owned).collect() };
    Ok(vec![
        attempt(guest, "DHCP: renew the lease", None, &Request::Dhcp)?,
        attempt(guest, "TCP to the internet (8.8.8.8)", None, &tcp(INTERNET))?,
        attempt(
            guest,
            "UDP to the internet (1.1.1.1)",
            None,
            &Request::Udp { to: SocketAddrV4::new(INTERNET_TOO, 80), patience_ms: PATIENCE_MS },
        )?,
        attempt(guest, "ping the internet", None, &run(&format!("ping -c 1 -W 2 {INTERNET}")))?,
        attempt(guest, "ping the gateway", None, &run(&format!("ping -c 1 -W 2 {router}")))?,
        attempt(guest, "look up a name", None, &run(&format!("nslookup -type=a {NAME} {resolver}")))?,
    ])
}

fn forbidden_places(cast: &mut Cast) -> Result<Vec<Row>> {
    let alice = cast.alice_lease.address;
    let guest = &mut cast.mallory;
    let tcp = |to| Request::Tcp { to: SocketAddrV4::new(to, 80), patience_ms: PATIENCE_MS };
    Ok(vec![
        attempt(guest, "TCP to the LAN (192.168.77.10)", Some("not-global"), &tcp(LAN))?,
        attempt(guest, "TCP to the metadata service", Some("not-global"), &tcp(METADATA))?,
        attempt(guest, "TCP to the other guest", Some("arp-target"), &tcp(alice))?,
    ])
}

fn forged_frames(cast: &mut Cast) -> Result<Vec<Row>> {
    let alice = cast.alice_lease.address;
    let own = cast.mallory_lease.address;
    let router = cast.mallory_lease.router.context("the lease names no router")?;
    let facts = cast.mallory.facts()?;
    let own_mac = parse_mac(&facts.mac)?;
    let gateway_mac = facts.neighbours.iter().find(|(address, _)| *address == router);
    let gateway_mac = parse_mac(&gateway_mac.context("the guest does not know its gateway's address")?.1)?;
    let alice_mac = parse_mac(&cast.alice.facts()?.mac)?;
    let to_world = |from: Ipv4Addr| Ipv4::new(from, INTERNET, udp((from, 4000), (INTERNET, 80), b"forged"));
    let right = to_world(own);
    let ping = [0, 1, 0, 1];
    let frames = [
        ("MAC spoof: a stranger's Ethernet source", "source-mac", right.frame(gateway_mac, STRANGER)),
        (
            "IP spoof: the other guest's address",
            "source-address",
            to_world(alice).frame(gateway_mac, own_mac),
        ),
        (
            "ARP spoof: \"the gateway is at my address\"",
            "arp-sender-address",
            Arp::reply(own_mac, router, alice_mac, alice).frame(),
        ),
        (
            "ARP spoof: \"I am at a stranger's address\"",
            "arp-sender-mac",
            ethernet(
                alice_mac,
                own_mac,
                lab::wire::ARP,
                &Arp::reply(STRANGER, own, alice_mac, alice).bytes(),
            ),
        ),
        (
            "a packet straight to the other guest",
            "neighbour",
            Ipv4::new(own, alice, icmp(8, 0, &ping)).frame(alice_mac, own_mac),
        ),
        (
            "a forged DHCP server",
            "dhcp-ports",
            Dhcp::server(dhcp_kind::OFFER, 1, alice_mac, own).packet(own, alice).frame(alice_mac, own_mac),
        ),
        (
            "a DHCP request in the other guest's name",
            "dhcp-hardware-address",
            ethernet(
                Mac::BROADCAST,
                own_mac,
                IPV4,
                &Dhcp::client(dhcp_kind::DISCOVER, 2, alice_mac).broadcast()[14..],
            ),
        ),
        ("an IPv6 frame", "ipv6", ethernet(Mac::BROADCAST, own_mac, 0x86dd, &[0x60; 40])),
        ("a VLAN tag", "vlan-tag", ethernet(gateway_mac, own_mac, 0x8100, &right.bytes())),
        (
            "source routing",
            "ipv4-options",
            Ipv4 { options: vec![131, 7, 4, 8, 8, 8, 8, 0], ..right.clone() }.frame(gateway_mac, own_mac),
        ),
        (
            "an ICMP redirect to the gateway",
            "icmp-type",
            Ipv4::new(own, router, icmp(5, 1, &[0; 32])).frame(gateway_mac, own_mac),
        ),
    ];
    let guest = &mut cast.mallory;
    frames
        .into_iter()
        .map(|(what, reason, frame)| {
            let request = Request::Send { frames: vec![to_hex(&frame)] };
            attempt(guest, what, Some(reason), &request)
        })
        .collect()
}

fn parse_mac(text: &str) -> Result<Mac> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|digits| u8::from_str_radix(digits, 16)).collect();
    match <[u8; 6]>::try_from(bytes?) {
        Ok(bytes) => Ok(Mac(bytes)),
        Err(bytes) => bail!("{text} has {} bytes", bytes.len()),
    }
}

/// Lets the guest try it, between two readings of its Softnet's counters.
fn attempt(guest: &mut Guest, what: &str, reason: Option<&str>, request: &Request) -> Result<Row> {
    let before = guest.softnet.counters()?;
    let answer = guest.ask(request)?;
    // A forged frame always leaves the guest; only the counters show whether Softnet forwarded it, once it
    // has read it.
    let forged = matches!(request, Request::Send { .. });
    let mut drops = guest.softnet.counters()?.drops_since(&before);
    if let (true, Some(reason)) = (forged, reason) {
        let _in_time = until(|| {
            drops = guest.softnet.counters().map(|now| now.drops_since(&before)).unwrap_or_default();
            drops.iter().any(|(name, _)| name == reason)
        });
    }
    let (worked, detail) = match &answer {
        Answer::Done => (!forged, String::new()),
        Answer::Leased(lease) => {
            (true, format!("{} for {} s", lease.address, lease.seconds.unwrap_or_default()))
        }
        Answer::Heard(text) => (true, format!("\"{text}\"")),
        Answer::Exited { code: 0, output } => (true, summary(output)),
        Answer::Exited { code, output } => (false, format!("exit {code}: {}", summary(output))),
        Answer::Failed(why) => (false, why.clone()),
        other => bail!("the guest answered {other:?}"),
    };
    let expected = reason.map_or(Outcome::Works, |reason| Outcome::Dropped(reason.to_owned()));
    let seen = if worked {
        Outcome::Works
    } else {
        // A guest's kernel chatters by itself (IPv6, for one); the reason at issue goes first.
        let drop = drops.iter().find(|(name, _)| Some(name.as_str()) == reason).or_else(|| drops.first());
        drop.map_or(if forged { Outcome::Works } else { Outcome::Nothing }, |(name, _)| {
            Outcome::Dropped(name.clone())
        })
    };
    Ok(Row { what: what.to_owned(), expected, seen, detail })
}

/// The last line that is not empty.
fn summary(output: &str) -> String {
    output.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default().to_owned()
}
