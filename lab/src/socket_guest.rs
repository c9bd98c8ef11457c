//! A guest without a machine: its network stack is here, made by hand, at the VM's end of Softnet's socket.
//!
//! It runs on every system, macOS included, where no lab can be built and no guest need be booted: DHCP, ARP, ping, UDP and
//! TCP against the real host behind Softnet. While it waits for anything, it answers ARP and ping as any guest does.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::json;

use crate::deadline::Deadline;
use crate::wire::{
    ARP, Arp, Dhcp, IPV4, Ipv4, Mac, Transport, address_at, checksum, dhcp_kind as kind,
    dhcp_option as option, ether_type, icmp, parse_dhcp, source, u16_at, udp,
};
use crate::{Controller, Service};

/// Bytes of the socket's buffers, as Tart sets them.
const BUFFER: usize = 1 << 20;
/// How long to wait for one answer before asking again.
const RETRY: Duration = Duration::from_secs(1);
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// TCP's flags.
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What DHCP gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The DHCP server's.
    pub server: Ipv4Addr,
    /// The default router's.
    pub router: Ipv4Addr,
    /// For how many seconds.
    pub seconds: u32,
}

/// The guest.
#[derive(Debug)]
pub struct SocketGuest {
    socket: UnixDatagram,
    mac: Mac,
    xid: u32,
    lease: Option<Lease>,
    router_mac: Mac,
    port: u16,
    /// Answered with a greeting.
    served: Option<u16>,
    /// Who has connected to the served port.
    visitors: Vec<Ipv4Addr>,
}

impl SocketGuest {
    /// A guest with the address `mac`, and Softnet's end of its socket.
    ///
    /// # Errors
    /// If the system gives no sockets.
    pub fn new(mac: [u8; 6]) -> Result<(Self, OwnedFd)> {
        let (socket, theirs) = UnixDatagram::pair()?;
        for end in [&socket, &theirs] {
            setsockopt(end, sockopt::SndBuf, &BUFFER)?;
            setsockopt(end, sockopt::RcvBuf, &(4 * BUFFER))?;
        }
        let guest = Self {
            socket,
            mac: Mac(mac),
            xid: u32::from_be_bytes([mac[2], mac[3], mac[4], mac[5]]),
            lease: None,
            router_mac: Mac::ZERO,
            port: 40_000,
            served: None,
            visitors: Vec::new(),
        };
        Ok((guest, theirs.into()))
    }

    /// Its MAC address.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The lease that it holds.
    ///
    /// # Errors
    /// If it holds none.
    pub fn lease(&self) -> Result<Lease> {
        self.lease.context("the guest has no lease")
    }

    /// Gets a lease by the four messages, and the router's MAC address by ARP.
    ///
    /// # Errors
    /// If that takes longer than the usual patience.
    pub fn dhcp(&mut self) -> Result<Lease> {
        self.lease = None;
        let limit = Deadline::default();
        while !limit.left().is_zero() {
            self.xid = self.xid.wrapping_add(1);
            let discover = Dhcp::client(kind::DISCOVER, self.xid, self.mac);
            let Some(offer) = self.ask_dhcp(&discover.broadcast(), kind::OFFER)? else { continue };
            let server = address(&offer, option::SERVER).context("an offer without a server")?;
            let request = Dhcp::client(kind::REQUEST, self.xid, self.mac)
                .with(option::REQUESTED_ADDRESS, &offer.yiaddr.octets())
                .with(option::SERVER, &server.octets());
            let Some(ack) = self.ask_dhcp(&request.broadcast(), kind::ACK)? else { continue };
            let lease = lease_of(&ack, server)?;
            self.lease = Some(lease);
            self.router_mac = self.arp(lease.router)?.context("the router does not answer ARP")?;
            return Ok(lease);
        }
        bail!("no lease");
    }

