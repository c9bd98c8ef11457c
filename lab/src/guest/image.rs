//! What a guest boots from: a kernel from Debian, and our own file system in one archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::Vmm;
use super::cpio::Archive;
use crate::stage::run;

/// Debian's name for the smallest kernel with virtio drivers.
const CLOUD_KERNEL: &str = "linux-image-cloud-amd64";

/// The drivers that a `virtio-net-pci` device needs, in the order in which they load.
const MODULES: [&str; 9] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_pci_legacy_dev.ko",
    "drivers/virtio/virtio_pci_modern_dev.ko",
    "drivers/virtio/virtio_pci.ko",
    "net/core/failover.ko",
    "drivers/net/net_failover.ko",
    "drivers/net/virtio_net.ko",
    "drivers/block/virtio_blk.ko",
];

/// The first process of a QEMU guest with a disk: loads the drivers and starts what is on the disk.
const FROM_DISK: &str = "#!/bin/busybox sh
busybox mount -t devtmpfs none /dev
for module in $(busybox cat /lab/modules); do busybox insmod $module; done
busybox mount -t ext4 /dev/vda /lab/root
exec busybox switch_root /lab/root /sbin/init
";

/// Kernel and initial file system on disk, made once and kept in the build directory.
#[derive(Debug, Clone)]
pub struct Image {
    /// The VMM that runs it.
    pub vmm: Vmm,
    /// The kernel: a program for User-mode Linux, a `vmlinuz` for QEMU.
    pub kernel: PathBuf,
    /// The initial file system.
    pub initrd: PathBuf,
}

impl Image {
    /// Makes what is missing: compiles the agent, downloads Debian's cloud kernel (QEMU only; it is not
    /// installed), and packs the file system. Call it outside the lab, where there is a network.
    ///
    /// # Errors
    /// Says which step failed and repeats its output.
    pub fn prepare(vmm: Vmm) -> Result<Self> {
        let store = store()?;
        let agent = build_agent(&store)?;
        let (kernel, modules) = match vmm {
            Vmm::UserModeLinux => (PathBuf::from("/usr/bin/linux.uml"), Vec::new()),
            Vmm::Qemu => cloud_kernel(&store)?,
        };
        let initrd = store.join(format!("{vmm}.cpio"));
        let image = Self { vmm, kernel, initrd };
        replace(&image.initrd, &pack(&agent, &modules)?)?;
        if !modules.is_empty() {
            replace(&image.disk_initrd(), &pack_for_disk(&modules)?)?;
        }
        Ok(image)
    }

    /// The initial file system of a QEMU guest that boots from its disk.
    #[must_use]
    pub fn disk_initrd(&self) -> PathBuf {
        self.initrd.with_extension("disk.cpio")
    }

    /// The image that [`Image::prepare`] made.
    ///
    /// # Errors
    /// Fails if it was never prepared.
    pub fn prepared(vmm: Vmm) -> Result<Self> {
        let store = store()?;
        let kernel = match vmm {
            Vmm::UserModeLinux => PathBuf::from("/usr/bin/linux.uml"),
            Vmm::Qemu => find_kernel(&store)?.context("the QEMU guests' kernel was not prepared")?,
        };
        let initrd = store.join(format!("{vmm}.cpio"));
        if !initrd.exists() {
            bail!("{} was not prepared", initrd.display());
        }
        Ok(Self { vmm, kernel, initrd })
    }
}

fn workspace() -> &'static Path {
    // The manifest lies one folder below the workspace's root.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The directory in the build directory that keeps what takes long to make.
pub(crate) fn store() -> Result<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let store = target.join("lab");
    fs::create_dir_all(&store).with_context(|| format!("make {}", store.display()))?;
    Ok(store)
}

