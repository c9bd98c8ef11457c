//! A TAP: the kernel's end of a virtual Ethernet cable.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::io::Errno;

use crate::link::{FrameBatch, Link, LinkError, Received, Sent};
use crate::sys::tun;

const CLONE_DEVICE: &str = "/dev/net/tun";

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
    registered: bool,
}

impl Tap {
    /// Attaches to the TAP `name`; creates it if it does not exist (it then lives as long as this value). The kernel
    /// picks the number for a name with `%d`. `multi_queue` must agree with how an existing TAP was created.
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
        let name =
            tun::attach(device.as_fd(), name, libc::IFF_TAP | libc::IFF_NO_PI | queues).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::EBUSY) => TapError::Busy,
                    Some(libc::EPERM | libc::EACCES) => TapError::NotPermitted(name.to_owned()),
                    _ => TapError::Io(error),
                }
            })?;
        Ok(Tap { device: device.into(), name, registered: false })
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Link for Tap {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        let fd = self.device.as_raw_fd();
        let mut source = SourceFd(&fd);
        if std::mem::replace(&mut self.registered, true) {
            registry.reregister(&mut source, token, interest)
        } else {
            registry.register(&mut source, token, interest)
        }
    }

    fn recv(&mut self, batch: &mut FrameBatch) -> Result<Received, LinkError> {
        while !batch.is_full() {
            match rustix::io::read(&self.device, batch.free_space()) {
                Ok(len) => batch.push(len),
                Err(Errno::AGAIN) => return Ok(Received::Drained),
                Err(Errno::INTR) => {}
                Err(error) => return Err(LinkError::Io("read from the TAP", error.into())),
            }
        }
        Ok(Received::More)
    }

    fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
        while !batch.is_empty() {
            let written = batch.frames().next().map(|frame| rustix::io::write(&self.device, frame));
            match written {
                Some(Err(Errno::AGAIN)) => return Ok(Sent::Blocked),
                Some(Err(Errno::INTR)) => {}
                // The interface was deleted.
                Some(Err(error @ (Errno::BADFD | Errno::NODEV | Errno::NXIO))) => {
                    return Err(LinkError::Io("write to the TAP", error.into()));
                }
                // The interface is down (EIO) or refuses this frame (EINVAL, ENOMEM): the frame is lost, not the link.
                _ => batch.advance(1),
            }
        }
        Ok(Sent::All)
    }
}
