//! Turns arguments into a configuration, or into an error that names the flag, the value, the reason and the
//! fix. This module changes nothing on the system.

pub mod client;
pub mod expose;
#[cfg(target_os = "linux")]
mod linux;
mod network_name;
#[cfg(not(target_os = "linux"))]
mod other;
pub mod servers;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
use other as system;

use std::num::NonZeroU64;
use std::os::fd::{OwnedFd, RawFd};

pub use network_name::{NameError, NetworkName};
use softnet_filter::{Action, Entry, MacAddr, NetType, OnBlock, Policy, Rule};

use crate::cli::{PortArgs, VmArgs};
use crate::control::{Connection, Methods};
use crate::sys;
use crate::usage::UsageError;
use crate::vm::VmSocket;
use client::ClientSettings;
use expose::Expose;
use servers::Servers;

/// Bounds of `--dhcp-lease-time` in seconds: the DHCP server grants no lease shorter than two minutes, and
/// with more than a day the addresses may run out, which a short lease prevents.
const LEASE_TIME: std::ops::RangeInclusive<u32> = 120..=86_400;
/// The lease time if none is given. Short, so that the pool is not exhausted by VMs that end without releasing their leases.
const DEFAULT_LEASE_TIME: u32 = 600;

/// The lowest limit of a direction in bytes a second. Below it, DHCP would wait too long behind a VM's other frames, and one
/// super-frame would take longer than a second.
const LEAST_RATE: u64 = 64_000;

/// How many tracked connections one VM may have by default (rule H4).
pub const DEFAULT_CONNECTIONS: u32 = 16_384;

/// Whether a lease is released at the end unless the command line says otherwise. Tart ends Softnet alike for a VM that is
/// shut down and for one that is suspended and believes in its lease, so on macOS it is kept, and short leases alone
/// keep the addresses from running out.
const RELEASES_BY_DEFAULT: bool = !cfg!(target_os = "macos");

/// Which host side carries the frames.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HostSide {
    /// An existing TAP.
    Tap(String),
    /// A new TAP in an existing bridge.
    Bridge(String),
    /// The managed network, or passt if the process lacks the privilege for it.
    Managed {
        /// Name of the network and its bridge.
        network: NetworkName,
        /// Whether the user asked for it explicitly, so that passt does not replace it.
        explicit: bool,
        /// The requested subnet.
        subnet: Option<ipnet::Ipv4Net>,
    },
}

/// A checked configuration of one filtering process.
#[derive(Debug)]
pub struct Config {
    /// The VM's socket.
    pub vm: VmSocket,
    /// The VM's MAC address, unicast and non-zero.
    pub vm_mac: MacAddr,
    /// Everything that `softnet run` configures too.
    pub port: PortSettings,
    /// How long the VM may send nothing before a warning says so; `None` where nobody knows when it starts.
    pub mute_limit: Option<std::time::Duration>,
}

/// What `softnet` and `softnet run` have in common, checked.
#[derive(Debug)]
pub struct PortSettings {
    /// Whether the VM reaches the internet.
    pub net_type: NetType,
    /// Where its frames go.
    pub host: HostSide,
    /// Seconds that the DHCP server's leases last.
    pub lease_time: u32,
    /// How many connections of the VM the host tracks (rule H4).
    pub connections: u32,
    /// The VM's name, in small letters.
    pub name: Option<String>,
    /// What DHCP gives the VM.
    pub client: ClientSettings,
    /// Who serves the VM's network, where the host does not.
    pub servers: Servers,
    /// Port forwards, each with its own port of the host.
    pub expose: Vec<Expose>,
    /// Whether the lease is released at the end.
    pub release: bool,
    /// The most that passes from the VM, in bytes a second.
    pub limit_up: Option<NonZeroU64>,
    /// The most that passes to the VM, in bytes a second.
    pub limit_down: Option<NonZeroU64>,
    /// `--allow` and `--block`.
    pub rules: Vec<Rule>,
    /// What the VM hears of a packet that they refuse.
    pub on_block: OnBlock,
    /// Who may show and replace the policy while the VM runs.
    pub control: Option<Connection>,
    /// User to become.
    pub user: Option<String>,
    /// Group to become.
    pub group: Option<String>,
    /// Whether a kernel without sandboxing is an error.
    pub require_sandbox: bool,
    /// The descriptor on which readiness is reported.
    pub ready: Option<OwnedFd>,
    /// Whether the counters are printed at the end.
    pub stats: bool,
}

