//! The running program, as `/proc` shows it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::{Deadline, until};
use lab::net::Host;
use lab::wire::{Arp, Mac};
use lab::{Segment, Softnet, VmPort};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_softnet");
pub const MAC: &str = "52:54:00:12:34:56";

/// What `/proc` tells of a process.
pub struct Process {
    directory: PathBuf,
    status: BTreeMap<String, String>,
}

impl Process {
    pub fn look(pid: i32) -> Result<Self> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let text = fs::read_to_string(directory.join("status")).context("read the status of the process")?;
        let line = |line: &str| {
            line.split_once(':')
                .map(|(key, value)| (key.to_owned(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        };
        Ok(Self { directory, status: text.lines().filter_map(line).collect() })
    }

    pub fn field(&self, name: &str) -> &str {
        self.status.get(name).map_or("", String::as_str)
    }

    /// Real, effective, saved and file system ids are all `id`.
    pub fn is_only(&self, field: &str, id: u32) -> bool {
        self.field(field) == format!("{id} {id} {id} {id}")
    }

    /// Descriptor by descriptor, what it is.
    pub fn descriptors(&self) -> Result<BTreeMap<i32, String>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.directory.join("fd"))? {
            let entry = entry?;
            let number: i32 = entry.file_name().to_string_lossy().parse()?;
            let target = fs::read_link(entry.path())?.to_string_lossy().into_owned();
            let flags = fs::read_to_string(self.directory.join(format!("fdinfo/{number}")))?;
            let flags = flags
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .context("a descriptor has flags")?;
            let flags = u32::from_str_radix(flags.trim(), 8)?;
            ensure!(flags & 0o2_000_000 != 0, "{number} ({target}) is not close-on-exec");
            found.insert(number, target);
        }
        Ok(found)
    }

    pub fn namespace(&self, kind: &str) -> Result<PathBuf> {
        Ok(fs::read_link(self.directory.join("ns").join(kind))?)
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.directory.join(path)
    }
}

/// A running Softnet on a TAP with both sides of its wire.
pub struct Running {
    pub softnet: Softnet,
    pub vm: VmPort,
    pub segment: Segment,
}

pub fn start(arguments: &[&str]) -> Result<Running> {
    let segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    let (vm, wire) = VmPort::pair()?;
    let arguments = ["--tap", Segment::TAP].iter().chain(arguments);
    let mut softnet = Softnet::start(Path::new(PROGRAM), wire, MAC, arguments)?;
    softnet.ready()?;
    Ok(Running { softnet, vm, segment })
}

