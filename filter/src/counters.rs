//! How many frames were forwarded in each direction, and why the others were dropped.

use core::fmt;

use crate::verdict::{DropReason, Verdict};

/// The direction of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the VM to the host.
    FromVm,
    /// From the host to the VM.
    FromHost,
}

/// Frames of both directions. A frame that a link lost counts as dropped, not as forwarded (rule L6). Counters only
/// grow; one wraps after 2^64 frames or bytes, which no link reaches.
///
/// `Display` writes one line of `key=value` words that stays the same for the same counts:
///
/// ```text
/// vm->host forwarded=12 bytes=1034 dropped=3 [no-lease=2 source-mac=1] host->vm forwarded=9 bytes=801 dropped=0 [] answers=1
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    /// What the VM sent.
    pub from_vm: DirectionCounters,
    /// What was on its way to the VM.
    pub from_host: DirectionCounters,
    /// Frames with which Softnet itself answered the VM. They are in no other count.
    pub answers: u64,
}

/// Frames of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectionCounters {
    forwarded_frames: u64,
    forwarded_bytes: u64,
    dropped: [u64; DropReason::COUNT],
}

impl Default for DirectionCounters {
    fn default() -> Self {
        Self { forwarded_frames: 0, forwarded_bytes: 0, dropped: [0; DropReason::COUNT] }
    }
}

impl DirectionCounters {
    /// Frames that were forwarded.
    pub fn forwarded_frames(&self) -> u64 {
        self.forwarded_frames
    }

    /// Bytes of the frames that were forwarded, with the Ethernet header and without the frame check sequence.
    pub fn forwarded_bytes(&self) -> u64 {
        self.forwarded_bytes
    }

    /// Frames that were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or(0)
    }

    /// All frames that were dropped.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }

    /// The reasons for which frames were dropped, in the order of the rules, each with its count.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().copied().zip(self.dropped.iter().copied()).filter(|(_, count)| *count != 0)
    }

    /// Counts frames as dropped that were counted as forwarded before: the link has lost them (L6).
    pub(crate) fn lose(&mut self, reason: DropReason, frames: u64, bytes: u64) {
        self.forwarded_frames = self.forwarded_frames.saturating_sub(frames);
        self.forwarded_bytes = self.forwarded_bytes.saturating_sub(bytes);
        if let Some(count) = self.dropped.get_mut(reason as usize) {
            *count = count.wrapping_add(frames);
        }
    }

    /// Counts a frame of `len` bytes and returns its verdict.
    #[inline]
    pub(crate) fn count(&mut self, verdict: Verdict, len: usize) -> Verdict {
        match verdict {
            Verdict::Forward => {
                self.forwarded_frames = self.forwarded_frames.wrapping_add(1);
                self.forwarded_bytes = self.forwarded_bytes.wrapping_add(len as u64);
            }
            Verdict::Drop(reason) => {
                if let Some(count) = self.dropped.get_mut(reason as usize) {
                    *count = count.wrapping_add(1);
                }
            }
        }
        verdict
    }
}

impl fmt::Display for DirectionCounters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "forwarded={} bytes={} dropped={} [",
            self.forwarded_frames,
            self.forwarded_bytes,
            self.dropped_total()
        )?;
        for (index, (reason, count)) in self.drops().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{}={count}", reason.name())?;
        }
        f.write_str("]")
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vm->host {} host->vm {} answers={}", self.from_vm, self.from_host, self.answers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_direction_and_reason() {
        let mut counters = Counters::default();
        assert_eq!(
            counters.to_string(),
            "vm->host forwarded=0 bytes=0 dropped=0 [] host->vm forwarded=0 bytes=0 dropped=0 [] answers=0"
        );
        assert!(counters.from_vm.count(Verdict::Forward, 60).is_forward());
        let _ = counters.from_vm.count(Verdict::Forward, 40);
        let _ = counters.from_vm.count(Verdict::Drop(DropReason::SourceMac), 60);
        let _ = counters.from_vm.count(Verdict::Drop(DropReason::HostMalformed), 60);
        let _ = counters.from_vm.count(Verdict::Drop(DropReason::SourceMac), 60);
        let _ = counters.from_host.count(Verdict::Drop(DropReason::OtherStation), 60);
        assert_eq!(
            counters.to_string(),
            "vm->host forwarded=2 bytes=100 dropped=3 [source-mac=2 host-malformed=1] \
             host->vm forwarded=0 bytes=0 dropped=1 [other-station=1] answers=0"
        );
        assert_eq!(counters.from_vm.forwarded_frames(), 2);
        assert_eq!(counters.from_vm.forwarded_bytes(), 100);
        assert_eq!(counters.from_vm.dropped(DropReason::SourceMac), 2);
        assert_eq!(counters.from_vm.dropped(DropReason::Runt), 0);
        assert_eq!(counters.from_vm.dropped_total(), 3);
        assert_eq!(
            counters.from_vm.drops().collect::<Vec<_>>(),
            [(DropReason::SourceMac, 2), (DropReason::HostMalformed, 1)]
        );
    }
}
