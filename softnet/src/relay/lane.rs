//! One direction's frames, from the link that receives them to the link that sends them.

use std::io;
use std::time::Duration;

use mio::{Interest, Registry};
use softnet_filter::{Direction, DropReason, Port, Timestamp, Verdict};
use softnet_offload::finish_open_checksum;

use super::limit::Limit;
use super::wake::Wake;
use super::{Ended, RelayError, Stop};
use crate::link::{FrameBatch, Link, LinkError, Received, Sent};
use crate::observe::Observer;

/// How long frames wait for a full queue before they are dropped. Long enough for a VM that is merely busy; a
/// VM that does not read at all must not hold up what the filter has to see, such as a DHCP reply.
const STALL_LIMIT: Duration = Duration::from_millis(100);

/// The longest pause between two attempts to send to a queue of which nothing reports when it has room. The first one is
/// the link's, and each without success is twice the one before.
const LONGEST_PAUSE: Duration = Duration::from_millis(2);

/// One side's link, as the poller knows it.
#[derive(Debug)]
pub struct Side {
    pub link: Box<dyn Link>,
    wake: Wake,
    /// The poller is set to wake the loop when the link is writable.
    waits_for_room: bool,
}

impl Side {
    /// Registers `link`, so that the poller wakes the loop with `wake` when frames arrive.
    ///
    /// # Errors
    /// Those of the poller.
    pub fn new(mut link: Box<dyn Link>, wake: Wake, registry: &Registry) -> io::Result<Self> {
        link.register(registry, wake.token(), Interest::READABLE)?;
        Ok(Side { link, wake, waits_for_room: false })
    }

    /// Why the loop stops after this error of the link.
    pub fn failed(&self, error: LinkError) -> Stop {
        match (self.wake, error) {
            (Wake::Vm, LinkError::Closed) => Stop::Ended(Ended::VmClosed),
            (Wake::Vm, error) => Stop::Failed(RelayError::Vm(error)),
            (_, error) => Stop::Failed(RelayError::Host(error)),
        }
    }

    /// Sets whether the poller wakes the loop when the link is writable.
    fn wait_for_room(&mut self, registry: &Registry, wanted: bool) -> io::Result<()> {
        if self.waits_for_room == wanted {
            return Ok(());
        }
        self.waits_for_room = wanted;
        let interest = if wanted { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        self.link.register(registry, self.wake.token(), interest)
    }
}

/// One direction's frames in flight.
#[derive(Debug)]
pub struct Lane {
    direction: Direction,
    pub batch: FrameBatch,
    /// The source may have frames.
    pub readable: bool,
    /// The batch waits for the destination's full queue until this time.
    blocked_until: Option<Timestamp>,
    /// When to try the destination again, because nothing reports when its queue has room.
    retry_at: Option<Timestamp>,
    /// How long the next pause before that is, if the destination takes nothing.
    pause: Option<Duration>,
    /// The destination did not accept its frames in time, and has accepted none since.
    stalled: bool,
    /// How much may pass.
    limit: Option<Limit>,
}

impl Lane {
    /// An empty lane for frames of up to `max_frame` bytes.
    pub fn new(direction: Direction, max_frame: usize) -> Self {
        Lane {
            direction,
            batch: FrameBatch::new(max_frame),
            readable: true,
            blocked_until: None,
            retry_at: None,
            pause: None,
            stalled: false,
            limit: None,
        }
    }

    /// From now on, reads no more than `limit` lets pass.
    pub fn set_limit(&mut self, limit: Limit) {
        self.limit = Some(limit);
    }

    /// Reads again if the limit lets it.
    pub fn refill(&mut self, now: Timestamp) {
        if let Some(limit) = &mut self.limit {
            limit.refill(now);
        }
    }

    /// When the limit lets the lane read again what may be waiting.
    pub fn refill_at(&self) -> Option<Timestamp> {
        let limit = self.limit.as_ref().filter(|_| self.readable && self.blocked_until.is_none());
        limit.and_then(Limit::waits_until)
    }

    /// From now on, drops the batch instead of waiting when a queue is full.
    pub fn drop_when_full(&mut self) {
        self.stalled = true;
    }

    /// Whether there is work without waiting for a wake-up.
    pub fn has_work(&self) -> bool {
        let is_limited = self.limit.as_ref().is_some_and(|limit| limit.waits_until().is_some());
        self.readable && self.blocked_until.is_none() && !is_limited
    }

    /// When to try the batch again, if no wake-up comes earlier.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.blocked_until.into_iter().chain(self.retry_at).min()
    }

    /// Sends the frames of the batch. If the queue is full, they stay until [`STALL_LIMIT`] has passed.
    fn send(&mut self, to: &mut dyn Link, now: Timestamp) -> Result<(), LinkError> {
        let before = self.pause.map(|_| self.batch.len_on_wire());
        let outcome = to.send(&mut self.batch)?;
        self.retry_at = None;
        // What takes some frames takes more soon.
        let pause = self.pause.take().filter(|_| before == Some(self.batch.len_on_wire()));
        match outcome {
            Sent::All => {
                self.blocked_until = None;
                self.stalled = false;
            }
            Sent::Blocked if self.stalled || self.blocked_until.is_some_and(|until| now >= until) => {
                self.batch.discard();
                self.blocked_until = None;
                self.stalled = true;
            }
            Sent::Blocked => {
                self.blocked_until.get_or_insert(now.saturating_add(STALL_LIMIT));
                let pause = to.full_queue_pause().map(|first| pause.unwrap_or(first));
                self.retry_at = pause.map(|pause| now.saturating_add(pause));
                self.pause = pause.map(|pause| LONGEST_PAUSE.min(pause * 2));
            }
        }
        Ok(())
    }
}

