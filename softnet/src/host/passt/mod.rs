//! Networking without privilege: passt(1), which turns the VM's frames into the user's sockets.
//!
//! Softnet gives passt everything that the filter has to know beforehand (addresses, MAC, MTU), so it learns
//! nothing from passt. passt is also the DHCP server, under the gateway's address. It runs as a daemon in its
//! own namespaces and ends when its socket closes, that is, when Softnet ends for any reason.
//!
//! One feature is deliberately switched off: passt can forward connections to the gateway to the host's
//! loopback. Services on 127.0.0.1 are not meant for a VM.

mod link;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;

use ipnet::Ipv4Net;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Signal;
use softnet_filter::{MacAddr, NetType};

use crate::config::expose::{Expose, Protocol};
use crate::host::network::subnet;
use crate::host::tools::{self, Tool};
use crate::netlink::{self, Netlink};
use crate::sys::process;

pub use link::PasstLink;

/// The MTU that passt announces to the VM, in bytes.
pub const MTU: u16 = 1500;

/// MAC of the gateway that passt emulates: locally administered, "SN" as on the managed network.
const GATEWAY_MAC: MacAddr = MacAddr([0x0a, b'S', b'N', 0, 0, 1]);

/// Where passt finds the host's resolvers (resolv.conf(5)).
const RESOLVERS: &str = "/etc/resolv.conf";

/// Why passt cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is missing or failed.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// passt uses the interface of the default route, and the host has no such route.
    #[error("the host has no IPv4 default route, which passt needs; connect the host to a network first")]
    NoRoute,
    /// No subnet is free.
    #[error(transparent)]
    Subnet(#[from] subnet::Error),
    /// The host's routes cannot be read.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
    /// The socket pair.
    #[error("cannot create a socket pair: {0}")]
    Socket(#[source] io::Error),
    /// The VM's MAC is taken.
    #[error("{0} is the gateway's MAC address; give the VM another")]
    MacIsGateway(MacAddr),
}

/// A running passt.
#[derive(Debug)]
pub struct Passt {
    /// Softnet's end of the stream socket to it; passt ends when this closes.
    pub socket: OwnedFd,
    /// The MAC of the gateway that it emulates.
    pub gateway: MacAddr,
    /// The gateway's address with the subnet's prefix.
    pub address: Ipv4Net,
}

/// What passt is started with.
#[derive(Debug)]
struct Settings<'a> {
    subnet: Ipv4Net,
    net_type: NetType,
    exposes: &'a [Expose],
    resolver: Option<Ipv4Addr>,
}

/// Starts passt for the VM and waits until it is ready.
///
/// # Errors
/// When it is not installed, the host has no default route, or passt fails.
pub fn start(vm_mac: MacAddr, net_type: NetType, exposes: &[Expose]) -> Result<Passt, Error> {
    if vm_mac == GATEWAY_MAC {
        return Err(Error::MacIsGateway(vm_mac));
    }
    let mut command = Tool::Passt.command()?;
    let routes: Vec<Ipv4Net> = Netlink::open()?.routes()?.iter().map(|route| route.destination).collect();
    if !routes.iter().any(|route| route.prefix_len() == 0) {
        return Err(Error::NoRoute);
    }
    let subnet = subnet::choose(None, &routes)?;
    let resolver = first_resolver(&std::fs::read_to_string(RESOLVERS).unwrap_or_default());
    if resolver.is_none() && net_type == NetType::Nat {
        tracing::warn!(
            "{RESOLVERS} names no IPv4 resolver, so the VM gets no resolver by DHCP; add a line `nameserver ADDRESS` with one there, \
             or set one in the VM"
        );
    }
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| Error::Socket(error.into()))?;
    command
        .args(["--fd", &theirs.as_raw_fd().to_string()])
        .args(arguments(&Settings { subnet, net_type, exposes, resolver }))
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    // The started process ends when its daemon is ready, or with an error message.
    let failed = |source| tools::Error::Start { tool: Tool::Passt, source };
    let child = process::spawn_with(&mut command, &theirs, || Ok(()), Signal::TERM).map_err(failed)?;
    drop(theirs);
    let mut output = child.wait_with_output().map_err(failed)?;
    output.stderr = without_noise(&output.stderr);
    tools::checked(Tool::Passt, output)?;
    Ok(Passt { socket: ours, gateway: GATEWAY_MAC, address: subnet::gateway(subnet) })
}

