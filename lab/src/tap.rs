//! A TAP that this program holds open itself: the wire of a [`kernel_guest`](crate::kernel_guest()).
//!
//! The one unsafe call: attaching to a TAP needs an `ioctl` that no safe crate in use wraps.
#![expect(unsafe_code, reason = "TUNSETIFF is a plain ioctl")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use nix::libc;

/// Attaches to the TAP `name` of the calling thread's network namespace: one bare frame per read or write.
///
/// # Errors
/// The kernel's error: no `/dev/net/tun`, no such TAP and no permission to create it, or another process is
/// attached.
pub fn open(name: &str) -> io::Result<File> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives here until the call returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun)
}
