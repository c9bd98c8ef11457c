//! What the monitor brings to the filter, and how it decides between two VMs.

use std::net::UdpSocket;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, until};
use lab::net::Host;
use lab::stage::run;
use lab::wire::{Dhcp, Mac, carries, dhcp_kind as kind, dhcp_option as option};
use lab::{DhcpServer, Softnet, VmPort};

use super::leases::leased;
use super::{FIRST, SECOND, SOFTNET, Vm, start};

/// A Softnet that tells what it hears.
fn talkative(mac: Mac, arguments: &[&str]) -> Result<(Softnet, VmPort)> {
    let (vm, wire) = VmPort::pair()?;
    let mut command = Command::new(SOFTNET);
    command
        .args(["--vm-fd=0", "--vm-mac-address", &mac.to_string(), Softnet::READY_FLAG])
        .args(arguments)
        .env("RUST_LOG", "debug")
        .stdin(wire);
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    Ok((softnet, vm))
}

/// The last line of the log that says `what`.
fn last(softnet: &Softnet, what: &str) -> String {
    let log = softnet.log();
    log.lines().rfind(|line| line.contains(what)).unwrap_or_default().to_owned()
}

pub fn h1_the_hosts_addresses_reach_the_filter_as_they_come_and_go() -> Result<()> {
    const TOLD: &str = "the host's addresses";
    let main = Host::main()?;
    main.bridge("br0", "10.5.0.1/24")?;
    main.bridge("uplink", "198.51.100.7/24")?;
    for arguments in [&["--bridge=br0"][..], &["--subnet=10.9.0.0/24"]] {
        let (mut softnet, _vm) = talkative(FIRST, arguments)?;
        let told = |what: &str| last(&softnet, TOLD).contains(what);
        // Before a frame flows.
        ensure!(told("198.51.100.7"), "{arguments:?}: {}", softnet.log());
        ensure!(!told("127.0.0.1"), "{}", last(&softnet, TOLD));
        main.ip("addr add 203.0.113.9/32 dev uplink")?;
        ensure!(until(|| told("203.0.113.9")), "{arguments:?}: {}", softnet.log());
        main.ip("addr del 203.0.113.9/32 dev uplink")?;
        ensure!(until(|| !told("203.0.113.9")), "{arguments:?}: {}", softnet.log());
        ensure!(softnet.stop()?.success(), "{}", softnet.log());
    }
    Ok(())
}

pub fn h2_ports_that_others_expose_reach_the_filter_in_every_mode() -> Result<()> {
    const TOLD: &str = "the exposed ports of other VMs";
    let main = Host::main()?;
    main.bridge("br0", "10.5.0.1/24")?;
    // Before there is any network, and so a run directory.
    let (mut bridged, _bridged_vm) = talkative(FIRST, &["--bridge=br0"])?;
    let mut exposing = Vm::start(SECOND, &["--subnet=10.9.0.0/24", "--expose=8080:80"])?;
    let (mut managed, _managed_vm) =
        talkative(FIRST, &["--network=other", "--subnet=10.8.0.0/24", "--expose=9090:90"])?;
    let told = |softnet: &Softnet, what: &str| last(softnet, TOLD).contains(what);
    let both = || told(&bridged, "0.0.0.0:8080/tcp") && told(&bridged, "0.0.0.0:9090/tcp");
    ensure!(until(both), "{}", bridged.log());
    ensure!(until(|| told(&managed, "0.0.0.0:8080/tcp")), "{}", managed.log());
    ensure!(!managed.log().contains("0.0.0.0:9090/tcp"), "it is told of its own: {}", managed.log());
    ensure!(exposing.softnet.stop()?.success());
    ensure!(until(|| !last(&bridged, TOLD).contains("8080")), "{}", bridged.log());
    ensure!(managed.stop()?.success() && bridged.stop()?.success());
    Ok(())
}

pub fn h3_the_host_is_ready_when_the_vm_hears_of_its_address() -> Result<()> {
    let mut vm = Vm::start(FIRST, &["--subnet=10.9.0.0/24"])?;
    let address = vm.lease()?;
    // Without waiting.
    let record = std::fs::read_to_string(format!("/run/softnet/softnet0/ports/{FIRST}"))?;
    ensure!(record.contains(&format!("address {address}\n")), "{record}");
    ensure!(vm.softnet.stop()?.success());
    Ok(())
}

