//! What a VM reaches of the host and of others by the host's addresses (H1, H2), what is forwarded (H5), what leaves the
//! uplink (H7), and whom the resolver answers (H11).

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::until;
use lab::wire::{IPV4, Ipv4, address_at, carries, checksum, ether_type, icmp, tcp, udp};
use lab::{PacketSocket, Service};

use crate::fixture::{
    BRIDGE_GATEWAY, Bridge, GATEWAY, Guest, HOST_ON_MANAGEMENT, INTERNET, MANAGEMENT, PORT, PUBLIC,
    SECOND_GATEWAY, SECOND_NETWORK, SHORT, SOFTNET, Vm, World, hello_over_tcp, hello_over_udp, host_services,
    mac, routed,
};
use crate::names;

/// A port of the host: Docker's.
const HOST_PORT: u16 = 2375;

pub fn h1_block_host_closes_every_address_of_the_host() -> Result<()> {
    let world = World::build()?;
    let guest = Guest::start("guest", mac(1), &["--block=@host"])?;
    let _services = host_services(&world, &[GATEWAY, PUBLIC, HOST_ON_MANAGEMENT], HOST_PORT)?;
    guest.reaches(INTERNET, PORT, "the internet")?;
    guest.does_not_reach(&[(GATEWAY, HOST_PORT), (PUBLIC, HOST_PORT), (HOST_ON_MANAGEMENT, HOST_PORT)])?;
    // An address that comes later.
    let later = Ipv4Addr::new(9, 9, 9, 77);
    world.main.ip(&format!("addr add {later}/24 dev uplink"))?;
    let on_later = host_services(&world, &[later], HOST_PORT)?;
    ensure!(until(|| guest.hello(later, HOST_PORT).is_err()), "a new address of the host stays open");
    guest.does_not_reach(&[(later, HOST_PORT)])?;
    drop(on_later);
    // And goes: it is somebody else's in the internet then.
    world.main.ip(&format!("addr del {later}/24 dev uplink"))?;
    world.internet.ip(&format!("addr add {later}/32 dev lo"))?;
    let _elsewhere = Service::start(&world.internet, later, HOST_PORT, "somebody else")?;
    world.main.ip(&format!("route replace {later}/32 via {}", crate::fixture::NEIGHBOUR))?;
    ensure!(
        until(|| guest.hello(later, HOST_PORT).is_ok_and(|said| said.contains("somebody else"))),
        "an address that the host has no more stays closed"
    );
    Ok(())
}

pub fn h1_the_host_is_as_open_as_the_gateway() -> Result<()> {
    let world = World::build()?;
    let guest = Guest::start("guest", mac(1), &[])?;
    let _services = host_services(&world, &[GATEWAY, PUBLIC, HOST_ON_MANAGEMENT], HOST_PORT)?;
    guest.reaches(PUBLIC, HOST_PORT, "the host")?;
    guest.reaches(GATEWAY, HOST_PORT, "the host")?;
    guest.does_not_reach(&[(HOST_ON_MANAGEMENT, HOST_PORT), (MANAGEMENT, PORT)])?;

    let vm = Vm::start(mac(2), &[])?;
    let address = vm.lease(None)?;
    let gateway = vm.gateway_mac(address)?;
    for protocol in [4, 41, 47, 50, 51, 89, 112, 132] {
        let tunnel = |to| vec![routed(&vm, gateway, address, to, (protocol, vec![0; 24]))];
        ensure!(vm.send_judged(&tunnel(INTERNET))? == 1, "protocol {protocol} goes into the world");
        ensure!(vm.send_judged(&tunnel(PUBLIC))? == 0, "protocol {protocol} goes to the host");
    }
    let one = Guest::start("one", mac(3), &["--block=9.9.9.2/32"])?;
    one.does_not_reach(&[(PUBLIC, HOST_PORT)])?;
    one.reaches(GATEWAY, HOST_PORT, "the host")?;
    Ok(())
}

