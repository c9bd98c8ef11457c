//! The nftables rules of all managed networks of this network namespace, as one text for one atomic `nft -f -`.
//!
//! The kernel's rules always follow from the members' files: each change renders all of them again, which
//! also repairs a table that was flushed or edited. Connections survive the replacement; their state is in
//! conntrack, not in the tables. If the kernel still has the last rendering and the new one only has more
//! elements, these are added instead ([`additions`]).
//!
//! ```text
//! table ip softnet-NAME      one network: leads exposed ports to its VMs, and decides what is forwarded      network.rs
//! table bridge softnet-NAME  holds each TAP to its VM's MAC and address (H10)                               guard.rs
//! table ip softnet           what concerns all: foreign ports (H2), the host's role (H5), source ports (H6),
//!                            leaks (H7), DHCP of local users (H9), the resolver's door (H11)                shared.rs
//! table ip softnet_shares    each VM's share of connections and of DNS (H4)                                 shares.rs
//! ```
//!
//! The last one keeps counts, so it is never deleted while a network exists: its rules are replaced and its
//! sets stay.

mod guard;
mod host;
mod network;
mod ports;
mod shared;
mod shares;

use std::collections::BTreeSet;
use std::fmt::Write;

use super::Plan;
use super::record::MemberRecord;

pub use guard::{TAP_PREFIX, install_for_tap, may_have_table_for_tap, stale_tables, without_table_for_tap};
pub use host::{Host, Limits, forwarding_interfaces, plain, relying};

/// One network with its running members.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its settings.
    pub plan: Plan,
    /// Its running members.
    pub members: Vec<MemberRecord>,
}

/// What the rules are made from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All networks of the namespace.
    pub networks: Vec<Network>,
    /// The state of the host.
    pub host: Host,
}

/// Features that a kernel may lack. Without one the rules are weaker, but a start does not fail.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Features {
    /// `ct count` in sets (Linux 4.18, `nft_connlimit`): shares of connections.
    pub counts: bool,
    /// `ct timeout` objects (Linux 4.19, `nft_ct`): states that end within hours.
    pub timeouts: bool,
    /// Tables of the bridge family (`nf_tables_bridge`): the guard at the TAPs.
    pub bridge: bool,
}

impl Features {
    /// All of them.
    pub const ALL: Features = Features { counts: true, timeouts: true, bridge: true };
}

/// A test whether the kernel has a feature.
#[derive(Clone, Copy, Debug)]
pub struct Probe {
    /// A ruleset that loads only on a kernel that has it.
    pub text: &'static str,
    /// What is lost without it.
    pub loss: &'static str,
    /// Marks it as missing.
    pub lack: fn(&mut Features),
}

/// A ruleset that loads on every kernel with nftables.
pub const PLAIN_PROBE: &str = "table ip softnet_probe { }\n";

/// One for each feature.
pub const PROBES: [Probe; 3] = [
    Probe {
        text: shares::COUNT_PROBE,
        loss: "the number of a VM's tracked connections is not limited",
        lack: |features| features.counts = false,
    },
    Probe {
        text: shares::TIMEOUT_PROBE,
        loss: "tracked connections of VMs time out no earlier than the host's own",
        lack: |features| features.timeouts = false,
    },
    Probe {
        text: guard::PROBE,
        loss: "the kernel does not check the VMs' addresses again after the filter",
        lack: |features| features.bridge = false,
    },
];

/// The names of the tables that all networks share.
pub const SHARED_TABLES: [&str; 2] = [shared::TABLE, shares::TABLE];

/// The name of the tables of the network `name`.
pub fn table(name: &str) -> String {
    format!("softnet-{name}")
}

/// The text that removes the tables of the network `name`, whether or not they are there.
pub fn removal(name: &str, features: Features) -> String {
    let table = table(name);
    let mut text = gone("ip", &table);
    if features.bridge {
        text += &gone("bridge", &table);
    }
    text
}

