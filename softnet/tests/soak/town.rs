//! Servers of the world, and one of the host, that guests of a run depend on or abuse.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::deadline::until;
use lab::net::{INTERNET, INTERNET_TOO, World};

use crate::ledger::{Invariant, Ledger};
use crate::words;

/// The host's address towards the world, as [`World`] has it.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// Where nobody answers, and nobody says so either.
pub const NOWHERE: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
/// A server at [`INTERNET`] that sends much for one datagram.
pub const FLOOD: u16 = 9;
/// A server there that goes on talking to whoever has once talked to it.
pub const DRIP: u16 = 7000;
/// The first of the ports there from which the host's service is spoken to, and how many there are.
pub const PEERS: (u16, u16) = (40_000, 16);
/// The port of the host's own service.
pub const SERVICE: u16 = 51_820;

/// What is for the host's service, and what is for a VM with an exposed port.
pub const FOR_HOST: &[u8] = b"for the service of the host";
pub const FOR_EXPOSED: &[u8] = b"for the VM behind this port";
/// Before the MAC and the address that a dripping server was told.
pub const DROP: &[u8] = b"drop for ";

/// Datagrams of one flood: several times what a TAP's queue holds.
const FLOOD_SIZE: usize = 4000;
/// How long, and how often, a dripping server talks.
const DRIPS: Duration = Duration::from_secs(30);
const DRIP_EVERY: Duration = Duration::from_millis(250);

/// The servers.
#[derive(Debug)]
pub struct Town {
    /// What the peers have sent to the host's service, and what came there.
    sent: Arc<AtomicU64>,
    came: Arc<AtomicU64>,
}

impl Town {
    /// Starts them all; the network's resolver asks the one of the town from here on.
    pub fn build(world: &World) -> Result<Self> {
        std::fs::write("/etc/resolv.conf", format!("nameserver {INTERNET_TOO}\n"))
            .context("name the town's resolver")?;
        let internet = &world.internet;
        internet.ip(&format!("route add blackhole {NOWHERE}/32"))?;
        let (udp, tcp) = internet.run(|| {
            io::Result::Ok((UdpSocket::bind((INTERNET_TOO, 53))?, TcpListener::bind((INTERNET_TOO, 53))?))
        })??;
        std::thread::spawn(move || resolve(&udp));
        std::thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                std::thread::spawn(move || resolve_stream(stream));
            }
        });
        let flood = internet.run(|| UdpSocket::bind((INTERNET, FLOOD)))??;
        std::thread::spawn(move || {
            serve(&flood, |_, peer| {
                let much = [0; 1200];
                for _ in 0..FLOOD_SIZE {
                    // What the kernel has no room for is lost, as it should be.
                    let _ = flood.send_to(&much, peer);
                }
            });
        });
        let drip = internet.run(|| UdpSocket::bind((INTERNET, DRIP)))??;
        drip.set_read_timeout(Some(DRIP_EVERY))?;
        std::thread::spawn(move || drip_on(&drip));
        let town = Self { sent: Arc::default(), came: Arc::default() };
        let service = world.main.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVICE)))??;
        let came = Arc::clone(&town.came);
        std::thread::spawn(move || {
            serve(&service, |said, _| {
                if said == FOR_HOST {
                    came.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        for port in PEERS.0..PEERS.0 + PEERS.1 {
            let peer = internet.run(|| UdpSocket::bind((INTERNET, port)))??;
            let sent = Arc::clone(&town.sent);
            std::thread::spawn(move || speak_to_host(&peer, &sent));
        }
        Ok(town)
    }

    /// Whether the host's service got all that was sent to it.
    pub fn conclude(&self, ledger: &mut Ledger) {
        let (mut sent, mut came) = (0, 0);
        let all = until(|| {
            (sent, came) = (self.sent.load(Ordering::Relaxed), self.came.load(Ordering::Relaxed));
            sent == came
        });
        if sent > 0 {
            ledger.check(Invariant::Shadow, all, || {
                format!("the host's service got {came} of {sent} datagrams")
            });
        }
    }
}

/// Hands each datagram to `work`, until the program ends.
fn serve(socket: &UdpSocket, mut work: impl FnMut(&[u8], SocketAddr)) {
    let mut buffer = [0; 2048];
    loop {
        // An ICMP error of somebody else's making is none of this server's.
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            work(buffer.get(..length).unwrap_or_default(), peer);
        }
    }
}

fn resolve(socket: &UdpSocket) {
    serve(socket, |question, peer| {
        if let Some(answer) = words::answer(question, INTERNET_TOO) {
            let _ = socket.send_to(&answer, peer);
        }
    });
}

fn resolve_stream(mut stream: TcpStream) -> Option<()> {
    loop {
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut question).ok()?;
        let Some(answer) = words::answer(&question, INTERNET_TOO) else { continue };
        let length = u16::try_from(answer.len()).ok()?.to_be_bytes();
        stream.write_all(&[&length[..], &answer].concat()).ok()?;
    }
}

/// Talks to each who has told it a name, under that name.
fn drip_on(socket: &UdpSocket) {
    let mut listeners: HashMap<SocketAddr, (Vec<u8>, Instant)> = HashMap::new();
    let mut dripped = Instant::now();
    let mut buffer = [0; 2048];
    loop {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let said = buffer.get(..length).unwrap_or_default().to_vec();
            let _ = socket.send_to(&said, peer);
            listeners.insert(peer, (said, Instant::now() + DRIPS));
        }
        let now = Instant::now();
        if now >= dripped + DRIP_EVERY {
            dripped = now;
            listeners.retain(|_, (_, until)| now < *until);
            for (peer, (said, _)) in &listeners {
                let _ = socket.send_to(said, peer);
            }
        }
    }
}

/// Speaks to the host whenever a VM has spoken to this peer: `shadow`, and the port that it spoke from.
fn speak_to_host(socket: &UdpSocket, sent: &AtomicU64) {
    serve(socket, |said, _| {
        let port = std::str::from_utf8(said).ok().and_then(|said| said.strip_prefix("shadow ")?.parse().ok());
        let Some(port) = port else { return };
        let what = if port == SERVICE { FOR_HOST } else { FOR_EXPOSED };
        if socket.send_to(what, (UPLINK, port)).is_ok() && port == SERVICE {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    });
}
