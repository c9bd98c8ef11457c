//! Which of the host sides of Linux was asked for.

use softnet_filter::NetType;

use super::client::{self, ClientSettings};
use super::servers::{self, Servers};
use super::{DEFAULT_CONNECTIONS, HostSide, NetworkName, network_name};
use crate::cli::HostArgs;
use crate::usage::UsageError;

/// Bounds of `--connections`: below the lower one a guest hardly boots, and no host's table is larger than
/// the upper one by default.
const CONNECTIONS: std::ops::RangeInclusive<u32> = 64..=1_048_576;

/// The host side. `exposes` says whether ports of the VM are to be published.
///
/// # Errors
/// If a value is invalid, or the arguments contradict each other.
pub fn host_side(args: &HostArgs, exposes: bool, net_type: NetType) -> Result<HostSide, UsageError> {
    let contradiction = |flag, other| {
        Err(UsageError::flag(
            flag,
            format_args!("contradicts {other}; a VM has one host side, so give only one of the two"),
        ))
    };
    match (&args.tap, &args.bridge) {
        (Some(_), Some(_)) => return contradiction("--tap", "--bridge"),
        (Some(_), None) if args.network.is_some() => return contradiction("--tap", "--network"),
        (Some(_), None) if args.subnet.is_some() => return contradiction("--tap", "--subnet"),
        (None, Some(_)) if args.network.is_some() => return contradiction("--bridge", "--network"),
        (None, Some(_)) if args.subnet.is_some() => return contradiction("--bridge", "--subnet"),
        _ => {}
    }
    let flag = if args.tap.is_some() { "--tap" } else { "--bridge" };
    if (args.tap.is_some() || args.bridge.is_some()) && exposes {
        return Err(UsageError::flag(
            "--expose",
            format_args!(
                "contradicts {flag}; ports are published on the managed network only, so leave {flag} out"
            ),
        ));
    }
    if let Some(name) = &args.tap {
        return Ok(HostSide::Tap(interface_name("--tap", name)?));
    }
    if let Some(name) = &args.bridge {
        return Ok(HostSide::Bridge(interface_name("--bridge", name)?));
    }
    let subnet = args.subnet.as_deref().map(parse_subnet).transpose()?;
    let explicit = args.network.is_some() || subnet.is_some();
    let network = match &args.network {
        Some(name) => network_name(name)?,
        None => NetworkName::default_for(net_type),
    };
    Ok(HostSide::Managed { network, explicit, subnet })
}

/// The limit of tracked connections (rule H4).
///
/// # Errors
/// If the value is invalid, or the host side has no such limit.
pub fn connections(args: &HostArgs) -> Result<u32, UsageError> {
    let Some(value) = &args.connections else { return Ok(DEFAULT_CONNECTIONS) };
    of_the_managed_network("--connections", args)?;
    let error = || {
        let (low, high) = (CONNECTIONS.start(), CONNECTIONS.end());
        UsageError::new("--connections", value, format!("is not a number from {low} to {high}"))
    };
    value.parse().ok().filter(|count| CONNECTIONS.contains(count)).ok_or_else(error)
}