/// Compiles the agent without shared libraries, because the guest has none.
fn build_agent(store: &Path) -> Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(workspace())
        .args(["build", "--quiet", "--package", "lab-agent", "--target", TARGET, "--target-dir"])
        .arg(store.join("agent"))
        // A separate target directory: these flags would otherwise rebuild the whole workspace.
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .context("start cargo to build the guest's agent")?;
    if !output.status.success() {
        bail!("building the guest's agent failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(store.join("agent").join(TARGET).join("debug/lab-agent"))
}

/// The cloud kernel and its modules, downloaded if they are missing.
fn cloud_kernel(store: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let kernel = match find_kernel(store)? {
        Some(kernel) => kernel,
        None => {
            download_kernel(store)?;
            find_kernel(store)?.context("Debian's kernel package holds no kernel")?
        }
    };
    let name = kernel.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let version = name.strip_prefix("vmlinuz-").context("a kernel without a version in its name")?;
    let tree = store.join("kernel/lib/modules").join(version).join("kernel");
    let modules = MODULES.iter().map(|module| tree.join(module)).filter(|module| module.exists()).collect();
    Ok((kernel, modules))
}

fn find_kernel(store: &Path) -> Result<Option<PathBuf>> {
    let Ok(boot) = fs::read_dir(store.join("kernel/boot")) else { return Ok(None) };
    for entry in boot {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("vmlinuz-") {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn download_kernel(store: &Path) -> Result<()> {
    // A machine that has installed nothing for a while may have no package lists at all.
    let depends = match run("apt-cache", &["depends", CLOUD_KERNEL]) {
        Ok(depends) if depends.contains("Depends: linux-image-") => depends,
        _ => {
            run("apt-get", &["--quiet=2", "update"])?;
            run("apt-cache", &["depends", CLOUD_KERNEL])?
        }
    };
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .map(|version| format!("linux-image-{version}"))
        .with_context(|| format!("apt does not find {CLOUD_KERNEL}; is this Debian?"))?;
    let draft = store.join(format!("kernel.{}", std::process::id()));
    fs::create_dir_all(&draft)?;
    let output =
        Command::new("apt-get").args(["download", "--quiet", &package]).current_dir(&draft).output()?;
    if !output.status.success() {
        bail!("apt-get download {package}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let file = fs::read_dir(&draft)?.next().context("apt-get downloaded nothing")??.path();
    run("dpkg-deb", &["--extract", &file.to_string_lossy(), &draft.join("tree").to_string_lossy()])?;
    // If another process was faster, its tree is in place and is just as good.
    let _ = fs::rename(draft.join("tree"), store.join("kernel"));
    fs::remove_dir_all(&draft)?;
    Ok(())
}

/// Writes a file. Several test programs may prepare at the same time: a reader sees the old file or the new one, never
/// half.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let draft = path.with_extension(format!("cpio.{}", std::process::id()));
    fs::write(&draft, content).with_context(|| format!("write {}", draft.display()))?;
    fs::rename(&draft, path).with_context(|| format!("rename {}", draft.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn pack(agent: &Path, modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "etc", "lab", "proc", "run", "sys"] {
        archive.directory(directory);
    }
    archive.console();
    archive.program("init", &read(agent)?);
    archive.program("bin/busybox", &read(Path::new("/bin/busybox"))?);
    for name in ["sh", "ip"] {
        archive.link(&format!("bin/{name}"), "busybox");
    }
    archive.program("lab/udhcpc.sh", include_bytes!("udhcpc.sh"));
    add_modules(&mut archive, modules)?;
    Ok(archive.finish())
}

fn pack_for_disk(modules: &[PathBuf]) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "lab", "lab/root"] {
        archive.directory(directory);
    }
    archive.console();
    archive.program("init", FROM_DISK.as_bytes());
    archive.program("bin/busybox", &read(Path::new("/bin/busybox"))?);
    add_modules(&mut archive, modules)?;
    Ok(archive.finish())
}

fn add_modules(archive: &mut Archive, modules: &[PathBuf]) -> Result<()> {
    let mut list = String::new();
    for module in modules {
        let name = module.file_name().and_then(|name| name.to_str()).context("a module without a name")?;
        archive.program(&format!("lab/{name}"), &read(module)?);
        list.push_str(&format!("/lab/{name}\n"));
    }
    if !list.is_empty() {
        archive.program("lab/modules", list.as_bytes());
    }
    Ok(())
}
