//! The calls into macOS's unified logging.
//!
//! `unsafe`, because they are C. `os_log` itself is a macro, which a C compiler turns into the call made here; crates that
//! wrap it compile C against Apple's headers, which this project builds without.
#![expect(unsafe_code, reason = "os_log is a C interface, and wants its format in a section of its own")]

use std::ffi::{CString, c_char, c_void};

use tracing::Level;

use super::unified::{Sink, arguments, kind};

/// What `log show --predicate 'subsystem == "softnet"'` looks for.
const SUBSYSTEM: &std::ffi::CStr = c"softnet";
/// The one category.
const CATEGORY: &std::ffi::CStr = c"filter";

/// The format of each message. The system stores where in the program it lies, not what it says, and looks it up in this
/// section. A C compiler marks it as one of strings, but LLVM's linker puts all such sections into `__cstring`.
#[unsafe(link_section = "__TEXT,__oslogstring")]
static FORMAT: [u8; 11] = *b"%{public}s\0";

/// Softnet's part of the system's log.
#[derive(Debug)]
pub struct SystemLog(*mut c_void);

// SAFETY: an `os_log_t` may be used from any thread, and is never released.
unsafe impl Send for SystemLog {}
// SAFETY: likewise.
unsafe impl Sync for SystemLog {}

impl SystemLog {
    /// Opens it. The system gives one program the same log for the same names, so this may be called again.
    pub fn open() -> Self {
        // SAFETY: both names are constant and end with a NUL. The result is never null.
        SystemLog(unsafe { os_log_create(SUBSYSTEM.as_ptr(), CATEGORY.as_ptr()) })
    }
}

impl Sink for SystemLog {
    fn wants(&self, level: Level) -> bool {
        // SAFETY: the log was created and never released.
        unsafe { os_log_type_enabled(self.0, kind(level)) }
    }

    fn write(&self, level: Level, line: &CString) {
        let arguments = arguments(line.as_ptr());
        // SAFETY: the format lies in the program that the first argument names, and ends with a NUL; the arguments are
        // what it asks for: one string, which lives through the call.
        unsafe {
            _os_log_impl(
                (&raw const __dso_handle).cast(),
                self.0,
                kind(level),
                FORMAT.as_ptr().cast(),
                arguments.as_ptr(),
                arguments.len() as u32,
            );
        }
    }
}

// SAFETY: as declared in `os/log.h` since macOS 10.12; the linker defines the start of the program.
unsafe extern "C" {
    fn os_log_create(subsystem: *const c_char, category: *const c_char) -> *mut c_void;
    fn os_log_type_enabled(log: *mut c_void, kind: u8) -> bool;
    fn _os_log_impl(
        program: *const c_void,
        log: *mut c_void,
        kind: u8,
        format: *const c_char,
        arguments: *const u8,
        size: u32,
    );
    static __dso_handle: u8;
}
