//! Connections that the host's kernel tracks: nobody inherits them (H3), nobody has them all (H4), and none of a VM's stands
//! where the host's or another VM's belongs (H6).

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::PacketSocket;
use lab::deadline::{Deadline, until};
use lab::stage::run;
use lab::wire::{Dhcp, Ipv4, Mac, carries, dhcp_kind as kind, dhcp_option as option, icmp, tcp, u16_at, udp};
use nix::sys::signal::{Signal, kill};
use std::os::fd::AsFd;

use crate::fixture::{
    Guest, INTERNET, PORT, PUBLIC, SECOND_NETWORK, SHORT, Vm, World, hello_over_tcp, is_leased, leases, mac,
    routed, xid,
};

/// How a VM gives up its address.
type End = fn(&mut Vm, Ipv4Addr) -> Result<()>;

const ENDS: [(&str, End); 4] = [
    ("its Softnet is stopped", |vm, _| {
        ensure!(vm.softnet.stop()?.success(), "{}", vm.softnet.log());
        Ok(())
    }),
    ("all its processes are killed", |vm, _| vm.kill_all()),
    ("its worker is killed", |vm, _| {
        kill(vm.worker()?, Signal::SIGKILL)?;
        vm.softnet.wait()?;
        Ok(())
    }),
    ("it gives its lease back", |vm, address| {
        let release = Dhcp { ciaddr: address, ..Dhcp::client(kind::RELEASE, xid(), vm.mac) }
            .with(option::SERVER, &vm.gateway.octets());
        vm.port.send(&release.packet(address, vm.gateway).frame(gateway_mac()?, vm.mac))?;
        ensure!(until(|| !is_leased(vm.mac, address)), "not given back:\n{}", leases());
        Ok(())
    }),
];

/// The MAC address of an interface of the calling thread's host.
fn mac_of(interface: &str) -> Result<Mac> {
    let line = run("ip", &["-oneline", "link", "show", interface])?;
    let text =
        line.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).context("no MAC address")?;
    let octets: Vec<u8> =
        text.split(':').map(|octet| u8::from_str_radix(octet, 16)).collect::<Result<_, _>>()?;
    Ok(Mac(octets.try_into().ok().context("not six octets")?))
}

fn gateway_mac() -> Result<Mac> {
    mac_of("softnet0")
}

pub fn h3_the_next_holder_inherits_no_connection() -> Result<()> {
    let world = World::build()?;
    let at = SocketAddrV4::new(INTERNET, 7000);
    let server = world.internet.run(|| TcpListener::bind(at))??;
    for (number, (name, end)) in (0..).step_by(2).zip(ENDS) {
        let mut first = Guest::start(&format!("first{number}"), mac(number), &[])?;
        let mut stream =
            first.host.run(|| TcpStream::connect_timeout(&at.into(), Duration::from_secs(5)))??;
        let (mut served, _) = server.accept()?;
        served.write_all(b"hello")?;
        stream.read_exact(&mut [0; 5])?;
        end(&mut first.vm, first.address).context(name)?;

        let second = Vm::start(mac(number + 1), &[])?;
        let given = second.lease(Some(first.address))?;
        ensure!(
            given == first.address,
            "{name}: the test shows nothing: {given} is not {}\n{}",
            first.address,
            leases()
        );
        second.gateway_mac(given)?;
        // The server goes on. Reset or silence is its due.
        served.set_read_timeout(Some(Duration::from_millis(500)))?;
        let _ = served.write_all(b"inherited");
        let _ = served.read(&mut [0; 1]);
        let host = UdpSocket::bind("0.0.0.0:0")?;
        host.send_to(b"barrier", (given, 9))?;
        let is_either = |frame: &[u8]| carries(frame, b"inherited") || carries(frame, b"barrier");
        let first_of_both = second.listen(given, Duration::from_secs(5), is_either)?;
        let first_of_both = first_of_both.context("not even the barrier arrives")?;
        ensure!(
            !carries(&first_of_both, b"inherited"),
            "{name}: the next holder gets the former one's connection"
        );
    }
    Ok(())
}

