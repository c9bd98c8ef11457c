//! Tracks which exposed ports should lead to the VM and which do, and plans the changes when the VM's address
//! changes.
//!
//! This half is pure. [`Forward`] is an entry of `--expose` together with the address that it leads to now;
//! [`Forwarder`] compares what should be installed with what is, and plans the steps and retries. How a
//! forward is installed differs by platform and host mode.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use softnet_filter::Timestamp;

use crate::config::expose::Expose;

/// An exposed port and the VM's address that it leads to.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Forward {
    /// The exposed port.
    pub expose: Expose,
    /// The VM's leased address.
    pub to: Ipv4Addr,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Forward { expose, to } = self;
        let from = expose.bind_address();
        write!(f, "{from}:{} -> {to}:{} {}", expose.external, expose.internal, expose.protocol)
    }
}

/// A step from what is installed to what should be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Op {
    /// Remove the forward.
    Remove(Forward),
    /// Install the forward.
    Install(Forward),
}

/// The steps that lead from `installed` to `desired`: all removals first, so that a port that moves is never claimed twice.
pub fn reconcile(desired: &[Forward], installed: &[Forward]) -> Vec<Op> {
    let stale = installed.iter().filter(|forward| !desired.contains(forward)).map(|&stale| Op::Remove(stale));
    let missing = desired.iter().filter(|forward| !installed.contains(forward)).map(|&new| Op::Install(new));
    stale.chain(missing).collect()
}

/// First pause after a failed step.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Holds what should be forwarded and what is, and paces the attempts to make them equal.
///
/// Time is a parameter. The owner calls [`Forwarder::due`] whenever something changed or the
/// deadline has come, executes the steps and reports each by [`Forwarder::done`] or [`Forwarder::failed`]. A failed step is
/// tried again with doubling pauses; a new address is tried at once.
#[derive(Debug)]
pub struct Forwarder {
    exposes: Vec<Expose>,
    desired: Vec<Forward>,
    installed: Vec<Forward>,
    pause: Duration,
    not_before: Option<Timestamp>,
}

impl Forwarder {
    /// A forwarder for the exposed ports, with nothing installed.
    pub fn new(exposes: Vec<Expose>) -> Self {
        Forwarder {
            exposes,
            desired: Vec::new(),
            installed: Vec::new(),
            pause: FIRST_PAUSE,
            not_before: None,
        }
    }

    /// The VM's address is now `address`, or it has none.
    pub fn set_address(&mut self, address: Option<Ipv4Addr>) {
        let desired: Vec<Forward> = match address {
            Some(to) => self.exposes.iter().map(|&expose| Forward { expose, to }).collect(),
            None => Vec::new(),
        };
        if desired != self.desired {
            self.desired = desired;
            self.pause = FIRST_PAUSE;
            self.not_before = None;
        }
    }

    /// The steps to take now; none while a pause lasts or when all is in place.
    pub fn due(&self, now: Timestamp) -> Vec<Op> {
        match self.not_before {
            Some(not_before) if now < not_before => Vec::new(),
            _ => reconcile(&self.desired, &self.installed),
        }
    }

    /// When to ask again; `None` if nothing is left to do.
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let open = !reconcile(&self.desired, &self.installed).is_empty();
        open.then(|| self.not_before.unwrap_or_default())
    }

    /// `op` was carried out.
    pub fn done(&mut self, op: Op) {
        match op {
            Op::Remove(forward) => self.installed.retain(|installed| *installed != forward),
            Op::Install(forward) if !self.installed.contains(&forward) => self.installed.push(forward),
            Op::Install(_) => {}
        }
        self.pause = FIRST_PAUSE;
        self.not_before = None;
    }

    /// A step failed at `now`; nothing is tried before the pause is over.
    pub fn failed(&mut self, now: Timestamp) {
        self.not_before = Some(now.saturating_add(self.pause));
        self.pause = self.pause.saturating_mul(2).min(LONGEST_PAUSE);
    }

    /// The installed forwards.
    pub fn installed(&self) -> &[Forward] {
        &self.installed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expose(text: &str) -> Expose {
        text.parse().unwrap()
    }

    const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 5);
    const SECOND: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 6);

    #[test]
    fn a_moved_address_removes_before_it_installs() {
        let mut forwarder = Forwarder::new(vec![expose("80:80")]);
        assert_eq!(forwarder.due(Timestamp::default()), []);
        forwarder.set_address(Some(FIRST));
        let old = Forward { expose: expose("80:80"), to: FIRST };
        let new = Forward { expose: expose("80:80"), to: SECOND };
        assert_eq!(forwarder.due(Timestamp::default()), [Op::Install(old)]);
        forwarder.done(Op::Install(old));
        assert_eq!(forwarder.next_deadline(), None);
        forwarder.set_address(Some(SECOND));
        assert_eq!(forwarder.due(Timestamp::default()), [Op::Remove(old), Op::Install(new)]);
        forwarder.done(Op::Remove(old));
        forwarder.set_address(None);
        assert_eq!(forwarder.due(Timestamp::default()), []);
        assert_eq!(forwarder.installed(), []);
    }

    #[test]
    fn a_failed_step_is_tried_again_ever_later_and_a_new_address_at_once() {
        let mut forwarder = Forwarder::new(vec![expose("80:80")]);
        forwarder.set_address(Some(FIRST));
        let mut now = Timestamp::default();
        let mut pauses = Vec::new();
        for _ in 0..10 {
            assert_eq!(forwarder.due(now).len(), 1);
            forwarder.failed(now);
            let deadline = forwarder.next_deadline().unwrap();
            assert_eq!(forwarder.due(Timestamp::from_nanos(deadline.as_nanos() - 1)), []);
            pauses.push(deadline.saturating_since(now));
            now = deadline;
        }
        assert_eq!(pauses.first(), Some(&FIRST_PAUSE));
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
        forwarder.failed(now);
        forwarder.set_address(Some(SECOND));
        assert_eq!(forwarder.due(now).len(), 1);
    }
}
