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

use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use softnet_filter::MacAddr;

use super::run_dir::NetworkDir;
use crate::host::files;
use crate::host::tools;

pub use leases::{LeaseEntry, lease_text, leases, wait_until_idle};
pub use process::{keeper, names_server, running, stop};
pub use release::release_all;

/// What a dnsmasq is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It serves DHCP and DNS to the VMs.
    Network,
    /// It tells the host the names of VMs.
    Names,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Network => "DHCP and DNS server",
            Kind::Names => "server of names",
        })
    }
}

/// dnsmasq could not be started or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is missing or did not start.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// Another program has a port that it needs.
    #[error(
        "port {port} is taken by another program, at all addresses of this host or at the gateway's; the managed network's {server} \
         needs it at the gateway's address (`ss -lnptu 'sport = :{port}'` shows the program). Stop that program, or let it listen \
         at other addresses"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// Which server needs it.
        server: Kind,
    },
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

/// The file with the zones about which the server asks nobody.
pub fn zones_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.zones")
}

/// The file with the addresses and names of the VMs.
pub fn names_file(directory: &NetworkDir) -> PathBuf {
    directory.file("dnsmasq.names")
}

/// The PID file of the server of names.
pub fn names_pid_file(directory: &NetworkDir) -> PathBuf {
    directory.file("names.pid")
}

/// The file that says why there is no server of names although the network needs one.
pub fn names_error_file(directory: &NetworkDir) -> PathBuf {
    directory.file("names.error")
}

/// Why the host does not find VMs by their names at present, on a network where it should; `None` if it does.
pub fn names_error(directory: &NetworkDir) -> Option<String> {
    if names_server(directory).is_some() {
        return None;
    }
    let recorded = files::read(&names_error_file(directory)).ok().flatten();
    Some(recorded.unwrap_or_else(|| "the server of names does not run".to_owned()))
}
