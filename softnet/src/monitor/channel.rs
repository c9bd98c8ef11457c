//! The monitor's end of the channel: reads the worker's reports, and sends it notices as fast as it reads
//! them.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::message::{REPORT_SIZE, Report, notice_to_bytes};
use crate::config::expose::Exposed;
use crate::lease_follower::Notice;

/// What was read from the channel.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Reports {
    /// The last report on the VM's address; earlier ones are superseded.
    pub address: Option<Option<Ipv4Addr>>,
    /// The last report on whether the VM is silent.
    pub quiet: Option<bool>,
    /// Whether an invalid report came.
    pub garbage: bool,
    /// Whether the worker has closed its end.
    pub closed: bool,
}

/// Unsent notices, only the latest of each kind, so that a worker that does not read costs no memory.
#[derive(Debug, Default)]
struct Outbox {
    peer_gone: bool,
    settled: Option<Ipv4Addr>,
    addresses: Option<Vec<Ipv4Addr>>,
    exposed: Option<Vec<Exposed>>,
}

/// The monitor's end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    outbox: Outbox,
}

impl Channel {
    /// The end `socket`, which does not block.
    pub fn new(socket: OwnedFd) -> Self {
        Channel { socket, outbox: Outbox::default() }
    }

    /// Reads all pending reports.
    pub fn read_reports(&self) -> Reports {
        let mut reports = Reports::default();
        loop {
            // One byte more than a message, so that a longer one is not truncated to a valid one.
            let mut bytes = [0; REPORT_SIZE + 1];
            match recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
                // An empty message looks the same, and the worker sends none.
                Ok((0, _)) => {
                    reports.closed = true;
                    return reports;
                }
                Ok((length, _)) => match bytes.get(..length).and_then(Report::from_bytes) {
                    Some(Report::Lease(address)) => reports.address = Some(Some(address)),
                    Some(Report::NoLease) => reports.address = Some(None),
                    Some(Report::Quiet) => reports.quiet = Some(true),
                    Some(Report::Active) => reports.quiet = Some(false),
                    None => {
                        reports.garbage = true;
                        return reports;
                    }
                },
                Err(Errno::INTR) => {}
                Err(_) => return reports,
            }
        }
    }

    /// Sends `notice`, now or as soon as the worker reads.
    pub fn notify(&mut self, notice: Notice) {
        match notice {
            Notice::PeerGone => self.outbox.peer_gone = true,
            Notice::Settled(address) => self.outbox.settled = Some(address),
            Notice::HostAddresses(addresses) => self.outbox.addresses = Some(addresses),
            Notice::Exposed(ports) => self.outbox.exposed = Some(ports),
        }
        self.flush();
    }

    /// Whether a notice waits for the worker to read.
    pub fn is_blocked(&self) -> bool {
        let Outbox { peer_gone, settled, addresses, exposed } = &self.outbox;
        *peer_gone || settled.is_some() || addresses.is_some() || exposed.is_some()
    }

    /// Sends unsent notices, as many as the channel accepts.
    pub fn flush(&mut self) {
        // Notices that restrict the filter are sent before `Settled`, which opens it.
        while let Some(notice) = self.outbox.next() {
            let sent =
                send(&self.socket, &notice_to_bytes(&notice), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            // The end of the worker is detected through its process.
            if let Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) = sent {
                return self.outbox.put_back(notice);
            }
        }
    }
}

impl Outbox {
    fn next(&mut self) -> Option<Notice> {
        if std::mem::take(&mut self.peer_gone) {
            return Some(Notice::PeerGone);
        }
        let addresses = self.addresses.take().map(Notice::HostAddresses);
        addresses
            .or_else(|| self.exposed.take().map(Notice::Exposed))
            .or_else(|| self.settled.take().map(Notice::Settled))
    }

    fn put_back(&mut self, notice: Notice) {
        match notice {
            Notice::PeerGone => self.peer_gone = true,
            Notice::Settled(address) => self.settled = Some(address),
            Notice::HostAddresses(addresses) => self.addresses = Some(addresses),
            Notice::Exposed(ports) => self.exposed = Some(ports),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::notice_from_bytes;
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Channel, OwnedFd) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (monitor, worker) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair");
        (Channel::new(monitor), worker)
    }

    fn read(messages: &[&[u8]], close: bool) -> Reports {
        let (channel, worker) = pair();
        for message in messages {
            send(&worker, message, SendFlags::empty()).unwrap();
        }
        let kept = (!close).then_some(worker);
        let reports = channel.read_reports();
        drop(kept);
        reports
    }

    #[test]
    fn the_last_report_of_each_kind_counts() {
        let address = [192, 168, 64, 5].into();
        let lease = Report::Lease(address);
        assert_eq!(read(&[], false), Reports::default());
        let both = read(&[&lease.to_bytes(), &Report::Quiet.to_bytes(), &Report::NoLease.to_bytes()], false);
        assert_eq!(both, Reports { address: Some(None), quiet: Some(true), ..Reports::default() });
        let final_reports = read(&[&lease.to_bytes()], true);
        assert_eq!(
            final_reports,
            Reports { address: Some(Some(address)), closed: true, ..Reports::default() }
        );
    }

    #[test]
    fn garbage_is_garbage_whatever_comes_with_it() {
        let fine = Report::NoLease.to_bytes();
        for garbage in [&[1, 9, 0, 0, 0, 0][..], &[1, 1, 2, 3, 4], &[1, 0, 0, 0, 0, 0, 0], &[0xff; 4096]] {
            assert!(read(&[&fine, garbage, &fine], false).garbage, "{garbage:?}");
        }
    }

    #[test]
    fn a_worker_that_does_not_read_gets_the_latest_of_each_kind_later() {
        let (mut channel, worker) = pair();
        while !channel.is_blocked() {
            channel.notify(Notice::HostAddresses(vec![Ipv4Addr::LOCALHOST; 4096]));
        }
        let latest = Notice::HostAddresses(vec![[192, 0, 2, 1].into()]);
        let settled = Notice::Settled([192, 168, 64, 5].into());
        channel.notify(settled.clone());
        channel.notify(latest.clone());
        let mut bytes = vec![0; 1 << 16];
        while recv(&worker, &mut *bytes, RecvFlags::DONTWAIT).is_ok() {}
        channel.flush();
        assert!(!channel.is_blocked());
        for expected in [latest, settled] {
            let (length, _) = recv(&worker, &mut *bytes, RecvFlags::DONTWAIT).unwrap();
            assert_eq!(notice_from_bytes(&bytes[..length]), Some(expected));
        }
    }
}
