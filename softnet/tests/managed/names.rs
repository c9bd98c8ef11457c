//! The names of VMs: the host finds a running VM by the name that it was started with, and no VM learns of another.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Softnet;
use lab::deadline::{Deadline, until};
use lab::stage::{SCRATCH, run};
use lab::wire::{Ipv4, address_at, u16_at, udp};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::addresses::gateway_mac;
use crate::keeper::keeper_log;
use crate::leases::{is_noted, kill_all, leased, mac};
use crate::locks::{by_user, set_user_id};
use crate::{FIRST, SECOND, SOFTNET, Vm, VmPort};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
/// Where the host asks for names.
const NAMES: u16 = 5380;
/// Types of questions (RFC 1035, section 3.2.2).
const A: u8 = 1;
const PTR: u8 = 12;

fn question(name: &str, kind: u8) -> Vec<u8> {
    let mut bytes = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(label.len().try_into().unwrap_or(u8::MAX));
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, kind, 0, 1]);
    bytes
}

/// What the host is told at this port of the gateway: the whole answer, if there is one with a record.
fn told(port: u16, name: &str, kind: u8) -> Result<Option<Vec<u8>>> {
    told_by((GATEWAY, port), name, kind)
}

fn told_by(server: (Ipv4Addr, u16), name: &str, kind: u8) -> Result<Option<Vec<u8>>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send_to(&question(name, kind), server)?;
    let mut answer = [0; 600];
    let Ok(length) = socket.recv(&mut answer) else { return Ok(None) };
    Ok((u16_at(&answer, 6) > 0).then(|| answer[..length].to_vec()))
}

fn finds(name: &str, address: Ipv4Addr) -> bool {
    told(NAMES, name, A).is_ok_and(|told| told.is_some_and(|told| told.ends_with(&address.octets())))
}

fn is_unknown(name: &str) -> bool {
    told(NAMES, name, A).is_ok_and(|told| told.is_none())
}

fn named(mac: lab::wire::Mac, name: &str) -> Result<(Vm, Ipv4Addr)> {
    leased(mac, &[&format!("--name={name}")])
}

/// What the VM is told at this port of the gateway: the answer to its question, or nothing.
fn told_the_vm(vm: &Vm, own: Ipv4Addr, port: u16, name: &str) -> Result<Option<Vec<u8>>> {
    let asked = udp((own, 4000), (GATEWAY, port), &question(name, A));
    vm.port.send(&Ipv4::new(own, GATEWAY, asked).frame(gateway_mac()?, vm.mac))?;
    let soon = Deadline::after(Duration::from_secs(1));
    while let Some(frame) = vm.port.recv(soon)? {
        if frame.get(12..14) == Some(&[8, 6]) && frame.get(20..22) == Some(&[0, 1]) {
            vm.answer_arp(&frame, own)?;
        }
        if address_at(&frame, 26) == GATEWAY && (u16_at(&frame, 34), u16_at(&frame, 36)) == (port, 4000) {
            return Ok(Some(frame[42..].to_vec()));
        }
    }
    Ok(None)
}

pub fn h11_names_of_vms_are_for_the_host_alone() -> Result<()> {
    let (one, address) = named(FIRST, "Web")?;
    let (two, own) = leased(SECOND, &["--allow=0.0.0.0/0"])?;
    for name in ["web.softnet0", "WEB.softnet0"] {
        ensure!(until(|| finds(name, address)), "{name} is not {address}: {}", one.softnet.log());
    }
    let [a, b, c, d] = address.octets();
    let reverse = format!("{d}.{c}.{b}.{a}.in-addr.arpa");
    let answer = told(NAMES, &reverse, PTR)?.context("no name for the address")?;
    ensure!(answer.windows(13).any(|window| window == b"\x03web\x08softnet0"), "{answer:02x?}");
    // Nothing at the port where VMs ask, and the port of the names is closed to them.
    let answer =
        told_the_vm(&two, own, 53, "web.softnet0")?.context("the resolver does not answer the VM")?;
    ensure!(u16_at(&answer, 6) == 0 && u16_at(&answer, 2) & 15 == 3, "not NXDOMAIN: {answer:02x?}");
    ensure!(told(53, "web.softnet0", A)?.is_none());
    ensure!(told_the_vm(&two, own, NAMES, "web.softnet0")?.is_none(), "a VM was told of another");
    // A static guest has a name too.
    let fixed = Vm::start(mac(3), &["--name=db", "--vm-address=192.168.64.77"])?;
    ensure!(until(|| finds("db.softnet0", Ipv4Addr::new(192, 168, 64, 77))), "{}", fixed.softnet.log());
    Ok(())
}

