//! Bridges whose router and DHCP server are other machines, as in an office LAN, and bridges with a spanning tree.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::until;
use lab::net::{Host, INTERNET};
use lab::stage::run;
use lab::wire::{Dhcp, dhcp_kind as kind};
use lab::{Service, hello, kernel_guest};

use super::{FIRST, Vm, refusal};

/// The host's own address on the LAN's bridge.
const OWN: &str = "192.168.77.5/24";
/// The LAN's router.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// Somebody who plays the DHCP server.
const ROGUE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 66);

/// A machine on the bridge `br0` of the main host.
fn machine(name: &str, address: Ipv4Addr) -> Result<Host> {
    let (main, host) = (Host::main()?, Host::new(name)?);
    main.ip(&format!("link add {name} type veth peer name eth0 netns {name}"))?;
    main.ip(&format!("link set {name} master br0 up"))?;
    host.ip(&format!("addr add {address}/24 dev eth0"))?;
    host.ip("link set eth0 up")?;
    Ok(host)
}

fn mac_of(host: &Host) -> Result<String> {
    let link = host.ip("-oneline link show eth0")?;
    let mac = link.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
    Ok(mac.context("no MAC address")?.to_owned())
}

/// A DHCP server on such a machine, which names that machine as the router.
struct Server(Child);

