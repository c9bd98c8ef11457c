//! The kernel's guard at the TAPs (rule H10).

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use lab::PacketSocket;
use lab::deadline::Deadline;
use lab::harness::Test;
use lab::net::{Host, INTERNET};
use lab::stage::run;
use lab::wire::{self, Arp, Ipv4, Mac};
use softnet::config::servers::Servers;
use softnet::host::network;
use softnet::host::{bridge, stations};
use softnet::netlink::Netlink;

use super::rules::bridged_frames_are_filtered;
use super::{IMPATIENCE, Vm, config, join, lease, mac};

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("rules::h10_a_tap_speaks_in_its_vms_name_only", in_its_own_name).as_root(),
        Test::new("rules::h10_a_tap_of_another_bridge_is_guarded_too", another_bridge).as_root(),
    ]
}

fn in_its_own_name() -> Result<()> {
    let (mut one, first) = Vm::with_address(1, &config())?;
    let (two, other) = Vm::with_address(2, &config())?;
    let gateway = one.membership.gateway().clone();
    let (own, router) = (Mac(mac(1).octets()), Mac(gateway.mac.octets()));
    let wire = one.host.run(|| PacketSocket::open("eth0"))??;
    let host = PacketSocket::open("softnet0")?;
    two.host.run(|| run("busybox", &["ping", "-c1", "-W5", &gateway.address.to_string()]))??;

    let datagram = |from: Ipv4Addr, ports: (u16, u16), text: &str| {
        Ipv4::new(
            from,
            gateway.address,
            wire::udp((from, ports.0), (gateway.address, ports.1), text.as_bytes()),
        )
    };
    // As far as the guard reads a DHCP message: its first four bytes, `giaddr` and `chaddr`.
    let dhcp_with = |header: [u8; 4], relay: Ipv4Addr, from: Ipv4Addr, to: Ipv4Addr, text: &str| {
        let message = [&header[..], &[0; 20], &relay.octets(), &own.0, text.as_bytes()].concat();
        Ipv4::new(from, to, wire::udp((from, 68), (to, 67), &message))
    };
    let dhcp = |from, to, text: &str| dhcp_with([1, 1, 6, 0], Ipv4Addr::UNSPECIFIED, from, to, text);
    let arp =
        |mac: Mac, sender: Ipv4Addr| Arp { sender_mac: mac, ..Arp::request(own, sender, gateway.address) };
    let stolen = Mac(mac(2).octets());
    let ill_formed = |header: [u8; 4], relay: Ipv4Addr| {
        dhcp_with(header, relay, first, gateway.address, "forged").frame(router, own)
    };
    // B6: to the gateway's port 4011 goes DHCP like that to 67.
    let to_port = |mut packet: Ipv4, port: u16| {
        packet.payload[2..4].copy_from_slice(&port.to_be_bytes());
        packet.with_checksum().frame(router, own)
    };
    let boot = |from: Ipv4Addr, chaddr: Mac, text: &str| {
        let mut packet = dhcp(from, gateway.address, text);
        packet.payload[8 + 28..8 + 34].copy_from_slice(&chaddr.0);
        to_port(packet, 4011)
    };
    let no_relay = Ipv4Addr::UNSPECIFIED;
    let forged: Vec<(&str, Vec<u8>)> = vec![
        ("a DHCP reply", ill_formed([2, 1, 6, 0], no_relay)),
        ("DHCP of other hardware", ill_formed([1, 6, 6, 0], no_relay)),
        ("DHCP with a shorter hardware address", ill_formed([1, 1, 5, 0], no_relay)),
        ("DHCP with a longer hardware address", ill_formed([1, 1, 16, 0], no_relay)),
        ("DHCP that was relayed", ill_formed([1, 1, 6, 1], no_relay)),
        ("DHCP of a relay agent", ill_formed([1, 1, 6, 0], first)),
        ("a boot request of another MAC", boot(first, stolen, "forged")),
        ("a boot request from another address", boot(other, own, "forged")),
        ("a boot request from another port", to_port(datagram(first, (40_000, 9), "forged"), 4011)),
        ("another MAC", datagram(first, (1, 9), "forged").frame(router, stolen)),
        ("another address", datagram(other, (1, 9), "forged").frame(router, own)),
        ("no address", datagram(Ipv4Addr::UNSPECIFIED, (1, 9), "forged").frame(router, own)),
        ("the gateway's address", datagram(gateway.address, (1, 9), "forged").frame(router, own)),
        ("ARP of another address", arp(own, other).frame()),
        ("ARP of the gateway", Arp::reply(own, gateway.address, router, gateway.address).frame()),
        ("ARP of another MAC", {
            let mut frame = arp(stolen, first).frame();
            frame[6..12].copy_from_slice(&own.0);
            frame
        }),
        ("IPv6", wire::ethernet(router, own, 0x86dd, b"forged forged forged")),
        ("another EtherType", wire::ethernet(router, own, 0x88b5, b"forged forged forged")),
    ];
    let heard = |frame: &[u8]| -> Result<bool> {
        while host.try_recv().is_ok() {}
        wire.send(frame)?;
        let deadline = Deadline::after(IMPATIENCE);
        while deadline.readable(std::os::fd::AsFd::as_fd(&host)) {
            let heard = host.try_recv()?;
            if heard.starts_with(frame) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    for (what, frame) in &forged {
        ensure!(!heard(frame)?, "{what} got to the host");
        // The kernel may forget an entry meanwhile, if other namespaces have many.
        let neighbour = run("ip", &["neigh", "show", &other.to_string(), "dev", "softnet0"])?;
        ensure!(!neighbour.contains(&own.to_string()), "{what} turned the neighbour entry: {neighbour}");
    }

    // What the filter lets through passes. Where bridged frames are filtered, the host keeps fragments until it has all.
    bridged_frames_are_filtered(false)?;
    let probe = Arp { sender: Ipv4Addr::UNSPECIFIED, ..arp(own, first) };
    let fragment = Ipv4 { fragment: 0x2000 | 100, ..datagram(first, (1, 9), "a later fragment") };
    let discover = dhcp(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, "a discover");
    let own_frames = vec![
        ("its own datagram", datagram(first, (1, 9), "own").frame(router, own)),
        ("its own question", arp(own, first).frame()),
        ("a probe", probe.frame()),
        ("a later fragment", fragment.frame(router, own)),
        ("a renewal", dhcp(first, gateway.address, "renewal").frame(router, own)),
        ("a discover", discover.frame(Mac::BROADCAST, own)),
        ("a boot request", boot(first, own, "boot")),
        ("a datagram to that port of somebody else", {
            let packet = Ipv4::new(first, INTERNET, wire::udp((first, 40_000), (INTERNET, 4011), b"own"));
            packet.frame(router, own)
        }),
    ];
    for (what, frame) in &own_frames {
        ensure!(heard(frame)?, "{what} did not get to the host");
    }

    // An address that ended is good for asking for it again and for nothing else. If another VM has it by then, the server says so.
    one.membership.set_address(None)?;
    let renewal = dhcp(first, gateway.address, "renewal").frame(router, own);
    ensure!(!heard(&datagram(first, (1, 9), "own").frame(router, own))?);
    ensure!(heard(&renewal)?, "a renewal after the lease ended");
    ensure!(heard(&arp(own, first).frame())?, "a question for the gateway after the lease ended");
    let mut three = join(3)?;
    lease(&config().name, 3, first)?;
    three.set_address(Some(first))?;
    ensure!(heard(&renewal)?, "a renewal of an address that another VM has, which the server refuses");
    ensure!(
        !heard(&arp(own, first).frame())?,
        "a question for the gateway under an address that another VM has"
    );
    ensure!(!heard(&datagram(first, (1, 9), "own").frame(router, own))?);
    Ok(())
}

fn another_bridge() -> Result<()> {
    let main = Host::main()?;
    main.bridge("br9", "10.99.0.1/24")?;
    let vm = Host::new("vm9")?;
    main.ip("link add port9 type veth peer name eth0 netns vm9")?;
    main.ip("link set port9 master br9 up")?;
    vm.ip(&format!("link set eth0 address {} up", mac(9)))?;
    vm.ip("addr add 10.99.0.9/24 dev eth0")?;
    let gateway = Ipv4Addr::new(10, 99, 0, 1);
    let mut netlink = Netlink::open()?;
    let bridge = bridge::find(&mut netlink, "br9")?;
    let bridge = stations::Plan::new(&mut netlink, &bridge, &Servers::default())?;
    network::install_for_tap("gone9", mac(8), &bridge)?;
    network::install_for_tap("port9", mac(9), &bridge)?;
    let tables = run("nft", &["list", "tables"])?;
    ensure!(tables.contains("softnet-tap-port9") && !tables.contains("gone9"), "{tables}");
    let ping = || vm.run(|| run("busybox", &["ping", "-c1", "-W1", "10.99.0.1"]));
    ping()??;
    let wire = vm.run(|| PacketSocket::open("eth0"))??;
    let host = PacketSocket::open("br9")?;
    let own = Mac(mac(9).octets());
    wire.send(&Arp::reply(own, gateway, Mac::BROADCAST, gateway).frame())?;
    wire.send(&wire::ethernet(Mac::BROADCAST, Mac(mac(7).octets()), wire::IPV4, b"another MAC"))?;
    ping()??;
    while let Ok(frame) = host.try_recv() {
        ensure!(
            wire::source(&frame) == own
                && !frame.ends_with(&Arp::reply(own, gateway, Mac::BROADCAST, gateway).bytes())
        );
    }
    Ok(())
}
