//! The server's command line: its complete configuration but for what single VMs get.

use std::fs;

use softnet_filter::NetType;

use super::{hosts_file, lease_file, names_file, names_pid_file, options_file, pid_file, zones_file};
use crate::host::network::run_dir::NetworkDir;
use crate::host::network::{Plan, subnet};
use crate::host::tools::Tool;

/// Open DNS queries for each VM of a full network: the rules let a burst of 50 pass and then 20 a second, and
/// dnsmasq keeps a query open for 10 s if no answer comes (rule H4).
const QUESTIONS: u64 = 250;
/// The limit of open queries for dnsmasq: some tens of megabytes, if no query of a large network is answered.
const MOST_QUESTIONS: u64 = 65_000;

/// TCP connections that the rules let each VM of a full network have (rule H4).
const CONNECTIONS: u64 = 4;
/// TCP connections for the host, and for VMs that have left and whose connections dnsmasq still keeps: its
/// default limit.
const OTHER_CONNECTIONS: u64 = 20;
/// The limit of TCP connections, each of which is a process: what a small host can handle.
const MOST_CONNECTIONS: u64 = 1_100;

/// TFTP transfers for each VM of a full network.
const TRANSFERS: u64 = 4;
/// The limit of transfers, each of which is a socket.
const MOST_TRANSFERS: u64 = 500;

/// Options that only some versions of dnsmasq have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// `--no-ident`, since 2.86.
    pub no_ident: bool,
    /// `--max-tcp-connections`, since 2.90.
    pub tcp_connections: bool,
}

impl Options {
    /// Reads them from the help of the installed dnsmasq.
    pub fn of_the_installed() -> Self {
        Options::in_help(&Tool::Dnsmasq.run(&["--help"], "").unwrap_or_default())
    }

    fn in_help(help: &str) -> Self {
        Options {
            no_ident: help.contains("--no-ident"),
            tcp_connections: help.contains("--max-tcp-connections"),
        }
    }
}

/// One share more than for the VMs, for the host.
fn questions(pool: u64) -> u64 {
    pool.saturating_add(1).saturating_mul(QUESTIONS).min(MOST_QUESTIONS)
}

fn connections(pool: u64) -> u64 {
    pool.saturating_mul(CONNECTIONS).saturating_add(OTHER_CONNECTIONS).min(MOST_CONNECTIONS)
}

/// Room for a few transfers of each VM of a full network.
fn transfers(pool: u64) -> u64 {
    pool.saturating_mul(TRANSFERS).min(MOST_TRANSFERS)
}

/// The user that dnsmasq runs as: `dnsmasq` if its package created that.
pub fn user() -> &'static str {
    let own = fs::read_to_string("/etc/passwd")
        .is_ok_and(|passwd| passwd.lines().any(|line| line.starts_with("dnsmasq:")));
    if own { "dnsmasq" } else { "nobody" }
}

/// The arguments of the network's server.
pub fn arguments(plan: &Plan, directory: &NetworkDir, user: &str, options: Options) -> Vec<String> {
    let (first, last) = subnet::pool(plan.subnet);
    let pool = u64::from(last.to_bits()).saturating_sub(first.to_bits().into()).saturating_add(1);
    let mut arguments = vec![
        // The host's configuration file belongs to another server.
        "--conf-file=/dev/null".to_owned(),
        format!("--user={user}"),
        format!("--pid-file={}", pid_file(directory).display()),
        format!("--dhcp-leasefile={}", lease_file(directory).display()),
        format!("--interface={}", plan.name),
        "--except-interface=lo".to_owned(),
        "--bind-interfaces".to_owned(),
        format!("--dhcp-range={first},{last},{},{}", plan.subnet.netmask(), plan.lease_time.as_secs()),
        "--dhcp-authoritative".to_owned(),
        // Probing delays an offer by seconds, and no VM can use an address that was not leased to it.
        "--no-ping".to_owned(),
        // One address per MAC: otherwise the firmware, the installer and the system of one VM, with different
        // client identifiers, would take three.
        "--dhcp-ignore-clid".to_owned(),
        format!("--dhcp-lease-max={pool}"),
        format!("--dhcp-hostsfile={}", hosts_file(directory).display()),
        format!("--dhcp-optsfile={}", options_file(directory).display()),
        // A VM must not be able to claim a name that another VM looks up.
        "--dhcp-ignore-names".to_owned(),
        "--no-hosts".to_owned(),
        "--quiet-dhcp".to_owned(),
        // The keeper is its parent, and gets its exit status.
        "--keep-in-foreground".to_owned(),
    ];
    if options.no_ident {
        // `version.bind` and `servers.bind` tell a VM dnsmasq's version, and which servers the host uses
        // (rule H11).
        arguments.push("--no-ident".to_owned());
    }
    if plan.tftp {
        arguments.push("--enable-tftp".to_owned());
        arguments.push(format!("--tftp-root={}", directory.tftp().display()));
        // A VM sees the directory of its address and MAC. The rules let nobody ask who has none.
        arguments.extend(["--tftp-unique-root=ip", "--tftp-unique-root=mac"].map(str::to_owned));
        arguments.push(format!("--tftp-max={}", transfers(pool)));
    }
    match plan.net_type {
        NetType::Nat => {
            arguments.extend(["--domain-needed".to_owned(), "--bogus-priv".to_owned()]);
            arguments.push(format!("--servers-file={}", zones_file(directory).display()));
            // Room for every VM's share (rule H4): the nftables rules limit what one VM may have open.
            arguments.push(format!("--dns-forward-max={}", questions(pool)));
            if options.tcp_connections {
                arguments.push(format!("--max-tcp-connections={}", connections(pool)));
            }
        }
        // No way out: no router, and no resolver through which data could leave.
        NetType::Host => arguments.extend([
            "--port=0".to_owned(),
            "--dhcp-option=option:router".to_owned(),
            "--dhcp-option=option:dns-server".to_owned(),
        ]),
    }
    arguments
}

