//! The table that all networks of a namespace share. It restricts what a VM may send to the host, to the
//! internet and to VMs of other networks, and what the host's neighbours and local users may send to the
//! networks' servers.

use std::collections::{BTreeMap, BTreeSet};

use softnet_filter::NetType;

use super::super::dnsmasq::arguments::NAMES_PORT;
use super::{Network, Snapshot, block, interfaces, ports};
use crate::config::expose::{Expose, Exposed};

/// The table's name, which no network's table can have.
pub const TABLE: &str = "softnet";

/// The whole table.
pub fn table(snapshot: &Snapshot) -> String {
    let bridges = interfaces(snapshot.names());
    let gateways = snapshot.networks.iter().map(|network| network.plan.gateway().addr());
    let doors = snapshot.networks.iter().flat_map(|Network { plan, .. }| {
        [plan.name.as_str(), "lo"].map(|name| format!("\"{name}\" . {}", plan.gateway().addr()))
    });
    let sets = block("set", "gateways", "ipv4_addr", gateways.map(|gateway| gateway.to_string()))
        + &block("set", "doors", "ifname . ipv4_addr", doors)
        + &block("set", "dhcp", "ipv4_addr", dhcp_destinations(snapshot))
        + &block("set", "boots", "ifname . ipv4_addr", boots(snapshot))
        + &exposed(snapshot)
        + &ports::chains(&snapshot.host.ports);
    let (tftp, names) = (tftp(snapshot), names(snapshot));
    let (crossing, translation, leaks) = (crossing(snapshot), translation(snapshot), leaks(snapshot));
    // The servers' door: drops packets to a server's address that arrive on another interface, so not from
    // its VMs (H11). Foreign ports: no VM's connection reaches the translation of a port that another VM
    // exposes (H2).
    format!(
        "table ip {TABLE} {{
{sets}	chain door {{
		type filter hook prerouting priority raw - 10; policy accept;
		ip daddr @gateways udp dport {{ 53, 67 }} iifname . ip daddr != @doors drop
		ip daddr @gateways tcp dport 53 iifname . ip daddr != @doors drop
{tftp}{names}	}}
	chain foreign_ports {{
		type filter hook prerouting priority dstnat - 10; policy accept;
		iifname {bridges} ct state new fib daddr type local meta l4proto {{ tcp, udp }} jump exposed
	}}
	chain exposed {{
		ip saddr . meta l4proto . th dport @own_everywhere return
		ip saddr . ip daddr . meta l4proto . th dport @own_bound return
		meta l4proto . th dport @everywhere goto refuse
		ip daddr . meta l4proto . th dport @bound goto refuse
	}}
	chain refuse {{
		meta l4proto tcp reject with tcp reset
		drop
	}}
	chain own_ports {{
		type nat hook prerouting priority dstnat; policy accept;
		iifname {bridges} dnat ip to ip saddr . ip daddr . meta l4proto . th dport map @own_bound
		iifname {bridges} fib daddr type local dnat ip to ip saddr . meta l4proto . th dport map @own_everywhere
	}}
	chain crossing {{
		type filter hook forward priority filter - 10; policy accept;
{crossing}	}}
	chain translation {{
		type nat hook postrouting priority srcnat; policy accept;
{translation}	}}
	chain leaks {{
		type filter hook postrouting priority srcnat + 10; policy accept;
{leaks}	}}
	chain local_users {{
		type filter hook output priority filter; policy accept;
		udp dport 67 oifname {bridges} goto only_root
		udp dport 67 ip daddr @dhcp goto only_root
	}}
	chain only_root {{
		meta skuid 0 accept
		drop
	}}
}}
"
    )
}

/// The destinations at which a network's server would accept a DHCP message from the host itself: its address
/// and the subnet's broadcasts. The limited broadcast arrives by the bridge only, which has its own rule.
fn dhcp_destinations(snapshot: &Snapshot) -> Vec<String> {
    let of_network = |Network { plan, .. }: &Network| {
        [plan.gateway().addr(), plan.subnet.network(), plan.subnet.broadcast()]
            .map(|address| address.to_string())
    };
    snapshot.networks.iter().flat_map(of_network).collect()
}