impl Server {
    fn start(name: &str, host: &Host, range: &str) -> Result<Self> {
        let server = host.run(|| {
            Command::new("dnsmasq")
                .args([
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--user=root",
                    "--pid-file=",
                    "--port=0",
                ])
                .args(["--interface=eth0", "--except-interface=lo", "--bind-interfaces", "--no-ping"])
                .args([format!("--dhcp-range={range},600"), "--dhcp-authoritative".into()])
                .arg(format!("--dhcp-leasefile=/run/lab/{name}.leases"))
                .stderr(Stdio::null())
                .spawn()
        })??;
        let listens = || {
            let sockets = host.run(|| std::fs::read_to_string("/proc/thread-self/net/udp"));
            matches!(sockets, Ok(Ok(text)) if text.contains(":0043 "))
        };
        let server = Self(server);
        ensure!(until(listens), "the server on {name} does not listen");
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A LAN with a router to the internet, which serves DHCP.
struct Lan {
    main: Host,
    router: Host,
    internet: Host,
    _server: Server,
}

impl Lan {
    fn build() -> Result<Self> {
        let main = Host::main()?;
        main.bridge("br0", OWN)?;
        let router = machine("router", ROUTER)?;
        let internet = Host::new("internet")?;
        router.cable(("wan", "203.0.113.2/24"), &internet, ("eth0", "203.0.113.1/24"))?;
        internet.ip(&format!("addr add {INTERNET}/32 dev lo"))?;
        internet.ip("route add default via 203.0.113.2")?;
        router.ip("route add default via 203.0.113.1")?;
        router.run(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        let server = Server::start("router", &router, "192.168.77.100,192.168.77.149")?;
        Ok(Self { main, router, internet, _server: server })
    }
}

fn is_routers(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [192, 168, 77, 100..=149])
}

pub fn a_server_that_is_not_believed_is_named() -> Result<()> {
    let lan = Lan::build()?;
    let vm = Vm::start(FIRST, &["--bridge=br0"])?;
    vm.port.send(&Dhcp::client(kind::DISCOVER, 7, vm.mac).broadcast())?;
    let mac = mac_of(&lan.router)?;
    let is_named = || {
        let log = vm.softnet.log();
        log.contains(&mac)
            && log.contains(&format!("--gateway {ROUTER}"))
            && log.contains(&format!("--dhcp-server {ROUTER}"))
    };
    ensure!(until(is_named), "{}", vm.softnet.log());
    ensure!(vm.softnet.counters()?.from_host.contains_key("reply-server"), "{:?}", vm.softnet.counters()?);
    vm.port.send(&Dhcp::client(kind::DISCOVER, 8, vm.mac).broadcast())?;
    let drops = || vm.softnet.counters().is_ok_and(|now| now.from_host.get("reply-server") > Some(&1));
    ensure!(until(drops), "{:?}", vm.softnet.counters()?);
    let told = vm.softnet.log().matches("a DHCP server answers").count();
    ensure!(told == 1, "it is said {told} times: {}", vm.softnet.log());
    Ok(())
}

pub fn a_lans_router_serves() -> Result<()> {
    let lan = Lan::build()?;
    let rogue = machine("rogue", ROGUE)?;
    let _rogue = Server::start("rogue", &rogue, "192.168.77.200,192.168.77.249")?;
    let service = Service::start(&lan.internet, INTERNET, 80, "the internet")?;
    let vm = Vm::start(FIRST, &["--bridge=br0", &format!("--gateway={ROUTER}")])?;
    ensure!(
        vm.ready["gateway"] == ROUTER.to_string() && vm.ready["subnet"] == "192.168.77.0/24",
        "{}",
        vm.ready
    );
    let address = vm.lease()?;
    ensure!(is_routers(address), "the VM has {address}, which the rogue gave: {}", vm.softnet.log());
    let drops = || vm.softnet.counters().is_ok_and(|now| now.from_host.contains_key("reply-server"));
    ensure!(until(drops), "the rogue never answered: {:?}", vm.softnet.counters()?);
    let guest = kernel_guest("guest", &vm.port, vm.mac, (address, 24), ROUTER)?;
    let said = guest.run(|| hello(SocketAddrV4::new(INTERNET, 80), Duration::from_secs(10)))?;
    let said = said.with_context(|| format!("{:?}", vm.softnet.counters()))?;
    ensure!(said == format!("hello from the internet to {address}") && service.seen() == [address], "{said}");
    // The kernel's guard knows the same stations.
    let tap = vm.ready["interface"].as_str().context("no interface")?;
    let table = run("nft", &["list", "table", "bridge", &format!("softnet-tap-{tap}")])?;
    ensure!(table.contains("ip saddr { 192.168.77.1, 192.168.77.5 } drop"), "{table}");
    Ok(())
}

pub fn a_dhcp_server_beside_the_host_serves() -> Result<()> {
    let _lan = Lan::build()?;
    let mut vm = Vm::start(FIRST, &["--bridge=br0", &format!("--dhcp-server={ROUTER}")])?;
    ensure!(vm.ready["gateway"] == "192.168.77.5", "{}", vm.ready);
    let address = vm.lease()?;
    ensure!(is_routers(address), "{address}");
    // The lease is given back to that server.
    let leases = || std::fs::read_to_string("/run/lab/router.leases").unwrap_or_default();
    ensure!(until(|| leases().contains(&address.to_string())), "{}", leases());
    ensure!(vm.softnet.stop()?.success(), "{}", vm.softnet.log());
    ensure!(until(|| !leases().contains(&address.to_string())), "{}", leases());
    Ok(())
}

/// As behind a switch that is none of the kernel's: the host has no address there.
pub fn a_tap_of_a_bridge_without_an_address_serves() -> Result<()> {
    let lan = Lan::build()?;
    lan.main.ip(&format!("addr del {OWN} dev br0"))?;
    lan.main.tap("tap0", "br0")?;
    let log = refusal(FIRST, &["--tap=tap0", &format!("--gateway={ROUTER}")])?;
    ensure!(log.contains("192.168.77.1/24"), "{log}");
    let gateway = format!("--gateway={ROUTER}/24,{}", mac_of(&lan.router)?);
    let vm = Vm::start(FIRST, &["--tap=tap0", &gateway])?;
    ensure!(is_routers(vm.lease()?));
    Ok(())
}

pub fn a_router_that_would_be_a_guess_is_refused() -> Result<()> {
    let lan = Lan::build()?;
    let log = refusal(FIRST, &["--bridge=br0", "--gateway=192.168.77.9"])?;
    ensure!(
        log.contains("--gateway \"192.168.77.9\"") && log.contains("--gateway 192.168.77.9,MAC"),
        "{log}"
    );
    let twins = [machine("twin1", [192, 168, 77, 8].into())?, machine("twin2", [192, 168, 77, 8].into())?];
    let log = refusal(FIRST, &["--bridge=br0", "--dhcp-server=192.168.77.8"])?;
    for twin in &twins {
        ensure!(log.contains("--dhcp-server") && log.contains(&mac_of(twin)?), "{log}");
    }
    ensure!(!lan.main.ip("-oneline link")?.contains("snt"), "a TAP stayed");
    Ok(())
}

pub fn a_spanning_tree_is_waited_for() -> Result<()> {
    let main = Host::main()?;
    // Two seconds are the shortest delay.
    main.ip("link add br0 type bridge stp_state 1 forward_delay 200")?;
    main.ip("link set br0 addrgenmode none up")?;
    main.ip(&format!("addr add {OWN} dev br0"))?;
    let vm = Vm::start(FIRST, &["--bridge=br0"])?;
    let tap = vm.ready["interface"].as_str().context("no interface")?;
    let port = main.ip(&format!("-details link show {tap}"))?;
    ensure!(port.contains("state forwarding"), "ready, but the bridge holds the port back: {port}");
    let log = vm.softnet.log();
    ensure!(log.contains("ip link set br0 type bridge stp_state 0") && log.contains("seconds=4"), "{log}");
    ensure!(!log.contains("does not carry"), "{log}");
    Ok(())
}