pub fn h3_the_next_holder_inherits_no_exposed_flow() -> Result<()> {
    let world = World::build()?;
    for (number, (name, end)) in (0..).step_by(2).zip(ENDS) {
        let (mut first, address) = Vm::leased(mac(number), &["--expose=5000:80/udp"])?;
        first.gateway_mac(address)?;
        let client = world.internet.run(|| UdpSocket::bind((INTERNET, 0)))??;
        let arrives = |vm: &Vm, port: u16, text: &[u8]| -> Result<bool> {
            let deadline = Deadline::default();
            while !deadline.left().is_zero() {
                client.send_to(text, (PUBLIC, port))?;
                if vm.listen(address, Duration::from_millis(100), |frame| carries(frame, text))?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        ensure!(
            arrives(&first, 5000, b"to the first")?,
            "{name}: the port leads nowhere: {}",
            first.softnet.log()
        );
        end(&mut first, address).context(name)?;

        let second = Vm::start(mac(number + 1), &["--expose=5001:80/udp"])?;
        let given = second.lease(Some(address))?;
        ensure!(given == address, "{name}: the test shows nothing: {given} is not {address}\n{}", leases());
        second.gateway_mac(given)?;
        ensure!(arrives(&second, 5001, b"to the second")?, "{name}: the port leads nowhere");
        client.send_to(b"inherited", (PUBLIC, 5000))?;
        client.send_to(b"barrier", (PUBLIC, 5001))?;
        let is_either = |frame: &[u8]| carries(frame, b"inherited") || carries(frame, b"barrier");
        let first_of_both = second.listen(given, Duration::from_secs(5), is_either)?;
        let first_of_both = first_of_both.context("not even the barrier arrives")?;
        ensure!(
            !carries(&first_of_both, b"inherited"),
            "{name}: the next holder gets the former one's exposed flow"
        );
    }
    Ok(())
}

/// How many connections the kernel tracks for this host.
fn tracked() -> Result<usize> {
    Ok(std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count")?.trim().parse()?)
}

/// One datagram each from so many ports.
fn fill(vm: &Vm, address: Ipv4Addr, gateway: Mac, flows: u16) -> Result<()> {
    let frame = |number: u16| {
        let (from, to) = ((address, 1024 + number), (INTERNET, 9));
        routed(vm, gateway, address, INTERNET, udp(from, to, b"one of many"))
    };
    let frames: Vec<Vec<u8>> = (0..flows).map(frame).collect();
    ensure!(
        vm.send_judged(&frames)? == u64::from(flows),
        "the filter let not all out: {:?}",
        vm.softnet.counters()
    );
    Ok(())
}

/// What a share of this size may hold: the kernel counts a flow before it is refused, and others have some.
const SLACK: usize = 512;

pub fn h4_one_vm_cannot_fill_the_connection_table() -> Result<()> {
    const SHARE: usize = 16_384;
    let world = World::build()?;
    let (vm, address) = Vm::leased(mac(1), &[])?;
    let other = Guest::start("other", mac(2), &[])?;
    fill(&vm, address, vm.gateway_mac(address)?, 24_000)?;
    let count = tracked()?;
    ensure!(count <= SHARE + SLACK, "{count} connections are tracked, the share is {SHARE}");
    other.reaches(INTERNET, PORT, "the internet")?;
    hello_over_tcp(&world.main, INTERNET, PORT).context("the host's own connection")?;
    // Most of a VM's own are there, or the limit is another one.
    ensure!(count > SHARE / 2, "only {count} connections are tracked");
    Ok(())
}

pub fn h4_the_share_is_a_flag() -> Result<()> {
    const SHARE: usize = 64;
    let _world = World::build()?;
    let (vm, address) = Vm::leased(mac(1), &["--connections=64"])?;
    let other = Guest::start("other", mac(2), &[])?;
    let before = tracked()?;
    fill(&vm, address, vm.gateway_mac(address)?, 2_000)?;
    let count = tracked()? - before;
    ensure!(count <= SHARE + 32, "{count} connections are tracked, the share is {SHARE}");
    other.reaches(INTERNET, PORT, "the internet")?;
    // Incoming ones are counted for it too, and other VMs' are not.
    fill(&other.vm, other.address, gateway_mac()?, 500)?;
    ensure!(tracked()? - before >= 500, "the share of one VM holds for another");
    Ok(())
}

/// An entry is forgotten within hours, though the guest never says that its connection ended.
pub fn h4_flows_end_within_hours() -> Result<()> {
    let world = World::build()?;
    let at = SocketAddrV4::new(INTERNET, 7000);
    let server = world.internet.run(|| TcpListener::bind(at))??;
    let guest = Guest::start("guest", mac(1), &[])?;
    let mut stream = guest.host.run(|| TcpStream::connect_timeout(&at.into(), Duration::from_secs(5)))??;
    let (mut served, _) = server.accept()?;
    served.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])?;
    // Not every kernel lists them in a file.
    if std::fs::metadata("/proc/net/nf_conntrack").is_err() {
        return Ok(());
    }
    let source = format!("src={} ", guest.address);
    let seconds = || -> Result<u64> {
        let list = std::fs::read_to_string("/proc/net/nf_conntrack")?;
        let flow = list.lines().find(|line| line.contains(&source) && line.contains("ESTABLISHED"));
        let flow = flow.with_context(|| format!("not tracked: {list}"))?;
        Ok(flow.split_ascii_whitespace().nth(4).context("no time")?.parse()?)
    };
    // While something is not acknowledged it is five minutes.
    ensure!(until(|| seconds().is_ok_and(|seconds| seconds > 300)), "{:?}", seconds());
    ensure!(seconds()? < 24 * 3600, "an entry lives for {} s", seconds()?);
    Ok(())
}

/// A port on which the host has a peer: WireGuard's.
const SERVICE: u16 = 51_820;

pub fn h6_a_vm_does_not_take_the_hosts_datagrams() -> Result<()> {
    let world = World::build()?;
    let (vm, address) = Vm::leased(mac(1), &[])?;
    let gateway = vm.gateway_mac(address)?;
    let host = UdpSocket::bind((PUBLIC, SERVICE))?;
    let peer = world.internet.run(|| UdpSocket::bind((INTERNET, SERVICE)))??;
    host.set_read_timeout(Some(Duration::from_secs(3)))?;
    peer.set_read_timeout(Some(Duration::from_secs(5)))?;
    // From the host's port, and from all around it.
    for port in [SERVICE, SERVICE - 1, SERVICE + 1, 1024, 33_000, 61_000] {
        let datagram = udp((address, port), (INTERNET, SERVICE), b"shadow");
        vm.port.send(&routed(&vm, gateway, address, INTERNET, datagram))?;
        let (_, from) = peer.recv_from(&mut [0; 64]).context("the VM's own datagram")?;
        peer.send_to(b"back to the VM", from)?;
        let back = vm.listen(address, Duration::from_secs(5), |frame| carries(frame, b"back to the VM"))?;
        ensure!(back.is_some(), "the VM gets no answer");
    }
    peer.send_to(b"for the host", (PUBLIC, SERVICE))?;
    let heard = host.recv_from(&mut [0; 64]);
    if heard.is_err() && vm.listen(address, SHORT, |frame| carries(frame, b"for the host"))?.is_some() {
        bail!("the VM got what was for the host");
    }
    heard.context("the host's service hears nothing")?;
    Ok(())
}

pub fn h6_a_vm_does_not_take_another_vms_datagrams() -> Result<()> {
    let world = World::build()?;
    let victim = Vm::start(mac(1), &[&["--expose=5000:80/udp"], SECOND_NETWORK].concat())?;
    let victims = victim.lease(None)?;
    victim.gateway_mac(victims)?;
    let (vm, address) = Vm::leased(mac(2), &[])?;
    let gateway = vm.gateway_mac(address)?;
    let peer = world.internet.run(|| UdpSocket::bind((INTERNET, 6000)))??;
    peer.set_read_timeout(Some(Duration::from_secs(5)))?;
    vm.port.send(&routed(
        &vm,
        gateway,
        address,
        INTERNET,
        udp((address, 5000), (INTERNET, 6000), b"shadow"),
    ))?;
    peer.recv_from(&mut [0; 64]).context("the VM's own datagram")?;
    let deadline = Deadline::after(Duration::from_secs(5));
    while !deadline.left().is_zero() {
        // The forward may not be there yet.
        peer.send_to(b"for the victim", (PUBLIC, 5000))?;
        if victim
            .listen(victims, Duration::from_millis(100), |frame| carries(frame, b"for the victim"))?
            .is_some()
        {
            return Ok(());
        }
    }
    let taken = vm.listen(address, SHORT, |frame| carries(frame, b"for the victim"))?.is_some();
    bail!("the victim's exposed port hears nothing; the other VM got it: {taken}");
}

/// A connection that the peer has not answered catches its own one the other way round.
pub fn h6_a_vm_does_not_take_connections_from_a_silent_peer() -> Result<()> {
    const PEERS: u16 = 7000;
    const HOSTS: u16 = 2375;
    let world = World::build()?;
    let _listener = TcpListener::bind((PUBLIC, HOSTS))?;
    let (vm, address) = Vm::leased(mac(1), &[])?;
    let gateway = vm.gateway_mac(address)?;
    let silence = format!(
        "add table ip silent; add chain ip silent in {{ type filter hook input priority 0; }};\
         add rule ip silent in tcp dport {PEERS} drop"
    );
    world.internet.run(|| run("nft", &[&silence]))??;
    let wire = world.internet.run(|| PacketSocket::open("eth0"))??;
    vm.port.send(&routed(
        &vm,
        gateway,
        address,
        INTERNET,
        tcp((address, HOSTS), (INTERNET, PEERS), 7, 0x02, b""),
    ))?;
    let next = |wanted: &dyn Fn(&[u8]) -> bool, patience| -> Result<bool> {
        let deadline = Deadline::after(patience);
        while deadline.readable(wire.as_fd()) {
            if wire.try_recv().is_ok_and(|frame| wanted(&frame)) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let syn = |frame: &[u8]| u16_at(frame, 36) == PEERS && frame.get(47) == Some(&0x02);
    ensure!(next(&syn, Duration::from_secs(5))?, "the VM's own SYN does not get out");
    let segment = Ipv4::new(INTERNET, PUBLIC, tcp((INTERNET, PEERS), (PUBLIC, HOSTS), 99, 0x02, b""));
    wire.send(&segment.frame(mac_of("uplink")?, world.internet.run(|| mac_of("eth0"))??))?;
    let accepted = |frame: &[u8]| {
        u16_at(frame, 34) == HOSTS && u16_at(frame, 36) == PEERS && frame.get(47) == Some(&0x12)
    };
    if !next(&accepted, Duration::from_secs(3))? {
        let is_it = |frame: &[u8]| u16_at(frame, 34) == PEERS && u16_at(frame, 36) == HOSTS;
        let taken = vm.listen(address, SHORT, is_it)?.is_some();
        bail!("the host's service is not reached; the VM got the connection: {taken}");
    }
    Ok(())
}

pub fn h6_source_ports_are_not_the_vms_choice() -> Result<()> {
    let world = World::build()?;
    let (vm, address) = Vm::leased(mac(1), &[])?;
    let gateway = vm.gateway_mac(address)?;
    let wire = world.internet.run(|| PacketSocket::open("eth0"))??;
    let flows = 100u16;
    let mut frames = Vec::new();
    for number in 0..flows {
        let (from, to) = ((address, 20_000 + number), (INTERNET, 9));
        frames.push(routed(&vm, gateway, address, INTERNET, udp(from, to, b"flow")));
        frames.push(routed(&vm, gateway, address, INTERNET, tcp(from, (INTERNET, PORT), 7, 0x02, b"")));
        let [high, low] = (20_000 + number).to_be_bytes();
        frames.push(routed(&vm, gateway, address, INTERNET, icmp(8, 0, &[high, low, 0, 1])));
    }
    let mut seen = [(17u8, 34usize), (6, 34), (1, 38)].map(|(protocol, at)| (protocol, at, Vec::new()));
    let mut look = |frame: Vec<u8>| {
        let is_new = match frame.get(23) {
            Some(17) => carries(&frame, b"flow"),
            Some(6) => frame.get(47) == Some(&0x02),
            Some(1) => frame.get(34) == Some(&8),
            _ => false,
        };
        if let Some((_, at, ports)) =
            seen.iter_mut().find(|(protocol, ..)| is_new && frame.get(23) == Some(protocol))
        {
            ports.push(u16_at(&frame, *at));
        }
        seen.iter().all(|(.., ports)| ports.len() >= usize::from(flows))
    };
    for frame in &frames {
        vm.send_judged(std::slice::from_ref(frame))?;
        // The sniffer's queue must not overflow.
        while Deadline::after(Duration::ZERO).readable(wire.as_fd()) {
            look(wire.try_recv()?);
        }
    }
    let deadline = Deadline::default();
    while deadline.readable(wire.as_fd()) && !look(wire.try_recv()?) {}
    for (protocol, _, ports) in &seen {
        ensure!(ports.len() >= usize::from(flows), "protocol {protocol}: only {} flows got out", ports.len());
        let kept = (20_000..).zip(ports).filter(|(own, seen)| own == *seen).count();
        ensure!(kept < 5, "protocol {protocol}: {kept} of {flows} flows keep the VM's port");
        let steps: BTreeSet<u16> = ports.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).collect();
        ensure!(
            steps.len() > usize::from(flows) / 2,
            "protocol {protocol}: the ports follow a pattern: {ports:?}"
        );
    }
    Ok(())
}
