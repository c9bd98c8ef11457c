//! Whether the host's packet filters let through what a VM needs: DHCP, DNS, and its packets to the world.
//!
//! # Theory of operation
//! Rules of others cannot be judged by reading them: they come from nft, from iptables in two forms, from firewalld and from
//! BPF programs, with sets, marks, limits and extensions that only the kernel knows. So the kernel is asked. The keeper makes
//! one more port of the bridge, sends from there what a VM would send, and follows each packet by the kernel's own trace
//! ([`crate::netlink::trace`]). A table of the look's own has the first and the last chain of each hook. A packet that passes
//! the last one has passed every filter, and is dropped there: no server answers a DHCP request of the look, and nothing
//! leaves the host. A packet that a rule drops names the chain. One that is lost between the first and the last chain
//! without a word was dropped by a filter that nft does not show. Anything else tells nothing about filters, and nothing is
//! said.
//!
//! The resolver really answers, so that connection tracking sees an answer where a rule asks for one. What comes back from
//! the world cannot be tried without sending something there, and is not looked at.
//!
//! What is found is recorded in the network's directory, where the monitors of the VMs and `softnet network status` read it.

mod findings;
mod look;
mod probes;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::Error;
use super::Plan;
use super::run_dir::{NetworkDir, RunDir};
use look::Look;

pub use findings::Recorded;

/// How long after a start to look: the start does not wait for it, and is over by then.
const AFTER_START: Duration = Duration::from_millis(100);
/// How long after a change of the filters: firewalls load their rules in several transactions.
const AFTER_CHANGE: Duration = Duration::from_secs(1);
/// How long a look that found nothing counts for further starts.
const FRESH: Duration = Duration::from_secs(60);
/// How soon to look again if a filter drops something whose changes the kernel does not report.
const AGAIN: Duration = Duration::from_secs(10);
/// When to try a lock again that another process holds.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The looks of one network's keeper.
#[derive(Debug, Default)]
pub struct Looks {
    running: Option<Look>,
    /// When to begin or to continue.
    due: Option<Instant>,
    /// When a look last found nothing.
    clean: Option<Instant>,
}

impl Looks {
    /// A VM starts: looks soon, unless that was done a moment ago.
    pub fn expect_vm(&mut self, directory: &NetworkDir) {
        if self.clean.is_none_or(|clean| clean.elapsed() >= FRESH) {
            // A firewall may have been opened since.
            if let Err(error) = findings::forget(directory) {
                tracing::debug!(%error, "cannot forget what the host's filters dropped");
            }
            self.look_in(AFTER_START);
        }
    }

    /// A table of another program has changed.
    pub fn note_change(&mut self, is_active: bool) {
        self.clean = None;
        if is_active {
            self.look_in(AFTER_CHANGE);
        }
    }

    /// Looks now.
    pub fn look_now(&mut self) {
        self.look_in(Duration::ZERO);
    }

    fn look_in(&mut self, after: Duration) {
        let then = Instant::now() + after;
        self.due = Some(self.due.map_or(then, |due| due.min(then)));
    }

    /// What becomes readable when a look has news.
    pub fn news(&self) -> Option<BorrowedFd<'_>> {
        self.running.as_ref().map(AsFd::as_fd)
    }

    /// When [`Looks::go_on`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        // The next look waits for the end of this one.
        self.running.as_ref().map(Look::deadline).or(self.due)
    }

    /// Does what is due, and never waits for the lock. Returns true when a look is over. `plan` is the network's, unless it
    /// is gone.
    pub fn go_on(&mut self, plan: Option<&Plan>, directory: &NetworkDir, run_dir: &RunDir) -> bool {
        let outcome = match (self.running.take(), plan) {
            (Some(look), _) => self.continue_look(look, plan, directory, run_dir),
            (None, Some(plan)) if self.due.is_some_and(|due| Instant::now() >= due) => {
                self.begin(plan, directory, run_dir).map(|()| false)
            }
            _ => return false,
        };
        outcome.unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot ask the kernel what the host's filters drop");
            true
        })
    }

    fn begin(&mut self, plan: &Plan, directory: &NetworkDir, run_dir: &RunDir) -> Result<(), Error> {
        self.due = None;
        let Some(lock) = run_dir.try_lock()? else {
            self.look_in(LOCK_RETRY);
            return Ok(());
        };
        self.running = Some(Look::begin(plan, directory, run_dir, &lock)?);
        Ok(())
    }

    fn continue_look(
        &mut self,
        mut look: Look,
        plan: Option<&Plan>,
        directory: &NetworkDir,
        run_dir: &RunDir,
    ) -> Result<bool, Error> {
        let is_over = look.go_on();
        if let Ok(false) = is_over {
            self.running = Some(look);
            return Ok(false);
        }
        let Some(lock) = run_dir.try_lock()? else {
            look.postpone(LOCK_RETRY);
            self.running = Some(look);
            return Ok(false);
        };
        let findings = look.findings();
        look.end(run_dir, &lock)?;
        is_over?;
        if let (Some(findings), Some(plan)) = (findings, plan) {
            findings.record(&plan.name, directory)?;
            self.clean = findings.is_empty().then(Instant::now);
            if !findings.are_reported() {
                self.look_in(AGAIN);
            }
        }
        Ok(true)
    }
}
