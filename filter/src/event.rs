//! What the port reports to the caller.

use core::net::Ipv4Addr;

use crate::lease::Lease;
use softnet_wire::MacAddr;

/// Something that happened to the port and that the caller must act upon or log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortEvent {
    /// The VM got an address.
    Bound(Lease),
    /// The VM's lease of the same address was renewed.
    Renewed(Lease),
    /// The VM lost its address.
    Unbound {
        /// The lease that ended.
        lease: Lease,
        /// Why it ended.
        cause: UnboundCause,
    },
    /// The VM uses another DHCP client identifier than before (rule C5).
    ClientIdChanged {
        /// The number of different client identifiers so far, including this one.
        used: usize,
    },
    /// The VM uses a DHCP client identifier that names a hardware address which is not its own, as cloned disk images
    /// do; its messages are dropped. Reported once (rule C5).
    ForeignClientId {
        /// The hardware address, if it is an Ethernet address.
        named: Option<MacAddr>,
    },
    /// A station that is not the DHCP server answers the VM like one; its replies are dropped. Reported once, with the
    /// first of its kind (rule B1).
    OtherDhcpServer {
        /// Its MAC address.
        mac: MacAddr,
        /// Its address, by which it identifies itself.
        address: Ipv4Addr,
    },
}

/// Why a VM lost its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnboundCause {
    /// The lease ran out.
    Expired,
    /// The VM released the address, or Softnet did so for it.
    Released,
    /// The VM found the address in use by another host.
    Declined,
    /// The server refused a renewal.
    Refused,
    /// The server gave the VM another address.
    Replaced,
    /// The VM requested another address from the server, or the server reported another: in either case
    /// the server may give this one to other VMs (rule B7).
    Superseded,
}

/// The events that wait for the caller: a fixed number of them.
#[derive(Debug, Default)]
pub(crate) struct Events {
    slots: [Option<PortEvent>; Events::CAPACITY],
}

impl Events {
    /// The most events that can wait.
    const CAPACITY: usize = 8;

    /// Notes an event; the oldest is lost if the caller has fetched none for long.
    pub(crate) fn push(&mut self, event: PortEvent) {
        if self.slots.iter().all(Option::is_some) {
            let _ = self.poll();
        }
        if let Some(free) = self.slots.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(event);
        }
    }

    /// The oldest event.
    pub(crate) fn poll(&mut self) -> Option<PortEvent> {
        self.slots.rotate_left(1);
        match self.slots.last_mut().and_then(Option::take) {
            Some(event) => Some(event),
            None => {
                self.slots.rotate_right(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(used: usize) -> PortEvent {
        PortEvent::ClientIdChanged { used }
    }

    /// R1: events that are not fetched make nothing grow.
    #[test]
    fn r1_events_are_bounded() {
        let mut events = Events::default();
        assert_eq!(events.poll(), None);
        for round in 0..5 {
            events.push(event(round));
            events.push(event(round + 1));
            assert_eq!(events.poll(), Some(event(round)));
            assert_eq!(events.poll(), Some(event(round + 1)));
            assert_eq!(events.poll(), None);
        }
        (0..20).for_each(|used| events.push(event(used)));
        for used in 12..20 {
            assert_eq!(events.poll(), Some(event(used)));
        }
        assert_eq!(events.poll(), None);
    }
}
