//! The table of one network: it translates, it keeps the uplink from reaching a VM except by an exposed port,
//! and it keeps 127.0.0.0/8 out of the VMs' reach. The filter decides, per VM, which destinations it may
//! reach, before any frame gets here. If the host's firewall drops forwarded packets, it still does.
//!
//! A VM's connections to exposed ports are not translated here but in the table that all networks share,
//! where only its own ports are. Where the host filters bridged frames as if they were routed
//! (`bridge-nf-call-iptables`), such a connection is redirected on the bridge itself and fails. Because of
//! that setting, the destination MAC distinguishes frames that the bridge carries between two VMs from
//! packets that the gateway routes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Network, Snapshot, block, interfaces};
use crate::host::forwarder::Forward;
use softnet_filter::NetType;
use softnet_wire::special::{self, Block};

/// The whole table.
pub fn table(network: &Network, snapshot: &Snapshot) -> String {
    let plan = &network.plan;
    let name = plan.name.as_str();
    let subnet = plan.subnet;
    let maps = maps(network.members.iter().flat_map(|member| &member.forwards));
    let mac = plan.mac();
    let (from_outside, hairpin, uplink) = match plan.net_type {
        NetType::Nat => (
            // Packets that another VM may not send are dropped earlier; this condition also keeps them from
            // being translated.
            translation_of_exposed(&format!("iifname != {} ", interfaces(snapshot.names()))),
            // Only a VM's own ports are translated for it, so a translated packet goes back to its sender.
            format!(
                "\t\tiifname \"{name}\" oifname \"{name}\" ct direction original ct status dnat {TO_EXPOSED} accept\n\
                 \t\tiifname \"{name}\" oifname \"{name}\" ct direction reply ct status dnat ct state established accept\n"
            ),
            format!(
                "\t\tiifname \"{name}\" ip saddr != {subnet} drop\n\
                 \t\tiifname \"{name}\" tcp flags syn tcp option maxseg size set rt mtu\n"
            ),
        ),
        // A host-only network exposes its ports to the host alone.
        NetType::Host => (String::new(), String::new(), format!("\t\tiifname \"{name}\" drop\n")),
    };
    let from_the_host = translation_of_exposed("");
    let not_answered = not_answered();
    let table = super::table(name);
    format!(
        "table ip {table} {{
{maps}	chain guard {{
		type filter hook prerouting priority raw; policy accept;
		iifname \"{name}\" ip daddr 127.0.0.0/8 drop
		iifname \"{name}\" ip saddr 127.0.0.0/8 drop
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
{from_outside}	}}
	chain output {{
		type nat hook output priority -100; policy accept;
{from_the_host}	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		oifname \"{name}\" ct status dnat ip saddr {{ {not_answered} }} masquerade
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname \"{name}\" oifname \"{name}\" ether daddr != {mac} accept
		iifname \"{name}\" ct state invalid drop
{hairpin}		iifname \"{name}\" oifname \"{name}\" drop
		oifname \"{name}\" ct direction original ct status dnat {TO_EXPOSED} accept
{uplink}		oifname \"{name}\" ct direction reply ct state established accept
		oifname \"{name}\" ct state related accept
		oifname \"{name}\" drop
	}}
}}
"
    )
}

/// The packet goes to a port that a VM exposes now.
const TO_EXPOSED: &str = "ip daddr . meta l4proto . th dport @exposed";

/// Sources that a VM's filter would not let it answer: not globally reachable addresses (rule D3), including
/// loopback. The VM sees the gateway's address in their place, which it may answer; clients from the internet
/// keep their address.
///
/// No client comes from "this network" or from the reserved addresses, since no host has one of these. The two anycast
/// addresses that are globally reachable although their block is not need no exception, since no host sends from them.
fn not_answered() -> String {
    let mut blocks: Vec<_> = special::not_global()
        .filter(|block| ![special::THIS_NETWORK, special::RESERVED].contains(block))
        .chain([special::AZURE_PLATFORM])
        .collect();
    blocks.sort_by_key(|block| block.address);
    blocks.iter().map(Block::to_string).collect::<Vec<_>>().join(", ")
}

