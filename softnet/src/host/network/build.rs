//! Creates, repairs and removes a network. Each runs under the run directory's lock and is idempotent.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use softnet_filter::{MacAddr, NetType};

use super::claim::{self, Claim};
use super::lock::Lock;
use super::record::{self, MemberRecord};
use super::run_dir::{NetworkDir, RunDir};
use super::{
    Error, MTU, NetworkConfig, Plan, bridge_mac, dnsmasq, rules, ruleset, service, subnet, type_name,
};
use crate::config::NetworkName;
use crate::config::client::ClientSettings;
use crate::host::bridge::{self, Gateway};
use crate::host::files;
use crate::host::sysctl;
use crate::host::tools::Tool;
use crate::netlink::{Kind, Link, Netlink};

/// Approximate limit of leases released per start, so that the messages fit into dnsmasq's socket queue,
/// which holds some 160 of them. The next start continues.
const MAX_RELEASES: usize = 64;

/// The VM that is about to join the network.
#[derive(Clone, Copy, Debug)]
pub(super) struct Joining<'a> {
    /// Its MAC address; its lease stays, because its new Softnet takes it over.
    pub mac: MacAddr,
    /// What the DHCP server is to give it.
    pub client: &'a ClientSettings,
}

impl Joining<'_> {
    /// Whether the network can give it that.
    fn check(&self, plan: &Plan) -> Result<(), Error> {
        let (name, subnet) = (plan.name.clone(), plan.subnet);
        if let Some(address) = self.client.address.filter(|address| !hands_out(plan, *address)) {
            return Err(Error::AddressOutside { address, name, subnet });
        }
        let is_no_host = |address: &&Ipv4Addr| [subnet.network(), subnet.broadcast()].contains(address);
        match self.client.resolvers.iter().find(is_no_host) {
            Some(&address) => Err(Error::NoResolver { address, name, subnet }),
            None => Ok(()),
        }
    }
}

/// Creates the network, or repairs what is missing or different.
///
/// # Errors
/// If the name or the subnet is used by something else, the network was created with other settings, a
/// program is missing, or the kernel refuses. A network that is new is removed again; one that was there stays as
/// far as it got, and the next start continues from there.
pub fn ensure(config: &NetworkConfig) -> Result<(Plan, Gateway), Error> {
    let run_dir = RunDir::of_this_namespace();
    let lock = run_dir.lock()?;
    ensure_locked(config, None, &run_dir, &lock)
}

/// The same for a VM that is about to join, if `joining` names one, and under a lock that the caller keeps.
pub(super) fn ensure_locked(
    config: &NetworkConfig,
    joining: Option<Joining<'_>>,
    run_dir: &RunDir,
    lock: &Lock,
) -> Result<(Plan, Gateway), Error> {
    // Checked before anything is changed.
    Tool::Nft.find()?;
    Tool::Dnsmasq.find().map_err(dnsmasq::Error::from)?;

    let directory = run_dir.network(config.name.as_str());
    let existed = files::read(&directory.file("network"))?.is_some()
        || Netlink::open()?.link(config.name.as_str())?.is_some();
    let serve = |_| service::ensure(&config.name, &directory, lock);
    repair_or_create(config, joining, run_dir, lock, serve).inspect_err(|_| {
        // It has no members yet, and would surprise whoever looks after an error.
        if existed || !directory.file("network").exists() {
            return;
        }
        let removed = if has_foreign_link(&config.name) {
            directory.remove().map_err(Error::from)
        } else {
            down_locked(&config.name, false, run_dir, lock).map(drop)
        };
        if let Err(error) = removed {
            tracing::warn!(%error, "cannot remove all of the network that could not be created; `softnet network down` does, once that works");
        }
    })
}

/// Whether an interface that a start has not made has the name, as one that was made meanwhile; or whether that is unknown.
fn has_foreign_link(name: &NetworkName) -> bool {
    let link = Netlink::open().and_then(|mut netlink| netlink.link(name.as_str()));
    link.map_or(true, |link| link.is_some_and(|link| link.mac != Some(bridge_mac(name))))
}

/// Repairs the network of `plan` as a start does; `serve` is the keeper's function that ensures the server
/// for the bridge with the given index.
pub(super) fn repair(
    plan: &Plan,
    run_dir: &RunDir,
    lock: &Lock,
    serve: impl FnOnce(u32) -> Result<(), Error>,
) -> Result<(), Error> {
    let Plan { name, net_type, lease_time, tftp, names, .. } = plan.clone();
    let config = NetworkConfig { name, subnet: None, net_type, lease_time, tftp, names };
    repair_or_create(&config, None, run_dir, lock, serve).map(drop)
}

