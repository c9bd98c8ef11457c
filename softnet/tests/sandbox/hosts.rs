//! Other starts than root's on a TAP, and other kernels than a complete one.
#![expect(unsafe_code, reason = "what a kernel lacks is taken away between fork and exec")]

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::deadline::until;
use lab::net::Host;
use lab::stage::run;
use lab::wire::{Arp, Mac};
use lab::{Segment, Softnet, VmPort};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};

use super::worker::{MAC, PROGRAM, Process, reaches_the_vm};

/// The ordinary user.
const USER: u32 = 1000;

fn command(program: &str, arguments: &[&str]) -> Result<(Command, VmPort)> {
    let (vm, wire) = VmPort::pair()?;
    let mut command = Command::new(program);
    command.args(["--vm-fd=0", "--vm-mac-address", MAC, Softnet::READY_FLAG]).args(arguments).stdin(wire);
    Ok((command, vm))
}

/// A bridge with a TAP of an ordinary user's, and the program where such a user can read it.
fn segment_of_a_user() -> Result<Segment> {
    let segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    let host = Host::main()?;
    host.ip(&format!("tuntap add dev own0 mode tap user {USER}"))?;
    host.ip(&format!("link set own0 addrgenmode none master {} up", Segment::BRIDGE))?;
    // Open to everybody, as on most systems, if not on this one.
    fs::create_dir("/run/dev")?;
    run("mount", &["-t", "tmpfs", "none", "/run/dev"])?;
    run("mknod", &["-m", "666", "/run/dev/tun", "c", "10", "200"])?;
    run("mount", &["--bind", "/run/dev/tun", "/dev/net/tun"])?;
    fs::copy(PROGRAM, "/run/lab/softnet")?;
    Ok(segment)
}

/// Ubuntu 24.04 lets an ordinary user make a user namespace and denies the mapping; here /proc is read-only instead.
pub fn a_user_who_may_map_nothing_is_confined_by_the_rest() -> Result<()> {
    let segment = segment_of_a_user()?;
    run("mount", &["--bind", "/proc", "/proc"])?;
    run("mount", &["-o", "remount,ro,bind", "/proc"])?;
    let (mut command, vm) = command("/run/lab/softnet", &["--tap", "own0", "--require-sandbox"])?;
    command.uid(USER).gid(USER);
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    let process = Process::look(softnet.worker()?.as_raw())?;
    ensure!(process.is_only("Uid", USER) && process.field("CapEff") == "0000000000000000");
    ensure!(process.field("NoNewPrivs") == "1" && process.field("Seccomp") == "2");
    ensure!(reaches_the_vm(&segment, &vm), "no frame reaches the VM: {}", softnet.log());
    ensure!(softnet.stop()?.success(), "{}", softnet.log());
    Ok(())
}

