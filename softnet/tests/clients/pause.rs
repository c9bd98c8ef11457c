//! A machine that is paused for longer than its lease goes on with its network (C10).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::{until, until_within};
use lab::guest::{Answer, Guest, Image, Request, Vmm, command_line};
use lab::net::{INTERNET, World};
use lab::stage::run;
use lab::{Counters, Softnet};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const QMP: &str = "/run/lab/qmp";
/// The shortest lease, and then some.
const LEASE: &str = "--dhcp-lease-time=120";
const LONGER: Duration = Duration::from_secs(150);

/// QEMU's `stop` also stops the machine's clock, so the client believes in its lease and renews it.
pub fn that_stops_the_clock() -> Result<()> {
    let _world = World::build()?;
    let mut guest = start()?;
    let mut qemu = BufReader::new(UnixStream::connect(QMP)?);
    for command in ["qmp_capabilities", "stop"] {
        execute(&mut qemu, command)?;
    }
    expires(&guest)?;
    execute(&mut qemu, "cont")?;
    shell(&mut guest, "kill -USR1 $(cat /run/udhcpc.pid)")?;
    goes_on(&mut guest)
}

/// A stopped process finds that time has passed.
pub fn that_the_clock_outlives() -> Result<()> {
    let _world = World::build()?;
    let mut guest = start()?;
    let pid = run("pidof", &["qemu-system-x86_64"])?;
    let pid = Pid::from_raw(pid.trim().parse().context("not one QEMU")?);
    kill(pid, Signal::SIGSTOP)?;
    expires(&guest)?;
    kill(pid, Signal::SIGCONT)?;
    goes_on(&mut guest)
}

/// A machine whose client has a lease and looks after it.
fn start() -> Result<Guest> {
    let image = Image::prepared(Vmm::Qemu)?;
    let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_softnet")));
    command.args(["run", Softnet::READY_FLAG, LEASE, "--"]).args(command_line(&image));
    command.arg("-qmp").arg(format!("unix:{QMP},server=on,wait=off")).env("RUST_LOG", "debug");
    let mut guest = Guest::spawn(command)?;
    guest.booted()?;
    let client = "busybox udhcpc -i eth0 -b -p /run/udhcpc.pid -s /lab/udhcpc.sh";
    shell(&mut guest, &format!("{client} >/dev/null 2>&1"))?;
    ensure!(until(|| bound(&guest) == 1), "no lease: {}", guest.softnet.log());
    reaches_the_internet(&mut guest)?;
    Ok(guest)
}

fn expires(guest: &Guest) -> Result<()> {
    let lost = || guest.softnet.log().contains("the VM lost its lease");
    ensure!(until_within(LONGER, lost), "the lease does not end: {}", guest.softnet.log());
    Ok(())
}

fn goes_on(guest: &mut Guest) -> Result<()> {
    ensure!(until(|| bound(guest) == 2), "no lease after the pause: {}", guest.softnet.log());
    reaches_the_internet(guest)?;
    let dropped = guest.softnet.counters()?.drops_since(&Counters::default());
    ensure!(dropped.iter().all(|(reason, _)| reason == "ipv6"), "dropped {dropped:?}");
    let log = guest.softnet.log();
    let leases =
        log.lines().filter_map(|line| line.split_once("the VM has a lease address=")).collect::<Vec<_>>();
    ensure!(leases.iter().all(|(_, address)| *address == leases[0].1), "another address: {log}");
    Ok(())
}

/// How often it was given a lease that it did not have.
fn bound(guest: &Guest) -> usize {
    guest.softnet.log().matches("the VM has a lease").count()
}

fn reaches_the_internet(guest: &mut Guest) -> Result<()> {
    // The client takes the address away for a moment when it renews.
    shell(
        guest,
        &format!("for n in 1 2 3 4 5 6 7 8; do busybox ping -c 1 -W 2 {INTERNET} && exit; done; exit 1"),
    )
}

fn shell(guest: &mut Guest, line: &str) -> Result<()> {
    let argv = ["sh", "-c", line].map(str::to_owned).to_vec();
    match guest.ask(&Request::Run { argv })? {
        Answer::Exited { code: 0, .. } => Ok(()),
        other => anyhow::bail!("{line}: {other:?}; {}", guest.softnet.log()),
    }
}

/// Gives QEMU a command and waits until it has carried it out.
fn execute(qemu: &mut BufReader<UnixStream>, command: &str) -> Result<()> {
    writeln!(qemu.get_mut(), "{{\"execute\": \"{command}\"}}")?;
    let mut line = String::new();
    while !line.contains("\"return\"") {
        line.clear();
        ensure!(qemu.read_line(&mut line)? > 0 && !line.contains("\"error\""), "{command}: {line}");
    }
    Ok(())
}