/// The text that removes the tables that all networks share.
pub fn removal_of_shared() -> String {
    gone("ip", shared::TABLE) + &gone("ip", shares::TABLE)
}

/// The text that loads all tables. Without a network, only the rules that keep the host from being a router
/// remain, and only while forwarding is on because of Softnet.
pub fn replacement(snapshot: &Snapshot, features: Features) -> String {
    if snapshot.networks.is_empty() {
        // If forwarding stays on because others may rely on it, the host must still not become a router (H5).
        return removal_of_shared() + &shared::crossing_only(snapshot);
    }
    let mut text = String::new();
    for network in &snapshot.networks {
        text += &removal(network.plan.name.as_str(), features);
        text += &network::table(network, snapshot);
        if features.bridge {
            text += &guard::of_network(network);
        }
    }
    text + &gone("ip", shared::TABLE) + &shared::table(snapshot) + &shares::table(snapshot, features)
}

/// The nft commands that turn the rules `from` into `to` by adding elements of sets and maps; empty if both
/// are the same. `None` if they differ in more, or an element is removed or changed. Both come from
/// [`replacement`].
pub fn additions(from: &str, to: &str) -> Option<String> {
    let (from, to) = (Sets::read(from), Sets::read(to));
    if from.frame != to.frame {
        return None;
    }
    let mut text = String::new();
    for ((set, before), (_, after)) in from.elements.iter().zip(&to.elements) {
        let (before, after): (BTreeSet<&str>, BTreeSet<&str>) =
            (before.iter().copied().collect(), after.iter().copied().collect());
        if !before.is_subset(&after) {
            return None;
        }
        let added: Vec<&str> = after.difference(&before).copied().collect();
        if !added.is_empty() {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "add element {set} {{ {} }}", added.join(", "));
        }
    }
    Some(text)
}

/// Parsed rules.
struct Sets<'a> {
    /// All but the elements of sets and maps.
    frame: Vec<&'a str>,
    /// Each set or map by its full name, with its elements.
    elements: Vec<(String, Vec<&'a str>)>,
}

impl<'a> Sets<'a> {
    fn read(rules: &'a str) -> Self {
        let (mut frame, mut elements, mut table) = (Vec::new(), Vec::new(), "");
        for line in rules.lines() {
            if let Some(name) = line.strip_prefix("table ").and_then(|line| line.strip_suffix(" {")) {
                table = name;
            }
            let set = line.strip_prefix("\tset ").or_else(|| line.strip_prefix("\tmap "));
            if let Some(name) = set.and_then(|line| line.strip_suffix(" {")) {
                elements.push((format!("{table} {name}"), Vec::new()));
            }
            let list = line.strip_prefix(ELEMENTS).and_then(|list| list.strip_suffix(" }"));
            match (list, elements.last_mut()) {
                (Some(list), Some((_, elements))) => elements.extend(list.split(SEPARATOR)),
                _ => frame.push(line),
            }
        }
        Sets { frame, elements }
    }
}

/// What the line with the elements of a set or a map begins with.
const ELEMENTS: &str = "\t\telements = { ";
const SEPARATOR: &str = ", ";

/// Declaring first makes the deletion succeed in either case; nft 1.0.6 has no `destroy` yet.
pub fn gone(family: &str, table: &str) -> String {
    format!("table {family} {table} {{ }}\ndelete table {family} {table}\n")
}

/// A named set or map.
fn block<T: AsRef<str>>(
    kind: &str,
    name: &str,
    types: &str,
    elements: impl IntoIterator<Item = T>,
) -> String {
    format!("\t{kind} {name} {{\n\t\ttype {types}\n{}\t}}\n", list(elements))
}

/// The line with the elements of a set or a map, if there are any.
fn list<T: AsRef<str>>(elements: impl IntoIterator<Item = T>) -> String {
    let mut list = String::new();
    for element in elements {
        list += if list.is_empty() { ELEMENTS } else { SEPARATOR };
        list += element.as_ref();
    }
    if list.is_empty() { list } else { list + " }\n" }
}

