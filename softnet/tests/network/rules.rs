//! What the rules in the kernel hold back, by hosts that stand for VMs without a filter: a taken-over worker is no better.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, until};
use lab::harness::Test;
use lab::net::{HOST_ON_LAN, Host, INTERNET, LAN, World};
use lab::stage::run;
use lab::wire::{self, Ipv4, Mac, Transport};
use lab::{PacketSocket, Service, hello};
use rustix::thread::{Uid, set_thread_res_uid};
use serde_json::Value;
use softnet::config::NetworkName;
use softnet::host::forwarder::{Forward, Op};
use softnet::host::network::{self, Member, Membership, NetworkConfig, down};
use softnet::netlink::conntrack;
use softnet_filter::NetType;

use super::{
    IMPATIENCE, PATIENCE, Vm, at, config, hello_from, join, lease, mac, member, unreachable_from, whole,
};

pub fn tests() -> Vec<Test> {
    vec![
        Test::new("rules::h2_a_vm_reaches_its_own_exposed_ports_and_no_others", exposed_ports).as_root(),
        Test::new("rules::h3_an_address_brings_no_connections", an_address_brings_no_connections).as_root(),
        Test::new("rules::h3_a_dead_vms_connections_go_at_the_next_start", dead_vms_connections).as_root(),
        Test::new("rules::h4_a_vm_has_a_share_of_connections", a_share_of_connections).as_root(),
        Test::new("rules::h4_questions_of_one_vm_leave_room_for_others", questions_leave_room).as_root(),
        Test::new("rules::h5_turning_forwarding_on_makes_no_router", no_router).as_root(),
        Test::new("rules::h6_a_vms_flows_catch_nothing_of_the_hosts", flows_catch_nothing).as_root(),
        Test::new("rules::h7_nothing_leaves_with_an_internal_source", nothing_leaves_untranslated).as_root(),
        Test::new("rules::h9_dhcp_from_the_host_is_roots_alone", dhcp_from_the_host).as_root(),
        Test::new("rules::h11_the_servers_answer_their_vms_only", servers_answer_their_vms).as_root(),
        Test::new("rules::are_current_until_the_host_changes", are_current).as_root(),
        Test::new("rules::what_was_added_is_what_a_replacement_makes", additions).as_root(),
    ]
}

/// Whether the host shows frames that a bridge carries to the rules for routed packets. A kernel may not know how to.
pub fn bridged_frames_are_filtered(on: bool) -> Result<()> {
    let switch = std::path::Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    if switch.exists() {
        std::fs::write(switch, if on { "1" } else { "0" })?;
    }
    Ok(())
}

const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

fn second() -> Result<NetworkConfig> {
    Ok(NetworkConfig { name: "second".parse()?, ..config() })
}

/// The source port, destination port, protocol and more of every flow that conntrack has with `address` as an end.
fn flows(address: Ipv4Addr) -> Result<Vec<conntrack::Flow>> {
    let flows = std::cell::RefCell::new(Vec::new());
    conntrack::forget(|flow| {
        flows.borrow_mut().extend(flow.has(address).then(|| flow.clone()));
        false
    })?;
    Ok(flows.into_inner())
}

