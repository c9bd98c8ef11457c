//! Time as the caller passes it in. The filter has no clock of its own.

use core::time::Duration;

/// A point in time: nanoseconds of a clock that never runs backwards and that counts the time for which the host was
/// suspended (`CLOCK_BOOTTIME` on Linux, the continuous clock on macOS), because the lease time also passes while a
/// laptop sleeps (rule B4).
///
/// All arithmetic saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The latest time that can be represented, some 584 years after the clock's start.
    pub const MAX: Self = Self(u64::MAX);

    /// The time `nanos` nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// The time `secs` seconds after the clock's start.
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000_000))
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This time plus `duration`, at most [`Timestamp::MAX`].
    pub const fn saturating_add(self, duration: Duration) -> Self {
        let nanos = duration.as_nanos();
        if nanos > u64::MAX as u128 { Self::MAX } else { Self(self.0.saturating_add(nanos as u64)) }
    }

    /// How long `earlier` was before this time; zero if it was not.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Timestamp::from_secs(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::from_secs(1).saturating_add(Duration::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.saturating_add(Duration::from_nanos(1)), Timestamp::MAX);
        // Beyond 64 bits of nanoseconds, whatever the lower ones are.
        assert_eq!(Timestamp::from_secs(1).saturating_add(Duration::from_secs(1 << 40)), Timestamp::MAX);
        assert_eq!(Timestamp::from_secs(1).saturating_add(Duration::from_nanos(5)).as_nanos(), 1_000_000_005);
        assert_eq!(Timestamp::from_secs(1).saturating_since(Timestamp::from_secs(2)), Duration::ZERO);
        assert_eq!(Timestamp::from_secs(3).saturating_since(Timestamp::from_secs(2)), Duration::from_secs(1));
        assert_eq!(Timestamp::from_nanos(7).as_nanos(), 7);
    }
}
