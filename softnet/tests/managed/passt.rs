//! passt, the host side for users without privilege.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::deadline::until;
use lab::net::{HOST_ON_LAN, INTERNET, LAN, World};
use lab::stage::run;
use lab::wire::{Ipv4, Mac, carries, dhcp_option as option, udp};
use lab::{Service, Softnet, VmPort};

use crate::{FIRST, SOFTNET, Vm};

/// The program as `nobody` runs it.
fn as_nobody(theirs: OwnedFd, arguments: &[&str]) -> Result<Softnet> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", SOFTNET, "--vm-fd=0"]);
    command.args([&format!("--vm-mac-address={FIRST}"), Softnet::READY_FLAG]).args(arguments).stdin(theirs);
    Softnet::spawn(command)
}

pub fn serves_a_user_without_privilege() -> Result<()> {
    let world = World::build()?;
    let (port, theirs) = VmPort::pair()?;
    let mut softnet = as_nobody(theirs, &["--expose=5000:53/udp"])?;
    let ready = softnet.ready()?;
    ensure!(ready["mode"] == "passt" && ready["gateway"] == "192.168.64.1", "{ready}");
    let mut vm = Vm { port, softnet, mac: FIRST, ready };
    let address = vm.lease().with_context(|| format!("{:?}", vm.softnet.counters()))?;
    ensure!(address == Ipv4Addr::new(192, 168, 64, 2), "{address}");
    vm.is_reached(&world.lan, SocketAddrV4::new(HOST_ON_LAN, 5000), address)?;

    // Out to the internet, and back.
    let gateway = Mac([0x0a, b'S', b'N', 0, 0, 1]);
    let question =
        |to: Ipv4Addr| Ipv4::new(address, to, udp((address, 4000), (to, 80), b"?")).frame(gateway, FIRST);
    vm.port.send(&question(INTERNET))?;
    vm.port.expect("an answer from the internet", |frame| carries(frame, b"hello from the internet"))?;
    // The LAN is the filter's business, the host's loopback is passt's.
    let before = vm.softnet.counters()?;
    vm.port.send(&question(LAN))?;
    ensure!(until(|| vm.softnet.counters().is_ok_and(|now| now.drops_since(&before).len() == 1)));
    let loopback = Service::start(&world.main, Ipv4Addr::LOCALHOST, 80, "the loopback")?;
    vm.port.send(&question(Ipv4Addr::new(192, 168, 64, 1)))?;
    vm.port.send(&question(INTERNET))?;
    vm.port.expect("an answer from the internet", |frame| carries(frame, b"hello from the internet"))?;
    ensure!(loopback.seen().is_empty(), "the VM reached the host's loopback");
    ensure!(!vm.softnet.log().contains("resolver"), "{}", vm.softnet.log());

    ensure!(vm.softnet.stop()?.success(), "{}", vm.softnet.log());
    let passts = || run("ps", &["-A", "-o", "stat=,comm="]).unwrap_or_default();
    let alive = |text: &str| text.lines().any(|line| line.contains("passt") && !line.starts_with('Z'));
    ensure!(until(|| !alive(&passts())), "passt outlived Softnet: {}", passts());
    Ok(())
}

pub fn what_it_needs_is_said() -> Result<()> {
    let word = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let (_port, theirs) = VmPort::pair()?;
        let mut softnet = as_nobody(theirs, arguments)?;
        let status = softnet.wait()?;
        Ok((status.code(), softnet.log()))
    };
    let (code, log) = word(&[])?;
    ensure!(code == Some(1) && log.contains("no IPv4 default route"), "{code:?} {log}");
    let _world = World::build()?;
    let (code, log) = word(&["--network=mine"])?;
    ensure!(code == Some(2) && log.contains("only root may set up a network"), "{code:?} {log}");
    let (code, log) = word(&["--bridge=br0"])?;
    ensure!(code == Some(2) && log.contains("only root may add a port to a bridge"), "{code:?} {log}");
    let (code, log) = word(&["--expose=80:80"])?;
    ensure!(code == Some(2) && log.contains("only root may expose ports below 1024"), "{code:?} {log}");
    // A VM without a resolver hears why, and who has one by another way hears nothing.
    std::fs::write(Path::new(lab::stage::SCRATCH).join("resolv.conf"), "nameserver 2001:db8::53\n")?;
    for (arguments, warns) in [(&[][..], true), (&["--vm-net-type=host"][..], false)] {
        let (port, theirs) = VmPort::pair()?;
        let mut softnet = as_nobody(theirs, arguments)?;
        let ready = softnet.ready()?;
        let has_said = |softnet: &Softnet| softnet.log().contains("/etc/resolv.conf names no IPv4 resolver");
        ensure!(!warns || until(|| has_said(&softnet)), "{}", softnet.log());
        let vm = Vm { port, softnet, mac: FIRST, ready };
        let offer = vm.offer()?;
        ensure!(offer.option(option::RESOLVERS).is_none(), "{:?}", offer.option(option::RESOLVERS));
        ensure!(has_said(&vm.softnet) == warns, "{}", vm.softnet.log());
    }
    Ok(())
}
