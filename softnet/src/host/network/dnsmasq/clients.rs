//! What the server gives single VMs: their fixed addresses, resolvers, search domains and boot files.
//!
//! Like the rules, it follows from the files of running members: with each change all of it is rendered again. The
//! server reads it at its start and whenever it is sent SIGHUP (dnsmasq(8), `--dhcp-hostsfile`, `--dhcp-optsfile`,
//! `--servers-file`).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use softnet_filter::MacAddr;

use super::leases::wait_until_idle;
use super::process::{end, names_server, running};
use super::{hosts_file, names_file, options_file, zones_file};
use crate::host::files;
use crate::host::network::Plan;
use crate::host::network::record::MemberRecord;
use crate::host::network::run_dir::NetworkDir;

/// Writes the files for these members, if they differ, hides from VMs what is no longer theirs, and lets a running server
/// read them. `zones` are those of all networks ([`zones`]). The server has read them when this returns, unless it is so
/// slow that a warning says so. Call it under the [`crate::host::network::lock::Lock`].
///
/// # Errors
/// If a file cannot be read or written.
pub fn apply(
    plan: &Plan,
    directory: &NetworkDir,
    members: &[MemberRecord],
    zones: &str,
) -> Result<(), files::Error> {
    let mut changed = false;
    let had_tags = files::read(&hosts_file(directory))?.is_some_and(|hosts| hosts.contains(SETS_TAG));
    hide_directories(directory, members)?;
    for (path, text) in contents(plan, directory, members, zones) {
        if files::read(&path)?.as_deref() != Some(text.as_str()) {
            files::write_atomically(&path, &text)?;
            changed = true;
        }
    }
    let (path, names) = (names_file(directory), names(plan, members));
    if plan.names && files::read(&path)?.as_deref() != Some(names.as_str()) {
        files::write_atomically(&path, &names)?;
        hang_up(names_server(directory));
    }
    if changed && had_tags {
        // The keeper starts another, which reads the files.
        if let Some(Err(error)) = running(directory).map(end) {
            tracing::warn!(%error, "cannot replace dnsmasq; what it gives VMs may be what it gave before");
        }
    } else if changed {
        hang_up(running(directory));
        if !wait_until_idle(directory) {
            tracing::warn!("dnsmasq is slow; it may not know yet what it has to give a VM");
        }
    }
    Ok(())
}