impl PortSettings {
    /// The rules as a table.
    pub fn policy(&self) -> Policy {
        Policy::new(self.rules.clone())
    }
}

impl TryFrom<(VmArgs, PortArgs)> for Config {
    type Error = UsageError;

    fn try_from((vm, port): (VmArgs, PortArgs)) -> Result<Self, UsageError> {
        let fd = vm.vm_fd.ok_or_else(|| {
            UsageError::flag(
                "--vm-fd",
                "is missing; pass the number of the VM's socket, or let `softnet run` create one",
            )
        })?;
        let mac = vm.vm_mac_address.ok_or_else(|| {
            UsageError::flag("--vm-mac-address", "is missing; pass the MAC address of the VM's network card")
        })?;
        let vm_mac = parse_mac(&mac)?;
        let port = PortSettings::try_from(port)?;
        let socket = adopt("--vm-fd", &fd)?;
        let vm = VmSocket::check(socket).map_err(|error| UsageError::new("--vm-fd", fd, error))?;
        Ok(Config { vm, vm_mac, port, mute_limit: None })
    }
}

impl TryFrom<PortArgs> for PortSettings {
    type Error = UsageError;

    fn try_from(args: PortArgs) -> Result<Self, UsageError> {
        let net_type = match args.vm_net_type.as_str() {
            "nat" => NetType::Nat,
            "host" => NetType::Host,
            other => {
                return Err(UsageError::new(
                    "--vm-net-type",
                    other,
                    "is neither \"nat\" nor \"host\"; use one of the two",
                ));
            }
        };
        let lease_time = lease_time(&args)?;
        let mut rules = parse_rules("--allow", &args.allow, Action::Allow)?;
        rules.extend(parse_rules("--block", &args.block, Action::Block)?);
        let on_block = parse_on_block(&args.on_block)?;
        let expose = parse_exposes(&args.expose)?;
        let limit_up = parse_rate("--limit-up", args.limit_up)?;
        let limit_down = parse_rate("--limit-down", args.limit_down)?;
        let host = system::host_side(&args.host, !args.expose.is_empty(), net_type)?;
        let connections = system::connections(&args.host)?;
        let name =
            |name: &String| client::parse_name(name).map_err(|error| UsageError::new("--name", name, error));
        let name = args.name.as_ref().map(name).transpose()?;
        let client = system::client(&args.host, net_type)?;
        let servers = system::servers(&args.host)?;
        let ready = args.ready_fd.as_deref().map(parse_ready_fd).transpose()?;
        let control = args.control_fd.as_deref().map(parse_control_fd).transpose()?;
        Ok(PortSettings {
            net_type,
            host,
            lease_time,
            connections,
            name,
            client,
            servers,
            expose,
            release: release(args.release, args.no_release, RELEASES_BY_DEFAULT)?,
            limit_up,
            limit_down,
            rules,
            on_block,
            control,
            user: args.user,
            group: args.group,
            require_sandbox: args.require_sandbox,
            ready,
            stats: args.stats,
        })
    }
}

