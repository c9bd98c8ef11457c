//! Watches every interface of the host for what VMs must not do, and knows nothing but what it sees there.
//!
//! The kernel shows frames in the order in which they happen, so the server's answers and the messages that give leases
//! back, wherever they come from, say at each moment which MAC may use which address. That is held against each frame that
//! comes out of a Softnet, and against each frame that leaves the host.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::deadline::Deadline;
use lab::wire::{
    ARP, Dhcp, IPV4, Mac, address_at, carries, dhcp_kind as kind, dhcp_option as option, ether_type,
    parse_dhcp, source, u16_at,
};
use lab::{PacketSocket, Sighting};

use crate::breaker::Calm;
use crate::flood::MARK;
use crate::ledger::{Invariant, Ledger};
use crate::town::UPLINK;

/// Bytes of frames that may wait while this has no processor.
const ROOM: u32 = 64 << 20;
/// How often it looks whether it is to end, when there is nothing to see.
const TURN: Duration = Duration::from_millis(100);
/// How the address of the keeper's probes begins, which no VM of a run has.
const PROBE: [u8; 3] = [0x0e, 0x53, 0x4e];
/// How many DHCP messages it remembers.
const TALK: usize = 4000;
/// How much later this may see the end of a lease than the server did.
const GRACE: Duration = Duration::from_secs(3);

/// What an interface is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The managed network's bridge: the host's end of it.
    Bridge,
    /// A VM's TAP.
    Port,
    /// Where the host talks to itself.
    Loopback,
    /// The way to the world.
    Uplink,
    /// The way to those whom no VM may reach.
    Neighbours,
}

/// The watch, on a thread of its own.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Ledger>>,
}

impl Watch {
    /// Begins to watch; every frame from now on is seen.
    pub fn start(calm: &Arc<Calm>) -> Result<Self> {
        let socket = PacketSocket::open_everywhere(ROOM).context("watch all interfaces")?;
        let stop = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stop);
        let wire = Wire { calm: Arc::clone(calm), ..Wire::default() };
        let thread = std::thread::spawn(move || wire.watch(&socket, &asked));
        Ok(Self { stop, thread })
    }

    /// Looks at what is still waiting, ends, and says what was seen.
    pub fn end(self) -> Result<Ledger> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// All that was learnt from looking.
#[derive(Debug, Default)]
struct Wire {
    roles: HashMap<u32, Role>,
    /// The one MAC that each port speaks with.
    speakers: HashMap<u32, Mac>,
    /// And the port of each MAC.
    stations: HashMap<Mac, u32>,
    /// Who has been given an address and has not given it back.
    owners: HashMap<Ipv4Addr, Mac>,
    /// When that ends by itself.
    ends: HashMap<Ipv4Addr, Instant>,
    /// Who was the last to be heard by the gateway under an address, and who was before somebody else was, and has not
    /// been given the address since.
    users: HashMap<Ipv4Addr, Mac>,
    former: HashSet<(Ipv4Addr, Mac)>,
    /// The lease that each had last, unless it was given back or refused.
    last: HashMap<Mac, Ipv4Addr>,
    calm: Arc<Calm>,
    /// REQUESTs without an answer, by client and number: how many, and how many of them before a message that gives the
    /// address back. The server acts on that after it has answered them.
    open: HashMap<(Mac, u32), (u32, u32)>,
    /// The last DHCP messages, for the explanation of what is found.
    talk: VecDeque<(Mac, String)>,
    /// Of whom it was told.
    told: HashSet<Mac>,
    ledger: Ledger,
}

impl Wire {
    fn watch(mut self, socket: &PacketSocket, stop: &AtomicBool) -> Result<Ledger> {
        let mut buffer = vec![0; 66_000];
        loop {
            match socket.try_recv_from(&mut buffer) {
                Ok((sighting, length)) => self.see(sighting, buffer.get(..length).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let _ = Deadline::after(TURN).readable(socket.as_fd());
                }
                // An interface that goes says so to whoever watches all of them.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NETDOWN.raw_os_error()) => {}
                Err(error) => return Err(error).context("watch all interfaces"),
            }
        }
        let lost = socket.lost()?;
        self.ledger.check(Invariant::Own, lost == 0, || format!("{lost} frames were not looked at"));
        Ok(self.ledger)
    }

    fn see(&mut self, Sighting { interface, outgoing }: Sighting, frame: &[u8]) {
        // The keeper's own look at the host's filters comes from a TAP of its own.
        if source(frame).0.starts_with(&PROBE) {
            return;
        }
        self.note_talk(interface, outgoing, frame);
        match (self.role(interface), outgoing) {
            (Role::Port, false) => self.heed_vm(interface, frame),
            (Role::Port, true) => {
                let station = source(frame);
                let apart = !self.stations.contains_key(&station);
                self.ledger.check(Invariant::Apart, apart, || format!("{station} is heard by another VM"));
            }
            (Role::Bridge, true) => self.heed_server(frame),
            (Role::Bridge, false) => self.heed_user(frame),
            (Role::Loopback, true) => self.given_back(frame),
            (Role::Uplink, true) if ether_type(frame) == IPV4 => {
                let from = address_at(frame, 26);
                let fine = (from == UPLINK || self.calm.excuses(Instant::now())) && !carries(frame, MARK);
                self.ledger
                    .check(Invariant::World, fine, || format!("into the world from {from}: {}", hex(frame)));
            }
            (Role::Neighbours, true) if matches!(ether_type(frame), IPV4 | ARP) => {
                self.ledger.check(Invariant::World, false, || format!("to the neighbours: {}", hex(frame)));
            }
            _ => {}
        }
    }

