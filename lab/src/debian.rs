//! A real Debian: its programs on disk, made once and kept in the build directory.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::guest::store;
use crate::stage::run;

/// What is in it beside Debian's essential packages: an init system, and every DHCP client that the tests try.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "connman",
    "dbus",
    "dhcpcd-base",
    "ifupdown",
    "iproute2",
    "iputils-ping",
    "isc-dhcp-client",
    "network-manager",
    "systemd-sysv",
    "tini",
    "udev",
    "udhcpc",
];

/// Makes the tree unless it is there: the release that runs here, from the same archives. Call it outside the lab,
/// where there is a network.
///
/// # Errors
/// Says which step failed and repeats its output.
pub fn prepare() -> Result<()> {
    let root = place()?;
    if root.exists() {
        return Ok(());
    }
    let archives = match archives()? {
        // A machine that has installed nothing for a while may have no package lists at all.
        none if none.is_empty() => {
            run("apt-get", &["--quiet=2", "update"])?;
            archives()?
        }
        some => some,
    };
    if archives.is_empty() {
        bail!("apt has no archives of Debian; is this Debian?");
    }
    let draft = root.with_extension(std::process::id().to_string());
    // The administrator's proxies and the like.
    let options = draft.with_extension("conf");
    fs::write(&options, run("apt-config", &["dump", "Acquire"])?)?;
    let output = Command::new("mmdebstrap")
        .args(["--quiet", "--mode=root", "--variant=minbase"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--aptopt={}", options.display()))
        .arg(release()?)
        .arg(&draft)
        .args(archives)
        .output();
    fs::remove_file(&options)?;
    let output = output.context("start mmdebstrap; install it with `apt install mmdebstrap`")?;
    if !output.status.success() {
        // What there is of it would be in nobody's way but the disk's.
        let _ = fs::remove_dir_all(&draft);
        bail!("mmdebstrap: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // If another process was faster, its tree is in place and is just as good.
    if fs::rename(&draft, &root).is_err() {
        fs::remove_dir_all(&draft)?;
    }
    Ok(())
}

/// The tree that [`prepare`] made, not to be written to.
///
/// # Errors
/// Fails if it was never prepared.
pub fn prepared() -> Result<PathBuf> {
    let root = place()?;
    if !root.exists() {
        bail!("{} was not prepared", root.display());
    }
    Ok(root)
}

/// Other packages or another release are another tree.
fn place() -> Result<PathBuf> {
    let mut key = DefaultHasher::new();
    PACKAGES.hash(&mut key);
    Ok(store()?.join(format!("debian-{}-{:016x}", release()?, key.finish())))
}

fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no release of Debian")?.to_owned())
}

/// Debian's archives as this machine has them, as lines of `sources.list`.
fn archives() -> Result<BTreeSet<String>> {
    const FORMAT: &str = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)";
    let lines =
        run("apt-get", &["indextargets", "--format", FORMAT, "Identifier: Packages", "Origin: Debian"])?;
    Ok(lines.lines().map(str::to_owned).collect())
}
