//! What Landlock and seccomp allow the monitor.
//!
//! Without a place in a managed network it starts no program and changes nothing: it reads the run directory, asks the kernel
//! over sockets that are open, and signals the worker. Any other call ends it, and with it the worker.
//!
//! With a place it starts nft, under the same limits. Which calls a C library or another version of nft makes
//! cannot be known for every host, so a call that is not listed fails as if the kernel did not have it, and
//! the list covers what ordinary programs need. It leaves out the calls that extend an attacker's foothold:
//! namespaces, mounts, other processes' memory, kernel modules, keys, bpf, io_uring, the clock. Its files are
//! the system's programs and settings to read, and the run directory.
//!
//! The worker reports a kernel without Landlock or seccomp, and refuses it under `--require-sandbox`.

use std::io;
use std::path::Path;

use rustix::process::Pid;

use crate::sandbox::{Calls, Files, OnDenied, limit_files};

/// The run directory of the networks of all network namespaces.
const RUN: &str = "/run/softnet";

/// Gives up what the monitor does not need.
///
/// # Errors
/// When a kernel that can confine a process refuses.
pub fn seal(has_place: bool, worker: Pid, sockets: Option<&Path>) -> io::Result<()> {
    let files = if has_place { FILES_OF_A_PLACE } else { files_to_watch() };
    let write: Vec<&str> =
        sockets.and_then(Path::to_str).into_iter().chain(files.write.iter().copied()).collect();
    let landlock = limit_files(&Files { write: &write, ..files })?;
    let calls = if has_place { calls_of_a_place()? } else { calls_to_watch(worker)? };
    let seccomp = calls.apply()?;
    tracing::debug!(landlock, seccomp, "the monitor is sealed");
    Ok(())
}

const FILES_OF_A_PLACE: Files<'static> = Files {
    // Settings in /etc may lead to /run.
    read: &["/proc", "/run", "/dev/urandom", "/dev/random"],
    execute: &["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc"],
    write: &[RUN, "/dev/null"],
    // Landlock restricts TCP ports by number, and the monitor works on the host's network.
    network: true,
};

/// The run directory, or its parent if it does not exist yet: root may create it later.
fn files_to_watch() -> Files<'static> {
    let read: &[&str] = if std::path::Path::new(RUN).is_dir() { &[RUN] } else { &["/run"] };
    Files { read, ..Files::default() }
}

/// The standard library uses it to detect the processor's features (`linux/prctl.h`).
const PR_GET_AUXV: u64 = 0x4155_5856;

fn calls_to_watch(worker: Pid) -> io::Result<Calls> {
    let executable = libc::PROT_EXEC as u64;
    Calls::new(TO_WATCH, OnDenied::Kill)
        .with_argument(libc::SYS_kill, 0, u64::from(worker.as_raw_pid().unsigned_abs()))?
        .with_argument(libc::SYS_prctl, 0, PR_GET_AUXV)?
        .without_bits(libc::SYS_mmap, 2, executable)?
        .without_bits(libc::SYS_mprotect, 2, executable)
}

fn calls_of_a_place() -> io::Result<Calls> {
    const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let all: Vec<i64> = TO_WATCH.iter().chain(TO_RUN_PROGRAMS).chain(LEGACY).copied().collect();
    // Without clone3, whose arguments a filter cannot inspect; C libraries then fall back to clone.
    Calls::new(&all, OnDenied::Enosys).without_bits(libc::SYS_clone, 0, NAMESPACES as u64)
}

/// The loop, the watches, the log, the allocator and the end.
const TO_WATCH: &[i64] = &[
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    // The VM's control socket, and the user at its other end.
    libc::SYS_accept4,
    libc::SYS_getsockopt,
    libc::SYS_unlinkat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    libc::SYS_inotify_add_watch,
    libc::SYS_pidfd_open,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_clock_gettime,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrandom,
    libc::SYS_futex,
    libc::SYS_brk,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_madvise,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// For locks and files of the run directory, sockets to the kernel and the DHCP server, and the programs that
/// are started.
const TO_RUN_PROGRAMS: &[i64] = &[
    libc::SYS_bind,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_chdir,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_close_range,
    libc::SYS_connect,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_execve,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpeername,
    libc::SYS_getpgid,
    libc::SYS_getppid,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getsockname,
    libc::SYS_gettimeofday,
    libc::SYS_getuid,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_ioctl,
    libc::SYS_kill,
    libc::SYS_linkat,
    libc::SYS_membarrier,
    libc::SYS_mkdirat,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_nanosleep,
    libc::SYS_pidfd_send_signal,
    libc::SYS_pipe2,
    libc::SYS_prctl,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_prlimit64,
    libc::SYS_pselect6,
    libc::SYS_pwrite64,
    libc::SYS_readlinkat,
    libc::SYS_recvmmsg,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_rseq,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_sendmmsg,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setgroups,
    libc::SYS_setpgid,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_signalfd4,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_statfs,
    libc::SYS_symlinkat,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_times,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_utimensat,
];

/// The older names of the same on x86.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[i64] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_wait,
    libc::SYS_fork,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pause,
    libc::SYS_pipe,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_vfork,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[i64] = &[];
