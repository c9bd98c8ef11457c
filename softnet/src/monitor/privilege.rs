//! What the monitor keeps of root: what nft needs to change the network's table, and the right to signal the worker, who
//! is another user by then.

use std::io;

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid, getuid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

const KEPT: CapabilitySet = CapabilitySet::NET_ADMIN.union(CapabilitySet::KILL);

/// What a monitor needs besides whose caller is an ordinary user: to become his again after it was root's alone, inside the
/// lock (rule H9).
const TO_RETURN: CapabilitySet = CapabilitySet::SETUID;

/// Gives up every capability but two, for itself and for the programs that it starts, and the caller's groups. Its files
/// under `/run/softnet` are root's, which takes none.
///
/// After a set-user-ID start the real user stays the caller, because that is whom the kernel lets signal this process: who
/// started a Softnet must be able to stop it (kill(2)).
///
/// # Errors
/// When the kernel refuses.
pub fn reduce() -> io::Result<()> {
    match set_thread_groups(&[]) {
        // A user namespace of an ordinary user's may have no say over groups.
        Ok(()) | Err(Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    set_thread_res_uid(getuid(), Uid::ROOT, Uid::ROOT)?;
    let kept = if getuid().is_root() { KEPT } else { KEPT.union(TO_RETURN) };
    if capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..u64::BITS {
            let capability = CapabilitySet::from_bits_retain(1 << number);
            if kept.contains(capability) {
                continue;
            }
            match remove_capability_from_bounding_set(capability) {
                Ok(()) => {}
                // Past the last one that this kernel knows.
                Err(Errno::INVAL) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    let kept = capabilities(None)?.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    set_no_new_privs(true)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
