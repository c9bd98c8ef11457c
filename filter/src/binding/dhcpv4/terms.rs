//! What the filter knows about a lease besides the lease: how it was requested, and what remains after its end.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::binding::dhcpv4::client_ids::ClientId;
use crate::lease::Lease;
use crate::time::Timestamp;

/// How a lease was requested.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms {
    /// The identifier under which the server stores it.
    pub(crate) client_id: Option<ClientId>,
    /// Whether the request said how long it should last (option 51).
    pub(crate) has_asked_time: bool,
}

/// Which address a VM may renew while it has no lease (C10).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Renewable {
    /// Any that could be a lease: this port never knew one, and may have started after the VM got it.
    #[default]
    Anything,
    /// The address of the last lease, which has merely expired.
    Expired(Ipv4Addr),
    /// None: the VM knows that it has no lease.
    Nothing,
}

/// A lease that the VM no longer has, and the server may still have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Former {
    pub(crate) address: Ipv4Addr,
    pub(crate) server: Ipv4Addr,
    pub(crate) client_id: Option<ClientId>,
    expires: Option<Timestamp>,
}

impl Former {
    pub(crate) fn of(lease: &Lease, terms: Terms) -> Self {
        Self {
            address: lease.address,
            server: lease.server,
            client_id: terms.client_id,
            expires: lease.expires,
        }
    }

    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }
}

/// A lease time that never ends (RFC 2131, section 3.3).
const INFINITE: u32 = 0xffff_ffff;

/// How long a lease with this option 51 lasts; `None` for one that never ends (B4).
pub(crate) fn lease_time(seconds: u32) -> Option<Duration> {
    (seconds != INFINITE).then(|| Duration::from_secs(u64::from(seconds)))
}
