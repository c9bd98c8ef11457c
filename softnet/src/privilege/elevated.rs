//! A start with more privilege than its caller has: limits what it may request, and resets what it inherits.

use super::Start;
use crate::config::PortSettings;

/// Refuses what an elevated caller may not request, and resets the attributes that the process inherited from
/// it. For any other caller, who has the same privilege as the process, it does nothing.
///
/// # Errors
/// A [`crate::usage::UsageError`] for what is refused; any other error when a system call fails.
#[cfg(target_os = "linux")]
pub fn prepare_elevated(start: &Start, settings: &PortSettings) -> anyhow::Result<()> {
    if start.is_elevated() {
        super::bridges::permit(settings)?;
        linux::replace_surroundings();
    }
    Ok(())
}

/// Does nothing: on macOS all users start Softnet by the set-user-ID bit, and there is only one host side.
#[cfg(not(target_os = "linux"))]
pub fn prepare_elevated(_start: &Start, _settings: &PortSettings) -> anyhow::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
mod linux {
    use rustix::fs::Mode;
    use rustix::process::{Resource, Rlimit, setrlimit, umask};

    /// Descriptors that a privileged process may open: what a login session has.
    const DESCRIPTORS: Rlimit = Rlimit { current: Some(1024), maximum: Some(4096) };

    const UNLIMITED: Rlimit = Rlimit { current: None, maximum: None };

    /// Resets what the process inherited, before it starts what other users rely on: the first user's CPU
    /// limit must not kill a DHCP server, and no file may be writable for all.
    pub fn replace_surroundings() {
        umask(Mode::from_raw_mode(0o022));
        let lifted =
            [Resource::Cpu, Resource::Fsize, Resource::Data, Resource::As, Resource::Nproc, Resource::Rss];
        for (resource, limit) in
            lifted.map(|resource| (resource, UNLIMITED)).into_iter().chain([(Resource::Nofile, DESCRIPTORS)])
        {
            // Only root can raise limits. A process that cannot starts nothing that other users rely on.
            let _ = setrlimit(resource, limit);
        }
    }
}
