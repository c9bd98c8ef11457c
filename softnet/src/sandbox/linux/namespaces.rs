//! Hides the host's interfaces, mounts, IPC objects, host name and cgroups in new namespaces (namespaces(7)).

use std::fs;
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::process::{WaitOptions, chdir, geteuid, pivot_root, waitpid};

use crate::privilege::Identity;
use crate::sys::process::{Fork, exit_now, fork};

/// Which of the host's resources are hidden.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Unshared {
    /// Interfaces and network sockets: the network namespace has only a loopback interface that is down.
    pub network: bool,
    /// Files: the root is an empty directory without permissions.
    pub files: bool,
}

/// The namespaces to create. No PID namespace: it would contain children only.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNET
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

/// A directory that exists on every system; the empty root is mounted there first.
const NEW_ROOT: &str = "/proc";

/// Creates as many namespaces as the system permits. With `CAP_SYS_ADMIN` that is all of them; without, this
/// needs a user namespace, which many systems deny. A failure is acceptable: the later stages do not rely on
/// this one.
pub fn unshare_all(identity: &Identity) -> Unshared {
    let left = unshare(NAMESPACES).map_err(io::Error::from).or_else(|denied| {
        // The new user namespace maps this one user, so a process that has yet to switch to another user
        // cannot use it.
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

/// The same for a user without privilege: a new user namespace gives privilege over the other new namespaces
/// only.
///
/// Some systems let the namespace be made and then deny the mapping of its user (AppArmor's restriction on Ubuntu 24.04). A
/// process in such a namespace could become nobody at all, so a child tries it first.
fn unshare_as_user(identity: &Identity) -> io::Result<()> {
    match fork()? {
        Fork::Child => exit_now(i32::from(enter_as_user(identity).is_err())),
        Fork::Parent(child) => loop {
            match waitpid(Some(child), WaitOptions::empty()) {
                Err(Errno::INTR) => {}
                Ok(Some((_, status))) if status.exit_status() == Some(0) => break,
                Ok(_) | Err(_) => return Err(io::ErrorKind::PermissionDenied.into()),
            }
        },
    }
    enter_as_user(identity)
}

fn enter_as_user(identity: &Identity) -> io::Result<()> {
    let (uid, gid) = (identity.uid.as_raw(), identity.gid.as_raw());
    unshare(NAMESPACES | CloneFlags::CLONE_NEWUSER)?;
    // Unmapped ids appear as 65534, which may not mount a file system.
    let own = Path::new("/proc/self");
    fs::write(own.join("setgroups"), "deny")?;
    fs::write(own.join("uid_map"), format!("{uid} {uid} 1"))?;
    fs::write(own.join("gid_map"), format!("{gid} {gid} 1"))
}

/// Makes an empty read-only directory the root and unmounts the old one.
fn empty_root() -> io::Result<()> {
    // So that no mount propagates to the host.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("none", NEW_ROOT, "tmpfs", flags, c"size=4096,nr_inodes=1,mode=000")?;
    chdir(NEW_ROOT)?;
    // The old root now lies on top of the new one.
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    chdir("/")?;
    Ok(())
}