/// The VMs that have a directory which TFTP shows them.
fn boots(snapshot: &Snapshot) -> Vec<String> {
    let of_network = |Network { plan, members }: &Network| {
        let shown = members.iter().filter(|member| member.client.tftp_root.is_some());
        let element = |address| format!("\"{}\" . {address}", plan.name);
        shown.filter_map(|member| member.address).map(element).collect::<Vec<_>>()
    };
    snapshot.networks.iter().flat_map(of_network).collect()
}

/// Where Softnet serves TFTP, nobody else may ask: neither another VM nor a user of the host, who would see the
/// directories of all VMs. Elsewhere the port is any program's of the host.
fn tftp(snapshot: &Snapshot) -> String {
    let serving = snapshot.networks.iter().filter(|network| network.plan.tftp);
    let rule = |Network { plan, .. }: &Network| {
        let gateway = plan.gateway().addr();
        format!("\t\tip daddr {gateway} udp dport 69 iifname . ip saddr != @boots drop\n")
    };
    serving.map(rule).collect()
}

/// Only the host asks for VMs by their names: no VM learns of the others.
fn names(snapshot: &Snapshot) -> String {
    let naming = snapshot.networks.iter().filter(|network| network.plan.names);
    let rule = |Network { plan, .. }: &Network| {
        let gateway = plan.gateway().addr();
        format!(
            "\t\tip daddr {gateway} meta l4proto {{ tcp, udp }} th dport {NAMES_PORT} iifname != \"lo\" drop\n"
        )
    };
    naming.map(rule).collect()
}

/// The ports that VMs expose, and for each VM its own, which lead back to itself.
fn exposed(snapshot: &Snapshot) -> String {
    const PORT: &str = "inet_proto . inet_service";
    let (mut everywhere, mut bound) = (BTreeSet::new(), BTreeSet::new());
    let (mut own_everywhere, mut own_bound) = (BTreeMap::new(), BTreeMap::new());
    // Including those that still wait for an address: no other VM may connect to them.
    for expose in snapshot.members().flat_map(|member| &member.exposes) {
        match at(expose) {
            (Some(address), port) => bound.insert(format!("{address} . {port}")),
            (None, port) => everywhere.insert(port),
        };
    }
    // The bridge of a host-only network does not forward, not even back to the VM.
    let nat = snapshot.networks.iter().filter(|network| network.plan.net_type == NetType::Nat);
    for forward in nat.flat_map(|network| &network.members).flat_map(|member| &member.forwards) {
        let (vm, target) = (forward.to, format!("{} . {}", forward.to, forward.expose.internal));
        match at(&forward.expose) {
            (Some(address), port) => {
                bound.insert(format!("{address} . {port}"));
                own_bound.entry(format!("{vm} . {address} . {port}")).or_insert(target);
            }
            (None, port) => {
                everywhere.insert(port.clone());
                own_everywhere.entry(format!("{vm} . {port}")).or_insert(target);
            }
        }
    }
    let pairs = |map: BTreeMap<String, String>| map.into_iter().map(|(from, to)| format!("{from} : {to}"));
    block("set", "everywhere", PORT, everywhere)
        + &block("set", "bound", &format!("ipv4_addr . {PORT}"), bound)
        + &block(
            "map",
            "own_everywhere",
            &format!("ipv4_addr . {PORT} : ipv4_addr . inet_service"),
            pairs(own_everywhere),
        )
        + &block(
            "map",
            "own_bound",
            &format!("ipv4_addr . ipv4_addr . {PORT} : ipv4_addr . inet_service"),
            pairs(own_bound),
        )
}

/// Where an exposed port is bound, and protocol and port as nft writes them.
fn at(expose: &Expose) -> (Option<std::net::Ipv4Addr>, String) {
    let Exposed { address, protocol, port } = expose.exposed();
    (address, format!("{protocol} . {port}"))
}

/// The table of a host without a network, where forwarding stays on for interfaces that were created after
/// Softnet turned it on.
pub fn crossing_only(snapshot: &Snapshot) -> String {
    match crossing(snapshot) {
        rules if rules.is_empty() => rules,
        rules => format!(
            "table ip {TABLE} {{
	chain crossing {{
		type filter hook forward priority filter - 10; policy accept;
{rules}	}}
}}
"
        ),
    }
}

