//! One VM, without a socket: frames in and out, and time.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;
use ipnet::Ipv4Net;
use lab::wire::{
    ARP, Arp, Dhcp, Mac, address_at, carries, destination, dhcp_kind as kind, dhcp_option as option,
    ether_type, parse_dhcp, source, u16_at,
};

use crate::attack::{Attack, SHORTEST_LEASE, Scene as Attacks};
use crate::attacker::Attacker;
use crate::client::{Client, Told};
use crate::dice::Dice;
use crate::errand::{Errand, Heard, Step};
use crate::flood::{self, Scene};
use crate::plan::{Habit, Life, Moment, Plan};
use crate::town::{DROP, FOR_EXPOSED, FOR_HOST};

/// From the address to what a VM does with it out of habit.
const BEFORE_THE_HABIT: Duration = Duration::from_millis(300);
/// From one greedy question to the next; the filter passes one message a second.
const GREED: Duration = Duration::from_millis(1500);

/// Who has slept must be answered so soon.
const AWAKE: Duration = Duration::from_secs(6);

/// Whether it sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sleep {
    Never,
    Until(Instant),
    /// It has asked for its address since then.
    Awake(Instant),
}

/// What a frame came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The server whose station this is offered an address.
    Offered(Mac),
    /// It has this address.
    Bound(Ipv4Addr),
    /// It has its address for longer.
    Renewed,
    /// The server refused it an address, and it asks anew. That was its own until then if it is a renewal.
    Refused { renewal: bool },
    /// A step of an errand is done, in time or not. The last of them is the end of the errand.
    Done(Step, bool),
    /// The resolver would not answer.
    Denied,
    /// It has slept longer than its lease, and so long after it awoke the server has answered.
    Awake(Duration),
    /// It got what is for the host, or for another VM.
    Shadowed {
        /// The exposed port of the host that it was for; `None` if it was for the host's own service.
        exposed: Option<u16>,
        what: String,
    },
    /// It got what is for whoever had its address before.
    Inherited(String),
    /// It got what is for it because a port of the host leads to it.
    Exposed,
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
    subnet: Ipv4Net,
    places: usize,
    attack: Option<Attack>,
    sleep: Sleep,
    dice: Dice,
    renew_at: Option<Instant>,
    habit_at: Option<Instant>,
    greed: u32,
    fence: u64,
}

impl Vm {
    /// A VM that asks for its address at once.
    pub fn new(life: Life, plan: &Plan, gateway: Ipv4Addr, now: Instant) -> Result<Self> {
        let mut dice = life.dice.clone();
        let mut client = Client::new(life.mac, u32::try_from(dice.below(1 << 31)).unwrap_or_default(), now);
        if life.habit == Habit::Attack(Attacker::Sleep) {
            client.wanted = Some(SHORTEST_LEASE);
            client.rebinds = dice.chance(50);
        }
        let habit_at = (life.habit == Habit::Flood).then_some(now);
        Ok(Self {
            life,
            started: now,
            settled: None,
            bound: None,
            sent: Sent::default(),
            outbox: VecDeque::new(),
            client,
            errand: None,
            gateway,
            subnet: plan.subnet()?,
            places: plan.vms,
            attack: None,
            sleep: Sleep::Never,
            dice,
            renew_at: None,
            habit_at,
            greed: 0,
            fence: 0,
        })
    }

    /// Whether it is one that must be served.
    pub fn is_honest(&self) -> bool {
        !matches!(self.life.habit, Habit::Attack(_))
    }

    /// The step of an errand that has just become late.
    pub fn late(&mut self, now: Instant) -> Option<Step> {
        self.errand.as_mut()?.late(now)
    }

    /// Whether it has just been awake for too long without an answer.
    pub fn is_left_waiting(&mut self, now: Instant, excused: bool) -> bool {
        let Sleep::Awake(since) = self.sleep else { return false };
        if excused {
            self.sleep = Sleep::Awake(now);
            return false;
        }
        let is_left = now.saturating_duration_since(since) > AWAKE;
        if is_left {
            self.sleep = Sleep::Never;
            self.life.stay = Some(Duration::ZERO);
        }
        is_left
    }

    /// The address that it holds.
    pub fn address(&self) -> Option<Ipv4Addr> {
        // One that sleeps may have lost it, and does not know.
        self.client.address().filter(|_| self.sleep == Sleep::Never)
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
        let attack = self.attack.as_ref().map(Attack::deadline).filter(|_| self.outbox.is_empty());
        let wake = match self.sleep {
            Sleep::Until(at) => Some(at),
            Sleep::Awake(since) => Some(since + AWAKE),
            Sleep::Never => None,
        };
        let deadlines = [self.client.deadline(), errand, self.renew_at, habit, attack, wake, early, leave];
        deadlines.into_iter().flatten().min()
    }

