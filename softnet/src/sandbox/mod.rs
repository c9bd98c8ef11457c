//! What the process that touches frames gives up before it reads the first one.
//!
//! # Theory of operation
//! A VM writes what Softnet parses, so the parser is assumed to fall one day. After the seal it must hold nothing worth
//! stealing: every stage below takes away one kind of thing, and none relies on another. The order is forced: each stage
//! needs something that a later one takes.
//!
//! 1. **Descriptors.** All are closed but those that the links, the timer and the log need ([`crate::needs::Needs`]). Not earlier,
//!    because until then links are being opened; before the rest, so that no descriptor of the old world survives.
//! 2. **Names.** New network, mount, IPC, host name and cgroup namespaces: a network without interfaces, and an empty
//!    read-only file system without even the right to look into it. Needs `CAP_SYS_ADMIN`, so it comes before the
//!    capabilities go; a user without privilege gets them by a user namespace where the kernel permits that. Sockets and
//!    TAPs that are open keep working: they belong to the namespace that they were opened in.
//! 3. **Capabilities for ever.** The bounding set is emptied and the secure bits are locked, so that no later identity
//!    brings a capability back. Needs `CAP_SETPCAP`.
//! 4. **Identity.** Supplementary groups, group and user: real, effective and saved, of the user who started Softnet or
//!    was named. The kernel drops all capabilities with the last root identity; they are cleared again explicitly, and
//!    the ambient and inheritable sets with them. See [`crate::privilege`].
//! 5. **Ways back.** `no_new_privs`; not dumpable, so no other process of the same user reads the memory or attaches; no
//!    new descriptor, process or core file by resource limits.
//! 6. **Landlock.** No file, no TCP port, no abstract socket and no signal outside of the process. It holds where stage 2
//!    could not be had, and closes what descriptors open: a Unix datagram socket could otherwise be asked to send to
//!    *any* address of the host.
//! 7. **System calls.** seccomp allows the calls that the parts in use have declared, and ends the process for any other.
//!    Last, because it forbids all of the above.
//!
//! What is not here: what the frames may contain (the filter), and what is done with privilege while frames flow (the
//! privileged parent, another process).

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

/// Why a process could not be sealed. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// A stage failed.
    #[error("cannot {0}")]
    Stage(&'static str, #[source] io::Error),
    /// The kernel lacks something and `--require-sandbox` was given.
    #[error("--require-sandbox: this kernel has no {0}; use another kernel or leave the flag out")]
    Missing(Missing),
}