    /// Keeps what was said by DHCP, and by whom.
    fn note_talk(&mut self, interface: u32, outgoing: bool, frame: &[u8]) {
        let Some(message) = any_dhcp(frame) else { return };
        let role = self.role(interface);
        let line = format!(
            "{:?} {role:?} {interface} outgoing={outgoing}: type {} xid {:08x} ciaddr {} yiaddr {} requested {:?} time {:?}",
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default(),
            message.message_type(),
            message.xid,
            message.ciaddr,
            message.yiaddr,
            address_of(&message, option::REQUESTED_ADDRESS),
            address_of(&message, option::LEASE_TIME).map(u32::from),
        );
        if self.talk.len() == TALK {
            self.talk.pop_front();
        }
        self.talk.push_back((client(&message), line));
    }

    /// Tells once what led to what was found of `station`.
    fn explain(&mut self, station: Mac) {
        if !self.told.insert(station) {
            return;
        }
        eprintln!(
            "what {station} and its server said, now {:?}:",
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
        );
        for (_, line) in self.talk.iter().filter(|(client, _)| *client == station) {
            eprintln!("    {line}");
        }
    }

    /// Only TAPs come and go, so an interface that is gone already was one.
    fn role(&mut self, interface: u32) -> Role {
        *self.roles.entry(interface).or_insert_with(|| {
            let names = nix::net::if_::if_nameindex();
            let names = names.as_ref().map(nix::net::if_::Interfaces::to_slice).unwrap_or_default();
            let found = names.iter().find(|known| known.index() == interface);
            match found.map(|known| known.name().to_string_lossy()).as_deref() {
                Some("lo") => Role::Loopback,
                Some("uplink") => Role::Uplink,
                Some(crate::NETWORK) => Role::Bridge,
                Some("lan0" | "meta0") => Role::Neighbours,
                _ => Role::Port,
            }
        })
    }

    fn heed_vm(&mut self, port: u32, frame: &[u8]) {
        let station = source(frame);
        let speaker = *self.speakers.entry(port).or_insert(station);
        // A VM that is started again has a new port, and indices only grow. The old one must have fallen silent.
        let at = self.stations.entry(station).or_insert(port);
        *at = port.max(*at);
        let at = *at;
        let own = speaker == station && at == port && self.is_own(station, frame) && !carries(frame, MARK);
        if !own {
            self.explain(station);
        }
        self.ledger.check(Invariant::Own, own, || {
            let owner = self.owners.get(&address_at(frame, 26)).copied().unwrap_or(Mac::ZERO);
            format!("the VM {speaker} on port {port} sent, under an address of {owner}: {}", hex(frame))
        });
        let message = parse_dhcp(frame).filter(|message| message.message_type() == kind::REQUEST);
        if let Some(message) = message {
            self.open.entry((client(&message), message.xid)).or_default().0 += 1;
            // It gives up what it has, whether or not it gets what it wants (rule B7); so does the server.
            let wanted = address_of(&message, option::REQUESTED_ADDRESS);
            if let Some(wanted) = wanted {
                self.owners.retain(|address, owner| *owner != station || *address == wanted);
            }
        }
        self.given_back(frame);
    }

    /// What reaches the gateway: once an address has another user, the former one is heard under it no more.
    fn heed_user(&mut self, frame: &[u8]) {
        let address = match ether_type(frame) {
            ARP => address_at(frame, 28),
            IPV4 => address_at(frame, 26),
            _ => return,
        };
        // One that slept may ask for what it had.
        if address.is_unspecified() || parse_dhcp(frame).is_some() {
            return;
        }
        let station = source(frame);
        // One that slept may answer for what it had, if nobody has it now.
        let of_another = self.owners.get(&address).is_some_and(|owner| *owner != station);
        let alone = !of_another || !self.former.contains(&(address, station));
        let user = self.users.insert(address, station).filter(|user| *user != station);
        if !alone {
            self.explain(station);
        }
        self.ledger.check(Invariant::Alone, alone, || {
            let user = user.map_or_else(|| "another".to_owned(), |user| user.to_string());
            format!("{address} is used by {station} and by {user}: {}", hex(frame))
        });
        if let Some(user) = user {
            self.former.insert((address, user));
        }
    }