pub fn it_holds_nothing_but_what_it_needs() -> Result<()> {
    let running = start(&[])?;
    let process = Process::look(running.softnet.worker()?.as_raw())?;
    let nobody = 65534;

    ensure!(process.is_only("Uid", nobody) && process.is_only("Gid", nobody), "{:?}", process.status);
    ensure!(process.field("Groups") == nobody.to_string(), "groups {}", process.field("Groups"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(process.field(set) == "0000000000000000", "{set} {}", process.field(set));
    }
    ensure!(process.field("NoNewPrivs") == "1" && process.field("Seccomp") == "2", "{:?}", process.status);
    ensure!(process.field("Threads") == "1");

    // Not dumpable: its files in /proc are root's.
    ensure!(
        fs::metadata(process.at("environ"))?.uid() == 0,
        "another process of its user could read its memory"
    );
    let limits = fs::read_to_string(process.at("limits"))?;
    for limit in ["Max open files", "Max processes", "Max core file size"] {
        let line = limits.lines().find_map(|line| line.strip_prefix(limit)).context("a limit is listed")?;
        ensure!(line.split_whitespace().take(2).all(|value| value == "0"), "{limit}:{line}");
    }

    // The ready line is here, so its descriptor is about to be closed.
    let standard_error_only = || {
        let descriptors = process.descriptors().unwrap_or_default();
        descriptors.values().filter(|target| target.starts_with("pipe:")).count() == 1
    };
    ensure!(until(standard_error_only), "{:?}", process.descriptors());
    let descriptors = process.descriptors()?;
    let count = |what: &str| descriptors.values().filter(|target| target.starts_with(what)).count();
    let known = [
        ("/dev/net/tun", 1),
        ("anon_inode:[eventpoll]", 1),
        ("anon_inode:[timerfd]", 1),
        ("anon_inode:[pidfd]", 1),
        // Standard error.
        ("pipe:", 1),
        // The VM, the monitor, the monitor's control socket, and two groups of signals: three and one to write to, two to
        // read from.
        ("socket:", 9),
    ];
    for (what, expected) in known {
        ensure!(count(what) == expected, "{} of {what}: {descriptors:?}", count(what));
    }
    let all: usize = known.iter().map(|(_, expected)| expected).sum();
    ensure!(descriptors.len() == all, "{descriptors:?}");

    let mine = Process::look(std::process::id().try_into()?)?;
    for kind in ["net", "mnt", "ipc", "uts", "cgroup"] {
        ensure!(process.namespace(kind)? != mine.namespace(kind)?, "it shares the {kind} namespace");
    }
    let interfaces = fs::read_to_string(process.at("net/dev"))?;
    let names: Vec<&str> =
        interfaces.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    ensure!(names == ["lo"], "it sees {names:?}");
    let mounts = fs::read_to_string(process.at("mounts"))?;
    ensure!(mounts.lines().count() == 1 && mounts.contains("tmpfs ro,"), "it sees the mounts {mounts}");
    ensure!(fs::read_dir(process.at("root"))?.count() == 0, "its root has files");
    let root = fs::metadata(process.at("root/."))?;
    ensure!(root.mode() & 0o7777 == 0, "its root has the mode {:o}", root.mode());
    Ok(())
}

/// Whether the gateway's frames reach the VM. A bridge forwards to a TAP a moment after somebody attached to it, of which
/// only the arrival of a frame tells.
pub fn reaches_the_vm(segment: &Segment, vm: &VmPort) -> bool {
    let request = Arp::request(segment.mac, segment.gateway, [10, 0, 0, 9].into()).frame();
    until(|| {
        let sent = segment.send(&request).is_ok();
        let moment = Deadline::after(Duration::from_millis(100));
        sent && vm.recv(moment).is_ok_and(|frame| frame.as_ref() == Some(&request))
    })
}

pub fn it_works_and_ends_cleanly() -> Result<()> {
    let Running { mut softnet, vm, segment } = start(&["--stats", "--require-sandbox"])?;
    let before = Process::look(softnet.worker()?.as_raw())?.field("VmData").to_owned();
    let address = [10, 0, 0, 9].into();
    let probe = Arp::request(Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]), address, segment.gateway).frame();
    for _ in 0..5_000 {
        vm.send(&probe)?;
    }
    ensure!(reaches_the_vm(&segment, &vm), "no frame reaches the VM: {}", softnet.log());
    let judged = || softnet.counters().is_ok_and(|counters| counters.from_vm.get("dropped") == Some(&5_000));
    ensure!(until(judged), "{}", softnet.log());
    let after = Process::look(softnet.worker()?.as_raw())?.field("VmData").to_owned();
    ensure!(before == after, "its memory grew from {before} to {after}");
    let status = softnet.stop()?;
    ensure!(status.success(), "{status}: {}", softnet.log());
    Ok(())
}

/// A launcher that has lost interest in what the program says, or died with a terminal, is not the end of a network.
pub fn it_does_without_a_reader_of_its_log() -> Result<()> {
    let segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    let (vm, wire) = VmPort::pair()?;
    let (reader, writer) = std::io::pipe()?;
    let mut command = Command::new(PROGRAM);
    command
        .args(["--vm-fd=0", "--vm-mac-address", MAC, "--stats", "--tap", Segment::TAP])
        .env("RUST_LOG", "trace");
    let mut softnet = command.stdin(wire).stderr(writer).spawn()?;
    drop((command, reader));
    ensure!(reaches_the_vm(&segment, &vm), "no frame reaches the VM");
    let pid = Pid::from_raw(softnet.id().try_into()?);
    kill(pid, Signal::SIGUSR1)?;
    ensure!(reaches_the_vm(&segment, &vm), "the counters ended it");
    kill(pid, Signal::SIGINT)?;
    let status = softnet.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// A backtrace reads files and asks for memory, which the seal forbids, so none is made of what is told behind it.
pub fn an_error_is_told_whatever_backtraces_are_asked_for() -> Result<()> {
    let host = Host::main()?;
    let _segment = Segment::build(&host, [10, 0, 0, 1].into(), 24)?;
    let (_vm, wire) = VmPort::pair()?;
    let mut command = Command::new(PROGRAM);
    command
        .args(["--vm-fd=0", "--vm-mac-address", MAC, "--tap", Segment::TAP, Softnet::READY_FLAG])
        .env("RUST_BACKTRACE", "full")
        .stdin(wire);
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    host.ip(&format!("link del {}", Segment::TAP))?;
    let status = softnet.wait()?;
    let log = softnet.log();
    ensure!(status.code() == Some(1) && log.contains("softnet: "), "{status}: {log}");
    Ok(())
}
