//! What the port tells the shell.

use crate::lease::Lease;
use softnet_wire::MacAddr;

/// Something that happened to the port and that the shell must act upon or log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PortEvent {
    /// The VM got an address.
    Bound(Lease),
    /// The VM's lease of the same address was renewed.
    Renewed(Lease),
    /// The VM lost its address.
    Unbound {
        /// What it had.
        lease: Lease,
        /// Why it is gone.
        cause: UnboundCause,
    },
    /// The VM uses another DHCP client identifier than before (rule C5).
    ClientIdChanged {
        /// Different client identifiers so far, this one included.
        used: usize,
    },
    /// The VM uses a DHCP client identifier that names a hardware address which is not its own, as cloned disk images
    /// do; its messages are dropped. Told once (rule C5).
    ForeignClientId {
        /// The hardware address, if it is one of Ethernet.
        named: Option<MacAddr>,
    },
}

/// Why a VM lost its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UnboundCause {
    /// The lease ran out.
    Expired,
    /// The VM gave the address back, or Softnet did for it.
    Released,
    /// The VM found the address in use by another host.
    Declined,
    /// The server said no to a renewal.
    Refused,
    /// The server gave the VM another address.
    Replaced,
    /// The VM asked the server for another address, or the server said that it has another: whatever becomes of it,
    /// this one may be given to others (rule B7).
    Superseded,
}

/// The events that wait for the shell: a fixed number of them.
#[derive(Debug, Default)]
pub(crate) struct Events {
    slots: [Option<PortEvent>; Events::CAPACITY],
}

impl Events {
    /// How many events wait at most.
    const CAPACITY: usize = 8;

    /// Notes an event; the oldest is lost if the shell has not fetched any for long.
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
