//! The monitor's loop: waits for the worker, its reports and signals, tracks what the filter has to know of
//! the host, and probes whether the VM is still there.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process, pidfd_open, waitpid};
use softnet_filter::Timestamp;

use super::channel::Channel;
use super::gate::Gate;
use super::place::{Outcome, Place};
use crate::clock::now;
use crate::host::addresses::AddressWatch;
use crate::host::network::exposed::ExposedWatch;
use crate::lease_follower::Notice;
use crate::quiet::{PROBE_INTERVAL, QUIET_PROBE_INTERVAL};
use crate::signals::signalfd::SignalFd;
use crate::sys::wait::{readable, wait};
use crate::vm::PeerWatch;

/// The shortest time between two reports that are acted upon, so that a compromised worker cannot keep the
/// host busy.
pub const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// If the worker sent no report for this long, its next one does not delay the following, unless it is about
/// the lease.
const IDLE_AFTER: Duration = Duration::from_secs(1);

/// How long the worker may take to end after it was told that its VM is gone.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the monitor watches.
#[derive(Debug)]
pub struct Watches {
    /// The far end of the VM's socket, if it has to be polled.
    pub peer: Option<PeerWatch>,
    /// The host's addresses.
    pub addresses: AddressWatch,
    /// The ports that lead to other VMs.
    pub exposed: ExposedWatch,
    /// The VM's control socket, if it has one.
    pub gate: Option<Gate>,
}

impl Watches {
    /// The descriptors that they need.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let peer = self.peer.iter().map(AsFd::as_fd);
        let addresses = [self.addresses.changes(), self.addresses.query_socket()];
        let gate = self.gate.iter().flat_map(Gate::descriptors);
        peer.chain(addresses).chain(self.exposed.changes()).chain(gate).collect()
    }
}

/// The monitor.
#[derive(Debug)]
pub struct Monitor {
    place: Option<Place>,
    watches: Watches,
    channel: Option<Channel>,
    /// No report is read before this time.
    next_report: Timestamp,
    /// When the last report came.
    last_report: Timestamp,
    /// Whether the VM is silent, as the worker reports.
    vm_is_quiet: bool,
    /// When to probe next.
    next_probe: Timestamp,
    /// When to kill the worker, which was told to end.
    kill_at: Option<Timestamp>,
    /// Whether the monitor ended the worker.
    refused: bool,
    /// What was last said about the host's filters.
    firewall: Option<String>,
}

/// What woke the loop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wake {
    Ended,
    Signal,
    Report,
    Addresses,
    Exposed,
    Gate,
}

impl Monitor {
    /// A monitor that communicates with the worker over `channel`.
    pub fn new(place: Option<Place>, watches: Watches, channel: Channel) -> Self {
        Monitor {
            place,
            watches,
            channel: Some(channel),
            next_report: Timestamp::default(),
            last_report: Timestamp::default(),
            vm_is_quiet: false,
            next_probe: now().saturating_add(PROBE_INTERVAL),
            kill_at: None,
            refused: false,
            firewall: None,
        }
    }

    /// Watches until the worker has ended, cleans up, and returns the status to end with: the worker's, 128 and the number
    /// of the signal that killed it, or 1.
    pub fn watch(mut self, worker: Pid, signals: SignalFd) -> i32 {
        let status = self.wait_for_worker(worker, signals);
        if let Some(gate) = &self.watches.gate {
            gate.remove();
        }
        let Monitor { place, channel, refused, .. } = self;
        if let Some(place) = place {
            // They say whether the lease still has to be released.
            let final_reports =
                channel.map(|channel| channel.read_reports()).filter(|reports| !reports.garbage);
            place.leave(final_reports.and_then(|reports| reports.address));
        }
        if refused { 1 } else { status }
    }

