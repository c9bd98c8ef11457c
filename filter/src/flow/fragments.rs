//! The fragments of flows (F5): which later fragments belong to a first one that has passed.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::policy::entry::Origin;
use crate::time::Timestamp;

/// How many identifications are remembered for each direction; the oldest is forgotten first.
const CAPACITY: usize = 64;
/// How long one is remembered: as long as a receiver waits for the rest (RFC 1122, section 3.3.2, says 60 to 120 s at most;
/// common systems wait 30 s).
const LIFE: Duration = Duration::from_secs(30);

/// What the fragments of one packet have in common (RFC 791), but for the VM's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) peer: Ipv4Addr,
    pub(crate) protocol: u8,
    pub(crate) identification: u16,
}

/// The identities of one direction, in a ring.
#[derive(Debug, Clone, Copy)]
struct Ring {
    slots: [Option<(Identity, Timestamp)>; CAPACITY],
    next: usize,
}

impl Ring {
    const EMPTY: Self = Self { slots: [None; CAPACITY], next: 0 };
}

/// The packets of which a first fragment has passed.
#[derive(Debug)]
pub(crate) struct Fragments {
    of_vm: Ring,
    of_others: Ring,
}

impl Fragments {
    pub(crate) const EMPTY: Self = Self { of_vm: Ring::EMPTY, of_others: Ring::EMPTY };

    /// Notes a first fragment of `sender` that passes.
    pub(crate) fn note(&mut self, sender: Origin, identity: Identity, now: Timestamp) {
        let ring = match sender {
            Origin::Vm => &mut self.of_vm,
            Origin::Outside => &mut self.of_others,
        };
        // One that is noted again takes no second place.
        let is_same =
            |slot: &&mut Option<(Identity, Timestamp)>| slot.is_some_and(|(other, _)| other == identity);
        if let Some(slot) = ring.slots.iter_mut().find(is_same) {
            *slot = Some((identity, now));
            return;
        }
        if let Some(slot) = ring.slots.get_mut(ring.next) {
            *slot = Some((identity, now));
        }
        ring.next = ring.next.wrapping_add(1) % CAPACITY;
    }

    /// Whether a later fragment of `sender` belongs to one that was noted.
    pub(crate) fn has(&self, sender: Origin, identity: Identity, now: Timestamp) -> bool {
        let ring = match sender {
            Origin::Vm => &self.of_vm,
            Origin::Outside => &self.of_others,
        };
        let belongs =
            |(other, noted): (Identity, Timestamp)| other == identity && now.saturating_since(noted) < LIFE;
        ring.slots.iter().copied().flatten().any(belongs)
    }
}
