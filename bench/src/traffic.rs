//! Traffic between the guest and the host, and how much of it arrives.
//!
//! The guest opens every connection, as a VM behind address translation must; the first byte gives the data's
//! direction.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::net::Host;

use crate::usage::Process;

/// Where the host's servers listen, on all of its addresses.
const PORT: u16 = 5201;
/// Bytes per write or read of a stream.
const CHUNK: usize = 128 << 10;
/// Payload of a small datagram or request in bytes; with its headers 106 bytes on the wire.
const SMALL: usize = 64;
/// Small datagrams that a sender sends per second.
const DATAGRAM_RATE: f64 = 100_000.0;
/// How long traffic flows before it is measured: TCP's slow start is over by then.
const WARM_UP: Duration = Duration::from_millis(300);

const UP: u8 = b'u';
const DOWN: u8 = b'd';
const ECHO: u8 = b'e';

/// The direction of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Guest to host.
    Up,
    /// Host to guest.
    Down,
}

/// One measurement of a flow.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Units that arrived per second: bytes of a stream, datagrams of a datagram flow.
    pub rate: f64,
    /// CPU seconds of the peer per unit.
    pub cpu: Option<f64>,
}

/// The units that have arrived, and whether all threads must end.
#[derive(Debug, Default)]
struct Meter {
    arrived: AtomicU64,
    over: AtomicBool,
}

impl Meter {
    fn add(&self, units: usize) {
        self.arrived.fetch_add(units as u64, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Measures the flow for `duration` after the warm-up, then ends it.
    fn measure(&self, duration: Duration, peer: Option<&Process>) -> Result<Flow> {
        thread::sleep(WARM_UP);
        let sample = || -> Result<_> {
            let cpu = peer.map(Process::cpu).transpose()?;
            Ok((Instant::now(), self.arrived.load(Ordering::Relaxed), cpu))
        };
        let before = sample()?;
        thread::sleep(duration);
        let after = sample()?;
        self.over.store(true, Ordering::Relaxed);
        let units = (after.1 - before.1) as f64;
        ensure!(units > 0.0, "nothing arrived");
        let cpu = after.2.zip(before.2).map(|(after, before)| (after - before).as_secs_f64() / units);
        Ok(Flow { rate: units / (after.0 - before.0).as_secs_f64(), cpu })
    }
}

/// The host's servers; they serve until the program ends.
#[derive(Debug)]
pub struct Servers {
    meter: Arc<std::sync::Mutex<Arc<Meter>>>,
}

impl Servers {
    /// Starts them; they listen when this returns.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn start() -> Result<Servers> {
        let meter = Arc::new(std::sync::Mutex::new(Arc::new(Meter::default())));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen")?;
        let datagrams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("listen")?;
        let shared = Arc::clone(&meter);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let meter = current(&shared);
                // A failed connection shows in the units that arrived.
                thread::spawn(move || drop(serve(stream, &meter)));
            }
        });
        let shared = Arc::clone(&meter);
        thread::spawn(move || drop(serve_datagrams(&datagrams, &shared)));
        Ok(Servers { meter })
    }

    fn renew(&self) -> Arc<Meter> {
        let meter = Arc::new(Meter::default());
        *self.meter.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::clone(&meter);
        meter
    }

    /// Measures `count` TCP streams at once from `guest` to or from `server`.
    ///
    /// # Errors
    /// If a connection cannot be made or nothing arrives.
    pub fn streams(
        &self,
        guest: &Host,
        server: Ipv4Addr,
        (direction, count): (Direction, usize),
        duration: Duration,
        peer: Option<&Process>,
    ) -> Result<Flow> {
        let meter = self.renew();
        guest.run(|| {
            let streams = (0..count).map(|_| connect(server)).collect::<Result<Vec<_>>>()?;
            thread::scope(|scope| {
                for mut stream in streams {
                    let meter = &meter;
                    scope.spawn(move || match direction {
                        Direction::Up => stream.write_all(&[UP]).and_then(|()| fill(&mut stream, meter)),
                        Direction::Down => stream.write_all(&[DOWN]).and_then(|()| drain(&mut stream, meter)),
                    });
                }
                let flow = meter.measure(duration, peer);
                // An error must end the threads too.
                meter.over.store(true, Ordering::Relaxed);
                flow
            })
        })?
    }

    /// Measures small datagrams, paced.
    ///
    /// # Errors
    /// If nothing arrives.
    pub fn datagrams(
        &self,
        guest: &Host,
        server: Ipv4Addr,
        direction: Direction,
        duration: Duration,
        peer: Option<&Process>,
    ) -> Result<Flow> {
        let meter = self.renew();
        guest.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect((server, PORT))?;
            socket.set_read_timeout(Some(Duration::from_millis(100)))?;
            thread::scope(|scope| {
                let flow = match direction {
                    Direction::Up => {
                        scope.spawn(|| pace(&meter, |payload| socket.send(payload)));
                        meter.measure(duration, peer)
                    }
                    Direction::Down => {
                        socket.send(&[DOWN])?;
                        scope.spawn(|| {
                            let mut datagram = [0; SMALL];
                            while !meter.is_over() {
                                if socket.recv(&mut datagram).is_ok() {
                                    meter.add(1);
                                }
                            }
                        });
                        meter.measure(duration, peer)
                    }
                };
                meter.over.store(true, Ordering::Relaxed);
                flow
            })
        })?
    }

    /// Round trips of one small request at a time; the times in seconds, sorted.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn round_trips(&self, guest: &Host, server: Ipv4Addr, duration: Duration) -> Result<Vec<f64>> {
        let _ = self.renew();
        let mut times = guest.run(|| -> Result<Vec<f64>> {
            let mut stream = connect(server)?;
            stream.set_nodelay(true)?;
            stream.write_all(&[ECHO])?;
            let mut message = [0; SMALL];
            let mut times = Vec::new();
            let started = Instant::now();
            while started.elapsed() < WARM_UP + duration {
                let sent = Instant::now();
                stream.write_all(&message)?;
                stream.read_exact(&mut message)?;
                if started.elapsed() > WARM_UP {
                    times.push(sent.elapsed().as_secs_f64());
                }
            }
            Ok(times)
        })??;
        ensure!(!times.is_empty(), "no answer arrived");
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

