//! A real guest behind the host side of macOS: the code above the calls into vmnet, with a TAP in vmnet's place.
//!
//! The stand-in has vmnet's habits: frames wait in a queue that one thread fills; another calls back as long as any are
//! left, and waits for each call; and a stopped interface calls nobody. The program under test is this one, which starts
//! the guest as `softnet run` does but opens the stand-in instead of a host side of Linux.
#![cfg(target_os = "linux")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use lab::deadline::{PATIENCE, until};
use lab::guest::{Answer, Guest, Image, Request, Vmm, command_line};
use lab::harness::{self, Test};
use lab::net::Host;
use lab::stage::SCRATCH;
use lab::{Controller, Service, SocketGuest, Softnet, hello};
use mio::{Events, Interest, Poll, Token};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::signal::Signal;
use softnet::cli::{Cli, Command as Subcommand};
use softnet::config::Config;
use softnet::host::HostLink;
use softnet::host::addresses::ListedAddresses;
use softnet::host::forwarder::Forward;
use softnet::host::tap::Tap;
use softnet::host::vmnet::{
    Interface, Parameters, RawParameters, Refusal, Waker, gateway_interface, host_link, wake_pair,
};
use softnet::link::{Cutter, FrameBatch, Link, Received, Sent};
use softnet::parent::ParentWatch;
use softnet::relay::{Controllers, Relay};
use softnet_filter::{Gateway, Port, PortConfig};

/// Makes this program the one under test; its value is the TAP in vmnet's place.
const PROGRAM: &str = "SOFTNET_TEST_VMNET";
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
const MAX_FRAME: usize = 1514;
/// The multicast group of changes to IPv4 addresses (`RTNLGRP_IPV4_IFADDR`, `linux/rtnetlink.h`).
const ADDRESS_CHANGES: u32 = 5;
/// Frames that vmnet keeps for a reader that does not come.
const QUEUE: usize = 1024;

fn main() -> ExitCode {
    if std::env::var_os(PROGRAM).is_some() {
        return program();
    }
    harness::main(vec![
        Test::new("a_guest_gets_its_lease_and_gives_it_back", a_guest_gets_its_lease_and_gives_it_back)
            .with_guests(&[Vmm::UserModeLinux]),
        Test::new("h1_an_address_that_the_host_gets_later_is_the_hosts", h1_a_later_address_is_the_hosts)
            .with_guests(&[Vmm::UserModeLinux]),
        Test::new("a_guest_without_a_machine_does_what_a_mac_is_checked_by", a_guest_without_a_machine),
    ])
}

fn a_guest_gets_its_lease_and_gives_it_back() -> Result<()> {
    beside_a_server(|host, leases| {
        let service = Service::start(host, GATEWAY, 80, "the gateway")?;
        with_a_guest(&service, leases)
    })
}

fn h1_a_later_address_is_the_hosts() -> Result<()> {
    // Both are globally reachable, so that only being the host's closes them.
    const CLOSED: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);
    const OPEN: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 10);
    beside_a_server(|host, _leases| {
        let mut guest = start_guest(&["--block=@host", &format!("--allow={OPEN}")])?;
        guest.dhcp()?;
        let mut services = Vec::new();
        for address in [CLOSED, OPEN] {
            host.ip(&format!("address add {address}/32 dev br0"))?;
            services.push(Service::start(host, address, 80, "the host")?);
        }
        let mut hears = |address| {
            let request = Request::Tcp { to: SocketAddrV4::new(address, 80), patience_ms: 1_000 };
            guest.ask(&request).map(|answer| matches!(answer, Answer::Heard(_)))
        };
        ensure!(until(|| hears(CLOSED).is_ok_and(|hears| !hears)), "the guest reaches {CLOSED}");
        ensure!(hears(OPEN)?, "the guest does not reach {OPEN}");
        ensure!(guest.power_off()?.success());
        Ok(())
    })
}

/// Runs `test` on a host with a bridge, a TAP in it and a DHCP server, and gives it the path of the server's leases.
fn beside_a_server(test: impl FnOnce(&Host, &str) -> Result<()>) -> Result<()> {
    let host = Host::main()?;
    host.bridge("br0", &format!("{GATEWAY}/24"))?;
    host.tap("tap0", "br0")?;
    beside_dnsmasq(|leases| test(&host, leases))
}

