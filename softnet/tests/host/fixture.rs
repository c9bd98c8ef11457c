//! A host like those that people have, and VMs on it.
//!
//! The main host has a public address on its uplink, a second LAN behind another interface, and the internet behind the
//! uplink. A [`Vm`] speaks for itself, frame by frame; a [`Guest`] is one with a real network stack.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::deadline::{Deadline, until};
use lab::net::Host;
use lab::stage::run;
use lab::wire::{
    Arp, Dhcp, Ipv4, Mac, address_at, dhcp_kind as kind, dhcp_option as option, ether_type, parse_dhcp,
};
use lab::{Service, Softnet, VmPort, hello};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::names::Resolver;

/// The program under test.
pub const SOFTNET: &str = env!("CARGO_BIN_EXE_softnet");
/// The main host on its uplink.
pub const PUBLIC: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 2);
/// Its neighbour there, the router of the provider.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 1);
/// Somebody in the internet, and its resolver.
pub const INTERNET: Ipv4Addr = lab::net::INTERNET;
/// The main host on the management LAN.
pub const HOST_ON_MANAGEMENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// A machine there.
pub const MANAGEMENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The port of the servers of internet and management LAN.
pub const PORT: u16 = 80;
/// The gateway of the first managed network.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
/// What makes the second managed network.
pub const SECOND_NETWORK: &[&str] = &["--network=softnet1", "--subnet=192.168.65.0/24"];
/// Its gateway.
pub const SECOND_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 65, 1);
/// The first network's directory.
pub const RUN: &str = "/run/softnet/softnet0";

/// How long a test looks for something that must not come, where nothing in order behind it can be waited for.
pub const SHORT: Duration = Duration::from_millis(1500);

/// A MAC address of a VM.
pub const fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

/// The host and all around it.
pub struct World {
    pub main: Host,
    pub internet: Host,
    pub management: Host,
    pub on_internet: Service,
    _on_management: Service,
    _resolver: Resolver,
}

impl World {
    pub fn build() -> Result<Self> {
        let main = Host::main()?;
        let internet = Host::new("internet")?;
        main.cable(("uplink", &format!("{PUBLIC}/24")), &internet, ("eth0", &format!("{NEIGHBOUR}/24")))?;
        internet.ip(&format!("addr add {INTERNET}/32 dev lo"))?;
        main.ip(&format!("route add default via {NEIGHBOUR}"))?;
        let management = Host::new("management")?;
        main.cable(
            ("mgmt0", &format!("{HOST_ON_MANAGEMENT}/24")),
            &management,
            ("eth0", &format!("{MANAGEMENT}/24")),
        )?;
        management.ip(&format!("route add default via {HOST_ON_MANAGEMENT}"))?;
        let on_internet = Service::start(&internet, INTERNET, PORT, "the internet")?;
        let on_management = Service::start(&management, MANAGEMENT, PORT, "the management LAN")?;
        let resolver = Resolver::start(&internet, INTERNET)?;
        Ok(Self {
            main,
            internet,
            management,
            on_internet,
            _on_management: on_management,
            _resolver: resolver,
        })
    }
}

/// A port of the host's own at each of these addresses. (A UDP server on all of them would answer from another one.)
pub fn host_services(world: &World, addresses: &[Ipv4Addr], port: u16) -> Result<Vec<Service>> {
    addresses.iter().map(|address| Service::start(&world.main, *address, port, "the host")).collect()
}

/// A VM that speaks for itself, behind the program.
pub struct Vm {
    pub port: VmPort,
    pub softnet: Softnet,
    pub mac: Mac,
    pub ready: serde_json::Value,
    pub gateway: Ipv4Addr,
}

impl Vm {
    pub fn start(mac: Mac, arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(SOFTNET);
        command.args(arguments);
        Self::spawn(mac, command)
    }

    /// Starts a command line that misses only what every VM needs.
    pub fn spawn(mac: Mac, command: Command) -> Result<Self> {
        let (port, softnet) = Self::begin(mac, command)?;
        Self::finish(port, softnet, mac)
    }

