//! The addresses as getifaddrs(3) lists them, for systems without rtnetlink.
//!
//! A socket reports that something has changed; on macOS the kernel's routing messages. All addresses are listed again
//! then, so that an overflow of the queue loses nothing.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use mio::{Interest, Registry, Token};
use nix::ifaddrs::getifaddrs;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use softnet_filter::Timestamp;

use super::{MOST, QUERY_INTERVAL, pick};
use crate::link::Registration;
use crate::needs::Needs;

/// The longest message of which the type is read; nothing behind that matters.
const MESSAGE: usize = 512;

/// Watches the addresses of this host, except one gateway's and the loopback network.
#[derive(Debug)]
pub struct ListedAddresses {
    changes: OwnedFd,
    is_change: fn(&[u8]) -> bool,
    registration: Registration,
    gateway: Ipv4Addr,
    known: Vec<Ipv4Addr>,
    /// No listing is made before this time.
    not_before: Timestamp,
    /// Whether something has changed since the last listing.
    stale: bool,
}

impl ListedAddresses {
    /// Lists the addresses for the first time. `changes` is a socket that receives a datagram after each change, and
    /// perhaps others; `is_change` says which of them matter.
    ///
    /// # Errors
    /// When the system does not list its interfaces, or the socket cannot be made non-blocking.
    pub fn new(changes: OwnedFd, is_change: fn(&[u8]) -> bool, gateway: Ipv4Addr) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&changes, true)?;
        Ok(ListedAddresses {
            changes,
            is_change,
            registration: Registration::default(),
            gateway,
            known: list(gateway)?,
            not_before: Timestamp::default(),
            stale: false,
        })
    }

    /// The addresses at the last listing, sorted.
    pub fn known(&self) -> &[Ipv4Addr] {
        &self.known
    }

    /// Lets `registry` wake the event loop under `token` after a change.
    ///
    /// # Errors
    /// Those of the poller.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        self.registration.set(&self.changes, registry, token, Interest::READABLE)
    }

    /// When to call [`ListedAddresses::changed`] even without a wake-up.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.stale.then_some(self.not_before)
    }

    /// The addresses, if they differ from those known. Call it after every wake-up, and when the deadline has come.
    pub fn changed(&mut self, now: Timestamp) -> Option<&[Ipv4Addr]> {
        self.stale |= self.read_changes();
        if !self.stale || now < self.not_before {
            return None;
        }
        self.not_before = now.saturating_add(QUERY_INTERVAL);
        match list(self.gateway) {
            Ok(addresses) => {
                self.stale = false;
                if addresses == self.known {
                    return None;
                }
                self.known = addresses;
                Some(&self.known)
            }
            Err(error) => {
                tracing::warn!(%error, "cannot list the host's addresses, which may have changed; trying again");
                None
            }
        }
    }

    /// Reads all messages. Returns whether one reports a change, or some were lost.
    fn read_changes(&mut self) -> bool {
        let mut buffer = [0; MESSAGE];
        let mut changed = false;
        loop {
            match recv(&self.changes, &mut buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return changed,
                Ok((len, _)) => changed |= (self.is_change)(&buffer[..len]),
                Err(Errno::NOBUFS) => changed = true,
                Err(Errno::INTR) => {}
                Err(_) => return changed,
            }
        }
    }

    /// Declares the descriptors that this needs.
    pub fn needs(&self, needs: &mut Needs) {
        needs.descriptor(&self.changes);
    }
}

fn list(gateway: Ipv4Addr) -> io::Result<Vec<Ipv4Addr>> {
    let all = getifaddrs()?.filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()));
    Ok(pick(all, gateway, MOST))
}

/// The kernel's routing messages (route(4)), which need no privilege.
///
/// # Errors
/// When the system gives no socket.
#[cfg(target_os = "macos")]
pub fn routing_messages() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketType, socket};
    let family = AddressFamily::from_raw(libc::PF_ROUTE as _);
    Ok(socket(family, SocketType::RAW, None)?)
}

/// Whether a routing message says that an address came or went.
#[cfg(target_os = "macos")]
pub fn is_address_change(message: &[u8]) -> bool {
    // All routing messages begin alike: length, version, type.
    const TYPE: usize = std::mem::offset_of!(libc::ifa_msghdr, ifam_type);
    const _: () = assert!(TYPE == 3 && std::mem::offset_of!(libc::rt_msghdr, rtm_type) == TYPE);
    message.get(TYPE).is_some_and(|kind| [libc::RTM_NEWADDR, libc::RTM_DELADDR].contains(&(*kind).into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::Duration;

    use super::*;

    fn watch() -> (UnixDatagram, ListedAddresses) {
        let (kernel, changes) = UnixDatagram::pair().unwrap();
        let is_change = |message: &[u8]| message == b"address";
        (kernel, ListedAddresses::new(changes.into(), is_change, Ipv4Addr::UNSPECIFIED).unwrap())
    }

    #[test]
    fn addresses_are_listed_again_after_a_change_and_not_all_the_time() {
        let (kernel, mut watch) = watch();
        let (real, other) = (watch.known.clone(), vec![Ipv4Addr::new(9, 9, 9, 9)]);
        let now = Timestamp::from_secs(1);
        watch.known = other.clone();
        kernel.send(b"route").unwrap();
        assert_eq!(watch.changed(now), None);
        assert_eq!((watch.deadline(), watch.known()), (None, &other[..]), "a route is no address");
        kernel.send(b"address").unwrap();
        assert_eq!(watch.changed(now), Some(&real[..]));
        // The next change is looked at a moment later.
        watch.known = other;
        kernel.send(b"address").unwrap();
        assert_eq!(watch.changed(now), None);
        let at = watch.deadline().unwrap();
        assert_eq!(at, now.saturating_add(QUERY_INTERVAL));
        assert_eq!(watch.changed(now.saturating_add(Duration::from_millis(1))), None);
        assert_eq!(watch.changed(at), Some(&real[..]));
        assert_eq!(watch.deadline(), None);
    }

    #[test]
    fn loopback_is_no_address_of_the_host() {
        let (_kernel, watch) = watch();
        assert!(!watch.known().iter().any(Ipv4Addr::is_loopback));
    }
}