    fn wait_for_worker(&mut self, worker: Pid, mut signals: SignalFd) -> i32 {
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
            let ready = match self.wait([process.as_fd(), signals.as_fd()], now) {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(%error, "cannot wait for the worker");
                    let _ = kill_process(worker, Signal::KILL);
                    return reap(worker);
                }
            };
            for wake in ready {
                match wake {
                    Wake::Ended => return reap(worker),
                    Wake::Signal => forward_signals(&mut signals, worker),
                    Wake::Report => self.read_reports(worker),
                    Wake::Addresses => self.check_addresses(),
                    Wake::Exposed => self.check_exposed(),
                    Wake::Gate => self.attend_gate(),
                }
            }
            self.attend(worker);
        }
    }

    /// Waits until an event or a deadline, and returns the events.
    fn wait(&self, [process, signals]: [BorrowedFd<'_>; 2], now: Timestamp) -> Result<Vec<Wake>, Errno> {
        let mut waiting = vec![(Wake::Ended, readable(process)), (Wake::Signal, readable(signals))];
        if let Some(channel) = &self.channel {
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::IN, now >= self.next_report);
            wanted.set(PollFlags::OUT, channel.is_blocked());
            if !wanted.is_empty() {
                waiting.push((Wake::Report, PollFd::from_borrowed_fd(channel.as_fd(), wanted)));
            }
        }
        let Watches { addresses, exposed, .. } = &self.watches;
        if addresses.is_listening(now) {
            waiting.push((Wake::Addresses, readable(addresses.changes())));
        }
        if let Some(changes) = exposed.changes().filter(|_| exposed.is_listening(now)) {
            waiting.push((Wake::Exposed, readable(changes)));
        }
        if let Some(gate) = &self.watches.gate {
            waiting.extend(gate.waits_for().into_iter().map(|fd| (Wake::Gate, fd)));
        }
        let (wakes, mut fds): (Vec<Wake>, Vec<PollFd<'_>>) = waiting.into_iter().unzip();
        wait(&mut fds, self.deadline(now).map(|deadline| deadline.saturating_since(now)))?;
        let happened = |(wake, fd): (Wake, &PollFd<'_>)| (!fd.revents().is_empty()).then_some(wake);
        Ok(wakes.into_iter().zip(&fds).filter_map(happened).collect())
    }

    /// The next deadline.
    fn deadline(&self, now: Timestamp) -> Option<Timestamp> {
        let contested = self.place.as_ref().is_some_and(|place| place.contested().is_some());
        let waits = self.channel.is_some() || contested;
        let deadlines = [
            (waits && now < self.next_report).then_some(self.next_report),
            contested.then_some(self.next_report),
            self.place.as_ref().and_then(Place::deadline),
            self.watches.addresses.deadline(now),
            self.watches.exposed.deadline(now),
            self.watches.gate.as_ref().and_then(Gate::deadline),
            self.probes().then_some(self.next_probe),
            self.kill_at,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// Whether something has to be polled.
    fn probes(&self) -> bool {
        self.kill_at.is_none() && (self.watches.peer.is_some() || self.watches.exposed.changes().is_none())
    }

    /// Does everything that is due.
    fn attend(&mut self, worker: Pid) {
        let now = now();
        if now >= self.next_report
            && let Some(address) = self.place.as_ref().and_then(Place::contested)
        {
            self.next_report = now.saturating_add(REPORT_INTERVAL);
            self.set_address(Some(address), worker);
        }
        if let Some(place) = &mut self.place {
            place.update_forwards(now);
        }
        if self.watches.addresses.deadline(now).is_some_and(|at| now >= at) {
            self.check_addresses();
        }
        if self.watches.gate.as_ref().and_then(Gate::deadline).is_some_and(|at| now >= at) {
            self.attend_gate();
        }
        if self.probes() && now >= self.next_probe {
            let pause = if self.vm_is_quiet { QUIET_PROBE_INTERVAL } else { PROBE_INTERVAL };
            self.next_probe = now.saturating_add(pause);
            self.probe(now);
        }
        if self.kill_at.is_some_and(|at| now >= at) {
            tracing::error!("the worker did not end after its VM was gone; killing it");
            self.kill_at = None;
            self.end_worker(worker, Signal::KILL);
        }
    }

    /// Polls what the kernel does not report.
    fn probe(&mut self, now: Timestamp) {
        if self.watches.peer.as_ref().is_some_and(|peer| !peer.is_alive()) {
            self.watches.peer = None;
            self.kill_at = Some(now.saturating_add(EXIT_TIMEOUT));
            self.notify(Notice::PeerGone);
        }
        if let Some(exposed) = self.watches.exposed.tick() {
            let exposed = exposed.to_vec();
            self.notify(Notice::Exposed(exposed));
        }
        if self.watches.exposed.changes().is_none() {
            self.check_firewall();
        }
    }

    fn attend_gate(&mut self) {
        if let Some(gate) = &mut self.watches.gate {
            gate.attend(now());
        }
    }

    fn check_addresses(&mut self) {
        if let Some(addresses) = self.watches.addresses.changed(now()) {
            let addresses = addresses.to_vec();
            self.notify(Notice::HostAddresses(addresses));
        }
    }

    fn check_exposed(&mut self) {
        if let Some(exposed) = self.watches.exposed.changed(now()) {
            let exposed = exposed.to_vec();
            self.notify(Notice::Exposed(exposed));
        }
        self.check_firewall();
    }

    /// Says what the host's filters drop, once for as long as it stays the same. The keeper records it in the directory that
    /// [`ExposedWatch`] watches.
    fn check_firewall(&mut self) {
        let Some(found) = self.place.as_ref().and_then(|place| place.membership.firewall()) else { return };
        if let Some(sentence) = found.sentence.as_ref().filter(|_| found.sentence != self.firewall) {
            tracing::warn!("{sentence}");
        }
        self.firewall = found.sentence;
    }

    fn notify(&mut self, notice: Notice) {
        if let Some(channel) = &mut self.channel {
            channel.notify(notice);
        }
    }

    /// Acts on the latest reports, and sends what could not be sent before.
    fn read_reports(&mut self, worker: Pid) {
        let Some(channel) = &mut self.channel else { return };
        channel.flush();
        let now = now();
        if now < self.next_report {
            return;
        }
        let reports = channel.read_reports();
        if reports.closed {
            // The worker is about to end; its pidfd reports when.
            self.channel = None;
        }
        if reports.garbage {
            tracing::error!("the worker sent an invalid message; killing it");
            return self.end_worker(worker, Signal::KILL);
        }
        // A report about the VM's silence must not delay a following one about the lease.
        if reports.address.is_some() || now.saturating_since(self.last_report) < IDLE_AFTER {
            self.next_report = now.saturating_add(REPORT_INTERVAL);
        }
        self.last_report = now;
        if let Some(quiet) = reports.quiet {
            self.vm_is_quiet = quiet;
            if !quiet {
                self.next_probe = self.next_probe.min(now.saturating_add(PROBE_INTERVAL));
            }
        }
        if let Some(address) = reports.address {
            self.set_address(address, worker);
        }
    }

    /// Records the VM's address, if the VM is on a managed network.
    fn set_address(&mut self, address: Option<Ipv4Addr>, worker: Pid) {
        let Some(place) = &mut self.place else { return };
        match place.set_address(address, now()) {
            Outcome::Settled(address) => self.notify(Notice::Settled(address)),
            Outcome::Unsettled => {}
            Outcome::Refused(signal) => self.end_worker(worker, signal),
        }
    }

    /// Ends the worker; the caller has logged the reason.
    fn end_worker(&mut self, worker: Pid, signal: Signal) {
        self.refused = true;
        self.channel = None;
        if let Some(place) = &mut self.place {
            place.withdraw();
        }
        let _ = kill_process(worker, signal);
    }
}

/// Forwards signals to the worker. Those from the terminal it has received itself.
fn forward_signals(signals: &mut SignalFd, worker: Pid) {
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
