//! What is remembered about a VM's DHCP: a few fixed fields.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::lease::Lease;
use crate::port::{PortEvent, UnboundCause};
use crate::time::Timestamp;

/// How many events wait for the shell at most.
const EVENTS: usize = 8;

/// How long an offer stands: the time in which a client asks for the address or declines it (A3, C6).
const OFFER_LIFETIME: Duration = Duration::from_secs(60);

/// The state of a VM's DHCP.
#[derive(Debug, Default)]
pub(crate) struct Dhcp {
    lease: Option<Lease>,
    /// Where in `client_ids` the identifier is under which the server files the lease.
    lease_client_id: Option<u8>,
    /// The address last offered, and when the offer ends.
    offer: Option<(Ipv4Addr, Timestamp)>,
    pub(crate) transactions: Transactions,
    pub(crate) client_ids: ClientIds,
    pub(crate) messages: MessageRate,
    pub(crate) declines: DeclineRate,
    events: [Option<PortEvent>; EVENTS],
}

impl Dhcp {
    /// The lease; it is valid if the state was told the time by [`Dhcp::advance`].
    #[inline(always)]
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// The address that the server has offered and that still stands.
    pub(crate) fn offered(&self, now: Timestamp) -> Option<Ipv4Addr> {
        self.offer.and_then(|(address, until)| (now < until).then_some(address))
    }

    /// The server offered an address.
    pub(crate) fn offer(&mut self, address: Ipv4Addr, now: Timestamp) {
        self.offer = Some((address, now.saturating_add(OFFER_LIFETIME)));
    }

    /// Ends the lease if it has run out.
    #[inline(always)]
    pub(crate) fn advance(&mut self, now: Timestamp) {
        if let Some(Lease { expires: Some(expires), .. }) = self.lease
            && now >= expires
        {
            self.unbind(UnboundCause::Expired);
        }
    }

    /// A lease takes the place of the one before (B5). `client_id` is the number of the identifier that asked for it.
    pub(crate) fn bind(&mut self, lease: Lease, client_id: Option<u8>) {
        let renewed = self.lease.is_some_and(|old| old.address == lease.address);
        if !renewed {
            self.unbind(UnboundCause::Replaced);
        }
        self.offer = None;
        self.lease = Some(lease);
        self.lease_client_id = client_id;
        self.push_event(if renewed { PortEvent::Renewed(lease) } else { PortEvent::Bound(lease) });
    }

    /// The lease is gone, if there was one.
    pub(crate) fn unbind(&mut self, cause: UnboundCause) {
        self.lease_client_id = None;
        if let Some(lease) = self.lease.take() {
            self.push_event(PortEvent::Unbound { lease, cause });
        }
    }

    /// The VM gave up the address that it has or was offered (C6).
    pub(crate) fn give_up(&mut self, cause: UnboundCause) {
        self.unbind(cause);
        self.offer = None;
        self.transactions.retire();
    }

    /// The server said no (B5).
    pub(crate) fn refuse(&mut self) {
        self.unbind(UnboundCause::Refused);
        self.offer = None;
    }

    /// The identifier under which the server files the lease.
    pub(crate) fn lease_client_id(&self) -> Option<&[u8]> {
        self.lease_client_id.and_then(|number| self.client_ids.get(number))
    }

    /// Notes an event; the oldest is lost if the shell has not fetched any for long.
    pub(crate) fn push_event(&mut self, event: PortEvent) {
        if self.events.iter().all(Option::is_some) {
            let _ = self.poll_event();
        }
        if let Some(free) = self.events.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(event);
        }
    }

    /// The oldest event.
    pub(crate) fn poll_event(&mut self) -> Option<PortEvent> {
        self.events.rotate_left(1);
        match self.events.last_mut().and_then(Option::take) {
            Some(event) => Some(event),
            None => {
                self.events.rotate_right(1);
                None
            }
        }
    }
}

/// The requests of the VM that wait for a reply.
///
/// There are more than the VM can make in a burst (C7), so that it cannot push one of them out before the reply to it
/// comes back from the same host.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    slots: [Option<Transaction>; Transactions::CAPACITY],
    /// Grows with each request; tells the oldest.
    clock: u64,
    last_id: u32,
}

