//! A machine with Debian's programs on a disk of its own, and this kernel.
//!
//! It has its own network, processes, mounts and host name, so DHCP clients run in it as they are packaged. It boots
//! in milliseconds, and its disk outlives it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount, umount};
use nix::unistd::Pid;

use crate::deadline::until;
use crate::kernel_guest::{INTERFACE, wired};
use crate::net::Host;
use crate::stage::{SCRATCH, run};
use crate::wire::Mac;
use crate::{Overheard, VmPort, debian};

/// Mounts the disk ($1 the tree, $2 what is written, $3 a directory for overlayfs, $4 the mount point) and starts the
/// first process. `/sys` is read-only: that tells programs that no udev runs here.
const BOOT: &str = "\
set -e
mount -t overlay -o lowerdir=$1,upperdir=$2,workdir=$3 none $4
mount -t proc proc $4/proc
mount -t sysfs -o ro sysfs $4/sys
mount -t tmpfs -o mode=755 tmpfs $4/run
mount -t tmpfs tmpfs $4/tmp
mount --rbind /dev $4/dev
mkdir -p $4/run/lock $4/run/dbus
hostname lab
chroot $4 systemd-machine-id-setup >/dev/null 2>&1
exec chroot $4 tini -- sleep infinity";

/// How long a script may take, in seconds.
const LIMIT: &str = "60";

/// What a machine has written to its disk.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// A freshly installed Debian.
    ///
    /// # Errors
    /// Fails if there is such a disk already.
    pub fn new(name: &str) -> Result<Self> {
        let disk = Self(Path::new(SCRATCH).join("disks").join(name));
        for directory in ["upper", "work", "root"] {
            fs::create_dir_all(disk.0.join(directory))?;
        }
        Ok(disk)
    }

    /// Writes a file, with the directories above it.
    ///
    /// # Errors
    /// The file system's error.
    pub fn write(&self, path: &str, content: &str) -> Result<()> {
        let path = self.0.join("upper").join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a file in a directory")?)?;
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    }

    /// Makes a symbolic link, as `systemctl enable` and `mask` do.
    ///
    /// # Errors
    /// The file system's error.
    pub fn link(&self, path: &str, target: &str) -> Result<()> {
        let path = self.0.join("upper").join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().context("a link in a directory")?)?;
        std::os::unix::fs::symlink(target, &path).with_context(|| format!("link {}", path.display()))
    }

    /// Makes a file with all of it as an ext4 file system, for a virtual machine.
    ///
    /// # Errors
    /// Says which step failed.
    pub fn image(&self) -> Result<PathBuf> {
        const SIZE: &str = "768M";
        let [upper, work, root, image] = ["upper", "work", "root", "image"].map(|name| self.0.join(name));
        let lower = debian::prepared()?;
        let layers =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        mount(Some("none"), &root, Some("overlay"), MsFlags::empty(), Some(layers.as_str()))
            .context("mount the disk")?;
        let [from, to] = [&root, &image].map(|path| path.display().to_string());
        let made = run("mke2fs", &["-q", "-t", "ext4", "-d", &from, &to, SIZE]);
        umount(&root)?;
        made.map(|_| image)
    }

    /// A copy, as people make them of a virtual machine's disk.
    ///
    /// # Errors
    /// Repeats what `cp` said.
    pub fn copy(&self, name: &str) -> Result<Self> {
        let copy = Self::new(name)?;
        let [from, to] = [&self.0, &copy.0].map(|disk| format!("{}/upper", disk.display()));
        run("cp", &["--archive", "--no-target-directory", &from, &to])?;
        Ok(copy)
    }
}

/// A running machine; it loses its power when this is dropped.
#[derive(Debug)]
pub struct Machine {
    /// Its network.
    pub host: Host,
    /// The DHCP messages on its wire.
    pub overheard: Overheard,
    outer: Child,
    init: Pid,
}

impl Machine {
    /// Boots it with one card, connected by `port`. Nothing runs in it yet.
    ///
    /// # Errors
    /// Says which step failed.
    pub fn boot(name: &str, disk: &Disk, port: &VmPort, mac: Mac) -> Result<Self> {
        let overheard = Overheard::default();
        let host = wired(name, port, mac, {
            let overheard = overheard.clone();
            move |frame| overheard.note(frame)
        })?;
        let (outer, init) = start(&host, &disk.0)?;
        Ok(Self { host, overheard, outer, init })
    }

    /// Takes its power away and boots it again, with the same card and with this disk.
    ///
    /// # Errors
    /// Says which step failed.
    pub fn reboot(&mut self, disk: &Disk) -> Result<()> {
        self.cut_power();
        self.host.ip(&format!("link set {INTERFACE} down"))?;
        self.host.ip(&format!("addr flush dev {INTERFACE}"))?;
        (self.outer, self.init) = start(&self.host, &disk.0)?;
        Ok(())
    }

    /// Ends its first process, and with it all the others.
    fn cut_power(&mut self) {
        // They may have ended already.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        let init = format!("/proc/{}", self.init);
        let gone = until(|| !Path::new(&init).exists());
        debug_assert!(gone, "a killed process stays");
    }

    /// Runs a shell script in it to its end and returns what it printed.
    ///
    /// # Errors
    /// Repeats what it said if it fails, or does not end within a minute.
    pub fn sh(&self, script: &str) -> Result<String> {
        let output = Command::new("nsenter")
            .args(["--target", &self.init.to_string(), "--all", "--root", "--wd", "--"])
            .args(["timeout", LIMIT, "sh", "-c", script])
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null())
            .output()
            .context("start nsenter")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{script}: {}: {text}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(text)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cut_power();
        // The lab ends soon in any case.
        let _ = self.host.remove();
    }
}

/// Starts the first process on this network and disk, and waits until the disk is mounted.
fn start(host: &Host, disk: &Path) -> Result<(Child, Pid)> {
    let root = debian::prepared()?;
    let mut outer = host
        .run(|| {
            Command::new("unshare")
                .args(["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"])
                .args(["sh", "-c", BOOT, "boot"])
                .arg(root)
                .args(["upper", "work", "root"].map(|directory| disk.join(directory)))
                .stdin(Stdio::null())
                .spawn()
        })?
        .context("start unshare")?;
    let children = format!("/proc/{0}/task/{0}/children", outer.id());
    let mut init = None;
    let up = until(|| {
        init = fs::read_to_string(&children).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let name = init.and_then(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).ok());
        name.is_some_and(|name| name == "tini\n") || matches!(outer.try_wait(), Ok(Some(_)))
    });
    match (init, outer.try_wait()?) {
        (Some(init), None) if up => Ok((outer, Pid::from_raw(init))),
        (_, ended) => bail!("the machine does not boot: {ended:?}"),
    }
}