fn arguments(settings: &Settings<'_>) -> Vec<String> {
    let gateway = subnet::gateway(settings.subnet).addr();
    let (address, _) = subnet::pool(settings.subnet);
    let mut arguments: Vec<String> =
        ["--quiet", "--stderr", "--ipv4-only", "--no-map-gw"].map(str::to_owned).into();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("--address", address.to_string());
    add("--netmask", settings.subnet.prefix_len().to_string());
    add("--gateway", gateway.to_string());
    add("--mac-addr", GATEWAY_MAC.to_string());
    add("--mtu", MTU.to_string());
    match (settings.net_type, settings.resolver) {
        // A VM without a way out gets no resolver through which data could leave.
        (NetType::Host, _) | (_, None) => add("--dns", "none".to_owned()),
        // A resolver on the host's loopback is reached by the gateway's port 53. passt offers the loopback
        // address too, where a VM gets no answer and uses the second one.
        (NetType::Nat, Some(resolver)) if resolver.is_loopback() => {
            add("--dns", resolver.to_string());
            add("--dns", gateway.to_string());
            add("--dns-forward", gateway.to_string());
        }
        (NetType::Nat, Some(_)) => {}
    }
    for (protocol, option) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
        let mut entries = settings.exposes.iter().filter(|expose| expose.protocol == protocol).peekable();
        if entries.peek().is_none() {
            // Explicit, because passt otherwise forwards the UDP ports of exposed TCP ports.
            add(option, "none".to_owned());
        }
        for expose in entries {
            let ports = format!("{}:{}", expose.external, expose.internal);
            match expose.address.filter(|address| !address.is_unspecified()) {
                Some(address) => add(option, format!("{address}/{ports}")),
                None => add(option, ports),
            }
        }
    }
    arguments
}

/// The first IPv4 resolver of `resolv.conf(5)`.
fn first_resolver(text: &str) -> Option<Ipv4Addr> {
    text.lines().find_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
}

/// passt's messages, without those about a missing system logger.
fn without_noise(said: &[u8]) -> Vec<u8> {
    let lines = said.split(|&byte| byte == b'\n');
    let told = lines.filter(|line| !line.starts_with(b"Failed to send ") && !line.is_empty());
    told.collect::<Vec<_>>().join(&b"; "[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(net_type: NetType, exposes: &[&str], resolver: Option<&str>) -> String {
        let exposes: Vec<Expose> = exposes.iter().map(|text| text.parse().unwrap()).collect();
        let resolver = resolver.map(|text| text.parse().unwrap());
        let subnet = "192.168.64.0/24".parse().unwrap();
        arguments(&Settings { subnet, net_type, exposes: &exposes, resolver }).join(" ")
    }

    #[test]
    fn passt_is_told_what_the_filter_believes() {
        let words = words(NetType::Nat, &[], Some("8.8.8.8"));
        for part in [
            "--no-map-gw",
            "--address 192.168.64.2 --netmask 24 --gateway 192.168.64.1 --mac-addr 0a:53:4e:00:00:01 --mtu 1500",
            "--tcp-ports none --udp-ports none",
        ] {
            assert!(words.contains(part), "{part} is not in {words}");
        }
        assert!(!words.contains("--dns"), "{words}");
    }

    #[test]
    fn ports_are_exposed_where_they_are_bound() {
        let words = words(NetType::Nat, &["8080:80", "127.0.0.1:81:80", "0.0.0.0:53:53/udp"], None);
        let expected = "--tcp-ports 8080:80 --tcp-ports 127.0.0.1/81:80 --udp-ports 53:53";
        assert!(words.ends_with(expected), "{words}");
    }

    #[test]
    fn a_loopback_resolver_is_reached_by_the_gateway() {
        let loopback = words(NetType::Nat, &[], Some("127.0.0.53"));
        let expected = "--dns 127.0.0.53 --dns 192.168.64.1 --dns-forward 192.168.64.1";
        assert!(loopback.contains(expected), "{loopback}");
        assert!(words(NetType::Host, &[], Some("8.8.8.8")).contains("--dns none"));
    }

    #[test]
    fn the_first_resolver_that_is_ipv4_counts() {
        let text = "# nameserver 1.1.1.1\nsearch x\nnameserver fe80::1%eth0\n nameserver\t9.9.9.9 \nnameserver 8.8.8.8\n";
        assert_eq!(first_resolver(text), Some(Ipv4Addr::new(9, 9, 9, 9)));
        assert_eq!(first_resolver(""), None);
    }

    #[test]
    fn only_the_noise_is_taken_out() {
        let said = b"Failed to send 47 bytes to syslog\nDon't run as root.\nno route\n";
        assert_eq!(without_noise(said), b"Don't run as root.; no route");
    }
}
