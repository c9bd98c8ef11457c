//! The compared programs: each carries the frames of the same guest in the same network.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use bench::sys;
use command_fds::{CommandFdExt, FdMapping};
use lab::VmPort;
use lab::net::Host;
use lab::stage::{self, SCRATCH};

use crate::pump;
use crate::usage::Process;

/// The guest's hardware address.
pub const MAC: &str = "02:00:00:00:77:02";
/// The host's address on the bridge, at which the DHCP server listens.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const BRIDGE: &str = "br0";
/// The TAP of the peers that have one.
pub const TAP: &str = "tap0";

/// The peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Unfiltered, one frame per system call.
    One,
    /// Unfiltered, many datagrams per system call.
    Batch,
    /// Softnet with its filter on.
    Softnet,
    /// Softnet with its filter on, on a stream socket like passt.
    SoftnetStream,
    /// No peer at all: the guest's frames go straight into the host's TAP.
    Tap,
    /// slirp4netns.
    Slirp,
    /// passt.
    Passt,
}

impl Kind {
    /// All peers, in the order of the report.
    pub const ALL: [Kind; 7] =
        [Kind::One, Kind::Batch, Kind::Softnet, Kind::SoftnetStream, Kind::Tap, Kind::Slirp, Kind::Passt];

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Kind::One => "one frame a call",
            Kind::Batch => "batching",
            Kind::Softnet => "Softnet",
            Kind::SoftnetStream => "Softnet, stream",
            Kind::Tap => "kernel TAP",
            Kind::Slirp => "slirp4netns",
            Kind::Passt => "passt",
        }
    }

    /// Whether it judges the frames that it carries.
    pub fn is_filtered(self) -> bool {
        matches!(self, Kind::Softnet | Kind::SoftnetStream)
    }
}

/// The host that the peers run on: a bridge with DHCP, and a default route.
#[derive(Debug)]
pub struct Site {
    /// The host.
    pub host: Host,
    dnsmasq: Child,
}

impl Site {
    /// Builds it in the lab's main namespace.
    ///
    /// # Errors
    /// Says which step failed.
    pub fn build() -> Result<Site> {
        // As systemd sets it at boot; a new namespace starts with 10.
        fs::write("/proc/sys/net/unix/max_dgram_qlen", "512")?;
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")?;
        let host = Host::main()?;
        host.bridge(BRIDGE, &format!("{GATEWAY}/16"))?;
        host.ip(&format!("link set {BRIDGE} address 02:00:00:00:77:01"))?;
        // passt takes the guest's address from the interface of the default route.
        host.ip("link add uplink type veth peer name nowhere")?;
        host.ip("link set nowhere up")?;
        host.ip("addr add 192.0.2.2/24 dev uplink")?;
        host.ip("link set uplink up")?;
        host.ip("route add default via 192.0.2.1")?;
        let range = "10.77.1.0,10.77.9.255,255.255.0.0,600";
        let dnsmasq = Command::new("dnsmasq")
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--user=root", "--pid-file="])
            // Without first checking by ping whether the address is in use, which takes seconds.
            .args(["--no-ping", "--dhcp-authoritative", "--leasefile-ro"])
            .args([format!("--interface={BRIDGE}"), format!("--dhcp-range={range}")])
            .stdin(Stdio::null())
            .stderr(log("dnsmasq")?)
            .spawn()
            .context("start dnsmasq")?;
        Ok(Site { host, dnsmasq })
    }

    /// A new TAP on the bridge, because an earlier peer may have left offloads on.
    pub fn tap(&self, name: &str) -> Result<()> {
        let _ = self.host.ip(&format!("link delete {name}"));
        self.host.tap(name, BRIDGE)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        end(&mut self.dnsmasq);
    }
}

/// A peer with its guest, ready for traffic.
#[derive(Debug)]
pub struct Running {
    /// The guest.
    pub guest: Host,
    /// The peer's process, if there is one.
    pub process: Option<Process>,
    /// Where the guest finds the host's servers.
    pub server: Ipv4Addr,
    children: Vec<Child>,
}

impl Running {
    /// Starts `kind`; the guest has its address when this returns.
    ///
    /// # Errors
    /// Says which step failed, and repeats the peer's log.
    pub fn start(kind: Kind, site: &Site) -> Result<Running> {
        let guest = Host::new("guest")?;
        let mut running = Running { guest, process: None, server: GATEWAY, children: Vec::new() };
        running.connect(kind, site).with_context(|| format!("{}: {}", kind.name(), read_log("peer")))?;
        Ok(running)
    }

