//! Rules R1 to R4.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use lab::Segment;
use lab::deadline::until;
use lab::net::Host;
use lab::wire::{Arp, Ipv4, Mac, udp};

use crate::wire::{GATEWAY, OTHER_MAC, VM, VM_MAC, WORLD, Wire, packet, program};

/// Resident memory of a process and its children in kB.
pub fn resident(pid: i32) -> Result<u64> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut total = 0;
    for pid in children.split_whitespace().map(str::to_owned).chain([pid.to_string()]) {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("a process without memory")?;
        total += line.trim().trim_end_matches(" kB").parse::<u64>()?;
    }
    Ok(total)
}

pub fn r1_memory_and_log_are_flat() -> Result<()> {
    const FRAMES: usize = 60_000;
    let mut wire = Wire::leased(&[])?;
    let gateway = wire.segment.mac;
    let mut flood = |rounds: usize| -> Result<()> {
        for round in 0..rounds {
            let mut mac = OTHER_MAC;
            mac.0[3..].copy_from_slice(&(round as u32).to_be_bytes()[1..]);
            wire.vm.send(&match round % 4 {
                0 => packet(WORLD).frame(gateway, mac),
                1 => Arp::request(VM_MAC, (round as u32).into(), GATEWAY).frame(),
                2 => Ipv4::new((round as u32).into(), WORLD, udp((VM, 1), (WORLD, 2), b""))
                    .frame(gateway, VM_MAC),
                _ => vec![round as u8; round % 300 + 1],
            })?;
        }
        wire.settle()
    };
    flood(2000)?;
    let pid = wire.softnet.worker()?.as_raw();
    let before = (resident(pid)?, wire.softnet.log().len());
    let mut flood = |rounds: usize| -> Result<()> {
        for round in 0..rounds {
            wire.vm.send(
                &packet(WORLD)
                    .frame(gateway, Mac([2, 2, 2, (round >> 16) as u8, (round >> 8) as u8, round as u8])),
            )?;
        }
        wire.settle()
    };
    flood(FRAMES)?;
    let after = (resident(pid)?, wire.softnet.log().len());
    ensure!(after.0 <= before.0 + 1024, "memory grew from {} kB to {} kB", before.0, after.0);
    ensure!(after.1 < before.1 + 20_000, "{} bytes of log for {FRAMES} dropped frames", after.1 - before.1);
    Ok(())
}

pub fn r2_no_direction_starves() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let bad = packet(WORLD).frame(wire.segment.mac, OTHER_MAC);
    let good = packet(WORLD).frame(wire.segment.mac, VM_MAC);
    let stop = AtomicBool::new(false);
    let sender = wire.vm.try_clone()?;
    std::thread::scope(|scope| -> Result<()> {
        let flood = scope.spawn(|| {
            let mut sent = 0u64;
            while !stop.load(Ordering::Relaxed) {
                let frame = if sent.is_multiple_of(2) { &bad } else { &good };
                if sender.send(frame).is_err() {
                    break;
                }
                sent += 1;
            }
            sent
        });
        let result = (|| -> Result<()> {
            // While the queue from the VM is never empty: the other direction, and a signal.
            for round in 0..50u8 {
                let inbound = Ipv4::new(WORLD, VM, udp((WORLD, 80), (VM, 4000), &[round]))
                    .frame(VM_MAC, wire.segment.mac);
                wire.reaches_vm("a packet to a VM that floods", &inbound)?;
                wire.softnet.counters()?;
            }
            Ok(())
        })();
        stop.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap_or_default();
        result?;
        ensure!(sent > 1000, "the flood was {sent} frames only");
        Ok(())
    })
}

pub fn r3_bad_frames_do_not_end_it() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let whole = packet(WORLD).frame(wire.segment.mac, VM_MAC);
    // Every byte of a right frame set to each of a few values, and every length.
    for at in 0..whole.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut frame = whole.clone();
            frame[at] = value;
            wire.vm.send(&frame)?;
        }
        wire.vm.send(&whole[..at.max(1)])?;
    }
    for byte in 0..=255 {
        wire.vm.send(&[byte; 90])?;
    }
    wire.settle()?;
    wire.has_lease(VM)
}

pub fn r3_a_dead_tap_ends_it() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    Host::main()?.ip(&format!("link del {}", Segment::TAP))?;
    let status = wire.softnet.wait()?;
    ensure!(!status.success(), "a dead link is no success");
    ensure!(wire.softnet.log().contains("TAP"), "it does not say what died: {}", wire.softnet.log());
    Ok(())
}

pub fn r3_a_closed_vm_ends_it() -> Result<()> {
    let wire = Wire::leased(&[])?;
    let Wire { segment, vm, mut softnet, .. } = wire;
    drop(vm);
    // The kernel tells the other end of a datagram pair only when that sends; so there is something to send.
    let knock = Arp::request(segment.mac, GATEWAY, VM).frame();
    let ended = until(|| {
        let sent = segment.send(&knock).is_ok();
        sent && !softnet.is_running()
    });
    ensure!(ended, "softnet outlives its VM");
    ensure!(softnet.wait()?.success(), "a VM that ends is no failure: {}", softnet.log());
    Ok(())
}

pub fn r4_a_bad_mac_is_refused() -> Result<()> {
    for mac in
        ["00:00:00:00:00:00", "01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "52:54:00:aa:bb", "softnet", ""]
    {
        let output = Command::new(program())
            .args(["--vm-fd=0", &format!("--vm-mac-address={mac}"), "--tap=tap0"])
            .output()
            .context("start softnet")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(2), "{mac:?}: {} {said}", output.status);
        ensure!(said.contains("--vm-mac-address") && said.contains(mac), "{mac:?}: {said}");
        ensure!(output.stdout.is_empty(), "{mac:?}: something on standard output");
    }
    Ok(())
}
