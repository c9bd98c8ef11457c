//! The worker's end: reports the lease, and notices the monitor's death.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use softnet_filter::{Lease, Timestamp};

use super::message::{Report, SIZE};
use crate::relay::{LeaseFollower, RelayError};
use crate::sandbox::{Needs, Syscall};

/// What a running reporter calls.
const SYSCALLS: &[Syscall] = &[Syscall::Sendto, Syscall::Recvfrom];

/// When a report that did not fit into the channel is tried again.
const RETRY: Duration = Duration::from_millis(50);

/// Reports the VM's address to the monitor.
#[derive(Debug)]
pub struct Reporter {
    channel: OwnedFd,
    unsent: Option<(Report, Timestamp)>,
}

impl Reporter {
    /// Reports over `channel`, which does not block.
    pub fn new(channel: OwnedFd) -> Self {
        Reporter { channel, unsent: None }
    }

    fn send(&mut self, report: Report, now: Timestamp) {
        self.unsent = match send(&self.channel, &report.to_bytes(), SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN | Errno::INTR) => Some((report, now.saturating_add(RETRY))),
            // A monitor that is gone is noticed by `attend`.
            Ok(_) | Err(_) => None,
        };
    }
}

impl LeaseFollower for Reporter {
    fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.channel);
        needs.calls(SYSCALLS);
    }

    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.channel.as_raw_fd()), token, Interest::READABLE)
    }

    fn lease_changed(&mut self, lease: Option<Lease>, now: Timestamp) {
        // Only the latest matters, so it replaces one that is still unsent.
        self.send(lease.map_or(Report::NoLease, |lease| Report::Lease(lease.address)), now);
    }

    fn attend(&mut self, now: Timestamp) -> Result<(), RelayError> {
        if let Some((report, not_before)) = self.unsent
            && now >= not_before
        {
            self.send(report, now);
        }
        // The monitor never says anything: whatever can be read is its end.
        match recv(&self.channel, &mut [0; SIZE], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            _ => Err(RelayError::Follower("the privileged parent is gone".to_owned())),
        }
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.unsent.map(|(_, not_before)| not_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, Reporter) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (monitor, worker) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        (monitor, Reporter::new(worker))
    }

    #[test]
    fn a_report_arrives_as_one_message() {
        let (monitor, mut reporter) = pair();
        reporter.lease_changed(None, Timestamp::from_secs(1));
        let mut bytes = [0xff; 16];
        let (length, _) = recv(&monitor, &mut bytes[..], RecvFlags::empty()).unwrap();
        assert_eq!(Report::from_bytes(&bytes[..length]), Some(Report::NoLease));
        reporter.attend(Timestamp::from_secs(1)).unwrap();
        assert_eq!(reporter.deadline(), None);
    }

    #[test]
    fn a_full_channel_is_tried_again() {
        let (monitor, mut reporter) = pair();
        let now = Timestamp::from_secs(1);
        while reporter.deadline().is_none() {
            reporter.lease_changed(None, now);
        }
        let mut bytes = [0; 16];
        while recv(&monitor, &mut bytes[..], RecvFlags::empty()).is_ok() {}
        let deadline = reporter.deadline().unwrap();
        reporter.attend(now).unwrap();
        assert_eq!(reporter.deadline(), Some(deadline), "not before its time");
        reporter.attend(deadline).unwrap();
        assert_eq!(reporter.deadline(), None);
        assert!(recv(&monitor, &mut bytes[..], RecvFlags::empty()).is_ok());
    }

    #[test]
    fn the_monitors_death_ends_the_worker() {
        let (monitor, mut reporter) = pair();
        drop(monitor);
        assert!(reporter.attend(Timestamp::from_secs(1)).is_err());
    }
}
