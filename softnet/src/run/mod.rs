//! `softnet run`: a VM and its filter as one command.
//!
//! Three processes: this one supervises; a fork of it is the filter, in its own process group so that a
//! Ctrl-C meant for the VM does not cut its network; and the command is the VM. When the command ends, the filter
//! does, and when the filter fails, the command is ended.

mod command;
mod mac;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open};
use softnet_filter::MacAddr;

use crate::cli::RunArgs;
use crate::config::{Config, PortSettings, parse_mac};
use crate::privilege::{Identity, Origin, Start, System};
use crate::signals::signalfd::{Received, SignalFd};
use crate::sys::process::{self, Fork};
use crate::sys::wait;
use crate::usage::UsageError;
use crate::vm::VmSocket;
use command::{Promises, Socket, VmCommand};
use mac::OwnMac;

/// How long the filter may take to end cleanly.
const FILTER_GRACE: Duration = Duration::from_secs(5);
/// How long the VM may send no frame before a warning says so.
const MUTE_LIMIT: Duration = Duration::from_secs(5);
/// How long a program may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest first line of a version, in bytes.
const LONGEST_VERSION: usize = 4096;
/// How long the VM may take to end after SIGTERM.
const VM_GRACE: Duration = Duration::from_secs(10);

/// Runs the command behind a filter and returns its exit status; 128 plus the signal's number if a signal
/// ended it, as in a shell. The forked process calls `filter` with its configuration.
///
/// # Errors
/// When the arguments are wrong, the command cannot be started, or the filter fails while the VM runs.
pub fn run(args: RunArgs, filter: impl FnOnce(Config) -> ExitStatusByte) -> anyhow::Result<ExitCode> {
    let name = args.port.name.clone().map(OsString::from);
    let mut port = PortSettings::try_from(args.port)?;
    let start = Start::of_this_process()?;
    let vm_user = vm_user(args.vm_user.as_deref(), &port, &start)?;
    let (vm_mac, _own) = match &args.vm_mac_address {
        Some(mac) => (parse_mac(mac)?, None),
        None => {
            let user = vm_user.as_ref().map_or(start.real.0, |user| user.uid);
            let own = OwnMac::of(user, &mac::identity(name.as_deref(), &args.command))?;
            (own.mac, Some(own))
        }
    };
    let promises = Promises { reads_environment: args.fd_from_env, other_nics: args.allow_other_nics };
    let mut asked = Ok(true);
    let command = VmCommand::new(&args.command, promises, |program| {
        asked = is_qemu(program, vm_user.as_ref());
        *asked.as_ref().unwrap_or(&false)
    });
    asked?;
    let command = command?;
    let kind = match command.socket() {
        Socket::Datagram => SocketType::DGRAM,
        Socket::Stream => SocketType::STREAM,
    };
    let (vm_end, filter_end) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
        .context("cannot create the VM's socket pair")?;
    crate::vm::raise_buffers(&vm_end);
    let (ready_rx, ready_tx) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot create a pipe")?;
    let launcher = port.ready.replace(ready_tx);

    let filter = match process::fork().context("cannot fork the filter")? {
        Fork::Child => {
            drop((vm_end, ready_rx, launcher));
            let _ = rustix::process::setpgid(None, None);
            let vm = VmSocket::check(filter_end)?;
            let config = Config { vm, vm_mac, port, mute_limit: Some(MUTE_LIMIT) };
            std::process::exit(filter(config).into());
        }
        Fork::Parent(pid) => Filter::new(pid)?,
    };
    drop((filter_end, port));
    if let Some(user) = &vm_user
        && start.is_elevated()
    {
        // From here on this process only forwards signals and status, for which the caller's rights are
        // enough.
        user.assume().context("cannot give up the privilege of the set-user-ID bit")?;
    }

    // Blocked before the VM exists, so that no signal is lost between its start and the first wait.
    let mut signals = SignalFd::new()?;
    let Some(ready) = wait_until_ready(ready_rx, &mut signals, &filter)? else {
        return filter.failed_to_start();
    };
    if let Some(launcher) = launcher {
        let _ = File::from(launcher).write_all(&ready);
    }
    let arguments = command.words(vm_end.as_raw_fd(), vm_mac, mtu_of(&ready)?);
    let mut vm = match start_vm(&arguments, &vm_end, vm_mac, vm_user) {
        Ok(vm) => vm,
        Err(error) => {
            filter.end();
            return Err(error);
        }
    };
    drop(vm_end);
    supervise(&mut vm, filter, &mut signals)
}

