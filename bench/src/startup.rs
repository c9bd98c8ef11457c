//! Measures the start and idle VMs.

use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::VmPort;
use lab::deadline::{Deadline, until};
use lab::wire::{Dhcp, Mac, dhcp_kind, parse_dhcp};

use crate::peers::{Kind, Site, TAP, command, program_path, softnet_arguments};
use crate::report::{Figures, Report};
use crate::usage::Process;

/// How long to wait before measuring idle VMs: until Softnet has detected that they are idle.
const SETTLE: Duration = Duration::from_secs(65);
/// How long they are then measured.
const IDLE: Duration = Duration::from_secs(20);

/// Measures the time from the start of each peer with a VM's socket to the first DHCP OFFER in that socket.
///
/// # Errors
/// If no OFFER comes.
pub fn measure(site: &Site, repetitions: usize, report: &mut Report) -> Result<()> {
    eprintln!("start to OFFER, {repetitions} times");
    let mac = Mac([2, 0, 0, 0, 0x77, 2]);
    for repetition in 1..=repetitions {
        for kind in in_turn(repetition) {
            site.tap(TAP)?;
            // The kernel registers up to a second late that no process is attached. An attachment before that
            // would have to wait for it, and the fastest program would wait the longest.
            let settled = until(|| {
                site.host
                    .ip(&format!("-oneline link show {TAP}"))
                    .is_ok_and(|link| link.contains("state DOWN"))
            });
            ensure!(settled, "the TAP does not settle");
            let (vm, theirs) = VmPort::pair()?;
            let discover = Dhcp::client(dhcp_kind::DISCOVER, repetition as u32, mac).broadcast();
            let started = Instant::now();
            let mut child =
                command(kind)?.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            let offer = first_offer(&vm, &discover);
            let took = started.elapsed();
            end(&mut child);
            offer.with_context(|| kind.name())?;
            let mut figures = Figures::default();
            figures.set("start", took.as_secs_f64());
            report.add(kind, repetition, figures);
        }
    }
    Ok(())
}

/// The peers with a VM's socket, each first in turn: the network's clean-up after one can disturb the next.
fn in_turn(repetition: usize) -> [Kind; 3] {
    let mut kinds = [Kind::One, Kind::Batch, Kind::Softnet];
    kinds.rotate_left(repetition % 3);
    kinds
}

/// Sends a DISCOVER every millisecond until an OFFER arrives: frames before the TAP's carrier-up are lost.
fn first_offer(vm: &VmPort, discover: &[u8]) -> Result<()> {
    let patience = Deadline::default();
    while !patience.left().is_zero() {
        vm.try_send(discover)?;
        let retry = Deadline::after(Duration::from_millis(1));
        while let Some(frame) = vm.recv(retry)? {
            if parse_dhcp(&frame).is_some_and(|message| message.message_type() == dhcp_kind::OFFER) {
                return Ok(());
            }
        }
    }
    bail!("no OFFER came")
}

/// Measures `count` Softnets whose VMs do nothing: their total CPU use, and how often they wake.
///
/// # Errors
/// If one cannot be started.
pub fn measure_idle(site: &Site, count: usize, report: &mut Report) -> Result<()> {
    eprintln!("{count} idle VMs");
    let mut vms = Vec::new();
    for index in 0..count {
        let tap = format!("idle{index}");
        site.tap(&tap)?;
        let (vm, theirs) = VmPort::pair()?;
        let mut softnet = Command::new(program_path("softnet")?);
        softnet.args(softnet_arguments(&tap)).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        vms.push((vm, Idle(softnet.spawn()?)));
    }
    // There is no event for "nothing more to do".
    thread::sleep(SETTLE);
    let sample = || -> Result<(Duration, u64)> {
        let mut sum = (Duration::ZERO, 0);
        for (_, idle) in &vms {
            let process = Process(idle.0.id());
            sum = (sum.0 + process.cpu()?, sum.1 + process.sleeps()?);
        }
        Ok(sum)
    };
    let before = sample()?;
    thread::sleep(IDLE);
    let after = sample()?;
    let mut figures = Figures::default();
    figures.set("idle-cpu", (after.0 - before.0).as_secs_f64() / IDLE.as_secs_f64());
    figures.set("idle-wakes", (after.1 - before.1) as f64 / IDLE.as_secs_f64() / count as f64);
    figures.set("idle-count", count as f64);
    report.add(Kind::Softnet, 1, figures);
    Ok(())
}

#[derive(Debug)]
struct Idle(Child);

impl Drop for Idle {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn end(child: &mut Child) {
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
}