fn current(meter: &std::sync::Mutex<Arc<Meter>>) -> Arc<Meter> {
    Arc::clone(&meter.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn connect(server: Ipv4Addr) -> Result<TcpStream> {
    let patience = Duration::from_secs(10);
    let stream = TcpStream::connect_timeout(&(server, PORT).into(), patience)
        .with_context(|| format!("connect from the guest to {server}"))?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    Ok(stream)
}

fn serve(mut stream: TcpStream, meter: &Meter) -> io::Result<()> {
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    match kind[0] {
        UP => drain(&mut stream, meter),
        DOWN => fill(&mut stream, meter),
        _ => {
            stream.set_nodelay(true)?;
            let mut message = [0; SMALL];
            loop {
                stream.read_exact(&mut message)?;
                stream.write_all(&message)?;
            }
        }
    }
}

fn fill(stream: &mut TcpStream, meter: &Meter) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    while !meter.is_over() {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

fn drain(stream: &mut TcpStream, meter: &Meter) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while !meter.is_over() {
        match stream.read(&mut chunk)? {
            0 => break,
            length => meter.add(length),
        }
    }
    Ok(())
}

fn serve_datagrams(socket: &UdpSocket, shared: &std::sync::Mutex<Arc<Meter>>) -> io::Result<()> {
    let mut datagram = [0; SMALL];
    loop {
        let (length, peer): (usize, SocketAddr) = socket.recv_from(&mut datagram)?;
        let meter = current(shared);
        if (length, datagram[0]) == (1, DOWN) {
            let socket = socket.try_clone()?;
            thread::spawn(move || pace(&meter, |payload| socket.send_to(payload, peer)));
        } else {
            meter.add(1);
        }
    }
}

/// Sends at [`DATAGRAM_RATE`], a few datagrams at a time, until the meter ends the flow.
fn pace(meter: &Meter, send: impl Fn(&[u8]) -> io::Result<usize>) {
    let started = Instant::now();
    let mut sent = 0_u64;
    while !meter.is_over() {
        let due = (started.elapsed().as_secs_f64() * DATAGRAM_RATE) as u64;
        // Datagrams that could not be sent in time are not sent later: a burst would measure queues.
        sent = sent.max(due.saturating_sub(200));
        while sent < due {
            // The datagram is lost if the queue is full.
            let _ = send(&[0x5a; SMALL]);
            sent += 1;
        }
        thread::sleep(Duration::from_micros(200));
    }
}
