//! Whether the kernel gave this process more than its caller has.
//!
//! `unsafe`, because the auxiliary vector is read through the C library.
#![expect(unsafe_code, reason = "getauxval is a C function")]

/// What the kernel said when it started the program: `AT_SECURE` (getauxval(3)) is set for a set-user-ID or
/// set-group-ID bit and for file capabilities.
#[cfg(target_os = "linux")]
pub fn is_secure_execution() -> bool {
    // SAFETY: it looks a number up and returns another.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Whether a set-user-ID or set-group-ID bit took effect (issetugid(2)).
#[cfg(target_vendor = "apple")]
pub fn is_secure_execution() -> bool {
    // SAFETY: it takes nothing and returns a number.
    unsafe { libc::issetugid() != 0 }
}
