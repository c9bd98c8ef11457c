//! Events as macOS's unified logging takes them: one line of text, in the form in which a C compiler passes it.

use std::ffi::{CString, c_char};
use std::fmt::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// The part of the system that takes lines.
pub trait Sink {
    /// Whether the system wants events of this level now. That changes while the program runs (`log config`).
    fn wants(&self, level: Level) -> bool;
    /// Writes one line.
    fn write(&self, level: Level, line: &CString);
}

/// Passes events on to a [`Sink`].
#[derive(Debug)]
pub struct UnifiedLog<S>(S);

impl<S: Sink> UnifiedLog<S> {
    /// Passes events on to `sink`.
    pub fn new(sink: S) -> Self {
        UnifiedLog(sink)
    }
}

impl<S: Subscriber, T: Sink + 'static> Layer<S> for UnifiedLog<T> {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let level = *event.metadata().level();
        if self.0.wants(level) {
            let mut line = Line::default();
            event.record(&mut line);
            self.0.write(level, &terminated(&line.finish()));
        }
    }
}

/// `text` for C. A NUL, which would cut it, becomes a space.
pub fn terminated(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// The message of an event, and its fields behind it.
#[derive(Debug, Default)]
struct Line {
    message: String,
    fields: String,
}

impl Line {
    fn finish(self) -> String {
        self.message + &self.fields
    }
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_error(&mut self, field: &Field, error: &(dyn std::error::Error + 'static)) {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.record_debug(field, &format_args!("{text}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// `os_log_type_t` of a level (`os/log.h`). A warning is what the system keeps by default.
pub fn kind(level: Level) -> u8 {
    match level {
        Level::ERROR => 0x10,
        Level::WARN => 0x00,
        Level::INFO => 0x01,
        Level::DEBUG | Level::TRACE => 0x02,
    }
}

/// The arguments of a message with the format `%{public}s`, as clang lays them out for `os_log` (`CGBuiltin.cpp`,
/// `OSLog.h`): that something among them is no scalar, their number, and for the one its type and privacy, its size
/// and the pointer.
pub fn arguments(text: *const c_char) -> [u8; 12] {
    const NON_SCALAR: u8 = 2;
    const STRING: u8 = 2 << 4;
    const PUBLIC: u8 = 2;
    const { assert!(size_of::<*const c_char>() == 8) };
    let mut bytes = [NON_SCALAR, 1, STRING | PUBLIC, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[4..].copy_from_slice(&text.addr().to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Wants warnings and errors, and keeps them.
    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<(u8, String)>>>);

    impl Sink for Kept {
        fn wants(&self, level: Level) -> bool {
            level <= Level::WARN
        }
        fn write(&self, level: Level, line: &CString) {
            self.0.lock().unwrap().push((kind(level), line.to_str().unwrap().to_owned()));
        }
    }

    #[test]
    fn an_event_is_one_line_with_its_fields_and_level() {
        let kept = Kept::default();
        let subscriber = tracing_subscriber::registry().with(UnifiedLog::new(kept.clone()));
        tracing::subscriber::with_default(subscriber, || {
            let failed = anyhow::anyhow!("no route").context("cannot send");
            let failed: &(dyn std::error::Error + 'static) = failed.as_ref();
            tracing::error!(error = failed, "ended\0early");
            tracing::warn!(address = %std::net::Ipv4Addr::LOCALHOST, used = 3, name = "a b", "the VM has {}", "a lease");
            tracing::info!("nobody wants this");
        });
        let expected = [
            (0x10, "ended early error=cannot send: no route"),
            (0x00, "the VM has a lease address=127.0.0.1 used=3 name=\"a b\""),
        ];
        assert_eq!(*kept.0.lock().unwrap(), expected.map(|(kind, line)| (kind, line.to_owned())));
    }

    #[test]
    fn arguments_are_laid_out_as_a_compiler_does() {
        let text = c"text";
        let bytes = arguments(text.as_ptr());
        assert_eq!(bytes[..4], [0x02, 0x01, 0x22, 0x08]);
        assert_eq!(bytes[4..], text.as_ptr().addr().to_ne_bytes());
    }
}
