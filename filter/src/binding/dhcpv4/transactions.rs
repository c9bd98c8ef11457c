//! The transactions of the VM that wait for a reply, and what each of them requests (B1, B7).
//!
//! A server acts on requests, the filter learns from answers, and answers get lost or come late. So the filter
//! remembers what a request requested, and one that could change the server's lease voids the answers to earlier ones.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::binding::dhcpv4::client_ids::IdNumber;
use crate::time::Timestamp;

/// How long an unanswered number stands for one request (B7). Clients that always use the same number
/// can continue after that.
const LIFETIME: Duration = Duration::from_secs(60);

/// What a VM requests from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A DISCOVER, which is answered by an offer and changes nothing.
    Discover,
    /// A DISCOVER with rapid commit (RFC 4039), which may be answered by an ACK at once.
    RapidDiscover,
    /// A REQUEST.
    Request,
    /// An INFORM.
    Inform,
}

/// What all messages of one number must have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) kind: Kind,
    /// Option 50.
    pub(crate) requested: Option<Ipv4Addr>,
    /// `ciaddr`, if it is not 0.0.0.0.
    pub(crate) client_address: Option<Ipv4Addr>,
    /// Option 51, in seconds.
    pub(crate) lease_time: Option<u32>,
    /// Option 61.
    pub(crate) client_id: Option<IdNumber>,
}

impl Asked {
    /// Whether it can cause the server to assign or withdraw an address.
    pub(crate) fn may_bind(self) -> bool {
        matches!(self.kind, Kind::Request | Kind::RapidDiscover)
    }

    /// Whether it can only be for `address`: it names this address and no other.
    pub(crate) fn is_for(self, address: Ipv4Addr) -> bool {
        let mut named = self.requested.into_iter().chain(self.client_address).peekable();
        self.kind == Kind::Request && named.peek().is_some() && named.all(|named| named == address)
    }

    /// Whether `address` can be the answer: it is one that the request names, or the request names none.
    pub(crate) fn may_give(self, address: Ipv4Addr) -> bool {
        let mut named = self.requested.into_iter().chain(self.client_address).peekable();
        self.kind == Kind::RapidDiscover || named.peek().is_none() || named.any(|named| named == address)
    }
}

/// One or more messages with the same number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Transaction {
    id: u32,
    pub(crate) asked: Asked,
    /// When the first of them passed. The server counts from then or later.
    pub(crate) since: Timestamp,
    /// When the last of them passed.
    last: Timestamp,
    /// How many of them may still be answered.
    unanswered: u32,
    /// When it was last used, by the clock of [`Transactions`].
    used: u64,
    /// Whether a later message of the VM has voided every reply.
    is_void: bool,
    /// Whether the number stood for another request before, whose answer may still be on its way.
    is_reused: bool,
}

impl Transaction {
    /// Whether an ACK that gives `address` can be the answer.
    pub(crate) fn may_give(&self, address: Ipv4Addr) -> bool {
        // A repeated message may get another answer, if the address that it requests has become free since.
        if self.asked.kind == Kind::RapidDiscover
            && self.unanswered > 1
            && self.asked.requested.is_some_and(|requested| requested != address)
        {
            return false;
        }
        !self.is_reused || self.asked.may_give(address)
    }

    fn is_old(&self, now: Timestamp) -> bool {
        now.saturating_since(self.last) >= LIFETIME
    }
}

/// The transactions of a VM.
///
/// There are more than the VM can make in a burst (C7), so that it cannot push one of them out before the reply to it
/// comes back from the same host.
#[derive(Debug, Default)]
pub(crate) struct Transactions {
    slots: [Option<Transaction>; Transactions::CAPACITY],
    /// Grows with each request; shows which is the oldest.
    clock: u64,
    last_id: u32,
}

impl Transactions {
    const CAPACITY: usize = 16;

    fn slot(&self, id: u32) -> Option<&Transaction> {
        self.slots.iter().flatten().find(|open| open.id == id)
    }

    /// Whether a message with this number may pass: it is the first with it, a repetition, or the REQUEST that
    /// follows a DISCOVER (B7). After one with rapid commit that has not been answered by an offer, the REQUEST has
    /// to request the same time, since their ACKs could not be distinguished. `is_new_id`: no message before had its
    /// identifier.
    pub(crate) fn admits(&self, id: u32, asked: Asked, is_new_id: bool, now: Timestamp) -> bool {
        self.slot(id).is_none_or(|open| {
            let is_offered = match open.asked.kind {
                Kind::Discover => true,
                Kind::RapidDiscover => open.unanswered == 0 || open.asked.lease_time == asked.lease_time,
                Kind::Request | Kind::Inform => false,
            };
            let is_next =
                is_offered && asked.kind == Kind::Request && open.asked.client_id == asked.client_id;
            open.is_void || open.is_old(now) || (!is_new_id && (open.asked == asked || is_next))
        })
    }