/// A MAC address that a VM can have: unicast and non-zero (rule L1).
///
/// # Errors
/// When it is malformed, multicast or zero.
pub fn parse_mac(value: &str) -> Result<MacAddr, UsageError> {
    let error = |reason: &str| UsageError::new("--vm-mac-address", value, reason);
    let mac: MacAddr = value.parse().map_err(|_| {
        error("is not a MAC address; write six octets in hexadecimal, such as 5a:94:ef:e4:0c:ee")
    })?;
    if mac.is_zero() {
        return Err(error(
            "is the zero address; a VM needs an address of its own, such as 5a:94:ef:e4:0c:ee",
        ));
    }
    if !mac.is_unicast() {
        return Err(error("is a multicast address; a VM needs a unicast one, with an even first octet"));
    }
    Ok(mac)
}

/// Whether the lease is released at the end.
fn release(release: bool, keep: bool, by_default: bool) -> Result<bool, UsageError> {
    if release && keep {
        let reason =
            "contradicts --no-release; the lease is either released or kept, so give only one of the two";
        return Err(UsageError::flag("--release", reason));
    }
    Ok(release || (by_default && !keep))
}

/// The lease time, given by either of two names.
fn lease_time(args: &PortArgs) -> Result<u32, UsageError> {
    let (flag, value) = match (&args.dhcp_lease_time, &args.bootpd_lease_time) {
        (Some(value), _) => ("--dhcp-lease-time", value),
        (None, Some(value)) => ("--bootpd-lease-time", value),
        (None, None) => return Ok(DEFAULT_LEASE_TIME),
    };
    let error = || {
        let (low, high) = (LEASE_TIME.start(), LEASE_TIME.end());
        UsageError::new(flag, value, format!("is not a number of seconds from {low} to {high}"))
    };
    value.parse().ok().filter(|seconds| LEASE_TIME.contains(seconds)).ok_or_else(error)
}

fn parse_rate(flag: &'static str, value: Option<String>) -> Result<Option<NonZeroU64>, UsageError> {
    let Some(value) = value else { return Ok(None) };
    let (digits, unit) = match value.strip_suffix(['k', 'K', 'm', 'M', 'g', 'G']) {
        None => (value.as_str(), 1),
        Some(digits) => match value.as_bytes().last() {
            Some(b'k' | b'K') => (digits, 1_000),
            Some(b'm' | b'M') => (digits, 1_000_000),
            _ => (digits, 1_000_000_000),
        },
    };
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let rate = digits.parse::<u64>().ok().filter(|_| is_number).and_then(|number| number.checked_mul(unit));
    match rate.and_then(NonZeroU64::new).filter(|rate| rate.get() >= LEAST_RATE) {
        Some(rate) => Ok(Some(rate)),
        None => Err(UsageError::new(
            flag,
            value,
            "is not a number of bytes a second of at least 64K; write one such as 500K, 12M or 1G (10 Mbit/s are 1250K)",
        )),
    }
}

fn parse_rules(flag: &'static str, values: &[String], action: Action) -> Result<Vec<Rule>, UsageError> {
    let rule = |value: &String| {
        let entry: Entry = value.parse().map_err(|error| UsageError::new(flag, value, error))?;
        Ok(Rule { entry, action })
    };
    values.iter().map(rule).collect()
}

fn parse_on_block(value: &str) -> Result<OnBlock, UsageError> {
    match value {
        "reject" => Ok(OnBlock::Reject),
        "drop" => Ok(OnBlock::Drop),
        other => Err(UsageError::new(
            "--on-block",
            other,
            "is neither \"reject\" nor \"drop\"; use one of the two",
        )),
    }
}

fn parse_exposes(values: &[String]) -> Result<Vec<Expose>, UsageError> {
    let parse =
        |value: &String| value.trim().parse().map_err(|error| UsageError::new("--expose", value, error));
    let exposes = values.iter().map(parse).collect::<Result<Vec<Expose>, _>>()?;
    match expose::first_collision(&exposes) {
        None => Ok(exposes),
        Some((first, second)) => {
            let reason = format!("uses the same port of the host as {first}; choose another");
            Err(UsageError::new("--expose", second.to_string(), reason))
        }
    }
}

