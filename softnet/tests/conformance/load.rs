//! While a VM floods at full speed (R2): time, signals, the other direction and the port forwards go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::deadline::until;
use lab::stage::run;
use lab::wire::{Dhcp, Ipv4, dhcp_kind as kind, dhcp_option as option, udp};
use lab::{DhcpServer, Softnet, VmPort};
use nix::sys::signal::Signal;

use crate::wire::{GATEWAY, OTHER_MAC, VM, VM_MAC, WORLD, Wire, packet, program};

/// Does `work` while the VM sends `frame` without a pause, as fast as Softnet takes it.
fn flooding<R>(vm: &VmPort, frame: &[u8], work: impl FnOnce() -> Result<R>) -> Result<R> {
    let sender = vm.try_clone()?;
    let stop = AtomicBool::new(false);
    let going = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && sender.send(frame).is_ok() {
                going.store(true, Ordering::Relaxed);
            }
        });
        let result =
            if until(|| going.load(Ordering::Relaxed)) { work() } else { Err(anyhow::anyhow!("no flood")) };
        stop.store(true, Ordering::Relaxed);
        result
    })
}

pub fn a_lease_expires_under_a_flood() -> Result<()> {
    let mut wire = Wire::start(&[])?;
    let xid = wire.next();
    wire.server().with_lease_seconds(2).lease(&wire.vm, VM_MAC, VM, xid)?;
    let frame = wire.to(WORLD).1;
    flooding(&wire.vm, &frame, || {
        let expired =
            || wire.softnet.counters().is_ok_and(|counters| counters.from_vm.contains_key("no-lease"));
        ensure!(until(expired), "a lease of two seconds outlives its time while the VM floods");
        Ok(())
    })
}

pub fn a_signal_ends_it_under_a_flood() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (vm, mut softnet) = managed(&[])?;
        let junk = packet(WORLD).frame(OTHER_MAC, OTHER_MAC);
        flooding(&vm, &junk, || {
            softnet.signal(signal)?;
            ensure!(softnet.wait()?.success(), "{signal} is no clean end: {}", softnet.log());
            Ok(())
        })?;
    }
    Ok(())
}

/// The forward comes with the lease and goes with it, though the VM's queue is never empty.
pub fn a_port_forward_follows_the_lease_under_a_flood() -> Result<()> {
    let (vm, softnet) = managed(&["--expose=8080:80"])?;
    let junk = packet(WORLD).frame(OTHER_MAC, OTHER_MAC);
    flooding(&vm, &junk, || {
        vm.send(&Dhcp::client(kind::DISCOVER, 7, VM_MAC).broadcast())?;
        let offer = DhcpServer::told(&vm, kind::OFFER, 7)?;
        let server = offer.option(option::SERVER).context("an OFFER without a server")?.to_vec();
        let request = Dhcp::client(kind::REQUEST, 7, VM_MAC)
            .with(option::REQUESTED_ADDRESS, &offer.yiaddr.octets())
            .with(option::SERVER, &server);
        vm.send(&request.broadcast())?;
        let ack = DhcpServer::told(&vm, kind::ACK, 7)?;
        let forward = format!("{} . 80", ack.yiaddr);
        let installed = || run("nft", &["list", "ruleset"]).is_ok_and(|rules| rules.contains(&forward));
        ensure!(until(installed), "no forward to {forward} while the VM floods: {}", softnet.log());
        let decline = Dhcp::client(kind::DECLINE, 8, VM_MAC)
            .with(option::REQUESTED_ADDRESS, &ack.yiaddr.octets())
            .with(option::SERVER, &server);
        vm.send(&decline.broadcast())?;
        ensure!(until(|| !installed()), "the forward to {forward} outlives the lease while the VM floods");
        Ok(())
    })
}

/// A VM that does not read loses what does not fit, and nothing else suffers.
pub fn a_vm_that_does_not_read_harms_nobody() -> Result<()> {
    let mut wire = Wire::leased(&[])?;
    let inbound =
        Ipv4::new(WORLD, VM, udp((WORLD, 80), (VM, 4000), &[7; 1400])).frame(VM_MAC, wire.segment.mac);
    let full = until(|| {
        (0..500).all(|_| wire.segment.send(&inbound).is_ok())
            && wire
                .softnet
                .counters()
                .is_ok_and(|counters| counters.from_host.get("vm-queue-full") > Some(&0))
    });
    ensure!(full, "a VM's queue never fills: {:?}", wire.softnet.counters());
    // From the VM it still takes, and what it cannot deliver does not pile up.
    let before = crate::resources::resident(wire.softnet.worker()?.as_raw())?;
    wire.has_lease(VM)?;
    for _ in 0..20_000 {
        wire.segment.send(&inbound)?;
    }
    wire.has_lease(VM)?;
    let after = crate::resources::resident(wire.softnet.worker()?.as_raw())?;
    ensure!(after <= before + 1024, "memory grew from {before} kB to {after} kB");
    Ok(())
}

