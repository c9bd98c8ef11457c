//! Attaching to a TAP: `TUNSETIFF` and its companions on `/dev/net/tun` (kernel doc `networking/tuntap.rst`).
//!
//! `unsafe`, because the interface request is a C union behind an ioctl.
#![expect(unsafe_code, reason = "TUNSETIFF takes a struct with a union")]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// From `linux/if_tun.h`; libc does not define it.
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;

/// What a TAP with `IFF_VNET_HDR` accepts and delivers besides plain frames.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Offloads {
    /// It delivers TCP super-frames and partial checksums.
    pub tcp: bool,
    /// It accepts and delivers UDP super-frames.
    pub udp: bool,
}

/// Sets the virtio-net header of a TAP attached with `IFF_VNET_HDR` to 10 bytes, little-endian, whatever an
/// earlier user of a persistent TAP chose. Then enables those of these offloads that the kernel supports:
/// partial checksums, TCP/IPv4 super-frames with ECN, UDP super-frames.
///
/// # Errors
/// When the kernel does not accept the header's form. A kernel without offloads is no error.
pub fn offload(tun: BorrowedFd<'_>) -> io::Result<Offloads> {
    let header_size = softnet_offload::vnet::VNET_HEADER_LEN as libc::c_int;
    let little_endian: libc::c_int = 1;
    for (request, value) in [(libc::TUNSETVNETHDRSZ, header_size), (libc::TUNSETVNETLE, little_endian)] {
        // SAFETY: both read one int, which lives here until the call returns.
        if unsafe { libc::ioctl(tun.as_raw_fd(), request, &raw const value) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
    // The kernel supports UDP for both families or not at all.
    let udp = TUN_F_USO4 | TUN_F_USO6;
    for (flags, offloads) in [
        (tcp | udp, Offloads { tcp: true, udp: true }),
        (tcp, Offloads { tcp: true, udp: false }),
        (0, Offloads::default()),
    ] {
        // SAFETY: the argument is a number, not a pointer.
        if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } == 0 {
            return Ok(offloads);
        }
    }
    Err(io::Error::last_os_error())
}

/// Attaches the open `/dev/net/tun` descriptor to the TAP `name`. Creates the TAP if it does not exist and
/// the caller may. `flags` are `IFF_TAP` and its companions.
///
/// Returns the interface's name, which the kernel chooses if `name` holds a `%d`.
///
/// # Errors
/// `EINVAL` for a name longer than 15 bytes or flags that disagree with an existing TAP, `EBUSY` if another
/// process is attached, `EPERM` without permission.
pub fn attach(tun: BorrowedFd<'_>, name: &str, flags: i32) -> io::Result<String> {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        // C's `char` is signed on some processors and unsigned on others.
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives here until the call returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let name =
        request.ifr_name.iter().take_while(|&&byte| byte != 0).flat_map(|byte| byte.to_ne_bytes()).collect();
    String::from_utf8(name).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}