pub fn h1_block_host_holds_behind_bridge_too() -> Result<()> {
    let world = World::build()?;
    let _bridge = Bridge::build(&world)?;
    let _services = host_services(&world, &[BRIDGE_GATEWAY, PUBLIC], HOST_PORT)?;
    let guest = Guest::start("guest", mac(1), &["--bridge=br1", "--block=@host"])?;
    guest.reaches(INTERNET, PORT, "the internet")?;
    guest.does_not_reach(&[(BRIDGE_GATEWAY, HOST_PORT), (PUBLIC, HOST_PORT)])
}

pub fn h1_block_host_holds_with_passt_too() -> Result<()> {
    let world = World::build()?;
    let _services = host_services(&world, &[PUBLIC], HOST_PORT)?;
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", SOFTNET, "--block=@host"]);
    let guest = Guest::of("guest", Vm::spawn(mac(1), command)?)?;
    ensure!(guest.vm.ready["mode"] == "passt", "{}", guest.vm.ready);
    guest.reaches(INTERNET, PORT, "the internet")?;
    guest.does_not_reach(&[(PUBLIC, HOST_PORT), (GATEWAY, HOST_PORT)])
}

/// Ports of the host that lead to a VM.
const EXPOSED: u16 = 5000;
const CLOSED: u16 = 5001;

pub fn h2_no_vm_reaches_anothers_exposed_port() -> Result<()> {
    let world = World::build()?;
    let _bridge = Bridge::build(&world)?;
    let expose = format!("--expose={EXPOSED}:{PORT},{EXPOSED}:{PORT}/udp");
    let victim = Guest::start("victim", mac(1), &[&[expose.as_str()], SECOND_NETWORK].concat())?;
    let service = Service::start(&victim.host, victim.address, PORT, "the victim")?;
    let from_outside = || hello_over_tcp(&world.internet, PUBLIC, EXPOSED).is_ok();
    ensure!(until(from_outside), "the port does not lead to the VM: {}", victim.vm.softnet.log());

    let everywhere =
        [GATEWAY, SECOND_GATEWAY, PUBLIC, HOST_ON_MANAGEMENT, BRIDGE_GATEWAY].map(|to| (to, EXPOSED));
    let attackers: [(&str, &[&str]); 5] = [
        ("plain", &[]),
        ("blocked", &["--block=@host"]),
        ("opened", &["--allow=192.168.65.0/24,10.77.0.0/24"]),
        ("neighbour", SECOND_NETWORK),
        ("bridged", &["--bridge=br1"]),
    ];
    for (number, (name, arguments)) in (2..).zip(attackers) {
        let mut attacker = Guest::start(name, mac(number), arguments)?;
        attacker.reaches(INTERNET, PORT, "the internet").context(name)?;
        let before = service.seen().len();
        attacker.does_not_reach(&everywhere).context(name)?;
        ensure!(service.seen().len() == before, "{name}: the victim was reached by {:?}", service.seen());
        ensure!(attacker.vm.softnet.stop()?.success());
    }
    // Its own. Where the host filters bridged frames as if they were routed, the kernel bends the translated frame on the
    // bridge itself and an isolated port never gets it back; docs/rules.md says so.
    let _ = std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
    victim.reaches(SECOND_GATEWAY, EXPOSED, "the victim")?;
    victim.reaches(PUBLIC, EXPOSED, "the victim")?;
    ensure!(from_outside(), "the port leads nowhere any more");
    Ok(())
}