/// The host's resolver asks the server of names of another network, as the documents say, and no VM learns a name by it.
pub fn h11_no_vm_learns_names_of_another_network_by_the_hosts_resolver() -> Result<()> {
    const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 53);
    std::fs::write(Path::new(SCRATCH).join("resolv.conf"), format!("nameserver {RESOLVER}\n"))?;
    let options =
        ["--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user=nobody"];
    let file = format!("--pid-file={SCRATCH}/resolver.pid");
    let zone = "--server=/second2/192.168.65.1#5380";
    run("dnsmasq", &[&options[..], &[&file, zone, "--listen-address=127.0.0.53"]].concat())?;
    let (vm, own) = leased(FIRST, &[])?;
    let other = Vm::start(SECOND, &["--network=second2", "--subnet=192.168.65.0/24", "--name=db"])?;
    let address = other.lease()?;
    let is_told = || told_by((RESOLVER, 53), "db.second2", A).ok().flatten();
    ensure!(until(|| is_told().is_some_and(|told| told.ends_with(&address.octets()))));
    let answer = told_the_vm(&vm, own, 53, "db.second2")?.context("the resolver does not answer the VM")?;
    ensure!(u16_at(&answer, 6) == 0 && u16_at(&answer, 2) & 15 == 3, "not NXDOMAIN: {answer:02x?}");
    let zones = || std::fs::read_to_string("/run/softnet/softnet0/dnsmasq.zones").unwrap_or_default();
    ensure!(zones().contains("/65.168.192.in-addr.arpa/"), "{}", zones());
    run(SOFTNET, &["network", "down", "--network=second2", "--force"])?;
    ensure!(!zones().contains("second2"), "{}", zones());
    Ok(())
}

/// Its zone would hide a domain of the Internet from VMs.
pub fn a_network_with_the_name_of_a_domain_has_no_names() -> Result<()> {
    let vm = Vm::start(FIRST, &["--network=com", "--name=web"])?;
    ensure!(vm.softnet.log().contains("could be a domain of the Internet"), "{}", vm.softnet.log());
    let plan = std::fs::read_to_string("/run/softnet/com/network")?;
    ensure!(plan.contains("names false"), "{plan}");
    Ok(())
}

pub fn a_name_is_one_vms_while_it_runs() -> Result<()> {
    let (mut one, address) = named(FIRST, "web")?;
    ensure!(until(|| finds("web.softnet0", address)), "{}", one.softnet.log());
    let (mut two, _) = named(SECOND, "WEB")?;
    let said = two.softnet.log();
    ensure!(said.contains("another VM has this name") && said.contains(&FIRST.to_string()), "{said}");
    ensure!(finds("web.softnet0", address));
    ensure!(one.softnet.stop()?.success() && two.softnet.stop()?.success());
    ensure!(until(|| is_unknown("web.softnet0")));
    // After a death it is free at the next start at the latest.
    let (mut one, address) = named(FIRST, "web")?;
    ensure!(until(|| finds("web.softnet0", address)));
    kill_all(&mut one)?;
    let (_two, address) = named(SECOND, "web")?;
    ensure!(until(|| finds("web.softnet0", address)));
    Ok(())
}

pub fn a_set_user_id_start_names_no_vm() -> Result<()> {
    let program = set_user_id()?;
    let (port, theirs) = VmPort::pair()?;
    let mut command = by_user(program, &["--vm-fd=0", "--name=web", Softnet::READY_FLAG]);
    command.arg(format!("--vm-mac-address={FIRST}")).stdin(theirs);
    let mut softnet = Softnet::spawn(command)?;
    let ready = softnet.ready()?;
    let vm = Vm { port, softnet, mac: FIRST, ready };
    is_noted(FIRST, vm.lease()?)?;
    ensure!(std::fs::read_to_string("/run/softnet/softnet0/network")?.contains("names false"));
    // Nor where names are served.
    let (_two, address) = named(SECOND, "db")?;
    ensure!(until(|| finds("db.softnet0", address)) && is_unknown("web.softnet0"));
    Ok(())
}

/// Another program at the port is named as such, by the start and by the status, and names are served once it is gone.
pub fn a_taken_port_of_names_is_said_and_tried_again() -> Result<()> {
    let other = TcpListener::bind("0.0.0.0:5380")?;
    let (vm, address) = named(FIRST, "web")?;
    let status = || run(SOFTNET, &["network", "status"]);
    for said in [vm.softnet.log(), keeper_log(), status()?] {
        ensure!(said.contains("port 5380 is taken") && said.contains("server of names"), "{said}");
        ensure!(said.contains("ss -lnptu 'sport = :5380'"), "{said}");
    }
    drop(other);
    ensure!(until(|| finds("web.softnet0", address)), "{}", keeper_log());
    ensure!(until(|| status().is_ok_and(|said| said.contains("  names    process "))), "{}", status()?);
    ensure!(!status()?.contains("is taken") && !keeper_log().contains("repairing"), "{}", keeper_log());
    Ok(())
}

pub fn the_server_of_names_is_replaced() -> Result<()> {
    let (_vm, address) = named(FIRST, "web")?;
    ensure!(until(|| finds("web.softnet0", address)));
    let pid =
        || -> Result<i32> { Ok(std::fs::read_to_string("/run/softnet/softnet0/names.pid")?.trim().parse()?) };
    let before = pid()?;
    kill(Pid::from_raw(before), Signal::SIGKILL)?;
    ensure!(until(|| pid().is_ok_and(|now| now != before)) && until(|| finds("web.softnet0", address)));
    Ok(())
}