    /// Renews the lease with its server, without asking for another, as a guest does that was suspended. Returns how long
    /// that took.
    ///
    /// # Errors
    /// If the server does not acknowledge before the patience has ended.
    pub fn renew(&mut self) -> Result<Duration> {
        let lease = self.lease()?;
        self.xid = self.xid.wrapping_add(1);
        let request = Dhcp { ciaddr: lease.address, ..Dhcp::client(kind::REQUEST, self.xid, self.mac) };
        let datagram = udp((lease.address, 68), (lease.server, 67), &request.bytes());
        let frame = Ipv4::new(lease.address, lease.server, datagram).frame(self.router_mac, self.mac);
        let (started, limit) = (Instant::now(), Deadline::default());
        while !limit.left().is_zero() {
            if let Some(ack) = self.ask_dhcp(&frame, kind::ACK)? {
                self.lease = Some(lease_of(&ack, lease.server)?);
                return Ok(started.elapsed());
            }
        }
        bail!("the lease of {} was not renewed", lease.address);
    }

    /// Goes on with the lease of `earlier`, as a guest does that was suspended behind another Softnet.
    pub fn resume(&mut self, earlier: &Self) {
        self.lease = earlier.lease;
        self.router_mac = earlier.router_mac;
    }

    fn ask_dhcp(&mut self, frame: &[u8], kind: u8) -> Result<Option<Dhcp>> {
        self.send(frame)?;
        let (xid, deadline) = (self.xid, Deadline::after(RETRY));
        let is_answer = |answer: &Dhcp| answer.op == 2 && answer.xid == xid && answer.message_type() == kind;
        self.wait(deadline, |frame| parse_dhcp(frame).filter(is_answer))
    }

