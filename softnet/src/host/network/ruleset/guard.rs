//! The guard at the TAPs (rule H10): the kernel checks the sender of a VM's frames once more.
//!
//! A frame may compromise the process that parses it, which could then send anything through its TAP. These
//! rules hold whatever it sends: the source MAC is the VM's, and the source address is the one that the
//! monitor recorded after comparing it with the DHCP server's file. They allow everything that the filter
//! forwards, and check only MAC, EtherType and address; the filter checks the rest. The filter forwards only
//! the EtherTypes ARP and IPv4. And no isolated VM reaches another, even while a port lacks its flag on the
//! bridge.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use softnet_filter::MacAddr;

use super::super::Error;
use super::{Network, block, host::plain, list};
use crate::host::stations::Plan;
use crate::host::tools::Tool;
use crate::netlink::Netlink;
use crate::netlink::nftables::{self, Family};

/// A ruleset that loads only on a kernel with tables of the bridge family.
pub const PROBE: &str = "table bridge softnet_probe {
	chain probe { type filter hook prerouting priority -300; policy accept;
	}
}
";

/// The prefix of the names of tables for single TAPs, which no network's table can have.
pub const TAP_PREFIX: &str = "softnet-tap-";

/// The guard of the members' TAPs.
pub fn of_network(network: &Network) -> String {
    let table = super::table(network.plan.name.as_str());
    let gateway = network.plan.gateway().addr();
    let held: BTreeSet<Ipv4Addr> = network.members.iter().filter_map(|member| member.address).collect();
    let (mut taps, mut macs, mut bound, mut last) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut isolated_taps, mut free) = (Vec::new(), Vec::new());
    for member in &network.members {
        let Some((tap, isolated)) = member.tap.as_ref().filter(|(tap, _)| plain(tap)) else { continue };
        taps.push(format!("\"{tap}\""));
        isolated_taps.extend(isolated.then(|| format!("\"{tap}\"")));
        macs.push(format!("\"{tap}\" . {}", member.mac));
        bound.extend(member.address.map(|address| format!("\"{tap}\" . {address}")));
        // A VM that has overslept its lease requests it again, and the server refuses it if another VM has it (C10). Only
        // until then may the VM look for the gateway from it: that would turn the host's neighbour entry.
        let element = |address| format!("\"{tap}\" . {address}");
        last.extend(member.last.map(element));
        free.extend(member.last.filter(|last| !held.contains(last)).map(element));
    }
    let sets = block("set", "taps", "ifname", taps)
        + &block("set", "isolated", "ifname", isolated_taps)
        + &block("set", "macs", "ifname . ether_addr", macs)
        + &block("set", "bound", "ifname . ipv4_addr", bound)
        + &block("set", "last", "ifname . ipv4_addr", last)
        + &block("set", "free", "ifname . ipv4_addr", free)
        + &clients(network);
    // 4011 is where a PXE client asks (rule B6). Elsewhere the port is like any other.
    let to_server = format!("ip daddr {{ 255.255.255.255, {gateway} }} udp sport 68 accept");
    format!(
        "table bridge {table} {{
{sets}	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		iifname @taps goto vm
	}}
	chain forward {{
		type filter hook forward priority -300; policy accept;
		iifname @isolated oifname @isolated drop
	}}
	chain vm {{
		iifname . ether saddr != @macs drop
		ether type ip goto packets
		ether type arp goto questions
		drop
	}}
	chain packets {{
		udp dport 67 goto dhcp
		ip daddr {{ 255.255.255.255, {gateway} }} udp dport 4011 goto dhcp
		iifname . ip saddr @bound accept
		drop
	}}
	chain dhcp {{
		{HEADER} != {REQUEST} drop
		{RELAY} != 0 drop
		iifname . {CHADDR} @clients goto client
		drop
	}}
	chain client {{
		iifname . ip saddr @bound {to_server}
		ip saddr 0.0.0.0 {to_server}
		iifname . ip saddr @last {to_server}
		drop
	}}
	chain questions {{
		iifname . arp saddr ether != @macs drop
		iifname . arp saddr ip @bound accept
		arp saddr ip 0.0.0.0 accept
		iifname . arp saddr ip @free arp daddr ip {gateway} accept
		drop
	}}
}}
"
    )
}

/// The field `chaddr` of a DHCP message, after the UDP header: the server stores leases by it (RFC 2131,
/// section 2).
const CHADDR: &str = "@th,288,48";

/// The fields `op`, `htype`, `hlen` and `hops` (RFC 2131, section 2). The server also stores leases by the type and
/// the length, so a VM with others would get one more lease for each of them.
const HEADER: &str = "@th,64,32";
/// A request of an Ethernet client that no relay agent has passed on (rule C2).
const REQUEST: &str = "0x01010600";
/// The field `giaddr`: the server answers to that address.
const RELAY: &str = "@th,256,32";

/// Which client hardware address each TAP may use in DHCP messages.
fn clients(network: &Network) -> String {
    let taps = network.members.iter().filter_map(|member| Some((member.tap.as_ref()?, member.mac)));
    let elements: Vec<String> = taps
        .filter(|((tap, _), _)| plain(tap))
        .map(|((tap, _), mac)| format!("\"{tap}\" . {}", number(mac)))
        .collect();
    format!("\tset clients {{\n\t\ttypeof iifname . {CHADDR}\n{}\t}}\n", list(elements))
}

