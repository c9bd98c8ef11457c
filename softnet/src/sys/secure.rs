//! Whether this process has more privilege than its caller.
//!
//! `unsafe`, because the auxiliary vector is read through the C library.
#![expect(unsafe_code, reason = "getauxval is a C function")]

/// Reads `AT_SECURE` (getauxval(3)), which the kernel set when it started the program with a set-user-ID or
/// set-group-ID bit or with file capabilities.
#[cfg(target_os = "linux")]
pub fn is_secure_execution() -> bool {
    // SAFETY: it takes a number and returns another.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether a set-user-ID or set-group-ID bit took effect (issetugid(2)).
#[cfg(target_vendor = "apple")]
pub fn is_secure_execution() -> bool {
    // SAFETY: it takes nothing and returns a number.
    unsafe { libc::issetugid() != 0 }
}
