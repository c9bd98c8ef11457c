//! File descriptors as numbers: those that arrive on the command line, and those that the seal closes.
//!
//! `unsafe`, because code that takes ownership of a number or closes it must be the only owner.
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
    // SAFETY: it is open (checked above), came from outside this program, and the set above makes this its
    // only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor of this process that is not in `keep`, and makes those close-on-exec.
///
/// Other owners of a closed descriptor in the process must not use it again. The seal calls this when only
/// the links still need descriptors.
///
/// # Errors
/// `EBADF` if one of `keep` is not open, `ENOSYS` before Linux 5.9.
#[cfg(target_os = "linux")]
pub fn close_all_but(keep: &BTreeSet<RawFd>) -> io::Result<()> {
    for &number in keep {
        // SAFETY: the borrow lasts for one fcntl, which fails with EBADF if the number is not an open
        // descriptor.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(borrowed, FdFlags::CLOEXEC)?;
    }
    let numbers = keep.iter().filter_map(|&number| libc::c_uint::try_from(number).ok());
    let mut first = 0;
    for kept in numbers {
        if first < kept {
            close_range(first, kept - 1)?;
        }
        first = kept + 1;
    }
    close_range(first, libc::c_uint::MAX)
}

#[cfg(target_os = "linux")]
fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    // SAFETY: the arguments are numbers. The caller ensures that nothing uses the closed descriptors again.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
