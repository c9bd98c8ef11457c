//! The monitor's end of the channel: reads what the worker says, and says what it has to know, as fast as it listens.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::message::{REPORT_SIZE, Report, notice_to_bytes};
use crate::config::expose::Exposed;
use crate::lease_follower::Notice;

/// What has come in on the channel.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Heard {
    /// The last word on the VM's address; those before it count no more.
    pub address: Option<Option<Ipv4Addr>>,
    /// The last word on whether the VM is silent.
    pub quiet: Option<bool>,
    /// Something that is no report.
    pub garbage: bool,
    /// The worker has closed its end.
    pub closed: bool,
}

/// What is still to be said, the latest of each kind. So a worker that does not listen costs no memory.
#[derive(Debug, Default)]
struct Unsaid {
    peer_gone: bool,
    settled: Option<Ipv4Addr>,
    addresses: Option<Vec<Ipv4Addr>>,
    exposed: Option<Vec<Exposed>>,
}

/// The monitor's end.
#[derive(Debug)]
pub struct Channel {
    socket: OwnedFd,
    unsaid: Unsaid,
}

impl Channel {
    /// The end `socket`, which does not block.
    pub fn new(socket: OwnedFd) -> Self {
        Channel { socket, unsaid: Unsaid::default() }
    }

    /// Reads all that is there.
    pub fn listen(&self) -> Heard {
        let mut heard = Heard::default();
        loop {
            // One byte more than a message, so that a longer one is not cut to look like one.
            let mut bytes = [0; REPORT_SIZE + 1];
            match recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
                // An empty message looks the same, and the worker sends none.
                Ok((0, _)) => {
                    heard.closed = true;
                    return heard;
                }
                Ok((length, _)) => match bytes.get(..length).and_then(Report::from_bytes) {
                    Some(Report::Lease(address)) => heard.address = Some(Some(address)),
                    Some(Report::NoLease) => heard.address = Some(None),
                    Some(Report::Quiet) => heard.quiet = Some(true),
                    Some(Report::Active) => heard.quiet = Some(false),
                    None => {
                        heard.garbage = true;
                        return heard;
                    }
                },
                Err(Errno::INTR) => {}
                Err(_) => return heard,
            }
        }
    }

    /// Says `notice`, now or as soon as the worker listens.
    pub fn say(&mut self, notice: Notice) {
        match notice {
            Notice::PeerGone => self.unsaid.peer_gone = true,
            Notice::Settled(address) => self.unsaid.settled = Some(address),
            Notice::HostAddresses(addresses) => self.unsaid.addresses = Some(addresses),
            Notice::Exposed(ports) => self.unsaid.exposed = Some(ports),
        }
        self.flush();
    }

    /// Whether something waits for the worker to listen.
    pub fn is_blocked(&self) -> bool {
        let Unsaid { peer_gone, settled, addresses, exposed } = &self.unsaid;
        *peer_gone || settled.is_some() || addresses.is_some() || exposed.is_some()
    }

    /// Says what is unsaid, as far as the channel takes it.
    pub fn flush(&mut self) {
        // What the filter has to know comes before what opens it.
        while let Some(notice) = self.unsaid.next() {
            let sent =
                send(&self.socket, &notice_to_bytes(&notice), SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            // A worker that is gone is noticed by its process.
            if let Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) = sent {
                return self.unsaid.put_back(notice);
            }
        }
    }
}

impl Unsaid {
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

    fn heard(messages: &[&[u8]], close: bool) -> Heard {
        let (channel, worker) = pair();
        for message in messages {
            send(&worker, message, SendFlags::empty()).unwrap();
        }
        let kept = (!close).then_some(worker);
        let heard = channel.listen();
        drop(kept);
        heard
    }

    #[test]
    fn the_last_report_of_each_kind_counts() {
        let address = [192, 168, 64, 5].into();
        let lease = Report::Lease(address);
        assert_eq!(heard(&[], false), Heard::default());
        let both = heard(&[&lease.to_bytes(), &Report::Quiet.to_bytes(), &Report::NoLease.to_bytes()], false);
        assert_eq!(both, Heard { address: Some(None), quiet: Some(true), ..Heard::default() });
        let last_words = heard(&[&lease.to_bytes()], true);
        assert_eq!(last_words, Heard { address: Some(Some(address)), closed: true, ..Heard::default() });
    }

    #[test]
    fn garbage_is_garbage_whatever_comes_with_it() {
        let fine = Report::NoLease.to_bytes();
        for garbage in [&[1, 9, 0, 0, 0, 0][..], &[1, 1, 2, 3, 4], &[1, 0, 0, 0, 0, 0, 0], &[0xff; 4096]] {
            assert!(heard(&[&fine, garbage, &fine], false).garbage, "{garbage:?}");
        }
    }

    #[test]
    fn a_worker_that_does_not_listen_hears_the_latest_of_each_kind_later() {
        let (mut channel, worker) = pair();
        while !channel.is_blocked() {
            channel.say(Notice::HostAddresses(vec![Ipv4Addr::LOCALHOST; 4096]));
        }
        let latest = Notice::HostAddresses(vec![[192, 0, 2, 1].into()]);
        let settled = Notice::Settled([192, 168, 64, 5].into());
        channel.say(settled.clone());
        channel.say(latest.clone());
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
