//! The DHCP messages that passed a guest's card.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::wire::{Dhcp, address_at, parse_dhcp};

/// One message, with the addresses of its packet.
#[derive(Debug, Clone)]
pub struct Message {
    /// Who sent it.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// What it says.
    pub dhcp: Dhcp,
}

/// All messages so far, in both directions, in the order in which they were seen.
#[derive(Debug, Clone, Default)]
pub struct Overheard(Arc<Mutex<Vec<Message>>>);

impl Overheard {
    /// Notes a frame if it is DHCP.
    pub(crate) fn note(&self, frame: &[u8]) {
        if let Some(dhcp) = parse_dhcp(frame) {
            let message = Message { source: address_at(frame, 26), destination: address_at(frame, 30), dhcp };
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        }
    }

    /// A copy of them.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
