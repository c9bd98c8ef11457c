//! Limits each VM's share of resources that all VMs and the host use (rule H4): tracked connections, and the
//! network's resolver.
//!
//! The table is never deleted while a network exists: counts that restarted with each change of a lease would
//! be useless. Its rules are replaced, and its sets keep their counts.
//!
//! A connection counts for the VM that opens it and for the VM that it is opened to, when its first packet
//! comes. A connection over the share is dropped before the kernel has recorded it.
//!
//! For each new connection the kernel walks all counted connections of an element, so a large share is split
//! into buckets by a hash: otherwise each packet over a full share would cost the host a millisecond of CPU.
//! A VM never gets more than its share; if the hash is uneven, refusals start at about four fifths of it.
//!
//! The kernel forgets a silent counted flow after hours, not after its usual five days. Other flows are not
//! affected.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::Ipv4Addr;

use super::{Features, Snapshot, block, interfaces};

/// The table's name, which no network's table can have.
pub const TABLE: &str = "softnet_shares";

/// Limit of a VM's queries to the resolver: per second, and as a burst.
///
/// dnsmasq keeps an unanswered query for at least 10 s, so one VM has at most 250 open; it must be started
/// with room for those of all VMs.
const QUESTIONS: &str = "limit rate over 20/second burst 50 packets";

/// The same in bytes, because merged datagrams count as one packet. A query has some 100 bytes.
const QUESTION_BYTES: &str = "limit rate over 4 kbytes/second burst 16 kbytes";

/// How many connections are counted together.
const BUCKET: u32 = 256;

/// Matches only the first packet of a flow, which the kernel has not confirmed yet.
const FIRST: &str = "ct status and confirmed == 0";

/// How many TCP connections to the resolver a VM may have.
const STREAMS: u32 = 4;

/// For how many seconds the kernel remembers a silent connection: those that RFC 5382 requires (REQ-5), and a
/// minute or so.
const ESTABLISHED: u32 = 7440;

/// For how many seconds it remembers a UDP flow that was answered, and one that was not.
const DATAGRAMS: (u32, u32) = (180, 30);

/// A ruleset that loads only on a kernel that counts connections.
pub const COUNT_PROBE: &str = "table ip softnet_probe {
	set counts { type ipv4_addr . mark; size 16; flags dynamic; }
	chain probe { add @counts { ip saddr . symhash mod 2 ct count over 1 } drop
	}
}
";

/// A ruleset that loads only on a kernel with timeouts per flow.
pub const TIMEOUT_PROBE: &str = "table ip softnet_probe {
	ct timeout probe { protocol tcp; l3proto ip; policy = { established : 60 }; }
	chain probe { ct timeout set \"probe\"
	}
}
";

