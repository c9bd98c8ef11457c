//! The DHCP and DNS server of a managed network: one dnsmasq, the child of the network's [`super::keeper`]. A second
//! one tells the host the names of VMs, where VMs have names: dnsmasq cannot answer one who asks and not another, and no
//! VM must learn of the others.
//!
//! Its complete configuration is its command line ([`arguments`]) and what single VMs get ([`clients`]). [`process`]
//! finds and ends it, [`leases`] reads its lease file, and [`release`] releases leases on behalf of a Softnet process
//! that was killed.

pub mod arguments;
pub mod clients;
mod leases;
pub mod process;
mod release;

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use softnet_filter::MacAddr;

use super::run_dir::NetworkDir;
use crate::host::files;
use crate::host::tools;

pub use leases::{LeaseEntry, lease_text, leases, wait_until_idle};
pub use process::{keeper, running, stop};
pub use release::release_all;

/// dnsmasq could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is missing or did not start.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// Another program has a port that it needs.
    #[error(
        "port {0} is taken by another program, at all addresses of this host or at the gateway's; the managed network's DHCP and DNS \
         server needs it at port {0} of the gateway's address (`ss -lnptu 'sport = :{0}'` shows the program). Stop that program, \
         or let it listen at other addresses"
    )]
    PortTaken(u16),
    /// It could not be ended.
    #[error("cannot end dnsmasq (process {pid}): {source}")]
    End {
        /// Its process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
    /// A lease could not be released.
    #[error("cannot release the lease of {address} for {mac}: {source}")]
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
    Files(#[from] files::Error),
}

/// The server's lease file.
pub fn lease_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.leases")
}

/// The server's PID file.
pub fn pid_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.pid")
}

/// The file with a line for each VM that gets something of its own.
pub fn hosts_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.hosts")
}

/// The file with their options.
pub fn options_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.options")
}

/// The file with the addresses and names of the VMs.
pub fn names_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.names")
}

/// The PID file of the server of names.
pub fn names_pid_file(directory: &NetworkDir) -> PathBuf {
    directory.file("names.pid")
}
