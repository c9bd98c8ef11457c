//! The state of a VM's DHCP: its lease, and what the filter remembers around it. A few fixed fields.

use core::net::Ipv4Addr;
use core::time::Duration;

use crate::binding::dhcpv4::boot::BootRequests;
use crate::binding::dhcpv4::client_ids::{ClientId, ClientIds, IdNumber};
use crate::binding::dhcpv4::offer::Offer;
use crate::binding::dhcpv4::terms::{Former, Renewable, Terms, lease_time};
use crate::binding::dhcpv4::transactions::{Asked, Transaction, Transactions};
use crate::event::{Events, PortEvent, UnboundCause};
use crate::lease::{AdoptError, Lease, Resolvers};
use crate::rate::{ClientIdRate, DeclineRate, MessageRate};
use crate::segment::Segment;
use crate::time::Timestamp;

/// The most that remains of a lease which the VM requests again in a way that does not show the filter how long the
/// server's new lease is: longer than an answer takes, shorter than any server's lease (B7).
const UNKNOWN_LEASE_TIME: Duration = Duration::from_secs(60);

/// The state of a VM's DHCP.
#[derive(Debug, Default)]
pub(crate) struct Dhcp {
    lease: Option<Lease>,
    /// How many leases have ended, which distinguishes them.
    ended: u32,
    /// The address that the administrator gave the VM (B9).
    given: Option<Ipv4Addr>,
    /// How the lease was requested, if there is one.
    terms: Terms,
    /// Which address a VM without a lease may still renew (C10).
    renewable: Renewable,
    /// The lease that a request ended (B7). The server may still keep it for the VM.
    former: Option<Former>,
    /// A lease to release now (C5).
    surplus: Option<Former>,
    offer: Option<Offer>,
    /// How long the server's leases last if the VM requests no time.
    default_lease_time: Option<Duration>,
    pub(crate) transactions: Transactions,
    pub(crate) boot_requests: BootRequests,
    pub(crate) client_ids: ClientIds,
    pub(crate) messages: MessageRate,
    pub(crate) declines: DeclineRate,
    pub(crate) new_client_ids: ClientIdRate,
    /// The VM has used an identifier that names another hardware address.
    pub(crate) has_foreign_client_id: bool,
    /// Another station than the server has answered the VM.
    pub(crate) has_other_server: bool,
    pub(crate) events: Events,
}

impl Dhcp {
    /// The lease; it is valid at the time last passed to [`Dhcp::advance`].
    #[inline(always)]
    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// Which address a VM without a lease may renew.
    pub(crate) fn renewable(&self) -> Renewable {
        self.renewable
    }

    /// The server's records show which lease was the VM's last (C10).
    pub(crate) fn set_last_lease(&mut self, last: Option<Ipv4Addr>) {
        if self.lease.is_none() {
            self.renewable = last.map_or(Renewable::Nothing, Renewable::Expired);
        }
    }

    /// The address that the server has offered, while the offer is valid.
    pub(crate) fn offered(&self, now: Timestamp) -> Option<Ipv4Addr> {
        self.offer.filter(|offer| offer.is_valid(now)).map(|offer| offer.address)
    }

    /// The server offered an address.
    pub(crate) fn offer(&mut self, address: Ipv4Addr, now: Timestamp) {
        self.offer = Some(Offer::new(address, now));
    }

    /// The number of the present lease, which no later one has.
    #[inline(always)]
    pub(crate) fn lease_number(&self) -> u32 {
        self.ended
    }

    /// Ends the lease if it has expired.
    #[inline(always)]
    pub(crate) fn advance(&mut self, now: Timestamp) {
        if let Some(Lease { address, expires: Some(expires), .. }) = self.lease
            && now >= expires
        {
            self.unbind(UnboundCause::Expired);
            self.renewable = Renewable::Expired(address);
        }
    }

