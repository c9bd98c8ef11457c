//! The seal on systems that offer no more than users.

use super::SealError;
use crate::needs::Needs;
use crate::privilege::Identity;

/// Gives up the identity that opened the links.
///
/// # Errors
/// When it cannot be given up.
pub fn seal(_needs: &Needs, identity: &Identity, _required: bool) -> Result<(), SealError> {
    identity.assume().map_err(|error| SealError::Stage("become an ordinary user", error))
}