/// The name of a managed network.
///
/// # Errors
/// When the name is invalid.
pub fn network_name(name: &str) -> Result<NetworkName, UsageError> {
    name.parse().map_err(|error: NameError| UsageError::new("--network", name, error))
}

fn parse_ready_fd(value: &str) -> Result<OwnedFd, UsageError> {
    let fd = adopt("--ready-fd", value)?;
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(|error| UsageError::new("--ready-fd", value, error))?;
    if flags & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::RDONLY {
        return Err(UsageError::new(
            "--ready-fd",
            value,
            "is open for reading only; pass the writing end of a pipe",
        ));
    }
    Ok(fd)
}

fn parse_control_fd(value: &str) -> Result<Connection, UsageError> {
    let socket = adopt("--control-fd", value)?;
    Connection::check(socket, Methods::Policy).map_err(|error| UsageError::new("--control-fd", value, error))
}

fn adopt(flag: &'static str, value: &str) -> Result<OwnedFd, UsageError> {
    let number: RawFd = value.parse().ok().filter(|&fd| fd >= 0).ok_or_else(|| {
        UsageError::new(
            flag,
            value,
            "is not a file descriptor number; pass one such as 0 (standard input) or 3",
        )
    })?;
    if number == libc::STDERR_FILENO {
        return Err(UsageError::new(flag, value, "is standard error, which Softnet logs to; pass another"));
    }
    sys::fd::adopt(number).map_err(|error| match error.raw_os_error() {
        Some(libc::EBADF) => {
            UsageError::new(flag, value, "is not open; let the launcher pass it without close-on-exec")
        }
        Some(libc::EBUSY) => {
            UsageError::new(flag, value, "is given twice; --vm-fd, --ready-fd and --control-fd must differ")
        }
        _ => UsageError::new(flag, value, error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn settings(line: &str) -> Result<PortSettings, UsageError> {
        let words = std::iter::once("softnet").chain(line.split_whitespace());
        PortSettings::try_from(crate::cli::Cli::try_parse_from(words).unwrap().port)
    }

    fn refusal(line: &str) -> String {
        settings(line).unwrap_err().to_string()
    }

    #[test]
    fn mac_addresses_that_no_vm_can_have_are_refused() {
        for bad in [
            "",
            "5a:94:ef:e4:0c",
            "5a:94:ef:e4:0c:eg",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
        ] {
            let error = parse_mac(bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("--vm-mac-address {bad:?}: ")), "{error}");
        }
        parse_mac("5a:94:ef:e4:0c:ee").unwrap();
    }

    #[test]
    fn errors_name_flag_value_and_reason_on_one_line() {
        for (line, flag, value) in [
            ("--allow 10.0.0.0/33", "--allow", "10.0.0.0/33"),
            ("--limit-up 63999", "--limit-up", "63999"),
            ("--limit-up 0", "--limit-up", "0"),
            ("--limit-up -5", "--limit-up", "-5"),
            ("--limit-up +1M", "--limit-up", "+1M"),
            ("--limit-down 1.5M", "--limit-down", "1.5M"),
            ("--limit-down M", "--limit-down", "M"),
            ("--limit-down 10Mbit", "--limit-down", "10Mbit"),
            ("--limit-down 18446744073710G", "--limit-down", "18446744073710G"),
            ("--allow @hots", "--allow", "@hots"),
            ("--block 2001:db8::/129", "--block", "2001:db8::/129"),
            ("--block 10.0.0.0/8:0", "--block", "10.0.0.0/8:0"),
            ("--allow example.com", "--allow", "example.com"),
            ("--on-block reset", "--on-block", "reset"),
            ("--vm-net-type bridged", "--vm-net-type", "bridged"),
            ("--bootpd-lease-time 60", "--bootpd-lease-time", "60"),
            ("--dhcp-lease-time -5", "--dhcp-lease-time", "-5"),
            ("--connections 63", "--connections", "63"),
            ("--connections 1048577", "--connections", "1048577"),
            ("--ready-fd x", "--ready-fd", "x"),
            ("--ready-fd 999", "--ready-fd", "999"),
            ("--subnet 10.0.0.1/24", "--subnet", "10.0.0.1/24"),
            ("--subnet 8.8.8.0/24", "--subnet", "8.8.8.0/24"),
            ("--network a-b", "--network", "a-b"),
            ("--expose 80", "--expose", "80"),
            ("--expose 80:99999", "--expose", "80:99999"),
            ("--expose 80:80,80:81", "--expose", "80:81/tcp"),
            ("--tap far/away", "--tap", "far/away"),
            ("--vm-address 10.0.0", "--vm-address", "10.0.0"),
            ("--dns 127.0.0.53", "--dns", "127.0.0.53"),
            ("--dns 10.0.0.1,x", "--dns", "x"),
            ("--dns-search corp.example,a_b", "--dns-search", "a_b"),
            ("--pxe-file a,b", "--pxe-file", "a,b"),
            ("--pxe-file ../a --tftp-root /", "--pxe-file", "../a"),
            ("--pxe-file a", "--pxe-file", "a"),
            ("--vm-address 10.0.0.9 --dns 10.0.0.1,10.0.0.9", "--dns", "10.0.0.9"),
            ("--name a.b", "--name", "a.b"),
        ] {
            let error = refusal(line);
            assert!(error.starts_with(&format!("{flag} {value:?}: ")), "{line}: {error}");
            assert!(!error.contains('\n'));
        }
        assert!(refusal("--allow example.com").contains("not supported yet"));
    }

    #[test]
    fn rates_are_bytes_a_second_in_decimal_units() {
        for (text, bytes) in [
            ("64000", 64_000),
            ("64K", 64_000),
            ("500k", 500_000),
            ("12M", 12_000_000),
            ("1G", 1_000_000_000),
        ] {
            let settings = settings(&format!("--limit-up {text}")).unwrap();
            assert_eq!((settings.limit_up.map(NonZeroU64::get), settings.limit_down), (Some(bytes), None));
        }
        assert_eq!(settings("--limit-down 1g").unwrap().limit_down.map(NonZeroU64::get), Some(1_000_000_000));
    }

    #[test]
    fn contradictions_are_refused() {
        for line in [
            "--tap a --bridge b",
            "--tap a --network n",
            "--bridge b --subnet 10.0.0.0/24",
            "--tap a --expose 80:80",
            "--bridge b --connections 100",
            "--tap a --dns 10.0.0.1",
            "--bridge b --dns-search a.example",
            "--bridge b --tftp-root /",
            "--tap a --pxe-file a",
            "--vm-net-type host --dns 10.0.0.1",
            "--release --no-release",
        ] {
            assert!(refusal(line).contains("contradicts"), "{line}");
        }
    }

    /// Tart ends Softnet in the same way for a suspension as for a shutdown, so macOS keeps the lease.
    #[test]
    fn a_lease_is_released_or_kept_as_asked_and_as_the_system_has_it() {
        for (line, on_linux, on_macos) in
            [("", true, false), ("--release", true, true), ("--no-release", false, false)]
        {
            let (asked, keep) = (line == "--release", line == "--no-release");
            assert_eq!(release(asked, keep, true).unwrap(), on_linux, "{line}");
            assert_eq!(release(asked, keep, false).unwrap(), on_macos, "{line}");
        }
    }

    #[test]
    fn defaults_are_the_managed_network_with_short_leases() {
        let settings = settings("--stats").unwrap();
        let expected = HostSide::Managed {
            network: NetworkName::default_for(NetType::Nat),
            explicit: false,
            subnet: None,
        };
        assert_eq!((settings.host, settings.lease_time, settings.release), (expected, 600, true));
        assert_eq!(settings.connections, 16_384);
    }
}
