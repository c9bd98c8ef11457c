//! Firewalls of the host's own, as Debian ships them, before and after somebody has run what Softnet says.

use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, PATIENCE, until};
use lab::net::{INTERNET, World};
use lab::stage::{SCRATCH, run};
use lab::wire::{Dhcp, dhcp_kind as kind, parse_dhcp};

use super::{FIRST, SOFTNET, Vm};

/// How the warning begins, and what stands before the command.
const WARNING: &str = "the host's firewall drops what VMs on softnet0 need: ";
const COMMAND: &str = "; to let it pass, run: ";

/// What the keeper has found; empty if no filter is in the way.
const FOUND: &str = "/run/softnet/softnet0/firewall";

/// How long to listen for an answer that must not come: the server answers within milliseconds.
const SHORT: Duration = Duration::from_millis(500);

fn status() -> Result<String> {
    run(SOFTNET, &["network", "status"])
}

/// The command in the warning, once it has been said.
fn warned(vm: &Vm) -> Result<(String, String)> {
    let mut found = None;
    let said = until(|| {
        let log = vm.softnet.log();
        let line = log.lines().rev().find_map(|line| line.split_once(WARNING));
        found = line
            .and_then(|(_, rest)| rest.split_once(COMMAND))
            .map(|(what, open)| (what.into(), open.into()));
        found.is_some()
    });
    ensure!(said, "no warning: {}", vm.softnet.log());
    found.context("a warning")
}

/// The VM has an address and the internet.
fn works(vm: &Vm) -> Result<()> {
    let address = vm.lease()?;
    let host = lab::kernel_guest("guest", &vm.port, vm.mac, (address, 24), vm.gateway()?)?;
    let said = host.run(|| lab::hello(SocketAddrV4::new(INTERNET, 80), PATIENCE))??;
    ensure!(said.contains("the internet"), "{said}");
    Ok(())
}

fn gets_no_offer(vm: &Vm) -> Result<()> {
    vm.port.send(&Dhcp::client(kind::DISCOVER, 3, vm.mac).broadcast())?;
    let deadline = Deadline::after(SHORT);
    while let Some(frame) = vm.port.recv(deadline)? {
        ensure!(
            parse_dhcp(&frame).is_none_or(|answer| answer.xid != 3),
            "an answer came through the firewall"
        );
    }
    Ok(())
}

/// The firewall keeps the VM from its lease and from the world, which Softnet says; what it says to run helps; and then
/// nothing is said any more, to this VM and the next.
fn is_opened_as_told(firewall: impl FnOnce() -> Result<Option<Running>>, command: &str) -> Result<()> {
    let _world = World::build()?;
    let _running = firewall()?;
    let mut vm = Vm::start(FIRST, &[])?;
    let (what, open) = warned(&vm)?;
    ensure!(what.contains("DHCP requests") && what.contains("packets to the world ("), "{what}");
    ensure!(open.contains(command), "{open}");
    ensure!(status()?.contains(&format!("  firewall {WARNING}{what}{COMMAND}{open}")), "{}", status()?);
    gets_no_offer(&vm)?;
    run("sh", &["-c", &open]).context(open.clone())?;
    ensure!(until(|| status().is_ok_and(|text| !text.contains("  firewall "))), "{}", status()?);
    works(&vm)?;
    let said = format!("{WARNING}{what}");
    ensure!(vm.softnet.log().matches(&said).count() == 1, "{}", vm.softnet.log());
    vm.softnet.stop()?;
    let vm = Vm::start(FIRST, &[])?;
    vm.lease()?;
    ensure!(!status()?.contains("  firewall "), "{}", status()?);
    ensure!(!vm.softnet.log().contains(WARNING), "{}", vm.softnet.log());
    leaves_nothing()
}

/// Of a look, nothing is left.
fn leaves_nothing() -> Result<()> {
    let left = || -> Result<String> {
        let links = run("ip", &["-o", "link"])?;
        let tables = run("nft", &["list", "tables"])?;
        let lines = links.lines().chain(tables.lines());
        Ok(lines.filter(|line| line.contains("snl") || line.contains("softnet-tap-")).collect())
    };
    ensure!(until(|| left().is_ok_and(|left| left.is_empty())), "left: {}", left()?);
    Ok(())
}

/// A firewall that is a process.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn ufw_is_opened_as_told() -> Result<()> {
    let firewall = || {
        // ufw writes its rules there.
        let copy = format!("{SCRATCH}/ufw");
        run("cp", &["-a", "/etc/ufw", &copy])?;
        run("mount", &["--bind", &copy, "/etc/ufw"])?;
        run("ufw", &["--force", "enable"])?;
        Ok(None)
    };
    is_opened_as_told(firewall, "ufw allow in on softnet0 && ufw route allow in on softnet0")
}

