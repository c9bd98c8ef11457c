//! Two TAPs on a bridge, in namespaces of their own.
#![expect(unsafe_code, reason = "namespaces, TAPs and bridges are made by ioctl")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;

const SIOCBRADDBR: libc::c_ulong = 0x89a0;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUN_F_CSUM: libc::c_ulong = 0x01;
const TUN_F_TSO4: libc::c_ulong = 0x02;
const TUN_F_TSO_ECN: libc::c_ulong = 0x08;
const TUN_F_USO: libc::c_ulong = 0x20 | 0x40;

/// How long the kernel may take to forward a frame before the test fails.
const PATIENCE_MS: libc::c_int = 10_000;

/// Moves the process, which still has one thread, into a network namespace of its own.
pub fn enter_namespaces() -> io::Result<()> {
    // SAFETY: no pointers.
    let root = unsafe { libc::geteuid() } == 0;
    let flags = if root { libc::CLONE_NEWNET } else { libc::CLONE_NEWUSER | libc::CLONE_NEWNET };
    // SAFETY: no pointers.
    check(unsafe { libc::unshare(flags) })?;
    // Nothing but the frames of the test shall be on the bridge.
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")
}

/// A bridge with two TAPs; a frame written to the first comes out of the second.
#[derive(Debug)]
pub struct Wire {
    input: File,
    output: File,
}

impl Wire {
    /// The bridge and the TAPs vanish with the namespace; a second wire takes the bridge of the first.
    pub fn new() -> Wire {
        Wire::open().expect("a bridge with two TAPs")
    }

    fn open() -> io::Result<Wire> {
        // SAFETY: no pointers.
        let socket = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        // SAFETY: the descriptor is new, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: the name is a C string.
        let made = check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDBR as _, c"bridge".as_ptr()) });
        if let Err(error) = made
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
        set_up(&socket, "bridge")?;
        let input = tap(&socket, "input", libc::IFF_VNET_HDR)?;
        let output = tap(&socket, "output", 0)?;
        let takes = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO_ECN | TUN_F_USO;
        // SAFETY: the argument is a number.
        check(unsafe { libc::ioctl(input.as_raw_fd(), TUNSETOFFLOAD as _, takes) })?;
        Ok(Wire { input, output })
    }

    /// Writes one packet.
    pub fn write(&mut self, parts: &[&[u8]]) {
        let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let length: usize = parts.iter().map(|part| part.len()).sum();
        assert_eq!(self.input.write_vectored(&slices).expect("the TAP takes the packet"), length);
    }

    /// Waits for the next frame from `source`: the host's own, such as IGMP's reports, are on the bridge too.
    pub fn read(&mut self, source: &[u8]) -> Vec<u8> {
        loop {
            let mut poll = libc::pollfd { fd: self.output.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, ours.
            assert_eq!(unsafe { libc::poll(&mut poll, 1, PATIENCE_MS) }, 1, "no frame came");
            let mut frame = vec![0; 70_000];
            let length = self.output.read(&mut frame).expect("the frame");
            frame.truncate(length);
            if frame.get(6..12) == Some(source) {
                return frame;
            }
        }
    }
}

/// A TAP that is up and a port of the bridge.
fn tap(socket: &OwnedFd, name: &str, flags: libc::c_int) -> io::Result<File> {
    let tap =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | flags) as libc::c_short;
    // SAFETY: the request is ours and outlives the call.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF as _, &mut request) })?;
    // SAFETY: the same.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX as _, &mut request) })?;
    let mut port = self::request("bridge");
    // SAFETY: the kernel has just written the index.
    port.ifr_ifru.ifru_ifindex = unsafe { request.ifr_ifru.ifru_ifindex };
    // SAFETY: the request is ours and outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCBRADDIF as _, &mut port) })?;
    set_up(socket, name)?;
    Ok(tap)
}

fn set_up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is ours and outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request) })?;
    Ok(())
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: all zeros is an empty request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte as libc::c_char;
    }
    request
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
