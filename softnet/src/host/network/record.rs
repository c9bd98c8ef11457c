//! The text of the files in the run directory: one `key value` per line, the keys in any order, unknown ones
//! ignored.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::time::Duration;

use ipnet::Ipv4Net;
use softnet_filter::{MacAddr, NetType};

use super::claim::claimed;
use super::lock::Lock;
use super::run_dir::NetworkDir;
use super::{Error, Plan, type_name};
use crate::config::client::ClientSettings;
use crate::config::expose::Expose;
use crate::config::{DEFAULT_CONNECTIONS, NetworkName};
use crate::host::forwarder::Forward;

/// The text of the `network` file.
pub fn write_plan(plan: &Plan) -> String {
    let Plan { name: _, subnet, net_type, lease_time, tftp, names } = plan;
    let (of_type, seconds) = (type_name(*net_type), lease_time.as_secs());
    format!("subnet {subnet}\ntype {of_type}\nlease-time {seconds}\ntftp {tftp}\nnames {names}\n")
}

/// The plan of the network `name`; `None` if [`write_plan`] did not write the text.
pub fn read_plan(name: &NetworkName, text: &str) -> Option<Plan> {
    let net_type = match value(text, "type")? {
        "nat" => NetType::Nat,
        "host" => NetType::Host,
        _ => return None,
    };
    Some(Plan {
        name: name.clone(),
        subnet: value(text, "subnet")?.parse::<Ipv4Net>().ok()?,
        net_type,
        lease_time: Duration::from_secs(value(text, "lease-time")?.parse().ok()?),
        tftp: value(text, "tftp") == Some("true"),
        names: value(text, "names") == Some("true"),
    })
}

/// The content of a running Softnet's file under `ports/`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MemberRecord {
    /// The VM's MAC, which is the file's name too.
    pub mac: MacAddr,
    /// The process that holds the lock.
    pub pid: u32,
    /// The TAP and whether it is an isolated port, once there is one.
    pub tap: Option<(String, bool)>,
    /// The VM's address, once the lease is known.
    pub address: Option<Ipv4Addr>,
    /// The address that it had before, from which it may request it again (rule C10).
    pub last: Option<Ipv4Addr>,
    /// How many tracked connections it may have (rule H4).
    pub connections: u32,
    /// Whether the lease is released at the end.
    pub release: bool,
    /// The ports that it exposes.
    pub exposes: Vec<Expose>,
    /// Its name, by which the host finds it.
    pub name: Option<String>,
    /// What the DHCP server gives it. The address is reserved while the record's owner runs.
    pub client: ClientSettings,
    /// The forwards that have to be installed now.
    pub forwards: Vec<Forward>,
}

impl MemberRecord {
    /// A VM without TAP, address and ports.
    pub fn new(mac: MacAddr, pid: u32) -> Self {
        MemberRecord {
            mac,
            pid,
            tap: None,
            address: None,
            last: None,
            connections: DEFAULT_CONNECTIONS,
            release: false,
            exposes: Vec::new(),
            name: None,
            client: ClientSettings::default(),
            forwards: Vec::new(),
        }
    }

    /// The ports that are exposed and lead nowhere yet.
    pub fn waiting(&self) -> impl Iterator<Item = Expose> {
        let leads = |expose: &Expose| self.forwards.iter().any(|forward| forward.expose == *expose);
        self.exposes.iter().copied().filter(move |expose| !leads(expose))
    }
}

/// The text of a member's file.
pub fn write_member(member: &MemberRecord) -> String {
    let mut text = format!("mac {}\npid {}\nrelease {}\n", member.mac, member.pid, member.release);
    // Writing to a String cannot fail.
    if let Some((tap, isolated)) = &member.tap {
        let _ = writeln!(text, "tap {tap}\nisolated {isolated}");
    }
    if let Some(address) = member.address {
        let _ = writeln!(text, "address {address}");
    }
    if let Some(last) = member.last {
        let _ = writeln!(text, "last {last}");
    }
    let _ = writeln!(text, "connections {}", member.connections);
    for expose in &member.exposes {
        let _ = writeln!(text, "expose {expose}");
    }
    if let Some(name) = &member.name {
        let _ = writeln!(text, "name {name}");
    }
    let ClientSettings { address, resolvers, search, boot_file, tftp_root } = &member.client;
    if let Some(address) = address {
        let _ = writeln!(text, "vm-address {address}");
    }
    for resolver in resolvers {
        let _ = writeln!(text, "dns {resolver}");
    }
    for domain in search {
        let _ = writeln!(text, "dns-search {domain}");
    }
    if let Some(file) = boot_file {
        let _ = writeln!(text, "pxe-file {file}");
    }
    if let Some(root) = tftp_root {
        let _ = writeln!(text, "tftp-root {root}");
    }
    for Forward { expose, to } in &member.forwards {
        let _ = writeln!(text, "forward {expose} {to}");
    }
    text
}

