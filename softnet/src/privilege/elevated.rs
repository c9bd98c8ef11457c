//! A start with more privilege than its caller has: what it may ask for, and what it inherits besides arguments.

use super::Start;
use crate::config::HostSide;

/// Refuses what an elevated caller may not ask for, and replaces the surroundings that it chose. Any other caller is
/// as good as the process, and nothing changes.
///
/// # Errors
/// A [`crate::usage::UsageError`] for what is refused; anything else when the kernel does not do its part.
#[cfg(target_os = "linux")]
pub fn guard(start: &Start, host: &HostSide) -> anyhow::Result<()> {
    if start.is_elevated() {
        super::bridges::permit(host)?;
        linux::replace_surroundings()?;
    }
    Ok(())
}

/// Nothing: the set-user-ID bit is how everybody starts Softnet on macOS, and there is one host side.
#[cfg(not(target_os = "linux"))]
pub fn guard(_start: &Start, _host: &HostSide) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    use rustix::fs::Mode;
    use rustix::process::{Resource, Rlimit, setrlimit, umask};

    use crate::sys;

    /// Descriptors that a privileged process may open: what a login session has.
    const DESCRIPTORS: Rlimit = Rlimit { current: Some(1024), maximum: Some(4096) };

    const UNLIMITED: Rlimit = Rlimit { current: None, maximum: None };

    /// Makes the process's surroundings ordinary ones, before it does what others rely on: a DHCP server must not die of
    /// its first user's CPU limit, a file not be writable for all, a child's end not go unnoticed.
    pub fn replace_surroundings() -> io::Result<()> {
        umask(Mode::from_raw_mode(0o022));
        let lifted =
            [Resource::Cpu, Resource::Fsize, Resource::Data, Resource::As, Resource::Nproc, Resource::Rss];
        for (resource, limit) in
            lifted.map(|resource| (resource, UNLIMITED)).into_iter().chain([(Resource::Nofile, DESCRIPTORS)])
        {
            // Only root raises limits. Whoever cannot does nothing that others rely on.
            let _ = setrlimit(resource, limit);
        }
        sys::process::hear_of_children()
    }
}
