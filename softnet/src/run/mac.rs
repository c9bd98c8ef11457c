//! The MAC address of a VM that was given none: the same at each boot, because guests remember their network by it.
//!
//! Many DHCP clients make an identifier of their first MAC address and keep it on the disk. With another address at
//! the next boot they ask in the name of a card that is not theirs, and rule C5 refuses that. So the address follows
//! from what stays the same: the machine, the user, and the VM's name or else its command. Where several VMs have all of
//! that in common and run at the same time, each gets one of a row.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use rustix::process::Uid;
use softnet_filter::MacAddr;

/// How many VMs that have all in common may run at a time.
const ROW: u32 = 4096;

/// A MAC address that no other `softnet run` of this user and network namespace uses as long as this lives.
#[derive(Debug)]
pub struct OwnMac {
    /// The address: locally administered and unicast.
    pub mac: MacAddr,
    /// A name in the kernel's table of abstract sockets, which ends with the process (unix(7)). Any user can take such a name, so
    /// one that another user has means nothing: the VM keeps the address, without a claim. A listener that accepts
    /// nothing more cannot be asked whose it is, and counts as this user's.
    _claim: Option<OwnedFd>,
}

/// Whether a name could be claimed.
enum Claim {
    Made(OwnedFd),
    OfThisUser,
    OfAnother,
}

impl OwnMac {
    /// The first free address of the row that follows from the machine, the `user` who runs the VM and `what` it is.
    ///
    /// # Errors
    /// When the kernel refuses a socket.
    pub fn of(user: Uid, what: &[OsString]) -> anyhow::Result<Self> {
        let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
        let user = user.as_raw().to_string();
        let parts = [machine.as_slice(), user.as_bytes()];
        let seed: Vec<&[u8]> = parts.into_iter().chain(what.iter().map(|word| word.as_bytes())).collect();
        for place in 0..ROW {
            let mac = mac_of(&seed, place);
            match claim(mac).context("cannot reserve the VM's MAC address")? {
                Claim::Made(claim) => return Ok(OwnMac { mac, _claim: Some(claim) }),
                Claim::OfAnother => return Ok(OwnMac { mac, _claim: None }),
                Claim::OfThisUser => {}
            }
        }
        tracing::warn!("no MAC address is left in the row of this command's VMs; give the VM a --name");
        Ok(OwnMac { mac: mac_of(&seed, 0), _claim: None })
    }
}

/// Locally administered, unicast, 46 bits of a hash (FNV-1a) of the parts and the place in the row.
fn mac_of(parts: &[&[u8]], place: u32) -> MacAddr {
    let place = place.to_be_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts.iter().copied().chain([&place[..]]) {
        // The length tells `ab c` from `a bc`.
        for byte in (part.len() as u64).to_be_bytes().iter().chain(part) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    // FNV's low bits depend on all bytes, its high bits less; both are used.
    let [.., a, b, c, d, e, f] = (hash ^ hash >> 32).to_be_bytes();
    MacAddr([(a & 0xfc) | 0x02, b, c, d, e, f])
}

fn claim(mac: MacAddr) -> io::Result<Claim> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let open = || socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
    let name = SocketAddrUnix::new_abstract_name(format!("softnet/mac/{mac}").as_bytes())?;
    let socket = open()?;
    match bind(&socket, &name) {
        Ok(()) => {
            // So that others can find out whose it is; nobody accepts what they connect.
            listen(&socket, ROW.cast_signed())?;
            Ok(Claim::Made(socket))
        }
        Err(Errno::ADDRINUSE) => {
            let probe = open()?;
            match connect(&probe, &name).and_then(|()| socket_peercred(&probe)) {
                Ok(holder) if holder.uid == rustix::process::geteuid() => Ok(Claim::OfThisUser),
                // Many have asked already.
                Err(Errno::AGAIN) => Ok(Claim::OfThisUser),
                Ok(_) | Err(_) => Ok(Claim::OfAnother),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// What the VM is: its name, or else its command.
pub fn identity(name: Option<&OsStr>, command: &[OsString]) -> Vec<OsString> {
    match name {
        Some(name) => vec![OsString::from("--name"), name.to_owned()],
        None => command.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Uid = Uid::ROOT;

    #[test]
    fn an_address_stays_and_follows_from_all_parts() {
        let mac = |parts: &[&str], place| {
            mac_of(&parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>(), place)
        };
        let first = mac(&["machine", "0", "kvm", "disk.img"], 0);
        assert_eq!(
            first,
            MacAddr([0x86, 0x52, 0xa7, 0x0e, 0x41, 0x0b]),
            "it changes with no version of Softnet"
        );
        let others = [
            mac(&["machine", "0", "kvm", "disk.img"], 1),
            mac(&["machine", "1", "kvm", "disk.img"], 0),
            mac(&["machine2", "0", "kvm", "disk.img"], 0),
            mac(&["machine", "0", "kvmdisk.img"], 0),
            mac(&["machine", "0", "kvm", "disk.im", "g"], 0),
        ];
        for other in others {
            assert!(other != first && other.is_unicast() && other.octets()[0] & 0x02 == 0x02);
        }
    }

    #[test]
    fn what_does_not_say_whose_it_is_moves_no_vm() {
        let what = identity(Some(OsStr::new("squatted")), &[]);
        let mac = OwnMac::of(USER, &what).unwrap().mac;
        let squatter =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let name = SocketAddrUnix::new_abstract_name(format!("softnet/mac/{mac}").as_bytes()).unwrap();
        bind(&squatter, &name).unwrap();
        assert_eq!(OwnMac::of(USER, &what).unwrap().mac, mac);
    }

    #[test]
    fn two_at_a_time_are_two_and_one_after_the_other_is_the_same() {
        let what = identity(Some(OsStr::new("two_at_a_time")), &[]);
        let first = OwnMac::of(USER, &what).unwrap();
        let second = OwnMac::of(USER, &what).unwrap();
        assert_ne!(first.mac, second.mac);
        let mac = first.mac;
        drop(first);
        assert_eq!(OwnMac::of(USER, &what).unwrap().mac, mac);
    }
}
