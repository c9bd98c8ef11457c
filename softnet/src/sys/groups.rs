//! Supplementary groups where no safe library sets them: macOS.
//!
//! `unsafe`, because `setgroups(2)` takes an array by pointer.
#![expect(unsafe_code, reason = "setgroups takes an array by pointer")]

use std::io;

use rustix::process::Gid;

/// Sets the supplementary groups of this process.
///
/// # Errors
/// `EPERM` without privilege, `EINVAL` for more groups than the system takes.
pub fn set_groups(groups: &[Gid]) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = groups.iter().map(|group| group.as_raw()).collect();
    let count = libc::c_int::try_from(groups.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to as many groups as the count says, and they are only read.
    match unsafe { libc::setgroups(count, groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
