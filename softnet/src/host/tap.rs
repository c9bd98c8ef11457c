//! A TAP: the kernel's end of a virtual Ethernet cable.
//!
//! A write costs about the same for 1,500 bytes as for many times that, so consecutive segments of the VM's
//! streams are merged into super-frames on the way in, and the kernel delivers unsegmented ones on the way
//! out; each frame has a virtio-net header that names the remaining work. The frames have been judged one by
//! one before they are merged, and a super-frame from the host is judged as one before it is cut.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use softnet_offload::vnet::VNET_HEADER_LEN;
use softnet_offload::{Coalescer, Features, MAX_PARTS, VnetHeader};

use crate::link::{ETHERNET_HEADER, FrameBatch, Link, LinkError, Received, Registration, Sent};
use crate::needs::{Needs, Syscall};
use crate::sys::tun;

/// The system calls of a running link.
const SYSCALLS: &[Syscall] = &[Syscall::Readv, Syscall::Writev, Syscall::EpollCtl];

const CLONE_DEVICE: &str = "/dev/net/tun";

/// The longest frame that the kernel hands over uncut, in bytes: the longest IPv4 packet.
const LONGEST_SUPER_FRAME: usize = ETHERNET_HEADER + 65_535;

/// Why a TAP cannot be attached to. The caller names the flag and its value.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `/dev/net/tun` cannot be opened.
    #[error(
        "{CLONE_DEVICE} cannot be opened: {0}; load the kernel's tun module (modprobe tun) or allow access to it"
    )]
    NoDevice(io::Error),
    /// Another process is attached.
    #[error("is busy: another process is attached to it; stop that process or use another TAP")]
    Busy,
    /// Neither root nor its owner.
    #[error(
        "may not be used by this user; run as root, or give it to the user: ip tuntap add dev {0} mode tap user NAME"
    )]
    NotPermitted(String),
    /// The kernel refused for another reason.
    #[error("cannot be attached to: {0}")]
    Io(io::Error),
}

/// An attached TAP.
#[derive(Debug)]
pub struct Tap {
    device: OwnedFd,
    name: String,
    registration: Registration,
    coalescer: Coalescer,
}

impl Tap {
    /// Attaches to the TAP `name`; creates it if it does not exist (it is then removed with this value). The
    /// kernel picks the number for a name with `%d`. `multi_queue` must agree with how an existing TAP was
    /// created.
    ///
    /// # Errors
    /// When the device is missing, busy or not permitted; each says what to do.
    pub fn attach(name: &str, multi_queue: bool) -> Result<Self, TapError> {
        let device: File = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE_DEVICE)
            .map_err(TapError::NoDevice)?;
        let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
        let name = tun::attach(device.as_fd(), name, flags).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy,
            Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted(name.to_owned()),
            _ => TapError::Io(error),
        })?;
        let offloads = tun::offload(device.as_fd()).map_err(TapError::Io)?;
        // Every kernel accepts TCP super-frames after a virtio-net header, UDP ones only kernels that also
        // produce them.
        let coalescer = Coalescer::new(Features { tcp: true, udp: offloads.udp });
        tracing::debug!(name, ?offloads, "attached to the TAP");
        Ok(Tap { device: device.into(), name, registration: Registration::default(), coalescer })
    }

    /// Sets the address on which the host itself listens. Datagrams to it are handed over one by one, so that
    /// the host's limits on packets count each of them (rule H11).
    pub fn set_gateway(&mut self, gateway: Ipv4Addr) {
        self.coalescer.set_single_datagrams_to(gateway.octets());
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl Link for Tap {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        self.registration.set(&self.device, registry, token, interest)
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Result<Received, LinkError> {
        while !batch.is_full() {
            let mut header = [0; VNET_HEADER_LEN];
            let mut slices = [IoSliceMut::new(&mut header), IoSliceMut::new(batch.free_space())];
            match rustix::io::readv(&self.device, &mut slices) {
                Ok(read) => {
                    let len = read.saturating_sub(VNET_HEADER_LEN);
                    let pushed =
                        VnetHeader::parse(&header).is_ok_and(|vnet| batch.push_offloaded(len, vnet).is_ok());
                    if !pushed {
                        batch.push_truncated();
                    }
                }
                Err(Errno::AGAIN) => return Ok(Received::Drained),
                Err(Errno::INTR) => {}
                Err(error) => return Err(LinkError::Io("read from the TAP", error.into())),
            }
        }
        Ok(Received::More)
    }

    fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
        let mut sent = 0_u64;
        let mut refused = 0_u64;
        let mut blocked = false;
        for packet in self.coalescer.coalesce(batch) {
            let mut slices = [IoSlice::new(&[]); MAX_PARTS];
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(packet.parts()) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            let frames = packet.frames().fold(0, |frames, frame| frames | 1 << frame);
            match write_packet(self.device.as_fd(), &slices[..count]) {
                Ok(()) => {}
                Err(Errno::AGAIN) => {
                    blocked = true;
                    break;
                }
                // The interface was deleted.
                Err(error @ (Errno::BADFD | Errno::NODEV | Errno::NXIO)) => {
                    return Err(LinkError::Io("write to the TAP", error.into()));
                }
                // The interface is down (EIO) or refuses this packet (EINVAL, ENOMEM): it is lost, the link is not.
                Err(_) => refused |= frames,
            }
            sent |= frames;
        }
        batch.count_refused(|frame| refused & 1 << frame != 0);
        if blocked {
            batch.remove_sent(|frame| sent & 1 << frame != 0);
            return Ok(Sent::Blocked);
        }
        batch.clear();
        Ok(Sent::All)
    }

    fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.device);
        needs.calls(SYSCALLS);
    }

    fn longest_received(&self, on_wire: usize) -> usize {
        on_wire.max(LONGEST_SUPER_FRAME)
    }
}

/// One packet in one write; a TAP takes it whole or not at all.
fn write_packet(device: BorrowedFd<'_>, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
    loop {
        match rustix::io::writev(device, parts) {
            Err(Errno::INTR) => {}
            outcome => return outcome.map(drop),
        }
    }
}
