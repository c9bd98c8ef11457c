//! What `softnet network status` shows.

use std::fmt;

use serde_json::json;

use super::claim;
use super::dnsmasq::arguments::NAMES_PORT;
use super::dnsmasq::{self, LeaseEntry};
use super::firewall::Recorded;
use super::record::{self, MemberRecord};
use super::run_dir::RunDir;
use super::{Error, Plan, ruleset, service, type_name};
use crate::config::NetworkName;
use crate::config::expose::Expose;
use crate::host::files;
use crate::host::tools::Tool;
use crate::netlink::{Link, Netlink};

/// A network as it is at this moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Status {
    /// Its settings.
    pub plan: Plan,
    /// Its bridge; `None` if it was deleted.
    pub bridge: Option<Link>,
    /// The process that serves DHCP and DNS; `None` if it does not run.
    pub dnsmasq: Option<u32>,
    /// The process that tells the host the names of VMs; `None` if it does not run.
    pub names: Option<u32>,
    /// Why the host does not find VMs by their names, on a network where it should.
    pub names_error: Option<String>,
    /// The keeper's process; `None` if it does not run.
    pub keeper: Option<u32>,
    /// Whether the nftables table is there; `None` if the caller may not know.
    pub table: Option<bool>,
    /// Whether Softnet turned IPv4 forwarding on, and therefore keeps the host from forwarding for others.
    pub forwarding: bool,
    /// What filters of the host drop of what the VMs need; `None` if that is unknown.
    pub firewall: Option<Recorded>,
    /// The server's leases, including those of VMs that have ended.
    pub leases: Vec<LeaseEntry>,
    /// The running VMs.
    pub members: Vec<MemberRecord>,
}

/// The status of the network `name`; changes nothing. `None` if there is no such network.
pub fn status(name: &NetworkName) -> Result<Option<Status>, Error> {
    let run_dir = RunDir::of_this_namespace();
    let directory = run_dir.network(name.as_str());
    let Some(plan) = files::read(&directory.file("network"))?.and_then(|text| record::read_plan(name, &text))
    else {
        return Ok(None);
    };
    let members = claim::claimed(&directory.ports())?;
    let table = ruleset::table(name.as_str());
    let root = rustix::process::geteuid().is_root();
    // Only root can ask the keeper. Others read what it last found.
    if root && let Err(error) = service::look(&directory) {
        tracing::debug!(%error, "the keeper does not look at the host's filters");
    }
    Ok(Some(Status {
        bridge: Netlink::open()?.link(name.as_str())?,
        dnsmasq: dnsmasq::running(&directory),
        names: dnsmasq::names_server(&directory),
        // Nobody needs the server while no VM runs.
        names_error: (plan.names && !members.is_empty()).then(|| dnsmasq::names_error(&directory)).flatten(),
        keeper: dnsmasq::keeper(&directory),
        table: root.then(|| {
            let tables = Tool::Nft.run(&["list", "tables"], "").unwrap_or_default();
            let present = |table: &str| tables.lines().any(|line| line == format!("table ip {table}"));
            present(&table) && ruleset::SHARED_TABLES.into_iter().all(present)
        }),
        forwarding: files::read(&run_dir.forwarding_marker())?.is_some(),
        firewall: Recorded::read(&directory)?,
        leases: dnsmasq::leases(&directory)?,
        members: members.iter().filter_map(|(_, text)| record::read_member(text)).collect(),
        plan,
    }))
}

