//! What a VM is given by who starts it: a fixed address, resolvers and search domains, by the real server and kernel.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, until};
use lab::net::{Host, INTERNET, World};
use lab::stage::{SCRATCH, run};
use lab::wire::{
    Arp, Dhcp, Ipv4, Mac, dhcp_kind as kind, dhcp_option as option, ether_type, parse_dhcp, udp,
};
use lab::{DhcpServer, VmPort};

use crate::keeper::{keeper_log, renews};
use crate::leases::{is_leased, is_noted, kill_all, leases, mac, server};
use crate::locks::{by_user, set_user_id};
use crate::{FIRST, SECOND, Vm, hex, refusal, softnet, traces};

const FIXED: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 77);
const FLAG: &str = "--vm-address=192.168.64.77";
/// RFC 3397; RFC 2132, section 3.17.
const SEARCH: u8 = 119;
const DOMAIN: u8 = 15;

/// Whether the gateway answers the VM at this address: the filter, the kernel's guard and the host must agree on it.
fn is_answered(vm: &Vm, address: Ipv4Addr) -> Result<bool> {
    vm.port.send(&Arp::request(vm.mac, address, vm.gateway()?).frame())?;
    let soon = lab::deadline::Deadline::after(std::time::Duration::from_millis(500));
    while let Some(frame) = vm.port.recv(soon)? {
        if ether_type(&frame) == lab::wire::ARP && frame.get(20..22) == Some(&[0, 2]) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn reserved() -> String {
    std::fs::read_to_string("/run/softnet/softnet0/dnsmasq.hosts").unwrap_or_default()
}

/// The next DISCOVER's offer, or none if the server has nothing for this VM: it has answered somebody else by then.
fn is_offered(vm: &Vm, witness: &Vm, xid: u32) -> Result<Option<Ipv4Addr>> {
    vm.port.send(&Dhcp::client(kind::DISCOVER, xid, vm.mac).broadcast())?;
    witness.port.send(&Dhcp::client(kind::DISCOVER, xid, witness.mac).broadcast())?;
    DhcpServer::told(&witness.port, kind::OFFER, xid)?;
    let at_once = lab::deadline::Deadline::after(std::time::Duration::from_millis(200));
    while let Some(frame) = vm.port.recv(at_once)? {
        if let Some(offer) = lab::wire::parse_dhcp(&frame).filter(|offer| offer.xid == xid) {
            return Ok(Some(offer.yiaddr));
        }
    }
    Ok(None)
}

pub fn b9_a_fixed_address_serves_with_and_without_dhcp() -> Result<()> {
    let mut vm = Vm::start(FIRST, &[FLAG, "--expose=5000:53/udp"])?;
    // Without a word of DHCP, and the host is ready for it.
    ensure!(is_answered(&vm, FIXED)?, "{}", vm.softnet.log());
    ensure!(!is_answered(&vm, Ipv4Addr::new(192, 168, 64, 78))?);
    vm.is_reached(&Host::main()?, SocketAddrV4::new(Ipv4Addr::LOCALHOST, 5000), FIXED)?;
    is_noted(FIRST, FIXED)?;
    // With DHCP it is the same, and the one who has released it gets it again.
    for _ in 0..2 {
        ensure!(vm.lease()? == FIXED);
        let release = Dhcp { ciaddr: FIXED, ..Dhcp::client(kind::RELEASE, 8, FIRST) }
            .with(option::SERVER, &vm.gateway()?.octets());
        let gateway_mac = gateway_mac()?;
        vm.port.send(&release.packet(FIXED, vm.gateway()?).frame(gateway_mac, FIRST))?;
        ensure!(until(|| !is_leased(FIRST)), "not released: {}", leases());
        ensure!(!is_answered(&vm, FIXED)?, "it was released (C6)");
        // Nobody else gets it meanwhile.
        let said = refusal(SECOND, &[FLAG])?;
        ensure!(
            said.contains("--vm-address \"192.168.64.77\"") && said.contains(&FIRST.to_string()),
            "{said}"
        );
        let mut second = Vm::start(SECOND, &[])?;
        let request = Dhcp::client(kind::REQUEST, 9, SECOND).with(option::REQUESTED_ADDRESS, &FIXED.octets());
        second.port.send(&request.broadcast())?;
        DhcpServer::told(&second.port, kind::NAK, 9)?;
        ensure!(second.softnet.stop()?.success());
    }
    ensure!(vm.lease()? == FIXED && is_answered(&vm, FIXED)?);
    ensure!(vm.softnet.stop()?.success());
    ensure!(traces()?.is_empty() && reserved().is_empty(), "left behind: {} {}", traces()?, reserved());
    // Another may have it now.
    let second = Vm::start(SECOND, &[FLAG])?;
    ensure!(is_answered(&second, FIXED)?);
    Ok(())
}

pub fn gateway_mac() -> Result<Mac> {
    let mac = hex(&run("ip", &["-oneline", "link", "show", "softnet0"])?).context("no MAC")?;
    Ok(Mac(*mac.first_chunk().context("short")?))
}

pub fn the_pool_never_gives_a_fixed_address_away() -> Result<()> {
    // A network of five addresses; the VM with the fixed one never asks for it.
    let small = "--subnet=10.9.0.0/29";
    let fixed = Ipv4Addr::new(10, 9, 0, 4);
    let vm = Vm::start(FIRST, &[small, "--vm-address=10.9.0.4"])?;
    let others = (2..=5).map(|last| Vm::start(mac(last), &[])).collect::<Result<Vec<_>>>()?;
    for other in &others {
        ensure!(other.lease()? != fixed, "given away:\n{}", leases());
    }
    let late = Vm::start(mac(6), &[])?;
    ensure!(is_offered(&late, &others[0], 20)?.is_none(), "there was one more:\n{}", leases());
    // Its neighbours' starts and ends, and a new server, change nothing about that.
    crate::leases::kill_the_server_alone()?;
    ensure!(is_answered(&vm, fixed)?);
    ensure!(until(|| is_offered(&late, &others[0], 21).is_ok_and(|offered| offered.is_none())));
    Ok(())
}

pub fn an_address_that_a_vm_cannot_have_is_refused() -> Result<()> {
    let untouched = || -> Result<bool> {
        let links = run("ip", &["-oneline", "link"])?;
        Ok(!links.contains("softnet0") && !std::path::Path::new("/run/softnet/softnet0").exists())
    };
    for bad in ["192.168.64.0", "192.168.64.1", "192.168.64.255", "192.168.65.2", "8.8.8.8"] {
        let said = refusal(FIRST, &[&format!("--vm-address={bad}")])?;
        ensure!(
            said.contains(&format!("--vm-address \"{bad}\""))
                && said.contains("192.168.64.2 to 192.168.64.254"),
            "{said}"
        );
        ensure!(untouched()?, "{bad}");
    }
    for bad in ["192.168.64.0", "192.168.64.255"] {
        let said = refusal(FIRST, &[&format!("--dns=10.0.0.1,{bad}")])?;
        ensure!(said.contains(&format!("--dns \"{bad}\"")) && said.contains("no host has"), "{said}");
        ensure!(untouched()?, "{bad}");
    }
    // One that another VM has by DHCP, while it runs and, if it keeps its lease, after that.
    let mut other = Vm::start(SECOND, &["--no-release"])?;
    let address = other.lease()?;
    is_noted(SECOND, address)?;
    let taken = format!("--vm-address={address}");
    ensure!(refusal(FIRST, &[&taken])?.contains(&format!("the VM {SECOND} has {address}")));
    ensure!(other.softnet.stop()?.success());
    let said = refusal(FIRST, &[&taken])?;
    ensure!(said.contains(&format!("has leased {address} to {SECOND} for another ")), "{said}");
    ensure!(traces()?.is_empty() && reserved().is_empty(), "left behind: {} {}", traces()?, reserved());
    // The VM itself may have it fixed.
    let again = Vm::start(SECOND, &[&taken])?;
    ensure!(is_answered(&again, address)?);
    Ok(())
}

pub fn a_fixed_address_is_free_again_after_any_death() -> Result<()> {
    let mut vm = Vm::start(FIRST, &[FLAG])?;
    ensure!(vm.lease()? == FIXED);
    kill_all(&mut vm)?;
    // The keeper notices, or else the next start.
    let mut second = Vm::start(SECOND, &[FLAG])?;
    ensure!(second.lease()? == FIXED && is_answered(&second, FIXED)?);
    ensure!(!reserved().contains(&FIRST.to_string()), "{}", reserved());
    kill_all(&mut second)?;
    // Without its address, an earlier VM takes over nothing that is another's now.
    let first = Vm::start(FIRST, &[])?;
    ensure!(!is_answered(&first, FIXED)?);
    ensure!(!reserved().contains("192.168.64.77"), "{}", reserved());
    Ok(())
}

/// A set-user-ID start gets what is free, and nothing that anybody has.
pub fn a_set_user_id_start_takes_no_address_that_another_has() -> Result<()> {
    let program = set_user_id()?;
    let other = Vm::start(SECOND, &[])?;
    let address = other.lease()?;
    is_noted(SECOND, address)?;
    let before = server()?;
    let start = |address: Ipv4Addr, more: &[&str]| -> Result<(VmPort, std::process::Output)> {
        let (port, theirs) = VmPort::pair()?;
        let mut command = by_user(program, &["--vm-fd=0", "--vm-net-type=nat"]);
        command.arg(format!("--vm-mac-address={FIRST}")).arg(format!("--vm-address={address}"));
        Ok((port, command.args(more).stdin(theirs).output()?))
    };
    let (_port, output) = start(address, &[])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2) && said.contains(&SECOND.to_string()), "{said}");
    Host::main()?.bridge("br7", "10.7.0.1/24")?;
    let (_port, output) = start([10, 7, 0, 2].into(), &["--bridge=br7"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2) && said.contains("only root may choose the address"), "{said}");
    ensure!(server()? == before, "the server was restarted");
    ensure!(other.softnet.counters().is_ok());
    Ok(())
}

