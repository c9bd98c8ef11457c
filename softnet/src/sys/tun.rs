//! Attaching to a TAP: `TUNSETIFF` on `/dev/net/tun` (kernel doc `networking/tuntap.rst`).
//!
//! `unsafe`, because the interface request is a C union behind an ioctl.
#![expect(unsafe_code, reason = "TUNSETIFF takes a struct with a union")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Attaches the open `/dev/net/tun` descriptor to the TAP `name`, or creates it if there is none and the caller may.
/// `flags` are `IFF_TAP` and its companions.
///
/// Returns the interface's name, which the kernel chooses if `name` holds a `%d`.
///
/// # Errors
/// `EINVAL` for a name longer than 15 bytes or flags that disagree with an existing TAP, `EBUSY` if another process is
/// attached, `EPERM` without the right to it.
pub fn attach(tun: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<String> {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives here until the call returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name = request.ifr_name.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    String::from_utf8(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}
