//! What the monitor keeps. Without a place in a managed network that is nothing: it becomes the user that the worker
//! becomes, who may signal the worker. With one it keeps of root what nft needs to change the network's table, and the
//! right to signal the worker, who is another user by then.

use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid, getuid, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::privilege::Identity;
use crate::sandbox;

const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::KILL);

/// What a monitor needs besides if an ordinary user started it: inside the lock its real user is root, and behind it that
/// user again (rule H9).
const TO_RETURN: CapabilitySet = CapabilitySet::SETUID;

/// Keeps what a place in the managed network takes, if there is one, and nothing otherwise.
///
/// # Errors
/// When the kernel refuses.
pub fn reduce(has_place: bool, identity: &Identity) -> io::Result<()> {
    if has_place { reduce_root() } else { sandbox::give_up_privilege(identity).map_err(io::Error::other) }
}

/// Gives up every capability but two, for itself and for the programs that it starts, and the caller's groups. Its files
/// under `/run/softnet` are root's, which takes none.
///
/// After a set-user-ID start the real user stays the caller, because that is whom the kernel lets signal this process: who
/// started a Softnet must be able to stop it (kill(2)).
///
/// # Errors
/// When the kernel refuses.
fn reduce_root() -> io::Result<()> {
    match set_thread_groups(&[]) {
        // A user namespace of an ordinary user's may have no say over groups.
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