    /// The MAC address of `target`, if it answers within a few seconds.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn arp(&mut self, target: Ipv4Addr) -> Result<Option<Mac>> {
        let request = Arp::request(self.mac, self.lease()?.address, target).frame();
        self.ask(&request, |frame| {
            let is_answer =
                ether_type(frame) == ARP && u16_at(frame, 20) == 2 && address_at(frame, 28) == target;
            is_answer.then(|| frame.get(22..28)?.first_chunk().copied().map(Mac))?
        })
    }

    /// Whether `target` answers a ping within a few seconds.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn ping(&mut self, target: Ipv4Addr) -> Result<bool> {
        let own = self.lease()?.address;
        self.port += 1;
        let rest = [&self.port.to_be_bytes()[..], &[0, 1], b"softnet"].concat();
        let request = self.packet(target, icmp(8, 0, &rest))?;
        let answer = self.ask(&request, |frame| {
            let ip = ip_to(own, frame, ICMP)?;
            (address_at(frame, 26) == target && ip.first() == Some(&0) && ip.get(4..) == Some(&rest))
                .then_some(())
        })?;
        Ok(answer.is_some())
    }

    /// The answer to a datagram to `to`, if there is one within a few seconds.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn udp(&mut self, to: SocketAddrV4, payload: &[u8]) -> Result<Option<Vec<u8>>> {
        let (own, port) = (self.lease()?.address, self.next_port());
        let request = self.packet(*to.ip(), udp((own, port), (*to.ip(), to.port()), payload))?;
        self.ask(&request, |frame| {
            let datagram = ip_to(own, frame, UDP)?;
            let is_answer = u16_at(datagram, 0) == to.port() && u16_at(datagram, 2) == port;
            is_answer.then(|| datagram.get(8..).map(<[u8]>::to_vec))?
        })
    }

    /// Connects to `to`, and returns everything that it sends until it closes.
    ///
    /// # Errors
    /// If there is no connection, or it is reset.
    pub fn tcp(&mut self, to: SocketAddrV4) -> Result<Vec<u8>> {
        let (own, port) = (self.lease()?.address, self.next_port());
        let here = SocketAddrV4::new(own, port);
        let mut sequence = u32::from(port) << 8;
        let syn = self.packet(*to.ip(), segment(here, to, sequence, 0, SYN, &[]))?;
        let answer = self.ask(&syn, |frame| Segment::of(frame, to, here))?;
        let answer = answer.with_context(|| format!("{to} does not answer"))?;
        ensure!(answer.flags & (SYN | ACK) == SYN | ACK, "{to} refuses the connection");
        sequence = sequence.wrapping_add(1);
        let mut next = answer.sequence.wrapping_add(1);
        let mut heard = Vec::new();
        let deadline = Deadline::default();
        loop {
            let ack = self.packet(*to.ip(), segment(here, to, sequence, next, ACK, &[]))?;
            self.send(&ack)?;
            let Some(segment_heard) = self.wait(deadline, |frame| Segment::of(frame, to, here))? else {
                bail!("{to} neither sends nor closes");
            };
            ensure!(segment_heard.flags & RST == 0, "{to} resets the connection");
            if segment_heard.sequence != next {
                continue;
            }
            next = next.wrapping_add(segment_heard.payload.len() as u32);
            heard.extend(segment_heard.payload);
            if segment_heard.flags & FIN != 0 {
                let fin = segment(here, to, sequence, next.wrapping_add(1), FIN | ACK, &[]);
                let fin = self.packet(*to.ip(), fin)?;
                self.send(&fin)?;
                return Ok(heard);
            }
        }
    }

    /// From now on greets whoever connects to `port`, while it waits for anything.
    pub fn serve(&mut self, port: u16) {
        self.served = Some(port);
        self.visitors.clear();
    }

    /// Waits until somebody has connected to the served port, and says who; `None` if nobody does within `patience`.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn visitor(&mut self, patience: Duration) -> Result<Option<Ipv4Addr>> {
        let deadline = Deadline::after(patience);
        while self.visitors.is_empty() && !deadline.left().is_zero() {
            self.wait(Deadline::after(deadline.left().min(Duration::from_millis(20))), |_| None::<()>)?;
        }
        Ok(self.visitors.pop())
    }

    /// Sends datagrams of `len` bytes to `to` for `time`, and returns how many.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn flood(&mut self, to: SocketAddrV4, len: usize, time: Duration) -> Result<u64> {
        let (own, port) = (self.lease()?.address, self.next_port());
        let frame = self.packet(*to.ip(), udp((own, port), (*to.ip(), to.port()), &vec![0; len]))?;
        let (started, mut count) = (Instant::now(), 0);
        while started.elapsed() < time {
            self.send(&frame)?;
            count += 1;
        }
        Ok(count)
    }

    /// Receives for `time`, and returns how many datagrams with more than `len` bytes arrived.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn sink(&mut self, len: usize, time: Duration) -> Result<u64> {
        let mut count = 0;
        self.wait(Deadline::after(time), |frame| {
            count += u64::from(frame.len() > len);
            None::<()>
        })?;
        Ok(count)
    }

    /// Whether Softnet's end is closed. A datagram socket tells only who sends.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        match self.socket.send(&[0; 14]) {
            Ok(_) => false,
            Err(error) => !is_full(&error),
        }
    }

    fn next_port(&mut self) -> u16 {
        self.port += 1;
        self.port
    }

    fn packet(&self, to: Ipv4Addr, transport: Transport) -> Result<Vec<u8>> {
        Ok(Ipv4::new(self.lease()?.address, to, transport).frame(self.router_mac, self.mac))
    }

    /// Sends `frame` up to five times, until `answer` finds what it looks for.
    fn ask<T>(&mut self, frame: &[u8], mut answer: impl FnMut(&[u8]) -> Option<T>) -> Result<Option<T>> {
        for _ in 0..5 {
            self.send(frame)?;
            if let Some(found) = self.wait(Deadline::after(RETRY), &mut answer)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Receives until `found` is `Some` or the deadline has passed, and answers what any guest answers.
    fn wait<T>(
        &mut self,
        deadline: Deadline,
        mut found: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut buffer = vec![0; 66_000];
        loop {
            let left = deadline.left();
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let len = match self.socket.recv(&mut buffer) {
                Ok(len) => len,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(error) => return Err(error).context("receive a frame from Softnet"),
            };
            let frame = &buffer[..len];
            self.answer(frame)?;
            if let Some(found) = found(frame) {
                return Ok(Some(found));
            }
        }
    }

    /// ARP requests for its address, pings, and connections to the served port.
    fn answer(&mut self, frame: &[u8]) -> Result<()> {
        let Some(Lease { address: own, .. }) = self.lease else { return Ok(()) };
        if ether_type(frame) == ARP && u16_at(frame, 20) == 1 && address_at(frame, 38) == own {
            let reply = Arp::reply(self.mac, own, source(frame), address_at(frame, 28)).frame();
            return self.send(&reply);
        }
        let peer = address_at(frame, 26);
        if let Some([8, _, _, _, rest @ ..]) = ip_to(own, frame, ICMP) {
            let reply = self.packet(peer, icmp(0, 0, rest))?;
            return self.send(&reply);
        }
        let (Some(port), Some(bytes)) = (self.served, ip_to(own, frame, TCP)) else { return Ok(()) };
        let (here, there) = (SocketAddrV4::new(own, port), SocketAddrV4::new(peer, u16_at(bytes, 0)));
        let Some(heard) = Segment::of(frame, there, here) else { return Ok(()) };
        // One greeting and the end in answer to the handshake's end; whatever comes then is only acknowledged.
        const START: u32 = 7;
        let greeting = b"hello from the guest\n";
        let next = heard
            .sequence
            .wrapping_add(heard.payload.len() as u32 + u32::from(heard.flags & (SYN | FIN) != 0));
        let reply = match heard.flags & (SYN | ACK | FIN | RST) {
            SYN => segment(here, there, START, next, SYN | ACK, &[]),
            ACK if heard.acknowledged == START + 1 => {
                self.visitors.push(peer);
                segment(here, there, START + 1, next, ACK | FIN, greeting)
            }
            flags if flags & FIN != 0 => segment(here, there, heard.acknowledged, next, ACK, &[]),
            _ => return Ok(()),
        };
        let reply = self.packet(peer, reply)?;
        self.send(&reply)
    }

    /// Sends, waiting while Softnet's queue is full. macOS does not block then, and nothing tells when there is room again.
    fn send(&self, frame: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(frame) {
                Ok(_) => return Ok(()),
                Err(error) if is_full(&error) => std::thread::sleep(Duration::from_micros(50)),
                Err(error) => return Err(error).context("send a frame to Softnet"),
            }
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENOBUFS | nix::libc::EAGAIN | nix::libc::EINTR))
}

