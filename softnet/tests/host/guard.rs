//! A worker that the VM has taken over (H10): the test writes into its TAP what it likes, past the filter.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::deadline::Deadline;
use lab::net::Host;
use lab::stage::run;
use lab::wire::{
    ARP, Arp, Dhcp, Mac, address_at, carries, dhcp_kind as kind, dhcp_option as option, ether_type, source,
    udp,
};
use lab::{PacketSocket, Segment};
use nix::unistd::Pid;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use softnet_offload::vnet::VNET_HEADER_LEN;
use std::os::fd::AsFd;

use crate::fixture::{
    Bridge, GATEWAY, INTERNET, PORT, SOFTNET, Vm, World, family, is_leased, leases, mac, routed, xid,
};

/// The TAP of a VM as its worker holds it.
struct Tap(OwnedFd);

impl Tap {
    fn steal(vm: &Vm) -> Result<Self> {
        let worker = vm.worker()?;
        let number = std::fs::read_dir(format!("/proc/{worker}/fd"))?
            .flatten()
            .find(|entry| {
                std::fs::read_link(entry.path()).is_ok_and(|target| target == Path::new("/dev/net/tun"))
            })
            .and_then(|entry| entry.file_name().to_str()?.parse().ok())
            .context("no TAP")?;
        let process = rustix::process::Pid::from_raw(worker.as_raw()).context("no pid")?;
        let process = pidfd_open(process, PidfdFlags::empty())?;
        Ok(Self(pidfd_getfd(process, number, PidfdGetfdFlags::empty()).context("take the worker's TAP")?))
    }

    fn write(&self, frame: &[u8]) -> Result<()> {
        let bytes = [&[0; VNET_HEADER_LEN], frame].concat();
        // A frame that the kernel refuses at once is refused as well.
        let _ = rustix::io::write(&self.0, &bytes);
        Ok(())
    }
}

/// A taken-over worker beside a victim, and what arrives at the host's end of their bridge.
struct Scene {
    world: World,
    attacker: Vm,
    address: Ipv4Addr,
    gateway: Mac,
    tap: Tap,
    victim: Vm,
    victims: Ipv4Addr,
    bridge: PacketSocket,
}

impl Scene {
    fn build() -> Result<Self> {
        let world = World::build()?;
        let (victim, victims) = Vm::leased(mac(1), &[])?;
        let (attacker, address) = Vm::leased(mac(2), &[])?;
        let gateway = attacker.gateway_mac(address)?;
        // The host knows both.
        victim.gateway_mac(victims)?;
        let tap = Tap::steal(&attacker)?;
        let bridge = PacketSocket::open("softnet0")?;
        Ok(Self { world, attacker, address, gateway, tap, victim, victims, bridge })
    }

    /// Writes these, and gives what the host got of all that was sent until then.
    fn arrive(&self, frames: &[Vec<u8>]) -> Result<Vec<Vec<u8>>> {
        for frame in frames {
            self.tap.write(frame)?;
        }
        // What it may say in its own name comes behind.
        let own = udp((self.address, 9), (GATEWAY, 9), b"in its own name");
        self.tap.write(&routed(&self.attacker, self.gateway, self.address, GATEWAY, own))?;
        let (mut seen, deadline) = (Vec::new(), Deadline::default());
        while deadline.readable(self.bridge.as_fd()) {
            let frame = self.bridge.try_recv()?;
            if carries(&frame, b"in its own name") {
                return Ok(seen);
            }
            seen.push(frame);
        }
        anyhow::bail!("not even what the VM may send arrives")
    }

    fn neighbour(&self, address: Ipv4Addr) -> Result<String> {
        self.world.main.ip(&format!("neigh show {address} dev softnet0"))
    }
}

pub fn h10_a_taken_over_worker_sends_from_no_other_mac() -> Result<()> {
    let scene = Scene::build()?;
    let learnt = |mac: Mac| -> Result<String> {
        let all = run("bridge", &["fdb", "show", "br", "softnet0"])?;
        Ok(all.lines().filter(|line| line.starts_with(&mac.to_string())).collect())
    };
    let (stranger, before) = (Mac([2, 9, 9, 9, 9, 9]), learnt(scene.victim.mac)?);
    ensure!(!before.is_empty(), "the bridge has not learnt the victim: the test shows nothing");
    let mut frames = Vec::new();
    for forged in [stranger, scene.victim.mac, scene.gateway] {
        let datagram = udp((scene.address, 9), (GATEWAY, 9), b"forged");
        frames.push(lab::wire::Ipv4::new(scene.address, GATEWAY, datagram).frame(scene.gateway, forged));
        frames.push(Arp::request(forged, scene.address, GATEWAY).frame());
        frames.push(lab::wire::ethernet(Mac::BROADCAST, forged, 0x88b5, b"forged"));
    }
    for frame in scene.arrive(&frames)? {
        let is_forged = [stranger, scene.victim.mac, scene.gateway].contains(&source(&frame));
        ensure!(!is_forged, "a frame from {} arrived: {frame:02x?}", source(&frame));
    }
    ensure!(learnt(stranger)?.is_empty(), "the bridge learnt {stranger}");
    ensure!(
        learnt(scene.victim.mac)? == before,
        "the bridge moved the victim: {}",
        learnt(scene.victim.mac)?
    );
    Ok(())
}

