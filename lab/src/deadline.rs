//! Waits for events, never for a fixed time: every wait ends at the event, and the limit only ends a failed
//! test.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a test waits for something that must happen. Generous: only a failing test reaches it.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A point in time after which waiting stops.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline that lies `patience` from now.
    #[must_use]
    pub fn after(patience: Duration) -> Self {
        Self(Instant::now() + patience)
    }

    /// The time left, zero once it has passed.
    #[must_use]
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Waits until `fd` is readable or its peer has closed; false once the deadline has passed.
    #[must_use]
    pub fn readable(self, fd: BorrowedFd<'_>) -> bool {
        loop {
            let left = PollTimeout::try_from(self.left()).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], left) {
                Ok(0) => return false,
                Err(Errno::EINTR) => {}
                Ok(_) => return true,
                Err(_) => return false,
            }
        }
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self::after(PATIENCE)
    }
}

/// Calls `question` until it returns true, for state that has no event to wait for (another process's
/// `/proc`, a kernel table). False if it did not before the deadline.
#[must_use]
pub fn until(question: impl FnMut() -> bool) -> bool {
    until_within(PATIENCE, question)
}

/// The same with another limit than [`PATIENCE`], for what another program does in its own time.
#[must_use]
pub fn until_within(patience: Duration, mut question: impl FnMut() -> bool) -> bool {
    let deadline = Deadline::after(patience);
    loop {
        if question() {
            return true;
        }
        if deadline.left().is_zero() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