    /// The VM's request passes and the server will act on it, whether or not the answer ever comes (B7): the lease must
    /// not last longer than the server's may.
    pub(crate) fn record_request(&mut self, id: u32, asked: Asked, now: Timestamp) {
        self.transactions.open(id, asked, now);
        if !asked.may_bind() {
            return;
        }
        let Some(lease) = self.lease else {
            // C10: it renews nothing any more, even if the answer gets lost.
            if matches!(self.renewable, Renewable::Expired(last) if !asked.is_for(last)) {
                self.renewable = Renewable::Nothing;
            }
            return;
        };
        if !asked.is_for(lease.address) {
            self.former = Some(Former::of(&lease, self.terms));
            self.unbind(UnboundCause::Superseded);
            return;
        }
        match asked.lease_time.map(lease_time) {
            Some(None) => {}
            Some(Some(wanted)) => self.cap(now.saturating_add(wanted)),
            None if self.terms.has_asked_time => {
                self.cap(now.saturating_add(self.default_lease_time.unwrap_or(UNKNOWN_LEASE_TIME)));
            }
            None => {}
        }
    }

    /// B9: gives the VM an address that nobody else gets, whatever the VM does.
    pub(crate) fn give(
        &mut self,
        segment: &Segment,
        address: Ipv4Addr,
        resolvers: Resolvers,
        now: Timestamp,
    ) -> Result<(), AdoptError> {
        if self.lease().is_some() {
            return Err(AdoptError::Bound);
        }
        if !segment.may_be_leased(address) {
            return Err(AdoptError::Address(address));
        }
        self.given = Some(address);
        let resolvers = sane(segment, address, resolvers);
        let lease = Lease { address, server: segment.dhcp_server.address, expires: None, resolvers };
        self.bind(lease, Terms::default(), now);
        Ok(())
    }

    /// B9: whether the server may give the VM `address`.
    pub(crate) fn may_get(&self, address: Ipv4Addr) -> bool {
        self.given.is_none_or(|given| given == address)
    }

    /// B9: how long a lease binds that the server gives for this time: a given address does not expire.
    pub(crate) fn lasts(&self, given_by_server: Option<Duration>) -> Option<Duration> {
        given_by_server.filter(|_| self.given.is_none())
    }

    /// The lease ends at `end` at the latest, unless it is a given address (B9).
    pub(crate) fn cap(&mut self, end: Timestamp) {
        if self.given.is_none()
            && let Some(lease) = &mut self.lease
            && lease.expires.is_none_or(|expires| end < expires)
        {
            lease.expires = Some(end);
        }
    }

    /// A genuine ACK came that answers no open request: it shows what the server has, and the VM gets
    /// no more than that (B7). `lease_time` is in seconds.
    pub(crate) fn limit_by_ack(&mut self, address: Ipv4Addr, lease_time_given: Option<u32>, now: Timestamp) {
        let Some(lease) = self.lease else { return };
        if lease.address != address {
            self.unbind(UnboundCause::Superseded);
        } else if let Some(Some(lasts)) = lease_time_given.filter(|given| *given != 0).map(lease_time) {
            self.cap(now.saturating_add(lasts));
            self.advance(now);
        }
    }

    /// The server acknowledged the request of `transaction`: the lease takes the place of the one before (B5), which is
    /// released if it had another address (C5).
    pub(crate) fn acknowledge(
        &mut self,
        lease: Lease,
        transaction: &Transaction,
        lasts: Option<Duration>,
        now: Timestamp,
    ) {
        let Asked { lease_time, client_id, .. } = transaction.asked;
        if lease_time.is_none() {
            self.default_lease_time = lasts;
        }
        let client_id = client_id.and_then(|number| self.client_ids.get(number)).copied();
        self.bind(lease, Terms { client_id, has_asked_time: lease_time.is_some() }, now);
        // An answer may come so late that nothing is left of the lease.
        self.advance(now);
    }

    /// Takes over a lease that the VM got before, with the identifier under which the server stores it.
    pub(crate) fn adopt(
        &mut self,
        segment: &Segment,
        lease: Lease,
        client_id: Option<&[u8]>,
        now: Timestamp,
    ) -> Result<(), AdoptError> {
        if self.lease().is_some() {
            return Err(AdoptError::Bound);
        }
        if lease.server != segment.dhcp_server.address {
            return Err(AdoptError::Server(lease.server));
        }
        if !segment.may_be_leased(lease.address) {
            return Err(AdoptError::Address(lease.address));
        }
        if !lease.is_valid_at(now) {
            return Err(AdoptError::Expired);
        }
        let client_id = match client_id {
            None => None,
            Some(id) if !(2..=255).contains(&id.len()) => return Err(AdoptError::ClientId),
            Some(id) => {
                if self.client_ids.find(id).is_none() {
                    let _ = self.client_ids.add(id);
                }
                ClientId::new(id)
            }
        };
        let resolvers = sane(segment, lease.address, lease.resolvers);
        // It is unknown whether it lasts as long as the server's leases usually do (B7).
        let terms = Terms { client_id, has_asked_time: true };
        self.bind(Lease { resolvers, ..lease }, terms, now);
        Ok(())
    }