/// The port of the gateway's address at which the host finds VMs by their names. The rules close it to everybody else.
pub const NAMES_PORT: u16 = 5380;

/// The arguments of the server of names. It knows the running VMs, under the network's name as domain, and asks nobody.
pub fn arguments_for_names(plan: &Plan, directory: &NetworkDir, user: &str) -> Vec<String> {
    vec![
        "--conf-file=/dev/null".to_owned(),
        format!("--user={user}"),
        format!("--pid-file={}", names_pid_file(directory).display()),
        format!("--port={NAMES_PORT}"),
        format!("--listen-address={}", plan.gateway().addr()),
        "--bind-interfaces".to_owned(),
        format!("--addn-hosts={}", names_file(directory).display()),
        format!("--local=/{}/", plan.name),
        // For addresses without a name.
        "--bogus-priv".to_owned(),
        "--no-hosts".to_owned(),
        "--no-resolv".to_owned(),
        "--keep-in-foreground".to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::run_dir::RunDir;
    use super::super::super::tests::plan;
    use super::*;

    #[test]
    fn a_host_only_network_offers_no_way_out() {
        let directory = RunDir::of_this_namespace().network("softnet0");
        let nat = arguments(&plan(NetType::Nat), &directory, "nobody", Options::default());
        let host = arguments(&plan(NetType::Host), &directory, "nobody", Options::default());
        assert!(nat.contains(&"--dhcp-range=192.168.64.2,192.168.64.254,255.255.255.0,600".to_owned()));
        assert!(nat.contains(&"--dhcp-lease-max=253".to_owned()));
        assert!(!nat.iter().any(|argument| argument.starts_with("--dhcp-option") || argument == "--port=0"));
        for needed in ["--port=0", "--dhcp-option=option:router", "--dhcp-option=option:dns-server"] {
            assert!(host.iter().any(|argument| argument == needed), "{needed}");
        }
    }

    #[test]
    fn tftp_is_served_only_where_it_was_asked_for() {
        let directory = RunDir::of_this_namespace().network("softnet0");
        let of =
            |tftp| arguments(&Plan { tftp, ..plan(NetType::Nat) }, &directory, "nobody", Options::default());
        assert!(of(true).iter().any(|argument| argument == "--tftp-unique-root=ip"));
        assert!(!of(false).iter().any(|argument| argument.contains("tftp")));
    }

    #[test]
    fn only_what_the_installed_one_knows_is_asked_for() {
        let directory = RunDir::of_this_namespace().network("softnet0");
        let known =
            Options::in_help("--no-ident  Do not add CHAOS TXT records.\n--max-tcp-connections=<integer>");
        let new = arguments(&plan(NetType::Nat), &directory, "nobody", known);
        let old = arguments(&plan(NetType::Nat), &directory, "nobody", Options::in_help(""));
        for option in ["--no-ident", "--max-tcp-connections=1032"] {
            assert!(new.iter().any(|argument| argument == option), "{option}: {new:?}");
            assert!(!old.iter().any(|argument| argument == option), "{option}: {old:?}");
        }
        assert!(old.contains(&"--dns-forward-max=63500".to_owned()), "{old:?}");
        assert_eq!((questions(5), connections(5)), (1_500, 40));
        assert_eq!((questions(65_000), connections(65_000)), (MOST_QUESTIONS, MOST_CONNECTIONS));
    }
}