/// A lane with the links and the port that its frames pass through.
#[derive(Debug)]
pub struct Way<'a> {
    pub lane: &'a mut Lane,
    pub from: &'a mut Side,
    pub to: &'a mut Side,
    pub port: &'a mut Port,
    pub observer: Option<&'a mut (dyn Observer + 'static)>,
    pub registry: &'a Registry,
}

impl Way<'_> {
    /// Receives one batch and keeps the frames that the port forwards.
    ///
    /// # Errors
    /// When the source fails.
    pub fn receive(&mut self, now: Timestamp) -> Result<(), Stop> {
        let lane = &mut *self.lane;
        lane.batch.clear();
        if let Some(limit) = &lane.limit {
            lane.batch.set_most(limit.frames(lane.batch.max_frame(), now));
        }
        let received = self.from.link.recv(&mut lane.batch);
        lane.readable = matches!(received, Ok(Received::More));
        for _ in 0..lane.batch.take_truncated() {
            let _ = match lane.direction {
                Direction::FromVm => self.port.truncated_from_vm(),
                Direction::FromHost => self.port.truncated_from_host(),
            };
        }
        received.map_err(|error| self.from.failed(error))?;
        if lane.direction == Direction::FromVm {
            // The VM's sockets have no place to say that a checksum is open. The filter verifies that of DHCP, and the
            // host would drop the others in silence.
            lane.batch.edit(finish_open_checksum);
        }
        self.judge(now);
        // What the filter drops does not count.
        if let Some(limit) = &mut self.lane.limit {
            limit.take(self.lane.batch.bytes_on_wire(), now);
        }
        Ok(())
    }

    /// Keeps the frames of the batch that the port forwards. Checks for an observer once per batch, not once
    /// per frame.
    fn judge(&mut self, now: Timestamp) {
        let Way { lane: Lane { direction, batch, .. }, port, observer, .. } = self;
        let direction = *direction;
        let mut verdict = |frame: &[u8]| match direction {
            Direction::FromVm => port.from_vm(frame, now),
            Direction::FromHost => port.from_host(frame, now),
        };
        match observer {
            None => batch.retain(|frame| verdict(frame) == Verdict::Forward),
            Some(observer) => batch.retain(|frame| {
                let verdict = verdict(frame);
                observer.judged(direction, frame, verdict);
                verdict == Verdict::Forward
            }),
        }
    }

    /// Sends the frames of the batch, and counts those that the link lost.
    ///
    /// # Errors
    /// When the destination fails.
    pub fn send(&mut self, now: Timestamp) -> Result<(), Stop> {
        let sent = self.lane.send(&mut *self.to.link, now);
        self.count_losses();
        sent.map_err(|error| self.to.failed(error))
    }

    /// Like [`Way::send`]; if the queue is full, the poller wakes the loop when it has room, unless the link
    /// cannot tell.
    ///
    /// # Errors
    /// When the destination or the poller fails.
    pub fn send_or_wait(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.send(now)?;
        let waits = !self.lane.batch.is_empty() && self.lane.retry_at.is_none();
        Ok(self.to.wait_for_room(self.registry, waits)?)
    }

    /// Counts the forwarded frames that the link lost as dropped (rule L6).
    fn count_losses(&mut self) {
        let losses = self.lane.batch.take_losses();
        let (full, refused) = match self.lane.direction {
            Direction::FromVm => (DropReason::HostQueueFull, DropReason::HostRefused),
            Direction::FromHost => (DropReason::VmQueueFull, DropReason::VmRefused),
        };
        for (reason, loss) in [(full, losses.queue_full), (refused, losses.refused)] {
            if loss.frames > 0 {
                self.port.dropped_by_link(self.lane.direction, reason, loss.frames, loss.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::link::Losses;
    use crate::needs::Needs;
    use mio::Token;

    /// Takes so many frames at each attempt, and never reports that it has room.
    #[derive(Debug)]
    struct Silent(VecDeque<usize>);

    impl Link for Silent {
        fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }
        fn recv(&mut self, _batch: &mut FrameBatch) -> Result<Received, LinkError> {
            Ok(Received::Drained)
        }
        fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
            batch.advance(self.0.pop_front().unwrap());
            Ok(if batch.is_empty() { Sent::All } else { Sent::Blocked })
        }
        fn full_queue_pause(&self) -> Option<Duration> {
            Some(Duration::from_micros(50))
        }
        fn needs(&self, _needs: &mut Needs) {}
    }

    /// The pauses, in microseconds, until a link that takes so many of 9 frames at each attempt has them all.
    fn pauses(taken: &[usize]) -> Vec<u64> {
        let mut lane = Lane::new(Direction::FromVm, 1514);
        for _ in 0..9 {
            lane.batch.push(60);
        }
        let mut silent = Silent(taken.iter().copied().collect());
        let mut now = Timestamp::from_secs(1);
        let mut pauses = Vec::new();
        loop {
            lane.send(&mut silent, now).unwrap();
            let Some(at) = lane.deadline() else { break };
            pauses.push((at.as_nanos() - now.as_nanos()) / 1000);
            now = at;
        }
        assert!(lane.batch.is_empty() && silent.0.is_empty());
        assert_eq!(lane.batch.take_losses(), Losses::default());
        pauses
    }

    #[test]
    fn a_full_queue_without_notification_is_tried_again_soon_and_then_less_often() {
        assert_eq!(pauses(&[0, 0, 0, 0, 0, 0, 0, 0, 9]), [50, 100, 200, 400, 800, 1600, 2000, 2000]);
    }

    #[test]
    fn a_queue_that_took_something_is_tried_again_soon() {
        assert_eq!(pauses(&[0, 0, 0, 1, 0, 0, 8]), [50, 100, 200, 50, 100, 200]);
    }
}