    /// The first half of a start, which waits for nothing.
    pub fn begin(mac: Mac, mut command: Command) -> Result<(VmPort, Softnet)> {
        let (port, theirs) = VmPort::pair()?;
        command.args(["--vm-fd=0", &format!("--vm-mac-address={mac}"), Softnet::READY_FLAG]).stdin(theirs);
        Ok((port, Softnet::spawn(command)?))
    }

    /// The second half.
    pub fn finish(port: VmPort, mut softnet: Softnet, mac: Mac) -> Result<Self> {
        let ready = softnet.ready()?;
        let gateway = ready["gateway"].as_str().context("no gateway")?.parse()?;
        Ok(Self { port, softnet, mac, ready, gateway })
    }

    /// A VM that has an address.
    pub fn leased(mac: Mac, arguments: &[&str]) -> Result<(Self, Ipv4Addr)> {
        let vm = Self::start(mac, arguments)?;
        let address = vm.lease(None)?;
        Ok((vm, address))
    }

    /// The whole exchange with the server, asking for `wanted` if that is something.
    pub fn lease(&self, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr> {
        self.lease_as(wanted, &[], Deadline::default())
    }

    /// The same with options more in every message, as often as a client asks before the deadline.
    pub fn lease_as(
        &self,
        wanted: Option<Ipv4Addr>,
        options: &[(u8, &[u8])],
        deadline: Deadline,
    ) -> Result<Ipv4Addr> {
        let with = |mut message: Dhcp| {
            for (code, value) in options {
                message = message.with(*code, value);
            }
            message
        };
        while !deadline.left().is_zero() {
            let xid = xid();
            let mut discover = with(Dhcp::client(kind::DISCOVER, xid, self.mac));
            if let Some(wanted) = wanted {
                discover = discover.with(option::REQUESTED_ADDRESS, &wanted.octets());
            }
            self.port.send(&discover.broadcast())?;
            let Some(offer) = self.told(kind::OFFER, xid, Duration::from_secs(2))? else { continue };
            let request = with(Dhcp::client(kind::REQUEST, xid, self.mac))
                .with(option::REQUESTED_ADDRESS, &offer.yiaddr.octets())
                .with(option::SERVER, offer.option(option::SERVER).context("no server")?);
            self.port.send(&request.broadcast())?;
            if let Some(ack) = self.told(kind::ACK, xid, Duration::from_secs(2))? {
                return Ok(ack.yiaddr);
            }
        }
        bail!("{} gets no address: {}", self.mac, self.softnet.log())
    }

    /// The answer of this type, unless it does not come in this time.
    pub fn told(&self, kind: u8, xid: u32, patience: Duration) -> Result<Option<Dhcp>> {
        let deadline = Deadline::after(patience);
        while let Some(frame) = self.port.recv(deadline)? {
            let answer =
                parse_dhcp(&frame).filter(|it| it.op == 2 && it.xid == xid && it.message_type() == kind);
            if answer.is_some() {
                return Ok(answer);
            }
        }
        Ok(None)
    }

    /// Asks for the gateway's hardware address as `address`, as often as a client does.
    pub fn gateway_mac(&self, address: Ipv4Addr) -> Result<Mac> {
        let is_it = |frame: &[u8]| {
            ether_type(frame) == lab::wire::ARP
                && frame.get(21) == Some(&2)
                && address_at(frame, 28) == self.gateway
        };
        let deadline = Deadline::after(Duration::from_secs(10));
        while !deadline.left().is_zero() {
            self.port.send(&Arp::request(self.mac, address, self.gateway).frame())?;
            if let Some(frame) = self.listen(address, Duration::from_millis(500), is_it)? {
                return Ok(lab::wire::source(&frame));
            }
        }
        bail!("{address} finds no gateway: {}", self.softnet.log())
    }

    /// The next frame that `wanted` accepts; meanwhile the VM answers who asks for `address`.
    pub fn listen(
        &self,
        address: Ipv4Addr,
        patience: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Option<Vec<u8>>> {
        let deadline = Deadline::after(patience);
        while let Some(frame) = self.port.recv(deadline)? {
            let is_asked = ether_type(&frame) == lab::wire::ARP && frame.get(21) == Some(&1);
            if is_asked && address_at(&frame, 38) == address {
                let asker = Arp::reply(self.mac, address, lab::wire::source(&frame), address_at(&frame, 28));
                self.port.send(&asker.frame())?;
            } else if wanted(&frame) {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// How many of the VM's frames were judged.
    pub fn judged(&self) -> Result<u64> {
        let now = self.softnet.counters()?.from_vm;
        Ok(["forwarded", "dropped"].iter().filter_map(|name| now.get(*name)).sum())
    }

    /// Sends frames and returns when Softnet has judged them all; says how many it let out.
    pub fn send_judged(&self, frames: &[Vec<u8>]) -> Result<u64> {
        let forwarded = || -> Result<u64> {
            Ok(self.softnet.counters()?.from_vm.get("forwarded").copied().unwrap_or_default())
        };
        let (before, let_out) = (self.judged()?, forwarded()?);
        for frame in frames {
            self.port.send(frame)?;
        }
        let all = before + frames.len() as u64;
        ensure!(until(|| self.judged().is_ok_and(|now| now >= all)), "not all frames were judged");
        Ok(forwarded()? - let_out)
    }

    /// Kills every process of it with no chance for a last word.
    pub fn kill_all(&mut self) -> Result<()> {
        let processes = family(self.softnet.pid());
        for process in &processes {
            // One that is gone already is as good.
            let _ = kill(*process, Signal::SIGSTOP);
        }
        for process in &processes {
            let _ = kill(*process, Signal::SIGKILL);
        }
        self.softnet.wait()?;
        ensure!(until(|| processes.iter().all(|process| is_gone(*process))), "a process stayed");
        Ok(())
    }

    /// The process that carries the frames: the one of Softnet's that has the TAP open.
    pub fn worker(&self) -> Result<Pid> {
        let found = family(self.softnet.pid()).into_iter().find(|pid| holds(*pid, "/dev/net/tun"));
        found.context("no process has the TAP open")
    }
}

/// A transaction's number that no other exchange of this test has.
pub fn xid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0x5000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A datagram or segment of the VM, for the gateway to route.
pub fn routed(
    vm: &Vm,
    gateway: Mac,
    from: Ipv4Addr,
    to: Ipv4Addr,
    transport: lab::wire::Transport,
) -> Vec<u8> {
    Ipv4::new(from, to, transport).frame(gateway, vm.mac)
}

/// The process and all that it started, without those who have left it (a session of their own).
pub fn family(pid: Pid) -> Vec<Pid> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        let text =
            std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
        let children = text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
        found.extend(children.filter(|child| is_softnet(*child)));
        next += 1;
    }
    found
}

fn is_softnet(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("softnet"))
}

/// True if one of the process's descriptors is this file.
pub fn holds(pid: Pid, file: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    entries
        .flatten()
        .any(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == Path::new(file)))
}

pub fn is_gone(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

/// What the first network's server has noted.
pub fn leases() -> String {
    std::fs::read_to_string(format!("{RUN}/dnsmasq.leases")).unwrap_or_default()
}

/// The server's note that this VM has this address.
pub fn is_leased(mac: Mac, address: Ipv4Addr) -> bool {
    leases().contains(&format!("{mac} {address} "))
}

/// The process that answers DHCP on the bridge `name`, by what it is and not by what a file says.
pub fn server(name: &str) -> Option<Pid> {
    let option = format!("--interface={name}");
    std::fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let program = std::fs::read_link(entry.path().join("exe")).ok()?;
        let is_it = program.ends_with("dnsmasq")
            && line.split(|byte| *byte == 0).any(|word| word == option.as_bytes());
        (is_it && !is_gone(Pid::from_raw(pid))).then(|| Pid::from_raw(pid))
    })
}

