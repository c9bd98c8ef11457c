//! A Landlock ruleset that handles every right and grants none (landlock(7)).

use std::io;

use ::landlock::{
    ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest interface whose rights are handled. Older kernels handle the subset that they know.
pub(super) const NEWEST: ABI = ABI::V10;

/// Removes all access to files, TCP and UDP ports, abstract sockets and other processes, except through open
/// descriptors. `false` if the kernel has no Landlock.
///
/// # Errors
/// When a kernel that has Landlock refuses.
pub fn restrict() -> io::Result<bool> {
    let restricted = || -> Result<_, RulesetError> {
        Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?
            .restrict_self()
    };
    let status = restricted().map_err(io::Error::other)?;
    Ok(status.ruleset != RulesetStatus::NotEnforced)
}
