//! What an attacking guest sends, without a socket: frames in and out, and time.
//!
//! All of it may pass Softnet or not, as the rules say; what matters is what becomes of the others.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use lab::net::{INTERNET, INTERNET_TOO};
use lab::wire::{
    Arp, Dhcp, Ipv4, Mac, Transport, dhcp_kind as kind, dhcp_option as option, icmp, tcp, u16_at, udp,
};

use crate::attacker::Attacker;
use crate::dice::Dice;
use crate::slot::FIRST_PORT;
use crate::town::{FLOOD, NOWHERE, PEERS, SERVICE};
use crate::words::{self, SILENT, Segment};

/// From one round of a desynchroniser to the next; the filter passes one DHCP message a second for long.
const ROUND: Duration = Duration::from_millis(2500);
/// From one frame of an address that may be lost to the next.
const CLAIM: Duration = Duration::from_millis(50);
/// The shortest lease that the server gives, in seconds.
pub const SHORTEST_LEASE: u32 = 120;

/// Connections that a filler opens in one go, how many at a time, and how often.
const FLOWS: u32 = 20_000;
const FLOWS_A_TIME: u32 = 100;
const FILL: Duration = Duration::from_millis(20);
/// From one go to the next.
const REFILL: Duration = Duration::from_secs(20);

/// Questions that a hog has open from the start, and those that it adds each time.
const OPEN_QUESTIONS: u16 = 150;
const MORE_QUESTIONS: u16 = 6;
const ASK: Duration = Duration::from_millis(100);
/// Connections to the resolver that it holds, and how often it opens them again.
const HELD: u16 = 30;
const HOLD: Duration = Duration::from_secs(10);

/// From one datagram of a shadower, or one stray packet, to the next.
const SHADOW: Duration = Duration::from_millis(100);
const LEAK: Duration = Duration::from_millis(200);

/// How a desynchroniser goes about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trick {
    /// Two requests with one number: more time for its address, and another address.
    Twice,
    /// A request of another address under a flood in which the answer gets lost.
    Lost,
    /// Two requests with one number: the usual time, and the shortest.
    Short,
}

/// Who attacks, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Scene {
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// The gateway's hardware address and address.
    pub gateway: (Mac, Ipv4Addr),
    pub subnet: Ipv4Net,
    /// Places for VMs, each of which may have an exposed port.
    pub places: usize,
}

/// One attack.
#[derive(Debug)]
pub struct Attack {
    attacker: Attacker,
    scene: Scene,
    at: Instant,
    trick: Trick,
    /// When a desynchroniser plays its trick again, a filler opens again, a hog holds again.
    again: Instant,
    /// Counts all that has a number.
    count: u32,
    /// A flood was asked for, and its beginning is the moment for the request.
    awaits_flood: bool,
}

impl Attack {
    /// One that begins at `at`. `long` says whether it stays until its lease has ended.
    pub fn new(attacker: Attacker, scene: Scene, at: Instant, long: bool, dice: &mut Dice) -> Self {
        let trick = match dice.below(2) {
            _ if long => Trick::Short,
            0 => Trick::Twice,
            _ => Trick::Lost,
        };
        Self { attacker, scene, at, trick, again: at, count: 0, awaits_flood: false }
    }

    /// When it has something to send.
    pub fn deadline(&self) -> Instant {
        self.at
    }