fn exposed_ports() -> Result<()> {
    let world = World::build()?;
    let (mut one, first) = Vm::with_address(1, &config())?;
    let (mut two, _second) = Vm::with_address(2, &second()?)?;
    let (mut three, third) = Vm::with_address(3, &config())?;
    let _services = [
        Service::start(&one.host, first, 80, "the first VM")?,
        Service::start(&two.host, _second, 80, "the second VM")?,
        Service::start(&three.host, third, 80, "the third VM")?,
    ];
    one.expose("8080:80", first)?;
    one.expose(&format!("{HOST_ON_LAN}:8081:80"), first)?;
    two.expose("9090:80", _second)?;
    two.expose("9091:80/udp", _second)?;
    two.expose(&format!("{UPLINK}:9092:80"), _second)?;
    three.expose("7070:80", third)?;
    let gateway = |vm: &Vm| vm.membership.gateway().address;
    let (own, foreign) = (gateway(&one), gateway(&two));

    // Of another network and of its own, by whatever address of the host.
    bridged_frames_are_filtered(true)?;
    for host in [own, foreign, HOST_ON_LAN, UPLINK] {
        unreachable_from(&one.host, at(host, 9090))?;
        unreachable_from(&one.host, at(host, 7070))?;
        let answer = one.host.run(|| ask(host, 9091))??;
        ensure!(answer.is_none(), "UDP to {host} was answered: {answer:?}");
    }
    unreachable_from(&one.host, at(UPLINK, 9092))?;
    // Refused, not left to time out.
    let refused = one.host.run(|| TcpStream::connect_timeout(&at(own, 9090).into(), PATIENCE))?;
    ensure!(refused.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused), "{refused:?}");
    // Its own, by all of them, unless the host filters bridged frames: then translated ones go nowhere.
    bridged_frames_are_filtered(false)?;
    unreachable_from(&one.host, at(own, 9090))?;
    for host in [own, foreign, HOST_ON_LAN, UPLINK] {
        ensure!(hello_from(&one.host, at(host, 8080))?.contains("the first VM"), "{host}");
    }
    ensure!(hello_from(&one.host, at(HOST_ON_LAN, 8081))?.contains("the first VM"));
    unreachable_from(&one.host, at(own, 8081))?;
    // Everybody else as before.
    for port in [8080, 9090, 7070] {
        hello_from(&world.lan, at(HOST_ON_LAN, port))?;
        hello(at(Ipv4Addr::LOCALHOST, port), PATIENCE)?;
    }
    // A port that waits for an address leads nobody anywhere, and what is no VM's stays the host's.
    let _host = Service::start(&world.main, own, 6060, "the host")?;
    ensure!(hello_from(&one.host, at(own, 6060))?.contains("the host"));
    Ok(())
}

fn ask(host: Ipv4Addr, port: u16) -> Result<Option<String>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(IMPATIENCE))?;
    socket.send_to(b"?", at(host, port))?;
    let mut buffer = [0; 512];
    Ok(socket.recv(&mut buffer).ok().map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned()))
}

fn an_address_brings_no_connections() -> Result<()> {
    let world = World::build()?;
    let (mut one, address) = Vm::with_address(1, &config())?;
    let mut two = Vm::new(2, &config())?;
    let listener = world.internet.run(|| TcpListener::bind(at(INTERNET, 81)))??;
    let stream = one.host.run(|| TcpStream::connect_timeout(&at(INTERNET, 81).into(), PATIENCE))??;
    let (mut server, _) = listener.accept()?;
    let mut byte = [0];
    (&stream).write_all(b"1")?;
    server.read_exact(&mut byte)?;
    send_from_host(address)?;
    ensure!(flows(address)?.len() == 2, "{:?}", flows(address)?);

    one.membership.set_address(None)?;
    ensure!(flows(address)?.is_empty(), "given up: {:?}", flows(address)?);
    // Whatever comes between, its next holder starts with nothing.
    two.host.ip(&format!("addr add {address}/24 dev eth0"))?;
    two.host.ip(&format!("route add default via {}", two.membership.gateway().address))?;
    let wire = two.host.run(|| PacketSocket::open("eth0"))??;
    lease(&config().name, 2, address)?;
    send_from_host(address)?;
    send_from_host(LAN)?;
    ensure!(!flows(address)?.is_empty(), "the host itself made one");
    two.membership.set_address(Some(address))?;
    ensure!(flows(address)?.is_empty(), "bound: {:?}", flows(address)?);
    server.write_all(b"for the former holder")?;
    let deadline = Deadline::after(IMPATIENCE);
    while deadline.readable(std::os::fd::AsFd::as_fd(&wire)) {
        let frame = wire.try_recv()?;
        ensure!(
            !wire::carries(&frame, b"for the former holder"),
            "the next holder got the former one's data"
        );
    }
    ensure!(!flows(LAN)?.is_empty(), "a flow of somebody else was forgotten");
    Ok(())
}

