//! How often a VM may do what costs others something, and get an answer (C5, C7, L3).

use core::time::Duration;

use crate::time::Timestamp;

/// The rate at which the VM may send DHCP (C7).
pub(crate) type MessageRate = Rate<10, 1_000>;

/// The rate at which it may decline addresses. A server has to treat a declined address as in use (RFC 2131, section
/// 4.3.3), so a VM that declines every offer could empty the pool for all others.
pub(crate) type DeclineRate = Rate<8, 600_000>;

/// The rate at which it may use a new client identifier (C5). A server that stores leases by identifier gives each
/// one an address of its own.
pub(crate) type ClientIdRate = Rate<4, 150_000>;

/// The rate at which Softnet answers the VM's packets itself (L3).
pub(crate) type AnswerRate = Rate<ANSWER_BURST, 100>;

/// The most answers at once.
pub(crate) const ANSWER_BURST: u64 = 20;

/// A rate: a burst of `BURST`, then one every `INTERVAL` milliseconds.
///
/// This is the generic cell rate algorithm: one time stamp instead of a bucket of tokens.
#[derive(Debug, Default)]
pub(crate) struct Rate<const BURST: u64, const INTERVAL: u64> {
    /// When all that passed so far would have been due at the steady rate.
    due: Timestamp,
}

impl<const BURST: u64, const INTERVAL: u64> Rate<BURST, INTERVAL> {
    const TOLERANCE: Duration = Duration::from_millis(BURST.saturating_sub(1).saturating_mul(INTERVAL));

    /// Whether one more may pass now.
    pub(crate) fn has_room(&self, now: Timestamp) -> bool {
        self.due <= now.saturating_add(Self::TOLERANCE)
    }

    /// Counts one more.
    pub(crate) fn count(&mut self, now: Timestamp) {
        self.due = self.due.max(now).saturating_add(Duration::from_millis(INTERVAL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    /// C7, B4: no time overflows the rate.
    #[test]
    fn c7_rate_at_the_end_of_time() {
        let passed = |now| {
            let mut rate = MessageRate::default();
            (0..100)
                .filter(|_| {
                    let passes = rate.has_room(now);
                    rate.count(now);
                    passes
                })
                .count()
        };
        assert_eq!(passed(Timestamp::MAX), 100);
        assert_eq!(passed(NOW), 10);
    }
}
