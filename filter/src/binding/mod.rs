//! The addresses that the VM may use, and how it gets them.

pub(crate) mod dhcpv4;

use core::net::Ipv4Addr;

use crate::binding::dhcpv4::Dhcp;
use crate::lease::Lease;
use crate::time::Timestamp;
use crate::verdict::DropReason;

/// The addresses that the VM may use, each until its end: a fixed number of them. Today it is one of IPv4, which DHCP
/// gives.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    pub(crate) dhcpv4: Dhcp,
}

impl Bindings {
    /// The VM's IPv4 address. It is valid at the time last passed to [`Bindings::advance`].
    #[inline(always)]
    pub(crate) fn ipv4(&self) -> Option<&Lease> {
        self.dhcpv4.lease()
    }

    /// The number of the present IPv4 address, which no later one has, even if it is the same address again.
    #[inline(always)]
    pub(crate) fn ipv4_number(&self) -> u32 {
        self.dhcpv4.lease_number()
    }

    /// S1: the source is an address that the VM may use. Gives what is known of the address.
    #[inline(always)]
    pub(crate) fn judge_source(&self, source: Ipv4Addr) -> Result<&Lease, DropReason> {
        match self.ipv4() {
            Some(lease) if source == lease.address => Ok(lease),
            Some(_) => Err(DropReason::SourceAddress),
            None => Err(DropReason::NoLease),
        }
    }

    /// Ends an address that has expired.
    #[inline(always)]
    pub(crate) fn advance(&mut self, now: Timestamp) {
        self.dhcpv4.advance(now);
    }

    /// When the next address ends.
    pub(crate) fn next_end(&self) -> Option<Timestamp> {
        self.ipv4().and_then(|lease| lease.expires)
    }
}
