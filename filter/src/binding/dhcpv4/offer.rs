//! The address that the server offered last (A3, C6).

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::time::Timestamp;

/// How long an offer is valid: the time in which a client requests the address or declines it.
const LIFETIME: Duration = Duration::from_secs(60);

/// An offer of the server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) address: Ipv4Addr,
    until: Timestamp,
}

impl Offer {
    /// An offer that arrives now.
    pub(crate) fn new(address: Ipv4Addr, now: Timestamp) -> Self {
        Self { address, until: now.saturating_add(LIFETIME) }
    }

    /// Whether the offer is still valid.
    pub(crate) fn is_valid(&self, now: Timestamp) -> bool {
        now < self.until
    }
}