/// P4: what `--expose` publishes answers the world and the host itself, whatever the VM may not reach; and the VM reaches
/// nothing by it.
pub fn p4_a_published_port_answers_under_default_deny() -> Result<()> {
    let world = World::build()?;
    // Behind the last one nobody listens.
    let expose = format!("--expose={EXPOSED}:{PORT},{EXPOSED}:{PORT}/udp,{CLOSED}:81");
    let mut host = Vec::new();
    let policies: [&[&str]; 4] = [
        &["--block=@host"],
        &["--block=0.0.0.0/0"],
        &["--block=0.0.0.0/0,@internet,@host"],
        &["--block", "0.0.0.0/0,out 1.1.1.1"],
    ];
    for (number, policy) in (1..).zip(policies) {
        let name = format!("guest{number}");
        let mut guest = Guest::start(&name, mac(number), &[policy, &[&expose]].concat())?;
        let _service = Service::start(&guest.host, guest.address, PORT, "the guest")?;
        if host.is_empty() {
            host = host_services(&world, &[GATEWAY], PORT)?;
        }
        for (from, to) in [(&world.internet, PUBLIC), (&world.main, PUBLIC), (&world.main, GATEWAY)] {
            let answers = || hello_over_tcp(from, to, EXPOSED).is_ok_and(|said| said.contains("the guest"));
            ensure!(until(answers), "{policy:?}: {to} is silent: {}", guest.vm.softnet.log());
        }
        let answers =
            || hello_over_udp(&world.internet, PUBLIC, EXPOSED).is_ok_and(|said| said.contains("the guest"));
        ensure!(until(answers), "{policy:?}: UDP is silent: {}", guest.vm.softnet.log());
        guest.does_not_reach(&[(GATEWAY, PORT)]).with_context(|| format!("{policy:?}"))?;
        if policy.len() > 1 || policy[0].contains("0.0.0.0/0") {
            guest.does_not_reach(&[(INTERNET, PORT)]).with_context(|| format!("{policy:?}"))?;
        }
        let refused = || {
            [(&world.internet, PUBLIC), (&world.main, GATEWAY)].into_iter().all(|(from, to)| {
                hello_over_tcp(from, to, CLOSED)
                    .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
            })
        };
        ensure!(until(refused), "{policy:?}: a closed port hangs");
        ensure!(guest.vm.softnet.stop()?.success());
    }
    Ok(())
}

/// The monitor of an existing TAP has no privilege, and learns of the exposed ports whatever umask a start had.
pub fn h2_no_umask_hides_the_exposed_ports() -> Result<()> {
    let world = World::build()?;
    let _bridge = Bridge::build(&world)?;
    for (number, umask) in (1..).zip(["077", "027", "777"]) {
        let mut command = Command::new("sh");
        let script = format!("umask {umask}; exec \"$@\"");
        command.args(["-c", &script, "sh", SOFTNET, &format!("--expose={EXPOSED}:{PORT}")]);
        let mut victim = Guest::of(&format!("victim{number}"), Vm::spawn(mac(number), command)?)?;
        let _service = Service::start(&victim.host, victim.address, PORT, "the victim")?;
        ensure!(until(|| hello_over_tcp(&world.internet, PUBLIC, EXPOSED).is_ok()), "not exposed");
        let tap = format!("tap{number}");
        world.main.tap(&tap, "br1")?;
        let attacker =
            Guest::start(&format!("attacker{number}"), mac(number + 10), &[&*format!("--tap={tap}")])?;
        attacker.does_not_reach(&[(BRIDGE_GATEWAY, EXPOSED), (PUBLIC, EXPOSED)]).context(umask)?;
        ensure!(victim.vm.softnet.stop()?.success());
    }
    Ok(())
}

