//! Resolves a conflict of two VMs over one address: reads the DHCP server's file, and signals the Softnet of
//! the VM that must not have it.
//!
//! A binding in one Softnet can outlive the server's, for instance while its VM was frozen, and the server
//! has given the address to another VM since. The file is authoritative.

use std::net::Ipv4Addr;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use softnet_filter::MacAddr;

use super::Error;
use super::claim;
use super::dnsmasq;
use super::lock::Lock;
use super::record::{self, MemberRecord};
use super::run_dir::NetworkDir;
use crate::host::files;

/// Whether the server's file gives `address` to `mac`; `None` if no VM has it.
///
/// # Errors
/// When the file cannot be read.
pub fn server_gives(
    directory: &NetworkDir,
    mac: MacAddr,
    address: Ipv4Addr,
) -> Result<Option<bool>, files::Error> {
    let leases = dnsmasq::leases(directory)?;
    Ok(leases.iter().find(|lease| lease.address == address).map(|lease| lease.mac == mac))
}

/// Sends `signal` to the Softnet that holds `address`, and returns its VM's MAC; `None` if no process holds
/// it.
///
/// The member's file has the number of the process. The process is opened first, and its claim is checked
/// afterwards, so that the number cannot have been reused by another process.
///
/// # Errors
/// When the files cannot be read or the process cannot be signalled.
pub fn evict(
    directory: &NetworkDir,
    address: Ipv4Addr,
    signal: Signal,
    _lock: &Lock,
) -> Result<Option<MacAddr>, Error> {
    let lease = directory.leases().join(address.to_string());
    if !claim::is_claimed(&lease) {
        return Ok(None);
    }
    let Some(holder) = files::read(&lease)?.and_then(|text| text.lines().next()?.parse::<MacAddr>().ok())
    else {
        return Ok(None);
    };
    let path = directory.ports().join(holder.to_string());
    let record = || -> Result<Option<MemberRecord>, Error> {
        let text = files::read(&path)?.filter(|_| claim::is_claimed(&path));
        Ok(text.and_then(|text| record::read_member(&text)))
    };
    let Some(member) = record()? else { return Ok(None) };
    let Some(pid) = i32::try_from(member.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
    let failed = |errno: Errno| Error::Evict { address, pid: member.pid, source: errno.into() };
    let process = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    };
    if record()?.is_none_or(|now| now.pid != member.pid || now.address != Some(address)) {
        return Ok(None);
    }
    match pidfd_send_signal(&process, signal) {
        Ok(()) => Ok(Some(holder)),
        Err(Errno::SRCH) => Ok(None),
        Err(errno) => Err(failed(errno)),
    }
}
