//! The frames that Softnet sends itself: a bounded outbox that the caller empties.

use core::fmt;
use core::ops::Deref;

use softnet_wire::build::{Builder, MAX_ERROR_LEN, MAX_RELEASE_LEN};

use crate::counters::Direction;
use crate::frame;
use crate::rate::ANSWER_BURST;

/// Bytes of the longest frame: a packet of the 576 bytes that every IPv4 host accepts (RFC 791).
pub(crate) const CAPACITY: usize = MAX_ERROR_LEN + frame::HEADER_LEN;
const _: () = assert!(MAX_RELEASE_LEN <= CAPACITY, "the longest release must fit into a frame");

/// A frame that Softnet sends itself: whole Ethernet, without its frame check sequence. Dereferences to its bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct OwnFrame(Builder<CAPACITY>);

impl OwnFrame {
    pub(crate) fn new(frame: Builder<CAPACITY>) -> Self {
        Self(frame)
    }
}

impl Deref for OwnFrame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for OwnFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnFrame").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// The frames that wait for the caller: a fixed number for each direction, so that answers to the VM never take the
/// place of a release.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    to_host: Queue<{ Outbox::TO_HOST }>,
    to_vm: Queue<{ Outbox::TO_VM }>,
}

impl Outbox {
    /// The last lease's release, and an earlier one's.
    const TO_HOST: usize = 2;
    /// As many answers as the rate permits at once.
    const TO_VM: usize = ANSWER_BURST as usize;

    /// Adds a frame that travels in `direction`; returns whether there was room.
    pub(crate) fn push(&mut self, direction: Direction, frame: OwnFrame) -> bool {
        match direction {
            Direction::FromVm => self.to_host.push(frame),
            Direction::FromHost => self.to_vm.push(frame),
        }
    }

    /// The oldest frame for the host or, if there is none, for the VM.
    pub(crate) fn poll(&mut self) -> Option<(Direction, OwnFrame)> {
        let for_vm = || Some((Direction::FromHost, self.to_vm.poll()?));
        self.to_host.poll().map(|frame| (Direction::FromVm, frame)).or_else(for_vm)
    }
}

/// Up to `N` frames in order.
#[derive(Debug)]
struct Queue<const N: usize> {
    /// The oldest is first, and behind an empty slot are none.
    slots: [Option<OwnFrame>; N],
}

impl<const N: usize> Default for Queue<N> {
    fn default() -> Self {
        Self { slots: [const { None }; N] }
    }
}

impl<const N: usize> Queue<N> {
    fn push(&mut self, frame: OwnFrame) -> bool {
        match self.slots.iter_mut().find(|slot| slot.is_none()) {
            Some(free) => {
                *free = Some(frame);
                true
            }
            None => false,
        }
    }

    fn poll(&mut self) -> Option<OwnFrame> {
        let oldest = self.slots.first_mut()?.take()?;
        self.slots.rotate_left(1);
        Some(oldest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> OwnFrame {
        let mut frame = Builder::new();
        frame.bytes(&vec![0; len]).unwrap();
        OwnFrame::new(frame)
    }

    /// R1: frames that the caller does not fetch make nothing grow.
    #[test]
    fn frames_that_are_not_fetched_make_nothing_grow() {
        let mut outbox = Outbox::default();
        assert_eq!(outbox.poll(), None);
        for round in 0..5 {
            // Neither direction takes the other's room.
            for (direction, room) in
                [(Direction::FromHost, Outbox::TO_VM), (Direction::FromVm, Outbox::TO_HOST)]
            {
                assert!((round..round + room).all(|len| outbox.push(direction, frame(len))));
                assert!(!outbox.push(direction, frame(0)));
            }
            for (direction, room) in
                [(Direction::FromVm, Outbox::TO_HOST), (Direction::FromHost, Outbox::TO_VM)]
            {
                for len in round..round + room {
                    assert_eq!(outbox.poll(), Some((direction, frame(len))));
                }
            }
            assert_eq!(outbox.poll(), None);
            assert!(outbox.push(Direction::FromHost, frame(round)));
            assert_eq!(outbox.poll(), Some((Direction::FromHost, frame(round))));
        }
        assert_eq!(format!("{:?}", frame(7)), "OwnFrame { len: 7, .. }");
        assert_eq!(frame(7)[..], [0; 7]);
    }
}
