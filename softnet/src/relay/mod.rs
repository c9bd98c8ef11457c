//! The event loop: the one module that knows both sides and the filter between them.
//!
//! One thread, one poller. Each turn reads the clock once, gives each direction a budget of one batch, and
//! then handles everything else, so that neither direction, nor timers, nor signals starve under a flood
//! (rule R2). Nothing ticks: the alarm is set to the earliest deadline of all parts.

mod control;
mod lane;
mod lease;
mod limit;
#[cfg(test)]
mod tests;
mod wake;

use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU64;
use std::time::Duration;

use mio::Events;
use softnet_filter::{Counters, Direction, Port, Timestamp};

use crate::clock;
use crate::lease_follower::{self, LeaseFollower};
use crate::link::{DEFAULT_MTU, ETHERNET_HEADER, Link, LinkError};
use crate::needs::Needs;
use crate::observe::{self, Observer};
use crate::parent::ParentWatch;
use crate::quiet::{Probe, Silence};
pub use control::Controllers;
use lane::{Lane, Side, Way};
use limit::Limit;
use wake::{Sources, Wake};

/// Ordinary reasons to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The VM closed its side.
    VmClosed,
    /// SIGINT, SIGTERM or SIGHUP.
    Signal,
    /// The process that started Softnet has ended.
    ParentGone,
}

