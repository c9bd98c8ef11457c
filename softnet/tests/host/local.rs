//! What an ordinary user of the host can do to the VMs of others: nothing (H9).

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::deadline::until;
use lab::wire::{Dhcp, Mac, dhcp_kind as kind, dhcp_option as option};
use nix::sys::signal::{Signal, kill};

use crate::fixture::{
    BRIDGE_GATEWAY, Bridge, GATEWAY, RUN, SOFTNET, Vm, World, is_gone, is_leased, leases, mac, server, xid,
};
use crate::service::{ODD, is_not_odd};
use crate::user::{SET_USER_ID, USER, User, install};

/// How long a wait for a lock may take by the rule, and a busy machine on top.
const WAIT: Duration = Duration::from_secs(30 + 5);

/// Runs the program to its end, which must come while the test has patience.
fn softnet(arguments: &[&str]) -> Result<(ExitStatus, String)> {
    let mut child = Command::new(SOFTNET)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if !until(|| !matches!(child.try_wait(), Ok(None))) {
        child.kill()?;
        bail!("softnet {arguments:?} hangs");
    }
    let output = child.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status, String::from_utf8_lossy(&said).into_owned()))
}

fn succeeds(arguments: &[&str]) -> Result<String> {
    let (status, said) = softnet(arguments)?;
    ensure!(status.success(), "softnet {arguments:?}: {status}: {said}");
    Ok(said)
}

pub fn h9_a_users_lock_stops_nobody() -> Result<()> {
    for how in ["exclusive", "shared"] {
        let (mut first, _) = Vm::leased(mac(1), &[])?;
        let _held = User::does("lock", &[how, "/run/softnet"])?;
        let (mut second, address) =
            Vm::leased(mac(2), &[]).with_context(|| format!("a start beside a lock, {how}"))?;
        second.gateway_mac(address)?;
        let _held_too = User::does("lock", &[how, "/run/softnet"])?;
        ensure!(first.softnet.stop().with_context(|| format!("an end beside a lock, {how}"))?.success());
        succeeds(&["network", "status"])?;
        second.kill_all()?;
        succeeds(&["network", "down"]).with_context(|| format!("nobody is alive, {how}"))?;
    }
    Ok(())
}

/// Somebody who died does not live on in a lock that a user took.
pub fn h9_a_users_lock_keeps_no_dead_vm_alive() -> Result<()> {
    let (mut vm, address) = Vm::leased(mac(1), &["--expose=5000:80"])?;
    vm.kill_all()?;
    // The files that said that it lived; no start has to take these.
    let _held = User::does("lock", &["shared", &format!("{RUN}/ports")])?;
    let _leases = User::does("lock", &["shared", &format!("{RUN}/leases")])?;
    let (_second, _) = Vm::leased(mac(2), &["--expose=5000:80"])?;
    ensure!(until(|| !is_leased(mac(1), address)), "a dead VM keeps its lease:\n{}", leases());
    // And the address and the MAC are free for whoever comes.
    let third = Vm::start(mac(1), &[])?;
    ensure!(third.lease(Some(address))? == address);
    let gateway = third.gateway_mac(address)?;
    third.send_judged(&[crate::fixture::routed(
        &third,
        gateway,
        address,
        GATEWAY,
        lab::wire::icmp(8, 0, &[0, 1, 0, 1]),
    )])?;
    ensure!(third.listen(address, Duration::from_secs(5), |frame| frame.get(34) == Some(&0))?.is_some());
    Ok(())
}

/// Root's own lock is waited for, but not for ever, and it is said whose it is.
/// Whether the kernel lists it as the holder of the lock of all networks (proc_locks(5)).
fn holds_the_lock(holder: &User) -> Result<bool> {
    let inode = std::fs::metadata("/run/softnet/locks/lock")?.ino();
    let (pid, file) = (format!(" {} ", holder.pid()), format!(":{inode} "));
    Ok(std::fs::read_to_string("/proc/locks")?
        .lines()
        .any(|line| line.contains(&pid) && line.contains(&file)))
}

