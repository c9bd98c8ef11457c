//! The host side on macOS: vmnet.

use super::Request;
use crate::host::{HostLink, vmnet};

/// Starts the vmnet interface that `request` asks for.
///
/// # Errors
/// Those of [`vmnet::open`].
pub fn open(request: &Request<'_>) -> anyhow::Result<HostLink> {
    vmnet::open(request.settings, request.isolated)
}
