//! The keeper's dnsmasq: started as its child, watched while it runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::host::files;
use crate::host::network::dnsmasq::arguments::NAMES_PORT;
use crate::host::network::dnsmasq::process::end;
use crate::host::network::dnsmasq::{self, Error, Kind};
use crate::host::network::run_dir::NetworkDir;
use crate::host::tools::{self, Tool};
use crate::sys;
use crate::sys::incarnation::Incarnation;

/// How long it may take to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(8);

/// A server that is stopped (SIGSTOP) again within this time is replaced.
const STOPPED_AGAIN: Duration = Duration::from_secs(10);

/// How long to wait for a killed server to be gone.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);

/// The ports of DHCP, DNS and names, as written in the kernel's list of sockets.
const PORTS: [&str; 3] = ["0043", "0035", "1504"];

/// A running server.
#[derive(Debug)]
pub struct Served {
    process: Incarnation,
    child: Child,
    arguments: Vec<String>,
    bridge: u32,
    continued: Option<Instant>,
    /// Its sockets by inode, with the bytes queued in each at the last check.
    sockets: BTreeMap<u64, u64>,
    /// The processor time that it had used at the last check.
    used: u64,
}

/// The server's state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Health {
    /// It works.
    Good,
    /// It has ended, or has to be ended.
    Lost,
}

impl Served {
    /// Starts `server` with these arguments, which name `pid_file`, and waits until it is ready. `bridge` is the
    /// bridge's index: the sockets are lost with the interface.
    ///
    /// # Errors
    /// When it does not become ready, with its error message.
    pub fn start(server: Kind, arguments: Vec<String>, pid_file: &Path, bridge: u32) -> Result<Self, Error> {
        files::remove_file(pid_file)?;
        let failed = |source| Error::Tool(tools::Error::Start { tool: Tool::Dnsmasq, source });
        let mut command = Tool::Dnsmasq.command()?;
        command.args(&arguments).stdout(Stdio::null()).stderr(Stdio::piped());
        sys::process::unmasked(&mut command);
        let mut child = command.spawn().map_err(failed)?;
        let said = |child: &mut Child, status: String| {
            let mut said = String::new();
            if let Some(stderr) = &mut child.stderr {
                let _ = stderr.read_to_string(&mut said);
            }
            let said = said.trim().to_owned();
            if let Some(port) = port_taken(server, &said) {
                return Error::PortTaken { port, server };
            }
            Error::Tool(tools::Error::Failed { tool: Tool::Dnsmasq, status, said })
        };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Err(said(&mut child, status.to_string()));
            }
            // It writes its PID file once its sockets are bound.
            let noted = files::read(pid_file).ok().flatten();
            if noted.and_then(|text| text.trim().parse().ok()) == Some(child.id()) {
                break;
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(said(
                    &mut child,
                    format!("it was not ready after {} s", START_TIMEOUT.as_secs()),
                ));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        // From now on it logs to the system's log.
        child.stderr = None;
        let Some(process) = Incarnation::of(child.id()) else {
            return Err(said(&mut child, "it ended right after its start".to_owned()));
        };
        let mut served =
            Served { process, child, arguments, bridge, continued: None, sockets: BTreeMap::new(), used: 0 };
        served.sockets = served.own_sockets();
        Ok(served)
    }

    /// Its process.
    pub fn process(&self) -> Incarnation {
        self.process
    }

    /// Whether it is the server that the network needs now.
    pub fn is_right(&self, arguments: &[String], bridge: u32) -> bool {
        self.bridge == bridge && self.arguments == arguments
    }