/// As dnsmasq does when it offers the address of a former holder, whose flows still live.
pub fn h3_what_is_for_another_address_does_not_reach_the_vm() -> Result<()> {
    let (first, own) = leased(FIRST, &[])?;
    let (_second, other) = leased(SECOND, &[])?;
    for address in [own, other] {
        run(
            "ip",
            &["neigh", "replace", &address.to_string(), "lladdr", &FIRST.to_string(), "dev", "softnet0"],
        )?;
    }
    let gateway = first.gateway()?;
    let socket = UdpSocket::bind((gateway, 0))?;
    socket.send_to(b"for another", (other, 9))?;
    socket.send_to(b"for the first", (own, 9))?;
    let deadline = Deadline::default();
    loop {
        let frame = first.port.recv(deadline)?.context("nothing came")?;
        ensure!(!carries(&frame, b"for another"), "it came");
        if carries(&frame, b"for the first") {
            break;
        }
    }
    let counters = first.softnet.counters()?;
    ensure!(counters.from_host.get("not-ready").is_some_and(|count| *count > 0), "{counters:?}");
    Ok(())
}

/// The host goes on talking to those that it knows.
pub fn a_start_and_a_look_at_filters_forget_no_neighbour() -> Result<()> {
    let (_first, own) = leased(FIRST, &[])?;
    let own = own.to_string();
    run(
        "ip",
        &["neigh", "replace", &own, "lladdr", &FIRST.to_string(), "dev", "softnet0", "nud", "reachable"],
    )?;
    let _second = Vm::start(SECOND, &[])?;
    let known = || run("ip", &["neigh", "show", &own, "dev", "softnet0"]);
    ensure!(known()?.contains("lladdr"), "the start: {:?}", known());
    run(SOFTNET, &["network", "status"])?;
    ensure!(known()?.contains("lladdr"), "the look: {:?}", known());
    Ok(())
}

/// The first VM believes in a lease that the server has ended and given to the second.
pub fn h10_the_vm_that_the_server_contradicts_is_ended() -> Result<()> {
    let mut first = Vm::start(FIRST, &["--subnet=10.9.0.0/24"])?;
    let address = first.lease()?;
    let mut second = Vm::start(SECOND, &["--subnet=10.9.0.0/24"])?;
    let gateway = first.gateway()?;
    // As the kernel of the host would send it.
    let release = Dhcp { ciaddr: address, ..Dhcp::client(kind::RELEASE, 9, FIRST) }
        .with(option::SERVER, &gateway.octets());
    UdpSocket::bind((gateway, 0))?.send_to(&release.bytes(), (gateway, 67))?;
    let leases = || std::fs::read_to_string("/run/softnet/softnet0/dnsmasq.leases").unwrap_or_default();
    ensure!(until(|| !leases().contains(&address.to_string())), "{}", leases());

    let discover = Dhcp::client(kind::DISCOVER, 7, SECOND).with(option::REQUESTED_ADDRESS, &address.octets());
    second.port.send(&discover.broadcast())?;
    let offer = DhcpServer::told(&second.port, kind::OFFER, 7)?;
    ensure!(offer.yiaddr == address, "the server offers {}", offer.yiaddr);
    second.request(&offer)?;
    DhcpServer::told(&second.port, kind::ACK, 7)?;
    first.softnet.wait().context("the first VM's Softnet goes on")?;
    ensure!(second.softnet.log().contains("stopping the VM that still holds"), "{}", second.softnet.log());
    let record =
        || std::fs::read_to_string(format!("/run/softnet/softnet0/ports/{SECOND}")).unwrap_or_default();
    ensure!(until(|| record().contains(&format!("address {address}\n"))), "{}", second.softnet.log());
    ensure!(second.softnet.stop()?.success(), "{}", second.softnet.log());
    Ok(())
}

pub fn an_nft_that_fails_at_everything_tells_nothing_of_the_kernel() -> Result<()> {
    run("mount", &["--bind", "/bin/false", "/usr/sbin/nft"])?;
    let (_port, theirs) = VmPort::pair()?;
    let mut softnet = start(theirs, FIRST, &[])?;
    ensure!(softnet.wait()?.code() == Some(1));
    let text = softnet.log();
    ensure!(text.contains("nft failed") && !text.contains("kernel"), "{text}");
    Ok(())
}
