//! A DHCP client as a guest has one: it asks until it has an answer, asks anew when it is refused, and renews.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lab::wire::{Dhcp, Ipv4, Mac, dhcp_kind as kind, dhcp_option as option, udp};

/// How long it waits for an answer at first; twice as long each time, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_millis(800);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// How often it asks for an offered address before it begins anew.
const REQUESTS: u32 = 3;

/// Where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asking,
    Requesting(Ipv4Addr),
    Bound(Ipv4Addr),
    Renewing(Ipv4Addr),
    Silent,
}

/// What an answer of the server comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It was offered an address.
    Offered,
    /// It has an address.
    Bound(Ipv4Addr),
    /// It keeps its address.
    Renewed,
    /// It was refused what it asked for, which was more time if it says so.
    Refused { renewal: bool },
    /// It was given another address than the one that it renewed.
    Moved(Ipv4Addr),
}

/// The client.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    server: (Mac, Ipv4Addr),
    xid: u32,
    state: State,
    since: Instant,
    retry_at: Instant,
    pause: Duration,
    tries: u32,
    /// Seconds for which it wants a lease, if it says so.
    pub wanted: Option<u32>,
    /// Renews by broadcast, as a client does whose server has not answered.
    pub rebinds: bool,
}

impl Client {
    /// One that asks at once. `xid` is the number of its first transaction.
    pub fn new(mac: Mac, xid: u32, now: Instant) -> Self {
        let server = (Mac::ZERO, Ipv4Addr::UNSPECIFIED);
        let (state, since, retry_at) = (State::Asking, now, now);
        Self {
            mac,
            server,
            xid,
            state,
            since,
            retry_at,
            pause: PAUSE,
            tries: 0,
            wanted: None,
            rebinds: false,
        }
    }

    /// The address that it holds.
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self.state {
            State::Bound(address) | State::Renewing(address) => Some(address),
            _ => None,
        }
    }

    /// The server, once one has answered.
    pub fn server(&self) -> (Mac, Ipv4Addr) {
        self.server
    }

    /// How long it has been waiting for an answer that it needs.
    pub fn waits(&self, now: Instant) -> Duration {
        match self.state {
            State::Bound(_) | State::Silent => Duration::ZERO,
            _ => now.saturating_duration_since(self.since),
        }
    }

    /// Whether it has asked for an address that it was offered.
    pub fn has_requested(&self) -> bool {
        matches!(self.state, State::Requesting(_)) && self.tries > 0
    }

    /// When it has something to say.
    pub fn deadline(&self) -> Option<Instant> {
        (!matches!(self.state, State::Bound(_) | State::Silent)).then_some(self.retry_at)
    }

    /// Starts again from nothing at `at`.
    pub fn ask(&mut self, at: Instant) {
        self.enter(State::Asking, at);
        self.since = at;
    }

    /// Says no more.
    pub fn fall_silent(&mut self) {
        self.state = State::Silent;
    }

    /// Asks for more time.
    pub fn renew(&mut self, now: Instant) {
        if let State::Bound(address) = self.state {
            self.enter(State::Renewing(address), now);
            self.since = now;
        }
    }

    /// A message that gives the lease up, RELEASE or DECLINE; it holds none afterwards.
    pub fn give_up(&mut self, kind: u8) -> Option<Vec<u8>> {
        let address = self.address()?;
        self.xid = self.xid.wrapping_add(1);
        self.state = State::Silent;
        let message = Dhcp::client(kind, self.xid, self.mac).with(option::SERVER, &self.server.1.octets());
        Some(match kind {
            kind::RELEASE => self.unicast(Dhcp { ciaddr: address, ..message }, address),
            _ => message.with(option::REQUESTED_ADDRESS, &address.octets()).broadcast(),
        })
    }

    /// What it has to say now.
    pub fn due(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.deadline()? {
            return None;
        }
        if matches!(self.state, State::Requesting(_)) && self.tries == REQUESTS {
            self.enter(State::Asking, now);
        }
        self.tries += 1;
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        let message = |kind| {
            let message = Dhcp::client(kind, self.xid, self.mac);
            match self.wanted {
                Some(wanted) => message.with(option::LEASE_TIME, &wanted.to_be_bytes()),
                None => message,
            }
        };
        match self.state {
            State::Asking => Some(message(kind::DISCOVER).broadcast()),
            State::Requesting(address) => Some(
                message(kind::REQUEST)
                    .with(option::REQUESTED_ADDRESS, &address.octets())
                    .with(option::SERVER, &self.server.1.octets())
                    .broadcast(),
            ),
            State::Renewing(address) => {
                let request = Dhcp { ciaddr: address, ..message(kind::REQUEST) };
                Some(if self.rebinds {
                    let everybody = Ipv4Addr::BROADCAST;
                    let datagram = udp((address, 68), (everybody, 67), &request.bytes());
                    Ipv4::new(address, everybody, datagram).frame(Mac::BROADCAST, self.mac)
                } else {
                    self.unicast(request, address)
                })
            }
            State::Bound(_) | State::Silent => None,
        }
    }

    /// Takes in a message of the server's, which came from `station`.
    pub fn hear(&mut self, answer: &Dhcp, station: Mac, now: Instant) -> Option<Told> {
        if answer.op != 2 || answer.xid != self.xid {
            return None;
        }
        match (answer.message_type(), self.state) {
            (kind::OFFER, State::Asking) => {
                let server: [u8; 4] = answer.option(option::SERVER)?.try_into().ok()?;
                self.server = (station, server.into());
                // The transaction goes on (RFC 2131, 4.4.1).
                let xid = self.xid;
                self.enter(State::Requesting(answer.yiaddr), now);
                self.xid = xid;
                Some(Told::Offered)
            }
            (kind::ACK, State::Requesting(_)) => {
                self.state = State::Bound(answer.yiaddr);
                Some(Told::Bound(answer.yiaddr))
            }
            (kind::ACK, State::Renewing(address)) => {
                self.state = State::Bound(answer.yiaddr);
                Some(if address == answer.yiaddr { Told::Renewed } else { Told::Moved(answer.yiaddr) })
            }
            (kind::NAK, State::Requesting(_) | State::Renewing(_)) => {
                let renewal = matches!(self.state, State::Renewing(_));
                self.enter(State::Asking, now);
                Some(Told::Refused { renewal })
            }
            _ => None,
        }
    }

    fn enter(&mut self, state: State, at: Instant) {
        self.state = state;
        self.xid = self.xid.wrapping_add(1);
        self.retry_at = at;
        self.pause = PAUSE;
        self.tries = 0;
    }

    fn unicast(&self, message: Dhcp, from: Ipv4Addr) -> Vec<u8> {
        let (station, server) = self.server;
        Ipv4::new(from, server, udp((from, 68), (server, 67), &message.bytes())).frame(station, self.mac)
    }
}