/// Drops what must not be forwarded where Softnet turned forwarding on (H5): everything that neither comes
/// from a network nor goes to one. Exempt are routing interfaces that other programs created since, which
/// would have turned it on themselves, and frames that a bridge carries and the kernel passes to the rules
/// for routed packets (`bridge-nf-call-iptables`).
fn crossing(snapshot: &Snapshot) -> String {
    let Some(crossing) = &snapshot.host.crossing else { return String::new() };
    let mut text = String::new();
    let spared: Vec<&str> = snapshot.names().chain(crossing.spared.iter().map(String::as_str)).collect();
    for direction in ["iifname", "oifname"].into_iter().filter(|_| !spared.is_empty()) {
        text += &format!("\t\t{direction} {} accept\n", interfaces(spared.iter().copied()));
    }
    if !crossing.bridges.is_empty() {
        let pairs: Vec<String> =
            crossing.bridges.iter().map(|name| format!("\"{name}\" . \"{name}\"")).collect();
        text += &format!("\t\tiifname . oifname {{ {} }} accept\n", pairs.join(", "));
    }
    text + "\t\tdrop\n"
}

/// Packets of VMs leave with the host's address, from ports reserved for them (H6).
fn translation(snapshot: &Snapshot) -> String {
    let nat = snapshot.networks.iter().filter(|network| network.plan.net_type == NetType::Nat);
    nat.map(|Network { plan, .. }| {
        let (subnet, name) = (plan.subnet, plan.name.as_str());
        format!("\t\tip saddr {subnet} oifname != {{ \"{name}\", \"lo\" }} goto {}\n", ports::CHAIN)
    })
    .collect()
}

/// Drops what still has an internal source after the translation and leaves by an interface that is not the
/// network's (H7). The gateway's address is exempt: the host uses it to answer.
fn leaks(snapshot: &Snapshot) -> String {
    let leak = |Network { plan, .. }: &Network| {
        let (subnet, gateway, name) = (plan.subnet, plan.gateway().addr(), plan.name.as_str());
        format!("\t\tip saddr {subnet} ip saddr != {gateway} oifname != {{ \"{name}\", \"lo\" }} drop\n")
    };
    snapshot.networks.iter().map(leak).collect()
}

#[cfg(test)]
mod tests {
    use super::super::host::Crossing;
    use super::super::tests::snapshot;
    use super::*;

    #[test]
    fn a_vms_own_ports_lead_back_to_it() {
        let text = table(&snapshot(NetType::Nat, &["8080:80", "9.9.9.2:53:53/udp"]));
        for element in [
            "{ 192.168.64.5 . tcp . 8080 : 192.168.64.5 . 80 }",
            "{ 192.168.64.5 . 9.9.9.2 . udp . 53 : 192.168.64.5 . 53 }",
            "elements = { tcp . 8080 }",
            "elements = { 9.9.9.2 . udp . 53 }",
        ] {
            assert!(text.contains(element), "{element} is not in\n{text}");
        }
    }

    #[test]
    fn nothing_crosses_only_where_softnet_turned_forwarding_on() {
        let mut snapshot = snapshot(NetType::Nat, &[]);
        assert!(crossing(&snapshot).is_empty());
        snapshot.host.crossing =
            Some(Crossing { spared: ["docker0".into()].into(), bridges: ["br0".into()].into() });
        let text = crossing(&snapshot);
        assert!(text.contains("iifname { \"softnet0\", \"docker0\" } accept"), "{text}");
        assert!(text.contains("{ \"br0\" . \"br0\" } accept") && text.ends_with("\t\tdrop\n"), "{text}");
    }

    #[test]
    fn only_nat_translates_what_leaves() {
        assert!(translation(&snapshot(NetType::Nat, &[])).contains("192.168.64.0/24"));
        assert_eq!(translation(&snapshot(NetType::Host, &[])), "");
        assert!(leaks(&snapshot(NetType::Host, &[])).contains("192.168.64.0/24"));
    }
}