/// What follows the IP header of a frame to `own` with `protocol`.
fn ip_to(own: Ipv4Addr, frame: &[u8], protocol: u8) -> Option<&[u8]> {
    let ip = frame.get(14..)?;
    let is_it = ether_type(frame) == IPV4 && ip.get(9) == Some(&protocol) && address_at(ip, 16) == own;
    let whole = ip.get(..usize::from(u16_at(ip, 2)))?;
    is_it.then(|| whole.get(usize::from(ip[0] & 0x0f) * 4..))?
}

fn address(message: &Dhcp, code: u8) -> Option<Ipv4Addr> {
    message.option(code)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

fn lease_of(ack: &Dhcp, server: Ipv4Addr) -> Result<Lease> {
    let seconds = ack.option(option::LEASE_TIME).and_then(|value| value.first_chunk::<4>());
    Ok(Lease {
        address: ack.yiaddr,
        server,
        router: address(ack, option::ROUTER).context("a lease without a router")?,
        seconds: u32::from_be_bytes(*seconds.context("a lease without a time")?),
    })
}

/// A TCP segment that was received.
#[derive(Debug)]
struct Segment {
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    payload: Vec<u8>,
}

impl Segment {
    /// The one in `frame`, if it goes from `from` to `to`.
    fn of(frame: &[u8], from: SocketAddrV4, to: SocketAddrV4) -> Option<Self> {
        let bytes = ip_to(*to.ip(), frame, TCP)?;
        let is_it = address_at(frame, 26) == *from.ip()
            && (u16_at(bytes, 0), u16_at(bytes, 2)) == (from.port(), to.port());
        let number = |at: usize| bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four));
        is_it.then_some(())?;
        Some(Self {
            sequence: number(4)?,
            acknowledged: number(8)?,
            flags: *bytes.get(13)?,
            payload: bytes.get(usize::from(bytes[12] >> 4) * 4..)?.to_vec(),
        })
    }
}