    /// Remembers a message that [`Transactions::admits`], so that replies to it are expected.
    pub(crate) fn open(&mut self, id: u32, asked: Asked, now: Timestamp) {
        self.clock = self.clock.wrapping_add(1);
        self.last_id = id;
        if asked.may_bind() {
            let is_rapid = asked.kind == Kind::RapidDiscover;
            self.void(|open| open.id != id && (is_rapid || open.asked != asked));
        }
        let used = self.clock;
        let new = Transaction {
            id,
            asked,
            since: now,
            last: now,
            unanswered: 1,
            used,
            is_void: false,
            is_reused: false,
        };
        match self.slots.iter_mut().flatten().find(|open| open.id == id) {
            // A reply to the earlier request could not be distinguished from one to this.
            Some(open) if (open.is_void && !open.is_old(now)) || (open.asked == asked && !open.is_void) => {
                open.used = used;
                open.last = now;
                open.unanswered = open.unanswered.saturating_add(1);
            }
            Some(open) => {
                let unanswered = if open.asked.may_bind() && !open.is_old(now) { open.unanswered } else { 0 };
                // The answer may still be one to the rapid DISCOVER.
                let since = if unanswered > 0 { open.since } else { now };
                let unanswered = unanswered.saturating_add(1);
                *open = Transaction { is_reused: open.asked.may_bind(), since, unanswered, ..new };
            }
            // A free slot, or the oldest.
            None => {
                if let Some(slot) = self.slots.iter_mut().min_by_key(|slot| slot.map_or(0, |open| open.used))
                {
                    *slot = Some(new);
                }
            }
        }
    }

    /// The open transaction with this number.
    pub(crate) fn find(&self, id: u32) -> Option<&Transaction> {
        self.slot(id).filter(|open| !open.is_void)
    }

    /// An offer came, which a server sends instead of binding. One that comes after the REQUEST answers an earlier
    /// DISCOVER, not the REQUEST.
    pub(crate) fn note_offer(&mut self, id: u32) {
        if let Some(open) = self.slots.iter_mut().flatten().find(|open| open.id == id)
            && open.asked.kind == Kind::RapidDiscover
        {
            open.unanswered = open.unanswered.saturating_sub(1);
        }
    }

    /// The transaction has been answered. If the VM has sent its message more than once, more answers are on their
    /// way, which could not be distinguished from those to another request under the same number: it stays void for a
    /// while (B7).
    pub(crate) fn close(&mut self, id: u32) {
        for slot in self.slots.iter_mut().filter(|slot| slot.is_some_and(|open| open.id == id)) {
            match slot {
                Some(open) if open.asked.may_bind() && open.unanswered > 1 => {
                    open.unanswered = open.unanswered.saturating_sub(1);
                    open.is_void = true;
                }
                _ => *slot = None,
            }
        }
    }

    /// The VM gave up its address: no earlier request may bind one any more.
    pub(crate) fn retire(&mut self) {
        for slot in &mut self.slots {
            match slot {
                Some(open) if open.asked.may_bind() => open.is_void = true,
                _ => *slot = None,
            }
        }
    }

    /// An identifier is no longer remembered, so no reply to a request under it can be stored.
    pub(crate) fn forget_client_id(&mut self, number: IdNumber) {
        self.void(|open| open.asked.client_id == Some(number));
    }

    /// Voids the replies to all requests for an address that `which` selects.
    fn void(&mut self, which: impl Fn(&Transaction) -> bool) {
        self.slots
            .iter_mut()
            .flatten()
            .filter(|open| open.asked.may_bind() && which(open))
            .for_each(|open| open.is_void = true);
    }

    /// A number that the VM has not just used.
    pub(crate) fn fresh_id(&self) -> u32 {
        self.last_id.wrapping_add(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    fn asked(kind: Kind) -> Asked {
        Asked { kind, requested: None, client_address: None, lease_time: None, client_id: None }
    }

    #[test]
    fn fresh_transaction_numbers_follow_the_last() {
        let mut transactions = Transactions::default();
        assert_eq!(transactions.fresh_id(), 1);
        transactions.open(u32::MAX, asked(Kind::Request), NOW);
        assert_eq!(transactions.fresh_id(), 0);
    }

    /// B7: what the request shows about the address that its ACK gives.
    #[test]
    fn b7_a_request_tells_what_it_can_be_for() {
        let request = asked(Kind::Request);
        let selects = Asked { requested: Some(OWN_IP), ..request };
        let renews = Asked { client_address: Some(OWN_IP), ..request };
        let both = Asked { requested: Some(OTHER_IP), ..renews };
        for (asked, is_for, may_give_own, may_give_other) in [
            (request, false, true, true),
            (selects, true, true, false),
            (renews, true, true, false),
            (both, false, true, true),
            (Asked { kind: Kind::RapidDiscover, ..selects }, false, true, true),
        ] {
            assert_eq!(asked.is_for(OWN_IP), is_for, "{asked:?}");
            assert!(!asked.is_for(GATEWAY_IP));
            assert_eq!(asked.may_give(OWN_IP), may_give_own, "{asked:?}");
            assert_eq!(asked.may_give(OTHER_IP), may_give_other, "{asked:?}");
        }
    }
}