/// A datagram of the host, which conntrack files.
fn send_from_host(to: Ipv4Addr) -> Result<()> {
    // Nobody listens there, so it may be refused.
    let _ = UdpSocket::bind("0.0.0.0:0")?.send_to(b"?", at(to, 22))?;
    Ok(())
}

fn dead_vms_connections() -> Result<()> {
    let _world = World::build()?;
    let (vm, address) = Vm::with_address(1, &config())?;
    hello_from(&vm.host, at(INTERNET, 80))?;
    // What a SIGKILL leaves: the files without their locks, and the flows.
    let files = ["ports/02:00:00:00:00:01".to_owned(), format!("leases/{address}")];
    let files: Vec<_> = files.iter().map(|file| format!("/run/softnet/softnet0/{file}")).collect();
    let texts: Vec<_> = files.iter().map(std::fs::read_to_string).collect::<std::io::Result<_>>()?;
    drop(vm.membership);
    for (file, text) in files.iter().zip(texts) {
        std::fs::write(file, text)?;
    }
    send_from_host(address)?;
    ensure!(!flows(address)?.is_empty());
    let _next = join(2)?;
    ensure!(flows(address)?.is_empty(), "{:?}", flows(address)?);

    // And a network that is taken down.
    send_from_host(address)?;
    ensure!(!flows(address)?.is_empty());
    down(&config().name, true)?;
    ensure!(flows(address)?.is_empty(), "{:?}", flows(address)?);
    Ok(())
}

/// Sends a datagram from each of `count` ports to a place where nobody listens.
fn many_flows(host: &Host, count: u16, first: u16) -> Result<()> {
    host.run(|| -> Result<()> {
        for number in 0..count {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            // A refusal that came back for an earlier one is no failure of this one.
            let _ = socket.send_to(b"?", at(INTERNET, first + number));
        }
        Ok(())
    })?
}

fn a_share_of_connections() -> Result<()> {
    let _world = World::build()?;
    let mut membership = Membership::join(&config(), &Member { connections: 64, ..member(1) })?;
    let host = Host::new("vm1")?;
    Host::main()?.ip("link add port1 type veth peer name eth0 netns vm1")?;
    host.ip(&format!("link set eth0 address {} up", mac(1)))?;
    membership.attach("port1", true)?;
    let address = Ipv4Addr::new(192, 168, 64, 101);
    host.ip(&format!("addr add {address}/24 dev eth0"))?;
    host.ip("route add default via 192.168.64.1")?;
    lease(&config().name, 1, address)?;
    membership.set_address(Some(address))?;
    let (other, other_address) = Vm::with_address(2, &config())?;

    many_flows(&host, 200, 1000)?;
    ensure!(flows(address)?.len() == 64, "{} flows", flows(address)?.len());
    // The count goes on when the rules are rendered anew.
    let third = join(3)?;
    many_flows(&host, 200, 2000)?;
    ensure!(flows(address)?.len() == 64, "{} flows after another start", flows(address)?.len());
    // What is begun towards it counts too, and so does what it begins with the host.
    let gateway = membership.gateway().address;
    ensure!(
        host.run(|| hello(at(gateway, 53), IMPATIENCE))?.is_err(),
        "a connection to the host beyond the share"
    );
    many_flows(&other.host, 100, 3000)?;
    ensure!(flows(other_address)?.len() >= 100, "another VM has a share of its own");
    ensure!(hello_from(&other.host, at(INTERNET, 80))?.contains("the internet"));
    drop(third);

    // The host's table is four times as large as the largest share.
    let text = run("nft", &["list", "table", "ip", "softnet_shares"])?;
    ensure!(text.contains("established : 7440"), "{text}");
    Ok(())
}

