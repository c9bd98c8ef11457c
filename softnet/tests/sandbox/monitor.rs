//! The monitor, Softnet's first process: what it gave up, and what the worker does not have because the monitor has it.
#![expect(unsafe_code, reason = "makes system calls by number that no library would")]

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail, ensure};
use lab::deadline::until;
use lab::net::Host;
use lab::{Segment, Softnet, VmPort};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::WaitStatus;
use softnet::monitor::confine;
use softnet::privilege::{Identity, Start, System};

use super::calls::in_a_child;
use super::worker::{MAC, PROGRAM, Process};

/// `CAP_NET_ADMIN` and `CAP_KILL`.
const OF_A_PLACE: &str = "0000000000001020";
const NONE: &str = "0000000000000000";

/// The inodes of all netlink sockets of this network namespace.
fn netlink_sockets() -> Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/net/netlink")?;
    let inode = |line: &str| line.split_ascii_whitespace().last().map(|inode| format!("socket:[{inode}]"));
    Ok(table.lines().skip(1).filter_map(inode).collect())
}

fn start(arguments: &[&str]) -> Result<(Softnet, VmPort)> {
    let (vm, wire) = VmPort::pair()?;
    let mut softnet = Softnet::start(Path::new(PROGRAM), wire, MAC, arguments)?;
    softnet.ready()?;
    Ok((softnet, vm))
}

/// In every mode there are two processes, and neither has what the other is for.
pub fn it_is_confined_and_watches_for_the_worker() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    let nobody = 65534;
    for (arguments, user, capabilities) in [
        (&["--tap", Segment::TAP][..], nobody, NONE),
        (&["--bridge", Segment::BRIDGE], nobody, NONE),
        (&[], 0, OF_A_PLACE),
    ] {
        let (mut softnet, vm) = start(arguments)?;
        let worker = Process::look(softnet.worker()?.as_raw())?;
        // The worker says that it is ready, and does not wait until its monitor has confined itself.
        let pid = softnet.pid().as_raw();
        let confined = || Process::look(pid).is_ok_and(|monitor| monitor.field("Seccomp") == "2");
        ensure!(until(confined), "{arguments:?}: the monitor is not confined");
        let monitor = Process::look(pid)?;
        ensure!(monitor.is_only("Uid", user), "{arguments:?}: uid {}", monitor.field("Uid"));
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            ensure!(monitor.field(set) == capabilities, "{arguments:?}: {set} {}", monitor.field(set));
        }
        ensure!(monitor.field("NoNewPrivs") == "1" && monitor.field("Seccomp") == "2");
        ensure!(monitor.field("Threads") == "1");

        let netlink = netlink_sockets()?;
        let of = |process: &Process| -> Result<usize> {
            let links = fs::read_dir(process.at("fd"))?;
            let targets = links.filter_map(|link| fs::read_link(link.ok()?.path()).ok());
            Ok(targets.filter(|target| netlink.contains(&*target.to_string_lossy())).count())
        };
        // To ask for the VM, to hear of addresses, and to ask for them.
        ensure!(of(&monitor)? == 3, "{arguments:?}: the monitor has {} netlink sockets", of(&monitor)?);
        ensure!(of(&worker)? == 0, "{arguments:?}: the worker has {} netlink sockets", of(&worker)?);

        // Silently, as a VMM that was killed does it.
        drop(vm);
        let status = softnet.wait()?;
        ensure!(status.success(), "{arguments:?}: {status}: {}", softnet.log());
    }
    Ok(())
}

/// Whichever of the two is killed, the VM's wire closes and the status says so.
pub fn either_ones_death_is_the_others_end() -> Result<()> {
    let _segment = Segment::build(&Host::main()?, [10, 0, 0, 1].into(), 24)?;
    for arguments in [&["--tap", Segment::TAP][..], &["--bridge", Segment::BRIDGE]] {
        let (mut softnet, vm) = start(arguments)?;
        kill(softnet.worker()?, Signal::SIGKILL)?;
        ensure!(softnet.wait()?.code() == Some(137), "{}", softnet.log());
        ensure!(until(|| vm.is_closed()), "{arguments:?}: the VM's wire stays open");

        let (mut softnet, vm) = start(arguments)?;
        softnet.signal(Signal::SIGKILL)?;
        softnet.wait()?;
        ensure!(until(|| vm.is_closed()), "{arguments:?}: the worker outlives the monitor");
    }
    Ok(())
}

