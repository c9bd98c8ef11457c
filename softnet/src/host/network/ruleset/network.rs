//! The nftables ruleset of a managed network, as one text for one atomic `nft -f -`.
//!
//! One table a network, replaced as a whole each time: what the kernel holds is always what the members' files say, so
//! there is nothing to compare, and a table that somebody flushed or edited is right again after the next start or the next
//! change of a lease. Connections survive the replacement; their state is in conntrack, not in the table.
//!
//! A VM's own connections are not led to another VM's exposed port: what one VM may reach of another is the filter's
//! decision, and where the host filters bridged frames as if they were routed (`bridge-nf-call-iptables`), such a
//! connection would be bent on the bridge itself, where isolated ports do not meet. That setting is also why frames that
//! the bridge carries between two VMs are told from packets that the gateway routes, by the MAC that they were sent to.
//!
//! What the table does, and what it leaves to others: it translates, it keeps the uplink from reaching a VM except by an
//! exposed port, and it keeps 127.0.0.0/8 out of the VMs' reach. Which destinations a VM may talk to is the filter's
//! business, per VM, before any frame gets here. A firewall of the host's own that drops forwarded packets still does.

use std::collections::{BTreeMap, BTreeSet};

use super::{NetType, Plan};
use crate::host::expose::Forward;

/// The name of the table of the network `name`.
pub fn table(name: &str) -> String {
    format!("softnet-{name}")
}

/// The text that removes the table, whether or not it is there.
pub fn removal(name: &str) -> String {
    let table = table(name);
    // Declaring first makes the deletion succeed in either case; nft 1.0.6 has no `destroy` yet.
    format!("table ip {table} {{ }}\ndelete table ip {table}\n")
}

/// The text that puts the whole table in place.
pub fn replacement(plan: &Plan, forwards: &[Forward]) -> String {
    let name = plan.name.as_str();
    let subnet = plan.subnet;
    let maps = maps(forwards);
    let mac = plan.mac();
    let (from_outside, uplink, translation) = match plan.net_type {
        NetType::Nat => (
            translation_of_exposed(&format!("iifname != \"{name}\" ")),
            format!(
                "\t\tiifname \"{name}\" ip saddr != {subnet} drop\n\
                 \t\tiifname \"{name}\" tcp flags syn tcp option maxseg size set rt mtu\n"
            ),
            format!("\t\tip saddr {subnet} oifname != \"{name}\" masquerade\n"),
        ),
        // A host-only network exposes its ports to the host alone.
        NetType::Host => (String::new(), format!("\t\tiifname \"{name}\" drop\n"), String::new()),
    };
    let from_the_host = translation_of_exposed("");
    let removal = removal(name);
    let table = table(name);
    format!(
        "{removal}table ip {table} {{
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
{translation}		oifname \"{name}\" ct status dnat ip saddr {{ {NOT_ANSWERED} }} masquerade
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		iifname \"{name}\" oifname \"{name}\" ether daddr != {mac} accept
		iifname \"{name}\" oifname \"{name}\" drop
		oifname \"{name}\" ct direction original ct status dnat ip daddr . meta l4proto . th dport @exposed accept
{uplink}		oifname \"{name}\" ct direction reply ct state established accept
		oifname \"{name}\" ct state related accept
		oifname \"{name}\" drop
	}}
}}
"
    )
}

/// Whom a VM's port filter would not let it answer: what is not globally reachable (rule D3), loopback among it. A VM
/// sees the gateway in their place, which it may answer; visitors from the world keep their own address.
const NOT_ANSWERED: &str = "10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16, 169.254.0.0/16, 172.16.0.0/12, \
    192.0.0.0/24, 192.0.2.0/24, 192.88.99.0/24, 192.168.0.0/16, 198.18.0.0/15, 198.51.100.0/24, 203.0.113.0/24";

/// The rules that lead exposed ports to the VMs, for packets that `which` describes. `fib` keeps the ports of other hosts
/// out of it.
fn translation_of_exposed(which: &str) -> String {
    format!(
        "\t\t{which}dnat ip to ip daddr . meta l4proto . th dport map @bound\n\
         \t\t{which}fib daddr type local dnat ip to meta l4proto . th dport map @everywhere\n"
    )
}

/// The maps from an exposed port to where it leads, and the set of the VMs' ports that are exposed.
///
/// The set is what cuts a connection when its forward goes: a translated connection lives in conntrack and would go on.
fn maps(forwards: &[Forward]) -> String {
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
    let (bound, everywhere) = (pairs(bound), pairs(everywhere));
    block("map", "bound", "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service", &bound)
        + &block("map", "everywhere", "inet_proto . inet_service : ipv4_addr . inet_service", &everywhere)
        + &block(
            "set",
            "exposed",
            "ipv4_addr . inet_proto . inet_service",
            &exposed.into_iter().collect::<Vec<_>>(),
        )
}

/// A named set or map.
fn block(kind: &str, name: &str, types: &str, elements: &[String]) -> String {
    let elements = match elements {
        [] => String::new(),
        some => format!("\t\telements = {{ {} }}\n", some.join(", ")),
    };
    format!("\t{kind} {name} {{\n\t\ttype {types}\n{elements}\t}}\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    fn forward(expose: &str) -> Forward {
        Forward { expose: expose.parse().unwrap(), to: "192.168.64.5".parse().unwrap() }
    }

    #[test]
    fn forwards_become_elements_by_where_they_are_bound() {
        let forwards = [forward("8080:80"), forward("10.0.0.1:53:53/udp"), forward("0.0.0.0:81:80")];
        let text = replacement(&plan(NetType::Nat), &forwards);
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
        let text = maps(&[forward("8080:80"), forward("8080:81")]);
        assert_eq!(text.matches("tcp . 8080").count(), 1, "{text}");
    }

    #[test]
    fn only_nat_translates_what_leaves() {
        let (nat, host) = (replacement(&plan(NetType::Nat), &[]), replacement(&plan(NetType::Host), &[]));
        assert!(nat.contains("ip saddr 192.168.64.0/24 oifname != \"softnet0\" masquerade"));
        assert!(!host.contains("oifname != "));
        assert!(host.contains("iifname \"softnet0\" drop"));
    }
}
