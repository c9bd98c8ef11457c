//! What a process may have inherited about the ends of its children.
#![expect(unsafe_code, reason = "signal(2), which no safe library offers for a default disposition")]

use std::io;

/// Resets SIGCHLD to its default, so that children can be waited for: this process may have been started with
/// it ignored.
///
/// # Errors
/// Those of `signal(2)`.
pub fn reset_sigchld() -> io::Result<()> {
    // SAFETY: the default disposition runs no code of ours.
    match unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