    /// Takes a frame in.
    pub fn hear(&mut self, frame: &[u8], dice: &mut Dice) -> Vec<Vec<u8>> {
        match self.attacker {
            Attacker::Desync if self.awaits_flood && u16_at(frame, 34) == FLOOD => {
                self.awaits_flood = false;
                vec![self.select(self.count, dice)]
            }
            Attacker::Hog => {
                let accepted = Segment::parse(frame).filter(|it| it.ports.0 == 53 && it.accepts());
                let hold = accepted.map(|it| {
                    let from = (self.scene.address, it.ports.1);
                    let numbers = (it.acknowledged, it.sequence.wrapping_add(1));
                    let to = (self.scene.gateway.1, 53);
                    self.packet(to.0, words::segment(from, to, numbers, words::ACK, &[]))
                });
                hold.into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// What it sends now.
    pub fn due(&mut self, now: Instant, dice: &mut Dice) -> Vec<Vec<u8>> {
        if now < self.at {
            return Vec::new();
        }
        let again = now >= self.again;
        match self.attacker {
            Attacker::Desync => {
                self.at = now + CLAIM;
                let mut frames = self.claim();
                if again {
                    self.again = now + ROUND;
                    frames.extend(self.play(dice));
                }
                frames
            }
            Attacker::Filler => self.fill(now),
            Attacker::Hog => {
                self.at = now + ASK;
                let more = if self.count == 0 { OPEN_QUESTIONS } else { MORE_QUESTIONS };
                let mut frames: Vec<_> = (0..more).map(|_| self.ask()).collect();
                if again {
                    self.again = now + HOLD;
                    frames.extend((0..HELD).map(|_| self.connect()));
                }
                frames
            }
            Attacker::Shadow => {
                self.at = now + SHADOW;
                vec![self.shadow(dice)]
            }
            Attacker::Leak => {
                self.at = now + LEAK;
                vec![self.leak()]
            }
            // These are no attacks of a VM.
            Attacker::Sleep | Attacker::Drip | Attacker::Break => {
                self.at = now + REFILL;
                Vec::new()
            }
        }
    }

    fn packet(&self, to: Ipv4Addr, transport: Transport) -> Vec<u8> {
        Ipv4::new(self.scene.address, to, transport).frame(self.scene.gateway.0, self.scene.mac)
    }

    /// Speaks as who had the address at first, to the gateway and to the world.
    fn claim(&self) -> Vec<Vec<u8>> {
        let Scene { mac, address, gateway, .. } = self.scene;
        let port = 4000;
        vec![
            Arp::request(mac, address, gateway.1).frame(),
            self.packet(INTERNET, udp((address, port), (INTERNET, 80), b"mine?")),
        ]
    }

    fn play(&mut self, dice: &mut Dice) -> Vec<Vec<u8>> {
        self.count = u32::try_from(dice.below(1 << 31)).unwrap_or_default();
        let xid = self.count;
        let trick = self.trick;
        // Both in turn.
        self.trick = match trick {
            Trick::Twice => Trick::Lost,
            Trick::Lost => Trick::Twice,
            Trick::Short => Trick::Short,
        };
        match trick {
            Trick::Twice => vec![self.renew(xid, None), self.select(xid, dice)],
            Trick::Short => {
                // Never again: the server's lease is to end.
                self.again += Duration::from_secs(3600);
                vec![self.renew(xid, None), self.renew(xid, Some(SHORTEST_LEASE))]
            }
            Trick::Lost => {
                self.awaits_flood = true;
                let from = (self.scene.address, 5000);
                vec![self.packet(INTERNET, udp(from, (INTERNET, FLOOD), b"much"))]
            }
        }
    }

    fn renew(&self, xid: u32, seconds: Option<u32>) -> Vec<u8> {
        let Scene { mac, address, gateway, .. } = self.scene;
        let mut message = Dhcp { ciaddr: address, ..Dhcp::client(kind::REQUEST, xid, mac) };
        if let Some(seconds) = seconds {
            message = message.with(option::LEASE_TIME, &seconds.to_be_bytes());
        }
        self.packet(gateway.1, udp((address, 68), (gateway.1, 67), &message.bytes()))
    }

    /// Asks for any other address of the pool, which is free or is not.
    fn select(&self, xid: u32, dice: &mut Dice) -> Vec<u8> {
        let Scene { mac, address, gateway, subnet, .. } = self.scene;
        let pool: Vec<Ipv4Addr> = subnet.hosts().skip(1).filter(|other| *other != address).collect();
        let index = usize::try_from(dice.below(pool.len() as u64)).unwrap_or_default();
        let wanted = pool.get(index).copied().unwrap_or(address);
        Dhcp::client(kind::REQUEST, xid, mac)
            .with(option::REQUESTED_ADDRESS, &wanted.octets())
            .with(option::SERVER, &gateway.1.octets())
            .broadcast()
    }

    fn fill(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let flows = self.count..self.count + FLOWS_A_TIME;
        self.count += FLOWS_A_TIME;
        self.at = now + if self.count.is_multiple_of(FLOWS) { REFILL } else { FILL };
        flows.map(|number| self.open(number)).collect()
    }

    /// A datagram or a SYN of a flow that nobody has had.
    fn open(&self, number: u32) -> Vec<u8> {
        let from = (self.scene.address, 1024 + u16::try_from(number % 60_000).unwrap_or_default());
        let to = (NOWHERE, 1000 + u16::try_from(number / 60_000 % 60_000).unwrap_or_default());
        let transport = if number.is_multiple_of(2) {
            udp(from, to, b"?")
        } else {
            tcp(from, to, number, words::SYN, &[])
        };
        self.packet(NOWHERE, transport)
    }

    fn ask(&mut self) -> Vec<u8> {
        self.count += 1;
        let id = u16::try_from(self.count % 60_000).unwrap_or_default();
        let name = format!("q{}-{}.{SILENT}", self.count, u16_at(&self.scene.mac.0, 4));
        let (from, to) = ((self.scene.address, 2000 + id), (self.scene.gateway.1, 53));
        self.packet(to.0, udp(from, to, &words::question(id, &name)))
    }

    fn connect(&mut self) -> Vec<u8> {
        self.count += 1;
        let port = 2000 + u16::try_from(self.count % 60_000).unwrap_or_default();
        let to = (self.scene.gateway.1, 53);
        self.packet(to.0, tcp((self.scene.address, port), to, self.count, words::SYN, &[]))
    }

    /// Speaks from a port of the host's to a peer of the host's.
    fn shadow(&self, dice: &mut Dice) -> Vec<u8> {
        let place = dice.below(self.scene.places as u64);
        let exposed = u16::try_from(FIRST_PORT as u64 + place).unwrap_or(SERVICE);
        let port = if dice.chance(50) { SERVICE } else { exposed };
        let peer = PEERS.0 + u16::try_from(dice.below(u64::from(PEERS.1))).unwrap_or_default();
        let said = format!("shadow {port}");
        self.packet(INTERNET, udp((self.scene.address, port), (INTERNET, peer), said.as_bytes()))
    }

    /// What belongs to no connection, in all the ways in which that can be so.
    fn leak(&mut self) -> Vec<u8> {
        self.count += 1;
        let address = self.scene.address;
        let port = 3000 + u16::try_from(self.count % 60_000).unwrap_or_default();
        let (from, to) = ((address, port), (INTERNET_TOO, 80));
        // SYN and FIN, nothing at all, a stray RST.
        let segment = |flags| tcp(from, to, self.count, flags, &[]);
        let transport = match self.count % 5 {
            0 => segment(0x03),
            1 => segment(0),
            2 => segment(words::RST),
            3 => {
                let (protocol, mut bytes) = udp(from, to, b"wrong");
                bytes.splice(6..8, [0xde, 0xad]);
                (protocol, bytes)
            }
            _ => {
                let quoted = Ipv4::new(INTERNET_TOO, address, udp(to, from, b"never sent")).bytes();
                icmp(3, 3, &[&[0; 4][..], &quoted].concat())
            }
        };
        self.packet(INTERNET_TOO, transport)
    }
}
