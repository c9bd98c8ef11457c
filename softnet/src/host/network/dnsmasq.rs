//! The DHCP and DNS server of a managed network: one dnsmasq, a daemon that outlives the Softnet that started it.
//!
//! Its whole configuration is its command line, so whether a running one is right is one comparison with
//! `/proc/PID/cmdline`; one that was started for another lease time, another subnet or an earlier incarnation of the bridge
//! is replaced, and the lease file carries the leases over.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use softnet_filter::{MacAddr, NetType, release_message};

use super::run_dir::{self, NetworkDir};
use super::{Plan, subnet};
use crate::host::tools::{self, Tool};

/// How long dnsmasq may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long dnsmasq may take to heed what it was sent, some thousand times what it needs on an idle machine.
const HEED: Duration = Duration::from_secs(1);

/// The port of a DHCP server.
const SERVER_PORT: u16 = 67;

/// The kernel's list of UDP sockets over IPv4 in this network namespace.
const UDP_SOCKETS: &str = "/proc/net/udp";

/// dnsmasq could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is missing or did not start.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// It could not be ended.
    #[error("cannot end dnsmasq (process {pid}): {source}")]
    End {
        /// Its process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// It did not take a lease back.
    #[error("the lease of {address} cannot be given back for {mac}: {source}")]
    Release {
        /// The VM.
        mac: MacAddr,
        /// Its address.
        address: Ipv4Addr,
        /// Why.
        source: io::Error,
    },
    /// Its files could not be used.
    #[error(transparent)]
    Files(#[from] run_dir::Error),
}

/// One lease as dnsmasq notes it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaseEntry {
    /// When it ends, in seconds since 1970; 0 is never.
    pub expires: u64,
    /// The VM.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The running server of the network, if there is one.
pub fn running(directory: &NetworkDir) -> Option<u32> {
    let pid_file = pid_file(directory);
    let from_file = run_dir::read(&pid_file).ok().flatten().and_then(|text| text.trim().parse().ok());
    // Somebody may have removed the file and left the process.
    from_file.filter(|&pid| is_ours(pid, &pid_file)).or_else(|| {
        let processes = fs::read_dir("/proc").ok()?;
        let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.into_iter().find(|&pid| is_ours(pid, &pid_file))
    })
}

/// Sees to it that the right dnsmasq runs. `bridge` is the bridge's index: sockets do not survive their interface.
pub fn ensure(plan: &Plan, directory: &NetworkDir, bridge: u32) -> Result<u32, Error> {
    let wanted = arguments(plan, directory, user());
    let marker = directory.file("dnsmasq.bridge");
    let same_bridge = run_dir::read(&marker)?.is_some_and(|text| text.trim() == bridge.to_string());
    if let Some(pid) = running(directory) {
        if same_bridge && command_line(pid).is_some_and(|present| present.get(1..) == Some(&wanted)) {
            return Ok(pid);
        }
        tracing::info!(pid, "replacing the dnsmasq of an earlier configuration");
        end(pid)?;
    }
    run_dir::write_atomically(&marker, &format!("{bridge}\n"))?;
    // dnsmasq returns when its daemon serves, or says why it does not.
    let arguments: Vec<&str> = wanted.iter().map(String::as_str).collect();
    Tool::Dnsmasq.run(&arguments, "")?;
    running(directory).ok_or_else(|| {
        let said = "its daemon ended at once; the system log may say why".to_owned();
        Error::Tool(tools::Error::Failed { tool: Tool::Dnsmasq, status: "no daemon".to_owned(), said })
    })
}

/// Ends the network's dnsmasq, if it runs.
pub fn stop(directory: &NetworkDir) -> Result<(), Error> {
    running(directory).map_or(Ok(()), end)
}

/// Tells the server that the VM `mac` gives `address` back, in place of a Softnet that did not live to tell it.
///
/// The message goes from the gateway's address to itself, so it takes no privilege and stays on the host. To dnsmasq it
/// comes from the bridge, although loopback carries it: the kernel notes the interface that has the address as the one of
/// arrival. dnsmasq takes a release from any port, and does not answer, so there is nothing to wait for.
///
/// Leases are filed by MAC, and dnsmasq ends one only if the message names both its MAC and its address. So it changes
/// nothing to give a lease back twice, or one whose address another VM has been given since.
///
/// # Errors
/// When the gateway's address is gone, or nobody serves there as far as the kernel can tell at once.
pub fn release(plan: &Plan, mac: MacAddr, address: Ipv4Addr) -> Result<(), Error> {
    let server = plan.gateway().addr();
    let message = release_message(mac, address, server, std::process::id());
    let send = || {
        let socket = UdpSocket::bind((server, 0))?;
        socket.connect((server, SERVER_PORT))?;
        socket.send(&message)?;
        // That nobody listens, loopback says before the call returns.
        socket.take_error()?.map_or(Ok(()), Err)
    };
    send().map_err(|source| Error::Release { mac, address, source })?;
    tracing::info!(%mac, %address, "gave the lease back in the VM's place");
    Ok(())
}

/// Gives back `known` and whatever else the server has noted for the VM `mac`, as [`release`] does one address: a Softnet may
/// have died between the server's answer and its VM's. Says how many those were.
///
/// # Errors
/// Those of [`release`], or if the server's file cannot be read.
pub fn release_all(
    plan: &Plan,
    directory: &NetworkDir,
    mac: MacAddr,
    known: Option<Ipv4Addr>,
) -> Result<usize, Error> {
    let noted = leases(directory)?.into_iter().filter(|lease| lease.mac == mac).map(|lease| lease.address);
    let addresses: BTreeSet<Ipv4Addr> = noted.chain(known).collect();
    addresses.iter().try_for_each(|&address| release(plan, mac, address))?;
    Ok(addresses.len())
}

/// Waits until the server has heeded all that it was sent before. Returns false if it has not after a second; a server that
/// does not run is waited for by nobody.
pub fn settle(directory: &NetworkDir) -> bool {
    // In this order: what has left the queue is heeded before dnsmasq sleeps again.
    let heeded = || queued(&fs::read_to_string(UDP_SOCKETS).unwrap_or_default()) == 0;
    running(directory).is_none_or(|pid| until(|| (heeded() && sleeps(pid)).then_some(())).is_some())
}

/// Asks again each millisecond, for a second.
fn until<T>(answer: impl Fn() -> Option<T>) -> Option<T> {
    let give_up = Instant::now() + HEED;
    loop {
        let answer = answer();
        if answer.is_some() || Instant::now() >= give_up {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How many bytes wait for the DHCP servers of this namespace, by the kernel's list of sockets (proc_pid_net(5)).
fn queued(sockets: &str) -> u64 {
    let queue = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (_, port) = fields.nth(1)?.split_once(':')?;
        let (_, received) = fields.nth(2)?.split_once(':')?;
        let is_server = u16::from_str_radix(port, 16) == Ok(SERVER_PORT);
        u64::from_str_radix(received, 16).ok().filter(|_| is_server)
    };
    sockets.lines().filter_map(queue).sum()
}

/// Whether the process waits for something to do, or is gone (proc_pid_stat(5)).
fn sleeps(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('S'))
}

/// The leases in the server's file; lines of another shape are passed over.
pub fn leases(directory: &NetworkDir) -> Result<Vec<LeaseEntry>, run_dir::Error> {
    Ok(lease_text(directory)?.lines().filter_map(parse_lease).collect())
}

/// The server's file. dnsmasq rewrites it in place for every change, so it is read again until it was whole, but for no
/// longer than a second.
pub fn lease_text(directory: &NetworkDir) -> Result<String, run_dir::Error> {
    let path = lease_file(directory);
    let stamp = || fs::metadata(&path).ok().map(|file| (file.len(), file.modified().ok()));
    let server = running(directory);
    let whole = until(|| {
        let before = stamp();
        let text = run_dir::read(&path).map(Option::unwrap_or_default);
        // A rewrite that was under way is over when dnsmasq sleeps, and has left its time or its length.
        let rests = server.is_none_or(sleeps);
        let is_whole = text.as_ref().is_ok_and(|text| {
            stamp() == before && before.map_or(0, |(length, _)| length) == text.len() as u64
        });
        (text.is_err() || rests && is_whole).then_some(text)
    });
    whole.unwrap_or_else(|| Ok(run_dir::read(&path)?.unwrap_or_default()))
}

/// `EXPIRES MAC ADDRESS NAME CLIENT-ID`, separated by blanks (dnsmasq(8), `--dhcp-leasefile`).
fn parse_lease(line: &str) -> Option<LeaseEntry> {
    let mut fields = line.split_ascii_whitespace();
    let expires = fields.next()?.parse().ok()?;
    let mac = fields.next()?.parse().ok()?;
    Some(LeaseEntry { expires, mac, address: fields.next()?.parse().ok()? })
}

fn pid_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.pid")
}

/// Where the server notes its leases.
pub fn lease_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.leases")
}

