//! Waits for descriptors by `poll(2)`, for processes without an event loop.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until `fd` is readable or closed.
pub fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}

/// Waits until one of `fds` has an event or `limit` has passed; a signal ends the wait too. Each of `fds`
/// then holds its events.
///
/// # Errors
/// Those of `poll(2)`.
pub fn wait(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<(), Errno> {
    // A time that is too long to be represented is no limit.
    let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
    match poll(fds, limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}