    fn connect(&mut self, kind: Kind, site: &Site) -> Result<()> {
        match kind {
            Kind::One | Kind::Batch | Kind::Softnet => {
                site.tap(TAP)?;
                let (vm, theirs) = VmPort::pair()?;
                self.run_peer(command(kind)?.stdin(theirs))?;
                self.pump(pump::Peer::Datagram, vm.as_fd().try_clone_to_owned()?)?;
                self.ask_for_address()
            }
            Kind::SoftnetStream => {
                site.tap(TAP)?;
                let (vm, theirs) = UnixStream::pair()?;
                self.run_peer(command(kind)?.stdin(OwnedFd::from(theirs)))?;
                self.pump(pump::Peer::Stream, vm.into())?;
                self.ask_for_address()
            }
            Kind::Tap => {
                site.host.ip(&format!("link delete {TAP}"))?;
                let tap = sys::tap(TAP, true)?;
                site.host.ip(&format!("link set {TAP} addrgenmode none master {BRIDGE} up"))?;
                self.pump(pump::Peer::Tap, tap.into())?;
                self.ask_for_address()
            }
            Kind::Slirp => {
                self.server = Ipv4Addr::new(10, 0, 2, 2);
                let (mut ready, theirs) = std::io::pipe()?;
                let mut command = Command::new("slirp4netns");
                command.args(["--configure", "--mtu=1500", "--ready-fd=3", "--netns-type=path"]);
                command.args(["/run/netns/guest", "eth0"]);
                command.fd_mappings(vec![FdMapping { parent_fd: theirs.into(), child_fd: 3 }])?;
                self.run_peer(&mut command)?;
                // It writes one byte when the interface is configured; the command's copy of the pipe must be
                // closed first.
                drop(command);
                std::io::Read::read_exact(&mut ready, &mut [0]).context("it never became ready")
            }
            Kind::Passt => {
                self.server = Ipv4Addr::new(192, 0, 2, 1);
                let (vm, theirs) = UnixStream::pair()?;
                let mut command = Command::new("passt");
                command.args(["--foreground", "--stderr", "--quiet", "--fd=3", "--mtu=1500", "--ipv4-only"]);
                command.fd_mappings(vec![FdMapping { parent_fd: theirs.into(), child_fd: 3 }])?;
                self.run_peer(&mut command)?;
                drop(command);
                self.pump(pump::Peer::Stream, vm.into())?;
                self.ask_for_address()
            }
        }
    }

    fn run_peer(&mut self, command: &mut Command) -> Result<()> {
        let child = command.stdout(Stdio::null()).stderr(log("peer")?).spawn().context("start it")?;
        self.process = Some(Process(child.id()));
        self.children.push(child);
        Ok(())
    }

    /// Gives the guest a TAP, and connects the TAP with `far`.
    fn pump(&mut self, peer: pump::Peer, far: OwnedFd) -> Result<()> {
        let tap = self.guest.run(|| sys::tap("eth0", true))??;
        self.guest.ip(&format!("link set eth0 address {MAC} up"))?;
        let mut command = Command::new(std::env::current_exe()?);
        let peer = clap::ValueEnum::to_possible_value(&peer).context("a value for every peer")?;
        command.args(["pump", peer.get_name()]).stderr(log("pump")?);
        command.fd_mappings(vec![
            FdMapping { parent_fd: tap.into(), child_fd: pump::TAP_FD },
            FdMapping { parent_fd: far, child_fd: pump::PEER_FD },
        ])?;
        self.children.push(command.spawn().context("start the pump")?);
        Ok(())
    }

    /// Makes the guest configure itself by DHCP.
    fn ask_for_address(&self) -> Result<()> {
        let script = Path::new(SCRATCH).join("udhcpc");
        fs::write(
            &script,
            "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\n\
             ip address add \"$ip/$mask\" dev \"$interface\"\n\
             ip route add default via \"$router\" dev \"$interface\"\n",
        )?;
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let output = self.guest.run(|| {
            Command::new("busybox")
                .args(["udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "20", "-T", "1", "-s"])
                .arg(&script)
                .output()
        })??;
        ensure!(
            output.status.success(),
            "the guest gets no address: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.children.iter_mut().for_each(end);
        let _ = stage::run("ip", &["netns", "delete", "guest"]);
    }
}

/// The command line of a peer with the VM's socket on standard input.
///
/// # Errors
/// If the peer has no such socket.
pub fn command(kind: Kind) -> Result<Command> {
    let program = match kind {
        Kind::One => "forward-one",
        Kind::Batch => "forward-batch",
        Kind::Softnet | Kind::SoftnetStream => "softnet",
        Kind::Tap | Kind::Slirp | Kind::Passt => bail!("{} has no VM's socket", kind.name()),
    };
    let mut command = Command::new(program_path(program)?);
    match kind {
        Kind::Softnet | Kind::SoftnetStream => command.args(softnet_arguments(TAP)),
        _ => command.arg(TAP),
    };
    Ok(command)
}

/// Softnet on a TAP; the guest may reach the servers on the host itself.
pub fn softnet_arguments(tap: &str) -> Vec<String> {
    vec![
        "--vm-fd=0".into(),
        format!("--vm-mac-address={MAC}"),
        format!("--tap={tap}"),
        "--allow=@host".into(),
    ]
}

/// A program of the same build.
pub fn program_path(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    Ok(this.parent().context("a program lies in a folder")?.join(name))
}

fn log(name: &str) -> Result<File> {
    Ok(File::create(Path::new(SCRATCH).join(format!("{name}.log")))?)
}

fn read_log(name: &str) -> String {
    fs::read_to_string(Path::new(SCRATCH).join(format!("{name}.log"))).unwrap_or_default()
}

fn end(child: &mut Child) {
    // It may have ended already.
    let _ = child.kill();
    let _ = child.wait();
}
