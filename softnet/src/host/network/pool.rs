//! Whether the DHCP server has an address for each VM that runs or is about to.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use softnet_filter::MacAddr;

use super::dnsmasq::LeaseEntry;
use super::record::MemberRecord;

/// How many addresses a network hands out, and who has them. The server gives each MAC address at most one by DHCP, keeps the
/// leases of VMs that did not release theirs, and reserves the fixed addresses of running VMs.
#[derive(Debug)]
pub struct Pool<'a> {
    /// All addresses that the network hands out.
    pub size: usize,
    /// The server's leases.
    pub leases: &'a [LeaseEntry],
    /// The VMs that run.
    pub members: &'a [MemberRecord],
}

impl Pool<'_> {
    /// Whether the start of the VM `mac`, with the fixed address `fixed` or without one, leaves a VM without an address, once
    /// each has asked for its own.
    pub fn is_exceeded_by(&self, mac: MacAddr, fixed: Option<Ipv4Addr>) -> bool {
        let leases = self.leases.iter().filter(|lease| lease.left().is_none_or(|left| !left.is_zero()));
        let (mut holders, mut taken): (BTreeSet<MacAddr>, BTreeSet<Ipv4Addr>) =
            leases.map(|lease| (lease.mac, lease.address)).unzip();
        for member in self.members.iter().filter(|member| member.mac != mac) {
            if let Some(address) = member.client.address {
                holders.insert(member.mac);
                taken.insert(address);
            }
        }
        let is_waiting = |member: &&MemberRecord| member.mac != mac && !holders.contains(&member.mac);
        let waiting = self.members.iter().filter(is_waiting).count();
        let needs_one = match fixed {
            Some(address) => !taken.contains(&address),
            None => !holders.contains(&mac),
        };
        needs_one && taken.len() + waiting >= self.size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    const fn address(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 64, last)
    }

    fn lease(owner: u8, last: u8) -> LeaseEntry {
        LeaseEntry { expires: 0, mac: mac(owner), address: address(last) }
    }

    fn running(owner: u8, fixed: Option<u8>) -> MemberRecord {
        let mut member = MemberRecord::new(mac(owner), 1);
        member.client.address = fixed.map(address);
        member
    }

    fn exceeds(leases: &[LeaseEntry], members: &[MemberRecord], starting: u8, fixed: Option<u8>) -> bool {
        Pool { size: 3, leases, members }.is_exceeded_by(mac(starting), fixed.map(address))
    }

    #[test]
    fn each_vm_counts_with_the_address_that_it_has_or_will_have() {
        let leases = [lease(1, 2), lease(2, 3)];
        assert!(!exceeds(&leases, &[running(1, None)], 3, None));
        assert!(exceeds(&leases, &[running(4, None)], 3, None));
        // Who has one needs no more.
        assert!(!exceeds(&leases, &[running(4, None)], 2, None));
        let expired = LeaseEntry { expires: 1, ..lease(2, 3) };
        assert!(!exceeds(&[lease(1, 2), expired], &[running(4, None)], 3, None));
    }

    #[test]
    fn a_vm_with_a_kept_lease_and_another_fixed_address_has_two() {
        let leases = [lease(1, 2), lease(2, 3)];
        assert!(exceeds(&leases, &[running(1, Some(4))], 3, None));
        assert!(!exceeds(&leases, &[running(1, Some(2))], 3, None));
    }

    #[test]
    fn a_fixed_address_can_be_the_last_one_that_another_vm_needs() {
        let members = [running(1, None), running(2, None), running(3, None)];
        assert!(exceeds(&[], &members, 4, Some(2)));
        assert!(!exceeds(&[], &members[..2], 4, Some(2)));
        // Its own lease, and its own last run.
        assert!(!exceeds(&[lease(4, 2)], &members[..2], 4, Some(2)));
        assert!(!exceeds(&[], &[members[0].clone(), members[1].clone(), running(4, None)], 4, Some(2)));
    }
}
