//! The monitor's loop: waits for the worker, its reports and signals, and keeps the forwards where they belong.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use rustix::time::{ClockId, clock_gettime};

use super::Custody;
use super::message::{Report, SIZE};
use crate::host::expose::Forwarder;
use crate::host::network::Error;
use crate::sys::signalfd::SignalFd;

/// The shortest time between two reports that are acted upon, so that a worker gone wild cannot keep the host busy.
pub const PACE: Duration = Duration::from_millis(100);

/// How long the last holder of an address may take to leave: its VM has given the address back before its monitor is done,
/// and the DHCP server leases it to the next at once.
const LAST_HOLDER: Duration = Duration::from_secs(3);

/// The monitor.
#[derive(Debug)]
pub struct Guard {
    custody: Custody,
    channel: Option<OwnedFd>,
    forwarder: Forwarder,
    /// No report is read before.
    quiet_until: Duration,
    /// The VM's address that another VM still holds, and until when that may be so.
    contested: Option<(Ipv4Addr, Duration)>,
    /// The worker was told to end for a reason that is the monitor's.
    refused: bool,
}

impl Guard {
    /// A monitor that hears the worker on `channel`.
    pub fn new(custody: Custody, channel: OwnedFd) -> Self {
        let forwarder = Forwarder::new(custody.exposes.clone());
        Guard {
            custody,
            channel: Some(channel),
            forwarder,
            quiet_until: Duration::ZERO,
            contested: None,
            refused: false,
        }
    }

    /// Watches until the worker has ended, cleans up, and returns the status to end with: the worker's, 128 and the number
    /// of the signal that killed it, or 1.
    pub fn watch(mut self, worker: Pid, signals: SignalFd) -> i32 {
        let status = self.wait_for(worker, signals);
        self.hear_last_words();
        let Guard { custody, refused, .. } = self;
        if let Err(error) = custody.membership.leave() {
            tracing::warn!(%error, "the next start will clean up");
        }
        if refused { 1 } else { status }
    }

    fn wait_for(&mut self, worker: Pid, mut signals: SignalFd) -> i32 {
        let process = match pidfd_open(worker, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(error) => {
                tracing::error!(%error, "cannot watch the worker");
                let _ = kill_process(worker, Signal::KILL);
                return reap(worker);
            }
        };
        loop {
            let now = now();
            let listening = self.channel.as_ref().filter(|_| now >= self.quiet_until);
            let mut waiting = vec![
                PollFd::new(&process, PollFlags::IN),
                PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN),
            ];
            waiting.extend(listening.map(|channel| PollFd::new(channel, PollFlags::IN)));
            let waits = self.channel.is_some() || self.contested.is_some();
            let quiet = (waits && now < self.quiet_until).then_some(self.quiet_until);
            let deadline = [quiet, self.forwarder.next_deadline()].into_iter().flatten().min();
            let timeout = deadline.map(|deadline| timespec(deadline.saturating_sub(now)));
            if let Err(error) = poll(&mut waiting, timeout.as_ref())
                && error != Errno::INTR
            {
                tracing::error!(%error, "cannot wait for the worker");
                let _ = kill_process(worker, Signal::KILL);
                return reap(worker);
            }
            let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(waiting);
            if ready.first() == Some(&true) {
                return reap(worker);
            }
            if ready.get(1) == Some(&true) {
                pass_on(&mut signals, worker);
            }
            if ready.get(2) == Some(&true) {
                self.hear(worker);
            }
            self.contest(worker);
            self.forward();
        }
    }

    /// Acts upon the latest report.
    fn hear(&mut self, worker: Pid) {
        let Some(channel) = &self.channel else { return };
        let heard = listen(channel.as_fd());
        if heard.closed {
            // The worker is about to end; its process says when.
            self.channel = None;
        }
        if heard.garbage {
            tracing::error!("the worker said what no worker says");
            return self.refuse(worker, Signal::KILL);
        }
        self.quiet_until = now().saturating_add(PACE);
        if let Some(report) = heard.latest {
            self.note(report.address(), worker);
        }
    }

    /// Tries again to note an address that another VM held.
    fn contest(&mut self, worker: Pid) {
        if let Some((address, _)) = self.contested
            && now() >= self.quiet_until
        {
            self.quiet_until = now().saturating_add(PACE);
            self.note(Some(address), worker);
        }
    }

    /// Notes the VM's address, to which the forwards lead from now on.
    fn note(&mut self, address: Option<Ipv4Addr>, worker: Pid) {
        let contested = self.contested.take();
        match self.custody.membership.set_address(address) {
            Ok(()) => return self.forwarder.set_address(address),
            Err(error @ Error::LeaseTaken { address, .. }) => {
                let earlier = contested.filter(|&(earlier, _)| earlier == address);
                let until = earlier.map_or_else(|| now().saturating_add(LAST_HOLDER), |(_, until)| until);
                if now() >= until {
                    tracing::error!("{error}");
                    return self.refuse(worker, Signal::TERM);
                }
                self.contested = Some((address, until));
            }
            Err(error @ Error::NotOurs(..)) => {
                tracing::error!("{error}");
                return self.refuse(worker, Signal::TERM);
            }
            Err(error) => tracing::error!(%error, "cannot note the VM's address"),
        }
        // No address is noted, so nothing may lead to one; the forwards are tried again with the next lease.
        self.forwarder.set_address(None);
    }

    /// Notes what the worker said last and the monitor has not read yet: whether the lease is still to be given back.
    fn hear_last_words(&mut self) {
        let Some(channel) = self.channel.take() else { return };
        if let Heard { latest: Some(report), garbage: false, .. } = listen(channel.as_fd())
            && let Err(error) = self.custody.membership.set_address(report.address())
        {
            tracing::warn!(%error, "cannot note the VM's last address");
        }
    }

    /// Ends the worker for a reason that was logged.
    fn refuse(&mut self, worker: Pid, signal: Signal) {
        self.refused = true;
        self.channel = None;
        self.contested = None;
        self.forwarder.set_address(None);
        let _ = kill_process(worker, signal);
    }

    /// Brings the forwards where they belong, if something is due.
    fn forward(&mut self) {
        let ops = self.forwarder.due(now());
        if ops.is_empty() {
            return;
        }
        match self.custody.membership.apply(&ops) {
            Ok(()) => {
                for op in ops {
                    tracing::info!(?op, "forwarding changed");
                    self.forwarder.done(op);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "forwarding could not be changed; trying again");
                self.forwarder.failed(now());
            }
        }
    }
}

