//! Makes what follows from the members' files: loads the rules, and gives the DHCP servers what single VMs get. Deletes
//! tracked connections that the rules no longer allow.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use ipnet::Ipv4Net;

use super::dnsmasq::clients;
use super::lock::Lock;
use super::record::MemberRecord;
use super::ruleset::{self, Features, Host, Network, Snapshot};
use super::run_dir::RunDir;
use super::{Error, generation, record};
use crate::config::expose::{Expose, Protocol};
use crate::config::{DEFAULT_CONNECTIONS, NetworkName};
use crate::host::files;
use crate::host::forwarder::Forward;
use crate::host::tools::Tool;
use crate::netlink::conntrack::{self, Flow};
use crate::netlink::{self, Netlink, nftables};

/// The features that this kernel has, as far as probed.
static FEATURES: Mutex<Features> = Mutex::new(Features::ALL);

/// Whether scarce source ports were reported.
static SCARCE_REPORTED: AtomicBool = AtomicBool::new(false);

/// Loads the rules of all networks of this namespace, in one transaction, and lets their DHCP servers know what single
/// VMs get. A part that the kernel lacks is left out and reported once.
///
/// # Errors
/// If the files cannot be read, nft is missing, or the kernel refuses what every kernel since Linux 5.10
/// accepts.
pub fn apply(run_dir: &RunDir, lock: &Lock) -> Result<(), Error> {
    apply_after(&|_| String::new(), run_dir, lock)
}

/// The same, and in the same transaction removes the tables of the network `gone`, whose files are removed,
/// and those for removed TAPs on bridges that Softnet does not manage.
///
/// # Errors
/// Those of [`apply`].
pub fn apply_without(gone: &NetworkName, run_dir: &RunDir, lock: &Lock) -> Result<(), Error> {
    let stale = ruleset::stale_tables()?;
    apply_after(&|features| ruleset::removal(gone.as_str(), features) + &stale, run_dir, lock)
}

/// The same, and in the same transaction removes the rules for an earlier TAP of this name on a bridge that
/// Softnet does not manage (`--bridge`).
///
/// # Errors
/// Those of [`apply`].
pub fn apply_for_tap(tap: &str, run_dir: &RunDir, lock: &Lock) -> Result<(), Error> {
    let earlier = |features: Features| {
        let guarded = features.bridge && ruleset::plain(tap) && ruleset::may_have_table_for_tap(tap);
        if guarded { ruleset::without_table_for_tap(tap) } else { String::new() }
    };
    apply_after(&earlier, run_dir, lock)
}

fn apply_after(first: &dyn Fn(Features) -> String, run_dir: &RunDir, lock: &Lock) -> Result<(), Error> {
    let snapshot = take_snapshot(run_dir, lock)?;
    for Network { plan, members } in &snapshot.networks {
        clients::show_directories(&run_dir.network(plan.name.as_str()), members)?;
    }
    load_rules(first, &snapshot, run_dir)?;
    let zones = zones(&snapshot);
    for Network { plan, members } in &snapshot.networks {
        clients::apply(plan, &run_dir.network(plan.name.as_str()), members, &zones)?;
    }
    Ok(())
}

fn load_rules(
    first: &dyn Fn(Features) -> String,
    snapshot: &Snapshot,
    run_dir: &RunDir,
) -> Result<(), Error> {
    warn_of_scarce_ports(snapshot);
    let render = || {
        let features = *FEATURES.lock().unwrap_or_else(PoisonError::into_inner);
        (first(features), ruleset::replacement(snapshot, features))
    };
    let (removal, rules) = render();
    if removal.is_empty() && add(&rules, snapshot, run_dir) {
        return Ok(());
    }
    let before = nftables::generation().ok();
    let load = |before: &str| {
        let (removal, rules) = render();
        Tool::Nft.run(&["-f", "-"], &format!("{before}{removal}{rules}")).map(|_| rules)
    };
    let rules = load("").or_else(|_| {
        // Keeps the counts if possible: removes the shared tables only if they block the load, because they
        // differ from Softnet's.
        let removal_of_shared = ruleset::removal_of_shared();
        load(&removal_of_shared).or_else(|_| {
            probe();
            load(&removal_of_shared)
        })
    })?;
    record(&rules, snapshot, before, run_dir)
}