pub fn d5_resolvers_and_search_domains_are_the_vms_own() -> Result<()> {
    let resolvers = [Ipv4Addr::new(10, 1, 1, 1), Ipv4Addr::new(9, 9, 9, 9)];
    let vm = Vm::start(FIRST, &["--dns=10.1.1.1,9.9.9.9", "--dns-search=corp.example,b.example"])?;
    let second = Vm::start(SECOND, &[])?;
    let offer = vm.offer()?;
    ensure!(
        offer.option(option::RESOLVERS) == Some(&resolvers.map(|address| address.octets()).concat()),
        "{offer:?}"
    );
    let encoded = b"\x04corp\x07example\x00\x01b\xc0\x05";
    ensure!(offer.option(SEARCH) == Some(encoded), "{:02x?}", offer.option(SEARCH));
    ensure!(offer.option(DOMAIN) == Some(b"corp.example"), "{offer:?}");
    let others = second.offer()?;
    ensure!(others.option(option::RESOLVERS) == Some(&second.gateway()?.octets()), "{others:?}");
    ensure!(others.option(SEARCH).is_none() && others.option(DOMAIN).is_none(), "{others:?}");
    let address = vm.lease()?;
    // Its port 53 is open, and nothing else of it; with a block that is not either.
    drops(&vm, address, resolvers[0], &[(53, None), (54, Some("resolver-port"))])?;
    drop(vm);
    let blocked = Vm::start(mac(3), &["--dns=10.1.1.1", "--block=10.1.1.1", "--vm-address=192.168.64.99"])?;
    drops(&blocked, Ipv4Addr::new(192, 168, 64, 99), resolvers[0], &[(53, Some("blocked"))])?;
    // A VM that asks nobody has the same.
    let fixed = Vm::start(mac(4), &["--dns=10.1.1.1", FLAG])?;
    drops(&fixed, FIXED, resolvers[0], &[(53, None)])?;
    let (code, said, _) = softnet(&["network", "down", "--force"])?;
    ensure!(code == 0, "{said}");
    Ok(())
}

