//! The event loop: the one file that knows both sides and the filter between them.
//!
//! One thread, one poller. Each turn reads the clock once, gives each direction a budget of one batch, and then looks
//! at everything else, so that neither direction, nor timers, nor signals starve under a flood (rule R2). Nothing ticks:
//! the alarm is set to the next deadline that somebody has.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::{Events, Interest, Poll, Token};
use softnet_filter::{Direction, DropReason, OwnFrame, Port, PortEvent, Timestamp, Verdict};

use crate::clock::{self, Alarm};
use crate::lease_follower::{LeaseFollower, Notice};
use crate::link::{FrameBatch, Link, LinkError, Losses, Received, Sent};
use crate::parent::ParentWatch;
use crate::quiet::{Probe, Silence};
use crate::sandbox::{Needs, Syscall};
use crate::signals::Signals;
use crate::surroundings;

/// What the loop itself calls.
const SYSCALLS: &[Syscall] = &[Syscall::EpollWait];

/// How long frames wait for a full queue before they are dropped. Long enough for a VM that is merely busy; a VM that
/// does not read at all must not hold up what the filter has to see, such as a DHCP reply.
const STALL_LIMIT: Duration = Duration::from_millis(100);

/// How long the answer with a new lease waits for the host to be ready for the VM at that address. That takes some
/// milliseconds, or as long as the address's last holder takes to leave.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// More batches than the queue of a TAP holds frames of (1000 unless told otherwise).
const LONGEST_QUEUE: usize = 64;

/// The ordinary reasons to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The VM closed its side.
    VmClosed,
    /// SIGINT, SIGTERM or SIGHUP.
    Signal,
    /// The process that started Softnet is gone.
    ParentGone,
}