/// Updates the kernel from the recorded rules to these by only adding elements, if they differ in nothing
/// else and no other program has changed the tables: the kernel takes some 15 ms to free what a transaction
/// removes, and a start or a new lease removes nothing. Returns false if the rules have to be replaced.
fn add(rules: &str, snapshot: &Snapshot, run_dir: &RunDir) -> bool {
    let recorded = files::read(&run_dir.rules_file()).ok().flatten();
    let Some(additions) = recorded.and_then(|recorded| ruleset::additions(&recorded, rules)) else {
        return false;
    };
    let before = generation::if_as_noted(run_dir);
    before.is_some()
        && (additions.is_empty()
            || Tool::Nft.run(&["-f", "-"], &additions).is_ok()
                && record(rules, snapshot, before, run_dir).is_ok())
}

/// Records that the kernel has these rules, after one transaction since the generation `before`.
fn record(rules: &str, snapshot: &Snapshot, before: Option<u32>, run_dir: &RunDir) -> Result<(), Error> {
    let path = run_dir.rules_file();
    if snapshot.networks.is_empty() {
        files::remove_file(&run_dir.generation_file())?;
        return Ok(files::remove_file(&path)?);
    }
    // The keeper uses it to distinguish changes by others from this one.
    generation::note(run_dir, before);
    // The rules are loaded. Without the record, on a full disk, they are only loaded once more than needed.
    if let Err(error) = files::write_atomically(&path, rules) {
        tracing::debug!(%error, "cannot record which rules the kernel has");
        files::remove_file(&path)?;
    }
    Ok(())
}

/// Whether the rules that were last loaded match the members' files and the host's sockets and interfaces
/// now, and what the DHCP servers give single VMs does. Starts no program, and does not check whether the tables were changed since.
///
/// # Errors
/// If the files or the interfaces cannot be read.
pub fn rules_are_current() -> Result<bool, Error> {
    let run_dir = RunDir::of_this_namespace();
    let lock = run_dir.lock()?;
    are_current(&run_dir, &lock)
}

/// The same under a lock that the caller holds.
///
/// # Errors
/// Those of [`rules_are_current`].
pub fn are_current(run_dir: &RunDir, lock: &Lock) -> Result<bool, Error> {
    let recorded = files::read(&run_dir.rules_file())?;
    let features = *FEATURES.lock().unwrap_or_else(PoisonError::into_inner);
    let snapshot = take_snapshot(run_dir, lock)?;
    let zones = zones(&snapshot);
    for Network { plan, members } in &snapshot.networks {
        if !clients::are_current(plan, &run_dir.network(plan.name.as_str()), members, &zones)? {
            return Ok(false);
        }
    }
    Ok(recorded == Some(ruleset::replacement(&snapshot, features)))
}

fn zones(snapshot: &Snapshot) -> String {
    clients::zones(snapshot.networks.iter().map(|network| &network.plan))
}

fn take_snapshot(run_dir: &RunDir, lock: &Lock) -> Result<Snapshot, Error> {
    let mut networks = Vec::new();
    for name in run_dir.networks()? {
        let directory = run_dir.network(&name);
        let Ok(name) = name.parse::<NetworkName>() else { continue };
        let text = files::read(&directory.file("network"))?;
        let Some(plan) = text.and_then(|text| record::read_plan(&name, &text)) else { continue };
        networks.push(Network { plan, members: record::members(&directory, lock)? });
    }
    let members = networks.iter().flat_map(|network| &network.members);
    let exposes = |member: &MemberRecord| {
        let forwards = member.forwards.iter().map(|forward| forward.expose);
        member.exposes.iter().copied().chain(forwards).collect::<Vec<_>>()
    };
    let exposed = members.flat_map(exposes).map(|expose| expose.external.get()).collect();
    // A TAP exists before it is a port of its bridge.
    let taps = networks.iter().flat_map(|network| &network.members).filter_map(|member| member.tap.as_ref());
    let bridges = networks.iter().map(|network| network.plan.name.as_str());
    let own: BTreeSet<&str> = bridges.chain(taps.map(|(tap, _)| tap.as_str())).collect();
    let marker = files::read(&run_dir.forwarding_marker())?;
    let host = Host::read(marker.as_deref(), exposed, &own)?;
    Ok(Snapshot { networks, host })
}

