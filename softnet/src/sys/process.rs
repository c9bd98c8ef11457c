//! Processes: a fork of this one, and a child that inherits one descriptor and is signalled when this process
//! ends.
//!
//! `unsafe`, because a forked process has only the calling thread, and because code between fork and exec
//! must not allocate.
#![expect(unsafe_code, reason = "fork(2), _exit(2), and what runs between fork and exec")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use rustix::io::FdFlags;
use rustix::process::{Pid, Signal};

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The process that forked.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Forks this process, which must be single-threaded.
///
/// # Errors
/// `EAGAIN` or `ENOMEM`; `EBUSY` if there is a second thread, whose locks the child would hold for ever.
pub fn fork() -> io::Result<Fork> {
    ensure_single_thread()?;
    // SAFETY: the process has one thread (checked above), so the child's copy of every lock and of the heap
    // is whole.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid).filter(|_| pid > 0).map(Fork::Parent).ok_or_else(io::Error::last_os_error),
    }
}

/// Closes every descriptor but standard error and those in `keep`, and connects standard input and output to
/// `/dev/null`.
///
/// For a process that forked and continues with other work: values that it inherited still hold the
/// numbers, so it must never return to where they are used or dropped.
///
/// # Errors
/// When `/proc` or `/dev/null` cannot be opened.
pub fn keep_only(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let nowhere = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&nowhere)?;
    rustix::stdio::dup2_stdout(&nowhere)?;
    // Closed below with the others.
    let _ = nowhere.into_raw_fd();
    let open: Vec<libc::c_int> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in open {
        if number > libc::STDERR_FILENO && keep.iter().all(|kept| kept.as_raw_fd() != number) {
            // SAFETY: the caller ensures that nothing uses the number any more.
            unsafe { libc::close(number) };
        }
    }
    Ok(())
}

/// Checks that this is the only thread of the process.
///
/// # Errors
/// `EBUSY` if there is a second thread.
pub fn ensure_single_thread() -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Ok(())
}

/// Ends the process at once: no destructors, no exit handlers, no buffers flushed.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit only ends the process.
    unsafe { libc::_exit(status) }
}

/// Makes `command` run with root as its real, effective and saved user and without supplementary groups: some
/// programs refuse to run set-user-ID. A process whose saved user is root needs no capability for that
/// (setresuid(2)); if it has none, its groups were cleared before.
pub fn as_root(command: &mut Command) {
    use rustix::process::{Gid, Uid};
    use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

    let prepare = || {
        let _ = set_thread_groups(&[]);
        set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
        set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)?;
        Ok(())
    };
    // SAFETY: `prepare` makes three system calls, allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Runs `command` as root and detached from this process: as a grandchild, in its own session, with only the
/// standard descriptors. The spawned child exits at once, and the caller must wait for it; the command
/// continues.
pub fn detach(command: &mut Command) {
    as_root(command);
    let prepare = || {
        rustix::process::setsid()?;
        // SAFETY: the child of a fork has one thread. Its parent exits without destructors, and the child
        // continues to exec; the numbers that close_range marks stay open until then.
        unsafe {
            match libc::fork() {
                0 => {}
                pid if pid < 0 => return Err(io::Error::last_os_error()),
                _ => libc::_exit(0),
            }
            unmask()?;
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            match libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        }
    };
    // SAFETY: `prepare` allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Starts `command` with no signal blocked.
pub fn unmasked(command: &mut Command) {
    // SAFETY: it makes one system call.
    unsafe { command.pre_exec(unmask) };
}

/// Blocks no signal. It is async-signal-safe.
fn unmask() -> io::Result<()> {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Resets every signal to its default but SIGPIPE, which the runtime ignores.
///
/// # Errors
/// Those of `sigprocmask(2)`. A signal that cannot be set always has its default.
pub fn default_signals() -> io::Result<()> {
    for signal in (1..=libc::SIGRTMAX()).filter(|&signal| signal != libc::SIGPIPE) {
        // SAFETY: the default disposition runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    unmask()
}

/// Resets the process to the default scheduling, for the processor and for disks.
///
/// # Errors
/// Those of `sched_setscheduler(2)` and `ioprio_set(2)`.
pub fn default_scheduling() -> io::Result<()> {
    const THIS_PROCESS: libc::c_int = 1;
    // SAFETY: the parameters are a local that lives through the call, and numbers.
    unsafe {
        let mut parameters: libc::sched_param = std::mem::zeroed();
        parameters.sched_priority = 0;
        if libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters) < 0
            || libc::syscall(libc::SYS_ioprio_set, THIS_PROCESS, 0, 0) < 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Starts `command` with `descriptor` open under its current number. The kernel sends it `on_parent_exit`
/// when this process ends in any way. `first` runs first in the child, and must neither allocate nor take a
/// lock.
///
/// # Errors
/// Those of starting the command.
pub fn spawn_with(
    command: &mut Command,
    descriptor: &OwnedFd,
    first: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    on_parent_exit: Signal,
) -> io::Result<Child> {
    let number = descriptor.as_raw_fd();
    let parent = rustix::process::getpid();
    let prepare = move || {
        // It may change the process's identity, which makes the kernel reset the signal set below.
        first()?;
        // The command must not inherit the supervisor's blocked signals.
        unmask()?;
        // SAFETY: the caller's borrow keeps it open until the command has been spawned.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        rustix::process::set_parent_process_death_signal(Some(on_parent_exit))?;
        // The kernel does not send the signal if the parent ended before it was set.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: `prepare` allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}