/// A question for the name of a private address, which dnsmasq answers itself.
fn question(number: u16) -> Vec<u8> {
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in ["7", "7", "168", "192", "in-addr", "arpa", ""] {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 12, 0, 1]);
    bytes
}

/// How many of `count` questions, sent at once, are answered.
fn answers(host: &Host, server: Ipv4Addr, count: u16) -> Result<usize> {
    host.run(|| -> Result<usize> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(at(server, 53))?;
        socket.set_read_timeout(Some(IMPATIENCE))?;
        let mut answered = 0;
        let mut buffer = [0; 512];
        for number in 0..count {
            socket.send(&question(number))?;
            // Half-way through, so that the answers do not fill the socket.
            socket.set_nonblocking(true)?;
            while socket.recv(&mut buffer).is_ok() {
                answered += 1;
            }
            socket.set_nonblocking(false)?;
        }
        while socket.recv(&mut buffer).is_ok() {
            answered += 1;
        }
        Ok(answered)
    })?
}

fn questions_leave_room() -> Result<()> {
    let (one, _) = Vm::with_address(1, &config())?;
    let (two, _) = Vm::with_address(2, &config())?;
    let gateway = one.membership.gateway().address;
    ensure!(answers(&one.host, gateway, 1)? == 1, "the resolver does not answer");
    let answered = answers(&one.host, gateway, 500)?;
    ensure!((40..=80).contains(&answered), "{answered} of 500 questions at once were let through");
    ensure!(answers(&two.host, gateway, 10)? == 10, "another VM's questions");

    let connect = |vm: &Vm| vm.host.run(|| TcpStream::connect_timeout(&at(gateway, 53).into(), PATIENCE));
    let held: Vec<TcpStream> = (0..10).filter_map(|_| connect(&one).ok()?.ok()).collect();
    ensure!(held.len() == 4, "{} TCP connections of one VM to the resolver", held.len());
    connect(&two)?.context("another VM's connection")?;
    drop(held);
    ensure!(until(|| connect(&one).is_ok_and(|stream| stream.is_ok())), "ended ones still count");
    Ok(())
}

fn no_router() -> Result<()> {
    let world = World::build()?;
    let subnet = "192.168.77.0/24";
    world.internet.ip(&format!("route add {subnet} via {UPLINK}"))?;
    let guest = Host::new("guest")?;
    world.main.bridge("old0", "10.44.0.1/24")?;
    unreachable_from(&world.internet, at(LAN, 80))?;

    let (vm, _) = Vm::with_address(1, &config())?;
    ensure!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() == "1");
    unreachable_from(&world.internet, at(LAN, 80))?;
    unreachable_from(&world.lan, at(INTERNET, 80))?;
    hello_from(&vm.host, at(INTERNET, 80))?;
    let shown = whole(&config().name)?.to_string();
    ensure!(shown.contains("turned on by Softnet for its networks only"), "{shown}");

    // What others set up for routing later works as if they had turned it on themselves.
    world.main.bridge("docker0", "10.55.0.1/24")?;
    world.main.ip("link add dock type veth peer name eth0 netns guest")?;
    world.main.ip("link set dock master docker0 up")?;
    guest.ip("addr add 10.55.0.2/24 dev eth0")?;
    guest.ip("link set eth0 up")?;
    guest.ip("route add default via 10.55.0.1")?;
    world.internet.ip(&format!("route add 10.55.0.0/24 via {UPLINK}"))?;
    let forwarded = || hello_from(&guest, at(INTERNET, 80)).is_ok();
    ensure!(until(forwarded), "the keeper did not notice it");
    unreachable_from(&world.internet, at(LAN, 80))?;
    drop(vm);

    // It relies on forwarding, so that stays when the network goes, and what keeps the host from being a router with it.
    let forwards = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    down(&config().name, false)?;
    ensure!(forwards()?.trim() == "1", "docker0 was cut off");
    hello_from(&guest, at(INTERNET, 80))?;
    unreachable_from(&world.internet, at(LAN, 80))?;
    world.main.ip("link del docker0")?;
    down(&config().name, false)?;
    ensure!(forwards()?.trim() == "0", "nobody needs forwarding any more");

    // Where forwarding was on before, nothing is held back.
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    network::ensure(&config())?;
    hello_from(&world.internet, at(LAN, 80))?;
    Ok(())
}