pub fn h10_a_taken_over_worker_claims_no_other_address() -> Result<()> {
    let scene = Scene::build()?;
    let before = scene.neighbour(scene.victims)?;
    ensure!(before.contains(&scene.victim.mac.to_string()), "the host does not know the victim: {before}");
    let own = scene.attacker.mac;
    let nobodys = Ipv4Addr::new(192, 168, 64, 199);
    let mut frames = Vec::new();
    for claimed in [scene.victims, nobodys, GATEWAY] {
        frames.push(Arp::request(own, claimed, GATEWAY).frame());
        frames.push(Arp::reply(own, claimed, scene.gateway, GATEWAY).frame());
        frames.push(Arp::request(own, claimed, claimed).frame());
    }
    // The own address for another's hardware.
    let mut arp = Arp::reply(own, scene.address, scene.gateway, GATEWAY);
    arp.sender_mac = scene.victim.mac;
    frames.push(lab::wire::ethernet(scene.gateway, own, ARP, &arp.bytes()));
    for frame in scene.arrive(&frames)? {
        let is_claim = ether_type(&frame) == ARP && source(&frame) == own;
        let right = address_at(&frame, 28) == scene.address && frame.get(22..28) == Some(&own.0[..]);
        ensure!(!is_claim || right, "a claim arrived: {frame:02x?}");
    }
    let after = scene.neighbour(scene.victims)?;
    ensure!(
        after.contains(&scene.victim.mac.to_string()),
        "the host's neighbour was {before} and is {after}"
    );
    ensure!(!scene.neighbour(nobodys)?.contains(&own.to_string()));
    Ok(())
}

pub fn h10_a_taken_over_worker_sends_from_no_other_address() -> Result<()> {
    let scene = Scene::build()?;
    let outside = scene.world.internet.run(|| PacketSocket::open("eth0"))??;
    let mut frames = Vec::new();
    for forged in [scene.victims, Ipv4Addr::new(192, 168, 64, 199), Ipv4Addr::new(1, 2, 3, 4), GATEWAY] {
        for to in [GATEWAY, INTERNET] {
            let datagram = udp((forged, 9), (to, PORT), b"forged");
            frames.push(lab::wire::Ipv4::new(forged, to, datagram).frame(scene.gateway, scene.attacker.mac));
        }
    }
    let arrived = scene.arrive(&frames)?;
    let forged = arrived.iter().find(|frame| carries(frame, b"forged"));
    ensure!(forged.is_none(), "arrived: {forged:02x?}");
    while let Ok(frame) = outside.try_recv() {
        ensure!(!carries(&frame, b"forged"), "left the host: {frame:02x?}");
    }
    Ok(())
}

/// DHCP names a VM by what stands inside the message.
pub fn h10_a_taken_over_worker_gives_no_other_lease_back() -> Result<()> {
    let scene = Scene::build()?;
    let release = Dhcp { ciaddr: scene.victims, ..Dhcp::client(kind::RELEASE, xid(), scene.victim.mac) }
        .with(option::SERVER, &GATEWAY.octets());
    let own = scene.attacker.mac;
    let frames = [
        release.packet(scene.address, GATEWAY).frame(scene.gateway, own),
        release.packet(scene.victims, GATEWAY).frame(scene.gateway, own),
        release.packet(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST).frame(Mac::BROADCAST, own),
        release.broadcast(),
    ];
    scene.arrive(&frames)?;
    // The server answers in order.
    let other = Vm::start(mac(3), &[])?;
    other.lease(None)?;
    ensure!(is_leased(scene.victim.mac, scene.victims), "the victim's lease was given back:\n{}", leases());
    scene.victim.told(kind::NAK, 0, Duration::from_millis(1))?;
    Ok(())
}

