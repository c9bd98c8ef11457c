//! One VM, without a socket: frames in and out, and time.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lab::wire::{
    ARP, Arp, Dhcp, Mac, address_at, destination, dhcp_kind as kind, dhcp_option as option, ether_type,
    source, u16_at,
};

use crate::client::{Client, Told};
use crate::dice::Dice;
use crate::errand::Errand;
use crate::flood::{self, Scene};
use crate::plan::{Habit, Life, Moment};

/// From the address to what a VM does with it out of habit.
const BEFORE_THE_HABIT: Duration = Duration::from_millis(300);
/// From one greedy question to the next; the filter passes one message a second.
const GREED: Duration = Duration::from_millis(1500);

/// What a frame came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server whose station this is offered an address.
    Offered(Mac),
    /// It has this address.
    Bound(Ipv4Addr),
    /// It has its address for longer.
    Renewed,
    /// The server refused it an address, and it asks anew.
    Refused,
    /// An errand is done.
    Served,
    /// It was offered or given a second address.
    Second(Ipv4Addr),
    /// It got what is not for it, from this station.
    Overheard(Mac),
}

/// Frames that it has sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    /// Those that may pass.
    pub good: u64,
    /// Those that must not.
    pub bad: u64,
    /// Of the bad ones, those that have been judged for certain: an answer came to what was sent after them.
    pub judged: u64,
}

/// The VM.
#[derive(Debug)]
pub struct Vm {
    /// What becomes of it.
    pub life: Life,
    /// When its Softnet was started.
    pub started: Instant,
    /// When it first had an address.
    pub settled: Option<Instant>,
    /// When it got the address that it has.
    pub bound: Option<Instant>,
    /// What it has sent.
    pub sent: Sent,
    /// Frames on their way to Softnet.
    pub outbox: VecDeque<Vec<u8>>,
    client: Client,
    errand: Option<Errand>,
    gateway: Ipv4Addr,
    dice: Dice,
    renew_at: Option<Instant>,
    habit_at: Option<Instant>,
    greed: u32,
    fence: u64,
}

impl Vm {
    /// A VM that asks for its address at once.
    pub fn new(life: Life, gateway: Ipv4Addr, now: Instant) -> Self {
        let mut dice = life.dice.clone();
        let client = Client::new(life.mac, u32::try_from(dice.below(1 << 31)).unwrap_or_default(), now);
        let habit_at = (life.habit == Habit::Flood).then_some(now);
        Self {
            life,
            started: now,
            settled: None,
            bound: None,
            sent: Sent::default(),
            outbox: VecDeque::new(),
            client,
            errand: None,
            gateway,
            dice,
            renew_at: None,
            habit_at,
            greed: 0,
            fence: 0,
        }
    }