    fn is_own(&self, station: Mac, frame: &[u8]) -> bool {
        let now = Instant::now();
        let owned = |address: Ipv4Addr| self.owners.get(&address) == Some(&station);
        let lasts = |address| self.ends.get(&address).is_none_or(|end| now < *end + GRACE);
        let owns = |address: Ipv4Addr| owned(address) && lasts(address);
        // Whoever slept longer than its lease looks for the gateway and asks for more time (rule C10).
        let last = |address: Ipv4Addr| self.last.get(&station) == Some(&address);
        let overslept =
            |address: Ipv4Addr| last(address) && (owned(address) || !self.owners.contains_key(&address));
        match ether_type(frame) {
            ARP => {
                let sender = address_at(frame, 28);
                frame.get(22..28) == Some(&station.0)
                    && (sender.is_unspecified() || owns(sender) || overslept(sender))
            }
            IPV4 => {
                let sender = address_at(frame, 26);
                let asks = parse_dhcp(frame)
                    .is_some_and(|message| message.op == 1 && message.chaddr.get(..6) == Some(&station.0));
                // An address that was asked for and never given may be given back, if nobody else has it.
                let gives_back = parse_dhcp(frame).is_some_and(|message| {
                    message.message_type() == kind::RELEASE && !self.owners.contains_key(&sender)
                });
                let renews = asks && last(sender);
                owns(sender) || (sender.is_unspecified() && asks) || gives_back || renews
            }
            _ => false,
        }
    }

    /// An ACK makes its client the owner of the address, and of no other.
    fn heed_server(&mut self, frame: &[u8]) {
        let Some(answer) = parse_dhcp(frame).filter(|answer| answer.op == 2) else { return };
        if !matches!(answer.message_type(), kind::ACK | kind::NAK) {
            return;
        }
        let client = client(&answer);
        let (open, void) = self.open.remove(&(client, answer.xid)).unwrap_or_default();
        if open > 1 {
            self.open.insert((client, answer.xid), (open - 1, void.saturating_sub(1)));
        }
        if answer.message_type() == kind::NAK {
            self.last.remove(&client);
        }
        if answer.message_type() == kind::NAK || answer.yiaddr.is_unspecified() {
            return;
        }
        let former = self.owners.get(&answer.yiaddr).copied();
        let now = Instant::now();
        let ended = self.ends.get(&answer.yiaddr).is_some_and(|end| *end <= now + GRACE);
        let free = ended || former.is_none_or(|former| former == client);
        self.ledger.check(Invariant::GivenBack, free, || {
            let former = former.unwrap_or(Mac::ZERO);
            format!("{} is given to {client} and still belongs to {former}", answer.yiaddr)
        });
        self.owners.retain(|_, owner| *owner != client);
        if void == 0 {
            let seconds = address_of(&answer, option::LEASE_TIME).map(u32::from);
            let lasts = Duration::from_secs(seconds.unwrap_or_default().into());
            self.owners.insert(answer.yiaddr, client);
            self.ends.insert(answer.yiaddr, now + lasts);
            self.last.insert(client, answer.yiaddr);
            self.former.remove(&(answer.yiaddr, client));
        }
    }

    /// A RELEASE or a DECLINE, whoever sends it in the VM's name, ends the ownership; the server compares both, too.
    fn given_back(&mut self, frame: &[u8]) {
        if ether_type(frame) != IPV4 || u16_at(frame, 36) != 67 {
            return;
        }
        // The parent and the next start send from any port, and a client's is what can be read.
        let mut frame = frame.to_vec();
        frame.splice(34..36, 68u16.to_be_bytes());
        let Some(message) = parse_dhcp(&frame) else { return };
        if !matches!(message.message_type(), kind::RELEASE | kind::DECLINE) {
            return;
        }
        let requested = address_of(&message, option::REQUESTED_ADDRESS);
        let address = if message.message_type() == kind::RELEASE {
            message.ciaddr
        } else {
            requested.unwrap_or(Ipv4Addr::UNSPECIFIED)
        };
        let from = client(&message);
        for (_, (open, void)) in self.open.iter_mut().filter(|((client, _), _)| *client == from) {
            *void = *open;
        }
        if self.owners.get(&address) == Some(&from) {
            self.owners.remove(&address);
            self.last.remove(&from);
        }
    }
}

/// A DHCP message, whatever ports it is from.
fn any_dhcp(frame: &[u8]) -> Option<Dhcp> {
    if ether_type(frame) != IPV4 || !matches!(u16_at(frame, 36), 67 | 68) {
        return None;
    }
    let mut frame = frame.to_vec();
    if u16_at(&frame, 36) == 67 {
        frame.splice(34..36, 68u16.to_be_bytes());
    }
    parse_dhcp(&frame)
}

/// The four bytes of an option, as an address.
fn address_of(message: &Dhcp, option: u8) -> Option<Ipv4Addr> {
    message.option(option).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()).map(Ipv4Addr::from)
}

fn client(message: &Dhcp) -> Mac {
    let [a, b, c, d, e, f, ..] = message.chaddr;
    Mac([a, b, c, d, e, f])
}

/// The beginning of a frame.
fn hex(frame: &[u8]) -> String {
    frame.iter().take(64).map(|byte| format!("{byte:02x}")).collect()
}