fn warn_of_scarce_ports(snapshot: &Snapshot) {
    let ports = snapshot.host.port_count();
    let scarce = !snapshot.networks.is_empty() && ports < DEFAULT_CONNECTIONS as usize;
    if scarce && !SCARCE_REPORTED.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            ports,
            "few source ports are left for the VMs' connections; shorten net.ipv4.ip_local_port_range or use fewer services \
             between ports 10240 and 29999"
        );
    }
}

/// Probes which parts the kernel lacks, and reports them. If nft fails at everything, the kernel's features
/// are unknown.
fn probe() {
    if Tool::Nft.run(&["-c", "-f", "-"], ruleset::PLAIN_PROBE).is_err() {
        return;
    }
    let mut features = FEATURES.lock().unwrap_or_else(PoisonError::into_inner);
    for ruleset::Probe { text, loss, lack } in ruleset::PROBES {
        if let Err(error) = Tool::Nft.run(&["-c", "-f", "-"], text) {
            tracing::warn!(%error, "this kernel lacks a part of nftables: {loss}");
            lack(&mut features);
        }
    }
}

/// Deletes every tracked connection with an end in `addresses`, so that the next VM with such an address
/// inherits none (rule H3).
///
/// # Errors
/// Those of the kernel; no error if it does not track connections.
pub fn forget(addresses: &BTreeSet<Ipv4Addr>) -> io::Result<()> {
    match conntrack::forget_addresses(addresses) {
        Ok(0) => Ok(()),
        Ok(count) => {
            tracing::debug!(
                count,
                ?addresses,
                "deleted the tracked connections of addresses that change hands"
            );
            Ok(())
        }
        Err(error) if tracks_nothing(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Deletes every tracked connection of a network that is being removed.
pub fn forget_subnet(subnet: Ipv4Net) {
    let of_subnet = |flow: &Flow| {
        [flow.original, flow.reply]
            .iter()
            .any(|tuple| subnet.contains(&tuple.source) || subnet.contains(&tuple.destination))
    };
    match conntrack::forget(of_subnet) {
        Ok(count) => tracing::debug!(count, %subnet, "deleted the network's tracked connections"),
        Err(error) if tracks_nothing(&error) => {}
        Err(error) => {
            tracing::warn!(%error, %subnet, "cannot delete the network's tracked connections; they stay until they time out")
        }
    }
}

fn tracks_nothing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL))
}

/// Deletes tracked connections from before the forwards were installed: UDP clients that sent earlier then
/// reach the VM too, and no flow of another VM keeps receiving packets for an exposed port (rule H6). Flows
/// through the host to the same port of other machines stay.
pub fn forget_before(installed: &[Forward]) {
    forget_flows(installed.iter().map(|forward| (forward.expose, Some(forward.to))).collect());
}

/// Deletes the flows of VMs that got these ports of the host as source ports before they were exposed: no
/// later flow gets one (rule H6).
pub fn forget_shadows(exposes: &[Expose]) {
    forget_flows(exposes.iter().map(|expose| (*expose, None)).collect());
}

/// Does both, for exposed ports with the address that they lead to, if any.
fn forget_flows(exposed: Vec<(Expose, Option<Ipv4Addr>)>) {
    if exposed.is_empty() {
        return;
    }
    let forgotten = own_addresses().map_err(io::Error::other).and_then(|own| {
        let is_own = |address: Ipv4Addr| address.is_loopback() || own.contains(&address);
        conntrack::forget(|flow| {
            let (first, answers) = (flow.original, flow.reply);
            exposed.iter().any(|(expose, to)| {
                let (number, port) = (expose.protocol.number(), expose.external.get());
                let elsewhere = to.is_some_and(|to| {
                    expose.protocol == Protocol::Udp
                        && is_own(first.destination)
                        && first.destination_port == port
                        && (answers.source, answers.source_port) != (to, expose.internal.get())
                });
                let shadows = is_own(answers.destination)
                    && answers.destination_port == port
                    && first.source != answers.destination;
                first.protocol == number && (elsewhere || shadows)
            })
        })
    });
    match forgotten {
        Ok(count) => tracing::debug!(count, "deleted earlier tracked connections"),
        Err(error) => {
            tracing::warn!(%error, "cannot delete earlier tracked connections; clients that are sending already reach the VM only after a pause")
        }
    }
}

fn own_addresses() -> Result<Vec<Ipv4Addr>, netlink::Error> {
    Ok(Netlink::open()?.all_addresses()?.iter().map(|(_, address)| address.addr()).collect())
}