/// One or more requests with the same transaction number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transaction {
    id: u32,
    /// When it was last used, by the clock of [`Transactions`].
    used: u64,
    /// There was a DISCOVER or a REQUEST: the reply may give an address.
    pub(crate) is_for_address: bool,
    /// There was a REQUEST, or a DISCOVER that may be answered like one: an ACK may be on its way.
    pub(crate) is_request: bool,
    /// There was an INFORM: the reply may give options only.
    pub(crate) is_inform: bool,
    /// The VM has given its address up since; a reply that is still on its way is void, and one to a further request
    /// of the same number could not be told from it.
    is_retired: bool,
    pub(crate) client_id: Option<u8>,
}

/// What a VM asks of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Discover,
    Request,
    Inform,
}

impl Transactions {
    const CAPACITY: usize = 16;

    /// A request passes: replies to it will be expected.
    pub(crate) fn open(&mut self, id: u32, asked: Asked, client_id: Option<u8>) {
        self.clock = self.clock.wrapping_add(1);
        self.last_id = id;
        let new = Transaction {
            id,
            used: 0,
            is_for_address: false,
            is_request: false,
            is_inform: false,
            is_retired: false,
            client_id,
        };
        let known = self.slots.iter_mut().find(|slot| slot.is_some_and(|open| open.id == id));
        let slot = match known {
            Some(slot) => Some(slot),
            // A free slot, or the oldest.
            None => self.slots.iter_mut().min_by_key(|slot| slot.map_or(0, |open| open.used)).map(|slot| {
                *slot = None;
                slot
            }),
        };
        if let Some(slot) = slot {
            let open = slot.get_or_insert(new);
            open.used = self.clock;
            open.client_id = client_id;
            open.is_for_address |= asked != Asked::Inform;
            open.is_request |= asked == Asked::Request;
            open.is_inform |= asked == Asked::Inform;
        }
    }

    /// The open transaction with this number.
    pub(crate) fn find(&self, id: u32) -> Option<&Transaction> {
        self.slots.iter().flatten().find(|open| open.id == id && !open.is_retired)
    }

    /// The transaction has been answered.
    pub(crate) fn close(&mut self, id: u32) {
        self.slots
            .iter_mut()
            .filter(|slot| slot.is_some_and(|open| open.id == id))
            .for_each(|slot| *slot = None);
    }

    /// Nothing that was asked before may bind an address any more.
    fn retire(&mut self) {
        for slot in &mut self.slots {
            match slot {
                Some(open) if open.is_request => open.is_retired = true,
                _ => *slot = None,
            }
        }
    }

    /// A number that the VM has not just used.
    pub(crate) fn fresh_id(&self) -> u32 {
        self.last_id.wrapping_add(1)
    }
}

/// The different client identifiers (option 61) that the VM has used (C5).
#[derive(Debug)]
pub(crate) struct ClientIds {
    ids: [ClientId; ClientIds::CAPACITY],
    used: u8,
}

#[derive(Debug, Clone, Copy)]
struct ClientId {
    bytes: [u8; 255],
    len: u8,
}

impl Default for ClientIds {
    fn default() -> Self {
        Self { ids: [ClientId { bytes: [0; 255], len: 0 }; Self::CAPACITY], used: 0 }
    }
}

impl ClientIds {
    /// How many there may be.
    pub(crate) const CAPACITY: usize = 4;

    /// How many there are.
    pub(crate) fn used(&self) -> usize {
        usize::from(self.used)
    }

    /// The identifier of that number.
    pub(crate) fn get(&self, number: u8) -> Option<&[u8]> {
        let id = self.ids.get(usize::from(number)).filter(|_| number < self.used)?;
        id.bytes.get(..usize::from(id.len))
    }

    /// The number of an identifier that has been used.
    pub(crate) fn find(&self, id: &[u8]) -> Option<u8> {
        (0..self.used).find(|number| self.get(*number) == Some(id))
    }

    /// Whether there is room for one more.
    pub(crate) fn has_room(&self) -> bool {
        self.used() < Self::CAPACITY
    }