fn segment(
    from: SocketAddrV4,
    to: SocketAddrV4,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    payload: &[u8],
) -> Transport {
    let mut bytes = Vec::new();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(acknowledged.to_be_bytes());
    bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload);
    let len = (bytes.len() as u16).to_be_bytes();
    let pseudo = [&from.ip().octets()[..], &to.ip().octets(), &[0, TCP], &len].concat();
    let sum = checksum(&[pseudo.as_slice(), &bytes]);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    (TCP, bytes)
}

impl SocketGuest {
    /// What a guest does first, each against the real host: `service` runs in it and listens on the router's address.
    /// Returns a line for each step.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn exercise(&mut self, service: &Service) -> Result<Vec<String>> {
        let lease = self.dhcp()?;
        let to = SocketAddrV4::new(lease.router, service.at.port());
        let mut steps =
            vec![format!("lease: {} for {} s from {}", lease.address, lease.seconds, lease.server)];
        steps.push(format!("ARP: {} has {}", lease.router, self.router_mac));
        ensure!(self.ping(lease.router)?, "{} does not answer a ping", lease.router);
        steps.push(format!("ping: {} answers", lease.router));
        let greeting = format!("to {}\n", lease.address).into_bytes();
        let answer =
            self.udp(to, b"anybody there?")?.with_context(|| format!("{to} does not answer by UDP"))?;
        ensure!(answer.ends_with(&greeting), "the datagram from {to} is {answer:?}");
        steps.push(format!("UDP: {to} answers"));
        let heard = self.tcp(to)?;
        ensure!(heard.ends_with(&greeting), "the connection to {to} brought {heard:?}");
        steps.push(format!("TCP: {to} answers and closes"));
        let renewed = self.renew()?;
        ensure!(self.lease()?.address == lease.address, "renewing changed the address");
        steps.push(format!("renewal: after {} ms", renewed.as_millis()));
        Ok(steps)
    }

    /// Follows a policy that `controller` replaces while the guest runs, and that is empty at the start. Returns what was
    /// seen.
    ///
    /// # Errors
    /// The first step that fails.
    pub fn obey(&mut self, controller: &mut Controller) -> Result<String> {
        let router = self.lease()?.router;
        let policy = |block: &[&str]| json!({"allow": [], "block": block, "ruleCount": block.len()});
        let (open, closed) = (policy(&[]), policy(&[&format!("{router}/32")]));
        let shown = controller.get()?;
        ensure!(shown == open, "the policy is {shown}");
        let set = controller.set(&[], &[&router.to_string()])?;
        ensure!(set == closed, "the policy is {set}");
        ensure!(!self.ping(router)?, "{router} answers a ping, though it is blocked");
        let refused = controller.set(&["nowhere"], &[])?;
        ensure!(refused["code"] == -32602, "an entry that is none is answered with {refused}");
        let shown = controller.get()?;
        ensure!(shown == closed, "a refused policy changed it to {shown}");
        let set = controller.set(&[], &[])?;
        ensure!(set == open, "the policy is {set}");
        ensure!(self.ping(router)?, "{router} does not answer a ping, though it is not blocked any more");
        Ok(format!("{router} was blocked and opened again"))
    }
}