fn flows_catch_nothing() -> Result<()> {
    let world = World::build()?;
    let (mut one, first) = Vm::with_address(1, &config())?;
    let (mut two, other) = Vm::with_address(2, &config())?;
    let service = UdpSocket::bind(at(Ipv4Addr::UNSPECIFIED, 51820))?;
    let inside = UdpSocket::bind(at(Ipv4Addr::UNSPECIFIED, 12345))?;
    service.set_read_timeout(Some(PATIENCE))?;
    network::ensure(&config())?;

    // A peer of the host's service, to whom a VM sends from the service's port, before and after the peer did.
    let peer = world.internet.run(|| UdpSocket::bind(at(INTERNET, 51820)))??;
    one.host.run(|| UdpSocket::bind(at(first, 51820))?.send_to(b"?", at(INTERNET, 51820)))??;
    peer.send_to(b"for the host", at(UPLINK, 51820))?;
    let mut buffer = [0; 64];
    let length = service.recv(&mut buffer).context("the VM's flow caught what was for the host")?;
    ensure!(&buffer[..length] == b"for the host");

    many_flows(&one.host, 2000, 1000)?;
    one.host.run(|| run("busybox", &["ping", "-c1", "-W1", &INTERNET.to_string()]))??;
    let ports: Vec<u16> = flows(first)?.iter().map(|flow| flow.reply.destination_port).collect();
    ensure!(flows(first)?.iter().any(|flow| flow.original.protocol == 1), "the echo was not tracked");
    ensure!(ports.len() > 1900, "{} flows", ports.len());
    let outside: Vec<&u16> =
        ports.iter().filter(|&&port| !(10240..=29999).contains(&port) || port == 12345).collect();
    ensure!(outside.is_empty(), "source ports that are not the VMs': {outside:?}");
    let distinct: BTreeSet<&u16> = ports.iter().collect();
    ensure!(distinct.len() > ports.len() / 2, "the ports are not random");
    ensure!(ports.windows(2).filter(|two| two[1] == two[0] + 1).count() < 50, "the ports count up");
    drop(inside);

    // Ports that become exposed are free of earlier flows, also towards a peer that is silent. Of 2,000 flows one in ten would
    // meet a given port by chance, so there are many.
    let _service = Service::start(&two.host, other, 80, "the second VM")?;
    let udp = flows(first)?.into_iter().map(|flow| flow.reply).filter(|reply| reply.protocol == 17);
    let ports: BTreeSet<u16> = udp.map(|reply| reply.destination_port).take(50).collect();
    let forward =
        |port: &u16| Ok(Op::Install(Forward { expose: format!("{port}:80/udp").parse()?, to: other }));
    two.membership.apply(&ports.iter().map(forward).collect::<Result<Vec<_>>>()?)?;
    let caught = || -> Result<usize> {
        let udp = flows(first)?.into_iter().map(|flow| flow.reply).filter(|reply| reply.protocol == 17);
        Ok(udp.filter(|reply| ports.contains(&reply.destination_port)).count())
    };
    ensure!(ports.len() > 40 && caught()? == 0, "flows of another VM catch what is for the exposed ports");
    many_flows(&one.host, 2000, 4000)?;
    ensure!(caught()? == 0, "new flows took exposed ports: {}", caught()?);
    one.membership.set_address(None)?;
    Ok(())
}

/// Sends from the VM's interface what it would not send itself.
fn send_raw(vm: &Vm, from: Ipv4Addr, to: Ipv4Addr, transport: Transport) -> Result<()> {
    let gateway = Mac(vm.membership.gateway().mac.octets());
    let [.., last] = from.octets();
    let own = Mac(mac(last - 100).octets());
    let wire = vm.host.run(|| PacketSocket::open("eth0"))??;
    Ok(wire.send(&Ipv4::new(from, to, transport).frame(gateway, own))?)
}

