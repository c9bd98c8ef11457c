//! The VM's lease: reports it to the follower, holds frames until the host is ready for it, and releases it
//! at the end.

use std::time::Duration;

use softnet_filter::{Direction, PortEvent, Timestamp};

use super::lane::{Lane, Way};
use super::{Ended, Relay, Stop};
use crate::clock;
use crate::lease_follower::Notice;
use crate::link::{FrameBatch, Link, LinkError, Losses, Sent};
use crate::observe;
use crate::surroundings;

/// How long the DHCP reply with a new lease waits for the host to be ready for the VM at that address. That
/// takes some milliseconds, or as long as the address's previous holder takes to leave.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// In batches. More than the queue of a TAP holds (1000 frames by default).
const LONGEST_QUEUE: usize = 64;

impl Relay {
    /// Reports changes of the lease to the follower, and waits for the host where that is needed.
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

    /// Reads the follower's notices and acts on them.
    pub(super) fn read_notices(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.follower.attend(now)?;
        while let Some(notice) = self.follower.notice()? {
            match notice {
                Notice::PeerGone => return Err(Stop::Ended(Ended::VmClosed)),
                Notice::Settled(address) => {
                    // A late answer about an earlier lease does not apply to this one.
                    if self.port.lease().is_some_and(|lease| lease.address == address) {
                        self.judge_queued(now)?;
                        self.port.host_is_ready(address);
                    }
                    if self.settling.is_some_and(|(awaited, _)| awaited == address) {
                        self.stop_holding(now)?;
                    }
                }
                Notice::HostAddresses(addresses) => {
                    surroundings::set_host_addresses(&mut self.port, &addresses, now)?
                }
                Notice::Exposed(ports) => surroundings::set_exposed(&mut self.port, &ports, now),
            }
        }
        Ok(())
    }

    /// Stops waiting for the host if it is not ready in time.
    pub(super) fn check_settle_limit(&mut self, now: Timestamp) -> Result<(), Stop> {
        match self.settling {
            Some((address, until)) if now >= until => {
                tracing::warn!(%address, "the host is not ready for the VM's address yet; no longer waiting for it");
                self.stop_holding(now)
            }
            _ => Ok(()),
        }
    }

    /// Sends the held frames: the VM may learn of its new lease.
    fn stop_holding(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.settling = None;
        self.way(Direction::FromHost).send_or_wait(now)
    }

    /// Judges all frames that arrived before the host was ready while the port still waits for the host: they
    /// may be for the previous holder of the VM's address (rule H3). The port forwards only DHCP and ARP. The
    /// frames in the lane stay there, so this uses a separate batch: the host's link is a TAP's, which leaves
    /// nothing in a batch.
    fn judge_queued(&mut self, now: Timestamp) -> Result<(), Stop> {
        let mut waiting = Lane::new(Direction::FromHost, self.from_host.batch.max_frame());
        for _ in 0..LONGEST_QUEUE {
            waiting.drop_when_full();
            let mut way = Way { lane: &mut waiting, ..self.way(Direction::FromHost) };
            way.receive(now)?;
            way.send(now)?;
            if !waiting.readable {
                break;
            }
        }
        Ok(())
    }

    /// Releases the VM's lease at the DHCP server, so that short-lived VMs do not exhaust its addresses.
    pub fn release_lease(&mut self) {
        let now = clock::now();
        if self.port.release(now) && self.transmit() {
            // The follower need not release it.
            self.follower.lease_changed(None, now);
        }
    }

    /// Sends the port's own frames: DHCPRELEASEs to the host, and answers to the VM. Returns whether the host's link
    /// accepted all of its own.
    pub(super) fn transmit(&mut self) -> bool {
        let mut all = true;
        while let Some((direction, frame)) = self.port.poll_transmit() {
            match direction {
                Direction::FromVm => {
                    let outcome = transmit(&mut *self.host.link, &frame);
                    match &outcome {
                        Ok(true) => tracing::info!("released the lease"),
                        Ok(false) => tracing::warn!(
                            "the lease was not released: the host's queue is full or refused the frame"
                        ),
                        Err(error) => tracing::warn!(%error, "the lease was not released"),
                    }
                    all &= matches!(outcome, Ok(true));
                }
                // If an answer is lost, the VM sends again and gets another. If the link has failed, the next frame
                // shows it.
                Direction::FromHost => {
                    let _ = transmit(&mut *self.vm.link, &frame);
                }
            }
        }
        all
    }
}

/// Sends one of Softnet's own frames. Returns whether the link accepted it.
fn transmit(link: &mut dyn Link, frame: &[u8]) -> Result<bool, LinkError> {
    let mut batch = FrameBatch::new(frame.len());
    batch.free_space()[..frame.len()].copy_from_slice(frame);
    batch.push(frame.len());
    let sent = link.send(&mut batch)?;
    Ok(sent == Sent::All && batch.take_losses() == Losses::default())
}