/// A VM with a network stack of its own.
pub struct Guest {
    pub host: Host,
    pub vm: Vm,
    pub address: Ipv4Addr,
}

impl Guest {
    pub fn start(name: &str, mac: Mac, arguments: &[&str]) -> Result<Self> {
        Self::of(name, Vm::start(mac, arguments)?)
    }

    /// Gives a VM a network stack.
    pub fn of(name: &str, vm: Vm) -> Result<Self> {
        let address = vm.lease(None)?;
        let host = lab::kernel_guest(name, &vm.port, vm.mac, (address, 24), vm.gateway)?;
        Ok(Self { host, vm, address })
    }

    /// What the server at `to` says.
    pub fn hello(&self, to: Ipv4Addr, port: u16) -> io::Result<String> {
        hello_over_tcp(&self.host, to, port)
    }

    /// What the server at `to` says to a datagram.
    pub fn hello_udp(&self, to: Ipv4Addr, port: u16) -> io::Result<String> {
        hello_over_udp(&self.host, to, port)
    }

    /// Fails unless the server at `to` answers over TCP and UDP.
    pub fn reaches(&self, to: Ipv4Addr, port: u16, name: &str) -> Result<()> {
        for (protocol, heard) in [("TCP", self.hello(to, port)), ("UDP", self.hello_udp(to, port))] {
            let said =
                heard.with_context(|| format!("{to}:{port} over {protocol}: {}", self.vm.softnet.log()))?;
            ensure!(
                said.contains(&format!("hello from {name} to ")),
                "{to}:{port} over {protocol}: {said:?}"
            );
        }
        Ok(())
    }

