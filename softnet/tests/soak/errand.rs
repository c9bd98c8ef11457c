//! What an honest guest does all day: it looks its gateway up, pings it, and asks a server of the world something.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lab::net::INTERNET;
use lab::wire::{Arp, Ipv4, Mac, carries, icmp, u16_at, udp};

/// After so long without an answer it asks again.
const RETRY: Duration = Duration::from_secs(1);
/// From the end of one errand to the next.
const PAUSE: Duration = Duration::from_secs(1);

/// What the server of the world says.
const HELLO: &[u8] = b"hello from the internet";

/// The step that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Resolve,
    Ping,
    Ask,
}

/// The errands of one VM with one address.
#[derive(Debug)]
pub struct Errand {
    mac: Mac,
    address: Ipv4Addr,
    gateway: (Mac, Ipv4Addr),
    step: Step,
    number: u16,
    since: Instant,
    retry_at: Instant,
}

impl Errand {
    /// The first errand, which starts at once.
    pub fn new(mac: Mac, address: Ipv4Addr, gateway: (Mac, Ipv4Addr), now: Instant) -> Self {
        Self { mac, address, gateway, step: Step::Resolve, number: 0, since: now, retry_at: now }
    }

    /// When it has something to say.
    pub fn deadline(&self) -> Instant {
        self.retry_at
    }

    /// How long this errand has taken until now.
    pub fn takes(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// What it has to say now.
    pub fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.retry_at {
            return None;
        }
        self.retry_at = now + RETRY;
        let (station, gateway) = self.gateway;
        let packet = |to, transport| Ipv4::new(self.address, to, transport).frame(station, self.mac);
        Some(match self.step {
            Step::Resolve => Arp::request(self.mac, self.address, gateway).frame(),
            Step::Ping => {
                let [high, low] = self.number.to_be_bytes();
                packet(gateway, icmp(8, 0, &[0, 1, high, low, b's', b'o', b'a', b'k']))
            }
            Step::Ask => packet(INTERNET, udp((self.address, self.port()), (INTERNET, 80), b"?")),
        })
    }

    /// Heeds a frame; true if it ends an errand.
    pub fn hear(&mut self, frame: &[u8], now: Instant) -> bool {
        let protocol = frame.get(23).copied();
        let answered = match self.step {
            Step::Resolve => u16_at(frame, 12) == lab::wire::ARP && u16_at(frame, 20) == 2,
            Step::Ping => {
                protocol == Some(1) && frame.get(34) == Some(&0) && u16_at(frame, 40) == self.number
            }
            Step::Ask => protocol == Some(17) && u16_at(frame, 36) == self.port() && carries(frame, HELLO),
        };
        if !answered {
            return false;
        }
        self.retry_at = now;
        self.step = match self.step {
            Step::Resolve => Step::Ping,
            Step::Ping => Step::Ask,
            Step::Ask => {
                self.number = self.number.wrapping_add(1);
                self.retry_at = now + PAUSE;
                self.since = self.retry_at;
                Step::Resolve
            }
        };
        self.step == Step::Resolve
    }

    fn port(&self) -> u16 {
        10_000 + self.number % 10_000
    }
}