/// The user that dnsmasq runs as: its own if its package made one.
fn user() -> &'static str {
    let own = fs::read_to_string("/etc/passwd")
        .is_ok_and(|passwd| passwd.lines().any(|line| line.starts_with("dnsmasq:")));
    if own { "dnsmasq" } else { "nobody" }
}

fn arguments(plan: &Plan, directory: &NetworkDir, user: &str) -> Vec<String> {
    let (first, last) = subnet::pool(plan.subnet);
    let pool = u64::from(last.to_bits()).saturating_sub(first.to_bits().into()).saturating_add(1);
    let mut arguments = vec![
        // The host's own configuration is another server's.
        "--conf-file=/dev/null".to_owned(),
        format!("--user={user}"),
        format!("--pid-file={}", pid_file(directory).display()),
        format!("--dhcp-leasefile={}", lease_file(directory).display()),
        format!("--interface={}", plan.name),
        "--except-interface=lo".to_owned(),
        "--bind-interfaces".to_owned(),
        format!("--dhcp-range={first},{last},{},{}", plan.subnet.netmask(), plan.lease_time.as_secs()),
        "--dhcp-authoritative".to_owned(),
        // Probing delays an offer by seconds, and no VM can use an address that it was not given.
        "--no-ping".to_owned(),
        // One address a MAC: the firmware, the installer and the system of one VM, each with a client identifier of its
        // own, would take three.
        "--dhcp-ignore-clid".to_owned(),
        format!("--dhcp-lease-max={pool}"),
        // A VM must not be able to name itself what another VM looks up.
        "--dhcp-ignore-names".to_owned(),
        "--no-hosts".to_owned(),
        "--quiet-dhcp".to_owned(),
    ];
    match plan.net_type {
        NetType::Nat => arguments.extend(["--domain-needed".to_owned(), "--bogus-priv".to_owned()]),
        // No way out: no router, and no resolver through which data could leave.
        NetType::Host => arguments.extend([
            "--port=0".to_owned(),
            "--dhcp-option=option:router".to_owned(),
            "--dhcp-option=option:dns-server".to_owned(),
        ]),
    }
    arguments
}

