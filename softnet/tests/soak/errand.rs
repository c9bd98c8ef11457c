//! What an honest guest does all day: it looks its gateway up, pings it, and asks a server of the world something; it asks
//! for a name, by both transports, and opens a connection to the world.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lab::net::INTERNET;
use lab::wire::{Arp, Ipv4, Mac, Transport, carries, icmp, tcp, u16_at, udp};

use crate::town::{DRIP, DROP};
use crate::words::{self, KNOWN, Segment};

/// After so long without an answer it asks again.
const RETRY: Duration = Duration::from_secs(1);
/// From the end of one errand to the next.
const PAUSE: Duration = Duration::from_secs(1);
/// A step that takes longer has failed, also while the host is broken for a moment.
pub const BOUND: Duration = Duration::from_secs(12);
/// One errand of so many asks for a name by TCP, too; the resolver has a process for each of these.
const BY_TCP: u16 = 4;

/// What the server of the world says.
const HELLO: &[u8] = b"hello from the internet";

/// The step that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Where is the gateway?
    Resolve,
    /// Is it there?
    Ping,
    /// What does the world say?
    Ask,
    /// Who goes on talking to me?
    Listen,
    /// What is the address of this name? By UDP and by TCP.
    Name,
    NameByTcp,
    /// A connection to the world.
    Connect,
}

/// What a frame came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// This step is done, in time or not.
    Done(Step, bool),
    /// The resolver would not answer.
    Denied,
}

/// The errands of one VM with one address.
#[derive(Debug)]
pub struct Errand {
    mac: Mac,
    address: Ipv4Addr,
    gateway: (Mac, Ipv4Addr),
    step: Step,
    number: u16,
    /// Whether it wants to be talked to.
    listens: bool,
    /// Each time it asks, it does so from another port.
    port: u16,
    since: Instant,
    stepped: Instant,
    late: bool,
    retry_at: Instant,
    /// What it answers to what it has heard.
    pub replies: Vec<Vec<u8>>,
}

impl Errand {
    /// The first errand, which starts at once.
    pub fn new(mac: Mac, address: Ipv4Addr, gateway: (Mac, Ipv4Addr), listens: bool, now: Instant) -> Self {
        Self {
            mac,
            address,
            gateway,
            step: Step::Resolve,
            number: 0,
            listens,
            // Not those of whoever has the address next, whose connections would be the same.
            port: 10_000 + u16_at(&mac.0, 4) % 20_000,
            since: now,
            stepped: now,
            late: false,
            retry_at: now,
            replies: Vec::new(),
        }
    }

    /// When it has something to say.
    pub fn deadline(&self) -> Instant {
        self.retry_at
    }

    /// How long this errand has taken until now.
    pub fn takes(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// The step that has just become late; each is named once.
    pub fn late(&mut self, now: Instant) -> Option<Step> {
        let is_late = now.saturating_duration_since(self.stepped) > BOUND;
        (is_late && !std::mem::replace(&mut self.late, is_late)).then_some(self.step)
    }

    /// What it has to say now.
    pub fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.retry_at {
            return None;
        }
        self.retry_at = now + RETRY;
        self.port = 10_000 + (self.port - 9_999) % 20_000;
        let gateway = self.gateway.1;
        let from = (self.address, self.port);
        Some(match self.step {
            Step::Resolve => Arp::request(self.mac, self.address, gateway).frame(),
            Step::Ping => {
                let [high, low] = self.number.to_be_bytes();
                self.packet(gateway, icmp(8, 0, &[0, 1, high, low, b's', b'o', b'a', b'k']))
            }
            Step::Ask => self.packet(INTERNET, udp(from, (INTERNET, 80), b"?")),
            Step::Listen => self.packet(INTERNET, udp(from, (INTERNET, DRIP), &self.token())),
            Step::Name => self.packet(gateway, udp(from, (gateway, 53), &self.question())),
            Step::NameByTcp => self.packet(gateway, tcp(from, (gateway, 53), 1, words::SYN, &[])),
            Step::Connect => self.packet(INTERNET, tcp(from, (INTERNET, 80), 1, words::SYN, &[])),
        })
    }

