//! What becomes of a VM's lease when its Softnet does not live to give it back.
//!
//! dnsmasq answers in the order of what it was sent, so a VM that has been served after a start proves that all that the
//! start sent has been acted on.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::deadline::until;
use lab::stage::run;
use lab::wire::Mac;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::keeper::keeper_log;
use crate::locks::LOCK;
use crate::{FIRST, SECOND, Vm, is_gone, softnet, table, traces, worker_of};

/// A network of five addresses.
const SMALL: &str = "--subnet=10.9.0.0/29";
/// More VMs than it has addresses.
const MANY: u8 = 8;

const RUN: &str = "/run/softnet/softnet0";

pub fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// What dnsmasq has noted.
pub fn leases() -> String {
    std::fs::read_to_string(format!("{RUN}/dnsmasq.leases")).unwrap_or_default()
}

pub fn is_leased(mac: Mac) -> bool {
    leases().contains(&mac.to_string())
}

/// Waits until the monitor knows the VM's address, which is what it gives back.
pub fn is_noted(mac: Mac, address: Ipv4Addr) -> Result<()> {
    let record = || std::fs::read_to_string(format!("{RUN}/ports/{mac}")).unwrap_or_default();
    ensure!(until(|| record().contains(&format!("address {address}\n"))), "not noted: {}", record());
    Ok(())
}