/// What the VM's full queue costs is dropped, and not forwarded.
pub fn l6_losses_are_drops() -> Result<()> {
    let wire = Wire::leased(&[])?;
    let before = wire.softnet.counters()?.from_host;
    let inbound =
        Ipv4::new(WORLD, VM, udp((WORLD, 80), (VM, 4000), &[7; 1400])).frame(VM_MAC, wire.segment.mac);
    let mut sent = 0u64;
    let is_full = until(|| {
        sent += (0..500).filter(|_| wire.segment.send(&inbound).is_ok()).count() as u64;
        wire.softnet.counters().is_ok_and(|now| now.from_host.get("vm-queue-full") > Some(&0))
    });
    ensure!(is_full, "a VM's queue never fills: {:?}", wire.softnet.counters());
    let now = wire.softnet.counters()?.from_host;
    let grown = |what: &str| now.get(what).copied().unwrap_or(0) - before.get(what).copied().unwrap_or(0);
    let lost = grown("vm-queue-full");
    ensure!(grown("dropped") >= lost, "{lost} lost, {now:?}");
    ensure!(grown("forwarded") + lost <= sent + 64, "{sent} sent, {lost} lost, {now:?}");
    let got = grown("bytes") / inbound.len() as u64;
    ensure!(got <= grown("forwarded"), "the bytes of {got} frames, {now:?}");
    Ok(())
}

/// Bytes that passed from the VM, with what the relay's bucket lets pass at once taken off.
fn passed(softnet: &Softnet) -> Result<u64> {
    const BURST: u64 = 64 << 10;
    let counters = softnet.counters()?;
    let bytes = counters.from_vm.get("bytes").copied().unwrap_or_default();
    let dropped = counters.from_vm.get("dropped").copied().unwrap_or_default();
    ensure!(dropped == 0, "{dropped} frames were dropped: {:?}", counters.from_vm);
    Ok(bytes.saturating_sub(BURST + 1514))
}

/// --limit-up: the VM waits, loses nothing, and DHCP goes on; then nothing wakes the worker.
pub fn a_limit_holds_the_vm_back() -> Result<()> {
    const FRAMES: u64 = 1_000;
    let begun = Instant::now();
    let mut wire = Wire::leased(&["--limit-up=1000K"])?;
    let full = Ipv4::new(VM, WORLD, udp((VM, 4000), (WORLD, 80), &[7; 1472]));
    let frame = wire.routed(&full);
    ensure!(frame.len() == 1514);
    let slow = |softnet: &Softnet| -> Result<u64> {
        let bytes = passed(softnet)?;
        let most = u64::try_from(begun.elapsed().as_micros())?;
        ensure!(bytes <= most, "{bytes} bytes have passed in {most} microseconds");
        Ok(bytes)
    };
    let sender = wire.vm.try_clone()?;
    std::thread::scope(|scope| -> Result<()> {
        let sent = scope.spawn(|| (0..FRAMES).try_for_each(|_| sender.send(&frame)));
        while !sent.is_finished() {
            slow(&wire.softnet)?;
        }
        sent.join().expect("the sender does not panic")
    })?;
    flooding(&wire.vm, &frame, || {
        let renewal = Dhcp { ciaddr: VM, ..Dhcp::client(kind::REQUEST, 77, VM_MAC) };
        wire.vm.send(&wire.routed(&renewal.packet(VM, GATEWAY)))?;
        let server = wire.server();
        server.heard(kind::REQUEST, 77)?;
        server.send(&server.answer(kind::ACK, 77, VM_MAC, VM), VM_MAC)?;
        DhcpServer::told(&wire.vm, kind::ACK, 77)?;
        slow(&wire.softnet).map(drop)
    })?;
    wire.settle()?;
    ensure!(slow(&wire.softnet)? >= FRAMES * 1514 - (65 << 10), "frames were lost");

    // No more ticks: only what it is asked for wakes the worker.
    let worker = wire.softnet.worker()?;
    let switches = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{worker}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(line.context("no count")?.trim().parse()?)
    };
    let mut before = 0;
    let sleeps = until(|| {
        std::thread::sleep(Duration::from_millis(300));
        let now = switches().unwrap_or_default();
        std::mem::replace(&mut before, now) == now
    });
    ensure!(sleeps, "the worker wakes up though nobody sends");
    Ok(())
}

/// --limit-down: what the host sends reaches the VM no faster.
pub fn a_limit_holds_the_host_back() -> Result<()> {
    const BYTES: u64 = 1_000_000;
    let begun = Instant::now();
    let wire = Wire::leased(&["--limit-down=500k"])?;
    let full = Ipv4::new(WORLD, VM, udp((WORLD, 80), (VM, 4000), &[7; 1472]));
    let frame = full.frame(VM_MAC, wire.segment.mac);
    let mut arrived = 0;
    let mut buffer = [0; 2048];
    while arrived < BYTES {
        wire.segment.send(&frame)?;
        while let Some(length) = wire.vm.try_recv(&mut buffer)? {
            arrived += length as u64;
        }
        let most = u64::try_from(begun.elapsed().as_micros())? / 2 + (64 << 10) + 1514;
        ensure!(arrived <= most, "{arrived} bytes have arrived, at most {most} may have");
    }
    // The host's own IPv6 may be among what was dropped.
    let counters = wire.softnet.counters()?;
    ensure!(!counters.from_host.keys().any(|reason| reason.starts_with("vm-")), "{counters:?}");
    Ok(())
}

/// Softnet on the managed network.
fn managed(flags: &[&str]) -> Result<(VmPort, Softnet)> {
    let (vm, theirs) = VmPort::pair()?;
    let mut softnet = Softnet::start(program(), theirs, &VM_MAC.to_string(), flags)?;
    let ready = softnet.ready()?;
    ensure!(ready["mode"] == "network", "the ready line is {ready}");
    Ok((vm, softnet))
}