/// Whether the process is the dnsmasq that was started with this PID file, in this network namespace.
fn is_ours(pid: u32, pid_file: &Path) -> bool {
    let option = format!("--pid-file={}", pid_file.display());
    let named = command_line(pid).is_some_and(|arguments| {
        arguments.first().is_some_and(|program| program.ends_with("/dnsmasq")) && arguments.contains(&option)
    });
    named && in_this_namespace(pid)
}

/// Only root may look at another user's namespaces; to anybody else, who can do no more than read, the name is enough.
fn in_this_namespace(pid: u32) -> bool {
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net"));
    match (namespace(&pid.to_string()), namespace("self")) {
        (Ok(its), Ok(own)) => its == own,
        _ => true,
    }
}

fn command_line(pid: u32) -> Option<Vec<String>> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let bytes = bytes.strip_suffix(&[0])?;
    Some(bytes.split(|&byte| byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect())
}

/// Asks the process to end, waits, and kills it if it does not.
fn end(pid: u32) -> Result<(), Error> {
    let failed = |errno: rustix::io::Errno| Error::End { pid, source: errno.into() };
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(errno) => return Err(failed(errno)),
    };
    for signal in [Signal::TERM, Signal::KILL] {
        match pidfd_send_signal(&process, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        }
        if ended(&process).map_err(failed)? {
            return Ok(());
        }
    }
    Err(failed(rustix::io::Errno::TIMEDOUT))
}

fn ended(process: &OwnedFd) -> rustix::io::Result<bool> {
    let mut waiting = [PollFd::new(process, PollFlags::IN)];
    let timeout = PATIENCE.try_into().map_err(|_| rustix::io::Errno::INVAL)?;
    Ok(poll(&mut waiting, Some(&timeout))? > 0)
}

#[cfg(test)]
mod tests {
    use super::super::run_dir::RunDir;
    use super::super::tests::plan;
    use super::*;

    #[test]
    fn a_host_only_network_offers_no_way_out() {
        let directory = RunDir::of_this_namespace().network("softnet0");
        let nat = arguments(&plan(NetType::Nat), &directory, "nobody");
        let host = arguments(&plan(NetType::Host), &directory, "nobody");
        assert!(nat.contains(&"--dhcp-range=192.168.64.2,192.168.64.254,255.255.255.0,600".to_owned()));
        assert!(nat.contains(&"--dhcp-lease-max=253".to_owned()));
        assert!(!nat.iter().any(|argument| argument.starts_with("--dhcp-option") || argument == "--port=0"));
        for needed in ["--port=0", "--dhcp-option=option:router", "--dhcp-option=option:dns-server"] {
            assert!(host.iter().any(|argument| argument == needed), "{needed}");
        }
    }

    #[test]
    fn lease_lines_parse_and_others_are_passed_over() {
        let lease = parse_lease("1700000600 02:00:00:00:00:01 192.168.64.7 * 01:02").unwrap();
        assert_eq!(lease.expires, 1_700_000_600);
        assert_eq!(lease.mac.to_string(), "02:00:00:00:00:01");
        assert_eq!(lease.address.to_string(), "192.168.64.7");
        assert_eq!(parse_lease("duid 00:01:00:01"), None);
        assert_eq!(parse_lease(""), None);
    }

    #[test]
    fn what_waits_for_a_dhcp_server_is_counted() {
        let list = |received: &str| {
            format!(
                "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                 \x20 74: 0140A8C0:0035 00000000:0000 07 00000000:00000200 00:00000000 00000000     0        0 1 2 0 0\n\
                 \x20 88: 00000000:0043 00000000:0000 07 00000100:{received} 00:00000000 00000000     0        0 3 2 0 0\n"
            )
        };
        assert_eq!(queued(&list("00000000")), 0);
        assert_eq!(queued(&list("00000300")), 0x300);
        assert_eq!(queued(""), 0);
    }

    #[test]
    fn a_process_that_only_looks_like_dnsmasq_is_not_taken_for_it() {
        assert!(!is_ours(std::process::id(), Path::new("/run/softnet/softnet0/dnsmasq.pid")));
        assert!(!is_ours(u32::MAX, Path::new("/x")));
    }
}
