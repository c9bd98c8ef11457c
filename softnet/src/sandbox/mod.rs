//! What the process that touches frames gives up before it reads the first one.
//!
//! # Theory of operation
//! The VM controls what Softnet parses, so assume that an attacker takes the parser over. After the seal the
//! process must hold nothing of value: every stage below removes one kind of access, and none relies on
//! another. The order is forced: each stage needs something that a later one removes.
//!
//! 1. **Descriptors.** All are closed except those that the links, the timer and the log need
//!    ([`crate::needs::Needs`]). Not earlier, because links are opened until then; before the rest, so that
//!    no earlier descriptor survives.
//! 2. **Names.** New network, mount, IPC, host name and cgroup namespaces: a network without interfaces, and
//!    an empty read-only file system without even the right to look into it. Needs `CAP_SYS_ADMIN`, so it
//!    comes before the capabilities are dropped; a user without privilege gets the namespaces through a user
//!    namespace where the kernel permits that. Open sockets and TAPs keep working: they belong to the
//!    namespace that they were opened in.
//! 3. **Capabilities, permanently.** The bounding set is emptied and the secure bits are locked, so that no
//!    later identity brings a capability back. Needs `CAP_SETPCAP`.
//! 4. **Identity.** Supplementary groups, group and user: real, effective and saved, of the user who started
//!    Softnet or whom `--user` names. The kernel drops all capabilities with the last root identity; they are
//!    cleared again explicitly, and the ambient and inheritable sets with them. See [`crate::privilege`].
//! 5. **Ways back.** `no_new_privs`; not dumpable, so that no other process of the same user reads the memory
//!    or attaches; resource limits forbid new descriptors, processes and core files.
//! 6. **Landlock.** No file, no TCP port, no abstract socket and no signal outside of the process. It works
//!    where stage 2 failed, and also limits open descriptors: a Unix datagram socket could otherwise send to
//!    *any* address of the host.
//! 7. **System calls.** seccomp allows the calls that the parts in use have declared, and ends the process
//!    for any other. Last, because it forbids the calls of the stages above.
//!
//! Not in this module: what frames may contain (the filter), and the work that needs privilege while frames
//! flow (the monitor, another process).

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod portable;

#[cfg(target_os = "linux")]
pub use linux::{
    Calls, Files, OnDenied, give_up_privilege, keep_capabilities, limit_files, restrict_by_landlock, seal,
};
#[cfg(not(target_os = "linux"))]
pub use portable::seal;

use std::io;

/// A part of the confinement that this kernel does not offer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Missing {
    /// Landlock: since Linux 5.13, and enabled by `lsm=` at boot.
    Landlock,
    /// seccomp filters: `CONFIG_SECCOMP_FILTER`, on an architecture that the filter is written for.
    Seccomp,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Missing::Landlock => "Landlock (Linux 5.13 or newer, with landlock among the modules of lsm=)",
            Missing::Seccomp => "seccomp filters (CONFIG_SECCOMP_FILTER, x86_64 or aarch64)",
        })
    }
}

/// Why a process could not be sealed. It must end.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A stage failed.
    #[error("cannot {0}")]
    Stage(&'static str, #[source] io::Error),
    /// The kernel lacks something and `--require-sandbox` was given.
    #[error("--require-sandbox: this kernel has no {0}; use another kernel or leave the flag out")]
    Missing(Missing),
}
