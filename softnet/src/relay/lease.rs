//! The VM's lease: who is told of it, what waits until the host is ready for it, and how it is given back.

use std::time::Duration;

use softnet_filter::{Direction, PortEvent, Timestamp};

use super::lane::{Lane, Way};
use super::{Ended, Relay, Stop};
use crate::clock;
use crate::lease_follower::Notice;
use crate::link::{FrameBatch, Link, Losses, Sent};
use crate::observe;
use crate::surroundings;

/// How long the answer with a new lease waits for the host to be ready for the VM at that address. That takes some
/// milliseconds, or as long as the address's last holder takes to leave.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// More batches than the queue of a TAP holds frames of (1000 unless told otherwise).
const LONGEST_QUEUE: usize = 64;

impl Relay {
    /// Tells the follower about the lease, and waits for the host where that is needed.
    pub(super) fn note_events(&mut self, now: Timestamp) {
        while let Some(event) = self.port.poll_event() {
            observe::log_event(&event);
            if !matches!(event, PortEvent::Bound(_) | PortEvent::Unbound { .. }) {
                continue;
            }
            if matches!(event, PortEvent::Unbound { .. }) {
                self.port.host_is_not_ready();
            }
            let lease = self.port.lease();
            let address = lease.as_ref().map(|lease| lease.address);
            self.follower.lease_changed(lease, now);
            if let (PortEvent::Bound(_), Some(address), true) = (event, address, self.follower.settles()) {
                self.settling = Some((address, now.saturating_add(SETTLE_LIMIT)));
            }
        }
    }

    /// Acts on all that the follower has learnt.
    pub(super) fn hear_follower(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.follower.attend(now)?;
        while let Some(notice) = self.follower.notice()? {
            match notice {
                Notice::PeerGone => return Err(Stop::Ended(Ended::VmClosed)),
                Notice::Settled(address) => {
                    // An answer that came too late for an earlier lease says nothing about this one.
                    if self.port.lease().is_some_and(|lease| lease.address == address) {
                        self.judge_what_waits(now)?;
                        self.port.host_is_ready(address);
                    }
                    if self.settling.is_some_and(|(awaited, _)| awaited == address) {
                        self.settled(now)?;
                    }
                }
                Notice::HostAddresses(addresses) => {
                    surroundings::set_host_addresses(&mut self.port, &addresses)?
                }
                Notice::Exposed(ports) => surroundings::set_exposed(&mut self.port, &ports),
            }
        }
        Ok(())
    }

    /// Goes on without the host where it is not ready in time.
    pub(super) fn settle_in_time(&mut self, now: Timestamp) -> Result<(), Stop> {
        match self.settling {
            Some((address, until)) if now >= until => {
                tracing::warn!(%address, "the host is not ready for the VM's address yet; going on without");
                self.settled(now)
            }
            _ => Ok(()),
        }
    }

    /// The VM may hear of its new lease.
    fn settled(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.settling = None;
        self.way(Direction::FromHost).send_or_wait(now)
    }

    /// Judges all that has come before the host was ready as what came before: it may be for the former holder of the VM's
    /// address (rule H3). DHCP and ARP are handed on. What waits in the lane stays there, so this takes a batch of its own: the
    /// host's link is a TAP's, which leaves nothing in a batch.
    fn judge_what_waits(&mut self, now: Timestamp) -> Result<(), Stop> {
        let mut waiting = Lane::new(Direction::FromHost, self.from_host.batch.max_frame());
        for _ in 0..LONGEST_QUEUE {
            waiting.never_waits();
            let mut way = Way { lane: &mut waiting, ..self.way(Direction::FromHost) };
            way.receive(now)?;
            way.send(now)?;
            if !waiting.readable {
                break;
            }
        }
        Ok(())
    }

    /// Gives the VM's lease back to the DHCP server, so that short-lived VMs do not exhaust its addresses.
    pub fn release_lease(&mut self) {
        let now = clock::now();
        if self.port.release(now) && self.transmit() {
            // Nobody else has to.
            self.follower.lease_changed(None, now);
        }
    }

    /// Sends what the port sends itself; says whether the links took all of it.
    pub(super) fn transmit(&mut self) -> bool {
        let mut all = true;
        while let Some((direction, frame)) = self.port.poll_transmit() {
            let side = match direction {
                Direction::FromVm => &mut self.host,
                Direction::FromHost => &mut self.vm,
            };
            all &= transmit(&mut *side.link, &frame);
        }
        all
    }
}

/// Sends one frame of Softnet's own; says whether the link took it. The only ones are DHCPRELEASEs.
fn transmit(link: &mut dyn Link, frame: &[u8]) -> bool {
    let mut batch = FrameBatch::new(frame.len());
    batch.free_space()[..frame.len()].copy_from_slice(frame);
    batch.push(frame.len());
    match link.send(&mut batch) {
        Ok(Sent::All) if batch.take_losses() == Losses::default() => {
            tracing::info!("gave a lease back");
            return true;
        }
        Ok(_) => tracing::warn!("a lease was not given back: the host's queue is full, or refused it"),
        Err(error) => tracing::warn!(%error, "a lease was not given back"),
    }
    false
}