/// The exit status of a process.
pub type ExitStatusByte = u8;

fn start_vm(
    arguments: &[OsString],
    vm_end: &OwnedFd,
    mac: MacAddr,
    user: Option<Identity>,
) -> anyhow::Result<Child> {
    let (program, arguments) = arguments.split_first().context("no command was given")?;
    let mut command = Command::new(program);
    command.args(arguments);
    // For wrapper scripts, whose command line has no placeholder.
    command.env("SOFTNET_FD", vm_end.as_raw_fd().to_string()).env("SOFTNET_MAC", mac.to_string());
    process::spawn_with(&mut command, vm_end, assume(user), Signal::TERM)
        .with_context(|| cannot_start(program))
}

fn cannot_start(program: &OsStr) -> String {
    format!("cannot start {:?}; is it installed and in PATH?", program.to_string_lossy())
}

/// Waits until the filter reports that frames flow. `None` if it ended before that, by itself or by a signal.
fn wait_until_ready(
    ready_rx: OwnedFd,
    signals: &mut SignalFd,
    filter: &Filter,
) -> anyhow::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut ready_rx = File::from(ready_rx);
    loop {
        let [readable, signalled] = wait([ready_rx.as_fd(), signals.as_fd()], None)?;
        if signalled && signals.read()?.is_some_and(Received::asks_to_end) {
            filter.signal(Signal::TERM);
        }
        if readable {
            let mut chunk = [0; 512];
            match ready_rx.read(&mut chunk)? {
                0 => return Ok(line.ends_with(b"\n").then_some(line)),
                count => line.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

/// The MTU in the line with which the filter reported that frames flow.
fn mtu_of(ready: &[u8]) -> anyhow::Result<u16> {
    let line: serde_json::Value = serde_json::from_slice(ready).context("cannot read the filter's report")?;
    let mtu = line["mtu"].as_u64().and_then(|mtu| mtu.try_into().ok());
    mtu.context("the filter's report names no MTU")
}

/// Forwards signals and waits until the VM ends; then ends the filter. A VM that closes its socket and goes on, as
/// a guest's `ip link set down` makes some VMMs do, has no network any more. If the filter fails, the VM ends too.
fn supervise(vm: &mut Child, filter: Filter, signals: &mut SignalFd) -> anyhow::Result<ExitCode> {
    let vm_pid = Pid::from_child(vm);
    let vm_pidfd = pidfd_open(vm_pid, PidfdFlags::empty()).context("cannot watch the VM's process")?;
    let mut filter = Some(filter);
    loop {
        let filter_pidfd = filter.as_ref().map_or(vm_pidfd.as_fd(), |filter| filter.pidfd.as_fd());
        let [vm_ended, filter_ended, signalled] =
            wait([vm_pidfd.as_fd(), filter_pidfd, signals.as_fd()], None)?;
        if vm_ended {
            let status = vm.wait()?;
            if let Some(filter) = filter {
                filter.end();
            }
            return Ok(exit_code(status));
        }
        if let Some(filter) = filter.take_if(|_| filter_ended) {
            let status = filter.wait();
            if status.success() {
                tracing::warn!(
                    "the VM closed the socket of its network card, or the filter was told to end; the VM has no network from now on"
                );
                continue;
            }
            let _ = rustix::process::kill_process(vm_pid, Signal::TERM);
            if !wait([vm_pidfd.as_fd()], Some(VM_GRACE))?[0] {
                let _ = rustix::process::kill_process(vm_pid, Signal::KILL);
            }
            vm.wait()?;
            anyhow::bail!("the filter ended ({status}) before the VM, so the VM was stopped too");
        }
        if signalled && let Some(received) = signals.read()? {
            if received.asks_for_counters() {
                if let Some(filter) = &filter {
                    filter.signal(Signal::USR1);
                }
            } else if received.is_for_the_vm() {
                let _ = rustix::process::kill_process(vm_pid, received.signal);
            }
        }
    }
}

/// The forked filter.
#[derive(Debug)]
struct Filter {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Filter {
    fn new(pid: Pid) -> anyhow::Result<Self> {
        Ok(Filter {
            pid,
            pidfd: pidfd_open(pid, PidfdFlags::empty()).context("cannot watch the filter's process")?,
        })
    }

    fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process(self.pid, signal);
    }

    /// Asks it to end, which releases the lease, and waits; kills it if it takes too long.
    fn end(self) {
        self.signal(Signal::TERM);
        if !wait([self.pidfd.as_fd()], Some(FILTER_GRACE)).is_ok_and(|[ended]| ended) {
            self.signal(Signal::KILL);
        }
        self.wait();
    }

    fn wait(self) -> ExitStatus {
        loop {
            match rustix::process::waitpid(Some(self.pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return ExitStatus::from_raw(status.as_raw()),
                Err(rustix::io::Errno::INTR) | Ok(None) => {}
                // Unknown is no success.
                Err(_) => return ExitStatus::from_raw(1 << 8),
            }
        }
    }

    /// It has printed why; this process exits with its status.
    fn failed_to_start(self) -> anyhow::Result<ExitCode> {
        Ok(exit_code(self.wait()))
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// Waits until one of `fds` is readable or `limit` has passed; returns which are.
fn wait<const N: usize>(
    fds: [std::os::fd::BorrowedFd<'_>; N],
    limit: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(wait::readable);
    wait::wait(&mut polled, limit)?;
    Ok(polled.map(|fd| !fd.revents().is_empty()))
}

/// The user who runs the command; `None` is who started Softnet. A set-user-ID bit is for the filter, never for the VM,
/// and so is the root of sudo: a VMM that its guest takes over must not be root.
fn vm_user(name: Option<&str>, port: &PortSettings, start: &Start) -> anyhow::Result<Option<Identity>> {
    let (user, group) = (port.user.as_deref(), port.group.as_deref());
    Ok(match name {
        Some(name) if !start.is_by_root() => {
            return Err(UsageError::new(
                "--vm-user",
                name,
                "may be given by root only; leave it out, and the VM runs as you",
            )
            .into());
        }
        Some("root" | "0") => None,
        Some(name) => Some(Identity::named("--vm-user", name, start, &System)?),
        None if start.is_elevated() || user.is_some() || group.is_some() => {
            Some(Identity::choose(user, group, start, &System)?)
        }
        None => {
            let identity = Identity::choose(None, None, start, &System)?;
            let of_sudo = identity.origin == Origin::Sudo;
            if of_sudo {
                let uid = identity.uid.as_raw();
                tracing::warn!(
                    uid,
                    "the VM runs as the user who called sudo; --vm-user root runs it as root"
                );
            }
            of_sudo.then_some(identity)
        }
    })
}

/// Whether a program says that it is QEMU when it is asked for its version, by the user who will run it.
fn is_qemu(program: &OsStr, user: Option<&Identity>) -> anyhow::Result<bool> {
    let nowhere = OwnedFd::from(File::open("/dev/null").context("cannot open /dev/null")?);
    let mut command = Command::new(program);
    command.arg("-version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    // So that nothing of it is left, whatever it starts.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut child = process::spawn_with(&mut command, &nowhere, assume(user.cloned()), Signal::KILL)
        .with_context(|| cannot_start(program))?;
    let mut answer = Vec::new();
    if let Some(mut output) = child.stdout.take() {
        let mut chunk = [0; 512];
        let deadline = Instant::now() + VERSION_TIMEOUT;
        while answer.len() < LONGEST_VERSION
            && !answer.contains(&b'\n')
            && wait([output.as_fd()], Some(deadline.saturating_duration_since(Instant::now())))?[0]
        {
            match output.read(&mut chunk)? {
                0 => break,
                count => answer.extend_from_slice(&chunk[..count]),
            }
        }
    }
    let _ = rustix::process::kill_process_group(Pid::from_child(&child), Signal::KILL);
    child.wait()?;
    Ok(answer.starts_with(b"QEMU emulator version"))
}

fn assume(user: Option<Identity>) -> impl Fn() -> io::Result<()> + Send + Sync + 'static {
    move || user.as_ref().map_or(Ok(()), Identity::assume)
}