fn repair_or_create(
    config: &NetworkConfig,
    joining: Option<Joining<'_>>,
    run_dir: &RunDir,
    lock: &Lock,
    serve: impl FnOnce(u32) -> Result<(), Error>,
) -> Result<(Plan, Gateway), Error> {
    let mut netlink = Netlink::open()?;
    let directory = run_dir.network(config.name.as_str());
    let (plan, link) = decide(config, &directory, &mut netlink, lock)?;
    // Before anything is changed.
    if let Some(joining) = joining {
        joining.check(&plan)?;
    }
    directory.create()?;
    let (path, text) = (directory.file("network"), record::write_plan(&plan));
    // Written only if it differs: a repair must not fail on a full disk.
    if files::read(&path)?.as_deref() != Some(text.as_str()) {
        files::write_atomically(&path, &text)?;
    }
    let members = record::members(&directory, lock)?;
    let gateway = ensure_bridge(&plan, link, &members, &mut netlink)?;
    sysctl::set_up_bridge(plan.name.as_str(), plan.net_type)?;
    let turn_on = plan.net_type == NetType::Nat && !sysctl::forwarding()?;
    if turn_on && files::read(&run_dir.forwarding_marker())?.is_none() {
        let text = ruleset::forwarding_interfaces(&netlink.links()?);
        files::write_atomically(&run_dir.forwarding_marker(), &text)?;
    }
    rules::apply(run_dir, lock)?;
    // After the rules that keep this from making the host a router for others (rule H5).
    if turn_on {
        sysctl::set_forwarding(true)?;
    }
    serve(gateway.index)?;
    reap(&plan, &directory, joining, lock)?;
    Ok((plan, gateway))
}

/// Makes the plan from the existing network, if any, and from what the start requests. Also returns the
/// bridge, if it exists.
fn decide(
    config: &NetworkConfig,
    directory: &NetworkDir,
    netlink: &mut Netlink,
    lock: &Lock,
) -> Result<(Plan, Option<Link>), Error> {
    let name = &config.name;
    let in_subnet = |source| Error::Subnet { name: name.clone(), source };
    let recorded = files::read(&directory.file("network"))?.and_then(|text| record::read_plan(name, &text));
    let link = netlink.link(name.as_str())?;
    let lease_time = lease_time(config, recorded.as_ref(), lock);
    let wanted = config.subnet.map(subnet::validate).transpose().map_err(in_subnet)?;
    let tftp = config.tftp || recorded.as_ref().is_some_and(|recorded| recorded.tftp);
    let wants_names =
        config.names && !lock.is_elevated() || recorded.as_ref().is_some_and(|recorded| recorded.names);
    // Its zone would hide the domain from the VMs.
    let names = wants_names && !name.could_be_a_domain();
    let net_type = config.net_type;
    let plan = |subnet| Plan { name: name.clone(), subnet, net_type, lease_time, tftp, names };

    let mut present = recorded.as_ref().map(|recorded| recorded.subnet);
    if let Some(link) = &link {
        // The MAC is derived from the name alone, so a bridge that has it is Softnet's even if /run was
        // emptied.
        let marked = link.mac == Some(plan(Ipv4Net::default()).mac());
        if link.kind != Kind::Bridge || !(marked || recorded.is_some()) {
            return Err(Error::Foreign(name.clone()));
        }
        if present.is_none() {
            present = netlink.addresses(link.index)?.first().map(Ipv4Net::trunc);
        }
    }
    if let Some(recorded) = &recorded
        && recorded.net_type != config.net_type
    {
        return Err(Error::TypeDiffers { name: name.clone(), present: type_name(recorded.net_type) });
    }
    match (present, wanted) {
        (Some(present), Some(wanted)) if present != wanted => {
            Err(Error::SubnetDiffers { name: name.clone(), present, wanted })
        }
        (Some(present), _) => Ok((plan(present), link)),
        (None, wanted) => {
            let own = link.as_ref().map(|link| link.index);
            let routes = netlink.routes()?;
            let taken = routes.iter().filter(|route| route.output.is_none() || route.output != own);
            let taken: Vec<Ipv4Net> = taken.map(|route| route.destination).collect();
            Ok((plan(subnet::choose(wanted, &taken).map_err(in_subnet)?), link))
        }
    }
}