/// What has come in on the channel.
#[derive(Debug, Default, Eq, PartialEq)]
struct Heard {
    /// The last report; those before it count no more.
    latest: Option<Report>,
    /// Something that is no report.
    garbage: bool,
    /// The worker has closed its end.
    closed: bool,
}

/// Reads all that is there.
fn listen(channel: BorrowedFd<'_>) -> Heard {
    let mut heard = Heard::default();
    loop {
        // One byte more than a message, so that a longer one is not cut to look like one.
        let mut bytes = [0; SIZE + 1];
        match recv(channel, &mut bytes[..], RecvFlags::DONTWAIT) {
            // An empty message looks the same, and the worker sends none.
            Ok((0, _)) => {
                heard.closed = true;
                return heard;
            }
            Ok((length, _)) => match bytes.get(..length).and_then(Report::from_bytes) {
                Some(report) => heard.latest = Some(report),
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

/// Signals for this process are meant for the whole; those that the terminal sent, the worker has itself.
fn pass_on(signals: &mut SignalFd, worker: Pid) {
    while let Ok(Some(received)) = signals.read() {
        if !received.from_kernel {
            let _ = kill_process(worker, received.signal);
        }
    }
}

fn reap(worker: Pid) -> i32 {
    loop {
        match waitpid(Some(worker), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                let signal = status.terminating_signal();
                if let Some(signal) = signal {
                    tracing::error!(signal, "the worker was killed");
                }
                return status.exit_status().or(signal.map(|signal| 128 + signal)).unwrap_or(1);
            }
            Err(Errno::INTR) | Ok(None) => {}
            Err(_) => return 1,
        }
    }
}

fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec { tv_sec: duration.as_secs().cast_signed(), tv_nsec: duration.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

    fn heard(messages: &[&[u8]], close: bool) -> Heard {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (monitor, worker) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("a socket pair");
        for message in messages {
            send(&worker, message, SendFlags::NOSIGNAL).expect("there is room");
        }
        let kept = (!close).then_some(worker);
        let heard = listen(monitor.as_fd());
        drop(kept);
        heard
    }

    #[test]
    fn the_last_report_counts() {
        let lease = Report::Lease([192, 168, 64, 5].into());
        assert_eq!(heard(&[], false), Heard::default());
        let both = heard(&[&lease.to_bytes(), &Report::NoLease.to_bytes()], false);
        assert_eq!(both, Heard { latest: Some(Report::NoLease), ..Heard::default() });
        let last_words = heard(&[&lease.to_bytes()], true);
        assert_eq!(last_words, Heard { latest: Some(lease), closed: true, garbage: false });
    }

    #[test]
    fn garbage_is_garbage_whatever_comes_with_it() {
        let fine = Report::NoLease.to_bytes();
        for garbage in [&[9, 0, 0, 0, 0][..], &[1, 2, 3, 4], &[0, 0, 0, 0, 0, 0], &[0xff; 4096]] {
            assert!(heard(&[&fine, garbage, &fine], false).garbage, "{garbage:?}");
        }
    }
}
