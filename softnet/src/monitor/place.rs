//! The monitor's part in a managed network: records the VM's address, keeps the port forwards up to date, and
//! verifies the worker's reports.
//!
//! The address that the worker reports is accepted only if the DHCP server's file confirms it
//! ([`Membership::set_address`]). If it does and another VM still holds the address, that VM's binding has
//! outlived the server's, and its Softnet is ended.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::process::Signal;
use softnet_filter::Timestamp;

use crate::config::expose::Expose;
use crate::host::forwarder::Forwarder;
use crate::host::network::{Error, Membership};
use crate::host::reservation::Reservation;

/// How long the last holder of an address may take to leave: its VM releases the address before its monitor
/// is done, and the DHCP server may lease it to the next VM at once.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a holder that the server's file contradicts may take to end before it is killed.
const EVICTION_TIMEOUT: Duration = Duration::from_secs(6);

/// How many unconfirmed addresses the worker may report in a row before it is killed. A single one may come
/// from two DHCP answers that crossed.
const MAX_FALSE_CLAIMS: u32 = 8;

/// A place in a managed network and what belongs to it.
#[derive(Debug)]
pub struct Place {
    /// The place.
    pub membership: Membership,
    /// The sockets that reserve the exposed ports.
    pub reservations: Vec<Reservation>,
    /// The ports that lead to the VM.
    forwarder: Forwarder,
    /// The VM's address, if another VM still holds it.
    contested: Option<Contest>,
    false_claims: u32,
}

/// An address that was leased to this VM and that another VM holds.
#[derive(Clone, Copy, Debug)]
struct Contest {
    address: Ipv4Addr,
    since: Timestamp,
    /// Whether the holder was told to end.
    evicting: bool,
}

/// The result of the worker's report.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The address is the VM's, and no state of a former holder is left.
    Settled(Ipv4Addr),
    /// No address is recorded, or not yet.
    Unsettled,
    /// The worker has to be sent this signal. The reason was logged.
    Refused(Signal),
}

impl Place {
    /// A place with the ports that have to lead to the VM.
    pub fn new(membership: Membership, exposes: Vec<Expose>, reservations: Vec<Reservation>) -> Self {
        let forwarder = Forwarder::new(exposes);
        Place { membership, reservations, forwarder, contested: None, false_claims: 0 }
    }

    /// The descriptors that hold the place.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let mut descriptors = self.membership.descriptors();
        descriptors.extend(self.reservations.iter().map(AsFd::as_fd));
        descriptors
    }

    /// Records the VM's address, to which the forwards lead from now on.
    pub fn set_address(&mut self, address: Option<Ipv4Addr>, now: Timestamp) -> Outcome {
        let contested = self.contested.take();
        match self.membership.set_address(address) {
            Ok(()) => {
                self.false_claims = 0;
                self.forwarder.set_address(address);
                return address.map_or(Outcome::Unsettled, Outcome::Settled);
            }
            Err(error @ Error::LeaseTaken { address, .. }) => {
                let earlier = contested.filter(|contest| contest.address == address);
                let contest = earlier.unwrap_or(Contest { address, since: now, evicting: false });
                if let Some(outcome) = self.dispute(contest, &error, now) {
                    return outcome;
                }
            }
            Err(error @ Error::NotOurs(..)) => {
                tracing::error!("{error}");
                return self.refuse(Signal::TERM);
            }
            Err(error @ Error::NotLeased { address, .. }) => {
                self.false_claims = self.false_claims.saturating_add(1);
                if self.false_claims >= MAX_FALSE_CLAIMS {
                    tracing::error!(
                        "{error}; the worker repeatedly claimed addresses that the VM does not have; killing it"
                    );
                    return self.refuse(Signal::KILL);
                }
                tracing::warn!(%error, "cannot record the VM's address on the worker's report alone");
                // A VM that is about to end may just have released it, and the server may have leased it to
                // another.
                if self.membership.server_gives(address) == Some(false) {
                    let earlier = contested.filter(|contest| contest.address == address);
                    self.contested = earlier.or(Some(Contest { address, since: now, evicting: false }));
                }
            }
            Err(error) => {
                let earlier = contested.filter(|contest| Some(contest.address) == address);
                if earlier.is_none() {
                    tracing::error!(%error, "cannot record the VM's address; trying again");
                }
                let first = |address| Contest { address, since: now, evicting: false };
                self.contested = earlier.or(address.map(first));
            }
        }
        // No address is recorded, so no forward may lead to one; the next lease installs them.
        self.forwarder.set_address(None);
        Outcome::Unsettled
    }

    /// Decides between this VM and another that holds the address. `None` means: try again later.
    fn dispute(&mut self, mut contest: Contest, error: &Error, now: Timestamp) -> Option<Outcome> {
        let waited = now.saturating_since(contest.since);
        let address = contest.address;
        let verdict = self.membership.server_gives(address);
        // A holder that has just released the address needs a moment to leave.
        let timeout = if contest.evicting { EVICTION_TIMEOUT } else { RELEASE_TIMEOUT };
        if verdict == Some(true) && waited >= timeout {
            let signal = if contest.evicting { Signal::KILL } else { Signal::TERM };
            match self.membership.evict(address, signal) {
                Ok(Some(holder)) => {
                    tracing::warn!(%address, %holder, "the DHCP server has leased the address to this VM; stopping the VM that still holds it");
                    contest = Contest { address, since: now, evicting: true };
                    self.contested = Some(contest);
                    return None;
                }
                // The holder is about to end, or cannot be found.
                Ok(None) => {}
                Err(error) => tracing::warn!(%error, "cannot stop the VM that still holds the address"),
            }
        }
        // A holder that the server's file contradicts, but that does not end or cannot be found, gets twice
        // the time.
        if verdict != Some(true) && waited >= timeout || waited >= 2 * EVICTION_TIMEOUT {
            tracing::error!("{error}");
            return Some(self.refuse(Signal::TERM));
        }
        self.contested = Some(contest);
        None
    }

    /// The address to try to record again later.
    pub fn contested(&self) -> Option<Ipv4Addr> {
        self.contested.map(|contest| contest.address)
    }

    /// Removes all forwards to the VM.
    pub fn withdraw(&mut self) {
        self.contested = None;
        self.forwarder.set_address(None);
    }

    fn refuse(&mut self, signal: Signal) -> Outcome {
        self.withdraw();
        Outcome::Refused(signal)
    }

    /// When [`Place::update_forwards`] has something to do.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.forwarder.next_deadline()
    }

    /// Installs and removes forwards, if a change is due.
    pub fn update_forwards(&mut self, now: Timestamp) {
        let ops = self.forwarder.due(now);
        if ops.is_empty() {
            return;
        }
        match self.membership.apply(&ops) {
            Ok(()) => {
                for op in ops {
                    tracing::info!(?op, "port forward changed");
                    self.forwarder.done(op);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot change the port forwards; trying again later");
                self.forwarder.failed(now);
            }
        }
    }

    /// Records the last address that the ended worker reported, and leaves the network.
    pub fn leave(mut self, final_address: Option<Option<Ipv4Addr>>) {
        match final_address {
            Some(None) => self.membership.address_released(),
            Some(address) => {
                if let Err(error) = self.membership.set_address(address) {
                    tracing::warn!(%error, "cannot record the VM's last address");
                }
            }
            None => {}
        }
        if let Err(error) = self.membership.leave() {
            tracing::warn!(%error, "cannot leave the network cleanly; the next start will clean up");
        }
    }
}