    /// Takes a frame in.
    pub fn hear(&mut self, frame: &[u8], now: Instant) -> Option<Heard> {
        let protocol = frame.get(23).copied();
        let for_me = u16_at(frame, 36) == self.port;
        let answered = match self.step {
            Step::Resolve => u16_at(frame, 12) == lab::wire::ARP && u16_at(frame, 20) == 2,
            Step::Ping => {
                protocol == Some(1) && frame.get(34) == Some(&0) && u16_at(frame, 40) == self.number
            }
            Step::Ask => protocol == Some(17) && for_me && carries(frame, HELLO),
            Step::Listen => protocol == Some(17) && for_me && carries(frame, &self.token()),
            Step::Name => {
                let is_answer = protocol == Some(17) && for_me && u16_at(frame, 34) == 53;
                let answer = frame.get(42..).filter(|_| is_answer)?;
                if !words::answers(answer, self.port)? {
                    return Some(Heard::Denied);
                }
                true
            }
            Step::NameByTcp | Step::Connect => {
                let segment = Segment::parse(frame).filter(|segment| segment.ports.1 == self.port)?;
                self.hear_segment(segment)?
            }
        };
        if !answered {
            return None;
        }
        Some(self.step_on(now))
    }

    /// Whether this is what it wanted; `None` if it must wait for more.
    fn hear_segment(&mut self, segment: Segment<'_>) -> Option<bool> {
        let by_name = self.step == Step::NameByTcp;
        let to = if by_name { (self.gateway.1, 53) } else { (INTERNET, 80) };
        if segment.ports.0 != to.1 || segment.flags & words::RST != 0 {
            return None;
        }
        let from = (self.address, self.port);
        if by_name && segment.accepts() {
            let question = self.question();
            let length = u16::try_from(question.len()).unwrap_or_default().to_be_bytes();
            let numbers = (segment.acknowledged, segment.sequence.wrapping_add(1));
            let asked = [&length[..], &question].concat();
            let reply = self.packet(to.0, words::segment(from, to, numbers, words::PSH_ACK, &asked));
            self.replies.push(reply);
            return None;
        }
        let answered = if by_name {
            words::answers(segment.payload.get(2..)?, self.port)? && !segment.payload.is_empty()
        } else {
            segment.accepts()
        };
        let end = words::segment(from, to, (segment.acknowledged, 0), words::RST, &[]);
        let end = self.packet(to.0, end);
        self.replies.push(end);
        Some(answered)
    }

    fn step_on(&mut self, now: Instant) -> Heard {
        let done = Heard::Done(self.step, !self.late);
        self.retry_at = now;
        self.step = match self.step {
            Step::Resolve => Step::Ping,
            Step::Ping => Step::Ask,
            Step::Ask if self.number == 0 && self.listens => Step::Listen,
            Step::Ask | Step::Listen => Step::Name,
            Step::Name if self.number.is_multiple_of(BY_TCP) => Step::NameByTcp,
            Step::Name | Step::NameByTcp => Step::Connect,
            Step::Connect => {
                self.number = self.number.wrapping_add(1);
                self.retry_at = now + PAUSE;
                self.since = self.retry_at;
                Step::Resolve
            }
        };
        (self.stepped, self.late) = (self.retry_at, false);
        done
    }

    fn packet(&self, to: Ipv4Addr, transport: Transport) -> Vec<u8> {
        Ipv4::new(self.address, to, transport).frame(self.gateway.0, self.mac)
    }

    /// A name that nobody has asked for, so that no cache knows it.
    fn question(&self) -> Vec<u8> {
        let mac = self.mac.to_string().replace(':', "");
        words::question(self.port, &format!("a{mac}-{}.{KNOWN}", self.port))
    }

    /// Who it is, for one who goes on talking.
    fn token(&self) -> Vec<u8> {
        [DROP, format!("{} at {}", self.mac, self.address).as_bytes()].concat()
    }
}