/// Whether the files are those for these members.
///
/// # Errors
/// If a file cannot be read.
pub fn are_current(
    plan: &Plan,
    directory: &NetworkDir,
    members: &[MemberRecord],
    zones: &str,
) -> Result<bool, files::Error> {
    let shown: Vec<String> = shown(members).into_keys().collect();
    if files::list(&directory.tftp())? != shown {
        return Ok(false);
    }
    let names = plan.names.then(|| (names_file(directory), names(plan, members)));
    for (path, text) in contents(plan, directory, members, zones).into_iter().chain(names) {
        if files::read(&path)?.unwrap_or_default() != text {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Which directory TFTP shows to which VM: by its address, the link's name and the directory.
///
/// dnsmasq looks for a file below `ADDRESS/MAC` of its root. If one of the two is not there, it leaves that out
/// (dnsmasq(8), `--tftp-unique-root`). So the address is a directory that is there as long as the VM may ask, and
/// holds nothing but the link: a VM whose own directory was removed does not get to those of others.
fn shown(members: &[MemberRecord]) -> BTreeMap<String, (String, &Path)> {
    let of =
        |member: &MemberRecord| Some((member.address?.to_string(), member.mac.to_string().replace(':', "-")));
    let root = |member| Some((of(member)?, Path::new(member.client.tftp_root.as_ref()?)));
    members.iter().filter_map(root).map(|((address, name), root)| (address, (name, root))).collect()
}

/// Shows each VM its directory. Call it before the rules let the VM ask for files.
///
/// # Errors
/// If a link cannot be made.
pub fn show_directories(directory: &NetworkDir, members: &[MemberRecord]) -> Result<(), files::Error> {
    for (address, (name, root)) in shown(members) {
        let own = directory.tftp().join(address);
        files::make_directory(&own, 0o755)?;
        let is_there =
            |entry: &String| *entry == name && fs::read_link(own.join(entry)).is_ok_and(|to| to == root);
        for other in files::list(&own)?.iter().filter(|entry| !is_there(entry)) {
            files::remove_file(&own.join(other))?;
        }
        let link = own.join(name);
        match std::os::unix::fs::symlink(root, &link) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(files::Error::new("create", &link)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the links of VMs that are gone, or have another address now.
fn hide_directories(directory: &NetworkDir, members: &[MemberRecord]) -> Result<(), files::Error> {
    let shown = shown(members);
    for address in files::list(&directory.tftp())?.into_iter().filter(|address| !shown.contains_key(address))
    {
        let gone = directory.tftp().join(address);
        match fs::remove_dir_all(&gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(files::Error::new("remove", &gone)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn contents(
    plan: &Plan,
    directory: &NetworkDir,
    members: &[MemberRecord],
    zones: &str,
) -> [(PathBuf, String); 3] {
    // The options before the hosts: the server reads both at once, and a tag without a VM means nothing.
    [
        (zones_file(directory), zones.to_owned()),
        (options_file(directory), options(plan.gateway().addr(), members)),
        (hosts_file(directory), hosts(members)),
    ]
}

/// The zones of the names and addresses of all VMs that the host finds by their names. The host's resolver may ask the
/// servers of names about them, so a question of a VM of any network must not be handed on to it (rule H11).
pub fn zones<'a>(plans: impl Iterator<Item = &'a Plan>) -> String {
    // A zone without a server is nobody's (dnsmasq(8), `--server`).
    let of = |plan: &Plan| format!("server=/{}/\nserver=/{}/\n", plan.name, reverse_zone(plan));
    plans.filter(|plan| plan.names).map(of).collect()
}

/// The zone of the addresses of the network's subnet, or of a larger one (RFC 1035, section 3.5).
fn reverse_zone(plan: &Plan) -> String {
    let whole = usize::from(plan.subnet.prefix_len() / 8);
    let octets = plan.subnet.network().octets();
    let labels = octets.iter().take(whole).rev().map(u8::to_string);
    labels.chain(["in-addr.arpa".to_owned()]).collect::<Vec<_>>().join(".")
}

/// Tells a server that its files have changed.
fn hang_up(server: Option<u32>) {
    let Some(pid) = server.and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) else { return };
    match kill_process(pid, Signal::HUP) {
        // One that has just ended is replaced by one that reads the files.
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => tracing::warn!(%error, "cannot tell dnsmasq that what it knows of VMs has changed"),
    }
}

/// The names of the VMs that have an address (hosts(5)).
fn names(plan: &Plan, members: &[MemberRecord]) -> String {
    let line = |member: &MemberRecord| {
        Some(format!("{} {}.{}\n", member.address?, member.name.as_ref()?, plan.name))
    };
    members.iter().filter_map(line).collect()
}

/// The server finds a VM's options by a tag, which the VM's MAC address sets.
fn tag(mac: MacAddr) -> String {
    mac.octets().iter().fold("vm".to_owned(), |text, octet| text + &format!("{octet:02x}"))
}

/// What makes a line of the hosts set a tag. A server that has answered a client by such a line must never read the file
/// again: dnsmasq (2.90) links the tags of the line into those of the answer, and frees those too when it reads the
/// file, which ends it.
const SETS_TAG: &str = ",set:";

fn hosts(members: &[MemberRecord]) -> String {
    let mut text = String::new();
    for MemberRecord { mac, client, .. } in members {
        let has_options =
            !client.resolvers.is_empty() || !client.search.is_empty() || client.boot_file.is_some();
        let tag = if has_options { format!("{SETS_TAG}{}", tag(*mac)) } else { String::new() };
        let address = client.address.map(|address| format!(",{address}")).unwrap_or_default();
        if !(tag.is_empty() && address.is_empty()) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{mac}{tag}{address}");
        }
    }
    text
}

fn options(gateway: Ipv4Addr, members: &[MemberRecord]) -> String {
    let mut text = String::new();
    for MemberRecord { mac, client, .. } in members {
        let mut add = |option: &str, values: &[String]| {
            if !values.is_empty() {
                let _ = writeln!(text, "tag:{},option:{option},{}", tag(*mac), values.join(","));
            }
        };
        let resolvers: Vec<String> = client.resolvers.iter().map(ToString::to_string).collect();
        add("dns-server", &resolvers);
        add("domain-search", &client.search);
        // For clients that know only the older option (RFC 2132, section 3.17).
        add("domain-name", client.search.get(..1).unwrap_or_default());
        if let Some(file) = &client.boot_file {
            add("bootfile-name", std::slice::from_ref(file));
            // Firmware takes the server from the field `siaddr`, or else from the option.
            add("server-ip-address", &[gateway.to_string()]);
            add("tftp-server", &[gateway.to_string()]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::host::network::tests::plan;
    use softnet_filter::NetType;

    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    #[test]
    fn no_question_about_names_leaves_any_network() {
        let of = |names, subnet: &str| {
            let plan = Plan { names, subnet: subnet.parse().unwrap(), ..plan(NetType::Nat) };
            zones([&plan, &plan].into_iter())
        };
        let one = "server=/softnet0/\nserver=/64.168.192.in-addr.arpa/\n";
        assert_eq!(of(true, "192.168.64.0/24"), one.repeat(2));
        assert!(of(true, "100.64.16.0/20").contains("server=/64.100.in-addr.arpa/"));
        assert_eq!(of(false, "192.168.64.0/24"), "");
    }

    #[test]
    fn only_a_vm_with_something_of_its_own_is_mentioned() {
        let mut member = MemberRecord::new(MacAddr([2, 0, 0, 0, 0, 0xab]), 1);
        assert_eq!(
            (hosts(&[member.clone()]), options(GATEWAY, &[member.clone()])),
            (String::new(), String::new())
        );
        member.client.address = Some([10, 0, 0, 9].into());
        assert_eq!(hosts(&[member.clone()]), "02:00:00:00:00:ab,10.0.0.9\n");
        assert_eq!(options(GATEWAY, &[member.clone()]), "");
        member.client.address = None;
        member.client.resolvers = vec![[10, 0, 0, 53].into(), [10, 0, 0, 54].into()];
        member.client.search = vec!["a.example".into(), "b.example".into()];
        assert_eq!(hosts(&[member.clone()]), "02:00:00:00:00:ab,set:vm0200000000ab\n");
        assert_eq!(
            options(GATEWAY, &[member]),
            "tag:vm0200000000ab,option:dns-server,10.0.0.53,10.0.0.54\n\
             tag:vm0200000000ab,option:domain-search,a.example,b.example\n\
             tag:vm0200000000ab,option:domain-name,a.example\n"
        );
    }
}
