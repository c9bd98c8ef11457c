//! What the VM has asked the boot server of its network (B6).
//!
//! The answers bind nothing, so unlike [`Transactions`](crate::binding::dhcpv4::transactions) this needs to know only
//! which numbers are open: an answer may come twice, and a number may stand for another question.

use core::time::Duration;

use crate::time::Timestamp;

/// How long a question waits for answers after it was last sent.
const LIFETIME: Duration = Duration::from_secs(60);

/// The open questions to the boot server: the last few.
#[derive(Debug, Default)]
pub(crate) struct BootRequests {
    /// Transaction numbers, and until when each is open.
    slots: [Option<(u32, Timestamp)>; BootRequests::CAPACITY],
}

impl BootRequests {
    const CAPACITY: usize = 4;

    /// Remembers a question, in place of the oldest if there is no room.
    pub(crate) fn open(&mut self, id: u32, now: Timestamp) {
        let age = |slot: &&mut Option<(u32, Timestamp)>| match slot {
            Some((open, _)) if *open == id => (0, Timestamp::from_nanos(0)),
            None => (1, Timestamp::from_nanos(0)),
            Some((_, until)) => (2, *until),
        };
        if let Some(slot) = self.slots.iter_mut().min_by_key(age) {
            *slot = Some((id, now.saturating_add(LIFETIME)));
        }
    }

    /// Whether an answer with this number is expected.
    pub(crate) fn is_open(&self, id: u32, now: Timestamp) -> bool {
        self.slots.iter().flatten().any(|(open, until)| *open == id && now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::*;

    /// B6, R1: the last four questions are open, each for a minute.
    #[test]
    fn b6_the_last_questions_are_open() {
        let at = |secs| NOW.saturating_add(Duration::from_secs(secs));
        let mut requests = BootRequests::default();
        for id in 0..4 {
            requests.open(id, at(id.into()));
        }
        requests.open(0, at(4));
        requests.open(7, at(5));
        let open =
            |requests: &BootRequests, now| (0..9).filter(|id| requests.is_open(*id, now)).collect::<Vec<_>>();
        assert_eq!(open(&requests, at(5)), [0, 2, 3, 7]);
        assert_eq!(open(&requests, at(62)), [0, 3, 7]);
        assert_eq!(open(&requests, at(65)), []);
    }
}
