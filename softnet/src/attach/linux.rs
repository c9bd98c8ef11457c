//! Chooses the VM's host side on Linux, and opens it.

use std::os::unix::net::UnixStream;

use super::Request;
use crate::config::client::ClientSettings;
use crate::config::expose::Expose;
use crate::config::{HostSide, PortSettings};
use crate::control::socket::{self, ControlSocket};
use crate::control::{Connection, Methods};
use crate::host::addresses::AddressWatch;
use crate::host::bridge::{self, Gateway};
use crate::host::network::exposed::ExposedWatch;
use crate::host::network::{self, Member, Membership, NetworkConfig};
use crate::host::reservation::Reservation;
use crate::host::stations::{self, Plan, Stations};
use crate::host::tap::Tap;
use crate::host::{HostLink, Mode, Uplink, passt, port_state};
use crate::leases::LeaseFile;
use crate::link::{Link, StreamLink};
use crate::monitor::{self, Gate, MonitorState, Place};
use crate::netlink::{self, Kind, Netlink};
use crate::privilege::Origin;
use crate::usage::UsageError;
use anyhow::Context;
use ipnet::Ipv4Net;
use rustix::process::{geteuid, getuid};
use rustix::thread::CapabilitySet;
use softnet_filter::MacAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The name of a new TAP; the kernel picks the number.
const NEW_TAP: &str = "snt%d";

/// An open host side, before the process forks.
struct Side {
    link: Box<dyn Link>,
    uplink: Uplink,
    mode: Mode,
    leases: Option<LeaseFile>,
    place: Option<Place>,
    exposed: ExposedWatch,
}

/// Opens the host side that `request` asks for.
///
/// The process forks: this returns in the child, and the parent becomes its [`monitor`].
///
/// # Errors
/// A [`UsageError`] for what the user can fix on the command line; any other error with its context.
pub fn open(request: &Request<'_>) -> anyhow::Result<HostLink> {
    let (gate, control) = open_gate(request)?.unzip();
    let side = open_side(request).inspect_err(|_| {
        if let Some(gate) = &gate {
            gate.abandon();
        }
    })?;
    split(side, gate, control, request)
}

fn open_side(request: &Request<'_>) -> anyhow::Result<Side> {
    let settings = request.settings;
    match &settings.host {
        HostSide::Tap(name) => open_tap(name, request),
        HostSide::Bridge(name) => open_bridge(name, request),
        HostSide::Managed { network, .. } if may_manage() => {
            let config = NetworkConfig {
                name: network.clone(),
                subnet: managed_subnet(&settings.host),
                net_type: settings.net_type,
                lease_time: std::time::Duration::from_secs(settings.lease_time.into()),
                tftp: settings.client.tftp_root.is_some(),
                names: settings.name.is_some(),
            };
            open_managed(&config, request)
        }
        HostSide::Managed { explicit: true, network, .. } => {
            let reason =
                "only root may set up a network; use sudo, or leave out --network and --subnet to use passt";
            Err(UsageError::new("--network", network.as_str(), reason).into())
        }
        HostSide::Managed { .. } => open_passt(request),
    }
}

/// Forks: the parent becomes the monitor and keeps everything that the process that parses frames must not
/// have.
fn split(
    side: Side,
    gate: Option<Gate>,
    control: Option<Connection>,
    request: &Request<'_>,
) -> anyhow::Result<HostLink> {
    let Side { link, uplink, mode, leases, place, exposed } = side;
    let addresses = AddressWatch::new(uplink.address)?;
    let (host_addresses, ports) = (addresses.known().to_vec(), exposed.known().to_vec());
    let state = MonitorState { place, addresses, exposed, gate };
    let follower =
        monitor::fork_worker(state, request.vm, request.identity).context("cannot start the worker")?;
    // Softnet starts dnsmasq in the first of these, and passt has only one address to give.
    let files_by_mac = matches!(mode, Mode::Network | Mode::Passt);
    Ok(HostLink {
        link,
        uplink,
        mode,
        follower,
        files_by_mac,
        leases,
        host_addresses,
        exposed: ports,
        control,
    })
}

