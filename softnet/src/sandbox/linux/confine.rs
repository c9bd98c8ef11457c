//! Confinement for the monitor and the programs that it starts. The process that parses frames has its own,
//! stricter seal.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::io;

use ::landlock::{
    Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, path_beneath_rules,
};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::landlock::NEWEST;

/// The files that stay accessible. Paths that do not exist are ignored.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// Files and directories that may be read.
    pub read: &'a [&'a str],
    /// Files and directories that may be read and executed.
    pub execute: &'a [&'a str],
    /// Files and directories that may be read and changed in every way.
    pub write: &'a [&'a str],
    /// Whether TCP ports stay accessible.
    pub network: bool,
}

/// Removes access to all files but `files`, to TCP ports unless they stay, and to abstract sockets outside
/// this process and its children. `false` if the kernel has no Landlock.
///
/// # Errors
/// When a kernel that has Landlock refuses.
pub fn limit_files(files: &Files<'_>) -> io::Result<bool> {
    let restricted = || -> Result<_, RulesetError> {
        let all = AccessFs::from_all(NEWEST);
        let mut ruleset = Ruleset::default().handle_access(all)?.scope(Scope::AbstractUnixSocket)?;
        if !files.network {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
        }
        let read = AccessFs::ReadFile | AccessFs::ReadDir;
        ruleset
            .create()?
            .add_rules(path_beneath_rules(files.read, read))?
            .add_rules(path_beneath_rules(files.execute, read | AccessFs::Execute))?
            .add_rules(path_beneath_rules(files.write, all & !AccessFs::Execute))?
            .restrict_self()
    };
    let status = restricted().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}

/// What happens on a system call that is not allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnDenied {
    /// It ends the process.
    Kill,
    /// It fails as on a kernel without it (`ENOSYS`), for which C libraries have a fallback.
    Enosys,
}

/// System calls that stay allowed, by number.
#[derive(Clone, Debug)]
pub struct Calls {
    allowed: BTreeMap<i64, Vec<SeccompRule>>,
    on_denied: OnDenied,
}

impl Calls {
    /// `calls`, with any arguments.
    pub fn new(calls: &[i64], on_denied: OnDenied) -> Self {
        Calls { allowed: calls.iter().map(|&call| (call, Vec::new())).collect(), on_denied }
    }

    /// Also allows `call` if its argument number `index` is `value`.
    ///
    /// # Errors
    /// When the rule is invalid.
    pub fn with_argument(self, call: i64, index: u8, value: u64) -> io::Result<Self> {
        self.with(call, SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value))
    }

    /// Also allows `call` if its argument number `index` has none of the bits of `mask`.
    ///
    /// # Errors
    /// When the rule is invalid.
    pub fn without_bits(self, call: i64, index: u8, mask: u64) -> io::Result<Self> {
        let none = SeccompCmpOp::MaskedEq(mask);
        self.with(call, SeccompCondition::new(index, SeccompCmpArgLen::Qword, none, 0))
    }

    fn with(mut self, call: i64, condition: Result<SeccompCondition, BackendError>) -> io::Result<Self> {
        let rule =
            condition.and_then(|condition| SeccompRule::new(vec![condition])).map_err(io::Error::other)?;
        self.allowed.insert(call, vec![rule]);
        Ok(self)
    }

    /// Permanently limits this process and its children to these calls. `false` if the kernel has no seccomp
    /// filters, or the filter cannot be written for this architecture.
    ///
    /// # Errors
    /// When a kernel that has them refuses.
    pub fn apply(self) -> io::Result<bool> {
        let Ok(architecture) = TargetArch::try_from(ARCH) else { return Ok(false) };
        let on_denied = match self.on_denied {
            OnDenied::Kill => SeccompAction::KillProcess,
            OnDenied::Enosys => SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        };
        let program: BpfProgram =
            SeccompFilter::new(self.allowed, on_denied, SeccompAction::Allow, architecture)
                .and_then(TryInto::try_into)
                .map_err(io::Error::other)?;
        match apply_filter(&program) {
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
