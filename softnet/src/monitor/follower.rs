//! The worker's end of the channel: reports the lease and whether the VM is silent, receives the monitor's
//! notices, and detects its end.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use softnet_filter::{Lease, Timestamp};

use super::message::{LONGEST_NOTICE, Report, notice_from_bytes};
use crate::lease_follower::{Error, LeaseFollower, Notice};
use crate::needs::{Needs, Syscall};

/// The system calls of a running reporter.
const SYSCALLS: &[Syscall] = &[Syscall::Sendto, Syscall::Recvfrom];

/// How soon a report that did not fit into the channel is sent again.
const RETRY: Duration = Duration::from_millis(50);

/// Sends reports to the monitor and receives its notices.
#[derive(Debug)]
pub struct Reporter {
    channel: OwnedFd,
    /// The lock of the place in the managed network: no other process can take the place while this one may
    /// forward frames.
    place: Option<OwnedFd>,
    /// The latest report on the lease, and on the VM's silence, that did not fit into the channel.
    unsent: [Option<Report>; 2],
    /// When to send those again.
    retry_at: Option<Timestamp>,
    /// Room for the longest notice, and one more byte to detect a longer one.
    buffer: Box<[u8]>,
}

impl Reporter {
    /// Reports over `channel`, which does not block. `place` is the lock of the place in the managed network, if there is one;
    /// the monitor then answers a lease by [`Notice::Settled`].
    pub fn new(channel: OwnedFd, place: Option<OwnedFd>) -> Self {
        let buffer = vec![0; LONGEST_NOTICE + 1].into();
        Reporter { channel, place, unsent: [None; 2], retry_at: None, buffer }
    }

    /// Sends `report`, after what is unsent. Only the latest of each kind matters, so it replaces an earlier one.
    fn send(&mut self, report: Report, now: Timestamp) {
        let slot = usize::from(matches!(report, Report::Quiet | Report::Active));
        self.unsent[slot] = Some(report);
        self.flush(now);
    }

    fn flush(&mut self, now: Timestamp) {
        self.retry_at = None;
        for slot in &mut self.unsent {
            let Some(report) = slot else { continue };
            match send(&self.channel, &report.to_bytes(), SendFlags::NOSIGNAL) {
                Err(Errno::AGAIN | Errno::INTR) => {
                    self.retry_at = Some(now.saturating_add(RETRY));
                    return;
                }
                // `notice` reports when the monitor has ended.
                Ok(_) | Err(_) => *slot = None,
            }
        }
    }
}

impl LeaseFollower for Reporter {
    fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.channel);
        if let Some(place) = &self.place {
            needs.descriptor(place);
        }
        needs.calls(SYSCALLS);
    }

    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut SourceFd(&self.channel.as_raw_fd()), token, Interest::READABLE)
    }

    fn lease_changed(&mut self, lease: Option<Lease>, now: Timestamp) {
        self.send(lease.map_or(Report::NoLease, |lease| Report::Lease(lease.address)), now);
    }

    fn attend(&mut self, now: Timestamp) -> Result<(), Error> {
        if self.retry_at.is_some_and(|at| now >= at) {
            self.flush(now);
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Timestamp> {
        self.retry_at
    }

    fn notice(&mut self) -> Result<Option<Notice>, Error> {
        loop {
            match recv(&self.channel, &mut *self.buffer, RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                // An empty message looks the same as the end, and the monitor sends none.
                Err(_) | Ok((0, _)) => {
                    return Err(Error("the monitor, Softnet's first process, has ended".to_owned()));
                }
                Ok((length, _)) => {
                    let notice = self.buffer.get(..length).and_then(notice_from_bytes);
                    let garbage = || Error("the monitor sent an invalid message".to_owned());
                    return notice.ok_or_else(garbage).map(Some);
                }
            }
        }
    }

    fn settles(&self) -> bool {
        self.place.is_some()
    }

    fn watches_the_vm(&self) -> bool {
        true
    }

    fn vm_is_quiet(&mut self, quiet: bool, now: Timestamp) {
        self.send(if quiet { Report::Quiet } else { Report::Active }, now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::notice_to_bytes;
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (OwnedFd, Reporter) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (monitor, worker) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let place = std::fs::File::open("/dev/null").unwrap().into();
        (monitor, Reporter::new(worker, Some(place)))
    }

    #[test]
    fn a_report_arrives_as_one_message() {
        let (monitor, mut reporter) = pair();
        reporter.lease_changed(None, Timestamp::from_secs(1));
        let mut bytes = [0xff; 16];
        let (length, _) = recv(&monitor, &mut bytes[..], RecvFlags::empty()).unwrap();
        assert_eq!(Report::from_bytes(&bytes[..length]), Some(Report::NoLease));
        assert_eq!(reporter.notice().unwrap(), None);
        assert_eq!(reporter.deadline(), None);
    }

    #[test]
    fn a_full_channel_is_tried_again_with_the_latest_of_each_kind() {
        let (monitor, mut reporter) = pair();
        let now = Timestamp::from_secs(1);
        while reporter.deadline().is_none() {
            reporter.lease_changed(None, now);
        }
        reporter.vm_is_quiet(true, now);
        reporter.vm_is_quiet(false, now);
        let mut bytes = [0; 16];
        while recv(&monitor, &mut bytes[..], RecvFlags::empty()).is_ok() {}
        let deadline = reporter.deadline().unwrap();
        reporter.attend(now).unwrap();
        assert_eq!(reporter.deadline(), Some(deadline), "not before its time");
        reporter.attend(deadline).unwrap();
        assert_eq!(reporter.deadline(), None);
        let mut heard = Vec::new();
        while let Ok((length, _)) = recv(&monitor, &mut bytes[..], RecvFlags::empty()) {
            heard.push(Report::from_bytes(&bytes[..length]).unwrap());
        }
        assert_eq!(heard, [Report::NoLease, Report::Active]);
    }

    #[test]
    fn a_notice_is_read_once_and_garbage_ends_the_worker() {
        let (monitor, mut reporter) = pair();
        let notice = Notice::Settled([192, 168, 64, 5].into());
        send(&monitor, &notice_to_bytes(&notice), SendFlags::empty()).unwrap();
        assert_eq!(reporter.notice().unwrap(), Some(notice));
        assert_eq!(reporter.notice().unwrap(), None);
        send(&monitor, &vec![1; LONGEST_NOTICE + 1], SendFlags::empty()).unwrap();
        assert!(reporter.notice().is_err());
    }

    #[test]
    fn the_monitors_death_ends_the_worker() {
        let (monitor, mut reporter) = pair();
        drop(monitor);
        assert!(reporter.notice().is_err());
    }
}
