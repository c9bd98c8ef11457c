//! The log: quiet by default, on standard error, filtered by `RUST_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        // Reporting a closed standard error on standard error would panic.
        .log_internal_errors(false)
        .init();
}

fn default_filter() -> EnvFilter {
    EnvFilter::new("warn")
}