/// The VM's control socket, and the worker's end of what leads there. A set-user-ID start has none, because its caller
/// could take the names of others.
fn open_gate(request: &Request<'_>) -> anyhow::Result<Option<(Gate, Connection)>> {
    if crate::sys::secure::is_secure_execution() {
        return Ok(None);
    }
    let name = &request.settings.name;
    let owner = match request.identity.origin {
        // No user has started it as these.
        Origin::Dedicated | Origin::Nobody | Origin::OnlyOne => getuid(),
        _ => request.identity.uid,
    };
    let mac = request.vm_mac.to_string().replace(':', "-");
    let open = || -> anyhow::Result<Option<ControlSocket>> {
        let Some(directory) = socket::make_directory()? else { return Ok(None) };
        let by_name = name.as_ref().map(|name| ControlSocket::open(&directory, name, owner));
        Ok(Some(match by_name {
            Some(Err(socket::Error::Taken)) => {
                tracing::warn!(
                    name,
                    "another running VM has this name, so `softnet policy` reaches this one by its MAC address only"
                );
                ControlSocket::open(&directory, &mac, owner)?
            }
            Some(opened) => opened?,
            None => ControlSocket::open(&directory, &mac, owner)?,
        }))
    };
    let socket = match open() {
        Ok(Some(socket)) => socket,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::warn!(%error, "this VM has no control socket; `softnet policy` cannot reach it by name");
            return Ok(None);
        }
    };
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket pair")?;
    let control = Connection::check(theirs.into(), Methods::All)?;
    Ok(Some((Gate::new(socket, ours.into()), control)))
}

fn managed_subnet(host: &HostSide) -> Option<Ipv4Net> {
    match host {
        HostSide::Managed { subnet, .. } => *subnet,
        HostSide::Tap(_) | HostSide::Bridge(_) => None,
    }
}