pub fn firewalld_is_opened_as_told() -> Result<()> {
    let firewall = || {
        // It takes its orders over the system's bus, and writes its log.
        run("mount", &["-t", "tmpfs", "none", "/var/log"])?;
        std::fs::create_dir_all("/run/dbus")?;
        run("dbus-daemon", &["--system", "--fork", "--nopidfile"])?;
        let child = Command::new("firewalld").args(["--nofork", "--nopid"]).stderr(Stdio::null()).spawn();
        let running = Running(child.context("start firewalld")?);
        ensure!(until(|| run("firewall-cmd", &["--state"]).is_ok()), "firewalld does not run");
        Ok(Some(running))
    };
    is_opened_as_told(firewall, "firewall-cmd --zone=trusted --add-interface=softnet0")
}

/// Policies that accept, and a last rule that does not.
fn rejects_at_the_end(iptables: &str) -> Result<Option<Running>> {
    for chain in ["INPUT", "FORWARD"] {
        run(iptables, &["-A", chain, "-i", "lo", "-j", "ACCEPT"])?;
        run(iptables, &["-A", chain, "-j", "REJECT"])?;
    }
    Ok(None)
}

pub fn iptables_is_opened_as_told() -> Result<()> {
    is_opened_as_told(|| rejects_at_the_end("iptables-nft"), "iptables -I INPUT -i softnet0 -j ACCEPT")
}

pub fn legacy_iptables_is_opened_as_told() -> Result<()> {
    let firewall = || rejects_at_the_end("iptables-legacy");
    is_opened_as_told(firewall, "iptables-legacy -I INPUT -i softnet0 -j ACCEPT")
}

pub fn a_filter_that_comes_later_is_named() -> Result<()> {
    let _world = World::build()?;
    let vm = Vm::start(FIRST, &[])?;
    ensure!(until(|| std::fs::read_to_string(FOUND).is_ok_and(|text| text.is_empty())), "no look");
    ensure!(!vm.softnet.log().contains(WARNING), "{}", vm.softnet.log());
    leaves_nothing()?;
    // A host that lets its VMs do what they need, and nothing else, is open.
    run(
        "nft",
        &[
            "add table inet mine; add chain inet mine in { type filter hook input priority 0; policy drop; }; \
           add chain inet mine out { type filter hook output priority 0; policy drop; }; \
           add rule inet mine out ct state established accept; add rule inet mine out udp sport 67 accept; \
           add rule inet mine in iifname softnet0 udp dport { 53, 67 } accept",
        ],
    )?;
    ensure!(!status()?.contains("  firewall "), "{}", status()?);
    // So is one whose drops have nothing to do with VMs.
    run(
        "nft",
        &["add chain inet mine on { type filter hook forward priority 0; policy accept; }; \
                  add rule inet mine on iifname other0 drop"],
    )?;
    ensure!(!status()?.contains("  firewall "), "{}", status()?);
    run("nft", &["add rule inet mine on reject; insert rule inet mine out udp sport 67 drop"])?;
    let (what, open) = warned(&vm)?;
    ensure!(
        what == "DHCP answers (chain out of table inet mine), packets to the world (chain on of table inet mine)",
        "{what}"
    );
    run("sh", &["-c", &open]).context(open.clone())?;
    ensure!(!status()?.contains("  firewall "), "{}", status()?);
    works(&vm)?;
    ensure!(Path::new(FOUND).exists());
    leaves_nothing()
}

/// A filter behind the routing, where answers and translated packets pass too. Nothing of the looks leaves the host.
pub fn a_filter_behind_the_routing_is_named() -> Result<()> {
    let world = World::build()?;
    let nft = |text: &str| world.internet.run(|| run("nft", &[text]))?;
    nft("add table ip seen; add chain ip seen any { type filter hook prerouting priority -400; }; \
         add rule ip seen any ip daddr 1.1.1.1 tcp dport 443 counter")?;
    let vm = Vm::start(FIRST, &[])?;
    ensure!(until(|| std::fs::read_to_string(FOUND).is_ok_and(|text| text.is_empty())), "no look");
    run(
        "nft",
        &[
            "add table inet mine; add chain inet mine post { type filter hook postrouting priority 300; policy accept; }; \
           add rule inet mine post oifname != lo drop",
        ],
    )?;
    let (what, open) = warned(&vm)?;
    ensure!(
        what == "DHCP answers and DNS answers and packets to the world (chain post of table inet mine)",
        "{what}"
    );
    run("sh", &["-c", &open]).context(open.clone())?;
    ensure!(!status()?.contains("  firewall "), "{}", status()?);
    works(&vm)?;
    let seen = nft("list chain ip seen any")?;
    ensure!(seen.contains("counter packets 0 "), "a look left the host: {seen}");
    leaves_nothing()
}