/// Why Softnet cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The VM's side broke.
    #[error("the VM's socket failed")]
    Vm(#[source] LinkError),
    /// The host's side broke.
    #[error("the link to the host's network is gone")]
    Host(#[source] LinkError),
    /// The privileged parent ended or refused.
    #[error("{0}")]
    Follower(String),
    /// The poller failed.
    #[error("the event loop failed")]
    Poll(#[from] io::Error),
}

/// Everything that can wake the loop.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Wake {
    Vm,
    Host,
    Alarm,
    Terminate,
    Statistics,
    Parent,
    Follower,
}

impl Wake {
    const ALL: [Wake; 7] =
        [Wake::Vm, Wake::Host, Wake::Alarm, Wake::Terminate, Wake::Statistics, Wake::Parent, Wake::Follower];

    fn token(self) -> Token {
        Token(self as usize)
    }

    fn from_token(token: Token) -> Option<Wake> {
        Wake::ALL.get(token.0).copied()
    }
}

/// One direction's frames in flight.
#[derive(Debug)]
struct Lane {
    batch: FrameBatch,
    /// The source may have frames.
    readable: bool,
    /// The batch waits for the destination's queue until then.
    blocked_until: Option<Timestamp>,
    /// The destination is tried again then, because nothing tells when it takes more.
    retry_at: Option<Timestamp>,
    /// The destination did not take its frames in time and has taken none since.
    stalled: bool,
}

impl Lane {
    fn new(max_frame: usize) -> Self {
        Lane {
            batch: FrameBatch::new(max_frame),
            readable: true,
            blocked_until: None,
            retry_at: None,
            stalled: false,
        }
    }

    /// Whether a turn would do something without a wake-up.
    fn has_work(&self) -> bool {
        self.readable && self.blocked_until.is_none()
    }

    /// Receives one batch from `from` and keeps the frames that `judge` forwards.
    fn receive(
        &mut self,
        from: &mut dyn Link,
        mut judge: impl FnMut(&[u8]) -> Verdict,
    ) -> Result<(), LinkError> {
        self.batch.clear();
        self.readable = from.recv(&mut self.batch)? == Received::More;
        self.batch.retain(|frame| judge(frame) == Verdict::Forward);
        Ok(())
    }

    /// Sends what the batch holds; waits for a full queue, but not for ever.
    fn send(&mut self, to: &mut dyn Link, now: Timestamp) -> Result<(), LinkError> {
        let outcome = to.send(&mut self.batch)?;
        self.retry_at = None;
        match outcome {
            Sent::All => {
                self.blocked_until = None;
                self.stalled = false;
            }
            Sent::Blocked if self.stalled || self.blocked_until.is_some_and(|until| now >= until) => {
                self.batch.give_up();
                self.blocked_until = None;
                self.stalled = true;
            }
            Sent::Blocked => {
                self.blocked_until.get_or_insert(now.saturating_add(STALL_LIMIT));
                self.retry_at = to.full_queue_pause().map(|pause| now.saturating_add(pause));
            }
        }
        Ok(())
    }

    /// When to try the batch again, if no wake-up comes before.
    fn deadline(&self) -> Option<Timestamp> {
        self.blocked_until.into_iter().chain(self.retry_at).min()
    }
}

/// What leaves the loop.
#[derive(Debug)]
enum Stop {
    Ended(Ended),
    Failed(RelayError),
}

impl Stop {
    fn vm(error: LinkError) -> Self {
        match error {
            LinkError::Closed => Stop::Ended(Ended::VmClosed),
            other => Stop::Failed(RelayError::Vm(other)),
        }
    }

    fn host(error: LinkError) -> Self {
        Stop::Failed(RelayError::Host(error))
    }
}

impl<E: Into<RelayError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// Both links, the port between them and all that wakes them.
#[derive(Debug)]
pub struct Relay {
    vm: Box<dyn Link>,
    host: Box<dyn Link>,
    port: Port,
    follower: Box<dyn LeaseFollower>,
    poll: Poll,
    alarm: Alarm,
    terminate: Signals,
    statistics: Signals,
    parent: ParentWatch,
    from_vm: Lane,
    from_host: Lane,
    probe: Probe,
    /// The VM's silence, if the follower wants to hear of it.
    silence: Option<Silence>,
    /// The VM's new address, which the host is being prepared for, and how long that may take. Meanwhile nothing passes to
    /// the VM, so that it learns of the address afterwards.
    settling: Option<(Ipv4Addr, Timestamp)>,
}

impl Relay {
    /// Connects `vm` and `host` through `port`. Frames are of up to `max_frame` bytes on the wire.
    ///
    /// # Errors
    /// When the poller or the signal handlers cannot be set up.
    pub fn new(
        mut vm: Box<dyn Link>,
        mut host: Box<dyn Link>,
        mut port: Port,
        mut follower: Box<dyn LeaseFollower>,
        mut parent: ParentWatch,
        max_frame: usize,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry();
        vm.register(registry, Wake::Vm.token(), Interest::READABLE)?;
        host.register(registry, Wake::Host.token(), Interest::READABLE)?;
        follower.register(registry, Wake::Follower.token())?;
        if follower.settles() {
            port.wait_for_host();
        }
        parent.register(registry, Wake::Parent.token())?;
        let alarm = Alarm::new(registry, Wake::Alarm.token())?;
        let mut terminate = Signals::termination()?;
        terminate.register(registry, Wake::Terminate.token())?;
        let mut statistics = Signals::statistics()?;
        statistics.register(registry, Wake::Statistics.token())?;
        let now = clock::now();
        let silence = follower.watches_the_vm().then(|| Silence::new(now));
        let longest_from_vm = vm.longest_received(max_frame);
        let longest_from_host = host.longest_received(max_frame);
        Ok(Relay {
            vm,
            host,
            port,
            follower,
            poll,
            alarm,
            terminate,
            statistics,
            parent,
            from_vm: Lane::new(longest_from_vm),
            from_host: Lane::new(longest_from_host),
            probe: Probe::new(now),
            silence,
            settling: None,
        })
    }

    /// What a running relay needs of the system: all that its parts need.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::new();
        needs.raw_descriptor(self.poll.as_raw_fd());
        needs.calls(SYSCALLS);
        needs.calls(clock::SYSCALLS);
        self.vm.needs(&mut needs);
        self.host.needs(&mut needs);
        self.follower.needs(&mut needs);
        self.alarm.needs(&mut needs);
        self.terminate.needs(&mut needs);
        self.statistics.needs(&mut needs);
        self.parent.needs(&mut needs);
        needs
    }

    /// Carries frames until there is a reason to end.
    ///
    /// # Errors
    /// When a link or the loop itself fails. A bad frame never does (rule R3).
    pub fn run(&mut self) -> Result<Ended, RelayError> {
        let mut events = Events::with_capacity(Wake::ALL.len());
        loop {
            match self.turn(&mut events) {
                Ok(()) => {}
                Err(Stop::Ended(ended)) => return Ok(ended),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }

    /// One turn: a batch a direction, whatever is due, and what woke the loop.
    fn turn(&mut self, events: &mut Events) -> Result<(), Stop> {
        let now = clock::now();
        self.carry_from_vm(now)?;
        self.carry_from_host(now)?;
        self.attend(now)?;
        let timeout = if self.from_vm.has_work() || self.settling.is_none() && self.from_host.has_work() {
            Some(Duration::ZERO)
        } else {
            self.alarm.set(self.next_deadline())?;
            self.alarm.poll_timeout()
        };
        self.wait(events, timeout, now)
    }

    /// Waits for something to happen, and takes note of it.
    fn wait(&mut self, events: &mut Events, timeout: Option<Duration>, now: Timestamp) -> Result<(), Stop> {
        match self.poll.poll(events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }
        for event in &*events {
            let readable = event.is_readable() || event.is_error() || event.is_read_closed();
            match Wake::from_token(event.token()) {
                Some(Wake::Vm) => {
                    self.from_vm.readable |= readable;
                    self.vm_was_heard(now);
                    if event.is_writable() {
                        self.resume_to_vm(now)?;
                    }
                }
                Some(Wake::Host) => {
                    self.from_host.readable |= readable;
                    if event.is_writable() {
                        self.resume_to_host(now)?;
                    }
                }
                Some(Wake::Alarm) => self.alarm.fired(),
                Some(Wake::Terminate) => {
                    self.terminate.drain();
                    return Err(Stop::Ended(Ended::Signal));
                }
                Some(Wake::Statistics) => {
                    self.statistics.drain();
                    self.print_statistics();
                }
                Some(Wake::Parent) => return Err(Stop::Ended(Ended::ParentGone)),
                Some(Wake::Follower) => self.hear_follower(now)?,
                None => {}
            }
        }
        Ok(())
    }

    fn carry_from_vm(&mut self, now: Timestamp) -> Result<(), Stop> {
        if !self.from_vm.has_work() {
            return Ok(());
        }
        let Relay { from_vm, vm, host, port, .. } = self;
        let received = from_vm.receive(&mut **vm, |frame| port.from_vm(frame, now));
        for _ in 0..from_vm.batch.take_truncated() {
            let _ = port.truncated_from_vm();
        }
        received.map_err(Stop::vm)?;
        let sent = from_vm.send(&mut **host, now);
        self.count_losses();
        sent.map_err(Stop::host)?;
        if self.from_vm.batch.is_empty() || self.from_vm.retry_at.is_some() {
            return Ok(());
        }
        self.want_host_writable(true)
    }

    fn carry_from_host(&mut self, now: Timestamp) -> Result<(), Stop> {
        if self.settling.is_some() || !self.from_host.has_work() {
            return Ok(());
        }
        let Relay { from_host, host, port, .. } = self;
        let received = from_host.receive(&mut **host, |frame| port.from_host(frame, now));
        for _ in 0..from_host.batch.take_truncated() {
            let _ = port.truncated_from_host();
        }
        received.map_err(Stop::host)?;
        // Before the batch is sent: the answer with a new lease may be in it.
        self.note_events(now);
        self.deliver(now)
    }

    /// Sends the batch for the VM, unless it has to wait.
    fn deliver(&mut self, now: Timestamp) -> Result<(), Stop> {
        if self.settling.is_some() {
            return Ok(());
        }
        let sent = self.from_host.send(&mut *self.vm, now);
        self.count_losses();
        sent.map_err(Stop::vm)?;
        if self.from_host.batch.is_empty() || self.from_host.retry_at.is_some() {
            return Ok(());
        }
        self.want_vm_writable(true)
    }

    /// Tells the follower about the lease, and waits for the host where that is needed.
    fn note_events(&mut self, now: Timestamp) {
        while let Some(event) = self.port.poll_event() {
            log_event(&event);
            if !matches!(event, PortEvent::Bound(_) | PortEvent::Unbound { .. }) {
                continue;
            }
            if matches!(event, PortEvent::Unbound { .. }) {
                self.port.host_is_not_ready();
            }
            let lease = self.port.lease();
            let address = lease.as_ref().map(|lease| lease.address);
            self.follower.lease_changed(lease, now);
            if let (PortEvent::Bound(_), Some(address), true) = (event, address, self.follower.settles()) {
                self.settling = Some((address, now.saturating_add(SETTLE_LIMIT)));
            }
        }
    }

    /// The VM has sent something, or takes frames again.
    fn vm_was_heard(&mut self, now: Timestamp) {
        self.probe.heard(now);
        if self.silence.as_mut().is_some_and(|silence| silence.heard(now)) {
            self.follower.vm_is_quiet(false, now);
        }
    }

    /// Acts on all that the follower has learnt.
    fn hear_follower(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.follower.attend(now)?;
        while let Some(notice) = self.follower.notice()? {
            match notice {
                Notice::PeerGone => return Err(Stop::Ended(Ended::VmClosed)),
                Notice::Settled(address) => {
                    // An answer that came too late for an earlier lease says nothing about this one.
                    if self.port.lease().is_some_and(|lease| lease.address == address) {
                        self.judge_what_waits(now)?;
                        self.port.host_is_ready(address);
                    }
                    if self.settling.is_some_and(|(awaited, _)| awaited == address) {
                        self.settled(now)?;
                    }
                }
                Notice::HostAddresses(addresses) => {
                    surroundings::set_host_addresses(&mut self.port, &addresses)?
                }
                Notice::Exposed(ports) => surroundings::set_exposed(&mut self.port, &ports),
            }
        }
        Ok(())
    }

    /// The VM may hear of its new lease.
    fn settled(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.settling = None;
        self.deliver(now)
    }

    /// Judges all that has come before the host was ready as what came before: it may be for the former holder of the VM's
    /// address (rule H3). DHCP and ARP are handed on.
    fn judge_what_waits(&mut self, now: Timestamp) -> Result<(), Stop> {
        let mut batch = FrameBatch::new(self.from_host.batch.max_frame());
        for _ in 0..LONGEST_QUEUE {
            batch.clear();
            let received = self.host.recv(&mut batch).map_err(Stop::host)?;
            for _ in 0..batch.take_truncated() {
                let _ = self.port.truncated_from_host();
            }
            batch.retain(|frame| self.port.from_host(frame, now) == Verdict::Forward);
            if self.vm.send(&mut batch).map_err(Stop::vm)? == Sent::Blocked {
                batch.give_up();
            }
            self.count_to_vm(batch.take_losses());
            if received == Received::Drained {
                break;
            }
        }
        Ok(())
    }

    /// Whether this process has to ask for the life of a far end.
    fn asks(&self) -> bool {
        self.vm.needs_probe() || self.parent.needs_probe()
    }

    /// Expiry, stalled queues, forwards and probes.
    fn attend(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.port.advance(now);
        self.note_events(now);
        if let Some((address, until)) = self.settling
            && now >= until
        {
            tracing::warn!(%address, "the host is not ready for the VM's address yet; going on without");
            self.settled(now)?;
        }
        self.transmit();
        if self.from_vm.deadline().is_some_and(|at| now >= at) {
            self.resume_to_host(now)?;
        }
        if self.from_host.deadline().is_some_and(|at| now >= at) {
            self.resume_to_vm(now)?;
        }
        if self.follower.deadline().is_some_and(|at| now >= at) {
            self.follower.attend(now)?;
        }
        if self.silence.as_mut().is_some_and(|silence| silence.has_begun(now)) {
            self.follower.vm_is_quiet(true, now);
        }
        if self.asks() && self.probe.is_due(now) {
            self.vm.probe().map_err(Stop::vm)?;
            if self.parent.is_gone() {
                return Err(Stop::Ended(Ended::ParentGone));
            }
        }
        Ok(())
    }

    fn next_deadline(&self) -> Option<Timestamp> {
        let deadlines = [
            self.port.next_deadline(),
            self.from_vm.deadline(),
            self.from_host.deadline().filter(|_| self.settling.is_none()),
            self.follower.deadline(),
            self.settling.map(|(_, until)| until),
            self.silence.as_ref().and_then(Silence::deadline),
            self.asks().then(|| self.probe.deadline()),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The host's queue may have room again.
    fn resume_to_host(&mut self, now: Timestamp) -> Result<(), Stop> {
        let outcome = self.from_vm.send(&mut *self.host, now);
        self.count_losses();
        outcome.map_err(Stop::host)?;
        if self.from_vm.batch.is_empty() { self.want_host_writable(false) } else { Ok(()) }
    }

    /// The VM's queue may have room again.
    fn resume_to_vm(&mut self, now: Timestamp) -> Result<(), Stop> {
        if self.settling.is_some() {
            return Ok(());
        }
        let outcome = self.from_host.send(&mut *self.vm, now);
        self.count_losses();
        outcome.map_err(Stop::vm)?;
        if self.from_host.batch.is_empty() { self.want_vm_writable(false) } else { Ok(()) }
    }

    /// What the links have lost of the frames that passed is dropped, and counted as that (rule L6).
    fn count_losses(&mut self) {
        let to_host = self.from_vm.batch.take_losses();
        self.count(Direction::FromVm, to_host, DropReason::HostQueueFull, DropReason::HostRefused);
        let to_vm = self.from_host.batch.take_losses();
        self.count_to_vm(to_vm);
    }

    fn count_to_vm(&mut self, losses: Losses) {
        self.count(Direction::FromHost, losses, DropReason::VmQueueFull, DropReason::VmRefused);
    }

    fn count(&mut self, direction: Direction, losses: Losses, full: DropReason, refused: DropReason) {
        for (reason, loss) in [(full, losses.queue_full), (refused, losses.refused)] {
            if loss.frames > 0 {
                self.port.dropped_by_link(direction, reason, loss.frames, loss.bytes);
            }
        }
    }

    fn want_host_writable(&mut self, wanted: bool) -> Result<(), Stop> {
        Ok(self.host.register(self.poll.registry(), Wake::Host.token(), interest(wanted))?)
    }

    fn want_vm_writable(&mut self, wanted: bool) -> Result<(), Stop> {
        Ok(self.vm.register(self.poll.registry(), Wake::Vm.token(), interest(wanted))?)
    }

    /// Gives the VM's lease back to the DHCP server, so that short-lived VMs do not exhaust its addresses.
    pub fn release_lease(&mut self) {
        let now = clock::now();
        if self.port.release(now) && self.transmit() {
            // Nobody else has to.
            self.follower.lease_changed(None, now);
        }
    }

    /// Sends what the port sends itself; says whether the links took all of it.
    fn transmit(&mut self) -> bool {
        let mut all = true;
        while let Some((direction, frame)) = self.port.poll_transmit() {
            let link = match direction {
                Direction::FromVm => &mut self.host,
                Direction::FromHost => &mut self.vm,
            };
            all &= transmit(&mut **link, &frame);
        }
        all
    }

    /// Prints the counters as one line on standard error.
    pub fn print_statistics(&self) {
        // Nobody reading is no reason to end.
        let _ = writeln!(io::stderr(), "softnet: {}", self.port.counters());
    }
}

/// Sends one frame of Softnet's own; says whether the link took it. The only ones are DHCPRELEASEs.
fn transmit(link: &mut dyn Link, frame: &OwnFrame) -> bool {
    let mut batch = FrameBatch::new(frame.len());
    batch.free_space()[..frame.len()].copy_from_slice(frame);
    batch.push(frame.len());
    match link.send(&mut batch) {
        Ok(Sent::All) if batch.take_losses() == Losses::default() => {
            tracing::info!("gave a lease back");
            return true;
        }
        Ok(_) => tracing::warn!("a lease was not given back: the host's queue is full, or refused it"),
        Err(error) => tracing::warn!(%error, "a lease was not given back"),
    }
    false
}

fn interest(writable: bool) -> Interest {
    if writable { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE }
}

fn log_event(event: &PortEvent) {
    match event {
        PortEvent::Bound(lease) => tracing::info!(address = %lease.address, "the VM has a lease"),
        PortEvent::Renewed(lease) => tracing::debug!(address = %lease.address, "the VM renewed its lease"),
        PortEvent::Unbound { lease, cause } => {
            tracing::info!(address = %lease.address, ?cause, "the VM has lost its lease");
        }
        PortEvent::ClientIdChanged { used } => {
            tracing::warn!(used, "the VM uses another DHCP client identifier than before");
        }
        PortEvent::ForeignClientId { named } => {
            let named = named.map(|mac| mac.to_string()).unwrap_or_default();
            tracing::warn!(
                named,
                "the VM's DHCP client identifier names a hardware address that is not the VM's, so its DHCP is \
                 dropped; a cloned image keeps that of its template: delete the identifier in the guest (the machine \
                 ID, or the DHCP client's DUID file), give the VM the template's MAC address, or use the managed \
                 network, whose server looks at MAC addresses only"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease_follower::NoFollower;
    use crate::vm::DatagramLink;
    use softnet_filter::{Gateway, Lease, MacAddr, NetType, Policy, PortConfig, Resolvers};
    use softnet_wire::make::Arp;
    use std::net::Ipv4Addr;
    use std::os::unix::net::UnixDatagram;

    const VM: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const HOST: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xfe]);
    const MAX_FRAME: usize = 1514;

    /// A relay between two socket pairs, whose far ends are the VM and the host.
    fn relay() -> (UnixDatagram, Relay, UnixDatagram) {
        relay_with(Box::new(NoFollower))
    }

    fn relay_with(follower: Box<dyn LeaseFollower>) -> (UnixDatagram, Relay, UnixDatagram) {
        let (vm, vm_end) = UnixDatagram::pair().unwrap();
        let (host, host_end) = UnixDatagram::pair().unwrap();
        for socket in [&vm, &host] {
            socket.set_nonblocking(true).unwrap();
        }
        let gateway = "192.168.64.1".parse().unwrap();
        let port = Port::new(PortConfig {
            vm_mac: VM,
            gateway: Gateway { mac: HOST, address: gateway, subnet: "192.168.64.0/24".parse().unwrap() },
            net_type: NetType::Nat,
            policy: Policy::default(),
            mtu: 1500,
            server_files_by_mac: false,
            host_addresses: Vec::new(),
        });
        let relay = Relay::new(
            Box::new(DatagramLink::new(vm_end.into()).unwrap()),
            Box::new(DatagramLink::new(host_end.into()).unwrap()),
            port.unwrap(),
            follower,
            ParentWatch::new().unwrap(),
            MAX_FRAME,
        );
        (vm, relay.unwrap(), host)
    }

    fn lease_until(relay: &mut Relay, expires: Timestamp) {
        let address = "192.168.64.7".parse().unwrap();
        let server = "192.168.64.1".parse().unwrap();
        let lease = Lease { address, server, expires: Some(expires), resolvers: Resolvers::default() };
        relay.port.adopt(lease, None, clock::now()).unwrap();
    }

    fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 64, last)
    }

    /// An ARP request of the VM for its gateway, which passes while the VM has its lease.
    fn arp_request() -> Vec<u8> {
        Arp::request(VM, address(7), address(1)).frame()
    }

    /// An announcement of the VM's own address, which passes only while the VM has its lease (rule C10).
    fn arp_announcement() -> Vec<u8> {
        Arp::request(VM, address(7), address(7)).frame()
    }

    /// A frame that the host sends to the VM.
    fn arp_reply() -> Vec<u8> {
        Arp::reply(HOST, address(1), VM, address(7)).frame()
    }

    /// One turn that never sleeps, after taking note of what has happened.
    fn turn(relay: &mut Relay) -> Result<(), Stop> {
        let now = clock::now();
        relay.wait(&mut Events::with_capacity(8), Some(Duration::ZERO), now)?;
        relay.carry_from_vm(now)?;
        relay.carry_from_host(now)?;
        relay.attend(now)
    }

    fn received(socket: &UnixDatagram) -> usize {
        std::iter::from_fn(|| socket.recv(&mut [0; MAX_FRAME]).ok()).count()
    }

    #[test]
    fn frames_pass_both_ways_and_bad_ones_are_counted() {
        let (vm, mut relay, host) = relay();
        lease_until(&mut relay, Timestamp::MAX);
        vm.send(&arp_request()).unwrap();
        vm.send(b"garbage").unwrap();
        vm.send(&[0; MAX_FRAME + 1]).unwrap();
        host.send(&arp_reply()).unwrap();
        turn(&mut relay).unwrap();
        assert_eq!((received(&vm), received(&host)), (1, 1));
        let counters = relay.port.counters().to_string();
        assert!(counters.contains("runt=1") && counters.contains("truncated=1"), "{counters}");
    }

    #[test]
    fn a_lease_ends_on_time_in_the_middle_of_a_flood() {
        let (vm, mut relay, host) = relay();
        let expires = clock::now().saturating_add(Duration::from_millis(20));
        lease_until(&mut relay, expires);
        // The VM's queue never runs dry, so no turn ever waits.
        while clock::now() < expires {
            while vm.send(&arp_announcement()).is_ok() {}
            turn(&mut relay).unwrap();
            received(&host);
        }
        while vm.send(&arp_announcement()).is_ok() {}
        turn(&mut relay).unwrap();
        assert_eq!(received(&host), 0);
        assert!(relay.port.lease().is_none());
    }

    #[test]
    fn a_flood_one_way_leaves_the_other_its_turn() {
        let (vm, mut relay, host) = relay();
        lease_until(&mut relay, Timestamp::MAX);
        for _ in 0..50 {
            while vm.send(&arp_request()).is_ok() {}
            host.send(&arp_reply()).unwrap();
            turn(&mut relay).unwrap();
            assert_eq!(received(&vm), 1, "the host's frame did not pass in the same turn");
            received(&host);
        }
    }

    #[test]
    fn a_vm_that_does_not_read_costs_its_own_frames_only() {
        let (vm, mut relay, host) = relay();
        lease_until(&mut relay, Timestamp::MAX);
        // Past the wait for a full queue, frames are read, judged and dropped at once.
        let lost = |relay: &Relay| relay.port.counters().from_host.dropped(DropReason::VmQueueFull);
        while lost(&relay) < 100 {
            let _ = host.send(&arp_reply());
            turn(&mut relay).unwrap();
        }
        vm.send(&arp_request()).unwrap();
        turn(&mut relay).unwrap();
        assert_eq!(received(&host), 1, "the other direction is stuck");
        // And when it reads again, it gets what comes then.
        assert!(received(&vm) > 0);
        while {
            turn(&mut relay).unwrap();
            received(&vm) > 0
        } {}
        host.send(&arp_reply()).unwrap();
        turn(&mut relay).unwrap();
        assert_eq!(received(&vm), 1);
    }

    /// Prepares the host for a new address until it is told that it is ready.
    #[derive(Debug, Default)]
    struct Settler(std::rc::Rc<std::cell::RefCell<Option<Notice>>>);

    impl LeaseFollower for Settler {
        fn needs(&self, _: &mut Needs) {}
        fn register(&mut self, _: &mio::Registry, _: Token) -> io::Result<()> {
            Ok(())
        }
        fn lease_changed(&mut self, _: Option<Lease>, _: Timestamp) {}
        fn attend(&mut self, _: Timestamp) -> Result<(), RelayError> {
            Ok(())
        }
        fn deadline(&self) -> Option<Timestamp> {
            None
        }
        fn notice(&mut self) -> Result<Option<Notice>, RelayError> {
            Ok(self.0.borrow_mut().take())
        }
        fn settles(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_new_lease_waits_until_the_host_is_ready() {
        let settler = Settler::default();
        let notice = std::rc::Rc::clone(&settler.0);
        let (vm, mut relay, host) = relay_with(Box::new(settler));
        lease_until(&mut relay, Timestamp::MAX);
        host.send(&arp_reply()).unwrap();
        turn(&mut relay).unwrap();
        assert_eq!(received(&vm), 0, "the VM hears of a lease that the host is not ready for");
        // The VM may go on sending meanwhile, and another address is another's.
        vm.send(&arp_request()).unwrap();
        notice.replace(Some(Notice::Settled([192, 168, 64, 8].into())));
        relay.hear_follower(clock::now()).unwrap();
        turn(&mut relay).unwrap();
        assert_eq!((received(&vm), received(&host)), (0, 1));
        notice.replace(Some(Notice::Settled([192, 168, 64, 7].into())));
        relay.hear_follower(clock::now()).unwrap();
        assert_eq!(received(&vm), 1);
        host.send(&arp_reply()).unwrap();
        turn(&mut relay).unwrap();
        assert_eq!(received(&vm), 1);
    }

    #[test]
    fn a_host_that_is_never_ready_is_waited_for_some_seconds() {
        let (vm, mut relay, host) = relay_with(Box::<Settler>::default());
        lease_until(&mut relay, Timestamp::MAX);
        host.send(&arp_reply()).unwrap();
        let now = clock::now();
        turn(&mut relay).unwrap();
        let deadline = relay.next_deadline().unwrap();
        assert!(deadline >= now.saturating_add(SETTLE_LIMIT));
        relay.attend(deadline).unwrap();
        assert_eq!(received(&vm), 1);
    }

    /// Takes a batch at the third attempt, and never says that it would.
    #[derive(Debug, Default)]
    struct Silent {
        attempts: u32,
    }

    impl Link for Silent {
        fn register(&mut self, _: &mio::Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }
        fn recv(&mut self, _batch: &mut FrameBatch) -> Result<Received, LinkError> {
            Ok(Received::Drained)
        }
        fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
            self.attempts += 1;
            if self.attempts < 3 {
                return Ok(Sent::Blocked);
            }
            batch.clear();
            Ok(Sent::All)
        }
        fn full_queue_pause(&self) -> Option<Duration> {
            Some(Duration::from_millis(1))
        }
        fn needs(&self, _needs: &mut Needs) {}
    }

    #[test]
    fn a_full_queue_that_tells_nothing_is_tried_again_after_a_pause() {
        let mut lane = Lane::new(MAX_FRAME);
        lane.batch.push(60);
        let mut silent = Silent::default();
        let mut now = Timestamp::from_secs(1);
        for _ in 0..2 {
            lane.send(&mut silent, now).unwrap();
            assert_eq!(lane.batch.len(), 1);
            assert_eq!(lane.deadline(), Some(now.saturating_add(Duration::from_millis(1))));
            now = lane.deadline().unwrap();
        }
        lane.send(&mut silent, now).unwrap();
        assert!(lane.batch.is_empty() && lane.deadline().is_none());
        assert_eq!(lane.batch.take_losses(), Losses::default());
    }

    #[test]
    fn a_vm_that_closes_ends_the_loop_at_the_next_frame() {
        let (vm, mut relay, host) = relay();
        drop(vm);
        host.send(&arp_reply()).unwrap();
        assert!(matches!(turn(&mut relay), Err(Stop::Ended(Ended::VmClosed))));
    }
}