/// Whether this process may create interfaces and rules: it is root and has the capability, which root in a
/// container may lack.
fn may_manage() -> bool {
    geteuid().is_root()
        && rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

fn open_tap(name: &str, request: &Request<'_>) -> anyhow::Result<Side> {
    let unusable = |error: &dyn std::fmt::Display| UsageError::new("--tap", name, error);
    let mut netlink = Netlink::open()?;
    let end = bridge::end_of_tap(&mut netlink, name).map_err(|error| unusable(&error))?;
    let plan = plan(&mut netlink, &end, "--tap", name, request)?;
    let multi_queue = match netlink.link(name)?.map(|link| link.kind) {
        Some(Kind::Tun(tun)) => tun.multi_queue,
        _ => false,
    };
    let mut tap = Tap::attach(name, multi_queue).map_err(|error| unusable(&error))?;
    open_stations(&mut netlink, &plan, &mut tap, request.vm_mac, end.mtu).map(|uplink| Side {
        uplink,
        link: Box::new(tap),
        mode: Mode::Tap,
        leases: None,
        place: None,
        exposed: ExposedWatch::new(None),
    })
}

fn open_bridge(name: &str, request: &Request<'_>) -> anyhow::Result<Side> {
    let &Request { vm_mac, isolated, .. } = request;
    let unusable = |error: bridge::Error| UsageError::new("--bridge", name, error);
    if !may_manage() {
        let reason = "only root may add a port to a bridge; use sudo, or --tap with a TAP that root created there for you";
        return Err(UsageError::new("--bridge", name, reason).into());
    }
    let mut netlink = Netlink::open()?;
    let bridge = bridge::find(&mut netlink, name).map_err(unusable)?;
    // Checked before anything is created.
    let plan = plan(&mut netlink, &bridge, "--bridge", name, request)?;
    let mut tap = Tap::attach(NEW_TAP, false).map_err(|error| UsageError::new("--bridge", name, error))?;
    // The second line of defence, after the filter, in case the process that parses the frames is compromised
    // (H10).
    if let Err(error) = network::install_for_tap(tap.name(), vm_mac, &plan) {
        tracing::warn!(%error, "the kernel does not check the VM's MAC address on the bridge, and does not keep the host's users from sending DHCP there");
    }
    bridge::pin(&mut netlink, &bridge).map_err(unusable)?;
    let end = bridge::join(&mut netlink, tap.name(), &bridge, vm_mac, isolated).map_err(unusable)?;
    open_stations(&mut netlink, &plan, &mut tap, vm_mac, end.mtu).map(|uplink| Side {
        uplink,
        link: Box::new(tap),
        mode: Mode::Bridge,
        leases: None,
        place: None,
        exposed: ExposedWatch::new(None),
    })
}

/// Who serves the segment that ends in `end`, which the flag `flag` names.
fn plan(
    netlink: &mut Netlink,
    end: &netlink::Link,
    flag: &'static str,
    name: &str,
    request: &Request<'_>,
) -> anyhow::Result<Plan> {
    let plan = Plan::new(netlink, end, &request.settings.servers).map_err(|error| match error {
        stations::Error::Host(error) => UsageError::new(flag, name, error).into(),
        stations::Error::Usage(error) => error.into(),
        error => anyhow::Error::new(error),
    })?;
    check_fixed_address(request, &plan)?;
    Ok(plan)
}

/// Waits until frames flow, and finds the stations behind the TAP.
fn open_stations(
    netlink: &mut Netlink,
    plan: &Plan,
    tap: &mut Tap,
    vm_mac: MacAddr,
    mtu: u32,
) -> anyhow::Result<Uplink> {
    if let Some(&host) = plan.host.first() {
        tap.set_gateway(host);
    }
    wait_until_frames_flow(netlink, tap)?;
    let Stations { router, dhcp_server } = plan.find(tap, vm_mac).map_err(|error| match error {
        stations::Error::Usage(error) => error.into(),
        error => anyhow::Error::new(error),
    })?;
    Ok(Uplink {
        mac: router.mac,
        address: router.address,
        dhcp_server,
        subnet: plan.subnet,
        mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
        interface: tap.name().to_owned(),
    })
}

/// The administrator keeps the address free for the VM on that network, so it only has to be one of a host there.
fn check_fixed_address(request: &Request<'_>, plan: &Plan) -> Result<(), UsageError> {
    let Some(address) = request.settings.client.address else { return Ok(()) };
    let subnet = plan.subnet;
    if !subnet.contains(&address)
        || plan.not_the_vms().contains(&address)
        || [subnet.network(), subnet.broadcast()].contains(&address)
    {
        let reason = format_args!(
            "is no VM's on the network {subnet} of {}, whose gateway is {}; choose another address in it",
            plan.interface,
            plan.router()
        );
        return Err(UsageError::new("--vm-address", address.to_string(), reason));
    }
    Ok(())
}

/// passt has no privilege and gets the forwards on its command line, so nothing has to follow the lease.
fn open_passt(request: &Request<'_>) -> anyhow::Result<Side> {
    let &Request { settings, vm_mac, .. } = request;
    let ClientSettings { address, resolvers, search, boot_file, tftp_root } = &settings.client;
    for (flag, is_given) in [
        ("--vm-address", address.is_some()),
        ("--dns", !resolvers.is_empty()),
        ("--dns-search", !search.is_empty()),
        ("--pxe-file", boot_file.is_some()),
        ("--tftp-root", tftp_root.is_some()),
    ] {
        if is_given {
            let reason = "needs the managed network, which only root may set up; use sudo, or leave it out to use passt, \
                          which gives the VM an address and resolvers itself";
            return Err(UsageError::flag(flag, reason).into());
        }
    }
    // passt reports only that it could not bind; this reports why. The ports are released for passt right
    // after.
    drop(reserve(settings)?);
    let passt = passt::start(vm_mac, settings.net_type, &settings.expose).map_err(|error| match error {
        passt::Error::MacIsGateway(_) => {
            UsageError::new("--vm-mac-address", vm_mac.to_string(), error).into()
        }
        error => anyhow::Error::new(error)
            .context("cannot start passt, which replaces the managed network for users without privilege"),
    })?;
    Ok(Side {
        uplink: Uplink {
            mac: passt.gateway,
            address: passt.address.addr(),
            dhcp_server: None,
            subnet: passt.address.trunc(),
            mtu: passt::MTU,
            interface: "passt".to_owned(),
        },
        link: Box::new(passt::PasstLink::new(StreamLink::new(passt.socket)?)),
        mode: Mode::Passt,
        leases: None,
        place: None,
        exposed: ExposedWatch::new(None),
    })
}

fn reserve(settings: &PortSettings) -> Result<Vec<Reservation>, UsageError> {
    let reserve = |expose| {
        Reservation::make(expose, getuid().is_root())
            .map_err(|error| UsageError::new("--expose", Expose::to_string(expose), error))
    };
    settings.expose.iter().map(reserve).collect()
}

fn open_managed(config: &NetworkConfig, request: &Request<'_>) -> anyhow::Result<Side> {
    let &Request { settings, vm_mac, isolated, .. } = request;
    let client = settings.client.clone().with_files_found()?;
    let served = client.boot_path().or_else(|| client.tftp_root.as_ref().map(PathBuf::from));
    if let Some(closed) = served.as_deref().and_then(closed_to_others) {
        tracing::warn!(
            path = %closed.display(),
            user = network::dnsmasq::arguments::user(),
            "not every user may enter this directory or read this file; TFTP does not serve it to the VM if that user may not"
        );
    }
    let reservations = reserve(settings)?;
    let member = Member {
        mac: vm_mac,
        exposes: settings.expose.clone(),
        release: settings.release,
        connections: settings.connections,
        name: settings.name.clone(),
        client,
    };
    let mut membership = Membership::join(config, &member).map_err(on_the_command_line)?;
    let mut tap = Tap::attach(NEW_TAP, false).context("cannot create a TAP")?;
    membership.attach(tap.name(), isolated)?;
    if let Some(address) = settings.client.address {
        // The VM may use it at once. The server knows by now that it is reserved.
        membership.set_address(Some(address)).map_err(on_the_command_line)?;
    }
    tap.set_gateway(membership.gateway().address);
    wait_until_frames_flow(&mut Netlink::open()?, &tap)?;
    Ok(Side {
        uplink: uplink(membership.gateway(), &tap),
        link: Box::new(tap),
        mode: Mode::Network,
        leases: Some(membership.lease_file()),
        place: Some(Place::new(membership, settings.expose.clone(), reservations)),
        exposed: ExposedWatch::new(Some((&config.name, vm_mac))),
    })
}

/// The directory on the way to `path`, or the one there, that not every user may enter; or the file there that not every user
/// may read.
fn closed_to_others(path: &Path) -> Option<&Path> {
    let is_closed = |path: &&Path| {
        std::fs::metadata(path).is_ok_and(|there| {
            let needed = if there.is_dir() { 0o001 } else { 0o004 };
            there.mode() & needed == 0
        })
    };
    path.ancestors().find(is_closed)
}

/// Turns an error that the user can fix on the command line into a [`UsageError`].
fn on_the_command_line(error: network::Error) -> anyhow::Error {
    use network::Error as E;
    match &error {
        E::Foreign(name) | E::TypeDiffers { name, .. } => {
            UsageError::new("--network", name.as_str(), &error).into()
        }
        E::Subnet { .. } | E::SubnetDiffers { .. } => UsageError::flag("--subnet", &error).into(),
        E::AddressOutside { address, .. }
        | E::AddressTaken { address, .. }
        | E::AddressLeased { address, .. } => {
            UsageError::new("--vm-address", address.to_string(), &error).into()
        }
        E::NoResolver { address, .. } => UsageError::new("--dns", address.to_string(), &error).into(),
        E::MacTaken { mac, .. } | E::MacIsGateway(mac) => {
            UsageError::new("--vm-mac-address", mac.to_string(), &error).into()
        }
        _ => error.into(),
    }
}

/// Softnet reports ready only when frames flow.
fn wait_until_frames_flow(netlink: &mut Netlink, tap: &Tap) -> anyhow::Result<()> {
    if !port_state::wait_until_frames_flow(netlink, tap.name())? {
        tracing::warn!(
            interface = tap.name(),
            "the host does not carry this interface's frames yet; check that the interface and its bridge are up"
        );
    }
    Ok(())
}

fn uplink(gateway: &Gateway, tap: &Tap) -> Uplink {
    Uplink {
        mac: gateway.mac,
        address: gateway.address,
        dhcp_server: None,
        subnet: gateway.subnet(),
        mtu: u16::try_from(gateway.mtu).unwrap_or(u16::MAX),
        interface: tap.name().to_owned(),
    }
}