/// The first part of the network that is not as planned. Checks only what is cheap: not the table, nor the
/// server.
pub(super) fn differs(plan: &Plan, members: &[MemberRecord]) -> Result<Option<&'static str>, Error> {
    let mut netlink = Netlink::open()?;
    let name = plan.name.as_str();
    let Some(link) = netlink.link(name)?.filter(|link| link.kind == Kind::Bridge) else {
        return Ok(Some("the bridge"));
    };
    if !link.up || link.mac != Some(plan.mac()) || link.mtu != MTU {
        return Ok(Some("the bridge"));
    }
    if netlink.addresses(link.index)? != [plan.gateway()] {
        return Ok(Some("the bridge's address"));
    }
    let own = std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/forwarding"));
    let forwards = own.is_ok_and(|value| value.trim() == "1");
    if forwards != (plan.net_type == NetType::Nat) || plan.net_type == NetType::Nat && !sysctl::forwarding()?
    {
        return Ok(Some("forwarding"));
    }
    for (tap, isolated) in members.iter().filter_map(|member| member.tap.as_ref()) {
        // A TAP that is gone is handled by its Softnet.
        if let Some(port) = netlink.link(tap)?
            && !is_in_place(&port, &link, *isolated)
        {
            return Ok(Some("a VM's port"));
        }
    }
    Ok(None)
}

/// The lease time: the latest start sets it for all VMs, unless it has more privilege than its caller (rule
/// H9).
fn lease_time(config: &NetworkConfig, recorded: Option<&Plan>, lock: &Lock) -> Duration {
    match recorded {
        Some(recorded) if lock.is_elevated() => {
            if recorded.lease_time != config.lease_time {
                let seconds = recorded.lease_time.as_secs();
                tracing::warn!(
                    seconds,
                    network = %config.name,
                    "keeping the network's lease time; only root may change an existing network"
                );
            }
            recorded.lease_time
        }
        _ => config.lease_time,
    }
}

/// Ensures that the bridge exists with its address, and that the members' TAPs are its ports.
fn ensure_bridge(
    plan: &Plan,
    link: Option<Link>,
    members: &[MemberRecord],
    netlink: &mut Netlink,
) -> Result<Gateway, Error> {
    let name = plan.name.as_str();
    let link = match link {
        Some(link) => link,
        None => {
            netlink.create_bridge(name, plan.mac(), MTU)?;
            bridge::find(netlink, name)?
        }
    };
    if link.mac != Some(plan.mac()) {
        netlink.set_mac(link.index, plan.mac())?;
    }
    if link.mtu != MTU {
        netlink.set_mtu(link.index, MTU)?;
    }
    let addresses = netlink.addresses(link.index)?;
    for &foreign in addresses.iter().filter(|&&address| address != plan.gateway()) {
        tracing::warn!(bridge = name, address = %foreign, "removing an address that is not the gateway's");
        netlink.remove_address(link.index, foreign)?;
    }
    if !addresses.contains(&plan.gateway()) {
        netlink.add_address(link.index, plan.gateway())?;
    }
    if !link.up {
        netlink.set_up(link.index)?;
    }
    for member in members {
        if let Some((tap, isolated)) = &member.tap {
            reattach(netlink, tap, *isolated, &link, member)?;
        }
    }
    let link = bridge::find(netlink, name)?;
    Ok(bridge::gateway(netlink, &link)?)
}

/// Whether a member's TAP is up and a port of the bridge.
fn is_in_place(port: &Link, bridge: &Link, isolated: bool) -> bool {
    port.up && port.master == Some(bridge.index) && port.isolated == Some(isolated)
}

/// Attaches the TAP of a running member to the bridge again, if the bridge was deleted or the TAP was taken
/// down.
fn reattach(
    netlink: &mut Netlink,
    tap: &str,
    isolated: bool,
    bridge: &Link,
    member: &MemberRecord,
) -> Result<(), Error> {
    let Some(port) = netlink.link(tap)? else { return Ok(()) };
    if !is_in_place(&port, bridge, isolated) {
        tracing::warn!(tap, bridge = bridge.name, "attaching a VM's TAP to its bridge again");
        bridge::join(netlink, tap, bridge, member.mac, isolated)?;
    }
    Ok(())
}

/// Reaps members whose process is gone and releases their leases. The lease of the VM that is `joining`
/// stays, because its new Softnet takes it over.
fn reap(
    plan: &Plan,
    directory: &NetworkDir,
    joining: Option<Joining<'_>>,
    _lock: &Lock,
) -> Result<(), Error> {
    let mut addresses = BTreeSet::new();
    for orphan in claim::orphaned(&directory.leases())? {
        let (claim, _) = orphan?;
        addresses.extend(claim.name().and_then(|name| name.parse::<Ipv4Addr>().ok()));
        claim.release()?;
    }
    if let Err(error) = rules::forget(&addresses) {
        tracing::warn!(%error, "cannot delete the tracked connections of VMs that were killed; they stay until they time out or their addresses are leased again");
    }
    let dead: Vec<(Claim, String)> = claim::orphaned(&directory.ports())?.collect::<Result<_, _>>()?;
    // Messages of dead members may still be queued for the server, and the joining VM's lease is read next.
    if !dead.is_empty() && !dnsmasq::wait_until_idle(directory) {
        tracing::warn!("dnsmasq is slow; leases of VMs that were killed may stay until they expire");
    }
    let mut released = 0;
    for (claim, text) in dead {
        let dead = record::read_member(&text)
            .filter(|dead| dead.release && joining.map(|joining| joining.mac) != Some(dead.mac));
        if let Some(dead) = dead {
            if released >= MAX_RELEASES {
                continue;
            }
            match dnsmasq::release_all(plan, directory, dead.mac, dead.address) {
                Ok(count) => released += count,
                Err(error) => {
                    tracing::warn!(%error, "cannot release the lease of a VM that was killed; it stays until it expires")
                }
            }
        }
        claim.release()?;
    }
    Ok(())
}