    /// The address that it holds.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.client.address()
    }

    /// How long it has been waiting for an address, for more time with it, or for the end of an errand.
    pub fn waits(&self, now: Instant) -> (Duration, Duration) {
        (self.client.waits(now), self.errand.as_ref().map_or(Duration::ZERO, |errand| errand.takes(now)))
    }

    /// Whether it is time to end before there is an answer.
    pub fn is_early(&self, now: Instant) -> bool {
        match self.life.moment {
            Moment::After(time) => now >= self.started + time,
            // That it asks for what it was offered is checked when it has been offered something.
            Moment::Offered => self.client.server().0 != Mac::ZERO,
            Moment::Requested => self.client.has_requested() && self.outbox.is_empty(),
        }
    }

    /// When it has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let errand = self.errand.as_ref().map(Errand::deadline);
        let early = match self.life.moment {
            Moment::After(time) if self.settled.is_none() => Some(self.started + time),
            _ => None,
        };
        let leave = self.settled.zip(self.life.stay).map(|(settled, stay)| settled + stay);
        // A full queue is waited for first.
        let habit = self.habit_at.filter(|_| self.outbox.is_empty());
        [self.client.deadline(), errand, self.renew_at, habit, early, leave].into_iter().flatten().min()
    }

    /// Heeds a frame.
    pub fn hear(&mut self, frame: &[u8], now: Instant) -> Option<Event> {
        let station = source(frame);
        let known = self.client.server().0;
        let group = destination(frame).0[0] & 1 == 1;
        if (known != Mac::ZERO && station != known) || !(group || destination(frame) == self.life.mac) {
            return Some(Event::Overheard(station));
        }
        if let Some(answer) = Dhcp::parse(frame) {
            return self.hear_server(&answer, station, now);
        }
        let address = self.address()?;
        let is_question = ether_type(frame) == ARP && u16_at(frame, 20) == 1;
        if is_question && address_at(frame, 38) == address {
            self.send(Arp::reply(self.life.mac, address, station, address_at(frame, 28)).frame());
            return None;
        }
        let done = self.errand.as_mut().is_some_and(|errand| errand.hear(frame, now));
        if done {
            self.sent.judged = self.fence;
            self.fence = self.sent.bad;
        }
        done.then_some(Event::Served)
    }

    fn hear_server(&mut self, answer: &Dhcp, station: Mac, now: Instant) -> Option<Event> {
        let told = self.client.hear(answer, station, now);
        let own = self.address();
        if told.is_none() && own.is_some_and(|own| answer.yiaddr != own && !answer.yiaddr.is_unspecified()) {
            return Some(Event::Second(answer.yiaddr));
        }
        Some(match told? {
            Told::Offered => Event::Offered(station),
            Told::Bound(address) => {
                self.settle(address, now);
                Event::Bound(address)
            }
            Told::Renewed => {
                self.renew_later(now);
                Event::Renewed
            }
            Told::Refused => {
                self.unsettle();
                Event::Refused
            }
            Told::Moved(address) => Event::Second(address),
        })
    }

    /// Does what is due; `victim` is whom a flood wants to harm.
    pub fn act(&mut self, now: Instant, victim: (Mac, Ipv4Addr)) {
        if self.renew_at.is_some_and(|at| now >= at) {
            self.renew_at = None;
            self.client.renew(now);
        }
        if let Some(frame) = self.client.due(now) {
            self.send(frame);
        }
        if let Some(frame) = self.errand.as_mut().and_then(|errand| errand.due(now)) {
            self.send(frame);
        }
        if self.outbox.is_empty() && self.habit_at.is_some_and(|at| now >= at) {
            self.indulge(now, victim);
        }
    }

    /// So many bad frames in one go; a flooding VM's habit.
    pub fn flood(&mut self, count: usize, victim: (Mac, Ipv4Addr)) {
        let (station, _) = self.client.server();
        let scene =
            Scene { mac: self.life.mac, address: self.address(), gateway: (station, self.gateway), victim };
        for _ in 0..count {
            let frame = scene.frame(&mut self.dice);
            self.sent.bad += 1;
            self.outbox.push_back(frame);
        }
    }

    /// Gives its address back, as a guest does that shuts down, and says no more.
    pub fn give_back(&mut self) {
        let release = self.client.give_up(kind::RELEASE);
        self.fall_silent();
        release.into_iter().for_each(|frame| self.send(frame));
    }

    /// Says no more.
    pub fn fall_silent(&mut self) {
        self.client.fall_silent();
        self.unsettle();
        self.habit_at = None;
    }

    fn indulge(&mut self, now: Instant, victim: (Mac, Ipv4Addr)) {
        self.habit_at = None;
        match self.life.habit {
            Habit::Quiet => {}
            Habit::Flood => {
                self.flood(self.life.burst, victim);
                self.habit_at = Some(now + flood::PAUSE);
            }
            Habit::Greedy => {
                // A text, which is no hardware type's number; the filter lets four of them pass.
                self.greed += 1;
                let id = format!("\0greed {}", self.greed % 6);
                let xid = 0x8000_0000 | self.greed;
                let ask = Dhcp::client(kind::DISCOVER, xid, self.life.mac);
                self.send(ask.with(option::CLIENT_ID, id.as_bytes()).broadcast());
                self.habit_at = Some(now + GREED);
            }
            Habit::Decline | Habit::Return => {
                let message = if self.life.habit == Habit::Decline { kind::DECLINE } else { kind::RELEASE };
                if let Some(frame) = self.client.give_up(message) {
                    self.send(frame);
                    self.unsettle();
                    self.client.ask(now + BEFORE_THE_HABIT);
                }
            }
        }
    }

    fn settle(&mut self, address: Ipv4Addr, now: Instant) {
        if self.settled.is_none() {
            self.settled = Some(now);
            if self.life.habit != Habit::Flood {
                self.habit_at = Some(now + BEFORE_THE_HABIT);
            }
        }
        self.bound = Some(now);
        let gateway = (self.client.server().0, self.gateway);
        self.errand = Some(Errand::new(self.life.mac, address, gateway, now));
        self.fence = self.sent.bad;
        self.renew_later(now);
    }

    fn unsettle(&mut self) {
        (self.bound, self.errand, self.renew_at) = (None, None, None);
    }

    /// Long before half of the lease is over, so that a run of minutes has the renewals of hours. Greed leaves no room for
    /// them in the filter's rate.
    fn renew_later(&mut self, now: Instant) {
        let pause = Duration::from_millis(4_000 + self.dice.below(8_000));
        self.renew_at = (self.life.habit != Habit::Greedy).then_some(now + pause);
    }

    fn send(&mut self, frame: Vec<u8>) {
        self.sent.good += 1;
        self.outbox.push_back(frame);
    }
}