fn call(number: libc::c_long, arguments: [libc::c_long; 6]) -> io::Result<()> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the callers pass numbers, null pointers, or pointers that live through the call.
    if unsafe { libc::syscall(number, a, b, c, d, e, f) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn confined(has_place: bool) -> Result<()> {
    let identity = Identity::choose(None, None, &Start::of_this_process()?, &System)?;
    // Any process will do for the one to signal.
    let worker = rustix::process::getpid();
    Ok(confine(has_place, &identity, worker, None)?)
}

/// Does `work` behind the monitor's confinement.
fn behind(has_place: bool, work: impl FnOnce() -> Result<()>) -> Result<WaitStatus> {
    let (status, said) = in_a_child(|| match confined(has_place).and_then(|()| work()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    })?;
    if matches!(status, WaitStatus::Exited(_, 1)) {
        bail!("{said}");
    }
    Ok(status)
}

pub fn without_a_place_every_other_call_ends_it() -> Result<()> {
    let inet = libc::c_long::from(libc::AF_INET);
    for (name, number, arguments) in [
        ("socket", libc::SYS_socket, [inet, libc::SOCK_DGRAM.into(), 0, 0, 0, 0]),
        ("execve", libc::SYS_execve, [0; 6]),
        ("clone", libc::SYS_clone, [0; 6]),
        ("ptrace", libc::SYS_ptrace, [0; 6]),
        ("kill of another", libc::SYS_kill, [1, 0, 0, 0, 0, 0]),
        ("unshare", libc::SYS_unshare, [0; 6]),
        ("mount", libc::SYS_mount, [0; 6]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]),
        ("mmap of executable memory", libc::SYS_mmap, [0, 4096, libc::PROT_EXEC.into(), 0x22, -1, 0]),
    ] {
        let status = behind(false, || Ok(call(number, arguments)?))?;
        ensure!(matches!(status, WaitStatus::Signaled(_, Signal::SIGSYS, _)), "{name}: {status:?}");
    }
    let status = behind(false, || {
        ensure!(fs::read("/etc/passwd").is_err(), "it may read /etc");
        ensure!(fs::write("/run/softnet-test", "").is_err(), "it may write to /run");
        fs::read_dir("/run")?;
        Ok(())
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    Ok(())
}

pub fn with_a_place_it_runs_nft_and_little_else() -> Result<()> {
    fs::create_dir_all("/run/softnet")?;
    let status = behind(true, || {
        let user = libc::c_long::from(libc::CLONE_NEWUSER | libc::SIGCHLD);
        for (name, number, arguments) in [
            ("ptrace", libc::SYS_ptrace, [0; 6]),
            ("mount", libc::SYS_mount, [0; 6]),
            ("unshare", libc::SYS_unshare, [0; 6]),
            ("setns", libc::SYS_setns, [0; 6]),
            ("bpf", libc::SYS_bpf, [0; 6]),
            ("io_uring_setup", libc::SYS_io_uring_setup, [0; 6]),
            ("keyctl", libc::SYS_keyctl, [0; 6]),
            ("process_vm_readv", libc::SYS_process_vm_readv, [0; 6]),
            ("init_module", libc::SYS_init_module, [0; 6]),
            ("clone of a user namespace", libc::SYS_clone, [user, 0, 0, 0, 0, 0]),
        ] {
            let outcome = call(number, arguments);
            ensure!(
                outcome.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::ENOSYS)),
                "{name}: {outcome:?}"
            );
        }
        ensure!(fs::write("/etc/softnet-test", "").is_err(), "it may write to /etc");
        ensure!(fs::read_dir("/root").is_err(), "it may look into /root");
        fs::write("/run/softnet/test", "")?;
        fs::remove_file("/run/softnet/test")?;
        let output = Command::new("/usr/sbin/nft").args(["list", "ruleset"]).env_clear().output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    })?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    Ok(())
}
