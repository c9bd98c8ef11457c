//! The frames that Softnet sends itself: a bounded outbox that the caller empties.

use core::fmt;
use core::ops::Deref;

use softnet_wire::build::{Builder, MAX_RELEASE_LEN};

use crate::counters::Direction;
use crate::frame;

/// Bytes of the longest frame: a packet of the 576 bytes that every IPv4 host accepts (RFC 791).
const CAPACITY: usize = 576 + frame::HEADER_LEN;
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

/// The frames that wait for the caller, each with its direction: a fixed number of them.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    slots: [Option<(Direction, OwnFrame)>; Outbox::CAPACITY],
}

impl Outbox {
    /// The most frames that can wait.
    const CAPACITY: usize = 2;

    /// Adds a frame; returns whether there was room.
    pub(crate) fn push(&mut self, direction: Direction, frame: OwnFrame) -> bool {
        match self.slots.iter_mut().find(|slot| slot.is_none()) {
            Some(free) => {
                *free = Some((direction, frame));
                true
            }
            None => false,
        }
    }

    /// The oldest frame.
    pub(crate) fn poll(&mut self) -> Option<(Direction, OwnFrame)> {
        let oldest = self.slots.first_mut().and_then(Option::take);
        self.slots.rotate_left(1);
        oldest
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
            for len in round..round + Outbox::CAPACITY {
                assert!(outbox.push(Direction::FromVm, frame(len)));
            }
            assert!(!outbox.push(Direction::FromHost, frame(0)));
            for len in round..round + Outbox::CAPACITY {
                assert_eq!(outbox.poll(), Some((Direction::FromVm, frame(len))));
            }
            assert_eq!(outbox.poll(), None);
            assert!(outbox.push(Direction::FromHost, frame(round)));
            assert_eq!(outbox.poll(), Some((Direction::FromHost, frame(round))));
        }
        assert_eq!(format!("{:?}", frame(7)), "OwnFrame { len: 7, .. }");
        assert_eq!(frame(7)[..], [0; 7]);
    }
}