/// The worker says that it was given an address that no server gave: here it is made to believe it.
pub fn h10_a_claim_that_the_server_knows_nothing_of_ends_no_other_vm() -> Result<()> {
    let _world = World::build()?;
    let (vm, address) = Vm::leased(mac(1), &[])?;
    let gateway = vm.gateway_mac(address)?;
    let wanted = Ipv4Addr::new(192, 168, 64, 150);
    let rules = "add table bridge lab; add chain bridge lab in { type filter hook prerouting priority -400; };\
                 add rule bridge lab in udp dport 67 drop";
    run("nft", &[rules])?;
    let xid = xid();
    let request = Dhcp::client(kind::REQUEST, xid, vm.mac)
        .with(option::REQUESTED_ADDRESS, &wanted.octets())
        .with(option::SERVER, &GATEWAY.octets());
    ensure!(vm.send_judged(&[request.broadcast()])? == 1);
    let mut answer = Dhcp::server(kind::ACK, xid, vm.mac, GATEWAY)
        .with(option::LEASE_TIME, &600u32.to_be_bytes())
        .with(option::SUBNET_MASK, &[255, 255, 255, 0]);
    answer.yiaddr = wanted;
    PacketSocket::open("softnet0")?.send(&answer.packet(GATEWAY, wanted).frame(vm.mac, gateway))?;
    // It may be that the VM is not told at all.
    let told = vm.told(kind::ACK, xid, Duration::from_secs(2))?.is_some();
    run("nft", &["delete table bridge lab"])?;
    crate::leases::is_nobody_elses(&vm, gateway, wanted).with_context(|| format!("the VM was told: {told}"))
}

/// The kernel gives the name of a TAP that is gone to the next one, which may be on a bridge of somebody else's.
pub fn h10_what_was_checked_for_the_dead_is_not_checked_for_the_next() -> Result<()> {
    let world = World::build()?;
    let _bridge = Bridge::build(&world)?;
    let (mut dead, _) = Vm::leased(mac(1), &[])?;
    dead.kill_all()?;
    let (vm, address) = Vm::leased(mac(2), &["--bridge=br1"])?;
    ensure!(vm.ready["interface"] == dead.ready["interface"], "the test shows nothing: {}", vm.ready);
    vm.gateway_mac(address)?;
    Ok(())
}

/// Nor the other way round.
pub fn h10_what_was_checked_on_a_bridge_is_not_checked_for_the_next() -> Result<()> {
    let world = World::build()?;
    let _bridge = Bridge::build(&world)?;
    for kill in [false, true] {
        let (mut gone, _) = Vm::leased(mac(1), &["--bridge=br1"])?;
        if kill {
            gone.kill_all()?
        } else {
            ensure!(gone.softnet.stop()?.success())
        }
        let (mut vm, address) = Vm::leased(mac(2), &[])?;
        ensure!(vm.ready["interface"] == gone.ready["interface"], "the test shows nothing: {}", vm.ready);
        vm.gateway_mac(address)?;
        ensure!(vm.softnet.stop()?.success());
    }
    run("timeout", &["20", SOFTNET, "network", "down"])?;
    let tables = run("nft", &["list", "tables"])?;
    ensure!(!tables.contains("softnet"), "{tables}");
    Ok(())
}

/// The numbers of this host's netlink sockets.
fn netlink_sockets() -> Result<BTreeSet<String>> {
    let list = std::fs::read_to_string("/proc/net/netlink")?;
    Ok(list
        .lines()
        .skip(1)
        .filter_map(|line| Some(line.split_ascii_whitespace().nth(9)?.to_owned()))
        .collect())
}

fn sockets_of(pid: Pid) -> Result<BTreeSet<String>> {
    let targets = std::fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let inode = |target: std::path::PathBuf| {
        Some(target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    Ok(targets.filter_map(inode).collect())
}

fn status(pid: Pid, field: &str) -> Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(":\t"));
    Ok(line.with_context(|| format!("no {field}"))?.to_owned())
}

pub fn h10_no_worker_sees_the_hosts_sockets() -> Result<()> {
    let world = World::build()?;
    let _bridge = Bridge::build(&world)?;
    let _segment = Segment::build(&Host::main()?, [10, 6, 0, 1].into(), 24)?;
    for arguments in [&[][..], &["--bridge=br1"], &["--tap=tap0"]] {
        let vm = Vm::start(mac(1), arguments)?;
        let (worker, host) = (vm.worker()?, netlink_sockets()?);
        let held: Vec<_> = sockets_of(worker)?.intersection(&host).cloned().collect();
        ensure!(held.is_empty(), "{arguments:?}: the worker has netlink sockets of the host: {held:?}");
    }
    Ok(())
}

pub fn h10_every_process_of_softnet_is_confined() -> Result<()> {
    let world = World::build()?;
    let _bridge = Bridge::build(&world)?;
    for arguments in [&[][..], &["--bridge=br1"]] {
        let vm = Vm::start(mac(1), arguments)?;
        for pid in family(vm.softnet.pid()) {
            let name = if pid == vm.softnet.pid() { "the one that was started" } else { "its child" };
            ensure!(status(pid, "Seccomp")? == "2", "{arguments:?}: {name} has no seccomp filter");
            ensure!(status(pid, "NoNewPrivs")? == "1", "{arguments:?}: {name} may gain privileges");
        }
    }
    Ok(())
}
