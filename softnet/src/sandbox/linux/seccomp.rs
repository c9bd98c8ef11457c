//! The declared system calls as a seccomp filter (seccomp(2)): any other call ends the process.

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::io;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use crate::needs::Syscall;

/// Two compiled filters; the kernel takes the stricter answer of both.
#[derive(Debug)]
pub struct Filter([BpfProgram; 2]);

impl Filter {
    /// A filter that allows `calls` and nothing else. mremap(2) fails as if there were no memory, and does not end the
    /// process: an allocator that cannot move a large block by it copies the block. `None` on an architecture that it
    /// cannot be written for.
    ///
    /// # Errors
    /// When the filter cannot be compiled.
    pub fn new(calls: &BTreeSet<Syscall>) -> io::Result<Option<Self>> {
        let Ok(architecture) = TargetArch::try_from(ARCH) else { return Ok(None) };
        let compile = || -> Result<[BpfProgram; 2], BackendError> {
            let moves = BTreeMap::from([(libc::SYS_mremap, Vec::new())]);
            let no_memory = SeccompAction::Errno(libc::ENOMEM.unsigned_abs());
            let failing = SeccompFilter::new(moves.clone(), SeccompAction::Allow, no_memory, architecture)?
                .try_into()?;
            let mut allowed = moves;
            for &call in calls {
                allowed.insert(number(call), rules(call)?);
            }
            let ending =
                SeccompFilter::new(allowed, SeccompAction::KillProcess, SeccompAction::Allow, architecture)?
                    .try_into()?;
            Ok([failing, ending])
        };
        compile().map(|programs| Some(Filter(programs))).map_err(io::Error::other)
    }

    /// Permanently confines this process. `false` if the kernel has no seccomp filters.
    ///
    /// # Errors
    /// When a kernel that has them refuses.
    pub fn apply(&self) -> io::Result<bool> {
        match self.0.iter().try_for_each(|program| apply_filter(program)) {
            Ok(()) => Ok(true),
            Err(seccompiler::Error::Seccomp(error))
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) =>
            {
                Ok(false)
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

/// The call's number on this architecture.
fn number(call: Syscall) -> i64 {
    match call {
        Syscall::Read => libc::SYS_read,
        Syscall::Write => libc::SYS_write,
        Syscall::Readv => libc::SYS_readv,
        Syscall::Writev => libc::SYS_writev,
        Syscall::Recvfrom => libc::SYS_recvfrom,
        Syscall::Sendto => libc::SYS_sendto,
        Syscall::Sendmsg => libc::SYS_sendmsg,
        Syscall::Recvmmsg => libc::SYS_recvmmsg,
        Syscall::Sendmmsg => libc::SYS_sendmmsg,
        Syscall::EpollWait => EPOLL_WAIT,
        Syscall::EpollCtl => libc::SYS_epoll_ctl,
        Syscall::TimerfdSettime => libc::SYS_timerfd_settime,
        Syscall::ClockGettime => libc::SYS_clock_gettime,
        Syscall::RtSigreturn => libc::SYS_rt_sigreturn,
        Syscall::Close => libc::SYS_close,
        Syscall::Brk => libc::SYS_brk,
        Syscall::Mmap => libc::SYS_mmap,
        Syscall::Munmap => libc::SYS_munmap,
        Syscall::Sigaltstack => libc::SYS_sigaltstack,
        Syscall::ExitGroup => libc::SYS_exit_group,
        Syscall::FcntlGetFlags => libc::SYS_fcntl,
    }
}

/// What the C library calls for `epoll_wait`: newer architectures have only the call with a signal mask, and musl uses
/// it everywhere.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
const EPOLL_WAIT: i64 = libc::SYS_epoll_wait;
#[cfg(not(all(target_arch = "x86_64", target_env = "gnu")))]
const EPOLL_WAIT: i64 = libc::SYS_epoll_pwait;

/// Restrictions on the call's arguments; no rule allows all.
fn rules(call: Syscall) -> Result<Vec<SeccompRule>, BackendError> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};

    const PRIVATE_MEMORY: u64 = (libc::MAP_ANONYMOUS | libc::MAP_PRIVATE) as u64;
    const EXECUTABLE: u64 = libc::PROT_EXEC as u64;

    let conditions = match call {
        // No destination but the one that the socket is connected to.
        Syscall::Sendto => vec![SeccompCondition::new(4, Qword, Eq, 0)?],
        Syscall::FcntlGetFlags => vec![SeccompCondition::new(1, Dword, Eq, libc::F_GETFD as u64)?],
        Syscall::Mmap => vec![
            SeccompCondition::new(2, Dword, MaskedEq(EXECUTABLE), 0)?,
            SeccompCondition::new(3, Dword, MaskedEq(PRIVATE_MEMORY), PRIVATE_MEMORY)?,
        ],
        _ => return Ok(Vec::new()),
    };
    Ok(vec![SeccompRule::new(conditions)?])
}