/// Runs `body` with the path of the lease file of a DHCP server on the bridge.
fn beside_dnsmasq(body: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let leases = format!("{SCRATCH}/leases");
    let mut server = Command::new("dnsmasq")
        .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file="])
        .args(["--interface=br0", "--bind-interfaces", "--dhcp-authoritative", "--no-ping"])
        .args([
            "--dhcp-range=192.168.64.2,192.168.64.254,600".to_owned(),
            format!("--dhcp-leasefile={leases}"),
        ])
        .stderr(Stdio::null())
        .spawn()
        .context("start dnsmasq")?;
    let outcome = body(&leases);
    server.kill()?;
    server.wait()?;
    outcome
}

/// Starts a guest behind the program under test with `options`.
fn start_guest(options: &[&str]) -> Result<Guest> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(PROGRAM, "tap0").arg("run").arg(Softnet::READY_FLAG).args(options).arg("--");
    command.args(command_line(&Image::prepared(Vmm::UserModeLinux)?));
    let guest = Guest::spawn(command)?;
    guest.booted()?;
    Ok(guest)
}

fn with_a_guest(service: &Service, leases: &str) -> Result<()> {
    let mut guest = start_guest(&["--release"])?;
    let lease = guest.dhcp()?;
    ensure!(lease.router == Some(GATEWAY), "the guest got {lease:?}");
    let noted =
        || std::fs::read_to_string(leases).is_ok_and(|text| text.contains(&lease.address.to_string()));
    ensure!(noted(), "the server has no note of {}", lease.address);
    match guest.ask(&Request::Tcp { to: SocketAddrV4::new(GATEWAY, 80), patience_ms: 10_000 })? {
        Answer::Heard(_) => {}
        other => bail!("the gateway is not reached: {other:?}; {}", guest.softnet.log()),
    }
    ensure!(service.seen() == [lease.address], "the gateway saw {:?}", service.seen());
    ensure!(guest.power_off()?.success());
    ensure!(until(|| !noted()), "the lease was not given back");
    Ok(())
}

/// The steps of `cargo xtask macos --verify`, with the stand-in.
fn a_guest_without_a_machine() -> Result<()> {
    let host = Host::main()?;
    host.bridge("br0", &format!("{GATEWAY}/24"))?;
    host.tap("tap0", "br0")?;
    host.tap("tap1", "br0")?;
    let service = Service::here("the gateway")?;
    beside_dnsmasq(|_| {
        let (mut controller, channel) = Controller::pair()?;
        let (mut guest, mut softnet) = tart("tap0", [0x5a, 0x94, 0xef, 0, 0, 1], Some(channel))?;
        let steps = guest.exercise(&service)?;
        ensure!(steps.len() == 6, "{steps:?}");
        let address = guest.lease()?.address;
        ensure!(service.seen() == [address, address], "the gateway saw {:?}", service.seen());
        guest.obey(&mut controller)?;

        guest.serve(22);
        let visit = std::thread::spawn(move || hello(SocketAddrV4::new(address, 22), PATIENCE));
        ensure!(guest.visitor(PATIENCE)? == Some(GATEWAY), "nobody reached the guest");
        // The end of the connection is the guest's to answer, too.
        while !visit.is_finished() {
            guest.sink(0, Duration::from_millis(10))?;
        }
        let heard = visit.join().unwrap_or_else(|_| Err(io::Error::other("the visitor panicked")))?;
        ensure!(heard == "hello from the guest", "the guest's greeting is {heard:?}");

        let (mut other, mut others) = tart("tap1", [0x5a, 0x94, 0xef, 0, 0, 2], None)?;
        let neighbour = other.dhcp()?.address;
        ensure!(
            guest.arp(neighbour)?.is_none() && !guest.ping(neighbour)?,
            "{neighbour} answers its neighbour"
        );

        let sink = UdpSocket::bind((GATEWAY, 0))?;
        sink.set_nonblocking(true)?;
        let SocketAddr::V4(to) = sink.local_addr()? else { bail!("not IPv4") };
        let sent = guest.flood(to, 1400, Duration::from_millis(200))?;
        let mut arrived = 0;
        ensure!(until(|| {
            arrived += std::iter::from_fn(|| sink.recv(&mut [0; 2000]).ok()).count() as u64;
            arrived > 0
        }));
        ensure!(arrived <= sent, "{arrived} of {sent} datagrams arrived");

        softnet.signal(Signal::SIGKILL)?;
        ensure!(!softnet.wait()?.success());
        ensure!(until(|| guest.is_closed()), "the socket outlives Softnet");
        let written = controller.rest()?;
        ensure!(written.is_empty(), "beside answers, the channel has {written:?}");
        let before = guest;
        let (mut guest, mut softnet) = tart("tap0", [0x5a, 0x94, 0xef, 0, 0, 1], None)?;
        // As after a suspension: the guest knows nothing of the new Softnet.
        guest.resume(&before);
        guest.renew()?;
        ensure!(
            guest.lease()?.address == address && guest.ping(GATEWAY)?,
            "the guest's network did not come back"
        );
        for (name, softnet) in [("first", &mut softnet), ("second", &mut others)] {
            softnet.signal(Signal::SIGINT)?;
            ensure!(softnet.wait()?.success(), "the {name} Softnet failed: {}", softnet.log());
        }
        Ok(())
    })
}

