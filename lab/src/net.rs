//! Networks inside the lab: further hosts, links, bridges, TAPs, and a small internet.
//!
//! Everything is created with `ip` from iproute2, in the lab's own namespaces.

use std::fs::File;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::Service;
use crate::stage::run;

/// One host of the lab: a network namespace.
#[derive(Debug)]
pub struct Host {
    name: Option<String>,
    namespace: File,
}

impl Host {
    /// The host that the lab starts with, where Softnet runs.
    ///
    /// # Errors
    /// Fails without `/proc`.
    pub fn main() -> Result<Self> {
        Ok(Self { name: None, namespace: File::open("/proc/self/ns/net")? })
    }

    /// A further host, connected to nothing yet.
    ///
    /// # Errors
    /// Fails without privilege in the lab, or if there is such a host already.
    pub fn new(name: &str) -> Result<Self> {
        run("ip", &["netns", "add", name])?;
        let host = Self { name: Some(name.to_owned()), namespace: File::open(format!("/run/netns/{name}"))? };
        host.ip("link set lo up")?;
        Ok(host)
    }

    /// Takes a further host off the lab, with its links.
    ///
    /// # Errors
    /// Repeats what `ip` said.
    pub fn remove(&self) -> Result<()> {
        let name = self.name.as_deref().context("the main host stays")?;
        run("ip", &["netns", "delete", name]).map(drop)
    }

    /// Runs `ip` with these space-separated words on this host.
    ///
    /// # Errors
    /// Repeats what `ip` said.
    pub fn ip(&self, words: &str) -> Result<String> {
        let mut arguments: Vec<&str> = Vec::new();
        if let Some(name) = &self.name {
            arguments.extend(["-n", name]);
        }
        arguments.extend(words.split_whitespace());
        run("ip", &arguments)
    }

    /// Runs `work` on this host: sockets that it opens belong there, programs that it starts run there.
    ///
    /// # Panics
    /// Passes on a panic of `work`.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        std::thread::scope(|scope| {
            // A separate thread: only its network namespace changes, and it ends here.
            let thread = scope.spawn(|| {
                setns(&self.namespace, CloneFlags::CLONE_NEWNET)
                    .context("move to another host of the lab")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Connects this host with another by a veth pair: `here` and `there` are each a name and an address with
    /// prefix.
    ///
    /// # Errors
    /// Repeats what `ip` said.
    pub fn cable(&self, here: (&str, &str), other: &Host, there: (&str, &str)) -> Result<()> {
        self.ip(&format!("link add {} type veth peer name lab-peer", here.0))?;
        let target = other.name.as_deref().context("the other end of a cable must be a named host")?;
        self.ip(&format!("link set lab-peer netns {target} name {}", there.0))?;
        for (host, (name, address)) in [(self, here), (other, there)] {
            host.ip(&format!("addr add {address} dev {name}"))?;
            host.ip(&format!("link set {name} up"))?;
        }
        Ok(())
    }

    /// Makes a bridge with this address, up and forwarding at once.
    ///
    /// # Errors
    /// Repeats what `ip` said.
    pub fn bridge(&self, name: &str, address: &str) -> Result<()> {
        self.ip(&format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))?;
        self.ip(&format!("link set {name} addrgenmode none up"))?;
        self.ip(&format!("addr add {address} dev {name}"))?;
        Ok(())
    }

    /// Makes a TAP for a program to attach to, a port of `bridge`.
    ///
    /// # Errors
    /// Repeats what `ip` said.
    pub fn tap(&self, name: &str, bridge: &str) -> Result<()> {
        self.ip(&format!("tuntap add dev {name} mode tap"))?;
        self.ip(&format!("link set {name} addrgenmode none master {bridge} up"))?;
        Ok(())
    }
}

/// The globally routable address of a test host.
pub const INTERNET: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// A second one.
pub const INTERNET_TOO: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);
/// The address of clouds' metadata services, which serve a machine's credentials.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Another host of the office LAN.
pub const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
/// The host's own address on that LAN.
pub const HOST_ON_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// A name that the internet's resolver resolves to [`INTERNET_TOO`].
pub const NAME: &str = "example.com";

/// An internet, a LAN and a metadata service around the lab's main host, each with servers that send a
/// greeting.
#[derive(Debug)]
pub struct World {
    /// The main host.
    pub main: Host,
    /// The host with the globally routable addresses and the resolver.
    pub internet: Host,
    /// The other host of the office LAN.
    pub lan: Host,
    /// The cloud's metadata service.
    pub metadata: Host,
    /// The servers: TCP and UDP port 80 of each address.
    pub services: Vec<Service>,
    resolver: std::process::Child,
}

impl World {
    /// Builds it; every address answers before this returns.
    ///
    /// # Errors
    /// Says which step failed.
    pub fn build() -> Result<Self> {
        let main = Host::main()?;
        let internet = Host::new("internet")?;
        main.cable(("uplink", "203.0.113.2/24"), &internet, ("eth0", "203.0.113.1/24"))?;
        internet.ip(&format!("addr add {INTERNET}/32 dev lo"))?;
        internet.ip(&format!("addr add {INTERNET_TOO}/32 dev lo"))?;
        main.ip("route add default via 203.0.113.1")?;
        let lan = Host::new("lan")?;
        main.cable(("lan0", &format!("{HOST_ON_LAN}/24")), &lan, ("eth0", &format!("{LAN}/24")))?;
        lan.ip(&format!("route add default via {HOST_ON_LAN}"))?;
        let metadata = Host::new("metadata")?;
        main.cable(("meta0", "169.254.1.1/16"), &metadata, ("eth0", &format!("{METADATA}/16")))?;
        metadata.ip("route add default via 169.254.1.1")?;
        let mut services = Vec::new();
        for (host, address, say) in [
            (&internet, INTERNET, "the internet"),
            (&internet, INTERNET_TOO, "the internet too"),
            (&lan, LAN, "the lan"),
            (&metadata, METADATA, "the metadata"),
        ] {
            services.push(Service::start(host, address, 80, say)?);
        }
        let resolver = internet.run(|| {
            std::process::Command::new("dnsmasq")
                .args([
                    "--keep-in-foreground",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--user=root",
                ])
                .args(["--pid-file=", &format!("--listen-address={INTERNET}"), "--bind-interfaces"])
                .arg(format!("--address=/{NAME}/{INTERNET_TOO}"))
                .stderr(std::process::Stdio::null())
                .spawn()
        })??;
        Ok(Self { main, internet, lan, metadata, services, resolver })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.resolver.kill();
        let _ = self.resolver.wait();
    }
}