pub fn h5_forwarding_makes_the_host_no_router() -> Result<()> {
    let world = World::build()?;
    world.internet.ip(&format!("route add 10.77.0.0/24 via {PUBLIC}"))?;
    let into_management = || hello_over_tcp(&world.internet, MANAGEMENT, PORT).is_ok();
    ensure!(!into_management(), "the lab's host is a router");
    let guest = Guest::start("guest", mac(1), &["--expose=5000:80"])?;
    guest.reaches(INTERNET, PORT, "the internet")?;
    ensure!(!into_management(), "the uplink reaches the management LAN while a VM runs");
    let out = hello_over_tcp(&world.management, INTERNET, PORT);
    ensure!(
        out.is_err() && world.on_internet.seen().iter().all(|peer| *peer == PUBLIC),
        "the management LAN reaches the uplink"
    );
    let _service = Service::start(&guest.host, guest.address, 80, "the guest")?;
    let exposed = || hello_over_tcp(&world.internet, PUBLIC, EXPOSED).is_ok();
    ensure!(until(exposed), "the exposed port is not reached");
    Ok(())
}

/// Neither when the network is taken down under a running VM, nor where a bridge was there before.
pub fn h5_no_way_down_leaves_a_router() -> Result<()> {
    let world = World::build()?;
    world.internet.ip(&format!("route add 10.77.0.0/24 via {PUBLIC}"))?;
    let into_management = || hello_over_tcp(&world.internet, MANAGEMENT, PORT).is_ok();
    world.main.bridge("before", "172.18.0.1/16")?;
    let (vm, _) = Vm::leased(mac(1), &[])?;
    let down = Command::new(SOFTNET).args(["network", "down", "--force"]).output()?;
    ensure!(down.status.success(), "{down:?}");
    ensure!(!into_management(), "the uplink reaches the management LAN after a forced down: {down:?}");
    drop(vm);
    let (mut vm, _) = Vm::leased(mac(1), &[])?;
    ensure!(vm.softnet.stop()?.success());
    let down = Command::new(SOFTNET).args(["network", "down"]).output()?;
    ensure!(down.status.success() && !into_management(), "{down:?}");
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?;
    ensure!(forwarding.trim() == "0", "forwarding stays on: {down:?}");
    Ok(())
}

/// Who was a router before goes on to be one.
pub fn h5_a_host_that_was_a_router_stays_one() -> Result<()> {
    let world = World::build()?;
    crate::fixture::forwarding(true)?;
    world.internet.ip(&format!("route add 10.77.0.0/24 via {PUBLIC}"))?;
    let guest = Guest::start("guest", mac(1), &[])?;
    guest.reaches(INTERNET, PORT, "the internet")?;
    let said = hello_over_tcp(&world.internet, MANAGEMENT, PORT);
    said.context("the host's own routing was cut")?;
    Ok(())
}