impl Status {
    /// The same for programs. A field keeps its name and meaning; more may be added.
    pub fn to_json(&self) -> serde_json::Value {
        let Status {
            plan,
            bridge,
            dnsmasq,
            names,
            names_error,
            keeper,
            table,
            forwarding,
            firewall,
            leases,
            members,
        } = self;
        let leases: Vec<_> = leases
            .iter()
            .map(|lease| json!({ "mac": lease.mac.to_string(), "address": lease.address }))
            .collect();
        let vms: Vec<_> = members.iter().map(vm_to_json).collect();
        json!({
            "name": plan.name.as_str(),
            "type": type_name(plan.net_type),
            "subnet": plan.subnet.to_string(),
            "gateway": plan.gateway().addr(),
            "lease_seconds": plan.lease_time.as_secs(),
            "bridge": bridge.as_ref().map(|link| {
                json!({ "up": link.up, "mac": plan.mac().to_string(), "mtu": link.mtu })
            }),
            "dnsmasq": dnsmasq,
            "names": names,
            "names_error": names_error,
            "keeper": keeper,
            "nftables": table,
            "forwarding_by_softnet": forwarding,
            "obstacles": firewall.as_ref().map(|found| &found.places),
            "firewall": firewall.as_ref().map(|found| &found.sentence),
            "leases": leases,
            "vms": vms,
        })
    }
}

fn vm_to_json(member: &MemberRecord) -> serde_json::Value {
    let port = |expose: &Expose| {
        json!({
            "address": expose.bind_address(),
            "port": expose.external,
            "vm_port": expose.internal,
            "protocol": expose.protocol.to_string(),
        })
    };
    json!({
        "mac": member.mac.to_string(),
        "name": member.name,
        "address": member.address,
        "tap": member.tap.as_ref().map(|(tap, _)| tap),
        "process": member.pid,
        "connections": member.connections,
        "exposed": member.forwards.iter().map(|forward| port(&forward.expose)).collect::<Vec<_>>(),
        "waiting": member.waiting().map(|expose| port(&expose)).collect::<Vec<_>>(),
    })
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MISSING: &str = "missing (the keeper or the next start restores it)";
        let Status { plan, .. } = self;
        writeln!(f, "network {} ({})", plan.name, type_name(plan.net_type))?;
        match &self.bridge {
            Some(link) => {
                let state = if link.up { "up" } else { "down" };
                writeln!(f, "  bridge   {state}, MAC {}, MTU {}", plan.mac(), link.mtu)?;
            }
            None => writeln!(f, "  bridge   {MISSING}")?,
        }
        writeln!(f, "  subnet   {}, gateway {}", plan.subnet, plan.gateway().addr())?;
        match self.dnsmasq {
            Some(pid) => {
                let seconds = plan.lease_time.as_secs();
                writeln!(f, "  dnsmasq  process {pid}, {} leases of {seconds} s", self.leases.len())?;
            }
            None => writeln!(f, "  dnsmasq  {MISSING}")?,
        }
        match (self.names, &self.names_error) {
            (Some(pid), _) => writeln!(f, "  names    process {pid}, port {NAMES_PORT}")?,
            (None, Some(error)) => writeln!(f, "  names    unknown to the host: {error}")?,
            (None, None) => {}
        }
        match self.keeper {
            Some(pid) => writeln!(f, "  keeper   process {pid}")?,
            None => writeln!(f, "  keeper   missing (the next start restores it)")?,
        }
        match self.table {
            Some(true) => writeln!(f, "  nftables table {}", ruleset::table(plan.name.as_str()))?,
            Some(false) => writeln!(f, "  nftables {MISSING}")?,
            None => {}
        }
        if self.forwarding {
            writeln!(
                f,
                "  routing  turned on by Softnet for its networks only: packets between other interfaces are dropped"
            )?;
        }
        if let Some(sentence) = self.firewall.as_ref().and_then(|found| found.sentence.as_ref()) {
            writeln!(f, "  firewall {sentence}")?;
        }
        if self.members.is_empty() {
            return write!(f, "  no VM is attached");
        }
        write!(f, "  VMs")?;
        for member in &self.members {
            let address = member.address.map_or("no address yet".to_owned(), |address| address.to_string());
            let tap = member.tap.as_ref().map_or("no TAP yet", |(tap, _)| tap);
            let name = member.name.as_ref().map_or(String::new(), |name| format!(" {name}"));
            write!(f, "\n    {}{name} {address} on {tap}, process {}", member.mac, member.pid)?;
            for forward in &member.forwards {
                write!(f, "\n      {forward}")?;
            }
            for expose in member.waiting() {
                write!(f, "\n      {expose} waits for an address")?;
            }
        }
        Ok(())
    }
}