/// A MAC address as nft takes it for a field without a type.
fn number(mac: MacAddr) -> String {
    mac.octets().iter().fold("0x".to_owned(), |text, octet| text + &format!("{octet:02x}"))
}

/// The name of the table that [`install_for_tap`] makes.
fn table(tap: &str) -> String {
    format!("{TAP_PREFIX}{tap}")
}

/// Guards a TAP of a bridge that Softnet does not manage. The address that the server there leased to the VM
/// is unknown, so the rules only check the VM's MAC and that it impersonates neither the host nor a station that serves
/// the segment. Of the
/// host's users only root may send to the DHCP server on the bridge, which could not distinguish another user
/// from the VM (rule H9). The TAP's name may be reused for another VM: its Softnet removes the rules
/// ([`without_table_for_tap`]), and so does the next call once the TAP is gone.
///
/// # Errors
/// If nft is missing, or the kernel has no tables of the bridge family. The caller decides whether that matters.
pub fn install_for_tap(tap: &str, mac: MacAddr, segment: &Plan) -> Result<(), Error> {
    if !plain(tap) || !plain(&segment.interface) {
        return Ok(());
    }
    let mut text = stale_tables()? + &without_table_for_tap(tap);
    let table = table(tap);
    let (name, server, subnet) = (&segment.interface, segment.dhcp_server(), segment.subnet);
    let (network, broadcast) = (subnet.network(), subnet.broadcast());
    let others: Vec<String> = segment.not_the_vms().iter().map(Ipv4Addr::to_string).collect();
    let others = others.join(", ");
    text += &format!(
        "table ip {table} {{
	chain local_users {{
		type filter hook output priority filter; policy accept;
		udp dport 67 oifname \"{name}\" goto only_root
		udp dport 67 ip daddr {{ {network}, {server}, {broadcast} }} goto only_root
	}}
	chain only_root {{
		meta skuid 0 accept
		drop
	}}
}}
"
    );
    text += &format!(
        "table bridge {table} {{
	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
		iifname \"{tap}\" goto vm
	}}
	chain vm {{
		ether saddr != {mac} drop
		ip saddr {{ {others} }} drop
		ether type ip accept
		ether type != arp drop
		arp saddr ether != {mac} drop
		arp saddr ip {{ {others} }} drop
	}}
}}
"
    );
    Tool::Nft.run(&["-f", "-"], &text)?;
    Ok(())
}

/// Whether [`install_for_tap`] may have left something for an earlier TAP of this name.
pub fn may_have_table_for_tap(tap: &str) -> bool {
    let found = |family| nftables::has_table(family, &table(tap)).unwrap_or(true);
    found(Family::Bridge) || found(Family::Ipv4)
}

/// The text that removes what [`install_for_tap`] left for an earlier TAP of this name.
pub fn without_table_for_tap(tap: &str) -> String {
    super::gone("bridge", &table(tap)) + &super::gone("ip", &table(tap))
}

/// The text that removes the tables of TAPs that are gone.
///
/// # Errors
/// If nft is missing, or the interfaces cannot be listed.
pub fn stale_tables() -> Result<String, Error> {
    let mut netlink = Netlink::open()?;
    let tables = Tool::Nft.run(&["list", "tables"], "")?;
    let mut text = String::new();
    for (family, table) in
        tables.lines().filter_map(|line| line.trim().strip_prefix("table ")?.split_once(' '))
    {
        if let Some(tap) = table.strip_prefix(TAP_PREFIX)
            && netlink.link(tap)?.is_none()
        {
            text += &super::gone(family, table);
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use softnet_filter::NetType;

    use super::super::tests::snapshot;
    use super::*;

    #[test]
    fn each_tap_has_its_mac_and_address() {
        let text = of_network(&snapshot(NetType::Nat, &[]).networks[0]);
        assert!(text.contains("{ \"snt0\" . 02:00:00:00:00:01 }"), "{text}");
        assert!(text.contains("{ \"snt0\" . 192.168.64.5 }"), "{text}");
        assert!(text.contains("{ \"snt0\" . 0x020000000001 }"), "{text}");
    }

    #[test]
    fn a_last_address_is_for_dhcp_and_for_arp_until_another_vm_has_it() {
        let mut network = snapshot(NetType::Nat, &[]).networks.remove(0);
        let mut other = network.members[0].clone();
        (other.tap, other.address) = (Some(("snt1".into(), true)), None);
        other.last = Some("192.168.64.6".parse().unwrap());
        network.members.push(other);
        let elements = |network: &Network| of_network(network).matches("\"snt1\" . 192.168.64.").count();
        assert_eq!(elements(&network), 2);
        network.members[1].last = network.members[0].address;
        assert_eq!(elements(&network), 1);
    }

    #[test]
    fn a_name_that_means_something_to_nft_is_left_out() {
        let mut network = snapshot(NetType::Nat, &[]).networks.remove(0);
        network.members[0].tap = Some(("a\"*".into(), true));
        assert!(!of_network(&network).contains("a\"*"));
    }
}
