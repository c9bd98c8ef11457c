//! Moves a program into its own namespaces.
//!
//! # Theory of operation
//! A program that needs a lab calls [`enter`] at the start of `main`. Outside, [`command`] starts the same
//! program again with a stage in its environment; this creates three processes:
//!
//! 1. *outer* leaves the caller's namespaces: user (only without root), network, mounts, processes, IPC, host name. It
//!    waits for its child. The kernel kills it if its parent's thread ends.
//! 2. *init* is process 1 of the new process namespace. It mounts a `/proc` and a `/run` of its own, raises `lo`, and
//!    reaps orphans. The kernel kills it if *outer* ends; and when process 1 ends, the kernel kills all the others.
//! 3. *inside* continues with `main`.
//!
//! So a SIGKILL of any of the three, or of the process that started them, leaves no process, interface or
//! mount behind: no other process holds the namespaces. Nothing connects the new network to the old one.

use std::fs;
use std::io;
use std::os::unix::process::{ExitStatusExt, parent_id};
use std::path::Path;
use std::process::{self, Command, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, getegid, geteuid};

const STAGE: &str = "SOFTNET_LAB_STAGE";
const STARTER: &str = "SOFTNET_LAB_STARTER";

/// Scratch space inside: a tmpfs that disappears with the namespaces.
pub const SCRATCH: &str = "/run/lab";

/// Where a program runs after [`enter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// In the caller's namespaces: start a [`command`] to run inside.
    Outside,
    /// In its own namespaces.
    Inside,
}

/// This program's command with other arguments, to run inside new namespaces.
///
/// The calling thread must live until the command has ended: its end kills the command.
///
/// # Errors
/// Fails if the program cannot find its own file.
pub fn command<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find the running program")?);
    command.args(arguments).env(STAGE, "outer").env(STARTER, process::id().to_string());
    Ok(command)
}

/// Returns where the program runs. In the two stages in between, it does their work and never returns.
#[must_use]
pub fn enter() -> Stage {
    let stage = std::env::var(STAGE);
    match stage.as_deref() {
        Ok("outer") => finish(outer()),
        Ok("init") => finish(init()),
        Ok("inside") => Stage::Inside,
        _ => Stage::Outside,
    }
}

fn finish(result: Result<ExitStatus>) -> ! {
    match result {
        Ok(status) => {
            process::exit(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default()))
        }
        Err(error) => {
            eprintln!("lab: {error:#}");
            process::exit(125);
        }
    }
}

fn next(stage: &str) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("find the running program")?);
    command.args(std::env::args_os().skip(1)).env(STAGE, stage);
    Ok(command)
}

fn outer() -> Result<ExitStatus> {
    die_with_parent()?;
    let starter = std::env::var(STARTER).ok().and_then(|text| text.parse().ok());
    if starter != Some(parent_id()) {
        bail!("the process that started this lab has already ended");
    }
    if !geteuid().is_root() {
        let (user, group) = (geteuid(), getegid());
        unshare(CloneFlags::CLONE_NEWUSER)
            .context("create a user namespace (if that is not allowed here, run as root)")?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    }
    unshare(
        CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .context("leave the namespaces of the caller")?;
    next("init")?.status().context("start process 1 of the lab")
}

fn init() -> Result<ExitStatus> {
    die_with_parent()?;
    mount_own().context("mount the lab's own file systems")?;
    run("ip", &["link", "set", "lo", "up"])?;
    let child = next("inside")?
        .env("TMPDIR", SCRATCH)
        .env("HOME", SCRATCH)
        .env_remove(STARTER)
        .spawn()
        .context("start the program inside the lab")?;
    let child = Pid::from_raw(child.id().try_into()?);
    loop {
        match wait()? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(ExitStatus::from_raw(code << 8)),
            WaitStatus::Signaled(pid, signal, _) if pid == child => {
                return Ok(ExitStatus::from_raw(signal as i32));
            }
            _ => {}
        }
    }
}

fn die_with_parent() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).context("request SIGKILL when the parent ends")
}

fn mount_own() -> Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("proc"), "/proc", Some("proc"), plain | MsFlags::MS_NOEXEC, none)?;
    // Executable: User-mode Linux maps its memory file from here.
    mount(Some("tmpfs"), "/run", Some("tmpfs"), plain, Some("mode=0755"))?;
    fs::create_dir_all("/run/netns")?;
    fs::create_dir_all(SCRATCH)?;
    // Programs that drop their privilege still need a temporary directory.
    fs::set_permissions(SCRATCH, std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    // The lab resolves its own names: dnsmasq forwards to the lab's internet, not to the host's resolver.
    let resolver = Path::new(SCRATCH).join("resolv.conf");
    fs::write(&resolver, "nameserver 8.8.8.8\n")?;
    if let Ok(target) = fs::canonicalize("/etc/resolv.conf") {
        mount(Some(&resolver), &target, none, MsFlags::MS_BIND, none)?;
    }
    Ok(())
}

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// Names the command line and repeats its standard error if it fails.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output();
    let output = match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => bail!("{program} is not installed"),
        other => other.with_context(|| format!("start {program}"))?,
    };
    if !output.status.success() {
        let words = arguments.join(" ");
        bail!("{program} {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// True if the program runs as root, in any user namespace.
#[must_use]
pub fn is_root() -> bool {
    geteuid().is_root()
}
