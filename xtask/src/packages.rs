//! Debian packages: installs missing ones as root, and otherwise names them.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// What every lab needs: links, names, firewall, and the guests' programs.
pub const LAB: &[&str] = &["iproute2", "dnsmasq-base", "nftables", "busybox-static", "libc6-dev"];
/// User-mode Linux guests.
pub const UML: &[&str] = &["user-mode-linux"];
/// QEMU guests.
pub const QEMU: &[&str] = &["qemu-system-x86", "ipxe-qemu"];
/// Firewalls that a host may have.
pub const FIREWALLS: &[&str] = &["ufw", "iptables", "firewalld", "dbus-daemon"];
/// A Debian of its own for DHCP clients and guests with a disk, and firmware that boots from the network.
pub const CLIENTS: &[&str] = &["mmdebstrap", "e2fsprogs", "ovmf"];
/// The network of a user without privilege.
pub const UNPRIVILEGED: &[&str] = &["passt"];

/// Fails without root, and names the command to run: namespaces with several users in them, TAPs and NAT need
/// it.
///
/// # Errors
/// Fails without root.
pub fn need_root(command: &str) -> Result<()> {
    if lab::stage::is_root() {
        return Ok(());
    }
    bail!(
        "this needs root, for private network namespaces; run: sudo env \"PATH=$PATH\" cargo xtask {command}"
    )
}

/// Ensures that these packages are installed: installs missing ones as root, and otherwise names the command.
///
/// # Errors
/// Fails without `apt-get`, without root, and if the installation fails.
pub fn ensure_installed(wanted: &[&[&str]]) -> Result<()> {
    let missing: Vec<&str> =
        wanted.iter().copied().flatten().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !lab::stage::is_root() {
        bail!("missing Debian packages; install them with: sudo apt-get install {names}");
    }
    println!("installing the missing Debian packages: {names}");
    if missing.contains(&"firewalld") {
        println!("its service firewalld is not started; to use it, run: systemctl unmask firewalld");
        mask(FIREWALLD)?;
    }
    apt_get(&["update"])?;
    apt_get(&[&["install", "--yes", "--no-install-recommends"], missing.as_slice()].concat())
}

/// Debian starts this service when it is installed, and at each boot, and it would close the machine's own network.
const FIREWALLD: &str = "/etc/systemd/system/firewalld.service";

/// Keeps a service that is not installed yet from being started (systemctl(1), `mask`).
fn mask(unit: &str) -> Result<()> {
    match std::os::unix::fs::symlink("/dev/null", unit) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            // Without systemd's directory, nothing starts it.
            ensure!(!Path::new(unit).parent().is_some_and(Path::is_dir), "cannot mask {unit}: {error}");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn installed(package: &str) -> bool {
    let status =
        Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]).output();
    status.is_ok_and(|output| output.stdout == b"installed")
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let status = Command::new("apt-get")
        .arg("--quiet=2")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context(
            "start apt-get (the lab needs Debian's packages; on other systems, install their equivalents)",
        )?;
    ensure!(status.success(), "apt-get {} failed", arguments.join(" "));
    Ok(())
}