    /// Checks whether it has ended or was stopped. A stopped server is continued, once.
    pub fn check_child(&mut self) -> Health {
        let Some(pid) = i32::try_from(self.process.pid).ok().and_then(Pid::from_raw) else {
            return Health::Lost;
        };
        let mut health = Health::Good;
        while let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG | WaitOptions::UNTRACED) {
            if !status.stopped() {
                if let Some(signal) = status.terminating_signal() {
                    tracing::warn!(pid = self.process.pid, signal, "a signal ended dnsmasq");
                }
                return Health::Lost;
            }
            if self.continued.is_some_and(|before| before.elapsed() < STOPPED_AGAIN) {
                health = Health::Lost;
                continue;
            }
            self.continued = Some(Instant::now());
            tracing::warn!(pid = self.process.pid, "dnsmasq was stopped; continuing it");
            let _ = kill_process(pid, Signal::CONT);
        }
        health
    }

    /// Checks that it still has its sockets and reads them. It does not read if data was queued at the last
    /// check, no less is queued now, and it has used no processor time meanwhile.
    pub fn check_sockets(&mut self) -> Health {
        let waiting = udp_sockets();
        let used = processor_time(self.process.pid);
        let rested = used == self.used;
        self.used = used;
        let mut health = Health::Good;
        for (inode, before) in &mut self.sockets {
            match waiting.get(inode) {
                None => health = Health::Lost,
                Some(&now) => {
                    if rested && *before > 0 && now >= *before {
                        health = Health::Lost;
                    }
                    *before = now;
                }
            }
        }
        health
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end.
    pub fn end(mut self) -> Result<(), Error> {
        if self.process.lives() {
            end(self.process.pid)?;
        }
        let _ = self.child.wait();
        Ok(())
    }

    /// Kills it: it may be unable to end by itself.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        // Its sockets close when it has ended. The exit status may come later: a debugger may keep the
        // zombie.
        let deadline = Instant::now() + KILL_TIMEOUT;
        while self.process.lives() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = self.child.try_wait();
    }

    /// Its sockets for DHCP and DNS.
    fn own_sockets(&self) -> BTreeMap<u64, u64> {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", self.process.pid)) else {
            return BTreeMap::new();
        };
        let all = udp_sockets();
        let inode = |entry: fs::DirEntry| {
            let target = fs::read_link(entry.path()).ok()?;
            target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok()
        };
        let own = descriptors.flatten().filter_map(inode);
        own.filter(|inode| all.contains_key(inode)).map(|inode| (inode, 0)).collect()
    }
}

/// The UDP sockets for DHCP and DNS in this network namespace: inode, and how many bytes are queued.
fn udp_sockets() -> BTreeMap<u64, u64> {
    read_sockets(&fs::read_to_string("/proc/net/udp").unwrap_or_default())
}

/// Reads the kernel's list (proc_pid_net(5)).
fn read_sockets(list: &str) -> BTreeMap<u64, u64> {
    let socket = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (_, port) = fields.get(1)?.split_once(':')?;
        let (_, received) = fields.get(4)?.split_once(':')?;
        let inode = fields.get(9)?.parse().ok()?;
        PORTS.contains(&port).then_some((inode, u64::from_str_radix(received, 16).ok()?))
    };
    list.lines().filter_map(socket).collect()
}

/// The processor time of a process: in nanoseconds, or in clock ticks where the kernel does not report those
/// (`Documentation/scheduler/sched-stats.rst`, proc_pid_stat(5)). A tick is longer than the server needs for
/// a few answers.
fn processor_time(pid: u32) -> u64 {
    let exact = fs::read_to_string(format!("/proc/{pid}/schedstat")).ok();
    if let Some(time) = exact.and_then(|text| text.split(' ').next()?.parse().ok()) {
        return time;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields =
        stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split_ascii_whitespace().skip(11).take(2);
    fields.filter_map(|field| field.parse::<u64>().ok()).sum()
}

/// Ends the server that an earlier keeper left, if any: it is not this keeper's child, so its end would go
/// unnoticed.
pub fn end_orphans(directory: &NetworkDir) -> Result<(), Error> {
    dnsmasq::stop(directory)
}

/// The port that dnsmasq could not have, by its message: DHCP has sockets of its own.
fn port_taken(server: Kind, said: &str) -> Option<u16> {
    let port = match server {
        Kind::Names => NAMES_PORT,
        Kind::Network if said.contains("DHCP") => 67,
        Kind::Network => 53,
    };
    said.contains("Address already in use").then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read() {
        let list = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                    \x20 74: 0140A8C0:0035 00000000:0000 07 00000000:00000200 00:00000000 00000000     0        0 11 2 0 0\n\
                    \x20 88: 00000000:0043 00000000:0000 07 00000100:00000000 00:00000000 00000000     0        0 13 2 0 0\n\
                    \x20 89: 00000000:1043 00000000:0000 07 00000100:00000000 00:00000000 00000000     0        0 14 2 0 0\n";
        assert_eq!(read_sockets(list), BTreeMap::from([(11, 0x200), (13, 0)]));
        assert!(read_sockets("").is_empty());
    }
}