    /// Adds an identifier of at most 255 bytes and gives its number; `None` if there is no room.
    pub(crate) fn add(&mut self, id: &[u8]) -> Option<u8> {
        let slot = self.ids.get_mut(usize::from(self.used))?;
        slot.bytes.get_mut(..id.len())?.copy_from_slice(id);
        slot.len = u8::try_from(id.len()).ok()?;
        let number = self.used;
        self.used = self.used.saturating_add(1);
        Some(number)
    }
}

/// The rate at which the VM may send DHCP (C7).
pub(crate) type MessageRate = Rate<10, 1>;

/// The rate at which it may decline addresses. A server has to take a declined address for one in use (RFC 2131, section
/// 4.3.3), so a VM that declines all that it is offered could empty the pool for everybody.
pub(crate) type DeclineRate = Rate<8, 600>;

/// A rate: a burst of `BURST`, then one every `INTERVAL` seconds.
///
/// This is the generic cell rate algorithm: one time stamp instead of a bucket of tokens.
#[derive(Debug, Default)]
pub(crate) struct Rate<const BURST: u64, const INTERVAL: u64> {
    /// When all that passed so far would have been due at the steady rate.
    due: Timestamp,
}

impl<const BURST: u64, const INTERVAL: u64> Rate<BURST, INTERVAL> {
    const TOLERANCE: Duration = Duration::from_secs(BURST.saturating_sub(1).saturating_mul(INTERVAL));

    /// Whether one more may pass now.
    pub(crate) fn has_room(&self, now: Timestamp) -> bool {
        self.due <= now.saturating_add(Self::TOLERANCE)
    }

    /// Counts one more.
    pub(crate) fn count(&mut self, now: Timestamp) {
        self.due = self.due.max(now).saturating_add(Duration::from_secs(INTERVAL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn event(used: usize) -> PortEvent {
        PortEvent::ClientIdChanged { used }
    }

    /// R1: events that nobody fetches make nothing grow.
    #[test]
    fn r1_events_are_bounded() {
        let mut dhcp = Dhcp::default();
        assert_eq!(dhcp.poll_event(), None);
        for round in 0..5 {
            dhcp.push_event(event(round));
            dhcp.push_event(event(round + 1));
            assert_eq!(dhcp.poll_event(), Some(event(round)));
            assert_eq!(dhcp.poll_event(), Some(event(round + 1)));
            assert_eq!(dhcp.poll_event(), None);
        }
        (0..20).for_each(|used| dhcp.push_event(event(used)));
        for used in 12..20 {
            assert_eq!(dhcp.poll_event(), Some(event(used)));
        }
        assert_eq!(dhcp.poll_event(), None);
    }

    #[test]
    fn client_ids_are_found() {
        let mut ids = ClientIds::default();
        assert_eq!((ids.get(0), ids.find(b""), ids.used()), (None, None, 0));
        for (number, id) in (0..).zip([&b"one"[..], b"two", &[7; 255], b"on"]) {
            assert!(ids.has_room());
            assert_eq!(ids.add(id), Some(number));
            assert_eq!(ids.find(id), Some(number));
            assert_eq!(ids.get(number), Some(id));
            assert_eq!(ids.get(number + 1), None);
        }
        assert!(!ids.has_room());
        assert_eq!(ids.add(b"five"), None);
        assert_eq!(ids.used(), 4);
        assert_eq!(ids.find(b"thr"), None);
        let mut ids = ClientIds::default();
        assert_eq!(ids.add(&[0; 256]), None);
        assert_eq!(ids.used(), 0);
    }

    #[test]
    fn fresh_transaction_numbers_follow_the_last() {
        let mut transactions = Transactions::default();
        assert_eq!(transactions.fresh_id(), 1);
        transactions.open(u32::MAX, Asked::Request, None);
        assert_eq!(transactions.fresh_id(), 0);
    }

    /// C7, B4: no time overflows the rate.
    #[test]
    fn c7_rate_at_the_end_of_time() {
        let passed = |now| {
            let mut rate = MessageRate::default();
            (0..100)
                .filter(|_| {
                    let passes = rate.has_room(now);
                    rate.count(now);
                    passes
                })
                .count()
        };
        assert_eq!(passed(Timestamp::MAX), 100);
        assert_eq!(passed(NOW), 10);
    }
}