fn nothing_leaves_untranslated() -> Result<()> {
    let world = World::build()?;
    let (vm, address) = Vm::with_address(1, &config())?;
    let wire = world.internet.run(|| PacketSocket::open("eth0"))??;
    let tcp = |flags: u8| wire::tcp((address, 4000), (INTERNET, 80), 7, flags, b"");
    // SYN+FIN, nothing, a stray RST, a stray FIN+ACK.
    for flags in [0x03, 0x00, 0x04, 0x11] {
        send_raw(&vm, address, INTERNET, tcp(flags))?;
    }
    let (_, mut wrong) = wire::udp((address, 4000), (INTERNET, 80), b"a wrong checksum");
    wrong[6] ^= 0x55;
    send_raw(&vm, address, INTERNET, (17, wrong))?;
    let quote = Ipv4::new(INTERNET, address, wire::udp((INTERNET, 1), (address, 2), b"unmatched")).bytes();
    let mut rest = vec![0; 4];
    rest.extend(quote);
    send_raw(&vm, address, INTERNET, wire::icmp(3, 3, &rest))?;
    // A packet that a host process sends from the gateway's address is none of the VMs', and leaves translated or not at all.
    let gateway = vm.membership.gateway().address;
    let _ = UdpSocket::bind(at(gateway, 0))?.send_to(b"from the gateway", at(INTERNET, 80));
    // When this has arrived, so has everything before.
    hello_from(&vm.host, at(INTERNET, 80))?;
    let mut seen = 0;
    while let Ok(frame) = wire.try_recv() {
        if wire::ether_type(&frame) == wire::IPV4 {
            let source = wire::address_at(&frame, 26);
            ensure!(source == UPLINK, "{source} left the host: {frame:02x?}");
            seen += 1;
        }
    }
    ensure!(seen > 3, "the sniffer saw {seen} packets");
    Ok(())
}

