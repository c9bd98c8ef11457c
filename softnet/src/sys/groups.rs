//! Supplementary groups on macOS, where no safe library lists and sets them.
//!
//! `unsafe`, because `getgrouplist(3)` and `setgroups(2)` take arrays by pointer.
#![expect(unsafe_code, reason = "getgrouplist and setgroups take arrays by pointer")]

use std::ffi::CStr;
use std::io;

use rustix::process::Gid;

/// Maximum number of groups of a process (`NGROUPS_MAX`).
const MOST: usize = 16;

/// The groups of the user `name`, `gid` first, up to the maximum for a process.
pub fn of_user(name: &CStr, gid: Gid) -> Vec<Gid> {
    let mut groups: [libc::c_int; MOST] = [0; MOST];
    let mut count = MOST as libc::c_int;
    // SAFETY: the name ends with a zero, and at most `count` groups are written to the array of as many. A
    // return of -1 says that there are more than fit; the array holds the first ones.
    unsafe {
        libc::getgrouplist(name.as_ptr(), gid.as_raw().cast_signed(), groups.as_mut_ptr(), &raw mut count);
    }
    let count = usize::try_from(count).unwrap_or(0).min(MOST);
    groups.iter().take(count).map(|group| Gid::from_raw(group.cast_unsigned())).collect()
}

/// Sets the supplementary groups of this process.
///
/// # Errors
/// `EPERM` without privilege, `EINVAL` for more groups than the system allows.
pub fn set_groups(groups: &[Gid]) -> io::Result<()> {
    let groups: Vec<libc::gid_t> = groups.iter().map(|group| group.as_raw()).collect();
    let count = libc::c_int::try_from(groups.len()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to `count` groups, which are only read.
    match unsafe { libc::setgroups(count, groups.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