pub fn h7_no_internal_source_leaves_the_uplink() -> Result<()> {
    let world = World::build()?;
    let sniffer = world.internet.run(|| PacketSocket::open("eth0"))??;
    let (vm, address) = Vm::leased(mac(1), &[])?;
    let gateway = vm.gateway_mac(address)?;
    let (from, to) = ((address, 4001), (INTERNET, PORT));
    let mut transports = vec![
        tcp(from, to, 7, 0x03, b""),
        tcp(from, to, 7, 0x00, b""),
        tcp(from, to, 7, 0x04, b""),
        tcp(from, to, 7, 0x14, b""),
        tcp(from, to, 7, 0x10, b"stray"),
        tcp(from, to, 7, 0x11, b""),
        tcp(from, to, 7, 0x12, b""),
        tcp(from, to, 7, 0x29, b""),
        tcp(from, to, 7, 0x3f, b""),
        icmp(0, 0, &[0, 1, 0, 1]),
        (132, vec![0; 24]),
        (47, vec![0; 24]),
    ];
    // A wrong transport checksum.
    for (protocol, mut bytes, at) in [
        (6, tcp(from, to, 7, 0x02, b"").1, 16),
        (17, udp(from, to, b"wrong").1, 6),
        (1, icmp(8, 0, &[0, 1, 0, 1]).1, 2),
    ] {
        bytes[at] ^= 0x55;
        transports.push((protocol, bytes));
    }
    // Errors that quote what never was, and what was with another port.
    for quoted in [udp((INTERNET, 9), (address, 9), b""), tcp((INTERNET, 9), (address, 9), 1, 0x10, b"")] {
        for (kind, code) in [(3, 3), (3, 4), (11, 0), (12, 0)] {
            let mut rest = vec![0; 4];
            rest.extend(Ipv4::new(INTERNET, address, quoted.clone()).bytes());
            transports.push(icmp(kind, code, &rest));
        }
    }
    let mut frames: Vec<Vec<u8>> =
        transports.into_iter().map(|transport| routed(&vm, gateway, address, INTERNET, transport)).collect();
    // The same behind a connection that is.
    frames.push(routed(&vm, gateway, address, INTERNET, tcp((address, 4002), to, 7, 0x02, b"")));
    frames.push(routed(
        &vm,
        gateway,
        address,
        INTERNET,
        tcp((address, 4002), to, 9_000_000, 0x10, b"out of window"),
    ));
    frames.push(routed(&vm, gateway, address, INTERNET, tcp((address, 4002), to, 9_000_000, 0x04, b"")));
    vm.send_judged(&frames)?;
    // A right datagram is behind all of them on the same way.
    let last = b"behind all of them";
    vm.port.send(&routed(&vm, gateway, address, INTERNET, udp((address, 4003), to, last)))?;
    ensure!(until(|| world.on_internet.seen().contains(&PUBLIC)), "the VM has no internet");
    let mut seen_last = false;
    while let Ok(frame) = sniffer.try_recv() {
        seen_last |= carries(&frame, last);
        if ether_type(&frame) == IPV4 {
            let source = address_at(&frame, 26);
            ensure!(!source.is_private(), "{source} left the uplink: {frame:02x?}");
        }
    }
    ensure!(seen_last, "the sniffer saw nothing: the test shows nothing");
    // The checksum function of the tests is not what is wrong.
    ensure!(checksum(&[&[0xff, 0xff]]) == 0);
    Ok(())
}

pub fn h11_the_resolver_answers_no_neighbour() -> Result<()> {
    let world = World::build()?;
    let guest = Guest::start("guest", mac(1), &[])?;
    let question = names::question(7, "neighbour.test", names::A, names::IN);
    let asked = guest.host.run(|| names::ask(GATEWAY, &question, Duration::from_secs(5)))?;
    ensure!(names::answers(&asked.context("the VM's own question")?, 7));
    for (host, via) in [(&world.internet, PUBLIC), (&world.management, HOST_ON_MANAGEMENT)] {
        host.ip(&format!("route replace 192.168.64.0/24 via {via}"))?;
        let heard = host.run(|| names::ask(GATEWAY, &question, SHORT))?;
        ensure!(heard.is_err(), "a neighbour on {via} was answered");
        let heard = host.run(|| names::ask_tcp(GATEWAY, &question, SHORT))?;
        ensure!(heard.is_err(), "a neighbour on {via} was answered over TCP");
    }
    // The host itself may.
    let asked = names::ask(GATEWAY, &question, Duration::from_secs(5));
    ensure!(names::answers(&asked.context("the host's own question")?, 7));
    Ok(())
}

pub fn h11_the_resolver_tells_nothing_of_itself() -> Result<()> {
    let _world = World::build()?;
    let guest = Guest::start("guest", mac(1), &[])?;
    for name in ["version.bind", "servers.bind", "authors.bind", "copyright.bind", "cachesize.bind"] {
        let question = names::question(9, name, names::TXT, names::CHAOS);
        for ask in [names::ask, names::ask_tcp] {
            let Ok(answer) = guest.host.run(|| ask(GATEWAY, &question, SHORT))? else { continue };
            let text = String::from_utf8_lossy(&answer).to_lowercase();
            ensure!(!names::answers(&answer, 9), "{name}: {text:?}");
            ensure!(!text.contains("dnsmasq") && !text.contains("8.8.8.8"), "{name}: {text:?}");
        }
    }
    Ok(())
}