/// The longest list that is taken arrives, whatever else the VM is given, and a longer one is refused.
pub fn search_domains_that_are_taken_arrive() -> Result<()> {
    let file = "b".repeat(120);
    let root = format!("{SCRATCH}/boot");
    std::fs::create_dir_all(&root)?;
    std::fs::write(format!("{root}/{file}"), "x")?;
    let boot = ["--dns=10.1.1.1,10.1.1.2,10.1.1.3,10.1.1.4,10.1.1.5,10.1.1.6".to_owned()];
    let boot = boot.into_iter().chain([format!("--tftp-root={root}"), format!("--pxe-file={file}")]);
    for (longest, others) in [(245, Vec::new()), (86, boot.collect())] {
        let of = |length: usize| {
            // Beside the first domain, which takes 5 bytes: labels of 50, each with its length, and a zero.
            let mut domain = "a".repeat(length - 5 - 2).into_bytes();
            domain.iter_mut().skip(50).step_by(51).for_each(|byte| *byte = b'.');
            let search = format!("--dns-search=b.c,{}", String::from_utf8_lossy(&domain));
            others.iter().cloned().chain([search]).collect::<Vec<String>>()
        };
        let arguments = of(longest);
        let mut vm = Vm::start(FIRST, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        let asked = [1, 3, 6, 15, 28, 51, 54, 58, 59, 66, 67, SEARCH];
        vm.port.send(&Dhcp::client(kind::DISCOVER, 7, FIRST).with(55, &asked).broadcast())?;
        let offer = DhcpServer::told(&vm.port, kind::OFFER, 7)?;
        ensure!(offer.option(SEARCH).is_some_and(|search| search.len() == longest), "{offer:?}");
        ensure!(asked.iter().all(|code| *code > 60 || offer.option(*code).is_some()), "{offer:?}");
        ensure!(vm.softnet.stop()?.success());
        let arguments = of(longest + 1);
        let said = refusal(FIRST, &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        ensure!(said.contains("--dns-search") && said.contains(&format!("room for {longest} ")), "{said}");
    }
    Ok(())
}

/// dnsmasq 2.90 does not survive if it reads the tags of a VM again that it has answered, so it is replaced instead.
pub fn the_server_outlives_the_end_of_a_vm_with_resolvers() -> Result<()> {
    let other = Vm::start(SECOND, &[])?;
    let (address, gateway) = (other.lease()?, gateway_mac()?);
    for round in 0..3 {
        let mut vm = Vm::start(FIRST, &["--dns=10.1.1.1", FLAG])?;
        vm.lease().with_context(|| format!("round {round}"))?;
        ensure!(vm.softnet.stop()?.success(), "{}", vm.softnet.log());
        renews(&other, address, gateway).with_context(|| format!("round {round}"))?;
    }
    ensure!(!keeper_log().contains("a signal ended dnsmasq"), "{}", keeper_log());
    Ok(())
}

/// A start that has the server replaced waits for the next one: the first message of its VM is answered.
pub fn a_start_that_replaces_the_server_waits_for_it() -> Result<()> {
    let vms = (1..=4)
        .map(|last| {
            let vm = Vm::start(mac(last), &["--dns=10.1.1.1"])?;
            let serves = run("ss", &["-Hlnu", "sport = :67"])?;
            ensure!(!serves.is_empty(), "nobody serves DHCP when VM {last} may begin: {}", keeper_log());
            vm.lease()?;
            Ok(vm)
        })
        .collect::<Result<Vec<_>>>()?;
    ensure!(vms.iter().all(|vm| vm.softnet.counters().is_ok()));
    Ok(())
}

/// Fails unless the filter drops what the VM sends to these ports for these reasons.
fn drops(vm: &Vm, from: Ipv4Addr, to: Ipv4Addr, expected: &[(u16, Option<&str>)]) -> Result<()> {
    let gateway = gateway_mac()?;
    for (port, reason) in expected {
        let before = vm.softnet.counters()?;
        vm.port.send(&Ipv4::new(from, to, udp((from, 4000), (to, *port), b"?")).frame(gateway, vm.mac))?;
        // Behind it one that passes.
        vm.port.send(
            &Ipv4::new(from, INTERNET, udp((from, 4000), (INTERNET, 80), b"?")).frame(gateway, vm.mac),
        )?;
        let mut now = before.clone();
        let sent = 2 - u64::from(reason.is_some());
        ensure!(
            until(|| {
                now = vm.softnet.counters().unwrap_or_else(|_| before.clone());
                now.from_vm["forwarded"] >= before.from_vm["forwarded"] + sent
            }),
            "{port}: {now:?}"
        );
        let dropped: Vec<String> = now.drops_since(&before).into_iter().map(|(name, _)| name).collect();
        ensure!(dropped.iter().map(String::as_str).eq(*reason), "{port}: {dropped:?}");
    }
    Ok(())
}

pub fn a_full_network_says_so() -> Result<()> {
    const FULL: &str = "so this VM may get none";
    let _world = World::build()?;
    // Six addresses, of which the gateway has one.
    let start = |last: u8| Vm::start(Mac([2, 0, 0, 0, 1, last]), &["--subnet=192.168.64.0/29"]);
    let mut vms = Vec::new();
    for last in 1..=5 {
        vms.push(start(last)?);
    }
    // None of them has asked yet, and each will.
    let sixth = start(6)?;
    ensure!(until(|| sixth.softnet.log().contains(FULL)), "{}", sixth.softnet.log());
    for vm in &vms {
        vm.lease()?;
        ensure!(!vm.softnet.log().contains(FULL), "there is one for each: {}", vm.softnet.log());
    }
    sixth.port.send(&Dhcp::client(kind::DISCOVER, 9, sixth.mac).broadcast())?;
    let deadline = Deadline::after(Duration::from_millis(500));
    while let Some(frame) = sixth.port.recv(deadline)? {
        ensure!(parse_dhcp(&frame).is_none_or(|answer| answer.xid != 9), "there was an address");
    }
    drop(sixth);
    let mut first = vms.remove(0);
    first.softnet.stop()?;
    let next = start(7)?;
    next.lease()?;
    ensure!(!next.softnet.log().contains(FULL), "{}", next.softnet.log());
    // One that gets a fixed address keeps its lease of another.
    drop((next, vms));
    let mut keeps = Vm::start(mac(9), &["--no-release", "--vm-address=192.168.64.2"])?;
    ensure!(keeps.lease()? == Ipv4Addr::new(192, 168, 64, 2) && keeps.softnet.stop()?.success());
    let moved = Vm::start(mac(9), &["--no-release", "--vm-address=192.168.64.3"])?;
    let three = (1..=3).map(start).collect::<Result<Vec<_>>>()?;
    ensure!(three.iter().all(|vm| !vm.softnet.log().contains(FULL)), "{}", moved.softnet.log());
    let late = start(4)?;
    ensure!(late.softnet.log().contains(FULL), "one has two: {}", late.softnet.log());
    drop(late);
    let fixed = Vm::start(mac(8), &["--vm-address=192.168.64.4"])?;
    let said = fixed.softnet.log();
    ensure!(said.contains("so another VM that runs may get none"), "{said}");
    Ok(())
}