pub fn h9_a_wait_for_a_lock_ends_and_names_the_holder() -> Result<()> {
    let (mut first, _) = Vm::leased(mac(1), &[])?;
    // The keeper may have it for a moment.
    let mut holder = None;
    let takes_it = || {
        holder = User::root_does("lock", &["exclusive", "/run/softnet"]).ok();
        holder.as_ref().is_some_and(|holder| holds_the_lock(holder).unwrap_or(false))
    };
    ensure!(until(takes_it), "nothing is locked: the test shows nothing");
    let holder = holder.context("nobody locks")?;
    let begun = Instant::now();
    let (_port, mut softnet) = Vm::begin(mac(2), Command::new(SOFTNET))?;
    let mut ended = false;
    while !ended && begun.elapsed() < WAIT {
        // `until` gives up after its own patience.
        ended = until(|| !softnet.is_running());
    }
    ensure!(ended, "still waiting after {:?}", begun.elapsed());
    ensure!(!softnet.wait()?.success());
    let said = softnet.log();
    ensure!(said.contains(&holder.pid().to_string()), "{} is not named: {said}", holder.pid());
    drop(holder);
    ensure!(first.softnet.is_running(), "who ran already ended: {}", first.softnet.log());
    ensure!(first.softnet.stop()?.success());
    Ok(())
}