/// Whether an address is one that the network hands out.
pub(super) fn hands_out(plan: &Plan, address: Ipv4Addr) -> bool {
    let (first, last) = subnet::pool(plan.subnet);
    (first..=last).contains(&address)
}

/// The result of removing a network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Down {
    /// Whether there was anything to remove.
    pub existed: bool,
    /// How many running VMs lost their network.
    pub cut_off: usize,
    /// The state of IPv4 forwarding.
    pub forwarding: Forwarding,
}

/// The state of the host's IPv4 forwarding after a network was removed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Forwarding {
    /// Softnet had not turned it on.
    Untouched,
    /// Softnet had turned it on and has turned it off.
    TurnedOff,
    /// Softnet had turned it on, but the interface named here may have come to rely on it.
    LeftOnFor(String),
}

/// The networks of this network namespace, by name.
pub fn names() -> Result<Vec<NetworkName>, Error> {
    Ok(RunDir::of_this_namespace().networks()?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Removes the network: dnsmasq, table, bridge and directory. It is not an error if there is none.
///
/// # Errors
/// [`Error::InUse`] if VMs are attached and `force` is not given, [`Error::Foreign`] if the interface is not
/// Softnet's.
pub fn down(name: &NetworkName, force: bool) -> Result<Down, Error> {
    let run_dir = RunDir::of_this_namespace();
    let lock = run_dir.lock()?;
    down_locked(name, force, &run_dir, &lock)
}

fn down_locked(name: &NetworkName, force: bool, run_dir: &RunDir, lock: &Lock) -> Result<Down, Error> {
    let directory = run_dir.network(name.as_str());
    let members = record::members(&directory, lock)?;
    let attached = members.len();
    let taps: BTreeSet<String> =
        members.into_iter().filter_map(|member| member.tap).map(|(tap, _)| tap).collect();
    if attached > 0 && !force {
        return Err(Error::InUse { name: name.clone(), count: attached });
    }
    let recorded = files::read(&directory.file("network"))?;
    let mut netlink = Netlink::open()?;
    let link = netlink.link(name.as_str())?;
    let marked = Plan {
        name: name.clone(),
        subnet: Ipv4Net::default(),
        net_type: NetType::Nat,
        lease_time: super::DEFAULT_LEASE_TIME,
        tftp: false,
        names: false,
    };
    if let Some(link) = &link
        && (link.kind != Kind::Bridge || (recorded.is_none() && link.mac != Some(marked.mac())))
    {
        return Err(Error::Foreign(name.clone()));
    }
    let existed = recorded.is_some() || link.is_some();
    service::end(&directory, lock)?;
    let subnet = recorded.and_then(|text| record::read_plan(name, &text)).map(|plan| plan.subnet);
    if let Some(link) = link {
        netlink.delete_link(link.index)?;
    }
    directory.remove()?;
    let forwarding = restore_forwarding(run_dir, &taps, &mut netlink)?;
    // After forwarding: until it is off, the rules keep the host from being a router.
    rules::apply_without(name, run_dir, lock)?;
    if let Some(subnet) = subnet {
        rules::forget_subnet(subnet);
    }
    Ok(Down { existed, cut_off: attached, forwarding })
}

/// Turns IPv4 forwarding off if Softnet turned it on and no other interface may rely on it since. As long as
/// it stays on because of Softnet, the rules against crossing stay too (rule H5). `taps` are those of VMs
/// that lose their network.
fn restore_forwarding(
    run_dir: &RunDir,
    taps: &BTreeSet<String>,
    netlink: &mut Netlink,
) -> Result<Forwarding, Error> {
    let marker = run_dir.forwarding_marker();
    let Some(text) = files::read(&marker)? else { return Ok(Forwarding::Untouched) };
    if let Some(other) = run_dir.networks()?.into_iter().next() {
        return Ok(Forwarding::LeftOnFor(other));
    }
    let own = taps.iter().map(String::as_str).collect();
    if let Some(other) = ruleset::relying(&text, &netlink.links()?, &own).into_iter().next() {
        return Ok(Forwarding::LeftOnFor(other));
    }
    sysctl::set_forwarding(false)?;
    files::remove_file(&marker)?;
    Ok(Forwarding::TurnedOff)
}
