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
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use softnet_filter::MacAddr;

/// How many VMs that have all in common may run at a time.
const ROW: u32 = 4096;

/// A MAC address that no other `softnet run` of this network namespace uses as long as this lives.
#[derive(Debug)]
pub struct OwnMac {
    /// The address: locally administered and unicast.
    pub mac: MacAddr,
    /// A name in the kernel's table of abstract sockets, which ends with the process (unix(7)).
    _claim: OwnedFd,
}

impl OwnMac {
    /// The first free address of the row that follows from the machine, the user and `what` the VM is.
    ///
    /// # Errors
    /// When the kernel refuses a socket, or the whole row is taken.
    pub fn of(what: &[OsString]) -> anyhow::Result<Self> {
        let machine = std::fs::read("/etc/machine-id").unwrap_or_default();
        let user = rustix::process::getuid().as_raw().to_string();
        let parts = [machine.as_slice(), user.as_bytes()];
        let seed: Vec<&[u8]> = parts.into_iter().chain(what.iter().map(|word| word.as_bytes())).collect();
        for place in 0..ROW {
            let mac = mac_of(&seed, place);
            if let Some(claim) = claim(mac).context("cannot reserve the VM's MAC address")? {
                return Ok(OwnMac { mac, _claim: claim });
            }
        }
        anyhow::bail!("{ROW} VMs of the same command are running; give this one a --name")
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

/// `None` if another process has it.
fn claim(mac: MacAddr) -> io::Result<Option<OwnedFd>> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let name = SocketAddrUnix::new_abstract_name(format!("softnet/mac/{mac}").as_bytes())?;
    match bind(&socket, &name) {
        Ok(()) => Ok(Some(socket)),
        Err(rustix::io::Errno::ADDRINUSE) => Ok(None),
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
    fn two_at_a_time_are_two_and_one_after_the_other_is_the_same() {
        let what = identity(Some(OsStr::new("two_at_a_time")), &[]);
        let first = OwnMac::of(&what).unwrap();
        let second = OwnMac::of(&what).unwrap();
        assert_ne!(first.mac, second.mac);
        let mac = first.mac;
        drop(first);
        assert_eq!(OwnMac::of(&what).unwrap().mac, mac);
    }
}
