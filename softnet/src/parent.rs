//! Detects that the process that started Softnet has ended, so that no filter outlives its VM's launcher
//! (rule R3).

use std::io;

use mio::{Registry, Token};

use crate::needs::Needs;
#[cfg(target_os = "linux")]
pub use linux::ParentWatch;
#[cfg(not(target_os = "linux"))]
pub use portable::ParentWatch;

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use std::os::fd::{AsRawFd, OwnedFd};

    use mio::Interest;
    use mio::unix::SourceFd;
    use rustix::process::{PidfdFlags, getppid, pidfd_open};

    /// A `pidfd` of the parent, which becomes readable when the parent ends.
    #[derive(Debug)]
    pub struct ParentWatch {
        parent: Option<OwnedFd>,
    }

    impl ParentWatch {
        /// Watches the present parent. A parent outside of this PID namespace cannot be watched.
        pub fn new() -> io::Result<Self> {
            let parent = match getppid() {
                Some(pid) => Some(pidfd_open(pid, PidfdFlags::NONBLOCK)?),
                None => None,
            };
            Ok(ParentWatch { parent })
        }

        /// Lets `registry` wake the event loop under `token` when the parent ends.
        pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
            match &self.parent {
                Some(pidfd) => {
                    registry.register(&mut SourceFd(&pidfd.as_raw_fd()), token, Interest::READABLE)
                }
                None => Ok(()),
            }
        }

        /// Declares the descriptor that the watch needs once the process is sealed. Only the poller uses it.
        pub fn needs(&self, needs: &mut Needs) {
            if let Some(pidfd) = &self.parent {
                needs.descriptor(pidfd);
            }
        }

        /// Whether [`ParentWatch::is_gone`] has to be polled, because nothing wakes the loop.
        pub fn needs_probe(&self) -> bool {
            false
        }

        /// Whether the parent is gone, where this has to be polled.
        pub fn is_gone(&self) -> bool {
            false
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use super::*;
    use rustix::process::{Pid, getppid};

    /// Remembers the parent; a process whose parent ends gets another one.
    #[derive(Debug)]
    pub struct ParentWatch {
        parent: Option<Pid>,
    }

    impl ParentWatch {
        /// Remembers the present parent.
        pub fn new() -> io::Result<Self> {
            Ok(ParentWatch { parent: getppid() })
        }

        /// Nothing wakes the loop: see [`ParentWatch::needs_probe`].
        pub fn register(&mut self, _registry: &Registry, _token: Token) -> io::Result<()> {
            Ok(())
        }

        /// Nothing that a seal could take away.
        pub fn needs(&self, _needs: &mut Needs) {}

        /// Whether [`ParentWatch::is_gone`] has to be polled, because nothing wakes the loop.
        pub fn needs_probe(&self) -> bool {
            true
        }

        /// Whether the parent is gone.
        pub fn is_gone(&self) -> bool {
            getppid() != self.parent
        }
    }
}
