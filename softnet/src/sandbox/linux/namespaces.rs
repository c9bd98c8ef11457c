//! Leaves the host's names behind: interfaces, mounts, IPC objects, the host name, cgroups (namespaces(7)).

use std::fs;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{chdir, geteuid, pivot_root};

use crate::privilege::Identity;

/// Which of the host's names are out of sight.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Unshared {
    /// Interfaces and network sockets: the network has nothing but a loopback that is down.
    pub network: bool,
    /// Files: the file system is an empty directory that nobody may look into.
    pub files: bool,
}

/// What is left beside the user namespace. Not processes: that namespace would hold children only.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNET
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// A directory that is there on every system, for the moment until it is the root.
const NEW_ROOT: &str = "/proc";

/// Leaves as much as the system permits. With `CAP_SYS_ADMIN` that is all; without, it takes a user namespace, which many
/// systems deny. Both are fine: the stages after this one do not build on it.
pub fn unshare_all(identity: &Identity) -> Unshared {
    let left = unshare(NAMESPACES).map_err(io::Error::from).or_else(|denied| {
        // The new user namespace maps this one user, so it is of no use to somebody who has yet to become another.
        if identity.uid == geteuid() { unshare_as_user(identity) } else { Err(denied) }
    });
    if let Err(error) = left {
        tracing::info!(%error, "cannot create namespaces; this process still sees the host's interfaces and mounts");
        return Unshared::default();
    }
    match empty_root() {
        Ok(()) => Unshared { network: true, files: true },
        Err(error) => {
            tracing::info!(%error, "cannot switch to an empty root directory; Landlock alone denies access to files");
            Unshared { network: true, files: false }
        }
    }
}

/// The same for a user without privilege, who is given it over new namespaces only.
fn unshare_as_user(identity: &Identity) -> io::Result<()> {
    let (uid, gid) = (identity.uid.as_raw(), identity.gid.as_raw());
    unshare(NAMESPACES | CloneFlags::CLONE_NEWUSER)?;
    // Without a mapping all ids turn into 65534, of whom no file system can be made.
    let own = Path::new("/proc/self");
    fs::write(own.join("setgroups"), "deny")?;
    fs::write(own.join("uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(own.join("gid_map"), format!("{gid} {gid} 1"))
}

/// Makes an empty read-only directory the root and lets go of the old one.
fn empty_root() -> io::Result<()> {
    // Nothing of this is to be seen outside.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", NEW_ROOT, "tmpfs", flags, c"size=4096,nr_inodes=1,mode=000")?;
    chdir(NEW_ROOT)?;
    // The old root now lies over the new one, and goes.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(())
}
