//! The address that a VM may use, and for how long.

use core::net::Ipv4Addr;

use crate::time::Timestamp;

/// What DHCP gave the VM (rules B1 to B5). It is the only source address that the VM may use (rule S1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The VM's address.
    pub address: Ipv4Addr,
    /// The DHCP server that gave it.
    pub server: Ipv4Addr,
    /// When the lease ends; `None` for a lease that never ends (a lease time of 0xffffffff, rule B4).
    pub expires: Option<Timestamp>,
    /// The resolvers that came with it (rule D5).
    pub resolvers: Resolvers,
}

impl Lease {
    /// Whether the VM may use the address at the time `now`.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

/// The DNS resolvers of a lease (DHCP option 6) that a VM may use; at most [`Resolvers::CAPACITY`], the first
/// ones that the server names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resolvers {
    addresses: [Option<Ipv4Addr>; Self::CAPACITY],
}

impl Resolvers {
    /// How many resolvers a lease can open; common clients use the first three.
    pub const CAPACITY: usize = 6;

    /// Adds a resolver. Beyond [`Resolvers::CAPACITY`], or if it is there already, nothing changes.
    pub fn push(&mut self, address: Ipv4Addr) {
        if self.contains(address) {
            return;
        }
        if let Some(free) = self.addresses.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(address);
        }
    }

    /// Whether `address` is one of them.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        self.addresses.contains(&Some(address))
    }

    /// The resolvers in the server's order.
    pub fn iter(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.addresses.iter().copied().flatten()
    }
}

impl FromIterator<Ipv4Addr> for Resolvers {
    fn from_iter<I: IntoIterator<Item = Ipv4Addr>>(addresses: I) -> Self {
        let mut resolvers = Self::default();
        addresses.into_iter().for_each(|address| resolvers.push(address));
        resolvers
    }
}

/// Why a lease cannot be taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The port has a lease already.
    #[error("the VM has a lease already")]
    Bound,
    /// The address cannot be the VM's (rule B2).
    #[error("{0} cannot be the address of a VM on this network")]
    Address(Ipv4Addr),
    /// The server is not the gateway.
    #[error("{0} is not the DHCP server of this network")]
    Server(Ipv4Addr),
    /// The lease has expired.
    #[error("the lease has expired")]
    Expired,
    /// The client identifier is shorter than 2 bytes or longer than 255 (RFC 2132, section 9.14).
    #[error("a client identifier has 2 to 255 bytes")]
    ClientId,
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv4Addr = Ipv4Addr::new(9, 9, 9, 9);

    #[test]
    fn a_lease_ends_at_its_expiry() {
        let mut lease = Lease {
            address: A,
            server: A,
            expires: Some(Timestamp::from_secs(10)),
            resolvers: Resolvers::default(),
        };
        assert!(lease.is_valid_at(Timestamp::from_nanos(9_999_999_999)));
        assert!(!lease.is_valid_at(Timestamp::from_secs(10)));
        lease.expires = None;
        assert!(lease.is_valid_at(Timestamp::MAX));
    }

    #[test]
    fn resolvers_are_bounded_and_distinct() {
        let many = (0..20).map(|n| Ipv4Addr::new(9, 9, 9, n / 2));
        let resolvers: Resolvers = many.collect();
        let kept: Vec<u8> = resolvers.iter().map(|address| address.octets()[3]).collect();
        assert_eq!(kept, [0, 1, 2, 3, 4, 5]);
        assert!(resolvers.contains(Ipv4Addr::new(9, 9, 9, 5)));
        assert!(!resolvers.contains(Ipv4Addr::new(9, 9, 9, 6)));
        assert!(!resolvers.contains(Ipv4Addr::UNSPECIFIED));
    }
}