/// What DHCP gives the VM.
///
/// # Errors
/// If a value is invalid, or the host side has another DHCP server than Softnet's.
pub fn client(args: &HostArgs, net_type: NetType) -> Result<ClientSettings, UsageError> {
    let mut settings = ClientSettings::default();
    if let Some(value) = &args.vm_address {
        let parsed = client::parse_address(value);
        settings.address = Some(parsed.map_err(|error| UsageError::new("--vm-address", value, error))?);
    }
    for value in &args.dns {
        client::add_resolver(&mut settings.resolvers, value)
            .map_err(|error| UsageError::new("--dns", value, error))?;
    }
    for value in &args.dns_search {
        client::add_domain(&mut settings.search, value)
            .map_err(|error| UsageError::new("--dns-search", value, error))?;
    }
    if let Some(value) = &args.tftp_root {
        let root = client::parse_tftp_root(value);
        settings.tftp_root = Some(root.map_err(|error| UsageError::new("--tftp-root", value, error))?);
    }
    if let Some(value) = &args.pxe_file {
        let file = client::parse_boot_file(value);
        settings.boot_file = Some(file.map_err(|error| UsageError::new("--pxe-file", value, error))?);
    }
    for (flag, is_given, is_for_host_only) in [
        ("--dns", !settings.resolvers.is_empty(), false),
        ("--dns-search", !settings.search.is_empty(), false),
        ("--pxe-file", settings.boot_file.is_some(), true),
        ("--tftp-root", settings.tftp_root.is_some(), true),
    ] {
        if !is_given {
            continue;
        }
        of_the_managed_network(flag, args)?;
        if net_type == NetType::Host && !is_for_host_only {
            let reason = "contradicts --vm-net-type host; a host-only VM gets no resolver, so leave one of the two out";
            return Err(UsageError::flag(flag, reason));
        }
    }
    settings.check()?;
    Ok(settings)
}

/// Who serves the network behind a TAP or a bridge.
///
/// # Errors
/// If a value is invalid, or the network is Softnet's own.
pub fn servers(args: &HostArgs) -> Result<Servers, UsageError> {
    let given = [("--gateway", &args.gateway), ("--dhcp-server", &args.dhcp_server)];
    if args.tap.is_none()
        && args.bridge.is_none()
        && let Some((flag, Some(value))) = given.into_iter().find(|(_, value)| value.is_some())
    {
        let reason =
            "needs --tap or --bridge; Softnet's own network has the host as its router and DHCP server";
        return Err(UsageError::new(flag, value, reason));
    }
    let gateway = args.gateway.as_deref().map(|value| {
        servers::parse_gateway(value).map_err(|error| UsageError::new("--gateway", value, error))
    });
    let dhcp_server = args.dhcp_server.as_deref().map(|value| {
        servers::parse_dhcp_server(value).map_err(|error| UsageError::new("--dhcp-server", value, error))
    });
    Ok(Servers { gateway: gateway.transpose()?, dhcp_server: dhcp_server.transpose()? })
}

/// Refuses a flag of the managed network beside another host side.
fn of_the_managed_network(flag: &'static str, args: &HostArgs) -> Result<(), UsageError> {
    let other = args.tap.as_ref().map(|_| "--tap").or(args.bridge.as_ref().map(|_| "--bridge"));
    let Some(other) = other else { return Ok(()) };
    let reason = format_args!(
        "contradicts {other}; it applies to the managed network only, so leave one of the two out"
    );
    Err(UsageError::flag(flag, reason))
}

/// A name that the kernel accepts for an interface: 1 to 15 bytes, no slash, colon or white space.
fn interface_name(flag: &'static str, name: &str) -> Result<String, UsageError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | '%');
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.contains(bad) {
        let reason = "is not a valid interface name; use 1 to 15 characters without spaces, slashes, colons or percent signs";
        return Err(UsageError::new(flag, name, reason));
    }
    Ok(name.to_owned())
}

fn parse_subnet(value: &str) -> Result<ipnet::Ipv4Net, UsageError> {
    let error = |reason: &str| UsageError::new("--subnet", value, reason);
    let subnet: ipnet::Ipv4Net =
        value.parse().map_err(|_| error("is not an IPv4 network; write it as 192.168.77.0/24"))?;
    if !(16..=29).contains(&subnet.prefix_len()) {
        return Err(error("has an unsupported size; use a prefix length from 16 to 29"));
    }
    if subnet.trunc() != subnet {
        return Err(error(&format!("has host bits set; write {}", subnet.trunc())));
    }
    if !subnet.network().is_private()
        && !softnet_wire::special::SHARED_ADDRESS_SPACE.contains(subnet.network())
    {
        return Err(error("is not private; use a network within 10/8, 172.16/12, 192.168/16 or 100.64/10"));
    }
    Ok(subnet)
}