    /// A lease takes the place of the one before.
    pub(crate) fn bind(&mut self, lease: Lease, terms: Terms, now: Timestamp) {
        let renewed = self.lease.is_some_and(|old| old.address == lease.address);
        if !renewed {
            if let Some(old) = self.lease {
                self.former = Some(Former::of(&old, self.terms));
            }
            self.unbind(UnboundCause::Replaced);
        }
        let former =
            self.former.take().filter(|former| former.address != lease.address && !former.is_over(now));
        // A lease that still waits here is for the address that is bound now, or equivalent to this one.
        self.surplus = former.or(self.surplus.filter(|surplus| surplus.address != lease.address));
        self.offer = None;
        self.renewable = Renewable::Nothing;
        self.lease = Some(lease);
        self.terms = terms;
        self.events.push(if renewed { PortEvent::Renewed(lease) } else { PortEvent::Bound(lease) });
    }

    /// Ends the lease, if there is one.
    fn unbind(&mut self, cause: UnboundCause) {
        if let Some(lease) = self.lease.take() {
            self.ended = self.ended.wrapping_add(1);
            self.renewable = Renewable::Nothing;
            self.events.push(PortEvent::Unbound { lease, cause });
        }
    }

    /// The VM gave up the address that it has or was offered (C6).
    pub(crate) fn give_up(&mut self, cause: UnboundCause) {
        // C5: what the VM declines is not released as well; the server may have given it to another VM since.
        let offered = self.offer.map(|offer| offer.address);
        self.former = self.former.take().filter(|former| Some(former.address) != offered);
        self.unbind(cause);
        self.renewable = Renewable::Nothing;
        self.offer = None;
        self.transactions.retire();
    }

    /// The server refused (B5).
    pub(crate) fn refuse(&mut self) {
        self.unbind(UnboundCause::Refused);
        self.renewable = Renewable::Nothing;
        self.offer = None;
    }

    /// Takes the lease to release at the end: the VM's, or the one that a request without an answer ended. The latter
    /// may be another VM's by now. A server that stores leases by MAC address shows whose it is, so there the process
    /// that can read its file releases it.
    pub(crate) fn take_for_release(&mut self, by_mac: bool, now: Timestamp) -> Option<Former> {
        let held = self.lease.as_ref().map(|lease| Former::of(lease, self.terms));
        let former = self.former.take().filter(|former| !by_mac && !former.is_over(now));
        self.give_up(UnboundCause::Released);
        held.or(former)
    }

    /// Takes the earlier lease to release now.
    pub(crate) fn take_surplus(&mut self) -> Option<Former> {
        self.surplus.take()
    }

    /// Notes the identifier of a message that passes, and returns its number.
    pub(crate) fn note_client_id(&mut self, id: &[u8], now: Timestamp) -> Option<IdNumber> {
        if let Some(number) = self.client_ids.find(id) {
            self.client_ids.touch(number);
            return Some(number);
        }
        self.new_client_ids.count(now);
        let added = self.client_ids.add(id)?;
        if let Some(forgotten) = added.forgotten {
            self.transactions.forget_client_id(forgotten);
        }
        let used = self.client_ids.added();
        if used > 1 {
            self.events.push(PortEvent::ClientIdChanged { used });
        }
        Some(added.number)
    }
}

/// D5: the resolvers that may be opened for a VM at `address`.
fn sane(segment: &Segment, address: Ipv4Addr, resolvers: Resolvers) -> Resolvers {
    resolvers.iter().filter(|resolver| segment.is_sane_resolver(*resolver) && *resolver != address).collect()
}
