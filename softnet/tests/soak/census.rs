//! What the host knows of the VMs: the server's file, Softnet's notes and locks, and what processes use.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use lab::wire::Mac;
use nix::unistd::Pid;

use crate::NETWORK;
use crate::ledger::{Invariant, Ledger};

/// How long the notes may lag behind the VM, on a busy machine.
const LAG: Duration = Duration::from_secs(8);

/// A path of the network's directory.
pub fn file(name: &str) -> String {
    format!("/run/softnet/{NETWORK}/{name}")
}

/// What the server has leased: hardware address and address, as they stand in its file.
pub fn leases() -> Vec<(String, Ipv4Addr)> {
    let text = fs::read_to_string(file("dnsmasq.leases")).unwrap_or_default();
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(1);
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(entry).collect()
}

/// The network's DHCP server.
pub fn server() -> Option<Pid> {
    fs::read_to_string(file("dnsmasq.pid")).ok()?.trim().parse().ok().map(Pid::from_raw)
}

/// Compares what VMs believe with what the host has noted of them.
#[derive(Debug, Default)]
pub struct Census {
    /// When a VM's notes were last right, and whether this VM has been counted.
    agreed: HashMap<Mac, (Instant, bool)>,
    /// The most addresses that were leased at a time.
    pub most: usize,
    /// Processes that had been reaped by nobody, and when they were first seen.
    zombies: HashMap<i32, Instant>,
}

impl Census {
    /// Looks once. `living` are the VMs with an address, and since when they have it.
    pub fn look(&mut self, living: &[(Mac, Ipv4Addr, Instant)], now: Instant, ledger: &mut Ledger) {
        let leases = leases();
        self.most = self.most.max(leases.len());
        let addresses: HashSet<Ipv4Addr> = leases.iter().map(|(_, address)| *address).collect();
        ledger.check(Invariant::Alone, addresses.len() == leases.len(), || {
            format!("the server's file has an address twice: {leases:?}")
        });
        let by_mac: HashMap<&str, Ipv4Addr> =
            leases.iter().map(|(mac, address)| (mac.as_str(), *address)).collect();
        let locked = locked();
        for &(mac, address, since) in living {
            let wrong = disagreement(mac, address, &by_mac, &locked);
            let (agreed, counted) = self.agreed.entry(mac).or_insert((since, false));
            *agreed = (*agreed).max(since);
            if let Some(wrong) = wrong {
                if now.saturating_duration_since(*agreed) > LAG {
                    ledger.check(Invariant::Noted, false, || format!("{mac} has {address}, and {wrong}"));
                    *agreed = now;
                }
                continue;
            }
            *agreed = now;
            if !std::mem::replace(counted, true) {
                ledger.check(Invariant::Noted, true, String::new);
            }
        }
        self.look_for_zombies(now, ledger);
    }

    fn look_for_zombies(&mut self, now: Instant, ledger: &mut Ledger) {
        let zombies: Vec<i32> = processes().into_iter().filter(|pid| state(*pid) == Some('Z')).collect();
        self.zombies.retain(|pid, _| zombies.contains(pid));
        for pid in zombies {
            let since = *self.zombies.entry(pid).or_insert(now);
            if now.saturating_duration_since(since) > LAG {
                ledger
                    .check(Invariant::Traces, false, || format!("process {pid} is a zombie: {}", name(pid)));
                self.zombies.insert(pid, now);
            }
        }
    }
}

fn disagreement(
    mac: Mac,
    address: Ipv4Addr,
    leases: &HashMap<&str, Ipv4Addr>,
    locked: &HashSet<u64>,
) -> Option<String> {
    let mac = mac.to_string();
    if leases.get(mac.as_str()) != Some(&address) {
        return Some(format!("the server has leased it {:?}", leases.get(mac.as_str())));
    }
    let note = fs::read_to_string(file(&format!("ports/{mac}"))).unwrap_or_default();
    if !note.contains(&format!("address {address}\n")) {
        return Some(format!("its Softnet has noted {note:?}"));
    }
    let lock = file(&format!("leases/{address}"));
    let owner = fs::read_to_string(&lock).unwrap_or_default();
    let held = fs::metadata(lock_of(&lock)).is_ok_and(|metadata| locked.contains(&metadata.ino()));
    (owner.lines().next() != Some(mac.as_str()) || !held)
        .then(|| format!("{lock} is of {owner:?}, locked: {held}"))
}

/// The file whose lock says that the owner of the public one lives.
fn lock_of(public: &str) -> String {
    public.replacen("/run/softnet/", "/run/softnet/locks/", 1)
}

/// The inodes that somebody has locked. To try the locks would be to hold them for a moment.
fn locked() -> HashSet<u64> {
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    let inode = |line: &str| {
        line.split_ascii_whitespace()
            .find(|word| word.contains(':') && !word.ends_with(':'))?
            .rsplit(':')
            .next()?
            .parse()
            .ok()
    };
    table.lines().filter(|line| line.contains("FLOCK")).filter_map(inode).collect()
}

/// All processes of the lab.
pub fn processes() -> Vec<i32> {
    let names = fs::read_dir("/proc").into_iter().flatten().flatten();
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process's state, as in ps(1).
pub fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// A process's name.
pub fn name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// What a process uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usage {
    /// KiB of memory that is its own and of no file.
    pub memory: u64,
    /// Open descriptors.
    pub descriptors: u64,
}

impl Usage {
    /// What it uses now; `None` if it is gone.
    pub fn of(pid: Pid) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        let memory = line.trim().trim_end_matches(" kB").parse().ok()?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as u64;
        // An ended process has none.
        (descriptors > 0).then_some(Self { memory, descriptors })
    }
}