/// An anonymous set of interfaces' names.
fn interfaces<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    format!("{{ {} }}", quoted.join(", "))
}

impl Snapshot {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.networks.iter().map(|network| network.plan.name.as_str())
    }

    fn members(&self) -> impl Iterator<Item = &MemberRecord> {
        self.networks.iter().flat_map(|network| &network.members)
    }
}

#[cfg(test)]
mod tests {
    use softnet_filter::{MacAddr, NetType};

    use super::super::tests::plan;
    use super::*;
    use crate::host::forwarder::Forward;

    /// A network with one VM that has an address and exposes these ports.
    pub fn snapshot(net_type: NetType, exposes: &[&str]) -> Snapshot {
        let to = "192.168.64.5".parse().unwrap();
        let exposes: Vec<_> = exposes.iter().map(|text| text.parse().unwrap()).collect();
        let member = MemberRecord {
            tap: Some(("snt0".into(), true)),
            address: Some(to),
            forwards: exposes.iter().map(|&expose| Forward { expose, to }).collect(),
            exposes,
            ..MemberRecord::new(MacAddr([2, 0, 0, 0, 0, 1]), 42)
        };
        let host = Host { ports: vec![10240..=29999], ..Host::default() };
        Snapshot { networks: vec![Network { plan: plan(net_type), members: vec![member] }], host }
    }

    #[test]
    fn what_is_left_out_is_not_mentioned() {
        let features = Features { counts: false, timeouts: false, bridge: false };
        let text = replacement(&snapshot(NetType::Nat, &[]), features);
        assert!(
            !text.contains("ct count") && !text.contains("ct timeout") && !text.contains("table bridge"),
            "{text}"
        );
        let text = replacement(&snapshot(NetType::Nat, &[]), Features::ALL);
        assert!(
            text.contains("ct count") && text.contains("ct timeout") && text.contains("table bridge"),
            "{text}"
        );
    }

    #[test]
    fn without_a_network_nothing_is_left() {
        let none = Snapshot { networks: Vec::new(), host: Host::default() };
        let text = replacement(&none, Features::ALL);
        assert!(
            text.contains("delete table ip softnet\n") && text.contains("delete table ip softnet_shares\n")
        );
    }

    #[test]
    fn what_only_grows_is_added() {
        let rules = |snapshot: &Snapshot| replacement(snapshot, Features::ALL);
        let later = snapshot(NetType::Nat, &["8080:80"]);
        let mut earlier = later.clone();
        let member = &mut earlier.networks[0].members[0];
        (member.address, member.forwards) = (None, Vec::new());
        let text = additions(&rules(&earlier), &rules(&later)).unwrap();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "add element bridge softnet-softnet0 bound { \"snt0\" . 192.168.64.5 }",
                "add element ip softnet own_everywhere { 192.168.64.5 . tcp . 8080 : 192.168.64.5 . 80 }",
                "add element ip softnet-softnet0 everywhere { tcp . 8080 : 192.168.64.5 . 80 }",
                "add element ip softnet-softnet0 exposed { 192.168.64.5 . tcp . 80 }",
                "add element ip softnet_shares members_16384 { 192.168.64.5 }",
            ]
        );
        assert_eq!(additions(&rules(&later), &rules(&later)).unwrap(), "");
        assert_eq!(additions(&rules(&later), &rules(&earlier)), None, "elements go");
        let mut elsewhere = later.clone();
        elsewhere.networks[0].members[0].forwards[0].to = "192.168.64.6".parse().unwrap();
        assert_eq!(additions(&rules(&later), &rules(&elsewhere)), None, "a port leads elsewhere");
        let host = snapshot(NetType::Host, &["8080:80"]);
        assert_eq!(additions(&rules(&later), &rules(&host)), None, "other rules");
    }
}