/// The record in a member's file; `None` if [`write_member`] did not write it.
pub fn read_member(text: &str) -> Option<MemberRecord> {
    let tap = value(text, "tap").map(|tap| (tap.to_owned(), value(text, "isolated") != Some("false")));
    let forward = |line: &str| {
        let (expose, to) = line.strip_prefix("forward ")?.split_once(' ')?;
        Some(Forward { expose: expose.parse::<Expose>().ok()?, to: to.parse().ok()? })
    };
    Some(MemberRecord {
        mac: value(text, "mac")?.parse().ok()?,
        pid: value(text, "pid")?.parse().ok()?,
        tap,
        address: value(text, "address").and_then(|address| address.parse().ok()),
        last: value(text, "last").and_then(|address| address.parse().ok()),
        connections: value(text, "connections")
            .and_then(|count| count.parse().ok())
            .unwrap_or(DEFAULT_CONNECTIONS),
        release: value(text, "release") == Some("true"),
        exposes: values(text, "expose").filter_map(|value| value.parse().ok()).collect(),
        name: value(text, "name").map(str::to_owned),
        client: ClientSettings {
            address: value(text, "vm-address").and_then(|address| address.parse().ok()),
            resolvers: values(text, "dns").filter_map(|value| value.parse().ok()).collect(),
            search: values(text, "dns-search").map(str::to_owned).collect(),
            boot_file: value(text, "pxe-file").map(str::to_owned),
            tftp_root: value(text, "tftp-root").map(str::to_owned),
        },
        forwards: text.lines().filter_map(forward).collect(),
    })
}

fn value<'a>(text: &'a str, key: &'a str) -> Option<&'a str> {
    values(text, key).next()
}

fn values<'a>(text: &'a str, key: &'a str) -> impl Iterator<Item = &'a str> {
    let of_key = move |line: &'a str| line.split_once(' ').filter(|(found, _)| *found == key);
    text.lines().filter_map(of_key).map(|(_, value)| value)
}

/// The members whose process is alive. An address counts as theirs, and forwards lead to it, as long as they hold
/// its lock: a worker that outlives its monitor keeps the place, but another VM may get the address.
pub fn members(directory: &NetworkDir, _lock: &Lock) -> Result<Vec<MemberRecord>, Error> {
    let leases = claimed(&directory.leases())?;
    let holds = |mac: MacAddr, address: Ipv4Addr| {
        let (address, mac) = (address.to_string(), mac.to_string());
        leases.iter().any(|(name, text)| *name == address && text.lines().next() == Some(&mac))
    };
    let mut members: Vec<MemberRecord> =
        claimed(&directory.ports())?.iter().filter_map(|(_, text)| read_member(text)).collect();
    for member in &mut members {
        let mac = member.mac;
        member.address = member.address.filter(|address| holds(mac, *address));
        let address = member.address;
        member.forwards.retain(|forward| Some(forward.to) == address);
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    #[test]
    fn a_plan_reads_back() {
        for net_type in [NetType::Nat, NetType::Host] {
            for tftp in [false, true] {
                let plan = Plan { tftp, names: !tftp, ..plan(net_type) };
                assert_eq!(read_plan(&plan.name, &write_plan(&plan)), Some(plan));
            }
        }
        assert_eq!(read_plan(&plan(NetType::Nat).name, "subnet 10.0.0.0/24\n"), None);
    }

    #[test]
    fn a_member_reads_back() {
        let to = Ipv4Addr::new(192, 168, 64, 5);
        let forward = |text: &str| Forward { expose: text.parse().unwrap(), to };
        let mut member = MemberRecord::new(MacAddr([2, 0, 0, 0, 0, 1]), 42);
        assert_eq!(read_member(&write_member(&member)), Some(member.clone()));
        member.tap = Some(("snt0".into(), false));
        member.address = Some(to);
        member.last = Some(Ipv4Addr::new(192, 168, 64, 6));
        member.connections = 100;
        member.release = true;
        member.exposes = vec!["8080:80".parse().unwrap(), "53:53/udp".parse().unwrap()];
        member.forwards = vec![forward("8080:80"), forward("127.0.0.1:53:53/udp")];
        member.name = Some("web".into());
        member.client = ClientSettings {
            address: Some(to),
            resolvers: vec![[10, 0, 0, 1].into(), [10, 0, 0, 2].into()],
            search: vec!["a.example".into(), "b".into()],
            boot_file: Some("a/b".into()),
            tftp_root: Some("/srv/a directory".into()),
        };
        assert_eq!(read_member(&write_member(&member)), Some(member.clone()));
        assert_eq!(read_member(""), None);
    }
}
