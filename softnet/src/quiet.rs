//! Detects a silent VM, and schedules liveness probes for peers that do not report when they close.
//!
//! Most peers that close were active shortly before. Probing the silent ones rarely keeps many idle VMs
//! cheap.

use std::time::Duration;

use softnet_filter::Timestamp;

/// How often a peer is probed.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a VM has to be silent to be probed at [`QUIET_PROBE_INTERVAL`] only.
pub const QUIET_AFTER: Duration = Duration::from_secs(60);

/// How often a VM is probed that has sent nothing for [`QUIET_AFTER`].
pub const QUIET_PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Schedules liveness probes for the peers that this process has to probe.
#[derive(Debug)]
pub struct Probe {
    active_at: Timestamp,
    next: Timestamp,
}

impl Probe {
    /// Schedules the first probe one [`PROBE_INTERVAL`] after `now`.
    pub fn new(now: Timestamp) -> Self {
        Probe { active_at: now, next: now.saturating_add(PROBE_INTERVAL) }
    }

    /// Records that the VM was active at `now`.
    pub fn note_activity(&mut self, now: Timestamp) {
        self.active_at = now;
        self.next = self.next.min(now.saturating_add(PROBE_INTERVAL));
    }

    /// When the next probe is due.
    pub fn deadline(&self) -> Timestamp {
        self.next
    }

    /// Whether a probe is due now; if so, the next one is scheduled.
    pub fn is_due(&mut self, now: Timestamp) -> bool {
        if now < self.next {
            return false;
        }
        let quiet = now.saturating_since(self.active_at) >= QUIET_AFTER;
        self.next = now.saturating_add(if quiet { QUIET_PROBE_INTERVAL } else { PROBE_INTERVAL });
        true
    }
}

/// Detects when the VM is silent, for another process that probes in place of this one.
///
/// It costs one check every [`QUIET_AFTER`] while the VM is active, and none while it is silent.
#[derive(Debug)]
pub struct Silence {
    active_at: Timestamp,
    /// When to check again; `None` once the VM is silent.
    check_at: Option<Timestamp>,
}

impl Silence {
    /// A VM that was active at `now`.
    pub fn new(now: Timestamp) -> Self {
        Silence { active_at: now, check_at: Some(now.saturating_add(QUIET_AFTER)) }
    }

    /// Records that the VM was active at `now`. Returns true if that ended a silence.
    pub fn note_activity(&mut self, now: Timestamp) -> bool {
        self.active_at = now;
        let was_silent = self.check_at.is_none();
        if was_silent {
            self.check_at = Some(now.saturating_add(QUIET_AFTER));
        }
        was_silent
    }

    /// When to check next.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.check_at
    }

    /// Whether a silence has begun. Returns true once for each silence.
    pub fn has_begun(&mut self, now: Timestamp) -> bool {
        if self.check_at.is_none_or(|at| now < at) {
            return false;
        }
        let silent = now.saturating_since(self.active_at) >= QUIET_AFTER;
        self.check_at = (!silent).then(|| self.active_at.saturating_add(QUIET_AFTER));
        silent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> Timestamp {
        Timestamp::from_secs(1 + second)
    }

    #[test]
    fn a_vm_is_probed_rarely_once_it_has_been_silent_for_long() {
        let mut probe = Probe::new(second(0));
        let probed = |probe: &mut Probe, seconds: std::ops::Range<u64>| {
            seconds.filter(|&now| probe.is_due(second(now))).collect::<Vec<_>>()
        };
        assert_eq!(probed(&mut probe, 0..60), (1..60).collect::<Vec<_>>());
        assert_eq!(probed(&mut probe, 60..80), [60, 65, 70, 75]);
        // Once it is active, it is probed as before.
        probe.note_activity(second(76));
        assert_eq!(probed(&mut probe, 76..80), [77, 78, 79]);
    }

    #[test]
    fn a_silence_is_reported_once_and_costs_one_check_a_minute() {
        let mut silence = Silence::new(second(0));
        assert!(!silence.note_activity(second(30)));
        assert_eq!(silence.deadline(), Some(second(60)), "a frame does not move the alarm");
        assert!(!silence.has_begun(second(60)));
        assert_eq!(silence.deadline(), Some(second(90)));
        assert!(silence.has_begun(second(90)));
        assert_eq!(silence.deadline(), None);
        assert!(!silence.has_begun(second(1000)));
        assert!(silence.note_activity(second(1000)));
        assert_eq!(silence.deadline(), Some(second(1060)));
    }
}
