//! Reads the server's leases, and waits until it has processed everything sent to it.

use std::fs;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use softnet_filter::MacAddr;
use softnet_wire::dhcpv4::SERVER_PORT;

use super::lease_file;
use super::process::running;
use crate::host::files;
use crate::host::network::run_dir::NetworkDir;

/// How long to wait for dnsmasq to process its queue; it needs about a thousandth of this on an idle machine.
const IDLE_TIMEOUT: Duration = Duration::from_secs(1);

/// The kernel's list of UDP sockets over IPv4 in this network namespace.
const UDP_SOCKETS: &str = "/proc/net/udp";

/// One lease in dnsmasq's file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LeaseEntry {
    /// When it ends, in seconds since 1970; 0 is never.
    pub expires: u64,
    /// The VM.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
}

impl LeaseEntry {
    /// How much is left of it: `None` if it never ends, zero if it has expired and the server has not noticed yet.
    pub fn left(&self) -> Option<Duration> {
        // A clock before 1970 counts as 1970, so that no lease has expired.
        let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        (self.expires != 0).then(|| Duration::from_secs(self.expires.saturating_sub(today)))
    }
}

/// Waits, at most a second, until dnsmasq has processed everything sent to it. Returns false on timeout, and
/// true at once if dnsmasq is not running.
pub fn wait_until_idle(directory: &NetworkDir) -> bool {
    // In this order: dnsmasq processes a message that has left the queue before it sleeps again.
    let queue_is_empty = || queued(&fs::read_to_string(UDP_SOCKETS).unwrap_or_default()) == 0;
    running(directory)
        .is_none_or(|pid| poll_until(|| (queue_is_empty() && is_sleeping(pid)).then_some(())).is_some())
}

/// The leases in the server's file; lines of another form are ignored.
pub fn leases(directory: &NetworkDir) -> Result<Vec<LeaseEntry>, files::Error> {
    Ok(lease_text(directory)?.lines().filter_map(parse_lease).collect())
}

/// The server's file. dnsmasq rewrites it in place for every change, so it is read again until it is
/// complete, but for no longer than a second.
pub fn lease_text(directory: &NetworkDir) -> Result<String, files::Error> {
    let path = lease_file(directory);
    let stamp = || fs::metadata(&path).ok().map(|file| (file.len(), file.modified().ok()));
    let server = running(directory);
    let whole = poll_until(|| {
        let before = stamp();
        let text = files::read(&path).map(Option::unwrap_or_default);
        // A rewrite in progress is over when dnsmasq sleeps, and has changed the file's time or length.
        let rests = server.is_none_or(is_sleeping);
        let is_whole = text.as_ref().is_ok_and(|text| {
            stamp() == before && before.map_or(0, |(length, _)| length) == text.len() as u64
        });
        (text.is_err() || rests && is_whole).then_some(text)
    });
    whole.unwrap_or_else(|| Ok(files::read(&path)?.unwrap_or_default()))
}

/// `EXPIRES MAC ADDRESS NAME CLIENT-ID`, separated by blanks (dnsmasq(8), `--dhcp-leasefile`).
fn parse_lease(line: &str) -> Option<LeaseEntry> {
    let mut fields = line.split_ascii_whitespace();
    let expires = fields.next()?.parse().ok()?;
    let mac = fields.next()?.parse().ok()?;
    Some(LeaseEntry { expires, mac, address: fields.next()?.parse().ok()? })
}

/// Tries again every millisecond, for a second.
fn poll_until<T>(answer: impl Fn() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + IDLE_TIMEOUT;
    loop {
        let answer = answer();
        if answer.is_some() || Instant::now() >= deadline {
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

/// Whether the process is sleeping, or is gone (proc_pid_stat(5)).
fn is_sleeping(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with('S'))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
