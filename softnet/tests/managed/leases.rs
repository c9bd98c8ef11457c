//! What becomes of a VM's lease when its Softnet does not live to give it back.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use lab::deadline::until;
use lab::wire::Mac;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{FIRST, Vm, is_gone, traces, worker_of};

/// A network of five addresses.
const SMALL: &str = "--subnet=10.9.0.0/29";
/// More VMs than it has addresses.
const MANY: u8 = 8;

const RUN: &str = "/run/softnet/softnet0";

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// What dnsmasq has noted.
fn leases() -> String {
    std::fs::read_to_string(format!("{RUN}/dnsmasq.leases")).unwrap_or_default()
}

fn is_leased(mac: Mac) -> bool {
    leases().contains(&mac.to_string())
}

/// Waits until the monitor knows the VM's address, which is what it gives back.
fn is_noted(mac: Mac, address: Ipv4Addr) -> Result<()> {
    let record = || std::fs::read_to_string(format!("{RUN}/ports/{mac}")).unwrap_or_default();
    ensure!(until(|| record().contains(&format!("address {address}\n"))), "not noted: {}", record());
    Ok(())
}

/// A VM whose lease is known to dnsmasq and to its monitor.
fn leased(mac: Mac, arguments: &[&str]) -> Result<(Vm, Ipv4Addr)> {
    let vm = Vm::start(mac, arguments)?;
    let address = vm.lease().with_context(|| format!("no address for {mac} beside\n{}", leases()))?;
    is_noted(mac, address)?;
    Ok((vm, address))
}

fn kill_the_worker(vm: &mut Vm) -> Result<()> {
    kill(worker_of(vm.softnet.pid())?, Signal::SIGKILL)?;
    vm.softnet.wait()?;
    Ok(())
}

fn server() -> Result<Pid> {
    Ok(Pid::from_raw(std::fs::read_to_string(format!("{RUN}/dnsmasq.pid"))?.trim().parse()?))
}

/// Datagrams that were sent from here, but for those of the VMs (RFC 4113, `udpOutDatagrams`).
fn datagrams_sent() -> Result<u64> {
    // One is counted when it has been delivered: the server may have to return from sending yet.
    let server = server()?;
    let stat = || std::fs::read_to_string(format!("/proc/{server}/stat")).unwrap_or_default();
    ensure!(until(|| stat().contains(") S ")), "dnsmasq does not rest: {}", stat());
    let counters = std::fs::read_to_string("/proc/net/snmp")?;
    let mut lines = counters.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).context("no counters")?;
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutDatagrams");
    Ok(found.context("no counter")?.1.parse()?)
}

pub fn a_lease_is_given_back_once() -> Result<()> {
    let (mut vm, _) = leased(FIRST, &[])?;
    let sent = datagrams_sent()?;
    ensure!(vm.softnet.stop()?.success());
    ensure!(until(|| !is_leased(FIRST)), "{}", leases());
    ensure!(datagrams_sent()? == sent, "the monitor gave it back too");

    // The worker's last words count, though the monitor reads them when the worker is dead.
    let (mut vm, _) = leased(FIRST, &[])?;
    let worker = worker_of(vm.softnet.pid())?;
    let sent = datagrams_sent()?;
    vm.softnet.signal(Signal::SIGSTOP)?;
    kill(worker, Signal::SIGTERM)?;
    ensure!(until(|| is_gone(worker)));
    vm.softnet.signal(Signal::SIGCONT)?;
    ensure!(vm.softnet.wait()?.success());
    ensure!(datagrams_sent()? == sent, "the monitor did not hear that it was given back");

    let (mut vm, _) = leased(FIRST, &[])?;
    let sent = datagrams_sent()?;
    kill_the_worker(&mut vm)?;
    ensure!(datagrams_sent()? == sent + 1);
    Ok(())
}

pub fn a_killed_workers_lease_is_given_back() -> Result<()> {
    for last in 1..=MANY {
        let (mut vm, _) = leased(mac(last), &[SMALL])?;
        ensure!(is_leased(mac(last)));
        kill_the_worker(&mut vm)?;
        ensure!(until(|| !is_leased(mac(last))), "{last}: still leased:\n{}", leases());
    }
    ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    Ok(())
}
