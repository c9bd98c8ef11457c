//! The files of managed networks, under `/run/softnet`, and the locks that coordinate many Softnets.
//!
//! ```text
//! /run/softnet/ip_forward                 Softnet turned IPv4 forwarding on, so the last network turns it off
//! /run/softnet/NAME/network               the network's settings
//! /run/softnet/NAME/dnsmasq.{pid,leases}
//! /run/softnet/NAME/dnsmasq.{hosts,options}   what single VMs get
//! /run/softnet/NAME/dnsmasq.zones         about which zones its server asks nobody
//! /run/softnet/NAME/names.error           why the host does not find VMs by their names
//! /run/softnet/NAME/tftp/ADDRESS/MAC      a link to the directory whose files TFTP shows to that VM
//! /run/softnet/NAME/server                the keeper and its dnsmasq
//! /run/softnet/NAME/firewall              what the host's filters drop of what the VMs need; empty if nothing
//! /run/softnet/NAME/ports/MAC             one running Softnet: what it exposes
//! /run/softnet/NAME/leases/ADDRESS        which VM holds the address
//! /run/softnet/locks/lock                 flock: held by the process that changes anything
//! /run/softnet/locks/NAME/keeper          flocked by the network's keeper while it runs
//! /run/softnet/locks/NAME/ports/MAC       flocked by the Softnet that owns the public file
//! /run/softnet/locks/NAME/leases/ADDRESS  likewise
//! ```
//!
//! A lock needs no more than an open descriptor (flock(2)), so locked files lie in a directory that only root
//! can enter (rule H9), and files that others may read are never locked. A lock ends with its process, so a
//! public file without one was left by a killed Softnet. It is ignored, and the next start removes it under
//! the outer lock. A process that cannot see the locks checks the process and its start time, which the
//! public file names.
//!
//! Interfaces and tables belong to a network namespace, and `/run` does not. In any other namespace than that
//! of process 1 the directory is `/run/softnet/netns-INODE` instead, so that namespaces do not confuse their
//! networks.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::claim::{LOCKS, counterpart};
use super::lock::{Lock, Wait};
use crate::host::files::{Error, list, make_directory};

const BASE: &str = "/run/softnet";

/// The directory of all networks of this network namespace.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// The directory for the caller's network namespace. Nothing is created yet.
    pub fn of_this_namespace() -> Self {
        let inode = |path| fs::metadata(path).map(|metadata| metadata.ino());
        let root = match (inode("/proc/self/ns/net"), inode("/proc/1/ns/net")) {
            (Ok(own), Ok(first)) if own != first => PathBuf::from(BASE).join(format!("netns-{own}")),
            _ => PathBuf::from(BASE),
        };
        RunDir { root }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits for the lock; creates the directory if it is missing.
    ///
    /// # Errors
    /// After [`super::lock::LOCK_TIMEOUT`], with the file and the process that holds it.
    pub fn lock(&self) -> Result<Lock, Error> {
        self.lock_if(Wait::Bounded).and_then(|lock| {
            lock.ok_or_else(|| Error::new("lock", &self.lock_file())(io::ErrorKind::TimedOut.into()))
        })
    }

    /// The lock, if it is free.
    pub fn try_lock(&self) -> Result<Option<Lock>, Error> {
        self.lock_if(Wait::Never)
    }

    fn lock_if(&self, wait: Wait) -> Result<Option<Lock>, Error> {
        make_directory(Path::new(BASE), 0o755)?;
        make_directory(&self.root, 0o755)?;
        make_directory(&self.root.join(LOCKS), 0o700)?;
        Lock::acquire(&self.lock_file(), wait)
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join(LOCKS).join("lock")
    }

    /// The file that says that Softnet turned on IPv4 forwarding.
    pub fn forwarding_marker(&self) -> PathBuf {
        self.root.join("ip_forward")
    }

    /// The file with the generation of the kernel's ruleset that Softnet loaded.
    pub fn generation_file(&self) -> PathBuf {
        self.root.join(LOCKS).join("rules.generation")
    }

    /// The file with the rules that were loaded last. Its name cannot be a network's.
    pub fn rules_file(&self) -> PathBuf {
        self.root.join(LOCKS).join("rules.nft")
    }

    /// The names of the networks that have a directory.
    pub fn networks(&self) -> Result<Vec<String>, Error> {
        let names = list(&self.root)?;
        Ok(names.into_iter().filter(|name| self.root.join(name).join("network").is_file()).collect())
    }

    /// The directory of the network `name`. Nothing is created yet.
    pub fn network(&self, name: &str) -> NetworkDir {
        NetworkDir { root: self.root.join(name) }
    }
}

/// The directory of one network.
#[derive(Clone, Debug)]
pub struct NetworkDir {
    root: PathBuf,
}

impl NetworkDir {
    /// Creates what is missing.
    pub fn create(&self) -> Result<(), Error> {
        make_directory(&self.root, 0o755)?;
        make_directory(&self.ports(), 0o755)?;
        make_directory(&self.leases(), 0o755)?;
        make_directory(&self.tftp(), 0o755)?;
        let locks = self.locks();
        make_directory(&locks, 0o700)?;
        make_directory(&locks.join("ports"), 0o700)?;
        make_directory(&locks.join("leases"), 0o700)
    }

    /// The file `name` in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The file `name` where only root can open it.
    pub fn locked_file(&self, name: &str) -> PathBuf {
        self.locks().join(name)
    }

    /// The members' files.
    pub fn ports(&self) -> PathBuf {
        self.root.join("ports")
    }

    /// The leased addresses' files.
    pub fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }

    /// The directory that TFTP serves.
    pub fn tftp(&self) -> PathBuf {
        self.root.join("tftp")
    }

    fn locks(&self) -> PathBuf {
        counterpart(&self.root, 0)
    }

    /// Removes the directory and its content; it is not an error if there is none.
    pub fn remove(&self) -> Result<(), Error> {
        for directory in [&self.root, &self.locks()] {
            match fs::remove_dir_all(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::new("remove", directory)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