fn dhcp_from_the_host() -> Result<()> {
    let (plan, _) = network::ensure(&config())?;
    let nobody = Uid::from_raw(65534);
    let attempt = |to: Ipv4Addr, user: Option<Uid>, bind: bool| -> std::io::Result<()> {
        std::thread::scope(|scope| {
            let attempt = scope.spawn(|| {
                if let Some(user) = user {
                    set_thread_res_uid(user, user, user)?;
                }
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_broadcast(true)?;
                if bind {
                    nix::sys::socket::setsockopt(
                        &socket,
                        nix::sys::socket::sockopt::BindToDevice,
                        &"softnet0".into(),
                    )?;
                }
                socket.send_to(b"no message", at(to, 67)).map(drop)
            });
            attempt.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    };
    let (gateway, broadcast) = (plan.gateway().addr(), plan.subnet.broadcast());
    for (to, bind) in [(gateway, false), (broadcast, false), (broadcast, true), (Ipv4Addr::BROADCAST, true)] {
        let user = attempt(to, Some(nobody), bind);
        ensure!(
            user.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied),
            "to {to} as a user: {user:?}"
        );
        attempt(to, None, bind).with_context(|| format!("to {to} as root"))?;
    }
    Ok(())
}

fn servers_answer_their_vms() -> Result<()> {
    let world = World::build()?;
    let (one, _) = Vm::with_address(1, &config())?;
    let (two, _) = Vm::with_address(2, &second()?)?;
    let (own, foreign) = (one.membership.gateway().address, two.membership.gateway().address);
    world.lan.ip(&format!("route add {own} via {HOST_ON_LAN}"))?;
    for host in [&world.lan, &two.host] {
        ensure!(answers(host, own, 2)? == 0, "a stranger's question was answered");
        ensure!(host.run(|| TcpStream::connect_timeout(&at(own, 53).into(), IMPATIENCE))?.is_err());
    }
    ensure!(answers(&one.host, own, 2)? == 2 && answers(&two.host, foreign, 2)? == 2);
    ensure!(answers(&world.main, own, 2)? == 2, "the host itself");
    Ok(())
}

fn are_current() -> Result<()> {
    network::ensure(&config())?;
    ensure!(network::rules_are_current()?);
    let service = TcpListener::bind(at(Ipv4Addr::LOCALHOST, 20202))?;
    ensure!(!network::rules_are_current()?, "a service took a port of the VMs' range");
    network::ensure(&config())?;
    ensure!(network::rules_are_current()?);
    drop(service);
    let host =
        NetworkConfig { name: NetworkName::default_for(NetType::Host), net_type: NetType::Host, ..config() };
    network::ensure(&host)?;
    ensure!(network::rules_are_current()?);
    down(&host.name, false)?;
    down(&config().name, false)?;
    let tables = Command::new("nft").args(["list", "tables"]).output()?;
    ensure!(tables.stdout.is_empty(), "left behind: {}", String::from_utf8_lossy(&tables.stdout));
    Ok(())
}

fn additions() -> Result<()> {
    let (mut one, first) = Vm::with_address(1, &config())?;
    // What the kernel waits for when something is removed, an addition leaves alone.
    let table_of_one = handles("ip softnet")?;
    let (mut two, second) = Vm::with_address(2, &config())?;
    two.expose("9090:80", second)?;
    one.expose(&format!("{}:53:53/udp", one.membership.gateway().address), first)?;
    ensure!(handles("ip softnet")? == table_of_one, "the table was made again");
    let added = ruleset()?;
    let file = run("find", &["/run/softnet", "-name", "rules.nft"])?;
    std::fs::remove_file(file.trim())?;
    network::ensure(&config())?;
    ensure!(handles("ip softnet")? != table_of_one, "nothing was replaced, so nothing was compared");
    let replaced = ruleset()?;
    ensure!(added == replaced, "{added:#?} is not {replaced:#?}");
    Ok(())
}

/// The rules of a table with the numbers that the kernel gave to them, without elements of sets.
fn handles(table: &str) -> Result<Vec<String>> {
    let mut arguments = vec!["--handle", "--terse", "list", "table"];
    arguments.extend(table.split(' '));
    Ok(run("nft", &arguments)?.lines().map(str::to_owned).collect())
}

/// All tables by family and name, each with its chains, rules and sets in their order. The kernel lists the elements of sets
/// in any order.
fn ruleset() -> Result<BTreeMap<String, Vec<Value>>> {
    let mut text = String::new();
    let rests = until(|| {
        text = run("nft", &["--json", "--stateless", "list", "ruleset"]).unwrap_or_default();
        // The keeper makes such a table for a moment, when it looks at the host's filters.
        !text.is_empty() && !text.contains("softnet-tap-")
    });
    ensure!(rests, "{text}");
    let mut tables = BTreeMap::<String, Vec<Value>>::new();
    let mut listed: Value = serde_json::from_str(&text)?;
    for object in listed["nftables"].as_array_mut().context("no list")? {
        let Some((kind, mut value)) = object.as_object().and_then(|object| {
            let (kind, value) = object.iter().next()?;
            Some((kind.clone(), value.clone()))
        }) else {
            continue;
        };
        let name = if kind == "table" { &value["name"] } else { &value["table"] };
        let table = format!("{} {name}", value["family"]);
        normalise(&mut value);
        tables.entry(table).or_default().push(value);
    }
    Ok(tables)
}

/// Without the kernel's numbers, and with the elements of sets in an order.
fn normalise(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(normalise),
        Value::Object(members) => {
            members.remove("handle");
            for (name, member) in members {
                normalise(member);
                if let (true, Value::Array(elements)) = (["set", "elem"].contains(&name.as_str()), member) {
                    elements.sort_by_key(Value::to_string);
                }
            }
        }
        _ => {}
    }
}
