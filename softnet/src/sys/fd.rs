//! File descriptors that arrive as numbers on the command line.
//!
//! `unsafe`, because taking ownership of a number is a promise that nobody else closes it.
#![expect(unsafe_code, reason = "an inherited descriptor is only a number until it is adopted")]

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::io::FdFlags;

/// Descriptors that this process has adopted, so that none is adopted twice.
static ADOPTED: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

/// Takes ownership of the inherited descriptor `number` and makes it close-on-exec.
///
/// # Errors
/// `EBADF` if no such descriptor is open, `EBUSY` if it was adopted before.
pub fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let mut adopted = ADOPTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: the borrow lasts for one fcntl, which fails with EBADF if the number is not an open descriptor.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    if !adopted.insert(number) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: it is open (checked above), came from outside this program, and the set above makes this its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