/// Starts the program under test as Tart does, in front of a guest with the address `mac`; if there is a controller, with
/// its `channel` as standard output.
fn tart(tap: &str, mac: [u8; 6], channel: Option<OwnedFd>) -> Result<(SocketGuest, Softnet)> {
    let (guest, theirs) = SocketGuest::new(mac)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.env(PROGRAM, tap).args(["--vm-fd=0", Softnet::READY_FLAG]);
    command.arg(format!("--vm-mac-address={}", guest.mac())).stdin(theirs);
    if let Some(channel) = channel {
        command.arg("--control-fd=1").stdout(channel);
    }
    let mut softnet = Softnet::spawn(command)?;
    softnet.ready()?;
    Ok((guest, softnet))
}

/// What the program does, with the stand-in.
fn program() -> ExitCode {
    let report = |outcome: Result<()>| match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{error:#}");
            1
        }
    };
    let cli = Cli::parse();
    let outcome = match cli.command {
        None => {
            let config = Config::try_from((cli.vm, cli.port)).map_err(Into::into);
            Ok(report(config.and_then(filter)).into())
        }
        Some(Subcommand::Run(args)) => softnet::run::run(*args, |config| report(filter(config))),
        Some(_) => return ExitCode::from(2),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

fn filter(config: Config) -> Result<()> {
    let parent = ParentWatch::new()?;
    let (waker, wake) = wake_pair()?;
    let mut changes = Socket::new(NETLINK_ROUTE)?;
    changes.bind(&netlink_sys::SocketAddr::new(0, 0))?;
    changes.add_membership(ADDRESS_CHANGES)?;
    let tap = std::env::var(PROGRAM)?;
    let (interface, raw) = TapInterface::start(&tap, waker)?;
    let parameters = Parameters::try_from(raw)?;
    let gateway = gateway_interface(parameters.gateway)?.context("no interface has the gateway's address")?;
    ensure!(gateway.0 == "br0", "{} has the gateway's address", gateway.0);
    // macOS reports changes by another socket.
    let changes = changes.as_fd().try_clone_to_owned()?;
    let addresses = ListedAddresses::new(changes, |_| true, parameters.gateway)?;
    let exposes = config.port.expose.clone();
    let HostLink { link, uplink, follower, host_addresses, files_by_mac, .. } =
        host_link(interface, parameters, wake, gateway, exposes, addresses, true);
    let policy = config.port.policy();
    let port = Port::new(PortConfig {
        vm_mac: config.vm_mac,
        gateway: Gateway { mac: uplink.mac, address: uplink.address, subnet: uplink.subnet },
        dhcp_server: None,
        net_type: config.port.net_type,
        policy: policy.clone(),
        mtu: uplink.mtu,
        server_files_by_mac: files_by_mac,
        host_addresses,
        on_block: config.port.on_block,
        published: Vec::new(),
        seed: 7,
    })?;
    let mut relay = Relay::new(config.vm.open()?, link, port, follower, parent, MAX_FRAME)?;
    relay.set_controllers(Controllers::new([config.port.control, None], &policy))?;
    if let Some(ready) = config.port.ready {
        writeln!(File::from(ready), "{{\"mode\":\"vmnet\",\"mtu\":{}}}", uplink.mtu)?;
    }
    relay.run()?;
    if config.port.release {
        relay.release_lease();
    }
    Ok(())
}

/// A TAP as vmnet would be it.
#[derive(Debug)]
struct TapInterface {
    shared: Arc<Shared>,
    waker: Arc<Waker>,
    stop: mio::Waker,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    tap: Mutex<Tap>,
    arrived: Mutex<VecDeque<Vec<u8>>>,
    /// Frames have arrived, or the interface stops.
    changed: Condvar,
    stopped: AtomicBool,
}

impl Shared {
    fn arrived(&self) -> MutexGuard<'_, VecDeque<Vec<u8>>> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tap(&self) -> MutexGuard<'_, Tap> {
        self.tap.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TapInterface {
    const TAP: Token = Token(0);
    const STOP: Token = Token(1);

    fn start(name: &str, waker: Waker) -> Result<(Self, RawParameters)> {
        let mut tap = Tap::attach(name, false)?;
        let poll = Poll::new()?;
        tap.register(poll.registry(), Self::TAP, Interest::READABLE)?;
        let stop = mio::Waker::new(poll.registry(), Self::STOP)?;
        let shared = Arc::new(Shared {
            tap: Mutex::new(tap),
            arrived: Mutex::default(),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
        });
        let waker = Arc::new(waker);
        let reader = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || read(&shared, poll)
        });
        let events = std::thread::spawn({
            let (shared, waker) = (Arc::clone(&shared), Arc::clone(&waker));
            move || call_back(&shared, &waker)
        });
        let raw = RawParameters {
            start_address: Some(GATEWAY.to_string()),
            subnet_mask: Some("255.255.255.0".to_owned()),
            mtu: Some(1500),
            max_packet_size: Some(MAX_FRAME as u64),
            read_max_packets: Some(256),
            write_max_packets: Some(256),
        };
        Ok((TapInterface { shared, waker, stop, threads: vec![reader, events] }, raw))
    }
}

/// Calls back as long as frames are left.
fn call_back(shared: &Shared, waker: &Waker) {
    loop {
        let waits = |arrived: &mut VecDeque<_>| arrived.is_empty() && !shared.stopped.load(Ordering::SeqCst);
        let waited = shared.changed.wait_while(shared.arrived(), waits);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        if shared.stopped.load(Ordering::SeqCst) {
            return;
        }
        waker.wake();
    }
}

/// Fills the queue.
fn read(shared: &Shared, mut poll: Poll) {
    let mut events = Events::with_capacity(4);
    let mut batch = FrameBatch::new(shared.tap().longest_received(MAX_FRAME));
    let mut cutter = Cutter::new();
    while !shared.stopped.load(Ordering::SeqCst) {
        batch.clear();
        let received = shared.tap().recv(&mut batch);
        let mut arrived = shared.arrived();
        while !batch.is_empty() {
            let count = cutter.cut(&batch, |_, pieces| {
                if arrived.len() < QUEUE {
                    arrived.push_back(pieces.concat());
                }
            });
            batch.advance(count);
        }
        drop(arrived);
        shared.changed.notify_all();
        match received {
            Ok(Received::More) => {}
            Ok(Received::Drained) => {
                if poll.poll(&mut events, None).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

impl Interface for TapInterface {
    fn read(&mut self, buffers: &mut [&mut [u8]], lengths: &mut [usize]) -> Result<usize, Refusal> {
        let mut arrived = self.shared.arrived();
        let mut count = 0;
        for (buffer, length) in buffers.iter_mut().zip(lengths) {
            let Some(frame) = arrived.pop_front() else { break };
            buffer[..frame.len()].copy_from_slice(&frame);
            *length = frame.len();
            count += 1;
        }
        Ok(count)
    }

    fn write(&mut self, frames: &[&[u8]]) -> Result<usize, Refusal> {
        let mut batch = FrameBatch::new(MAX_FRAME);
        for frame in frames {
            batch.free_space()[..frame.len()].copy_from_slice(frame);
            batch.push(frame.len());
        }
        match self.shared.tap().send(&mut batch) {
            Ok(Sent::All) => Ok(frames.len()),
            Ok(Sent::Blocked) => Err(Refusal::Exhausted),
            Err(error) => Err(Refusal::Broken(error.to_string())),
        }
    }

    fn add_forward(&mut self, _forward: &Forward) -> Result<(), Refusal> {
        Err(Refusal::Argument("a TAP forwards no ports".to_owned()))
    }

    fn remove_forward(&mut self, _forward: &Forward) -> Result<(), Refusal> {
        Err(Refusal::Argument("a TAP forwards no ports".to_owned()))
    }
}

impl Drop for TapInterface {
    /// Waits for the threads, as vmnet may: a callback that waited for the loop would hang here.
    fn drop(&mut self) {
        self.waker.close();
        // Under the lock, so that a thread that is about to wait sees it.
        let arrived = self.shared.arrived();
        self.shared.stopped.store(true, Ordering::SeqCst);
        drop(arrived);
        self.shared.changed.notify_all();
        if self.stop.wake().is_ok() {
            for thread in self.threads.drain(..) {
                let _ = thread.join();
            }
        }
    }
}
