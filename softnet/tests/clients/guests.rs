//! Virtual machines with a Debian on their disks: they boot twice, shut down cleanly, and have their network.

use std::path::Path;

use anyhow::{Result, ensure};
use lab::Counters;
use lab::deadline::until;
use lab::guest::Vmm;
use lab::guest::debian::{DebianGuest, Manager, install, is_clean};
use lab::net::{INTERNET, World};

/// Boots one twice with the defaults of `softnet run`, which gives it the same MAC address each time.
fn boots_twice(vmm: Vmm, manager: Manager, shut_down: &str) -> Result<()> {
    let _world = World::build()?;
    let disk = install("disk", vmm, manager)?;
    let mut first = None;
    for boot in 1..=2 {
        let mut guest = DebianGuest::boot(Path::new(env!("CARGO_BIN_EXE_softnet")), &[], vmm, &disk)?;
        let mut shown = String::new();
        let has_address = until(|| {
            shown = guest.sh("ip -4 -o addr show scope global").unwrap_or_else(|error| error.to_string());
            shown.contains("inet ")
        });
        ensure!(has_address, "no address at boot {boot}: {shown}: {}", guest.softnet.log());
        let address = shown.split_whitespace().skip_while(|word| *word != "inet").nth(1).map(str::to_owned);
        ensure!(first.is_none() || first == address, "{first:?} at the first boot, then {address:?}");
        first = address;
        guest.sh(&format!("ping -c 1 -W 10 {INTERNET}"))?;
        let mut dropped = guest.softnet.counters()?.drops_since(&Counters::default());
        dropped.retain(|(reason, _)| reason != "ipv6");
        ensure!(dropped.is_empty(), "boot {boot}: dropped {dropped:?}: {}", guest.softnet.log());
        let status = guest.shut_down(shut_down)?;
        ensure!(status.success(), "boot {boot}: {status}: {}\n{}", guest.softnet.log(), guest.output());
        is_clean(&disk)?;
    }
    Ok(())
}

pub fn uml_with_ifupdown() -> Result<()> {
    boots_twice(Vmm::UserModeLinux, Manager::Ifupdown, "halt")
}

pub fn uml_with_networkd() -> Result<()> {
    boots_twice(Vmm::UserModeLinux, Manager::Networkd, "halt")
}

pub fn qemu_with_ifupdown() -> Result<()> {
    boots_twice(Vmm::Qemu, Manager::Ifupdown, "poweroff")
}
