//! One direction's frames, from the link that receives them to the link that sends them.

use std::io;
use std::time::Duration;

use mio::{Interest, Registry};
use softnet_filter::{Direction, DropReason, Port, Timestamp, Verdict};

use super::wake::Wake;
use super::{Ended, RelayError, Stop};
use crate::link::{FrameBatch, Link, LinkError, Received, Sent};
use crate::observe::Observer;

/// How long frames wait for a full queue before they are dropped. Long enough for a VM that is merely busy; a VM that
/// does not read at all must not hold up what the filter has to see, such as a DHCP reply.
const STALL_LIMIT: Duration = Duration::from_millis(100);

/// One side's link, as the poller knows it.
#[derive(Debug)]
pub struct Side {
    pub link: Box<dyn Link>,
    wake: Wake,
    /// The poller tells when the link takes more frames.
    waits_for_room: bool,
}

impl Side {
    /// Lets `registry` wake the loop by `wake` when `link` has frames.
    ///
    /// # Errors
    /// Those of the poller.
    pub fn new(mut link: Box<dyn Link>, wake: Wake, registry: &Registry) -> io::Result<Self> {
        link.register(registry, wake.token(), Interest::READABLE)?;
        Ok(Side { link, wake, waits_for_room: false })
    }

    /// What an error of the link ends.
    pub fn failed(&self, error: LinkError) -> Stop {
        match (self.wake, error) {
            (Wake::Vm, LinkError::Closed) => Stop::Ended(Ended::VmClosed),
            (Wake::Vm, error) => Stop::Failed(RelayError::Vm(error)),
            (_, error) => Stop::Failed(RelayError::Host(error)),
        }
    }

    /// Says whether the poller is to tell when the link takes more frames.
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
    /// The batch waits for the destination's queue until then.
    blocked_until: Option<Timestamp>,
    /// The destination is tried again then, because nothing tells when it takes more.
    retry_at: Option<Timestamp>,
    /// The destination did not take its frames in time and has taken none since.
    stalled: bool,
}

impl Lane {
    /// A lane without frames, each of which may be of up to `max_frame` bytes.
    pub fn new(direction: Direction, max_frame: usize) -> Self {
        Lane {
            direction,
            batch: FrameBatch::new(max_frame),
            readable: true,
            blocked_until: None,
            retry_at: None,
            stalled: false,
        }
    }

    /// Waits for no full queue.
    pub fn never_waits(&mut self) {
        self.stalled = true;
    }

    /// Whether a turn would do something without a wake-up.
    pub fn has_work(&self) -> bool {
        self.readable && self.blocked_until.is_none()
    }

    /// When to try the batch again, if no wake-up comes before.
    pub fn deadline(&self) -> Option<Timestamp> {
        self.blocked_until.into_iter().chain(self.retry_at).min()
    }

    /// Sends what the batch holds; waits for a full queue, but not for ever.
    fn send(&mut self, to: &mut dyn Link, now: Timestamp) -> Result<(), LinkError> {
        let outcome = to.send(&mut self.batch)?;
        self.retry_at = None;
        match outcome {
            Sent::All => {
                self.blocked_until = None;
                self.stalled = false;
            }
            Sent::Blocked if self.stalled || self.blocked_until.is_some_and(|until| now >= until) => {
                self.batch.give_up();
                self.blocked_until = None;
                self.stalled = true;
            }
            Sent::Blocked => {
                self.blocked_until.get_or_insert(now.saturating_add(STALL_LIMIT));
                self.retry_at = to.full_queue_pause().map(|pause| now.saturating_add(pause));
            }
        }
        Ok(())
    }
}

/// A lane with all that its frames meet.
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
        let received = self.from.link.recv(&mut lane.batch);
        lane.readable = matches!(received, Ok(Received::More));
        for _ in 0..lane.batch.take_truncated() {
            let _ = match lane.direction {
                Direction::FromVm => self.port.truncated_from_vm(),
                Direction::FromHost => self.port.truncated_from_host(),
            };
        }
        received.map_err(|error| self.from.failed(error))?;
        self.judge(now);
        Ok(())
    }

    /// Keeps those frames of the batch that the port forwards. Asks for the observer once a batch, not once a frame.
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

    /// Sends what the batch holds, and counts what the link has lost of it.
    ///
    /// # Errors
    /// When the destination fails.
    pub fn send(&mut self, now: Timestamp) -> Result<(), Stop> {
        let sent = self.lane.send(&mut *self.to.link, now);
        self.count_losses();
        sent.map_err(|error| self.to.failed(error))
    }

    /// As [`Way::send`]; the poller tells when a full queue has room for the rest, unless it cannot.
    ///
    /// # Errors
    /// When the destination or the poller fails.
    pub fn send_or_wait(&mut self, now: Timestamp) -> Result<(), Stop> {
        self.send(now)?;
        let waits = !self.lane.batch.is_empty() && self.lane.retry_at.is_none();
        Ok(self.to.wait_for_room(self.registry, waits)?)
    }

    /// What the link has lost of the frames that passed is dropped, and counted as that (rule L6).
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
    use super::*;
    use crate::link::Losses;
    use crate::needs::Needs;
    use mio::Token;

    /// Takes a batch at the third attempt, and never says that it would.
    #[derive(Debug, Default)]
    struct Silent {
        attempts: u32,
    }

    impl Link for Silent {
        fn register(&mut self, _: &Registry, _: Token, _: Interest) -> io::Result<()> {
            Ok(())
        }
        fn recv(&mut self, _batch: &mut FrameBatch) -> Result<Received, LinkError> {
            Ok(Received::Drained)
        }
        fn send(&mut self, batch: &mut FrameBatch) -> Result<Sent, LinkError> {
            self.attempts += 1;
            if self.attempts < 3 {
                return Ok(Sent::Blocked);
            }
            batch.clear();
            Ok(Sent::All)
        }
        fn full_queue_pause(&self) -> Option<Duration> {
            Some(Duration::from_millis(1))
        }
        fn needs(&self, _needs: &mut Needs) {}
    }

    #[test]
    fn a_full_queue_that_tells_nothing_is_tried_again_after_a_pause() {
        let mut lane = Lane::new(Direction::FromVm, 1514);
        lane.batch.push(60);
        let mut silent = Silent::default();
        let mut now = Timestamp::from_secs(1);
        for _ in 0..2 {
            lane.send(&mut silent, now).unwrap();
            assert_eq!(lane.batch.len(), 1);
            assert_eq!(lane.deadline(), Some(now.saturating_add(Duration::from_millis(1))));
            now = lane.deadline().unwrap();
        }
        lane.send(&mut silent, now).unwrap();
        assert!(lane.batch.is_empty() && lane.deadline().is_none());
        assert_eq!(lane.batch.take_losses(), Losses::default());
    }
}