    /// Fails if anybody at one of these places answers, over TCP or UDP.
    pub fn does_not_reach(&self, places: &[(Ipv4Addr, u16)]) -> Result<()> {
        let host = &self.host;
        let found = std::thread::scope(|scope| {
            let attempts: Vec<_> = places
                .iter()
                .flat_map(|&(to, port)| {
                    [
                        scope.spawn(move || (to, port, "TCP", hello_over_tcp(host, to, port))),
                        scope.spawn(move || (to, port, "UDP", hello_over_udp(host, to, port))),
                    ]
                })
                .collect();
            attempts.into_iter().filter_map(|attempt| attempt.join().ok()).collect::<Vec<_>>()
        });
        ensure!(found.len() == places.len() * 2, "an attempt failed");
        let reached: Vec<_> =
            found.iter().filter(|(.., heard)| heard.as_ref().is_ok_and(|line| !line.is_empty())).collect();
        ensure!(reached.is_empty(), "{} reaches {reached:?}", self.address);
        Ok(())
    }
}

/// What the server at `to` says to a connection from `host`, if anything soon.
pub fn hello_over_tcp(host: &Host, to: Ipv4Addr, port: u16) -> io::Result<String> {
    host.run(|| hello(SocketAddrV4::new(to, port), SHORT)).map_err(io::Error::other)?
}

/// The same with a datagram.
pub fn hello_over_udp(host: &Host, to: Ipv4Addr, port: u16) -> io::Result<String> {
    let heard = host.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((to, port))?;
        socket.set_read_timeout(Some(SHORT))?;
        socket.send(b"hello?")?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).trim_end().to_owned())
    });
    heard.map_err(io::Error::other)?
}

/// Turns the main host's forwarding on or off, as its administrator does.
pub fn forwarding(on: bool) -> Result<()> {
    Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", if on { "1" } else { "0" })?)
}

/// A bridge `br1` with a DHCP server of the administrator's, for `--bridge=br1`; its gateway is 10.5.0.1.
pub struct Bridge(Child);

/// The gateway of [`Bridge`].
pub const BRIDGE_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 5, 0, 1);

impl Bridge {
    pub fn build(world: &World) -> Result<Self> {
        world.main.bridge("br1", &format!("{BRIDGE_GATEWAY}/24"))?;
        let server = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--user=root", "--no-ping"])
            .args(["--pid-file=", "--interface=br1", "--except-interface=lo", "--bind-interfaces"])
            .args(["--dhcp-range=10.5.0.10,10.5.0.99,255.255.255.0,600", "--dhcp-authoritative"])
            .arg("--dhcp-leasefile=/run/lab/br1.leases")
            .stderr(Stdio::null())
            .spawn()?;
        // Docker and libvirt leave the host like this.
        forwarding(true)?;
        let rule = "add table ip lab; add chain ip lab out { type nat hook postrouting priority srcnat; };\
                    add rule ip lab out ip saddr 10.5.0.0/24 oifname uplink masquerade";
        run("nft", &[rule])?;
        Ok(Self(server))
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
