//! How many bytes a second one direction may carry: a token bucket that never ticks.
//!
//! A lane whose bucket is empty stops reading, so its frames wait where they are: in the VM's socket, whose VMM then waits
//! too, or in the queue of the host's link. Nothing is dropped here, and an idle lane has no deadline.

use std::num::NonZeroU64;
use std::time::Duration;

use softnet_filter::Timestamp;

/// What may pass at once after a pause: what the rate gives in this time, and no less than [`LEAST_BURST`].
const BURST: Duration = Duration::from_millis(20);
/// Bytes of the smallest burst: one of the longest super-frames, which cannot pass in parts.
pub const LEAST_BURST: u64 = 64 << 10;

/// How long an empty bucket fills before its lane reads again, so that it wakes up at most this often; but until it holds
/// [`LEAST_READ`].
const PAUSE: Duration = Duration::from_millis(5);
/// Bytes of a full frame on Ethernet.
const LEAST_READ: u64 = 1514;

/// The limit of one direction.
#[derive(Debug)]
pub struct Limit {
    rate: NonZeroU64,
    /// How long the bucket fills until it is full.
    fill_time: Duration,
    /// When the bucket was empty, or will be if a frame took more than was in it.
    empty_at: Timestamp,
    /// The bucket is empty, and its lane waits until this time.
    waits_until: Option<Timestamp>,
}

impl Limit {
    /// A limit of `rate` bytes a second, with a full bucket.
    pub fn new(rate: NonZeroU64) -> Self {
        let burst = bytes_in(BURST, rate).max(LEAST_BURST);
        // Rounded down, like all that may pass.
        let fill_time = time_for(burst, rate).saturating_sub(Duration::from_nanos(1));
        Limit { rate, fill_time, empty_at: Timestamp::from_nanos(0), waits_until: None }
    }

    /// Until when nothing may be read, if the bucket is empty.
    pub fn waits_until(&self) -> Option<Timestamp> {
        self.waits_until
    }

    /// Ends the wait if its time has come.
    pub fn refill(&mut self, now: Timestamp) {
        self.waits_until = self.waits_until.filter(|until| now < *until);
    }

    /// How many frames of up to `longest` bytes may be read now, without taking more than is in the bucket; but at least
    /// one.
    pub fn frames(&self, longest: usize, now: Timestamp) -> usize {
        let frames = self.room(now) / (longest.max(1) as u64);
        usize::try_from(frames).unwrap_or(usize::MAX).max(1)
    }

    /// Takes what has been read out of the bucket. If that empties it, the lane waits.
    pub fn take(&mut self, bytes: u64, now: Timestamp) {
        // Beyond its burst the bucket holds nothing.
        let lost = now.saturating_since(self.empty_at).saturating_sub(self.fill_time);
        self.empty_at = self.empty_at.saturating_add(lost).saturating_add(time_for(bytes, self.rate));
        if self.room(now) == 0 {
            let enough = bytes_in(PAUSE, self.rate).max(LEAST_READ);
            self.waits_until = Some(self.empty_at.saturating_add(time_for(enough, self.rate)));
        }
    }

    /// The bytes in the bucket.
    fn room(&self, now: Timestamp) -> u64 {
        bytes_in(now.saturating_since(self.empty_at).min(self.fill_time), self.rate)
    }
}

/// How long so many bytes take, rounded up.
fn time_for(bytes: u64, rate: NonZeroU64) -> Duration {
    let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(rate.get()));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How many bytes pass in this time, rounded down.