/// A VM whose lease is known to dnsmasq and to its monitor.
pub fn leased(mac: Mac, arguments: &[&str]) -> Result<(Vm, Ipv4Addr)> {
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

pub fn kill_all(vm: &mut Vm) -> Result<()> {
    let monitor = vm.softnet.pid();
    let worker = worker_of(monitor)?;
    kill(monitor, Signal::SIGSTOP)?;
    kill(worker, Signal::SIGKILL)?;
    kill(monitor, Signal::SIGKILL)?;
    vm.softnet.wait()?;
    ensure!(until(|| is_gone(worker)), "the worker stayed");
    Ok(())
}

/// As after a crash of the host, if its files survived that.
fn lose_all(vm: &mut Vm) -> Result<()> {
    kill_all(vm)?;
    run("ip", &["link", "del", "softnet0"])?;
    Ok(())
}

pub fn server() -> Result<Pid> {
    Ok(Pid::from_raw(std::fs::read_to_string(format!("{RUN}/dnsmasq.pid"))?.trim().parse()?))
}

/// The server, which its keeper replaces.
pub fn kill_the_server_alone() -> Result<()> {
    let before = server()?;
    kill(before, Signal::SIGKILL)?;
    ensure!(until(|| server().is_ok_and(|now| now != before)), "not replaced: {}", keeper_log());
    Ok(())
}

/// The server and whoever would replace it.
fn kill_the_server() -> Result<()> {
    // None of them sees another's end.
    let server = pause()?;
    for pid in keepers()?.into_iter().chain([server]) {
        kill(pid, Signal::SIGKILL)?;
        ensure!(until(|| is_gone(pid)), "{pid} stayed");
    }
    Ok(())
}

/// The keeper's two processes, the one that watches the other first.
pub fn keepers() -> Result<Vec<Pid>> {
    let text = std::fs::read_to_string("/run/softnet/locks/softnet0/keeper")?;
    let pid = |line: &str| Ok(Pid::from_raw(line.split(' ').next().context("no process")?.parse()?));
    text.lines().map(pid).collect()
}

/// Stops the server, and the keeper, who would have it go on.
fn pause() -> Result<Pid> {
    // A keeper that stopped inside the lock would keep everybody from it.
    let file = std::fs::OpenOptions::new().write(true).open(LOCK)?;
    let held = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let (server, keepers) = (server()?, keepers()?);
    for &pid in keepers.iter().chain([&server]) {
        kill(pid, Signal::SIGSTOP)?;
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(until(|| stat().contains(") T ")), "{pid} does not stop: {}", stat());
    }
    drop(held);
    Ok(server)
}

fn resume(server: Pid) -> Result<()> {
    kill(server, Signal::SIGCONT)?;
    for pid in keepers()? {
        kill(pid, Signal::SIGCONT)?;
    }
    Ok(())
}

/// What a killed Softnet leaves that knew an address.
fn leave_a_record(mac: Mac, address: Ipv4Addr) -> Result<()> {
    let record = format!("mac {mac}\npid 1\nrelease true\naddress {address}\n");
    Ok(std::fs::write(format!("{RUN}/ports/{mac}"), record)?)
}

/// A start that gets nowhere before the stopped server goes on.
fn start_that_waits_for(server: Pid, mac: Mac) -> Result<Vm> {
    let (sender, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || drop(sender.send(Vm::start(mac, &[]))));
    let early = started.recv_timeout(Duration::from_millis(100));
    resume(server)?;
    ensure!(early.is_err(), "it did not wait");
    started.recv()?
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

pub fn the_next_start_gives_the_leases_of_the_killed_back() -> Result<()> {
    for last in 1..=MANY {
        let (mut vm, _) = leased(mac(last), &[SMALL])?;
        kill_all(&mut vm)?;
        ensure!(is_leased(mac(last)), "{last}: who gave it back?");
    }
    let (mut vm, _) = leased(FIRST, &[SMALL])?;
    ensure!(leases().lines().count() == 1, "not only the living VM's:\n{}", leases());
    ensure!(vm.softnet.stop()?.success());
    ensure!(until(|| leases().is_empty()), "{}", leases());
    ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    Ok(())
}

pub fn a_vm_that_comes_back_keeps_its_address() -> Result<()> {
    let (mut vm, address) = leased(FIRST, &[])?;
    kill_all(&mut vm)?;
    let mut again = Vm::start(FIRST, &[])?;
    // Without a word of DHCP.
    is_noted(FIRST, address)?;
    let (_second, others) = leased(SECOND, &[])?;
    ensure!(others != address, "{address} was given away");
    ensure!(leases().contains(&format!("{FIRST} {address} ")), "not leased any more:\n{}", leases());
    ensure!(again.softnet.stop()?.success());
    ensure!(until(|| !is_leased(FIRST)), "{}", leases());
    Ok(())
}

pub fn no_death_takes_a_lease_that_is_to_be_kept() -> Result<()> {
    for deed in [kill_the_worker, kill_all] {
        let (mut vm, address) = leased(FIRST, &["--no-release"])?;
        deed(&mut vm)?;
        let (mut second, _) = leased(SECOND, &[])?;
        ensure!(leases().contains(&format!("{FIRST} {address} ")), "not kept:\n{}", leases());
        ensure!(second.softnet.stop()?.success());
        let mut again = Vm::start(FIRST, &["--no-release"])?;
        is_noted(FIRST, address)?;
        ensure!(again.softnet.stop()?.success());
    }
    Ok(())
}

pub fn a_lease_waits_for_a_server_that_was_killed_too() -> Result<()> {
    type Deed = fn(&mut Vm) -> Result<()>;
    let deeds: [(Deed, bool); 2] = [(kill_the_worker, true), (lose_all, false)];
    for (deed, somebody_leaves) in deeds {
        let (mut vm, address) = leased(FIRST, &["--expose=5000:80"])?;
        let leads_to_it = format!("{address} . 80");
        ensure!(until(|| table().contains(&leads_to_it)), "{}", table());
        kill_the_server()?;
        deed(&mut vm)?;
        ensure!(is_leased(FIRST));
        ensure!(table().contains(&leads_to_it) != somebody_leaves, "{}", table());
        let (mut second, _) = leased(SECOND, &[])?;
        ensure!(!table().contains(&leads_to_it), "{}", table());
        ensure!(!is_leased(FIRST), "still leased:\n{}", leases());
        ensure!(second.softnet.stop()?.success());
        ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    }
    // Who is left when all is killed keeps nobody from taking the network down.
    let (mut vm, _) = leased(FIRST, &[])?;
    kill_all(&mut vm)?;
    kill_the_server()?;
    let (code, said, _) = softnet(&["network", "down"])?;
    ensure!(code == 0 && said.contains("network softnet0 was removed"), "{code} {said}");
    ensure!(run("find", &["/run/softnet", "-name", "softnet0"])?.is_empty());
    Ok(())
}

/// To the server it is a lease, whether or not its answer finds the VM.
pub fn an_answer_that_finds_no_vm_is_given_back_too() -> Result<()> {
    let vm = Vm::start(FIRST, &[])?;
    let offer = vm.offer()?;
    vm.request(&offer)?;
    // What the VM sent before its end is still carried.
    let Vm { port, mut softnet, .. } = vm;
    drop(port);
    ensure!(softnet.wait()?.success());
    ensure!(!is_leased(FIRST), "still leased:\n{}", leases());

    // If the server does not answer in time, the next start looks.
    let vm = Vm::start(FIRST, &[])?;
    let offer = vm.offer()?;
    let server = pause()?;
    vm.request(&offer)?;
    let Vm { port, mut softnet, .. } = vm;
    drop(port);
    ensure!(
        softnet.wait()?.success() && softnet.log().contains("the next start checks"),
        "{}",
        softnet.log()
    );
    resume(server)?;
    let (_second, _) = leased(SECOND, &[])?;
    ensure!(!is_leased(FIRST), "still leased:\n{}", leases());
    Ok(())
}

/// A VM that starts again at once must not take over what its last Softnet has just given back.
pub fn a_lease_that_is_about_to_end_is_not_taken_over() -> Result<()> {
    let (mut vm, _) = leased(FIRST, &[])?;
    let server = pause()?;
    vm.softnet.signal(Signal::SIGTERM)?;
    ensure!(until(|| vm.port.is_closed()), "the worker stayed");
    let mut again = start_that_waits_for(server, FIRST)?;
    ensure!(vm.softnet.wait()?.success());
    let record = std::fs::read_to_string(format!("{RUN}/ports/{FIRST}"))?;
    ensure!(!record.contains("address ") && !is_leased(FIRST), "{record}\n{}", leases());
    let address = again.lease()?;
    is_noted(FIRST, address)?;
    ensure!(again.softnet.stop()?.success());
    Ok(())
}

pub fn an_answer_that_no_worker_lived_to_see_is_given_back_too() -> Result<()> {
    let mut vm = Vm::start(FIRST, &[])?;
    let offer = vm.offer()?;
    let (server, worker) = (pause()?, worker_of(vm.softnet.pid())?);
    vm.request(&offer)?;
    let forwarded = || vm.softnet.counters().is_ok_and(|now| now.from_vm.get("forwarded") == Some(&2));
    ensure!(until(forwarded), "the request was not carried");
    kill(worker, Signal::SIGSTOP)?;
    resume(server)?;
    ensure!(until(|| is_leased(FIRST)));
    kill(worker, Signal::SIGKILL)?;
    vm.softnet.wait()?;
    ensure!(!is_leased(FIRST), "still leased:\n{}", leases());
    Ok(())
}

/// A request that the server has not read when the next start looks.
pub fn a_request_in_the_servers_queue_is_waited_for() -> Result<()> {
    let mut vm = Vm::start(FIRST, &[])?;
    let offer = vm.offer()?;
    let server = pause()?;
    vm.request(&offer)?;
    let forwarded = || vm.softnet.counters().is_ok_and(|now| now.from_vm.get("forwarded") == Some(&2));
    ensure!(until(forwarded), "the request was not carried");
    kill_all(&mut vm)?;
    start_that_waits_for(server, SECOND)?.lease()?;
    ensure!(!is_leased(FIRST), "still leased:\n{}", leases());
    Ok(())
}

pub fn a_lease_that_no_monitor_lived_to_note_is_given_back_too() -> Result<()> {
    let mut vm = Vm::start(FIRST, &[])?;
    vm.softnet.signal(Signal::SIGSTOP)?;
    vm.lease()?;
    kill_all(&mut vm)?;
    ensure!(is_leased(FIRST), "who gave it back?");
    let (_second, _) = leased(SECOND, &[])?;
    ensure!(!is_leased(FIRST), "still leased:\n{}", leases());
    Ok(())
}

pub fn nobody_elses_lease_is_given_back() -> Result<()> {
    let (_vm, address) = leased(FIRST, &[])?;
    leave_a_record(mac(3), address)?;
    let (_second, _) = leased(SECOND, &[])?;
    ensure!(leases().contains(&format!("{FIRST} {address} ")), "taken away:\n{}", leases());
    Ok(())
}

pub fn the_leases_of_many_dead_are_given_back_bit_by_bit() -> Result<()> {
    let (mut vm, _) = leased(FIRST, &[])?;
    ensure!(vm.softnet.stop()?.success());
    kill_the_server()?;
    // The whole pool is leased, and nobody is alive.
    let ends = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() + 600;
    let mut noted = String::new();
    for last in 2..=254 {
        let address = Ipv4Addr::new(192, 168, 64, last);
        leave_a_record(mac(last), address)?;
        writeln!(noted, "{ends} {} {address} * *", mac(last))?;
    }
    std::fs::write(format!("{RUN}/dnsmasq.leases"), noted)?;
    let mut starts = 0;
    while !leases().is_empty() {
        let before = leases().lines().count();
        let (mut vm, _) = leased(FIRST, &[])?;
        ensure!(vm.softnet.stop()?.success());
        ensure!(until(|| !is_leased(FIRST)));
        ensure!(leases().lines().count() < before, "none was given back: {before}");
        starts += 1;
    }
    ensure!(starts == 4, "{starts} starts: {}", keeper_log());
    ensure!(traces()?.is_empty(), "left behind: {}", traces()?);
    Ok(())
}