/// Why Softnet cannot continue.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The VM's link failed.
    #[error("the VM's socket failed")]
    Vm(#[source] LinkError),
    /// The host's link failed.
    #[error("the link to the host's network failed")]
    Host(#[source] LinkError),
    /// The connection to the monitor failed.
    #[error(transparent)]
    Follower(#[from] lease_follower::Error),
    /// The poller failed.
    #[error("the event loop failed")]
    Poll(#[from] io::Error),
}

/// Why the loop stops.
#[derive(Debug)]
pub enum Stop {
    Ended(Ended),
    Failed(RelayError),
}

impl<E: Into<RelayError>> From<E> for Stop {
    fn from(error: E) -> Self {
        Stop::Failed(error.into())
    }
}

/// Both links, the port between them and the sources of wake-ups.
#[derive(Debug)]
pub struct Relay {
    vm: Side,
    host: Side,
    from_vm: Lane,
    from_host: Lane,
    port: Port,
    /// Receives the judged frames.
    observer: Option<Box<dyn Observer>>,
    follower: Box<dyn LeaseFollower>,
    controllers: Option<Controllers>,
    sources: Sources,
    probe: Probe,
    /// Detects the VM's silence, if the follower needs to know of it.
    silence: Option<Silence>,
    /// The VM's new address, for which the host is being prepared, and the limit of the wait. Until then no
    /// frame passes to the VM, so that it learns of the address only afterwards.
    settling: Option<(Ipv4Addr, Timestamp)>,
    /// When to warn of a VM that has sent no frame, and how long it has had until then.
    mute_at: Option<(Timestamp, Duration)>,
}

impl Relay {
    /// Connects `vm` and `host` through `port`. Frames are of up to `max_frame` bytes on the wire. Where that is less
    /// than a VM sends which does not know it, the VM's longer frames are received too, since the port answers them
    /// (rule L3).
    ///
    /// # Errors
    /// When the poller or the signal handlers cannot be set up.
    pub fn new(
        vm: Box<dyn Link>,
        host: Box<dyn Link>,
        mut port: Port,
        mut follower: Box<dyn LeaseFollower>,
        parent: ParentWatch,
        max_frame: usize,
    ) -> io::Result<Self> {
        let sources = Sources::new(parent)?;
        let registry = sources.registry();
        let vm = Side::new(vm, Wake::Vm, registry)?;
        let host = Side::new(host, Wake::Host, registry)?;
        follower.register(registry, Wake::Follower.token())?;
        if follower.settles() {
            port.wait_for_host();
        }
        let now = clock::now();
        Ok(Relay {
            from_vm: Lane::new(
                Direction::FromVm,
                vm.link.longest_received(max_frame.max(ETHERNET_HEADER + usize::from(DEFAULT_MTU))),
            ),
            from_host: Lane::new(Direction::FromHost, host.link.longest_received(max_frame)),
            vm,
            host,
            port,
            observer: None,
            silence: follower.watches_the_vm().then(|| Silence::new(now)),
            follower,
            controllers: None,
            sources,
            probe: Probe::new(now),
            settling: None,
            mute_at: None,
        })
    }

    /// Passes all judged frames to `observer`.
    pub fn set_observer(&mut self, observer: impl Observer + 'static) {
        self.observer = Some(Box::new(observer));
    }

    /// Limits what passes from and to the VM, in bytes a second.
    pub fn set_limits(&mut self, from_vm: Option<NonZeroU64>, from_host: Option<NonZeroU64>) {
        for (lane, rate) in [(&mut self.from_vm, from_vm), (&mut self.from_host, from_host)] {
            if let Some(rate) = rate {
                lane.set_limit(Limit::new(rate));
            }
        }
    }

    /// Warns once if the VM sends no frame for this long from now on: it may have a network that is not Softnet's.
    pub fn warn_if_mute(&mut self, limit: Duration) {
        self.mute_at = Some((clock::now().saturating_add(limit), limit));
    }

    /// The port's counters.
    pub fn counters(&self) -> &Counters {
        self.port.counters()
    }

    /// What a running relay needs of the system: the sum of its parts' needs.
    pub fn needs(&self) -> Needs {
        let mut needs = Needs::new();
        self.sources.needs(&mut needs);
        self.vm.link.needs(&mut needs);
        self.host.link.needs(&mut needs);
        self.follower.needs(&mut needs);
        if let Some(controllers) = &self.controllers {
            controllers.needs(&mut needs);
        }
        needs
    }

    /// Carries frames until there is a reason to end.
    ///
    /// # Errors
    /// When a link or the loop itself fails. A bad frame never does (rule R3).
    pub fn run(&mut self) -> Result<Ended, RelayError> {
        let mut events = wake::events();
        loop {
            match self.wait(&mut events).and_then(|()| self.turn(&events)) {
                Ok(()) => {}
                Err(Stop::Ended(ended)) => return Ok(ended),
                Err(Stop::Failed(error)) => return Err(error),
            }
        }
    }

    /// Waits until an event arrives or a deadline passes, unless there is work already.
    fn wait(&mut self, events: &mut Events) -> Result<(), Stop> {
        let controllers_wait = self.controllers.as_ref().is_some_and(Controllers::have_work);
        let timeout =
            if self.has_work(Direction::FromVm) || self.has_work(Direction::FromHost) || controllers_wait {
                Some(Duration::ZERO)
            } else {
                let deadline = self.next_deadline();
                self.sources.alarm.set(deadline)?;
                self.sources.alarm.poll_timeout()
            };
        Ok(self.sources.wait(events, timeout)?)
    }

    /// One turn: handles the events, carries one batch per direction, and does whatever is due.
    fn turn(&mut self, events: &Events) -> Result<(), Stop> {
        let now = clock::now();
        for woken in wake::woken(events) {
            match woken.wake {
                Wake::Vm => {
                    self.from_vm.readable |= woken.readable;
                    self.note_vm_activity(now);
                    if woken.writable {
                        self.send(Direction::FromHost, now)?;
                    }
                }
                Wake::Host => {
                    self.from_host.readable |= woken.readable;
                    if woken.writable {
                        self.send(Direction::FromVm, now)?;
                    }
                }
                Wake::Alarm => self.sources.alarm.fired(),
                Wake::Terminate => {
                    self.sources.terminate.drain();
                    return Err(Stop::Ended(Ended::Signal));
                }
                Wake::Statistics => {
                    self.sources.statistics.drain();
                    observe::print_counters(self.port.counters());
                }
                Wake::Parent => return Err(Stop::Ended(Ended::ParentGone)),
                Wake::Follower => self.read_notices(now)?,
                Wake::Control(number) => {
                    if let Some(controllers) = &mut self.controllers {
                        controllers.note(number, woken.readable);
                    }
                }
            }
        }
        self.from_vm.refill(now);
        self.from_host.refill(now);
        self.carry(Direction::FromVm, now)?;
        self.carry(Direction::FromHost, now)?;
        self.attend_controllers(now);
        self.attend(now)
    }

    fn way(&mut self, direction: Direction) -> Way<'_> {
        let Relay { vm, host, from_vm, from_host, port, observer, sources, .. } = self;
        let (lane, from, to) = match direction {
            Direction::FromVm => (from_vm, vm, host),
            Direction::FromHost => (from_host, host, vm),
        };
        Way { lane, from, to, port, observer: observer.as_deref_mut(), registry: sources.registry() }
    }

    /// Whether the frames of `direction` wait until the host is ready for the VM.
    fn is_held(&self, direction: Direction) -> bool {
        direction == Direction::FromHost && self.settling.is_some()
    }

    fn has_work(&self, direction: Direction) -> bool {
        let lane = match direction {
            Direction::FromVm => &self.from_vm,
            Direction::FromHost => &self.from_host,
        };
        lane.has_work() && !self.is_held(direction)
    }

    /// Receives, judges and sends one batch, if there is work.
    fn carry(&mut self, direction: Direction, now: Timestamp) -> Result<(), Stop> {
        if !self.has_work(direction) {
            return Ok(());
        }
        self.way(direction).receive(now)?;
        if direction == Direction::FromHost {
            // Before the batch is sent: the DHCP reply with a new lease may be in it.
            self.note_events(now);
        }
        self.send(direction, now)
    }

    /// Sends the batch of `direction`, unless it is held until the host is ready.
    fn send(&mut self, direction: Direction, now: Timestamp) -> Result<(), Stop> {
        if self.is_held(direction) {
            return Ok(());
        }
        self.way(direction).send_or_wait(now)
    }

    /// Records that the VM has sent something or accepts frames again.
    fn note_vm_activity(&mut self, now: Timestamp) {
        self.probe.note_activity(now);
        if self.silence.as_mut().is_some_and(|silence| silence.note_activity(now)) {
            self.follower.vm_is_quiet(false, now);
        }
    }

    /// Whether this process has to probe the VM's link or the parent process.
    fn needs_probe(&self) -> bool {
        self.vm.link.needs_probe() || self.sources.parent.needs_probe()
    }

    /// Handles deadlines: expiry, stalled queues, the follower and probes.
    fn attend(&mut self, now: Timestamp) -> Result<(), Stop> {
        let is_due = |deadline: Option<Timestamp>| deadline.is_some_and(|at| now >= at);
        self.port.advance(now);
        self.note_events(now);
        self.check_settle_limit(now)?;
        self.transmit();
        if is_due(self.from_vm.deadline()) {
            self.send(Direction::FromVm, now)?;
        }
        if is_due(self.from_host.deadline()) {
            self.send(Direction::FromHost, now)?;
        }
        if is_due(self.follower.deadline()) {
            self.read_notices(now)?;
        }
        if let Some((_, waited)) = self.mute_at.take_if(|(at, _)| now >= *at) {
            let sent = &self.counters().from_vm;
            if sent.forwarded_frames() + sent.dropped_total() == 0 {
                tracing::warn!(
                    seconds = waited.as_secs(),
                    "no frame has come from the VM yet; if its system is up, it does not use Softnet's network card, and another card is not filtered"
                );
            }
        }
        if self.silence.as_mut().is_some_and(|silence| silence.has_begun(now)) {
            self.follower.vm_is_quiet(true, now);
        }
        if self.needs_probe() && self.probe.is_due(now) {
            self.vm.link.probe().map_err(|error| self.vm.failed(error))?;
            if self.sources.parent.is_gone() {
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
            self.from_vm.refill_at(),
            self.from_host.refill_at().filter(|_| self.settling.is_none()),
            self.follower.deadline(),
            self.settling.map(|(_, until)| until),
            self.mute_at.map(|(at, _)| at),
            self.silence.as_ref().and_then(Silence::deadline),
            self.needs_probe().then(|| self.probe.deadline()),
        ];
        deadlines.into_iter().flatten().min()
    }
}