fn bytes_in(time: Duration, rate: NonZeroU64) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(rate.get()) / 1_000_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_secs(1_000);

    fn rate(bytes: u64) -> NonZeroU64 {
        NonZeroU64::new(bytes).unwrap()
    }

    /// The rates that a limit may have, and some between.
    const RATES: [u64; 7] = [64_000, 65_537, 1_000_000, 12_500_000, 999_999_937, 125_000_000_000, u64::MAX];

    /// Reads whenever the limit lets it, a frame of each of these lengths in turn, until `end`. Returns the bytes that have
    /// passed and how often the lane has waited.
    fn pass(limit: &mut Limit, lengths: &[u64], start: Timestamp, end: Timestamp) -> (u64, u64) {
        let (mut now, mut passed, mut waits) = (start, 0, 0);
        for length in lengths.iter().cycle() {
            if let Some(until) = limit.waits_until() {
                (now, waits) = (until, waits + 1);
                limit.refill(now);
                assert_eq!(limit.waits_until(), None);
            }
            if now >= end {
                break;
            }
            limit.take(*length, now);
            passed += length;
            // Reading takes time as well.
            now = now.saturating_add(Duration::from_nanos(100));
        }
        (passed, waits)
    }

    #[test]
    fn no_more_than_the_rate_and_a_burst_passes_and_not_much_less() {
        for bytes in RATES.into_iter().filter(|rate| *rate < 1_000_000_000) {
            for lengths in [&[60][..], &[1514], &[60, 1514, 9014], &[65_549], &[65_549, 60]] {
                let mut limit = Limit::new(rate(bytes));
                let burst = bytes_in(BURST, rate(bytes)).max(LEAST_BURST);
                let (passed, waits) =
                    pass(&mut limit, lengths, START, START.saturating_add(Duration::from_secs(2)));
                let longest = lengths.iter().copied().max().unwrap();
                assert!(passed <= 2 * bytes + burst + longest, "{bytes}: {passed} of {lengths:?}");
                // While there is work, the bucket is never full; and the reading itself takes time.
                let reads = passed / (lengths.iter().sum::<u64>() / lengths.len() as u64) + 1;
                let could = bytes_in(
                    Duration::from_secs(2) - Duration::from_nanos(100) * reads.min(10_000_000) as u32,
                    rate(bytes),
                );
                assert!(
                    passed + longest + LEAST_READ >= could.min(2 * bytes),
                    "{bytes}: {passed} of {lengths:?}, {could}"
                );
                assert!(waits <= 400, "{bytes}: {waits} waits in two seconds with {lengths:?}");
            }
        }
    }

    #[test]
    fn a_pause_fills_the_bucket_to_its_burst_and_no_further() {
        for bytes in RATES {
            let mut limit = Limit::new(rate(bytes));
            let burst = bytes_in(BURST, rate(bytes)).max(LEAST_BURST);
            for pause in [0, 2, 3_600, 1 << 40] {
                let now = START.saturating_add(Duration::from_secs(pause));
                let room = limit.room(now);
                assert!(
                    room <= burst && (burst - room) as f64 <= 1.0 + bytes as f64 / 5e8,
                    "{bytes}: {room}"
                );
                limit.take(room, now);
                assert!(limit.room(now) <= 1 + bytes / 1_000_000_000, "{bytes}");
                limit.refill(Timestamp::MAX);
            }
        }
    }

    #[test]
    fn a_read_takes_no_more_frames_than_are_in_the_bucket() {
        let mut limit = Limit::new(rate(1_000_000));
        assert_eq!(limit.frames(1514, START), 43);
        assert_eq!(limit.frames(65_549, START), 1);
        limit.take(60_000, START);
        assert_eq!((limit.frames(1514, START), limit.waits_until()), (3, None));
        limit.take(6_000, START);
        assert_eq!(limit.frames(1514, START), 1);
        // The debt of some 464 bytes, and then 5 ms at a byte a microsecond.
        let until = limit.waits_until().unwrap();
        assert_eq!(until.saturating_since(START).as_micros(), 5_464);
        limit.refill(START);
        assert_eq!(limit.waits_until(), Some(until));
        limit.refill(until);
        assert_eq!((limit.waits_until(), limit.room(until)), (None, 5_000));
    }

    #[test]
    fn no_rate_and_no_time_overflows() {
        for bytes in [1, u64::MAX] {
            for now in [Timestamp::from_nanos(0), START, Timestamp::MAX] {
                let mut limit = Limit::new(rate(bytes));
                for taken in [0, 1, u64::MAX] {
                    limit.take(taken, now);
                    let _ = limit.frames(0, now);
                    limit.refill(now);
                }
            }
        }
    }
}