/// A user with a TAP of their own needs no privilege, and gets the empty names by a user namespace.
pub fn an_ordinary_user_is_confined_as_well() -> Result<()> {
    let segment = segment_of_a_user()?;
    let (mut command, vm) = command("/run/lab/softnet", &["--tap", "own0", "--require-sandbox"])?;
    command.uid(USER).gid(USER);
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    let process = Process::look(softnet.worker()?.as_raw())?;
    ensure!(process.is_only("Uid", USER) && process.is_only("Gid", USER), "uid {}", process.field("Uid"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        ensure!(process.field(set) == "0000000000000000", "{set} {}", process.field(set));
    }
    ensure!(process.field("NoNewPrivs") == "1" && process.field("Seccomp") == "2");
    let mine = Process::look(std::process::id().try_into()?)?;
    for kind in ["user", "net", "mnt"] {
        ensure!(process.namespace(kind)? != mine.namespace(kind)?, "it shares the {kind} namespace");
    }
    ensure!(fs::read_dir(process.at("root"))?.count() == 0, "its root has files");
    ensure!(reaches_the_vm(&segment, &vm), "no frame reaches the VM: {}", softnet.log());
    ensure!(softnet.stop()?.success(), "{}", softnet.log());
    Ok(())
}

/// In the managed network the worker has the frames and no privilege, and its parent the privilege and no frames.
pub fn privilege_and_frames_are_apart() -> Result<()> {
    let (command, vm) = command(PROGRAM, &["--require-sandbox"])?;
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    let monitor = Process::look(softnet.pid().as_raw())?;
    let worker = Process::look(softnet.worker()?.as_raw())?;
    ensure!(worker.is_only("Uid", 65534) && worker.field("CapEff") == "0000000000000000");
    ensure!(worker.field("CapBnd") == "0000000000000000" && worker.field("Seccomp") == "2");
    ensure!(fs::read_dir(worker.at("root"))?.count() == 0, "its root has files");
    let holds = |process: &Process, what: &str| -> Result<bool> {
        Ok(process.descriptors()?.values().any(|target| target.contains(what)))
    };
    ensure!(holds(&worker, "/dev/net/tun")?, "{:?}", worker.descriptors());
    // Of the network it has the lock of its own place, and that only to keep it.
    let files = worker.descriptors()?.into_iter().filter(|(_, target)| target.starts_with("/run"));
    let files: Vec<(i32, String)> = files.collect();
    ensure!(files.len() == 1 && files[0].1.ends_with("/locks/softnet0/ports/52:54:00:12:34:56"), "{files:?}");
    let information = fs::read_to_string(worker.at(&format!("fdinfo/{}", files[0].0)))?;
    let flags = information.lines().find_map(|line| line.strip_prefix("flags:")).context("no flags")?;
    ensure!(flags.trim().ends_with('0'), "it can be written to: {flags}");
    let numbers: Vec<i32> = fs::read_dir(monitor.at("fd"))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers {
        let target = fs::read_link(monitor.at(&format!("fd/{number}")))?;
        ensure!(target != *"/dev/net/tun", "the monitor has the TAP open");
    }
    // The VM's wire is the worker's alone: with the worker gone nobody holds it.
    ensure!(!vm.is_closed());
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(worker.field("Pid").parse()?),
        nix::sys::signal::Signal::SIGKILL,
    )?;
    ensure!(until(|| vm.is_closed()), "the monitor holds the VM's wire");
    ensure!(softnet.wait()?.code() == Some(137));
    Ok(())
}

/// Lets `command` run as on a kernel where the system call `number` fails with `errno`.
fn on_a_kernel_without(command: &mut Command, number: i64, errno: i32) -> Result<()> {
    let rules = [(number, Vec::new())].into_iter().collect();
    let missing = SeccompAction::Errno(errno.unsigned_abs());
    let filter =
        SeccompFilter::new(rules, SeccompAction::Allow, missing, std::env::consts::ARCH.try_into()?)?;
    let program = BpfProgram::try_from(filter)?;
    // SAFETY: installing a compiled filter makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(move || apply_filter(&program).map_err(|_| std::io::ErrorKind::Unsupported.into()))
    };
    Ok(())
}

pub fn a_kernel_that_lacks_something_is_told_apart() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    for (missing, number, errno) in [
        ("Landlock", libc::SYS_landlock_create_ruleset, libc::ENOSYS),
        ("Landlock", libc::SYS_landlock_create_ruleset, libc::EOPNOTSUPP),
        ("seccomp", libc::SYS_seccomp, libc::EINVAL),
    ] {
        let (mut strict, _vm) = command(PROGRAM, &["--tap", Segment::TAP, "--require-sandbox"])?;
        on_a_kernel_without(&mut strict, number, errno)?;
        let mut softnet = Softnet::spawn(strict)?;
        let status = softnet.wait()?;
        let said = softnet.log();
        ensure!(
            status.code() == Some(1) && said.contains("--require-sandbox: this kernel has no"),
            "{status}: {said}"
        );
        ensure!(said.contains(missing), "{said}");

        let (mut lenient, vm) = command(PROGRAM, &["--tap", Segment::TAP])?;
        on_a_kernel_without(&mut lenient, number, errno)?;
        let mut softnet = Softnet::spawn(lenient)?;
        softnet.ready()?;
        ensure!(until(|| softnet.log().contains("Softnet is confined less")), "{}", softnet.log());
        ensure!(softnet.log().contains(missing), "{}", softnet.log());
        vm.send(&Arp::request(Mac([2, 0, 0, 0, 0, 2]), [10, 0, 0, 2].into(), [10, 0, 0, 1].into()).frame())?;
        ensure!(softnet.stop()?.success(), "{}", softnet.log());
    }
    Ok(())
}
