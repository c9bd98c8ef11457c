//! The privilege that the monitor keeps. Without a place in a managed network it keeps none: it becomes the
//! same user as the worker, and may signal it. With one it stays root with only the capabilities that nft
//! needs to change the network's table, and the right to signal the worker, which is another user by then.

use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid, getuid, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::privilege::Identity;
use crate::sandbox;

const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::KILL);

/// What a monitor also needs if an ordinary user started it: while it holds the lock its real user is root,
/// and afterwards that user again (rule H9).
const TO_RETURN: CapabilitySet = CapabilitySet::SETUID;

/// Keeps the privilege for a place in the managed network, if there is one, and none otherwise.
///
/// # Errors
/// When the kernel refuses.
pub fn reduce(has_place: bool, identity: &Identity) -> io::Result<()> {
    if has_place { reduce_root() } else { sandbox::give_up_privilege(identity).map_err(io::Error::other) }
}

/// Gives up every capability but two, for itself and for the programs that it starts, and the caller's
/// groups. Root owns its files under `/run/softnet`, so they need no capability.
///
/// After a set-user-ID start the real user stays the caller, so that the kernel lets the caller signal this
/// process: the user who started a Softnet must be able to stop it (kill(2)).
///
/// # Errors
/// When the kernel refuses.
fn reduce_root() -> io::Result<()> {
    match set_thread_groups(&[]) {
        // In a user namespace that an ordinary user created, this may be forbidden.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(getuid(), Uid::ROOT, Uid::ROOT)?;
    let kept = if getuid().is_root() { KEPT } else { KEPT.union(TO_RETURN) };
    sandbox::keep_capabilities(kept)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
