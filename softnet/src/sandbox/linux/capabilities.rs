//! Capabilities: none in any set, and no way to get one back (capabilities(7)).

use std::io;

use rustix::io::Errno;
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, capabilities, capabilities_secure_bits,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_capabilities_secure_bits, set_no_new_privs,
};

/// User ids grant no capabilities, none survives a change of user, none becomes ambient; all locked.
const SECURE_BITS: CapabilitiesSecureBits = CapabilitiesSecureBits::NO_ROOT
    .union(CapabilitiesSecureBits::NO_ROOT_LOCKED)
    .union(CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED)
    .union(CapabilitiesSecureBits::KEEP_CAPS_LOCKED)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE)
    .union(CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED);

/// Removes every capability from the bounding set and locks the secure bits. Without `CAP_SETPCAP` this is
/// impossible, and unnecessary: `no_new_privs` denies an unprivileged process what the bounding set would
/// allow.
///
/// # Errors
/// When the kernel refuses.
pub fn empty_bounding_set() -> io::Result<()> {
    if limit_bounding_set(CapabilitySet::empty())? {
        // The process that started Softnet may have set and locked more.
        set_capabilities_secure_bits(capabilities_secure_bits()? | SECURE_BITS)?;
    }
    Ok(())
}

/// Keeps only the capabilities in `kept`, for this process and for the programs that it starts.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_only(kept: CapabilitySet) -> io::Result<()> {
    limit_bounding_set(kept)?;
    let kept = capabilities(None)?.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(set_no_new_privs(true)?)
}

/// Removes all capabilities but `kept` from the bounding set. `false` if the process lacks the privilege for
/// that.
fn limit_bounding_set(kept: CapabilitySet) -> io::Result<bool> {
    if !capabilities(None)?.effective.contains(CapabilitySet::SETPCAP) {
        return Ok(false);
    }
    let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for capability in all.filter(|capability| !kept.contains(*capability)) {
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Past the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Clears the ambient, inheritable, permitted and effective sets, and verifies that they are clear.
///
/// # Errors
/// When the kernel refuses or something is left.
pub fn drop_all() -> io::Result<()> {
    clear_ambient_capability_set()?;
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    let left = capabilities(None)?;
    if (left.effective | left.permitted | left.inheritable).is_empty() {
        return Ok(());
    }
    Err(io::Error::other("the kernel kept some of them"))
}