/// The rules that lead exposed ports to the VMs, for packets that `which` describes. `fib` excludes the ports
/// of other hosts.
fn translation_of_exposed(which: &str) -> String {
    format!(
        "\t\t{which}dnat ip to ip daddr . meta l4proto . th dport map @bound\n\
         \t\t{which}fib daddr type local dnat ip to meta l4proto . th dport map @everywhere\n"
    )
}

/// The maps from an exposed port to where it leads, and the set of the VMs' ports that are exposed.
///
/// The set cuts a connection when its forward is removed: otherwise conntrack would continue to translate it.
fn maps<'a>(forwards: impl IntoIterator<Item = &'a Forward>) -> String {
    let mut bound = BTreeMap::new();
    let mut everywhere = BTreeMap::new();
    let mut exposed = BTreeSet::new();
    for Forward { expose, to } in forwards {
        let port = format!("{} . {}", expose.protocol, expose.external);
        let target = format!("{to} . {}", expose.internal);
        exposed.insert(format!("{to} . {} . {}", expose.protocol, expose.internal));
        // Two members never share a port of the host (each holds a socket bound to it), but one such pair in the text
        // would make nft refuse the whole table.
        match expose.address.filter(|address| !address.is_unspecified()) {
            Some(address) => bound.entry(format!("{address} . {port}")).or_insert(target),
            None => everywhere.entry(port).or_insert(target),
        };
    }
    let pairs = |map: BTreeMap<String, String>| -> Vec<String> {
        map.into_iter().map(|(from, to)| format!("{from} : {to}")).collect()
    };
    block("map", "bound", "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service", pairs(bound))
        + &block(
            "map",
            "everywhere",
            "inet_proto . inet_service : ipv4_addr . inet_service",
            pairs(everywhere),
        )
        + &block("set", "exposed", "ipv4_addr . inet_proto . inet_service", exposed)
}

#[cfg(test)]
mod tests {
    use super::super::tests::snapshot;
    use super::*;

    fn text(net_type: NetType, exposes: &[&str]) -> String {
        let snapshot = snapshot(net_type, exposes);
        table(&snapshot.networks[0], &snapshot)
    }

    #[test]
    fn forwards_become_elements_by_where_they_are_bound() {
        let text = text(NetType::Nat, &["8080:80", "10.0.0.1:53:53/udp", "0.0.0.0:81:80"]);
        for element in [
            "elements = { 10.0.0.1 . udp . 53 : 192.168.64.5 . 53 }",
            "elements = { tcp . 8080 : 192.168.64.5 . 80, tcp . 81 : 192.168.64.5 . 80 }",
            "elements = { 192.168.64.5 . tcp . 80, 192.168.64.5 . udp . 53 }",
        ] {
            assert!(text.contains(element), "{element} is not in\n{text}");
        }
    }

    #[test]
    fn a_port_that_two_claim_does_not_spoil_the_whole_table() {
        let text = text(NetType::Nat, &["8080:80", "8080:81"]);
        assert_eq!(text.matches("tcp . 8080").count(), 1, "{text}");
    }

    #[test]
    fn visitors_that_cannot_be_answered_are_seen_as_the_gateway() {
        let text = text(NetType::Nat, &["8080:80"]);
        let expected = "oifname \"softnet0\" ct status dnat ip saddr { 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, \
            168.63.129.16/32, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, \
            192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24 } masquerade\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn only_nat_lets_out_and_lets_in() {
        let (nat, host) = (text(NetType::Nat, &[]), text(NetType::Host, &[]));
        assert!(nat.contains("iifname != { \"softnet0\" } fib daddr type local dnat"), "{nat}");
        assert!(!host.contains("iifname != "), "{host}");
        assert!(host.contains("\t\tiifname \"softnet0\" drop"), "{host}");
    }
}