/// The text that loads the table's rules and keeps its counts.
pub fn table(snapshot: &Snapshot, features: Features) -> String {
    let bridges = interfaces(snapshot.names());
    let shares = if features.counts { shares(snapshot) } else { BTreeMap::new() };
    let mut text = emptied(shares.keys());
    let (mut from, mut to, mut streams) = (String::new(), String::new(), String::new());
    if features.counts {
        for (share, addresses) in shares {
            let members = members(share);
            text += &block("set", &members, "ipv4_addr", addresses.iter().map(Ipv4Addr::to_string));
            let buckets = (share / BUCKET).max(1);
            let most = share / buckets;
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\tset connections_{share} {{\n\t\ttype ipv4_addr . mark\n\t\tsize 1048576\n\t\tflags dynamic\n\t}}\n"
            );
            for (rules, end) in [(&mut from, "saddr"), (&mut to, "daddr")] {
                let _ = writeln!(
                    rules,
                    "\t\tip {end} @{members} add @connections_{share} \
                     {{ ip {end} . symhash mod {buckets} ct count over {most} }} drop"
                );
            }
        }
        text += &set("streams", "flags dynamic");
        streams = format!(
            "\t\tiifname {bridges} {FIRST} tcp dport 53 add @streams {{ ip saddr ct count over {STREAMS} }} \
             reject with tcp reset\n"
        );
    }
    let mut timeouts = String::new();
    if features.timeouts {
        let (replied, unreplied) = DATAGRAMS;
        for (protocol, policy) in [
            ("tcp", format!("established : {ESTABLISHED}")),
            ("udp", format!("unreplied : {unreplied}, replied : {replied}")),
        ] {
            let _ = write!(
                text,
                "\tct timeout {protocol}_of_vms {{\n\t\tprotocol {protocol}\n\t\tl3proto ip\n\
                 \t\tpolicy = {{ {policy} }}\n\t}}\n"
            );
            let _ = writeln!(timeouts, "\t\tmeta l4proto {protocol} ct timeout set \"{protocol}_of_vms\"");
        }
    }
    text += &set("questions", "flags dynamic,timeout\n\t\ttimeout 1m");
    text += &set("question_bytes", "flags dynamic,timeout\n\t\ttimeout 1m");
    text + &format!(
        "	chain from_vm {{
{from}{timeouts}	}}
	chain to_vm {{
{to}{timeouts}	}}
	chain forward {{
		type filter hook forward priority filter - 5; policy accept;
		iifname {bridges} {FIRST} jump from_vm
		oifname {bridges} {FIRST} jump to_vm
	}}
	chain input {{
		type filter hook input priority filter - 5; policy accept;
		iifname {bridges} udp dport 53 update @questions {{ ip saddr {QUESTIONS} }} drop
		iifname {bridges} udp dport 53 update @question_bytes {{ ip saddr {QUESTION_BYTES} }} drop
{streams}		iifname {bridges} {FIRST} jump from_vm
	}}
}}
"
    )
}

/// The beginning of the text: the table, whether or not it is there, without its rules and without the members of its shares.
fn emptied<'a>(shares: impl Iterator<Item = &'a u32> + Clone) -> String {
    let sets: String =
        shares.clone().map(|share| block("set", &members(*share), "ipv4_addr", [""; 0])).collect();
    let flushes: String = shares.map(|share| format!("flush set ip {TABLE} {}\n", members(*share))).collect();
    format!("table ip {TABLE} {{\n{sets}}}\nflush table ip {TABLE}\n{flushes}table ip {TABLE} {{\n")
}

/// The name of the set of addresses with this share.
fn members(share: u32) -> String {
    format!("members_{share}")
}

/// Which addresses have which share.
fn shares(snapshot: &Snapshot) -> BTreeMap<u32, BTreeSet<Ipv4Addr>> {
    let mut shares: BTreeMap<u32, BTreeSet<Ipv4Addr>> = BTreeMap::new();
    for member in snapshot.members() {
        let share = member.connections.min(snapshot.host.limits.largest_share);
        shares.entry(share).or_default().extend(member.address);
    }
    shares
}

fn set(name: &str, options: &str) -> String {
    format!("\tset {name} {{\n\t\ttype ipv4_addr\n\t\tsize 65535\n\t\t{options}\n\t}}\n")
}

#[cfg(test)]
mod tests {
    use softnet_filter::NetType;

    use super::super::tests::snapshot;
    use super::*;

    #[test]
    fn a_share_is_the_members_and_never_more_than_the_hosts_table_bears() {
        let mut snapshot = snapshot(NetType::Nat, &[]);
        snapshot.networks[0].members[0].connections = 5000;
        let rule = |share, buckets, most| {
            format!(
                "ip saddr @members_{share} add @connections_{share} \
                 {{ ip saddr . symhash mod {buckets} ct count over {most} }} drop"
            )
        };
        assert!(table(&snapshot, Features::ALL).contains(&rule(5000, 19, 263)));
        snapshot.host.limits.largest_share = 100;
        assert!(table(&snapshot, Features::ALL).contains(&rule(100, 1, 100)));
    }

    #[test]
    fn a_vm_without_an_address_counts_for_nobody() {
        let mut snapshot = snapshot(NetType::Nat, &[]);
        snapshot.networks[0].members[0].address = None;
        assert!(shares(&snapshot).values().all(BTreeSet::is_empty));
    }
}
