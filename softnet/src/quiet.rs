//! Silence of the VM, and how often is asked whether a far end lives that does not tell when it goes.
//!
//! Most that end have been heard of shortly before. To ask the others rarely lets a host's many idle VMs cost nothing.

use std::time::Duration;

use softnet_filter::Timestamp;

/// How often a far end is asked whether it still lives, if nothing else tells.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a VM has to be silent to be asked at [`QUIET_PROBE_INTERVAL`] only.
pub const QUIET_AFTER: Duration = Duration::from_secs(60);

/// How often a VM is asked that has said nothing for long.
pub const QUIET_PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// When to ask whether those far ends live that this process has to ask.
#[derive(Debug)]
pub struct Probe {
    heard: Timestamp,
    next: Timestamp,
}

impl Probe {
    /// Asks a second after `now` for the first time.
    pub fn new(now: Timestamp) -> Self {
        Probe { heard: now, next: now.saturating_add(PROBE_INTERVAL) }
    }

    /// The VM has said something.
    pub fn heard(&mut self, now: Timestamp) {
        self.heard = now;
        self.next = self.next.min(now.saturating_add(PROBE_INTERVAL));
    }

    /// When to ask next.
    pub fn deadline(&self) -> Timestamp {
        self.next
    }

    /// Whether to ask now; if so, the next time is set.
    pub fn is_due(&mut self, now: Timestamp) -> bool {
        if now < self.next {
            return false;
        }
        let quiet = now.saturating_since(self.heard) >= QUIET_AFTER;
        self.next = now.saturating_add(if quiet { QUIET_PROBE_INTERVAL } else { PROBE_INTERVAL });
        true
    }
}

/// Whether the VM is silent, for another process that asks in this one's place.
///
/// It costs one look in [`QUIET_AFTER`] while the VM speaks, and none while it is silent.
#[derive(Debug)]
pub struct Silence {
    heard: Timestamp,
    /// When to look again; `None` once the VM is silent.
    look_at: Option<Timestamp>,
}

impl Silence {
    /// A VM that spoke at `now`.
    pub fn new(now: Timestamp) -> Self {
        Silence { heard: now, look_at: Some(now.saturating_add(QUIET_AFTER)) }
    }

    /// The VM has said something. Returns true if that ended a silence.
    pub fn heard(&mut self, now: Timestamp) -> bool {
        self.heard = now;
        let was_silent = self.look_at.is_none();
        if was_silent {
            self.look_at = Some(now.saturating_add(QUIET_AFTER));
        }
        was_silent
    }

    /// When to look next.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.look_at
    }

    /// Whether a silence has begun, which is told once.
    pub fn has_begun(&mut self, now: Timestamp) -> bool {
        if self.look_at.is_none_or(|at| now < at) {
            return false;
        }
        let silent = now.saturating_since(self.heard) >= QUIET_AFTER;
        self.look_at = (!silent).then(|| self.heard.saturating_add(QUIET_AFTER));
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
    fn a_vm_is_asked_rarely_once_it_has_been_silent_for_long() {
        let mut probe = Probe::new(second(0));
        let asked = |probe: &mut Probe, seconds: std::ops::Range<u64>| {
            seconds.filter(|&now| probe.is_due(second(now))).collect::<Vec<_>>()
        };
        assert_eq!(asked(&mut probe, 0..60), (1..60).collect::<Vec<_>>());
        assert_eq!(asked(&mut probe, 60..80), [60, 65, 70, 75]);
        // A word from it, and it is asked as before.
        probe.heard(second(76));
        assert_eq!(asked(&mut probe, 76..80), [77, 78, 79]);
    }

    #[test]
    fn a_silence_is_told_once_and_costs_one_look_a_minute() {
        let mut silence = Silence::new(second(0));
        assert!(!silence.heard(second(30)));
        assert_eq!(silence.deadline(), Some(second(60)), "a frame does not move the alarm");
        assert!(!silence.has_begun(second(60)));
        assert_eq!(silence.deadline(), Some(second(90)));
        assert!(silence.has_begun(second(90)));
        assert_eq!(silence.deadline(), None);
        assert!(!silence.has_begun(second(1000)));
        assert!(silence.heard(second(1000)));
        assert_eq!(silence.deadline(), Some(second(1060)));
    }
}
