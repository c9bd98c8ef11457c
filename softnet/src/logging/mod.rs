//! The log: quiet by default, on standard error, filtered by `RUST_LOG`; on macOS in the system's log too, filtered by
//! the system.

#[cfg(target_os = "macos")]
mod apple;
#[cfg(any(target_os = "macos", test))]
mod unified;

use std::io::IsTerminal;

use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, fmt};

use crate::sys::secure::is_secure_execution;

/// Starts logging. The environment of a set-user-ID start belongs to an untrusted user and is not read.
pub fn init() {
    let filter = match std::env::var("RUST_LOG") {
        Ok(directives) if !is_secure_execution() => EnvFilter::try_new(directives).unwrap_or_else(|error| {
            eprintln!("softnet: RUST_LOG is invalid and ignored: {error}");
            default_filter()
        }),
        _ => default_filter(),
    };
    let stderr = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // Reporting a closed standard error on standard error would panic.
        .log_internal_errors(false)
        .with_filter(filter);
    tracing_subscriber::registry().with(stderr).with(system_log()).init();
}

/// The system's log. It decides itself what it keeps, so it gets everything but single frames.
#[cfg(target_os = "macos")]
fn system_log<S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>>()
-> impl tracing_subscriber::Layer<S> {
    unified::UnifiedLog::new(apple::SystemLog::open())
        .with_filter(tracing_subscriber::filter::LevelFilter::DEBUG)
}

/// Nothing: who starts Softnet collects its standard error.
#[cfg(not(target_os = "macos"))]
fn system_log() -> Option<tracing_subscriber::layer::Identity> {
    None
}

/// Records in the system's log, where there is one, why Softnet ends. It has been printed already.
#[cfg(target_os = "macos")]
pub fn record_failure(text: &str) {
    use unified::Sink as _;
    apple::SystemLog::open().write(tracing::Level::ERROR, &unified::terminated(text));
}

/// Does nothing: who starts Softnet collects its standard error.
#[cfg(not(target_os = "macos"))]
pub fn record_failure(_text: &str) {}

fn default_filter() -> EnvFilter {
    EnvFilter::new("warn")
}