    /// Takes a frame in.
    pub fn hear(&mut self, frame: &[u8], now: Instant) -> Option<Event> {
        let station = source(frame);
        let known = self.client.server().0;
        let group = destination(frame).0[0] & 1 == 1;
        if (known != Mac::ZERO && station != known) || !(group || destination(frame) == self.life.mac) {
            return Some(Event::Overheard(station));
        }
        if matches!(self.sleep, Sleep::Until(_)) {
            return None;
        }
        if let Some(answer) = parse_dhcp(frame) {
            return self.hear_server(&answer, station, now);
        }
        if let Some(event) = self.astray(frame) {
            return Some(event);
        }
        if let Some(attack) = &mut self.attack {
            let frames = attack.hear(frame, &mut self.dice);
            frames.into_iter().for_each(|frame| self.send(frame));
        }
        // One that has slept does not know that its address may be gone, and answers for it as before.
        let believed = self.client.address()?;
        let is_question = ether_type(frame) == ARP && u16_at(frame, 20) == 1;
        if is_question && address_at(frame, 38) == believed {
            self.send(Arp::reply(self.life.mac, believed, station, address_at(frame, 28)).frame());
            return None;
        }
        self.address()?;
        let errand = self.errand.as_mut()?;
        let heard = errand.hear(frame, now);
        let replies = std::mem::take(&mut errand.replies);
        replies.into_iter().for_each(|frame| self.send(frame));
        if matches!(heard, Some(Heard::Done(Step::Connect, _))) {
            self.sent.judged = self.fence;
            self.fence = self.sent.bad;
        }
        Some(match heard? {
            Heard::Done(step, in_time) => Event::Done(step, in_time),
            Heard::Denied => Event::Denied,
        })
    }

    /// What is for somebody else, as its text says.
    fn astray(&self, frame: &[u8]) -> Option<Event> {
        let ports = (u16_at(frame, 34), u16_at(frame, 36));
        if carries(frame, FOR_HOST) {
            let what = format!("the host's, from port {} to {}", ports.0, ports.1);
            return Some(Event::Shadowed { exposed: None, what });
        }
        if carries(frame, FOR_EXPOSED) {
            // The host leads its port to 80 of the VM; any other is the one that somebody spoke from.
            return Some(match ports.1 {
                80 => Event::Exposed,
                other => Event::Shadowed {
                    exposed: Some(other),
                    what: format!("the VM's behind port {other}, from port {}", ports.0),
                },
            });
        }
        let at = frame.windows(DROP.len()).position(|window| window == DROP)?;
        let whose = String::from_utf8_lossy(frame.get(at + DROP.len()..)?).into_owned();
        (!whose.starts_with(&self.life.mac.to_string())).then(|| {
            let to = address_at(frame, 30);
            Event::Inherited(format!(
                "{whose}, to {to}, from port {} to {}, of {}",
                ports.0, ports.1, self.life
            ))
        })
    }

    fn hear_server(&mut self, answer: &Dhcp, station: Mac, now: Instant) -> Option<Event> {
        let told = self.client.hear(answer, station, now);
        if let (Sleep::Awake(since), Some(Told::Renewed | Told::Refused { .. } | Told::Moved(_))) =
            (self.sleep, told)
        {
            self.sleep = Sleep::Never;
            // It has been answered as it should, and is of no more use.
            self.life.stay = Some(Duration::ZERO);
            return Some(Event::Awake(now.saturating_duration_since(since)));
        }
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
            Told::Refused { renewal } => {
                self.unsettle();
                Event::Refused { renewal }
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
        if matches!(self.sleep, Sleep::Until(at) if now >= at) {
            self.sleep = Sleep::Awake(now);
            self.client.renew(now);
            self.client.due(now).into_iter().for_each(|frame| self.send(frame));
        }
        if self.outbox.is_empty() {
            let frames = self.attack.as_mut().map(|attack| attack.due(now, &mut self.dice));
            frames.into_iter().flatten().for_each(|frame| self.send(frame));
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
        (self.habit_at, self.attack, self.sleep) = (None, None, Sleep::Never);
    }

    fn indulge(&mut self, now: Instant, victim: (Mac, Ipv4Addr)) {
        self.habit_at = None;
        match self.life.habit {
            Habit::Quiet => {}
            Habit::Attack(attacker) => self.attack(attacker, now),
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

    fn attack(&mut self, attacker: Attacker, now: Instant) {
        let Some(address) = self.client.address() else { return };
        if attacker == Attacker::Sleep {
            self.unsettle();
            let extra = Duration::from_millis(5_000 + self.dice.below(8_000));
            self.sleep = Sleep::Until(now + Duration::from_secs(SHORTEST_LEASE.into()) + extra);
            return;
        }
        let (mac, gateway) = (self.life.mac, (self.client.server().0, self.gateway));
        let scene = Attacks { mac, address, gateway, subnet: self.subnet, places: self.places };
        self.attack = Some(Attack::new(attacker, scene, now, self.life.long, &mut self.dice));
        // Whether it gets on is its own affair now, and one that desynchronises has no address that is its own.
        if matches!(attacker, Attacker::Filler | Attacker::Hog | Attacker::Desync) {
            self.unsettle();
        }
        if attacker == Attacker::Desync {
            self.client.fall_silent();
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
        let listens = self.life.listens && self.is_honest();
        self.errand = Some(Errand::new(self.life.mac, address, gateway, listens, now));
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