fn hex(message: &Dhcp) -> String {
    message.bytes().iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Everywhere where the host's own server listens, as an ordinary user can say it.
const WAYS: [(&str, &str); 6] = [
    ("-", "192.168.64.1:67"),
    ("softnet0", "192.168.64.1:67"),
    ("softnet0", "255.255.255.255:67"),
    ("softnet0", "192.168.64.255:67"),
    ("-", "192.168.64.255:67"),
    ("lo", "255.255.255.255:67"),
];

/// Says all this from the host as the user; the server has heard it when this returns.
fn is_heard(message: &Dhcp, other: u8) -> Result<Vm> {
    for (device, to) in WAYS {
        User::does("send", &[device, to, &hex(message)])?;
    }
    // The server answers in order.
    let (vm, _) = Vm::leased(mac(other), &[])?;
    Ok(vm)
}

pub fn h9_a_user_takes_no_lease_away() -> Result<()> {
    let (vm, address) = Vm::leased(mac(1), &[])?;
    for (number, kind) in (2..).zip([kind::RELEASE, kind::DECLINE]) {
        let message = Dhcp { ciaddr: address, ..Dhcp::client(kind, xid(), vm.mac) }
            .with(option::SERVER, &GATEWAY.octets())
            .with(option::REQUESTED_ADDRESS, &address.octets());
        let message =
            if kind == kind::RELEASE { message.without(option::REQUESTED_ADDRESS) } else { message };
        let _other = is_heard(&message, number)?;
        ensure!(is_leased(vm.mac, address), "message {kind} of a user took the lease:\n{}", leases());
    }
    Ok(())
}

/// On a bridge of somebody else's too, whose server cannot tell the host's users from the VMs.
pub fn h9_a_user_takes_no_lease_away_behind_bridge() -> Result<()> {
    let world = World::build()?;
    let _bridge = Bridge::build(&world)?;
    let (vm, address) = Vm::leased(mac(1), &["--bridge=br1"])?;
    let release = Dhcp { ciaddr: address, ..Dhcp::client(kind::RELEASE, xid(), vm.mac) }
        .with(option::SERVER, &BRIDGE_GATEWAY.octets());
    for (device, to) in
        [("-", "10.5.0.1:67"), ("br1", "10.5.0.1:67"), ("br1", "255.255.255.255:67"), ("-", "10.5.0.255:67")]
    {
        User::does("send", &[device, to, &hex(&release)])?;
    }
    // The server answers in order.
    let _other = Vm::leased(mac(2), &["--bridge=br1"])?;
    let leases = std::fs::read_to_string("/run/lab/br1.leases")?;
    ensure!(leases.contains(&vm.mac.to_string()), "a user of the host took the lease:\n{leases}");
    Ok(())
}

pub fn h9_a_user_takes_no_address() -> Result<()> {
    let (_vm, _) = Vm::leased(mac(1), &[])?;
    let stranger = Mac([2, 9, 9, 9, 9, 9]);
    let wanted = Ipv4Addr::new(192, 168, 64, 200);
    let request = Dhcp::client(kind::REQUEST, xid(), stranger)
        .with(option::REQUESTED_ADDRESS, &wanted.octets())
        .with(option::SERVER, &GATEWAY.octets());
    let reboot = request.clone().without(option::SERVER);
    let renewal = Dhcp { ciaddr: wanted, ..Dhcp::client(kind::REQUEST, xid(), stranger) };
    for (number, message) in (2..).zip([request, reboot, renewal]) {
        let _other = is_heard(&message, number)?;
        ensure!(
            !leases().contains(&stranger.to_string()),
            "a user of the host took an address:\n{}",
            leases()
        );
    }
    Ok(())
}

/// A process with the name and the words of the server.
pub fn h9_who_looks_like_the_server_is_not_taken_for_it() -> Result<()> {
    let (mut first, _) = Vm::leased(mac(1), &[])?;
    let real = server("softnet0").context("no server")?;
    let line = std::fs::read(format!("/proc/{real}/cmdline"))?;
    let words: Vec<&str> = line
        .split(|byte| *byte == 0)
        .skip(1)
        .filter_map(|word| std::str::from_utf8(word).ok())
        .filter(|word| !word.is_empty())
        .collect();
    let fake = User::pretends("/x/dnsmasq", &words)?;
    kill(real, Signal::SIGKILL)?;
    ensure!(until(|| is_gone(real)));
    let (_second, address) = Vm::leased(mac(2), &[])?;
    ensure!(is_leased(mac(2), address));
    ensure!(!is_gone(fake.pid()), "a user's process was ended for it");
    ensure!(first.softnet.stop()?.success());
    ensure!(!is_gone(fake.pid()), "a user's process was ended for it");
    Ok(())
}

pub fn h9_a_set_user_id_start_that_is_stopped_stops_nobody() -> Result<()> {
    install()?;
    // Without a network, where a start does most, and with one.
    let stopper = User::does("stop", &["100"])?;
    let (mut first, address) =
        Vm::leased(mac(1), &[]).with_context(|| format!("the user {}", stopper.said))?;
    first.gateway_mac(address)?;
    drop(stopper);
    let stopper = User::does("stop", &["110"])?;
    let _second = Vm::leased(mac(2), &[]).with_context(|| format!("the user {}", stopper.said))?;
    ensure!(first.softnet.stop()?.success());
    Ok(())
}

pub fn h9_a_set_user_id_start_gives_the_server_nothing_of_its_callers() -> Result<()> {
    install()?;
    let mut command = Command::new("sh");
    command.args(["-c", ODD, "sh", SET_USER_ID]).uid(USER).gid(USER);
    is_not_odd(&Vm::spawn(mac(1), command)?)
}

pub fn h9_a_set_user_id_start_changes_no_network_of_others() -> Result<()> {
    install()?;
    let (first, address) = Vm::leased(mac(1), &[])?;
    let before = server("softnet0").context("no server")?;
    let arguments = std::fs::read(format!("/proc/{before}/cmdline"))?;
    let mut command = Command::new(SET_USER_ID);
    command.arg("--bootpd-lease-time=300").uid(USER).gid(USER);
    let (_port, mut softnet) = Vm::begin(mac(2), command)?;
    // To be refused is as good as to be served with the network as it is.
    let _ = softnet.ready();
    let now = server("softnet0").context("no server any more")?;
    ensure!(now == before, "an ordinary user restarted the shared server");
    ensure!(std::fs::read(format!("/proc/{now}/cmdline"))? == arguments);
    first.gateway_mac(address)?;
    ensure!(first.lease(Some(address))? == address);
    Ok(())
}
