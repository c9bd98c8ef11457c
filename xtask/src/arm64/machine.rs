//! An emulated machine with such a processor, with all files in memory.
//!
//! It emulates the whole machine because the seal depends on the kernel: an emulator of single programs
//! passes their system calls to the host's kernel, which neither sees ARM's numbers nor confines the emulated
//! program.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lab::guest::Archive;
use lab::stage::run as run_program;

use super::debian;

/// The emulator, and the program that unpacks the kernel's modules.
pub const PACKAGES: &[&str] = &["qemu-system-arm", "xz-utils"];

const COMMAND_LINE: &str = "--foreground 1200 qemu-system-aarch64 -machine virt -cpu cortex-a72 -smp 2 -m 1024 -nodefaults \
    -no-user-config -no-reboot -display none -monitor none -serial stdio -append";
const KERNEL_COMMAND_LINE: &str = "console=ttyAMA0 quiet panic=-1";

/// Process 1 prints this when the tests have ended, before their status.
const MARK: &str = "tests-ended-with:";

/// What the tests need of the kernel beyond its image, in the order in which it loads.
const MODULES: [&str; 6] = [
    "net/llc/llc.ko",
    "net/802/stp.ko",
    "net/bridge/bridge.ko",
    "drivers/net/tun.ko",
    "net/unix/unix_diag.ko",
    "net/packet/af_packet.ko",
];

/// Folders of Debian's that no test needs.
const SUPERFLUOUS: [&str; 6] = [
    "boot",
    "var",
    "usr/share",
    "usr/lib/modules",
    "usr/lib/aarch64-linux-gnu/gconv",
    "usr/lib/aarch64-linux-gnu/perl-base",
];

/// Runs `tests` on a machine that has `program` under the name `place`; what it needs lies in `store`.
pub fn run(store: &Path, tests: &Path, program: &Path, place: &Path) -> Result<()> {
    let tree = debian::unpack(store)?;
    let initrd = store.join("initrd.cpio");
    fs::write(&initrd, pack(&tree, tests, program, place)?)?;
    println!("==> tests on an emulated machine");
    let started = Instant::now();
    let mut machine = Command::new("timeout")
        .args(COMMAND_LINE.split_whitespace())
        .arg(KERNEL_COMMAND_LINE)
        .arg("-kernel")
        .arg(kernel(&tree)?)
        .arg("-initrd")
        .arg(&initrd)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("start qemu-system-aarch64")?;
    let console = machine.stdout.take().context("the console is piped")?;
    let mut status = None;
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        match line.split_once(MARK) {
            Some((_, number)) => status = Some(number.to_owned()),
            None => println!("    {line}"),
        }
    }
    machine.wait()?;
    println!("    {:.0} s", started.elapsed().as_secs_f64());
    let status = status.context("the machine ended before the tests did")?;
    ensure!(status == "0", "the tests ended with status {status}");
    Ok(())
}

fn kernel(tree: &Path) -> Result<PathBuf> {
    let boot = fs::read_dir(tree.join("boot"))?.filter_map(Result::ok);
    let mut kernels = boot.filter(|entry| entry.file_name().to_string_lossy().starts_with("vmlinuz-"));
    Ok(kernels.next().context("Debian's kernel package holds no kernel")?.path())
}

/// The initial file system: Debian's tree, the tests, the program and process 1.
fn pack(tree: &Path, tests: &Path, program: &Path, place: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in
        ["dev", "etc", "proc", "root", "run", "sys", "tmp", "new", "usr", "usr/bin", "usr/sbin", "usr/lib"]
    {
        archive.directory(folder);
    }
    for name in ["bin", "sbin", "lib"] {
        archive.link(name, &format!("usr/{name}"));
    }
    archive.console();
    archive.program("init", include_bytes!("init.sh"));
    archive.program(
        "etc/passwd",
        b"root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    );
    archive.program("etc/group", b"root:x:0:\nuser:x:1000:\nshadow:x:42:\nnogroup:x:65534:\n");
    add(&mut archive, tree, Path::new(""))?;

    let mut list = String::new();
    for (index, module) in modules(tree)?.iter().enumerate() {
        archive.program(&format!("{index}.ko"), &read(module)?);
        list += &format!("/{index}.ko\n");
    }
    archive.program("modules", list.as_bytes());
    archive.program("tests", &read(tests)?);
    let place = place.strip_prefix("/").context("the place of the program is absolute")?;
    let mut folder = PathBuf::new();
    for name in place.parent().into_iter().flat_map(Path::components) {
        folder.push(name);
        archive.directory(&folder.to_string_lossy());
    }
    archive.program(&place.to_string_lossy(), &read(program)?);
    Ok(archive.finish())
}

/// Adds what lies in the folder `folder` of `tree`.
fn add(archive: &mut Archive, tree: &Path, folder: &Path) -> Result<()> {
    for entry in fs::read_dir(tree.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        // All releases of Debian have had these folders in usr for long, but not all packages.
        let merged = ["bin", "sbin", "lib"].iter().any(|name| path.starts_with(name));
        let name = if merged { Path::new("usr").join(&path) } else { path.clone() };
        if SUPERFLUOUS.iter().any(|folder| name == Path::new(folder)) {
            continue;
        }
        let (kind, name) = (entry.file_type()?, name.to_string_lossy());
        if kind.is_dir() {
            archive.directory(&name);
            add(archive, tree, &path)?;
        } else if kind.is_symlink() {
            archive.link(&name, &fs::read_link(entry.path())?.to_string_lossy());
        } else {
            archive.program(&name, &read(&entry.path())?);
        }
    }
    Ok(())
}

/// Those of [`MODULES`] that are not part of the kernel's image.
fn modules(tree: &Path) -> Result<Vec<PathBuf>> {
    let all = ["lib/modules", "usr/lib/modules"].map(|folder| tree.join(folder));
    let all =
        all.iter().find(|folder| folder.is_dir()).context("Debian's kernel package holds no modules")?;
    let version = fs::read_dir(all)?.next().context("modules for no kernel")??;
    let mut found = Vec::new();
    for name in MODULES {
        let module = version.path().join("kernel").join(name);
        let packed = module.with_added_extension("xz");
        if packed.exists() {
            run_program("xz", &["--decompress", &packed.to_string_lossy()])?;
        }
        if module.exists() {
            found.push(module);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}
